"""One client for the whole of a Litestar application: `uvicorn --app-dir examples in_litestar:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, get
from litestar.datastructures import State
from litestar.params import FromPath

from wme_async import Article, Client, WMEError
from wme_async.web.errors import litestar_errors


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as app.state.wme:
        yield


# Litestar encodes msgspec Structs by itself, without the fields that have their default.
@get("/pages/{project:str}/{title:str}")
async def page(state: State, project: FromPath[str], title: FromPath[str]) -> Article:
    """Look up one page; without it `litestar_errors` responds with 404."""
    wme: Client = state.wme
    filters = {"is_part_of.identifier": project}
    articles = await wme.articles.lookup(title, filters=filters, fields=["name", "url"], missing="raise")
    return articles[0]


app = Litestar([page], lifespan=[lifespan], exception_handlers={WMEError: litestar_errors})
