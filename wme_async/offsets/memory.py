"""Positions for as long as the process lives."""

import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from wme_async._arguments import check_functions
from wme_async.offsets.lease_table import LeaseTable
from wme_async.offsets.protocol import Position, check_lease, check_name, check_positions, in_use

__all__ = ["MemoryOffsets"]


class MemoryOffsets:
    """Keeps positions in memory: for tests, and for users who store them elsewhere, with the data.

    Streams of this process can share parts through one such object (`share="group"`), for example in tests.

    Args:
        positions: The first positions, by name such as `"default/articles"`.
        clock: The clock of the leases: returns seconds, and never goes back.

    Raises:
        TypeError: They are not positions by name and partition, or the clock is not a function.
    """

    def __init__(
        self,
        positions: Mapping[str, Mapping[int, Position]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_functions(clock=clock)
        if positions is not None and not isinstance(positions, Mapping):
            raise TypeError(f"positions must be a dict of name and positions, not {positions!r}")
        for name, by_partition in (positions or {}).items():
            check_positions(name, by_partition)
        self._positions = {name: dict(by_partition) for name, by_partition in (positions or {}).items()}
        self._claimed: set[str] = set()
        self._clock = clock
        self._groups: dict[str, LeaseTable] = defaultdict(LeaseTable)

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

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        """Join a group, and take free parts up to this member's share."""
        check_lease(name, owner, ttl, parts)
        return self._groups[name].take(owner, parts, ttl, self._clock())

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        """Extend the leases that a member still has."""
        check_lease(name, owner, ttl)
        return self._groups[name].renew(owner, ttl, self._clock())

    async def members(self, name: str) -> Sequence[str]:
        """Return the live members of a group, in order."""
        check_name(name)
        return self._groups[name].members(self._clock())

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        """Save positions, if this is the last lease of the part."""
        check_positions(name, positions)
        held = self._groups[name].holds(owner, part, token)
        if held:
            await self.save(name, positions)
        return held

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        """Give parts back; with None all of them, and leave the group."""
        check_lease(name, owner)
        self._groups[name].give(owner, parts)
