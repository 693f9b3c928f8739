"""Every example runs as it stands, against a simulator, and prints what it says."""

import asyncio
import contextlib
import importlib.util
import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from broker_targets import KafkaTarget, Target, events_in

from wme_async import Client
from wme_async.mirror import Mirror, MirrorReader, SQLiteStore
from wme_async.simulator import Firehose, Simulator, build_archive

Run = Callable[..., str]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAGE = {"name": "Marie Curie", "url": "https://en.wikipedia.org/wiki/Marie_Curie"}

# What is printed, for each call of a script in turn. The hour is one of the simulator's.
SCRIPTS: dict[str, list[tuple[list[str], str]]] = {
    "batches": [
        (
            ["{hour}", "simplewiki_namespace_0"],
            r"i\) \d+ batches.*ii\) 10 'en'.*v\) .*MD5 verified: True.*tokens revoked",
        ),
    ],
    "copy_of_a_world": [
        ([], r"\d+ pages; 0 differ from the wiki\n\d+ pages; 0 differ from the wiki\n"),
    ],
    "lookup": [
        (
            ["enwiki", "Marie Curie", "No such page"],
            r"Marie Curie\thttps://en\S+Curie\nNo such page\tno such page\n",
        ),
    ],
    "snapshot_to_ndjson": [
        (["simplewiki_namespace_0", "pages.ndjson"], r"20 records of \d members, 0 bad, 20 pages in pages\.ndjson\n"),
    ],
    "articles_to_parquet": [
        (["simplewiki_namespace_0", "pages.parquet"], r"20 rows, \d+ bytes in pages\.parquet\n"),
    ],
    "snapshot_on_processes": [
        (["simplewiki_namespace_0", "data"], r"20 rows in 2 files of data/manifest\.json\n"),
        (["simplewiki_namespace_0", "data"], r"20 rows in 2 files of data/manifest\.json\n"),
    ],
    "duckdb_over_wme": [
        (["simplewiki_namespace_0"], r"\d+ changes, \d+ of them by bots \(0 metered requests a scan\)\n"),
    ],
    "polars_over_wme": [
        (["simplewiki_namespace_0"], r"\d+ changes, the longest: \S.*, \S.*\n"),
    ],
    "hours_to_folder": [
        (
            ["data", "--since", "{hour}", "--count", "1"],
            r"\d{4}-\d\d-\d\dT\d\d: \d+ new, 0 unchanged, [\d.]+ MB\n",
        ),
    ],
    "mirror_search": [
        (["simplewiki_namespace_0", "mountain falcon glacier telescope comet plateau"], r"^20 changes\n(\S.*\n){1,5}$"),
        (["simplewiki_namespace_0", "mountain falcon glacier telescope comet plateau"], r"^0 changes\n(\S.*\n){1,5}"),
    ],
    "progress_bars": [
        (
            ["{hour}", "enwiki_namespace_0", "dewiki_namespace_0"],
            r"(data/batches/\S+_namespace_0\.tar\.gz \d+ bytes\n){2}[1-9]\d* new files\n",
        ),
    ],
    "resume_download": [
        (
            ["simplewiki_namespace_0", "data"],
            r"data/snapshots/simple\S+: \d+ bytes, 0 of them from before, MD5 verified: True\n",
        ),
        (["simplewiki_namespace_0", "data"], r"data/snapshots/simplewiki_namespace_0\.tar\.gz is already the newest\n"),
    ],
    "with_opentelemetry": [
        (
            ["simplewiki_namespace_0", "data"],
            r"nightly copy: \d+ ms\nwme\.download of nightly copy: .*GET of wme\.download: .*duration in s, of \d",
        ),
    ],
}
FILES = {"short_pages"}
NEEDS = {
    "articles_to_parquet": ("pyarrow",),
    "snapshot_on_processes": ("pyarrow",),
    "duckdb_over_wme": ("pyarrow", "duckdb"),
    "polars_over_wme": ("pyarrow", "polars"),
    "with_opentelemetry": ("opentelemetry.sdk",),
}
STREAMS = {"follow_stream", "with_prometheus", "shared_stream"}
STREAMS |= {"exactly_once"}  # it is killed at random in test_stream_torture
MIRRORS = {"mirror_in_fastapi", "mirror_vectors", "mirror_webhooks"}
BRIDGES = {"stream_to_kafka", "stream_to_nats"}
SERVICES = {
    "web_service",
    "batch_service",
    "batch_service_asgi",
    "in_aiohttp",
    "in_fastapi",
    "in_starlette",
    "in_litestar",
}


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, *FILES, *STREAMS, *MIRRORS, *BRIDGES, *SERVICES}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.run_in_thread(articles=10) as running:
        yield running


@pytest.fixture
def environment(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    for name, value in simulator.environment().items():
        monkeypatch.setenv(name, value)
    return simulator


@pytest.fixture
def run(python: str, tmp_path: Path) -> Run:
    """Run a script as a user would, except that a warning is an error."""

    def call(name: str, *words: str) -> str:
        command = [python, "-W", "error", str(EXAMPLES / f"{name}.py"), *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=50)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


# Their processes import large libraries anew.
SLOW = {"snapshot_on_processes", "articles_to_parquet", "duckdb_over_wme", "polars_over_wme"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.servers] if name in SLOW else []) for name in sorted(SCRIPTS)]
)
def test_a_script_prints_its_documented_output(run: Run, name: str, environment: Simulator, tmp_path: Path) -> None:
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module, reason=f"the example uses {module}, which is not installed")
    for arguments, expected in SCRIPTS[name]:
        words = [argument.format(hour=environment.hours[-1]) for argument in arguments]
        printed = run(name, *words)
        assert re.search(expected, printed, re.DOTALL), printed


def test_the_script_that_uses_all_processors_finds_short_pages(run: Run, tmp_path: Path) -> None:
    lengths = {"a": (99, 100, 5000), "b": (1, 100)}
    for stem, numbers in lengths.items():
        pages = [{"name": f"{stem}{number}", "version": {"number_of_characters": number}} for number in numbers]
        lines = [json.dumps(page).encode() + b"\n" for page in pages]
        (tmp_path / f"{stem}.tar.gz").write_bytes(build_archive([("x.ndjson", lines)]))
    printed = run("short_pages", "a.tar.gz", "b.tar.gz")
    assert sorted(printed.splitlines()) == ["1\tb1\tb.tar.gz", "99\ta99\ta.tar.gz"]


@pytest.fixture
def published(simulator: Simulator) -> Iterator[Firehose]:
    """Events are published all the time, so that a reader that asks for what is new is given something."""
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.02):
            simulator.firehose.publish_many(4)

    thread = threading.Thread(target=publish)
    thread.start()
    yield simulator.firehose
    over.set()
    thread.join()


def test_the_script_that_follows_the_stream_resumes(
    run: Run, environment: Simulator, published: Firehose, tmp_path: Path
) -> None:
    for count in ("30", "40"):
        printed = run("follow_stream", "offsets.db", count)
        assert re.match(rf"{count} events; \w+ \d+", printed), printed
    first, second = published.connections
    requests = second.request.offsets
    assert sum(second.start[number] - first.start[number] for number in requests) == 30


def test_the_script_for_prometheus_shows_requests_and_the_lag_of_the_stream(
    run: Run, environment: Simulator, published: Firehose, tmp_path: Path
) -> None:
    pytest.importorskip("prometheus_client", reason="the example uses prometheus_client, which is not installed")
    printed = run("with_prometheus", "30", "0")
    assert re.search(r'^wme_request_seconds_count{method="POST",status="200"} [1-9]', printed, re.MULTILINE), printed
    assert re.search(r'^wme_stream_events{stream="default/articles"} \d\d', printed, re.MULTILINE), printed
    assert 'wme_stream_lag_seconds{partition="' in printed


def test_the_script_that_copies_the_stream_has_no_event_twice_and_none_missing(
    run: Run, environment: Simulator, published: Firehose, tmp_path: Path
) -> None:
    for rows in (30, 90):
        printed = run("exactly_once", "edits.db", str(rows))
        match = re.fullmatch(r"(\d+) rows, 50 positions\n", printed)
        assert match is not None, printed
        assert int(match[1]) >= rows
    with contextlib.closing(sqlite3.connect(tmp_path / "edits.db")) as db:
        copied = db.execute("SELECT partition, offset FROM edits").fetchall()
    assert len(copied) == len(set(copied))
    for partition, first in published.connections[0].start.items():
        offsets = sorted(offset for number, offset in copied if number == partition)
        assert offsets == list(range(first, first + len(offsets)))


@pytest.mark.servers
def test_the_scripts_that_copy_the_stream_into_brokers_go_on_where_the_messages_end(
    run: Run, environment: Simulator, published: Firehose, target: Target, tmp_path: Path
) -> None:
    if isinstance(target, KafkaTarget):
        script, words = "stream_to_kafka", (target.bootstrap, target.topic)
    else:
        script, words = "stream_to_nats", (target.url, target.name)
        target.created = True
    for count in ("30", "40"):
        printed = run(script, *words, count)
        assert re.fullmatch(rf"{count} sent, \d+ bytes, \d+ partitions\n", printed), printed
    events = asyncio.run(events_in(target))
    assert len(events) == 70
    for partition, first in published.connections[0].start.items():
        offsets = [offset for number, offset in events if number == partition]
        assert offsets == list(range(first, first + len(offsets)))


@pytest.mark.servers
def test_the_script_that_hosts_share_copies_each_event_once(
    run: Run, environment: Simulator, published: Firehose, postgres_dsn: str, tmp_path: Path
) -> None:
    asyncpg = pytest.importorskip("asyncpg", reason="the example uses asyncpg, which is not installed")
    with ThreadPoolExecutor(2) as hosts:
        printed = list(hosts.map(lambda _: run("shared_stream", postgres_dsn, "100"), range(2)))
    for text in printed:
        match = re.fullmatch(r"(\d+) rows; this host reads (\d+) parts\n", text)
        assert match is not None, text
        assert int(match[1]) >= 100

    async def copied() -> list[tuple[int, int]]:
        connection = await asyncpg.connect(postgres_dsn)
        try:
            return [tuple(row) for row in await connection.fetch('SELECT partition, "offset" FROM edits')]
        finally:
            await connection.close()

    by_partition: dict[int, list[int]] = {}
    for partition, offset in sorted(asyncio.run(copied())):
        by_partition.setdefault(partition, []).append(offset)
    for offsets in by_partition.values():
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


def loaded(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where frameworks look annotations up
    specification.loader.exec_module(module)
    return module


class Asgi:
    """As much of an ASGI server as is needed: start-up, one request after the other, shut-down."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self.task = asyncio.create_task(self.app(scope, self.inbox.get, self.told.put))
        await self.inbox.put({"type": "lifespan.startup"})
        assert (await self.told.get())["type"] == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.inbox.put({"type": "lifespan.shutdown"})
        assert (await self.told.get())["type"] == "lifespan.shutdown.complete"
        await self.task

    async def first(self, path: str, end: bytes) -> bytes:
        """Return the beginning of an endless body, up to some bytes; then the caller leaves."""
        body, arrived = bytearray(), asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            body.extend(message.get("body", b""))
            if end in body:
                arrived.set()

        async def receive() -> dict[str, Any]:
            await arrived.wait()
            return {"type": "http.disconnect"}

        async with asyncio.timeout(20):
            await self.app(self._scope(path), receive, send)
        return bytes(body)

    def _scope(self, path: str) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
            "state": dict(self.state),
        }

    async def get(self, path: str) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        completed = asyncio.Event()
        body = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in body:
                return message
            await completed.wait()  # the caller stays until then
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                completed.set()

        async with asyncio.timeout(20):
            await self.app(self._scope(path), receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.filterwarnings("default")  # other people's packages, imported here for the first time
@pytest.mark.parametrize("name", ["fastapi", "starlette", "litestar"])
async def test_an_asgi_service_looks_pages_up_with_one_client(name: str, environment: Simulator) -> None:
    pytest.importorskip(name)
    async with Asgi(loaded(f"in_{name}").app) as served:
        for _ in range(2):
            status, body = await served.get("/pages/enwiki/Marie Curie")
            assert status == 200, body
            assert PAGE.items() <= json.loads(body).items()
        assert (await served.get("/pages/enwiki/No such page"))[0] == 404
        status, body = await served.get("/titles/simplewiki_namespace_0")
        assert (status, len(body.splitlines())) == (200, 20)
        status, body = await served.get("/titles/nowiki_namespace_99")
        assert (status, json.loads(body)["code"]) == (404, "not_found")
        status, body = await served.get("/pages/enwiki/AC/DC")
        assert (status, json.loads(body)["name"]) == (200, "AC/DC")
        environment.faults.inject("status", role="api", status=403)
        assert (await served.get("/pages/enwiki/NATO"))[0] == 502
    assert environment.requests.count("auth", path="login") == 1


@pytest.mark.filterwarnings("default")  # as above
async def test_a_service_looks_up_copies_and_relays(
    environment: Simulator, published: Firehose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    async with Asgi(loaded("web_service").app) as served:
        for _ in range(2):
            status, body = await served.get("/pages/enwiki/Marie Curie")
            assert (status, PAGE.items() <= json.loads(body).items()) == (200, True)
        assert (await served.get("/pages/enwiki/No such page"))[0] == 404
        assert (await served.get("/healthz"))[0] == 200
        assert b"data: " in await served.first("/live", b"data: ")
        wait = environment.requests.wait
        await asyncio.to_thread(environment.call, wait, role="store", path="simplewiki", timeout=20)
    assert environment.requests.count("api", path="Marie") == 1


@pytest.mark.servers
def test_the_script_with_a_vector_store_finds_the_page_whose_title_is_given(
    python: str, environment: Simulator, tmp_path: Path
) -> None:
    pytest.importorskip("sqlite_vec", reason="the example uses sqlite_vec, which is not installed")
    # Python may be built without `enable_load_extension`; the library of SQLite takes extensions from C all the same.
    code = """
import ctypes, ctypes.util, runpy, sqlite3, sys
if not hasattr(sqlite3.Connection, "enable_load_extension"):
    import sqlite_vec
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
    library.sqlite3_auto_extension(ctypes.CDLL(sqlite_vec.loadable_path() + ".so").sqlite3_vec_init)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

    def find(text: str) -> list[str]:
        command = [python, "-c", code, str(EXAMPLES / "mirror_vectors.py"), "simplewiki_namespace_0", text]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=50)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    count, *first = find("anything")
    assert re.fullmatch(r"[1-9]\d* changes", count)
    assert len(first) == 3
    title = first[-1].partition("\t")[2]
    count, nearest, *_ = find(title)
    assert (count, nearest.partition("\t")[2]) == ("0 changes", title)


async def test_the_script_with_webhooks_sends_each_change_until_it_is_accepted(
    environment: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bodies: list[dict[str, Any]] = []
    enough = asyncio.Event()

    async def receive(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        if len(bodies) == 12:
            enough.set()
        return web.Response(status=503 if len(bodies) == 2 else 200)

    receiver = web.Application()
    receiver.router.add_post("/hook", receive)
    example = loaded("mirror_webhooks")
    async with (
        TestServer(receiver) as server,
        Client.from_env() as wme,
        Mirror(wme, "simplewiki_namespace_0", SQLiteStore("mirror.db"), source="snapshots") as mirror,
    ):
        await mirror.sync()
        publishing = asyncio.create_task(example.publish(mirror, str(server.make_url("/hook")), pause=0.01))
        async with asyncio.timeout(20):
            await enough.wait()
        publishing.cancel()
        await asyncio.wait([publishing])
    numbers = [body["id"] for body in bodies]
    assert numbers[1] == numbers[2], "the change that was not accepted comes again"
    assert sorted(numbers) == numbers
    assert len(set(numbers)) == 11
    assert {body["kind"] for body in bodies} == {"upsert"}


@pytest.mark.filterwarnings("default")  # as above
async def test_an_application_keeps_a_mirror_and_answers_searches_from_it(
    environment: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    app = loaded("mirror_in_fastapi").app
    async with Asgi(app) as served, MirrorReader(SQLiteStore("mirror.db")) as reader, asyncio.timeout(20):
        while not (await reader.statistics()).pages:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        titles = [key[1] async for keys in reader.keys() for key in keys]  # noqa: SIM118
        title = next(title for title in titles if "/" not in title)
        status, body = await served.get(f"/search/{title}")
    assert status == 200
    assert title in json.loads(body)


async def test_an_aiohttp_service_looks_pages_up_with_one_client(environment: Simulator) -> None:
    async with TestClient(TestServer(loaded("in_aiohttp").make_app())) as served:
        for _ in range(2):
            async with served.get("/pages/enwiki/Marie%20Curie") as response:
                assert response.status == 200
                assert PAGE.items() <= (await response.json()).items()
        async with served.get("/pages/enwiki/No%20such%20page") as response:
            assert response.status == 404
        async with served.get("/pages/enwiki/AC/DC") as response:
            assert response.status == 200
        async with served.get("/titles/simplewiki_namespace_0") as response:
            assert len((await response.text()).splitlines()) == 20
        async with served.get("/titles/nowiki_namespace_99") as response:
            assert (response.status, (await response.json())["code"]) == (404, "not_found")
        environment.faults.inject("status", role="api", status=403)
        async with served.get("/pages/enwiki/NATO") as response:
            assert response.status == 502
    assert environment.requests.count("auth", path="login") == 1


async def test_the_batch_service_takes_a_batch_and_serves_its_file(environment: Simulator, tmp_path: Path) -> None:
    key, hour = "wme_" + "k" * 43, environment.hours[-1].replace("T", "/")
    app = loaded("batch_service").make_app(str(tmp_path), key)
    async with TestClient(TestServer(app), headers={"X-API-Key": key}) as served:
        urls = [f"wme:batches/{hour}/simplewiki_namespace_0"]
        async with served.post("/downloads/api/v1/batch/download", json={"urls": urls}) as response:
            assert response.status == 201, await response.text()
            created = await response.json()
        async with asyncio.timeout(20):
            async with served.get(f"/downloads/api/v1/batch/{created['batch_id']}/events") as response:
                events = (await response.text()).count("completed")  # the stream ends with the batch
        assert events >= 2
        async with served.get(f"/downloads/api/v1/batch/{created['batch_id']}") as response:
            (job,) = (await response.json())["jobs"]
        async with served.get(urlsplit(job["file_info"]["download_url"]).path) as response:
            assert len(await response.read()) == job["file_info"]["size_bytes"]
