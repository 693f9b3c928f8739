"""Events of a relay as responses of your own web service, for the browser's `EventSource`.

A browser that reconnects sends the id of the last event that it received, and gets those after it.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from wme_async.relay import Broadcast

if TYPE_CHECKING:
    from litestar import Request as LitestarRequest
    from litestar.response import Stream as LitestarStream
    from starlette.requests import Request as StarletteRequest
    from starlette.responses import StreamingResponse

__all__ = ["aiohttp_events", "litestar_events", "starlette_events"]

_MEDIA_TYPE: Final = "text/event-stream"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx passes each event on at once
}
_LAST: Final = "Last-Event-ID"

Where = Callable[[Any], bool]


def starlette_events(
    hub: Broadcast[Any], request: "StarletteRequest", *, where: Where | None = None
) -> "StreamingResponse":
    """Return a response of Starlette or FastAPI with the events of a relay.

    Args:
        hub: The relay.
        request: The request.
        where: Selects records.
    """
    from starlette.responses import StreamingResponse  # noqa: PLC0415  # the framework of the caller

    # A response to HEAD has no body; one that does not end would keep its connection.
    body: Any = () if request.method == "HEAD" else hub.sse(request.headers.get(_LAST), where=where)
    return StreamingResponse(body, media_type=_MEDIA_TYPE, headers=_HEADERS)


def litestar_events(
    hub: Broadcast[Any], request: "LitestarRequest[Any, Any, Any]", *, where: Where | None = None
) -> "LitestarStream":
    """Return a response of Litestar with the events of a relay.

    Args:
        hub: The relay.
        request: The request.
        where: Selects records.
    """
    from litestar.response import Stream  # noqa: PLC0415  # the framework of the caller

    return Stream(hub.sse(request.headers.get(_LAST), where=where), media_type=_MEDIA_TYPE, headers=_HEADERS)


async def aiohttp_events(
    hub: Broadcast[Any], request: web.Request, *, where: Where | None = None
) -> web.StreamResponse:
    """Send the events of a relay as a response of aiohttp, until the reader disconnects or the relay ends.

    Args:
        hub: The relay. Its `end_listeners` belongs into `on_shutdown` of the application, which otherwise waits.
        request: The request.
        where: Selects records.
    """
    response = web.StreamResponse(headers={"Content-Type": _MEDIA_TYPE, **_HEADERS})
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    async with contextlib.aclosing(hub.sse(request.headers.get(_LAST), where=where)) as body:
        with contextlib.suppress(ConnectionResetError):
            async for event in body:
                await response.write(event)
    return response
