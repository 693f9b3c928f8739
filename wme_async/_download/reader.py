"""The bytes of a file in order, while several connections fetch it."""

import abc
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from wme_async import _platform
from wme_async._arguments import check_flags, check_numbers
from wme_async._download.budget import Budget, SignedUrlCache
from wme_async._download.download import DownloadRun
from wme_async._download.etags import PartSums, may_be_newer
from wme_async._download.options import DownloadSettings, budget_for
from wme_async._download.part_file import PartFile
from wme_async._download.range_fetcher import FileReplaced, RangeFetcher, RangesUnsupported
from wme_async._download.range_plan import MIB, FetchLimits, RangePlan
from wme_async._download.range_responses import strong_etag
from wme_async._download.range_store import RangeStore
from wme_async._download.source import Checksum, FileInfo, Source, validator_of
from wme_async._download.verification import check_md5, fetch_version, wait_before_restart
from wme_async._download.whole_file import WholeFileFetcher
from wme_async._tasks import WorkGroup, end_task, in_thread, raise_first_cause
from wme_async._telemetry import operation
from wme_async._transport import Transport
from wme_async.errors import IntegrityError, WMEError

_WINDOW = 12 * MIB
_READ = 256 * 1024
# Connections of a window by default. Readers are seldom faster, and the fewer share the window, the larger the parts.
_CONNECTIONS = 6
# Parts of a file on the disk that is read in order: the next bytes for the reader must not be spread over a large one.
_TEE_PART = 16 * MIB
_HASH_BATCH = 2 * MIB
_MAX_RESTARTS = 4
_CLOSED = "this file is closed for reading; open it again"


def open_content(
    source: Source,
    *,
    transport: Transport,
    connections: int | None = None,
    window: int = _WINDOW,
    tee: Path | Callable[[], Awaitable[Path]] | None = None,
    verify: bool = True,
    max_rate: float | None = None,
    budget: Budget | None = None,
    durable: bool = True,
    overwrite: bool = False,
    create: bool = False,
) -> "ContentReader":
    """Read a file in order while it is fetched.

    No request is sent before the first read. Ranges ahead of the reader fill a window in memory; a reader that pauses
    pauses the connections. One connection fetches everything with a single metered request, however long the reader
    takes; several connections need a new signature whenever the last one has expired.

    Args:
        source: The file on the server.
        transport: Sends the requests.
        connections: Connections at most; None leaves it to the budget.
        window: Bytes held ahead of the reader. With `tee` they are on the disk instead.
        tee: Keep the file under this name too, resumable and verified as by `download`. A function is awaited for the
            name when reading begins.
        verify: Compare the MD5 with the one in the metadata, and if that is of another version the ETag with the one
            of the file; a mismatch is raised at the end, after the last bytes.
        max_rate: Bytes per second.
        budget: Connections and bandwidth shared with other downloads.
        durable: As for `download`, with `tee`.
        overwrite: As for `download`, with `tee`; a file of this version is fetched all the same.
        create: As for `download`, with `tee`.

    Returns:
        An async iterator of bytes, and an async context manager; `aclose` stops all requests.

    Raises:
        TypeError: An argument has another type.
        ValueError: A number is out of range.
    """
    check_numbers(whole=True, minimum=1, connections=connections, window=window)
    check_flags(overwrite=overwrite)
    shared = budget_for(budget, connections, max_rate)
    limit = connections or shared.tuner.most
    if tee is None:
        return _WindowReader(
            source,
            transport,
            shared,
            connections=connections or min(_CONNECTIONS, limit),
            window=window,
            verify=verify,
        )
    settings = DownloadSettings(
        verify=verify, durable=durable, overwrite=overwrite, create=create, refetch=True, budget=shared,
        connections=limit,
    )  # fmt: skip
    if limit > 1:
        # A single connection fetches in order anyway, and needs no further signature for a long part.
        settings = msgspec.structs.replace(settings, in_order=True, part_size=_TEE_PART)
    return _PartFileReader(source, transport, settings, tee)


class ContentReader(AsyncIterator[bytes], abc.ABC):
    """The bytes of a file in order. Iterate once; close it, preferably by `async with`.

    Attributes:
        position: Bytes returned so far.
        size: Bytes of the file, None where unknown (yet).
        verified: As in `Download`, once all has been read.
    """

    def __init__(self, source: Source, transport: Transport) -> None:
        self._source = source
        self._transport = transport
        self.position: int = 0
        self.size: int | None = None
        self.verified: bool | None = None
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> bytes:
        """Return the next bytes, of no particular length.

        Raises:
            IntegrityError: The file was replaced on the server after the first bytes had been read, or is damaged.
            WMEError: A request failed.
            OSError: With `tee`: the disk.
            RuntimeError: The reader is closed.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        if self._task is None:
            # Its own task, since connections outlive a single call; `aclose` waits for it.
            self._task = asyncio.get_running_loop().create_task(self._observed())
            self._task.add_done_callback(lambda _: self._more.set())
        while True:
            is_done = self._task.done()
            piece = self._pop()
            if piece:
                self.position += len(piece)
                return piece
            if self._closed:
                # Another task has closed the reader: the cancellation of its own task does not concern this one.
                raise RuntimeError(_CLOSED)
            if is_done:
                self._task.result()
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()

    async def aclose(self) -> None:
        """Stop fetching and wait until all connections are closed. A file kept by `tee` can be resumed."""
        self._closed = True
        try:
            if self._task is not None:
                await end_task(self._task)
        finally:
            self._dispose()

    async def _observed(self) -> None:
        with operation(self._transport.telemetry, "read", url=self._source.identity) as report:
            try:
                await self._run()
            finally:
                report(bytes=self.position)

    @abc.abstractmethod
    async def _run(self) -> None:
        """Fetch everything."""

    @abc.abstractmethod
    def _pop(self) -> bytes | None:
        """Return the bytes at `position`, if they are there."""

    @abc.abstractmethod
    def _dispose(self) -> None:
        """Release files and memory."""


class _PartFileReader(ContentReader):
    """Reads an unfinished file from the disk, right behind the download that writes it."""

    def __init__(
        self,
        source: Source,
        transport: Transport,
        settings: DownloadSettings,
        tee: Path | Callable[[], Awaitable[Path]],
    ) -> None:
        super().__init__(source, transport)
        self._settings = settings
        self._tee = tee
        self._download: DownloadRun | None = None
        self._fd = -1
        self._version = 0

    def _open(self, part: PartFile) -> None:
        # The file gets another name at the end; the descriptor stays the same.
        self._fd = part.duplicate()

    async def _run(self) -> None:
        path = self._tee if isinstance(self._tee, Path) else await self._tee()
        self._download = DownloadRun(
            self._source, path, self._transport, self._settings, on_bytes=self._more.set, on_open=self._open
        )
        self.verified = (await self._download.run()).verified

    def _pop(self) -> bytes | None:
        download = self._download
        if download is None:
            return None
        if self._version != download.versions:
            if self.position:
                raise IntegrityError(
                    "the file was replaced on the server while it was read, or may have been; read it again"
                )
            self._version = download.versions
        transfer = download.transfer
        if transfer is None:
            return None
        self.size = transfer.size
        count = min(_READ, transfer.frontier - self.position)
        return _platform.read_at(self._fd, count, self.position) if count > 0 else None

    def _dispose(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _WindowReader(ContentReader, RangeStore):
    """Holds the bytes ahead of the reader in memory, up to the size of the window. It is the store of its fetcher."""

    def __init__(
        self, source: Source, transport: Transport, budget: Budget, *, connections: int, window: int, verify: bool
    ) -> None:
        super().__init__(source, transport)
        self._budget = budget
        self._connections = connections
        self._window = window
        self._step = 1
        self._verify = verify
        self._signed_urls = SignedUrlCache(source, transport.monotonic)
        self._digest = hashlib.md5(usedforsecurity=False)
        self._sums: PartSums | None = None
        self._pieces: dict[int, bytes] = {}
        self._unhashed: list[bytes] = []
        self._unhashed_size = 0
        self._hashed = 0
        self._popped = asyncio.Event()
        self._fetcher: RangeFetcher | None = None
        self._whole: WholeFileFetcher | None = None
        self._end: int | None = None

    def limit(self) -> int | None:
        """Return the end of the window; None for a single connection, which waits for room instead.

        It advances by whole parts, since each few bytes that a reader takes would be a request of their own otherwise.
        """
        if self._connections == 1:
            return None
        stop = self.position + self._window
        return stop if self.size is None or stop >= self.size else stop // self._step * self._step

    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Keep a piece for the reader."""
        if self._whole is not None:
            self.size = self._whole.size
        piece = data.obj
        self._pieces[offset] = piece if isinstance(piece, bytes) and len(piece) == len(data) else bytes(data)
        self._more.set()
        stop = offset + len(data)
        return self._wait_for_room(stop) if stop > self.position + self._window else None

    async def restart(self, error: WMEError) -> None:
        """Drop all pieces before a reader can come, or raise if it has read some."""
        if self.position:
            raise error
        self._pieces.clear()

    async def _wait_for_room(self, stop: int) -> None:
        while stop > self.position + self._window:
            self._popped.clear()
            await self._popped.wait()

    def _pop(self) -> bytes | None:
        piece = self._pieces.pop(self.position, None)
        if piece is not None:
            self._popped.set()
            if self._verify:
                self._unhashed.append(piece)
                self._unhashed_size += len(piece)
            if self._fetcher is not None:
                # The window has moved: idle connections may request more.
                self._fetcher.notify()
        return piece

    def _dispose(self) -> None:
        self._pieces.clear()
        self._unhashed.clear()

    async def _run(self) -> None:
        restarts = 0
        while True:
            info, promised = await fetch_version(self._source, self._transport, checksum=self._verify)
            self.size = info.size
            self._sums = _sums_of(info, promised)
            self._whole = None
            try:
                await self._fetch(info)
                break
            except FileReplaced as change:
                restarts += 1
                if self.position or restarts > _MAX_RESTARTS:
                    raise IntegrityError(
                        f"the file was replaced on the server while it was read ({change}); read it again"
                    ) from change
                self._pieces.clear()
                await wait_before_restart(self._transport, restarts)
        if self._verify:
            self.verified, mismatch = await check_md5(self._source, self._digest.hexdigest(), promised, info)
            if mismatch is not None and not (self._sums is not None and self._sums.proven()):
                raise mismatch

    async def _fetch(self, info: FileInfo) -> None:
        validator = validator_of(info)
        if info.size is None or validator is None or not info.accept_ranges:
            await self._fetch_whole(info)
            return
        plan = RangePlan(info.size, rate=self._budget.rate)
        single = self._connections == 1
        part = max(min(MIB, self._window), self._window // max(2, self._connections))
        self._step = part if self._window >= 4 * part else 1
        limits = FetchLimits(
            validator=validator, connections=self._connections, least=min(MIB, part), most=part, in_order=not single,
            at_once=single,
        )  # fmt: skip
        self._fetcher = RangeFetcher(self._transport, plan, self, self._signed_urls, self._budget, limits)
        try:
            with raise_first_cause():
                async with WorkGroup() as group:
                    group.start(self._fetcher.run())
                    self._end = info.size
                    await self._hash()
        except RangesUnsupported as refusal:
            if self.position:
                raise refusal.error from None
            self._pieces.clear()
            await self._fetch_whole(info)

    async def _fetch_whole(self, info: FileInfo) -> None:
        """Read one plain response. It cannot be requested again once the reader has some of it."""
        self._whole = WholeFileFetcher(self._transport, self._signed_urls, self._budget, self)
        with raise_first_cause():
            async with WorkGroup() as group:
                group.start(self._hash())
                await self._whole.run(info)
                self.size = self._whole.size
                self._end = self._whole.done
                self._popped.set()

    async def _hash(self) -> None:
        """Hash the returned bytes, in order and in a thread, up to the end of the file."""
        while self._verify and self._hashed != self._end:
            if self._unhashed_size < _HASH_BATCH and self.position != self._end:
                self._popped.clear()
                await self._popped.wait()
            else:
                await self._hash_batch()

    async def _hash_batch(self) -> None:
        pieces, self._unhashed, self._unhashed_size = self._unhashed, [], 0

        def update() -> None:
            for piece in pieces:
                self._digest.update(piece)
                if self._sums is not None:
                    self._sums.update(piece)

        await in_thread(update)
        self._hashed += sum(map(len, pieces))


def _sums_of(info: FileInfo, promised: Checksum | None) -> PartSums | None:
    """Return the digests to compute on the way for the case that the metadata is not of this version.

    The bytes are gone when that shows at the end. It costs another MD5 of all bytes, so that it is done only where the
    dates allow the case.
    """
    etag = strong_etag(info.etag)
    if promised is None or promised.exact or etag is None or info.size is None:
        return None
    return PartSums(etag, info.size) if may_be_newer(info.last_modified, promised.modified) else None
