"""The batch service inside an application of your own: `WME_SERVE_API_KEY=... python examples/batch_service.py`.

The page is at http://localhost:8080/downloads/, the REST API below it.
"""

import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from wme_async import Client
from wme_async.jobs import BatchManager
from wme_async.web import create_app


def make_app(directory: str, key: str) -> web.Application:
    """Return an application with the service below /downloads/."""
    client = Client.from_env()

    async def open_client(_: web.Application) -> AsyncIterator[None]:
        async with client:
            yield

    app = web.Application()
    app.cleanup_ctx.append(open_client)
    app.add_subapp("/downloads/", create_app(BatchManager(directory, client=client), api_keys=[key]))
    return app


if __name__ == "__main__":
    if not os.environ.get("WME_SERVE_API_KEY"):
        sys.exit(__doc__)
    web.run_app(make_app("downloads", os.environ["WME_SERVE_API_KEY"]), host="localhost", port=8080)
