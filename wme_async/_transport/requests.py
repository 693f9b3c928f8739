"""What crosses the transport: requests, whole answers, and aiohttp's exceptions in our words."""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal

import aiohttp
import msgspec
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from wme_async._transport.error_responses import bare_url
from wme_async.errors import ConnectFailed, Interrupted, TimedOut, TransportError

__all__ = [
    "Accepts",
    "AddressBlocked",
    "Request",
    "RequestCounter",
    "Response",
    "Role",
    "count_requests",
    "request_counter",
    "translate",
]

Accepts = Literal["body", "empty", "redirect", "any"]
"""Which statuses below 400 are the answer to a request: see `_transport.error_responses.is_accepted`."""

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
        streaming: Its answer has no end, as that of a stream: it does not take one of the connections that are bounded.
        idempotent: Asking twice does no harm. Otherwise only a failed connection is tried again.
        pool: The monthly allowance it is counted in, if any.
        product: What it asks for, in words, for the message of a 403.
        accepts: Which statuses below 400 are its answer; all others are errors.
        secret_path: The path is a secret, as that of most webhooks, and is not logged.
    """

    method: str = "GET"
    role: Role = "api"
    path: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    token: bool = False
    streaming: bool = False
    idempotent: bool = True
    pool: str | None = None
    product: str | None = None
    accepts: Accepts = "body"
    secret_path: bool = False

    def __post_init__(self) -> None:
        """Keep credentials at home."""
        if self.token and self.role in {"store", "public"}:
            raise ValueError(f"a token must not be sent to a host of role {self.role!r}")


class RequestCounter:
    """Counts the requests of a task, and of those that it starts.

    Attributes:
        sent: Requests to the API and the object store, each attempt counted.
    """

    def __init__(self) -> None:
        self.sent = 0


request_counter: ContextVar[RequestCounter | None] = ContextVar("request_counter", default=None)
"""Where the requests of the present task are counted, if anywhere."""


@contextmanager
def count_requests() -> Iterator[RequestCounter]:
    """Count the requests of the present task within the block, and of the tasks that are started there."""
    token = request_counter.set(counter := RequestCounter())
    try:
        yield counter
    finally:
        request_counter.reset(token)


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


class AddressBlocked(OSError):
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
    if _permanent(error) or _tls_refusal(error):
        ours.permanent = True
    return ours


# What an alert or an error of OpenSSL is named where the two sides will never agree, and what to do about it. What may
# pass, such as INTERNAL_ERROR or an end of the connection, is not here.
_TLS_REFUSALS: Final[tuple[tuple[str, str], ...]] = (
    ("CERTIFICATE_REQUIRED", "the server asks for a client certificate; give one in SessionPool(ssl=...)"),
    ("WRONG_VERSION_NUMBER", "what answers does not speak TLS; is it http, or a proxy in between?"),
    ("UNKNOWN_PROTOCOL", "what answers does not speak TLS; is it http, or a proxy in between?"),
    ("HTTP_REQUEST", "what answers does not speak TLS; is it http, or a proxy in between?"),
    ("PROTOCOL_VERSION", "there is no TLS version that both sides allow"),
    ("UNSUPPORTED_PROTOCOL", "there is no TLS version that both sides allow"),
    ("VERSION_TOO_LOW", "there is no TLS version that both sides allow"),
    ("NO_PROTOCOLS_AVAILABLE", "there is no TLS version that both sides allow"),
    ("INAPPROPRIATE_FALLBACK", "there is no TLS version that both sides allow"),
    ("HANDSHAKE_FAILURE", "there is no cipher that both sides allow, or the server asks for a client certificate"),
    ("NO_SHARED_CIPHER", "there is no cipher that both sides allow"),
    ("NO_CIPHERS_AVAILABLE", "there is no cipher that both sides allow"),
    ("INSUFFICIENT_SECURITY", "there is no cipher that both sides allow"),
    ("KEY_TOO_SMALL", "the server's key is too small for this system's rules"),
    ("LEGACY_RENEGOTIATION", "the server needs a renegotiation that this system does not allow"),
    ("UNRECOGNIZED_NAME", "the server does not serve this name"),
    ("NO_APPLICATION_PROTOCOL", "the server does not speak HTTP/1.1 there"),
    ("BAD_CERTIFICATE", "the server does not accept the client certificate"),
    ("CERTIFICATE_EXPIRED", "the server does not accept the client certificate"),
    ("CERTIFICATE_REVOKED", "the server does not accept the client certificate"),
    ("CERTIFICATE_UNKNOWN", "the server does not accept the client certificate"),
    ("UNSUPPORTED_CERTIFICATE", "the server does not accept the client certificate"),
    ("UNKNOWN_CA", "the server does not accept the client certificate"),
    ("ACCESS_DENIED", "the server does not accept the client certificate"),
)


def _tls_refusal(error: BaseException) -> str:
    """Say why TLS will not come about, and what to do; empty where another attempt may succeed."""
    for cause in (error, getattr(error, "os_error", None), error.__cause__):
        reason = getattr(cause, "reason", None) if isinstance(cause, ssl.SSLError) else None
        if reason:
            return next((advice for name, advice in _TLS_REFUSALS if name in reason), "")
    return ""


def _permanent(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        # The proxy's own rules; what it says of the host behind it is a 5xx.
        return 400 <= error.status < 500 and error.status not in {408, 425, 429}
    return isinstance(
        error,
        aiohttp.InvalidURL
        | aiohttp.NonHttpUrlClientError
        | aiohttp.ServerFingerprintMismatch
        | ssl.SSLCertVerificationError,
    ) or isinstance(getattr(error, "os_error", None), AddressBlocked | ssl.SSLCertVerificationError)


def _ours(error: BaseException, text: str, shown: str, timeout: float | None) -> TransportError:
    if refusal := _tls_refusal(error):
        return ConnectFailed(f"could not connect to {shown}: {refusal} ({text})", url=shown)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        advice = {403: "its rules do not allow this host", 407: "it wants a user name and password"}.get(error.status)
        words = f"the proxy refused with HTTP {error.status}" + (f": {advice}" if advice else "")
        return ConnectFailed(f"could not connect to {shown}: {words}", url=shown)
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
