"""The values in the consumer's hands: which event each one is, and whether it counts as processed."""

import itertools
from collections.abc import Mapping
from typing import Generic, TypeVar

from wme_async._stream.decoder import SKIP, Run
from wme_async._stream.partitions import Partitions
from wme_async._stream.record_types import EventLike, RecordType

T = TypeVar("T")


class Deliveries(Generic[T]):
    """Keeps track of the values that are handed out.

    Args:
        record_type: Tells whether a value has its own event.
        partitions: Count events as processed.
        one_by_one: Whether each value is acknowledged on its own (`commit="ack"`). Otherwise it counts as processed
            when the next one is requested.
    """

    def __init__(self, record_type: RecordType[T], partitions: Partitions, *, one_by_one: bool) -> None:
        self.one_by_one = one_by_one
        self._record_type = record_type
        self._partitions = partitions
        # By identity. A reference to the value prevents that another object gets the same identity.
        self._unacknowledged: dict[int, tuple[T, EventLike]] = {}
        self._batch: dict[int, tuple[T, EventLike]] = {}
        self._batch_ends: Mapping[int, EventLike] = {}

    def hand_out(self, item: T, event: EventLike) -> None:
        """Note that a value waits for its own acknowledgement."""
        self._partitions.hand_out(event)
        if item is SKIP:
            self._partitions.acknowledge(event)
        elif not self._record_type.has_position:
            self._unacknowledged[id(item)] = (item, event)

    def hand_out_batch(self, batch: list[tuple[T, EventLike]]) -> None:
        """Note that a batch is handed out; it counts as processed at the next `settle`."""
        if self.one_by_one:
            for item, event in batch:
                self.hand_out(item, event)
        else:
            self._batch_ends = {event.partition: event for _, event in batch}
        if not self._record_type.has_position:
            self._batch = {id(item): (item, event) for item, event in batch}

    def settle(self) -> None:
        """Count the last batch as processed, since the next value is requested."""
        for number, event in self._batch_ends.items():
            self._partitions.by_number[number].processed = event
        self._batch_ends = {}
        self._batch = {}

    def take(self, run: Run[T], batch: list[tuple[T, EventLike]], limit: int) -> int:
        """Move values of a run into a batch.

        Args:
            run: The run.
            batch: The batch. If it then has no value but `SKIP`, it is emptied: nothing before these is unprocessed.
            limit: The number of values that it may have.

        Returns:
            The number of values in the batch.
        """
        count = sum(item is not SKIP for item, _ in batch)
        while count < limit and (pairs := list(itertools.islice(run.pairs, limit - count))):
            batch += pairs
            count += sum(item is not SKIP for item, _ in pairs)
        if not count:
            for item, event in batch:
                if self.one_by_one:
                    self.hand_out(item, event)
                else:
                    self._partitions.by_number[event.partition].processed = event
            batch.clear()
        return count

    def event_of(self, item: T, run: Run[T]) -> EventLike | None:
        """Return the event of a value that was handed out; None if it is not known.

        Args:
            item: The value.
            run: The present run.
        """
        if self._record_type.has_position:
            event: EventLike | None = getattr(item, "event", None)
            return None if event is None or event.offset is None else event
        pair = self._unacknowledged.get(id(item)) or self._batch.get(id(item))
        if pair is not None:
            return pair[1]
        return next((event for other, event in zip(run.items, run.events, strict=True) if other is item), None)

    def acknowledge(self, item: T, run: Run[T], *, backfilled: bool) -> None:
        """Count a value as processed; and those before it in its partition, unless they are acknowledged one by one.

        Args:
            item: The value.
            run: The present run.
            backfilled: Whether the value handed out last is from a batch and has no position.

        Raises:
            TypeError: The value is not an event.
            ValueError: The value is not from this stream, or too old to be known.
        """
        event = self.event_of(item, run)
        if event is None:
            self._record_type.check_value(item)
            if not backfilled and not self.one_by_one and not self._record_type.has_position:
                raise ValueError("this article is not from this stream, or too old to be known: ack it when you get it")
        elif self.one_by_one:
            self._unacknowledged.pop(id(item), None)
            self._partitions.acknowledge(event)
        else:
            self._partitions.acknowledge_up_to(event)
