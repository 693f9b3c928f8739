"""All client I/O: sessions, tokens, limits, retries, and one translation of foreign errors."""

from wme_async._transport._takeover import Sink
from wme_async._transport.auth import Credentials, TokenKeeper
from wme_async._transport.body import Body
from wme_async._transport.core import Transport
from wme_async._transport.pool import SessionPool
from wme_async._transport.tokenfile import TokenFile
from wme_async._transport.wire import Request, Response, Role

__all__ = [
    "Body",
    "Credentials",
    "Request",
    "Response",
    "Role",
    "SessionPool",
    "Sink",
    "TokenFile",
    "TokenKeeper",
    "Transport",
]
