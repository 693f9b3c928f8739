"""A lock between processes that ends with its holder, however that ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from wme_async._files import LockedFile, private_folder
from wme_async.offsets.protocol import in_use

__all__ = ["file_name", "locked"]


def file_name(name: str) -> str:
    """Return a file name for any string, without separators, readable where the string was.

    Raises:
        ValueError: It would be longer than file systems allow.
    """
    quoted = quote(name, safe="")
    if len(quoted) > 200:
        raise ValueError("the name of these positions is too long: at most 200 characters, percent-encoded")
    return quoted


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold the kernel's lock on a file; the file exists only while somebody holds it.

    It takes microseconds, so that it needs no worker thread.

    Args:
        path: The lock file. Its folder is created if it does not exist.
        name: What it protects, for the message.

    Raises:
        StreamError: Another holder has it, in this process or another.
        OSError: The file cannot be created.
    """
    private_folder(path.parent)
    try:
        lock = LockedFile(path)
    except BlockingIOError:
        raise in_use(name, _holder(path) or "another process") from None
    try:
        lock.write_holder(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        # Removed while it is still locked: whoever has opened it meanwhile sees that it is gone, and creates a new one.
        if lock.descriptor >= 0:
            path.unlink(missing_ok=True)
        lock.close()


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(300).decode(errors="replace")
    except OSError:
        return ""
