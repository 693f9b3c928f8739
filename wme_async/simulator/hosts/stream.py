"""One open stream: reading partitions in turn, framing, pacing, and the faults that end or damage it."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from random import Random
from typing import Final, Literal

import msgspec
from aiohttp import web

from wme_async.simulator.faults import Fault
from wme_async.simulator.hosts.http import tear
from wme_async.simulator.log import Entry, PartitionLog
from wme_async.simulator.protocol.schema import Node, compile_fields, compile_filters
from wme_async.simulator.protocol.stream_request import Accepted
from wme_async.simulator.world.encoding import dumps

_WRITE: Final = 1 << 16  # bytes that are joined before a write, when events need not be written one by one
_CHECK_INTERVAL: Final = 0.1  # seconds between checks whether the client has left
_NO_POSITION: Final = b'"partition":0,"offset":0'
_ERROR_LINE: Final = dumps({"status": 500, "message": "query terminated unexpectedly"})


Ending = Literal["reset", "clean", "truncated"]
"""How a stream ends: by a TCP reset, cleanly, or inside the chunked body."""


class _Ended(Exception):
    """The stream has ended, and its connection is closed or will be."""


class Line:
    """Encodes events according to the fields, the filters and the framing of a request.

    Args:
        schema: The fields that the stream knows.
        accepted: The request.
        content_type: The negotiated content type; an empty one is NDJSON under a broken Content-Type.
    """

    def __init__(self, schema: Node, accepted: Accepted, content_type: str) -> None:
        self.content_type: str = f"{content_type}; charset=utf-8"
        self.sse: bool = content_type == "text/event-stream"
        self._before, self._after = (b"event: message\ndata: ", b"\n\n") if self.sse else (b"", b"\n")
        self._passes = compile_filters(schema, accepted.filters) if accepted.filters else None
        self._prune = compile_fields(schema, accepted.fields) if accepted.fields else None
        self._placed = not accepted.fields or any(name.startswith("event.") for name in accepted.fields)

    def frame(self, line: bytes) -> bytes:
        """Put the framing around a line of JSON."""
        return b"".join((self._before, line, self._after))

    def bare(self, framed: bytes) -> bytes:
        """Take the framing off again."""
        return framed[len(self._before) : len(framed) - len(self._after)]

    def make(self, partition: int, entry: Entry) -> bytes | None:
        """Return the framed bytes of an event, or None if it does not pass the filters."""
        tail = entry.tail
        if self._passes is None and self._prune is None:
            if tail is None:
                return self.frame(entry.head)
            return b'%b%b"partition":%d,"offset":%d%b%b' % (
                self._before,
                entry.head,
                partition,
                entry.offset,
                tail,
                self._after,
            )
        try:
            record = msgspec.json.decode(entry.head if tail is None else entry.head + _NO_POSITION + tail)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a raw line on purpose
            return self.frame(entry.head)
        if self._passes is not None and not self._passes(record):
            return None
        event = record.get("event")
        if isinstance(event, dict):
            event.pop("partition", None)
            event.pop("offset", None)
        if self._prune is not None:
            record = self._prune(record)
        if self._placed and isinstance(record.get("event"), dict):
            record["event"] = {**record["event"], "partition": partition, "offset": entry.offset}
        return self.frame(dumps(record))

    def overlong(self, framed: bytes, size: int) -> bytes:
        """Pad an event to a line of `size` bytes."""
        record = msgspec.json.decode(self.bare(framed))
        record["article_body"] = {"wikitext": ""}
        record["article_body"]["wikitext"] = "x" * max(0, size - len(dumps(record)))
        return self.frame(dumps(record))


class Reader:
    """One open stream.

    Args:
        request: The request to answer.
        log: The partitions.
        positions: The next offset of each partition to read.
        line: Encodes events.
        random: Makes the choices that faults leave open.
        faults: The faults of this request.
        rate: Messages per second, or None.
        flush_each: Whether each event is a write of its own.
        burst: The number of events of one partition that are read before the turn of the next one.
        update: Called before events are read: publishes those that are due.
    """

    def __init__(
        self,
        request: web.Request,
        log: list[PartitionLog],
        positions: dict[int, int],
        line: Line,
        *,
        random: Random,
        faults: Iterable[Fault],
        rate: float | None,
        flush_each: bool,
        burst: int,
        update: Callable[[], None] | None = None,
    ) -> None:
        self._request = request
        self._log = log
        self._positions = positions
        self._line = line
        self._faults = _StreamFaults(faults, line, random)
        self._rate = rate
        self._flush_each = flush_each or rate is not None
        # Small turns keep the order of events near to their times; large ones are for speed.
        self._burst = burst if self._flush_each else max(burst, 512 // max(1, len(positions)))
        self._update = update
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._ending: Ending | None = None
        self._response = web.StreamResponse(
            headers={"Cache-Control": "no-cache", "Connection": "keep-alive", "Content-Type": line.content_type}
        )
        self._sent = 0
        self._due = self._loop.time()

    def wake(self) -> None:
        """Look for new events; from any thread."""
        if self._changed.is_set():
            return
        try:
            same_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            same_loop = False
        if same_loop:
            self._changed.set()
        else:
            self._loop.call_soon_threadsafe(self._changed.set)

    def end(self, how: Ending) -> None:
        """End the stream from outside."""
        self._ending = how
        self.wake()

    async def run(self) -> web.StreamResponse:
        """Stream until something ends it; the head goes out with the first event."""
        with contextlib.suppress(_Ended, ConnectionError):
            while not self._faults.over:
                self._changed.clear()
                self._check()
                frames = self._faults(self._read())
                if frames:
                    await self._send_all(frames)
                else:
                    await self._wait()
        if not self._response.prepared and not self._client_left():
            del self._response.headers["Content-Type"]
            self._response.content_length = 0
            await self._response.prepare(self._request)
        return self._response

    def _read(self) -> list[bytes]:
        if self._update is not None:
            self._update()
        frames = []
        for partition, position in self._positions.items():
            log = self._log[partition]
            if position >= log.end:
                continue
            if position < log.base:  # expired while the client was slow: the broker's client jumps to live
                self._positions[partition] = log.end
                continue
            entries = log.read(position, self._burst)
            self._positions[partition] = entries[-1].offset + 1 if entries else log.end
            frames += [frame for entry in entries if (frame := self._line.make(partition, entry)) is not None]
        if not frames and any(position < self._log[p].end for p, position in self._positions.items()):
            self._changed.set()  # all were filtered out: read on without waiting
        return frames

    async def _wait(self) -> None:
        if self._changed.is_set():
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_INTERVAL):
                await self._changed.wait()

    def _client_left(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def _check(self) -> None:
        if self._client_left():
            raise _Ended
        if self._ending is not None:
            self._finish(self._ending)

    async def _send_all(self, frames: list[bytes]) -> None:
        if self._flush_each:
            for frame in frames:
                self._check()
                await self._pace()
                await self._send(frame)
        else:
            buffer = bytearray()
            for frame in frames:
                buffer += frame
                if len(buffer) >= _WRITE:
                    await self._send(buffer)
                    buffer = bytearray()
            if buffer:
                await self._send(buffer)
        await asyncio.sleep(0)

    async def _pace(self) -> None:
        if self._rate is not None:
            now = self._loop.time()
            if self._due > now:
                await asyncio.sleep(self._due - now)
            self._due = max(self._due, now) + 1 / self._rate

    async def _send(self, data: bytes | bytearray) -> None:
        cut, stall = self._faults.cut, self._faults.stall
        end = self._sent + len(data)
        if cut is not None and end >= cut[0]:
            await self._write(data[: cut[0] - self._sent], broken=cut[1] == "truncated")
            self._finish(cut[1])
        if stall is not None and end >= stall:
            await self._write(data[: stall - self._sent])
            while True:
                await asyncio.sleep(_CHECK_INTERVAL / 5)
                self._check()
        if self._faults.slow is None:
            await self._write(data)
            return
        step = max(1, int(self._faults.slow * 0.02))
        for start in range(0, len(data), step):
            self._check()
            await self._write(data[start : start + step])
            await asyncio.sleep(step / self._faults.slow)

    async def _write(self, data: bytes | bytearray, *, broken: bool = False) -> None:
        if not data:
            return
        if not self._response.prepared:
            self._response.enable_chunked_encoding()
            await self._response.prepare(self._request)
        self._sent += len(data)
        if not broken or len(data) < 2:
            await self._response.write(data)
            return
        await self._response.write(data[:-1])
        if (transport := self._request.transport) is not None:
            transport.write(b"ffff\r\n" + data[-1:])  # a chunk that promises more than it holds

    def _finish(self, how: Ending) -> None:
        if how == "reset":
            tear(self._request)
        elif how == "truncated" and self._request.transport is not None:
            self._request.transport.close()
        raise _Ended


class _StreamFaults:
    """The faults of one stream, applied to framed events in turn.

    Attributes:
        cut: Bytes of the body after which the stream ends, and how.
        stall: Bytes of the body after which it stalls.
        slow: Bytes per second.
        over: Whether the stream ends before the next event.
    """

    def __init__(self, faults: Iterable[Fault], line: Line, random: Random) -> None:
        self.cut: tuple[int, Ending] | None = None
        self.stall: int | None = None
        self.slow: float | None = None
        self.over = False
        self._line = line
        self._count = 0  # events so far
        self._gap = 0  # events still to leave out
        self._at: dict[int, list[Fault]] = {}
        self._older_framing = False
        self._recent: deque[bytes] = deque(maxlen=1)
        for fault in faults:
            self._add(fault, random)
        self.over = any(fault.kind == "eof" for fault in self._at.get(0, ()))

    def _add(self, fault: Fault, random: Random) -> None:
        if fault.kind in {"cut", "drop"}:
            after = fault.get("after")
            how = fault.get("how", "reset" if fault.kind == "cut" else "truncated")
            position = random.randint(*(fault.get("within") or (1, 20_000))) if after is None else int(after)
            self.cut = (position, "truncated" if how == "close" else how)
        elif fault.kind == "stall":
            self.stall = int(fault.get("after") or 0)
        elif fault.kind == "slow":
            self.slow = float(fault.get("rate", 65536))
        elif fault.kind == "older_framing":
            self._older_framing = True
        elif fault.kind in {"eof", "broken", "overlong", "replay", "gap", "error_line"}:
            self._at.setdefault(int(fault.get("at") or 0), []).append(fault)
            if fault.kind == "replay":
                self._recent = deque(maxlen=max(self._recent.maxlen or 1, int(fault.get("count", 10))))

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        if self.over:
            return []
        if self._older_framing and not self._line.sse:
            frames = [b"\n " + frame for frame in frames]
        if not self._at and not self._gap:
            return frames
        return list(chain.from_iterable(map(self._apply, frames)))

    def _apply(self, frame: bytes) -> list[bytes]:
        if self.over:
            return []
        faults = self._at.pop(self._count, ())
        self._count += 1
        frames = [frame]
        for fault in faults:
            if fault.kind == "broken":
                line = self._line.bare(frame)
                frames = [self._line.frame(line[: len(line) // 2])]
            elif fault.kind == "overlong":
                frames = [self._line.overlong(frame, int(fault.get("size", (20 << 20) + 1)))]
            elif fault.kind == "gap":
                self._gap = int(fault.get("count", 1))
            elif fault.kind == "replay":
                before = int(fault.get("count", 10)) - 1
                frames = [frame, *list(self._recent)[max(0, len(self._recent) - before) :], frame]
            else:
                self.over = True
                return [self._line.frame(_ERROR_LINE)] if fault.kind == "error_line" else []
        if self._gap:
            self._gap -= 1
            return []
        self._recent.append(frame)
        return frames
