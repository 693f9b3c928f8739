"""Positions in a folder: one small JSON file for each name."""

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiofiles
import msgspec

from wme_async._files import private_folder, write_atomically
from wme_async._protocol.arguments import check_path
from wme_async._protocol.decode import decode_json
from wme_async._protocol.positions import Position
from wme_async._tasks import in_thread
from wme_async.errors import DecodeError
from wme_async.offsets._lock import file_name, locked
from wme_async.offsets.protocol import check_name, check_positions

__all__ = ["FileOffsets"]


class _Content(msgspec.Struct):
    name: str
    positions: dict[int, Position]
    version: int = 1


_CONTENT = msgspec.json.Decoder(_Content)


class FileOffsets:
    """Keeps positions in a folder on a local disk.

    Each save writes a new file, brings it to the disk and renames it over the old one, so that there is always a whole
    one: the old or the new. A lock file beside it keeps a second reader of the same name away; the kernel ends the lock
    with the process, so nothing has to be cleaned up after a crash.

    Args:
        folder: The folder; it is made at the first save.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        check_path("folder", folder)
        self.folder: Path = Path(folder)
        self._mutex = threading.Lock()  # a save reads, merges and writes

    def __repr__(self) -> str:
        return f"FileOffsets({str(self.folder)!r})"

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition.

        Raises:
            DecodeError: The file is not one of ours.
            OSError: It cannot be read.
        """
        check_name(name)
        path = self._path(name)
        try:
            async with aiofiles.open(path, "rb") as file:
                return _positions(path, await file.read())
        except FileNotFoundError:
            return {}

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Keep these positions, leaving other partitions as they are. When it returns, they are on the disk.

        Raises:
            DecodeError: The file that is there is not one of ours, so it is not overwritten.
            OSError: It cannot be written; the old file is still there.
        """
        check_positions(name, positions)
        if positions:
            # The thread is waited for even if the caller is cancelled: the rename either happened or did not.
            await in_thread(self._save, name, dict(positions))

    @contextlib.asynccontextmanager
    async def claim(self, name: str) -> AsyncIterator[None]:
        """Keep other readers of this folder off the name.

        Raises:
            StreamError: Another live one holds it.
            OSError: The folder cannot be written to.
        """
        with locked(self.folder / f"{file_name(name)}.lock", name):
            yield

    def _path(self, name: str) -> Path:
        return self.folder / f"{file_name(name)}.json"

    def _save(self, name: str, positions: dict[int, Position]) -> None:
        path = self._path(name)
        with self._mutex:
            private_folder(self.folder)
            saved = _positions(path, path.read_bytes()) if path.exists() else {}
            content = _Content(name, {**saved, **positions})
            write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1))


def _positions(path: Path, data: bytes) -> dict[int, Position]:
    try:
        return decode_json(data, _CONTENT).positions
    except DecodeError as error:
        raise DecodeError(
            f"{path} does not hold positions ({error.message}); move it away to start anew", record=data
        ) from None
