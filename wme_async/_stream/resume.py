"""The request that continues a stream from its positions, and the detection of lost events in between. Pure.

The rules are those of the server's own code:

- The server ignores `offsets` and `since_per_partition` without `parts` and starts live, so `parts` is always sent. It
  rejects `since` beside `parts`, so `since` is never sent; each partition has its own time instead.
- An offset is inclusive, so the request has the next one. A partition in neither map starts live, and its events of the
  meantime are lost, so a partition without any event yet is requested by the time of the first connect.
- An offset that the server no longer has is not an error: the partition starts live without notice. A time finds the
  oldest event that the server has, so an old position is requested by time.
- The server rejects a partition in both maps, and a time in the future (422).
- An event comes with partition and offset only if the request names one of its fields.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from wme_async._arguments import check_numbers
from wme_async.offsets.protocol import Position

SKEW: Final = timedelta(minutes=1)
"""The assumed difference between the clocks of the machines that publish events. Requested times are earlier by it."""

_TRUSTED: Final = 5 / 6  # share of the retention for which the server surely has an offset: 40 of 48 hours
_NATURAL: Final = 8  # offsets that internal messages (take-downs) may use up between two events


class StreamResource(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of the realtime host, as a row.

    Attributes:
        name: Its name in `wme.realtime.<name>`; positions are stored under it.
        path: Its path on the realtime host.
        partitions: The number of partitions.
        parts: The number of parts into which they are grouped for parallel connections. Part `p` has the partitions
            from `p * (partitions // parts)` on.
        retention: Seconds for which the server keeps events.
        product: Its name in words, for messages.

    Raises:
        TypeError: Partitions or parts are not whole numbers.
        ValueError: They are below 1, or some partitions would be in no part.
    """

    name: str
    path: str
    partitions: int = 50
    parts: int = 10
    retention: float = 48 * 3600.0
    product: str = "realtime"

    def __post_init__(self) -> None:
        """Raise if some events would be in no part, and so never be requested."""
        check_numbers(whole=True, optional=False, partitions=self.partitions, parts=self.parts)
        if self.parts < 1 or self.partitions < self.parts or self.partitions % self.parts:
            raise ValueError(
                f"{self.partitions} partitions cannot be dealt out to {self.parts} parts: each part has the same "
                "number of them, 1 or more"
            )


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a stream.

    Attributes:
        parts: The parts that it covers.
        offsets: The first offset, by partition.
        since: The first time, by partition. With `offsets` it covers every partition of the parts once.
        fields: Names in the server's spelling, `event.*` among them; None for everything.
        filters: Objects with `field` and `value`.
    """

    parts: tuple[int, ...]
    offsets: dict[int, int]
    since: dict[int, datetime]
    fields: tuple[str, ...] | None = None
    filters: tuple[Mapping[str, Any], ...] = ()

    def body(self) -> bytes:
        """Return the JSON to send."""
        optional = {
            "offsets": {str(partition): offset for partition, offset in self.offsets.items()},
            "since_per_partition": {str(partition): rfc3339(time) for partition, time in self.since.items()},
            "fields": self.fields,
            "filters": self.filters,
        }
        return msgspec.json.encode({"parts": self.parts, **{name: value for name, value in optional.items() if value}})


def rfc3339(time: datetime) -> str:
    """Return a time in the server's format: UTC, whole milliseconds, rounded down."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def partitions_of(resource: StreamResource, parts: Iterable[int]) -> list[int]:
    """Return the partitions of some parts, in order."""
    size = resource.partitions // resource.parts
    return [partition for part in sorted(parts) for partition in range(part * size, (part + 1) * size)]


def deal(parts: Sequence[int], connections: int) -> list[tuple[int, ...]]:
    """Deal parts out over connections, as evenly as possible; each gets at least one if there are enough."""
    return [tuple(parts[index::connections]) for index in range(connections)]


def check_since(since: datetime, *, now: datetime, retention: float) -> datetime:
    """Return the time to start from, in UTC.

    Args:
        since: The user's time, with a time zone.
        now: The server's clock.
        retention: Seconds for which the server keeps events.

    Raises:
        ValueError: It is in the future, or older than what the server keeps (the server would begin later without
            notice).
    """
    if since > now + SKEW:
        raise ValueError(f"since is in the future: {since}; the server's clock says {rfc3339(now)}")
    oldest = now - timedelta(seconds=retention)
    if since < oldest - SKEW:
        raise ValueError(
            f"since is older than what the stream keeps ({retention / 3600:g} hours, now from {rfc3339(oldest)} on): "
            f"read snapshots or hourly batches for what came before"
        )
    return since.astimezone(UTC)


def plan_request(
    resource: StreamResource,
    parts: Iterable[int],
    positions: Mapping[int, Position],
    *,
    now: datetime,
    guard: timedelta,
    start: datetime,
    by_time: Collection[int] = (),
    fields: Iterable[str] | None = None,
    filters: Iterable[Mapping[str, Any]] = (),
) -> StreamRequest:
    """Return the request that leaves out nothing between the positions and now.

    Args:
        resource: The stream.
        parts: The parts to cover.
        positions: How far partitions were read.
        now: The server's clock, as far as known.
        guard: How far that may be ahead of the server; no time later than `now - guard` is sent.
        start: The time from which partitions without a position are read.
        by_time: Partitions whose offset the server may no longer have.
        fields: Names in the server's spelling; None for everything.
        filters: Objects with `field` and `value`.
    """
    parts = tuple(sorted(set(parts)))
    latest = now - guard
    oldest_offset = now - timedelta(seconds=resource.retention * _TRUSTED)
    oldest_time = now - timedelta(seconds=2 * resource.retention)
    offsets: dict[int, int] = {}
    since: dict[int, datetime] = {}
    for partition in partitions_of(resource, parts):
        position = positions.get(partition)
        published = position.published if position else start
        if position is None or position.offset < 0:
            since[partition] = min(max(published or start, oldest_time), latest)
        elif published is not None and (partition in by_time or published < oldest_offset):
            since[partition] = min(max(published, oldest_time) - SKEW, latest)
        else:
            offsets[partition] = position.offset + 1
    return StreamRequest(parts=parts, offsets=offsets, since=since, fields=_with_event(fields), filters=tuple(filters))


def _with_event(fields: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the fields and the whole event, without which the server sends neither partition nor offset."""
    if fields is None:
        return None
    others = [field for field in dict.fromkeys(fields) if field != "event" and not field.startswith("event.")]
    return (*others, "event.*")


class Resume(msgspec.Struct, frozen=True):
    """The request for one partition when its connection was made; the first event is compared with it.

    Attributes:
        position: The position that it continues from.
        by_offset: Whether the partition was requested by offset, not by time.
        at: The server's clock at the request.
        probe: If this is the second request, by time: the offset that the first one brought.
    """

    position: Position | None
    by_offset: bool
    at: datetime
    probe: int | None = None


Jump: TypeAlias = Literal["none", "look_again", "retention", "out_of_range", "unknown"]


def explain_jump(resume: Resume, offset: int, published: datetime | None, *, retention: float, filtered: bool) -> Jump:
    """Return whether, and why, events were lost between a position and the first event after a connect.

    Offsets alone cannot tell: events that a filter leaves out and internal messages use up offsets and are never seen.
    These can:

    - The reader was away for longer than the server keeps events.
    - Without filters, an offset that the server no longer has makes it start live, so that the first event is newer
      than the request. A second request, by time, brings the events that the server still has; the others are the gap.

    Args:
        resume: The request.
        offset: The offset of the first event.
        published: Its publication time.
        retention: Seconds for which the server keeps events.
        filtered: Whether the server leaves out events.

    Returns:
        `none`: nothing is missing. `look_again`: request this partition by time. Otherwise the reason of a gap.
    """
    position = resume.position
    if position is None:
        return "none"
    expected = position.offset + 1
    if position.offset >= 0 and offset <= expected:
        return "none"
    safe_until = position.safe_until
    away = (resume.at - safe_until).total_seconds() if safe_until else 0.0
    if position.offset < 0:
        # The start may be the earliest time that the server accepts; only an excess well beyond it is a loss.
        return "retention" if away > retention + SKEW.total_seconds() else "none"
    if away > retention:
        return "retention"
    if filtered:
        return "none"
    if resume.by_offset:
        live = published is None or published >= resume.at - timedelta(seconds=2)
        return "look_again" if live and away > SKEW.total_seconds() else "none"
    if resume.probe is not None and offset < resume.probe:
        return "out_of_range"
    return "unknown" if offset - expected > _NATURAL else "none"
