"""The values in the hands of a group's consumer: which part each is from, and whether it counts as processed."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from wme_async._stream.part_reader import PartReader
from wme_async._stream.record_types import EventLike

T = TypeVar("T")


class GroupDeliveries(Generic[T]):
    """Keeps track of the values that are handed out.

    Args:
        readers: The readers by part.
        size: The number of partitions of a part.
        one_by_one: Whether each value is acknowledged on its own (`commit="ack"`). Otherwise it counts as processed
            when the next one is requested.
        on_processed: Called with the reader of a value that counts as processed.
    """

    def __init__(
        self,
        readers: Mapping[int, PartReader[T]],
        size: int,
        *,
        one_by_one: bool,
        on_processed: Callable[[PartReader[T]], object],
    ) -> None:
        self._readers = readers
        self._size = size
        self._one_by_one = one_by_one
        self._on_processed = on_processed
        self._in_hand: list[tuple[PartReader[T], T]] = []
        # With commit="ack", by identity: a reference to the value keeps its identity from being used again.
        self._unacknowledged: dict[int, tuple[PartReader[T], T]] = {}

    def hand_out(self, reader: PartReader[T], item: T) -> None:
        """Note that a value is handed out."""
        reader.in_hand += 1
        if self._one_by_one:
            self._unacknowledged[id(item)] = (reader, item)
        else:
            self._in_hand.append((reader, item))

    def settle(self) -> None:
        """Count what was handed out last as processed, since more is requested."""
        pairs, self._in_hand = self._in_hand, []
        for reader, item in pairs:
            reader.in_hand -= 1
            reader.ack(item)
            self._on_processed(reader)

    def forget(self, reader: PartReader[T]) -> None:
        """Forget the values of a part that is no longer read and that wait for their own acknowledgement."""
        for key in [key for key, (other, _) in self._unacknowledged.items() if other is reader]:
            del self._unacknowledged[key]

    def event_of(self, item: T) -> EventLike | None:
        """Return the event of a value that is in hand; None if it is not known, or has no offset."""
        if self._one_by_one:
            reader, _ = self._unacknowledged.get(id(item), (None, None))
        else:
            reader = next((reader for reader, other in self._in_hand if other is item), None)
        return None if reader is None else reader.stream.event_of(item)

    def acknowledge(self, item: T, place: tuple[int, int] | None) -> bool:
        """Count a value as processed; and those before it in its partition, unless they are acknowledged one by one.

        Args:
            item: The value.
            place: Its partition and offset, if it has them itself.

        Returns:
            Whether it is known.
        """
        return self._ack_one(item, place) if self._one_by_one else self._ack_up_to(item, place)

    def _ack_one(self, item: T, place: tuple[int, int] | None) -> bool:
        reader, known = self._unacknowledged.get(id(item), (None, None))
        if reader is not None and known is item:
            del self._unacknowledged[id(item)]
            reader.in_hand -= 1
        else:
            # A copy, as from another process.
            reader = None if place is None else self._readers.get(place[0] // self._size)
        if reader is None:
            return False
        reader.ack(item)
        self._on_processed(reader)
        return True

    def _ack_up_to(self, item: T, place: tuple[int, int] | None) -> bool:
        known = False
        for reader, other in self._in_hand:
            if other is item:
                reader.ack(other)
                return True
            if place is not None and place[0] == (event := cast("Any", other).event).partition:
                before = event.offset is not None and event.offset <= place[1]
                known = known or before
                if before:
                    reader.ack(other)
        return known
