"""From what is stored to what is shown: counts, progress by bytes, durations, and the words of an error. Pure."""

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from wme_async.errors import IntegrityError, TimedOut, WMEError
from wme_async.jobs.event_bus import job_id
from wme_async.jobs.model import Batch, BatchProgress, Job, JobFile, JobProgress, utc
from wme_async.jobs.rows import BatchRow, JobRow
from wme_async.jobs.states import FINAL, Status

__all__ = ["live_progress", "plain", "show", "stored_progress", "total_progress", "words"]


def show(
    row: BatchRow,
    *,
    now: float,
    live: Mapping[int, JobProgress],
    file_url: Callable[[str], str] | None = None,
) -> Batch:
    """Return a batch as its status shows it.

    Args:
        row: As stored, with its jobs or with their sums.
        now: UTC epoch seconds.
        live: How far the jobs are that run now, by position.
        file_url: Makes the URL of a file of its path.
    """
    counts = {status: each[0] for status, each in row.sums.items()}
    for job in row.jobs:
        counts[job.status] = counts.get(job.status, 0) + 1
    jobs = tuple(_job(row, job, live.get(job.position), file_url) for job in row.jobs)
    end = now if row.completed_at is None else row.completed_at
    return Batch(
        batch_id=row.batch_id,
        status=row.status,
        total_jobs=sum(counts.values()),
        completed_jobs=counts.get(Status.COMPLETED, 0),
        failed_jobs=counts.get(Status.FAILED, 0),
        running_jobs=counts.get(Status.RUNNING, 0),
        queued_jobs=counts.get(Status.QUEUED, 0),
        cancelled_jobs=counts.get(Status.CANCELLED, 0),
        paused_jobs=counts.get(Status.PAUSED, 0),
        jobs=jobs,
        created_at=utc(row.created_at),
        started_at=None if row.started_at is None else utc(row.started_at),
        completed_at=None if row.completed_at is None else utc(row.completed_at),
        duration_sec=0 if row.started_at is None else max(0, int(end - row.started_at)),
        error=row.error,
        progress=total_progress([(job.status, job.progress) for job in jobs]) if jobs else _summed(row, live),
        retry_of=row.retry_of,
        priority=row.options.priority,
    )


def _job(batch: BatchRow, job: JobRow, live: JobProgress | None, file_url: Callable[[str], str] | None) -> Job:
    file = None
    if job.status is Status.COMPLETED and job.filepath is not None:
        file = JobFile(
            filename=job.filepath.rpartition("/")[2],
            filepath=job.filepath,
            size_bytes=job.done,
            download_url=file_url(job.filepath) if file_url else None,
            etag=job.etag,
            subtitles=tuple(job.extras),
        )
    return Job(
        job_id=job_id(batch.batch_id, job.position),
        url=job.url,
        status=job.status,
        title=job.title,
        progress=live if live is not None and job.status is Status.RUNNING else stored_progress(job),
        file_info=file,
        error=job.error,
        created_at=utc(batch.created_at),
        completed_at=None if job.completed_at is None else utc(job.completed_at),
        started_at=None if job.started_at is None else utc(job.started_at),
    )


def stored_progress(job: JobRow) -> JobProgress:
    """Return how far a job is that does not run now."""
    if job.status is Status.COMPLETED:
        return JobProgress(percent=100.0, done=job.done, total=job.done)
    return JobProgress(percent=_percent(job.done, job.total), done=job.done, total=job.total)


def _percent(done: int, total: int | None) -> float:
    # Never 100 before the end: the checksum and the name are still to come.
    return min(99.9, round(100.0 * done / total, 1)) if total else 0.0


def live_progress(done: int, total: int | None, rate: float | None, eta: float | None) -> JobProgress:
    """Return how far a job is that runs."""
    return JobProgress(percent=_percent(done, total), done=done, total=total, rate=rate, eta=eta)


class _Group(NamedTuple):
    """Jobs that are added up together: how many, of how many the size is known, and their bytes."""

    status: Status
    number: int
    known: int
    done: int
    total: int
    rate: float = 0.0


def total_progress(jobs: Iterable[tuple[Status, JobProgress]]) -> BatchProgress:
    """Add up the progress of jobs, weighted by bytes."""
    return _add_up(
        [
            _Group(status, 1, progress.total is not None, progress.done, progress.total or 0, progress.rate or 0.0)
            for status, progress in jobs
        ]
    )


def _summed(row: BatchRow, live: Mapping[int, JobProgress]) -> BatchProgress:
    groups = []
    for status, (number, known, done, total) in row.sums.items():
        group = _Group(status, number, known, done, total)
        if status is Status.RUNNING and live:
            # Running jobs are stored when they stop; until then what they have is in memory.
            sizes = [progress.total for progress in live.values() if progress.total is not None]
            group = _Group(
                status,
                number,
                max(known, min(number, len(sizes))),
                max(done, sum(progress.done for progress in live.values())),
                max(total, sum(sizes)),
                sum(progress.rate or 0.0 for progress in live.values()),
            )
        groups.append(group)
    return _add_up(groups)


def _add_up(groups: list[_Group]) -> BatchProgress:
    ended = all(group.status in FINAL for group in groups)
    if not ended:
        # Nobody waits for what was cancelled. In the end it is what is missing.
        groups = [group for group in groups if group.status is not Status.CANCELLED]
    known = sum(group.known for group in groups)
    total = sum(group.total for group in groups)
    average = total / known if known else 0.0
    weight = finished = rate = 0.0
    for group in groups:
        # An empty file is a job too, so each weighs at least a byte.
        size = max(group.total + (group.number - group.known) * average, float(group.done), float(group.number))
        weight += size
        through = group.status in {Status.COMPLETED, Status.FAILED}
        finished += size if through else min(size, float(group.done))
        rate += group.rate
    percent = 100.0 if finished >= weight and ended else min(99.9, round(100.0 * finished / weight, 1))
    return BatchProgress(
        percent=percent,
        done=sum(group.done for group in groups),
        total=total if known else None,
        rate=rate or None,
        eta=0.0 if ended else (weight - finished) / rate if rate and known else None,
    )


def words(error: BaseException, *, silence: float) -> str:
    """Say why a job failed, so that a person can act on it.

    Args:
        error: What ended it.
        silence: Seconds after which a silent server counts as stalled.
    """
    if isinstance(error, TimedOut):
        return f"stalled: nothing arrived for {silence:g} s ({error})"
    if isinstance(error, IntegrityError) and error.got is not None:
        return f"the file is damaged: {error}"
    if isinstance(error, WMEError):
        said, status = str(error) or type(error).__name__, f"HTTP {getattr(error, 'status', 0)}"
        return said if said.startswith("HTTP ") or status == "HTTP 0" else f"{status}: {said}"
    if isinstance(error, TimeoutError):
        return f"timed out: {error}" if str(error) else "timed out"
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            known = error.strerror in {None, os.strerror(error.errno)}
            return "the disk is full" if known else f"the disk is full: {error.strerror}"
        return f"the disk refused: {error.strerror or error}"
    return f"{type(error).__name__}: {error}"


def plain(batch: Batch) -> dict[str, object]:
    """Return a batch as JSON would hold it."""
    return msgspec.to_builtins(batch)  # type: ignore[no-any-return]  # a Struct becomes a dict
