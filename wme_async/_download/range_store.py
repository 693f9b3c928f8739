"""The destination of ranges: a part file, or the window of a reader."""

from collections.abc import Awaitable
from typing import Protocol

from wme_async._download.range_plan import RangeLease


class RangeStore(Protocol):
    """Takes the bytes of ranges."""

    def open_lease(self, lease: RangeLease) -> None:
        """Begin to record the progress of a lease."""

    def close_lease(self, lease: RangeLease) -> None:
        """End the record of a lease."""

    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Write bytes, at once or when the result has been awaited."""

    def advanced(self, lease: RangeLease) -> None:
        """Record that the bytes of a lease before `lease.at` are written."""

    def limit(self) -> int | None:
        """Return the offset below which bytes may be requested now; None for no limit."""
