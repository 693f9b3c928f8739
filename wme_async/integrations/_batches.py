"""Arrow batches from archives, streams and other sources of records."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec
import pyarrow as pa

from wme_async._archive import ArchiveReader, Block
from wme_async._tasks import wait_done, wait_shielded
from wme_async.integrations._columns import columns_of, constant, known_names, record_batches, schema_of, schema_with
from wme_async.integrations._json_columns import JSONColumns, json_columns

__all__ = ["BLOCK", "SMALL_BLOCK", "batches_of"]

BLOCK: Final = 8 * 1024 * 1024
"""Bytes of JSON lines that are parsed at a time where memory for several of them is no concern."""

SMALL_BLOCK: Final = 4 * 1024 * 1024
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SMALL_SHARE: Final = 0.15  # of the JSON; below it msgspec alone takes less time
_ITEMS: Final = 500  # records of a source that gives one at a time which make a batch at most


async def batches_of(
    records: Any, type: Any, block_bytes: int, extra: str | None = None
) -> AsyncGenerator[tuple["pa.RecordBatch", str | None], None]:
    """Give batches, each with the member of the archive that it comes from.

    Args:
        records: An archive, a stream, or another source of records.
        type: What they are.
        block_bytes: Bytes of lines of an archive that become one batch.
        extra: Name of a column with the fields that the type lacks, as JSON; the records then come from an archive.

    Raises:
        TypeError: `extra`, and the records do not come from an archive that nothing was read of.
    """
    columns, schema = columns_of(type), schema_of(type)
    if extra is not None:
        async with contextlib.aclosing(_with_extra(records, type, block_bytes, extra)) as batches:
            async for batch, member in batches:
                yield batch, member
        return
    parser = json_columns(type, schema, constant) if _unread(records, type) else None
    if parser is None:
        pace = _Pace(block_bytes)
        async with contextlib.aclosing(_lists(records, pace)) as lists:
            async for found in lists:
                member = records.statistics().member if hasattr(records, "statistics") else None
                for batch in record_batches(found, columns, schema):
                    pace.adapt(batch)
                    yield batch, member
        return
    async with contextlib.aclosing(_parsed(records, parser, block_bytes)) as blocks:
        async for block, parsed in blocks:
            if parsed is not None:
                yield parsed, block.member
                continue
            async with contextlib.aclosing(records.decode(block)) as lists:
                async for found in lists:
                    for decoded in record_batches(found, columns, schema):
                        yield decoded, block.member


async def _with_extra(
    reader: Any, type: Any, block_bytes: int, extra: str
) -> AsyncGenerator[tuple["pa.RecordBatch", str | None], None]:
    if not _unread(reader, type):
        raise TypeError("`extra` needs an open archive of this type of which nothing was read yet")
    columns, schema = columns_of(type), schema_of(type)
    whole = schema_with(schema, extra)
    known = known_names(type)
    async for block in reader.blocks(max_bytes=block_bytes):
        async with contextlib.aclosing(reader.decode(block, with_lines=True)) as lists:
            async for pairs in lists:
                rest = pa.array([_extra_fields(line, known) for _, line in pairs], pa.string())
                start = 0
                for batch in record_batches([record for record, _ in pairs], columns, schema):
                    arrays = [*batch.columns, rest.slice(start, batch.num_rows)]
                    start += batch.num_rows
                    yield pa.RecordBatch.from_arrays(arrays, schema=whole), block.member


def _extra_fields(line: bytes, known: frozenset[str]) -> str | None:
    """Return the fields of a line that are not known, as JSON; None if there is none."""
    rest = {name: value for name, value in _FIELDS.decode(line).items() if name not in known}
    return msgspec.json.encode(rest).decode() if rest else None


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


class _Pace:
    """How many records of a source that gives one at a time make a batch of a bounded size.

    Args:
        batch_bytes: Bytes that a batch should have at most; it may have more where records become larger.
    """

    def __init__(self, batch_bytes: int) -> None:
        self.items = _ITEMS
        self._batch_bytes = batch_bytes

    def adapt(self, batch: "pa.RecordBatch") -> None:
        """Learn the size of records from a batch of them."""
        fitting = self._batch_bytes * batch.num_rows // max(1, batch.nbytes)
        self.items = max(1, min(_ITEMS, 2 * self.items, fitting))


async def _lists(records: Any, pace: _Pace) -> AsyncGenerator[list[Any], None]:
    """Give lists: the source's own, where it has them."""
    if hasattr(records, "batches"):
        async for found in records.batches():
            yield found
        return
    found = []
    async for record in records:
        found.append(record)
        if len(found) >= pace.items:
            yield found
            found = []
    if found:
        yield found
