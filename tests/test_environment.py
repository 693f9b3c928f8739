"""The suite runs where its session says: on the event loop, at the moment and on the versions that it names."""

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from wall_clock import now, utc_now

from wme_async.simulator import Clock

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "locks").glob("*.txt"))


async def test_the_event_loop_is_the_one_that_the_session_names() -> None:
    module = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    assert module == os.environ.get("WME_TEST_LOOP", "asyncio")


def test_product_simulator_and_their_processes_begin_at_the_moment_that_the_session_names() -> None:
    moment = os.environ.get("WME_TEST_MOMENT")
    start = datetime.fromisoformat(moment) if moment else utc_now()
    code = "from wme_async import _clock; from wme_async.simulator import Clock; print(_clock.now(), Clock().now())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    readings = [now(), Clock().now(), *map(float, result.stdout.split())]
    assert all(0 <= reading - start.timestamp() < 60 for reading in readings), readings


def pins(lock: Path) -> dict[str, str]:
    """Return the versions of a lock file by name; raise if a line has another shape or no hash."""
    versions: dict[str, str] = {}
    lines = lock.read_text().replace("\\\n", "").splitlines()
    for line in lines:
        if line and not line.startswith(("#", "--only-binary :all:")):
            match = re.fullmatch(
                r"([A-Za-z0-9_.-]+)==(\S+)( ;[^\\]+?)?((?: +--hash=sha256:[0-9a-f]{64})+)", line.strip()
            )
            assert match is not None, f"{lock.name} has the line {line[:80]!r}"
            versions[str(canonicalize_name(match[1]))] = match[2]
    return versions


def requirements() -> list[Requirement]:
    """Return all requirements of the metadata: of the package, its extras, the dependency groups and the build."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    lists.append(PROJECT["build-system"]["requires"])
    return [Requirement(line) for lines in lists for line in lines if isinstance(line, str)]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_file_has_hashes_and_no_builds_from_source_and_fits_the_metadata(lock: Path) -> None:
    versions = pins(lock)
    assert "--only-binary :all:\n" in lock.read_text()
    assert versions
    for requirement in requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is None or requirement.specifier.contains(version, prereleases=True), (
            f"{lock.name} pins {requirement.name} {version}, and {requirement} is asked for: run `nox -s lock`"
        )


def test_every_requirement_is_locked() -> None:
    locked = {name for lock in LOCKS for name in pins(lock)}
    missing = {requirement.name for requirement in requirements()} - locked
    assert not {canonicalize_name(name) for name in missing} - locked, "run `nox -s lock`"


def test_the_commands_of_the_readme_install_what_is_locked_and_are_found_by_the_pipeline() -> None:
    commands = re.findall(r"^(python3 -m venv .*nox -s \w+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [command.rpartition(" ")[2] for command in commands] == ["demo", "tests"]
    for command in commands:
        assert " --require-hashes -r locks/nox.txt " in command
    pipeline = ROOT / ".ci" / "run"
    if pipeline.is_file():
        script = next(line for line in pipeline.read_text().splitlines() if line.startswith("command="))
        found = subprocess.run(
            ["bash", "-c", f'{script}; printf %s "$command"'], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert found.stdout == commands[1]
