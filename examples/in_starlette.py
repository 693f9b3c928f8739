"""One client for the whole of a Starlette application: `uvicorn --app-dir examples in_starlette:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from wme_async import Client, WMEError
from wme_async.web import starlette_errors


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


app = Starlette(
    routes=[Route("/pages/{project}/{title:path}", page)],
    lifespan=lifespan,
    exception_handlers={WMEError: starlette_errors},
)
