"""Loading snapshots: by chunks or whole, resumed after an interruption, complete within one version or not at all."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from wme_async._client.files import Files
from wme_async._tasks import WorkGroup, raise_first_cause
from wme_async.errors import DecodeError, NotFound, Replaced
from wme_async.mirror.events import MirrorChunkLoaded, MirrorLoaded, MirrorTrouble
from wme_async.mirror.marks import ChunkDone, Hole, Load, Loaded, Scope
from wme_async.mirror.protocol import Kind, Store
from wme_async.mirror.records import RecordReader, time_of
from wme_async.mirror.rule import Picture
from wme_async.mirror.work import Work, encode
from wme_async.models import Snapshot

__all__ = ["Loader"]

logger: logging.Logger = logging.getLogger("wme_async.mirror")

_BATCH: Final = 8 * 1024 * 1024  # bytes of JSON in one transaction, about: each writes parts of all indices
_WRITES: Final = 2  # batches that the store has: while it writes one, it compresses the next
_ATTEMPTS: Final = 60  # polls for a chunk that is being exported again
_WHOLE: Final = "*"  # the key of an archive that is loaded whole


class Loader:
    """Merges snapshots.

    Args:
        work: The mirror.
        store: Its store.
    """

    def __init__(self, work: Work, store: Store) -> None:
        self._work = work
        self._store = store
        self._reader = RecordReader(work.options.keep)
        self._missed = 0

    async def load(self, scope: Scope) -> Loaded:
        """Merge the newest snapshot, remove the pages that it lacks, and close the holes before it.

        A load that was interrupted goes on with the chunks that are not merged yet. If the snapshot is replaced
        meanwhile, it begins again with the new one: what is merged of the old one does no harm.

        Raises:
            NotFound: There is no such snapshot.
            QuotaExceeded: The allowance of the month is used up.
            WMEError: A request failed.
            OSError: The store cannot be written.
        """
        while True:
            snapshot = await self._work.client.snapshots.get(scope.identifier)
            loaded = await self._load_version(scope, snapshot)
            if loaded is not None:
                return loaded
            logger.info("the snapshot %s was replaced while it was loaded", scope.identifier)

    async def _load_version(self, scope: Scope, snapshot: Snapshot) -> Loaded | None:
        """Merge one version; return None if it was replaced."""
        load = await self._begin(scope, snapshot)
        chunked = self._work.options.load == "chunks" and bool(snapshot.chunks)
        files: Files[Any, Any] = (
            self._work.client.snapshots.chunks(scope.identifier) if chunked else self._work.client.snapshots
        )
        self._missed = 0
        names = sorted(snapshot.chunks, key=_number) if chunked else [_WHOLE]
        for name in names:
            if name in self._work.progress.chunks(scope, load.number):
                continue
            if not await self._load_part(scope, files, name, load, snapshot):
                return None
        if not await self._is_current(scope, files, load, snapshot):
            return None
        return await self._finish(scope, load)

    async def _begin(self, scope: Scope, snapshot: Snapshot) -> Load:
        """Return the load of a version: the one that was interrupted, or a new one."""
        work = self._work
        load = work.progress.load(scope)
        if load is not None and load.version == snapshot.version:
            return load
        load = Load(
            number=work.progress.next_load(),
            version=snapshot.version,
            date_modified=snapshot.date_modified or work.now(),
            total=len(snapshot.chunks) if work.options.load == "chunks" and snapshot.chunks else 1,
        )
        await work.apply(
            values={
                "state": {f"load {scope.identifier}": encode(load), "loads": encode(load.number)},
                "chunks_done": dict.fromkeys(work.progress.chunk_keys(scope)),
            }
        )
        await work.update_state()
        return load

    async def _load_part(self, scope: Scope, files: Files[Any, Any], name: str, load: Load, snapshot: Snapshot) -> bool:
        """Merge one chunk, or the whole archive; return whether the snapshot is still of the same version."""
        work = self._work
        for attempt in range(_ATTEMPTS):
            identifier = scope.identifier if name == _WHOLE else name
            try:
                version = snapshot.version if name == _WHOLE else (await files.get(name)).version
                done = await self.read_files(files, identifier, version, load.number)
            except (Replaced, NotFound) as error:
                # While it is exported again, a chunk is gone for a while, or newer than its metadata.
                if attempt == _ATTEMPTS - 1:
                    raise
                current = await work.client.snapshots.get(scope.identifier)
                if current.version != load.version:
                    return False
                work.notify(MirrorTrouble(error=error, wait=work.options.poll))
                await asyncio.sleep(work.options.poll)
            else:
                await work.apply(values={"chunks_done": {f"{scope.identifier} {name}": encode(done)}})
                count = len(work.progress.chunks(scope, load.number))
                work.notify(
                    MirrorChunkLoaded(identifier=scope.identifier, done=count, total=load.total, records=done.records)
                )
                return True
        raise AssertionError("unreachable")

    async def read_chunk(self, scope: Scope, chunk: str, number: int) -> tuple[ChunkDone, int]:
        """Merge one chunk, and return what it has, and how many of its changes the mirror had missed.

        Raises:
            Replaced: It is being exported again.
            NotFound: It does not exist.
            WMEError: A request failed.
            OSError: The store cannot be written.
        """
        files = self._work.client.snapshots.chunks(scope.identifier)
        self._missed = 0
        done = await self.read_files(files, chunk, (await files.get(chunk)).version, number)
        return done, self._missed

    async def read_files(self, files: Files[Any, Any], identifier: str, version: str, number: int) -> ChunkDone:
        """Merge the records of an archive. While batches are written, the next one is read."""
        work = self._work
        cut, records, bad, size = 0, 0, 0, 0
        batch = Picture()
        bad_lines: list[DecodeError] = []
        options: dict[str, Any] = {"md5": version} if version else {}
        with raise_first_cause():
            async with (
                files.read(identifier, type=msgspec.Raw, on_bad_record=bad_lines.append, **options) as archive,
                WorkGroup() as group,
            ):
                writes: deque[asyncio.Task[None]] = deque()
                async for lines in archive.lines():
                    source = f"record {records + 1} or later of {identifier}"
                    picture, newest, wrong = await work.read(self._reader, lines, load=number, source=source)
                    cut, bad, records = max(cut, newest), bad + len(wrong), records + len(lines)
                    size += sum(map(len, lines))
                    batch.join(picture)
                    if size >= _BATCH:
                        if len(writes) == _WRITES:
                            await writes.popleft()
                        writes.append(group.start(self._write(batch), name="write rows of a mirror"))
                        batch, size = Picture(), 0
                while writes:
                    await writes.popleft()
                if batch:
                    await self._write(batch)
        for error in bad_lines:
            work.report_bad(error, identifier)
        return ChunkDone(load=number, version=version, cut=cut, records=records, bad=bad + len(bad_lines))

    async def _write(self, picture: Picture) -> None:
        applied = await self._work.apply(picture)
        # Not in one expression: of two writes at a time, each would add to the sum before both.
        self._missed += applied.missed

    async def _is_current(self, scope: Scope, files: Files[Any, Any], load: Load, snapshot: Snapshot) -> bool:
        """Return whether all that was read is of one version, which is still the newest.

        The metadata of a snapshot are replaced some time after its chunks, and each export deals the pages to the
        chunks anew: chunks of two exports together may lack pages that both have.
        """
        current = await self._work.client.snapshots.get(scope.identifier)
        if current.version != load.version:
            return False
        done = self._work.progress.chunks(scope, load.number)
        if _WHOLE in done:
            return True
        versions = {chunk.identifier: chunk.version for chunk in await files.list()}
        return set(snapshot.chunks) == set(current.chunks) and all(
            versions.get(name, done[name].version) == done[name].version for name in snapshot.chunks
        )

    async def _finish(self, scope: Scope, load: Load) -> Loaded:
        """Sweep, close holes, and note the load as complete."""
        work = self._work
        done = work.progress.chunks(scope, load.number).values()
        cut = max((chunk.cut for chunk in done), default=0)
        bad = sum(chunk.bad for chunk in done)
        first = work.progress.loaded(scope) is None
        loaded = Loaded(
            number=load.number,
            version=load.version,
            date_modified=load.date_modified,
            cut=time_of(cut),
            records=sum(chunk.records for chunk in done),
            bad=bad,
            missed=0 if first else self._missed,
        )
        loaded = await self._sweep(scope, loaded, cut)
        values: dict[Kind, Mapping[str, str | None]] = {
            "state": {f"load {scope.identifier}": None, f"loaded {scope.identifier}": encode(loaded)},
            "chunks_done": dict.fromkeys(work.progress.chunk_keys(scope)),
        }
        await work.apply(values=values)
        await self.check_holes(scope)
        work.notify(MirrorLoaded(identifier=scope.identifier, loaded=loaded))
        await work.update_state()
        return loaded

    async def _sweep(self, scope: Scope, loaded: Loaded, cut: int) -> Loaded:
        """Remove what the snapshot lacks, unless something speaks against its completeness."""
        work, subject = self._work, f"snapshot of {scope.identifier}"
        if loaded.bad:
            # A page that could not be read would look as if it were missing.
            await work.degrade(subject, f"{loaded.bad} records could not be read, so pages that it lacks are kept")
            return loaded
        if not loaded.records:
            return loaded
        sweep = await self._store.sweep(
            scope.project, scope.namespace, load=loaded.number, cut=cut, max_removed=work.options.max_removed
        )
        work.told(sweep.seq)
        if sweep.removed < sweep.missing:
            reason = (
                f"it lacks {sweep.missing} live pages, and at most {sweep.limit} are removed without being asked: "
                "it may be incomplete; if it is right, run once with a larger max_removed"
            )
            await work.degrade(subject, reason)
        else:
            await work.degrade(subject, None)
        return msgspec.structs.replace(loaded, missing=sweep.missing, removed=sweep.removed)

    async def check_holes(self, scope: Scope) -> None:
        """Note the time between the cut of a snapshot and the beginning of changes, and close holes before the cut."""
        work = self._work
        loaded = work.progress.loaded(scope)
        since = work.progress.since
        marks: dict[str, str | None] = {}
        if loaded is not None and since is not None and loaded.until < since:
            reason = "the snapshot is older than what the stream and the batches still have"
            hole = Hole(begin=loaded.until, end=since, reason=reason, identifier=scope.identifier)
            marks |= work.hole_marks([hole])
        closed = [hole for hole in work.progress.holes if work.progress.covers(hole, work.scopes)]
        marks |= work.closed_holes(closed, "snapshot")
        if marks:
            await work.apply(values={"holes": marks})


def _number(chunk: str) -> int:
    digits = chunk.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0
