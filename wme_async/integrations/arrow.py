"""Records as Arrow batches and Parquet files (extra `arrow`: `pip install 'wme-async[arrow]'`).

    from wme_async.integrations.arrow import write_parquet

    async with read_archive("enwiki_namespace_0.tar.gz", type=Article) as articles:
        await write_parquet(articles, "enwiki.parquet", type=Article)

The schema comes from the Struct, with the names of the wire, so that a small Struct also selects columns.
Structs become structs, lists lists, mappings with text keys maps, times microseconds in UTC. A type that
Arrow lacks (a recursive Struct, a union, JSON without a schema) becomes a string of JSON. A tag is a column of its
own, a `Decimal` the string of its digits, `bytearray` bytes; a datetime without a zone is an error, unless its field is
declared as `Annotated[datetime, msgspec.Meta(tz=False)]`. Values that
the service omits because they are false, zero or empty are false, zero or empty, as in the Struct; only `None` becomes
null.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import TypeVar

from wme_async._arguments import check_async_iterable

try:
    import pyarrow as pa
except ImportError as _error:
    raise ImportError("Arrow and Parquet need the extra `arrow`: pip install 'wme-async[arrow]'") from _error

from wme_async.integrations._batches import SMALL_BLOCK, batches_of
from wme_async.integrations._columns import schema_of
from wme_async.integrations._narrowing import Narrowing
from wme_async.integrations._parquet import Parquet, parquet_chunks, unwritten, write_parquet
from wme_async.integrations._source import ArrowSource

__all__ = ["ArrowSource", "Parquet", "parquet_chunks", "record_batches", "schema_of", "unwritten", "write_parquet"]

T = TypeVar("T")


async def record_batches(
    records: AsyncIterable[T], type: type[T], *, fields: Iterable[str] | None = None
) -> AsyncGenerator["pa.RecordBatch", None]:
    """Turn records into Arrow batches of a few MiB.

    Args:
        records: An open archive, a stream, or any other async iterable of records.
        type: Type of the records.
        fields: Dotted names of the columns, in this order, and of the parts of objects that they keep; None for all.

    Yields:
        Batches, all with `schema_of(type)` or its `fields`. Those of an archive never span members.

    Raises:
        DecodeError: A number that Arrow cannot hold; an archive with another `on_bad_record` than `raise` counts such
            a record as a bad one.
        TypeError: A type without fields.
        ValueError: A field that does not exist.
    """
    narrow = None if fields is None else Narrowing(schema_of(type), fields)
    check_async_iterable("records", records, "records")
    async with contextlib.aclosing(batches_of(records, type, SMALL_BLOCK, narrow=narrow)) as batches:
        async for batch, _ in batches:
            yield batch
