"""The stream when things happen at the least convenient moment: cancellation, two readers at a time, silence."""

import asyncio
import contextlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from conftest import ClientClock
from stream_world import Checker, World, articles, learn_the_time, record, take, turns, until

from wme_async import MemoryOffsets, Position, Stream, StreamDisconnected, StreamEvent

# The buffer alone: that a stream ends a connection at this very moment cannot be arranged from outside.
from wme_async._stream.buffer import BlockQueue, RecordBlock
from wme_async.errors import DecodeError, OffsetGap, StreamError
from wme_async.models import Article
from wme_async.simulator import Simulator


async def test_a_block_that_waited_for_room_is_dropped_with_those_before_it() -> None:
    """It would be taken for the continuation of what was dropped."""
    buffer = BlockQueue(1)
    session: Any = SimpleNamespace(abandoned=None, waiting=0)
    await buffer.put(RecordBlock(session, [b"{}"], 10))
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(buffer.put(RecordBlock(session, [b"{}"], 10)))
        await turns()
        assert not waiting.done()
        session.abandoned = StreamError("look again")
        buffer.purge(session)
    assert buffer.size == 0
    assert session.waiting == 0
    async with asyncio.timeout(5):
        await buffer.wait_decoded(session)


@pytest.mark.parametrize("commit", ["auto", "ack"])
async def test_a_list_that_was_cancelled_while_it_filled_is_not_lost(commit: Any, world: World) -> None:
    sim, wme = world
    check = Checker()
    async with articles(wme, commit=commit) as stream:
        sent = sim.firehose.publish_many(3, partition=7)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(stream.batches(100, 60))
        assert stream.positions[7].offset == -1
        sent += sim.firehose.publish_many(2, partition=7)
        async with asyncio.timeout(10):
            batch = await anext(stream.batches(4, 60))
            for article in batch:
                check.take(article)
                if commit == "ack":
                    stream.ack(article)
            check.take(await anext(stream))
        assert stream.positions[7].offset == 3
    assert check.events == sent


async def test_lists_that_are_cancelled_at_any_turn_lose_nothing_and_repeat_nothing(world: World) -> None:
    sim, wme = world
    check = Checker()
    async with articles(wme, connections=3, filters={"identifier": 2_000_000}) as stream:
        sent = []
        for number in range(600):
            event = {"identifier": 2_000_000 if number % 3 else 1, "event": {"type": "update"}}
            place = sim.firehose.publish(event, partition=number % 50)
            if number % 3:
                sent.append(place)
        patience = 0
        async with asyncio.timeout(20):
            while len(check.events) < len(sent):
                patience += 1
                asking = asyncio.ensure_future(anext(stream.batches(7, 0.5)))
                await turns(patience % 9)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    for article in await asking:
                        check.take(article)
                if patience % 5 == 0 and len(check.events) < len(sent):
                    asking = asyncio.ensure_future(anext(stream))
                    await turns(patience % 4)
                    asking.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        check.take(await asking)
                if patience % 50 == 0:
                    await asyncio.sleep(0.001)
        for partition, position in stream.positions.items():
            assert position.offset <= max(check.last[partition] + 1, 0)
    assert sorted(check.events) == sorted(sent)


async def test_lists_can_be_asked_for_again_after_a_cancelled_wait_and_after_an_error(world: World) -> None:
    sim, wme = world
    async with articles(wme) as stream:
        batches = stream.batches(1, 60)
        asking = asyncio.ensure_future(anext(batches))
        await turns()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        sim.firehose.publish(record(7, 0, name=5), partition=7)
        sim.firehose.publish(partition=7)
        with pytest.raises(DecodeError):
            await anext(batches)
        (article,) = await anext(batches)
        assert article.event.offset == 1


async def test_lists_that_are_cancelled_again_and_again_do_not_pile_up(world: World) -> None:
    sim, wme = world
    async with articles(wme) as stream:
        sim.firehose.publish(partition=7)
        await until(lambda: stream.statistics().buffered > 0)
        for _ in range(500):
            asking = asyncio.ensure_future(anext(stream.batches(2, 60)))
            await turns(2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert len(await anext(stream.batches(1, 0))) == 1


async def test_a_second_task_that_reads_is_told_so(world: World) -> None:
    sim, wme = world
    async with articles(wme) as stream:
        first = asyncio.ensure_future(anext(stream.batches(10, 0)))
        await turns()
        with pytest.raises(RuntimeError, match="one task"):
            await anext(stream.batches())
        sim.firehose.publish(partition=7)
        assert len(await first) == 1
        single = asyncio.ensure_future(anext(stream))
        await turns()
        with pytest.raises(RuntimeError):
            await anext(stream.batches())
        sim.firehose.publish(partition=7)
        assert (await single).event.offset == 1


async def test_lists_and_single_events_in_turn_never_take_a_position_back(world: World) -> None:
    sim, wme = world
    async with articles(wme) as stream:
        sim.firehose.publish_many(6, partition=7)
        reached = []
        batches = stream.batches(2, 60)
        async with asyncio.timeout(10):
            for batched in (False, True, False, True):
                found = await anext(batches) if batched else [await anext(stream)]
                reached.append((found[-1].event.offset, stream.positions[7].offset))
        assert [offset for offset, _ in reached] == [0, 2, 3, 5]
        # The single event was not counted where a list followed it at once; a later one of its partition does that.
        assert [done for _, done in reached] == [-1, -1, 2, 2]


async def publish_block(sim: Simulator, stream: Stream[Any]) -> None:
    """Publish an event and wait until it is received, so that it is a block and a run of its own."""
    size = stream.statistics().bytes
    sim.firehose.publish(partition=7)
    await until(lambda: stream.statistics().bytes > size)


@pytest.mark.parametrize("commit", ["auto", "manual", "ack"])
@pytest.mark.parametrize("kind", [Article, dict, msgspec.Raw])
async def test_all_of_a_list_can_be_acknowledged_whatever_runs_it_is_made_of(
    kind: Any, commit: Any, world: World
) -> None:
    sim, wme = world
    async with articles(wme, type=kind, commit=commit) as stream:
        for _ in range(5):
            await publish_block(sim, stream)
        batches = stream.batches(4, 60)
        batch = await anext(batches)
        for offset, article in enumerate(batch):
            stream.ack(article)
            assert stream.positions[7].offset == offset
        (last,) = await anext(stream.batches(1, 60))
        stream.ack(last)
        assert stream.positions[7].offset == 4
        assert len(batch) == 4


async def test_what_a_cancelled_list_had_taken_can_be_acknowledged(world: World) -> None:
    sim, wme = world
    async with articles(wme, type=dict) as stream:
        for _ in range(2):
            await publish_block(sim, stream)
        asking = asyncio.ensure_future(anext(stream.batches(3, 60)))
        await until(lambda: stream.statistics().events == 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        for offset in range(2):
            stream.ack(await anext(stream))
            assert stream.positions[7].offset == offset


async def test_a_request_that_is_cancelled_before_its_first_step_does_not_end_the_stream(world: World) -> None:
    sim, wme = world
    async with articles(wme) as stream:
        asking = asyncio.ensure_future(anext(stream))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        sim.firehose.publish(partition=7)
        assert [article.event.offset async for article in take(stream, 1)] == [0]


# Partitions that are numbered anew


async def test_a_partition_that_is_made_anew_is_read_from_its_new_beginning(world: World) -> None:
    """Its events have numbers that were seen before; dropped as duplicates, nothing of it would come for years."""
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, parts=[1]) as stream:
        sent = sim.firehose.publish_many(20, partition=7)
        async for article in take(stream, len(sent)):
            stream.ack(article)
    sim.clock.advance(3600)
    sim.firehose.log[7] = type(sim.firehose.log[7])()
    sim.firehose.publish_many(3, partition=7)
    sim.clock.advance(600)
    await learn_the_time(sim, wme)
    gaps: list[OffsetGap] = []
    async with articles(wme, offsets=store, parts=[1], on_gap=gaps.append) as stream:
        asking = asyncio.ensure_future(anext(stream))
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7)
        async with asyncio.timeout(10):
            got = [(await asking).event.offset]
        got += [article.event.offset async for article in take(stream, 3)]
        sim.firehose.disconnect()
        sim.firehose.publish(partition=7)
        last = await anext(stream)
        stream.ack(last)
        assert stream.positions[7].offset == 4
    assert [*got, last.event.offset] == [0, 1, 2, 3, 4]
    (gap,) = gaps
    assert (gap.expected, gap.got, gap.reason) == (20, 0, "out_of_range")
    assert (await store.load("default/articles"))[7].offset == 4


# What counts as silence


async def reached(stream: Stream[Any], clock: ClientClock) -> set[Any]:
    """Let an hour pass in two ticks; return up to when the partitions are known to be whole."""
    for _ in range(2):
        clock.offset += 1800.0
        await turns(50)
    return {position.reached for position in stream.positions.values()}


async def test_only_an_accepted_request_is_listening(world: World, client_clock: ClientClock) -> None:
    """A request on its way into nowhere hears nothing either, and what it misses must stay missing."""
    sim, wme = world
    async with articles(wme, parts=[1]) as stream, asyncio.timeout(20):
        await sim.firehose.wait_open(1)
        assert await reached(stream, client_clock) == {None}
        assert stream.statistics().connected == 0
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
        assert stream.statistics().connected == 1
        assert None not in await reached(stream, client_clock)


async def test_silence_after_an_accepted_request_is_listened_to(world: World, client_clock: ClientClock) -> None:
    sim, wme = world
    silent = asyncio.Event()

    def watch(event: StreamEvent) -> None:
        if isinstance(event, StreamDisconnected):
            silent.set()

    async with articles(wme, parts=[1], idle_timeout=0.1, on_event=watch) as stream, asyncio.timeout(20):
        await silent.wait()
        await sim.firehose.wait_open(1)
        assert None not in await reached(stream, client_clock), "silence was the response"


async def test_nothing_is_silence_while_the_consumer_holds_the_stream_up(
    world: World, client_clock: ClientClock
) -> None:
    sim, wme = world
    async with articles(wme, parts=[1], max_buffer=1) as stream:
        sim.firehose.publish_many(300, partition=7)
        await anext(stream)
        await until(lambda: stream.statistics().buffered > 0)
        assert await reached(stream, client_clock) == {None}
        await Checker().read(stream, 298)
        stream.ack(await anext(stream))
        assert None not in await reached(stream, client_clock)


async def test_events_that_nobody_has_taken_are_not_silence(world: World, client_clock: ClientClock) -> None:
    """With a narrow filter the buffer never fills up, however long the consumer is away."""
    sim, wme = world
    async with articles(wme, parts=[1]) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
        sim.firehose.publish(partition=7)
        await until(lambda: stream.statistics().buffered > 0)
        assert await reached(stream, client_clock) == {None}
        stream.ack(await anext(stream))
        assert None not in await reached(stream, client_clock)


# Beginnings and ends that fail


class Store(MemoryOffsets):
    """Positions that cannot be read, or whose saving hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.hangs = False

    async def load(self, name: str) -> Mapping[int, Position]:
        if self.fails:
            raise OSError("no disk")
        return await super().load(name)

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await super().save(name, positions)


async def test_a_stream_that_could_not_be_opened_can_be_closed(world: World) -> None:
    _, wme = world
    store = Store()
    store.fails = True
    stream = articles(wme, offsets=store)
    with pytest.raises(OSError, match="no disk"):
        async with stream:
            pass
    await stream.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        stream.statistics()


async def test_a_save_that_hangs_does_not_hold_a_cancelled_reader_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wme_async._stream.stream._GRACE", 0.05)
    sim, wme = world
    store = Store()
    stream = articles(wme, offsets=store)
    await stream.__aenter__()
    sim.firehose.publish(partition=7)
    stream.ack(await anext(stream))
    store.hangs = True
    closing = asyncio.ensure_future(stream.aclose())
    await turns()
    closing.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await closing
    async with store.claim("default/articles"):
        pass  # it is free again


async def test_a_stream_whose_task_was_cancelled_from_outside_says_so(world: World) -> None:
    _, wme = world
    async with articles(wme) as stream:
        asking = asyncio.ensure_future(anext(stream))
        await turns()
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "wme stream default/articles")
        task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(StreamError, match="cancelled"):
                await asking


@pytest.mark.parametrize("filters", [None, {"identifier": 2_000_000}])
async def test_events_of_partitions_that_belong_to_another_connection_are_left_to_it(
    filters: Any, world: World
) -> None:
    """Taken from a connection that is ahead, they would hide what comes before them on the one that has them all."""
    sim, wme = world
    async with articles(wme, connections=2, filters=filters) as stream:
        await sim.firehose.wait_open(2)
        sim.firehose.publish(record(7, 5, identifier=2_000_000), partition=0)
        await until(lambda: stream.statistics().buffered > 0)
        for _ in range(6):
            sim.firehose.publish({"identifier": 2_000_000, "event": {"type": "update"}}, partition=7)
        assert [article.event.offset async for article in take(stream, 6)] == list(range(6))
        assert stream.statistics().duplicates == 1


async def test_a_bad_record_of_a_partition_that_belongs_to_another_connection_hides_nothing_there(world: World) -> None:
    sim, wme = world
    bad: list[DecodeError] = []
    async with articles(wme, connections=2, on_bad_record=bad.append) as stream:
        await sim.firehose.wait_open(2)
        ahead = record(7, 5, name=5)
        sim.firehose.publish(ahead, partition=0)
        await until(lambda: stream.statistics().buffered > 0)
        sim.firehose.publish_many(6, partition=7)
        assert [article.event.offset async for article in take(stream, 6)] == list(range(6))
    (error,) = bad
    assert (error.record, error.partition, error.offset) == (ahead, 7, 5)
