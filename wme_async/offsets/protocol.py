"""Positions, and the protocol of a store of positions."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from wme_async._arguments import check_numbers, check_text
from wme_async.errors import StreamError

__all__ = [
    "MAX_OFFSET",
    "ClaimingStore",
    "LeaseStore",
    "OffsetStore",
    "Position",
    "check_lease",
    "check_name",
    "check_positions",
    "in_use",
    "is_storable",
]

MAX_OFFSET: Final = 2**63 - 1
"""The largest offset that brokers and databases keep."""

_MAX_PARTITION: Final = 2**31 - 1
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far one partition was processed.

    Args:
        offset: Offset of the last processed event; -1 before the first.
        published: When that event was published, UTC; with offset -1, the time from which the partition is read.
        reached: The time up to which no event is missing, UTC. It is later than `published` if a connection was open
            without new events in the partition.

    Raises:
        TypeError: The offset is not a whole number, or a time is not a datetime.
        ValueError: The offset is below -1 or above 2**63 - 1, or a time has no time zone, or is not in the
            calendar in UTC.
    """

    offset: int
    published: datetime | None = None
    reached: datetime | None = None

    def __post_init__(self) -> None:
        """Raise if the server would read the position as "from the beginning", or reject it."""
        if isinstance(self.offset, bool) or not isinstance(self.offset, int):
            raise TypeError(f"Position.offset must be a whole number, not {self.offset!r}")
        if not -1 <= self.offset <= MAX_OFFSET:
            raise ValueError(f"an offset is -1 (none yet) to {MAX_OFFSET}, not {self.offset}")
        for name in ("published", "reached"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, datetime):
                raise TypeError(f"Position.{name} must be a datetime with a time zone, not {value!r}")
            if value is not None and value.tzinfo is None:
                raise ValueError(f"Position.{name} needs a time zone: datetime.now(UTC), not datetime.now()")
            if value is not None and not _FIRST <= value <= _LAST:
                raise ValueError(f"Position.{name} is not a date in UTC: {value}")

    @property
    def safe_until(self) -> datetime | None:
        """The later of `published` and `reached`; None where neither is known."""
        times = [time for time in (self.published, self.reached) if time is not None]
        return max(times) if times else None


def is_storable(partition: Any, offset: Any) -> bool:
    """Return whether an event may have these numbers: brokers and databases keep no larger ones.

    Raises:
        TypeError: The offset is not a number.
    """
    return isinstance(partition, int) and 0 <= partition <= _MAX_PARTITION and 0 <= offset <= MAX_OFFSET


class OffsetStore(Protocol):
    """Keeps positions by name and partition.

    A name is `"<name of the stream>/<resource>"`, such as `"default/articles"`; to a store it is any string. The checks
    in `wme_async.offsets.conformance` state all requirements.

    A store that needs connections may be an async context manager as well: a stream enters it while it is open.
    """

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition; none for a name that was never saved."""
        ...

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save these positions, all or none, and leave those of other partitions as they are.

        When it returns, a later process must find them. There may be no positions.
        """
        ...


@runtime_checkable
class ClaimingStore(OffsetStore, Protocol):
    """A store that also detects two readers of one name at a time.

    Two readers of one name would each save their own progress over the other's, and events between the two would be
    lost at the next start. A stream claims its name while it is open.
    """

    def claim(self, name: str) -> AbstractAsyncContextManager[None]:
        """Return a context manager within which no other reader can claim the name.

        The claim must end with its process, also if that is killed, and must not need renewal by the caller.

        Raises:
            StreamError: On entering, if another live reader holds the name.
        """
        ...


@runtime_checkable
class LeaseStore(OffsetStore, Protocol):
    """A store in which several readers share the parts of one stream (`share="group"`).

    A reader is a member of the group of a name. It holds leases: each makes it the reader of one part, until a time by
    the clock of the store. Whenever a part is taken, it gets a token above all its earlier ones. A lease is identified
    by its owner *and* its token, since a store that lost its last changes may give a number twice. Leases and positions
    are apart: giving a part back leaves its positions. `wme_async.offsets.conformance.LEASE_CHECKS` has all
    requirements.

    A claim (`ClaimingStore`) is the opposite: it keeps a second reader of a name away, and a group invites it. A stream
    with `share="group"` takes leases and makes no claim; one without makes a claim, if the store has claims.
    """

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        """Join the group, or stay in it, and take free parts up to this member's share.

        A part is free if it was never taken, was given back, or its lease has ended. The share is
        `ceil((parts - rank) / members)`, where `rank` is the number of live members before this one.

        Args:
            name: The name of the positions.
            owner: The member: another one for each start of a process.
            parts: The number of parts; they are numbered from 0.
            ttl: Seconds until the leases end. The membership ends after half of them.

        Returns:
            The token of each part that was taken now.
        """
        ...

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        """Extend the leases that this member still has, and its membership.

        Returns:
            The token of each part that it holds: none that has ended, even if nobody else took it.
        """
        ...

    async def members(self, name: str) -> Sequence[str]:
        """Return the live members in the order in which shares are dealt out: sorted by code points."""
        ...

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        """Save positions as `save` does, if the part was not taken since this lease of it began, in one step.

        A lease that has ended, and that nobody followed, may still save.

        Returns:
            Whether it was the last lease; otherwise nothing is saved.
        """
        ...

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        """Give parts back, which may then be taken at once.

        Args:
            name: The name of the positions.
            owner: The member.
            parts: The parts; those of other members are left alone. None for all, and to leave the group.
        """
        ...


def check_lease(name: object, owner: object, ttl: float = 1.0, parts: int = 1) -> None:
    """Raise if the arguments of a lease are wrong.

    Raises:
        TypeError: The name or the owner is not text, or a number is not a number.
        ValueError: The owner is empty, or a number is not above 0.
    """
    check_name(name)
    check_text(owner=owner)
    if owner is None:
        raise TypeError("owner must be text, not None")
    check_numbers(optional=False, above=0, unit="seconds", ttl=ttl)
    check_numbers(optional=False, above=0, whole=True, parts=parts)


def check_name(name: object) -> None:
    """Raise if a name is not text; `load` would return its positions under another name, or not at all.

    Raises:
        TypeError: It is not text.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of positions must be text such as 'default/articles', not {name!r}")


def check_positions(name: object, positions: object) -> None:
    """Raise if positions could be written but not read again.

    Raises:
        TypeError: The name is not text, or the positions are not `Position`s by the number of their partition.
        ValueError: The number of a partition is negative or above 2**31 - 1.
    """
    check_name(name)
    if not isinstance(positions, Mapping):
        raise TypeError(f"positions must be a dict of partition and Position, not {positions!r}")
    for partition, position in positions.items():
        is_number = isinstance(partition, int) and not isinstance(partition, bool)
        if not is_number or not isinstance(position, Position):
            raise TypeError(
                f"positions must be a dict of partition and Position, and {partition!r}: {position!r} is not"
            )
        if not 0 <= partition <= _MAX_PARTITION:
            raise ValueError(f"the number of a partition is 0 to {_MAX_PARTITION}, not {partition}")


def in_use(name: str, holder: str) -> StreamError:
    """Return the error for a second reader of a name."""
    return StreamError(
        f"positions {name!r} are in use by another reader ({holder}): stop that one, or give this one another name="
    )
