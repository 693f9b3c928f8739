"""The lifespan of a web service: what it opens and runs, its end under real servers, and events as responses."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, web
from aiohttp.test_utils import TestClient, TestServer

from wme_async import Client
from wme_async.relay import Broadcast
from wme_async.simulator import Simulator
from wme_async.web import Lifespan, aiohttp_events, litestar_events, starlette_events

EXAMPLES = Path(__file__).parents[1] / "examples"
TIMEOUT = ClientTimeout(total=20)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(articles=1) as simulator:
        yield simulator


@contextlib.asynccontextmanager
async def noting(name: str, notes: list[str]) -> AsyncIterator[str]:
    notes.append(f"open {name}")
    yield name
    notes.append(f"close {name}")


async def test_what_is_opened_and_run_is_ended_in_the_opposite_order() -> None:
    notes: list[str] = []
    running = asyncio.Event()

    async def job() -> None:
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            notes.append("end job")

    async def start(app: str, service: Lifespan) -> None:
        notes.append(app)
        assert await service.open(noting("a", notes)) == "a"
        await service.open(noting("b", notes))
        service.run(job())

    lifespan = Lifespan(start)
    for _ in range(2):  # as tests of an application start it again and again
        async with lifespan("app"):
            await running.wait()
            assert lifespan.failure is None
        assert notes == ["app", "open a", "open b", "end job", "close b", "close a"]
        notes.clear()
        running.clear()


async def test_a_start_that_fails_closes_what_was_opened() -> None:
    notes: list[str] = []

    async def start(_: object, service: Lifespan) -> None:
        await service.open(noting("a", notes))
        raise LookupError("not today")

    lifespan = Lifespan(start)
    with pytest.raises(LookupError):
        async with lifespan(None):
            raise AssertionError
    assert notes == ["open a"]  # it saw the exception
    assert "closed" in repr(lifespan)


async def test_a_job_that_fails_is_seen_by_the_health_check_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    failed = asyncio.Event()
    error = LookupError("not today")

    async def job() -> None:
        try:
            raise error
        finally:
            failed.set()

    async def well() -> None:
        pass

    async def start(_: object, service: Lifespan) -> None:
        service.run(well())
        service.run(job())

    lifespan = Lifespan(start)
    async with lifespan(None):
        await failed.wait()
        await asyncio.sleep(0)
        assert lifespan.failure is error
    (record,) = caplog.records
    assert record.name == "wme_async.web"
    assert "job" in record.message


async def test_a_relay_whose_stream_has_ended_is_a_failure(sim: Simulator) -> None:
    sim.faults.inject("status", role="realtime", status=403, times=None)

    async def start(_: object, service: Lifespan) -> None:
        wme = await service.open(Client(**sim.client_options()))
        await service.open(Broadcast(wme.realtime.articles()))

    lifespan = Lifespan(start)
    async with lifespan(None), asyncio.timeout(20):
        while lifespan.failure is None:  # noqa: ASYNC110  # a property; nothing to wait on
            await asyncio.sleep(0.005)


async def test_nothing_is_opened_or_run_outside_of_an_application() -> None:
    async def start(_: object, service: Lifespan) -> None: ...

    async def job() -> None:
        raise AssertionError

    lifespan = Lifespan(start)
    with pytest.raises(RuntimeError, match="does not run"):
        await lifespan.open(noting("a", []))
    with pytest.raises(RuntimeError, match="does not run"):
        lifespan.run(job())
    with pytest.raises(TypeError):
        Lifespan("start")  # type: ignore[arg-type]
    async with lifespan(None):
        with pytest.raises(RuntimeError, match="runs already"):
            async with lifespan(None):
                raise AssertionError


@pytest.mark.filterwarnings("default")  # other people's packages, imported here for the first time
@pytest.mark.parametrize("framework", ["fastapi", "starlette", "litestar"])
def test_each_framework_takes_it(framework: str) -> None:
    testing = pytest.importorskip(f"{framework}.test{'ing' if framework == 'litestar' else 'client'}")
    notes: list[str] = []

    async def start(_: object, service: Lifespan) -> None:
        await service.open(noting(framework, notes))

    lifespan: Any = Lifespan(start)
    if framework == "litestar":
        app = pytest.importorskip("litestar").Litestar(lifespan=[lifespan])
    elif framework == "fastapi":
        app = pytest.importorskip("fastapi").FastAPI(lifespan=lifespan)
    else:
        app = pytest.importorskip("starlette.applications").Starlette(lifespan=lifespan)
    with testing.TestClient(app):
        assert notes == [f"open {framework}"]
    assert notes[1:] == [f"close {framework}"]


@contextlib.contextmanager
def uvicorn(*words: str, cwd: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Run an application in a server of its own, without a limit for its shutdown."""
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # Its connections inherit it: a client that does not read soon blocks its response.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        command = [sys.executable, "-m", "uvicorn", "--fd", str(listening.fileno()), "--app-dir", str(EXAMPLES), *words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd, pass_fds=[listening.fileno()])
        try:
            yield process, listening.getsockname()[1]
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.servers)])
async def test_an_open_page_does_not_hold_up_the_end_of_a_server(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi")
    with Simulator.run_in_thread(articles=1) as simulator:
        for name, value in simulator.environment().items():
            monkeypatch.setenv(name, value)
        with uvicorn("web_service:app", cwd=tmp_path) as (process, port):
            async with (
                ClientSession(timeout=TIMEOUT) as session,
                session.get(f"http://127.0.0.1:{port}/live") as response,
            ):
                assert response.headers["Content-Type"].startswith("text/event-stream")
                assert response.headers["Cache-Control"] == "no-store"
                assert (await response.content.readline()).startswith(b"retry: ")
                process.send_signal(number)
                began = time.monotonic()
                await asyncio.to_thread(process.wait, 20)
                seconds = time.monotonic() - began
                assert await response.content.read() == b"\n"
            assert process.stderr is not None
            log = process.stderr.read()
    assert "Application shutdown complete" in log
    assert "ERROR" not in log
    assert "Traceback" not in log
    assert seconds < 15


@pytest.mark.servers
async def test_the_events_of_batches_do_not_hold_up_the_end_of_a_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("fastapi")
    key = "wme_" + "k" * 43
    with Simulator.run_in_thread(articles=1) as simulator:
        for name, value in {**simulator.environment(), "WME_SERVE_API_KEY": key}.items():
            monkeypatch.setenv(name, value)
        with uvicorn("--factory", "batch_service_asgi:fastapi_app", cwd=tmp_path) as (process, port):
            url = f"http://127.0.0.1:{port}/downloads/api/v1/events"
            async with (
                ClientSession(headers={"X-API-Key": key}, timeout=TIMEOUT) as session,
                session.get(url) as response,
            ):
                assert response.status == 200, await response.text()
                assert (await response.content.readline()).startswith(b"retry: ")
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, 20)
            assert process.stderr is not None
            log = process.stderr.read()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log


async def test_aiohttp_serves_events_and_ends_them_at_its_shutdown(sim: Simulator) -> None:
    async with Client(**sim.client_options()) as wme, Broadcast(wme.realtime.articles()) as hub:

        async def live(request: web.Request) -> web.StreamResponse:
            return await aiohttp_events(hub, request, where=lambda article: article.is_part_of.identifier == "dewiki")

        async def end(_: web.Application) -> None:
            hub.end_listeners()

        app = web.Application()
        app.router.add_get("/live", live)
        app.on_shutdown.append(end)
        async with TestClient(TestServer(app)) as served:
            response = await served.get("/live")
            assert response.headers["Content-Type"] == "text/event-stream"
            for project in ("enwiki", "dewiki"):
                sim.firehose.publish(project=project)
            body = await response.content.readuntil(b"}\n\n")
            assert b'"identifier":"dewiki"' in body
            assert b'"identifier":"enwiki"' not in body
            async with asyncio.timeout(20):
                await served.server.close()
        with pytest.raises(StopAsyncIteration):
            async with hub.listen() as events:
                await anext(events)


async def test_a_request_for_the_head_of_events_ends_and_has_no_listener(sim: Simulator) -> None:
    async with Client(**sim.client_options()) as wme, Broadcast(wme.realtime.articles()) as hub:

        async def live(request: web.Request) -> web.StreamResponse:
            return await aiohttp_events(hub, request)

        async def listeners(_: web.Request) -> web.Response:
            return web.Response(text=str(hub.statistics().listeners))

        app = web.Application()
        app.router.add_get("/live", live)
        app.router.add_get("/listeners", listeners)
        async with TestClient(TestServer(app)) as served, asyncio.timeout(20):
            # Of a body, the same connection would take the bytes for the next response.
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            for request in (b"HEAD /live", b"GET /listeners"):
                writer.write(request + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"0"
            writer.close()


async def events_of(body: Any) -> bytes:
    return bytes(await anext(aiter(body)))


async def test_asgi_frameworks_serve_events(sim: Simulator) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("litestar")
    from litestar.testing import RequestFactory  # a framework that may not be there
    from starlette.requests import Request  # the same

    async with Client(**sim.client_options()) as wme, Broadcast(wme.realtime.articles()) as hub:
        stream = starlette_events(hub, Request({"type": "http", "method": "GET", "headers": []}))
        assert stream.media_type == "text/event-stream"
        assert stream.headers["Cache-Control"] == "no-store"
        assert (await events_of(stream.body_iterator)).startswith(b"retry: ")
        await stream.body_iterator.aclose()  # type: ignore[attr-defined]
        head = starlette_events(hub, Request({"type": "http", "method": "HEAD", "headers": []}))
        assert [part async for part in head.body_iterator] == []
        other = litestar_events(hub, RequestFactory().get("/"))
        assert other.media_type == "text/event-stream"
        body: Any = other.iterator
        assert (await events_of(body)).startswith(b"retry: ")
        await body.aclose()
