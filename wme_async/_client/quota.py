"""The cost of requests: monthly allowances, counted by pool and month. Pure.

Snapshot downloads, chunk downloads and look-ups are each metered in a pool of their own (articles, structured contents
and Wikidata look-ups share one); batches, metadata and every HEAD are free. Counts restart at 00:00 UTC on the first
of the month. No response of the data services carries a count, so they are counted here too.
"""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from wme_async._arguments import check_choice, check_numbers

POOLS: tuple[Literal["ondemand", "snapshot", "chunk"], ...] = ("ondemand", "snapshot", "chunk")


class Allowances(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a month; None means unlimited.

    Args:
        ondemand: Look-ups.
        snapshot: Snapshot downloads.
        chunk: Chunk downloads.

    Raises:
        TypeError: A value is not a whole number.
        ValueError: A value is negative.
    """

    ondemand: int | None = None
    snapshot: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Check that the allowances are numbers of requests, or None for no limit."""
        check_numbers(owner="Allowances", whole=True, minimum=0, **msgspec.structs.asdict(self))

    def of(self, pool: str) -> int | None:
        """Return the allowance of one pool."""
        value: int | None = getattr(self, pool)
        return value


FREE_PLAN = Allowances(ondemand=50_000, snapshot=30, chunk=1_500)
"""The free plan as published in 2026. Paid plans have no such limits."""


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """One pool this month.

    Attributes:
        pool: The name of the pool.
        used: Requests so far: the higher of the server's count and the local one.
        limit: None means unlimited.
    """

    pool: str
    used: int
    limit: int | None

    @property
    def left(self) -> int | None:
        """Remaining requests, at least 0; None means unlimited."""
        return None if self.limit is None else max(0, self.limit - self.used)


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """All pools this month.

    Attributes:
        month: `YYYY-MM`, UTC.
        ondemand: Look-ups.
        snapshot: Snapshot downloads.
        chunk: Chunk downloads.
    """

    month: str
    ondemand: Allowance
    snapshot: Allowance
    chunk: Allowance

    def of(self, pool: str) -> Allowance:
        """Return one pool.

        Raises:
            ValueError: The pool is unknown.
        """
        check_choice("pool", pool, POOLS)
        value: Allowance = getattr(self, pool)
        return value

    def allows(self, cost: "Cost") -> bool:
        """Return whether a job fits into the remaining allowance."""
        remaining = None if cost.pool is None else self.of(cost.pool).left
        return remaining is None or cost.requests <= remaining


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of a job.

    Attributes:
        pool: The pool that counts it; None if it is free.
        requests: Metered requests, one for each file or look-up; each expiry of a signature adds one.

    Raises:
        TypeError: The number is not a whole number.
        ValueError: The number is negative, or the pool is unknown.
    """

    pool: str | None
    requests: int

    def __post_init__(self) -> None:
        """Check the values."""
        if self.pool is not None:
            check_choice("Cost.pool", self.pool, POOLS)
        check_numbers(owner="Cost", whole=True, optional=False, minimum=0, requests=self.requests)


def month_of(now: float) -> str:
    """Return the month of a time, `YYYY-MM`, UTC.

    Args:
        now: UTC epoch seconds.
    """
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def quota_of(*, month: str, served: dict[str, int], counted: dict[str, int], limits: Allowances) -> Quota:
    """Combine the counts of the server with the local ones.

    Args:
        month: The current month, `YYYY-MM`.
        served: The server's counts by pool. They may lag, and include requests of other machines.
        counted: Local counts by `pool/YYYY-MM`.
        limits: The account's allowances.
    """
    return Quota(
        month=month,
        **{
            pool: Allowance(
                pool=pool,
                used=max(served.get(pool, 0), counted.get(f"{pool}/{month}", 0)),
                limit=limits.of(pool),
            )
            for pool in POOLS
        },
    )
