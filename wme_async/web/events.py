"""Events of a relay as responses of your own web service, for the browser's `EventSource`.

A browser that reconnects sends the id of the last event that it received, and gets those after it.
"""

import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from wme_async.relay import Broadcast
from wme_async.web.endless import respond_asgi, send_aiohttp

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
    # A response to HEAD has no body; one that does not end would keep its connection.
    body: Any = () if request.method == "HEAD" else hub.sse(request.headers.get(_LAST), where=where)
    response: StreamingResponse = _starlette_type()(body, media_type=_MEDIA_TYPE, headers=_HEADERS)
    response.wait_ended = hub.wait_ended  # type: ignore[attr-defined]
    return response


def litestar_events(
    hub: Broadcast[Any], request: "LitestarRequest[Any, Any, Any]", *, where: Where | None = None
) -> "LitestarStream":
    """Return a response of Litestar with the events of a relay.

    Args:
        hub: The relay.
        request: The request.
        where: Selects records.
    """
    body = hub.sse(request.headers.get(_LAST), where=where)
    response: LitestarStream = _litestar_type()(body, media_type=_MEDIA_TYPE, headers=_HEADERS)
    response.wait_ended = hub.wait_ended  # type: ignore[attr-defined]
    return response


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
    await send_aiohttp(request, response, hub.sse(request.headers.get(_LAST), where=where), hub.wait_ended)
    return response


@functools.cache
def _starlette_type() -> Any:
    """Return the class of responses of Starlette that end with their relay."""
    from starlette.responses import StreamingResponse  # noqa: PLC0415  # the framework of the caller

    class EventsResponse(StreamingResponse):
        wait_ended: Callable[[], Awaitable[None]]

        async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            await respond_asgi(super().__call__(scope, receive, send), self.wait_ended, scope)

    return EventsResponse


@functools.cache
def _litestar_type() -> Any:
    """Return the class of responses of Litestar that end with their relay."""
    from litestar.response import Stream  # noqa: PLC0415  # the framework of the caller

    class EventsStream(Stream):
        wait_ended: Callable[[], Awaitable[None]]

        def to_asgi_response(self, *args: Any, **options: Any) -> Any:
            response = super().to_asgi_response(*args, **options)

            async def application(scope: Any, receive: Any, send: Any) -> None:
                await respond_asgi(response(scope, receive, send), self.wait_ended, scope)

            return application

    return EventsStream
