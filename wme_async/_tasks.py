"""Work in threads, waiting that a cancellation does not cut short, and the first cause of a group of errors."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

__all__ = [
    "AdaptiveExecutor",
    "first_cause",
    "in_thread",
    "long_in_thread",
    "raise_first_cause",
    "wait_done",
    "wait_shielded",
]

P = ParamSpec("P")
T = TypeVar("T")

_SLOW: Final = (
    0.005  # seconds; a call that looks at a few files takes a hundredth of that, unless the disk is far or busy
)
_TRUST: Final = 8  # quick calls in a row after which they run in the event loop
_DISTRUST: Final = 100  # more of them after a slow one


class AdaptiveExecutor:
    """Runs functions that usually take microseconds and sometimes long, as everything that touches files.

    Handing a call to a thread costs several times what such a call does, which counts where files are small and many.
    Calls start in a thread; after several quick ones in a row they run in the event loop. The first slow call there
    sends the following ones back to a thread, so the loop is blocked by one slow call at most.

    Args:
        clock: Seconds, with parts of a millisecond.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._quick = 0
        # The executor has few more threads than this, and callers that wait here learn from the first results.
        self._gate = asyncio.Semaphore(_TRUST)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function and return its result. If the task is cancelled, wait for the function first.

        Args:
            function: The function.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            BaseException: Any exception of the function.
        """
        work = partial(function, *args, **kwargs)
        if self._quick < _TRUST:
            loop = asyncio.get_running_loop()
            if self._loop is not loop:
                # A semaphore that a task has waited for belongs to that task's loop, which may not be this one.
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
    """Run a function in a thread of the loop's executor and return its result.

    A thread cannot be cancelled. A cancellation of the task takes effect once the function has returned, so its locks
    are held until then, no file is closed and no buffer reused while it works, and no later call overtakes it.

    Args:
        function: The function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        BaseException: Any exception of the function, unless the task was cancelled meanwhile.
    """
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    await wait_done(work)
    return work.result()


async def long_in_thread(function: Callable[[Callable[[], bool]], T]) -> T:
    """Run a function that may take minutes in a thread, as `in_thread` does, and tell it when the task is cancelled.

    Args:
        function: The function. Its argument is a function that returns whether the task has been cancelled; it should
            then return soon.

    Raises:
        BaseException: Any exception of the function, unless the task was cancelled meanwhile.
    """
    cancelled = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(None, function, cancelled.is_set)
    await wait_done(work, on_cancel=cancelled.set)
    return work.result()


async def wait_done(
    future: "asyncio.Future[Any]", *, on_cancel: Callable[[], object] | None = None, grace: float | None = None
) -> None:
    """Wait until a future is done. A cancellation of the task meanwhile takes effect once it is.

    Args:
        future: The future. Its result or exception is left alone, unless the task was cancelled meanwhile.
        on_cancel: Called at each cancellation, to make the future end soon.
        grace: Seconds from the first cancellation after which the future is cancelled, and again after each more.
    """
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        await wait_shielded(future, on_cancel=on_cancel, grace=grace)
        raise


async def wait_shielded(
    future: "asyncio.Future[Any]", *, on_cancel: Callable[[], object] | None = None, grace: float | None = None
) -> None:
    """Wait until a future is done in a task that may be cancelled already; a further cancellation is raised afterwards.

    An anyio scope delivers its cancellation again in every turn of the event loop. It is shielded from here, so that
    waiting does not keep the processor busy.

    Args:
        future: The future. Its exception is retrieved: nobody may be left to do it.
        on_cancel: Called at each cancellation.
        grace: Seconds after which the future is cancelled, and again after each more.
    """
    from anyio import CancelScope  # noqa: PLC0415  # seldom needed, and slow to import

    deadline = None if grace is None else asyncio.get_running_loop().time() + grace
    cancellation: asyncio.CancelledError | None = None
    with CancelScope(shield=True):
        while not future.done():
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.wait([future])
            except TimeoutError:
                future.cancel()
                deadline = asyncio.get_running_loop().time() + (grace or 0.0)
            except asyncio.CancelledError as error:
                cancellation = error
                if on_cancel is not None:
                    on_cancel()
    if not future.cancelled():
        future.exception()
    if cancellation is not None:
        raise cancellation


def first_cause(error: BaseException) -> BaseException:
    """Return the first exception in a group of exceptions, however deep; another exception is returned as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def raise_first_cause() -> Iterator[None]:
    """Raise the first exception of a task group instead of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = first_cause(group)
        raise error from error.__cause__
