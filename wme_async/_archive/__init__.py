"""Reading the records of archives: `.tar.gz` files of NDJSON, from disk or during their download."""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from wme_async._archive.reader import (
    ArchiveReader,
    ArchiveStatistics,
    DecodingOptions,
    OnBadRecord,
    ReaderOptions,
)
from wme_async._archive.tar import Block
from wme_async.models import Article

if TYPE_CHECKING:  # imported when it is first used
    from wme_async._archive.parallel import ManyReader

__all__ = [
    "ArchiveReader",
    "ArchiveStatistics",
    "Block",
    "OnBadRecord",
    "ReaderOptions",
    "read_archive",
    "read_many",
]

T = TypeVar("T")
R = TypeVar("R")


class _ManyOptions(DecodingOptions, total=False):
    """The options of `read_many` with all of its overloads."""

    workers: int | None


@overload
def read_archive(path: "str | os.PathLike[str]", **options: Unpack[ReaderOptions]) -> ArchiveReader[Article]: ...
@overload
def read_archive(
    path: "str | os.PathLike[str]", *, type: type[T], **options: Unpack[ReaderOptions]
) -> ArchiveReader[T]: ...
def read_archive(
    path: "str | os.PathLike[str]", *, type: Any = Article, **options: Unpack[ReaderOptions]
) -> ArchiveReader[Any]:
    """Read a downloaded archive: a snapshot, a chunk or an hourly batch.

        async with wme_async.read_archive("enwiki_namespace_0.tar.gz") as articles:
            async for article in articles:
                ...

    Args:
        path: The `.tar.gz`.
        type: The type of the records. A small Struct decodes only the fields that it names, which is two to three times
            as fast.
        max_record: Bytes of a record at most (64 MiB).
        on_bad_record: `raise` a `DecodeError` (the default), `skip` and count it, or a function to call with the error.
        select: Called with the name of each member; returns whether to read it.
        use_isal: Inflate with isal if it is installed (True).
        use_orjson: Decode long records with orjson if it is installed and faster (True).

    Returns:
        An `ArchiveReader`: an async context manager and an async iterator; `.batches()` iterates over lists,
        `.statistics()` returns the progress.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument has the wrong type, or msgspec cannot decode into `type`.
    """
    return ArchiveReader(path, type=type, **options)


@overload
def read_many(
    paths: "Iterable[str | os.PathLike[str]]", *, count_only: bool = ..., **options: Unpack[_ManyOptions]
) -> "ManyReader[Article]": ...
@overload
def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    type: type[T],
    count_only: bool = ...,
    **options: Unpack[_ManyOptions],
) -> "ManyReader[T]": ...
@overload
def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    type: type[T],
    each: Callable[[list[T]], list[R]],
    **options: Unpack[_ManyOptions],
) -> "ManyReader[R]": ...
def read_many(
    paths: "Iterable[str | os.PathLike[str]]",
    *,
    type: Any = Article,
    each: Callable[[list[Any]], list[Any]] | None = None,
    count_only: bool = False,
    **options: Unpack[_ManyOptions],
) -> "ManyReader[Any]":
    """Read many archives or chunks in worker processes, if one core is too slow.

        async with wme_async.read_many(paths, type=Article, each=titles_of_stubs) as results:
            async for result in results:
                ...  # result.path, result.records, result.statistics

    Workers help if the work stays in them: with an `each` that drops most records, or with `count_only`. Sending all
    records to this process costs about as much as decoding them here.

    Lists of one archive come in order; those of different archives come as they are ready. Memory is bounded: a worker
    waits until its last list is consumed. The first error ends all workers, and so does leaving the block.

    Workers are started by "spawn", as everywhere in `multiprocessing`: the main module must be importable without doing
    its work (`if __name__ == "__main__":`), and `type` and `each` must be at the top level of a module.

    Args:
        paths: The `.tar.gz` files.
        type: The type of the records.
        each: Called in the worker with each list of records (about 1 MiB of JSON); the list that it returns is sent in
            its place, if not empty. The more records it drops, the more the workers help.
        count_only: Send only the statistics of each archive.
        workers: Processes; by default one for each processor, and never more than archives.
        max_record: Bytes of a record at most (64 MiB).
        on_bad_record: As for `read_archive`; a function is called in this process.
        use_isal: Inflate with isal if it is installed (True).
        use_orjson: Decode long records with orjson if it is installed and faster (True).

    Returns:
        An async context manager and an async iterator of `ManyResult`. The last of each archive has its statistics.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument has the wrong type, or msgspec cannot decode into `type`.
    """
    from wme_async._archive.parallel import ManyReader  # noqa: PLC0415

    return ManyReader(paths, type=type, each=each, count_only=count_only, **options)
