"""Random histories of simulated weeks, with all that happens to a mirror: in the end it equals the wiki.

In most histories a mirror is stopped by cancellation at a random moment, and its store is closed. In each tenth it is a
process of its own, which SIGKILL ends. The long run is that of `nox -s torture`.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mirror_world import IDENTIFIER, copy_of, differences, mirror_of, running, service, until

from wme_async import Client
from wme_async.mirror import Mirror, MirrorChunkLoaded, MirrorEvent, MirrorHoleFound, MirrorReader, SQLiteStore
from wme_async.simulator import Simulator, World

HOUR = 3600.0
STREAM = timedelta(hours=47)  # how far back a mirror begins to read the stream
SHARE = 0.25  # of a hundred pages, which change quickly; an incomplete export lacks more
CHILD = f"""
import asyncio, sys
from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore

async def main():
    async with Client.from_env() as wme:
        async with Mirror(wme, "{IDENTIFIER}", SQLiteStore(sys.argv[1]), poll=0.02, max_removed={SHARE}) as mirror:
            print("ready", flush=True)
            await mirror.run()

asyncio.run(main())
"""


@dataclass
class History:
    """A mirror over a simulated week.

    Attributes:
        chance: Decides what happens.
        world: The world.
        sim: Its simulator.
        wme: A client.
        path: The file of the mirror.
        processes: Whether mirrors are processes that SIGKILL ends.
        missed: The times for which there was no stream any more.
    """

    chance: random.Random
    world: World
    sim: Simulator
    wme: Client
    path: Path
    processes: bool
    missed: list[tuple[float, float]] = field(default_factory=list)

    async def live(self, steps: int) -> None:
        """Let things happen, in any order."""
        await self.follow()
        events = [self.follow, self.follow, self.follow, self.replace, self.break_export, self.lose_stream, self.leave]
        for number in range(steps):
            await (events[number] if number < len(events) else self.chance.choice(events))()

    # What happens

    async def follow(self, hours: float = 12.0) -> None:
        """Follow for some hours: the stream is cut, and the mirror stops at some moment."""
        async with self.mirror():
            for _ in range(4):
                self.world.advance(self.chance.random() * hours / 4 * HOUR)
                await self.pause()
                if self.chance.random() < 0.5:
                    self.sim.firehose.disconnect(self.chance.choice(("reset", "clean", "truncated")))

    async def replace(self) -> None:
        """Export the snapshot anew while it may be loaded."""
        self.world.advance(HOUR)
        self.sim.export_snapshot(IDENTIFIER)
        await self.follow()

    async def break_export(self) -> None:
        """Export a part of the snapshot."""
        self.world.advance(HOUR)
        self.sim.export_snapshot(IDENTIFIER, share=0.3)
        await self.follow()

    async def lose_stream(self) -> None:
        """Take the stream from the account for a day."""
        await self._catch_up()
        begin = self.world.now()
        self.sim.users["simulated"].groups[:] = ["group_2"]
        self.sim.firehose.disconnect()
        for _ in range(2):
            await self.follow()
        self.sim.users["simulated"].groups[:] = ["group_3"]
        self.missed.append((begin, self.world.now()))

    async def leave(self) -> None:
        """Be off for three days."""
        await self._catch_up()
        begin = self.world.now()
        self.world.advance(72 * HOUR)
        self.missed.append((begin, self.world.now()))

    async def _catch_up(self) -> None:
        self.world.advance(20)
        async with self._mirror() as mirror:
            await mirror.sync(quiet=1.0)

    async def pause(self) -> None:
        await asyncio.sleep(self.chance.random() * (0.6 if self.processes else 0.15))

    # Mirrors

    @contextlib.asynccontextmanager
    async def mirror(self) -> AsyncIterator[None]:
        """A mirror that runs, until it is stopped at some moment."""
        if self.processes:
            async with self._process():
                yield
        else:
            async with self._mirror() as mirror, running(mirror):
                yield

    def _mirror(self) -> Mirror:
        mirror: Mirror = mirror_of(self.wme, self.path, on_event=self._note, max_removed=SHARE)
        return mirror

    def _note(self, event: MirrorEvent) -> None:
        if isinstance(event, MirrorChunkLoaded) and self.chance.random() < 0.1:
            self.sim.export_snapshot(IDENTIFIER)
        elif isinstance(event, MirrorHoleFound):
            # Quiet partitions are saved every ten seconds, in which weeks pass here.
            self.missed.append((event.hole.begin.timestamp(), event.hole.end.timestamp()))

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[None]:
        command = [sys.executable, "-c", CHILD, str(self.path)]
        environment = {**os.environ, **self.sim.environment()}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert await process.stdout.readline() == b"ready\n"
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()

    # The end

    async def settle(self, since: datetime) -> dict[str, Any]:
        """Let all holes close, and return how the mirror differs from the wiki beyond what it cannot know."""
        self.world.rate = 0
        self.world.advance(60)
        await self._catch_up()  # before days pass in a moment
        async with self._mirror() as mirror, running(mirror):
            for _ in range(3):
                await self._wait_for_calm(mirror)
                self.world.advance(24 * HOUR)
            last: dict[str, Any] = {}

            async def equal() -> bool:
                nonlocal last
                last = differences(await copy_of(mirror), self.world, since=since, missed=self.missed)
                return not last and mirror.state == "following"

            with contextlib.suppress(TimeoutError):
                await until(equal, seconds=30)
            statistics = await mirror.statistics()
            return {**last, **await self._shown(mirror, since), **({"": statistics} if statistics.holes else {})}

    async def _shown(self, mirror: Mirror, since: datetime) -> dict[str, Any]:
        """Return the pages whose text is shown although it is suppressed, or the other way round."""
        if self.processes:  # whose holes nobody has counted
            return {}
        truth = self.world.truth("enwiki")
        unknown = truth.exceptions(since.timestamp(), self.missed)
        pages = {title: page for title, page in truth.pages.items() if title not in unknown}
        copies = {title: await mirror.get(title) for title in pages}
        return {
            title: ("text", copy)
            for title, copy in copies.items()
            if copy is not None and (copy.article_body is None) != ("text" in pages[title].hidden)
        }

    async def _wait_for_calm(self, mirror: Mirror) -> None:
        """Wait until it follows the stream and nothing else, or cannot for want of a snapshot."""
        await until(lambda: self.sim.firehose.open)
        with contextlib.suppress(TimeoutError):
            await until(lambda: mirror.state == "following", seconds=1)


async def live_through(seed: int, path: Path, *, steps: int, processes: bool = False) -> bool:
    """Live through a history, and return whether the mirror equals the wiki without any exception."""
    chance = random.Random(seed)
    world = World(seed, ["enwiki"], 0.0006, pages=40, past=60, repeated=0.05, failed_exports=0.05)
    async with service(world) as (_, sim, wme):
        since = sim.clock.utc() - STREAM
        history = History(chance, world, sim, wme, path, processes)
        await history.live(steps)
        differences = await history.settle(since)
        assert not differences, f"seed {seed}: {differences}"
        async with MirrorReader(SQLiteStore(path)) as reader:
            copy: dict[str, tuple[int, int]] = await copy_of(reader)
        return copy == {title: (page.page_id, page.revision) for title, page in world.truth("enwiki").pages.items()}


async def test_a_snapshot_that_is_taken_for_incomplete_closes_no_hole(tmp_path: Path) -> None:
    async with service(World(seed=3, projects=["enwiki"], pages=40, past=0)) as (world, sim, wme):
        async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
            await mirror.sync(quiet=0.3)
            for title in world.truth("enwiki").pages:
                world.edit("enwiki", title)
            world.advance(72 * HOUR)
            sim.export_snapshot(IDENTIFIER, share=0.3)
            await mirror.sync(quiet=0.3)
            assert (mirror.state, "max_removed" in str((await mirror.statistics()).degraded)) == ("stale", True)
            world.advance(HOUR)
            sim.export_snapshot(IDENTIFIER)
            await mirror.sync(quiet=0.3)
            assert (mirror.state, (await mirror.statistics()).degraded) == ("following", {})
            assert not differences(await copy_of(mirror), world)


async def test_a_sync_ends_although_the_stream_is_never_silent(tmp_path: Path) -> None:
    async with service(World(seed=5, projects=["enwiki"], pages=24, past=0)) as (world, _, wme):
        title = min(world.truth("enwiki").pages)

        async def edit() -> None:
            while True:
                world.edit("enwiki", title)
                world.advance(20)
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group, asyncio.timeout(20):
            editing = group.create_task(edit())
            for _ in range(2):
                async with mirror_of(wme, tmp_path / "mirror.db") as mirror:
                    await mirror.sync(quiet=0.5)
                    assert mirror.state == "following"
                    assert (await copy_of(mirror)).keys() == world.truth("enwiki").pages.keys()
            editing.cancel()


async def test_a_mirror_equals_the_wiki_after_a_random_week(tmp_path: Path) -> None:
    await live_through(0, tmp_path / "mirror.db", steps=7)


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_mirrors_equal_the_wiki_after_a_hundred_random_weeks(tmp_path: Path) -> None:
    exact = 0
    for seed in range(100):
        exact += await live_through(seed, tmp_path / f"{seed}.db", steps=12, processes=seed % 10 == 9)
    assert exact > 75
