"""Records as Arrow batches and Parquet files (extra `arrow`: `pip install 'wme-async[arrow]'`).

    from wme_async.integrations.arrow import write_parquet

    async with read_archive("enwiki_namespace_0.tar.gz", type=Article) as articles:
        await write_parquet(articles, "enwiki.parquet", type=Article)

The schema comes from the Struct, with the names of the wire, so that a small Struct is also the way to choose columns.
Structs become structs, lists lists, mappings with text keys maps, times microseconds in UTC. What Arrow has no type for
(a Struct inside itself, a union, JSON that nobody has described) becomes a string of JSON. What the service leaves out
because it is false, zero or empty is false, zero or empty, as in the Struct; only `None` becomes null.
"""

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from wme_async._archive import ArchiveReader, Block
from wme_async._protocol.arguments import check_path, check_record_type, check_source
from wme_async._tasks import in_thread, wait_done, wait_shielded
from wme_async.errors import ArchiveError, DecodeError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as _error:
    raise ImportError("Arrow and Parquet need the extra `arrow`: pip install 'wme-async[arrow]'") from _error

from wme_async.integrations._json_columns import JSONColumns, json_columns

__all__ = ["Parquet", "parquet_chunks", "record_batches", "schema_of", "unwritten", "write_parquet"]

T = TypeVar("T")

_ROW_GROUP: Final = 64 * 1024 * 1024
_PAGE: Final = 4 * 1024 * 1024
_ZSTD_LEVEL: Final = 3
_LONG_TEXT: Final = 256  # bytes of a value, on average, above which a dictionary and statistics only cost time
_BLOCK: Final = 8 * 1024 * 1024
_SMALL_BLOCK: Final = 4 * 1024 * 1024
_SMALL_SHARE: Final = 0.15  # of the JSON; below it msgspec alone takes less time
_ITEMS: Final = 500  # records of a source that gives one at a time which make a batch

Build = Callable[[list[Any]], "pa.Array"]
Column = tuple["pa.DataType", Build]
Field = tuple[str, Callable[[Any], Any], "pa.DataType", Build]


class Parquet(msgspec.Struct, frozen=True):
    """What was written.

    Attributes:
        rows: Records.
        bytes: Bytes of all files.
        files: The files, in the order in which they were finished: paths, or the URL of an object.
    """

    rows: int
    bytes: int
    files: tuple[str, ...]


def schema_of(type: Any) -> "pa.Schema":
    """Return the Arrow schema of a Struct, dataclass or TypedDict.

    Raises:
        TypeError: It is something else.
    """
    return pa.schema([pa.field(name, kind) for name, _, kind, _ in _columns(type)])


async def record_batches(records: AsyncIterable[T], type: type[T]) -> AsyncGenerator["pa.RecordBatch", None]:
    """Turn records into Arrow batches of a few MiB.

    Args:
        records: An open archive, a stream, or any other async iterable of records.
        type: What the records are.

    Yields:
        Batches, all with `schema_of(type)`. Those of an archive never span members.

    Raises:
        DecodeError: A number that Arrow cannot hold.
        TypeError: A type without fields.
    """
    check_source("records", records, "records")
    async with contextlib.aclosing(_batches(records, type, _SMALL_BLOCK)) as batches:
        async for batch, _ in batches:
            yield batch


async def parquet_chunks(
    records: AsyncIterable[T],
    type: type[T],
    *,
    row_group_bytes: int = _ROW_GROUP,
    compression: str = "zstd",
) -> AsyncGenerator[bytes, None]:
    """Give a Parquet file as a stream of bytes, to be sent somewhere without a copy on the disk.

    Args:
        records: An open archive, a stream, or any other async iterable of records.
        type: What the records are.
        row_group_bytes: Bytes in memory, before compression, after which a row group is written.
        compression: As pyarrow knows it.

    Yields:
        The bytes of the file, in order, a row group at a time.

    Raises:
        DecodeError: A number that Arrow cannot hold.
        TypeError: A type without fields, another one than that of the records, or an argument of another type.
        ValueError: A size below 1, or a compression that Parquet does not have.
    """
    _check_form(row_group_bytes, compression)
    async with contextlib.aclosing(
        _chunks(record_batches(records, type), type, row_group_bytes, compression)
    ) as chunks:
        async for chunk in chunks:
            yield chunk


async def _chunks(
    batches: AsyncGenerator["pa.RecordBatch", None], type: Any, row_group_bytes: int, compression: str
) -> AsyncGenerator[bytes, None]:
    file = _File(schema_of(type), row_group_bytes, compression)
    async with contextlib.aclosing(batches):
        async for batch in batches:
            if file.add(batch):
                yield await in_thread(file.flush)
    yield await in_thread(file.finish)


async def write_parquet(
    records: AsyncIterable[T],
    to: "str | os.PathLike[str]",
    *,
    type: type[T],
    row_group_bytes: int = _ROW_GROUP,
    compression: str = "zstd",
) -> Parquet:
    """Write records to Parquet. A file gets its name only when it is whole.

    Where `to` is a folder, each member of an archive becomes a file of its own in it, `MEMBER.parquet`. Such a run can
    be taken up again after whatever ended it: read the archive with `select=unwritten(folder)`.

    Args:
        records: An open archive, a stream, or any other async iterable of records. With a folder, an open archive.
        to: A file, a folder (there already, or ending in a slash), or the URL of an object: `s3://bucket/name.parquet`,
            `gs://`, `az://` (extra `cloud`).
        type: What the records are.
        row_group_bytes: Bytes in memory, before compression, after which a row group is written.
        compression: As pyarrow knows it: `zstd`, `snappy`, `none`, ...

    Raises:
        ArchiveError: Two members of an archive whose files would have one name.
        DecodeError: A number that Arrow cannot hold, or what reading the records raises.
        OSError: It cannot be written.
        TypeError: A type without fields, another one than that of the records, an argument of another type, or a
            folder for records that come from no archive.
        ValueError: An empty path, a size below 1, or a compression that Parquet does not have.
    """
    check_source("records", records, "records")
    check_path("to", to)
    _check_form(row_group_bytes, compression)
    target = os.fspath(to)
    if "://" in target:
        return await _to_cloud(records, target, type, row_group_bytes, compression)
    writer = _Writer(Path(target), type, row_group_bytes, compression)
    source: Any = records
    if target.endswith(("/", os.sep)):
        # Somebody who writes the slash means a folder, there or not yet.
        await in_thread(writer.path.mkdir, parents=True, exist_ok=True)
    folder = await in_thread(writer.path.is_dir)
    if folder and not hasattr(source, "statistics"):
        raise TypeError("a folder takes the records of an archive: its files are named after the members")
    try:
        async with contextlib.aclosing(_batches(source, type, _BLOCK)) as batches:
            async for batch, member in batches:
                await writer.add(batch, member if folder else None)
        await writer.finish(empty=not folder)
    finally:
        # Also in a scope that has been cancelled, where nothing else could be awaited any more.
        await in_thread(writer.discard)
    return Parquet(rows=writer.rows, bytes=writer.bytes, files=tuple(writer.files))


async def _to_cloud(records: Any, url: str, type: Any, row_group_bytes: int, compression: str) -> Parquet:
    from wme_async.integrations.cloud import upload  # noqa: PLC0415 - another extra

    rows = 0

    async def counted() -> AsyncGenerator["pa.RecordBatch", None]:
        nonlocal rows
        async with contextlib.aclosing(record_batches(records, type)) as batches:
            async for batch in batches:
                rows += batch.num_rows
                yield batch

    done = await upload(_chunks(counted(), type, row_group_bytes, compression), url)
    return Parquet(rows=rows, bytes=done.size, files=(url,))


def _check_form(row_group_bytes: object, compression: object) -> None:
    if isinstance(row_group_bytes, bool) or not isinstance(row_group_bytes, int):
        raise TypeError(f"row_group_bytes is a whole number of bytes, not {row_group_bytes!r}")
    if row_group_bytes < 1:
        raise ValueError(f"row_group_bytes is a number of bytes above 0, not {row_group_bytes}")
    if not isinstance(compression, str):
        raise TypeError(f"compression is text such as 'zstd', not {compression!r}")
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([]), compression=compression).close()
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"Parquet has no compression {compression!r}; it has zstd, snappy, gzip, none, ...") from error


def unwritten(folder: "str | os.PathLike[str]") -> Callable[[str], bool]:
    """Return a function that says of a member whether `write_parquet` has yet to write it to this folder.

    For `read_archive(..., select=unwritten(folder))`. A folder belongs to one version of one archive: files tell by
    their names alone what is in them.
    """
    check_path("folder", folder)
    base = Path(folder)
    return lambda member: not (base / _file_name(member)).exists()


def _file_name(member: str) -> str:
    return member.removesuffix(".ndjson").replace("/", "_") + ".parquet"


class _File:
    """One Parquet file in the making, as bytes to be taken away."""

    def __init__(self, schema: "pa.Schema", row_group_bytes: int, compression: str) -> None:
        self._schema = schema
        self._limit = row_group_bytes
        self._compression = compression
        self._sink = _Sink()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._size = 0

    def add(self, batch: "pa.RecordBatch") -> bool:
        """Add a batch and say whether it is time to flush."""
        self._pending.append(batch)
        self._size += batch.nbytes
        return self._size >= self._limit

    def flush(self) -> bytes:
        """Write a row group."""
        if self._pending:
            table = pa.Table.from_batches(self._pending, self._schema)
            groups = -(-self._size // self._limit)
            self._pending, self._size = [], 0
            self._open(table).write_table(table, row_group_size=max(1, -(-table.num_rows // groups)))
        return self._sink.take()

    def finish(self) -> bytes:
        """Write the last row group and the footer."""
        first = self.flush()
        self._open(self._schema.empty_table()).close()
        return first + self._sink.take()

    def _open(self, first: "pa.Table") -> "pq.ParquetWriter":
        """Open the writer, with settings for the rows that come first (measured on articles, see the figures)."""
        if self._writer is None:
            short = [".".join(path) for path, column in _leaves(first) if _is_short(column)]
            self._writer = pq.ParquetWriter(
                self._sink,
                self._schema,
                compression=self._compression,
                compression_level=_ZSTD_LEVEL if self._compression == "zstd" else None,
                data_page_size=_PAGE,
                use_dictionary=short,
                write_statistics=short,
            )
        return self._writer


def _leaves(table: "pa.Table") -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give each leaf column of a table, with its path as Parquet names it."""
    todo: list[tuple[tuple[str, ...], Any]] = [
        ((field.name,), table[field.name].combine_chunks()) for field in table.schema
    ]
    while todo:
        path, column = todo.pop()
        if isinstance(column, pa.ChunkedArray):  # without rows there is no chunk
            column = pa.array([], column.type)
        if pa.types.is_struct(column.type):
            todo += [((*path, field.name), column.field(index)) for index, field in enumerate(column.type)]
        elif pa.types.is_map(column.type):
            todo += [((*path, "key_value", "key"), column.keys), ((*path, "key_value", "value"), column.items)]
        elif pa.types.is_list(column.type):
            todo.append(((*path, "list", "element"), column.values))
        else:
            yield path, column


def _is_short(column: Any) -> bool:
    return not pa.types.is_string(column.type) or column.nbytes <= _LONG_TEXT * len(column) or not len(column)


class _Sink(io.RawIOBase):
    """A file for pyarrow to write to, whose bytes go elsewhere."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        chunk = bytes(data)
        self._chunks.append(chunk)
        self._at += len(chunk)
        return len(chunk)

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data


class _Writer:
    """Files on disk, one after the other; all that touches the disk or compresses runs in a thread.

    Such a thread is waited for even by a task that is cancelled, or it would go on beside `discard`.
    """

    def __init__(self, path: Path, type: Any, row_group_bytes: int, compression: str) -> None:
        self.path = path
        self.rows = 0
        self.bytes = 0
        self.files: list[str] = []
        self._schema = schema_of(type)
        self._row_group_bytes = row_group_bytes
        self._compression = compression
        self._member: str | None = None
        self._target: Path | None = None
        self._part: Path | None = None
        self._out: io.BufferedWriter | None = None
        self._file: _File | None = None

    async def add(self, batch: "pa.RecordBatch", member: str | None) -> None:
        if self._file is not None and member != self._member:
            await in_thread(self._close)
        if self._file is None:
            self._member = member
            await in_thread(self._open)
        assert self._file is not None
        self.rows += batch.num_rows
        if self._file.add(batch):
            await in_thread(self._flush)

    async def finish(self, *, empty: bool) -> None:
        """Finish the last file; make one without rows where there is none, if asked."""
        if self._file is None and empty:
            await in_thread(self._open)
        if self._file is not None:
            await in_thread(self._close)

    def discard(self) -> None:
        """Remove a file that was not finished."""
        if self._out is not None and self._part is not None:
            try:
                # Not through the buffer: a disk that was full is full still, and what is in there is not wanted.
                self._out.raw.close()
            finally:
                self._part.unlink(missing_ok=True)

    def _open(self) -> None:
        self._target = self.path if self._member is None else self.path / _file_name(self._member)
        if str(self._target) in self.files:
            raise ArchiveError(f"two members would both be written to {self._target}", member=self._member)
        self._part = self._target.with_name(f"{self._target.name}.{os.getpid()}.{id(self):x}.part")
        self._out = self._part.open("wb")
        self._file = _File(self._schema, self._row_group_bytes, self._compression)

    def _write(self, data: bytes) -> None:
        assert self._out is not None
        self._out.write(data)
        self.bytes += len(data)

    def _flush(self) -> None:
        assert self._file is not None
        self._write(self._file.flush())

    def _close(self) -> None:
        assert self._file is not None
        assert self._out is not None
        assert self._part is not None
        assert self._target is not None
        self._write(self._file.finish())
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        self._part.replace(self._target)
        self.files.append(str(self._target))
        self._file = self._out = None


async def _batches(
    records: Any, type: Any, block_bytes: int
) -> AsyncGenerator[tuple["pa.RecordBatch", str | None], None]:
    """Give batches, each with the member of the archive that it comes from."""
    columns, schema = _columns(type), schema_of(type)
    parser = json_columns(type, schema, _constant) if _unread(records, type) else None
    if parser is None:
        async with contextlib.aclosing(_lists(records)) as lists:
            async for found in lists:
                member = records.statistics().member if hasattr(records, "statistics") else None
                yield _batch(found, columns, schema), member
        return
    async with contextlib.aclosing(_parsed(records, parser, block_bytes)) as blocks:
        async for block, batch in blocks:
            if batch is not None:
                yield batch, block.member
                continue
            async with contextlib.aclosing(records.decode(block)) as lists:
                async for found in lists:
                    yield _batch(found, columns, schema), block.member


def _unread(records: Any, type: Any) -> bool:
    return isinstance(records, ArchiveReader) and records.type is type and not records.statistics().bytes


async def _parsed(
    reader: ArchiveReader[Any], parser: JSONColumns, block_bytes: int
) -> AsyncGenerator[tuple[Block, "pa.RecordBatch | None"], None]:
    """Parse blocks in a thread, one ahead of the consumer, as long as most of them can be parsed."""
    pending: tuple[Block, asyncio.Future[pa.RecordBatch | None]] | None = None
    attempts = _Attempts()
    loop = asyncio.get_running_loop()
    try:
        async for block in reader.blocks(max_bytes=block_bytes):
            if attempts.worthwhile():
                work = loop.run_in_executor(None, parser.parse, block.data, block.lines)
            else:
                work = loop.create_future()
                work.set_result(None)
            ready, pending = pending, (block, work)
            if ready is not None:
                await wait_done(ready[1])
                yield ready[0], attempts.result(ready[1].result(), len(ready[0].data))
        if pending is not None:
            ready, pending = pending, None
            await wait_done(ready[1])
            yield ready[0], ready[1].result()
    finally:
        if pending is not None:
            await wait_shielded(pending[1])


class _Attempts:
    """Decides whether to parse the next block in C++.

    It stops doing so for a while where it keeps failing, since each attempt costs time, and for good where the type
    keeps so little of a record that decoding it takes less time than parsing all of it.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._skip = 0
        self._decided = False

    def worthwhile(self) -> bool:
        self._skip -= 1
        return self._skip < 0

    def result(self, batch: "pa.RecordBatch | None", json_bytes: int) -> "pa.RecordBatch | None":
        if batch is not None:
            self._failures = 0
            if not self._decided and batch.nbytes < _SMALL_SHARE * json_bytes:
                self._skip = sys.maxsize
            self._decided = True
        elif self._skip < 0:
            self._failures += 1
            self._skip = min(64, 2**self._failures) if self._failures > 1 else 0
        return batch


async def _lists(records: Any) -> AsyncGenerator[list[Any], None]:
    """Give lists: the source's own, where it has them."""
    if hasattr(records, "batches"):
        async for found in records.batches():
            yield found
        return
    found = []
    async for record in records:
        found.append(record)
        if len(found) == _ITEMS:
            yield found
            found = []
    if found:
        yield found


def _batch(records: list[Any], columns: list[Field], schema: Any) -> Any:
    try:
        arrays = [build([get(record) for record in records]) for _, get, _, build in columns]
    except AttributeError as error:
        raise TypeError(f"type is not that of the records: {error}") from error
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise DecodeError(f"Arrow cannot hold a record: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _constant(kind: Any, value: Any, above: tuple[Any, ...]) -> Any:
    """Return an array of one element."""
    return _column(kind, above)[1]([value])


def _columns(type: Any) -> list[Field]:
    """Return (name, how to get it from a record, its Arrow type, how to make an array of it) for each field."""
    check_record_type(type)
    info = inspect.type_info(type)
    if not isinstance(info, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        raise TypeError(f"a table needs a type with fields, not {type!r}")
    return _fields(info, ())


def _fields(info: Any, above: tuple[Any, ...]) -> list[Field]:
    mapping = isinstance(info, inspect.TypedDictType)
    found = []
    for field in info.fields:
        if field.name.startswith("_"):  # another spelling of a public field
            continue
        kind, build = _column(field.type, (*above, info.cls))
        found.append((field.encode_name, _getter(field.name, mapping=mapping), kind, build))
    return found


def _getter(name: str, *, mapping: bool) -> Callable[[Any], Any]:
    if mapping:
        return lambda record: record.get(name)

    def get(record: Any) -> Any:
        value = getattr(record, name)
        return None if value is msgspec.UNSET else value

    return get


def _column(info: Any, above: tuple[Any, ...]) -> Column:
    """Return the Arrow type for a msgspec type, and what makes an array of a list of its values."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        rest = [each for each in info.types if not isinstance(each, inspect.NoneType)]
        if len(rest) == 1:
            return _column(rest[0], above)
        if all(isinstance(each, inspect.IntType | inspect.FloatType) for each in rest):
            return _leaf(pa.float64(), float)
        return _json()
    if isinstance(info, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        return _json() if info.cls in above else _struct(info, above)
    if isinstance(info, inspect.CollectionType):
        return _list(_column(info.item_type, above))
    if isinstance(info, inspect.DictType) and isinstance(info.key_type, inspect.StrType):
        return _map(_column(info.value_type, above))
    if isinstance(info, inspect.EnumType | inspect.LiteralType):
        values = [each.value for each in info.cls] if isinstance(info, inspect.EnumType) else info.values
        return _leaf(pa.string(), _value) if all(isinstance(each, str) for each in values) else _json()
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
    (inspect.DateTimeType, pa.timestamp("us", tz="UTC"), None),
    (inspect.DateType, pa.date32(), None),
    (inspect.TimeType, pa.time64("us"), None),
    (inspect.BytesType, pa.binary(), None),
    (inspect.UUIDType, pa.string(), str),
]


def _leaf(kind: "pa.DataType", change: Callable[[Any], Any] | None) -> Column:
    if change is None:
        return kind, lambda values: pa.array(values, kind)
    return kind, lambda values: pa.array([None if value is None else change(value) for value in values], kind)


def _json() -> Column:
    encode = msgspec.json.Encoder().encode
    return _leaf(pa.string(), lambda value: encode(value).decode())


def _struct(info: Any, above: tuple[Any, ...]) -> Column:
    fields = _fields(info, above)
    if not fields:
        return _json()
    kind = pa.struct([pa.field(name, each) for name, _, each, _ in fields])
    arrow_fields = list(kind)

    def build(values: list[Any]) -> Any:
        children = [make([None if value is None else get(value) for value in values]) for _, get, _, make in fields]
        missing = [value is None for value in values]
        mask = pa.array(missing, pa.bool_()) if any(missing) else None
        return pa.StructArray.from_arrays(children, fields=arrow_fields, mask=mask)

    return kind, build


def _offsets(values: list[Any]) -> "pa.Array":
    """Return where each list begins; null where there is none."""
    found: list[int | None] = []
    at = 0
    for value in values:
        found.append(None if value is None else at)
        at += 0 if value is None else len(value)
    found.append(at)
    return pa.array(found, pa.int32())


def _list(item: Column) -> Column:
    kind = pa.list_(item[0])

    def build(values: list[Any]) -> Any:
        flat = [each for value in values if value is not None for each in value]
        return pa.ListArray.from_arrays(_offsets(values), item[1](flat), type=kind)

    return kind, build


def _map(item: Column) -> Column:
    kind = pa.map_(pa.string(), item[0])

    def build(values: list[Any]) -> Any:
        keys = [key for value in values if value is not None for key in value]
        items = [each for value in values if value is not None for each in value.values()]
        return pa.MapArray.from_arrays(_offsets(values), pa.array(keys, pa.string()), item[1](items), type=kind)

    return kind, build
