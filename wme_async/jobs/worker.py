"""Who does the work: one task that makes every change, one after the other, and one task for each job that runs.

Whatever changes a batch is asked of the first: it stores the change, and only then does anybody hear of it. So memory
never says what the database does not, no two changes mix, and nobody who is cancelled while waiting leaves half a
change behind.
"""

import asyncio
import copy
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from wme_async._tasks import wait_done
from wme_async.errors import ClientClosed, DataError, WMEError
from wme_async.jobs.errors import DamagedBatch, DatabaseError, ManagerClosed, UnknownBatch
from wme_async.jobs.event_bus import Hub, job_id
from wme_async.jobs.model import Batch, JobProgress, utc
from wme_async.jobs.naming import expand
from wme_async.jobs.outbox import Delivery
from wme_async.jobs.rows import BatchRow, EventRow, JobRow, changed, storable_size, storable_text
from wme_async.jobs.shelf import Shelf
from wme_async.jobs.sources import Fetched, Fetcher
from wme_async.jobs.states import FINAL, BatchState, Cause, Change, Status, Waiting, WrongState, choose
from wme_async.jobs.store import Store
from wme_async.jobs.supervision import contained, is_passing
from wme_async.jobs.urls import netloc_of, redacted
from wme_async.jobs.validation import JobLimits, Options
from wme_async.jobs.views import live_progress, words

__all__ = ["Crew"]

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_T = TypeVar("_T")
_Key = tuple[str, int]

# Seconds before a change is tried again that the disk did not take.
_DISK_PAUSE = 2.0

# Seconds before a job is tried again that found no free file descriptor. Its own timeout bounds it.
_DESCRIPTOR_PAUSE = 1.0


class _Naming(msgspec.Struct):
    """How far a whole file is on its way to its name. If the database refuses a step, those before it are not repeated.

    Args:
        staged: Where it waits for its name.
        facts: Fields of the job, once it has its name.
    """

    staged: Path | None = None
    facts: dict[str, Any] | None = None


class Crew:
    """Makes changes and runs jobs.

    Args:
        directory: Where files go.
        store: The database.
        fetcher: Downloads one URL.
        limits: How much at once.
        delivery: Sends webhooks.
        now: Gives UTC epoch seconds.
        silence: Seconds after which a silent server counts as stalled, for messages.
        show: Makes of a row what webhooks say.
        idle: Start no jobs.
    """

    def __init__(
        self,
        *,
        directory: Path,
        store: Store,
        fetcher: Fetcher,
        limits: JobLimits,
        delivery: Delivery,
        now: Callable[[], float],
        silence: float,
        show: Callable[[BatchRow], Batch],
        idle: bool = False,
    ) -> None:
        self.rows: dict[str, BatchRow] = {}
        self.hub: Hub = Hub(store, now)
        self.now = now
        self.moved: int = 0
        self._shelf = Shelf(directory, store)
        self._store = store
        self._fetcher = fetcher
        self._limits = limits
        self._delivery = delivery
        self._silence = silence
        self._show = show
        self._resting = idle
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._live: dict[str, dict[int, JobProgress]] = {}
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._asked: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]] | None] = asyncio.Queue()
        self._group: asyncio.TaskGroup | None = None
        self._ended = False
        self.failure: ClientClosed | None = None
        """Why `wme:` jobs are not run: the client that fetches them was closed."""

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(len(live) for live in self._live.values())

    @property
    def rate(self) -> float:
        """Bytes per second of all jobs, lately."""
        return sum(progress.rate or 0.0 for live in self._live.values() for progress in live.values())

    def live(self, batch_id: str) -> Mapping[int, JobProgress]:
        """Return how far the running jobs of a batch are, by position."""
        return self._live.get(batch_id, {})

    # The one task that makes changes

    async def work(self, group: asyncio.TaskGroup, ready: asyncio.Future[None]) -> None:
        """Make changes until `shut` is called, then stop all jobs where they are.

        Args:
            group: Jobs run in it.
            ready: Told when changes are taken.
        """
        self._group = group
        await self._start_jobs()
        if not ready.done():
            ready.set_result(None)
        while (item := await self._asked.get()) is not None:
            change, answer = item
            if answer.cancelled():
                continue
            try:
                result = await change()
            except Exception as error:  # noqa: BLE001  # it belongs to the caller
                if not answer.done():
                    answer.set_exception(error)
            except BaseException:
                # Cancelled with the task group: the manager ends, and the caller must not wait for ever.
                if not answer.done():
                    answer.set_exception(ManagerClosed("the batch manager has ended during this change"))
                raise
            else:
                if not answer.done():
                    answer.set_result(result)
            await self._start_jobs()
        await self._stop()

    def shut(self) -> None:
        """Take no more changes, and let `work` end."""
        if not self._ended:
            self._ended = True
            self._asked.put_nowait(None)

    def end(self) -> None:
        """Answer whoever still waits: nothing will be changed any more."""
        self._ended = True
        self.hub.close()
        while not self._asked.empty():
            item = self._asked.get_nowait()
            if item is not None and not item[1].done():
                item[1].set_exception(ManagerClosed("the batch manager was closed"))

    async def _ask(self, change: Callable[[], Awaitable[_T]]) -> _T:
        if self._ended:
            raise ManagerClosed("the batch manager was closed")
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait((change, answer))
        return await answer

    async def _stop(self) -> None:
        tasks = list(self._tasks.values())
        for row in list(self.rows.values()):
            after, changes = row.state.interrupt()
            if changes:
                try:
                    await self._commit(row, after, changes)
                except Exception as error:  # noqa: BLE001  # one batch must not keep the others from being stored
                    # The next manager finds the jobs running, and queues them again.
                    logger.warning("the jobs of %s could not be stored as stopped (%s)", row.batch_id, error)
        for task in tasks:
            task.cancel()
        if everyone := [*tasks, *self._chores]:
            await asyncio.wait(everyone)

    async def _commit(
        self,
        row: BatchRow,
        after: BatchState,
        changes: Iterable[Change],
        facts: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> BatchRow:
        """Store a change, then let it be seen.

        Args:
            row: The batch before.
            after: Its states afterwards.
            changes: The jobs that changed.
            facts: Further fields of changed jobs, by position.
        """
        now = self.now()
        changes = tuple(changes)
        new, events = changed(row, after, changes, now=now, live=self.live(row.batch_id), facts=facts or {})
        told = new.status in FINAL and new.options.webhook_url is not None
        message = self._delivery.compose(new, self._show(new), now) if told else None
        touched = new.jobs if not row.number else [new.jobs[change.position] for change in changes]
        stored = await self._store.save(new, touched, events, message)
        if new.status in FINAL:
            self.rows.pop(row.batch_id, None)
            self._hosts.pop(row.batch_id, None)
        else:
            self.rows[row.batch_id] = new
        for change in changes:
            self._follow(row.batch_id, change)
        if gone := [change.position for change in changes if change.new is Status.CANCELLED]:
            self._chore(self._discard(row.batch_id, gone))
        self.hub.publish(stored)
        if message is not None:
            self._delivery.wake()
        return new

    def _follow(self, batch_id: str, change: Change) -> None:
        """Do what a stored change asks for."""
        key = (batch_id, change.position)
        if change.new is Status.RUNNING:
            self._live.setdefault(batch_id, {})[change.position] = JobProgress()
            return
        if change.old is Status.RUNNING:
            live = self._live.get(batch_id, {})
            live.pop(change.position, None)
            if not live:
                self._live.pop(batch_id, None)
            self.hub.progress(*key, None)
            task = self._tasks.get(key)
            if task is not None and change.new not in {Status.COMPLETED, Status.FAILED}:
                task.cancel()

    def _chore(self, work: Any) -> None:
        if self._group is None:
            work.close()
            return
        task = self._group.create_task(contained(work))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _outside(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run a coroutine that waits for jobs outside the task that makes changes; it goes on if the caller leaves."""
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await work()
            except BaseException as error:
                if not answer.done():
                    ended = isinstance(error, asyncio.CancelledError)
                    answer.set_exception(ManagerClosed("the batch manager has ended") if ended else error)
                if not isinstance(error, Exception):
                    raise
            else:
                if not answer.done():
                    answer.set_result(result)

        if self._ended:
            raise ManagerClosed("the batch manager was closed")
        self._chore(run())
        return await answer

    async def _discard(self, batch_id: str, positions: list[int]) -> None:
        """Remove what jobs leave behind, once nobody writes to it."""
        await self._idle((batch_id, position) for position in positions)
        await self._shelf.discard((batch_id, position) for position in positions)

    async def _idle(self, keys: Iterable[_Key]) -> None:
        tasks = [task for key in keys if (task := self._tasks.get(key)) is not None]
        if tasks:
            await asyncio.wait(tasks)

    # What is asked for

    async def create(self, urls: list[str], options: Options) -> BatchRow:
        """Store a new batch."""
        return await self._ask(lambda: self._create(urls, options))

    async def _create(
        self, urls: list[str], options: Options, *, batch_id: str | None = None, retry_of: str | None = None
    ) -> BatchRow:
        row = BatchRow(
            batch_id=batch_id or f"batch_{secrets.token_hex(8)}",
            options=options,
            created_at=self.now(),
            retry_of=retry_of,
            jobs=[JobRow(position=position, url=url) for position, url in enumerate(urls)],
        )
        return await self._commit(row, row.state, ())

    async def cancel(self, batch_id: str) -> BatchRow:
        """Cancel a batch."""

        async def change() -> BatchRow:
            row = await self._find(batch_id)
            if row.status is Status.CANCELLED:
                return row
            return await self._commit(row, *row.state.cancel())

        return await self._ask(change)

    async def cancel_job(self, name: str) -> BatchRow:
        """Cancel one job."""
        if not isinstance(name, str):
            raise TypeError(f"a job is named by its job_id, which is text, not by a {type(name).__name__}")

        async def change() -> BatchRow:
            batch_id, _, number = name.removeprefix("job_").rpartition("_")
            row = await self._find(batch_id)
            if not number.isascii() or not number.isdigit() or len(number) > 9 or int(number) >= len(row.jobs):
                raise UnknownBatch(f"there is no job {name!r}")
            if row.jobs[int(number)].status is Status.CANCELLED:
                return row
            return await self._commit(row, *row.state.apply(int(number), Cause.CANCEL))

        return await self._ask(change)

    async def pause(self, batch_id: str) -> BatchRow:
        """Pause a batch."""

        async def change() -> BatchRow:
            row = await self._find(batch_id)
            return await self._commit(row, *row.state.pause())

        return await self._ask(change)

    async def resume(self, batch_id: str) -> BatchRow:
        """Resume a batch."""

        async def change() -> BatchRow:
            row = await self._find(batch_id)
            return await self._commit(row, *row.state.resume())

        return await self._ask(change)

    async def retry(self, batch_id: str, *, cancelled: bool) -> BatchRow:
        """Submit failed jobs anew, with the bytes they have."""
        statuses = {Status.FAILED, Status.CANCELLED} if cancelled else {Status.FAILED}

        async def change() -> "BatchRow | list[_Key]":
            row = await self._find(batch_id)
            jobs = [job for job in row.jobs if job.status in statuses]
            if not jobs:
                raise WrongState(f"no job of the batch has {' or '.join(sorted(statuses))}")
            busy = self._busy((batch_id, job.position) for job in jobs)
            if busy:
                return busy
            new_id = f"batch_{secrets.token_hex(8)}"
            for position, job in enumerate(jobs):
                await self._shelf.adopt((batch_id, job.position), (new_id, position))
            return await self._create([job.url for job in jobs], row.options, batch_id=new_id, retry_of=batch_id)

        async def retry() -> BatchRow:
            # A job that was told to stop may take long, so nothing else waits for it. Its batch may change meanwhile.
            while isinstance(result := await self._ask(change), list):
                await self._idle(result)
            return result

        return await self._outside(retry)

    async def delete(self, batch_id: str, *, files: bool) -> None:
        """Forget a batch."""

        async def cancel() -> BatchRow | None:
            try:
                row = await self._find(batch_id)
            except DamagedBatch:
                return None
            if row.status not in FINAL:
                row = await self._commit(row, *row.state.cancel())
            return row

        async def forget() -> None:
            event = await self._store.delete(EventRow(batch_id=batch_id, kind="deleted", at=self.now()))
            self.hub.publish([event])

        async def delete() -> None:
            row = await self._ask(cancel)
            if row is not None:
                # Nothing starts again in a batch that has ended, so what runs now is all there is to wait for.
                await self._idle(self._busy((batch_id, job.position) for job in row.jobs))
                await self._shelf.forget(row, files=files)
            await self._ask(forget)

        await self._outside(delete)

    def _busy(self, keys: Iterable[_Key]) -> list[_Key]:
        """Return the jobs whose tasks have not ended."""
        return [key for key in keys if key in self._tasks]

    async def _find(self, batch_id: str) -> BatchRow:
        row = self.rows.get(batch_id) or await self._store.batch(batch_id)
        if row is None:
            raise UnknownBatch(f"there is no batch {batch_id!r}")
        return row

    # Jobs

    async def _start_jobs(self) -> None:
        """Start what the limits allow."""
        free = 0 if self._resting else self._limits.running - self.running
        if free <= 0 or not self.rows:
            return
        busy = Counter(self._host_of(batch_id, position) for batch_id, live in self._live.items() for position in live)
        waiting = []
        for row in self.rows.values():
            startable = row.state.startable
            if startable:
                waiting.append(Waiting(row.batch_id, row.options.priority, row.number, startable, self._queued(row)))
        chosen: dict[str, list[int]] = {}
        for batch_id, position in choose(waiting, free=free, per_host=self._limits.per_host, busy=busy):
            chosen.setdefault(batch_id, []).append(position)
        for batch_id, positions in chosen.items():
            row = self.rows[batch_id]
            after = row.state
            changes: list[Change] = []
            for position in positions:
                after, more = after.apply(position, Cause.START)
                changes += more
            try:
                await self._commit(row, after, changes)
            except DatabaseError as error:
                logger.error("a change could not be stored (%s); it is tried again", error)  # noqa: TRY400  # no bug of ours
                asyncio.get_running_loop().call_later(_DISK_PAUSE, self._poke)
                return
            except Exception:
                logger.exception("jobs of %s could not be started; it is tried again", batch_id)
                asyncio.get_running_loop().call_later(_DISK_PAUSE, self._poke)
                continue
            for position in positions:
                self._start_job((batch_id, position), row.jobs[position].url, row.options)

    def _queued(self, row: BatchRow) -> Iterator[tuple[int, str]]:
        for job in row.jobs:
            if job.status is Status.QUEUED and not (self.failure is not None and _needs_client(job)):
                yield job.position, self._host_of(row.batch_id, job.position)

    def _poke(self) -> None:
        async def nothing() -> None:
            return

        if not self._ended:
            self._asked.put_nowait((nothing, asyncio.get_running_loop().create_future()))

    def _host_of(self, batch_id: str, position: int) -> str:
        hosts = self._hosts.get(batch_id)
        if hosts is None:
            hosts = self._hosts[batch_id] = tuple(netloc_of(job.url) for job in self.rows[batch_id].jobs)
        return hosts[position]

    def _start_job(self, key: _Key, url: str, options: Options) -> None:
        assert self._group is not None
        task = self._group.create_task(self._run(key, url, options, self._tasks.get(key)), name=job_id(*key))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))

    def _forget(self, key: _Key, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]

    async def _run(self, key: _Key, url: str, options: Options, previous: asyncio.Task[None] | None) -> None:
        """Download one job, and report how it went. Its cancellation is stored before it is cancelled."""
        if previous is not None:
            # Also if this run is cancelled: the run after it relies on there being one at a time.
            await wait_done(previous)
        fetched: Fetched | None = None
        reason: str | None = None
        try:
            fetched = await self._fetch(key, url, options)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this job: a library let go of what it waited for.
            reason = "the download was cancelled from within"
        except ClientClosed as error:
            await self._put_back(key, error)
            return
        except (WMEError, OSError) as error:
            reason = words(error, silence=self._silence) + self._reached(key)
        except Exception as error:
            logger.exception("job %s failed with an unexpected error", job_id(*key))
            reason = f"{type(error).__name__}: {error}"
        await self._report(key, fetched, reason)

    async def _put_back(self, key: _Key, closed: ClientClosed) -> None:
        """Queue a job again whose client was closed: it has not failed, and the next manager goes on with it."""

        async def change() -> None:
            if self._running(key) is not None:
                row = self.rows[key[0]]
                await self._commit(row, *row.state.apply(key[1], Cause.INTERRUPT))

        if self.failure is None:
            logger.error("the client of the batch manager was closed: wme: jobs wait for a manager with another one")
            # A copy: with the error itself its frames would be kept.
            self.failure = copy.copy(closed)
            self.hub.interrupt()
        try:
            await self._ask(change)
        except Exception as error:  # noqa: BLE001  # the next manager finds the job running, and queues it again
            logger.warning("job %s could not be stored as queued (%s)", job_id(*key), error)

    def stuck(self, batch_id: str) -> bool:
        """Say whether a batch cannot end in this manager, because the client of its jobs was closed."""
        row = self.rows.get(batch_id)
        return (
            self.failure is not None
            and row is not None
            and any(job.status not in FINAL and _needs_client(job) for job in row.jobs)
        )

    async def _fetch(self, key: _Key, url: str, options: Options) -> Fetched:
        """Download a job's file, again after a lack of file descriptors, within the job's timeout."""
        clock: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(options.timeout) as clock:
                while True:
                    try:
                        return await self._fetcher.fetch(
                            url,
                            await self._shelf.prepare(key),
                            options=options,
                            moved=lambda *facts: self._moved(key, *facts),
                            titled=lambda title, size: self._titled(key, title, size),
                        )
                    except Exception as error:
                        if not is_passing(error):
                            raise
                        logger.warning("job %s waits for a free file descriptor (%s)", job_id(*key), error)
                    await asyncio.sleep(_DESCRIPTOR_PAUSE)
        except TimeoutError as error:
            if clock is not None and clock.expired():
                raise DataError(f"timed out after {options.timeout:g} s") from error
            raise

    async def _report(self, key: _Key, fetched: Fetched | None, reason: str | None) -> None:
        """Store how a job ended. Trouble with the disk delays it; nothing that goes wrong ends another job."""
        task = asyncio.current_task()
        naming = _Naming()

        async def report() -> None:
            if self._tasks.get(key) is not task:
                return
            if fetched is not None:
                await self._finish(key, fetched, naming)
            else:
                await self._fail(key, reason or "unknown")

        while True:
            try:
                return await self._ask(report)
            except ManagerClosed:
                # The next manager finds the job running, its bytes in place.
                return None
            except Exception as error:
                if isinstance(error, DatabaseError) or is_passing(error):
                    logger.error("how %s ended could not be stored (%s); it is tried again", job_id(*key), error)  # noqa: TRY400  # no bug of ours
                else:
                    # Such as a wrong answer of a media fetcher. It ends this job, and no other.
                    logger.exception("job %s failed with an unexpected error", job_id(*key))
                    first, reason = fetched is not None, f"{type(error).__name__}: {error}"
                    fetched = None
                    if first:
                        continue
            await asyncio.sleep(_DISK_PAUSE)

    def _running(self, key: _Key) -> JobRow | None:
        row = self.rows.get(key[0])
        job = row.jobs[key[1]] if row is not None else None
        return job if job is not None and job.status is Status.RUNNING else None

    def _moved(self, key: _Key, done: int, total: int | None, rate: float | None, eta: float | None) -> None:
        if self._running(key) is None:
            return
        live = self._live[key[0]]
        before = live[key[1]].done
        self.moved += max(0, done - before)
        live[key[1]] = progress = live_progress(done, storable_size(total), rate, eta)
        self.hub.progress(*key, progress)

    def _titled(self, key: _Key, title: str, size: int | None) -> None:
        job = self._running(key)
        if job is not None:
            # Stored with the job's next change; until then it is only to be looked at.
            job.title, job.total = storable_text(title), storable_size(size)

    def _reached(self, key: _Key) -> str:
        progress = self.live(key[0]).get(key[1])
        if progress is None or not progress.done:
            return ""
        return f" (after {progress.done} of {progress.total or 'unknown'} bytes)"

    async def _fail(self, key: _Key, why: str) -> None:
        row = self.rows.get(key[0])
        if row is None or self._running(key) is None:
            return
        after, changes = row.state.apply(key[1], Cause.FAIL)
        facts: dict[int, Mapping[str, Any]] = {
            change.position: {"error": "cancelled, because another job of the batch failed"}
            for change in changes
            if change.new is Status.CANCELLED
        }
        error = redacted(storable_text(why), url=row.jobs[key[1]].url)
        await self._commit(row, after, changes, {**facts, key[1]: {"error": error}})

    async def _finish(self, key: _Key, fetched: Fetched, naming: _Naming) -> None:
        """Give a whole file its name. From the reservation on, a kill at any point is made good by `recover`."""
        row = self.rows.get(key[0])
        if row is None or self._running(key) is None:
            return
        path = expand(row.options.path_template, fetched.name, batch_id=key[0], submitted=utc(row.created_at))
        try:
            if naming.staged is None:
                naming.staged = await self._shelf.collect(key, fetched.path, fetched.extras, fetched.size)
            if naming.facts is None:
                title, etag = (
                    storable_text(fetched.name.title),
                    None if fetched.etag is None else storable_text(fetched.etag),
                )
                naming.facts = await self._shelf.place(key, path, naming.staged, title=title, etag=etag)
        except OSError as error:
            if is_passing(error):
                raise
            await self._store.release(*key)
            await self._fail(key, words(error, silence=self._silence))
            return
        after, changes = row.state.apply(key[1], Cause.COMPLETE)
        await self._commit(row, after, changes, {key[1]: naming.facts})

    # After a kill

    async def recover(self) -> None:
        """Take up what an earlier manager left: give whole files their names, and queue what was running."""
        self.hub.last = await self._store.last_event()
        for row in await self._store.unfinished():
            self.rows[row.batch_id] = row
            try:
                await self._recover(row)
            except DatabaseError:
                # The disk's trouble is not this batch's.
                raise
            except Exception as error:
                logger.exception("the batch %s could not be taken up again", row.batch_id)
                self._store.set_aside(row.batch_id, row.number, f"{type(error).__name__}: {error}")
                self.rows.pop(row.batch_id, None)
        await self._shelf.sweep()

    async def _recover(self, row: BatchRow) -> None:
        for job in row.jobs:
            if job.status is Status.RUNNING and job.moving:
                facts = await self._shelf.settle((row.batch_id, job.position), job)
                if facts is not None:
                    now = self.rows[row.batch_id]
                    after, changes = now.state.apply(job.position, Cause.COMPLETE)
                    await self._commit(now, after, changes, {job.position: facts})
        if row.batch_id in self.rows:
            now = self.rows[row.batch_id]
            after, changes = now.state.interrupt()
            if changes:
                await self._commit(now, after, changes)


def _needs_client(job: JobRow) -> bool:
    return job.url.startswith("wme:")
