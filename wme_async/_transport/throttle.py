"""A client-side limit of requests a second."""

from collections.abc import Awaitable, Callable

__all__ = ["Throttle"]


class Throttle:
    """A token bucket that hands out start times, first come, first served.

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
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._tolerance = (burst - 1) * self._interval
        self._monotonic = monotonic
        self._sleep = sleep
        self._next = 0.0
        self._paused_until = 0.0
        self.waiting = 0

    @property
    def idle(self) -> bool:
        """There is no limit and never was a pause, so that `wait` would do nothing."""
        return not self._interval and not self._paused_until

    def pause(self, seconds: float) -> None:
        """Let nothing start for some seconds: the server asked for it, and it meant all of us."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)

    async def wait(self) -> None:
        """Wait for our turn. One that is cancelled while waiting is not given back: the limit errs on the slow side."""
        while True:
            now = self._monotonic()
            # The schedule runs one interval a request, and stands still in a pause; a request may start before its
            # place in it by what a burst allows.
            scheduled = max(self._next, now, self._paused_until)
            self._next = scheduled + self._interval
            until = max(scheduled - self._tolerance, self._paused_until)
            if until <= now:
                return
            self.waiting += 1
            try:
                await self._sleep(until - now)
            finally:
                self.waiting -= 1
            # A pause that began meanwhile is for us too.
            if self._paused_until <= until:
                return
