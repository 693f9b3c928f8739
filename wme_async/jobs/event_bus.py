"""Events on their way to any number of watchers, each at its own speed, none of whom can hold up the others.

The position of a watcher is the number of the last event it has seen. Events are in the database; the newest are also
in memory, so that watchers who keep up never read the database. Progress is not stored: a watcher who was away gets
the latest of each job. So a watcher costs the same whether it reads or not, and a slow one misses no change of state.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from itertools import takewhile
from typing import Final

from wme_async.jobs.model import Event, EventRow, JobProgress, ends_batch, event_of, job_id, utc
from wme_async.jobs.store import Store

_RECENT: Final = 2_000
_TICK: Final = 0.25
_PAGE: Final = 500


class EventBus:
    """Events on their way from the manager to its watchers.

    Args:
        store: The database with the older events.
        now: Returns UTC epoch seconds.

    Attributes:
        last: The id of the newest event.
        closed: Every watch has ended, or ends.
    """

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self.last: int = 0
        self.closed: bool = False
        self._store = store
        self._now = now
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._wakers: dict[str | None, set[asyncio.Event]] = {}
        self._progress: dict[tuple[str, int], tuple[int, Event]] = {}
        self._unsent: dict[tuple[str, int], JobProgress] = {}
        self._changed = asyncio.Event()
        self._count = 0
        self._interrupted = False
        self._epoch = 0

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return sum(map(len, self._wakers.values()))

    def publish(self, rows: Iterable[EventRow]) -> None:
        """Pass on events that were stored, in the order of their ids."""
        batches: set[str | None] = {None}
        for row in rows:
            # One object for all watchers, by which they can recognise the same event.
            self._recent.append(event_of(row))
            self.last = row.id
            batches.add(row.batch_id)
        self._wake(batches)

    def progress(self, batch_id: str, position: int, progress: JobProgress | None) -> None:
        """Note the progress of a job, which watchers get a few times a second. None: it no longer runs."""
        key = (batch_id, position)
        if progress is None:
            self._unsent.pop(key, None)
            self._progress.pop(key, None)
        else:
            self._unsent[key] = progress
            self._changed.set()

    async def run(self) -> None:
        """Pass progress on until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            at = utc(self._now())
            for key, progress in self._unsent.items():
                self._count += 1
                event = Event(kind="progress", batch_id=key[0], job_id=job_id(*key), at=at, progress=progress)
                self._progress[key] = (self._count, event)
            batches: set[str | None] = {None, *(batch_id for batch_id, _ in self._unsent)}
            self._unsent.clear()
            self._wake(batches)
            await asyncio.sleep(_TICK)

    def end_streams(self) -> None:
        """End the watches that have a beat, and no others."""
        self._epoch += 1
        self._wake(self._wakers)

    def interrupt(self) -> None:
        """Wake every watch once with an empty group: some batches will not continue."""
        self._interrupted = True
        self._wake(self._wakers)

    def close(self) -> None:
        """End every watch."""
        self.closed = True
        self._wake(self._wakers)

    def _wake(self, batches: Iterable[str | None]) -> None:
        for batch_id in batches:
            for waker in self._wakers.get(batch_id, ()):
                waker.set()

    async def watch(
        self, batch_id: str | None, after: int, *, beat: float | None = None, ended: bool = False
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """Yield the events after an event, in groups, until the batch ends or the manager closes.

        Args:
            batch_id: Only of this batch; None for all.
            after: The id of the last event that was seen.
            beat: Seconds of silence after which an empty group is yielded; None for never.
            ended: The batch has ended already, so that there is nothing to wait for.
        """
        waker, epoch = asyncio.Event(), self._epoch
        self._wakers.setdefault(batch_id, set()).add(waker)
        count, interrupted = 0, False
        try:
            while True:
                waker.clear()
                last = self.last
                events = await self._since(after, batch_id)
                if events:
                    after = events[-1].id or after
                    yield events
                    if batch_id is not None and any(map(ends_batch, events)):
                        return
                    if after < last and not self.closed:
                        continue
                # The events of other batches up to here are not looked at again.
                after = max(after, last)
                progress = [
                    (number, event)
                    for key, (number, event) in self._progress.items()
                    if number > count and batch_id in {None, key[0]}
                ]
                if progress:
                    count = max(number for number, _ in progress)
                    yield tuple(event for _, event in progress)
                if ended or self.closed or (beat is not None and epoch != self._epoch):
                    return
                if self._interrupted and not interrupted:
                    interrupted = True
                    yield ()
                    continue
                try:
                    async with asyncio.timeout(beat):
                        await waker.wait()
                except TimeoutError:
                    yield ()
        finally:
            self._wakers[batch_id].discard(waker)
            if not self._wakers[batch_id]:
                del self._wakers[batch_id]

    async def _since(self, after: int, batch_id: str | None) -> tuple[Event, ...]:
        if after >= self.last:
            return ()
        if self._recent and (self._recent[0].id or 0) <= after + 1:
            newest = takewhile(lambda event: (event.id or 0) > after, reversed(self._recent))
            return tuple([event for event in newest if batch_id in {None, event.batch_id}][::-1][:_PAGE])
        return tuple(map(event_of, await self._store.events(after=after, batch_id=batch_id, limit=_PAGE)))
