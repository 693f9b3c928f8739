"""The options of a simulator: their types, their defaults, and the checks of one call."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from wme_async.simulator.arguments import check_mapping, check_numbers, check_texts
from wme_async.simulator.hosts.access import ACCESS_2025, ACCESS_2026, CAPS_2025, CAPS_2026, POOLS, AccessRow
from wme_async.simulator.world.world import World

__all__ = ["ROLES", "SimulatorOptions", "policy", "resolve"]

ROLES: Final = ("auth", "api", "realtime", "store")
_POLICIES: Final = {"2025": (ACCESS_2025, CAPS_2025), "2026": (ACCESS_2026, CAPS_2026)}
_MAPPINGS: Final = {
    "caps": "group and a dict of pool and number",
    "rate_limits": "group and requests per second",
    "archive_bytes": "identifier and bytes",
    "stream": "options of the Firehose",
    "ports": "role and port",
}


class SimulatorOptions(TypedDict, total=False):
    """The keyword arguments of `Simulator`, which documents them; resolved, a world is None or a `World`."""

    seed: int
    username: str
    password: str
    groups: Sequence[str]
    start: float | datetime | None
    frozen: bool
    access: Literal["2025", "2026"] | Sequence[AccessRow]
    caps: Mapping[str, Mapping[str, int]] | None
    rate_limits: Mapping[str, float] | None
    expires_in: int
    max_access_tokens: int
    world: World | Mapping[str, Any] | None
    data: str | PathLike[str] | None
    articles: int
    article_size: int | Literal["small"] | None
    archive_bytes: Mapping[str, int] | None
    duplicates: float
    part_size: int
    presign_seconds: int
    batch_delay: float
    stream: Mapping[str, Any] | None
    keep_requests: int
    ports: Mapping[str, int] | None


_DEFAULTS: Final[SimulatorOptions] = {
    "seed": 0,
    "username": "simulated",
    "password": "simulated-password",
    "groups": ("group_3",),
    "start": None,
    "frozen": False,
    "access": "2026",
    "caps": None,
    "rate_limits": None,
    "expires_in": 86_400,
    "max_access_tokens": 90,
    "world": None,
    "data": None,
    "articles": 12,
    "article_size": "small",
    "archive_bytes": None,
    "duplicates": 0.0,
    "part_size": 100_000_000,
    "presign_seconds": 60,
    "batch_delay": 1500.0,
    "stream": None,
    "keep_requests": 10_000,
    "ports": None,
}


def resolve(options: SimulatorOptions) -> SimulatorOptions:
    """Check the options of one call, and fill in the defaults.

    Raises:
        TypeError: An option does not exist or is of another type.
        ValueError: A number is too small, `data` is not a folder, or a pool, a role or a policy does not exist.
    """
    if unknown := options.keys() - _DEFAULTS.keys():
        raise TypeError(f"Simulator has no option {', '.join(sorted(unknown))}; there are {', '.join(_DEFAULTS)}")
    resolved: SimulatorOptions = {**_DEFAULTS, **options}
    values: Mapping[str, Any] = resolved
    check_numbers(0, **{name: values[name] for name in ("articles", "keep_requests", "max_access_tokens")})
    seconds = ("expires_in", "presign_seconds", "batch_delay", "duplicates")
    check_numbers(0, integer=False, **{name: values[name] for name in seconds})
    check_numbers(1, part_size=resolved["part_size"])
    check_texts(username=resolved["username"], password=resolved["password"])
    if resolved["article_size"] not in ("small", None):
        check_numbers(1, article_size=resolved["article_size"])
    data, caps = resolved["data"], resolved["caps"] or {}
    if data is not None and not Path(data).is_dir():
        raise ValueError(f"data must be a folder with files such as articles.ndjson, and {str(data)!r} is not")
    for name, contents in _MAPPINGS.items():
        check_mapping(name, values[name], contents)
    for group, allowances in caps.items():
        check_mapping(f"caps of {group}", allowances, "pool and number")
    if isinstance(resolved["world"], Mapping):
        resolved["world"] = World(**resolved["world"])
    elif resolved["world"] is not None and not isinstance(resolved["world"], World):
        raise TypeError(f"world must be a World, or a dict of its arguments, not {resolved['world']!r}")
    if resolved["world"] is not None and resolved["archive_bytes"]:
        raise ValueError("a world decides the sizes of its archives: use pages= of World in place of archive_bytes=")
    _check_names("pool", {pool for allowances in caps.values() for pool in allowances}, POOLS)
    _check_names("role", {*(resolved["ports"] or {})}, ROLES)
    if isinstance(resolved["access"], str) and resolved["access"] not in _POLICIES:
        raise ValueError(f"access is {' or '.join(_POLICIES)}, or rows, not {resolved['access']!r}")
    return resolved


def _check_names(kind: str, names: set[str], existing: Sequence[str]) -> None:
    for name in sorted(names - {*existing}):
        raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(existing)}")


def policy(options: SimulatorOptions) -> tuple[Sequence[AccessRow], dict[str, dict[str, int]]]:
    """Return the rows of the access policy, and the monthly allowances by group and pool."""
    access = options["access"]
    rows, allowances = _POLICIES[access] if isinstance(access, str) else (tuple(access), CAPS_2026)
    return rows, {group: dict(pools) for group, pools in (options["caps"] or allowances).items()}
