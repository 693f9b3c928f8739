"""What crosses the transport: requests, whole answers, and aiohttp's exceptions in our words."""

import ssl
from collections.abc import Mapping
from typing import Literal

import aiohttp
import msgspec
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from wme_async._protocol.answer import bare_url
from wme_async.errors import ConnectFailed, Interrupted, TimedOut, TransportError

__all__ = ["Accepts", "Refused", "Request", "Response", "Role", "translate"]

Accepts = Literal["body", "empty", "redirect", "any"]
"""Which statuses below 400 are the answer to a request: see `_protocol.answer.is_answer`."""

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
        accepts: Which statuses below 400 are its answer; all others are errors.
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
    accepts: Accepts = "body"

    def __post_init__(self) -> None:
        """Keep credentials at home."""
        if self.token and self.role in {"store", "public"}:
            raise ValueError(f"a token must not be sent to a host of role {self.role!r}")


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer with a status that the request accepts.

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


class Refused(OSError):
    """A name resolves to an address that must not be connected to."""


def translate(error: Exception, *, url: str, timeout: float | None = None) -> TransportError:
    """Say one of the network's or aiohttp's exceptions in our words.

    aiohttp's `AssertionError` and `RuntimeError` are among them: some of its code finds a connection gone under it.

    Args:
        error: What was raised.
        url: What was asked.
        timeout: Seconds of silence that were allowed, for the message.
    """
    shown = bare_url(url)
    text = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        # It carries the request's headers, the token among them.
        none: CIMultiDict[str] = CIMultiDict()
        address = URL(shown)
        error.request_info = aiohttp.RequestInfo(address, error.request_info.method, CIMultiDictProxy(none), address)
        error.headers = None
        error.history = ()
        error.args = (error.request_info, ())
        text = f"{type(error).__name__}: {error.message}"
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        # It says the whole URL, with a signature or a password in it.
        error.args = (shown,)
        vars(error).update({"_url": shown, "_description": None})
    key = getattr(error, "_conn_key", None)
    if isinstance(error, aiohttp.ClientConnectorError) and key is not None:
        # It carries the proxy with its password.
        error._conn_key = key._replace(proxy=None, proxy_auth=None)  # noqa: SLF001  # there is no other way in
        error.args = (error._conn_key, *error.args[1:])  # noqa: SLF001  # same
    ours = _ours(error, text, shown, timeout)
    if _permanent(error):
        ours.permanent = True
    return ours


def _permanent(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return error.status == 407
    return isinstance(
        error,
        aiohttp.InvalidURL
        | aiohttp.NonHttpUrlClientError
        | aiohttp.ServerFingerprintMismatch
        | ssl.SSLCertVerificationError,
    ) or isinstance(getattr(error, "os_error", None), Refused | ssl.SSLCertVerificationError)


def _ours(error: BaseException, text: str, shown: str, timeout: float | None) -> TransportError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ConnectFailed(f"could not connect to {shown} in time", url=shown)
    if isinstance(error, TimeoutError):
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
    if isinstance(
        error,
        aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError | EOFError | AssertionError | RuntimeError,
    ):
        return Interrupted(f"the connection to {shown} broke: {text}", url=shown)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return TransportError(f"{shown} is not a URL that can be fetched", url=shown)
    return TransportError(f"{shown} did not answer in proper HTTP: {text}", url=shown)
