"""A client-side limit of requests a second."""

from collections.abc import Awaitable, Callable

from wme_async._rates import TokenBucket


class Throttle:
    """Delays requests to a rate, first come, first served.

    Args:
        rate: Requests a second; None lets everything through, but still honours `pause`.
        burst: Requests that may start at once after a quiet time.
        monotonic: Seconds, from any origin.
        sleep: Waits.
    """

    def __init__(
        self,
        rate: float | None,
        burst: int,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._bucket = TokenBucket(rate, burst)
        self._monotonic = monotonic
        self._sleep = sleep
        self._paused_until = 0.0
        self.waiting = 0

    @property
    def idle(self) -> bool:
        """Whether `wait` has no effect: there is no limit and has been no pause."""
        return self._bucket.rate is None and not self._paused_until

    def pause(self, seconds: float) -> None:
        """Start no request for some seconds, as `Retry-After` demands of all requests."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)

    async def wait(self) -> None:
        """Wait for our turn. A cancelled wait does not give its turn back: the limit errs on the slow side."""
        while True:
            now = self._monotonic()
            resumed = max(now, self._paused_until)
            start = resumed + self._bucket.take(1, resumed)
            if start <= now:
                return
            self.waiting += 1
            try:
                await self._sleep(start - now)
            finally:
                self.waiting -= 1
            # A pause that began during the wait prolongs it.
            if self._paused_until <= start:
                return
