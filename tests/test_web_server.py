"""The service on a socket: connections without a request, many of them, and no descriptors left."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest

from wme_async.jobs import BatchManager
from wme_async.web import create_app, serve

KEY = "wme_a_key_for_tests_0123456789"
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(directory, **options):
    """Run the service, and return its port."""
    ready = asyncio.get_running_loop().create_future()
    async with BatchManager(directory) as manager:
        running = asyncio.create_task(
            serve(manager, port=0, api_keys=[KEY], on_ready=ready.set_result, **options), name="service"
        )
        try:
            async with asyncio.timeout(20):
                yield manager, int((await ready).rpartition(":")[2])
        finally:
            running.cancel()
            await asyncio.wait([running])


async def connect(port, data=b""):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def closed(reader):
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


@pytest.mark.parametrize("data", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX-"])
async def test_a_head_that_does_not_end_ends_its_connection(tmp_path, data):
    async with serving(tmp_path, head_timeout=0.2) as (_, port):
        reader, writer = await connect(port, data)
        await closed(reader)
        writer.close()


async def test_a_connection_that_is_accepted_while_the_service_ends_is_closed(tmp_path, monkeypatch):
    accept = socket.socket.accept

    def ending(listening):
        """Accept a connection, and cancel the service before its task hears of it."""
        accepted = accept(listening)
        [service] = [task for task in asyncio.all_tasks() if task.get_name() == "service"]
        [listener] = [task for task in asyncio.all_tasks() if task.get_name() == "wme_async listener"]
        for task in (listener, service):
            asyncio.get_running_loop().call_soon(task.cancel)
        return accepted

    async with serving(tmp_path) as (_, port):
        monkeypatch.setattr(socket.socket, "accept", ending)
        with monkeypatch.context() as warned:
            unclosed: list[Any] = []
            warned.setattr(sys, "unraisablehook", unclosed.append)
            reader, writer = await connect(port)
            await closed(reader)
            writer.close()
        assert unclosed == []


async def test_the_head_of_a_second_request_has_a_timeout_too(tmp_path):
    async with serving(tmp_path, head_timeout=0.2) as (_, port):
        reader, writer = await connect(port, REQUEST)
        assert b"200" in await reader.readuntil(b"}")
        writer.write(REQUEST[:20])
        await closed(reader)
        writer.close()


async def test_a_stream_of_events_outlives_the_head_timeout(tmp_path):
    async with serving(tmp_path, head_timeout=0.1) as (_, port):
        head = f"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n\r\n"
        reader, writer = await connect(port, head.encode())
        assert b"hello" in await reader.readuntil(b"hello")
        idle, idle_writer = await connect(port)
        await closed(idle)
        assert not reader.at_eof()
        idle_writer.close()
        writer.close()


async def test_half_sent_heads_do_not_keep_others_out(tmp_path):
    async with serving(tmp_path, max_connections=4, head_timeout=60) as (_, port):
        half = [await connect(port, REQUEST[:-2]) for _ in range(12)]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.status == 200
        for reader, _ in half[:8]:
            await closed(reader)
        for _, writer in half:
            writer.close()


async def test_busy_connections_are_not_closed_for_new_ones(tmp_path):
    async with serving(tmp_path, max_connections=2) as (_, port):
        head = f"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n\r\n".encode()
        streams = [await connect(port, head) for _ in range(2)]
        for reader, _ in streams:
            await reader.readuntil(b"hello")
        waiting, waiting_writer = await connect(port, REQUEST)
        response = asyncio.create_task(waiting.readuntil(b"\r\n\r\n"))
        for reader, _ in streams:
            assert not reader.at_eof()
        assert not response.done()
        streams[0][1].close()
        assert b"200 OK" in await response
        for writer in (waiting_writer, streams[1][1]):
            writer.close()


@pytest.mark.parametrize(
    "head",
    [
        f"GET /healthz HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\x01\r\n\r\n",
        f"GET /healthz HTTP/1.1\r\nHost: a\r\nX-API-Key {KEY}\r\n\r\n",
        f"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: {KEY}\r\n\r\n",
        f"GET /?key={KEY} HTTP/7\r\n\r\n",
    ],
)
async def test_a_malformed_request_is_no_error_of_the_service_and_in_no_log(tmp_path, caplog, head):
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path) as (_, port):
        reader, writer = await connect(port, head.encode())
        assert b" 400 " in await reader.readline()
        await closed(reader)
        writer.close()
    assert KEY not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("options", [{"head_timeout": 0}, {"max_connections": 0}])
async def test_invalid_limits_are_an_error(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        await serve(BatchManager(tmp_path), port=0, api_keys=[KEY], **options)


def test_without_descriptors_the_service_is_quiet_and_recovers(tmp_path):
    command = [sys.executable, "-m", "wme_async", "serve", "--no-key", "--port", "0", "--directory", str(tmp_path)]
    process: Any = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WME_USERNAME": ""},
    )
    try:
        url = process.stdout.readline().split()[-1]
        port = int(url.rpartition(":")[2])
        used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 3, used + 3))

        async def flood():
            connections = [await connect(port) for _ in range(60)]
            for _, writer in connections:
                writer.close()
            async with asyncio.timeout(20):
                reader, writer = await connect(port, REQUEST)
                response = await reader.readuntil(b"\r\n")
                writer.close()
                return response

        assert b"200 OK" in asyncio.run(flood())
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.count("\n") <= 6, errors


async def test_the_service_ends_with_an_error_when_its_manager_has_ended(tmp_path):
    ready = asyncio.Event()
    manager = BatchManager(tmp_path)
    await manager.start()
    running = asyncio.create_task(serve(manager, port=0, api_keys=[KEY], on_ready=lambda _: ready.set()))
    async with asyncio.timeout(20):
        await ready.wait()
        await manager.aclose()
        with pytest.raises(RuntimeError):
            await running


@contextlib.asynccontextmanager
async def app_on(app):
    runner = aiohttp.web.AppRunner(app, access_log=None)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_several_keys_must_be_the_same(tmp_path):
    async with BatchManager(tmp_path) as manager, app_on(create_app(manager, api_keys=[KEY])) as url:
        async with aiohttp.ClientSession() as session:
            for keys, status in (([KEY], 200), ([KEY, KEY], 200), (["wrong", KEY], 400), ([KEY, "wrong"], 400)):
                headers = [("X-API-Key", key) for key in keys]
                async with session.get(f"{url}/api/v1/batch", headers=headers) as response:
                    assert response.status == status, keys


async def test_other_origins_cannot_load_anything(tmp_path):
    async with BatchManager(tmp_path) as manager, app_on(create_app(manager, api_keys=[KEY])) as url:
        async with aiohttp.ClientSession() as session:
            for path in ("/", "/healthz", "/api/v1/batch", "/nothing", "/files/a"):
                async with session.get(url + path) as response:
                    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
