"""Positions in an SQLite database."""

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import anyio

from wme_async._files import private_file, private_folder
from wme_async._protocol.arguments import check_path
from wme_async._protocol.positions import Position
from wme_async._tasks import in_thread
from wme_async.errors import DataError
from wme_async.offsets._lock import file_name, locked
from wme_async.offsets.protocol import check_name, check_positions

__all__ = ["SQLiteOffsets"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS wme_offsets (
    name TEXT NOT NULL,
    partition INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    published TEXT,
    reached TEXT,
    PRIMARY KEY (name, partition)
) WITHOUT ROWID
"""
_LOAD = 'SELECT partition, "offset", published, reached FROM wme_offsets WHERE name = ?'
_SAVE = """
INSERT INTO wme_offsets (name, partition, "offset", published, reached) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (name, partition) DO UPDATE
SET "offset" = excluded."offset", published = excluded.published, reached = excluded.reached
"""


class SQLiteOffsets:
    """Keeps positions in a table of an SQLite database on a local disk; the database may hold other tables.

    Each save is one transaction, on the disk when it returns. No connection stays open in between. A lock file beside
    the database keeps a second reader of the same name away; the kernel ends the lock with the process.

    Args:
        path: The database file; it is made if it is not there.

    Raises:
        TypeError: It is no path.
        ValueError: `:memory:`, which would be forgotten at once; use `MemoryOffsets`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if path != "":
            check_path("path", path)
        if os.fspath(path) in {":memory:", ""}:
            raise ValueError("SQLiteOffsets needs a file; MemoryOffsets keeps positions in memory")
        self.path: Path = Path(path)
        self._limiter = anyio.CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"SQLiteOffsets({str(self.path)!r})"

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition.

        Raises:
            DataError: The file is no database, or the table is not ours.
            sqlite3.OperationalError: The database is locked for long, or cannot be opened.
        """
        check_name(name)
        async with self._limiter:
            return await in_thread(self._load, name)

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Keep these positions, leaving other partitions as they are, in one transaction.

        Raises:
            DataError: The file is no database, or the table is not ours.
            sqlite3.OperationalError: The database is locked for long, or the disk is full.
        """
        check_positions(name, positions)
        if positions:
            async with self._limiter:
                await in_thread(self._save, name, dict(positions))

    @contextlib.asynccontextmanager
    async def claim(self, name: str) -> AsyncIterator[None]:
        """Keep other readers of this database off the name.

        Raises:
            StreamError: Another live one holds it.
            OSError: The folder cannot be written to.
        """
        with locked(self.path.with_name(f"{self.path.name}.{file_name(name)}.lock"), name):
            yield

    def _load(self, name: str) -> dict[int, Position]:
        with self._connected() as connection:
            return {
                partition: Position(offset, _time(published), _time(reached))
                for partition, offset, published, reached in connection.execute(_LOAD, (name,))
            }

    def _save(self, name: str, positions: dict[int, Position]) -> None:
        rows = [
            (name, partition, position.offset, _text(position.published), _text(position.reached))
            for partition, position in positions.items()
        ]
        with self._connected() as connection, connection:
            connection.executemany(_SAVE, rows)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        private_folder(self.path.parent)
        if not self.path.exists():
            private_file(self.path)  # SQLite gives its other files the permissions of this one
        try:
            connection = sqlite3.connect(self.path, timeout=30.0)
            try:
                # Refused at once, without the wait, while others are in a transaction. It can be had another time, and
                # what is wrong beyond that comes up below.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute(_SCHEMA)
                yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise DataError(f"{self.path} does not hold positions: {error}") from error


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
