"""The state of partitions: silence, acknowledgements, and numbers that begin anew. Pure, without a stream."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

# The module is pure; in a stream these cases take hours.
from wme_async._stream.partitions import Missing, Partitions, Verdict  # private: pure
from wme_async.offsets import Position

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Event(NamedTuple):
    partition: int
    offset: int
    date_published: Any = None


def partitions_at(positions: Mapping[int, Position], **options: Any) -> Partitions:
    options = {"start": NOON, "retention": 48 * 3600.0, "filtered": True, **options}
    return Partitions([0, 1, 7], positions, **options)


def at(**since_noon: float) -> datetime:
    return NOON + timedelta(**since_noon)


# Silence


def test_a_quiet_partition_is_known_to_be_whole_after_ten_connected_minutes() -> None:
    partitions = partitions_at({0: Position(5, NOON)})
    for minute in range(1, 12):
        partitions.tick(60.0, now=at(hours=1, minutes=minute), connected=[0])
        reached = partitions.positions()[0].reached
        assert (reached is not None) == (minute >= 10)
    assert reached == at(hours=1, minutes=1)
    assert partitions.positions()[1].reached is None, "it was not connected"
    # An event ends the silence; the position is then that of the event.
    event = Event(0, 9, at(hours=2))
    partitions.by_number[0].read = partitions.by_number[0].processed = event
    partitions.tick(60.0, now=at(hours=2), connected=[0])
    assert partitions.positions()[0] == Position(9, at(hours=2))


def test_events_that_are_read_and_not_processed_are_not_counted_as_whole() -> None:
    partitions = partitions_at({0: Position(5, NOON)})
    partitions.by_number[0].read = Event(0, 9, NOON)
    for minute in range(12):
        partitions.tick(60.0, now=at(minutes=minute), connected=[0])
    assert partitions.positions()[0] == Position(5, NOON)
    assert partitions.read_positions([0])[0].offset == 9


def test_a_stored_time_without_events_is_kept_until_the_next_event_is_processed() -> None:
    stored = Position(5, NOON, at(hours=1))
    partitions = partitions_at({0: stored})
    assert partitions.positions()[0] == stored
    partitions.by_number[0].read = Event(0, 9, at(hours=2))
    partitions.tick(60.0, now=at(hours=2), connected=[0])
    assert partitions.positions()[0] == stored


def test_silence_does_not_span_the_time_without_a_connection() -> None:
    partitions = partitions_at({})
    partitions.tick(0.0, now=NOON, connected=[7])
    partitions.tick(500.0, now=NOON, connected=[7])
    partitions.tick(50_000.0, now=at(hours=14), connected=[])
    partitions.tick(500.0, now=at(hours=14), connected=[7])
    assert partitions.positions()[7].reached is None
    partitions.tick(500.0, now=at(hours=14, minutes=10), connected=[7])
    assert partitions.positions()[7].reached == at(hours=14)


# Reading


def test_events_are_read_in_order_up_to_the_first_that_needs_a_judgement() -> None:
    partitions = partitions_at({})
    assert partitions.read_in_order([Event(0, 0)]) == 0, "the first of a connection"
    partitions.by_number[0].read = Event(0, 3)
    good = [Event(0, 4), Event(0, 6)]
    odd: list[Any] = [Event(0, 6), Event(1, 9), Event(60, 1), Event(0, None), None, object(), Event([], 1)]  # type: ignore[arg-type]  # that is the point
    for event in odd:
        partitions.by_number[0].read = Event(0, 3)
        assert partitions.read_in_order([*good, event, Event(0, 8)]) == 2
        assert partitions.by_number[0].read is good[1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-04-11T04:59:23.77047Z", datetime(2025, 4, 11, 4, 59, 23, 770470, tzinfo=UTC)),
        (NOON, NOON),
        ("yesterday", None),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59-05:00", None),
        (None, None),
        (5, None),
        (datetime(2026, 1, 1), None),  # noqa: DTZ001  # without a zone it says nothing
    ],
)
def test_times_of_events_are_read_in_any_form_or_not_at_all(value: Any, expected: datetime | None) -> None:
    partitions = partitions_at({})
    partitions.by_number[0].read = Event(0, 1, value)
    assert partitions.read_positions([0])[0] == Position(1, expected)


def test_after_a_repetition_the_next_event_is_in_order() -> None:
    partitions = partitions_at({7: Position(5, NOON)})
    request: Any = SimpleNamespace(offsets={}, since={7: at(minutes=-1)})
    partitions.connect(request, at=NOON, probes={})
    assert partitions.judge(Event(7, 5, NOON), None) is Verdict.DROP
    assert partitions.duplicates == 1
    assert partitions.read_in_order([Event(7, 6), Event(7, 7)]) == 2
    # An event is accepted only later where a gap is before it, perhaps after the next connection was made.
    partitions.connect(request, at=NOON, probes={})
    partitions.by_number[7].read = Event(7, 9, NOON)
    assert partitions.judge(Event(7, 8, NOON), None) is Verdict.DROP
    assert partitions.by_number[7].read.offset == 9


def test_a_bad_record_gets_no_time_before_that_of_the_last_event() -> None:
    partitions = partitions_at({})
    early: Any = Event(60, 5, at(minutes=-1))
    assert partitions.dated(early) is early, "the first of a partition outside the layout"
    partitions.by_number[60].read = Event(60, 4, NOON)
    position = partitions.dated(early)
    assert (position.partition, position.offset, position.date_published) == (60, 5, NOON)
    late: Any = Event(60, 5, at(minutes=1))
    assert partitions.dated(late) is late
    repeated: Any = Event(60, 4, at(minutes=-1))
    assert partitions.dated(repeated) is repeated


# Acknowledging


@given(st.permutations(range(12)), st.integers(0, 12))
def test_a_partition_never_moves_ahead_of_an_event_that_is_not_acknowledged(order: list[int], count: int) -> None:
    partitions = partitions_at({})
    events = [Event(0, 10 + 3 * number) for number in range(12)]
    for event in events:
        partitions.hand_out(event)
        partitions.by_number[0].read = event
    acknowledged = set()
    for number in order[:count]:
        partitions.acknowledge(events[number])
        acknowledged.add(number)
        first_open = next((number for number in range(12) if number not in acknowledged), 12)
        expected = events[first_open - 1].offset if first_open else -1
        assert partitions.positions()[0].offset == expected


def test_an_event_that_was_not_handed_out_cannot_be_acknowledged() -> None:
    partitions = partitions_at({})
    partitions.by_number[0].read = Event(0, 5)
    with pytest.raises(ValueError, match="not from this stream"):
        partitions.acknowledge(Event(0, 4))


# Partitions that are numbered anew


def test_acknowledgements_across_a_new_numbering_never_mix_the_two() -> None:
    partitions = partitions_at({})
    partition = partitions.by_number[7]
    old = [Event(7, number, at(seconds=number)) for number in (100, 101)]
    new = [Event(7, number, at(hours=1, seconds=number)) for number in (0, 1)]
    for event in old:
        partition.read = event
        partitions.hand_out(event)
    assert partitions.judge(Event(7, 101, old[1].date_published), None) is Verdict.DROP
    for event in new:
        partition.read = event
        partitions.hand_out(event)
    partitions.acknowledge(old[0])
    assert partition.processed is None
    partitions.acknowledge(new[0])
    assert partitions.positions()[7].offset == 0
    partition.processed = old[1]
    partitions.acknowledge_up_to(old[0])
    partitions.acknowledge_up_to(new[1])
    assert partitions.positions()[7].offset == 1
    with pytest.raises(ValueError, match="not from this stream"):
        partitions.acknowledge_up_to(Event(7, 5, at(hours=1, minutes=1)))


def test_a_partition_that_is_made_anew_while_it_is_read_is_requested_once_more() -> None:
    partitions = partitions_at({}, filtered=False)
    partition = partitions.by_number[7]
    partition.read = Event(7, 100, NOON)
    # Too near in time to be told from repetitions; then far enough.
    assert partitions.judge(Event(7, 0, at(minutes=5)), None) is Verdict.DROP
    assert partitions.judge(Event(7, 2, at(minutes=15)), None) is Verdict.ASK_AGAIN
    request: Any = SimpleNamespace(offsets={}, since={7: at(minutes=-1)})
    partitions.connect(request, at=at(minutes=16), probes={7: 2})
    assert partitions.judge(Event(7, 99, at(seconds=-30)), None) is Verdict.DROP
    missing = partitions.judge(Event(7, 0, at(minutes=5)), None)
    assert isinstance(missing, Missing)
    assert (missing.gap.expected, missing.gap.got) == (101, 0)
    partition.read = Event(7, 0, at(minutes=5))
    assert partitions.judge(Event(7, 0, at(minutes=5)), None) is Verdict.DROP
    assert partitions.judge(Event(7, 1, at(minutes=10)), None) is Verdict.TAKE
    assert partitions.gaps == 1
