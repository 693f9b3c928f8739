"""The door of the command line: one line and an exit code for every exception, and no control characters of others."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.simulator import Simulator

click = pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner  # noqa: E402  # behind its extra
from command_walk import commands  # noqa: E402  # same
from rich.table import Table  # noqa: E402  # same
from rich.text import Text  # noqa: E402  # same

from wme_async.cli.root import root  # noqa: E402  # same
from wme_async.cli.terminal import LogFormatter, TerminalConsole, one_line, visible  # noqa: E402  # same

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e\u2066\r"


@pytest.fixture(scope="module")
def world():
    with Simulator.run_in_thread(articles=3) as simulator:
        yield simulator


@pytest.fixture
def environment(world, tmp_path, monkeypatch):
    values = {**world.environment(), "WME_TOKEN_FILE": str(tmp_path / "tokens.json")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def invoke(*arguments, **options):
    # Uncaught exceptions leave the runner, and fail the test.
    return CliRunner().invoke(root, arguments, catch_exceptions=False, **options)


def test_values_of_an_event_that_does_not_decode_are_a_bad_record(environment, world):
    world.call(world.firehose.publish, b'{"name":"\xff","event":{"partition":0,"offset":0}}', partition=0)
    world.call(world.firehose.publish, partition=0)
    command = ("stream", "--since", "1m", "--limit", "1", "--fields", "name", "--raw")
    result = invoke(*command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "UTF-8" in result.stderr
    result = invoke(*command, "--skip-bad")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["projects", "ls", "--where", "identifier=\x1b[31m"],
        ["batches", "ls", "2020-01-01T00\x1b[2J"],
        ["--env-file", "/dev/null/\x1b[31m", "quota"],
        ["explain", "\x1b[31m"],
        ["lookup", "\x1b[31mA", "--limit", "1"],
        ["wikidata", "items", "Q\x1b[31m"],
        ["stream", "--since", "\x1b[31m"],
        ["stream", "--offsets", "/dev/null/\x1b[31m/o.db", "--limit", "1"],
        ["files", "download", "\x1b[31m", "--to", "/dev/null/x"],
    ],
    ids=lambda value: ascii("-".join(value)),
)
def test_values_with_control_characters_come_back_visible(environment, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert "\x1b" not in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def run(python):
    """Run a command in a process of its own, after some lines of Python."""

    def call(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, prelude="", interpreter=(), **environment):
        code = f"import sys; sys.argv[0] = 'wme-async'\n{prelude}\nfrom wme_async.__main__ import main; main()"
        variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        return subprocess.run(
            [python, *interpreter, "-c", code, *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            timeout=60,
            check=False,
        )

    return call


STRICT = ("-W", "error")


def test_a_full_disk_is_one_line(environment, run):
    with Path("/dev/full").open("wb") as full:
        for arguments in (["lookup", "--help"], ["codes", "ls"]):
            result = run(*arguments, stdout=full, interpreter=STRICT)
            assert result.returncode == 1
            assert result.stderr.count(b"\n") == 1
            assert result.stderr.startswith(b"Error: ")
        assert run("codes", "ls", stdout=full, stderr=full).returncode == 1


def test_an_error_is_shown_where_the_environment_says_that_there_are_no_columns(environment, monkeypatch, run):
    monkeypatch.setenv("COLUMNS", "0")
    assert run("snapshots", "nothing").stderr.startswith(b"Error: there is no command")


@pytest.mark.parametrize("arguments", [["lookup", "--help"], ["codes", "ls"]])
def test_a_closed_pipe_ends_a_command_without_an_error(environment, arguments, run):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run(*arguments, stdout=writer, interpreter=STRICT)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


NOBODY = """
import pwd
def unknown(*_): raise KeyError('no entry')
pwd.getpwuid = unknown
"""


def test_without_a_home_tokens_are_not_kept(environment, run):
    environment = {**environment, "HOME": None, "XDG_STATE_HOME": None, "WME_TOKEN_FILE": None}
    result = run("lookup", "Squirrel", "--limit", "1", prelude=NOBODY, **environment)
    assert b"Traceback" not in result.stderr
    assert b"tokens are not kept" in result.stderr
    assert result.returncode == 0, result.stderr


FEW = """
import contextlib, os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with contextlib.suppress(OSError):
    while True:
        os.open(os.devnull, os.O_RDONLY)
os.close(39)
"""


def test_without_descriptors_it_is_one_line(environment, run):
    load = "import wme_async.cli.root, wme_async._client, ssl, asyncio"
    result = run("codes", "ls", prelude=f"{load}\n{FEW}", **environment)
    assert result.returncode == 1
    assert b"never awaited" not in result.stderr
    assert b"Traceback" not in result.stderr
    assert result.stderr.startswith(b"Error: ")


def test_a_missing_extra_is_one_line(environment, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("wme_async.integrations.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = invoke("batches", "read", "latest", "enwiki_namespace_0", "--to", f"{tmp_path}/a.parquet")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "wme-async[arrow]" in result.stderr


def test_the_traceback_of_any_error_is_shown_on_request(environment, monkeypatch, run):
    monkeypatch.setattr(root.commands["explain"], "callback", lambda **_: 1 / 0)
    result = invoke("explain", "articles")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ZeroDivisionError: ")
    assert "-vv" in result.stderr
    assert result.stderr.count("\n") == 1
    broken = "from wme_async.cli.root import root\nroot.commands['explain'].callback = lambda **_: 1 / 0"
    assert b"Traceback" in run("-vv", "explain", "articles", prelude=broken).stderr


def test_each_exit_code_is_documented():
    help_text = " ".join(invoke("--help").stdout.split())
    documented = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert documented == ["0", "1", "2", "3", "4", "5", "130"]
    for code in documented:
        assert re.search(rf"\b{code} [a-z]", help_text)


@given(st.text())
def test_no_control_character_is_left(text):
    shown = visible(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()
    assert "\n" not in one_line(text)
    # In the notation of JSON, so that JSON keeps its meaning.
    if not re.search("[\ud800-\udfff]", text):
        assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text


def test_tables_texts_and_styles_of_a_console_are_safe():
    file = io.StringIO()
    console = TerminalConsole(file=file, force_terminal=True, color_system="truecolor", width=100)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for renderable in (HOSTILE, Text.assemble((HOSTILE, "bold red"), HOSTILE), table):
        console.print(renderable, style="red")
    console.print_json(json.dumps({"title": HOSTILE}))
    own_styles = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066]", own_styles)
    assert own_styles.count("\\u202e") >= 5


def test_log_lines_are_safe_and_single():
    formatter = LogFormatter("%(levelname)s: %(message)s")
    record = logging.LogRecord("a", logging.INFO, "", 1, "answer %s", (f"{HOSTILE}\nERROR: forged",), None)
    line = formatter.format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\\u001b[2J" in line


@pytest.fixture
def on_a_terminal(monkeypatch):
    """Run commands whose output goes to a pseudo-terminal; what it receives is a few hundred bytes."""

    def call(*arguments):
        leader, follower = pty.openpty()
        with os.fdopen(leader, "rb", 0) as screen, os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
            patch.setenv("TERM", "dumb")
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            with pytest.raises(SystemExit):
                root.main(arguments, prog_name="wme-async")
            terminal.write("\0")  # the end: a pseudo-terminal has none while it is open
            terminal.flush()
            output = b""
            while not output.endswith(b"\0"):
                output += screen.read(65536)
        return output[:-1].decode().replace("\r\n", "\n")

    return call


def test_titles_and_errors_are_safe_on_a_terminal_and_json_stays_json(environment, world, on_a_terminal, run):
    page = {"name": "Hostile", "identifier": 8, "is_part_of": {"identifier": "enwiki"}}
    world.pages.add({**page, "abstract": HOSTILE, "url": f"https://example.org/{HOSTILE}"})
    for arguments in (["--fields", "abstract"], ["--field", "abstract"], ["--json"]):
        output = on_a_terminal("lookup", "Hostile", "--limit", "1", *arguments)
        assert "u202e" in output
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", output), arguments
    assert json.loads(output)["abstract"] == HOSTILE
    # Into a pipe, a value is unchanged; in a process, whose streams are those of the system.
    assert run("lookup", "Hostile", "--limit", "1", "--field", "abstract").stdout == f"{HOSTILE}\n".encode()
    world.faults.inject("status", role="api", status=422, body=json.dumps({"message": HOSTILE}).encode(), times=1)
    output = on_a_terminal("codes", "ls")
    assert "\\u001b" in output
    assert "\x1b" not in output


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_titles_and_env_files_are_read_in_any_unicode_encoding(environment, world, tmp_path, monkeypatch, encoding):
    world.pages.add({"name": "Straße", "identifier": 8, "is_part_of": {"identifier": "dewiki"}})
    result = invoke("lookup", "--field", "name", input="Straße\r\n".encode(encoding))
    assert result.stdout == "Straße\n"
    file = tmp_path / "account.env"
    names = ("WME_USERNAME", "WME_PASSWORD")
    file.write_bytes("".join(f"{name}={environment[name]}\n" for name in names).encode(encoding))
    for name in names:
        monkeypatch.delenv(name)
    assert invoke("--env-file", str(file), "codes", "ls").exit_code == 0


def test_another_encoding_is_named_with_file_and_line(environment, tmp_path):
    file = tmp_path / "account.env"
    file.write_bytes("WME_USERNAME=a\nWME_PASSWORD=ß\n".encode("latin-1"))
    result = invoke("--env-file", str(file), "codes", "ls")
    assert result.exit_code == 2
    assert "account.env, line 2" in result.stderr
    result = invoke("lookup", input="A\nStraße\n".encode("latin-1"))
    assert result.exit_code == 2
    assert "standard input, line 2" in result.stderr


def documented_variables():
    """Return the environment variables that the help of any command or the page of the command line names."""
    texts = [invoke(*path, "--help").stdout for path, _ in commands()]
    texts.append((ROOT / "docs" / "cli.md").read_text())
    return {name for text in texts for name in re.findall(r"\bWME_[A-Z_]+\b", text)}


def serve_with(python, keys, directory, *options, **environment):
    """Start the service, and return its first lines and the statuses that each of some keys is answered.

    The key that it prints, if any, is tried first.
    """
    command = [python, "-m", "wme_async", "serve", "--port", "0", "--directory", str(directory), *options]
    environment = {**os.environ, "WME_USERNAME": "", "WME_PASSWORD": "", **environment}
    process: Any = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        printed: list[str] = []
        while not printed or "serving at" not in printed[-1]:
            printed.append(process.stdout.readline())
            assert printed[-1], printed
        url = printed[-1].split()[-1]
        keys = [*(line.split()[1] for line in printed if line.startswith("X-API-Key")), *keys]
        statuses = []
        for key in keys:
            request = urllib.request.Request(f"{url}/api/v1/batch", headers={"X-API-Key": key})
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    statuses.append(response.status)
            except urllib.error.HTTPError as error:
                statuses.append(error.code)
                error.close()
        return printed, statuses
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_key_of_a_folder_is_printed_once_and_outlives_a_restart(tmp_path, python):
    printed, statuses = serve_with(python, [], tmp_path)
    assert statuses == [200]
    (key,) = (line.split()[1] for line in printed if line.startswith("X-API-Key"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    hash_file = tmp_path / ".wme-jobs" / "api-key"
    assert hash_file.stat().st_mode & 0o077 == 0
    printed, statuses = serve_with(python, [key, "wrong"], tmp_path)
    assert statuses == [200, 401]
    assert key not in "".join(printed)
    assert "--new-key replaces it" in printed[0]
    printed, statuses = serve_with(python, [key], tmp_path, "--new-key")
    assert statuses == [200, 401]
    hash_file.write_text("nothing of the kind")
    result = invoke("serve", "--port", "0", "--directory", str(tmp_path))
    assert (result.exit_code, "--new-key" in result.stderr) == (1, True)
    for options in (("--no-key",), ("--api-key", "k" * 20)):
        assert invoke("serve", "--new-key", *options).exit_code == 2


def test_every_documented_variable_has_an_effect(world, environment, tmp_path, monkeypatch, python):
    accounts = {"WME_USERNAME", "WME_PASSWORD"}
    hosts = {"WME_AUTH_URL", "WME_API_URL", "WME_REALTIME_URL"}
    # An account: without one of the two there is none, with both a token is fetched and kept.
    for name in sorted(accounts):
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert invoke("codes", "ls").exit_code != 0, name
    assert invoke("codes", "ls").exit_code == 0
    assert (tmp_path / "tokens.json").is_file()  # WME_TOKEN_FILE
    for name in sorted(hosts):
        with monkeypatch.context() as patch:
            patch.setenv(name, "not a url")
            result = invoke("codes", "ls")
            assert result.exit_code == 2, name
            assert name.split("_")[1].lower() in result.stderr
    with monkeypatch.context() as patch:
        patch.setenv("WME_ACCESS_TOKEN", "a.b.c")
        patch.delenv("WME_USERNAME")
        patch.delenv("WME_PASSWORD")
        assert invoke("codes", "ls").exit_code == 4
    file = tmp_path / "account.env"
    file.write_text("".join(f"{name}={environment[name]}\n" for name in sorted(accounts)))
    with monkeypatch.context() as patch:
        for name in accounts:
            patch.delenv(name)
        patch.setenv("WME_ENV_FILE", str(file))
        assert invoke("codes", "ls").exit_code == 0
    key, other = "wme_first_key_0123456789", "wme_second_key_0123456789"
    _, statuses = serve_with(python, [key, other, "wrong"], tmp_path / "a", WME_SERVE_API_KEY=f"{key} {other}")
    assert statuses == [200, 200, 401]
    with monkeypatch.context() as patch:
        patch.setenv("WME_BATCH_API_KEY", "wme_sent_0123456789")
        assert invoke("batch", "--server", world.api_url, "status").exit_code != 0
    assert any(("X-API-Key", "wme_sent_0123456789") in record.headers for record in world.requests)
    for name, value in (("WME_PROFILE", "nobody"), ("WME_PROXY", "not a url")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert invoke("codes", "ls").exit_code == 2, name
    probed = (
        accounts
        | hosts
        | {"WME_PROFILE", "WME_PROXY", "WME_TOKEN_FILE", "WME_ACCESS_TOKEN", "WME_ENV_FILE", "WME_SERVE_API_KEY"}
    )
    assert documented_variables() == probed | {"WME_BATCH_API_KEY"}
