"""A group whose tasks all have to finish: none of them may be cancelled alone."""

import asyncio

import pytest

from wme_async._tasks import WorkGroup, raise_first_cause


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
