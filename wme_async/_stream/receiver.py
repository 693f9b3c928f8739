"""The connections of a stream and its clock, in one task of their own."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from wme_async._stream.buffer import BlockQueue, RecordBlock
from wme_async._stream.committer import Committer
from wme_async._stream.connection import Connection, Settings
from wme_async._stream.outage import Outage
from wme_async._stream.partitions import Partitions
from wme_async._stream.resume import deal
from wme_async._tasks import WorkGroup, first_cause
from wme_async._transport import Transport
from wme_async.errors import StreamError

_TICK = 5.0  # seconds
_TURN = 256 * 1024  # bytes that the consumer takes before other tasks get their turn


class Receiver:
    """Receives blocks for the consumer, notices silence, and saves positions periodically.

    Attributes:
        connections: The connections.
        buffer: The blocks that are not decoded yet.
        failure: The reason why the task has ended; None while it runs.

    Args:
        key: The name of the stream's positions.
        parts: The parts to read.
        transport: Sends requests, and has the clocks.
        settings: The settings that all connections share.
        partitions: How far the partitions were read.
        committer: Saves positions.
    """

    def __init__(
        self,
        key: str,
        parts: tuple[int, ...],
        *,
        transport: Transport,
        settings: Settings,
        partitions: Partitions,
        committer: Committer,
    ) -> None:
        options = settings.options
        self.buffer = BlockQueue(options["max_buffer"])
        outage = Outage(key, options["connections"])
        self.connections = [
            Connection(
                number,
                share,
                transport=transport,
                settings=settings,
                partitions=partitions,
                buffer=self.buffer,
                outage=outage,
            )
            for number, share in enumerate(deal(parts, options["connections"]))
        ]
        self._key = key
        self._transport = transport
        self._interval = options["commit_interval"]
        self._commits = options["commit"] != "manual"
        self._partitions = partitions
        self._committer = committer
        self.failure: BaseException | None = None
        self._turn = 0  # bytes taken in this turn

    def server_now(self) -> datetime:
        """Return the server's clock, UTC."""
        return datetime.fromtimestamp(self._transport.server_now("realtime"), UTC)

    def start(self, on_tick: Callable[[], None]) -> None:
        """Start the task. It holds the scopes of the connections, so that none is held across the user's block.

        Args:
            on_tick: Called every few seconds.
        """
        self._task = asyncio.create_task(self._run(on_tick), name=f"wme stream {self._key}")

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self, on_tick: Callable[[], None]) -> None:
        try:
            async with WorkGroup() as tasks:
                for connection in self.connections:
                    tasks.start(connection.run(), name=f"wme connection {connection.number} of {self._key}")
                tasks.start(self._run_clock(on_tick), name=f"wme clock of {self._key}")
        except BaseExceptionGroup as group:
            self.failure = first_cause(group)
        except asyncio.CancelledError:
            self.failure = StreamError("the stream's task was cancelled")
            raise
        finally:
            self.buffer.wake()

    async def _run_clock(self, on_tick: Callable[[], None]) -> None:
        last = saved = self._transport.monotonic()
        while True:
            await self._transport.sleep(min(_TICK, self._interval))
            now = self._transport.monotonic()
            self._partitions.tick(now - last, now=self.server_now(), connected=self._listening())
            on_tick()
            last = now
            if self._commits and now - saved >= self._interval * 0.99:
                saved = now
                await self._committer.save_periodically()

    def _listening(self) -> set[int]:
        """Return the partitions whose silence means that they have no events."""
        if self.buffer.full:
            return set()
        return {number for connection in self.connections if connection.listening for number in connection.partitions}

    async def next_block(self) -> RecordBlock | None:
        """Return the next block; if there is none, wait for one or for the end of the task, and return None."""
        block = self.buffer.take()
        if block is None:
            self._turn = 0
            await self.buffer.wait()
            return None
        self._turn += block.size
        return block

    async def yield_turn(self) -> None:
        """Let other tasks run if the consumer has taken much since it last waited."""
        if self._turn > _TURN:
            self._turn = 0
            await asyncio.sleep(0)
