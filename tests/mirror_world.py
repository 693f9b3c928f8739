"""What the tests of mirrors share: a simulated world, a mirror of it, and their comparison."""

import asyncio
import contextlib
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from wme_async import Client, Retry
from wme_async.mirror import Mirror, SQLiteStore
from wme_async.simulator import Simulator, World

IDENTIFIER = "enwiki_namespace_0"
START = datetime(2026, 3, 10, 12, 20, tzinfo=UTC)
AT_ONCE = Retry(base=0, cap=0)
QUICK = {"poll": 0.02}


@contextlib.asynccontextmanager
async def service(world=None, **options):
    """A simulator of a world, and its client."""
    world = world or World(seed=1, projects=["enwiki"], pages=24, past=60)
    settings: dict[str, Any] = {"start": START, "frozen": True, "stream": {"rate": None}} | options
    async with Simulator(world=world, **settings) as sim, Client(**sim.client_options(), retry=AT_ONCE) as wme:
        yield world, sim, wme


def mirror_of(wme, path, *, identifiers=IDENTIFIER, **options):
    return Mirror(wme, identifiers, SQLiteStore(path), **QUICK | options)


async def copy_of(reader, project="enwiki"):
    """Return the live pages of a mirror: title to page id and revision."""
    copy: dict[str, tuple[int, int]] = {}
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


async def until_equal(mirror, world, project="enwiki", **options):
    """Wait until a mirror equals the wiki."""
    last = {}

    async def equal():
        last["differences"] = differences(await copy_of(mirror, project), world, project=project, **options)
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


def titles_of(index):
    return {title: (page_id, revision) for page_id, (title, revision, _, _) in index.items()}


def requests_of(sim, text):
    """Return how often a path was requested that has a text in it."""
    return sum(text in request.path for request in sim.requests)


def downloads(sim):
    """Return how often each archive was requested."""
    return Counter(
        request.path
        for request in sim.requests
        if request.path.endswith("/download") and (request.role, request.method) == ("api", "GET")
    )
