"""Rows as callers see them: with names, counts, progress and durations. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import quote

from wme_async.jobs.model import (
    FINAL,
    Batch,
    BatchProgress,
    BatchRow,
    Job,
    JobFile,
    JobProgress,
    JobRow,
    MessageRow,
    Outbox,
    Status,
    job_id,
    utc,
)
from wme_async.jobs.url_policy import redacted_url

_LONGEST_URL: Final = 120  # characters of a URL in the name of a batch


def _utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)


def show(row: BatchRow, *, now: float, live: Mapping[int, JobProgress], file_url: str | None = None) -> Batch:
    """Return a batch as its status shows it.

    Args:
        row: The batch, with its jobs or with their sums.
        now: UTC epoch seconds.
        live: The progress of the running jobs, by position.
        file_url: The URL under which files are served, without a slash at its end.
    """
    counts = Counter({status: number for status, (number, *_) in row.sums.items()})
    counts.update(job.status for job in row.jobs)
    jobs = tuple(_show_job(row, job, live.get(job.position), file_url) for job in row.jobs)
    end = now if row.completed_at is None else row.completed_at
    return Batch(
        batch_id=row.batch_id,
        status=row.status,
        total_jobs=counts.total(),
        completed_jobs=counts[Status.COMPLETED],
        failed_jobs=counts[Status.FAILED],
        running_jobs=counts[Status.RUNNING],
        queued_jobs=counts[Status.QUEUED],
        cancelled_jobs=counts[Status.CANCELLED],
        paused_jobs=counts[Status.PAUSED],
        jobs=jobs,
        created_at=utc(row.created_at),
        started_at=_utc(row.started_at),
        completed_at=_utc(row.completed_at),
        duration_sec=0 if row.started_at is None else max(0, int(end - row.started_at)),
        error=row.error,
        progress=_add_up([_group_of(job) for job in jobs] if jobs else _groups(row, live.values())),
        retry_of=row.retry_of,
        priority=row.options.priority,
        name=row.options.name or _name(row.jobs[0].url if row.jobs else row.first_url, counts.total() - 1),
    )


def _name(url: str, others: int) -> str:
    """Return the name of a batch that was submitted without one: its first URL, without credentials, shortened."""
    url = redacted_url(url)
    if len(url) > _LONGEST_URL:
        url = f"{url[: _LONGEST_URL // 2]}…{url[-_LONGEST_URL // 2 :]}"
    return f"{url} and {others} more" if others > 0 else url


def _show_job(batch: BatchRow, job: JobRow, live: JobProgress | None, file_url: str | None) -> Job:
    file, progress = None, live_progress(job.done, job.total)
    if job.status is Status.RUNNING and live is not None:
        progress = live
    elif job.status is Status.COMPLETED and job.filepath is not None:
        progress = JobProgress(percent=100.0, done=job.done, total=job.done)
        file = JobFile(
            filename=job.filepath.rpartition("/")[2],
            filepath=job.filepath,
            size_bytes=job.done,
            download_url=f"{file_url}/{quote(job.filepath)}" if file_url else None,
            etag=job.etag,
            subtitles=tuple(job.extras),
        )
    return Job(
        job_id=job_id(batch.batch_id, job.position),
        url=job.url,
        status=job.status,
        title=job.title,
        progress=progress,
        file_info=file,
        error=job.error,
        created_at=utc(batch.created_at),
        completed_at=_utc(job.completed_at),
        started_at=_utc(job.started_at),
    )


def show_message(row: MessageRow) -> Outbox:
    """Return a webhook and the state of its delivery."""
    return Outbox(
        message_id=row.message_id,
        batch_id=row.batch_id,
        url=row.url,
        state=row.state,
        attempts=row.attempts,
        next_at=_utc(row.next_at),
        error=row.error,
    )


# Progress


def live_progress(done: int, total: int | None, rate: float | None = None, eta: float | None = None) -> JobProgress:
    """Return the progress of a job that has not ended."""
    # Never 100 before the end: the checksum and the name are still to come.
    percent = min(99.9, round(100.0 * done / total, 1)) if total else 0.0
    return JobProgress(percent=percent, done=done, total=total, rate=rate, eta=eta)


class _Group(NamedTuple):
    """Jobs of one state that are added up together, and of how many of them the size is known."""

    status: Status
    number: int
    sized: int
    done: int
    total: int
    rate: float = 0.0


def _group_of(job: Job) -> _Group:
    progress = job.progress
    sized = progress.total is not None
    return _Group(job.status, 1, sized, progress.done, progress.total or 0, progress.rate or 0.0)


def _groups(row: BatchRow, live: Iterable[JobProgress]) -> list[_Group]:
    groups = {status: _Group(status, *sums) for status, sums in row.sums.items()}
    running = groups.get(Status.RUNNING)
    if running is not None and (progress := list(live)):
        # Running jobs are stored when they stop; until then their sizes are in memory.
        sizes = [job.total for job in progress if job.total is not None]
        groups[Status.RUNNING] = _Group(
            Status.RUNNING,
            running.number,
            max(running.sized, min(running.number, len(sizes))),
            max(running.done, sum(job.done for job in progress)),
            max(running.total, sum(sizes)),
            sum(job.rate or 0.0 for job in progress),
        )
    return list(groups.values())


def _add_up(groups: list[_Group]) -> BatchProgress:
    ended = all(group.status in FINAL for group in groups)
    if not ended:
        # Cancelled jobs count only at the end, as the missing part.
        groups = [group for group in groups if group.status is not Status.CANCELLED]
    # A job that is completed or failed is as large as it is on the disk.
    over = [group for group in groups if group.status in {Status.COMPLETED, Status.FAILED}]
    groups = [group._replace(sized=group.number, total=group.done) if group in over else group for group in groups]
    sizes = [group for group in groups if group.status is not Status.FAILED]
    known, sized = sum(group.total for group in sizes), sum(group.sized for group in sizes)
    unknown = sum(group.number - group.sized for group in groups)
    average = known / sized if sized else 0.0
    done = sum(group.done for group in groups)
    size = sum(max(group.total + (group.number - group.sized) * average, float(group.done)) for group in groups)
    total = round(size) if known or (sized and not unknown) else None
    if total:
        part = done / total
    else:
        part = sum(group.number for group in over) / max(1, sum(group.number for group in groups))
    rate = sum(group.rate for group in groups)
    return BatchProgress(
        percent=100.0 if ended and part >= 1.0 else min(99.9, round(100.0 * part, 1)),
        done=done,
        total=total,
        rate=rate or None,
        eta=0.0 if ended else (total - done) / rate if rate and total else None,
        estimated=total is not None and unknown > 0,
    )
