"""All archives of a listing as records: complete, in order for each archive, and bounded."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from wme_async import ArchiveError, Article, Client, NotFound, Retry
from wme_async.simulator import Simulator

NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
HOUR = "2026-07-15T11"
ARCHIVE = "enwiki_namespace_0"
KEY = f"batches/2026-07-15/11/{ARCHIVE}.tar.gz"
EN = {"in_language.identifier": "en"}


class Name(msgspec.Struct):
    name: str = ""


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(start=NOON, articles=4) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    async with Client(**sim.client_options(), retry=Retry(attempts=2, base=0.001, cap=0.002)) as client:
        await client.auth.login()
        sim.requests.clear()
        yield client


async def names_of(reader: Any) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    async with reader as batches:
        async for batch, records in batches:
            names[batch.identifier] += [record.name for record in records]
    return names


async def test_every_record_of_every_archive_comes_in_order(sim: Simulator, wme: Client) -> None:
    hour = wme.batches(HOUR)
    names = await names_of(hour.read_all())
    # A list, and two requests for each archive.
    assert len(sim.requests) == 1 + 2 * len(names)
    for row in await hour.list():
        async with hour.read(row.identifier) as articles:
            assert [article.name async for article in articles] == names.pop(row.identifier)
    assert not names


async def test_filters_and_a_type_of_ones_own(wme: Client) -> None:
    async with wme.batches("latest").read_all(filters=EN, type=Name) as batches:
        results = [(batch, records) async for batch, records in batches]
    assert {batch.in_language.identifier for batch, _ in results} == {"en"}
    assert all(isinstance(record, Name) for _, records in results for record in records)


@pytest.mark.parametrize("kind", ["snapshots", "chunks", "structured", "wikidata"])
async def test_every_kind_can_be_read(wme: Client, kind: str) -> None:
    archives: Any = {
        "snapshots": wme.snapshots,
        "chunks": wme.snapshots.chunks(ARCHIVE),
        "structured": wme.structured_snapshots,
        "wikidata": wme.wikidata.snapshots,
    }[kind]
    names = await names_of(archives.read_all(type=Name))
    assert names.keys() == {row.identifier for row in await archives.list()}


async def test_memory_is_bounded_however_large_the_archives_are(sim: Simulator, wme: Client) -> None:
    line = msgspec.json.encode({"name": "x" * 1000}) + b"\n"
    from wme_async.simulator import build_archive

    sim.put_object(KEY, build_archive([("m.ndjson", [line] * 20_000)], level=0))
    sizes = []
    async with wme.batches(HOUR).read_all(filters=EN, type=Name, concurrency=2, max_bytes=1 << 20) as batches:
        async for batch, records in batches:
            if batch.identifier == ARCHIVE:
                sizes.append(sum(len(record.name) for record in records))
    assert sum(sizes) == 20_000_000
    assert max(sizes) <= 1 << 19


async def test_an_archive_that_vanishes_is_raised_with_its_name(sim: Simulator, wme: Client) -> None:
    sim.delete_object(KEY)
    with pytest.raises(NotFound) as caught:
        await names_of(wme.batches(HOUR).read_all())
    assert any(ARCHIVE in note for note in caught.value.__notes__)


async def test_a_damaged_archive_is_raised(sim: Simulator, wme: Client) -> None:
    sim.put_object(KEY, b"x" * 5000)
    with pytest.raises(ArchiveError):
        await names_of(wme.batches(HOUR).read_all())


async def test_an_archive_that_is_newer_than_the_list_is_read(sim: Simulator, wme: Client) -> None:
    from wme_async.simulator import build_archive

    line = msgspec.json.encode({"name": "new"}) + b"\n"
    sim.put_object(KEY, build_archive([("m.ndjson", [line] * 200)], level=0), update_metadata=False)
    names = await names_of(wme.batches(HOUR).read_all(filters=EN))
    assert names[ARCHIVE] == ["new"] * 200


async def test_trouble_that_passes_is_survived(sim: Simulator, wme: Client) -> None:
    expected = await names_of(wme.batches(HOUR).read_all())
    for kind in ("drop", "corrupt", "status"):
        details = {"status": 503} if kind == "status" else {}
        sim.faults.inject(kind, role="store", path=ARCHIVE, **details)  # type: ignore[arg-type]
        assert await names_of(wme.batches(HOUR).read_all()) == expected


async def test_leaving_early_ends_all_work(sim: Simulator, wme: Client) -> None:
    before = asyncio.all_tasks()
    async with wme.batches(HOUR).read_all() as batches:
        async for _batch, records in batches:
            assert isinstance(records[0], Article)
            break
    assert "0 open bodies" in repr(wme)
    assert {task for task in asyncio.all_tasks() - before if "read a listing" in task.get_name()} == set()
    with pytest.raises(RuntimeError, match="not open"):
        await anext(batches)
    with pytest.raises(RuntimeError, match="once"):
        await batches.__aenter__()


async def test_wrong_use_is_an_error_at_once(sim: Simulator, wme: Client) -> None:
    hour = wme.batches(HOUR)
    for options in ({"concurrency": 0}, {"max_bytes": 0}, {"filters": {"x": 1}}, {"on_bad_record": "ignore"}):
        with pytest.raises((ValueError, TypeError)):
            hour.read_all(**options)
    with pytest.raises(RuntimeError, match="not open"):
        await anext(hour.read_all())
    assert not sim.requests
