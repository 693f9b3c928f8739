"""SQLite that fails or waits at statements that a test names: the only way to break a database that is in use."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest


def disk_full() -> None:
    """Raise as SQLite does when the disk is full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


class Trouble:
    """Statements of connections that are opened from now on.

    Args:
        monkeypatch: Ends the trouble with the test.
        text: Part of the SQL.
        action: Called in the thread of the statement, before it.
        values: A value that the statement must have, None for any.
        times: How often the action is called.
        after: Statements before this event do not count.

    Attributes:
        count: Matching statements so far.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        text: str,
        action: Callable[[], object] = disk_full,
        *,
        value: object = None,
        times: int = 1,
        after: asyncio.Event | None = None,
    ) -> None:
        self.count = 0
        connect = sqlite3.connect

        def check(sql: str, rows: Any) -> None:
            ready = after is None or after.is_set()
            if ready and text in sql and (value is None or any(value in row for row in rows)):
                self.count += 1
                if self.count <= times:
                    action()

        def failing(base: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
            class Connection(base):  # type: ignore[misc, valid-type]  # of another trouble, or of SQLite
                def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                    check(sql, values)
                    cursor: sqlite3.Cursor = super().execute(sql, *values)
                    return cursor

                def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
                    check(sql, rows)
                    cursor: sqlite3.Cursor = super().executemany(sql, rows)
                    return cursor

            return Connection

        def patched(*args: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **options: Any) -> Any:
            return connect(*args, factory=failing(factory), **options)

        monkeypatch.setattr(sqlite3, "connect", patched)
