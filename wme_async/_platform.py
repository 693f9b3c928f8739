"""Differences between operating systems, in one place: POSIX first, and a second way where a call does not exist.

The second way is for Windows: descriptors without positional reads and writes, locks of byte ranges, folders
that cannot be synchronised, open files that cannot be renamed. It is also used where a POSIX system lacks one of the
calls. `nox -s portable` runs the test suite with every such call hidden.
"""

import contextlib
import errno
import importlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final


def _import(name: str) -> ModuleType | None:
    """Import a module of the standard library that not every system has."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt, resource = _import("fcntl"), _import("msvcrt"), _import("resource")

FORKS: Final = hasattr(os, "register_at_fork")
LINKS_ATTRIBUTES: Final = hasattr(os, "setxattr")
RENAMES_OPEN_FILES: Final = fcntl is not None
"""Whether a file can be renamed or removed while it is open."""

READS_SOCKETS: Final = hasattr(os, "readv")
"""Whether `read_socket` works here."""

# Looked for once: the portable tests hide the calls while this module is loaded, and no longer.
_POSITIONAL: Final = hasattr(os, "pwrite") and hasattr(os, "preadv")
_SYNCS_FOLDERS: Final = hasattr(os, "O_DIRECTORY")
_REFUSES_LINKS: Final = hasattr(os, "O_NOFOLLOW")
_TELLS_SPACE: Final = hasattr(os, "fstatvfs")
_TELLS_LIMITS: Final = hasattr(os, "pathconf")
_CHANGES_MODES: Final = hasattr(os, "fchmod")
_SAFE: Final = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY", "O_NOINHERIT"))
_FOLLOWING: Final = _SAFE & ~getattr(os, "O_NOFOLLOW", 0)
_LOCK_AT: Final = 1 << 43  # beyond the bytes of every file: these locks keep others from the range itself
_NAME_MAX: Final = 255
_DEVICE: Final = re.compile("CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9]", re.IGNORECASE)

# Only one call at a time moves the position of a descriptor.
_seeking = threading.Lock()


def open_file(path: Path, flags: int, mode: int = 0o666, *, follow: bool = False) -> int:
    """Open a file as bytes, for this process alone, and return its descriptor.

    Args:
        path: The file.
        flags: `os.O_RDONLY`, `os.O_RDWR | os.O_CREAT`, …
        mode: Permissions of a new file, less the umask.
        follow: Follow a symbolic link; otherwise one is an error.

    Raises:
        OSError: The file cannot be opened.
    """
    if not follow and not _REFUSES_LINKS and path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return os.open(path, flags | (_FOLLOWING if follow else _SAFE), mode)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; nothing where folders cannot be opened.

    Raises:
        OSError: It cannot be opened, or not be synchronised.
    """
    if _SYNCS_FOLDERS:
        descriptor = os.open(folder, _FOLLOWING | os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return bytes from a position of a file; fewer at its end."""
    if _POSITIONAL:
        return os.pread(descriptor, size, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def read_into(descriptor: int, view: memoryview, offset: int) -> int:
    """Read bytes from a position of a file into a buffer, and return their number; 0 at its end."""
    if _POSITIONAL:
        return os.preadv(descriptor, [view], offset)
    data = read_at(descriptor, len(view), offset)
    view[: len(data)] = data
    return len(data)


def read_socket(descriptor: int, view: memoryview) -> int:
    """Read from a socket that does not wait into a buffer, and return the number of bytes; 0 at its end.

    Raises:
        BlockingIOError: It has no bytes now.
        OSError: The connection failed.
    """
    return os.readv(descriptor, [view])


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write bytes at a position of a file, and return how many were written."""
    if _POSITIONAL:
        return os.pwrite(descriptor, data, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def lock(descriptor: int) -> None:
    """Lock a file for one holder, without waiting.

    Raises:
        OSError: Another holder has the lock (EAGAIN, EACCES), or locks are missing here (ENOLCK, ENOTSUP, ENOSYS).
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        with _seeking:
            os.lseek(descriptor, _LOCK_AT, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def unlock(descriptor: int) -> None:
    """Release a lock.

    Raises:
        OSError: The file is not locked.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    elif msvcrt is not None:
        with _seeking:
            os.lseek(descriptor, _LOCK_AT, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


def disk_space(path: Path, descriptor: int | None = None) -> tuple[int, int]:
    """Return the free bytes for unprivileged users and all bytes of a file system.

    Args:
        path: A path on it.
        descriptor: The path as an open file, which the path need not lead to any longer; used where the system can.

    Raises:
        OSError: The file system does not say.
    """
    if _TELLS_SPACE:
        status = os.statvfs(path) if descriptor is None else os.fstatvfs(descriptor)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def allocated_bytes(status: os.stat_result) -> int:
    """Return how much of the disk a file takes; 0 where that is not known."""
    return getattr(status, "st_blocks", 0) * 512


def name_limit(folder: Path) -> int:
    """Return how many bytes a file name in a folder may have; 255 if the file system does not say."""
    if _TELLS_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limit = os.pathconf(folder, "PC_NAME_MAX")
            return limit if limit > 0 else _NAME_MAX
    return _NAME_MAX


def set_mode(descriptor: int | None, path: Path, mode: int) -> None:
    """Set the permissions of a file, by its descriptor if it is open.

    Raises:
        OSError: They cannot be set.
    """
    if descriptor is not None and _CHANGES_MODES:
        os.fchmod(descriptor, mode)
    else:
        path.chmod(mode)


def get_attribute(descriptor: int, name: str) -> bytes | None:
    """Return an extended attribute of a file; None if it has none, or the system keeps none."""
    if LINKS_ATTRIBUTES:
        with contextlib.suppress(OSError):
            return os.getxattr(descriptor, name)
    return None


def set_attribute(descriptor: int, name: str, value: bytes) -> bool:
    """Set an extended attribute of a file, and return whether it is stored."""
    if LINKS_ATTRIBUTES:
        with contextlib.suppress(OSError):
            os.setxattr(descriptor, name, value)
            return True
    return False


def on_fork(function: Callable[[], None]) -> None:
    """Call a function in every child process that is forked from now on."""
    if FORKS:
        os.register_at_fork(after_in_child=function)


def max_descriptors() -> int | None:
    """Return how many descriptors this process may have; None if that is not limited or not known."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def boot_id() -> str | None:
    """Return an identifier of the current boot of this machine; None if the system has none."""
    if fcntl is not None:
        with contextlib.suppress(OSError, UnicodeError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    return None


def unusable_name(name: str) -> str | None:
    """Return why a file cannot have a name on this system; None if it can.

    Windows reserves the names of devices, with any extension, and some characters.
    """
    if os.name != "nt":
        return None
    if any(character in '<>:"/\\|?*' or character < " " for character in name):
        return 'it contains one of the characters < > : " / \\ | ? *'
    if name.endswith((".", " ")):
        return "it ends with a point or a blank"
    if _DEVICE.fullmatch(name.partition(".")[0].rstrip(" ")):
        return "it is the name of a device"
    return None
