"""Errors of batch jobs, and those of SQLite in our words."""

import sqlite3
from pathlib import Path
from typing import Final

from wme_async.errors import WMEError

__all__ = ["DamagedBatch", "DatabaseError", "ManagerClosed", "UnknownBatch", "database_error"]


class UnknownBatch(LookupError):
    """There is no batch, or no job, with this id."""


class ManagerClosed(RuntimeError):
    """The batch manager is not open, was closed, or has ended because of an error. Open it again to go on."""


class DatabaseError(WMEError):
    """The jobs database cannot be opened, read or written. The message names the file and what to do.

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
    """Return an error of SQLite as ours: the file, the cause, and what to do.

    Args:
        path: The database.
        error: What SQLite raised.
    """
    code = getattr(error, "sqlite_errorcode", None)
    cause = None if code is None else _CAUSES.get(code & 0xFF)
    return DatabaseError(f"{path} {cause or 'cannot be used'} ({error})", path=str(path))
