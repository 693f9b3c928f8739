"""A limit on connections, with a queue of requests."""

import asyncio
import logging
import math
from collections import deque

logger: logging.Logger = logging.getLogger("wme_async.transport")

# Seconds without a free connection before a warning is logged, and between two warnings.
_WARN_AFTER = 10.0
_WARN_INTERVAL = 60.0


class Slots:
    """A limit on connections, first come, first served.

    It replaces the limit of aiohttp, whose queue cannot be counted, is cancelled when a session is closed, and waits
    behind connections that are never released, such as those of streams.

    Args:
        name: The peer of the connections, for messages.
        limit: The most connections at a time; None for any number.

    Attributes:
        in_use: Connections in use.
        reserved: Connections of streams, which are never released, out of the limit.
    """

    def __init__(self, name: str, limit: int | None) -> None:
        self._name = name
        self._limit = math.inf if limit is None else limit
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._granted_at = 0.0
        self._warned_at = -math.inf
        self.in_use: int = 0
        self.reserved: int = 0

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        return len(self._waiters)

    @property
    def free(self) -> float:
        """The number of connections that can still be reserved; one at least remains for requests."""
        return self._limit - self.reserved - 1

    def reserve(self, count: int) -> None:
        """Take connections out of the limit, or return them with a negative number."""
        self.reserved += count
        self._grant()

    async def acquire(self, seconds: float | None) -> None:
        """Wait for a connection.

        Args:
            seconds: The time limit since the last connection was released, so that a long queue that moves is not an
                error; None for no limit.

        Raises:
            TimeoutError: No connection was released for that time.
        """
        if not self._waiters and self.in_use < self._limit - self.reserved:
            self.in_use += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await self._wait(waiter, seconds)
        except BaseException:
            if waiter.done():
                self.release()
            else:
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Release a connection."""
        self.in_use -= 1
        self._grant()

    async def _wait(self, waiter: "asyncio.Future[None]", seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not waiter.done():
            silence = loop.time() - max(started, self._granted_at)
            if seconds is not None and silence >= seconds:
                raise TimeoutError(f"no connection to the {self._name} was released for {seconds:g} s")
            if silence >= _WARN_AFTER and loop.time() - self._warned_at >= _WARN_INTERVAL:
                self._warned_at = loop.time()
                self._warn(silence)
            await asyncio.wait([waiter], timeout=min(_WARN_AFTER, math.inf if seconds is None else seconds - silence))

    def _warn(self, silence: float) -> None:
        logger.warning(
            "%d requests wait for one of the %g connections to the %s, and none was released for %.0f s; close open "
            "bodies, or raise Limits(connections=...)",
            len(self._waiters),
            self._limit - self.reserved,
            self._name,
            silence,
        )

    def _grant(self) -> None:
        while self._waiters and self.in_use < self._limit - self.reserved:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_use += 1
                self._granted_at = waiter.get_loop().time()
                waiter.set_result(None)
