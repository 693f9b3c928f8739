"""`wme-async batch` and `wme-async serve`: many downloads as one job, with a service or without one."""

import asyncio
import contextlib
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.text import Text

from wme_async import web
from wme_async._tasks import in_thread
from wme_async._transport import Request, SessionPool, Transport
from wme_async.cli import base
from wme_async.cli.downloads import lines_of
from wme_async.errors import DecodeError, NotFound
from wme_async.jobs import Batch, BatchManager, DatabaseError, Listing, Status, UnknownBatch, WrongState, from_csv
from wme_async.models.decoding import decode_json
from wme_async.web.key_file import create_key, stored_key

_T = TypeVar("_T")

_DIRECTORY = "downloads"
_PAGE = 50
_POLL = (0.05, 0.5)  # seconds: the first, and the longest
_BATCH_COLUMNS = ("batch_id", "status", "total_jobs", "completed_jobs", "failed_jobs", "name", "created_at")
_JOB_COLUMNS = ("job_id", "status", "progress.percent", "url")


class _Service:
    """The REST API of a service.

    Args:
        url: The URL of the service.
        key: The API key, where the service requires one.
        pool: Its connections; closed with the service.
    """

    def __init__(self, url: str, key: str | None, pool: SessionPool) -> None:
        self._url = f"{url.rstrip('/')}/api/v1/batch"
        self._headers = {"Accept": "application/json", **({} if key is None else {"X-API-Key": key.strip()})}
        self._pool = pool
        self._transport = Transport(None, pool=pool)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
        await self._pool.aclose()

    async def submit(self, urls: Sequence[str], **options: Any) -> Batch:
        body = msgspec.json.encode({"urls": list(urls), **options})
        created = await self._request("POST", "/download", body, type=web.Created)
        return await self.status(created.batch_id)

    async def status(self, batch_id: str) -> Batch:
        return await self._request("GET", f"/{quote(batch_id, safe='')}", type=Batch)

    async def list(self, *, limit: int, before: str | None) -> Listing:
        query = urlencode({"limit": limit, **({} if before is None else {"before": before})})
        return await self._request("GET", f"?{query}", type=Listing)

    async def cancel(self, batch_id: str) -> Batch:
        return await self._request("DELETE", f"/{quote(batch_id, safe='')}", type=Batch)

    async def pause(self, batch_id: str) -> Batch:
        return await self._request("POST", f"/{quote(batch_id, safe='')}/pause", type=Batch)

    async def resume(self, batch_id: str) -> Batch:
        return await self._request("POST", f"/{quote(batch_id, safe='')}/resume", type=Batch)

    async def retry(self, batch_id: str, *, jobs: Sequence[str] | None = None) -> Batch:
        body = None if jobs is None else msgspec.json.encode({"jobs": jobs})
        created = await self._request("POST", f"/{quote(batch_id, safe='')}/retry", body, type=web.Created)
        return await self.status(created.batch_id)

    async def _request(self, method: str, path: str, body: bytes | None = None, *, type: type[_T]) -> _T:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        response = await self._transport.request(
            Request(
                method=method,
                role="public",
                path=f"{self._url}{path}",
                headers=headers,
                body=body,
                idempotent=method == "GET",
            )
        )
        try:
            return decode_json(response.body, msgspec.json.Decoder(type))
        except DecodeError as error:
            raise DecodeError(f"{self._url} is not a batch service: {error.message}", record=response.body) from error


@contextlib.asynccontextmanager
async def _open(
    context: click.Context, *, jobs: bool = False, account: bool = False
) -> AsyncIterator["BatchManager | _Service"]:
    """Connect to the service, or open the manager of a folder.

    Only a command that waits for jobs runs them. Another one could not finish them, or would let them fail without the
    account that they need.
    """
    options = context.find_object(dict) or {}
    if options["server"]:
        async with contextlib.aclosing(
            _Service(options["server"], options["api_key"], base.session_pool(context))
        ) as service:
            yield service
        return
    async with _manager(context, options["directory"], options["hosts"], jobs=jobs, account=jobs or account) as manager:
        try:
            yield manager
        except UnknownBatch as error:
            raise NotFound(str(error), status=404) from error
        except WrongState as error:
            raise click.ClickException(str(error)) from error


@contextlib.asynccontextmanager
async def _manager(
    context: click.Context, directory: str, hosts: Sequence[str], *, jobs: bool = True, account: bool = True
) -> AsyncIterator[BatchManager]:
    """Open the manager of a folder, with a client for `wme:` URLs if it is needed and there are credentials."""
    async with contextlib.AsyncExitStack() as stack:
        client = None
        if account and base.has_account(context):
            client = await stack.enter_async_context(base.connect(context))
        proxy = context.find_root().params.get("proxy")
        manager = BatchManager(directory, client=client, allow_hosts=hosts, proxy=proxy)
        try:
            await manager.start(jobs=jobs)
        except (RuntimeError, DatabaseError) as error:  # another process uses the folder, or the database is damaged
            raise click.ClickException(str(error)) from error
        stack.push_async_callback(manager.aclose)
        yield manager


def _run(context: click.Context, work: Callable[["BatchManager | _Service"], Awaitable[_T]]) -> _T:
    async def main() -> _T:
        async with _open(context) as batches:
            return await work(batches)

    return base.run(main())


class _Group(base.Group):
    aliases: ClassVar[Mapping[str, str]] = {"ls": "status", "list": "status"}


@click.group("batch", cls=_Group)
@click.option("--server", metavar="URL", help="A service, as `wme-async serve` runs it. Without: a folder here.")
@click.option("--api-key", metavar="KEY", help="Of the service; also WME_BATCH_API_KEY.")
@click.option("--directory", default=_DIRECTORY, show_default=True, help="Without a service: where files go.")
@click.option("--allow-host", "hosts", multiple=True, metavar="HOST", help="May be fetched although it is private.")
@click.pass_context
def batch(context: click.Context, /, **options: Any) -> None:
    """Download many URLs as one job, here or with a service.

    Batches are stored: after an interruption `wme-async batch watch` resumes them.
    """
    context.obj = options


@batch.command()
@click.argument("urls", nargs=-1, metavar="[URL]…")
@click.option("-i", "--input", "source", metavar="FILE", help="Take the URLs from a file, one a line; - for a pipe.")
@click.option("--csv", type=click.Path(exists=True, dir_okay=False), help="Take the URLs from a CSV file.")
@click.option("--column", default="url", show_default=True, help="Its column.")
@click.option(
    "--concurrent-limit", type=click.IntRange(1, 10), default=3, show_default=True, help="Jobs at once at most."
)
@click.option("--stop-on-error", is_flag=True, help="The first failure cancels the rest.")
@click.option("--fail-on-error", is_flag=True, help="A failed job makes the batch failed.")
@click.option(
    "--path-template", metavar="TEMPLATE", help="Of {batch_id} {safe_title} {id} {ext} {uploader} {upload_date}."
)
@click.option("--timeout", type=click.FloatRange(min=1), help="Seconds that one job may run.")
@click.option("--webhook-url", metavar="URL", help="Receives a message when the batch ends.")
@click.option("--name", help="To recognise the batch by; else its first URL and how many more.")
@click.option("--detach", is_flag=True, help="With a service: do not wait for the end.")
@click.pass_context
def submit(
    context: click.Context,
    /,
    *,
    urls: Sequence[str],
    source: str | None,
    csv: str | None,
    column: str,
    fail_on_error: bool,
    detach: bool,
    **options: Any,
) -> None:
    """Submit a batch, and wait for its end.

    URLs are http(s):// or wme:, such as wme:batches/2025-07-16/05/enwiki_namespace_0 or
    wme:batches/2025-07-16/05?in_language.identifier=en for all of a list. `-` stands for those of standard input, one a
    line, and so does a pipe without any URL.
    """
    piped = "-" in urls or (not urls and source is None and csv is None and not sys.stdin.isatty())
    urls = [url for url in urls if url != "-"]
    if piped or source is not None:
        urls += lines_of("-" if piped or source is None else source)
    if csv is not None:
        urls += from_csv(Path(csv), column=column)
    if not urls:
        raise click.UsageError("no URLs: give some, -i FILE, or --csv FILE")
    options = {name: value for name, value in options.items() if value is not None}

    async def run() -> Batch:
        async with _open(context, jobs=not detach, account=True) as batches:
            batch = await batches.submit(urls, ignore_errors=not fail_on_error, **options)
            base.echo(batch.batch_id)
            if not detach:
                base.when_stopped(_go_on(context, batch.batch_id))
            return batch if detach else await _wait(batches, batch.batch_id)

    batch = base.run(run())
    if not detach:
        _finish(context, batch)


@batch.command()
@click.argument("batch_id", required=False)
@base.json_option
@click.pass_context
def status(context: click.Context, /, *, batch_id: str | None, as_json: bool) -> None:
    """Show a batch and its jobs, or all batches."""
    if batch_id is None:
        base.show(_run(context, _all), as_json=as_json, columns=_BATCH_COLUMNS, title="batches")
        return
    batch = _run(context, lambda batches: batches.status(batch_id))
    if as_json or not base.stdout.is_terminal:
        base.line(batch)
        return
    base.show(batch.jobs, as_json=False, columns=_JOB_COLUMNS, title=f"{batch.batch_id}: {batch.status}")
    _print_failures(batch)


async def _all(batches: "BatchManager | _Service") -> list[Batch]:
    """Return all batches, page by page, the newest first."""
    listed: list[Batch] = []
    before: str | None = None
    while True:
        page = await batches.list(limit=_PAGE, before=before)
        listed += page.batches
        before = page.next
        if before is None:
            return listed


@batch.command()
@click.argument("batch_id", required=False)
@click.pass_context
def watch(context: click.Context, /, *, batch_id: str | None) -> None:
    """Wait for the end of a batch; without an id, of all that have not ended. Without a service, run them."""

    async def run() -> list[Batch]:
        async with _open(context, jobs=True) as batches:
            names = [batch_id] if batch_id is not None else await _unfinished(batches)
            ended = []
            for name in names:
                # No other process can resume it while this one uses the folder.
                if isinstance(batches, BatchManager) and (await batches.status(name)).status is Status.PAUSED:
                    raise click.ClickException(
                        f"{name} is paused; resume it first: {_command(context, 'resume')} {name}"
                    )
                base.when_stopped(_go_on(context, name))
                ended.append(await _wait(batches, name))
            return ended

    ended = base.run(run())
    if not ended:
        base.echo("every batch has ended", err=True)
    _finish(context, *ended)


async def _unfinished(batches: "BatchManager | _Service") -> list[str]:
    """Return the batches that run or wait, the oldest first; where there is none, the newest paused one."""
    unfinished = [batch for batch in await _all(batches) if not batch.ended]
    running = [batch.batch_id for batch in reversed(unfinished) if batch.status is not Status.PAUSED]
    return running or [batch.batch_id for batch in unfinished[:1]]


def _simple(name: str, description: str) -> None:
    @batch.command(name, help=description)
    @click.argument("batch_id")
    @click.pass_context
    def command(context: click.Context, /, *, batch_id: str) -> None:
        _print_state(_run(context, lambda batches: getattr(batches, name)(batch_id)))


def _print_state(changed: Batch) -> None:
    base.echo(f"{changed.batch_id}  {changed.status}")


for _name, _description in (
    ("cancel", "Cancel a batch; finished files stay."),
    ("pause", "Pause a batch."),
    ("resume", "Resume a paused batch."),
):
    _simple(_name, _description)


@batch.command()
@click.argument("batch_id")
@click.argument("job_ids", metavar="[JOB_ID]...", nargs=-1)
@click.pass_context
def retry(context: click.Context, /, *, batch_id: str, job_ids: tuple[str, ...]) -> None:
    """Submit the failed jobs of a batch again, or these of them, as a new batch."""
    _print_state(_run(context, lambda batches: batches.retry(batch_id, jobs=job_ids or None)))


def _go_on(context: click.Context, batch_id: str) -> str:
    """Return what to do after an interruption: to submit again would make a second batch."""
    options = context.find_object(dict) or {}
    service = "the service goes on; see it with" if options["server"] else "go on with"
    return f"{service}: {_command(context, 'watch')} {batch_id}"


def _command(context: click.Context, name: str) -> str:
    """Return the command line of another command with the same service or folder."""
    options = context.find_object(dict) or {}
    words = ["wme-async", "batch"]
    if options["server"]:
        words += ["--server", options["server"]]
    elif options["directory"] != _DIRECTORY:
        words += ["--directory", options["directory"]]
    return shlex.join([*words, *(word for host in options["hosts"] for word in ("--allow-host", host)), name])


async def _wait(batches: "BatchManager | _Service", batch_id: str) -> Batch:
    delay, longest = _POLL
    with base.progress_bar(batch_id) as progress:
        while True:
            batch = await batches.status(batch_id)
            progress(batch)
            if batch.ended:
                return batch
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)


def _finish(context: click.Context, *ended: Batch) -> None:
    """Print the results of batches; exit with 1 unless all of their jobs have succeeded."""
    for batch in ended:
        counts = f"{batch.completed_jobs} succeeded, {batch.failed_jobs} failed, {batch.cancelled_jobs} cancelled"
        base.echo(f"{batch.status}: {counts}")
        _print_failures(batch)
    if any(batch.status is not Status.COMPLETED or batch.failed_jobs for batch in ended):
        context.exit(1)


def _print_failures(batch: Batch) -> None:
    for job in batch.jobs:
        if job.status is Status.FAILED:
            base.stderr.print(Text.assemble(("failed", "red"), f" {job.url}: {job.error}"), highlight=False)


@click.command("serve")
@click.option("--directory", default=_DIRECTORY, show_default=True, help="Where files go.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key",
    "keys",
    metavar="KEY",
    multiple=True,
    envvar=["WME_SERVE_API_KEY", "WME_SERVE_KEYS"],
    help="Require it of callers; also WME_SERVE_API_KEY, several separated by blanks.",
)
@click.option("--no-key", is_flag=True, help="Require none: on loopback only.")
@click.option("--new-key", is_flag=True, help="Create a key in place of the folder's, and print it.")
@click.option("--allow-host", "hosts", multiple=True, metavar="HOST", help="May be fetched although it is private.")
@click.pass_context
def serve(
    context: click.Context,
    /,
    *,
    directory: str,
    host: str,
    port: int,
    keys: Sequence[str],
    no_key: bool,
    new_key: bool,
    hosts: Sequence[str],
) -> None:
    """Run the batch service: a REST API, live events, files, metrics, and a page to look at.

    Without --api-key and --no-key it creates a key for the folder and prints it, once: the folder keeps its hash, so
    that the same key works after a restart.
    """
    if bool(keys) + no_key + new_key > 1:
        raise click.UsageError("--api-key, --no-key and --new-key exclude each other")

    async def run() -> None:
        async with _manager(context, directory, hosts) as manager:
            # Not before the folder is ours: another service of it may be running, with its key.
            api_keys = None if no_key else keys or [await in_thread(_key_of, manager.directory, new_key)]
            await web.serve(manager, host=host, port=port, api_keys=api_keys, on_ready=_print_url)

    base.when_stopped("unfinished batches go on when it is started again")
    base.run(run())


def _key_of(directory: Path, new: bool) -> str:
    """Return the key of a folder, or its hash: a new key is printed."""
    try:
        if not new and (key_hash := stored_key(directory)):
            message = "the API key is the one that was printed when this folder was first served; --new-key replaces it"
            base.stderr.print(message, highlight=False)
            return key_hash
        key = create_key(directory)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    base.echo(f"X-API-Key: {key}")
    return key


def _print_url(url: str) -> None:
    base.echo(f"serving at {url}")
