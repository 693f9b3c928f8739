"""A whole file in one response: for servers without ranges, and for files whose version nothing proves."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable

import msgspec

from wme_async._download.attempts import MAX_WRONG_RESPONSES, SIGNATURES_REFUSED
from wme_async._download.budget import Budget, SignedUrlCache, after
from wme_async._download.range_fetcher import FileReplaced
from wme_async._download.range_responses import (
    conditions,
    content_coding,
    content_length,
    etag_matches,
    parse_content_range,
    strong_etag,
)
from wme_async._download.range_store import RangeStore
from wme_async._download.source import FileInfo
from wme_async._transport import Body, Request, Transport
from wme_async._transport.retry import Backoff, is_transient, note_attempts
from wme_async.errors import IntegrityError, Interrupted, StatusError, WMEError


class WholeFileFetcher:
    """Fetches a file in one response. Nothing proves that two responses hold the same bytes, so none is resumed.

    Args:
        transport: Sends the requests.
        signed_urls: Has the address.
        budget: Connections and bandwidth.
        store: Takes the bytes.
        hashed: Compute their MD5.

    Attributes:
        done: Bytes of the present attempt.
        size: Bytes of the file, None where unknown.
        fetched: Bytes of all attempts.
        versions: How often a later attempt may have begun another version.
    """

    def __init__(
        self,
        transport: Transport,
        signed_urls: SignedUrlCache,
        budget: Budget,
        store: RangeStore,
        *,
        hashed: bool = False,
    ) -> None:
        self.done = 0
        self.size: int | None = None
        self.fetched = 0
        self.versions = 0
        self._transport = transport
        self._signed_urls = signed_urls
        self._budget = budget
        self._store = store
        self._hashed = hashed
        self._digest = hashlib.md5(usedforsecurity=False)

    @property
    def md5(self) -> str | None:
        """The MD5 of the present attempt, if it is computed."""
        return self._digest.hexdigest() if self._hashed else None

    @property
    def frontier(self) -> int:
        """The offset up to which all bytes are there."""
        return self.done

    async def run(self, info: FileInfo) -> FileInfo:
        """Fetch the file into an empty store.

        Args:
            info: The version to fetch.

        Returns:
            The version that the response names.

        Raises:
            FileReplaced: The server has another version.
            WMEError: All attempts failed.
        """
        backoff = Backoff(self._transport.retry, self._transport.random.random)
        began = self._transport.monotonic()
        await self._budget.acquire()
        try:
            while True:
                try:
                    return await self._fetch(info)
                except WMEError as error:
                    delay = self._delay_after(error, backoff, self._transport.monotonic() - began)
                    self.done = 0
                    self.versions += self._signed_urls.plain or strong_etag(info.etag) is None
                    await self._store.restart(error)
                await self._transport.sleep(delay)
        finally:
            self._budget.release()

    async def _fetch(self, info: FileInfo) -> FileInfo:
        self.done, self.size = 0, info.size
        self._digest = hashlib.md5(usedforsecurity=False)
        async with self._open(info) as (body, received):
            self.size = received.size
            await body.copy_to(self._take)
        if self.size is not None and self.done != self.size:
            raise Interrupted(f"the response ended after {self.done} of {self.size} bytes", url=None)
        return received

    def _take(self, data: memoryview) -> Awaitable[None] | None:
        count = len(data)
        self.fetched += count
        if self.size is not None and self.done + count > self.size:
            raise IntegrityError(f"the server sent more than the {self.size} bytes that it announced")
        writing = self._store.write(self.done, data)
        self.done += count
        if self._hashed:
            self._digest.update(data)
        return after(writing, self._transport, self._budget.moved(count, self._transport.monotonic()))

    @contextlib.asynccontextmanager
    async def _open(self, info: FileInfo) -> AsyncIterator[tuple[Body, FileInfo]]:
        """Request a file in one response, all of which is of one version.

        An archive must have the known version. For a URL of the user's the response itself decides: the request has no
        conditions, and a content coding is part of the file.

        Yields:
            The body, and the version that its head names; `size` is None if the head does not say it.

        Raises:
            FileReplaced: It is another version.
            IntegrityError: It is not the file.
            WMEError: The request failed.
        """
        signed = await self._signed_urls.get()
        plain = self._signed_urls.plain
        etag = None if plain else strong_etag(info.etag)
        request = Request(
            method="GET",
            role=signed.role,
            path=signed.url,
            headers={**signed.headers, "Accept-Encoding": "identity", **conditions(etag)},
            accepts="any",
        )
        try:
            async with self._transport.open(request, retry=False) as body:
                size = _size_of_any(body) if plain else _size_of_version(body, info, etag)
                self._signed_urls.worked()
                yield body, msgspec.structs.replace(info, size=size, etag=body.headers.get("ETag", info.etag))
        except StatusError as error:
            if error.status == 403:
                self._signed_urls.refused(signed)
            raise

    def _delay_after(self, error: WMEError, backoff: Backoff, elapsed: float) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            error: The failure of the last attempt.
            backoff: Counts the attempts.
            elapsed: Seconds since the first attempt began.

        Raises:
            FileReplaced: The server has another version.
            WMEError: That was the last attempt.
        """
        status = error.status if isinstance(error, StatusError) else None
        if status == 412:
            raise FileReplaced(str(error)) from error
        if self._signed_urls.failure is not None:
            raise error
        if status == 403:
            if self._signed_urls.exhausted:
                error.add_note(SIGNATURES_REFUSED)
                raise error
            return 0.0
        is_wrong = isinstance(error, IntegrityError)
        if not is_wrong and not is_transient(error):
            raise error
        delay = backoff.failed(error, elapsed=elapsed)
        if delay is None or (is_wrong and backoff.attempts > MAX_WRONG_RESPONSES):
            raise note_attempts(error, attempts=backoff.attempts, elapsed=elapsed)
        return delay


def _size_of_version(body: Body, info: FileInfo, etag: str | None) -> int | None:
    """Return the size that a response announces for a known version of a file, or raise if it has another one."""
    coding = content_coding(body.headers)
    if body.status != 200 or coding is not None:
        encoded = f", encoded ({coding})," if coding else ""
        raise _unexpected(body, f"HTTP {body.status}{encoded} in place of the plain file")
    if not etag_matches(body.headers.get("ETag"), etag):
        raise FileReplaced("the ETag has changed")
    size = content_length(body.headers)
    if size is not None and info.size is not None and size != info.size:
        raise FileReplaced(f"the file has {size} bytes and no longer {info.size}")
    return size if size is not None else info.size


def _size_of_any(body: Body) -> int | None:
    """Return the size that a response announces for a whole file, or raise if it does not hold one."""
    length = content_length(body.headers)
    if body.status in {200, 203}:
        return length
    if body.status == 204 or (body.status == 206 and length == 0):
        # Some servers have no other way to send an empty file.
        return 0
    content_range = parse_content_range(body.headers.get("Content-Range")) if body.status == 206 else None
    if content_range is not None and content_range.start == 0 and content_range.stop == content_range.size:
        return content_range.size
    raise _unexpected(body, f"HTTP {body.status} in place of the whole file")


def _unexpected(body: Body, message: str) -> IntegrityError:
    return IntegrityError(message, url=body.url.partition("?")[0])
