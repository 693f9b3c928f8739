"""Authentication: sign-in, refresh, revocation, and one access token shared by all requests."""

import asyncio
import contextlib
import copy
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from wme_async._arguments import check_type
from wme_async._tasks import in_thread
from wme_async._transport.requests import Accepts, Request, Response
from wme_async._transport.token_file import TokenFile
from wme_async._transport.token_policy import REFRESH_LIFETIME, Step, Tokens, jwt_expiry, next_step, renewal
from wme_async.errors import (
    DecodeError,
    Forbidden,
    RateLimited,
    Unauthorized,
    Unprocessable,
    WMEError,
)
from wme_async.models.decoding import decode_json

logger: logging.Logger = logging.getLogger("wme_async.auth")

# Seconds before the next attempt to replace a token that still works.
_RENEWAL_PAUSE = 30.0


class Credentials:
    """A user name and password, or an access token. Neither its repr nor its errors show them.

    Args:
        username: Lower-cased: the server requires it, and a refresh must repeat the name byte for byte.
        password: For signing in again after 90 days or 90 refreshes.
        access_token: Instead of the other two, or to start with.
        stored: Whether a token file may have the tokens of the user, so that the password is not needed.

    Raises:
        TypeError: A value is not text.
        ValueError: A value is empty, half of the pair is missing, or there is no value at all.
    """

    __slots__ = ("_password", "access_token", "username")

    def __init__(
        self,
        username: str | None = None,
        password: str | None = None,
        *,
        access_token: str | None = None,
        stored: bool = False,
    ) -> None:
        if (username is None) != (password is None) and not (stored and password is None and access_token is None):
            raise ValueError(
                "username and password go together: give both, an access_token alone, or a username alone with a "
                "token_file that has its tokens"
            )
        if username is None and access_token is None:
            raise ValueError(
                "no credentials: give username and password (or WME_USERNAME and WME_PASSWORD), or an access_token "
                "(WME_ACCESS_TOKEN); the simulator makes an account that needs none"
            )
        for name, value in (("username", username), ("password", password), ("access_token", access_token)):
            check_type(name, value, str | None, "text", secret=True)
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty")
            if value is not None and name != "password" and (not value.isprintable() or value != value.strip()):
                raise ValueError(f"{name} has blanks around it or characters that cannot be sent")
            if value is not None and any("\ud800" <= character <= "\udfff" for character in value):
                # Python's own error would have the password in it. Variables with bytes that are not UTF-8 become so.
                raise ValueError(f"{name} is not UTF-8 text")
        if password is not None and password != password.strip("\r\n"):
            # The text of a file ends so. Blanks may belong to a password.
            raise ValueError("password begins or ends with a line end, which does not belong to it: strip it")
        self.username: str | None = username.lower() if username is not None else None
        self._password = password
        self.access_token: str | None = access_token

    def __repr__(self) -> str:
        return "<Credentials>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("credentials cannot be pickled; make a new client in the other process")

    @property
    def can_sign_in(self) -> bool:
        """Whether there is a user name and a password."""
        return self._password is not None

    def login_body(self) -> bytes:
        """Return the body of a sign-in."""
        return msgspec.json.encode({"username": self.username, "password": self._password})


class _SignedIn(msgspec.Struct):
    access_token: str = ""
    refresh_token: str = ""
    expires_in: float | None = None
    challenge_name: str = ""


_SIGNED_IN: Final = msgspec.json.Decoder(_SignedIn)


class Send(Protocol):
    """Sends a request to the auth host."""

    def __call__(self, request: Request, *, retry: bool) -> Awaitable[Response]: ...


class TokenManager:
    """Holds one valid access token.

    However many requests find the token missing, expired or rejected at once, one of them gets a new token for all:
    they queue for a lock, and renew only if the rejected token is still the current one. An error of that renewal is
    the error of all requests in the queue, so that a wrong password is sent once.

    A token that expires soon stays in use during its renewal, and after a failed one.

    Args:
        credentials: To sign in with.
        send: Sends a request to the auth host.
        sleep: Waits for some seconds.
        now: Returns UTC epoch seconds.
        file: Shares tokens with other processes.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        send: Send,
        sleep: Callable[[float], Awaitable[None]],
        now: Callable[[], float],
        file: TokenFile | None = None,
    ) -> None:
        self._credentials = credentials
        self._send = send
        self._sleep = sleep
        self._now = now
        self._file = file
        self._lock = asyncio.Lock()
        self._tokens: Tokens | None = None
        self._failures = 0
        self._failure: WMEError | None = None
        self._renewal_paused_until = 0.0
        if credentials.access_token is not None:
            # Without a way to replace the token, its expiry is left to the server.
            expires = jwt_expiry(credentials.access_token) if credentials.can_sign_in else None
            self._tokens = Tokens(access_token=credentials.access_token, access_expires=expires)

    def __repr__(self) -> str:
        return f"<TokenManager {self._tokens!r}>" if self._tokens else "<TokenManager signed out>"

    async def token(self) -> str:
        """Return a valid access token; sign in or refresh if there is none.

        Raises:
            Unauthorized: The server rejects the credentials, or requires a step that only a person can take.
            WMEError: The request to the auth host failed.
        """
        tokens, now = self._tokens, self._now()
        if tokens is not None and (
            next_step(tokens, now=now) is Step.USE
            or (tokens.works(now=now) and (self._lock.locked() or now < self._renewal_paused_until))
        ):
            return tokens.access_token
        return await self._renew(None)

    async def replace(self, rejected: str) -> str:
        """Return a new access token in place of one that the server rejects.

        Args:
            rejected: The token of the request with status 401.

        Raises:
            Unauthorized: The credentials do not allow a new token.
        """
        return await self._renew(rejected)

    async def login(self) -> None:
        """Sign in now, even if there is a valid token.

        Raises:
            Unauthorized: The user name or password is wrong, or there is no password.
        """
        async with self._lock, self._shared():
            await self._keep(await self._sign_in(retry=True))

    async def revoke(self) -> None:
        """Revoke the refresh token and forget all tokens.

        All processes that share the token file are signed out with it. The server may accept an access token that came
        from a sign-in until it expires.
        """
        async with self._lock, self._shared():
            tokens = await self._load() or self._tokens
            try:
                if tokens is not None and tokens.refresh_token:
                    body = msgspec.json.encode({"refresh_token": tokens.refresh_token})
                    await self._send(_auth_request("/v1/token-revoke", body, accepts="empty"), retry=True)
            except Unauthorized:
                logger.debug("the refresh token was no longer valid")
            finally:
                self._tokens = None
                if self._file is not None:
                    await in_thread(self._file.save, None)

    def _shared(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Lock the token file, if there is one."""
        return contextlib.nullcontext() if self._file is None else self._file.locked(self._sleep)

    async def _renew(self, rejected: str | None) -> str:
        failures = self._failures
        async with self._lock:
            tokens = self._tokens
            if not self._is_valid(tokens, rejected):
                if self._failure is not None and self._failures != failures:
                    raise _copy(self._failure)
                try:
                    tokens = await self._replaced(rejected)
                except WMEError as error:
                    # The error itself would keep the local variables of its traceback alive.
                    self._failure = _copy(error)
                    self._failures += 1
                    raise
                self._failure = None
            assert tokens is not None
            return tokens.access_token

    async def _replaced(self, rejected: str | None) -> Tokens:
        async with self._shared():
            # Another process may have renewed the tokens of the file.
            tokens = await self._load()
            if tokens is not None and self._is_valid(tokens, rejected):
                self._tokens = tokens
            else:
                tokens = await self._next(tokens or self._tokens, rejected)
                await self._keep(tokens)
            return tokens

    def _is_valid(self, tokens: Tokens | None, rejected: str | None) -> bool:
        return tokens is not None and tokens.access_token != rejected and next_step(tokens, now=self._now()) is Step.USE

    async def _next(self, tokens: Tokens | None, rejected: str | None) -> Tokens:
        try:
            return await self._obtained(tokens)
        except WMEError as error:
            now = self._now()
            if tokens is None or tokens.access_token == rejected or not tokens.works(now=now):
                raise
            logger.warning(
                "could not replace the access token ahead of its expiry (%s); it stays in use until then",
                type(error).__name__,
            )
            self._renewal_paused_until = now + _RENEWAL_PAUSE
            return tokens

    async def _obtained(self, tokens: Tokens | None) -> Tokens:
        if renewal(tokens, now=self._now()) is Step.REFRESH:
            assert tokens is not None
            try:
                return await self._refresh(tokens)
            except (Unauthorized, RateLimited, Unprocessable, Forbidden) as error:
                # A revoked or expired refresh token, or the 91st refresh: the remedy is a sign-in.
                logger.info("the server rejects the refresh (%s); signing in", type(error).__name__)
        return await self._sign_in(retry=False)

    async def _refresh(self, tokens: Tokens) -> Tokens:
        body = msgspec.json.encode({"username": self._credentials.username, "refresh_token": tokens.refresh_token})
        signed_in = _decoded(await self._send(_auth_request("/v1/token-refresh", body), retry=False))
        return tokens.refreshed(signed_in.access_token, signed_in.expires_in, now=self._now())

    async def _sign_in(self, *, retry: bool) -> Tokens:
        # `retry` is off within another request, whose own retries would multiply these.
        if not self._credentials.can_sign_in:
            name = self._credentials.username
            raise Unauthorized(
                "the server rejects the access_token, and there are no user name and password to replace it with"
                if name is None
                else f"the stored sign-in of {name} has ended or is missing; sign in with the password",
                status=401,
            )
        try:
            request = _auth_request("/v1/login", self._credentials.login_body())
            signed_in = _decoded(await self._send(request, retry=retry))
        except Unprocessable as error:
            raise Unauthorized("the server rejects the form of the user name or password", status=422) from error
        now = self._now()
        return Tokens(
            access_token=signed_in.access_token,
            access_expires=None if signed_in.expires_in is None else now + signed_in.expires_in,
            access_lifetime=signed_in.expires_in,
            refresh_token=signed_in.refresh_token,
            refresh_expires=now + REFRESH_LIFETIME,
        )

    async def _load(self) -> Tokens | None:
        return None if self._file is None else await in_thread(self._file.load)

    async def _keep(self, tokens: Tokens) -> None:
        self._tokens = tokens
        if self._file is not None:
            try:
                await in_thread(self._file.save, tokens)
            except OSError as error:
                logger.warning("could not write %s: %s", self._file.path, error.strerror)


def _auth_request(path: str, body: bytes, *, accepts: Accepts = "body") -> Request:
    return Request(
        method="POST",
        role="auth",
        path=path,
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        body=body,
        idempotent=False,
        accepts=accepts,
    )


def _decoded(response: Response) -> _SignedIn:
    signed_in: _SignedIn | None = None
    with contextlib.suppress(DecodeError):
        signed_in = decode_json(response.body, _SIGNED_IN)
    if signed_in is None:
        # The body may contain tokens, so neither the error nor its context has it.
        raise DecodeError("the response of the auth host is not a JSON object of tokens")
    if signed_in.access_token:
        # A challenge beside valid tokens has no meaning.
        return signed_in
    if signed_in.challenge_name:
        raise Unauthorized(
            f"the account must answer a challenge ({signed_in.challenge_name}); sign in once on the WME dashboard",
            status=response.status,
        )
    raise DecodeError("the response of the auth host has no access token")


def _copy(error: WMEError) -> WMEError:
    """Return a copy for another task: without a traceback, and with notes of its own."""
    duplicate = copy.copy(error)
    if hasattr(error, "__notes__"):
        duplicate.__notes__ = [*error.__notes__]
    return duplicate
