# ruff: noqa: ASYNC240  # nothing else runs in the loop while these tests look at files
"""Bulk work: plans, tasks that can be run again, one export or none, and manifests."""

import asyncio
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bulk_exports import CHUNKS, PAGES, SNAPSHOT, export, metered
from bulk_types import Other, Page
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Allowances, Client, DataError, NotFound, QuotaExceeded, Replaced, Retry, VersionConflict
from wme_async.simulator import Simulator, World
from wme_async.tasks import (
    ChunkTask,
    Manifest,
    Plan,
    PlanProgress,
    TaskResult,
    arun_task,
    finish,
    read_manifest,
    run_plan,
    run_task,
)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(articles=2) as simulator:
        export(simulator, 1)
        yield simulator


@pytest.fixture
async def wme(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    for name, value in sim.environment().items():
        monkeypatch.setenv(name, value)
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as client:
        yield client


async def make_plan(wme: Client, to: Any, **options: Any) -> Plan:
    return await wme.snapshots.plan(SNAPSHOT, to=to, **{"type": Page, "format": "ndjson", **options})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pages(manifest: Manifest, to: Path) -> list[Page]:
    lines = [line for path in manifest.paths(str(to)) for line in Path(path).read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=Page) for line in lines]


async def run_all(plan: Plan, wme: Client) -> list[TaskResult]:
    return [await arun_task(task, wme) for task in plan.tasks]


# The plan


async def test_a_plan_costs_nothing_and_says_what_running_it_costs(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path, format="parquet")
    assert [task.chunk for task in plan.tasks] == [f"{SNAPSHOT}_chunk_{number}" for number in range(CHUNKS)]
    assert plan.cost == wme.snapshots.chunks(SNAPSHOT).cost(*range(CHUNKS))
    assert plan.bytes == sum(task.size for task in plan.tasks) > 0
    assert {task.type for task in plan.tasks} == {"bulk_types:Page"}
    assert {task.to for task in plan.tasks} == {str(tmp_path)}
    assert metered(sim) == 0


async def test_a_plan_is_json_and_can_be_pickled_and_has_no_secrets(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    plan = await make_plan(wme, tmp_path)
    assert Plan.from_json(plan.to_json()) == plan == pickle.loads(pickle.dumps(plan))
    assert ChunkTask.from_json(plan.tasks[0].to_json().encode()) == plan.tasks[0]
    text = plan.to_json()
    assert "127.0.0.1" not in text
    assert not [value for value in sim.environment().values() if value in text]
    assert len(plan.tasks[0].to_json()) < 450 + len(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tasks": []}',
        '{"tasks": [], "generation": "x", "cost": {"pool": null, "requests": 0}, "bytes": 0}',
    ],
)
def test_text_that_is_not_a_plan_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="this is not the JSON of a Plan"):
        Plan.from_json(text)


async def test_a_plan_whose_tasks_were_changed_is_an_error(wme: Client, tmp_path: Path) -> None:
    plan = json.loads((await make_plan(wme, tmp_path)).to_json())
    for change in (
        {"tasks": plan["tasks"][1:]},
        {"tasks": [{**plan["tasks"][0], "md5": "0" * 32}, *plan["tasks"][1:]]},
        {"tasks": [{**plan["tasks"][0], "to": "elsewhere"}, *plan["tasks"][1:]]},
        {"tasks": [{**plan["tasks"][0], "chunk": "../../chunk_0"}, *plan["tasks"][1:]]},
        {"generation": "0" * 16},
        {"tasks": [{**plan["tasks"][0], "md5": "../x"}, *plan["tasks"][1:]]},
    ):
        with pytest.raises(ValueError, match="this is not the JSON of a Plan"):
            Plan.from_json(json.dumps({**plan, **change}))


@given(st.dictionaries(st.integers(0, 99), st.binary(min_size=16, max_size=16), min_size=1))
def test_the_generation_depends_on_each_chunk_and_on_no_order(chunks: dict[int, bytes]) -> None:
    def plan(rows: dict[int, bytes]) -> Plan:
        return Plan.of(
            [(f"s_chunk_{number}", md5.hex(), 1) for number, md5 in rows.items()],
            snapshot="s", to="/x", format="ndjson", type="a:B", collection="snapshots", pool="chunk",
        )  # fmt: skip

    generation = plan(chunks).generation
    assert plan(dict(reversed(chunks.items()))).generation == generation
    for number, md5 in chunks.items():
        assert plan({**chunks, number: bytes(byte ^ 1 for byte in md5)}).generation != generation
        assert plan({**chunks, 100: md5}).generation != generation


async def test_the_list_of_chunks_which_lacks_small_ones_and_is_late_is_not_used(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    sim.faults.inject("status", role="api", path="/chunks$", status=403, times=9)
    assert len((await make_plan(wme, tmp_path)).tasks) == CHUNKS


async def test_metadata_that_is_older_than_its_chunk_is_asked_for_again(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any
) -> None:
    export(sim, 2, only={3}, update_metadata=False)
    planning = asyncio.create_task(make_plan(wme, tmp_path))
    await sim.requests.wait(2, role="api", path="chunk_3$", method="POST")  # it is asked for the second time
    export(sim, 2)
    plan = await planning
    assert client_clock.waits
    await run_all(plan, wme)
    assert {page.export for page in pages(await finish(plan), tmp_path)} == {2}


async def test_chunks_that_are_replaced_one_by_one_are_asked_for_again(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any
) -> None:
    sim.export_snapshot(SNAPSHOT)  # so that its record is newer than the chunks until they are replaced
    sim.clock.advance(60)
    export(sim, 2, only={0, 1, 2})
    planning = asyncio.create_task(make_plan(wme, tmp_path))
    await sim.requests.wait(2, role="api", path="chunk_11$", method="POST")
    export(sim, 2)
    plan = await planning
    await run_all(plan, wme)
    assert {page.export for page in pages(await finish(plan), tmp_path)} == {2}


async def test_chunks_whose_dates_do_not_fit_together_are_believed_in_the_end_with_a_warning(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await make_plan(wme, tmp_path)
    assert caplog.text == ""
    sim.clock.advance(21 * 3600)
    export(sim, 2, only={3})
    assert len((await make_plan(wme, tmp_path)).tasks) == CHUNKS
    assert "its chunks are from" in caplog.text
    sim.export_snapshot(SNAPSHOT)
    sim.clock.advance(60)
    export(sim, 3, only={3})
    await make_plan(wme, tmp_path)
    assert "newer than its record" in caplog.text


async def test_an_export_that_does_not_end_is_not_planned(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any
) -> None:
    export(sim, 2, only={3}, update_metadata=False)
    with pytest.raises(Replaced, match="is being exported anew"):
        await make_plan(wme, tmp_path)
    assert 2 <= sim.requests.count("api", path="chunk_3$", method="POST") <= 10


async def test_a_chunk_that_is_away_while_the_next_export_is_made_is_not_planned(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any
) -> None:
    sim.delete_object(f"chunks/{SNAPSHOT}/chunk_5.tar.gz")
    with pytest.raises(NotFound):
        await make_plan(wme, tmp_path)
    export(sim, 2)
    assert len((await make_plan(wme, tmp_path)).tasks) == CHUNKS


async def test_a_chunk_that_the_record_lacks_is_noticed(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any
) -> None:
    sim.put_object(f"chunks/{SNAPSHOT}/chunk_{CHUNKS}.tar.gz", b"the next export has one more")
    with pytest.raises(Replaced, match=f"has a chunk {CHUNKS}"):
        await make_plan(wme, tmp_path)


async def test_a_snapshot_without_chunks_is_an_error(wme: Client, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no chunks"):
        await wme.snapshots.plan("dewiki_namespace_0", to=tmp_path)


async def test_arguments_that_no_worker_could_use_are_misuse(wme: Client, tmp_path: Path) -> None:
    class Local(msgspec.Struct):
        identifier: int

    for type_ in (Local, type("Script", (), {"__module__": "__main__"}), "no name"):
        with pytest.raises(ValueError, match=r"type|module"):
            await make_plan(wme, tmp_path, type=type_)
    for not_a_class in (5, Page | Other):
        with pytest.raises(TypeError, match="type must be a class"):
            await make_plan(wme, tmp_path, type=not_a_class)
    with pytest.raises(ValueError, match="format"):
        await make_plan(wme, tmp_path, format="csv")
    for url in ("s3://key:secret@bucket/x", "s3://bucket/x?signature=secret", "s3:///x", "ftp://secret@bucket/x"):
        with pytest.raises(ValueError, match=r"bucket|must be a path") as caught:
            await make_plan(wme, url)
        assert "secret" not in str(caught.value)


# Tasks


@pytest.mark.parametrize("format", ["ndjson", "parquet"])
async def test_every_page_is_in_the_files_of_the_manifest_once(
    sim: Simulator, wme: Client, tmp_path: Path, format: str
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    plan = await make_plan(wme, tmp_path, format=format)
    results = await run_all(plan, wme)
    assert metered(sim) == CHUNKS
    manifest = await finish(plan)
    assert manifest == await read_manifest(str(tmp_path))
    assert manifest.rows == sum(result.rows for result in results) == len(PAGES)
    assert manifest.paths(str(tmp_path)) == [result.path for result in results]
    if format == "parquet":
        import pyarrow.parquet as pq

        identifiers = pq.ParquetDataset(manifest.paths(str(tmp_path))).read()["identifier"].to_pylist()
    else:
        identifiers = [page.identifier for page in pages(manifest, tmp_path)]
    assert sorted(identifiers) == list(PAGES)
    generation = [f"{plan.generation}/{task.chunk}.{end}" for task in plan.tasks for end in ("done.json", format)]
    assert files(tmp_path) == sorted([*generation, f"{plan.generation}/manifest.json", "manifest.json"])


async def test_a_task_that_is_done_is_not_read_again(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    task = (await make_plan(wme, tmp_path)).tasks[0]
    first = await arun_task(task, wme)
    sim.requests.clear()
    again = await arun_task(task)
    assert (first.skipped, again.skipped) == (False, True)
    assert msgspec.structs.replace(again, skipped=False) == first
    assert len(sim.requests) == 0


async def test_a_task_whose_output_was_removed_or_cut_is_run_again(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    task = (await make_plan(wme, tmp_path)).tasks[0]
    path = Path((await arun_task(task, wme)).path)
    content = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(content[:-1])):
        damage()
        assert not (await arun_task(task, wme)).skipped
        assert path.read_bytes() == content


async def test_the_same_task_twice_at_once_is_harmless(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    await asyncio.gather(*(arun_task(task, wme) for task in plan.tasks for _ in range(3)))
    assert sorted(page.identifier for page in pages(await finish(plan), tmp_path)) == list(PAGES)
    assert not list(tmp_path.rglob("*.part"))


async def test_records_that_do_not_decode_are_counted_and_logged(
    sim: Simulator, wme: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from wme_async.simulator import build_archive

    lines = [b'{"identifier": 1}\n', *[b'{"identifier": "x"}\n'] * 20, b'{"identifier": 2}\n']
    sim.put_object(f"chunks/{SNAPSHOT}/chunk_0.tar.gz", build_archive([("chunk_0.ndjson", lines)]))
    plan = await make_plan(wme, tmp_path)
    results = await run_all(plan, wme)
    assert (results[0].rows, results[0].bad) == (2, 20)
    assert "line 2 of chunk_0.ndjson" in caplog.text
    assert caplog.text.count("left out: ") == 5
    assert (await finish(plan)).bad == 20


async def test_a_task_that_fails_leaves_nothing(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    task = (await make_plan(wme, tmp_path)).tasks[0]
    sim.faults.inject("corrupt", role="store", times=10)
    with pytest.raises(DataError):
        await arun_task(task, wme)
    assert files(tmp_path) == []


async def test_a_cancelled_task_leaves_nothing(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    task = (await make_plan(wme, tmp_path)).tasks[0]
    sim.faults.inject("stall", role="store", after=20)
    running = asyncio.create_task(arun_task(task, wme))
    await sim.requests.wait(role="store", status=206)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert files(tmp_path) == []


async def test_a_task_cancelled_while_it_opens_its_output_leaves_nothing(
    sim: Simulator, wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = (await make_plan(wme, tmp_path)).tasks[0]
    loop, open_file = asyncio.get_running_loop(), Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = open_file(path, mode, *args, **options)
        if path.suffix == ".part":
            loop.call_soon_threadsafe(running.cancel)
            cancelled.wait()
        return file

    cancelled = threading.Event()
    monkeypatch.setattr(Path, "open", opened)
    running = asyncio.create_task(arun_task(task, wme))
    while not running.cancelling():  # noqa: ASYNC110 - a thread cancels it
        await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert files(tmp_path) == []


async def test_a_folder_is_for_one_type_and_format(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    await run_all(plan, wme)
    sim.requests.clear()
    for other in (await make_plan(wme, tmp_path, type=Other), await make_plan(wme, tmp_path, format="parquet")):
        with pytest.raises(VersionConflict, match="bulk_types:Page as ndjson"):
            await arun_task(other.tasks[0], wme)
        with pytest.raises(VersionConflict):
            await run_plan(other)
    assert metered(sim) == 0


async def test_a_type_that_has_changed_under_its_name_is_not_mixed(
    wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await make_plan(wme, tmp_path)
    await arun_task(plan.tasks[0], wme)
    monkeypatch.setattr("bulk_types.Page", Other)
    with pytest.raises(VersionConflict, match="an earlier form of bulk_types:Page"):
        await arun_task(plan.tasks[0], wme)
    for task in plan.tasks[1:]:
        await arun_task(task, wme)
    with pytest.raises(DataError, match="different types"):
        await finish(plan)


async def test_a_folder_is_for_one_snapshot(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    await run_all(plan, wme)
    await finish(plan)
    other = await wme.snapshots.plan("simplewiki_namespace_0", to=tmp_path, type=Page, format="ndjson")
    before = metered(sim)
    for run in (lambda: arun_task(other.tasks[0], wme), lambda: run_plan(other), lambda: finish(other)):
        with pytest.raises(VersionConflict, match="a folder of its own"):
            await run()
    assert metered(sim) == before


async def test_the_manifest_of_another_program_is_not_replaced(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(VersionConflict, match="another program"):
        await run_plan(plan, workers=1)
    assert metered(sim) == 0


async def test_a_type_that_is_not_there_is_an_error_before_anything_is_sent(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    plan = await make_plan(wme, tmp_path, type="no_such_module:Page")
    sim.requests.clear()
    with pytest.raises(ValueError, match="no_such_module"):
        await arun_task(plan.tasks[0], wme)
    assert len(sim.requests) == 0


async def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_spent(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    plan = await make_plan(wme, tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        await run_plan(plan, workers=1)
    with pytest.raises(NotADirectoryError):
        await arun_task(plan.tasks[0], wme)
    assert metered(sim) == 0


async def test_snapshots_of_wikidata_have_plans_too(wme: Client, tmp_path: Path) -> None:
    plan = await wme.wikidata.snapshots.plan("wikidatawiki_namespace_0", to=tmp_path, format="ndjson")
    assert {task.type for task in plan.tasks} == {"wme_async.models.wikidata:WikidataArticle"}
    results = await run_all(Plan.from_json(plan.to_json()), wme)
    assert (await finish(plan)).rows == sum(result.rows for result in results) > 0


async def test_lines_can_be_kept_as_they_are(wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path, type=msgspec.Raw)
    await run_all(plan, wme)
    assert sorted(page.identifier for page in pages(await finish(plan), tmp_path)) == list(PAGES)


async def test_only_tasks_are_run(wme: Client) -> None:
    value: Any = {"chunk": "x"}
    with pytest.raises(TypeError, match="ChunkTask"):
        await arun_task(value)
    with pytest.raises(TypeError, match="ChunkTask"):
        run_task(value)
    with pytest.raises(TypeError, match="Plan"):
        await run_plan(value)


async def test_plain_calls_from_any_thread_share_one_client(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    before = sim.requests.count("auth", path="login")
    results = await asyncio.gather(*(asyncio.to_thread(run_task, task) for task in plan.tasks[:4]))
    assert [result.chunk for result in results] == [task.chunk for task in plan.tasks[:4]]
    assert sim.requests.count("auth", path="login") == before + 1


# One export or none


async def test_a_new_export_between_two_tasks_is_an_error(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    await arun_task(plan.tasks[0], wme)
    export(sim, 2)
    with pytest.raises(Replaced) as caught:
        await arun_task(plan.tasks[1], wme)
    assert caught.value.expected == plan.tasks[1].md5
    assert metered(sim) == 1
    with pytest.raises(DataError, match=f"{CHUNKS - 1} of {CHUNKS} tasks are not done"):
        await finish(plan)


async def test_a_chunk_that_is_removed_for_the_next_export_is_an_error(
    sim: Simulator, wme: Client, tmp_path: Path, client_clock: Any
) -> None:
    plan = await make_plan(wme, tmp_path)
    sim.delete_object(f"chunks/{SNAPSHOT}/chunk_0.tar.gz")
    with pytest.raises(Replaced, match="does not exist now"):
        await arun_task(plan.tasks[0], wme)


async def test_a_chunk_that_is_replaced_while_it_is_read_is_an_error(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    plan = await make_plan(wme, tmp_path)
    sim.faults.inject("drop", role="store", after=30)
    task = asyncio.create_task(arun_task(plan.tasks[0], wme))
    await sim.requests.wait(role="store", done=True)
    export(sim, 2)
    with pytest.raises(Replaced):
        await task
    assert files(tmp_path) == []


async def test_the_manifest_of_an_older_export_stays_until_the_next_is_complete(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    first = await make_plan(wme, tmp_path)
    await run_all(first, wme)
    before = await finish(first)
    export(sim, 2)
    second = await make_plan(wme, tmp_path)
    for task in second.tasks:
        assert await read_manifest(str(tmp_path)) == before
        await arun_task(task, wme)
    after = await finish(second)
    assert await read_manifest(str(tmp_path)) == after
    assert {page.export for page in pages(before, tmp_path)} == {1}
    assert {page.export for page in pages(after, tmp_path)} == {2}


async def test_unfinished_files_of_others_are_removed_at_the_end(wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    await run_all(plan, wme)
    (tmp_path / plan.generation / f"{plan.tasks[0].output}.host.1.0.part".rpartition("/")[2]).write_bytes(b"half")
    await finish(plan)
    assert not list(tmp_path.rglob("*.part"))


async def test_a_record_of_completion_that_is_damaged_is_an_error(wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    await run_all(plan, wme)
    (tmp_path / plan.tasks[2].done).write_bytes(b"{")
    with pytest.raises(DataError, match="is damaged"):
        await finish(plan)
    with pytest.raises(DataError, match="is damaged"):
        await arun_task(plan.tasks[2], wme)


async def test_there_is_no_manifest_before_a_plan_is_finished(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no plan was finished"):
        await read_manifest(str(tmp_path))


# Processes


async def test_processes_run_a_plan_and_a_second_run_does_nothing(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    logins = sim.requests.count("auth", path="login")
    reports: list[PlanProgress] = []
    manifest = await run_plan(plan, workers=2, progress=reports.append)
    assert sorted(page.identifier for page in pages(manifest, tmp_path)) == list(PAGES)
    assert metered(sim) == CHUNKS
    # One of the driver, and one that the workers share.
    assert sim.requests.count("auth", path="login") <= logins + 2
    assert [report.tasks for report in reports] == list(range(CHUNKS + 1))
    assert reports[-1].done == reports[-1].total == plan.bytes
    assert (reports[-1].rows, reports[-1].restarts) == (len(PAGES), 0)
    sim.requests.clear()
    assert await run_plan(plan) == manifest
    assert len(sim.requests) == 0


@pytest.mark.servers
@pytest.mark.posix
async def test_a_worker_that_is_killed_is_replaced_and_its_task_run_again(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    plan = await make_plan(wme, tmp_path)
    sim.faults.inject("stall", role="store", after=20)
    running = asyncio.create_task(run_plan(plan, workers=1))
    await sim.requests.wait(role="store", timeout=20)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    manifest = await running
    assert sorted(page.identifier for page in pages(manifest, tmp_path)) == list(PAGES)
    assert metered(sim) == CHUNKS + 1
    assert not list(tmp_path.rglob("*.part"))
    assert multiprocessing.active_children() == []


@pytest.mark.servers
@pytest.mark.posix
async def test_workers_that_are_killed_again_and_again_end_the_run(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path, type="bulk_suicide:Page")
    with pytest.raises(BrokenProcessPool) as caught:
        await run_plan(plan, workers=1)
    assert "for lack of memory" in caught.value.__notes__[0]
    assert metered(sim) == 0


@pytest.mark.servers
async def test_a_new_export_in_the_middle_begins_anew(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    reports: list[PlanProgress] = []

    async def progress(report: PlanProgress) -> None:
        reports.append(report)
        if report.tasks == 5 and not report.restarts:
            export(sim, 2)

    manifest = await run_plan(plan, workers=1, progress=progress)
    copied = pages(manifest, tmp_path)
    assert sorted(page.identifier for page in copied) == list(PAGES)
    assert {page.export for page in copied} == {2}
    assert reports[-1].restarts == 1
    assert reports[-1].generation == manifest.generation != plan.generation
    spent = metered(sim)
    assert spent <= CHUNKS + 5 + 1
    # The plan of the abandoned export leads to the new one, for nothing.
    assert await run_plan(plan, workers=1) == manifest
    assert metered(sim) == spent


@pytest.mark.servers
async def test_a_run_that_is_cancelled_leaves_no_process(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    sim.faults.inject("stall", role="store", after=20)
    running = asyncio.create_task(run_plan(plan, workers=1))
    await sim.requests.wait(role="store", timeout=20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert multiprocessing.active_children() == []


@pytest.mark.servers
@pytest.mark.posix
async def test_an_interruption_from_the_terminal_ends_all_processes(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    plan = await make_plan(wme, tmp_path)
    sim.faults.inject("stall", role="store", after=20)
    code = "import asyncio, sys\nfrom wme_async.tasks import *\nasyncio.run(run_plan(Plan.from_json(sys.argv[1]), 1))"
    driver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, plan.to_json()),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    await sim.requests.wait(role="store", timeout=20)
    os.killpg(driver.pid, signal.SIGINT)  # as Ctrl-C does: the workers receive it, too
    _, errors = await asyncio.wait_for(driver.communicate(), 20)
    assert errors.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert driver.returncode not in {0, None}


@pytest.mark.servers
@pytest.mark.posix
async def test_workers_end_with_the_process_that_runs_the_plan(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    sim.faults.inject("stall", role="store", after=20)
    code = "import asyncio, sys\nfrom wme_async.tasks import *\nasyncio.run(run_plan(Plan.from_json(sys.argv[1]), 1))"
    driver = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, plan.to_json(), env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    )
    await sim.requests.wait(role="store", timeout=20)
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    assert children
    driver.kill()
    await driver.wait()
    await asyncio.to_thread(_wait_for_end, children)


def _wait_for_end(pids: list[str]) -> None:
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "the workers are still running"
        time.sleep(0.01)


def _is_running(pid: str) -> bool:
    """Return whether a process is there and not just waiting for its parent to notice its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


async def test_a_plan_that_the_allowance_does_not_cover_spends_nothing(
    sim: Simulator, wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.add_user("free", "free", ["group_1"])
    monkeypatch.setenv("WME_USERNAME", "free")
    monkeypatch.setenv("WME_PASSWORD", "free")
    sim.caps.limits = {"group_1": {"chunks": CHUNKS - 1}}
    plan = await make_plan(wme, tmp_path)
    monkeypatch.setattr("wme_async._client.account.FREE_PLAN", Allowances(chunk=CHUNKS - 1))
    with pytest.raises(QuotaExceeded, match=f"needs {CHUNKS} chunk requests"):
        await run_plan(plan, workers=1)
    assert metered(sim) == 0


@pytest.mark.servers
async def test_a_new_export_is_an_error_where_it_should_be(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    plan = await make_plan(wme, tmp_path)
    export(sim, 2)
    with pytest.raises(Replaced):
        await run_plan(plan, workers=1, on_replaced="raise")
    assert metered(sim) == 0


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"on_replaced": "never"}])
async def test_invalid_arguments_are_misuse(wme: Client, tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        await run_plan(await make_plan(wme, tmp_path), **arguments)


# Exports of a whole service, which deals its pages anew


async def test_an_export_in_the_middle_mixes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(projects=["simplewiki"], pages=40)
    async with Simulator(world=world, article_size="small") as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        async with Client(**service.client_options(), retry=Retry(base=0, cap=0)) as client:
            first = await client.snapshots.plan(
                "simplewiki_namespace_0", to=tmp_path, type=msgspec.Raw, format="ndjson"
            )
            assert len(first.tasks) > 1
            await arun_task(first.tasks[0], client)
            service.export_snapshot("simplewiki_namespace_0")
            with pytest.raises(Replaced):
                await arun_task(first.tasks[1], client)
            second = await client.snapshots.plan(
                "simplewiki_namespace_0", to=tmp_path, type=msgspec.Raw, format="ndjson"
            )
            await run_all(second, client)
        manifest = await finish(second)
    lines = [line for path in manifest.paths(str(tmp_path)) for line in Path(path).read_bytes().splitlines()]
    titles = [json.loads(line)["name"] for line in lines]
    assert set(titles) == world.exports[-1].titles
    assert len(titles) >= len(world.exports[-1].titles) > 0
