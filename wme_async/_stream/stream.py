"""The firehose as an asynchronous iterator: what users hold in their hands."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar

from wme_async._stream.arguments import Commit, OnBadRecord, OnGap, call, check_arguments, check_bounds, check_kinds
from wme_async._stream.backfill import Backfill, Filler
from wme_async._stream.committer import Keeper
from wme_async._stream.connection import FOR_EVER, Buffer, Settings, begin_at, make_connections
from wme_async._stream.decoder import SKIP, Bad, Gap, Lists, Runs
from wme_async._stream.events import StreamBadRecord, StreamEvent, StreamGap, StreamStatistics
from wme_async._stream.framing import MAX_RECORD, Framing
from wme_async._stream.partitions import Progress
from wme_async._stream.record_types import PlaceLike, Shape
from wme_async._stream.resume import StreamResource, check_aware, check_parts, deal, partitions_of
from wme_async._stream.statistics import Meter
from wme_async._tasks import WorkGroup, first_cause, wait_done
from wme_async._transport import Transport
from wme_async.errors import DecodeError, StreamError
from wme_async.offsets import ClaimingStore, MemoryOffsets, OffsetStore
from wme_async.offsets.protocol import Position
from wme_async.settings import Retry

__all__ = ["Stream"]

logger = logging.getLogger("wme_async.stream")

T = TypeVar("T")

_TICK: Final = 5.0
_GRACE: Final = 5.0  # seconds for the last save, and for closing once its task has been cancelled
_TURN: Final = 256 * 1024  # bytes that may be handed out before other tasks get their turn


class Stream(Generic[T]):
    """A stream of events that goes on where it was: after a cut, and after a restart if `offsets` outlives the process.

    ```python
    async with wme.realtime.articles(offsets=SQLiteOffsets("offsets.db")) as stream:
        async for article in stream:
            ...
    ```

    **What is promised.** Every event that the server still has is handed out, in order within its partition. Within one
    process none is handed out twice. After a crash, those that were not saved as processed come again. An event counts
    as processed when the next one is asked for (`commit="auto"`): the one in your hands when you leave the block comes
    again, unless you `ack` it. Nothing is ever saved ahead of that. For exactly once, save `positions` with the data.

    **How long it lasts.** It makes new connections for ever: a cut, a reset, a clean end, 5xx, 429, an expired token
    and silence are all answered by another request, with growing random waits that start anew after every connection
    that brought something. Only what cannot get better is raised, at once: 400, 403, 404, 422 with the server's words,
    and a refused sign-in. Give `retry` to have it end earlier, with the last error; silence is then `IdleTimeout`.

    **Memory and speed.** What was received and not handed out is bounded by `max_buffer`, beyond which the socket is
    not read: a slow consumer slows the server. The stream is for one consumer; share out events behind it.

    Args:
        transport: Sends requests.
        resource: Which stream.
        type: What to decode into: by default the resource's model. Any msgspec Struct (`fields` should then name what
            it has), `dict`, or `msgspec.Raw` for the bytes. Partition and offset are tracked also if it has no event.
        parts: Which parts of the stream, each once; None for all.
        connections: Over how many connections they are dealt out, 1 to the number of parts. The server allows each one
            50 events a second, scaled by its share of the parts, so more connections do not raise the total.
        since: Where partitions without a saved position begin: an aware datetime within the retention. By default half
            a minute ago, so that a clock that is a little ahead of the server's does no harm.
        fields: Names in the server's spelling; None for everything. `event.*` is added.
        filters: Objects with `field` and `value`, in the server's spelling.
        keep: Which values are wanted, for what the server cannot filter. The positions move on past the others.
        offsets: Where positions are kept; by default in memory, for this object alone.
        name: Of the reader, within the store. Positions are kept under `"<name>/<resource>"`.
        framing: `"ndjson"`, or `"sse"`, which costs a third more on small events and brings nothing more.
        on_bad_record: A record that does not decode is raised as `DecodeError` (asking for the next event goes on
            behind it), skipped and counted, or given to a function, plain or async; the position moves on once that
            has returned.
        on_gap: Missing events are logged, raised as `OffsetGap` (asking for the next event goes on), or told to a
            function, plain or async.
        idle_timeout: Seconds of silence after which a connection counts as dead and is replaced. There are no
            heartbeats, so silence of a narrow filter looks the same; being replaced costs it one request.
        commit: `"auto"`: see above. `"ack"`: only `ack` counts, in any order; a partition's position moves up to where
            everything is acknowledged. `"manual"`: as auto, but only `commit()` saves.
        commit_interval: Seconds between two saves.
        retry: When to give up; by default never.
        on_event: Told of connects, cuts, retries, gaps, bad records and saves, as frozen records.
        backfill: Yields the JSON records of an hour's batches. With it, what a gap lost is fetched from there as far as
            they have it and handed out, `backfilled` being true, before the stream goes on.
        max_buffer: Bytes received ahead of the consumer.
        max_record: Bytes above which a record counts as bad.

    Raises:
        ValueError: An argument that the server would refuse or misread.
        TypeError: An argument of a wrong type.
    """

    def __init__(
        self,
        transport: Transport,
        resource: StreamResource,
        *,
        type: type[T],
        parts: Iterable[int] | None = None,
        connections: int = 1,
        since: datetime | None = None,
        fields: Iterable[str] | None = None,
        filters: Iterable[Mapping[str, Any]] | None = None,
        keep: Callable[[T], bool] | None = None,
        offsets: OffsetStore | None = None,
        name: str = "default",
        framing: Framing = "ndjson",
        on_bad_record: OnBadRecord = "raise",
        on_gap: OnGap = "log",
        idle_timeout: float = 300.0,
        commit: Commit = "auto",
        commit_interval: float = 5.0,
        retry: Retry | None = None,
        on_event: Callable[[StreamEvent], None] | None = None,
        backfill: Backfill | None = None,
        max_buffer: int = 2 * 1024 * 1024,
        max_record: int = MAX_RECORD,
    ) -> None:
        self._store = MemoryOffsets() if offsets is None else offsets
        times = {"idle_timeout": idle_timeout, "commit_interval": commit_interval}
        check_arguments(
            choices={"framing": framing, "commit": commit, "on_bad_record": on_bad_record, "on_gap": on_gap},
            numbers={**times, "max_buffer": max_buffer, "max_record": max_record},
        )
        check_kinds(name=name, offsets=self._store, retry=retry, on_event=on_event)
        if since is not None:
            check_aware(since)  # its place in time can only be judged by the server's clock
        self.resource = resource
        self._parts = check_parts(resource, parts, connections)
        self._connections = connections
        self._since = since
        self._transport = transport
        self._key = f"{name}/{resource.name}"
        self._mode: Commit = commit
        self._commit_interval = commit_interval
        self._on_bad_record = on_bad_record
        self._on_gap = on_gap
        self._on_event = on_event
        self._keep = keep
        self._shape = Shape(type)
        self._filler = None if backfill is None else Filler(backfill, self._shape, keep)
        self._settings = Settings(
            resource=resource,
            framing=framing,
            fields=None if fields is None else tuple(fields),
            filters=tuple(filters or ()),
            idle_timeout=idle_timeout,
            max_record=max_record,
            retry=retry or FOR_EVER,
            tell=self._tell,
        )
        self._max_buffer = max_buffer
        self._meter = Meter()
        self._generator: AsyncGenerator[T] | None = None
        self._aside: AsyncGenerator[T | DecodeError] | None = None
        self._failure: BaseException | None = None
        self._backfilled = 0
        self._ready = 0
        self._collecting = False
        self._marks: dict[int, PlaceLike] = {}  # where the list that was handed out last brings the stream to
        self._spare: deque[T] = deque()  # from batches, for a list that is not full yet
        self._state: Literal["new", "open", "closed"] = "new"
        self.backfilled: bool = False
        """Whether the article handed out last came from an hourly batch, to fill a gap. Its event has no offset."""

    def __repr__(self) -> str:
        return f"<Stream {self._key!r} {self._state}, {self._connections} connections>"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("a stream is opened once; make another one")
        self._state = "closed"  # until it is open, and if it cannot be
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(self._store, ClaimingStore):
                await stack.enter_async_context(self._store.claim(self._key))
            self._transport.pool.reserve(self._connections)
            stack.callback(self._transport.pool.reserve, -self._connections)
            positions = await self._store.load(self._key)
            partitions = partitions_of(self.resource, self._parts)
            resumed = any(partition in positions for partition in partitions)
            start = await begin_at(self._transport, self.resource, self._since, resumed=resumed)
            kept, filtered = self.resource.retention, bool(self._settings.filters)
            self._progress = Progress(partitions, positions, start=start, retention=kept, filtered=filtered)
            self._keeper = Keeper(self._store, self._key, self._progress, tell=self._tell)
            # Without this, what a partition says for the first time while nobody reads would be lost.
            await self._keeper.begin(positions)
            self._buffer = Buffer(self._max_buffer)
            self._pool = make_connections(
                self._key,
                deal(self._parts, self._connections),
                transport=self._transport,
                settings=self._settings,
                progress=self._progress,
                start=start,
                buffer=self._buffer,
            )
            self._runs: Runs[T] = Runs(
                self._shape,
                self._progress,
                keep=self._keep,
                note=None if self._filler is None else self._filler.note,
                skip_bad=self._on_bad_record == "skip",
                tell_bad=self._tell_bad,
            )
            self._stack = stack.pop_all()
        # The connections live in a task of the stream's own: no scope is held across the user's block.
        self._task = asyncio.create_task(self._run(), name=f"wme stream {self._key}")
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state == "closed":
            return
        self._state = "closed"
        # In a task of its own, so that being cancelled meanwhile does not leave half of it undone.
        closing = asyncio.create_task(self._close(), name=f"wme stream {self._key} closing")
        await wait_done(closing, grace=_GRACE)
        if (failure := closing.exception()) is not None:
            if error is None:
                raise failure
            # What ended the block is what the caller has to see, above all a cancellation.
            logger.error("closing the stream %r failed: %s", self._key, failure)
            error.add_note(f"closing the stream {self._key!r} failed as well: {failure}")

    async def aclose(self) -> None:
        """End the stream and save the positions; leaving the `async with` block does the same."""
        if self._state == "open":
            await self.__aexit__(None, None, None)

    async def _close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        async with self._stack:
            for generator in (self._generator, self._aside):
                if generator is not None:
                    # One that is being iterated by another task ends with that.
                    with contextlib.suppress(RuntimeError):
                        await generator.aclose()
            if self._mode != "manual":
                await self._keeper.save_last(_GRACE)

    async def _run(self) -> None:
        try:
            async with WorkGroup() as tasks:
                for connection in self._pool:
                    tasks.start(connection.run(), name=f"wme connection {connection.number} of {self._key}")
                tasks.start(self._keep_time(), name=f"wme clock of {self._key}")
        except BaseExceptionGroup as group:
            self._failure = first_cause(group)
        except asyncio.CancelledError:
            self._failure = StreamError("the stream's task was cancelled")
            raise
        finally:
            self._buffer.wake()

    async def _keep_time(self) -> None:
        """Notice silence, take samples, and save."""
        last = saved = self._transport.monotonic()
        while True:
            await self._transport.sleep(min(_TICK, self._commit_interval))
            now = self._transport.monotonic()
            self._tick(now - last)
            last = now
            if self._mode != "manual" and now - saved >= self._commit_interval * 0.99:
                saved = now
                await self._keeper.save_periodically()

    def _tick(self, seconds: float) -> None:
        up = [p for each in self._pool if each.listening and not self._buffer.full for p in each.partitions]
        self._progress.tick(seconds, now=self._server_now(), connected=up)
        self._meter.sample(self._transport.monotonic(), self._runs)

    def _server_now(self) -> datetime:
        return datetime.fromtimestamp(self._transport.server_now("realtime"), UTC)

    # Iterating

    def __aiter__(self) -> AsyncIterator[T]:
        return self._events()

    def __anext__(self) -> Awaitable[T]:
        return self._events().__anext__()

    def _events(self) -> AsyncGenerator[T]:
        """Return the generator of events: always the same, so that a loop that was left can be taken up again."""
        self._check_open()
        # One that was cancelled before its first step has ended without ever having run.
        if self._generator is None or getattr(self._generator, "ag_frame", None) is None:
            self._generator = self._iterate()
        return self._generator

    def _check_open(self) -> None:
        if self._state != "open":
            what = "is not open: use `async with`" if self._state == "new" else "is closed"
            raise RuntimeError(f"the stream {what}")

    async def _iterate(self) -> AsyncGenerator[T]:
        runs, done = self._runs, self._progress.done
        explicit = self._mode == "ack"
        try:
            self._settle()
            while True:
                if explicit:
                    for item, event in runs.pairs:
                        runs.hand_out(item, event)
                        if item is not SKIP:
                            yield item
                else:
                    for item, event in runs.pairs:
                        if item is not SKIP:
                            yield item
                        done[event.partition] = event
                while self._spare or self._aside is not None:
                    found = self._spare.popleft() if self._spare else await self._next_aside()
                    if found is not None:
                        self.backfilled = True
                        yield found
                        self.backfilled = False
                await self._advance()
        finally:
            # After an error the next request for an event begins a new one; all that matters is kept outside.
            self._generator = None

    def batches(self, max_items: int = 1000, max_wait: float = 1.0) -> AsyncIterator[list[T]]:
        """Return an iterator of lists of events, for sinks that write many at once.

        A list counts as processed when the next one, or a single event, is asked for. Being cancelled while a list is
        awaited loses nothing: ask again. Events from batches (`backfilled`) come in lists of their own.

        Args:
            max_items: At most so many.
            max_wait: Seconds to wait for more after the first; a list is never empty.

        Raises:
            TypeError: A bound is no number.
            ValueError: A bound below 1 event, or a negative time.
            RuntimeError: Another task is reading.
        """
        check_bounds(max_items, max_wait)
        self._check_open()
        return Lists(lambda: self._collect(max_items, max_wait))

    async def _collect(self, max_items: int, max_wait: float) -> list[T]:
        """Return the next list. Whatever ends this early, what it had taken is there for the next to ask."""
        if self._collecting:
            raise RuntimeError("a stream is read by one task at a time")
        self._collecting = True
        taken: list[tuple[T, PlaceLike]] = []
        try:
            if self._generator is not None:
                # It holds the run that is taken from here; one that another task is iterating refuses.
                await self._generator.aclose()
            self._settle()
            await self._gather(taken, max_items, max_wait)
        except BaseException:
            self._runs.put_back(taken)
            raise
        finally:
            self._collecting = False
        if not taken:
            self.backfilled = True
            return [self._spare.popleft() for _ in range(min(max_items, len(self._spare)))]
        if self._mode == "ack":
            for item, event in taken:
                self._runs.hand_out(item, event)
        self._marks = {} if self._mode == "ack" else {event.partition: event for _, event in taken}
        self._runs.hold(taken)
        return [item for item, _ in taken if item is not SKIP]

    def _settle(self) -> None:
        """Count the list that was handed out last as processed: the next thing is asked for."""
        self.backfilled = False
        self._progress.done.update(self._marks)
        self._marks = {}
        self._runs.hold(())

    async def _gather(self, taken: list[tuple[T, PlaceLike]], max_items: int, max_wait: float) -> None:
        """Fill a list of events; or, if it stays empty, `_spare`."""
        deadline: float | None = None
        while True:
            count = self._runs.take(taken, max_items, explicit=self._mode == "ack")
            if count >= max_items or (count and (self._aside is not None or self._runs.stops)):
                return
            while self._aside is not None and len(self._spare) < max_items:
                found = await self._next_aside()
                if found is not None:
                    self._spare.append(found)
            if self._spare and not count:
                return
            if count and deadline is None:
                deadline = asyncio.get_running_loop().time() + max_wait
            try:
                async with asyncio.timeout_at(deadline) as timeout:
                    await self._advance()
            except TimeoutError:
                # Not the clock: some event loops run a timer before their clock has reached its time.
                if not timeout.expired():
                    raise
                return

    async def _advance(self) -> None:
        """Make the next run available, deal with what interrupted the last one, or wait for a block."""
        self._check_open()
        if self._failure is not None:
            raise self._failure
        runs = self._runs
        if runs.stops:
            await self._attend(runs.stops[0])
            return
        if runs.block is None:
            block = self._buffer.take()
            if block is None:
                self._ready = 0
                await self._buffer.wait()
                return
            runs.begin(block)
            self._ready += block.size
            if self._ready > _TURN:
                self._ready = 0
                await asyncio.sleep(0)
        if runs.decode():
            block = runs.end()
            assert block is not None
            self._buffer.decoded(block)

    # Interruptions

    async def _attend(self, stop: Bad | Gap) -> None:
        """Tell the user what interrupted the run; it stays until that has worked."""
        if isinstance(stop, Gap):
            await self._attend_to_gap(stop)
            return
        await call(self._on_bad_record, stop.error)
        self._runs.pass_over()
        if self._on_bad_record == "raise":
            raise stop.error

    async def _attend_to_gap(self, stop: Gap) -> None:
        if self._filler is not None and not stop.filled:
            stop.filled = True
            self._aside = self._filler.fill(stop.missing, now=self._server_now())
        elif stop.told:
            self._runs.accept()
        if stop.told:
            return
        gap = stop.missing.gap
        await call(self._on_gap, gap)
        stop.told = True
        self._tell(StreamGap(gap=gap))
        if self._on_gap == "raise":
            raise gap
        if self._on_gap == "log":
            logger.warning("%s", gap)

    async def _next_aside(self) -> T | None:
        """Return the next article of a gap's batches; None if there is none, or it did not decode."""
        assert self._aside is not None
        stops = self._runs.stops
        if stops and isinstance(stops[0], Bad):
            await self._attend(stops[0])
            return None
        try:
            found = await anext(self._aside)
        except StopAsyncIteration:
            self._aside = None
            return None
        except BaseException:
            # What was cut short is begun again; what was handed out is known and does not come twice.
            self._aside = None
            if stops and isinstance(stops[0], Gap):
                stops[0].filled = False
            raise
        if isinstance(found, DecodeError):
            self._runs.bad += 1
            stops.appendleft(Bad(found, None))
            return None
        self._backfilled += 1
        return found

    def _tell(self, event: StreamEvent) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                # An observer must not bring down what it observes.
                logger.exception("the on_event hook failed")

    def _tell_bad(self, error: DecodeError) -> None:
        logger.warning("%s", error)
        self._tell(StreamBadRecord(error=error))

    # Acknowledging

    @property
    def positions(self) -> dict[int, Position]:
        """How far each partition was processed; offset -1 where it has said nothing yet.

        Store them in the transaction that stores the data, after `ack`, to have each event exactly once.
        """
        self._check_open()
        return self._progress.positions()

    def ack(self, article: T) -> None:
        """Count an event as processed now.

        With `commit="ack"` in any order; else it counts for those before it in its partition, too. Twice is no error;
        an article from a gap's batches has no position and is passed over.

        Args:
            article: As it was handed out: the very same object, unless it has an event of its own.

        Raises:
            TypeError: It is no event, such as a list of `batches`: call it for each of those in it.
            ValueError: It did not come from this stream, or too long ago to be known.
        """
        self._check_open()
        event = self._runs.place_of(article)
        if event is None:
            self._shape.check(article)
            if not self.backfilled and self._mode != "ack" and not self._shape.direct:
                raise ValueError("this article is not from this stream, or too old to be known: ack it when you get it")
        elif self._mode == "ack":
            self._runs.forget(article)
            self._progress.acknowledge_one(event)
        else:
            self._progress.acknowledge(event)

    async def commit(self) -> None:
        """Save the positions of what was processed so far; the event in your hands only if you have called `ack`.

        Raises:
            Exception: What the store raises.
        """
        self._check_open()
        await self._keeper.save()

    # Watching

    def statistics(self) -> StreamStatistics:
        """Return counts, lag and the state of each partition, now."""
        self._check_open()
        return self._meter.read(
            self._transport.monotonic(),
            self._server_now(),
            runs=self._runs,
            progress=self._progress,
            connections=self._pool,
            buffered=self._buffer.size,
            backfilled=self._backfilled,
        )
