"""The reports of a stream: the records that `on_event` receives, and the statistics."""

from datetime import datetime
from typing import TypeAlias

import msgspec

from wme_async.errors import DecodeError, OffsetGap, WMEError


class StreamConnected(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a response arrived, and with it the first event: the service sends no head before.

    Attributes:
        connection: Its number, from 0.
        parts: The parts it reads.
        waited: Seconds from the request to the head.
        by_offset: The number of partitions requested by offset.
        by_time: The number of partitions requested by time.
    """

    connection: int
    parts: tuple[int, ...]
    waited: float
    by_offset: int
    by_time: int


class StreamDisconnected(msgspec.Struct, frozen=True, kw_only=True):
    """A connection ended. A clean end is a failure too: the stream has no end.

    Attributes:
        connection: Its number.
        error: The reason.
        records: The number of records received.
        seconds: Seconds since the request.
    """

    connection: int
    error: WMEError
    records: int
    seconds: float


class StreamRetrying(msgspec.Struct, frozen=True, kw_only=True):
    """A connection is made again, after a wait.

    Attributes:
        connection: Its number.
        attempt: Failed attempts since it last brought an event.
        wait: Seconds.
        error: The reason.
    """

    connection: int
    attempt: int
    wait: float
    error: WMEError


class StreamGap(msgspec.Struct, frozen=True, kw_only=True):
    """Events of a partition were lost to this reader.

    Attributes:
        gap: The gap and its reason.
    """

    gap: OffsetGap


class StreamBadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record did not decode.

    Attributes:
        error: The error, with the raw bytes, and with partition and offset if they could be recovered.
    """

    error: DecodeError


class StreamCommitted(msgspec.Struct, frozen=True, kw_only=True):
    """Positions were saved.

    Attributes:
        partitions: The number of partitions.
    """

    partitions: int


class StreamCommitFailed(msgspec.Struct, frozen=True, kw_only=True):
    """Positions could not be saved; the stream tries again.

    Attributes:
        error: The exception of the store.
        failures: The number of failures in a row.
    """

    error: Exception
    failures: int


class StreamTaken(msgspec.Struct, frozen=True, kw_only=True):
    """This member of a group reads a part from now on (`share="group"`).

    Attributes:
        part: The part.
        token: Its fencing token, higher than those of all owners before.
    """

    part: int
    token: int


class StreamLost(msgspec.Struct, frozen=True, kw_only=True):
    """This member of a group does not read a part any more; another one may.

    Attributes:
        part: The part.
        token: The fencing token that it had.
        given_back: Whether the part was given back in an orderly way, with its positions saved. Otherwise the lease
            ended: this machine stood still, the event loop was blocked, or the store could not be reached.
    """

    part: int
    token: int
    given_back: bool


StreamEvent: TypeAlias = (
    StreamConnected
    | StreamDisconnected
    | StreamRetrying
    | StreamGap
    | StreamBadRecord
    | StreamCommitted
    | StreamCommitFailed
    | StreamTaken
    | StreamLost
)
"""The argument of the `on_event` hook."""


class PartitionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One partition.

    Attributes:
        partition: Its number.
        offset: Offset of the last event read, -1 for none yet.
        acknowledged: Offset of the last event that was processed, -1 for none yet.
        published: The publication time of the last event read, UTC.
        age: Seconds since then, by the server's clock. Large for a partition without new events.
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
        events: Events decoded that passed the filters.
        filtered: Events that filters left out on our side.
        bytes: Bytes of bodies received.
        duplicates: Events that had been read before and were dropped.
        bad_records: Records that did not decode.
        gaps: Times that events were missing.
        backfilled: Articles taken from hourly batches to fill gaps.
        connects: Connections that brought an event.
        reconnects: Connections made after the first of each.
        connected: Connections whose response has begun and has not ended. The service sends nothing before the first
            event, so a connection without any event yet does not count.
        buffered: Bytes received and not decoded yet.
        lag: Seconds between the publication of the last event read and now, by the server's clock.
        rate: Events a second, over the last minute.
        catch_up: Seconds until the lag is gone at the speed of the last minute; 0.0 if it is below 5 seconds, None if
            it does not shrink or is not known yet.
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
