"""Tokens on disk, shared by the processes of one user."""

import contextlib
import errno
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from wme_async._files import LockedFile, followed, restrict, write_atomically
from wme_async._transport.token_policy import Tokens
from wme_async.errors import DecodeError
from wme_async.models.decoding import decode_json

__all__ = ["TokenFile"]

logger = logging.getLogger("wme_async.auth")

_LOCK_POLL = 0.05

# Not a mistake in the path: a folder that cannot be written to, or a full disk.
_NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


_VERSION = 2  # 1 had no check


class _Content(msgspec.Struct):
    """What the file holds.

    Attributes:
        version: Of its form.
        entries: Tokens by host and user.
        usage: Metered requests by host and user, then by pool and month.
        check: A digest of the others, so that damage which is still JSON is not taken for data.
    """

    version: int = _VERSION
    entries: dict[str, Tokens] = {}
    usage: dict[str, dict[str, int]] = {}
    check: str = ""

    def digest(self) -> str:
        """Return what `check` has to be."""
        data = msgspec.json.encode([_VERSION, self.entries, self.usage])
        return hashlib.sha256(data).hexdigest()[:32]


class _Stored(_Content):
    version: int = 1  # as the first release left it out


class _Version(msgspec.Struct):
    version: int = 1


_STORED = msgspec.json.Decoder(_Stored)
_ONLY_VERSION = msgspec.json.Decoder(_Version)


class _NewerVersion(Exception):
    """The file was written by a later release."""


class TokenFile:
    """A JSON file of mode 0600, whatever the umask, with one entry for each host and user.

    A file that is damaged counts as absent, after one warning, and is replaced. One of a later release, known by its
    `version`, counts as absent too, but is left as it is: other processes may go on using it. Files of earlier releases
    are read. A symbolic link is followed.

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
        self._complaint = ""

    def load(self) -> Tokens | None:
        """Return our entry; None where there is none or the file cannot be understood."""
        content = self._read()
        return None if content is None else content.entries.get(self._key)

    def save(self, tokens: Tokens | None) -> None:
        """Write our entry, or remove it. Call it under `locked()`.

        Raises:
            OSError: The folder cannot be written to.
        """
        content = self._read()
        if content is None:
            return
        if tokens is None:
            content.entries.pop(self._key, None)
        else:
            content.entries[self._key] = tokens
        self._write(content)

    def usage(self) -> dict[str, int]:
        """Return the metered requests counted for our user, by `pool/YYYY-MM`."""
        content = self._read()
        return {} if content is None else dict(content.usage.get(self._key, {}))

    def count(self, month: str, counts: dict[str, int]) -> dict[str, int]:
        """Add metered requests of a month (`YYYY-MM`) by pool, and return the month's sums. Call it under `locked()`.

        Older months are dropped; newer ones stay, since some processes count what they did a month ago late.
        """
        content = self._read()
        if content is None:
            return {f"{pool}/{month}": n for pool, n in counts.items()}
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

    def _read(self) -> _Content | None:
        """Return what is in the file, nothing of a damaged one, and None for one that is not ours to change."""
        try:
            with self.path.open("rb") as file:
                restrict(self.path, file.fileno())
                data = file.read()
        except FileNotFoundError:
            return _Content()
        try:
            stored = _checked(data)
        except _NewerVersion as newer:
            self._complain(
                f"{self.path} is a token file of version {newer}, and this release knows versions up to {_VERSION}: it "
                "is not used and not changed; upgrade, or name another token_file"
            )
            return None
        except DecodeError as error:
            self._complain(f"{self.path} is damaged or not a token file ({error.message}); it will be written anew")
            return _Content()
        return _Content(entries=stored.entries, usage=stored.usage)

    def _complain(self, message: str) -> None:
        # The file is read several times before it is written anew.
        if message != self._complaint:
            self._complaint = message
            logger.warning("%s", message)

    def _write(self, content: _Content) -> None:
        content.check = content.digest()
        write_atomically(self.path, msgspec.json.encode(content))
        self._complaint = ""


def _checked(data: bytes) -> _Stored:
    """Return what a token file holds.

    Raises:
        DecodeError: It is not one, or damaged.
        _NewerVersion: It is one of a later release.
    """
    version = decode_json(data, _ONLY_VERSION).version
    try:
        stored = decode_json(data, _STORED)
    except DecodeError:
        if version > _VERSION:
            raise _NewerVersion(version) from None
        raise
    # The digest covers our version, so it proves the content even where the number itself is damaged.
    if stored.check == stored.digest() or (version == 1 and not stored.check):
        return stored
    if version > _VERSION:
        raise _NewerVersion(version)
    raise DecodeError("its content does not match its check")
