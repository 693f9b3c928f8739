"""Where a reader of the firehose is, what to ask for next, and whether something was lost in between. Pure.

The rules are those of the server's own code:

- `offsets` and `since_per_partition` without `parts` are dropped in silence and the stream starts live, so `parts` is
  always sent. `since` beside `parts` is refused, so it is never sent; each partition gets its own time instead.
- An offset is inclusive: the next one is asked for. A partition named in neither map starts live, so that what it said
  in the meantime is lost: one that was never heard from is asked for by the time of the first connect.
- An offset that is no longer kept is no error: the partition silently starts live. A time finds the oldest event that
  is kept, so that an old position is asked for by time.
- A partition in both maps, and a time in the future, are refused (422).
- Partition and offset come with an event only if one of its fields was asked for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from wme_async.offsets.protocol import Position

__all__ = [
    "Jump",
    "Plan",
    "Resume",
    "StreamResource",
    "check_aware",
    "check_parts",
    "check_since",
    "deal",
    "explain_jump",
    "partitions_of",
    "plan",
    "rfc3339",
]

SKEW: Final = timedelta(minutes=1)
"""How far the clocks of the machines that publish events are thought to lie apart; asked for in addition."""

_FRESH: Final = 5 / 6  # share of the retention for which an offset is trusted to be kept: 40 of 48 hours
_NATURAL: Final = 8  # offsets that internal messages (take-downs) may use up between two events


class StreamResource(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of the realtime host, as a row.

    Attributes:
        name: How it is reached: `wme.realtime.<name>`; positions are stored under it.
        path: Its path on the realtime host.
        model: What its events decode to.
        partitions: How many there are.
        parts: Into how many parts they are grouped for parallel connections. Part `p` has the partitions from
            `p * (partitions // parts)` on.
        retention: Seconds for which the server keeps events.
        product: Its name in words, for messages.
        beta: Announced as beta: shapes and paths may still change.

    Raises:
        TypeError: Partitions or parts are no whole numbers.
        ValueError: There are none, or partitions are left over that no part would have.
    """

    name: str
    path: str
    model: type
    partitions: int = 50
    parts: int = 10
    retention: float = 48 * 3600.0
    product: str = "realtime"
    beta: bool = False

    def __post_init__(self) -> None:
        """Refuse a layout in which events would be in no part, and so never be asked for."""
        for number in (self.partitions, self.parts):
            if type(number) is not int:
                raise TypeError(f"partitions and parts are whole numbers, not {number!r}")
        if self.parts < 1 or self.partitions < self.parts or self.partitions % self.parts:
            raise ValueError(
                f"{self.partitions} partitions cannot be dealt out to {self.parts} parts: each part has the same "
                "number of them, 1 or more"
            )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a stream.

    Attributes:
        parts: What it covers.
        offsets: First offset wanted, by partition.
        since: First time wanted, by partition. With `offsets` it covers every partition of the parts once.
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
        body: dict[str, Any] = {"parts": self.parts}
        if self.offsets:
            body["offsets"] = {str(partition): offset for partition, offset in self.offsets.items()}
        if self.since:
            body["since_per_partition"] = {str(partition): rfc3339(time) for partition, time in self.since.items()}
        if self.fields is not None:
            body["fields"] = self.fields
        if self.filters:
            body["filters"] = self.filters
        return msgspec.json.encode(body)


def rfc3339(time: datetime) -> str:
    """Write a time as the server reads it: UTC, whole milliseconds, never later than it is."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def partitions_of(resource: StreamResource, parts: Iterable[int]) -> list[int]:
    """Return the partitions of some parts, in order."""
    each = resource.partitions // resource.parts
    return [partition for part in sorted(parts) for partition in range(part * each, (part + 1) * each)]


def check_parts(resource: StreamResource, parts: Iterable[int] | None, connections: int) -> tuple[int, ...]:
    """Return the parts to read, in order, or say what is wrong with them. None means all.

    Raises:
        ValueError: None at all, one twice (the server would end the stream at once), one out of range, or more
            connections than parts.
        TypeError: Not whole numbers.
    """
    if parts is not None and (isinstance(parts, str | bytes) or not isinstance(parts, Iterable)):
        raise TypeError(f"parts must be a list of whole numbers, such as [0, 1], not {parts!r}")
    wanted = list(range(resource.parts)) if parts is None else list(parts)
    for part in wanted:
        if isinstance(part, bool) or not isinstance(part, int):
            raise TypeError(f"parts must be a list of whole numbers, such as [0, 1], and {part!r} is not")
    if isinstance(connections, bool) or not isinstance(connections, int):
        raise TypeError(f"connections must be a whole number, not {connections!r}")
    if not wanted:
        raise ValueError("parts is empty; leave it out to read everything")
    bad = [part for part in wanted if not 0 <= part < resource.parts]
    if bad:
        raise ValueError(f"parts of {resource.name} are 0 to {resource.parts - 1}, so not {bad}")
    if len(set(wanted)) < len(wanted):
        raise ValueError(
            f"parts {sorted(wanted)} names one twice: the server would deliver it twice, or end the stream"
        )
    if not 1 <= connections <= len(wanted):
        raise ValueError(
            f"connections is 1 to {len(wanted)} here, not {connections}: each one reads at least one of the "
            f"{len(wanted)} parts"
        )
    return tuple(sorted(wanted))


def deal(parts: Sequence[int], connections: int) -> list[tuple[int, ...]]:
    """Deal parts out over connections, as evenly as possible; none is left empty if there are enough."""
    return [tuple(parts[index::connections]) for index in range(connections)]


def check_aware(since: object) -> datetime:
    """Return a time that has a zone.

    Raises:
        TypeError: Not a datetime.
        ValueError: Without a time zone; the server refuses those.
    """
    if not isinstance(since, datetime):
        raise TypeError(f"since must be a datetime with a time zone, not {type(since).__name__}")
    if since.tzinfo is None or since.utcoffset() is None:
        raise ValueError("since needs a time zone: datetime.now(UTC), not datetime.now()")
    return since


def check_since(since: object, *, now: datetime, retention: float) -> datetime:
    """Return the time a stream may start from, or say why it may not.

    Args:
        since: What the user gave.
        now: The server's clock.
        retention: Seconds for which events are kept.

    Raises:
        TypeError: Not a datetime.
        ValueError: Without a time zone (which the server refuses), in the future, or older than what is kept (the
            server would begin later and not say so).
    """
    since = check_aware(since)
    if since > now + SKEW:
        raise ValueError(f"since is in the future: {since}; the server's clock says {rfc3339(now)}")
    oldest = now - timedelta(seconds=retention)
    if since < oldest - SKEW:
        raise ValueError(
            f"since is older than what the stream keeps ({retention / 3600:g} hours, now from {rfc3339(oldest)} on): "
            f"read snapshots or hourly batches for what came before"
        )
    return since.astimezone(UTC)


def plan(
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
) -> Plan:
    """Decide what to ask the server for, so that nothing between the positions and now is left out.

    Args:
        resource: The stream.
        parts: Which of its parts, each once.
        positions: What was processed.
        now: The server's clock, as far as known.
        guard: How far that may be ahead of the server; no time later than `now - guard` is sent.
        start: From when on partitions without a position are wanted.
        by_time: Partitions whose offset is not to be trusted.
        fields: Names in the server's spelling; None for everything.
        filters: Objects with `field` and `value`.
    """
    parts = tuple(sorted(set(parts)))
    latest = now - guard
    oldest_offset = now - timedelta(seconds=resource.retention * _FRESH)
    oldest_time = now - timedelta(seconds=2 * resource.retention)
    offsets: dict[int, int] = {}
    since: dict[int, datetime] = {}
    for partition in partitions_of(resource, parts):
        position = positions.get(partition)
        published = position.published if position else start
        if position is None or position.offset < 0:
            since[partition] = min(max(published or start, oldest_time), latest)
        elif published is None:
            offsets[partition] = position.offset + 1
        elif partition in by_time or published < oldest_offset:
            since[partition] = min(max(published, oldest_time) - SKEW, latest)
        else:
            offsets[partition] = position.offset + 1
    return Plan(parts=parts, offsets=offsets, since=since, fields=_with_event(fields), filters=tuple(filters))


def _with_event(fields: Iterable[str] | None) -> tuple[str, ...] | None:
    """Ask for the whole event, without which the server tells neither partition nor offset."""
    if fields is None:
        return None
    rest = [field for field in dict.fromkeys(fields) if field != "event" and not field.startswith("event.")]
    return (*rest, "event.*")


class Resume(msgspec.Struct, frozen=True):
    """What was asked for a partition when its connection was made; the first event is compared with it.

    Attributes:
        position: What was known.
        by_offset: It was asked for by offset, not by time.
        at: The server's clock at the request.
        probe: The offset that came when it was asked for by offset, if this is the second look, by time.
    """

    position: Position | None
    by_offset: bool
    at: datetime
    probe: int | None = None


Jump: TypeAlias = Literal["none", "look_again", "retention", "out_of_range", "unknown"]


def explain_jump(resume: Resume, offset: int, published: datetime | None, *, retention: float, filtered: bool) -> Jump:
    """Judge the first event of a partition after a connect: was something between it and the position lost?

    Offsets alone cannot tell: filtered-out events and internal messages use up offsets and are never seen. What can:

    - The reader was away for longer than the server keeps events.
    - Without filters, an offset that the server no longer has makes it start live, so that the first event is newer
      than the request. Asking again, by time, brings what is still kept, and what is not is the gap.

    Args:
        resume: What was asked for.
        offset: What came.
        published: When that was published.
        retention: Seconds for which the server keeps events.
        filtered: The server leaves out events.

    Returns:
        `none`: nothing is missing. `look_again`: ask for this partition by time. Else the reason of a gap.
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
        # Its time was chosen, perhaps as early as the server goes; only what is well beyond is a loss.
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
