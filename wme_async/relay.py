"""One stream of the firehose, many listeners: the hub behind live pages, server-sent events and websockets.

    from wme_async.relay import Broadcast

    async with Client.from_env() as wme, Broadcast(wme.realtime.articles()) as hub:
        async with hub.listen() as events:
            async for event in events:
                print(event.item.name)

Listeners share one bounded backlog, in which each has its own place. A listener that is slow or frozen therefore costs
no memory and delays nobody else: it loses its place, and its policy says what happens then.

Each event has an `id` that names the last offset of every partition. A browser sends it back as `Last-Event-ID` when it
reconnects, also to another process, and receives what it has not had, as far as the backlog reaches. A hub that was
restarted fills its backlog from `since`:

    Broadcast(wme.realtime.articles(since=datetime.now(UTC) - timedelta(minutes=10)))
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar

import msgspec

from wme_async import _clock
from wme_async._arguments import check_functions
from wme_async._stream import Stream
from wme_async._tasks import wait_done
from wme_async.errors import StreamError

__all__ = ["Broadcast", "BroadcastEvent", "BroadcastStatistics", "Listener", "SlowListener", "SlowPolicy"]

T = TypeVar("T")

SlowPolicy: TypeAlias = Literal["drop", "disconnect", "wait"]
"""What happens to a listener that has fallen behind the backlog: it continues with the oldest event that is left and is
told how many it missed; or it ends with `SlowListener`; or the stream waits for it, and with it everybody else."""

_TURN: Final = 64  # events that a listener takes before other tasks get their turn
_RETRY: Final = 2000  # milliseconds after which a browser reconnects


class SlowListener(StreamError):
    """A listener with the policy `disconnect` has fallen behind the backlog."""


class BroadcastEvent(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """An event as a listener receives it.

    Attributes:
        item: The record, as the stream gave it. All listeners share it: do not change it.
        data: The record as JSON, encoded once for all listeners.
        id: The position after this event in all partitions, for `last_event_id`; None where the record has no offset,
            as those that fill a gap from the hourly batches.
        missed: Events that this listener has missed just before this one.
        incomplete: Whether events may be missing before this one that the backlog no longer had when the listener
            resumed. Their number is not known.
    """

    item: T
    data: bytes
    id: str | None
    missed: int = 0
    incomplete: bool = False

    def sse(self) -> bytes:
        """Return the event in the form of server-sent events.

        Missing events come before it as an event `missed` with `{"count": …}`, where null is an unknown number.
        """
        before = b""
        if self.missed or self.incomplete:
            count = b"null" if self.incomplete else str(self.missed).encode()
            before = b'event: missed\ndata: {"count":' + count + b"}\n\n"
        identity = b"" if self.id is None else b"id: " + self.id.encode() + b"\n"
        return before + identity + b"data: " + self.data + b"\n\n"


class BroadcastStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a hub is doing.

    Attributes:
        events: Events received from the stream.
        listeners: Listeners at the moment.
        backlog: Events in the backlog.
        backlog_bytes: Their bytes as JSON.
        missed: Events that listeners have missed, over all listeners so far.
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
    """The events that are kept, and all that the hub and its listeners know together.

    Attributes:
        entries: By sequence number, without holes.
        first: Sequence number of the oldest.
        next: Sequence number that the next event gets.
        bytes: JSON of all entries.
        started: The first offset of each partition.
        evicted: The last offset of each partition that is no longer kept.
        covered_from: The time from which on the stream was read, UTC seconds.
        listeners: Those that are open.
        missed: Events that listeners have missed.
        disconnected: Listeners that were too slow for their policy.
        open: Whether the hub is.
        failure: Why the stream has ended.
    """

    def __init__(self, limit: int, limit_bytes: int, lag: float) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._lag = lag
        self._waiters: list[asyncio.Future[None]] = []
        self._room: asyncio.Future[None] | None = None
        self.entries: dict[int, _Entry] = {}
        self.first = 0
        self.next = 0
        self.bytes = 0
        self.started: dict[int, int] = {}
        self.evicted: dict[int, int] = {}
        self.covered_from = math.inf
        self.listeners: set[Listener[Any]] = set()
        self.missed = 0
        self.disconnected = 0
        self.open = False
        self.failure: BaseException | None = None

    async def append(self, entry: _Entry) -> None:
        """Add an event, in place of the oldest ones where it is full; wait for listeners that it has to wait for."""
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
        """Wake all that wait for an event."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def moved(self) -> None:
        """Note that a listener has moved on or is gone: there may be room."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def covers(self, known: dict[int, int], received: float) -> bool:
        """Return whether the stream was read without a hole since a position was reached, at a time (UTC seconds)."""
        if all(self.started.get(partition, math.inf) <= offset + 1 for partition, offset in known.items()):
            return True
        return self.covered_from <= received - self._lag


class Broadcast(Generic[T]):
    """Reads a stream and hands its events to any number of listeners.

    An async context manager: entering it opens the stream, leaving it closes the stream and ends the listeners.

    Args:
        stream: A stream that is not open yet, such as `wme.realtime.articles()`. Its records must have an `event` with
            partition and offset, or `position` must say where they are.
        backlog: Events that are kept for listeners that are behind or come back.
        backlog_bytes: Bytes of JSON that are kept at most.
        encode: Makes the JSON of a record.
        position: Returns the partition and offset of a record; the offset is None for one that has none.
        lag: Seconds by which the delivery of events may lag behind their publication; older events of other partitions
            are expected within this time. It decides whether a listener that resumes after a restart of the hub is told
            that events may be missing.

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
        for name, value in (("backlog", backlog), ("backlog_bytes", backlog_bytes)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        check_functions(encode=encode, position=position)
        self._stream = stream
        self._backlog = _Backlog(backlog, backlog_bytes, lag)
        self._encode = encode
        self._position = position or _position_of
        self._places: dict[int, str] = {}  # each partition with its last offset, as an id has it
        self._task: asyncio.Task[None] | None = None

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
        begun = (position.published for position in self._stream.positions.values())
        self._backlog.covered_from = max((at.timestamp() for at in begun if at is not None), default=math.inf)
        self._backlog.open = True
        self._task = asyncio.create_task(self._read(), name="wme relay")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream. Iterating over a listener ends."""
        if not self._backlog.open:
            return
        self._backlog.open = False
        self._backlog.wake()
        assert self._task is not None
        self._task.cancel()
        try:
            await wait_done(self._task, on_cancel=self._task.cancel)
        finally:
            await self._stream.aclose()

    @property
    def failure(self) -> BaseException | None:
        """Why the stream has ended, for the health check of a web service; None while it runs."""
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
            last_event_id: The `id` of the last event that was received, from this hub or one before it. Events after
                it that the backlog has come first.
            replay: Begin with the whole backlog where there is no `last_event_id`, instead of with the next event.
            where: Selects records. It is called for each of them in the event loop.
            slow: What happens when the listener falls behind the backlog.

        Raises:
            RuntimeError: The hub is not open.
            ValueError: Another policy.
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
        """Give events in the form of server-sent events, for the body of a streaming response.

        A comment is sent after `keep_alive` seconds of silence, so that proxies keep the connection and a client that
        is gone is noticed. The body ends when the hub is closed or has failed; a browser then connects again.

        Args:
            last_event_id: The request's `Last-Event-ID` header.
            where: Which records are wanted.
            slow: What happens when the listener falls behind the backlog; a browser that is disconnected comes back
                and resumes.
            keep_alive: Seconds.
        """
        yield b"retry: %d\n\n" % _RETRY
        async with self.listen(last_event_id=last_event_id, where=where, slow=slow) as events:
            while True:
                try:
                    async with asyncio.timeout(keep_alive) as silence:
                        event = await anext(events)
                except TimeoutError:
                    if not silence.expired():
                        raise
                    yield b": keep-alive\n\n"
                except (StopAsyncIteration, StreamError):
                    return
                else:
                    yield event.sse()

    def statistics(self) -> BroadcastStatistics:
        """Return counts, now."""
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
        try:
            async for item in self._stream:
                await self._backlog.append(self._entry(item))
        except Exception as error:  # noqa: BLE001 - every listener and the health check report it
            self._backlog.failure = error
            self._backlog.wake()

    def _entry(self, item: T) -> _Entry:
        partition, offset = self._position(item)
        identity = None
        if offset is not None:
            self._places[partition] = f"{partition}:{offset}"
            self._backlog.started.setdefault(partition, offset)
            identity = f"{int(_clock.now())};{','.join(self._places.values())}"
        return _Entry(BroadcastEvent(item=item, data=self._encode(item), id=identity), partition, offset)


class Listener(Generic[T]):
    """One listener of a `Broadcast`: an async context manager and an async iterator of `BroadcastEvent`.

    For one task at a time. Iterating ends when the hub or the listener is closed, and raises `StreamError` when the
    stream has failed and `SlowListener` when this listener was too slow for its policy.

    Attributes:
        last_event_id: The `id` of the last event that was handed out, for resuming.
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
        self._known: dict[int, int] = {}
        self._incomplete = False
        self._missed = 0
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
        while self._state == "open" and backlog.open:
            event = self._take()
            if event is not None:
                return event
            if self._next < backlog.next:
                await asyncio.sleep(0)  # a turn is over, and nothing in it was wanted
            elif backlog.failure is not None:
                raise StreamError(f"the stream behind the relay has ended: {backlog.failure}") from backlog.failure
            else:
                await backlog.wait()
        raise StopAsyncIteration

    def is_at(self, number: int) -> bool:
        """Return whether the event with this sequence number is the next one for this listener."""
        return self._next == number

    def needs(self, first: int) -> bool:
        """Return whether the oldest event must be kept for this listener."""
        return self._slow == "wait" and self._next <= first

    def _take(self) -> BroadcastEvent[T] | None:
        """Return the next event that is wanted, if there is one within a turn."""
        backlog = self._backlog
        if self._next < backlog.first:
            self._fall_behind(backlog.first - self._next)
        for _ in range(_TURN):
            entry = backlog.entries.get(self._next)
            if entry is None:
                break
            self._next += 1
            event: BroadcastEvent[T] = entry.event
            if entry.offset is not None and entry.offset <= self._known.get(entry.partition, -1):
                continue
            if self._where is None or self._where(event.item):
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
        seconds, _, places = last_event_id.partition(";")
        try:
            known = {int(p): int(o) for p, o in (place.split(":") for place in places.split(","))}
            covered = backlog.covers(known, int(seconds))
        except ValueError:  # not an id of a relay
            self._incomplete = True
            return
        self._known = known
        lost = any(offset > known.get(partition, -1) for partition, offset in backlog.evicted.items())
        self._incomplete = lost or not covered


def _position_of(item: Any) -> tuple[int, int | None]:
    event = getattr(item, "event", None)
    if event is None:
        raise TypeError(f"a {type(item).__name__} has no `event`: give Broadcast a `position` that says where it is")
    return event.partition or 0, event.offset
