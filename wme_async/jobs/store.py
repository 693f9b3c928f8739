"""Batches in SQLite: what survives a kill. One thread owns the connection, so nothing blocks the loop.

Every change of state is one transaction: the jobs, the batch, the events that tell of it and the webhook that follows
from it are there together or not at all. The write-ahead log is synced at each, so a change that was answered survives
a power cut too.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from wme_async._files import private_file, private_folder
from wme_async.jobs.rows import BatchRow, EventRow, JobRow, MessageRow
from wme_async.jobs.rules import Options
from wme_async.jobs.states import FINAL, Status

__all__ = ["Store"]

_T = TypeVar("_T")
_Values: TypeAlias = Sequence[object] | Mapping[str, object]

# Enough for a page that was away for a weekend; older ones are of no use to anyone.
_KEPT_EVENTS = 200_000

_SELECT_BATCH = (
    "SELECT number, batch_id, status, paused, cancelled, options, retry_of, created_at, started_at, completed_at, error"
    " FROM batches"
)

_MIGRATIONS: tuple[str, ...] = (
    """
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
    """,
)


class Store:
    """The database of one manager.

    Args:
        path: Its file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._executor: ThreadPoolExecutor | None = None
        self._lock: sqlite3.Connection | None = None
        self._db: sqlite3.Connection = None  # type: ignore[assignment]  # set by open() before anything can use it

    async def open(self) -> None:
        """Open the file, take its lock, and bring its tables up to date.

        Raises:
            RuntimeError: Another manager has it, or a newer version of this package made it.
        """
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wme-jobs")
        try:
            await self._run(self._open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the file. Once is enough, twice does no harm."""
        if self._executor is None:
            return
        await self._run(self._close)
        self._executor.shutdown(wait=False)
        self._executor = None

    async def _run(self, work: Callable[..., _T], *args: Any) -> _T:
        if self._executor is None:
            raise RuntimeError("the batch manager is not open: use it in `async with`")
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)

    def _open(self) -> None:
        # Signing secrets and signed URLs are in it. SQLite gives its other files the permissions of the database.
        private_folder(self._path.parent)
        private_file(self._path)
        private_file(self._path.with_name(f"{self._path.name}.lock"))
        # A lock that the system drops when the process dies, on every platform that SQLite runs on.
        self._lock = sqlite3.connect(f"{self._path}.lock", timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            self._lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise RuntimeError(f"another batch manager is using {self._path}") from error
        self._db = sqlite3.connect(self._path, timeout=30.0, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise RuntimeError(f"{self._path} was made by a newer version of wme_async (schema {version})")
        for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
            # One transaction with its version: a kill in between leaves the old schema whole.
            self._db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # Changes

    async def save(
        self,
        row: BatchRow,
        jobs: Iterable[JobRow],
        events: Sequence[EventRow],
        message: MessageRow | None = None,
    ) -> list[EventRow]:
        """Store a batch, some of its jobs, what happened and what follows, in one transaction.

        Args:
            row: The batch; a number of 0 makes it a new one and is replaced.
            jobs: The jobs that changed.
            events: What happened.
            message: A webhook to send.

        Returns:
            The events with their ids.
        """
        return await self._run(self._save, row, list(jobs), events, message)

    def _save(
        self, row: BatchRow, jobs: list[JobRow], events: Sequence[EventRow], message: MessageRow | None
    ) -> list[EventRow]:
        with self._transaction() as db:
            if not row.number:
                cursor = db.execute(
                    "INSERT INTO batches (batch_id, status, options, retry_of, created_at) VALUES (?, ?, ?, ?, ?)",
                    (row.batch_id, row.status, msgspec.json.encode(row.options), row.retry_of, row.created_at),
                )
                row.number = cursor.lastrowid or 0
            db.execute(
                "UPDATE batches SET status = ?, paused = ?, cancelled = ?, started_at = ?, completed_at = ?, error = ?"
                " WHERE batch_id = ?",
                (row.status, row.paused, row.cancelled, row.started_at, row.completed_at, row.error, row.batch_id),
            )
            db.executemany(
                "INSERT INTO jobs (batch_id, position, url, status, title, done, total, moving, etag, extras,"
                " error, started_at, completed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET status = excluded.status, title = excluded.title, done = excluded.done,"
                " total = excluded.total, moving = excluded.moving, etag = excluded.etag,"
                " extras = excluded.extras, error = excluded.error,"
                " started_at = excluded.started_at, completed_at = excluded.completed_at",
                [
                    (
                        *(row.batch_id, job.position, job.url, job.status, job.title, job.done, job.total),
                        *(job.moving, job.etag, msgspec.json.encode(job.extras).decode(), job.error),
                        *(job.started_at, job.completed_at),
                    )
                    for job in jobs
                ],
            )
            if message is not None:
                db.execute(
                    "INSERT INTO outbox (message_id, batch_id, url, body, next_at) VALUES (?, ?, ?, ?, ?)",
                    (message.message_id, message.batch_id, message.url, message.body, message.next_at),
                )
            return [self._add_event(event) for event in events]

    def _add_event(self, event: EventRow) -> EventRow:
        cursor = self._db.execute(
            "INSERT INTO events (batch_id, position, kind, status, at, error) VALUES (?, ?, ?, ?, ?, ?)",
            (event.batch_id, event.position, event.kind, event.status, event.at, event.error),
        )
        number = cursor.lastrowid or 0
        if number % 1000 == 0:
            self._db.execute("DELETE FROM events WHERE id <= ?", (number - _KEPT_EVENTS,))
        return msgspec.structs.replace(event, id=number)

    async def reserve(
        self,
        batch_id: str,
        position: int,
        candidates: Iterator[tuple[str, str]],
        *,
        title: str | None,
        etag: str | None,
    ) -> str:
        """Give a job whose download is whole a file name that no other job has, whatever a file system takes for equal.

        From here on the job is `moving`: after a kill the file is found under one of its two names.

        Args:
            batch_id: The batch.
            position: The job.
            candidates: Path and comparison key, in order of preference, without end.
            title: The title of the file.
            etag: Its version.

        Returns:
            The path that is now this job's.
        """
        return await self._run(self._reserve, batch_id, position, candidates, title, etag)

    def _reserve(
        self, batch_id: str, position: int, candidates: Iterator[tuple[str, str]], title: str | None, etag: str | None
    ) -> str:
        with self._transaction() as db:
            for path, key in candidates:
                try:
                    db.execute(
                        "UPDATE jobs SET filepath = ?, file_key = ?, title = ?, etag = ?, moving = 1"
                        " WHERE batch_id = ? AND position = ?",
                        (path, key, title, etag, batch_id, position),
                    )
                except sqlite3.IntegrityError:
                    continue
                return path
        raise RuntimeError("no candidate was free")

    async def release(self, batch_id: str, position: int) -> None:
        """Take the file name back from a job that will have no file."""
        statement = "UPDATE jobs SET filepath = NULL, file_key = NULL, moving = 0 WHERE batch_id = ? AND position = ?"
        await self._run(self._write, statement, (batch_id, position))

    async def delete(self, event: EventRow) -> EventRow:
        """Remove a batch with its jobs, events and webhooks, and tell of it."""
        return await self._run(self._delete, event)

    def _delete(self, event: EventRow) -> EventRow:
        with self._transaction() as db:
            for table in ("batches", "events", "outbox"):
                db.execute(f"DELETE FROM {table} WHERE batch_id = ?", (event.batch_id,))  # noqa: S608  # three literals
            return self._add_event(event)

    def _write(self, statement: str, values: Sequence[object]) -> int:
        with self._transaction() as db:
            return db.execute(statement, values).rowcount

    # Questions

    async def unfinished(self) -> list[BatchRow]:
        """Return the batches that have not ended, with their jobs, the oldest first."""
        return await self._run(self._batches, "WHERE completed_at IS NULL ORDER BY number", ())

    async def batch(self, batch_id: str) -> BatchRow | None:
        """Return a batch with its jobs.

        Raises:
            TypeError: What is asked for is no identifier.
        """
        if not isinstance(batch_id, str):
            raise TypeError(f"a batch is named by its batch_id, which is text, not by a {type(batch_id).__name__}")
        found = await self._run(self._batches, "WHERE batch_id = ?", (batch_id,))
        return found[0] if found else None

    def _batches(self, clause: str, values: Sequence[object]) -> list[BatchRow]:
        rows = self._plain(clause, values)
        for row in rows:
            row.jobs = [
                _job(columns)
                for columns in self._db.execute(
                    "SELECT position, url, status, title, done, total, filepath, moving, etag, extras, error,"
                    " started_at, completed_at FROM jobs WHERE batch_id = ? ORDER BY position",
                    (row.batch_id,),
                )
            ]
        return rows

    def _plain(self, clause: str, values: _Values) -> list[BatchRow]:
        return [_batch(columns) for columns in self._db.execute(f"{_SELECT_BATCH} {clause}", values)]

    async def page(self, *, before: str | None, limit: int, status: Status | None) -> list[BatchRow]:
        """Return batches without their jobs, the newest first.

        Args:
            before: Only those older than this batch, or than this number, under which a batch may be gone by now.
            limit: How many at most.
            status: Only those in this state.
        """
        return await self._run(self._page, before, limit, status)

    def _page(self, before: str | None, limit: int, status: Status | None) -> list[BatchRow]:
        rows = self._plain(
            "WHERE (:before IS NULL"
            " OR number < COALESCE((SELECT number FROM batches WHERE batch_id = :before), CAST(:before AS INTEGER)))"
            " AND (:status IS NULL OR status = :status) ORDER BY number DESC LIMIT :limit",
            {"before": before, "status": status, "limit": limit},
        )
        for row in rows:
            row.sums = {
                Status(state): (number, known, done, total)
                for state, number, known, done, total in self._db.execute(
                    "SELECT status, COUNT(*), COUNT(total), SUM(done), SUM(COALESCE(total, 0)) FROM jobs"
                    " WHERE batch_id = ? GROUP BY status",
                    (row.batch_id,),
                )
            }
        return rows

    async def finished_file(self, filepath: str) -> bool:
        """Say whether a path is the file of a completed job."""
        statement = (
            "SELECT 1 FROM jobs WHERE filepath = :path AND status = 'completed' UNION ALL"
            " SELECT 1 FROM jobs, json_each(jobs.extras) WHERE jobs.extras <> '[]' AND jobs.status = 'completed'"
            " AND json_each.value = :path LIMIT 1"
        )
        return bool(await self._run(self._read, statement, {"path": filepath}))

    async def events(self, *, after: int, batch_id: str | None, limit: int = 500) -> list[EventRow]:
        """Return what happened after an event, in order."""
        rows = await self._run(
            self._read,
            "SELECT id, batch_id, position, kind, status, at, error FROM events"
            " WHERE id > :after AND (:batch IS NULL OR batch_id = :batch) ORDER BY id LIMIT :limit",
            {"after": after, "batch": batch_id, "limit": limit},
        )
        return [
            EventRow(
                id=number,
                batch_id=batch,
                position=position,
                kind=kind,
                status=Status(status) if status else None,
                at=at,
                error=error,
            )
            for number, batch, position, kind, status, at, error in rows
        ]

    async def last_event(self) -> int:
        """Return the id of the newest event, 0 where there was none."""
        rows = await self._run(self._read, "SELECT seq FROM sqlite_sequence WHERE name = 'events'", ())
        return int(rows[0][0]) if rows else 0

    async def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many jobs, batches and webhooks there are in each state."""
        return {
            table: dict(
                await self._run(
                    self._read,
                    f"SELECT {column}, COUNT(*) FROM {table} GROUP BY 1",  # noqa: S608  # three literals
                    (),
                )
            )
            for table, column in (("batches", "status"), ("jobs", "status"), ("outbox", "state"))
        }

    def _read(self, statement: str, values: _Values) -> list[tuple[Any, ...]]:
        return self._db.execute(statement, values).fetchall()

    # Webhooks and settings

    async def messages(self, *, due: float | None = None, batch_id: str | None = None) -> list[MessageRow]:
        """Return webhooks: those that are due at a time, or those of a batch, the oldest due first."""
        rows = await self._run(
            self._read,
            "SELECT message_id, batch_id, url, body, state, attempts, next_at, error FROM outbox"
            " WHERE (:due IS NULL OR (state = 'waiting' AND next_at <= :due))"
            " AND (:batch IS NULL OR batch_id = :batch) ORDER BY next_at LIMIT 100",
            {"due": due, "batch": batch_id},
        )
        names = ("message_id", "batch_id", "url", "body", "state", "attempts", "next_at", "error")
        return [MessageRow(**dict(zip(names, row, strict=True))) for row in rows]

    async def next_message(self) -> float | None:
        """Return when the next webhook is due, UTC epoch seconds."""
        rows = await self._run(self._read, "SELECT MIN(next_at) FROM outbox WHERE state = 'waiting'", ())
        return rows[0][0] if rows else None

    async def attempted(self, message: MessageRow) -> bool:
        """Store how an attempt went.

        Returns:
            False if the message was deleted in the meantime.
        """
        statement = "UPDATE outbox SET state = ?, attempts = ?, next_at = ?, error = ? WHERE message_id = ?"
        values = (message.state, message.attempts, message.next_at, message.error, message.message_id)
        return bool(await self._run(self._write, statement, values))

    async def setting(self, name: str) -> bytes | None:
        """Return a stored setting."""
        rows = await self._run(self._read, "SELECT value FROM meta WHERE name = ?", (name,))
        return bytes(rows[0][0]) if rows else None

    async def set_setting(self, name: str, value: bytes) -> None:
        """Store a setting."""
        await self._run(self._write, "INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _job(columns: tuple[Any, ...]) -> JobRow:
    position, url, status, title, done, total, filepath, moving, etag, extras, error, started, completed = columns
    return JobRow(
        position=position,
        url=url,
        status=Status(status),
        title=title,
        done=done,
        total=total,
        filepath=filepath,
        moving=bool(moving),
        etag=etag,
        extras=msgspec.json.decode(extras),
        error=error,
        started_at=started,
        completed_at=completed,
    )


def _batch(columns: tuple[Any, ...]) -> BatchRow:
    number, batch_id, status, paused, cancelled, options, retry_of, created_at, started_at, completed_at, error = (
        columns
    )
    row = BatchRow(
        batch_id=batch_id,
        options=msgspec.json.decode(options, type=Options),
        created_at=created_at,
        number=number,
        status=Status(status),
        paused=bool(paused),
        cancelled=bool(cancelled),
        retry_of=retry_of,
        started_at=started_at,
        completed_at=completed_at,
        error=error,
    )
    assert (row.completed_at is not None) == (row.status in FINAL)
    return row
