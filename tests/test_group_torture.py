"""Hosts that share the stream, as real processes that are killed, stopped and replaced while the store restarts.

The long runs are those of `nox -s torture`, two minutes each; the short ones are the same with smaller numbers.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from real_servers import Server
from stream_server import server

CHILD = Path(__file__).with_name("group_child.py")
KINDS = ["postgres", "pgbouncer", "redis"]


class Figures(NamedTuple):
    """What a run was, and what came of it."""

    events: int
    kills: int
    stops: int
    restarts: int
    lost: int
    again: int
    late: int
    takes: int
    longest: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self._asdict().items())


class Hosts:
    """Three hosts, and what is done to them."""

    def __init__(self, options: dict[str, Any], stack: ExitStack, seed: int) -> None:
        self.options = options
        self.kills: list[tuple[float, int]] = []
        self.stops = 0
        self._stack = stack
        self._chance = random.Random(seed)
        self._stopped: dict[int, float] = {}
        self.processes = [self._start() for _ in range(3)]

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(CHILD), json.dumps(self.options)]
        errors = Path(self.options["log"]).with_name("errors").open("ab")
        process = self._stack.enter_context(subprocess.Popen(command, stderr=errors))
        self._stack.callback(process.kill)
        errors.close()
        return process

    def trouble(self) -> None:
        """Kill one and replace it, let one leave and replace it, or stop one for longer than its leases last."""
        index = self._chance.randrange(3)
        process = self.processes[index]
        if index in self._stopped:
            return
        assert process.poll() is None, self.errors()
        action = self._chance.choice(["kill", "kill", "stop", "stop", "leave"])
        if action == "stop":
            process.send_signal(signal.SIGSTOP)
            self.stops += 1
            self._stopped[index] = time.monotonic() + self._chance.uniform(0.5, 2.5) * self.options["lease"]
            return
        if action == "kill":
            process.kill()
            self.kills.append((time.monotonic(), process.pid))
        else:
            process.terminate()
        process.wait()
        self.processes[index] = self._start()

    def end(self) -> None:
        """Let all of them leave in an orderly way."""
        self.wake(everyone=True)
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                # One that has just been started may not handle the signal yet.
                assert process.wait(30) in {0, -signal.SIGTERM}, self.errors()
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                raise AssertionError(f"a host does not end: {self.errors()}") from None

    def errors(self) -> str:
        """Return the end of what the hosts wrote to standard error."""
        return Path(self.options["log"]).with_name("errors").read_text()[-6000:]

    def wake(self, *, everyone: bool = False) -> None:
        """Let those go on that were stopped for long enough."""
        for index, until in list(self._stopped.items()):
            if everyone or time.monotonic() >= until:
                self.processes[index].send_signal(signal.SIGCONT)
                del self._stopped[index]


def run(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, *, seconds: float, rate: float, lease: float, seed: int
) -> tuple[Figures, list[list[Any]]]:
    """Publish for some seconds, with trouble every few of them; wait until everything has been read, and count."""
    pytest.importorskip("redis" if kind == "redis" else "asyncpg")
    store = request.getfixturevalue("redis_url" if kind == "redis" else f"{kind}_dsn")
    database: Server = request.getfixturevalue("redis_server" if kind == "redis" else "postgres")
    log = tmp_path / "log"
    options = {"store": store, "log": str(log), "tokens": str(tmp_path / "tokens"), "lease": lease}
    options["commit_interval"] = 0.5
    restarts = 0
    with ExitStack() as stack:
        serving = stack.enter_context(server(events=int(seconds * rate), rate=rate, seed=seed))
        hosts = Hosts({**serving.client, **options}, stack, seed)
        begun = time.monotonic()
        next_trouble, next_restart = begun + 2 * lease, begun + seconds / 3
        while not serving.ask("status")["done"]:
            hosts.wake()
            if time.monotonic() >= next_trouble:
                hosts.trouble()
                next_trouble = time.monotonic() + 1.5 * lease
            if time.monotonic() >= next_restart and restarts < 2:
                database.restart(kill=restarts == 1)
                restarts += 1
                next_restart = begun + (restarts + 1) * seconds / 3
            time.sleep(0.02)
        hosts.wake(everyone=True)
        expected = {
            (partition, offset)
            for places in serving.ask("expected")["expected"].values()
            for partition, offset in places
        }
        seen: set[tuple[int, int]] = set()
        progress, size = time.monotonic(), 0
        while expected - seen and time.monotonic() - progress < 30:
            entries = read(log)
            seen = {(entry[3], entry[4]) for entry in entries if entry[2] == "event"}
            if len(seen) > size:
                progress, size = time.monotonic(), len(seen)
            time.sleep(0.1)
        hosts.end()
    entries = read(log)
    events = [entry for entry in entries if entry[2] == "event"]
    figures = Figures(
        events=len(expected),
        kills=len(hosts.kills),
        stops=hosts.stops,
        restarts=restarts,
        lost=len(expected - seen),
        again=len(events) - len({(entry[3], entry[4]) for entry in events}),
        late=len(handed_out_late(entries, lease)),
        takes=sum(entry[2] == "taken" for entry in entries),
        longest=max(times_without_reader(entries, hosts.kills), default=0.0),
    )
    return figures, entries


def read(log: Path) -> list[list[Any]]:
    """Return what the hosts noted, in order of time: time, process, kind, and what belongs to it."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return sorted((json.loads(line) for line in lines), key=lambda entry: entry[0])


def handed_out_late(entries: list[list[Any]], lease: float) -> list[list[Any]]:
    """Return events that were handed out under an older token after somebody had taken the part under a newer one.

    A process may be stopped between the moment in which an event is handed out and that in which it is noted. Such an
    event is the first that its process notes after the stop, and is not meant.
    """
    newest: dict[int, int] = {}
    last: dict[int, float] = {}
    late = []
    for entry in entries:
        at, process, kind, number, value, *more = entry
        if kind == "taken":
            newest[number] = max(value, newest.get(number, 0))
        elif kind == "event" and more[0] < newest[number // 5] and at - last[process] < lease / 2:
            late.append(entry)
        last[process] = at
    return late


def times_without_reader(entries: list[list[Any]], kills: list[tuple[float, int]]) -> list[float]:
    """Return, for each part of a host that was killed, the seconds until another one read it."""
    times = []
    for killed_at, process in kills:
        held: dict[int, int] = {}
        for at, owner, kind, part, token, *_ in entries:
            if owner == process and at <= killed_at:
                if kind == "taken":
                    held[part] = token
                elif kind == "lost":
                    held.pop(part, None)
        for part, token in held.items():
            later = [
                at for at, _, kind, number, other, *_ in entries if kind == "taken" and number == part and other > token
            ]
            if later:
                times.append(max(0.0, min(later) - killed_at))
    return times


def check(figures: Figures, entries: list[list[Any]]) -> None:
    """Raise unless nothing was lost, nothing came again that was saved, and tokens were respected."""
    assert figures.lost == 0, figures
    assert figures.late == 0, figures
    done: dict[int, int] = defaultdict(lambda: -1)
    begun: dict[tuple[int, int], dict[int, int]] = {}
    owners: dict[tuple[int, int], int] = {}
    for _, process, kind, *facts in entries:
        if kind == "taken":
            part, token, positions = facts
            assert owners.setdefault((part, token), process) == process, "one token for two owners"
            for partition, offset in positions.items():
                assert offset <= done[int(partition)], "saved before it was processed"
            begun[part, token] = {int(partition): offset for partition, offset in positions.items()}
        elif kind == "event":
            partition, offset, token = facts
            last = begun[partition // 5, token]
            assert offset > last[partition], "delivered again although it was saved, or out of order"
            last[partition] = offset
            done[partition] = max(done[partition], offset)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["pgbouncer"])
def test_a_short_run_of_kills_and_stops_loses_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    figures, entries = run(request, tmp_path, kind, seconds=2.5, rate=60, lease=0.6, seed=5)
    check(figures, entries)


@pytest.mark.torture
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", KINDS)
def test_two_minutes_of_kills_and_stops_lose_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lease = 3.0
    figures, entries = run(request, tmp_path, kind, seconds=120.0, rate=60, lease=lease, seed=2)
    with capsys.disabled():
        print(f"\n{kind}: {figures}")  # noqa: T201  # the figures of the run
    check(figures, entries)
    assert figures.longest <= 2 * lease
