"""Connections: who may have one, who waits for one, and for how long."""

import asyncio
import logging

import aiohttp
import pytest

from wme_async import Client, ConnectFailed, Limits, Retry, SessionPool, TimedOut, Timeouts

NAME = "enwiki_namespace_0"
SECONDS = 20.0  # within which anything ends that does not wait for ever


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  # nothing tells how far a request has come
            await asyncio.sleep(0.005)


async def hear_all(sim, stream):
    """Read until every partition has been heard."""
    heard = set()
    async with asyncio.timeout(SECONDS):
        for partition in range(50):
            sim.firehose.publish(partition=partition)
        async for article in stream:
            heard.add(article.event.partition)
            if len(heard) == 50:
                return


async def test_streams_take_none_of_the_bounded_connections(sim):
    async with Client(**sim.client_options(), limits=Limits(connections=1)) as wme:
        async with wme.realtime.articles(connections=10) as one, wme.realtime.articles(connections=10) as two:
            await sim.firehose.wait_open(20)
            reading = asyncio.create_task(hear_all(sim, two))
            await hear_all(sim, one)
            await reading
            assert one.statistics().connected == two.statistics().connected == 10
            # Look-ups, downloads and what a stream itself asks for go on beside them.
            assert await wme.articles.lookup("NATO")


async def test_connections_that_were_not_answered_do_not_count_as_connected(sim):
    async with Client(**sim.client_options()) as wme, wme.realtime.articles(connections=10) as stream:
        await sim.firehose.wait_open(10)
        assert stream.statistics().connected == 0
        sim.firehose.publish(partition=0)
        async with asyncio.timeout(SECONDS):
            await anext(stream)
        statistics = stream.statistics()
        assert statistics.connected == 1
        assert {number.partition for number in statistics.partitions if number.connected} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("bound", [{"limit": 10}, {"limit": 0, "limit_per_host": 10}])
async def test_a_stream_that_would_take_all_connections_of_a_session_is_refused(sim, bound):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**bound)) as session:
        async with Client(**sim.client_options(), pool=SessionPool(session=session)) as wme:
            with pytest.raises(ValueError, match=r"allows 10 connections.*TCPConnector\(limit=0\)"):
                await wme.realtime.articles(connections=10).__aenter__()
            assert not sim.requests, "nothing was sent"
            async with wme.realtime.articles(connections=9, parts=range(9)) as stream:
                with pytest.raises(ValueError, match="streams have 9"):
                    await wme.realtime.articles(parts=[9], name="other").__aenter__()
                await sim.firehose.wait_open(9)
                # The one connection that is left serves them all.
                async with asyncio.timeout(SECONDS):
                    names = [f"T{number}" for number in range(10)]
                    async with wme.articles.lookup_many(names, concurrency=10) as results:
                        assert [looked.name async for looked in results] == names
                    sim.firehose.publish(partition=0)
                    await anext(stream)
            # What a stream had is free again when it has ended.
            async with wme.realtime.articles(parts=[9], name="other"):
                pass


async def test_a_session_without_a_bound_refuses_nothing(sim):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with Client(**sim.client_options(), pool=SessionPool(session=session)) as wme:
            async with wme.realtime.articles(connections=10) as stream:
                await hear_all(sim, stream)
                assert await wme.articles.lookup("NATO")


async def test_a_wait_for_a_connection_is_counted_and_bounded(sim):
    sim.faults.inject("hang_head", role="api", times=1)
    timeouts = Timeouts(pool=0.1)
    async with SessionPool(limits=Limits(connections=1), timeouts=timeouts) as pool:
        async with Client(**sim.client_options(), pool=pool, retry=Retry(attempts=1)) as wme:
            first = asyncio.create_task(wme.projects.list())
            await until(lambda: any(request.role == "api" for request in sim.requests))
            second = asyncio.create_task(wme.projects.list())
            await until(lambda: pool.waiting or second.done())
            with pytest.raises(ConnectFailed, match=r"released for 0.1 s.*Limits\(connections"):
                await asyncio.wait_for(second, SECONDS)
            assert pool.waiting == 0
            first.cancel()
            await asyncio.wait([first])
            assert await wme.projects.list()


async def test_a_long_queue_that_moves_is_no_error(sim):
    sim.faults.inject("delay", role="api", seconds=0.02, times=None)
    timeouts = Timeouts(pool=0.4)
    async with Client(**sim.client_options(), limits=Limits(connections=1), timeouts=timeouts) as wme:
        await asyncio.gather(*(wme.projects.list() for _ in range(40)))


async def test_a_cancelled_wait_gives_its_place_to_the_next(sim):
    sim.faults.inject("hang_head", role="api", times=1)
    async with SessionPool(limits=Limits(connections=1)) as pool, Client(**sim.client_options(), pool=pool) as wme:
        tasks = [asyncio.create_task(wme.projects.list())]
        await until(lambda: any(request.role == "api" for request in sim.requests))
        tasks += [asyncio.create_task(wme.projects.list()) for _ in range(4)]
        await until(lambda: pool.waiting == 4)
        assert "4 requests waiting" in repr(wme)
        assert "4 requests waiting" in repr(pool)
        # The first has the connection and hangs; the second is cancelled in the moment in which it gets it.
        tasks[0].cancel()
        tasks[1].cancel()
        async with asyncio.timeout(SECONDS):
            done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in done] == [True, True, False, False, False]
        assert "waiting" not in repr(pool)


async def test_a_wait_that_takes_long_is_logged(sim, caplog, monkeypatch):
    monkeypatch.setattr("wme_async._transport.slots._WARN_AFTER", 0.01)
    sim.faults.inject("hang_head", role="api", times=None)
    async with Client(**sim.client_options(), limits=Limits(connections=1)) as wme:
        tasks = [asyncio.create_task(wme.projects.list()) for _ in range(3)]
        with caplog.at_level(logging.WARNING, "wme_async.transport"):
            await until(lambda: caplog.messages)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    (message,) = caplog.messages
    assert "2 requests wait for one of the 1 connections to the api host" in message


@pytest.mark.parametrize("own", [False, True])
async def test_silence_in_a_body_is_noticed_without_the_timer_of_aiohttp(sim, own):
    sim.faults.inject("stall", role="api", after=30, times=None)
    async with aiohttp.ClientSession() as session:
        pool = SessionPool(session=session if own else None)
        timeouts = Timeouts(read=0.2)
        async with Client(**sim.client_options(), pool=pool, retry=Retry(attempts=1), timeouts=timeouts) as wme:
            with pytest.raises(TimedOut, match=r"0\.2 s"):
                await asyncio.wait_for(wme.projects.list(), SECONDS)
        await pool.aclose()
