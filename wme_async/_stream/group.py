"""A stream whose parts are shared among several processes by leases."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Final, Generic, Self, TypeVar

from wme_async import _clock
from wme_async._stream.group_deliveries import GroupDeliveries
from wme_async._stream.holdings import Holding
from wme_async._stream.lease_keeper import LeaseKeeper
from wme_async._stream.options import StreamOptions, check_batch_limits
from wme_async._stream.part_reader import FencedStore, PartReader
from wme_async._stream.record_types import EventLike, RecordType
from wme_async._stream.reports import StreamEvent, StreamLost, StreamStatistics, StreamTaken
from wme_async._stream.resume import StreamResource
from wme_async._stream.sharing import Group
from wme_async._stream.statistics import NOTHING_READ, added, past
from wme_async._stream.stream import Batches, Stream, StreamLifecycle
from wme_async._tasks import WorkGroup, first_cause
from wme_async._telemetry import Telemetry, log_fields
from wme_async.errors import StreamError
from wme_async.offsets import Position

logger: logging.Logger = logging.getLogger("wme_async.stream")

T = TypeVar("T")

_GRACE: Final = 10.0  # seconds for closing once its task has been cancelled
_AHEAD: Final = 64  # decoded events of each part ahead of the consumer
_NEVER: Final = 1e9  # seconds


class GroupStream(StreamLifecycle, Generic[T]):
    """A share of a stream: each part is read by one member of a group at a time, for as long as it holds a lease.

    ```python
    offsets = PostgresOffsets("postgresql://…")
    async with wme.realtime.articles(offsets=offsets, share="group") as stream:
        async for article in stream:
            ...
    ```

    It is used as a `Stream` is. Members that join get parts, those of members that leave or die are read by others
    within two leases, and when a part moves in an orderly way, nothing comes again.

    **Leases.** A lease is renewed three times in its time, by a task of the event loop: a consumer that blocks the loop
    for longer loses its parts. Before each event is handed out, this machine's own clock is asked whether the lease may
    have ended, so a machine that was asleep hands out nothing that another one reads already. An event that is in your
    hands then cannot be taken back: `token` is for sinks that have to reject it.

    **Delivery.** As with `Stream`, in order within a partition and at least once; what was not saved when a member died
    comes again, at another member. No position is overwritten by a member that no longer has the part.

    Streams are made by `wme.realtime.articles` and `wme.realtime.wikidata` with `share="group"`.

    Args:
        resource: The stream.
        options: The options, checked and complete.
        type: The type to decode into.
        open_stream: Returns a stream with these options.
        group: The options of the group.
        sleep: Waits for some seconds.
        telemetry: Observes parts that are lost.
    """

    def __init__(
        self,
        resource: StreamResource,
        options: StreamOptions,
        *,
        type: type[T],
        open_stream: Callable[..., Stream[T]],
        group: Group,
        sleep: Callable[[float], Awaitable[None]],
        telemetry: Telemetry | None = None,
    ) -> None:
        super().__init__(resource, options, group.store, grace=_GRACE)
        self.owner: str = group.owner
        """The owner of the leases in the store: another one for each stream."""
        self.backfilled: bool = False
        """Whether the article handed out last came from an hourly batch, to fill a gap. Its event has no offset."""
        self._open_stream = open_stream
        self._record_type = RecordType(type)
        self._leases = group.store
        self._sleep = sleep
        self._telemetry = telemetry
        self._lease = group.lease
        self._clock = _clock.uptime
        self.partitions: tuple[int, ...] = tuple(range(resource.partitions))
        """The partitions that the group reads, in order."""
        self._keeper = LeaseKeeper(
            self._leases,
            self.key,
            owner=self.owner,
            parts=resource.parts,
            ttl=self._lease,
            clock=self._clock,
            on_taken=self._begin,
            on_lost=self._lose,
            on_surplus=self._leave,
        )
        self._readers: dict[int, PartReader[T]] = {}
        self._tokens: dict[int, int] = {}
        self._queue: deque[PartReader[T]] = deque()  # readers that have something
        self._news = asyncio.Event()
        self._limit = _AHEAD
        self._deliveries = GroupDeliveries(
            self._readers,
            resource.partitions // resource.parts,
            one_by_one=options["commit"] == "ack",
            on_processed=self._stop_if_idle,
        )
        self._reading = False
        self._failure: BaseException | None = None
        self._close_failure: Exception | None = None
        self._store_failed = False
        self._past = NOTHING_READ
        self._closing = False
        self._done = False
        self._part_tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<GroupStream {self.key!r} {self._state}, parts {sorted(self._readers)}>"

    # Opening and closing

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        begun = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(begun), name=f"wme stream {self.key} leases")
        stack.push_async_callback(self._stop)
        await begun

    async def _close(self) -> None:
        await self._stack.aclose()
        if self._close_failure is not None:
            raise self._close_failure

    async def _stop(self) -> None:
        """Close the streams of all parts while their leases are still renewed, then leave the group."""
        self._closing = True
        self._keeper.takes = False
        tasks = set(self._part_tasks)
        for reader in list(self._readers.values()):
            self._stop_reader(reader)
        if tasks:
            await asyncio.wait(tasks)
        self._done = True
        self._task.cancel()
        await asyncio.wait({self._task})
        with contextlib.suppress(Exception):  # the leases end by themselves
            async with asyncio.timeout(_GRACE / 2):
                await self._keeper.leave()

    # Leases

    async def _run(self, begun: "asyncio.Future[None]") -> None:
        try:
            async with WorkGroup() as self._tasks:
                try:
                    pause = await self._keeper.beat()
                except Exception as error:  # noqa: BLE001  # it is raised where the stream is opened
                    if not begun.done():
                        begun.set_exception(error)
                    return
                if not begun.done():
                    begun.set_result(None)
                while not self._done:  # should its cancellation have been lost on the way
                    await self._sleep(pause)
                    pause = await self._beat()
        except BaseExceptionGroup as group:
            self._failure = first_cause(group)
        except asyncio.CancelledError:
            self._failure = StreamError("the stream's task was cancelled")
            raise
        finally:
            begun.cancel()
            self._news.set()

    async def _beat(self) -> float:
        try:
            pause = await self._keeper.beat()
        except Exception as error:  # noqa: BLE001  # of any store; the leases stay until their deadlines
            if not self._store_failed:
                message = "the leases of %r could not be renewed: %s; trying again"
                logger.warning(message, self.key, error, extra=log_fields(error, stream=self.key))
            self._store_failed = True
            for holding in list(self._keeper.holdings.by_part.values()):
                self._is_held(holding)
            return self._keeper.pause
        if self._store_failed:
            logger.warning("the leases of %r can be renewed again", self.key, extra=log_fields(stream=self.key))
        self._store_failed = False
        return pause

    def _is_held(self, holding: Holding) -> bool:
        """Return whether a lease has not ended by the clock of this machine; lose it if it has."""
        if self._clock() < holding.deadline:
            return True
        self._keeper.holdings.end(holding)
        self._lose(holding)
        return False

    def _begin(self, holding: Holding) -> None:
        """Start reading a part."""
        if self._closing:
            return
        store = FencedStore(self._leases, self.owner, holding, lambda: self._lose(holding))
        part = holding.part

        def notify(event: StreamEvent) -> None:
            if not reader.lost:
                self._notify(event)

        options: StreamOptions = {
            **self._options,
            "parts": (part,),
            "offsets": store,
            "on_event": notify,
            "max_buffer": max(1, self._options["max_buffer"] // self.resource.parts),
            "commit": "ack",
        }
        if self._options["commit"] == "manual":
            options["commit_interval"] = _NEVER
        stream = self._open_stream(options=options)
        if self._choose is not None:
            stream.begin_with(self._choose)
        reader = PartReader(holding, store, stream, on_news=self._enqueue)
        self._readers[part] = reader
        self._tokens[part] = holding.token
        task = self._tasks.create_task(self._read(reader), name=f"wme stream {self.key} part {part}")
        self._part_tasks.add(task)
        task.add_done_callback(self._part_tasks.discard)

    async def _read(self, reader: PartReader[T]) -> None:
        """Read a part until its lease ends, and give it back unless it was lost."""
        holding = reader.holding
        try:
            await reader.run(
                lambda: self._limit,
                lambda: self._notify(StreamTaken(part=holding.part, token=holding.token)),
            )
        except Exception as error:
            if not reader.is_of_store(error):
                raise
            logger.info("part %d of %r: %s", holding.part, self.key, error, extra=log_fields(error, stream=self.key))
            if self._closing:
                self._close_failure = error
        finally:
            self._end(reader)
            if reader.final is not None:
                self._past = added([self._past, past(reader.final)])
            if not reader.lost:
                with contextlib.suppress(Exception):  # it is given back at the next heartbeat, or ends by itself
                    await self._keeper.give(holding)

    def _leave(self, holding: Holding) -> None:
        """Give a part back as soon as the consumer has nothing of it in hand, but not later than a lease from now."""
        reader = self._readers.get(holding.part)
        if reader is not None and not self._stop_if_idle(reader):
            asyncio.get_running_loop().call_later(self._lease, self._stop_reader, reader)

    def _stop_if_idle(self, reader: PartReader[T]) -> bool:
        idle = reader.holding.leaving and not reader.in_hand
        if idle:
            self._stop_reader(reader)
        return idle

    def _stop_reader(self, reader: PartReader[T]) -> None:
        if self._options["commit"] == "manual":
            reader.store.closed = True  # only `commit` saves
        reader.stop()

    def _lose(self, holding: Holding) -> None:
        """Stop reading a part at once: another member may read it already."""
        reader = self._readers.get(holding.part)
        if reader is not None and reader.holding is holding:
            reader.lose()
            self._end(reader)

    def _end(self, reader: PartReader[T]) -> None:
        holding = reader.holding
        if self._readers.get(holding.part) is not reader:
            return
        del self._readers[holding.part]
        self._deliveries.forget(reader)
        facts = log_fields(stream=self.key, part=holding.part, token=holding.token)
        logger.info("part %d of %r is %s", holding.part, self.key, "lost" if reader.lost else "given back", extra=facts)
        if self._telemetry is not None and reader.lost:
            self._telemetry.lease_lost(self.key, holding.part)
        self._notify(StreamLost(part=holding.part, token=holding.token, given_back=not reader.lost))

    @property
    def parts(self) -> tuple[int, ...]:
        """The parts that this member reads now, in order."""
        return tuple(sorted(self._readers))

    def token(self, part: int) -> int:
        """Return the fencing token of this member's last lease of a part.

        Each owner of a part has a higher token than the one before. A sink that keeps the highest token of each part,
        and rejects writes with a lower one, takes nothing from a member that was overtaken without knowing it.

        Args:
            part: The part of an article: `article.event.partition // 5`.

        Raises:
            ValueError: This member never had the part.
        """
        if part not in self._tokens:
            raise ValueError(f"this member of {self.key!r} never had part {part!r}; it has {list(self.parts)}")
        return self._tokens[part]

    # Reading

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        (item,) = await self._take(1, _AHEAD, 0.0)
        return item

    def batches(self, max_items: int = 1000, max_wait: float = 1.0) -> AsyncIterator[list[T]]:
        """Return an iterator of lists of events, for sinks that write many at once.

        A list counts as processed when the next one, or a single event, is requested. A cancellation while waiting for
        a list loses nothing: request it again. Events from batches (`backfilled`) come in lists of their own.

        Args:
            max_items: The maximum number of events in a list.
            max_wait: Seconds to wait for more after the first event; a list is never empty.

        Raises:
            TypeError: A limit is not a number.
            ValueError: A limit below 1 event, or a negative time.
            RuntimeError: Another task is reading.
        """
        check_batch_limits(max_items, max_wait)
        self._check_open()
        return Batches(lambda: self._take(max_items, max_items, max_wait))

    async def _take(self, limit: int, ahead: int, max_wait: float) -> list[T]:
        """Return the next events. If it ends early, for whatever reason, the next call continues with them.

        Args:
            limit: The maximum number of events.
            ahead: How many events to take from each part ahead of this consumer.
            max_wait: Seconds to wait for more after the first.
        """
        self._check_open()
        if self._reading:
            raise RuntimeError("a stream is read by one task at a time")
        self._reading = True
        self._limit = ahead
        taken: list[tuple[PartReader[T], T, bool]] = []
        try:
            self._settle()
            while not taken:
                await self._collect(taken, limit, max_wait)
                # Time has passed since the first of them.
                taken[:] = [entry for entry in taken if self._may_hand_out(entry[0])]
        except BaseException:
            for reader, item, backfilled in reversed(taken):
                reader.items.appendleft((item, backfilled))
                self._enqueue(reader)
            raise
        finally:
            self._reading = False
        for reader, item, self.backfilled in taken:
            self._deliveries.hand_out(reader, item)
        return [item for _, item, _ in taken]

    async def _collect(self, taken: list[tuple[PartReader[T], T, bool]], limit: int, max_wait: float) -> None:
        """Append events until there are enough, or no more of the same kind have come in time."""
        deadline: float | None = None
        while len(taken) < limit:
            reader = self._next_reader()
            if reader is None:
                if taken and deadline is None:
                    deadline = asyncio.get_running_loop().time() + max_wait
                elif not taken and self._failure is not None:
                    raise self._failure
                if not await self._wait(deadline):
                    return
            elif taken and (not reader.items or reader.items[0][1] is not taken[0][2]):
                return  # an error, or an event of the other kind, comes next time
            else:
                taken.append((reader, *reader.take()))

    def _next_reader(self) -> PartReader[T] | None:
        """Return a reader that has events, or an error, to hand out."""
        while self._queue:
            reader = self._queue[0]
            if (reader.items or reader.error is not None) and self._may_hand_out(reader):
                return reader
            self._queue.popleft()
        return None

    def _may_hand_out(self, reader: PartReader[T]) -> bool:
        return not reader.ended and not reader.holding.leaving and self._is_held(reader.holding)

    def _enqueue(self, reader: PartReader[T]) -> None:
        """Note that a reader has something to hand out."""
        if reader not in self._queue:
            self._queue.append(reader)
        self._news.set()

    async def _wait(self, deadline: float | None) -> bool:
        """Wait until a reader may have something, and return whether that was before the deadline."""
        self._news.clear()
        try:
            async with asyncio.timeout_at(deadline) as timeout:
                await self._news.wait()
        except TimeoutError:
            # Comparing the clock would be wrong: some event loops run a timer before its time.
            if not timeout.expired():
                raise
            return False
        return True

    def _settle(self) -> None:
        """Count what was handed out last as processed, since more is requested; then parts may be given back."""
        self.backfilled = False
        self._deliveries.settle()

    # Acknowledging

    @property
    def positions(self) -> dict[int, Position]:
        """How far each partition was processed, of the parts that this member reads now; offset -1 without an event."""
        self._check_open()
        return {
            number: position
            for reader in self._readers.values()
            if reader.is_open
            for number, position in reader.stream.positions.items()
        }

    def ack(self, article: T) -> None:
        """Count an event as processed now.

        With `commit="ack"` in any order; otherwise it counts for those before it in its partition, too. Twice is not an
        error, nor is an event of a part that was lost meanwhile: another member has it again.

        Args:
            article: The very same object that was handed out, unless it has an event of its own.

        Raises:
            TypeError: It is not an event, such as a list of `batches`: call it for each of those in it.
        """
        self._check_open()
        event = getattr(article, "event", None) if self._record_type.has_position else None
        place = None if event is None or event.offset is None else (event.partition, event.offset)
        if not self._deliveries.acknowledge(article, place) and place is None:
            self._record_type.check_value(article)

    def event_of(self, article: T) -> EventLike | None:
        """Return the event of an article in your hands, as `Stream.event_of` does.

        Args:
            article: The very same object that was handed out last, or one of the last list.

        Raises:
            RuntimeError: Its part was lost meanwhile.
        """
        self._check_open()
        return self._deliveries.event_of(article)

    async def commit(self) -> None:
        """Save the positions of the events processed so far; of the one in your hands only if you have called `ack`.

        Nothing is saved for a part that was lost.

        Raises:
            Exception: Any exception of the store.
        """
        self._check_open()
        for reader in list(self._readers.values()):
            if reader.is_open:
                await reader.stream.commit()

    # Watching

    def server_now(self) -> datetime:
        """Return the server's clock, as far as the streams of the parts know it."""
        self._check_open()
        times = [reader.stream.server_now() for reader in self._readers.values() if reader.is_open]
        return max(times, default=_clock.utc_now())

    def statistics(self) -> StreamStatistics:
        """Return the counts of this member since it was opened, and the state of the partitions that it reads now."""
        self._check_open()
        return added([self._past, *(reader.stream.statistics() for reader in self._readers.values() if reader.is_open)])
