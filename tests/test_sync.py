"""Folders made equal to a listing: what is fetched, what is left alone, what is removed, and what goes wrong."""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import stat
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from download_store import leftovers
from hypothesis import given
from hypothesis import strategies as st

from wme_async import (
    Allowances,
    Budget,
    Client,
    ClientClosed,
    DataError,
    IntegrityError,
    NotFound,
    QuotaExceeded,
    Retry,
    ServerError,
    SyncFile,
    SyncProgress,
    Timeouts,
)
from wme_async._client import sync_plan  # private: pure
from wme_async.models import Batch
from wme_async.models.metadata import Size
from wme_async.simulator import Simulator

NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
HOUR = "2026-07-15T11"
BELOW = "batches/2026-07-15/11"
EN = {"in_language.identifier": "en"}
STATE = ".wme-sync.db"


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(start=NOON, articles=2) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    retry = Retry(attempts=3, base=0.002, cap=0.01)
    async with Client(**sim.client_options(), retry=retry, timeouts=Timeouts(read=2.0)) as client:
        await client.auth.login()
        sim.requests.clear()
        yield client


@pytest.fixture
def other_client(sim: Simulator) -> Callable[[], Client]:
    return lambda: Client(**sim.client_options())


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder but for those of the sync itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".wme-sync")
    }


def parts_in(folder: Path) -> list[str]:
    return [name for name in files_in(folder) if ".part" in name]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened that the simulator does not announce."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.005)


def key_of(identifier: str) -> str:
    return f"{BELOW}/{identifier}.tar.gz"


def identifiers(files: Iterable[SyncFile]) -> set[str]:
    return {file.identifier for file in files}


def seen(sim: Simulator) -> dict[str, int]:
    counts: dict[str, int] = {}
    for request in sim.requests:
        last = "" if request.role == "store" else " download" if "/download" in request.path else " list"
        short = f"{request.role} {request.method}{last}"
        counts[short] = counts.get(short, 0) + 1
    return counts


async def listed(wme: Client, filters: Any = None) -> dict[str, str]:
    return {row.identifier: row.version for row in await wme.batches(HOUR).list(filters=filters)}


# --- what is fetched


async def test_every_listed_file_arrives_for_two_requests_and_one_list(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    versions = await listed(wme)
    sim.requests.clear()
    report = await wme.batches(HOUR).sync(tmp_path / "data")
    files = files_in(tmp_path / "data")
    assert {name: hashlib.md5(data).hexdigest() for name, data in files.items()} == {
        key_of(identifier): version for identifier, version in versions.items()
    }
    count = len(versions)
    assert seen(sim) == {"api POST list": 1, "api GET download": count, "store GET": count}
    assert identifiers(report.new) == versions.keys()
    assert {file.path for file in report.new} == {tmp_path / "data" / name for name in files}
    assert report.bytes == sum(map(len, files.values())) == sum(file.size for file in report.new)
    assert report.requests == 2 * count + 1
    assert report.complete
    assert not report.changed
    assert not report.unchanged
    assert not report.failed
    assert not report.removed
    assert report.seconds > 0


async def test_a_second_run_costs_one_list_and_reads_no_file(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    hour = wme.batches(HOUR)
    first = await hour.sync(tmp_path)
    for file in first.new:
        # Unreadable, even for root: it would block.
        modified = file.path.stat().st_mtime_ns
        os.utime(file.path, ns=(0, modified))
    sim.requests.clear()
    second = await hour.sync(tmp_path)
    assert seen(sim) == {"api POST list": 1}
    assert second.requests == 1
    assert identifiers(second.unchanged) == identifiers(first.new)
    assert not second.new
    assert not second.bytes
    assert all(file.path.stat().st_atime_ns == 0 for file in first.new)


async def test_the_state_is_for_its_owner_alone_and_nothing_else_is_left(wme: Client, tmp_path: Path) -> None:
    await wme.batches(HOUR).sync(tmp_path)
    assert stat.S_IMODE((tmp_path / STATE).stat().st_mode) == 0o600
    assert leftovers(tmp_path) == [STATE, "batches"]
    assert not parts_in(tmp_path)


async def test_what_has_changed_is_replaced_and_nothing_else_is_fetched(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path)
    sim.put_object(key_of("enwiki_namespace_0"), b"new" * 1000)
    sim.requests.clear()
    report = await hour.sync(tmp_path)
    assert identifiers(report.changed) == {"enwiki_namespace_0"}
    assert (tmp_path / key_of("enwiki_namespace_0")).read_bytes() == b"new" * 1000
    assert report.requests == 3
    assert report.bytes == 3000


async def test_a_file_that_is_gone_or_was_written_to_is_fetched_again(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path)
    before = files_in(tmp_path)
    (tmp_path / key_of("enwiki_namespace_0")).unlink()
    (tmp_path / key_of("dewiki_namespace_0")).write_bytes(b"mine")
    report = await hour.sync(tmp_path)
    assert identifiers(report.new) == {"enwiki_namespace_0"}
    assert identifiers(report.changed) == {"dewiki_namespace_0"}
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["snapshots", "chunks", "structured", "wikidata snapshots", "wikidata batches"])
async def test_every_kind_of_archive_can_be_synced(sim: Simulator, wme: Client, tmp_path: Path, kind: str) -> None:
    archives: Any = {
        "snapshots": wme.snapshots,
        "chunks": wme.snapshots.chunks("enwiki_namespace_0"),
        "structured": wme.structured_snapshots,
        "wikidata snapshots": wme.wikidata.snapshots,
        "wikidata batches": wme.wikidata.batches(HOUR),
    }[kind]
    rows = await archives.list()
    report = await archives.sync(tmp_path)
    assert identifiers(report.new) == {row.identifier for row in rows}
    assert report.complete
    expected = {row.version for row in rows}
    assert {hashlib.md5(data).hexdigest() for data in files_in(tmp_path).values()} == expected
    assert (await archives.sync(tmp_path)).requests == 1


async def test_large_files_come_in_ranges_beside_small_ones(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    large = os.urandom(6_000_000)
    sim.put_object(key_of("enwiki_namespace_0"), large)
    report = await wme.batches(HOUR).sync(tmp_path)
    assert report.complete
    assert (tmp_path / key_of("enwiki_namespace_0")).read_bytes() == large
    assert "api HEAD download" not in seen(sim)
    assert (await wme.batches(HOUR).sync(tmp_path)).requests == 1


async def test_filters_choose_and_names_follow_a_template(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN, name="{date}_{hour}/{identifier}")
    versions = await listed(wme, EN)
    assert set(files_in(tmp_path)) == {f"2026-07-15_11/{identifier}.tar.gz" for identifier in versions}
    assert identifiers(report.new) == versions.keys()


async def test_a_version_in_the_name_keeps_the_old_file(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path, name="{identifier}-{version}")
    old = set(files_in(tmp_path))
    sim.put_object(key_of("enwiki_namespace_0"), b"new" * 1000)
    report = await hour.sync(tmp_path, name="{identifier}-{version}")
    assert identifiers(report.new) == {"enwiki_namespace_0"}
    assert set(files_in(tmp_path)) - old == {f"enwiki_namespace_0-{hashlib.md5(b'new' * 1000).hexdigest()}.tar.gz"}


async def test_latest_is_synced_with_one_list(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    hour = wme.batches("latest")
    report = await hour.sync(tmp_path)
    assert seen(sim)["api POST list"] == 1
    assert report.complete
    assert all(name.startswith(BELOW) for name in files_in(tmp_path))


# --- dry runs and progress


async def test_a_dry_run_says_what_would_happen_and_does_nothing(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    report = await wme.snapshots.sync(tmp_path / "data", dry_run=True)
    assert report.dry_run
    assert len(report.new) == report.cost.requests > 0
    assert report.cost.pool == "snapshot"
    assert report.bytes == sum(file.size for file in report.new) > 0
    assert seen(sim) == {"api POST list": 1}
    assert not (tmp_path / "data").exists()
    await wme.batches(HOUR).sync(tmp_path, filters=EN)
    before = (tmp_path / STATE).read_bytes()
    (tmp_path / key_of("enwiki_namespace_0")).unlink()
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN, dry_run=True)
    assert identifiers(report.new) == {"enwiki_namespace_0"}
    assert report.unchanged
    assert report.cost.requests == 0
    assert (tmp_path / STATE).read_bytes() == before


async def test_a_dry_run_tells_what_another_tool_has_put_there(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    await wme.batches(HOUR).sync(tmp_path, filters=EN)
    (tmp_path / STATE).unlink()
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN, dry_run=True)
    assert not report.new
    assert not report.changed
    assert report.unchanged
    assert not (tmp_path / STATE).exists()


@pytest.mark.parametrize("is_async", [False, True])
async def test_progress_ends_with_everything_done(sim: Simulator, wme: Client, tmp_path: Path, is_async: bool) -> None:
    steps: list[SyncProgress] = []

    async def later(step: SyncProgress) -> None:
        steps.append(step)

    sim.put_object(key_of("enwiki_namespace_0"), os.urandom(3_000_000))
    report = await wme.batches(HOUR).sync(tmp_path, progress=later if is_async else steps.append)
    assert steps[-1].files == steps[-1].files_total == len(report.new)
    assert steps[-1].done == steps[-1].total == report.bytes
    assert all(step.done <= step.total for step in steps)
    assert [step.files for step in steps] == sorted(step.files for step in steps)


async def test_what_progress_raises_ends_the_sync_and_the_next_call_goes_on(wme: Client, tmp_path: Path) -> None:
    def stop(step: SyncProgress) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        await wme.batches(HOUR).sync(tmp_path, progress=stop)
    assert (await wme.batches(HOUR).sync(tmp_path)).complete


async def test_max_rate_holds_for_all_files_together(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    report = await wme.batches(HOUR).sync(tmp_path, max_rate=100_000)
    # The bucket may be overdrawn by what is under way at the beginning.
    assert report.seconds > 0.2 * report.bytes / 100_000 - 0.1
    assert report.complete


async def test_a_budget_is_shared(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    budget = Budget(connections=2)
    assert (await wme.batches(HOUR).sync(tmp_path, budget=budget)).complete
    with pytest.raises(ValueError, match="budget"):
        await wme.batches(HOUR).sync(tmp_path, budget=budget, max_rate=1000)


# --- removing


async def test_only_what_was_synced_by_the_same_filters_and_is_unlisted_is_removed(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / BELOW / "xx_namespace_0.tar.gz").write_bytes(b"mine too")
    before = files_in(tmp_path)
    # The list is that of English alone, as if all others had vanished; but that is another set of filters.
    report = await hour.sync(tmp_path, filters=EN, delete=True)
    assert not report.removed
    assert files_in(tmp_path) == before
    sim.delete_object(key_of("enwiki_namespace_0"), update_metadata=True)
    report = await hour.sync(tmp_path, filters=EN, delete=True, max_delete=1.0)
    # The sync without filters has put it there too.
    assert not report.removed
    assert files_in(tmp_path) == before


async def test_what_the_listing_lacks_is_removed_on_request(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path)
    path = tmp_path / key_of("enwiki_namespace_0")
    sim.delete_object(key_of("enwiki_namespace_0"), update_metadata=True)
    assert not (await hour.sync(tmp_path)).removed
    assert path.exists()
    dry = await hour.sync(tmp_path, delete=True, dry_run=True)
    assert [file.path for file in dry.removed] == [path]
    assert path.exists()
    report = await hour.sync(tmp_path, delete=True)
    assert [file.path for file in report.removed] == [path]
    assert identifiers(report.removed) == {"enwiki_namespace_0"}
    assert not path.exists()
    assert not (await hour.sync(tmp_path, delete=True)).removed


async def test_a_file_that_somebody_has_written_to_is_not_removed(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path)
    path = tmp_path / key_of("enwiki_namespace_0")
    path.write_bytes(b"mine now")
    sim.delete_object(key_of("enwiki_namespace_0"), update_metadata=True)
    assert not (await hour.sync(tmp_path, delete=True)).removed
    assert path.read_bytes() == b"mine now"


async def test_more_than_max_delete_is_an_error_and_nothing_happens(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path)
    before = files_in(tmp_path)
    for identifier in list(await listed(wme))[:5]:
        sim.delete_object(key_of(identifier), update_metadata=True)
    sim.requests.clear()
    with pytest.raises(DataError, match="max_delete"):
        await hour.sync(tmp_path, delete=True)
    assert seen(sim) == {"api POST list": 1}
    assert files_in(tmp_path) == before
    assert len((await hour.sync(tmp_path, delete=True, max_delete=0.5)).removed) == 5


async def test_an_empty_listing_removes_nothing(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    filters = {"in_language.identifier": "en"}
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path, filters=filters)
    before = files_in(tmp_path)
    for identifier in await listed(wme, filters):
        sim.delete_object(key_of(identifier), update_metadata=True)
    with pytest.raises(DataError, match="empty"):
        await hour.sync(tmp_path, filters=filters, delete=True, max_delete=1.0)
    assert files_in(tmp_path) == before
    assert (await hour.sync(tmp_path, filters=filters)).complete


async def test_hours_older_than_keep_are_removed_with_their_folders(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    for hour in ("08", "09", "10"):
        await wme.batches(f"2026-07-15T{hour}").sync(tmp_path, filters=EN)
    (tmp_path / "batches/2026-07-15/09/notes").write_text("mine")
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN, keep=timedelta(hours=1))
    assert report.removed
    names = set(files_in(tmp_path))
    assert {name.split("/")[2] for name in names} == {"09", "10", "11"}
    assert [name for name in names if "/09/" in name] == ["batches/2026-07-15/09/notes"]
    assert not (tmp_path / "batches/2026-07-15/08").exists()
    with pytest.raises(ValueError, match="keep"):
        await wme.snapshots.sync(tmp_path, keep=timedelta(days=1))


# --- what goes wrong


async def test_one_failure_does_not_stop_the_others(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    sim.faults.inject("status", role="store", status=500, path="enwiki_namespace_0", times=None)
    report = await wme.batches(HOUR).sync(tmp_path)
    [failure] = report.failed
    assert failure.identifier == "enwiki_namespace_0"
    assert isinstance(failure.error, ServerError)
    assert not report.complete
    assert len(report.new) == len(await listed(wme)) - 1
    assert not failure.path.exists()
    sim.faults.clear()
    sim.requests.clear()
    report = await wme.batches(HOUR).sync(tmp_path)
    assert identifiers(report.new) == {"enwiki_namespace_0"}


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("status", {"status": 503}),
        ("expire", {}),
        ("reset", {}),
        ("drop", {"after": 100}),
        ("short", {"missing": 10, "honest": False}),
        ("ignore_range", {}),
        ("content_range", {}),
        ("encoding", {"real": True}),
        ("corrupt", {}),
        ("empty", {}),
    ],
    ids=str,
)
async def test_trouble_that_passes_is_survived(
    sim: Simulator, wme: Client, tmp_path: Path, kind: str, details: dict[str, Any]
) -> None:
    fault = sim.faults.inject(kind, role="store", path="enwiki_namespace_0", **details)
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN)
    assert fault.hits == 1
    assert report.complete
    assert {hashlib.md5(data).hexdigest() for data in files_in(tmp_path).values()} == set(
        (await listed(wme, EN)).values()
    )


async def test_damage_that_stays_is_a_failure_and_no_file(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    sim.faults.inject("corrupt", role="store", path="enwiki_namespace_0", times=None)
    [failure] = (await wme.batches(HOUR).sync(tmp_path, filters=EN)).failed
    assert isinstance(failure.error, IntegrityError)
    assert not any("enwiki_namespace_0" in name for name in files_in(tmp_path))


async def sync_with_change(sim: Simulator, wme: Client, folder: Path, change: Callable[[], object]) -> Any:
    """Sync while the service changes after it has sent the list and before it answers any download."""
    hour = wme.batches(HOUR)
    sim.faults.inject("delay", role="api", path="/download", seconds=0.05, times=None)

    def changing(step: SyncProgress) -> None:
        nonlocal change
        change()
        change = lambda: None  # noqa: E731

    return await hour.sync(folder, filters=EN, progress=changing)


async def test_an_archive_that_vanishes_after_the_list_is_a_failure(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    report = await sync_with_change(sim, wme, tmp_path, lambda: sim.delete_object(key_of("enwiki_namespace_0")))
    [failure] = report.failed
    assert isinstance(failure.error, NotFound)
    assert failure.identifier == "enwiki_namespace_0"
    assert report.new
    assert not any("enwiki_namespace_0" in name for name in files_in(tmp_path))


async def test_a_listing_that_changes_meanwhile_brings_the_new_version(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    data = b"newer" * 500
    report = await sync_with_change(sim, wme, tmp_path, lambda: sim.put_object(key_of("enwiki_namespace_0"), data))
    assert report.complete
    assert (tmp_path / key_of("enwiki_namespace_0")).read_bytes() == data
    assert hashlib.md5(data).hexdigest() in {file.version for file in report.new}
    assert (await wme.batches(HOUR).sync(tmp_path, filters=EN)).requests == 1


async def test_an_archive_that_is_newer_than_its_metadata_is_taken_and_fetched_once(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    data = b"newer" * 500
    sim.put_object(key_of("enwiki_namespace_0"), data, update_metadata=False)
    hour = wme.batches(HOUR)
    assert (await hour.sync(tmp_path, filters=EN)).complete
    assert (tmp_path / key_of("enwiki_namespace_0")).read_bytes() == data
    assert (await hour.sync(tmp_path, filters=EN)).requests == 1
    # The metadata follows.
    sim.put_object(key_of("enwiki_namespace_0"), data)
    assert (await hour.sync(tmp_path, filters=EN)).requests == 1


async def test_a_full_disk_fails_what_does_not_fit_and_costs_no_signature(
    sim: Simulator, wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.put_object(key_of("enwiki_namespace_0"), os.urandom(900_000))
    real = os.statvfs

    def small_disk(path: Any) -> Any:
        status = real(path)
        free = 800_000
        return os.statvfs_result((1, 1, status.f_blocks, free, free, *tuple(status)[5:10]))

    monkeypatch.setattr(os, "statvfs", small_disk)
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN)
    [failure] = report.failed
    assert isinstance(failure.error, OSError)
    assert failure.identifier == "enwiki_namespace_0"
    assert report.new
    assert not [r for r in sim.requests if "enwiki_namespace_0/download" in r.path]
    monkeypatch.undo()
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN)
    assert identifiers(report.new) == {"enwiki_namespace_0"}


@pytest.mark.posix
async def test_a_write_that_fails_leaves_no_file_and_the_rest_goes_on(
    sim: Simulator, wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    sim.put_object(key_of("enwiki_namespace_0"), b"x" * 30_000)

    def full(descriptor: int, data: Any, offset: int) -> int:
        if len(data) == 30_000:
            raise OSError(28, "full")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN)
    assert [(file.identifier, getattr(file.error, "errno", None)) for file in report.failed] == [
        ("enwiki_namespace_0", 28)
    ]
    assert not any("enwiki_namespace_0" in name for name in files_in(tmp_path))
    monkeypatch.undo()
    assert (await wme.batches(HOUR).sync(tmp_path, filters=EN)).complete


async def test_a_folder_in_the_place_of_a_file_fails_that_file(wme: Client, tmp_path: Path) -> None:
    (tmp_path / key_of("enwiki_namespace_0")).mkdir(parents=True)
    report = await wme.batches(HOUR).sync(tmp_path, filters=EN)
    [failure] = report.failed
    assert isinstance(failure.error, IsADirectoryError)
    assert report.new


async def test_quota_that_runs_out_stops_and_the_next_month_goes_on(sim: Simulator, tmp_path: Path) -> None:
    sim.caps.limits["group_3"] = {"snapshots": 5, "chunks": 5, "ondemand": 5}
    options = {**sim.client_options(), "allowances": Allowances(snapshot=5)}
    async with Client(**options) as wme:
        rows = await wme.snapshots.list()
        report = await wme.snapshots.sync(tmp_path, concurrency=2)
        assert isinstance(report.stopped, QuotaExceeded)
        assert len(report.new) == len(files_in(tmp_path)) == 5
        assert not report.failed
        assert identifiers(report.pending) | identifiers(report.new) == {row.identifier for row in rows}
        assert not report.complete
        # Once more in the same month nothing is fetched, and nothing is lost.
        again = await wme.snapshots.sync(tmp_path, concurrency=2)
        assert len(again.unchanged) == 5
        assert again.stopped is not None
    sim.clock.advance(31 * 86_400)
    async with Client(**options) as wme:
        # All snapshots are of a new day. Those that are missing come first, or a sync would never get to them.
        later = await wme.snapshots.sync(tmp_path, concurrency=2)
        assert not identifiers(later.new) & identifiers(report.new)
        assert len(later.new) == 5
        assert not later.changed
        assert len(files_in(tmp_path)) == 10


async def test_entries_whose_names_collide_are_an_error_before_any_file_is_requested(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    for name in ("all", "{kind}", "{date}/{hour}"):
        with pytest.raises(ValueError, match="one name"):
            await wme.batches(HOUR).sync(tmp_path, name=name)
    assert not sim.requests
    sim.put_object(f"{BELOW}/ENwiki_namespace_0.tar.gz", b"x" * 1000)
    with pytest.raises(ValueError, match="differ only in case"):
        await wme.batches(HOUR).sync(tmp_path)
    assert seen(sim) == {"api POST list": 1}
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"max_delete": 1.1},
        {"max_delete": -0.1},
        {"max_delete": "all"},
        {"delete": "yes"},
        {"dry_run": 1},
        {"keep": timedelta(0)},
        {"keep": 7},
        {"progress": "bar"},
        {"budget": 3},
        {"max_rate": 0},
        {"name": "{nothing}"},
        {"name": "../{identifier}"},
        {"name": 3},
        {"filters": {"nothing": "x"}},
    ],
    ids=str,
)
async def test_wrong_options_are_an_error_before_anything_is_sent_or_created(
    sim: Simulator, wme: Client, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        await wme.batches(HOUR).sync(tmp_path / "data", **options)
    assert not sim.requests
    assert not (tmp_path / "data").exists()


async def test_a_list_that_is_not_there_creates_no_folder(wme: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await wme.batches("2026-07-15T12").sync(tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.name != STATE]


async def test_two_syncs_of_one_folder_are_refused_in_words(
    sim: Simulator, wme: Client, other_client: Callable[[], Client], tmp_path: Path
) -> None:
    sim.faults.inject("hang_head", role="api", path="/download", times=None)
    async with other_client() as other, asyncio.TaskGroup() as group:
        first = group.create_task(wme.batches(HOUR).sync(tmp_path))
        await until(lambda: any("/download" in request.path for request in sim.requests))
        with pytest.raises(BlockingIOError, match="another sync of this folder"):
            await other.batches(HOUR).sync(tmp_path)
        first.cancel()
    sim.faults.clear()
    assert (await wme.batches(HOUR).sync(tmp_path)).complete


async def test_a_sync_that_is_cancelled_while_it_begins_leaves_the_folder_unlocked(wme: Client, tmp_path: Path) -> None:
    for turns in range(0, 200, 4):
        sync = asyncio.create_task(wme.batches(HOUR).sync(tmp_path, filters=EN))
        for _ in range(turns):
            await asyncio.sleep(0)
        sync.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sync
    assert (await wme.batches(HOUR).sync(tmp_path, filters=EN)).complete


async def test_a_client_that_is_closed_ends_the_sync(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    sim.faults.inject("hang_head", role="api", path="/download", times=None)
    task = asyncio.create_task(wme.batches(HOUR).sync(tmp_path))
    await until(lambda: any("/download" in request.path for request in sim.requests))
    await wme.aclose()
    with pytest.raises(ClientClosed):
        await task


@pytest.mark.parametrize("content", [b"no database", b""])
async def test_a_foreign_file_of_the_name_of_the_state(wme: Client, tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    if content:
        with pytest.raises(DataError, match="move it away"):
            await wme.batches(HOUR).sync(tmp_path, filters=EN)
        assert (tmp_path / STATE).read_bytes() == content
    else:
        assert (await wme.batches(HOUR).sync(tmp_path, filters=EN)).complete


async def test_a_database_of_another_program_is_not_written_to(wme: Client, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / STATE) as database:
        database.execute("CREATE TABLE files (mine)")
    database.close()
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(DataError, match="move it away"):
        await wme.batches(HOUR).sync(tmp_path, filters=EN)
    assert (tmp_path / STATE).read_bytes() == before


async def test_a_folder_that_another_tool_wrote_is_compared_by_its_bytes_once(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path / "first", filters=EN)
    for name, data in files_in(tmp_path / "first").items():
        path = tmp_path / "second" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    stale = tmp_path / "second" / key_of("enwiki_namespace_0")
    stale.write_bytes(b"an older one")
    (tmp_path / "second" / "README").write_text("of the tool")
    sim.requests.clear()
    report = await hour.sync(tmp_path / "second", filters=EN)
    assert identifiers(report.changed) == {"enwiki_namespace_0"}
    assert report.unchanged
    assert not report.new
    assert report.requests == 3
    assert files_in(tmp_path / "second") == {**files_in(tmp_path / "first"), "README": b"of the tool"}
    assert (await hour.sync(tmp_path / "second", filters=EN, delete=True)).requests == 1


async def test_a_folder_that_cannot_be_listed_is_not_fetched_again(
    sim: Simulator, wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of mode `-wx`: its files can be examined by name."""
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path, filters=EN)

    def unlisted(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "iterdir", unlisted)
    sim.requests.clear()
    report = await hour.sync(tmp_path, filters=EN)
    assert report.unchanged
    assert not report.new
    assert report.requests == 1


async def test_a_folder_is_not_examined_in_the_event_loop(
    wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the folder may hang, as that of a network does."""
    threads: list[threading.Thread] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            threads.append(threading.current_thread())
            return function(*arguments)

        return call

    monkeypatch.setattr(Path, "is_dir", noted(Path.is_dir))
    monkeypatch.setattr(os, "statvfs", noted(os.statvfs))
    hour = wme.batches(HOUR)
    await hour.download("enwiki_namespace_0", tmp_path)
    await hour.sync(tmp_path / "other", filters={**EN, "is_part_of.identifier": "enwiki"})
    assert threads
    assert threading.current_thread() not in threads


async def test_what_an_earlier_process_had_fetched_is_not_fetched_again(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    hour = wme.batches(HOUR)
    await hour.sync(tmp_path / "first", filters=EN)
    names = files_in(tmp_path / "first")
    # As a killed process leaves them: whole, and not yet named.
    for name, data in names.items():
        path = tmp_path / "second" / f"{name}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "second" / f"{key_of('enwiki_namespace_0')}.part").write_bytes(b"half")
    report = await hour.sync(tmp_path / "second", filters=EN)
    assert report.requests == 3
    assert files_in(tmp_path / "second") == names


async def test_a_cancelled_sync_keeps_what_it_has_fetched(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    sim.faults.inject("hang_head", role="api", path="enwiki_namespace_0/download", times=None)
    task = asyncio.create_task(wme.batches(HOUR).sync(tmp_path))
    others = len(await listed(wme)) - 1
    # Only names are looked at: a file under its temporary name may be gone before it could be read.
    await until(lambda: len(list(tmp_path.rglob("*.tar.gz"))) >= others)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sim.faults.clear()
    report = await wme.batches(HOUR).sync(tmp_path)
    assert report.complete
    assert identifiers(report.new) == {"enwiki_namespace_0"}


@pytest.mark.parametrize(("value", "unit"), [(5.0, "XB"), (1.7e308, "MB"), (1e300, "MB"), (-5.0, "MB"), (5.0, "")])
async def test_a_size_that_cannot_be_true_counts_as_unknown(
    sim: Simulator, wme: Client, tmp_path: Path, value: float, unit: str
) -> None:
    [record] = [
        record for record in await wme.batches(HOUR).list(filters=EN) if record.identifier == "enwiki_namespace_0"
    ]
    row = {"identifier": record.identifier, "version": record.version, "size": {"value": value, "unit_text": unit}}
    body = json.dumps([row])
    sim.faults.inject("status", role="api", method="POST", path="/11$", status=200, body=body, times=None)
    report = await wme.batches(HOUR).sync(tmp_path)
    assert identifiers(report.new) == {"enwiki_namespace_0"}
    async with wme.batches(HOUR).read_all() as records:
        assert [record.identifier async for record, _ in records]


# --- decisions


def entry_of(version: str = "a" * 32, size: int | None = 1000) -> Any:
    return sync_plan.Entry(identifier="x", name="x.tar.gz", version=version, size=size)


MD5 = st.sampled_from(["a" * 32, "b" * 32, "c" * 32])


@given(version=MD5, known=MD5, for_listed=MD5, size=st.integers(0, 3), mtime=st.integers(0, 3))
def test_a_file_is_current_only_if_it_is_as_noted_and_of_a_version_that_was_listed(
    version: str, known: str, for_listed: str, size: int, mtime: int
) -> None:
    state = sync_plan.FileState(version=known, listed=for_listed, size=1, mtime_ns=1)
    current = sync_plan.is_current(entry_of(version), state, size, mtime)
    if (size, mtime) != (1, 1):
        assert current is None
    else:
        assert current == (version in {known, for_listed})
    assert sync_plan.is_current(entry_of(version), None, size, mtime) is None
    assert sync_plan.is_current(entry_of(""), state, 1, 1) is None


@given(recorded=st.integers(0, 200), lacking=st.integers(0, 200), share=st.floats(0, 1))
def test_no_more_than_the_share_is_removed(recorded: int, lacking: int, share: float) -> None:
    lacking = min(lacking, recorded)
    state = sync_plan.FileState(version="a", listed="a", size=1, mtime_ns=1)
    files = {str(number): state for number in range(lacking)}
    if lacking > share * recorded:
        with pytest.raises(DataError, match="nothing was removed"):
            sync_plan.check_removals(files, recorded, 1, share)
    else:
        sync_plan.check_removals(files, recorded, 1, share)
    with pytest.raises(DataError, match="empty"):
        sync_plan.check_removals({}, recorded, 0, share)


@given(st.lists(st.text("aAbBéÉ", min_size=1, max_size=3), unique=True, max_size=6))
def test_names_that_are_one_file_on_some_disk_are_refused(names: list[str]) -> None:
    records = [Batch(identifier=name, version="A" * 32) for name in names]
    keys = {unicodedata.normalize("NFC", name).casefold() for name in names}
    if len(keys) < len(names):
        with pytest.raises(ValueError, match="get one name"):
            sync_plan.entries_of(records, lambda record: record.identifier)
    else:
        entries = sync_plan.entries_of(records, lambda record: record.identifier)
        assert {entry.name for entry in entries} == set(names)
        assert all(entry.version == "a" * 32 and entry.size is None and not entry.is_small for entry in entries)


def test_the_largest_comes_first() -> None:
    sizes = [0.001, 5.0, 0.2, 0.0]
    records = [Batch(identifier=str(size), size=Size(value=size, unit_text="MB"), version="a" * 32) for size in sizes]
    entries = sync_plan.entries_of(records, lambda record: record.identifier)
    assert [entry.size for entry in entries] == [5_000_000, 200_000, 1000, None]
    assert [entry.is_small for entry in entries] == [False, True, True, False]
