"""The HTTP layer: sessions, tokens, limits, retries, and the translation of errors."""

from wme_async._transport.auth import Credentials, TokenManager
from wme_async._transport.body import Body
from wme_async._transport.client import Transport
from wme_async._transport.fast_body import Sink
from wme_async._transport.requests import Request, Response, Role, count_requests
from wme_async._transport.sessions import SessionPool
from wme_async._transport.token_file import TokenFile

__all__ = [
    "Body",
    "Credentials",
    "Request",
    "Response",
    "Role",
    "SessionPool",
    "Sink",
    "TokenFile",
    "TokenManager",
    "Transport",
    "count_requests",
]
