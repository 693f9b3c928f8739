"""The change feed of a mirror, read by consumers that have a position each."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, Protocol

import msgspec

from wme_async.errors import DataError
from wme_async.mirror.protocol import Change, Marks, Store
from wme_async.mirror.rule import Picture

__all__ = ["Feed", "FeedChange", "Watch", "position_of"]

_PAGE: Final = 1000  # changes in one request to the store
_SAVE: Final = 0.5  # seconds between two saves of a position while changes are at hand
_POLL: Final = 0.5  # seconds between two looks at a store that another process writes


class _Position(msgspec.Struct):
    seq: int


def position_of(text: str) -> int:
    """Return the number of the last change that a consumer has processed, from its mark.

    Raises:
        DataError: The mark is not one of a consumer.
    """
    try:
        return msgspec.json.decode(text, type=_Position).seq
    except msgspec.DecodeError as error:
        raise DataError(f"the position of a consumer is damaged ({error}): remove it, or restore a copy") from error


class FeedChange(Change, frozen=True, kw_only=True):
    """A change that a consumer can acknowledge; the attributes are those of `Change`."""

    _feed: Any

    async def ack(self) -> None:
        """Count this change, and those before it, as processed.

        The position is saved within half a second, and when the consumer waits for more or ends; after a crash, changes
        that were acknowledged later come again.
        """
        await self._feed.acknowledge(self.seq)

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in Change.__struct_fields__)
        return f"FeedChange({', '.join(fields)})"


class Watch(Protocol):
    """Knows when a store has more changes."""

    seq: int
    """The number of the last change."""

    async def changed(self, seq: int) -> None:
        """Wait until the last change is after a number."""
        ...


class Feed:
    """Yields the changes of a store to one consumer.

    Args:
        store: The store, open.
        consumer: The name of the position.
        wait: Whether to wait for more at the end.
        watch: Knows when the store has more changes; None if another process writes it.
    """

    def __init__(self, store: Store, consumer: str, *, wait: bool, watch: Watch | None) -> None:
        self._store = store
        self._consumer = consumer
        self._wait = wait
        self._watch = watch
        self._acknowledged = 0
        self._saved = 0
        self._saved_at = 0.0

    async def run(self) -> AsyncGenerator[FeedChange]:
        """Yield the changes after the position; the position is saved when it ends."""
        text = await self._store.value("consumers", self._consumer)
        after = 0 if text is None else position_of(text)
        self._acknowledged = self._saved = after
        try:
            while True:
                seen = 0 if self._watch is None else self._watch.seq
                changes = await self._store.changes(after, _PAGE)
                for change in changes:
                    yield FeedChange(_feed=self, **{name: getattr(change, name) for name in _FIELDS})
                    after = change.seq
                if len(changes) < _PAGE:
                    await self._save()
                if changes:
                    continue
                if not self._wait:
                    return
                await (asyncio.sleep(_POLL) if self._watch is None else self._watch.changed(seen))
        finally:
            await self._save()

    async def acknowledge(self, seq: int) -> None:
        """Count changes up to a number as processed."""
        self._acknowledged = max(self._acknowledged, seq)
        if asyncio.get_running_loop().time() - self._saved_at >= _SAVE:
            await self._save()

    async def _save(self) -> None:
        if self._acknowledged > self._saved:
            seq = self._acknowledged
            value = msgspec.json.encode(_Position(seq)).decode()
            await self._store.apply(Picture(), Marks(values={"consumers": {self._consumer: value}}))
            self._saved, self._saved_at = seq, asyncio.get_running_loop().time()


_FIELDS: Final = Change.__struct_fields__
