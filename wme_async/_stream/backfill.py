"""Filling a gap from the hourly batches: what they still have, once, and not what the stream brought itself."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from wme_async._stream.partitions import Missing
from wme_async._stream.record_types import Shape
from wme_async.errors import DecodeError
from wme_async.models.decoding import Buffer, decode_json, decoding

__all__ = ["Backfill", "Filler"]

T = TypeVar("T")

Backfill: TypeAlias = Callable[[datetime], AsyncIterator[Buffer]]
"""Yields the records (JSON) of one hour's batches, given the hour; nothing where there are none any more."""

_REMEMBERED: Final = 500_000  # keys; about 50 MB, and several hours of all projects
_SPAN: Final = timedelta(hours=72)  # batches are kept for two days; more hours than that are not worth asking for
_HOUR: Final = timedelta(hours=1)
_READY: Final = timedelta(hours=3)  # after its beginning an hour's batches are there, or will never be
_EVER: Final = datetime.min.replace(tzinfo=UTC)
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
    """Say what makes a record the same one, in the stream and in a batch.

    Updates and deletes of one title differ in the spelling of the name, a move has two events of the same page and
    revision under two names. Where fewer fields were asked for than tell a revision, its event does.
    """
    event = key.event or _NO_EVENT
    version = (key.version or _NO_ID).identifier
    revision = (
        (key.is_part_of or _NO_ID).identifier,
        key.identifier,
        version if version is not None else key.date_modified,
    )
    told = (event.identifier, event.date_created) if None in revision else ()
    return hash((*revision, event.type, key.name.replace("_", " "), *told))


class Filler(Generic[T]):
    """Remembers what was handed out, and yields from batches what was not.

    Args:
        backfill: Yields the records of an hour.
        shape: How records are decoded.
        keep: Which values are wanted.
    """

    def __init__(self, backfill: Backfill, shape: Shape[T], keep: Callable[[Any], bool] | None) -> None:
        self._backfill = backfill
        self._shape = shape
        self._keep = keep
        self._hours: dict[datetime, datetime] = {}  # those that were fetched whole, and from which time on
        self._early = False  # something of the present hour was left out since it was before the gap
        # Whether a record was taken from a batch, by identity, in the order of arrival so that the oldest can go.
        self._known: dict[int, bool] = {}

    def note(self, record: Buffer) -> bool:
        """Remember a record of the stream; return False if a batch has already brought it.

        The stream may send one revision of a page twice with reason, so only what a batch brought counts.
        """
        try:
            identity = _identity(decode_json(record, _key))
        except DecodeError:
            return True
        if self._known.get(identity):
            self._known[identity] = False
            return False
        self._remember(identity, filled=False)
        return True

    def _remember(self, identity: int, *, filled: bool) -> None:
        self._known[identity] = filled
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    async def fill(self, missing: Missing, *, now: datetime) -> AsyncGenerator[T | DecodeError]:
        """Yield what the batches have of the time of a gap.

        An hour that was fetched before is fetched again only if this gap began earlier, or if it had nothing and may
        not have been ready. A record that does not decode is yielded as the error.

        Args:
            missing: The gap.
            now: The server's clock.
        """
        after = max(missing.after or now - _SPAN, now - _SPAN)
        # A batch holds what was processed in its hour, which is not exactly what was published in it.
        hour = _floor(after) - _HOUR
        last = _floor(min(missing.before or now, now)) + _HOUR
        while hour <= last:
            if self._hours.get(hour, _NEVER) > after:
                found = self._early = False
                # Closed at once if the consumer leaves: it may hold a download.
                async with contextlib.aclosing(_closable(self._backfill(hour))) as records:
                    async for record in records:
                        found = True
                        item = self._wanted(record, after)
                        if item is not None:
                            yield item
                if found or hour <= now - _READY:
                    self._hours[hour] = after if self._early else _EVER
            hour += _HOUR

    def _wanted(self, record: Buffer, after: datetime) -> T | DecodeError | None:
        try:
            with decoding(record):
                key = _key.decode(record)
                event = key.event or _NO_EVENT
                times = (event.date_published, event.date_created, key.date_modified)
                # Where the service has no time it may write that of the year 1.
                time = next((moment for moment in times if moment is not None and moment.year > 1), None)
                if time is not None and time.tzinfo is not None and time <= after:
                    self._early = True
                    return None
                raw = self._shape.decode(record)
                item: T = raw if self._shape.finish is None else self._shape.finish(raw)
            identity = _identity(key)
            if identity in self._known or (self._keep is not None and not self._keep(item)):
                return None
        except DecodeError as error:
            identity = hash(bytes(record))
            if identity in self._known:
                return None
            self._remember(identity, filled=False)
            return DecodeError(f"a record of an hourly batch does not decode: {error.message}", record=bytes(record))
        self._remember(identity, filled=True)
        return item


async def _closable(records: AsyncIterator[Buffer]) -> AsyncGenerator[Buffer]:
    try:
        async for record in records:
            yield record
    finally:
        close = getattr(records, "aclose", None)
        if close is not None:
            await close()


def _floor(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
