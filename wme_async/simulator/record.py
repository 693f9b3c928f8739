"""Received requests: a bounded list of frozen records, and counters over all of them."""

import asyncio
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs

__all__ = ["BODY_LIMIT", "Request", "Requests"]

BODY_LIMIT: Final = 1 << 20  # bytes of each body that a record keeps


@dataclass(slots=True)
class _Outcome:
    status: int | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was received.

    Attributes:
        role: "auth", "api", "store" or "realtime".
        method: The HTTP method.
        path: The path as it was sent, still percent-encoded, without the query.
        query: The query string as it was sent.
        headers: All header lines in order, names as they were sent.
        body: The body (at most the first MiB).
        at: Time of its arrival, epoch seconds by the simulator's clock.
        faults: The kinds of the faults applied to it.
        peer: The client's port, which identifies the connection.
    """

    role: str
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float
    faults: tuple[str, ...] = ()
    peer: int = 0
    _outcome: _Outcome = field(default_factory=_Outcome, repr=False, compare=False)

    @property
    def status(self) -> int | None:
        """The status sent, or None when no head has been sent (yet)."""
        return self._outcome.status

    @property
    def done(self) -> bool:
        """Whether the simulator has finished with it."""
        return self._outcome.done

    def header(self, name: str) -> str | None:
        """Return the first value of a header, in any case, or None."""
        return next(iter(self.header_values(name)), None)

    def header_values(self, name: str) -> list[str]:
        """Return all values of a header, in any case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def params(self) -> dict[str, list[str]]:
        """The query, decoded."""
        return parse_qs(self.query, keep_blank_values=True)


class Requests:
    """The requests seen, newest last: a bounded sequence and counters over everything.

    It may be read from any thread.

    Args:
        keep: The number of records to keep.
    """

    def __init__(self, keep: int = 10_000) -> None:
        self._kept: deque[Request] = deque(maxlen=keep)
        self._lock = threading.Lock()
        self._totals: Counter[tuple[str, str]] = Counter()
        self._statuses: Counter[tuple[str, int]] = Counter()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Request]:
        with self._lock:
            return iter(list(self._kept))

    def __getitem__(self, index: int) -> Request:
        with self._lock:
            return self._kept[index]

    @property
    def total(self) -> int:
        """The number of requests since the start or the last `clear`, also those no longer kept."""
        return sum(self._totals.values())

    @property
    def totals(self) -> Mapping[tuple[str, str], int]:
        """The number of requests for each (role, method)."""
        return dict(self._totals)

    @property
    def statuses(self) -> Mapping[tuple[str, int], int]:
        """The number of responses for each (role, status)."""
        return dict(self._statuses)

    @property
    def last(self) -> Request:
        """The newest request.

        Raises:
            IndexError: There was none.
        """
        return self[-1]

    def select(
        self,
        role: str | None = None,
        *,
        method: str | None = None,
        path: str | None = None,
        status: int | None = None,
        done: bool | None = None,
    ) -> list[Request]:
        """Return the kept requests that match, oldest first.

        Args:
            role: One origin.
            method: One HTTP method.
            path: A regular expression searched in the path.
            status: The status sent.
            done: Whether the simulator has finished with it.
        """
        pattern = None if path is None else re.compile(path)
        return [
            request
            for request in self
            if (role is None or request.role == role)
            and (method is None or request.method == method)
            and (pattern is None or pattern.search(request.path) is not None)
            and (status is None or request.status == status)
            and (done is None or request.done == done)
        ]

    def count(
        self,
        role: str | None = None,
        *,
        method: str | None = None,
        path: str | None = None,
        status: int | None = None,
    ) -> int:
        """Count the kept requests that match; the arguments are those of `select`."""
        return len(self.select(role, method=method, path=path, status=status))

    def clear(self) -> None:
        """Forget all requests and counters."""
        with self._lock:
            self._kept.clear()
            self._totals.clear()
            self._statuses.clear()

    async def wait(
        self,
        count: int = 1,
        *,
        role: str | None = None,
        method: str | None = None,
        path: str | None = None,
        status: int | None = None,
        done: bool | None = None,
        timeout: float = 5.0,
    ) -> list[Request]:
        """Wait, in the simulator's own loop, until `count` kept requests match.

        Args:
            count: The number of requests.
            role: As in `select`.
            method: As in `select`.
            path: As in `select`.
            status: As in `select`.
            done: As in `select`.
            timeout: Seconds.

        Returns:
            The matching requests.

        Raises:
            TimeoutError: The timeout has passed.
        """
        async with asyncio.timeout(timeout):
            while len(matches := self.select(role, method=method, path=path, status=status, done=done)) < count:
                self._changed.clear()
                await self._changed.wait()
        return matches

    def add(self, request: Request) -> None:
        """Keep a request; the simulator does this when one arrives."""
        with self._lock:
            self._kept.append(request)
            self._totals[request.role, request.method] += 1
        self._changed.set()

    def answered(self, request: Request, status: int) -> None:
        """Record the status of a response; the simulator does this before the head is sent."""
        request._outcome.status = status  # noqa: SLF001 - the one place that fills in the outcome
        with self._lock:
            self._statuses[request.role, status] += 1
        self._changed.set()

    def finished(self, request: Request) -> None:
        """Record the end of a request, however it ended."""
        request._outcome.done = True  # noqa: SLF001 - as above
        self._changed.set()
