"""How the close of a client, its pool or its aiohttp session ends all waits.

aiohttp ends some waits by cancelling futures, some by an error of the connection, and some not at all. So each wait of
a client is registered here, and a close ends all of them in the same way.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from wme_async._transport.error_responses import bare_url
from wme_async.errors import ClientClosed, TransportError


class Waits:
    """The current waits of one client.

    Args:
        closed: Returns the name of the closed object; None while requests can be sent.

    Attributes:
        timeouts: One for each wait. A close makes it expire, whatever its time.
    """

    def __init__(self, closed: Callable[[], str | None]) -> None:
        self._closed = closed
        self.timeouts: set[asyncio.Timeout] = set()

    def error(self, url: str | None = None, *, before: bool = False) -> ClientClosed | None:
        """Return the error of a request after a close; None while all is open.

        Args:
            url: The URL of the request.
            before: The request begins after the close.
        """
        closed = self._closed()
        if closed is None:
            return None
        return ClientClosed(
            f"{closed} is closed; make a new one"
            if before
            else f"{closed} was closed under work; close it when all that uses it has ended",
            url=None if url is None else bare_url(url),
        )

    def end(self) -> None:
        """End all waits with `ClientClosed`, at once."""
        timeouts, self.timeouts = self.timeouts, set()
        for timeout in timeouts:
            timeout.reschedule(asyncio.get_running_loop().time())

    def wait(self, url: str | None = None, *, seconds: float | None = None) -> "Wait":
        """Return a context manager for a wait.

        Args:
            url: The URL of the request that waits.
            seconds: The time limit; None for no limit.
        """
        return Wait(self, url, seconds)


class Wait:
    """A block that a close ends with `ClientClosed`.

    A `CancelledError` that leaves the block although its task was not cancelled becomes `ClientClosed` too: the close
    of an aiohttp connector cancels the futures of all requests that wait for a connection. It would otherwise end a
    task without its being cancelled, and a task group would take that task for a finished one.

    Raises:
        ClientClosed: The client, its pool or its session was closed before or during the block.
        TimeoutError: The time limit is over.
    """

    __slots__ = ("_cancelling", "_timeout", "_url", "_waits")

    def __init__(self, waits: Waits, url: str | None, seconds: float | None) -> None:
        self._waits = waits
        self._url = url
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> Self:
        error = self._waits.error(self._url, before=True)
        if error is not None:
            raise error
        self._cancelling = _cancellations()
        await self._timeout.__aenter__()
        self._waits.timeouts.add(self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waits.timeouts.discard(self._timeout)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            closed = self._waits.error(self._url)
            if closed is None:
                raise
            raise closed from None
        if error is None or isinstance(error, ClientClosed):
            return
        if isinstance(error, asyncio.CancelledError):
            if _cancellations() <= self._cancelling:
                raise self._waits.error(self._url) or ClientClosed(
                    "the wait was cancelled from within, as the close of a connector does",
                    url=None if self._url is None else bare_url(self._url),
                ) from error
        elif isinstance(error, TransportError) and (closed := self._waits.error(self._url)) is not None:
            raise closed from error


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
