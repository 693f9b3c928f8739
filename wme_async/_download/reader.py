"""The bytes of a file in order, while several connections fetch it: for reading before it is whole."""

import abc
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from wme_async import _platform
from wme_async._arguments import check_flags, check_instances, check_numbers
from wme_async._download.budget import Budget, SignedUrlCache, after
from wme_async._download.download import DownloadRun
from wme_async._download.etags import PartSums, may_be_newer
from wme_async._download.part_file import PartFile
from wme_async._download.range_fetcher import FileReplaced, RangeFetcher, RangesUnsupported
from wme_async._download.range_plan import RangeLease, RangePlan
from wme_async._download.range_responses import strong_etag
from wme_async._download.source import Checksum, Download, FileInfo, Source, validator_of
from wme_async._download.verification import (
    delay_after_failure,
    fetch_version,
    open_whole_file,
    verify,
    wait_before_restart,
)
from wme_async._tasks import WorkGroup, in_thread, raise_first_cause, wait_done
from wme_async._transport import Transport
from wme_async._transport.retry import Backoff
from wme_async.errors import IntegrityError, Interrupted, WMEError

__all__ = ["ContentReader", "open_content"]

MIB = 1 << 20

_WINDOW = 12 * MIB
_READ = 256 * 1024
# Connections that a window has where nobody says how many.
_FEW = 6
# Parts of a file that is read in order: what the reader waits for must not be spread over a large one.
_TEE_PART = 16 * MIB
_HASH_BATCH = 2 * MIB
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
    overwrite: bool = True,
    create: bool = False,
) -> "ContentReader":
    """Read a file in order while it is fetched.

    Nothing is asked for before the first bytes are wanted. Ranges ahead of the reader fill a window in memory; a reader
    that pauses pauses the connections. One connection fetches all with a single metered request however long the reader
    takes; several need a new signature whenever the last one has run out.

    Args:
        source: Where it comes from.
        transport: The door to the network.
        connections: At most so many; None leaves it to the budget.
        window: Bytes held ahead of the reader. With `tee` they are on the disk instead.
        tee: Keep the file too, under this name, resumable and verified as by `download`. A function is awaited for the
            name when reading begins.
        verify: Compare the MD5 with the one of the metadata, and where that is of another version the ETag with the one
            of the file; a mismatch is raised at the end, after the last bytes.
        max_rate: Bytes per second.
        budget: Connections and bandwidth shared with other downloads.
        durable: As for `download`, with `tee`.
        overwrite: As for `download`, with `tee`; a file of this version is fetched all the same.
        create: As for `download`, with `tee`.

    Returns:
        An async iterator of bytes, and an async context manager; `aclose` stops everything.

    Raises:
        TypeError: An argument of another type.
        ValueError: A number makes no sense.
    """
    check_numbers(whole=True, connections=connections, window=window)
    check_instances(budget=(budget, Budget))
    check_flags(overwrite=overwrite)
    if window < 1 or (connections is not None and connections < 1):
        raise ValueError("connections and window must be at least 1")
    if budget is not None and max_rate is not None:
        raise ValueError("give max_rate to the budget that the downloads share")
    shared = budget or Budget.for_one(connections, max_rate)
    limit = connections or shared.tuner.most
    if tee is not None:
        job = DownloadRun(source, tee if isinstance(tee, Path) else Path(), transport, shared, None)
        job.verify, job.durable, job.connections = verify, durable, limit
        job.overwrite, job.create, job.refetch = overwrite, create, True
        if limit > 1:
            # One alone brings them in order anyway, and needs no further signature for a long part.
            job.in_order, job.part_size = True, _TEE_PART
        return _PartFileReader(job, None if isinstance(tee, Path) else tee)
    # Reading is seldom quicker than a few connections, and the fewer share the window, the larger their parts are.
    few = connections or min(_FEW, limit)
    return _WindowReader(source, transport, shared, connections=few, window=window, verify=verify)


class ContentReader(AsyncIterator[bytes], abc.ABC):
    """The bytes of a file in order. Iterate once; close it, best by `async with`.

    Attributes:
        position: Bytes handed out so far.
        size: Bytes of the file, None where unknown (yet).
        verified: As in `Download`, once all has been read.
    """

    def __init__(self) -> None:
        self.position: int = 0
        self.size: int | None = None
        self.verified: bool | None = None
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
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
            WMEError: It could not be had.
            OSError: With `tee`: the disk.
            RuntimeError: It is closed.
        """
        if self._closed:
            raise RuntimeError(_CLOSED)
        if self._task is None:
            # Its own task, since connections outlive a single call; `aclose` waits for it.
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(lambda _: self._moved.set())
        while True:
            ended = self._task.done()
            piece = self._pop()
            if piece:
                self.position += len(piece)
                return piece
            if self._closed:
                # By another task: that its own was cancelled for it is no cancellation of this one.
                raise RuntimeError(_CLOSED)
            if ended:
                self._task.result()
                raise StopAsyncIteration
            self._moved.clear()
            await self._moved.wait()

    async def aclose(self) -> None:
        """Stop fetching and wait until all connections are closed. What `tee` has got so far can be resumed."""
        self._closed = True
        task = self._task
        try:
            if task is not None:
                task.cancel()
                await wait_done(task)
                if not task.cancelled():
                    task.exception()  # whoever leaves before it is told has no use for it
        finally:
            self._dispose()

    @abc.abstractmethod
    async def _run(self) -> None:
        """Fetch everything."""

    @abc.abstractmethod
    def _pop(self) -> bytes | None:
        """Return the bytes at `position`, if they are there."""

    def _dispose(self) -> None:
        """Let go of what is held."""


class _PartFileReader(ContentReader):
    """Reads an unfinished file from the disk, right behind those who write it."""

    def __init__(self, job: DownloadRun, path: Callable[[], Awaitable[Path]] | None) -> None:
        super().__init__()
        self.result: Download | None = None
        self._path = path
        self._job = job
        self._fd = -1
        self._version = 0
        job.on_bytes = self._moved.set
        job.on_open = self._open

    def _open(self, part: PartFile) -> None:
        # The file gets another name at the end; what is opened stays the same.
        self._fd = part.duplicate()

    async def _run(self) -> None:
        if self._path is not None:
            self._job.to = await self._path()
        self.result = await self._job.run()
        self.verified = self.result.verified

    def _pop(self) -> bytes | None:
        job = self._job
        if self._version != job.versions:
            if self.position:
                raise IntegrityError(
                    "the file was replaced on the server while it was read, or may have been; read it again"
                )
            self._version = job.versions
        self.size = job.total
        if self._fd < 0:
            return None
        front = job.front if self.result is None else self.result.size
        return (
            _platform.read_at(self._fd, min(_READ, front - self.position), self.position)
            if front > self.position
            else None
        )

    def _dispose(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _WindowReader(ContentReader):
    """Holds what came ahead of the reader in memory; no more than the window."""

    def __init__(
        self, source: Source, transport: Transport, budget: Budget, *, connections: int, window: int, verify: bool
    ) -> None:
        super().__init__()
        self._source = source
        self._transport = transport
        self._budget = budget
        self._connections = connections
        self._window = window
        self._step = 1
        self._verify = verify
        self._signed_urls = SignedUrlCache(source, transport.monotonic)
        self._digest = hashlib.md5(usedforsecurity=False)
        self._sums: PartSums | None = None
        self._pieces: dict[int, bytes] = {}
        self._to_hash: list[bytes] = []
        self._to_hash_size = 0
        self._taken = asyncio.Event()
        self._fetcher: RangeFetcher | None = None
        self._hashed = 0
        self._end: int | None = None

    # The protocol `RangeStore`.

    def open_lease(self, lease: RangeLease) -> None:
        """Nothing is accounted for."""

    def close_lease(self, lease: RangeLease) -> None:
        """Nothing is accounted for."""

    def advanced(self, lease: RangeLease) -> None:
        """Nothing is accounted for."""

    def limit(self) -> int | None:
        """Return the end of the window. A single connection is simply made to wait.

        It moves on by whole parts, since each few bytes that a reader takes would be a request of their own otherwise.
        """
        if self._connections == 1:
            return None
        stop = self.position + self._window
        return stop if self.size is None or stop >= self.size else stop // self._step * self._step

    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Keep a piece for the reader."""
        whole = data.obj
        self._pieces[offset] = whole if isinstance(whole, bytes) and len(whole) == len(data) else bytes(data)
        self._moved.set()
        return self._room(offset + len(data)) if offset + len(data) > self.position + self._window else None

    async def _room(self, stop: int) -> None:
        while stop > self.position + self._window:
            self._taken.clear()
            await self._taken.wait()

    def _pop(self) -> bytes | None:
        piece = self._pieces.pop(self.position, None)
        if piece is not None:
            self._taken.set()
            if self._verify:
                self._to_hash.append(piece)
                self._to_hash_size += len(piece)
            if self._fetcher is not None:
                # The window has moved on: idle connections may ask for more.
                self._fetcher.notify()
        return piece

    def _dispose(self) -> None:
        self._pieces.clear()
        self._to_hash.clear()

    async def _run(self) -> None:
        restarts = 0
        while True:
            info, promised = await fetch_version(self._source, self._transport, checksum=self._verify)
            self.size = info.size
            self._sums = _sums_of(info, promised)
            try:
                await self._fetch(info)
                break
            except FileReplaced as change:
                restarts += 1
                if self.position or restarts > 4:
                    raise IntegrityError(
                        f"the file was replaced on the server while it was read ({change}); read it again"
                    ) from change
                self._pieces.clear()
                await wait_before_restart(self._transport, restarts)
        if self._verify:
            self.verified = await verify(self._source, self._digest.hexdigest(), promised, info, self._has_etag)

    async def _has_etag(self) -> bool:
        return self._sums is not None and self._sums.proven()

    async def _fetch(self, info: FileInfo) -> None:
        validator = validator_of(info)
        if info.size is None or validator is None or not info.accept_ranges:
            await self._fetch_stream(info)
            return
        plan = RangePlan(info.size, rate=self._budget.rate)
        single = self._connections == 1
        part = max(min(MIB, self._window), self._window // max(2, self._connections))
        self._step = part if self._window >= 4 * part else 1
        fetcher = self._fetcher = RangeFetcher(
            self._transport, plan, self, self._signed_urls, self._budget,
            validator=validator, connections=self._connections, least=min(MIB, part),
            most=part, in_order=not single, at_once=single,
        )  # fmt: skip
        try:
            with raise_first_cause():
                async with WorkGroup() as group:
                    group.start(fetcher.run())
                    self._end = info.size
                    await self._hash()
        except RangesUnsupported as refusal:
            if self.position:
                raise refusal.error from None
            self._pieces.clear()
            await self._fetch_stream(info)

    async def _fetch_stream(self, info: FileInfo) -> None:
        """Read one plain answer. It cannot be begun again once the reader has some of it."""
        backoff = Backoff(self._transport.retry, self._transport.random.random)
        began = self._transport.monotonic()
        await self._budget.acquire()
        try:
            while True:
                try:
                    return await self._ask_stream(info)
                except WMEError as error:
                    wait = delay_after_failure(error, self._signed_urls, backoff, self._transport.monotonic() - began)
                    if self.position:
                        raise
                    # At once: a reader may come before the next attempt.
                    self._pieces.clear()
                await self._transport.sleep(wait)
        finally:
            self._budget.release()

    async def _ask_stream(self, info: FileInfo) -> None:
        at = 0

        def take(data: memoryview) -> Awaitable[None] | None:
            nonlocal at
            if expected is not None and at + len(data) > expected:
                raise IntegrityError(f"more than the {expected} bytes that were promised are sent")
            offset, at = at, at + len(data)
            room = self.write(offset, data)
            delay = self._budget.moved(len(data), self._transport.monotonic())
            return after(room, self._transport, delay)

        async with open_whole_file(self._transport, self._signed_urls, info) as (body, answer):
            expected = self.size = answer.size
            with raise_first_cause():
                async with WorkGroup() as group:
                    group.start(self._hash())
                    await body.copy_to(take)
                    if expected is not None and at != expected:
                        raise Interrupted(f"{at} bytes came of {expected}", url=None)
                    self._end = at
                    self._taken.set()

    async def _hash(self) -> None:
        """Hash what was handed out, in order and in a thread, until all was."""
        while self._verify and self._hashed != self._end:
            if self._to_hash_size < _HASH_BATCH and self.position != self._end:
                self._taken.clear()
                await self._taken.wait()
            else:
                await self._hash_pending()

    async def _hash_pending(self) -> None:
        pieces, self._to_hash, self._to_hash_size = self._to_hash, [], 0

        def update() -> None:
            for piece in pieces:
                self._digest.update(piece)
                if self._sums is not None:
                    self._sums.update(piece)

        await in_thread(update)
        self._hashed += sum(map(len, pieces))


def _sums_of(info: FileInfo, promised: Checksum | None) -> PartSums | None:
    """Return what is to be computed on the way for the case that the metadata is not of this version.

    What was read is gone when that shows at the end. It costs another MD5 of all bytes, so that it is done only where
    the dates allow the case.
    """
    etag = strong_etag(info.etag)
    if promised is None or etag is None or info.size is None:
        return None
    return PartSums(etag, info.size) if may_be_newer(info.last_modified, promised.modified) else None
