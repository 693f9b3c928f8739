"""Finished files of a sync: brought to the disk in groups, given their names, and noted in the folder's state."""

import asyncio
import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wme_async._client.sync_plan import Entry, FileState
from wme_async._client.sync_state import FolderState
from wme_async._download.small_file import SmallContent, SmallFile
from wme_async._files import sync_folder
from wme_async._tasks import WorkGroup, in_thread, raise_first_cause
from wme_async.errors import WMEError

__all__ = ["Committer", "FinishedFile"]

logger = logging.getLogger("wme_async.sync")

# Flushing a file takes milliseconds, however small it is, and several at once take hardly longer. What waits for its
# group is lost if the process is killed.
_GROUP: Final = 32
_THREADS: Final = 4
_SECONDS: Final = 0.1
# Files that have their names are noted together, since that takes several flushes. Of one that is not noted a later
# sync reads the attribute that is kept with the file, or its bytes.
_NOTE_SECONDS: Final = 1.0
# Files that may wait, with their bytes in memory.
_WAITING: Final = 2 * _GROUP

Outcome = Callable[[Exception | None], None]


@dataclasses.dataclass(kw_only=True)
class FinishedFile:
    """A file whose bytes are there and checked.

    Args:
        entry: Of the listing.
        identity: What names it on its server.
        md5: Of its bytes.
        path: Where it is, or will be.
        content: Its bytes, where it does not have its name yet.
        verified: Whether its MD5 is that of the metadata.
        outcome: Called when it is noted, or with the error.
        state: What is noted.
    """

    entry: Entry
    identity: str
    md5: str
    path: Path
    content: SmallContent | SmallFile | None
    verified: bool | None
    outcome: Outcome
    state: FileState | None = None


class Committer:
    """Takes finished files, and leaves none half done.

    Args:
        state: Of the folder.
        collection: What is synced.
        filters: By which filters.
    """

    def __init__(self, state: FolderState, collection: str, filters: str) -> None:
        self._state = state
        self._collection = collection
        self._filters = filters
        self._files: list[FinishedFile] = []
        self._unnoted: dict[str, FileState] = {}
        self._folders: set[Path] = set()
        self._clock = asyncio.get_running_loop().time
        self._noted = self._clock()
        self._closing = False
        self._changed = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()

    async def add(self, file: FinishedFile) -> None:
        """Take a file; wait where many wait already."""
        self._files.append(file)
        self._changed.set()
        if self._closing or len(self._files) >= _GROUP:
            self._full.set()
        while len(self._files) >= _WAITING:
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Commit files until `close` is called and all are committed."""
        while not (self._closing and not self._files):
            await self._changed.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await self._full.wait()
            await self.commit()

    def close(self) -> None:
        """Let `run` end once all files are committed."""
        self._closing = True
        self._changed.set()
        self._full.set()

    async def commit(self) -> None:
        """Commit what is there.

        Raises:
            OSError: The state cannot be written, for another reason than a full disk.
        """
        while self._files:
            group, self._files = self._files[:_GROUP], self._files[_GROUP:]
            await self._commit(group)
            self._room.set()
        if not self._closing:
            self._changed.clear()
            self._full.clear()

    async def note_rest(self) -> None:
        """Note the files that are named and not noted yet.

        Raises:
            OSError: The state cannot be written.
        """
        files, folders = self._unnoted, self._folders
        if files:
            await in_thread(self._note, files, folders)
            self._unnoted, self._folders = {}, set()
        self._noted = self._clock()

    def _note(self, files: dict[str, FileState], folders: set[Path]) -> None:
        for folder in folders:
            sync_folder(folder)
        self._state.record(self._collection, self._filters, files)

    def abandon(self) -> None:
        """Remove what was not committed."""
        for file in self._files:
            if isinstance(file.content, SmallFile):
                file.content.close()
        self._files = []

    async def _note_if_possible(self) -> None:
        try:
            await self.note_rest()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # The files are there; it is tried again, and a later sync finds out by their bytes.
            logger.warning("%s", error)
            self._noted = self._clock()

    async def _commit(self, group: list[FinishedFile]) -> None:
        errors: dict[str, Exception] = {}
        parts = [group[start::_THREADS] for start in range(min(_THREADS, len(group)))]
        with raise_first_cause():
            async with WorkGroup() as threads:
                for part in parts:
                    threads.start(in_thread(_finish, part, errors))
        done = [file for file in group if file.entry.name not in errors]
        self._folders |= {file.path.parent for file in done if file.content is not None}
        self._unnoted |= {file.entry.name: file.state for file in done if file.state is not None}
        if self._clock() - self._noted > _NOTE_SECONDS:
            await self._note_if_possible()
        for file in group:
            file.outcome(errors.get(file.entry.name))


def _finish(files: list[FinishedFile], errors: dict[str, Exception]) -> None:
    """Write, flush and name files; an error is that of one file."""
    for file in files:
        small: SmallFile | None = None
        try:
            if file.content is None:
                status = file.path.stat()
            else:
                small = file.content if isinstance(file.content, SmallFile) else _written(file.path, file.content)
                status = small.finish(identity=file.identity, verified=file.verified)
        except (OSError, WMEError) as error:
            errors[file.entry.name] = error
        else:
            file.state = FileState(
                version=file.md5, listed=file.entry.version, size=status.st_size, mtime_ns=status.st_mtime_ns
            )
        finally:
            if small is not None:
                small.close()


def _written(path: Path, content: SmallContent) -> SmallFile:
    try:
        return SmallFile(path, content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return SmallFile(path, content)
