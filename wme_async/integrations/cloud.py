"""Bytes to S3, Google Cloud Storage, Azure and files, by obstore (extra `cloud`: `pip install 'wme-async[cloud]'`).

    from wme_async.integrations.cloud import upload

    await upload(chunks, "s3://bucket/enwiki_namespace_0.tar.gz")

Bytes go in parts, several at a time, as they arrive: nothing is written to the disk and little is held in memory. The
object is there when all of it was sent; whatever ends the upload earlier leaves none.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from wme_async._arguments import check_async_iterable, check_numbers, check_path
from wme_async._tasks import wait_shielded

try:
    import obstore
    from obstore import exceptions
    from obstore.store import AzureStore, GCSStore, S3Store, from_url
except ImportError as _error:
    raise ImportError("cloud storage needs the extra `cloud`: pip install 'wme-async[cloud]'") from _error

__all__ = ["Uploaded", "upload"]

_SCHEMES: Final = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "file"})
_MIB: Final = 1024 * 1024
_PART: Final = 8 * _MIB
_MOST_PARTS: Final = {S3Store: 10_000, GCSStore: 10_000, AzureStore: 50_000}
_GRACE: Final = 10.0  # seconds for the store to take an upload back


class Uploaded(msgspec.Struct, frozen=True):
    """An object that was written.

    Attributes:
        url: Where it is; the path inside the store, where a store was given.
        size: Bytes.
        etag: The store's ETag, as it writes it.
        version: The store's version of the object, where the bucket keeps versions.
    """

    url: str
    size: int
    etag: str | None = None
    version: str | None = None


async def upload(
    chunks: AsyncIterable[bytes],
    to: "str | os.PathLike[str]",
    *,
    store: Any = None,
    size: int | None = None,
    part_size: int = _PART,
    connections: int = 4,
    **options: Any,
) -> Uploaded:
    """Send bytes to an object as they arrive.

    The source is read and closed in the task that calls this, and only as fast as the store takes its bytes.

    Args:
        chunks: The bytes, in order: a download, `arrow.parquet_chunks`, or any other async iterable.
        to: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `file:///path`. Credentials are found where the
            tools of each cloud look for them, such as `AWS_ACCESS_KEY_ID`. With `store`, the path inside it.
        store: An obstore store of your own, such as one with its own credentials.
        size: Bytes in all, where known. Stores take 10,000 parts of an object (Azure 50,000), so parts are made larger
            where that is needed. `content()` of an archive knows its size by itself.
        part_size: Bytes of one part, or more; S3 wants 5 MiB at least.
        connections: Parts on their way at a time.
        **options: For `obstore.store.from_url`, such as `region="eu-west-1"`, `endpoint=` or `client_options=`.

    Raises:
        TypeError: An argument of another type, or a chunk that is not bytes.
        ValueError: A URL without a key, or of a kind that is not known.
        OSError: The store refused; `PermissionError` and `FileNotFoundError` where it says so. Or these are more bytes
            than the store takes in parts of this size.
        Exception: What the source raises.
    """
    check_async_iterable("chunks", chunks, "bytes")
    check_path("to", to)
    check_numbers(whole=True, optional=False, part_size=part_size, connections=connections)
    check_numbers(whole=True, size=size)
    if part_size < 1 or connections < 1:
        raise ValueError(f"part_size and connections are numbers above 0, not {part_size} and {connections}")
    name = os.fspath(to)
    if store is None:
        store, key = _store(name, options)
    elif options:
        raise ValueError(f"a store has its options already: {sorted(options)}")
    else:
        key = name
    source = aiter(chunks)
    taken = _Taken()
    parts = _Parts(store, part_size, lambda: size if size is not None else getattr(chunks, "size", None))
    putting = asyncio.ensure_future(_put(store, key, taken, parts, connections))
    sent = 0
    try:
        try:
            async for chunk in source:
                if not isinstance(chunk, bytes | bytearray | memoryview):
                    raise TypeError(f"chunks are bytes, and one is {type(chunk).__name__}")
                sent += len(chunk)
                parts.check(sent)
                await taken.give(bytes(chunk), putting)
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
        await taken.give(None, putting)
        result = await asyncio.shield(putting)
    except BaseException:
        await _take_back(taken, putting)
        raise
    return Uploaded(url=name, size=sent, etag=result.get("e_tag"), version=result.get("version"))


class _Parts:
    """How large the parts of an object are.

    Args:
        store: Takes so many of them.
        least: Bytes of one.
        total: Returns the bytes of the object, None where unknown. Asked when the first of them are there.
    """

    def __init__(self, store: Any, least: int, total: Callable[[], object]) -> None:
        self._most = next((most for kind, most in _MOST_PARTS.items() if isinstance(store, kind)), None)
        self._size = least
        self._total = total
        self._fixed = False

    @property
    def size(self) -> int:
        """Bytes of each part but the last."""
        if not self._fixed:
            self._fixed = True
            total = self._total()
            if self._most is not None and isinstance(total, int) and total > self._most * self._size:
                self._size = -(-total // self._most // _MIB) * _MIB
        return self._size

    def check(self, sent: int) -> None:
        """Raise if there are more bytes than the store takes: it would say so only after all of them."""
        if self._most is not None and sent > self._most * self.size:
            raise OSError(
                errno.EFBIG,
                f"the store takes {self._most:,} parts, and these are more than as many of {self.size:,} bytes; give"
                " upload() the size or a larger part_size",
            )


class _Taken:
    """What obstore reads from. Its task is not ours, so it must never be left waiting."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self.begun = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    async def give(self, chunk: bytes | None, putting: "asyncio.Future[Any]") -> None:
        """Hand over a chunk, or the end; raise what ended the upload, if anything did."""
        if chunk == b"":
            return
        self.begun.set()
        giving = asyncio.ensure_future(self._queue.put(chunk))
        try:
            await asyncio.wait([giving, putting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            giving.cancel()
        if putting.done():
            putting.result()

    def refuse(self) -> None:
        """Make the upload fail."""
        self.begun.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(_TakenBackError())


class _TakenBackError(Exception):
    """The source has ended before its end."""


async def _take_back(taken: _Taken, putting: "asyncio.Future[Any]") -> None:
    """End an upload so that the store forgets its parts, even while this task is being cancelled."""
    if not putting.done():
        taken.refuse()
    await wait_shielded(putting, grace=_GRACE)


async def _put(store: Any, key: str, taken: _Taken, parts: _Parts, connections: int) -> Any:
    # How large it is may be known only once its first bytes are there.
    await taken.begun.wait()
    try:
        return await obstore.put_async(
            store, key, taken, use_multipart=True, chunk_size=parts.size, max_concurrency=connections
        )
    except exceptions.NotFoundError as error:
        raise FileNotFoundError(_first_line(error)) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(_first_line(error)) from error
    except exceptions.BaseError as error:
        raise OSError(_first_line(error)) from error


def _store(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return a store and the key in it for a URL."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{url!r} must be one of {', '.join(sorted(f'{each}://' for each in _SCHEMES))}")
    folder, _, last = parts.path.rpartition("/")
    if not last or (parts.scheme != "file" and not parts.netloc) or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must name an object: a bucket and a key, without a query")
    try:
        if parts.scheme == "file":
            return from_url(f"file://{folder or '/'}", mkdir=True, **options), unquote(last)
        return from_url(f"{parts.scheme}://{parts.netloc}", **options), unquote(parts.path.lstrip("/"))
    except exceptions.BaseError as error:
        raise OSError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """Return what happened without the debugging output that follows it."""
    return str(error).split("\n", 1)[0]
