"""The retained events of one partition: stored ones, and ones that exist only as a function of their number."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Entry", "PartitionLog"]


class Entry(NamedTuple):
    """One event.

    Attributes:
        offset: Its position in the partition.
        published: Its publication time in milliseconds since 1970.
        head: The JSON before `"partition":..,"offset":..`, the comma or brace included.
        tail: The JSON behind; None for a raw line without partition and offset.
    """

    offset: int
    published: int
    head: bytes
    tail: bytes | None


@dataclass(eq=False)
class _Stored:
    entries: list[Entry] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.entries[-1].offset + 1 if self.entries else 0

    def read(self, offset: int, limit: int) -> list[Entry]:
        start = bisect_left(self.entries, offset, key=lambda entry: entry.offset)
        return self.entries[start : start + limit]

    def since(self, moment: int) -> int | None:
        return next((entry.offset for entry in self.entries if entry.published >= moment), None)

    def expire(self, moment: int) -> int | None:
        """Drop older events; return the offset after the last one, or None if there are none."""
        count = next((n for n, entry in enumerate(self.entries) if entry.published >= moment), len(self.entries))
        return self.drop(count)

    def drop(self, count: int) -> int | None:
        if not count:
            return None
        last = self.entries[count - 1].offset
        del self.entries[:count]
        return last + 1

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(eq=False)
class _Virtual:
    """Events that reading makes: offset `first` + n holds the event `numbers[n]`."""

    first: int
    numbers: range
    time: Callable[[int], int]
    make: Callable[[int], tuple[bytes, bytes | None]]
    dropped: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.numbers)

    def read(self, offset: int, limit: int) -> list[Entry]:
        start = max(self.dropped, offset - self.first)
        return [
            Entry(self.first + position, self.time(number), *self.make(number))
            for position, number in enumerate(self.numbers[start : start + limit], start)
        ]

    def _position(self, moment: int) -> int:
        return bisect_left(self.numbers, moment, lo=self.dropped, key=self.time)

    def since(self, moment: int) -> int | None:
        position = self._position(moment)
        return self.first + position if position < len(self.numbers) else None

    def expire(self, moment: int) -> int | None:
        return self.drop(self._position(moment) - self.dropped)

    def drop(self, count: int) -> int | None:
        self.dropped += count
        return self.first + self.dropped if count else None

    def __len__(self) -> int:
        return len(self.numbers) - self.dropped


class PartitionLog:
    """The log of one partition.

    Attributes:
        base: The lowest offset that has not expired.
        end: The offset of the next event.
    """

    def __init__(self, base: int = 0) -> None:
        self.base: int = base
        self.end: int = base
        self._segments: list[_Stored | _Virtual] = []

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def append(self, published: int, head: bytes, tail: bytes | None) -> int:
        """Add one event and return its offset."""
        if not self._segments or not isinstance(self._segments[-1], _Stored):
            self._segments.append(_Stored())
        segment = self._segments[-1]
        assert isinstance(segment, _Stored)
        offset = self.end
        segment.entries.append(Entry(offset, published, head, tail))
        self.end = offset + 1
        return offset

    def extend(
        self, numbers: range, time: Callable[[int], int], make: Callable[[int], tuple[bytes, bytes | None]]
    ) -> None:
        """Add an event for each number, made when it is read.

        Args:
            numbers: The numbers of the events.
            time: Returns the publication time of a number in milliseconds since 1970; it never falls.
            make: Returns head and tail of a number.
        """
        self._segments.append(_Virtual(self.end, numbers, time, make))
        self.end += len(numbers)

    def skip(self, count: int) -> None:
        """Leave a gap of `count` offsets, as events that are not for clients do."""
        self.end += count

    def read(self, offset: int, limit: int) -> list[Entry]:
        """Return up to `limit` events from an offset on, without the gaps between them."""
        for segment in self._segments:
            if len(segment) and segment.end > offset:
                return segment.read(offset, limit)
        return []

    def since(self, moment: int) -> int:
        """Return the first offset published at or after a time (milliseconds), or the end."""
        return next((offset for segment in self._segments if (offset := segment.since(moment)) is not None), self.end)

    def expire(self, moment: int) -> None:
        """Drop events published before a time (milliseconds)."""
        for segment in self._segments:
            self.base = segment.expire(moment) or self.base
            if len(segment):
                break
        self._segments = [segment for segment in self._segments if len(segment)]

    def trim(self, keep: int) -> None:
        """Keep only the newest `keep` events."""
        for segment in self._segments:
            self.base = segment.drop(min(len(segment), max(0, len(self) - keep))) or self.base
        self._segments = [segment for segment in self._segments if len(segment)]

    def start(self, how: str, value: int) -> tuple[int, bool]:
        """Resolve a start position as the broker's client does.

        Args:
            how: "time" (milliseconds), "offset" or "live".
            value: The time or the offset; -2 is the beginning and -1 the end.

        Returns:
            The first offset to read, and whether the requested one was out of range: reading then silently starts live.
        """
        if how == "time":
            return self.since(value), False
        if how == "live" or value == -1:
            return self.end, False
        if value == -2:
            return self.base, False
        if self.base <= value <= self.end:
            return value, False
        return self.end, True
