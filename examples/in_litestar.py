"""One client for the whole of a Litestar application: `uvicorn --app-dir examples in_litestar:app`."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, get
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream

from wme_async import Article, Client, WMEError
from wme_async.web import fetch_first, litestar_errors


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as app.state.wme:
        yield


# Litestar encodes msgspec Structs by itself, without the fields that have their default. A `path` begins with a slash.
@get("/pages/{project:str}/{title:path}")
async def page(state: State, project: FromPath[str], title: FromPath[str]) -> Article:
    """Look up one page; without it `litestar_errors` responds with 404."""
    wme: Client = state.wme
    filters = {"is_part_of.identifier": project}
    fields = ["name", "url"]
    articles = await wme.articles.lookup(title[1:], filters=filters, fields=fields, missing="raise")
    return articles[0]


@get("/titles/{archive:str}", media_type="text/plain")
async def titles(state: State, archive: FromPath[str]) -> Stream:
    """Send the titles of a snapshot while it downloads. A slow reader slows the download; one that leaves ends it."""

    async def lines() -> AsyncGenerator[str, None]:
        async with state.wme.snapshots.read(archive) as articles:
            async for batch in articles.batches():
                yield "".join(f"{article.name}\n" for article in batch)

    return Stream(await fetch_first(lines()))


app = Litestar([page, titles], lifespan=[lifespan], exception_handlers={WMEError: litestar_errors})
