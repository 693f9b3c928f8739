"""The command line: what it prints, its exit codes, and that being stopped leaves something to go on from."""

import asyncio
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wme_async import Client, Retry
from wme_async import __main__ as entry
from wme_async.jobs import BatchManager
from wme_async.simulator import Simulator

click = pytest.importorskip("click")
pytest.importorskip("rich")

from wme_async.cli import base  # noqa: E402  # behind its extra
from wme_async.cli import stream as stream_module  # noqa: E402  # same
from wme_async.cli import terminal as console_module  # noqa: E402  # same
from wme_async.cli.root import root  # noqa: E402  # same
from wme_async.cli.terminal import TerminalConsole  # noqa: E402  # same

ARCHIVE = "enwiki_namespace_0"


@pytest.fixture(scope="module")
def world():
    with Simulator.run_in_thread(articles=7) as simulator:
        yield simulator


@pytest.fixture
def environment(world, tmp_path, monkeypatch):
    values = {**world.environment(), "WME_TOKEN_FILE": str(tmp_path / "state" / "tokens.json")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def run(environment, capsysbinary):
    def call(*arguments, code=0):
        # The runner gives each command streams of its own, and an exit code instead of an exit.
        result = CliRunner().invoke(root, arguments, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


def lines(result):
    # Not splitlines: titles may have separators of other kinds in them.
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def test_lists_are_json_lines_in_a_pipe(run, world):
    rows = lines(run("projects", "ls"))
    assert {"enwiki", "dewiki"} <= {row["identifier"] for row in rows}
    only = lines(run("projects", "ls", "--where", "in_language.identifier=en", "--fields", "identifier,name"))
    assert only
    assert all(set(row) == {"identifier", "name"} for row in only)


def test_get_prints_one_record(run):
    assert lines(run("languages", "get", "en"))[0]["identifier"] == "en"
    assert lines(run("namespaces", "get", "14"))[0]["identifier"] == 14


@pytest.mark.parametrize("place", ["latest", "hour"])
def test_batches_are_listed_shown_downloaded_and_read(run, world, tmp_path, place):
    hour = place if place == "latest" else world.hours[-1]
    rows = lines(run("batches", "ls", hour, "--where", "namespace.identifier=0"))
    assert {row["namespace"]["identifier"] for row in rows} == {0}
    assert lines(run("batches", "get", hour, ARCHIVE))[0]["identifier"] == ARCHIVE
    assert lines(run("batches", "get", "-3h", ARCHIVE))[0]["identifier"] == ARCHIVE
    size = lines(run("batches", "head", hour, ARCHIVE))[0]["size"]
    output = run("batches", "download", hour, ARCHIVE, "dewiki_namespace_0", "--to", str(tmp_path / "data")).stdout
    [path] = (tmp_path / "data").rglob(f"{ARCHIVE}.tar.gz")
    assert path.stat().st_size == size
    assert output.count("MD5 matches") == 2
    assert "unchanged" in run("batches", "download", hour, ARCHIVE, "--to", f"{tmp_path}/data/", "--if-changed").stdout
    records = lines(run("batches", "read", hour, ARCHIVE))
    assert len(records) >= 7
    assert all(record["is_part_of"]["identifier"] == "enwiki" for record in records)
    assert len(lines(run("batches", "read", hour, ARCHIVE, "--limit", "2"))) == 2
    (tmp_path / "tee").mkdir()
    counted = run("batches", "read", hour, ARCHIVE, "--count", "--tee", f"{tmp_path}/tee/")
    assert counted.stdout == f"{len(records)}\n"
    assert next((tmp_path / "tee").rglob(f"{ARCHIVE}.tar.gz")).stat().st_size == size


def test_an_archive_is_written_to_parquet(run, world, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("obstore")
    count = int(run("batches", "read", "latest", ARCHIVE, "--count").stdout)
    target = tmp_path / "out.parquet"
    assert f"{count} records" in run("batches", "read", "latest", ARCHIVE, "--to", str(target)).stdout
    assert parquet.read_table(target).num_rows == count
    folder = f"{tmp_path}/members/"
    assert f"{count} records" in run("batches", "read", "latest", ARCHIVE, "--to", folder).stdout
    assert "0 records" in run("batches", "read", "latest", ARCHIVE, "--to", folder).stdout
    run("batches", "read", "latest", ARCHIVE, "--to", f"file://{tmp_path}/by-url.parquet")
    assert parquet.read_table(tmp_path / "by-url.parquet").num_rows == count


def test_snapshots_and_their_chunks(run, tmp_path):
    assert ARCHIVE in {row["identifier"] for row in lines(run("snapshots", "ls"))}
    chunks = lines(run("chunks", "ls", ARCHIVE))
    assert chunks
    run("chunks", "download", ARCHIVE, "0", "--to", str(tmp_path / "chunk.tar.gz"))
    assert (tmp_path / "chunk.tar.gz").exists()
    assert lines(run("structured-snapshots", "ls"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("batches", "ls", "2020-01-01T00"), 3, "HTTP 404"),
        (("batches", "ls", "noon"), 2, "an hour looks like"),
        (("projects", "get", "../x"), 2, "no path in it"),
        (("projects", "ls", "--where", "identifier"), 2, "not FIELD=VALUE"),
        (("projects", "ls", "--where", "nothing=1"), 2, "nothing"),
        (("projects", "ls", "--where", "code=wiki", "--where", "code=x"), 2, "occurs twice"),
        (("batches", "ls", "latest", "--where", "namespace.identifier=zero"), 2, "is a whole number"),
        (("stream", "--since", "noon"), 2, "neither a time"),
        (("stream", "--since", f"{'9' * 20}h"), 2, "neither a time"),
        (("stream", "--since", "²h"), 2, "neither a time"),
        (("stream", "--parts", "a"), 2, "not a list of numbers"),
        (("stream", "--parts", "10"), 2, "part"),
        (("stream", "--share", "groups"), 2, "neither the word group, nor a number"),
        (("stream", "--share", "3/3"), 2, "neither the word group, nor a number"),
        (("stream", "--share", "group"), 2, "needs --offsets"),
        (
            ("stream", "--share", "group", "--offsets", "redis://host", "--to", "kafka://host/topic"),
            2,
            "--to needs a fixed plan",
        ),
        (("stream", "--share", "0/2", "--lease", "3"), 2, "lease can be used with share='group' alone"),
        (("stream", "--offsets", "mysql://host/db"), 2, "neither a file nor a URL"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_an_error_is_a_message_with_an_exit_code(run, arguments, code, words):
    result = run(*arguments, code=code)
    assert words in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


def test_values_of_filters_have_the_type_of_their_field(run):
    output = run("explain", "articles", "--where", "version.is_minor_edit=True", "--where", "is_part_of.identifier=x")
    assert "version.is_minor_edit = True" in output.stdout
    wrong = run("explain", "articles", "--where", "version.is_minor_edit=maybe", code=2)
    assert "is true or false, not 'maybe'" in wrong.stderr
    # As the published documentation calls it; the server calls it otherwise.
    output = run("explain", "realtime.articles", "--where", "visibility.user=true").stdout
    assert "sent: filter visibility.editor = True" in output
    assert "is a whole number, not '1.5'" in run("explain", "articles", "--where", "identifier=1.5", code=2).stderr


def test_an_error_names_the_attempts(run, world, monkeypatch):
    world.faults.inject("status", role="api", status=500, times=5)
    monkeypatch.setattr("wme_async._transport.client.Retry", lambda: Retry(base=0.0))
    assert "gave up after 5 attempts" in run("projects", "ls", code=1).stderr


def test_an_interrupt_during_the_import_shows_no_traceback(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("wme_async.cli.root.main", stopped)
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 130

    def broken():
        raise ImportError("of something else", name="elsewhere")

    monkeypatch.setattr("wme_async.cli.root.main", broken)
    monkeypatch.setattr(sys, "argv", ["wme-async", "projects", "ls"])
    with pytest.raises(SystemExit) as stopping:
        entry.main()
    assert stopping.value.code == 1
    assert "ImportError: of something else" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["wme-async", "-vv", "projects", "ls"])
    with pytest.raises(ImportError, match="of something else"):
        entry.main()


def test_wrong_credentials_have_an_exit_code_of_their_own(run, monkeypatch):
    monkeypatch.setenv("WME_PASSWORD", "wrong")
    assert "HTTP 401" in run("projects", "ls", code=4).stderr
    monkeypatch.delenv("WME_USERNAME")
    monkeypatch.delenv("WME_PASSWORD")
    assert "no credentials" in run("projects", "ls", code=2).stderr


def test_signing_in_keeps_the_tokens_for_the_next_command_and_out_revokes_them(run, world, environment):
    before = sum(request.path == "/v1/login" for request in world.requests)
    result = run("login")
    assert "signed in as simulated" in result.stdout
    assert "snapshot: " in result.stdout
    run("projects", "ls")
    assert sum(request.path == "/v1/login" for request in world.requests) == before + 1
    assert run("logout").stdout == "signed out\n"
    assert "access_token" not in Path(environment["WME_TOKEN_FILE"]).read_text()


def test_credentials_come_from_an_env_file(run, world, tmp_path, monkeypatch):
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in world.environment().items()))
    for name in world.environment():
        monkeypatch.delenv(name)
    assert lines(run("--env-file", str(env_file), "codes", "ls"))


def test_the_stream_is_json_lines_and_resumes_from_its_offsets(run, world, tmp_path):
    offsets = str(tmp_path / "offsets.db")
    published = [world.call(world.firehose.publish, partition=number % 50) for number in range(60)]
    start = world.firehose.log[0].end
    first = lines(run("stream", "--offsets", offsets, "--since", "1m", "--limit", "25"))
    second = lines(run("stream", "--offsets", offsets, "--limit", "35", "--framing", "sse", "--connections", "1"))
    places = [(row["event"]["partition"], row["event"]["offset"]) for row in [*first, *second]]
    assert len(set(places)) == 60
    assert sorted(places) == sorted(published)
    assert start


def publish_for(world, wiki, partitions):
    """Publish events of a wiki that no other test reads."""
    record = {"name": "x", "is_part_of": {"identifier": wiki}, "event": {"type": "update"}}
    return [world.call(world.firehose.publish, record, partition=partition) for partition in partitions]


def places(rows):
    return sorted((row["event"]["partition"], row["event"]["offset"]) for row in rows)


@pytest.mark.parametrize("kind", ["sqlite", "redis", pytest.param("postgres", marks=pytest.mark.servers)])
def test_the_stream_is_shared_by_leases(run, world, request, kind, tmp_path):
    if kind == "sqlite":
        offsets = str(tmp_path / "offsets.db")
    else:
        pytest.importorskip("asyncpg" if kind == "postgres" else "redis")
        offsets = request.getfixturevalue("postgres_dsn" if kind == "postgres" else "redis_url")
    wiki = f"{kind}wiki"
    published = publish_for(world, wiki, [number % 50 for number in range(60)])
    options = ("--offsets", offsets, "--share", "group", "--since", "1m", "--where", f"is_part_of.identifier={wiki}")
    rows = [row for limit in ("25", "35") for row in lines(run("stream", *options, "--limit", limit))]
    assert places(rows) == sorted(published)


def test_the_stream_is_shared_by_a_fixed_plan(run, world):
    published = publish_for(world, "planwiki", range(50))
    rows = []
    for ordinal in range(3):
        options = ("--share", f"{ordinal}/3", "--since", "1m", "--where", "is_part_of.identifier=planwiki")
        rows += lines(run("stream", *options, "--limit", str(5 * len(range(ordinal, 10, 3)))))
    assert places(rows) == sorted(published)


def test_the_stream_can_be_watched_as_a_table(run, world):
    for number in range(20):
        world.call(world.firehose.publish, partition=number)
    result = run("stream", "--since", "1m", "--limit", "20", "--table")
    # What was read ahead does not count. The rate is that of the whole run; of less than a second it would say nothing.
    assert re.search(r"^20 events(, (?!0\.0)[\d.]+/s)?, [\d.]+ k?B", result.stderr, re.MULTILINE)


def test_what_does_not_exist_is_told_without_details_of_the_store(run):
    message = run("batches", "get", "latest", "enwiki_namespace_00", code=3).stderr
    assert "The specified key does not exist; did you mean enwiki_namespace_0" in message
    assert "request id" not in message


def test_the_values_of_events_are_printed_alone(run, world):
    for number in range(3):
        world.call(world.firehose.publish, partition=number)
    rows = run("stream", "--since", "1m", "--limit", "3", "--fields", "name,is_part_of.identifier", "--raw").stdout
    assert [len(row.split("\t")) for row in rows.splitlines()] == [2, 2, 2]
    assert "--raw prints the values of --fields" in run("stream", "--raw", code=2).stderr
    assert "leave out --table" in run("stream", "--fields", "name", "--raw", "--table", code=2).stderr


def test_a_terminal_shows_at_once_that_a_stream_has_no_connection_and_no_event(run, world, terminal, monkeypatch):
    _, err = terminal
    for name in ("SHORT_OUTAGE", "SILENCE"):
        monkeypatch.setattr(stream_module, name, 0.0)
    headers = {"Retry-After": "1"}
    world.faults.inject("status", role="realtime", path="articles", status=503, headers=headers, times=1)
    world.call(world.firehose.publish, partition=1)
    run("stream", "--since", "1m", "--limit", "1", "--where", "event.type=update")
    silent, lost, back, *_ = err.getvalue().splitlines()
    assert silent == "no event in 0 s: check the values of event.type=update"
    assert lost.startswith("there is no connection; trying again: ")
    assert "503" in lost
    assert re.fullmatch(r"the connection is back after \d+ s", back)


def test_the_allowances_of_a_plan_without_limits_are_words(run, terminal):
    out, _ = terminal
    run("quota")
    assert re.search(r"^snapshot +\d+ +unlimited +unlimited$", out.getvalue(), re.MULTILINE)


def test_the_table_of_a_stream_fits_a_small_screen(run, world, terminal, monkeypatch):
    _, err = terminal
    console = TerminalConsole(file=err, force_terminal=True, color_system=None, width=60, height=14, soft_wrap=False)
    monkeypatch.setattr(base, "stderr", console)
    for number in range(50):
        world.call(world.firehose.publish, partition=number)
    run("stream", "--since", "1m", "--limit", "50", "--table")
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err.getvalue()).replace("\r", "\n")
    assert "partitions that lag less" in frames
    assert max(map(len, frames.splitlines())) <= 60


def test_the_same_command_resumes_an_interrupted_download(environment, tmp_path, python):
    with Simulator.run_in_thread(archive_bytes={ARCHIVE: 3_000_000}, article_size=100_000) as simulator:
        values = {**os.environ, **environment, **simulator.environment()}
        hour = simulator.hours[-1]
        command = [python, "-m", "wme_async", "batches", "download", hour, ARCHIVE, "--to", f"{tmp_path}/"]
        process = subprocess.Popen([*command, "--max-rate", "0.5"], env=values, stderr=subprocess.PIPE, text=True)
        part = tmp_path / "batches" / hour.replace("T", "/") / f"{ARCHIVE}.tar.gz.part"
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_blocks * 512 > 300_000):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)  # a file of another process: there is nothing to wait on
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "the same command continues" in errors
        second = subprocess.run(command, env=values, capture_output=True, text=True, check=True)
        assert "were there already" in second.stdout
        assert "MD5 matches" in second.stdout


def test_markup_in_values_is_printed_literally(run, tmp_path):
    result = run("lookup", "[/x]", "[bold]y", ":heart:", code=3)
    assert [line for line in result.stderr.splitlines() if "no such page" in line] == [
        "[/x]: no such page",
        "[bold]y: no such page",
        ":heart:: no such page",
    ]
    assert "got 'a[/b]'" in run("batches", "get", "latest", "a[/b]", code=2).stderr
    assert "../[/x].jpg" in run("files", "get", "../[/x].jpg", code=2).stderr
    assert "[/x]" in run("batch", "--directory", str(tmp_path), "submit", "[/x]", code=2).stderr


def test_titles_may_have_any_line_ends(run, monkeypatch):
    result = CliRunner().invoke(root, ["lookup", "--limit", "1"], input="Squirrel\r\n\n  No such page at all  \n")
    assert result.exit_code == 3
    assert "No such page at all: no such page" in result.stderr
    assert "1 of 2 titles" in result.stderr


def test_without_a_writable_home_tokens_are_not_stored(run, monkeypatch, caplog):
    monkeypatch.delenv("WME_TOKEN_FILE")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", os.devnull)
    assert lines(run("codes", "get", "wiki"))
    assert "not kept for the next command" in caplog.text
    # What was asked for by name is not left out in silence.
    assert f"{os.devnull}/x" in run("--token-file", f"{os.devnull}/x/tokens.json", "codes", "ls", code=1).stderr


def test_batches_use_the_credentials_of_the_env_file(run, world, environment, tmp_path, monkeypatch):
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in world.environment().items()))
    for name in world.environment():
        # Empty is as good as not set, and does not hide what the file says.
        monkeypatch.setenv(name, "")
    folder = ["batch", "--directory", str(tmp_path / "here"), "--allow-host", "127.0.0.1"]
    url = f"wme:batches/{world.hours[-1].replace('T', '/')}/{ARCHIVE}"
    result = run("--env-file", str(env_file), *folder, "submit", url)
    assert "1 succeeded" in result.stdout
    assert "access_token" in Path(environment["WME_TOKEN_FILE"]).read_text()
    assert "does not exist" in run("--env-file", str(tmp_path / "none"), *folder, "submit", url, code=1).stderr


COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "wme_async"]


def shell(script, *arguments, environment):
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", *COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.servers
def test_characters_outside_the_encoding_of_the_terminal_are_escaped(environment, tmp_path):
    environment = {**environment, "PYTHONIOENCODING": "latin-1"}
    labels = '"$@" wikidata labels Q42'
    download = f'"$@" batches download latest {ARCHIVE} --quiet --to "{tmp_path}/Ł/"'
    result = shell(f"{labels} && {download}", environment=environment)
    assert result.returncode == 0, result.stderr
    assert r"/\u0141/" in result.stdout
    assert [path.is_file() for path in (tmp_path / "Ł").rglob(f"{ARCHIVE}.tar.gz")] == [True]


@pytest.mark.parametrize(
    ("closed", "heard"),
    [
        pytest.param("<&-", True, marks=pytest.mark.servers),
        pytest.param(">&-", False, marks=pytest.mark.servers),
        pytest.param("2>&-", True, marks=pytest.mark.servers),
        ("<&- >&- 2>&-", False),
    ],
)
def test_a_command_runs_with_closed_standard_streams(environment, closed, heard):
    result = shell(f'"$@" {closed}', "codes", "get", "wiki", environment=environment)
    assert result.returncode == 0, result.stderr
    assert bool(result.stdout) == heard


@pytest.mark.parametrize(
    ("arguments", "role", "number"),
    [
        (["projects", "ls"], "auth", signal.SIGINT),
        (["projects", "ls"], "api", signal.SIGTERM),
        (["stream"], "realtime", signal.SIGINT),
        (["stream"], "realtime", signal.SIGHUP),
        (["lookup"], None, signal.SIGINT),
    ],
)
def test_a_signal_stops_a_command_wherever_it_hangs(world, environment, arguments, role, number, python):
    fault = None if role is None else world.faults.inject("hang_head", role=role, times=1)
    process: Any = subprocess.Popen(
        [python, "-m", "wme_async", "-vv", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if fault is None:
        # It says nothing, so it is heard that it reads: a full pipe is emptied.
        size = fcntl.fcntl(process.stdin, fcntl.F_GETPIPE_SZ)
        process.stdin.write("x\n" * size)
        process.stdin.flush()
    else:
        deadline = time.monotonic() + 30
        while not fault.hits:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)  # another process: there is nothing to wait on
    process.send_signal(number)
    # Its input stays open all the while.
    process.wait(timeout=20)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    # These keep nothing: the same command begins anew.
    assert errors.endswith("stopped\n")


def test_a_batch_that_is_interrupted_says_how_to_go_on(world, environment, tmp_path, python):
    stalled = world.faults.inject("hang_head", role="store", times=None)
    folder = ["batch", "--directory", str(tmp_path), "--allow-host", "127.0.0.1"]
    process: Any = subprocess.Popen(
        [python, "-m", "wme_async", *folder, "submit", f"{world.store_url}/a"],
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    identifier = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    stalled.remove()
    command = f"wme-async batch --directory {tmp_path} --allow-host 127.0.0.1 watch {identifier}"
    assert errors == f"stopped; go on with: {command}\n"
    assert process.returncode == 130


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    (tmp_path / "click.py").write_text("raise ImportError('no click', name='click')")
    result = subprocess.run(
        [sys.executable, "-m", "wme_async", "demo"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "pip install 'wme-async[cli]'" in result.stderr


@pytest.mark.servers
def test_the_demo_passes_its_own_checks(environment, python):
    result = subprocess.run(
        [python, "-m", "wme_async", "demo", "--megabytes", "2"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "checks passed" in result.stdout.splitlines()[-1]


def test_look_ups_take_titles_as_arguments_or_lines(run, world):
    records = lines(run("lookup", "Squirrel", "--where", "is_part_of.identifier=enwiki"))
    assert [record["name"] for record in records] == ["Squirrel"]
    names = run("lookup", "Squirrel", "--field", "is_part_of.identifier", "--limit", "2").stdout.split()
    assert len(names) == 2
    missing = run("lookup", "Squirrel", "No such page at all", "--limit", "1", code=3)
    assert "No such page at all: no such page" in missing.stderr
    assert "1 of 2 titles" in missing.stderr
    assert lines(run("structured", "Squirrel", "--fields", "name,abstract", "--limit", "1"))


def test_one_field_is_printed_through_lists_and_wildcards(run, world):
    world.pages.add(
        {
            "name": "Field",
            "identifier": 8,
            "is_part_of": {"identifier": "enwiki"},
            "categories": [{"name": "A"}, {"name": "B"}],
            "version": {"identifier": 9},
            "visibility": {"text": False, "editor": True, "comment": False},
        }
    )
    for field, printed in (
        ("categories.name", '["A","B"]'),
        ("categories.*", '[{"name":"A"},{"name":"B"}]'),
        ("version.*", '{"identifier":9}'),
        ("version.identifier", "9"),
        ("version.is_minor_edit", "false"),
        ("watchers_count", "0"),
        ("abstract", ""),
        ("visibility.user", "true"),
        ("main_entity.identifier", "null"),
    ):
        assert run("lookup", "Field", "--limit", "1", "--field", field).stdout == f"{printed}\n", field
    (whole,) = lines(run("lookup", "Field", "--limit", "1", "--field", "*"))
    assert whole["name"] == "Field"


def test_entities_files_and_quotas(run):
    assert lines(run("wikidata", "items", "Q42"))
    assert lines(run("wikidata", "labels", "Q42"))
    assert lines(run("quota"))[0]["snapshot"]["pool"] == "snapshot"


def test_a_query_is_explained_without_being_sent(run, world):
    before = len(world.requests)
    output = run("explain", "batches", "--where", "size.value=0.5", "--fields", "identifier").stdout
    assert "here: filter size.value" in output
    assert "can be filtered by" in run("explain", "realtime.articles").stdout
    assert "takes no query" in run("explain", "nothing", code=2).stderr
    assert len(world.requests) == before


def test_explain_describes_what_a_look_up_does(run):
    language = ("--where", "in_language.identifier=fr")
    output = run("explain", "articles", *language, "--where", "version.identifier=5", "--fields", "name").stdout
    assert "sent: instead, limit 10" in output
    assert "is_part_of.identifier besides" in output
    output = run("explain", "structured_contents", "--fields", "version.identifier").stdout
    assert "sent: instead, whole fields version" in output
    for command in ("explain", "lookup"):
        subject = "articles" if command == "explain" else "NATO"
        assert "alone gives wrong results" in run(command, subject, "--where", "version.identifier=5", code=2).stderr


def test_an_unstructured_article_is_a_warning_where_one_field_is_printed(run, world):
    requests = ("structured", "Squirrel", "--limit", "1", "--field", "sections")
    assert not run(*requests).stderr
    world.faults.inject("raw", role="api", times=1)
    output = run(*requests)
    assert output.stdout == "[]\n"
    assert "Squirrel: an unstructured article came" in output.stderr


def test_batches_run_without_a_service(run, world, tmp_path):
    folder = ["batch", "--directory", str(tmp_path / "here"), "--allow-host", "127.0.0.1"]
    hour = world.hours[-1].replace("T", "/")
    urls = [f"wme:batches/{hour}/{ARCHIVE}", f"{world.store_url}/nothing"]
    result = run(*folder, "submit", *urls, code=1)
    identifier = result.stdout.split()[0]
    assert "1 succeeded, 1 failed" in result.stdout
    assert "nothing" in result.stderr
    batch = lines(run(*folder, "status", identifier))[0]
    assert [job["status"] for job in batch["jobs"]] == ["completed", "failed"]
    assert (tmp_path / "here" / batch["jobs"][0]["file_info"]["filepath"]).is_file()
    assert lines(run(*folder, "status"))[0]["batch_id"] == identifier
    assert "batch_" in run(*folder, "retry", identifier).stdout
    run(*folder, "retry", identifier, batch["jobs"][0]["job_id"], code=1)
    run(*folder, "retry", identifier, f"job_{identifier}_9", code=3)
    again = run(*folder, "retry", identifier, batch["jobs"][1]["job_id"]).stdout.split()[0]
    assert [job["url"] for job in lines(run(*folder, "status", again))[0]["jobs"]] == [batch["jobs"][1]["url"]]
    assert "cannot be cancelled" in run(*folder, "cancel", identifier, code=1).stderr
    run(*folder, "status", "batch_none", code=3)
    run(*folder, "submit", "ftp://x", code=2)


def test_only_a_command_that_waits_for_a_batch_runs_its_jobs(run, world, tmp_path, monkeypatch):
    folder = ["batch", "--directory", str(tmp_path / "here"), "--allow-host", "127.0.0.1"]
    hour = world.hours[-1].replace("T", "/")

    async def accept():
        async with Client(**world.client_options()) as client:
            manager = BatchManager(tmp_path / "here", client=client)
            await manager.start(jobs=False)
            batch = await manager.submit([f"wme:batches/{hour}/{ARCHIVE}"])
            await manager.aclose()
        return batch.batch_id

    identifier = asyncio.run(accept())
    before = len(world.requests)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("WME_USERNAME", "")
        for command in (["status"], ["status", identifier], ["pause", identifier], ["resume", identifier]) * 2:
            run(*folder, *command)
        assert lines(run(*folder, "status", identifier))[0]["queued_jobs"] == 1
    assert len(world.requests) == before
    run(*folder, "pause", identifier)
    assert "is paused; resume it first: wme-async batch " in run(*folder, "watch", identifier, code=1).stderr
    assert "is paused" in run(*folder, "watch", code=1).stderr
    run(*folder, "resume", identifier)
    assert "1 succeeded" in run(*folder, "watch").stdout
    assert "every batch has ended" in run(*folder, "watch").stderr


@pytest.mark.parametrize("command", [("batch", "status"), ("serve", "--port", "0")])
def test_a_folder_in_use_and_a_damaged_database_are_one_line(run, tmp_path, command):
    hidden = tmp_path / "downloads" / ".wme-jobs"
    hidden.mkdir(parents=True)
    group, *options = command
    arguments = [group, "--directory", str(tmp_path / "downloads"), *options]
    with contextlib.closing(sqlite3.connect(hidden / "jobs.sqlite.lock", isolation_level=None)) as held:
        held.execute("BEGIN EXCLUSIVE")
        assert "Error: another batch manager is using" in run(*arguments, code=1).stderr
    (hidden / "jobs.sqlite").write_bytes(b"no database" * 100)
    assert f"Error: {hidden / 'jobs.sqlite'} is not a jobs database" in run(*arguments, code=1).stderr


def test_batches_run_with_a_service(run, world, environment, tmp_path, python):
    command = [python, "-m", "wme_async", "serve", "--port", "0", "--directory", str(tmp_path)]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        key = process.stdout.readline().split()[1]
        url = process.stdout.readline().split()[2]
        service = ["batch", "--server", url, "--api-key", key]
        hour = world.hours[-1].replace("T", "/")
        result = run(*service, "submit", "--name", "This hour", f"wme:batches/{hour}/{ARCHIVE}")
        identifier = result.stdout.split()[0]
        assert "completed: 1 succeeded" in result.stdout
        assert lines(run(*service, "status"))[0]["name"] == "This hour"
        assert lines(run(*service, "status", identifier))[0]["completed_jobs"] == 1
        assert lines(run(*service, "status"))
        run(*service, "status", "batch_none", code=3)
        assert "HTTP 401" in run("batch", "--server", url, "status", code=4).stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_every_command_explains_itself(run):
    for name in root.list_commands(click.Context(root)):
        assert run(name, "--help").stdout.startswith("Usage:")


@pytest.fixture
def terminal(monkeypatch):
    """What is printed where a person looks at it: wide, without colours."""

    def console(**options):
        file = io.StringIO()
        options.update(file=file, force_terminal=True, color_system=None, width=200, markup=False, emoji=False)
        return file, TerminalConsole(**options)

    (out, stdout), (err, stderr) = console(), console(soft_wrap=True)
    for module in (base, console_module):
        monkeypatch.setattr(module, "stdout", stdout)
        monkeypatch.setattr(module, "stderr", stderr)
    return out, err


def test_on_a_terminal_lists_are_tables_and_records_are_indented(run, terminal):
    out, err = terminal
    run("projects", "ls", "--where", "in_language.identifier=de")
    assert "identifier" in out.getvalue()
    assert re.search(r"\bdewiki\b.*\bWikipedia\b.*\bhttps://de", out.getvalue())
    assert " in all" in out.getvalue()
    run("languages", "get", "en")
    assert '  "identifier": "en"' in out.getvalue()
    run("batches", "ls", "latest", "--where", "namespace.identifier=0")
    run("quota")
    assert re.search(r"chunk +\d+", out.getvalue())
    run("lookup", "Squirrel", "[/x]", "--limit", "1", code=3)
    assert "Squirrel" in out.getvalue()
    assert "[/x]: no such page" in err.getvalue()
    assert "{" not in run("projects", "ls").stdout


def test_on_a_terminal_a_column_shows_lists_and_wildcards(run, world, terminal):
    out, _ = terminal
    page = {"name": "Column", "is_part_of": {"identifier": "enwiki"}, "categories": [{"name": "A"}, {"name": "B"}]}
    world.pages.add({**page, "version": {"identifier": 9}})
    run("lookup", "Column", "--limit", "1", "--fields", "categories.name,version.*")
    assert '["A","B"]' in out.getvalue()
    assert '{"identifier":9}' in out.getvalue()
    run("lookup", "Column", "--limit", "1", "--fields", "*")
    assert '"name":"Column"' in out.getvalue()


def test_on_a_terminal_downloads_have_a_bar(run, terminal, tmp_path):
    _, err = terminal
    run("batches", "download", "latest", ARCHIVE, "--to", f"{tmp_path}/")
    assert ARCHIVE in err.getvalue()
    run("files", "download", "Ottawa 0757.jpg", "--to", f"{tmp_path}/media/")
    assert "Ottawa 0757.jpg" in err.getvalue()
    assert (tmp_path / "media" / "Ottawa_0757.jpg").is_file()
    assert "unchanged" in run("batches", "download", "latest", ARCHIVE, "--to", f"{tmp_path}/", "--if-changed").stdout


def test_on_a_terminal_batches_have_a_bar_and_a_table(run, world, terminal, tmp_path):
    out, err = terminal
    folder = ["batch", "--directory", str(tmp_path), "--allow-host", "127.0.0.1"]
    url = f"wme:batches/{world.hours[-1].replace('T', '/')}/{ARCHIVE}"
    identifier = run(*folder, "submit", url).stdout.split()[0]
    assert f"{identifier}, 1/1 completed" in err.getvalue()
    assert "1 succeeded" in run(*folder, "watch", identifier).stdout
    run(*folder, "status", identifier)
    run(*folder, "status")
    assert re.search(rf"{identifier} +completed +1 +1 +0 ", out.getvalue())
    assert url in out.getvalue()


def test_a_media_file_is_described(run):
    assert lines(run("files", "get", "Ottawa 0757.jpg"))[0]["name"]


def test_the_commands_are_listed_without_being_loaded(run):
    listed = run("-h").stdout
    for name in ("batch", "demo", "lookup", "serve", "simulate", "stream"):
        assert re.search(rf"^  {name} +\S", listed, re.MULTILINE)


def test_latest_skips_hours_without_batches(run, world):
    late = world.faults.inject("status", role="api", path="/v2/batches/", status=404, times=1)
    assert lines(run("batches", "ls", "latest"))
    assert late.hits == 1
    none = world.faults.inject("status", role="api", path="/v2/batches/", status=404, times=None)
    assert "none of the last 6 hours" in run("batches", "ls", "latest", code=3).stderr
    # Where the hour turns on the way, it begins anew.
    assert 6 <= none.hits <= 7
    none.remove()


def four_ports():
    """The first of four free ones in a row, below those that the system gives away."""
    first = 12_000 + os.getpid() % 4000 * 4
    for start in range(first, first + 4000, 4):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(start, start + 4):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return start
    raise AssertionError("no four ports in a row are free")


@pytest.mark.parametrize("arguments", [(), ("--rate", "50", "--port")])
def test_a_simulator_runs_until_it_is_stopped(arguments, python):
    if arguments:
        arguments = (*arguments, str(four_ports()))
    command = [python, "-m", "wme_async", "simulate", "--articles", "1", *arguments]
    process: Any = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    names = {process.stdout.readline().removeprefix("export ").partition("=")[0] for _ in range(4)}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert {"WME_AUTH_URL", "WME_API_URL"} & names
    assert process.returncode == 130


def test_commands_control_the_batches_of_a_service(run, world, tmp_path, monkeypatch, python):
    assert "exclude each other" in run("serve", "--no-key", "--api-key", "k", code=2).stderr
    monkeypatch.setenv("WME_USERNAME", "")
    command = [python, "-m", "wme_async", "serve", "--port", "0", "--no-key", "--allow-host", "127.0.0.1"]
    process: Any = subprocess.Popen([*command, "--directory", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[2]
        service = ["batch", "--server", url]
        stalled = world.faults.inject("hang_head", role="store", times=None)
        submitted = run(*service, "submit", "--detach", f"{world.store_url}/a", f"{world.store_url}/b").stdout
        identifier = submitted.split()[0]
        assert "paused" in run(*service, "pause", identifier).stdout
        assert re.search("queued|running", run(*service, "resume", identifier).stdout)
        assert "cancelled" in run(*service, "cancel", identifier).stdout
        stalled.remove()
        run(*service, "retry", identifier, code=1)
        failed = run(*service, "submit", f"{world.store_url}/nothing", code=1).stdout.split()[0]
        second = run(*service, "retry", failed).stdout.split()[0]
        assert second not in {failed, identifier}
        run(*service, "retry", failed, f"job_{failed}_1", code=3)
        third = run(*service, "retry", failed, f"job_{failed}_0").stdout.split()[0]
        assert lines(run(*service, "status", third))[0]["total_jobs"] == 1
        run(*service, "watch", second, code=1)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    world.faults.inject("status", role="store", status=200, body=b"<html>")
    assert "not a batch service" in run("batch", "--server", world.store_url, "status", code=1).stderr


def test_commands_run_without_uvloop(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert lines(run("codes", "get", "wiki"))


def test_an_archive_goes_to_standard_output(run, world):
    hour = world.hours[-2]
    [row] = lines(run("batches", "get", hour, ARCHIVE))
    result = run("batches", "download", hour, ARCHIVE, "--to", "-")
    assert hashlib.md5(result.stdout_bytes).hexdigest() == row["version"]
    for option in (["--force"], ["--if-changed"], ["--name", "x"], ["--no-verify"], ["dewiki_namespace_0"]):
        output = run("batches", "download", hour, ARCHIVE, "--to", "-", *option, code=2).stderr
        assert "--to - writes one archive" in output


def test_a_file_of_another_version_is_replaced_by_force_alone(run, world, tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(b"mine")
    command = ["batches", "download", world.hours[-2], ARCHIVE, "--to", str(path)]
    output = run(*command, code=1).stderr
    assert hashlib.md5(b"mine").hexdigest() in output
    assert "--force" in output
    assert path.read_bytes() == b"mine"
    assert "MD5 matches" in run(*command, "--force").stdout
    assert "unchanged" in run(*command).stdout
    path.write_bytes(b"mine")
    assert "MD5 matches" in run(*command, "--if-changed").stdout


def test_a_name_is_a_template_below_the_folder(run, world, tmp_path):
    command = ["batches", "download", world.hours[-2], ARCHIVE, "dewiki_namespace_0", "--to", str(tmp_path / "data")]
    run(*command, "--name", "{identifier}")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "dewiki_namespace_0.tar.gz",
        f"{ARCHIVE}.tar.gz",
    ]
    before = len(world.requests)
    for template in ("{date}", "x", "../{identifier}", "{title}", "{chunk}-{identifier}"):
        assert "name" in run(*command, "--name", template, code=2).stderr
    assert len(world.requests) == before


def test_an_upload_of_a_media_file_is_replaced_by_force_alone(run, tmp_path):
    command = ["files", "download", "Ottawa 0757.jpg", "--to", f"{tmp_path}/media/"]
    run(*command)
    assert "unchanged" in run(*command).stdout
    (tmp_path / "media" / "Ottawa_0757.jpg").write_bytes(b"mine")
    assert "SHA-1" in run(*command, code=1).stderr
    run(*command, "--force")
    assert (tmp_path / "media" / "Ottawa_0757.jpg").read_bytes() != b"mine"
