"""File names for the names of positions, and a lock between processes that ends with its holder."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from wme_async._files import LockedFile, private_folder
from wme_async.offsets.protocol import in_use

__all__ = ["file_name", "locked", "old_file_name"]

_LONGEST: Final = 200  # characters; with a suffix, every file system takes it


def old_file_name(name: str) -> str:
    """Return the file name that earlier versions used; on some disks, names that differ in case alone shared one.

    Raises:
        ValueError: The name is too long.
    """
    encoded = quote(name, safe="")
    if len(encoded) > _LONGEST:
        raise ValueError(f"the name of these positions is too long: at most {_LONGEST} characters, percent-encoded")
    return encoded


def file_name(name: str) -> str:
    """Return a file name for any string, different from those of all others on a disk that ignores case too.

    Everything but lower-case letters, digits and `_.-~` is percent-encoded. If that is too long for a file name, it is
    cut and a digest of the string appended.

    Raises:
        ValueError: The name is too long.
    """
    old_file_name(name)
    encoded = "".join(f"%{ord(c):02X}" if c.isascii() and c.isupper() else quote(c, safe="") for c in name)
    if len(encoded) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()
        encoded = f"{encoded[: _LONGEST - 1 - len(digest)]}~{digest}"
    return encoded


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold the kernel's lock on a file, which exists only while it is locked.

    It takes microseconds, so it does not need a worker thread.

    Args:
        path: The lock file. Its folder is created if it does not exist.
        name: The name of the positions, for the message.

    Raises:
        StreamError: Another holder has the lock, in this process or another.
        OSError: The file cannot be created or locked.
    """
    private_folder(path.parent)
    try:
        lock = LockedFile(path)
    except BlockingIOError:
        raise in_use(name, _holder(path)) from None
    try:
        lock.write_holder(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.remove()


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(300).decode(errors="replace") or "another process"
    except OSError:
        return "another process"
