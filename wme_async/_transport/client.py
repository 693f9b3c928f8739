"""The two doors to the network: a whole request, and an open body that is always released."""

import asyncio
import contextlib
import logging
import platform
import random as random_module
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from wme_async import _clock
from wme_async._arguments import check_instances
from wme_async._transport.auth import Credentials, TokenManager
from wme_async._transport.body import Body
from wme_async._transport.body_end import BodyEnd, coding_error
from wme_async._transport.closing import Wait, Waits
from wme_async._transport.error_responses import bare_url, error_from_response, is_accepted
from wme_async._transport.requests import Request, Response, Role, request_counter, translate
from wme_async._transport.retry import Backoff, Retrying, http_date, is_transient, note_attempts
from wme_async._transport.sessions import SessionPool, head_within
from wme_async._transport.slots import Slots
from wme_async._transport.throttle import Throttle
from wme_async._transport.token_file import TokenFile
from wme_async._version import __version__
from wme_async.errors import (
    ConnectFailed,
    QuotaExceeded,
    RateLimited,
    StatusError,
    Unauthorized,
    WMEError,
)
from wme_async.settings import Hosts, Limits, Retry, Timeouts

__all__ = ["Transport"]

logger = logging.getLogger("wme_async.transport")

# The server counts a metered request before it answers it, so what is not there has cost one too. These alone are
# answered before or without being counted.
_UNMETERED = frozenset({401, 403, 429, 502, 503, 504})
# The hosts of one service, whose clocks agree.
_SERVICE: tuple[Role, ...] = ("api", "auth", "realtime")
_COUNTED: frozenset[Role] = frozenset({"api", "store"})
_USER_AGENT = f"wme_async/{__version__} (Python {platform.python_version()}; aiohttp {aiohttp.__version__})"

_T = TypeVar("_T")

QuotaCheck = Callable[[str], Awaitable[QuotaExceeded | None]]


class Transport:
    """Sends requests for one account.

    Args:
        credentials: Who we are; None for requests without a token only.
        hosts: Where the services are.
        timeouts: Seconds of silence.
        retry: When to try again.
        limits: How much at once.
        pool: Connections to share; one is made, and closed with the transport, where none is given.
        token_file: Where to share tokens with other processes.
        on_retry: Told of every retry before its wait.
        random: For jitter.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        *,
        hosts: Hosts | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        limits: Limits | None = None,
        pool: SessionPool | None = None,
        token_file: Path | None = None,
        on_retry: Callable[[Retrying], None] | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        check_instances(
            timeouts=(timeouts, Timeouts), retry=(retry, Retry), limits=(limits, Limits), pool=(pool, SessionPool)
        )
        if on_retry is not None and not callable(on_retry):
            raise TypeError(f"on_retry must be a function, not {on_retry!r}")
        self.hosts: Hosts = hosts or Hosts()
        self.timeouts: Timeouts = timeouts or (pool.timeouts if pool else Timeouts())
        self.retry: Retry = retry or Retry()
        self.limits: Limits = limits or (pool.limits if pool else Limits())
        self.random: random_module.Random = random or random_module.Random()  # noqa: S311  # jitter, not secrets
        self.pool: SessionPool = pool or SessionPool(limits=self.limits, timeouts=self.timeouts)
        self._owns_pool = pool is None
        self._credentials = credentials
        self._token_path = token_file
        self._on_retry = on_retry
        self._bodies: set[Body] = set()
        self._closed = False
        self._queued = 0
        self._waits = Waits(lambda: "this client" if self._closed else self.pool.closed)
        self.pool.join(self)
        self._dates: dict[Role, float] = {}
        self._date_texts: dict[Role, tuple[str, float]] = {}
        self._failed: dict[Role, float] = {}
        self._client_timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self._throttle = Throttle(
            self.limits.requests_per_second, self.limits.burst, monotonic=self.monotonic, sleep=self.sleep
        )
        self.token_file: TokenFile | None = None
        self.tokens: TokenManager | None = None
        self.on_metered: Callable[[str], Awaitable[None]] | None = None
        self.quota_check: QuotaCheck | None = None
        self.quota_gate: Callable[[str], QuotaExceeded | None] | None = None
        # Whose answers these are: what one account is given must not be shown to another.
        self.account: object = object()
        if credentials is not None:
            if credentials.username is not None:
                self.account = (self.hosts, credentials.username)
            if token_file is not None and credentials.can_sign_in:
                self.token_file = TokenFile(token_file, f"{self.hosts.auth}|{credentials.username}")
            self.tokens = TokenManager(
                credentials, send=self.request, sleep=self.sleep, now=self.now, file=self.token_file
            )

    def copy(self) -> "Transport":
        """Return a transport with the same account and settings, and connections of its own for another event loop.

        It signs in for itself, unless the two share a token file.

        Raises:
            RuntimeError: The pool uses an aiohttp session of the caller.
        """
        twin = Transport(
            self._credentials,
            hosts=self.hosts,
            timeouts=self.timeouts,
            retry=self.retry,
            limits=self.limits,
            pool=self.pool.copy(),
            token_file=self._token_path,
            on_retry=self._on_retry,
        )
        twin._owns_pool = True
        return twin

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Transport {state}, {len(self._bodies)} open bodies, {self.waiting} waiting>"

    @property
    def closed(self) -> bool:
        """Whether no more requests can be sent."""
        return self._closed or self.pool.closed is not None

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._waits.timeouts or self._bodies)

    @property
    def open_bodies(self) -> int:
        """How many bodies are being read."""
        return len(self._bodies)

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection or for the client-side rate limit."""
        return self._throttle.waiting + self._queued

    async def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            ClientClosed: The client, its pool or its session was closed meanwhile.
        """
        async with self._waits.wait():
            await asyncio.sleep(seconds)

    def wait(self, url: str | None = None) -> Wait:
        """Return a context manager for a wait for other requests of this client: closing ends it with `ClientClosed`.

        Args:
            url: What is waited for.
        """
        return self._waits.wait(url)

    def monotonic(self) -> float:
        """Return seconds from an origin of no meaning, never going back."""
        return time.monotonic()

    def now(self) -> float:
        """Return UTC epoch seconds by this machine's clock."""
        return _clock.now()

    def server_now(self, role: Role) -> float:
        """Return UTC epoch seconds by a host's clock, from the last `Date` header that it sent.

        Before its first answer it is the clock of another host of the service, and ours if none has answered.
        """
        offset = self._dates.get(role)
        if offset is None and role in _SERVICE:
            offset = next((self._dates[other] for other in _SERVICE if other in self._dates), None)
        return self.now() if offset is None else self.monotonic() + offset

    @property
    def knows_server_time(self) -> bool:
        """Whether a host of the service has answered, so that `server_now` does not depend on this machine's clock."""
        return any(role in self._dates for role in _SERVICE)

    def failed_recently(self, role: Role, within: float) -> bool:
        """Say whether a request to a host failed, for reasons that pass, within the last so many seconds."""
        failed = self._failed.get(role)
        return failed is not None and self.monotonic() - failed < within

    def end_work(self) -> None:
        """End all that is under way with `ClientClosed`, at once: the client, its pool or its session is closed."""
        self._waits.end()
        for body in list(self._bodies):
            body.close()
        self._bodies.clear()

    def close(self) -> None:
        """End all that is under way with `ClientClosed`, and send no more requests."""
        self._closed = True
        self.end_work()

    async def aclose(self) -> None:
        """Close what is open. A pool that was given stays open."""
        self.close()
        if self._owns_pool:
            await self.pool.aclose()

    async def request(self, request: Request, *, retry: bool = True, read_timeout: float | None = None) -> Response:
        """Send a request and return its whole answer.

        Args:
            request: What to send.
            retry: Try again after transient trouble.
            read_timeout: Seconds of silence; `Timeouts.read` where not given.

        Raises:
            StatusError: The answer's status is not one that the request accepts.
            ClientClosed: The client, its pool or its session was closed before or meanwhile.
            TransportError: It did not arrive whole.
            DataError: It is longer than `Limits.max_response`.
        """

        async def once() -> Response:
            body = await self._authorized(request, read_timeout=read_timeout, head_timeout=None)
            try:
                data = (
                    b""
                    if request.method == "HEAD"
                    else await body.read(self.limits.max_response, seconds=self.timeouts.answer)
                )
            finally:
                self._release(body)
            return Response(status=body.status, headers=body.headers, body=data, url=body.url)

        async with self._waits.wait(self._url(request)):
            return await self._repeated(once, request, retry=retry)

    @contextlib.asynccontextmanager
    async def open(
        self,
        request: Request,
        *,
        retry: bool = True,
        read_timeout: float | None = None,
        head_timeout: float | None = None,
    ) -> AsyncIterator[Body]:
        """Send a request and hand out its body while it arrives; the connection is released at the end of the block.

        Args:
            request: What to send.
            retry: Try again after transient trouble, until the head of the answer is there.
            read_timeout: Seconds of silence, before the head and in the body; `Timeouts.read` where not given.
            head_timeout: Seconds until the head has to be there, if that is to be less.

        Raises:
            StatusError: The answer's status is not one that the request accepts.
            TransportError: No head arrived.
        """

        async def once() -> Body:
            return await self._authorized(request, read_timeout=read_timeout, head_timeout=head_timeout)

        async with self._waits.wait(self._url(request)):
            body = await self._repeated(once, request, retry=retry)
        try:
            yield body
        finally:
            self._release(body)

    def _release(self, body: Body) -> None:
        self._bodies.discard(body)
        body.close()

    async def _repeated(self, once: Callable[[], Awaitable[_T]], request: Request, *, retry: bool) -> _T:
        started = self.monotonic()
        backoff: Backoff | None = None
        while True:
            if request.pool is not None and self.quota_gate is not None:
                closed = self.quota_gate(request.pool)
                if closed is not None:
                    raise closed
            try:
                return await once()
            except WMEError as error:
                now = self.monotonic()
                elapsed = now - started
                if not isinstance(error, RateLimited) and is_transient(error):
                    self._failed[request.role] = now
                if not retry or not _worth_repeating(error, request):
                    raise
                # The auth host's, on the way to a token, says nothing of the allowance; asking for that needs one too.
                limited = isinstance(error, RateLimited) and error.url == bare_url(self._url(request))
                if limited:
                    exhausted = await self._exhausted(request)
                    if exhausted is not None:
                        raise exhausted from error
                backoff = backoff or Backoff(self.retry, self.random.random)
                wait = backoff.failed(elapsed=elapsed, retry_after=getattr(error, "retry_after", None))
                if wait is None:
                    note_attempts(error, attempts=backoff.attempts, elapsed=elapsed)
                    raise
                if limited and request.role == "api":
                    # What another host asks for does not concern the API.
                    self._throttle.pause(wait)
                self._tell(
                    Retrying(
                        what=f"{request.method} {bare_url(self._url(request))}",
                        attempt=backoff.attempts,
                        wait=wait,
                        elapsed=elapsed,
                        error=error,
                    )
                )
            await self.sleep(wait)

    async def _exhausted(self, request: Request) -> QuotaExceeded | None:
        """Find out which of its two meanings a 429 has; the answer itself does not say."""
        if request.pool is None or self.quota_check is None:
            return None
        try:
            return await self.quota_check(request.pool)
        except WMEError as error:
            logger.debug("could not ask for the quota: %s", type(error).__name__)
            return None

    async def _authorized(self, request: Request, *, read_timeout: float | None, head_timeout: float | None) -> Body:
        """Send with a token where one is wanted; a refused token is replaced once."""
        if not request.token:
            return await self._once(request, None, read_timeout=read_timeout, head_timeout=head_timeout)
        if self.tokens is None:
            raise RuntimeError("this transport has no credentials, so it cannot send a token")
        token = await self.tokens.token()
        try:
            return await self._once(request, token, read_timeout=read_timeout, head_timeout=head_timeout)
        except Unauthorized:
            token = await self.tokens.replace(token)
        return await self._once(request, token, read_timeout=read_timeout, head_timeout=head_timeout)

    async def _once(
        self, request: Request, token: str | None, *, read_timeout: float | None, head_timeout: float | None
    ) -> Body:
        silence = read_timeout if read_timeout is not None else self.timeouts.read
        url = self._url(request)
        if request.role == "public":
            self.pool.refuse(url)
        session = self.pool.session(request.role)
        if request.role == "api" and not self._throttle.idle:
            await self._throttle.wait()
        counter = request_counter.get()
        if counter is not None and request.role in _COUNTED:
            counter.sent += 1
        started = self.monotonic()
        slots = None if request.streaming else self.pool.slots(request.role)
        if slots is not None:
            await self._connection(slots, url)
        try:
            response = await self._send(session, request, url, token, silence=silence, head_timeout=head_timeout)
        except BaseException:
            if slots is not None:
                slots.release()
            raise
        end = BodyEnd(response, session, url=url)
        direct = not self.pool.injected
        on_close = None if slots is None else slots.release
        body = Body(response, end, url=url, read_timeout=silence, waits=self._waits, direct=direct, on_close=on_close)
        self._note_date(request.role, body)
        if logger.isEnabledFor(logging.DEBUG):
            elapsed = 1000 * (self.monotonic() - started)
            shown = str(URL(url, encoded=True).origin()) if request.secret_path else bare_url(url)
            logger.debug("%s %s: %d in %.0f ms", request.method, shown, body.status, elapsed)
        answered = is_accepted(body.status, body.headers, request.accepts)
        # What neither answers the question nor refuses it does not come from the service, which has counted nothing.
        counted = body.status not in _UNMETERED if body.status >= 400 else answered
        if request.pool is not None and self.on_metered is not None and counted:
            await self._metered(request.pool, body)
        if not answered:
            raise await self._error(request, body)
        if (coded := coding_error(response)) is not None:
            body.close()
            raise coded
        self._bodies.add(body)
        return body

    async def _connection(self, slots: Slots, url: str) -> None:
        self._queued += 1
        try:
            await slots.acquire(self.timeouts.pool)
        except TimeoutError as error:
            raise ConnectFailed(
                f"could not connect to {bare_url(url)} in time: {error}; close what is open, or raise "
                "Limits(connections=...) or Timeouts(pool=...)",
                url=bare_url(url),
            ) from None
        finally:
            self._queued -= 1

    async def _metered(self, pool: str, body: Body) -> None:
        assert self.on_metered is not None
        try:
            await self.on_metered(pool)
        except BaseException:
            body.close()
            raise

    async def _send(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        url: str,
        token: str | None,
        *,
        silence: float,
        head_timeout: float | None,
    ) -> aiohttp.ClientResponse:
        headers = {"User-Agent": _USER_AGENT, **request.headers}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        timeout = self._client_timeouts.get(silence)
        if timeout is None:
            if len(self._client_timeouts) > 100:
                self._client_timeouts.clear()
            timeout = self._client_timeouts[silence] = aiohttp.ClientTimeout(
                total=None, connect=self._queue_timeout(), sock_connect=self.timeouts.connect, sock_read=silence
            )
        target = URL(url, encoded=True)
        proxy = await self.pool.proxy_of(target)
        try:
            asking = session.request(
                request.method,
                target,
                data=request.body,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
                proxy=proxy,
                # A session of the user's own may want errors for statuses; ours say more.
                raise_for_status=False,
            )
            async with asyncio.timeout(head_timeout or self._head_timeout(silence)) as limit:
                # The time that a request waits for a connection is no silence of the server.
                with head_within(limit, silence):
                    return await asking
        except (aiohttp.ClientError, OSError, AssertionError) as error:
            raise translate(error, url=url, timeout=head_timeout or silence) from error
        except RuntimeError as error:
            closed = self._waits.error(url)
            if closed is None:
                raise
            raise closed from error
        except ValueError as error:
            # A header or URL that HTTP cannot carry; the message may quote the header, so it is not kept.
            raise ValueError(f"{bare_url(url)} cannot be asked for: a header or the URL has illegal characters") from (
                None if token is not None else error
            )

    def _queue_timeout(self) -> float | None:
        """Return the seconds for aiohttp to wait for a connection and make it: its queue is used for streams alone.

        A session of the user's own may also be busy with requests that are not ours.
        """
        pool = self.timeouts.pool
        return pool + self.timeouts.connect if self.pool.injected and pool is not None else None

    def _head_timeout(self, silence: float) -> float | None:
        """Return the seconds after which no head will come, whatever becomes of aiohttp's own timers.

        They are more than those allow together: aiohttp may ask a second time where a kept connection was closed.
        """
        queue = self._queue_timeout()
        if self.pool.injected and queue is None:
            return None
        return 2 * ((queue or 0.0) + self.timeouts.connect + silence)

    async def _error(self, request: Request, body: Body) -> StatusError:
        try:
            data = b"" if request.method == "HEAD" else await body.beginning(self.timeouts.error)
        finally:
            body.close()
        return error_from_response(
            body.status, body.headers, data, url=body.url, now=self.server_now(request.role), product=request.product
        )

    def _url(self, request: Request) -> str:
        if request.role in {"store", "public"}:
            return request.path
        return f"{getattr(self.hosts, request.role)}{request.path}"

    def _note_date(self, role: Role, body: Body) -> None:
        value = body.headers.get("Date")
        if value is None:
            return
        now = self.monotonic()
        text, since = self._date_texts.get(role, ("", 0.0))
        if value == text and now - since < 1.0:
            # Of the many answers of one second the first told the time best.
            return
        self._date_texts[role] = (value, now)
        date = http_date(value)
        if date is None:
            logger.debug("%s sent an unreadable Date", role)
        else:
            self._dates[role] = date.timestamp() - now

    def _tell(self, event: Retrying) -> None:
        logger.info("%s failed (%s); attempt %d in %.1f s", event.what, event.error, event.attempt + 1, event.wait)
        if self._on_retry is not None:
            self._on_retry(event)


def _worth_repeating(error: WMEError, request: Request) -> bool:
    if request.idempotent:
        return is_transient(error)
    return isinstance(error, ConnectFailed) and is_transient(error)
