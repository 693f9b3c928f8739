"""What the stores on a server have in common: connections while they are used, and patience with the server."""

import asyncio
import contextlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Final, Generic, Self, TypeVar
from urllib.parse import SplitResult

from wme_async.errors import StreamError

__all__ = ["DatabaseStore", "needed_extra", "server_name"]

logger: logging.Logger = logging.getLogger("wme_async.offsets")

C = TypeVar("C")
R = TypeVar("R")

_FIRST_WAIT: Final = 0.05  # seconds; each further one is twice as long
_LONGEST_WAIT: Final = 1.0


class DatabaseStore(ABC, Generic[C]):
    """Opens connections for the first use, and closes them after the last.

    A use is an `async with` block of the store, or one call outside of any. Nothing stays open after it, so a store
    that nobody closes leaves nothing behind.

    Args:
        server: The name of the server for messages, without a password.
        timeout: Seconds for one call, with all its repetitions.
        client: The user's pool or client, which is never closed here; None to open one.
    """

    def __init__(self, server: str, timeout: float, client: C | None) -> None:
        self._server = server
        self._timeout = timeout
        self._client = client
        self._owns = client is None
        self._uses = 0
        self._warned = False  # of an outage that lasts

    async def __aenter__(self) -> Self:
        self._uses += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._uses -= 1
        if not self._uses and self._owns and self._client is not None:
            client, self._client = self._client, None
            await self._close(client)

    async def _call(self, work: Callable[[C], Awaitable[R]]) -> R:
        """Do something with the server, and again while it cannot be reached, as in a restart.

        Args:
            work: May be done twice: a server that is cut off may have done it the first time.

        Raises:
            StreamError: The server cannot be reached, or does not do it.
        """
        async with self:
            deadline = asyncio.get_running_loop().time() + self._timeout
            wait = _FIRST_WAIT
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        if self._client is None:
                            self._client = await self._open()
                        with _unlost_cancellation():
                            result = await work(self._client)
                except Exception as error:
                    problem = self._problem(error)
                    if problem is None:
                        raise
                    if not self._is_passing(error) or asyncio.get_running_loop().time() + wait >= deadline:
                        raise StreamError(f"{self._server} {problem}") from error
                    if not self._warned:
                        self._warned = True
                        logger.warning("%s %s; trying again", self._server, problem)
                else:
                    self._warned = False
                    return result
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    @abstractmethod
    async def _open(self) -> C:
        """Return a client that connects by itself; it does not wait for the server."""

    @abstractmethod
    async def _close(self, client: C) -> None:
        """Close the connections of a client."""

    @abstractmethod
    def _is_passing(self, error: Exception) -> bool:
        """Return whether the same call may succeed a little later."""

    @abstractmethod
    def _problem(self, error: Exception) -> str | None:
        """Return an error of the server in words, to follow its name; None for an error of the program."""


@contextlib.contextmanager
def _unlost_cancellation() -> Iterator[None]:
    """Raise a cancellation that a library took for its own, as redis-py does if its sockets have a time limit."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before and not isinstance(sys.exception(), asyncio.CancelledError):
            raise asyncio.CancelledError


@contextlib.contextmanager
def needed_extra(store: str, package: str, extra: str) -> Iterator[None]:
    """Say how to install a package that a block imports, if it is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{store} needs {package}: pip install 'wme-async[{extra}]'") from error


def server_name(kind: str, parts: SplitResult) -> str:
    """Return the name of a server for messages: kind, host, port and database, and nothing secret.

    Args:
        kind: Such as "PostgreSQL".
        parts: A split URL.

    Raises:
        ValueError: Its port is not a number.
    """
    if "," in parts.netloc:  # several servers
        return kind
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"the port in the URL of {kind} is not a number from 0 to 65535") from None
    return f"{kind} at {parts.hostname}{f':{port}' if port else ''}{parts.path}" if parts.hostname else kind
