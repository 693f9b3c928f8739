"""Each extra adds what it says, and where it is missing the error says what to install.

`nox -s extras` runs this in environments that have one extra alone. What is installed beside it for the tests is little
enough to hide nothing; anywhere else each test goes by what is there.
"""

import asyncio
import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import wme_async
from wme_async import Client, read_archive
from wme_async.models import Article
from wme_async.simulator import Simulator

Run = Callable[..., subprocess.CompletedProcess[str]]

ALONE = os.environ.get("WME_TEST_EXTRA")

# The modules of each extra.
MODULES = {
    "cli": ("click", "rich", "dotenv", "platformdirs"),
    "fast": ("isal", "orjson", "brotli", "uvloop"),
    "arrow": ("pyarrow",),
    "cloud": ("obstore",),
    "media": ("yt_dlp",),
    "html": ("selectolax",),
    "mirror": ("zstandard",),
    "postgres": ("asyncpg",),
    "redis": ("redis",),
    "kafka": ("aiokafka",),
    "nats": ("nats",),
    "dask": ("distributed",),
    "otel": ("opentelemetry",),
}
# What comes with another extra as well: Dask brings click and yaml.
SHARED = {"click", "platformdirs", "rich", "yaml"}
# What users lack, and other tests install: with `requests` yt-dlp goes another way through the network.
FOREIGN = ("requests", "httpx", "fastapi", "starlette", "duckdb", "yaml", "jsonschema", "aioresponses")


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has(extra: str) -> bool:
    return all(installed(module) for module in MODULES[extra])


@pytest.fixture
def run(python: str) -> Run:
    """Run Python with an environment variable for each option."""

    def call(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-W", "error", *arguments]
        environment = {**os.environ, **options}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50, env=environment)

    return call


@pytest.mark.skipif(ALONE is None, reason="environments with one extra are made by `nox -s extras`")
def test_the_environment_has_the_one_extra_that_its_session_names() -> None:
    assert ALONE in {"none", *MODULES}
    others = {module for extra, modules in MODULES.items() if extra != ALONE for module in modules}
    assert {extra for extra in MODULES if has(extra)} == ({ALONE} - {"none"})
    assert not {module for module in (others | set(FOREIGN)) - SHARED if installed(module)}


def test_the_modules_of_the_extras_are_those_of_the_metadata() -> None:
    from importlib.metadata import requires

    names = {
        "cli": {"click", "rich", "python-dotenv", "platformdirs"},
        "media": {"yt-dlp"},
        "nats": {"nats-py"},
        "otel": {"opentelemetry-api"},
    }
    for extra, modules in MODULES.items():
        mine = [line for line in requires("wme-async") or [] if f'extra == "{extra}"' in line.replace("'", '"')]
        packages = {line.replace(";", " ").replace(">", " ").split()[0].lower() for line in mine}
        assert packages == names.get(extra, set(modules))


@pytest.mark.parametrize("name", sorted(name for name in dir(wme_async) if not name.startswith("_")))
def test_every_public_name_is_there_without_extras(name: str) -> None:
    assert getattr(wme_async, name) is not None


async def test_archives_and_streams_work_with_any_extras(tmp_path: Path) -> None:
    async with Simulator(articles=10) as simulator, Client(**simulator.client_options()) as wme:
        hour = wme.batches(simulator.hours[-2])
        download = await hour.download("simplewiki_namespace_0", tmp_path)
        assert download.verified
        async with read_archive(download.path, type=Article) as articles:
            stored = [article.identifier async for article in articles]
        async with hour.read("simplewiki_namespace_0") as articles:
            assert [article.identifier async for article in articles] == stored
        assert stored
        simulator.firehose.publish_many(3, partition=1)
        start = simulator.clock.utc().replace(microsecond=0)
        async with asyncio.timeout(20), wme.realtime.articles(parts=[0], since=start) as stream:
            await anext(stream)


def test_the_command_line_runs_or_says_what_to_install(run: Run) -> None:
    with Simulator.run_in_thread() as simulator:
        result = run("-m", "wme_async", "projects", "ls", **simulator.environment())
    if has("cli"):
        assert (result.returncode, result.stderr) == (0, "")
        assert '"enwiki"' in result.stdout
    else:
        assert result.returncode == 1
        assert result.stdout == ""
        assert "pip install 'wme-async[cli]'" in result.stderr
        assert result.stderr.count("\n") == 1


async def test_an_environment_file_is_read_or_the_error_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "account.env"
    path.write_text("WME_USERNAME=me\nWME_PASSWORD=secret\n")
    if installed("dotenv"):
        async with Client.from_env(path):
            pass
    else:
        with pytest.raises(ImportError, match=r"pip install 'wme-async\[cli\]'"):
            Client.from_env(path)


@pytest.mark.parametrize("extra", ["arrow", "cloud", "dask", "kafka", "nats"])
def test_an_integration_is_imported_or_says_what_to_install(run: Run, extra: str) -> None:
    result = run("-c", f"import wme_async.integrations.{extra}")
    if has(extra):
        assert (result.returncode, result.stderr) == (0, "")
    else:
        *_, last = result.stderr.strip().splitlines()
        assert last.startswith("ImportError: ")
        assert f"pip install 'wme-async[{extra}]'" in last


async def test_media_are_fetched_or_the_error_says_what_to_install() -> None:
    from wme_async.integrations.media import Media

    if has("media"):
        assert isinstance(Media(), Media)
    else:
        with pytest.raises(ImportError, match=r"pip install 'wme-async\[media\]'"):
            Media()


@pytest.mark.skipif(not has("cli") or installed("pyarrow"), reason="needs the extra `cli` without `arrow`")
def test_a_command_that_needs_another_extra_says_so_in_one_line(run: Run, tmp_path: Path) -> None:
    with Simulator.run_in_thread(articles=5) as simulator:
        result = run(
            *("-m", "wme_async", "batches", "read", simulator.hours[-2], "simplewiki_namespace_0"),
            *("--to", str(tmp_path / "out.parquet")),
            **simulator.environment(),
        )
    assert result.returncode == 1
    assert "pip install 'wme-async[arrow]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
