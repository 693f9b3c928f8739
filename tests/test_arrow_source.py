"""Archives as tables for DuckDB, Polars, pandas and pyarrow: the rows are those that plain Python reads."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wme_async import Article, Client, NotFound, Retry, read_archive
from wme_async.errors import ArchiveError
from wme_async.simulator import ArticleGenerator, Simulator, build_archive

pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")

from wme_async.integrations.arrow import (  # noqa: E402 - not importable without the extra
    ArrowSource,
    parquet_chunks,
    record_batches,
    write_parquet,
)


class Version(msgspec.Struct, frozen=True):
    identifier: int = 0


class Row(msgspec.Struct):
    name: str = ""
    identifier: int = 0
    version: Version = Version()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = ArticleGenerator(seed=5)
    lines = [msgspec.json.encode(generator.article(number)) + b"\n" for number in range(300)]
    target = tmp_path_factory.mktemp("arrow") / "archive.tar.gz"
    target.write_bytes(build_archive([("a.ndjson", lines[:200]), ("b.ndjson", lines[200:])]))
    return target


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator.run_in_thread(articles=20) as running:
        yield running


async def plain(path: Path) -> list[tuple[str, int, int]]:
    async with read_archive(path, type=Row) as rows:
        return [(row.name, row.identifier, row.version.identifier) async for row in rows]


QUERY = "SELECT count(*), sum(identifier), max(version.identifier), min(name), max(name) FROM "


async def test_duckdb_reads_the_same_from_a_source_from_parquet_and_python_has_it_too(path, tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")

    def query() -> Any:
        source = ArrowSource(path, type=Row)
        return duckdb.execute(QUERY + "source").fetchall()[0], repr(source)

    by_source, shown = await asyncio.to_thread(query)
    assert "1 scans" in shown
    async with read_archive(path, type=Row) as rows:
        await write_parquet(rows, tmp_path / "rows.parquet", type=Row)
    by_parquet = duckdb.sql(QUERY + f"'{tmp_path}/rows.parquet'").fetchall()[0]
    rows_ = await plain(path)
    expected = (
        len(rows_),
        sum(row[1] for row in rows_),
        max(row[2] for row in rows_),
        min(row[0] for row in rows_),
        max(row[0] for row in rows_),
    )
    assert by_source == by_parquet == expected


async def test_polars_and_pandas_read_the_same(path):
    expected = await plain(path)
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.DataFrame(ArrowSource(path, type=Row))
    assert [(row[0], row[1], row[2]["identifier"]) for row in frame.rows()] == expected


async def test_pyarrow_reads_batches_of_one_schema(path):
    source = ArrowSource(path, type=Article)
    table = source.reader().read_all()
    assert table.num_rows == 300
    assert table.schema == source.schema == pa.schema(source)
    assert pa.table(source).num_rows == 300, "a file may be scanned again: that costs nothing"


def test_it_works_in_the_thread_of_a_running_loop_that_is_blocked_by_it(path):
    async def blocked() -> int:
        return sum(batch.num_rows for batch in ArrowSource(path, type=Row).batches())

    assert asyncio.run(blocked()) == 300


def test_leaving_early_ends_the_thread(path):
    before = threading.active_count()
    batches = ArrowSource(path, type=Row).batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


async def test_archives_of_a_client_are_read_by_connections_of_their_own(simulator):
    async with Client(**simulator.client_options()) as wme:
        listed = await wme.snapshots.list()
        names = [snapshot.identifier for snapshot in listed[:2]]

        def rows(*arguments: Any, **options: Any) -> int:
            return sum(batch.num_rows for batch in ArrowSource(*arguments, type=Row, **options).batches())

        one, two = rows(wme.snapshots, names[0]), rows(wme.snapshots, names[1])
        assert one > 0
        assert rows(wme.snapshots, names) == one + two
        assert rows(wme.snapshots, listed[:2]) == one + two
        hour = wme.batches("latest")
        assert rows(hour) >= len(await hour.list()), "without identifiers, all of the list"
        assert await wme.codes.list(), "the client itself is as it was"


async def test_a_second_scan_of_a_client_must_be_allowed(simulator):
    async with Client(**simulator.client_options()) as wme:
        name = (await wme.snapshots.list())[0].identifier
        once = ArrowSource(wme.snapshots, name, type=Row)
        assert once.cost().requests == 1
        first = sum(batch.num_rows for batch in once.batches())
        with pytest.raises(RuntimeError, match="pass rescan=True"):
            once.batches()
        again = ArrowSource(wme.snapshots, name, type=Row, rescan=True)
        assert [sum(batch.num_rows for batch in again.batches()) for _ in range(2)] == [first, first]
        with pytest.raises(ValueError, match="to know the cost"):
            ArrowSource(wme.snapshots, type=Row).cost()


async def test_errors_of_reading_come_out_of_the_scan(simulator, tmp_path):
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"not an archive")
    with pytest.raises(ArchiveError):
        list(ArrowSource(broken, type=Row).batches())
    with pytest.raises(FileNotFoundError):
        list(ArrowSource(tmp_path / "missing.tar.gz", type=Row).batches())
    async with Client(**simulator.client_options(), retry=Retry(base=0, cap=0)) as wme:
        with pytest.raises(NotFound):
            list(ArrowSource(wme.snapshots, "nosuchwiki_namespace_0", type=Row).batches())


def test_invalid_arguments_are_an_error_at_the_call(path):
    with pytest.raises(TypeError, match="source must be a path"):
        ArrowSource(5, type=Row)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a path is one archive"):
        ArrowSource(path, "x", type=Row)
    with pytest.raises(TypeError, match="fields"):
        ArrowSource(path, type=int)
    with pytest.raises(TypeError, match="rescan"):
        ArrowSource(path, type=Row, rescan="no")  # type: ignore[arg-type]


class Editor(msgspec.Struct):
    name: str = ""


class Detail(msgspec.Struct):
    identifier: int = 0
    comment: str = ""
    editor: Editor | None = None


class Link(msgspec.Struct):
    name: str = ""
    url: str = ""


class Wide(msgspec.Struct):
    name: str = ""
    version: Detail | None = None
    links: list[Link] | None = None
    labels: dict[str, Link] = {}


WIDE = [
    Wide("a", Detail(1, "x", Editor("e")), [Link("l", "u"), Link("m", "v")], {"en": Link("n", "w")}),
    Wide("b"),
    Wide("c", Detail(3), []),
]


@pytest.mark.parametrize("form", ["batches", "parquet", "bytes"])
async def test_fields_are_the_columns_in_their_order_and_the_parts_of_objects(tmp_path: Path, form: str) -> None:
    fields = ["links.url", "version.editor.name", "version.identifier", "labels", "name"]

    async def records() -> Any:
        for record in WIDE:
            yield record

    if form == "batches":
        rows = [row async for batch in record_batches(records(), Wide, fields=fields) for row in batch.to_pylist()]
    else:
        target = tmp_path / "x.parquet"
        if form == "parquet":
            await write_parquet(records(), target, type=Wide, fields=fields)
        else:
            target.write_bytes(b"".join([chunk async for chunk in parquet_chunks(records(), Wide, fields=fields)]))
        rows = pa.parquet.read_table(target).to_pylist()
    assert rows == [
        {
            "links": [{"url": "u"}, {"url": "v"}],
            "version": {"editor": {"name": "e"}, "identifier": 1},
            "labels": [("en", {"name": "n", "url": "w"})],
            "name": "a",
        },
        {"links": None, "version": None, "labels": [], "name": "b"},
        {"links": [], "version": {"editor": None, "identifier": 3}, "labels": [], "name": "c"},
    ]
    assert [list(row) for row in rows] == [["links", "version", "labels", "name"]] * 3


def test_a_source_has_the_fields_that_are_named(path: Path) -> None:
    source = ArrowSource(path, type=Article, fields=["version.identifier", "name"])
    assert source.schema == pa.schema([("version", pa.struct([("identifier", pa.int64())])), ("name", pa.string())])
    table = pa.table(source)
    assert table.schema == source.schema
    rows = asyncio.run(plain(path))
    assert [(row["name"], row["version"]["identifier"]) for row in table.to_pylist()] == [(n, v) for n, _, v in rows]
    # An object that is named as a whole has all its parts.
    whole = ArrowSource(path, type=Row, fields=["version.identifier", "version"])
    assert whole.schema == pa.schema([("version", pa.struct([("identifier", pa.int64())]))])


@pytest.mark.parametrize(
    ("fields", "error"),
    [(["nothing"], ValueError), (["version.nothing"], ValueError), ([], ValueError), ("name", TypeError)],
)
def test_fields_that_do_not_exist_are_errors(path: Path, fields: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="field"):
        ArrowSource(path, type=Row, fields=fields)
