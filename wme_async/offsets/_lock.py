"""A lock between processes that ends with its holder, however that ends."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

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
    """Hold the kernel's lock on a file; the file is there only while somebody holds it.

    It takes microseconds, so that it needs no worker thread.

    Args:
        path: The lock file. Its folder is made if it is not there.
        name: What it protects, for the message.

    Raises:
        StreamError: Another holder has it, in this process or another.
        OSError: The file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path, name)
    try:
        yield
    finally:
        # Removed while it is still locked: whoever opened it meanwhile sees that it is gone, and makes a new one.
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, name: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(descriptor).st_ino:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor
        except OSError as error:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace")
            os.close(descriptor)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise in_use(name, holder or "another process") from None
            raise
        os.close(descriptor)
