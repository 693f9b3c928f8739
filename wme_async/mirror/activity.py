"""Whether a process keeps a mirror now."""

import contextlib
import time
from pathlib import Path
from typing import Final

from wme_async._files import LockedFile, followed

__all__ = ["IS_LOCKED", "is_locked", "lock_file", "lock_path"]

_ATTEMPTS: Final = 5
_PAUSE: Final = 0.02  # seconds

IS_LOCKED: Final = """SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE datname = current_database() AND locktype = 'advisory' AND granted AND objsubid = 2
AND classid::bigint = hashtext('wme_mirror')::bigint & 4294967295
AND objid::bigint = hashtext($1)::bigint & 4294967295)"""
"""Whether a session of PostgreSQL holds the lock of a schema: the two keys are shown without a sign (`pg_locks`)."""


def lock_path(path: Path) -> Path:
    """Return the lock file of an SQLite file: one for all links to it."""
    file = followed(path)
    return file.with_name(f"{file.name}.lock")


def lock_file(path: Path) -> LockedFile:
    """Lock the lock file of an SQLite file, which `is_locked` may hold for a moment. Blocks.

    Args:
        path: The lock file.

    Raises:
        BlockingIOError: Another process keeps it locked.
        OSError: It cannot be opened.
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            return LockedFile(path)
        time.sleep(_PAUSE)
    return LockedFile(path)


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds the lock of an SQLite file; None if this account cannot know. Blocks.

    Args:
        path: The file of the mirror.
    """
    lock = lock_path(path)
    if not lock.exists():
        return False
    try:
        LockedFile(lock).close()
    except BlockingIOError:
        return True
    except OSError:  # the file of another account
        return None
    return False
