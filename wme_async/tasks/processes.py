"""A plan on the processes of this machine."""

import asyncio
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Collection
from concurrent.futures import Future, ProcessPoolExecutor
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

_MOST: Final = 4  # workers by default: each takes up to some hundred MB
_KILLS: Final = 5  # times that a worker may be killed while it runs the same task


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
        BrokenProcessPool: Workers were killed five times while they ran the same task, as for lack of memory.
        TypeError: An argument is of another type.
        ValueError: An argument is out of range, or the type cannot be imported.
        WMEError: A chunk cannot be read, also after some attempts.
        OSError: The output cannot be written.
    """
    check_numbers(whole=True, minimum=1, workers=workers)
    engine = _Processes(workers or min(os.cpu_count() or 1, _MOST))
    return await drive(plan, engine, progress=progress, on_replaced=on_replaced)


class _Processes:
    """The engine: workers, each with a pool of one process, since a pool breaks as a whole if a process is killed."""

    retries = 3

    def __init__(self, workers: int) -> None:
        self._number = workers
        self._idle: list[_Worker] = []

    def admits(self, _task: ChunkTask, active: Collection[ChunkTask]) -> bool:
        return len(active) < self._number

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Run]:
        with tempfile.TemporaryDirectory(prefix="wme-tasks-") as folder:
            shares_tokens = os.environ.get("WME_USERNAME") and not os.environ.get("WME_TOKEN_FILE")
            token_file = str(Path(folder, "tokens.json")) if shares_tokens else None
            workers = [_Worker(token_file) for _ in range(self._number)]
            self._idle = list(workers)
            try:
                yield self._run
            except BaseException:
                for worker in workers:
                    worker.stop()
                raise
            finally:
                for worker in workers:
                    await in_thread(worker.join)

    async def _run(self, task: ChunkTask) -> TaskResult:
        worker = self._idle.pop()
        kills = 0
        try:
            while True:
                try:
                    return await asyncio.wrap_future(worker.submit(task))
                except BrokenProcessPool as error:
                    kills += 1
                    worker.stop()
                    await in_thread(worker.join)
                    if kills >= _KILLS:
                        error.add_note(
                            f"{kills} workers ended while they ran {task.chunk}: for lack of memory, or because the "
                            'script calls run_plan without `if __name__ == "__main__":`'
                        )
                        raise
        finally:
            self._idle.append(worker)


class _Worker:
    """A process that runs one task after the other.

    It ends at once when it is stopped, and when the process that made it dies.

    Args:
        token_file: Where it shares its sign-in.
    """

    def __init__(self, token_file: str | None) -> None:
        self._token_file = token_file
        self._pool: ProcessPoolExecutor | None = None
        self._pipe: tuple[Connection, Connection] | None = None

    def submit(self, task: ChunkTask) -> Future[TaskResult]:
        """Begin a task, in a new process if there is none."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            # Nothing is sent. Closing the other end, which the system does for a process that dies, ends the worker.
            self._pipe = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                1, mp_context=context, initializer=_begin, initargs=(self._pipe[0], self._token_file)
            )
        return self._pool.submit(run_task, task)

    def stop(self) -> None:
        """Let the process end, whatever it does. A new one may be started afterwards."""
        if self._pipe is not None:
            self._pipe[1].close()

    def join(self) -> None:
        """Wait for the end of the process, once its task has ended if it was not stopped."""
        pool, pipe, self._pool, self._pipe = self._pool, self._pipe, None, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        if pipe is not None:
            pipe[0].close()


def _begin(lifeline: Connection, token_file: str | None) -> None:
    """Prepare a worker. Ctrl-C of a terminal reaches it, too, and is for the process that made it to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if token_file is not None:
        os.environ["WME_TOKEN_FILE"] = token_file
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
