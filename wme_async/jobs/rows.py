"""What is stored of batches, jobs, events and webhooks. Times are UTC epoch seconds, sizes are bytes."""

import msgspec

from wme_async.jobs.rules import Options
from wme_async.jobs.states import BatchState, Status

__all__ = ["BatchRow", "EventRow", "JobRow", "MessageRow"]


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
        error: What went wrong last.
    """

    message_id: str
    batch_id: str
    url: str
    body: bytes
    state: str = "waiting"
    attempts: int = 0
    next_at: float | None = None
    error: str | None = None
