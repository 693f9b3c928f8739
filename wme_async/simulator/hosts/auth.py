"""The auth host: login, refresh, revoke, the password calls, and the account's own record."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Final
from urllib.parse import parse_qsl

from wme_async.simulator.errors import HTTPError
from wme_async.simulator.hosts.access import AccessRow, Caps
from wme_async.simulator.hosts.accounts import Accounts, User
from wme_async.simulator.hosts.http import JSON, Response, error_response

_CONFIRMATION_CODE: Final = "123456"
_GENERIC: Final = "Internal error, please try again later."

# The required strings of each POST, with the least and greatest length in characters.
_FIELDS: Final[Mapping[str, Mapping[str, tuple[int, float]]]] = {
    "login": {"username": (1, 255), "password": (1, 255)},
    "token-refresh": {"username": (1, 255), "refresh_token": (1, inf)},
    "token-revoke": {"refresh_token": (1, inf)},
    "new-password-required": {"username": (1, inf), "session": (1, inf), "new_password": (6, 255)},
    "change-password": {"access_token": (1, inf), "previous_password": (6, 256), "proposed_password": (6, 256)},
    "forgot-password": {"username": (1, 255)},
    "forgot-password-confirm": {"username": (1, 255), "password": (1, 255), "confirmation_code": (1, 2048)},
    "create-user": {
        "username": (1, inf),
        "email": (1, 60),
        "password": (8, inf),
        "captcha_id": (1, 30),
        "captcha_solution": (1, 6),
        "policy_date_accept": (1, inf),
        "policy_version": (1, 4),
        "marketing_emails": (4, 5),
    },
    "confirm-user": {"username": (1, inf), "confirmation_code": (1, 6)},
    "resend-confirm": {"username": (1, inf)},
}


class AuthHost:
    """The routes of the auth host.

    Captchas are left out; their paths are unknown here.

    Args:
        accounts: Users and tokens.
        caps: Monthly counters, for get-user.
        access: Returns the access policy, for get-user.
    """

    # The limits that get-user prints are constants of the process, not the caller's allowance.
    printed_limits: Mapping[str, int] = {"ondemand": 5000, "snapshots": 15, "chunks": 15}

    def __init__(self, accounts: Accounts, caps: Caps, access: Callable[[], Sequence[AccessRow]]) -> None:
        self._accounts = accounts
        self._caps = caps
        self._access = access
        self._posts: dict[str, Callable[[Mapping[str, str]], Response]] = {
            "login": self._login,
            "token-refresh": self._refresh,
            "token-revoke": self._revoke,
            "new-password-required": self._new_password,
            "change-password": self._change_password,
            "forgot-password": partial(self._send_code, "User not found."),
            "forgot-password-confirm": self._forgot_confirm,
            "create-user": self._create,
            "confirm-user": self._confirm,
            "resend-confirm": partial(self._send_code, _GENERIC),
        }

    def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer one request.

        Args:
            method: The HTTP method.
            path: The decoded path.
            headers: Header lines, names in lower case.
            body: The body.
        """
        try:
            return self._route(method, path, headers, body)
        except HTTPError as error:
            return error_response(error.status, error.message, headers.get("accept"))

    def _route(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        if method == "GET" and path in {"/v1/status", "/healthz"}:
            return Response(200)
        name = path.removeprefix("/v1/")
        if path.endswith("/") and name.rstrip("/") in {*self._posts, "get-user"}:
            return Response(307, {"Location": path.rstrip("/")})
        if method == "POST" and path == "/v1/get-user":
            return self._user(self._accounts.authenticate(headers.get("authorization")))
        if method != "POST" or name == path or name not in self._posts:
            raise HTTPError(404, "Not Found")
        form = _form(headers.get("content-type"), body)
        if form is None or not _fits(form, _FIELDS[name]):
            raise HTTPError(422, _GENERIC)
        return self._posts[name](form)

    def _login(self, form: Mapping[str, str]) -> Response:
        user = self._accounts.find(form["username"])
        if user is None or user.password != form["password"]:
            raise HTTPError(401, "Incorrect username or password.")
        document: dict[str, Any] = {}
        if user.challenge != "NEW_PASSWORD_REQUIRED":
            document.update(self._accounts.tokens(user))
        if user.challenge is not None:
            session = f"session-{user.subject}"
            self._accounts.sessions[session] = user
            document.update(challenge_name=user.challenge, session=session)
        return _json(document)

    def _refresh(self, form: Mapping[str, str]) -> Response:
        return _json(self._accounts.refresh(form["username"], form["refresh_token"]))

    def _revoke(self, form: Mapping[str, str]) -> Response:
        return _no_content(self._accounts.revoke(form["refresh_token"]), 401, "Unauthorized")

    def _new_password(self, form: Mapping[str, str]) -> Response:
        user = self._accounts.sessions.pop(form["session"], None)
        if user is None or user.username != form["username"]:
            raise HTTPError(401, "Unauthorized.")
        user.password, user.challenge = form["new_password"], None
        return _json(self._accounts.tokens(user))

    def _change_password(self, form: Mapping[str, str]) -> Response:
        try:
            user = self._accounts.authenticate(form["access_token"])
        except HTTPError:
            raise HTTPError(401, "Incorrect username or password.") from None
        correct = user.password == form["previous_password"]
        if correct:
            user.password = form["proposed_password"]
        return _no_content(correct, 401, "Incorrect username or password.")

    def _send_code(self, unknown_user: str, form: Mapping[str, str]) -> Response:
        return _no_content(self._accounts.find(form["username"]) is not None, 401, unknown_user)

    def _forgot_confirm(self, form: Mapping[str, str]) -> Response:
        text = "CodeMismatchException: Invalid verification code provided, please try again."
        self._confirmed(form, 401, text).password = form["password"]
        return Response(204)

    def _create(self, form: Mapping[str, str]) -> Response:
        if self._accounts.find(form["username"]) or self._accounts.find(form["email"]):
            raise HTTPError(400, "An account with the given email already exists.")
        self._accounts.add(User(form["username"], form["password"], ["group_1"], email=form["email"]))
        return Response(204)

    def _confirm(self, form: Mapping[str, str]) -> Response:
        user = self._confirmed(form, 500, _GENERIC)
        return _json({"userId": user.subject, "email": user.email or ""})

    def _confirmed(self, form: Mapping[str, str], status: int, message: str) -> User:
        """Return the account of a form whose confirmation code is right; anything else is this error."""
        user = self._accounts.find(form["username"])
        if user is None or form["confirmation_code"] != _CONFIRMATION_CODE:
            raise HTTPError(status, message)
        return user

    def _user(self, user: User) -> Response:
        counts = {
            f"{key}_{name}": number
            for pool, key in (("ondemand", "ondemand"), ("snapshots", "snapshot"), ("chunks", "chunk"))
            for name, number in (
                ("requests_count", self._caps.used(user.username, pool)),
                ("limit", self.printed_limits[pool]),
            )
        }
        apis = [
            {"path": row.path, "method": method}
            for row in self._access()
            if not {*user.groups}.isdisjoint(row.groups)
            for method in row.methods
        ]
        return _json({"groups": list(user.groups), **counts, "username": user.username, "apis": apis})


def _json(document: Mapping[str, Any]) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(200, {"Content-Type": f"{JSON}; charset=utf-8"}, body)


def _no_content(success: bool, status: int, message: str) -> Response:
    if not success:
        raise HTTPError(status, message)
    return Response(204)


def _form(content_type: str | None, body: bytes) -> dict[str, Any] | None:
    """Read a body by its content type; JSON needs its header, everything else is a form."""
    media_type = (content_type or "").split(";", 1)[0].strip().lower()
    text = body.decode("utf-8", "replace")
    if media_type != JSON:
        pairs: Iterable[tuple[str, str]] = parse_qsl(text, keep_blank_values=True)
        return dict(pairs) if media_type == "application/x-www-form-urlencoded" else {}
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _fits(form: Mapping[str, Any], fields: Mapping[str, tuple[int, float]]) -> bool:
    return all(
        isinstance(value := form.get(name), str) and shortest <= len(value) <= longest
        for name, (shortest, longest) in fields.items()
    )
