"""Many URLs as one batch: submitted, watched, paused, cancelled, retried, and continued after a kill."""

import asyncio
import contextlib
import copy
import logging
import os
import ssl as ssl_module
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from wme_async._arguments import check_functions, check_http_url, check_instances, check_numbers, check_path, texts_of
from wme_async._client.client import Client
from wme_async._files import private_folder
from wme_async._tasks import in_thread
from wme_async._transport import SessionPool, Transport
from wme_async._transport.sessions import check_ssl
from wme_async.jobs import states
from wme_async.jobs.job_files import HIDDEN, JobFiles, finished_path
from wme_async.jobs.model import Batch, Event, Listing, ManagerClosed, Outbox, Status
from wme_async.jobs.sources import Fetcher, MediaFetcher, check_media
from wme_async.jobs.store import Store
from wme_async.jobs.url_policy import ascii_host, guard
from wme_async.jobs.validation import JobLimits, Options, check_batch
from wme_async.jobs.views import show_message
from wme_async.jobs.webhooks import DELAYS, WebhookDelivery, check_webhooks
from wme_async.jobs.worker import JobRunner
from wme_async.settings import Limits, Retry, Timeouts

logger: logging.Logger = logging.getLogger("wme_async.jobs")


class BatchManager:
    """Downloads batches of URLs into a directory, and stores their state in a database.

    Example:
        >>> async with BatchManager("downloads") as manager:  # doctest: +SKIP
        ...     batch = await manager.submit(["https://example.com/a.zip", "https://example.com/b.zip"])
        ...     done = await manager.wait(batch.batch_id)

    An accepted batch is never lost: after a crash, a kill or a restart the next manager with the same database
    continues it, from the bytes on the disk. Files get their names only when they are whole, and are never changed
    afterwards.

    Args:
        directory: Where files go; created if it is missing. A hidden folder in it holds unfinished files.
        client: For `wme:` URLs. The manager neither opens nor closes it.
        database: The SQLite file; by default in the hidden folder. One manager uses it at a time.
        limits: The most at once.
        allow_hosts: Hosts that may be fetched from and get webhooks although they are private, loopback or local, by
            their names in URLs.
        webhook_secrets: Secrets to sign webhooks with, written `whsec_` and Base64, the newest first; by default one is
            created and stored in the database.
        webhook_delays: Seconds between attempts to deliver a webhook.
        media: Downloads the media of pages: `wme_async.integrations.media.Media()`.
        file_url: The URL under which files are served, for webhooks; paths are appended to it.
        timeouts: Seconds of silence.
        retry: When a request of a job is retried, and the pauses after trouble with the disk.
        ssl: A TLS context, such as one that knows a company's authority; otherwise as for `SessionPool`.
        proxy: URL of a proxy for plain URLs and webhooks, as for `SessionPool`; `wme:` URLs use the client's. The proxy
            resolves names, so it has to keep URLs of strangers from private addresses; here only the names are checked.
            Proxies of the environment are never used.

    Raises:
        TypeError: An argument of another type.
        ValueError: An empty path, or an invalid secret or delay.
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
        check_webhooks(webhook_secrets, webhook_delays)
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
        self._runner: JobRunner | None = None
        self._main: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        if (runner := self._runner) is None:
            return f"<BatchManager {str(self.directory)!r} not open>"
        return (
            f"<BatchManager {str(self.directory)!r} {len(runner.rows)} unfinished batches,"
            f" {runner.running} running jobs, {runner.bus.watchers} watchers>"
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self, *, jobs: bool = True) -> None:
        """Open the database, continue unfinished batches, and take new ones, as `async with` does.

        Args:
            jobs: Run jobs. Otherwise batches can only be read and changed, and jobs wait for the next manager.

        Raises:
            RuntimeError: It is open, or another manager uses the database, or a newer version of this package made it.
            DatabaseError: The database cannot be opened, or its structure is damaged. Batches with damaged rows are set
                aside instead, see `damaged`.
        """
        if self._main is not None:
            raise RuntimeError("this batch manager is open already")
        # A proxy resolves the names, so their addresses are unknown here.
        address_guard = guard(self._allow) if self._proxy is None else None
        pool = SessionPool(
            limits=Limits(), timeouts=self._timeouts, ssl=self._ssl, proxy=self._proxy, guard=address_guard
        )
        transport = Transport(
            None, timeouts=self._timeouts, retry=self._retry, limits=Limits(max_response=1 << 20), pool=pool
        )
        store = Store(self._database)
        runner = self._runner = JobRunner(
            store=store,
            files=JobFiles(self.directory, store),
            fetcher=Fetcher(
                transport=transport, client=self._client, media=self._media, allow=self._allow, limits=self.limits
            ),
            webhooks=WebhookDelivery(store=store, transport=transport, secrets=self._secrets, delays=self._delays),
            transport=transport,
            limits=self.limits,
            file_url=self._file_url,
            idle=not jobs,
        )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A task of its own, so that one task may open the manager and another one close it.
        self._main = asyncio.get_running_loop().create_task(
            self._run(runner, transport, ready), name="wme_async batch manager"
        )
        try:
            await asyncio.shield(ready)
        except BaseException:
            await self.aclose()
            raise

    async def _run(self, runner: JobRunner, transport: Transport, ready: asyncio.Future[None]) -> None:
        try:
            await in_thread(private_folder, self.directory / HIDDEN, tighten=True)
            await runner.store.open()
            await runner.run(ready)
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            logger.exception("the batch manager has ended; unfinished batches continue when it is opened again")
            raise
        finally:
            runner.close()
            runner.bus.close()
            try:
                await transport.aclose()
                await transport.pool.aclose()
            finally:
                await runner.store.close()

    async def wait_ended(self) -> None:
        """Wait until the manager has ended, because it was closed or because of an error.

        Raises:
            RuntimeError: It ended because of an error, the `__cause__`.
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
        """Stop running jobs where they are, and close. The next manager with the database continues them."""
        main, runner = self._main, self._runner
        if main is None or runner is None:
            return
        if not main.done():
            runner.close()
            await asyncio.wait([main])
        self._main = self._runner = None
        if not main.cancelled() and (error := main.exception()) is not None:
            raise RuntimeError("the batch manager stopped with an error") from error

    def _open(self) -> JobRunner:
        if self._runner is None or self._main is None:
            raise ManagerClosed("this batch manager is not open: use it in `async with`")
        if self._main.done():
            raise ManagerClosed("this batch manager has ended because of an error; see the log, and open it again")
        return self._runner

    # Batches

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
        name: str | None = None,
    ) -> Batch:
        """Submit a batch of URLs. When this returns, the batch is stored, and survives crashes and restarts.

        Args:
            urls: 1 to 100 different URLs: `http(s)://`, or `wme:` such as
                `wme:batches/2025-07-16/05/enwiki_namespace_0`, `wme:snapshots/enwiki_namespace_0`, or a list such as
                `wme:batches/2025-07-16/05?in_language.identifier=en`, which stands for the archives in it now.
            concurrent_limit: Jobs of this batch at once, 1 to 10.
            stop_on_error: The first failure cancels the jobs that have not ended.
            ignore_errors: Failures do not make the batch `failed`.
            path_template: Where files go, with `{batch_id} {safe_title} {id} {ext} {uploader} {upload_date}`.
            timeout: Seconds that one job may run.
            webhook_url: Receives a webhook when the batch ends.
            priority: -100 to 100; higher ones start first.
            quality: For pages with media: `best`, or a height such as `1080p`.
            video_format: For pages with media: such as `mp4`.
            download_subtitles: For pages with media.
            name: To recognise the batch by, at most 200 characters; by default its first URL and how many more it has.

        Returns:
            The batch, queued.

        Raises:
            InvalidBatch: With every problem of the batch; nothing was stored.
            WMEError: A `wme:` list could not be fetched; nothing was stored.
        """
        runner = self._open()
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
            name=name,
        )
        valid_urls, options = check_batch(urls, options, limits=self.limits, allow=self._allow)
        return await runner.create(await runner.fetcher.expand(valid_urls), options)

    async def status(self, batch_id: str) -> Batch:
        """Return a batch with its jobs.

        Raises:
            UnknownBatch: The batch does not exist.
            DamagedBatch: Its stored rows are damaged.
        """
        runner = self._open()
        return runner.show(await runner.find(batch_id))

    async def list(self, *, limit: int = 50, before: str | None = None, status: str | None = None) -> Listing:
        """Return batches without their jobs, the newest first. Damaged ones are omitted: `damaged` names them.

        Args:
            limit: How many at most, 1 to 500.
            before: Only those older than this batch; or the `next` of a page, for those after it.
            status: Only those in this state.

        Raises:
            TypeError: The limit is not a whole number.
            ValueError: The limit or the state is not valid.
        """
        runner = self._open()
        check_numbers(whole=True, optional=False, limit=limit)
        if not 1 <= limit <= 500:
            raise ValueError(f"limit is 1 to 500, not {limit}")
        if status is not None and status not in list(Status):
            raise ValueError(f"status must be one of {', '.join(Status)}, not {status!r}")
        state = None if status is None else Status(status)
        rows, last = await runner.store.page(before=before, limit=limit, status=state)
        # Not the id: a caller who deletes the batches of a page still needs the page after it.
        return Listing(batches=tuple(map(runner.show, rows)), next=None if last is None else str(last))

    async def watch(self, batch_id: str | None = None, *, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Yield events as they happen, until the batch ends.

        Args:
            batch_id: Only of this batch; None watches all, until the manager closes.
            after: The id of the last event that was seen; later ones come first. By default, all events of one batch,
                and of all batches only new ones.

        Yields:
            Events. Changes of state have ids and are complete; progress has no id, and a slow reader gets only the
            latest of each job.

        Raises:
            UnknownBatch: The batch does not exist.
        """
        async with contextlib.aclosing(self.follow(batch_id, after=after)) as groups:
            async for group in groups:
                for event in group:
                    yield event

    async def follow(
        self, batch_id: str | None = None, *, after: int | None = None, beat: float | None = None
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """Yield events in groups, each with all events since the last one. For streams to other programs.

        Args:
            batch_id: As for `watch`.
            after: As for `watch`; an id that does not exist yet counts as the newest.
            beat: Seconds of silence after which an empty group is yielded, to show that the stream is alive.

        Raises:
            UnknownBatch: The batch does not exist.
        """
        bus = self._open().bus
        check_numbers(whole=True, after=after)
        check_numbers(whole=False, beat=beat)
        # A batch that has ended has no further events.
        ended = batch_id is not None and (await self.status(batch_id)).ended
        start = min(after, bus.last) if after is not None else 0 if batch_id is not None else bus.last
        async with contextlib.aclosing(bus.watch(batch_id, start, beat=beat, ended=ended)) as groups:
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
            batch_id: The batch.
            progress: Receives the batch: at first, after every change, and some four times a second while bytes arrive.
            timeout: Seconds to wait at most; the batch itself continues.

        Returns:
            The batch as it ended.

        Raises:
            UnknownBatch: The batch does not exist.
            TimeoutError: It has not ended in time.
            ManagerClosed: The manager was closed meanwhile, or has ended.
            ClientClosed: The manager's client was closed: the `wme:` jobs of the batch wait for the next manager.
            DamagedBatch: Its stored rows are damaged.
        """
        check_functions(progress=progress)
        check_numbers(whole=False, timeout=timeout)
        async with asyncio.timeout(timeout):
            await self.status(batch_id)
            runner = self._open()
            async with contextlib.aclosing(runner.bus.watch(batch_id, runner.bus.last)) as events:
                while True:
                    batch = await self.status(batch_id)
                    if progress is not None and (pending := progress(batch)) is not None:
                        await pending
                    if batch.ended:
                        return batch
                    if runner.failure is not None and runner.stuck(batch_id):
                        raise copy.copy(runner.failure)
                    if await anext(events, None) is None and runner.bus.closed:
                        raise ManagerClosed("the batch manager was closed while waiting")

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel the jobs that have not ended. Finished files stay. Cancelling a cancelled batch changes nothing.

        Raises:
            UnknownBatch: The batch does not exist.
            WrongState: It is completed or failed.
        """
        return await self._open().change(batch_id, states.cancel)

    async def cancel_job(self, job_id: str) -> Batch:
        """Cancel one job; the others continue.

        Raises:
            UnknownBatch: The job does not exist.
            WrongState: It has ended.
        """
        return await self._open().cancel_job(job_id)

    async def pause(self, batch_id: str) -> Batch:
        """Stop a batch until it is resumed, also across restarts.

        Raises:
            UnknownBatch: The batch does not exist.
            WrongState: It has ended.
        """
        return await self._open().change(batch_id, states.pause)

    async def resume(self, batch_id: str) -> Batch:
        """Continue a paused batch, from the bytes on the disk.

        Raises:
            UnknownBatch: The batch does not exist.
            WrongState: It has ended.
        """
        return await self._open().change(batch_id, states.resume)

    async def retry(self, batch_id: str, *, cancelled: bool = False, jobs: Collection[str] | None = None) -> Batch:
        """Submit the failed jobs of a batch again, as a new batch that names the old one, from the bytes on the disk.

        Args:
            batch_id: The old batch; it need not have ended.
            cancelled: Also the cancelled jobs, such as those that `stop_on_error` stopped.
            jobs: These failed or cancelled jobs alone, by their ids.

        Returns:
            The new batch.

        Raises:
            TypeError: `jobs` is not a list of ids.
            UnknownBatch: The batch, or one of the jobs, does not exist.
            WrongState: It has no such jobs, or one of those named is neither failed nor cancelled.
        """
        names = None if jobs is None else texts_of("jobs", jobs, "job ids")
        return await self._open().retry(batch_id, lambda row: states.to_retry(row, cancelled=cancelled, names=names))

    async def delete(self, batch_id: str, *, files: bool = False) -> None:
        """Delete a batch; its running jobs are cancelled first.

        Args:
            batch_id: The batch.
            files: Remove its finished files too.

        Raises:
            UnknownBatch: The batch does not exist.
        """
        await self._open().delete(batch_id, files=files)

    # For operators

    async def webhooks(self, batch_id: str) -> tuple[Outbox, ...]:
        """Return the state of the delivery of a batch's webhook.

        Raises:
            UnknownBatch: The batch does not exist.
        """
        await self.status(batch_id)
        return tuple(map(show_message, await self._open().store.messages(batch_id=batch_id)))

    async def webhook_secrets(self) -> tuple[str, ...]:
        """Return the secrets that webhooks are signed with, the newest first: receivers verify them with these."""
        return self._open().webhooks.secrets()

    async def rotate_webhook_secret(self, *, keep: float = 86_400.0) -> str:
        """Create a new webhook secret; for a while the old ones sign too, so that receivers can change over.

        Args:
            keep: Seconds that the old secrets stay valid.

        Returns:
            The new secret.

        Raises:
            RuntimeError: The secrets are those of the constructor; change them there.
        """
        webhooks = self._open().webhooks
        check_numbers(whole=False, optional=False, keep=keep)
        if not keep >= 0:
            raise ValueError(f"keep must be a number of seconds, 0 or more, not {keep}")
        return await webhooks.rotate(keep)

    async def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many `batches`, `jobs` and webhooks (`outbox`) are in each state."""
        return await self._open().store.counts()

    @property
    def damaged(self) -> Mapping[str, str]:
        """The reasons why batches are set aside, by id: their stored rows are damaged.

        They are not run and not listed, and their rows stay in the database for inspection; `delete` removes them.
        Unfinished batches are checked when the manager opens, others when they are read.
        """
        return dict(self._open().store.damaged)

    def statistics(self) -> Mapping[str, float]:
        """Return current numbers: `running` jobs, `watchers`, `rate` in bytes per second, `bytes` since the start."""
        runner = self._open()
        return {
            "running": runner.running,
            "unfinished": len(runner.rows),
            "damaged": len(runner.store.damaged),
            "watchers": runner.bus.watchers,
            "rate": runner.rate,
            "bytes": runner.moved,
            "last_event": runner.bus.last,
        }

    async def finished_file(self, filepath: str) -> Path | None:
        """Return the path on the disk of a finished file.

        Args:
            filepath: As in `file_info.filepath`, with slashes.

        Returns:
            The path; None if it is not the file of a completed job, is gone, or is not a plain file any more.
        """
        if not await self._open().store.finished_file(filepath):
            return None
        return await in_thread(finished_path, self.directory, filepath)

    def end_streams(self) -> None:
        """End every `follow` that has a beat, so that a server that closes need not wait for its readers."""
        if self._runner is not None:
            self._runner.bus.end_streams()

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to close."""
        return self._runner is None or self._runner.bus.closed
