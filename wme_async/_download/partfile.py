"""The unfinished file: locked, written in place, and given its name only when it is whole."""

import errno
import hashlib
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from wme_async._download.ledger import Ledger, boot_id
from wme_async._files import LockedFile, explained, free_space, sibling, sync_file, sync_folder
from wme_async._protocol.decode import decode_json
from wme_async._protocol.etags import Digest, PartSums
from wme_async._protocol.ranges import Claim, Plan, Spans, strong_etag
from wme_async._tasks import in_thread
from wme_async.errors import DecodeError

__all__ = ["PartFile", "check_target", "hash_range", "known_version"]

logger = logging.getLogger("wme_async.download")

Unwanted = Callable[[], bool]
"""Says whether a digest is no longer wanted: of a large file it takes minutes."""

_BLOCK = 256 * 1024
_XATTR = "user.wme_async.version"

# A write into the page cache takes some 50 microseconds. Where two of the last eight took this long, the disk cannot
# keep up, and the next ones go to a thread for a while: the event loop stands still for two such writes, not for all.
# A single one means little, since on a busy machine the scheduler does that too.
_SLOW_WRITE = 0.020
_RECENT = 0xFF
_SLOW_PERIOD = 5.0
_SLOW_MOST = 60.0


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered with a finished file, so that the next look at it costs nothing."""

    identity: str
    etag: str
    size: int
    mtime_ns: int
    md5: str | None
    verified: bool | None


_KNOWN = msgspec.json.Decoder(Known)


def check_target(target: Path) -> None:
    """Refuse a target that could never be written, before anything is asked for.

    Raises:
        OSError: It is a directory, its folder is missing, or nothing can be created there.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "the target is a directory; name a file in it", str(target))
    folder = target.parent
    if not folder.is_dir():
        kind = errno.ENOTDIR if folder.exists() else errno.ENOENT
        raise OSError(kind, "the target's folder does not exist; create it first", str(folder))
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise OSError(errno.EINVAL, "the target is there and is not a regular file", str(target))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written in the target's folder", str(folder))


class PartFile:
    """`NAME.part` and the ledger beside it. The constructor blocks; meant for a thread.

    Args:
        target: The name that the finished file gets.
        durable: Flush to the disk before anything is promised: a power failure then costs no more than the last
            seconds. Otherwise only the death of the process is survived without loss.

    Raises:
        BlockingIOError: Another download of the same target is at work.
        OSError: It cannot be created.
    """

    def __init__(self, target: Path, *, durable: bool) -> None:
        self.target = target
        self.path = sibling(target, ".part")
        self.ledger_path = sibling(target, ".part.ledger")
        self.durable = durable
        self.plan: Plan | None = None
        self._ledger: Ledger | None = None
        self._identity = ""
        self._etag = ""
        self._slow_until = 0.0
        self._slow_writes = 0
        self._slow_period = _SLOW_PERIOD
        try:
            self._file = LockedFile(self.path, mode=0o666)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, "another download to this target is at work", str(target)) from None
        except OSError as error:
            raise explained(error, "the unfinished file cannot be created", self.path) from error

    @property
    def _fd(self) -> int:
        return self._file.descriptor

    def resume(self, *, identity: str, size: int, etag: str | None, keep: bool, rate: float = 0.0) -> Plan:
        """Find out what is there already of this version, and make room for the rest. Blocks; meant for a thread.

        Args:
            identity: What names the file on its server.
            size: Its bytes.
            etag: Its strong ETag; without one nothing can be resumed, since nothing proves that it is the same file.
            keep: Keep a ledger. A small file is sooner fetched than accounted for.
            rate: For the plan.

        Raises:
            OSError: There is not enough free space.
        """
        spans = Spans()
        self.plan = None
        self._identity, self._etag = identity, etag or ""
        if etag is None or not keep:
            self._drop_ledger()
        else:
            self._ledger = self._ledger or Ledger(self.ledger_path, boot=boot_id())
            # A new, truncated or foreign file makes the ledger a liar.
            if os.fstat(self._fd).st_size == size:
                spans = self._ledger.load(identity=identity, size=size, etag=etag)
        if not spans.total:
            self._clear()
        self._check_space(size)
        plan = self.plan = Plan(size, spans, rate=rate)
        if self._ledger is not None:
            assert etag is not None
            self._ledger.begin(plan, identity=identity, size=size, etag=etag)
        os.ftruncate(self._fd, size)
        return plan

    def empty(self) -> None:
        """Begin again from nothing, without a ledger: for answers that can only be taken whole."""
        self._drop_ledger()
        self.plan = None
        self._clear()

    def _clear(self) -> None:
        # ext4 flushes a file that was cut to nothing when it is closed, for the sake of programs that replace a file
        # that way; a new one is spared that.
        if os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, 0)

    def _check_space(self, size: int) -> None:
        free = free_space(self._fd)
        needed = size - os.fstat(self._fd).st_blocks * 512
        if free is not None and needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{needed:,} more bytes are needed and {free:,} are free; make room or choose another disk",
                str(self.path),
            )

    def open_claim(self, claim: Claim) -> None:
        """Begin to account for a claim."""
        if self._ledger is not None:
            assert self.plan is not None
            self._ledger.open(claim, self.plan)

    def close_claim(self, claim: Claim) -> None:
        """End the account of a claim."""
        if self._ledger is not None:
            self._ledger.forget(claim)

    def advanced(self, claim: Claim) -> None:
        """Note that bytes of a claim were written."""
        if self._ledger is not None:
            self._ledger.advance(claim)

    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Write bytes in place.

        Returns:
            None where it is done, as usually; something to await while a thread does it, because the disk is slow.

        Raises:
            OSError: It failed, such as for want of space. What was written before stays and can be resumed.
        """
        began = time.perf_counter()
        if began < self._slow_until:
            return in_thread(self._write, offset, data)
        self._write(offset, data)
        slow = time.perf_counter() - began > _SLOW_WRITE
        self._slow_writes = (self._slow_writes << 1 | slow) & _RECENT
        if slow and self._slow_writes.bit_count() > 1:
            self._slow_writes = 0
            self._slow_period = (
                min(_SLOW_MOST, 2 * self._slow_period)
                if began - self._slow_until < 2 * self._slow_period
                else _SLOW_PERIOD
            )
            self._slow_until = time.perf_counter() + self._slow_period
        return None

    def _write(self, offset: int, data: memoryview) -> None:
        try:
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):
                data = data[done:]
                offset += done
                done = os.pwrite(self._fd, data, offset)
        except OSError as error:
            what = "the file could not be written; what is there is kept, and the next call goes on from it"
            raise explained(error, what, self.path) from error

    def checkpoint(self, spans: Spans) -> None:
        """Flush the bytes, then the note of what was flushed. Blocks; meant for a thread."""
        getattr(os, "fdatasync", os.fsync)(self._fd)
        if self._ledger is not None:
            self._ledger.synced(spans)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes that were written."""
        return os.pread(self._fd, size, offset)

    def duplicate(self) -> int:
        """Return a descriptor for reading that outlives this object; the caller closes it."""
        return self._file.reader()

    def hash_into(self, digest: "hashlib._Hash", start: int, stop: int) -> None:
        """Hash bytes that were written. Blocks; meant for a thread."""
        hash_range(self._fd, digest, start, stop)

    def sum_parts(self, sums: PartSums, unwanted: Unwanted) -> None:
        """Take the MD5s of the parts of the whole file. Blocks for long; meant for a thread."""
        hash_range(self._fd, sums, 0, os.fstat(self._fd).st_size, unwanted)

    def sha1(self, unwanted: Unwanted) -> str:
        """Compute the SHA-1 of the whole file, in hexadecimal. Blocks for long; meant for a thread."""
        digest = hashlib.sha1(usedforsecurity=False)
        hash_range(self._fd, digest, 0, os.fstat(self._fd).st_size, unwanted)
        return digest.hexdigest()

    def finish(self, *, md5: str | None, verified: bool | None) -> int:
        """Give the file its name. Blocks; meant for a thread.

        Returns:
            The size of the file.
        """
        status = os.fstat(self._fd)
        if self._etag:
            known = Known(
                identity=self._identity,
                etag=self._etag,
                size=status.st_size,
                mtime_ns=status.st_mtime_ns,
                md5=md5,
                verified=verified,
            )
            _remember(self._fd, known)
        try:
            if self.durable:
                sync_file(self._fd)
            self.path.replace(self.target)
            if self.durable:
                sync_folder(self.target.parent)
        except OSError as error:
            raise explained(error, "the finished file could not be given its name", self.target) from error
        self._drop_ledger()
        self._shut()
        return status.st_size

    def discard(self) -> None:
        """Remove what was fetched, so that the next attempt starts clean."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            self._drop_ledger()
            self._shut()

    def close(self) -> None:
        """Leave a state that can be resumed, or nothing where nothing was fetched."""
        if self._fd < 0:
            return
        if self.plan is None:
            # It could not be looked into, for want of space or of descriptors: what was there before stays.
            worth = self.ledger_path.exists() and os.fstat(self._fd).st_size > 0
        else:
            worth = self._ledger is not None and bool(self.plan.written)
        if not worth:
            self.discard()
            return
        if self._ledger is not None:
            self._ledger.close()
        self._shut()

    def _drop_ledger(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        self.ledger_path.unlink(missing_ok=True)

    def _shut(self) -> None:
        self._file.close()


def hash_range(fd: int, digest: Digest, start: int, stop: int, unwanted: Unwanted | None = None) -> None:
    """Feed bytes of a file to a digest, in blocks that stay in the processor's cache.

    Raises:
        OSError: The file is shorter than that.
        InterruptedError: It is no longer wanted.
    """
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while start < stop:
        if unwanted is not None and unwanted():
            raise InterruptedError(errno.EINTR, "nobody waits for the digest any more")
        count = os.preadv(fd, [view[: min(_BLOCK, stop - start)]], start)
        if not count:
            raise OSError(errno.EIO, "the unfinished file was cut short by somebody else")
        digest.update(view[:count])
        start += count


def known_version(
    target: Path, *, identity: str, size: int | None, etag: str | None, promised: str | None, unwanted: Unwanted
) -> tuple[str | None, bool | None] | None:
    """Say whether a finished file is the one on the server. May block for long; meant for a thread.

    A note that is kept with the file (an extended attribute) answers at once, if the file has not been touched since.
    Otherwise the file is hashed and compared with the checksum of the metadata.

    Returns:
        Its MD5 where known, and whether it was verified; None where it is another one, or nobody can say.
    """
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (size is not None and status.st_size != size):
            return None
        known = _recall(fd)
        if (
            known is not None
            and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns)
            and known.identity == identity
            and strong_etag(etag) == known.etag
        ):
            return known.md5, known.verified
        if promised is None:
            return None
        digest = hashlib.md5(usedforsecurity=False)
        hash_range(fd, digest, 0, status.st_size, unwanted)
        return (promised, True) if digest.hexdigest() == promised.lower() else None
    finally:
        os.close(fd)


def _remember(fd: int, known: Known) -> None:
    if hasattr(os, "setxattr"):
        try:
            os.setxattr(fd, _XATTR, msgspec.json.encode(known))
        except OSError:
            # The file system keeps no attributes: the next look has to hash.
            logger.debug("no extended attributes here")


def _recall(fd: int) -> Known | None:
    if not hasattr(os, "getxattr"):
        return None
    try:
        return decode_json(os.getxattr(fd, _XATTR), _KNOWN)
    except (OSError, DecodeError):
        return None
