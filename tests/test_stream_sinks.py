"""What a stream offers to sinks that hold positions themselves."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from stream_world import World, articles

from wme_async import MemoryOffsets, Position
from wme_async.models import Article


class Title(msgspec.Struct):
    """A type without an event."""

    name: str


async def test_a_sink_chooses_the_positions_to_begin_with(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets({"default/articles": {5: Position(2, datetime.fromtimestamp(sim.clock.now(), UTC))}})
    sim.firehose.publish_many(10, partition=5)
    seen: list[Any] = []

    async def choose(partitions: Sequence[int], saved: Mapping[int, Position]) -> Mapping[int, Position]:
        seen.append((partitions, saved[5].offset))
        return {**saved, 5: Position(6, saved[5].published)}

    stream = articles(wme, parts=[1], offsets=store)
    stream.begin_with(choose)
    assert stream.partitions == (5, 6, 7, 8, 9)
    async with stream:
        assert (await anext(stream)).event.offset == 7
        with pytest.raises(RuntimeError, match="before a stream is opened"):
            stream.begin_with(choose)
    assert seen == [(stream.partitions, 2)]
    assert (await store.load(stream.key))[5].offset == 6


@pytest.mark.parametrize("type", [Article, Title, dict, msgspec.Raw])
@pytest.mark.parametrize("commit", ["auto", "ack"])
async def test_the_event_of_an_article_is_known_whatever_its_type(world: World, type: Any, commit: str) -> None:
    sim, wme = world
    since = datetime.fromtimestamp(sim.clock.now(), UTC) - timedelta(hours=1)
    sim.firehose.publish_many(3, partition=5)
    async with articles(wme, type=type, commit=commit, since=since) as stream:
        batch = await anext(stream.batches(3, 5.0))
        events = [stream.event_of(article) for article in batch]
        assert [(event.partition, event.offset) for event in events if event is not None] == [(5, 0), (5, 1), (5, 2)]
        sim.firehose.publish(partition=5)
        event = stream.event_of(await anext(stream))
        assert event is not None
        assert event.offset == 3
        if type is not Article:
            assert stream.event_of(batch[0]) is None or commit == "ack"


async def test_a_list_ends_with_the_block_that_exceeds_its_bytes(world: World) -> None:
    sim, wme = world
    since = datetime.fromtimestamp(sim.clock.now(), UTC) - timedelta(hours=1)
    sim.firehose.publish_many(40, partition=5, size=20_000)
    sizes: list[int] = []
    async with articles(wme, type=msgspec.Raw, since=since) as stream:
        batches = stream.batches(1000, 60.0, 100_000)
        async with asyncio.timeout(20):
            while sum(sizes) < 35:
                sizes.append(len(await anext(batches)))
    assert max(sizes) < 40
    with pytest.raises(RuntimeError):
        stream.server_now()


@pytest.mark.parametrize("wrong", [0, -1])
async def test_a_limit_of_no_bytes_is_an_error(world: World, wrong: int) -> None:
    _, wme = world
    async with articles(wme) as stream:
        with pytest.raises(ValueError, match="max_bytes"):
            stream.batches(max_bytes=wrong)
        assert stream.server_now().tzinfo is UTC
