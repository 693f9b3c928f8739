"""Batches in SQLite, which survive a kill. One thread owns the connection, so nothing blocks the loop.

Every change of state is one transaction: the jobs, the batch, the events that report it and the webhook that
follows from it are stored together or not at all. Each commit syncs the write-ahead log, so a confirmed change survives
a power cut too.
"""

import asyncio
import contextlib
import functools
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from wme_async._files import private_folder
from wme_async._tasks import wait_done
from wme_async.jobs.database import (
    COLUMNS,
    DamagedBatch,
    DatabaseError,
    connect,
    database_error,
    lock,
    matches,
    sealed,
)
from wme_async.jobs.model import FINAL, BatchRow, EventRow, JobRow, ManagerClosed, MessageRow, Status
from wme_async.jobs.validation import Options

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Enough for a page that is opened again after a weekend.
_MAX_EVENTS = 200_000

# Valid times of rows are from 1970 to 5138, in UTC epoch seconds.
_LAST_TIME = 1e11


def _in_thread(
    method: Callable[Concatenate["Store", _P], _T],
) -> Callable[Concatenate["Store", _P], Coroutine[Any, Any, _T]]:
    """Run a method in the thread that owns the connection. Errors of SQLite are raised as `DatabaseError`."""

    async def run(self: "Store", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._executor is None:
            raise ManagerClosed("the batch manager is not open: use it in `async with`")
        work = functools.partial(method, self, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        # A cancelled task waits too: otherwise nobody would know whether its change is stored.
        await wait_done(future)
        try:
            return future.result()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise database_error(self._path, error) from error

    return functools.update_wrapper(run, method)


class Store:
    """The database of one manager. Its public methods run in a thread of their own, one after the other.

    Args:
        path: Its file; created if it is missing.

    Attributes:
        damaged: The reasons why batches are set aside, by id: their rows are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.damaged: dict[str, str] = {}
        self._path = path
        self._numbers: dict[str, int] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._lock: sqlite3.Connection | None = None
        self._db: sqlite3.Connection = None  # type: ignore[assignment]  # set by open() before anything can use it

    async def open(self) -> None:
        """Open the file, take its lock, bring its tables up to date, and check them.

        Raises:
            RuntimeError: Another manager uses it, or a newer version of this package made it.
            DatabaseError: It cannot be opened, or is damaged.
        """
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wme-jobs")
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the file. Closing a closed store does nothing."""
        if self._executor is None:
            return
        try:
            await self._close()
        finally:
            self._executor.shutdown(wait=False)
            self._executor = None

    @_in_thread
    def _open(self) -> None:
        folder = self._path.parent
        try:
            private_folder(folder)
        except OSError as error:
            message = f"{folder} cannot be created or used: {error.strerror or error}"
            raise DatabaseError(message, path=str(self._path)) from error
        self._lock = lock(self._path)
        self._db = connect(self._path)

    @_in_thread
    def _close(self) -> None:
        try:
            if self._db is not None:
                self._db.close()
        finally:
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

    @_in_thread
    def save(
        self,
        row: BatchRow,
        jobs: Sequence[JobRow],
        events: Sequence[EventRow],
        message: MessageRow | None = None,
    ) -> list[EventRow]:
        """Store a batch, some of its jobs, events and a webhook in one transaction.

        Args:
            row: The batch; a new one has the number 0, which is replaced.
            jobs: The jobs that changed.
            events: The events.
            message: A webhook to send.

        Returns:
            The events with their ids.
        """
        with self._transaction() as db:
            if not row.number:
                cursor = db.execute(
                    "INSERT INTO batches (batch_id, status, options, retry_of, created_at, jobs)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        *(row.batch_id, row.status, msgspec.json.encode(row.options), row.retry_of, row.created_at),
                        len(row.jobs),
                    ),
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
            db.execute(f"{sealed('batches')} WHERE batch_id = ?", (row.batch_id,))
            db.executemany(
                f"{sealed('jobs')} WHERE batch_id = ? AND position = ?", [(row.batch_id, job.position) for job in jobs]
            )
            if message is not None:
                db.execute(
                    "INSERT INTO outbox (message_id, batch_id, url, body, next_at) VALUES (?, ?, ?, ?, ?)",
                    (message.message_id, message.batch_id, message.url, message.body, message.next_at),
                )
                db.execute(f"{sealed('outbox')} WHERE message_id = ?", (message.message_id,))
            return [self._add_event(event) for event in events]

    def _add_event(self, event: EventRow) -> EventRow:
        cursor = self._db.execute(
            "INSERT INTO events (batch_id, position, kind, status, at, error) VALUES (?, ?, ?, ?, ?, ?)",
            (event.batch_id, event.position, event.kind, event.status, event.at, event.error),
        )
        number = cursor.lastrowid or 0
        if number % 1000 == 0:
            self._db.execute("DELETE FROM events WHERE id <= ?", (number - _MAX_EVENTS,))
        return msgspec.structs.replace(event, id=number)

    @_in_thread
    def reserve(
        self,
        batch_id: str,
        position: int,
        candidates: Iterator[tuple[str, str]],
        *,
        title: str | None,
        etag: str | None,
    ) -> str:
        """Give a job whose download is whole a file name that no other job has, on any file system.

        From here on the job is `moving`: after a kill the file has one of its two names.

        Args:
            batch_id: The batch.
            position: The job.
            candidates: Path and comparison key, in order of preference, without end.
            title: The title of the file.
            etag: Its version.

        Returns:
            The path that now belongs to this job.
        """
        with self._transaction() as db:
            for path, key in candidates:
                try:
                    db.execute(
                        "UPDATE jobs SET filepath = ?, file_key = ?, title = ?, etag = ?, moving = 1"
                        " WHERE batch_id = ? AND position = ?",
                        (path, key, title, etag, batch_id, position),
                    )
                except sqlite3.IntegrityError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                        raise
                    continue
                db.execute(f"{sealed('jobs')} WHERE batch_id = ? AND position = ?", (batch_id, position))
                return path
        raise RuntimeError("no candidate was free")

    @_in_thread
    def release(self, batch_id: str, position: int) -> None:
        """Release the file name of a job that will have no file."""
        with self._transaction() as db:
            where, key = "WHERE batch_id = ? AND position = ?", (batch_id, position)
            db.execute(f"UPDATE jobs SET filepath = NULL, file_key = NULL, moving = 0 {where}", key)  # noqa: S608  # ours
            db.execute(f"{sealed('jobs')} {where}", key)

    @_in_thread
    def delete(self, event: EventRow) -> EventRow:
        """Remove a batch with its jobs, events and webhooks, and store the event that reports it."""
        with self._transaction() as db:
            if event.batch_id in self._numbers:
                # The id of a damaged batch may not be the one that it is stored under.
                db.execute("DELETE FROM batches WHERE number = ?", (self._numbers[event.batch_id],))
            for table in ("batches", "events", "outbox"):
                db.execute(f"DELETE FROM {table} WHERE batch_id = ?", (event.batch_id,))  # noqa: S608  # three literals
            event = self._add_event(event)
        self.damaged.pop(event.batch_id, None)
        self._numbers.pop(event.batch_id, None)
        return event

    # Queries

    @_in_thread
    def unfinished(self) -> list[BatchRow]:
        """Return the batches that have not ended, with their jobs, the oldest first, and set damaged ones aside."""
        rows = []
        # All batches are read: damage may make one look as if it had ended.
        for values in self._db.execute(f"{_select('batches')} ORDER BY number"):
            with contextlib.suppress(DamagedBatch):
                row = self._decode(values)
                if row.completed_at is None:
                    self._add_jobs(row)
                    rows.append(row)
        self._give_up_damaged(None)
        return rows

    @_in_thread
    def batch(self, batch_id: str) -> BatchRow | None:
        """Return a batch with its jobs.

        Raises:
            DamagedBatch: Its rows are damaged.
        """
        if batch_id in self.damaged:
            raise self.set_aside(batch_id, self._numbers[batch_id], self.damaged[batch_id])
        values = self._db.execute(f"{_select('batches')} WHERE batch_id = ?", (batch_id,)).fetchone()
        if values is None:
            return None
        row = self._decode(values)
        self._add_jobs(row)
        return row

    def _decode(self, values: tuple[Any, ...]) -> BatchRow:
        """Return a batch without its jobs.

        Raises:
            DamagedBatch: The row is damaged.
        """
        try:
            return _batch(values)
        except Exception as error:
            raise self.set_aside(_printable(values[1]), values[0], f"its row: {error}") from error

    def _add_jobs(self, row: BatchRow) -> None:
        jobs: list[JobRow] = []
        try:
            for values in self._db.execute(f"{_select('jobs')} WHERE batch_id = ? ORDER BY position", (row.batch_id,)):
                jobs.append(_job(values))
                if jobs[-1].position != len(jobs) - 1:
                    raise ValueError("a job is missing before it")  # noqa: TRY301  # one message with the others
            if len(jobs) != row.size:
                raise ValueError(f"{row.size} jobs are expected")  # noqa: TRY301  # as above
        except sqlite3.Error:
            raise
        except Exception as error:
            raise self.set_aside(row.batch_id, row.number, f"job {len(jobs)}: {error}") from error
        row.jobs = jobs

    def set_aside(self, batch_id: str, number: int, reason: str) -> DamagedBatch:
        """Set a damaged batch aside, and return the error that reports it."""
        message = (
            f"the batch {batch_id} in {self._path} is damaged ({reason}) and set aside: delete it, or look at its rows"
            f" with sqlite3"
        )
        if batch_id not in self.damaged:
            logger.error("%s", message)
            self.damaged[batch_id], self._numbers[batch_id] = reason, number
        return DamagedBatch(message, batch_id=batch_id, path=str(self._path))

    @_in_thread
    def page(self, *, before: str | None, limit: int, status: Status | None) -> tuple[list[BatchRow], int | None]:
        """Return batches without their jobs, the newest first. Damaged ones are omitted.

        Args:
            before: Only those older than this batch, or than the batch of this number, which may have been deleted.
            limit: How many at most.
            status: Only those in this state.

        Returns:
            The batches, and the number of the last one if older ones follow.
        """
        page = self._db.execute(
            f"{_select('batches')} WHERE (:before IS NULL"  # noqa: S608  # names of ours
            " OR number < COALESCE((SELECT number FROM batches WHERE batch_id = :before), CAST(:before AS INTEGER)))"
            " AND (:status IS NULL OR status = :status) ORDER BY number DESC LIMIT :limit",
            {"before": before, "status": status, "limit": limit + 1},
        ).fetchall()
        rows: list[BatchRow] = []
        for values in page[:limit]:
            with contextlib.suppress(DamagedBatch):
                row = self._decode(values)
                if row.batch_id not in self.damaged:
                    self._add_sums(row)
                    rows.append(row)
        return rows, page[limit - 1][0] if len(page) > limit else None

    def _add_sums(self, row: BatchRow) -> None:
        sums = self._db.execute(
            "SELECT status, COUNT(*), COUNT(total), SUM(done), SUM(COALESCE(total, 0)) FROM jobs"
            " WHERE batch_id = ? GROUP BY status",
            (row.batch_id,),
        ).fetchall()
        first = self._db.execute("SELECT url FROM jobs WHERE batch_id = ? AND position = 0", (row.batch_id,)).fetchone()
        row.first_url = _printable(first[0]) if first else ""
        try:
            row.sums = {Status(state): (number, sized, done, total) for state, number, sized, done, total in sums}
            if sum(number for number, *_ in row.sums.values()) != row.size:
                raise ValueError(f"{row.size} jobs are expected")  # noqa: TRY301  # one message with the others
        except ValueError as error:
            raise self.set_aside(row.batch_id, row.number, f"its jobs: {error}") from error

    @_in_thread
    def finished_file(self, filepath: str) -> bool:
        """Return whether a path is the file of a completed job."""
        statement = (
            "SELECT 1 FROM jobs WHERE filepath = :path AND status = 'completed' UNION ALL"
            " SELECT 1 FROM jobs, json_each(jobs.extras) WHERE jobs.extras <> '[]' AND jobs.status = 'completed'"
            " AND json_each.value = :path LIMIT 1"
        )
        return self._db.execute(statement, {"path": filepath}).fetchone() is not None

    @_in_thread
    def events(self, *, after: int, batch_id: str | None, limit: int = 500) -> list[EventRow]:
        """Return the events after an event, in order."""
        statement = (
            "SELECT id, batch_id, position, kind, status, at, error FROM events"
            " WHERE id > :after AND (:batch IS NULL OR batch_id = :batch) ORDER BY id LIMIT :limit"
        )
        while True:
            rows = self._db.execute(statement, {"after": after, "batch": batch_id, "limit": limit}).fetchall()
            events = [event for row in rows if (event := _event(row)) is not None]
            if events or len(rows) < limit:
                return events
            after = rows[-1][0]

    @_in_thread
    def last_event(self) -> int:
        """Return the id of the newest event, 0 before the first."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        return int(row[0]) if row else 0

    @_in_thread
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many jobs, batches and webhooks there are in each state."""
        return {
            table: dict(self._db.execute(f"SELECT {column}, COUNT(*) FROM {table} GROUP BY 1"))  # noqa: S608  # literals
            for table, column in (("batches", "status"), ("jobs", "status"), ("outbox", "state"))
        }

    # Webhooks and settings

    @_in_thread
    def messages(self, *, due: float | None = None, batch_id: str | None = None) -> list[MessageRow]:
        """Return webhooks: those that are due at a time, or those of a batch, the oldest due first."""
        if due is not None:
            self._give_up_damaged(due)
        rows = self._db.execute(
            f"{_select('outbox')}"
            " WHERE (:due IS NULL OR (state = 'waiting' AND next_at <= :due))"
            " AND (:batch IS NULL OR batch_id = :batch) ORDER BY next_at LIMIT 100",
            {"due": due, "batch": batch_id},
        ).fetchall()
        return [MessageRow(**dict(zip(COLUMNS["outbox"], row[:-1], strict=True))) for row in rows]

    def _give_up_damaged(self, due: float | None) -> None:
        """Give up webhooks whose rows are damaged, because their bodies may be wrong. Their rows stay for operators."""
        rows = self._db.execute(
            f"SELECT rowid, {', '.join(COLUMNS['outbox'])}, crc FROM outbox"  # noqa: S608  # names of ours
            " WHERE state NOT IN ('delivered', 'given up') AND (:due IS NULL OR next_at <= :due) LIMIT 1000",
            {"due": due},
        ).fetchall()
        for number, *values in rows:
            if not matches(values):
                logger.error("the webhook %s in %s is damaged, and is not sent", _printable(str(values[0])), self._path)
                with self._transaction() as db:
                    db.execute(
                        "UPDATE outbox SET state = 'given up', next_at = NULL, error = ? WHERE rowid = ?",
                        ("the stored message is damaged", number),
                    )

    @_in_thread
    def limit_waits(self, now: float) -> None:
        """Shorten waits of webhooks that exceed their delay, because the clock was set back."""
        overdue = "SELECT message_id FROM outbox WHERE state = 'waiting' AND next_at > ? + delay + 0.001"
        for (message_id,) in self._db.execute(overdue, (now,)).fetchall():
            with self._transaction() as db:
                db.execute("UPDATE outbox SET next_at = ? + delay WHERE message_id = ?", (now, message_id))
                db.execute(f"{sealed('outbox')} WHERE message_id = ?", (message_id,))

    @_in_thread
    def next_message(self) -> float | None:
        """Return when the next webhook is due, UTC epoch seconds."""
        due: float | None = self._db.execute("SELECT MIN(next_at) FROM outbox WHERE state = 'waiting'").fetchone()[0]
        return due

    @_in_thread
    def attempted(self, message: MessageRow) -> bool:
        """Store the result of an attempt.

        Returns:
            False if the message was deleted in the meantime.
        """
        values = (message.state, message.attempts, message.next_at, message.delay, message.error, message.message_id)
        with self._transaction() as db:
            cursor = db.execute(
                "UPDATE outbox SET state = ?, attempts = ?, next_at = ?, delay = ?, error = ? WHERE message_id = ?",
                values,
            )
            db.execute(f"{sealed('outbox')} WHERE message_id = ?", (message.message_id,))
            return cursor.rowcount > 0

    @_in_thread
    def setting(self, name: str) -> bytes | None:
        """Return a stored setting.

        Raises:
            DatabaseError: Its row is damaged.
        """
        row = self._db.execute(f"{_select('meta')} WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        if not matches(row):
            raise DatabaseError(
                f"the setting {name!r} in {self._path} is damaged: restore a copy, or remove its row from the table"
                f" 'meta' so that a new one is made",
                path=str(self._path),
            )
        return bytes(row[1])

    @_in_thread
    def set_setting(self, name: str, value: bytes) -> None:
        """Store a setting."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))
            db.execute(f"{sealed('meta')} WHERE name = ?", (name,))


def _select(table: str) -> str:
    return f"SELECT {', '.join(COLUMNS[table])}, crc FROM {table}"  # noqa: S608  # names of ours


def _checked(table: str, values: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row as a mapping.

    Raises:
        ValueError: It does not match its checksum.
    """
    row = dict(zip(COLUMNS[table], values[:-1], strict=True))
    if not matches(values):
        raise ValueError("it does not match its checksum")
    for name in ("created_at", "started_at", "completed_at"):
        if row.get(name) is not None and not 0 <= row[name] < _LAST_TIME:
            raise ValueError(f"{name} is not a time")
    return row


def _job(values: tuple[Any, ...]) -> JobRow:
    row = _checked("jobs", values)
    row |= {"moving": bool(row["moving"]), "extras": msgspec.json.decode(row["extras"])}
    return msgspec.convert(row, type=JobRow)


def _batch(values: tuple[Any, ...]) -> BatchRow:
    row = _checked("batches", values)
    row |= {
        "paused": bool(row["paused"]),
        "cancelled": bool(row["cancelled"]),
        "options": msgspec.json.decode(row["options"], type=Options),
        "size": row.pop("jobs"),
    }
    batch = msgspec.convert(row, type=BatchRow)
    if (batch.completed_at is not None) != (batch.status in FINAL):
        raise ValueError(f"it is {batch.status} and {'ended' if batch.completed_at else 'has not ended'}")
    return batch


def _event(values: tuple[Any, ...]) -> EventRow | None:
    try:
        event = msgspec.convert(dict(zip(EventRow.__struct_fields__, values, strict=True)), type=EventRow)
        if not 0 <= event.at < _LAST_TIME:
            raise ValueError("its time is damaged")  # noqa: TRY301  # one message with the others
    except ValueError as error:
        logger.error("the event %s is damaged and omitted: %s", values[0], error)  # noqa: TRY400  # no bug of ours
        return None
    return event


def _printable(text: object) -> str:
    return str(text).encode("utf-8", "backslashreplace").decode()
