"""Shell lines of the README and of the page of the command line, run against a simulator started as they say."""

import doctest
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("pyarrow")  # the pages write Parquet

from shell_pages import Shell, simulated, statements
from test_docs import DOCS, ROOT, Block, blocks, simulate_line

pytestmark = [pytest.mark.posix, pytest.mark.timeout(180)]

NOT_RUN = "<!-- not run: "


def shown(page: Path) -> list[Block]:
    """Return the blocks of shell that are run, and the output that follows them."""
    text = page.read_text().partition("<!-- made by")[0]
    listed = []
    for block in blocks(page):
        if block.line > text.count("\n") or NOT_RUN in block.gap.rpartition("\n\n")[2] + block.gap[-120:]:
            continue
        if block.language in {"sh", "text"}:
            listed.append(block)
    return listed


def _without_missing_tools(line: str) -> str:
    """Return a line whose output goes to `cat` in place of a program that this machine lacks."""
    return re.sub(r"\| jq .*", "| cat", line) if shutil.which("jq") is None else line


def _without_numbers(text: str) -> str:
    """Return a text with all numbers, and blanks between columns, alike: they depend on the hour."""
    return re.sub(" +", " ", re.sub(r"\d+(?:[.,:]\d+)*", "0", text))


@pytest.mark.servers
@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "cli.md"], ids=lambda page: page.stem)
def test_every_shell_line_of_a_page_works(page: Path, python: str, tmp_path: Path) -> None:
    checker = doctest.OutputChecker()
    with simulated(python, simulate_line(page)) as variables:
        shell = Shell(tmp_path, python, variables)
        screen = ""
        for block in shown(page):
            where = f"{page.name}, line {block.line + 1}"
            if block.language == "sh":
                lines = [line for line in statements(block.body) if not line.startswith("wme-async simulate")]
                screen = "".join(shell.run(_without_missing_tools(line)) for line in lines)
            elif not block.gap.strip():
                example, printed = _without_numbers(block.body), _without_numbers(screen)
                assert checker.check_output(example, printed, doctest.ELLIPSIS), f"{where} prints:\n{screen}"


def test_the_first_example_of_the_readme_works_by_copy_and_paste(python: str, tmp_path: Path) -> None:
    page = ROOT / "README.md"
    example = next(block.body for block in blocks(page) if block.language == "python")
    (tmp_path / "example.py").write_text(example)
    with simulated(python, simulate_line(page)) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        result = subprocess.run(
            [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50
        )
    assert result.returncode == 0, result.stderr
    assert "enwiki_namespace_0" in result.stdout
    assert list(tmp_path.rglob("enwiki_namespace_0.tar.gz"))


def test_the_tables_of_options_are_those_of_the_commands() -> None:
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = module.TARGET.read_text("utf-8").partition(module.MARK)[2]
    assert tables == f"\n{module.render()}", "run python docs/make_cli.py"
