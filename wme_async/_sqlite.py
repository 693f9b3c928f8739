"""Translates errors of SQLite into errors with the path of the database and a remedy."""

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from wme_async.errors import DataError

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SYSTEM: Final = {
    sqlite3.SQLITE_PERM: (
        errno.EACCES,
        "the database cannot be used; check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_NOMEM: (errno.ENOMEM, "there is not enough memory for the database"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "the database cannot be written; make the file and its folder writable"),
    sqlite3.SQLITE_IOERR: (errno.EIO, "the database cannot be read or written; check the disk and its file system"),
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "the database cannot grow; free some space on its disk"),
}


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code of an error; 0 if the error is not from SQLite itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection has the database locked. No other error means that it is in use."""
    return primary_code(error) in _BUSY


def database_error(error: sqlite3.Error, path: Path, content: str) -> OSError | DataError:
    """Return an error that names the database, the cause and the remedy.

    Args:
        error: The error of SQLite.
        path: The database.
        content: Its content, such as "positions".

    Returns:
        A `BlockingIOError` if another process has locked the database; another `OSError` with a matching `errno` if the
        system or the disk is in the way; a `DataError` if the file is not a database, damaged, or of another schema.
    """
    code = primary_code(error)
    if code in _BUSY:
        return OSError(
            errno.EAGAIN,
            "the database is locked by another process; end that process, or use another file",
            str(path),
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return _cannot_open(path)
    if code in _SYSTEM:
        number, message = _SYSTEM[code]
        return OSError(number, f"{message} ({error})", str(path))
    return DataError(f"{path} does not hold {content} ({error}); restore a copy of it, or move it away to start anew")


def _cannot_open(path: Path) -> OSError:
    # Not by opening it: closing a descriptor drops the locks that this process has on the file.
    if path.is_dir():
        return OSError(errno.EISDIR, "a folder is where the database should be; name a file", str(path))
    if not path.parent.is_dir():
        return OSError(errno.ENOENT, "the folder of the database does not exist; create it", str(path))
    if path.exists() and not os.access(path, os.R_OK):
        return OSError(errno.EACCES, "the database cannot be read; check its permissions", str(path))
    if not os.access(path.parent, os.W_OK):
        return OSError(errno.EACCES, "the database needs files beside it; make its folder writable", str(path))
    return OSError(errno.EIO, "the database cannot be opened; check its file system and the open files", str(path))
