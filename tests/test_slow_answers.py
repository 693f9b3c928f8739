"""Answers that never end, and connections that can never be made: bounded in time, and said in words."""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from wme_async import Client, ConnectFailed, Limits, Retry, SessionPool, StatusError, TimedOut, Timeouts

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"


@asynccontextmanager
async def served(send: Handler, *, timeouts: Timeouts, pool: SessionPool | None = None) -> AsyncIterator[Client]:
    """A client of a server that answers every request as told, and tries nothing twice."""

    handlers: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.ensure_future(respond(reader, writer)))

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await send(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        hosts = {"auth": url, "api": url, "realtime": url}
        async with Client(
            access_token="t", hosts=hosts, timeouts=timeouts, retry=Retry(attempts=1), pool=pool
        ) as client:
            yield client
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def drip(writer: asyncio.StreamWriter, text: bytes) -> None:
    """Send one byte after the other, each soon enough for a watch on silence, without end."""
    while True:
        for byte in text:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)


async def test_an_answer_that_comes_byte_by_byte_ends_after_its_time() -> None:
    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % b"200 OK")
        await drip(writer, b"[ ")

    async with served(send, timeouts=Timeouts(answer=0.2)) as wme:
        with pytest.raises(TimedOut, match=r"whole response after 0\.2 s"):
            await wme.projects.list()


async def test_a_head_that_comes_byte_by_byte_ends_after_its_time() -> None:
    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        await drip(writer, b"X-Header: value\r\n")

    async with served(send, timeouts=Timeouts(read=0.2)) as wme:
        with pytest.raises(TimedOut):
            await wme.projects.list()


async def test_the_words_of_an_error_are_not_waited_for_for_long() -> None:
    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % b"418 I'm a teapot" + b"short and stout ")
        await drip(writer, b"x")

    async with served(send, timeouts=Timeouts(error=0.2)) as wme:
        with pytest.raises(StatusError, match="short and stout") as caught:
            await wme.projects.list()
    assert caught.value.status == 418


async def test_the_time_in_the_queue_for_a_connection_is_not_the_servers() -> None:
    """Eight requests of a tenth of a second each share one connection: the last one waits longer than it may take."""

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
        await writer.drain()

    async with (
        SessionPool(limits=Limits(connections=1)) as pool,
        served(send, timeouts=Timeouts(read=0.75, answer=0.75), pool=pool) as wme,
    ):
        answers = await asyncio.gather(*(wme.projects.list(filters={"identifier": f"x{n}"}) for n in range(8)))
    assert answers == [[]] * 8


# TLS


@contextmanager
def tls_server(context: ssl.SSLContext | None) -> Iterator[str]:
    """A server that makes handshakes in a thread: asyncio's closes before its alert is sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            accepted.append(connection)
            with suppress(OSError):
                if context is None:
                    connection.recv(10)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                else:
                    secure = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                    with suppress(ssl.SSLError):
                        secure.do_handshake()
                    connection = socket.socket(fileno=secure.detach())
                # Bytes that nobody reads would make the system reset the connection, and the alert could be lost.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1000):
                    pass
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def only_old(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def demands_a_certificate(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_REQUIRED


def demands_one_by_old_rules(context: ssl.SSLContext) -> None:
    only_old(context)
    demands_a_certificate(context)


def other_ciphers(context: ssl.SSLContext) -> None:
    only_old(context)
    context.set_ciphers("AES128-SHA256")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (only_old, "no TLS version"),
        (demands_a_certificate, "client certificate"),
        (demands_one_by_old_rules, "client certificate"),
        (other_ciphers, "no cipher"),
        (None, "does not speak TLS"),
    ],
)
async def test_what_tls_will_never_agree_on_is_said_once_and_not_tried_again(
    certificate: Path, change: Callable[[ssl.SSLContext], None] | None, words: str
) -> None:
    # In TLS 1.3 that is said after the handshake.
    if change is demands_a_certificate and os.environ.get("WME_TEST_LOOP") == "uvloop":
        pytest.skip("uvloop closes the connection, most of the time, before it tells what the server said")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, f"{certificate}.key")
    server.load_verify_locations(certificate)
    if change is not None:
        change(server)
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.check_hostname = False
    if change is only_old:
        trusting.minimum_version = ssl.TLSVersion.TLSv1_3
    with tls_server(None if change is None else server) as url:
        hosts = {"auth": url, "api": url, "realtime": url}
        async with SessionPool(ssl=trusting) as pool, Client(access_token="t", hosts=hosts, pool=pool) as wme:
            with pytest.raises(ConnectFailed, match=words) as caught:
                await wme.projects.list()
            assert caught.value.permanent
            with pytest.raises(ConnectFailed, match=words):
                async with wme.realtime.articles() as stream:
                    await anext(stream)


@pytest.mark.parametrize(("status", "words"), [(403, "rules do not allow"), (407, "user name"), (405, "HTTP 405")])
async def test_a_proxy_that_refuses_a_host_is_not_asked_again(status: int, words: str) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with SessionPool(proxy=proxy) as pool, Client(access_token="t", pool=pool) as wme:
            with pytest.raises(ConnectFailed, match=words) as caught:
                await wme.projects.list()
    assert caught.value.permanent
    assert [head.partition(b" ")[0] for head in heads] == [b"CONNECT"]
    assert b"Bearer" not in heads[0]
