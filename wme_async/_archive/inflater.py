"""Compressed bytes in, blocks of the uncompressed tar out, by one thread that lives as long as the archive is read.

One long-lived thread is what makes inflating and decoding overlap: a hop to an executor for each block gave no overlap
at all, since the thread then waits for the interpreter's lock as long as the loop decodes. For the same reason each
block is inflated in one call that lets the lock go once.

As long as the loop has something to decode it keeps the lock. So the thread, though it is the quicker one, mostly
stands there with an inflated block and waits for the lock to hand it over, until the loop has nothing left. That moment
comes once for each block, and what it costs is all that the two lose. Therefore the loop first waits for a block on a
lock, for a fraction of a millisecond, and only then in the way of a loop: waking that takes about as long again.

Neither side waits while it has work: the loop is woken only when it waits, and the thread waits only when its window is
full or its input is empty. Both windows are bounded.
"""

import asyncio
import queue
import threading
from typing import Final

from wme_async._archive.feed import Feed, SourceFailed, Stopped, call_in_loop
from wme_async._archive.gzip import CORRUPT, by_isal, by_zlib, has_isal
from wme_async._archive.tar import describe_content
from wme_async._tasks import wait_done
from wme_async.errors import ArchiveError

__all__ = ["Inflater"]

_READY: Final = 8 * 1024 * 1024  # bytes inflated ahead of the reader
_MOMENT: Final = 0.0005  # seconds that the loop waits for a block which is probably there but for the lock
_VAIN: Final = 16  # blocks that it does not wait for so after having done it in vain: inflating is the slower part


class Inflater:
    """The thread and the window of inflated blocks.

    Args:
        feed: Where the compressed bytes come from.
        label: What the archive is called in errors.
        use_isal: Whether isal may be used where it is installed.

    Attributes:
        error: Why the thread ended, if not because all is inflated. Valid once `ended`.
        ended: Nothing will come beyond the blocks that are ready.
    """

    def __init__(self, feed: Feed, label: str, *, use_isal: bool) -> None:
        self.feed = feed
        self.error: BaseException | None = None
        self.ended = False
        self._label = label
        self._use_isal = use_isal
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._made = 0  # written by the thread alone
        self._taken = 0  # written by the loop alone
        self._room = threading.Event()
        self._vain = 0
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None
        self._asleep = False
        self._thread = threading.Thread(target=self._run, name=f"wme_async archive {label}", daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until its files are open.

        Raises:
            OSError: A file cannot be opened.
        """
        self._thread.start()
        try:
            await asyncio.wait([self._opened, self._done], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if not self._opened.done():
            await self.stop()
            assert self.error is not None
            raise self.error

    def take(self) -> bytes | None:
        """Return the next block if one is ready, or will be in a moment."""
        try:
            block = self._blocks.get_nowait()
        except queue.Empty:
            found = self._wait_a_moment()
            if found is None:
                return None
            block = found
        self._taken += len(block)
        if self._made - self._taken <= _READY // 2:
            self._room.set()
        return block

    def _wait_a_moment(self) -> bytes | None:
        if self.ended or not self.feed.ready():
            return None
        if self._vain:
            self._vain -= 1
            return None
        try:
            return self._blocks.get(timeout=_MOMENT)
        except queue.Empty:
            self._vain = _VAIN
            return None

    async def wait(self) -> None:
        """Wait until a block is ready or the thread has ended.

        Raises:
            RuntimeError: Another task waits already.
        """
        if self._waiter is not None:
            raise RuntimeError("an archive is read by one task at a time")
        self._waiter = self._loop.create_future()
        self._asleep = True
        try:
            if self._blocks.empty() and not self.ended:  # the thread may have looked before `_asleep` was set
                await self._waiter
        finally:
            self._asleep = False
            self._waiter = None

    async def stop(self) -> None:
        """Make the thread end and wait for it."""
        self.abandon()
        await self.join()

    def abandon(self) -> None:
        """Make the thread end, without waiting."""
        self._stopped = True
        self.feed.stop()
        self._room.set()

    async def join(self) -> None:
        """Wait for the end of the thread."""
        await wait_done(self._done)
        self._thread.join()

    def _run(self) -> None:
        try:
            with self.feed:
                self.feed.open()
                call_in_loop(self._loop, _settle, self._opened)
                self._inflate()
        except Stopped:
            pass
        except SourceFailed as failed:
            self.error = failed.error
        except BaseException as error:  # noqa: BLE001 - it is raised again where it can be handled: in the loop
            self.error = error
        finally:
            self._end()
            call_in_loop(self._loop, _settle, self._done)

    def _inflate(self) -> None:
        head = self.feed.peek(2)
        if not head or not b"\x1f\x8b".startswith(head):
            raise ArchiveError(f"not a gzip file but {describe_content(self.feed.peek(512))}", offset=0)
        blocks = by_isal if self._use_isal and has_isal() else by_zlib
        try:
            for block in blocks(self.feed):
                self._put(block)
        except EOFError as error:
            raise ArchiveError("cut short: the gzip file ends too early", offset=self._made) from error
        except CORRUPT as error:
            raise ArchiveError(f"damaged: {error}", offset=self._made) from error

    def _put(self, block: bytes) -> None:
        self._made += len(block)
        self._blocks.put(block)
        self._wake()
        while self._made - self._taken > _READY and not self._stopped:
            self._room.clear()
            if self._made - self._taken > _READY and not self._stopped:  # the loop may have looked before `clear`
                self._room.wait()
        if self._stopped:
            raise Stopped

    def _end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            call_in_loop(self._loop, self._rouse)

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
