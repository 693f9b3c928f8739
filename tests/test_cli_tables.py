"""Tables of the command line: they fit the terminal, and nothing that a reader would copy is cut or broken."""

import asyncio
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from wme_async.cli import base, tables, terminal
from wme_async.cli.root import root
from wme_async.cli.terminal import TerminalConsole
from wme_async.jobs import BatchManager
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"


@pytest.fixture(scope="module")
def world():
    with Simulator.run_in_thread(articles=3) as simulator:
        yield simulator


@pytest.fixture
def environment(world, tmp_path, monkeypatch):
    for name, value in {**world.environment(), "WME_TOKEN_FILE": str(tmp_path / "tokens.json")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def screen(environment, monkeypatch):
    """Run a command on a terminal of some width; returns the lines of its standard output."""

    def call(*arguments, width=80, code=0):
        files = {name: io.StringIO() for name in ("stdout", "stderr")}
        for name, file in files.items():
            console = TerminalConsole(
                file=file, force_terminal=True, color_system=None, width=width, markup=False, emoji=False
            )
            for module in (base, terminal):
                monkeypatch.setattr(module, name, console)
        result = CliRunner().invoke(root, arguments, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return files["stdout"].getvalue().splitlines()

    return call


def shown(records, columns, width, **options):
    """Return what a table of records looks like on a terminal."""
    file = io.StringIO()
    console = TerminalConsole(file=file, force_terminal=True, color_system=None, width=width, markup=False, emoji=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "stdout", console)
        tables.show(records, as_json=False, columns=columns, title="title", **options)
    return file.getvalue().splitlines()


WORDS = st.text("abcdefghij-_0123456789", min_size=1, max_size=40)
RECORDS = st.lists(st.fixed_dictionaries({"id": WORDS, "text": WORDS, "url": WORDS}), min_size=1, max_size=4)


@given(RECORDS, st.integers(20, 100), st.booleans())
def test_an_identifier_is_whole_at_any_width(records, width, chosen):
    lines = shown(records, ("id", "text", "url"), width, chosen=chosen)
    for record in records:
        assert any(record["id"] in line for line in lines)
        if chosen:  # columns that the user chose are all there
            for value in record.values():
                assert any(value in line for line in lines)


@given(RECORDS, st.integers(50, 100))
def test_lines_fit_the_terminal_if_their_first_column_does(records, width):
    for line in shown(records, ("id", "text"), width):
        assert len(line) <= width


def test_prose_is_folded_between_words():
    records = [{"id": "wiki", "description": "a kind of project that has many words " * 3}]
    lines = shown(records, ("id", "description"), 60)
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()).count("a kind of project that has many words") == 3


def test_columns_that_do_not_fit_are_named():
    records = [{"id": "x" * 30, "name": "y" * 30, "language": "en"}]
    lines = shown(records, ("id", "name", "language"), 60)
    assert "x" * 30 in lines[2]
    assert lines[-1] == "not shown here: name, language; --json shows all"


@pytest.mark.parametrize("width", [60, 80])
def test_lists_of_archives_show_whole_identifiers_and_sizes_with_a_unit(screen, width):
    lines = screen("batches", "ls", "latest", width=width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert re.search(rf"^{ARCHIVE} +[\d.]+ [kM]?B +\d{{4}}-\d\d-\d\d \d\d:\d\d\b", text, re.MULTILINE)
    assert not re.search(r"[0-9a-f]{32}", text)
    assert re.search(r"^\d+ in all, [\d.]+ [kM]B$", text, re.MULTILINE)
    rows = [json.loads(line) for line in json_lines("batches", "ls", "latest")]
    for row in rows:
        assert re.search(rf"^{re.escape(row['identifier'])}( |$)", text, re.MULTILINE)


def json_lines(*arguments):
    result = CliRunner().invoke(root, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "arguments",
    [
        ("codes", "ls"),
        ("languages", "ls"),
        ("projects", "ls"),
        ("namespaces", "ls"),
        ("snapshots", "ls"),
        ("chunks", "ls", ARCHIVE),
        ("structured-snapshots", "ls"),
        ("projects", "ls", "--fields", "identifier,url,name,in_language"),
        ("lookup", "Squirrel", "--limit", "3"),
    ],
    ids=" ".join,
)
def test_the_first_column_of_every_list_is_whole(screen, arguments, width):
    text = "\n".join(screen(*arguments, width=width))
    for line in json_lines(*arguments):
        record = json.loads(line)
        key = "name" if arguments[0] == "lookup" else "identifier"
        assert str(record[key]) in text
        if arguments[0] == "projects":
            assert record["url"] in text


def test_lists_are_sorted_and_limited(screen):
    sizes = [json.loads(line)["size"]["value"] for line in json_lines("snapshots", "ls", "--sort", "-size")]
    assert sizes == sorted(sizes, reverse=True)
    names = [json.loads(line)["identifier"] for line in json_lines("projects", "list", "--sort", "identifier")]
    assert names == sorted(names)
    # What it is sorted by need not be printed.
    few = json_lines("projects", "ls", "--sort", "-name", "--limit", "2", "--fields", "identifier")
    assert [list(json.loads(line)) for line in few] == [["identifier"]] * 2
    assert any(line.startswith("2 of ") for line in screen("projects", "ls", "--limit", "2"))


def test_values_alone_are_for_other_commands(environment):
    lines = json_lines("projects", "ls", "--fields", "identifier,in_language.identifier", "--raw")
    assert "enwiki\ten" in lines
    assert json_lines("projects", "get", "enwiki", "--fields", "in_language.identifier", "--raw") == ["en"]
    assert json_lines("projects", "get", "enwiki", "--field", "identifier") == ["enwiki"]
    assert "--fields" in CliRunner().invoke(root, ["projects", "ls", "--raw"]).stderr
    assert "--field " not in CliRunner().invoke(root, ["projects", "ls", "--help"]).stdout


def test_the_status_of_batches_is_whole_and_pages_over_all_of_them(screen, tmp_path):
    folder = ("batch", "--directory", str(tmp_path))

    async def submit(count):
        manager = BatchManager(tmp_path)
        await manager.start(jobs=False)
        batches = [await manager.submit([f"https://example.org/{number}"]) for number in range(count)]
        await manager.aclose()
        return [batch.batch_id for batch in batches]

    identifiers = asyncio.run(submit(52))
    text = "\n".join(screen(*folder, "ls", width=60))
    for identifier in identifiers:
        assert re.search(rf"^{identifier} +queued +1 +0 +0$", text, re.MULTILINE)
    url = f"https://example.org/{'long-' * 20}"
    [identifier] = json_lines(*folder, "submit", "--detach", url)
    assert url in "\n".join(screen(*folder, "status", identifier, width=60))
