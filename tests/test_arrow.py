"""Records as Arrow and Parquet, read back by pyarrow and by DuckDB."""

import asyncio
import dataclasses
import datetime as dt
import enum
import errno
import io
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import read_archive
from wme_async.errors import ArchiveError, DecodeError
from wme_async.models import Article, StructuredContent, WikidataEntity

pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the extra `arrow` is not installed")

from wme_async.integrations.arrow import (  # noqa: E402 - not importable without the extra
    parquet_chunks,
    record_batches,
    schema_of,
    unwritten,
    write_parquet,
)


class Kind(enum.Enum):
    OLD = "old"
    NEW = "new"


class Inner(msgspec.Struct):
    number: int = 0
    names: list[str] = []


class Empty(msgspec.Struct):
    pass


@dataclasses.dataclass
class Plain:
    x: int = 0


class Typed(TypedDict, total=False):
    y: str


class Record(msgspec.Struct, kw_only=True):
    text: str = ""
    renamed: int = msgspec.field(default=0, name="re-named")
    real: float = 0.0
    either: int | float = 0
    flag: bool = False
    when: dt.datetime | None = None
    day: dt.date | None = None
    clock: dt.time | None = None
    raw: bytes = b""
    key: uuid.UUID | None = None
    kind: Kind = Kind.OLD
    word: Literal["a", "b"] = "a"
    inner: Inner | None = None
    inners: list[Inner | None] | None = None
    pairs: tuple[str, ...] = ()
    table: dict[str, float] = {}
    anything: Any = None
    both: str | int = 0
    numbered: dict[int, str] = {}
    level: Literal[1, 2] = 1
    exact: Decimal | None = None
    again: "Record | None" = None
    empty: Empty | None = None
    plain: Plain | None = None
    typed: Typed | None = None
    maybe: str | msgspec.UnsetType = msgspec.UNSET
    _spelling: int = 0


def plain(value: Any) -> Any:
    """Return what a value should come back as."""
    if isinstance(value, Record):
        return {
            field.encode_name: plain_field(field.name, getattr(value, field.name))
            for field in msgspec.structs.fields(Record)
            if not field.name.startswith("_")
        }
    if isinstance(value, Inner):
        return {"number": value.number, "names": value.names}
    if isinstance(value, Plain):
        return {"x": value.x}
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def plain_field(name: str, value: Any) -> Any:
    if value is None or value is msgspec.UNSET:
        return None
    if name in {"anything", "both", "numbered", "level", "again", "empty"}:
        return msgspec.json.encode(value).decode()
    if name == "typed":
        return {"y": value.get("y")}
    if name in {"key", "exact"}:
        return str(value)
    return plain(value)


inners = st.builds(Inner, number=st.integers(-(2**63), 2**63 - 1), names=st.lists(st.text(max_size=3), max_size=2))
records = st.builds(
    Record,
    text=st.text(max_size=5),
    renamed=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(allow_nan=False),
    either=st.integers(-1000, 1000) | st.floats(allow_nan=False),
    flag=st.booleans(),
    when=st.none() | st.datetimes(timezones=st.just(dt.UTC)),
    day=st.none() | st.dates(),
    clock=st.none() | st.times(),
    raw=st.binary(max_size=3),
    key=st.none() | st.uuids(),
    kind=st.sampled_from(Kind),
    word=st.sampled_from(["a", "b"]),
    inner=st.none() | inners,
    inners=st.none() | st.lists(st.none() | inners, max_size=3),
    pairs=st.lists(st.text(max_size=2), max_size=2).map(tuple),
    table=st.dictionaries(st.text(max_size=2), st.floats(allow_nan=False), max_size=2),
    anything=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2),
    both=st.text(max_size=2) | st.integers(0, 9),
    numbered=st.dictionaries(st.integers(0, 9), st.text(max_size=2), max_size=2),
    exact=st.none() | st.just(Decimal("1.50")),
    again=st.none() | st.just(Record(text="x")),
    empty=st.none() | st.just(Empty()),
    plain=st.none() | st.builds(Plain, st.integers(0, 9)),
    typed=st.none() | st.just({"y": "z"}) | st.just({}),
    maybe=st.just(msgspec.UNSET) | st.text(max_size=2),
)


async def each(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def batches_of(values: list[Any], type_: Any) -> list[Any]:
    return [batch async for batch in record_batches(each(values), type_)]


@given(values=st.lists(records, max_size=4))
def test_every_value_comes_back_as_it_was(values: list[Record]) -> None:
    table = pa.Table.from_batches(asyncio.run(batches_of(values, Record)), schema_of(Record))
    table.validate(full=True)
    assert table.to_pylist() == [plain(value) for value in values]


def test_the_schema_has_the_names_of_the_wire_and_a_type_for_each_field() -> None:
    schema = schema_of(Record)
    assert schema.field("re-named").type == pa.int64()
    assert schema.field("either").type == pa.float64()
    assert schema.field("when").type == pa.timestamp("us", tz="UTC")
    assert schema.field("inners").type == pa.list_(
        pa.struct([("number", pa.int64()), ("names", pa.list_(pa.string()))])
    )
    assert schema.field("table").type == pa.map_(pa.string(), pa.float64())
    assert schema.field("again").type == pa.string()
    assert "_spelling" not in schema.names


@pytest.mark.parametrize("type_", [Article, StructuredContent, WikidataEntity])
def test_all_record_types_of_the_service_have_a_schema(type_: Any) -> None:
    table = pa.Table.from_batches(asyncio.run(batches_of([type_()], type_)), schema_of(type_))
    table.validate(full=True)


def test_a_type_without_fields_is_misuse() -> None:
    for type_ in (int, dict[str, int]):
        with pytest.raises(TypeError, match="a type with fields"):
            schema_of(type_)


async def test_a_number_that_arrow_cannot_hold_is_an_error_of_ours() -> None:
    with pytest.raises(DecodeError, match="Arrow cannot hold"):
        await batches_of([Inner(2**63)], Inner)


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(sink.getvalue())
    return path


def lines(numbers: range) -> bytes:
    return b"".join(b'{"number":%d,"names":["n%d"]}\n' % (number, number) for number in numbers)


@pytest.mark.parametrize("extra", [None, "others"])
async def test_a_record_of_an_archive_that_arrow_cannot_hold_is_a_bad_record(tmp_path: Path, extra: str | None) -> None:
    bad = b'{"number":9223372036854775808}\n'
    path = archive(tmp_path / "x.tar.gz", ("a.ndjson", lines(range(5)) + bad + lines(range(5, 8)) + bad))
    errors: list[DecodeError] = []
    async with read_archive(path, type=Inner, on_bad_record=errors.append) as records:
        await write_parquet(records, tmp_path / "x.parquet", type=Inner, extra=extra)
        statistics = records.statistics()
    assert pq.read_table(tmp_path / "x.parquet").column("number").to_pylist() == list(range(8))
    assert (statistics.records, statistics.bad_records, len(errors)) == (8, 2, 2)
    assert "a.ndjson in x.tar.gz" in errors[0].message
    async with read_archive(path, type=Inner) as records:
        with pytest.raises(DecodeError, match="Arrow cannot hold"):
            await write_parquet(records, tmp_path / "y.parquet", type=Inner, extra=extra)
    assert contents(tmp_path) == ["x.parquet", "x.tar.gz"]


async def test_duckdb_reads_the_counts_and_values_of_real_articles(tmp_path: Path, shared_data: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    raw = (shared_data / "articles.ndjson").read_bytes()
    path = archive(tmp_path / "x.tar.gz", ("a.ndjson", raw * 3))
    target = tmp_path / "x.parquet"
    async with read_archive(path) as articles:
        done = await write_parquet(articles, target, type=Article)
    expected = [msgspec.json.decode(line, type=Article) for line in raw.splitlines()] * 3
    assert done.rows == len(expected)
    assert done.files == (str(target),)
    assert done.bytes == target.stat().st_size
    row = duckdb.execute(
        f"SELECT identifier, name, epoch_us(date_modified), article_body.html, version.size.value, len(categories),"
        f" version.is_minor_edit, is_part_of.identifier FROM '{target}'"
    ).fetchall()
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert row == [
        (
            article.identifier,
            article.name,
            (article.date_modified - epoch) // dt.timedelta(microseconds=1) if article.date_modified else None,
            article.article_body.html if article.article_body else None,
            article.version.size.value,
            len(article.categories),
            article.version.is_minor_edit,
            article.is_part_of.identifier,
        )
        for article in expected
    ]


async def test_row_groups_are_bounded_by_bytes(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", ("a", lines(range(40_000))))
    target = tmp_path / "x.parquet"
    async with read_archive(path, type=Inner) as records_:
        await write_parquet(records_, target, type=Inner, row_group_bytes=200_000, compression="snappy")
    facts = pq.ParquetFile(target).metadata
    assert facts.num_rows == 40_000
    assert facts.num_row_groups > 3
    assert facts.row_group(0).column(0).compression == "SNAPPY"
    assert pq.read_table(target).column("number").to_pylist() == list(range(40_000))


async def test_the_bytes_can_be_had_without_a_file() -> None:
    values = [Inner(number) for number in range(2000)]
    chunks = [chunk async for chunk in parquet_chunks(each(values), Inner, row_group_bytes=1)]
    assert len(chunks) == 5
    assert pq.read_table(io.BytesIO(b"".join(chunks))).num_rows == 2000


async def test_no_records_make_a_file_without_rows(tmp_path: Path) -> None:
    done = await write_parquet(each([]), tmp_path / "x.parquet", type=Inner)
    assert done.rows == 0
    assert pq.read_schema(tmp_path / "x.parquet") == schema_of(Inner)


async def test_a_file_that_is_not_whole_has_no_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", ("a", lines(range(5000))))
    path.write_bytes(path.read_bytes()[:-20])

    async def write() -> None:
        async with read_archive(path, type=Inner, use_isal=False) as records_:
            await write_parquet(records_, tmp_path / "x.parquet", type=Inner)

    with pytest.raises(ArchiveError):
        await write()
    assert contents(tmp_path) == [path.name]


async def test_a_folder_gets_a_file_for_each_member_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = [("m_0.ndjson", lines(range(100))), ("m_1.ndjson", lines(range(100, 200)))]
    path = archive(tmp_path / "x.tar.gz", *whole, ("m_2.ndjson", lines(range(200, 250)) + b"bad\n"))
    folder = tmp_path / "out"
    folder.mkdir()

    async def write() -> Any:
        async with read_archive(path, type=Inner, select=unwritten(folder)) as records_:
            return await write_parquet(records_, folder, type=Inner)

    with pytest.raises(DecodeError):
        await write()
    assert contents(folder) == ["m_0.parquet", "m_1.parquet"]
    archive(path, *whole, ("m_2.ndjson", lines(range(200, 300))))
    done = await write()
    assert (done.rows, done.files) == (100, (str(folder / "m_2.parquet"),))
    assert sorted(pq.read_table(folder).column("number").to_pylist()) == list(range(300))
    assert (await write()).files == ()


async def test_a_folder_is_for_archives(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="archive"):
        await write_parquet(each([]), tmp_path, type=Inner)


async def test_a_target_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await write_parquet(each([Inner()]), tmp_path / "missing" / "x.parquet", type=Inner)


def test_without_the_extra_the_import_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "try: import wme_async.integrations.arrow\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'wme-async[arrow]'" in done.stdout


async def test_a_scope_that_is_cancelled_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[Inner]:
        for number in range(10_000):
            yield Inner(number)
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        await write_parquet(endless(), tmp_path / "x.parquet", type=Inner)
    assert scope.cancelled_caught
    assert contents(tmp_path) == []


async def test_a_cancelled_task_leaves_no_part_of_a_file_that_was_just_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    opening, opened, go_on = asyncio.Event(), asyncio.Event(), threading.Event()
    real = Path.open

    def slow(path: Path, mode: str = "r") -> Any:
        loop.call_soon_threadsafe(opening.set)
        assert go_on.wait(20)
        file = real(path, mode)
        loop.call_soon_threadsafe(opened.set)
        return file

    monkeypatch.setattr(Path, "open", slow)
    task = asyncio.create_task(write_parquet(each([Inner(1)]), tmp_path / "x.parquet", type=Inner))
    await opening.wait()
    task.cancel()
    # What the task does in the next turns, it does before there is a file.
    for _ in range(20):
        await asyncio.sleep(0)
    await loop.run_in_executor(None, int)
    go_on.set()
    await opened.wait()
    await asyncio.wait([task])
    assert task.cancelled()
    assert contents(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
async def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r") -> Any:
        real(path, mode).close()
        return real(Path("/dev/full"), mode)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError) as caught:  # noqa: PT011  # its number tells
        await write_parquet(each([Inner(1)]), tmp_path / "x.parquet", type=Inner)
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == []


@pytest.mark.parametrize("names", [("a/m.ndjson", "a_m.ndjson"), ("m.ndjson", "n.ndjson", "m.ndjson")])
async def test_members_whose_files_would_have_one_name_do_not_overwrite_each_other(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    path = archive(tmp_path / "x.tar.gz", *((name, lines(range(9))) for name in names))
    folder = tmp_path / "out"
    folder.mkdir()
    async with read_archive(path, type=Inner) as records_:
        with pytest.raises(ArchiveError, match="two members"):
            await write_parquet(records_, folder, type=Inner)
    assert not [name for name in contents(folder) if name.endswith(".part")]


class Odd(msgspec.Struct, tag="odd", tag_field="kind"):
    exact: Decimal | None = None
    raw: bytearray | None = None
    when: dt.datetime | None = None
    local: Annotated[dt.datetime, msgspec.Meta(tz=False)] | None = None


async def one_by_one(*values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def rows(type: Any, *values: Any) -> list[dict[str, Any]]:
    return [row async for batch in record_batches(one_by_one(*values), type) for row in batch.to_pylist()]


async def test_tags_decimals_and_bytes_keep_what_they_are() -> None:
    local = dt.datetime(2026, 11, 29, 5)  # noqa: DTZ001 - without a zone on purpose
    west = dt.datetime(2026, 11, 29, 5, tzinfo=dt.timezone(dt.timedelta(hours=-3)))
    assert await rows(Odd, Odd(Decimal("1.50"), bytearray(b"x"), west, local)) == [
        {"kind": "odd", "exact": "1.50", "raw": b"x", "when": west.astimezone(dt.UTC), "local": local}
    ]


@pytest.mark.parametrize(
    "when",
    [
        dt.datetime(2026, 11, 29),  # noqa: DTZ001 - without a zone on purpose
        dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5))),
    ],
)
async def test_times_that_are_none_in_utc_are_refused(when: dt.datetime) -> None:
    with pytest.raises(DecodeError, match="Arrow cannot hold a record"):
        await rows(Odd, Odd(when=when))


async def test_a_batch_is_cut_before_a_column_is_larger_than_an_arrow_array(monkeypatch: pytest.MonkeyPatch) -> None:
    array = pa.array

    def bounded(values: Any, kind: Any = None) -> Any:
        full = kind == pa.string() and sum(len(value or "") for value in values) > 100
        return pa.chunked_array([array(values, kind)]) if full else array(values, kind)

    monkeypatch.setattr(pa, "array", bounded)
    batches = [batch.num_rows async for batch in record_batches(one_by_one(*[Text("x" * 30)] * 9), Text)]
    assert max(batches) <= 3
    assert sum(batches) == 9
    with pytest.raises(DecodeError, match="2 GiB"):
        await rows(Text, Text("x" * 101))


class Text(msgspec.Struct):
    text: str


async def test_batches_of_large_records_are_small() -> None:
    values = [Text("x" * 20_000)] * 1500
    batches = [batch.nbytes async for batch in record_batches(one_by_one(*values), Text)]
    assert max(batches[1:]) <= 5_000_000  # the size of records is known after the first


class Part(msgspec.Struct, frozen=True):
    identifier: str = ""


class Paged(msgspec.Struct):
    name: str = ""
    is_part_of: Part = Part()


async def test_a_folder_is_divided_by_project_as_engines_expect(tmp_path):
    projects = ["enwiki", "dewiki", "enwiki", "", "fr/wiki"]

    async def records() -> AsyncIterator[Paged]:
        for number, project in enumerate(projects * 100):
            yield Paged(name=str(number), is_part_of=Part(project))

    done = await write_parquet(records(), tmp_path / "out", type=Paged, partition_by="project", row_group_bytes=2000)
    assert done.rows == 500
    assert len(done.files) == 4
    table = pytest.importorskip("pyarrow.dataset").dataset(tmp_path / "out", partitioning="hive").to_table()
    assert sorted(table["name"].to_pylist(), key=int) == [str(number) for number in range(500)]
    pairs = {
        (project, part["identifier"])
        for project, part in zip(table["project"].to_pylist(), table["is_part_of"].to_pylist(), strict=True)
    }
    assert pairs == {("enwiki", "enwiki"), ("dewiki", "dewiki"), (None, ""), ("fr/wiki", "fr/wiki")}
    assert not list(tmp_path.rglob("*.part"))


async def test_fields_that_the_type_lacks_are_kept_as_json(tmp_path):
    data = [{"name": "a", "x": 1, "y": {"z": [None]}}, {"name": "b"}, "broken", {"x": 2}]
    path = archive(tmp_path / "x.tar.gz", ("a", b"".join(msgspec.json.encode(line) + b"\n" for line in data)))
    async with read_archive(path, type=Paged, on_bad_record="skip") as reader:
        done = await write_parquet(reader, tmp_path / "x.parquet", type=Paged, extra="rest")
        assert reader.statistics().bad_records == 1
    table = pq.read_table(tmp_path / "x.parquet")
    assert done.rows == 3
    assert table["name"].to_pylist() == ["a", "b", ""]
    assert table["rest"].to_pylist() == ['{"x":1,"y":{"z":[null]}}', None, '{"x":2}']


async def test_what_partitions_and_extra_fields_need_is_said(tmp_path):
    async def records() -> AsyncIterator[Inner]:
        yield Inner()

    with pytest.raises(ValueError, match="partition_by must be"):
        await write_parquet(records(), tmp_path, type=Inner, partition_by="day")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is_part_of\.identifier"):
        await write_parquet(records(), tmp_path, type=Inner, partition_by="project")
    with pytest.raises(ValueError, match="not an object of a store"):
        await write_parquet(records(), "s3://bucket/x", type=Inner, partition_by="member")
    with pytest.raises(TypeError, match="`extra` needs an open archive"):
        await write_parquet(records(), tmp_path / "x", type=Inner, extra="rest")
    with pytest.raises(ValueError, match="there is a column 'names' already"):
        await write_parquet(records(), tmp_path / "x", type=Inner, extra="names")
    assert not list(tmp_path.iterdir())
