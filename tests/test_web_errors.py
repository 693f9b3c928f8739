"""Errors of the SDK as responses of aiohttp, Starlette, FastAPI and Litestar."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from wme_async import errors
from wme_async.errors import NotFound, WMEError
from wme_async.web import fetch_first
from wme_async.web.errors import aiohttp_errors, error_response, litestar_errors, starlette_errors

httpx2: Any = pytest.importorskip("httpx2", reason="httpx2 is not installed")
SECRET = "https://internal.example/path"

CASES: list[tuple[WMEError, int, str, str | None]] = [
    (errors.NotFound(SECRET, status=404), 404, "not_found", None),
    (errors.RateLimited(SECRET, status=429, retry_after=1.2), 429, "rate_limited", "2"),
    (errors.RateLimited(SECRET, status=429), 429, "rate_limited", None),
    (errors.QuotaExceeded(SECRET, status=429), 429, "quota_exceeded", None),
    (errors.ConnectFailed(SECRET), 503, "unavailable", "5"),
    (errors.ClientClosed(SECRET), 503, "unavailable", "5"),
    (errors.TimedOut(SECRET), 504, "timeout", None),
    (errors.IdleTimeout(SECRET), 504, "timeout", None),
    (errors.Unauthorized(SECRET, status=401), 502, "bad_gateway", None),
    (errors.Forbidden(SECRET, status=403), 502, "bad_gateway", None),
    (errors.Unprocessable(SECRET, status=422), 502, "bad_gateway", None),
    (errors.ServerError(SECRET, status=503, retry_after=7), 502, "bad_gateway", None),
    (errors.Interrupted(SECRET), 502, "bad_gateway", None),
    (errors.DecodeError(SECRET), 502, "bad_gateway", None),
    (WMEError(SECRET), 502, "bad_gateway", None),
]

Request = Callable[[], Any]


def aiohttp_app(error: WMEError) -> web.Application:
    async def fail(request: web.Request) -> web.Response:
        raise error

    app = web.Application(middlewares=[aiohttp_errors])
    app.router.add_get("/", fail)
    return app


@asynccontextmanager
async def by_aiohttp(error: WMEError) -> AsyncIterator[tuple[int, Any, bytes]]:
    async with TestClient(TestServer(aiohttp_app(error))) as client, client.get("/") as response:
        yield response.status, response.headers, await response.read()


def starlette_app(error: WMEError) -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def fail(request: Any) -> Any:
        raise error

    return Starlette(routes=[Route("/", fail)], exception_handlers={WMEError: starlette_errors})


def fastapi_app(error: WMEError) -> Any:
    from fastapi import FastAPI

    app = FastAPI()
    app.add_exception_handler(WMEError, starlette_errors)

    @app.get("/")
    async def fail() -> None:
        raise error

    return app


def litestar_app(error: WMEError) -> Any:
    from litestar import Litestar, get

    @get("/")
    async def fail() -> None:
        raise error

    return Litestar([fail], exception_handlers={WMEError: litestar_errors})


def by_asgi(make: Callable[[WMEError], Any], module: str) -> Any:
    @asynccontextmanager
    async def call(error: WMEError) -> AsyncIterator[tuple[int, Any, bytes]]:
        pytest.importorskip(module)
        transport = httpx2.ASGITransport(make(error))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/")
            yield response.status_code, response.headers, response.content

    return call


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{type(case[0]).__name__}-{case[3]}")
@pytest.mark.parametrize(
    "call",
    [
        by_aiohttp,
        by_asgi(starlette_app, "starlette"),
        by_asgi(fastapi_app, "fastapi"),
        by_asgi(litestar_app, "litestar"),
    ],
    ids=["aiohttp", "starlette", "fastapi", "litestar"],
)
async def test_every_framework_gives_the_same_response(call, case):
    error, status, code, retry_after = case
    async with call(error) as (actual, headers, body):
        assert actual == status
        assert headers.get("Retry-After") == retry_after
        assert headers["Content-Type"].startswith("application/json")
        assert headers["Cache-Control"] == "no-store"
        document = json.loads(body)
    assert (document["status"], document["code"]) == (status, code)
    assert document["message"]
    assert SECRET not in body.decode()


def test_every_error_of_the_tree_has_a_response():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type):
            assert error_response(kind("x")).status in {404, 429, 502, 503, 504}


async def test_a_response_that_has_begun_is_cut_instead_of_being_continued_by_another():
    async def fail_late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        raise errors.Interrupted("cut")

    app = web.Application(middlewares=[aiohttp_errors])
    app.router.add_get("/", fail_late)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_the_first_item_is_fetched_before_a_response_begins():
    closed = []

    async def items(count):
        try:
            for number in range(count):
                yield number
            raise NotFound("no such archive")
        finally:
            closed.append(count)

    with pytest.raises(NotFound):
        await fetch_first(items(0))
    body = await fetch_first(items(2))
    assert [await anext(body), await anext(body)] == [0, 1]
    with pytest.raises(NotFound):
        await anext(body)
    body = await fetch_first(items(3))
    assert await anext(body) == 0
    await body.aclose()
    assert closed == [0, 2, 3]

    async def nothing():
        return
        yield

    assert [item async for item in await fetch_first(nothing())] == []
