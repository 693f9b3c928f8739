"""`wme-async stream --to`: into Kafka and NATS, stopped by signals, and with an exit code for each failure."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_targets import KafkaTarget, Target, check_once_and_in_order, events_in
from real_servers import free_port

from wme_async.simulator import Simulator

pytest.importorskip("click", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

from click.testing import CliRunner

from wme_async.cli.root import root

Run = Callable[..., Any]


@pytest.fixture
def world() -> Iterator[Simulator]:
    with Simulator.run_in_thread(articles=7) as simulator:
        yield simulator


@pytest.fixture
def environment(world: Simulator, tmp_path: Path) -> dict[str, str]:
    return {**world.environment(), "WME_TOKEN_FILE": str(tmp_path / "tokens.json")}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def call(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(root, ["stream", *arguments], env=environment, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


def url_of(target: Target) -> str:
    """The address of a target, whose stream it creates."""
    if isinstance(target, KafkaTarget):
        return f"kafka://{target.bootstrap}/{target.topic}"

    async def create() -> None:
        async with target.connect():
            pass

    asyncio.run(create())
    return f"{target.url}/{target.subject}"


def publish(world: Simulator, count: int) -> list[tuple[int, int]]:
    return [world.call(world.firehose.publish, partition=number % 50) for number in range(count)]


def test_the_stream_goes_on_in_the_broker_after_each_run(run: Run, world: Simulator, target: Target) -> None:
    url = url_of(target)
    published = publish(world, 60)
    for limit in (25, 35):
        result = run("--since", "1m", "--limit", str(limit), "--to", url)
        assert result.stdout == ""
        assert f"{limit} events sent" in result.stderr
    check_once_and_in_order(asyncio.run(events_in(target)), published)


def test_a_signal_ends_it_without_a_loss(
    environment: dict[str, str], world: Simulator, target: Target, python: str
) -> None:
    url = url_of(target)
    published = publish(world, 30)
    command = [python, "-m", "wme_async", "stream", "--since", "1m", "--to", url]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(asyncio.run(events_in(target))) < 30:
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues from here" in errors
    check_once_and_in_order(asyncio.run(events_in(target)), published)


@pytest.mark.parametrize("scheme", ["kafka", "nats"])
def test_a_broker_that_is_not_there_is_an_error(run: Run, scheme: str) -> None:
    pytest.importorskip({"kafka": "aiokafka", "nats": "nats"}[scheme])
    address = f"127.0.0.1:{free_port()}"
    result = run("--to", f"{scheme}://{address}/place", code=1)
    assert result.stderr.startswith("Error: ")
    assert address in result.stderr


def test_a_password_is_not_shown(run: Run) -> None:
    pytest.importorskip("nats")
    result = run("--to", f"nats://user:secret@127.0.0.1:{free_port()}/place", code=1)
    assert "secret" not in result.stderr


def test_a_place_that_does_not_exist_is_an_error(run: Run, nats_url: str) -> None:
    pytest.importorskip("nats")
    result = run("--to", f"{nats_url}/nobody.{{partition}}", code=1)
    assert "create one" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "kafka://host"),
        ("--to", "kafka:///topic"),
        ("--to", "amqp://host/queue"),
        ("--to", "nats://"),
        ("--to", "nats://host/subject?x=1"),
        ("--to", "nats://host/subject", "--table"),
        ("--to", "nats://host/subject", "--max-message", "1000"),
        ("--tombstones",),
    ],
)
def test_wrong_usage_has_its_exit_code(run: Run, arguments: tuple[str, ...]) -> None:
    assert "--to" in run(*arguments, code=2).stderr
