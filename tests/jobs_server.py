"""A web server on loopback that serves files to batches, and misbehaves where a test says so; managers for tests."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from wme_async.jobs import BatchManager, JobLimits
from wme_async.settings import Retry


class FileServer:
    """Files by name, with ranges and ETags.

    Attributes:
        files: Name to bytes.
        rules: Name to what to do instead: a status, `hang` (send half, then wait for `gate`), `whole` (no ranges, no
            ETag), `chunked` (no length either), `slow` (pieces with pauses), `stepped` (quarters, each once `steps` is
            released), `faulty` (answers 503 or breaks off twice, then serves), or a URL to redirect to.
        heads: Name to further headers.
        asked: How often each name was asked for.
        hooks: Webhooks that arrived: headers and body.
        hook_faults: Every so many webhooks are refused, 0 for none.
        answers: Statuses with which to answer webhooks, the last one for ever.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.rules: dict[str, int | str] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.asked: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.sent = 0
        self.gate = asyncio.Event()
        self.steps = asyncio.Semaphore(0)
        self.asking = asyncio.Event()
        self.hanging = asyncio.Event()
        self.hooks: list[tuple[dict[str, str], bytes]] = []
        self.hooked = asyncio.Event()
        self.answers = [204]
        self.hook_faults = 0
        self.url = ""

    def add(self, name: str, size: int = 1000, rule: int | str | None = None, **headers: str) -> str:
        """Add a file of made-up bytes, and return its URL."""
        seed = hashlib.sha256(name.encode()).digest()
        self.files[name] = (seed * (size // len(seed) + 1))[:size]
        if rule is not None:
            self.rules[name] = rule
        self.heads[name] = {key.replace("_", "-"): value for key, value in headers.items()}
        return f"{self.url}/f/{quote(name)}"

    async def further(self, count: int) -> None:
        """Wait until files have been asked for so many times more."""
        requested = self.asked.total() + count
        while self.asked.total() < requested:
            self.asking.clear()
            await self.asking.wait()

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] += 1
        self.asking.set()
        rule = self.rules.get(name)
        if isinstance(rule, int):
            return web.Response(status=rule, text="no")
        if isinstance(rule, str) and "/" in rule:
            return web.Response(status=302, headers={"Location": rule})
        if rule == "faulty":
            self.faults[name] += 1
            if self.faults[name] <= 2 and len(name) % 2:
                return web.Response(status=503, headers={"Retry-After": "0"})
        data = self.files.get(name)
        if data is None:
            return web.Response(status=404, text="no such file")
        headers = {"Content-Type": "application/octet-stream", **self.heads[name]}
        start, stop, status = 0, len(data), 200
        if rule not in {"whole", "chunked"}:
            etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            headers |= {"ETag": etag, "Accept-Ranges": "bytes"}
            if request.headers.get("If-Match", etag) != etag:
                return web.Response(status=412)
            requested = request.headers.get("Range", "")
            if requested:
                first, _, last = requested.removeprefix("bytes=").partition("-")
                start, stop, status = int(first), min(int(last) + 1 if last else len(data), len(data)), 206
                if start >= len(data):
                    return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        response = web.StreamResponse(status=status, headers=headers)
        if rule == "chunked":
            response.enable_chunked_encoding()
        else:
            response.content_length = stop - start
        await response.prepare(request)
        await self._send(response, data[start:stop], rule, name)
        return response

    async def _send(self, response: web.StreamResponse, data: bytes, rule: int | str | None, name: str) -> None:
        if rule == "hang" and len(data) > 1:
            await response.write(data[: len(data) // 2])
            self.sent += len(data) // 2
            self.hanging.set()
            await self.gate.wait()
            data = data[len(data) // 2 :]
        if rule == "faulty" and self.faults[name] <= 2 and len(data) > 1:
            await response.write(data[: len(data) // 2])
            self.sent += len(data) // 2
            raise ConnectionResetError("broken off on purpose")
        step = {"slow": 16_384, "stepped": -(-len(data) // 4)}.get(str(rule), len(data))
        for at in range(0, len(data), max(1, step)):
            if rule == "stepped" and len(data) > 1:
                await self.steps.acquire()
            await response.write(data[at : at + step])
            self.sent += len(data[at : at + step])
            if rule == "slow":
                await asyncio.sleep(0.02)

    async def _hook(self, request: web.Request) -> web.Response:
        self.hooks.append((dict(request.headers), await request.read()))
        self.hooked.set()
        if self.hook_faults and len(self.hooks) % self.hook_faults == 0:
            return web.Response(status=503)
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers={"Location": "http://169.254.169.254/"})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FileServer"]:
        """Serve until the end of the block."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/f/{name:.+}", self._file)
        app.router.add_post("/hook", self._hook)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.gate.set()
            await runner.cleanup()


def open_manager(directory: Path, **options: Any) -> Any:
    """Return a `BatchManager` that may fetch from this machine, and waits for milliseconds instead of seconds."""
    defaults = {
        "allow_hosts": ["127.0.0.1"],
        "retry": Retry(attempts=2, base=0.01, cap=0.02),
        "limits": JobLimits(free_space=0),
        "webhook_delays": (0.02, 0.02, 0.02),
    }
    return BatchManager(directory, **{**defaults, **options})


async def delivery_of(manager: BatchManager, batch_id: str) -> Any:
    """Wait until the webhook of a batch is delivered or given up, and return its `Outbox`."""
    await manager.wait(batch_id, timeout=10)
    async with asyncio.timeout(10):
        while (message := (await manager.webhooks(batch_id))[0]).state == "waiting":  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # the state of a delivery is in the database alone
    return message
