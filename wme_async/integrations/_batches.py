"""Arrow batches from archives, streams and other sources of records."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import msgspec
import pyarrow as pa

from wme_async._archive import ArchiveReader, Block
from wme_async._tasks import in_thread, wait_done, wait_shielded
from wme_async.errors import DecodeError
from wme_async.integrations._columns import columns_of, constant, known_names, record_batches, schema_of, schema_with
from wme_async.integrations._json_columns import JSONColumns, json_columns
from wme_async.integrations._narrowing import Narrowing

__all__ = ["BLOCK", "SMALL_BLOCK", "batches_of"]

BLOCK: Final = 7 * 1024 * 1024
"""Bytes of JSON lines to parse at a time if memory holds several of them."""

SMALL_BLOCK: Final = 4 * 1024 * 1024
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_AHEAD: Final = 1  # blocks parsed beside the one that is waited for
_TRIAL_BYTES: Final = 1024 * 1024
_SMALL_SHARE: Final = 0.15  # of the JSON; below it msgspec alone takes less time
_ITEMS: Final = 500  # records of a batch at most, from a source that yields them one by one


async def batches_of(
    records: Any, type: Any, block_bytes: int, extra: str | None = None, narrow: Narrowing | None = None
) -> AsyncGenerator[tuple["pa.RecordBatch", str | None], None]:
    """Yield batches, each with the member of the archive that it comes from.

    Args:
        records: An archive, a stream, or another source of records.
        type: The type of the records.
        block_bytes: Bytes of lines of an archive that become one batch.
        extra: Name of a column with the fields that the type lacks, as JSON; the records then come from an archive.
        narrow: Reduces the batches to some fields.

    Raises:
        TypeError: With `extra`: the records do not come from an archive that is open and unread.
    """
    async with contextlib.aclosing(_whole_batches(records, type, block_bytes, extra)) as batches:
        async for batch, member in batches:
            yield batch if narrow is None else narrow(batch), member


async def _whole_batches(
    records: Any, type: Any, block_bytes: int, extra: str | None
) -> AsyncGenerator[tuple["pa.RecordBatch", str | None], None]:
    columns, schema = columns_of(type), schema_of(type)
    if extra is not None:
        async with contextlib.aclosing(_with_extra(records, type, block_bytes, extra)) as batches:
            async for batch, member in batches:
                yield batch, member
        return

    def build(items: list[Any]) -> list["pa.RecordBatch"]:
        return record_batches(items, columns, schema)

    parser = json_columns(type, schema, constant) if _unread(records, type) else None
    if parser is not None:
        async with contextlib.aclosing(_parsed(records, parser, block_bytes)) as blocks:
            async for block, parsed in blocks:
                if parsed is not None:
                    member = block.member
                    del block  # its bytes are no longer needed while the consumer writes
                    yield parsed, member
                    continue
                async with contextlib.aclosing(records.decode(block)) as lists:
                    async for items in lists:
                        for batch in await _built(records, items, build):
                            yield batch, block.member
    batch_size = _BatchSize(block_bytes)
    async with contextlib.aclosing(_lists(records, batch_size)) as lists:
        async for items, member in lists:
            for batch in await _built(records, items, build):
                batch_size.adapt(batch)
                yield batch, member


async def _built(
    source: Any, items: list[Any], build: Callable[[list[Any]], list["pa.RecordBatch"]]
) -> list["pa.RecordBatch"]:
    """Return the batches of records; those of an archive that Arrow cannot hold are bad records of its reader.

    Args:
        source: Where the records come from.
        items: The records.
        build: Makes batches of records.

    Raises:
        DecodeError: Arrow cannot hold a record, and the source does not leave bad records out.
    """
    try:
        return build(items)
    except DecodeError as error:
        if not isinstance(source, ArchiveReader):
            raise
        if len(items) == 1:
            await source.reject(error)
            return []
    half = len(items) // 2
    return [*await _built(source, items[:half], build), *await _built(source, items[half:], build)]


async def _with_extra(
    reader: Any, type: Any, block_bytes: int, extra: str
) -> AsyncGenerator[tuple["pa.RecordBatch", str | None], None]:
    if not _unread(reader, type):
        raise TypeError("`extra` needs an open archive of this type of which nothing was read yet")
    columns, schema = columns_of(type), schema_of(type)
    extended = schema_with(schema, extra)
    names = known_names(type)

    def build(pairs: list[tuple[Any, bytes]]) -> list["pa.RecordBatch"]:
        extras = pa.array([_extra_fields(line, names) for _, line in pairs], pa.string())
        batches, start = [], 0
        for batch in record_batches([record for record, _ in pairs], columns, schema):
            arrays = [*batch.columns, extras.slice(start, batch.num_rows)]
            start += batch.num_rows
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=extended))
        return batches

    async for block in reader.blocks(max_bytes=block_bytes):
        async with contextlib.aclosing(reader.decode(block, with_lines=True)) as lists:
            async for pairs in lists:
                for batch in await _built(reader, pairs, build):
                    yield batch, block.member


def _extra_fields(line: bytes, names: frozenset[str]) -> str | None:
    """Return the fields of a line beside those with these names, as JSON; None without such fields."""
    fields = {name: value for name, value in _FIELDS.decode(line).items() if name not in names}
    return msgspec.json.encode(fields).decode() if fields else None


def _unread(records: Any, type: Any) -> bool:
    return isinstance(records, ArchiveReader) and records.type is type and not records.statistics().bytes


async def _parsed(
    reader: ArchiveReader[Any], parser: JSONColumns, block_bytes: int
) -> AsyncGenerator[tuple[Block, "pa.RecordBatch | None"], None]:
    """Parse blocks in threads, ahead of the consumer, as long as most of them can be parsed.

    Ends after the first block, a small one, if the type has so few bytes of a record that decoding record by record
    takes less time than parsing all of them: the other records are still to be read.
    """
    loop = asyncio.get_running_loop()
    first = await anext(aiter(reader.blocks(max_bytes=_TRIAL_BYTES)), None)
    if first is None:
        return
    batch = await in_thread(parser.parse, first.data, first.lines)
    yield first, batch
    if batch is not None and batch.nbytes < _SMALL_SHARE * len(first.data):
        return
    pending: deque[tuple[Block, asyncio.Future[pa.RecordBatch | None]]] = deque()
    attempts = _Attempts()

    async def oldest() -> tuple[Block, "pa.RecordBatch | None"]:
        block, work = pending[0]
        await wait_done(work)
        pending.popleft()
        return block, attempts.result(work.result())

    try:
        async for block in reader.blocks(max_bytes=block_bytes):
            if attempts.worthwhile():
                work = loop.run_in_executor(None, parser.parse, block.data, block.lines)
            else:
                work = loop.create_future()
                work.set_result(None)
            pending.append((block, work))
            if len(pending) > _AHEAD:
                yield await oldest()
        while pending:
            yield await oldest()
    finally:
        if pending:
            await wait_shielded(asyncio.gather(*(work for _, work in pending), return_exceptions=True))


class _Attempts:
    """Decides whether to parse the next block in C++: it pauses after repeated failures, as each of them costs time."""

    def __init__(self) -> None:
        self._failures = 0
        self._skip = 0

    def worthwhile(self) -> bool:
        self._skip -= 1
        return self._skip < 0

    def result(self, batch: "pa.RecordBatch | None") -> "pa.RecordBatch | None":
        if batch is not None:
            self._failures = 0
        elif self._skip < 0:
            self._failures += 1
            self._skip = min(64, 2**self._failures) if self._failures > 1 else 0
        return batch


class _BatchSize:
    """The number of records of a batch of bounded bytes, for a source that yields them one by one.

    Args:
        batch_bytes: Bytes that a batch should have at most; it may have more if records become larger.
    """

    def __init__(self, batch_bytes: int) -> None:
        self.items = _ITEMS
        self._batch_bytes = batch_bytes

    def adapt(self, batch: "pa.RecordBatch") -> None:
        """Learn the size of records from a batch of them."""
        fitting = self._batch_bytes * batch.num_rows // max(1, batch.nbytes)
        self.items = max(1, min(_ITEMS, 2 * self.items, fitting))


async def _lists(records: Any, batch_size: _BatchSize) -> AsyncGenerator[tuple[list[Any], str | None], None]:
    """Yield lists of records, each with its member if the source is an archive."""
    items: list[Any] = []
    member: str | None = None
    if isinstance(records, ArchiveReader):
        async for more in records.batches():
            now = records.statistics().member
            if items and (len(items) >= batch_size.items or now != member):
                yield items, member
                items = []
            member = now
            items += more
    elif hasattr(records, "batches"):
        async for items in records.batches():
            yield items, None
        return
    else:
        async for record in records:
            items.append(record)
            if len(items) >= batch_size.items:
                yield items, None
                items = []
    if items:
        yield items, member
