"""The service as an aiohttp application, and as a server of its own."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Unpack, cast
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from wme_async._arguments import check_functions, check_numbers, check_text
from wme_async.jobs import BatchManager
from wme_async.web.endless import send_aiohttp
from wme_async.web.messages import HTTPProblem, Request, Response, parse_headers
from wme_async.web.server import Listener
from wme_async.web.service import Service, ServiceOptions

logger: logging.Logger = logging.getLogger("wme_async.web")
_http_logger = logging.getLogger("wme_async.web.http")

MANAGER: web.AppKey[BatchManager] = web.AppKey("wme_batch_manager", BatchManager)
"""Where the aiohttp application stores its manager."""

# Seconds in which a further request may come on a connection.
_KEEP_ALIVE = 75.0


def create_app(manager: BatchManager, **options: Unpack[ServiceOptions]) -> web.Application:
    """Make an aiohttp application of the batch service, to run or to give to `add_subapp`.

    Example:
        >>> app.add_subapp("/downloads/", create_app(manager, api_keys=[KEY]))  # doctest: +SKIP

    Args:
        manager: Opened when the application starts and closed when it begins to shut down, unless it is open already.
        **options: Keyword arguments:

            - `api_keys`, required: keys that callers send as `X-API-Key`, or their hashes (`hash_key`); each key gives
              access to everything. None requires no key: for loopback, and behind a proxy that authenticates.
            - `allowed_hosts`: names that callers may use for this service. By default any with keys, and those of
              loopback without: otherwise every web page that somebody reads on this machine could call it.
            - `create_rate`: new batches per second and key (default 1.0), None for no limit.
            - `create_burst`: new batches that may come at once (default 30).
            - `public_url`: the URL of the mount point as callers see it, for links to files. By default it comes from
              each request.

    Raises:
        TypeError: An argument of another type, such as a folder in place of the manager.
        ValueError: A key, URL or limit that cannot work.
    """
    service = Service(manager, **options)
    streams_ended = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await _send(request, await service.handle(_convert(request)), streams_ended)

    owned = False
    closing: asyncio.Task[None] | None = None

    async def run_manager(_app: web.Application) -> AsyncIterator[None]:
        nonlocal owned
        owned = manager.closing
        if owned:
            await manager.start()
        yield
        if owned:
            await (closing or manager.aclose())

    async def shut_down(_app: web.Application) -> None:
        """End the streams, for which the server would wait, and the jobs: an outer application closes their client."""
        nonlocal closing
        manager.end_streams()
        streams_ended.set()
        if owned:
            closing = asyncio.get_running_loop().create_task(manager.aclose())
            # `run_manager` raises its exception once the other handlers of the shutdown have run.
            await asyncio.wait([closing])

    app = web.Application()
    app[MANAGER] = manager
    app.cleanup_ctx.append(run_manager)
    app.on_shutdown.append(shut_down)
    # A full stop would leave paths with newlines to aiohttp's own response.
    app.router.add_route("*", r"/{tail:[\s\S]*}", handle)
    return app


def _convert(request: web.Request) -> Request:
    path, _, query = request.raw_path.partition("?")
    resource = request.match_info.route.resource
    # `add_subapp` puts its prefix in front of the pattern.
    prefix = (resource.canonical if resource is not None else "").partition("/{tail}")[0]
    headers, repeated = parse_headers(request.headers.items())
    return Request(
        method=request.method,
        path=path.removeprefix(prefix),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        headers=headers,
        base=f"{request.scheme}://{headers.get('host', '')}{prefix}".rstrip("/"),
        body=_chunks(request),
        repeated=repeated,
    )


async def _chunks(request: web.Request) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except web.RequestPayloadError:
        raise HTTPProblem(400, "bad_request", "the body does not have the encoding of its headers") from None


async def _send(request: web.Request, response: Response, streams_ended: asyncio.Event) -> web.StreamResponse:
    body = response.body
    headers = dict(response.headers)
    if response.length is not None:
        headers["Content-Length"] = str(response.length)
    if isinstance(body, bytes):
        return web.Response(status=response.status, headers=headers, body=body if response.length is None else None)
    stream = web.StreamResponse(status=response.status, headers=headers)
    async with contextlib.aclosing(body):
        await stream.prepare(request)
        if response.endless:
            await send_aiohttp(request, stream, body, streams_ended.wait)
            return stream
        with contextlib.suppress(ConnectionError):
            async for chunk in body:
                await stream.write(chunk)
            await stream.write_eof()
    return stream


async def serve(
    manager: BatchManager,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_ready: Callable[[str], None] | None = None,
    head_timeout: float = 15.0,
    max_connections: int | None = None,
    **options: Unpack[ServiceOptions],
) -> None:
    """Run the service until it is cancelled.

    Args:
        manager: Opened and closed here, unless it is open already.
        host: Address to listen on.
        port: Port to listen on, 0 for any that is free.
        on_ready: Called with the URL once the service listens.
        head_timeout: Seconds in which the head of a request must arrive; then its connection is closed.
        max_connections: Connections at once; by default as many as the limit of descriptors of this process allows
            beside the jobs, 1000 at most. A new one closes the oldest that has no request in progress.
        **options: `api_keys`, which is required, and the others of `create_app`.

    Raises:
        OSError: The port is not free.
        RuntimeError: The batch manager has ended; whoever supervises the service must start it again.
        TypeError: An argument of another type.
        ValueError: A number out of range; or everybody could call the service without a key.
    """
    check_text(host=host)
    check_numbers(whole=True, optional=False, port=port)
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be 0 to 65535, not {port}")
    check_functions(on_ready=on_ready)
    check_numbers(optional=False, above=0, unit="seconds", head_timeout=head_timeout)
    check_numbers(whole=True, minimum=1, max_connections=max_connections)
    app = create_app(manager, **options)
    if options["api_keys"] is None and not options.get("allowed_hosts") and host not in _LOOPBACK:
        raise ValueError("without API keys it listens on loopback only; give api_keys, or allowed_hosts behind a proxy")
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=5.0, keepalive_timeout=_KEEP_ALIVE,
        logger=_http_logger,
    )  # fmt: skip

    def protocol() -> asyncio.Protocol:
        assert runner.server is not None
        return cast("asyncio.Protocol", runner.server())

    listener = Listener(protocol, host, port, head_timeout=head_timeout, limit=max_connections)
    app.middlewares.append(_track_requests(listener))
    await runner.setup()
    try:
        async with listener.listening() as bound_port:
            if on_ready is not None:
                on_ready(f"http://{f'[{host}]' if ':' in host else host}:{bound_port}")
            await manager.wait_ended()
        raise RuntimeError("the batch manager was closed under its service")
    finally:
        await runner.cleanup()


_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _is_of_service(record: logging.LogRecord) -> bool:
    """Return whether a record of the HTTP server is about the service, not about a request that is malformed.

    Anybody can send such requests, and the server's tracebacks quote their bytes, which may be the key of a caller.
    """
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    logger.debug("a malformed request was answered with status 400 (%s)", type(error).__name__)
    return False


_http_logger.addFilter(_is_of_service)


def _track_requests(listener: Listener) -> Any:
    """Return a middleware that reports to a listener which of its connections have a request in progress."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        with listener.request_in_progress(request.transport):
            response: web.StreamResponse = await handler(request)
            return response

    return middleware
