"""Everything that can be checked, one session for what each proves. `nox -l` lists them."""

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True
nox.options.sessions = ["tests", "lint", "types"]

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")


def groups(*names: str) -> list[str]:
    """Return the requirements of dependency groups."""
    return list(nox.project.dependency_groups(PROJECT, *names))


@nox.session
def demo(session: nox.Session) -> None:
    """Show the whole job on the simulator: sign in, list, download, read, follow the stream, nothing lost."""
    session.install("-e", ".[cli]")
    session.run("wme-async", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite on two processes; arguments go to pytest."""
    session.install("-e", ".[cli,fast,arrow,cloud,media]", *groups("tests", "integrations"))
    arguments = session.posargs or ["-q", "-n", "2"]
    session.run("pytest", *arguments)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and spelling."""
    session.install(*groups("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell", "wme_async", "tests", "examples", "docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: mypy strict on all of it, pyright on what users see."""
    session.install("-e", ".[cli,fast,arrow,cloud,media]", *groups("tests", "integrations", "types"))
    session.run("mypy")
    session.run("pyright", "--verifytypes", "wme_async", "--ignoreexternal")
    session.run("pyright", "tests/typing_usage.py")


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure branch coverage: all of the pure files, 95 % of the package."""
    session.install("-e", ".[cli,fast,arrow,cloud,media]", *groups("tests", "integrations"))
    # The plug-in is loaded before pytest-cov would start to look, so coverage starts first.
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-q", *session.posargs)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report", "--fail-under=95")
    session.run("coverage", "report", "--fail-under=100", "--include=wme_async/_protocol/*,wme_async/errors.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory beside references in the same run; arguments choose parts."""
    session.install("-e", ".[cli,fast]", *groups("bench"))
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def torture(session: nox.Session) -> None:
    """Cut, kill and starve it for minutes, and count what was lost."""
    session.install("-e", ".[cli,fast,media]", *groups("tests", "integrations", "fuzz"))
    session.run("pytest", "-q", "-m", "torture", "--timeout=3600", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install("-e", ".[cli]", *groups("docs"))
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the suite on the oldest versions that the metadata admits."""
    session.install("uv")
    python = f"--python={session.virtualenv.location}"
    session.run_install(
        "uv", "pip", "install", python, "--resolution", "lowest-direct", "-e", ".[cli]", *groups("tests")
    )
    session.run("pytest", "-q", *session.posargs)


if __name__ == "__main__":
    sys.exit("run me by nox")
