"""The stream when things happen at the least convenient moment: cancellation, abandonment, two readers at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from test_stream import Checker, World, articles, learn_the_time, take, world

from wme_async._stream import stream as stream_module
from wme_async._stream.buffer import Block, Buffer, Session
from wme_async._stream.partitions import Missing, Partitions, Verdict
from wme_async._stream.record_types import EventPosition
from wme_async._stream.resume import StreamRequest
from wme_async.errors import DecodeError, OffsetGap, StreamError
from wme_async.models import Article
from wme_async.offsets import MemoryOffsets, Position


@pytest.fixture(name="world")
async def _world() -> AsyncIterator[World]:
    async with world() as (sim, transport):
        yield sim, transport
        assert transport.open_bodies == 0
        await sim.firehose.wait_open(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("wme stream")]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


def tick(stream: Any, seconds: float) -> None:
    receiver = stream._receiver
    receiver._partitions.tick(seconds, now=receiver.server_now(), connected=receiver._listening())


def record(partition: int, offset: int) -> bytes:
    event = b'{"partition":%d,"offset":%d,"date_published":"2025-04-11T05:00:00Z"}' % (partition, offset)
    return b'{"name":"x","event":%b}' % event


async def test_a_block_that_waited_for_room_is_dropped_with_those_before_it() -> None:
    """It would be taken for the continuation of what was dropped."""
    buffer = Buffer(1)
    connection: Any = None
    session = Session(connection, 0.0)
    await buffer.put(Block(session, [b"{}"], 10))
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(buffer.put(Block(session, [b"{}"], 10)))
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
    sim, transport = world
    check = Checker()
    async with articles(transport, commit=commit) as stream:
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
    assert check.got == sent


async def test_lists_that_are_cancelled_at_any_turn_lose_nothing_and_repeat_nothing(world: World) -> None:
    sim, transport = world
    check = Checker()
    async with articles(transport, connections=3, keep=lambda article: article.event.offset % 3 > 0) as stream:
        sent = [each for each in sim.firehose.publish_many(600) if each[1] % 3]
        patience = 0
        async with asyncio.timeout(20):
            while len(check.got) < len(sent):
                patience += 1
                asking = asyncio.ensure_future(anext(stream.batches(7, 0.5)))
                await turns(patience % 9)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    for article in await asking:
                        check.take(article)
                if patience % 5 == 0 and len(check.got) < len(sent):
                    asking = asyncio.ensure_future(anext(stream))
                    await turns(patience % 4)
                    asking.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        check.take(await asking)
                if patience % 50 == 0:
                    await asyncio.sleep(0.001)
        for partition, position in stream.positions.items():
            assert position.offset <= max(check.last[partition] + 1, 0)
    assert sorted(check.got) == sorted(sent)


async def test_lists_can_be_asked_for_again_after_a_cancelled_wait_and_after_an_error(world: World) -> None:
    sim, transport = world
    async with articles(transport) as stream:
        batches = stream.batches(1, 60)
        asking = asyncio.ensure_future(anext(batches))
        await turns()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        sim.firehose.publish(record(7, 0).replace(b'"x"', b"5"), partition=7)
        sim.firehose.publish(partition=7)
        with pytest.raises(DecodeError):
            await anext(batches)
        (article,) = await anext(batches)
        assert article.event.offset == 1


async def test_lists_that_are_cancelled_again_and_again_do_not_pile_up(world: World) -> None:
    sim, transport = world
    async with articles(transport) as stream:
        sim.firehose.publish(partition=7)
        await until(lambda: stream._receiver.buffer.size > 0)
        for _ in range(500):
            asking = asyncio.ensure_future(anext(stream.batches(2, 60)))
            await turns(2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert len(await anext(stream.batches(1, 0))) == 1


async def test_a_second_task_that_reads_is_told_so(world: World) -> None:
    sim, transport = world
    async with articles(transport) as stream:
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
    sim, transport = world
    async with articles(transport) as stream:
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


@pytest.mark.parametrize("commit", ["auto", "manual", "ack"])
@pytest.mark.parametrize("kind", [Article, dict, msgspec.Raw])
async def test_all_of_a_list_can_be_acknowledged_whatever_runs_it_is_made_of(
    kind: Any, commit: Any, world: World
) -> None:
    _, transport = world
    async with articles(transport, type=kind, commit=commit) as stream:
        (connection,) = stream._receiver.connections
        for offset in range(5):
            await stream._receiver.buffer.put(Block(Session(connection, 0.0), [record(7, offset)], 100))
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
    _, transport = world
    async with articles(transport, type=dict) as stream:
        (connection,) = stream._receiver.connections
        for offset in range(2):
            await stream._receiver.buffer.put(Block(Session(connection, 0.0), [record(7, offset)], 100))
        asking = asyncio.ensure_future(anext(stream.batches(3, 60)))
        await until(lambda: stream.statistics().events == 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        for offset in range(2):
            stream.ack(await anext(stream))
            assert stream.positions[7].offset == offset


async def test_a_request_that_is_cancelled_before_its_first_step_does_not_end_the_stream(world: World) -> None:
    sim, transport = world
    async with articles(transport) as stream:
        asking = asyncio.ensure_future(anext(stream))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        sim.firehose.publish(partition=7)
        assert [article.event.offset async for article in take(stream, 1)] == [0]


# Partitions that are numbered anew


async def test_a_partition_that_is_made_anew_is_read_from_its_new_beginning(world: World) -> None:
    """Its events have numbers that were seen before; dropped as duplicates, nothing of it would come for years."""
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, parts=[1]) as stream:
        sent = sim.firehose.publish_many(20, partition=7)
        async for article in take(stream, len(sent)):
            stream.ack(article)
    sim.clock.advance(3600)
    sim.firehose.log[7] = type(sim.firehose.log[7])()
    sim.firehose.publish_many(3, partition=7)
    sim.clock.advance(600)
    await learn_the_time(transport)
    gaps: list[OffsetGap] = []
    async with articles(transport, offsets=store, parts=[1], on_gap=gaps.append) as stream:
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


def test_acknowledgements_across_a_new_numbering_never_mix_the_two() -> None:
    noon = datetime(2025, 4, 11, 12, tzinfo=UTC)
    progress = Partitions([7], {}, start=noon, retention=48 * 3600.0, filtered=True)
    old = [EventPosition(7, number, noon + timedelta(seconds=number)) for number in (100, 101)]
    new = [EventPosition(7, number, noon + timedelta(hours=1, seconds=number)) for number in (0, 1)]
    for event in old:
        progress.by_number[7].read = event
        progress.hand_out(event)
    assert progress.judge(EventPosition(7, 101, old[1].date_published), None) is Verdict.DROP
    for event in new:
        progress.by_number[7].read = event
        progress.hand_out(event)
    progress.acknowledge(old[0])
    assert progress.by_number[7].processed is None
    progress.acknowledge(new[0])
    assert progress.positions()[7].offset == 0
    progress.by_number[7].processed = old[1]
    progress.acknowledge_up_to(old[0])
    progress.acknowledge_up_to(new[1])
    assert progress.positions()[7].offset == 1
    with pytest.raises(ValueError, match="not from this stream"):
        progress.acknowledge_up_to(EventPosition(7, 5, noon + timedelta(hours=1, minutes=1)))


def test_a_partition_that_is_made_anew_while_it_is_read_is_asked_for_once_more() -> None:
    noon = datetime(2025, 4, 11, 12, tzinfo=UTC)
    progress = Partitions([7], {}, start=noon, retention=48 * 3600.0, filtered=False)
    progress.by_number[7].read = EventPosition(7, 100, noon)
    # Too near in time to be told from repetitions; then far enough.
    assert progress.judge(EventPosition(7, 0, noon + timedelta(minutes=5)), None) is Verdict.DROP
    assert progress.judge(EventPosition(7, 2, noon + timedelta(minutes=15)), None) is Verdict.ASK_AGAIN
    wanted = StreamRequest(parts=(1,), offsets={}, since={7: noon - timedelta(minutes=1)})
    progress.connect(wanted, at=noon + timedelta(minutes=16), probes={7: 2})
    assert progress.judge(EventPosition(7, 99, noon - timedelta(seconds=30)), None) is Verdict.DROP
    missing = progress.judge(EventPosition(7, 0, noon + timedelta(minutes=5)), None)
    assert isinstance(missing, Missing)
    assert (missing.gap.expected, missing.gap.got) == (101, 0)
    progress.by_number[7].read = EventPosition(7, 0, noon + timedelta(minutes=5))
    assert progress.judge(EventPosition(7, 0, noon + timedelta(minutes=5)), None) is Verdict.DROP
    assert progress.judge(EventPosition(7, 1, noon + timedelta(minutes=10)), None) is Verdict.TAKE
    assert progress.gaps == 1


# What counts as silence


async def test_only_an_accepted_request_is_listening(world: World) -> None:
    """A request on its way into nowhere hears nothing either, and what it misses must stay missing."""
    sim, transport = world
    async with articles(transport, parts=[1], idle_timeout=0.2) as stream:
        (connection,) = stream._receiver.connections
        assert not connection.listening
        async with asyncio.timeout(10):
            await sim.firehose.wait_open(1)
            assert not connection.connected
            assert not connection.listening
            sim.firehose.publish(partition=7)
            await anext(stream)
            assert connection.connected
            assert connection.listening
            first = connection.session
            await until(lambda: connection.session not in {first, None})
        assert connection.listening, "silence was the answer"


def test_silence_does_not_span_the_time_without_a_connection() -> None:
    noon = datetime(2025, 4, 11, 12, tzinfo=UTC)
    progress = Partitions([7], {}, start=noon, retention=48 * 3600.0, filtered=True)
    progress.tick(0.0, now=noon, connected=[7])
    progress.tick(500.0, now=noon, connected=[7])
    progress.tick(50_000.0, now=noon + timedelta(hours=14), connected=[])
    progress.tick(500.0, now=noon + timedelta(hours=14), connected=[7])
    assert progress.positions()[7].reached is None
    progress.tick(500.0, now=noon + timedelta(hours=14, minutes=10), connected=[7])
    assert progress.positions()[7].reached == noon + timedelta(hours=14)


async def test_nothing_is_silence_while_the_consumer_holds_the_stream_up(world: World) -> None:
    sim, transport = world
    async with articles(transport, parts=[1], max_buffer=1) as stream:
        sim.firehose.publish_many(300, partition=7)
        await anext(stream)
        await until(lambda: stream._receiver.buffer.full)
        tick(stream, 0.0)
        tick(stream, 5000.0)
        assert stream.positions[8].reached is None
        await Checker().read(stream, 299)
        tick(stream, 0.0)
        tick(stream, 5000.0)
        assert stream.positions[8].reached is not None


async def test_what_nobody_has_looked_at_yet_is_not_silence(world: World) -> None:
    """With a narrow filter the buffer never fills up, however long the consumer is away."""
    sim, transport = world
    async with articles(transport, parts=[1]) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
        sim.firehose.publish(partition=7)
        await until(lambda: stream._receiver.buffer.size > 0)
        tick(stream, 0.0)
        tick(stream, 5000.0)
        assert {position.reached for position in stream.positions.values()} == {None}
        stream.ack(await anext(stream))
        tick(stream, 0.0)
        tick(stream, 5000.0)
        assert None not in {position.reached for position in stream.positions.values()}


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
    _, transport = world
    store = Store()
    store.fails = True
    stream = articles(transport, offsets=store)
    with pytest.raises(OSError, match="no disk"):
        async with stream:
            pass
    await stream.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        stream.statistics()


async def test_a_save_that_hangs_does_not_hold_a_cancelled_reader_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_GRACE", 0.05)
    sim, transport = world
    store = Store()
    stream = articles(transport, offsets=store)
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
    assert not store._claimed


async def test_a_stream_whose_task_was_cancelled_from_outside_says_so(world: World) -> None:
    _, transport = world
    async with articles(transport) as stream:
        asking = asyncio.ensure_future(anext(stream))
        await turns()
        (task,) = (each for each in asyncio.all_tasks() if each.get_name() == "wme stream default/articles")
        task.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(StreamError, match="cancelled"):
                await asking


@pytest.mark.parametrize("keep", [None, lambda article: True])
async def test_events_of_partitions_that_belong_to_another_connection_are_left_to_it(keep: Any, world: World) -> None:
    """Taken from a connection that is ahead, they would hide what comes before them on the one that has them all."""
    sim, transport = world
    async with articles(transport, connections=2, keep=keep) as stream:
        await sim.firehose.wait_open(2)
        ahead = b'{"name":"x","event":{"partition":7,"offset":5,"date_published":"2025-04-11T05:00:00Z"}}'
        zeroth = stream._receiver.connections[0]
        assert 7 not in zeroth.partitions
        await stream._receiver.buffer.put(Block(Session(zeroth, 0.0), [ahead], len(ahead)))
        sim.firehose.publish_many(6, partition=7)
        assert [article.event.offset async for article in take(stream, 6)] == list(range(6))
        assert stream.statistics().duplicates == 1


async def test_a_bad_record_of_a_partition_that_belongs_to_another_connection_hides_nothing_there(world: World) -> None:
    sim, transport = world
    bad: list[DecodeError] = []
    async with articles(transport, connections=2, on_bad_record=bad.append) as stream:
        await sim.firehose.wait_open(2)
        ahead = record(7, 5).replace(b'"x"', b"5")
        await stream._receiver.buffer.put(Block(Session(stream._receiver.connections[0], 0.0), [ahead], len(ahead)))
        sim.firehose.publish_many(6, partition=7)
        assert [article.event.offset async for article in take(stream, 6)] == list(range(6))
    (error,) = bad
    assert (error.record, error.partition, error.offset) == (ahead, 7, 5)
