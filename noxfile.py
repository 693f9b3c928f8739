"""Everything that can be checked, one session for what each proves. `nox -l` lists them.

Sessions install exact versions with hashes from `locks/`, so that what passes today passes on any later day.
`nox -s lock` renews them; `newest` and `lowest` run the suite on the newest releases and on the oldest that the
metadata admits.
"""

import ast
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "types"]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = (
    *("cli", "fast", "arrow", "cloud", "media", "html", "mirror"),
    *("postgres", "redis", "kafka", "nats", "dask", "otel"),
)

# The lock files: extras of the package (None where the package is not installed), and dependency groups.
LOCKS: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...]]] = {
    "nox": (None, ("nox",)),
    "lock": (None, ("lock",)),
    "lint": (None, ("lint",)),
    "demo": (("cli",), ()),
    "tests": (EXTRAS, ("tests", "integrations")),
    "types": (EXTRAS, ("tests", "integrations", "types")),
    "torture": (EXTRAS, ("tests", "integrations", "fuzz")),
    "docs": (("cli",), ("docs",)),
    "bench": (("cli", "fast", "arrow", "mirror"), ("bench",)),
    "extra-none": ((), ("tools",)),
    **{f"extra-{extra}": ((extra,), ("tools",)) for extra in EXTRAS},
}

# The tests of what an extra adds; `tests/test_extras.py` runs with each.
OF_EXTRA: dict[str, list[str]] = {
    "none": [
        "test_client",
        "test_bulk_tasks",
        "test_download",
        "test_archive",
        "test_stream",
        "test_jobs_manager",
        "test_web",
        "test_web_lifespan",
        "test_web_streams",
    ],
    "cli": [
        "test_cli",
        "test_cli_errors",
        "test_cli_login",
        "test_cli_reading",
        "test_cli_signals",
        "test_cli_tables",
        "test_cli_tasks",
        "test_cli_walk",
    ],
    "fast": ["test_decode", "test_inflaters", "test_archive", "test_read_many", "test_takeover"],
    "arrow": ["test_arrow", "test_arrow_json", "test_arrow_source"],
    "cloud": ["test_cloud", "test_bulk_objects"],
    "media": ["test_jobs_media", "test_media_guard"],
    "html": ["test_html_text"],
    "mirror": [
        "test_mirror",
        "test_mirror_histories",
        "test_mirror_operation",
        "test_mirror_rule",
        "test_mirror_store",
    ],
    "postgres": ["test_lease_stores", "test_mirror_postgres"],
    "redis": ["test_lease_stores"],
    "kafka": ["test_bridges", "test_bridge_messages", "test_kafka"],
    "nats": ["test_bridges", "test_bridge_messages", "test_nats"],
    "dask": ["test_dask"],
    "otel": ["test_otel"],
}

# When the tests of `calendar` begin, each of them anew.
MOMENTS = {
    "month": "2027-04-30T23:59:01+00:00",
    "year": "2026-12-31T23:59:01+00:00",
    "leap-day": "2028-02-29T12:00:00+00:00",
    "midnight": "2027-03-14T23:59:55+00:00",
    "hour": "2027-03-14T11:59:55+00:00",
    "batches": "2027-03-14T12:24:55+00:00",
    # Within nearly every test a month, a day, an hour, a minute and a second turn.
    "turn": "2027-06-30T23:59:59.95+00:00",
}


def groups(*names: str) -> list[str]:
    """Return the requirements of dependency groups."""
    return list(nox.project.dependency_groups(PROJECT, *names))


def install(session: nox.Session, lock: str) -> None:
    """Install what a lock file holds, and the package where it belongs to it."""
    session.install("--require-hashes", "-r", f"locks/{lock}.txt")
    if LOCKS[lock][0] is not None:
        # The build backend is locked as well, so that the build takes nothing from elsewhere.
        session.install("--no-deps", "--no-build-isolation", "-e", ".")


def suite(session: nox.Session, env: dict[str, str] | None = None, *options: str) -> None:
    """Run the test suite on three processes, since some tests wait; arguments go to pytest."""
    session.run("pytest", *options, *(session.posargs or ["-q", "-n", "3", "--dist", "worksteal"]), env=env)


def pure_modules() -> list[str]:
    """Return the modules that tests/test_shape.py keeps pure."""
    tree = ast.parse((ROOT / "tests" / "test_shape.py").read_text())
    assignments = (node for node in tree.body if isinstance(node, ast.Assign))
    values = (node.value for node in assignments if ast.unparse(node.targets[0]) == "PURE")
    return list(ast.literal_eval(next(values)))


@nox.session
def demo(session: nox.Session) -> None:
    """Show the whole job on the simulator: sign in, list, download, read, follow the stream, nothing lost."""
    install(session, "demo")
    session.run("wme-async", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite; arguments go to pytest."""
    install(session, "tests")
    suite(session)


@nox.session
def servers(session: nox.Session) -> None:
    """Run what the suite leaves out: PostgreSQL, restarts of servers, a browser, processes that are killed."""
    install(session, "tests")
    suite(session, None, "-m", "servers")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and spelling."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell", "wme_async", "tests", "examples", "docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: mypy strict on all of it, pyright on what users see."""
    install(session, "types")
    session.run("mypy")
    session.run("mypy", "tests/portable_site/sitecustomize.py")
    session.run("pyright", "--verifytypes", "wme_async", "--ignoreexternal")
    session.run("pyright", "tests/typing_usage.py")


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure branch coverage of `tests` and `servers` together: all of the pure files, 95 % of the package."""
    install(session, "tests")
    # The plug-in is loaded before pytest-cov would start to look, so coverage starts first.
    session.run("coverage", "erase")
    for selection in ("not servers", "servers"):
        session.run("coverage", "run", "-m", "pytest", "-q", "-m", selection, *session.posargs)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report", "--fail-under=95")
    pure = ",".join(f"wme_async/{name}" for name in [*pure_modules(), "errors.py"])
    session.run("coverage", "report", "--fail-under=100", f"--include={pure}")


@nox.session
def uvloop(session: nox.Session) -> None:
    """Run the test suite on uvloop."""
    install(session, "tests")
    suite(session, {"WME_TEST_LOOP": "uvloop"})


@nox.session
@nox.parametrize("moment", list(MOMENTS), ids=list(MOMENTS))
def calendar(session: nox.Session, moment: str) -> None:
    """Run the test suite with the clock at the turn of months, years, days and hours, and on 29 February."""
    install(session, "tests")
    suite(session, {"WME_TEST_MOMENT": MOMENTS[moment], "PYTHONPATH": str(ROOT / "tests" / "calendar_site")})


@nox.session
def portable(session: nox.Session) -> None:
    """Run the test suite with everything hidden from the product that only POSIX systems have."""
    install(session, "tests")
    suite(session, {"WME_TEST_PORTABLE": "1", "PYTHONPATH": str(ROOT / "tests" / "portable_site")})


@nox.session(reuse_venv=False)
@nox.parametrize("extra", ["none", *EXTRAS], ids=["none", *EXTRAS])
def extras(session: nox.Session, extra: str) -> None:
    """Run the tests of each extra where it alone is installed, and check the messages where others are missing."""
    install(session, f"extra-{extra}")
    files = [f"tests/{name}.py" for name in ("test_extras", *OF_EXTRA[extra])]
    everything = ("-m", "servers or not servers")
    session.run("pytest", "-q", "-n", "2", *everything, *(session.posargs or files), env={"WME_TEST_EXTRA": extra})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory beside references in the same run; arguments choose parts."""
    install(session, "bench")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def torture(session: nox.Session) -> None:
    """Cut, kill and starve it for minutes, and count what was lost."""
    install(session, "torture")
    session.run("pytest", "-q", "-m", "torture", "--timeout=3600", *session.posargs)
    if not session.posargs:
        session.run("pytest", "-q", "-m", "hypothesis", "--hypothesis-profile=thorough", "--timeout=3600")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")


@nox.session
def newest(session: nox.Session) -> None:
    """Run the suite on the newest releases of everything, without the locks."""
    session.install("-U", "-e", f".[{','.join(EXTRAS)}]", *groups("tests", "integrations"))
    suite(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the suite on the oldest versions that the metadata admits."""
    install(session, "lock")
    python = f"--python={session.virtualenv.location}"
    session.run_install(
        "uv", "pip", "install", python, "--resolution", "lowest-direct", "-e", ".[cli]", *groups("tests")
    )
    suite(session)


@nox.session
def lock(session: nox.Session) -> None:
    """Renew all lock files; arguments go to `uv pip compile`, such as `--upgrade-package=msgspec`."""
    install(session, "lock")
    folder = Path(session.create_tmp())
    for name, (extras_of, groups_of) in LOCKS.items():
        options = [f"--extra={extra}" for extra in extras_of or ()]
        options += [f"--group={group}" for group in (*groups_of, *(() if extras_of is None else ("build",)))]
        target = folder / f"{name}.txt"
        if (old := ROOT / "locks" / target.name).exists():
            shutil.copy(old, target)
        session.run(
            *("uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11", "--generate-hashes"),
            # Nothing is built from source: that would run what no hash of ours covers.
            *("--only-binary=:all:", "--emit-build-options", "--no-annotate", "--output-file", str(target)),
            *([] if extras_of is None else ["pyproject.toml"]),
            *options,
            *(session.posargs or ["--upgrade"]),
            env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"},
        )
        shutil.copy(target, old)


if __name__ == "__main__":
    sys.exit("run me by nox")
