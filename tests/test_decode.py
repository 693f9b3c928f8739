"""The choice of decoder: quick where it can be, and never laxer or stricter than msgspec alone."""

import datetime as dt
import decimal
import importlib
import json
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NewType, Union

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wme_async.errors import DecodeError
from wme_async.models import Article
from wme_async.models import decoding as decode_module
from wme_async.models.decoding import LONG_RECORD, Buffer, key_names, make_decoder

DATA = Path(__file__).parents[1] / "../shared/data"


class Editor(msgspec.Struct, gc=False):
    identifier: int | None = None
    name: str = ""
    is_bot: bool = False
    date_started: dt.datetime | None = None


class Page(msgspec.Struct, gc=False):
    name: str = ""
    identifier: int = 0
    size: int | float = 0
    body: dict[str, str] = {}
    editors: list[Editor] = []
    score: float | None = None
    part: "Page | None" = None


class Title(msgspec.Struct):
    name: str = ""


PAD = "x" * LONG_RECORD


def outcome(decode: Callable[[Buffer], Any], record: bytes) -> Any:
    try:
        value = decode(record)
    except DecodeError:
        return "refused"
    return value, type(getattr(value, "size", None))


def settled(type_: Any) -> Any:
    """Return a decoder that has seen its samples and chosen."""
    decode = make_decoder(type_)
    for _ in range(8):
        decode(json.dumps({"name": "a", "body": {"html": PAD}}).encode())
    return decode


@pytest.fixture(scope="module")
def quick() -> Any:
    pytest.importorskip("orjson", reason="the extra `fast` is not installed")
    decode = settled(Page)
    assert decode.prefers_orjson
    return decode


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.sampled_from(["2024-07-16T06:06:16.892227533Z", "0001-01-01T00:00:00Z", "12", "2024-07-16"]),
)
keys = st.sampled_from(
    ["name", "identifier", "size", "body", "editors", "score", "part", "is_bot", "date_started", "html", "other"]
)
documents = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner)))
pages = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=5) | scalars,
        "identifier": st.integers() | scalars,
        "body": st.dictionaries(keys, st.text(max_size=5)) | documents,
        "editors": st.lists(st.dictionaries(keys, scalars), max_size=2) | documents,
        "score": scalars,
        "part": documents,
        "other": documents,
    },
)


@given(page=pages, cut=st.integers(0, 400), noise=st.binary(max_size=2), at=st.integers(0, 10_000))
@example(page={"identifier": 2**64}, cut=400, noise=b"", at=0)
@example(page={"other": 10**400}, cut=400, noise=b"", at=0)
@example(page={"name": "\ud800"}, cut=400, noise=b"", at=0)
def test_with_orjson_the_same_records_pass_and_the_same_are_refused(
    quick: Any, page: Any, cut: int, noise: bytes, at: int
) -> None:
    text = json.dumps({"zz": PAD, **page}).encode()  # NaN and lone surrogates come out as Python writes them
    record = text if cut == 400 else text[: len(text) - cut % 7]
    if noise:
        spot = len(PAD) + at % max(1, len(record) - len(PAD))
        record = record[:spot] + noise + record[spot:]
    if len(set(re.findall(rb'"(\w+)":', record))) == len(re.findall(rb'"(\w+)":', record)):  # see make_decoder
        assert outcome(quick, record) == outcome(make_decoder(Page, use_orjson=False), record)


@pytest.mark.parametrize(
    "tail",
    [
        b'"identifier":18446744073709551616}',
        b'"identifier":-9223372036854775809}',
        b'"identifier":1.0}',
        b'"unknown":"\xff"}',
        b'"name":"\xff"}',
        b'"name":"\\ud800"}',
        b'"name":"a\x01"}',
        b'"score":1e400}',
        b'"score":NaN}',
        b'"other":' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'"score":01}',
        b'"score":1,}',
        b'"score":1} x',
        b'"score":1}\r',
        b'"score":1}\x00',
    ],
)
def test_the_known_differences_between_the_two_libraries_do_not_show(quick: Any, tail: bytes) -> None:
    record = b'{"zz":"' + PAD.encode() + b'",' + tail
    assert outcome(quick, record) == outcome(make_decoder(Page, use_orjson=False), record)


def test_a_whole_number_beyond_64_bits_is_a_float_where_both_are_allowed(quick: Any) -> None:
    record = b'{"zz":"' + PAD.encode() + b'","size":18446744073709551616}'
    assert quick(record).size == 18446744073709551616


def test_a_type_that_keeps_little_of_its_records_stays_with_msgspec() -> None:
    pytest.importorskip("orjson", reason="the extra `fast` is not installed")
    assert not settled(Title).prefers_orjson


class WithAny(msgspec.Struct):
    extra: Any = None


class WithDecimal(msgspec.Struct):
    size: decimal.Decimal | None = None


class WithIntKeys(msgspec.Struct):
    body: dict[int, str] = {}


class WithRaw(msgspec.Struct):
    body: msgspec.Raw = msgspec.Raw(b"")


@pytest.mark.parametrize("type_", [WithAny, WithDecimal, WithIntKeys, WithRaw, dict, bytes, list[WithRaw]])
def test_types_whose_values_would_differ_never_go_by_orjson(type_: Any) -> None:
    assert not isinstance(make_decoder(type_), decode_module.AdaptiveDecoder)


class Deep(msgspec.Struct):
    either: dict[str, tuple[int, str] | None] | None = None
    noted: Annotated[list[Title], msgspec.Meta(min_length=1, extra_json_schema={"title": "noted"})] = []


def test_types_are_looked_through_to_their_leaves() -> None:
    assert decode_module.traits_of(Deep) == set()
    assert decode_module.traits_of(tuple[Deep, WithRaw]) == {"raw"}


def test_without_orjson_msgspec_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orjson", None)
    with pytest.raises(ImportError):
        importlib.import_module("orjson")
    assert settled(Page)(b'{"name":"a"}') == Page(name="a")


def test_orjson_can_be_declined() -> None:
    assert not isinstance(make_decoder(Page, use_orjson=False), decode_module.AdaptiveDecoder)


def test_a_raw_value_does_not_hold_the_block_it_was_cut_from() -> None:
    block = bytearray(b'{"body":[1,2]}')
    page = make_decoder(WithRaw)(memoryview(block)[:])
    block.clear()  # a held view would make this a BufferError
    assert bytes(page.body) == b"[1,2]"


def test_bad_utf8_in_a_skipped_part_neither_fails_nor_counts_as_a_sample() -> None:
    pytest.importorskip("orjson", reason="the extra `fast` is not installed")
    decode = make_decoder(Page)
    assert decode(b'{"name":"a","zz":"\xff' + PAD.encode() + b'"}').name == "a"
    assert decode.samples_left == decode_module.SAMPLES  # type: ignore[attr-defined]


@pytest.mark.parametrize("pad", ["", PAD])
def test_a_null_that_means_nothing_is_nothing_by_either_way(pad: str) -> None:
    record = json.dumps({"name": "a", "editors": [None, {"name": None}], "body": {"html": pad}}).encode()
    for decode in (settled(Page), make_decoder(Page, use_orjson=False)):
        assert decode(record) == Page(name="a", editors=[Editor()], body={"html": pad})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b'{"name":"\xff"}', "not UTF-8: byte 0xff at position 9"),
        (b'{"name":"a', ""),
        (b"", ""),
        (b'{"other":' + b"[" * 200_000, "deeply"),
        (b'{"identifier":"x"}', r"identifier"),
        (b"null", ""),
        (b"<html>", ""),
    ],
)
def test_what_was_wrong_is_said_in_words(record: bytes, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        make_decoder(Page)(record)
    assert words in caught.value.message
    assert caught.value.message
    assert caught.value.record == record


class Guarded(Page):
    """A type of the user's whose own check fails for some records."""

    def __post_init__(self) -> None:
        if self.name == "large":
            raise MemoryError
        if self.name == "damaged":
            raise DecodeError("the name is damaged", record=b"damaged")


@pytest.mark.parametrize("pad", ["", PAD])
def test_a_lack_of_memory_and_an_error_of_the_type_leave_a_decoder_unchanged(pad: str) -> None:
    large, damaged = (json.dumps({"name": name, "body": {"html": pad}}).encode() for name in ("large", "damaged"))
    for decode in (settled(Guarded), make_decoder(Guarded, use_orjson=False)):
        with pytest.raises(MemoryError):
            decode(large)
        with pytest.raises(DecodeError) as caught:
            decode(damaged)
        assert (caught.value.message, caught.value.record) == ("the name is damaged", b"damaged")


class Added(msgspec.Struct, tag=True):
    name: str = ""


class Gone(msgspec.Struct, tag=True):
    name: str = ""


@pytest.mark.parametrize(
    "type_",
    [
        Added | Gone,
        Union[Added, Gone],  # noqa: UP007 - msgspec knows both
        Annotated[Added | Gone, "either"],
        NewType("Change", Added),
        # From Python 3.12 on; it is what a `type` statement makes.
        getattr(typing, "TypeAliasType", lambda _, of: of)("Change", Added | Gone),
    ],
    ids=["union", "Union", "Annotated", "NewType", "alias"],
)
def test_types_that_are_no_classes_are_types_all_the_same(type_: Any) -> None:
    assert make_decoder(type_)(b'{"type":"Added","name":"a"}') == Added("a")
    assert key_names(type_) == frozenset({"type", "name"})


def test_a_type_that_msgspec_cannot_decode_is_misuse() -> None:
    with pytest.raises(TypeError):
        make_decoder(dict[str, int] | dict[str, str])  # type: ignore[arg-type]


def test_real_articles_are_the_same_by_both_ways() -> None:
    pytest.importorskip("orjson", reason="the extra `fast` is not installed")
    path = DATA / "articles.ndjson"
    if not path.exists():
        pytest.skip("needs the real articles in ../shared/data")
    lines = path.read_bytes().splitlines()

    expected = [msgspec.json.decode(line, type=Article) for line in lines]
    decode = make_decoder(Article)
    assert [decode(line) for line in lines * 3] == expected * 3
    assert decode.prefers_orjson  # type: ignore[attr-defined]
