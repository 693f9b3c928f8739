"""A folder made equal to a listing: what is there in the same version stays, the rest is fetched."""

import asyncio
import contextlib
import dataclasses
import errno
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from wme_async._client.archive_names import uses_version
from wme_async._client.archive_source import ListedSource
from wme_async._client.paths import hour_of
from wme_async._client.quota import Cost
from wme_async._client.sync_commit import Committer, FinishedFile
from wme_async._client.sync_options import Listing, SyncOptions
from wme_async._client.sync_plan import (
    SMALL,
    Entry,
    FileState,
    check_removals,
    check_template,
    entries_of,
    is_current,
)
from wme_async._client.sync_report import SyncFile, SyncProgress, SyncReport
from wme_async._client.sync_state import FolderState
from wme_async._download import Checksum, DownloadSettings, Progress, download
from wme_async._download.finished import check_target, existing_version, missing_folders, remove_empty
from wme_async._download.small_file import SmallContent, SmallFile, fetch_small
from wme_async._files import free_space
from wme_async._rates import RateMeter
from wme_async._tasks import WorkGroup, call_hook, in_thread, long_in_thread, open_in_thread, raise_first_cause
from wme_async._transport import Transport, count_requests
from wme_async.errors import ClientClosed, NotFound, QuotaExceeded, Unauthorized, WMEError
from wme_async.models import Archive

_PROGRESS_SECONDS: Final = 0.1
# Files of up to so many bytes take one connection each, since others are fetched beside them.
_ONE_CONNECTION: Final = 32 << 20
# The list states sizes in thousands of bytes.
_ROUNDING: Final = 1000

# Longer names may be cut for `NAME.part`.
_LONG: Final = 100

Kind = Literal["new", "changed", "unchanged", "unknown"]


@dataclasses.dataclass(kw_only=True)
class _Item:
    """The state of one entry."""

    entry: Entry
    path: Path
    kind: Kind
    has_part: bool = False
    problem: Exception | None = None


class Sync:
    """One run of a sync.

    Args:
        listing: The archives.
        folder: The folder to write to.
        transport: Sends the requests.
        options: The options.
    """

    def __init__(self, listing: Listing, folder: Path, transport: Transport, options: SyncOptions) -> None:
        self._listing = listing
        self._folder = folder
        self._transport = transport
        self._options = options
        self._filters = msgspec.json.encode(dict(sorted(options.filters.items()))).decode()
        self._collection = ""
        self._committer: Committer | None = None
        self._items: list[_Item] = []
        self._outcomes: dict[Kind, list[SyncFile]] = {"new": [], "changed": [], "unchanged": []}
        self._failed: list[SyncFile] = []
        self._stopped: QuotaExceeded | None = None
        self._bytes = 0
        self._signed = 0
        self._reserved = 0
        self._done_bytes = 0
        self._done_files = 0
        self._under_way: dict[str, int] = {}
        self._totals = (0, 0)
        self._meter = RateMeter(transport.monotonic())
        self._shown = 0

    async def run(self) -> SyncReport:
        """Sync the folder.

        Raises:
            WMEError: As `Files.sync`.
            OSError: As `Files.sync`.
            ValueError: As `Files.sync`.
        """
        start = self._transport.monotonic()
        check_template(self._options.name, self._listing.name)
        removed: Sequence[SyncFile] = ()
        with count_requests() as counter:
            missing = await in_thread(missing_folders, self._folder / "x")
            state = await self._open_state()
            try:
                removed = await self._run(state)
            finally:
                if state is not None:
                    await in_thread(state.close)
                if not self._options.dry_run:
                    await in_thread(remove_empty, missing)
        return self._report(removed, requests=counter.sent, seconds=self._transport.monotonic() - start)

    async def _open_state(self) -> FolderState | None:
        if self._options.dry_run:
            exists = await in_thread(self._folder.is_dir)
            return await self._opened(lambda: FolderState(self._folder, read_only=True)) if exists else None

        def open_state() -> FolderState:
            self._folder.mkdir(parents=True, exist_ok=True)
            return FolderState(self._folder)

        return await self._opened(open_state)

    @staticmethod
    async def _opened(function: Callable[[], FolderState]) -> FolderState:
        return await open_in_thread(function, lambda state: state.close())

    async def _run(self, state: FolderState | None) -> Sequence[SyncFile]:
        records = await self._listing.fetch(self._options.filters)
        self._collection = self._listing.collection()
        entries = entries_of(records, self._name_of)
        del records
        names = {entry.name for entry in entries}
        removable = await self._removable(state, names)
        await in_thread(self._assess, state, entries)
        if state is None or self._options.dry_run:
            await self._compare_unknown()
        else:
            await self._fetch_all(state)
            await in_thread(self._remove, state, removable)
        return [
            SyncFile(identifier=Path(name).name.removesuffix(".tar.gz"), path=self._folder / name, size=file.size)
            for _, name, file in removable
        ]

    def _name_of(self, record: Archive) -> str:
        name = self._listing.name(record.identifier)
        return name.text(self._options.name, version=record.version or None)

    # Comparison

    def _assess(self, state: FolderState | None, entries: list[Entry]) -> None:
        states = state.files([entry.name for entry in entries]) if state is not None else {}
        folders: dict[Path, tuple[set[str] | None, OSError | None]] = {}
        for entry in entries:
            path = self._folder / entry.name
            folder, name = path.parent, path.name
            if folder not in folders:
                folders[folder] = _names_in(folder), _unusable(path)
            names, problem = folders[folder]
            exists = name in names if names is not None else os.path.lexists(path)
            item = _Item(entry=entry, path=path, kind="new", problem=None if exists else problem)
            # The part of a long name has another name, which is checked separately.
            item.has_part = names is None or f"{name}.part" in names or len(name) > _LONG
            self._items.append(item)
            if exists:
                self._look_at(item, states.get(entry.name))

    def _look_at(self, item: _Item, state: FileState | None) -> None:
        entry = item.entry
        try:
            item.path = check_target(item.path, create=True)
            status = item.path.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            item.problem = error
            return
        current = is_current(entry, state, status.st_size, status.st_mtime_ns)
        if current is None and entry.size is not None and abs(status.st_size - entry.size) > _ROUNDING:
            current = False
        item.kind = "unknown" if current is None else "unchanged" if current else "changed"

    async def _compare(self, item: _Item) -> FinishedFile | None:
        """Determine the version of a file from its extended attribute or its bytes."""
        source = self._source(item.entry)
        existing = await long_in_thread(
            lambda cancelled: existing_version(
                item.path, cancelled, identity=source.identity, size=None, etag=None,
                promised=item.entry.version or None, named=True,
            )
        )  # fmt: skip
        current = existing is not None and existing.current
        item.kind = "new" if existing is None else "unchanged" if current else "changed"
        if existing is None or not current or existing.md5 is None:
            return None
        return self._finished(item, source, existing.md5, None, verified=True)

    async def _compare_unknown(self) -> None:
        for item in self._items:
            if item.kind == "unknown":
                await self._compare(item)
            if item.problem is not None:
                self._fail(item, item.problem)
            else:
                self._outcomes[item.kind].append(_file_of(item))
        self._bytes = sum(item.entry.size or 0 for item in self._items if item.kind in {"new", "changed"})
        self._signed = sum(item.kind in {"new", "changed"} for item in self._items)

    # Removal

    async def _removable(self, state: FolderState | None, names: set[str]) -> list[tuple[str, str, FileState]]:
        """Return collection, name and state of the files to remove.

        Raises:
            DataError: They are too many, or the listing is empty.
        """
        removable: list[tuple[str, str, FileState]] = []
        if self._options.delete:
            claimed = await in_thread(state.claimed, self._collection, self._filters) if state is not None else {}
            lacking = {name: file for name, file in claimed.items() if name not in names}
            check_removals(lacking, len(claimed), len(names), self._options.max_delete)
            removable += [(self._collection, name, file) for name, file in lacking.items()]
        if self._options.keep is not None and state is not None:
            for collection in await in_thread(self._outdated, state):
                files = await in_thread(state.claimed, collection, self._filters)
                removable += [(collection, name, file) for name, file in files.items() if name not in names]
        if not removable or state is None:
            return removable
        unshared = await in_thread(state.unshared, [name for _, name, _ in removable])
        return [file for file in removable if file[1] in unshared and _is_as_recorded(self._folder / file[1], file[2])]

    def _outdated(self, state: FolderState) -> Iterator[str]:
        kind, _, place = self._collection.partition(" ")
        keep = self._options.keep
        assert keep is not None
        limit = hour_of(place) - keep
        for collection in state.collections(self._filters):
            other, _, hour = collection.partition(" ")
            if other == kind and hour_of(hour) < limit:
                yield collection

    def _remove(self, state: FolderState, removable: list[tuple[str, str, FileState]]) -> None:
        for collection, name, file in removable:
            path = self._folder / name
            if _is_as_recorded(path, file):
                path.unlink(missing_ok=True)
                remove_empty([folder for folder in path.parents if folder.is_relative_to(self._folder)][:-1])
            state.forget(collection, self._filters, [name])

    # Fetching

    async def _fetch_all(self, state: FolderState) -> None:
        committer = self._committer = Committer(state, self._collection, self._filters)
        work: list[_Item] = []
        for item in self._items:
            if item.problem is not None:
                self._fail(item, item.problem)
            elif item.kind == "unchanged":
                self._outcomes["unchanged"].append(_file_of(item))
            else:
                work.append(item)
        # Where the month's allowance ends a sync, files that change daily must not keep it from those that are missing.
        work.sort(key=lambda item: item.kind == "changed")
        self._totals = (len(work), sum(item.entry.size or 0 for item in work))
        unclaimed = {item.entry.name for item in self._items if item.kind == "unchanged"}
        if unclaimed:
            # They may have been fetched by a sync with other filters.
            await in_thread(state.claim, self._collection, self._filters, unclaimed)
        self._items = work
        queue = iter(work)
        try:
            with raise_first_cause():
                async with WorkGroup() as group:
                    others = [group.start(committer.run())]
                    reporter = group.start(self._report_progress()) if self._options.progress else None
                    count = min(self._options.concurrency, len(work))
                    workers = [group.start(self._work(queue)) for _ in range(count)]
                    if workers:
                        await asyncio.wait(workers)
                    committer.close()
                    await asyncio.wait(others)
                    if reporter is not None:
                        group.stop(reporter)
        except BaseException:
            # Commit the fetched files, so that the next call does not fetch them again.
            with contextlib.suppress(OSError, WMEError):
                await committer.commit()
                await committer.record_all()
            committer.abandon()
            raise
        await committer.record_all()
        await self._show()

    async def _work(self, queue: Iterator[_Item]) -> None:
        for item in queue:
            if self._stopped is not None:
                return
            try:
                await self._bring(item)
            except QuotaExceeded as error:
                self._stopped = error
                return
            except (ClientClosed, Unauthorized):
                raise
            except (WMEError, OSError) as error:
                self._fail(item, error)
            finally:
                self._under_way.pop(item.entry.name, None)

    async def _bring(self, item: _Item) -> None:
        if item.kind == "unknown":
            finished = await self._compare(item)
            if finished is not None:
                await self._commit(finished)
                return
        source = self._source(item.entry)
        if item.entry.is_small and await self._bring_small(item, source):
            return
        await self._download(item, source)

    async def _bring_small(self, item: _Item, source: ListedSource) -> bool:
        """Fetch a small file in one response; return whether it was possible."""
        entry = item.entry
        if item.has_part:
            leftover = await open_in_thread(
                partial(SmallFile.left_over, item.path, md5=entry.version, limit=SMALL + _ROUNDING),
                lambda file: file.close() if isinstance(file, SmallFile) else None,
            )
            if isinstance(leftover, SmallFile):
                await self._commit(self._finished(item, source, entry.version, leftover, verified=True))
                return True
            if not leftover:
                return False
        budget = self._options.budget
        async with self._space(entry):
            self._signed += 1
            signed = await source.sign()
            if self._options.shared:
                await budget.acquire()
            try:
                content = await fetch_small(signed, self._transport, limit=SMALL + _ROUNDING)
            except (ClientClosed, NotFound):
                raise
            except WMEError:
                # The downloader handles the error; it uses the same signed URL.
                source.signed = signed
                return False
            finally:
                if self._options.shared:
                    budget.release()
            self._bytes += len(content.data)
            if content.md5 != entry.version:
                source.signed = signed
                return False
        await self._commit(self._finished(item, source, content.md5, content, verified=True))
        delay = budget.moved(len(content.data), self._transport.monotonic())
        if delay > 0:
            await self._transport.sleep(delay)
        return True

    async def _download(self, item: _Item, source: ListedSource) -> None:
        entry = item.entry

        def progress(step: Progress) -> None:
            self._under_way[entry.name] = step.done

        signed = source.signed is not None
        async with self._space(entry):
            source.promised = Checksum(md5=entry.version) if entry.version else None
            settings = DownloadSettings(
                overwrite=True, create=True, connections=1 if (entry.size or 0) <= _ONE_CONNECTION else None,
                if_changed=not entry.version, budget=self._options.budget,
                progress=progress if self._options.progress is not None else None,
            )  # fmt: skip
            result = await download(source, item.path, settings, transport=self._transport)
        if result.unchanged:
            item.kind = "unchanged"
        self._bytes += result.bytes_fetched
        self._signed += result.api_requests - signed
        path = item.path
        md5 = result.version or ""
        if uses_version(self._options.name) and md5 and md5 != entry.version:
            # It was replaced after the list: its name says which version it is.
            name = self._listing.name(entry.identifier).path(self._options.name, version=md5)
            path = self._folder / name
            await in_thread(_move, item.path, path)
            entry = item.entry = msgspec.structs.replace(entry, name=str(name), version=md5)
            item.path = path
        await self._commit(self._finished(item, source, md5, None, verified=result.verified, size=result.size))

    @contextlib.asynccontextmanager
    async def _space(self, entry: Entry) -> AsyncGenerator[None]:
        """Raise before a metered request if the disk has no room for a file and for those under way."""
        size = max(0, (entry.size or 0) - _ROUNDING)
        free = await self._options.budget.short_work.run(free_space, self._folder)
        if free is not None and free < size + self._reserved:
            raise OSError(
                errno.ENOSPC,
                f"the file has {size:,} bytes, {self._reserved:,} are on their way and {free:,} are free; make room "
                "and sync again",
                str(self._folder / entry.name),
            )
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def _source(self, entry: Entry) -> ListedSource:
        return self._listing.source(entry.identifier)

    def _finished(
        self,
        item: _Item,
        source: ListedSource,
        md5: str,
        content: SmallContent | SmallFile | None,
        *,
        verified: bool | None,
        size: int | None = None,
    ) -> FinishedFile:
        length = size if size is not None else _length(content, item.entry.size or 0)

        def outcome(error: Exception | None) -> None:
            if error is not None:
                self._fail(item, error)
                return
            self._count(item, length)
            self._outcomes[item.kind].append(
                SyncFile(identifier=item.entry.identifier, path=item.path, size=length, version=md5)
            )

        return FinishedFile(
            entry=item.entry, identity=source.identity, md5=md5, path=item.path, content=content, verified=verified,
            outcome=outcome,
        )  # fmt: skip

    async def _commit(self, file: FinishedFile) -> None:
        assert self._committer is not None
        await self._committer.add(file)

    # Results

    def _fail(self, item: _Item, error: Exception) -> None:
        self._failed.append(_file_of(item, error))
        self._count(item, item.entry.size or 0)

    def _count(self, item: _Item, size: int) -> None:
        self._under_way.pop(item.entry.name, None)
        self._done_files += 1
        self._done_bytes += size
        # The exact size replaces that of the list, which is rounded.
        self._totals = (self._totals[0], self._totals[1] + size - (item.entry.size or 0))

    async def _report_progress(self) -> None:
        while True:
            await self._show()
            await self._transport.sleep(_PROGRESS_SECONDS)

    async def _show(self) -> None:
        hook = self._options.progress
        if hook is None:
            return
        now = self._transport.monotonic()
        size = self._done_bytes + sum(self._under_way.values())
        self._meter.add(max(0, size - self._shown), now)
        self._shown = size
        rate = self._meter.rate(now)
        files, total = self._totals
        total = max(total, size)
        await call_hook(
            hook,
            SyncProgress(
                files=self._done_files, files_total=files, done=size, total=total, rate=rate,
                eta=(total - size) / rate if rate > 0 else (0.0 if size == total else None), failed=tuple(self._failed),
            ),
        )  # fmt: skip

    def _report(self, removed: Sequence[SyncFile], *, requests: int, seconds: float) -> SyncReport:
        finished = {file.identifier for files in self._outcomes.values() for file in files}
        finished |= {file.identifier for file in self._failed}
        pending = [_file_of(item) for item in self._items if item.entry.identifier not in finished]
        pool = self._listing.pool
        return SyncReport(
            new=tuple(self._outcomes["new"]),
            changed=tuple(self._outcomes["changed"]),
            unchanged=tuple(self._outcomes["unchanged"]),
            failed=tuple(self._failed),
            pending=tuple(pending),
            removed=tuple(removed),
            bytes=self._bytes,
            requests=requests,
            seconds=seconds,
            cost=Cost(pool=pool, requests=self._signed if pool else 0),
            stopped=self._stopped,
            dry_run=self._options.dry_run,
        )


def _file_of(item: _Item, error: Exception | None = None) -> SyncFile:
    entry = item.entry
    return SyncFile(
        identifier=entry.identifier, path=item.path, size=entry.size or 0, version=entry.version, error=error
    )


def _names_in(folder: Path) -> set[str] | None:
    """Return the names in a folder; None for one that may be used but not listed, such as one of mode `-wx`."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError:
        return None


def _unusable(path: Path) -> OSError | None:
    """Return why nothing can be written in the folder of a file."""
    try:
        check_target(path.with_name("x"), create=True)
    except OSError as error:
        return error
    return None


def _length(content: SmallContent | SmallFile | None, listed: int) -> int:
    if isinstance(content, SmallFile):
        content = content.content
    return listed if content is None else len(content.data)


def _is_as_recorded(path: Path, file: FileState) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
