"""Work in threads, waiting that a cancellation does not cut short, and the first cause of a group of errors."""

import asyncio
import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Final, NoReturn, ParamSpec, Self, TypeVar

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

_SLOW: Final = (
    0.005  # seconds; a call that looks at a few files takes a hundredth of that, unless the disk is far or busy
)
_SERVER_POLL: Final = 0.2  # seconds
_TRUST: Final = 8  # quick calls in a row after which they run in the event loop
_DISTRUST: Final = 100  # more of them after a slow one


class AdaptiveExecutor:
    """Runs functions that usually take microseconds and sometimes long, as everything that touches files.

    Handing a call to a thread costs several times as much as the call, which counts for many small files.
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


async def open_in_thread(function: Callable[[], T], close: Callable[[T], object]) -> T:
    """Open something in a thread and return it; close it again if the task is cancelled meanwhile.

    Args:
        function: Opens it.
        close: Closes it, in a thread too.

    Raises:
        BaseException: Any exception of the function, unless the task was cancelled meanwhile.
    """
    opened: list[T] = []
    try:
        await in_thread(lambda: opened.append(function()))
    except asyncio.CancelledError:
        for resource in opened:
            await in_thread(close, resource)
        raise
    return opened[0]


async def long_in_thread(function: Callable[[Callable[[], bool]], T]) -> T:
    """Run a function that may take minutes in a thread, as `in_thread` does, and let it detect the task's cancellation.

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


def uvicorn_server() -> object:
    """Return the server of uvicorn that runs this process, whose method handles SIGTERM; of another server, any object.

    Its attributes `should_exit` and `server_state` are uvicorn's own: read them with `getattr` and a default.
    """
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)


async def wait_server_shutdown() -> None:
    """Wait until uvicorn, if it runs this process, shuts down; with another server, until cancelled.

    ASGI has no message for it: the lifespan ends after the last response, and a response that never ends would hold the
    server up.
    """
    while getattr(uvicorn_server(), "should_exit", False) is not True:  # noqa: ASYNC110  # nothing to wait on
        await asyncio.sleep(_SERVER_POLL)


async def wait_done(
    future: "asyncio.Future[Any]", *, on_cancel: Callable[[], object] | None = None, grace: float | None = None
) -> None:
    """Wait until a future is done. A cancellation of the task meanwhile takes effect once it is.

    Args:
        future: The future. Its exception is not retrieved, unless the task was cancelled meanwhile.
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


async def end_task(task: "asyncio.Task[Any]", *, again: bool = False) -> None:
    """Cancel a task whose result nobody reads any more, and wait until it is done.

    Args:
        task: The task. Its exception counts as retrieved.
        again: Cancel it once more at each cancellation of the present task.
    """
    task.cancel()
    await wait_done(task, on_cancel=task.cancel if again else None)
    if not task.cancelled():
        task.exception()


async def wait_shielded(
    future: "asyncio.Future[Any]", *, on_cancel: Callable[[], object] | None = None, grace: float | None = None
) -> None:
    """Wait until a future is done in a task that may be cancelled already; a further cancellation is raised afterwards.

    An anyio scope delivers its cancellation again in every turn of the event loop. It is shielded from here, so that
    waiting does not keep the processor busy.

    Args:
        future: The future. Its exception is retrieved, in case no other code does so.
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


def settle(future: "asyncio.Future[None] | None") -> None:
    """Wake the task that waits for a future, if one does."""
    if future is not None and not future.done():
        future.set_result(None)


async def call_hook(hook: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function of the user, and wait for it if it is a coroutine function.

    Args:
        hook: The function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        BaseException: Any exception of the function.
    """
    result = hook(*args, **kwargs)
    if inspect.isawaitable(result):
        await result


def is_cancelling() -> bool:
    """Return whether the current task was cancelled; otherwise a `CancelledError` comes from a library's own future."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class WorkGroup(asyncio.TaskGroup):
    """A task group in which a task that is cancelled alone is an error.

    `asyncio.TaskGroup` takes a cancelled task for one that has finished: its share of the work is then missing from the
    result, or its siblings wait for it for ever. `create_task` is that of asyncio, for tasks that may be cancelled one
    by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owner: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._ending = False
        self._stopped: set[asyncio.Task[Any]] = set()
        self._failure: RuntimeError | None = None

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        self._cancelling = self._owner.cancelling() if self._owner is not None else 0
        await super().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._ending = True
        await super().__aexit__(kind, error, trace)
        if self._failure is not None:
            raise BaseExceptionGroup("a task was cancelled", [self._failure])

    def start(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> "asyncio.Task[T]":
        """Run a coroutine as a task that only the group may cancel.

        If somebody does, the group ends with a `RuntimeError` (in an exception group, as with any error of a task).

        Args:
            work: The coroutine.
            name: For the task.
        """
        task = self.create_task(work, name=name)
        task.add_done_callback(self._look_at)
        return task

    def stop(self, *tasks: "asyncio.Task[Any]") -> None:
        """Cancel tasks of the group whose work is no longer needed."""
        self._stopped.update(tasks)
        for task in tasks:
            task.cancel()

    def _look_at(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled():
            self._ending = self._ending or task.exception() is not None
        elif task in self._stopped:
            self._stopped.discard(task)
        elif not self._ending and self._owner is not None and self._owner.cancelling() <= self._cancelling:
            self._ending = True
            failing = _fail(RuntimeError(f"{task.get_name()} was cancelled, and the work that needs it was not"))
            try:
                self.create_task(failing)
            except RuntimeError:
                # It was the last task, and the group has ended.
                failing.close()
                self._failure = RuntimeError(f"{task.get_name()} was cancelled, and the work that needs it was not")


async def _fail(error: BaseException) -> NoReturn:
    raise error


async def map_bounded(function: Callable[[S], Awaitable[T]], items: Iterable[S], *, limit: int) -> list[T]:
    """Call a function for each item, a few at a time, and return the results in the order of the items.

    Args:
        function: The function.
        items: Its arguments.
        limit: Calls at a time.

    Raises:
        BaseException: The first exception of the function, after the other calls were cancelled.
    """
    gate = asyncio.Semaphore(limit)

    async def call(item: S) -> T:
        async with gate:
            return await function(item)

    with raise_first_cause():
        async with WorkGroup() as group:
            tasks = [group.start(call(item)) for item in items]
    return [task.result() for task in tasks]


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
