"""The change feed of a mirror, read by consumers that have a position each."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Protocol

import msgspec

from wme_async.errors import DataError, DecodeError
from wme_async.mirror.protocol import Change, Marks, Store
from wme_async.mirror.rule import Picture
from wme_async.models.decoding import decode_json

__all__ = ["Feed", "FeedChange", "Watch", "position_of"]

_PAGE: Final = 1000  # changes in one request to the store
_SAVE: Final = 0.5  # seconds between two saves of a position while changes are at hand
_POLL: Final = 0.5  # seconds between two looks at a store that another process writes


class _Position(msgspec.Struct):
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


_position: Final = msgspec.json.Decoder(_Position)


def position_of(text: str) -> int:
    """Return the number of the last change that a consumer has processed, from its mark.

    Raises:
        DataError: The mark is not one of a consumer.
    """
    try:
        return decode_json(text.encode(), _position).seq
    except DecodeError as error:
        raise DataError(f"the position of a consumer is damaged ({error}): remove it, or restore a copy") from error


class FeedChange(Change, frozen=True, kw_only=True):
    """A change that a consumer can acknowledge; the attributes are those of `Change`."""

    _feed: Any

    async def ack(self) -> None:
        """Count this change, and those before it, as processed.

        The position is saved within half a second, and when the consumer waits for more or closes; after a crash,
        changes that were acknowledged later come again.
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


class Feed(AsyncIterator[FeedChange]):
    """The changes of a store for one consumer, as an async iterator.

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
        self._changes: deque[Change] = deque()
        self._after: int | None = None
        self._acknowledged = 0
        self._saved = 0
        self._saved_at = 0.0

    def __repr__(self) -> str:
        return f"<Feed {self._consumer!r} after {self._after}>"

    async def __anext__(self) -> FeedChange:
        """Return the next change; with `wait`, wait for it.

        Raises:
            DataError: The store is damaged.
            OSError: It cannot be read or written.
            RuntimeError: It is closed.
        """
        if self._after is None:
            text = await self._store.value("consumers", self._consumer)
            self._after = self._acknowledged = self._saved = 0 if text is None else position_of(text)
        while not self._changes:
            seen = 0 if self._watch is None else self._watch.seq
            self._changes.extend(await self._store.changes(self._after, _PAGE))
            if self._changes:
                break
            await self.save()
            if not self._wait:
                raise StopAsyncIteration
            await (asyncio.sleep(_POLL) if self._watch is None else self._watch.changed(seen))
        change = self._changes.popleft()
        self._after = change.seq
        return FeedChange(_feed=self, **{name: getattr(change, name) for name in _FIELDS})

    async def acknowledge(self, seq: int) -> None:
        """Count changes up to a number as processed."""
        self._acknowledged = max(self._acknowledged, seq)
        if asyncio.get_running_loop().time() - self._saved_at >= _SAVE:
            await self.save()

    async def save(self) -> None:
        """Save the position of what was acknowledged."""
        if self._acknowledged > self._saved:
            seq = self._acknowledged
            value = msgspec.json.encode(_Position(seq)).decode()
            await self._store.apply(Picture(), Marks(values={"consumers": {self._consumer: value}}))
            self._saved, self._saved_at = seq, asyncio.get_running_loop().time()

    async def aclose(self) -> None:
        """Save the position. Closing the mirror, or its reader, does the same."""
        await self.save()


_FIELDS: Final = Change.__struct_fields__
