"""One open stream: reading partitions in turn, framing, pacing, and the faults that end or bend it."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import chain
from random import Random
from typing import Any, Final, Literal, Protocol

import msgspec
from aiohttp import web

from wme_async.simulator.hosts.http import tear
from wme_async.simulator.log import Entry, PartitionLog
from wme_async.simulator.protocol.schema import Node, compile_fields, compile_filters
from wme_async.simulator.protocol.stream_request import Accepted
from wme_async.simulator.world.encoding import dumps

__all__ = ["Line", "Reader"]

_WRITE: Final = 1 << 16  # bytes that are joined before a write, when events need not be written one by one
_LOOK: Final = 0.1  # seconds between looks at whether the client has left
_ERROR_LINE: Final = dumps({"status": 500, "message": "query terminated unexpectedly"})


class _Fault(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def details(self) -> Mapping[str, Any]: ...


class _Over(Exception):
    """The stream has ended, in a way that has been taken care of."""


class Line:
    """Makes the bytes of an event, as fields, filters and framing of a request want them.

    Args:
        schema: The fields that the stream knows.
        accepted: The request.
        sse: The negotiated content type; an empty one is NDJSON under a broken Content-Type.
    """

    def __init__(self, schema: Node, accepted: Accepted, sse: str) -> None:
        self.content_type = f"{sse}; charset=utf-8"
        self.sse = sse == "text/event-stream"
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
        """Make the framed bytes of an event, or None when it is filtered out."""
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
        whole = entry.head if tail is None else entry.head + b'"partition":0,"offset":0' + tail
        try:
            record = msgspec.json.decode(whole)
        except msgspec.DecodeError:  # a raw line on purpose
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
        """Blow an event up to a line of `size` bytes."""
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
        line: Makes the bytes.
        random: Chooses what a fault leaves open.
        faults: What goes wrong.
        rate: Messages a second, or None.
        flush_each: Whether each event is written by itself.
        burst: How many events of one partition are read in turn.
    """

    def __init__(
        self,
        request: web.Request,
        log: list[PartitionLog],
        positions: dict[int, int],
        line: Line,
        *,
        random: Random,
        faults: Iterable[_Fault],
        rate: float | None,
        flush_each: bool,
        burst: int,
    ) -> None:
        self._request = request
        self._log = log
        self._positions = positions
        self._line = line
        self._bend = _Bend(faults, line, random)
        self._rate = rate
        self._flush_each = flush_each or rate is not None
        # Small turns keep the order of events near to their times; large ones are for speed.
        self._burst = burst if self._flush_each else max(burst, 512 // max(1, len(positions)))
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._ending: Literal["reset", "clean", "truncated"] | None = None
        self._response = web.StreamResponse(
            headers={"Cache-Control": "no-cache", "Connection": "keep-alive", "Content-Type": line.content_type}
        )
        self._sent = 0
        self._due = self._loop.time()

    def wake(self) -> None:
        """Say that there may be new events; from any thread."""
        if self._changed.is_set():
            return
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._changed.set()
        else:
            self._loop.call_soon_threadsafe(self._changed.set)

    def end(self, how: Literal["reset", "clean", "truncated"]) -> None:
        """End the stream from outside."""
        self._ending = how
        self.wake()

    async def run(self) -> web.StreamResponse:
        """Stream until something ends it; the head goes out with the first event."""
        with contextlib.suppress(_Over, ConnectionError):
            while not self._bend.over:
                self._changed.clear()
                self._look()
                frames = self._bend(self._read())
                if frames:
                    await self._send_all(frames)
                else:
                    await self._wait()
        if not self._response.prepared and not self._gone():
            del self._response.headers["Content-Type"]
            self._response.content_length = 0
            await self._response.prepare(self._request)
        return self._response

    def _read(self) -> list[bytes]:
        frames = []
        for partition, position in self._positions.items():
            log = self._log[partition]
            if position >= log.end:
                continue
            if position < log.base:  # it expired while the client was slow: the broker's client jumps to live
                self._positions[partition] = log.end
                continue
            entries = log.read(position, self._burst)
            self._positions[partition] = entries[-1].offset + 1 if entries else log.end
            frames += [frame for entry in entries if (frame := self._line.make(partition, entry)) is not None]
        if not frames and any(position < self._log[p].end for p, position in self._positions.items()):
            self._changed.set()  # all were filtered out: go on without waiting
        return frames

    async def _wait(self) -> None:
        if self._changed.is_set():
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await self._changed.wait()

    def _gone(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def _look(self) -> None:
        if self._gone():
            raise _Over
        if self._ending is not None:
            self._finish(self._ending)

    async def _send_all(self, frames: list[bytes]) -> None:
        if self._flush_each:
            for frame in frames:
                self._look()
                await self._pace()
                await self._send(frame)
        else:
            joined: list[bytes] = []
            size = 0
            for frame in frames:
                joined.append(frame)
                size += len(frame)
                if size >= _WRITE:
                    await self._send(b"".join(joined))
                    joined, size = [], 0
            if joined:
                await self._send(b"".join(joined))
        await asyncio.sleep(0)

    async def _pace(self) -> None:
        if self._rate is None:
            return
        now = self._loop.time()
        self._due = max(self._due, now)
        if self._due > now:
            await asyncio.sleep(self._due - now)
        self._due += 1 / self._rate

    async def _send(self, data: bytes) -> None:
        cut, stall = self._bend.cut, self._bend.stall
        end = self._sent + len(data)
        if cut is not None and end >= cut[0]:
            await self._write(data[: cut[0] - self._sent], broken=cut[1] == "truncated")
            self._finish(cut[1])
        if stall is not None and end >= stall:
            await self._write(data[: stall - self._sent])
            while True:
                await asyncio.sleep(_LOOK / 5)
                self._look()
        if self._bend.slow is None:
            await self._write(data)
            return
        step = max(1, int(self._bend.slow * 0.02))
        for start in range(0, len(data), step):
            self._look()
            await self._write(data[start : start + step])
            await asyncio.sleep(step / self._bend.slow)

    async def _write(self, data: bytes, *, broken: bool = False) -> None:
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

    def _finish(self, how: Literal["reset", "clean", "truncated"]) -> None:
        transport = self._request.transport
        if how != "clean" and transport is not None:
            if how == "reset":
                tear(self._request)
            else:
                transport.close()
        raise _Over


class _Bend:
    """The faults of one stream, applied to framed events as they come by."""

    def __init__(self, faults: Iterable[_Fault], line: Line, random: Random) -> None:
        self.cut: tuple[int, Literal["reset", "clean", "truncated"]] | None = None
        self.stall: int | None = None
        self.slow: float | None = None
        self.over = False
        self._line = line
        self._count = 0  # events seen
        self._lost = 0  # events still to lose
        self._at: dict[int, list[_Fault]] = {}
        self._older = False
        self._recent: deque[bytes] = deque(maxlen=1)
        for fault in faults:
            details = fault.details
            if fault.kind in {"cut", "drop"}:
                low, high = details.get("within") or (1, 20_000)
                after = details.get("after")
                how = details.get("how", "reset" if fault.kind == "cut" else "truncated")
                self.cut = (
                    random.randint(low, high) if after is None else int(after),
                    "truncated" if how == "close" else how,
                )
            elif fault.kind == "stall":
                self.stall = int(details.get("after") or 0)
            elif fault.kind == "slow":
                self.slow = float(details.get("rate", 65536))
            elif fault.kind == "older_framing":
                self._older = True
            elif fault.kind in {"eof", "broken", "overlong", "replay", "gap", "error_line"}:
                self._at.setdefault(int(details.get("at") or 0), []).append(fault)
                if fault.kind == "replay":
                    self._recent = deque(maxlen=max(self._recent.maxlen or 1, int(details.get("count", 10))))
        self.over = any(fault.kind == "eof" for fault in self._at.get(0, ()))

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        if self.over:
            return []
        if self._older:
            frames = [b"\n " + frame for frame in frames] if not self._line.sse else frames
        if not self._at and not self._lost:
            return frames
        return list(chain.from_iterable(map(self._one, frames)))

    def _one(self, frame: bytes) -> list[bytes]:
        if self.over:
            return []
        number, self._count = self._count, self._count + 1
        out = [frame]
        for fault in self._at.pop(number, ()):
            details = fault.details
            if fault.kind == "broken":
                line = self._line.bare(frame)
                out = [self._line.frame(line[: len(line) // 2])]
            elif fault.kind == "overlong":
                out = [self._line.overlong(frame, int(details.get("size", (20 << 20) + 1)))]
            elif fault.kind == "gap":
                self._lost = int(details.get("count", 1))
            elif fault.kind == "replay":
                before = int(details.get("count", 10)) - 1
                out = [
                    frame,
                    *list(self._recent)[len(self._recent) - before if before < len(self._recent) else 0 :],
                    frame,
                ]
            else:
                self.over = True
                return [self._line.frame(_ERROR_LINE)] if fault.kind == "error_line" else []
        if self._lost:
            self._lost -= 1
            return []
        self._recent.append(frame)
        return out
