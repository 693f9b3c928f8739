"""One client for the whole of a Starlette application: `uvicorn --app-dir examples in_starlette:app`."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from wme_async import Client, WMEError
from wme_async.web import fetch_first, starlette_errors


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Client]]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as wme:
        yield {"wme": wme}


async def page(request: Request) -> JSONResponse:
    """Look up one page; without it `starlette_errors` responds with 404."""
    wme: Client = request.state.wme
    title, filters = request.path_params["title"], {"is_part_of.identifier": request.path_params["project"]}
    articles = await wme.articles.lookup(title, filters=filters, fields=["name", "url"], missing="raise")
    return JSONResponse({"name": articles[0].name, "url": articles[0].url})


async def titles(request: Request) -> StreamingResponse:
    """Send the titles of a snapshot while it downloads. A slow reader slows the download; one that leaves ends it."""

    async def lines() -> AsyncGenerator[str, None]:
        async with request.state.wme.snapshots.read(request.path_params["archive"]) as articles:
            async for batch in articles.batches():
                yield "".join(f"{article.name}\n" for article in batch)

    return StreamingResponse(await fetch_first(lines()), media_type="text/plain")


app = Starlette(
    routes=[Route("/pages/{project}/{title:path}", page), Route("/titles/{archive}", titles)],
    lifespan=lifespan,
    exception_handlers={WMEError: starlette_errors},
)
