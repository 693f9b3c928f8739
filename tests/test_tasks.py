"""Work in threads and in the loop, waiting through cancellations, and the first cause of a group."""

import asyncio
import gzip
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import wme_async
from wme_async._tasks import (  # private: cancellation at each point
    _DISTRUST,
    _TRUST,
    AdaptiveExecutor,
    WorkGroup,
    first_cause,
    in_thread,
    long_in_thread,
    raise_first_cause,
    wait_done,
    wait_shielded,
)


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
    short = AdaptiveExecutor(clock)
    assert [await short.run(clock.work(0.0001)) for _ in range(_TRUST + 3)] == [True] * _TRUST + [False] * 3


async def test_slow_work_stays_in_threads() -> None:
    clock = Clock()
    short = AdaptiveExecutor(clock)
    assert all([await short.run(clock.work(0.02 if number % 5 == 4 else 0.0001)) for number in range(60)])


async def test_one_slow_in_the_loop_sends_the_next_to_threads_for_long() -> None:
    clock = Clock()
    short = AdaptiveExecutor(clock)
    for _ in range(_TRUST):
        await short.run(clock.work(0.0001))
    assert await short.run(clock.work(0.02)) is False
    there = [await short.run(clock.work(0.0001)) for _ in range(_DISTRUST + 1)]
    assert there == [True] * _DISTRUST + [False]


async def test_many_at_once_wait_for_what_the_first_ones_show() -> None:
    clock = Clock()
    short = AdaptiveExecutor(clock)
    results = await asyncio.gather(*(short.run(clock.work(0.0001)) for _ in range(100)))
    assert _TRUST <= sum(results) < 2 * _TRUST


@pytest.mark.parametrize("trusted", [False, True])
async def test_what_it_raises_comes_out(trusted: bool) -> None:
    clock = Clock()
    short = AdaptiveExecutor(clock)
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

    task = asyncio.create_task(AdaptiveExecutor().run(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


def test_it_goes_on_in_another_loop() -> None:
    """As where the same budget is used by two programs of `asyncio.run`, one after the other."""
    clock = Clock()
    short = AdaptiveExecutor(clock)

    async def run() -> list[bool]:
        return await asyncio.gather(*(short.run(clock.work(0.02)) for _ in range(3 * _TRUST)))

    assert all(asyncio.run(run()))
    assert all(asyncio.run(run()))


# Waiting through cancellations


async def test_a_cancellation_takes_effect_once_the_future_is_done() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    calls: list[int] = []
    task = asyncio.create_task(wait_done(future, on_cancel=lambda: calls.append(1)))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    future.set_exception(OSError("nobody retrieves it, and nobody complains"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) == 3


async def test_a_further_cancellation_is_raised_after_a_shielded_wait() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def clean_up() -> None:
        try:
            int("the first trouble")
        except ValueError:
            await wait_shielded(future)
            raise

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_future_that_does_not_end_is_cancelled_after_the_grace() -> None:
    stubborn: list[int] = []

    async def work() -> None:
        while len(stubborn) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                stubborn.append(1)

    future = asyncio.create_task(work())
    task = asyncio.create_task(wait_done(future, grace=0.001))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(stubborn) == 3


async def test_a_long_function_learns_of_the_cancellation() -> None:
    started, cancelled = threading.Event(), threading.Event()

    def work(stop: Callable[[], bool]) -> None:
        started.set()
        while not stop():
            threading.Event().wait(0.001)
        cancelled.set()

    task = asyncio.create_task(long_in_thread(work))
    assert await in_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


class Turns:
    """Counts what is scheduled in the running event loop: a task that is cancelled again and again shows up here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
            self.count += 1
            return call_soon(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon", counted)


async def hung_thread(release: asyncio.Future[None], tmp_path: Path) -> None:
    go = threading.Event()
    release.add_done_callback(lambda _: go.set())
    await in_thread(go.wait, 10)


async def hung_archive(release: asyncio.Future[None], tmp_path: Path) -> None:
    """Read from a pipe that is silent until the end."""
    path = tmp_path / "a.tar.gz"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, gzip.compress(bytes(4096))[:12])
    release.add_done_callback(lambda _: os.close(writer))
    async with wme_async.read_archive(path) as reader:
        async for _ in reader:
            pass


async def hung_upload(release: asyncio.Future[None], tmp_path: Path) -> None:
    """Upload to a store that takes its time to forget the parts."""
    cloud = pytest.importorskip("wme_async.integrations.cloud", exc_type=ImportError)

    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def put(store: Any, key: Any, chunks: Any, **_: Any) -> None:
        try:
            async for _ in chunks:
                pass
        finally:
            await release

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud.obstore, "put_async", put)
        await cloud.upload(silent(), "x", store=object())


@pytest.mark.parametrize("work", [hung_thread, hung_archive, hung_upload])
async def test_waiting_in_a_cancelled_anyio_scope_does_not_keep_the_processor_busy(
    work: Callable[[asyncio.Future[None], Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    release: asyncio.Future[None] = loop.create_future()
    turns = Turns(monkeypatch)
    with anyio.move_on_after(0.03) as scope:
        loop.call_later(0.1, release.set_result, None)
        await work(release, tmp_path)
    assert scope.cancelled_caught
    assert release.done()
    assert turns.count < 100


# The first cause


def test_the_first_cause_is_found_in_nested_groups() -> None:
    cause = KeyError("a")
    group = BaseExceptionGroup("outer", [ExceptionGroup("inner", [cause, OSError()]), ValueError()])
    assert first_cause(group) is cause
    assert first_cause(cause) is cause
    with pytest.raises(KeyError), raise_first_cause():
        raise group
    with pytest.raises(OSError, match="alone"), raise_first_cause():
        raise OSError("alone")


async def test_a_cancelled_task_waits_for_its_thread_however_often_it_is_cancelled() -> None:
    began, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(10)
        ended.set()

    task = asyncio.ensure_future(in_thread(work))
    assert await asyncio.to_thread(began.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended.is_set()


# --- a group in which no task may be cancelled alone


async def for_ever():
    await asyncio.Event().wait()


@pytest.mark.parametrize("siblings", [0, 1])
async def test_a_task_that_is_cancelled_alone_ends_the_group_with_an_error(siblings):
    with pytest.raises(RuntimeError, match="reader was cancelled"), raise_first_cause():
        async with asyncio.timeout(10), WorkGroup() as group:
            others = [group.start(for_ever()) for _ in range(siblings)]
            task = group.start(for_ever(), name="reader")
            await asyncio.sleep(0)
            task.cancel()
    assert all(other.cancelled() for other in others)


async def test_a_task_that_cancels_its_own_future_is_an_error_too():
    async def wait():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with pytest.raises(RuntimeError, match="cancelled"), raise_first_cause():
        async with asyncio.timeout(10), WorkGroup() as group:
            group.start(wait())
            group.start(for_ever())


async def test_tasks_that_are_stopped_are_no_error():
    async with asyncio.timeout(10), WorkGroup() as group:
        group.stop(group.start(for_ever()), group.start(for_ever()))
        free = group.create_task(for_ever())
        await asyncio.sleep(0)
        free.cancel()


async def test_the_first_error_is_the_only_one():
    async def fail():
        raise ValueError("the cause")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.timeout(10), WorkGroup() as group:
            group.start(for_ever())
            group.start(fail())
    assert [type(error) for error in caught.value.exceptions] == [ValueError]


async def test_a_cancelled_group_is_cancelled():
    async def run():
        async with WorkGroup() as group:
            group.start(for_ever())
            group.start(for_ever())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_body_is_the_error_of_the_group():
    with pytest.raises(BaseExceptionGroup) as caught:
        async with WorkGroup() as group:
            group.start(for_ever())
            await asyncio.sleep(0)
            raise KeyError("body")
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
