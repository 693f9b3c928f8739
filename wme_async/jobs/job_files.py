"""The files of jobs: a folder for each unfinished job, and the one step by which a whole file gets its name.

A file that has its name is never written to, moved or replaced: names are given by a hard link, which fails where
something is already there. A kill at any point between the reservation of the name in the database and the end of the
move is repaired by `JobFiles.settle`.
"""

import contextlib
import errno
import itertools
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, TypeAlias

from wme_async._files import NAME_LEAST, name_limit, sync_folder
from wme_async._tasks import in_thread
from wme_async.jobs.database import DamagedBatch
from wme_async.jobs.model import JobRow, Status
from wme_async.jobs.naming import file_key, fitted, numbered, safe_name
from wme_async.jobs.store import Store

HIDDEN: Final = ".wme-jobs"
"""The folder of unfinished files and of the database. No name of a finished file begins with a full stop."""

DATA: Final = "data"
"""The name of a download in its folder, where a later attempt resumes it."""

JobKey: TypeAlias = tuple[str, int]
"""The identifier of a batch and the position of a job in it."""

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_WHOLE: Final = "whole"
_EXTRAS: Final = "extras"
_NUMBER: Final = len(" (999999)")
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_BATCH: Final = re.compile(r"batch_[0-9a-f]{16}")


class JobFiles:
    """The directory of a manager.

    Args:
        directory: Where finished files go.
        store: The database, which knows the names that are taken.
    """

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory = directory
        self._parts = directory / HIDDEN / "parts"
        self._store = store

    def _folder(self, key: JobKey) -> Path:
        return self._parts / key[0] / str(key[1])

    async def prepare(self, key: JobKey) -> Path:
        """Return the folder of a job, created if it is missing."""
        return await in_thread(_prepare, self._folder(key))

    async def adopt(self, old: JobKey, new: JobKey) -> None:
        """Give the unfinished download of one job to another that has nothing yet."""
        await in_thread(_adopt, self._folder(old), self._folder(new))

    async def discard(self, keys: Iterable[JobKey]) -> None:
        """Remove the unfinished downloads of jobs."""
        await in_thread(_remove, *map(self._folder, keys))

    async def collect(self, key: JobKey, path: Path, extras: Iterable[Path], size: int) -> Path:
        """Move a finished download to the one name in its folder under which `settle` finds it after a kill.

        Args:
            key: The job.
            path: The finished download.
            extras: Files that belong to it.
            size: Bytes that were downloaded.

        Raises:
            OSError: Another program has changed or replaced the file, or the disk failed.
        """
        return await in_thread(_collect, self._folder(key), path, tuple(extras), size)

    async def place(
        self, key: JobKey, path: PurePosixPath, staged: Path, *, title: str | None, etag: str | None
    ) -> dict[str, Any]:
        """Move a whole file, and the files that belong to it, to a name of its own.

        Args:
            key: The job.
            path: The preferred path under the directory.
            staged: The file.
            title: Its title.
            etag: Its version.

        Returns:
            Fields of the job.

        Raises:
            OSError: The disk failed.
        """
        cautious = False
        while True:
            candidates = _free_names(self._directory, path, cautious=cautious)
            filepath = await self._store.reserve(*key, candidates, title=title, etag=etag)
            try:
                size = await in_thread(_move, staged, self._directory / filepath)
            except (FileExistsError, NotADirectoryError):
                # Another program took the name between the check and the move; the next check sees it.
                continue
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG or cautious:
                    raise
                cautious = True
            else:
                return {**await self._finish(key, filepath, size), "title": title, "etag": etag}

    async def _finish(self, key: JobKey, filepath: str, size: int) -> dict[str, Any]:
        extras = await in_thread(_move_extras, self._folder(key), self._directory, filepath)
        await in_thread(_remove, self._folder(key))
        return {"filepath": filepath, "moving": False, "done": size, "total": size, "extras": extras}

    async def settle(self, key: JobKey, job: JobRow) -> dict[str, Any] | None:
        """Finish the move of a file that a kill interrupted.

        Returns:
            Fields of the job, which is completed; None without a file, so that the job has to run again.
        """
        assert job.filepath is not None
        target = self._directory / job.filepath
        staged = self._folder(key) / _WHOLE
        fields: dict[str, Any] | None = None
        try:
            match await in_thread(_find, staged, target):
                case "moved":
                    fields = await self._finish(key, job.filepath, (await in_thread(target.stat)).st_size)
                case "staged":
                    fields = await self.place(key, PurePosixPath(job.filepath), staged, title=job.title, etag=job.etag)
        except OSError as error:
            # The bytes stay where they are, and the next run of the job continues with them.
            logger.warning("the file of job %d of %s could not be named (%s)", key[1], key[0], error)
        if fields is None:
            await self._store.release(*key)
            job.moving, job.filepath = False, None
        return fields

    async def forget(self, batch_id: str, jobs: Iterable[JobRow]) -> None:
        """Remove the unfinished files of a batch, and the finished files of some of its jobs."""
        await in_thread(_remove, self._parts / batch_id)
        completed = [job for job in jobs if job.status is Status.COMPLETED and job.filepath]
        paths = [path for job in completed for path in (job.filepath, *job.extras) if path]
        await in_thread(_remove_finished, self._directory, paths)

    async def sweep(self) -> None:
        """Remove unfinished files that no job will continue."""
        for batch_id in await in_thread(_batches, self._parts):
            try:
                row = await self._store.batch(batch_id)
            except DamagedBatch:
                # Its files stay with its rows, until an operator has looked at them.
                continue
            if row is None:
                await in_thread(_remove, self._parts / batch_id)
                continue
            done = [job.position for job in row.jobs if job.status in {Status.COMPLETED, Status.CANCELLED}]
            await self.discard((batch_id, position) for position in done)


# The functions below block and run in worker threads.


def _prepare(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # A whole download that could not be named: the next attempt looks for it under the name of downloads.
    with contextlib.suppress(FileNotFoundError):
        (folder / _WHOLE).replace(folder / DATA)
    return folder


def _adopt(old: Path, new: Path) -> None:
    if old.is_dir():
        new.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            # If this fails, the job starts from the first byte: slower, and as correct.
            old.rename(new)


def _remove(*folders: Path) -> None:
    """Remove folders of unfinished files, and the folder of their batch if it is then empty."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in {folder.parent for folder in folders if _BATCH.fullmatch(folder.parent.name)}:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _batches(parts: Path) -> list[str]:
    """Return the batches that have a folder of unfinished files."""
    with contextlib.suppress(OSError):
        return sorted(folder.name for folder in parts.iterdir() if _BATCH.fullmatch(folder.name))
    return []


def _collect(folder: Path, path: Path, extras: Iterable[Path], size: int) -> Path:
    staged = folder / _WHOLE
    if staged.exists():
        # It was collected before, and the database failed afterwards.
        return staged
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        message = "another program has changed or replaced the downloaded file; repeat the job"
        raise OSError(errno.EIO, message, str(path))
    for extra in extras:
        (folder / _EXTRAS).mkdir(exist_ok=True)
        extra.replace(folder / _EXTRAS / extra.name)
    return path.replace(staged)


def _free_names(directory: Path, path: PurePosixPath, *, cautious: bool) -> Iterator[tuple[str, str]]:
    """Yield names that are free on the disk, the preferred one first, without end.

    Args:
        directory: Where files go.
        path: The preferred relative path. A level that is too long for the file system is cut.
        cautious: Do not trust the length that the file system reports.

    Yields:
        Relative path, and the key by which file systems compare it.
    """
    path = fitted(path, (NAME_LEAST if cautious else name_limit(directory)) - _NUMBER)
    for number in itertools.count(1):
        candidate = numbered(_avoid_files(directory, path), number)
        if not os.path.lexists(directory / candidate):
            yield str(candidate), file_key(candidate)


def _avoid_files(directory: Path, path: PurePosixPath) -> PurePosixPath:
    """Return a path whose folders are not files or links that already exist."""
    folder = PurePosixPath()
    for part in path.parts[:-1]:
        levels = (folder / numbered(PurePosixPath(part), number) for number in itertools.count(1))
        folder = next(level for level in levels if _can_be_folder(directory / level))
    return folder / path.name


def _can_be_folder(path: Path) -> bool:
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink())


def _move(staged: Path, target: Path) -> int:
    """Give a whole file its name, and return its size in bytes.

    Raises:
        FileExistsError: The name is taken.
        OSError: The disk failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    size = staged.stat().st_size
    try:
        os.link(staged, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Some file systems have no links. One process at a time uses the directory, so the check stays valid.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "the name is taken", str(target)) from None
        staged.rename(target)
    else:
        staged.unlink()
    sync_folder(target.parent)
    return size


def _move_extras(folder: Path, directory: Path, filepath: str) -> list[str]:
    """Move the files that belong to a finished file beside it, under its name.

    Returns:
        Their relative paths.
    """
    extras = sorted((folder / _EXTRAS).iterdir()) if (folder / _EXTRAS).is_dir() else []
    main = PurePosixPath(filepath)
    # The finished file has its name, so a name of this length is possible whatever the file system reports.
    limit = max(min(NAME_LEAST, name_limit(directory)), len(main.name.encode()))
    paths: list[str] = []
    for extra in extras:
        path = fitted(main.with_name(f"{main.stem}.{safe_name(extra.name, limit=40)}"), limit)
        try:
            _move(extra, directory / path)
        except FileExistsError:
            logger.warning("%s is there already; the new one is dropped", path)
            continue
        paths.append(str(path))
    return paths


def _find(staged: Path, target: Path) -> Literal["moved", "staged", "nowhere"]:
    """Return how far an interrupted move came."""
    if staged.exists():
        if target.exists() and staged.samefile(target):
            staged.unlink()
            return "moved"
        return "staged"
    return "moved" if target.is_file() and not target.is_symlink() else "nowhere"


def _remove_finished(directory: Path, paths: Iterable[str]) -> None:
    """Remove finished files, and the folders that are then empty."""
    root = directory.resolve()
    for path in paths:
        file = directory / path
        if file.parent.resolve().is_relative_to(root):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
                for folder in itertools.takewhile(lambda parent: parent != directory, file.parents):
                    folder.rmdir()


def finished_path(directory: Path, filepath: str) -> Path | None:
    """Return the path of a finished file; None if it is gone, or not a plain file in the directory any more."""
    path = directory / filepath
    # A link may have replaced a folder after the file was finished.
    if not path.resolve().is_relative_to(directory.resolve()) or path.is_symlink() or not path.is_file():
        return None
    return path
