"""The handling of bad records and gaps: the user is notified, and the hourly batches fill the gaps."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Any, Generic, TypeVar

from wme_async._stream.backfill import GapFiller
from wme_async._stream.decoder import BadRecord, Gap, RunDecoder
from wme_async._stream.options import OnBadRecord, OnGap
from wme_async._stream.reports import StreamEvent, StreamGap
from wme_async._tasks import call_hook
from wme_async._telemetry import log_fields
from wme_async.errors import DecodeError

logger: logging.Logger = logging.getLogger("wme_async.stream")

T = TypeVar("T")


class InterruptionHandler(Generic[T]):
    """Handles the interruptions of a decoder. Each one stays until its handling has succeeded.

    Attributes:
        backfilled: The number of values from batches.
        spare: Values from batches that are not handed out yet.

    Args:
        decoder: Has the interruptions.
        filler: Yields the values that fill a gap; None to fill none.
        on_bad_record: The user's choice.
        on_gap: The user's choice.
        notify: Called with events for the hook.
        server_now: Returns the server's clock.
    """

    def __init__(
        self,
        decoder: RunDecoder[T],
        filler: GapFiller[T] | None,
        *,
        on_bad_record: OnBadRecord,
        on_gap: OnGap,
        notify: Callable[[StreamEvent], None],
        server_now: Callable[[], datetime],
    ) -> None:
        self.backfilled = 0
        self.spare: deque[T] = deque()
        self._interruptions = decoder.interruptions
        self._decoder = decoder
        self._filler = filler
        self._on_bad_record = on_bad_record
        self._on_gap = on_gap
        self._notify = notify
        self._server_now = server_now
        self._fill: AsyncGenerator[T | DecodeError] | None = None

    @property
    def filling(self) -> bool:
        """Whether there may be more values from batches behind `spare`."""
        return self._fill is not None

    async def handle(self) -> None:
        """Handle the first interruption: notify the user, and raise if that is their choice.

        Raises:
            DecodeError: The bad record.
            OffsetGap: The gap.
            Exception: Any exception of the user's function; the interruption is handled again next time.
        """
        interruption = self._interruptions[0]
        if isinstance(interruption, Gap):
            await self._handle_gap(interruption)
            return
        await _call(self._on_bad_record, interruption.error)
        self._decoder.pass_over()
        if self._on_bad_record == "raise":
            raise interruption.error

    async def _handle_gap(self, interruption: Gap) -> None:
        if self._filler is not None and not interruption.filled:
            interruption.filled = True
            self._fill = self._filler.fill(interruption.missing, now=self._server_now())
        elif interruption.reported:
            self._decoder.accept()
        if interruption.reported:
            return
        gap = interruption.missing.gap
        await _call(self._on_gap, gap)
        interruption.reported = True
        self._notify(StreamGap(gap=gap))
        if self._on_gap == "raise":
            raise gap
        if self._on_gap == "log":
            logger.warning("%s", gap, extra=log_fields(gap))

    async def next_backfilled(self) -> T | None:
        """Return the next value from a batch; None at the end, or for a record that did not decode."""
        if self._interruptions and isinstance(self._interruptions[0], BadRecord):
            await self.handle()
            return None
        assert self._fill is not None
        try:
            item = await anext(self._fill)
        except StopAsyncIteration:
            self._fill = None
            return None
        except BaseException:
            # The filling begins again next time; values that were handed out are known and do not come twice.
            self._fill = None
            if self._interruptions and isinstance(self._interruptions[0], Gap):
                self._interruptions[0].filled = False
            raise
        if isinstance(item, DecodeError):
            self._decoder.bad += 1
            self._interruptions.appendleft(BadRecord(item, None))
            return None
        self.backfilled += 1
        return item

    async def fill_spare(self, limit: int) -> None:
        """Collect values from batches until there are as many as the limit, or no more."""
        while self.filling and len(self.spare) < limit:
            item = await self.next_backfilled()
            if item is not None:
                self.spare.append(item)

    async def aclose(self) -> None:
        """Close the filling.

        Raises:
            RuntimeError: Another task is waiting for it.
        """
        if self._fill is not None:
            await self._fill.aclose()


async def _call(hook: Callable[[Any], Awaitable[None] | None] | str, argument: object) -> None:
    """Call a function, plain or async; a word is not a function."""
    if callable(hook):
        await call_hook(hook, argument)
