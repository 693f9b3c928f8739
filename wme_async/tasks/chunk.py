"""One task: a chunk of a snapshot becomes a file."""

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from wme_async._arguments import check_type
from wme_async._client.bulk import ChunkTask, TaskResult
from wme_async._client.client import Client
from wme_async._download.etags import plain_md5
from wme_async._telemetry import operation
from wme_async._transport import SessionPool
from wme_async.errors import DecodeError, IntegrityError, NotFound, Replaced
from wme_async.tasks.output import Output, check_snapshot
from wme_async.tasks.process import run_in_process
from wme_async.tasks.target import open_target

__all__ = ["arun_task", "environment_client", "run_task"]

logger: logging.Logger = logging.getLogger("wme_async.tasks")

_LOGGED: Final = 5


def run_task(task: ChunkTask) -> TaskResult:
    """Run one task; for any engine that calls functions: process pools, Dask, Ray, a pod of Kubernetes.

    It can be run again at any time, also twice at once: an output that is complete is not written again. All calls of a
    process, from any thread, share one client, made by `Client.from_env()`. It uses the proxies of the environment, and
    with `WME_TOKEN_FILE` all processes of a host share its sign-in.

    Args:
        task: From `wme.snapshots.plan`.

    Raises:
        Replaced: The server has another export. No task of this plan can run any more: make a new plan.
        VersionConflict: The output is there already with another type or format.
        ValueError: The type cannot be imported, or the environment lacks credentials.
        TypeError: It is not a task.
        QuotaExceeded: The month's allowance is used up.
        WMEError: The chunk cannot be read.
        OSError: The output cannot be written.
    """
    _check(task)
    try:
        return run_in_process(lambda client: arun_task(task, client), environment_client)
    except Exception as error:
        _detach(error)
        raise


async def arun_task(task: ChunkTask, wme: Client | None = None) -> TaskResult:
    """Run one task, as `run_task` does.

    Args:
        task: From `wme.snapshots.plan`.
        wme: The client; by default one of its own, from the environment.

    Raises:
        Exception: As for `run_task`.
    """
    _check(task)
    target = open_target(task.to)
    output = Output(task, target)
    if (result := await output.find()) is not None:
        return result
    await check_snapshot(target, task.snapshot)
    await target.prepare(task.generation)
    async with AsyncExitStack() as stack:
        client = wme if wme is not None else await stack.enter_async_context(environment_client())
        snapshots: Any = client.snapshots if task.collection == "snapshots" else client.wikidata.snapshots
        with operation(client.telemetry, "task", snapshot=task.snapshot, chunk=task.chunk) as report:
            result = await _run(task, output, snapshots.chunks(task.snapshot))
            report(records=result.rows, bad_records=result.bad)
            return result


@asynccontextmanager
async def environment_client() -> AsyncIterator[Client]:
    """Open a client of the environment, with the settings that the command line takes from there, too.

    That is the file of tokens, `WME_TOKEN_FILE`, and the proxy: `WME_PROXY`, or else those of `HTTPS_PROXY` and so on.
    """
    proxy = os.environ.get("WME_PROXY") or None
    async with (
        SessionPool(proxy=proxy, trust_env=proxy is None) as pool,
        Client.from_env(token_file=os.environ.get("WME_TOKEN_FILE") or None, pool=pool) as client,
    ):
        yield client


async def _run(task: ChunkTask, output: Output, chunks: Any) -> TaskResult:
    begin = time.monotonic()
    try:
        async with chunks.read(task.chunk, type=output.type, md5=task.md5, on_bad_record=_BadRecordLog()) as records:
            await output.write(records)
            statistics = records.statistics()
    except (NotFound, IntegrityError) as error:
        await _check_version(task, chunks, error)
        raise
    return await output.complete(rows=statistics.records, bad=statistics.bad_records, seconds=time.monotonic() - begin)


async def _check_version(task: ChunkTask, chunks: Any, error: Exception) -> None:
    """Raise if an error means that the chunk was replaced while it was read, or removed by the next export."""
    try:
        md5 = plain_md5((await chunks.head(task.chunk)).etag)
    except NotFound:
        md5 = None
    else:
        if md5 is None or md5 == task.md5:
            return
    raise Replaced(
        f"{task.chunk} had version {task.md5} and {f'has {md5} now' if md5 else 'does not exist now'}: the snapshot is "
        "exported anew; make a new plan",
        expected=task.md5,
        got=md5,
    ) from error


class _BadRecordLog(msgspec.Struct):
    """Logs the first records of a chunk that are left out; the result counts all of them."""

    count: int = 0

    def __call__(self, error: DecodeError) -> None:
        self.count += 1
        if self.count <= _LOGGED:
            logger.warning("left out: %s", error)
        if self.count == _LOGGED:
            logger.warning("further records of this chunk that do not decode are left out without a log line")


def _detach(error: Exception) -> None:
    """Replace the chain of an error by a note.

    Dask pickles an error with its chain. A chain may not be picklable, such as a group that holds the error itself, and
    then the error arrives as a plain `Exception`.
    """
    if error.__cause__ is not None:
        error.add_note(f"caused by {error.__cause__!r}")
    error.__cause__ = error.__context__ = None


def _check(task: object) -> None:
    check_type("task", task, ChunkTask, "a ChunkTask of wme.snapshots.plan")
