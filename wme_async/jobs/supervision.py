"""What keeps one failure from becoming everybody's: helpers that start again, contained chores, trouble that passes."""

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

__all__ = ["contained", "is_passing", "restarted"]

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_PAUSE: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE})


async def restarted(work: Callable[[], Awaitable[None]]) -> None:
    """Run a helper that never ends by itself, again after an error: jobs do not end because of it."""
    while True:
        try:
            return await work()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.warning("a helper of the batch manager was cancelled from within; it starts again")
        except Exception:
            logger.exception("a helper of the batch manager failed; it starts again")
        await asyncio.sleep(_PAUSE)


async def contained(work: Awaitable[None]) -> None:
    """Run a chore; an error is logged and ends nothing else."""
    try:
        await work
    except Exception:
        logger.exception("a chore of the batch manager failed")


def is_passing(error: BaseException) -> bool:
    """Say whether a failure comes from a lack of file descriptors: trouble of this process that passes.

    Name resolution hides that behind errors of its own, so a descriptor is also opened to see.

    Args:
        error: What was raised; its causes are looked at too.
    """
    if any(isinstance(cause, OSError) and cause.errno in _EXHAUSTED for cause in _causes(error)):
        return True
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as refusal:
        return refusal.errno in _EXHAUSTED
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], set[int]()
    while pending:
        cause = pending.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        linked = (cause.__cause__, cause.__context__, getattr(cause, "os_error", None))
        pending += [other for other in linked if isinstance(other, BaseException)]
