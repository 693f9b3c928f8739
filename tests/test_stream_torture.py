"""The firehose in real processes: cut at random bytes, killed at random moments, and then counted.

The long runs are those of `nox -s torture`; the short ones are the same with smaller numbers.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from stream_server import CHILD, server

FILTERED = {"fields": ["name", "event.type"], "filters": {"event.type": "delete"}}


@contextmanager
def consumer(options: dict[str, Any]) -> Iterator["subprocess.Popen[bytes]"]:
    # A pipe that nobody reads would be full of warnings after some hundreds of outages.
    with (
        errors_of(Path(options["log"])).open("wb") as errors,
        subprocess.Popen(
            [sys.executable, str(CHILD), "consume", json.dumps(options)], stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def errors_of(log: Path) -> Path:
    """Return the file of the messages of a process that writes a log."""
    return log.with_name("errors")


def settings(tmp_path: Path, client: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        **client,
        "log": str(tmp_path / "log"),
        "offsets": str(tmp_path / "offsets.db"),
        "tokens": str(tmp_path / "tokens.json"),
        "framing": "ndjson",
        "connections": 1,
        "commit_interval": 0.1,
        **options,
    }


def read_log(path: Path) -> list[tuple[int, int, int]]:
    """Return the events that were processed, as process, partition and offset."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in lines[:-1])]


def saved(path: Path) -> dict[int, int]:
    """Return the saved offset of each partition."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute('SELECT partition, "offset" FROM wme_offsets'))


def wait_for(reading: "subprocess.Popen[bytes]", log: Path, count: int, patience: float) -> None:
    """Wait until so many events are processed; progress begins the patience anew."""
    seen, since = -1, time.monotonic()
    while seen < count:
        size = log.read_bytes().count(b"\n") if log.exists() else 0
        if size > seen:
            seen, since = size, time.monotonic()
        assert reading.poll() is None, errors_of(log).read_text()[-3000:]
        assert time.monotonic() - since < patience, f"{seen} of {count} events, and then no more"
        time.sleep(0.02)


def cut_at_random(tmp_path: Path, *, cuts: int, events: int, size: int, patience: float, **options: Any) -> int:
    """Read all events over so many cuts, and count: none lost, none twice, in order. Return the number of cuts."""
    rate = options.pop("rate", 1e9)
    with server(events=events, rate=rate, cuts=["reset", "truncated", "clean"], bytes=size) as serving:
        reader_options = settings(tmp_path, serving.client, **options)
        log = Path(reader_options["log"])
        kinds = ("delete",) if "filters" in options else ("update", "delete")
        with consumer(reader_options) as reading:
            while not serving.ask("status")["done"]:
                wait_for(reading, log, 1, patience)
                time.sleep(0.05)
            answer = serving.ask("expected")
            expected = [tuple(place) for kind in kinds for place in answer["expected"][kind]]
            wait_for(reading, log, len(expected), patience)
            answer = serving.ask("status")
        got = [(partition, offset) for _, partition, offset in read_log(log)]
    assert Counter(got) == Counter(expected)
    assert answer["refused"] == []
    assert answer["cuts"] >= cuts
    return int(answer["cuts"])


def kill_at_random(tmp_path: Path, *, kills: int, events: int, rate: float, patience: float, **options: Any) -> None:
    """Kill the reader so often, and count: nothing lost, and nothing again that had been saved."""
    chance = random.Random(7)
    with server(events=events, rate=rate) as serving:
        reader_options = settings(tmp_path, serving.client, **options)
        log, offsets = Path(reader_options["log"]), Path(reader_options["offsets"])
        for _ in range(kills):
            before, start = saved(offsets), len(read_log(log))
            with consumer(reader_options) as reading:
                assert reading.stdout is not None
                assert reading.stdout.readline() == b"open\n"
                if not serving.ask("status")["done"]:
                    wait_for(reading, log, start + chance.randrange(1, 30), patience)
                time.sleep(chance.uniform(0, 0.05))
                os.kill(reading.pid, signal.SIGKILL)
                reading.wait()
            for _, partition, offset in read_log(log)[start:]:
                assert offset > before.get(partition, -1), "delivered again although it was saved"
            done: dict[int, int] = {}
            for _, partition, offset in read_log(log):
                done[partition] = max(offset, done.get(partition, -1))
            for partition, offset in saved(offsets).items():
                assert offset <= done.get(partition, -1), "saved before it was processed"
        with consumer(reader_options) as reading:
            while not serving.ask("status")["done"]:
                wait_for(reading, log, 1, patience)
                time.sleep(0.05)
            answer = serving.ask("expected")
            expected = {tuple(place) for places in answer["expected"].values() for place in places}
            until = time.monotonic() + patience
            while (missing := expected - {tuple(line[1:]) for line in read_log(log)}) and time.monotonic() < until:
                assert reading.poll() is None
                time.sleep(0.05)
    assert not missing, "lost"
    assert answer["refused"] == []


def copy_exactly_once(tmp_path: Path, *, kills: int, events: int, rate: float) -> None:
    """Kill the example so often, then let it finish, and count its rows."""
    chance = random.Random(3)
    example = Path(__file__).parents[1] / "examples" / "exactly_once.py"
    database = tmp_path / "edits.db"

    def rows() -> list[tuple[int, int]]:
        if not database.exists():
            return []
        with closing(sqlite3.connect(database)) as connection:
            try:
                return connection.execute("SELECT partition, offset FROM edits").fetchall()
            except sqlite3.OperationalError:  # it was killed before it had made its tables
                return []

    with server(events=events, rate=rate, cuts=["reset", "clean"], bytes=20_000) as serving:
        hosts = serving.client["hosts"]
        environment = {
            **os.environ,
            "WME_USERNAME": serving.client["username"],
            "WME_PASSWORD": serving.client["password"],
            **{f"WME_{role.upper()}_URL": hosts[role] for role in ("auth", "api", "realtime")},
        }

        def start(limit: int) -> "subprocess.Popen[bytes]":
            command = [sys.executable, str(example), str(database), str(limit)]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

        for _ in range(kills):
            before = len(rows())
            with start(events + 1) as copying:
                until = time.monotonic() + 30
                while len(rows()) <= before and not serving.ask("status")["done"] and time.monotonic() < until:
                    time.sleep(0.02)
                time.sleep(chance.uniform(0, 0.1))
                os.kill(copying.pid, signal.SIGKILL)
        while not serving.ask("status")["done"]:
            time.sleep(0.05)
        expected = [tuple(place) for places in serving.ask("expected")["expected"].values() for place in places]
        with start(len(expected)) as copying:
            try:
                printed, _ = copying.communicate(timeout=60)
            finally:
                copying.kill()
    assert printed == f"{len(expected)} rows, 50 positions\n".encode()
    assert Counter(rows()) == Counter(expected)


@pytest.mark.servers
def test_the_example_copies_each_event_exactly_once_although_it_is_killed(tmp_path: Path) -> None:
    copy_exactly_once(tmp_path, kills=2, events=400, rate=300)


@pytest.mark.torture
def test_the_example_copies_each_event_exactly_once_through_fifty_kills(tmp_path: Path) -> None:
    copy_exactly_once(tmp_path, kills=50, events=5000, rate=60)


RUNS = pytest.mark.parametrize(
    ("framing", "connections", "query"),
    [("ndjson", 1, FILTERED), ("ndjson", 10, {}), ("sse", 1, {}), ("sse", 10, FILTERED)],
    ids=["ndjson-1-filtered", "ndjson-10", "sse-1", "sse-10-filtered"],
)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("framing", "connections", "query"), [("ndjson", 1, FILTERED), ("sse", 10, {})], ids=["ndjson-1", "sse-10"]
)
def test_a_short_run_of_cuts_loses_nothing(
    framing: str, connections: int, query: dict[str, Any], tmp_path: Path
) -> None:
    cut_at_random(
        tmp_path,
        cuts=25,
        events=400,
        rate=2000,
        size=2500,
        patience=20,
        framing=framing,
        connections=connections,
        **query,
    )


@pytest.mark.servers
def test_a_short_run_of_kills_loses_nothing(tmp_path: Path) -> None:
    kill_at_random(tmp_path, kills=2, events=400, rate=400, patience=20)


@pytest.mark.torture
@RUNS
def test_ten_thousand_cuts_lose_nothing(framing: str, connections: int, query: dict[str, Any], tmp_path: Path) -> None:
    """Four ways of reading share ten thousand cuts."""
    cut_at_random(
        tmp_path,
        cuts=2500,
        events=25_000 if query else 12_000,
        rate=300,
        size=1500,
        patience=120,
        framing=framing,
        connections=connections,
        **query,
    )


@pytest.mark.torture
@pytest.mark.parametrize("connections", [1, 10])
def test_a_hundred_kills_lose_nothing(connections: int, tmp_path: Path) -> None:
    kill_at_random(tmp_path, kills=100, events=8_000, rate=60, patience=60, connections=connections)
