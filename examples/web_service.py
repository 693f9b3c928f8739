"""Cached look-ups, an hourly copy and a live stream: `uvicorn --app-dir examples web_service:app`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from wme_async import Article, Cache, Client, SQLiteOffsets, WMEError
from wme_async.relay import Broadcast
from wme_async.web.errors import starlette_errors


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client and what uses it; leaving closes them in the opposite order."""
    async with Client.from_env(cache=Cache(ttl=60)) as wme, Broadcast(wme.realtime.articles()) as hub:
        app.state.wme, app.state.hub, app.state.copying = wme, hub, asyncio.create_task(copy_batches(wme))
        yield
        app.state.copying.cancel()
        await asyncio.wait([app.state.copying])


async def copy_batches(wme: Client) -> None:
    """Keep a folder with the batches of one project, hour by hour."""
    async for hour in wme.hours(offsets=SQLiteOffsets("hours.db")):
        await hour.sync("data/", filters={"is_part_of.identifier": "simplewiki"})


app = FastAPI(lifespan=lifespan, exception_handlers={WMEError: starlette_errors})


@app.get("/pages/{project}/{title:path}")
async def page(project: str, title: str) -> Article:
    """Return a page, which comes from the cache for a minute; without it `starlette_errors` responds with 404."""
    filters = {"is_part_of.identifier": project}
    articles: list[Article] = await app.state.wme.articles.lookup(title, filters=filters, missing="raise")
    return articles[0]


@app.get("/live")
async def live(request: Request) -> StreamingResponse:
    """Send edits as server-sent events. A browser that reconnects receives what it missed."""
    body = app.state.hub.sse(request.headers.get("Last-Event-ID"))
    return StreamingResponse(body, media_type="text/event-stream")


@app.get("/healthz")
async def health() -> Response:
    """Respond with 503 if a background job has failed."""
    return Response(status_code=503 if app.state.hub.failure or app.state.copying.done() else 200)
