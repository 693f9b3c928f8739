"""Where bridges write in tests: a topic of the mock of Kafka, or subjects of a real NATS; and how to check it."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import pytest
from kafka_mock import KafkaMock
from stream_world import articles

from wme_async import Client
from wme_async.simulator import Simulator

_numbers = itertools.count(1)


class Stored(NamedTuple):
    """A message in a target."""

    place: Any
    key: str | None
    value: bytes | None
    headers: dict[str, str]
    time: int | None = None  # milliseconds, of Kafka alone

    @property
    def event(self) -> tuple[int, int]:
        """Partition and offset of its event."""
        return int(self.headers["wme-partition"]), int(self.headers["wme-offset"])


class KafkaTarget:
    """A topic.

    Attributes:
        kafka: The broker.
        bootstrap: Its address.
        topic: The name of the topic.
        partitions: The number of its partitions.
        own: The value of `positions` with which the target holds them.
        batch: The name of the option that bounds the events on their way.
    """

    own = "topic"
    batch = "batch"

    def __init__(self, kafka: KafkaMock, partitions: int = 50) -> None:
        self.kafka = kafka
        self.bootstrap = kafka.bootstrap
        self.topic = f"articles{next(_numbers)}"
        self.partitions = partitions
        kafka.create(self.topic, partitions)

    @contextlib.asynccontextmanager
    async def connect(self, **options: Any) -> AsyncIterator[Any]:
        """Connect a producer as the documentation recommends it."""
        import aiokafka

        options = {"enable_idempotence": True, "max_batch_size": 1 << 20, **options}
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=self.bootstrap, **options) as producer:
            yield producer

    def bridge(self, client: Any, stream: Any, **options: Any) -> Any:
        from wme_async.integrations.kafka import to_kafka

        return to_kafka(stream, client, self.topic, **options)

    def another(self) -> "KafkaTarget":
        """Return a new topic."""
        return KafkaTarget(self.kafka, self.partitions)

    def shared(self) -> dict[str, Any]:
        """Return options with which all partitions share one place."""
        return {"partition": lambda _: 0}

    def letter_box(self) -> tuple[str, "KafkaTarget"]:
        """Return the name of a place for dead letters, and the target that it belongs to."""
        box = self.another()
        return box.topic, box

    def limited(self, size: int) -> dict[str, Any]:
        """Limit the bytes of a message, before the first connection; return options of the bridge for it."""
        return {"max_message": size}

    def place_of(self, partition: int) -> Any:
        return partition

    async def count(self) -> int:
        """Return the number of messages."""
        import aiokafka

        async with aiokafka.AIOKafkaConsumer(bootstrap_servers=self.bootstrap) as consumer:
            partitions = [aiokafka.TopicPartition(self.topic, number) for number in range(self.partitions)]
            return sum((await consumer.end_offsets(partitions)).values())

    async def messages(self) -> list[Stored]:
        """Return all messages, those of one place in their order."""
        import aiokafka

        consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False)
        await consumer.start()
        messages: list[Stored] = []
        try:
            partitions = [aiokafka.TopicPartition(self.topic, number) for number in range(self.partitions)]
            ends = await consumer.end_offsets(partitions)
            pending = {partition for partition, end in ends.items() if end}
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            while pending:
                for partition, some in (await consumer.getmany(timeout_ms=100)).items():
                    messages += [_stored_in_kafka(partition.partition, message) for message in some]
                pending = {partition for partition in pending if await consumer.position(partition) < ends[partition]}
        finally:
            await consumer.stop()
        return messages


def _stored_in_kafka(place: int, message: Any) -> Stored:
    headers = {name: value.decode() for name, value in message.headers}
    key = None if message.key is None else message.key.decode()
    return Stored(place, key, message.value, headers, message.timestamp)


class NATSTarget:
    """A stream of JetStream with its subjects.

    Attributes:
        url: The address of the server.
        name: Its name.
        subject: The template of the subjects.
        created: Whether it is there; the first connection creates it.
        duplicate_window: Seconds for which it detects duplicates by their identity.
        settings: Its other settings.
        own: As for `KafkaTarget`.
        batch: As for `KafkaTarget`.
    """

    own = "subject"
    batch = "in_flight"

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"articles{os.getpid()}-{next(_numbers)}"
        self.subject = f"{self.name}.{{partition}}"
        self.created = False
        self.duplicate_window = 120.0
        self.settings: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def connect(self, **options: Any) -> AsyncIterator[Any]:
        """Connect, and create the stream the first time."""
        import nats

        options = {"reconnect_time_wait": 0.01, "max_reconnect_attempts": -1, **options}
        connection = await nats.connect(self.url, **options)
        try:
            jetstream = connection.jetstream(timeout=1)
            if not self.created:
                subjects = [f"{self.name}.*"]
                await jetstream.add_stream(
                    name=self.name, subjects=subjects, duplicate_window=self.duplicate_window, **self.settings
                )
                self.created = True
            yield jetstream
        finally:
            await connection.close()

    def bridge(self, client: Any, stream: Any, **options: Any) -> Any:
        from wme_async.integrations.nats import to_nats

        return to_nats(stream, client, **{"subject": self.subject, **options})

    def another(self) -> "NATSTarget":
        """Return a new stream."""
        return NATSTarget(self.url)

    def shared(self) -> dict[str, Any]:
        """Return options with which all partitions share one place."""
        return {"subject": f"{self.name}.all"}

    def letter_box(self) -> tuple[str, "NATSTarget"]:
        """Return the name of a place for dead letters, and the target that it belongs to."""
        box = self.another()
        return f"{box.name}.letters", box

    def limited(self, size: int) -> dict[str, Any]:
        """Limit the bytes of a message, before the first connection; return options of the bridge for it."""
        self.settings["max_msg_size"] = size
        return {}

    def place_of(self, partition: int) -> Any:
        return self.subject.format(partition=partition)

    async def count(self) -> int:
        """Return the number of messages."""
        async with self.connect() as jetstream:
            count: int = (await jetstream.stream_info(self.name)).state.messages
            return count

    async def messages(self) -> list[Stored]:
        """Return all messages in the order of the stream."""
        messages: list[Stored] = []
        async with self.connect() as jetstream:
            count = (await jetstream.stream_info(self.name)).state.messages
            reader = await jetstream.pull_subscribe(f"{self.name}.*")
            while len(messages) < count:
                for message in await reader.fetch(500, timeout=10):
                    headers = dict(message.headers or {})
                    key = headers.get("wme-key")
                    key = None if key is None else unquote(key)
                    messages.append(Stored(message.subject, key, message.data or None, headers))
                    await message.ack()
        return messages


Target = KafkaTarget | NATSTarget


def new_target(request: pytest.FixtureRequest) -> Target:
    """Return a new place in the broker that the parameter of a fixture names; skip the test where it is missing."""
    if request.param == "kafka":
        pytest.importorskip("aiokafka", reason="needs the extra `kafka`")
        return KafkaTarget(request.getfixturevalue("kafka"))
    pytest.importorskip("nats", reason="needs the extra `nats`")
    return NATSTarget(request.getfixturevalue("nats_url"))


async def events_in(target: Target) -> list[tuple[int, int]]:
    """Return partition and offset of all events in a target, those of one partition in their order."""
    return [message.event for message in await target.messages()]


def check_once_and_in_order(events: Iterable[tuple[int, int]], expected: Iterable[tuple[int, int]]) -> None:
    """Check that events are those that were published, each once, and in order within a partition."""
    events = list(events)
    last: dict[int, int] = {}
    for partition, offset in events:
        assert offset > last.get(partition, -1), f"partition {partition}: {offset} after {last[partition]}"
        last[partition] = offset
    assert sorted(events) == sorted(expected)


def stream_of(sim: Simulator, wme: Client, **options: Any) -> Any:
    """A stream that begins an hour ago."""
    since = datetime.fromtimestamp(sim.clock.now(), UTC) - timedelta(hours=1)
    return articles(wme, **{"since": since, "type": msgspec.Raw, **options})


def has_sent(bridge: Any, count: int) -> bool:
    return bool(bridge.statistics().sent >= count)
