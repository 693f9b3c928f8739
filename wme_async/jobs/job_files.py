"""Files on their way: a folder for each unfinished job, and the one step by which a whole file gets its name.

All of it blocks, and is meant for worker threads. A file that has its name is never written to, moved or replaced:
names are given by a link, which fails where something is already there.
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
from typing import Literal

from wme_async._files import NAME_LEAST, name_limit, sync_folder
from wme_async.jobs.naming import file_key, fitted, numbered, safe_name

__all__ = [
    "DATA",
    "WHOLE",
    "adopt",
    "candidates",
    "collect",
    "find",
    "folders",
    "move",
    "move_extras",
    "prepare",
    "remove",
    "remove_files",
]

logger: logging.Logger = logging.getLogger("wme_async.jobs")

DATA = "data"
"""The name of a download in its folder, which goes on where it is."""

WHOLE = "whole"
"""The name of a finished download in its folder."""

_EXTRAS = "extras"
_NUMBER = len(" (999999)")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_BATCH = re.compile(r"batch_[0-9a-f]{16}")


def prepare(folder: Path) -> None:
    """Make a job's folder. A download in it that was whole and got no name is where the next attempt looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / WHOLE).exists():
        (folder / WHOLE).replace(folder / DATA)


def adopt(old: Path, new: Path) -> None:
    """Give what one job has downloaded to another that has nothing yet."""
    if old.is_dir():
        new.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            # Without it the job begins anew, which is slower and no worse.
            old.rename(new)


def remove(*folders: Path) -> None:
    """Remove folders of unfinished files, and the one above them if they were the last."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for above in {folder.parent for folder in folders if _BATCH.fullmatch(folder.parent.name)}:
        with contextlib.suppress(OSError):
            above.rmdir()


def folders(parts: Path) -> list[str]:
    """Return the batches that have a folder of unfinished files."""
    with contextlib.suppress(OSError):
        return sorted(each.name for each in parts.iterdir() if _BATCH.fullmatch(each.name))
    return []


def collect(folder: Path, path: Path, extras: Iterable[Path], size: int) -> Path:
    """Bring a finished download to where a kill cannot lose it: one name in its folder, extras below.

    Args:
        folder: The job's folder.
        path: The finished download.
        extras: Files that belong to it.
        size: Bytes that were downloaded.

    Returns:
        The file.

    Raises:
        OSError: Another program has changed or replaced the file, or the disk failed.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise OSError(
            errno.EIO, "another program has changed or replaced the downloaded file; repeat the job", str(path)
        )
    for extra in extras:
        (folder / _EXTRAS).mkdir(exist_ok=True)
        extra.replace(folder / _EXTRAS / extra.name)
    whole = folder / WHOLE
    path.replace(whole)
    return whole


def candidates(directory: Path, wanted: PurePosixPath, *, cautious: bool = False) -> Iterator[tuple[str, str]]:
    """Yield names for a file, the wanted one first, none of which is taken on the disk; without end.

    Args:
        directory: Where files go.
        wanted: The relative path. A level that is too long for the file system is cut.
        cautious: Do not trust the length that the file system reports.

    Yields:
        Relative path, and the key by which file systems compare it.
    """
    wanted = fitted(wanted, (NAME_LEAST if cautious else name_limit(directory)) - _NUMBER)
    for number in itertools.count(1):
        path = numbered(_around(directory, wanted), number)
        if not os.path.lexists(directory / path):
            yield str(path), file_key(path)


def _around(directory: Path, wanted: PurePosixPath) -> PurePosixPath:
    """Go around files and links that stand where folders should be."""
    path = PurePosixPath()
    for part in wanted.parts[:-1]:
        for number in itertools.count(1):
            level = path / numbered(PurePosixPath(part), number)
            place = directory / level
            if not os.path.lexists(place) or (place.is_dir() and not place.is_symlink()):
                path = level
                break
    return path / wanted.name


def move(staged: Path, target: Path) -> int:
    """Give a whole file its name.

    Args:
        staged: The file.
        target: The name, which must be free.

    Returns:
        Its size in bytes.

    Raises:
        FileExistsError: The name is taken.
        OSError: The disk refused.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    size = staged.stat().st_size
    try:
        os.link(staged, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Some file systems have no links. One process at a time uses the directory, so the look holds.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "the name is taken", str(target)) from None
        staged.rename(target)
    else:
        staged.unlink()
    sync_folder(target.parent)
    return size


def move_extras(folder: Path, directory: Path, chosen: str) -> list[str]:
    """Put what belongs to a file beside it, under its name.

    Args:
        folder: The job's folder.
        directory: Where files go.
        chosen: The relative path that the file got.

    Returns:
        Relative paths of the extras.
    """
    waiting = sorted((folder / _EXTRAS).iterdir()) if (folder / _EXTRAS).is_dir() else []
    main = PurePosixPath(chosen)
    # The file has its name, so a name of this length is possible whatever the file system reports.
    limit = max(min(NAME_LEAST, name_limit(directory)), len(main.name.encode()))
    moved: list[str] = []
    for extra in waiting:
        path = fitted(main.with_name(f"{main.stem}.{safe_name(extra.name, limit=40)}"), limit)
        try:
            move(extra, directory / path)
        except FileExistsError:
            logger.warning("%s is there already; the new one is dropped", path)
            continue
        moved.append(str(path))
    return moved


def find(staged: Path, target: Path) -> Literal["moved", "staged", "nowhere"]:
    """Say how far a move came that was cut off."""
    if staged.exists():
        if target.exists() and staged.samefile(target):
            staged.unlink()
            return "moved"
        return "staged"
    return "moved" if target.is_file() and not target.is_symlink() else "nowhere"


def remove_files(directory: Path, paths: Iterable[str]) -> None:
    """Remove finished files, and the folders that this leaves empty."""
    root = directory.resolve()
    for path in paths:
        place = directory / path
        if not place.parent.resolve().is_relative_to(root):
            continue
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
            for folder in place.parents:
                if folder == directory:
                    break
                folder.rmdir()
