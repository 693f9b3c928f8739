"""Bridges into Kafka and NATS alike: every event once and in order, and the position in the target."""

import asyncio
import functools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from broker_targets import Target, check_once_and_in_order, events_in
from stream_world import World, articles, until

from wme_async import Client, MemoryOffsets
from wme_async.simulator import Simulator


def stream_of(sim: Simulator, wme: Client, **options: Any) -> Any:
    """A stream that begins an hour ago."""
    since = datetime.fromtimestamp(sim.clock.now(), UTC) - timedelta(hours=1)
    return articles(wme, **{"since": since, "type": msgspec.Raw, **options})


def has_sent(bridge: Any, count: int) -> bool:
    return bool(bridge.statistics().sent >= count)


async def test_each_event_arrives_once_in_its_place_as_it_came(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(200)
    async with target.connect() as client:
        bridged = await target.bridge(client, stream_of(sim, wme), limit=200)
    assert (bridged.sent, bridged.skipped, bridged.pending) == (200, 0, 0)
    messages = await target.messages()
    assert bridged.bytes == sum(len(message.value or b"") for message in messages)
    check_once_and_in_order((message.event for message in messages), published)
    for message in messages:
        record = msgspec.json.decode(message.value or b"")
        partition, offset = message.event
        assert (record["event"]["partition"], record["event"]["offset"]) == (partition, offset)
        assert message.place == target.place_of(partition)
        assert message.headers["wme-stream"] == "default/articles"
        assert message.headers["wme-type"] == record["event"]["type"]
        assert message.key == f"{record['is_part_of']['identifier']}/{record['name']}".replace("_", " ")
    assert bridged.positions == {
        partition: max(o for p, o in published if p == partition) for partition, _ in published
    }


async def test_a_bridge_continues_behind_the_last_message_of_each_place(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(100)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme), limit=60)
        published += sim.firehose.publish_many(100)
        # No store, and begins an hour ago: the positions come from the target alone.
        bridged = await target.bridge(client, stream_of(sim, wme), limit=140)
    assert bridged.sent == 140
    check_once_and_in_order(await events_in(target), published)


async def test_events_of_a_silent_partition_while_no_bridge_runs_are_not_lost(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=3)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme), limit=1)
        # Partition 7 has no message in the target that could have a position, and this stream begins now.
        sim.firehose.publish(partition=7)
        sim.clock.advance(60)
        await target.bridge(client, stream_of(sim, wme, since=None), limit=1)
    assert sorted(await events_in(target)) == [(3, 0), (7, 0)]


async def test_it_can_be_watched_and_stopped(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish_many(50)
    async with target.connect() as client:
        bridge = target.bridge(client, stream_of(sim, wme))
        assert not bridge.statistics().running
        running = asyncio.ensure_future(bridge)
        await until(functools.partial(has_sent, bridge, 50))
        now = bridge.statistics()
        assert (now.running, now.connected, now.pending, now.stalled, bridge.failure) == (True, 1, 0, 0.0, None)
        assert now.lag >= 0
        sim.clock.advance(30)
        assert bridge.statistics().lag >= now.lag
        bridge.stop()
        bridged = await running
    assert (bridged.sent, bridged.running, bridged.connected) == (50, False, 0)
    with pytest.raises(RuntimeError, match="runs once"):
        await bridge


async def test_a_cancelled_bridge_loses_and_doubles_nothing(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(300)
    async with target.connect() as client:
        for _ in range(5):
            bridge = target.bridge(client, stream_of(sim, wme), **{target.batch: 20})
            running = asyncio.ensure_future(bridge)
            await until(functools.partial(has_sent, bridge, 1))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert bridge.failure is None
        left = 300 - len(await target.messages())
        assert left > 0
        await target.bridge(client, stream_of(sim, wme), limit=left)
    check_once_and_in_order(await events_in(target), published)


async def test_with_a_store_the_store_has_the_positions(world: World, target: Target) -> None:
    sim, wme = world
    store = MemoryOffsets()
    published = sim.firehose.publish_many(30, partition=1)
    async with target.connect() as client:
        for count in (10, 20):
            stream = stream_of(sim, wme, offsets=store)
            await target.bridge(client, stream, positions="store", limit=count)
    check_once_and_in_order(await events_in(target), published)


async def test_deletions_are_tombstones_if_asked(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    sim.firehose.publish(partition=1, kind="delete")
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme), tombstones=True, limit=2)
    update, deletion = await target.messages()
    assert msgspec.json.decode(update.value or b"")["event"]["type"] == "update"
    assert deletion.value is None
    assert deletion.key is not None
    assert "/" in deletion.key
    assert deletion.headers["wme-type"] == "delete"
