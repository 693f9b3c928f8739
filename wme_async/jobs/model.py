"""What a batch and its jobs look like from outside: the fields of the status answer, and events."""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from wme_async.jobs.states import FINAL, Status

__all__ = ["Batch", "BatchProgress", "Event", "Job", "JobFile", "JobProgress", "Listing", "Outbox", "utc"]


def utc(seconds: float) -> datetime:
    """Return a time as an aware datetime in UTC, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC)


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is.

    Args:
        percent: 0.0 to 100.0; 0.0 while the size is unknown.
        done: Bytes that are there.
        total: Bytes in all, None while unknown.
        rate: Bytes per second of late, None while nothing runs.
        eta: Seconds left, None while unknown.
    """

    percent: float = 0.0
    done: int = 0
    total: int | None = None
    rate: float | None = None
    eta: float | None = None


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is, weighted by bytes. A job of unknown size counts like the average of the known ones.

    Args:
        percent: 0.0 to 100.0. Failed jobs count as done with; cancelled ones do not count until the batch has ended,
            and then as what is missing.
        done: Bytes that are there.
        total: Bytes of all jobs whose size is known.
        rate: Bytes per second of late, None while nothing runs.
        eta: Seconds left at that rate, None while unknown.
    """

    percent: float = 0.0
    done: int = 0
    total: int | None = None
    rate: float | None = None
    eta: float | None = None


class JobFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a completed job.

    Args:
        filename: Its name.
        filepath: Its path under the manager's directory, with slashes.
        size_bytes: Its size.
        download_url: Where the service serves it, None without a service.
        etag: The version of what was fetched, as its server named it.
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
        url: What is downloaded.
        status: Its state.
        title: The title of the file or page, once known.
        progress: How far it is.
        file_info: The file, once completed.
        error: Why it failed, in words.
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
        total_jobs: All its jobs; the sum of the six counts.
        completed_jobs: Those whose file is there.
        failed_jobs: Those that failed.
        running_jobs: Those that run.
        queued_jobs: Those that wait.
        jobs: The jobs, in the order of the URLs; empty in lists.
        created_at: When it was submitted, UTC.
        started_at: When its first job started, UTC.
        completed_at: When it ended, UTC.
        duration_sec: Seconds from its start to its end, or until now.
        error: Why it failed, in words.
        cancelled_jobs: Those that were cancelled.
        paused_jobs: Those that are paused.
        progress: How far it is.
        retry_of: The batch whose failed jobs it repeats.
        priority: Batches with a higher one start first.
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

    @property
    def ended(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.status in FINAL


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened.

    Args:
        kind: `batch` and `job` for a changed state, `deleted` for a batch that is gone, `progress` for bytes.
        batch_id: Of which batch.
        id: Counts up over all batches; ask for what came after it. None for progress, which is not kept.
        job_id: Of which job, None for the batch as a whole.
        status: The state afterwards.
        at: When, UTC.
        error: Why it failed, in words.
        progress: How far the job is, for `progress`.
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
    """A webhook and how its delivery goes.

    Args:
        message_id: The `webhook-id`, the same at every attempt.
        batch_id: Whose end it tells.
        url: Where to.
        state: `waiting`, `delivered` or `given up`.
        attempts: How many there were.
        next_at: When the next one is due, UTC.
        error: What went wrong last.
    """

    message_id: str
    batch_id: str
    url: str
    state: Literal["waiting", "delivered", "given up"]
    attempts: int
    next_at: datetime | None = None
    error: str | None = None
