"""What only shows when several processes, odd networks and odd servers come together."""

import asyncio
import gc
import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import zlib
from typing import Any

import aiohttp
import pytest
from transports import Request, Transport
from wall_clock import MIDDLE_OF_A_MONTH, now

from wme_async import Client, Hosts, Limits, Retry, SessionPool, Timeouts
from wme_async.errors import DataError, Interrupted, StatusError, TimedOut, TransportError, Unprocessable, WMEError
from wme_async.simulator import Simulator

AT_ONCE = Retry(base=0, cap=0)

CHILD = """
import asyncio, hashlib, os, sys
from wme_async import Client

async def main():
    name, password, hosts = os.environ["NAME"], os.environ["PASSWORD"], eval(sys.argv[2])
    async with Client(name, password, token_file=sys.argv[1], hosts=hosts) as wme:
        print("ready", flush=True)
        for line in iter(sys.stdin.readline, ""):
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(wme.articles.lookup("Squirrel", filters={"is_part_of.identifier": "enwiki"}))
            print(hashlib.sha256((await wme._transport.tokens.token()).encode()).hexdigest(), flush=True)

asyncio.run(main())
"""


@pytest.mark.servers
def test_processes_that_share_a_token_file_sign_in_once_and_refresh_once_between_them(tmp_path):
    path = tmp_path / "tokens.json"
    with Simulator.run_in_thread(start=MIDDLE_OF_A_MONTH) as sim:
        options = sim.client_options()
        environment = {**os.environ, "NAME": options["username"], "PASSWORD": options["password"]}
        command = [sys.executable, "-c", CHILD, str(path), repr(dict(options["hosts"]))]
        children: list[Any] = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        try:
            for child in children:
                assert child.stdout.readline() == "ready\n"

            def all_at_once():
                for child in children:
                    child.stdin.write("go\n")
                    child.stdin.flush()
                return {child.stdout.readline() for child in children}

            def calls(name):
                return sum(request.path == f"/v1/{name}" for request in sim.requests)

            first = all_at_once()
            assert len(first) == 1
            assert (calls("login"), calls("token-refresh")) == (1, 0)
            # The server accepts the token no longer, and every process finds that out for itself.
            sim.clock.advance(90_000)
            second = all_at_once()
            assert len(second) == 1
            assert second != first
            assert (calls("login"), calls("token-refresh")) == (1, 1)
            # Now each of them can see beforehand that it ends.
            document = json.loads(path.read_bytes())
            (tokens,) = document["entries"].values()
            tokens["access_expires"] = now() + 1
            sim.clock.advance(90_000)
            path.write_text(json.dumps(document))
            assert len(all_at_once()) == 1
            assert (calls("login"), calls("token-refresh")) == (1, 2)
        finally:
            for child in children:
                child.stdin.close()
            codes = [child.wait(20) for child in children]
            for child in children:
                child.stdout.close()
    assert codes == [0] * len(children)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.json", "tokens.json.lock"]
    (usage,) = json.loads(path.read_bytes())["usage"].values()
    assert sum(usage.values()) == len(children) * 5 * 3


@pytest.fixture
async def odd():
    """A server that answers what it is told to, and counts who asks and who is connected."""

    class Odd:
        answer = b""
        asked = 0
        connected = 0
        port = 0

        async def serve(self, reader, writer):
            self.connected += 1
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    self.asked += 1
                    writer.write(self.answer)
                    await writer.drain()
                    if b"Content-Length" not in self.answer or b"close" in self.answer:
                        return
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                self.connected -= 1
                writer.close()

        def url(self, path="/x"):
            return f"http://127.0.0.1:{self.port}{path}"

    created = Odd()
    server = await asyncio.start_server(created.serve, "127.0.0.1")
    created.port = server.sockets[0].getsockname()[1]
    yield created
    server.close()
    await server.wait_closed()


def response(*lines, body=b"", length=None):
    head = "\r\n".join(["HTTP/1.1 200 OK", *lines, f"Content-Length: {len(body) if length is None else length}"])
    return head.encode() + b"\r\n\r\n" + body


def get():
    # Of the roles without a host of their own this one is decoded as the API is.
    return Request(role="realtime", path="/x")


@pytest.fixture
async def plain(odd):
    created = Transport(
        None,
        hosts=Hosts(realtime=odd.url("")),
        retry=Retry(attempts=2, base=0),
        timeouts=Timeouts(read=0.3),
        limits=Limits(connections=2, max_response=1000),
    )
    yield created
    await created.aclose()


# Names of tests are made of their parameters, so there is no time in them.
PACKED = gzip.compress(b"[1]", mtime=0)
DEFLATE = zlib.compressobj(wbits=-15)
RAW_DEFLATE = DEFLATE.compress(b"[1]") + DEFLATE.flush()


@pytest.mark.parametrize(
    ("answer", "asked", "outcome"),
    [
        (response("Content-Encoding: gzip", body=PACKED), 1, b"[1]"),
        (response("Content-Encoding: deflate", body=RAW_DEFLATE), 1, b"[1]"),
        (response("Content-Encoding: identity", body=b"[1]"), 1, b"[1]"),
        (response("content-encoding: GZIP", body=PACKED), 1, b"[1]"),
        (response("Date: soon", body=b"[1]"), 1, b"[1]"),
        (response("Content-Encoding: gzip", body=b"no gzip"), 2, TransportError),
        (response("Content-Encoding: gzip", body=gzip.compress(b"x" * 1_000_000, mtime=0)), 1, DataError),
        (response(body=b"x" * 1001), 1, DataError),
        (response(body=b"x" * 1000), 1, b"x" * 1000),
        (response("Connection: close", body=b"[1]", length=9), 2, Interrupted),
        (response(body=b"[1]", length=9), 2, TimedOut),
        (response(body=b"[1]", length=-1), 2, TransportError),
        (response(body=b"[1]", length="many"), 2, TransportError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n", 1, b"[1]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n", 2, Interrupted),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", 1, b"[1]"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 1, StatusError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n", 2, TransportError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 2, TransportError),
        (b"", 2, TransportError),
    ],
)
async def test_odd_responses_are_read_or_translated_and_leave_nothing_open(odd, plain, answer, asked, outcome):
    odd.answer = answer
    if isinstance(outcome, bytes):
        assert (await plain.request(get())).body == outcome
    else:
        with pytest.raises(outcome):
            await plain.request(get())
    assert odd.asked == asked
    assert plain.open_bodies == 0
    assert "realtime=0" in repr(plain.pool)
    # Both connections that are allowed can be had.
    odd.answer = response(body=b"ok")
    async with asyncio.timeout(5), plain.open(get()) as one, plain.open(get()) as two:
        assert await one.read(10) == await two.read(10) == b"ok"


async def test_an_error_of_any_length_is_shown_in_part_and_leaves_nothing_open(odd, plain):
    odd.answer = response(body=b"x" * 500_000).replace(b"200 OK", b"422 No")
    for _ in range(3):
        with pytest.raises(Unprocessable) as caught:
            await plain.request(get())
        assert caught.value.body == "x" * 2000
    assert "realtime=0" in repr(plain.pool)


async def test_a_count_that_fails_gives_the_connection_back(odd, plain):
    odd.answer = response(body=b"[1]", length=9)

    async def count(pool):
        raise KeyError(pool)

    plain.on_metered = count
    for _ in range(5):
        with pytest.raises(KeyError, match="chunk"):
            await plain.request(Request(role="realtime", path="/x", pool="chunk"))
    assert plain.open_bodies == 0
    assert "realtime=0" in repr(plain.pool)


async def test_different_timeouts_do_not_accumulate(odd, plain):
    odd.answer = response(body=b"ok")
    for number in range(120):
        await plain.request(get(), read_timeout=1 + number / 100)
    gc.collect()
    assert sum(isinstance(thing, aiohttp.ClientTimeout) for thing in gc.get_objects()) <= 110


async def test_a_request_that_is_cancelled_while_it_waits_for_a_connection_takes_none_away(odd, plain):
    async with asyncio.timeout(10):
        for _ in range(5):
            odd.answer = response(body=b"[1]", length=9)
            async with plain.open(get()), plain.open(get()):
                odd.answer = response(body=b"ok")
                waiting = [asyncio.create_task(plain.request(get())) for _ in range(3)]
                while plain.waiting < 3:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0)
                waiting[0].cancel()
                waiting[2].cancel()
            result, _ = await asyncio.wait(waiting)
            assert sum(task.cancelled() for task in result) == 2
        assert {response.body for response in [await plain.request(get()) for _ in range(3)]} == {b"ok"}


async def test_waiting_for_a_connection_has_a_timeout(odd):
    limits, timeouts = Limits(connections=1), Timeouts(pool=0.05)
    odd.answer = response(body=b"[1]", length=9)
    async with SessionPool(limits=limits, timeouts=timeouts) as pool:
        transport = Transport(None, pool=pool, retry=Retry(attempts=1))
        async with transport.open(Request(role="public", path=odd.url())):
            with pytest.raises(WMEError, match="in time"):
                await transport.request(Request(role="public", path=odd.url()))
        odd.answer = response(body=b"ok")
        assert (await transport.request(Request(role="public", path=odd.url()))).body == b"ok"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 on this machine")
async def test_hosts_may_be_ipv6_addresses():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(serve, "::1")
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    port = server.sockets[0].getsockname()[1]
    async with Client(access_token="t", hosts={"api": f"http://[::1]:{port}"}, retry=Retry(attempts=1)) as wme:
        with pytest.raises(WMEError, match=rf"http://\[::1\]:{port}/v2/codes") as caught:
            await wme.codes.list()
    assert caught.value.url == f"http://[::1]:{port}/v2/codes"
    server.close()
    await server.wait_closed()
