"""Progress reports of one download."""

from wme_async._download.range_plan import RangePlan
from wme_async._download.source import Progress, ProgressHook
from wme_async._download.whole_file import WholeFileFetcher
from wme_async._rates import RateMeter
from wme_async._tasks import call_hook
from wme_async._transport import Transport


class ProgressReporter:
    """Calls a hook with the progress of a transfer.

    Args:
        hook: Receives `Progress`.
        transport: Has the clock.
    """

    def __init__(self, hook: ProgressHook, transport: Transport) -> None:
        self._hook = hook
        self._transport = transport
        self._meter = RateMeter(transport.monotonic())
        self._reported: int | None = None

    async def watch(self, transfer: RangePlan | WholeFileFetcher) -> None:
        """Report about ten times a second, until cancelled."""
        while True:
            await self.report(transfer.done, transfer.size)
            await self._transport.sleep(0.1)

    async def report(self, done: int, size: int | None) -> None:
        """Report that so many bytes are there; the end is reported once."""
        now = self._transport.monotonic()
        if self._reported is not None:
            self._meter.add(max(0, done - self._reported), now)
        if done == self._reported == size:
            return
        self._reported = done
        rate = self._meter.rate(now)
        eta = (size - done) / rate if size is not None and rate > 0 else (0.0 if done == size else None)
        await call_hook(self._hook, Progress(done, size, rate, eta))
