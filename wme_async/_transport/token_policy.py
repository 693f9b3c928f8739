"""Whether to use a token, refresh it, or sign in. Pure.

The rules are the server's: an access token lives for `expires_in` seconds; a refresh token lives 90 days and mints at
most 90 access tokens, after which the server answers 429 and only a new sign-in helps; a refresh answers with no new
refresh token, so the 90 days run from the sign-in.
"""

import base64
import contextlib
from enum import Enum
from typing import Any

import msgspec

from wme_async.errors import DecodeError
from wme_async.models.decoding import decoding

REFRESH_LIFETIME = 90 * 86400.0
"""Seconds that a refresh token is good for, counted from its sign-in."""

REFRESH_LIMIT = 90
"""Access tokens that one refresh token may mint."""


class Step(Enum):
    """The step before the next request."""

    USE = "use"
    REFRESH = "refresh"
    LOGIN = "login"


class Tokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tokens of one user at one host. Its repr shows none of them.

    Args:
        access_token: Sent as bearer.
        access_expires: UTC epoch seconds; None if unknown.
        access_lifetime: Seconds that it was valid for when it was minted.
        refresh_token: Mints further access tokens; may be empty.
        refresh_expires: UTC epoch seconds.
        refreshes: Access tokens minted by the refresh token so far.
    """

    access_token: str
    access_expires: float | None = None
    access_lifetime: float | None = None
    refresh_token: str = ""
    refresh_expires: float = 0.0
    refreshes: int = 0

    def __repr__(self) -> str:
        return f"Tokens(access_expires={self.access_expires}, refreshes={self.refreshes})"

    def __rich_repr__(self) -> Any:
        """Keep the tokens out of rich tracebacks too."""
        yield "access_expires", self.access_expires
        yield "refreshes", self.refreshes

    def works(self, *, now: float) -> bool:
        """Return whether the access token is not known to have expired."""
        return bool(self.access_token) and (self.access_expires is None or now < self.access_expires)

    def refreshed(self, access_token: str, expires_in: float | None, *, now: float) -> "Tokens":
        """Return these tokens after a refresh."""
        return msgspec.structs.replace(
            self,
            access_token=access_token,
            access_expires=None if expires_in is None else now + expires_in,
            access_lifetime=expires_in,
            refreshes=self.refreshes + 1,
        )


def next_step(tokens: Tokens | None, *, now: float) -> Step:
    """Return the step before a request.

    A token is replaced a tenth of its lifetime, at most five minutes, before it expires.

    Args:
        tokens: The current tokens, if any.
        now: UTC epoch seconds.
    """
    if tokens is None or not tokens.access_token:
        return Step.LOGIN
    if tokens.access_expires is None:
        return Step.USE
    lifetime = tokens.access_lifetime if tokens.access_lifetime is not None else 3600.0
    return Step.USE if now < tokens.access_expires - min(300.0, lifetime / 10) else renewal(tokens, now=now)


def renewal(tokens: Tokens | None, *, now: float) -> Step:
    """Return how to get a new access token."""
    can_refresh = (
        tokens is not None
        and tokens.refresh_token
        and now < tokens.refresh_expires
        and tokens.refreshes < REFRESH_LIMIT
    )
    return Step.REFRESH if can_refresh else Step.LOGIN


def jwt_expiry(token: str) -> float | None:
    """Return `exp` (UTC epoch seconds) of a JSON web token, without checking its signature; None if it has none."""
    with contextlib.suppress(DecodeError), decoding():
        _, payload, _ = token.split(".")
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        expiry = claims.get("exp") if isinstance(claims, dict) else None
        if isinstance(expiry, int | float) and not isinstance(expiry, bool):
            return float(expiry)
    return None
