"""Random work on an event loop that reorders and stalls, with closes and cancellations at random moments.

Each history is one client with some work under way against the simulator, some faults, and perhaps somebody who closes
the client, its pool or its session, or cancels a task. All of it ends: with a result, an error of ours, or
the cancellation that was asked for; and nothing is left behind.
"""

import asyncio
import gc
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from shuffled_loop import ShuffledLoop, stacks, wait_for_end

from wme_async import Cache, Client, ClientClosed, Limits, Retry, SessionPool, Timeouts, WMEError
from wme_async.jobs import BatchManager, JobLimits
from wme_async.simulator import Fault, Simulator

SIZES = {"a": 1, "b": 30_000, "c": 300_000, "d": 1_500_000}
FILES = {f"{letter}wiki_namespace_0": size for letter, size in SIZES.items()}
HOUR_NAME = "enwiki_namespace_0"
FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("hang_head", "store", {}),
    ("hang_head", "api", {}),
    ("hang_head", "auth", {}),
    ("hang_head", "realtime", {}),
    ("stall", "store", {"after": 500}),
    ("stall", "api", {"after": 5}),
    ("drop", "store", {"after": 2000}),
    ("drop", "realtime", {"after": 800}),
    ("reset", "api", {}),
    ("reset", "store", {}),
    ("status", "api", {"status": 503}),
    ("status", "store", {"status": 503}),
    ("status", "auth", {"status": 500}),
    ("status", "realtime", {"status": 503}),
    ("delay", "api", {"seconds": 0.05}),
]


class History:
    """One client, its work, and what becomes of it."""

    def __init__(self, sim: Simulator, folder: Path, seed: int) -> None:
        self.sim = sim
        self.folder = folder
        self.random = random.Random(seed)
        self.steps = 0
        self.stopped = False  # somebody closed something
        self.closers: list[Callable[[], Awaitable[object]]] = []
        self.cancelled: set[asyncio.Task[Any]] = set()
        # Some hosts hang for ever and no timeout is short: only closing ends it, and has to end it at once.
        self.patient = self.random.random() < 0.3
        self.timeouts = Timeouts() if self.patient else Timeouts(read=0.5, lookup=0.5)

    @property
    def events(self) -> int:
        """How much has happened so far."""
        return self.steps + self.sim.requests.total

    # Work

    async def download(self, wme: Client) -> None:
        name = self.random.choice(list(FILES))
        target = self.folder / str(self.random.random())
        await wme.snapshots.download(name, target, connections=self.random.choice([None, 1, 3]))
        assert target.stat().st_size == FILES[name]
        target.unlink()

    async def content(self, wme: Client) -> None:
        name = self.random.choice(list(FILES))
        size = 0
        async with wme.snapshots.content(name) as pieces:
            async for piece in pieces:
                size += len(piece)
                self.steps += 1
        assert size == FILES[name]

    async def read(self, wme: Client) -> None:
        async with wme.batches(self.sim.hours[-2]).read(HOUR_NAME) as articles:
            async for _ in articles:
                self.steps += 1

    async def lookup(self, wme: Client) -> None:
        assert await wme.articles.lookup("NATO")

    async def lists(self, wme: Client) -> None:
        for _ in range(3):
            collection: Any = self.random.choice([wme.projects, wme.codes, wme.languages])
            assert await collection.list()
            self.steps += 1

    async def many(self, wme: Client) -> None:
        names = [f"T{number}" for number in range(self.random.randrange(1, 25))]
        answers = []
        results = wme.articles.lookup_many(names, concurrency=self.random.choice([1, 3, 10]))
        async with results:
            async for looked in results:
                answers.append(looked.name)
                self.steps += 1
        assert answers == names

    async def stream(self, wme: Client) -> None:
        count = self.random.randrange(1, 60)
        connections, name = self.random.choice([1, 3, 10]), str(self.random.random())
        async with wme.realtime.articles(connections=connections, name=name, idle_timeout=self.timeouts.read) as stream:
            publishing = asyncio.create_task(self._publish())
            try:
                async for _ in stream:
                    self.steps += 1
                    count -= 1
                    if not count:
                        break
            finally:
                publishing.cancel()

    async def _publish(self) -> None:
        while True:
            self.sim.firehose.publish_many(20)
            await asyncio.sleep(0.02)

    async def jobs(self, wme: Client) -> None:
        names = self.random.sample(list(FILES), self.random.randrange(1, 4))
        folder = self.folder / str(self.random.random())
        limits = JobLimits(free_space=0)
        async with BatchManager(folder, client=wme, limits=limits) as manager:
            batch = await manager.submit([f"wme:snapshots/{name}" for name in names])
            ended = await manager.wait(batch.batch_id)
            assert [job.status for job in ended.jobs] == ["completed"] * len(names)

    # Disturbance

    async def disturb(self, tasks: "list[asyncio.Task[Any]]") -> None:
        """Close something or cancel somebody, at a random moment."""
        for _ in range(self.random.choice([0, 1, 1, 2])):
            await self.moment()
            if self.random.random() < 0.5:
                task = self.random.choice(tasks)
                if not task.done():
                    self.cancelled.add(task)
                    task.cancel()
            else:
                await self.close()
        if self.patient and not self.stopped:
            await self.moment()
            await self.close()

    async def moment(self) -> None:
        """Wait until so much has happened, or for a while in which nothing happens."""
        until = self.events + self.random.randrange(12)
        for _ in range(self.random.randrange(60)):
            if self.events >= until:
                break
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        self.stopped = True
        await self.random.choice(self.closers)()

    def faults(self) -> list[Fault]:
        times = [1, 2, None] if self.patient else [1, 2]
        return [
            self.sim.faults.inject(
                kind, role=role, times=self.random.choice(times), skip=self.random.randrange(4), **details
            )
            for kind, role, details in self.random.sample(FAULTS, self.random.randrange(4))
        ]

    async def run(self) -> Client:
        faults = self.faults()
        async with AsyncExitStack() as stack:
            wme = await self.client(stack)
            works = [self.download, self.content, self.read, self.lookup, self.lists, self.many, self.stream, self.jobs]
            tasks = [
                asyncio.create_task(work(wme), name=work.__name__)
                for work in self.random.choices(works, k=self.random.randrange(1, 6))
            ]
            disturbing = asyncio.create_task(self.disturb(tasks), name="disturb")
            try:
                await wait_for_end([*tasks, disturbing], lambda: self.events)
            finally:
                for fault in faults:
                    fault.remove()
                left = [task for task in (*tasks, disturbing) if not task.done()]
                for task in left:
                    task.cancel()
                if left:
                    await asyncio.wait(left, timeout=5)
            disturbing.result()
            for task in tasks:
                self.judge(task)
        return wme

    async def client(self, stack: AsyncExitStack) -> Client:
        session = None
        if self.random.random() < 0.3:
            connector = aiohttp.TCPConnector(limit=self.random.choice([0, 60]))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            self.closers.append(session.close)
        pool = None
        if session is not None or self.random.random() < 0.3:
            pool = SessionPool(session=session, limits=Limits(connections=self.random.choice([1, 3, 100])))
            stack.push_async_callback(pool.aclose)
            self.closers.append(pool.aclose)
        wme = Client(
            **self.sim.client_options(),
            pool=pool,
            limits=None if pool else Limits(connections=self.random.choice([1, 2, 5, 100])),
            retry=Retry(attempts=8, base=0.002, cap=0.02),
            timeouts=self.timeouts,
            cache=Cache() if self.random.random() < 0.3 else None,
        )
        self.closers.append(wme.aclose)
        return await stack.enter_async_context(wme)

    def judge(self, task: "asyncio.Task[Any]") -> None:
        if task.cancelled():
            assert task in self.cancelled, f"{task.get_name()} was cancelled, though nobody asked for that"
            return
        error = task.exception()
        if error is None:
            return
        # A fault that lasts may have been met before, and everything else passes: so only closing can be the cause.
        expected = WMEError if self.patient else ClientClosed
        if not self.stopped or not isinstance(error, expected):
            raise error


async def histories(folder: Path, seeds: range, progress: Callable[[int], None]) -> None:
    for start in range(seeds.start, seeds.stop, 20):
        async with Simulator(archive_bytes={HOUR_NAME: 60_000}) as sim:
            for name, size in FILES.items():
                sim.put_object(f"snapshots/{name}.tar.gz", random.Random(size).randbytes(size))
            served = asyncio.all_tasks()
            for seed in range(start, min(start + 20, seeds.stop)):
                try:
                    wme = await History(sim, folder, seed).run()
                    # A request that others share through the cache ends a little after theirs.
                    await no_tasks_but(served, sim)
                    assert "0 open bodies" in repr(wme), wme
                    assert "0 requests waiting" in repr(wme), wme
                except BaseException as error:
                    error.add_note(f"seed {seed}")
                    raise
                progress(seed)


async def no_tasks_but(known: "set[asyncio.Task[Any]]", sim: Simulator) -> None:
    """Check that soon no task of ours is left; the simulator has one for each connection that it serves."""

    def left() -> "list[asyncio.Task[Any]]":
        tasks = asyncio.all_tasks() - known
        return [task for task in tasks if task is not asyncio.current_task() and "RequestHandler" not in repr(task)]

    for _ in range(200):
        if not left():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks are left: {left()}\n{stacks()}")


def descriptors() -> int:
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def check(folder: Path, seeds: range, progress: Callable[[int], None] = lambda _: None) -> None:
    before, threads = descriptors(), set(threading.enumerate())
    with asyncio.Runner(loop_factory=lambda: ShuffledLoop(seeds.start)) as runner:
        runner.run(histories(folder, seeds, progress))
    assert descriptors() <= before
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("first", [0, pytest.param(1000, marks=pytest.mark.servers)])
def test_whatever_is_closed_or_cancelled_all_work_ends_and_nothing_is_left(tmp_path: Path, first: int) -> None:
    check(tmp_path, range(first, first + 6))


@pytest.mark.torture
def test_thousands_of_histories_end_and_leave_nothing(tmp_path: Path) -> None:
    check(tmp_path, range(10_000, 13_000))
