"""The messages of a bridge into a broker: key, value, headers, and the positions that they carry. Pure."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote
from zlib import crc32

import msgspec

from wme_async._stream.partitions import is_renumbered
from wme_async._stream.record_types import EventLike, EventPosition, published_of
from wme_async._stream.resume import SKEW
from wme_async.errors import StreamError
from wme_async.offsets.protocol import Position

__all__ = [
    "Checkpoint",
    "Message",
    "MessageMaker",
    "Place",
    "Sent",
    "choose_positions",
    "complete_until",
    "latest",
    "news_of",
    "read_checkpoint",
]

Place = TypeVar("Place", bound=Hashable)

_STREAM: Final = "wme-stream"  # name of the stream and its resource, such as default/articles
_PARTITION: Final = "wme-partition"
_OFFSET: Final = "wme-offset"
_PUBLISHED: Final = "wme-published"
_TYPE: Final = "wme-type"
_COMPLETE: Final = "wme-complete-until"
_POSITIONS: Final = "wme-positions"  # partition:offset:milliseconds, of all partitions that share the place
_BACKFILLED: Final = "wme-backfilled"


class Sent(NamedTuple):
    """The last event of a partition that is in the target, or on its way."""

    offset: int
    published: datetime | None


class _Head(NamedTuple):
    """What a message needs to know of a record."""

    key: str | None
    type: str | None


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


_decode_record: Final = msgspec.json.Decoder(_Record).decode


def _read_head(record: bytes) -> _Head:
    """Return the key and the type of a record.

    The service keys its own events by project and title, so that the events of one title stay in one partition. A title
    comes with spaces or with underscores, and a page that moves keeps its number; so neither the title as it came nor
    the number identifies it.

    Args:
        record: Its JSON. What it lacks, or has in another form, is None.
    """
    try:
        fields = _decode_record(record)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Head(None, None)
    name = fields.name if isinstance(fields.name, str) and fields.name else fields.identifier
    project = fields.is_part_of.identifier if fields.is_part_of is not None else None
    key = None
    if isinstance(name, str | int) and not isinstance(name, bool):
        title = str(name).replace("_", " ")
        key = f"{project}/{title}" if isinstance(project, str) and project else title
    kind = fields.event.type if fields.event is not None else None
    return _Head(key, kind if isinstance(kind, str) else None)


# Positions in headers


class Checkpoint(msgspec.Struct, frozen=True):
    """The positions that a message in the target carries.

    Attributes:
        positions: The last event of each partition that is in the target up to this message.
        complete_until: No event published before is missing from the target, of any partition.
    """

    positions: dict[int, Sent]
    complete_until: datetime | None = None


def _headers_of(
    stream: str,
    event: EventLike | None,
    *,
    kind: str | None,
    complete_until: datetime | None,
    shared: Mapping[int, Sent] | None,
) -> tuple[tuple[str, str], ...]:
    """Return the headers of a message.

    Args:
        stream: The name of the stream and its resource.
        event: The event; None for a record without an offset.
        kind: The type of the event.
        complete_until: No event published before is missing.
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
    if complete_until is not None:
        headers.append((_COMPLETE, complete_until.isoformat()))
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
        until = headers.get(_COMPLETE)
        positions = {}
        if _OFFSET in headers:
            positions[int(headers[_PARTITION])] = Sent(int(headers[_OFFSET]), _time(headers.get(_PUBLISHED)))
        for text in filter(None, headers.get(_POSITIONS, "").split(",")):
            number, offset, time = text.split(":")
            positions[int(number)] = Sent(int(offset), _from_milliseconds(time))
        return Checkpoint(positions, _time(until))
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


# Decisions


def _is_sent(event: EventLike, last: Sent | None) -> bool:
    """Return whether an event is in the target already, from the last one of its partition there."""
    if last is None or event.offset > last.offset:
        return False
    return not is_renumbered(event, EventPosition(event.partition, last.offset, last.published))


def latest(checkpoints: Iterable[Checkpoint]) -> Checkpoint:
    """Return the latest position of each partition in several places of a target, such as partitions of a topic."""
    positions: dict[int, Sent] = {}
    untils = []
    for checkpoint in checkpoints:
        if checkpoint.complete_until is not None:
            untils.append(checkpoint.complete_until)
        for number, sent in checkpoint.positions.items():
            event = EventPosition(number, sent.offset, sent.published)
            if not _is_sent(event, positions.get(number)):
                positions[number] = sent
    return Checkpoint(positions, max(untils, default=None))


def choose_positions(target: Checkpoint, saved: Mapping[int, Position], partitions: int) -> dict[int, Position]:
    """Return the positions to begin with.

    Those of the target come first, also where the saved one is ahead: what the target lacks is then delivered again.
    Where the target has none, the saved one counts; and otherwise the time until which the target is complete.

    Args:
        target: The positions in the target.
        saved: Those in the store of the stream.
        partitions: The number of partitions of the stream.
    """
    positions = dict(saved)
    if target.complete_until is not None:
        for number in range(partitions):
            positions.setdefault(number, Position(-1, target.complete_until))
    for number, sent in target.positions.items():
        known = saved.get(number)
        reached = known.reached if known is not None and known.offset == sent.offset else None
        times = [time for time in (reached, target.complete_until) if time is not None]
        positions[number] = Position(sent.offset, sent.published, max(times, default=None))
    return positions


def complete_until(positions: Mapping[int, Position]) -> datetime | None:
    """Return a time before which no event is missing, from positions up to which everything is in the target."""
    times = []
    for position in positions.values():
        time = position.published
        if time is not None and position.offset >= 0:
            time -= SKEW  # the clocks of the machines that publish events differ
        known = [moment for moment in (time, position.reached) if moment is not None]
        if not known:
            return None
        times.append(max(known))
    return min(times, default=None)


class MessageMaker(Generic[Place]):
    """Makes the messages of a stream, and leaves out what is in the target already.

    Attributes:
        sent: The last event of each partition that is in the target, or on its way.
        skipped: Events left out because the target had them.

    Args:
        stream: The name of the stream and its resource.
        partitions: The number of partitions of the stream.
        place_of: Returns the place in the target of a partition, such as a partition of a topic.
        tombstones: Whether a deletion has no value.
    """

    def __init__(
        self, stream: str, partitions: int, place_of: Callable[[int], Place], *, tombstones: bool = False
    ) -> None:
        self.sent: dict[int, Sent] = {}
        self.skipped = 0
        self._stream = stream
        self._partitions = partitions
        self._place_of = place_of
        self._tombstones = tombstones
        self._sharing: dict[Place, list[int]] = {}
        for number in range(partitions):
            self._sharing.setdefault(place_of(number), []).append(number)

    @property
    def places(self) -> list[Place]:
        """All places, each once."""
        return list(self._sharing)

    def make(self, record: bytes, event: EventLike | None, until: datetime | None) -> tuple[Place, Message] | None:
        """Return the message of a record and its place; None if the target has it already.

        Args:
            record: Its JSON.
            event: Its event; None for a record from an hourly batch, which has no offset.
            until: No event published before is missing from the target.
        """
        head = _read_head(record)
        if event is None:
            number = crc32((head.key or "").encode(errors="surrogatepass")) % self._partitions
        elif _is_sent(event, self.sent.get(event.partition)):
            self.skipped += 1
            return None
        else:
            number = event.partition
            self.sent[number] = Sent(event.offset, published_of(event))
        place = self._place_of(number)
        sharing = self._sharing.get(place, [number])
        shared = None
        if event is None or len(sharing) > 1:
            shared = {other: self.sent[other] for other in sharing if other in self.sent}
        headers = _headers_of(self._stream, event, kind=head.type, complete_until=until, shared=shared)
        deleted = self._tombstones and head.type == "delete" and head.key is not None
        return place, Message(
            partition=number,
            offset=None if event is None else event.offset,
            published=None if event is None else published_of(event),
            key=head.key,
            value=None if deleted else record,
            headers=headers,
        )
