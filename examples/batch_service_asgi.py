"""The batch service beside the routes of FastAPI, Starlette or Litestar.

`WME_SERVE_API_KEY=... uvicorn --app-dir examples --factory batch_service_asgi:fastapi_app`: the page is at /downloads/.
One client, one pool and one manager serve the process; they are opened and closed with the application.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from litestar import Litestar, asgi, get
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from wme_async import Client
from wme_async.jobs import BatchManager
from wme_async.web import create_asgi


def components() -> tuple[Callable[[Any], Any], Callable[[], Awaitable[int]], Any]:
    """Return the components that each framework mounts: a lifespan, a route of ours, and the service."""
    client = Client.from_env()
    manager = BatchManager(os.environ.get("WME_DOWNLOADS", "downloads"), client=client)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with client, manager:
            yield

    async def unfinished() -> int:
        return sum(not batch.ended for batch in (await manager.list()).batches)

    return lifespan, unfinished, create_asgi(manager, api_keys=[os.environ["WME_SERVE_API_KEY"]])


def fastapi_app() -> FastAPI:
    """Mount it in FastAPI."""
    lifespan, unfinished, downloads = components()
    app = FastAPI(lifespan=lifespan)
    app.get("/unfinished")(unfinished)
    app.mount("/downloads", downloads)
    return app


def starlette_app() -> Starlette:
    """Mount it in Starlette."""
    lifespan, unfinished, downloads = components()

    async def count(_: Request) -> JSONResponse:
        return JSONResponse(await unfinished())

    return Starlette(routes=[Route("/unfinished", count), Mount("/downloads", downloads)], lifespan=lifespan)


def litestar_app() -> Litestar:
    """Mount it in Litestar."""
    lifespan, unfinished, downloads = components()
    mounted = asgi("/downloads", is_mount=True, copy_scope=True)(downloads)
    return Litestar([get("/unfinished")(unfinished), mounted], lifespan=[lifespan])
