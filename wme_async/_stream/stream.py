"""The stream of events as an asynchronous iterator: the object that users work with."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar

from wme_async._stream.backfill import Backfill, GapFiller
from wme_async._stream.committer import Committer
from wme_async._stream.connection import Settings, start_time
from wme_async._stream.decoder import SKIP, RunDecoder
from wme_async._stream.deliveries import Deliveries
from wme_async._stream.interruptions import InterruptionHandler
from wme_async._stream.options import Choose, StreamOptions, check_batch_limits
from wme_async._stream.partitions import Partitions
from wme_async._stream.receiver import Receiver
from wme_async._stream.record_types import EventLike, RecordType
from wme_async._stream.reports import StreamBadRecord, StreamEvent, StreamStatistics
from wme_async._stream.resume import StreamResource, partitions_of
from wme_async._stream.statistics import StatisticsCollector
from wme_async._tasks import wait_done
from wme_async._telemetry import log_fields
from wme_async._transport import Transport
from wme_async.errors import DecodeError
from wme_async.offsets import ClaimingStore, MemoryOffsets, OffsetStore, Position

logger: logging.Logger = logging.getLogger("wme_async.stream")

T = TypeVar("T")

_GRACE: Final = 5.0  # seconds for the last save, and for closing once its task has been cancelled


class StreamLifecycle(ABC):
    """How a stream opens, closes and reports, whether it reads all of its parts or those that it has leases of.

    Args:
        resource: The stream.
        options: The options, checked and complete.
        store: Where the positions are.
        grace: Seconds for closing once its task has been cancelled.
    """

    def __init__(
        self, resource: StreamResource, options: StreamOptions, store: OffsetStore, *, grace: float = _GRACE
    ) -> None:
        self.resource = resource
        self.key: str = f"{options['name']}/{resource.name}"
        """The name of its positions: that of the stream and of the resource, such as `default/articles`."""
        self._options = options
        self._store = store
        self._grace = grace
        self._choose: Choose | None = None
        self._state: Literal["new", "open", "closed"] = "new"

    def begin_with(self, choose: Choose) -> None:
        """Let a function choose the positions to begin with, for a sink that knows better how far it has got.

        Args:
            choose: Called with the partitions and the saved positions when the stream opens and its name is claimed; in
                a group, for each part when this member takes it. It returns the positions; partitions without one are
                read from `since`.

        Raises:
            RuntimeError: The stream was opened before.
        """
        if self._state != "new":
            raise RuntimeError("the positions are chosen before a stream is opened")
        self._choose = choose

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("a stream is opened once; make another one")
        self._state = "closed"  # until opening has succeeded
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(self._store, contextlib.AbstractAsyncContextManager):
                await stack.enter_async_context(self._store)
            await self._open(stack)
            self._stack = stack.pop_all()
        self._state = "open"
        return self

    @abstractmethod
    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to read; the stack undoes it if this fails."""

    @abstractmethod
    async def _close(self) -> None:
        """Save the positions, and close the stack."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state != "open":
            return
        self._state = "closed"
        # In a task of its own, so that a cancellation meanwhile does not leave half of it undone.
        closing = asyncio.create_task(self._close(), name=f"wme stream {self.key} closing")
        await wait_done(closing, grace=self._grace)
        if (failure := closing.exception()) is not None:
            if error is None:
                raise failure
            # The caller has to see the exception of the block, above all a cancellation.
            logger.error("closing the stream %r failed: %s", self.key, failure)
            error.add_note(f"closing the stream {self.key!r} failed as well: {failure}")

    async def aclose(self) -> None:
        """End the stream, save the positions and leave the group; leaving the `async with` block does the same."""
        await self.__aexit__(None, None, None)

    def _check_open(self) -> None:
        if self._state != "open":
            raise RuntimeError(f"the stream is {'not open: use `async with`' if self._state == 'new' else 'closed'}")

    def _notify(self, event: StreamEvent) -> None:
        on_event = self._options["on_event"]
        if on_event is not None:
            try:
                on_event(event)
            except Exception:
                # The stream continues without its observer.
                logger.exception("the on_event hook failed")


class Stream(StreamLifecycle, Generic[T]):
    """A stream of events that continues after a cut; and after a restart, if `offsets` outlives the process.

    ```python
    async with wme.realtime.articles(offsets=SQLiteOffsets("offsets.db")) as stream:
        async for article in stream:
            ...
    ```

    **Delivery.** Every event that the server still has is handed out, in order within its partition. Within one process
    each is handed out once. After a crash, those that were not saved as processed come again. An event counts as
    processed when the next one is requested (`commit="auto"`): the one in your hands when you leave the block comes
    again, unless you `ack` it. No position is saved ahead of that. For exactly once, save `positions` with the data.

    **Reconnecting.** A cut, a reset, a clean end, 5xx, 429, an expired token and silence all lead to another request,
    for ever, with growing random waits that start anew after every connection that brought an event. Only errors that
    another request cannot cure are raised, at once: 400, 403, 404, 422 with the server's message, and a rejected
    sign-in. With `retry` it ends earlier, with the last error; silence is then `IdleTimeout`.

    **Memory and speed.** Bytes that were received and not handed out are bounded by `max_buffer`, beyond which the
    socket is not read: a slow consumer slows the server. The stream has one consumer; distribute events behind it.

    Streams are made by `wme.realtime.articles` and `wme.realtime.wikidata`.

    Args:
        transport: Sends requests.
        resource: The stream.
        type: The type to decode into.
        options: The options, checked and complete.
        fields: Names in the server's spelling; None for everything. `event.*` is added.
        filters: Objects with `field` and `value`, in the server's spelling.
        keep: Returns whether a value is handed out, for filters that the server cannot apply. Positions move on past
            the others.
        backfill: Yields the records of an hour's batches, to fill gaps with.
        claims: What to claim in the store, below the name of the positions; by default the name itself.

    Raises:
        TypeError: msgspec cannot decode into the type.
    """

    def __init__(
        self,
        transport: Transport,
        resource: StreamResource,
        *,
        type: type[T],
        options: StreamOptions,
        fields: Iterable[str] | None = None,
        filters: Iterable[Mapping[str, Any]] | None = None,
        keep: Callable[[T], bool] | None = None,
        backfill: Backfill | None = None,
        claims: Iterable[str] | None = None,
    ) -> None:
        super().__init__(resource, options, options["offsets"] or MemoryOffsets())
        self.backfilled: bool = False
        """Whether the article handed out last came from an hourly batch, to fill a gap. Its event has no offset."""
        self.partitions: tuple[int, ...] = tuple(partitions_of(resource, options["parts"] or ()))
        """The partitions that it reads, in order."""
        self._transport = transport
        self._fields = None if fields is None else tuple(fields)
        self._filters = tuple(filters or ())
        self._keep = keep
        self._record_type = RecordType(type)
        self._filler = None if backfill is None else GapFiller(backfill, self._record_type, keep)
        self._claims = [self.key] if claims is None else [f"{self.key}/{claim}" for claim in claims]
        self._generator: AsyncGenerator[T] | None = None
        self._collecting = False

    def __repr__(self) -> str:
        return f"<Stream {self.key!r} {self._state}, {self._options['connections']} connections>"

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        if isinstance(self._store, ClaimingStore):
            for name in self._claims:
                await stack.enter_async_context(self._store.claim(name))
        connections = self._options["connections"]
        self._transport.pool.reserve(connections)
        stack.callback(self._transport.pool.reserve, -connections)
        await self._prepare()
        telemetry = self._transport.telemetry
        self._telemetry = None if telemetry is None else telemetry.stream(self.key)
        self._receiver.start(self._observe)

    async def _prepare(self) -> None:
        """Load the positions, and make the parts through which events pass."""
        options = self._options
        parts = tuple(options["parts"] or ())
        numbers = self.partitions
        saved = await self._store.load(self.key)
        positions = saved if self._choose is None else await self._choose(self.partitions, saved)
        resumed = any(number in positions for number in numbers)
        start = await start_time(self._transport, self.resource, options["since"], resumed=resumed)
        self._partitions = Partitions(
            numbers, positions, start=start, retention=self.resource.retention, filtered=bool(self._filters)
        )
        self._committer = Committer(self._store, self.key, self._partitions, notify=self._notify)
        # Unsaved, the start of a partition would be lost, and with it its first events while nobody reads.
        await self._committer.begin(saved)
        self._receiver = Receiver(
            self.key,
            parts,
            transport=self._transport,
            settings=Settings(
                resource=self.resource,
                options=options,
                fields=self._fields,
                filters=self._filters,
                start=start,
                notify=self._notify,
            ),
            partitions=self._partitions,
            committer=self._committer,
        )
        self._decoder: RunDecoder[T] = RunDecoder(
            self._record_type,
            self._partitions,
            keep=self._keep,
            remember=None if self._filler is None else self._filler.remember,
            skip_bad=options["on_bad_record"] == "skip",
            notify_bad=self._notify_bad,
        )
        self._handler = InterruptionHandler(
            self._decoder,
            self._filler,
            on_bad_record=options["on_bad_record"],
            on_gap=options["on_gap"],
            notify=self._notify,
            server_now=self._receiver.server_now,
        )
        self._deliveries = Deliveries(self._record_type, self._partitions, one_by_one=options["commit"] == "ack")
        self._statistics = StatisticsCollector(self._decoder, self._partitions, self._receiver.connections)

    def _observe(self) -> None:
        if self._telemetry is None:
            self._statistics.sample(self._transport.monotonic())
        else:
            self._telemetry(self._statistics_now())

    async def _close(self) -> None:
        self._observe()
        await self._receiver.stop()
        async with self._stack:
            # A generator that another task is iterating ends with that task.
            with contextlib.suppress(RuntimeError):
                if self._generator is not None:
                    await self._generator.aclose()
            with contextlib.suppress(RuntimeError):
                await self._handler.aclose()
            if self._options["commit"] != "manual":
                await self._committer.save_last(_GRACE)

    # Reading

    def __aiter__(self) -> AsyncIterator[T]:
        return self._events()

    def __anext__(self) -> Awaitable[T]:
        return self._events().__anext__()

    def _events(self) -> AsyncGenerator[T]:
        """Return the generator of events: always the same, so that another loop continues where the last one ended."""
        self._check_open()
        # A generator that was cancelled before its first step has ended without running.
        if self._generator is None or getattr(self._generator, "ag_frame", None) is None:
            self._generator = self._iterate()
        return self._generator

    async def _iterate(self) -> AsyncGenerator[T]:
        decoder, deliveries, handler = self._decoder, self._deliveries, self._handler
        by_number = self._partitions.by_number
        try:
            self._settle()
            while True:
                if deliveries.one_by_one:
                    for item, event in decoder.run.pairs:
                        deliveries.hand_out(item, event)
                        if item is not SKIP:
                            yield item
                else:
                    for item, event in decoder.run.pairs:
                        if item is not SKIP:
                            yield item
                        by_number[event.partition].processed = event
                while (spare := handler.spare) or handler.filling:
                    value = spare.popleft() if spare else await handler.next_backfilled()
                    if value is not None:
                        self.backfilled = True
                        yield value
                        self.backfilled = False
                await self._advance()
        finally:
            # After an error the next request for an event makes a new generator; its state is outside of it.
            self._generator = None

    def batches(
        self, max_items: int = 1000, max_wait: float = 1.0, max_bytes: int | None = None
    ) -> AsyncIterator[list[T]]:
        """Return an iterator of lists of events, for sinks that write many at once.

        A list counts as processed when the next one, or a single event, is requested. A cancellation while waiting for
        a list loses nothing: request it again. Events from batches (`backfilled`) come in lists of their own.

        Args:
            max_items: The maximum number of events in a list.
            max_wait: Seconds to wait for more after the first event; a list is never empty.
            max_bytes: Bytes of records as they were received, after which a list is not waited for any longer. The
                block of records that exceeds it still belongs to the list.

        Raises:
            TypeError: A limit is not a number.
            ValueError: A limit below 1 event or byte, or a negative time.
            RuntimeError: Another task is reading.
        """
        check_batch_limits(max_items, max_wait, max_bytes)
        self._check_open()
        return Batches(lambda: self._next_batch(max_items, max_wait, max_bytes))

    async def _next_batch(self, max_items: int, max_wait: float, max_bytes: int | None) -> list[T]:
        """Return the next list. If it ends early, for whatever reason, the next call continues with its events."""
        if self._collecting:
            raise RuntimeError("a stream is read by one task at a time")
        self._collecting = True
        batch: list[tuple[T, EventLike]] = []
        try:
            if self._generator is not None:
                # It iterates over the run that this takes from. If another task is iterating it, this raises.
                await self._generator.aclose()
            self._settle()
            await self._collect(batch, max_items, max_wait, max_bytes)
        except BaseException:
            self._decoder.put_back(batch)
            raise
        finally:
            self._collecting = False
        self._deliveries.hand_out_batch(batch)
        if not batch:
            self.backfilled = True
            spare = self._handler.spare
            return [spare.popleft() for _ in range(min(max_items, len(spare)))]
        return [item for item, _ in batch if item is not SKIP]

    async def _collect(
        self, batch: list[tuple[T, EventLike]], max_items: int, max_wait: float, max_bytes: int | None
    ) -> None:
        """Fill a batch; if it stays empty, there are spare values from hourly batches."""
        handler = self._handler
        size = 0
        deadline: float | None = None
        while True:
            count = self._deliveries.take(self._decoder.run, batch, max_items)
            if count >= max_items or (count and (handler.filling or self._decoder.interruptions)):
                return
            if count and max_bytes is not None and size >= max_bytes:
                return
            await handler.fill_spare(max_items)
            if handler.spare and not count:
                return
            if count and deadline is None:
                deadline = asyncio.get_running_loop().time() + max_wait
            try:
                async with asyncio.timeout_at(deadline) as timeout:
                    size += await self._advance()
            except TimeoutError:
                # Comparing the clock would be wrong: some event loops run a timer before its time.
                if not timeout.expired():
                    raise
                return

    def _settle(self) -> None:
        """Count the last list as processed, since the next value is requested."""
        self.backfilled = False
        self._deliveries.settle()

    async def _advance(self) -> int:
        """Decode the next run, handle the interruption behind the last one, or wait for a block.

        Returns:
            Bytes of the block whose records are decoded; 0 as long as it has more.
        """
        self._check_open()
        if self._receiver.failure is not None:
            raise self._receiver.failure
        if self._decoder.interruptions:
            await self._handler.handle()
            return 0
        if self._decoder.block is None:
            block = await self._receiver.next_block()
            if block is None:
                return 0
            self._decoder.begin(block)
            await self._receiver.yield_turn()
        if not self._decoder.decode():
            return 0
        block = self._decoder.end()
        self._receiver.buffer.finish(block)
        return block.size

    def _notify_bad(self, error: DecodeError) -> None:
        logger.warning("%s", error, extra=log_fields(error, stream=self.key))
        self._notify(StreamBadRecord(error=error))

    # Acknowledging

    @property
    def positions(self) -> dict[int, Position]:
        """How far each partition was processed; offset -1 if it has had no event yet.

        Store them in the transaction that stores the data, after `ack`, to have each event exactly once.
        """
        self._check_open()
        return self._partitions.positions()

    def ack(self, article: T) -> None:
        """Count an event as processed now.

        With `commit="ack"` in any order; otherwise it counts for those before it in its partition, too. Twice is not an
        error; an article from a gap's batches has no position and is ignored.

        Args:
            article: The very same object that was handed out, unless it has an event of its own.

        Raises:
            TypeError: It is not an event, such as a list of `batches`: call it for each of those in it.
            ValueError: It did not come from this stream, or too long ago to be known.
        """
        self._check_open()
        self._deliveries.acknowledge(article, self._decoder.run, backfilled=self.backfilled)

    def event_of(self, article: T) -> EventLike | None:
        """Return the event of an article in your hands: `partition`, `offset` and `date_published`, whatever its type.

        Args:
            article: The very same object that was handed out last, or one of the last list.

        Returns:
            The event; None if the article is not known, or comes from a gap's batches and has no offset.
        """
        self._check_open()
        return self._deliveries.event_of(article, self._decoder.run)

    async def commit(self) -> None:
        """Save the positions of the events processed so far; of the one in your hands only if you have called `ack`.

        Raises:
            Exception: Any exception of the store.
        """
        self._check_open()
        await self._committer.save()

    # Watching

    def server_now(self) -> datetime:
        """Return the server's clock, as far as its responses have told it: what `statistics` measures the lag by."""
        self._check_open()
        return self._receiver.server_now()

    def statistics(self) -> StreamStatistics:
        """Return counts, lag and the state of each partition, now."""
        self._check_open()
        return self._statistics_now()

    def _statistics_now(self) -> StreamStatistics:
        return self._statistics.collect(
            self._transport.monotonic(),
            self._receiver.server_now(),
            buffered=self._receiver.buffer.size,
            backfilled=self._handler.backfilled,
        )


class Batches(Generic[T]):
    """An iterator of lists. It is not a generator, which would end for good with an error or a cancelled wait.

    Args:
        next_batch: Returns the next list.
    """

    def __init__(self, next_batch: Callable[[], Awaitable[list[T]]]) -> None:
        self._next_batch = next_batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        return await self._next_batch()

    async def aclose(self) -> None:
        """Do nothing: all state belongs to the stream."""
