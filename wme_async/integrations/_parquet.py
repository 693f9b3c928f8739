"""Records to Parquet files: see `wme_async.integrations.arrow`, which has the same names."""

import contextlib
import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from wme_async._arguments import check_async_iterable, check_path
from wme_async._files import publish, sync_file, sync_folder
from wme_async._tasks import in_thread
from wme_async.errors import ArchiveError
from wme_async.integrations._batches import BLOCK, batches_of
from wme_async.integrations._columns import schema_of

__all__ = ["Parquet", "parquet_chunks", "unwritten", "write_parquet"]

T = TypeVar("T")

_ROW_GROUP: Final = 64 * 1024 * 1024
_PAGE: Final = 4 * 1024 * 1024
_ZSTD_LEVEL: Final = 3
_LONG_TEXT: Final = 256  # bytes of a value, on average, above which a dictionary and statistics only cost time


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
    check_async_iterable("records", records, "records")
    async with contextlib.aclosing(_chunks(records, type, row_group_bytes, compression)) as chunks:
        async for chunk, _ in chunks:
            yield chunk


async def _chunks(
    records: Any, type: Any, row_group_bytes: int, compression: str
) -> AsyncGenerator[tuple[bytes, int], None]:
    """Give the bytes of a file, each time with the number of rows so far."""
    file = _File(schema_of(type), row_group_bytes, compression)
    rows = 0
    async with contextlib.aclosing(batches_of(records, type, BLOCK)) as batches:
        async for batch, _ in batches:
            rows += batch.num_rows
            if file.add(batch):
                yield await in_thread(file.flush), rows
    yield await in_thread(file.finish), rows


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
    check_async_iterable("records", records, "records")
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
        async with contextlib.aclosing(batches_of(source, type, BLOCK)) as batches:
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

    async def data() -> AsyncGenerator[bytes, None]:
        nonlocal rows
        async with contextlib.aclosing(_chunks(records, type, row_group_bytes, compression)) as chunks:
            async for chunk, so_far in chunks:
                rows = so_far
                yield chunk

    done = await upload(data(), url)
    return Parquet(rows=rows, bytes=done.size, files=(url,))


def _check_form(row_group_bytes: object, compression: object) -> None:
    if isinstance(row_group_bytes, bool) or not isinstance(row_group_bytes, int):
        raise TypeError(f"row_group_bytes must be a whole number of bytes, not {row_group_bytes!r}")
    if row_group_bytes < 1:
        raise ValueError(f"row_group_bytes must be a number of bytes above 0, not {row_group_bytes}")
    if not isinstance(compression, str):
        raise TypeError(f"compression must be text such as 'zstd', not {compression!r}")
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
        sync_file(self._out.fileno())
        publish(self._out.fileno(), self._part, self._target, size=self._out.tell(), close=self._out.close)
        self._out.close()
        sync_folder(self._target.parent)
        self.files.append(str(self._target))
        self._file = self._out = None
