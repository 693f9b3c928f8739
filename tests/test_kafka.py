"""Into Kafka: every event once and in order, and the position in the topic."""

import asyncio
import functools
import itertools
from typing import Any

import msgspec
import pytest

pytest.importorskip("aiokafka", reason="needs the extra `kafka`")

from datetime import UTC, datetime, timedelta

from kafka_mock import KafkaMock
from kafka_topic import Topic, check_once_and_in_order, event_of, headers_of
from stream_world import World, articles, until

from wme_async import Client, MemoryOffsets
from wme_async.integrations.kafka import Bridge, to_kafka
from wme_async.simulator import Simulator


def stream_of(sim: Simulator, wme: Client, **options: Any) -> Any:
    """A stream that begins an hour ago."""
    since = datetime.fromtimestamp(sim.clock.now(), UTC) - timedelta(hours=1)
    return articles(wme, **{"since": since, "type": msgspec.Raw, **options})


def has_sent(bridge: Bridge[Any, int]) -> bool:
    return bridge.statistics().sent > 0


@pytest.fixture
def topic(kafka: KafkaMock) -> Topic:
    return Topic(kafka)


async def test_each_event_arrives_once_in_its_partition_as_it_came(world: World, topic: Topic) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(200)
    async with topic.producer() as producer:
        bridged = await to_kafka(stream_of(sim, wme), producer, topic.name, limit=200)
    assert (bridged.sent, bridged.skipped, bridged.pending) == (200, 0, 0)
    messages = await topic.messages()
    assert bridged.bytes == sum(len(message.value) for some in messages.values() for message in some)
    check_once_and_in_order(map(event_of, itertools.chain(*messages.values())), published)
    for number, some in messages.items():
        for message in some:
            record = msgspec.json.decode(message.value)
            headers = headers_of(message)
            assert number == record["event"]["partition"] == int(headers["wme-partition"])
            assert int(headers["wme-offset"]) == record["event"]["offset"]
            assert headers["wme-type"] == record["event"]["type"]
            assert message.key.decode() == f"{record['is_part_of']['identifier']}/{record['name']}".replace("_", " ")
        assert bridged.positions[number] == int(headers["wme-offset"])


async def test_a_bridge_continues_behind_the_last_message_of_each_partition(world: World, topic: Topic) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(100)
    async with topic.producer() as producer:
        await to_kafka(stream_of(sim, wme), producer, topic.name, limit=60)
        published += sim.firehose.publish_many(100)
        # No store, and begins an hour ago: the positions come from the topic alone.
        bridged = await to_kafka(stream_of(sim, wme), producer, topic.name, limit=140)
    assert bridged.sent == 140
    check_once_and_in_order(await topic.events(), published)


async def test_events_of_a_silent_partition_while_no_bridge_runs_are_not_lost(world: World, topic: Topic) -> None:
    sim, wme = world
    sim.firehose.publish(partition=3)
    async with topic.producer() as producer:
        await to_kafka(stream_of(sim, wme), producer, topic.name, limit=1)
        # Partition 7 has no message in the topic that could have a position, and this stream begins now.
        sim.firehose.publish(partition=7)
        sim.clock.advance(60)
        await to_kafka(stream_of(sim, wme, since=None), producer, topic.name, limit=1)
    assert sorted(await topic.events()) == [(3, 0), (7, 0)]


async def test_it_can_be_watched_and_stopped(world: World, topic: Topic) -> None:
    sim, wme = world
    sim.firehose.publish_many(50)
    async with topic.producer() as producer:
        bridge: Bridge[Any, int] = to_kafka(stream_of(sim, wme), producer, topic.name)
        assert not bridge.statistics().running
        running = asyncio.ensure_future(bridge)
        await until(lambda: bridge.statistics().sent == 50)
        now = bridge.statistics()
        assert (now.running, now.connected, now.pending, now.stalled, bridge.failure) == (True, 1, 0, 0.0, None)
        assert now.lag is not None
        assert now.lag >= 0
        sim.clock.advance(30)
        assert bridge.statistics().lag >= now.lag  # type: ignore[operator]
        bridge.stop()
        bridged = await running
    assert (bridged.sent, bridged.running, bridged.connected) == (50, False, 0)
    with pytest.raises(RuntimeError, match="runs once"):
        await bridge


async def test_a_cancelled_bridge_loses_and_doubles_nothing(world: World, topic: Topic) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(300)
    async with topic.producer() as producer:
        for _ in range(5):
            bridge: Bridge[Any, int] = to_kafka(stream_of(sim, wme), producer, topic.name, batch=20)
            running = asyncio.ensure_future(bridge)
            await until(functools.partial(has_sent, bridge))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert bridge.failure is None
        left = 300 - len(await topic.events())
        assert left > 0
        await to_kafka(stream_of(sim, wme), producer, topic.name, limit=left)
    check_once_and_in_order(await topic.events(), published)


async def test_with_a_store_the_store_has_the_positions(world: World, topic: Topic) -> None:
    sim, wme = world
    store = MemoryOffsets()
    sim.firehose.publish_many(30, partition=1)
    async with topic.producer() as producer:
        for count in (10, 20):
            stream = stream_of(sim, wme, offsets=store)
            await to_kafka(stream, producer, topic.name, positions="store", limit=count)
        assert [offset for _, offset in await topic.events()] == list(range(30))
        # Another store knows nothing of these, and the topic is not asked.
        again = stream_of(sim, wme, offsets=MemoryOffsets())
        await to_kafka(again, producer, topic.name, positions="store", limit=30)
    assert [offset for _, offset in await topic.events()] == [*range(30), *range(30)]


async def test_deletions_are_tombstones_if_asked(world: World, topic: Topic) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    sim.firehose.publish(partition=1, kind="delete")
    async with topic.producer() as producer:
        await to_kafka(stream_of(sim, wme), producer, topic.name, tombstones=True, limit=2)
    update, deletion = (await topic.messages())[1]
    assert msgspec.json.decode(update.value)["event"]["type"] == "update"
    assert deletion.value is None
    assert "/" in deletion.key.decode()
    assert headers_of(deletion)["wme-type"] == "delete"
