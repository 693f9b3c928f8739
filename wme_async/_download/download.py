"""One download, from the request for its version to the name of the finished file."""

import hashlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from wme_async._download.budget import SignedUrlCache
from wme_async._download.finished import (
    check_target,
    existing_version,
    file_identity,
    missing_folders,
    remove_empty,
)
from wme_async._download.first_range import FirstRange, open_first
from wme_async._download.options import DownloadSettings, budget_for
from wme_async._download.part_file import PartChanged, PartFile
from wme_async._download.progress import ProgressReporter
from wme_async._download.range_fetcher import FileReplaced, RangeFetcher, RangesUnsupported
from wme_async._download.range_plan import MIB, FetchLimits, RangePlan
from wme_async._download.range_responses import strong_etag
from wme_async._download.source import Checksum, DirectSource, Download, FileInfo, Source, validator_of
from wme_async._download.verification import (
    check_md5,
    check_sha1,
    fetch_version,
    promised_and_signed,
    wait_before_restart,
)
from wme_async._download.whole_file import WholeFileFetcher
from wme_async._tasks import WorkGroup, in_thread, long_in_thread, raise_first_cause
from wme_async._telemetry import operation
from wme_async._transport import Transport
from wme_async.errors import IntegrityError, VersionConflict

# A file that one connection fetches at once is not worth a ledger, and is hashed in a millisecond.
_SMALL = MIB
_HASH_STEP = 8 * MIB
_MAX_HASH_STEP = 64 * MIB
_MAX_RESTARTS = 4
# After so many restarts of a URL of the user's, whose versions prove nothing, it is requested in one response.
_MAX_PLAIN_RESTARTS = 2
_CHECKPOINT_SECONDS = 2.0
_CHECKPOINT_BYTES = 8 * MIB


async def download(
    source: Source, to: Path, settings: DownloadSettings | None = None, *, transport: Transport
) -> Download:
    """Download a file in concurrent ranges; it gets its name only when it is complete and verified.

    Ranges are written in place into `NAME.part` beside the target, with a ledger in `NAME.part.ledger`. After any
    interruption the next call resumes from there if the file on the server is still the same (strong ETag and size).
    A source without size, strong ETag or ranges is fetched in one response, and from the beginning each time.

    Args:
        source: The file on the server.
        to: The name of the finished file. An older file of that name is replaced at the very end. A symbolic link is
            followed.
        settings: The options.
        transport: Sends the requests.

    Raises:
        IntegrityError: The bytes are not the promised ones, or the file kept changing.
        NotFound: The file does not exist.
        VersionConflict: Another version is there, and `overwrite` is off.
        QuotaExceeded: The month's allowance of metered requests is used up.
        WMEError: A request failed for another reason.
        OSError: The disk: no space, no permission, a directory in the way, another download of this target.
        TypeError: The budget or a rate has another type.
        ValueError: A rate is out of range.
    """
    return await DownloadRun(source, to, transport, settings or DownloadSettings()).run()


class DownloadRun:
    """One call of `download`, or the part of a content reader that keeps the file.

    Args:
        source: The file on the server.
        to: The finished file.
        transport: Sends the requests.
        settings: The options.
        on_bytes: Called whenever more bytes are there.
        on_open: Called with the unfinished file once it is open.

    Attributes:
        transfer: The bytes that may be read so far; None between the attempts.
    """

    def __init__(
        self,
        source: Source,
        to: Path,
        transport: Transport,
        settings: DownloadSettings,
        *,
        on_bytes: Callable[[], None] | None = None,
        on_open: Callable[[PartFile], None] | None = None,
    ) -> None:
        self.transfer: RangePlan | WholeFileFetcher | None = None
        self._versions = 0
        self._whole: WholeFileFetcher | None = None
        self._source = source
        self._to = to
        self._transport = transport
        self._settings = settings
        self._on_bytes = on_bytes
        self._on_open = on_open
        self._budget = budget_for(settings.budget, settings.connections, settings.max_rate)
        self._connections = settings.connections or self._budget.tuner.most
        self._signed_urls = SignedUrlCache(source, transport.monotonic)
        self._progress = ProgressReporter(settings.progress, transport) if settings.progress else None
        self._began = transport.monotonic()
        self._first: FirstRange | None = None
        self._promised: Checksum | None = None
        self._fetched = 0
        self._resumed = 0
        self._restarts = 0

    @property
    def versions(self) -> int:
        """How often later bytes were, or may have been, of another version."""
        return self._versions + (self._whole.versions if self._whole is not None else 0)

    async def run(self) -> Download:
        """Download the file.

        Raises:
            WMEError: As `download`.
            OSError: As `download`.
        """
        with operation(self._transport.telemetry, "download", url=self._source.identity) as report:
            done = await self._run()
            report(bytes=done.bytes_fetched, resumed=done.resumed, restarts=done.restarts)
            return done

    async def _run(self) -> Download:
        short_work = self._budget.short_work
        target = await short_work.run(check_target, self._to, create=self._settings.create)
        before = await short_work.run(file_identity, target)
        info: FileInfo | None = None
        if before is not None or await self._needs_version():
            info = await self._fetch_version(checksum=before is not None)
            existing = await self._find_existing(info)
            if existing is not None:
                return existing
        missing = await short_work.run(missing_folders, target) if self._settings.create else []
        parts: list[PartFile] = []
        try:
            # A cancellation meanwhile leaves the file open and locked, so that it must be closed all the same.
            await short_work.run(lambda: parts.append(self._open(target)))
            return await self._download(parts[0], info, changed=await short_work.run(file_identity, target) != before)
        except PartChanged as change:
            parts[0].discard()
            raise IntegrityError(str(change)) from change
        finally:
            # No thread uses the file any more, and closing takes no time.
            for part in parts:
                part.close()
            remove_empty(missing)

    async def _download(self, part: PartFile, info: FileInfo | None, *, changed: bool) -> Download:
        """Download the file into an open part file.

        Args:
            part: The unfinished file.
            info: The version on the server, None where unknown.
            changed: Another download has finished while this one waited for the server or the lock.
        """
        async with AsyncExitStack() as stack:
            if info is None and not changed and part.is_new:
                info = await self._open_first(stack)
            if info is None:
                info = await self._fetch_version(checksum=changed)
            if changed:
                existing = await self._find_existing(info)
                if existing is not None:
                    return existing
            if self._on_open is not None:
                self._on_open(part)
            info, md5, verified = await self._fetch_verified(info, part)
        finish = in_thread if self._settings.durable else self._budget.short_work.run
        size = await finish(lambda: part.finish(md5=md5, verified=verified))
        if self._progress is not None:
            await self._progress.report(size, size)
        return Download(
            path=self._to, size=size, etag=info.etag, version=md5 or (self._promised.md5 if self._promised else None),
            verified=verified, seconds=self._elapsed(), bytes_fetched=self._fetched,
            api_requests=self._signed_urls.requests, resumed=self._resumed, restarts=self._restarts,
        )  # fmt: skip

    def _elapsed(self) -> float:
        return self._transport.monotonic() - self._began

    async def _needs_version(self) -> bool:
        """Return whether the version on the server decides if the file is fetched at all."""
        if not isinstance(self._source, DirectSource):
            return True
        also = self._settings.also
        return also is not None and self._settings.if_changed and await self._budget.short_work.run(also.exists)

    async def _open_first(self, stack: AsyncExitStack) -> FileInfo | None:
        """Request the first bytes, whose response says the version of the file; None if it does not."""
        assert isinstance(self._source, DirectSource)
        signed, self._promised = await promised_and_signed(self._source, self._signed_urls)
        if not signed:
            return None
        self._first = await open_first(
            self._signed_urls, self._transport, self._budget, stack, whole=self._connections == 1
        )
        return self._first.info if self._first is not None else None

    def _open(self, target: Path) -> PartFile:
        while True:
            try:
                if self._settings.create:
                    target.parent.mkdir(parents=True, exist_ok=True)
                return PartFile(target, durable=self._settings.durable, on_bytes=self._on_bytes)
            except FileNotFoundError:
                # Another download that failed has just removed the folder.
                if not self._settings.create:
                    raise

    async def _fetch_version(self, *, checksum: bool = False) -> FileInfo:
        checksum = checksum or self._settings.verify or self._settings.if_changed
        info, self._promised = await fetch_version(self._source, self._transport, checksum=checksum)
        return info

    async def _find_existing(self, info: FileInfo) -> Download | None:
        """Return the finished file if it is there already in this version.

        Raises:
            VersionConflict: It has another version, and may not be replaced.
        """
        settings = self._settings
        if settings.overwrite and not settings.if_changed:
            return None
        promised = self._promised.md5 if self._promised else None
        for path in (self._to, settings.also) if settings.also is not None and settings.if_changed else (self._to,):
            existing = await long_in_thread(
                partial(
                    existing_version, path, identity=self._source.identity, size=info.size, etag=validator_of(info),
                    promised=promised, named=not settings.if_changed,
                )
            )  # fmt: skip
            if existing is None:
                continue
            if existing.current and not settings.refetch:
                status = await in_thread(path.stat)
                return Download(
                    path=path, size=status.st_size, etag=info.etag, version=existing.md5,
                    verified=existing.verified, unchanged=True, seconds=self._elapsed(),
                )  # fmt: skip
            if not existing.current and not settings.if_changed:
                remote = promised or strong_etag(info.etag)
                raise VersionConflict(
                    f"{path} has version {existing.md5 or 'unknown'}, the server has {remote or 'an unknown one'}; "
                    "nothing was replaced. overwrite=True (--force) replaces it, if_changed=True (--if-changed) keeps "
                    "it up to date, and another name keeps both",
                    path=str(path),
                    local=existing.md5,
                    remote=remote,
                )
        return None

    async def _fetch_verified(self, info: FileInfo, part: PartFile) -> tuple[FileInfo, str | None, bool | None]:
        """Fetch the file and verify it. If resumed bytes turn out damaged, all of it is fetched once more."""
        while True:
            info, md5 = await self._fetch(info, part)
            try:
                return info, md5, await self._verify(info, md5, part)
            except IntegrityError:
                if not self._resumed:
                    part.discard()
                    raise
            self._resumed = 0
            self._restart()
            await in_thread(part.empty)

    def _restart(self) -> None:
        """Withdraw all bytes, which stay in the file until the next attempt begins."""
        self._restarts += 1
        self._versions += 1
        self.transfer = None

    async def _fetch(self, info: FileInfo, part: PartFile) -> tuple[FileInfo, str | None]:
        """Fetch all bytes of one version, again from the beginning whenever it is replaced.

        Returns:
            The version, and the MD5 of the bytes if it was computed.
        """
        use_ranges = True
        while True:
            validator = validator_of(info)
            ranges = use_ranges and (info.accept_ranges or self._first is not None)
            try:
                if ranges and info.size is not None and validator is not None:
                    try:
                        return info, await self._fetch_ranges(part, info.size, validator)
                    except RangesUnsupported as refusal:
                        if part.plan is not None and part.plan.done and not self._signed_urls.plain:
                            raise refusal.error from None
                        self.transfer = None
                return await self._fetch_whole(part, info)
            except FileReplaced as change:
                self._restart()
                if self._restarts > _MAX_RESTARTS:
                    raise IntegrityError(
                        f"the server had another version of the file {self._restarts} times, the last time because:"
                        f" {change}; try again later",
                        expected=info.etag,
                    ) from change
            # Servers behind one name may each have a version of their own, or reject every condition. One response is
            # of one version all the same.
            use_ranges = not (self._signed_urls.plain and self._restarts >= _MAX_PLAIN_RESTARTS)
            await wait_before_restart(self._transport, self._restarts)
            info = await self._fetch_version()

    async def _fetch_ranges(self, part: PartFile, size: int, validator: str) -> str | None:
        small = size <= _SMALL
        # A new ledger is flushed to the disk.
        run = self._budget.short_work.run if small else in_thread
        self.transfer = plan = await run(
            lambda: part.resume(
                identity=self._source.identity, size=size, etag=validator, keep=not small, rate=self._budget.rate
            )
        )
        self._resumed = plan.done
        settings = self._settings
        limits = FetchLimits(
            validator=validator, connections=self._connections, most=settings.part_size, min_rate=settings.min_rate,
            least=min(MIB, settings.part_size), in_order=settings.in_order,
        )  # fmt: skip
        fetcher = RangeFetcher(self._transport, plan, part, self._signed_urls, self._budget, limits, first=self._first)
        self._first = None
        digest = hashlib.md5(usedforsecurity=False) if settings.verify else None
        try:
            if small and self._progress is None:
                await fetcher.run()
            else:
                await self._run_fetcher(fetcher, plan, part, digest)
        finally:
            self._fetched += fetcher.fetched
        if digest is None:
            return None
        if small:
            part.hash_into(digest, 0, size)
        return digest.hexdigest()

    async def _run_fetcher(
        self, fetcher: RangeFetcher, plan: RangePlan, part: PartFile, digest: "hashlib._Hash | None"
    ) -> None:
        """Fetch the ranges; meanwhile hash the bytes behind the frontier, flush the file, and report the progress."""
        with raise_first_cause():
            async with WorkGroup() as group:
                helpers = [group.start(self._progress.watch(plan))] if self._progress is not None else []
                if self._settings.durable and plan.size > _SMALL:
                    helpers.append(group.start(self._flush(plan, part)))
                hashing = (
                    group.start(_hash_behind(digest, plan, part, fetcher))
                    if digest is not None and plan.size > _SMALL
                    else None
                )
                await fetcher.run()
                fetcher.notify()
                if hashing is not None:
                    await hashing
                group.stop(*helpers)

    async def _flush(self, plan: RangePlan, part: PartFile) -> None:
        flushed = plan.done
        while True:
            await self._transport.sleep(_CHECKPOINT_SECONDS)
            if plan.done - flushed >= _CHECKPOINT_BYTES:
                # Bytes that are written by now are on the disk when this returns, and only those enter the ledger.
                spans, flushed = plan.written, plan.done
                await in_thread(part.checkpoint, spans)

    async def _fetch_whole(self, part: PartFile, info: FileInfo) -> tuple[FileInfo, str | None]:
        await in_thread(part.empty)
        self.transfer = self._whole = fetcher = WholeFileFetcher(
            self._transport,
            self._signed_urls,
            self._budget,
            part,
            hashed=self._settings.verify and self._promised is not None,
        )
        try:
            with raise_first_cause():
                async with WorkGroup() as group:
                    helpers = [group.start(self._progress.watch(fetcher))] if self._progress is not None else []
                    info = await fetcher.run(info)
                    group.stop(*helpers)
        finally:
            self._fetched += fetcher.fetched
            self._versions += fetcher.versions
            self._whole = None
        return info, fetcher.md5

    async def _verify(self, info: FileInfo, md5: str | None, part: PartFile) -> bool | None:
        if md5 is not None:
            await long_in_thread(lambda is_cancelled: part.check_holes(md5, is_cancelled))
        verified, mismatch = await check_md5(self._source, md5, self._promised, info)
        if mismatch is not None and not await long_in_thread(partial(part.has_etag, info.etag)):
            raise mismatch
        if not self._settings.sha1:
            return verified
        check_sha1(self._settings.sha1, await long_in_thread(part.sha1), part.target)
        return True


async def _hash_behind(digest: "hashlib._Hash", plan: RangePlan, part: PartFile, fetcher: RangeFetcher) -> None:
    """Hash the bytes behind the frontier, a step behind the writers, while they are still in the page cache."""
    at = 0
    while at < plan.size:
        frontier = plan.frontier
        if frontier - at < _HASH_STEP and frontier < plan.size:
            await fetcher.wait_for_change()
        else:
            stop = min(frontier, at + _MAX_HASH_STEP)
            await in_thread(part.hash_into, digest, at, stop)
            at = stop
