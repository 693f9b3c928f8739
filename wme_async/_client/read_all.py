"""The records of all archives of a listing, several archives at a time and bounded in bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from wme_async._archive import ArchiveReader
from wme_async._client.archive_source import ListedSource
from wme_async._client.sync_plan import SMALL, size_of
from wme_async._download import Checksum
from wme_async._download.reader import open_content
from wme_async._download.small_file import fetch_small
from wme_async._tasks import WorkGroup, end_task, first_cause
from wme_async._transport import Transport
from wme_async.errors import ClientClosed, NotFound, WMEError
from wme_async.models import Archive

M = TypeVar("M", bound=Archive)
R = TypeVar("R")

_ROUNDING: Final = 1000
_NOT_OPEN: Final = "the listing is not open for reading: use `async with`"


class ListingReader(AsyncIterator[tuple[M, list[R]]], Generic[M, R]):
    """An async context manager and an async iterator of archives with some of their records; see `Files.read_all`.

    Args:
        transport: Sends the requests.
        fetch: Requests the listing.
        source: Returns the source of an archive.
        options: Of `ArchiveReader`.
        metered: Whether downloads count against an allowance.
        concurrency: Archives at once.
        max_bytes: Limit of the memory for all archives together.
    """

    def __init__(
        self,
        transport: Transport,
        fetch: Callable[[], Awaitable[Sequence[M]]],
        source: Callable[[str], ListedSource],
        *,
        options: dict[str, Any],
        metered: bool,
        concurrency: int,
        max_bytes: int,
    ) -> None:
        # Invalid options raise here.
        ArchiveReader("-", label="-", **options)
        self._transport = transport
        self._fetch = fetch
        self._source = source
        self._options = options
        self._metered = metered
        self._concurrency = concurrency
        # Each archive has a window of compressed bytes, and a list on its way, before and in the queue.
        self._share = max(64 * 1024, max_bytes // (4 * concurrency))
        self._results: asyncio.Queue[tuple[M, list[R]] | BaseException | None] = asyncio.Queue(concurrency)
        self._task: asyncio.Task[None] | None = None
        self._end: BaseException | None = None

    async def __aenter__(self) -> Self:
        """Begin to read.

        Raises:
            RuntimeError: It was entered before.
        """
        if self._task is not None:
            raise RuntimeError("a listing can be read once: call read_all again")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="read a listing")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading, and wait until all connections are closed."""
        assert self._task is not None
        self._end = self._end or RuntimeError(_NOT_OPEN)
        await end_task(self._task)

    async def __anext__(self) -> tuple[M, list[R]]:
        """Return an archive and some of its records, those of one archive in their order.

        Raises:
            WMEError: An archive is unavailable or damaged; its identifier is in a note of the error.
            RuntimeError: It is not open.
        """
        if self._task is None:
            raise RuntimeError(_NOT_OPEN)
        if self._end is None:
            item = await self._results.get()
            if isinstance(item, tuple):
                return item
            self._end = item if item is not None else StopAsyncIteration()
        raise self._end

    async def _run(self) -> None:
        try:
            records = iter(await self._fetch())
            async with WorkGroup() as group:
                for _ in range(self._concurrency):
                    group.start(self._work(records))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # raised where the records are read
            await self._results.put(first_cause(error))
        else:
            await self._results.put(None)

    async def _work(self, records: Iterator[M]) -> None:
        for record in records:
            try:
                await self._read(record)
            except WMEError as error:
                error.add_note(f"while {record.identifier} was read")
                raise

    async def _read(self, record: M) -> None:
        source = self._source(record.identifier)
        small = await self._small(record, source)
        if small is None:
            source.promised = Checksum(md5=record.version) if record.version else None
            content: AsyncIterator[bytes] = open_content(
                source, transport=self._transport, connections=1 if self._metered else None, window=self._share
            )
        else:
            content = _once(small)
        async with ArchiveReader(content, label=record.identifier, window=self._share, **self._options) as reader:
            async for records in reader.batches(max_bytes=self._share):
                await self._results.put((record, records))

    async def _small(self, record: M, source: ListedSource) -> bytes | None:
        """Return the bytes of a small archive, fetched in one response; None if that does not work."""
        size = size_of(record) or 0
        if not record.version or not 0 < size <= min(SMALL, self._share):
            return None
        signed = await source.sign()
        try:
            content = await fetch_small(signed, self._transport, limit=size + _ROUNDING)
        except (ClientClosed, NotFound):
            raise
        except WMEError:
            content = None
        if content is None or content.md5 != record.version.lower():
            source.signed = signed
            return None
        return content.data


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
