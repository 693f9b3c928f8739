"""Closing a client, a pool or an aiohttp session while others work with it: all of them end with `ClientClosed`."""

import asyncio
import pickle

import aiohttp
import anyio
import pytest

from wme_async import Cache, Client, ClientClosed, Limits, Retry, Retrying, SessionPool, TransportError
from wme_async.jobs import BatchManager, JobLimits

NAME = "enwiki_namespace_0"
SECONDS = 20.0  # within which anything ends that does not wait for ever


async def download(wme, sim, folder):
    await wme.batches(sim.hours[-2]).download(NAME, folder)


async def read(wme, sim, folder):
    async with wme.batches(sim.hours[-2]).read(NAME) as articles:
        async for _ in articles:
            pass


async def lookup(wme, sim, folder):
    await wme.articles.lookup("NATO")


async def listing(wme, sim, folder):
    await wme.projects.list()


async def lookup_many(wme, sim, folder):
    async with wme.articles.lookup_many([f"T{number}" for number in range(50)], concurrency=5) as results:
        async for _ in results:
            pass


async def stream(wme, sim, folder):
    async with wme.realtime.articles(connections=2) as articles:
        async for _ in articles:
            pass


async def busy_stream(wme, sim, folder):
    async with wme.realtime.articles() as articles:
        sim.firehose.publish_many(10)
        async for _ in articles:
            pass


# What is under way, and where it stands still.
STALLS = [
    pytest.param(download, ("stall", {"role": "store", "after": 1000}), "body", id="download-body"),
    pytest.param(download, ("hang_head", {"role": "store"}), "store", id="download-head"),
    pytest.param(read, ("stall", {"role": "store", "after": 1000}), "body", id="read-body"),
    pytest.param(lookup, ("hang_head", {"role": "api"}), "api", id="lookup-head"),
    pytest.param(lookup, ("stall", {"role": "api", "after": 3}), "body", id="lookup-body"),
    pytest.param(listing, ("stall", {"role": "api", "after": 30}), "body", id="list-body"),
    pytest.param(listing, ("status", {"role": "api", "status": 503}), "retry", id="backoff"),
    pytest.param(listing, ("hang_head", {"role": "auth"}), "auth", id="sign-in"),
    pytest.param(lookup_many, ("hang_head", {"role": "api"}), "api", id="lookup_many"),
    pytest.param(stream, None, "realtime", id="stream-head"),
    pytest.param(busy_stream, None, "body", id="stream-body"),
]


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  # nothing tells how far a request has come
            await asyncio.sleep(0.005)


def asked(sim, role):
    return lambda: any(request.role == role for request in sim.requests)


@pytest.mark.parametrize("closing", ["client", "pool", "session"])
@pytest.mark.parametrize(("work", "fault", "place"), STALLS)
async def test_closing_ends_what_is_under_way(sim, tmp_path, work, fault, place, closing):
    session = aiohttp.ClientSession() if closing == "session" else None
    pool = None if closing == "client" else SessionPool(session=session)
    retries: list[Retrying] = []
    retry = Retry(base=1000.0, cap=1000.0, total=10_000.0)
    async with Client(**sim.client_options(), pool=pool, retry=retry, on_retry=retries.append) as wme:
        if fault is not None:
            sim.faults.inject(fault[0], times=None, **fault[1])
        task = asyncio.create_task(work(wme, sim, tmp_path))
        if place == "body":
            await until(lambda: " 0 open bodies" not in repr(wme))
        else:
            await until(lambda: retries if place == "retry" else asked(sim, place)())
        assert not task.done()
        if session is not None:
            await session.close()
        else:
            await (pool or wme).aclose()
        with pytest.raises(ClientClosed, match="closed"):
            await asyncio.wait_for(task, SECONDS)
        # What begins afterwards ends in the same way.
        with pytest.raises(ClientClosed, match="make a new one"):
            await wme.codes.list()
    if pool is not None:
        await pool.aclose()


@pytest.mark.parametrize("closing", ["client", "session"])
async def test_closing_ends_the_wait_for_a_connection(sim, tmp_path, closing):
    for name in "ab":
        sim.put_object(f"snapshots/{name}wiki_namespace_0.tar.gz", bytes(3_000_000))
    sim.faults.inject("hang_head", role="store", path="/awiki", times=None)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) if closing == "session" else None
    pool = SessionPool(session=session) if session is not None else None
    wme = Client(**sim.client_options(), pool=pool, limits=Limits(connections=1))
    await wme.auth.login()
    first = asyncio.create_task(wme.snapshots.download("awiki_namespace_0", tmp_path / "a"))
    await until(asked(sim, "store"))
    second = asyncio.create_task(wme.snapshots.download("bwiki_namespace_0", tmp_path / "b"))
    await until(lambda: " 0 requests waiting" not in repr(wme))
    await (wme.aclose() if session is None else session.close())
    for task in (first, second):
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, SECONDS)
    await wme.aclose()


async def test_closing_one_of_two_clients_with_a_cache_leaves_the_other_its_answer(sim):
    cache = Cache()
    sim.faults.inject("hang_head", role="api", times=1)
    async with Client(**sim.client_options(), cache=cache) as one, Client(**sim.client_options(), cache=cache) as two:
        first = asyncio.create_task(one.articles.lookup("NATO"))
        await until(asked(sim, "api"))
        second = asyncio.create_task(two.articles.lookup("NATO"))
        await asyncio.sleep(0)
        await one.aclose()
        with pytest.raises(ClientClosed):
            await first
        assert await asyncio.wait_for(second, SECONDS)


async def test_closing_the_client_that_waits_for_the_answer_of_another(sim):
    cache = Cache()
    sim.faults.inject("hang_head", role="api", times=1)
    async with Client(**sim.client_options(), cache=cache) as one, Client(**sim.client_options(), cache=cache) as two:
        first = asyncio.create_task(one.articles.lookup("NATO"))
        await until(asked(sim, "api"))
        second = asyncio.create_task(two.articles.lookup("NATO"))
        await asyncio.sleep(0)
        await two.aclose()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(second, SECONDS)
        assert not first.done()
        await one.aclose()
        with pytest.raises(ClientClosed):
            await first


async def test_a_cancellation_stays_one_when_the_client_is_closed_with_it(sim):
    sim.faults.inject("hang_head", role="api", times=None)
    async with Client(**sim.client_options()) as wme:
        task = asyncio.create_task(wme.projects.list())
        await until(asked(sim, "api"))
        task.cancel()
        await wme.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_the_error_is_of_the_transport_and_of_the_caller():
    error = pickle.loads(pickle.dumps(ClientClosed("this client is closed", url="https://host/path")))
    assert isinstance(error, TransportError)
    assert isinstance(error, RuntimeError)
    assert (error.permanent, error.url) == (True, "https://host/path")


async def until_queued(manager, batch_id):
    async with asyncio.timeout(SECONDS):
        while [job.status for job in (await manager.status(batch_id)).jobs] != ["queued"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("work", "name"), [(stream, "wme connection 1"), (lookup_many, "wme look-up")])
async def test_a_task_that_a_stranger_cancels_is_an_error_of_the_whole(sim, tmp_path, work, name):
    sim.faults.inject("hang_head", role="api", times=None)
    async with Client(**sim.client_options()) as wme:
        task = asyncio.create_task(work(wme, sim, tmp_path))
        await until(asked(sim, "api" if work is lookup_many else "realtime"))
        next(other for other in asyncio.all_tasks() if other.get_name().startswith(name)).cancel()
        with pytest.raises(RuntimeError, match="was cancelled"):
            await asyncio.wait_for(task, SECONDS)


async def test_closing_the_client_of_a_batch_manager_keeps_its_jobs_for_the_next(sim, tmp_path):
    sim.put_object("snapshots/awiki_namespace_0.tar.gz", b"a" * 1000)
    sim.faults.inject("hang_head", role="store", times=1)
    limits = JobLimits(free_space=0)
    async with Client(**sim.client_options()) as wme, BatchManager(tmp_path, client=wme, limits=limits) as manager:
        batch = await manager.submit(["wme:snapshots/awiki_namespace_0"])
        waiting = asyncio.create_task(manager.wait(batch.batch_id))
        await until(asked(sim, "store"))
        await wme.aclose()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(waiting, SECONDS)
        # It starts no such job any more, and says so at once.
        another = await manager.submit(["wme:snapshots/awiki_namespace_0"])
        with pytest.raises(ClientClosed):
            await manager.wait(another.batch_id, timeout=SECONDS)
        for listed in (await manager.list()).batches:
            await until_queued(manager, listed.batch_id)
    async with Client(**sim.client_options()) as wme, BatchManager(tmp_path, client=wme, limits=limits) as manager:
        ended = await manager.wait(batch.batch_id, timeout=SECONDS)
    assert [job.status for job in ended.jobs] == ["completed"]


async def test_scopes_and_timeouts_around_the_work_keep_their_meaning(sim):
    sim.faults.inject("hang_head", role="api", times=None)
    async with Client(**sim.client_options()) as wme:
        with anyio.move_on_after(0.05) as scope:
            await wme.projects.list()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wme.projects.list()
        seen = len(sim.requests)

        async def within():
            with anyio.CancelScope():
                async with asyncio.timeout(SECONDS), anyio.create_task_group() as group:
                    group.start_soon(wme.projects.list)

        task = asyncio.create_task(within())
        await until(lambda: len(sim.requests) > seen)
        await wme.aclose()
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(task, SECONDS)
        assert [type(error) for error in caught.value.exceptions] == [ClientClosed]
        assert task.cancelling() == 0


async def test_work_in_a_task_that_had_been_cancelled_before_ends_too(sim):
    sim.faults.inject("hang_head", role="api", times=None)
    async with Client(**sim.client_options()) as wme:

        async def clean_up():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await wme.projects.list()

        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        task.cancel()
        await until(asked(sim, "api"))
        await wme.aclose()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, SECONDS)
