"""What crosses the door of the service, whichever web framework holds it: a call, and a reply."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["Call", "Problems", "Refused", "Reply", "headers_of", "json_reply"]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Args:
        method: In capitals.
        path: Below the place where the service is mounted, percent-encoded, with its leading slash.
        query: The last value of each name.
        headers: By name in lower case; of repeated ones the last.
        repeated: Names in lower case of headers that came with several different values.
        base: URL of the place where the service is mounted, without a slash at its end.
        read: Returns the body, or raises `Refused` if it is longer than it is given bytes for.
        client: Where it comes from, for limits where there are no keys.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    base: str
    read: Callable[[int], Awaitable[bytes]]
    client: str = ""
    repeated: frozenset[str] = frozenset()


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Args:
        status: HTTP status.
        headers: To send.
        body: All of it, or a stream of pieces.
        length: Bytes of a stream, None where unknown.
    """

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes | AsyncIterator[bytes] = b""
    length: int | None = None


class Detail(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request.

    Args:
        what: The URL or the name of the field.
        reason: Why, in words.
    """

    what: str
    reason: str


class Problems(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error answer.

    Args:
        status: The HTTP status.
        code: A word for programs.
        message: A sentence for people.
        details: Each thing that is wrong, where there are several.
    """

    status: int
    code: str
    message: str
    details: tuple[Detail, ...] = ()


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        code: A word for programs.
        message: A sentence for people.
        details: What and why, for each thing that is wrong.
        headers: To send with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: tuple[tuple[str, str], ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.problems: Problems = Problems(
            status=status, code=code, message=message, details=tuple(Detail(*each) for each in details)
        )
        self.headers: dict[str, str] = dict(headers or {})

    def reply(self) -> Reply:
        """Return the answer."""
        return json_reply(self.problems, status=self.problems.status, headers=self.headers)


def headers_of(lines: Iterable[tuple[str, str]]) -> tuple[dict[str, str], frozenset[str]]:
    """Return headers by name in lower case, and the names that came with several different values.

    Args:
        lines: Name and value of each header line.
    """
    headers: dict[str, str] = {}
    repeated = set()
    for name, value in lines:
        lowered = name.lower()
        if headers.setdefault(lowered, value) != value:
            repeated.add(lowered)
            headers[lowered] = value
    return headers, frozenset(repeated)


def json_reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a value as JSON."""
    return Reply(
        status=status,
        headers={"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})},
        body=msgspec.json.encode(value),
    )
