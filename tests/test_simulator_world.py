"""One world behind snapshots, batches, the stream and look-ups."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world_copy import Rule, everything, records_of, stream_of

from wme_async import Client, NotFound
from wme_async.simulator import Simulator, World

START = datetime(2026, 3, 14, 12, tzinfo=UTC)
QUARTER = 15 * 60


def a_world(seed: int = 0, **options: Any) -> World:
    return World(seed, **{"projects": ("enwiki",), "past": 0, "repeated": 0.0, **options})


def a_simulator(world: World, **options: Any) -> Simulator:
    return Simulator(**{"world": world, "start": START, "frozen": True, **options})


def kinds(events: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["event"]["type"], event["name"]) for event in events]


def moment(record: dict[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(record["event"][name])


# Changes and the stream


async def test_an_update_comes_with_the_content_of_the_moment_when_it_is_fetched():
    world = a_world(latency=(10.0, 10.0))
    async with a_simulator(world) as sim:
        first = world.create("enwiki", "Lake")
        world.advance(1)
        second = world.edit("enwiki", "Lake")
        world.advance(20)
        events = await stream_of(sim, 2, START)
    assert first.revision < second.revision
    assert [event["version"]["identifier"] for event in events] == [second.revision] * 2
    assert [moment(event, "date_published") - moment(event, "date_created") for event in events] == [
        timedelta(seconds=10)
    ] * 2
    assert str(second.revision) in events[0]["article_body"]["wikitext"]


async def test_a_delete_overtakes_the_edit_before_it_and_a_page_that_is_gone_is_not_published():
    world = a_world(latency=(10.0, 10.0))
    async with a_simulator(world) as sim:
        world.create("enwiki", "New Lake")
        world.advance(20)
        page = world.edit("enwiki", "New Lake")
        world.delete("enwiki", "New Lake")
        world.advance(1)
        events = await stream_of(sim, 2, START)
        world.advance(60)
        assert sim.firehose.published == 2
    assert kinds(events) == [("update", "New Lake"), ("delete", "New_Lake")]
    assert events[1]["version"]["identifier"] == page.revision
    assert "article_body" not in events[1]


async def test_an_update_that_was_fetched_before_a_delete_is_published_after_it():
    world = a_world(latency=(16.0, 16.0))
    async with a_simulator(world) as sim:
        world.create("enwiki", "Lake")
        world.advance(15.3)  # the page is fetched, but not published
        world.delete("enwiki", "Lake")
        world.advance(60)
        delete, update = await stream_of(sim, 2, START)
    assert kinds([delete, update]) == [("delete", "Lake"), ("update", "Lake")]
    assert moment(update, "date_created") < moment(delete, "date_created")


async def test_a_move_is_a_delete_of_the_old_title_with_all_marks_of_the_update():
    world = a_world()
    async with a_simulator(world) as sim:
        title = next(iter(world.truth("enwiki").pages))
        world.move("enwiki", title, "New name")
        world.advance(60)
        delete, update = await stream_of(sim, 2, START)
        assert "New name" in sim.pages.titles("enwiki")
        assert title not in sim.pages.titles("enwiki")
    assert kinds([delete, update]) == [("delete", title.replace(" ", "_")), ("update", "New name")]
    for mark in ("identifier", "date_modified"):
        assert delete[mark] == update[mark]
    assert delete["event"]["identifier"] == update["event"]["identifier"]
    assert delete["version"]["identifier"] == update["version"]["identifier"]
    assert timedelta(0) < moment(delete, "date_created") - moment(update, "date_created") < timedelta(milliseconds=1)


async def test_a_move_out_of_the_supported_namespaces_is_a_delete_alone_and_the_way_back_an_update():
    world = a_world()
    async with a_simulator(world) as sim:
        world.create("enwiki", "Lake")
        world.advance(60)
        world.move("enwiki", "Lake", "Draft:Lake", redirect=False)
        world.advance(60)
        assert "Draft:Lake" not in world.truth("enwiki").pages
        world.move("enwiki", "Draft:Lake", "Lake")
        world.advance(60)
        events = await stream_of(sim, 3, START)
        assert sim.firehose.published == 3
    assert kinds(events) == [("update", "Lake"), ("delete", "Lake"), ("update", "Lake")]


async def test_a_page_that_becomes_a_redirect_is_deleted_and_an_update_in_flight_follows_it():
    world = a_world(latency=(10.0, 10.0))
    async with a_simulator(world) as sim:
        world.create("enwiki", "Target")
        world.create("enwiki", "Lake")
        world.advance(1)
        world.redirect("enwiki", "Lake", "Target")
        world.advance(60)
        events = await stream_of(sim, 3, START)
        assert "Lake" not in world.truth("enwiki").pages
        place = sim.firehose.partition_of({"name": "Lake", "is_part_of": {"identifier": "enwiki"}})
    assert kinds(events) == [("delete", "Lake"), ("update", "Target"), ("update", "Target")]
    assert place in {event["event"]["partition"] for event in events if event["name"] == "Target"}


async def test_a_restored_page_has_the_same_or_a_lower_revision():
    world = a_world()
    async with a_simulator(world) as sim:
        created = world.create("enwiki", "Lake")
        edited = world.edit("enwiki", "Lake")
        for without_last in (False, True):
            world.advance(60)
            world.delete("enwiki", "Lake")
            world.advance(60)
            world.restore("enwiki", "Lake", without_last=without_last)
        world.advance(60)
        events = await stream_of(sim, 6, START)
    restored = [event["version"]["identifier"] for event in events[3::2]]
    assert restored == [edited.revision, created.revision]


async def test_suppression_is_on_the_stream_alone_and_hides_the_text_of_later_records():
    world = a_world()
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        world.create("enwiki", "Old Lake")
        world.advance(60)
        world.hide("enwiki", "Old Lake", editor=True)
        world.advance(60)
        world.delete("enwiki", "Old Lake")
        world.advance(60)
        world.restore("enwiki", "Old Lake")
        world.advance(60)
        _, hidden, _, restored = await stream_of(sim, 4, START)
        (page,) = await wme.articles.lookup("Old Lake")
    assert kinds([hidden]) == [("visibility-change", "Old_Lake")]
    assert hidden["visibility"] == {"text": False, "editor": False, "comment": True}
    assert "article_body" not in restored
    assert page.article_body is None
    truth = world.truth("enwiki")
    assert truth.pages["Old Lake"].hidden == {"text", "editor"}
    assert truth.exceptions(START.timestamp()) == {}
    assert truth.exceptions(world.now()) == {"Old Lake": "suppressed before"}


async def test_a_text_that_is_shown_again_may_have_no_record():
    world = a_world()
    async with a_simulator(world) as sim:
        world.create("enwiki", "Old Lake")
        world.hide("enwiki", "Old Lake")
        world.advance(60)
        world.hide("enwiki", "Old Lake", text=False)
        world.advance(60)
        events = await stream_of(sim, 3, START)
        truth = world.truth("enwiki")
        assert truth.exceptions(START.timestamp() - 1) == {"Old Lake": "text not published"}
        world.edit("enwiki", "Old Lake")
        world.advance(60)
        assert world.truth("enwiki").exceptions(START.timestamp() - 1) == {}
    assert not any("article_body" in event for event in events)


async def test_look_ups_do_not_know_suppression():
    world = a_world()
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        title = next(iter(world.truth("enwiki").pages))
        world.hide("enwiki", title)
        world.advance(60)
        (page,) = await wme.articles.lookup(title)
        assert page.article_body is not None


async def test_look_ups_follow_the_published_records():
    world = a_world(latency=(10.0, 10.0))
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        page = world.create("enwiki", "Lake")
        assert await wme.articles.lookup("Lake") == []
        world.advance(11)
        (article,) = await wme.articles.lookup("Lake")
        assert article.version is not None
        assert (article.identifier, article.version.identifier) == (page.page_id, page.revision)
        world.delete("enwiki", "Lake")
        world.advance(1)
        assert await wme.articles.lookup("Lake") == []


# Archives


async def test_a_batch_has_what_was_published_in_its_hour_deletes_and_bulk_records_included():
    world = a_world(latency=(1.0, 1.0))
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        world.create("enwiki", "Lake")
        world.create("enwiki", "Pond")
        world.hide("enwiki", "Lake")
        world.advance(2 * QUARTER)
        world.delete("enwiki", "Pond")
        world.bulk("enwiki", ["Lake"])
        world.advance(2 * 3600)
        world.create("enwiki", "Late")
        world.advance(7200)
        batch = await records_of(wme.batches(START).read("enwiki_namespace_0", type=dict))
        empty = await records_of(wme.batches(START + timedelta(hours=1)).read("enwiki_namespace_0", type=dict))
    assert ("delete", "Pond") in kinds(batch)
    assert {kind for kind, _ in kinds(batch)} == {"update", "delete"}
    (bulk,) = (record for record in batch if moment(record, "date_created") == moment(record, "date_published"))
    assert bulk["name"] == "Lake"
    assert empty == []


async def test_a_bulk_record_has_content_of_up_to_a_quarter_of_an_hour_before():
    world = a_world(latency=(1.0, 1.0))
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        old = world.create("enwiki", "Lake")
        world.advance(QUARTER)
        for _ in range(30):  # each moment of the quarter has a revision of its own
            world.edit("enwiki", "Lake")
            world.advance(QUARTER / 30)
        world.bulk("enwiki", ["Lake"])
        world.advance(7200)
        batch = await records_of(wme.batches(START).read("enwiki_namespace_0", type=dict))
        published = sim.firehose.published
    bulk = [record for record in batch if moment(record, "date_created") == moment(record, "date_published")]
    current = world.truth("enwiki").pages["Lake"].revision
    assert [old.revision < record["version"]["identifier"] < current for record in bulk] == [True]
    assert published == 31


async def test_a_snapshot_has_what_was_published_when_its_export_began():
    world = a_world(latency=(1.0, 1.0))
    async with a_simulator(world, start=START.replace(hour=23, minute=59)) as sim:
        async with Client(**sim.client_options()) as wme:
            world.create("enwiki", "Before")
            world.advance(61)  # it is midnight, and the export begins
            world.create("enwiki", "During")
            world.advance(3 * 3600)
            names = {record["name"] for record in await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))}
            snapshot = await wme.snapshots.get("enwiki_namespace_0")
    assert "Before" in names
    assert "During" not in names
    assert snapshot.date_modified is not None
    assert snapshot.date_modified.date() == (START + timedelta(days=1)).date()


async def test_a_new_day_has_new_snapshots_with_pages_in_other_chunks():
    world = a_world(pages=40)
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        days = []
        for _ in range(2):
            snapshot = await wme.snapshots.get("enwiki_namespace_0")
            assert snapshot.chunks is not None
            chunks = wme.snapshots.chunks("enwiki_namespace_0")
            names = {name: await records_of(chunks.read(name, type=dict)) for name in snapshot.chunks}
            days.append({name: {record["name"] for record in records} for name, records in names.items()})
            whole = await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))
            assert {record["name"] for record in whole} == set().union(*days[-1].values())
            world.advance(86_400)
    assert days[0].keys() == days[1].keys()
    assert set().union(*days[0].values()) == set().union(*days[1].values())
    assert days[0] != days[1]


async def test_a_snapshot_can_be_exported_withdrawn_and_incomplete():
    world = a_world(pages=40)
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        before = await wme.snapshots.get("enwiki_namespace_0")
        world.create("enwiki", "Lake")
        world.advance(60)
        sim.export_snapshot("enwiki_namespace_0")
        names = {record["name"] for record in await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))}
        assert "Lake" in names
        assert len(names) == 41
        assert (await wme.snapshots.get("enwiki_namespace_0")).version != before.version
        sim.export_snapshot("enwiki_namespace_0", share=0.5)
        half = await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))
        assert len(half) in {20, 21}
        assert [export.complete for export in world.truth("enwiki").exports][-2:] == [True, False]
        sim.withdraw_snapshot("enwiki_namespace_0")
        with pytest.raises(NotFound):
            await wme.snapshots.get("enwiki_namespace_0")
        with pytest.raises(NotFound):
            await wme.snapshots.chunks("enwiki_namespace_0").get("enwiki_namespace_0_chunk_0")
        world.advance(86_400)
        assert (await wme.snapshots.get("enwiki_namespace_0")).version


async def test_an_export_of_no_snapshot_is_an_error():
    async with a_simulator(a_world()) as sim:
        with pytest.raises(ValueError, match="no snapshot 'dewiki_namespace_0'"):
            sim.export_snapshot("dewiki_namespace_0")
        with pytest.raises(ValueError, match="no snapshot 'dewiki_namespace_0'"):
            sim.withdraw_snapshot("dewiki_namespace_0")
        with pytest.raises(ValueError, match="share is 0 to 1"):
            sim.export_snapshot("enwiki_namespace_0", share=1.5)


async def test_a_failed_export_has_no_entry_in_its_hour():
    world = a_world(failed_exports=0.5, past=2000)
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        missing = 0
        for hour in sim.hours[:20]:
            try:
                await wme.batches(hour).get("enwiki_namespace_0")
            except NotFound:
                missing += 1
    assert 0 < missing < 20


async def test_the_oldest_records_of_a_snapshot_have_no_event():
    world = a_world(pages=60)
    async with a_simulator(world) as sim, Client(**sim.client_options()) as wme:
        records = await records_of(wme.snapshots.read("enwiki_namespace_0", type=dict))
    assert 0 < sum("event" not in record for record in records) < 30


# All views together


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.servers) for seed in (2, 3))])
async def test_all_views_together_are_the_wiki(seed: int):
    """Snapshot, batches and stream of a random history merge into the state of the wiki itself."""
    world = World(seed, ("enwiki",), past=250, repeated=0.1)
    async with a_simulator(world) as sim:
        world.advance(60)
        copy = Rule()
        for record in await everything(sim):
            copy.apply(record)
        truth = world.truth("enwiki")
        exceptions = truth.exceptions(START.timestamp() - 48 * 3600)
        titles = {title for title in sim.pages.titles("enwiki") if ":" not in title}
    shown = {title: (page.page_id, page.revision) for title, page in truth.pages.items()}
    copied = {title: (page_id, revision) for title, (page_id, revision, _) in copy.live().items()}
    different = {title for title in shown.keys() | copied.keys() if shown.get(title) != copied.get(title)}
    # A text that is shown again may have been fetched while it was hidden: that takes a look-up.
    different |= {
        title
        for title, (_, _, with_text) in copy.live().items()
        if with_text and title in shown and "text" in truth.pages[title].hidden
    }
    assert different <= exceptions.keys()
    assert len(exceptions) < 15
    assert len(shown) > 20
    assert len(titles ^ shown.keys()) <= 3  # look-ups may show what a delete has overtaken


def test_lost_events_are_exceptions():
    world = World(3, ("enwiki",), past=200, lost=0.3, start=START)
    truth = world.truth("enwiki")
    assert truth.lost
    assert "never published" in truth.exceptions(START.timestamp()).values()
    assert {message.title for message in truth.lost} >= {
        title for title, reason in truth.exceptions(0).items() if title not in truth.pages
    }


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), steps=st.lists(st.floats(0, 4000), min_size=1, max_size=8))
def test_a_history_replays_from_its_seed_whatever_the_steps(seed: int, steps: list[float]):
    worlds = [World(seed, ("enwiki", "dewiki"), 0.01, pages=5, past=20, start=START) for _ in range(2)]
    for step in steps:
        worlds[0].advance(step)
    worlds[1].advance(worlds[0].now() - START.timestamp())
    assert worlds[0].changes == worlds[1].changes
    assert worlds[0].truth("dewiki") == worlds[1].truth("dewiki")


def test_random_changes_have_all_kinds():
    world = World(0, ("enwiki",), past=400, start=START)
    assert {change.kind for _, change in world.changes} == {
        "create",
        "edit",
        "move",
        "delete",
        "restore",
        "redirect",
        "hide",
        "bulk",
    }


def test_a_world_without_a_simulator_goes_by_its_own_clock():
    world = a_world(start=START)
    page = world.create("enwiki", namespace=14)
    assert page.title.startswith("Category:")
    assert not world.settled
    world.advance(60)
    assert world.settled
    assert world.now() == START.timestamp() + 60


async def test_a_world_belongs_to_one_simulator():
    world = a_world()
    async with a_simulator(world):
        with pytest.raises(RuntimeError, match="begun already"):
            a_simulator(world)
    begun = a_world(start=START)
    begun.create("enwiki")
    with pytest.raises(RuntimeError, match="begun already"):
        a_simulator(begun)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"projects": "enwiki"}, TypeError, "list of names"),
        ({"projects": ()}, ValueError, "at least one project"),
        ({"namespaces": (0, 2)}, ValueError, "namespaces of 0, 6, 10 and 14"),
        ({"rate": -1}, ValueError, "rate is 0 or more"),
        ({"pages": 1.5}, TypeError, "pages must be a whole number"),
        ({"latency": (3.0, 1.0)}, ValueError, "longest_latency is 3 or more"),
    ],
)
def test_wrong_arguments_are_errors_at_the_call(options: dict[str, Any], error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        World(**options)


def test_changes_of_pages_that_do_not_exist_are_errors():
    world = a_world(start=START)
    page = world.create("enwiki", "Lake")
    with pytest.raises(ValueError, match="no project 'dewiki'"):
        world.create("dewiki")
    with pytest.raises(ValueError, match="has a page 'Lake' already"):
        world.create("enwiki", "Lake")
    for call in (world.edit, world.delete, world.hide):
        with pytest.raises(ValueError, match="no page 'Nowhere'"):
            call("enwiki", "Nowhere")
    with pytest.raises(ValueError, match="no deleted page 'Lake'"):
        world.restore("enwiki", "Lake")
    with pytest.raises(ValueError, match="has this title already"):
        world.move("enwiki", "Lake", "Lake")
    with pytest.raises(ValueError, match="cannot redirect to itself"):
        world.redirect("enwiki", "Lake", "Lake")
    assert world.truth("enwiki").pages["Lake"] == page


def test_a_world_may_be_a_dict_of_its_arguments():
    options = {"projects": ["dewiki"], "pages": 3}
    worlds = [Simulator(world=options).world for _ in range(2)]
    assert worlds[0] is not worlds[1]
    assert worlds[0].projects == ("dewiki",)
    with pytest.raises(TypeError, match="world must be a World"):
        Simulator(world="dewiki")  # type: ignore[arg-type]


def test_sizes_of_archives_are_not_for_a_world():
    with pytest.raises(ValueError, match="pages= of World"):
        Simulator(world=a_world(), archive_bytes={"enwiki_namespace_0": 1000})
