"""One stream, many listeners: order, resuming, slow listeners, failures, server-sent events."""

import asyncio
import contextlib
import json
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from wall_clock import utc_now

from wme_async import Article, Client, StreamError
from wme_async.errors import Forbidden
from wme_async.relay import Broadcast, Listener, SlowListener
from wme_async.simulator import Simulator


@asynccontextmanager
async def relay(sim: Simulator, *, since: timedelta = timedelta(seconds=30), **options: Any) -> AsyncIterator[Any]:
    async with Client(**sim.client_options()) as wme:
        stream = wme.realtime.articles(since=utc_now() - since)
        async with Broadcast(stream, **options) as hub:
            yield hub


def offsets(events: list[Any]) -> list[tuple[int, int]]:
    return [(event.item.event.partition, event.item.event.offset) for event in events]


async def take(events: Listener[Article], count: int) -> list[Any]:
    return [await anext(events) for _ in range(count)]


async def received(hub: Broadcast[Article], count: int) -> None:
    """Wait until the hub has had so many events."""
    async with hub.listen(replay=True) as events:
        while hub.statistics().events < count:
            await anext(events)


async def test_every_listener_receives_every_event_in_the_same_order(sim):
    async with relay(sim) as hub, hub.listen() as first, hub.listen() as second:
        sent = sim.firehose.publish_many(200)
        one, two = await asyncio.gather(take(first, 200), take(second, 200))
    assert sorted(offsets(one)) == sorted(sent)
    assert offsets(one) == offsets(two)
    assert one[0].data is two[0].data, "a record is encoded once"
    assert json.loads(one[0].data)["name"] == one[0].item.name


async def test_a_listener_begins_with_the_next_event_or_with_the_backlog(sim):
    async with relay(sim, backlog=5) as hub:
        sent = sim.firehose.publish_many(10)
        await received(hub, 10)
        async with hub.listen(replay=True) as old, hub.listen() as new:
            assert set(offsets(await take(old, 5))) < set(sent)
            sim.firehose.publish()
            assert (await anext(new)).item is (await anext(old)).item


async def test_a_listener_receives_only_the_events_of_its_filter(sim):
    async with relay(sim) as hub, hub.listen(where=lambda article: article.event.type == "delete") as events:
        for number in range(300):
            sim.firehose.publish(kind="delete" if number % 100 == 0 else "update")
        assert {event.item.event.type for event in await take(events, 3)} == {"delete"}


async def test_a_listener_resumes_after_its_last_event(sim):
    async with relay(sim) as hub:
        async with hub.listen() as events:
            sim.firehose.publish_many(50)
            before = await take(events, 20)
        sim.firehose.publish_many(50)
        async with hub.listen(last_event_id=before[-1].id) as events:
            after = await take(events, 80)
    assert sorted(offsets(before + after)) == sorted(set(offsets(before + after)))
    assert len(before + after) == 100
    assert not any(event.missed or event.incomplete for event in after)


async def test_a_listener_resumes_in_the_next_process_as_far_as_its_backlog_reaches(sim):
    async with relay(sim, since=timedelta(minutes=10)) as hub, hub.listen() as events:
        sim.firehose.publish_many(60)
        before = await take(events, 40)
    sim.firehose.publish_many(60)
    async with relay(sim, since=timedelta(minutes=10)) as hub, hub.listen(last_event_id=before[-1].id) as events:
        after = await take(events, 80)
    assert len(set(offsets(before + after))) == 120
    assert not after[0].incomplete


async def test_a_listener_is_told_that_events_may_be_missing_before_the_first(sim):
    async with relay(sim, backlog=10) as hub:
        async with hub.listen() as events:
            sim.firehose.publish_many(50)
            before = await take(events, 5)
        await received(hub, 50)
        async with hub.listen(last_event_id=before[-1].id) as events:
            first, second = await take(events, 2)
    assert (first.incomplete, second.incomplete) == (True, False)
    assert first.sse().startswith(b'event: missed\ndata: {"count":null}\n\nid: ')


@pytest.mark.parametrize("identity", ["x", "5", "1;2", "1;2:", ";", "1;2:3:4", f"{10**400};0:1", f"1;0:{'9' * 5000}"])
async def test_an_id_that_is_not_from_a_relay_gives_the_backlog_and_says_so(sim, identity):
    async with relay(sim) as hub:
        sim.firehose.publish_many(5)
        await received(hub, 5)
        async with hub.listen(last_event_id=identity) as events:
            assert (await take(events, 5))[0].incomplete


async def test_a_slow_listener_misses_the_oldest_events_and_learns_their_number(sim):
    async with relay(sim, backlog=10) as hub, hub.listen() as slow, hub.listen() as quick:
        sim.firehose.publish_many(100)
        everything = await take(quick, 100)
        events = await take(slow, 10)
        assert events[0].missed == 90
        assert offsets(events) == offsets(everything[90:])
        assert hub.statistics().missed == 90
        assert hub.statistics().backlog == 10


async def test_the_backlog_is_bounded_in_bytes(sim):
    async with relay(sim, backlog_bytes=20_000) as hub, hub.listen() as events:
        sim.firehose.publish_many(100)
        await take(events, 100)
        assert 0 < hub.statistics().backlog_bytes <= 20_000


async def test_a_slow_listener_is_disconnected_if_it_wants_to_be(sim):
    async with relay(sim, backlog=10) as hub, hub.listen(slow="disconnect") as slow:
        sim.firehose.publish_many(100)
        await received(hub, 100)
        with pytest.raises(SlowListener, match="90 events behind"):
            await anext(slow)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)
        assert hub.statistics().listeners == 0
        assert hub.statistics().disconnected == 1


async def test_the_stream_waits_for_a_listener_that_must_not_miss_anything(sim):
    async with relay(sim, backlog=10) as hub, hub.listen(slow="wait") as slow, hub.listen() as quick:
        sent = sim.firehose.publish_many(100)
        await take(quick, 10)
        assert hub.statistics().events == 10
        assert sorted(offsets(await take(slow, 100))) == sorted(sent)
        assert hub.statistics().missed == 0


async def test_the_stream_goes_on_when_the_listener_that_it_waits_for_leaves(sim):
    async with relay(sim, backlog=10) as hub, hub.listen() as quick:
        async with hub.listen(slow="wait"):
            sim.firehose.publish_many(100)
            await take(quick, 10)
        await take(quick, 90)


async def test_a_failure_of_the_stream_reaches_every_listener_and_the_health_check_and_the_log(sim, caplog):
    async with relay(sim) as hub, hub.listen() as one, hub.listen() as two:
        assert hub.failure is None
        sim.faults.inject("status", role="realtime", status=403, times=None)
        sim.firehose.disconnect("reset")
        for events in (one, two):
            with pytest.raises(StreamError, match="the stream behind the relay has ended") as caught:
                await anext(events)
            assert isinstance(caught.value.__cause__, Forbidden)
        assert isinstance(hub.failure, Forbidden)
        assert [chunk async for chunk in hub.sse()] == [b"retry: 2000\n\n"]
    [record] = [record for record in caplog.records if record.name == "wme_async.relay"]
    assert (record.levelname, record.args) == ("ERROR", (hub.failure,))


async def test_a_cancellation_from_within_is_a_failure_and_not_silence(sim):
    def encode(_item: Any) -> bytes:
        raise asyncio.CancelledError

    async with relay(sim, encode=encode) as hub, hub.listen() as events:
        sim.firehose.publish()
        with pytest.raises(StreamError, match="the stream behind the relay has ended"):
            async with asyncio.timeout(5):
                await anext(events)
        assert isinstance(hub.failure, asyncio.CancelledError)


async def test_a_hub_whose_end_is_cancelled_leaves_no_task(sim):
    opened = asyncio.Event()

    async def listen() -> None:
        async with relay(sim):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(listen())
    await opened.wait()
    task.cancel()
    await asyncio.sleep(0)  # now it waits for the tasks of the hub
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [other.get_name() for other in asyncio.all_tasks() if other.get_name().startswith("wme")] == []


async def test_listeners_end_with_the_hub_and_by_themselves(sim):
    async with relay(sim) as hub:
        async with hub.listen() as events:
            waiting = asyncio.create_task(take(events, 1))
            await asyncio.sleep(0)
            events.close()
            with pytest.raises(StopAsyncIteration):
                await events.__anext__()
        events = await hub.listen().__aenter__()
        other = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0)
    assert await other is None
    with pytest.raises(StopAsyncIteration):
        await waiting
    with pytest.raises(RuntimeError, match="not open"):
        hub.listen()


async def test_a_cancelled_listener_loses_nothing(sim):
    async with relay(sim) as hub, hub.listen() as events:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(events)
        sent = sim.firehose.publish_many(3)
        assert sorted(offsets(await take(events, 3))) == sorted(sent)


async def test_server_sent_events_have_an_id_their_json_and_a_sign_of_life(sim):
    async with relay(sim) as hub:
        body = hub.sse(keep_alive=0.01)
        assert await anext(body) == b"retry: 2000\n\n"
        assert await anext(body) == b": keep-alive\n\n"
        partition, offset = sim.firehose.publish()
        while (chunk := await anext(body)).startswith(b":"):
            pass
        first, second, *end = chunk.split(b"\n")
        assert first.startswith(b"id: ")
        assert f"{partition}:{offset}".encode() in first
        assert json.loads(second.removeprefix(b"data: "))["event"]["offset"] == offset
        assert end == [b"", b""]
        await body.aclose()
        assert hub.statistics().listeners == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_json_of_several_lines_is_one_server_sent_event(sim, end):
    def encode(item: Article) -> bytes:
        return json.dumps({"name": item.name, "id": 7}, indent=1).replace("\n", end).encode()

    async with relay(sim, encode=encode) as hub, hub.listen() as events:
        sim.firehose.publish()
        event = await anext(events)
    lines = event.sse().decode().split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert json.loads("\n".join(data)) == {"name": event.item.name, "id": 7}
    assert [line.partition(":")[0] for line in lines] == ["id", *["data"] * len(data), "", ""]


async def test_invalid_arguments_are_an_error_at_the_call(sim):
    async with Client(**sim.client_options()) as wme:
        stream = wme.realtime.articles()
        with pytest.raises(ValueError, match="backlog must be at least 1"):
            Broadcast(stream, backlog=0)
        with pytest.raises(TypeError, match="backlog_bytes must be a whole number"):
            Broadcast(stream, backlog_bytes=1.5)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="not open"):
            Broadcast(stream).listen()
        async with Broadcast(stream) as hub:
            with pytest.raises(ValueError, match="slow must be"):
                hub.listen(slow="never")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="where"):
                hub.listen(where="x")  # type: ignore[arg-type]
            with pytest.raises(RuntimeError, match="entered once"):
                await hub.__aenter__()
            with pytest.raises(RuntimeError, match="the listener is not open"):
                await anext(hub.listen())


async def test_records_without_an_event_need_a_function_for_their_position(sim):
    async with Client(**sim.client_options()) as wme:
        async with Broadcast(wme.realtime.articles(type=dict)) as hub, hub.listen() as events:
            sim.firehose.publish()
            with pytest.raises(StreamError) as caught:
                await anext(events)
            assert isinstance(caught.value.__cause__, TypeError)

        def position(article: dict[str, Any]) -> tuple[int, int]:
            return article["event"]["partition"], article["event"]["offset"]

        async with Broadcast(wme.realtime.articles(type=dict), position=position) as hub, hub.listen() as events:
            sim.firehose.publish()
            event = await anext(events)
            assert event.id is not None
            assert event.id.endswith("{}:{}".format(*position(event.item)))


async def delays(*, hindered: bool) -> list[float]:
    """Return the delays of 198 listeners of 200, of which two are frozen and slow if `hindered`."""
    loop = asyncio.get_running_loop()
    sent: dict[tuple[int | None, int | None], float] = {}
    measured: list[float] = []

    async def listen(events: Listener[Article]) -> None:
        for _ in range(300):
            event = (await anext(events)).item.event
            measured.append(loop.time() - sent[event.partition, event.offset])

    async def crawl(events: Listener[Article]) -> None:
        async for _ in events:
            await asyncio.sleep(0.5)

    async with (
        Simulator() as sim,
        relay(sim, backlog=100) as hub,
        contextlib.AsyncExitStack() as stack,
        asyncio.TaskGroup() as tasks,
    ):
        listeners = [await stack.enter_async_context(hub.listen()) for _ in range(200)]
        frozen, slow, *others = listeners
        readers = [tasks.create_task(listen(events)) for events in others]
        if hindered:
            crawling = tasks.create_task(crawl(slow))
        else:
            frozen.close()
            slow.close()
        for _ in range(300):
            sent[sim.firehose.publish(size="small")] = loop.time()
            await asyncio.sleep(0.02)
        await asyncio.gather(*readers)
        assert hub.statistics().backlog <= 100
        if hindered:
            crawling.cancel()
    return measured


@pytest.mark.torture
async def test_a_frozen_and_a_slow_listener_do_not_delay_198_others():
    def p99(values: list[float]) -> float:
        return statistics.quantiles(values, n=100)[98]

    ratios = [p99(await delays(hindered=True)) / p99(await delays(hindered=False)) for _ in range(5)]
    assert statistics.median(ratios) <= 2, sorted(ratios)
