"""A plan on the processes of this machine."""

import asyncio
import multiprocessing
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from wme_async._arguments import check_numbers
from wme_async._client.bulk import ChunkTask, Manifest, Plan, TaskResult
from wme_async._tasks import in_thread
from wme_async.tasks.chunk import run_task
from wme_async.tasks.driver import OnReplaced, ProgressHook, Run, drive

__all__ = ["run_plan"]

_RETRIES: Final = 3
_MOST: Final = 4  # workers by default: each takes up to some hundred MB
_BREAKS: Final = 5  # times in a row that workers may die without any task done


async def run_plan(
    plan: Plan,
    workers: int | None = None,
    progress: ProgressHook | None = None,
    on_replaced: OnReplaced = "restart",
) -> Manifest:
    """Run all tasks of a plan on processes of this machine, and write the manifest.

    Tasks that are done are skipped, so that the same call continues after any interruption, and a call on a finished
    plan does nothing. A worker that is killed is replaced, and its task run again. Each process makes its client by
    `Client.from_env()`; they share one sign-in.

    The processes are spawned: a script calls this behind `if __name__ == "__main__":`.

    Args:
        plan: From `wme.snapshots.plan`.
        workers: Processes; by default as many as processors, at most 4.
        progress: Receives `PlanProgress` at the start and after each task; it may be a coroutine function.
        on_replaced: When the snapshot is exported anew meanwhile: `restart` plans the new export, checks its cost, and
            begins anew, at most three times; `raise` raises `Replaced`. Chunks of two exports are never mixed.

    Returns:
        The manifest, of the export that was read in the end.

    Raises:
        Replaced: The snapshot was exported anew too often, or at all with `on_replaced="raise"`.
        QuotaExceeded: The remaining tasks do not fit into the month's allowance. Nothing was spent.
        VersionConflict: The output is there with another type, or the folder is of another snapshot.
        BrokenProcessPool: Workers were killed again and again without getting anything done, as for lack of memory.
        TypeError: An argument is of another type.
        ValueError: An argument is out of range, or the type cannot be imported.
        WMEError: A chunk cannot be read, also after some attempts.
        OSError: The output cannot be written.
    """
    check_numbers(whole=True, minimum=1, workers=workers)
    number = workers or min(os.cpu_count() or 1, _MOST)
    return await drive(plan, _Processes(number), progress=progress, on_replaced=on_replaced)


class _Processes:
    """The engine: a pool of processes, made anew when one of them was killed, which breaks all of it."""

    retries = _RETRIES

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: _Pool | None = None
        self._token_file: str | None = None
        self._breaks = 0

    def admits(self, _task: ChunkTask, active: Collection[ChunkTask]) -> bool:
        return len(active) < self._workers

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Run]:
        with tempfile.TemporaryDirectory(prefix="wme-tasks-") as folder:
            if os.environ.get("WME_USERNAME") and not os.environ.get("WME_TOKEN_FILE"):
                self._token_file = str(Path(folder, "tokens.json"))
            try:
                yield self._run
            finally:
                pool, self._pool = self._pool, None
                if pool is not None:
                    await in_thread(pool.close)

    async def _run(self, task: ChunkTask) -> TaskResult:
        while True:
            pool = self._pool
            if pool is None:
                pool = self._pool = _Pool(self._workers, self._token_file)
            try:
                result = await asyncio.wrap_future(pool.executor.submit(run_task, task))
            except BrokenProcessPool:
                if self._pool is pool:
                    self._pool = None
                    await in_thread(pool.close)
                    self._breaks += 1
                if self._breaks >= _BREAKS:
                    raise
            else:
                self._breaks = 0
                return result


class _Pool:
    """A pool of processes that end at once when it is closed, and when the process that made it dies."""

    def __init__(self, workers: int, token_file: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        # Nothing is sent. Closing the other end, which the system does for a process that dies, ends the workers.
        self._reader, self._writer = context.Pipe(duplex=False)
        self.executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(self._reader, token_file)
        )

    def close(self) -> None:
        """End the workers, whatever they do."""
        self._writer.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


def _begin(lifeline: Connection, token_file: str | None) -> None:
    """Prepare a worker."""
    if token_file is not None:
        os.environ["WME_TOKEN_FILE"] = token_file
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
