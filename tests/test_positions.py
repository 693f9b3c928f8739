"""What a reader of the firehose asks for: never refused, never a partition left out, nothing lost."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

# The module is pure; that no request is ever rejected takes more cases than a server can be asked.
from wme_async._stream.resume import (  # private: pure
    Resume,
    StreamResource,
    check_since,
    deal,
    explain_jump,
    partitions_of,
    plan_request,
    rfc3339,
)
from wme_async.offsets import Position

ARTICLES = StreamResource(name="articles", path="/v2/articles")
NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
RETENTION = ARTICLES.retention


@pytest.mark.parametrize("layout", [(50, 7), (5, 10), (0, 10), (50, 0), (-50, -10)])
def test_a_layout_that_would_leave_partitions_out_is_refused(layout: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be dealt out"):
        StreamResource(name="wikidata", path="/", partitions=layout[0], parts=layout[1])


@pytest.mark.parametrize("number", ["50", 50.0, None, True])
def test_a_layout_is_made_of_whole_numbers(number: Any) -> None:
    with pytest.raises(TypeError, match="must be a whole number"):
        StreamResource(name="wikidata", path="/", partitions=number, parts=10)


def refused(body: Mapping[str, Any], clock: datetime) -> str | None:
    """What the server's own checks say to a request, written from its description, not from the planner."""
    parts = body.get("parts", [])
    offsets = {int(key): value for key, value in body.get("offsets", {}).items()}
    times = {int(key): datetime.fromisoformat(value) for key, value in body.get("since_per_partition", {}).items()}
    fields = body.get("fields", [])
    if len(fields) > 255 or any(not 1 <= len(field) <= 255 for field in fields):
        return "binder"
    if "since" in body and datetime.fromisoformat(body["since"]) > clock:
        return "since in the future"
    if any(time > clock for time in times.values()):
        return "time of a partition in the future"
    if len(parts) > 10 or any(not 0 <= part <= 9 for part in parts):
        return "parts"
    if parts and "since" in body:
        return "since beside parts"
    if len(offsets) > 50 or len(times) > 50:
        return "too many entries"
    asked = {partition for part in parts for partition in range(5 * part, 5 * part + 5)}
    if set(offsets) & set(times) & asked:
        return "both maps"
    return None


TIMES = st.datetimes(datetime(2026, 10, 1), datetime(2026, 12, 24)).map(lambda time: time.replace(tzinfo=UTC))  # noqa: DTZ001  # hypothesis wants naive bounds
ANY_TIME = TIMES | st.just(datetime(1, 1, 1, tzinfo=UTC)) | st.just(datetime(9999, 12, 31, tzinfo=UTC))
POSITIONS = st.dictionaries(
    st.integers(0, 60),
    st.builds(Position, offset=st.integers(-1, 2**63 - 2), published=st.none() | ANY_TIME, reached=st.none() | TIMES),
    max_size=50,
)
PARTS = st.sets(st.integers(0, 9), min_size=1)


@given(
    positions=POSITIONS,
    parts=PARTS,
    start=ANY_TIME,
    guard=st.integers(0, 300),
    ahead=st.floats(-3000, 1),
    by_time=st.sets(st.integers(0, 49)),
    fields=st.none() | st.lists(st.sampled_from(["name", "event.type", "event.*", "event", "version.sizes.*"])),
)
def test_a_plan_is_never_refused_and_covers_every_partition_once(
    positions: dict[int, Position],
    parts: set[int],
    start: datetime,
    guard: int,
    ahead: float,
    by_time: set[int],
    fields: list[str] | None,
) -> None:
    """`ahead` of `guard`: how far the clock that the plan was made by runs before the server's."""
    request = plan_request(
        ARTICLES,
        parts,
        positions,
        now=NOW + timedelta(seconds=guard * max(ahead, -10)),
        guard=timedelta(seconds=guard),
        start=start,
        by_time=by_time,
        fields=fields,
        filters=[{"field": "name", "value": "x"}],
    )
    body = json.loads(request.body())
    assert refused(body, NOW) is None
    assert body["parts"] == sorted(parts)
    assert "since" not in body
    offsets = {int(key): value for key, value in body.get("offsets", {}).items()}
    times = {int(key): datetime.fromisoformat(value) for key, value in body.get("since_per_partition", {}).items()}
    assert sorted([*offsets, *times]) == partitions_of(ARTICLES, parts)
    assert body["filters"] == [{"field": "name", "value": "x"}]
    if fields is None:
        assert "fields" not in body
    else:
        assert "event.*" in body["fields"]
        assert set(body["fields"]) - {"event.*"} == {f for f in fields if not f.startswith("event")}
    for partition, offset in offsets.items():
        assert offset == positions[partition].offset + 1
        assert partition not in by_time or positions[partition].published is None
    for partition, time in times.items():
        position = positions.get(partition)
        published = (position and position.published) or start
        assert time <= max(published, NOW - timedelta(seconds=2 * RETENTION) + 6000 * timedelta(seconds=1))


def one(position: Position | None, *, start: datetime = NOW, **options: Any) -> tuple[int | None, datetime | None]:
    """What is asked for partition 0."""
    positions = {} if position is None else {0: position}
    request = plan_request(ARTICLES, [0], positions, now=NOW, guard=timedelta(seconds=2), start=start, **options)
    return request.offsets.get(0), request.since.get(0)


def test_the_offset_after_the_last_one_is_asked_for() -> None:
    assert one(Position(41, NOW - HOUR)) == (42, None)
    assert one(Position(41)) == (42, None)


def test_a_partition_never_heard_from_is_asked_for_by_the_time_of_the_first_connect() -> None:
    assert one(None, start=NOW - 3 * HOUR) == (None, NOW - 3 * HOUR)
    assert one(Position(-1, NOW - 5 * HOUR), start=NOW) == (None, NOW - 5 * HOUR)
    assert one(Position(-1), start=NOW - HOUR) == (None, NOW - HOUR)


def test_a_position_near_the_end_of_retention_is_asked_for_by_time_with_a_margin() -> None:
    old = NOW - 41 * HOUR
    offset, time = one(Position(41, old, reached=NOW))
    assert offset is None
    assert time is not None
    assert time < old
    assert one(Position(41, NOW - 39 * HOUR))[0] == 42


def test_an_offset_that_is_not_trusted_is_asked_for_by_time() -> None:
    assert one(Position(41, NOW - HOUR), by_time={0})[0] is None


def test_no_time_is_ever_later_than_the_guard_allows() -> None:
    assert one(None, start=NOW + HOUR) == (None, NOW - timedelta(seconds=2))
    assert one(Position(41, NOW + HOUR), by_time={0}) == (None, NOW - timedelta(seconds=2))


def test_times_are_written_in_utc_and_rounded_down() -> None:
    time = datetime(2025, 4, 11, 6, 59, 23, 770999, tzinfo=timezone(2 * HOUR))
    assert rfc3339(time) == "2025-04-11T04:59:23.770Z"
    assert rfc3339(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00.000Z"


@given(PARTS, st.integers(1, 10))
def test_parts_are_dealt_out_evenly_and_completely(parts: set[int], connections: int) -> None:
    connections = min(connections, len(parts))
    dealt = deal(sorted(parts), connections)
    assert sorted(part for group in dealt for part in group) == sorted(parts)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert min(map(len, dealt)) >= 1


@pytest.mark.parametrize(
    ("since", "words"),
    [
        (NOW + HOUR, "future"),
        (NOW - 49 * HOUR, "older than what the stream keeps"),
        (datetime(1, 1, 1, tzinfo=timezone(5 * HOUR)), "older"),
    ],
)
def test_a_wrong_since_is_refused_before_anything_is_sent(since: datetime, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_since(since, now=NOW, retention=RETENTION)


def test_a_since_within_retention_is_taken_in_utc() -> None:
    since = (NOW - HOUR).astimezone(timezone(3 * HOUR))
    checked = check_since(since, now=NOW, retention=RETENTION)
    assert checked == since
    assert checked.tzinfo is UTC


def test_positions_refuse_what_the_server_would_misread() -> None:
    with pytest.raises(ValueError, match="-1"):
        Position(-2)
    with pytest.raises(ValueError, match="time zone"):
        Position(1, datetime(2026, 1, 1))  # noqa: DTZ001  # that is the point
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"offset":-2}', type=Position)
    with pytest.raises(ValueError, match="an offset is"):
        Position(2**63)
    for time in (
        datetime(1, 1, 1, tzinfo=timezone(14 * HOUR)),
        datetime(9999, 12, 31, 23, tzinfo=timezone(-14 * HOUR)),
    ):
        with pytest.raises(ValueError, match="not a date in UTC"):
            Position(1, time)
    assert Position(1).safe_until is None
    assert Position(1, NOW, NOW - HOUR).safe_until == NOW


LAST = Position(99, NOW - 2 * HOUR)


def judge(
    position: Position | None,
    offset: int,
    published: datetime | None = NOW,
    *,
    by_offset: bool = True,
    filtered: bool = False,
    probe: int | None = None,
) -> str:
    resume = Resume(position, by_offset, NOW, probe)
    return explain_jump(resume, offset, published, retention=RETENTION, filtered=filtered)


def test_the_expected_offset_and_a_first_connect_are_no_jump() -> None:
    assert judge(LAST, 100) == "none"
    assert judge(LAST, 90, by_offset=False) == "none"
    assert judge(None, 5) == "none"


def test_filtered_out_events_explain_a_jump_unless_the_reader_was_away_too_long() -> None:
    assert judge(LAST, 5000, filtered=True) == "none"
    away = Position(99, NOW - 49 * HOUR)
    assert judge(away, 5000, NOW - 48 * HOUR, by_offset=False, filtered=True) == "retention"
    quiet = Position(99, NOW - 72 * HOUR, reached=NOW - HOUR)
    assert judge(quiet, 5000, filtered=True, by_offset=False) == "none"


def test_a_partition_without_events_for_longer_than_retention_has_a_gap() -> None:
    assert judge(Position(-1, NOW - 50 * HOUR), 7, by_offset=False) == "retention"
    assert judge(Position(-1, NOW - 48 * HOUR), 7, by_offset=False) == "none"


def test_a_jump_to_live_is_looked_at_again_by_time() -> None:
    assert judge(LAST, 150, NOW + HOUR) == "look_again"
    assert judge(LAST, 150, None) == "look_again"
    # An event from before the request shows that the server did go back.
    assert judge(LAST, 150, NOW - HOUR) == "none"
    # After a short absence nothing can have run out.
    assert judge(Position(99, NOW - timedelta(seconds=20)), 150) == "none"


def test_the_second_look_tells_a_lost_offset_from_a_natural_hole() -> None:
    assert judge(LAST, 120, by_offset=False, probe=150) == "out_of_range"
    assert judge(LAST, 100, by_offset=False, probe=150) == "none"
    assert judge(LAST, 102, by_offset=False, probe=102) == "none"
    assert judge(LAST, 150, by_offset=False, probe=150) == "unknown"


def test_filters_and_fields_are_left_out_where_there_are_none() -> None:
    request = plan_request(ARTICLES, [0], {p: Position(1) for p in range(5)}, now=NOW, guard=timedelta(0), start=NOW)
    assert json.loads(request.body()) == {"parts": [0], "offsets": {str(p): 2 for p in range(5)}}
