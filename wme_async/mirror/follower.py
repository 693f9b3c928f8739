"""Following the stream: rows and positions in one transaction, gaps as holes, and when a removal is settled."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from wme_async._stream import Stream
from wme_async._stream.reports import StreamEvent, StreamRetrying
from wme_async._tasks import WorkGroup, raise_first_cause
from wme_async.errors import DecodeError, OffsetGap
from wme_async.mirror.events import MirrorTrouble
from wme_async.mirror.marks import KEPT, Hole
from wme_async.mirror.protocol import Kind
from wme_async.mirror.records import RecordReader, title_of
from wme_async.mirror.rule import Picture
from wme_async.mirror.work import Values, Work, encode
from wme_async.offsets import MemoryOffsets, Position

__all__ = ["HOLD", "Follower"]

HOLD: Final = timedelta(minutes=5)
"""A removal that may be the first half of a move waits until the changes of so much later are read. The other half is
published within 16 seconds of it, unless the service has to try again."""

_NAME: Final = "mirror"
_NEAR: Final = timedelta(hours=2)
_PART: Final = 4 * 1024 * 1024  # bytes of records in one transaction, about
_MOST: Final = 1000  # records in one transaction
_LEAST: Final = 16
_WAIT: Final = 0.2  # seconds to collect records
_SAVE: Final = 10.0  # seconds between two saves of positions that progress without events
_BEHIND: Final = timedelta(minutes=5)
_FIRST: Final = 4  # times longer than any other event the first one may take
_QUIET: Final = 5.0  # seconds of silence, at most, after which all that was there is taken to be read
_QUIET_POLLS: Final = 20  # polls that are as long


class Follower:
    """Applies the events of the stream.

    Args:
        work: The mirror.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._reader = RecordReader(work.options.keep)
        self._quiet = min(_QUIET, _QUIET_POLLS * work.options.poll)
        self._saved: dict[int, Position] = {}
        self._lock = asyncio.Lock()  # positions are read and written together with their rows
        self._size = 0.0  # of a record, on average
        self._caught_up = False
        self._newest: datetime | None = None
        self._active = 0.0  # the loop's clock at the last event or failure
        self._begun = asyncio.Event()
        self._gaps: list[Hole] = []
        self._doubts: dict[str, str | None] = {}

    async def begun(self) -> None:
        """Wait until the stream is open, and its beginning stored."""
        await self._begun.wait()

    async def run(self, *, until: asyncio.Event | None = None, quiet: float = 0.0) -> None:
        """Follow until cancelled; or, once an event is set, until nothing has come for some seconds.

        Args:
            until: The event.
            quiet: Seconds.

        Raises:
            Forbidden: The account has no stream.
            WMEError: The stream cannot be read, for a permanent reason.
            OSError: The store cannot be written.
        """
        positions, since = await self._prepare()
        async with self._stream(positions, since) as stream:
            await self._store_beginning(stream)
            self._begun.set()
            self._active = asyncio.get_running_loop().time()
            with raise_first_cause():
                async with WorkGroup() as group:
                    saver = group.start(self._save_silence(stream), name="save positions of a mirror")
                    await self._read(stream, until, quiet)
                    group.stop(saver)
            self._caught_up, self._work.behind = True, False
            await self._save(stream, complete=True)

    def _stream(self, positions: dict[int, Position], since: datetime | Literal["oldest"]) -> Stream[msgspec.Raw]:
        work = self._work
        options: dict[str, Any] = {"fields": work.fields, "filters": _filters(work), "since": since}
        stream: Stream[msgspec.Raw] = work.client.realtime.articles(
            type=msgspec.Raw,
            offsets=MemoryOffsets({f"{_NAME}/articles": positions}),
            name=_NAME,
            commit="manual",
            on_gap=self._note_gap,
            on_bad_record=self._note_bad,
            on_event=self._note_event,
            **options,
        )
        return stream

    # Beginning

    async def _prepare(self) -> tuple[dict[int, Position], datetime | Literal["oldest"]]:
        """Return where to begin, and note the time that the service does not have any more as a hole."""
        work = self._work
        positions = work.progress.positions
        oldest = work.now() - KEPT
        if not positions:
            begin = await self._beginning()
            # Near the end of what the service keeps, the clock of the stream's host decides.
            return {}, begin if begin > oldest + _NEAR else "oldest"
        old = {
            number: until
            for number, position in positions.items()
            if (until := position.safe_until) is not None and until < oldest
        }
        if old:
            reason = "nothing was followed for longer than the service keeps events"
            holes = work.hole_marks([Hole(begin=min(old.values()), end=oldest, reason=reason)])
            moved = {number: Position(-1, oldest) for number in old}
            await work.apply(values={"holes": holes, "positions": _position_marks(moved)})
            await work.update_state()
        # It makes the stream ask for the clock of its host, which may have gone on while this process slept.
        return work.progress.positions, "oldest"

    async def _beginning(self) -> datetime:
        """Return the time from which to follow without positions."""
        work = self._work
        until = work.progress.followed_until
        if until is not None:
            # Batches were followed before.
            return until - timedelta(hours=1)
        dates = []
        for scope in work.scopes:
            loaded = work.progress.loaded(scope)
            if loaded is not None:
                dates.append(loaded.cut - timedelta(minutes=15))
            else:
                snapshot = await work.client.snapshots.get(scope.identifier)
                dates.append((snapshot.date_modified or work.now()) - timedelta(seconds=work.options.overlap))
        return min(dates)

    async def _store_beginning(self, stream: Stream[Any]) -> None:
        positions = stream.positions
        state: dict[str, str | None] = {"hour": None}
        begin = min((position.safe_until for position in positions.values() if position.safe_until), default=None)
        if self._work.progress.since is None:
            state["since"] = None if begin is None else encode(begin)
        elif not self._work.progress.positions:
            # Between the batches that were followed before and the stream, nothing may be missing.
            until = self._work.progress.followed_until
            if until is not None and begin is not None and begin > until:
                reason = "nothing was followed for longer than the service keeps events"
                self._gaps.append(Hole(begin=until, end=begin, reason=reason))
        await self._apply(None, stream, {"state": state})

    # Reading

    async def _read(self, stream: Stream[msgspec.Raw], until: asyncio.Event | None, quiet: float) -> None:
        loop = asyncio.get_running_loop()
        finish: datetime | None = None
        while True:
            silence = loop.time() - self._active
            finishing = until is not None and until.is_set()
            if finishing and finish is None:
                finish = self._now()
            if finishing and silence >= quiet * self._patience(stream):
                return
            if finishing:
                wait = quiet * self._patience(stream) - silence
            elif until is not None:
                wait = max(quiet, 0.05)
            else:
                wait = self._quiet - silence if silence < self._quiet else self._quiet
            wait = max(wait, 0.001)
            try:
                async with asyncio.timeout(wait) as timer:
                    # If the timeout ended a batch that is collected, its events would look like silence.
                    batch = await anext(stream.batches(self._limit(), min(_WAIT, wait / 2)))
            except TimeoutError:
                # Comparing the clock would be wrong: some event loops run a timer before its time.
                if not timer.expired():
                    raise
                await self._note_silence(stream)
                continue
            before = dict(self._saved)
            await self.take(stream, batch)
            # A busy stream is never silent: what was published after the end of the load is not waited for.
            if finish is None or self._has_older(before, finish):
                self._active = loop.time()

    def _has_older(self, before: dict[int, Position], finish: datetime) -> bool:
        """Return whether the last events of some partition were published before a time."""
        moved = [position for number, position in self._saved.items() if before.get(number) != position]
        return any(position.published is None or position.published < finish for position in moved)

    def _patience(self, stream: Stream[Any]) -> int:
        """Return how many times longer to wait than for the next event: the first one takes its time."""
        return 1 if stream.statistics().connected else _FIRST

    def _limit(self) -> int:
        """Return how many records to take at a time, so that their bytes are bounded."""
        if not self._size:
            return _LEAST
        return max(_LEAST, min(_MOST, int(_PART / max(1.0, self._size))))

    async def take(self, stream: Stream[msgspec.Raw], batch: Sequence[msgspec.Raw]) -> None:
        """Merge events, and store their positions with them.

        Args:
            stream: The stream that they come from.
            batch: Their JSON.

        Raises:
            OSError: The store cannot be written.
        """
        size = sum(memoryview(record).nbytes for record in batch) / len(batch)
        self._size = size if not self._size else max(size, 0.9 * self._size + 0.1 * size)
        picture, newest, errors = await self._work.read(self._reader, batch)
        for error in errors:
            self._doubt(error)
        if newest:
            time = datetime.fromtimestamp(newest / 1e6, UTC)
            self._newest = time if self._newest is None else max(self._newest, time)
            self._caught_up = self._now() - time < _BEHIND and len(batch) < self._limit()
            self._work.behind = self._now() - time > _BEHIND
        async with self._lock:
            for record in batch:
                stream.ack(record)
            await self._apply(picture, stream)
        await self._work.update_state()

    async def _note_silence(self, stream: Stream[Any]) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._active >= self._quiet:
            self._caught_up, self._work.behind = True, False
            await self._work.update_state()
            if self._gaps or self._doubts:
                await self._save(stream)

    def _now(self) -> datetime:
        """Return the server's clock; it is not before what the server has published."""
        now = self._work.now()
        return now if self._newest is None else max(now, self._newest)

    # Writing

    async def _apply(
        self, picture: Picture | None, stream: Stream[Any], values: Values | None = None, *, complete: bool = False
    ) -> None:
        """Write rows, positions, gaps, and the time up to which removals are settled; under the lock.

        Args:
            picture: The rows.
            stream: Has the positions.
            values: Further marks.
            complete: Whether all partitions are read up to now, those without events too.
        """
        positions = stream.positions
        if complete:
            reached = self._now() - HOLD
            positions = {number: _reached(position, reached) for number, position in positions.items()}
        marks: dict[Kind, Any] = dict(values or {})
        changed = {number: value for number, value in positions.items() if self._saved.get(number) != value}
        if changed:
            marks["positions"] = _position_marks(changed)
        if self._gaps:
            marks["holes"] = self._work.hole_marks(self._gaps)
        if self._doubts:
            marks["doubts"] = dict(self._doubts)
        await self._work.apply(picture, marks, settled=self._settled(positions))
        self._saved.update(changed)
        self._gaps.clear()
        self._doubts.clear()

    def _settled(self, positions: dict[int, Position]) -> datetime | None:
        times = [position.safe_until for position in positions.values()]
        read = min((time for time in times if time is not None), default=None)
        if self._caught_up:
            read = self._now()
        return None if read is None else read - HOLD

    async def _save(self, stream: Stream[Any], *, complete: bool = False) -> None:
        async with self._lock:
            await self._apply(None, stream, complete=complete)
        await self._work.update_state()

    async def _save_silence(self, stream: Stream[Any]) -> None:
        """Save the progress of partitions without events."""
        while True:
            await asyncio.sleep(_SAVE)
            await self._save(stream)

    # Notes

    def _note_gap(self, gap: OffsetGap) -> None:
        known = self._saved.get(gap.partition)
        begin = known.safe_until if known is not None else None
        # What is too old is gone; all that is not was requested by time, and came.
        end = self._now() - (KEPT if gap.reason == "retention" else timedelta(0))
        begin = end - KEPT if begin is None else min(begin, end)
        self._gaps.append(Hole(begin=begin, end=end, reason=f"the stream has a gap ({gap.reason})"))

    def _note_bad(self, error: DecodeError) -> None:
        self._work.report_bad(error, "the stream")
        self._doubt(error)

    def _doubt(self, error: DecodeError) -> None:
        """Note the title of a record that cannot be read, for a look-up; without a title, the time is a hole."""
        key = title_of(error.record or b"")
        if key is not None:
            self._doubts["/".join(key)] = "{}"
        else:
            end = self._now()
            reason = "a record of the stream cannot be read, and does not tell its title"
            self._gaps.append(Hole(begin=end - _BEHIND, end=end, reason=reason))

    def _note_event(self, event: StreamEvent) -> None:
        if isinstance(event, StreamRetrying):
            self._active = asyncio.get_running_loop().time()
            self._caught_up = False
            self._work.notify(MirrorTrouble(error=event.error, wait=event.wait))


def _filters(work: Work) -> dict[str, Any]:
    """Return the filters that the server can apply; it takes one value for each field."""
    filters: dict[str, Any] = {}
    projects = {scope.project for scope in work.scopes}
    namespaces = {scope.namespace for scope in work.scopes}
    if len(projects) == 1:
        filters["is_part_of.identifier"] = projects.pop()
    if len(namespaces) == 1:
        filters["namespace.identifier"] = namespaces.pop()
    return filters


def _reached(position: Position, time: datetime) -> Position:
    until = position.safe_until
    return Position(position.offset, position.published, time if until is None else max(until, time))


def _position_marks(positions: dict[int, Position]) -> dict[str, str | None]:
    return {str(number): encode(position) for number, position in positions.items()}
