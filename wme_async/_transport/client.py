"""The HTTP client of an account: whole responses, and open bodies that are always released."""

import asyncio
import contextlib
import logging
import platform
import random as random_module
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from wme_async import _clock
from wme_async._arguments import check_functions, check_instances
from wme_async._telemetry import Telemetry, log_fields
from wme_async._transport.auth import Credentials, TokenManager
from wme_async._transport.body import Body
from wme_async._transport.body_end import BodyEnd, coding_error
from wme_async._transport.closing import Wait, Waits
from wme_async._transport.error_responses import bare_url, error_from_response, is_accepted
from wme_async._transport.requests import Request, Response, Role, request_counter, translate
from wme_async._transport.retry import Backoff, Retrying, http_date, is_transient, note_attempts
from wme_async._transport.sessions import HeadTimeout, SessionPool
from wme_async._transport.slots import Slots
from wme_async._transport.throttle import Throttle
from wme_async._transport.token_file import TokenFile
from wme_async._version import __version__
from wme_async.errors import (
    ConnectFailed,
    QuotaExceeded,
    RateLimited,
    Unauthorized,
    WMEError,
)
from wme_async.settings import Hosts, Limits, Retry, Timeouts

logger: logging.Logger = logging.getLogger("wme_async.transport")

# The server counts a metered request before it looks for the object, so a 404 costs one too. Responses with these
# statuses alone are not counted.
_UNMETERED = frozenset({401, 403, 429, 502, 503, 504})
# The hosts of one service, whose clocks agree.
_SERVICE: tuple[Role, ...] = ("api", "auth", "realtime")
_USER_AGENT = f"wme_async/{__version__} (Python {platform.python_version()}; aiohttp {aiohttp.__version__})"

_T = TypeVar("_T")

QuotaCheck = Callable[[str], Awaitable[QuotaExceeded | None]]


class Transport:
    """Sends requests for one account.

    Args:
        credentials: The account; None for requests without a token.
        hosts: The addresses of the services.
        timeouts: Time limits.
        retry: The retry policy.
        limits: Limits on concurrency and rates.
        pool: Connections to share. By default the transport has a pool of its own and closes it.
        token_file: Shares tokens with other processes.
        on_retry: Called before the wait of each retry.
        telemetry: Observes requests, operations and streams.
        random: Source of jitter.

    Raises:
        TypeError: An argument of another type.
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
        telemetry: Telemetry | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        check_instances(
            timeouts=(timeouts, Timeouts), retry=(retry, Retry), limits=(limits, Limits), pool=(pool, SessionPool)
        )
        check_functions(on_retry=on_retry)
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
        self.telemetry: Telemetry | None = telemetry
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
        # The key of shared caches: one account must not see the responses of another.
        self.account: object = object()
        if credentials is not None:
            if credentials.username is not None:
                self.account = (self.hosts, credentials.username)
            if token_file is not None and credentials.username is not None:
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
            telemetry=self.telemetry,
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
        """Whether a request or a body is open."""
        return bool(self._waits.timeouts or self._bodies)

    @property
    def open_bodies(self) -> int:
        """The number of open bodies."""
        return len(self._bodies)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a connection or for the client-side rate limit."""
        return self._throttle.waiting + self._queued

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds.

        Raises:
            ClientClosed: The client, its pool or its session is closed before the end.
        """
        async with self._waits.wait():
            await asyncio.sleep(seconds)

    def wait(self, url: str | None = None) -> Wait:
        """Return a context manager for a wait for other requests of this client; a close ends it with `ClientClosed`.

        Args:
            url: The URL of those requests.
        """
        return self._waits.wait(url)

    def monotonic(self) -> float:
        """Return seconds by a clock that never goes back, from any origin."""
        return time.monotonic()

    def now(self) -> float:
        """Return UTC epoch seconds by this machine's clock."""
        return _clock.now()

    def server_now(self, role: Role) -> float:
        """Return UTC epoch seconds by a host's clock, from the last `Date` header that it sent.

        Before its first response it is the clock of another host of the service, else that of this machine.
        """
        hosts = (role, *_SERVICE) if role in _SERVICE else (role,)
        offset = next((self._dates[host] for host in hosts if host in self._dates), None)
        return self.now() if offset is None else self.monotonic() + offset

    @property
    def knows_server_time(self) -> bool:
        """Whether a host of the service has sent its time; `server_now` is that of this machine otherwise."""
        return any(role in self._dates for role in _SERVICE)

    def failed_recently(self, role: Role, within: float) -> bool:
        """Return whether a request to a host had a temporary failure within the last seconds."""
        failed = self._failed.get(role)
        return failed is not None and self.monotonic() - failed < within

    def end_work(self) -> None:
        """End all requests and bodies with `ClientClosed`, at once: the client, its pool or its session is closed."""
        self._waits.end()
        for body in list(self._bodies):
            body.close()
        self._bodies.clear()

    def close(self) -> None:
        """End all requests and bodies with `ClientClosed`, and send no more requests."""
        self._closed = True
        self.end_work()

    async def aclose(self) -> None:
        """Close the transport, and its pool unless it is shared."""
        self.close()
        if self._owns_pool:
            await self.pool.aclose()

    async def request(self, request: Request, *, retry: bool = True, read_timeout: float | None = None) -> Response:
        """Send a request and return its whole response.

        Args:
            request: The request.
            retry: Retry after temporary failures.
            read_timeout: Seconds of silence; `Timeouts.read` by default.

        Raises:
            StatusError: The request does not accept the status of the response.
            ClientClosed: The client, its pool or its session is closed.
            TransportError: The response did not arrive whole.
            DataError: It is longer than `Limits.max_response`.
        """

        async def attempt(resends: int) -> Response:
            body = await self._authorized(request, resends, read_timeout=read_timeout, head_timeout=None)
            try:
                data = (
                    await body.read(self.limits.max_response, seconds=self.timeouts.answer)
                    if request.method != "HEAD"
                    else b""
                )
            finally:
                self._release(body)
            return Response(status=body.status, headers=body.headers, body=data, url=body.url)

        async with self._waits.wait(self._url(request)):
            return await self._with_retries(attempt, request, retry=retry)

    @contextlib.asynccontextmanager
    async def open(
        self,
        request: Request,
        *,
        retry: bool = True,
        read_timeout: float | None = None,
        head_timeout: float | None = None,
    ) -> AsyncIterator[Body]:
        """Send a request and yield the body of its response; the connection is released at the end of the block.

        Args:
            request: The request.
            retry: Retry after temporary failures, until the head of the response has arrived.
            read_timeout: Seconds of silence, before the head and in the body; `Timeouts.read` by default.
            head_timeout: Seconds until the head has arrived, if that is less.

        Raises:
            StatusError: The request does not accept the status of the response.
            TransportError: No head arrived.
        """
        async with self._waits.wait(self._url(request)):
            body = await self._with_retries(
                partial(self._authorized, request, read_timeout=read_timeout, head_timeout=head_timeout),
                request,
                retry=retry,
            )
        try:
            yield body
        finally:
            self._release(body)

    def _release(self, body: Body) -> None:
        self._bodies.discard(body)
        body.close()

    async def _with_retries(self, attempt: Callable[[int], Awaitable[_T]], request: Request, *, retry: bool) -> _T:
        started = self.monotonic()
        backoff = Backoff(self.retry, self.random.random)
        while True:
            if request.pool is not None and self.quota_gate is not None:
                exceeded = self.quota_gate(request.pool)
                if exceeded is not None:
                    raise exceeded
            try:
                return await attempt(backoff.attempts)
            except WMEError as error:
                now = self.monotonic()
                elapsed = now - started
                if not isinstance(error, RateLimited) and is_transient(error):
                    self._failed[request.role] = now
                if not retry or not _may_retry(error, request):
                    raise
                # A 429 of the auth host does not concern the allowance, and asking for that needs a token too.
                limited = isinstance(error, RateLimited) and error.url == bare_url(self._url(request))
                if limited and (exceeded := await self._exceeded_quota(request)) is not None:
                    raise exceeded from error
                delay = backoff.failed(error, elapsed=elapsed)
                if delay is None:
                    note_attempts(error, attempts=backoff.attempts, elapsed=elapsed)
                    raise
                if limited and request.role == "api":
                    # The other hosts have limits of their own.
                    self._throttle.pause(delay)
                self._report(
                    Retrying(
                        what=f"{request.method} {bare_url(self._url(request))}", attempt=backoff.attempts, wait=delay,
                        elapsed=elapsed, error=error,
                    )
                )  # fmt: skip
            await self.sleep(delay)

    async def _exceeded_quota(self, request: Request) -> QuotaExceeded | None:
        """Return the error of a 429 that means a used up allowance, which the response itself does not say."""
        if request.pool is not None and self.quota_check is not None:
            try:
                return await self.quota_check(request.pool)
            except WMEError as error:
                logger.debug("could not request the quota: %s", type(error).__name__)
        return None

    async def _authorized(
        self, request: Request, resends: int, *, read_timeout: float | None, head_timeout: float | None
    ) -> Body:
        """Send a request, with a token if it has one; replace a rejected token once."""
        send = partial(self._once, request, read_timeout=read_timeout, head_timeout=head_timeout)
        if self.telemetry is not None:
            send = partial(self._observed, self.telemetry, send, request, resends)
        if not request.token:
            return await send(None)
        if self.tokens is None:
            raise RuntimeError("this transport has no credentials, so it cannot send a token")
        token = await self.tokens.token()
        try:
            return await send(token)
        except Unauthorized:
            token = await self.tokens.replace(token)
        return await send(token)

    async def _observed(
        self, telemetry: Telemetry, send: Callable[[str | None], Awaitable[Body]], request: Request, resends: int,
        token: str | None,
    ) -> Body:  # fmt: skip
        with telemetry.attempt(request.method, self._shown_url(request), resends) as report:
            body = await send(token)
            report(status=body.status)
            return body

    async def _once(
        self, request: Request, token: str | None, *, read_timeout: float | None, head_timeout: float | None
    ) -> Body:
        silence = read_timeout if read_timeout is not None else self.timeouts.read
        url = self._url(request)
        if request.role == "public":
            self.pool.check_address(url)
        session = self.pool.session(request.role)
        if request.role == "api" and not self._throttle.idle:
            await self._throttle.wait()
        counter = request_counter.get()
        if counter is not None and request.role in {"api", "store"}:
            counter.sent += 1
        started = self.monotonic()
        slots = None if request.streaming else self.pool.slots(request.role)
        if slots is not None:
            await self._acquire(slots, url)
        release, body = None if slots is None else slots.release, None
        try:
            response = await self._send(session, request, url, token, silence=silence, head_timeout=head_timeout)
            body = Body(
                response, BodyEnd(response, session, url=url), url=url, read_timeout=silence, waits=self._waits,
                direct=not self.pool.injected, on_close=release,
            )  # fmt: skip
            self._note_date(request.role, body)
            if logger.isEnabledFor(logging.DEBUG):
                elapsed = 1000 * (self.monotonic() - started)
                address = self._shown_url(request)
                fields = log_fields(method=request.method, url=address, status=body.status, seconds=elapsed / 1000)
                logger.debug("%s %s: %d in %.0f ms", request.method, address, body.status, elapsed, extra=fields)
            await self._check(request, response, body)
        except BaseException:
            # A body releases its connection itself.
            if body is not None:
                body.close()
            elif release is not None:
                release()
            raise
        self._bodies.add(body)
        return body

    async def _acquire(self, slots: Slots, url: str) -> None:
        self._queued += 1
        try:
            await slots.acquire(self.timeouts.pool)
        except TimeoutError as error:
            raise ConnectFailed(
                f"could not connect to {bare_url(url)} in time: {error}; close open bodies, or raise "
                "Limits(connections=...) or Timeouts(pool=...)",
                url=bare_url(url),
            ) from None
        finally:
            self._queued -= 1

    async def _check(self, request: Request, response: aiohttp.ClientResponse, body: Body) -> None:
        """Count a metered request, and raise the error of a response that the request does not accept."""
        accepted = is_accepted(body.status, body.headers, request.accepts)
        # A status below 400 that the request does not accept is not from the service, which has counted nothing.
        metered = body.status not in _UNMETERED if body.status >= 400 else accepted
        if request.pool is not None and self.on_metered is not None and metered:
            await self.on_metered(request.pool)
        if not accepted:
            data = b"" if request.method == "HEAD" else await body.beginning(self.timeouts.error)
            raise error_from_response(
                body.status,
                body.headers,
                data,
                url=body.url,
                now=self.server_now(request.role),
                product=request.product,
                role=request.role,
            )
        if (error := coding_error(response)) is not None:
            raise error

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
        if silence not in self._client_timeouts:
            if len(self._client_timeouts) > 100:
                self._client_timeouts.clear()
            self._client_timeouts[silence] = aiohttp.ClientTimeout(
                total=None, connect=self._queue_timeout(), sock_connect=self.timeouts.connect,
                # `HeadTimeout` and `Body` have timers of their own, which do not start again with each byte.
                sock_read=silence if self.pool.injected else None,
            )  # fmt: skip
        target = URL(url, encoded=True)
        proxy = await self.pool.proxy_of(target)
        try:
            pending = session.request(
                request.method,
                target,
                data=request.body,
                headers=headers,
                allow_redirects=False,
                timeout=self._client_timeouts[silence],
                proxy=proxy,
                # Off in a user's own session too: our errors say more.
                raise_for_status=False,
            )
            async with HeadTimeout(silence, most=head_timeout or self._head_timeout(silence)):
                return await pending
        except (aiohttp.ClientError, OSError, AssertionError) as error:
            raise translate(error, url=url, timeout=head_timeout or silence) from error
        except RuntimeError as error:
            closed = self._waits.error(url)
            if closed is None:
                raise
            raise closed from error
        except ValueError as error:
            # The message of the cause may quote the header with the token.
            raise ValueError(f"{bare_url(url)} cannot be requested: a header or the URL has illegal characters") from (
                None if token is not None else error
            )

    def _queue_timeout(self) -> float | None:
        """Return the seconds for aiohttp to wait for a connection and make it.

        A user's own session may be busy with other requests; in ours the queue is `Slots`.
        """
        pool = self.timeouts.pool
        return pool + self.timeouts.connect if self.pool.injected and pool is not None else None

    def _head_timeout(self, silence: float) -> float | None:
        """Return the time limit for the head in case that aiohttp's own timers fail.

        It is twice their sum, since aiohttp may send a request a second time after a kept connection was closed.
        """
        queue = self._queue_timeout()
        if self.pool.injected and queue is None:
            return None
        return 2 * ((queue or 0.0) + self.timeouts.connect + silence)

    def _url(self, request: Request) -> str:
        host = "" if request.role in {"store", "public"} else getattr(self.hosts, request.role)
        return f"{host}{request.path}"

    def _shown_url(self, request: Request) -> str:
        """Return the URL of a request as logs and telemetry may have it."""
        url = self._url(request)
        return str(URL(url, encoded=True).origin()) if request.secret_path else bare_url(url)

    def _note_date(self, role: Role, body: Body) -> None:
        value = body.headers.get("Date")
        if value is None:
            return
        now = self.monotonic()
        text, since = self._date_texts.get(role, ("", 0.0))
        if value == text and now - since < 1.0:
            # The first response of a second is the most precise.
            return
        self._date_texts[role] = (value, now)
        date = http_date(value)
        if date is None:
            logger.debug("%s sent a malformed Date", role)
        else:
            self._dates[role] = date.timestamp() - now

    def _report(self, event: Retrying) -> None:
        logger.info(
            "%s failed (%s); attempt %d in %.1f s",
            event.what,
            event.error,
            event.attempt + 1,
            event.wait,
            extra=log_fields(event.error, request=event.what, attempt=event.attempt, wait=event.wait),
        )
        if self._on_retry is not None:
            self._on_retry(event)


def _may_retry(error: WMEError, request: Request) -> bool:
    return is_transient(error) and (request.idempotent or isinstance(error, ConnectFailed))
