"""Decoding of data from outside: whatever goes wrong in it becomes a `DecodeError`.

`decoding()` and `decode_json()` are the door for all foreign bytes. The set of exceptions that a decoder may raise is
open (`RecursionError`, `decimal.InvalidOperation`, another library's own next release), so no caller lists them.

`make_decoder` takes the bytes of one record to a value of the caller's type, by the quickest way that is as strict.

There are two ways. msgspec decodes straight into the type and skips other keys. orjson unescapes long strings faster:
`orjson.loads` and `msgspec.convert` together win for long records of which the type keeps most; they lose for short
records and for types with few fields. `make_decoder` chooses, and msgspec decides: a record that fails the other way is
decoded by msgspec again, so that no record is lost to a difference between the two.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

from wme_async._arguments import check_record_type
from wme_async.errors import DecodeError, WMEError
from wme_async.models._tolerant import mend

__all__ = [
    "LONG_RECORD",
    "Buffer",
    "Decoder",
    "decode_error",
    "decode_json",
    "decoding",
    "failure_reason",
    "is_plain_data",
    "key_names",
    "make_decoder",
]

T = TypeVar("T")
R = TypeVar("R")

Buffer: TypeAlias = bytes | bytearray | memoryview
Decoder: TypeAlias = Callable[[Buffer], T]

LONG_RECORD: Final = 4096
"""Bytes from which orjson may win. Below about 2.6 KB it never did."""

SAMPLES: Final = 4  # long records that are measured before the choice
_MIN_SHARE: Final = 0.7  # share of a record that the type must keep; the break-even is at about two thirds


def decode_error(error: Exception, record: Buffer | None = None) -> DecodeError:
    """Return the `DecodeError` for an exception that left a decoder, with the reason as its message.

    Args:
        error: The exception; a `DecodeError` is returned as it is.
        record: The bytes, where they are at hand.
    """
    if isinstance(error, DecodeError):
        return error
    data = None if record is None else bytes(record)
    return DecodeError(failure_reason(error, data), record=data)


def failure_reason(error: Exception, record: bytes | None = None) -> str:
    """Return the reason why a record does not decode.

    Args:
        error: The exception of the decoder.
        record: The bytes, to distinguish text that is not UTF-8 from other damage.
    """
    if isinstance(error, DecodeError):
        return error.message
    if isinstance(error, RecursionError):
        return "JSON nested too deeply"
    if record is not None and not isinstance(error, msgspec.ValidationError):
        try:
            record.decode()
        except UnicodeDecodeError as invalid:
            return f"not UTF-8: byte 0x{record[invalid.start]:02x} at position {invalid.start}"
    return str(error) if isinstance(error, msgspec.DecodeError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def decoding(record: Buffer | None = None) -> Iterator[None]:
    """Raise exceptions of this block, which decodes data from outside, as `DecodeError`.

    The package's own errors pass unchanged, and so do `MemoryError` and all that is not an `Exception`: these do not
    concern the data.

    Args:
        record: The bytes, for the `record` of the error.

    Raises:
        DecodeError: Anything else was raised in the block.
    """
    try:
        yield
    except (WMEError, MemoryError):
        raise
    except Exception as error:
        raise decode_error(error, record) from error


def decode_json(data: Buffer, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode one JSON document from outside.

    Args:
        data: The document.
        decoder: A decoder of msgspec.

    Raises:
        DecodeError: It is not JSON, or not of the type; its message is the reason and nothing else.
    """
    with decoding(data):
        return decoder.decode(data)


def make_decoder(type: type[T], *, use_orjson: bool = True) -> Decoder[T]:
    """Return a function that decodes one record from its bytes, without the line end.

    It raises `DecodeError` if the record is not JSON or does not fit the type, after a second attempt in which a `null`
    that the type does not allow counts as absence. The result shares no memory with the argument. The function is not
    thread-safe.

    With orjson, two results differ from msgspec alone, for records that the services do not send: of a duplicate key in
    an object only the last value is checked, and a whole number beyond 64 bits comes as a float where the type takes
    both. Types with `Any`, `Raw`, `bytes`, `Decimal` or types that msgspec does not know never go by orjson.

    Args:
        type: The type of the result: a msgspec Struct or any other type that msgspec supports.
        use_orjson: Whether to use orjson if it is installed.

    Raises:
        TypeError: It is not a type, or msgspec does not support it.
    """
    check_record_type(type)
    judge = msgspec.json.Decoder(type)
    traits = traits_of(type)
    if use_orjson and not traits and (loads := _orjson_loads()) is not None:
        return AdaptiveDecoder(type, judge, loads)
    return _plain(judge, copy="raw" in traits)


def _plain(judge: msgspec.json.Decoder[T], *, copy: bool) -> Decoder[T]:
    strict = judge.decode

    def decode(record: Buffer) -> T:
        try:
            # A Raw is a view of its input, and would keep or lock the caller's block.
            return strict(bytes(record) if copy else record)
        except msgspec.ValidationError as error:
            return _mended(judge, record, error)
        except MemoryError:
            raise
        except Exception as error:
            raise decode_error(error, record) from error

    return decode


def _mended(judge: msgspec.json.Decoder[T], record: Buffer, error: msgspec.ValidationError) -> T:
    with decoding(record):
        return mend(judge, record, error)


def is_plain_data(type: Any) -> bool:
    """Return whether values of a type are equal in all formats: no `Any`, `Raw`, `bytes`, `Decimal`, foreign types."""
    return not traits_of(type)


def _cached(examine: Callable[[Any], R]) -> Callable[[Any], R]:
    """Return a function that keeps its results for classes, of which a model of articles takes milliseconds."""
    of_class = functools.lru_cache(128)(examine)
    # Other types need not be hashable, such as `Annotated` ones.
    return lambda kind: of_class(kind) if isinstance(kind, type) else examine(kind)


@_cached
def key_names(type: Any) -> frozenset[str] | None:
    """Return all keys that a type names, at whatever depth; None where it may want keys that it does not name."""
    names: set[str] = set()
    for node in _nodes(type):
        match node:
            case inspect.StructType() if not node.array_like:
                names.update(field.encode_name for field in node.fields)
                names.update([node.tag_field] if node.tag_field is not None else [])
            case inspect.TypedDictType() | inspect.DataclassType():
                names.update(field.encode_name for field in node.fields)
            case inspect.Metadata() | inspect.UnionType() | inspect.CollectionType() | inspect.TupleType():
                pass
            case _:
                return None
    return frozenset(names)


class AdaptiveDecoder:
    """Decodes the first long records by msgspec, and then long ones by the faster way.

    Attributes:
        prefers_orjson: Whether long records are decoded by orjson.
        samples_left: Long records to measure before the choice.
    """

    __slots__ = ("_judge", "_kept_size", "_loads", "_strict", "_total_size", "_type", "prefers_orjson", "samples_left")

    def __init__(self, type: type[Any], judge: msgspec.json.Decoder[Any], loads: Callable[[Buffer], Any]) -> None:
        self._judge = judge
        self._strict = judge.decode
        self._loads = loads
        self._type = type
        self.samples_left: int = SAMPLES
        self._kept_size = 0
        self._total_size = 0
        self.prefers_orjson: bool = False

    def __call__(self, record: Buffer) -> Any:
        if self.prefers_orjson and len(record) >= LONG_RECORD:
            try:
                return msgspec.convert(self._loads(record), self._type)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - the set is open; msgspec judges again
                value = None
        try:
            value = self._strict(record)
        except msgspec.ValidationError as error:
            return _mended(self._judge, record, error)
        except MemoryError:
            raise
        except Exception as error:
            raise decode_error(error, record) from error
        if self.samples_left and len(record) >= LONG_RECORD:
            self._sample(record, value)
        return value

    def _sample(self, record: Buffer, value: Any) -> None:
        """Compare the size of the value with that of the record, both encoded anew so that escapes do not count."""
        try:
            with decoding():
                record_size = len(msgspec.json.encode(msgspec.json.decode(record)))
                value_size = len(msgspec.json.encode(value))
        except DecodeError:  # in a part that the type skips
            return
        self._kept_size += value_size
        self.samples_left -= 1
        self._total_size += record_size
        self.prefers_orjson = not self.samples_left and self._kept_size >= _MIN_SHARE * self._total_size


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

_COMPOSED: Final = (
    inspect.Metadata,
    inspect.UnionType,
    inspect.CollectionType,
    inspect.TupleType,
    inspect.StructType,
    inspect.TypedDictType,
    inspect.DataclassType,
    inspect.NamedTupleType,
)


@_cached
def traits_of(type: Any) -> frozenset[str]:
    """Return the traits that exclude orjson: `raw`, `other`, or none."""
    traits: set[str] = set()
    for node in _nodes(type):
        if isinstance(node, inspect.RawType):
            traits.add("raw")
        elif isinstance(node, inspect.DictType):
            if not isinstance(node.key_type, inspect.StrType):
                traits.add("other")  # keys of other types are read from strings by the JSON decoder alone
        elif not isinstance(node, _COMPOSED):
            traits.add("other")
    return frozenset(traits)


def _nodes(type: Any) -> Iterator[inspect.Type]:
    """Yield a type and all its parts, without plain ones."""
    visited: set[int] = set()
    todo: list[inspect.Type] = [inspect.type_info(type)]
    while todo:
        node = todo.pop()
        if id(node) in visited or isinstance(node, _PLAIN):
            continue
        visited.add(id(node))
        yield node
        match node:
            case inspect.Metadata():
                todo.append(node.type)
            case inspect.UnionType():
                todo.extend(node.types)
            case inspect.CollectionType():
                todo.append(node.item_type)
            case inspect.TupleType():
                todo.extend(node.item_types)
            case inspect.DictType():
                todo.append(node.value_type)
            case inspect.StructType() | inspect.TypedDictType() | inspect.DataclassType() | inspect.NamedTupleType():
                todo.extend(field.type for field in node.fields)
