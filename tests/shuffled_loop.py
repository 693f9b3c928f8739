"""An event loop that runs steps of tasks late and in another order, and stands still now and then.

What tasks may rely on stays: a future's result is there before those who wait for it are woken, and the callbacks of
transports keep their order. What they must not rely on does not: which of several tasks goes on first, and how soon.
"""

import asyncio
import io
import random
import selectors
import time
from collections.abc import Callable, Iterable
from typing import Any

_STEPS = ("TaskStepMethWrapper", "TaskWakeupMethWrapper")
# Of so many steps of tasks, one is put off, and one makes the loop stand still.
_LATE = 0.08
_STILL = 0.0005


class _LateSelector(selectors.DefaultSelector):
    """Reports what is ready in random order, and some of it the next time only."""

    random = random.Random(0)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        self.random.shuffle(ready)
        return [entry for entry in ready if self.random.random() >= 0.1]


class ShuffledLoop(asyncio.SelectorEventLoop):
    """The loop.

    Args:
        seed: For all that is random in it.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        selector = _LateSelector()
        selector.random = self._random
        super().__init__(selector)

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """Call a function in the next round; the step of a task perhaps in a later one."""
        if _is_step(callback):
            chance = self._random.random()
            if chance < _STILL:
                super().call_soon(time.sleep, self._random.random() * 0.03)
            elif chance < _LATE / 4:
                return self.call_later(self._random.choice([0.0005, 0.003, 0.02]), callback, *args, context=context)
            elif chance < _LATE:
                return self._after(self._random.randrange(1, 6), callback, args, context)
        return super().call_soon(callback, *args, context=context)

    def _after(self, rounds: int, callback: Callable[..., Any], args: Any, context: Any) -> asyncio.Handle:
        if rounds == 0:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(self._after, rounds - 1, callback, args, context)


def _is_step(callback: object) -> bool:
    kind = type(callback).__name__
    return kind in _STEPS or getattr(callback, "__name__", "") == "task_wakeup"


async def wait_for_end(tasks: Iterable["asyncio.Task[Any]"], progress: Callable[[], object], ticks: int = 150) -> None:
    """Wait until tasks have ended, however long that takes as long as something happens.

    Args:
        tasks: The tasks.
        progress: Returns anything that is another thing after something has happened.
        ticks: After so many looks, 50 ms apart, at which nothing had happened, they count as hanging.

    Raises:
        AssertionError: They hang.
    """
    pending, seen, quiet = set(tasks), progress(), 0
    while pending:
        done, pending = await asyncio.wait(pending, timeout=0.05)
        now = progress()
        quiet = 0 if done or now != seen else quiet + 1
        seen = now
        assert quiet < ticks, f"nothing happens any more\n{stacks()}"


def stacks() -> str:
    """Return where all tasks wait, through all that they await."""
    text = io.StringIO()
    for task in asyncio.all_tasks():
        text.write(f"{task!r:.300}\n")
        awaited: Any = task.get_coro()
        while awaited is not None:
            frame = next(
                (getattr(awaited, name) for name in ("cr_frame", "gi_frame", "ag_frame") if hasattr(awaited, name)),
                None,
            )
            if frame is not None:
                text.write(f"    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}\n")
            names = ("cr_await", "gi_yieldfrom", "ag_await")
            awaited = next((getattr(awaited, name) for name in names if hasattr(awaited, name)), None)
    return text.getvalue()
