"""A mirror and a consumer of its feed are killed again and again; afterwards wiki, mirror and index are equal."""

import asyncio
import contextlib
import os
import random
import sqlite3
import sys
from pathlib import Path

import pytest
from mirror_world import IDENTIFIER, copy_of, differences, mirror_of, running, service, until, until_equal

from wme_async.mirror import MirrorReader, SQLiteStore
from wme_async.simulator import Simulator, World

CHILD = Path(__file__).with_name("mirror_child.py")


@contextlib.asynccontextmanager
async def child(sim: Simulator, *arguments: object):
    """A child process that has begun; it is killed at the end of the block."""
    environment = {**os.environ, **sim.environment()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, CHILD, *map(str, arguments), env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def change(world: World, chance: random.Random, count: int = 5) -> None:
    """Make random changes, and let them be published."""
    for _ in range(count):
        titles = sorted(world.truth("enwiki").pages)
        title = chance.choice(titles)
        kind = chance.random()
        if kind < 0.4 or len(titles) < 10:
            world.create("enwiki")
        elif kind < 0.6:
            world.edit("enwiki", title)
        elif kind < 0.8:
            world.move("enwiki", title, f"Moved {world.now():.0f} {chance.random():.6f}", redirect=False)
        elif kind < 0.9:
            world.move("enwiki", title, chance.choice([other for other in titles if other != title]))
        else:
            world.delete("enwiki", title)
    world.advance(20)


def rows_of(path: Path) -> dict[str, tuple[int, int]]:
    index = sqlite3.connect(path)
    try:
        return {title: (number, revision) for number, title, revision in index.execute("SELECT * FROM pages")}
    finally:
        index.close()


async def torture(tmp_path: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    path, index = tmp_path / "mirror.db", tmp_path / "index.db"
    async with service(World(seed=seed, projects=["enwiki"], pages=24, past=40)) as (world, sim, wme):
        for number in range(kills):
            async with child(sim, "mirror", path):
                change(world, chance)
                if number % 3 == 0:
                    sim.firehose.disconnect(chance.choice(("reset", "clean", "truncated")))
                await asyncio.sleep(chance.random() * 0.6)  # any moment is as good as any other
            if path.exists():
                async with child(sim, "consumer", path, index):
                    change(world, chance, 2)
                    await asyncio.sleep(chance.random() * 0.4)
        async with mirror_of(wme, path) as mirror, running(mirror):
            await until_equal(mirror, world)
            # No half of a move is outstanding any more.
            world.advance(600)
            world.edit("enwiki", min(world.truth("enwiki").pages))
            world.advance(20)
            await until_equal(mirror, world)
            await until(lambda: nothing_held(mirror))
            async with child(sim, "consumer", path, index):
                await until(lambda: equal(mirror, index))
        async with MirrorReader(SQLiteStore(path)) as reader:
            assert not differences(await copy_of(reader), world)
            assert rows_of(index) == await copy_of(reader)
            assert (await reader.statistics()).loaded[IDENTIFIER].number >= 1


async def nothing_held(mirror):
    return not (await mirror.statistics()).held


async def equal(mirror, index):
    with contextlib.suppress(sqlite3.Error):
        return rows_of(index) == await copy_of(mirror)
    return False


@pytest.mark.servers
async def test_wiki_mirror_and_index_are_equal_after_kills(tmp_path):
    await torture(tmp_path, 2, seed=1)


@pytest.mark.torture
@pytest.mark.parametrize("seed", [2, 3])
async def test_wiki_mirror_and_index_are_equal_after_fifty_kills_of_each(tmp_path, seed):
    await torture(tmp_path, 50, seed=seed)
