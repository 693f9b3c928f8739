"""What only Kafka does: producers, errors of brokers, partitions of topics, and messages of others between ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("aiokafka", reason="needs the extra `kafka`")

import aiokafka
import msgspec
from broker_targets import KafkaTarget, check_once_and_in_order, events_in, has_sent, stream_of
from kafka_mock import PRODUCE, KafkaMock
from stream_world import World, articles, until

from wme_async.errors import StreamError
from wme_async.integrations.kafka import to_kafka
from wme_async.models import Article


@pytest.fixture
def topic(kafka: KafkaMock) -> KafkaTarget:
    return KafkaTarget(kafka)


@contextlib.asynccontextmanager
async def other_writer(topic: KafkaTarget) -> AsyncIterator[Any]:
    """A function that writes messages without our headers to a partition."""
    async with topic.connect() as producer:

        async def write(partition: int, count: int = 1, **headers: str) -> None:
            pairs = [(name.replace("_", "-"), text.encode()) for name, text in headers.items()]
            sent = [
                await producer.send(topic.topic, b"theirs", key=b"theirs", partition=partition, headers=pairs)
                for _ in range(count)
            ]
            await asyncio.gather(*sent)

        yield write


# Producers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enable_idempotence": False}, "enable_idempotence=True"),
        ({"transactional_id": "bridge"}, "transactional_id"),
        ({"value_serializer": str}, "value_serializer"),
        ({"key_serializer": str}, "key_serializer"),
    ],
)
async def test_a_producer_that_could_double_or_change_events_is_an_error(
    world: World, topic: KafkaTarget, options: dict[str, Any], words: str
) -> None:
    _, wme = world
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=topic.bootstrap, **{"enable_idempotence": True, **options})
    try:
        with pytest.raises(ValueError, match=words):
            to_kafka(articles(wme), producer, topic.topic)
    finally:
        await producer.stop()


async def test_wrong_arguments_are_named(world: World, topic: KafkaTarget) -> None:
    _, wme = world
    stream: Any = articles(wme)
    producer: Any = aiokafka.AIOKafkaProducer(bootstrap_servers=topic.bootstrap, enable_idempotence=True)
    values: list[dict[str, Any]] = [{"positions": "subject"}, {"topic": ""}]
    values += [{"limit": 0}, {"batch": 0}, {"max_message": 0}, {"max_bytes": 0}, {"grace": -1}]
    types: list[dict[str, Any]] = [{"stream": wme}, {"producer": topic.bootstrap}, {"topic": 7}, {"partition": 7}]
    types += [{"partition": str}, {"dead_letter": 7}, {"tombstones": 7}, {"grace": "x"}]
    try:
        for wrong in values:
            with pytest.raises(ValueError, match=next(iter(wrong))):
                to_kafka(**{"stream": stream, "producer": producer, "topic": "x", **wrong})
        for wrong in types:
            with pytest.raises(TypeError, match=next(iter(wrong))):
                to_kafka(**{"stream": stream, "producer": producer, "topic": "x", **wrong})
    finally:
        await producer.stop()


async def test_an_open_stream_is_an_error(world: World, topic: KafkaTarget) -> None:
    _, wme = world
    async with topic.connect() as producer, articles(wme) as stream:
        with pytest.raises(RuntimeError, match="before a stream is opened"):
            await topic.bridge(producer, stream)


# Brokers


@pytest.mark.parametrize("code", [6, 7, 19, 20], ids=["not leader", "timed out", "too few replicas", "too few later"])
async def test_an_error_that_passes_is_retried(world: World, kafka: KafkaMock, topic: KafkaTarget, code: int) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(60)
    async with topic.connect(retry_backoff_ms=10) as producer:
        kafka.fail(PRODUCE, code, 0, code)
        await topic.bridge(producer, stream_of(sim, wme), limit=60)
    check_once_and_in_order(await events_in(topic), published)


@pytest.mark.parametrize("time", ["1500-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
async def test_a_time_that_brokers_do_not_accept_is_left_to_the_producer(
    world: World, topic: KafkaTarget, time: str
) -> None:
    """Kafka accepts no time before 1970, and none that is an hour ahead of its clock."""
    sim, wme = world
    record = {"name": "Odd", "is_part_of": {"identifier": "enwiki"}}
    event = {"partition": 3, "offset": 0, "date_published": time}
    sim.firehose.publish(msgspec.json.encode({**record, "event": event}), partition=3)
    sim.firehose.publish(partition=3)
    async with topic.connect() as producer:
        await topic.bridge(producer, stream_of(sim, wme), limit=2)
    odd, _ = await topic.messages()
    assert odd.time is not None
    assert 1_700_000_000_000 < odd.time < 32_000_000_000_000


async def test_a_broker_that_is_away_is_waited_for(world: World, kafka: KafkaMock, topic: KafkaTarget) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(30)
    async with topic.connect(retry_backoff_ms=10) as producer:
        bridge = topic.bridge(producer, stream_of(sim, wme), limit=60)
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 30))
        kafka.down()
        try:
            published += sim.firehose.publish_many(30)
            await until(lambda: bridge.statistics().stalled > 0.05)
            assert bridge.statistics().running
        finally:
            kafka.up()
        await running
    check_once_and_in_order(await events_in(topic), published)


async def test_a_cancelled_bridge_waits_for_a_broker_no_longer_than_its_grace_and_the_next_doubles_nothing(
    world: World, kafka: KafkaMock, topic: KafkaTarget
) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(30)
    async with topic.connect(retry_backoff_ms=10) as producer:
        bridge = topic.bridge(producer, stream_of(sim, wme), grace=0.05)
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 30))
        kafka.down()
        try:
            published += sim.firehose.publish_many(30)
            await until(lambda: bridge.statistics().pending > 0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        finally:
            kafka.up()
        # The producer still has batches of the first one, and sends them now.
        second = topic.bridge(producer, stream_of(sim, wme))
        running = asyncio.ensure_future(second)
        await until(lambda: sum(offset + 1 for offset in second.statistics().positions.values()) == 60)
        second.stop()
        await running
    check_once_and_in_order(await events_in(topic), published)


async def test_a_batch_that_the_brokers_refuse_names_their_setting(
    world: World, kafka: KafkaMock, topic: KafkaTarget
) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with topic.connect() as producer:
        kafka.fail(PRODUCE, 10)
        with pytest.raises(StreamError, match=r"max\.message\.bytes"):
            await topic.bridge(producer, stream_of(sim, wme), limit=1)
    assert await events_in(topic) == []
    async with topic.connect() as producer:
        await topic.bridge(producer, stream_of(sim, wme), limit=1)
    assert await events_in(topic) == [(1, 0)]


async def test_a_producer_that_has_failed_for_good_ends_the_bridge(
    world: World, kafka: KafkaMock, topic: KafkaTarget
) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(20, partition=1)
    with contextlib.suppress(aiokafka.errors.KafkaError):
        async with topic.connect() as producer:
            kafka.fail(PRODUCE, 45)  # the broker has another sequence number
            bridge = topic.bridge(producer, stream_of(sim, wme), limit=20)
            with pytest.raises(aiokafka.errors.KafkaError):
                await bridge
            assert bridge.failure is not None
    async with topic.connect() as producer:
        await topic.bridge(producer, stream_of(sim, wme), limit=20)
    check_once_and_in_order(await events_in(topic), published)


class ForgetfulProducer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # the library has no types
    """A producer of brokers that have lost their last messages."""

    lost = 0

    async def send_batch(self, *arguments: Any, **options: Any) -> Any:
        future = await super().send_batch(*arguments, **options)

        async def confirmed() -> Any:
            metadata = await future
            values = [value - self.lost if value is metadata.offset else value for value in metadata]
            return type(metadata)(*values)

        return asyncio.ensure_future(confirmed())


@pytest.mark.parametrize("lost", [1, 1000])
async def test_brokers_that_lose_what_they_confirmed_are_noticed(world: World, topic: KafkaTarget, lost: int) -> None:
    sim, wme = world
    sim.firehose.publish_many(10, partition=1)
    async with ForgetfulProducer(bootstrap_servers=topic.bootstrap, enable_idempotence=True) as producer:
        await topic.bridge(producer, stream_of(sim, wme), limit=10)
        producer.lost = lost
        sim.firehose.publish_many(10, partition=1)
        bridge = topic.bridge(producer, stream_of(sim, wme), limit=10)
        if lost == 1:
            with pytest.raises(StreamError, match="went back from offset 10 to 9"):
                await bridge
        else:
            # An idempotent producer may learn that a batch is there, and not where.
            await bridge


async def test_memory_is_bounded_while_the_brokers_are_slow(world: World, kafka: KafkaMock, topic: KafkaTarget) -> None:
    sim, wme = world
    sim.firehose.publish_many(300, partition=1, size=20_000)
    async with topic.connect() as producer:
        bridge = topic.bridge(producer, stream_of(sim, wme, max_buffer=200_000), max_bytes=500_000, batch=1000)
        running = asyncio.ensure_future(bridge)
        kafka.delay(20)
        try:
            pending = set()
            while bridge.statistics().sent < 300:
                pending.add(bridge.statistics().pending)
                await asyncio.sleep(0.002)
        finally:
            kafka.delay(0)
        running.cancel()
        await asyncio.wait({running})
    assert 0 < max(pending) < 100


# Topics


async def test_a_topic_with_too_few_partitions_is_an_error(world: World, kafka: KafkaMock) -> None:
    sim, wme = world
    topic = KafkaTarget(kafka, 12)
    async with topic.connect() as producer:
        with pytest.raises(StreamError, match=r"has 12 partitions, .* create it with 50"):
            await topic.bridge(producer, stream_of(sim, wme))
        # Those of the parts that are read are enough.
        sim.firehose.publish(partition=9)
        await topic.bridge(producer, stream_of(sim, wme, parts=[0, 1]), limit=1)
    assert await events_in(topic) == [(9, 0)]


async def test_the_number_of_partitions_may_change(world: World, kafka: KafkaMock) -> None:
    sim, wme = world
    topic = KafkaTarget(kafka, 7)
    published: list[tuple[int, int]] = []
    async with topic.connect() as producer:
        for count in (3, 7, 2, 5):
            published += sim.firehose.publish_many(60)
            bridge = topic.bridge(producer, stream_of(sim, wme), partition=lambda number, n=count: number % n, limit=60)
            await bridge
    events = await events_in(topic)
    assert sorted(events) == sorted(published)


async def test_messages_of_others_behind_ours_are_passed(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    published: list[tuple[int, int]] = []
    async with topic.connect() as producer, other_writer(topic) as write:
        await write(1, 3)
        for count in (0, 1, 15, 300):
            published += sim.firehose.publish_many(5, partition=1)
            await topic.bridge(producer, stream_of(sim, wme), limit=5)
            await write(1, count)
        published += sim.firehose.publish_many(5, partition=1)
        await topic.bridge(producer, stream_of(sim, wme), limit=5)
    events = [message.event for message in await topic.messages() if message.headers]
    check_once_and_in_order(events, published)


async def test_too_many_messages_of_others_are_an_error_and_not_a_guess(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with topic.connect() as producer, other_writer(topic) as write:
        await topic.bridge(producer, stream_of(sim, wme), limit=1)
        await write(1, 1001)
        with pytest.raises(StreamError, match=r'a topic of its own, or pass positions="store"'):
            await topic.bridge(producer, stream_of(sim, wme), limit=1)


async def test_a_topic_may_have_the_parts_of_several_bridges(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    published: list[tuple[int, int]] = []
    async with topic.connect() as producer, other_writer(topic) as write:
        for _ in range(2):
            for name, part in (("one", 0), ("two", 1)):
                published += sim.firehose.publish_many(30, partition=5 * part)
                await topic.bridge(producer, stream_of(sim, wme, name=name, parts=[part]), limit=30)
            await write(20, 1001)
    events = [message.event for message in await topic.messages() if message.headers]
    check_once_and_in_order(events, published)


async def test_others_may_write_between_ours(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    published: list[tuple[int, int]] = []
    async with topic.connect() as producer, other_writer(topic) as write:
        bridge = topic.bridge(producer, stream_of(sim, wme), limit=30)
        running = asyncio.ensure_future(bridge)
        for count in (10, 20, 30):
            published += sim.firehose.publish_many(10, partition=1)
            await until(lambda count=count: has_sent(bridge, count))  # type: ignore[misc]
            await write(1, 2)
        await running
    events = [message.event for message in await topic.messages() if message.headers]
    check_once_and_in_order(events, published)


async def test_a_damaged_header_is_an_error_and_not_a_position(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with topic.connect() as producer, other_writer(topic) as write:
        await write(1, 1, wme_stream="default/articles", wme_partition="1", wme_offset="many")
        with pytest.raises(StreamError, match="damaged headers"):
            await topic.bridge(producer, stream_of(sim, wme), limit=1)


class Compacted(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer of a topic whose partition 1 ends with an offset of which compaction has removed the message."""

    async def end_offsets(self, partitions: Any) -> Any:
        ends = await super().end_offsets(partitions)
        return {partition: end + (partition.partition == 1) for partition, end in ends.items()}


async def test_a_partition_may_end_with_a_removed_message(
    world: World, topic: KafkaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(5, partition=1)
    async with topic.connect() as producer:
        await topic.bridge(producer, stream_of(sim, wme), limit=5)
        monkeypatch.setattr("wme_async.integrations.kafka.AIOKafkaConsumer", Compacted)
        published.append(sim.firehose.publish(partition=2))
        await topic.bridge(producer, stream_of(sim, wme), limit=1)
    monkeypatch.undo()
    check_once_and_in_order(await events_in(topic), published)


# Large records


async def test_a_large_record_needs_only_the_setting_of_the_topic(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    published = [sim.firehose.publish(partition=1, size=3_000_000), sim.firehose.publish(partition=1)]
    async with topic.connect() as producer:
        with pytest.raises(StreamError, match=r"max\.message\.bytes of the topic .* max_message="):
            await topic.bridge(producer, stream_of(sim, wme), limit=2)
        await topic.bridge(producer, stream_of(sim, wme), max_message=4_000_000, limit=1)
        # It is the last message, which the next one reads.
        await topic.bridge(producer, stream_of(sim, wme), max_message=4_000_000, limit=1)
    check_once_and_in_order(await events_in(topic), published)


async def test_a_dead_letter_that_the_producer_does_not_accept_goes_as_news(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    place, box = topic.letter_box()
    body = {"html": "x" * 2_000_000}
    sim.firehose.publish({"name": 7, "event": {"type": "update"}, "article_body": body}, partition=1)
    sim.firehose.publish(partition=1)
    async with topic.connect() as producer:
        stream = stream_of(sim, wme, type=Article)
        bridged = await topic.bridge(producer, stream, dead_letter=place, max_message=4_000_000, limit=1)
    assert (bridged.sent, bridged.dead_letters) == (1, 1)
    (letter,) = await box.messages()
    assert letter.event == (1, 0)
    assert msgspec.json.decode(letter.value or b"")["bytes"] > 2_000_000


async def test_a_batch_is_not_larger_than_a_message_may_be(world: World, topic: KafkaTarget) -> None:
    sim, wme = world
    sim.firehose.publish_many(30, partition=1, size=10_000)
    sizes = []

    class Watching(aiokafka.AIOKafkaProducer):  # type: ignore[misc]
        async def send_batch(self, batch: Any, *arguments: Any, **options: Any) -> Any:
            sizes.append(batch.size())
            return await super().send_batch(batch, *arguments, **options)

    options: dict[str, Any] = {"bootstrap_servers": topic.bootstrap, "enable_idempotence": True}
    async with Watching(max_batch_size=1 << 20, **options) as producer:
        await topic.bridge(producer, stream_of(sim, wme), max_message=50_000, limit=30)
    assert max(sizes) <= 50_000
    assert len(sizes) < 20
