"""The built-in world: what a simulator serves without options fits together."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from world_copy import Rule, everything, records_of, stream_of

from wme_async import Client, NotFound
from wme_async.simulator import Simulator, build_archive

START = datetime(2026, 3, 14, 12, 40, tzinfo=UTC)


def a_simulator(**options: Any) -> Simulator:
    return Simulator(**{"start": START, "frozen": True, **options})


def revision_of(record: dict[str, Any]) -> int:
    return int(record["version"]["identifier"])


async def found(wme: Client, project: str, name: str) -> dict[str, Any] | None:
    """Return the page of a title, or None."""
    pages = await wme.articles.lookup(name.replace("_", " "), filters={"is_part_of.identifier": project})
    return msgspec.to_builtins(pages[0]) if pages else None


async def revision_found(wme: Client, project: str, name: str) -> int:
    page = await found(wme, project, name)
    assert page is not None
    return revision_of(page)


@pytest.mark.parametrize("identifier", ["simplewiki_namespace_0", "enwiki_namespace_0", "dewiki_namespace_14"])
async def test_each_article_of_a_snapshot_is_found_by_look_up_with_this_or_a_newer_revision(identifier: str) -> None:
    async with a_simulator(articles=4) as sim, Client(**sim.client_options()) as wme:
        records = await records_of(wme.snapshots.read(identifier, type=dict))
        assert len(records) > 5
        for record in records:
            page = await found(wme, identifier.partition("_")[0], record["name"])
            assert page is not None
            assert page["identifier"] == record["identifier"]
            assert revision_of(page) >= revision_of(record)


async def test_batches_bring_newer_revisions_of_pages_of_the_snapshot_and_delete_pages_that_look_ups_lack() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        snapshot = await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))
        revisions = {record["name"]: revision_of(record) for record in snapshot}
        hours = [hour for hour in sim.hours if hour > "2026-03-14T01"]
        assert len(hours) > 8
        batches = [await records_of(wme.batches(hour).read("enwiki_namespace_0", type=dict)) for hour in hours]
        for record in (record for batch in batches for record in batch):
            name = record["name"].replace("_", " ")
            if record["event"]["type"] == "delete":
                assert name not in revisions
                assert await found(wme, "enwiki", name) is None
            else:
                assert revision_of(record) > revisions[name]
                revisions[name] = revision_of(record)
        assert {record["name"] for record in batches[0]} != {record["name"] for record in batches[1]}
        for name, revision in revisions.items():
            assert await revision_found(wme, "enwiki", name) >= revision


async def test_a_new_snapshot_has_the_revisions_of_the_batches_before_it_and_other_pages_in_its_chunks() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        chunks = wme.snapshots.chunks("simplewiki_namespace_0")
        before = await records_of(chunks.read("simplewiki_namespace_0_chunk_0", type=dict))
        hours = sim.hours
        sim.clock.advance(86_400)
        last = max(hour for hour in sim.hours if hour < "2026-03-15")
        assert last not in hours
        batch = await records_of(wme.batches(last).read("simplewiki_namespace_0", type=dict))
        after = await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict))
        dealt = await records_of(chunks.read("simplewiki_namespace_0_chunk_0", type=dict))
    midnight = datetime(2026, 3, 15, tzinfo=UTC).isoformat()
    edited = {
        record["name"]: revision_of(record)
        for record in batch
        if record["event"]["type"] == "update" and record["event"]["date_published"] < midnight
    }
    assert len(edited) > 10
    assert edited.items() <= {record["name"]: revision_of(record) for record in after}.items()
    assert {record["name"] for record in before} != {record["name"] for record in dealt}


async def test_events_of_the_stream_concern_pages_of_the_snapshot_and_are_in_batches_and_look_ups() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        async with wme.realtime.articles(type=dict, since=START) as stream:
            sim.firehose.publish_many(30)
            deleted = sim.firehose.publish(kind="delete")
            events = [await anext(stream) for _ in range(31)]
        titles = {record["name"] for record in await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))}
        assert {event["name"].replace("_", " ") for event in events} <= titles
        (gone,) = (event for event in events if event["event"]["type"] == "delete")
        assert (gone["event"]["partition"], gone["event"]["offset"]) == deleted
        pages = {event["name"]: await found(wme, "enwiki", event["name"]) for event in events}
        sim.clock.advance(2 * 3600)
        records = await records_of(wme.batches(START).read("enwiki_namespace_0", type=dict))
        batch = {record["name"]: record for record in records}
        for event in events:
            same, page = batch[event["name"]], pages[event["name"]]
            assert (same["identifier"], same["event"]["type"]) == (event["identifier"], event["event"]["type"])
            assert revision_of(same) == revision_of(event)
            if event is gone:
                assert page is None
            else:
                assert page is not None
                assert revision_of(page) == revision_of(event)
        assert len({event["event"]["identifier"] for event in events}) == 31


async def test_a_deleted_page_comes_back_with_its_next_edit() -> None:
    async with a_simulator(articles=1) as sim, Client(**sim.client_options()) as wme:
        count = len(await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict)))
        sim.firehose.publish(kind="delete")
        sim.firehose.publish_many(count - 1)
        sim.export_snapshot("enwiki_namespace_0")
        names = {record["name"] for record in await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))}
        assert len(names) == count - 1
        sim.firehose.publish()
        sim.export_snapshot("enwiki_namespace_0")
        assert len(await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))) == count


async def test_each_article_of_a_large_archive_is_found_by_look_up() -> None:
    async with a_simulator(archive_bytes={"simplewiki_namespace_0": 20_000}) as sim:
        async with Client(**sim.client_options()) as wme:
            records = await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict))
            assert len(records) == len({record["name"] for record in records}) > 100
            page = await found(wme, "simplewiki", records[-1]["name"])
            assert page is not None
            assert page["identifier"] == records[-1]["identifier"]


async def test_an_incomplete_export_has_a_share_of_the_pages() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        whole = await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict))
        sim.export_snapshot("simplewiki_namespace_0", share=0.5)
        half = await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict))
        assert len(half) == len(whole) / 2


async def test_an_object_that_a_test_stored_stays_on_a_new_day_and_ends_with_an_export() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        sim.put_object(
            "snapshots/simplewiki_namespace_0.tar.gz", build_archive([("one.ndjson", [b'{"name":"Own"}\n'])])
        )
        sim.clock.advance(timedelta(days=2).total_seconds())
        assert await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict)) == [{"name": "Own"}]
        sim.export_snapshot("simplewiki_namespace_0")
        assert len(await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict))) > 20


# Changes of the built-in world


async def test_the_built_in_world_can_be_changed_and_all_views_follow() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        (first, second, *_) = [title for title in sim.pages.titles("simplewiki") if ":" not in title]
        before = sim.world.truth("simplewiki").pages
        assert before.keys() == set(sim.pages.titles("simplewiki"))
        assert await revision_found(wme, "simplewiki", first) == before[first].revision
        edited = sim.world.edit("simplewiki", first)
        sim.world.delete("simplewiki", second)
        sim.world.advance(60)
        assert edited.revision > before[first].revision
        assert await revision_found(wme, "simplewiki", first) == edited.revision
        assert await found(wme, "simplewiki", second) is None
        assert second not in sim.pages.titles("simplewiki")
        async with wme.realtime.articles(type=dict, since=START - timedelta(hours=1)) as stream:
            events = [await anext(stream) for _ in range(2)]
        assert {event["event"]["type"] for event in events} == {"update", "delete"}
        sim.world.advance(3600)
        batch = await records_of(wme.batches(START).read("simplewiki_namespace_0", type=dict))
        revisions = [revision_of(record) for record in batch if record["name"] == first]
        assert revisions[-1] == edited.revision
        assert len(batch) > 10  # what was edited before the change
        sim.world.advance(2 * 86_400)  # by then the delete is compacted too
        snapshot = await records_of(wme.snapshots.read("simplewiki_namespace_0", type=dict))
        names = {record["name"]: revision_of(record) for record in snapshot}
        assert names[first] == edited.revision
        assert second not in names
        truth = sim.world.truth("simplewiki")
        assert names.keys() == {title for title, page in truth.pages.items() if page.namespace == 0}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.servers)])
async def test_all_views_of_a_built_in_world_that_changes_at_random_are_the_wiki(seed: int) -> None:
    async with a_simulator(seed=seed, articles=6) as sim:
        sim.clock.advance(3600)
        sim.world.rate = 0.05
        sim.clock.advance(2 * 3600)
        sim.world.rate = 0
        sim.clock.advance(86_400)
        copy = Rule()
        for record in await everything(sim, "enwiki"):
            copy.apply(record)
        truth = sim.world.truth("enwiki")
        assert {change.kind for project, change in sim.world.changes} >= {"create", "edit", "move", "delete"}
    shown = {title: page.revision for title, page in truth.pages.items() if page.namespace == 0}
    copied = {title: revision for title, (_, revision, _) in copy.live().items() if ":" not in title}
    assert copied == shown


async def test_random_changes_leave_the_pages_that_the_documentation_looks_up() -> None:
    titles = ("Squirrel", "Marie Curie", "NATO", "Earth", "Josephine Baker", "AC/DC", "C++", "What Is Life?", "42%")
    async with a_simulator(articles=1) as sim:
        before = {title: sim.world.truth("enwiki").pages[title] for title in titles}
        sim.world.rate = 20
        sim.clock.advance(60)
        after = sim.world.truth("enwiki").pages
        kinds = {change.kind for _, change in sim.world.changes if change.title in titles}
    assert kinds == {"edit", "bulk"}
    assert all(
        (after[title].page_id, after[title].hidden) == (before[title].page_id, before[title].hidden) for title in titles
    )


async def test_the_stream_of_a_changed_project_has_made_events_of_the_world() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        page = sim.world.create("enwiki", "Lake")
        sim.world.advance(60)
        async with wme.realtime.articles(type=dict, since=sim.clock.utc()) as stream:
            sim.firehose.publish_many(3)
            sim.firehose.publish(kind="delete")
            sim.firehose.publish(kind="visibility-change")
            events = [await anext(stream) for _ in range(5)]
        truth = sim.world.truth("enwiki").pages
        assert {event["event"]["type"] for event in events} == {"update", "delete", "visibility-change"}
        for event in events:
            name = event["name"].replace("_", " ")
            if event["event"]["type"] == "update":
                assert truth[name].revision == revision_of(event) > page.revision
            else:
                assert (name in truth) == (event["event"]["type"] == "visibility-change")


async def test_events_can_be_made_while_the_world_publishes_others() -> None:
    """Neither waits for the other, in one thread or in two."""
    async with a_simulator(frozen=False, articles=2) as sim:
        sim.world.create("enwiki", "Lake")
        sim.world.rate = 100
        over = threading.Event()

        def publish() -> None:
            while not over.is_set():
                sim.firehose.publish_many(5)

        async with asyncio.timeout(20):
            task = asyncio.create_task(asyncio.to_thread(publish))
            for _ in range(20):
                sim.world.advance(0.5)
                sim.firehose.publish()
            over.set()
            await task
        sim.world.rate = 0
    assert sim.firehose.published > 20


async def test_a_batch_of_wikidata_deletes_entities_that_snapshots_and_look_ups_lack() -> None:
    async with a_simulator(articles=20) as sim, Client(**sim.client_options()) as wme:
        for identifier, lookup in (
            ("wikidatawiki_namespace_0", wme.wikidata.items),
            ("wikidatawiki_namespace_120", wme.wikidata.properties),
        ):
            batch = await records_of(wme.wikidata.batches(sim.hours[-1]).read(identifier, type=dict))
            snapshot = await records_of(wme.wikidata.snapshots.read(identifier, type=dict))
            names = {record["name"] for record in snapshot}
            deleted = [record["name"] for record in batch if record["event"]["type"] == "delete"]
            assert deleted
            assert not names & {*deleted}
            for name in deleted:
                with pytest.raises(NotFound):
                    await lookup.get(name)


async def test_snapshot_and_stream_alone_are_the_wiki_once_the_history_is_published() -> None:
    async with a_simulator() as sim, Client(**sim.client_options()) as wme:
        sim.publish_history()
        sim.world.rate = 0.05
        sim.clock.advance(3600)
        sim.world.rate = 0
        sim.clock.advance(60)
        since = sim.clock.utc() - timedelta(hours=47)
        events = await stream_of(sim, sum(map(len, sim.firehose.log)), since)
        for project in ("enwiki", "simplewiki"):
            copy = Rule()
            for record in await records_of(wme.snapshots.read(f"{project}_namespace_0", type=dict)):
                copy.apply(record)
            for event in events:
                if event["is_part_of"]["identifier"] == project:
                    copy.apply(event)
            pages = sim.world.truth(project).pages
            shown = {title: page.revision for title, page in pages.items() if page.namespace == 0}
            copied = {title: revision for title, (_, revision, _) in copy.live().items() if ":" not in title}
            assert copied == shown
        with pytest.raises(RuntimeError, match="only an empty stream"):
            sim.publish_history()
