"""What requests cost: monthly allowances, counted by pool and month. Pure.

Snapshot downloads, chunk downloads and look-ups are each metered in a pool of their own (articles, structured contents
and Wikidata look-ups share one); batches, metadata and every HEAD are free. Counts start anew at 00:00 UTC on the first
of the month. No answer of the data services carries a count, so they are kept here too.
"""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from wme_async._arguments import check_numbers

__all__ = ["FREE_PLAN", "Allowance", "Allowances", "Cost", "Pool", "Quota", "month_of", "quota_of"]

Pool = Literal["ondemand", "snapshot", "chunk"]

POOLS: tuple[Pool, ...] = ("ondemand", "snapshot", "chunk")


class Allowances(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a month; None means without limit.

    Args:
        ondemand: Look-ups.
        snapshot: Snapshot downloads.
        chunk: Chunk downloads.

    Raises:
        TypeError: One is no whole number.
        ValueError: One is negative.
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
        pool: Which.
        used: Requests so far: the higher of what the server says and what was counted here.
        limit: None means without limit.
    """

    pool: str
    used: int
    limit: int | None

    @property
    def left(self) -> int | None:
        """What is left, never below 0; None means without limit."""
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
            ValueError: There is no such pool.
        """
        if pool not in POOLS:
            raise ValueError(f"there is no pool {pool!r}; pools are {', '.join(POOLS)}")
        value: Allowance = getattr(self, pool)
        return value

    def allows(self, cost: "Cost") -> bool:
        """Say whether a job fits into what is left."""
        left = None if cost.pool is None else self.of(cost.pool).left
        return left is None or cost.requests <= left


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a job will be charged.

    Attributes:
        pool: The pool it is counted in; None where it is free.
        requests: Metered requests, one for each file or look-up; each expiry of a signature adds one.

    Raises:
        TypeError: The number is no whole one.
        ValueError: It is negative, or there is no such pool.
    """

    pool: str | None
    requests: int

    def __post_init__(self) -> None:
        """Refuse what would be counted nowhere."""
        if self.pool is not None and self.pool not in POOLS:
            raise ValueError(f"there is no pool {self.pool!r}; pools are {', '.join(POOLS)}")
        if isinstance(self.requests, bool) or not isinstance(self.requests, int):
            raise TypeError(f"Cost.requests must be a whole number, not {self.requests!r}")
        if self.requests < 0:
            raise ValueError(f"Cost.requests is 0 or more, not {self.requests}")


def month_of(now: float) -> str:
    """Return the month of a time, `YYYY-MM`, UTC.

    Args:
        now: UTC epoch seconds.
    """
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def quota_of(*, month: str, served: dict[str, int], counted: dict[str, int], limits: Allowances) -> Quota:
    """Put together what the server says and what was counted here.

    Args:
        month: The current month, `YYYY-MM`.
        served: Counts by pool as the server has them; it may lag, and other machines count there too.
        counted: Counts by `pool/YYYY-MM` as kept here.
        limits: The account's allowances.
    """
    made = {
        pool: Allowance(
            pool=pool,
            used=max(served.get(pool, 0), counted.get(f"{pool}/{month}", 0)),
            limit=limits.of(pool),
        )
        for pool in POOLS
    }
    return Quota(month=month, ondemand=made["ondemand"], snapshot=made["snapshot"], chunk=made["chunk"])
