"""Batches, jobs and events: as callers see them, and as they are stored. Pure.

The database and the memory of a manager hold rows: `BatchRow` with its `JobRow`s. `views` makes of
them the `Batch` that callers see.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Literal

import msgspec

from wme_async.jobs.validation import Options


class UnknownBatch(LookupError):
    """No batch, or no job, has this id."""


class ManagerClosed(RuntimeError):
    """The batch manager is not open, was closed, or has ended because of an error. Open it again to continue."""


class Status(StrEnum):
    """The state of a job, or of a batch."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL: Final[frozenset[Status]] = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
"""The states of jobs and batches that have ended."""


def utc(seconds: float) -> datetime:
    """Return a time as an aware datetime in UTC, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC)


def job_id(batch_id: str, position: int) -> str:
    """Return the id of a job."""
    return f"job_{batch_id}_{position}"


# Shown to callers


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a job.

    Args:
        percent: 0.0 to 100.0; 0.0 while the size is unknown.
        done: Bytes on the disk.
        total: Bytes in all, None while unknown.
        rate: Recent bytes per second, None while nothing runs.
        eta: Seconds left, None while unknown.
    """

    percent: float = 0.0
    done: int = 0
    total: int | None = None
    rate: float | None = None
    eta: float | None = None


class BatchProgress(JobProgress, frozen=True, kw_only=True):
    """The progress of a batch. Its figures agree: `percent` is `done` of `total`.

    A failed job counts with the bytes that it has, for no more will come. Cancelled jobs do not count until the batch
    has ended, and are then the missing part.

    Args:
        percent: 0.0 to 100.0; while no size is known, the part of the jobs that have ended.
        done: Bytes on the disk.
        total: Bytes in all, None while no size is known.
        rate: Recent bytes per second, None while nothing runs.
        eta: Seconds left at that rate, None while unknown.
        estimated: The sizes of some jobs are unknown, and `total` counts them like the average of the others.
    """

    estimated: bool = False


class JobFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a completed job.

    Args:
        filename: Its name.
        filepath: Its path under the manager's directory, with slashes.
        size_bytes: Its size.
        download_url: The URL at which the service serves it, None without a service.
        etag: The version of the file, as its server named it.
        subtitles: Paths of its subtitle files, if any.
    """

    filename: str
    filepath: str
    size_bytes: int
    download_url: str | None = None
    etag: str | None = None
    subtitles: tuple[str, ...] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One URL of a batch.

    Args:
        job_id: `job_`, the batch's id and the position.
        url: The URL.
        status: Its state.
        title: The title of the file or page, once known.
        progress: Its progress.
        file_info: The file, once completed.
        error: The reason of a failure, in words.
        created_at: When it was submitted, UTC.
        completed_at: When it ended, UTC.
        started_at: When it last started, UTC.
    """

    job_id: str
    url: str
    status: Status
    title: str | None = None
    progress: JobProgress = JobProgress()
    file_info: JobFile | None = None
    error: str | None = None
    created_at: datetime
    completed_at: datetime | None = None
    started_at: datetime | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch at one moment.

    Args:
        batch_id: `batch_` and random digits.
        status: Its state.
        total_jobs: The number of jobs; the sum of the six counts.
        completed_jobs: Jobs whose file is finished.
        failed_jobs: Jobs that failed.
        running_jobs: Jobs that run.
        queued_jobs: Jobs that wait.
        jobs: The jobs, in the order of the URLs; empty in lists.
        created_at: When it was submitted, UTC.
        started_at: When its first job started, UTC.
        completed_at: When it ended, UTC.
        duration_sec: Seconds from its start to its end, or until now.
        error: The reason of a failure, in words.
        cancelled_jobs: Jobs that were cancelled.
        paused_jobs: Jobs that are paused.
        progress: Its progress.
        retry_of: The batch whose failed jobs it repeats.
        priority: Batches with a higher priority start first.
        name: The name that it was submitted with; else its first URL and how many more it has.
    """

    batch_id: str
    status: Status
    total_jobs: int
    completed_jobs: int = 0
    failed_jobs: int = 0
    running_jobs: int = 0
    queued_jobs: int = 0
    jobs: tuple[Job, ...] = ()
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_sec: int = 0
    error: str | None = None
    cancelled_jobs: int = 0
    paused_jobs: int = 0
    progress: BatchProgress = BatchProgress()
    retry_of: str | None = None
    priority: int = 0
    name: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.status in FINAL


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a batch or a job.

    Args:
        kind: `batch` and `job` for a changed state, `deleted` for a batch that was deleted, `progress` for bytes.
        batch_id: The batch.
        id: Increases over all batches; watch from an id to get the later events. None for progress, which is not
            stored.
        job_id: The job, None for the batch as a whole.
        status: The new state.
        at: Time of the change, UTC.
        error: The reason of a failure, in words.
        progress: The progress of the job, for `progress`.
    """

    kind: Literal["batch", "job", "deleted", "progress"]
    batch_id: str
    id: int | None = None
    job_id: str | None = None
    status: Status | None = None
    at: datetime
    error: str | None = None
    progress: JobProgress | None = None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A page of batches, the newest first.

    Args:
        batches: Without their jobs.
        next: Pass it as `before` for older ones; None at the end.
    """

    batches: tuple[Batch, ...]
    next: str | None = None


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook and the state of its delivery.

    Args:
        message_id: The `webhook-id`, the same at every attempt.
        batch_id: The batch whose end it reports.
        url: The receiver.
        state: `waiting`, `delivered` or `given up`.
        attempts: Attempts so far.
        next_at: When the next attempt is due, UTC.
        error: The reason why the last attempt failed.
    """

    message_id: str
    batch_id: str
    url: str
    state: Literal["waiting", "delivered", "given up"]
    attempts: int
    next_at: datetime | None = None
    error: str | None = None


# Stored: times are UTC epoch seconds, sizes are bytes


class JobRow(msgspec.Struct, kw_only=True):
    """A job as it is stored.

    Args:
        position: Its index in the batch.
        url: The URL.
        status: Its state.
        title: Known after the first response.
        done: Bytes on the disk when it last stopped.
        total: Bytes in all, once known.
        filepath: Its name under the directory: first reserved, then used.
        moving: The download is whole and on its way to `filepath`.
        etag: The version of the file.
        extras: Paths of files that belong to it, such as subtitles.
        error: The reason of a failure.
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
        options: The options it was submitted with.
        created_at: When it was submitted.
        number: Increases with every batch; 0 before it is stored.
        status: Its state.
        paused: It was paused as a whole.
        cancelled: It was cancelled as a whole.
        retry_of: The batch that it repeats.
        started_at: When its first job started.
        completed_at: When it ended.
        error: The reason of a failure.
        size: The number of its jobs, as stored with it.
        jobs: Its jobs by position; empty in lists.
        sums: In lists, instead of the jobs, by state: jobs, jobs of known size, bytes done, and bytes in all.
        first_url: In lists, instead of the jobs: the URL of the first one.
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
    first_url: str = ""


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is stored; its id is 0 before."""

    id: int = 0
    batch_id: str
    position: int | None = None
    kind: Literal["batch", "job", "deleted"]
    status: Status | None = None
    at: float
    error: str | None = None


class MessageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as it is stored.

    Args:
        message_id: The `webhook-id`.
        batch_id: The batch whose end it reports.
        url: The receiver.
        body: The bytes, the same at every attempt.
        state: `waiting`, `delivered` or `given up`.
        attempts: Attempts so far.
        next_at: When the next attempt is due.
        delay: Seconds from the last attempt to the next one, whatever the clock is set to.
        error: The reason why the last attempt failed.
    """

    message_id: str
    batch_id: str
    url: str
    body: bytes
    state: Literal["waiting", "delivered", "given up"] = "waiting"
    attempts: int = 0
    next_at: float | None = None
    delay: float = 0.0
    error: str | None = None


# No disk holds a file of this size, and the sum over a batch still fits in the database.
_MAX_BYTES: Final = 1 << 50


def storable_text(text: str) -> str:
    """Return a server's text as the database can hold it: bytes of headers that are not text become `?`."""
    return text.encode("utf-8", "replace").decode()


def storable_size(size: int | None) -> int | None:
    """Return a size that a server reported; None if no file can have it."""
    return size if size is not None and 0 <= size < _MAX_BYTES else None


# From rows to batches and events


def event_of(row: EventRow) -> Event:
    """Return a stored event as watchers see it."""
    return Event(
        kind=row.kind,
        batch_id=row.batch_id,
        id=row.id,
        job_id=None if row.position is None else job_id(row.batch_id, row.position),
        status=row.status,
        at=utc(row.at),
        error=row.error,
    )


def ends_batch(event: Event) -> bool:
    """Return whether nothing more happens to the batch after an event."""
    return event.job_id is None and (event.kind == "deleted" or event.status in FINAL)
