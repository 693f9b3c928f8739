"""The statistics of a stream: counts, speed, and the time until it has caught up."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from wme_async._stream.connection import Connection
from wme_async._stream.decoder import RunDecoder
from wme_async._stream.partitions import Partition, Partitions
from wme_async._stream.record_types import published_of
from wme_async._stream.reports import PartitionStatistics, StreamStatistics

_WINDOW = 60.0  # seconds over which speeds are measured
_STEP = 1.0
_CURRENT = 5.0  # seconds of lag that count as none


_COUNTS: Final = (
    *("events", "filtered", "bytes", "duplicates", "bad_records", "gaps", "backfilled", "connects", "reconnects"),
    *("connected", "buffered", "rate"),
)
NOTHING_READ: Final = StreamStatistics(**dict.fromkeys(_COUNTS, 0), lag=None, catch_up=None, partitions=())


def past(statistics: StreamStatistics) -> StreamStatistics:
    """Return what remains of the statistics of a stream once it is closed: the counts."""
    return msgspec.structs.replace(
        statistics, connected=0, buffered=0, rate=0.0, lag=None, catch_up=None, partitions=()
    )


def added(statistics: Sequence[StreamStatistics]) -> StreamStatistics:
    """Return the statistics of several streams as one: sums, and the largest lag."""
    lags = [one.lag for one in statistics if one.lag is not None]
    waits = [one.catch_up for one in statistics if one.lag is not None]
    known = [wait for wait in waits if wait is not None]
    return StreamStatistics(
        **{name: sum(getattr(one, name) for one in statistics) for name in _COUNTS},
        lag=max(lags, default=None),
        catch_up=max(known) if known and len(known) == len(waits) else None,
        partitions=tuple(sorted((each for one in statistics for each in one.partitions), key=lambda p: p.partition)),
    )


class StatisticsCollector:
    """Samples counts and publication times over the last minute, and makes statistics of them.

    Args:
        decoder: Counts values.
        partitions: Count duplicates and gaps.
        connections: Count bytes and connects.
    """

    def __init__(self, decoder: RunDecoder[Any], partitions: Partitions, connections: Sequence[Connection]) -> None:
        self._decoder = decoder
        self._partitions = partitions
        self._connections = connections
        self._samples: deque[tuple[float, int, datetime | None]] = deque()
        self._published: datetime | None = None

    def sample(self, at: float) -> None:
        """Take a sample, unless the last one is less than a second old.

        Args:
            at: Monotonic seconds.
        """
        if self._decoder.run.events:
            self._published = published_of(self._decoder.run.events[-1])
        if self._samples and at - self._samples[-1][0] < _STEP:
            return
        self._samples.append((at, self._decoder.decoded, self._published))
        while at - self._samples[0][0] > _WINDOW:
            self._samples.popleft()

    def collect(self, at: float, now: datetime, *, buffered: int, backfilled: int) -> StreamStatistics:
        """Return the statistics.

        Args:
            at: Monotonic seconds.
            now: The server's clock.
            buffered: Bytes received and not decoded.
            backfilled: Articles from batches.
        """
        self.sample(at)
        decoder, connections = self._decoder, self._connections
        lag = None if self._published is None else max(0.0, (now - self._published).total_seconds())
        by_number = self._partitions.by_number
        connected = {number: connection.connected for connection in connections for number in connection.partitions}
        return StreamStatistics(
            events=decoder.decoded - decoder.filtered,
            filtered=decoder.filtered,
            bytes=sum(connection.bytes for connection in connections),
            duplicates=self._partitions.duplicates,
            bad_records=decoder.bad,
            gaps=self._partitions.gaps,
            backfilled=backfilled,
            connects=sum(connection.connects for connection in connections),
            reconnects=sum(connection.reconnects for connection in connections),
            connected=sum(connection.connected for connection in connections),
            buffered=buffered,
            lag=lag,
            rate=self._rate(at),
            catch_up=self._catch_up(at, lag),
            partitions=tuple(
                _partition_statistics(by_number[number], now, connected=connected[number])
                for number in sorted(connected)
            ),
        )

    def _rate(self, at: float) -> float:
        began, before, _ = self._samples[0]
        return (self._decoder.decoded - before) / (at - began) if at > began else 0.0

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


def _partition_statistics(partition: Partition, now: datetime, *, connected: bool) -> PartitionStatistics:
    read, processed = partition.read_position(), partition.processed_position()
    assert read is not None
    published = read.published if read.offset >= 0 else None
    return PartitionStatistics(
        partition=partition.number,
        offset=read.offset,
        acknowledged=processed.offset,
        published=published,
        age=None if published is None else max(0.0, (now - published).total_seconds()),
        connected=connected,
    )
