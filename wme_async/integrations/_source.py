"""Archives as tables for synchronous engines, by the Arrow C stream interface."""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any

import pyarrow as pa

from wme_async._archive import ArchiveReader, OnBadRecord, read_archive
from wme_async._arguments import check_flags
from wme_async._client.files import Files
from wme_async._client.quota import Cost
from wme_async.integrations._batches import SMALL_BLOCK, batches_of
from wme_async.integrations._columns import schema_of
from wme_async.integrations._narrowing import Narrowing
from wme_async.models import Archive

__all__ = ["ArrowSource"]

_AHEAD = 2  # batches that are read ahead of the consumer


class ArrowSource:
    """Archives as one table for DuckDB, Polars, pandas, pyarrow and Dask, read while the engine asks for more.

    ```python
    import duckdb
    from wme_async.integrations.arrow import ArrowSource

    articles = ArrowSource("enwiki_namespace_0.tar.gz", type=Article)
    duckdb.sql("SELECT count(*), max(version.identifier) FROM articles")
    ```

    Anything that knows the Arrow C stream interface takes the object itself: `polars.DataFrame(articles)`,
    `pandas.DataFrame.from_arrow(articles)`, `pyarrow.dataset.write_dataset(articles.reader(), …)`. The type chooses the
    columns: a Struct with few fields is read in a fraction of the time.

    Reading happens in a thread with its own event loop and connections, so that a notebook or an application can use it
    from the thread of its loop. Memory is bounded: the archive is read no faster than the engine asks.

    Args:
        source: The path of an archive; or archives of a client, such as `wme.snapshots` or `wme.batches("latest")`.
        identifiers: With archives of a client: one identifier, several, or the records of a list
            (`await hour.list(...)`); None for the whole list.
        type: The msgspec Struct to decode records into; its fields are the columns.
        fields: Dotted names of the columns, in this order, and of the parts of objects that they keep; None for all.
        rescan: Allow more than one scan. Each scan of a client's archives downloads them again, and is charged again
            where they are metered: `cost()` of the source.
        on_bad_record: As for `read_archive`.

    Raises:
        TypeError: An argument of another type, or a type without fields.
        ValueError: Identifiers beside a path, or a field that does not exist.
    """

    def __init__(
        self,
        source: "str | os.PathLike[str] | Files[Any, Any]",
        identifiers: "str | Archive | Iterable[str | Archive] | None" = None,
        *,
        type: type[Any],
        fields: Iterable[str] | None = None,
        rescan: bool = False,
        on_bad_record: OnBadRecord = "raise",
    ) -> None:
        check_flags(rescan=rescan)
        if not isinstance(source, str | os.PathLike | Files):
            raise TypeError(f"source must be a path, or archives such as wme.snapshots, not {source!r}")
        if identifiers is not None and not isinstance(source, Files):
            raise ValueError("identifiers belong to archives of a client; a path is one archive")
        self._narrow = None if fields is None else Narrowing(schema_of(type), fields)
        self.schema: pa.Schema = schema_of(type) if self._narrow is None else self._narrow.schema
        self._source = source
        self._identifiers = None if identifiers is None else _names(identifiers)
        self._type = type
        self._rescan = rescan or not isinstance(source, Files)
        self._on_bad_record = on_bad_record
        self._scans = 0

    def __repr__(self) -> str:
        return f"<ArrowSource {self._source!r}, {len(self.schema)} columns, {self._scans} scans>"

    def cost(self) -> Cost:
        """Return the cost of one scan.

        Raises:
            ValueError: The identifiers are those of the list, which was not read yet.
        """
        if not isinstance(self._source, Files):
            return Cost(pool=None, requests=0)
        if self._identifiers is None:
            raise ValueError("give the identifiers, such as those of `await files.list()`, to know the cost")
        return self._source.cost(*self._identifiers)

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Scan: give record batches of a few MiB, in the order of the archives. Blocks while it waits.

        Raises:
            RuntimeError: It was scanned before, and `rescan` does not allow another scan.
            WMEError: The archives cannot be read.
            OSError: The file cannot be read.
        """
        if self._scans and not self._rescan:
            raise RuntimeError(
                "this source was scanned before, and another scan downloads the archives again, which is charged again "
                "where they are metered: keep the result, or pass rescan=True"
            )
        self._scans += 1
        return _Scan(self._read()).batches()

    def reader(self) -> "pa.RecordBatchReader":
        """Scan: return a reader of pyarrow. Raises the errors of `batches`."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def __arrow_c_schema__(self) -> object:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.reader().__arrow_c_stream__(requested_schema)

    async def _read(self) -> AsyncGenerator["pa.RecordBatch", None]:
        async with contextlib.aclosing(self._archives()) as archives:
            async for archive in archives:
                batches = batches_of(archive, self._type, SMALL_BLOCK, narrow=self._narrow)
                async with archive, contextlib.aclosing(batches):
                    async for batch, _ in batches:
                        yield batch

    async def _archives(self) -> AsyncGenerator[ArchiveReader[Any], None]:
        if not isinstance(self._source, Files):
            yield read_archive(self._source, type=self._type, on_bad_record=self._on_bad_record)
            return
        async with self._source.reopened() as files:
            names = self._identifiers
            if names is None:
                names = [archive.identifier for archive in await files.list(fields=["identifier"])]
            for name in names:
                yield files.read(name, type=self._type, on_bad_record=self._on_bad_record)


def _names(identifiers: "str | Archive | Iterable[str | Archive]") -> list[str]:
    one = isinstance(identifiers, str | Archive)
    archives: Iterable[Any] = [identifiers] if one else identifiers  # type: ignore[assignment]
    names = [archive.identifier if isinstance(archive, Archive) else archive for archive in archives]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"an identifier must be text or a record of a list, not {name!r}")
    return names


class _Scan:
    """Runs an async generator in its own thread, a few items ahead of a synchronous consumer."""

    def __init__(self, source: "AsyncGenerator[pa.RecordBatch, None]") -> None:
        self._source = source
        self._results: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._stopped = False

    def batches(self) -> "Iterator[pa.RecordBatch]":
        thread = threading.Thread(target=self._run, name="wme_async arrow source", daemon=True)
        thread.start()
        try:
            while (item := self._results.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop(thread)

    def _stop(self, thread: threading.Thread) -> None:
        self._stopped = True
        self._started.wait()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._task.cancel)
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._results.get(timeout=0.01)
        thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - it is raised where the batches are read
            self._put(error)
        else:
            self._put(None)
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._started.set()
        async with contextlib.aclosing(self._source) as batches:
            async for batch in batches:
                await self._loop.run_in_executor(None, self._put, batch)

    def _put(self, item: Any) -> None:
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                self._results.put(item, timeout=1)
                return
