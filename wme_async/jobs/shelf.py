"""Where the files of jobs are, and what becomes of them: begun, whole, named, taken up after a kill, forgotten."""

import errno
import logging
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from wme_async._tasks import in_thread
from wme_async.jobs import job_files as staging
from wme_async.jobs.errors import DamagedBatch
from wme_async.jobs.rows import BatchRow, JobRow
from wme_async.jobs.states import Status
from wme_async.jobs.store import Store

__all__ = ["HIDDEN", "Shelf"]

HIDDEN = ".wme-jobs"
"""The folder of unfinished files and of the database. No name of a finished file begins with a full stop."""

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_Key = tuple[str, int]


class Shelf:
    """The directory of a manager.

    Args:
        directory: Where finished files go.
        store: Which names are taken.
    """

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory = directory
        self._parts = directory / HIDDEN / "parts"
        self._store = store

    def _folder(self, key: _Key) -> Path:
        return self._parts / key[0] / str(key[1])

    async def prepare(self, key: _Key) -> Path:
        """Return the folder of a job's own, made if it is missing."""
        folder = self._folder(key)
        await in_thread(staging.prepare, folder)
        return folder

    async def adopt(self, old: _Key, new: _Key) -> None:
        """Give what one job has downloaded to another."""
        await in_thread(staging.adopt, self._folder(old), self._folder(new))

    async def discard(self, keys: Iterable[_Key]) -> None:
        """Remove what jobs have that will not go on."""
        await in_thread(staging.remove, *(self._folder(key) for key in keys))

    async def collect(self, key: _Key, path: Path, extras: Iterable[Path], size: int) -> Path:
        """Bring a finished download to where a kill cannot lose it."""
        return await in_thread(staging.collect, self._folder(key), path, tuple(extras), size)

    async def place(
        self, key: _Key, wanted: PurePosixPath, staged: Path, *, title: str | None, etag: str | None
    ) -> dict[str, Any]:
        """Move a whole file, and what belongs to it, to a name of its own.

        From the reservation of the name on, a kill at any point is made good by `settle`.

        Args:
            key: The job.
            wanted: The name it would like.
            staged: The file.
            title: Its title.
            etag: Its version.

        Returns:
            Fields of the job.

        Raises:
            OSError: The disk refused.
        """
        cautious = False
        while True:
            candidates = staging.candidates(self._directory, wanted, cautious=cautious)
            chosen = await self._store.reserve(*key, candidates, title=title, etag=etag)
            try:
                size = await in_thread(staging.move, staged, self._directory / chosen)
            except (FileExistsError, NotADirectoryError):
                # Somebody else took the name between the look and the move; the next look sees it.
                continue
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG or cautious:
                    raise
                cautious = True
                continue
            return {**await self._named(key, chosen, size), "title": title, "etag": etag}

    async def _named(self, key: _Key, chosen: str, size: int) -> dict[str, Any]:
        extras = await in_thread(staging.move_extras, self._folder(key), self._directory, chosen)
        await in_thread(staging.remove, self._folder(key))
        return {"filepath": chosen, "moving": False, "done": size, "total": size, "extras": extras}

    async def settle(self, key: _Key, job: JobRow) -> dict[str, Any] | None:
        """Finish the move of a file that a kill interrupted.

        Returns:
            Fields of the job, which is completed; None if there is no file, so that it must be downloaded again.
        """
        try:
            facts = await self._settled(key, job)
        except OSError as error:
            # Its bytes stay where they are, and the next run of the job takes them up.
            logger.warning("the file of job %d of %s could not be named (%s)", key[1], key[0], error)
            facts = None
        if facts is None:
            await self._store.release(*key)
            job.moving, job.filepath = False, None
        return facts

    async def _settled(self, key: _Key, job: JobRow) -> dict[str, Any] | None:
        assert job.filepath is not None
        target = self._directory / job.filepath
        staged = self._folder(key) / staging.WHOLE
        where = await in_thread(staging.find, staged, target)
        if where == "moved":
            return await self._named(key, job.filepath, (await in_thread(target.stat)).st_size)
        if where == "staged":
            return await self.place(key, PurePosixPath(job.filepath), staged, title=job.title, etag=job.etag)
        # Neither: somebody tidied up.
        return None

    async def forget(self, row: BatchRow, *, files: bool) -> None:
        """Remove what a batch has left unfinished, and its finished files if they are to go too."""
        await in_thread(staging.remove, self._parts / row.batch_id)
        if files:
            paths = [job.filepath for job in row.jobs if job.status is Status.COMPLETED and job.filepath]
            paths += [extra for job in row.jobs for extra in job.extras]
            await in_thread(staging.remove_files, self._directory, paths)

    async def sweep(self) -> None:
        """Remove what no job will ask for again."""
        for batch_id in await in_thread(staging.folders, self._parts):
            try:
                row = await self._store.batch(batch_id)
            except DamagedBatch:
                # Its files stay with its rows, until somebody has looked.
                continue
            if row is None:
                await in_thread(staging.remove, self._parts / batch_id)
                continue
            over = [job.position for job in row.jobs if job.status in {Status.COMPLETED, Status.CANCELLED}]
            await self.discard((batch_id, position) for position in over)
