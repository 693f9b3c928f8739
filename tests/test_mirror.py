"""A mirror of a simulated world: it equals the wiki after loads, streams, batches, holes and kills."""

import asyncio
from datetime import timedelta

import pytest
from mirror_world import (
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

from wme_async import Forbidden, NotFound
from wme_async.mirror import (
    Loaded,
    MirrorBadRecord,
    MirrorChunkLoaded,
    MirrorEvent,
    MirrorHoleClosed,
    MirrorHoleFound,
    MirrorLoaded,
    MirrorSourceChanged,
    MirrorStateChanged,
    MirrorTrouble,
)
from wme_async.simulator import World, build_archive

# One sync.


async def test_a_mirror_equals_the_wiki_after_one_sync_and_the_next_one_goes_on(tmp_path):
    async with service() as (world, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            assert mirror.state == "new"
            await mirror.sync(quiet=1.0)
            assert not differences(await copy_of(mirror), world)
            assert mirror.state == "following"
            statistics = await mirror.statistics()
            assert statistics.followed_until >= START - timedelta(minutes=6)
            assert (statistics.source, statistics.holes, statistics.degraded) == ("stream", (), {})
        loads = requests_of(sim, "chunks")
        world.move("enwiki", next(iter(world.truth("enwiki").pages)), "Brand new title")
        world.advance(60)
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            assert mirror.state == "following"
            await mirror.sync(quiet=1.0)
            assert not differences(await copy_of(mirror), world)
            assert (await mirror.get("Brand_new title")).name == "Brand new title"
        assert requests_of(sim, "chunks") == loads


async def test_a_running_mirror_follows_everything_that_happens_to_pages(tmp_path):
    async with service() as (world, _, wme), mirror_of(wme, tmp_path / "mirror.db") as mirror:
        async with running(mirror):
            await until_equal(mirror, world)
            index = await index_of(mirror, "index", {})
            titles = sorted(world.truth("enwiki").pages)
            world.edit("enwiki", titles[0])
            world.delete("enwiki", titles[0])
            world.move("enwiki", titles[1], "Moved once")
            world.move("enwiki", "Moved once", "Moved twice", redirect=False)
            world.delete("enwiki", titles[2])
            world.advance(20)
            await until_equal(mirror, world)
            world.restore("enwiki", titles[2])
            world.move("enwiki", titles[3], "Draft:Elsewhere")
            world.redirect("enwiki", titles[4], titles[5])
            world.move("enwiki", titles[6], titles[7])
            world.hide("enwiki", titles[8])
            world.create("enwiki", "Brand new")
            world.advance(20)
            await until_equal(mirror, world)
            assert (await mirror.get(titles[8])).article_body is None
            world.hide("enwiki", titles[8], text=False)
            world.advance(600)
            world.edit("enwiki", titles[9])
            world.advance(20)
            await until_equal(mirror, world)
            await until(lambda: shown(mirror, titles[8]))
        assert titles_of(await index_of(mirror, "index", index)) == await copy_of(mirror)


async def shown(mirror, title):
    page = await mirror.get(title)
    return page.article_body is not None


# Loading.


@pytest.mark.parametrize("load", ["chunks", "archive"])
async def test_a_load_that_is_interrupted_goes_on_where_it_was(tmp_path, load):
    async with service() as (world, sim, wme):
        seen = []

        def interrupt(event):
            if isinstance(event, MirrorChunkLoaded):
                seen.append(event)
                task.cancel()

        async with mirror_of(wme, tmp_path / "mirror.db", load=load, on_event=interrupt) as mirror:
            task = asyncio.ensure_future(mirror.run())
            with pytest.raises(asyncio.CancelledError):
                await task
            statistics = await mirror.statistics()
            assert statistics.loading[IDENTIFIER] == (len(seen), 3 if load == "chunks" else 1)
        async with mirror_of(wme, tmp_path / "mirror.db", load=load) as mirror, running(mirror):
            await until_equal(mirror, world)
        assert set(downloads(sim).values()) == {1}
        assert len(downloads(sim)) == (3 if load == "chunks" else 1)


async def test_a_snapshot_that_is_replaced_while_it_loads_counts_only_as_a_whole(tmp_path):
    async with service() as (world, sim, wme):
        loaded: list[Loaded] = []
        replaced = asyncio.Event()

        def replace(event):
            if isinstance(event, MirrorChunkLoaded) and event.done == 1 and not replaced.is_set():
                replaced.set()
                sim.export_snapshot(IDENTIFIER)
            elif isinstance(event, MirrorLoaded):
                loaded.append(event.loaded)

        async with mirror_of(wme, tmp_path / "mirror.db", on_event=replace) as mirror, running(mirror):
            await until_equal(mirror, world)
        assert replaced.is_set()
        assert [(entry.number, entry.version) for entry in loaded] == [
            (2, (await wme.snapshots.get(IDENTIFIER)).version)
        ]


async def test_a_snapshot_that_is_withdrawn_while_it_loads_is_waited_for(tmp_path):
    async with service() as (world, sim, wme):
        withdrawn = asyncio.Event()

        def withdraw(event):
            if isinstance(event, MirrorChunkLoaded) and event.done == 1 and not withdrawn.is_set():
                withdrawn.set()
                sim.withdraw_snapshot(IDENTIFIER)

        async with mirror_of(wme, tmp_path / "mirror.db", on_event=withdraw) as mirror:
            async with running(mirror):
                await until(lambda: is_troubled(mirror))
                assert mirror.state == "loading"
                sim.export_snapshot(IDENTIFIER)
                await until_equal(mirror, world)
                await until(lambda: is_sound(mirror))
            sim.withdraw_snapshot(IDENTIFIER)
            world.edit("enwiki", min(world.truth("enwiki").pages))
            world.advance(30)
            await mirror.sync(quiet=1.0)
            assert not differences(await copy_of(mirror), world)
        for call in ("run", "sync"):
            async with mirror_of(wme, tmp_path / f"{call}.db") as mirror:
                with pytest.raises(NotFound):
                    await getattr(mirror, call)()


async def is_troubled(mirror):
    return "requests" in (await mirror.statistics()).degraded


async def is_sound(mirror):
    return not (await mirror.statistics()).degraded


async def test_a_chunk_that_is_newer_than_its_metadata_is_waited_for(tmp_path):
    async with service() as (world, sim, wme):
        newer = build_archive([("x.ndjson", [b'{"name":"X","is_part_of":{"identifier":"enwiki"}}\n'])])
        sim.put_object(f"chunks/{IDENTIFIER}/chunk_1.tar.gz", newer, update_metadata=False)
        events: list[MirrorEvent] = []
        async with mirror_of(wme, tmp_path / "mirror.db", on_event=events.append) as mirror, running(mirror):
            await until(lambda: any(isinstance(event, MirrorTrouble) for event in events))
            sim.export_snapshot(IDENTIFIER)
            await until_equal(mirror, world)
            assert await mirror.get("X") is None


async def test_lines_that_cannot_be_read_keep_a_snapshot_from_removing_pages(tmp_path):
    world = World(seed=3, projects=["enwiki"], pages=16, past=0)
    async with service(world) as (_, sim, wme):
        events: list[MirrorEvent] = []
        options = {"source": "snapshots", "load": "archive", "on_event": events.append}
        async with mirror_of(wme, tmp_path / "mirror.db", **options) as mirror:
            await mirror.sync()
            count = (await mirror.statistics()).pages
            lines = [
                b'{"name":"X","identifier":77,"is_part_of":{"identifier":"enwiki"}}\n',
                b"{broken\n",
                b"\n",
                b'{"name":5}\n',
            ]
            world.advance(3600)
            sim.put_object(f"snapshots/{IDENTIFIER}.tar.gz", build_archive([("x.ndjson", lines)]))
            await mirror.sync()
            statistics = await mirror.statistics()
            assert statistics.pages == count + 1
            assert (statistics.loaded[IDENTIFIER].bad, statistics.loaded[IDENTIFIER].removed) == (2, 0)
            assert "2 records could not be read" in statistics.degraded[f"snapshot of {IDENTIFIER}"]
            assert sum(isinstance(event, MirrorBadRecord) for event in events) == 2


async def test_an_incomplete_export_removes_nothing_and_says_so(tmp_path):
    world = World(seed=3, projects=["enwiki"], pages=60, past=0)
    async with service(world) as (_, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db", source="snapshots") as mirror:
            await mirror.sync()
            count = (await mirror.statistics()).pages
            world.advance(3600)
            sim.export_snapshot(IDENTIFIER, share=0.4)
            await mirror.sync()
            statistics = await mirror.statistics()
            assert statistics.pages == count
            assert "max_removed" in statistics.degraded[f"snapshot of {IDENTIFIER}"]
            assert statistics.loaded[IDENTIFIER].missing > 10
            world.advance(3600)
            sim.export_snapshot(IDENTIFIER)
            await mirror.sync()
            statistics = await mirror.statistics()
            assert (statistics.pages, statistics.degraded) == (count, {})
        world.advance(3600)
        sim.export_snapshot(IDENTIFIER, share=0.4)
        async with mirror_of(wme, tmp_path / "mirror.db", source="snapshots", max_removed=1.0) as mirror:
            await mirror.sync()
            statistics = await mirror.statistics()
            assert statistics.pages == count - statistics.loaded[IDENTIFIER].removed < count / 2


# Sources.


async def test_snapshots_alone_follow_the_wiki_day_by_day(tmp_path):
    world = World(seed=4, projects=["enwiki"], pages=30, past=0)
    async with service(world) as (_, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db", source="snapshots") as mirror:
            await mirror.sync()
            index = await index_of(mirror, "index", {})
            titles = sorted(world.truth("enwiki").pages)
            world.delete("enwiki", titles[0])
            world.edit("enwiki", titles[1])
            world.move("enwiki", titles[2], "Moved")
            world.create("enwiki", "New")
            world.advance(3600)
            sim.export_snapshot(IDENTIFIER)
            loads = len(downloads(sim))
            await mirror.sync()
            assert len(downloads(sim)) == loads
            assert not differences(await copy_of(mirror), world, since=START + timedelta(days=1))
            assert titles_of(await index_of(mirror, "index", index)) == await copy_of(mirror)
            before = sum(downloads(sim).values())
            await mirror.sync()
            assert sum(downloads(sim).values()) == before


@pytest.mark.parametrize(("groups", "source"), [(["group_2"], "batches"), (["group_1"], "snapshots")])
async def test_an_account_without_the_stream_gets_the_next_best(tmp_path, groups, source):
    async with service(groups=groups) as (_, _, wme):
        events: list[MirrorEvent] = []
        async with mirror_of(wme, tmp_path / "mirror.db", on_event=events.append) as mirror:
            await mirror.sync()
            statistics = await mirror.statistics()
        changes = [event.source for event in events if isinstance(event, MirrorSourceChanged)]
        assert changes == ["stream", "batches", "snapshots"][: 2 if source == "batches" else 3]
        assert (statistics.source, statistics.state) == (source, "following")
        assert "no stream" in statistics.degraded["source"] or "neither" in statistics.degraded["source"]
        async with mirror_of(wme, tmp_path / "mirror.db", source="stream") as mirror:
            with pytest.raises(Forbidden):
                await mirror.sync()


async def test_a_mirror_from_batches_equals_the_wiki_but_for_suppressions(tmp_path):
    async with service() as (world, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db", source="batches") as mirror:
            await mirror.sync()
            index = await index_of(mirror, "index", {})
            titles = sorted(world.truth("enwiki").pages)
            world.delete("enwiki", titles[0])
            world.edit("enwiki", titles[1])
            world.move("enwiki", titles[2], "Moved")
            world.advance(2 * 3600)
            await mirror.sync()
            assert not differences(await copy_of(mirror), world)
            assert mirror.state == "following"
            assert titles_of(await index_of(mirror, "index", index)) == await copy_of(mirror)
            statistics = await mirror.statistics()
            assert statistics.followed_until == START.replace(hour=13, minute=0)
            await mirror.sync()
        assert set(downloads(sim).values()) == {1}, "each chunk and each hour is read once"
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)
            assert (await mirror.statistics()).holes == ()


async def test_an_hour_whose_export_failed_makes_it_stale_until_the_next_snapshot(tmp_path):
    world = World(seed=5, projects=["enwiki"], pages=24, past=60)
    async with service(world) as (_, sim, wme):
        events: list[MirrorEvent] = []
        async with mirror_of(wme, tmp_path / "mirror.db", source="batches", on_event=events.append) as mirror:
            await mirror.sync()
            world.edit("enwiki", min(world.truth("enwiki").pages))
            world.advance(60)
            hour = START.replace(minute=0)
            sim.delete_object(f"batches/{hour:%Y-%m-%d/%H}/{IDENTIFIER}.tar.gz")
            world.advance(2 * 3600)
            await mirror.sync()
            statistics = await mirror.statistics()
            assert (statistics.state, [hole.begin for hole in statistics.holes]) == ("stale", [hour])
            assert any(isinstance(event, MirrorHoleFound) for event in events)
            assert differences(await copy_of(mirror), world)
            world.edit("enwiki", sorted(world.truth("enwiki").pages)[1])
            world.advance(3600)
            sim.export_snapshot(IDENTIFIER)
            await mirror.sync()
            assert mirror.state == "following"
            assert not differences(await copy_of(mirror), world)
            assert [event.by for event in events if isinstance(event, MirrorHoleClosed)] == ["snapshot"]


async def test_a_mirror_that_was_off_for_three_days_is_stale_until_the_next_snapshot(tmp_path):
    async with service() as (world, _, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror, running(mirror):
            await until_equal(mirror, world)
        titles = sorted(world.truth("enwiki").pages)
        world.delete("enwiki", titles[0])
        world.edit("enwiki", titles[1])
        world.advance(72 * 3600)
        world.edit("enwiki", titles[2])
        world.advance(60)
        away = [(START.timestamp(), (START + timedelta(hours=72)).timestamp())]
        states = []

        def note(event):
            if isinstance(event, MirrorStateChanged):
                states.append(event.new)

        async with mirror_of(wme, tmp_path / "mirror.db", on_event=note) as mirror, running(mirror):
            await until(lambda: "following" in states and len(states) > 1)
            await until_equal(mirror, world, missed=away)
        assert states[0] in {"stale", "healing"}
        assert "loading" in states
