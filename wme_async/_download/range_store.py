"""The destination of the bytes of a file: a part file, or the window of a reader."""

from abc import abstractmethod
from collections.abc import Awaitable

from wme_async._download.range_plan import RangeLease
from wme_async.errors import WMEError


class RangeStore:
    """Takes the bytes of a file, in ranges or from its beginning."""

    @abstractmethod
    def write(self, offset: int, data: memoryview) -> Awaitable[None] | None:
        """Write bytes, at once or when the result has been awaited."""

    @abstractmethod
    async def restart(self, error: WMEError) -> None:
        """Drop all bytes after a failed attempt at the whole file, or raise its error if they are in use."""

    def open_lease(self, lease: RangeLease) -> None:
        """Begin to record the progress of a lease."""

    def close_lease(self, lease: RangeLease) -> None:
        """End the record of a lease."""

    def advanced(self, lease: RangeLease) -> None:
        """Record that the bytes of a lease before `lease.at` are written."""

    def limit(self) -> int | None:
        """Return the offset below which bytes may be requested now; None for no limit, as for a disk."""
        return None
