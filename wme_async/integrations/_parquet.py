"""Records to Parquet files: see `wme_async.integrations.arrow`, which has the same names."""

import contextlib
import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wme_async._archive import ArchiveReader
from wme_async._arguments import check_async_iterable, check_numbers, check_path
from wme_async._files import part_of, publish, sync_file, sync_folder
from wme_async._tasks import in_thread
from wme_async.errors import ArchiveError
from wme_async.integrations._batches import BLOCK, batches_of
from wme_async.integrations._columns import schema_of, schema_with
from wme_async.integrations._narrowing import Narrowing

__all__ = ["Parquet", "parquet_chunks", "unwritten", "write_parquet"]

T = TypeVar("T")

_ROW_GROUP: Final = 32 * 1024 * 1024
_UNKNOWN: Final = "__HIVE_DEFAULT_PARTITION__"
_PAGE: Final = 4 * 1024 * 1024
_ZSTD_LEVEL: Final = 3
_LONG_TEXT: Final = 256  # bytes of a value, on average, above which a dictionary and statistics only cost time


class Parquet(msgspec.Struct, frozen=True):
    """The result of writing.

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
    fields: Iterable[str] | None = None,
    row_group_bytes: int = _ROW_GROUP,
    compression: str = "zstd",
) -> AsyncGenerator[bytes, None]:
    """Yield a Parquet file as a stream of bytes, to send it without a copy on the disk.

    Args:
        records: An open archive, a stream, or any other async iterable of records.
        type: The type of the records.
        fields: Dotted names of the columns, in this order, and of the parts of objects that they keep; None for all.
            Name as few fields in `type` too: all that it has are decoded.
        row_group_bytes: Bytes in memory, before compression, after which a row group is written.
        compression: As pyarrow knows it.

    Yields:
        The bytes of the file, in order, a row group at a time.

    Raises:
        DecodeError: A number that Arrow cannot hold; an archive with another `on_bad_record` than `raise` counts such
            a record as a bad one.
        TypeError: A type without fields, another one than that of the records, or an argument of another type.
        ValueError: A size below 1, a compression that Parquet does not have, or a field that does not exist.
    """
    _check_form(row_group_bytes, compression)
    check_async_iterable("records", records, "records")
    form = _Form.of(type, fields, None, row_group_bytes, compression)
    async with contextlib.aclosing(_chunks(records, type, form)) as chunks:
        async for chunk, _ in chunks:
            yield chunk


async def _chunks(
    records: Any, type: Any, form: "_Form", extra: str | None = None
) -> AsyncGenerator[tuple[bytes, int], None]:
    """Give the bytes of a file, each time with the number of rows so far."""
    file = _File(form)
    rows = 0
    async with contextlib.aclosing(batches_of(records, type, BLOCK, extra, form.narrow)) as batches:
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
    fields: Iterable[str] | None = None,
    row_group_bytes: int = _ROW_GROUP,
    compression: str = "zstd",
    partition_by: Literal["member", "project"] | None = None,
    extra: str | None = None,
) -> Parquet:
    """Write records to Parquet. A file gets its name only when it is complete.

    If `to` is a folder, each member of an archive becomes a file in it, `MEMBER.parquet`. To resume such a run after
    any interruption, read the archive with `select=unwritten(folder)`.

    Args:
        records: An open archive, a stream, or any other async iterable of records. With a folder, an open archive.
        to: A file, a folder (there already, or ending in a slash), or the URL of an object: `s3://bucket/name.parquet`,
            `gs://`, `az://` (extra `cloud`).
        type: The type of the records.
        fields: Dotted names of the columns, in this order, and of the parts of objects that they keep; None for all.
            Name as few fields in `type` too: all that it has are decoded.
        row_group_bytes: Bytes in memory, before compression, after which a row group is written.
        compression: As pyarrow knows it: `zstd`, `snappy`, `none`, ...
        partition_by: How a folder is divided: `"member"`, as above; or `"project"`, into
            `project=enwiki/data.parquet` by the field `is_part_of.identifier`, as engines read with Hive partitioning.
            Such records may come from anywhere.
        extra: Name of a column for the fields of a record that the type lacks, as JSON. The records come from an open
            archive; they are read one by one then, which takes longer.

    Raises:
        ArchiveError: Two members of an archive whose files would have one name.
        DecodeError: A number that Arrow cannot hold, or what reading the records raises; an archive with another
            `on_bad_record` counts such a record as a bad one.
        OSError: It cannot be written.
        TypeError: A type without fields, another one than that of the records, an argument of another type, a folder
            or `extra` for records that come from no archive, or `"project"` for a type without `is_part_of.identifier`.
        ValueError: An empty path, a size below 1, a compression that Parquet does not have, another `partition_by`, one
            without a folder, a field that does not exist, or an `extra` that is a column already.
    """
    check_async_iterable("records", records, "records")
    check_path("to", to)
    _check_form(row_group_bytes, compression)
    if partition_by not in (None, "member", "project"):
        raise ValueError(f"partition_by must be 'member' or 'project', not {partition_by!r}")
    form = _Form.of(type, fields, extra, row_group_bytes, compression)
    target = os.fspath(to)
    if "://" in target:
        if partition_by is not None:
            raise ValueError("partition_by divides a folder on a disk, not an object of a store")
        return await _to_cloud(records, target, type, form, extra)
    path, source = Path(target), records
    # A slash means a folder, whether it exists or not; so does a partition.
    if target.endswith(("/", os.sep)) or partition_by is not None:
        await in_thread(path.mkdir, parents=True, exist_ok=True)
    divided = (partition_by or "member") if await in_thread(path.is_dir) else None
    writer = _writer(path, form, divided, source)
    try:
        async with contextlib.aclosing(batches_of(source, type, BLOCK, extra, form.narrow)) as batches:
            async for batch, member in batches:
                if divided == "project":
                    for project, part in _by_project(batch):
                        await writer.add(part, project)
                else:
                    await writer.add(batch, member if divided else None)
        await writer.finish(empty=divided is None)
    finally:
        # Also in a scope that has been cancelled, where nothing else could be awaited any more.
        await in_thread(writer.discard)
    return Parquet(rows=writer.rows, bytes=writer.bytes, files=tuple(writer.files))


def _writer(path: Path, form: "_Form", divided: str | None, source: object) -> "_Writer":
    if divided is None:
        return _Writer(lambda _: path, form, one_at_a_time=True)
    if divided == "project":
        if not _has_projects(form.schema):
            raise TypeError("a folder is divided by project if the type has the field is_part_of.identifier")
        return _Writer(lambda key: path / _partition(key or "") / "data.parquet", form, one_at_a_time=False)
    if not isinstance(source, ArchiveReader):
        raise TypeError("a folder takes the records of an archive: its files are named after the members")
    return _Writer(lambda key: path / _file_name(key or ""), form, one_at_a_time=True)


async def _to_cloud(records: Any, url: str, type: Any, form: "_Form", extra: str | None) -> Parquet:
    from wme_async.integrations.cloud import upload  # noqa: PLC0415 - another extra

    rows = 0

    async def data() -> AsyncGenerator[bytes, None]:
        nonlocal rows
        async with contextlib.aclosing(_chunks(records, type, form, extra)) as chunks:
            async for chunk, so_far in chunks:
                rows = so_far
                yield chunk

    uploaded = await upload(data(), url)
    return Parquet(rows=rows, bytes=uploaded.size, files=(url,))


def _check_form(row_group_bytes: object, compression: object) -> None:
    check_numbers(whole=True, optional=False, above=0, unit="bytes", row_group_bytes=row_group_bytes)
    if not isinstance(compression, str):
        raise TypeError(f"compression must be text such as 'zstd', not {compression!r}")
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([]), compression=compression).close()
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"Parquet has no compression {compression!r}; it has zstd, snappy, gzip, none, ...") from error


def unwritten(folder: "str | os.PathLike[str]") -> Callable[[str], bool]:
    """Return a function that says whether `write_parquet` has yet to write a member to this folder.

    For `read_archive(..., select=unwritten(folder))`. Use a folder for one version of one archive: files are known by
    their names alone.
    """
    check_path("folder", folder)
    base = Path(folder)
    return lambda member: not (base / _file_name(member)).exists()


def _file_name(member: str) -> str:
    return member.removesuffix(".ndjson").replace("/", "_") + ".parquet"


class _Form(msgspec.Struct, frozen=True):
    """The form of files: columns, bytes of a row group, compression, and what reduces batches to the columns."""

    schema: Any
    row_group_bytes: int
    compression: str
    narrow: Any = None

    @classmethod
    def of(
        cls, type: Any, fields: Iterable[str] | None, extra: str | None, row_group_bytes: int, compression: str
    ) -> "_Form":
        """Return the form of files of a type, with some of its fields and perhaps a column of extra ones."""
        schema = schema_of(type) if extra is None else schema_with(schema_of(type), extra)
        if fields is None:
            return cls(schema, row_group_bytes, compression)
        narrow = Narrowing(schema, fields if extra is None else [*fields, extra])
        return cls(narrow.schema, row_group_bytes, compression, narrow)


class _File:
    """Encodes one Parquet file as bytes."""

    def __init__(self, form: "_Form") -> None:
        self._form = form
        self._sink = _Sink()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self.pending = 0  # bytes

    def add(self, batch: "pa.RecordBatch") -> bool:
        """Add a batch and say whether it is time to flush."""
        self._pending.append(batch)
        self.pending += batch.nbytes
        return self.pending >= self._form.row_group_bytes

    def flush(self) -> bytes:
        """Write a row group."""
        if self._pending:
            table = pa.Table.from_batches(self._pending, self._form.schema)
            groups = -(-self.pending // self._form.row_group_bytes)
            self._pending, self.pending = [], 0
            self._open(table).write_table(table, row_group_size=max(1, -(-table.num_rows // groups)))
        return self._sink.take()

    def finish(self) -> bytes:
        """Write the last row group and the footer."""
        first = self.flush()
        self._open(self._form.schema.empty_table()).close()
        return first + self._sink.take()

    def _open(self, first: "pa.Table") -> "pq.ParquetWriter":
        """Open the writer, with settings for the rows that come first (measured on articles, see the figures)."""
        if self._writer is None:
            short = [".".join(path) for path, column in _leaves(first) if _is_short(column)]
            self._writer = pq.ParquetWriter(
                self._sink,
                self._form.schema,
                compression=self._form.compression,
                compression_level=_ZSTD_LEVEL if self._form.compression == "zstd" else None,
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
        if isinstance(column, pa.ChunkedArray):  # without rows it has no chunk
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


class _FileOnDisk:
    """One Parquet file on a disk, which gets its name when it is whole. All methods block; meant for a thread."""

    def __init__(self, target: Path, form: "_Form") -> None:
        self.target = target
        self.bytes = 0
        self._part = part_of(target)
        self._out: io.BufferedWriter | None = None
        self._file = _File(form)

    def open(self, *, create_folder: bool) -> None:
        """Create the file."""
        if create_folder:
            self.target.parent.mkdir(exist_ok=True)
        self._out = self._part.open("wb")

    def add(self, batch: "pa.RecordBatch") -> bool:
        """Add a batch and say whether it is time to flush. Does not block."""
        return self._file.add(batch)

    @property
    def pending(self) -> int:
        """Bytes in memory."""
        return self._file.pending

    def flush(self) -> None:
        """Write a row group."""
        self._write(self._file.flush())

    def finish(self) -> None:
        """Complete the file and give it its name."""
        self._write(self._file.finish())
        out = self._out
        assert out is not None
        out.flush()
        sync_file(out.fileno())
        publish(out.fileno(), self._part, self.target, size=out.tell(), close=out.close)
        out.close()
        self._out = None
        sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove the file if it was not finished."""
        if self._out is not None:
            try:
                # Skip the buffer: its bytes are not needed, and writing them to a full disk would fail again.
                self._out.raw.close()
            finally:
                self._out = None
                self._part.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        assert self._out is not None
        self._out.write(data)
        self.bytes += len(data)


class _Writer:
    """Distributes batches to files; disk I/O and compression run in a thread.

    Even a cancelled task waits for such a thread, which would otherwise run beside `discard`.

    Args:
        target: Returns the path of the file for a key, which is None, a member or a project.
        form: The form of the files.
        one_at_a_time: Whether a file is complete when a batch for another key comes; otherwise each has a folder.
    """

    def __init__(self, target: Callable[[str | None], Path], form: "_Form", *, one_at_a_time: bool) -> None:
        self.rows = 0
        self.bytes = 0
        self.files: list[str] = []
        self._target = target
        self._form = form
        self._one_at_a_time = one_at_a_time
        self._open: dict[str | None, _FileOnDisk] = {}

    async def add(self, batch: "pa.RecordBatch", key: str | None) -> None:
        """Add a batch to the file of a key."""
        if key not in self._open:
            if self._one_at_a_time:
                await self.finish()
            target = self._target(key)
            if str(target) in self.files:
                raise ArchiveError(f"two members would both be written to {target}", member=key)
            await self._add_file(key, target)
        self.rows += batch.num_rows
        if self._open[key].add(batch):
            await in_thread(self._open[key].flush)
        elif sum(file.pending for file in self._open.values()) >= self._form.row_group_bytes:
            await in_thread(max(self._open.values(), key=lambda file: file.pending).flush)

    async def finish(self, *, empty: bool = False) -> None:
        """Finish all files; with `empty`, write a file without rows if there is no other."""
        if empty and not self._open and not self.files:
            await self._add_file(None, self._target(None))
        for key, file in list(self._open.items()):
            await in_thread(file.finish)
            self.bytes += file.bytes
            self.files.append(str(file.target))
            del self._open[key]

    async def _add_file(self, key: str | None, target: Path) -> None:
        # Known before it is opened, so that it is discarded even if the task is cancelled meanwhile.
        self._open[key] = _FileOnDisk(target, self._form)
        await in_thread(self._open[key].open, create_folder=not self._one_at_a_time)

    def discard(self) -> None:
        """Remove the files that were not finished."""
        for file in self._open.values():
            file.discard()


def _by_project(batch: "pa.RecordBatch") -> Iterator[tuple[str, "pa.RecordBatch"]]:
    """Divide a batch by `is_part_of.identifier`; records without one go to the project of the empty name."""
    projects = pc.fill_null(pc.struct_field(batch.column("is_part_of"), "identifier"), "")
    for project in pc.unique(projects).to_pylist():
        yield project, batch.filter(pc.equal(projects, project))


def _has_projects(schema: "pa.Schema") -> bool:
    field = schema.field("is_part_of") if "is_part_of" in schema.names else None
    return field is not None and pa.types.is_struct(field.type) and field.type.get_field_index("identifier") >= 0


def _partition(project: str) -> str:
    return f"project={quote(project, safe='') or _UNKNOWN}"
