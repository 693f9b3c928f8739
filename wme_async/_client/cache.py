"""A cache of responses, so that repeated requests cost neither quota nor time."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple

import msgspec

from wme_async._arguments import check_numbers
from wme_async._transport import Request, Response, Transport
from wme_async.errors import DecodeError

# Bytes of an entry beside its body: key, headers and bookkeeping.
_OVERHEAD = 2048


class _Entry(NamedTuple):
    response: Response
    expires: float
    size: int


class _SharedRequest(msgspec.Struct, eq=False):
    """A request under way, and the number of callers that wait for its response."""

    task: "asyncio.Task[Response]"
    closed: Callable[[], bool]
    waiting: int = 0


class Cache:
    """Responses in memory: bounded in number, bytes and age, with one request for all concurrent callers.

    Give it to a client as `Client(cache=Cache())`. It holds data that change slowly: codes, languages, projects and
    namespaces, and look-ups of articles, structured contents, entities and files. Lists of archives always come from
    the server. Errors are never kept, and neither are "not found" and responses that cannot be decoded. Clients may
    share a cache; each account has its own entries, since responses depend on its plan.

    A response from the cache is not metered. If a look-up matches more than `limit` records, the server picks some of
    them at random; while the response is in the cache, the pick stays the same.

    Example:
        >>> Client("user", "password", cache=Cache(max_entries=10_000, ttl=60))  # doctest: +SKIP

    Args:
        max_entries: Responses to keep; the least recently used are dropped first.
        max_bytes: Bytes to keep, bodies and bookkeeping together. A longer response is never kept.
        ttl: Seconds to keep a look-up.
        metadata_ttl: Seconds to keep codes, languages, projects and namespaces, which seldom change.

    Attributes:
        hits: Calls with a response from the cache, or from the request of another caller.
        misses: Calls with a request of their own.
        size: Bytes in the cache, bookkeeping included.

    Raises:
        TypeError: A bound is not a number.
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
        check_numbers(
            owner="Cache",
            optional=False,
            above=0,
            max_entries=max_entries,
            max_bytes=max_bytes,
            ttl=ttl,
            metadata_ttl=metadata_ttl,
        )
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.ttl = ttl
        self.metadata_ttl = metadata_ttl
        self.hits: int = 0
        self.misses: int = 0
        self._entries: OrderedDict[object, _Entry] = OrderedDict()
        self._requests: dict[object, _SharedRequest] = {}
        self.size: int = 0

    def __repr__(self) -> str:
        return f"<Cache {len(self)} entries, {self.size} bytes, {self.hits} hits, {self.misses} misses>"

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Drop all entries. Requests under way continue, and their responses enter the cache."""
        self._entries.clear()
        self.size = 0

    def forget(self, response: Response) -> None:
        """Drop a response that turned out to be unreadable."""
        for key, entry in self._entries.items():
            if entry.response is response:
                self._drop(key)
                return

    async def fetch(
        self,
        key: object,
        send: Callable[[], Coroutine[Any, Any, Response]],
        *,
        ttl: float,
        monotonic: Callable[[], float],
        closed: Callable[[], bool] = lambda: False,
    ) -> Response:
        """Return the response with a key from the cache, from a request under way, or from a new request.

        A cancelled caller does not disturb the others; the cancellation of the last one cancels the request.

        Args:
            key: Everything on which the response depends.
            send: Sends the request.
            ttl: Seconds to keep the response.
            monotonic: Returns seconds.
            closed: Returns whether the caller's client is closed, which fails its requests. Callers of other clients
                that wait for such a request then send one of their own.

        Raises:
            WMEError: The request failed; all callers that wait for it get the error.
        """
        while True:
            entry = self._entries.get(key)
            if entry is not None:
                if monotonic() < entry.expires:
                    self._entries.move_to_end(key)
                    self.hits += 1
                    return entry.response
                self._drop(key)
            request = self._requests.get(key)
            if request is None or request.task.get_loop() is not asyncio.get_running_loop():
                self.misses += 1
                return await self._join(key, self._start(key, send, ttl, monotonic, closed))
            try:
                response = await self._join(key, request)
            except Exception:
                if closed() or not request.closed():
                    raise
            else:
                self.hits += 1
                return response

    def _start(
        self,
        key: object,
        send: Callable[[], Coroutine[Any, Any, Response]],
        ttl: float,
        monotonic: Callable[[], float],
        closed: Callable[[], bool],
    ) -> _SharedRequest:
        request = _SharedRequest(asyncio.create_task(send(), name="wme-cache-fetch"), closed)
        self._requests[key] = request

        def finish(task: "asyncio.Task[Response]") -> None:
            self._remove(key, request)
            # Reading the exception also marks it as retrieved, for the case that no caller waits any more.
            if not task.cancelled() and task.exception() is None:
                self._add(key, task.result(), monotonic() + ttl)

        request.task.add_done_callback(finish)
        return request

    async def _join(self, key: object, request: _SharedRequest) -> Response:
        request.waiting += 1
        try:
            return await asyncio.shield(request.task)
        finally:
            request.waiting -= 1
            if not request.waiting and not request.task.done():
                # A new caller must not join a request that is being cancelled.
                self._remove(key, request)
                request.task.cancel()
                await asyncio.wait([request.task])

    def _remove(self, key: object, request: _SharedRequest) -> None:
        if self._requests.get(key) is request:
            del self._requests[key]

    def _add(self, key: object, response: Response, expires: float) -> None:
        size = len(response.body) + _OVERHEAD
        if size > self.max_bytes:
            return
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _Entry(response, expires, size)
        self.size += size
        while self.size > self.max_bytes or len(self._entries) > self.max_entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: object) -> None:
        self.size -= self._entries.pop(key).size


@contextlib.contextmanager
def forget_unreadable(cache: Cache | None, response: Response) -> Iterator[None]:
    """Decode a response in this block: the cache drops it if it cannot be decoded, as it drops all errors."""
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
    """Send a request, or take its response from a cache.

    Args:
        transport: Sends the request.
        request: The request.
        cache: The cache, or None for no cache.
        ttl: Seconds to keep the response; by default the cache's `ttl`.
        read_timeout: Seconds of silence.

    Raises:
        WMEError: The request failed.
    """
    if cache is None:
        return await transport.request(request, read_timeout=read_timeout)
    # The request may be that of another client; closing this one ends the wait for it.
    async with transport.wait():
        return await cache.fetch(
            (transport.account, request.method, request.path, request.headers.get("Accept"), request.body),
            lambda: transport.request(request, read_timeout=read_timeout),
            ttl=cache.ttl if ttl is None else ttl,
            monotonic=transport.monotonic,
            closed=lambda: transport.closed,
        )
