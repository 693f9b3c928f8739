"""Saving positions: in order, one save at a time, and never ahead of what was processed."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from wme_async._protocol.positions import Position
from wme_async._stream.progress import Progress
from wme_async._stream.records import StreamCommitFailed, StreamCommitted, StreamEvent
from wme_async.offsets import OffsetStore

__all__ = ["Keeper"]

logger = logging.getLogger("wme_async.stream")

_FAILURES = 3  # failed saves in a row that are put up with


class Keeper:
    """Saves the positions of one stream.

    Args:
        store: Where to.
        key: Under which name.
        progress: What was processed.
        tell: Told of saves.
    """

    def __init__(
        self, store: OffsetStore, key: str, progress: Progress, *, tell: Callable[[StreamEvent], None]
    ) -> None:
        self._store = store
        self._key = key
        self._progress = progress
        self._tell = tell
        self._saved: dict[int, Position] = {}
        self._lock = asyncio.Lock()
        self._failures = 0

    async def begin(self, loaded: Mapping[int, Position]) -> None:
        """Save where partitions begin that have no position yet.

        Args:
            loaded: What the store has.
        """
        self._saved = dict(loaded)
        await self.save()

    async def save(self) -> None:
        """Save what has changed.

        Raises:
            Exception: What the store raises.
        """
        async with self._lock:
            # Taken inside: an older state must not be written over a newer one.
            changed = {p: new for p, new in self._progress.positions().items() if self._saved.get(p) != new}
            if not changed:
                return
            await self._store.save(self._key, changed)
            self._saved.update(changed)
        self._failures = 0
        self._tell(StreamCommitted(partitions=len(changed)))

    async def save_or_tell(self) -> None:
        """Save; a failure is told, and raised only if it goes on.

        Raises:
            Exception: What the store raised, the third time in a row.
        """
        try:
            await self.save()
        except Exception as error:
            self._failures += 1
            logger.warning("positions %r could not be saved: %s", self._key, error)
            self._tell(StreamCommitFailed(error=error, failures=self._failures))
            if self._failures >= _FAILURES:
                raise
