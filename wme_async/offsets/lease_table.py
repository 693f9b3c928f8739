"""Leases of parts, and how many each member of a group gets. Pure.

A group shares numbered parts among its members. A member holds a lease of each part that it reads, which ends by the
clock of the store unless it is renewed. Each time that a part is taken, its fencing token grows by one: of two owners
of a part, the one with the smaller token is the earlier one.
"""

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

__all__ = ["MEMBERSHIP", "Lease", "LeaseTable", "share_of"]


MEMBERSHIP: Final = 0.5
"""How long a member counts after a renewal, in leases.

A member that is late keeps its parts to the end of their leases. What is free meanwhile is not kept for it so long: if
it has died as well, the others would wait for two leases, one after the other.
"""


def share_of(parts: int, member: str, members: Sequence[str]) -> int:
    """Return how many parts a member may hold.

    The shares add up to the number of parts, and differ by one at most. A member that joins makes no share larger, and
    one that leaves makes none smaller, so parts move only from members that have too many to others that have too few.

    Args:
        parts: The number of parts.
        member: The member.
        members: All live members in order, this one among them.

    Raises:
        ValueError: It is not among them.
    """
    return -((members.index(member) - parts) // len(members))


class Lease(msgspec.Struct, frozen=True):
    """The last lease of a part.

    Attributes:
        owner: The member that has it; None if it was given back.
        token: The fencing token.
        until: Its end, by the clock of the store, in seconds.
    """

    owner: str | None
    token: int
    until: float


class LeaseTable:
    """The leases and the members of one group. Every method takes the time of the store, in seconds.

    Attributes:
        leases: The last lease of each part, which stays after its end: the next token follows from it.
        live_until: When the membership of each member ends.
    """

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}
        self.live_until: dict[str, float] = {}

    def members(self, now: float) -> list[str]:
        """Return the live members, in the order in which shares are dealt out."""
        return sorted(member for member, until in self.live_until.items() if until > now)

    def take(self, owner: str, parts: int, ttl: float, now: float) -> dict[int, int]:
        """Give a member free parts, up to its share, and return their tokens."""
        self.live_until = {member: until for member, until in self.live_until.items() if until > now}
        self.live_until[owner] = now + ttl * MEMBERSHIP
        share = share_of(parts, owner, self.members(now))
        free = []
        for part in range(parts):
            lease = self.leases.get(part)
            if lease is None or lease.owner is None or lease.until <= now:
                free.append(part)
            elif lease.owner == owner:
                share -= 1
        return self._grant(owner, {part: self._last_token(part) + 1 for part in free[: max(0, share)]}, now + ttl)

    def _last_token(self, part: int) -> int:
        return self.leases[part].token if part in self.leases else 0

    def _grant(self, owner: str, tokens: dict[int, int], until: float) -> dict[int, int]:
        self.leases |= {part: Lease(owner, token, until) for part, token in tokens.items()}
        return tokens

    def renew(self, owner: str, ttl: float, now: float) -> dict[int, int]:
        """Extend the leases of a member that have not ended, and return their tokens."""
        self.live_until[owner] = now + ttl * MEMBERSHIP
        held = {part: lease.token for part, lease in self.leases.items() if lease.owner == owner and lease.until > now}
        return self._grant(owner, held, now + ttl)

    def holds(self, owner: str, part: int, token: int) -> bool:
        """Return whether a lease is the last one of its part; it may have ended."""
        lease = self.leases.get(part)
        return lease is not None and lease.owner == owner and lease.token == token

    def give(self, owner: str, parts: Collection[int] | None) -> None:
        """End leases of a member; with None all of them, and its membership."""
        if parts is None:
            self.live_until.pop(owner, None)
        self.leases |= {
            part: Lease(None, lease.token, lease.until)
            for part, lease in self.leases.items()
            if lease.owner == owner and (parts is None or part in parts)
        }
