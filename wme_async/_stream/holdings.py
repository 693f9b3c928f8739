"""The leases that one member of a group holds, by its own clock. Pure.

The store says which leases a member has; a host that was asleep, or cut off, cannot ask it in time. So each lease has a
deadline here too. It counts from before the request that took or renewed the lease, and comes a little earlier than the
end of the lease, since clocks run at slightly different speeds. Past the deadline the member does not hold the part,
whatever the store will say.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

_MARGIN: Final = 0.05  # of a lease; the clocks of two machines differ by far less


class Holding(msgspec.Struct, eq=False):
    """A lease, from the side of its owner.

    Attributes:
        part: The part.
        token: Its fencing token.
        deadline: The time by the clock of this machine from which it does not count, in seconds.
        leaving: Whether it is to be given back.
    """

    part: int
    token: int
    deadline: float
    leaving: bool = False


class Renewal(msgspec.Struct, frozen=True):
    """What a renewal changed.

    Attributes:
        taken: New leases, of which the answer to the request that took them was lost.
        lost: Leases that this member no longer has.
        stale: Parts that the store still counts as this member's, and whose leases it has ended itself.
    """

    taken: list[Holding]
    lost: list[Holding]
    stale: list[int]


class Holdings:
    """What one member holds.

    Attributes:
        by_part: The leases.

    Args:
        ttl: Seconds that a lease lasts from a renewal.
    """

    def __init__(self, ttl: float) -> None:
        self.by_part: dict[int, Holding] = {}
        self._valid = ttl * (1 - _MARGIN)
        self._ended: dict[int, int] = {}  # the newest token of each part that was ended here

    def renew(self, held: Mapping[int, int], sent: float) -> Renewal:
        """Compare with what the store says.

        Args:
            held: The token of each part, from the store.
            sent: The time just before the request.
        """
        lost = [holding for part, holding in self.by_part.items() if held.get(part) != holding.token]
        for holding in lost:
            self.end(holding)
        unknown: dict[int, int] = {}
        stale: list[int] = []
        for part, token in held.items():
            if part in self.by_part:
                self.by_part[part].deadline = sent + self._valid
            elif token == self._ended.get(part):
                stale.append(part)
            else:
                unknown[part] = token
        return Renewal(self.take(unknown, sent), lost, stale)

    def take(self, taken: Mapping[int, int], sent: float) -> list[Holding]:
        """Note leases that the store granted.

        Args:
            taken: The token of each part.
            sent: The time just before the request.
        """
        holdings = [Holding(part, token, sent + self._valid) for part, token in sorted(taken.items())]
        self.by_part.update((holding.part, holding) for holding in holdings)
        return holdings

    def end(self, holding: Holding) -> None:
        """Forget a lease for good: even if the store still counts it, it will not begin again."""
        if self.by_part.get(holding.part) is holding:
            del self.by_part[holding.part]
        self._ended[holding.part] = holding.token

    def surplus(self, share: int) -> list[Holding]:
        """Mark the leases above this member's share as leaving, and return those that were not yet.

        Nothing is given back within the share, so that two members never pass a part back and forth.
        """
        staying = [holding for _, holding in sorted(self.by_part.items()) if not holding.leaving]
        surplus = staying[share:]
        for holding in surplus:
            holding.leaving = True
        return surplus
