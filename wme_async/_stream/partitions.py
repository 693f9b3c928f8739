"""What was read, what was processed, and what may be missing: the bookkeeping of a stream, without any I/O."""

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from wme_async._stream.record_types import PlaceLike, Spot, published_of
from wme_async._stream.resume import Plan, Resume, explain_jump
from wme_async.errors import OffsetGap
from wme_async.offsets.protocol import Position

__all__ = ["TOP", "LookAgain", "Missing", "Progress"]

_QUIET: Final = 600.0  # seconds of silence after which a connected partition counts as caught up
_ANEW: Final = timedelta(minutes=10)  # by which publication times may contradict the order of the offsets

_WORDS: Final = {
    "retention": "the reader was away for longer than the server keeps events",
    "out_of_range": "the server no longer had that offset",
    "unknown": "the server skipped them, and asking again by time did not bring them",
}


class LookAgain(Exception):
    """The first event of a partition suggests that its offset was not there any more: ask for it by time."""

    def __init__(self, partition: int, offset: int) -> None:
        super().__init__(partition, offset)
        self.partition = partition
        self.offset = offset


class Missing(NamedTuple):
    """A gap, and the time that it spans as far as known."""

    gap: OffsetGap
    after: datetime | None
    before: datetime | None


class _Unacknowledged:
    """The events of one partition that were handed out and not all acknowledged, in order."""

    __slots__ = ("acknowledged", "events")

    def __init__(self) -> None:
        self.events: deque[PlaceLike] = deque()
        self.acknowledged: set[int] = set()


class Progress:
    """Where a stream is in each partition.

    Attributes:
        seen: Last event read of each partition, since its connection was made.
        done: Last event processed of each partition, all before it processed too.
        duplicates: Events dropped because they had been read before.
        gaps: Times that something was found missing.

    Args:
        partitions: Those that are read.
        positions: Where they were.
        start: From when on partitions without a position are wanted.
        retention: Seconds for which the server keeps events.
        filtered: The server leaves out events.
    """

    def __init__(
        self,
        partitions: Iterable[int],
        positions: Mapping[int, Position],
        *,
        start: datetime,
        retention: float,
        filtered: bool,
    ) -> None:
        self.partitions = tuple(partitions)
        # A partition that never spoke has a position too, so that what it says while nobody reads is asked for.
        self.base = {p: positions.get(p) or Position(-1, start) for p in self.partitions}
        self.seen: dict[int, PlaceLike] = {}
        self.done: dict[int, PlaceLike] = {}
        self.duplicates = 0
        self.gaps = 0
        self._retention = retention
        self._filtered = filtered
        self._before: dict[int, PlaceLike] = {}  # last event read before the present connection
        self._resumes: dict[int, Resume] = {}
        self._reached: dict[int, datetime] = {p: each.reached for p, each in self.base.items() if each.reached}
        self._ticked: dict[int, PlaceLike | None] = {}
        self._quiet: dict[int, float] = {}
        self._open: dict[int, _Unacknowledged] = {}

    # Connecting

    def last(self, partition: int) -> PlaceLike | None:
        """Return the last event read of a partition in this process."""
        return self.seen.get(partition) or self._before.get(partition)

    def read(self, partitions: Iterable[int]) -> dict[int, Position]:
        """Return how far partitions were read, which is where a new connection goes on."""
        found = {}
        for partition in partitions:
            event = self.last(partition)
            base = self.base.get(partition)
            if event is not None:
                found[partition] = Position(event.offset, published_of(event), self._reached.get(partition))
            elif base is not None:
                found[partition] = Position(base.offset, base.published, self._reached.get(partition))
        return found

    def connecting(self, plan: Plan, *, at: datetime, probes: Mapping[int, int]) -> None:
        """Note what a new connection asks for, to compare the first event of each partition with.

        Args:
            plan: The request.
            at: The server's clock.
            probes: Offsets that came when partitions were asked for by offset, for those asked again by time.
        """
        for partition, time in plan.since.items():
            base = self.base.get(partition)
            if base is not None and base.offset < 0 and base.published is not None and base.published > time:
                # Our clock was ahead of the server's; what is kept must not be.
                self.base[partition] = Position(-1, time)
        asked = [*plan.offsets, *plan.since]
        for partition, position in self.read(asked).items():
            self._resumes[partition] = Resume(position, partition in plan.offsets, at, probes.get(partition))
            event = self.seen.pop(partition, None)
            if event is not None:
                self._before[partition] = event

    def judge(self, event: PlaceLike) -> Missing | bool:
        """Look closer at an event that is not above the last one of its partition, or is the first of its connection.

        Returns:
            True to take it, False to drop it as a duplicate, or what is missing before it.

        Raises:
            LookAgain: The partition has to be asked for again.
        """
        partition, offset = event.partition, event.offset
        resume = self._resumes.get(partition)
        last: PlaceLike | Position | None = self.last(partition) or self.base.get(partition)
        if last is not None and offset <= last.offset:
            # Asked for again since its numbers had begun anew: what is newer is taken without a margin.
            sure = resume is not None and resume.probe is not None and resume.probe <= last.offset
            if _began_anew(event, last, timedelta(0) if sure else _ANEW):
                if not sure and (resume is None or resume.by_offset):
                    raise LookAgain(partition, offset)
                return self._anew(event, last)
            if partition in self._resumes and not sure:
                # The server went back far enough: nothing is missing.
                del self._resumes[partition]
                if partition not in self.seen:
                    self.seen[partition] = self._before.get(partition) or self._from_base(partition)
            self.duplicates += 1
            return False
        if resume is None:
            return True
        published = published_of(event)
        jump = explain_jump(resume, offset, published, retention=self._retention, filtered=self._filtered)
        if jump == "look_again":
            raise LookAgain(partition, offset)
        del self._resumes[partition]
        if jump == "none":
            return True
        position = resume.position
        assert position is not None
        self.gaps += 1
        expected = position.offset + 1 if position.offset >= 0 else None
        size = "an unknown number of" if expected is None else str(offset - expected)
        gap = OffsetGap(
            f"partition {partition} goes on at offset {offset} instead of {expected}, up to {size} events are missing: "
            f"{_WORDS[jump]}",
            partition=partition,
            expected=expected,
            got=offset,
            reason=jump,
        )
        return Missing(gap, position.safe_until, published)

    def _anew(self, event: PlaceLike, last: PlaceLike | Position) -> Missing:
        """Tell that the server numbers the events of a partition from the beginning again."""
        self._resumes.pop(event.partition, None)
        self.gaps += 1
        gap = OffsetGap(
            f"partition {event.partition} goes on at offset {event.offset} instead of {last.offset + 1}, with newer "
            f"events: the server numbers them anew, and some of those in between may be missing",
            partition=event.partition,
            expected=last.offset + 1,
            got=event.offset,
            reason="out_of_range",
        )
        return Missing(gap, _time_of(last), published_of(event))

    def dated(self, event: Spot) -> Spot:
        """Return the place of a record that did not decode, with a time that its partition can be asked for by.

        Such a record is a poor witness. A time before that of the event in front of it, taken for the partition's,
        could make the next request one by time, which brings again what has been read.
        """
        last: PlaceLike | Position | None = self.last(event.partition) or self.base.get(event.partition)
        if last is None or event.offset <= last.offset:
            return event
        now, before = published_of(event), _time_of(last)
        if before is None or (now is not None and now >= before):
            return event
        return Spot(event.partition, event.offset, before)

    def _from_base(self, partition: int) -> Spot:
        base = self.base[partition]
        return Spot(partition, base.offset, base.published)

    def tick(self, seconds: float, *, now: datetime, connected: Iterable[int]) -> None:
        """Note that time has passed.

        Args:
            seconds: How much.
            now: The server's clock.
            connected: Partitions that are listened to.
        """
        up = set(connected)
        for partition in self.partitions:
            last = self.last(partition)
            if self._ticked.get(partition) is not last:
                self._ticked[partition] = last
                self._quiet[partition] = 0.0
                self._reached.pop(partition, None)
            elif partition in up:
                quiet = self._quiet.get(partition, 0.0) + seconds
                self._quiet[partition] = quiet
                if quiet >= _QUIET:
                    self._reached[partition] = now - timedelta(seconds=_QUIET)
            else:
                # Silence on both sides of a time without a connection does not make that time silent.
                self._quiet[partition] = max(0.0, self._quiet.get(partition, 0.0) - seconds)

    # Processing

    def positions(self) -> dict[int, Position]:
        """Return how far each partition was processed."""
        found = {}
        for partition in {*self.base, *self.done}:
            event = self.done.get(partition)
            last = self.last(partition)
            reached = self._reached.get(partition) if event is last else None
            if event is not None:
                found[partition] = Position(event.offset, published_of(event), reached)
            else:
                base = self.base[partition]
                found[partition] = Position(base.offset, base.published, reached) if reached else base
        return found

    def acknowledge(self, event: PlaceLike) -> None:
        """Count an event, and those before it in its partition, as processed.

        Raises:
            ValueError: It was never handed out.
        """
        if not self._ours(event):
            return
        done = self.done.get(event.partition)
        if done is None or event.offset > done.offset or _began_anew(event, done, _ANEW):
            self.done[event.partition] = event

    def _ours(self, event: PlaceLike) -> bool:
        """Say whether an event is from the present numbering of its partition, and not from an earlier one.

        Raises:
            ValueError: It was never handed out.
        """
        last = self.last(event.partition)
        if last is not None and event.offset <= last.offset:
            return True
        if last is None or not _began_anew(last, event, _ANEW):
            raise _not_ours(event)
        return False

    def handed_out(self, event: PlaceLike) -> None:
        """Note that an event waits for its acknowledgement."""
        waiting = self._open.setdefault(event.partition, _Unacknowledged())
        if waiting.events and event.offset <= waiting.events[-1].offset:
            # Numbered anew: the server cannot send again what was handed out before that.
            waiting = self._open[event.partition] = _Unacknowledged()
        waiting.events.append(event)

    def acknowledge_one(self, event: PlaceLike) -> None:
        """Count a single event as processed; its partition moves on to where everything before was.

        Raises:
            ValueError: It was never handed out.
        """
        waiting = self._open.get(event.partition)
        if waiting is None:
            raise _not_ours(event)
        if not self._ours(event) or not waiting.events or event.offset < waiting.events[0].offset:
            return
        waiting.acknowledged.add(event.offset)
        while waiting.events and waiting.events[0].offset in waiting.acknowledged:
            first = waiting.events.popleft()
            waiting.acknowledged.discard(first.offset)
            self.done[event.partition] = first

    @property
    def unacknowledged(self) -> int:
        """How many events were handed out and wait for their acknowledgement or that of an earlier one."""
        return sum(len(each.events) for each in self._open.values())


def _time_of(event: PlaceLike | Position) -> datetime | None:
    return event.published if isinstance(event, Position) else published_of(event)


def _began_anew(event: PlaceLike, last: PlaceLike | Position, margin: timedelta) -> bool:
    """Say whether an event that is not above the last one by number is after it by time.

    A partition that was made anew counts from 0 again. Taken for duplicates, its events would be dropped until their
    numbers have grown past the old ones.
    """
    if event.offset > last.offset:
        return False
    now, before = published_of(event), _time_of(last)
    return now is not None and before is not None and now > before + margin


def _not_ours(event: PlaceLike) -> ValueError:
    return ValueError(f"the event at offset {event.offset} of partition {event.partition} is not from this stream")


class _Top(NamedTuple):
    """Stands for the last event of a partition that has to be looked at closely: no offset is above it."""

    partition: Any = None
    offset: int = sys.maxsize
    date_published: Any = None


TOP: Final = _Top()
