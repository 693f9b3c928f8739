"""Work that would block the event loop, done by a thread that is always waited for."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread of the loop's executor.

    A thread cannot be cancelled. Whoever is cancelled while it works waits for its end: no file is closed and no
    buffer used again under its hands.
    """
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # What it returned or raised is of no interest any more.
        work.exception()
        raise cancelled
    return work.result()
