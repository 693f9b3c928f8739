"""Blocking work in a thread, and other work, that is waited for whatever becomes of the task."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeVar

__all__ = ["ShortWork", "ended", "in_thread", "long_in_thread"]

P = ParamSpec("P")
T = TypeVar("T")

_SLOW: Final = 0.005  # seconds; what looks at a few files takes a hundredth of that, unless the disk is far or busy
_TRUST: Final = 8  # quick ones in a row after which they are run in the event loop
_DISTRUST: Final = 100  # more of them after a slow one


class ShortWork:
    """Runs functions that take microseconds as a rule and now and then long, as all that touches files.

    The way to a thread and back costs several times what they do, which counts where files are small and many. So they
    begin in a thread, and once several in a row were quick they are run in the event loop. The first slow one there
    sends those after it back to a thread: the loop stands still for one of them, not for all.

    Args:
        clock: Seconds, with parts of a millisecond.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._quick = 0
        # There are hardly more threads; who waits here profits from what the first ones show.
        self._gate = asyncio.Semaphore(_TRUST)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function and return what it returns. If the task is cancelled, the function is waited for.

        Args:
            function: What to run.
            *args: Its arguments.
            **kwargs: More of them.

        Raises:
            BaseException: What the function raises.
        """
        work = partial(function, *args, **kwargs)
        if self._quick < _TRUST:
            loop = asyncio.get_running_loop()
            if self._loop is not loop:
                # A semaphore at which somebody has waited works in that loop alone, and there may be another one since.
                self._loop, self._gate = loop, asyncio.Semaphore(_TRUST)
            async with self._gate:
                if self._quick < _TRUST:
                    return await in_thread(lambda: self._timed(work))
        return self._timed(work)

    def _timed(self, work: Callable[[], T]) -> T:
        began = self._clock()
        try:
            return work()
        finally:
            if self._clock() - began < _SLOW:
                self._quick += 1
            else:
                self._quick = min(0, self._quick) if self._quick < _TRUST else _TRUST - _DISTRUST


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread of the loop's executor and return what it returns.

    A thread cannot be cancelled. If the task is, that takes effect once the function has ended: until then its locks
    are held, no file is closed and no buffer used again under its hands, and nothing that comes later overtakes it.

    Args:
        function: What to run.
        *args: Its arguments.
        **kwargs: More of them.

    Raises:
        BaseException: What the function raises; nothing of it where the task was cancelled meanwhile.
    """
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    await ended(work)
    return work.result()


async def long_in_thread(function: Callable[[Callable[[], bool]], T]) -> T:
    """Run a function in a thread, as `in_thread`, that may take minutes: it is told when nobody wants its result.

    Args:
        function: What to run. It is given a function that says whether the task has been cancelled, and then ends soon.

    Raises:
        BaseException: What the function raises; nothing of it where the task was cancelled meanwhile.
    """
    unwanted = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(None, function, unwanted.is_set)
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        unwanted.set()
        await _outlast(work)
        raise
    return work.result()


async def ended(work: "asyncio.Future[T]") -> None:
    """Wait until a future is done. A cancellation meanwhile takes effect once it is.

    Args:
        work: What to wait for. Its result or error is left alone, unless the task was cancelled meanwhile.
    """
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        await _outlast(work)
        raise


async def _outlast(work: "asyncio.Future[T]") -> None:
    from anyio import CancelScope  # noqa: PLC0415  # seldom needed, and slow to import

    # anyio's own cancellation would come again with every turn of the loop.
    with CancelScope(shield=True):
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # looked at, so that nobody complains about it
