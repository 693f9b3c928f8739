"""A long body read past aiohttp: from the socket into one buffer of ours, and from there to whoever wants it.

aiohttp makes a bytes object of every read, queues it and wakes a reader; for bulk data that costs more than the reading
itself. So once the head of an answer is there, its connection gets a protocol of ours, which reads the rest of the body
into one buffer that stays in the processor's cache. The connection is not used again: it is closed at the end, through
aiohttp, which goes on counting it as its own until then.

What is relied upon is looked at first; where anything is other than expected, aiohttp goes on as usual.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import aiohttp
from aiohttp.client_proto import ResponseHandler

from wme_async import _platform
from wme_async.errors import Interrupted, TimedOut

__all__ = ["Sink", "take_over"]

Sink = Callable[[memoryview], Awaitable[None] | None]

# 256 KiB stays in the second-level cache; 1 MiB was measured 24 % slower with TLS.
_BUFFER = 256 * 1024
# With less room than this, a read into what is left would be too small to be worth its system call.
_LEAST_ROOM = 64 * 1024
# A connection that is closed afterwards has to be opened anew; short bodies are better left to aiohttp, which keeps it.
_LEAST_BODY = 8 * 1024 * 1024
# Buffers kept for the next connections.
_MOST_SPARE = 16
_SPARE: list[bytearray] = []
_SCRATCH = memoryview(bytearray(1))
# Where bytes come faster than they are taken, a connection that is read a little at a time never gets room for much at
# once, and a small receive window costs both sides a third more. So each is drained in its turn, for this many seconds
# at most; all turns in one round of the event loop together take no longer than a round may.
_TURN = 0.002
_ROUND = 0.004
# Bytes do not wait longer than this in the buffer, so that what is on its way is also seen and accounted for.
_FLUSH_SECONDS = 0.25


async def take_over(response: aiohttp.ClientResponse, sink: Sink, *, url: str, read_timeout: float) -> bool:
    """Read the rest of a body past aiohttp and give it to a function.

    Args:
        response: An answer whose body nobody has begun to wait for.
        sink: Given views of a buffer, in order. Nothing more is read until what it returns has been awaited.
        url: For messages, without its query.
        read_timeout: Seconds of silence.

    Returns:
        Whether it was done; False leaves the rest of the body to aiohttp, in order and untouched. What aiohttp had
        buffered has been given to the sink in either case.

    Raises:
        Interrupted: The body ended early.
        TimedOut: Nothing came for as long as is allowed.
        BaseException: What the sink raised.
    """
    length = _length(response)
    handler = response.connection.protocol if response.connection is not None else None
    transport = handler.transport if handler is not None else None
    if length is None or length - response.content.total_bytes < _LEAST_BODY or not _as_expected(handler, transport):
        return False
    assert handler is not None
    assert transport is not None
    loop = asyncio.get_running_loop()
    drained = 0
    while True:
        # Emptying aiohttp's buffer may let it read again, so it is stopped after each piece; nothing comes in between.
        piece = response.content.read_nowait()
        transport.pause_reading()
        # While the sink makes us wait nobody listens, so that the peer cannot be silent.
        handler._drop_timeout()  # noqa: SLF001  # see _as_expected
        if not piece:
            break
        drained += len(piece)
        pending = sink(memoryview(piece))
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
    """Return the length of a body that comes as it is; None for chunked and encoded ones."""
    headers = response.headers
    text = headers.get("Content-Length", "")
    plain = headers.get("Content-Encoding", "identity").lower() == "identity" and "Transfer-Encoding" not in headers
    return int(text) if plain and text.isdecimal() and response.method != "HEAD" else None


def _as_expected(handler: Any, transport: Any) -> bool:
    """Say whether the connection is one that this module knows how to take over."""
    return (
        type(handler) is ResponseHandler
        and transport is not None
        and not transport.is_closing()
        and hasattr(transport, "set_protocol")
        and transport.get_protocol() is handler
        # Bytes that aiohttp holds back somewhere else than in the body would be lost.
        and not getattr(handler, "_tail", True)
        and not getattr(handler, "_upgraded", True)
        and hasattr(handler, "_drop_timeout")
        and hasattr(handler, "start_timeout")
    )


def _plain_socket(transport: asyncio.Transport) -> int:
    """Return the descriptor that bytes come out of as they were sent; -1 where TLS or anything else is between."""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.get_extra_info("sslcontext") is not None or not _platform.READS_SOCKETS:
        return -1
    return int(sock.fileno())


class _Turns:
    """Who may drain its socket, and how long: fair, and never so long that the loop's other tasks notice."""

    _all: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]"] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # It is kept in a dictionary by its loop, which it must not keep alive.
        self._loop = ref(loop)
        self._last: dict[_Reader, float] = {}
        self._until: float | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "_Turns":
        """Return the one of an event loop."""
        found = cls._all.get(loop)
        if found is None:
            found = cls._all[loop] = cls(loop)
        return found

    def begin(self, reader: "_Reader", now: float) -> float:
        """Return until when a reader may go on: `now` where it has to wait for the others."""
        if self._until is None:
            self._until = now + _ROUND
            loop = self._loop()
            assert loop is not None
            loop.call_soon(self._next_round)
        # Others may be waiting in line, so nobody comes again before they had time for a turn of their own.
        if now >= self._until or now - self._last.get(reader, 0.0) < _TURN * (len(self._last) - 1) / 2:
            return now
        self._last[reader] = now
        return min(self._until, now + _TURN)

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
        rest: int,
        read_timeout: float,
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._handler = handler
        self._sink = sink
        self._rest = rest
        self._read_timeout = read_timeout
        self._source = _plain_socket(transport)
        self._turns = _Turns.of(loop)
        self._buffer = _SPARE.pop() if _SPARE else bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._least_room = 1 if self._source >= 0 else _LEAST_ROOM
        self._heard = self._flushed = loop.time()
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
                # Silence is the peer's only while we listen.
                await pending
                self._filled = 0
                self._heard = self._flushed = self._loop.time()
            if self._error is not None:
                # Its traceback leads back here; an error that is kept would keep the whole connection.
                error, self._error = self._error, None
                try:
                    raise error
                finally:
                    del error
            if self._rest == 0 and self._filled == 0:
                return
            if self._stopped:
                # The connection is gone; what had come before goes to the sink first.
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
        """Stop reading and close the connection at once: what else it may send is not wanted."""
        self._stopped = True
        self._source = -1
        self._turns.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(self._pending, Coroutine):
            self._pending.close()
        self._pending = None
        self._filled = 0
        # Connections come and go, and what belongs to one may be collected late: its buffer serves the next.
        self._view = _SCRATCH
        if len(_SPARE) < _MOST_SPARE:
            _SPARE.append(self._buffer)
        self._buffer = bytearray()
        if not self._lost:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's name for what it would like
        """Return where the next bytes go: never more room than the body has bytes left."""
        room = min(_BUFFER, self._filled + self._rest)
        # An empty buffer is not allowed; what lands in this one is thrown away.
        return self._view[self._filled : room] if room > self._filled and not self._stopped else self._view[:1]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes, and pass them on when there are enough."""
        until: float | None = None
        while nbytes and not self._stopped and self._rest:
            now = self._heard = self._loop.time()
            self._filled += nbytes
            self._rest -= nbytes
            full = _BUFFER - self._filled < self._least_room
            if (full or not self._rest or now - self._flushed > _FLUSH_SECONDS) and self._flush():
                self._transport.pause_reading()
                self._notify()
                return
            if self._source < 0:
                return
            if until is None:
                until = self._turns.begin(self, now)
            if now >= until:
                return
            nbytes = self._read()

    def _read(self) -> int:
        """Read more from the socket itself, without the loop between; 0 where nothing is there now."""
        try:
            return os.readv(self._source, [self.get_buffer(-1)])
        except BlockingIOError:
            return 0
        except OSError as error:
            # The socket tells an error once: the loop will see no more than the end of the connection.
            self._cause = error
            return 0

    def eof_received(self) -> bool:
        """The peer has no more to say."""
        self._stop()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell both the reader and aiohttp, which waits for this before its connector is closed."""
        self._lost = True
        if self._error is None and exc is not None and self._rest:
            self._cause = exc
        self._stop()
        self._handler.connection_lost(exc if isinstance(exc, Exception) else None)
        # asyncio's TLS protocol keeps hold of this object, so a way back would make a cycle; with what a connection's
        # buffers weigh, waiting for the collector shows.
        del self._transport, self._handler

    def pause_writing(self) -> None:
        """Nothing is written."""

    def resume_writing(self) -> None:
        """Nothing is written."""

    def _flush(self) -> bool:
        """Pass on what is in the buffer; True where the reader has to do something before more is read."""
        view = self._view[: self._filled]
        try:
            self._pending = self._sink(view)
        except BaseException as error:  # noqa: BLE001  # it comes out of `run`; a transport must not see it
            self._error = error
            self._filled = 0
            return True
        self._flushed = self._loop.time()
        if self._pending is not None:
            return True
        self._filled = 0
        return not self._rest

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _failure(self, url: str) -> Exception:
        if self._silent:
            return TimedOut(f"nothing came from {url} for {self._read_timeout:g} s", url=url)
        why = f": {self._cause}" if self._cause is not None else ""
        error = Interrupted(
            f"the connection to {url} ended {self._rest} bytes before the end of the body{why}", url=url
        )
        error.__cause__ = self._cause
        return error

    def _watch(self) -> None:
        """Look for silence; one timer a period, not one a read."""
        # While the sink has something pending, `run` is not waiting for the peer.
        idle = self._loop.time() - self._heard if self._wake is not None or self._timer is None else 0.0
        if idle >= self._read_timeout:
            self._silent = True
            self._stop()
            return
        self._timer = self._loop.call_later(self._read_timeout - idle, self._watch)
