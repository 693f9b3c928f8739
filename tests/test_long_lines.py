"""What is left of a very long line decodes to the same value, however the line is cut."""

import dataclasses
import io
import itertools
import json
import tarfile
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wme_async._archive import field_trimmer, tar  # private: pure, and an archive shows only what both give together
from wme_async.models import Article
from wme_async.models.decoding import key_names


class Inner(msgspec.Struct, kw_only=True):
    """Names two of the keys."""

    text: str | int | bool | None = None
    b: list[str] | str | None = None


class Outer(msgspec.Struct, kw_only=True):
    """Names two more."""

    a: str | int | bool | list[Inner | str] | None = None
    inner: Inner | None = msgspec.field(name="\u00e4", default=None)


class Pair(TypedDict):
    """Names two as keys of a dict."""

    left: int
    right: list[int]


@dataclasses.dataclass
class Point:
    """Names one, and the two of what it holds."""

    x: int
    inner: Inner | None = None


NAMES = frozenset({"a", "b", "text", "\u00e4"})

TEXTS = st.text(st.sampled_from('ab"\\/<\n\u00e4\u2028\U0001f600:,{}[] '), max_size=30)
KEYS = st.sampled_from(["a", "b", "text", "html", 'qu"ote', "back\\slash", "", "\u00e4", ':"'])
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-9, 9), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
RECORDS = st.fixed_dictionaries(
    {}, optional={"a": VALUES, "html": TEXTS, "\u00e4": st.dictionaries(KEYS, VALUES, max_size=4), "more": VALUES}
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Return a record as JSON, its non-ASCII characters escaped or not, dense or not."""
    record = draw(RECORDS)
    dense = draw(st.booleans())
    text = json.dumps(record, ensure_ascii=draw(st.booleans()), separators=(",", ":") if dense else (" , ", " : "))
    return text.replace("<", "\\u003c").encode()


def cut(line: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at places."""
    at = [0, *sorted(place % (len(line) + 1) for place in places), len(line)]
    return [line[start:stop] for start, stop in itertools.pairwise(at)]


def trimmed(line: bytes, places: list[int], names: frozenset[str]) -> tuple[bytes, int]:
    """Return what is left of a line and how many bytes were dropped."""
    trimmer, left = field_trimmer.FieldTrimmer(names), bytearray()
    dropped = sum(trimmer.take(left, piece) for piece in cut(line, places))
    return bytes(left), dropped


# Everywhere, or in a few places.
PLACES = st.just(list(range(1001))) | st.lists(st.integers(0, 1000), max_size=12)


def outcome(line: bytes) -> Any:
    """Return what a line decodes to, or that it does not fit."""
    try:
        return msgspec.json.decode(line, type=Outer)
    except msgspec.ValidationError:
        return "does not fit"


# A piece of no bytes between a backslash and what it stands for.
@example(line=rb'{"html":"\""}', places=[9, 10, 10])
@given(line=lines(), places=PLACES)
def test_what_is_wanted_is_the_same(line: bytes, places: list[int]) -> None:
    assert key_names(Outer) == NAMES
    left, dropped = trimmed(line, places, NAMES)
    assert len(left) + dropped == len(line)
    assert outcome(left) == outcome(line)


@given(line=lines(), places=PLACES)
def test_where_all_is_wanted_nothing_is_dropped(line: bytes, places: list[int]) -> None:
    everything = NAMES | {"html", 'qu"ote', "back\\slash", "", ':"', "more"}
    assert trimmed(line, places, everything) == (line, 0)


@given(junk=st.binary(max_size=60), places=PLACES)
def test_what_is_no_json_is_no_trouble(junk: bytes, places: list[int]) -> None:
    left, dropped = trimmed(junk, places, NAMES)
    assert len(left) + dropped == len(junk)


def test_a_long_text_leaves_an_empty_string() -> None:
    line = b'{"a":1,"html":"' + rb"x\"\\" * 1000 + b'","b":"' + b"y" * 4000 + b'"}'
    left, dropped = trimmed(line, [100, 1000, 2000, 3001, 5000, 6000, 7000], NAMES)
    assert left == b'{"a":1,"html":"","b":"' + b"y" * 4000 + b'"}'
    assert dropped == 5000


def test_the_end_of_a_key_is_not_taken_for_a_key() -> None:
    key = "k" * 300 + '"html'
    line = json.dumps({key: "x" * 1000}).encode()
    assert trimmed(line, [800], frozenset({key})) == (line, 0)


def test_a_key_that_is_none_is_left_to_the_decoder() -> None:
    line = rb'{"\x":"' + b"x" * 100 + b'"}'
    assert trimmed(line, [50], NAMES) == (line, 0)


@pytest.mark.parametrize(
    ("type_", "names"),
    [
        (Inner, {"text", "b"}),
        (dict[str, int], None),
        (msgspec.Raw, None),
        (Any, None),
        (int, frozenset()),
        (tuple[int, Inner], {"text", "b"}),
        (Pair, {"left", "right"}),
        (Point, {"x", "inner", "text", "b"}),
        (Annotated[Inner | None, msgspec.Meta(title="one of ours")], {"text", "b"}),
        (msgspec.defstruct("S", [("x", list[int | str]), ("y", tuple[bool, ...])], rename="upper"), {"X", "Y"}),
        (msgspec.defstruct("T", [("x", int)], tag_field="kind", tag="t"), {"x", "kind"}),
        (msgspec.defstruct("L", [("x", int)], array_like=True), None),
    ],
)
def test_names_are_known_only_of_types_that_name_all_they_want(type_: Any, names: set[str] | None) -> None:
    assert key_names(type_) == names


def test_an_article_wants_its_texts() -> None:
    names = key_names(Article)
    assert names is None or {"html", "wikitext"} <= names


class Small(msgspec.Struct):
    """Leaves the text alone."""

    name: str = ""


def tar_of(body: bytes) -> bytes:
    """Return a tar with one member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as writer:
        info = tarfile.TarInfo("a.ndjson")
        info.size = len(body)
        writer.addfile(info, io.BytesIO(body))
    return file.getvalue()


@given(block=st.integers(50, 900), texts=st.lists(st.integers(0, 2000), min_size=1, max_size=5))
def test_offsets_and_limits_count_what_was_left_out(block: int, texts: list[int]) -> None:
    body = b"".join(b'{"html":"%b","name":"n%d"}\n' % (b"x" * size, number) for number, size in enumerate(texts))
    archive = tar_of(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "_LONG_LINE", 64)
        scanner = tar.TarScanner(max_record=1500, names=key_names(Small))
        lines: list[tuple[int, int, str | None]] = []
        for at in range(0, len(archive), block):
            for item in scanner.feed(archive[at : at + block]):
                if isinstance(item, tar.TooLong):
                    lines.append((item.line, item.offset, None))
                    continue
                assert isinstance(item, tar.Lines)
                for index, record in enumerate(item.records):
                    name = msgspec.json.decode(bytes(record), type=Small).name
                    lines.append((item.line + index, item.offset_of(index), name))
        scanner.close()
    expected: list[tuple[int, int, str | None]] = []
    offset = 0
    for number, line in enumerate(body.splitlines()):
        expected.append((number + 1, offset, None if len(line) > 1500 else f"n{number}"))
        offset += len(line) + 1
    assert lines == expected
