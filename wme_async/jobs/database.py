"""The SQLite file of a batch manager: private, locked, upgraded, and checked for damage. All functions here block.

SQLite has no checksums, so batches, jobs, webhooks and settings carry one in each row. Damage to the structure of the
file keeps a manager from opening it, with an error that names the damage. Damage to a row concerns that row alone.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from wme_async._files import check_regular, private_file
from wme_async._sqlite import is_busy, primary_code
from wme_async.errors import WMEError
from wme_async.jobs.wal import lost_transactions

_SHOWN_PROBLEMS: Final = 5


class DatabaseError(WMEError):
    """The jobs database cannot be opened, read or written. The message names the file and the remedy.

    Attributes:
        path: The database.
    """

    def __init__(self, message: str = "", *, path: str | None = None, url: str | None = None) -> None:
        super().__init__(message, url=url)
        self.path = path


class DamagedBatch(DatabaseError):
    """A batch whose stored rows are damaged. It is set aside: not run and not changed, until it is deleted.

    Attributes:
        batch_id: Its id, as stored.
    """

    def __init__(
        self, message: str = "", *, batch_id: str = "", path: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(message, path=path, url=url)
        self.batch_id = batch_id


_CAUSES: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another program: close it, then try again",
    sqlite3.SQLITE_LOCKED: "is locked by another program: close it, then try again",
    sqlite3.SQLITE_FULL: "cannot be written, because the disk is full: free some space",
    sqlite3.SQLITE_READONLY: "is read-only: give this user write permission to the file and its folder",
    sqlite3.SQLITE_PERM: "may not be used by this user: check the permissions of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that its folder exists, its permissions, and free descriptors",
    sqlite3.SQLITE_IOERR: "cannot be read or written, because the disk reports an error: check the disk",
    sqlite3.SQLITE_NOTADB: "is not a jobs database, or its beginning is damaged: restore a copy, or move it away",
    sqlite3.SQLITE_CONSTRAINT: "is damaged: restore a copy, or rescue its rows by `sqlite3 FILE .recover`",
    sqlite3.SQLITE_CORRUPT: "is damaged: restore a copy, or rescue its rows by `sqlite3 FILE .recover`",
}


def database_error(path: Path, error: Exception) -> DatabaseError:
    """Return an error of SQLite as ours: the file, the cause, and the remedy.

    Args:
        path: The database.
        error: The exception that SQLite raised.
    """
    cause = _CAUSES.get(primary_code(error) if isinstance(error, sqlite3.Error) else 0, "cannot be used")
    return DatabaseError(f"{path} {cause} ({error})", path=str(path))


_TABLES: Final = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        batch_id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        paused INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        options BLOB NOT NULL,
        retry_of TEXT,
        created_at REAL NOT NULL,
        started_at REAL,
        completed_at REAL,
        error TEXT
    );
    CREATE INDEX batches_unfinished ON batches (status) WHERE completed_at IS NULL;
    CREATE TABLE jobs (
        batch_id TEXT NOT NULL REFERENCES batches (batch_id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        url TEXT NOT NULL,
        status TEXT NOT NULL,
        title TEXT,
        done INTEGER NOT NULL DEFAULT 0,
        total INTEGER,
        filepath TEXT,
        file_key TEXT,
        moving INTEGER NOT NULL DEFAULT 0,
        etag TEXT,
        extras BLOB NOT NULL DEFAULT '[]',
        error TEXT,
        started_at REAL,
        completed_at REAL,
        PRIMARY KEY (batch_id, position)
    ) WITHOUT ROWID;
    CREATE INDEX jobs_path ON jobs (filepath);
    CREATE INDEX jobs_extras ON jobs (status) WHERE extras <> '[]';
    CREATE UNIQUE INDEX jobs_file ON jobs (file_key) WHERE file_key IS NOT NULL;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        batch_id TEXT NOT NULL,
        position INTEGER,
        kind TEXT NOT NULL,
        status TEXT,
        at REAL NOT NULL,
        error TEXT
    );
    CREATE INDEX events_batch ON events (batch_id, id);
    CREATE TABLE outbox (
        message_id TEXT PRIMARY KEY,
        batch_id TEXT NOT NULL,
        url TEXT NOT NULL,
        body BLOB NOT NULL,
        state TEXT NOT NULL DEFAULT 'waiting',
        attempts INTEGER NOT NULL DEFAULT 0,
        next_at REAL,
        error TEXT
    );
    CREATE INDEX outbox_due ON outbox (next_at) WHERE state = 'waiting';
"""

_CHECKS: Final = """
    ALTER TABLE batches ADD COLUMN jobs INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN crc INTEGER;
    ALTER TABLE jobs ADD COLUMN crc INTEGER;
    ALTER TABLE outbox ADD COLUMN delay REAL NOT NULL DEFAULT 0;
    ALTER TABLE outbox ADD COLUMN crc INTEGER;
    ALTER TABLE meta ADD COLUMN crc INTEGER;
    UPDATE batches SET jobs = (SELECT COUNT(*) FROM jobs WHERE jobs.batch_id = batches.batch_id);
"""

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "batches": (
        *("number", "batch_id", "status", "paused", "cancelled", "options", "retry_of", "created_at", "started_at"),
        *("completed_at", "error", "jobs"),
    ),
    "jobs": (
        *("batch_id", "position", "url", "status", "title", "done", "total", "filepath", "file_key", "moving", "etag"),
        *("extras", "error", "started_at", "completed_at"),
    ),
    "outbox": ("message_id", "batch_id", "url", "body", "state", "attempts", "next_at", "delay", "error"),
    "meta": ("name", "value"),
}
"""The columns of each table whose rows are checked, in the order in which they enter the check."""

_KEYS: Final = {
    "batches": ("number",),
    "jobs": ("batch_id", "position"),
    "outbox": ("message_id",),
    "meta": ("name",),
}

_Row: TypeAlias = Sequence[Any]
_Step: TypeAlias = Callable[[sqlite3.Connection], None]


def check_of(values: _Row) -> int:
    """Return the check of a row: the CRC-32 of its values as SQLite returns them, in the order of `COLUMNS`."""
    return zlib.crc32(repr(tuple(values)).encode("utf-8", "surrogatepass"))


def matches(row: _Row) -> bool:
    """Say whether a row matches its check, which is its last column."""
    return bool(row[-1] == check_of(row[:-1]))


def sealed(table: str) -> str:
    """Return the SQL that sets the check of changed rows; append a WHERE clause."""
    return f"UPDATE {table} SET crc = row_check({', '.join(COLUMNS[table])})"  # noqa: S608  # names of ours


def _script(text: str) -> _Step:
    def run(db: sqlite3.Connection) -> None:
        for statement in text.split(";"):
            if statement.strip():
                db.execute(statement)

    return run


def _add_checks(db: sqlite3.Connection) -> None:
    _script(_CHECKS)(db)
    for table, columns in COLUMNS.items():
        # In Python, not in SQL: a row whose text cannot be read must not keep the others from being upgraded.
        where = " AND ".join(f"{key} = ?" for key in _KEYS[table])
        statement = f"UPDATE {table} SET crc = ? WHERE {where}"  # noqa: S608  # names of ours
        for row in db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall():  # noqa: S608  # names of ours
            keys = [row[columns.index(key)] for key in _KEYS[table]]
            with contextlib.suppress(UnicodeEncodeError):
                db.execute(statement, (check_of(row), *keys))


_MIGRATIONS: Final[tuple[_Step, ...]] = (_script(_TABLES), _add_checks)


def lock(path: Path) -> sqlite3.Connection:
    """Lock a database. The system releases the lock when the process dies, on every platform of SQLite.

    Raises:
        RuntimeError: Another manager holds the lock.
        DatabaseError: The lock file cannot be used.
    """
    lock_path = Path(f"{path}.lock")
    with _translated(lock_path):
        private_file(lock_path)
        connection = sqlite3.connect(lock_path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error) and is_busy(error):
                raise RuntimeError(f"another batch manager is using {path}") from error
            raise
        return connection


def connect(path: Path) -> sqlite3.Connection:
    """Open a database whose lock is held: create it if it is missing, upgrade it, and check it.

    Raises:
        RuntimeError: A newer version of this package made it.
        DatabaseError: It cannot be opened, is the file of another program, or is damaged; the message says where.
    """
    with _translated(path):
        if os.path.lexists(path):
            _check_files(path)
            _check_version(path)
        else:
            _create(path)
        private_file(path)
        db = _connection(path)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
                db.execute(f"PRAGMA {pragma}").fetchall()
            _upgrade(db, path)
            _check_schema(db, path)
            _check_structure(db, path)
            for suffix in ("-wal", "-shm"):
                if os.path.lexists(f"{path}{suffix}"):
                    private_file(Path(f"{path}{suffix}"))
        except BaseException:
            db.close()
            raise
        return db


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (DatabaseError, RuntimeError):
        raise
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror or error}", path=str(path)) from error
    except Exception as error:
        # Not SQLite's errors alone: a damaged name in one of its messages is a UnicodeDecodeError.
        raise database_error(path, error) from error


def _connection(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    # Text that is damaged must not keep the rows beside it from being read.
    db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    db.create_function("row_check", -1, lambda *values: check_of(values), deterministic=True)
    return db


def _create(path: Path) -> None:
    """Create a database, which appears under its name only once its tables exist."""
    new = Path(f"{path}.new")
    new.unlink(missing_ok=True)
    private_file(new)
    with contextlib.closing(_connection(new)) as db:
        _upgrade(db, path)
    new.replace(path)


def _check_files(path: Path) -> None:
    """Raise if SQLite would hide damage: it takes an empty file for a new database, and fills up an incomplete page."""
    check_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(18)
    page = int.from_bytes(header[16:18]) if header.startswith(b"SQLite format 3\0") else 0
    page = 65_536 if page == 1 else page
    log = Path(f"{path}-wal")
    logged = log.read_bytes() if log.exists() else b""
    # Pages that a power failure left incomplete are in the log.
    if size == 0 or (page >= 512 and size % page and not logged):
        raise DatabaseError(
            f"{path} was cut, at {size} bytes: restore a copy, or remove it to begin anew", path=str(path)
        )
    if logged and page >= 512 and (lost := lost_transactions(logged, page)):
        raise DatabaseError(
            f"{log} is damaged, and {lost} changes in it cannot be read: restore a copy of both files, or remove"
            f" the log to go on with the state before it",
            path=str(path),
        )


def _check_version(path: Path) -> None:
    with contextlib.closing(_connection(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS) or version < 0:
            raise RuntimeError(
                f"{path} was made by a newer version of wme_async (schema {version}; this one knows"
                f" {len(_MIGRATIONS)}): upgrade wme_async"
            )
        if version == 0 and db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
            raise DatabaseError(f"{path} holds other tables than those of batches: name another file", path=str(path))


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    for number, step in enumerate(_MIGRATIONS[version:], start=version + 1):
        # One transaction with its version: a kill in between leaves the old schema whole.
        db.execute("BEGIN IMMEDIATE")
        try:
            step(db)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            message = f"{path} could not be upgraded to schema {number}: {database_error(path, error)}"
            raise DatabaseError(message, path=str(path)) from error


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raise if a table or column is missing: every statement that needs it would fail, again and again."""
    tables = {**COLUMNS, "events": ("id", "batch_id", "position", "kind", "status", "at", "error")}
    for table, columns in tables.items():
        present = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        missing = sorted({*columns} - present)
        if missing:
            part = f"{', '.join(missing)} of its table {table!r}" if present else f"its table {table!r}"
            raise DatabaseError(f"{path} is damaged: {part} is missing; restore a copy", path=str(path))


def _check_structure(db: sqlite3.Connection, path: Path) -> None:
    """Raise if the structure of the file is damaged. Damaged indexes are rebuilt from their tables."""
    problems = _problems(db)
    if problems and all("index" in problem for problem in problems):
        db.execute("REINDEX")
        problems = _problems(db)
    if problems:
        reason = "; ".join(problems[:_SHOWN_PROBLEMS])
        raise DatabaseError(
            f"{path} is damaged ({reason}): restore a copy, or rescue its rows by `sqlite3 FILE .recover`",
            path=str(path),
        )


def _problems(db: sqlite3.Connection) -> list[str]:
    rows = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({4 * _SHOWN_PROBLEMS})")]
    return [] if rows == ["ok"] else [" ".join(row.split()) for row in rows]
