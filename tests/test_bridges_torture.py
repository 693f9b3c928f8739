"""Bridges in real processes that are killed at random moments, and then the target is counted.

The long runs are those of `nox -s torture`; the short ones are the same with smaller numbers.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from broker_targets import KafkaTarget, NATSTarget, Target, check_once_and_in_order, events_in
from kafka_mock import PRODUCE
from real_servers import Server
from stream_server import server

CHILD = Path(__file__).with_name("bridge_child.py")


@contextmanager
def bridge(options: dict[str, Any]) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, str(CHILD), json.dumps(options)]
    # Its messages go to those of the test: a pipe that nobody reads would be full after some hundreds of warnings.
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def broker_of(target: Target) -> dict[str, str]:
    if isinstance(target, KafkaTarget):
        return {"kafka": target.bootstrap, "topic": target.topic}
    return {"nats": target.url, "subject": target.subject}


async def create(target: Target) -> None:
    """Create the stream of NATS; its window for duplicates is shorter than any outage."""
    if isinstance(target, NATSTarget):
        target.duplicate_window = 0.1
        async with target.connect():
            pass


def wait_for(process: "subprocess.Popen[bytes]", target: Target, count: int, patience: float) -> None:
    """Wait until so many messages are in the target; progress begins the patience anew."""
    seen, since = -1, time.monotonic()
    while seen < count:
        size = asyncio.run(target.count())
        if size > seen:
            seen, since = size, time.monotonic()
        assert process.poll() is None, "the bridge has ended"
        assert time.monotonic() - since < patience, f"{seen} of {count} messages, and then no more"
        time.sleep(0.02)


def kill_at_random(
    tmp_path: Path,
    target: Target,
    *,
    kills: int,
    events: int,
    rate: float,
    patience: float,
    disturb: Callable[[random.Random], None] | None = None,
) -> None:
    """Kill the bridge so often, and count: every event once, and in order within its partition.

    Args:
        tmp_path: For the files of the bridge.
        target: Where it writes.
        kills: How often it is killed.
        events: How many are published.
        rate: Events a second.
        patience: Seconds without a message after which it fails.
        disturb: Makes the broker fail for a moment; called before each kill.
    """
    chance = random.Random(11)
    asyncio.run(create(target))
    with server(events=events, rate=rate, cuts=["reset", "clean"], bytes=50_000) as serving:
        options = {**serving.client, "tokens": str(tmp_path / "tokens.json"), "broker": broker_of(target), "batch": 10}
        for number in range(kills):
            with bridge(options) as copying:
                assert copying.stdout is not None
                assert copying.stdout.readline() == b"open\n"
                # The others are killed while they read positions, or open the stream.
                if number % 3 and not serving.ask("status")["done"]:
                    wait_for(copying, target, asyncio.run(target.count()) + 1, patience)
                time.sleep(chance.uniform(0, 0.2))
                if disturb is not None:
                    disturb(chance)
                os.kill(copying.pid, signal.SIGKILL)
                copying.wait()
        with bridge(options) as copying:
            while not serving.ask("status")["done"]:
                wait_for(copying, target, 1, patience)
            answer = serving.ask("expected")
            expected = [tuple(event) for events in answer["expected"].values() for event in events]
            wait_for(copying, target, len(expected), patience)
    assert answer["refused"] == []
    check_once_and_in_order(asyncio.run(events_in(target)), expected)


@pytest.mark.torture
def test_fifty_kills_lose_and_double_nothing(tmp_path: Path, target: Target) -> None:
    kill_at_random(tmp_path, target, kills=50, events=8_000, rate=90, patience=60)


@pytest.fixture
def disturb(target: Target, request: pytest.FixtureRequest) -> Callable[[random.Random], None]:
    """A function that makes a broker answer with errors, go away or die for a moment."""
    if isinstance(target, NATSTarget):
        server: Server = request.getfixturevalue("nats_server")
        return lambda chance: server.restart(kill=chance.random() < 0.5)

    def disturb_kafka(chance: random.Random) -> None:
        # Not the leader, timed out, too few replicas, and too few after the message was stored.
        target.kafka.fail(PRODUCE, *chance.choices([0, 6, 7, 19, 20], k=5))
        if chance.random() < 0.3:
            target.kafka.down()
            time.sleep(chance.uniform(0, 0.2))
            target.kafka.up()
        time.sleep(chance.uniform(0, 0.2))

    return disturb_kafka


@pytest.mark.servers
def test_a_short_run_of_kills_of_bridge_and_broker_loses_and_doubles_nothing(
    tmp_path: Path, target: Target, disturb: Callable[[random.Random], None]
) -> None:
    kill_at_random(tmp_path, target, kills=2, events=120, rate=100, patience=20, disturb=disturb)


@pytest.mark.torture
def test_fifty_kills_of_bridge_and_broker_lose_and_double_nothing(
    tmp_path: Path, target: Target, disturb: Callable[[random.Random], None]
) -> None:
    kill_at_random(tmp_path, target, kills=50, events=8_000, rate=70, patience=60, disturb=disturb)


def take_turns(tmp_path: Path, target: Target, redis: str, *, rounds: int, events: int, rate: float) -> None:
    """Kill or stop one of two bridges of a group so often, and count: every event once, and in order."""
    chance = random.Random(5)
    asyncio.run(create(target))
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(server(events=events, rate=rate))
        options = {**serving.client, "tokens": str(tmp_path / "tokens.json"), "broker": broker_of(target)}
        options |= {"batch": 10, "redis": redis}
        pair = [stack.enter_context(bridge(options)) for _ in range(2)]
        for number in range(rounds):
            time.sleep(chance.uniform(0.5, 2))
            chosen = number % 2
            if isinstance(target, NATSTarget) and number % 3 == 0:
                # For longer than its lease. NATS accepts nothing of it when it wakes up.
                os.kill(pair[chosen].pid, signal.SIGSTOP)
                time.sleep(2.5)
                os.kill(pair[chosen].pid, signal.SIGCONT)
            else:
                os.kill(pair[chosen].pid, signal.SIGKILL)
                pair[chosen].wait()
            for index, process in enumerate(pair):
                if process.poll() is not None:
                    pair[index] = stack.enter_context(bridge(options))
        until = time.monotonic() + 120
        while not (serving.ask("status")["done"] and asyncio.run(target.count()) >= events):
            assert time.monotonic() < until, f"{asyncio.run(target.count())} of {events}"
            time.sleep(0.2)
            for index, process in enumerate(pair):
                if process.poll() is not None:
                    pair[index] = stack.enter_context(bridge(options))
        expected = [tuple(event) for some in serving.ask("expected")["expected"].values() for event in some]
        assert serving.ask("status")["refused"] == []
    check_once_and_in_order(asyncio.run(events_in(target)), expected)


@pytest.mark.torture
def test_two_bridges_of_a_group_that_are_killed_in_turn_lose_and_double_nothing(
    tmp_path: Path, target: Target, redis_url: str
) -> None:
    pytest.importorskip("redis")
    take_turns(tmp_path, target, redis_url, rounds=30, events=5_000, rate=70)
