"""Blocks of JSON lines become the same Arrow columns as records that msgspec has decoded, whatever is in the lines."""

import asyncio
import contextlib
import datetime as dt
import enum
import json
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Article, StructuredContent, read_archive
from wme_async.errors import DecodeError
from wme_async.simulator import ArticleGenerator, build_archive

pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")

import pyarrow.parquet as pq  # noqa: E402 - not importable without the extra

from wme_async.integrations.arrow import record_batches, schema_of, write_parquet  # noqa: E402 - same


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct, frozen=True):
    x: int = 0
    y: float = 0.0
    labels: tuple[str, ...] = ()


class Named(msgspec.Struct):
    name: str
    point: Point | None = None


class Row(msgspec.Struct, kw_only=True):
    name: str = ""
    number: int = 7
    share: float = 1.5
    flag: bool = True
    when: dt.datetime | None = None
    since: dt.datetime = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    color: Color = Color.RED
    word: Literal["a", "b"] = "a"
    point: Point = Point(x=0)
    maybe: Point | None = None
    names: tuple[str, ...] = ()
    points: list[Point] = []
    some: list[int] | None = None
    named: list[Named] = []
    table: dict[str, int] = {}
    unset: str | msgspec.UnsetType = msgspec.UNSET
    again: "Row | None" = None


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""


class Required(msgspec.Struct):
    name: str
    number: int


FULL = {
    "name": "Squirrel",
    "number": 5,
    "share": 0.25,
    "flag": False,
    "when": "2026-11-29T05:00:00.123456Z",
    "since": "0001-01-01T00:00:00Z",
    "color": "blue",
    "word": "b",
    "point": {"x": 1, "y": 2.5, "labels": ["a", "ä"]},
    "maybe": {},
    "names": ["x", "y"],
    "points": [{}, {"x": 3}],
    "some": [1, 2],
    "named": [{"name": "n"}, {"name": "m", "point": {"x": 4}}],
    "unset": "set",
    "ignored": {"deep": [1, {"a": None}]},
}

# What a line may hold in place of a value: all classes of difference between the two parsers.
VALUES = [
    "null", "{}", "[]", "[null]", "[{}, null]", '"5"', "5", "-0", "1.0", "1e3", "1e999", "1.7976931348623159e308",
    "99999999999999999999", "NaN", "Infinity", "-Inf", "true", "false", '"text"', '"\\u0000"', '"\\ud800"', '"\\x"',
    '"red"', '"green"', '{"x": 1, "x": 2}', '{"x": null}', '{"name": null}', '{"name": "a", "name": "b"}',
    '["a", 5]', "[[1]]", "01", "1.", "+1", "tru", "", '"2026-11-29T05:00:00Z"', '"2026-11-29T05:00:00.1234565Z"',
    '"2026-11-29T05:00:00.123456789Z"', '"2026-11-29T05:00:00.9999999Z"', '"9999-12-31T23:59:59.9999999Z"',
    '"2026-11-29T05:00:00+01:00"', '"2026-11-29 05:00:00Z"', '"2026-11-29T05:00:00"', '"2026-02-30T05:00:00Z"',
    '"0001-01-01T00:00:00Z"', '"0000-01-01T00:00:00Z"', '"2026-11-29T24:00:00Z"', '"2026-11-29T05:00:60Z"',
]  # fmt: skip

# A line as a whole.
LINES = [
    b"", b" ", b"{}", b"null", b"5", b"[]", b"{", b"}", b'{"name": "a"} ', b' {"name": "a"}', b'{"name": "a"}\r',
    b'{"name": "a"}{"name": "b"}', b'{"name": "a"} {"name": "b"}', b'{"name": "a"} null', b'{"name": "a"},',
    b'{"name": "a" "number": 5}', b'{"name": "\xff"}', b'{"other": "\xff"}', b'\xef\xbb\xbf{"name": "a"}',
    b'{"points": [',
    b'{"x": 3}]}', b'{"name": "a\tb"}', b'{"na\\u006de": "a"}', b'{"name": "a", "number": 1, "name": "b"}',
    b'{"other": NaN}', b'{"other": [1, -Inf]}', b'{"name": "NaN, Infinity]"}',
    b'{"other": 1, "other": 2}', b'{"name": "a",}',
    b'{"other": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"table": {"a": 1}}',
    b'{"again": {"name": "b"}}', b'{"again": {}}',
]  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Return a line that is right, or wrong in one or two ways."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(LINES))
    record = {key: value for key, value in FULL.items() if draw(st.booleans())}
    texts = {json.dumps(key): json.dumps(value) for key, value in record.items()}
    for key in draw(st.lists(st.sampled_from([*FULL, "table", "again"]), max_size=2)):
        texts[json.dumps(key)] = draw(st.sampled_from(VALUES))
    line = ("{" + ", ".join(f"{key}: {text}" for key, text in texts.items()) + "}").encode()
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(line) - 1))
        line = (
            line[:at]
            + draw(st.sampled_from([b"", b'"', b"\\", b"}", b"{", b" ", b"\n", b"0", b"\xc3"]))
            + line[at + 1 :]
        )
    return line


async def columns(data: list[bytes], type: Any, folder: Any, *, decoded: bool) -> tuple[Any, int]:
    """Return the table of an archive and its number of bad records, by blocks or by records."""
    path = folder / "archive.tar.gz"
    path.write_bytes(build_archive([("a.ndjson", [line + b"\n" for line in data])]))
    async with read_archive(path, type=type, on_bad_record="skip") as reader:

        async def records():
            async for record in reader:
                yield record

        source: Any = records() if decoded else reader
        async with contextlib.aclosing(record_batches(source, type)) as batches:
            table = pa.Table.from_batches([batch async for batch in batches], schema_of(type))
        return table, reader.statistics().bad_records


async def is_held(line: bytes, type: Any, folder: Any) -> bool:
    """Return whether Arrow can hold the numbers of a line, whose record is a bad one otherwise."""
    try:
        await columns([line], type, folder, decoded=True)
    except DecodeError:
        return False
    return True


async def compare(data: list[bytes], type: Any, folder: Any) -> Any:
    lines = [part for line in data for part in line.split(b"\n")]
    try:
        by_records, expected_bad = await columns(lines, type, folder, decoded=True)
    except DecodeError:
        held = [line for line in lines if await is_held(line, type, folder)]
        by_records, expected_bad = await columns(held, type, folder, decoded=True)
        expected_bad += len(lines) - len(held)
    by_blocks, bad = await columns(data, type, folder, decoded=False)
    by_blocks.validate(full=True)
    assert by_blocks.schema == by_records.schema
    assert [repr(row) for row in by_blocks.to_pylist()] == [repr(row) for row in by_records.to_pylist()]
    assert bad == expected_bad
    return by_blocks


@given(data=st.lists(lines(), min_size=1, max_size=6), kind=st.sampled_from([Row, Required, Strict, Point]))
def test_blocks_and_records_give_the_same_columns(tmp_path_factory, data, kind):
    asyncio.run(compare(data, kind, tmp_path_factory.mktemp("blocks")))


@pytest.mark.parametrize("value", VALUES)
async def test_each_odd_value_gives_the_same_columns_in_each_field(tmp_path, value):
    data = []
    for key in [*FULL, "table", "again"]:
        record = {json.dumps(name): json.dumps(content) for name, content in FULL.items()} | {json.dumps(key): value}
        data.append(("{" + ",".join(f"{name}:{text}" for name, text in record.items()) + "}").encode())
    await compare(data, Row, tmp_path)


async def test_generated_articles_give_the_same_columns(tmp_path):
    generator = ArticleGenerator(seed=1)
    data = [msgspec.json.encode(generator.article(number)) for number in range(30)]
    table = await compare(data, Article, tmp_path)
    assert table.num_rows == len(data)


async def test_structured_contents_give_the_same_columns(tmp_path):
    generator = ArticleGenerator(seed=1)
    data = [msgspec.json.encode(generator.structured(number)) for number in range(10)]
    table = await compare(data, StructuredContent, tmp_path)
    assert table.num_rows == len(data)


class Key(msgspec.Struct):
    number: int = 0


async def test_few_fields_of_long_records_give_the_same_columns_in_each_member(tmp_path):
    # Longer than the first block, after which such records are decoded one by one; a line above the limit in between.
    def member(first: int) -> list[bytes]:
        lines = [json.dumps({"number": first + n, "text": "x" * 20_000}).encode() + b"\n" for n in range(120)]
        return [*lines[:70], b'{"text": "' + b"y" * 100_000 + b'"}\n', *lines[70:]]

    path, folder = tmp_path / "long.tar.gz", tmp_path / "members"
    path.write_bytes(build_archive([("a.ndjson", member(0)), ("b.ndjson", member(1000)), ("c.ndjson", member(2000))]))
    folder.mkdir()
    async with read_archive(path, type=Key, max_record=50_000, on_bad_record="skip") as records:
        result = await write_parquet(records, folder, type=Key)
        assert records.statistics().bad_records == 3
    assert result.rows == 360
    for name, first in (("a", 0), ("b", 1000), ("c", 2000)):
        numbers = pq.read_table(folder / f"{name}.parquet")["number"].to_pylist()
        assert numbers == list(range(first, first + 120))


@pytest.mark.parametrize("counts", [(3, 1, 7), (7, 3, 1), (1, 7, 3)])
async def test_absent_fields_give_the_same_columns_in_blocks_of_any_number_of_records(tmp_path, counts):
    # Each member is a block of its own, and the columns of absent fields share memory among blocks.
    members = [
        [b"{}" if number % 2 else b'{"point": {"x": 2}, "named": [{"name": "n"}]}'] * number for number in counts
    ]
    path, folder = tmp_path / "archive.tar.gz", tmp_path / "members"
    archive = [(f"{index}.ndjson", [line + b"\n" for line in lines]) for index, lines in enumerate(members)]
    path.write_bytes(build_archive(archive))
    folder.mkdir()
    async with read_archive(path, type=Row) as records:
        await write_parquet(records, folder, type=Row)
    for index, lines in enumerate(members):
        expected, _ = await columns(lines, Row, tmp_path, decoded=True)
        table = pq.ParquetFile(folder / f"{index}.parquet").read()
        assert [repr(row) for row in table.to_pylist()] == [repr(row) for row in expected.to_pylist()]
