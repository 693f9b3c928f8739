"""The date and time that tests see: the product's own clock, which `nox -s calendar` sets.

A test that needs the date takes it from here, never from `time.time()` or `datetime.now()`.
"""

import os
import time
from datetime import UTC, datetime

from wme_async import _clock as clock  # private: no public way sets the date of the product

__all__ = ["MIDDLE_OF_A_MONTH", "clock", "machine_now", "now", "set_moment", "utc_now"]

now = clock.now
utc_now = clock.utc_now

MIDDLE_OF_A_MONTH = datetime(2026, 7, 15, 12, tzinfo=UTC)
"""Where a simulator's clock stands in tests of what is counted by the month."""


def machine_now() -> datetime:
    """Return the real time, for peers that read the machine's clock themselves, such as other libraries."""
    return datetime.now(UTC)


def set_moment(moment: str) -> None:
    """Let the clock run from a moment (ISO 8601 with a time zone), in this process and in those that it starts.

    It needs `calendar_site` on PYTHONPATH.
    """
    start = datetime.fromisoformat(moment).timestamp()
    os.environ["WME_TEST_CLOCK_OFFSET"] = repr(start - time.time())
    assert abs(now() - start) < 60, "calendar_site is not on PYTHONPATH: run `nox -s calendar`"
