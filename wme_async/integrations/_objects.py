"""Small objects below one URL of an object store: read, created only where there is none, replaced."""

import contextlib
from collections.abc import AsyncIterable, Iterator
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import from_url

__all__ = ["ObjectFolder", "os_errors"]


_PROBE: Final = ".writable"


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
        try:
            with os_errors():
                response = await obstore.get_async(self._store, self._key(name))
                return bytes(await response.bytes_async())
        except FileNotFoundError:
            return None

    async def size(self, name: str) -> int | None:
        """Return the bytes of an object; None if there is none."""
        try:
            with os_errors():
                return int((await obstore.head_async(self._store, self._key(name)))["size"])
        except FileNotFoundError:
            return None

    async def create(self, name: str, data: bytes) -> bool:
        """Write a small object unless there is one already, and return whether it was written."""
        try:
            with os_errors():
                await obstore.put_async(self._store, self._key(name), data, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        return True

    async def replace(self, name: str, data: bytes) -> None:
        """Write a small object, whether there is one already or not."""
        with os_errors():
            await obstore.put_async(self._store, self._key(name), data, use_multipart=False)

    async def write(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Write an object of any size as its bytes arrive."""
        from wme_async.integrations.cloud import upload  # noqa: PLC0415 - it uses `os_errors`

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
