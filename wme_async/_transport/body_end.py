"""Whether a body without a length is whole: only if the server itself ended its connection in good order.

aiohttp hands out the end of such a body whatever ended the connection: a reset, a TLS connection that was cut, or our
own session being closed. RFC 9112, sections 8 and 9.8, calls all of these incomplete.
"""

import ssl
from typing import Any

import aiohttp

from wme_async._transport.error_responses import bare_url
from wme_async.errors import Interrupted, TransportError

__all__ = ["BodyEnd", "Response", "coding_error"]

_BODILESS = frozenset({204, 205, 304})


class Response(aiohttp.ClientResponse):
    """An answer that remembers the TLS object of its connection, which may be gone before the head has been read."""

    tls: "ssl.SSLObject | None" = None

    async def start(self, connection: Any) -> "Response":
        """Read the head of the answer."""
        transport = connection.transport
        self.tls = transport.get_extra_info("ssl_object") if transport is not None else None
        await super().start(connection)
        return self


class BodyEnd:
    """Knows how a body has to end.

    Args:
        response: An answer whose body nobody has read yet.
        session: Where it came from.
        url: What was asked.
    """

    __slots__ = ("_protocol", "_session", "_tls", "_url")

    def __init__(self, response: aiohttp.ClientResponse, session: aiohttp.ClientSession, *, url: str) -> None:
        self._session: aiohttp.ClientSession | None = None
        if not _ends_with_connection(response):
            return
        connection = response.connection
        self._session, self._url = session, url
        # aiohttp lets go of a connection that has ended before its head was read; the protocol is still known then.
        self._protocol: Any = connection.protocol if connection is not None else getattr(response, "_protocol", None)
        transport = connection.transport if connection is not None else None
        self._tls: Any = getattr(response, "tls", None) or (
            transport.get_extra_info("ssl_object") if transport is not None else None
        )

    def check(self) -> None:
        """Look at how the body has ended.

        Raises:
            Interrupted: It may not be whole: its only end is that of its connection, which was not in good order.
        """
        trouble = self._trouble()
        if trouble is not None:
            shown = bare_url(self._url)
            raise Interrupted(f"the connection to {shown} broke in a body of unknown length: {trouble}", url=shown)

    def _trouble(self) -> str | None:
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
    """Return the error for a body in a transfer coding that nobody here undoes, None where there is no such coding.

    aiohttp undoes `chunked` alone. Other codings are part of the message and not of the file (RFC 9112, section 7), and
    a server must not use them unasked.
    """
    if "Transfer-Encoding" not in response.headers:
        return None
    codings = ", ".join(response.headers.getall("Transfer-Encoding"))
    names = [name.strip().lower() for name in codings.split(",")]
    if names[-1] == "chunked":
        names.pop()
    if all(name in {"", "identity"} for name in names):
        return None
    shown = bare_url(str(response.url))
    error = TransportError(f"{shown} sent its answer in the transfer coding {codings!r} without being asked", url=shown)
    error.permanent = True
    return error


def _ends_with_connection(response: aiohttp.ClientResponse) -> bool:
    """Say whether the end of the connection is the only end that a body has."""
    headers = response.headers
    return (
        "Content-Length" not in headers
        and headers.get("Transfer-Encoding", "").rpartition(",")[2].strip().lower() != "chunked"
        and response.status not in _BODILESS
        and response.method != "HEAD"
    )


def _tls_closed(tls: Any) -> bool:
    """Say whether the peer has closed a TLS connection by close_notify."""
    try:
        # Nothing is left to read, so this only asks OpenSSL for the state of the connection.
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except (ssl.SSLError, OSError, ValueError):
        return False
