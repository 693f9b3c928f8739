"""Who we are: sign-in, refresh, revocation, and one token for all requests at a time."""

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import msgspec

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

__all__ = ["Credentials", "TokenManager"]

logger = logging.getLogger("wme_async.auth")

# Seconds without another try, after a token could not be replaced ahead of its end.
_NOT_AGAIN_FOR = 30.0


class Credentials:
    """What a user gave to sign in with. Nothing in it is ever shown.

    Args:
        username: Lower-cased once: the server wants it so, and a refresh must name it byte for byte as the sign-in did.
        password: Kept for signing in again after 90 days or 90 refreshes.
        access_token: For those who have only that.

    Raises:
        TypeError: One of them is no text.
        ValueError: Half of a pair, an empty value, or nothing at all.
    """

    __slots__ = ("_password", "access_token", "username")

    def __init__(
        self, username: str | None = None, password: str | None = None, *, access_token: str | None = None
    ) -> None:
        if (username is None) != (password is None):
            raise ValueError("username and password go together: give both, or an access_token alone")
        if username is None and access_token is None:
            raise ValueError(
                "no credentials: give username and password (or WME_USERNAME and WME_PASSWORD), or an access_token "
                "(WME_ACCESS_TOKEN); the simulator makes an account that needs none"
            )
        for name, value in (("username", username), ("password", password), ("access_token", access_token)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be text, not {type(value).__name__}")
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty")
            if value is not None and name != "password" and (not value.isprintable() or value != value.strip()):
                raise ValueError(f"{name} has blanks around it or characters that cannot be sent")
        if password is not None and password != password.strip("\r\n"):
            # It was read from a file. A blank may belong to a password, and is left to who gave it.
            raise ValueError("password begins or ends with a line end, which is none of it: strip it")
        self.username: str | None = username.lower() if username is not None else None
        self._password = password
        self.access_token: str | None = access_token

    def __repr__(self) -> str:
        return "<Credentials>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("credentials are not written anywhere; make a new client in the other process")

    @property
    def can_sign_in(self) -> bool:
        """Whether there is a user name and a password."""
        return self._password is not None

    def login_body(self) -> bytes:
        """Return the body of a sign-in."""
        return msgspec.json.encode({"username": self.username, "password": self._password})


class _Answer(msgspec.Struct):
    access_token: str = ""
    refresh_token: str = ""
    expires_in: float | None = None
    challenge_name: str = ""


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class Send(Protocol):
    """Sends a request to the auth host."""

    def __call__(self, request: Request, *, retry: bool) -> Awaitable[Response]: ...


class TokenManager:
    """Keeps one valid access token.

    However many requests find the token missing, old or refused at the same time, one of them gets a new one and all
    use it: the step is taken under a lock and only if the token that failed is still the current one. Where it fails,
    it has failed for all who waited for it, so that a wrong password is sent once.

    A token that is only about to end goes on being used while somebody replaces it, and while that cannot be done.

    Args:
        credentials: To sign in with.
        send: Sends a request to the auth host.
        sleep: Waits.
        now: UTC epoch seconds.
        file: Where tokens are shared with other processes, if anywhere.
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
        self._steps = 0
        self._failure: WMEError | None = None
        self._resting_until = 0.0
        if credentials.access_token is not None:
            # Where there is no other one to be had, only the server can say that it has ended.
            ends = jwt_expiry(credentials.access_token) if credentials.can_sign_in else None
            self._tokens = Tokens(access_token=credentials.access_token, access_expires=ends)

    def __repr__(self) -> str:
        return f"<TokenManager {self._tokens!r}>" if self._tokens else "<TokenManager signed out>"

    async def token(self) -> str:
        """Return an access token that is good now, getting one if there is none.

        Raises:
            Unauthorized: The sign-in was refused, or wants a step that only a person can take.
            WMEError: The auth host could not be asked.
        """
        tokens, now = self._tokens, self._now()
        if tokens is not None:
            if next_step(tokens, now=now) is Step.USE:
                return tokens.access_token
            if tokens.works(now=now) and (self._lock.locked() or now < self._resting_until):
                return tokens.access_token
        return await self._renew(None)

    async def replace(self, failed: str) -> str:
        """Return another access token than the one that was refused.

        Args:
            failed: The token that was answered with a 401.

        Raises:
            Unauthorized: There is no way to get another one.
        """
        return await self._renew(failed)

    async def login(self) -> None:
        """Sign in now, whatever there is.

        Raises:
            Unauthorized: The user name or password is wrong, or only an access token was given.
        """
        async with self._lock, self._shared():
            await self._keep(await self._sign_in(retry=True))

    async def revoke(self) -> None:
        """Give the refresh token back and forget all tokens.

        All processes that share the token file are signed out with it. Note that the server may accept an access token
        that came from a sign-in until it expires.
        """
        async with self._lock, self._shared():
            tokens = await self._stored() or self._tokens
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

    @contextlib.asynccontextmanager
    async def _shared(self) -> AsyncIterator[None]:
        if self._file is None:
            yield
            return
        async with self._file.locked(self._sleep):
            yield

    async def _renew(self, failed: str | None) -> str:
        steps = self._steps
        async with self._lock:
            current = self._good(self._tokens, failed)
            if current is not None:
                return current
            if self._failure is not None and self._steps != steps:
                raise _another(self._failure)
            try:
                tokens = await self._replaced(failed)
            except WMEError as error:
                # A copy: with the error itself its frames would be kept, and what is in them.
                self._failure = _another(error)
                self._steps += 1
                raise
            self._failure = None
            return tokens.access_token

    async def _replaced(self, failed: str | None) -> Tokens:
        async with self._shared():
            # Another process may have been faster.
            stored = await self._stored()
            if stored is not None and self._good(stored, failed) is not None:
                self._tokens = stored
                return stored
            tokens = await self._next(stored or self._tokens, failed)
            await self._keep(tokens)
            return tokens

    def _good(self, tokens: Tokens | None, failed: str | None) -> str | None:
        if tokens is None or tokens.access_token == failed:
            return None
        return tokens.access_token if next_step(tokens, now=self._now()) is Step.USE else None

    async def _next(self, tokens: Tokens | None, failed: str | None) -> Tokens:
        try:
            return await self._obtained(tokens)
        except WMEError as error:
            now = self._now()
            if tokens is None or tokens.access_token == failed or not tokens.works(now=now):
                raise
            # A token that still works is better than an error.
            logger.warning(
                "could not get a new token ahead of time (%s); the present one goes on until it ends",
                type(error).__name__,
            )
            self._resting_until = now + _NOT_AGAIN_FOR
            return tokens

    async def _obtained(self, tokens: Tokens | None) -> Tokens:
        if renewal(tokens, now=self._now()) is Step.REFRESH:
            assert tokens is not None
            try:
                return await self._refresh(tokens)
            except (Unauthorized, RateLimited, Unprocessable, Forbidden) as error:
                # The 91st refresh, a revoked or expired refresh token: only a sign-in helps.
                logger.info("the refresh was refused (%s); signing in", type(error).__name__)
        return await self._sign_in(retry=False)

    async def _refresh(self, tokens: Tokens) -> Tokens:
        body = msgspec.json.encode({"username": self._credentials.username, "refresh_token": tokens.refresh_token})
        answer = _read(await self._send(_auth_request("/v1/token-refresh", body), retry=False))
        return tokens.refreshed(answer.access_token, answer.expires_in, now=self._now())

    async def _sign_in(self, *, retry: bool) -> Tokens:
        # On the way of another request it is that one which is tried again, or attempts would multiply.
        if not self._credentials.can_sign_in:
            raise Unauthorized(
                "the access_token is no longer accepted, and there is no user name and password to get another one",
                status=401,
            )
        try:
            request = _auth_request("/v1/login", self._credentials.login_body())
            answer = _read(await self._send(request, retry=retry))
        except Unprocessable as error:
            raise Unauthorized("the user name or password has a form the server does not take", status=422) from error
        now = self._now()
        return Tokens(
            access_token=answer.access_token,
            access_expires=None if answer.expires_in is None else now + answer.expires_in,
            access_lifetime=answer.expires_in,
            refresh_token=answer.refresh_token,
            refresh_expires=now + REFRESH_LIFETIME,
        )

    async def _stored(self) -> Tokens | None:
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


def _read(response: Response) -> _Answer:
    try:
        answer = decode_json(response.body, _ANSWER)
    except DecodeError:
        # The body may hold tokens, so nothing of it is kept.
        raise DecodeError("the auth host did not answer with a JSON object of tokens") from None
    if answer.access_token:
        # A challenge beside valid tokens asks for nothing.
        return answer
    if answer.challenge_name:
        raise Unauthorized(
            f"the account has to answer a challenge first ({answer.challenge_name}); sign in once on the WME dashboard",
            status=response.status,
        )
    raise DecodeError("the auth host answered without an access token")


def _another(error: WMEError) -> WMEError:
    """Return an error of its own for another task, with notes of its own and without a traceback."""
    made = copy.copy(error)
    if hasattr(error, "__notes__"):
        made.__notes__ = [*error.__notes__]
    return made
