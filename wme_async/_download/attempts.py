"""How often bytes are asked for: one series of attempts, and when refused addresses end it."""

from wme_async._download.budget import SignedUrlCache
from wme_async._transport import Transport
from wme_async._transport.retry import Backoff
from wme_async.errors import WMEError

__all__ = ["MAX_WRONG_RESPONSES", "SIGNATURES_REFUSED", "Attempts", "check_signatures"]

SIGNATURES_REFUSED = "new signatures were refused too: is the clock of this machine or of a proxy wrong?"

# Answers that are not what was asked for, after which the same request is not worth another attempt.
MAX_WRONG_RESPONSES = 2


class Attempts:
    """The attempts at one lease since bytes of it came last.

    Args:
        transport: Has the policy and the clock.
        beside: Bytes of the file that other connections have brought by now.
    """

    def __init__(self, transport: Transport, beside: int) -> None:
        self._clock = transport.monotonic
        self._backoff = Backoff(transport.retry, transport.random.random)
        self.reset(beside)

    def reset(self, beside: int) -> None:
        """Begin anew: there was progress."""
        self._backoff.reset()
        self._since = self._clock()
        self.beside = beside

    @property
    def count(self) -> int:
        """How many have failed."""
        return self._backoff.attempts

    @property
    def elapsed(self) -> float:
        """Seconds since the first of them, or the last progress."""
        return self._clock() - self._since

    def failed(self, error: WMEError) -> float | None:
        """Return the seconds to wait before the next one, None where it was the last."""
        return self._backoff.failed(elapsed=self.elapsed, retry_after=getattr(error, "retry_after", None))


def check_signatures(signed_urls: SignedUrlCache, error: WMEError) -> None:
    """Let a refused address be renewed, unless new ones are refused too.

    Raises:
        WMEError: They are.
    """
    if signed_urls.hopeless:
        error.add_note(SIGNATURES_REFUSED)
        raise error
