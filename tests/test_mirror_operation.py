"""Running a mirror: gaps, bad records, doubts, take-downs, verification, wrong clocks, full disks, and its feed."""

import asyncio
import sqlite3
from datetime import timedelta

import msgspec
import pytest
from failing_sqlite import Trouble
from mirror_world import (
    AT_ONCE,
    IDENTIFIER,
    START,
    copy_of,
    differences,
    downloads,
    index_of,
    mirror_of,
    requests_of,
    running,
    service,
    titles_of,
    until,
    until_equal,
)
from wall_clock import clock

from wme_async import Client, DataError, NotFound, QuotaExceeded, RateLimited
from wme_async.mirror import (
    Mirror,
    MirrorBadRecord,
    MirrorEvent,
    MirrorHoleClosed,
    MirrorHoleFound,
    MirrorReader,
    MirrorStateChanged,
    MirrorTrouble,
    MirrorVerified,
    SQLiteStore,
)
from wme_async.models import Article
from wme_async.simulator import World


@pytest.fixture
async def small(tmp_path):
    """A world, its simulator, its client, and the path of a mirror that has been loaded from snapshots."""
    async with service(World(seed=2, projects=["enwiki"], pages=16, past=0)) as (world, sim, wme):
        path = tmp_path / "mirror.db"
        async with mirror_of(wme, path, source="snapshots") as mirror:
            await mirror.sync()
        yield world, sim, wme, path


def title_of(world, number=0):
    return sorted(world.truth("enwiki").pages)[number]


# Arguments.


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"identifiers": "enwiki"}, ValueError, "project and a namespace"),
        ({"identifiers": "enwiki_namespace_0_chunk_1"}, ValueError, "whole namespaces"),
        ({"identifiers": []}, ValueError, "one or more"),
        ({"identifiers": [IDENTIFIER, IDENTIFIER]}, ValueError, "different"),
        ({"identifiers": [5]}, TypeError, "text"),
        ({"source": "mail"}, ValueError, "source"),
        ({"load": "slowly"}, ValueError, "load"),
        ({"verify": "yes"}, ValueError, "verify"),
        ({"verify_every": 0}, ValueError, "verify_every"),
        ({"overlap": -1}, ValueError, "overlap"),
        ({"max_removed": 2}, ValueError, "share"),
        ({"poll": 0}, ValueError, "poll"),
        ({"keep": "wikitext"}, TypeError, "list"),
        ({"keep": ["wikitxt"]}, ValueError, "wikitxt"),
        ({"on_event": 5}, TypeError, "on_event"),
        ({"filters": {"name": "A"}}, TypeError, "filters"),
    ],
)
async def test_options_are_checked_before_anything_is_sent(tmp_path, change, kind, words):
    async with Client(access_token="x") as wme:
        with pytest.raises(kind, match=words):
            Mirror(wme, **{"identifiers": IDENTIFIER, "store": SQLiteStore(tmp_path / "mirror.db")} | change)
        with pytest.raises(TypeError, match="store"):
            Mirror(wme, IDENTIFIER, tmp_path / "mirror.db")
        with pytest.raises(TypeError, match="client"):
            Mirror(None, IDENTIFIER, SQLiteStore(tmp_path / "mirror.db"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


async def test_a_store_belongs_to_what_it_was_made_for(small, tmp_path):
    _, _, wme, path = small
    for options in ({"identifiers": "dewiki_namespace_0"}, {"keep": ["wikitext"]}):
        with pytest.raises(ValueError, match="the store was made with"):
            async with mirror_of(wme, path, **options):
                pass
    async with mirror_of(wme, path) as mirror:
        with pytest.raises(BlockingIOError, match="another mirror"):
            async with mirror_of(wme, path):
                pass
        results = await asyncio.gather(mirror.sync(quiet=0.1), mirror.sync(quiet=0.1), return_exceptions=True)
        assert [str(result) for result in results if result is not None] == ["the mirror is running already"]
    with pytest.raises(RuntimeError, match="not open"):
        await mirror.sync()
    with pytest.raises(NotFound):
        async with mirror_of(wme, tmp_path / "other.db", identifiers="nowiki_namespace_7") as mirror:
            await mirror.sync()


# What the stream may do.


async def test_a_record_that_cannot_be_read_is_looked_up(small):
    world, sim, wme, path = small
    events: list[MirrorEvent] = []
    async with mirror_of(wme, path, on_event=events.append) as mirror, running(mirror):
        await until_equal(mirror, world)
        title = title_of(world)
        broken = {
            "name": title,
            "is_part_of": {"identifier": "enwiki"},
            "namespace": {"identifier": 0},
            "version": "not an object",
            "event": {"type": "update", "date_published": "2026-03-10T12:20:00Z"},
        }
        sim.firehose.publish(broken)
        await until(lambda: any(isinstance(event, MirrorBadRecord) for event in events))
        await until(lambda: requests_of(sim, "/v2/articles/"))
        await until_equal(mirror, world)


async def test_a_record_without_a_title_is_a_hole_that_batches_heal(small):
    world, sim, wme, path = small
    events: list[MirrorEvent] = []
    async with mirror_of(wme, path, on_event=events.append) as mirror, running(mirror):
        await until_equal(mirror, world)
        event = {"type": "update", "date_published": "2026-03-10T12:20:00Z"}
        sim.firehose.publish(
            {"name": 5, "is_part_of": {"identifier": "enwiki"}, "namespace": {"identifier": 0}, "event": event}
        )
        await until(lambda: any(isinstance(event, MirrorHoleFound) for event in events))
        world.edit("enwiki", title_of(world))
        world.advance(3 * 3600)
        await wme.projects.list()  # any response brings the time
        await until(lambda: any(isinstance(event, MirrorHoleClosed) for event in events))
        await until_equal(mirror, world)
    assert [event.by for event in events if isinstance(event, MirrorHoleClosed)] == ["batches"]
    states = [event.new for event in events if isinstance(event, MirrorStateChanged)]
    assert "stale" in states
    assert "healing" in states


async def test_a_running_mirror_follows_the_batches_hour_by_hour(small):
    world, _, wme, path = small
    async with mirror_of(wme, path, source="batches") as mirror, running(mirror):
        await until(lambda: has_followed(mirror))
        world.edit("enwiki", title_of(world))
        world.delete("enwiki", title_of(world, 1))
        world.advance(2 * 3600)
        await wme.projects.list()  # any response brings the time
        await until_equal(mirror, world)


async def has_followed(mirror):
    return (await mirror.statistics()).followed_until is not None


async def test_batches_that_are_gone_after_two_days_are_a_hole_until_the_next_snapshot(tmp_path):
    async with service(groups=["group_2"]) as (world, _, wme):
        async with mirror_of(wme, tmp_path / "mirror.db", source="batches") as mirror:
            await mirror.sync()
            world.edit("enwiki", title_of(world))
            world.advance(60 * 3600)
            world.edit("enwiki", title_of(world, 1))
            world.advance(3 * 3600)
            await wme.projects.list()
            await mirror.sync()
            # The snapshot of the last midnight is later than the hole.
            assert mirror.state == "following"
            assert (await mirror.statistics()).loaded[IDENTIFIER].number == 2
            assert not differences(await copy_of(mirror), world, since=START)


async def test_a_mirror_of_snapshots_begins_to_follow_when_the_account_may(tmp_path):
    async with service() as (world, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db", source="batches") as mirror:
            await mirror.sync()
        world.advance(50 * 3600)
        world.edit("enwiki", title_of(world))
        world.advance(60)
        async with Client(**sim.client_options(), retry=AT_ONCE) as other:
            async with mirror_of(other, tmp_path / "mirror.db") as mirror, running(mirror):
                await until_equal(mirror, world, missed=[(0.0, (START + timedelta(hours=50)).timestamp())])


async def test_damaged_marks_are_an_error_that_names_them(small):
    _, _, _, path = small
    connection = sqlite3.connect(path)
    connection.execute("UPDATE state SET value = '5' WHERE key LIKE 'loaded %'")
    connection.commit()
    connection.close()
    async with MirrorReader(SQLiteStore(path)) as reader:
        with pytest.raises(DataError, match="loaded enwiki_namespace_0"):
            await reader.statistics()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO consumers VALUES ('index', 'nothing')")
    connection.commit()
    connection.close()
    async with MirrorReader(SQLiteStore(path)) as reader:
        with pytest.raises(DataError, match="position of a consumer"):
            await anext(reader.changes("index"))


async def test_records_without_event_or_version_are_merged(tmp_path):
    async with service(World(seed=11, projects=["enwiki"], pages=40, past=0)) as (world, _, wme):
        async with mirror_of(wme, tmp_path / "mirror.db", source="snapshots") as mirror:
            await mirror.sync()
            records = [page async for page in mirror.pages(type=dict)]
            assert any("event" not in record for record in records)
            assert not differences(await copy_of(mirror), world)


async def test_a_text_that_is_visible_again_is_looked_up_once(tmp_path):
    async with service(World(seed=2, projects=["enwiki"], pages=16, past=0)) as (world, sim, wme):
        title = title_of(world)
        world.edit("enwiki", title)
        world.hide("enwiki", title)  # before the content of the edit is fetched
        world.advance(60)
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)
            assert (await mirror.get(title)).article_body is None
            world.hide("enwiki", title, text=False)
            world.advance(60)
            await until(lambda: requests_of(sim, "/v2/articles/"))
            await until(lambda: no_doubts(mirror))
        assert requests_of(sim, "/v2/articles/") == 1


async def test_a_text_that_an_ingestion_in_bulk_missed_is_taken_from_a_look_up(tmp_path):
    async with service(World(seed=2, projects=["enwiki"], pages=16, past=0)) as (world, sim, wme):
        title = title_of(world)
        world.edit("enwiki", title)
        world.advance(60)  # look-ups have the text
        world.hide("enwiki", title)
        world.advance(1800)
        world.bulk("enwiki", [title])  # archives do not, with a newer event
        world.advance(1800)
        sim.export_snapshot(IDENTIFIER)
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)
            world.hide("enwiki", title, text=False)
            world.advance(60)
            await until(lambda: requests_of(sim, "/v2/articles/"))
            await until(lambda: no_doubts(mirror))
            assert (await mirror.get(title)).article_body.wikitext


async def no_doubts(mirror):
    return (await mirror.statistics()).doubts == 0


async def test_a_local_clock_that_is_wrong_by_a_year_does_no_harm(tmp_path, monkeypatch):
    now = START.timestamp() + 366 * 86_400
    monkeypatch.setattr(clock, "source", lambda: now)
    async with service() as (world, _, wme):
        for _ in range(2):
            async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
                await until_equal(mirror, world)
                assert (await mirror.statistics()).holes == ()


async def test_several_wikis_are_one_mirror(tmp_path):
    projects = ["enwiki", "dewiki"]
    world = World(seed=6, projects=projects, pages=16, namespaces=(0, 14), past=40)
    async with service(world) as (_, _, wme):
        names = [f"{project}_namespace_{number}" for project in projects for number in (0, 14)]
        async with mirror_of(wme, tmp_path / "mirror.db", identifiers=names) as mirror, running(mirror):
            for project in projects:
                await until_equal(mirror, world, project=project)
            with pytest.raises(ValueError, match="dewiki, enwiki"):
                await mirror.get("Anything")
            title = min(world.truth("dewiki").pages)
            assert (await mirror.get(title, project="dewiki")).is_part_of.identifier == "dewiki"


# Failures.


async def test_a_full_disk_ends_it_and_the_next_run_goes_on(tmp_path, monkeypatch):
    async with service() as (world, _, wme):
        trouble = Trouble(monkeypatch, "INTO pages", times=1)
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            with pytest.raises(OSError, match="free some space"):
                await mirror.run()
        assert trouble.count == 1
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)


@pytest.mark.posix
async def test_a_store_that_is_deleted_under_work_ends_it(tmp_path):
    async with service() as (world, _, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            task = asyncio.ensure_future(mirror.run())
            await until(lambda: mirror.state == "following")
            (tmp_path / "mirror.db").unlink()
            world.edit("enwiki", title_of(world))
            world.advance(30)
            with pytest.raises(DataError, match="deleted or replaced"):
                await task
        for path in tmp_path.glob("mirror.db-*"):
            path.unlink()
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)


async def test_failures_of_the_service_are_waited_out(tmp_path):
    async with service() as (world, sim, wme):
        events: list[MirrorEvent] = []
        sim.faults.inject("status", role="api", path=r".*/chunks/.*/download", method="GET", status=503, times=30)
        async with mirror_of(wme, tmp_path / "mirror.db", on_event=events.append) as mirror, running(mirror):
            await until_equal(mirror, world)
            assert (await mirror.statistics()).degraded == {}
        assert any(isinstance(event, MirrorTrouble) for event in events)


async def test_an_exhausted_allowance_is_told_and_following_goes_on(tmp_path):
    caps = {"group_3": {"ondemand": 100, "snapshots": 100, "chunks": 1}}
    async with service(caps=caps) as (_, _, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            async with running(mirror):
                await until(lambda: told(mirror))
                assert mirror.state == "loading"
            with pytest.raises((QuotaExceeded, RateLimited)):
                await mirror.sync(quiet=0.2)


async def told(mirror):
    return "requests" in (await mirror.statistics()).degraded


async def test_a_hook_that_fails_ends_nothing(small):
    world, _, wme, path = small

    def fail(_event):
        raise ZeroDivisionError

    async with mirror_of(wme, path, on_event=fail) as mirror, running(mirror):
        await until_equal(mirror, world)


# Take-downs, verification, export.


async def test_a_page_that_is_taken_down_stays_away_through_reloads(small):
    world, sim, wme, path = small
    title = title_of(world)
    page_id = world.truth("enwiki").pages[title].page_id
    async with mirror_of(wme, path, source="snapshots") as mirror:
        index = await index_of(mirror, "index", {})
        await mirror.forget(title)
        assert await mirror.get(title) is None
        with pytest.raises(ValueError, match="page_id"):
            await mirror.forget(title)
        with pytest.raises(ValueError, match="either"):
            await mirror.forget()
        assert page_id not in await index_of(mirror, "index", index)
        world.move("enwiki", title, "Moved away")
        world.advance(3600)
        sim.export_snapshot(IDENTIFIER)
        await mirror.sync()
        assert await mirror.get("Moved away") is None
        assert await mirror.get(page_id=page_id) is None
        await mirror.forget(page_id=12345678)


async def test_verification_merges_what_was_missed_and_counts_it(small):
    world, sim, wme, path = small
    events: list[MirrorEvent] = []
    async with mirror_of(wme, path, source="snapshots", on_event=events.append) as mirror:
        verification = await mirror.verify("full")
        assert (verification.missed, verification.removed) == (0, 0)
        for number in range(3):
            world.edit("enwiki", title_of(world, number))
        world.delete("enwiki", title_of(world, 3))
        world.advance(3600)
        sim.export_snapshot(IDENTIFIER)
        verification = await mirror.verify("full")
        assert (verification.missed, verification.removed) == (3, 1)
        assert not differences(await copy_of(mirror), world, since=START + timedelta(days=1))
        for number in range(8):
            world.edit("enwiki", title_of(world, number))
        world.advance(3600)
        sim.export_snapshot(IDENTIFIER)
        sampled = await mirror.verify("sample")
        assert sampled.kind == "full", "a sample that finds much loads the snapshot"
        assert not differences(await copy_of(mirror), world, since=START + timedelta(days=1))
        assert (await mirror.statistics()).verification == sampled
        assert sum(isinstance(event, MirrorVerified) for event in events) >= 3
        with pytest.raises(ValueError, match="kind"):
            await mirror.verify("half")


async def test_changes_of_batches_that_are_written_at_the_same_time_are_all_counted(tmp_path):
    second = asyncio.Event()

    class Store(SQLiteStore):
        """Finds one missed change in each batch, and ends the first when there is a second."""

        batches = 0

        async def apply(self, news, marks):
            if news:
                self.batches += 1
                if self.batches == 2:
                    second.set()
                await second.wait()
            applied = await super().apply(news, marks)
            return msgspec.structs.replace(applied, missed=1) if news else applied

    world = World(seed=2, projects=["enwiki"], pages=6, past=0)
    async with service(world, article_size=2_800_000) as (_, _, wme):
        store = Store(tmp_path / "mirror.db")
        second.set()
        async with Mirror(wme, [IDENTIFIER], store, source="snapshots") as mirror:
            await mirror.sync()
            second.clear()
            store.batches = 0
            async with asyncio.timeout(20):
                verification = await mirror.verify("full")
            assert verification.missed == store.batches >= 2


async def test_a_running_mirror_verifies_itself_when_it_is_due(small):
    world, _, wme, path = small
    async with mirror_of(wme, path, verify_every=3600.0) as mirror, running(mirror):
        await until_equal(mirror, world)
        await until(lambda: verified(mirror))


async def test_a_whole_snapshot_is_compared_only_if_it_is_a_new_one(small):
    world, sim, wme, path = small
    async with mirror_of(wme, path, verify_every=3600.0, verify="full") as mirror, running(mirror):
        await until_equal(mirror, world)
        before = sum(downloads(sim).values())
        world.edit("enwiki", title_of(world))
        world.advance(3600)
        await wme.projects.list()
        await until_equal(mirror, world)
        assert sum(downloads(sim).values()) == before
        sim.export_snapshot(IDENTIFIER)
        await until(lambda: verified(mirror))
        assert (await mirror.statistics()).verification.missed == 0


async def verified(mirror):
    return (await mirror.statistics()).verification is not None


async def test_pages_are_exported_to_parquet(small, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    _, _, _, path = small
    async with MirrorReader(SQLiteStore(path)) as reader:
        result = await reader.export(tmp_path / "pages.parquet", type=Article)
        keys = [key async for keys in reader.keys() for key in keys]  # noqa: SIM118 - not a dict
    table = parquet.read_table(tmp_path / "pages.parquet", columns=["name", "identifier"])
    assert result.rows == len(keys)
    assert sorted(zip(table["name"].to_pylist(), table["identifier"].to_pylist(), strict=True)) == sorted(
        (title, page_id) for _, title, page_id, _, _ in keys
    )


async def test_only_some_fields_are_kept_if_asked(tmp_path):
    async with service(World(seed=2, projects=["enwiki"], pages=16, past=20)) as (world, _, wme):
        options = {"keep": ["wikitext", "abstract"]}
        async with mirror_of(wme, tmp_path / "mirror.db", **options) as mirror, running(mirror):
            await until_equal(mirror, world)
            world.edit("enwiki", title_of(world))
            world.advance(30)
            await until_equal(mirror, world)
            records = [record async for record in mirror.pages(type=dict)]
        assert all(set(record.get("article_body", {})) <= {"wikitext"} for record in records)
        assert not any("url" in record or "license" in record for record in records)


# Reading.


async def test_pages_are_read_by_title_and_page_id_in_the_callers_type(small):
    world, _, _, path = small
    title = title_of(world)
    page = world.truth("enwiki").pages[title]
    async with MirrorReader(SQLiteStore(path)) as reader:
        article = await reader.get(title)
        assert article is not None
        assert (article.name, article.identifier, article.version.identifier) == (title, page.page_id, page.revision)
        assert (await reader.get(page_id=page.page_id, type=dict) or {})["name"] == title
        assert await reader.get("No such page") is None
        for arguments in ({}, {"title": title, "page_id": 1}):
            with pytest.raises(ValueError, match="either"):
                await reader.get(**arguments)
        with pytest.raises(ValueError, match="enwiki"):
            await reader.get(title, project="dewiki")
        with pytest.raises(TypeError, match="consumer"):
            reader.changes(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="consumer"):
            reader.changes("")


async def test_a_consumer_goes_on_after_what_it_acknowledged(small):
    world, _, wme, path = small
    async with mirror_of(wme, path) as mirror:
        count = len(world.truth("enwiki").pages)
        first = []
        changes = mirror.changes("index", wait=False)
        async for change in changes:
            first.append(change)
            if len(first) == 5:
                break
            await change.ack()
        await changes.aclose()
        again = [change async for change in mirror.changes("index", wait=False)]
        assert again[0].page_id == first[4].page_id
        assert len(again) == count - 4
        assert repr(again[0]).startswith("FeedChange(seq=")
        await again[-1].ack()
        assert [change async for change in mirror.changes("index", wait=False)] == []
        assert len([change async for change in mirror.changes("other", wait=False)]) == count
        assert (await mirror.statistics()).consumers == {"index": 0}


async def test_a_consumer_waits_for_changes_in_this_process_and_in_another(small):
    world, _, wme, path = small
    async with mirror_of(wme, path) as mirror, running(mirror), MirrorReader(SQLiteStore(path)) as reader:
        await until_equal(mirror, world)
        feeds = [mirror.changes("inside"), reader.changes("outside")]
        for feed in feeds:
            for _ in range(len(world.truth("enwiki").pages)):
                await (await anext(feed)).ack()
        waiting = [asyncio.ensure_future(anext(feed)) for feed in feeds]
        world.create("enwiki", "New page")
        world.advance(30)
        async with asyncio.timeout(20):
            changes = await asyncio.gather(*waiting)
        assert [change.title for change in changes] == ["New page", "New page"]
        for feed in feeds:
            await feed.aclose()


async def test_another_process_reads_while_it_runs(small):
    world, _, wme, path = small
    async with mirror_of(wme, path) as mirror, running(mirror):
        await until_equal(mirror, world)
        async with MirrorReader(SQLiteStore(path)) as reader:
            assert await copy_of(reader) == await copy_of(mirror)
            statistics = await reader.statistics()
            assert statistics.identifiers == (IDENTIFIER,)
            assert titles_of(await index_of(reader, "outside", {})) == await copy_of(mirror)
        assert (await mirror.statistics()).consumers["outside"] == 0


async def test_closing_leaves_no_task_and_no_connection(tmp_path):
    async with service() as (_, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until(lambda: mirror.state != "new")
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert not [name for name in names if "mirror" in name or name.startswith("wme")]
        assert " 0 open bodies" in repr(wme)
        await sim.firehose.wait_open(0)
        await mirror.aclose()


async def test_a_new_client_goes_on_with_the_store(tmp_path):
    async with service() as (world, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)
        world.advance(40 * 3600)
        world.edit("enwiki", title_of(world))
        world.advance(30)
        async with Client(**sim.client_options(), retry=AT_ONCE) as other:
            async with mirror_of(other, tmp_path / "mirror.db") as mirror, running(mirror):
                await until_equal(mirror, world)
                assert (await mirror.statistics()).holes == ()
