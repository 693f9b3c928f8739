"""The shared means of downloads: connections, bandwidth, and signed URLs."""

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable

from wme_async._arguments import check_numbers
from wme_async._download.connection_counts import ConnectionTuner
from wme_async._download.source import SignedUrl, Source
from wme_async._rates import TokenBucket
from wme_async._tasks import AdaptiveExecutor
from wme_async._transport import Transport
from wme_async.errors import WMEError

# Connections that a single file begins with.
_FIRST = 4
# Bytes of this many seconds may come at once after a pause, where the rate is limited.
_BURST_SECONDS = 0.1


class Budget:
    """Connections and bandwidth of any number of downloads at once, within one event loop.

    Args:
        connections: Connections at most. Fewer are used as long as more do not raise the rate.
        start: Connections to begin with.
        max_rate: Bytes per second for all together, None for no limit.

    Raises:
        TypeError: A value is not a number.
        ValueError: A number is out of range.
    """

    def __init__(self, connections: int = 16, *, start: int = 8, max_rate: float | None = None) -> None:
        check_numbers(whole=True, optional=False, minimum=1, connections=connections)
        check_numbers(whole=True, optional=False, start=start)
        check_numbers(above=0, unit="bytes per second", max_rate=max_rate)
        self.tuner: ConnectionTuner = ConnectionTuner(start=start, most=connections)
        self.bucket: TokenBucket = TokenBucket(max_rate, _BURST_SECONDS * (max_rate or 0.0))
        self.rate: float = 0.0
        self.files = 0
        self.short_work: AdaptiveExecutor = AdaptiveExecutor()
        self._in_use = 0
        self._moved = 0
        self._requests = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @classmethod
    def for_one(cls, connections: int | None, max_rate: float | None) -> "Budget":
        """Return the budget of a single file.

        A large file soon gets more connections if they raise the rate. Where a few already saturate the line or this
        machine, each further one costs processor time and memory, and with TLS not a little.

        Args:
            connections: Connections at most, up to eight of them from the start; None lets the measured rate decide.
            max_rate: As in the class.
        """
        return cls(max_rate=max_rate, start=_FIRST) if connections is None else cls(connections, max_rate=max_rate)

    def __repr__(self) -> str:
        return f"<Budget {self._in_use} of {self.tuner.allowed} connections, {len(self._waiting)} waiting>"

    @property
    def contended(self) -> bool:
        """Whether a file waits for a connection."""
        return bool(self._waiting)

    @property
    def share(self) -> int:
        """How many connections each file may expect."""
        return max(1, self.tuner.allowed // max(1, self.files))

    def try_acquire(self) -> bool:
        """Take a connection if one is free and no file waits."""
        if self._waiting or self._in_use >= self.tuner.allowed:
            return False
        self._in_use += 1
        return True

    async def acquire(self) -> None:
        """Wait for a connection. First come, first served."""
        if self.try_acquire():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.release()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def release(self) -> None:
        """Return a connection."""
        self._in_use -= 1
        self._hand_out()

    def moved(self, count: int, now: float) -> float:
        """Count received bytes, and return the seconds to wait because of `max_rate`."""
        self._moved += count
        return self.bucket.take(count, now)

    def finished(self) -> None:
        """Count a finished request."""
        self._requests += 1

    def tick(self, now: float) -> None:
        """Adapt the number of connections; call it several times a second."""
        self.tuner.tick(now, moved=self._moved, requests=self._requests, waiting=self.contended)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._in_use < self.tuner.allowed:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._in_use += 1
                waiter.set_result(None)


class SignedUrlCache:
    """The signed URL of one file, renewed once for all connections.

    Args:
        source: Signs URLs.
        clock: The transport's monotonic clock.

    Attributes:
        requests: How many URLs were signed.
        plain: It is a URL of the user's, which is free, and whose bytes no metadata describes.
        failure: The error of the last signature. The source has retried already, so that `get` raises it again unless
            `forgive` clears it.
    """

    _STRIKES = 3

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._signed: SignedUrl | None = None
        self._lock = asyncio.Lock()
        self._strikes = 0
        self._forgiven = False
        self.requests = 0
        self.plain = False
        self.failure: WMEError | None = None

    @property
    def expired(self) -> bool:
        """Whether the next `get` has to renew the URL."""
        return self.requests > 0 and self._current() is None

    @property
    def lifetime(self) -> float | None:
        """Seconds until the URL expires; None if it never does, or is not signed yet."""
        signed = self._signed
        if signed is None:
            return 0.0 if self.requests else None
        return None if signed.expires_at is None else signed.expires_at - self._clock()

    async def get(self) -> SignedUrl:
        """Return a URL that is valid as far as known.

        Raises:
            WMEError: Signing failed.
        """
        async with self._lock:
            signed = self._current()
            if signed is None:
                if self.failure is not None:
                    raise copy.copy(self.failure)
                self.requests += 1
                try:
                    signed = self._signed = await self._source.sign()
                    self.plain = signed.role == "public"
                except WMEError as error:
                    # A copy: the error itself would keep its frames alive.
                    self.failure = copy.copy(error)
                    raise
            return signed

    def forgive(self) -> bool:
        """Clear a failure, once, since the failed request may have been charged all the same.

        Returns:
            Whether it was cleared.
        """
        if self._forgiven:
            return False
        self._forgiven = True
        self.failure = None
        return True

    def worked(self) -> None:
        """Note that the store accepted the URL."""
        self._strikes = 0

    def refused(self, signed: SignedUrl) -> None:
        """Note that the store rejected a URL; the next `get` renews it."""
        if self._signed is signed:
            self._signed = None
            self._strikes += 1

    @property
    def exhausted(self) -> bool:
        """Whether new URLs were rejected too."""
        return self._strikes >= self._STRIKES

    def _current(self) -> SignedUrl | None:
        lifetime = self.lifetime
        return self._signed if lifetime is None or lifetime > 0 else None


def after(writing: Awaitable[None] | None, transport: Transport, delay: float) -> Awaitable[None] | None:
    """Return an awaitable of a write and a delay, or None if there is nothing to wait for."""
    if delay <= 0:
        return writing

    async def both() -> None:
        if writing is not None:
            await writing
        await transport.sleep(delay)

    return both()
