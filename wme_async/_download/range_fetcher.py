"""The ranges of one file: connections, retries, and the handling of wrong responses."""

import asyncio
import contextlib
import copy
from collections.abc import Awaitable
from typing import NoReturn

from wme_async._download.attempts import MAX_WRONG_RESPONSES, SIGNATURES_REFUSED, Attempts
from wme_async._download.budget import Budget, SignedUrlCache
from wme_async._download.connection_counts import ConnectionCap
from wme_async._download.first_range import FirstRange, range_request
from wme_async._download.range_plan import FetchLimits, FetchState, RangeLease, RangePlan
from wme_async._download.range_responses import RangeResponse, Verdict, check_range_response
from wme_async._download.range_store import RangeStore
from wme_async._download.source import SignedUrl
from wme_async._tasks import WorkGroup, raise_first_cause
from wme_async._transport import Body, Sink, Transport
from wme_async._transport.retry import is_transient, note_attempts
from wme_async.errors import IntegrityError, Interrupted, QuotaExceeded, ServerError, StatusError, WMEError

_TICK = 0.1
_TICKS_A_LOOK = 3
_PATIENCE = 10.0
_PATIENCE_MOST = 120.0
# An attempt with fewer bytes than this is no progress: a connection that breaks after each packet is broken.
_PROGRESS = 16 * 1024
# Rejected attempts at one range after which the other connections take it.
_ATTEMPTS_BESIDE_OTHERS = 2
# The responses of servers, and of filters in front of them, that do not know a condition (`If-Match`), beside those
# that ignore it.
_CONDITION_REFUSED = frozenset({400, 403, 405, 406, 417, 500, 501})


class FileReplaced(Exception):
    """The server has another version of the file now."""


class RangesUnsupported(Exception):
    """The server does not serve ranges of this file."""

    def __init__(self, error: WMEError) -> None:
        super().__init__(str(error))
        self.error = error


class _RangeComplete(Exception):
    """All bytes of a lease are there; the rest of the body is not needed."""


class _GivenBack(Exception):
    """A lease goes back to the plan: signing failed, or the server rejects this connection beside the others."""


class RangeFetcher:
    """Fetches the missing ranges of a plan.

    Args:
        transport: Sends the requests.
        plan: The ranges.
        store: Takes the bytes.
        signed_urls: Has the address.
        budget: Connections and bandwidth.
        limits: The limits.
        first: The response to a request for the first bytes, if it is open already.

    Attributes:
        fetched: Bytes that were received, repeated ones included.
    """

    def __init__(
        self,
        transport: Transport,
        plan: RangePlan,
        store: RangeStore,
        signed_urls: SignedUrlCache,
        budget: Budget,
        limits: FetchLimits,
        *,
        first: FirstRange | None = None,
    ) -> None:
        self.fetched = 0
        self._transport = transport
        self._plan = plan
        self._store = store
        self._signed_urls = signed_urls
        self._budget = budget
        self._limits = limits
        self._first = first
        self._first_lease: RangeLease | None = None
        self._began = transport.monotonic()
        self._patience = _PATIENCE / 3 if limits.in_order else _PATIENCE
        self._setup = 0.1
        self._scopes: dict[RangeLease, asyncio.Timeout] = {}
        self._changed = asyncio.Event()
        self._responded = False
        self._cap = ConnectionCap(limits.connections)
        self._serving = 0
        self._signed_beside_others = False
        self._kept_address = False
        # Requests that were sent with a signed URL, and `fetched` at the first failure to sign a further one.
        self._under_way = 0
        self._fetched_at_failure: int | None = None

    async def run(self) -> None:
        """Fetch all missing ranges.

        Raises:
            FileReplaced: The server has another version of the file.
            RangesUnsupported: The server does not serve ranges of the file.
            WMEError: All attempts failed.
        """
        if self._plan.complete:
            return
        self._budget.files += 1
        try:
            # A connection for each part.
            parts = -(-self._plan.unassigned // max(self._limits.least, 1))
            if parts == 1:
                # One small range, over and over for thousands of files: nothing to take over, nothing to measure.
                await self._work()
                self._budget.tick(self._transport.monotonic())
                return
            with raise_first_cause():
                async with WorkGroup() as group:
                    workers = [group.start(self._work()) for _ in range(max(1, min(self._limits.connections, parts)))]
                    clock = group.start(self._clock())
                    while not self._plan.complete:
                        await self.wait_for_change()
                    group.stop(clock, *workers)
        finally:
            self._budget.files -= 1
            self._budget.rate = self._plan.rate(self._transport.monotonic())

    async def wait_for_change(self) -> None:
        """Wait for the next `notify`."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all waiters."""
        wait_for_change, self._changed = self._changed, asyncio.Event()
        wait_for_change.set()

    async def _clock(self) -> NoReturn:
        tick = 0
        while True:
            await self._transport.sleep(_TICK)
            tick += 1
            now = self._transport.monotonic()
            self._budget.tick(now)
            if self._cap.lowered:
                self._cap.tick(now, done=self._plan.done)
            if tick % _TICKS_A_LOOK == 0:
                self._plan.tick(now)
                if not self._limits.at_once and self._signed_urls.failure is None:
                    self._replace_slow(now)
            self.notify()

    def _replace_slow(self, now: float) -> None:
        for lease in self._plan.stragglers(now, floor=self._limits.min_rate, patience=self._patience):
            if lease in self._scopes:  # otherwise it waits for a signed URL
                self._patience = min(_PATIENCE_MOST, self._patience * 1.5)
                self._abort(lease)

    async def _work(self) -> None:
        while not self._plan.complete:
            if self._should_wait_for_signature() or self._serving >= self._cap.allowed:
                await self.wait_for_change()
                continue
            if self._first is not None and self._first.take_connection():
                pass
            elif self._plan.gap(self._store.limit()) is not None:
                await self._budget.acquire()
            elif self._is_beyond_limit() or not self._budget.try_acquire():
                await self.wait_for_change()
                continue
            try:
                # The cap may have been lowered while this worker waited for a connection.
                assignment = await self._next_with_address() if self._serving < self._cap.allowed else None
                if assignment is not None:
                    await self._serve_range(*assignment)
            finally:
                self._budget.release()
            if assignment is None:
                await self.wait_for_change()

    def _should_wait_for_signature(self) -> bool:
        """Return whether to leave the work to the requests under way, because signing failed.

        Requests under way continue whatever becomes of the signature. If bytes were received by the time that the last
        one ends, a signature is requested once more.

        Raises:
            WMEError: Signing failed, and that ends the download: no request is under way, or more bytes are missing and
                waiting does not help.
        """
        failure = self._signed_urls.failure
        if failure is None:
            return False
        transient = is_transient(failure)
        if self._under_way and (transient or not self._plan.unassigned):
            if self._fetched_at_failure is None:
                self._fetched_at_failure = self.fetched
            return True
        if (
            transient
            and self._fetched_at_failure is not None
            and self.fetched > self._fetched_at_failure
            and self._signed_urls.forgive()
        ):
            return False
        # A copy: the error itself would keep its frames alive.
        raise copy.copy(failure)

    async def _next_with_address(self) -> tuple[RangeLease, RangeLease | None] | None:
        """Return `_next_range`, after signing a URL for a range that is taken over from another lease."""
        assignment = self._next_range()
        if assignment is None or assignment[1] is None or not self._signed_urls.expired:
            return assignment
        # Signing may take long, or fail. Until then the bytes stay with the present lease.
        self._plan.give_back(assignment[0], assignment[1])
        try:
            await self._signed_urls.get()
        except WMEError:
            return None
        return self._next_range()

    def _is_beyond_limit(self) -> bool:
        """Return whether all unassigned bytes lie beyond the limit; nothing is taken over from others then either."""
        limit = self._store.limit()
        return limit is not None and limit < self._plan.size and self._plan.unassigned > 0

    def _next_range(self) -> tuple[RangeLease, RangeLease | None] | None:
        now = self._transport.monotonic()
        if self._first is not None and self._first_lease is None:
            # It belongs to a new file, so that this lease has its beginning.
            lease = self._first_lease = self._plan.lease(now, most=self._first.response.stop)
        elif self._limits.at_once:
            lease = self._plan.lease(now, most=self._plan.size)
        else:
            state = FetchState(
                connections=min(self._budget.share, self._cap.allowed),
                lifetime=None if self._limits.in_order else self._signed_urls.lifetime,
                # Connections that wait for `max_rate` are not slow.
                setup=self._setup + self._budget.moved(0, now),
                limit=self._store.limit(),
                most=self._limits.most,
                least=self._limits.least,
                elapsed=now - self._began,
                contended=self._budget.contended,
            )
            return self._plan.next(now, state)
        return None if lease is None else (lease, None)

    async def _serve_range(self, lease: RangeLease, victim: RangeLease | None) -> None:
        if victim is not None and victim.lost:
            self._abort(victim)
        # It has no time limit, but `_abort` can make it expire.
        scope = asyncio.timeout(None)
        self._serving += 1
        try:
            self._store.open_lease(lease)
            async with scope:
                self._scopes[lease] = scope
                await self._fetch(lease)
        except TimeoutError:
            if not scope.expired():
                raise
        except _GivenBack:
            pass
        finally:
            self._serving -= 1
            self._scopes.pop(lease, None)
            self._plan.release(lease, self._transport.monotonic())
            self._store.close_lease(lease)
            self.notify()

    def _abort(self, lease: RangeLease) -> None:
        scope = self._scopes.pop(lease, None)
        if scope is not None:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _fetch(self, lease: RangeLease) -> None:
        attempts = Attempts(self._transport, self._beside(lease))
        while lease.remaining:
            at = lease.at
            try:
                await self._ask(lease)
                # A server may send less than the requested range.
                attempts.reset(self._beside(lease))
                continue
            except WMEError as error:
                progress = lease.at - at >= _PROGRESS
                if progress:
                    attempts.reset(self._beside(lease))
                delay = self._delay_after(error, lease, attempts, rejected=not progress)
            await self._transport.sleep(delay)

    def _beside(self, lease: RangeLease) -> int:
        """Return how many bytes of the file were received outside this lease."""
        return self._plan.done - (lease.at - lease.start)

    def _delay_after(self, error: WMEError, lease: RangeLease, attempts: Attempts, *, rejected: bool) -> float:
        """Return the seconds to wait before the next attempt, or raise if the lease or the download ends.

        A failing connection is not a failing file: while others are at work, the lease goes back to the plan and fewer
        connections are used. Only the last connection ends the download, when all attempts since the last progress of
        any connection have failed.
        """
        status = error.status if isinstance(error, StatusError) else None
        if status in {412, 416}:
            raise FileReplaced(str(error)) from error
        if self._signed_urls.failure is not None:
            if not (self._signed_urls.plain and self._responded):
                raise _GivenBack from error
            # Resolving a URL is free, and fails for the same reasons as requesting its bytes.
            self._signed_urls.failure = None
        if status in {429, 503}:
            self._budget.tuner.refused(self._transport.monotonic())
        if status == 403 and not self._signed_urls.exhausted and not (self._signed_urls.plain and self._responded):
            return 0.0
        delay = attempts.failed(error)
        progress = self._beside(lease) - attempts.beside >= _PROGRESS
        final = delay is None or not self._is_retryable(error, attempts)
        repeated = attempts.count >= _ATTEMPTS_BESIDE_OTHERS or self._cap.lowered
        if self._serving > 1 and (final or (rejected and progress and repeated)):
            self._use_fewer(error, self._under_way)
        if final and progress:
            attempts.reset(self._beside(lease))
            delay = attempts.failed(error)
        elif final:
            delay = None
        if delay is None:
            raise self._failure(error, attempts)
        return delay

    def _is_retryable(self, error: WMEError, attempts: Attempts) -> bool:
        """Return whether another attempt at a range may succeed."""
        if isinstance(error, IntegrityError):
            return attempts.count <= MAX_WRONG_RESPONSES
        if self._refuses_condition(error):
            return isinstance(error, ServerError) and error.status == 500 and attempts.count <= MAX_WRONG_RESPONSES
        if is_transient(error):
            return True
        # A server that has served this file may reject a single request temporarily. Each 403 of a signed URL costs
        # another metered request, so `SignedUrlCache` limits those.
        return (
            self._responded
            and isinstance(error, StatusError)
            and not isinstance(error, QuotaExceeded)
            and (error.status != 403 or self._signed_urls.plain)
        )

    def _use_fewer(self, error: WMEError, others: int) -> NoReturn:
        """Leave a lease to the other connections, and open no further ones for a while."""
        self._cap.lower(
            others,
            self._transport.monotonic(),
            done=self._plan.done,
            retry_after=getattr(error, "retry_after", None),
        )
        raise _GivenBack from error

    def _failure(self, error: WMEError, attempts: Attempts) -> Exception:
        """Return the error that ends the download, with a note on the attempts."""
        if isinstance(error, StatusError) and error.status == 403 and self._signed_urls.exhausted:
            error.add_note(SIGNATURES_REFUSED)
        note_attempts(error, attempts=attempts.count, elapsed=attempts.elapsed)
        is_wrong = isinstance(error, IntegrityError) and (self._signed_urls.plain or not self._responded)
        return RangesUnsupported(error) if is_wrong or self._refuses_condition(error) else error

    def _refuses_condition(self, error: WMEError) -> bool:
        """Return whether the server may reject the condition (`If-Match`) rather than the range."""
        return (
            not self._responded
            and self._limits.validator is not None
            and self._signed_urls.plain
            and isinstance(error, StatusError)
            and error.status in _CONDITION_REFUSED
        )

    async def _ask(self, lease: RangeLease) -> None:
        """Request the remaining bytes of a lease and take the body."""
        if lease is self._first_lease and self._first is not None:
            first, self._first = self._first, None
            await self._take_first(first, lease)
            return
        # A small file ends before `max_rate` can slow it down, so that the next one waits for it.
        debt = self._budget.moved(0, self._transport.monotonic())
        if debt > 0:
            await self._transport.sleep(debt)
        signed = await self._address(lease)
        start, stop = lease.at, lease.stop
        if start == stop:  # another connection has taken it over meanwhile
            return
        self._under_way += 1
        requested = self._transport.monotonic()
        request = range_request(signed, start, stop, self._limits.validator)
        try:
            async with self._transport.open(request, retry=False) as body:
                response = self._check(body, start, stop)
                self._signed_urls.worked()
                self._responded = True
                self._kept_address = False
                self._setup += 0.3 * (min(5.0, self._transport.monotonic() - requested) - self._setup)
                await self._take_body(body, lease, response)
        except StatusError as error:
            if error.status == 403:
                self._refuse_address(signed, error)
            raise
        finally:
            self._under_way -= 1
            self._budget.finished()

    async def _take_first(self, first: FirstRange, lease: RangeLease) -> None:
        """Take the body of the response that began the file."""
        self._responded = True
        self._under_way += 1
        try:
            await self._take_body(first.body, lease, first.response)
        finally:
            first.body.close()
            self._under_way -= 1
            self._budget.finished()

    async def _take_body(self, body: Body, lease: RangeLease, response: RangeResponse) -> None:
        with contextlib.suppress(_RangeComplete):
            await body.copy_to(self._sink(lease, response))
        end = min(response.stop, lease.stop)
        if lease.at < end:
            raise Interrupted(f"the response ended {end - lease.at} bytes before the end of its range", url=None)

    def _refuse_address(self, signed: SignedUrl, error: StatusError) -> None:
        """Handle a 403: the URL has expired, or the server rejects one more connection.

        If URLs expire at all, another one costs a metered request. While other requests are under way one is requested
        once, and no more if that has not helped.

        Raises:
            _GivenBack: The requests under way should take the lease.
        """
        others = self._under_way - 1
        if others and (signed.expires_at is None or self._signed_beside_others):
            self._use_fewer(error, others)
        self._signed_beside_others = self._signed_beside_others or others > 0
        if self._signed_urls.plain and self._responded and not self._kept_address:
            # A URL that has served bytes is used once more as it is: the server may still count a connection that has
            # ended, and resolving the URL would be a connection too.
            self._kept_address = True
            return
        self._kept_address = False
        self._signed_urls.refused(signed)

    async def _address(self, lease: RangeLease) -> SignedUrl:
        """Return a signed URL. A lease may wait long for it, which does not make its connection a slow one.

        Signing is metered: a second request after giving up a slow one would be charged again.
        """
        scope = self._scopes.pop(lease, None)
        began = self._transport.monotonic()
        try:
            return await self._signed_urls.get()
        finally:
            waited = self._transport.monotonic() - began
            lease.began += waited
            lease.moved += waited
            if scope is not None:
                self._scopes[lease] = scope

    def _check(self, body: Body, start: int, stop: int) -> RangeResponse:
        answer = check_range_response(
            body.status, body.headers, start=start, stop=stop, size=self._plan.size, validator=self._limits.validator
        )
        if answer.verdict is Verdict.REPLACED:
            raise FileReplaced(answer.reason)
        if answer.verdict is Verdict.REFUSED:
            raise IntegrityError(answer.reason, url=body.url.partition("?")[0])
        return answer

    def _sink(self, lease: RangeLease, answer: RangeResponse) -> Sink:
        """Return the sink for a body that may hold further bytes before and after those of a lease."""
        start, at = lease.at, answer.start
        if start == at and lease.stop <= answer.stop:
            return lambda data: self._take(lease, data)

        def take(data: memoryview) -> Awaitable[None] | None:
            nonlocal at
            first, last = max(0, start - at), max(0, answer.stop - at)
            at += len(data)
            part = data[first:last]
            self.fetched += len(data) - len(part)
            if part:
                return self._take(lease, part)
            if at > answer.stop:
                raise _RangeComplete
            return None

        return take

    def _take(self, lease: RangeLease, data: memoryview) -> Awaitable[None] | None:
        self.fetched += len(data)
        data = data[: lease.remaining]
        size = len(data)
        if not size:
            raise _RangeComplete
        writing = self._store.write(lease.at, data)
        if writing is not None:
            return self._finish(lease, size, writing)
        delay = self._taken(lease, size)
        return self._transport.sleep(delay) if delay > 0 else None

    async def _finish(self, lease: RangeLease, size: int, writing: Awaitable[None]) -> None:
        await writing
        delay = self._taken(lease, min(size, lease.remaining))
        if delay > 0:
            await self._transport.sleep(delay)

    def _taken(self, lease: RangeLease, size: int) -> float:
        """Note written bytes, and return the seconds to wait because of `max_rate`; raise after the last of a lease."""
        lease.at += size
        self._store.advanced(lease)
        # The limit counts bytes when they are received, so that none are owed after a slow write.
        delay = self._budget.moved(size, self._transport.monotonic())
        if not lease.remaining:
            raise _RangeComplete
        return delay
