"""What a stream tells about itself: frozen records for the hook, and statistics."""

from datetime import datetime
from typing import TypeAlias

import msgspec

from wme_async.errors import DecodeError, OffsetGap, WMEError

__all__ = [
    "PartitionStatistics",
    "StreamBadRecord",
    "StreamCommitFailed",
    "StreamCommitted",
    "StreamConnected",
    "StreamDisconnected",
    "StreamEvent",
    "StreamGap",
    "StreamRetrying",
    "StreamStatistics",
]


class StreamConnected(msgspec.Struct, frozen=True, kw_only=True):
    """The head of an answer arrived, and with it the first event: the service sends no head before.

    Attributes:
        connection: Its number, from 0.
        parts: The parts it reads.
        waited: Seconds from the request to the head.
        by_offset: How many partitions were asked for by offset.
        by_time: How many by time.
    """

    connection: int
    parts: tuple[int, ...]
    waited: float
    by_offset: int
    by_time: int


class StreamDisconnected(msgspec.Struct, frozen=True, kw_only=True):
    """A connection ended. One that ends cleanly has failed too: the firehose has no end.

    Attributes:
        connection: Its number.
        error: Why.
        records: How many records it brought.
        seconds: How long it lasted, from the request on.
    """

    connection: int
    error: WMEError
    records: int
    seconds: float


class StreamRetrying(msgspec.Struct, frozen=True, kw_only=True):
    """A connection will be made again, after a wait.

    Attributes:
        connection: Its number.
        attempt: Attempts since the last one that brought something.
        wait: Seconds.
        error: Why.
    """

    connection: int
    attempt: int
    wait: float
    error: WMEError


class StreamGap(msgspec.Struct, frozen=True, kw_only=True):
    """Events of a partition were lost to this reader.

    Attributes:
        gap: Which, and why.
    """

    gap: OffsetGap


class StreamBadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record did not decode.

    Attributes:
        error: What was wrong, with the raw bytes, and partition and offset where they could be made out.
    """

    error: DecodeError


class StreamCommitted(msgspec.Struct, frozen=True, kw_only=True):
    """Positions were saved.

    Attributes:
        partitions: Of how many partitions.
    """

    partitions: int


class StreamCommitFailed(msgspec.Struct, frozen=True, kw_only=True):
    """Positions could not be saved; it is tried again.

    Attributes:
        error: What the store raised.
        failures: How often in a row.
    """

    error: Exception
    failures: int


StreamEvent: TypeAlias = (
    StreamConnected
    | StreamDisconnected
    | StreamRetrying
    | StreamGap
    | StreamBadRecord
    | StreamCommitted
    | StreamCommitFailed
)
"""What the `on_event` hook receives."""


class PartitionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One partition.

    Attributes:
        partition: Its number.
        offset: Offset of the last event read, -1 for none yet.
        acknowledged: Offset of the last event that was processed, -1 for none yet.
        published: When the last event read was published, UTC.
        age: Seconds since then, by the server's clock. Large for a partition with nothing to say.
        connected: Whether the response of its connection has begun and has not ended.
    """

    partition: int
    offset: int
    acknowledged: int
    published: datetime | None
    age: float | None
    connected: bool


class StreamStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A stream, now.

    Attributes:
        events: Events decoded and not left out.
        filtered: Events that `keep` left out.
        bytes: Bytes of bodies received.
        duplicates: Events that had been read before and were dropped.
        bad_records: Records that did not decode.
        gaps: Times that events were found missing.
        backfilled: Articles taken from hourly batches to fill gaps.
        connects: Connections that brought an event.
        reconnects: Connections made after the first of each.
        connected: Connections whose response has begun and has not ended. The service sends nothing before the first
            event, so a connection that has had nothing to say since it was made does not count.
        buffered: Bytes received and not decoded yet.
        lag: Seconds between the publication of the last event read and now, by the server's clock.
        rate: Events a second, over the last minute.
        catch_up: Seconds until the lag is gone at the speed of the last minute; 0.0 where there is none to speak of,
            None where it does not shrink or is not known yet.
        partitions: Each partition, in order.
    """

    events: int
    filtered: int
    bytes: int
    duplicates: int
    bad_records: int
    gaps: int
    backfilled: int
    connects: int
    reconnects: int
    connected: int
    buffered: int
    lag: float | None
    rate: float
    catch_up: float | None
    partitions: tuple[PartitionStatistics, ...]
