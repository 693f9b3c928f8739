"""Whether a body without a length is complete: only if the server closed the connection in the regular way.

aiohttp reports the end of such a body after a reset, a TLS connection without close_notify and the close of our own
session too. RFC 9112, sections 8 and 9.8, calls all of these incomplete.
"""

import ssl
from typing import Any

import aiohttp

from wme_async._transport.error_responses import bare_url
from wme_async.errors import Interrupted, TransportError


class Response(aiohttp.ClientResponse):
    """A response that keeps the TLS object of its connection, which may be gone before the head is read."""

    tls: "ssl.SSLObject | None" = None

    async def start(self, connection: Any) -> "Response":
        """Read the head of the response."""
        transport = connection.transport
        self.tls = transport.get_extra_info("ssl_object") if transport is not None else None
        await super().start(connection)
        return self


class BodyEnd:
    """Checks the end of a body.

    Args:
        response: A response whose body is unread.
        session: Its session.
        url: The URL of the request.
    """

    __slots__ = ("_protocol", "_session", "_tls", "_url")

    def __init__(self, response: aiohttp.ClientResponse, session: aiohttp.ClientSession, *, url: str) -> None:
        self._session: aiohttp.ClientSession | None = None
        if not _ends_with_connection(response):
            return
        connection = response.connection
        self._session, self._url = session, url
        # aiohttp releases a connection that ends before the head is read; the response still has its protocol then.
        self._protocol: Any = connection.protocol if connection is not None else getattr(response, "_protocol", None)
        transport = connection.transport if connection is not None else None
        self._tls: Any = getattr(response, "tls", None) or (
            transport.get_extra_info("ssl_object") if transport is not None else None
        )

    def check(self) -> None:
        """Check that the body is complete.

        Raises:
            Interrupted: The end of the connection alone marks that of the body, and it was not a regular close.
        """
        problem = self._problem()
        if problem is not None:
            url = bare_url(self._url)
            raise Interrupted(f"the connection to {url} broke in a body of unknown length: {problem}", url=url)

    def _problem(self) -> str | None:
        if self._session is None:
            return None
        if self._session.closed:
            return "it was closed on this side"
        lost = self._protocol.exception() if hasattr(self._protocol, "exception") else None
        if lost is not None and not isinstance(lost, aiohttp.ServerDisconnectedError):
            return f"{type(lost).__name__}: {lost}"
        if self._tls is not None and not _tls_closed(self._tls):
            return "the TLS connection ended without close_notify"
        return None


def coding_error(response: aiohttp.ClientResponse) -> TransportError | None:
    """Return the error for a body in an unsupported transfer coding; None if there is no such coding.

    aiohttp decodes `chunked` alone. Other codings belong to the message and not to the file (RFC 9112, section 7), and
    a server must not use them without a `TE` header in the request.
    """
    if "Transfer-Encoding" not in response.headers:
        return None
    codings = ", ".join(response.headers.getall("Transfer-Encoding"))
    names = [name.strip().lower() for name in codings.split(",")]
    if names[-1] == "chunked":
        names.pop()
    if all(name in {"", "identity"} for name in names):
        return None
    url = bare_url(str(response.url))
    error = TransportError(f"{url} sent the transfer coding {codings!r}, which the request does not allow", url=url)
    error.permanent = True
    return error


def _ends_with_connection(response: aiohttp.ClientResponse) -> bool:
    """Return whether the end of the connection alone marks the end of the body."""
    headers = response.headers
    return (
        "Content-Length" not in headers
        and headers.get("Transfer-Encoding", "").rpartition(",")[2].strip().lower() != "chunked"
        and response.status not in {204, 205, 304}
        and response.method != "HEAD"
    )


def _tls_closed(tls: Any) -> bool:
    """Return whether the peer has closed a TLS connection by close_notify."""
    try:
        # All data is read already, so this returns the state of the connection.
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except (ssl.SSLError, OSError, ValueError):
        return False
