"""`wme-async simulate`: a world that changes, for any client, with the faults and the plan that are asked for."""

import contextlib
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from wme_async import Client, Forbidden, RateLimited, Retry
from wme_async.cli.root import root
from wme_async.simulator import Faults
from wme_async.simulator.faults import KINDS, STREAM_KINDS


@contextlib.contextmanager
def simulate(python: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command, and set the variables that it prints."""
    command = [python, "-m", "wme_async", "simulate", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in range(5):
            name, _, value = process.stdout.readline().removeprefix("export ").strip().partition("=")
            monkeypatch.setenv(name, shlex.split(value)[0])
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


async def test_pages_change_by_themselves(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    with simulate(python, monkeypatch, "--articles", "3", "--rate", "40") as process:
        assert process.stderr is not None
        hours = re.search(r"from (\S+) to (\S+) have batches. Ctrl-C stops", process.stderr.readline())
        async with Client.from_env() as wme, wme.realtime.articles() as stream:
            article = await anext(stream)
            assert article.event is not None
            assert article.is_part_of is not None
            assert hours is not None
            batches = await wme.batches(hours[2]).list()
    assert article.name
    assert batches


async def test_the_plan_the_sizes_and_the_faults_are_those_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, python: str
) -> None:
    options = (
        "--groups",
        "group_1",
        "--archive-bytes",
        "simplewiki_namespace_0=90000",
        "--fault",
        "drop",
        "--rate",
        "0",
    )
    with simulate(python, monkeypatch, "--articles", "3", *options):
        async with Client.from_env() as wme:
            assert (await wme.auth.user()).groups == ("group_1",)
            with pytest.raises(Forbidden):
                await wme.batches("latest").list()
            result = await wme.snapshots.download("simplewiki_namespace_0", tmp_path / "archive.tar.gz")
    assert result.size > 90_000
    assert result.path.stat().st_size == result.size


@pytest.mark.parametrize("value", ["x", "=5", "x=", "x=-1", "x=1.5", "x=²"])
def test_a_size_that_is_not_one_is_wrong_usage(value: str) -> None:
    result = CliRunner().invoke(root, ["simulate", "--archive-bytes", value])
    assert result.exit_code == 2
    assert "ARCHIVE=BYTES" in result.stderr


@pytest.mark.parametrize("kind", sorted(KINDS | STREAM_KINDS))
def test_each_fault_belongs_to_a_host(kind: str) -> None:
    fault = Faults().inject_default(kind)
    assert fault.kind == kind
    assert fault.role == ("realtime" if kind not in KINDS else fault.role)
    assert fault.role is not None


async def test_a_fault_has_arguments(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    options = ("--rate", "0", "--fault", "status,status=429,path=articles,times=all")
    with simulate(python, monkeypatch, "--articles", "1", *options):
        async with Client.from_env(retry=Retry(attempts=4, base=0)) as wme:
            assert await wme.projects.list()
            with pytest.raises(RateLimited) as caught:
                await wme.articles.lookup("NATO")
    assert "after 4 attempts" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nonsense", "'nonsense' is not one of"),
        ("status,status", "'status' is not ARGUMENT=VALUE"),
        ("status,=3", "'=3' is not ARGUMENT=VALUE"),
        ("status,statusx=503", "takes no statusx"),
        ("status,role=proxy", "no role 'proxy'"),
        ("status,times=many", "times"),
        ("cut,role=api", 'role="realtime"'),
    ],
)
def test_a_fault_that_cannot_be_is_wrong_usage(value: str, words: str) -> None:
    result = CliRunner().invoke(root, ["simulate", "--fault", value])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_fault_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="no fault 'nonsense'"):
        Faults().inject_default("nonsense")
