"""The documentation: what it shows is run, what it names is there, and what it draws is so."""

import ast
import asyncio
import codeop
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import library_stand_ins
import pytest
from shell_pages import simulated, statements
from wall_clock import utc_now

from wme_async import Client, errors
from wme_async.simulator import Firehose, Simulator, faults

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

# A page that names an hour of its own is run at that time.
AT = datetime(2025, 7, 16, 8, tzinfo=UTC)

_FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<language>[\w{}-]*)[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = "# not run: "
_HIDDEN = re.compile(r"<!-- not run: (.*) -->\s*$")
_EXAMPLE = re.compile(r"# examples/(\w+\.py)\n")

# What the code of a page needs beside the package.
NEEDS = {
    "tutorial-data": ("pyarrow", "duckdb"),
    "tutorial-web": ("fastapi",),
    "tutorial-notebook": ("pandas",),
    "jobs": ("fastapi",),
    "relay": ("starlette", "fastapi", "litestar"),
    "retrieval": ("selectolax", "duckdb"),
    "tasks": ("pyarrow",),
    "embedding": ("fastapi", "starlette"),
    "observability": ("opentelemetry.sdk", "prometheus_client"),
}


class Block(NamedTuple):
    language: str
    body: str
    line: int
    gap: str  # what stands between it and the block before


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    parsed, end = [], 0
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body"))
        before, body = text[end : match.start()], match["body"]
        # A reason above a block is not shown on the page; one within it is.
        hidden = _HIDDEN.search(before)
        if hidden is not None and match["language"] == "python":
            body = f"{_NOT_RUN}{hidden[1]}\n{body}"
        parsed.append(Block(match["language"], body, line, before))
        end = match.end()
    return parsed


def name_of(page: Path) -> str:
    return page.stem.lower()


def with_python(pages: list[Path]) -> list[Path]:
    return [page for page in pages if any(block.language == "python" for block in blocks(page))]


def run(block: Block, page: Path, namespace: dict[str, Any], runner: asyncio.Runner) -> str:
    """Run one block as `python -m asyncio` would, and return what it printed."""
    # A page takes the date from this machine, and the simulator from the clock of the tests.
    body = block.body.replace("datetime.now(UTC)", "utc_now()")
    namespace["utc_now"] = utc_now
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile("\n" * block.line + body, str(page), "exec", flags=flags, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, namespace)
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(result)
    return printed.getvalue()


def run_page(page: Path, python: str, namespace: dict[str, Any], runner: asyncio.Runner) -> None:
    """Run the blocks of a page in turn; a block of text right behind one is what it prints."""
    checker, printed = doctest.OutputChecker(), None
    tests: list[Block] = []
    code: list[str] = []
    for block in blocks(page):
        if "\nfrom app import " in block.body and not Path("app.py").exists():
            Path("app.py").write_text("\n\n".join(code))  # the page says so
        if block.language == "python":
            code.append(block.body)
        if block.language == "python" and re.search(r"def test_\w+\(wme_(simulator|environment)", block.body):
            printed = None
            tests.append(block)
        elif block.language == "python" and _EXAMPLE.match(block.body):
            printed = None  # `test_examples` runs the file
        elif block.language == "python":
            printed = None if block.body.startswith(_NOT_RUN) else run(block, page, namespace, runner)
        elif block.language == "text" and printed is not None and not block.gap.strip():
            where = f"{page.name}, line {block.line + 1}"
            assert checker.check_output(block.body, printed, doctest.ELLIPSIS), f"{where} prints:\n{printed}"
            printed = None
        else:
            printed = None
    if tests:
        run_with_pytest(python, tests)


def run_with_pytest(python: str, tests: list[Block]) -> None:
    """Run tests that are shown, away from our own configuration."""
    names = [f"test_shown_{number}.py" for number in range(len(tests))]
    for name, block in zip(names, tests, strict=True):
        Path(name).write_text(block.body)
    Path("pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    # Two plugins by name: to load all that are installed here takes longer than the rest.
    plugins = [
        f"-p{name}" for name in ("no:cacheprovider", "pytest_asyncio.plugin", "wme_async.simulator.pytest_plugin")
    ]
    command = [python, "-m", "pytest", "-q", *plugins, *names]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert result.returncode == 0, result.stdout
    assert f"{sum(block.body.count('def test_') for block in tests)} passed" in result.stdout


def simulate_line(page: Path) -> str:
    """Return the line that starts the simulator of a page."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in statements(block.body)]
    return next(line for line in lines if line.startswith("wme-async simulate"))


@contextlib.contextmanager
def publishing(firehose: Firehose) -> Iterator[None]:
    """Publish some events a second from another thread, as `wme-async simulate --rate` does."""
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.01):
            firehose.publish_many(5)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def marked(page: Path) -> Any:
    """Return a page as a parameter; the longer tutorials start a simulator of their own, and pytest."""
    slow = page.stem.startswith("tutorial-") or page.stem == "tasks"
    return pytest.param(page, marks=[pytest.mark.servers] if slow else [], id=name_of(page))


@pytest.mark.parametrize("page", [marked(page) for page in with_python(PAGES)])
def test_the_code_of_a_page_runs_and_prints_its_output(
    page: Path, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in NEEDS.get(page.stem, ()):
        pytest.importorskip(module, reason=f"the page shows {module}, which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "app", None)  # `app.py` of one page is not that of another
    monkeypatch.delitem(sys.modules, "app")
    library_stand_ins.install(monkeypatch)
    start = AT if "2025-07-16" in page.read_text() else None
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    with contextlib.ExitStack() as stack:
        if page.stem.startswith("tutorial"):
            pytest.importorskip("click")
            environment = stack.enter_context(simulated(python, simulate_line(page)))
        else:
            simulator = stack.enter_context(Simulator.run_in_thread(start=start))
            environment = simulator.environment()
        runner = stack.enter_context(asyncio.Runner())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if page.stem in {"README", "realtime", "relay", "sharing"}:
            stack.enter_context(publishing(simulator.firehose))
        try:
            run_page(page, python, namespace, runner)
        finally:
            for value in namespace.values():
                if isinstance(value, Client):
                    runner.run(value.aclose())


def test_code_that_is_not_run_has_a_reason() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python" and block.body.startswith("# not run"):
                reason = block.body.partition("\n")[0].removeprefix(_NOT_RUN)
                assert len(reason.split()) >= 3, f"{page.name}, line {block.line + 1}"


def test_examples_on_pages_are_those_of_the_files() -> None:
    shown = set()
    for page in PAGES:
        for block in blocks(page):
            if match := _EXAMPLE.match(block.body):
                code, file = block.body[match.end() :], (ROOT / "examples" / match[1]).read_text()
                assert code.count("\n") > 5
                assert code in file, f"{page.name}, line {block.line + 1}: copy it from {match[1]} again"
                shown.add(match[1])
    assert len(shown) >= 6


def test_code_hosts_show_all_of_a_page() -> None:
    """They ignore directives, so that only the page of the API, which is made of docstrings, may depend on them."""
    allowed = {"toctree", "include"}
    for page in PAGES:
        if page.stem != "api":
            directives = {block.language.strip("{}") for block in blocks(page) if block.language.startswith("{")}
            assert directives <= allowed, page.name


def test_every_fence_has_a_language() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"python", "text", "sh", "toml", "json"} or block.language.startswith("{"), (
                f"{page.name}, line {block.line}: {block.language!r}"
            )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_links_of_the_readme_work_on_the_package_index_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Source"]
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text())
    for target in [*targets, *project["urls"].values()]:
        assert target.startswith("https://"), f"{target} is dead where the README is shown without the repository"
        match = re.fullmatch(rf"{re.escape(repository)}/(?:blob|tree)/main/(.+)", target)
        assert match is None or (ROOT / match[1]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_name_commands_and_options_that_exist(page: Path) -> None:
    pytest.importorskip("click")
    for block in blocks(page):
        if block.language == "sh":
            for line in block.body.splitlines():
                words = shlex.split(line.partition("|")[0], comments=True)
                while words and "=" in words[0]:
                    words = words[1:]
                if words[:1] == ["wme-async"]:
                    assert _unknown_words(words[1:]) is None, line


def test_every_command_and_exit_code_is_described() -> None:
    pytest.importorskip("click")
    import click

    from wme_async.cli.base import EXIT_CODES
    from wme_async.cli.root import root

    text = (DOCS / "cli.md").read_text()
    commands = root.list_commands(click.Context(root))
    assert [name for name in commands if not re.search(rf"(`|wme-async ){name}[` ]", text)] == []
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert codes == {0, 2, 130, *(code for _, code in EXIT_CODES)}


def _unknown_words(words: list[str]) -> str | None:
    """Return the first word that the command line would not know; None if there is none."""
    import click

    from wme_async.cli.root import root

    command: click.Command = root
    context = click.Context(root)
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            known = {option: parameter for parameter in command.params for option in parameter.opts}
            name, has_value, _ = word.partition("=")
            if name not in {*known, "--help", "--version"}:
                return word
            if not has_value and not getattr(known.get(name), "is_flag", True):
                next(rest, None)
        elif isinstance(command, click.Group):
            subcommand = command.get_command(context, word)
            if subcommand is None and hasattr(command, "default"):
                subcommand = command.get_command(context, command.default)
            if subcommand is None:
                return word
            command, context = subcommand, click.Context(subcommand, parent=context)
    return None


def drawn(text: str) -> dict[str, str]:
    """Read a tree that is drawn by indentation: name to parent."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        names = re.match(r"\s*((?:[A-Z]\w+(?: \d(?:\d\d|xx))?(?:\s{1,2}|$))+)", line)
        if names is None:
            continue
        depth = len(line) - len(line.lstrip())
        above = [(at, name) for at, name in above if at < depth]
        kinds = re.findall(r"[A-Z]\w+", names[1])
        for name in kinds:
            parents[name] = above[-1][1] if above else "Exception"
        above.append((depth, kinds[-1]))
    return parents


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    kinds = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in kinds}
    page = next(block.body for block in blocks(DOCS / "errors.md") if block.body.startswith("WMEError"))
    docstring = (errors.__doc__ or "").partition("Misuse")[0]
    assert drawn(docstring.partition("\n")[2]) == real
    assert drawn(page) == real


def test_every_error_is_explained() -> None:
    text = (DOCS / "errors.md").read_text()
    leaves = [name for name in errors.__all__ if name[0].isupper()]
    assert [name for name in leaves if f"`{name}`" not in text] == []


def constants() -> str:
    """Return all literal texts of the package, the page included."""
    texts = [(ROOT / "wme_async" / "web" / "page.html").read_text()]
    for path in (ROOT / "wme_async").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(texts)


def test_messages_that_are_explained_are_those_of_the_package() -> None:
    page, texts = (DOCS / "troubleshooting.md").read_text(), constants()
    explained = [
        row.split("|")[1] for row in page.splitlines() if row.startswith("| ") and not row.startswith("| message")
    ]
    quoted = [text for cell in explained for text in re.findall(r"`([^`]+)`", cell)]
    messages = [text for text in quoted if text not in {*errors.__all__, "OSError", "NO ANSWER", "No space left"}]
    assert len(messages) > 25
    for message in messages:
        # What is put into a message is written {} here.
        assert all(part in texts for part in message.split("{}")), message
    leaves = {name for name in errors.__all__ if name[0].isupper()} - {
        "WMEError",
        "TransportError",
        "StatusError",
        "DataError",
    }
    assert sorted(leaves - set(quoted)) == []


def test_the_page_for_programs_names_every_page() -> None:
    linked = re.findall(r"^- \[[^\]]+\]\(([\w-]+)\.md\): \w", (DOCS / "llms.txt").read_text(), re.MULTILINE)
    assert sorted(linked) == sorted({page.stem for page in DOCS.glob("*.md")} - {"index"})


def test_every_fault_is_in_the_catalogue() -> None:
    kinds = {*faults.KINDS, *faults.STREAM_KINDS}
    for text in (faults.__doc__ + (DOCS / "testing.md").read_text(), (DOCS / "testing.md").read_text()):
        assert sorted(kind for kind in kinds if f"`{kind}`" not in text) == []


def test_the_tests_that_are_named_as_proofs_are_there() -> None:
    there = {name for path in ROOT.glob("tests/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = re.findall(r"`(test_\w+)`", (DOCS / "why.md").read_text())
    assert len(named) > 10
    assert set(named) - there == set()


PUBLIC = ["wme_async", "wme_async.errors", "wme_async.models", "wme_async.offsets", "wme_async.simulator"]
PUBLIC += ["wme_async.jobs", "wme_async.tasks", "wme_async.web"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_on_the_api_page(name: str) -> None:
    public = importlib.import_module(name).__all__
    text = (DOCS / "api.md").read_text()
    whole = re.findall(r"automodule:: ([\w.]+)\n(?: +:(?!no-members)[\w-]+:.*\n)* +:members:", text)
    named = re.findall(r"auto(?:class|function|data|exception):: ([\w.]+)", text)
    try:
        modules = [importlib.import_module(module_name) for module_name in whole]
    except ImportError:
        pytest.skip("the page shows modules of extras that are not installed")
    shown = {name.rpartition(".")[2] for name in named} | {name for module in modules for name in module.__all__}
    assert sorted(set(public) - shown - {"__version__"}) == []


def test_every_integration_is_on_the_api_page_and_shown_in_use() -> None:
    pages = {page.stem: page.read_text() for page in DOCS.glob("*.md")}
    for path in (ROOT / "wme_async" / "integrations").glob("[!_]*.py"):
        assert f"automodule:: wme_async.integrations.{path.stem}\n   :members:" in pages["api"], path.stem
        shown = rf"from (`|)wme_async\.integrations\.{path.stem}\b"
        assert any(re.search(shown, text) for name, text in pages.items() if name != "api"), path.stem


@pytest.mark.parametrize("part", ["auth", "files", "realtime", "wikidata"])
def test_every_part_of_a_client_is_on_the_api_page(part: str) -> None:
    home = type(getattr(Client("a", "b"), part))
    text = (DOCS / "api.md").read_text()
    home = type(Client("a", "b").wikidata.items) if part == "wikidata" else home
    methods = [name for name, value in vars(home).items() if inspect.isfunction(value) and not name.startswith("_")]
    shown = set(re.findall(rf"automethod:: {home.__module__}\.{home.__name__}\.(\w+)", text))
    assert f".. class:: wme.{part}" in text
    assert sorted({*methods} - shown - {"save"}) == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^(\w[\w-]*)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in {*listed, "index"}) == []


AT_A_PROMPT = [page for page in PAGES if "python -m asyncio" in page.read_text()]


@pytest.mark.parametrize("page", AT_A_PROMPT, ids=name_of)
def test_code_of_a_page_for_the_prompt_can_be_pasted_there(page: Path) -> None:
    # The prompt of Python 3.11 and 3.12 compiles line by line: an empty line ends a block, and is nowhere in it.
    for block in blocks(page):
        if block.language != "python" or block.body.startswith(_NOT_RUN):
            continue
        compiler = codeop.CommandCompiler()
        compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        lines: list[str] = []
        for number, line in enumerate([*block.body.splitlines(), ""], block.line + 1):
            lines.append(line)
            try:
                complete = compiler("\n".join(lines)) is not None
            except SyntaxError:
                pytest.fail(f"{page.name}, line {number}: the prompt does not accept it: {line}")
            if complete:
                lines.clear()
        assert not lines, f"{page.name}, line {block.line}: the block does not end"
