"""A mirror of a simulated world: it equals the wiki after loads, streams, batches, holes and kills."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

from wme_async import Client, Retry
from wme_async.mirror import (
    Mirror,
    SQLiteStore,
)
from wme_async.simulator import Simulator, World

IDENTIFIER = "enwiki_namespace_0"
START = datetime(2026, 3, 10, 12, 20, tzinfo=UTC)
AT_ONCE = Retry(base=0, cap=0)
QUICK = {"poll": 0.02}


@contextlib.asynccontextmanager
async def service(world=None, **options):
    """A simulator of a world, and its client."""
    world = world or World(seed=1, projects=["enwiki"], pages=24, past=60)
    settings = {"start": START, "frozen": True, "stream": {"rate": None}} | options
    async with Simulator(world=world, **settings) as sim, Client(**sim.client_options(), retry=AT_ONCE) as wme:
        yield world, sim, wme


def mirror_of(wme, path, *, identifiers=IDENTIFIER, **options):
    return Mirror(wme, identifiers, SQLiteStore(path), **QUICK | options)


async def copy_of(reader, project="enwiki"):
    """Return the live pages of a mirror: title to page id and revision."""
    copy = {}
    async for keys in reader.keys():
        copy |= {key[1]: (key[2], key[3]) for key in keys if key[0] == project}
    return copy


def differences(copy, world, *, since=START - timedelta(hours=47), missed=(), project="enwiki"):
    """Return how a copy differs from the wiki, but for what it cannot know."""
    state = world.truth(project)
    truth = {title: (page.page_id, page.revision) for title, page in state.pages.items()}
    excused = state.exceptions(since.timestamp(), missed)
    return {
        title: (copy.get(title), truth.get(title))
        for title in copy.keys() | truth.keys()
        if copy.get(title) != truth.get(title) and title not in excused
    }


@contextlib.asynccontextmanager
async def running(mirror):
    """Run a mirror in the background; its failure ends the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        yield task
        task.cancel()


async def until(condition, seconds=20):
    """Wait for a condition, which may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.005)


async def until_equal(mirror, world, **options):
    """Wait until a mirror equals the wiki."""
    last = {}

    async def equal():
        last["differences"] = differences(await copy_of(mirror), world, **options)
        return not last["differences"] and mirror.state == "following"

    try:
        await until(equal)
    except TimeoutError:
        raise AssertionError(f"{mirror.state}: {last}") from None


async def index_of(mirror, consumer, index):
    """Bring an index up to date by the feed."""
    async for change in mirror.changes(consumer, wait=False):
        if change.kind == "delete":
            index.pop(change.page_id, None)
        else:
            index[change.page_id] = (change.title, change.revision, change.digest, change.hidden)
        await change.ack()
    return index


async def titles_of(index):
    return {title: (page_id, revision) for page_id, (title, revision, _, _) in index.items()}


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
        loads = len([request for request in sim.requests if "chunks" in request.path])
        world.move("enwiki", next(iter(world.truth("enwiki").pages)), "Brand new title")
        world.advance(60)
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            assert mirror.state == "following"
            await mirror.sync(quiet=1.0)
            assert not differences(await copy_of(mirror), world)
            assert (await mirror.get("Brand_new title")).name == "Brand new title"
        assert len([request for request in sim.requests if "chunks" in request.path]) == loads


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
        assert await titles_of(await index_of(mirror, "index", index)) == await copy_of(mirror)


async def shown(mirror, title):
    page = await mirror.get(title)
    return page.article_body is not None
