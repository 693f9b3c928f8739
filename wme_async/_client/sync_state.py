"""The state of a synced folder: the files of earlier syncs in a SQLite file, and a lock that excludes other syncs."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from wme_async import _sqlite
from wme_async._client.sync_plan import FileState
from wme_async._files import LockedFile, private_file
from wme_async.errors import DataError

STATE_NAME: Final = ".wme-sync.db"
LOCK_NAME: Final = ".wme-sync.lock"

_CONTENT: Final = "the state of a sync"
_APPLICATION: Final = 0x776D6573  # "wmes"
_VERSION: Final = 1
_IN_ONE: Final = 500

_SCHEMA: Final = """
CREATE TABLE files (
    name TEXT PRIMARY KEY, version TEXT NOT NULL, listed TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE claims (
    collection TEXT, filters TEXT, name TEXT, PRIMARY KEY (collection, filters, name)
) WITHOUT ROWID;
CREATE INDEX claims_by_name ON claims (name);
"""
_NAMED: Final = "SELECT name, version, listed, size, mtime_ns FROM files WHERE name IN ({})"
_CLAIMED: Final = """
SELECT name, version, listed, size, mtime_ns FROM files JOIN claims USING (name) WHERE collection = ? AND filters = ?
"""
_DROP: Final = "DELETE FROM files WHERE name = ? AND name NOT IN (SELECT name FROM claims)"
_UNSHARED: Final = """
SELECT name FROM claims WHERE name IN ({}) GROUP BY name HAVING count(*) = 1
"""


class FolderState:
    """The state of one folder. All methods block: call them in a thread, one at a time.

    Args:
        folder: The folder, which must exist.
        read_only: Take no lock and create nothing.

    Raises:
        BlockingIOError: Another sync of the folder is running.
        DataError: Something else has the name of the state, or it is damaged.
        OSError: The state cannot be read or written.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.path = folder / STATE_NAME
        self._lock = None if read_only else _locked(folder)
        self._database: sqlite3.Connection | None = None
        try:
            if not read_only:
                private_file(self.path)
            if self.path.exists():
                self._database = self._connect(read_only=read_only)
        except BaseException:
            self.close()
            raise

    def _connect(self, *, read_only: bool) -> sqlite3.Connection:
        with self._explained():
            mode = "ro" if read_only else "rw"
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(database, read_only=read_only)
            except BaseException:
                database.close()
                raise
        return database

    def _prepare(self, database: sqlite3.Connection, *, read_only: bool) -> None:
        database.execute("PRAGMA synchronous=FULL")
        [application] = database.execute("PRAGMA application_id").fetchone()
        [version] = database.execute("PRAGMA user_version").fetchone()
        [tables] = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application:
            if not read_only:
                # In one transaction: a killed process leaves all of it or nothing.
                database.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id={_APPLICATION};"
                    f"PRAGMA user_version={_VERSION}; COMMIT;"
                )
        elif (application, version) != (_APPLICATION, _VERSION):
            raise DataError(
                f"{self.path} does not hold {_CONTENT}, or that of another version of this package; move it away, and "
                "the files are compared by their bytes once"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _sqlite.database_error(error, self.path, _CONTENT) from error

    def files(self, names: list[str]) -> dict[str, FileState]:
        """Return the records of files, by their names below the folder."""
        states: dict[str, FileState] = {}
        for part in _parts(names):
            rows = self._rows(_NAMED.format(",".join("?" * len(part))), part)
            states |= {row[0]: _state(row) for row in rows}
        return states

    def claimed(self, collection: str, filters: str) -> dict[str, FileState]:
        """Return the files of earlier syncs of a collection with the same filters."""
        return {row[0]: _state(row) for row in self._rows(_CLAIMED, (collection, filters))}

    def collections(self, filters: str) -> list[str]:
        """Return the collections that were synced with the same filters."""
        return [row[0] for row in self._rows("SELECT DISTINCT collection FROM claims WHERE filters = ?", (filters,))]

    def record(self, collection: str, filters: str, files: Mapping[str, FileState]) -> None:
        """Record files that are complete and flushed."""
        rows = [(name, file.version, file.listed, file.size, file.mtime_ns) for name, file in files.items()]
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
            claims = [(collection, filters, name) for name in files]
            database.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", claims)

    def claim(self, collection: str, filters: str, names: set[str]) -> None:
        """Record that a collection has these recorded files too."""
        missing = names - self.claimed(collection, filters).keys()
        if missing:
            with self._transaction() as database:
                claims = [(collection, filters, name) for name in missing]
                database.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", claims)

    def unshared(self, names: Iterable[str]) -> set[str]:
        """Return those of the names that a single collection and filter claim."""
        unshared: set[str] = set()
        for part in _parts(list(names)):
            unshared |= {row[0] for row in self._rows(_UNSHARED.format(",".join("?" * len(part))), part)}
        return unshared

    def forget(self, collection: str, filters: str, names: Iterable[str]) -> None:
        """Drop the claims of a collection on files, and files that nothing claims any more."""
        names = list(names)
        with self._transaction() as database:
            claims = [(collection, filters, name) for name in names]
            database.executemany("DELETE FROM claims WHERE collection = ? AND filters = ? AND name = ?", claims)
            database.executemany(_DROP, [(name,) for name in names])

    def close(self) -> None:
        """Close the database and let others sync. Safe to call twice."""
        database, self._database = self._database, None
        lock, self._lock = self._lock, None
        try:
            if database is not None:
                database.close()
        finally:
            if lock is not None:
                lock.remove()

    def _rows(self, statement: str, values: Iterable[str]) -> list[tuple[str, str, str, int, int]]:
        if self._database is None:
            return []
        with self._explained():
            [tables] = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return self._database.execute(statement, tuple(values)).fetchall() if tables else []

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._database
        assert database is not None
        with self._explained():
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                # The error may have ended the transaction already.
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise


def _locked(folder: Path) -> LockedFile:
    try:
        return LockedFile(folder / LOCK_NAME)
    except BlockingIOError:
        raise BlockingIOError(
            errno.EAGAIN,
            "another sync of this folder is running; wait for its end, or sync to another folder",
            str(folder),
        ) from None


def _parts(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + _IN_ONE] for start in range(0, len(names), _IN_ONE))


def _state(row: tuple[str, str, str, int, int]) -> FileState:
    return FileState(version=row[1], listed=row[2], size=row[3], mtime_ns=row[4])
