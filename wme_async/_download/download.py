"""One file, from the first question about it to its name on the disk."""

import contextlib
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

from wme_async._arguments import check_flags, check_functions, check_instances, check_numbers
from wme_async._download.budget import Budget, SignedUrlCache, after
from wme_async._download.etags import PartSums
from wme_async._download.finished import (
    check_target,
    existing_version,
    file_identity,
    missing_folders,
    remove_empty,
)
from wme_async._download.first_range import FirstRange, open_first
from wme_async._download.part_file import PartChanged, PartFile, PartFileStore
from wme_async._download.range_fetcher import FileReplaced, RangeFetcher, RangesUnsupported
from wme_async._download.range_plan import RangePlan
from wme_async._download.range_responses import strong_etag
from wme_async._download.source import (
    Checksum,
    DirectSource,
    Download,
    FileInfo,
    Progress,
    ProgressHook,
    Source,
    validator_of,
)
from wme_async._download.verification import (
    delay_after_failure,
    fetch_version,
    open_whole_file,
    promised_and_signed,
    verify,
    verify_sha1,
    wait_before_restart,
)
from wme_async._rates import RateMeter
from wme_async._tasks import WorkGroup, in_thread, long_in_thread, raise_first_cause
from wme_async._transport import Transport
from wme_async._transport.retry import Backoff
from wme_async.errors import IntegrityError, Interrupted, VersionConflict, WMEError

__all__ = ["DownloadRun", "download"]

MIB = 1 << 20

_PART_MOST = 256 * MIB
# A file that one connection brings in one go is not worth a ledger, and hashed in a millisecond.
_SMALL = MIB
_HASH_STEP = 8 * MIB
_HASH_MOST = 64 * MIB
_RESTARTS = 4
# The same for URLs that users named, whose versions prove nothing: then the file is asked for in one answer.
_PLAIN_RESTARTS = 2
_CHECKPOINT_SECONDS = 2.0
_CHECKPOINT_BYTES = 8 * MIB
_PROGRESS_SECONDS = 0.1


async def download(
    source: Source,
    to: Path,
    *,
    transport: Transport,
    verify: bool = True,
    sha1: Collection[str] = (),
    if_changed: bool = False,
    overwrite: bool = True,
    also: Path | None = None,
    create: bool = False,
    connections: int | None = None,
    part_size: int = _PART_MOST,
    min_rate: float | None = None,
    max_rate: float | None = None,
    progress: ProgressHook | None = None,
    budget: Budget | None = None,
    durable: bool = True,
) -> Download:
    """Fetch a file in concurrent ranges; it gets its name only when it is whole and proven.

    Ranges are written in place into `NAME.part` beside the target, with a ledger in `NAME.part.ledger`; whatever ends
    the download, the next call goes on from there if the file on the server is still the same (strong ETag and size).
    A source without size, strong ETag or ranges is fetched in one stream, and from the beginning each time.

    Args:
        source: Where it comes from.
        to: The name of the finished file. An older file of that name is replaced at the very end. A symbolic link is
            followed.
        transport: The door to the network.
        verify: Compare the MD5 of the file with the one that its metadata promises.
        sha1: The file has to have one of these, in hexadecimal, where any are given; for sources that promise no MD5.
        if_changed: Fetch nothing if the target is already this version. That costs no allowance.
        overwrite: Replace a file that is there. False: one of this version is returned as it is, and another one is an
            error, unless `if_changed` keeps it up to date.
        also: Another file that satisfies `if_changed` if it is of this version.
        create: Create missing folders of the target, once it is known that there is something to put there.
        connections: At most so many for this file; None leaves it to the budget.
        part_size: Bytes, the upper bound of a range. Where the signature would run out before the file is whole,
            each connection takes its whole share at once instead, since a body that has begun goes on.
        min_rate: Bytes per second below which a range is asked for again by a new connection, if others are faster.
        max_rate: Bytes per second for this download; for several together give them one `budget`.
        progress: Told how far it is, about ten times a second and once at the end. What it raises ends the download.
        budget: Connections and bandwidth shared with other downloads.
        durable: Flush to the disk now and then, and before the file gets its name. Without, a power failure may cost
            more than the last seconds; the death of the process never does.

    Returns:
        What was done.

    Raises:
        IntegrityError: The bytes are not those that are promised, or the file kept changing.
        NotFound: No such file.
        VersionConflict: Another version is there, and it is not to be replaced.
        QuotaExceeded: The month's allowance of metered requests is used up.
        WMEError: It could not be had for another reason.
        OSError: The disk: no space, no permission, a directory in the way, another download of this target.
        TypeError: An argument of another type.
        ValueError: A number makes no sense.
    """
    check_numbers(whole=True, connections=connections, part_size=part_size)
    check_numbers(whole=False, min_rate=min_rate)
    check_instances(budget=(budget, Budget))
    check_flags(verify=verify, if_changed=if_changed, overwrite=overwrite)
    check_functions(progress=progress)
    if part_size < 1 or (connections is not None and connections < 1):
        raise ValueError("connections and part_size must be at least 1")
    if min_rate is not None and min_rate <= 0:
        raise ValueError("min_rate must be a number of bytes per second above 0")
    if budget is not None and max_rate is not None:
        raise ValueError("give max_rate to the budget that the downloads share")
    if budget is None:
        budget = Budget.for_one(connections, max_rate)
    job = DownloadRun(source, to, transport, budget, progress)
    job.verify, job.if_changed, job.min_rate, job.durable = verify, if_changed, min_rate, durable
    job.sha1, job.overwrite, job.also, job.create = sha1, overwrite, also, create
    job.connections = connections or budget.tuner.most
    job.part_size = part_size
    return await job.run()


class DownloadRun:
    """One call of `download`, or the part of `open_content` that keeps the file.

    Args:
        source: Where it comes from.
        to: The finished file.
        transport: The door to the network.
        budget: Connections and bandwidth.
        progress: Told how far it is.

    Attributes:
        verify: As in `download`.
        sha1: As in `download`.
        if_changed: As in `download`.
        overwrite: As in `download`.
        also: As in `download`.
        create: As in `download`.
        refetch: Fetch the file although it is there in this version: somebody reads it meanwhile.
        durable: As in `download`.
        min_rate: As in `download`.
        connections: At most so many.
        part_size: As in `download`.
        in_order: Somebody reads it from the beginning while it is fetched.
        on_bytes: Called whenever more bytes are there.
        on_open: Called with the unfinished file once it is open.
        part: The unfinished file, once it is open.
        total: Bytes of the file, where known.
        restarts: How often it was begun again because it was replaced.
        versions: How often what comes from then on was, or may have been, of another version.
    """

    verify = True
    sha1: Collection[str] = ()
    if_changed = False
    overwrite = True
    also: Path | None = None
    create = False
    refetch = False
    durable = True
    min_rate: float | None = None
    connections = 16
    part_size = _PART_MOST
    in_order = False

    def __init__(
        self, source: Source, to: Path, transport: Transport, budget: Budget, progress: ProgressHook | None
    ) -> None:
        self.source = source
        self.to = to
        self.transport = transport
        self.budget = budget
        self.progress = progress
        self.signed_urls = SignedUrlCache(source, transport.monotonic)
        self.part: PartFile | None = None
        self.on_bytes: Callable[[], None] | None = None
        self.on_open: Callable[[PartFile], None] | None = None
        self.fetched = 0
        self.resumed = 0
        self.restarts = 0
        self.versions = 0
        self.promised: Checksum | None = None
        # For files that come in one stream; others have a plan.
        self.streamed = 0
        self.total: int | None = None
        self._withdrawn: RangePlan | None = None
        self._first: FirstRange | None = None
        self._meter = RateMeter(transport.monotonic())
        self._shown = -1

    @property
    def front(self) -> int:
        """Up to where the file is whole from its beginning."""
        plan = self.part.plan if self.part is not None else None
        return plan.frontier if plan is not None and plan is not self._withdrawn else self.streamed

    async def run(self) -> Download:
        """Do it.

        Raises:
            WMEError: As `download`.
            OSError: As `download`.
        """
        began = self.transport.monotonic()
        target = await self.budget.short_work.run(check_target, self.to, create=self.create)
        before = await self.budget.short_work.run(file_identity, target)
        info: FileInfo | None = None
        if not self._may_be_new(before is not None):
            info, self.promised = await self._ask(present=before is not None)
            present = await self._present(info, began)
            if present is not None:
                return present
        missing = await self.budget.short_work.run(missing_folders, target) if self.create else []
        opened: list[PartFile] = []
        try:
            # Whoever is cancelled while it is opened has it open and locked all the same, and closes it.
            await self.budget.short_work.run(lambda: opened.append(self._open(target)))
            part = self.part = opened[0]
            now = await self.budget.short_work.run(file_identity, target)
            async with contextlib.AsyncExitStack() as stack:
                if info is None and now is None and part.is_new:
                    info = await self._open_first(stack)
                if info is None:
                    info, self.promised = await self._ask(present=now is not None)
                if now != before:
                    # Another download has finished while this one waited for the server or the lock.
                    present = await self._present(info, began)
                    if present is not None:
                        return present
                if self.on_open is not None:
                    self.on_open(part)
                info, md5, verified = await self._fetch_verified(info, part)
            last = in_thread if self.durable else self.budget.short_work.run
            size = await last(lambda: part.finish(md5=md5, verified=verified))
        except PartChanged as change:
            part.discard()
            raise IntegrityError(str(change)) from change
        finally:
            # Threads that were at work have been waited for by now; closing takes no time.
            for each in opened:
                each.close()
            remove_empty(missing)
        await self._show(size, size)
        return Download(
            path=self.to, size=size, etag=info.etag, version=md5 or (self.promised.md5 if self.promised else None),
            verified=verified, seconds=self.transport.monotonic() - began, bytes_fetched=self.fetched,
            api_requests=self.signed_urls.requests, resumed=self.resumed, restarts=self.restarts,
        )  # fmt: skip

    def _may_be_new(self, present: bool) -> bool:
        """Return whether nothing on the disk needs the version of the file on the server before it is fetched."""
        if present or not isinstance(self.source, DirectSource):
            return False
        return not (self.also is not None and self.if_changed and self.also.exists())

    async def _open_first(self, stack: contextlib.AsyncExitStack) -> FileInfo | None:
        """Begin with the first bytes, whose response says the version of the file; None if it does not."""
        assert isinstance(self.source, DirectSource)
        signed, self.promised = await promised_and_signed(self.source, self.signed_urls)
        if not signed:
            return None
        whole = self.connections == 1
        self._first = await open_first(self.signed_urls, self.transport, self.budget, stack, whole=whole)
        return self._first.info if self._first is not None else None

    def _open(self, target: Path) -> PartFile:
        while True:
            try:
                if self.create:
                    target.parent.mkdir(parents=True, exist_ok=True)
                return PartFile(target, durable=self.durable)
            except FileNotFoundError:
                # Another download that failed has just removed the folder.
                if not self.create:
                    raise

    async def _ask(self, *, present: bool = False) -> tuple[FileInfo, Checksum | None]:
        return await fetch_version(self.source, self.transport, checksum=self.verify or self.if_changed or present)

    async def _present(self, info: FileInfo, began: float) -> Download | None:
        """Return the finished file that is there already, if nothing is to be fetched.

        Raises:
            VersionConflict: It is of another version, and not to be replaced.
        """
        if self.overwrite and not self.if_changed:
            return None
        promised = self.promised.md5 if self.promised else None
        for path in (self.to, self.also) if self.also is not None and self.if_changed else (self.to,):
            existing = await long_in_thread(
                partial(
                    existing_version, path, identity=self.source.identity, size=info.size, etag=validator_of(info),
                    promised=promised, named=not self.if_changed,
                )
            )  # fmt: skip
            if existing is None:
                continue
            if existing.current and not self.refetch:
                return Download(
                    path=path, size=path.stat().st_size, etag=info.etag, version=existing.md5,
                    verified=existing.verified, unchanged=True, seconds=self.transport.monotonic() - began,
                )  # fmt: skip
            if not existing.current and not self.if_changed:
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
        """Fetch the file and check it. If what an earlier call had left is damaged, all of it is fetched once more."""
        while True:
            info, md5 = await self._fetch(info)
            try:
                return info, md5, await self._verified(info, md5, part)
            except IntegrityError:
                if not self.resumed:
                    part.discard()
                    raise
            self.resumed = 0
            self.restarts += 1
            self.versions += 1
            self._withdraw()
            await in_thread(part.empty)

    async def _fetch(self, info: FileInfo) -> tuple[FileInfo, str | None]:
        """Fetch all bytes of one version, beginning again when it changes meanwhile."""
        at_once = False
        while True:
            validator = validator_of(info)
            try:
                ranges = info.accept_ranges or self._first is not None
                if at_once or info.size is None or validator is None or not ranges:
                    return await self._fetch_stream(info)
                try:
                    return info, await self._fetch_ranges(info.size, validator)
                except RangesUnsupported as refusal:
                    resumed = self.part is None or (self.part.plan is not None and self.part.plan.done)
                    if resumed and not self.signed_urls.plain:
                        raise refusal.error from None
                    self._withdraw()
                    return await self._fetch_stream(info)
            except FileReplaced as change:
                self.restarts += 1
                self.versions += 1
                self._withdraw()
                # Servers behind one name may each have versions of their own, or refuse every condition. One answer
                # is of one version all the same.
                at_once = self.signed_urls.plain and self.restarts >= _PLAIN_RESTARTS
                if self.restarts > _RESTARTS:
                    raise IntegrityError(
                        f"the server had another version of the file {self.restarts} times, the last time because:"
                        f" {change}; try again later",
                        expected=info.etag,
                    ) from change
                await wait_before_restart(self.transport, self.restarts)
                info, self.promised = await self._ask()

    def _withdraw(self) -> None:
        """Let nobody read what has come, though it stays in the file until the next attempt begins."""
        self.streamed = 0
        self._withdrawn = self.part.plan if self.part is not None else None

    async def _fetch_ranges(self, size: int, validator: str) -> str | None:
        part = self.part
        assert part is not None
        keep = size > _SMALL
        # A new ledger is flushed to the disk.
        plan = await (in_thread if keep else self.budget.short_work.run)(
            lambda: part.resume(
                identity=self.source.identity, size=size, etag=validator, keep=keep, rate=self.budget.rate
            )
        )
        self.total = size
        self.resumed = plan.done
        fetcher = RangeFetcher(
            self.transport, plan, PartFileStore(part, self.on_bytes), self.signed_urls, self.budget,
            validator=validator, connections=self.connections, most=self.part_size, min_rate=self.min_rate,
            least=min(MIB, self.part_size), in_order=self.in_order, first=self._first,
        )  # fmt: skip
        self._first = None
        digest = hashlib.md5(usedforsecurity=False) if self.verify else None
        try:
            if size <= _SMALL and self.progress is None:
                await fetcher.run()
            else:
                await self._attended(fetcher, plan, part, digest)
        finally:
            self.fetched += fetcher.fetched
        if digest is None:
            return None
        if size <= _SMALL:
            part.hash_into(digest, 0, size)
        return digest.hexdigest()

    async def _attended(
        self, fetcher: RangeFetcher, plan: RangePlan, part: PartFile, digest: "hashlib._Hash | None"
    ) -> None:
        """Fetch, and meanwhile hash what is whole, flush what is written, and tell how far it is."""
        with raise_first_cause():
            async with WorkGroup() as group:
                others = [group.start(self._report(plan))]
                if self.durable and plan.size > _SMALL:
                    others.append(group.start(self._flush(plan, part)))
                hashing = None
                if digest is not None and plan.size > _SMALL:
                    hashing = group.start(_hash_behind(digest, plan, part, fetcher))
                await fetcher.run()
                fetcher.notify()
                if hashing is not None:
                    await hashing
                group.stop(*others)

    async def _report(self, plan: RangePlan) -> None:
        while True:
            await self._show(plan.done, plan.size)
            await self.transport.sleep(_PROGRESS_SECONDS)

    async def _show(self, done: int, total: int | None) -> None:
        if self.progress is None:
            return
        now = self.transport.monotonic()
        if self._shown >= 0:
            self._meter.add(max(0, done - self._shown), now)
        elif done != total:
            self._shown = done
        if done == self._shown and done == total:
            return
        self._shown = done
        rate = self._meter.rate(now)
        eta = (total - done) / rate if total is not None and rate > 0 else (0.0 if done == total else None)
        told = self.progress(Progress(done, total, rate, eta))
        if inspect.isawaitable(told):
            await told

    async def _flush(self, plan: RangePlan, part: PartFile) -> None:
        flushed = plan.done
        while True:
            await self.transport.sleep(_CHECKPOINT_SECONDS)
            if plan.done - flushed < _CHECKPOINT_BYTES:
                continue
            # What is written by now is on the disk when this returns, and only that is noted.
            spans, flushed = plan.written, plan.done
            await in_thread(part.checkpoint, spans)

    async def _fetch_stream(self, info: FileInfo) -> tuple[FileInfo, str | None]:
        """Fetch the file in one answer: nothing proves that two answers hold the same bytes."""
        part = self.part
        assert part is not None
        backoff = Backoff(self.transport.retry, self.transport.random.random)
        began = self.transport.monotonic()
        await self.budget.acquire()
        try:
            while True:
                await in_thread(part.empty)
                self.streamed, self.total = 0, info.size
                digest = hashlib.md5(usedforsecurity=False) if self.verify and self.promised else None
                try:
                    return await self._ask_stream(info, part, digest), digest.hexdigest() if digest else None
                except WMEError as error:
                    wait = delay_after_failure(error, self.signed_urls, backoff, self.transport.monotonic() - began)
                    if self.signed_urls.plain or strong_etag(info.etag) is None:
                        self.versions += 1
                    self._withdraw()
                await self.transport.sleep(wait)
        finally:
            self.budget.release()

    async def _ask_stream(self, info: FileInfo, part: PartFile, digest: "hashlib._Hash | None") -> FileInfo:
        async with open_whole_file(self.transport, self.signed_urls, info) as (body, answer):
            expected = self.total = answer.size
            with raise_first_cause():
                async with WorkGroup() as group:
                    report = group.start(self._report_stream())
                    await body.copy_to(lambda data: self._take(part, digest, data))
                    group.stop(report)
        if expected is not None and self.streamed != expected:
            raise Interrupted(f"{self.streamed} bytes came of {expected}", url=None)
        return answer

    async def _report_stream(self) -> None:
        while True:
            await self._show(self.streamed, self.total)
            await self.transport.sleep(_PROGRESS_SECONDS)

    def _take(self, part: PartFile, digest: "hashlib._Hash | None", data: memoryview) -> Awaitable[None] | None:
        self.fetched += len(data)
        if self.total is not None and self.streamed + len(data) > self.total:
            raise IntegrityError(f"more than the {self.total} bytes that were promised are sent")
        writing = part.write(self.streamed, data)
        self.streamed += len(data)
        if digest is not None:
            digest.update(data)
        delay = self.budget.moved(len(data), self.transport.monotonic())
        if self.on_bytes is not None:
            self.on_bytes()
        return after(writing, self.transport, delay)

    async def _verified(self, info: FileInfo, md5: str | None, part: PartFile) -> bool | None:
        async def has_etag() -> bool:
            etag = strong_etag(info.etag)
            sums = PartSums(etag, info.size) if etag is not None and info.size is not None else None
            if not sums:
                return False
            await long_in_thread(lambda is_cancelled: part.sum_parts(sums, is_cancelled))
            return sums.proven()

        if md5 is not None:
            await long_in_thread(lambda is_cancelled: part.check_holes(md5, is_cancelled))
        verified = await verify(self.source, md5, self.promised, info, has_etag)
        return await verify_sha1(self.sha1, part) if self.sha1 else verified


async def _hash_behind(digest: "hashlib._Hash", plan: RangePlan, part: PartFile, fetcher: RangeFetcher) -> None:
    """Hash what is whole from the beginning, a step behind the writers: the bytes are still in the page cache."""
    at = 0
    while at < plan.size:
        front = plan.frontier
        if front - at < _HASH_STEP and front < plan.size:
            await fetcher.wait_for_change()
            continue
        stop = min(front, at + _HASH_MOST)
        await in_thread(part.hash_into, digest, at, stop)
        at = stop
