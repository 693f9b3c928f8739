"""One client for the whole of a FastAPI application: `uvicorn --app-dir examples in_fastapi:app`."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

from wme_async import Client, WMEError
from wme_async.web import fetch_first, starlette_errors


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Client]]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as wme:
        yield {"wme": wme}


app = FastAPI(lifespan=lifespan, exception_handlers={WMEError: starlette_errors})


def client(request: Request) -> Client:
    """Return the client of the application."""
    wme: Client = request.state.wme
    return wme


@app.get("/pages/{project}/{title:path}")
async def page(project: str, title: str, wme: Annotated[Client, Depends(client)]) -> dict[str, Any]:
    """Look up one page; without it `starlette_errors` responds with 404."""
    filters = {"is_part_of.identifier": project}
    articles = await wme.articles.lookup(title, filters=filters, fields=["name", "url"], missing="raise")
    return {"name": articles[0].name, "url": articles[0].url}


@app.get("/titles/{archive}")
async def titles(archive: str, wme: Annotated[Client, Depends(client)]) -> StreamingResponse:
    """Send the titles of a snapshot while it downloads. A slow reader slows the download; one that leaves ends it."""

    async def lines() -> AsyncGenerator[str, None]:
        async with wme.snapshots.read(archive) as articles:
            async for batch in articles.batches():
                yield "".join(f"{article.name}\n" for article in batch)

    return StreamingResponse(await fetch_first(lines()), media_type="text/plain")
