"""How many connections at once: what pays, and what a server bears. No clock of its own."""

import math

__all__ = ["ConnectionCap", "ConnectionTuner"]


class ConnectionCap:
    """How many connections a server bears for one file.

    It is lowered when the server refuses a connection beside others that it serves. After a while one more is tried, if
    the others have brought something; each time that it is refused again, the next try is later.

    Args:
        most: Connections to use where nothing is refused.

    Attributes:
        allowed: Connections that may be used now, at least 1.
    """

    __slots__ = ("_done", "_hold", "_lowered_at", "_most", "_next_try", "allowed")

    # Seconds until one more is tried, and refusals within this time count once.
    _HOLD = 5.0
    _HOLD_MOST = 60.0
    _MOMENT = 1.0

    def __init__(self, most: int) -> None:
        self._most = most
        self._done = 0
        self._hold = self._HOLD / 2
        self._lowered_at = -math.inf
        self._next_try = -math.inf
        self.allowed = most

    @property
    def lowered(self) -> bool:
        """Whether fewer connections than usual are used."""
        return self.allowed < self._most

    def lower(self, served: int, now: float, *, done: int, retry_after: float | None = None) -> None:
        """Use no more connections than the server serves.

        Args:
            served: Connections that it serves now, without the one that was refused.
            now: Seconds.
            done: Bytes of the file that are there.
            retry_after: Seconds until another may be tried, as the server wants it.
        """
        self.allowed = max(1, min(self.allowed, served))
        if now - self._lowered_at > self._MOMENT:
            self._hold = min(self._HOLD_MOST, 2 * self._hold)
        self._lowered_at = now
        self._done = done
        self._next_try = max(self._next_try, now + max(self._hold, retry_after or 0.0))

    def tick(self, now: float, *, done: int) -> None:
        """Allow one more connection if it is time for it. Call it several times a second.

        Args:
            now: Seconds.
            done: Bytes of the file that are there.
        """
        if self.allowed >= self._most or now < self._next_try or done <= self._done:
            return
        self.allowed += 1
        self._next_try = now + self._MOMENT
        if self.allowed == self._most:
            self._hold = self._HOLD / 2


class ConnectionTuner:
    """How many connections at once, by what they bring.

    It begins with a few, takes half as many more as long as that pays, and steps back when it does not. Later it tries
    now and then with one more. When the server says that it is too much, it halves.

    Args:
        start: Connections to begin with.
        most: Never more than this.
        period: Seconds between two looks.
    """

    __slots__ = (
        "_before",
        "_hold",
        "_looked",
        "_patience",
        "_period",
        "_refused",
        "_saturated",
        "_settled",
        "_work",
        "allowed",
        "most",
    )

    # A started request counts like this many bytes: with many small files it is requests that more connections bring.
    _REQUEST = 128 * 1024
    _SETTLE = 0.4

    def __init__(self, *, start: int = 8, most: int = 16, period: float = 0.5) -> None:
        self.most: int = most
        self.allowed: int = max(1, min(start, most))
        self._period = period
        self._looked: float | None = None
        self._work = 0.0
        self._before: tuple[int, float] | None = None
        self._hold = 0.0
        self._patience = 5.0
        self._refused = -math.inf
        self._saturated = True
        self._settled = False

    def refused(self, now: float) -> None:
        """Note that the server wants less (429 or 503). Answers to requests of the same moment count once."""
        if now - self._refused < 1.0:
            return
        self._refused = now
        self.allowed = max(1, self.allowed // 2)
        self._before = None
        self._hold = now + 15.0
        self._looked = None

    def tick(self, now: float, *, moved: int, requests: int, waiting: bool) -> None:
        """Look at what was done; call it often, it looks only once in a period.

        Args:
            now: Seconds.
            moved: Bytes that came since the beginning, on all connections.
            requests: Requests that were finished since the beginning.
            waiting: Whether all allowed connections are in use and more would be.
        """
        work = moved + self._REQUEST * requests
        if self._looked is None:
            self._begin(now, work)
            return
        self._saturated = self._saturated and waiting
        if not self._settled and now - self._looked >= self._SETTLE * self._period:
            # What came before the new connections were up says nothing about them.
            self._settled = True
            self._looked += self._SETTLE * self._period
            self._work = work
            return
        if not self._settled or now - self._looked < self._period:
            return
        rate = (work - self._work) / (now - self._looked)
        if self._saturated and now >= self._hold:
            self._decide(rate, now)
        elif not self._saturated:
            self._before = None
        self._begin(now, work)

    def _begin(self, now: float, work: float) -> None:
        self._looked = now
        self._work = work
        self._saturated = True
        self._settled = False

    def _decide(self, rate: float, now: float) -> None:
        if self._before is not None:
            fewer, slower = self._before
            # A quarter of what the new ones would bring if the line were free is enough to keep them.
            if rate < slower * (1 + 0.25 * (self.allowed / fewer - 1)):
                self.allowed = fewer
                self._before = None
                self._hold = now + self._patience
                self._patience = min(300.0, self._patience * 2)
                return
        if self.allowed < self.most:
            self._before = (self.allowed, rate)
            self.allowed = min(self.most, self.allowed + max(1, self.allowed // 2))
        else:
            self._before = None
