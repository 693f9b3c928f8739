"""Bytes to S3, Google Cloud Storage, Azure and files, by obstore (extra `cloud`: `pip install 'wme-async[cloud]'`).

    from wme_async.integrations.cloud import upload

    await upload(chunks, "s3://bucket/enwiki_namespace_0.tar.gz")

Parts are sent as their bytes arrive, several at a time: nothing is written to the disk, and memory holds a few parts.
The object exists once all of it is sent; an upload that ends early leaves none.
"""

import asyncio
import contextlib
import errno
import functools
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
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
_MAX_PARTS: Final = {S3Store: 10_000, GCSStore: 10_000, AzureStore: 50_000}
_GRACE: Final = 10.0  # seconds for the store to abort an upload
_PROBE: Final = ".writable"


class Uploaded(msgspec.Struct, frozen=True):
    """A written object.

    Attributes:
        url: Its URL; with a `store`, the path inside it.
        size: Bytes.
        etag: The store's ETag, unchanged.
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

    The task of the caller reads and closes the source, only as fast as the store accepts its bytes.

    Args:
        chunks: The bytes, in order: a download, `arrow.parquet_chunks`, or any other async iterable.
        to: `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `file:///path`. Credentials come from the
            environment of each cloud's tools, such as `AWS_ACCESS_KEY_ID`. With `store`, the path inside it.
        store: An obstore store of your own, such as one with its own credentials.
        size: Bytes in all, where known. Stores accept 10,000 parts of an object (Azure 50,000), so parts of a large
            object are larger. `content()` of an archive knows its size.
        part_size: Bytes of one part, or more; S3 wants 5 MiB at least.
        connections: Parts that are sent at a time.
        **options: For `obstore.store.from_url`, such as `region="eu-west-1"`, `endpoint=` or `client_options=`.

    Raises:
        TypeError: An argument of another type, or a chunk that is not bytes.
        ValueError: A URL without a key, or of an unknown scheme.
        OSError: The store returned an error: `PermissionError` and `FileNotFoundError` where they fit. Or the source
            has more bytes than the store accepts in parts of this size.
        Exception: Any exception of the source.
    """
    check_async_iterable("chunks", chunks, "bytes")
    check_path("to", to)
    check_numbers(whole=True, optional=False, minimum=1, part_size=part_size, connections=connections)
    check_numbers(whole=True, size=size)
    url = key = os.fspath(to)
    if store is None:
        store, key = _open_store(url, options)
    elif options:
        raise ValueError(f"a store has its own options; leave out {sorted(options)}")
    source = aiter(chunks)
    pipe = _Pipe()
    parts = _Parts(store, part_size, lambda: size if size is not None else getattr(chunks, "size", None))
    sending = asyncio.ensure_future(_put(store, key, pipe, parts, connections))
    size_so_far = 0
    try:
        try:
            async for chunk in source:
                if not isinstance(chunk, bytes | bytearray | memoryview):
                    raise TypeError(f"chunks must be bytes, and one is {type(chunk).__name__}")
                size_so_far += len(chunk)
                parts.check(size_so_far)
                await pipe.write(bytes(chunk), sending)
        finally:
            if hasattr(source, "aclose"):
                await source.aclose()
        await pipe.write(None, sending)
        result = await asyncio.shield(sending)
    except BaseException:
        # The store deletes the parts, even while this task is being cancelled.
        if not sending.done():
            pipe.abort()
        await wait_shielded(sending, grace=_GRACE)
        raise
    return Uploaded(url=url, size=size_so_far, etag=result.get("e_tag"), version=result.get("version"))


class _Parts:
    """The size of the parts of an object.

    Args:
        store: A store, whose kind limits the number of parts.
        min_size: Minimum bytes of a part.
        total: Returns the bytes of the object, or None if unknown. Called after the first bytes have arrived.
    """

    def __init__(self, store: Any, min_size: int, total: Callable[[], object]) -> None:
        self._max_parts = next((number for kind, number in _MAX_PARTS.items() if isinstance(store, kind)), None)
        self._min_size = min_size
        self._total = total

    @functools.cached_property
    def size(self) -> int:
        """Bytes of each part but the last."""
        total = self._total()
        if self._max_parts is None or not isinstance(total, int) or total <= self._max_parts * self._min_size:
            return self._min_size
        return -(-total // self._max_parts // _MIB) * _MIB

    def check(self, size: int) -> None:
        """Raise if there are more bytes than the store accepts: it would return an error only after all of them."""
        if self._max_parts is not None and size > self._max_parts * self.size:
            raise OSError(
                errno.EFBIG,
                f"the store takes {self._max_parts:,} parts, and the data needs more of {self.size:,} bytes each;"
                " give upload() the size or a larger part_size",
            )


class _Pipe:
    """The iterator from which obstore reads in its own task, which must never wait for ever."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self.started = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    async def write(self, chunk: bytes | None, upload: "asyncio.Future[Any]") -> None:
        """Add a chunk, or None for the end; raise the exception of the upload if it has ended."""
        if chunk == b"":
            return
        self.started.set()
        adding = asyncio.ensure_future(self._queue.put(chunk))
        try:
            await asyncio.wait([adding, upload], return_when=asyncio.FIRST_COMPLETED)
        finally:
            adding.cancel()
        if upload.done():
            upload.result()

    def abort(self) -> None:
        """Make the upload fail."""
        self.started.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(_AbortedError())


class _AbortedError(Exception):
    """The upload is aborted before the end of the source."""


async def _put(store: Any, key: str, pipe: _Pipe, parts: _Parts, connections: int) -> Any:
    # The size may be known only once the first bytes have arrived.
    await pipe.started.wait()
    with os_errors():
        return await obstore.put_async(
            store, key, pipe, use_multipart=True, chunk_size=parts.size, max_concurrency=connections
        )


def _open_store(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return a store and the key in it for a URL."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{url!r} must be one of {', '.join(sorted(f'{scheme}://' for scheme in _SCHEMES))}")
    folder, _, last = parts.path.rpartition("/")
    if not last or (parts.scheme != "file" and not parts.netloc) or parts.query or parts.fragment:
        raise ValueError(f"{url!r} must name an object: a bucket and a key, without a query")
    with os_errors():
        if parts.scheme == "file":
            return from_url(f"file://{folder or '/'}", mkdir=True, **options), unquote(last)
        return from_url(f"{parts.scheme}://{parts.netloc}", **options), unquote(parts.path.lstrip("/"))


class ObjectFolder:
    """A folder of an object store. An object appears as a whole, so that readers never see half of one.

    Args:
        url: `s3://bucket/folder`, `gs://…`, `az://…`. Credentials come from the environment of each cloud's tools.

    Raises:
        OSError: The store cannot be used, such as an unknown kind.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = url.rstrip("/")
        self._prefix = unquote(parts.path.strip("/"))
        with os_errors():
            self._store: Any = from_url(f"{parts.scheme}://{parts.netloc}")

    def location(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self._url}/{name}"

    async def read(self, name: str) -> bytes | None:
        """Return the bytes of a small object; None if there is none."""
        with contextlib.suppress(FileNotFoundError), os_errors():
            response = await obstore.get_async(self._store, self._key(name))
            return bytes(await response.bytes_async())
        return None

    async def size(self, name: str) -> int | None:
        """Return the bytes of an object; None if there is none."""
        with contextlib.suppress(FileNotFoundError), os_errors():
            return int((await obstore.head_async(self._store, self._key(name)))["size"])
        return None

    async def create(self, name: str, data: bytes) -> bool:
        """Write a small object unless there is one already, and return whether it was written."""
        with contextlib.suppress(FileExistsError), os_errors():
            await obstore.put_async(self._store, self._key(name), data, mode="create", use_multipart=False)
            return True
        return False

    async def replace(self, name: str, data: bytes) -> None:
        """Write a small object, whether there is one already or not."""
        with os_errors():
            await obstore.put_async(self._store, self._key(name), data, use_multipart=False)

    async def write(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Write an object of any size as its bytes arrive."""
        await upload(chunks, self._key(name), store=self._store)

    async def prepare(self, folder: str) -> None:
        """Write an empty object into a folder, so that a store that cannot be written is noticed in time."""
        await self.replace(f"{folder}/{_PROBE}", b"")

    async def clean(self, folder: str) -> None:
        """Remove the object of `prepare`; an upload that ends early leaves none."""
        with os_errors(), contextlib.suppress(exceptions.NotFoundError):
            await obstore.delete_async(self._store, self._key(f"{folder}/{_PROBE}"))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turn the errors of stores into those of the operating system, in one line each."""
    try:
        yield
    except exceptions.NotFoundError as error:
        raise FileNotFoundError(_first_line(error)) from error
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(_first_line(error)) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(_first_line(error)) from error
    except exceptions.BaseError as error:
        raise OSError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """Return the message of an error without its debugging output."""
    return str(error).split("\n", 1)[0]
