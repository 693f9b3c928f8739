"""Small files, folders and locks on a local disk: the rules that every part of the package shares.

Everything here blocks for the time of a few system calls, and longer on a slow disk: call it from a worker thread
where that matters.
"""

import contextlib
import errno
import hashlib
import logging
import os
import platform
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from wme_async import _platform
from wme_async._platform import name_limit
from wme_async.errors import IntegrityError

__all__ = [
    "NAME_LEAST",
    "LockedFile",
    "Problem",
    "followed",
    "free_space",
    "name_limit",
    "part_of",
    "private_file",
    "private_folder",
    "publish",
    "read_regular",
    "restrict",
    "sibling",
    "sync_file",
    "sync_folder",
    "write_atomically",
]

logger: logging.Logger = logging.getLogger("wme_async.files")

_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_HELD: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
NAME_LEAST: Final = 143  # bytes; the limit of the strictest file systems, such as encrypted ones that report 255
_HOST_LENGTH: Final = 24
_LONGEST_SUFFIX: Final = len(".part.ledger")

_logged: set[tuple[str, Path]] = set()


def _log_once(level: int, kind: str, folder: Path, message: str, *args: object) -> None:
    """Log a problem of a folder's file system once for each kind and folder."""
    if (kind, folder) not in _logged:
        if len(_logged) >= 1000:
            _logged.clear()
        _logged.add((kind, folder))
        logger.log(level, message, *args)


class Problem(msgspec.Struct, frozen=True):
    """A context manager: an `OSError` of its block is raised as one of the same kind that says problem, cause and path.

    Args:
        problem: The failed operation, and the remedy.
        path: The file or folder.
    """

    problem: str
    path: Path

    def __enter__(self) -> None:
        """Do nothing; it can be entered any number of times."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{self.problem}: {error.strerror or error}", str(self.path)) from error


def followed(path: Path) -> Path:
    """Return the file that a symbolic link points to, whether it exists or not; any other path as it is.

    A file is replaced by renaming a new one over it, which replaces a link by a plain file. Writing to the file that
    the link names keeps the link, and puts the temporary file on the same file system as the final one.

    Raises:
        OSError: The links form a circle.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "the symbolic links form a circle; remove one of them", str(path))
    return target


def free_space(path: Path, descriptor: int | None = None) -> int | None:
    """Return the free bytes for unprivileged users on a file system.

    Args:
        path: A path on it.
        descriptor: The path as an open file, if it is open.

    Returns:
        Bytes; None if the file system does not say, for whatever reason: writing shows what is wrong. Some report zero
        blocks in total, which does not mean that they are full.
    """
    try:
        free, total = _platform.disk_space(path, descriptor)
    except OSError as error:
        logger.debug("the free space of %s is unknown: %s", path, error)
        return None
    return free if total > 0 else None


def sibling(path: Path, suffix: str, *, cautious: bool = False) -> Path:
    """Return the name of a file that accompanies another one in the same folder.

    Args:
        path: The other file.
        suffix: Follows its name; at most as long as `.part.ledger`.
        cautious: Do not trust the length that the file system reports.

    Returns:
        `NAME` and the suffix. If the file system does not allow names of that length, the beginning of the name, a
        digest of all of it and the suffix: the same for every suffix and in every process.
    """
    assert len(suffix) <= _LONGEST_SUFFIX
    name = os.fsencode(path.name)
    limit = NAME_LEAST - _LONGEST_SUFFIX
    if len(name) > limit and not cautious:
        limit = name_limit(path.parent) - _LONGEST_SUFFIX
    if len(name) > limit:
        digest = hashlib.sha256(name).hexdigest()[:16]
        # A cut inside a character is not a name that every file system takes.
        start = name[: limit - len(digest) - 1].decode(errors="ignore")
        return path.with_name(f"{start}~{digest}{suffix}")
    return path.with_name(path.name + suffix)


def part_of(path: Path) -> Path:
    """Return a name in the same folder for a file until it is whole, which no other process of any host uses.

    It ends in `.part`. The host, the process and a random part are in it: several hosts may share the folder, and have
    processes of the same number.
    """
    host = re.sub(r"[^\w-]", "_", platform.node(), flags=re.ASCII)[:_HOST_LENGTH]
    suffix = f".{host}.{os.getpid()}.{secrets.token_hex(4)}.part"
    name = os.fsencode(path.name)[: NAME_LEAST - len(suffix)].decode(errors="ignore")
    return path.with_name(f"{name}{suffix}")


def sync_file(descriptor: int, *, only_data: bool = False) -> None:
    """Bring a file to the disk, if its file system knows how to.

    Args:
        descriptor: Of the file.
        only_data: Leave out attributes that reading does not need, such as its times.

    Raises:
        OSError: They are not on the disk.
    """
    try:
        (getattr(os, "fdatasync", os.fsync) if only_data else os.fsync)(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.debug("a file cannot be synchronised: %s", error)


def sync_folder(folder: Path) -> None:
    """Bring a new, renamed or removed name to the disk, if the system lets us.

    Many network and FUSE file systems cannot do that for a folder, and a folder without read permission cannot be
    opened. The file itself is complete either way, so an error is logged once and never raised.
    """
    try:
        _platform.sync_folder(folder)
    except OSError as error:
        level = logging.WARNING if error.errno in {errno.EIO, errno.ENOSPC, errno.EDQUOT} else logging.DEBUG
        message = "%s cannot be synchronised (%s): a power failure may undo the last renames in it"
        _log_once(level, "sync", folder, message, folder, error.strerror)


def check_regular(path: Path) -> None:
    """Raise if a path is a pipe, a socket or a device, which may keep its reader waiting for ever.

    Raises:
        FileNotFoundError: It does not exist.
        OSError: It is none of ours, or cannot be examined.
    """
    mode = path.stat().st_mode
    # Opening a folder raises an error of its own.
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "this is not a regular file; remove it, or name another one", str(path))


def read_regular(path: Path) -> bytes:
    """Return the content of a small file of this package; a symbolic link is followed.

    Raises:
        FileNotFoundError: It does not exist.
        OSError: It cannot be read, or is not a regular file.
    """
    check_regular(path)
    return path.read_bytes()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a small file as a whole: readers, and a crash at any moment, see the old content or the new.

    The data is on the disk when this returns. A symbolic link is followed.

    Args:
        path: The file. Its folder must exist.
        data: Its content.
        mode: Its permissions, whatever the umask is.

    Raises:
        OSError: It cannot be written. The old file is unchanged, and the temporary file is removed.
    """
    path = followed(path)
    temporary = path.with_name(f".wme-{secrets.token_hex(8)}.tmp")
    with Problem("the file cannot be written", path):
        try:
            descriptor = _platform.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                _set_mode(file.fileno(), temporary, mode)
                file.write(data)
                file.flush()
                sync_file(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def publish(descriptor: int, path: Path, target: Path, *, size: int, close: Callable[[], object]) -> None:
    """Give a finished file its final name, if the name that it has now still belongs to it.

    The descriptor refers to the written and verified file, but the rename moves the file at the path. Another program
    may have put another file there, or truncated ours.

    Args:
        descriptor: Of the finished file.
        path: Its present name.
        target: Its final name; a file of that name is replaced.
        size: Its bytes.
        close: Closes the file, for systems that do not rename an open one; it is called only there.

    Raises:
        IntegrityError: The path belongs to another file, or the file has another size. Nothing was renamed.
        OSError: The rename failed.
    """
    if not _is_at(path, descriptor):
        raise IntegrityError(f"another program has removed or replaced {path} while it was written; start again")
    actual = os.fstat(descriptor).st_size
    if actual != size:
        raise IntegrityError(
            f"another program has changed {path} while it was written; start again",
            expected=f"{size} bytes",
            got=f"{actual} bytes",
        )
    if not _platform.RENAMES_OPEN_FILES:
        close()
    with Problem("the finished file could not be given its name", target):
        path.replace(target)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether a path still belongs to an open file, which another program may have renamed or removed."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def private_file(path: Path) -> None:
    """Create an empty file that only its owner can use, or take away the permissions of others on an existing one.

    Raises:
        OSError: It cannot be created.
    """
    try:
        descriptor = _platform.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Not opened: closing any descriptor of a file drops the locks that SQLite has on it in this process.
        restrict(path)
        return
    try:
        _set_mode(descriptor, path, 0o600)
    finally:
        os.close(descriptor)


def _set_mode(descriptor: int, path: Path, mode: int) -> None:
    """Set the permissions of a new file despite the umask, if the file system has permissions."""
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        try:
            _platform.set_mode(descriptor, path, mode)
        except OSError as error:
            logger.debug("%s keeps its permissions: %s", path, error)


def private_folder(path: Path, *, tighten: bool = False) -> None:
    """Create a folder that only its owner can use, and those above it as usual.

    Args:
        path: The folder.
        tighten: Take away the permissions of others if it exists already. Not for folders that users may share.

    Raises:
        OSError: It cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        if tighten:
            restrict(path)


def restrict(path: Path, descriptor: int | None = None) -> None:
    """Take away the permissions that others have on a file or folder, or log that it cannot be done.

    Args:
        path: The file or folder; a symbolic link is followed.
        descriptor: Of the same file, if it is open.
    """
    mode = stat.S_IMODE((path.stat() if descriptor is None else os.fstat(descriptor)).st_mode)
    if not mode & 0o077:
        return
    try:
        _platform.set_mode(descriptor, path, mode & 0o700)
    except OSError as error:
        logger.warning("%s can be read by others (mode %o): %s", path, mode, error.strerror)
    else:
        logger.warning("%s could be read by others (mode %o); it is now %o", path, mode, mode & 0o700)


class LockedFile:
    """An open file with an exclusive advisory lock (`flock`), which the kernel releases when its holder dies.

    The lock belongs to the name: if the file was renamed or removed between opening and locking, it is opened again.
    A file system without locks is used without one, after one warning for its folder. A forked child does not share
    the lock: the descriptor is closed there.

    Args:
        path: The file; it is created if it does not exist.
        mode: Permissions of a new file, less the umask.

    Attributes:
        descriptor: Open for reading and writing; -1 once it is closed.

    Raises:
        BlockingIOError: Another holder has the lock, in this process or another.
        OSError: The file cannot be created or locked.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = path
        self.descriptor: int = -1
        while self.descriptor < 0:
            self._open(mode)

    def _open(self, mode: int) -> None:
        descriptor = _platform.open_file(self.path, os.O_RDWR | os.O_CREAT, mode)
        try:
            _flock(descriptor, self.path)
            # Another process may have renamed or removed the file before this one got the lock.
            if _is_at(self.path, descriptor):
                self.descriptor = descriptor
                _open_locks[descriptor] = self
        finally:
            if self.descriptor < 0:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write_holder(self, text: str) -> None:
        """Replace the content by a short text that tells people who holds the lock, if the disk has room for it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, 0)
            _platform.write_at(self.descriptor, text.encode(), 0)

    def owns_name(self) -> bool:
        """Return whether the path still belongs to this file."""
        return _is_at(self.path, self.descriptor)

    def remove(self) -> None:
        """Remove the file while it is locked, if the name still belongs to it, and close it.

        A process that has opened the file meanwhile sees that it is gone, and creates a new one. A forked child has
        lost the lock, and leaves the file to its parent.
        """
        try:
            if self.descriptor >= 0 and self.owns_name():
                if not _platform.RENAMES_OPEN_FILES:
                    self.close()
                self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("%s cannot be removed: %s", self.path, error)
        finally:
            self.close()

    def reader(self) -> int:
        """Return a descriptor for reading that outlives this object and does not share its lock; the caller closes it.

        Raises:
            OSError: The file cannot be opened.
        """
        with contextlib.suppress(FileNotFoundError):
            descriptor = _platform.open_file(self.path, os.O_RDONLY)
            if os.path.samestat(os.fstat(descriptor), os.fstat(self.descriptor)):
                return descriptor
            os.close(descriptor)
        return os.dup(self.descriptor)  # the name belongs to another file now

    def close(self) -> None:
        """Release the lock and close the file. Closing twice does no harm."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            del _open_locks[descriptor]
            # Duplicates of the descriptor would keep the lock.
            with contextlib.suppress(OSError):
                _platform.unlock(descriptor)
            os.close(descriptor)


def _flock(descriptor: int, path: Path) -> None:
    try:
        _platform.lock(descriptor)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(errno.EAGAIN, "another holder has the lock", str(path)) from None
        if error.errno not in _NO_LOCKS:
            with Problem("the file cannot be locked", path):
                raise
        message = "%s: the file system has no locks (%s); let no second process use the file at the same time"
        _log_once(logging.WARNING, "lock", path.parent, message, path, error.strerror)


_open_locks: dict[int, LockedFile] = {}


def _close_in_child() -> None:
    # Closing is enough: unlocking would take the lock from the parent, which shares the open file.
    while _open_locks:
        descriptor, lock = _open_locks.popitem()
        lock.descriptor = -1
        with contextlib.suppress(OSError):
            os.close(descriptor)


_platform.on_fork(_close_in_child)
