"""What crosses the transport: requests, whole answers, and aiohttp's exceptions in our words."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Literal

import aiohttp
import msgspec
from multidict import CIMultiDictProxy

from wme_async._protocol.answer import bare_url
from wme_async.errors import ConnectFailed, Interrupted, TimedOut, TransportError

__all__ = ["Request", "Response", "Role", "translate"]

Role = Literal["auth", "api", "realtime", "store", "public"]
"""Whom a request is for: the three WME hosts, the object store behind them, or a URL that a user named."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, without credentials.

    Args:
        method: `GET`, `POST` or `HEAD`.
        role: Whom it is for.
        path: Path on the role's host, percent-encoded; for `store` and `public` the absolute URL, sent byte for byte.
        headers: Further headers.
        body: Bytes to send.
        token: Send the bearer token. Refused for `store` and `public`.
        repeatable: Asking twice does no harm. Otherwise only a failed connection is tried again.
        pool: The monthly allowance it is counted in, if any.
        product: What it asks for, in words, for the message of a 403.
    """

    method: str = "GET"
    role: Role = "api"
    path: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    token: bool = False
    repeatable: bool = True
    pool: str | None = None
    product: str | None = None

    def __post_init__(self) -> None:
        """Keep credentials at home."""
        if self.token and self.role in {"store", "public"}:
            raise ValueError(f"a token must not be sent to a host of role {self.role!r}")


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer with a status below 400.

    Args:
        status: HTTP status; 3xx are not followed.
        headers: Looked up without regard to case.
        body: The bytes.
        url: What was asked, with its query.
    """

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    url: str


def translate(error: BaseException, *, url: str, timeout: float | None = None) -> TransportError | None:
    """Say one of aiohttp's exceptions in our words; None where it is not the network's doing.

    Args:
        error: What was raised.
        url: What was asked.
        timeout: Seconds of silence that were allowed, for the message.
    """
    shown = bare_url(url)
    text = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        # It carries the request's headers, the token among them.
        error.request_info = None  # type: ignore[assignment]  # its own formatting does not need it
        error.headers = None
        error.history = ()
        text = f"{type(error).__name__}: {error.message}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ConnectFailed(f"could not connect to {shown} in time", url=shown)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        silence = f" for {timeout:g} s" if timeout else ""
        return TimedOut(f"{shown} sent nothing{silence}", url=shown)
    if isinstance(
        error,
        aiohttp.ClientConnectorError
        | aiohttp.ServerFingerprintMismatch
        | aiohttp.ClientProxyConnectionError
        | aiohttp.ClientHttpProxyError
        | ssl.SSLCertVerificationError,
    ):
        return ConnectFailed(f"could not connect to {shown}: {text}", url=shown)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError | EOFError):
        return Interrupted(f"the connection to {shown} broke: {text}", url=shown)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return TransportError(f"{shown} is not a URL that can be fetched", url=shown)
    if isinstance(error, aiohttp.ClientError):
        return TransportError(f"{shown} did not answer in proper HTTP: {text}", url=shown)
    return None
