"""Bodies without a length: whole only if the server ended the connection in good order."""

import asyncio
import importlib
import importlib.util
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawRequest, RawServer, data_of, head, reset, server_tls

from wme_async import Client, Hosts, Interrupted, Retry, SessionPool, TransportError
from wme_async.jobs import BatchManager, JobLimits

DATA = data_of(300_000)
HALF = len(DATA) // 2
QUICK = Retry(attempts=3, base=0.01, cap=0.02)

Ending = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def by_reset(writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def by_half_close(writer: asyncio.StreamWriter) -> None:
    """End the TCP connection below TLS without a word of TLS."""
    # uvloop has no other way to the transport below TLS than its socket.
    writer.get_extra_info("socket").shutdown(1)


async def by_close(writer: asyncio.StreamWriter) -> None:
    writer.close()


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    if loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        main.close()
        pytest.skip("the extra `fast` is not installed")
    factory = importlib.import_module("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main, 20))


async def token(server: RawServer, certificate: Path | None) -> Any:
    """Sign in: the answer is a small body without a length."""
    tls = None if certificate is None else ssl.create_default_context(cafile=str(certificate))
    async with SessionPool(ssl=tls) as pool:
        hosts = Hosts(auth=server.url, api=server.url, realtime=server.url)
        async with Client("a", "b", hosts=hosts, pool=pool, retry=Retry(attempts=1)) as client:
            return await client.languages.list()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("tls", "ending", "whole"),
    [
        (False, by_close, True),
        (False, by_reset, False),
        (True, by_close, True),
        (True, by_reset, False),
        (True, by_half_close, False),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_answer_without_length_counts_only_after_a_clean_end(
    request: pytest.FixtureRequest, loop: str, tls: bool, ending: Ending, whole: bool, at_once: bool
) -> None:
    certificate = request.getfixturevalue("certificate") if tls else None

    async def main() -> None:
        async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
            if request.path.startswith("/v1/login"):
                body = b'{"access_token":"t","refresh_token":"r","expires_in":86400}'
                writer.write(head(200, {"Content-Length": len(body)}) + body)
                return True
            # Cut here, the list is still JSON.
            writer.write(head(200, {"Content-Type": "application/json"}))
            if not at_once:
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.write(b'[{"identifier":"en"}]')
            await writer.drain()
            await asyncio.sleep(0.01)
            await ending(writer)
            return False

        async with RawServer(answer, tls=server_tls(certificate) if certificate else None) as server:
            if whole:
                assert [language.identifier for language in await token(server, certificate)] == ["en"]
            else:
                with pytest.raises(Interrupted, match="unknown length"):
                    await token(server, certificate)

    run(loop, main())


async def test_a_job_without_length_is_fetched_again_after_a_reset(tmp_path: Path) -> None:
    bodies = [DATA[:HALF], DATA[:HALF], DATA]

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        if "range" in request.headers:
            writer.write(head(200, {}) + DATA[:1])
            return False
        body = bodies.pop(0)
        writer.write(head(200, {}, version="1.0") + body)
        await writer.drain()
        if len(body) < len(DATA):
            # What is on its way has to arrive: a reset throws away what has not.
            await asyncio.sleep(0.05)
            reset(writer)
        return False

    async with (
        RawServer(answer) as server,
        BatchManager(tmp_path, allow_hosts=["127.0.0.1"], retry=QUICK, limits=JobLimits(free_space=0)) as manager,
    ):
        batch = await manager.submit([f"{server.url}/x.bin"])
        (job,) = (await manager.wait(batch.batch_id, timeout=10)).jobs
        assert (job.status, job.error, bodies) == ("completed", None, [])
        assert job.file_info is not None
        assert (tmp_path / job.file_info.filepath).read_bytes() == DATA


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "deflate,chunked", "chunked, gzip", "x-gzip, CHUNKED"])
async def test_a_body_in_a_transfer_coding_is_no_file(tmp_path: Path, coding: str) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        writer.write(head(200, {"Transfer-Encoding": coding}) + b"4\r\n\x1f\x8b\x08\x00\r\n0\r\n\r\n")
        return False

    async with (
        RawServer(answer) as server,
        BatchManager(tmp_path, allow_hosts=["127.0.0.1"], retry=QUICK, limits=JobLimits(free_space=0)) as manager,
    ):
        batch = await manager.submit([f"{server.url}/x.bin"])
        (job,) = (await manager.wait(batch.batch_id, timeout=10)).jobs
        assert (job.status, job.file_info) == ("failed", None)
        assert job.error is not None
        assert f"transfer coding {coding!r}" in job.error
        assert len(server.requests) == 1


async def test_a_pool_that_is_closed_under_a_body_does_not_make_it_whole() -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        writer.write(head(200, {}) + b'[{"identifier":"en"}]')
        await writer.drain()
        arrived.set()
        await go_on.wait()
        return False

    async with RawServer(answer) as server:
        pool = SessionPool()
        client = Client(access_token="t", hosts=Hosts(api=server.url), pool=pool, retry=Retry(attempts=1))
        listing = asyncio.ensure_future(client.languages.list())
        async with asyncio.timeout(10):
            await arrived.wait()
            while " 0 open bodies" in repr(client):  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.001)
            await pool.aclose()
            with pytest.raises(TransportError):
                await listing
        go_on.set()
        await client.aclose()
