"""A server on loopback whose answers a test writes byte by byte, for what no proper server does."""

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

__all__ = ["Handler", "RawRequest", "RawServer", "data_of", "head", "partial", "reset", "server_tls"]


class RawRequest:
    """One request.

    Attributes:
        method: Such as `GET`.
        path: As it was sent.
        headers: By name in small letters.
        connection: The number of its connection, from 1.
    """

    def __init__(self, text: bytes, connection: int) -> None:
        line, *lines = text.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.path, _ = line.split(" ")
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.connection = connection

    def range(self, size: int) -> tuple[int, int] | None:
        """Return the first byte that is asked for and the one after the last, None where no range is."""
        value = self.headers.get("range")
        if value is None:
            return None
        first, _, last = value.removeprefix("bytes=").partition("-")
        return int(first), min(size, int(last) + 1 if last else size)


Handler = Callable[[RawRequest, asyncio.StreamWriter], Awaitable[bool | None]]
"""Answers a request; False closes the connection afterwards."""


class RawServer:
    """Serves until its block ends; nothing of it is left then."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[RawRequest] = []
        self.open = 0
        self.most_open = 0
        self._handler = handler
        self._tls = tls
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer, self._connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    request = RawRequest(await reader.readuntil(b"\r\n\r\n"), connection)
                    await reader.readexactly(int(request.headers.get("content-length", 0)))
                    self.requests.append(request)
                    if await self._handler(request, writer) is False:
                        break
                writer.close()
                await writer.wait_closed()
        finally:
            self.open -= 1
            writer.transport.abort()


def data_of(size: int, seed: int = 0) -> bytes:
    """Return bytes that repeat nowhere near."""
    return random.Random(seed).randbytes(size)


def head(status: int, headers: Mapping[str, object], *, version: str = "1.1") -> bytes:
    """Return the head of an answer."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/{version} {status} Status\r\n{lines}\r\n".encode("latin-1")


def partial(request: RawRequest, data: bytes, **headers: object) -> tuple[bytes, bytes]:
    """Return head and body of the proper answer to a request for a file or a range of it."""
    span = request.range(len(data))
    start, stop = span or (0, len(data))
    facts: dict[str, object] = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    if span is not None:
        facts["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    facts["Content-Length"] = stop - start
    return head(200 if span is None else 206, facts), data[start:stop]


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a TCP reset."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def server_tls(certificate: Path) -> ssl.SSLContext:
    """Return the TLS settings of a server with the certificate of the fixture of that name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    return context
