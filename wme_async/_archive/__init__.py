"""Reading archives: `.tar.gz` of NDJSON, from disk or while they arrive, as records."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, overload

from wme_async._archive._reader import ArchiveReader, ArchiveStatistics, OnBadRecord
from wme_async._protocol.archive import DEFAULT_MAX_RECORD
from wme_async.models import Article

__all__ = ["ArchiveReader", "ArchiveStatistics", "OnBadRecord", "read_archive"]

T = TypeVar("T")


@overload
def read_archive(
    path: "str | os.PathLike[str]",
    *,
    max_record: int = ...,
    on_bad_record: OnBadRecord = ...,
    select: Callable[[str], bool] | None = ...,
    use_isal: bool = ...,
    use_orjson: bool = ...,
) -> ArchiveReader[Article]: ...


@overload
def read_archive(
    path: "str | os.PathLike[str]",
    *,
    type: type[T],
    max_record: int = ...,
    on_bad_record: OnBadRecord = ...,
    select: Callable[[str], bool] | None = ...,
    use_isal: bool = ...,
    use_orjson: bool = ...,
) -> ArchiveReader[T]: ...


def read_archive(
    path: "str | os.PathLike[str]",
    *,
    type: Any = Article,
    max_record: int = DEFAULT_MAX_RECORD,
    on_bad_record: OnBadRecord = "raise",
    select: Callable[[str], bool] | None = None,
    use_isal: bool = True,
    use_orjson: bool = True,
) -> ArchiveReader[Any]:
    """Read a downloaded archive: a snapshot, a chunk or an hourly batch.

        async with wme_async.read_archive("enwiki_namespace_0.tar.gz") as articles:
            async for article in articles:
                ...

    Args:
        path: The `.tar.gz`.
        type: What to decode each record into. Of a small Struct only the fields that it names are decoded, which is
            two to three times as fast.
        max_record: Bytes that a record may have.
        on_bad_record: `raise` a `DecodeError`, `skip` and count it, or a function to call with the error.
        select: Called with the name of each member, says whether to read it.
        use_isal: Inflate with isal where it is installed.
        use_orjson: Decode long records with orjson where it is installed and quicker.

    Returns:
        An `ArchiveReader`: an async context manager and an async iterator; `.batches()` gives lists, `.statistics()`
        says how far it is.

    Raises:
        ValueError: A bad argument.
        TypeError: A type that msgspec cannot decode into.
    """
    return ArchiveReader(
        path,
        type=type,
        max_record=max_record,
        on_bad_record=on_bad_record,
        select=select,
        use_isal=use_isal,
        use_orjson=use_orjson,
    )
