"""The compressed bytes of an archive, from the event loop or the disk to the inflating thread."""

import asyncio
import io
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import Any, Final

from wme_async._tasks import settle

_UNLIMITED: Final = 1 << 40


class Stopped(BaseException):
    """Raised in the thread to end it."""


class SourceError(BaseException):
    """Carries an exception of the source through the inflater, apart from the inflater's own exceptions."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Feed(io.RawIOBase):
    """Compressed bytes for the thread; `readinto` may block, and returns 0 at the end.

    Attributes:
        taken: Bytes returned so far.
    """

    def __init__(self) -> None:
        self.taken = 0
        self._head = b""
        self._stopped = False

    def open(self) -> None:
        """Open the source, in the thread.

        Raises:
            OSError: The file cannot be opened.
        """

    def readable(self) -> bool:
        """Return `True`, for the inflaters."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as possible without blocking for more than one byte."""
        view = memoryview(buffer)
        if self._head:
            count = min(len(view), len(self._head))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        count = self.fetch(view)
        self.taken += count
        return count

    def peek(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end, without consuming them."""
        head = b""
        while len(head) < count and (chunk := self.read(count - len(head))):
            head += chunk
        self._head = head + self._head
        return head

    @abstractmethod
    def fetch(self, view: memoryview) -> int:
        """Write at least one byte into the view, blocking until there is one, or return 0 at the end."""

    @abstractmethod
    def ready(self) -> int:
        """Return about how many bytes can be read without blocking."""

    def stop(self) -> None:
        """End the thread at its next read; called in the loop."""
        self._stopped = True


class FileFeed(Feed):
    """A file on disk, read in the thread."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: io.FileIO | None = None

    def open(self) -> None:
        """Open the file."""
        self._file = io.FileIO(self._path)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()

    def fetch(self, view: memoryview) -> int:
        """Read from the file."""
        assert self._file is not None
        if self._stopped:  # an archive that inflates to nothing meets no other check
            raise Stopped
        return self._file.readinto(view) or 0

    def ready(self) -> int:
        """Return a large number: a file never blocks."""
        return _UNLIMITED


class WindowFeed(Feed):
    """Bytes that the loop receives, in a bounded window until the thread takes them.

    Args:
        limit: Bytes in the window from which on `put` waits.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._received = 0  # written only by the loop, as `taken` is by the thread: no lock is needed
        self._consumed = 0  # bytes of the first chunk
        self._ended = False
        self._error: BaseException | None = None
        self._data = threading.Event()
        self._room: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def put(self, chunk: bytes) -> None:
        """Add a chunk, then wait until there is room for the next."""
        if not chunk:
            return
        self._chunks.append(bytes(chunk))
        self._received += len(chunk)
        self._data.set()
        if self._held() >= self._limit:
            self._room = self._loop.create_future()
            try:
                if self._held() >= self._limit:  # the thread may have made room before there was a future
                    await self._room
            finally:
                self._room = None

    def end(self, error: BaseException | None = None) -> None:
        """Mark the end of the chunks, with the exception that caused it if any."""
        self._error = error
        self._ended = True
        self._data.set()

    def stop(self) -> None:
        """Wake the thread so that it ends."""
        super().stop()
        self._data.set()

    def ready(self) -> int:
        """Return the bytes in the window, or a large number after the last chunk."""
        return _UNLIMITED if self._ended else self._held()

    def _held(self) -> int:
        return self._received - self.taken

    def fetch(self, view: memoryview) -> int:
        """Read from the window, blocking while it is empty."""
        while not self._chunks:
            if self._stopped:
                raise Stopped
            self._data.clear()
            if not self._chunks and not self._stopped:
                if self._ended:
                    if self._error is not None:
                        raise SourceError(self._error)
                    return 0
                self._data.wait()
        count = 0
        while self._chunks and count < len(view):
            chunk = self._chunks[0]
            size = min(len(view) - count, len(chunk) - self._consumed)
            view[count : count + size] = memoryview(chunk)[self._consumed : self._consumed + size]
            count += size
            self._consumed += size
            if self._consumed == len(chunk):
                self._chunks.popleft()
                self._consumed = 0
        if self._room is not None and self._held() - count <= self._limit // 2:
            call_in_loop(self._loop, self._make_room)
        return count

    def _make_room(self) -> None:
        settle(self._room)


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """Call a function in the loop, which may be closed if the program ends in the middle of an archive."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


async def pump(source: AsyncIterable[bytes], window: WindowFeed) -> None:
    """Copy the source into the window. The source is used and closed in this one task."""
    chunks = aiter(source)
    try:
        try:
            async for chunk in chunks:
                await window.put(chunk)
        finally:
            close: Any = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
    except BaseException as error:
        window.end(error)
        raise
    window.end()
