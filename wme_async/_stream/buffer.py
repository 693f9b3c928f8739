"""The buffer between the connections of a stream and its consumer, bounded by bytes."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import anyio
import msgspec

from wme_async._stream.framing import Record
from wme_async.errors import WMEError

if TYPE_CHECKING:
    from wme_async._stream.connection import Connection


class Session:
    """One request of a connection, to the end of its response.

    Attributes:
        connection: The connection.
        began: The time of the request, monotonic seconds.
        scope: The scope of the reading; cancelled if the consumer ends the session.
        abandoned: The reason why the consumer ended it.
        records: The number of records received.
        placeless: The number of records without a position, such as errors inside the stream.
        answered: Whether the head of the response has arrived.
        waiting: The number of blocks that are not decoded yet.
    """

    def __init__(self, connection: "Connection", began: float) -> None:
        self.connection = connection
        self.began = began
        self.scope = anyio.CancelScope()
        self.abandoned: WMEError | None = None
        self.records = 0
        self.placeless = 0
        self.answered = False
        self.waiting = 0


class RecordBlock(msgspec.Struct, gc=False):
    """Records that arrived together, and their size in bytes."""

    session: Session
    records: list[Record]
    size: int


class BlockQueue:
    """Blocks that were received and are not decoded yet. While it is full, nobody reads the socket.

    Attributes:
        size: Bytes in the buffer.

    Args:
        limit: Bytes. A single block is accepted whatever its size.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: deque[RecordBlock] = deque()
        self.size = 0
        self._changed = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the reading stops until the consumer has taken something."""
        return self.size >= self._limit

    async def put(self, block: RecordBlock) -> None:
        """Add a block as soon as there is room; drop it if its session was abandoned meanwhile."""
        while self.full:
            await self._wait_changed()
        if block.session.abandoned is not None:
            return  # the blocks before it were dropped while this waited: its events would hide the hole
        block.session.waiting += 1
        self._blocks.append(block)
        self.size += block.size
        self._changed.set()

    def take(self) -> RecordBlock | None:
        """Return the oldest block; None if the buffer is empty."""
        if not self._blocks:
            return None
        block = self._blocks.popleft()
        self.size -= block.size
        if not self.full:
            self._changed.set()
        return block

    def finish(self, block: RecordBlock) -> None:
        """Note that all records of a block have been decoded, or dropped."""
        block.session.waiting -= 1
        if not block.session.waiting:
            self._changed.set()

    async def wait_decoded(self, session: Session) -> None:
        """Wait until no block of a session waits to be decoded."""
        while session.waiting:
            await self._wait_changed()

    async def wait(self) -> None:
        """Wait until there is a block, or until `wake` is called."""
        if not self._blocks:
            await self._wait_changed()

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """Wake all waiters."""
        self._changed.set()

    def purge(self, session: Session) -> None:
        """Drop the blocks of a session."""
        blocks, self._blocks = self._blocks, deque()
        for block in blocks:
            if block.session is session:
                self.size -= block.size
                self.finish(block)
            else:
                self._blocks.append(block)
        self._changed.set()
