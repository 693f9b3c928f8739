"""Positions in a folder: one small JSON file for each name."""

import contextlib
import os
import threading
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC
from pathlib import Path
from typing import Final

import aiofiles
import msgspec

from wme_async._arguments import check_path
from wme_async._files import check_regular, private_folder, read_regular, write_atomically
from wme_async._tasks import in_thread
from wme_async.errors import DecodeError
from wme_async.models.decoding import failure_reason
from wme_async.offsets._lock import file_name, locked, old_file_name
from wme_async.offsets.protocol import Position, check_name, check_positions

__all__ = ["FileOffsets"]

_VERSION: Final = 2  # 1 lacks a checksum


class _Content(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    positions: dict[int, Position]
    version: int
    crc: str | None = None

    def checksum(self) -> str:
        """Return the CRC-32 of everything else, eight hexadecimal digits."""
        content = _Content(self.name, dict(sorted(self.positions.items())), self.version)
        return f"{zlib.crc32(msgspec.json.encode(content)):08x}"


class FileOffsets:
    """Keeps positions in a folder on a local disk.

    Each save writes a new file, brings it to the disk and renames it over the old one, so that there is always a whole
    one: the old or the new. The file has the name of the positions and a checksum in it; one that does not match is not
    used. A lock file beside it keeps a second reader of the same name away; the kernel ends the lock with the process,
    so nothing has to be cleaned up after a crash. Files are readable by their owner alone.

    Args:
        folder: The folder; it is created at the first save.

    Raises:
        TypeError: It is not a path.
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
            DecodeError: The file is not one of ours, is damaged, or is from a later version.
            OSError: It cannot be read.
        """
        check_name(name)
        for path in self._paths(name):
            with contextlib.suppress(FileNotFoundError):
                await in_thread(check_regular, path)
                async with aiofiles.open(path, "rb") as file:
                    content = _decode(path, await file.read())
                if _belongs(content, path, name):
                    return content.positions
        return {}

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save these positions, leaving other partitions as they are. When it returns, they are on the disk.

        Raises:
            DecodeError: The present file is not one of ours or is damaged, so it is not overwritten.
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

    def _paths(self, name: str) -> list[Path]:
        """Return where the positions are, and where earlier versions kept them."""
        return [self.folder / f"{stem}.json" for stem in dict.fromkeys((file_name(name), old_file_name(name)))]

    def _save(self, name: str, positions: dict[int, Position]) -> None:
        path, *old_paths = self._paths(name)
        with self._mutex:
            private_folder(self.folder)
            saved: dict[int, Position] = {}
            replaced: list[Path] = []
            for place in (path, *old_paths):
                with contextlib.suppress(FileNotFoundError):
                    content = _decode(place, read_regular(place))
                    if _belongs(content, place, name):
                        saved = {**content.positions, **saved}
                        replaced.append(place)
            positions = {partition: _in_utc(position) for partition, position in positions.items()}
            content = _Content(name, {**saved, **positions}, _VERSION)
            content.crc = content.checksum()
            write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1))
            for place in replaced:
                if place != path:
                    place.unlink(missing_ok=True)


def _in_utc(position: Position) -> Position:
    published, reached = (time and time.astimezone(UTC) for time in (position.published, position.reached))
    return Position(position.offset, published, reached)


def _decode(path: Path, data: bytes) -> _Content:
    try:
        content = msgspec.json.decode(data, type=_Content)
    except Exception as error:
        raise _unusable(path, data, f"does not hold positions ({failure_reason(error, data)})") from error
    if content.version > _VERSION:
        advice = f"is in format {content.version} of a later version of wme_async; update this one"
        raise DecodeError(f"{path} {advice}, or move the file away to start anew", record=data)
    if content.version < 1 or content.crc != (content.checksum() if content.version == _VERSION else None):
        raise _unusable(path, data, "is damaged: its checksum does not match")
    return content


def _belongs(content: _Content, path: Path, name: str) -> bool:
    """Return whether a file holds the positions of a name, and not those of another name in its place.

    Raises:
        DecodeError: It has the file name of this name and holds those of another one.
    """
    if content.name == name:
        return True
    if path.stem == file_name(name):
        raise _unusable(path, b"", f"holds the positions {content.name!r} instead of {name!r}")
    return False


def _unusable(path: Path, data: bytes, problem: str) -> DecodeError:
    return DecodeError(f"{path} {problem}; restore a copy of it, or move it away to start anew", record=data)
