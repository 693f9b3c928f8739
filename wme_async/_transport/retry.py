"""When to retry, and after which delay. Pure: the clock and the randomness are arguments."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

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

_SECONDS = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]*)?")
_CENTURY = 100 * 365.25 * 86_400.0


class Retrying(msgspec.Struct, frozen=True, kw_only=True):
    """A retry that is about to happen: the argument of `on_retry` hooks, before the wait.

    Args:
        what: The request, as method and URL without query.
        attempt: The failed attempt, counted from 1.
        wait: Seconds until the next attempt.
        elapsed: Seconds since the first attempt began.
        error: The error of the failed attempt.
    """

    what: str
    attempt: int
    wait: float
    elapsed: float
    error: WMEError


# By these, proxies mean a temporary failure.
TEMPORARY: Final = frozenset({408, 425, 499})


def is_transient(error: WMEError) -> bool:
    """Return whether another attempt may succeed.

    True for transport errors that are not permanent, 5xx, 429 without an exhausted quota, and 408, 425 and 499, by
    which proxies mean a temporary failure too.
    """
    if isinstance(error, QuotaExceeded) or (isinstance(error, TransportError) and error.permanent):
        return False
    return isinstance(error, TransportError | ServerError | RateLimited) or (
        isinstance(error, StatusError) and error.status in TEMPORARY
    )


def http_date(value: str | None) -> datetime | None:
    """Parse a date of HTTP, in any of its forms; None if it is absent or malformed.

    All dates of HTTP are in GMT, those without a zone too.
    """
    try:
        date = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Parse a `Retry-After` header: seconds, or an HTTP date.

    Args:
        value: The header.
        now: UTC epoch seconds.

    Returns:
        Seconds from now, from 0 to a hundred years; None if it is absent or malformed.
    """
    text = (value or "").strip()
    date = http_date(text)
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif date is not None:
        seconds = date.timestamp() - now
    else:
        return None
    return min(max(0.0, seconds), _CENTURY)


def next_delay(planned: float, retry_after: float | None, *, cap: float) -> float:
    """Return the seconds to wait before the next attempt: the rule for all retries.

    `Retry-After` can lengthen the planned delay and never shorten it: with `Retry-After: 0`, or a date in the past, all
    clients would otherwise retry at once.

    Args:
        planned: The delay by the backoff, with its jitter.
        retry_after: Seconds of `Retry-After`, if the response has it.
        cap: The longest `Retry-After` to obey.
    """
    return planned if retry_after is None else max(planned, min(retry_after, cap))


def jittered_delay(retry: Retry, attempts: int, random: Callable[[], float]) -> float:
    """Return the delay after a number of failed attempts: exponential, with full jitter.

    Args:
        retry: The policy.
        attempts: Failed attempts so far, at least 1.
        random: Returns numbers from 0.0 up to 1.0.
    """
    # The bound keeps the power from overflowing a float; the delay reaches `cap` long before.
    return random() * min(retry.cap, retry.base * 2.0 ** min(attempts - 1, 64))


FOR_EVER: Final = Retry(attempts=2**62, total=1e300)
"""The policy of a stream by default: as long as the server may come back, so may the client."""


class Backoff(msgspec.Struct):
    """The delays of one series of attempts.

    Args:
        retry: The policy.
        random: Returns numbers from 0.0 up to 1.0.
        attempts: Failed attempts so far.
    """

    retry: Retry
    random: Callable[[], float]
    attempts: int = 0

    def reset(self) -> None:
        """Start over, after progress."""
        self.attempts = 0

    def failed(self, error: BaseException | None = None, *, elapsed: float) -> float | None:
        """Count a failed attempt and return the delay before the next.

        Args:
            error: The error of the attempt, whose `Retry-After` counts. A policy without an end shortens one that is
                too long; any other gives up.
            elapsed: Seconds since the series began, or since its last progress.

        Returns:
            Seconds to wait, or None to give up.
        """
        retry = self.retry
        self.attempts += 1
        retry_after: float | None = getattr(error, "retry_after", None)
        if retry_after is not None and retry is FOR_EVER:
            retry_after = min(retry_after, retry.retry_after_cap)
        if self.attempts >= retry.attempts or (retry_after or 0.0) > retry.retry_after_cap:
            return None
        wait = next_delay(jittered_delay(retry, self.attempts, self.random), retry_after, cap=retry.retry_after_cap)
        return None if elapsed + wait > retry.total else wait


def note_attempts(error: WMEError, *, attempts: int, elapsed: float) -> WMEError:
    """Add a note with the number of attempts and their time to an error."""
    if attempts > 1:
        error.add_note(f"gave up after {attempts} attempts in {elapsed:.1f} s")
    return error
