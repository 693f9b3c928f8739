"""The batch manager as a service: a REST API with events, files, metrics and a page, in aiohttp or any ASGI framework.

    app.add_subapp("/downloads/", create_app(manager, api_keys=[key]))      # aiohttp
    app.mount("/downloads", create_asgi(manager, api_keys=[key]))           # Starlette, FastAPI
    await serve(manager, port=8080, api_keys=[key])                         # on its own

All three have the same routes; `/api/v1/openapi.json` describes them.

For web services of your own there are `Lifespan`, errors as responses also for bodies that are streamed
(`fetch_first`), and the events of a relay as responses.
"""

from wme_async.web.aiohttp_app import MANAGER, create_app, serve
from wme_async.web.asgi_app import create_asgi
from wme_async.web.auth import hash_key
from wme_async.web.errors import aiohttp_errors, litestar_errors, starlette_errors
from wme_async.web.events import aiohttp_events, litestar_events, starlette_events
from wme_async.web.first import fetch_first
from wme_async.web.key_file import new_key
from wme_async.web.lifespan import Lifespan
from wme_async.web.messages import Problems
from wme_async.web.routes import BatchRequest, Created, FileLink

__all__ = [
    "MANAGER",
    "BatchRequest",
    "Created",
    "FileLink",
    "Lifespan",
    "Problems",
    "aiohttp_errors",
    "aiohttp_events",
    "create_app",
    "create_asgi",
    "fetch_first",
    "hash_key",
    "litestar_errors",
    "litestar_events",
    "new_key",
    "serve",
    "starlette_errors",
    "starlette_events",
]
