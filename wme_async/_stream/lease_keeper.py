"""The heartbeat of one member of a group: renew, give back what is above the share, take what is below it."""

import asyncio
from collections.abc import Callable
from typing import Final

from wme_async._stream.holdings import Holding, Holdings
from wme_async.offsets import LeaseStore
from wme_async.offsets.lease_table import share_of

_RENEWALS: Final = 3  # within a lease, so that it survives two that fail
_TAKES: Final = 10  # within a lease, while it has less than its share
_LONGEST_PAUSE: Final = 1.0  # seconds between those


class LeaseKeeper:
    """Keeps the leases of one member.

    Attributes:
        holdings: The leases.
        takes: Whether it takes parts; set it to False before the member leaves.

    Args:
        store: The store.
        name: The name of the positions.
        owner: The member: another one for each start of a process.
        parts: The number of parts.
        ttl: Seconds that a lease lasts from a renewal.
        clock: Returns seconds, and never goes back.
        on_taken: Called with each new lease.
        on_lost: Called with each lease that ended without being given back.
        on_surplus: Called with each lease that is to be given back, by `give`, as soon as that loses nothing.
    """

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        *,
        owner: str,
        parts: int,
        ttl: float,
        clock: Callable[[], float],
        on_taken: Callable[[Holding], object],
        on_lost: Callable[[Holding], object],
        on_surplus: Callable[[Holding], object],
    ) -> None:
        self.holdings = Holdings(ttl)
        self.takes = True
        self._store = store
        self._name = name
        self._owner = owner
        self._parts = parts
        self._ttl = ttl
        self._clock = clock
        self._on_taken = on_taken
        self._on_lost = on_lost
        self._on_surplus = on_surplus
        # A part that is being given back must not be taken at the same time: the request may be repeated.
        self._lock = asyncio.Lock()

    @property
    def pause(self) -> float:
        """Seconds until the next attempt after one that failed."""
        return min(self._ttl / _TAKES, _LONGEST_PAUSE)

    async def beat(self) -> float:
        """Do one heartbeat, and return the seconds until the next.

        Raises:
            Exception: Any exception of the store. The leases stay until their deadlines.
        """
        async with self._lock:
            sent = self._clock()
            renewal = self.holdings.renew(await self._store.renew(self._name, self._owner, self._ttl), sent)
            for holding in renewal.lost:
                self._on_lost(holding)
            for holding in renewal.taken:
                self._on_taken(holding)
            if renewal.stale:
                await self._store.give(self._name, self._owner, renewal.stale)
            members = await self._store.members(self._name)
            # It may not be among them if this machine, or the store, stood still since the renewal.
            if not self.takes or self._owner not in members:
                return self.pause
            share = share_of(self._parts, self._owner, members)
            for holding in self.holdings.surplus(share):
                self._on_surplus(holding)
            if len(self.holdings.by_part) < share:
                sent = self._clock()
                taken = await self._store.take(self._name, self._owner, self._parts, self._ttl)
                for holding in self.holdings.take(taken, sent):
                    self._on_taken(holding)
            return self._ttl / _RENEWALS if len(self.holdings.by_part) >= share else self.pause

    async def give(self, holding: Holding) -> None:
        """Give one lease back.

        Raises:
            Exception: Any exception of the store. The lease has ended here; there it is given back at the next
                heartbeat, or ends by itself.
        """
        async with self._lock:
            self.holdings.end(holding)
            await self._store.give(self._name, self._owner, [holding.part])

    async def leave(self) -> None:
        """Give all leases back, and leave the group.

        Raises:
            Exception: Any exception of the store.
        """
        async with self._lock:
            await self._store.give(self._name, self._owner)
