"""The HTTP layer below the client, for the tests of its parts; this is their only import of it."""

from wme_async._transport import (  # private: no public way sends a request of any kind, or sets the clock of one
    Body,
    Credentials,
    Request,
    SessionPool,
    TokenFile,
    Transport,
    error_responses,
    fast_body,
    proxies,
    requests,
    retry,
    sessions,
    throttle,
    token_policy,
)

__all__ = [
    "Body",
    "Credentials",
    "Request",
    "SessionPool",
    "TokenFile",
    "Transport",
    "error_responses",
    "fast_body",
    "proxies",
    "requests",
    "retry",
    "sessions",
    "throttle",
    "token_policy",
]
