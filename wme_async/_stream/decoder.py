"""From blocks of records to runs of values: decoded, in order, without duplicates, and filtered."""

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from wme_async._stream.buffer import RecordBlock
from wme_async._stream.framing import Oversize, Record
from wme_async._stream.partitions import Missing, Partitions, Verdict
from wme_async._stream.record_types import EventLike, EventPosition, RecordType, decode_error_line, recover_position
from wme_async.errors import DecodeError, ServerError, StreamError, WMEError
from wme_async.models.decoding import LONG_RECORD, Buffer, failure_reason

T = TypeVar("T")

SKIP: Final[Any] = object()
"""Stands for a value that is not handed out, so that its position is passed in its turn."""

_event: Final = operator.attrgetter("event")
_partition: Final = operator.attrgetter("partition")


class BadRecord(msgspec.Struct, eq=False):
    """A record that did not decode, in its place in the stream.

    Attributes:
        error: The reason.
        event: Its position, if it could be recovered and belongs to the connection.
    """

    error: DecodeError
    event: EventPosition | None


class Gap(msgspec.Struct, eq=False):
    """A gap before a value.

    Attributes:
        missing: The missing events.
        item: The value behind the gap.
        event: Its event; None for a gap before a bad record.
        record: Its bytes.
        reported: Whether the user has been notified.
        filled: Whether the hourly batches have been requested.
    """

    missing: Missing
    item: Any
    event: EventLike | None
    record: Record = b""
    reported: bool = False
    filled: bool = False


class Run(Generic[T]):
    """Values in order, and their events.

    Attributes:
        items: The values, `SKIP` among them.
        events: Their events.
        pairs: The values and events that are not handed out yet.
    """

    __slots__ = ("events", "items", "pairs")

    def __init__(self, items: list[T], events: list[EventLike]) -> None:
        self.items = items
        self.events = events
        self.pairs: Iterator[tuple[T, EventLike]] = zip(items, events, strict=True)


class RunDecoder(Generic[T]):
    """Decodes blocks, one run at a time; a run ends with its block, or at an interruption.

    Attributes:
        run: The present run.
        interruptions: Bad records and gaps behind it, to be handled in order.
        block: The block that is being decoded.
        decoded: The number of values.
        filtered: The number of values that `keep` left out.
        bad: The number of records that did not decode.

    Args:
        record_type: Decodes records.
        partitions: Tell which events are next.
        keep: Returns whether a value is handed out.
        remember: Called with each record; returns False if a batch has already brought it.
        skip_bad: Whether records that do not decode are passed over at once.
        notify_bad: Called when one is passed over.
    """

    def __init__(
        self,
        record_type: RecordType[T],
        partitions: Partitions,
        *,
        keep: Callable[[Any], bool] | None,
        remember: Callable[[Buffer], bool] | None,
        skip_bad: bool,
        notify_bad: Callable[[DecodeError], None],
    ) -> None:
        self.run: Run[T] = Run([], [])
        self.interruptions: deque[BadRecord | Gap] = deque()
        self.block: RecordBlock | None = None
        self.decoded = 0
        self.filtered = 0
        self.bad = 0
        self._record_type = record_type
        self._finish = record_type.finish
        self._partitions = partitions
        self._keep = keep
        self._remember = remember
        self._selective = keep is not None or remember is not None
        self._skip_bad = skip_bad
        self._notify_bad = notify_bad
        self._decode = record_type.decode
        self._records: Iterator[Record] = iter(())
        self._own: frozenset[Any] | None = None
        self._fresh = False  # nothing of the block is decoded yet

    def begin(self, block: RecordBlock) -> None:
        """Take the next block."""
        self.block = block
        self._records = iter(block.records)
        self._own = block.session.connection.own
        self._fresh = True
        short = self._record_type.decode_short
        long = block.size > LONG_RECORD * len(block.records)
        self._decode = self._record_type.decode if short is None or long else short

    def end(self) -> RecordBlock:
        """Return the block, which is finished."""
        assert self.block is not None
        block, self.block = self.block, None
        return block

    def decode(self) -> bool:
        """Decode the next run of the block.

        Returns:
            Whether the block is finished; if not, there is an interruption, or another run.
        """
        self.run = Run([], [])
        if self._fresh and self._remember is None:
            self._take_in_order()
        self._fresh = False
        finished = all(map(self._take, self._records))
        self.decoded += len(self.run.items)
        return finished

    def _take_in_order(self) -> None:
        """Take the records from the front of the block that are in order, in few steps for each.

        `_take` examines the first one that is not, and those behind it. That these may be decoded twice does no harm.
        """
        assert self.block is not None
        records = self.block.records
        try:
            items = list(map(self._decode, records))  # type: ignore[arg-type]  # an Oversize raises
            events = list(map(_event, items))
            if self._finish is not None:
                items = list(map(self._finish, items))
            if self._own is not None and not self._own.issuperset(map(_partition, events)):
                return
            selected = None if self._keep is None else list(map(self._keep, items))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - `_take` finds the record and the reason
            return
        count = self._partitions.read_in_order(events)
        if selected is not None:
            items = [item if keep else SKIP for item, keep in zip(items, selected, strict=True)]
            self.filtered += selected[:count].count(False)
        self.run = Run(items[:count], events[:count])
        self._records = iter(records[count:])

    def _take(self, record: Record) -> bool:
        """Take one record; return whether the run may continue."""
        try:
            raw = self._decode_record(record)
            event = raw.event
            is_next = self._partitions.is_next(event, self._own)
            item = raw if self._finish is None else self._finish(raw)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception of a decoder is an error of the record
            return self._take_bad(record, error)
        if not is_next:
            verdict = self._partitions.judge(event, self._own)
            if isinstance(verdict, Missing):
                self.interruptions.append(Gap(verdict, item, event, record))
                return False
            if verdict is not Verdict.TAKE:
                return self._leave_out(event, verdict)
        if self._selective:
            try:
                item = self._selected(item, record)
            except DecodeError as error:  # a filter decodes more of the record than the type does
                return self._take_bad(record, error)
            except BaseException:
                # The error of a filter is raised behind the values before it, and the record is not lost.
                self._records = itertools.chain((record,), self._records)
                if not self.run.items:
                    raise
                return False
        self._add(item, event)
        return True

    def _decode_record(self, record: Record) -> Any:
        try:
            return self._decode(record)  # type: ignore[arg-type]  # an Oversize raises
        except Exception:
            if self._decode is self._record_type.decode:
                raise
            self._decode = self._record_type.decode  # for the records behind it as well: they are often alike
            return self._decode(record)  # type: ignore[arg-type]

    def _take_bad(self, record: Record, error: Exception) -> bool:
        """Take a record that has no value, or no position; return whether the run may continue."""
        assert self.block is not None
        error_line = decode_error_line(record)
        position = None if error_line is not None else recover_position(record)
        if position is None:
            self.block.session.placeless += 1
        if error_line is not None:
            message = f"the server wrote an error into the stream: {error_line.message}"
            self._abandon(ServerError(message, status=error_line.status))
            return False
        event = None
        # The position of a partition that another connection reads would hide the events before it there.
        if position is not None and (self._own is None or position.partition in self._own):
            event = self._partitions.dated(position)
            if not self._partitions.is_next(event, self._own):
                verdict = self._partitions.judge(event, self._own)
                if isinstance(verdict, Missing):
                    self.interruptions.append(Gap(verdict, SKIP, None))
                elif verdict is not Verdict.TAKE:
                    return self._leave_out(event, verdict)
            self._partitions.of(event).read = event
        self.bad += 1
        self.interruptions.append(BadRecord(_describe(record, error, event or position), event))
        if not self._skip_bad or len(self.interruptions) > 1:
            return False
        self._skip()
        return True

    def _leave_out(self, event: EventLike, verdict: Verdict) -> bool:
        """Drop an event, or the whole session to request its partition again; return whether the run may continue."""
        if verdict is Verdict.DROP:
            return True
        assert self.block is not None
        self.block.session.connection.ask_again(event.partition, event.offset)
        self._abandon(
            StreamError(f"the offset asked for in partition {event.partition} may be gone; asking again by time")
        )
        return False

    def _abandon(self, error: WMEError) -> None:
        """Drop the remaining records of the session, and end it."""
        assert self.block is not None
        session = self.block.session
        self._records = iter(())
        session.connection.abandon(session, error)

    def _selected(self, item: T, record: Record) -> T:
        """Return the value, or `SKIP` if it is not handed out."""
        if self._keep is not None and not self._keep(item):
            self.filtered += 1
            return SKIP  # type: ignore[no-any-return]  # it stands for any value
        if self._remember is None or isinstance(record, Oversize) or self._remember(record):
            return item
        return SKIP  # type: ignore[no-any-return]

    def _add(self, item: T, event: EventLike) -> None:
        self._partitions.by_number[event.partition].read = event
        self.run.items.append(item)
        self.run.events.append(event)

    def accept(self) -> None:
        """Take the value behind the first interruption, a gap, as a run of its own."""
        gap = self.interruptions[0]
        assert isinstance(gap, Gap)
        if gap.event is not None:
            item = self._selected(gap.item, gap.record)
            self.run = Run([], [])
            self._add(item, gap.event)
            self.decoded += 1
        self.interruptions.popleft()

    def put_back(self, pairs: list[tuple[T, EventLike]]) -> None:
        """Put values that were taken and not handed out before the remaining ones of the run."""
        pairs = [*pairs, *self.run.pairs]  # a flat list, since this may happen any number of times
        self.run = Run([item for item, _ in pairs], [event for _, event in pairs])

    def pass_over(self) -> None:
        """Pass the first interruption, a bad record, in a run of its own."""
        self.run = Run([], [])
        self._skip()

    def _skip(self) -> None:
        bad = self.interruptions.popleft()
        assert isinstance(bad, BadRecord)
        self._notify_bad(bad.error)
        if bad.event is not None:
            self.run.items.append(SKIP)
            self.run.events.append(bad.event)


def _describe(record: Record, error: Exception, event: EventPosition | None) -> DecodeError:
    if isinstance(record, Oversize):
        problem = f"a record of {record.size} bytes is longer than max_record"
        data = record.head + record.tail
    else:
        data = bytes(record)
        if event is None and isinstance(error, TypeError | AttributeError):
            # It decodes; reading the position of its event failed.
            problem = "a record has no partition and offset"
        else:
            problem = f"a record does not decode: {failure_reason(error, data)}"
    where = f" (partition {event.partition}, offset {event.offset})" if event is not None else ""
    return DecodeError(
        problem + where,
        partition=event.partition if event else None,
        offset=event.offset if event else None,
        record=data,
    )
