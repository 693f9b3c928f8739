"""When to try again, and after how long. No clock and no randomness of its own: both are passed in."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from wme_async.errors import (
    QuotaExceeded,
    RateLimited,
    ServerError,
    StatusError,
    TransportError,
    WMEError,
)
from wme_async.settings import Retry

__all__ = [
    "Backoff",
    "Retrying",
    "http_date",
    "is_transient",
    "jittered_delay",
    "next_delay",
    "note_attempts",
    "parse_retry_after",
]


_SECONDS = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]*)?")
_CENTURY = 100 * 365.25 * 86_400.0


class Retrying(msgspec.Struct, frozen=True, kw_only=True):
    """One retry that was decided: what `on_retry` hooks receive, before the wait.

    Args:
        what: The request, as method and URL without query.
        attempt: The attempt that failed, counted from 1.
        wait: Seconds until the next one.
        elapsed: Seconds since the first one began.
        error: Why.
    """

    what: str
    attempt: int
    wait: float
    elapsed: float
    error: WMEError


def is_transient(error: WMEError) -> bool:
    """Say whether another attempt at the same thing may succeed.

    Transport trouble that is not known to stay, 5xx, and 429 that is not an exhausted quota. 408, 425 and 499 come from
    proxies, which mean the same by them.
    """
    if isinstance(error, QuotaExceeded) or (isinstance(error, TransportError) and error.permanent):
        return False
    if isinstance(error, TransportError | ServerError | RateLimited):
        return True
    return isinstance(error, StatusError) and error.status in {408, 425, 499}


def http_date(value: str | None) -> datetime | None:
    """Read a date of HTTP, in any of its forms; None where it is absent or unreadable.

    HTTP knows no zone but GMT: a date without one is in it, and not in that of this machine.
    """
    try:
        found = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Read a `Retry-After` header: seconds, or an HTTP date.

    Args:
        value: The header.
        now: UTC epoch seconds.

    Returns:
        Seconds from now, from 0 to a hundred years; None where it is absent or unreadable.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        date = http_date(text)
        if date is None:
            return None
        seconds = date.timestamp() - now
    return min(max(0.0, seconds), _CENTURY)


def next_delay(planned: float, retry_after: float | None, *, cap: float) -> float:
    """Return the seconds to wait before the next attempt: the one rule for everything that is tried again.

    The server can lengthen our own wait and never shorten it: `Retry-After: 0`, a negative number or a date that has
    passed would otherwise have every client ask again at once.

    Args:
        planned: Our own wait, with its jitter.
        retry_after: Seconds the server asked for, if it did.
        cap: The most that the server may ask for.
    """
    return planned if retry_after is None else max(planned, min(retry_after, cap))


def jittered_delay(retry: Retry, attempts: int, random: Callable[[], float]) -> float:
    """Return our own wait after so many failed attempts: exponential, with full jitter.

    Args:
        retry: The policy.
        attempts: Failed attempts so far, at least 1.
        random: Gives numbers from 0.0 up to 1.0.
    """
    # The exponent is bounded: the wait reaches `cap` long before the power overflows a float.
    return random() * min(retry.cap, retry.base * 2.0 ** min(attempts - 1, 64))


class Backoff:
    """The waits of one series of attempts.

    Args:
        retry: The policy.
        random: Gives numbers from 0.0 up to 1.0.
    """

    __slots__ = ("_random", "_retry", "attempts")

    def __init__(self, retry: Retry, random: Callable[[], float]) -> None:
        self._retry = retry
        self._random = random
        self.attempts = 0

    def reset(self) -> None:
        """Forget the failures so far: there was progress."""
        self.attempts = 0

    def failed(self, *, elapsed: float, retry_after: float | None = None) -> float | None:
        """Count one failed attempt and say how long to wait before the next.

        Args:
            elapsed: Seconds since the series began, or since its last progress.
            retry_after: What the server asked for, in seconds.

        Returns:
            Seconds to wait, or None to give up.
        """
        retry = self._retry
        self.attempts += 1
        if self.attempts >= retry.attempts:
            return None
        if retry_after is not None and retry_after > retry.retry_after_cap:
            return None
        wait = next_delay(jittered_delay(retry, self.attempts, self._random), retry_after, cap=retry.retry_after_cap)
        return None if elapsed + wait > retry.total else wait


def note_attempts(error: WMEError, *, attempts: int, elapsed: float) -> WMEError:
    """Note on an error how much was tried; the error itself stays what it was."""
    if attempts > 1:
        error.add_note(f"gave up after {attempts} attempts in {elapsed:.1f} s")
    return error
