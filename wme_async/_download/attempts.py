"""The attempts at one range, and the rejected signatures that end them."""

from wme_async._transport import Transport
from wme_async._transport.retry import Backoff
from wme_async.errors import WMEError

SIGNATURES_REFUSED = "new signatures were refused too: is the clock of this machine or of a proxy wrong?"

# Wrong responses after which the same request is not sent again.
MAX_WRONG_RESPONSES = 2


class Attempts:
    """The attempts at one lease since its last progress.

    Args:
        transport: Has the retry policy and the clock.
        beside: Bytes of the file that other connections have received so far.
    """

    def __init__(self, transport: Transport, beside: int) -> None:
        self._clock = transport.monotonic
        self._backoff = Backoff(transport.retry, transport.random.random)
        self.reset(beside)

    def reset(self, beside: int) -> None:
        """Begin again after progress."""
        self._backoff.reset()
        self._since = self._clock()
        self.beside = beside

    @property
    def count(self) -> int:
        """How many attempts have failed."""
        return self._backoff.attempts

    @property
    def elapsed(self) -> float:
        """Seconds since the first attempt, or the last progress."""
        return self._clock() - self._since

    def failed(self, error: WMEError) -> float | None:
        """Count a failure and return the seconds to wait before the next attempt; None if it was the last."""
        return self._backoff.failed(error, elapsed=self.elapsed)
