"""Whether a body without a length is whole: only if the server itself ended its connection in good order.

aiohttp hands out the end of such a body whatever ended the connection: a reset, a TLS connection that was cut, or our
own session being closed. RFC 9112, sections 8 and 9.8, calls all of these incomplete.
"""

import ssl
from typing import Any

import aiohttp

__all__ = ["BodyEnd", "Response", "ends_with_connection", "unsupported_coding"]

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
    """Says how the connection of a body without a length ended.

    Args:
        response: An answer whose body nobody has read yet.
    """

    __slots__ = ("_protocol", "_tls")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        connection = response.connection
        # aiohttp lets go of a connection that has ended before its head was read; the protocol is still known then.
        self._protocol: Any = connection.protocol if connection is not None else getattr(response, "_protocol", None)
        transport = connection.transport if connection is not None else None
        self._tls: Any = getattr(response, "tls", None) or (
            transport.get_extra_info("ssl_object") if transport is not None else None
        )

    def trouble(self) -> str | None:
        """Return why the body is not known to be whole, None where it is. Call it once the body has ended."""
        lost = self._protocol.exception() if hasattr(self._protocol, "exception") else None
        if lost is not None and not isinstance(lost, aiohttp.ServerDisconnectedError):
            return f"{type(lost).__name__}: {lost}"
        if self._tls is not None and not _tls_closed(self._tls):
            return "the TLS connection ended without close_notify"
        return None


def ends_with_connection(response: aiohttp.ClientResponse) -> bool:
    """Say whether the end of the connection is the only end that a body has."""
    headers = response.headers
    return (
        "Content-Length" not in headers
        and not _is_chunked(headers.get("Transfer-Encoding", ""))
        and response.status not in _BODILESS
        and response.method != "HEAD"
    )


def unsupported_coding(response: aiohttp.ClientResponse) -> str | None:
    """Return the transfer coding of a body that nobody here undoes, None where there is none.

    aiohttp undoes `chunked` alone. Other codings are part of the message and not of the file (RFC 9112, section 7), and
    a server must not use them unasked.
    """
    if "Transfer-Encoding" not in response.headers:
        return None
    codings = ", ".join(response.headers.getall("Transfer-Encoding", ()))
    names = [name.strip().lower() for name in codings.split(",")]
    if names and names[-1] == "chunked":
        names.pop()
    return codings if any(name not in {"", "identity"} for name in names) else None


def _is_chunked(codings: str) -> bool:
    return codings.rpartition(",")[2].strip().lower() == "chunked"


def _tls_closed(tls: Any) -> bool:
    """Say whether the peer has closed a TLS connection by close_notify."""
    try:
        # Nothing is left to read, so this only asks OpenSSL for the state of the connection.
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except (ssl.SSLError, OSError, ValueError):
        return False
