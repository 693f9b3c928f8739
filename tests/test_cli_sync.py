"""`wme-async sync`: its summary, plan, exit codes, and following the hours."""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from wall_clock import MIDDLE_OF_A_MONTH

from wme_async.offsets import SQLiteOffsets
from wme_async.simulator import Simulator

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result  # behind its extra

from wme_async.cli import base, terminal  # same
from wme_async.cli.root import root  # same
from wme_async.cli.terminal import TerminalConsole  # same

NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
EN = ("--where", "in_language.identifier=en")
ARCHIVE = "enwiki_namespace_0"
Run = Callable[..., Result]


@pytest.fixture
def world() -> Iterator[Simulator]:
    with Simulator.run_in_thread(start=NOON, articles=5) as simulator:
        yield simulator


@pytest.fixture
def run(world: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> Run:
    monkeypatch.setenv("WME_TOKEN_FILE", str(tmp_path / "tokens.json"))
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(root, arguments, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


def archives_in(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".tar.gz") for path in folder.rglob("*.tar.gz"))


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_hour_is_synced_and_summed_up(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = run("sync", "batches", "latest", "--to", str(folder), *EN).stdout
    count = len(archives_in(folder))
    assert count
    assert re.match(rf"{folder}  {count} new; [\d.]+ kB in [\d.]+ s, {2 * count + 1} requests\n", first)
    assert f"{count} unchanged" in run("sync", "batches", "--to", str(folder), *EN).stdout
    run("sync", "batches", "-3h", "--to", str(folder), *EN)
    assert len(archives_in(folder)) == 2 * count


@pytest.mark.parametrize("kind", [("snapshots",), ("chunks", ARCHIVE), ("structured-snapshots",), ("wikidata",)])
def test_every_kind_can_be_synced(run: Run, tmp_path: Path, kind: tuple[str, ...]) -> None:
    report = rows(run("sync", *kind, "--to", str(tmp_path / "data"), "--json"))[0]
    assert len(report["new"]) == len(archives_in(tmp_path / "data")) > 0
    assert {file["identifier"] for file in report["new"]}
    assert report["failed"] == []


def test_the_summary_tells_metered_requests_apart_from_all(run: Run, tmp_path: Path) -> None:
    command = ("sync", "snapshots", "--to", str(tmp_path / "data"), *EN)
    first = run(*command).stdout
    count = len(archives_in(tmp_path / "data"))
    assert f"{2 * count + 1} requests ({count} metered)\n" in first
    assert run(*command).stdout.endswith(", 1 request (0 metered)\n")


def test_a_dry_run_lists_what_there_is_to_do_with_bytes_and_quota(run: Run, tmp_path: Path) -> None:
    result = run("sync", "snapshots", "--to", str(tmp_path / "data"), *EN, "--dry-run")
    plan = rows(result)
    assert {row["action"] for row in plan} == {"fetch"}
    assert all(row["bytes"] > 0 for row in plan)
    assert f"{len(plan)} metered requests" in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_dry_run_is_a_table_on_a_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = TerminalConsole(force_terminal=True, width=100, record=True, markup=False, emoji=False)
    for module in (base, terminal):
        monkeypatch.setattr(module, "stdout", console)
    run("sync", "batches", "--to", str(tmp_path / "data"), *EN, "--dry-run")
    text = console.export_text()
    assert ARCHIVE in text
    assert "fetch" in text


def test_failures_are_told_in_words_and_make_the_exit_code_1(run: Run, world: Simulator, tmp_path: Path) -> None:
    fault = world.faults.inject("status", role="store", status=404, path=f"{ARCHIVE}\\.", times=None)
    result = run("sync", "batches", "--to", str(tmp_path / "data"), *EN, code=1)
    assert "1 failed" in result.stdout
    assert f"{ARCHIVE}: " in result.stderr
    fault.remove()
    assert "1 new" in run("sync", "batches", "--to", str(tmp_path / "data"), *EN).stdout


def test_the_progress_of_many_files_is_shown_on_a_terminal(
    run: Run, world: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.faults.inject("status", role="store", status=404, path=f"{ARCHIVE}\\.", times=None)
    console = TerminalConsole(stderr=True, force_terminal=True, width=120, record=True, markup=False, emoji=False)
    monkeypatch.setattr(base, "stderr", console)
    run("sync", "batches", "--to", str(tmp_path / "data"), *EN, code=1)
    text = console.export_text()
    assert re.search(r"0 of \d+ files left, 1 failed", text)
    assert text.count(f"{ARCHIVE}: ") == 1


def test_removing_needs_to_be_asked_for_and_is_bounded(run: Run, world: Simulator, tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    hour = world.hours[-1]
    run("sync", "batches", hour, "--to", folder)
    before = archives_in(tmp_path)
    key = f"batches/{hour.replace('T', '/')}/{ARCHIVE}.tar.gz"
    world.call(world.delete_object, key, update_metadata=True)
    run("sync", "batches", hour, "--to", folder)
    assert archives_in(tmp_path) == before
    refused = run("sync", "batches", hour, "--to", folder, "--delete", "--max-delete", "0", code=1)
    assert "nothing was removed" in refused.stderr
    assert "1 removed" in run("sync", "batches", hour, "--to", folder, "--delete").stdout
    assert archives_in(tmp_path) == [name for name in before if name != ARCHIVE]


def test_an_allowance_that_is_used_up_is_exit_code_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Simulator.run_in_thread(
        articles=2,
        groups=["group_1"],
        caps={"group_1": {"snapshots": 30, "chunks": 9, "ondemand": 9}},
        start=MIDDLE_OF_A_MONTH,
    ) as world:
        monkeypatch.setenv("WME_TOKEN_FILE", str(tmp_path / "tokens.json"))
        for name, value in world.environment().items():
            monkeypatch.setenv(name, value)
        world.caps.set_used(world.environment()["WME_USERNAME"], "snapshots", 27)
        arguments = ["sync", "snapshots", "--to", str(tmp_path / "data"), "--concurrency", "1"]
        result = CliRunner().invoke(root, arguments, catch_exceptions=False)
        assert result.exit_code == 5, result.output
        assert "3 new" in result.stdout
        assert "not tried" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("sync", "batches"),
        ("sync", "batches", "yesterday", "--to", "x"),
        ("sync", "batches", "latest", "--to", "x", "--follow"),
        ("sync", "batches", "--to", "x", "--follow", "--dry-run"),
        ("sync", "batches", "--to", "x", "--since", "-3h"),
        ("sync", "batches", "--to", "x", "--keep", "week"),
        ("sync", "batches", "--to", "x", "--keep", "0d"),
        ("sync", "snapshots", "--to", "x", "--keep", "7d"),
        ("sync", "snapshots", "--to", "x", "--max-delete", "2"),
        ("sync", "snapshots", "--to", "x", "--name", "{kind}"),
        ("sync", "chunks", "--to", "x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_creates_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(*arguments, code=2)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def follow(run: Run, world: Simulator, tmp_path: Path) -> Run:
    """Follow from the hour before the last one, until the last one ends the command."""
    day, hour = world.hours[-1].split("T")
    world.faults.inject("status", role="api", status=403, path=f"batches/{day}/{hour}", times=None)

    def call(*options: str, folder: str = "data") -> Result:
        return run("sync", "batches", "--follow", "--to", str(tmp_path / folder), *options, code=4)

    return call


def projects(*names: str) -> list[str]:
    return [text for name in names for text in ("--where", f"is_part_of.identifier={name}")]


def test_positions_are_those_of_the_filters_and_names(follow: Run, world: Simulator, tmp_path: Path) -> None:
    since = ("--since", world.hours[-2])
    first = follow(*projects("enwiki"), *since)
    assert f"begins with {world.hours[-2]}" in first.stderr
    again = follow(*projects("enwiki"), *since)
    positions = tmp_path / "data" / ".wme-hours.db"
    assert f"goes on after {world.hours[-2]} ({positions}); --since is not used" in again.stderr
    assert not again.stdout
    # Other filters in the same folder miss nothing.
    assert "no position for these filters" in follow(*projects("dewiki"), *since).stderr
    assert any(name.startswith("dewiki") for name in archives_in(tmp_path))
    assert "1 new" not in follow(*projects("dewiki"), *since).stdout
    named = follow(*projects("dewiki"), *since, "--name", "{identifier}.{ext}")
    assert "no position for these filters" in named.stderr
    assert "new" in named.stdout
    # The order of filters means nothing.
    follow(*projects("enwiki", "dewiki"), *since)
    assert "goes on after" in follow(*projects("dewiki", "enwiki")).stderr


def test_one_file_of_positions_serves_several_folders(follow: Run, world: Simulator, tmp_path: Path) -> None:
    options = ("--since", world.hours[-2], "--offsets", str(tmp_path / "hours.db"), *EN)
    for folder in ("one", "two"):
        assert "begins with" in follow(*options, folder=folder).stderr
        assert archives_in(tmp_path / folder)
    assert "goes on after" in follow(*options, folder="two").stderr


def test_a_position_without_filters_is_not_used_with_filters_and_that_is_said(follow: Run, world: Simulator) -> None:
    follow("--since", world.hours[-2])
    assert "goes on after" in follow().stderr
    message = follow(*EN, "--since", "3h").stderr
    assert "begins with -3h" in message
    assert f"after {world.hours[-2]} and is not used" in message


def test_several_values_of_a_field_are_one_report(run: Run, tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    counts = {}
    for names in (["enwiki"], ["dewiki"], ["enwiki", "dewiki", "enwiki"]):
        result = run("sync", "batches", "latest", "--to", folder + names[-1] * len(names), *projects(*names), "--json")
        (report,) = rows(result)
        counts[len(names), names[0]] = len(report["new"])
    assert counts[3, "enwiki"] == counts[1, "enwiki"] + counts[1, "dewiki"] >= 2
    plan = run("sync", "snapshots", "--to", folder, *projects("enwiki", "dewiki"), "--dry-run")
    assert f"{len(rows(plan))} metered requests" in plan.stderr
    assert {row["identifier"][:6] for row in rows(plan)} == {"enwiki", "dewiki"}


def test_filters_that_select_nothing_are_named(run: Run, tmp_path: Path) -> None:
    options = ("sync", "batches", "latest", "--to", str(tmp_path / "data"))
    result = run(*options, *projects("enwiki", "nowhere"))
    assert "nothing is listed with is_part_of.identifier=nowhere" in result.stderr
    assert "nothing is listed with is_part_of.identifier=enwiki" not in result.stderr
    assert "new" in result.stdout


def test_a_template_that_gives_one_name_is_named_as_an_option(run: Run, tmp_path: Path) -> None:
    error = run("sync", "snapshots", "--to", str(tmp_path), "--name", "{kind}", code=2).stderr
    assert "--name" in error
    assert "name=" not in error


def test_a_second_command_that_follows_is_pointed_to_its_options(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    claim = SQLiteOffsets(folder / ".wme-hours.db").claim("sync/batches")
    with asyncio.Runner() as runner:
        runner.run(claim.__aenter__())
        result = run("sync", "batches", "--follow", "--to", str(folder), code=1)
        runner.run(claim.__aexit__(None, None, None))
    assert "--offsets" in result.stderr
    assert "name=" not in result.stderr
    assert "stream" not in result.stderr


def test_hours_are_followed_until_ctrl_c_and_gone_on_with(
    run: Run, world: Simulator, tmp_path: Path, python: str
) -> None:
    folder = tmp_path / "data"
    command = [python, "-m", "wme_async", "sync", "batches", "--follow", "--to", str(folder), *EN]

    def follow(*options: str, hours: int) -> None:
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while hours:
                # The hour under way when it was stopped comes again, without anything new.
                hours -= " new" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        assert process.returncode == 130

    follow("--since", world.hours[-4], hours=3)
    done = sorted(path.name for path in (folder / "batches").rglob("??") if path.is_dir())
    assert len(done) >= 3
    world.call(world.clock.advance, 3600)
    follow(hours=1)
    assert len(sorted((folder / "batches").glob("*/*"))) >= 4
