"""Requests, whole responses, and the translation of aiohttp's exceptions."""

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal

import aiohttp
import msgspec
from aiohttp.http_exceptions import ContentEncodingError, ContentLengthError, HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from wme_async._transport.error_responses import bare_url
from wme_async._transport.retry import TEMPORARY
from wme_async.errors import ConnectFailed, Interrupted, TimedOut, TransportError

Accepts = Literal["body", "empty", "redirect", "any"]
"""Which statuses below 400 a request accepts: see `_transport.error_responses.is_accepted`."""

Role = Literal["auth", "api", "realtime", "store", "public"]
"""The host of a request: one of the three of WME, the object store behind them, or any host of a user's URL."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, without credentials.

    Args:
        method: `GET`, `POST` or `HEAD`.
        role: Its host.
        path: Path on the role's host, percent-encoded; for `store` and `public` the absolute URL, sent byte for byte.
        headers: Further headers.
        body: Bytes to send.
        token: Send the bearer token; not for `store` and `public`.
        streaming: The response has no end, so it does not count towards `Limits.connections`.
        idempotent: Sending it twice does no harm. Others are retried after a failed connection alone.
        pool: The monthly allowance that counts it, if any.
        product: The name of the product, for the message of a 403.
        accepts: Which statuses below 400 are not errors.
        secret_path: The path is a secret, as that of most webhooks, and is not logged.

    Raises:
        ValueError: A token would be sent to another host than those of WME.
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
        """Check that the token goes to WME alone."""
        if self.token and self.role in {"store", "public"}:
            raise ValueError(f"a token must not be sent to a host of role {self.role!r}")


class RequestCounter(msgspec.Struct):
    """Counts the requests of a task, and of those that it starts.

    Attributes:
        sent: Requests to the API and the object store, each attempt counted.
    """

    sent: int = 0


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
    """A whole response with a status that the request accepts.

    Args:
        status: HTTP status; redirects are not followed.
        headers: Case-insensitive.
        body: The bytes.
        url: The URL of the request, with its query.
    """

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    url: str


class AddressBlocked(OSError):
    """The guard of the pool blocks an address that a name resolves to."""


def translate(error: Exception, *, url: str, timeout: float | None = None) -> TransportError:
    """Return the error of ours for an exception of the network or of aiohttp.

    aiohttp raises `AssertionError` and `RuntimeError` too, where a connection is lost under its feet.

    Args:
        error: The exception. Secrets are removed from it, since it becomes the cause of ours.
        url: The URL of the request.
        timeout: Seconds of silence that the request allows, for the message.
    """
    url = bare_url(url)
    text = _without_secrets(error, url)
    advice = _tls_advice(error)
    if advice:
        translation: TransportError = ConnectFailed(f"could not connect to {url}: {advice} ({text})", url=url)
    else:
        cls, message = next((cls, message) for types, cls, message in _TRANSLATIONS if isinstance(error, types))
        silence = f" for {timeout:g} s" if timeout else ""
        translation = cls(message(error).format(url=url, text=text, silence=silence), url=url)
    if advice or _is_permanent(error):
        translation.permanent = True
    return translation


def _without_secrets(error: Exception, url: str) -> str:
    """Remove tokens, signatures and passwords from an exception, and return its message in one line."""
    text = _without_quotes(error)
    if isinstance(error, aiohttp.ClientResponseError):
        # It carries the headers of the request, the token among them.
        headers: CIMultiDict[str] = CIMultiDict()
        address = URL(url)
        error.request_info = aiohttp.RequestInfo(address, error.request_info.method, CIMultiDictProxy(headers), address)
        error.headers = None
        error.history = ()
        error.args = (error.request_info, ())
        error.message = text
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        # It carries the whole URL, with a signature or a password in it.
        error.args = (url,)
        vars(error).update({"_url": url, "_description": None})
    key = getattr(error, "_conn_key", None)
    if isinstance(error, aiohttp.ClientConnectorError) and key is not None:
        # It carries the proxy with its password.
        error._conn_key = key._replace(proxy=None, proxy_auth=None)  # noqa: SLF001  # it has no public setter
        error.args = (error._conn_key, *error.args[1:])  # noqa: SLF001  # same
    return text


def _without_quotes(error: Exception) -> str:
    """Return the message of an exception in one line, without the bytes of the response that aiohttp's parser quotes.

    A malformed response to a sign-in may have the tokens in these bytes. They are removed from the exception, too.
    """
    parser_error: BaseException = error
    while parser_error.__cause__ is not None:
        parser_error = parser_error.__cause__
    message = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    if isinstance(parser_error, HttpProcessingError):
        if isinstance(error, aiohttp.ClientPayloadError):
            error.args = (type(parser_error).__name__,)
        error.__cause__ = error.__context__ = None
    if isinstance(parser_error, ContentLengthError | ContentEncodingError):
        # Their messages are of aiohttp alone.
        return " ".join(parser_error.message.split()) or type(parser_error).__name__
    if isinstance(parser_error, HttpProcessingError):
        # The C parser says the problem in lines of its own, before the bytes; the other one has the bytes in between.
        problem, paragraph, _ = message.partition("\n\n")
        words = " ".join(problem.split()).rstrip(":") if paragraph else ""
        return ": ".join(filter(None, (type(parser_error).__name__, words)))
    return " ".join(message.split()) or type(error).__name__


def _proxy_message(error: Any) -> str:
    advice = {403: ": its rules do not allow this host", 407: ": it requires a user name and password"}
    return f"could not connect to {{url}}: the proxy responds with HTTP {error.status}{advice.get(error.status, '')}"


# The first row whose types match translates an exception; the order goes from special types to general ones.
_TRANSLATIONS: Final[tuple[tuple[Any, type[TransportError], Callable[[Any], str]], ...]] = (
    (aiohttp.ClientHttpProxyError, ConnectFailed, _proxy_message),
    (aiohttp.ConnectionTimeoutError, ConnectFailed, lambda _: "could not connect to {url} in time"),
    (TimeoutError, TimedOut, lambda _: "{url} sent nothing{silence}"),
    (
        aiohttp.ClientConnectorError
        | aiohttp.ServerFingerprintMismatch
        | aiohttp.ClientProxyConnectionError
        | ssl.SSLCertVerificationError,
        ConnectFailed,
        lambda _: "could not connect to {url}: {text}; check the network and the address",
    ),
    (
        aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError | EOFError | AssertionError | RuntimeError,
        Interrupted,
        lambda _: "the connection to {url} broke: {text}",
    ),
    (
        aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError,
        TransportError,
        lambda _: "{url} is not a URL that can be fetched",
    ),
    (Exception, TransportError, lambda _: "the response of {url} is not proper HTTP: {text}"),
)

_NO_TLS: Final = "the server does not speak TLS; is it http, or is a proxy in between?"
_NO_VERSION: Final = "there is no TLS version that both sides allow"
_CERTIFICATE_REJECTED: Final = "the server rejects the client certificate"

# Alerts and errors of OpenSSL after which the two sides will never agree, with advice. Errors that may pass, such as
# INTERNAL_ERROR, are not listed.
_TLS_REFUSALS: Final[tuple[tuple[str, str], ...]] = (
    ("CERTIFICATE_REQUIRED", "the server asks for a client certificate; give one in SessionPool(ssl=...)"),
    ("WRONG_VERSION_NUMBER", _NO_TLS),
    ("UNKNOWN_PROTOCOL", _NO_TLS),
    ("HTTP_REQUEST", _NO_TLS),
    ("PROTOCOL_VERSION", _NO_VERSION),
    ("UNSUPPORTED_PROTOCOL", _NO_VERSION),
    ("VERSION_TOO_LOW", _NO_VERSION),
    ("NO_PROTOCOLS_AVAILABLE", _NO_VERSION),
    ("INAPPROPRIATE_FALLBACK", _NO_VERSION),
    ("HANDSHAKE_FAILURE", "there is no cipher that both sides allow, or the server asks for a client certificate"),
    ("NO_SHARED_CIPHER", "there is no cipher that both sides allow"),
    ("NO_CIPHERS_AVAILABLE", "there is no cipher that both sides allow"),
    ("INSUFFICIENT_SECURITY", "there is no cipher that both sides allow"),
    ("KEY_TOO_SMALL", "the server's key is too small for this system's rules"),
    ("LEGACY_RENEGOTIATION", "the server needs a renegotiation that this system does not allow"),
    ("UNRECOGNIZED_NAME", "the server does not serve this name"),
    ("NO_APPLICATION_PROTOCOL", "the server does not speak HTTP/1.1 there"),
    ("BAD_CERTIFICATE", _CERTIFICATE_REJECTED),
    ("CERTIFICATE_EXPIRED", _CERTIFICATE_REJECTED),
    ("CERTIFICATE_REVOKED", _CERTIFICATE_REJECTED),
    ("CERTIFICATE_UNKNOWN", _CERTIFICATE_REJECTED),
    ("UNSUPPORTED_CERTIFICATE", _CERTIFICATE_REJECTED),
    ("UNKNOWN_CA", _CERTIFICATE_REJECTED),
    ("ACCESS_DENIED", _CERTIFICATE_REJECTED),
)


def _tls_advice(error: BaseException) -> str:
    """Return why TLS cannot succeed, with advice; empty where another attempt may succeed."""
    for cause in (error, getattr(error, "os_error", None), error.__cause__):
        reason = getattr(cause, "reason", None) if isinstance(cause, ssl.SSLError) else None
        if reason:
            return next((advice for name, advice in _TLS_REFUSALS if name in reason), "")
    return ""


def _is_permanent(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        # Rules of the proxy; its statuses about the host behind it are 5xx.
        return 400 <= error.status < 500 and error.status not in TEMPORARY | {429}
    return isinstance(
        error,
        aiohttp.InvalidURL
        | aiohttp.NonHttpUrlClientError
        | aiohttp.ServerFingerprintMismatch
        | ssl.SSLCertVerificationError,
    ) or isinstance(getattr(error, "os_error", None), AddressBlocked | ssl.SSLCertVerificationError)
