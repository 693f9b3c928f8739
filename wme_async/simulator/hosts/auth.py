"""Accounts, tokens, and the auth host."""

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from wme_async.simulator.clock import Clock
from wme_async.simulator.hosts.access import AccessRow, Caps
from wme_async.simulator.hosts.http import JSON, Answer, error_answer

__all__ = ["Accounts", "AuthHost", "Denied", "User"]

_CONFIRMATION_CODE: Final = "123456"
_GENERIC: Final = "Internal error, please try again later."
_CACHE_SECONDS: Final = 24 * 3600
_REFRESH_SECONDS: Final = 90 * 24 * 3600


class Denied(Exception):
    """The bearer token is not good enough.

    Args:
        message: The library text that the services answer with.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


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
    born: float
    minted: list[str] = field(default_factory=list)
    first_mint: float | None = None
    revoked: bool = False


class Accounts:
    """Users and tokens, and the check that the services make of a bearer token.

    Args:
        clock: Judges expiry.
        seed: Where ids and keys come from.
        expires_in: Seconds that an access token lives.
        max_access_tokens: How often one refresh token may be used in 90 days.
    """

    def __init__(self, clock: Clock, *, seed: int = 0, expires_in: int = 86_400, max_access_tokens: int = 90) -> None:
        self.clock = clock
        self.expires_in = expires_in
        self.max_access_tokens = max_access_tokens
        self.users: dict[str, User] = {}
        self._key = hashlib.sha256(f"key {seed}".encode()).digest()
        self._families: dict[str, _Family] = {}
        self._origin: dict[str, _Family] = {}
        self._cached: dict[str, float] = {}
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
        """Mint what a login gives: three tokens and the lifetime of the access token in seconds."""
        family = _Family(user, self._opaque("refresh"), self.clock.now())
        self._families[family.token] = family
        access = self._mint(user, family)
        return {
            "id_token": self._jwt(user, "id"),
            "access_token": access,
            "refresh_token": family.token,
            "expires_in": self.expires_in,
        }

    def refresh(self, username: str, token: str) -> tuple[int, str | dict[str, Any]]:
        """Mint another access token: 200 and the answer, or another status and its text."""
        family = self._families.get(token)
        now = self.clock.now()
        if family is not None and family.user.username == username:
            if family.first_mint is not None and now - family.first_mint > _REFRESH_SECONDS:
                family.minted.clear()
                family.first_mint = None
            if len(family.minted) >= self.max_access_tokens:
                return 429, "Refresh tokens limit has been exceeded."
        if (
            family is None
            or family.revoked
            or family.user.username != username
            or now - family.born > _REFRESH_SECONDS
            or self.users.get(username) is not family.user
        ):
            return 401, "Unauthorized."
        access = self._mint(family.user, family)
        family.first_mint = now if family.first_mint is None else family.first_mint
        family.minted.append(access)
        return 200, {
            "id_token": self._jwt(family.user, "id"),
            "access_token": access,
            "expires_in": self.expires_in,
        }

    def revoke(self, token: str) -> bool:
        """Revoke a refresh token with what came from it.

        An access token of the login itself that a service has already seen stays good: only tokens that came from a
        refresh are dropped from the services' cache.
        """
        family = self._families.get(token)
        if family is None or family.revoked:
            return False
        family.revoked = True
        for minted in family.minted:
            self._cached.pop(minted, None)
        return True

    def authenticate(self, authorization: str | None) -> User:
        """Check an Authorization header as the services do.

        One "Bearer " is removed, in exactly this case; a bare token works too.

        Raises:
            Denied: 401, with a library's text.
        """
        token = (authorization or "").replace("Bearer ", "", 1)
        if not token:
            raise Denied("Unauthorized")
        if token.lower().startswith("bearer "):
            raise Denied("tokenstring should not contain 'bearer '")
        parts = token.split(".")
        if len(parts) != 3:
            raise Denied("token contains an invalid number of segments")
        if not hmac.compare_digest(self._signature(f"{parts[0]}.{parts[1]}"), parts[2]):
            raise Denied("crypto/rsa: verification error")
        claims = json.loads(_unpack(parts[1]))
        now = self.clock.now()
        if int(now) > claims["exp"]:
            raise Denied(f"token is expired by {_duration(int(now) - claims['exp'])}")
        if claims["token_use"] != "access":  # noqa: S105 - a kind of token, not a secret
            raise Denied("incorrect client id")
        user = self.users.get(claims["username"])
        if user is None:
            raise Denied("NotAuthorizedException: Access Token has been revoked")
        if now - self._cached.get(token, float("-inf")) > _CACHE_SECONDS:
            family = self._origin.get(token)
            if family is not None and family.revoked:
                raise Denied("NotAuthorizedException: Access Token has been revoked")
            self._cached[token] = now
        return user

    def _mint(self, user: User, family: _Family) -> str:
        token = self._jwt(user, "access")
        self._origin[token] = family
        if len(self._origin) > 100_000:
            self._origin.pop(next(iter(self._origin)))
        return token

    def _opaque(self, purpose: str) -> str:
        self._count += 1
        return hashlib.sha512(self._key + f"{purpose} {self._count}".encode()).hexdigest()

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


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _duration(seconds: int) -> str:
    """Write whole seconds as the services' language prints a duration: `1h2m3s`."""
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


class AuthHost:
    """The routes of the auth host: login, refresh, revoke, the password calls, and the account's own record.

    Captchas and the creation of accounts are left out; their paths are unknown here.

    Args:
        accounts: Users and tokens.
        caps: Monthly counters, for get-user.
        access: The access policy, for get-user.
    """

    # What get-user prints as limits are constants of the process, not the caller's allowance.
    printed_limits: Mapping[str, int] = {"ondemand": 5000, "snapshots": 15, "chunks": 15}

    def __init__(self, accounts: Accounts, caps: Caps, access: Callable[[], Sequence[AccessRow]]) -> None:
        self._accounts = accounts
        self._caps = caps
        self._access = access
        self._posts: dict[str, Callable[[Mapping[str, Any]], Answer | tuple[int, str]]] = {
            "login": self._login,
            "token-refresh": self._refresh,
            "token-revoke": self._revoke,
            "new-password-required": self._new_password,
            "change-password": self._change_password,
            "forgot-password": self._forgot,
            "forgot-password-confirm": self._forgot_confirm,
            "create-user": self._create,
            "confirm-user": self._confirm,
            "resend-confirm": self._resend,
        }

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request.

        Args:
            method: The HTTP method.
            path: The decoded path.
            headers: Header lines, names in lower case.
            body: The body.
        """
        accept = headers.get("accept")
        if method == "GET" and path in {"/v1/status", "/healthz"}:
            return Answer(200)
        name = path.removeprefix("/v1/")
        if path.endswith("/") and name.rstrip("/") in {*self._posts, "get-user"}:
            return Answer(307, {"Location": path.rstrip("/")})
        if method == "POST" and path == "/v1/get-user":
            try:
                return self._user(self._accounts.authenticate(headers.get("authorization")))
            except Denied as denied:
                return error_answer(401, denied.message, accept)
        if method != "POST" or name == path or name not in self._posts:
            return error_answer(404, "Not Found", accept)
        form = _form(headers.get("content-type"), body)
        made = (422, _GENERIC) if form is None else self._posts[name](form)
        return made if isinstance(made, Answer) else error_answer(*made, accept)

    def _login(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, 255), password=(1, 255)):
            return 422, _GENERIC
        user = self._accounts.find(form["username"])
        if user is None or user.password != form["password"]:
            return 401, "Incorrect username or password."
        answer: dict[str, Any] = {}
        if user.challenge != "NEW_PASSWORD_REQUIRED":
            answer.update(self._accounts.tokens(user))
        if user.challenge is not None:
            session = f"session-{user.subject}"
            self._accounts.sessions[session] = user
            answer.update(challenge_name=user.challenge, session=session)
        return _document(answer)

    def _refresh(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, 255), refresh_token=(1, None)):
            return 422, _GENERIC
        status, made = self._accounts.refresh(form["username"], form["refresh_token"])
        return (status, made) if isinstance(made, str) else _document(made)

    def _revoke(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, refresh_token=(1, None)):
            return 422, _GENERIC
        return Answer(204) if self._accounts.revoke(form["refresh_token"]) else (401, "Unauthorized")

    def _new_password(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, None), session=(1, None), new_password=(6, 255)):
            return 422, _GENERIC
        user = self._accounts.sessions.pop(form["session"], None)
        if user is None or user.username != form["username"]:
            return 401, "Unauthorized."
        user.password, user.challenge = form["new_password"], None
        return _document(self._accounts.tokens(user))

    def _change_password(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, access_token=(1, None), previous_password=(6, 256), proposed_password=(6, 256)):
            return 422, _GENERIC
        try:
            user = self._accounts.authenticate(form["access_token"])
        except Denied:
            return 401, "Incorrect username or password."
        if user.password != form["previous_password"]:
            return 401, "Incorrect username or password."
        user.password = form["proposed_password"]
        return Answer(204)

    def _forgot(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, 255)):
            return 422, _GENERIC
        return Answer(204) if self._accounts.find(form["username"]) else (401, "User not found.")

    def _forgot_confirm(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, 255), password=(1, 255), confirmation_code=(1, 2048)):
            return 422, _GENERIC
        user = self._accounts.find(form["username"])
        if user is None or form["confirmation_code"] != _CONFIRMATION_CODE:
            return 401, "CodeMismatchException: Invalid verification code provided, please try again."
        user.password = form["password"]
        return Answer(204)

    def _create(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        texts = {
            "username": (1, None),
            "email": (1, 60),
            "password": (8, None),
            "captcha_id": (1, 30),
            "captcha_solution": (1, 6),
            "policy_date_accept": (1, None),
            "policy_version": (1, 4),
            "marketing_emails": (4, 5),
        }
        if not _fits(form, **texts):
            return 422, _GENERIC
        if self._accounts.find(form["username"]) or self._accounts.find(form["email"]):
            return 400, "An account with the given email already exists."
        self._accounts.add(User(form["username"], form["password"], ["group_1"], email=form["email"]))
        return Answer(204)

    def _confirm(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, None), confirmation_code=(1, 6)):
            return 422, _GENERIC
        user = self._accounts.find(form["username"])
        if user is None or form["confirmation_code"] != _CONFIRMATION_CODE:
            return 500, _GENERIC
        return _document({"userId": user.subject, "email": user.email or ""})

    def _resend(self, form: Mapping[str, Any]) -> Answer | tuple[int, str]:
        if not _fits(form, username=(1, None)):
            return 422, _GENERIC
        return Answer(204) if self._accounts.find(form["username"]) else (401, _GENERIC)

    def _user(self, user: User) -> Answer:
        answer: dict[str, Any] = {"groups": list(user.groups)}
        for pool, key in (("ondemand", "ondemand"), ("snapshots", "snapshot"), ("chunks", "chunk")):
            answer[f"{key}_requests_count"] = self._caps.used(user.username, pool)
            answer[f"{key}_limit"] = self.printed_limits[pool]
        answer["username"] = user.username
        mine = set(user.groups)
        answer["apis"] = [
            {"path": row.path, "method": method}
            for row in self._access()
            if not mine.isdisjoint(row.groups)
            for method in row.methods
        ]
        return _document(answer)


def _document(answer: Mapping[str, Any]) -> Answer:
    body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(200, {"Content-Type": f"{JSON}; charset=utf-8"}, body)


def _form(content_type: str | None, body: bytes) -> dict[str, Any] | None:
    """Read a body by its content type; JSON needs its header, everything else is a form."""
    media = (content_type or "").split(";", 1)[0].strip().lower()
    text = body.decode("utf-8", "replace")
    if media != JSON:
        pairs: Iterable[tuple[str, str]] = parse_qsl(text, keep_blank_values=True)
        return dict(pairs) if media == "application/x-www-form-urlencoded" else {}
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _fits(form: Mapping[str, Any], **lengths: tuple[int, int | None]) -> bool:
    for name, (least, most) in lengths.items():
        value = form.get(name)
        if not isinstance(value, str) or len(value) < least or (most is not None and len(value) > most):
            return False
    return True
