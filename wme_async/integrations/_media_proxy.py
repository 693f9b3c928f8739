"""The proxy through which yt-dlp connects for `Media`."""

import asyncio
import base64
import contextlib
import hmac
import logging
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

from wme_async.errors import DataError, WMEError

__all__ = ["GuardedProxy"]

logger: logging.Logger = logging.getLogger("wme_async.media")

_HOP_BY_HOP: Final = frozenset({"proxy-connection", "proxy-authorization", "connection", "keep-alive"})
_MAX_HEAD: Final = 64 * 1024
_CHUNK: Final = 64 * 1024


class GuardedProxy:
    """An HTTP proxy on loopback, for one client that knows its password, that connects only where a guard allows it.

    Args:
        allow: Hosts that may be private.

    Attributes:
        url: Its URL, with user and password.
        refusals: The errors of connections that the guard refused.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self.url: str = ""
        self.refusals: list[WMEError] = []
        self._allow = tuple(allow)
        self._password = secrets.token_hex(16)
        self._writers: set[asyncio.StreamWriter] = set()
        self._connecting: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["GuardedProxy"]:
        """Listen until the end of the block."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_HEAD)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://wme:{self._password}@127.0.0.1:{port}"
        try:
            yield self
        finally:
            self.cut()

    def cut(self) -> None:
        """Abort every connection, and accept no more."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for connecting in self._connecting:
            connecting.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._open(writer):
            try:
                request = _parse_request(await reader.readuntil(b"\r\n\r\n"))
                status = await self._forward(request, reader, writer)
                if status is not None:
                    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                    await writer.drain()
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                logger.debug("a connection of the media proxy ended: %s", type(error).__name__)

    @contextlib.asynccontextmanager
    async def _open(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Let `cut` abort a connection during the block, and close it at the end."""
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _forward(
        self, request: "_ProxyRequest", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str | None:
        """Connect to the destination and pass bytes on in both directions; return the status line of an error."""
        credentials = base64.b64encode(f"wme:{self._password}".encode())
        if not hmac.compare_digest(request.authorization.encode(), b"Basic " + credentials):
            return "407 Proxy Authentication Required"
        try:
            destination = request.destination()
            connection = await self._connect(destination.hostname or "", destination.port or 80)
        except WMEError as error:
            self.refusals.append(error)
            return "502 refused"
        except (ValueError, OSError):
            return "502 not reached"
        if connection is None:
            return None
        remote_reader, remote_writer = connection
        async with self._open(remote_writer):
            if request.method == "CONNECT":
                writer.write(b"HTTP/1.1 200 connected\r\n\r\n")
            else:
                remote_writer.write(request.head(destination))
            async with asyncio.TaskGroup() as group:
                group.create_task(_pipe(reader, remote_writer))
                group.create_task(_pipe(remote_reader, writer))
        return None

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to a host; None if the proxy is cut meanwhile."""
        connecting = asyncio.create_task(self._connect_guarded(host, port))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        await asyncio.wait([connecting])
        return None if connecting.cancelled() else connecting.result()

    async def _connect_guarded(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Resolve a name once, check its addresses, and connect to one of those."""
        from wme_async.jobs.url_policy import check_host, guard  # noqa: PLC0415  # `jobs` is in the same row

        reason = check_host(host, allow=self._allow)
        if reason:
            raise DataError(reason)
        check = guard(self._allow)
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(info[4][0]) for info in infos]
        for address in addresses:
            check(host, address)
        failure = OSError("the name has no address")
        for address in addresses:
            try:
                return await asyncio.open_connection(address, port)
            except OSError as error:
                failure = error
        raise failure


class _ProxyRequest(NamedTuple):
    method: str
    target: str
    headers: list[tuple[str, str]]

    @property
    def authorization(self) -> str:
        return next((value for name, value in self.headers if name.lower() == "proxy-authorization"), "")

    def destination(self) -> SplitResult:
        """Return the URL of the request.

        Raises:
            ValueError: It has none that a proxy can connect to.
        """
        url = urlsplit(f"//{self.target}" if self.method == "CONNECT" else self.target)
        if not url.hostname or (self.method != "CONNECT" and url.scheme != "http"):
            raise ValueError("not a request for a proxy")
        return url

    def head(self, url: SplitResult) -> bytes:
        """Return the head of the request for its destination: one request a connection, since the next may differ."""
        path = urlunsplit(("", "", url.path or "/", url.query, ""))
        headers = [f"{name}: {value}" for name, value in self.headers if name.lower() not in _HOP_BY_HOP]
        return "\r\n".join([f"{self.method} {path} HTTP/1.1", *headers, "Connection: close", "", ""]).encode("latin-1")


def _parse_request(head: bytes) -> _ProxyRequest:
    line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = (*line.split(" "), "", "")[:3]
    headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return _ProxyRequest(method, target, headers)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        # With an orderly end a body without a length would look complete.
        _reset(writer)
        return
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
