"""A finished file: its target, the note about its version, and the version of an existing one."""

import contextlib
import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from wme_async import _platform
from wme_async._download.etags import Digest, PartSums
from wme_async._download.range_responses import strong_etag
from wme_async._files import Problem, followed, name_limit
from wme_async.errors import DecodeError
from wme_async.models.decoding import decode_json

logger: logging.Logger = logging.getLogger("wme_async.download")

IsCancelled = Callable[[], bool]
"""Returns whether a digest is cancelled: that of a large file takes minutes."""

_BLOCK = 256 * 1024
_XATTR = "user.wme_async.version"


class VersionNote(msgspec.Struct, frozen=True, kw_only=True):
    """The version of a finished file, stored with it so that the next check does not have to hash it."""

    identity: str
    etag: str
    size: int
    mtime_ns: int
    md5: str | None
    verified: bool | None


_NOTE = msgspec.json.Decoder(VersionNote)


def check_target(target: Path, *, create: bool = False) -> Path:
    """Raise if a target can never be written, before anything is requested.

    Args:
        target: The name of the finished file.
        create: Missing folders will be created.

    Returns:
        The file to write: where a symbolic link points to, if the target is one.

    Raises:
        OSError: It is a directory, its folder is missing, its name is too long, or nothing can be created there.
    """
    try:
        target = followed(target)
        mode = target.stat().st_mode if target.exists() else None
        folder = target.parent
        while create and not folder.exists() and folder != folder.parent:
            folder = folder.parent
        has_folder = folder.is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _too_long(target) from None
        with Problem("the target cannot be used", target):
            raise
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "the target is a directory; name a file in it", str(target))
    if not has_folder:
        raise OSError(
            errno.ENOTDIR if folder.exists() else errno.ENOENT,
            "the target's folder does not exist; create it first",
            str(folder),
        )
    limit = name_limit(folder)
    if any(len(os.fsencode(level)) > limit for level in target.parts[len(folder.parts) :]):
        raise _too_long(target)
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "the target is there and is not a regular file", str(target))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written in the target's folder", str(folder))
    return target


def _too_long(target: Path) -> OSError:
    return OSError(
        errno.ENAMETOOLONG, "the file system does not allow a name or path of this length; use a shorter one",
        str(target),
    )  # fmt: skip


def missing_folders(target: Path) -> list[Path]:
    """Return the folders above a target that do not exist, the innermost first."""
    return [folder for folder in target.parents if not folder.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, up to one that is used."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def file_identity(path: Path) -> tuple[int, int, int] | None:
    """Return the inode, size and time of a file, which differ for one that replaces it; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def hash_range(fd: int, digest: Digest, start: int, stop: int, is_cancelled: IsCancelled | None = None) -> bool:
    """Feed bytes of a file to a digest, in blocks that stay in the processor's cache.

    Returns:
        Whether the file is long enough.

    Raises:
        InterruptedError: The digest is cancelled.
    """
    view = memoryview(bytearray(_BLOCK))
    while start < stop:
        if is_cancelled is not None and is_cancelled():
            raise InterruptedError(errno.EINTR, "nobody waits for the digest any more")
        count = _platform.read_into(fd, view[: min(_BLOCK, stop - start)], start)
        if not count:
            return False
        digest.update(view[:count])
        start += count
    return True


class ExistingFile(msgspec.Struct, frozen=True, kw_only=True):
    """A finished file that is there already.

    Args:
        current: Whether it is the version that the server has.
        md5: Its MD5 where note.
        verified: Whether that is the MD5 of the metadata; None where there was nothing to compare with.
    """

    current: bool
    md5: str | None = None
    verified: bool | None = None


def existing_version(
    target: Path,
    is_cancelled: IsCancelled,
    *,
    identity: str,
    size: int | None,
    etag: str | None,
    promised: str | None,
    named: bool,
) -> ExistingFile | None:
    """Return which version a finished file is. May block for long; meant for a thread.

    A note in an extended attribute says it at once if the file has not changed since. Otherwise the file is hashed and
    compared with the checksum in the metadata.

    Args:
        target: The file.
        is_cancelled: Returns whether the caller has been cancelled.
        identity: Host and path of the file on its server.
        size: The size on the server, if note.
        etag: The validator of its version on the server: a strong ETag or a date; None without one.
        promised: The MD5 of the metadata, if note.
        named: Compute the MD5 also of a file that cannot be the current version, to tell what it is; and compare it
            with the ETag where the metadata promises nothing.

    Returns:
        The version; None if the file does not exist.

    Raises:
        InterruptedError: The caller has been cancelled.
    """
    try:
        fd = _platform.open_file(target, os.O_RDONLY, follow=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return ExistingFile(current=False)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return ExistingFile(current=False)
        fits = size is None or status.st_size == size
        note = _load_note(fd, status)
        if note is not None and fits and note.identity == identity and etag == note.etag:
            return ExistingFile(current=True, md5=note.md5, verified=note.verified)
        if not named and (not fits or promised is None):
            return ExistingFile(current=False)
        md5 = note.md5 if note is not None and note.md5 is not None else _md5(fd, status.st_size, is_cancelled)
        if fits and md5 is not None and md5 == (promised or "").lower():
            return ExistingFile(current=True, md5=md5, verified=True)
        if fits and named and promised is None and has_etag(fd, etag, md5, status.st_size, is_cancelled):
            return ExistingFile(current=True, md5=md5)
        return ExistingFile(current=False, md5=md5)
    finally:
        os.close(fd)


def _md5(fd: int, size: int, is_cancelled: IsCancelled) -> str | None:
    digest = hashlib.md5(usedforsecurity=False)
    return digest.hexdigest() if hash_range(fd, digest, 0, size, is_cancelled) else None


def has_etag(fd: int, etag: str | None, md5: str | None, size: int, is_cancelled: IsCancelled) -> bool:
    """Return whether a file has a strong ETag: its MD5, or that of an upload in parts. Blocks; meant for a thread."""
    strong = strong_etag(etag)
    if strong is None:
        return False
    sums = PartSums(strong, size)
    return strong == f'"{md5}"' or (bool(sums) and hash_range(fd, sums, 0, size, is_cancelled) and sums.proven())


def store_note(fd: int, *, identity: str, etag: str, md5: str | None, verified: bool | None) -> os.stat_result:
    """Store the version of a file in an extended attribute, if the file system has them; return its status."""
    status = os.fstat(fd)
    note = VersionNote(
        identity=identity, etag=etag, size=status.st_size, mtime_ns=status.st_mtime_ns, md5=md5, verified=verified
    )
    if not _platform.set_attribute(fd, _XATTR, msgspec.json.encode(note)):
        logger.debug("the file system keeps no extended attributes: the next look has to hash")
    return status


def _load_note(fd: int, status: os.stat_result) -> VersionNote | None:
    """Return the version of a file; None if it was never stored, or the file has changed since."""
    with contextlib.suppress(DecodeError):
        note = decode_json(_platform.get_attribute(fd, _XATTR) or b"", _NOTE)
        if (note.size, note.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return note
    return None
