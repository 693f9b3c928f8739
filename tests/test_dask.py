# ruff: noqa: ASYNC240  # nothing else runs in the loop while these tests look at files
"""Bulk work on a real Dask cluster of two processes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bulk_exports import CHUNKS, PAGES, SNAPSHOT, export, metered
from bulk_types import Page

from wme_async import Client, Replaced, Retry
from wme_async.simulator import Simulator
from wme_async.tasks import Plan, PlanProgress

distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
from wme_async.integrations.dask import run_plan  # noqa: E402  # once it is known to be there


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(articles=2) as simulator:
        export(simulator, 1)
        yield simulator


@pytest.fixture
async def plan(sim: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    for name, value in sim.environment().items():
        monkeypatch.setenv(name, value)
    return await make_plan(sim, tmp_path)


async def make_plan(sim: Simulator, to: Path) -> Plan:
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as wme:
        return await wme.snapshots.plan(SNAPSHOT, to=to, type=Page, format="ndjson")


def cluster(**options: Any) -> Any:
    return distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, asynchronous=True, dashboard_address="127.0.0.1:0", silence_logs=50,
        protocol="tcp://", host="127.0.0.1", **options,
    )  # fmt: skip


@pytest.mark.servers
@pytest.mark.posix
async def test_every_page_is_there_once_after_a_lost_worker_and_a_new_export(
    sim: Simulator, plan: Plan, tmp_path: Path
) -> None:
    reports: list[PlanProgress] = []

    def progress(report: PlanProgress) -> None:
        reports.append(report)
        if report.tasks == 5 and not report.restarts:
            export(sim, 2)

    async with cluster(processes=True) as local, distributed.Client(local, asynchronous=True) as dask:
        pids = await dask.run(os.getpid)
        sim.faults.inject("stall", role="store", after=20)
        running = asyncio.create_task(run_plan(plan, dask, in_flight_bytes=1, progress=progress))
        await sim.requests.wait(role="store", timeout=20)
        active = [pids[worker] for worker, tasks in (await dask.processing()).items() if tasks]
        assert len(active) == 1
        os.kill(active[0], signal.SIGKILL)
        manifest = await running
        sim.requests.clear()
        assert await run_plan(await make_plan(sim, tmp_path), dask) == manifest
        assert metered(sim) == 0
    lines = b"".join(Path(path).read_bytes() for path in manifest.paths(str(tmp_path))).splitlines()
    copied = [msgspec.json.decode(line, type=Page) for line in lines]
    assert sorted(page.identifier for page in copied) == list(PAGES)
    assert {page.export for page in copied} == {2}
    assert [report.tasks for report in reports] == [*range(6), *range(CHUNKS + 1)]
    assert reports[-1].restarts == 1


async def test_the_bytes_in_flight_are_bounded_and_a_new_export_can_be_an_error(
    sim: Simulator, plan: Plan, tmp_path: Path
) -> None:
    async with cluster(processes=False) as local, distributed.Client(local, asynchronous=True) as dask:
        sim.faults.inject("stall", role="store", after=20, times=10)
        running = asyncio.create_task(
            run_plan(plan, dask, in_flight_bytes=plan.tasks[0].size + plan.tasks[1].size, on_replaced="raise")
        )
        await sim.requests.wait(2, role="store", timeout=20)
        assert sum(map(len, (await dask.processing()).values())) <= 2
        sim.faults.clear()
        export(sim, 2)
        async with sim.down("store"):  # which ends what is stalled
            pass
        with pytest.raises(Replaced):
            await running


async def test_a_client_of_another_thread_will_do_and_damage_on_the_way_is_cured(
    sim: Simulator, plan: Plan, tmp_path: Path
) -> None:
    sim.faults.inject("corrupt", role="store", times=2)
    async with cluster(processes=False) as local:
        client = await asyncio.to_thread(distributed.Client, local.scheduler_address, set_as_default=False)
        try:
            manifest = await run_plan(plan, client)
        finally:
            await asyncio.to_thread(client.close)
    assert manifest.rows == len(PAGES)
    assert metered(sim) == CHUNKS + 2


async def test_a_snapshot_that_is_exported_again_and_again_is_given_up(sim: Simulator, plan: Plan) -> None:
    reports: list[PlanProgress] = []

    async def progress(report: PlanProgress) -> None:
        reports.append(report)
        if report.tasks == 1:
            export(sim, len(reports) + 1)

    async with cluster(processes=False) as local, distributed.Client(local, asynchronous=True) as dask:
        with pytest.raises(Replaced) as caught:
            await run_plan(plan, dask, in_flight_bytes=1, progress=progress)
    assert "exported anew 4 times" in caught.value.__notes__[-1]
    assert {report.restarts for report in reports} == {0, 1, 2, 3}
    assert metered(sim) <= 2 * 4


@pytest.mark.parametrize("arguments", [{"in_flight_bytes": 0}, {"retries": -1}])
async def test_invalid_arguments_are_misuse(plan: Plan, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        await run_plan(plan, object(), **arguments)


async def test_a_client_of_something_else_is_misuse(plan: Plan) -> None:
    with pytest.raises(TypeError, match=r"distributed\.Client"):
        await run_plan(plan, object())
