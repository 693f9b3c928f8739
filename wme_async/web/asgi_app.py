"""The service as an ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Unpack
from urllib.parse import parse_qsl, quote, unquote

from wme_async._tasks import wait_server_shutdown
from wme_async.jobs import BatchManager
from wme_async.web.endless import respond_asgi
from wme_async.web.messages import HTTPProblem, Request, Response, parse_headers
from wme_async.web.service import Service, ServiceOptions

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def create_asgi(
    manager: BatchManager, **options: Unpack[ServiceOptions]
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Make an ASGI application of the batch service, for Starlette, FastAPI, Litestar and the like.

    Frameworks do not tell mounted applications when they start and end. So open the manager in the framework's own
    lifespan; an ASGI server that runs this application alone opens and closes it. Streams of events end when uvicorn
    shuts down; another server may wait for them, so give it a limit.

    Args:
        manager: Runs the batches.
        **options: As for `create_app`.

    Raises:
        TypeError: As for `create_app`.
        ValueError: As for `create_app`.
    """
    service = Service(manager, **options)

    async def end_with_server() -> None:
        await wait_server_shutdown()
        manager.end_streams()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(manager, receive, send)
        elif scope["type"] == "http":
            response = await service.handle(_convert(scope, receive))
            sending = _send(response, receive, send)
            await (respond_asgi(sending, end_with_server, scope) if response.endless else sending)
        else:
            raise RuntimeError(f"the batch service speaks HTTP, not {scope['type']}")

    return application


async def _lifespan(manager: BatchManager, receive: Receive, send: Send) -> None:
    owned = manager.closing
    await receive()
    try:
        if owned:
            await manager.start()
    except Exception as error:  # noqa: BLE001  # the server reports it, and ends
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if owned:
        await manager.aclose()
    await send({"type": "lifespan.shutdown.complete"})


def _convert(scope: Scope, receive: Receive) -> Request:
    headers, repeated = parse_headers(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    )
    path, mount = _split_mount(scope)
    return Request(
        method=scope["method"],
        path=path if path.startswith("/") else f"/{path}",
        query=dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)),
        headers=headers,
        base=f"{scope.get('scheme', 'http')}://{headers.get('host', '')}{mount}".rstrip("/"),
        body=_chunks(receive),
        repeated=repeated,
    )


async def _chunks(receive: Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            # Nobody reads this response, but the log must not show a fault of the service.
            raise HTTPProblem(400, "bad_request", "the caller disconnected before the end of the body")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _split_mount(scope: Scope) -> tuple[str, str]:
    """Return the path below the mount point, percent-encoded, and the path of the mount point.

    Starlette leaves the mount point in `path` and names it in `root_path`; Litestar removes it and names it nowhere.
    `raw_path`, where a server has it, is the path as it came.
    """
    root = scope.get("root_path", "")
    below = scope["path"].removeprefix(root).rstrip("/") if root else scope["path"].rstrip("/")
    raw = (scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1")
    decoded = unquote(raw).rstrip("/")
    if not decoded.endswith(below):
        return quote(below) or "/", quote(root)
    mount = quote(decoded[: len(decoded) - len(below)])
    return (raw.removeprefix(mount), mount) if raw.startswith(mount) else (quote(below), mount)


async def _send(response: Response, receive: Receive, send: Send) -> None:
    body = response.body
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    length = len(body) if isinstance(body, bytes) and response.length is None else response.length
    if length is not None and response.status != 304:
        headers.append((b"content-length", str(length).encode()))
    start = {"type": "http.response.start", "status": response.status, "headers": headers}
    if isinstance(body, bytes):
        await send(start)
        await send({"type": "http.response.body", "body": body})
        return
    async with contextlib.aclosing(body):
        await send(start)
        async with asyncio.TaskGroup() as group:
            # A stream without events would not notice that its reader has disconnected.
            sending = group.create_task(_send_body(body, send))
            watching = group.create_task(_cancel_on_disconnect(sending, receive))
            await asyncio.wait([sending])
            watching.cancel()


async def _send_body(body: AsyncGenerator[bytes, None], send: Send) -> None:
    with contextlib.suppress(OSError):
        async for chunk in body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _cancel_on_disconnect(sending: "asyncio.Task[None]", receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    sending.cancel()
