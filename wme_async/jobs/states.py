"""The changes of state of jobs and batches, in one table. Pure.

    job       start       complete   fail      cancel      pause    resume   interrupt
    queued    running                          cancelled   paused
    running               completed  failed    cancelled   paused            queued
    paused                                     cancelled            queued
    completed, failed, cancelled: final

The state of a batch follows from those of its jobs and from two marks (paused, cancelled).

    jobs                                          stop_on_error  ignore_errors  batch
    none failed                                   any            any            completed
    one failed                                    false          true           completed, failed_jobs > 0 (default)
    one failed                                    false          false          failed, when the others have ended
    one failed: queued and running are cancelled  true           true           completed, failed_jobs > 0
    one failed: queued and running are cancelled  true           false          failed
    the batch was cancelled before its end        any            any            cancelled
    every job was cancelled, one by one           any            any            cancelled
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from wme_async._arguments import check_type
from wme_async.jobs.model import FINAL, BatchRow, EventRow, JobProgress, JobRow, Status, UnknownBatch
from wme_async.jobs.url_policy import redacted_url


class Cause(StrEnum):
    """The reason of a job's change of state."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    INTERRUPT = "interrupt"


TRANSITIONS: Final[Mapping[tuple[Status, Cause], Status]] = {
    (Status.QUEUED, Cause.START): Status.RUNNING,
    (Status.QUEUED, Cause.CANCEL): Status.CANCELLED,
    (Status.QUEUED, Cause.PAUSE): Status.PAUSED,
    (Status.RUNNING, Cause.COMPLETE): Status.COMPLETED,
    (Status.RUNNING, Cause.FAIL): Status.FAILED,
    (Status.RUNNING, Cause.CANCEL): Status.CANCELLED,
    (Status.RUNNING, Cause.PAUSE): Status.PAUSED,
    (Status.RUNNING, Cause.INTERRUPT): Status.QUEUED,
    (Status.PAUSED, Cause.CANCEL): Status.CANCELLED,
    (Status.PAUSED, Cause.RESUME): Status.QUEUED,
}
"""All changes of a job's state."""


class WrongState(RuntimeError):
    """The operation is not possible in this state, such as cancelling a batch that has ended."""


class Change(NamedTuple):
    """One job that changed.

    Args:
        position: Its index in the batch, from 0.
        old: Before.
        new: After.
    """

    position: int
    old: Status
    new: Status


Changed: TypeAlias = tuple[BatchRow, tuple[Change, ...]]
"""A batch after an operation, and its jobs that changed. The batch before is left as it was."""


def status_of(row: BatchRow) -> Status:
    """Return the state of a batch that follows from its jobs, by the table at the top of this module."""
    statuses = {job.status for job in row.jobs}
    if not statuses <= FINAL:
        if row.paused:
            return Status.PAUSED
        return Status.QUEUED if statuses <= {Status.QUEUED, Status.PAUSED} else Status.RUNNING
    if row.cancelled or statuses == {Status.CANCELLED}:
        return Status.CANCELLED
    return Status.FAILED if Status.FAILED in statuses and not row.options.ignore_errors else Status.COMPLETED


def startable(row: BatchRow) -> int:
    """Return how many more jobs of a batch may start now."""
    if row.paused or row.cancelled:
        return 0
    counts = Counter(job.status for job in row.jobs)
    return min(counts[Status.QUEUED], max(0, row.options.concurrent_limit - counts[Status.RUNNING]))


def apply(row: BatchRow, cause: Cause, *positions: int) -> Changed:
    """Change jobs. With `stop_on_error`, a failure cancels the jobs that have not ended.

    Args:
        row: The batch.
        cause: The reason.
        positions: The jobs, from 0.

    Returns:
        The batch afterwards, and every job that changed, the named ones first.

    Raises:
        WrongState: The table has no such change.
    """
    statuses: dict[int, Status] = {}
    for position in positions:
        status = row.jobs[position].status
        if (status, cause) not in TRANSITIONS:
            raise WrongState(f"a job that is {status} cannot {cause}")
        statuses[position] = TRANSITIONS[status, cause]
    after, changes = _change(row, statuses)
    if cause is Cause.FAIL and row.options.stop_on_error:
        after, cancelled = _apply_to_all(after, Cause.CANCEL)
        changes += cancelled
    return after, changes


def cancel(row: BatchRow) -> Changed:
    """Cancel every job that has not ended. Cancelling a cancelled batch changes nothing.

    Raises:
        WrongState: The batch is completed or failed.
    """
    if row.status is Status.CANCELLED:
        return row, ()
    _check_unfinished(row, "cancelled")
    return _apply_to_all(row, Cause.CANCEL, cancelled=True, paused=False)


def pause(row: BatchRow) -> Changed:
    """Pause every job that has not ended. Pausing a paused batch changes nothing.

    Raises:
        WrongState: The batch has ended.
    """
    _check_unfinished(row, "paused")
    return _apply_to_all(row, Cause.PAUSE, paused=True)


def resume(row: BatchRow) -> Changed:
    """Queue every paused job again. Resuming a batch that is not paused changes nothing.

    Raises:
        WrongState: The batch has ended.
    """
    _check_unfinished(row, "resumed")
    return _apply_to_all(row, Cause.RESUME, paused=False)


def interrupt(row: BatchRow) -> Changed:
    """Queue every running job again: the process ends, or has ended."""
    return _apply_to_all(row, Cause.INTERRUPT)


def _check_unfinished(row: BatchRow, verb: str) -> None:
    if row.status in FINAL:
        raise WrongState(f"the batch is {row.status} and cannot be {verb}")


def _apply_to_all(row: BatchRow, cause: Cause, **marks: bool) -> Changed:
    statuses = {job.position: TRANSITIONS.get((job.status, cause)) for job in row.jobs}
    return _change(row, {position: status for position, status in statuses.items() if status is not None}, **marks)


def _change(row: BatchRow, statuses: Mapping[int, Status], **marks: bool) -> Changed:
    jobs = list(row.jobs)
    for position, status in statuses.items():
        jobs[position] = replace(jobs[position], status=status)
    after = replace(row, jobs=jobs, **marks)
    after.status = status_of(after)
    return after, tuple(Change(position, row.jobs[position].status, status) for position, status in statuses.items())


def record(
    before: BatchRow,
    after: BatchRow,
    changes: Iterable[Change],
    *,
    now: float,
    live: Mapping[int, JobProgress],
    fields: Mapping[int, Mapping[str, Any]],
) -> list[EventRow]:
    """Complete a changed batch by times, sizes and errors, and return the events that report the change.

    Args:
        before: The batch before; its number is 0 if it is new.
        after: The batch afterwards, which is completed here.
        changes: The jobs that changed.
        now: UTC epoch seconds.
        live: The progress of the running jobs, by position.
        fields: Further fields of changed jobs, by position.
    """
    events: list[EventRow] = []
    for position, old, status in changes:
        job = after.jobs[position]
        if status is Status.RUNNING:
            job.started_at, job.error = now, None
            after.started_at = now if after.started_at is None else after.started_at
        elif old is Status.RUNNING and (progress := live.get(position)) is not None:
            job.done, job.total = progress.done, progress.total or job.total
        if status in FINAL:
            job.completed_at = now
        after.jobs[position] = job = replace(job, **fields.get(position, {}))
        events.append(
            EventRow(batch_id=after.batch_id, position=position, kind="job", status=status, at=now, error=job.error)
        )
    if after.status in FINAL:
        after.completed_at, after.error = now, _error_of(after)
    if after.status is not before.status or not before.number:
        events.append(EventRow(batch_id=after.batch_id, kind="batch", status=after.status, at=now, error=after.error))
    return events


def _error_of(row: BatchRow) -> str | None:
    """Return why an ended batch failed, or stopped early."""
    failed = [job for job in row.jobs if job.status is Status.FAILED]
    if not failed:
        return None
    first = f"{redacted_url(failed[0].url)}: {failed[0].error}"
    if row.options.stop_on_error:
        return f"stopped on the first error: {first}"
    return f"{len(failed)} of {len(row.jobs)} jobs failed, the first {first}" if row.status is Status.FAILED else None


class Waiting(NamedTuple):
    """A batch that has jobs to start.

    Args:
        batch_id: Its id.
        priority: Higher goes first.
        order: Among equals, lower goes first.
        startable: How many of its jobs may start now.
        queued: Position and host of each queued job, in order.
    """

    batch_id: str
    priority: int
    order: int
    startable: int
    queued: Iterable[tuple[int, str]]


def choose(batches: Sequence[Waiting], *, free: int, per_host: int, busy: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the jobs that start now.

    Args:
        batches: The batches with queued jobs, in any order.
        free: How many more jobs may run in all.
        per_host: How many jobs of one host may run at once.
        busy: How many run now, by host.

    Returns:
        The positions of the jobs, by batch. A host with its full number of jobs holds up only its own jobs.
    """
    load = Counter(busy)
    chosen: dict[str, list[int]] = {}
    for batch in sorted(batches, key=lambda waiting: (-waiting.priority, waiting.order)):
        room = min(batch.startable, free)
        for position, host in batch.queued:
            if room <= 0:
                break
            if load[host] < per_host:
                load[host] += 1
                room -= 1
                free -= 1
                chosen.setdefault(batch.batch_id, []).append(position)
    return chosen


def batch_of(job: str) -> str:
    """Return the id of the batch that a job's id names.

    Raises:
        TypeError: The id is not text.
    """
    check_type("job_id", job, str, "text, such as job.job_id", secret=True)
    return job.removeprefix("job_").rpartition("_")[0]


def find_job(row: BatchRow, name: str) -> JobRow:
    """Return the job of a batch that has an id.

    Raises:
        TypeError: The id is not text.
        UnknownBatch: The batch has no such job.
    """
    number = name.rpartition("_")[2] if batch_of(name) == row.batch_id else ""
    if not number.isascii() or not number.isdigit() or len(number) > 9 or int(number) >= len(row.jobs):
        raise UnknownBatch(f"the job {name!r} does not exist")
    return row.jobs[int(number)]


def to_retry(row: BatchRow, *, cancelled: bool, names: Collection[str] | None) -> list[JobRow]:
    """Return the jobs of a batch that are to run again.

    Args:
        row: The batch.
        cancelled: Cancelled jobs beside the failed ones.
        names: The ids of these jobs alone.

    Raises:
        UnknownBatch: A job does not exist.
        WrongState: There are none, or one of those named is neither failed nor cancelled.
    """
    statuses = {Status.FAILED, Status.CANCELLED} if cancelled or names is not None else {Status.FAILED}
    if names is None:
        jobs = [job for job in row.jobs if job.status in statuses]
    else:
        chosen = {job.position: job for job in (find_job(row, name) for name in names)}
        jobs = [chosen[position] for position in sorted(chosen)]
        for job in jobs:
            if job.status not in statuses:
                raise WrongState(
                    f"job number {job.position + 1} is {job.status}; only a failed or cancelled one can run again"
                )
    if not jobs:
        raise WrongState(f"no job of the batch has {' or '.join(sorted(statuses))}")
    return jobs
