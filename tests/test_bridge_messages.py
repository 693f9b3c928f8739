"""The messages of bridges and the positions in them. Pure, without a broker."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Position
from wme_async.errors import StreamError
from wme_async.integrations._bridge_messages import (  # private: pure
    Checkpoint,
    Complete,
    EventPosition,
    MessageMaker,
    Sent,
    choose_positions,
    complete_until,
    latest,
    news_of,
    read_checkpoint,
)

NOON = datetime(2025, 7, 16, 12, tzinfo=UTC)
UNKNOWN = Complete(None, range(10))


def record(name: object = "Ada Lovelace", project: object = "enwiki", **fields: object) -> bytes:
    return msgspec.json.encode({"name": name, "is_part_of": {"identifier": project}, **fields})


def event(partition: int, offset: int, minutes: float = 0) -> EventPosition:
    return EventPosition(partition, offset, (NOON + timedelta(minutes=minutes)).isoformat())


def maker(partitions: int = 10, places: int | None = None, **options: Any) -> MessageMaker[int]:
    count = places or partitions
    return MessageMaker("default/articles", range(partitions), lambda number: number % count, **options)


def make(messages: MessageMaker[int], data: bytes, at: EventPosition | None, complete: Complete = UNKNOWN) -> Any:
    pair = messages.make(data, at, complete)
    assert pair is not None
    return pair[1]


# Keys


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (record(), "enwiki/Ada Lovelace"),
        (record("Ada_Lovelace"), "enwiki/Ada Lovelace"),  # as deletions have it
        (record("AC/DC"), "enwiki/AC/DC"),
        (record("Ada", None), "Ada"),
        (msgspec.json.encode({"name": "Ada"}), "Ada"),
        (msgspec.json.encode({"identifier": "Q7259"}), "Q7259"),
        (msgspec.json.encode({"identifier": 7, "is_part_of": {"identifier": "enwiki"}}), "enwiki/7"),
        (record("", identifier=True), None),
        (record(["Ada"]), None),
        (b"{}", None),
        (b'{"is_part_of": []}', None),
        (b"no JSON", None),
        (b'{"name": "\xff"}', None),
        (b'{"name": "Ada", "identifier": 1e99999999999999999999}', None),
        (b'{"name": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", None),
        (b'{"name": ' + b"9" * 5_000 + b"}", None),
    ],
)
def test_the_key_is_project_and_title_with_spaces(data: bytes, key: str | None) -> None:
    assert make(maker(), data, event(0, 0)).key == key


@pytest.mark.parametrize(("kind", "value"), [("delete", None), ("update", "record"), (7, "record")])
def test_only_deletions_are_tombstones(kind: object, value: str | None) -> None:
    data = record(event={"type": kind})
    assert make(maker(tombstones=True), data, event(0, 0)).value == (data if value else None)
    assert make(maker(), data, event(0, 0)).value == data


def test_a_deletion_without_a_key_keeps_its_value() -> None:
    data = msgspec.json.encode({"event": {"type": "delete"}})
    assert make(maker(tombstones=True), data, event(0, 0)).value == data


def test_a_type_that_cannot_stand_in_a_header_is_left_out() -> None:
    message = make(maker(), record(event={"type": "up\ndate"}), event(0, 0))
    assert "wme-type" not in dict(message.headers)


# Positions in headers

PARTITIONS = st.integers(0, 9)
OFFSETS = st.integers(0, 1 << 40)
EVENTS = st.lists(st.tuples(PARTITIONS, OFFSETS), max_size=40)


@given(EVENTS, st.integers(1, 10), st.booleans())
def test_the_last_message_of_each_place_has_the_positions_of_all(
    events: list[tuple[int, int]], places: int, dated: bool
) -> None:
    messages = maker(10, places)
    last: dict[int, Any] = {}
    expected: dict[int, int] = {}
    count = 0
    for partition, offset in events:
        at = event(partition, offset) if dated else EventPosition(partition, offset)
        pair = messages.make(record(), at, UNKNOWN)
        assert (pair is None) == (offset <= expected.get(partition, -1))
        if pair is not None:
            last[pair[0]] = pair[1]
            expected[partition] = offset
            count += 1
    checkpoints = [read_checkpoint(dict(message.headers), "default/articles") for message in last.values()]
    target = latest(checkpoint for checkpoint in checkpoints if checkpoint is not None)
    assert {partition: sent.offset for partition, sent in target.positions.items()} == expected
    assert messages.skipped == len(events) - count


@given(st.sets(st.integers(0, 60), min_size=1))
def test_the_partitions_of_a_bridge_are_read_as_they_are_written(numbers: set[int]) -> None:
    complete = complete_until({number: Position(-1, NOON) for number in numbers})
    message = make(maker(), record(), event(0, 0), complete)
    checkpoint = read_checkpoint(dict(message.headers), "default/articles")
    assert checkpoint is not None
    assert checkpoint.complete == dict.fromkeys(numbers, NOON)


def test_a_record_without_an_offset_carries_the_positions_of_its_place() -> None:
    messages = maker(3, 1)
    make(messages, record(), event(0, 5))
    make(messages, record(), event(2, 7))
    message = make(messages, record(), None)
    assert (message.offset, dict(message.headers)["wme-backfilled"]) == (None, "1")
    checkpoint = read_checkpoint(dict(message.headers), "default/articles")
    assert checkpoint is not None
    assert {number: sent.offset for number, sent in checkpoint.positions.items()} == {0: 5, 2: 7}


def test_a_record_without_an_offset_goes_to_a_partition_that_its_bridge_reads() -> None:
    messages = maker(10)
    complete = Complete(None, [7, 8])
    pairs = [messages.make(record(f"Page {number}"), None, complete) for number in range(20)]
    assert {place_and_message[0] for place_and_message in pairs if place_and_message is not None} == {7, 8}
    assert messages.make(record(), None, Complete(None, [])) is not None


def test_what_the_target_has_of_some_partitions_replaces_what_was_sent_of_them() -> None:
    messages = maker(10, 5)
    for partition in (1, 2, 3):
        make(messages, record(), event(partition, 9))
    messages.begin([1, 2], Checkpoint({1: Sent(4, NOON), 3: Sent(4, NOON)}, {}))
    assert {number: sent.offset for number, sent in messages.sent.items()} == {1: 4, 3: 9}
    assert messages.places_of([1, 6, 2]) == [1, 2]


def test_places_that_parts_share_are_found() -> None:
    parts = {number: number // 5 for number in range(10)}
    assert maker(10, 10).shared_by(parts) == []
    assert maker(10, 5).shared_by(parts) == [0, 1, 2, 3, 4]


def test_an_event_of_an_unknown_partition_is_an_error() -> None:
    with pytest.raises(StreamError, match="partition 10"):
        maker(10).make(record(), event(10, 0), UNKNOWN)


@pytest.mark.parametrize("stream", ["other/articles", "default/wikidata", "default"])
def test_messages_of_others_have_no_positions(stream: str) -> None:
    headers = dict(make(maker(), record(), event(0, 0)).headers)
    assert read_checkpoint(headers, stream) is None
    assert read_checkpoint({}, "default/articles") is None


@given(st.text(min_size=1))
def test_a_stream_may_have_any_name(name: str) -> None:
    messages = MessageMaker(name, [0], int)
    headers = dict(make(messages, record(), event(0, 3)).headers)
    assert all(text.isascii() and text.isprintable() for text in headers.values())
    checkpoint = read_checkpoint(headers, name)
    assert checkpoint is not None
    assert checkpoint.positions[0].offset == 3


@pytest.mark.parametrize(
    "damage",
    [
        {"wme-offset": "x"},
        {"wme-published": "yesterday"},
        {"wme-published": "2025-07-16T12:00:00"},
        {"wme-positions": "3:x:"},
        {"wme-positions": "3"},
        {"wme-positions": f"3:1:{1 << 80}"},
        {"wme-complete-until": "2025-07-16T12:00:00Z", "wme-partitions": "x"},
        {"wme-complete-until": "2025-07-16T12:00:00Z"},
    ],
)
def test_damaged_headers_are_an_error_and_not_a_position(damage: dict[str, str]) -> None:
    headers = {**dict(make(maker(), record(), event(0, 0)).headers), **damage}
    with pytest.raises(StreamError, match="damaged"):
        read_checkpoint(headers, "default/articles")


# Decisions


def test_a_partition_that_is_numbered_anew_is_sent_from_its_new_beginning() -> None:
    messages = maker()
    make(messages, record(), event(0, 5000))
    assert messages.make(record(), event(0, 3), UNKNOWN) is None
    assert make(messages, record(), event(0, 3, minutes=11)).offset == 3
    assert make(messages, record(), event(0, 4, minutes=11)).offset == 4
    assert messages.skipped == 1


NUMBERED_ANEW = [Sent(5000, NOON), Sent(3, NOON + timedelta(hours=1)), Sent(9, NOON + timedelta(hours=2))]


@given(st.permutations(NUMBERED_ANEW))
def test_the_latest_position_does_not_depend_on_the_order_of_the_places(order: list[Sent]) -> None:
    assert latest(Checkpoint({0: sent}, {}) for sent in order).positions == {0: NUMBERED_ANEW[-1]}


def test_the_target_is_as_complete_as_its_latest_message_says() -> None:
    late = NOON + timedelta(hours=1)
    target = latest([Checkpoint({}, {0: late, 1: late}), Checkpoint({}, {0: NOON, 1: NOON, 2: NOON})])
    assert target.complete == {0: late, 1: late, 2: NOON}


LATE = NOON + timedelta(hours=2)
EARLY = NOON - timedelta(hours=2)


@pytest.mark.parametrize(
    ("target", "saved", "expected"),
    [
        # The target counts, whether it is behind the saved position or ahead of it.
        (Checkpoint({0: Sent(5, NOON)}, {}), Position(3, EARLY), Position(5, NOON)),
        (Checkpoint({0: Sent(5, NOON)}, {}), Position(9, LATE), Position(5, NOON)),
        (Checkpoint({0: Sent(5, NOON)}, {}), Position(9, LATE, LATE), Position(5, NOON)),
        (Checkpoint({0: Sent(5, NOON)}, {}), Position(5, NOON, LATE), Position(5, NOON, LATE)),
        (Checkpoint({0: Sent(5, NOON)}, {0: LATE}), None, Position(5, NOON, LATE)),
        # Its last message is gone.
        (Checkpoint({}, {}), Position(3, EARLY), Position(3, EARLY)),
        (Checkpoint({}, {0: LATE}), Position(3, EARLY, NOON), Position(3, EARLY, LATE)),
        # It never had one.
        (Checkpoint({}, {0: NOON}), None, Position(-1, NOON)),
        (Checkpoint({}, {0: NOON}), Position(-1, EARLY), Position(-1, NOON)),
        (Checkpoint({}, {0: NOON}), Position(-1, EARLY, LATE), Position(-1, LATE)),
        (Checkpoint({}, {}), Position(-1, EARLY), Position(-1, EARLY)),
    ],
)
def test_the_position_to_begin_with(target: Checkpoint, saved: Position | None, expected: Position) -> None:
    assert choose_positions(target, {} if saved is None else {0: saved}) == {0: expected}


def test_nothing_known_is_no_position() -> None:
    assert choose_positions(Checkpoint({}, {}), {}) == {}


@pytest.mark.parametrize(
    ("positions", "until"),
    [
        ({0: Position(-1, NOON), 1: Position(-1, LATE)}, NOON),
        ({0: Position(3, NOON), 1: Position(-1, LATE)}, NOON - timedelta(minutes=1)),  # clocks differ
        ({0: Position(3, NOON, LATE), 1: Position(-1, LATE)}, LATE),
        ({0: Position(3), 1: Position(-1, LATE)}, None),
        ({}, None),
    ],
)
def test_the_target_is_complete_up_to_the_partition_that_is_furthest_behind(
    positions: dict[int, Position], until: datetime | None
) -> None:
    assert complete_until(positions).until == until


def test_the_news_of_a_dead_letter_name_the_page() -> None:
    message = make(maker(), record(), event(0, 4))
    assert msgspec.json.decode(news_of(message, "too large")) == {
        "reason": "too large",
        "key": "enwiki/Ada Lovelace",
        "partition": 0,
        "offset": 4,
        "bytes": len(record()),
    }
    deletion = make(maker(tombstones=True), record(event={"type": "delete"}), event(0, 4))
    assert msgspec.json.decode(news_of(deletion, "too large"))["bytes"] == 0
