"""One client for the whole of a Starlette application: `uvicorn --app-dir examples in_starlette:app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wme_async import Client


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Client]]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as wme:
        yield {"wme": wme}


async def page(request: Request) -> Response:
    """Look up one page."""
    wme: Client = request.state.wme
    project, title = request.path_params["project"], request.path_params["title"]
    articles = await wme.articles.lookup(title, filters={"is_part_of.identifier": project}, fields=["name", "url"])
    if not articles:
        return JSONResponse({"detail": "there is no such page"}, status_code=404)
    return JSONResponse({"name": articles[0].name, "url": articles[0].url})


app = Starlette(routes=[Route("/pages/{project}/{title:path}", page)], lifespan=lifespan)
