"""Blocking work in a thread that is waited for, whatever becomes of the task."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import anyio

__all__ = ["in_thread"]

_T = TypeVar("_T")


async def in_thread(function: Callable[..., _T], *args: Any) -> _T:
    """Run a function in a worker thread and return what it returns.

    A thread cannot be cancelled. If the task is, that takes effect once the function has ended: until then its locks
    are held, and nothing that comes later overtakes it.

    Args:
        function: What to run.
        *args: Its arguments.

    Raises:
        BaseException: What the function raises; nothing of it where the task was cancelled meanwhile.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *args)
    cancelled: asyncio.CancelledError | None = None
    # anyio's cancellation would come again with every turn of the loop.
    with anyio.CancelScope(shield=True):
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # looked at, so that nobody complains about it
        raise cancelled
    return work.result()
