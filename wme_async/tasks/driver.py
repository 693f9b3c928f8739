"""The loop of every engine: run the tasks that are not done, retry, begin again with a new export, finish."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, TypeAlias

import msgspec

from wme_async._arguments import check_choice, check_functions, check_type
from wme_async._client.bulk import ChunkTask, Manifest, Plan, TaskResult
from wme_async._client.quota import Cost
from wme_async._tasks import call_hook
from wme_async._transport.retry import is_transient
from wme_async.errors import ArchiveError, IntegrityError, Replaced, WMEError
from wme_async.tasks.chunk import environment_client
from wme_async.tasks.finish import find_results, finish
from wme_async.tasks.output import Output, check_snapshot
from wme_async.tasks.target import open_target

__all__ = ["Engine", "OnReplaced", "PlanProgress", "ProgressHook", "Run", "drive", "is_temporary"]

logger: logging.Logger = logging.getLogger("wme_async.tasks")

OnReplaced: TypeAlias = Literal["restart", "raise"]

_RESTARTS: Final = 3
_PAUSE: Final = 2.0  # seconds before a chunk that was away is looked for again in the same export


class PlanProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a plan is.

    Attributes:
        tasks: Tasks that are done.
        tasks_total: Tasks in all.
        rows: Records written.
        bad: Records left out, since they could not be decoded.
        done: Bytes of the archives that are done.
        total: Bytes of all archives.
        rate: Bytes per second, since this run began.
        eta: Seconds until the end at this rate, None where unknown.
        restarts: How often the snapshot was exported anew meanwhile, and all of it begun again.
        generation: Of the export.
    """

    tasks: int
    tasks_total: int
    rows: int
    bad: int
    done: int
    total: int
    rate: float
    eta: float | None
    restarts: int
    generation: str


ProgressHook: TypeAlias = Callable[[PlanProgress], Awaitable[None] | None]

Run: TypeAlias = Callable[[ChunkTask], Awaitable[TaskResult]]
"""Runs one task in an engine."""


class Engine(Protocol):
    """Where tasks run.

    Attributes:
        retries: How often a task is run again after an error that another attempt may cure.
    """

    retries: int

    def open(self) -> AbstractAsyncContextManager[Run]:
        """Start the engine; its end stops tasks that are still running."""
        ...  # pyright takes a body of words alone for one that returns nothing

    def admits(self, task: ChunkTask, active: Collection[ChunkTask], /) -> bool:
        """Return whether a task may begin beside those that are running."""
        ...  # pyright takes a body of words alone for one that returns nothing


async def drive(plan: Plan, engine: Engine, *, progress: ProgressHook | None, on_replaced: OnReplaced) -> Manifest:
    """Run a plan to its end; see `run_plan`.

    Args:
        plan: The plan.
        engine: Where tasks run.
        progress: Receives `PlanProgress` at the start and after each task.
        on_replaced: Whether to begin again with a new export.
    """
    check_type("plan", plan, Plan, "a Plan of wme.snapshots.plan")
    check_functions(progress=progress)
    check_choice("on_replaced", on_replaced, ("restart", "raise"))
    restarts = 0
    while True:
        try:
            await _Generation(plan, engine, progress, restarts).run()
            return await finish(plan)
        except Replaced as error:
            if on_replaced == "raise" or restarts >= _RESTARTS:
                error.add_note(f"the snapshot was exported anew {restarts + 1} times while it was read")
                raise
            restarts += 1
            logger.warning("%s", error)
            plan = await _plan_again(plan)


class _Generation:
    """One run of the tasks of one export that are not done."""

    def __init__(self, plan: Plan, engine: Engine, progress: ProgressHook | None, restarts: int) -> None:
        self._plan = plan
        self._engine = engine
        self._progress = progress
        self._restarts = restarts
        self._results: dict[str, TaskResult] = {}
        self._begin = time.monotonic()
        self._done_before = 0

    async def run(self) -> None:
        plan = self._plan
        target = open_target(plan.to)
        await check_snapshot(target, plan.snapshot)
        results = await find_results(plan)
        # An output with other columns raises, before anything is spent.
        for task in plan.tasks:
            if results[task.chunk] is not None and (result := await Output(task, target).find()) is not None:
                self._results[task.chunk] = result
        self._done_before = sum(task.size for task in plan.tasks if task.chunk in self._results)
        todo = [task for task in plan.tasks if task.chunk not in self._results]
        await self._report()
        if not todo:
            return
        await _check_cost(plan, len(todo))
        async with self._engine.open() as run:
            await self._run_all(todo, run)

    async def _run_all(self, tasks: Iterable[ChunkTask], run: Run) -> None:
        waiting, failures = deque(tasks), Counter[str]()
        active: dict[asyncio.Future[TaskResult], ChunkTask] = {}
        failure: BaseException | None = None
        try:
            while active or (waiting and failure is None):
                while waiting and failure is None and self._engine.admits(waiting[0], active.values()):
                    task = waiting.popleft()
                    active[asyncio.ensure_future(run(task))] = task
                done, _ = await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    task = active.pop(future)
                    error = _error_of(future)
                    if isinstance(error, Replaced):
                        raise error
                    if error is None:
                        self._results[task.chunk] = future.result()
                        await self._report()
                    elif is_temporary(error) and failures[task.chunk] < self._engine.retries:
                        failures[task.chunk] += 1
                        logger.warning("%s is tried again: %s", task.chunk, error)
                        waiting.append(task)
                    else:
                        # Those that are running have been paid for, and go on.
                        failure = failure or error
            if failure is not None:
                raise failure
        finally:
            for future in active:
                future.cancel()
            # Their errors are of no use any more, and count as retrieved.
            await asyncio.gather(*active, return_exceptions=True)

    async def _report(self) -> None:
        if self._progress is None:
            return
        results, plan = self._results, self._plan
        done = sum(task.size for task in plan.tasks if task.chunk in results)
        rate = (done - self._done_before) / max(time.monotonic() - self._begin, 1e-3)
        await call_hook(
            self._progress,
            PlanProgress(
                tasks=len(results), tasks_total=len(plan.tasks),
                rows=sum(result.rows for result in results.values()),
                bad=sum(result.bad for result in results.values()),
                done=done, total=plan.bytes, rate=rate, eta=(plan.bytes - done) / rate if rate else None,
                restarts=self._restarts, generation=plan.generation,
            ),
        )  # fmt: skip


def _error_of(future: "asyncio.Future[Any]") -> BaseException | None:
    cancelled = RuntimeError("a task was cancelled, and the plan was not; run the plan again")
    return cancelled if future.cancelled() else future.exception()


def is_temporary(error: BaseException) -> bool:
    """Return whether another attempt may cure an error: the network, the service, bytes damaged on the way."""
    return isinstance(error, ArchiveError | IntegrityError) or (isinstance(error, WMEError) and is_transient(error))


async def _check_cost(plan: Plan, tasks: int) -> None:
    """Raise if the remaining tasks do not fit into the month's allowance."""
    if plan.cost.pool is not None:
        async with environment_client() as client:
            await client.auth.check(Cost(pool=plan.cost.pool, requests=tasks))


async def _plan_again(plan: Plan) -> Plan:
    """Plan the export that the server has now."""
    task = plan.tasks[0]
    async with environment_client() as client:
        snapshots: Any = client.snapshots if task.collection == "snapshots" else client.wikidata.snapshots
        new: Plan = await snapshots.plan(task.snapshot, to=task.to, type=task.type, format=task.format)
    if new.generation == plan.generation:
        await asyncio.sleep(_PAUSE)
    return new
