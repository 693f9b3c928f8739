"""The number of connections: how many raise the rate, and how many a server accepts. No clock of its own."""

import math


class ConnectionCap:
    """How many connections a server accepts for one file.

    The cap is lowered when the server rejects a connection beside others that it serves. After a while one more is
    allowed, if the others have made progress; after each further rejection the next try is later.

    Args:
        most: Connections where the server rejects none.

    Attributes:
        allowed: Connections that may be used now, at least 1.
    """

    # Seconds until one more is allowed; rejections within a moment count once.
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
        """Lower the cap to the connections that the server serves.

        Args:
            served: Connections that it serves now, without the rejected one.
            now: Seconds.
            done: Bytes of the file that are there.
            retry_after: Seconds that the server wants before another connection.
        """
        self.allowed = max(1, min(self.allowed, served))
        if now - self._lowered_at > self._MOMENT:
            self._hold = min(self._HOLD_MOST, 2 * self._hold)
        self._lowered_at = now
        self._done = done
        self._next_try = max(self._next_try, now + max(self._hold, retry_after or 0.0))

    def tick(self, now: float, *, done: int) -> None:
        """Allow one more connection when it is time. Call it several times a second.

        Args:
            now: Seconds.
            done: Bytes of the file that are there.
        """
        if self.lowered and now >= self._next_try and done > self._done:
            self.allowed += 1
            self._next_try = now + self._MOMENT
            if not self.lowered:
                self._hold = self._HOLD / 2


class ConnectionTuner:
    """Finds the number of connections by the rate that they achieve.

    It begins with a few, adds half as many as long as that raises the rate, and steps back when it does not. Later it
    tries more again from time to time. A server that is overloaded halves the number.

    Args:
        start: Connections to begin with.
        most: Never more than this.
        period: Seconds between two measurements.
    """

    # A finished request counts like this many bytes: with many small files, more connections bring more requests.
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
        """Note a 429 or 503. Responses to requests of the same moment count once."""
        if now - self._refused >= 1.0:
            self._refused = now
            self.allowed = max(1, self.allowed // 2)
            self._before = None
            self._hold = now + 15.0
            self._looked = None

    def tick(self, now: float, *, moved: int, requests: int, waiting: bool) -> None:
        """Measure the rate and adapt the number; call it often, it measures once in a period.

        Args:
            now: Seconds.
            moved: Bytes received since the beginning, on all connections.
            requests: Requests finished since the beginning.
            waiting: Whether all allowed connections are in use and a file waits for one more.
        """
        work = moved + self._REQUEST * requests
        if self._looked is None:
            self._begin(now, work)
            return
        self._saturated = self._saturated and waiting
        if not self._settled and now - self._looked >= self._SETTLE * self._period:
            # Bytes from before the new connections were up say nothing about them.
            self._settled = True
            self._looked += self._SETTLE * self._period
            self._work = work
        elif self._settled and now - self._looked >= self._period:
            if not self._saturated:
                self._before = None
            elif now >= self._hold:
                self._decide((work - self._work) / (now - self._looked), now)
            self._begin(now, work)

    def _begin(self, now: float, work: float) -> None:
        self._looked = now
        self._work = work
        self._saturated = True
        self._settled = False

    def _decide(self, rate: float, now: float) -> None:
        if self._before is not None:
            fewer, slower = self._before
            # A quarter of the gain on a free line is enough to keep the new connections.
            if rate < slower * (1 + 0.25 * (self.allowed / fewer - 1)):
                self.allowed = fewer
                self._before = None
                self._hold = now + self._patience
                self._patience = min(300.0, self._patience * 2)
                return
        self._before = (self.allowed, rate) if self.allowed < self.most else None
        self.allowed = min(self.most, self.allowed + max(1, self.allowed // 2))
