"""The reader of one leased part: a stream of its own, whose positions are saved while the lease is the last one."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from wme_async._stream.holdings import Holding
from wme_async._stream.reports import StreamStatistics
from wme_async._stream.stream import Stream
from wme_async.offsets import LeaseStore, Position

T = TypeVar("T")


class FencedStore:
    """The store of positions of a stream that reads one leased part.

    Attributes:
        error: The last exception of the store.
        closed: Whether nothing is saved any more.

    Args:
        store: The store of the group.
        owner: The owner of the lease.
        holding: The lease.
        on_lost: Called if another one has followed it.
    """

    def __init__(self, store: LeaseStore, owner: str, holding: Holding, on_lost: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self.closed = False
        self._store = store
        self._owner = owner
        self._holding = holding
        self._on_lost = on_lost

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the positions of all parts."""
        try:
            return await self._store.load(name)
        except Exception as error:
            self.error = error
            raise

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save positions; nothing after the lease was lost, and that is no error: the next owner continues."""
        if self.closed:
            return
        part, token = self._holding.part, self._holding.token
        try:
            held = await self._store.save_held(name, part, self._owner, token, positions)
        except Exception as error:
            self.error = error
            raise
        if not held:
            self.closed = True
            self._on_lost()


class PartReader(Generic[T]):
    """Takes events from the stream of one part, for the consumer of the group.

    Each event is acknowledged by itself (`commit="ack"`), so that more can be taken while the consumer has some.

    Attributes:
        holding: The lease.
        store: The positions.
        stream: The stream.
        items: Events that the consumer may have, and whether they come from an hourly batch.
        error: An exception that the consumer is to have after those.
        in_hand: The number of events that the consumer has and that do not count as processed yet.
        is_open: Whether the stream is open.
        ended: Whether nothing more may be handed out.
        lost: Whether the lease ended without being given back.
        final: The statistics of the stream when it was closed.

    Args:
        holding: The lease.
        store: The positions.
        stream: The stream; it is opened and closed here.
        on_news: Called when there are events or an error.
    """

    def __init__(
        self, holding: Holding, store: FencedStore, stream: Stream[T], *, on_news: Callable[["PartReader[T]"], object]
    ) -> None:
        self.holding = holding
        self.store = store
        self.stream = stream
        self.items: deque[tuple[T, bool]] = deque()
        self.error: Exception | None = None
        self.in_hand = 0
        self.is_open = False
        self.ended = False
        self.lost = False
        self.final: StreamStatistics | None = None
        self._on_news = on_news
        self._task: asyncio.Task[object] | None = None
        self._stopping = False
        self._room = asyncio.Event()

    async def run(self, limit: Callable[[], int], on_open: Callable[[], object]) -> None:
        """Open the stream, read until `stop`, and close it.

        Args:
            limit: Returns how many events to take ahead of the consumer.
            on_open: Called when the stream is open.

        Raises:
            Exception: The stream cannot be opened or closed.
        """
        if self._stopping:
            return
        self._task = asyncio.current_task()
        async with self.stream:
            self.is_open = True
            on_open()
            try:
                await self._read(limit)
            except asyncio.CancelledError:
                if not self._stopping or self._task is None:
                    raise
                self._task.uncancel()
            finally:
                self.ended = True
                self.is_open = False
                self.final = self.stream.statistics()

    async def _read(self, limit: Callable[[], int]) -> None:
        while not self._stopping:  # should its cancellation have been lost on the way
            try:
                items = await anext(self.stream.batches(limit(), 0.0))
            except Exception as error:
                if self.is_of_store(error):
                    self.store.closed = True  # it has failed several times
                    raise
                self.error = error
            else:
                self.items.extend((item, self.stream.backfilled) for item in items)
            self._on_news(self)
            while self.error is not None or len(self.items) >= limit():
                self._room.clear()
                await self._room.wait()

    def is_of_store(self, error: BaseException) -> bool:
        """Return whether an exception comes from the store of positions."""
        return error is self.store.error

    def take(self) -> tuple[T, bool]:
        """Take an event, and whether it comes from an hourly batch.

        Raises:
            Exception: What the stream raised after the last event. It then goes on behind it.
        """
        self._room.set()
        if self.items:
            return self.items.popleft()
        error, self.error = self.error, None
        assert error is not None
        raise error

    def ack(self, item: T) -> None:
        """Count an event as processed, unless its lease has ended since it was handed out."""
        if self.is_open:
            with contextlib.suppress(ValueError):  # it was handed out under an earlier lease
                self.stream.ack(item)

    def stop(self) -> None:
        """Hand nothing out any more, and close the stream, which saves its positions."""
        self.ended = True
        if not self._stopping:
            self._stopping = True
            if self._task is not None:
                self._task.cancel()

    def lose(self) -> None:
        """Hand nothing out any more, save nothing, and close the stream."""
        self.lost = True
        self.store.closed = True
        self.stop()
