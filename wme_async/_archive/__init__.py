"""Reading archives: `.tar.gz` of NDJSON, from disk or while they arrive, as records."""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from wme_async._archive.parallel import ManyReader, ManyResult
from wme_async._archive.reader import ArchiveReader, ArchiveStatistics, Block, OnBadRecord
from wme_async._archive.tar import DEFAULT_MAX_RECORD
from wme_async.models import Article

__all__ = [
    "ArchiveReader",
    "ArchiveStatistics",
    "Block",
    "ManyReader",
    "ManyResult",
    "OnBadRecord",
    "read_archive",
    "read_many",
]

T = TypeVar("T")
R = TypeVar("R")


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


@overload
def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    count_only: bool = ...,
    workers: int | None = ...,
    max_record: int = ...,
    on_bad_record: OnBadRecord = ...,
    use_isal: bool = ...,
    use_orjson: bool = ...,
) -> ManyReader[Article]: ...


@overload
def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    type: type[T],
    count_only: bool = ...,
    workers: int | None = ...,
    max_record: int = ...,
    on_bad_record: OnBadRecord = ...,
    use_isal: bool = ...,
    use_orjson: bool = ...,
) -> ManyReader[T]: ...


@overload
def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    type: type[T],
    each: Callable[[list[T]], list[R]],
    workers: int | None = ...,
    max_record: int = ...,
    on_bad_record: OnBadRecord = ...,
    use_isal: bool = ...,
    use_orjson: bool = ...,
) -> ManyReader[R]: ...


def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    type: Any = Article,
    each: Callable[[list[Any]], list[Any]] | None = None,
    count_only: bool = False,
    workers: int | None = None,
    max_record: int = DEFAULT_MAX_RECORD,
    on_bad_record: OnBadRecord = "raise",
    use_isal: bool = True,
    use_orjson: bool = True,
) -> ManyReader[Any]:
    """Read many archives or chunks in worker processes, for those whom one core does not serve.

        async with wme_async.read_many(paths, type=Article, each=titles_of_stubs) as results:
            async for result in results:
                ...  # result.path, result.records, result.statistics

    What brings something is work that stays in the workers: with `each` that leaves most out, or with `count_only`. To
    send all records over costs about as much as to decode them here.

    Lists of one archive come in order; those of different archives come as they are made. Memory is bounded: a worker
    waits until its last list was taken. The first error ends all. Leaving the block kills the workers.

    Workers are started by "spawn", as everywhere in `multiprocessing`: the main module must be importable without doing
    its work (`if __name__ == "__main__":`), and `type` and `each` must stand at the top of a module.

    Args:
        paths: The `.tar.gz` files.
        type: What to decode each record into.
        each: Called in the worker with each list of records (about 1 MiB of JSON); the list that it returns is sent in
            its place, if not empty. The more it leaves out, the more the workers bring.
        count_only: Send nothing but the statistics of each archive.
        workers: Processes; as many as there are processors by default, and never more than archives.
        max_record: Bytes that a record may have.
        on_bad_record: As for `read_archive`; a function is called in this process.
        use_isal: Inflate with isal where it is installed.
        use_orjson: Decode long records with orjson where it is installed and quicker.

    Returns:
        An async context manager and an async iterator of `ManyResult`. The last of each archive has its statistics.

    Raises:
        ValueError: A bad argument.
        TypeError: A bad argument, or a type that msgspec cannot decode into.
    """
    return ManyReader(
        paths,
        type=type,
        each=each,
        count_only=count_only,
        workers=workers,
        on_bad_record=on_bad_record,
        max_record=max_record,
        use_isal=use_isal,
        use_orjson=use_orjson,
    )
