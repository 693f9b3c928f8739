"""The shape of the package: who may import whom, what is exported, and that documents agree with metadata."""

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wme_async"
PUBLIC_NAMES = (ROOT / "tests" / "public_names.txt").read_text().split()

# Rows from the top: a module imports only from rows above its own and from its own room, which is a package or a module
# directly in `wme_async`. Rooms of row 0 may import each other.
ROWS = [
    [
        "_arguments",
        "_clock",
        "_files",
        "_platform",
        "_rates",
        "_sqlite",
        "_tasks",
        "_telemetry",
        "_text",
        "_version",
        "errors",
        "models",
        "settings",
    ],
    ["_query", "offsets"],
    ["_transport"],
    ["_download", "_archive", "_stream"],
    ["_client"],
    ["_exports"],
    ["jobs", "mirror", "relay", "integrations", "progress", "tasks"],
    ["engines"],
    ["web"],
    ["__main__", "cli"],
]
APART = "simulator"

# Modules of `integrations` that run or feed other systems, and so use what is in the row of `integrations`.
ENGINES = {f"wme_async.integrations.{name}" for name in ("dask", "kafka", "nats")}

# Decisions: no I/O, no clock, no randomness, nothing asynchronous; all of it is passed in. `nox -s coverage`
# reads this list: every branch of these modules is tested.
PURE = [
    "_archive/field_trimmer.py",
    "_archive/tar.py",
    "_arguments.py",
    "_client/archive_names.py",
    "_client/bulk.py",
    "_client/paths.py",
    "_client/quota.py",
    "_client/resources.py",
    "_client/sync_plan.py",
    "_download/connection_counts.py",
    "_download/etags.py",
    "_download/range_plan.py",
    "_download/range_responses.py",
    "_query/backends.py",
    "_query/model_fields.py",
    "_query/query.py",
    "_query/values.py",
    "_rates.py",
    "_stream/framing.py",
    "_stream/holdings.py",
    "_stream/partitions.py",
    "_stream/record_types.py",
    "_stream/resume.py",
    "_text.py",
    "_transport/error_responses.py",
    "_transport/retry.py",
    "_transport/token_policy.py",
    "integrations/_bridge_messages.py",
    "jobs/disposition.py",
    "jobs/model.py",
    "jobs/naming.py",
    "jobs/states.py",
    "jobs/url_policy.py",
    "jobs/validation.py",
    "jobs/views.py",
    "jobs/wal.py",
    "mirror/marks.py",
    "mirror/records.py",
    "mirror/rule.py",
    "models/decoding.py",
    "models/reading.py",
    "offsets/lease_table.py",
    "settings.py",
]


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py"))


@functools.cache
def syntax_tree(path):
    return ast.parse(path.read_text())


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path):
    """Return the modules of ours that a file imports when it is loaded: not for type checkers, not inside functions."""
    tree = syntax_tree(path)

    def walk(nodes):
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                # `from package import module` needs the module, not what the package makes of it.
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if is_module(name) else node.module for name in below)
            elif isinstance(node, ast.Try | ast.If | ast.With):
                yield from walk(ast.iter_child_nodes(node))
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body)

    return {name for name in walk(tree.body) if name.startswith("wme_async")}


def room(name):
    if name in ENGINES:
        return "engines"
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def row_of(name):
    for number, row in enumerate(ROWS):
        if name in row:
            return number
    return None


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_module_imports_only_from_rows_above_its_own(path):
    own = room(dotted(path))
    if own in {"", APART}:
        return
    row = row_of(own)
    assert row is not None, f"{own} has no row in the table"
    for name in imports(path):
        other = room(name)
        if other in {"", own} or (not (PACKAGE / other).exists() and not (PACKAGE / f"{other}.py").exists()):
            continue
        number = row_of(other)
        if other == "simulator":
            assert own in {"__main__", "cli"}, f"{dotted(path)} imports the simulator"
            continue
        assert number is not None
        assert number < row or number == row == 0, f"{dotted(path)} imports {name}"


def test_contributing_has_the_same_rows():
    rows = re.findall(r"^\| ([0-9]) \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    engines = {f"integrations/{name.rpartition('.')[2]}" for name in ENGINES}
    for number, row in enumerate(ROWS):
        rooms = {room for digit, cell in rows if int(digit) == number for room in re.findall(r"`([a-z_/]+)`", cell)}
        assert rooms == (engines if row == ["engines"] else set(row))


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_modules_that_the_documents_name_exist(document):
    files = {str(path) for folder in ("wme_async", "tests", "docs") for path in (ROOT / folder).rglob("*.*")}
    names = re.findall(r"`([a-z_]+/[a-z_/]+)(?:\.\w+)?`", (ROOT / document).read_text())
    assert names
    stems = tuple(file.rpartition(".")[0] for file in files)
    missing = [name for name in names if not any(stem.endswith(f"/{name}") for stem in stems)]
    assert not missing


def test_the_simulator_imports_nothing_of_ours():
    for path in (PACKAGE / "simulator").rglob("*.py"):
        for name in imports(path):
            assert room(name) == "simulator", f"{dotted(path)} imports {name}"
        assert "import_module" not in path.read_text()


def test_pure_modules_have_no_io_in_them():
    forbidden = {"asyncio", "aiohttp", "time", "random", "anyio", "socket", "os", "threading", "sqlite3", "aiofiles"}
    for name in PURE:
        path = PACKAGE / name
        tree = syntax_tree(path)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{path} is not pure"
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & forbidden, f"{path} imports {names}"


CLOCKS = {"wme_async/_clock.py", "wme_async/simulator/clock.py", "tests/wall_clock.py", "tests/test_shape.py"}
CLOCKS |= {"tests/calendar_site/sitecustomize.py", "tests/typing_usage.py"}
# Functions that read the date or the time of day of this machine, by the name that they are called by.
WALL_CLOCK = {
    f"time.{name}" for name in ("time", "time_ns", "ctime", "localtime", "gmtime", "strftime", "clock_gettime")
}
WALL_CLOCK |= {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "uuid.uuid1", "uuid1"}


def wall_clock_readings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in WALL_CLOCK:
            yield node.id
        elif isinstance(node, ast.Attribute):
            owner = node.value
            name = f"{getattr(owner, 'attr', getattr(owner, 'id', ''))}.{node.attr}"
            if name in WALL_CLOCK:
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names if f"time.{alias.name}" in WALL_CLOCK)


def may_read_the_clock(text):
    """Return whether the text has such a name at all; most have none and need not be parsed."""
    return "from time import" in text or any(name in text for name in WALL_CLOCK)


@pytest.mark.parametrize("folder", ["wme_async", "tests"])
def test_only_the_clock_modules_read_the_wall_clock(folder):
    readings = {
        str(path.relative_to(ROOT)): names
        for path in sorted((ROOT / folder).rglob("*.py"))
        if may_read_the_clock(path.read_text()) and (names := sorted(set(wall_clock_readings(syntax_tree(path)))))
    }
    others = readings.keys() - CLOCKS
    assert not others, f"read the time from wme_async._clock, in tests from wall_clock: {readings}"
    assert "time.time" in readings[f"{folder}/{'_clock' if folder == 'wme_async' else 'wall_clock'}.py"]


def test_there_are_no_import_cycles():
    known = {dotted(path): path for path in modules()}
    graph = {name: {other for other in imports(path) if other in known} - {name} for name, path in known.items()}
    done: set[str] = set()
    active: list[str] = []

    def visit(name):
        if name in done:
            return
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        active.append(name)
        for other in sorted(graph[name]):
            visit(other)
        active.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


@pytest.mark.parametrize("name", ["wme_async", "wme_async.errors", "wme_async.models", "wme_async.offsets"])
def test_all_names_the_public_names_in_order_and_nothing_else_is_public(name):
    module = importlib.import_module(name)
    assert sorted(set(module.__all__)) == module.__all__
    assert set(module.__all__) <= set(dir(module))
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and not isinstance(value, type(sys))
        and getattr(value, "__module__", name) != "typing"
    }
    assert public - set(module.__all__) <= {"Any", "datetime", "TYPE_CHECKING"}


# A public name is a promise. One that is removed here was deprecated in a release before; an added one needs a line.
@pytest.mark.parametrize("name", sorted({line.rpartition(".")[0] for line in PUBLIC_NAMES}))
def test_public_names_stay(name):
    module = pytest.importorskip(name, reason="needs an extra", exc_type=ImportError)
    listed = [line.rpartition(".")[2] for line in PUBLIC_NAMES if line.rpartition(".")[0] == name]
    assert sorted(module.__all__) == listed
    assert all(hasattr(module, key) for key in listed)


def test_a_star_import_binds_the_public_names_and_a_misspelled_name_is_an_attribute_error():
    namespace: dict[str, object] = {}
    exec("from wme_async import *", namespace)  # a star import is a statement of modules alone
    assert namespace.keys() - {"__builtins__"} == {
        line.removeprefix("wme_async.") for line in PUBLIC_NAMES if line.count(".") == 1
    }
    with pytest.raises(AttributeError, match="'wme_async' has no attribute 'Clientele'"):
        _ = importlib.import_module("wme_async").Clientele


# Beside each statement, in a process of its own: modules that it does not load.
NOT_LOADED = {
    "import wme_async; wme_async.NotFound": ["aiohttp", "msgspec", "wme_async._client", "logging"],
    "from wme_async import Article, Snapshot": ["aiohttp", "wme_async._transport", "wme_async.offsets"],
    "from wme_async import SQLiteOffsets, read_archive": ["aiohttp", "wme_async._transport"],
    "from wme_async import Client": [
        *("wme_async._stream", "wme_async._client.sync", "wme_async._client.entities", "wme_async._client.hour_feed"),
        *("wme_async.offsets", "wme_async.jobs", "wme_async.web", "wme_async.relay", "wme_async.integrations"),
        *("wme_async.tasks", "wme_async._client.bulk", "wme_async._client.bulk_plan"),
        *("wme_async.simulator", "wme_async.__main__", "sqlite3", "multiprocessing"),
        *("click", "rich", "pyarrow", "obstore", "yt_dlp", "uvloop", "dotenv"),
    ],
}


@pytest.mark.parametrize("statement", NOT_LOADED)
def test_an_import_loads_no_more_than_the_name_needs_and_configures_nothing(statement):
    code = f"""
{statement}
import sys
loaded = {{*sys.modules}} & {set(NOT_LOADED[statement])}
assert not loaded, loaded
assert "logging" not in sys.modules or not sys.modules["logging"].getLogger().handlers
print("ok")
"""
    # Neither coverage nor what hides parts of the system from the tests is loaded beside it.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTHONPATH"))}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=env
    )
    assert result.stdout == "ok\n", result.stderr


def test_every_module_can_be_imported_alone():
    names = [dotted(path) for path in modules() if path.name != "__main__.py"]
    optional = ("wme_async.integrations", "wme_async.cli")
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    result = subprocess.run(
        [sys.executable, "-c", code, *(name for name in names if not name.startswith(optional))],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr


# Better left whole: the SQL of one schema.
LONGER = {"wme_async.jobs.store": 600}


def test_modules_and_functions_keep_to_the_budget():
    long_modules = {}
    for path in modules():
        text = path.read_text()
        lines = text.count("\n")
        if lines > LONGER.get(dotted(path), 560):
            long_modules[dotted(path)] = lines
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = (node.end_lineno or 0) - node.body[0].lineno + 1
                if ast.get_docstring(node):
                    body -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                assert body <= 70, f"{dotted(path)}.{node.name} has {body} lines"
    assert not long_modules


# What `_platform` hides behind functions with a second way: calls and flags of `os`, and whole modules.
POSIX_CALLS = {
    *("pread", "pwrite", "preadv", "readv", "getxattr", "setxattr", "fstatvfs", "statvfs", "pathconf", "fchmod"),
    *("register_at_fork", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "add_signal_handler"),
}
SYSTEM_MODULES = {"fcntl", "msvcrt", "resource"}


def names_of_systems(tree):
    """Return the calls and modules in a syntax tree that belong into `_platform`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in POSIX_CALLS:
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SYSTEM_MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(alias.name for alias in node.names)}
            yield from names & (SYSTEM_MODULES | (POSIX_CALLS if node.module == "os" else set()))


def test_only_one_module_uses_calls_that_not_every_system_has():
    assert {dotted(path) for path in modules() if set(names_of_systems(syntax_tree(path)))} == {"wme_async._platform"}
    source = "import fcntl\nfrom os import pread\nimport os\nos.fchmod(1, 2)\nopen_file.pread_count\n"
    assert sorted(names_of_systems(ast.parse(source))) == ["fchmod", "fcntl", "pread"]


def test_the_portable_run_hides_all_of_them():
    tree = ast.parse((ROOT / "tests" / "portable_site" / "sitecustomize.py").read_text())
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert constants >= (POSIX_CALLS - {"add_signal_handler"}) | SYSTEM_MODULES


def test_the_readme_names_the_lowest_python_of_the_metadata_and_the_changelog_this_version():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    floor = metadata["project"]["requires-python"].removeprefix(">=")
    assert f"Python {floor}" in (ROOT / "README.md").read_text()
    from wme_async import __version__

    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_core_has_four_dependencies():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {re.split(r"[><=\[ ]", dependency)[0] for dependency in metadata["project"]["dependencies"]}
    assert names == {"aiohttp", "aiofiles", "msgspec", "anyio"}
