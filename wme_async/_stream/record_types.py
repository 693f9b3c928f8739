"""From a record to the user's type and to its position in the stream, in one pass over the bytes where possible."""

import contextlib
import inspect
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from wme_async._stream.framing import Oversize, Record
from wme_async.errors import DecodeError
from wme_async.models.decoding import Buffer, decode_json, is_plain_data, make_decoder
from wme_async.offsets.protocol import is_storable

T = TypeVar("T")


class EventPosition(msgspec.Struct, gc=False):
    """The fields of an event that say where it is; decoded where the user's type does not have them.

    The types are as wide as possible, so that a record is not lost over its bookkeeping.
    """

    partition: int | None = None
    offset: int | None = None
    date_published: Any = None


class EventLike(Protocol):
    """An event: `EventPosition`, a model's event, or that of a user's type."""

    @property
    def partition(self) -> Any: ...
    @property
    def offset(self) -> Any: ...
    @property
    def date_published(self) -> Any: ...


class _Positioned(msgspec.Struct, gc=False):
    event: EventPosition | None = None


class _Pair(msgspec.Struct):
    """A value whose type has no field for its event, and the event."""

    item: Any
    event: EventPosition | None


class RecordType(Generic[T]):
    """How records are decoded into a type, and where their events are.

    Three ways, the fastest that the type allows:

    - The type has an event with partition and offset, as `Article` has.
    - It is a Struct without anything called `event`: records are decoded into a subclass with an event, and a value of
      the type itself is made of the result.
    - Anything else (`dict`, `msgspec.Raw`, a Struct whose event lacks the offset): a second pass decodes the event.

    Attributes:
        decode: Decodes a record; the result has an attribute `event`.
        decode_short: The same by msgspec alone, which saves a tenth of the time of a small record. `decode` accepts
            some records that it does not. None if the type does not allow it.
        finish: Makes the user's value from the result; None if the result is the value.
        has_position: Whether the values have partition and offset in their own event.

    Args:
        type: The type to decode into.

    Raises:
        TypeError: msgspec cannot decode into it.
    """

    def __init__(self, type: type[T]) -> None:
        self.finish: Callable[[Any], T] | None = None
        self.has_position = False
        self.decode: Callable[[Buffer], Any]
        self.decode_short: Callable[[Buffer], Any] | None = None
        cls: Any = type
        if inspect.isclass(cls) and issubclass(cls, msgspec.Struct):
            fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
            if "event" in fields and _has_position(fields["event"].type) and fields["event"].name == "event":
                self.has_position = True
                self.decode, self.decode_short = _decoders(type)
                return
            names = {field.name for field in fields.values()}
            if "event" not in fields and "event" not in names and not cls.__struct_config__.array_like:
                subclass, self.finish = _with_event(type)
                self.decode, self.decode_short = _decoders(subclass)
                return
        self.decode, self.finish = _two_passes(type)

    def check_value(self, value: object) -> None:
        """Raise if a value cannot be one of this type.

        Raises:
            TypeError: It is a list, or lacks the event that all values of the type have.
        """
        if isinstance(value, list) or (self.has_position and not hasattr(value, "event")):
            name = value.__class__.__name__
            raise TypeError(f"ack takes one event as it was handed out, not {name}: call it for each of a list")


def _has_position(annotation: Any) -> bool:
    """Return whether a type, or one member of a union with None, is a Struct with the fields of `EventPosition`."""
    for member in getattr(annotation, "__args__", (annotation,)):
        if inspect.isclass(member) and issubclass(member, msgspec.Struct):
            fields = {field.name: field.encode_name for field in msgspec.structs.fields(member)}
            return all(fields.get(name) == name for name in EventPosition.__struct_fields__)
    return False


def _decoders(type: Any) -> tuple[Callable[[Buffer], Any], Callable[[Buffer], Any] | None]:
    # msgspec alone would leave a `Raw` inside a value as a view of the whole block; `make_decoder` copies it.
    return make_decoder(type), msgspec.json.Decoder(type).decode if is_plain_data(type) else None


def _with_event(type: type[T]) -> tuple[Any, Callable[[Any], T]]:
    """Return a subclass that has an event, and a function that makes a value of the type from one of the subclass.

    The user's `__post_init__` runs once, on the final value.
    """
    base: Any = type
    subclass = msgspec.defstruct(
        type.__name__,
        [("event", EventPosition | None, msgspec.field(name="event", default=None))],
        bases=(base,),
        kw_only=True,
        module=type.__module__,
        namespace={"__post_init__": lambda _: None} if hasattr(type, "__post_init__") else None,
    )
    names = type.__struct_fields__  # type: ignore[attr-defined]  # only called with Structs
    parameters = inspect.signature(type).parameters
    positional = [name for name in names if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    keywords = [name for name in names if name not in positional]
    # Compiled once for the type: a loop over the fields would take three times as long for each event.
    arguments = [f"raw.{name}" for name in positional] + [f"{name}=raw.{name}" for name in keywords]
    finish: Callable[[Any], T] = eval(f"lambda raw: make({', '.join(arguments)})", {"make": type})  # noqa: S307  # names of fields are identifiers
    return subclass, finish


def _two_passes(type: type[T]) -> tuple[Callable[[Buffer], Any], Callable[[Any], T]]:
    decode = make_decoder(type)

    def decode_both(record: Buffer) -> _Pair:
        return _Pair(decode(record), _positioned.decode(record).event)

    return decode_both, lambda pair: pair.item


_positioned: Final = msgspec.json.Decoder(_Positioned)
# With the character behind it: where a record was cut inside its offset, the remaining digits are another offset.
_POSITION: Final = re.compile(rb'"partition"\s*:\s*(\d{1,9})\s*,\s*"offset"\s*:\s*(\d{1,18})\s*[,}]')
_PUBLISHED: Final = re.compile(rb'"date_published"\s*:\s*"([^"\\]{10,40})"')


def recover_position(record: Record) -> EventPosition | None:
    """Return the position of a record that does not decode, or of which only both ends are known.

    Quotes inside strings are escaped, so the keys cannot be part of a text.
    """
    data: Buffer = record.tail if isinstance(record, Oversize) else record
    with contextlib.suppress(DecodeError):
        event = decode_json(data, _positioned).event
        if event is not None and event.partition is not None and event.offset is not None:
            return event if is_storable(event.partition, event.offset) else None
    data = bytes(data)
    matches = list(_POSITION.finditer(data))
    if not matches:
        return None
    times = list(_PUBLISHED.finditer(data))
    partition, offset = matches[-1].groups()
    return EventPosition(int(partition), int(offset), times[-1][1].decode(errors="replace") if times else None)


class ErrorLine(msgspec.Struct, forbid_unknown_fields=True):
    """An error that the server wrote into the stream.

    Attributes:
        status: Its HTTP status.
        message: Its text.
    """

    status: int
    message: str


_error_line: Final = msgspec.json.Decoder(ErrorLine)


def decode_error_line(record: Record) -> ErrorLine | None:
    """Return the error if a record is one that the server wrote into the stream; None if it is not."""
    if not isinstance(record, Oversize):
        with contextlib.suppress(DecodeError):
            return decode_json(record, _error_line)
    return None


def published_of(event: EventLike) -> datetime | None:
    """Return when an event was published, as an aware datetime; None if it has no time in a known form."""
    value = event.date_published
    if isinstance(value, str):
        try:
            value = msgspec.convert(value, datetime)
        except msgspec.ValidationError:
            return None
    # The service writes the years 1 and 9999 for "no time", and in another zone they may not even be dates.
    if not isinstance(value, datetime) or value.tzinfo is None or not 1 < value.year < 9999:
        return None
    return value.astimezone(UTC)
