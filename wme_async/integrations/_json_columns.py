"""NDJSON to Arrow columns without a Struct per record, wherever the result provably equals msgspec's.

pyarrow's JSON reader parses a block of lines in C++, in less time than decoding into Structs and building columns from
them takes, and beside other threads. It is laxer than msgspec in some places and stricter in others, so a block for
which equality is not certain goes to msgspec (`parse` returns None):

- The reader accepts invalid JSON and more or less than one object per line (`NaN`, two records on one line, one on
  two lines). So msgspec first validates each line without building objects.
- The reader takes `null` for absence everywhere. For the fields of an object msgspec's way here does so too; inside a
  list, a `null` goes to msgspec. So do numbers that overflow a float, and text that is not UTF-8.
- Times are read as text and converted by arithmetic on columns: `2026-11-29T05:00:00Z` with up to nine digits of a
  second, from the year 1. Every other spelling goes to msgspec.
- Whatever the reader rejects goes to msgspec: numbers as text, duplicate keys, whole numbers beyond 64 bits.

A type qualifies if it is a Struct without a tag, array encoding, `forbid_unknown_fields` or its own
`__post_init__`. Its fields qualify if they are text, booleans, numbers, times with a zone, `Literal` or `Enum` of text,
or Structs and lists of these, without constraints; nullable ones if their default is None. Any other field with a
default (a mapping, a union, a Struct inside itself) must be absent; if it occurs, the block goes to msgspec.
`wme_async.models` use `__post_init__` to fold old spellings of fields: a block with such a spelling goes to msgspec.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from msgspec import inspect

__all__ = ["JSONColumns", "json_columns"]

_YEAR: Final = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_TIME: Final = f"^{_YEAR}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}([.][0-9]{{1,9}})?Z$"
_SECOND: Final = len("2026-11-29T05:00:00")
_INSTANT: Final = pa.timestamp("us", tz="UTC")
_YEAR_10000: Final = 253_402_300_800_000_000  # microseconds since 1970

Finish = Callable[[Any, Any], Any]
"""Makes a column of the schema from the column that the JSON reader returned. The second argument is a boolean array of
the rows that exist, since a column of a nested Struct also has rows without that Struct; None means all.
Raises `_NotCertain`."""

Constant = Callable[[Any, Any, tuple[Any, ...]], Any]
"""Makes an array of one element, given a msgspec type, a value of it, and the Structs around it."""


class _NotCertain(Exception):
    """The result might differ from msgspec's."""


class _Unsupported(Exception):
    """The type does not qualify."""


class _Anything(msgspec.Struct):
    """An object whose fields are checked and dropped."""


class JSONColumns:
    """Parses blocks of NDJSON into record batches of one schema.

    Args:
        schema: The schema of the batches, that of the Struct.
        read: The schema for the JSON reader, in the same order; more fields may follow, which must be null.
        finish: Makes each column of the schema.
    """

    def __init__(self, schema: "pa.Schema", read: "pa.Schema", finish: list[Finish]) -> None:
        self.schema = schema
        self._finish = finish
        self._validate = msgspec.json.Decoder(_Anything).decode
        self._options = pj.ParseOptions(explicit_schema=read, unexpected_field_behavior="ignore")

    def parse(self, data: bytes, lines: int) -> "pa.RecordBatch | None":
        """Return the records of a block, or None where they might differ from those that msgspec decodes.

        Args:
            data: Whole lines, each ended by a line feed.
            lines: Their number.
        """
        if not self._is_valid(data, lines):
            return None
        options = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        try:
            table = pj.read_json(pa.BufferReader(data), read_options=options, parse_options=self._options)
            table.validate(full=True)
            if table.num_rows != lines:
                return None
            columns = [column.chunk(0) for column in table.columns]  # one block, one chunk
            if any(column.null_count != lines for column in columns[len(self._finish) :]):
                return None
            finished = [finish(column, None) for finish, column in zip(self._finish, columns, strict=False)]
        except (_NotCertain, pa.ArrowException):
            return None
        return pa.RecordBatch.from_arrays(finished, schema=self.schema)

    def _is_valid(self, data: bytes, lines: int) -> bool:
        """Return whether each line is one object of JSON."""
        validate, find, view = self._validate, data.find, memoryview(data)
        start = 0
        try:
            for _ in range(lines):
                end = find(b"\n", start)
                validate(view[start:end])
                start = end + 1
        except Exception:  # noqa: BLE001 - decoders raise more than they document; msgspec's way names the line
            return False
        return start == len(data)


def json_columns(type: Any, schema: "pa.Schema", constant: Constant) -> JSONColumns | None:
    """Return a parser for a type, or None if the type does not qualify.

    Args:
        type: The type of the records.
        schema: Its Arrow schema.
        constant: Makes the column of a field that is absent.
    """
    info = inspect.type_info(type)
    if not isinstance(info, inspect.StructType):
        return None
    try:
        fields, finish, folded = _Types(constant).struct(info, ())
    except _Unsupported:
        return None
    return JSONColumns(schema, pa.schema([*fields, *folded]), finish)


class _Types:
    """Finds out how to read and finish a type."""

    def __init__(self, constant: Constant) -> None:
        self._constant = constant

    def struct(self, info: Any, above: tuple[Any, ...]) -> tuple[list[Any], list[Finish], list[Any]]:
        """Return the fields to read of a Struct, the functions that finish them, and old spellings (to be absent)."""
        own_hook = hasattr(info.cls, "__post_init__") and not info.cls.__module__.startswith("wme_async.models.")
        if info.cls in above or info.array_like or info.tag_field or info.forbid_unknown_fields or own_hook:
            raise _Unsupported
        fields: list[Any] = []
        finish: list[Finish] = []
        folded: list[Any] = []
        for field in info.fields:
            if field.name.startswith("_"):
                folded.append(pa.field(field.encode_name, pa.null()))
                continue
            read, make = self._field(field, (*above, info.cls))
            fields.append(pa.field(field.encode_name, read))
            finish.append(make)
        if not fields:
            raise _Unsupported
        return fields, finish, folded

    def _field(self, field: Any, above: tuple[Any, ...]) -> tuple[Any, Finish]:
        kind, nullable = _without_none(field.type)
        unset = not field.required and field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
        try:
            read, convert = self.value(kind, above)
        except _Unsupported:
            if field.required:
                raise
            return pa.null(), self._absent(field, above, unset=unset)
        if field.required:
            if nullable:
                raise _Unsupported
            return read, _required(convert)
        if unset:
            return read, convert
        default = _default(field)
        if nullable:
            if default is not None:
                return pa.null(), self._absent(field, above, unset=False)
            return read, convert
        try:
            return read, _filled(kind, default, convert, self._constant(kind, default, above))
        except _Unsupported:
            return pa.null(), self._absent(field, above, unset=False)

    def _absent(self, field: Any, above: tuple[Any, ...], *, unset: bool) -> Finish:
        constant = _Repeated(self._constant(field.type, None if unset else _default(field), above))

        def finish(column: Any, exists: Any) -> Any:
            del exists
            return constant.column(len(column))

        return finish

    def value(self, kind: Any, above: tuple[Any, ...]) -> tuple[Any, Finish]:
        """Return the Arrow type to read for a value that exists, and how to finish it."""
        if isinstance(kind, inspect.Metadata):
            raise _Unsupported
        if isinstance(kind, inspect.StructType):
            return self._nested(kind, above)
        if isinstance(kind, inspect.ListType | inspect.VarTupleType):
            return self._list(kind, above)
        if _constrained(kind) or (isinstance(kind, inspect.DateTimeType) and kind.tz is False):
            raise _Unsupported
        if isinstance(kind, inspect.EnumType | inspect.LiteralType):
            values = [member.value for member in kind.cls] if isinstance(kind, inspect.EnumType) else list(kind.values)
            if not all(isinstance(value, str) for value in values):
                raise _Unsupported
            return pa.string(), _one_of(pa.array(values, pa.string()))
        for scalar, read, convert in _SCALARS:
            if isinstance(kind, scalar):
                return read, convert
        raise _Unsupported

    def _nested(self, info: Any, above: tuple[Any, ...]) -> tuple[Any, Finish]:
        fields, finish, folded = self.struct(info, above)
        none = self._constant(info, None, above).type

        def convert(column: Any, exists: Any) -> Any:
            if column.null_count == len(column):
                return pa.nulls(len(column), none)
            valid = column.is_valid() if column.null_count else None
            if exists is not None:
                valid = exists if valid is None else pc.and_(valid, exists)
            for index in range(len(fields), len(fields) + len(folded)):
                if column.field(index).null_count != len(column):
                    raise _NotCertain
            children = [make(column.field(index), valid) for index, make in enumerate(finish)]
            names = [field.name for field in fields]
            mask = column.is_null() if column.null_count else None
            return pa.StructArray.from_arrays(children, names=names, mask=mask)

        return pa.struct([*fields, *folded]), convert

    def _list(self, info: Any, above: tuple[Any, ...]) -> tuple[Any, Finish]:
        if info.min_length is not None or info.max_length is not None:
            raise _Unsupported
        read, convert_item = self.value(info.item_type, above)

        def convert(column: Any, exists: Any) -> Any:
            del exists
            if column.values.null_count:
                raise _NotCertain
            items = convert_item(column.values, None)
            mask = column.is_null() if column.null_count else None
            return pa.ListArray.from_arrays(column.offsets, items, mask=mask)

        return pa.list_(read), convert


def _without_none(kind: Any) -> tuple[Any, bool]:
    if not isinstance(kind, inspect.UnionType):
        return kind, False
    members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
    return (members[0] if len(members) == 1 else kind), len(members) < len(kind.types)


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def _constrained(kind: Any) -> bool:
    names = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
    return any(getattr(kind, name, None) is not None for name in names)


def _required(convert: Finish) -> Finish:
    def finish(column: Any, exists: Any) -> Any:
        if column.null_count and (exists is None or pc.any(pc.and_(column.is_null(), exists)).as_py()):
            raise _NotCertain
        return convert(column, exists)

    return finish


class _Repeated:
    """Columns that repeat one value. They share memory: making those of each block anew takes longer than reading it.

    Args:
        one: An array of the value.
    """

    def __init__(self, one: Any) -> None:
        self.value = one[0]
        self._one = one
        self._longest = one

    def column(self, rows: int) -> Any:
        """Return a column of so many rows."""
        longest = self._longest
        if len(longest) < rows:
            longest = self._longest = self._one.take(pa.repeat(pa.scalar(0, pa.int64()), rows))
        return longest.slice(0, rows)


def _filled(kind: Any, default: Any, convert: Finish, one: Any) -> Finish:
    """Return how a field that is never null is finished; `one` is an array of its default."""
    if isinstance(kind, inspect.StructType):
        if default != kind.cls():
            raise _Unsupported
        absent = _Repeated(one)

        def fill_struct(column: Any, exists: Any) -> Any:
            if column.null_count == len(column):
                return absent.column(len(column))
            finished = convert(column, exists)
            if not finished.null_count:
                return finished
            children = [finished.field(index) for index in range(finished.type.num_fields)]
            return pa.StructArray.from_arrays(children, fields=list(finished.type))

        return fill_struct
    if isinstance(kind, inspect.CollectionType):
        if len(default):
            raise _Unsupported
        absent = _Repeated(one)

        def fill_list(column: Any, exists: Any) -> Any:
            if column.null_count == len(column):
                return absent.column(len(column))
            finished = convert(column, exists)
            return pa.ListArray.from_arrays(finished.offsets, finished.values) if finished.null_count else finished

        return fill_list

    absent = _Repeated(one)

    def fill_scalar(column: Any, exists: Any) -> Any:
        if column.null_count == len(column):
            return absent.column(len(column))
        finished = convert(column, exists)
        return finished.fill_null(absent.value) if finished.null_count else finished

    return fill_scalar


def _same(column: Any, exists: Any) -> Any:
    del exists
    return column


def _finite(column: Any, exists: Any) -> Any:
    del exists
    if pc.all(pc.is_finite(column)).as_py() is False:
        raise _NotCertain
    return column


def _one_of(values: Any) -> Finish:
    def finish(column: Any, exists: Any) -> Any:
        del exists
        if pc.all(pc.is_in(column.drop_null(), value_set=values)).as_py() is False:
            raise _NotCertain
        return column

    return finish


def _times(column: Any, exists: Any) -> Any:
    """Convert times as msgspec does: microseconds, rounded half up."""
    del exists
    if column.null_count == len(column):
        return pa.nulls(len(column), _INSTANT)
    if pc.all(pc.match_substring_regex(column, _TIME)).as_py() is False:
        raise _NotCertain
    seconds = pc.utf8_slice_codeunits(column, 0, _SECOND).cast(pa.timestamp("s")).cast(pa.int64())
    digits = pc.utf8_rpad(pc.utf8_slice_codeunits(pc.utf8_rtrim(column, "Z"), _SECOND + 1), 9, "0")
    micros = pc.divide(pc.add(digits.cast(pa.int64()), 500), 1000)
    total = pc.add(pc.multiply(seconds, 1_000_000), micros)
    if pc.any(pc.greater_equal(total, _YEAR_10000)).as_py():
        raise _NotCertain
    return total.cast(_INSTANT)


_SCALARS: Final[list[tuple[Any, Any, Finish]]] = [
    (inspect.StrType, pa.string(), _same),
    (inspect.BoolType, pa.bool_(), _same),
    (inspect.IntType, pa.int64(), _same),
    (inspect.FloatType, pa.float64(), _finite),
    (inspect.DateTimeType, pa.string(), _times),
]
