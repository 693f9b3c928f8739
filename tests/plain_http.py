"""A thin HTTP client for the simulator's own tests, so that nothing of the package tests itself."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
from yarl import URL

from wme_async.simulator import Simulator

START = datetime(2026, 7, 16, 7, 20, tzinfo=UTC)
HOUR = "2026-07-16/05"
ENWIKI = f"/v2/batches/{HOUR}/enwiki_namespace_0"


class Reply:
    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        document = self.json
        assert list(document) == ["status", "message"]
        assert document["status"] == self.status
        assert self.body.endswith(b"}\n")
        return str(document["message"])


class Caller:
    """A thin HTTP client that knows one token."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session
        self.token = ""

    async def login(self, username: str = "simulated", password: str = "simulated-password") -> dict[str, Any]:
        reply = await self.auth("login", username=username, password=password)
        assert reply.status == 200
        self.token = reply.json.get("access_token", "")
        tokens: dict[str, Any] = reply.json
        return tokens

    async def auth(self, name: str, **form: Any) -> Reply:
        return await self.send("POST", f"{self.simulator.auth_url}/v1/{name}", json=form)

    async def send(self, method: str, url: str, **options: Any) -> Reply:
        async with self.session.request(method, URL(url, encoded=True), allow_redirects=False, **options) as response:
            return Reply(response, await response.read())

    async def __call__(self, method: str, path: str, *, accept: str | None = None, **options: Any) -> Reply:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        if accept is not None:
            headers["Accept"] = accept
        return await self.send(method, self.simulator.api_url + path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> Reply:
        return await self("GET", path, **options)

    async def query(self, path: str, **document: Any) -> Reply:
        return await self("POST", path, json=document)

    async def signed(self, path: str) -> str:
        reply = await self.get(path)
        assert reply.status == 307
        return str(reply.headers["Location"])


async def caller_of(simulator: Simulator) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as session:
        caller = Caller(simulator, session)
        await caller.login()
        yield caller
