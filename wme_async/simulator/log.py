"""The retained events of one partition: stored ones, and ones that are made when they are read."""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Entry", "PartitionLog"]


class Entry(NamedTuple):
    """One event as it waits to be sent.

    Attributes:
        offset: Its place in the partition.
        published: When, in milliseconds since 1970.
        head: The JSON up to where `"partition":..,"offset":..` belongs, a comma or brace before it.
        tail: The JSON from there on; None for a raw line that takes no partition and offset.
    """

    offset: int
    published: int
    head: bytes
    tail: bytes | None


class _Stored:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @property
    def end(self) -> int:
        return self.entries[-1].offset + 1 if self.entries else 0

    def read(self, offset: int, limit: int) -> list[Entry]:
        start = bisect_left(self.entries, offset, key=lambda entry: entry.offset)
        return self.entries[start : start + limit]

    def since(self, moment: int) -> int | None:
        return next((entry.offset for entry in self.entries if entry.published >= moment), None)

    def expire(self, moment: int) -> int | None:
        """Drop what is older; return the first offset after what was dropped."""
        kept = next((n for n, entry in enumerate(self.entries) if entry.published >= moment), len(self.entries))
        return self.drop(kept)

    def drop(self, count: int) -> int | None:
        if not count:
            return None
        last = self.entries[count - 1].offset
        del self.entries[:count]
        return last + 1

    def __len__(self) -> int:
        return len(self.entries)


class _Virtual:
    """Events that exist only as a function of their number, `count` of them from offset `first` on."""

    def __init__(
        self, first: int, count: int, time: Callable[[int], int], make: Callable[[int], tuple[bytes, bytes]]
    ) -> None:
        self.first = first
        self.gone = 0
        self.count = count
        self._time = time
        self._make = make

    @property
    def end(self) -> int:
        return self.first + self.count

    def read(self, offset: int, limit: int) -> list[Entry]:
        start = max(self.gone, offset - self.first)
        return [
            Entry(self.first + number, self._time(number), *self._make(number))
            for number in range(start, min(self.count, start + limit))
        ]

    def since(self, moment: int) -> int | None:
        number = bisect_left(range(self.count), moment, lo=self.gone, key=self._time)
        return self.first + number if number < self.count else None

    def expire(self, moment: int) -> int | None:
        gone = bisect_left(range(self.count), moment, lo=self.gone, key=self._time)
        return self.drop(gone - self.gone)

    def drop(self, count: int) -> int | None:
        if not count:
            return None
        self.gone += count
        return self.first + self.gone

    def __len__(self) -> int:
        return self.count - self.gone


class PartitionLog:
    """The log of one partition.

    Attributes:
        base: The lowest offset that can be asked for; what was before has expired.
        end: The offset that the next event will get.
    """

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.end = base
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

    def extend(self, count: int, time: Callable[[int], int], make: Callable[[int], tuple[bytes, bytes]]) -> None:
        """Add `count` events that are made when read, from their number (0 up) within this call.

        Args:
            count: How many.
            time: Milliseconds since 1970 of an event; it must not fall.
            make: Head and tail of an event.
        """
        self._segments.append(_Virtual(self.end, count, time, make))
        self.end += count

    def skip(self, count: int) -> None:
        """Leave a hole of so many offsets, as events that are not for clients do."""
        self.end += count

    def read(self, offset: int, limit: int) -> list[Entry]:
        """Return up to `limit` events from an offset on; holes are passed over."""
        for segment in self._segments:
            if len(segment) and segment.end > offset:
                return segment.read(offset, limit)
        return []

    def since(self, moment: int) -> int:
        """Return the first offset published at or after a time (milliseconds), or the end."""
        return next((found for segment in self._segments if (found := segment.since(moment)) is not None), self.end)

    def expire(self, moment: int) -> None:
        """Forget what was published before a time (milliseconds)."""
        for segment in self._segments:
            self.base = segment.expire(moment) or self.base
            if len(segment):
                break
        self._segments = [segment for segment in self._segments if len(segment)]

    def trim(self, keep: int) -> None:
        """Forget the oldest events beyond a number."""
        for segment in self._segments:
            self.base = segment.drop(min(len(segment), max(0, len(self) - keep))) or self.base
        self._segments = [segment for segment in self._segments if len(segment)]

    def start(self, how: str, value: int) -> tuple[int, bool]:
        """Resolve a start position as the broker's client does.

        Args:
            how: "time" (milliseconds), "offset" or "live".
            value: The time or the offset; -2 is the beginning and -1 the end.

        Returns:
            The offset to read from, and whether the wish was out of range, so that reading silently starts live.
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
