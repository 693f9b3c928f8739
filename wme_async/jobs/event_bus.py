"""Who is told what happened: any number of watchers, each at its own pace, none of whom can hold up the others.

A watcher is a number: the last event it has seen. Events are in the database; the newest are also here, so that
watchers who keep up never ask it. Progress is not kept: a watcher who was away finds the latest of each job. So
a watcher costs the same whether it reads or not, and a slow one misses nothing that matters.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from itertools import takewhile

from wme_async.jobs.model import Event, JobProgress, utc
from wme_async.jobs.rows import EventRow
from wme_async.jobs.states import FINAL
from wme_async.jobs.store import Store

__all__ = ["Hub", "event_of", "job_id"]

_RECENT = 2_000
_TICK = 0.25
_PAGE = 500


def job_id(batch_id: str, position: int) -> str:
    """Return the id of a job."""
    return f"job_{batch_id}_{position}"


def event_of(row: EventRow) -> Event:
    """Return a stored event as watchers see it."""
    kind = row.kind
    assert kind in {"batch", "job", "deleted"}
    return Event(
        kind=kind,  # type: ignore[arg-type]  # asserted above
        batch_id=row.batch_id,
        id=row.id,
        job_id=None if row.position is None else job_id(row.batch_id, row.position),
        status=row.status,
        at=utc(row.at),
        error=row.error,
    )


def _ends(event: Event) -> bool:
    return event.job_id is None and (event.kind == "deleted" or event.status in FINAL)


class Hub:
    """Events on their way from the manager to its watchers.

    Args:
        store: Where older events are.
        now: Gives UTC epoch seconds.
    """

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._waking: dict[str | None, set[asyncio.Event]] = {}
        self._progress: dict[tuple[str, int], tuple[int, Event]] = {}
        self._dirty: dict[tuple[str, int], JobProgress] = {}
        self._changed = asyncio.Event()
        self._count = 0
        self.last: int = 0
        self.closed: bool = False
        self.interrupted: bool = False
        self._epoch = 0

    @property
    def watchers(self) -> int:
        """How many watch."""
        return sum(len(group) for group in self._waking.values())

    def publish(self, rows: Iterable[EventRow]) -> None:
        """Tell of events that were stored, in the order of their ids."""
        batches: set[str | None] = {None}
        for row in rows:
            # Made once, so that whoever passes it on can tell that it is the same.
            self._recent.append(event_of(row))
            self.last = row.id
            batches.add(row.batch_id)
        self._wake(batches)

    def progress(self, batch_id: str, position: int, progress: JobProgress | None) -> None:
        """Note how far a job is; watchers are told a few times a second. None: it no longer runs."""
        key = (batch_id, position)
        if progress is None:
            self._dirty.pop(key, None)
            self._progress.pop(key, None)
        else:
            self._dirty[key] = progress
            self._changed.set()

    async def tick(self) -> None:
        """Pass progress on, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            at = utc(self._now())
            for key, progress in self._dirty.items():
                self._count += 1
                event = Event(kind="progress", batch_id=key[0], job_id=job_id(*key), at=at, progress=progress)
                self._progress[key] = (self._count, event)
            batches: set[str | None] = {None, *(batch_id for batch_id, _ in self._dirty)}
            self._dirty.clear()
            self._wake(batches)
            await asyncio.sleep(_TICK)

    def end_streams(self) -> None:
        """End the watches that have a beat, and no others."""
        self._epoch += 1
        self._wake(set(self._waking))

    def interrupt(self) -> None:
        """Wake every watch once with an empty group: some batches will not go on."""
        self.interrupted = True
        self._wake(set(self._waking))

    def close(self) -> None:
        """End every watch."""
        self.closed = True
        self._wake(set(self._waking))

    def _wake(self, batches: Iterable[str | None]) -> None:
        for batch_id in batches:
            for event in self._waking.get(batch_id, ()):
                event.set()

    async def watch(
        self, batch_id: str | None, after: int, *, beat: float | None = None, ended: bool = False
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """Yield what happens after an event, in groups, until the batch ends or the manager closes.

        Args:
            batch_id: Only of this batch; None for all.
            after: The id of the last event that was seen.
            beat: Seconds of silence after which an empty group is yielded; None for never.
            ended: The batch has ended already: nothing is waited for.
        """
        wake, epoch = asyncio.Event(), self._epoch
        self._waking.setdefault(batch_id, set()).add(wake)
        seen, interrupted = 0, False
        try:
            while True:
                wake.clear()
                last = self.last
                events = await self._since(after, batch_id)
                if events:
                    after = events[-1].id or after
                    yield events
                    if batch_id is not None and any(_ends(event) for event in events):
                        return
                    if after < last and not self.closed:
                        continue
                # Events of other batches are behind it now too, so it never has to look for them again.
                after = max(after, last)
                fresh = [
                    entry for key, entry in self._progress.items() if entry[0] > seen and batch_id in {None, key[0]}
                ]
                if fresh:
                    seen = max(count for count, _ in fresh)
                    yield tuple(event for _, event in fresh)
                if ended or self.closed or (beat is not None and epoch != self._epoch):
                    return
                if self.interrupted and not interrupted:
                    interrupted = True
                    yield ()
                    continue
                try:
                    async with asyncio.timeout(beat):
                        await wake.wait()
                except TimeoutError:
                    yield ()
        finally:
            group = self._waking[batch_id]
            group.discard(wake)
            if not group:
                del self._waking[batch_id]

    async def _since(self, after: int, batch_id: str | None) -> tuple[Event, ...]:
        if after >= self.last:
            return ()
        if self._recent and (self._recent[0].id or 0) <= after + 1:
            newest = takewhile(lambda event: (event.id or 0) > after, reversed(self._recent))
            return tuple([event for event in newest if batch_id in {None, event.batch_id}][::-1][:_PAGE])
        rows = await self._store.events(after=after, batch_id=batch_id, limit=_PAGE)
        return tuple(event_of(row) for row in rows)
