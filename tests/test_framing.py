"""Framing is a pure function of the bytes, however they are cut up."""

import itertools
import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

# The module is pure.
from wme_async._stream.framing import (  # private: pure, so any cuts can be tried
    MAX_RECORD,
    Framing,
    NDJSONFramer,
    Oversize,
    Record,
    SSEFramer,
    framer_for,
)

# Pieces that a body may be made of: those that mean something to a framing, and text that must not.
BITS = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"data: ", b"data", b"event: message\n", b": note", b"id: 1"),
        *(b"{}", b'{"a":1}', b"x", "\x85".encode(), "\u2028".encode(), b"\x0b", b"\x0c", b"\0", b"\x85", b" ", b"\t"),
        b"\xef\xbb\xbf",
    ]
)
BODIES = st.lists(BITS, max_size=30).map(b"".join)
KINDS = pytest.mark.parametrize("framing", ["ndjson", "sse"])


def lines_of(body: bytes) -> list[bytes]:
    """Lines by the definition, not by the implementation."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    return re.split(rb"\r\n|\r|\n", body)[:-1]


def expected_ndjson(body: bytes) -> list[bytes]:
    return [line for line in lines_of(body) if line.strip()]


def expected_sse(body: bytes) -> list[bytes]:
    records: list[bytes] = []
    data: list[bytes] = []
    for line in lines_of(body):
        name, _, value = line.partition(b":")
        if not line:
            joined = b"\n".join(data)
            if joined:
                records.append(joined)
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return records


EXPECTED: dict[Framing, Callable[[bytes], list[bytes]]] = {"ndjson": expected_ndjson, "sse": expected_sse}


def plain(records: list[Record]) -> list[bytes | Oversize]:
    return [record if isinstance(record, Oversize) else bytes(record) for record in records]


def frame(framing: Framing, pieces: list[bytes], max_record: int = MAX_RECORD) -> list[bytes | Oversize]:
    framer = framer_for(framing, max_record)
    return [record for piece in pieces for record in plain(framer.feed(piece))]


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(body) + 1) for place in places}), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@KINDS
@given(body=BODIES, places=st.lists(st.integers(0, 1000), max_size=6))
def test_any_bytes_give_the_records_of_the_definition_however_cut(
    framing: Framing, body: bytes, places: list[int]
) -> None:
    assert frame(framing, cut(body, places)) == EXPECTED[framing](body)


@KINDS
def test_every_split_point_and_every_single_byte_give_the_same(framing: Framing) -> None:
    event = '{"name":"a\x85b\u2028c\x0b","html":"\\u003cp\\u003e"}'.encode()
    bodies: dict[Framing, bytes] = {
        "ndjson": b"\xef\xbb\xbf" + event + b"\r\n\r\n  " + event + b"\n\n\r" + event + b"\n",
        "sse": b"\xef\xbb\xbf: hello\r\nevent: message\r\ndata: " + event + b"\r\n\r\nretry: 1\ndata:" + event + b"\r\r"
        b"event: message\ndata: " + event[:9] + b"\ndata: " + event[9:] + b"\n\n",
    }
    body = bodies[framing]
    whole = EXPECTED[framing](body)
    assert len(whole) == 3
    for at in range(len(body) + 1):
        assert frame(framing, [body[:at], body[at:]]) == whole
    assert frame(framing, [body[at : at + 1] for at in range(len(body))]) == whole


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=3), max_size=8), st.integers(1, 50))
def test_both_framings_give_the_same_events(documents: list[dict[str, str]], size: int) -> None:
    records = [json.dumps(document, ensure_ascii=False).encode() for document in documents]
    ndjson = b"".join(record + b"\n" for record in records)
    sse = b"".join(b"event: message\ndata: " + record + b"\n\n" for record in records)
    assert frame("ndjson", [ndjson[at : at + size] for at in range(0, len(ndjson), size)]) == records
    assert frame("sse", [sse[at : at + size] for at in range(0, len(sse), size)]) == records
    assert frame("sse", [sse]) == records


def test_separators_of_unicode_do_not_tear_an_event_apart() -> None:
    """The official SDK loses events with U+0085 or U+2028 in a string: its line reader splits there."""
    events = [{"name": f"before{mark}after"} for mark in "\x85\u2028\u2029\x1c\x0b\x0c"]
    body = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)
    assert [
        json.loads(bytes(record)) for record in NDJSONFramer().feed(body) if not isinstance(record, Oversize)
    ] == events


@KINDS
def test_what_the_end_of_the_body_cuts_off_is_no_record(framing: Framing) -> None:
    framer = framer_for(framing)
    body = b'data: {"a":1}\n\ndata: {"a":2}\n' if framing == "sse" else b'{"a":1}\n{"a":'
    assert plain(framer.feed(body)) == [b'{"a":1}']
    assert framer.pending > 0
    fresh = framer_for(framing)
    fresh.feed(b"data: 1\n\n" if framing == "sse" else b"1\n")
    assert fresh.pending == 0


def test_pending_counts_data_that_waits_for_its_blank_line() -> None:
    framer = SSEFramer(20)
    framer.feed(b"data: 12345\nda")
    assert framer.pending == 7
    framer.feed(b"ta: " + b"x" * 40 + b"\n")
    assert framer.pending == 5 + 1 + 40


@KINDS
@given(size=st.integers(15, 60_000), step=st.integers(1, 9_000), limit=st.integers(10, 30_000))
def test_an_over_long_record_costs_that_record_alone(framing: Framing, size: int, step: int, limit: int) -> None:
    document = b'{"start":"' + b"x" * size + b'"}'
    prefix, end = (b"event: message\ndata: ", b"\n\n") if framing == "sse" else (b"", b"\n")
    body = b"".join(prefix + record + end for record in (b"{}", document, b"[]"))
    first, middle, last = frame(framing, [body[at : at + step] for at in range(0, len(body), step)], max_record=limit)
    assert (first, last) == (b"{}", b"[]")
    if len(document) > limit:
        assert isinstance(middle, Oversize)
        assert middle.size == len(document)
        assert document.startswith(middle.head)
        assert document.endswith(middle.tail)
        assert len(middle.head) >= min(limit, 8186)
        assert len(middle.tail) >= min(len(document), 8186)
    else:
        assert middle == document


def test_an_event_of_many_short_data_lines_is_bounded_too() -> None:
    framer = SSEFramer(100)
    (record,) = framer.feed(b"data: 0123456789\n" * 50 + b"\n")
    assert isinstance(record, Oversize)
    assert record.size == 50 * 11 - 1
    (record,) = framer.feed(b"data: " + b"y" * 200 + b"\ndata: z\n\n")
    assert record == Oversize(b"y" * 200, b"y" * 200 + b"\nz", 202)
    (record,) = framer.feed(b"data: a\ndata: " + b"y" * 200 + b"\n\n")
    assert record == Oversize(b"a", b"a\n" + b"y" * 200, 202)
    assert plain(framer.feed(b"data: 1\n\n")) == [b"1"]


def test_an_over_long_comment_is_no_record() -> None:
    framer = SSEFramer(100)
    assert plain(framer.feed(b": " + b"x" * 500 + b"\ndata:" + b"y" * 300 + b"\n\ndata\ndata\n\n")) == [
        Oversize(b"y" * 300, b"y" * 300, 300),
        b"\n",
    ]


@KINDS
def test_long_records_are_handed_over_without_a_copy_and_stay_as_they_are(framing: Framing) -> None:
    record = b'{"a":"' + b"x" * 30_000 + b'"}'
    unit = b"event: message\ndata: " + record + b"\n\n" if framing == "sse" else record + b"\n"
    framer = framer_for(framing)
    framer.feed(unit * 2)
    records = framer.feed(unit * 3)
    framer.feed(unit)
    assert all(isinstance(view, memoryview) for view in records)
    assert plain(records) == [record] * 3


def test_an_irregular_block_of_short_lines_takes_linear_time() -> None:
    """Looking ahead at each event of such a block would compare some 10,000,000,000 lines, which takes minutes."""
    block = b"event: message\ndata: {}\n\n: x\n" * 100_000
    assert len(framer_for("sse").feed(block)) == 100_000


@KINDS
def test_one_record_in_small_pieces_takes_linear_time(framing: Framing) -> None:
    """Copying or searching it again for each piece would move a terabyte, which takes minutes."""
    framer = framer_for(framing)
    framer.feed(b"data: ")
    for _ in range(60_000):
        assert framer.feed(b"x" * 512) == []
    assert framer.pending == 6 + 512 * 60_000
    (record,) = framer.feed(b"\n\n")
    assert not isinstance(record, Oversize)
    assert bytes(record).count(b"x") == 512 * 60_000


def test_a_record_of_64_mib_passes_and_one_byte_more_does_not() -> None:
    framer = NDJSONFramer()
    piece = b"x" * (1 << 20)
    for _ in range(64):
        framer.feed(piece)
    (record,) = framer.feed(b"\n")
    assert not isinstance(record, Oversize)
    assert len(record) == 64 << 20
    for _ in range(64):
        framer.feed(piece)
    (record,) = framer.feed(b"y\n")
    assert isinstance(record, Oversize)
    assert record.size == (64 << 20) + 1


def test_a_long_last_line_of_data_after_a_long_first_one_keeps_its_own_end() -> None:
    framer = SSEFramer(100)
    (record,) = framer.feed(b"data: " + b"y" * 200 + b"\ndata: " + b"z" * 9000 + b"\n\n")
    assert record == Oversize(b"y" * 200, b"z" * 8192, 200 + 1 + 9000)
