"""One client for the whole of an aiohttp application: `python examples/in_aiohttp.py`."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from aiohttp import web

from wme_async import Client
from wme_async.web import aiohttp_errors, fetch_first

WME = web.AppKey("wme", Client)
routes = web.RouteTableDef()


async def client(app: web.Application) -> AsyncIterator[None]:
    """Open the client with the application, and close it with it."""
    async with Client.from_env() as app[WME]:
        yield


@routes.get("/pages/{project}/{title:.+}")
async def page(request: web.Request) -> web.Response:
    """Look up one page; without it `aiohttp_errors` responds with 404."""
    articles = await request.app[WME].articles.lookup(
        request.match_info["title"],
        filters={"is_part_of.identifier": request.match_info["project"]},
        fields=["name", "url", "abstract"],
        missing="raise",
    )
    return web.Response(body=msgspec.json.encode(articles[0]), content_type="application/json")


@routes.get("/titles/{archive}")
async def titles(request: web.Request) -> web.StreamResponse:
    """Send the titles of a snapshot while it downloads. A slow reader slows the download; one that leaves ends it."""
    archive = request.match_info["archive"]
    async with aclosing(await fetch_first(lines(request.app[WME], archive))) as body:
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        async for part in body:
            await response.write(part.encode())
    return response


async def lines(wme: Client, archive: str) -> AsyncGenerator[str, None]:
    """Yield the titles of a snapshot."""
    async with wme.snapshots.read(archive) as articles:
        async for batch in articles.batches():
            yield "".join(f"{article.name}\n" for article in batch)


def make_app() -> web.Application:
    """Return the application."""
    app = web.Application(middlewares=[aiohttp_errors])
    app.cleanup_ctx.append(client)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), port=8080, handler_cancellation=True)
