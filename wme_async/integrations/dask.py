"""Bulk work on a Dask cluster (extra `dask`: `pip install 'wme-async[dask]'`).

    from wme_async.integrations.dask import run_plan

    async with distributed.Client(address, asynchronous=True) as dask:
        manifest = await run_plan(plan, dask)

The workers need this package, the module of the type, and the credentials in their environment.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from wme_async._arguments import check_numbers
from wme_async._client.bulk import ChunkTask, Manifest, Plan, TaskResult
from wme_async.tasks.chunk import run_task
from wme_async.tasks.driver import OnReplaced, ProgressHook, Run, drive

try:
    import distributed
except ImportError as _error:
    raise ImportError("Dask needs the extra `dask`: pip install 'wme-async[dask]'") from _error

__all__ = ["run_plan"]

logger: logging.Logger = logging.getLogger("wme_async.tasks")

_GIB: Final = 1 << 30
_WATCH: Final = 30.0  # seconds


async def run_plan(
    plan: Plan,
    client: Any,
    in_flight_bytes: int = 4 * _GIB,
    retries: int = 3,
    progress: ProgressHook | None = None,
    on_replaced: OnReplaced = "restart",
) -> Manifest:
    """Run all tasks of a plan on a Dask cluster, and write the manifest; otherwise as `wme_async.tasks.run_plan`.

    A worker that is lost is replaced by its nanny, and its task runs again. As long as the cluster has no worker the
    tasks wait, which is logged. Results are taken from the cluster as soon
    as they are there, so that none is lost with a worker. The process of the caller needs credentials, too: it checks
    the allowance and plans a new export.

    Args:
        plan: From `wme.snapshots.plan`.
        client: A `distributed.Client`, preferably with `asynchronous=True`.
        in_flight_bytes: Bytes of archives that are handed to the cluster at a time, at least one; they should be enough
            for all threads of the workers.
        retries: How often a task is run again after an error that another attempt may cure, or after several workers
            were lost with it.
        progress: Receives `PlanProgress` at the start and after each task; it may be a coroutine function.
        on_replaced: When the snapshot is exported anew meanwhile: `restart`, at most three times, or `raise`.

    Raises:
        Exception: As `wme_async.tasks.run_plan` does; and `distributed.KilledWorker`.
        TypeError: An argument is of another type.
        ValueError: An argument is out of range.
    """
    check_numbers(whole=True, optional=False, minimum=1, unit="bytes", in_flight_bytes=in_flight_bytes)
    check_numbers(whole=True, optional=False, minimum=0, retries=retries)
    if not isinstance(client, distributed.Client):
        raise TypeError(f"client must be a distributed.Client, not {client!r}")
    return await drive(plan, _Cluster(client, in_flight_bytes, retries), progress=progress, on_replaced=on_replaced)


class _Cluster:
    """The engine: a Dask cluster."""

    def __init__(self, client: Any, in_flight_bytes: int, retries: int) -> None:
        self.retries = retries
        self._caller_client = client
        self._client = client
        self._in_flight_bytes = in_flight_bytes

    def admits(self, task: ChunkTask, active: Collection[ChunkTask]) -> bool:
        return not active or task.size + sum(other.size for other in active) <= self._in_flight_bytes

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Run]:
        async with AsyncExitStack() as stack:
            if not self._caller_client.asynchronous:
                # One of another thread: its futures cannot be awaited here.
                connect: Any = distributed.Client
                address, security = self._caller_client.scheduler.address, self._caller_client.security
                self._client = await stack.enter_async_context(
                    connect(address, asynchronous=True, security=security, set_as_default=False)
                )
            watching = asyncio.create_task(self._watch(), name="watch the workers of a Dask cluster")
            try:
                yield self._run
            finally:
                watching.cancel()
                await asyncio.wait([watching])

    async def _watch(self) -> None:
        """Log that the cluster has no worker, since tasks then wait for as long as it takes."""
        while True:
            await asyncio.sleep(_WATCH)
            if not self._client.scheduler_info()["workers"]:
                logger.warning("the Dask cluster has no worker, and the tasks wait for one")

    async def _run(self, task: ChunkTask) -> TaskResult:
        lost = 0
        while True:
            future = self._client.submit(run_task, task, pure=False)
            try:
                result: TaskResult = await future
            except distributed.KilledWorker:
                lost += 1
                if lost > self.retries:
                    raise
            else:
                return result
            finally:
                # Also without waiting for its end, if this task is cancelled: the work of a chunk that was replaced.
                future.release()
