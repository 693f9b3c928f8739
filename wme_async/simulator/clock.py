"""The clock that every part of the simulator reads: real time plus an offset, or standing still."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["Clock"]

source: Callable[[], float] = time.time
"""Returns UTC epoch seconds: the only reading of this machine's date in the simulator, replaced by tests."""


class Clock:
    """UTC time in epoch seconds, movable by hand.

    Tokens, signed addresses, retention and monthly counters are all judged by this one clock, so that a test ages them
    by `advance` and never by waiting.

    Args:
        start: The time at which the clock begins: epoch seconds, an aware datetime, or None for the real time.
        frozen: Whether the clock stands still between calls of `advance`.

    Attributes:
        listeners: Called after the clock was moved by hand.
    """

    def __init__(self, start: float | datetime | None = None, *, frozen: bool = False) -> None:
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise ValueError("start must be an aware datetime")
            start = start.timestamp()
        elif start is not None and (isinstance(start, bool) or not isinstance(start, int | float)):
            raise TypeError(f"start is epoch seconds, an aware datetime or None, not {start!r}")
        self._base = source() if start is None else float(start)
        self._origin = time.monotonic()
        self._frozen = frozen
        self.listeners: list[Callable[[], None]] = []

    def now(self) -> float:
        """Return the time in epoch seconds, UTC."""
        return self._base if self._frozen else self._base + (time.monotonic() - self._origin)

    __call__ = now

    def utc(self) -> datetime:
        """Return the time as an aware datetime in UTC."""
        return datetime.fromtimestamp(self.now(), UTC)

    def advance(self, seconds: float) -> None:
        """Move the clock forward, or back with a negative number of seconds."""
        self._base += seconds
        self._moved()

    def set(self, when: float | datetime) -> None:
        """Set the clock to epoch seconds or to an aware datetime; it runs on from there unless it is frozen."""
        if isinstance(when, datetime) and when.tzinfo is None:
            raise ValueError("when must be an aware datetime")
        self._base = when.timestamp() if isinstance(when, datetime) else float(when)
        self._origin = time.monotonic()
        self._moved()

    def _moved(self) -> None:
        for listener in self.listeners:
            listener()

    def __repr__(self) -> str:
        return f"Clock({self.utc().isoformat()}{', frozen' if self._frozen else ''})"
