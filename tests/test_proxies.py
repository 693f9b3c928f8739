"""One rule for proxies: what is named is used or refused by name, and nothing goes past it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from transports import proxies
from yarl import URL

from wme_async import Client, ConnectFailed, Retry, SessionPool
from wme_async.cli.root import root
from wme_async.jobs import BatchManager
from wme_async.simulator import Simulator

ONCE = Retry(attempts=1)


@asynccontextmanager
async def recorder(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[str]]]:
    """A proxy that writes down the first line of each request and refuses it; yields its port and the lines."""
    lines: list[str] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            lines.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1").partition("\r\n")[0])
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], lines


@pytest.mark.parametrize("value", ["{}:{}", "http://{}:{}", "http://me:secret@{}:{}"])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
async def test_every_usual_form_is_used(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    async with recorder() as (port, lines):
        monkeypatch.setenv(variable, value.format("127.0.0.1", port))
        async with SessionPool(trust_env=True) as pool, Client("a", "b", pool=pool, retry=ONCE) as wme:
            with pytest.raises(ConnectFailed) as caught:
                await wme.projects.list()
    assert lines == ["CONNECT auth.enterprise.wikimedia.com:443 HTTP/1.1"]
    assert "secret" not in str(caught.value)


async def test_an_https_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.check_hostname = False
    async with recorder(context) as (port, lines):
        monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{port}")
        async with SessionPool(trust_env=True, ssl=trusting) as pool, Client("a", "b", pool=pool, retry=ONCE) as wme:
            with pytest.raises(ConnectFailed, match="the proxy responds with HTTP"):
                await wme.auth.login()
    assert lines == ["CONNECT auth.enterprise.wikimedia.com:443 HTTP/1.1"]


@pytest.mark.parametrize("value", ["socks5://u:hunter2@127.0.0.1:1080", "ftp://127.0.0.1", "http://", "http://h:port"])
async def test_what_cannot_be_used_is_refused_by_its_name_before_anything_is_sent(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    async with SessionPool(trust_env=True) as pool, Client(**sim.client_options(), pool=pool) as wme:
        with pytest.raises(ValueError, match="ALL_PROXY cannot be used") as caught:
            await wme.projects.list()
    assert "hunter2" not in str(caught.value)
    assert len(sim.requests) == 0


async def test_what_is_not_needed_is_not_refused(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with SessionPool(trust_env=True) as pool, Client(**sim.client_options(), pool=pool) as wme:
        assert await wme.projects.list()


async def test_the_environment_says_nothing_to_a_client_that_does_not_ask_for_it(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    async with Client(**sim.client_options()) as wme:
        assert await wme.projects.list()


# NO_PROXY


@pytest.mark.parametrize(
    ("exempt", "url", "direct"),
    [
        ("*", "http://a.example", True),
        ("example.org", "http://example.org", True),
        ("example.org", "http://api.Example.org", True),
        (".example.org", "http://example.org", True),
        ("*.example.org", "http://api.example.org", True),
        ("example.org", "http://notexample.org", False),
        ("example.org", "http://example.org.evil.example", False),
        (" a.example , b.example ", "http://b.example", True),
        ("example.org:8080", "http://example.org:8080", True),
        ("example.org:8080", "http://example.org", False),
        ("127.0.0.1", "http://127.0.0.1:9000", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("::1", "http://[::1]:80", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("0.1", "http://127.0.0.1", False),
        ("", "http://a.example", False),
        (",,", "http://a.example", False),
    ],
)
def test_what_no_proxy_covers(exempt: str, url: str, direct: bool) -> None:
    environment = proxies.EnvironmentProxies({"http_proxy": "http://p:1", "NO_PROXY": exempt})
    assert (environment.proxy_of(URL(url)) is None) is direct


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_any_environment_gives_a_proxy_or_the_name_of_the_variable(value: str, everything: str, exempt: str) -> None:
    environment = proxies.EnvironmentProxies({"http_proxy": value, "ALL_PROXY": everything, "no_proxy": exempt})
    for url in (URL("http://a.example"), URL("https://a.example:8443"), URL("http://[::1]")):
        try:
            proxy = environment.proxy_of(url)
        except ValueError as error:
            assert ("http_proxy" if url.scheme == "http" else "ALL_PROXY") in str(error)  # noqa: PT017
        else:
            assert proxy is None or (proxy.scheme in {"http", "https"} and proxy.host)


def test_lower_case_wins_and_an_empty_value_means_no_proxy() -> None:
    both = {"http_proxy": "http://lower:1", "HTTP_PROXY": "http://upper:1", "ALL_PROXY": "http://all:1"}
    assert proxies.EnvironmentProxies(both).proxy_of(URL("http://a.example")) == URL("http://lower:1")
    assert proxies.EnvironmentProxies(both | {"http_proxy": ""}).proxy_of(URL("http://a.example")) is None
    # Under CGI a header of the request could set it.
    forged = {"HTTP_PROXY": "http://evil:1", "REQUEST_METHOD": "GET"}
    assert proxies.EnvironmentProxies(forged).proxy_of(URL("http://a.example")) is None


# The command line and jobs


def test_the_command_line_goes_by_its_option_and_else_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WME_ACCESS_TOKEN", "t")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")

    def run(*arguments: str) -> str:
        return CliRunner().invoke(root, [*arguments, "projects", "ls"]).output

    assert "HTTPS_PROXY cannot be used" in run()
    assert "a proxy is a URL such as" in run("--proxy", "nonsense")


async def test_jobs_go_through_the_proxy_that_is_given(tmp_path: Path, names: dict[str, str | None]) -> None:
    async with recorder() as (port, lines):
        async with BatchManager(tmp_path, proxy=f"http://127.0.0.1:{port}", retry=ONCE) as manager:
            batch = await manager.submit(["http://files.example/a"])
            ended = await manager.wait(batch.batch_id, timeout=10)
    # A refusal may concern the range alone, so the file is requested once again without it.
    assert set(lines) == {"GET http://files.example/a HTTP/1.1"}
    assert ended.jobs[0].error


@pytest.mark.parametrize(
    "options", [{"proxy": "socks5://h:1"}, {"proxy": "http://h:1", "media": type("M", (), {"fetch": 1})()}]
)
def test_a_manager_refuses_a_proxy_that_it_cannot_use(tmp_path: Path, options: dict[str, object]) -> None:
    make: Callable[..., BatchManager] = BatchManager
    with pytest.raises(ValueError, match="proxy"):
        make(tmp_path, **options)
