"""The batch service over HTTP: the guide's words and examples, who may ask, streams, files, and hostile callers."""

import asyncio
import contextlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web as aiohttp_web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from jobs_server import FileServer

import wme_async
from wme_async import web
from wme_async.jobs import BatchManager, JobLimits, ManagerClosed, WrongState, sources
from wme_async.settings import Retry
from wme_async.web import MANAGER, create_app, create_asgi, hash_key, new_key, serve
from wme_async.web.files import parse_range
from wme_async.web.messages import HTTPProblem
from wme_async.web.metrics import metrics_text

KEY = "your-api-key"
HEAD = {"X-API-Key": KEY}
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DOCS = Path(__file__).resolve().parents[1] / "docs"
GUIDE = next(iter(sorted((Path(__file__).resolve().parents[2] / "shared" / "docs").glob("002_*.txt"))), None)


def make_manager(directory, **options):
    options.setdefault("limits", JobLimits(free_space=0))
    return BatchManager(directory, allow_hosts=["127.0.0.1"], retry=Retry(attempts=1), **options)


@contextlib.asynccontextmanager
async def running(manager, *, prefix="", **options):
    options.setdefault("api_keys", [KEY])
    app = create_app(manager, **options)
    if prefix:
        parent = aiohttp_web.Application()
        parent.add_subapp(prefix, app)
        app = parent
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
async def files():
    async with FileServer().running() as server:
        yield server


@pytest.fixture
async def manager(tmp_path):
    async with make_manager(tmp_path / "files") as opened:
        yield opened


@pytest.fixture
async def client(manager):
    async with running(manager) as opened:
        yield opened


async def ask(client, method, path, **more):
    more["headers"] = {**HEAD, **more.get("headers", {})}
    async with client.request(method, path, **more) as response:
        return response.status, await response.json(), response.headers


async def submit(client, urls, **more):
    status, document, _ = await ask(client, "POST", "/api/v1/batch/download", json={"urls": urls, **more})
    assert status == 201, document
    return document["batch_id"]


async def test_a_batch_has_a_name_and_chosen_jobs_are_retried(client, files):
    urls = [files.add("good"), files.add("bad", 9, 404), files.add("worse", 9, 404)]
    batch_id = await submit(client, urls, name=" My  list ")
    async with client.get(f"/api/v1/batch/{batch_id}/events", headers=HEAD) as response:
        await response.read()  # the stream ends with the batch
    _, document, _ = await ask(client, "GET", f"/api/v1/batch/{batch_id}")
    assert document["name"] == "My list"
    path = f"/api/v1/batch/{batch_id}/retry"
    status, created, _ = await ask(client, "POST", path, json={"jobs": [f"job_{batch_id}_2"]})
    assert (status, created["total_jobs"]) == (201, 1)
    for body, expected in (({"jobs": 1}, 422), ({"job": []}, 422), ({"jobs": [f"job_{batch_id}_0"]}, 409)):
        assert (await ask(client, "POST", path, json=body))[0] == expected
    assert (await ask(client, "POST", path, data=b"{", headers={"Content-Type": "application/json"}))[0] == 400
    assert (await ask(client, "POST", path, data=b"{}", headers={"Content-Type": "text/plain"}))[0] == 415
    status, problem, _ = await ask(client, "POST", "/api/v1/batch/download", json={"urls": urls, "name": "x" * 201})
    assert (status, problem["details"][0]["what"]) == (422, "name")


# The guide


def blocks(language):
    if GUIDE is None:
        pytest.skip("the batch guide does not lie beside the repository")
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


class Mapped(sources.UrlSource):
    """example.com, on loopback."""

    server = ""

    async def _first_byte(self, url, *, ranged):
        self.mapped = url.replace("https://example.com/", self.server)
        # No public way leads the documented URLs of https to a server without a certificate.
        return await super()._first_byte(self.mapped, ranged=ranged)

    async def sign(self):
        signed = await super().sign()
        return msgspec.structs.replace(signed, url=self.mapped)


@pytest.fixture
async def example_com(files, names, monkeypatch):
    """Serve the URLs of the guide, some of which fail, and let nothing else be looked up."""
    for name in ("video1", "video2", "video3", "watch", *(f"csv{number}" for number in range(120))):
        files.add(name, 500, Content_Type="video/mp4")
    files.rules["video3"] = 404
    names["*"] = None
    monkeypatch.setattr(sources, "UrlSource", Mapped)
    monkeypatch.setattr(Mapped, "server", f"{files.url}/f/")
    return files


async def test_the_python_examples_of_the_guide_run_unchanged(manager, client, example_com, tmp_path):
    pytest.importorskip("requests")
    code = []
    for block in blocks("python"):
        try:
            compile(block, "guide", "exec")
        except SyntaxError:
            # One sketch of the guide has comments where statements should be.
            assert "# Cancel and retry if needed" in block
            continue
        code.append(block)
    assert len(code) == 11
    rows = "\n".join(f"https://example.com/csv{number}" for number in range(120))
    (tmp_path / "downloads.csv").write_text(f"url\n{rows}\n")
    script = tmp_path / "guide.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, socket, sys, time
        connect, sleep = socket.socket.connect, time.sleep
        def here(self, address):
            assert address[1] == 8080
            if self.family != socket.AF_INET:
                raise ConnectionRefusedError("not over IPv6")
            connect(self, ("127.0.0.1", {client.port}))
        socket.socket.connect = here
        time.sleep = lambda seconds: sleep(min(seconds, 0.05))
        space = {{"all_urls": [f"https://example.com/csv{{n}}" for n in range(119)]}}
        blocks = json.load(sys.stdin)
        for block in blocks:
            exec(compile(block, "guide", "exec"), space)
            if "def progress_callback" in block:
                print("final", space["final_status"]["status"], space["final_status"]["failed_jobs"])
            # What the next one presupposes: the three URLs, and a batch of which one failed.
            given = given if block is not blocks[0] else {{"urls": space["urls"]}}
            if "final_status" in space:
                given["batch_id"] = space["final_status"]["batch_id"]
            space.update(given)
        """)
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
    )
    async with asyncio.timeout(40):
        document, _ = await process.communicate(json.dumps(code).encode())
    text = document.decode()
    assert process.returncode == 0, text
    assert "Complete: 2 succeeded, 1 failed" in text
    assert "final completed 1" in text
    assert "Retrying 1 failed downloads" in text
    assert "Failed: https://example.com/video3 - HTTP 404" in text
    assert "Created batch 3: batch_" in text
    for batch in (await manager.list(limit=100)).batches:
        with contextlib.suppress(WrongState):  # it has ended by now
            await manager.cancel(batch.batch_id)


async def test_the_curl_examples_of_the_guide_run_unchanged(manager, client, example_com, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / ".curlrc").write_text(f'connect-to = "localhost:8080:127.0.0.1:{client.port}"\nsilent\n')
    create, status, cancel = blocks("bash")

    async def bash(text):
        environment = {"PATH": os.environ["PATH"], "CURL_HOME": str(tmp_path)}
        process = await asyncio.create_subprocess_exec("bash", "-c", text, stdout=subprocess.PIPE, env=environment)
        async with asyncio.timeout(20):
            document, _ = await process.communicate()
        return json.loads(document)

    example_com.rules.update(dict.fromkeys(("video1", "video2", "video3"), "hang"))
    created = await bash(create)
    [expected] = [json.loads(block) for block in blocks("json") if '"status": "queued"' in block]
    assert list(created) == list(expected)
    assert {**created, "batch_id": "batch_abc123"} == expected
    document = await bash(status.replace("batch_abc123", created["batch_id"]))
    assert (document["batch_id"], document["total_jobs"]) == (created["batch_id"], 3)
    assert (await bash(cancel.replace("batch_abc123", created["batch_id"])))["status"] == "cancelled"
    assert (await bash(status))["code"] == "no_such_batch"


def same_shape(expected, got, path="status"):
    """Check that all that the guide shows is there, under the same name and as the same kind of value."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in got, f"{path}.{name} is missing"
            same_shape(value, got[name], f"{path}.{name}")
    elif isinstance(expected, list):
        same_shape(expected[0], got[0], f"{path}[0]")
    elif expected is not None and got is not None:
        assert type(expected) is type(got), f"{path} is {got!r}"


async def test_the_status_has_every_field_of_the_guide_in_its_order(manager, client, example_com):
    [expected] = [json.loads(block) for block in blocks("json") if '"duration_sec"' in block]
    batch_id = await submit(client, ["https://example.com/video1", "https://example.com/video3"])
    await manager.wait(batch_id, timeout=10)
    _, document, _ = await ask(client, "GET", f"/api/v1/batch/{batch_id}")
    same_shape(expected, document)
    assert [name for name in document if name in expected] == list(expected)
    job = document["jobs"][0]
    assert [name for name in job if name in expected["jobs"][0]] == list(expected["jobs"][0])
    assert job["job_id"] == f"job_{batch_id}_0"
    assert job["file_info"]["filename"] == "video1.mp4"
    assert job["file_info"]["filepath"] == f"batch/{batch_id}/video1.mp4"
    base = str(client.make_url("/")).rstrip("/")
    assert job["file_info"]["download_url"] == f"{base}/files/batch/{batch_id}/video1.mp4"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document["created_at"])
    assert document["total_jobs"] == sum(
        document[f"{name}_jobs"] for name in ("completed", "failed", "running", "queued")
    )


def test_every_row_of_the_table_names_tests_that_are_there():
    rows = [line for line in (DOCS / "batch-guide.md").read_text().splitlines() if line.startswith("| ")]
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    checked = 0
    for row in rows:
        if "---" in row or row.endswith("| shown by |"):
            continue
        named = re.findall(r"`(test_\w+)`", row.rstrip(" |").rpartition(" | ")[2])
        assert named, row
        for name in named:
            assert f"def {name}(" in tests, name
            checked += 1
    assert checked > 50


# Who may ask


CALLERS = [
    ({}, 401),
    ({"X-API-Key": ""}, 401),
    ({"X-API-Key": KEY + "x"}, 401),
    ({"X-API-Key": KEY[:-1]}, 401),
    ({"X-API-Key": hash_key(KEY)}, 401),
    ({"X-API-Key": "ключ"}, 401),
    ({"Authorization": "Basic " + KEY}, 401),
    ({"X-API-Key": KEY}, 200),
    ({"Authorization": f"Bearer {KEY}"}, 200),
]


async def test_requests_need_a_key(client):
    for headers, status in CALLERS:
        for path in ("/api/v1/batch", "/metrics"):
            async with client.get(path, headers=headers) as response:
                assert response.status == status, headers
                if status == 401:
                    assert set(await response.json()) == {"status", "code", "message", "details"}
        async with client.get("/files/x", headers=headers) as response:
            assert response.status == (404 if status == 200 else 401)


async def test_keys_may_be_hashes(manager):
    key = new_key()
    async with running(manager, api_keys=[hash_key(key), KEY]) as client:
        for good in (key, KEY):
            async with client.get("/api/v1/batch", headers={"X-API-Key": good}) as response:
                assert response.status == 200
    assert len({new_key() for _ in range(5)}) == 5
    for bad, kind in (([], ValueError), (["short"], ValueError), (KEY, TypeError)):
        with pytest.raises(kind):
            create_app(manager, api_keys=bad)
    with pytest.raises(TypeError, match=r"allowed_hosts must be a list of names, such as \['example\.com'\]"):
        create_app(manager, api_keys=[KEY], allowed_hosts="example.com")


async def test_the_open_addresses_need_no_key(client):
    for path in ("/", "/healthz", "/api/v1/openapi.json"):
        async with client.get(path) as response:
            assert response.status == 200


async def test_without_keys_only_loopback_names_are_allowed_and_other_sites_cannot_write(manager, files):
    async with running(manager, api_keys=None) as client:
        async with client.get("/api/v1/batch") as response:
            assert response.status == 200
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example"):
            async with client.get("/api/v1/batch", headers={"Host": host}) as response:
                assert (response.status, (await response.json())["code"]) == (421, "wrong_host")
        body = {"urls": [files.add("a")]}
        for other in ("https://evil.example", "null", "http://[", "http://[evil]/"):
            async with client.post("/api/v1/batch/download", json=body, headers={"Origin": other}) as response:
                assert (response.status, (await response.json())["code"]) == (403, "other_origin")
        origin = str(client.make_url("/")).rstrip("/")
        async with client.post("/api/v1/batch/download", json=body, headers={"Origin": origin}) as response:
            assert response.status == 201
        encrypted = origin.replace("http://", "https://")
        refused = [{"Origin": encrypted}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
        for headers in [*refused, {"Origin": origin, "Sec-Fetch-Site": "cross-site"}]:
            async with client.post("/api/v1/batch/download", json=body, headers=headers) as response:
                assert (response.status, (await response.json())["code"]) == (403, "other_origin")
        # A proxy in front ends TLS, so that our own page has another scheme than its requests have here.
        headers = {"Origin": encrypted, "Sec-Fetch-Site": "same-origin"}
        async with client.post("/api/v1/batch/download", json=body, headers=headers) as response:
            assert response.status == 201
        # What a form of another site can send is not JSON.
        async with client.post("/api/v1/batch/download", data=json.dumps(body)) as response:
            assert (response.status, (await response.json())["code"]) == (415, "not_json")


async def test_allowed_hosts_ignore_case_and_port(manager):
    async with running(manager, api_keys=None, allowed_hosts=["Files.Example"]) as client:
        for host, status in (("files.example", 200), ("FILES.example:8080", 200), ("localhost", 421)):
            async with client.get("/api/v1/batch", headers={"Host": host}) as response:
                assert response.status == status
    with pytest.raises(TypeError, match="not one string"):
        create_app(manager, api_keys=None, allowed_hosts="files.example")


@pytest.mark.parametrize("left", ["\n", " ", "\r\n", "\t"])
async def test_blanks_around_a_key_are_removed(manager, left):
    """No header has it, so such a key could never match."""
    for written in (KEY + left, left + KEY, hash_key(KEY) + left, hash_key(KEY + left)):
        async with running(manager, api_keys=[written]) as client:
            async with client.get("/api/v1/batch", headers={"X-API-Key": KEY}) as response:
                assert response.status == 200
            async with client.get("/api/v1/batch", headers={"X-API-Key": "another-key"}) as response:
                assert response.status == 401


@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        ("a-secret-key", TypeError, "a list of keys, not one str"),
        (5, TypeError, "a list of keys, not one int"),
        ([5], TypeError, "an API key must be text, not int"),
        ([b"a-secret-key"], TypeError, "an API key must be text, not bytes"),
        (["a-secret\n-key"], ValueError, "control character"),
        (["secret \n"], ValueError, "8 characters at least"),
    ],
)
def test_the_error_for_an_invalid_key_does_not_show_it(manager, keys, kind, words):
    with pytest.raises(kind, match=words) as caught:
        create_app(manager, api_keys=keys)
    assert "secret" not in str(caught.value)


async def test_without_keys_it_listens_on_loopback_only(manager):
    with pytest.raises(ValueError, match="loopback only"):
        await serve(manager, host="0.0.0.0", api_keys=None)


async def test_new_batches_are_limited_for_each_key(manager, files):
    url = files.add("a")
    async with running(manager, api_keys=[KEY, "another-key"], create_rate=0.5, create_burst=3) as client:
        for _ in range(3):
            await submit(client, [url])
        status, document, headers = await ask(client, "POST", "/api/v1/batch/download", json={"urls": [url]})
        assert (status, document["code"]) == (429, "too_many_batches")
        assert 1 <= int(headers["Retry-After"]) <= 3
        status, _, _ = await ask(
            client, "POST", "/api/v1/batch/download", json={"urls": [url]}, headers={"X-API-Key": "another-key"}
        )
        assert status == 201
    with pytest.raises(ValueError, match="create_rate"):
        create_app(manager, api_keys=[KEY], create_rate=0)


# What may be asked


BAD_BATCHES = [
    ({"urls": []}, "at least 1 URL"),
    ({"urls": [f"https://example.com/{number}" for number in range(101)]}, "Maximum 100 URLs per batch"),
    ({"urls": ["https://example.com/", "https://EXAMPLE.com"]}, "Duplicate URL"),
    ({"urls": ["nonsense"]}, "Invalid URL"),
    ({"urls": ["https://example.com/"], "concurrent_limit": 0}, "1-10, not 0"),
    ({"urls": ["https://example.com/"], "concurrent_limit": 11}, "Maximum 10 concurrent downloads"),
    ({"urls": ["https://example.com/"], "path_template": "/etc/{id}"}, "path_template"),
    ({"urls": ["https://example.com/"], "path_template": "{secret}"}, "is unknown"),
    ({"urls": ["https://example.com/"], "webhook_url": "http://localhost/"}, "a local name"),
    ({"urls": ["https://example.com/"], "timeout": 0}, "timeout"),
    ({"urls": "https://example.com/"}, "does not describe a batch"),
    ({"urls": [1]}, "does not describe a batch"),
    ({"urls": ["https://example.com/"], "concurrent_limit": "3"}, "does not describe a batch"),
    ({"urls": ["https://example.com/"], "concurent_limit": 3}, "does not describe a batch"),
    ({}, "does not describe a batch"),
    ([], "does not describe a batch"),
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"concurrent_limit": 3.0, "priority": -5.0}, 201),
        ({"priority": 0.0}, 201),
        ({"priority": 0.5}, 422),
        ({"concurrent_limit": 1e300}, 422),
    ],
)
async def test_a_whole_number_may_be_a_float_in_json(manager, options, expected):
    async with running(manager, create_rate=None) as client:
        body = {"urls": ["https://example.com/"], **options}
        status, _, _ = await ask(client, "POST", "/api/v1/batch/download", json=body)
    assert status == expected


async def test_an_invalid_batch_is_an_error_with_all_problems(manager):
    async with running(manager, create_rate=None) as client:
        for body, words in BAD_BATCHES:
            status, document, _ = await ask(client, "POST", "/api/v1/batch/download", json=body)
            assert status == 422, body
            assert words in document["message"]
            assert set(document) == {"status", "code", "message", "details"}


NO_BATCHES = [
    (b"", "application/json", 400),
    (b"{", "application/json", 400),
    (b"\xff\xfe", "application/json", 400),
    (b'{"urls": ["' + b"\xff" + b'"]}', "application/json", 400),
    (b"[" * 100_000, "application/json", 422),
    (b'{"urls":' * 100_000, "application/json", 422),
    (b"null", "application/json", 422),
    (b"{}", "text/plain", 415),
    (b"urls=a", "application/x-www-form-urlencoded", 415),
    (b" " * ((1 << 20) + 1), "application/json", 413),
    (b'{"urls": ["https://example.com/"], "timeout": 1e999}', "application/json", 422),
    (b'{"urls": ["https://example.com/"], "timeout": NaN}', "application/json", 400),
    (b'{"urls": ["https://example.com/"], "priority": 99999999999999999999}', "application/json", 422),
    (b'{"urls": ["\\ud800"]}', "application/json", 400),
    (b'{"urls": ["https://example.com/\\u0000"]}', "application/json", 422),
]


async def test_a_body_that_is_not_a_batch_is_a_client_error(manager):
    async with running(manager, create_rate=None) as client:
        for data, kind, status in NO_BATCHES:
            headers = {**HEAD, "Content-Type": kind}
            async with client.post("/api/v1/batch/download", data=io.BytesIO(data), headers=headers) as response:
                assert response.status == status, (data[:80], await response.text())
                assert (await response.json())["status"] == status


async def test_a_body_without_content_length_is_limited_too(client):
    async def endless():
        for _ in range(40):
            yield b" " * 65_536

    headers = {**HEAD, "Content-Type": "application/json"}
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with client.post("/api/v1/batch/download", data=endless(), headers=headers) as response:
            assert response.status == 413


async def test_a_body_that_breaks_off_is_a_client_error(client, manager, caplog):
    headers = {**HEAD, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client.post("/api/v1/batch/download", data=b"{}", headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (400, "bad_request")
    head = [("x-api-key", KEY), ("content-type", "application/json")]
    call = AsgiCall(create_asgi(manager, api_keys=[KEY]), "POST", "/api/v1/batch/download", headers=head)
    call.inbox = asyncio.Queue()
    call.inbox.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    call.inbox.put_nowait({"type": "http.disconnect"})
    assert (await call.run()).status == 400
    assert [entry for entry in caplog.records if entry.name == "wme_async.web"] == []


HOSTILE_CALLS = [
    ("GET", "/api/v1/batch/" + "a" * 6000, 404),
    ("GET", "/api/v1/batch/%00", 404),
    ("GET", "/api/v1/batch/%FF%FE", 404),
    ("GET", "/api/v1/batch/%ED%A0%80", 404),
    ("GET", "/api/v1/batch/'%20OR%201=1--", 404),
    ("GET", "/api/v1/batch/..%2f..%2fetc", 404),
    ("GET", "/api/v1/batch/a/b/c", 404),
    ("GET", "/api/v1/batch?limit=0", 422),
    ("GET", "/api/v1/batch?limit=-1", 422),
    ("GET", "/api/v1/batch?limit=1e3", 422),
    ("GET", "/api/v1/batch?limit=%D9%A3", 422),
    ("GET", "/api/v1/batch?limit=999999999999999999999", 422),
    ("GET", "/api/v1/batch?status=odd", 422),
    ("GET", "/api/v1/batch?before=%00", 200),
    ("GET", "/api/v1/batch?before=';DROP%20TABLE%20batches--", 200),
    ("DELETE", "/api/v1/batch/x?purge=perhaps", 422),
    ("DELETE", "/api/v1/batch/x?purge=", 422),
    ("GET", "/files/a%0Ab", 404),
    ("GET", "/a%0D%0Ab", 404),
    ("DELETE", "/api/v1/batch/x?purge=true", 404),
    ("DELETE", "/api/v1/batch/x/jobs/job_x_0", 404),
    ("DELETE", "/api/v1/batch/x/jobs/job_y_0", 404),
    ("POST", "/api/v1/batch/x/pause", 404),
    ("POST", "/api/v1/batch/x/resume", 404),
    ("POST", "/api/v1/batch/x/retry", 404),
    ("POST", "/api/v1/batch/x/retry?cancelled=2", 422),
    ("POST", "/api/v1/batch/x/jobs/y/link", 404),
    ("GET", "/api/v1/batch/x/events", 404),
    ("PUT", "/api/v1/batch/x", 405),
    ("PATCH", "/", 405),
    ("TRACE", "/healthz", 405),
    ("DELETE", "/metrics", 405),
    ("GET", "/api/v1/batch/download", 405),
    ("GET", "/api/v2/batch", 404),
    ("GET", "/.git/config", 404),
    ("GET", "//healthz", 404),
    ("GET", "/files/", 404),
    ("GET", "/files/.wme-jobs/jobs.sqlite", 404),
    ("GET", "/files/../../etc/passwd", 404),
    ("GET", "/files/..%2f..%2fetc%2fpasswd", 404),
    ("GET", "/files/%2e%2e/%2e%2e/etc/passwd", 404),
    ("GET", "/files//etc/passwd", 404),
    ("GET", "/files/%2fetc%2fpasswd", 404),
    ("GET", "/files/batch", 404),
    ("GET", "/files/a%00b", 404),
    ("GET", "/files/" + "a/" * 2000, 404),
    ("GET", "/files/C:%5Cboot.ini", 404),
    ("GET", "/files/..%5c..%5cboot.ini", 404),
]


async def test_hostile_requests_get_an_error_response(client):
    from yarl import URL

    base = str(client.make_url("/")).rstrip("/")
    for method, path, status in HOSTILE_CALLS:
        async with client.session.request(method, URL(base + path, encoded=True), headers=HEAD) as response:
            assert response.status == status, (method, path, await response.text())
            if status >= 400:
                assert set(await response.json()) == {"status", "code", "message", "details"}
            assert response.headers["X-Content-Type-Options"] == "nosniff"
    async with client.get("/healthz") as response:
        assert response.status == 200


HOSTILE_HEADS = [
    "Host: ",
    "Host: a b",
    "Host: evil/../x",
    'Host: "><script>alert(1)</script>',
    "Host: \xff\xfe",
    "Host: [::1",
    "Host: localhost\r\nX-API-Key: a\r\nX-API-Key: b",
    "Host: localhost\r\nAuthorization: Bearer ",
    "Host: localhost\r\nLast-Event-ID: -1\r\nRange: bytes=0-",
    "Host: localhost\r\nContent-Length: 99999999999",
    "Host: localhost\r\nOrigin: null",
    "Host: localhost\r\nCookie: " + "a" * 4000,
]


async def test_hostile_headers_get_a_response(client):
    for head, path in itertools.product(HOSTILE_HEADS, ["/api/v1/batch", "/healthz"]):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
            async with asyncio.timeout(5):
                document = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        finally:
            writer.close()
            await writer.wait_closed()
        assert int(document.split(" ", 2)[1]) in {200, 400, 401}, head
        assert "<script>" not in document


async def test_a_malformed_host_is_an_error(client, manager, files):
    batch_id = await submit(client, [files.add("a")])
    await manager.wait(batch_id, timeout=10)
    status, _, _ = await ask(client, "GET", f"/api/v1/batch/{batch_id}", headers={"Host": "x/../y"})
    assert status == 400


# Doing things


async def test_batches_are_paused_resumed_cancelled_repeated_and_forgotten(client, manager, files):
    urls = [files.add("hang", 300_000, "hang"), files.add("bad", rule=500)]
    batch_id = await submit(client, urls)
    path = f"/api/v1/batch/{batch_id}"
    async with asyncio.timeout(5):
        await files.hanging.wait()
    assert (await ask(client, "POST", f"{path}/pause"))[1]["status"] == "paused"
    assert (await ask(client, "POST", f"{path}/resume"))[1]["status"] in {"queued", "running"}
    status, document, _ = await ask(client, "DELETE", f"{path}/jobs/job_{batch_id}_0")
    assert (status, document["jobs"][0]["status"]) == (200, "cancelled")
    await manager.wait(batch_id, timeout=10)
    for verb, where in (("POST", f"{path}/pause"), ("DELETE", f"{path}/jobs/job_{batch_id}_1")):
        status, document, _ = await ask(client, verb, where)
        assert (status, document["code"]) == (409, "wrong_state")
    files.rules.clear()
    status, created, headers = await ask(client, "POST", f"{path}/retry?cancelled=true")
    assert (status, created["total_jobs"]) == (201, 2)
    assert headers["Location"].endswith(f"/api/v1/batch/{created['batch_id']}")
    result = await manager.wait(created["batch_id"], timeout=10)
    assert (result.status, result.retry_of) == ("completed", batch_id)
    assert (await ask(client, "DELETE", f"/api/v1/batch/{created['batch_id']}"))[0] == 409
    status, document, _ = await ask(client, "DELETE", f"/api/v1/batch/{created['batch_id']}?purge=files")
    assert (status, document["status"]) == (200, "completed")
    assert (await ask(client, "GET", f"/api/v1/batch/{created['batch_id']}"))[0] == 404
    assert not (manager.directory / result.jobs[0].file_info.filepath).exists()
    _, listed, _ = await ask(client, "GET", "/api/v1/batch?status=completed")
    assert [batch["batch_id"] for batch in listed["batches"]] == [batch_id]


async def test_a_closing_service_returns_503(tmp_path):
    manager = make_manager(tmp_path)
    async with running(manager) as client:
        await manager.aclose()
        with pytest.raises(ManagerClosed):
            await manager.list()
        for path in ("/healthz", "/api/v1/batch", "/metrics"):
            status, document, _ = await ask(client, "GET", path)
            assert (status, document["code"]) == (503, "closing")
        await manager.start()
        assert (await ask(client, "GET", "/healthz"))[0] == 200


async def test_metrics_have_the_format_of_prometheus(client, manager, files):
    await manager.wait(await submit(client, [files.add("a", 5000)]), timeout=10)
    async with client.get("/metrics", headers=HEAD) as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) wme_\w+ .+|wme_\w+(\{(\w+=\"[^\"]*\",?)+\})? [0-9.e+]+", line), line
    assert 'wme_batches{state="completed"} 1' in text
    assert "wme_download_bytes_total 5000" in text
    assert 'wme_http_requests_total{method="POST",address="create",status="201"} 1' in text


def test_metrics_are_not_rounded():
    counts = {"batches": {"completed": 1_234_567}, "jobs": {}, "outbox": {}}
    facts = {"watchers": 2, "rate": 0.5, "bytes": 123_456_789_012}
    output = metrics_text(counts, facts, {("GET", "status", 200): 10_000_001}).splitlines()
    assert 'wme_batches{state="completed"} 1234567' in output
    assert "wme_download_bytes_total 123456789012" in output
    assert "wme_download_rate_bytes 0.5" in output
    assert 'wme_http_requests_total{method="GET",address="status",status="200"} 10000001' in output


# Events


async def events(client, path, *, after=None, until="end"):
    """Read a stream until an event of a kind, by the rules of the format."""
    documents = []
    headers = {**HEAD, **({} if after is None else {"Last-Event-ID": str(after)})}
    async with asyncio.timeout(10), client.get(path, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        entry = {}
        async for raw in response.content:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                entry[name] = value
                continue
            if "event" in entry:
                documents.append(entry)
                if entry["event"] == until:
                    return documents
            entry = {}
    return documents


async def test_events_of_a_batch_resume_after_the_last_event_id(client, manager, files):
    batch_id = await submit(client, [files.add("a"), files.add("b", rule=404)])
    seen = await events(client, f"/api/v1/batch/{batch_id}/events")
    output = [json.loads(item["data"]) for item in seen if item["event"] in {"batch", "job"}]
    assert output[-1]["status"] == "completed"
    assert [item["id"] for item in output] == sorted(item["id"] for item in output)
    assert [str(item["id"]) for item in output] == [item["id"] for item in seen if item["event"] in {"batch", "job"}]
    middle = output[2]["id"]
    later = await events(client, f"/api/v1/batch/{batch_id}/events", after=middle)
    assert later[0] == {"retry": "1000", "id": str(middle), "event": "hello", "data": "{}"}
    assert [json.loads(item["data"])["id"] for item in later if item["event"] in {"batch", "job"}] == [
        item["id"] for item in output[3:]
    ]
    over = await events(client, f"/api/v1/batch/{batch_id}/events", after=output[-1]["id"])
    assert [item["event"] for item in over] == ["hello", "end"]


@pytest.mark.parametrize("after", ["nonsense", "-5", "9" * 40, "99999999", "1.5", ""])
async def test_an_invalid_last_event_id_is_ignored(client, manager, files, after):
    batch_id = await submit(client, [files.add("a", 60_000, "slow")])
    assert (await events(client, f"/api/v1/batch/{batch_id}/events", after=after))[-1]["event"] == "end"


async def test_events_of_all_batches_begin_now_and_miss_nothing_over_a_restart(tmp_path, files):
    manager = make_manager(tmp_path)
    async with running(manager) as client:
        await manager.wait(await submit(client, [files.add("early")]), timeout=10)
        hello = await events(client, "/api/v1/events", until="hello")
        last = int(hello[0]["id"])
        assert last > 0
        second = await submit(client, [files.add("second")])
        await manager.wait(second, timeout=10)
    async with running(make_manager(tmp_path)) as client:
        third = await submit(client, [files.add("third")])
        seen = []
        async with asyncio.timeout(10):
            while [third, "completed"] not in seen:
                stream_events = await events(client, "/api/v1/events", after=last, until="batch")
                last = int(stream_events[-1]["id"])
                output = [json.loads(item["data"]) for item in stream_events if item["event"] == "batch"]
                seen += [[document["batch_id"], document["status"]] for document in output]
    assert [second, "completed"] in seen
    assert seen.count([third, "completed"]) == 1


async def test_a_stream_ends_with_the_server(tmp_path, files):
    manager = make_manager(tmp_path)
    async with running(manager) as client:
        await submit(client, [files.add("hang", 100_000, "hang")])
        response = await client.get("/api/v1/events", headers=HEAD)
        await response.content.readline()
    # aiohttp would wait a minute for those who listen, and so longer than a test may take.


async def test_the_event_end_comes_only_when_the_batch_has_ended(client, manager, files):
    batch_id = await submit(client, [files.add("hang", 100_000, "hang")])
    path = f"/api/v1/batch/{batch_id}/events"
    async with asyncio.timeout(10), client.get(path, headers=HEAD) as response:
        while not (await response.content.readline()).startswith(b"event: batch"):
            pass
        manager.end_streams()
        assert b"event: end" not in await response.content.read()
    files.gate.set()
    assert (await events(client, path))[-1]["event"] == "end"


# Files


@pytest.fixture
async def stored(client, manager, files):
    """A finished file: its address, and its bytes."""
    batch_id = await submit(client, [files.add("ä b.html", 600_000, Content_Type="text/html")])
    result = await manager.wait(batch_id, timeout=10)
    _, document, _ = await ask(client, "GET", f"/api/v1/batch/{batch_id}")
    path = document["jobs"][0]["file_info"]["download_url"].partition(f":{client.port}")[2]
    return path, (manager.directory / result.jobs[0].file_info.filepath).read_bytes(), result


async def test_a_file_is_served_whole_and_harmless(client, stored):
    path, data, _ = stored
    async with client.get(path, headers=HEAD) as response:
        assert (response.status, await response.read()) == (200, data)
        assert response.headers["Content-Disposition"] == "attachment; filename*=UTF-8''%C3%A4%20b.html"
        assert "sandbox" in response.headers["Content-Security-Policy"]
        assert response.headers["Accept-Ranges"] == "bytes"
        etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
    async with client.head(path, headers=HEAD) as response:
        assert (response.status, response.content_length, await response.read()) == (200, len(data), b"")
    for condition in ({"If-None-Match": etag}, {"If-None-Match": f'"x", W/{etag}'}, {"If-Modified-Since": modified}):
        async with client.get(path, headers={**HEAD, **condition}) as response:
            assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", etag)


@pytest.mark.parametrize("date", ["", "0", "Wed, 21 Oct 2015 07:28:00 +9999", f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT"])
async def test_an_invalid_date_is_not_a_condition(client, stored, date):
    path, data, _ = stored
    for condition in ({"If-Modified-Since": date}, {"If-Range": date, "Range": "bytes=0-9"}):
        async with client.get(path, headers={**HEAD, **condition}) as response:
            assert (response.status, await response.read()) == (200, data)


RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=10-19", 10, 20),
    ("bytes=599990-", 599_990, 600_000),
    ("bytes=-5", 599_995, 600_000),
    ("bytes=599999-999999999", 599_999, 600_000),
    ("bytes=0-", 0, 600_000),
    ("bytes=-9999999", 0, 600_000),
]
NO_RANGES = ["bytes=5-1", "bytes=0-1,3-4", "lines=0-1", "bytes", "bytes=", "bytes=a-b", "bytes=--1"]


async def test_a_range_of_a_file_is_served(client, stored):
    path, data, _ = stored
    for requests, start, stop in RANGES:
        async with client.get(path, headers={**HEAD, "Range": requests}) as response:
            assert (response.status, await response.read()) == (206, data[start:stop])
            assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/600000"


async def test_a_range_outside_the_file_is_416_and_an_invalid_one_is_ignored(client, stored):
    for requests in ("bytes=600000-", "bytes=-0", "bytes=999999-1000000"):
        async with client.get(stored[0], headers={**HEAD, "Range": requests}) as response:
            assert (response.status, response.headers["Content-Range"]) == (416, "bytes */600000")
    for requests in NO_RANGES:
        async with client.get(stored[0], headers={**HEAD, "Range": requests}) as response:
            assert (response.status, len(await response.read())) == (200, 600_000)


async def test_a_range_of_another_version_is_the_whole_file(client, stored):
    path, _, result = stored
    async with client.head(path, headers=HEAD) as response:
        etag = response.headers["ETag"]
    old = format_datetime(result.created_at - timedelta(days=9000), usegmt=True)
    for condition, status in ((etag, 206), ('"other"', 200), (old, 200), ("W/" + etag, 200), ("nonsense", 200)):
        headers = {**HEAD, "Range": "bytes=0-9", "If-Range": condition}
        async with client.get(path, headers=headers) as response:
            assert response.status == status


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ({"If-Match": "{etag}"}, 206),
        ({"If-Match": '"other", {etag}'}, 206),
        ({"If-Match": "*"}, 206),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "W/{etag}"}, 412),
        ({"If-Match": ""}, 412),
        ({"If-Unmodified-Since": "{modified}"}, 206),
        ({"If-Unmodified-Since": "Wed, 21 Oct 2015 07:28:00 GMT"}, 412),
        ({"If-Unmodified-Since": "no date"}, 206),
        # The tag decides where both are there.
        ({"If-Match": "{etag}", "If-Unmodified-Since": "Wed, 21 Oct 2015 07:28:00 GMT"}, 206),
        # Before what would make it a 304.
        ({"If-Match": '"other"', "If-None-Match": "{etag}"}, 412),
    ],
)
async def test_if_match_prevents_bytes_of_another_version(client, stored, condition, status):
    path, data, _ = stored
    async with client.head(path, headers=HEAD) as response:
        etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
    headers = {name: text.format(etag=etag, modified=modified) for name, text in condition.items()}
    async with client.get(path, headers={**HEAD, "Range": "bytes=0-9", **headers}) as response:
        body = await response.read()
        assert (response.status, response.headers["ETag"]) == (status, etag)
        assert (body == data[:10]) == (status == 206)
    async with client.head(path, headers={**HEAD, **headers}) as response:
        assert response.status == (200 if status == 206 else 412)


async def test_files_forbid_transformation(client, stored):
    for condition in ({}, {"Range": "bytes=0-9"}):
        async with client.get(stored[0], headers={**HEAD, **condition}) as response:
            assert "no-transform" in response.headers["Cache-Control"]
            assert "Content-Encoding" not in response.headers


@given(st.text(max_size=30), st.integers(0, 10_000))
def test_any_range_header_is_bytes_of_the_file_or_nothing(text, size):
    for header in (text, f"bytes={text}"):
        with contextlib.suppress(HTTPProblem):
            part = parse_range(header, size)
            assert part is None or 0 <= part[0] < part[1] <= size


async def test_a_link_opens_one_file_without_a_key_for_a_while(manager, files, stopped_clock):
    async with running(manager) as client:
        batch_id = await submit(client, [files.add("a"), files.add("b", rule=404)])
        await manager.wait(batch_id, timeout=10)
        jobs = f"/api/v1/batch/{batch_id}/jobs"
        _, document, _ = await ask(client, "POST", f"{jobs}/job_{batch_id}_0/link")
        assert document["expires_at"] == 1_000_300.0
        async with client.session.get(document["url"]) as response:
            assert (response.status, await response.read()) == (200, files.files["a"])
        for bad in (
            document["url"].replace("a.bin", "b.bin"),
            document["url"][:-1] + "x",
            document["url"].replace("1000300", "9000300"),
        ):
            async with client.session.get(bad) as response:
                assert response.status == 401
        stopped_clock.seconds += 301
        async with client.session.get(document["url"]) as response:
            assert response.status == 401
        assert (await ask(client, "POST", f"{jobs}/job_{batch_id}_1/link"))[0] == 409
        assert (await ask(client, "POST", f"{jobs}/job_{batch_id}_7/link"))[0] == 404


async def test_only_finished_files_are_served_and_no_links_are_followed(client, manager, stored, files):
    path, _, result = stored
    (manager.directory / "mine.txt").write_text("not a download")
    (manager.directory.parent / "secret.txt").write_text("secret")
    for other in ("/files/mine.txt", "/files/../secret.txt"):
        async with client.get(other, headers=HEAD) as response:
            assert response.status == 404
    place = manager.directory / result.jobs[0].file_info.filepath
    place.unlink()
    async with client.get(path, headers=HEAD) as response:
        assert response.status == 404
    place.symlink_to(manager.directory.parent / "secret.txt")
    async with client.get(path, headers=HEAD) as response:
        assert response.status == 404
    place.unlink()
    place.parent.rmdir()
    place.parent.symlink_to(manager.directory.parent)
    (manager.directory.parent / place.name).write_text("secret")
    async with client.get(path, headers=HEAD) as response:
        assert response.status == 404


async def test_a_file_is_not_leaked_when_its_reader_goes_away(client, stored):
    path, _, _ = stored
    if not descriptors():
        pytest.skip("this system does not list open files in /proc")
    before = descriptors()
    for _ in range(5):
        response = await client.get(path, headers=HEAD)
        await response.content.readany()
        response.close()
    async with asyncio.timeout(5):
        while descriptors() > before + 2:  # noqa: ASYNC110  # no event tells that a file was closed
            await asyncio.sleep(0.01)


async def test_a_file_is_not_closed_under_the_thread_that_reads_it(manager, files, monkeypatch):
    loop, reading, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    closed = []

    class Slow(io.FileIO):
        def read(self, size=-1):
            loop.call_soon_threadsafe(reading.set)
            assert go_on.wait(10)
            closed.append(self.closed)
            return super().read(size)

    monkeypatch.setattr("wme_async.web.files._open", lambda path: (Slow(path), path.stat()))
    batch = await manager.submit([files.add("a")], path_template="a.bin")
    await manager.wait(batch.batch_id, timeout=10)
    call = AsgiCall(create_asgi(manager, api_keys=[KEY]), "GET", "/files/a.bin", headers=[("x-api-key", KEY)])
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(call.run())
        await reading.wait()
        call.inbox.put_nowait({"type": "http.disconnect"})
        # Answered after the disconnect has been seen.
        assert (await AsgiCall(call.app, "GET", "/api/v1/batch", headers=[("x-api-key", KEY)]).run()).status == 200
        go_on.set()
    assert closed == [False]


async def test_a_file_that_opens_after_its_reader_has_gone_is_closed(manager, files, monkeypatch):
    loop, opening, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    batch = await manager.submit([files.add("a")], path_template="a.bin")
    await manager.wait(batch.batch_id, timeout=10)
    opened = []

    def slow(path):
        loop.call_soon_threadsafe(opening.set)
        assert go_on.wait(10)
        opened.append(path.open("rb"))
        return opened[0], path.stat()

    monkeypatch.setattr("wme_async.web.files._open", slow)
    call = AsgiCall(create_asgi(manager, api_keys=[KEY]), "GET", "/files/a.bin", headers=[("x-api-key", KEY)])
    task = asyncio.create_task(call.run())
    async with asyncio.timeout(10):
        await opening.wait()
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [file.closed for file in opened] == [True]


def descriptors():
    """How many files are open."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


# The document


async def test_the_openapi_document_is_made_of_the_types_and_names_every_address(client):
    _, document, _ = await ask(client, "GET", "/api/v1/openapi.json")
    assert document["openapi"] == "3.1.0"
    body = document["components"]["schemas"]["BatchRequest"]
    assert body["required"] == ["urls"]
    assert body["properties"]["urls"]["maxItems"] == 100
    assert body["properties"]["concurrent_limit"] == {"type": "integer", "minimum": 1, "maximum": 10, "default": 3}
    assert {"/api/v1/batch/download", "/api/v1/batch/{batch_id}", "/healthz"} <= set(document["paths"])
    operations = [item for path in document["paths"].values() for item in path.values()]
    assert len({item["operationId"] for item in operations}) == len(operations)
    text = json.dumps(document)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert reference in document["components"]["schemas"]
    for path, verbs in document["paths"].items():
        for operation in verbs.values():
            named = [item["name"] for item in operation["parameters"] if item["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path)
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(document)


# Mounting


async def test_it_works_below_a_prefix_of_another_application(tmp_path, files):
    manager = make_manager(tmp_path)
    async with running(manager, prefix="/tools/downloads/") as client:
        status, created, headers = await ask(
            client, "POST", "/tools/downloads/api/v1/batch/download", json={"urls": [files.add("a")]}
        )
        assert status == 201
        assert headers["Location"].startswith(str(client.make_url("/tools/downloads/api/v1/batch/batch_")))
        await manager.wait(created["batch_id"], timeout=10)
        _, document, _ = await ask(client, "GET", f"/tools/downloads/api/v1/batch/{created['batch_id']}")
        async with client.session.get(document["jobs"][0]["file_info"]["download_url"], headers=HEAD) as response:
            assert await response.read() == files.files["a"]
        async with client.get("/tools/downloads/") as response:
            assert "Batch downloads" in await response.text()
    with pytest.raises(RuntimeError, match="not open"):
        await manager.list()


async def test_jobs_stop_before_the_application_around_them_closes_their_client(sim, tmp_path):
    client = wme_async.Client(**sim.client_options())
    manager = make_manager(tmp_path, client=client)

    async def open_client(_):
        async with client:
            yield
            assert manager.closing

    app = aiohttp_web.Application()
    app.cleanup_ctx.append(open_client)
    app.add_subapp("/downloads/", create_app(manager, api_keys=[KEY]))
    fault = sim.faults.inject("stall", role="store", after=2000)
    async with TestClient(TestServer(app)):
        batch = await manager.submit(["wme:snapshots/enwiki_namespace_0"])
        async with asyncio.timeout(10), contextlib.aclosing(manager.watch(batch.batch_id)) as events:
            async for event in events:
                if event.kind == "progress" and fault.hits:
                    break
    async with make_manager(tmp_path) as later:
        # It failed without a client only now, so it was not failed before.
        result = await later.wait(batch.batch_id, timeout=10)
    assert "wme: URLs need a client" in result.jobs[0].error


async def test_an_open_manager_stays_open_when_the_application_ends(manager):
    app = create_app(manager, api_keys=[KEY])
    assert app[MANAGER] is manager
    async with TestClient(TestServer(app)) as client:
        assert (await ask(client, "GET", "/healthz"))[0] == 200
    assert (await manager.list()).batches == ()


async def test_links_follow_the_public_url_where_one_is_given(tmp_path, files):
    async with running(make_manager(tmp_path), public_url="https://files.example/x/") as client:
        status, created, headers = await ask(client, "POST", "/api/v1/batch/download", json={"urls": [files.add("a")]})
        assert status == 201
        assert headers["Location"] == f"https://files.example/x/api/v1/batch/{created['batch_id']}"


class AsgiCall:
    """One call of an ASGI application, as a server would make it."""

    def __init__(self, app, method, path, *, body=b"", headers=(), root=""):
        self.app = app
        self.scope = {
            "type": "http",
            "method": method,
            "path": root + path.partition("?")[0],
            "root_path": root,
            "query_string": path.partition("?")[2].encode(),
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "http_version": "1.1",
            "asgi": {"version": "3.0"},
            "server": ("localhost", 80),
            "state": {},
            "raw_path": (root + path.partition("?")[0]).encode(),
            "headers": [(b"host", b"localhost"), *((k.lower().encode(), v.encode()) for k, v in headers)],
        }
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": body[:10], "more_body": True})
        self.inbox.put_nowait({"type": "http.request", "body": body[10:], "more_body": False})
        self.sent = []
        self.got = asyncio.Event()

    async def send(self, message):
        self.sent.append(message)
        self.got.set()

    async def run(self):
        await self.app(self.scope, self.inbox.get, self.send)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return b"".join(message["body"] for message in self.sent[1:])


async def test_asgi_returns_the_same_responses(manager, files):
    app = create_asgi(manager, api_keys=[KEY])
    head = [("x-api-key", KEY), ("content-type", "application/json")]
    body = json.dumps({"urls": [files.add("a", 300_000)]}).encode()
    created = await AsgiCall(app, "POST", "/api/v1/batch/download", body=body, headers=head, root="/mounted").run()
    assert created.status == 201
    batch_id = json.loads(created.body)["batch_id"]
    await manager.wait(batch_id, timeout=10)
    document = await AsgiCall(app, "GET", f"/api/v1/batch/{batch_id}", headers=head, root="/mounted").run()
    path = json.loads(document.body)["jobs"][0]["file_info"]["download_url"].removeprefix("http://localhost/mounted")
    file = await AsgiCall(app, "GET", path, headers=head).run()
    assert file.body == files.files["a"]
    assert (b"content-length", b"300000") in file.sent[0]["headers"]
    part = await AsgiCall(app, "GET", path, headers=[*head, ("range", "bytes=1-2")]).run()
    assert (part.status, part.body) == (206, files.files["a"][1:3])
    assert (await AsgiCall(app, "GET", "/api/v1/batch").run()).status == 401
    assert (await AsgiCall(app, "HEAD", "/", headers=head).run()).body == b""
    large = [*head, ("content-length", str(1 << 30))]
    assert (await AsgiCall(app, "POST", "/api/v1/batch/download", headers=large).run()).status == 413
    stream = AsgiCall(app, "GET", f"/api/v1/batch/{batch_id}/events", headers=head)
    assert (await stream.run()).body.endswith(b"event: end\ndata: {}\n\n")
    with pytest.raises(RuntimeError, match="not websocket"):
        await app({"type": "websocket"}, stream.inbox.get, stream.send)


async def test_an_asgi_stream_ends_when_its_reader_leaves(manager):
    app = create_asgi(manager, api_keys=[KEY])
    call = AsgiCall(app, "GET", "/api/v1/events", headers=[("x-api-key", KEY)])
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(call.run())
        while len(call.sent) < 2:
            call.got.clear()
            await call.got.wait()
        call.inbox.put_nowait({"type": "http.disconnect"})
    assert manager.statistics()["watchers"] == 0


async def served(app, inbox, sent):
    """Let an application live, as an ASGI server does."""
    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, sent.put)


async def test_an_asgi_server_opens_and_closes_the_manager(tmp_path):
    manager = make_manager(tmp_path)
    app = create_asgi(manager, api_keys=[KEY])
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(served(app, inbox, sent))
        inbox.put_nowait({"type": "lifespan.startup"})
        assert (await sent.get())["type"] == "lifespan.startup.complete"
        assert (await manager.list()).batches == ()
        blocked = create_asgi(make_manager(tmp_path), api_keys=[KEY])
        second: asyncio.Queue[Any] = asyncio.Queue()
        second.put_nowait({"type": "lifespan.startup"})
        await served(blocked, second, second)
        failed = await second.get()
        assert failed["type"] == "lifespan.startup.failed"
        assert "another batch manager" in failed["message"]
        inbox.put_nowait({"type": "lifespan.shutdown"})
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"


@pytest.mark.filterwarnings("default")  # other people's packages, imported here for the first time
@pytest.mark.parametrize("name", ["fastapi", "starlette", "litestar"])
async def test_it_lives_beside_the_routes_of_other_frameworks(name, sim, files, tmp_path, monkeypatch):
    for package in ("fastapi", "starlette", "litestar"):
        pytest.importorskip(package)
    for variable, value in {**sim.environment(), "WME_SERVE_API_KEY": KEY, "WME_DOWNLOADS": str(tmp_path)}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    app = getattr(importlib.import_module("batch_service_asgi"), f"{name}_app")()
    head = [("x-api-key", KEY), ("content-type", "application/json")]
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(served(app, inbox, sent))
        inbox.put_nowait({"type": "lifespan.startup"})
        assert (await sent.get())["type"] == "lifespan.startup.complete"
        hour = sim.hours[-2].replace("T", "/")
        body = json.dumps({"urls": [f"wme:batches/{hour}/enwiki_namespace_0"]}).encode()
        created = await AsgiCall(app, "POST", "/downloads/api/v1/batch/download", body=body, headers=head).run()
        assert created.status == 201, created.body
        batch_id = json.loads(created.body)["batch_id"]
        stream = await AsgiCall(app, "GET", f"/downloads/api/v1/batch/{batch_id}/events", headers=head).run()
        assert stream.body.endswith(b"event: end\ndata: {}\n\n")
        document = json.loads(
            (await AsgiCall(app, "GET", f"/downloads/api/v1/batch/{batch_id}", headers=head).run()).body
        )
        assert document["status"] == "completed", document
        url = document["jobs"][0]["file_info"]["download_url"]
        assert url.startswith("http://localhost/downloads/files/")
        file = await AsgiCall(app, "GET", url.removeprefix("http://localhost"), headers=head).run()
        assert len(file.body) == document["jobs"][0]["file_info"]["size_bytes"]
        assert b"Batch downloads" in (await AsgiCall(app, "GET", "/downloads/").run()).body
        assert (await AsgiCall(app, "GET", "/downloads/metrics").run()).status == 401
        assert json.loads((await AsgiCall(app, "GET", "/unfinished", headers=head).run()).body) == 0
        inbox.put_nowait({"type": "lifespan.shutdown"})
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"


# Under load


async def test_many_watchers_and_queued_jobs_leave_the_loop_free(tmp_path, files):
    files.add("load", 40_000, "slow")
    urls = [f"{files.url}/f/load?{number}" for number in range(100)]
    async with make_manager(tmp_path) as manager, running(manager, create_rate=None) as client:
        for number in range(3):
            await submit(client, [f"{url}.{number}" for url in urls], concurrent_limit=10)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.timeout(20):
            streams = []
            for _ in range(100):
                streams.append(await session.get(client.make_url("/api/v1/events"), headers=HEAD))
                assert streams[-1].status == 200
            assert manager.statistics()["watchers"] == 100
            took = []
            for _ in range(30):
                began = time.perf_counter()
                async with client.get("/healthz") as response:
                    assert response.status == 200
                took.append(time.perf_counter() - began)
            for response in streams:
                response.close()
        for row in (await manager.list()).batches:
            await manager.cancel(row.batch_id)
    # Client, readers, file server and service share one loop here; the torture run measures the service alone.
    assert sorted(took)[-2] < 1.0


@pytest.mark.torture
@pytest.mark.timeout(900)
async def test_a_fuzzer_finds_no_error_by_the_openapi_document(manager, files):
    tool = shutil.which("schemathesis") or shutil.which("st")
    if tool is None:
        pytest.skip("schemathesis is not installed")
    async with running(manager, create_rate=None) as client:
        batch_id = await submit(client, [files.add("a"), files.add("b", rule=404)])
        await manager.wait(batch_id, timeout=10)
        base = str(client.make_url("/")).rstrip("/")
        process = await asyncio.create_subprocess_exec(
            *(tool, "run", f"{base}/api/v1/openapi.json", "-H", f"X-API-Key: {KEY}", "--max-examples", "60"),
            # A stream of events has no end to wait for; and no schema can say which URLs lead to private places.
            *("--exclude-path-regex", "events$", "--exclude-checks", "positive_data_acceptance"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=manager.directory,
        )
        document, _ = await process.communicate()
    assert process.returncode == 0, document.decode()[-5000:]


def test_everything_public_is_exported():
    assert all(getattr(web, name) for name in web.__all__)
