"""An answer whose body is still on its way, read with a watch on silence that does not depend on aiohttp."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

import aiohttp
from multidict import CIMultiDictProxy

from wme_async._transport.body_end import BodyEnd
from wme_async._transport.closing import Waits
from wme_async._transport.error_responses import bare_url
from wme_async._transport.fast_body import Sink, take_over
from wme_async._transport.requests import translate
from wme_async.errors import ClientClosed, DataError, TimedOut, TransportError, WMEError

__all__ = ["Body"]

_ERROR_BODY = 64 * 1024


class Body:
    """An answer whose body is still on its way. It holds a connection until it is closed.

    Attributes:
        status: HTTP status, one that the request accepts.
        headers: Looked up without regard to case.
        url: What was asked, with its query.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        end: BodyEnd,
        *,
        url: str,
        read_timeout: float,
        waits: Waits,
        direct: bool = False,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._on_close = on_close
        self._response = response
        self._end = end
        self._waits = waits
        # Sessions of the user's own may watch their bodies, so those are read by aiohttp alone.
        self._direct = direct
        self._read_timeout = read_timeout
        self.status = response.status
        self.headers: CIMultiDictProxy[str] = response.headers
        self.url = url

    def __repr__(self) -> str:
        return f"<Body {self.status} {bare_url(self.url)}>"

    def read_ahead(self, size: int) -> None:
        """Let `chunks` hand out up to about twice so many bytes at once. It can be raised, not lowered."""
        self._response.content.set_read_chunk_size(size)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they come from the socket, in pieces of no particular size.

        Raises:
            Interrupted: The body ended early.
            TimedOut: Nothing came for as long as is allowed.
        """
        while piece := await self._next():
            yield piece

    async def copy_to(self, sink: Sink) -> None:
        """Give all bytes to a function, in order and cheaply. What it raises ends the transfer and comes out here.

        Args:
            sink: Called in the event loop. The view is its own until it returns or, if it returns something to await,
                until that is done; nothing more is read from the connection meanwhile.

        Raises:
            Interrupted: The body ended early.
            TimedOut: Nothing came for as long as is allowed.
        """
        try:
            if self._direct and await take_over(
                self._response, sink, url=bare_url(self.url), read_timeout=self._read_timeout
            ):
                return
        except (aiohttp.ClientError, TransportError) as error:
            self._fail(error)
        while piece := await self._next():
            pending = sink(memoryview(piece))
            if pending is not None:
                await pending

    async def read(self, limit: int, *, seconds: float | None = None) -> bytes:
        """Return the whole body.

        Args:
            limit: Bytes above which it is refused.
            seconds: How long it may take in all; None for as long as something comes.

        Raises:
            DataError: The body is longer.
            Interrupted: The body ended early.
            TimedOut: Nothing came for as long as is allowed, or it was not whole in time.
        """
        try:
            async with asyncio.timeout(seconds) as whole:
                return await self._whole(limit)
        except TimeoutError:
            if not whole.expired():
                raise
            shown = bare_url(self.url)
            raise TimedOut(f"{shown} had not sent its whole answer after {seconds:g} s", url=shown) from None

    async def _whole(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        # Small answers come by the thousand, and most in one piece: no generator is worth making for them.
        while piece := await self._next():
            size += len(piece)
            if size > limit:
                raise DataError(f"the answer is longer than the {limit} bytes that are allowed", url=bare_url(self.url))
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def beginning(self, seconds: float) -> bytes:
        """Return what of an error's body comes in so many seconds; that it breaks off is of no interest."""
        pieces: list[bytes] = []
        size = 0
        with contextlib.suppress(WMEError, TimeoutError):
            async with asyncio.timeout(seconds):
                while size < _ERROR_BODY and (piece := await self._next()):
                    pieces.append(piece)
                    size += len(piece)
        return b"".join(pieces)[:_ERROR_BODY]

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it. Once is enough."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    async def _next(self) -> bytes:
        """Return the bytes that are there, or the next that come; b"" at the end of the body."""
        content = self._response.content
        try:
            piece = content.read_nowait()
            if not piece and not content.at_eof():
                # aiohttp has a timer for silence too, but it ends with the session, and its reader then waits for ever.
                async with self._waits.wait(self.url, seconds=self._read_timeout):
                    piece = await content.readany()
            if not piece:
                self._end.check()
        except (aiohttp.ClientError, OSError, AssertionError, RuntimeError, TransportError) as error:
            self._fail(error)
        return piece

    def _fail(self, error: Exception) -> NoReturn:
        """Raise what an exception means for whoever reads the body."""
        if isinstance(error, ClientClosed):
            raise error
        closed = self._waits.error(self.url)
        if closed is not None:
            raise closed from error
        if isinstance(error, TransportError):
            raise error
        raise translate(error, url=self.url, timeout=self._read_timeout) from error
