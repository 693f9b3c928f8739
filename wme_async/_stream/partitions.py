"""The partitions of a stream: which events were read, which were processed, and which are missing. Pure."""

import contextlib
import enum
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from wme_async._stream.record_types import EventLike, EventPosition, published_of
from wme_async._stream.resume import Resume, StreamRequest, explain_jump
from wme_async.errors import OffsetGap
from wme_async.offsets.protocol import MAX_OFFSET, Position, is_storable

_QUIET: Final = 600.0  # seconds of silence after which a connected partition counts as caught up
_RENUMBERED: Final = timedelta(minutes=10)  # by which publication times may contradict the order of the offsets

_REASONS: Final = {
    "retention": "the reader was away for longer than the server keeps events",
    "out_of_range": "the server no longer had that offset",
    "unknown": "the server skipped them, and asking again by time did not bring them",
}


class _Unread(NamedTuple):
    partition: Any = None
    offset: int = sys.maxsize
    date_published: Any = None


UNREAD: Final = _Unread()
"""Stands for the last event of a partition whose next event has to be judged: no offset is above it."""


class Verdict(enum.Enum):
    """The decision about an event that is not simply the next one of its partition."""

    TAKE = enum.auto()
    DROP = enum.auto()
    """It was read before, or another connection reads its partition."""
    ASK_AGAIN = enum.auto()
    """Its partition has to be requested by time: the offset that was requested may be gone."""


class Missing(NamedTuple):
    """A gap, and the time that it spans as far as known."""

    gap: OffsetGap
    after: datetime | None
    before: datetime | None


class Partition:
    """The state of one partition.

    Attributes:
        number: The number of the partition.
        start: The position that the stream began with; None for a partition outside its layout.
        read: The last event read since the connection was made; `UNREAD` before the first.
        read_before: The last event read before that connection.
        processed: The last event processed, all before it processed too; None before the first.
        resume: The request of the connection, until an event has been compared with it.
        reached: The time up to which nothing is missing, if that is later than the last event.

    Args:
        number: The number of the partition.
        start: The position that the stream begins with.
    """

    __slots__ = (
        "_acknowledged",
        "_quiet",
        "_ticked",
        "_unacknowledged",
        "number",
        "processed",
        "reached",
        "read",
        "read_before",
        "resume",
        "start",
    )

    def __init__(self, number: Any, start: Position | None = None) -> None:
        self.number = number
        self.start = start
        self.read: EventLike = UNREAD
        self.read_before: EventLike | None = None
        self.processed: EventLike | None = None
        self.resume: Resume | None = None
        self.reached = start.reached if start is not None else None
        self._ticked: EventLike | None = None  # the last event read at the last tick
        self._quiet = 0.0  # seconds of silence
        self._unacknowledged: deque[EventLike] = deque()  # from the first event that is not acknowledged on
        self._acknowledged: set[int] = set()  # offsets of acknowledged events among those

    @property
    def last(self) -> EventLike | None:
        """The last event read in this process."""
        return self.read_before if self.read is UNREAD else self.read

    def last_known(self) -> EventLike | None:
        """Return the last event read, in this process or before it."""
        if self.last is not None or self.start is None:
            return self.last
        return EventPosition(self.number, self.start.offset, self.start.published)

    def read_position(self) -> Position | None:
        """Return how far the partition was read, which is where a new connection continues."""
        return self._position(self.last, self.reached)

    def processed_position(self) -> Position:
        """Return how far the partition was processed."""
        position = self._position(self.processed, self.reached if self.processed is self.last else None)
        assert position is not None
        return position

    def _position(self, event: EventLike | None, reached: datetime | None) -> Position | None:
        if event is not None:
            return Position(event.offset, published_of(event), reached)
        if self.start is None or reached is None:
            return self.start
        return Position(self.start.offset, self.start.published, reached)

    def connect(self, resume: Resume) -> None:
        """Note the request of a new connection, to compare the first event with."""
        self.resume = resume
        self.read_before, self.read = self.last, UNREAD

    def tick(self, seconds: float, *, now: datetime, connected: bool) -> None:
        """Note that time has passed.

        Args:
            seconds: How much.
            now: The server's clock.
            connected: Whether an event would have been received.
        """
        if self._ticked is not self.last:
            self._ticked, self._quiet, self.reached = self.last, 0.0, None
        elif connected:
            self._quiet += seconds
            if self._quiet >= _QUIET:
                self.reached = now - timedelta(seconds=_QUIET)
        else:
            # Silence on both sides of a time without a connection does not make that time silent.
            self._quiet = max(0.0, self._quiet - seconds)

    # Acknowledging one by one

    @property
    def handed_out(self) -> bool:
        """Whether an event was handed out that waits, or waited, for its own acknowledgement."""
        return bool(self._unacknowledged) or self.processed is not None

    def hand_out(self, event: EventLike) -> None:
        """Note that an event waits for its own acknowledgement."""
        if self._unacknowledged and event.offset <= self._unacknowledged[-1].offset:
            # Renumbered: the server cannot send again the events that were handed out before that.
            self._unacknowledged.clear()
            self._acknowledged.clear()
        self._unacknowledged.append(event)

    def acknowledge(self, event: EventLike) -> None:
        """Count one event as processed; the partition moves up to where everything before was."""
        if not self._unacknowledged or event.offset < self._unacknowledged[0].offset:
            return
        self._acknowledged.add(event.offset)
        while self._unacknowledged and self._unacknowledged[0].offset in self._acknowledged:
            self.processed = self._unacknowledged.popleft()
            self._acknowledged.discard(self.processed.offset)

    def acknowledge_up_to(self, event: EventLike) -> None:
        """Count an event, and those before it, as processed."""
        processed = self.processed
        if processed is None or event.offset > processed.offset or is_renumbered(event, processed):
            self.processed = event


class Partitions:
    """All partitions of a stream.

    Attributes:
        by_number: The partitions.
        duplicates: Events dropped because they had been read before.
        gaps: Times that events were missing.

    Args:
        numbers: The partitions that are read.
        positions: The positions that they begin with.
        start: The time from which partitions without a position are read.
        retention: Seconds for which the server keeps events.
        filtered: Whether the server leaves out events.
    """

    def __init__(
        self,
        numbers: Iterable[int],
        positions: Mapping[int, Position],
        *,
        start: datetime,
        retention: float,
        filtered: bool,
    ) -> None:
        # A partition without any event has a position too, so that events published while nobody reads are requested.
        self.by_number: dict[Any, Partition] = {
            number: Partition(number, positions.get(number) or Position(-1, start)) for number in numbers
        }
        self.duplicates = 0
        self.gaps = 0
        self._retention = retention
        self._filtered = filtered

    def of(self, event: EventLike) -> Partition:
        """Return the partition of an event; the server may have more partitions than expected."""
        return self.by_number.get(event.partition) or self.by_number.setdefault(
            event.partition, Partition(event.partition)
        )

    # Connecting

    def read_positions(self, numbers: Iterable[int]) -> dict[int, Position]:
        """Return how far partitions were read, which is where a new connection continues."""
        positions = {number: self.by_number[number].read_position() for number in numbers}
        return {number: position for number, position in positions.items() if position is not None}

    def connect(self, request: StreamRequest, *, at: datetime, probes: Mapping[int, int]) -> None:
        """Note the request of a new connection, to compare the first event of each partition with.

        Args:
            request: The request.
            at: The server's clock.
            probes: For partitions that are requested again by time, the offset that the request by offset brought.
        """
        for number, time in request.since.items():
            partition = self.by_number[number]
            start = partition.start
            if start is not None and start.offset < 0 and start.published is not None and start.published > time:
                # This machine's clock was ahead of the server's; the stored position must not be.
                partition.start = Position(-1, time, start.reached)
        for number in (*request.offsets, *request.since):
            partition = self.by_number[number]
            partition.connect(
                Resume(partition.read_position(), number in request.offsets, at, probes.get(number)),
            )

    # Reading

    def is_next(self, event: EventLike, own: Collection[Any] | None) -> bool:
        """Return whether an event simply follows the last one that its connection brought of the partition.

        Args:
            event: The event.
            own: The partitions of its connection; None for all.

        Raises:
            TypeError: The event has no partition or no offset, or numbers that no partition has.
        """
        partition = self.by_number.get(event.partition)
        if not is_storable(event.partition, event.offset):
            raise TypeError(f"an event cannot be at offset {event.offset} of partition {event.partition}")
        read = UNREAD if partition is None else partition.read
        above: bool = event.offset > read.offset
        return above and (own is None or event.partition in own)

    def read_in_order(self, events: Sequence[EventLike]) -> int:
        """Note events as read, from the first on, while each one simply follows the last of its partition.

        Args:
            events: Events of partitions of the connection.

        Returns:
            How many of them.
        """
        by_number = self.by_number
        event = None
        # An event without a position raises; a partition without a state is not in the layout. `judge` is for both.
        with contextlib.suppress(TypeError, AttributeError, KeyError):
            for event in events:
                partition = by_number[event.partition]
                if not partition.read.offset < event.offset <= MAX_OFFSET:
                    break
                partition.read = event
            else:
                return len(events)
        return next(index for index, other in enumerate(events) if other is event)

    def judge(self, event: EventLike, own: Collection[Any] | None) -> Verdict | Missing:
        """Decide about an event that does not simply follow the last one of its partition.

        Args:
            event: The event.
            own: The partitions of its connection; None for all.

        Returns:
            The decision; or the gap before the event, which is then taken.
        """
        if own is not None and event.partition not in own:
            # Another connection brings it in its order. Taken from here, it would hide the events before it there.
            self.duplicates += 1
            return Verdict.DROP
        partition = self.of(event)
        last = partition.last_known()
        if last is not None and event.offset <= last.offset:
            return self._judge_repetition(partition, event, last)
        if partition.resume is not None:
            return self._judge_first(partition, partition.resume, event)
        return Verdict.TAKE

    def _judge_repetition(self, partition: Partition, event: EventLike, last: EventLike) -> Verdict | Missing:
        """Decide about an event whose offset is not above the last one: a duplicate, or the partition is renumbered."""
        resume = partition.resume
        # The second request, by time, confirms it: a newer event then counts without a margin.
        confirmed = resume is not None and resume.probe is not None and resume.probe <= last.offset
        if is_renumbered(event, last, timedelta(0) if confirmed else _RENUMBERED):
            if not confirmed and (resume is None or resume.by_offset):
                return Verdict.ASK_AGAIN
            partition.resume = None
            problem = "with newer events: the server numbers them anew, and some of those in between may be missing"
            return self._missing(event, last.offset + 1, "out_of_range", published_of(last), problem)
        if resume is not None and not confirmed:
            # The server went back far enough: nothing is missing.
            partition.resume = None
            partition.read = last
        self.duplicates += 1
        return Verdict.DROP

    def _judge_first(self, partition: Partition, resume: Resume, event: EventLike) -> Verdict | Missing:
        """Decide about the first event of a partition after a connect."""
        jump = explain_jump(
            resume, event.offset, published_of(event), retention=self._retention, filtered=self._filtered
        )
        if jump == "look_again":
            return Verdict.ASK_AGAIN
        partition.resume = None
        if jump == "none":
            return Verdict.TAKE
        position = resume.position
        assert position is not None
        expected = position.offset + 1 if position.offset >= 0 else None
        count = "an unknown number of" if expected is None else str(event.offset - expected)
        problem = f"up to {count} events are missing: {_REASONS[jump]}"
        return self._missing(event, expected, jump, position.safe_until, problem)

    def _missing(
        self, event: EventLike, expected: int | None, reason: str, after: datetime | None, problem: str
    ) -> Missing:
        self.gaps += 1
        gap = OffsetGap(
            f"partition {event.partition} goes on at offset {event.offset} instead of {expected}, {problem}",
            partition=event.partition,
            expected=expected,
            got=event.offset,
            reason=reason,
        )
        return Missing(gap, after, published_of(event))

    def dated(self, event: EventPosition) -> EventPosition:
        """Return the position of a record that did not decode, with a time by which its partition can be requested.

        The time of such a record cannot be trusted. A time before that of the event in front of it, stored as the
        partition's, could make the next request one by time, which brings again events that have been read.
        """
        last = self.of(event).last_known()
        if last is None or event.offset is None or event.offset <= last.offset:
            return event
        published, before = published_of(event), published_of(last)
        if before is None or (published is not None and published >= before):
            return event
        return EventPosition(event.partition, event.offset, before)

    def tick(self, seconds: float, *, now: datetime, connected: Collection[int]) -> None:
        """Note that time has passed.

        Args:
            seconds: How much.
            now: The server's clock.
            connected: The partitions of which events would have been received.
        """
        for number, partition in self.by_number.items():
            partition.tick(seconds, now=now, connected=number in connected)

    # Processing

    def positions(self) -> dict[int, Position]:
        """Return how far each partition was processed."""
        return {
            number: partition.processed_position()
            for number, partition in self.by_number.items()
            if partition.start is not None or partition.processed is not None
        }

    def hand_out(self, event: EventLike) -> None:
        """Note that an event waits for its own acknowledgement."""
        self.of(event).hand_out(event)

    def acknowledge(self, event: EventLike) -> None:
        """Count one event as processed; its partition moves up to where everything before was.

        Raises:
            ValueError: The event was never handed out.
        """
        partition = self.of(event)
        if not partition.handed_out:
            raise _not_from_stream(event)
        if self._is_current(event):
            partition.acknowledge(event)

    def acknowledge_up_to(self, event: EventLike) -> None:
        """Count an event, and those before it in its partition, as processed.

        Raises:
            ValueError: The event was never handed out.
        """
        if self._is_current(event):
            self.of(event).acknowledge_up_to(event)

    def _is_current(self, event: EventLike) -> bool:
        """Return whether an event is from the present numbering of its partition, not from an earlier one.

        Raises:
            ValueError: The event was never handed out.
        """
        partition = self.by_number.get(event.partition)
        last = partition.last if partition is not None else None
        if last is not None and event.offset <= last.offset:
            return True
        if last is None or not is_renumbered(last, event):
            raise _not_from_stream(event)
        return False


def _not_from_stream(event: EventLike) -> ValueError:
    return ValueError(f"the event at offset {event.offset} of partition {event.partition} is not from this stream")


def is_renumbered(event: EventLike, last: EventLike, margin: timedelta = _RENUMBERED) -> bool:
    """Return whether an event that is not above the last one by number is after it by time.

    A partition that was deleted and created again counts from 0. Taken for duplicates, its events would be dropped
    until their numbers have grown past the old ones.
    """
    if event.offset > last.offset:
        return False
    published, before = published_of(event), published_of(last)
    return published is not None and before is not None and published > before + margin
