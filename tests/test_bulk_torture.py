"""Bulk work whose workers are killed while they read, and a new export in the middle: each page once, of one export."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from bulk_exports import PAGES, SNAPSHOT, export, list_chunks, metered
from bulk_types import Page

from wme_async import Client
from wme_async.simulator import Simulator
from wme_async.tasks import Manifest, Plan, PlanProgress, run_plan

pytestmark = [pytest.mark.torture, pytest.mark.posix, pytest.mark.timeout(600)]

logger = logging.getLogger("torture")

CHUNKS = 40
SIZE = 40_000  # bytes of a page
RATE = 100_000  # bytes per second of a chunk
KILLS = 12
ATTEMPTS = 4  # of one chunk; the work is given up after five


class Killer:
    """Kills a worker now and then, but never so often in one chunk that the work is given up.

    Args:
        sim: Serves the chunks.
        find: Returns the workers that are reading.
    """

    def __init__(self, sim: Simulator, find: Callable[[], Awaitable[list[int]]]) -> None:
        self.kills = 0
        self._sim = sim
        self._find = find

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        rnd, seen = random.Random(5), set[int]()
        while self.kills < KILLS:
            await asyncio.sleep(rnd.uniform(0.5, 1.5))
            workers = await self._find()
            # Not one that has just been started: the nanny of a worker of Dask gives up in that case.
            victims = [worker for worker in workers if worker in seen]
            if victims and self._attempts() < ATTEMPTS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rnd.choice(victims), signal.SIGKILL)
                    self.kills += 1
            seen.update(workers)

    def _attempts(self) -> int:
        """Return how often the chunk that is being read was requested, the most of them where several are."""
        requests = Counter(request.path for request in self._sim.requests.select("store"))
        return max((requests[request.path] for request in self._sim.requests.select("store", done=False)), default=0)


class Progress:
    """Exports the snapshot anew once half of it is done, and notes what was begun before."""

    def __init__(self, sim: Simulator) -> None:
        self.reports: list[PlanProgress] = []
        self.abandoned = 0
        self._sim = sim

    def __call__(self, report: PlanProgress) -> None:
        self.reports.append(report)
        if report.tasks >= CHUNKS // 2 and not report.restarts and not self.abandoned:
            self.abandoned = metered(self._sim)
            export(self._sim, 2, chunks=CHUNKS, size=SIZE)


@pytest.fixture
async def sim(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Simulator]:
    async with Simulator(articles=2) as simulator:
        export(simulator, 1, chunks=CHUNKS, size=SIZE)
        list_chunks(simulator, CHUNKS)
        simulator.faults.inject("slow", role="store", rate=RATE, times=1000)
        for name, value in simulator.environment().items():
            monkeypatch.setenv(name, value)
        yield simulator


@pytest.fixture
async def plan(sim: Simulator, tmp_path: Path) -> Plan:
    return await make_plan(sim, tmp_path)


async def make_plan(sim: Simulator, to: Path) -> Plan:
    async with Client(**sim.client_options()) as wme:
        plan = await wme.snapshots.plan(SNAPSHOT, to=to, type=Page, format="ndjson")
    assert len(plan.tasks) == CHUNKS
    return plan


def check(manifest: Manifest, to: Path, progress: Progress) -> None:
    lines = b"".join(Path(path).read_bytes() for path in manifest.paths(str(to))).splitlines()
    pages = [msgspec.json.decode(line, type=Page) for line in lines]
    assert sorted(page.identifier for page in pages) == list(PAGES)
    assert {page.export for page in pages} == {2}
    assert progress.reports[-1].restarts == 1


async def test_processes(sim: Simulator, plan: Plan, tmp_path: Path) -> None:
    async def workers() -> list[int]:
        children = multiprocessing.active_children() if sim.requests.select("store", done=False) else []
        return [child.pid for child in children if child.pid is not None]

    killer, progress = Killer(sim, workers), Progress(sim)
    async with killer.running():
        manifest = await run_plan(plan, 2, progress)
    check(manifest, tmp_path, progress)
    spent = metered(sim)
    logger.info(
        "%d kills, %d metered requests, %d of them before the new export", killer.kills, spent, progress.abandoned
    )
    assert spent <= CHUNKS + progress.abandoned + 2 + killer.kills
    assert await run_plan(await make_plan(sim, tmp_path)) == manifest
    assert metered(sim) == spent


async def test_dask(sim: Simulator, plan: Plan, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
    dask = pytest.importorskip("dask")
    from wme_async.integrations import dask as on_dask

    # A cluster removes a worker whose name is away at one moment 15 seconds after it was killed, restarted or not.
    patience = dask.config.set({"distributed.deploy.lost-worker-timeout": "10 minutes"})
    async with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, asynchronous=True, dashboard_address="127.0.0.1:0", silence_logs=50,
            protocol="tcp://", host="127.0.0.1",
        ) as cluster,
        distributed.Client(cluster, asynchronous=True) as client,
    ):  # fmt: skip

        async def reading() -> list[int]:
            try:
                async with asyncio.timeout(2):
                    busy = {worker for worker, tasks in (await client.processing()).items() if tasks}
                    pids = await client.run(os.getpid, on_error="ignore")
            except (TimeoutError, OSError):
                return []
            return [pid for worker, pid in pids.items() if worker in busy and isinstance(pid, int)]

        killer, progress = Killer(sim, reading), Progress(sim)
        with patience:
            async with killer.running():
                manifest = await on_dask.run_plan(plan, client, in_flight_bytes=200_000, progress=progress)
        check(manifest, tmp_path, progress)
        spent = metered(sim)
        logger.info(
            "%d kills, %d metered requests, %d of them before the new export", killer.kills, spent, progress.abandoned
        )
        # Beside what had been begun when the snapshot was exported anew, what began before the driver knew.
        assert spent <= CHUNKS + progress.abandoned + 2 + killer.kills
        assert await on_dask.run_plan(await make_plan(sim, tmp_path), client) == manifest
        assert metered(sim) == spent
