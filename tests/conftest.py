"""What all tests share: the guard around the network, quick property tests, and a repair for one test library."""

import asyncio
import gc
import inspect
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from forked_python import python  # noqa: F401  # a fixture
from hypothesis import HealthCheck, settings
from kafka_mock import kafka  # noqa: F401  # a fixture
from real_servers import (  # noqa: F401  # fixtures
    nats_server,
    nats_url,
    pgbouncer,
    pgbouncer_dsn,
    postgres,
    postgres_dsn,
    redis_server,
    redis_url,
)
from wall_clock import MIDDLE_OF_A_MONTH, clock, set_moment

if TYPE_CHECKING:
    from broker_targets import Target
    from jobs_server import FileServer
    from stream_world import World
    from transports import Transport

    from wme_async import Client
    from wme_async.simulator import Simulator

if sys.dont_write_bytecode:
    # Else each process that a test starts would compile all that it imports anew, for up to a second.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "pycache")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# The same examples each time in the suite; many others in `nox -s torture`.
settings.register_profile(
    "suite",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", parent=settings.get_profile("suite"), max_examples=2000, derandomize=False)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    _set_moment()  # fixtures of modules begin before the first fixture of a test
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            # So a shell starts what runs in its background, and `nohup` anything. Processes that tests interrupt would
            # inherit it; a handler that does nothing they do not.
            signal.signal(number, lambda *_: None)
    config.addinivalue_line("markers", "torture: takes minutes; run by `nox -s torture`, not by default")
    config.addinivalue_line(
        "markers",
        "servers: takes seconds, for a server, a browser or processes of its own; run by `nox -s servers` alone",
    )
    config.addinivalue_line(
        "markers", "middle_of_a_month: counts by the month; the simulator begins away from its turn"
    )
    config.addinivalue_line(
        "markers", "posix: uses or replaces a call that only POSIX systems have; skipped by `nox -s portable`"
    )
    config.addinivalue_line("markers", "browser: drives a real Chromium; skipped with a reason where there is none")


# Tests that run only where `-m` names their marker; one that has both is the first's.
APART = ("torture", "servers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("WME_TEST_PORTABLE"):
        hidden = pytest.mark.skip(reason="the product does not see the calls that only POSIX systems have")
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(hidden)
    expression = config.getoption("markexpr") or ""
    selected: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        marker = next((name for name in APART if item.get_closest_marker(name)), None)
        (selected if marker is None or marker in expression else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = selected


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from looking through thousands of tests, now and each time later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """Return the event loop of asyncio, or the one that `nox -s uvloop` names."""
    if os.environ.get("WME_TEST_LOOP") == "uvloop":
        import uvloop

        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to anybody but this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test depends on the credentials or proxies of whoever runs it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    for name in (
        *("WME_USERNAME", "WME_PASSWORD", "WME_ACCESS_TOKEN", "WME_AUTH_URL", "WME_API_URL", "WME_REALTIME_URL"),
        *("WME_PROFILE", "WME_ENV_FILE", "WME_TOKEN_FILE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """No test leaves its settings of logging to others: some frameworks set those of the process when an app starts."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _moment() -> None:
    """Each test of `nox -s calendar` begins at the same moment of the calendar."""
    _set_moment()


def _set_moment() -> None:
    if moment := os.environ.get("WME_TEST_MOMENT"):
        set_moment(moment)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real lists and articles, where it lies beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real sample data does not lie beside the repository")
    return SHARED


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Answers of DNS for this test: an address for each name, None for one that does not exist; "*" for all others.

    The product resolves names by `getaddrinfo` of the running loop alone; uvloop's does not call that of `socket`.
    """
    answers: dict[str, str | None] = {}
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
        if host in answers or ("*" in answers and host not in {"127.0.0.1", "::1", None}):
            host = answers.get(host, answers.get("*"))
            if host is None:
                raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return await resolve(host, port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return answers


class StoppedClock:
    """The date of this process, which goes on only when a test sets it.

    Attributes:
        seconds: UTC epoch seconds.
    """

    seconds = 1_000_000.0


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """A clock that stands still."""
    stopped = StoppedClock()
    monkeypatch.setattr(clock, "source", lambda: stopped.seconds)
    return stopped


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody has signed, and its key in a file of the same name with `.key`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{path}.key", "-out", str(path)]
    subprocess.run(["openssl", *command.split(), *extra], check=True, capture_output=True)
    return path


@pytest.fixture
async def sim(request: pytest.FixtureRequest) -> AsyncIterator["Simulator"]:
    """A simulator of all WME services on loopback."""
    from wme_async.simulator import Simulator

    start = MIDDLE_OF_A_MONTH if request.node.get_closest_marker("middle_of_a_month") else None
    async with Simulator(start=start) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: "Simulator") -> AsyncIterator["Client"]:
    """A client of the simulator that retries at once."""
    from wme_async import Client, Retry

    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as client:
        yield client


@pytest.fixture
async def transport() -> AsyncIterator["Transport"]:
    """A transport without credentials that soon gives up a silent server; in the end no body is open."""
    from transports import Transport

    from wme_async import Retry, Timeouts

    retry = Retry(attempts=5, base=0.002, cap=0.01)
    transport = Transport(None, retry=retry, timeouts=Timeouts(read=0.4, connect=2.0), random=random.Random(1))
    yield transport
    assert transport.open_bodies == 0, "a body was left open"
    await transport.aclose()


@pytest.fixture
async def world() -> AsyncIterator["World"]:
    """A simulator and a client for streams; in the end nothing of a stream is left."""
    from stream_world import world as new_world

    async with new_world() as pair:
        yield pair


@pytest.fixture(params=["kafka", "nats"])
def target(request: pytest.FixtureRequest) -> "Target":
    """A new place for one test in each broker."""
    from broker_targets import new_target

    return new_target(request)


class ClientClock:
    """The monotonic clock of all clients of a test, and their waits, which take no time.

    Attributes:
        offset: Seconds that clients see pass beside the real ones.
        waits: The length of each wait in seconds.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self.waits: list[float] = []


@pytest.fixture
def client_clock(monkeypatch: pytest.MonkeyPatch) -> ClientClock:
    """A clock that a test can move forward."""
    from transports import Transport  # there is no public way to the clock of a client

    clock = ClientClock()
    monotonic = Transport.monotonic

    async def sleep(_transport: Transport, seconds: float) -> None:
        clock.waits.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(Transport, "monotonic", lambda transport: monotonic(transport) + clock.offset)
    monkeypatch.setattr(Transport, "sleep", sleep)
    return clock


@pytest.fixture
async def server() -> AsyncIterator["FileServer"]:
    """A web server on loopback whose files batches download."""
    from jobs_server import FileServer

    async with FileServer().running() as running:
        yield running


@pytest.fixture
def _aioresponses_on_new_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let aioresponses build responses on an aiohttp that wants to know the stream writer; no effect once it does."""
    parameters = inspect.signature(aiohttp.ClientResponse.__init__).parameters
    core = pytest.importorskip("aioresponses.core")
    if "stream_writer" in parameters and "stream_writer" not in inspect.getsource(core):

        class Response(aiohttp.ClientResponse):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.setdefault("stream_writer", type("Writer", (), {"output_size": 0})())
                super().__init__(*args, **kwargs)

        monkeypatch.setattr(core, "ClientResponse", Response)
