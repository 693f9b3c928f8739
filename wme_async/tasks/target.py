"""The folder that tasks write to: on a disk, or in an object store."""

import errno
import os
from collections.abc import AsyncIterable
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Protocol

from wme_async._files import part_of, publish, sync_file, sync_folder, write_atomically
from wme_async._tasks import in_thread, open_in_thread

__all__ = ["Target", "open_target"]


class Target(Protocol):
    """The folder of an output. Names are relative to it; a file appears as a whole."""

    def location(self, name: str) -> str:
        """Return the path or URL of a file."""
        ...  # pyright takes a body of words alone for one that returns nothing

    async def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file; None if there is none."""

    async def size(self, name: str) -> int | None:
        """Return the bytes of a file; None if there is none."""

    async def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one already, and return whether it was written."""
        ...  # pyright takes a body of words alone for one that returns nothing

    async def replace(self, name: str, data: bytes) -> None:
        """Write a small file, whether there is one already or not."""

    async def write(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        """Write a file of any size as its bytes arrive. It replaces one of that name."""

    async def prepare(self, folder: str) -> None:
        """Raise if nothing can be written to a folder, before anything is spent."""

    async def clean(self, folder: str) -> None:
        """Remove the unfinished files of a folder."""


def open_target(to: str) -> Target:
    """Return the folder of an output.

    Args:
        to: A path, or a URL of an object store (extra `cloud`).

    Raises:
        ImportError: It is a URL, and the extra is not installed.
        OSError: The store cannot be used.
    """
    if "://" not in to:
        return _Folder(Path(to))
    from wme_async.integrations.cloud import ObjectFolder  # noqa: PLC0415 - an extra, whose message says what to install

    return ObjectFolder(to)


class _Folder:
    """A folder on a disk, which several hosts may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def location(self, name: str) -> str:
        return str(self._folder / name)

    async def read(self, name: str) -> bytes | None:
        try:
            return await in_thread((self._folder / name).read_bytes)
        except FileNotFoundError:
            return None

    async def size(self, name: str) -> int | None:
        try:
            return (await in_thread((self._folder / name).stat)).st_size
        except FileNotFoundError:
            return None

    async def create(self, name: str, data: bytes) -> bool:
        path = self._folder / name
        if await in_thread(path.exists):
            return False
        await self.replace(name, data)
        return True

    async def replace(self, name: str, data: bytes) -> None:
        path = self._folder / name
        await in_thread(path.parent.mkdir, parents=True, exist_ok=True)
        await in_thread(write_atomically, path, data, mode=0o644)

    async def write(self, name: str, chunks: AsyncIterable[bytes]) -> None:
        path = self._folder / name
        await in_thread(path.parent.mkdir, parents=True, exist_ok=True)
        part = part_of(path)
        file = await open_in_thread(partial(part.open, "wb"), partial(_discard, part))
        try:
            async for chunk in chunks:
                await in_thread(file.write, chunk)
            await in_thread(self._publish, file, part, path)
        finally:
            # Of a finished file, the name is gone.
            await in_thread(_discard, part, file)

    async def prepare(self, folder: str) -> None:
        path = self._folder / folder
        await in_thread(path.mkdir, parents=True, exist_ok=True)
        if not await in_thread(os.access, path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "nothing can be written to the folder", str(path))

    async def clean(self, folder: str) -> None:
        def remove() -> None:
            for part in (self._folder / folder).glob("*.part"):
                part.unlink(missing_ok=True)

        await in_thread(remove)

    @staticmethod
    def _publish(file: BufferedWriter, part: Path, path: Path) -> None:
        file.flush()
        sync_file(file.fileno())
        publish(file.fileno(), part, path, size=file.tell(), close=file.close)
        sync_folder(path.parent)


def _discard(part: Path, file: BufferedWriter) -> None:
    try:
        file.close()
    except OSError as error:
        # Its last bytes do not fit on the disk, and it is removed anyway.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
    finally:
        part.unlink(missing_ok=True)
