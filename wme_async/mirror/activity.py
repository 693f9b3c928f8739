"""Whether a process keeps a mirror now."""

from pathlib import Path
from typing import Final

from wme_async._files import LockedFile, followed

__all__ = ["IS_LOCKED", "is_locked", "lock_path"]

IS_LOCKED: Final = """SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE datname = current_database() AND locktype = 'advisory' AND granted AND objsubid = 2
AND classid::bigint = hashtext('wme_mirror')::bigint & 4294967295
AND objid::bigint = hashtext($1)::bigint & 4294967295)"""
"""Whether a session of PostgreSQL holds the lock of a schema: the two keys are shown without a sign (`pg_locks`)."""


def lock_path(path: Path) -> Path:
    """Return the lock file of an SQLite file: one for all links to it."""
    file = followed(path)
    return file.with_name(f"{file.name}.lock")


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
