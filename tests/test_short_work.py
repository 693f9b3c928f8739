"""Short work begins in threads, moves into the loop once it has shown to be short, and leaves it when it is not."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from wme_async._threads import _DISTRUST, _TRUST, ShortWork


class Clock:
    """Stands still but for what is done with it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def work(self, seconds: float) -> Callable[[], bool]:
        """Return a function that takes so long and says whether it ran in a thread."""

        def run() -> bool:
            self.now += seconds
            return threading.current_thread() is not threading.main_thread()

        return run


async def test_quick_work_moves_into_the_loop() -> None:
    clock = Clock()
    short = ShortWork(clock)
    assert [await short.run(clock.work(0.0001)) for _ in range(_TRUST + 3)] == [True] * _TRUST + [False] * 3


async def test_slow_work_stays_in_threads() -> None:
    clock = Clock()
    short = ShortWork(clock)
    assert all([await short.run(clock.work(0.02 if number % 5 == 4 else 0.0001)) for number in range(60)])


async def test_one_slow_in_the_loop_sends_the_next_to_threads_for_long() -> None:
    clock = Clock()
    short = ShortWork(clock)
    for _ in range(_TRUST):
        await short.run(clock.work(0.0001))
    assert await short.run(clock.work(0.02)) is False
    there = [await short.run(clock.work(0.0001)) for _ in range(_DISTRUST + 1)]
    assert there == [True] * _DISTRUST + [False]


async def test_many_at_once_wait_for_what_the_first_ones_show() -> None:
    clock = Clock()
    short = ShortWork(clock)
    found = await asyncio.gather(*(short.run(clock.work(0.0001)) for _ in range(100)))
    assert _TRUST <= sum(found) < 2 * _TRUST


@pytest.mark.parametrize("trusted", [False, True])
async def test_what_it_raises_comes_out(trusted: bool) -> None:
    clock = Clock()
    short = ShortWork(clock)
    for _ in range(_TRUST if trusted else 0):
        await short.run(clock.work(0))

    def fail(name: str, *, why: str) -> None:
        raise OSError(why, name)

    with pytest.raises(OSError, match="full"):
        await short.run(fail, "disk", why="full")


async def test_who_is_cancelled_waits_for_the_work() -> None:
    begun, go = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work() -> None:
        begun.set()
        assert go.wait(10)
        ended.append(True)

    task = asyncio.create_task(ShortWork().run(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


def test_it_goes_on_in_another_loop() -> None:
    """As where the same budget is used by two programs of `asyncio.run`, one after the other."""
    clock = Clock()
    short = ShortWork(clock)

    async def run() -> list[bool]:
        return await asyncio.gather(*(short.run(clock.work(0.02)) for _ in range(3 * _TRUST)))

    assert all(asyncio.run(run()))
    assert all(asyncio.run(run()))
