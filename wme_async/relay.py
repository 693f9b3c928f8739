"""One stream of the firehose, many listeners: the hub behind live pages, server-sent events and websockets.

    from wme_async.relay import Broadcast

    async with Client.from_env() as wme, Broadcast(wme.realtime.articles()) as hub:
        async with hub.listen() as events:
            async for event in events:
                print(event.item.name)

Listeners share one bounded backlog, and each has its own position in it. A slow or frozen listener therefore costs no
memory and delays no other: it loses its position, and its policy says what happens then.

Each event has an `id` that names the last offset of every partition. A browser sends it back as `Last-Event-ID` when it
reconnects, also to another process, and receives the events after it, as far as the backlog reaches. After a restart a
hub fills its backlog from `since`:

    Broadcast(wme.realtime.articles(since=datetime.now(UTC) - timedelta(minutes=10)))
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar

import msgspec

from wme_async import _clock
from wme_async._arguments import check_functions, check_numbers
from wme_async._stream import Stream
from wme_async._tasks import end_task, is_cancelling, settle, wait_server_shutdown
from wme_async.errors import StreamError

__all__ = ["Broadcast", "BroadcastEvent", "BroadcastStatistics", "Listener", "SlowListener", "SlowPolicy"]

_logger = logging.getLogger("wme_async.relay")

T = TypeVar("T")

SlowPolicy: TypeAlias = Literal["drop", "disconnect", "wait"]
"""Policy for a listener that has fallen behind the backlog: it continues with the oldest event of the backlog, whose
`missed` counts those before it; or it ends with `SlowListener`; or the stream and all other listeners wait for it."""

_TURN: Final = 64  # events that a listener handles before other tasks run
_CHUNK: Final = 64 * 1024  # bytes of events that are sent at once
_RETRY: Final = 2000  # milliseconds after which a browser reconnects


class SlowListener(StreamError):
    """A listener with the policy `disconnect` has fallen behind the backlog."""


class BroadcastEvent(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """An event as a listener receives it.

    Attributes:
        item: The record from the stream. All listeners share it: do not change it.
        data: The record as JSON, encoded once for all listeners.
        id: The position after this event in all partitions, for `last_event_id`; None where the record has no offset,
            such as those that fill a gap from the hourly batches.
        missed: Events that this listener has missed just before this one.
        incomplete: Whether events before this one may be missing, because the backlog no longer had them when the
            listener resumed. Their number is unknown.
    """

    item: T
    data: bytes
    id: str | None
    missed: int = 0
    incomplete: bool = False

    def sse(self) -> bytes:
        """Return the event as a server-sent event.

        Missing events come before it as an event `missed` with `{"count": …}`; null means an unknown number.
        """
        before = b""
        if self.missed or self.incomplete:
            count = b"null" if self.incomplete else str(self.missed).encode()
            before = b'event: missed\ndata: {"count":' + count + b"}\n\n"
        identity = b"" if self.id is None else b"id: " + self.id.encode() + b"\n"
        data = self.data
        if b"\n" in data or b"\r" in data:
            # JSON may be in several lines. A receiver joins them, and takes a line without `data:` for another field.
            data = b"\ndata: ".join(data.splitlines())
        return before + identity + b"data: " + data + b"\n\n"


class BroadcastStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of a hub.

    Attributes:
        events: Events received from the stream.
        listeners: Open listeners.
        backlog: Events in the backlog.
        backlog_bytes: Their bytes as JSON.
        missed: Events that listeners have missed, in total.
        disconnected: Listeners that ended with `SlowListener`.
    """

    events: int
    listeners: int
    backlog: int
    backlog_bytes: int
    missed: int
    disconnected: int


class _Entry(msgspec.Struct):
    event: BroadcastEvent[Any]
    partition: int
    offset: int | None


class _Backlog:
    """The backlog of events, and the state that the hub and its listeners share.

    Attributes:
        entries: Events by sequence number, without holes.
        first: Sequence number of the oldest.
        next: Sequence number that the next event gets.
        bytes: JSON of all entries.
        started: The first offset of each partition.
        evicted: The last offset of each partition that is no longer in the backlog.
        covered_from: The time from which the stream is complete, UTC seconds.
        listeners: Open listeners.
        missed: Events that listeners have missed.
        disconnected: Listeners that were too slow for their policy.
        open: Whether the hub is open.
        ended: Set when listeners end.
        failure: The exception that ended the stream.
    """

    def __init__(self, limit: int, limit_bytes: int, lag: float) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._lag = lag
        self._waiters: list[asyncio.Future[None]] = []
        self._room: asyncio.Future[None] | None = None
        self.entries: dict[int, _Entry] = {}
        self.first: int = 0
        self.next: int = 0
        self.bytes: int = 0
        self.started: dict[int, int] = {}
        self.evicted: dict[int, int] = {}
        self.covered_from: float = math.inf
        self.listeners: set[Listener[Any]] = set()
        self.missed = 0
        self.disconnected = 0
        self.open = False
        self.ended: asyncio.Event = asyncio.Event()
        self.failure: BaseException | None = None

    async def append(self, entry: _Entry) -> None:
        """Add an event, and evict the oldest ones that no listener with the policy `wait` needs."""
        size = len(entry.event.data)
        while self.entries and (len(self.entries) >= self._limit or self.bytes + size > self._limit_bytes):
            if any(listener.is_at(self.first) for listener in self.listeners):
                await asyncio.sleep(0)  # a burst of events must not outrun listeners that keep up
            while any(listener.needs(self.first) for listener in self.listeners):
                self._room = asyncio.get_running_loop().create_future()
                await self._room
            oldest = self.entries.pop(self.first)
            self.first += 1
            self.bytes -= len(oldest.event.data)
            if oldest.offset is not None:
                self.evicted[oldest.partition] = oldest.offset
        self.entries[self.next] = entry
        self.next += 1
        self.bytes += size
        self.wake()

    async def wait(self) -> None:
        """Wait for the next event, or for the end."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        """Wake all waiters for an event."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            settle(waiter)

    def moved(self) -> None:
        """Wake `append`, which may wait for a listener that has moved on or is closed."""
        settle(self._room)

    def covers(self, offsets: dict[int, int], received: float) -> bool:
        """Return whether the stream is complete since a position, which was reached at a time (UTC seconds)."""
        return self.covered_from <= received - self._lag or all(
            self.started.get(partition, math.inf) <= offset + 1 for partition, offset in offsets.items()
        )


class Broadcast(Generic[T]):
    """Reads a stream and hands its events to any number of listeners.

    An async context manager: entering it opens the stream, leaving it closes the stream and ends the listeners.

    Args:
        stream: A stream that is not open yet, such as `wme.realtime.articles()`. Its records must have an `event` with
            partition and offset, or `position` must say where they are.
        backlog: Number of events to keep for listeners that are behind or reconnect.
        backlog_bytes: Bytes of their JSON at most.
        encode: Encodes a record as JSON.
        position: Returns the partition and offset of a record; the offset is None for a record without one.
        lag: Seconds by which the delivery of events may lag behind their publication; older events of other partitions
            are expected within this time. It decides whether the first event of a listener that resumes after a restart
            of the hub is `incomplete`.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: A size below 1.
    """

    def __init__(
        self,
        stream: Stream[T],
        *,
        backlog: int = 10_000,
        backlog_bytes: int = 64 * 1024 * 1024,
        encode: Callable[[T], bytes] = msgspec.json.encode,
        position: Callable[[T], tuple[int, int | None]] | None = None,
        lag: float = 60.0,
    ) -> None:
        check_numbers(whole=True, optional=False, minimum=1, backlog=backlog, backlog_bytes=backlog_bytes)
        check_numbers(optional=False, minimum=0, unit="seconds", lag=lag)
        check_functions(encode=encode, position=position)
        self._stream = stream
        self._backlog = _Backlog(backlog, backlog_bytes, lag)
        self._encode = encode
        self._position = position or _position_of
        self._positions: dict[int, str] = {}  # partition and last offset, as in an id, for each partition
        self._task: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Broadcast {'open' if self._backlog.open else 'closed'}, {len(self._backlog.listeners)} listeners>"

    async def __aenter__(self) -> Self:
        """Open the stream and start reading it.

        Raises:
            RuntimeError: The hub was entered before.
            WMEError: The stream cannot be opened.
        """
        if self._task is not None:
            raise RuntimeError("a Broadcast is entered once; make another one")
        await self._stream.__aenter__()
        starts = (position.published for position in self._stream.positions.values())
        self._backlog.covered_from = max((start.timestamp() for start in starts if start is not None), default=math.inf)
        self._backlog.open = True
        self._task = asyncio.create_task(self._read(), name="wme relay")
        self._watcher = asyncio.create_task(self._end_with_server(), name="wme relay: end with the server")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream. Iterating over a listener ends."""
        if not self._backlog.open:
            return
        self._backlog.open = False
        self.end_listeners()
        assert self._task is not None
        assert self._watcher is not None
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._stream.aclose)
            stack.push_async_callback(end_task, self._watcher)
            stack.push_async_callback(end_task, self._task, again=True)

    def end_listeners(self) -> None:
        """End all listeners, and those to come: a server at its shutdown would wait for their responses.

        Under uvicorn it happens by itself. For aiohttp, call it in `on_shutdown` of the application.
        """
        self._backlog.ended.set()
        self._backlog.wake()

    async def wait_ended(self) -> None:
        """Wait until the listeners end: by `end_listeners`, because the hub is closed, or uvicorn shuts down."""
        await self._backlog.ended.wait()

    @property
    def failure(self) -> BaseException | None:
        """The exception that ended the stream, for the health check of a web service; None while it runs."""
        return self._backlog.failure

    def listen(
        self,
        *,
        last_event_id: str | None = None,
        replay: bool = False,
        where: Callable[[T], bool] | None = None,
        slow: SlowPolicy = "drop",
    ) -> "Listener[T]":
        """Return a listener: an async context manager and an async iterator of events.

        Args:
            last_event_id: The `id` of the last event that the client received, from this hub or an earlier one. The
                events after it that the backlog has come first.
            replay: Begin with the whole backlog if `last_event_id` is None, instead of with the next event.
            where: Selects records. The event loop calls it for each of them.
            slow: The policy for a listener that falls behind the backlog.

        Raises:
            RuntimeError: The hub is not open.
            ValueError: An unknown policy.
            TypeError: `where` is not a function.
        """
        if slow not in ("drop", "disconnect", "wait"):
            raise ValueError(f"slow must be 'drop', 'disconnect' or 'wait', not {slow!r}")
        check_functions(where=where)
        if not self._backlog.open:
            raise RuntimeError("the hub is not open: use `async with Broadcast(...) as hub`")
        return Listener(self._backlog, last_event_id, replay=replay, where=where, slow=slow)

    async def sse(
        self,
        last_event_id: str | None = None,
        *,
        where: Callable[[T], bool] | None = None,
        slow: SlowPolicy = "disconnect",
        keep_alive: float = 15.0,
    ) -> AsyncGenerator[bytes, None]:
        """Yield events as server-sent events, for the body of a streaming response.

        Events that have come already, as of a backlog, are yielded in chunks of some 64 KB, and other tasks run after
        each. A comment is sent after `keep_alive` seconds of silence, so that proxies keep the connection, and a write
        to a client that has disconnected fails. The body ends when the hub is closed or fails, or uvicorn shuts down,
        and a browser reconnects.

        Args:
            last_event_id: The request's `Last-Event-ID` header.
            where: Selects records.
            slow: The policy for a listener that falls behind the backlog; a browser reconnects and resumes.
            keep_alive: Seconds.
        """
        yield b"retry: %d\n\n" % _RETRY
        async with self.listen(last_event_id=last_event_id, where=where, slow=slow) as events:
            while True:
                try:
                    async with asyncio.timeout(keep_alive) as silence:
                        chunk = await events.next_chunk()
                except TimeoutError:
                    if not silence.expired():
                        raise
                    yield b": keep-alive\n\n"
                except (StopAsyncIteration, StreamError):
                    return
                else:
                    yield chunk

    def statistics(self) -> BroadcastStatistics:
        """Return the counters."""
        backlog = self._backlog
        return BroadcastStatistics(
            events=backlog.next,
            listeners=len(backlog.listeners),
            backlog=len(backlog.entries),
            backlog_bytes=backlog.bytes,
            missed=backlog.missed,
            disconnected=backlog.disconnected,
        )

    async def _read(self) -> None:
        failure: BaseException = StreamError("the stream has ended")
        try:
            async for item in self._stream:
                await self._backlog.append(self._entry(item))
        except asyncio.CancelledError as error:
            if is_cancelling():
                raise
            failure = error  # from within, such as from `encode` or a store
        except Exception as error:  # noqa: BLE001 - every listener and the health check report it
            failure = error
        # A browser only reconnects, so a service that nobody checks would otherwise say nothing.
        _logger.error("the stream behind the relay has ended: %s", failure)
        self._backlog.failure = failure
        self._backlog.wake()

    async def _end_with_server(self) -> None:
        await wait_server_shutdown()
        self.end_listeners()

    def _entry(self, item: T) -> _Entry:
        partition, offset = self._position(item)
        identity = None
        if offset is not None:
            self._positions[partition] = f"{partition}:{offset}"
            self._backlog.started.setdefault(partition, offset)
            identity = f"{int(_clock.now())};{','.join(self._positions.values())}"
        return _Entry(BroadcastEvent(item=item, data=self._encode(item), id=identity), partition, offset)


class Listener(Generic[T]):
    """One listener of a `Broadcast`: an async context manager and an async iterator of `BroadcastEvent`.

    For one task at a time. Iterating ends when the hub or the listener is closed or the server shuts down, and raises
    `StreamError` when the stream has failed and `SlowListener` when this listener was too slow for its policy.

    Attributes:
        last_event_id: The `id` of the last event that the listener returned, for resuming.
    """

    def __init__(
        self,
        backlog: _Backlog,
        last_event_id: str | None,
        *,
        replay: bool,
        where: Callable[[T], bool] | None,
        slow: SlowPolicy,
    ) -> None:
        self.last_event_id = last_event_id
        self._backlog = backlog
        self._where = where
        self._slow = slow
        self._next = backlog.first if replay or last_event_id else backlog.next
        self._offsets: dict[int, int] = {}
        self._incomplete = False
        self._missed = 0
        self._turn = 0  # events since other tasks could run
        self._state: Literal["new", "open", "closed"] = "new"
        if last_event_id:
            self._resume(last_event_id)

    def __repr__(self) -> str:
        return f"<Listener {self._state}, {self._backlog.next - self._next} events behind>"

    async def __aenter__(self) -> Self:
        if self._state == "new":
            self._state = "open"
            self._backlog.listeners.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; leaving the `async with` block does the same."""
        self._state = "closed"
        self._backlog.listeners.discard(self)
        self._backlog.moved()
        self._backlog.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BroadcastEvent[T]:
        """Return the next event.

        Raises:
            SlowListener: The listener has fallen behind the backlog, and its policy is `disconnect`.
            StreamError: The stream has failed.
            RuntimeError: The listener was never entered.
        """
        if self._state == "new":
            raise RuntimeError("the listener is not open: use `async with hub.listen() as events`")
        backlog = self._backlog
        while self._state == "open" and not backlog.ended.is_set():
            event = self._take()
            if event is not None:
                return event
            if self._turn >= _TURN:
                self._turn = 0
                await asyncio.sleep(0)
            elif backlog.failure is not None:
                raise StreamError(f"the stream behind the relay has ended: {backlog.failure}") from backlog.failure
            else:
                self._turn = 0
                await backlog.wait()
        raise StopAsyncIteration

    async def next_chunk(self) -> bytes:
        """Return the next event, and those after it that have come already, as server-sent events of some 64 KB.

        Raises:
            BaseException: As for iterating.
        """
        event: BroadcastEvent[T] | None = await anext(self)
        events, size = [], 0
        while event is not None:
            events.append(event.sse())
            size += len(events[-1])
            if size >= _CHUNK:
                self._turn = _TURN
            event = self._take()
        return b"".join(events)

    def is_at(self, number: int) -> bool:
        """Return whether the event with this sequence number is the next one for this listener."""
        return self._next == number

    def needs(self, first: int) -> bool:
        """Return whether the oldest event must stay in the backlog for this listener."""
        return self._slow == "wait" and self._next <= first

    def _take(self) -> BroadcastEvent[T] | None:
        """Return the next event that `where` selects, if there is one within a turn."""
        backlog = self._backlog
        if self._next < backlog.first:
            self._fall_behind(backlog.first - self._next)
        while self._turn < _TURN:
            self._turn += 1
            entry = backlog.entries.get(self._next)
            if entry is None:
                break
            self._next += 1
            event: BroadcastEvent[T] = entry.event
            is_new = entry.offset is None or entry.offset > self._offsets.get(entry.partition, -1)
            if is_new and (self._where is None or self._where(event.item)):
                backlog.moved()
                return self._marked(event)
        backlog.moved()
        return None

    def _marked(self, event: BroadcastEvent[T]) -> BroadcastEvent[T]:
        self.last_event_id = event.id or self.last_event_id
        if self._missed or self._incomplete:
            event = msgspec.structs.replace(event, missed=self._missed, incomplete=self._incomplete)
            self._missed, self._incomplete = 0, False
        return event

    def _fall_behind(self, count: int) -> None:
        backlog = self._backlog
        if self._slow == "disconnect":
            backlog.disconnected += 1
            self.close()
            raise SlowListener(f"the listener fell {count} events behind the backlog of the relay")
        self._missed += count
        backlog.missed += count
        self._next = backlog.first

    def _resume(self, last_event_id: str) -> None:
        backlog = self._backlog
        seconds, _, positions = last_event_id.partition(";")
        try:
            offsets = {int(p): int(o) for p, o in (position.split(":") for position in positions.split(","))}
            complete = backlog.covers(offsets, int(seconds))
        except (ValueError, OverflowError):  # not an id of a relay
            self._incomplete = True
            return
        self._offsets = offsets
        self._incomplete = not complete or any(
            offset > offsets.get(partition, -1) for partition, offset in backlog.evicted.items()
        )


def _position_of(item: Any) -> tuple[int, int | None]:
    event = getattr(item, "event", None)
    if event is None:
        raise TypeError(f"a {type(item).__name__} has no `event`: pass Broadcast a `position`")
    return event.partition or 0, event.offset
