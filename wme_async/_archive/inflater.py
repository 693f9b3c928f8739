"""Inflates an archive to blocks of the uncompressed tar in one thread that lives as long as the archive is read.

One long-lived thread makes inflating and decoding overlap. One executor call for each block gave no overlap at all:
each call waits for the interpreter's lock as long as the loop decodes. For the same reason each block is inflated in
one call that releases the lock once.

The loop keeps the lock as long as it has something to decode. So the thread, although it is faster, mostly waits for
the lock with an inflated block, until the loop has nothing left to decode. This handover happens once for each block,
and its cost is the whole loss. Therefore the loop first blocks on a lock for a fraction of a millisecond, and only then
awaits a future: waking the loop takes about as long again.

Neither side waits while it has work: the loop is woken only if it waits, and the thread waits only if its window is
full or its input is empty. Both windows are bounded.
"""

import asyncio
import queue
import threading
from typing import Final

from wme_async._archive.feed import Feed, SourceError, Stopped, call_in_loop
from wme_async._archive.gzip import CORRUPT, by_isal, by_zlib, has_isal
from wme_async._archive.tar import describe_content
from wme_async._tasks import settle, wait_done
from wme_async.errors import ArchiveError

_WINDOW: Final = 8 * 1024 * 1024  # bytes inflated ahead of the reader
_BLOCKING_WAIT: Final = 0.0005  # seconds for which the loop blocks for a block that probably only lacks the lock
_SKIPS_AFTER_MISS: Final = 16  # blocks for which it does not block after a miss: inflating is slower then


class Inflater:
    """The thread and the window of inflated blocks.

    Args:
        feed: Where the compressed bytes come from.
        label: The name of the archive in errors.
        use_isal: Whether to use isal if it is installed.

    Attributes:
        error: The exception that ended the thread, if any. Valid once `ended`.
        ended: Whether the thread has produced its last block.
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
        self._produced = 0  # bytes; written only by the thread
        self._consumed = 0  # bytes; written only by the loop
        self._room = threading.Event()
        self._skips = 0
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None
        self._sleeping = False
        self._thread = threading.Thread(target=self._run, name=f"wme_async archive {label}", daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until the source is open.

        Raises:
            OSError: The file cannot be opened.
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
        """Return the next block if one is ready, or becomes ready within a fraction of a millisecond."""
        try:
            block: bytes | None = self._blocks.get_nowait()
        except queue.Empty:
            block = self._block_briefly()
        if block is not None:
            self._consumed += len(block)
            if self._produced - self._consumed <= _WINDOW // 2:
                self._room.set()
        return block

    def _block_briefly(self) -> bytes | None:
        if self.ended or not self.feed.ready():
            return None
        if self._skips:
            self._skips -= 1
            return None
        try:
            return self._blocks.get(timeout=_BLOCKING_WAIT)
        except queue.Empty:
            self._skips = _SKIPS_AFTER_MISS
            return None

    async def wait(self) -> None:
        """Wait until a block is ready or the thread has ended.

        Raises:
            RuntimeError: Another task waits.
        """
        if self._waiter is not None:
            raise RuntimeError("an archive is read by one task at a time")
        self._waiter = self._loop.create_future()
        self._sleeping = True
        try:
            if self._blocks.empty() and not self.ended:  # the thread may have checked `_sleeping` before it was set
                await self._waiter
        finally:
            self._sleeping = False
            self._waiter = None

    async def stop(self) -> None:
        """End the thread and wait for it."""
        self.abandon()
        await self.join()

    def abandon(self) -> None:
        """End the thread without waiting for it."""
        self._stopped = True
        self.feed.stop()
        self._room.set()

    async def join(self) -> None:
        """Wait until the thread has ended."""
        await wait_done(self._done)
        self._thread.join()

    def _run(self) -> None:
        try:
            with self.feed:
                self.feed.open()
                call_in_loop(self._loop, settle, self._opened)
                self._inflate()
        except Stopped:
            pass
        except SourceError as error:
            self.error = error.error
        except BaseException as error:  # noqa: BLE001 - raised again in the loop, where it can be handled
            self.error = error
        finally:
            self.ended = True
            self._wake()
            call_in_loop(self._loop, settle, self._done)

    def _inflate(self) -> None:
        head = self.feed.peek(2)
        if not head or not b"\x1f\x8b".startswith(head):
            raise ArchiveError(f"not a gzip file but {describe_content(self.feed.peek(512))}", offset=0)
        blocks = by_isal if self._use_isal and has_isal() else by_zlib
        try:
            for block in blocks(self.feed):
                self._put(block)
        except EOFError as error:
            raise ArchiveError("cut short: the gzip file ends too early", offset=self._produced) from error
        except CORRUPT as error:
            raise ArchiveError(f"damaged: {error}", offset=self._produced) from error

    def _put(self, block: bytes) -> None:
        self._produced += len(block)
        self._blocks.put(block)
        self._wake()
        while self._produced - self._consumed > _WINDOW and not self._stopped:
            self._room.clear()
            if (
                self._produced - self._consumed > _WINDOW and not self._stopped
            ):  # in case the loop made room before `clear`
                self._room.wait()
        if self._stopped:
            raise Stopped

    def _wake(self) -> None:
        if self._sleeping:
            self._sleeping = False
            call_in_loop(self._loop, self._resolve_waiter)

    def _resolve_waiter(self) -> None:
        settle(self._waiter)
