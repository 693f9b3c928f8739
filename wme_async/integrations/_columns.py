"""From the types of msgspec to Arrow: the schema of a type, and columns from its records."""

from collections.abc import Callable
from datetime import UTC
from typing import Any, Final

import msgspec
import pyarrow as pa
from msgspec import inspect

from wme_async._arguments import check_record_type
from wme_async.errors import DecodeError

__all__ = ["Field", "columns_of", "constant", "known_names", "record_batches", "schema_of", "schema_with"]

Build = Callable[[list[Any]], "pa.Array"]
Column = tuple["pa.DataType", Build]
Field = tuple[str, Callable[[Any], Any], "pa.DataType", Build]


def schema_of(type: Any) -> "pa.Schema":
    """Return the Arrow schema of a Struct, dataclass or TypedDict.

    Raises:
        TypeError: Another type.
    """
    return pa.schema([pa.field(name, kind) for name, _, kind, _ in columns_of(type)])


def schema_with(schema: "pa.Schema", extra: str) -> "pa.Schema":
    """Return a schema with one more column of text.

    Raises:
        ValueError: There is a column of this name.
    """
    if extra in schema.names:
        raise ValueError(f"there is a column {extra!r} already: choose another name for the extra fields")
    return schema.append(pa.field(extra, pa.string()))


def known_names(type: Any) -> frozenset[str]:
    """Return the top-level keys of JSON that a type reads, older spellings included."""
    info: Any = inspect.type_info(type)
    names = {field.encode_name for field in info.fields}
    return frozenset(names | {info.tag_field} if getattr(info, "tag_field", None) else names)


class _TooLarge(Exception):
    """A column has more than 2 GiB of text or bytes, which is more than one Arrow array holds."""


def record_batches(records: list[Any], columns: list[Field], schema: Any) -> list[Any]:
    """Return the records as batches: one, unless a column of it would be larger than an Arrow array can be.

    Raises:
        DecodeError: Arrow cannot hold a record.
        TypeError: The records are not of the type.
    """
    try:
        return [_record_batch(records, columns, schema)]
    except _TooLarge:
        if len(records) == 1:
            raise DecodeError("Arrow cannot hold a record: it has more than 2 GiB of text in one field") from None
        half = len(records) // 2
        return [batch for part in (records[:half], records[half:]) for batch in record_batches(part, columns, schema)]


def _record_batch(records: list[Any], columns: list[Field], schema: Any) -> Any:
    try:
        arrays = [build([get(record) for record in records]) for _, get, _, build in columns]
    except AttributeError as error:
        raise TypeError(f"type is not that of the records: {error}") from error
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise DecodeError(f"Arrow cannot hold a record: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def constant(kind: Any, value: Any, above: tuple[Any, ...]) -> Any:
    """Return an array of one element."""
    return _column(kind, above)[1]([value])


def columns_of(type: Any) -> list[Field]:
    """Return name, getter of a record's value, Arrow type, and array builder for each field."""
    check_record_type(type)
    info = inspect.type_info(type)
    if not isinstance(info, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        raise TypeError(f"a table needs a type with fields, not {type!r}")
    return _fields(info, ())


def _fields(info: Any, above: tuple[Any, ...]) -> list[Field]:
    mapping = isinstance(info, inspect.TypedDictType)
    fields: list[Field] = []
    if getattr(info, "tag_field", None) is not None:
        tag = info.tag
        fields.append(
            (info.tag_field, lambda _: tag, *_leaf(pa.string() if isinstance(tag, str) else pa.int64(), None))
        )
    for field in info.fields:
        if field.name.startswith("_"):  # an alias of a public field
            continue
        kind, build = _column(field.type, (*above, info.cls))
        fields.append((field.encode_name, _getter(field.name, mapping=mapping), kind, build))
    return fields


def _getter(name: str, *, mapping: bool) -> Callable[[Any], Any]:
    if mapping:
        return lambda record: record.get(name)

    def get(record: Any) -> Any:
        value = getattr(record, name)
        return None if value is msgspec.UNSET else value

    return get


def _column(info: Any, above: tuple[Any, ...]) -> Column:
    """Return the Arrow type for a msgspec type, and the function that makes an array of a list of its values."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        types = [member for member in info.types if not isinstance(member, inspect.NoneType)]
        if len(types) == 1:
            return _column(types[0], above)
        if all(isinstance(member, inspect.IntType | inspect.FloatType) for member in types):
            return _leaf(pa.float64(), float)
        return _json()
    if isinstance(info, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        return _json() if info.cls in above else _struct(info, above)
    if isinstance(info, inspect.CollectionType):
        return _list(_column(info.item_type, above))
    if isinstance(info, inspect.DictType) and isinstance(info.key_type, inspect.StrType):
        return _map(_column(info.value_type, above))
    if isinstance(info, inspect.EnumType | inspect.LiteralType):
        values = [member.value for member in info.cls] if isinstance(info, inspect.EnumType) else info.values
        return _leaf(pa.string(), _value) if all(isinstance(value, str) for value in values) else _json()
    if isinstance(info, inspect.DateTimeType):
        # Times that are declared without a zone get a column without one.
        return _leaf(pa.timestamp("us"), None) if info.tz is False else _instants()
    for kind, arrow, change in _LEAVES:
        if isinstance(info, kind):
            return _leaf(arrow, change)
    return _json()


def _value(value: Any) -> Any:
    return getattr(value, "value", value)


_LEAVES: Final[list[tuple[Any, Any, Callable[[Any], Any] | None]]] = [
    (inspect.StrType, pa.string(), None),
    (inspect.BoolType, pa.bool_(), None),
    (inspect.IntType, pa.int64(), None),
    (inspect.FloatType, pa.float64(), None),
    (inspect.DateType, pa.date32(), None),
    (inspect.TimeType, pa.time64("us"), None),
    (inspect.BytesType, pa.binary(), None),
    (inspect.ByteArrayType, pa.binary(), bytes),
    (inspect.MemoryViewType, pa.binary(), bytes),
    (inspect.DecimalType, pa.string(), str),
    (inspect.UUIDType, pa.string(), str),
]


def _leaf(kind: "pa.DataType", change: Callable[[Any], Any] | None) -> Column:
    if change is None:
        return kind, lambda values: _array(values, kind)
    return kind, lambda values: _array([None if value is None else change(value) for value in values], kind)


def _array(values: list[Any], kind: "pa.DataType") -> "pa.Array":
    array = pa.array(values, kind)
    if isinstance(array, pa.ChunkedArray):
        raise _TooLarge
    return array


def _instants() -> Column:
    """Return a column of times in UTC. A time without a zone is ambiguous, so it is an error."""
    kind = pa.timestamp("us", tz="UTC")

    def build(values: list[Any]) -> Any:
        zones = {value.tzinfo for value in values if value is not None}
        if None in zones:
            raise DecodeError(
                "Arrow cannot hold a record: a datetime without a time zone; give it one, or declare its field as "
                "Annotated[datetime, msgspec.Meta(tz=False)]"
            )
        if zones - {UTC}:  # Arrow would accept a time that is in year 0 in UTC, and no reader could decode it
            values = [None if value is None else value.astimezone(UTC) for value in values]
        return _array(values, kind)

    return kind, build


def _json() -> Column:
    encode = msgspec.json.Encoder().encode
    return _leaf(pa.string(), lambda value: encode(value).decode())


def _struct(info: Any, above: tuple[Any, ...]) -> Column:
    fields = _fields(info, above)
    if not fields:
        return _json()
    kind = pa.struct([pa.field(name, column) for name, _, column, _ in fields])
    arrow_fields = list(kind)

    def build(values: list[Any]) -> Any:
        children = [make([None if value is None else get(value) for value in values]) for _, get, _, make in fields]
        missing = [value is None for value in values]
        mask = pa.array(missing, pa.bool_()) if any(missing) else None
        return pa.StructArray.from_arrays(children, fields=arrow_fields, mask=mask)

    return kind, build


def _offsets(values: list[Any]) -> "pa.Array":
    """Return the offset of each list; null for None."""
    offsets: list[int | None] = []
    end = 0
    for value in values:
        offsets.append(None if value is None else end)
        end += 0 if value is None else len(value)
    return pa.array([*offsets, end], pa.int32())


def _list(item: Column) -> Column:
    kind = pa.list_(item[0])

    def build(values: list[Any]) -> Any:
        items = [item for value in values if value is not None for item in value]
        return pa.ListArray.from_arrays(_offsets(values), item[1](items), type=kind)

    return kind, build


def _map(item: Column) -> Column:
    kind = pa.map_(pa.string(), item[0])

    def build(values: list[Any]) -> Any:
        keys = [key for value in values if value is not None for key in value]
        items = [element for value in values if value is not None for element in value.values()]
        return pa.MapArray.from_arrays(_offsets(values), _array(keys, pa.string()), item[1](items), type=kind)

    return kind, build
