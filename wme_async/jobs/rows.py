"""What is stored of batches, jobs, events and webhooks. Times are UTC epoch seconds, sizes are bytes."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from wme_async.jobs.model import JobProgress
from wme_async.jobs.states import FINAL, BatchState, Change, Status
from wme_async.jobs.urls import redacted_url
from wme_async.jobs.validation import Options

__all__ = ["BatchRow", "EventRow", "JobRow", "MessageRow", "batch_error", "changed", "storable_size", "storable_text"]


# No disk holds a file of this size. The sum of as many as a batch can have is still a number of the database.
_MOST_BYTES = 1 << 50


class JobRow(msgspec.Struct, kw_only=True):
    """A job as it is stored. Times are UTC epoch seconds, sizes are bytes.

    Args:
        position: Its index in the batch.
        url: What is downloaded.
        status: Its state.
        title: Known after the first answer.
        done: Bytes that were there when it last stopped.
        total: Bytes in all, once known.
        filepath: Its name under the directory: reserved first, then moved to.
        moving: The download is whole and on its way to `filepath`.
        etag: The version of what was fetched.
        extras: Paths of files that belong to it, such as subtitles.
        error: Why it failed.
        started_at: When it last started.
        completed_at: When it ended.
    """

    position: int
    url: str
    status: Status = Status.QUEUED
    title: str | None = None
    done: int = 0
    total: int | None = None
    filepath: str | None = None
    moving: bool = False
    etag: str | None = None
    extras: list[str] = []
    error: str | None = None
    started_at: float | None = None
    completed_at: float | None = None


class BatchRow(msgspec.Struct, kw_only=True):
    """A batch as it is stored.

    Args:
        batch_id: Its id.
        options: What was asked for.
        number: Counts up with every batch; 0 before it is stored.
        status: Its state.
        paused: It was paused as a whole.
        cancelled: It was cancelled as a whole.
        retry_of: The batch that it repeats.
        created_at: When it was submitted.
        started_at: When its first job started.
        completed_at: When it ended.
        error: Why it failed.
        size: How many jobs it has, as stored with it.
        jobs: Its jobs by position; empty in lists.
        sums: In lists, instead of the jobs, by state: how many, of how many the size is known, bytes done, and in all.
    """

    batch_id: str
    options: Options
    created_at: float
    number: int = 0
    status: Status = Status.QUEUED
    paused: bool = False
    cancelled: bool = False
    retry_of: str | None = None
    started_at: float | None = None
    completed_at: float | None = None
    error: str | None = None
    size: int = 0
    jobs: list[JobRow] = []
    sums: dict[Status, tuple[int, int, int, int]] = {}

    @property
    def state(self) -> BatchState:
        """The states alone, for the table of transitions."""
        return BatchState(
            jobs=tuple(job.status for job in self.jobs),
            concurrent_limit=self.options.concurrent_limit,
            stop_on_error=self.options.stop_on_error,
            ignore_errors=self.options.ignore_errors,
            paused=self.paused,
            cancelled=self.cancelled,
        )


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is stored.

    Args:
        id: Counts up over all batches; 0 before it is stored.
        batch_id: Of which batch.
        position: Of which job, None for the batch.
        kind: `batch`, `job` or `deleted`.
        status: The state afterwards.
        at: UTC epoch seconds.
        error: Why.
    """

    id: int = 0
    batch_id: str
    position: int | None = None
    kind: str
    status: Status | None = None
    at: float
    error: str | None = None


class MessageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook on its way.

    Args:
        message_id: The `webhook-id`.
        batch_id: Whose end it tells.
        url: Where to.
        body: The bytes, the same at every attempt.
        state: `waiting`, `delivered` or `given up`.
        attempts: How many there were.
        next_at: When the next one is due, UTC epoch seconds.
        delay: Seconds after the last attempt at which the next one is due, whatever the clock is set to.
        error: What went wrong last.
    """

    message_id: str
    batch_id: str
    url: str
    body: bytes
    state: str = "waiting"
    attempts: int = 0
    next_at: float | None = None
    delay: float = 0.0
    error: str | None = None


def changed(
    row: BatchRow,
    after: BatchState,
    changes: Iterable[Change],
    *,
    now: float,
    live: Mapping[int, JobProgress],
    facts: Mapping[int, Mapping[str, Any]],
) -> tuple[BatchRow, list[EventRow]]:
    """Return a batch after a change, and the events that tell of it.

    Args:
        row: The batch before; its number is 0 if it is new.
        after: Its states afterwards.
        changes: The jobs that changed.
        now: UTC epoch seconds.
        live: How far the running jobs are, by position.
        facts: Further fields of changed jobs, by position.
    """
    jobs = list(row.jobs)
    events: list[EventRow] = []
    for position, old, status in changes:
        job = jobs[position]
        fields: dict[str, Any] = {"status": status}
        if status is Status.RUNNING:
            fields |= {"started_at": now, "error": None}
        elif old is Status.RUNNING and (progress := live.get(position)) is not None:
            fields |= {"done": progress.done, "total": progress.total or job.total}
        if status in FINAL:
            fields["completed_at"] = now
        fields.update(facts.get(position, {}))
        jobs[position] = job = msgspec.structs.replace(job, **fields)
        events.append(
            EventRow(batch_id=row.batch_id, position=position, kind="job", status=status, at=now, error=job.error)
        )
    new = msgspec.structs.replace(row, jobs=jobs, status=after.status, paused=after.paused, cancelled=after.cancelled)
    if new.started_at is None and any(event.status is Status.RUNNING for event in events):
        new.started_at = now
    if new.status in FINAL:
        new.completed_at = now
        new.error = batch_error(new)
    if new.status is not row.status or not row.number:
        events.append(EventRow(batch_id=row.batch_id, kind="batch", status=new.status, at=now, error=new.error))
    return new, events


def batch_error(row: BatchRow) -> str | None:
    """Say why a batch failed, or stopped early."""
    failed = [job for job in row.jobs if job.status is Status.FAILED]
    if row.status not in FINAL or not failed:
        return None
    first = f"{redacted_url(failed[0].url)}: {failed[0].error}"
    if row.options.stop_on_error:
        return f"stopped on the first error: {first}"
    return f"{len(failed)} of {len(row.jobs)} jobs failed, the first {first}" if row.status is Status.FAILED else None


def storable_text(text: str) -> str:
    """Return text of a server as the database can hold it: bytes of headers that are not text become `?`."""
    return text.encode("utf-8", "replace").decode()


def storable_size(size: int | None) -> int | None:
    """Return a size that a server said; None if no file can have it."""
    return size if size is not None and 0 <= size < _MOST_BYTES else None
