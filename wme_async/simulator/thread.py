"""A simulator in a thread of its own, for code that has no event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

__all__ = ["call_in", "running"]

_T = TypeVar("_T")


@contextlib.contextmanager
def running(make: Callable[[], AbstractAsyncContextManager[_T]]) -> Generator[_T]:
    """Run an async context manager in the loop of a new thread, and yield what it gives.

    Args:
        make: Makes the context manager; called in the new thread.

    Raises:
        BaseException: Whatever entering or leaving it raised.
    """
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> None:
        stop = asyncio.Event()
        async with make() as made:
            box.update(made=made, stop=stop, loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as problem:  # noqa: BLE001 - carried over to the thread that waits
            box["problem"] = problem
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="wme-simulator", daemon=True)
    thread.start()
    ready.wait()
    try:
        if "made" in box:
            yield box["made"]
    finally:
        if "loop" in box and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join()
    if "problem" in box:
        raise box["problem"]


def call_in(loop: asyncio.AbstractEventLoop | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in a loop that runs in another thread, await what it returns if need be, and return the result.

    Raises:
        RuntimeError: The loop does not run, or it is that of this thread.
    """
    if loop is None or not loop.is_running():
        raise RuntimeError("the simulator is not running")
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop:
        raise RuntimeError("this is the simulator's own thread: call the function itself")

    async def run() -> Any:
        result = function(*args, **kwargs)
        return await result if isinstance(result, Awaitable) else result

    return asyncio.run_coroutine_threadsafe(run(), loop).result()
