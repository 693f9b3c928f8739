"""The SQLite file of a mirror: its tables, its version, and whether it is still there. All functions here block."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wme_async._files import followed, private_file, private_folder, sync_folder
from wme_async._sqlite import database_error
from wme_async.errors import DataError
from wme_async.mirror.protocol import KINDS

__all__ = ["VERSION", "Database", "open_database"]

VERSION: Final = 1
"""Of the tables."""

_APPLICATION: Final = 0x574D454D  # "WMEM", in the header of the file
_TABLES: Final = """
    CREATE TABLE pages (
        id INTEGER PRIMARY KEY,
        project TEXT NOT NULL,
        title TEXT NOT NULL,
        namespace INTEGER NOT NULL,
        page_id INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        created INTEGER NOT NULL,
        published INTEGER NOT NULL,
        gone INTEGER NOT NULL,
        digest BLOB NOT NULL,
        body INTEGER NOT NULL,
        load INTEGER NOT NULL,
        swept INTEGER,
        live INTEGER NOT NULL,
        hidden INTEGER NOT NULL,
        UNIQUE (project, title)
    );
    CREATE INDEX pages_live ON pages (project, page_id) WHERE live;
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        codec INTEGER NOT NULL,
        record BLOB NOT NULL
    );
    CREATE TABLE whereabouts (
        project TEXT NOT NULL,
        page_id INTEGER NOT NULL,
        title TEXT NOT NULL,
        created INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        published INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        old_title TEXT,
        moved INTEGER NOT NULL,
        held INTEGER,
        PRIMARY KEY (project, page_id)
    ) WITHOUT ROWID;
    CREATE INDEX whereabouts_seq ON whereabouts (seq) WHERE seq > 0;
    CREATE INDEX whereabouts_held ON whereabouts (held) WHERE held IS NOT NULL;
    CREATE TABLE masks (
        project TEXT NOT NULL,
        page_id INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        created INTEGER NOT NULL,
        hidden INTEGER NOT NULL,
        PRIMARY KEY (project, page_id)
    ) WITHOUT ROWID;
    CREATE VIEW live AS
        SELECT id, project, title, namespace, page_id, revision, created, published, digest, hidden
        FROM pages WHERE live;
"""
_MARKS: Final = "CREATE TABLE {kind} (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_PAGE_SIZE: Final = 8192
_CACHE: Final = 64 * 1024  # KiB
_CHECKPOINT: Final = 4096  # pages of the log after which it is copied into the database


class Database:
    """An open SQLite file.

    Attributes:
        path: The file.
        connection: The connection.

    Args:
        path: The file, which exists.
        writing: Whether it is written.

    Raises:
        DataError: It is of another program, or of another version.
        sqlite3.Error: It cannot be opened.
    """

    def __init__(self, path: Path, *, writing: bool) -> None:
        self.path = path
        # A reader, too, may have to create the files beside the database.
        mode = "rw" if writing or os.access(path, os.W_OK) else "ro"
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        self.connection: sqlite3.Connection = sqlite3.connect(
            uri, uri=True, timeout=30.0, isolation_level=None, check_same_thread=False
        )
        try:
            self._check_version()
            self.connection.execute(f"PRAGMA cache_size = -{_CACHE if writing else _CACHE // 8}")
            if writing:
                self.connection.execute("PRAGMA journal_mode = WAL").fetchall()
                # A power failure may undo the last transactions, but rows and positions together.
                self.connection.execute("PRAGMA synchronous = NORMAL")
                self.connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}").fetchall()
            else:
                self.connection.execute("PRAGMA query_only = ON")
            self._identity = _identity(path)
        except BaseException:
            self.connection.close()
            raise

    def _check_version(self) -> None:
        application = self.connection.execute("PRAGMA application_id").fetchone()[0]
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            raise DataError(f"{self.path} is a database of another program: name another file")
        if version > VERSION:
            raise DataError(
                f"{self.path} was made by a newer version of wme_async (format {version}; this one knows {VERSION}): "
                "upgrade wme_async"
            )
        if version < VERSION:
            raise DataError(
                f"{self.path} has format {version}, which this version of wme_async does not read (it knows "
                f"{VERSION}): remove the file and load the mirror anew"
            )

    def check_present(self) -> None:
        """Raise if the file was deleted or replaced: SQLite would go on writing into nothing.

        Raises:
            DataError: It was.
        """
        if _identity(self.path) != self._identity:
            raise DataError(
                f"{self.path} was deleted or replaced while it was in use: what was written since is lost; stop this "
                "process, and start it again to go on with the file that is there"
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block in one transaction for writing.

        Raises:
            DataError: The file is not there any more, or is damaged.
            OSError: It cannot be written, for example because the disk is full. Nothing was.
        """
        with self.translated():
            self.check_present()
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                # After some errors SQLite has rolled back already.
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise errors of SQLite as errors that name the file and the remedy."""
        try:
            yield
        except sqlite3.Error as error:
            raise database_error(error, self.path, "a mirror") from error

    def close(self) -> None:
        """Close it."""
        self.connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def open_database(path: Path, *, writing: bool) -> Database:
    """Open the file of a mirror.

    Args:
        path: The file.
        writing: Whether it is written; it is then created if it does not exist.

    Raises:
        DataError: It is not a mirror, is damaged, or is of another version.
        OSError: It cannot be opened.
    """
    try:
        if not path.exists():
            if not writing:
                raise FileNotFoundError(f"{path} does not exist: `wme-async mirror IDENTIFIER --to {path}` makes it")
            _create(path)
        elif path.is_file() and path.stat().st_size == 0:
            raise DataError(f"{path} is empty, so its mirror was lost: restore a copy, or remove it to begin anew")
        database = Database(path, writing=writing)
    except sqlite3.Error as error:
        raise database_error(error, path, "a mirror") from error
    return database


def _create(path: Path) -> None:
    """Create a database, which appears under its name only once its tables exist; a symbolic link is followed."""
    path = followed(path)
    private_folder(path.parent)
    new = Path(f"{path}.new")
    new.unlink(missing_ok=True)
    private_file(new)
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
        # So that `PRAGMA incremental_vacuum` can give space back without a copy of the whole file.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("BEGIN")
        for statement in (*_TABLES.split(";"), *(_MARKS.format(kind=kind) for kind in KINDS)):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    finally:
        connection.close()
    new.replace(path)
    sync_folder(path.parent)
