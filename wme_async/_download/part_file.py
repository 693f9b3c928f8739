"""The unfinished file: locked, written in place, and given its name only when it is whole."""

import errno
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from wme_async import _platform
from wme_async._download.etags import Digest
from wme_async._download.finished import IsCancelled, has_etag, hash_range, store_note
from wme_async._download.ledger import Ledger
from wme_async._download.range_plan import RangeLease, RangePlan, Spans
from wme_async._download.range_store import RangeStore
from wme_async._files import (
    LockedFile,
    Problem,
    free_space,
    publish,
    sibling,
    sync_file,
    sync_folder,
)
from wme_async._tasks import in_thread
from wme_async.errors import WMEError

# A write into the page cache takes some 50 microseconds. Where two of the last eight took this long, the disk cannot
# keep up, and the next ones go to a thread for a while: the event loop stands still for two such writes, not for all.
# A single one means little, since on a busy machine the scheduler does that too.
_SLOW_WRITE = 0.020
_RECENT = 0xFF
_SLOW_PERIOD = 5.0
_SLOW_MOST = 60.0


class PartChanged(Exception):
    """Another program has changed the unfinished file. The download turns it into an `IntegrityError`."""


class PartFile(RangeStore):
    """`NAME.part` and the ledger beside it: the store of a range fetcher, or of a whole-file fetcher.

    The constructor blocks; meant for a thread.

    Args:
        target: The name that the finished file gets.
        durable: Flush to the disk before bytes are recorded: a power failure then costs no more than the last seconds.
            Otherwise only a killed process loses nothing.
        on_bytes: Called whenever more bytes are written.

    Raises:
        BlockingIOError: Another download of the same target is at work.
        OSError: It cannot be created.
    """

    def __init__(self, target: Path, *, durable: bool, on_bytes: Callable[[], None] | None = None) -> None:
        self.target = target
        self._on_bytes = on_bytes
        self.durable = durable
        self.plan: RangePlan | None = None
        self._boot = _platform.boot_id()
        self._ledger: Ledger | None = None
        self._identity = ""
        self._etag = ""
        self._size: int | None = None  # of a file that is written in ranges
        self._streamed = 0  # bytes of a file that comes in one stream
        self._slow_until = 0.0
        self._slow_writes = 0
        self._slow_period = _SLOW_PERIOD
        try:
            self._file = self._open(cautious=False)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, "another download to this target is at work", str(target)) from None
        except OSError:
            with Problem("the unfinished file cannot be created", self.path):
                raise

    def _open(self, *, cautious: bool) -> LockedFile:
        self.path = sibling(self.target, ".part", cautious=cautious)
        self.ledger_path = sibling(self.target, ".part.ledger", cautious=cautious)
        try:
            return LockedFile(self.path, mode=0o666)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG or cautious:
                raise
            return self._open(cautious=True)

    @property
    def is_new(self) -> bool:
        """Whether no earlier download has left anything."""
        return not os.fstat(self._fd).st_size and not self.ledger_path.exists()

    @property
    def _fd(self) -> int:
        return self._file.descriptor

    def resume(self, *, identity: str, size: int, etag: str | None, keep: bool, rate: float = 0.0) -> RangePlan:
        """Load the written bytes of this version, and allocate the file. Blocks; meant for a thread.

        Args:
            identity: Host and path of the file on its server.
            size: Its bytes.
            etag: Its validator: a strong ETag or a date. Without one nothing can be resumed, since nothing proves
                that it is the same file.
            keep: Keep a ledger. A small file is fetched faster than a ledger is written.
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
            self._ledger = self._ledger or Ledger(self.ledger_path, boot=self._boot)
            # The ledger does not hold for a new, truncated or foreign file.
            status = os.fstat(self._fd)
            if status.st_size == size:
                spans = self._ledger.load(identity=identity, size=size, etag=etag, part=status)
        if not spans.total:
            self._clear()
        self._check_space(size)
        plan = self.plan = RangePlan(size, spans, rate=rate)
        if self._ledger is not None:
            assert etag is not None
            self._ledger.begin(plan, identity=identity, size=size, etag=etag, inode=os.fstat(self._fd).st_ino)
        with Problem(f"the file system does not take a file of {size:,} bytes here", self.path):
            os.ftruncate(self._fd, size)
        self._size = size
        return plan

    def empty(self) -> None:
        """Begin again with an empty file and without a ledger, for a file in one response."""
        self._drop_ledger()
        self.plan = None
        self._etag = ""
        self._clear()

    def _clear(self) -> None:
        # ext4 flushes a file that was cut to nothing when it is closed, for the sake of programs that replace a file
        # that way; a new one is spared that.
        if os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, 0)
        self._size, self._streamed = None, 0

    def _check_space(self, size: int) -> None:
        free = free_space(self.path, self._fd)
        needed = size - _platform.allocated_bytes(os.fstat(self._fd))
        if free is not None and needed > free:
            raise OSError(
                errno.ENOSPC,
                f"the server says that the file has {size:,} bytes, of which {needed:,} are still to come, and {free:,}"
                " are free; make room or choose another disk",
                str(self.path),
            )

    def open_lease(self, lease: RangeLease) -> None:
        """Begin to record the progress of a lease."""
        if self._ledger is not None:
            assert self.plan is not None
            self._ledger.open(lease, self.plan)

    def close_lease(self, lease: RangeLease) -> None:
        """End the record of a lease."""
        if self._ledger is not None:
            self._ledger.forget(lease)

    def advanced(self, lease: RangeLease) -> None:
        """Record that the bytes of a lease before `lease.at` are written."""
        if self._ledger is not None:
            self._ledger.advance(lease)
        if self._on_bytes is not None:
            self._on_bytes()

    async def restart(self, error: WMEError) -> None:  # noqa: ARG002  # an unfinished file can always begin again
        """Empty the file after a failed attempt to fetch it in one response."""
        await in_thread(self.empty)

    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Write bytes in place.

        Returns:
            None if the bytes are written, as usually; an awaitable if a thread writes them because the disk is slow.

        Raises:
            OSError: The write failed, for example for lack of space. Earlier bytes stay and can be resumed.
        """
        if self._size is None and self._on_bytes is not None:
            self._on_bytes()
        began = time.perf_counter()
        if began < self._slow_until:
            return in_thread(self._write, offset, data)
        self._write(offset, data)
        is_slow = time.perf_counter() - began > _SLOW_WRITE
        self._slow_writes = (self._slow_writes << 1 | is_slow) & _RECENT
        if is_slow and self._slow_writes.bit_count() > 1:
            self._slow_writes = 0
            self._slow_period = (
                min(_SLOW_MOST, 2 * self._slow_period)
                if began - self._slow_until < 2 * self._slow_period
                else _SLOW_PERIOD
            )
            self._slow_until = time.perf_counter() + self._slow_period
        return None

    def _write(self, offset: int, data: memoryview) -> None:
        # Nobody else cuts the file, or writes behind its end, without being noticed: cut bytes would read as zeros.
        if os.fstat(self._fd).st_size != self._length:
            raise self._changed()
        problem = "the file could not be written; received bytes are kept, and the next call resumes from them"
        with Problem(problem, self.path):
            while data:
                count = _platform.write_at(self._fd, data, offset)
                data = data[count:]
                offset += count
        if self._size is None:
            self._streamed = offset

    @property
    def _length(self) -> int:
        """The bytes that the file has if no other program has changed it."""
        return self._streamed if self._size is None else self._size

    def _changed(self) -> PartChanged:
        return PartChanged(f"another program has changed {self.path} while it was downloaded; start again")

    def checkpoint(self, spans: Spans) -> None:
        """Flush the bytes, then record them in the ledger. Blocks; meant for a thread."""
        with Problem("the unfinished file did not reach the disk", self.path):
            sync_file(self._fd, only_data=True)
        if self._ledger is not None:
            self._ledger.synced(spans)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes that were written."""
        return _platform.read_at(self._fd, size, offset)

    def duplicate(self) -> int:
        """Return a descriptor for reading that outlives this object; the caller closes it."""
        return self._file.reader()

    def hash_into(self, digest: Digest, start: int, stop: int, is_cancelled: IsCancelled | None = None) -> None:
        """Hash bytes that were written. Blocks; meant for a thread.

        Raises:
            PartChanged: The file is too short.
        """
        if not hash_range(self._fd, digest, start, stop, is_cancelled):
            raise self._changed()

    def has_etag(self, etag: str | None, is_cancelled: IsCancelled) -> bool:
        """Return whether the whole file has a strong ETag. Blocks for long; meant for a thread."""
        return has_etag(self._fd, etag, None, os.fstat(self._fd).st_size, is_cancelled)

    def sha1(self, is_cancelled: IsCancelled) -> str:
        """Compute the SHA-1 of the whole file, in hexadecimal. Blocks for long; meant for a thread."""
        digest = hashlib.sha1(usedforsecurity=False)
        self.hash_into(digest, 0, os.fstat(self._fd).st_size, is_cancelled)
        return digest.hexdigest()

    def check_holes(self, md5: str, is_cancelled: IsCancelled) -> None:
        """Hash the file again if a part of it was never written. May block for long; meant for a thread.

        Bytes are hashed soon after they were written. Another program may have cut the file after that, and extended it
        again: then there are holes where bytes were. Some file systems make holes of zeros themselves.

        Raises:
            PartChanged: The file has another MD5 by now.
        """
        try:
            end = os.lseek(self._fd, 0, os.SEEK_HOLE)
        except (OSError, AttributeError):
            return
        if end < os.fstat(self._fd).st_size:
            digest = hashlib.md5(usedforsecurity=False)
            self.hash_into(digest, 0, os.fstat(self._fd).st_size, is_cancelled)
            if digest.hexdigest() != md5:
                raise self._changed()

    def finish(self, *, md5: str | None, verified: bool | None) -> int:
        """Give the file its name. Blocks; meant for a thread.

        Returns:
            The size of the file.

        Raises:
            IntegrityError: Another program has changed or replaced the file.
            OSError: It cannot be brought to the disk or renamed.
        """
        if self._etag:
            store_note(self._fd, identity=self._identity, etag=self._etag, md5=md5, verified=verified)
        if self.durable:
            with Problem("the finished file did not reach the disk", self.path):
                sync_file(self._fd)
        size = self._length
        publish(self._fd, self.path, self.target, size=size, close=self._file.close)
        if self.durable:
            sync_folder(self.target.parent)
        self._drop_ledger()
        self._file.close()
        return size

    def discard(self) -> None:
        """Remove the file and its ledger, so that the next attempt begins again."""
        if self._fd >= 0:
            try:
                self._remove()
            finally:
                self._shut()

    def close(self) -> None:
        """Leave a file that can be resumed, or none if it has no bytes. The lock is released in any case."""
        if self._fd < 0:
            return
        try:
            if self.plan is None:
                # It was never loaded, for lack of space or of descriptors: earlier bytes stay.
                resumable = self.ledger_path.exists() and os.fstat(self._fd).st_size > 0
            else:
                resumable = self._ledger is not None and bool(self.plan.written)
            if not resumable:
                self._remove()
            elif self.plan is not None and self._boot is None:
                # Later, only bytes that are flushed count: nothing will tell that the system has not been restarted.
                self.checkpoint(self.plan.written)
        finally:
            self._shut()

    def _remove(self) -> None:
        """Remove the file and its ledger, unless the name belongs to another file by now."""
        if self._file.owns_name():
            self._drop_ledger()
            self._file.remove()

    def _drop_ledger(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        self.ledger_path.unlink(missing_ok=True)

    def _shut(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        self._file.close()
