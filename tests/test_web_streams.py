"""Streams of events as responses: clients that stop reading or disconnect, and turns for everybody else."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from test_web_lifespan import uvicorn

from wme_async import Article, Client
from wme_async.jobs import BatchManager
from wme_async.relay import Broadcast
from wme_async.simulator import Simulator
from wme_async.web import aiohttp_events, create_app, create_asgi, litestar_events, starlette_events

OLD_ID = "garbage"  # everything is replayed to a client with such an id
SECONDS = 20  # for a test that hangs


@contextlib.asynccontextmanager
async def relay(count: int, size: int) -> AsyncIterator[Broadcast[Article]]:
    """Return a hub whose backlog has so many events of a size in bytes."""

    def encode(_: Article) -> bytes:
        return b'"' + b"x" * size + b'"'

    async with (
        Simulator(articles=1) as simulator,
        Client(**simulator.client_options()) as wme,
        Broadcast(wme.realtime.articles(), encode=encode) as hub,
        asyncio.timeout(SECONDS),
    ):
        simulator.firehose.publish_many(count)
        async with hub.listen(replay=True) as events:
            for _ in range(count):
                await anext(events)
        yield hub


def http_scope(path: str = "/", spec_version: str = "2.3") -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"last-event-id", OLD_ID.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        "state": {},
    }


def starlette_app(hub: Broadcast[Article]) -> Any:
    requests = pytest.importorskip("starlette.requests")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await starlette_events(hub, requests.Request(scope))(scope, receive, send)

    return app


def litestar_app(hub: Broadcast[Article]) -> Any:
    litestar = pytest.importorskip("litestar")

    @litestar.get("/")
    async def live(request: Any) -> Any:
        return litestar_events(hub, request)

    live.fn.__annotations__.update(request=litestar.Request, **{"return": litestar.response.Stream})
    return litestar.Litestar([live])


APPS = pytest.mark.parametrize("make_app", [starlette_app, litestar_app])


class FrozenClient:
    """A client as an ASGI server sees it: after some messages the socket has no more room."""

    def __init__(self, room: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self.blocked = asyncio.Event()
        self._room = room

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.messages) >= self._room:
            self.blocked.set()
            await asyncio.Event().wait()
        self.messages.append(message)

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError


@APPS
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.filterwarnings("default")  # other people's packages, imported here for the first time
async def test_a_response_that_waits_for_its_client_is_given_up_when_the_listeners_end(
    make_app: Callable[[Any], Any], spec_version: str
) -> None:
    async with relay(3, 100_000) as hub:
        client = FrozenClient(room=2)
        app = make_app(hub)
        responding = asyncio.create_task(app(http_scope("/", spec_version), client.receive, client.send))
        await client.blocked.wait()
        hub.end_listeners()
        await responding
        assert len(client.messages) == 2
        # So does one that comes afterwards.
        await app(http_scope("/", spec_version), client.receive, FrozenClient(room=1).send)


class ShuttingDown:
    """The server that the handler of SIGTERM belongs to, as uvicorn's."""

    should_exit = False

    def handle_exit(self, *_: object) -> None:
        self.should_exit = True


async def test_the_events_of_batches_are_given_up_when_uvicorn_shuts_down(tmp_path: Path) -> None:
    server, client = ShuttingDown(), FrozenClient(room=1)
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        async with BatchManager(tmp_path) as manager, asyncio.timeout(SECONDS):
            app: Any = create_asgi(manager, api_keys=None)
            responding = asyncio.create_task(app(http_scope("/api/v1/events"), client.receive, client.send))
            await client.blocked.wait()
            signal.raise_signal(signal.SIGTERM)
            await responding
    finally:
        signal.signal(signal.SIGTERM, before)
    assert client.messages[0]["status"] == 200


def frozen_socket(port: int, path: str = "/live", last: str = OLD_ID) -> socket.socket:
    """Return a connection whose client will not read: it asks for everything and has room for 4 KB."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {last}\r\n\r\n".encode())
    return connection


def narrow_socket(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    """Return a listening socket whose connections have room for 4 KB."""
    listening = socket.create_server((host, port), family=family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listening


async def close_server(app: web.Application, path: str, last: str, transports: list[Any]) -> float:
    """Return the seconds that a server needs to end after the response to a client that does not read waits for it."""
    server = TestServer(app, socket_factory=narrow_socket)
    await server.start_server()
    with await asyncio.to_thread(frozen_socket, server.port or 0, path, last):
        while not transports or transports[0].get_write_buffer_size() <= 64 * 1024:  # noqa: ASYNC110  # aiohttp's limit
            await asyncio.sleep(0.005)
        began = time.monotonic()
        await server.close()  # it would wait for a minute
        return time.monotonic() - began


async def test_aiohttp_gives_up_a_client_that_does_not_read_when_the_listeners_end() -> None:
    transports: list[Any] = []
    async with relay(3, 100_000) as hub:

        async def live(request: web.Request) -> web.StreamResponse:
            transports.append(request.transport)
            return await aiohttp_events(hub, request)

        async def end(_: web.Application) -> None:
            hub.end_listeners()

        app = web.Application()
        app.router.add_get("/live", live)
        app.on_shutdown.append(end)
        assert await close_server(app, "/live", OLD_ID, transports) < 15


async def test_aiohttp_gives_up_a_client_that_does_not_read_the_events_of_batches(tmp_path: Path) -> None:
    transports: list[Any] = []

    @web.middleware
    async def note_transport(request: web.Request, handler: Any) -> web.StreamResponse:
        transports.append(request.transport)
        response: web.StreamResponse = await handler(request)
        return response

    async with BatchManager(tmp_path, allow_hosts=["127.0.0.1"]) as manager, asyncio.timeout(SECONDS):
        for number in range(6):
            batch = await manager.submit([f"http://127.0.0.1:9/{number}/{job}" for job in range(100)])
            await manager.cancel(batch.batch_id)  # an event for each of its jobs
        app = create_app(manager, api_keys=None)
        app.middlewares.append(note_transport)
        assert await close_server(app, "/api/v1/events", "0", transports) < 15


APP = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from wme_async import Client
from wme_async.relay import Broadcast
from wme_async.web import Lifespan, starlette_events

pending = 0


class CountPending:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def counting(message):
            global pending
            pending += 1
            try:
                await send(message)
            finally:
                pending -= 1

        await self.app(scope, receive, counting if scope.get("path") == "/live" else send)


async def start(app, service):
    wme = await service.open(Client.from_env())
    encode = lambda article: b'"' + b"x" * 10_000 + b'"'
    app.state.hub = await service.open(Broadcast(wme.realtime.articles(), encode=encode))


async def live(request):
    return starlette_events(app.state.hub, request)


async def state(request):
    return PlainTextResponse(f"{app.state.hub.statistics().events} {pending}")


service = Lifespan(start)
app = Starlette(routes=[Route("/live", live), Route("/state", state)], lifespan=service)
app.add_middleware(CountPending)
"""


@pytest.mark.servers
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(("events", "pending"), [(20, 1), (4, 0)], ids=["blocked", "unsent"])
async def test_a_client_that_does_not_read_does_not_hold_up_the_end_of_uvicorn(
    loop: str, events: int, pending: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip(loop)
    (tmp_path / "relaying.py").write_text(APP)
    with Simulator.run_in_thread(articles=1) as simulator:
        for name, value in simulator.environment().items():
            monkeypatch.setenv(name, value)
        words = ("relaying:app", "--loop", loop, "--app-dir", str(tmp_path))
        with uvicorn(*words, cwd=tmp_path) as (process, port):
            async with ClientSession() as session, asyncio.timeout(SECONDS):

                async def wait_state(state: str) -> None:
                    while True:
                        async with session.get(f"http://127.0.0.1:{port}/state") as response:
                            if await response.text() == state:
                                return
                        await asyncio.sleep(0.01)

                await wait_state("0 0")
                simulator.call(simulator.firehose.publish_many, events)
                await wait_state(f"{events} 0")
                with await asyncio.to_thread(frozen_socket, port) as client:
                    assert await asyncio.to_thread(client.recv, 10) == b"HTTP/1.1 2"
                    await wait_state(f"{events} {pending}")
                    process.send_signal(signal.SIGTERM)
                    await asyncio.to_thread(process.wait, SECONDS)
            assert process.stderr is not None
            log = process.stderr.read()
    assert "Application shutdown complete" in log
    assert "ERROR" not in log
    assert "Traceback" not in log


async def turns(done: asyncio.Event) -> int:
    """Return how often another task could run until an event."""
    count = 0
    while not done.is_set():
        count += 1
        await asyncio.sleep(0)
    return count


async def test_other_tasks_run_while_a_backlog_is_read() -> None:
    async with relay(640, 10) as hub:
        done = asyncio.Event()
        others = asyncio.create_task(turns(done))
        async with hub.listen(replay=True) as events:
            for _ in range(640):
                await anext(events)
        done.set()
        assert await others >= 9


@pytest.mark.parametrize(("count", "size"), [(640, 10), (40, 70_000), (100, 20_000)])
async def test_a_backlog_is_sent_in_chunks_between_which_other_tasks_run(count: int, size: int) -> None:
    async with relay(count, size) as hub:
        done, received, chunks = asyncio.Event(), 0, []
        others = asyncio.create_task(turns(done))
        body = hub.sse(OLD_ID)
        async with contextlib.aclosing(body):
            async for chunk in body:
                events = chunk.count(b"id: ")
                received += events
                chunks.append(events)
                assert events <= 64
                assert len(chunk) < 64 * 1024 + size + 1000
                if received == count:
                    break
        done.set()
        assert received == count
        assert len(chunks) - 1 <= max(count // 64, count * size // (48 * 1024)) + 2  # the first is not an event
        assert await others >= len(chunks) - 2


@APPS
@pytest.mark.filterwarnings("default")  # other people's packages, imported here for the first time
async def test_a_replay_ends_when_its_client_disconnects(make_app: Callable[[Any], Any]) -> None:
    async with relay(1000, 10) as hub:
        disconnected = asyncio.Event()
        sent = 0

        async def receive() -> dict[str, Any]:
            await disconnected.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal sent
            sent += message["type"] == "http.response.body"
            if sent == 2:
                disconnected.set()

        await make_app(hub)(http_scope(), receive, send)
        assert 2 <= sent < 8
