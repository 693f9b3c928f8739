"""Tasks of a manager: changes that continue when their callers are cancelled, chores, and helpers that start again.

An error in one of them is its own failure: it never ends the others.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from wme_async._tasks import is_cancelling
from wme_async._transport import Transport
from wme_async._transport.retry import jittered_delay
from wme_async.jobs.model import ManagerClosed

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_T = TypeVar("_T")


def retry_pause(transport: Transport, failures: int) -> float:
    """Return the seconds to wait after trouble with the disk or another passing failure, by the retry policy.

    Args:
        transport: Has the policy.
        failures: Failures in a row, at least 1.
    """
    # Never zero, whatever the policy: the disk is not tried in a busy loop.
    return max(0.01, jittered_delay(transport.retry, failures, transport.random.random))


async def restarted(work: Callable[[], Awaitable[None]], transport: Transport) -> None:
    """Run a helper that never ends by itself, again after an error.

    Args:
        work: The helper.
        transport: Has the policy of pauses.
    """
    for failures in itertools.count(1):
        try:
            await work()
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            logger.warning("a helper of the batch manager was cancelled from within; it starts again")
        except Exception:
            logger.exception("a helper of the batch manager failed; it starts again")
        await asyncio.sleep(retry_pause(transport, failures))


class Changes:
    """Runs changes one at a time, in tasks of a group."""

    def __init__(self) -> None:
        self.chores: set[asyncio.Task[None]] = set()
        self.group: asyncio.TaskGroup | None = None
        self.closed: asyncio.Event = asyncio.Event()
        self.lock: asyncio.Lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[None, None]:
        """Let no other change happen within the block.

        Raises:
            ManagerClosed: No more changes are taken.
        """
        self._check_open()
        async with self.lock:
            yield

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise ManagerClosed("the batch manager was closed")

    async def call(
        self,
        work: Callable[[], Awaitable[_T]],
        within: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    ) -> _T:
        """Run a function in a task of its own, which continues if the caller is cancelled.

        Args:
            work: The function. It does not run if the caller is cancelled before the block is entered.
            within: Returns the context manager of the block in which it runs.

        Raises:
            ManagerClosed: No more changes are taken, or the group has ended.
            Exception: Any exception of the function.
        """
        self._check_open()
        result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                async with within():
                    if result.done():
                        return
                    value = await work()
                    if not result.done():
                        result.set_result(value)
            except Exception as error:  # noqa: BLE001  # it belongs to the caller
                if not result.done():
                    result.set_exception(error)

        def end(_task: asyncio.Task[None]) -> None:
            if not result.done():
                result.set_exception(ManagerClosed("the batch manager has ended during this change"))

        self.start(run()).add_done_callback(end)
        return await result

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a chore; an error is logged."""

        async def run() -> None:
            try:
                await work
            except Exception:
                logger.exception("a chore of the batch manager failed")

        assert self.group is not None
        task = self.group.create_task(run())
        self.chores.add(task)
        task.add_done_callback(self.chores.discard)
        return task
