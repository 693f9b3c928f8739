"""Errors of the SDK as HTTP responses of your own web service.

    app = web.Application(middlewares=[aiohttp_errors])                    # aiohttp
    app.add_exception_handler(WMEError, starlette_errors)                  # Starlette, FastAPI
    app = Litestar(..., exception_handlers={WMEError: litestar_errors})    # Litestar

The status and the code of each:

- `NotFound`: 404, `not_found`
- `RateLimited`, `QuotaExceeded`: 429 with `Retry-After` where it is known, `rate_limited`, `quota_exceeded`
- `ConnectFailed`, `ClientClosed`: 503 with `Retry-After`, `unavailable`
- `TimedOut`, `IdleTimeout`: 504, `timeout`
- any other: 502, `bad_gateway`

A refused sign-in or a missing permission is 502 too: it is this service that lacks it, not its caller. The body is the
JSON of `Problems`, as of the batch service. Its `message` says what happened in general words; the error's own, which
may name hosts and paths, goes to the log `wme_async.web`.
"""

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from wme_async.errors import (
    ClientClosed,
    ConnectFailed,
    IdleTimeout,
    NotFound,
    QuotaExceeded,
    RateLimited,
    TimedOut,
    WMEError,
)
from wme_async.web.messages import Problems

if TYPE_CHECKING:
    from litestar import Request as LitestarRequest
    from litestar import Response as LitestarResponse
    from starlette.requests import Request as StarletteRequest
    from starlette.responses import Response as StarletteResponse

__all__ = ["ErrorResponse", "aiohttp_errors", "error_response", "litestar_errors", "starlette_errors"]

_logger = logging.getLogger("wme_async.web")

_RETRY_AFTER: Final = 5  # seconds, where a service that cannot be reached gives none
_MEDIA_TYPE: Final = "application/json"

_ROWS: Final[list[tuple[type[WMEError], int, str, str]]] = [
    (NotFound, 404, "not_found", "The resource does not exist."),
    (QuotaExceeded, 429, "quota_exceeded", "The monthly allowance for this data is used up."),
    (RateLimited, 429, "rate_limited", "Too many requests are sent for this data: try again later."),
    (ConnectFailed, 503, "unavailable", "The source of this data cannot be reached: try again later."),
    (ClientClosed, 503, "unavailable", "This service is shutting down: try again later."),
    (TimedOut, 504, "timeout", "The source of this data did not respond in time."),
    (IdleTimeout, 504, "timeout", "The source of this data did not respond in time."),
    (WMEError, 502, "bad_gateway", "The source of this data gave no usable response."),
]


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP response for an error, for frameworks that this module does not know.

    Attributes:
        status: HTTP status.
        headers: `Content-Type`, `Cache-Control`, and `Retry-After` where waiting helps.
        body: `Problems` as JSON.
    """

    status: int
    headers: dict[str, str]
    body: bytes


def error_response(error: WMEError) -> ErrorResponse:
    """Return the HTTP response for an error, by the table above."""
    status, code, message = next(row[1:] for row in _ROWS if isinstance(error, row[0]))
    headers = {"Content-Type": _MEDIA_TYPE, "Cache-Control": "no-store"}
    seconds = getattr(error, "retry_after", None)
    if seconds is None and status == 503:
        seconds = _RETRY_AFTER
    if seconds is not None and status in {429, 503}:
        headers["Retry-After"] = str(max(0, math.ceil(seconds)))
    if status != 404:
        _logger.warning("responding with %d: %s", status, error)
    return ErrorResponse(
        status=status,
        headers=headers,
        body=msgspec.json.encode(Problems(status=status, code=code, message=message)),
    )


@web.middleware
async def aiohttp_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turn errors of the SDK into responses: a middleware of aiohttp.

    Raises:
        WMEError: The response has begun already, so that it can only be cut.
    """
    try:
        response: web.StreamResponse = await handler(request)
    except WMEError as error:
        if request.writer.output_size:  # another response would end up inside the one that has begun
            raise
        answer = error_response(error)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
    return response


async def starlette_errors(request: "StarletteRequest", error: Exception) -> "StarletteResponse":
    """Turn an error of the SDK into a response: an exception handler of Starlette and FastAPI."""
    from starlette.responses import Response  # noqa: PLC0415 - not a dependency

    del request
    assert isinstance(error, WMEError)
    answer = error_response(error)
    return Response(answer.body, status_code=answer.status, headers=answer.headers)


def litestar_errors(request: "LitestarRequest[Any, Any, Any]", error: Exception) -> "LitestarResponse[bytes]":
    """Turn an error of the SDK into a response: an exception handler of Litestar."""
    from litestar import Response  # noqa: PLC0415 - not a dependency

    del request
    assert isinstance(error, WMEError)
    answer = error_response(error)
    return Response(answer.body, status_code=answer.status, headers=answer.headers, media_type=_MEDIA_TYPE)
