"""Positions in an SQLite database."""

import contextlib
import math
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import msgspec

from wme_async import _clock
from wme_async._arguments import check_path
from wme_async._files import followed, private_file, private_folder, sync_folder
from wme_async._platform import boot_id
from wme_async._sqlite import database_error, is_busy, primary_code
from wme_async._tasks import long_in_thread
from wme_async.errors import DataError
from wme_async.offsets._lock import file_name, locked
from wme_async.offsets.lease_table import Lease, LeaseTable
from wme_async.offsets.protocol import Position, check_lease, check_name, check_positions

__all__ = ["SQLiteOffsets"]

R = TypeVar("R")

_VERSION: Final = 2  # of the tables; 1 lacks the checksums and the second table
_PATIENCE: Final = 30.0  # seconds to wait for another process that has the database locked
_SMALLEST: Final = 512  # bytes of a page, of which a database has at least one
_LOOK: Final = 0.05  # seconds between two checks of such a wait whether its task is cancelled

# `checksum` reveals a damaged row, and the number of rows in the second table a missing one.
# Triggers keep that number right, and drop the checksum of rows that other programs change, such as SQLite's shell.
_COUNT: Final = """
    INSERT INTO wme_offsets_names VALUES (NEW.name, 1, {version}) ON CONFLICT (name) DO UPDATE
    SET partitions = (SELECT count(*) FROM wme_offsets WHERE name = NEW.name);
"""
_COUNT_OLD: Final = """
    UPDATE wme_offsets_names SET partitions = (SELECT count(*) FROM wme_offsets WHERE name = OLD.name)
    WHERE name = OLD.name;
    DELETE FROM wme_offsets_names WHERE name = OLD.name AND partitions = 0;
"""
_OBJECTS: Final = {
    "wme_offsets": """CREATE TABLE wme_offsets (
        name TEXT NOT NULL,
        partition INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        published TEXT,
        reached TEXT,
        checksum INTEGER,
        PRIMARY KEY (name, partition)
    ) WITHOUT ROWID""",
    "wme_offsets_names": """CREATE TABLE wme_offsets_names (
        name TEXT NOT NULL PRIMARY KEY,
        partitions INTEGER NOT NULL,
        version INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "wme_offsets_added": f"CREATE TRIGGER wme_offsets_added AFTER INSERT ON wme_offsets BEGIN {_COUNT} END",
    "wme_offsets_deleted": f"CREATE TRIGGER wme_offsets_deleted AFTER DELETE ON wme_offsets BEGIN {_COUNT_OLD} END",
    "wme_offsets_moved": f"""CREATE TRIGGER wme_offsets_moved AFTER UPDATE OF name ON wme_offsets
    WHEN NEW.name IS NOT OLD.name BEGIN {_COUNT} {_COUNT_OLD} END""",
    "wme_offsets_changed": """CREATE TRIGGER wme_offsets_changed AFTER UPDATE ON wme_offsets
    WHEN NEW.checksum IS OLD.checksum AND NEW.checksum IS NOT NULL AND (
        NEW.name IS NOT OLD.name OR NEW.partition IS NOT OLD.partition OR NEW."offset" IS NOT OLD."offset"
        OR NEW.published IS NOT OLD.published OR NEW.reached IS NOT OLD.reached
    ) BEGIN
        UPDATE wme_offsets SET checksum = NULL WHERE name = NEW.name AND partition = NEW.partition;
    END""",
}
# The leases of groups, and their members. Times are seconds since a boot of this machine, which no clock change moves.
_LEASE_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS wme_leases (
        name TEXT NOT NULL, part INTEGER NOT NULL, owner TEXT, token INTEGER NOT NULL, until REAL NOT NULL, boot TEXT,
        PRIMARY KEY (name, part)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS wme_members (
        name TEXT NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL, boot TEXT, PRIMARY KEY (name, owner)
    ) WITHOUT ROWID""",
)
_FIND: Final = "SELECT name FROM sqlite_master WHERE name IN (?, ?, ?, ?, ?, ?)"
_LOAD: Final = 'SELECT partition, "offset", published, reached, {} FROM wme_offsets WHERE name = ?'
_SAVE: Final = """
INSERT INTO wme_offsets (name, partition, "offset", published, reached, checksum) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (name, partition) DO UPDATE
SET "offset" = excluded."offset", published = excluded.published, reached = excluded.reached,
    checksum = excluded.checksum
"""
_NOT_WRITABLE: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR})


class SQLiteOffsets:
    """Keeps positions in a table of an SQLite database on a local disk; the database may hold other tables.

    Each save is one transaction, on the disk when it returns. No connection stays open in between. Rows have checksums;
    positions that do not match theirs are not used. A lock file beside the database keeps a second reader of the same
    name away; the kernel ends the lock with the process. A new database is readable by its owner alone; an existing one
    keeps its permissions.

    It has leases too: processes of this machine can share parts through one file (`share="group"`).

    Args:
        path: The database file; it is created at the first save if it does not exist.

    Raises:
        TypeError: It is not a path.
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
        """Return the last saved position of each partition. A read-only file or file system is enough for it.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            BlockingIOError: Another process has the database locked for half a minute.
            OSError: It cannot be read.
        """
        check_name(name)
        async with self._limiter:
            return await long_in_thread(partial(self._load, name))

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save these positions, leaving other partitions as they are, in one transaction.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            BlockingIOError: Another process has the database locked for half a minute.
            OSError: It cannot be written, or the disk is full.
        """
        check_positions(name, positions)
        if positions:
            save = partial(_save, _rows(name, positions))
            async with self._limiter:
                await long_in_thread(partial(self._write, save))

    @contextlib.asynccontextmanager
    async def claim(self, name: str) -> AsyncIterator[None]:
        """Keep other readers of this database off the name.

        Raises:
            StreamError: Another live one holds it.
            OSError: The folder cannot be written to.
        """
        # Readers that reach the file by a link and by its own name share one lock.
        with locked(Path(f"{followed(self.path)}.{file_name(name)}.lock"), name):
            yield

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        """Join a group, and take free parts up to this member's share.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            OSError: It cannot be written, or another process has it locked for half a minute.
        """
        check_lease(name, owner, ttl, parts)
        return await self._with_leases(name, lambda table, now, _: table.take(owner, parts, ttl, now))

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        """Extend the leases that a member still has.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            OSError: It cannot be written, or another process has it locked for half a minute.
        """
        check_lease(name, owner, ttl)
        return await self._with_leases(name, lambda table, now, _: table.renew(owner, ttl, now))

    async def members(self, name: str) -> Sequence[str]:
        """Return the live members of a group, in order.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            OSError: It cannot be written, or another process has it locked for half a minute.
        """
        check_name(name)
        return await self._with_leases(name, lambda table, now, _: table.members(now))

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        """Save positions, if this is the last lease of the part, in one transaction.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            OSError: It cannot be written, or another process has it locked for half a minute.
        """
        check_positions(name, positions)
        check_lease(name, owner)
        rows = _rows(name, positions)

        def work(table: LeaseTable, _now: float, connection: sqlite3.Connection) -> bool:
            held = table.holds(owner, part, token)
            if held:
                connection.executemany(_SAVE, rows)
            return held

        return await self._with_leases(name, work)

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        """Give parts back; with None all of them, and leave the group.

        Raises:
            DataError: The file is not a database, is damaged, or is from a later version.
            OSError: It cannot be written, or another process has it locked for half a minute.
        """
        check_lease(name, owner)
        await self._with_leases(name, lambda table, _now, _connection: table.give(owner, parts))

    def _load(self, name: str, cancelled: Callable[[], bool]) -> dict[int, Position]:
        try:
            if self.path.stat().st_size < _SMALLEST:
                # SQLite takes an empty file for a new database, which would hide the loss of its positions.
                raise self._damaged("it is empty, or nearly so")
        except FileNotFoundError:
            return {}

        def work() -> dict[int, Position]:
            try:
                return self._read(name, "mode=rw")
            except sqlite3.Error as error:
                if primary_code(error) not in _NOT_WRITABLE or self._has_log():
                    raise
                # A database in write-ahead mode needs files beside it, unless it is immutable.
                with contextlib.suppress(sqlite3.Error):
                    return self._read(name, "mode=ro&immutable=1")
                raise

        return self._when_unlocked(work, cancelled)

    def _read(self, name: str, mode: str) -> dict[int, Position]:
        with _connected(self.path, mode) as connection:
            connection.execute("BEGIN")  # all of it from one state of the database
            objects = _objects(connection)
            count = 0
            if "wme_offsets_names" in objects:
                self._check_version(connection)
                row = connection.execute("SELECT partitions FROM wme_offsets_names WHERE name = ?", (name,)).fetchone()
                count = row[0] if row else 0
            rows: list[tuple[Any, ...]] = []
            if "wme_offsets" in objects:
                checksum = "checksum" if _has_checksums(connection) else "NULL"
                rows = connection.execute(_LOAD.format(checksum), (name,)).fetchall()
        # Neither is there in a database of the first version.
        if len(rows) != count and (count or any(row[4] is not None for row in rows)):
            raise self._damaged(f"{count} partitions of {name!r} were saved and {len(rows)} are there")
        positions: dict[int, Position] = {}
        for partition, offset, published, reached, checksum in rows:
            if checksum is not None and checksum != _checksum(name, partition, offset, published, reached):
                raise self._damaged(f"the checksum of partition {partition} of {name!r} does not match")
            try:
                positions[partition] = Position(offset, _time(published), _time(reached))
            except (TypeError, ValueError) as error:
                raise self._damaged(f"partition {partition} of {name!r}: {error}") from error
        return positions

    def _write(self, work: Callable[[sqlite3.Connection], R], cancelled: Callable[[], bool]) -> R:
        """Do something within one transaction, on the disk when this returns."""

        def transaction() -> R:
            if not self.path.exists():
                _create(followed(self.path))
            with _connected(self.path, "mode=rw") as connection:
                # Refused without waiting while others are in a transaction; the next save tries again.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("BEGIN IMMEDIATE")
                _prepare(connection)
                self._check_version(connection)
                result = work(connection)
                connection.execute("COMMIT")
                return result

        return self._when_unlocked(transaction, cancelled)

    async def _with_leases(self, name: str, work: Callable[[LeaseTable, float, sqlite3.Connection], R]) -> R:
        """Do something with the leases of a group, within one transaction."""

        def transaction(connection: sqlite3.Connection) -> R:
            for statement in _LEASE_TABLES:
                connection.execute(statement)
            table = _load_leases(connection, name)
            # Without a boot to count from, only the date means the same after a restart of the machine.
            now = _clock.now() if boot_id() is None else _clock.uptime()
            result = work(table, now, connection)
            _save_leases(connection, name, table)
            return result

        async with self._limiter:
            return await long_in_thread(partial(self._write, transaction))

    def _when_unlocked(self, work: Callable[[], R], cancelled: Callable[[], bool]) -> R:
        """Do something with the database, again and again while another process has it locked."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return work()
            except sqlite3.Error as error:
                if not is_busy(error) or cancelled() or time.monotonic() >= deadline:
                    raise database_error(error, self.path, "positions") from error
                time.sleep(_LOOK)
            except (OSError, DataError):
                raise
            except Exception as error:  # such as names in it that are not UTF-8
                raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _check_version(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("SELECT max(version) FROM wme_offsets_names").fetchone()
        if version is not None and version != _VERSION:
            raise DataError(
                f"the positions in {self.path} are in format {version}, and this version of wme_async knows format "
                f"{_VERSION}: update it, or move the file away to start anew"
            )

    def _damaged(self, problem: str) -> DataError:
        return DataError(f"{self.path} is damaged ({problem}); restore a copy of it, or move it away to start anew")

    def _has_log(self) -> bool:
        log = Path(f"{os.path.realpath(self.path)}-wal")
        return log.exists() and log.stat().st_size > 0


@contextlib.contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=_LOOK, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()  # which rolls back what was not committed


def _create(path: Path) -> None:
    """Create a database with our tables, at once as a whole: a reader never sees an empty file."""
    private_folder(path.parent)
    temporary = path.with_name(f".wme-{secrets.token_hex(8)}.tmp")
    try:
        private_file(temporary)
        with _connected(temporary, "mode=rw") as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            _prepare(connection)
            connection.execute("COMMIT")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # another process was quicker
        except OSError:  # a file system without hard links
            private_file(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _objects(connection: sqlite3.Connection) -> set[str]:
    """Return which of our tables and triggers are there."""
    return {name for (name,) in connection.execute(_FIND, tuple(_OBJECTS))}


def _has_checksums(connection: sqlite3.Connection) -> bool:
    return any(row[1] == "checksum" for row in connection.execute("PRAGMA table_info(wme_offsets)"))


def _prepare(connection: sqlite3.Connection) -> None:
    """Create the tables and triggers that are missing, such as in a database of the first version."""
    objects = _objects(connection)
    if len(objects) == len(_OBJECTS):
        return
    if "wme_offsets" in objects and not _has_checksums(connection):
        connection.execute("ALTER TABLE wme_offsets ADD COLUMN checksum INTEGER")
    for name, statement in _OBJECTS.items():
        if name not in objects:
            connection.execute(statement.format(version=_VERSION))
    connection.execute("DELETE FROM wme_offsets_names")
    count = "INSERT INTO wme_offsets_names SELECT name, count(*), ? FROM wme_offsets GROUP BY name"
    connection.execute(count, (_VERSION,))


def _rows(name: str, positions: Mapping[int, Position]) -> list[tuple[Any, ...]]:
    rows = (
        (name, partition, position.offset, _text(position.published), _text(position.reached))
        for partition, position in positions.items()
    )
    return [(*row, _checksum(*row)) for row in rows]


def _save(rows: list[tuple[Any, ...]], connection: sqlite3.Connection) -> None:
    # The cursor is not returned: a connection whose cursor is still in use stays open after it was closed.
    connection.executemany(_SAVE, rows)


def _load_leases(connection: sqlite3.Connection, name: str) -> LeaseTable:
    """Return the leases of a group; those of another boot have ended."""
    table, boot = LeaseTable(), boot_id()
    leases = connection.execute("SELECT part, owner, token, until, boot FROM wme_leases WHERE name = ?", (name,))
    table.leases = {
        part: Lease(owner, token, until if of_boot == boot else -math.inf)
        for part, owner, token, until, of_boot in leases
    }
    members = connection.execute("SELECT owner, until, boot FROM wme_members WHERE name = ?", (name,))
    table.live_until = {owner: until for owner, until, of_boot in members if of_boot == boot}
    return table


def _save_leases(connection: sqlite3.Connection, name: str, table: LeaseTable) -> None:
    boot = boot_id()
    leases = [(name, part, lease.owner, lease.token, lease.until, boot) for part, lease in table.leases.items()]
    connection.executemany("INSERT OR REPLACE INTO wme_leases VALUES (?, ?, ?, ?, ?, ?)", leases)
    connection.execute("DELETE FROM wme_members WHERE name = ?", (name,))
    members = [(name, owner, until, boot) for owner, until in table.live_until.items()]
    connection.executemany("INSERT INTO wme_members VALUES (?, ?, ?, ?)", members)


def _checksum(name: str, partition: int, offset: int, published: str | None, reached: str | None) -> int:
    return zlib.crc32(msgspec.json.encode((name, partition, offset, published, reached)))


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
