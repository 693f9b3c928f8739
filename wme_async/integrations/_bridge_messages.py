"""The messages of a bridge into a broker: key, value, headers, and the positions that they carry. Pure."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote
from zlib import crc32

import msgspec

from wme_async._stream.partitions import is_renumbered
from wme_async._stream.record_types import EventLike, published_of
from wme_async._stream.record_types import EventPosition as EventPosition  # noqa: PLC0414  # for tests too
from wme_async._stream.resume import SKEW
from wme_async.errors import DecodeError, StreamError
from wme_async.models.decoding import decode_json
from wme_async.offsets.protocol import Position

Place = TypeVar("Place", bound=Hashable)

_STREAM: Final = "wme-stream"  # name of the stream and its resource, such as default/articles
_PARTITION: Final = "wme-partition"
_OFFSET: Final = "wme-offset"
_PUBLISHED: Final = "wme-published"
_TYPE: Final = "wme-type"
_COMPLETE: Final = "wme-complete-until"
_PARTITIONS: Final = "wme-partitions"  # those of which that is so
_POSITIONS: Final = "wme-positions"  # partition:offset:milliseconds, of all partitions that share the place
_BACKFILLED: Final = "wme-backfilled"


class Sent(NamedTuple):
    """The last event of a partition that is in the target, or on its way."""

    offset: int
    published: datetime | None


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message for a broker.

    Attributes:
        partition: The partition of the stream.
        offset: The offset of the event; None for a record from an hourly batch.
        published: When the event was published, UTC.
        key: Project and title, which identify the page.
        value: The record as JSON; None for a tombstone.
        headers: Names and values.
    """

    partition: int
    offset: int | None
    published: datetime | None
    key: str | None
    value: bytes | None
    headers: tuple[tuple[str, str], ...]


def news_of(message: Message, reason: str) -> bytes:
    """Return what a dead letter says instead of a record that does not fit there either, as JSON."""
    facts = {
        "reason": reason,
        "key": message.key,
        "partition": message.partition,
        "offset": message.offset,
        "bytes": len(message.value or b""),
    }
    return msgspec.json.encode(facts)


class _Named(msgspec.Struct, gc=False):
    identifier: Any = None


class _Typed(msgspec.Struct, gc=False):
    type: Any = None


class _Record(msgspec.Struct, gc=False):
    name: Any = None
    identifier: Any = None
    is_part_of: _Named | None = None
    event: _Typed | None = None


_decoder: Final = msgspec.json.Decoder(_Record)


def _read_head(record: bytes) -> tuple[str | None, str | None]:
    """Return the key and the type of a record.

    The service keys its own events by project and title, so that the events of one title stay in one partition. A title
    comes with spaces or with underscores, and a page that moves keeps its number; so neither the title as it came nor
    the number identifies it.

    Args:
        record: Its JSON. What it lacks, or has in another form, is None.
    """
    try:
        fields = decode_json(record, _decoder)
    except DecodeError:
        return None, None
    name = fields.name if isinstance(fields.name, str) and fields.name else fields.identifier
    project = fields.is_part_of.identifier if fields.is_part_of is not None else None
    key = None
    if isinstance(name, str | int) and not isinstance(name, bool):
        title = str(name).replace("_", " ")
        key = f"{project}/{title}" if isinstance(project, str) and project else title
    kind = fields.event.type if fields.event is not None else None
    return key, kind if isinstance(kind, str) else None


# Positions in headers


class Checkpoint(msgspec.Struct, frozen=True):
    """The positions that a message in the target carries.

    Attributes:
        positions: The last event of each partition that is in the target up to this message.
        complete: For each partition that its bridge read, the time before which no event is missing from the target.
    """

    positions: dict[int, Sent]
    complete: dict[int, datetime]


class Complete(NamedTuple):
    """How far a target is complete, as the headers of messages say it.

    Attributes:
        until: No event published before is missing; None if that is not known.
        partitions: The partitions of which this is so, which are those that the bridge reads now.
    """

    until: datetime | None
    partitions: Sequence[int]


def _headers_of(
    stream: str,
    event: EventLike | None,
    *,
    kind: str | None,
    complete: Complete,
    shared: Mapping[int, Sent] | None,
) -> tuple[tuple[str, str], ...]:
    """Return the headers of a message.

    Args:
        stream: The name of the stream and its resource.
        event: The event; None for a record without an offset.
        kind: The type of the event.
        complete: How far the target is complete.
        shared: The positions up to this message of all partitions that share its place; None if the event says it all.
    """
    headers = [(_STREAM, quote(stream))]
    if event is None:
        headers.append((_BACKFILLED, "1"))
    else:
        headers += [(_PARTITION, str(event.partition)), (_OFFSET, str(event.offset))]
        published = published_of(event)
        if published is not None:
            headers.append((_PUBLISHED, published.isoformat()))
    if kind is not None and kind.isascii() and kind.isprintable():
        headers.append((_TYPE, kind))
    if complete.until is not None:
        headers += [(_COMPLETE, complete.until.isoformat()), (_PARTITIONS, _ranges_of(complete.partitions))]
    if shared is not None:
        texts = (f"{number}:{sent.offset}:{_milliseconds(sent.published)}" for number, sent in sorted(shared.items()))
        headers.append((_POSITIONS, ",".join(texts)))
    return tuple(headers)


def read_checkpoint(headers: Mapping[str, str], stream: str) -> Checkpoint | None:
    """Return the positions in the headers of a message; None if it is not from a bridge of this stream.

    Args:
        headers: The headers.
        stream: The name of the stream and its resource.

    Raises:
        StreamError: They are from a bridge, and damaged.
    """
    if headers.get(_STREAM) != quote(stream):
        return None
    try:
        until = _time(headers.get(_COMPLETE))
        complete = {} if until is None else dict.fromkeys(_numbers_in(headers[_PARTITIONS]), until)
        positions = {}
        if _OFFSET in headers:
            positions[int(headers[_PARTITION])] = Sent(int(headers[_OFFSET]), _time(headers.get(_PUBLISHED)))
        for text in filter(None, headers.get(_POSITIONS, "").split(",")):
            number, offset, time = text.split(":")
            positions[int(number)] = Sent(int(offset), _from_milliseconds(time))
        return Checkpoint(positions, complete)
    except (KeyError, ValueError, OverflowError) as error:
        raise StreamError(
            f"a message of the bridge {stream!r} has damaged headers: {dict(headers)}; use another target, or "
            'positions="store"'
        ) from error


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return time


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _milliseconds(time: datetime | None) -> str:
    return "" if time is None else str((time - _EPOCH) // timedelta(milliseconds=1))


def _from_milliseconds(text: str) -> datetime | None:
    return _EPOCH + timedelta(milliseconds=int(text)) if text else None


def _ranges_of(numbers: Iterable[int]) -> str:
    """Return numbers, which are in order, as text: `0-4,10-14`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}-{last}" for first, last in ranges)


def _numbers_in(text: str) -> list[int]:
    ends = [part.split("-") for part in text.split(",")]
    return [number for first, last in ends for number in range(int(first), int(last) + 1)]


# Decisions


def _is_sent(event: EventLike, last: Sent | None) -> bool:
    """Return whether an event is in the target already, from the last one of its partition there."""
    return (
        last is not None
        and event.offset <= last.offset
        and not is_renumbered(event, EventPosition(event.partition, last.offset, last.published))
    )


def _is_later(one: Sent, other: Sent) -> bool:
    """Return whether one event of a partition is behind another, also if the partition was numbered anew in between."""
    first, second = (EventPosition(0, sent.offset, sent.published) for sent in (one, other))
    return is_renumbered(first, second) or (one.offset > other.offset and not is_renumbered(second, first))


def latest(checkpoints: Iterable[Checkpoint]) -> Checkpoint:
    """Return the latest position of each partition in several places of a target, such as partitions of a topic."""
    result = Checkpoint({}, {})
    for checkpoint in checkpoints:
        for number, time in checkpoint.complete.items():
            result.complete[number] = max(time, result.complete.get(number, time))
        for number, sent in checkpoint.positions.items():
            known = result.positions.get(number)
            if known is None or _is_later(sent, known):
                result.positions[number] = sent
    return result


def choose_positions(target: Checkpoint, saved: Mapping[int, Position]) -> dict[int, Position]:
    """Return the positions to begin with.

    Those of the target come first, also where the saved one is ahead: what the target lacks is then delivered again.
    Where the target has none, the saved one counts; and otherwise the time until which the target is complete.

    Args:
        target: The positions in the target.
        saved: Those in the store of the stream.
    """
    positions = {}
    for number in {*saved, *target.positions, *target.complete}:
        known, sent, complete = saved.get(number), target.positions.get(number), target.complete.get(number)
        if sent is not None:
            reached = known.reached if known is not None and known.offset == sent.offset else None
            positions[number] = Position(sent.offset, sent.published, _later(reached, complete))
        elif known is not None and known.offset >= 0:
            positions[number] = Position(known.offset, known.published, _later(known.reached, complete))
        else:
            begin = None if known is None else _later(known.published, known.reached)
            positions[number] = Position(-1, _later(begin, complete))
    return positions


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((time for time in (one, other) if time is not None), default=None)


def complete_until(positions: Mapping[int, Position]) -> Complete:
    """Return how far the target is complete, from positions up to which everything is in it."""
    times = []
    for position in positions.values():
        time = position.published
        if time is not None and position.offset >= 0:
            time -= SKEW  # the clocks of the machines that publish events differ
        times.append(_later(time, position.reached))
    until = None if None in times else min((time for time in times if time is not None), default=None)
    return Complete(until, sorted(positions))


class MessageMaker(Generic[Place]):
    """Makes the messages of a stream, and leaves out what is in the target already.

    Attributes:
        sent: The last event of each partition that is in the target, or on its way.
        skipped: Events left out because the target had them.

    Args:
        stream: The name of the stream and its resource.
        partitions: The partitions that it reads.
        place_of: Returns the place in the target of a partition, such as a partition of a topic.
        tombstones: Whether a deletion has no value.
    """

    def __init__(
        self, stream: str, partitions: Sequence[int], place_of: Callable[[int], Place], *, tombstones: bool = False
    ) -> None:
        self.sent: dict[int, Sent] = {}
        self.skipped = 0
        self._stream = stream
        self._partitions = partitions
        self._place_of = place_of
        self._tombstones = tombstones
        self._sharing: dict[Place, list[int]] = {}
        for number in partitions:
            self._sharing.setdefault(place_of(number), []).append(number)

    def begin(self, partitions: Sequence[int], target: Checkpoint) -> None:
        """Note what the target has of some partitions, from which these are read."""
        others = {number: sent for number, sent in self.sent.items() if number not in partitions}
        self.sent = others | {number: target.positions[number] for number in partitions if number in target.positions}

    def places_of(self, partitions: Iterable[int]) -> list[Place]:
        """Return the places of some partitions, each once."""
        return list(dict.fromkeys(map(self._place_of, partitions)))

    def shared_by(self, parts: Mapping[int, int]) -> list[Place]:
        """Return the places that partitions of more than one part share, from the part of each partition."""
        return [place for place, numbers in self._sharing.items() if len({parts[number] for number in numbers}) > 1]

    def make(self, record: bytes, event: EventLike | None, complete: Complete) -> tuple[Place, Message] | None:
        """Return the message of a record and its place; None if the target has it already.

        Args:
            record: Its JSON.
            event: Its event; None for a record from an hourly batch, which has no offset.
            complete: How far the target is complete.

        Raises:
            StreamError: It is of a partition that the stream does not have.
        """
        key, kind = _read_head(record)
        if event is None:
            digest = crc32((key or "").encode(errors="surrogatepass"))
            numbers = complete.partitions or self._partitions
            number = numbers[digest % len(numbers)]
        elif event.partition not in self._partitions:
            raise StreamError(f"the stream delivered an event of partition {event.partition}, which it should not have")
        elif _is_sent(event, self.sent.get(event.partition)):
            self.skipped += 1
            return None
        else:
            number = event.partition
            self.sent[number] = Sent(event.offset, published_of(event))
        place = self._place_of(number)
        sharing = self._sharing[place]
        shared = None
        if event is None or len(sharing) > 1:
            shared = {other: self.sent[other] for other in sharing if other in self.sent}
        headers = _headers_of(self._stream, event, kind=kind, complete=complete, shared=shared)
        deleted = self._tombstones and kind == "delete" and key is not None
        return place, Message(
            partition=number,
            offset=None if event is None else event.offset,
            published=None if event is None else published_of(event),
            key=key,
            value=None if deleted else record,
            headers=headers,
        )
