"""Requests and responses of the service, the same for every web framework."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import msgspec

# Seconds in which a whole request body must arrive; it has a megabyte at most.
_BODY_TIMEOUT = 60.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request.

    Args:
        method: In capitals.
        path: Below the mount point of the service, percent-encoded, with its leading slash.
        query: The last value of each name.
        headers: By name in lower case; the last value where a header is repeated.
        repeated: Names in lower case of headers that came with several different values.
        base: URL of the mount point, without a slash at its end.
        body: The body in chunks.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    base: str
    body: AsyncGenerator[bytes, None]
    repeated: frozenset[str] = frozenset()

    async def read(self, limit: int) -> bytes:
        """Return the body.

        Args:
            limit: Bytes that it may have.

        Raises:
            HTTPProblem: 413 if it is longer, 408 if it does not arrive in time.
        """
        too_large = HTTPProblem(413, "too_large", f"the body is larger than {limit} bytes", headers=_CLOSE)
        length = self.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT), contextlib.aclosing(self.body) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            message = f"the body did not arrive within {_BODY_TIMEOUT:.0f} s"
            raise HTTPProblem(408, "too_slow", message, headers=_CLOSE) from None
        return bytes(body)


_CLOSE = {"Connection": "close"}


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response.

    Args:
        status: HTTP status.
        headers: Headers, except `Content-Length`.
        body: The whole body, or a generator of chunks.
        endless: Whether a body of chunks goes on until the service ends it.
        length: Bytes of the body where `body` does not tell: of a generator, or of the response to a HEAD request.
    """

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes | AsyncGenerator[bytes, None] = b""
    length: int | None = None
    endless: bool = False


class Detail(msgspec.Struct, frozen=True):
    """One problem of a request.

    Args:
        what: The URL or the name of the field.
        reason: The reason, as a sentence.
    """

    what: str
    reason: str


class Problems(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error response.

    Args:
        status: The HTTP status.
        code: A word for programs.
        message: A sentence for people.
        details: Each problem, where there are several.
    """

    status: int
    code: str
    message: str
    details: tuple[Detail, ...] = ()


class HTTPProblem(Exception):
    """An error response.

    Args:
        status: The HTTP status.
        code: A word for programs.
        message: A sentence for people.
        details: URL or field and reason of each problem.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self._problems = Problems(
            status=status, code=code, message=message, details=tuple(Detail(*detail) for detail in details)
        )
        self._headers = headers

    def response(self) -> Response:
        """Return the response."""
        return json_response(self._problems, status=self._problems.status, headers=self._headers)


def parse_headers(lines: Iterable[tuple[str, str]]) -> tuple[dict[str, str], frozenset[str]]:
    """Return headers by name in lower case, and the names that came with several different values.

    Args:
        lines: Name and value of each header line.
    """
    headers: dict[str, str] = {}
    repeated = set()
    for name, value in lines:
        key = name.lower()
        if headers.setdefault(key, value) != value:
            repeated.add(key)
            headers[key] = value
    return headers, frozenset(repeated)


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a value as JSON."""
    return Response(
        status=status,
        headers={"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})},
        body=msgspec.json.encode(value),
    )
