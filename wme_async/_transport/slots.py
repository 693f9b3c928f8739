"""How many requests may have a connection at the same time, and who waits for one."""

import asyncio
import logging
import math
from collections import deque

__all__ = ["Slots"]

logger = logging.getLogger("wme_async.transport")

# Seconds without a free connection after which a log line says so, and between two such lines.
_TELL_AFTER = 10.0
_TELL_AGAIN = 60.0


class Slots:
    """A bound on connections, first come, first served.

    It takes the place of aiohttp's own, whose waiters are neither counted nor told apart, are cancelled when a session
    is closed, and wait behind connections that are never given back, such as those of a stream.

    Args:
        name: What the connections lead to, for messages.
        limit: How many requests may have one at a time, None for any number.

    Attributes:
        in_use: Connections in use.
        reserved: Connections that are held for good, by streams, out of the limit.
    """

    def __init__(self, name: str, limit: int | None) -> None:
        self._name = name
        self._limit = math.inf if limit is None else limit
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._moved = 0.0
        self._told = -math.inf
        self.in_use = 0
        self.reserved = 0

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection."""
        return len(self._waiters)

    @property
    def free(self) -> float:
        """How many more connections may be reserved: one at least is left for requests."""
        return self._limit - self.reserved - 1

    def reserve(self, count: int) -> None:
        """Take connections out of the limit for good, or give them back with a negative number."""
        self.reserved += count
        self._hand_out()

    async def acquire(self, seconds: float | None) -> None:
        """Wait for a connection.

        Args:
            seconds: How long to wait at most without anybody's giving one back, so that a long queue which moves is no
                error; None for any time.

        Raises:
            TimeoutError: No connection was given back for as long.
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
        """Give a connection back."""
        self.in_use -= 1
        self._hand_out()

    async def _wait(self, waiter: "asyncio.Future[None]", seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not waiter.done():
            silence = loop.time() - max(began, self._moved)
            if seconds is not None and silence >= seconds:
                raise TimeoutError(f"no connection to the {self._name} was given back for {seconds:g} s")
            if silence >= _TELL_AFTER:
                self._tell(loop.time(), silence)
            await asyncio.wait([waiter], timeout=min(_TELL_AFTER, math.inf if seconds is None else seconds - silence))

    def _tell(self, now: float, silence: float) -> None:
        if now - self._told < _TELL_AGAIN:
            return
        self._told = now
        logger.warning(
            "%d requests wait for one of the %g connections to the %s, and none was given back for %.0f s; close what "
            "is open, or raise Limits(connections=...)",
            len(self._waiters),
            self._limit - self.reserved,
            self._name,
            silence,
        )

    def _hand_out(self) -> None:
        while self._waiters and self.in_use < self._limit - self.reserved:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_use += 1
                self._moved = waiter.get_loop().time()
                waiter.set_result(None)
