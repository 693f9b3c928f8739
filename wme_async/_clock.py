"""The one reader of this machine's date and time of day.

Everything else in the package calls `now` or `utc_now`, so that tests can run at any date: they replace `source`.
An operation reads the clock once and passes the result on, and asks the server's clock where the server judges.
Durations are measured by `time.monotonic` and the loop's clock, which never go back; those that a sleep of the machine
must not stop, by `uptime`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

source: Callable[[], float] = time.time
"""Returns UTC epoch seconds."""


def now() -> float:
    """Return UTC epoch seconds by this machine's clock."""
    return source()


def utc_now() -> datetime:
    """Return the time by this machine's clock, as an aware datetime in UTC."""
    return datetime.fromtimestamp(source(), UTC)


_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", None)


def uptime() -> float:
    """Return seconds that never go back, and go on while the machine sleeps, where the system has such a clock."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)
