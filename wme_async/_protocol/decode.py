"""From the bytes of one JSON record to a value of the caller's type, by the quickest way that is as strict.

There are two ways. msgspec reads straight into the type and skips what the type does not name. orjson unescapes long
strings faster, so that for long records of which most is kept `orjson.loads` and `msgspec.convert` together win; for
short records, and for types that name little, they lose. `make_decoder` picks, and msgspec stays the judge: what the
other way refuses is asked of msgspec again, so that no record is lost to a difference between the two.
"""

import importlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

__all__ = ["DECODE_ERRORS", "LONG_RECORD", "Buffer", "Decoder", "make_decoder", "why"]

T = TypeVar("T")

Buffer: TypeAlias = bytes | bytearray | memoryview
Decoder: TypeAlias = Callable[[Buffer], T]

DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that a decoder raises for bytes that are no JSON, or not of the type. msgspec lets the last two through."""

LONG_RECORD: Final = 4096
"""Bytes from which orjson may win. Below about 2.6 KB it never did."""

_SAMPLES: Final = 4  # long records looked at before the choice is made
_KEPT: Final = 0.7  # share of a record that the type must keep; the two ways break even at about two thirds


def make_decoder(
    type: type[T],
    *,
    use_orjson: bool = True,
    fallback: Callable[[Buffer, msgspec.ValidationError], T] | None = None,
) -> Decoder[T]:
    """Return a function that decodes one record, given as bytes without their line end.

    What it returns shares no memory with its argument. It is not for use by several threads at a time.

    With orjson, two things differ from msgspec alone, neither of which the services send: of a key that stands twice in
    one object only the last value is checked, and a whole number beyond 64 bits comes as a float where the type takes
    both. Types with `Any`, `Raw`, `bytes`, `Decimal` or types that msgspec does not know never go by orjson.

    Args:
        type: What to decode into: a msgspec Struct or anything else msgspec knows.
        use_orjson: Whether orjson may be used where it is installed.
        fallback: Called with the record and the error where the JSON is well-formed but does not fit; it returns the
            value after all or raises one of `DECODE_ERRORS`.

    Raises:
        TypeError: msgspec cannot decode into this type.
    """
    strict = msgspec.json.Decoder(type).decode
    traits = _traits(type)
    decode: Decoder[T] = strict
    if "raw" in traits:
        decode = _copying(strict)
    elif use_orjson and not traits and (loads := _orjson_loads()) is not None:
        decode = _Choosing(type, strict, loads)
    return decode if fallback is None else _with_fallback(decode, fallback)


def why(error: BaseException) -> str:
    """Say in words what was wrong with a record, given one of `DECODE_ERRORS`."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} 0x{error.object[error.start]:02x}"
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    if str(error) == "Input data was truncated":
        return "JSON ends too early"
    return str(error)


class _Choosing:
    """Watch the first long records, then settle on a way."""

    __slots__ = ("_all", "_convert_to", "_kept", "_left", "_loads", "_quick", "_strict")

    def __init__(self, type: type[Any], strict: Decoder[Any], loads: Callable[[Buffer], Any]) -> None:
        self._strict = strict
        self._loads = loads
        self._convert_to = type
        self._left = _SAMPLES
        self._kept = 0
        self._all = 0
        self._quick = False

    def __call__(self, record: Buffer) -> Any:
        if len(record) < LONG_RECORD:
            return self._strict(record)
        if self._quick:
            try:
                return msgspec.convert(self._loads(record), self._convert_to)
            except (ValueError, RecursionError):  # both libraries' errors are ValueErrors
                return self._strict(record)
        value = self._strict(record)
        if self._left:
            self._sample(record, value)
        return value

    def _sample(self, record: Buffer, value: Any) -> None:
        """Compare what was kept with what was there, both written anew so that escapes do not count."""
        try:
            whole = len(msgspec.json.encode(msgspec.json.decode(record)))
            self._kept += len(msgspec.json.encode(value))
        except (ValueError, RecursionError):  # bad UTF-8 in a part that the type skips
            return
        self._left -= 1
        self._all += whole
        self._quick = not self._left and self._kept >= _KEPT * self._all


def _copying(strict: Decoder[T]) -> Decoder[T]:
    def decode(record: Buffer) -> T:
        return strict(bytes(record))  # a Raw is a view of its input, and would keep or lock the caller's block

    return decode


def _with_fallback(decode: Decoder[T], fallback: Callable[[Buffer, msgspec.ValidationError], T]) -> Decoder[T]:
    def patient(record: Buffer) -> T:
        try:
            return decode(record)
        except msgspec.ValidationError as error:
            return fallback(record, error)

    return patient


def _orjson_loads() -> Callable[[Buffer], Any] | None:
    try:
        loads: Callable[[Buffer], Any] = importlib.import_module("orjson").loads
    except ImportError:
        return None
    return loads


_PLAIN: Final = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.UUIDType,
    inspect.EnumType,
    inspect.LiteralType,
)


def _traits(type: Any) -> set[str]:
    """Return what keeps a type from going by orjson: `raw`, `other`, or nothing."""
    found: set[str] = set()
    seen: set[int] = set()
    todo: list[Any] = [inspect.type_info(type)]
    while todo:
        node = todo.pop()
        if id(node) in seen or isinstance(node, _PLAIN):
            continue
        seen.add(id(node))
        match node:
            case inspect.Metadata():
                todo.append(node.type)
            case inspect.RawType():
                found.add("raw")
            case inspect.UnionType():
                todo.extend(node.types)
            case inspect.CollectionType():
                todo.append(node.item_type)
            case inspect.TupleType():
                todo.extend(node.item_types)
            case inspect.DictType():
                todo.append(node.value_type)
                if not isinstance(node.key_type, inspect.StrType):
                    found.add("other")  # keys of other types are read from strings by the JSON decoder alone
            case inspect.StructType() | inspect.TypedDictType() | inspect.DataclassType() | inspect.NamedTupleType():
                todo.extend(field.type for field in node.fields)
            case _:
                found.add("other")
    return found
