"""The worker of a manager: it makes every change of a batch, one after the other, and runs each job in a task.

A change is stored first and then becomes visible. So memory never differs from the database, no two changes mix, and a
caller who is cancelled leaves no half of a change behind: changes run in tasks of the worker.
"""

import asyncio
import contextlib
import copy
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Any

from wme_async._arguments import check_type
from wme_async._tasks import WorkGroup, is_cancelling, wait_done
from wme_async._telemetry import log_fields
from wme_async._transport import Transport
from wme_async.errors import ClientClosed, WMEError
from wme_async.jobs import states
from wme_async.jobs.changes import Changes, restarted, retry_pause
from wme_async.jobs.database import DamagedBatch, DatabaseError
from wme_async.jobs.event_bus import EventBus
from wme_async.jobs.job_files import JobFiles, JobKey
from wme_async.jobs.model import (
    FINAL,
    Batch,
    BatchRow,
    EventRow,
    JobProgress,
    JobRow,
    ManagerClosed,
    Status,
    UnknownBatch,
    job_id,
    storable_size,
    storable_text,
    utc,
)
from wme_async.jobs.naming import expand
from wme_async.jobs.sources import Fetched, Fetcher, is_passing, reason_of
from wme_async.jobs.states import Cause, Change, Changed, Waiting
from wme_async.jobs.store import Store
from wme_async.jobs.url_policy import netloc_of, redacted
from wme_async.jobs.validation import JobLimits, Options
from wme_async.jobs.views import live_progress, show
from wme_async.jobs.webhooks import WebhookDelivery, compose

logger: logging.Logger = logging.getLogger("wme_async.jobs")


class JobRunner:
    """Changes batches and runs their jobs.

    Args:
        store: The database.
        files: The directory.
        fetcher: Downloads one URL.
        webhooks: Sends webhooks.
        transport: Has the clock and the policy of pauses.
        limits: How many jobs at once.
        file_url: The URL under which files are served.
        idle: Start no jobs.

    Attributes:
        rows: The batches that have not ended, by id.
        bus: The events.
        moved: Bytes since the start.
        failure: The reason why `wme:` jobs are not run: their client was closed.
    """

    def __init__(
        self,
        *,
        store: Store,
        files: JobFiles,
        fetcher: Fetcher,
        webhooks: WebhookDelivery,
        transport: Transport,
        limits: JobLimits,
        file_url: str | None,
        idle: bool = False,
    ) -> None:
        self.rows: dict[str, BatchRow] = {}
        self.bus: EventBus = EventBus(store, transport.now)
        self.moved: int = 0
        self.failure: ClientClosed | None = None
        self.store = store
        self.fetcher = fetcher
        self.webhooks = webhooks
        self._files = files
        self._limits = limits
        self._transport = transport
        self._file_url = file_url
        self._idle = idle
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._live: dict[JobKey, JobProgress] = {}
        self._tasks: dict[JobKey, asyncio.Task[None]] = {}
        self._changes = Changes()
        self._failed_starts = 0
        self._start_timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        """The number of running jobs."""
        return len(self._live)

    @property
    def rate(self) -> float:
        """Recent bytes per second of all jobs."""
        return sum(progress.rate or 0.0 for progress in self._live.values())

    def live(self, batch_id: str) -> Mapping[int, JobProgress]:
        """Return the progress of the running jobs of a batch, by position."""
        return {position: progress for (batch, position), progress in self._live.items() if batch == batch_id}

    def show(self, row: BatchRow) -> Batch:
        """Return a batch as its status shows it."""
        return show(row, now=self._transport.now(), live=self.live(row.batch_id), file_url=self._file_url)

    # Beginning and end

    async def run(self, ready: "asyncio.Future[None]") -> None:
        """Continue the unfinished batches and take changes until `close` is called, then stop all jobs where they are.

        Args:
            ready: Gets its result when changes are possible.
        """
        await self.webhooks.prepare()
        await self._recover()
        async with WorkGroup() as group:
            self._changes.group = group
            helpers = [group.start(restarted(work, self._transport)) for work in (self.bus.run, self.webhooks.run)]
            try:
                # Where it is closed already, there is nothing to start.
                with contextlib.suppress(ManagerClosed):
                    async with self._exclusive():
                        pass
                if not ready.done():
                    ready.set_result(None)
                await self._changes.closed.wait()
            finally:
                self._changes.closed.set()
            await self._stop()
            group.stop(*helpers)

    def close(self) -> None:
        """Take no more changes, and let `run` end."""
        self._changes.closed.set()

    async def _stop(self) -> None:
        async with self._changes.lock:
            for row in list(self.rows.values()):
                try:
                    await self._interrupt(row)
                except Exception as error:  # noqa: BLE001  # one batch must not keep the others from being stored
                    # The next manager finds the jobs running, and queues them again.
                    logger.warning("the jobs of %s could not be stored as stopped (%s)", row.batch_id, error)
            for task in (tasks := [*self._tasks.values()]):
                task.cancel()
        if unfinished := [*tasks, *self._changes.chores]:
            await asyncio.wait(unfinished)

    async def _recover(self) -> None:
        """Continue where an earlier manager ended: name files that are whole, and queue jobs that were running."""
        self.bus.last = await self.store.last_event()
        for row in await self.store.unfinished():
            self.rows[row.batch_id] = row
            try:
                for job in row.jobs:
                    if job.status is Status.RUNNING and job.moving:
                        await self._recover_file((row.batch_id, job.position), job)
                if row.batch_id in self.rows:
                    await self._interrupt(self.rows[row.batch_id])
            except DatabaseError:
                # The disk fails, not this batch.
                raise
            except Exception as error:
                logger.exception("the batch %s cannot be continued", row.batch_id)
                self.store.set_aside(row.batch_id, row.number, f"{type(error).__name__}: {error}")
                self.rows.pop(row.batch_id, None)
        await self._files.sweep()

    async def _interrupt(self, row: BatchRow) -> None:
        after, changes = states.interrupt(row)
        if changes:
            await self._commit(row, after, changes)

    async def _recover_file(self, key: JobKey, job: JobRow) -> None:
        fields = await self._files.settle(key, job)
        if fields is not None:
            row = self.rows[key[0]]
            await self._commit(row, *states.apply(row, Cause.COMPLETE, key[1]), {key[1]: fields})

    # Changes, one at a time

    @contextlib.asynccontextmanager
    async def _exclusive(self) -> AsyncGenerator[None, None]:
        """Let no other change happen within the block; afterwards, start the jobs that may start."""
        async with self._changes.exclusive():
            yield
            await self._start_jobs()

    async def _commit(
        self,
        before: BatchRow,
        after: BatchRow,
        changes: Iterable[Change] = (),
        fields: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> BatchRow:
        """Store a change, then make it visible.

        Args:
            before: The batch before.
            after: The batch afterwards.
            changes: The jobs that changed.
            fields: Further fields of changed jobs, by position.
        """
        changes, batch_id, now = tuple(changes), after.batch_id, self._transport.now()
        events = states.record(before, after, changes, now=now, live=self.live(batch_id), fields=fields or {})
        url = after.options.webhook_url if after.status in FINAL else None
        message = None if url is None else compose(self.show(after), url, now)
        jobs = [after.jobs[change.position] for change in changes] if before.number else after.jobs
        event_rows = await self.store.save(after, jobs, events, message)
        if after.status in FINAL:
            self.rows.pop(batch_id, None)
            self._hosts.pop(batch_id, None)
        else:
            self.rows[batch_id] = after
        for change in changes:
            self._follow((batch_id, change.position), change)
        if keys := [(batch_id, change.position) for change in changes if change.new is Status.CANCELLED]:
            self._changes.start(self._discard(keys))
        self.bus.publish(event_rows)
        if message is not None:
            self.webhooks.wake()
        return after

    def _follow(self, key: JobKey, change: Change) -> None:
        """Start to count a job that runs; stop one that does not run any more."""
        if change.new is Status.RUNNING:
            self._live[key] = JobProgress()
        elif change.old is Status.RUNNING:
            self._live.pop(key, None)
            self.bus.progress(*key, None)
            task = self._tasks.get(key)
            # A job that reports its own end is not cancelled by it.
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    async def _discard(self, keys: list[JobKey]) -> None:
        """Remove the unfinished files of jobs, once nobody writes to them."""
        await self._ended(keys)
        await self._files.discard(keys)

    async def _ended(self, keys: Iterable[JobKey]) -> None:
        """Wait until the tasks of jobs have ended."""
        if tasks := [self._tasks[key] for key in keys if key in self._tasks]:
            await asyncio.wait(tasks)

    async def find(self, batch_id: str) -> BatchRow:
        """Return a batch.

        Raises:
            TypeError: The identifier is not a string.
            UnknownBatch: The batch does not exist.
            DamagedBatch: Its stored rows are damaged.
        """
        check_type("batch_id", batch_id, str, "text, such as batch.batch_id", secret=True)
        row = self.rows.get(batch_id) or await self.store.batch(batch_id)
        if row is None:
            raise UnknownBatch(f"the batch {batch_id!r} does not exist")
        return row

    async def create(self, urls: list[str], options: Options) -> Batch:
        """Store a new batch."""
        return await self._changes.call(lambda: self._create(urls, options), self._exclusive)

    async def _create(
        self, urls: list[str], options: Options, *, batch_id: str | None = None, retry_of: str | None = None
    ) -> Batch:
        row = BatchRow(
            batch_id=batch_id or _new_id(),
            options=options,
            created_at=self._transport.now(),
            retry_of=retry_of,
            jobs=[JobRow(position=position, url=url) for position, url in enumerate(urls)],
        )
        return self.show(await self._commit(row, row))

    async def change(self, batch_id: str, operation: Callable[[BatchRow], Changed]) -> Batch:
        """Change a batch.

        Args:
            batch_id: The batch.
            operation: A function of `states`, such as `states.pause`.
        """
        return await self._changes.call(lambda: self._change(batch_id, operation), self._exclusive)

    async def _change(self, batch_id: str, operation: Callable[[BatchRow], Changed]) -> Batch:
        row = await self.find(batch_id)
        after, changes = operation(row)
        return self.show(row if after is row else await self._commit(row, after, changes))

    async def cancel_job(self, name: str) -> Batch:
        """Cancel one job."""

        def cancel(row: BatchRow) -> Changed:
            job = states.find_job(row, name)
            return (row, ()) if job.status is Status.CANCELLED else states.apply(row, Cause.CANCEL, job.position)

        return await self.change(states.batch_of(name), cancel)

    async def retry(self, batch_id: str, select: Callable[[BatchRow], list[JobRow]]) -> Batch:
        """Submit jobs of a batch that `select` chooses again, with the bytes they have."""

        async def retry() -> Batch:
            while True:
                async with self._exclusive():
                    row = await self.find(batch_id)
                    jobs = select(row)
                    keys = [(batch_id, job.position) for job in jobs]
                    if not self._tasks.keys() & keys:
                        new_id = _new_id()
                        for position, key in enumerate(keys):
                            await self._files.adopt(key, (new_id, position))
                        urls = [job.url for job in jobs]
                        return await self._create(urls, row.options, batch_id=new_id, retry_of=batch_id)
                # A job may take long to stop, so other changes go on meanwhile, also those of this batch.
                await self._ended(keys)

        return await self._changes.call(retry)

    async def delete(self, batch_id: str, *, files: bool) -> None:
        """Cancel a batch and delete it."""

        async def delete() -> None:
            row = None
            with contextlib.suppress(DamagedBatch):
                async with self._exclusive():
                    row = await self.find(batch_id)
                    if row.status not in FINAL:
                        row = await self._commit(row, *states.cancel(row))
            if row is not None:
                # Nothing starts again in a batch that has ended.
                await self._ended((batch_id, job.position) for job in row.jobs)
                await self._files.forget(batch_id, row.jobs if files else ())
            async with self._exclusive():
                event = EventRow(batch_id=batch_id, kind="deleted", at=self._transport.now())
                self.bus.publish([await self.store.delete(event)])

        await self._changes.call(delete)

    # Jobs

    async def _start_jobs(self) -> None:
        """Start the jobs that the limits allow."""
        for batch_id, positions in self._next_jobs().items():
            row = self.rows[batch_id]
            try:
                await self._commit(row, *states.apply(row, Cause.START, *positions))
            except Exception as error:
                self._failed_starts += 1
                delay = retry_pause(self._transport, self._failed_starts)
                if self._start_timer is not None:
                    self._start_timer.cancel()
                self._start_timer = asyncio.get_running_loop().call_later(delay, self._start_later)
                if isinstance(error, DatabaseError):
                    logger.error("jobs cannot be stored as running (%s); trying again", error)  # noqa: TRY400  # no bug of ours
                    return
                logger.exception("jobs of %s could not be started; trying again", batch_id)
                continue
            self._failed_starts = 0
            for position in positions:
                self._start_job((batch_id, position), row.jobs[position].url, row.options)

    def _start_later(self) -> None:
        async def start() -> None:
            with contextlib.suppress(ManagerClosed):
                async with self._exclusive():
                    pass

        if not self._changes.closed.is_set():
            self._changes.start(start())

    def _next_jobs(self) -> dict[str, list[int]]:
        free = 0 if self._idle else self._limits.running - self.running
        if free <= 0:
            return {}
        waiting = [
            Waiting(row.batch_id, row.options.priority, row.number, room, self._queued(row))
            for row in self.rows.values()
            if (room := states.startable(row))
        ]
        busy = Counter(self._host_of(*key) for key in self._live)
        return states.choose(waiting, free=free, per_host=self._limits.per_host, busy=busy)

    def _queued(self, row: BatchRow) -> Iterator[tuple[int, str]]:
        for job in row.jobs:
            if job.status is Status.QUEUED and not (self.failure is not None and _needs_client(job)):
                yield job.position, self._host_of(row.batch_id, job.position)

    def _host_of(self, batch_id: str, position: int) -> str:
        hosts = self._hosts.get(batch_id)
        if hosts is None:
            hosts = self._hosts[batch_id] = tuple(netloc_of(job.url) for job in self.rows[batch_id].jobs)
        return hosts[position]

    def _start_job(self, key: JobKey, url: str, options: Options) -> None:
        assert self._changes.group is not None
        task = self._changes.group.create_task(self._run(key, url, options, self._tasks.get(key)), name=job_id(*key))
        self._tasks[key] = task

        def forget(_task: asyncio.Task[None]) -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]

        task.add_done_callback(forget)

    async def _run(self, key: JobKey, url: str, options: Options, previous: asyncio.Task[None] | None) -> None:
        """Download one job, and store the outcome. Its cancellation is stored before it is cancelled."""
        if previous is not None:
            # Also if this run is cancelled: a job runs once at a time.
            await wait_done(previous)
        outcome: Fetched | str
        try:
            outcome = await self.fetcher.fetch(
                url,
                await self._files.prepare(key),
                options=options,
                moved=lambda *numbers: self._set_progress(key, *numbers),
                titled=lambda title, size: self._set_title(key, title, size),
            )
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            outcome = "the download was cancelled from within"
        except ClientClosed as error:
            await self._put_back(key, error)
            return
        except (WMEError, OSError) as error:
            outcome = reason_of(error, silence=self._transport.timeouts.read)
            if (progress := self._live.get(key)) is not None and progress.done:
                outcome += f" (after {progress.done} of {progress.total or 'unknown'} bytes)"
        except Exception as error:
            logger.exception("job %s failed with an unexpected error", job_id(*key))
            outcome = f"{type(error).__name__}: {error}"
        await self._end(key, outcome)

    def _set_progress(self, key: JobKey, done: int, total: int | None, rate: float | None, eta: float | None) -> None:
        if key in self._live:
            self.moved += max(0, done - self._live[key].done)
            self._live[key] = progress = live_progress(done, storable_size(total), rate, eta)
            self.bus.progress(*key, progress)

    def _set_title(self, key: JobKey, title: str, size: int | None) -> None:
        if key in self._live:
            # Shown at once, and stored with the next change of the job.
            job = self.rows[key[0]].jobs[key[1]]
            job.title, job.total = storable_text(title), storable_size(size)

    async def _end(self, key: JobKey, outcome: Fetched | str) -> None:
        """Store how a job ended. Trouble with the disk delays it; no error of it ends another job.

        Args:
            key: The job.
            outcome: The file, or the reason of the failure.
        """
        # Once the file has its name, it is not named again if the database fails afterwards.
        fields: dict[str, Any] = {}
        for attempt in itertools.count(1):
            try:
                async with self._exclusive():
                    if self._tasks.get(key) is asyncio.current_task() and key in self._live:
                        if isinstance(outcome, str):
                            await self._fail(key, outcome)
                        else:
                            await self._finish(key, outcome, fields)
            except ManagerClosed:
                # The next manager finds the job running, its bytes in place.
                return
            except Exception as error:
                if isinstance(error, DatabaseError) or is_passing(error):
                    logger.error("the end of %s cannot be stored (%s); trying again", job_id(*key), error)  # noqa: TRY400  # no bug of ours
                else:
                    # Such as a wrong result of a media fetcher. It ends this job, and no other.
                    logger.exception("job %s failed with an unexpected error", job_id(*key))
                    named, outcome = not isinstance(outcome, str), f"{type(error).__name__}: {error}"
                    if named:
                        continue
                await asyncio.sleep(retry_pause(self._transport, attempt))
            else:
                return

    async def _fail(self, key: JobKey, reason: str) -> None:
        row = self.rows[key[0]]
        after, changes = states.apply(row, Cause.FAIL, key[1])
        fields = {
            change.position: {"error": "cancelled, because another job of the batch failed"} for change in changes
        }
        error = redacted(storable_text(reason), url=row.jobs[key[1]].url)
        logger.info("job %s failed: %s", job_id(*key), error, extra=log_fields(batch=key[0], job=job_id(*key)))
        fields[key[1]] = {"error": error}
        await self._commit(row, after, changes, fields)

    async def _finish(self, key: JobKey, fetched: Fetched, fields: dict[str, Any]) -> None:
        """Give a whole file its name. A kill after the reservation of the name is repaired by `_recover`."""
        row = self.rows[key[0]]
        path = expand(row.options.path_template, fetched.name, batch_id=key[0], submitted=utc(row.created_at))
        try:
            if not fields:
                staged = await self._files.collect(key, fetched.path, fetched.extras, fetched.size)
                title, etag = storable_text(fetched.name.title), fetched.etag and storable_text(fetched.etag)
                fields |= await self._files.place(key, path, staged, title=title, etag=etag)
        except OSError as error:
            if is_passing(error):
                raise
            await self.store.release(*key)
            await self._fail(key, reason_of(error, silence=self._transport.timeouts.read))
            return
        await self._commit(row, *states.apply(row, Cause.COMPLETE, key[1]), {key[1]: fields})

    # A client that was closed

    async def _put_back(self, key: JobKey, closed: ClientClosed) -> None:
        """Queue a job again whose client was closed: it has not failed, and the next manager continues it."""
        if self.failure is None:
            logger.error("the client of the batch manager was closed: wme: jobs wait for a manager with another one")
            # A copy: the error itself would keep its frames alive.
            self.failure = copy.copy(closed)
            self.bus.interrupt()
        try:
            async with self._exclusive():
                if key in self._live:
                    row = self.rows[key[0]]
                    await self._commit(row, *states.apply(row, Cause.INTERRUPT, key[1]))
        except Exception as error:  # noqa: BLE001  # the next manager finds the job running, and queues it again
            logger.warning("job %s could not be stored as queued (%s)", job_id(*key), error)

    def stuck(self, batch_id: str) -> bool:
        """Return whether a batch cannot end in this manager, because the client of its jobs was closed."""
        jobs = self.rows[batch_id].jobs if self.failure is not None and batch_id in self.rows else ()
        return any(job.status not in FINAL and _needs_client(job) for job in jobs)


def _new_id() -> str:
    return f"batch_{secrets.token_hex(8)}"


def _needs_client(job: JobRow) -> bool:
    return job.url.startswith("wme:")
