"""From a record to the user's type and to its place on the stream, in one pass over the bytes where possible."""

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

__all__ = ["Place", "PlaceLike", "Shape", "Spot", "error_line", "published_of", "recover"]

T = TypeVar("T")


class Place(msgspec.Struct, gc=False):
    """What is read of an event if the user's type does not have it; also the fallback for records that do not fit.

    The types are as wide as can be, so that a record is not lost over its bookkeeping.
    """

    partition: int | None = None
    offset: int | None = None
    date_published: str | float | bool | None = None


class PlaceLike(Protocol):
    """An event: ours, or that of a user's type."""

    @property
    def partition(self) -> Any: ...
    @property
    def offset(self) -> Any: ...
    @property
    def date_published(self) -> Any: ...


class _Placed(msgspec.Struct, gc=False):
    event: Place | None = None


class _Pair:
    """A value that has no room for its event."""

    __slots__ = ("event", "item")

    def __init__(self, item: Any, event: Place | None) -> None:
        self.item = item
        self.event = event


class Shape(Generic[T]):
    """How a type is decoded and where its event is.

    Three ways, the quickest that the type allows:

    - It has an event with partition and offset itself, as `Article` has.
    - It is a Struct without anything called `event`: a subclass with an event is decoded, and a value of the type
      itself is made of it.
    - Anything else (`dict`, `msgspec.Raw`, a Struct whose event lacks the offset): the event is read in a second pass.

    Attributes:
        decode: Returns an object with `event` for the bytes of a record.
        short: The same for records that are short and in order: nothing but msgspec, which saves a tenth of the time of
            a small event. What it refuses may still be something to `decode`. None where the type does not allow it.
        finish: Makes the user's value of that object; None where it is the same.

    Args:
        type: What to decode into.

    Raises:
        TypeError: msgspec cannot decode into it.
    """

    def __init__(self, type: type[T]) -> None:
        self.type = type
        self.finish: Callable[[Any], T] | None = None
        self.direct = False
        self.decode: Callable[[Buffer], Any]
        self.short: Callable[[Buffer], Any] | None = None
        kind: Any = type  # what it is, is found out here
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
            fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
            if "event" in fields and _has_place(fields["event"].type) and fields["event"].name == "event":
                self.direct = True
                self.decode, self.short = _decoders(type)
                return
            names = {field.name for field in fields.values()}
            if "event" not in fields and "event" not in names and not kind.__struct_config__.array_like:
                tracked, self.finish = _derived(type)
                self.decode, self.short = _decoders(tracked)
                return
        self.decode, self.finish = _two_passes(type)

    def check(self, value: object) -> None:
        """Refuse what cannot be a value of this shape.

        Raises:
            TypeError: It is a list, or lacks the event that all values of this type have.
        """
        if isinstance(value, list) or (self.direct and not hasattr(value, "event")):
            what = value.__class__.__name__
            raise TypeError(f"ack takes one event as it was handed out, not {what}: call it for each of a list")


def _has_place(annotation: Any) -> bool:
    """Say whether a type, or one member of a union with None, is a Struct with all that is needed."""
    for member in getattr(annotation, "__args__", (annotation,)):
        if inspect.isclass(member) and issubclass(member, msgspec.Struct):
            fields = {field.name: field.encode_name for field in msgspec.structs.fields(member)}
            return all(fields.get(name) == name for name in Place.__struct_fields__)
    return False


def _decoders(type: Any) -> tuple[Callable[[Buffer], Any], Callable[[Buffer], Any] | None]:
    # A value with a Raw in it would be a view of the caller's block; the patient way copies.
    return make_decoder(type), msgspec.json.Decoder(type).decode if is_plain_data(type) else None


def _derived(type: type[T]) -> tuple[Any, Callable[[Any], T]]:
    """Return a subclass that has an event, to decode into, and what builds the real thing from its values.

    The user's `__post_init__` runs once, on the real thing.
    """
    base: Any = type
    tracked = msgspec.defstruct(
        type.__name__,
        [("event", Place | None, msgspec.field(name="event", default=None))],
        bases=(base,),
        kw_only=True,
        module=type.__module__,
        namespace={"__post_init__": lambda _: None} if hasattr(type, "__post_init__") else None,
    )
    names = type.__struct_fields__  # type: ignore[attr-defined]  # only called with Structs
    kinds = inspect.signature(type).parameters
    first = [name for name in names if kinds[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    rest = [name for name in names if name not in first]
    # Written out once for the type: a loop over the fields would take three times as long for each event.
    arguments = [f"raw.{name}" for name in first] + [f"{name}=raw.{name}" for name in rest]
    finish: Callable[[Any], T] = eval(f"lambda raw: make({', '.join(arguments)})", {"make": type})  # noqa: S307  # names of fields are identifiers
    return tracked, finish


def _two_passes(type: type[T]) -> tuple[Callable[[Buffer], Any], Callable[[Any], T]]:
    decode = make_decoder(type)
    place = msgspec.json.Decoder(_Placed).decode

    def both(record: Buffer) -> _Pair:
        return _Pair(decode(record), place(record).event)

    return both, lambda pair: pair.item


_place: Final = msgspec.json.Decoder(_Placed)
# With what follows it: where a record was cut inside its offset, the digits that are left are another one.
_PLACE: Final = re.compile(rb'"partition"\s*:\s*(\d{1,9})\s*,\s*"offset"\s*:\s*(\d{1,18})\s*[,}]')
_PUBLISHED: Final = re.compile(rb'"date_published"\s*:\s*"([^"\\]{10,40})"')


class Spot(msgspec.Struct, gc=False):
    """The place of a record that was made out."""

    partition: int
    offset: int
    date_published: Any = None


def recover(record: Record) -> Spot | None:
    """Make out the place of a record that does not decode, or of which only the ends are there.

    Quotes inside strings are escaped, so the keys cannot be part of a text.
    """
    data: Buffer = record.tail if isinstance(record, Oversize) else record
    with contextlib.suppress(DecodeError):
        event = decode_json(data, _place).event
        if event is not None and event.partition is not None and event.offset is not None:
            return Spot(event.partition, event.offset, event.date_published)
    data = bytes(data)
    found = list(_PLACE.finditer(data))
    if not found:
        return None
    times = list(_PUBLISHED.finditer(data))
    partition, offset = found[-1].groups()
    return Spot(int(partition), int(offset), times[-1][1].decode(errors="replace") if times else None)


class _ErrorLine(msgspec.Struct, forbid_unknown_fields=True):
    status: int
    message: str


_error_line: Final = msgspec.json.Decoder(_ErrorLine)


def error_line(record: Record) -> tuple[int, str] | None:
    """Return status and message if a record is not an event but an error that the server wrote into the stream."""
    if isinstance(record, Oversize):
        return None
    try:
        answer = decode_json(record, _error_line)
    except DecodeError:
        return None
    return answer.status, answer.message


def published_of(event: PlaceLike) -> datetime | None:
    """Return when an event was published, as an aware datetime; None where it does not say so in a known form."""
    value = event.date_published
    if isinstance(value, str):
        try:
            value = msgspec.convert(value, datetime)
        except msgspec.ValidationError:
            return None
    # Years 1 and 9999 say that there is no time, and in another zone they may not even be dates.
    if not isinstance(value, datetime) or value.tzinfo is None or not 1 < value.year < 9999:
        return None
    return value.astimezone(UTC)
