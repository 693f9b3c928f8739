"""How a stream is doing: counts, how fast it goes, and when it will have caught up."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from wme_async._stream.connection import Connection
from wme_async._stream.decoder import Runs
from wme_async._stream.events import PartitionStatistics, StreamStatistics
from wme_async._stream.partitions import Progress
from wme_async._stream.record_types import published_of

__all__ = ["Meter"]

_WINDOW = 60.0  # seconds that speeds are measured over
_STEP = 1.0
_CURRENT = 5.0  # seconds of lag that are none to speak of


class Meter:
    """Samples counts and publication times over the last minute, and makes statistics of them."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, datetime | None]] = deque()
        self._published: datetime | None = None

    def sample(self, at: float, runs: Runs[Any]) -> None:
        """Take a sample, unless the last one is less than a second old.

        Args:
            at: Seconds, never going back.
            runs: What was decoded.
        """
        if runs.events:
            self._published = published_of(runs.events[-1])
        if self._samples and at - self._samples[-1][0] < _STEP:
            return
        self._samples.append((at, runs.decoded, self._published))
        while at - self._samples[0][0] > _WINDOW:
            self._samples.popleft()

    def read(
        self,
        at: float,
        now: datetime,
        *,
        runs: Runs[Any],
        progress: Progress,
        connections: Sequence[Connection],
        buffered: int,
        backfilled: int,
    ) -> StreamStatistics:
        """Return the statistics of this moment.

        Args:
            at: Seconds, never going back.
            now: The server's clock.
            runs: What was decoded.
            progress: Where the stream is.
            connections: What it reads from.
            buffered: Bytes received and not decoded.
            backfilled: Articles taken from batches.
        """
        self.sample(at, runs)
        lag = None if self._published is None else max(0.0, (now - self._published).total_seconds())
        return StreamStatistics(
            events=runs.decoded - runs.filtered,
            filtered=runs.filtered,
            bytes=sum(connection.bytes for connection in connections),
            duplicates=progress.duplicates,
            bad_records=runs.bad,
            gaps=progress.gaps,
            backfilled=backfilled,
            connects=sum(connection.connects for connection in connections),
            reconnects=sum(connection.reconnects for connection in connections),
            connected=sum(connection.connected for connection in connections),
            buffered=buffered,
            lag=lag,
            rate=self._rate(at, runs.decoded),
            catch_up=self._catch_up(at, lag),
            partitions=tuple(
                sorted(
                    (
                        _partition(progress, number, now, connected=connection.connected)
                        for connection in connections
                        for number in connection.partitions
                    ),
                    key=lambda each: each.partition,
                )
            ),
        )

    def _rate(self, at: float, events: int) -> float:
        began, before, _ = self._samples[0]
        return (events - before) / (at - began) if at > began else 0.0

    def _catch_up(self, at: float, lag: float | None) -> float | None:
        if lag is None or self._published is None:
            return None
        if lag < _CURRENT:
            return 0.0
        for then, _, before in self._samples:
            if before is not None and at > then:
                speed = (self._published - before).total_seconds() / (at - then)
                return lag / (speed - 1) if speed > 1 else None
        return None


def _partition(progress: Progress, number: int, now: datetime, *, connected: bool) -> PartitionStatistics:
    read = progress.read([number])[number]
    done = progress.done.get(number) or progress.base[number]
    published = read.published if read.offset >= 0 else None
    return PartitionStatistics(
        partition=number,
        offset=read.offset,
        acknowledged=done.offset,
        published=published,
        age=None if published is None else max(0.0, (now - published).total_seconds()),
        connected=connected,
    )
