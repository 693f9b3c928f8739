"""How fast a stream goes, and when it will have caught up."""

from collections import deque
from datetime import datetime

__all__ = ["Meter"]

_WINDOW = 60.0
_STEP = 1.0
_CURRENT = 5.0


class Meter:
    """Samples counts and publication times over the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, datetime | None]] = deque()

    def sample(self, at: float, events: int, published: datetime | None) -> None:
        """Take a sample, unless the last one is less than a second old.

        Args:
            at: Seconds, never going back.
            events: Count so far.
            published: When the last event was published.
        """
        if self._samples and at - self._samples[-1][0] < _STEP:
            return
        self._samples.append((at, events, published))
        while at - self._samples[0][0] > _WINDOW:
            self._samples.popleft()

    def rate(self, at: float, events: int) -> float:
        """Return events a second since the oldest sample."""
        if not self._samples or at <= self._samples[0][0]:
            return 0.0
        return (events - self._samples[0][1]) / (at - self._samples[0][0])

    def catch_up(self, at: float, published: datetime | None, lag: float | None) -> float | None:
        """Return the seconds until the lag is gone; None where it does not shrink or is not known.

        Args:
            at: Seconds.
            published: When the last event was published.
            lag: Seconds between that and now.
        """
        if lag is None or published is None:
            return None
        if lag < _CURRENT:
            return 0.0
        for then, _, before in self._samples:
            if before is not None and at > then:
                speed = (published - before).total_seconds() / (at - then)
                return lag / (speed - 1) if speed > 1 else None
        return None
