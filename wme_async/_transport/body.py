"""The body of a response while it arrives, with a read timeout that does not depend on aiohttp."""

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

_ERROR_BODY = 64 * 1024


class Body:
    """The body of a response while it arrives. It holds a connection until it is closed.

    Attributes:
        status: HTTP status, one that the request accepts.
        headers: Case-insensitive.
        url: The URL of the request, with its query.
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
        # Bodies of a user's own session, which may observe them, are read through aiohttp alone.
        self._direct = direct
        self._read_timeout = read_timeout
        self.status = response.status
        self.headers: CIMultiDictProxy[str] = response.headers
        self.url = url

    def __repr__(self) -> str:
        return f"<Body {self.status} {bare_url(self.url)}>"

    def read_ahead(self, size: int) -> None:
        """Let `chunks` yield up to about twice this many bytes at once. A smaller size has no effect."""
        self._response.content.set_read_chunk_size(size)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive, in chunks of any size.

        Raises:
            Interrupted: The body ended early.
            TimedOut: No byte arrived within the read timeout.
        """
        while chunk := await self._next():
            yield chunk

    async def copy_to(self, sink: Sink) -> None:
        """Pass all bytes to a function, in order, without a copy. Its exceptions end the transfer and are raised here.

        Args:
            sink: Called in the event loop. The view is valid until it returns or, if it returns an awaitable, until
                that is done; nothing more is read from the connection meanwhile.

        Raises:
            Interrupted: The body ended early.
            TimedOut: No byte arrived within the read timeout.
        """
        try:
            if self._direct and await take_over(
                self._response, sink, url=bare_url(self.url), read_timeout=self._read_timeout
            ):
                return
        except (aiohttp.ClientError, TransportError) as error:
            self._fail(error)
        while chunk := await self._next():
            pending = sink(memoryview(chunk))
            if pending is not None:
                await pending

    async def read(self, limit: int, *, seconds: float | None = None) -> bytes:
        """Return the whole body.

        Args:
            limit: The most bytes to accept.
            seconds: The time limit for the whole body; None for the read timeout alone.

        Raises:
            DataError: The body is longer.
            Interrupted: The body ended early.
            TimedOut: No byte arrived within the read timeout, or the body was not complete in time.
        """
        if self._response.content.is_eof():
            # All of it has arrived: nothing to wait for.
            return await self._whole(limit)
        try:
            async with asyncio.timeout(seconds) as timeout:
                return await self._whole(limit)
        except TimeoutError:
            if not timeout.expired():
                raise
            url = bare_url(self.url)
            raise TimedOut(f"{url} had not sent its whole response after {seconds:g} s", url=url) from None

    async def _whole(self, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        # Small responses come by the thousand, most in one chunk, so a generator would cost more than it saves.
        while chunk := await self._next():
            size += len(chunk)
            if size > limit:
                raise DataError(f"the response is longer than the limit of {limit} bytes", url=bare_url(self.url))
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def beginning(self, seconds: float) -> bytes:
        """Return the beginning of an error's body that arrives within some seconds, whether it is complete or not."""
        data = b""
        with contextlib.suppress(WMEError, TimeoutError):
            async with asyncio.timeout(seconds):
                while len(data) < _ERROR_BODY and (chunk := await self._next()):
                    data += chunk
        return data[:_ERROR_BODY]

    def close(self) -> None:
        """Release the connection if the body was read to its end, else close it. A second call has no effect."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    async def _next(self) -> bytes:
        """Return the next bytes, at once if some are buffered; b"" at the end of the body."""
        content = self._response.content
        try:
            chunk = content.read_nowait()
            if not chunk and not content.at_eof():
                # The read timer of aiohttp ends with the session, and its reader then waits for ever.
                async with self._waits.wait(self.url, seconds=self._read_timeout):
                    chunk = await content.readany()
            if not chunk:
                self._end.check()
        except (aiohttp.ClientError, OSError, AssertionError, RuntimeError, TransportError) as error:
            self._fail(error)
        return chunk

    def _fail(self, error: Exception) -> NoReturn:
        """Raise the error of ours for an exception while the body is read."""
        closed = None if isinstance(error, ClientClosed) else self._waits.error(self.url)
        if closed is not None:
            raise closed from error
        if isinstance(error, TransportError):
            raise error
        raise translate(error, url=self.url, timeout=self._read_timeout) from error
