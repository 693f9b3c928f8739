"""Long bodies read without aiohttp: from the socket into one buffer, and from there to a sink.

aiohttp makes a bytes object of every read, queues it and wakes a reader; for bulk data that costs more than the reads
themselves. So once the head of a response has arrived, its connection gets a protocol of ours, which reads the rest of
the body into one buffer that stays in the cache of the processor. The connection is not reused: at the end it is closed
through aiohttp, which counts it as its own until then.

All assumptions about aiohttp are checked first; if one does not hold, aiohttp reads the body.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import aiohttp
from aiohttp.client_proto import ResponseHandler

from wme_async import _platform
from wme_async._tasks import settle
from wme_async.errors import Interrupted, TimedOut

Sink = Callable[[memoryview], Awaitable[None] | None]

# 256 KiB stays in the second-level cache; 1 MiB was measured 24 % slower with TLS.
_BUFFER = 256 * 1024
# With less room than this, the buffer is flushed, since a short read is not worth its system call.
_MIN_ROOM = 64 * 1024
# Shorter bodies are left to aiohttp, which reuses their connections.
MIN_BODY = 8 * 1024 * 1024
# The most buffers in the pool for later connections.
_MAX_SPARE = 16
_SPARE: list[bytearray] = []
_SCRATCH = memoryview(bytearray(1))
# If bytes arrive faster than they are read, short reads keep the receive window small, which costs both sides a third
# more. So each socket is drained in its turn, for this many seconds at most, and all turns within one iteration of the
# event loop together take no longer than a round.
TURN = 0.002
ROUND = 0.004
# The longest time that bytes wait in the buffer, so that progress stays visible.
_FLUSH_SECONDS = 0.25


async def take_over(response: aiohttp.ClientResponse, sink: Sink, *, url: str, read_timeout: float) -> bool:
    """Read the remaining body without aiohttp and pass it to a function.

    Args:
        response: A response whose body has no reader yet.
        sink: Called with views of a buffer, in order. No more is read until its awaitable, if any, is done.
        url: For messages, without its query.
        read_timeout: Seconds of silence.

    Returns:
        True after the whole body; False leaves the remaining body to aiohttp, in order and untouched. In both cases the
        sink has received the bytes in aiohttp's buffer.

    Raises:
        Interrupted: The body ended early.
        TimedOut: No byte arrived within the read timeout.
        BaseException: An exception of the sink.
    """
    length = _length(response)
    handler = response.connection.protocol if response.connection is not None else None
    transport = handler.transport if handler is not None else None
    if length is None or length - response.content.total_bytes < MIN_BODY or not _can_take_over(handler, transport):
        return False
    assert handler is not None
    assert transport is not None
    loop = asyncio.get_running_loop()
    while True:
        # aiohttp may resume reading when its buffer is emptied, so it is paused after each chunk.
        chunk = response.content.read_nowait()
        transport.pause_reading()
        # The peer is not silent while the sink keeps us from reading.
        handler._drop_timeout()  # noqa: SLF001  # see _can_take_over
        if not chunk:
            break
        pending = sink(memoryview(chunk))
        if pending is not None:
            await pending
    if transport.is_closing() or transport.get_protocol() is not handler or response.content.is_eof():
        with contextlib.suppress(RuntimeError):
            transport.resume_reading()
        if not response.content.is_eof():
            handler.start_timeout()
        return False
    reader = _Reader(loop, transport, handler, sink, length - response.content.total_bytes, read_timeout)
    try:
        transport.set_protocol(reader)
        await reader.run(url)
    finally:
        reader.detach()
    return True


def _length(response: aiohttp.ClientResponse) -> int | None:
    """Return the length of a body without a coding; None for chunked and encoded ones."""
    headers = response.headers
    text = headers.get("Content-Length", "")
    plain = headers.get("Content-Encoding", "identity").lower() == "identity" and "Transfer-Encoding" not in headers
    return int(text) if plain and text.isdecimal() and response.method != "HEAD" else None


def _can_take_over(handler: Any, transport: Any) -> bool:
    """Return whether this module can take over the connection."""
    return (
        type(handler) is ResponseHandler
        and transport is not None
        and not transport.is_closing()
        and hasattr(transport, "set_protocol")
        and transport.get_protocol() is handler
        # Bytes outside the body's buffer would be lost.
        and not getattr(handler, "_tail", True)
        and not getattr(handler, "_upgraded", True)
        and hasattr(handler, "_drop_timeout")
        and hasattr(handler, "start_timeout")
    )


def _plain_socket(transport: asyncio.Transport) -> int:
    """Return the descriptor of a plain socket; -1 with TLS or anything else in between."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.get_extra_info("sslcontext") is not None or not _platform.READS_SOCKETS:
        return -1
    return int(sock.fileno())


class Turns:
    """Turns of the readers to drain their sockets, fair and short enough for the other tasks of the loop."""

    _all: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]"] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # A weak reference, since the dictionary of all turns must not keep the loop alive.
        self._loop = ref(loop)
        self._last: dict[_Reader, float] = {}
        self._until: float | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "Turns":
        """Return the turns of an event loop."""
        if loop not in cls._all:
            cls._all[loop] = cls(loop)
        return cls._all[loop]

    def begin(self, reader: "_Reader", now: float) -> float:
        """Return the end of a reader's turn: `now` if it must wait for the others."""
        if self._until is None:
            self._until = now + ROUND
            loop = self._loop()
            assert loop is not None
            loop.call_soon(self._next_round)
        # The others need time for turns of their own before this reader has its next one.
        if now >= self._until or now - self._last.get(reader, 0.0) < TURN * (len(self._last) - 1) / 2:
            return now
        self._last[reader] = now
        return min(self._until, now + TURN)

    def leave(self, reader: "_Reader") -> None:
        """Forget a reader."""
        self._last.pop(reader, None)

    def _next_round(self) -> None:
        self._until = None


class _Reader(asyncio.BufferedProtocol):
    """Reads a body of known length from a transport into a buffer."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        handler: ResponseHandler,
        sink: Sink,
        remaining: int,
        read_timeout: float,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._handler = handler
        self._sink = sink
        self._remaining = remaining
        self._read_timeout = read_timeout
        self._source = _plain_socket(transport)
        self._turns = Turns.of(loop)
        self._buffer = _SPARE.pop() if _SPARE else bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._min_room = 1 if self._source >= 0 else _MIN_ROOM
        self._last_read = self._flushed = loop.time()
        self._pending: Awaitable[None] | None = None
        self._error: BaseException | None = None
        self._cause: BaseException | None = None
        self._silent = False
        self._stopped = False
        self._lost = False
        self._wake: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, url: str) -> None:
        """Read until the body is whole."""
        self._watch()
        self._transport.resume_reading()
        while True:
            if self._pending is not None:
                pending, self._pending = self._pending, None
                # The peer is not silent while the sink keeps us from reading.
                await pending
                self._filled = 0
                self._last_read = self._flushed = self._loop.time()
            if self._error is not None:
                # The traceback of a stored error would keep the whole connection alive.
                error, self._error = self._error, None
                try:
                    raise error
                finally:
                    del error
            if self._remaining == 0 and self._filled == 0:
                return
            if self._stopped:
                # The sink receives the buffered bytes before the error.
                if self._filled and self._flush():
                    continue
                raise self._failure(url)
            self._transport.resume_reading()
            self._wake = self._loop.create_future()
            try:
                await self._wake
            finally:
                self._wake = None

    def detach(self) -> None:
        """Stop reading and close the connection at once."""
        self._stopped = True
        self._source = -1
        self._turns.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(self._pending, Coroutine):
            self._pending.close()
        self._pending = None
        self._filled = 0
        # This object may be collected late, so its buffer goes back to the pool now.
        self._view = _SCRATCH
        if len(_SPARE) < _MAX_SPARE:
            _SPARE.append(self._buffer)
        self._buffer = bytearray()
        if not self._lost:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's name
        """Return the space for the next bytes, at most the remaining body."""
        room = min(_BUFFER, self._filled + self._remaining)
        # An empty buffer is not allowed; the bytes in this one are ignored.
        return self._view[self._filled : room] if room > self._filled and not self._stopped else self._view[:1]

    def buffer_updated(self, nbytes: int) -> None:
        """Count the new bytes, and pass them on if there are enough."""
        until: float | None = None
        while nbytes and not self._stopped and self._remaining:
            now = self._last_read = self._loop.time()
            self._filled += nbytes
            self._remaining -= nbytes
            full = _BUFFER - self._filled < self._min_room
            if (full or not self._remaining or now - self._flushed > _FLUSH_SECONDS) and self._flush():
                self._transport.pause_reading()
                settle(self._wake)
                return
            if self._source < 0:
                return
            if until is None:
                until = self._turns.begin(self, now)
            if now >= until:
                return
            nbytes = self._read()

    def _read(self) -> int:
        """Read from the socket directly, without the loop; return 0 if it has no bytes now."""
        try:
            return _platform.read_socket(self._source, self.get_buffer(-1))
        except BlockingIOError:
            return 0
        except OSError as error:
            # A socket reports an error once: the loop then sees the end of the connection alone.
            self._cause = error
            return 0

    def eof_received(self) -> bool:
        """Stop at the end of the connection."""
        self._stop()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop, and notify aiohttp, whose connector waits for this before it closes."""
        self._lost = True
        if self._error is None and exc is not None and self._remaining:
            self._cause = exc
        self._stop()
        self._handler.connection_lost(exc if isinstance(exc, Exception) else None)
        # asyncio's TLS protocol refers to this object, so a reference back would make a cycle, and the buffers of the
        # connection would stay in memory until the collector runs.
        del self._transport, self._handler

    def _flush(self) -> bool:
        """Pass the buffer to the sink; return True if `run` must act before more is read."""
        try:
            self._pending = self._sink(self._view[: self._filled])
        except BaseException as error:  # noqa: BLE001  # `run` raises it; a transport must not see it
            self._error = error
            self._filled = 0
            return True
        self._flushed = self._loop.time()
        if self._pending is not None:
            return True
        self._filled = 0
        return not self._remaining

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            settle(self._wake)

    def _failure(self, url: str) -> Exception:
        if self._silent:
            return TimedOut(f"{url} sent nothing for {self._read_timeout:g} s", url=url)
        reason = f": {self._cause}" if self._cause is not None else ""
        error = Interrupted(
            f"the connection to {url} ended {self._remaining} bytes before the end of the body{reason}", url=url
        )
        error.__cause__ = self._cause
        return error

    def _watch(self) -> None:
        """Check for silence, with one timer for each period instead of each read."""
        # While the sink has something pending, `run` is not waiting for the peer.
        idle = self._loop.time() - self._last_read if self._wake is not None or self._timer is None else 0.0
        if idle >= self._read_timeout:
            self._silent = True
            self._stop()
        else:
            self._timer = self._loop.call_later(self._read_timeout - idle, self._watch)
