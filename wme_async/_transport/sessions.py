"""The aiohttp sessions: one for each role, opened when first needed, shared by all clients of a process."""

import asyncio
import logging
import math
import os
import socket
import ssl as ssl_module
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.helpers import basicauth_from_netrc, netrc_from_env
from yarl import URL

from wme_async._arguments import check_flags, check_functions, check_instances, check_type
from wme_async._tasks import in_thread
from wme_async._transport.body_end import Response
from wme_async._transport.error_responses import bare_url
from wme_async._transport.proxies import EnvironmentProxies, check_proxy, ip_address_of
from wme_async._transport.requests import AddressBlocked, Role
from wme_async._transport.slots import Slots
from wme_async.errors import ClientClosed, ConnectFailed
from wme_async.settings import Limits, Timeouts

logger: logging.Logger = logging.getLogger("wme_async.transport")

Guard = Callable[[str, str], str | None]
"""Returns the reason why an IP address of a host is blocked, or None if it is allowed."""

# Signed URLs travel in Location headers and request lines; aiohttp's own limit is 8 KiB.
_MAX_HEADER = 64 * 1024

# Bytes that aiohttp buffers ahead of the reader; 64 KiB measured best for many small events, 256 KiB for bulk.
_READ_BUFFER: dict[str, int] = {"realtime": 1 << 16, "store": 1 << 18, "public": 1 << 18}

# Seconds between two checks of a user's own session, which has no callback for its close.
_CHECK_INTERVAL = 0.1


class PoolUser(Protocol):
    """Sends requests through a pool."""

    @property
    def busy(self) -> bool:
        """Whether a request or a body is open."""

    def end_work(self) -> None:
        """End all requests and bodies: the pool or its session is closed."""


class SessionPool:
    """The connections of a process. Several clients may share it; it closes only the sessions that it opened.

    Example:
        >>> pool = SessionPool(limits=Limits(connections=20))  # doctest: +SKIP
        >>> async with pool, Client("a", "…", pool=pool) as one, Client("b", "…", pool=pool) as two: ...

    Args:
        limits: Connections of each role.
        timeouts: Only `connect` and `pool` matter here.
        ssl: A TLS context, such as one that knows a company's authority; None, and True, verify by the system's. False
            verifies nothing: the network in between can read and change user name, password, tokens and data. It is for
            tests, and a warning is logged.
        proxy: URL of a proxy for all requests, of scheme `http` or `https`; a user name and a password may be in it.
        trust_env: Without a `proxy`, take one from `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY`, except for the
            hosts of `NO_PROXY`, and their passwords from `~/.netrc`, whose entries for other hosts are ignored. The
            variables are read once. An unusable value, such as `socks5://`, is a `ValueError` of the first request that
            needs it, before anything is sent. The page on embedding has the rules.
        guard: For URLs of strangers: returns the reason why an IP address is blocked, or None. It checks the very
            addresses of the connections, so a name cannot resolve to another one in between. A proxy resolves names
            itself, so URLs of strangers are errors with one.
        session: An aiohttp session to use for all roles. It is never closed here, and its own settings win.

    Raises:
        TypeError: A setting of another type.
        ValueError: The proxy is not a URL of scheme `http` or `https`.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        guard: Guard | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        check_instances(
            limits=(limits, Limits), timeouts=(timeouts, Timeouts), session=(session, aiohttp.ClientSession)
        )
        check_flags(trust_env=trust_env)
        check_functions(guard=guard)
        check_ssl(ssl)
        if proxy is not None:
            check_proxy(proxy)
        if ssl is False:
            logger.warning("ssl=False: certificates are not verified, so credentials and data may go to anybody")
        self.limits: Limits = limits or Limits()
        self.timeouts: Timeouts = timeouts or Timeouts()
        self._ssl = ssl
        self._proxy = proxy
        self._trust_env = trust_env
        self._proxies = EnvironmentProxies(os.environ) if trust_env and proxy is None else None
        self._proxy_of: dict[URL, URL | None] = {}
        self._guard = guard
        self._injected = session
        self._sessions: dict[Role, aiohttp.ClientSession] = {}
        self._users: weakref.WeakSet[PoolUser] = weakref.WeakSet()
        self._slots: dict[Role | None, Slots] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def copy(self) -> "SessionPool":
        """Return a pool with the same settings and no connections yet, such as for another event loop.

        Raises:
            RuntimeError: The pool uses an aiohttp session of the caller, which belongs to one event loop.
        """
        if self._injected is not None:
            raise RuntimeError("a pool around your own aiohttp session cannot be used in another event loop")
        return SessionPool(
            limits=self.limits,
            timeouts=self.timeouts,
            ssl=self._ssl,
            proxy=self._proxy,
            trust_env=self._trust_env,
            guard=self._guard,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._loop else "unopened"
        connections = ", ".join(f"{role}={_count(session)}" for role, session in sorted(self._sessions.items()))
        waiting = f", {self.waiting} requests waiting" if self.waiting else ""
        return f"<SessionPool {state}{' ' if connections else ''}{connections}{waiting}>"

    async def __aenter__(self) -> Self:
        self._check_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def injected(self) -> bool:
        """Whether the session is the user's own."""
        return self._injected is not None

    @property
    def closed(self) -> str | None:
        """The name of the closed object, this pool or the user's own session; None while both are open."""
        if self._closed:
            return "this SessionPool"
        if self._injected is not None and self._injected.closed:
            return "the aiohttp session that was given to SessionPool"
        return None

    def join(self, user: PoolUser) -> None:
        """Register a sender of requests, for as long as it lives."""
        self._users.add(user)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a connection."""
        return sum(slots.waiting for slots in self._slots.values())

    def slots(self, role: Role) -> Slots:
        """Return the limit on connections of a role; a user's own session has one for all roles."""
        key = None if self._injected is not None else role
        if key not in self._slots:
            self._slots[key] = (
                Slots(f"{role} host", self.limits.connections)
                if self._injected is None
                else Slots("hosts of your aiohttp session", _bound(self._injected))
            )
        return self._slots[key]

    def reserve(self, count: int) -> None:
        """Reserve connections for streams, which never release them; negative numbers return them.

        Connections of streams come on top of the limit of a pool. A user's own session has a limit of its own, and
        streams must leave some of it for tokens, look-ups and downloads.

        Raises:
            ValueError: The session's connector does not allow so many and one more.
        """
        if self._injected is None:
            return
        slots = self.slots("realtime")
        if count > slots.free:
            raise ValueError(
                f"the connector of your aiohttp session allows {_bound(self._injected)} connections, streams have "
                f"{slots.reserved} of them and other requests need one, so {count} more for a stream are too many: "
                "ask for fewer connections, or give the session TCPConnector(limit=0)"
            )
        slots.reserve(count)

    @property
    def proxy(self) -> str | None:
        """The proxy that all requests go through, if any."""
        return self._proxy

    def session(self, role: Role) -> aiohttp.ClientSession:
        """Return the session of a role, opened on first use.

        Raises:
            ClientClosed: The pool, or the user's own session, is closed.
            RuntimeError: The pool belongs to another event loop, or no asyncio loop is running.
        """
        self._check_loop()
        if self._injected is not None:
            if self._injected.closed:
                raise ClientClosed(f"{self.closed} is closed; give it an open one")
            if self._watch is None:
                self._watch_session()
            return self._injected
        if role not in self._sessions:
            self._sessions[role] = self._open(role)
        return self._sessions[role]

    async def proxy_of(self, url: URL) -> URL | None:
        """Return the proxy of the environment for a URL, with its password; None for a direct connection.

        Raises:
            ValueError: The value of the variable is not a usable proxy.
        """
        if self._proxies is None or self._injected is not None:
            return None
        origin = url.origin()
        if origin not in self._proxy_of:
            if len(self._proxy_of) > 1000:
                self._proxy_of.clear()
            proxy = self._proxies.proxy_of(url)
            # The password is read from a file.
            self._proxy_of[origin] = proxy if proxy is None else await in_thread(_with_password, proxy)
        return self._proxy_of[origin]

    def check_address(self, url: str) -> None:
        """Apply the guard to a URL with an IP address, which the resolver does not see.

        Raises:
            ConnectFailed: The guard blocks the address, or a proxy would bypass the guard.
        """
        if self._guard is None:
            return
        host = urlsplit(url).hostname or ""
        if self._proxy is not None or self._trust_env:
            problem = "a proxy resolves names itself, so URLs of strangers cannot be fetched safely through it"
        elif _is_address(host) and (reason := self._guard(host, host)):
            problem = f"{host} is refused: {reason}"
        else:
            return
        error = ConnectFailed(problem, url=bare_url(url))
        error.permanent = True
        raise error

    async def aclose(self) -> None:
        """Close all sessions that the pool opened. A second call has no effect.

        All requests and bodies of the pool end with `ClientClosed` at once.

        Raises:
            RuntimeError: The pool was used in another event loop.
        """
        if self._sessions or self._busy:
            self._check_loop(closing=True)
        self._closed = True
        self._end_work()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    @property
    def _busy(self) -> bool:
        return any(user.busy for user in self._users)

    def _end_work(self) -> None:
        for user in list(self._users):
            user.end_work()

    def _watch_session(self) -> None:
        """Check regularly, while there is work, whether the user's own session is closed."""
        self._watch = None
        if self.closed:
            self._end_work()
        elif self._loop is not None and self._busy:
            self._watch = self._loop.call_later(_CHECK_INTERVAL, self._watch_session)

    def _check_loop(self, *, closing: bool = False) -> None:
        if self._closed and not closing:
            raise ClientClosed("this SessionPool is closed; make a new one")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "wme_async needs a running asyncio event loop: call it from a coroutine under asyncio.run(); "
                "trio is not supported"
            ) from None
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this SessionPool belongs to another event loop; make one in each loop")

    def _open(self, role: Role) -> aiohttp.ClientSession:
        # With aiodns installed aiohttp would resolve names by c-ares, which ignores the system's configuration on some
        # platforms.
        resolver: AbstractResolver = aiohttp.ThreadedResolver()
        if role == "public" and self._guard is not None:
            resolver = _GuardedResolver(resolver, self._guard)
        session = aiohttp.ClientSession(
            # `Slots` limits the connections.
            connector=Connector(limit=0, ssl=True if self._ssl is None else self._ssl, resolver=resolver),
            response_class=Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            # The signature of a URL covers its exact bytes.
            requote_redirect_url=False,
            # Ranges count the bytes on the wire.
            auto_decompress=role not in {"store", "public"},
            # Otherwise aiohttp sends passwords of `~/.netrc` to any host, the object store too.
            trust_env=False,
            proxy=self._proxy,
            read_bufsize=_READ_BUFFER.get(role, 1 << 16),
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
        )
        if role in {"auth", "api", "realtime"} and hasattr(session, "_retry_connection"):
            # Otherwise aiohttp repeats a request on a broken connection, which may be metered twice.
            session._retry_connection = False  # noqa: SLF001  # it has no public switch
        return session


class HeadTimeout:
    """Limits the time until the head of a response has arrived.

    aiohttp's own timer starts again with each byte, so a head that arrives byte by byte would never time out.

    Args:
        seconds: From when the request of this block has its connection; not known for a user's own session.
        most: Seconds from the beginning of the block, if there is a limit.

    Raises:
        TimeoutError: The time is over.
    """

    __slots__ = ("_end", "_loop", "_seconds", "_timeout", "_timer", "_token")

    def __init__(self, seconds: float, *, most: float | None) -> None:
        self._seconds = seconds
        self._end = math.inf if most is None else most
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._token = _head.set(self)
        self._loop = asyncio.get_running_loop()
        self._end += self._loop.time()
        self._check()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        _head.reset(self._token)
        await self._timeout.__aexit__(kind, error, trace)

    def connected(self) -> None:
        """Begin the time for the head; a second connection of the same request does not prolong it."""
        self._end = min(self._end, self._loop.time() + self._seconds)

    def _check(self) -> None:
        # A timer for each change of the end would cost more than one that may come too early.
        now = self._loop.time()
        if now >= self._end:
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(min(self._end, now + self._seconds), self._check)


_head: ContextVar[HeadTimeout | None] = ContextVar("_head", default=None)


class Connector(aiohttp.TCPConnector):
    """Limits the time for all steps of a connection together.

    aiohttp limits each TCP and TLS handshake by itself, and neither the resolver nor the response of a proxy to
    CONNECT, which may then hang for ever.

    The method is private to aiohttp. If a release calls it in another way, or not at all, aiohttp's own limits remain.
    """

    async def connect(self, *args: Any, **options: Any) -> Any:
        connection = await super().connect(*args, **options)
        if (head := _head.get()) is not None:
            head.connected()
        return connection

    async def _create_connection(self, *args: Any, **options: Any) -> Any:
        arguments = (*args, *options.values())
        seconds = next((value.sock_connect for value in arguments if isinstance(value, aiohttp.ClientTimeout)), None)
        try:
            async with asyncio.timeout(seconds) as limit:
                return await super()._create_connection(*args, **options)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise aiohttp.ConnectionTimeoutError(f"no connection within {seconds:g} s") from error


class _GuardedResolver(AbstractResolver):
    """Resolves names, and raises if the guard blocks an address."""

    def __init__(self, inner: AbstractResolver, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results = await self._inner.resolve(host, port, family)
        for result in results:
            if reason := self._guard(host, result["host"]):
                # One blocked address blocks the name: DNS rebinding mixes public and private addresses.
                raise AddressBlocked(None, f"{host} is refused: it resolves to {result['host']}, {reason}")
        return results

    async def close(self) -> None:
        await self._inner.close()


def check_ssl(ssl: object) -> None:
    """Raise if a value is not a setting for the verification of certificates.

    Raises:
        TypeError: It is neither a TLS context nor True, False or None.
    """
    check_type(
        "ssl",
        ssl,
        bool | ssl_module.SSLContext | None,
        "a TLS context, such as ssl.create_default_context(cafile=...), True, False or None",
    )


def _with_password(proxy: URL) -> URL:
    """Return a proxy with the user name and password of `~/.netrc`, unless it has its own."""
    if proxy.user is not None:
        return proxy
    try:
        password = basicauth_from_netrc(netrc_from_env(), proxy.host or "")
    except LookupError:
        return proxy
    return proxy.with_user(password.login).with_password(password.password)


def _bound(session: aiohttp.ClientSession) -> int | None:
    """Return the number of connections that a user's own session allows, per host or in all; None for any number."""
    connector = session.connector
    limits = [] if connector is None else [n for n in (connector.limit, connector.limit_per_host) if n]
    return min(limits, default=None)


def _is_address(host: str) -> bool:
    # aiohttp hands `2130706433` and `127.1` to the C library without asking its resolver, and they mean loopback there.
    return ":" in host or host.replace(".", "").isdigit() or ip_address_of(host) is not None


def _count(session: aiohttp.ClientSession) -> int:
    return len(getattr(session.connector, "_acquired", ()))
