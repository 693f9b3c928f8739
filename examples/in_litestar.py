"""One client for the whole of a Litestar application: `uvicorn --app-dir examples in_litestar:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from wme_async import Client
from wme_async.models import Article


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as app.state.wme:
        yield


# Litestar encodes msgspec Structs by itself, without the fields that have their default.
@get("/pages/{project:str}/{title:str}")
async def page(state: State, project: FromPath[str], title: FromPath[str]) -> Article:
    """Look up one page."""
    wme: Client = state.wme
    articles = await wme.articles.lookup(title, filters={"is_part_of.identifier": project}, fields=["name", "url"])
    if not articles:
        raise NotFoundException
    return articles[0]


app = Litestar([page], lifespan=[lifespan])
