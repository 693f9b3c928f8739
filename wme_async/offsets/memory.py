"""Positions for as long as the process lives."""

import contextlib
from collections.abc import AsyncIterator, Mapping

from wme_async.offsets.protocol import Position, check_name, check_positions, in_use

__all__ = ["MemoryOffsets"]


class MemoryOffsets:
    """Keeps positions in memory: for tests, and for users who store them elsewhere, with the data.

    Args:
        positions: The first positions, by name such as `"default/articles"`.

    Raises:
        TypeError: They are not positions by name and partition.
    """

    def __init__(self, positions: Mapping[str, Mapping[int, Position]] | None = None) -> None:
        if positions is not None and not isinstance(positions, Mapping):
            raise TypeError(f"positions must be a dict of name and positions, not {positions!r}")
        for name, by_partition in (positions or {}).items():
            check_positions(name, by_partition)
        self._positions = {name: dict(by_partition) for name, by_partition in (positions or {}).items()}
        self._claimed: set[str] = set()

    def __repr__(self) -> str:
        return f"MemoryOffsets({sorted(self._positions)})"

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition."""
        check_name(name)
        return dict(self._positions.get(name, {}))

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save these positions, leaving other partitions as they are."""
        check_positions(name, positions)
        self._positions.setdefault(name, {}).update(positions)

    @contextlib.asynccontextmanager
    async def claim(self, name: str) -> AsyncIterator[None]:
        """Keep other streams that use this object off the name.

        Raises:
            StreamError: Another one holds it.
        """
        if name in self._claimed:
            raise in_use(name, "in this process")
        self._claimed.add(name)
        try:
            yield
        finally:
            self._claimed.discard(name)
