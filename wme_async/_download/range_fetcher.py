"""The ranges of one file: connections, retries, and the handling of wrong responses."""

import asyncio
import contextlib
import copy
from collections.abc import Awaitable
from typing import NoReturn, Protocol

from wme_async._download.attempts import MAX_WRONG_RESPONSES, SIGNATURES_REFUSED, Attempts
from wme_async._download.budget import Budget, SignedUrlCache
from wme_async._download.connection_counts import ConnectionCap
from wme_async._download.first_range import FirstRange, range_request
from wme_async._download.range_plan import RangeLease, RangePlan
from wme_async._download.range_responses import RangeResponse, Verdict, check_range_response
from wme_async._download.source import SignedUrl
from wme_async._tasks import WorkGroup, raise_first_cause
from wme_async._transport import Body, Sink, Transport
from wme_async._transport.retry import is_transient, note_attempts
from wme_async.errors import IntegrityError, Interrupted, QuotaExceeded, ServerError, StatusError, WMEError

__all__ = ["FileReplaced", "RangeFetcher", "RangeStore", "RangesUnsupported"]

_TICK = 0.1
_TICKS_A_LOOK = 3
_PATIENCE = 10.0
_PATIENCE_MOST = 120.0
_LEAST_PART = 1 << 20
# An attempt that brought fewer bytes than this got nowhere: a connection that breaks after each packet is broken.
_PROGRESS = 16 * 1024
# Refused attempts at one range after which it is left to the connections that do bring something.
_ATTEMPTS_BESIDE_OTHERS = 2
# What servers answer that do not know a condition (`If-Match`), beside those that ignore it.
_CONDITION_REFUSED = frozenset({400, 405, 406, 417, 500, 501})


class FileReplaced(Exception):
    """The file on the server is another one now."""


class RangesUnsupported(Exception):
    """The server does not serve ranges of this file."""

    def __init__(self, error: WMEError) -> None:
        super().__init__(str(error))
        self.error = error


class _RangeComplete(Exception):
    """All bytes of a lease are there; whatever else is sent is not wanted."""


class _NoSignedUrl(Exception):
    """No signed URL can be had; `SignedUrlCache.failure` says why."""


class _TooManyConnections(Exception):
    """The server does not serve this connection beside the others of the file."""


class RangeStore(Protocol):
    """Where the bytes go."""

    def open_lease(self, lease: RangeLease) -> None:
        """Begin to account for a lease."""

    def close_lease(self, lease: RangeLease) -> None:
        """End the account of a lease."""

    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Take bytes, now or when what is returned has been awaited."""

    def advanced(self, lease: RangeLease) -> None:
        """Note that bytes of a lease were taken."""

    def limit(self) -> int | None:
        """Return the offset below which bytes may be asked for now; None for no limit."""


class RangeFetcher:
    """Fetches what a plan lacks.

    Args:
        transport: The door to the network.
        plan: Which bytes.
        store: Where they go.
        signed_urls: The address.
        budget: Connections and bandwidth.
        validator: What every answer must have that names a version: a strong ETag or a date.
        connections: At most so many for this file.
        least: Bytes that are worth a request of their own when they are taken over from another.
        most: Bytes, the upper bound of ordinary parts.
        min_rate: Bytes per second below which a range is asked for again, if others are faster.
        in_order: The bytes are wanted in order, so no connection gets more than `most` at once.
        at_once: All that is left is one range, which is not asked for again for being slow: its reader makes it wait.
        first: The response to a request for the first bytes, if it has been opened already.
    """

    def __init__(
        self,
        transport: Transport,
        plan: RangePlan,
        store: RangeStore,
        signed_urls: SignedUrlCache,
        budget: Budget,
        *,
        validator: str | None,
        connections: int,
        least: int = _LEAST_PART,
        most: int,
        min_rate: float | None = None,
        in_order: bool = False,
        at_once: bool = False,
        first: FirstRange | None = None,
    ) -> None:
        self.plan = plan
        self.fetched = 0
        self._transport = transport
        self._store = store
        self._signed_urls = signed_urls
        self._budget = budget
        self._validator = validator
        self._connections = connections
        self._least = least
        self._most = most
        self._min_rate = min_rate
        self._in_order = in_order
        self._at_once = at_once
        self._first = first
        self._first_lease: RangeLease | None = None
        self._began = transport.monotonic()
        self._patience = _PATIENCE / 3 if in_order else _PATIENCE
        self._setup = 0.1
        self._scopes: dict[RangeLease, asyncio.Timeout] = {}
        self._changed = asyncio.Event()
        self._answered = False
        self._cap = ConnectionCap(connections)
        self._serving = 0
        self._signed_beside_others = False
        self._kept_address = False
        # Requests that had an address when they were sent, and what had come when none could be had.
        self._under_way = 0
        self._came: int | None = None

    async def run(self) -> None:
        """Fetch everything.

        Raises:
            FileReplaced: The file on the server changed.
            RangesUnsupported: It cannot be had in ranges.
            WMEError: It cannot be had.
        """
        if self.plan.complete:
            return
        self._budget.files += 1
        try:
            # One connection a part, and one to spare that may take over the end of another's.
            parts = -(-self.plan.unassigned // max(self._least, 1))
            if parts == 1:
                # One small range, over and over for thousands of files: nothing to take over, nothing to measure.
                await self._work()
                self._budget.tick(self._transport.monotonic())
                return
            with raise_first_cause():
                async with WorkGroup() as group:
                    workers = [group.start(self._work()) for _ in range(max(1, min(self._connections, parts)))]
                    clock = group.start(self._clock())
                    while not self.plan.complete:
                        await self.wait_for_change()
                    group.stop(clock, *workers)
        finally:
            self._budget.files -= 1
            self._budget.rate = self.plan.rate(self._transport.monotonic())

    async def wait_for_change(self) -> None:
        """Wait until something has changed."""
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
                self._cap.tick(now, done=self.plan.done)
            if tick % _TICKS_A_LOOK == 0:
                self.plan.tick(now)
                if not self._at_once and self._signed_urls.failure is None:
                    self._replace_slow(now)
            self.notify()

    def _replace_slow(self, now: float) -> None:
        for lease in self.plan.stragglers(now, floor=self._min_rate, patience=self._patience):
            if lease not in self._scopes:  # it waits for an address
                continue
            self._patience = min(_PATIENCE_MOST, self._patience * 1.5)
            self._abort(lease)

    async def _work(self) -> None:
        while not self.plan.complete:
            if self._should_wait_for_signature() or self._serving >= self._cap.allowed:
                await self.wait_for_change()
                continue
            if self._first is not None and self._first.take_connection():
                pass
            elif self._has_unassigned():
                await self._budget.acquire()
            elif self._is_beyond_limit() or not self._budget.try_acquire():
                await self.wait_for_change()
                continue
            try:
                # Fewer may be allowed than when this one began to wait for a connection.
                found = await self._next_with_address() if self._serving < self._cap.allowed else None
                if found is not None:
                    await self._serve_range(*found)
            finally:
                self._budget.release()
            if found is None:
                await self.wait_for_change()

    def _should_wait_for_signature(self) -> bool:
        """Say whether to leave the work to those that have an address, since no other can be had.

        What is under way goes on whatever becomes of the signature. If bytes came by the time that the last has ended,
        an address is asked for once more.

        Raises:
            WMEError: Why none can be had, when that ends the download: nobody brings any bytes, or there are some to
                ask for and waiting does not help.
        """
        failure = self._signed_urls.failure
        if failure is None:
            return False
        passes = is_transient(failure)
        if self._under_way and (passes or not self.plan.unassigned):
            if self._came is None:
                self._came = self.fetched
            return True
        if passes and self._came is not None and self.fetched > self._came and self._signed_urls.forgive():
            return False
        # A copy: with the error itself its frames would be kept.
        raise copy.copy(failure)

    async def _next_with_address(self) -> tuple[RangeLease, RangeLease | None] | None:
        """Return `_next_range`; for a range that is taken over from another lease, with a signed URL at hand."""
        found = self._next_range()
        if found is None or found[1] is None or not self._signed_urls.expired:
            return found
        # Asking for one may take long, or be in vain. Until then the bytes stay with whoever is fetching them.
        self.plan.give_back(found[0], found[1])
        try:
            await self._signed_urls.get()
        except WMEError:
            return None
        return self._next_range()

    def _has_unassigned(self) -> bool:
        """Whether there are bytes that nobody fetches and that may be asked for."""
        limit = self._store.limit()
        return bool(self.plan.unassigned) and (limit is None or self.plan.open_below(limit))

    def _is_beyond_limit(self) -> bool:
        """Whether what nobody fetches is not wanted yet; nothing is taken over from others then either."""
        limit = self._store.limit()
        return limit is not None and limit < self.plan.size and self.plan.unassigned > 0

    def _next_range(self) -> tuple[RangeLease, RangeLease | None] | None:
        now = self._transport.monotonic()
        if self._first is not None and self._first_lease is None:
            # It begins a new file, so this is the beginning.
            self._first_lease = self.plan.lease(now, most=self._first.response.stop)
            return None if self._first_lease is None else (self._first_lease, None)
        if self._at_once:
            rest = self.plan.lease(now, most=self.plan.size)
            return None if rest is None else (rest, None)
        return self.plan.next(
            now,
            connections=min(self._budget.share, self._cap.allowed),
            lifetime=None if self._in_order else self._signed_urls.lifetime,
            # Where `max_rate` makes all wait, nobody is to blame for being silent.
            setup=self._setup + self._budget.moved(0, now),
            limit=self._store.limit(),
            most=self._most,
            least=self._least,
            elapsed=now - self._began,
            alone=not self._budget.contended,
        )

    async def _serve_range(self, lease: RangeLease, victim: RangeLease | None) -> None:
        if victim is not None and victim.lost:
            self._abort(victim)
        # Not for a time limit, but because it can be made to expire from outside.
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
        except (_NoSignedUrl, _TooManyConnections):
            pass
        finally:
            self._serving -= 1
            self._scopes.pop(lease, None)
            self.plan.release(lease, self._transport.monotonic())
            self._store.close_lease(lease)
            self.notify()

    def _abort(self, lease: RangeLease) -> None:
        scope = self._scopes.pop(lease, None)
        if scope is not None:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _fetch(self, lease: RangeLease) -> None:
        attempts = Attempts(self._transport, self._beside(lease))
        while lease.rest:
            at = lease.at
            try:
                await self._ask(lease)
                # A server may send less than was asked for.
                attempts.reset(self._beside(lease))
                continue
            except WMEError as error:
                progress = lease.at - at >= _PROGRESS
                if progress:
                    attempts.reset(self._beside(lease))
                wait = self._wait_after(error, lease, attempts, refused=not progress)
            await self._transport.sleep(wait)

    def _beside(self, lease: RangeLease) -> int:
        """Return how many bytes of the file are there that did not come for this lease."""
        return self.plan.done - (lease.at - lease.start)

    def _wait_after(self, error: WMEError, lease: RangeLease, attempts: Attempts, *, refused: bool) -> float:
        """Return the seconds to wait before the next attempt, or raise what ends the lease or the download.

        Trouble of one connection is not the file's: as long as others are at work, the lease goes back to the plan and
        fewer connections are used. Only the last one ends the download, once all attempts since the last
        progress of any connection have failed.
        """
        status = error.status if isinstance(error, StatusError) else None
        if status in {412, 416}:
            raise FileReplaced(str(error)) from error
        if self._signed_urls.failure is not None:
            if not (self._signed_urls.plain and self._answered):
                raise _NoSignedUrl from error
            # Asking where a URL leads costs nothing, and is refused for the same reasons as the bytes.
            self._signed_urls.failure = None
        if status in {429, 503}:
            self._budget.tuner.refused(self._transport.monotonic())
        if status == 403 and not self._signed_urls.hopeless and not (self._signed_urls.plain and self._answered):
            return 0.0
        wait = attempts.failed(error)
        progress = self._beside(lease) - attempts.beside >= _PROGRESS
        over = wait is None or not self._worth_repeating(error, attempts)
        many = attempts.count >= _ATTEMPTS_BESIDE_OTHERS or self._cap.lowered
        if self._serving > 1 and (over or (refused and progress and many)):
            self._use_fewer(error, self._under_way)
        if over and progress:
            attempts.reset(self._beside(lease))
            wait = attempts.failed(error)
            over = wait is None
        if over or wait is None:
            raise self._failure(error, attempts)
        return wait

    def _worth_repeating(self, error: WMEError, attempts: Attempts) -> bool:
        """Say whether another attempt at a range may succeed."""
        if isinstance(error, IntegrityError):
            return attempts.count <= MAX_WRONG_RESPONSES
        if self._refuses_condition(error):
            return isinstance(error, ServerError) and error.status == 500 and attempts.count <= MAX_WRONG_RESPONSES
        if is_transient(error):
            return True
        # A server that has served this file may refuse one request for it, for reasons that pass. Each 403 of a signed
        # address costs another metered request, so those are bounded by `SignedUrlCache`.
        if not isinstance(error, StatusError) or isinstance(error, QuotaExceeded):
            return False
        return self._answered and (error.status != 403 or self._signed_urls.plain)

    def _use_fewer(self, error: WMEError, others: int) -> NoReturn:
        """Leave a lease to the other connections, and use no more than those for a while."""
        retry_after = getattr(error, "retry_after", None)
        self._cap.lower(others, self._transport.monotonic(), done=self.plan.done, retry_after=retry_after)
        raise _TooManyConnections from error

    def _failure(self, error: WMEError, attempts: Attempts) -> Exception:
        """Return what ends the download, with what was tried."""
        if isinstance(error, StatusError) and error.status == 403 and self._signed_urls.hopeless:
            error.add_note(SIGNATURES_REFUSED)
        note_attempts(error, attempts=attempts.count, elapsed=attempts.elapsed)
        if isinstance(error, IntegrityError) and (self._signed_urls.plain or not self._answered):
            return RangesUnsupported(error)
        return RangesUnsupported(error) if self._refuses_condition(error) else error

    def _refuses_condition(self, error: WMEError) -> bool:
        """Say whether an answer may be due to the condition (`If-Match`), and can be had without it."""
        if self._answered or self._validator is None or not self._signed_urls.plain:
            return False
        return isinstance(error, StatusError) and error.status in _CONDITION_REFUSED

    async def _ask(self, lease: RangeLease) -> None:
        """Send one request for the rest of a lease and take its body."""
        if lease is self._first_lease and self._first is not None:
            first, self._first = self._first, None
            await self._take_first(first, lease)
            return
        # Small files end before they could be slowed down; the next ones pay for them.
        debt = self._budget.moved(0, self._transport.monotonic())
        if debt > 0:
            await self._transport.sleep(debt)
        signed = await self._address(lease)
        start, stop = lease.at, lease.stop
        if start == stop:  # another took it over meanwhile
            return
        self._under_way += 1
        asked = self._transport.monotonic()
        try:
            async with self._transport.open(range_request(signed, start, stop, self._validator), retry=False) as body:
                response = self._check(body, start, stop)
                self._signed_urls.worked()
                self._answered = True
                self._kept_address = False
                self._setup += 0.3 * (min(5.0, self._transport.monotonic() - asked) - self._setup)
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
        assert first.body is not None
        self._answered = True
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
            raise Interrupted(f"the answer ended {end - lease.at} bytes before the end of its range", url=None)

    def _refuse_address(self, signed: SignedUrl, error: StatusError) -> None:
        """Take note of a 403: the address has run out, or the server refuses one connection more.

        Another address costs a metered request where addresses run out at all. While others are under way it is asked
        for once, and no more where that has not helped.

        Raises:
            _TooManyConnections: It is left to those that are under way.
        """
        others = self._under_way - 1
        if others and (signed.expires_at is None or self._signed_beside_others):
            self._use_fewer(error, others)
        self._signed_beside_others = self._signed_beside_others or others > 0
        if self._signed_urls.plain and self._answered and not self._kept_address:
            # A URL that has served bytes is asked once more as it is: the server may still count a connection that has
            # ended, and asking where the URL leads would be a connection too.
            self._kept_address = True
            return
        self._kept_address = False
        self._signed_urls.refused(signed)

    async def _address(self, lease: RangeLease) -> SignedUrl:
        """Return an address, for which a lease may have to wait long: that is not its connection's fault.

        The question is metered. If it were given up for being slow, whoever asked again would pay once more.
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
            body.status, body.headers, start=start, stop=stop, size=self.plan.size, validator=self._validator
        )
        if answer.verdict is Verdict.REPLACED:
            raise FileReplaced(answer.reason)
        if answer.verdict is Verdict.REFUSED:
            raise IntegrityError(answer.reason, url=body.url.partition("?")[0])
        return answer

    def _sink(self, lease: RangeLease, answer: RangeResponse) -> Sink:
        """Return what takes the body of an answer that may hold other bytes before and after those of a lease."""
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
        size = len(data)
        self.fetched += size
        if size > lease.rest:
            data = data[: lease.rest]
            size = len(data)
        if not size:
            raise _RangeComplete
        writing = self._store.write(lease.at, data)
        if writing is not None:
            return self._finish(lease, size, writing)
        delay = self._taken(lease, size)
        if not lease.rest:
            raise _RangeComplete
        return self._transport.sleep(delay) if delay > 0 else None

    async def _finish(self, lease: RangeLease, size: int, writing: Awaitable[None]) -> None:
        await writing
        delay = self._taken(lease, min(size, lease.rest))
        if not lease.rest:
            raise _RangeComplete
        if delay > 0:
            await self._transport.sleep(delay)

    def _taken(self, lease: RangeLease, size: int) -> float:
        lease.at += size
        self._store.advanced(lease)
        # The limit is for all bytes that come, so that a slow disk does not let it pile up.
        return self._budget.moved(size, self._transport.monotonic())
