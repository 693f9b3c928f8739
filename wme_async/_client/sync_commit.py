"""Commits finished files of a sync in groups: flushes them, names them, and records them in the folder's state."""

import asyncio
import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from wme_async._client.sync_plan import Entry, FileState
from wme_async._client.sync_state import FolderState
from wme_async._download.small_file import SmallContent, SmallFile
from wme_async._files import sync_folder
from wme_async._tasks import in_thread
from wme_async.errors import WMEError

logger: logging.Logger = logging.getLogger("wme_async.sync")

# Flushing a file takes milliseconds, however small it is, and several at once take hardly longer. If the process is
# killed, the files that wait for their group are lost.
_GROUP: Final = 32
_THREADS: Final = 4
_SECONDS: Final = 0.1
# Named files are recorded together, since that takes several flushes. For a file without a record, a later sync reads
# its extended attribute, or its bytes.
_RECORD_SECONDS: Final = 1.0
# Files that may wait, with their bytes in memory.
_WAITING: Final = 2 * _GROUP

Outcome = Callable[[Exception | None], None]


@dataclasses.dataclass(kw_only=True)
class FinishedFile:
    """A file whose bytes are complete and verified.

    Args:
        entry: Of the listing.
        identity: Host and path on its server.
        md5: Of its bytes.
        path: Its final path.
        content: Its bytes, or the unnamed file; None if it has its name.
        verified: Whether its MD5 is that of the metadata.
        outcome: Called with None after the commit, or with the error.
        state: Its record, once it is named.
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
    """Commits finished files, each completely or not at all.

    Args:
        state: Of the folder.
        collection: The listing of the sync, such as `batches 2025-07-16/05`.
        filters: The filters of the sync, as JSON.
    """

    def __init__(self, state: FolderState, collection: str, filters: str) -> None:
        self._state = state
        self._collection = collection
        self._filters = filters
        self._files: list[FinishedFile] = []
        self._unrecorded: dict[str, FileState] = {}
        self._folders: set[Path] = set()
        self._clock = asyncio.get_running_loop().time
        self._record_time = self._clock()
        self._closing = False
        self._changed = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()

    async def add(self, file: FinishedFile) -> None:
        """Add a file; wait while too many files wait for their commit."""
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
        """Commit all files that were added.

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

    async def record_all(self) -> None:
        """Record the files that are named but not recorded.

        Raises:
            OSError: The state cannot be written.
        """
        files, folders = self._unrecorded, self._folders
        if files:
            await in_thread(self._record, files, folders)
            self._unrecorded, self._folders = {}, set()
        self._record_time = self._clock()

    def _record(self, files: dict[str, FileState], folders: set[Path]) -> None:
        for folder in folders:
            sync_folder(folder)
        self._state.record(self._collection, self._filters, files)

    def abandon(self) -> None:
        """Discard the files that are not committed."""
        for file in self._files:
            if isinstance(file.content, SmallFile):
                file.content.close()
        self._files = []

    async def _try_to_record(self) -> None:
        try:
            await self.record_all()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # The files have their names. The next group retries, and without a record a later sync compares the bytes.
            logger.warning("%s", error)
            self._record_time = self._clock()

    async def _commit(self, group: list[FinishedFile]) -> None:
        errors = await in_thread(_Group(group).commit)
        named = [file for file in group if file.entry.name not in errors]
        self._folders |= {file.path.parent for file in named if file.content is not None}
        self._unrecorded |= {file.entry.name: file.state for file in named if file.state is not None}
        if self._clock() - self._record_time > _RECORD_SECONDS:
            await self._try_to_record()
        for file in group:
            file.outcome(errors.get(file.entry.name))


class _Group:
    """Files that are committed together, step by step. The error of one file does not stop the others.

    Args:
        files: The files.
    """

    def __init__(self, files: list[FinishedFile]) -> None:
        self._files = files
        self._open: dict[str, SmallFile] = {}
        self._errors: dict[str, Exception] = {}

    def commit(self) -> dict[str, Exception]:
        """Write, flush and name the files, and return the errors by the names of their files."""
        try:
            self._write()
            # Flushing alone takes long, and only the system. Threads that did the other steps at the same time would
            # take the interpreter from each other, and from the event loop.
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(self._flush, range(min(_THREADS, len(self._open)))))
            self._publish()
        finally:
            for small in self._open.values():
                small.close()
        return self._errors

    def _write(self) -> None:
        for file in self._files:
            name = file.entry.name
            with self._noting(name):
                if file.content is None:
                    status = file.path.stat()
                else:
                    small = file.content if isinstance(file.content, SmallFile) else _new_file(file.path, file.content)
                    self._open[name] = small
                    status = small.note_version(identity=file.identity, verified=file.verified)
                file.state = FileState(
                    version=file.md5, listed=file.entry.version, size=status.st_size, mtime_ns=status.st_mtime_ns
                )

    def _flush(self, start: int) -> None:
        for name, small in list(self._open.items())[start::_THREADS]:
            with self._noting(name):
                small.flush()

    def _publish(self) -> None:
        for name, small in self._open.items():
            if name not in self._errors:
                with self._noting(name):
                    small.publish()

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, WMEError) as error:
            self._errors[name] = error


def _new_file(path: Path, content: SmallContent) -> SmallFile:
    try:
        return SmallFile(path, content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return SmallFile(path, content)
