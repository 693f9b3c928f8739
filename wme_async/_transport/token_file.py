"""Tokens on disk, shared by the processes of one user."""

import contextlib
import errno
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from wme_async._files import LockedFile, check_regular, followed, restrict, write_atomically
from wme_async._transport.token_policy import Tokens
from wme_async.errors import DecodeError
from wme_async.models.decoding import decode_json

logger: logging.Logger = logging.getLogger("wme_async.auth")

_LOCK_POLL = 0.05

# A read-only folder or a full disk, as opposed to a wrong path.
_NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


_VERSION = 2  # 1 had no check


class _Content(msgspec.Struct):
    """The content of the file.

    Attributes:
        version: The version of its format.
        entries: Tokens by host and user.
        usage: Metered requests by host and user, then by pool and month.
        check: A digest of the other fields, to detect damage that is still JSON.
    """

    version: int = _VERSION
    entries: dict[str, Tokens] = {}
    usage: dict[str, dict[str, int]] = {}
    check: str = ""

    def digest(self) -> str:
        """Return the expected value of `check`."""
        return hashlib.sha256(msgspec.json.encode([_VERSION, self.entries, self.usage])).hexdigest()[:32]


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

    A damaged file counts as absent, after one warning, and is replaced. A file of a later release, by its `version`,
    counts as absent too, but is not changed, since other processes may use it. Files of earlier releases are read. A
    symbolic link is followed.

    The file is replaced atomically, and changed only under a lock file beside it, so that processes which need a new
    token at the same time share one. The kernel releases the lock when its process ends.

    Reading and writing block, so call them in a worker thread.

    Args:
        path: The file. Its folder must exist.
        key: The host and user of the entry.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._key = key
        self._complaint = ""

    def load(self) -> Tokens | None:
        """Return the entry; None if there is none or the file is unreadable."""
        content = self._read()
        return None if content is None else content.entries.get(self._key)

    def save(self, tokens: Tokens | None) -> None:
        """Write the entry, or remove it. Call it under `locked()`.

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
        """Return the metered requests of the user, by `pool/YYYY-MM`."""
        content = self._read()
        return {} if content is None else dict(content.usage.get(self._key, {}))

    def count(self, month: str, counts: dict[str, int]) -> dict[str, int]:
        """Add metered requests of a month (`YYYY-MM`) by pool, and return the month's sums. Call it under `locked()`.

        Older months are removed; newer ones stay, since a process may count requests of an earlier month late.
        """
        content = self._read()
        if content is None:
            return {f"{pool}/{month}": n for pool, n in counts.items()}
        usage = {key: n for key, n in content.usage.get(self._key, {}).items() if key.rpartition("/")[2] >= month}
        for pool, n in counts.items():
            usage[f"{pool}/{month}"] = usage.get(f"{pool}/{month}", 0) + n
        content.usage[self._key] = usage
        self._write(content)
        return usage

    @contextlib.asynccontextmanager
    async def locked(self, sleep: Callable[[float], Awaitable[None]], *, patience: float = 60.0) -> AsyncIterator[None]:
        """Hold the lock that all processes with this file share.

        Args:
            sleep: Waits between two attempts.
            patience: Seconds to wait for another holder before continuing without the lock: a hung process must not
                block others, and the worst result is one token too many.

        Raises:
            OSError: The folder does not exist.
        """
        waited = 0.0
        lock: LockedFile | None = None
        try:
            while lock is None:
                try:
                    # Processes that reach the file by a link and by its own name share one lock.
                    lock = LockedFile(Path(f"{followed(self.path)}.lock"))
                except BlockingIOError:
                    if waited >= patience:
                        logger.warning("continuing without the lock of %s, held for over %g s", self.path, patience)
                        break
                    await sleep(_LOCK_POLL)
                    waited += _LOCK_POLL
        except OSError as error:
            if error.errno not in _NO_WRITING:
                raise
            # A file that cannot be written needs no lock.
            logger.warning("%s cannot be shared: %s", self.path, error.strerror)
        with lock or contextlib.nullcontext():
            yield

    def _read(self) -> _Content | None:
        """Return the content of the file, empty if it is damaged; None for a file of a later release."""
        try:
            check_regular(self.path)
            with self.path.open("rb") as file:
                restrict(self.path, file.fileno())
                data = file.read()
        except FileNotFoundError:
            return _Content()
        try:
            content = _checked(data)
        except _NewerVersion as newer:
            self._complain(
                f"{self.path} is a token file of version {newer}, and this release knows versions up to {_VERSION}: it "
                "is neither used nor changed; upgrade, or use another token_file"
            )
            return None
        except DecodeError as error:
            self._complain(f"{self.path} is damaged or not a token file ({error.message}); it will be replaced")
            return _Content()
        return _Content(entries=content.entries, usage=content.usage)

    def _complain(self, message: str) -> None:
        # The file may be read several times before it is replaced.
        if message != self._complaint:
            self._complaint = message
            logger.warning("%s", message)

    def _write(self, content: _Content) -> None:
        content.check = content.digest()
        write_atomically(self.path, msgspec.json.encode(content))
        self._complaint = ""


def _checked(data: bytes) -> _Stored:
    """Return the content of a token file.

    Raises:
        DecodeError: It is not a token file, or it is damaged.
        _NewerVersion: It is from a later release.
    """
    version = decode_json(data, _ONLY_VERSION).version
    try:
        content = decode_json(data, _STORED)
    except DecodeError:
        if version > _VERSION:
            raise _NewerVersion(version) from None
        raise
    # The digest covers this version, so it proves the content even if the number itself is damaged.
    if content.check == content.digest() or (version == 1 and not content.check):
        return content
    if version > _VERSION:
        raise _NewerVersion(version)
    raise DecodeError("its content does not match its check")
