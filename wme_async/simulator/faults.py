"""Faults on request.

A fault is injected for the requests that match a role, a method and a path. Several faults may apply to one request: a
slow body can also be cut. All of it can be repeated: without explicit numbers a seeded generator picks the byte.

The kinds, and their details with the defaults:

======================  ==============================================================================================
before the head
----------------------  ----------------------------------------------------------------------------------------------
`status`                respond at once: `status=503`, `body=None` (bytes or str), `message=None` (the error document of
                        the services), `headers={}`, `html=False` (the page of a proxy in front)
`reset`                 a TCP reset instead of an answer; `refuse` is the same
`hang_head`             no answer at all until the client leaves
`delay`                 wait `seconds=0.05` before the request is handled
======================  ==============================================================================================

======================  ==============================================================================================
the object store
----------------------  ----------------------------------------------------------------------------------------------
`expire`                the signature counts as expired: 403 with XML
`ignore_range`          200 with the whole object
`content_range`         206 with a wrong `Content-Range` (`value=` sets it; `missing=True` leaves it out)
`multipart`             206 as `multipart/byteranges`
`swap`                  the object is replaced before it is served: `data=None` (bytes; default: the old bytes, altered)
======================  ==============================================================================================

======================  ==============================================================================================
any body
----------------------  ----------------------------------------------------------------------------------------------
`drop`                  close the connection after `after=None` bytes (default: somewhere inside); `how="close"` or
                        `"reset"`
`stall`                 stop after `after=None` bytes and hang until the client leaves
`slow`                  send at `rate=65536` bytes per second
`short`                 leave out the last `missing=1` bytes; `honest=True`: the length says so
`long`                  add `extra=1` bytes; `honest=True`: the length says so
`corrupt`               flip one bit of the byte `at=None` (default: somewhere)
`encoding`              claim `Content-Encoding: gzip`; `real=True` compresses the body
`garbage`               a body that starts like JSON and is invalid: `body=None`
`empty`                 200 and nothing
======================  ==============================================================================================

======================  ==============================================================================================
on-demand
----------------------  ----------------------------------------------------------------------------------------------
`not_there`             stored pages are not found, though they exist: `projects=None` (names; default: all)
`raw`                   the first structured record comes as a plain article
`malformed`             a structured record is cut inside its JSON, as an odd description does
======================  ==============================================================================================

For `role="realtime"` there are the kinds before the head, and those that `wme_async.simulator.Firehose.handle`
describes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from wme_async.simulator.arguments import check_numbers

__all__ = ["KINDS", "STREAM_KINDS", "Fault", "Faults"]


def _table(**kinds: str) -> dict[str, frozenset[str]]:
    return {kind: frozenset(names.split()) for kind, names in kinds.items()}


_BEFORE_HEAD: Final = _table(
    status="status body message headers html", reset="", refuse="", hang_head="", delay="seconds"
)
KINDS: Final = _BEFORE_HEAD | _table(
    expire="",
    ignore_range="",
    content_range="value missing",
    multipart="",
    swap="data",
    drop="after how",
    stall="after",
    slow="rate",
    short="missing honest",
    long="extra honest",
    corrupt="at",
    encoding="real",
    garbage="body",
    empty="",
    not_there="projects",
    raw="",
    malformed="",
)
_NUMBERS: Final = frozenset({"status", "seconds", "rate", "after", "size", "count", "extra"})
STREAM_KINDS: Final = _BEFORE_HEAD | _table(
    stall="after",
    slow="rate",
    cut="after within how",
    drop="after within how",
    eof="at",
    broken="at",
    overlong="at size",
    replay="at count",
    gap="at count",
    error_line="at",
    older_framing="",
)
_FOR_ALL: Final = ("slow", "delay", "cut", "older_framing")
_OF_LOOKUPS: Final = ("not_there", "raw", "malformed")
_ROLES: Final = ("auth", "api", "realtime", "store")


@dataclass(eq=False)
class Fault:
    """One injected fault; `inject` returns it.

    Attributes:
        kind: The kind.
        role: Which origin, or None for all four.
        path: A regular expression searched in the path with its query, or None for all.
        method: One HTTP method, or None for all.
        times: The number of matching requests that it applies to; None means all from now on.
        skip: The number of matching requests that pass before.
        details: The details of this kind.
        hits: The number of requests it has been applied to.
        seen: The number of requests that have matched, including the skipped ones.
    """

    kind: str
    role: str | None = None
    path: re.Pattern[str] | None = None
    method: str | None = None
    times: int | None = 1
    skip: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    hits: int = 0
    seen: int = 0
    _registry: "Faults | None" = field(default=None, repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """Return one detail, or the default."""
        return self.details.get(name, default)

    def remove(self) -> None:
        """Take the fault back; removing it twice is harmless."""
        if self._registry is not None:
            self._registry.discard(self)

    @property
    def spent(self) -> bool:
        """Whether it has been applied to all of its requests."""
        return self.times is not None and self.hits >= self.times

    def take(self, role: str, method: str, target: str) -> bool:
        """Count one request, and return whether the fault applies to it."""
        if (self.role is not None and self.role != role) or (self.method is not None and self.method != method):
            return False
        if self.spent or (self.path is not None and self.path.search(target) is None):
            return False
        self.seen += 1
        if self.seen <= self.skip:
            return False
        self.hits += 1
        return True


class Faults:
    """The faults of one simulator.

    Args:
        seed: Determines the bytes and positions that faults leave open.
    """

    def __init__(self, seed: int = 0) -> None:
        self.random: Random = Random(seed)
        self._active: list[Fault] = []

    def __len__(self) -> int:
        return len(self._active)

    def inject(
        self,
        kind: str,
        *,
        role: str | None = None,
        path: str | re.Pattern[str] | None = None,
        method: str | None = None,
        times: int | None = 1,
        skip: int = 0,
        **details: Any,
    ) -> Fault:
        """Inject a fault.

        Args:
            kind: One of the kinds of this module; for `role="realtime"` those before the head and those of the stream.
            role: "auth", "api", "store" or "realtime"; None for all.
            path: A regular expression (a plain piece of the path will do) searched in the path with its query.
            method: An HTTP method.
            times: The number of matching requests; None for all from now on.
            skip: The number of matching requests that pass first.
            **details: The details of the kind.

        Returns:
            The fault, with `hits` and `remove()`.

        Raises:
            ValueError: The kind or role does not exist.
            TypeError: The kind does not take a detail, or an argument is of another type.
        """
        if role is not None and role not in _ROLES:
            raise ValueError(f"no role {role!r}; there are {', '.join(_ROLES)}")
        kinds = STREAM_KINDS if role == "realtime" else KINDS
        if kind not in kinds:
            of_streams = kind in STREAM_KINDS
            scope = ' without role="realtime"' if of_streams else f" for role={role!r}" if kind in KINDS else ""
            raise ValueError(f"no fault {kind!r}{scope}; there are {', '.join(kinds)}")
        if unknown := details.keys() - kinds[kind]:
            raise TypeError(f"the fault {kind!r} takes no {', '.join(sorted(unknown))}")
        numbers = {name: value for name, value in details.items() if name in _NUMBERS and value is not None}
        check_numbers(0, skip=skip)
        check_numbers(0, integer=False, **numbers)
        if times is not None:
            check_numbers(0, times=times)
        if numbers.get("rate") == 0:
            raise ValueError("rate is more than 0 bytes a second, not 0; use `stall` for a body that stops")
        if path is not None and not isinstance(path, str | re.Pattern):
            raise TypeError(f"path must be a piece of the path or a pattern, not {path!r}")
        pattern = re.compile(path) if isinstance(path, str) else path
        fault = Fault(kind, role, pattern, method, times, skip, dict(details), _registry=self)
        self._active.append(fault)
        return fault

    def inject_default(self, kind: str, **arguments: Any) -> Fault:
        """Inject a fault where it belongs, for a simulator that is watched from outside.

        Faults of streams go to the realtime host, those of look-ups and those before the head to the API, others to
        the object store. `slow`, `delay`, `cut` and `older_framing` apply to all requests there, others to the first
        two, so that a client that goes on gets to the end.

        Args:
            kind: A kind of any host.
            **arguments: Those of `inject` that differ.

        Returns:
            The fault.

        Raises:
            ValueError: The kind or role does not exist.
            TypeError: The kind does not take a detail, or an argument is of another type.
        """
        role = "api" if kind in _BEFORE_HEAD or kind in _OF_LOOKUPS else "store" if kind in KINDS else "realtime"
        return self.inject(kind, **{"role": role, "times": None if kind in _FOR_ALL else 2, **arguments})

    def script(
        self,
        steps: Iterable[str | tuple[str, Mapping[str, Any]] | None],
        *,
        role: str | None = None,
        path: str | re.Pattern[str] | None = None,
        method: str | None = None,
    ) -> list[Fault]:
        """Inject a fault for each of successive matching requests.

        Args:
            steps: For each matching request in turn: a kind, a pair of kind and details, or None for none.
            role: As in `inject`.
            path: As in `inject`.
            method: As in `inject`.

        Returns:
            The faults, without the steps that are None.
        """
        if isinstance(steps, str):
            raise TypeError(f"steps must be a list of kinds, such as [{steps!r}], not one string")
        pairs = [(step, {}) if isinstance(step, str) else step for step in steps]
        return [
            self.inject(pair[0], role=role, path=path, method=method, skip=number, **pair[1])
            for number, pair in enumerate(pairs)
            if pair is not None
        ]

    def discard(self, fault: Fault) -> None:
        """Remove one fault, if it is still there."""
        if fault in self._active:
            self._active.remove(fault)

    def clear(self) -> None:
        """Remove all faults."""
        self._active.clear()

    def match(self, role: str, method: str, target: str) -> "list[Fault]":
        """Return the faults of a request, and count it; spent faults are removed."""
        if not self._active:
            return []
        hit = [fault for fault in self._active if fault.take(role, method, target)]
        if hit:
            self._active = [fault for fault in self._active if not fault.spent]
        return hit
