"""The records of the hourly batches that fill a gap, each once, without those that the stream brought itself."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from wme_async._stream.partitions import Missing
from wme_async._stream.record_types import RecordType
from wme_async.errors import DecodeError
from wme_async.models.decoding import Buffer, decode_json, decoding

T = TypeVar("T")

Backfill: TypeAlias = Callable[[datetime], AsyncGenerator[Buffer]]
"""Yields the records (JSON) of one hour's batches, given the hour; none if the server no longer has them."""

_REMEMBERED: Final = 500_000  # records; about 50 MB, and several hours of all projects
_SPAN: Final = timedelta(hours=72)  # the server keeps batches for two days
_HOUR: Final = timedelta(hours=1)
_READY: Final = timedelta(hours=3)  # after its beginning, when its batches exist or never will
_ALL: Final = datetime.min.replace(tzinfo=UTC)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class _Id(msgspec.Struct, gc=False):
    identifier: Any = None


class _Event(msgspec.Struct, gc=False):
    identifier: Any = None
    type: str = ""
    date_created: datetime | None = None
    date_published: datetime | None = None


class _Key(msgspec.Struct, gc=False):
    name: str = ""
    identifier: Any = None
    is_part_of: _Id | None = None
    version: _Id | None = None
    date_modified: datetime | None = None
    event: _Event | None = None


_NO_ID: Final = _Id()
_NO_EVENT: Final = _Event()
_key: Final = msgspec.json.Decoder(_Key)


def _identity(key: _Key) -> int:
    """Return a hash that is the same for a record of the stream and the same record of a batch.

    Updates and deletes of one title differ in the spelling of the name, a move has two events of the same page and
    revision under two names. If the fields do not identify the revision, the event does.
    """
    event = key.event or _NO_EVENT
    version = (key.version or _NO_ID).identifier
    revision = (
        (key.is_part_of or _NO_ID).identifier,
        key.identifier,
        version if version is not None else key.date_modified,
    )
    event_key = (event.identifier, event.date_created) if None in revision else ()
    return hash((*revision, event.type, key.name.replace("_", " "), *event_key))


class GapFiller(Generic[T]):
    """Remembers the records of the stream, and yields those of the batches that are not among them.

    Args:
        backfill: Yields the records of an hour.
        record_type: Decodes records.
        keep: Returns whether a value is handed out.
    """

    def __init__(self, backfill: Backfill, record_type: RecordType[T], keep: Callable[[Any], bool] | None) -> None:
        self._backfill = backfill
        self._decode = record_type.decode
        self._finish = record_type.finish
        self._keep = keep
        self._hours: dict[datetime, datetime] = {}  # fetched, and the time from which on their records were taken
        self._early = False  # the present hour has a record that is older than the gap
        # By identity, in the order of arrival: whether the record is from a batch. The oldest are forgotten.
        self._known: dict[int, bool] = {}

    def remember(self, record: Buffer) -> bool:
        """Remember a record of the stream; return False if a batch has already brought it.

        The stream may send one revision of a page twice for a reason, so only records of batches count.
        """
        try:
            identity = _identity(decode_json(record, _key))
        except DecodeError:
            return True
        if self._known.get(identity):
            self._known[identity] = False
            return False
        self._store(identity, from_batch=False)
        return True

    def _store(self, identity: int, *, from_batch: bool) -> None:
        self._known[identity] = from_batch
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    async def fill(self, missing: Missing, *, now: datetime) -> AsyncGenerator[T | DecodeError]:
        """Yield the values that the batches have for the time of a gap.

        An hour is fetched again only if this gap began earlier than the one before, or if it had no records and its
        batches may not have existed yet. A record that does not decode is yielded as the error.

        Args:
            missing: The gap.
            now: The server's clock.
        """
        after = max(missing.after or now - _SPAN, now - _SPAN)
        # A batch has the events that were processed in its hour, some of which were published before it.
        hour = _floor(after) - _HOUR
        last = _floor(min(missing.before or now, now)) + _HOUR
        while hour <= last:
            if self._hours.get(hour, _NEVER) > after:
                empty, self._early = True, False
                # Closed at once if the consumer leaves: it may hold a download.
                async with contextlib.aclosing(self._backfill(hour)) as records:
                    async for record in records:
                        empty = False
                        item = self._new(record, after)
                        if item is not None:
                            yield item
                if not empty or hour <= now - _READY:
                    self._hours[hour] = after if self._early else _ALL
            hour += _HOUR

    def _new(self, record: Buffer, after: datetime) -> T | DecodeError | None:
        """Return the value of a record, or the error of one that does not decode; None if it is old or known."""
        try:
            with decoding(record):
                key = _key.decode(record)
                event = key.event or _NO_EVENT
                times = (event.date_published, event.date_created, key.date_modified)
                # The service may write the year 1 for "no time".
                time = next((moment for moment in times if moment is not None and moment.year > 1), None)
                if time is not None and time.tzinfo is not None and time <= after:
                    self._early = True
                    return None
                raw = self._decode(record)
                item: T = raw if self._finish is None else self._finish(raw)
            identity = _identity(key)
            if identity in self._known or (self._keep is not None and not self._keep(item)):
                return None
        except DecodeError as error:
            identity = hash(bytes(record))
            if identity in self._known:
                return None
            self._store(identity, from_batch=False)
            return DecodeError(f"a record of an hourly batch does not decode: {error.message}", record=bytes(record))
        self._store(identity, from_batch=True)
        return item


def _floor(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
