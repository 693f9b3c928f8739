"""A topic of the mock of Kafka for one test: what was written, and by whom."""

import itertools
from collections.abc import Iterable
from typing import Any

import aiokafka
from kafka_mock import KafkaMock

_numbers = itertools.count(1)


class Topic:
    """A new topic.

    Attributes:
        bootstrap: The address of the broker.
        name: Its name.
        partitions: The number of its partitions.
    """

    def __init__(self, kafka: KafkaMock, partitions: int = 50) -> None:
        self.bootstrap = kafka.bootstrap
        self.name = f"articles{next(_numbers)}"
        self.partitions = partitions
        kafka.create(self.name, partitions)

    def producer(self, **options: Any) -> Any:
        """Return a producer as the documentation recommends it."""
        options = {"enable_idempotence": True, "max_batch_size": 1 << 20, **options}
        return aiokafka.AIOKafkaProducer(bootstrap_servers=self.bootstrap, **options)

    async def messages(self) -> dict[int, list[Any]]:
        """Return all messages of each partition that has some."""
        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        await consumer.start()
        messages: dict[int, list[Any]] = {}
        try:
            partitions = [aiokafka.TopicPartition(self.name, number) for number in range(self.partitions)]
            ends = await consumer.end_offsets(partitions)
            pending = {partition for partition, end in ends.items() if end}
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            while pending:
                for partition, some in (await consumer.getmany(timeout_ms=100)).items():
                    messages.setdefault(partition.partition, []).extend(some)
                pending = {partition for partition in pending if await consumer.position(partition) < ends[partition]}
        finally:
            await consumer.stop()
        return messages

    async def events(self) -> list[tuple[int, int]]:
        """Return partition and offset of each event, in the order of each partition of the topic."""
        return [event_of(message) for messages in (await self.messages()).values() for message in messages]


def headers_of(message: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers}


def event_of(message: Any) -> tuple[int, int]:
    headers = headers_of(message)
    return int(headers["wme-partition"]), int(headers["wme-offset"])


def check_once_and_in_order(events: Iterable[tuple[int, int]], expected: Iterable[tuple[int, int]]) -> None:
    """Check that events are those that were published, each once, and in order within a partition."""
    events = list(events)
    last: dict[int, int] = {}
    for partition, offset in events:
        assert offset > last.get(partition, -1), f"partition {partition}: {offset} after {last[partition]}"
        last[partition] = offset
    assert sorted(events) == sorted(expected)
