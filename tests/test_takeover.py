"""Long bodies read past aiohttp: on both event loops, with and without TLS, from peers that misbehave."""

import asyncio
import contextlib
import functools
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from transports import Body, Request, SessionPool, Transport, fast_body

from wme_async.errors import Interrupted, TimedOut
from wme_async.settings import Limits, Retry, Timeouts

SIZE = 3_000_000
DATA = bytes(range(256)) * (SIZE // 256) + b"x" * (SIZE % 256)

Peer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["asyncio", "asyncio+tls", "uvloop", "uvloop+tls"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path | None]:
    monkeypatch.setattr(fast_body, "MIN_BODY", 100_000)
    loop, _, tls = request.param.partition("+")
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    return loop, request.getfixturevalue("certificate") if tls else None


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, 20))


@contextlib.asynccontextmanager
async def served(
    peer: Peer, certificate: Path | None, *, head: bytes | None = None, **pool: Any
) -> AsyncIterator[tuple[Transport, Request, list[asyncio.StreamWriter]]]:
    """Serve one scripted peer and yield a transport that can reach it."""
    writers: list[asyncio.StreamWriter] = []
    stop = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            text = head if head is not None else b"Content-Length: %d\r\nContent-Range: bytes 0-%d/%d\r\n"
            if head is None:
                text %= (SIZE, SIZE - 1, SIZE)
            writer.write(b"HTTP/1.1 206 Partial Content\r\n" + text + b"\r\n")
            await peer(writer)
            waiting = asyncio.ensure_future(stop.wait())
            await asyncio.wait([waiting, asyncio.ensure_future(reader.read())], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        writer.close()

    server_tls = client_tls = None
    if certificate is not None:
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(certificate, f"{certificate}.key")
        client_tls = ssl.create_default_context(cafile=str(certificate))
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=server_tls)
    port = server.sockets[0].getsockname()[1]
    shared = SessionPool(ssl=client_tls, limits=Limits(connections=1), **pool)
    transport = Transport(None, retry=Retry(attempts=1), timeouts=Timeouts(read=0.3), pool=shared)
    request = Request(role="store", path=f"http{'s' if certificate else ''}://127.0.0.1:{port}/x?secret=1")
    try:
        yield transport, request, writers
        assert transport.open_bodies == 0
        if not shared.injected:
            assert "store=0" in repr(shared), "aiohttp still counts the connection"
    finally:
        await transport.aclose()
        await shared.aclose()
        stop.set()
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def collect(body: Body, into: bytearray) -> None:
    await body.copy_to(into.extend)


async def fetch(transport: Transport, request: Request) -> bytearray:
    got = bytearray()
    async with transport.open(request) as body:
        await collect(body, got)
    return got


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each body was taken over, in order."""
    seen: list[bool] = []
    real = fast_body.take_over

    @functools.wraps(real)
    async def watched(*args: Any, **options: Any) -> bool:
        try:
            seen.append(await real(*args, **options))
        except BaseException:
            seen.append(True)
            raise
        return seen[-1]

    monkeypatch.setattr("wme_async._transport.body.take_over", watched)
    return seen


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(DATA)
    await writer.drain()


async def in_bits(writer: asyncio.StreamWriter) -> None:
    for at in range(0, SIZE, 70_001):
        writer.write(DATA[at : at + 70_001])
        await writer.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize("peer", [whole, in_bits])
def test_every_byte_comes_in_order(world: tuple[str, Path | None], taken: list[bool], peer: Peer) -> None:
    async def main() -> None:
        async with served(peer, world[1]) as (transport, request, _):
            # With one connection allowed, the second would wait for ever if the first were not given back.
            assert await fetch(transport, request) == DATA
            assert await fetch(transport, request) == DATA

    run(world[0], main())
    assert taken == [True, True]


def test_a_sink_may_take_its_time_and_nothing_more_is_read(world: tuple[str, Path | None], taken: list[bool]) -> None:
    async def main() -> None:
        got = bytearray()
        busy = False

        def sink(data: memoryview) -> Awaitable[None]:
            nonlocal busy
            assert not busy, "the sink was called while it was busy"
            busy = True

            async def later() -> None:
                nonlocal busy
                for _ in range(3):
                    await asyncio.sleep(0)
                got.extend(data)
                busy = False

            return later()

        async with served(in_bits, world[1]) as (transport, request, _), transport.open(request) as body:
            await body.copy_to(sink)
        assert got == DATA

    run(world[0], main())
    assert taken == [True]


def test_a_long_wait_of_the_sink_is_not_the_peers_silence(world: tuple[str, Path | None], taken: list[bool]) -> None:
    async def main() -> None:
        got = bytearray()
        waited = False

        def sink(data: memoryview) -> Awaitable[None] | None:
            nonlocal waited
            got.extend(data)
            if len(got) < 1_000_000 or waited:
                return None
            waited = True
            return asyncio.sleep(0.7)

        async with served(whole, world[1]) as (transport, request, _), transport.open(request) as body:
            await body.copy_to(sink)
        assert waited
        assert got == DATA

    run(world[0], main())
    assert taken == [True]


def test_more_than_was_promised_is_not_looked_at(world: tuple[str, Path | None], taken: list[bool]) -> None:
    async def chatty(writer: asyncio.StreamWriter) -> None:
        writer.write(DATA + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain" * 10_000)
        await writer.drain()

    async def main() -> None:
        async with served(chatty, world[1]) as (transport, request, writers):
            assert await fetch(transport, request) == DATA
            assert await fetch(transport, request) == DATA
            # What was left over on the first connection did not become the second answer.
            assert len(writers) == 2

    run(world[0], main())
    assert taken == [True, True]


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_body_that_ends_early_gives_what_came_and_an_error(
    world: tuple[str, Path | None], taken: list[bool], how: str
) -> None:
    async def short(writer: asyncio.StreamWriter) -> None:
        writer.write(DATA[:1_500_000])
        await writer.drain()
        # Let the other side read before a reset throws away what is on its way.
        await asyncio.sleep(0.1)
        writer.close() if how == "close" else writer.transport.abort()

    async def main() -> None:
        got = bytearray()
        async with served(short, world[1]) as (transport, request, _):
            with pytest.raises(Interrupted) as caught:
                async with transport.open(request) as body:
                    await collect(body, got)
        assert "secret" not in str(caught.value)
        assert got == DATA[:1_500_000]

    run(world[0], main())
    assert taken == [True]


def test_silence_ends_it(world: tuple[str, Path | None], taken: list[bool]) -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        writer.write(DATA[:1_000_000])
        await writer.drain()

    async def main() -> None:
        got = bytearray()
        async with served(silent, world[1]) as (transport, request, _):
            with pytest.raises(TimedOut):
                async with transport.open(request) as body:
                    await collect(body, got)
        assert got == DATA[:1_000_000]

    run(world[0], main())
    assert taken == [True]


def test_what_a_sink_raises_comes_out_and_the_connection_is_closed(
    world: tuple[str, Path | None], taken: list[bool]
) -> None:
    async def main() -> None:
        got = bytearray()

        def full(data: memoryview) -> None:
            got.extend(data)
            if len(got) > 1_000_000:
                raise ZeroDivisionError

        def late(data: memoryview) -> Awaitable[None] | None:
            async def fail() -> None:
                raise KeyError

            got.extend(data)
            return fail() if len(got) > 1_000_000 else None

        for sink, kind in ((full, ZeroDivisionError), (late, KeyError)):
            got.clear()
            async with served(whole, world[1]) as (transport, request, _):
                with pytest.raises(kind):
                    async with transport.open(request) as body:
                        await body.copy_to(sink)

    run(world[0], main())
    assert taken == [True, True]


def test_cancelling_closes_the_connection(world: tuple[str, Path | None], taken: list[bool]) -> None:
    async def part(writer: asyncio.StreamWriter) -> None:
        writer.write(DATA[:1_000_000])
        await writer.drain()

    async def main() -> None:
        async with served(part, world[1]) as (transport, request, writers):
            task = asyncio.ensure_future(reading(transport, request))
            await half.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(5):
                    await writers[0].wait_closed()

    got = bytearray()
    half = asyncio.Event()

    def sink(data: memoryview) -> None:
        got.extend(data)
        if len(got) > 500_000:
            half.set()

    async def reading(transport: Transport, request: Request) -> None:
        async with transport.open(request) as body:
            await body.copy_to(sink)

    run(world[0], main())
    assert taken == [True]


@pytest.mark.parametrize("case", ["chunked", "encoded", "short", "unknown"])
def test_other_bodies_are_left_to_aiohttp(world: tuple[str, Path | None], taken: list[bool], case: str) -> None:
    small = DATA[:50_000]

    async def peer(writer: asyncio.StreamWriter) -> None:
        if case == "chunked":
            writer.write(b"%x\r\n" % SIZE + DATA + b"\r\n0\r\n\r\n")
        else:
            writer.write(small if case == "short" else DATA)
        await writer.drain()
        if case == "unknown":
            writer.close()

    heads = {
        "chunked": b"Transfer-Encoding: chunked\r\n",
        "encoded": b"Content-Encoding: x-nothing\r\nContent-Length: %d\r\n" % SIZE,
        "short": b"Content-Length: %d\r\n" % len(small),
        "unknown": b"Connection: close\r\n",
    }

    async def main() -> None:
        async with served(peer, world[1], head=heads[case]) as (transport, request, _):
            assert await fetch(transport, request) == (small if case == "short" else DATA)

    run(world[0], main())
    assert taken == [False]


async def test_a_session_of_the_users_own_is_read_by_aiohttp_alone(
    monkeypatch: pytest.MonkeyPatch, taken: list[bool]
) -> None:
    monkeypatch.setattr(fast_body, "MIN_BODY", 100_000)
    async with aiohttp.ClientSession() as session, served(whole, None, session=session) as (transport, request, _):
        assert await fetch(transport, request) == DATA
    assert taken == []


async def test_readers_take_turns_and_leave_the_loop_to_others() -> None:
    turn, longest = fast_body.TURN, fast_body.ROUND
    turns = fast_body.Turns.of(asyncio.get_running_loop())
    assert turns is fast_body.Turns.of(asyncio.get_running_loop())
    readers: list[Any] = [object() for _ in range(4)]
    assert [turns.begin(reader, 100.0) for reader in readers[:2]] == [100.0 + turn] * 2
    # The rest of the round is short, and then over.
    assert turns.begin(readers[2], 100.0 + longest - turn / 4) == 100.0 + longest
    assert turns.begin(readers[3], 100.0 + longest) == 100.0 + longest
    await asyncio.sleep(0)
    # In the next one those come first who had none, although the others are ready too.
    later = 100.0 + longest + turn / 2
    assert turns.begin(readers[2], later) == later
    assert turns.begin(readers[3], later) == later + turn
    await asyncio.sleep(0)
    for reader in readers:
        turns.leave(reader)
    assert turns.begin(readers[2], later) == later + turn
    turns.leave(readers[2])
    await asyncio.sleep(0)


@pytest.mark.posix
async def test_a_reset_that_only_the_direct_read_meets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_body, "MIN_BODY", 100_000)

    def reset(descriptor: int, buffers: list[Any]) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(os, "readv", reset)

    async def short(writer: asyncio.StreamWriter) -> None:
        writer.write(DATA[:1_500_000])
        writer.close()

    async with served(short, None) as (transport, request, _):
        with pytest.raises(Interrupted, match="reset by peer") as caught:
            await fetch(transport, request)
        assert isinstance(caught.value.__cause__, ConnectionResetError)


def test_a_pause_of_the_sink_is_no_silence_of_the_peer(world: tuple[str, Path | None], taken: list[bool]) -> None:
    """The sink waits for longer than a peer may be silent, beginning with what aiohttp has read already."""

    async def main() -> None:
        got = bytearray()
        pauses = 1

        async def pause() -> None:
            await asyncio.sleep(0.4)

        def sink(data: memoryview) -> Awaitable[None] | None:
            nonlocal pauses
            got.extend(data)
            pauses -= 1
            return pause() if pauses >= 0 else None

        async with served(whole, world[1]) as (transport, request, _), transport.open(request) as body:
            # Something has to be there before the body is read.
            while not body._response.content.total_bytes:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.001)
            await body.copy_to(sink)
        assert got == DATA
        assert taken == [True]

    run(world[0], main())
