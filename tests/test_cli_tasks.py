"""`wme-async tasks`: plan, run, status and finish, and exit codes for pods of an array."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bulk_exports import CHUNKS, PAGES, SNAPSHOT, export, metered

from wme_async.simulator import Simulator
from wme_async.tasks import Manifest, Plan

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result  # behind its extra

from wme_async.cli.root import root  # same

Run = Callable[..., Result]


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator.run_in_thread(articles=2) as simulator:
        simulator.call(export, simulator, 1)
        yield simulator


@pytest.fixture
def run(sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WME_TOKEN_FILE", str(tmp_path / "tokens.json"))
    for name, value in sim.environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(root, ["tasks", *arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def plan(run: Run) -> Plan:
    options = ("--to", "out", "--type", "bulk_types:Page", "--format", "ndjson", "--out", "plan.json")
    printed = run("plan", SNAPSHOT, *options).stderr
    assert printed.startswith(f"{CHUNKS} tasks, ")
    assert f"{CHUNKS} metered requests (pool chunk: no limit)" in printed
    return Plan.from_json(Path("plan.json").read_bytes())


def identifiers(manifest: Manifest) -> list[int]:
    lines = [line for path in manifest.paths("out") for line in Path(path).read_bytes().splitlines()]
    return sorted(json.loads(line)["identifier"] for line in lines)


def test_an_array_of_one_task_each_makes_the_whole_output(sim: Simulator, run: Run, plan: Plan) -> None:
    for index in range(CHUNKS):
        status = run("status", "plan.json", "--json", code=1).stdout.splitlines()
        assert sum(json.loads(line)["done"] for line in status) == index
        run("finish", "plan.json", code=1)
        result = json.loads(run("run", "plan.json", "--index", str(index)).stdout)
        assert (result["chunk"], result["skipped"]) == (plan.tasks[index].chunk, False)
    assert json.loads(run("run", "plan.json", "--index", "0").stdout)["skipped"]
    run("status", "plan.json")
    assert f"{len(PAGES)} rows in {CHUNKS} files" in run("finish", "plan.json").stdout
    assert identifiers(Manifest.from_json(Path("out/manifest.json").read_bytes())) == list(PAGES)
    assert metered(sim) == CHUNKS


@pytest.mark.servers
def test_one_command_runs_all_tasks_on_processes(sim: Simulator, run: Run, plan: Plan) -> None:
    run("run", "plan.json", "--index", "5")
    manifest = Manifest.from_json(run("run", "plan.json", "--workers", "1", "--json").stdout)
    assert identifiers(manifest) == list(PAGES)
    assert metered(sim) == CHUNKS
    assert f"{len(PAGES)} rows" in run("run", "plan.json").stdout
    assert metered(sim) == CHUNKS


def test_trouble_that_may_pass_asks_for_another_run_and_a_new_export_does_not(
    sim: Simulator, run: Run, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.faults.inject("corrupt", role="store")
    run("run", "plan.json", "--index", "1", code=75)
    sim.call(export, sim, 2)
    result = run("run", "plan.json", "--index", "1", code=76)
    assert "which was asked for" in result.stderr
    for name in ("WME_USERNAME", "WME_PASSWORD", "WME_API_URL"):
        monkeypatch.delenv(name)
    run("run", "plan.json", "--index", "1", code=76)


def test_a_host_that_is_down_asks_for_another_run(
    run: Run, plan: Plan, monkeypatch: pytest.MonkeyPatch, client_clock: Any
) -> None:
    monkeypatch.setenv("WME_API_URL", "http://127.0.0.1:9")
    run("run", "plan.json", "--index", "1", code=75)


def test_an_index_beyond_the_plan_gives_up(run: Run, plan: Plan) -> None:
    assert f"the index {CHUNKS - 1}" in run("run", "plan.json", "--index", str(CHUNKS), code=76).stderr


def test_a_plan_can_be_piped(run: Run) -> None:
    text = run("plan", SNAPSHOT, "--to", "out", "--type", "bulk_types:Page", "--format", "ndjson").stdout
    result = CliRunner().invoke(root, ["tasks", "run", "-", "--index", "2"], input=text)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["chunk"] == f"{SNAPSHOT}_chunk_2"


def test_a_file_that_is_not_a_plan_is_wrong_usage(run: Run) -> None:
    Path("plan.json").write_text("[]")
    for verb in ("run", "status", "finish"):
        assert "not the JSON of a Plan" in run(verb, "plan.json", code=2).stderr


@pytest.mark.servers
def test_workers_use_the_sign_in_of_a_profile(
    sim: Simulator, run: Run, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = sim.client_options()
    login = ["login", "--profile", "work", "--username", options["username"], "--password-stdin"]
    assert CliRunner().invoke(root, login, input=options["password"], catch_exceptions=False).exit_code == 0
    for name in sim.environment():
        monkeypatch.delenv(name)
    before = sim.requests.count("auth", path="login")
    run("run", "plan.json", "--workers", "1", "--profile", "work")
    assert sim.requests.count("auth", path="login") == before
    assert metered(sim) == CHUNKS
