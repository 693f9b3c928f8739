"""`wme-async mirror`: costs, progress, status with exit codes, verification, and changes as lines."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wme_async.mirror import PostgresStore, SQLiteStore
from wme_async.simulator import Simulator, World

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result  # behind its extra

from wme_async.cli.root import root  # same

IDENTIFIER = "enwiki_namespace_0"
NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
Run = Callable[..., Result]


@pytest.fixture
def world() -> World:
    return World(seed=2, projects=["enwiki"], pages=24, past=0)


@pytest.fixture
def sim(world: World) -> Iterator[Simulator]:
    with Simulator.run_in_thread(world=world, start=NOON, frozen=True, groups=["group_2"]) as simulator:
        yield simulator


@pytest.fixture
def run(sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> Run:
    monkeypatch.setenv("WME_TOKEN_FILE", str(tmp_path / "tokens.json"))
    for name, value in sim.environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(root, ["mirror", *arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the mirror is: a file, or a database."""
    if request.param == "sqlite":
        return str(tmp_path / "mirror.db")
    pytest.importorskip("asyncpg")
    return str(request.getfixturevalue("postgres_dsn"))


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_it_tells_the_costs_loads_and_goes_on(run: Run, world: World, sim: Simulator, place: str) -> None:
    arguments = (IDENTIFIER, "--to", place, "--once", "--source", "snapshots")
    first = run(*arguments)
    assert "3 metered requests (pool chunk: no limit)" in first.stderr
    assert "of disk" in first.stderr
    assert ("of JSON a second, as measured here" in first.stderr) == place.endswith(".db")
    assert f"{IDENTIFIER}: 3 of 3 parts" in first.stderr
    assert first.stdout.startswith("following: 24 pages, ")
    assert "to load" not in run(*arguments).stderr
    assert run(*arguments, "--quiet").output == ""
    world.create("enwiki", "New")
    world.advance(3600)
    sim.call(sim.export_snapshot, IDENTIFIER)
    assert run(*arguments).stdout.startswith("following: 25 pages, ")


def test_status_is_words_or_json_and_the_exit_code_tells_trouble(run: Run, place: str) -> None:
    assert re.search("does not exist|has no mirror", run("status", place, code=1).stderr)
    # The account has no stream, so an automatic choice is degraded.
    assert "degraded: the account has no stream" in run(IDENTIFIER, "--to", place, "--once", code=1).stderr
    result = run("status", place, code=1)
    assert "degraded: the account has no stream" in result.stdout
    assert f"{IDENTIFIER}: snapshot of 2026-07-" in result.stdout
    assert rows(run("status", place, "--json", code=1))[0]["source"] == "batches"
    run(IDENTIFIER, "--to", place, "--once", "--source", "snapshots")
    assert "following: 24 pages" in run("status", place, "--once").stdout


def test_status_tells_whether_a_process_keeps_the_mirror(run: Run, sim: Simulator, place: str) -> None:
    run(IDENTIFIER, "--to", place, "--once", "--source", "snapshots", "--quiet")
    stopped = run("status", place, code=1).stdout
    assert re.match(r"not running, last written \d+ (s|min) ago; was following: 24 pages, ", stopped)
    (plain,) = rows(run("status", place, "--json", "--once"))
    assert plain["running"] is False
    store = PostgresStore(place) if "://" in place else SQLiteStore(place)
    with asyncio.Runner() as runner:
        runner.run(store.open())
        try:
            assert run("status", place).stdout.startswith("following: 24 pages, ")
            assert rows(run("status", place, "--json"))[0]["running"] is True
        finally:
            runner.run(store.close())
    assert run("status", place, "--once").stdout.startswith("not running")


def test_a_lock_that_a_killed_process_left_behind_is_nobody(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "mirror.db"
    run(IDENTIFIER, "--to", str(place), "--once", "--source", "snapshots", "--quiet")
    place.with_name("mirror.db.lock").write_text("process 1 on nowhere")
    assert run("status", str(place), code=1).stdout.startswith("not running, last written")


def test_a_mirror_is_verified(run: Run, world: World, sim: Simulator, place: str) -> None:
    run(IDENTIFIER, "--to", place, "--once", "--source", "snapshots", "--keep", "wikitext,abstract")
    assert "0 changes had been missed" in run("verify", place).stdout
    world.edit("enwiki", min(world.truth("enwiki").pages))
    world.advance(3600)
    sim.call(sim.export_snapshot, IDENTIFIER)
    assert "verified (full): 24 records, 1 changes had been missed" in run("verify", place).stdout
    assert "verified (sample)" in run("verify", place, "--sample").stdout
    assert "verified (sample)" in run("status", place, "--once").stdout


def test_changes_are_lines_of_json_and_each_consumer_goes_on(run: Run, world: World, place: str) -> None:
    run(IDENTIFIER, "--to", place, "--once", "--source", "snapshots")
    first = rows(run("changes", place, "--limit", "5"))
    later = rows(run("changes", place))
    assert [change["kind"] for change in (*first, *later)] == ["upsert"] * 24
    assert {change["title"] for change in (*first, *later)} == world.truth("enwiki").pages.keys()
    assert len(bytes.fromhex(first[0]["digest"])) == 8
    again = run("changes", place)
    assert again.stdout == ""
    assert "nothing new for the consumer cli, which has read up to change 24;" in again.stderr
    assert len(rows(run("changes", place, "--consumer", "other"))) == 24
    assert "consumer cli: 0 changes behind" in run("status", place, "--once").stdout


def test_wrong_usage_is_told_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    assert "project and a namespace" in run("enwiki", "--to", str(tmp_path / "mirror.db"), code=2).stderr
    assert "--to" in run(IDENTIFIER, code=2).stderr
    assert "wikitexts" in run(IDENTIFIER, "--to", str(tmp_path / "m.db"), "--keep", "wikitexts", code=2).stderr
    assert "IDENTIFIER" in run("--help").stdout
    assert not (tmp_path / "mirror.db").exists()
    assert "begins with postgresql://" in run(IDENTIFIER, "--to", "mysql://host/wiki", code=2).stderr
    assert "--schema is for" in run("status", str(tmp_path / "mirror.db"), "--schema", "wiki", code=2).stderr


@pytest.mark.servers
def test_each_schema_of_a_database_is_a_mirror_of_its_own(run: Run, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("asyncpg")
    dsn = request.getfixturevalue("postgres_dsn")
    run(IDENTIFIER, "--to", dsn, "--schema", "wiki", "--once", "--source", "snapshots", "--quiet")
    assert run("status", dsn, "--schema", "wiki", "--once").stdout.startswith("not running, last written")
    assert "schema wme_mirror has no mirror" in run("status", dsn, code=1).stderr
    assert len(rows(run("changes", dsn, "--schema", "wiki"))) == 24
    assert "0 changes had been missed" in run("verify", dsn, "--schema", "wiki", "--sample").stdout
