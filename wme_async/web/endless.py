"""Responses whose body ends with its source, even if the client has stopped reading.

A server that shuts down waits for its responses. A response whose client does not read waits for room in the socket,
where the end of the source does not reach it. So a moment after that end the connection is aborted.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Final

from aiohttp import web

from wme_async._tasks import end_task, uvicorn_server

__all__ = ["respond_asgi", "send_aiohttp"]

_GRACE: Final = 0.2  # seconds for a client to read the end of the body
_POLL: Final = 0.02  # seconds

Scope = MutableMapping[str, Any]
Ended = Callable[[], Awaitable[object]]


async def _respond(response: Awaitable[None], ended: Ended, abort: Callable[[], object]) -> bool:
    """Await a response, and give it up if it still runs a moment after its source has ended.

    Args:
        response: Sends the response.
        ended: Waits for the end of the source.
        abort: Aborts the connection. A response that waits for its client should then return; it is cancelled if not.

    Returns:
        Whether the source has ended.

    Raises:
        BaseException: Any exception of the response.
    """
    loop = asyncio.get_running_loop()
    source_ended = False

    async def watch() -> None:
        nonlocal source_ended
        await ended()
        source_ended = True
        await asyncio.sleep(_GRACE)
        abort()
        limit.reschedule(loop.time() + _GRACE)

    limit = asyncio.timeout(None)
    try:
        async with limit:
            watcher = asyncio.create_task(watch())
            try:
                await response
            finally:
                await end_task(watcher)
    except TimeoutError:
        if not limit.expired():
            raise
    return source_ended


async def send_aiohttp(
    request: web.Request,
    response: web.StreamResponse,
    body: AsyncGenerator[bytes, None],
    ended: Ended,
) -> None:
    """Send the body of a response of aiohttp, until the client disconnects or the source of the body ends.

    Args:
        request: The request.
        response: The response, prepared.
        body: Yields chunks; it is closed.
        ended: Waits for the end of the source.

    Raises:
        BaseException: Any exception of the body.
    """

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            async for chunk in body:
                await response.write(chunk)

    def abort() -> None:
        if request.transport is not None:
            request.transport.abort()

    async with contextlib.aclosing(body):
        await _respond(send(), ended, abort)


async def respond_asgi(response: Awaitable[None], ended: Ended, scope: Scope) -> None:
    """Await an ASGI response, and give it up if it still runs a moment after its source has ended.

    ASGI cannot abort a connection. Under uvicorn, which would wait for it, it is aborted all the same.

    Args:
        response: Sends the response.
        ended: Waits for the end of the source.
        scope: The scope of the request.

    Raises:
        BaseException: Any exception of the response.
    """
    if await _respond(response, ended, lambda: _abort(scope)):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                while _unsent_transports(scope):  # noqa: ASYNC110  # the server's; nothing to wait on
                    await asyncio.sleep(_POLL)
        _abort(scope)


def _abort(scope: Scope) -> None:
    for transport in _unsent_transports(scope):
        transport.abort()


def _unsent_transports(scope: Scope) -> list[Any]:
    """Return the transport of a request under uvicorn, if the client has yet to read some of the response."""
    connections = getattr(getattr(uvicorn_server(), "server_state", None), "connections", ())
    transports = [
        getattr(connection, "transport", None)
        for connection in connections
        # A middleware may have copied the scope.
        if getattr(connection, "scope", None) is scope
        or (scope.get("client") is not None and getattr(connection, "client", None) == scope["client"])
    ]
    return [transport for transport in transports if transport is not None and transport.get_write_buffer_size()]
