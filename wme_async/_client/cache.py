"""Answers kept for a while, so that repeats cost neither quota nor time. Only what changes slowly is ever kept."""

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from wme_async._transport import Request, Response, Transport
from wme_async.errors import DecodeError

__all__ = ["Cache", "forget_unreadable", "send_cached"]

# What an entry takes besides its body: key, headers and bookkeeping.
_OVERHEAD = 2048


class _Entry(NamedTuple):
    response: Response
    expires: float
    size: int


class _Flight:
    """One request on its way, and how many wait for it."""

    __slots__ = ("closed", "loop", "task", "waiting")

    def __init__(self, task: "asyncio.Task[Response]", closed: Callable[[], bool]) -> None:
        self.task = task
        self.closed = closed
        self.loop = asyncio.get_running_loop()
        self.waiting = 0


class Cache:
    """Answers in memory: bounded in number, bytes and age, each fetched once however many ask for it at a time.

    Give it to a client as `Client(cache=Cache())`. It is used for what changes slowly: codes, languages, projects and
    namespaces, look-ups of articles, structured contents, entities and files. Lists of archives always come from the
    server, and errors are never kept, a "not found" and what cannot be read among them. Clients may share one; each
    account has answers of its own, since what it is given depends on its plan.

    An answer that is served from here is not metered. Where a look-up could find more than `limit` records, the server
    picks some of them at random; while it is kept, the pick is the same.

    Example:
        >>> Client("user", "password", cache=Cache(max_entries=10_000, ttl=60))  # doctest: +SKIP

    Args:
        max_entries: Answers to keep; those that were not used for longest go first.
        max_bytes: Bytes to keep, bodies and bookkeeping together. A longer answer is never kept.
        ttl: Seconds to keep a look-up.
        metadata_ttl: Seconds to keep codes, languages, projects and namespaces, which seldom change.

    Raises:
        TypeError: A bound is no number.
        ValueError: A bound is not above 0.
    """

    def __init__(
        self,
        *,
        max_entries: int = 1000,
        max_bytes: int = 64 * 1024 * 1024,
        ttl: float = 300.0,
        metadata_ttl: float = 86_400.0,
    ) -> None:
        for name, value in (
            ("max_entries", max_entries),
            ("max_bytes", max_bytes),
            ("ttl", ttl),
            ("metadata_ttl", metadata_ttl),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Cache.{name} must be a number above 0, not {value!r}")
            if not value > 0 or math.isinf(value):
                raise ValueError(f"Cache.{name} must be a number above 0, not {value!r}")
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.ttl = ttl
        self.metadata_ttl = metadata_ttl
        self._entries: OrderedDict[object, _Entry] = OrderedDict()
        self._flights: dict[object, _Flight] = {}
        self._size = 0
        self.hits: int = 0
        self.misses: int = 0

    def __repr__(self) -> str:
        return f"<Cache {len(self)} entries, {self._size} bytes, {self.hits} hits, {self.misses} misses>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that are kept now, bookkeeping included."""
        return self._size

    def clear(self) -> None:
        """Forget all answers. Requests on their way are finished, and their answers are kept again."""
        self._entries.clear()
        self._size = 0

    def forget(self, response: Response) -> None:
        """Keep an answer no longer, since it turned out to be none."""
        for key, entry in self._entries.items():
            if entry.response is response:
                self._drop(key)
                return

    async def fetch(
        self,
        key: object,
        ask: Callable[[], Awaitable[Response]],
        *,
        ttl: float,
        monotonic: Callable[[], float],
        closed: Callable[[], bool] = lambda: False,
    ) -> Response:
        """Return the answer that is kept under a key, or ask for it; those who come meanwhile wait for the same one.

        Cancelling one that waits does not disturb the others; when the last is cancelled, the request is.

        Args:
            key: All that the answer depends on.
            ask: Sends the request.
            ttl: Seconds to keep the answer.
            monotonic: The clock.
            closed: Says whether the client that asks has been closed, and its request with it: those of others that
                wait for the same answer then ask themselves.

        Raises:
            WMEError: As `ask` raises it, to all that wait.
        """
        while True:
            entry = self._entries.get(key)
            if entry is not None:
                if monotonic() < entry.expires:
                    self._entries.move_to_end(key)
                    self.hits += 1
                    return entry.response
                self._drop(key)
            flight = self._flights.get(key)
            if flight is None or flight.loop is not asyncio.get_running_loop():
                break
            try:
                response = await self._join(key, flight)
            except Exception:
                if not flight.closed() or closed():
                    raise
            else:
                self.hits += 1
                return response
        self.misses += 1
        flight = _Flight(asyncio.create_task(_asked(ask), name="wme-cache-fetch"), closed)
        self._flights[key] = flight

        def landed(task: "asyncio.Task[Response]") -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            # Asking for the exception also marks it as seen, should nobody wait any more.
            if not task.cancelled() and task.exception() is None:
                self._keep(key, task.result(), monotonic() + ttl)

        flight.task.add_done_callback(landed)
        return await self._join(key, flight)

    async def _join(self, key: object, flight: _Flight) -> Response:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Whoever comes now must not wait for what is being cancelled.
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _keep(self, key: object, response: Response, expires: float) -> None:
        size = len(response.body) + _OVERHEAD
        if size > self.max_bytes:
            return
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _Entry(response, expires, size)
        self._size += size
        while self._size > self.max_bytes or len(self._entries) > self.max_entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: object) -> None:
        self._size -= self._entries.pop(key).size


async def _asked(ask: Callable[[], Awaitable[Response]]) -> Response:
    return await ask()


@contextlib.contextmanager
def forget_unreadable(cache: Cache | None, response: Response) -> Iterator[None]:
    """Read an answer in this block: one that cannot be read is an error, and errors are not kept."""
    try:
        yield
    except DecodeError:
        if cache is not None:
            cache.forget(response)
        raise


async def send_cached(
    transport: Transport,
    request: Request,
    *,
    cache: Cache | None,
    ttl: float | None = None,
    read_timeout: float | None = None,
) -> Response:
    """Send a request, or take its answer from a cache.

    Args:
        transport: Sends it.
        request: What to send.
        cache: Where to look first; None for nowhere.
        ttl: Seconds to keep the answer; the cache's time for look-ups where not given.
        read_timeout: Seconds of silence.

    Raises:
        WMEError: As the transport raises it.
    """
    if cache is None:
        return await transport.request(request, read_timeout=read_timeout)
    key = (transport.account, request.method, request.path, request.headers.get("Accept"), request.body)
    # The request may be another client's; closing this one ends the wait for it.
    async with transport.wait():
        return await cache.fetch(
            key,
            lambda: transport.request(request, read_timeout=read_timeout),
            ttl=cache.ttl if ttl is None else ttl,
            monotonic=transport.monotonic,
            closed=lambda: transport.closed,
        )
