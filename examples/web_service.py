"""Cached look-ups, an hourly copy and a live stream: `uvicorn --app-dir examples web_service:app`."""

from fastapi import FastAPI, Request, Response

from wme_async import Article, Cache, Client, SQLiteOffsets, WMEError
from wme_async.relay import Broadcast
from wme_async.web import Lifespan, starlette_errors, starlette_events


async def start(app: FastAPI, service: Lifespan) -> None:
    """Open the client and what uses it; at shutdown they are closed in the opposite order."""
    wme = app.state.wme = await service.open(Client.from_env(cache=Cache(ttl=60)))
    app.state.hub = await service.open(Broadcast(wme.realtime.articles()))
    service.run(copy_batches(wme))


async def copy_batches(wme: Client) -> None:
    """Keep a folder with the batches of one project, hour by hour."""
    async for hour in wme.hours(offsets=SQLiteOffsets("hours.db")):
        await hour.sync("data/", filters={"is_part_of.identifier": "simplewiki"})


service = Lifespan(start)
app = FastAPI(lifespan=service, exception_handlers={WMEError: starlette_errors})


@app.get("/pages/{project}/{title:path}")
async def page(project: str, title: str) -> Article:
    """Return a page, which comes from the cache for a minute; without it `starlette_errors` responds with 404."""
    filters = {"is_part_of.identifier": project}
    articles: list[Article] = await app.state.wme.articles.lookup(title, filters=filters, missing="raise")
    return articles[0]


@app.get("/live")
async def live(request: Request) -> Response:
    """Send edits as server-sent events. A browser that reconnects receives what it missed."""
    return starlette_events(app.state.hub, request)


@app.get("/healthz")
async def health() -> Response:
    """Respond with 503 if the stream or the copy has failed."""
    return Response(status_code=503 if service.failure else 200)
