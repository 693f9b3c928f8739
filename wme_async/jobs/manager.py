"""Many URLs as one batch: submitted, watched, paused, cancelled, repeated, and still there after a kill."""

import asyncio
import contextlib
import copy
import logging
import os
import ssl as ssl_module
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from wme_async._arguments import check_functions, check_http_url, check_instances, check_numbers, check_path, texts_of
from wme_async._client.client import Client
from wme_async._files import private_folder
from wme_async._tasks import WorkGroup, in_thread
from wme_async._transport import SessionPool, Transport
from wme_async._transport.sessions import check_ssl
from wme_async.jobs.errors import ManagerClosed, UnknownBatch
from wme_async.jobs.model import Batch, Event, Listing, Outbox, utc
from wme_async.jobs.outbox import Delivery, check_delivery
from wme_async.jobs.shelf import HIDDEN
from wme_async.jobs.sources import Fetcher, MediaFetcher, check_media
from wme_async.jobs.states import Status
from wme_async.jobs.store import Store
from wme_async.jobs.supervision import restarted
from wme_async.jobs.url_policy import guard
from wme_async.jobs.urls import ascii_host
from wme_async.jobs.validation import InvalidBatch, JobLimits, Options, Problem, check_options, check_urls
from wme_async.jobs.views import show
from wme_async.jobs.webhooks import DELAYS
from wme_async.jobs.worker import Crew
from wme_async.settings import Limits, Retry, Timeouts

__all__ = ["BatchManager"]

logger: logging.Logger = logging.getLogger("wme_async.jobs")


class BatchManager:
    """Downloads batches of URLs into a directory, and remembers them in a database.

    Example:
        >>> async with BatchManager("downloads") as manager:  # doctest: +SKIP
        ...     batch = await manager.submit(["https://example.com/a.zip", "https://example.com/b.zip"])
        ...     done = await manager.wait(batch.batch_id)

    A batch that was accepted is never lost: after a crash, a kill or a restart the next manager with the same database
    goes on with it, from the bytes that are there. Files get their names only when they are whole, and a file that has
    one is never written to again.

    Args:
        directory: Where files go; made where it is missing. A hidden folder in it holds what is unfinished.
        client: For `wme:` URLs. It is neither opened nor closed here.
        database: The SQLite file; by default in the hidden folder. One manager uses it at a time.
        limits: How much at once.
        allow_hosts: Hosts that may be fetched and told though they are private, loopback or local, by the names that
            are written in URLs.
        webhook_secrets: Secrets to sign webhooks with, written `whsec_` and Base64, the newest first; by default one is
            made and kept in the database.
        webhook_delays: Seconds between attempts to deliver a webhook.
        media: Gets media out of pages: `wme_async.integrations.media.Media()`.
        file_url: The URL under which files are served, for webhooks; paths are appended to it.
        timeouts: Seconds of silence.
        retry: When one request of a job is tried again.
        ssl: A TLS context, such as one that knows a company's authority; otherwise as for `SessionPool`.
        proxy: URL of a proxy for plain URLs and webhooks, as for `SessionPool`; `wme:` URLs go as their client goes.
            It resolves names, so it then has to keep URLs of strangers from private addresses; here they are only
            checked as they are written. Proxies of the environment are never used.

    Raises:
        TypeError: An argument of another type.
        ValueError: An empty path, or a secret or a delay that cannot work.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        client: Client | None = None,
        database: str | os.PathLike[str] | None = None,
        limits: JobLimits | None = None,
        allow_hosts: Iterable[str] = (),
        webhook_secrets: Sequence[str] | None = None,
        webhook_delays: tuple[float, ...] = DELAYS,
        media: MediaFetcher | None = None,
        file_url: str | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        proxy: str | None = None,
    ) -> None:
        check_path("directory", directory)
        check_path("database", database, optional=True)
        check_instances(
            client=(client, Client), limits=(limits, JobLimits), timeouts=(timeouts, Timeouts), retry=(retry, Retry)
        )
        check_ssl(ssl)
        check_media(media, proxy)
        check_http_url("file_url", file_url)
        check_delivery(webhook_secrets, webhook_delays)
        self.directory: Path = Path(directory).absolute()
        self.limits: JobLimits = limits or JobLimits()
        self.media: bool = media is not None
        self._allow = tuple(map(ascii_host, texts_of("allow_hosts", allow_hosts, "host names")))
        self._client = client
        self._media = media
        self._database = Path(database) if database is not None else self.directory / HIDDEN / "jobs.sqlite"
        self._secrets = None if webhook_secrets is None else tuple(webhook_secrets)
        self._delays = webhook_delays
        self._file_url = file_url.rstrip("/") if file_url else None
        self._timeouts = timeouts or Timeouts()
        self._retry = retry or Retry()
        self._ssl = ssl
        self._proxy = proxy
        self._crew: Crew | None = None
        self._fetcher: Fetcher | None = None
        self._delivery: Delivery | None = None
        self._store: Store | None = None
        self._transport: Transport | None = None
        self._main: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        if self._crew is None:
            return f"<BatchManager {str(self.directory)!r} not open>"
        return (
            f"<BatchManager {str(self.directory)!r} {len(self._crew.rows)} unfinished batches,"
            f" {self._crew.running} running jobs, {self._crew.hub.watchers} watchers>"
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self, *, jobs: bool = True) -> None:
        """Open the database, go on with what is unfinished, and take batches. `async with` does it too.

        Args:
            jobs: Run jobs. Otherwise batches are only looked at and changed, and jobs wait for the next manager.

        Raises:
            RuntimeError: It is open, or another manager has the database, or a newer version of this package made it.
            DatabaseError: The database cannot be opened, or its structure is damaged. Batches whose rows are damaged
                keep nothing from opening: they are set aside, see `damaged`.
        """
        if self._main is not None:
            raise RuntimeError("this batch manager is open already")
        timeouts, proxy = self._timeouts, self._proxy
        # Behind a proxy there are no addresses to ask a guard about.
        checked = None if proxy is not None else guard(self._allow)
        pool = SessionPool(limits=Limits(), timeouts=timeouts, ssl=self._ssl, proxy=proxy, guard=checked)
        self._transport = Transport(
            None, timeouts=timeouts, retry=self._retry, limits=Limits(max_response=1 << 20), pool=pool
        )
        self._store = Store(self._database)
        self._fetcher = Fetcher(
            transport=self._transport, client=self._client, media=self._media, allow=self._allow, limits=self.limits
        )
        self._delivery = Delivery(
            store=self._store, transport=self._transport, secrets=self._secrets, delays=self._delays
        )
        self._crew = Crew(
            directory=self.directory,
            store=self._store,
            fetcher=self._fetcher,
            limits=self.limits,
            delivery=self._delivery,
            now=self._transport.now,
            silence=timeouts.read,
            show=self._shown,
            idle=not jobs,
        )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A task of our own, so that whoever opens may be another task than who closes.
        self._main = asyncio.get_running_loop().create_task(self._live(ready), name="wme_async batch manager")
        try:
            await asyncio.shield(ready)
        except BaseException:
            await self.aclose()
            raise

    async def _live(self, ready: asyncio.Future[None]) -> None:
        assert self._store is not None
        assert self._crew is not None
        assert self._delivery is not None
        assert self._transport is not None
        try:
            await in_thread(private_folder, self.directory / HIDDEN, tighten=True)
            await self._store.open()
            await self._delivery.prepare()
            await self._crew.recover()
            async with WorkGroup() as group:
                helpers = [
                    group.start(restarted(self._crew.hub.tick)),
                    group.start(restarted(self._delivery.run)),
                ]
                await self._crew.work(group, ready)
                group.stop(*helpers)
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            logger.exception("the batch manager has ended; unfinished batches go on when it is opened again")
            raise
        finally:
            self._crew.end()
            try:
                await self._transport.aclose()
                await self._transport.pool.aclose()
            finally:
                await self._store.close()

    async def wait_ended(self) -> None:
        """Wait until the manager has ended, because it was closed or because of an error.

        Raises:
            RuntimeError: It ended because of an error, which is its cause.
            ManagerClosed: It is not open.
        """
        main = self._main
        if main is None:
            raise ManagerClosed("this batch manager is not open: use it in `async with`")
        await asyncio.wait([main])
        error = asyncio.CancelledError() if main.cancelled() else main.exception()
        if error is not None:
            raise RuntimeError("the batch manager has ended because of an error; see the log") from error

    async def aclose(self) -> None:
        """Stop running jobs where they are, and close. They go on when a manager opens the database again."""
        main, crew = self._main, self._crew
        if main is None or crew is None:
            return
        if not main.done():
            crew.shut()
            await asyncio.wait([main])
        self._main = None
        self._crew = None
        if not main.cancelled() and (error := main.exception()) is not None:
            raise RuntimeError("the batch manager had stopped") from error

    def _open(self) -> Crew:
        if self._crew is None or self._main is None:
            raise ManagerClosed("this batch manager is not open: use it in `async with`")
        if self._main.done():
            raise ManagerClosed("this batch manager has ended because of an error; see the log, and open it again")
        return self._crew

    # What people ask for

    async def submit(
        self,
        urls: Sequence[str],
        *,
        concurrent_limit: int = 3,
        stop_on_error: bool = False,
        ignore_errors: bool = True,
        path_template: str = "batch/{batch_id}/{safe_title}.{ext}",
        timeout: float = 1800.0,
        webhook_url: str | None = None,
        priority: int = 0,
        quality: str | None = None,
        video_format: str | None = None,
        download_subtitles: bool = False,
    ) -> Batch:
        """Take a batch of URLs. When this returns it is stored, and will be downloaded whatever happens.

        Args:
            urls: 1 to 100 of them, no two the same: `http(s)://`, or `wme:` such as
                `wme:batches/2025-07-16/05/enwiki_namespace_0`, `wme:snapshots/enwiki_namespace_0`, or a list such as
                `wme:batches/2025-07-16/05?in_language.identifier=en`, which stands for all that it answers now.
            concurrent_limit: Jobs of this batch at once, 1 to 10.
            stop_on_error: The first failure cancels what has not ended.
            ignore_errors: Failures do not make the batch `failed`.
            path_template: Where files go, of `{batch_id} {safe_title} {id} {ext} {uploader} {upload_date}`.
            timeout: Seconds that one job may run.
            webhook_url: Told when the batch ends.
            priority: -100 to 100; higher ones start first.
            quality: For pages with media: `best`, or a height such as `1080p`.
            video_format: For pages with media: such as `mp4`.
            download_subtitles: For pages with media.

        Returns:
            The batch, queued.

        Raises:
            InvalidBatch: With everything that is wrong with it; nothing was stored.
            WMEError: A `wme:` list could not be looked up; nothing was stored.
        """
        crew = self._open()
        options = Options(
            concurrent_limit=concurrent_limit,
            stop_on_error=stop_on_error,
            ignore_errors=ignore_errors,
            path_template=path_template,
            timeout=timeout,
            webhook_url=webhook_url,
            priority=priority,
            quality=quality,
            video_format=video_format,
            download_subtitles=download_subtitles,
        )
        problems: list[Problem] = []
        clean: list[str] = []
        try:
            clean = check_urls(urls, limits=self.limits, allow=self._allow)
        except InvalidBatch as error:
            problems += error.problems
        try:
            options = check_options(options, limits=self.limits, allow=self._allow)
        except InvalidBatch as error:
            problems += error.problems
        if problems:
            raise InvalidBatch(problems)
        return self._shown(await crew.create(await self._expanded(clean), options))

    async def _expanded(self, urls: list[str]) -> list[str]:
        assert self._fetcher is not None
        found: dict[str, None] = {}
        problems: list[Problem] = []
        for url in urls:
            try:
                more = await self._fetcher.expand(url)
            except ValueError as error:
                problems.append(Problem(url, f"Invalid URL: {error}"))
                continue
            if not more:
                problems.append(Problem(url, "the list is empty: nothing has these properties"))
            found.update(dict.fromkeys(more))
        if len(found) > self.limits.expanded:
            words = f"they stand for {len(found)} archives, and {self.limits.expanded} are allowed: add filters"
            problems.append(Problem("urls", words))
        if problems:
            raise InvalidBatch(problems)
        return list(found)

    async def status(self, batch_id: str) -> Batch:
        """Return a batch with its jobs.

        Raises:
            UnknownBatch: There is none.
            DamagedBatch: Its stored rows are damaged.
        """
        crew = self._open()
        row = crew.rows.get(batch_id)
        if row is None:
            assert self._store is not None
            row = await self._store.batch(batch_id)
        if row is None:
            raise UnknownBatch(f"there is no batch {batch_id!r}")
        return self._shown(row)

    async def list(self, *, limit: int = 50, before: str | None = None, status: str | None = None) -> Listing:
        """Return batches without their jobs, the newest first. Damaged ones are left out: `damaged` names them.

        Args:
            limit: How many at most, 1 to 500.
            before: Only those older than this batch, or what comes after a page: its `next`.
            status: Only those in this state.

        Raises:
            TypeError: A limit that is no whole number.
            ValueError: A limit or state that is none.
        """
        crew = self._open()
        assert self._store is not None
        check_numbers(whole=True, optional=False, limit=limit)
        if not 1 <= limit <= 500:
            raise ValueError(f"limit is 1 to 500, not {limit}")
        if status is not None and status not in list(Status):
            raise ValueError(f"status must be one of {', '.join(Status)}, not {status!r}")
        rows, last = await self._store.page(
            before=before, limit=limit, status=None if status is None else Status(status)
        )
        batches = tuple(show(row, now=crew.now(), live=crew.live(row.batch_id)) for row in rows)
        # Not the id: a caller who deletes the batches of a page still wants the page after it.
        return Listing(batches=batches, next=None if last is None else str(last))

    def watch(self, batch_id: str | None = None, *, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Yield what happens, as it happens, until the batch ends.

        Args:
            batch_id: Only of this batch; None watches all, until the manager closes.
            after: The id of the last event that was seen: all that came after it is told first. By default it begins
                now; for one batch, at its beginning.

        Yields:
            Events. Changed states have ids and are never left out; progress has none, and a slow reader gets only the
            latest of each job.

        Raises:
            UnknownBatch: There is no such batch.
        """
        return self._watch(batch_id, after)

    async def _watch(self, batch_id: str | None, after: int | None) -> AsyncGenerator[Event, None]:
        async with contextlib.aclosing(self.follow(batch_id, after=after)) as groups:
            async for group in groups:
                for event in group:
                    yield event

    async def follow(
        self, batch_id: str | None = None, *, after: int | None = None, beat: float | None = None
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """Yield what happens in groups: all that happened since the last one. For streams to others.

        Args:
            batch_id: As for `watch`.
            after: As for `watch`; an id that does not exist yet counts as the newest.
            beat: Seconds of silence after which an empty group is yielded, to show that the stream is alive.

        Raises:
            UnknownBatch: There is no such batch.
        """
        crew = self._open()
        check_numbers(whole=True, after=after)
        check_numbers(whole=False, beat=beat)
        # Whoever has seen the end of a batch would wait for another one.
        ended = batch_id is not None and (await self.status(batch_id)).ended
        start = min(after, crew.hub.last) if after is not None else 0 if batch_id is not None else crew.hub.last
        async with contextlib.aclosing(crew.hub.watch(batch_id, start, beat=beat, ended=ended)) as groups:
            async for group in groups:
                yield group

    async def wait(
        self,
        batch_id: str,
        *,
        progress: Callable[[Batch], Awaitable[None] | None] | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """Wait until a batch has ended.

        Args:
            batch_id: Which one.
            progress: Told how it is: at first, after every change, and some four times a second while bytes arrive.
            timeout: Seconds after which to give up; the batch itself goes on.

        Returns:
            The batch as it ended.

        Raises:
            UnknownBatch: There is none.
            TimeoutError: It has not ended in time.
            ManagerClosed: The manager was closed meanwhile, or has ended.
            ClientClosed: The manager's client was closed: the `wme:` jobs of the batch wait for the next manager.
            DamagedBatch: Its stored rows are damaged.
        """
        check_functions(progress=progress)
        check_numbers(whole=False, timeout=timeout)
        async with asyncio.timeout(timeout):
            batch = await self.status(batch_id)
            crew = self._open()
            async with contextlib.aclosing(crew.hub.watch(batch_id, crew.hub.last)) as events:
                batch = await self._told(batch_id, progress)
                while not batch.ended:
                    if crew.failure is not None and crew.stuck(batch_id):
                        raise copy.copy(crew.failure)
                    if await anext(events, None) is None and crew.hub.closed:
                        raise ManagerClosed("the batch manager was closed while waiting")
                    batch = await self._told(batch_id, progress)
        return batch

    async def _told(self, batch_id: str, progress: Callable[[Batch], Awaitable[None] | None] | None) -> Batch:
        batch = await self.status(batch_id)
        if progress is not None:
            pending = progress(batch)
            if pending is not None:
                await pending
        return batch

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel what has not ended. Finished files stay. Cancelling a cancelled batch changes nothing.

        Raises:
            UnknownBatch: There is no such batch.
            WrongState: It has ended otherwise.
        """
        return self._shown(await self._open().cancel(batch_id))

    async def cancel_job(self, job_id: str) -> Batch:
        """Cancel one job; the others go on.

        Raises:
            UnknownBatch: There is no such job.
            WrongState: It has ended.
        """
        return self._shown(await self._open().cancel_job(job_id))

    async def pause(self, batch_id: str) -> Batch:
        """Stop a batch where it is, restarts included, until it is resumed.

        Raises:
            UnknownBatch: There is no such batch.
            WrongState: It has ended.
        """
        return self._shown(await self._open().pause(batch_id))

    async def resume(self, batch_id: str) -> Batch:
        """Go on with a paused batch, from the bytes that are there.

        Raises:
            UnknownBatch: There is no such batch.
            WrongState: It has ended.
        """
        return self._shown(await self._open().resume(batch_id))

    async def retry(self, batch_id: str, *, cancelled: bool = False) -> Batch:
        """Submit the failed jobs of a batch again, as a new batch that names the old one, with the bytes they have.

        Args:
            batch_id: The old one; it need not have ended.
            cancelled: The cancelled jobs too, such as those that `stop_on_error` stopped.

        Returns:
            The new batch.

        Raises:
            UnknownBatch: There is no such batch.
            WrongState: It has no such jobs.
        """
        return self._shown(await self._open().retry(batch_id, cancelled=cancelled))

    async def delete(self, batch_id: str, *, files: bool = False) -> None:
        """Forget a batch; what runs of it is cancelled first.

        Args:
            batch_id: Which one.
            files: Remove its finished files too.

        Raises:
            UnknownBatch: There is no such batch.
        """
        await self._open().delete(batch_id, files=files)

    # What operators ask for

    async def webhooks(self, batch_id: str) -> tuple[Outbox, ...]:
        """Return how the delivery of a batch's webhook goes.

        Raises:
            UnknownBatch: There is no such batch.
        """
        await self.status(batch_id)
        assert self._store is not None
        return tuple(
            Outbox(
                message_id=row.message_id,
                batch_id=row.batch_id,
                url=row.url,
                state=row.state,  # type: ignore[arg-type]  # the table holds nothing else
                attempts=row.attempts,
                next_at=None if row.next_at is None else utc(row.next_at),
                error=row.error,
            )
            for row in await self._store.messages(batch_id=batch_id)
        )

    async def webhook_secrets(self) -> tuple[str, ...]:
        """Return the secrets that webhooks are signed with, the newest first: what receivers need to check them."""
        self._open()
        assert self._delivery is not None
        return await self._delivery.current()

    async def rotate_webhook_secret(self, *, keep: float = 86_400.0) -> str:
        """Make a new webhook secret; for a while the old ones sign too, so that receivers can change over.

        Args:
            keep: Seconds that the old secrets stay valid.

        Returns:
            The new secret.

        Raises:
            RuntimeError: The secrets were given to the constructor; change them there.
        """
        self._open()
        assert self._delivery is not None
        check_numbers(whole=False, optional=False, keep=keep)
        if not keep >= 0:
            raise ValueError(f"keep must be a number of seconds, 0 or more, not {keep}")
        return await self._delivery.rotate(keep)

    async def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many `batches`, `jobs` and webhooks (`outbox`) are in each state."""
        self._open()
        assert self._store is not None
        return await self._store.counts()

    @property
    def damaged(self) -> Mapping[str, str]:
        """Batches whose stored rows are damaged, by id, and what is wrong.

        They are not run and not listed, and their rows stay in the database to be looked at; `delete` removes them.
        Unfinished batches are checked when the manager opens, others also when they are read.
        """
        self._open()
        assert self._store is not None
        return dict(self._store.damaged)

    def statistics(self) -> Mapping[str, float]:
        """Return what happens now: `running` jobs, `watchers`, `rate` in bytes per second, `bytes` since the start."""
        crew = self._open()
        assert self._store is not None
        return {
            "running": crew.running,
            "unfinished": len(crew.rows),
            "damaged": len(self._store.damaged),
            "watchers": crew.hub.watchers,
            "rate": crew.rate,
            "bytes": crew.moved,
            "last_event": crew.hub.last,
        }

    async def finished_file(self, filepath: str) -> Path | None:
        """Return where a finished file is, given the path that its job shows.

        Args:
            filepath: As in `file_info.filepath`, with slashes.

        Returns:
            The file; None if it is not the file of a completed job, is gone, or is not a plain file any more.
        """
        self._open()
        assert self._store is not None
        if not await self._store.finished_file(filepath):
            return None
        return await in_thread(_plain_file, self.directory, filepath)

    def end_streams(self) -> None:
        """End every `follow` that has a beat: a server that is about to close need not wait for its readers."""
        if self._crew is not None:
            self._crew.hub.end_streams()

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._crew is None or self._crew.hub.closed

    def _shown(self, row: Any) -> Batch:
        crew = self._open()
        return show(
            row, now=crew.now(), live=crew.live(row.batch_id), file_url=self._url_of if self._file_url else None
        )

    def _url_of(self, filepath: str) -> str:
        return f"{self._file_url}/{quote(filepath)}"


def _plain_file(directory: Path, filepath: str) -> Path | None:
    path = directory / filepath
    # A link may have been put in the way of a folder after the file was finished.
    if not path.resolve().is_relative_to(directory.resolve()) or path.is_symlink() or not path.is_file():
        return None
    return path
