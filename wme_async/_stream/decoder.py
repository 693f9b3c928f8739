"""From blocks of records to runs of values: decoding, duplicates, filters, and everything that interrupts a run."""

import contextlib
import itertools
import operator
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, Generic, Self, TypeVar

from wme_async._stream.connection import Block
from wme_async._stream.framing import Oversize, Record
from wme_async._stream.partitions import TOP, LookAgain, Missing, Progress
from wme_async._stream.record_types import PlaceLike, Shape, Spot, error_line, recover
from wme_async.errors import DecodeError, ServerError, StreamError, WMEError
from wme_async.models.decoding import LONG_RECORD, Buffer, failure_reason

__all__ = ["SKIP", "Bad", "Gap", "Lists", "Runs"]

T = TypeVar("T")

SKIP: Final[Any] = object()
"""Stands for a value that is not handed out, so that its position moves on in its turn."""


_event: Final = operator.attrgetter("event")
_partition: Final = operator.attrgetter("partition")


class Bad:
    """A record that did not decode, at its place in the stream.

    Attributes:
        error: What was wrong.
        event: Its place, where that could be made out.
    """

    def __init__(self, error: DecodeError, event: Spot | None) -> None:
        self.error = error
        self.event = event


class Gap:
    """A gap before a value.

    Attributes:
        missing: What is missing.
        item: The value behind it.
        event: Its place; None where there is no value.
        record: Its bytes.
        told: Whether the user has been told.
        filled: Whether the batches have been asked for it.
    """

    def __init__(self, missing: Missing, item: Any, event: PlaceLike | None, record: Record = b"") -> None:
        self.missing = missing
        self.item = item
        self.event = event
        self.record = record
        self.told = False
        self.filled = False


class Lists(Generic[T]):
    """An iterator that is no generator, which an error or a cancelled wait would end for good.

    Args:
        collect: Returns the next list.
    """

    def __init__(self, collect: Callable[[], Awaitable[list[T]]]) -> None:
        self._collect = collect

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        return await self._collect()

    async def aclose(self) -> None:
        """Do nothing: whatever there is belongs to the stream."""


class Runs(Generic[T]):
    """Decodes blocks, one run at a time; a run ends with its block, or at something the consumer must hear of first.

    Attributes:
        items: The values of the present run, `SKIP` among them.
        events: Their places.
        pairs: What of the run is not handed out yet.
        stops: What ended the run early: to be dealt with in order.
        decoded: How many values there were.
        filtered: How many of them `keep` left out.
        bad: How many records did not decode.

    Args:
        shape: How records are decoded.
        progress: Where the stream is.
        keep: Which values are wanted.
        note: Told of each record; False if a batch has already brought it.
        skip_bad: Whether records that do not decode are passed over.
        tell_bad: Told of them if so.
    """

    def __init__(
        self,
        shape: Shape[T],
        progress: Progress,
        *,
        keep: Callable[[Any], bool] | None,
        note: Callable[[Buffer], bool] | None,
        skip_bad: bool,
        tell_bad: Callable[[DecodeError], None],
    ) -> None:
        self.items: list[T] = []
        self.events: list[PlaceLike] = []
        self.pairs: Iterator[tuple[T, PlaceLike]] = iter(())
        self.stops: deque[Bad | Gap] = deque()
        self.decoded = 0
        self.filtered = 0
        self.bad = 0
        self._shape = shape
        self._progress = progress
        self._keep = keep
        self._note = note
        self._skip_bad = skip_bad
        self._tell_bad = tell_bad
        self._handed: dict[int, tuple[T, PlaceLike]] = {}
        self._held: dict[int, tuple[T, PlaceLike]] = {}
        self._block: Block | None = None
        self._decode = shape.decode
        self._records: Iterator[Record] = iter(())
        self._untouched = False
        self._own: frozenset[Any] | None = None

    @property
    def block(self) -> Block | None:
        """The block that is being decoded."""
        return self._block

    def begin(self, block: Block) -> None:
        """Take the next block."""
        self._block = block
        self._records = iter(block.records)
        self._own = block.session.connection.own
        self._untouched = self._keep is None and self._note is None
        short = self._shape.short
        long = block.size > LONG_RECORD * len(block.records)
        self._decode = self._shape.decode if short is None or long else short

    def end(self) -> Block | None:
        """Let go of the block, decoded or not, and return it."""
        block, self._block = self._block, None
        self._records = iter(())
        return block

    def take(self, taken: list[tuple[T, PlaceLike]], limit: int, *, explicit: bool) -> int:
        """Move pairs of the present run to a list and return how many values that has then.

        Args:
            taken: The list. If there is no value in it, it is emptied: nothing before these places is to be processed.
            limit: Values that it may have.
            explicit: Whether values are acknowledged one by one.
        """
        count = sum(item is not SKIP for item, _ in taken)
        while count < limit and (more := list(itertools.islice(self.pairs, limit - count))):
            taken += more
            count += sum(item is not SKIP for item, _ in more)
        if not count:
            for item, event in taken:
                if explicit:
                    self.hand_out(item, event)
                else:
                    self._progress.done[event.partition] = event
            taken.clear()
        return count

    def put_back(self, taken: list[tuple[T, PlaceLike]]) -> None:
        """Have what was taken and not handed out come before the rest of the run, and be known as part of it."""
        # Flat, since this may happen any number of times in a row.
        pairs = [*taken, *self.pairs]
        self.items, self.events = [item for item, _ in pairs], [event for _, event in pairs]
        self.pairs = iter(pairs)

    def hand_out(self, item: T, event: PlaceLike) -> None:
        """Note that a value waits for its own acknowledgement."""
        self._progress.handed_out(event)
        if item is SKIP:
            self._progress.acknowledge_one(event)
        elif not self._shape.direct:
            # An object that waits is kept, so that its identity is not used again.
            self._handed[id(item)] = (item, event)

    def hold(self, pairs: Iterable[tuple[T, PlaceLike]]) -> None:
        """Know the places of a list that is handed out, which may be of several runs, until the next one is held."""
        if not self._shape.direct:
            self._held = {id(item): (item, event) for item, event in pairs}

    def place_of(self, item: T) -> PlaceLike | None:
        """Return the place of a value that was handed out: by its own event, or by identity; None where unknown."""
        if self._shape.direct:
            event: PlaceLike | None = getattr(item, "event", None)
            return None if event is None or event.offset is None else event
        known = self._handed.get(id(item)) or self._held.get(id(item))
        if known is not None:
            return known[1]
        return next((event for each, event in zip(self.items, self.events, strict=True) if each is item), None)

    def forget(self, item: T) -> None:
        """Let go of a value that has been acknowledged."""
        self._handed.pop(id(item), None)

    def decode(self) -> bool:
        """Decode the next run of the block.

        Returns:
            Whether the block is finished; if not, something is in `stops`, or there is another run.
        """
        items: list[Any] = []
        events: list[PlaceLike] = []
        self.items, self.events = items, events
        self.pairs = zip(items, events, strict=True)
        decode, finish, keep, note = self._decode, self._shape.finish, self._keep, self._note
        own = self._own
        seen = self._progress.seen
        last = seen.get
        if self._untouched:
            self._untouched = False
            self._decode_plain(items, events)
        for record in self._records:
            try:
                raw = decode(record)  # type: ignore[arg-type]  # what is no buffer fails, and is looked at below
                event = raw.event
                partition = event.partition
                closer = event.offset <= last(partition, TOP).offset
                item = raw if finish is None else finish(raw)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever leaves a decoder is the record's error
                if decode is not self._shape.decode:
                    # It may be in need of patience; so has what follows, as likely as not.
                    self._decode = self._shape.decode
                    self._records = itertools.chain((record,), self._records)
                elif self._odd(record, error):
                    continue
                return self._ran(items)
            if own is not None and partition not in own:
                # Another connection brings it in its order. Taken from here, it would hide what comes there before it.
                self._progress.duplicates += 1
                continue
            if closer:
                verdict = self._progress_of(partition, event)
                if verdict is False:
                    continue
                if verdict is not True:
                    if verdict is not None:
                        self.stops.append(Gap(verdict, item, event, record))
                    return self._ran(items)
            if keep is not None or note is not None:
                try:
                    if not self._wanted(item, record):
                        item = SKIP
                except DecodeError as error:
                    # A filter looks deeper into the record than its type does.
                    if self._odd(record, error):
                        continue
                    return self._ran(items)
                except BaseException:
                    # The caller's own mistake: it comes out behind what was good, and the record is not lost over it.
                    self._records = itertools.chain((record,), self._records)
                    if not items:
                        raise
                    return self._ran(items)
            seen[partition] = event
            items.append(item)
            events.append(event)
        self._ran(items)
        return True

    def _decode_plain(self, items: list[Any], events: list[PlaceLike]) -> None:
        """Take what is in order at the beginning of a block, in few steps of the interpreter for each event.

        What is not, and all behind it, is left for a closer look. That it may be decoded twice then is of no harm.
        """
        assert self._block is not None
        records = self._block.records
        try:
            values = list(map(self._decode, records))  # type: ignore[arg-type]  # what is no buffer fails
            places = list(map(_event, values))
            if self._shape.finish is not None:
                values = list(map(self._shape.finish, values))
            if self._own is not None and not self._own.issuperset(map(_partition, places)):
                return
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - the closer look says what it is
            return
        seen = self._progress.seen
        last = seen.get
        place = None
        with contextlib.suppress(TypeError, AttributeError):  # it has no place; that is for the closer look to say
            for place in places:
                partition = place.partition
                if place.offset <= last(partition, TOP).offset:
                    break
                seen[partition] = place
            else:
                items += values
                events += places
                self._records = iter(())
                return
        taken = next(number for number, each in enumerate(places) if each is place)
        items += values[:taken]
        events += places[:taken]
        self._records = iter(records[taken:])

    def _ran(self, items: list[Any]) -> bool:
        self.decoded += len(items)
        return False

    def _wanted(self, item: T, record: Record) -> bool:
        if self._keep is not None and not self._keep(item):
            self.filtered += 1
            return False
        return self._note is None or isinstance(record, Oversize) or self._note(record)

    def accept(self) -> None:
        """Take the value behind the gap that was met, in a run of its own."""
        gap = self.stops[0]
        assert isinstance(gap, Gap)
        if gap.event is not None:
            item = gap.item if self._wanted(gap.item, gap.record) else SKIP
            self._progress.seen[gap.event.partition] = gap.event
            self.items, self.events = [item], [gap.event]
            self.decoded += 1
            self.pairs = iter([(item, gap.event)])
        self.stops.popleft()

    def _progress_of(self, partition: Any, event: PlaceLike) -> Missing | bool | None:
        """Look closer at an event; None ends the session."""
        try:
            return self._progress.judge(event)
        except LookAgain as turn:
            assert self._block is not None
            session = self._block.session
            session.connection.look_again(turn.partition, turn.offset)
            self._abandon(
                StreamError(f"the offset asked for in partition {partition} may be gone; asking again by time")
            )
            return None

    def _abandon(self, error: WMEError) -> None:
        assert self._block is not None
        session = self._block.session
        self._records = iter(())
        session.connection.abandon(session, error)

    def _odd(self, record: Record, error: Exception) -> bool:
        """Deal with a record that has no value or no place; say whether the run may go on."""
        told = error_line(record)
        found = None if told is not None else recover(record)
        if found is None:
            assert self._block is not None
            self._block.session.placeless += 1
        if told is not None:
            status, message = told
            self._abandon(ServerError(f"the server wrote an error into the stream: {message}", status=status))
            return False
        event = None
        # As with any other: the place of a partition that another connection reads would hide what comes there before.
        if found is not None and (self._own is None or found.partition in self._own):
            event = self._progress.dated(found)
            verdict: Missing | bool | None = True
            if event.offset <= self._progress.seen.get(event.partition, TOP).offset:
                verdict = self._progress_of(event.partition, event)
            if verdict is None or verdict is False:
                return verdict is False
            self._progress.seen[event.partition] = event
            if verdict is not True:
                self.stops.append(Gap(verdict, SKIP, None))
        self.bad += 1
        self.stops.append(Bad(_describe(record, error, event or found), event))
        if not self._skip_bad or len(self.stops) > 1:
            return False
        self._skip()
        return True

    def pass_over(self) -> None:
        """Let the position move on past the bad record that was met, in a run of its own."""
        self.items, self.events = [], []
        self._skip()
        self.pairs = iter(list(zip(self.items, self.events, strict=True)))

    def _skip(self) -> None:
        bad = self.stops.popleft()
        assert isinstance(bad, Bad)
        self._tell_bad(bad.error)
        if bad.event is not None:
            self.items.append(SKIP)
            self.events.append(bad.event)


def _describe(record: Record, error: Exception, event: Spot | None) -> DecodeError:
    if isinstance(record, Oversize):
        what = f"a record of {record.size} bytes is longer than max_record"
        data = record.head + record.tail
    else:
        data = bytes(record)
        # What decodes but has no event, or an event without a place, fails at the first look at it.
        placeless = event is None and isinstance(error, TypeError | AttributeError)
        reason = failure_reason(error, data)
        what = "a record has no partition and offset" if placeless else f"a record does not decode: {reason}"
    where = f" (partition {event.partition}, offset {event.offset})" if event is not None else ""
    return DecodeError(
        what + where,
        partition=event.partition if event else None,
        offset=event.offset if event else None,
        record=data,
    )
