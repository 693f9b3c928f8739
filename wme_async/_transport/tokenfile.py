"""Tokens on disk, shared by the processes of one user."""

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from wme_async._files import LockedFile, followed, restrict, write_atomically
from wme_async._protocol.token import Tokens

__all__ = ["TokenFile"]

logger = logging.getLogger("wme_async.auth")

_LOCK_POLL = 0.05

# Not a mistake in the path: a folder that cannot be written to, or a full disk.
_NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


class _Content(msgspec.Struct, omit_defaults=True):
    version: int = 1
    entries: dict[str, Tokens] = {}
    usage: dict[str, dict[str, int]] = {}


class TokenFile:
    """A JSON file of mode 0600 with one entry for each host and user.

    It is replaced as a whole, so a reader never sees half of it, and changed only under a lock beside it, so processes
    that need a new token at the same moment get one between them. The lock is the kernel's: it dies with its holder.

    Reading and writing block, so they belong into a worker thread.

    Args:
        path: The file. Its folder must exist.
        key: Which entry is ours.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key

    def load(self) -> Tokens | None:
        """Return our entry; None where there is none or the file cannot be understood."""
        return self._read().entries.get(self._key)

    def save(self, tokens: Tokens | None) -> None:
        """Write our entry, or remove it. Call it under `locked()`.

        Raises:
            OSError: The folder cannot be written to.
        """
        content = self._read()
        if tokens is None:
            content.entries.pop(self._key, None)
        else:
            content.entries[self._key] = tokens
        self._write(content)

    def usage(self) -> dict[str, int]:
        """Return the metered requests counted for our user, by `pool/YYYY-MM`."""
        return dict(self._read().usage.get(self._key, {}))

    def count(self, month: str, counts: dict[str, int]) -> dict[str, int]:
        """Add metered requests of a month (`YYYY-MM`) by pool, and return the month's sums. Call it under `locked()`.

        Older months are dropped; newer ones stay, since some processes count what they did a month ago late.
        """
        content = self._read()
        kept = {key: n for key, n in content.usage.get(self._key, {}).items() if key.rpartition("/")[2] >= month}
        for pool, n in counts.items():
            kept[f"{pool}/{month}"] = kept.get(f"{pool}/{month}", 0) + n
        content.usage[self._key] = kept
        self._write(content)
        return kept

    @contextlib.asynccontextmanager
    async def locked(self, sleep: Callable[[float], Awaitable[None]], *, patience: float = 60.0) -> AsyncIterator[None]:
        """Hold the lock that all processes with this file share.

        Args:
            sleep: Waits between two attempts.
            patience: Seconds to wait for another holder before going on without: a hung process must not hang others,
                and the worst of it is a token too many.

        Raises:
            OSError: The folder is not there.
        """
        waited = 0.0
        lock: LockedFile | None = None
        try:
            while lock is None:
                try:
                    lock = LockedFile(self._lock_path())
                except BlockingIOError:
                    if waited >= patience:
                        logger.warning("going on without the lock of %s, held for over %g s", self.path, patience)
                        break
                    await sleep(_LOCK_POLL)
                    waited += _LOCK_POLL
        except OSError as error:
            if error.errno not in _NO_WRITING:
                raise
            # Where nothing can be written, nothing has to be kept from others either.
            logger.warning("%s cannot be shared: %s", self.path, error.strerror)
        try:
            yield
        finally:
            if lock is not None:
                lock.close()

    def _lock_path(self) -> Path:
        # Processes that reach the file by a link and by its own name share one lock.
        return Path(f"{followed(self.path)}.lock")

    def _read(self) -> _Content:
        try:
            with self.path.open("rb") as file:
                restrict(self.path, file.fileno())
                data = file.read()
        except FileNotFoundError:
            return _Content()
        try:
            return msgspec.json.decode(data, type=_Content)
        except (msgspec.DecodeError, ValueError):
            # Whatever it was, it is no token of ours: sign in again and write it anew.
            logger.warning("%s is not a token file and will be written anew", self.path)
            return _Content()

    def _write(self, content: _Content) -> None:
        write_atomically(self.path, msgspec.json.encode(content))
