"""Syncs that are killed at random, and listings of thousands."""

import asyncio
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wme_async import Client
from wme_async.models import Batch
from wme_async.simulator import Simulator

NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
HOUR = "2026-07-15T11"
BELOW = "batches/2026-07-15/11"
LARGE = 3_000_000
LISTED = 20  # archives of the simulator's own

CHILD = """
import asyncio, json, os, sys
from wme_async import Client

async def main():
    async with Client.from_env() as wme:
        await wme.auth.login()
        print("begun", flush=True)
        report = await wme.batches(sys.argv[1]).sync(sys.argv[2], concurrency=8)
    print(json.dumps({"failed": [str(file.error) for file in report.failed], "requests": report.requests}), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def world() -> Iterator[Simulator]:
    with Simulator.run_in_thread(start=NOON, articles=2, keep_requests=100_000) as simulator:
        for number in range(60):
            size = LARGE if number % 20 == 0 else 2_000 + number
            data = random.Random(number).randbytes(size)
            simulator.call(simulator.put_object, f"{BELOW}/x{number}_namespace_0.tar.gz", data)
        yield simulator


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*.tar.gz")
    }


def start(world: Simulator, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, **world.environment()}
    command = [sys.executable, "-c", textwrap.dedent(CHILD), HOUR, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    output = process.stdout.read()
    assert process.wait() == 0
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def kill_and_go_on(world: Simulator, folder: Path, kills: int) -> None:
    """Kill a sync at random moments, and check that each finished file is whole at any time."""
    rng = random.Random(kills)

    async def expected() -> dict[str, str]:
        async with Client(**world.client_options()) as wme:
            rows = await wme.batches(HOUR).list()
        return {f"{BELOW}/{row.identifier}.tar.gz": row.version for row in rows}

    versions = asyncio.run(expected())
    world.call(lambda: world.faults.inject("delay", role="store", seconds=0.02, times=None))
    killed = 0
    while killed < kills:
        with start(world, folder) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(rng.uniform(0.0, 0.25))
            except subprocess.TimeoutExpired:
                killed += 1
                process.send_signal(signal.SIGKILL)
            else:
                # It was done before: begin again with some files fewer.
                killed += 1
                for path in rng.sample(sorted(folder.rglob("*.tar.gz")), 20):
                    path.unlink()
        finished = digests(folder)
        assert finished.items() <= versions.items(), "a file that is not whole has a name"
    with start(world, folder) as process:
        process.stdout.readline()  # type: ignore[union-attr]
        assert finish(process)["failed"] == []
    assert digests(folder) == versions
    assert not list(folder.rglob("*.part*"))
    with start(world, folder) as process:
        process.stdout.readline()  # type: ignore[union-attr]
        assert finish(process) == {"failed": [], "requests": 1}


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_a_sync_that_is_killed_50_times_ends_equal_to_the_listing(world: Simulator, tmp_path: Path) -> None:
    kill_and_go_on(world, tmp_path / "data", 50)


@pytest.mark.servers
def test_a_kill_costs_no_more_than_what_was_in_flight(world: Simulator, tmp_path: Path) -> None:
    """Kill once in the middle; all but what was under way, or waited for its flush, is not fetched again."""
    folder = tmp_path / "data"
    world.call(lambda: world.faults.inject("delay", role="store", seconds=0.1, times=None))
    with start(world, folder) as process:
        process.stdout.readline()  # type: ignore[union-attr]
        while sum(1 for _ in folder.rglob("*.tar.gz")) < 20 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = digests(folder)
    assert len(done) >= 20
    before = sum(request.role == "store" for request in world.requests)
    world.call(world.faults.clear)
    with start(world, folder) as process:
        process.stdout.readline()  # type: ignore[union-attr]
        assert finish(process)["failed"] == []
    fetched = sum(request.role == "store" for request in world.requests) - before
    assert len(digests(folder)) == 60 + LISTED
    assert not list(folder.rglob("*.part*"))
    # Ranges of the three large files may have been left in parts.
    assert fetched <= len(digests(folder)) - len(done) + 9


async def sync_thousands(count: int, folder: Path) -> int:
    """Sync a listing of many small files, and return the growth of this process's memory in bytes."""
    async with Simulator(start=NOON, articles=1, keep_requests=100) as sim:
        data = os.urandom(1000)
        for number in range(count):
            sim.put_object(f"{BELOW}/x{number}_namespace_0.tar.gz", data)
        async with Client(**sim.client_options()) as wme:
            hour = wme.batches(HOUR)
            rows: list[Batch] = await hour.list()
            assert len(rows) >= count
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            report = await hour.sync(folder)
            assert report.complete
            assert len(report.new) == len(rows)
            growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            again = await hour.sync(folder)
            assert again.requests == 1
            assert len(again.unchanged) == len(rows)
            return growth


async def test_hundreds_of_files_take_little_memory(tmp_path: Path) -> None:
    assert await sync_thousands(300, tmp_path) < 60_000_000


@pytest.mark.torture
@pytest.mark.timeout(1200)
async def test_10_000_files_take_little_memory(tmp_path: Path) -> None:
    assert await sync_thousands(10_000, tmp_path) < 60_000_000
