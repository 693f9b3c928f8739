"""Rates without a clock of their own: a limit on how often or how fast, and a measured rate.

Times are seconds from any origin, passed in by the caller and never decreasing.
"""

import math


class TokenBucket:
    """A limit on tokens per second, be they requests or bytes.

    Tokens flow in at the rate, up to the capacity. A caller may take more than there are, and then waits until the
    level is back at zero, so that the bucket serves callers in their order.

    Args:
        rate: Tokens per second; None for no limit.
        capacity: Tokens that are available at once after a quiet time.
    """

    __slots__ = ("_at", "_capacity", "_level", "rate")

    def __init__(self, rate: float | None, capacity: float) -> None:
        self.rate: float | None = rate
        self._capacity = capacity
        self._level = capacity
        self._at = -math.inf

    def take(self, count: float, now: float) -> float:
        """Take tokens and return how many seconds to wait before using them."""
        if self.rate is None:
            return 0.0
        self._level = min(self._level + (now - self._at) * self.rate, self._capacity) - count
        self._at = now
        return -self._level / self.rate if self._level < 0 else 0.0

    def delay(self, count: float, now: float) -> float:
        """Return the seconds until so many tokens are there, and take none."""
        if self.rate is None:
            return 0.0
        level = min(self._level + (now - self._at) * self.rate, self._capacity)
        return max(0.0, (count - level) / self.rate)


class RateMeter:
    """A rate with exponential decay: recent units count most.

    Args:
        now: Seconds, when it begins.
        tau: Seconds after which a byte counts only a third.
    """

    __slots__ = ("_at", "_sum", "_tau", "_weight")

    def __init__(self, now: float, tau: float = 2.0) -> None:
        self._at = now
        self._sum = 0.0
        self._weight = 0.0
        self._tau = tau

    def add(self, count: int, now: float) -> None:
        """Count bytes that came since the last call."""
        span = now - self._at
        if span > 0:
            fade = math.exp(-span / self._tau)
            # Spread over the span in which they came, so that long gaps between calls do not look like bursts.
            self._sum = self._sum * fade + count * (1 - fade) * self._tau / span
            self._weight = self._weight * fade + self._tau * (1 - fade)
            self._at = now
        else:
            self._sum += count

    def rate(self, now: float) -> float:
        """Return units per second, at a time that is not before the last `add`."""
        fade = math.exp(-max(0.0, now - self._at) / self._tau)
        weight = self._weight * fade + self._tau * (1 - fade)
        return self._sum * fade / weight if weight > 0 else 0.0
