"""The service in aiohttp and in ASGI frameworks: two thin doors to the same calls and replies."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any, cast
from urllib.parse import parse_qsl, quote, unquote

from aiohttp import web

from wme_async import _clock
from wme_async._arguments import check_functions, check_numbers, check_text, check_url_of
from wme_async.jobs import BatchManager
from wme_async.web.messages import Call, Refused, Reply, headers_of
from wme_async.web.server import Listener
from wme_async.web.service import Service

__all__ = ["MANAGER", "create_app", "create_asgi", "serve"]

logger: logging.Logger = logging.getLogger("wme_async.web")

MANAGER: web.AppKey[BatchManager] = web.AppKey("wme_batch_manager", BatchManager)
"""Where the aiohttp application keeps its manager."""

# Seconds in which a further request may come on a connection.
_KEEP_ALIVE = 75.0
# Seconds in which a whole body must arrive; it has a megabyte at most.
_BODY_TIMEOUT = 60.0

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def create_app(
    manager: BatchManager,
    *,
    api_keys: Iterable[str] | None,
    allowed_hosts: Collection[str] | None = None,
    create_rate: float | None = 1.0,
    create_burst: int = 30,
    public_url: str | None = None,
) -> web.Application:
    """Make an aiohttp application of the batch service, to run or to give to `add_subapp`.

    Example:
        >>> app.add_subapp("/downloads/", create_app(manager, api_keys=[KEY]))  # doctest: +SKIP

    Args:
        manager: Opened when the application starts and closed when it begins to shut down, unless it is open already.
        api_keys: Keys that callers send as `X-API-Key`, or their hashes (`hash_key`); whoever has one may do all there
            is. None asks for none: for loopback, and behind something that asks.
        allowed_hosts: Names that callers may use for this service. By default any with keys, and only those of
            loopback without: otherwise every web page that somebody reads on this machine could call it.
        create_rate: New batches per second and key, None for no limit.
        create_burst: New batches that may come at once.
        public_url: The URL of the place where it is mounted, as callers see it, for links to files. By default it is
            taken from each call.

    Raises:
        TypeError: An argument of another type, such as a folder in place of the manager.
        ValueError: A key, URL or limit that cannot work.
    """
    _check(manager, public_url)
    service = Service(
        manager,
        api_keys=api_keys,
        allowed_hosts=allowed_hosts,
        create_rate=create_rate,
        create_burst=create_burst,
        clock=time.monotonic,
        now=_clock.now,
    )

    async def handle(request: web.Request) -> web.StreamResponse:
        call = _from_aiohttp(request, public_url)
        reply = call.reply() if isinstance(call, Refused) else await service.handle(call)
        return await _to_aiohttp(request, reply)

    mine = False
    closing: asyncio.Task[None] | None = None

    async def life(_app: web.Application) -> AsyncIterator[None]:
        nonlocal mine
        mine = manager.closing
        if mine:
            await manager.start()
        yield
        if mine:
            await (closing or manager.aclose())

    async def end(_app: web.Application) -> None:
        """Stop the jobs now: an application around this one closes the client that they use before it tells us."""
        nonlocal closing
        if mine:
            closing = asyncio.get_running_loop().create_task(manager.aclose())
            # What went wrong is raised when the rest is cleaned up, which it must not prevent.
            await asyncio.wait([closing])

    app = web.Application()
    app[MANAGER] = manager
    app.cleanup_ctx.append(life)
    app.on_shutdown.extend((_end_streams, end))
    # Newlines too, which a full stop would leave to aiohttp's own answer.
    app.router.add_route("*", r"/{tail:[\s\S]*}", handle)
    return app


def _check(manager: object, public_url: object) -> None:
    if not isinstance(manager, BatchManager):
        raise TypeError(f'manager is a BatchManager, such as BatchManager("downloads"), not {manager!r}')
    check_url_of("public_url", public_url)


async def _end_streams(app: web.Application) -> None:
    """Let open streams of events end, so that the server need not wait for them."""
    app[MANAGER].end_streams()


def _from_aiohttp(request: web.Request, public_url: str | None) -> Call | Refused:
    path, _, query = request.raw_path.partition("?")
    resource = request.match_info.route.resource
    # `add_subapp` puts its prefix in front of the pattern.
    prefix = (resource.canonical if resource is not None else "").partition("/{tail}")[0]
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host) or not path.startswith("/"):
        return Refused(400, "bad_request", "the request has no proper path or Host header")
    headers, repeated = headers_of(request.headers.items())

    async def read(limit: int) -> bytes:
        try:
            return await _limited(request.content.iter_any(), limit, request.content_length)
        except web.RequestPayloadError:
            raise Refused(400, "bad_request", "the body is not encoded as its headers say") from None

    return Call(
        method=request.method,
        path=path.removeprefix(prefix),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        headers=headers,
        base=(public_url or f"{request.scheme}://{host}{prefix}").rstrip("/"),
        read=read,
        client=request.remote or "",
        repeated=repeated,
    )


async def _limited(pieces: AsyncIterator[bytes], limit: int, said: int | None) -> bytes:
    too_large = Refused(413, "too_large", f"the body is larger than {limit} bytes", headers={"Connection": "close"})
    if said is not None and said > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            async for piece in pieces:
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        slow = f"the body did not arrive within {_BODY_TIMEOUT:.0f} s"
        raise Refused(408, "too_slow", slow, headers={"Connection": "close"}) from None
    return bytes(body)


async def _to_aiohttp(request: web.Request, reply: Reply) -> web.StreamResponse:
    if isinstance(reply.body, bytes):
        if reply.length is None:
            return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
        # The answer to a HEAD says a length that it does not have.
        return web.Response(status=reply.status, headers={**reply.headers, "Content-Length": str(reply.length)})
    stream = web.StreamResponse(status=reply.status, headers=reply.headers)
    if reply.length is not None:
        stream.content_length = reply.length
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_close, reply.body)
        await stream.prepare(request)
        # A reader who goes away is how most streams end.
        with contextlib.suppress(ConnectionResetError):
            async for piece in reply.body:
                await stream.write(piece)
            await stream.write_eof()
    return stream


async def _close(body: AsyncIterator[bytes]) -> None:
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


def create_asgi(
    manager: BatchManager,
    *,
    api_keys: Iterable[str] | None,
    allowed_hosts: Collection[str] | None = None,
    create_rate: float | None = 1.0,
    create_burst: int = 30,
    public_url: str | None = None,
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Make an ASGI application of the batch service, for Starlette, FastAPI, Litestar and the like.

    Frameworks do not tell mounted applications when they start and end. So open the manager in the framework's own
    lifespan; an ASGI server that runs this application alone opens and closes it. Streams of events do not end by
    themselves when the server wants to: give it a limit, such as uvicorn's `--timeout-graceful-shutdown 5`.

    Args:
        manager: Who does the work.
        api_keys: As for `create_app`.
        allowed_hosts: As for `create_app`.
        create_rate: As for `create_app`.
        create_burst: As for `create_app`.
        public_url: As for `create_app`.

    Raises:
        TypeError: As for `create_app`.
        ValueError: As for `create_app`.
    """
    _check(manager, public_url)
    service = Service(
        manager,
        api_keys=api_keys,
        allowed_hosts=allowed_hosts,
        create_rate=create_rate,
        create_burst=create_burst,
        clock=time.monotonic,
        now=_clock.now,
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(manager, receive, send)
        elif scope["type"] == "http":
            call = _from_asgi(scope, receive, public_url)
            reply = call.reply() if isinstance(call, Refused) else await service.handle(call)
            await _to_asgi(reply, receive, send)
        else:
            raise RuntimeError(f"the batch service speaks HTTP, not {scope['type']}")

    return application


async def _lifespan(manager: BatchManager, receive: Receive, send: Send) -> None:
    mine = manager.closing
    await receive()
    try:
        if mine:
            await manager.start()
    except Exception as error:  # noqa: BLE001  # the server is told, and ends
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if mine:
        await manager.aclose()
    await send({"type": "lifespan.shutdown.complete"})


def _from_asgi(scope: Scope, receive: Receive, public_url: str | None) -> Call | Refused:
    headers, repeated = headers_of(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    )
    host = headers.get("host", "")
    path, root = _place(scope)
    if not _HOST.fullmatch(host):
        return Refused(400, "bad_request", "the request has no proper Host header")
    length = headers.get("content-length", "")

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Nobody reads this, but it is no fault of the service's to be logged as one.
                raise Refused(400, "bad_request", "the caller went away before the body had ended")
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def read(limit: int) -> bytes:
        return await _limited(pieces(), limit, int(length) if length.isascii() and length.isdigit() else None)

    client = scope.get("client")
    return Call(
        method=scope["method"],
        path=path if path.startswith("/") else f"/{path}",
        query=dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)),
        headers=headers,
        base=(public_url or f"{scope.get('scheme', 'http')}://{host}{root}").rstrip("/"),
        read=read,
        client=client[0] if client else "",
        repeated=repeated,
    )


def _place(scope: Scope) -> tuple[str, str]:
    """Return the path below the mount, percent-encoded, and the path of the mount.

    Starlette leaves the mount in `path` and names it in `root_path`; Litestar takes it away and names it nowhere. All
    leave `raw_path` as it came, if they have it.
    """
    root = scope.get("root_path", "")
    below = scope["path"].removeprefix(root).rstrip("/") if root else scope["path"].rstrip("/")
    raw = (scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1")
    whole = unquote(raw).rstrip("/")
    if not whole.endswith(below):
        return quote(below) or "/", quote(root)
    mount = quote(whole[: len(whole) - len(below)])
    return (raw.removeprefix(mount), mount) if raw.startswith(mount) else (quote(below), mount)


async def _to_asgi(reply: Reply, receive: Receive, send: Send) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    length = len(reply.body) if isinstance(reply.body, bytes) and reply.length is None else reply.length
    if length is not None and reply.status != 304:
        headers.append((b"content-length", str(length).encode()))
    body = reply.body
    if isinstance(body, bytes):
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_close, body)
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async with asyncio.TaskGroup() as group:
            # A quiet stream would not notice that its reader has gone.
            sending = group.create_task(_send_all(body, send))
            leaving = group.create_task(_until_gone(receive, sending))
            await asyncio.wait([sending])
            leaving.cancel()


async def _send_all(body: AsyncIterator[bytes], send: Send) -> None:
    with contextlib.suppress(OSError):
        async for piece in body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _until_gone(receive: Receive, sending: "asyncio.Task[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    sending.cancel()


async def serve(
    manager: BatchManager,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_keys: Iterable[str] | None,
    on_ready: Callable[[str], None] | None = None,
    head_timeout: float = 15.0,
    max_connections: int | None = None,
    **options: Any,
) -> None:
    """Run the service until it is cancelled.

    Args:
        manager: Who does the work; opened and closed here, unless it is open already.
        host: Address to listen on.
        port: Port to listen on, 0 for any that is free.
        api_keys: As for `create_app`.
        on_ready: Told the URL as soon as it listens.
        head_timeout: Seconds in which the head of a request must arrive; then its connection is closed.
        max_connections: Connections at once; by default as many as the limit of descriptors of this process allows
            beside the jobs, 1000 at most. A new one closes the oldest that has no request in progress.
        **options: Further ones, as for `create_app`.

    Raises:
        OSError: The port is taken.
        RuntimeError: The batch manager has ended; whoever supervises the service must start it again.
        TypeError: An argument of another type.
        ValueError: A port that is none. It would listen to everybody and ask nobody for a key.
    """
    check_text(host=host)
    check_numbers(whole=True, optional=False, port=port)
    if not 0 <= port <= 65535:
        raise ValueError(f"port is 0 to 65535, not {port}")
    check_functions(on_ready=on_ready)
    check_numbers(whole=False, optional=False, head_timeout=head_timeout)
    check_numbers(whole=True, max_connections=max_connections)
    if head_timeout <= 0 or (max_connections is not None and max_connections < 1):
        raise ValueError(
            f"head_timeout is above 0 and max_connections at least 1, not {head_timeout} and {max_connections}"
        )
    # One that is given as a string or not as a list is refused below.
    keys = list(api_keys) if isinstance(api_keys, Iterable) and not isinstance(api_keys, str | bytes) else api_keys
    if keys is None and not options.get("allowed_hosts") and host not in {"127.0.0.1", "::1", "localhost"}:
        raise ValueError("without API keys it listens on loopback only; give api_keys, or allowed_hosts behind a proxy")
    app = create_app(manager, api_keys=keys, **options)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=5.0, keepalive_timeout=_KEEP_ALIVE
    )

    def protocol() -> asyncio.Protocol:
        assert runner.server is not None
        return cast("asyncio.Protocol", runner.server())

    listener = Listener(protocol, host, port, head_timeout=head_timeout, limit=max_connections)
    app.middlewares.append(_watched_by(listener))
    await runner.setup()
    try:
        async with listener.listening() as bound:
            if on_ready is not None:
                shown = f"[{host}]" if ":" in host else host
                on_ready(f"http://{shown}:{bound}")
            await manager.wait_ended()
        raise RuntimeError("the batch manager was closed under its service")
    finally:
        await runner.cleanup()


def _watched_by(listener: Listener) -> Any:
    """Make a middleware that tells a listener which of its connections have a request in progress."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        connection = listener.connection_of(request.transport)
        if connection is not None:
            connection.begin()
        try:
            response: web.StreamResponse = await handler(request)
            return response
        finally:
            if connection is not None:
                connection.end()

    return middleware
