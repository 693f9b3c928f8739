"""Authorization and quotas: the access policy, the limit by second, and the allowances by month."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from wme_async.simulator.clock import Clock
from wme_async.simulator.errors import HTTPError
from wme_async.simulator.hosts.accounts import Accounts, User


@dataclass(frozen=True, slots=True)
class AccessRow:
    """One line of the access policy.

    Attributes:
        path: A pattern: `:name` is one segment, a final `*` is the rest.
        groups: The groups that may call it.
        methods: The methods they may use.
    """

    path: str
    groups: tuple[str, ...]
    methods: tuple[str, ...] = ("GET", "POST")


_ALL: Final = ("group_1", "group_2", "group_3")
_PAID: Final = ("group_2", "group_3")
_TOP: Final = ("group_3",)
_FILE: Final = ("GET", "HEAD")


def _archive(path: str, groups: tuple[str, ...]) -> list[AccessRow]:
    return [
        AccessRow(path, groups),
        AccessRow(f"{path}/:identifier", groups),
        AccessRow(f"{path}/:identifier/download", groups, _FILE),
    ]


_COMMON: Final = (
    *(
        AccessRow(f"/v2/{name}{tail}", _ALL)
        for name in ("codes", "languages", "projects", "namespaces")
        for tail in ("", "/:identifier")
    ),
    *_archive("/v2/snapshots", _ALL),
    *_archive("/v2/snapshots/:snapshot/chunks", _ALL),
    AccessRow("/v2/articles/*", _ALL),
    *_archive("/v2/batches/:date/:hour", _PAID),
    AccessRow("/v2/files/:filename", _TOP),
    AccessRow("/v2/files/:filename/download", _TOP, ("GET",)),
    AccessRow("/v2/articles", _TOP),
)
ACCESS_2025: Final[tuple[AccessRow, ...]] = (
    *_COMMON,
    AccessRow("/v2/structured-contents/*", _PAID),
    AccessRow("/v2/snapshots/structured-contents/:identifier", _PAID),
    AccessRow("/v2/snapshots/structured-contents/:identifier/download", _PAID, _FILE),
)
"""The built-in policy of the 2025 server: structured contents are not free, Wikidata does not exist."""

ACCESS_2026: Final[tuple[AccessRow, ...]] = (
    *_COMMON,
    AccessRow("/v2/structured-contents/*", _ALL),
    *_archive("/v2/snapshots/structured-contents", _ALL),
    *_archive("/v2/snapshots/wikidata", _ALL),
    *_archive("/v2/snapshots/wikidata/:snapshot/chunks", _ALL),
    *_archive("/v2/batches/wikidata/:date/:hour", _PAID),
    AccessRow("/v2/wikidata/items/:identifier", _ALL),
    AccessRow("/v2/wikidata/properties/:identifier", _ALL),
    AccessRow("/v2/wikidata/labels/:identifier", _ALL),
    AccessRow("/v2/wikidata", _TOP),
)
"""The plans as published in 2026: structured contents and Wikidata look-ups and snapshots are free."""

POOLS: Final = ("ondemand", "snapshots", "chunks")
"""What is counted by month."""

CAPS_2025: Final[Mapping[str, Mapping[str, int]]] = {"group_1": {"ondemand": 5000, "snapshots": 15, "chunks": 1500}}
"""Monthly allowances of the free plan until 2026, by group and pool."""

CAPS_2026: Final[Mapping[str, Mapping[str, int]]] = {"group_1": {"ondemand": 50_000, "snapshots": 30, "chunks": 1500}}
"""Monthly allowances of the free plan since 2026, by group and pool."""


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.sub(r":[A-Za-z_]+", "[^/]+", pattern.replace("/*", "/.*"))
    return re.compile(f"^{text}$", re.DOTALL)


def allowed(table: Sequence[AccessRow], groups: Iterable[str], method: str, path: str) -> bool:
    """Return whether any of the groups may make this call; nobody may call a path that is in no row."""
    callers = set(groups)
    return any(
        method in row.methods and not callers.isdisjoint(row.groups) and _compiled(row.path).match(path) is not None
        for row in table
    )


def authorize(
    accounts: Accounts, table: Sequence[AccessRow], method: str, path: str, headers: Mapping[str, str]
) -> User:
    """Return the account of a request that its access token and the policy allow.

    Raises:
        HTTPError: 401 for the token, 403 for the path.
    """
    user = accounts.authenticate(headers.get("authorization"))
    if not allowed(table, user.groups, method, path):
        raise HTTPError(403, "Forbidden")
    return user


@dataclass
class Limiter:
    """The limit by second: a token bucket for each account, its rate that of the alphabetically last of its groups.

    Attributes:
        clock: Fills the buckets.
        rates: Requests per second for each group; a group that is absent has no limit.
    """

    clock: Clock
    rates: dict[str, float] = field(default_factory=dict)
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def admit(self, username: str, groups: Sequence[str]) -> bool:
        """Take one token from the bucket; return False if it is empty."""
        rate = self.rates.get(max(groups)) if groups and self.rates else None
        if rate is None:
            return True
        burst = max(1.0, rate)
        now = self.clock.now()
        level, then = self._buckets.get(username, (burst, now))
        level = min(burst, level + max(0.0, now - then) * rate)
        admitted = level >= 1
        self._buckets[username] = (level - admitted, now)
        return admitted


@dataclass
class Caps:
    """The monthly allowances: counters for each account and pool that start again with the month.

    Attributes:
        clock: Determines the month.
        accounts: The users.
        limits: For each group the allowance of each pool; an absent pool is not counted.
    """

    clock: Clock
    accounts: Accounts
    limits: dict[str, dict[str, int]] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _month: tuple[int, int] = (0, 0)

    def used(self, username: str, pool: str) -> int:
        """Return how much of a pool the account has used this month."""
        return self._current().get((username, pool), 0)

    def set_used(self, username: str, pool: str, count: int) -> None:
        """Set a counter.

        Raises:
            ValueError: The pool or the user does not exist.
        """
        for kind, name, names in (("pool", pool, POOLS), ("user", username, tuple(self.accounts.users))):
            if name not in names:
                raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(names)}")
        self._current()[username, pool] = count

    def spend(self, username: str, groups: Iterable[str], pool: str) -> bool:
        """Count one request; return False, and do not count it, if the allowance is used up.

        The allowance is that of the alphabetically last group. Without one, nothing is counted.
        """
        limit = self.limits.get(max(groups, default=""), {}).get(pool)
        used = self.used(username, pool)
        if limit is None or used >= limit:
            return limit is None
        self._current()[username, pool] = used + 1
        return True

    def _current(self) -> dict[tuple[str, str], int]:
        """Return the counters of this month."""
        today = self.clock.utc()
        if (today.year, today.month) != self._month:
            self._month = (today.year, today.month)
            self._counts.clear()
        return self._counts
