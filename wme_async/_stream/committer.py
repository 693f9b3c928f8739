"""Saving positions: in order, one save at a time, and never ahead of what was processed."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from wme_async._stream.partitions import Partitions
from wme_async._stream.reports import StreamCommitFailed, StreamCommitted, StreamEvent
from wme_async._telemetry import log_fields
from wme_async.errors import StreamError
from wme_async.offsets import OffsetStore
from wme_async.offsets.protocol import Position

logger: logging.Logger = logging.getLogger("wme_async.stream")

_FAILURES = 3  # failed saves in a row after which the stream ends
_COMPLETE_EVERY = 12  # periodic saves after which one writes all partitions, changed or not


class Committer:
    """Saves the positions of one stream.

    Args:
        store: The store.
        key: The name of the positions.
        partitions: How far they were processed.
        notify: Called with events for the hook.
    """

    def __init__(
        self, store: OffsetStore, key: str, partitions: Partitions, *, notify: Callable[[StreamEvent], None]
    ) -> None:
        self._store = store
        self._key = key
        self._partitions = partitions
        self._notify = notify
        self._saved: dict[int, Position] = {}
        self._lock = asyncio.Lock()
        self._failures = 0
        self._periodic_saves = 0

    async def begin(self, loaded: Mapping[int, Position]) -> None:
        """Save the start of partitions that have no position yet.

        Args:
            loaded: The positions in the store.
        """
        self._saved = dict(loaded)
        await self.save()

    async def save(self, *, complete: bool = False) -> None:
        """Save the positions that have changed.

        Args:
            complete: Save all of them, in case the stored ones were deleted meanwhile.

        Raises:
            Exception: Any exception of the store.
        """
        async with self._lock:
            # Taken inside: an older state must not be written over a newer one.
            positions = self._partitions.positions()
            if not complete:
                positions = {
                    number: position for number, position in positions.items() if self._saved.get(number) != position
                }
            if not positions:
                return
            await self._store.save(self._key, positions)
            self._saved.update(positions)
        self._failures = 0
        self._notify(StreamCommitted(partitions=len(positions)))

    async def save_last(self, seconds: float) -> None:
        """Save all positions, unless it takes too long: another process may have the storage locked.

        Args:
            seconds: How long it may take.

        Raises:
            StreamError: It took longer.
            Exception: Any exception of the store.
        """
        try:
            async with asyncio.timeout(seconds) as timeout:
                await self.save(complete=True)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise StreamError(
                f"the positions {self._key!r} could not be saved within {seconds:g} s of closing the stream, and the "
                "events since the last save will come again: see whether another process has their storage locked"
            ) from error

    async def save_periodically(self) -> None:
        """Save; log a failure, and raise it only if it repeats.

        Raises:
            Exception: Any exception of the store, the third time in a row.
        """
        self._periodic_saves += 1
        try:
            await self.save(complete=self._periodic_saves % _COMPLETE_EVERY == 0)
        except Exception as error:
            self._failures += 1
            logger.warning(
                "positions %r could not be saved: %s", self._key, error, extra=log_fields(error, stream=self._key)
            )
            self._notify(StreamCommitFailed(error=error, failures=self._failures))
            if self._failures >= _FAILURES:
                raise
