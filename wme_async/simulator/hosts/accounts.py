"""Accounts and their tokens, and the check of a bearer token that every host makes."""

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wme_async.simulator.clock import Clock
from wme_async.simulator.errors import HTTPError

_VERIFIED_SECONDS: Final = 24 * 3600  # how long a service relies on its last check of a token
_REFRESH_SECONDS: Final = 90 * 24 * 3600


@dataclass(eq=False)
class User:
    """One account.

    Attributes:
        username: The name; login and refresh want it byte for byte.
        password: The password.
        groups: The plan: group_1 is free, group_2 paid, group_3 everything.
        email: A second name that works for login alone.
        challenge: A challenge that login answers with; `NEW_PASSWORD_REQUIRED` withholds tokens until answered, any
            other name stands beside them.
        subject: The account's id in tokens and signed addresses.
    """

    username: str
    password: str
    groups: list[str]
    email: str | None = None
    challenge: str | None = None
    subject: str = ""


@dataclass(eq=False)
class _Family:
    """A refresh token and the access tokens that came from it."""

    user: User
    token: str
    issued: float
    access_tokens: list[str] = field(default_factory=list)
    first_use: float | None = None
    revoked: bool = False


class Accounts:
    """Users and tokens, and the check that the services make of a bearer token.

    Args:
        clock: Dates tokens and their expiry.
        seed: Determines ids and keys.
        expires_in: Lifetime of an access token in seconds.
        max_access_tokens: Uses of one refresh token in 90 days.
    """

    def __init__(self, clock: Clock, *, seed: int, expires_in: int, max_access_tokens: int) -> None:
        self.clock = clock
        self.expires_in = expires_in
        self.max_access_tokens = max_access_tokens
        self.users: dict[str, User] = {}
        self._key = hashlib.sha256(f"key {seed}".encode()).digest()
        self._families: dict[str, _Family] = {}
        self._family_of: dict[str, _Family] = {}
        self._verified: dict[str, float] = {}
        self.sessions: dict[str, User] = {}
        self._count = 0

    def add(self, user: User) -> User:
        """Add or replace an account."""
        user.subject = user.subject or str(uuid.uuid5(uuid.NAMESPACE_DNS, user.username))
        self.users[user.username] = user
        return user

    def find(self, name: str) -> User | None:
        """Find an account by its name or e-mail address."""
        return self.users.get(name) or next((user for user in self.users.values() if user.email == name), None)

    def tokens(self, user: User) -> dict[str, Any]:
        """Mint the three tokens of a login; the access token comes with its lifetime in seconds."""
        self._count += 1
        token = hashlib.sha512(self._key + f"refresh {self._count}".encode()).hexdigest()
        family = _Family(user, token, self.clock.now())
        self._families[family.token] = family
        return {
            "id_token": self._jwt(user, "id"),
            "access_token": self._mint(user, family),
            "refresh_token": family.token,
            "expires_in": self.expires_in,
        }

    def refresh(self, username: str, token: str) -> dict[str, Any]:
        """Mint another access token.

        Raises:
            HTTPError: 401 or 429, with the text of the service.
        """
        family = self._families.get(token)
        now = self.clock.now()
        if family is not None and family.user.username == username:
            if family.first_use is not None and now - family.first_use > _REFRESH_SECONDS:
                family.access_tokens.clear()
                family.first_use = None
            if len(family.access_tokens) >= self.max_access_tokens:
                raise HTTPError(429, "Refresh tokens limit has been exceeded.")
        if (
            family is None
            or family.revoked
            or family.user.username != username
            or now - family.issued > _REFRESH_SECONDS
            or self.users.get(username) is not family.user
        ):
            raise HTTPError(401, "Unauthorized.")
        access = self._mint(family.user, family)
        family.first_use = now if family.first_use is None else family.first_use
        family.access_tokens.append(access)
        return {"id_token": self._jwt(family.user, "id"), "access_token": access, "expires_in": self.expires_in}

    def revoke(self, token: str) -> bool:
        """Revoke a refresh token and the access tokens that came from it.

        An access token of the login itself that a service has verified before stays valid: only tokens that came from
        a refresh are dropped from the services' cache.
        """
        family = self._families.get(token)
        if family is None or family.revoked:
            return False
        family.revoked = True
        for access_token in family.access_tokens:
            self._verified.pop(access_token, None)
        return True

    def authenticate(self, authorization: str | None) -> User:
        """Check an Authorization header as the services do.

        One "Bearer " is removed, in exactly this case; a bare token works too.

        Raises:
            HTTPError: 401, with the text of the service's library.
        """
        token = (authorization or "").replace("Bearer ", "", 1)
        if not token:
            raise HTTPError(401, "Unauthorized")
        if token.lower().startswith("bearer "):
            raise HTTPError(401, "tokenstring should not contain 'bearer '")
        parts = token.split(".")
        if len(parts) != 3:
            raise HTTPError(401, "token contains an invalid number of segments")
        if not hmac.compare_digest(self._signature(f"{parts[0]}.{parts[1]}"), parts[2]):
            raise HTTPError(401, "crypto/rsa: verification error")
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        now = self.clock.now()
        if int(now) > claims["exp"]:
            raise HTTPError(401, f"token is expired by {_duration(int(now) - claims['exp'])}")
        if claims["token_use"] != "access":  # noqa: S105 - a kind of token, not a secret
            raise HTTPError(401, "incorrect client id")
        user = self.users.get(claims["username"])
        if user is None:
            raise HTTPError(401, "NotAuthorizedException: Access Token has been revoked")
        if now - self._verified.get(token, float("-inf")) > _VERIFIED_SECONDS:
            family = self._family_of.get(token)
            if family is not None and family.revoked:
                raise HTTPError(401, "NotAuthorizedException: Access Token has been revoked")
            self._verified[token] = now
        return user

    def _mint(self, user: User, family: _Family) -> str:
        token = self._jwt(user, "access")
        self._family_of[token] = family
        if len(self._family_of) > 100_000:
            self._family_of.pop(next(iter(self._family_of)))
        return token

    def _jwt(self, user: User, use: str) -> str:
        self._count += 1
        now = int(self.clock.now())
        head = _pack({"kid": "simulated", "alg": "RS256"})
        claims = {
            "sub": user.subject,
            "cognito:groups": list(user.groups),
            "client_id": "simulated",
            "token_use": use,
            "exp": now + self.expires_in,
            "iat": now,
            "jti": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._key.hex()} {self._count}")),
            "username": user.username,
        }
        signed = f"{head}.{_pack(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def _signature(self, text: str) -> str:
        digest = hmac.new(self._key, text.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _pack(document: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document, separators=(",", ":")).encode()).rstrip(b"=").decode()


def _duration(seconds: int) -> str:
    """Write whole seconds as the services' language prints a duration: `1h2m3s`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
