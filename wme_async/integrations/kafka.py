"""The firehose into a topic of Kafka, each event once and in order (extra `kafka`: `pip install 'wme-async[kafka]'`).

    from aiokafka import AIOKafkaProducer
    from wme_async.integrations.kafka import to_kafka

    async with (
        Client.from_env() as wme,
        AIOKafkaProducer(bootstrap_servers="broker:9092", enable_idempotence=True, max_batch_size=1 << 20) as producer,
    ):
        await to_kafka(wme.realtime.articles(type=msgspec.Raw), producer, "wme")

The topic holds the positions: each message carries the offset of its event, and a bridge that starts continues after
the last message of each partition. Neither a store nor a transaction is needed.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

from wme_async import _clock
from wme_async._arguments import check_choice, check_functions, check_numbers, check_text
from wme_async._stream import GroupStream, Stream
from wme_async.errors import StreamError
from wme_async.integrations._bridge import Bridge, Bridged, DeadLetter, DeadLetters, check_stream
from wme_async.integrations._bridge_messages import Checkpoint, Message, news_of, read_checkpoint

try:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
    from aiokafka.errors import MessageSizeTooLargeError
except ImportError as _error:
    raise ImportError("Kafka needs the extra `kafka`: pip install 'wme-async[kafka]'") from _error

__all__ = ["Bridge", "Bridged", "DeadLetter", "to_kafka"]

logger: logging.Logger = logging.getLogger("wme_async.bridge")

T = TypeVar("T")

_MIB: Final = 1024 * 1024
MAX_MESSAGE: Final = _MIB + 12
"""The default of `message.max.bytes` of a broker, in bytes."""

_PATIENCE: Final = 30.0  # seconds to wait for the last messages of a topic
_WAIT: Final = 100  # milliseconds that the brokers may wait for messages
_EMPTY: Final = 5  # answers without messages after which there are none
_WINDOWS: Final = (1, 10, 100, 1000)  # messages from the end of a partition to look for one of the bridge in
_WINDOWS_OF_OTHERS: Final = 10  # messages to look at in partitions that are not in use
_OVERHEAD: Final = 70  # bytes of a batch beside its messages
# What a consumer needs to know to reach the brokers of a producer.
_CONNECTION: Final = (
    *("bootstrap_servers", "security_protocol", "ssl_context", "request_timeout_ms", "sasl_mechanism"),
    *("sasl_plain_username", "sasl_plain_password", "sasl_kerberos_service_name", "sasl_kerberos_domain_name"),
    "sasl_oauth_token_provider",
)


def to_kafka(
    stream: Stream[T] | GroupStream[T],
    producer: "AIOKafkaProducer",
    topic: str,
    *,
    partition: Callable[[int], int] | None = None,
    positions: Literal["topic", "store"] = "topic",
    batch: int = 500,
    max_bytes: int = 32 * _MIB,
    max_message: int = MAX_MESSAGE,
    dead_letter: DeadLetters | None = None,
    tombstones: bool = False,
    limit: int | None = None,
    grace: float = 5.0,
) -> Bridge[T, int]:
    """Copy a stream into a topic; await the result to run it.

    The key of a message is project and title (`enwiki/Ada Lovelace`), its value the record as JSON: byte for byte as
    the service sent it if the type of the stream is `msgspec.Raw`, otherwise the value encoded. Headers name partition,
    offset, time of publication and type of the event.

    Args:
        stream: A stream that is not open yet. Its name is part of each message: two bridges into one topic need two.
        producer: A started producer with `enable_idempotence=True`. The bridge does not stop it.
        topic: The topic. It needs a partition for each one that `partition` returns; by default as many as the stream
            has (50 for articles).
        partition: Returns the partition of the topic for one of the stream; by default the same number. All events
            of a page are in one partition of the stream, and in order.
        positions: `topic`: the topic says what was sent. `store`: the `offsets` of the stream do; after a crash, the
            events since its last save come again.
        batch: The maximum number of events that are on their way.
        max_bytes: Bytes of records that are on their way, about. The stream's own `max_buffer` comes on top.
        max_message: Bytes of the largest message that the topic accepts, before compression: its `max.message.bytes`.
            By default that of a broker, 1 MiB; articles reach 3 MB.
        dead_letter: Where a record goes that is larger, or that does not decode: another topic, which gets the news of
            it, or a function, plain or async. By default the bridge ends with an error.
        tombstones: Send no value for a deletion, so that compaction removes the page.
        limit: The number of events after which it ends; by default it runs for ever.
        grace: Seconds that a cancelled bridge waits for the brokers to confirm what was sent.

    Returns:
        The bridge. Awaited, it runs until it is cancelled or stopped, and returns its counters.

    Raises:
        TypeError: An argument of another type.
        ValueError: An argument out of range, or a producer that could write an event twice.
    """
    check_stream(stream)
    check_text(topic=topic)
    check_functions(partition=partition)
    check_choice("positions", positions, ("topic", "store"))
    check_numbers(whole=True, optional=False, minimum=1, max_message=max_message)
    if not isinstance(producer, AIOKafkaProducer):
        raise TypeError(f"producer must be a started AIOKafkaProducer, not {producer!r}")
    _check_producer(producer)
    if partition is not None:
        for place in map(partition, stream.partitions):
            if isinstance(place, bool) or not isinstance(place, int):
                raise TypeError(f"partition must return the number of a partition of the topic, not {place!r}")
    return Bridge(
        stream,
        _Topic(producer, topic, stream.key, max_message),
        partition or int,
        read=positions == "topic",
        batch=batch,
        max_bytes=max_bytes,
        dead_letter=dead_letter,
        tombstones=tombstones,
        limit=limit,
        grace=grace,
    )


def _check_producer(producer: "AIOKafkaProducer") -> None:
    manager = getattr(producer, "_txn_manager", producer)  # there is no public way to ask
    if manager is None:
        raise ValueError("the producer may write an event twice when it retries: make it with enable_idempotence=True")
    if getattr(manager, "transactional_id", None) is not None:
        raise ValueError(
            "the producer has a transactional_id, and the bridge uses no transactions: leave it out, and pass "
            "enable_idempotence=True"
        )
    serializers = [name for name in ("key_serializer", "value_serializer") if getattr(producer, f"_{name}", None)]
    if serializers:
        raise ValueError(f"the producer has a {serializers[0]}, and the bridge sends bytes: leave it out")


class _Topic:
    """A topic that messages go to.

    Args:
        producer: Sends them.
        topic: Its name.
        stream: The name of the stream and its resource.
        max_message: Bytes of the largest message.
    """

    def __init__(self, producer: "AIOKafkaProducer", topic: str, stream: str, max_message: int) -> None:
        self.name = f"topic {topic!r}"
        self._producer = producer
        self._topic = topic
        self._stream = stream
        self._max_message = max_message
        self._next: dict[int, int] = {}  # the offset that the next message of each partition gets

    async def open(self, places: Sequence[int], *, read: bool, dead_letter: str | None) -> list[Checkpoint]:
        # A bridge before this one may have been cancelled while a batch of it waited for a broker.
        await self._producer.flush()
        if dead_letter is not None:
            await self._producer.partitions_for(dead_letter)
        count = len(await self._producer.partitions_for(self._topic))
        outside = [place for place in places if not 0 <= place < count]
        if outside:
            raise StreamError(
                f"{self.name} has {count} partitions, and events would go to partition {max(outside)}: create it with "
                f"{max(places) + 1}, or let them share those, such as with partition=lambda number: number % {count}"
            )
        # All partitions, not only those in use: with another `partition=` the last bridge wrote to others.
        partitions = [TopicPartition(self._topic, number) for number in range(count)]
        async with self._consumer(partitions) as consumer:
            ends = await consumer.end_offsets(partitions)
            self._next.update((place, ends[partitions[place]]) for place in places)
            if not read:
                return []
            begins = await consumer.beginning_offsets(partitions)
            filled = [partition for partition in partitions if ends[partition] > begins[partition]]
            return await self._last_checkpoints(consumer, filled, begins, ends, {*places})

    @contextlib.asynccontextmanager
    async def _consumer(self, partitions: Sequence[Any]) -> AsyncIterator[Any]:
        """Connect a consumer of some partitions, all of which are paused."""
        settings = {name: getattr(self._producer.client, f"_{name}") for name in _CONNECTION}
        consumer = AIOKafkaConsumer(
            enable_auto_commit=False, auto_offset_reset="none", fetch_max_wait_ms=_WAIT, **settings
        )
        await consumer.start()
        try:
            # Once and for all: a consumer that is stopped soon after another assignment may not end.
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            consumer.pause(*partitions)
            yield consumer
        finally:
            await consumer.stop()

    async def _last_checkpoints(
        self,
        consumer: Any,
        partitions: Iterable[Any],
        begins: Mapping[Any, int],
        ends: Mapping[Any, int],
        places: Collection[int],
    ) -> list[Checkpoint]:
        """Return the positions in the last message of each partition that this stream's bridge has written."""
        checkpoints = []
        for window in _WINDOWS:
            starts = {partition: max(begins[partition], ends[partition] - window) for partition in partitions}
            missing = []
            async for partition, messages in _read(consumer, starts, ends):
                own = filter(None, (self._checkpoint(message) for message in reversed(messages)))
                checkpoint = next(own, None)
                # The other partitions probably belong to others.
                in_question = partition.partition in places or window < _WINDOWS_OF_OTHERS
                if checkpoint is not None:
                    checkpoints.append(checkpoint)
                elif starts[partition] > begins[partition] and in_question:
                    missing.append(partition)
            partitions = missing
        for partition in partitions:
            raise StreamError(
                f"the last {_WINDOWS[-1]} messages of partition {partition.partition} of {self.name} are not from a "
                f'bridge of the stream {self._stream!r}: give it a topic of its own, or pass positions="store"'
            )
        return checkpoints

    def _checkpoint(self, message: Any) -> Checkpoint | None:
        headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers}
        return read_checkpoint(headers, self._stream)

    def problem(self, message: Message) -> str | None:
        size = _OVERHEAD + _size(message)
        if size <= self._max_message:
            return None
        return (
            f"it has {size} bytes, and the limit is {self._max_message}: raise max.message.bytes of the topic (or "
            "message.max.bytes of the brokers), and pass max_message="
        )

    async def send(self, place: int, messages: Sequence[Message]) -> None:
        """Send messages one batch after another: none is sent before all those in front of it are stored."""
        batch, count = self._producer.create_batch(), 0
        for message in messages:
            # The limit of the topic is that of a batch. One message always has room.
            fits = batch.size() + _size(message) <= self._max_message
            if (count and not fits) or not _append(batch, message):
                await self._send_batch(place, batch, count)
                batch, count = self._producer.create_batch(), 0
                _append(batch, message)
            count += 1
        await self._send_batch(place, batch, count)

    async def _send_batch(self, place: int, batch: Any, count: int) -> None:
        batch.close()
        try:
            metadata = await (await self._producer.send_batch(batch, self._topic, partition=place))
        except MessageSizeTooLargeError as error:
            raise StreamError(
                f"{self.name} does not accept {batch.size()} bytes: its max.message.bytes (or message.max.bytes of the "
                f"brokers) is less than max_message= of the bridge, {self._max_message}"
            ) from error
        expected, self._next[place] = self._next.get(place), metadata.offset + count
        if metadata.offset < 0:
            self._next.pop(place)  # it was sent twice and is there, but the broker no longer knows where
        elif expected is not None and metadata.offset > expected:
            await self._check_others(place, expected, metadata.offset)
        elif expected is not None and metadata.offset < expected:
            raise StreamError(
                f"partition {place} of {self.name} went back from offset {expected} to {metadata.offset}: its brokers "
                "have lost messages that they had confirmed, so that events are missing from it"
            )

    async def _check_others(self, place: int, begin: int, end: int) -> None:
        """Raise if another bridge of the stream has written to a partition."""
        partition = TopicPartition(self._topic, place)
        async with self._consumer([partition]) as consumer:
            async for _, messages in _read(consumer, {partition: begin}, {partition: end}):
                if any(self._checkpoint(message) is not None for message in messages):
                    raise StreamError(
                        f"another bridge of the stream {self._stream!r} writes to partition {place} of {self.name}, so "
                        "that events are there twice from now on: run one of them, or give each its own parts="
                    )

    async def send_dead_letter(self, to: str, message: Message, reason: str) -> None:
        # A broker that refuses a batch expects that batch again, so nothing is sent that may be refused.
        value = message.value if self.problem(message) is None else None
        headers = [(name, text.encode()) for name, text in (*message.headers, ("wme-reason", reason))]
        key = None if message.key is None else message.key.encode()
        news = news_of(message, reason)
        try:
            stored = await self._producer.send(to, value or news, key=key, headers=headers)
        except MessageSizeTooLargeError:  # the producer's own limit; nothing was sent
            stored = await self._producer.send(to, news, key=key, headers=headers)
        await stored


def _size(message: Message) -> int:
    """Return bytes of a message in a batch, or some more."""
    headers = sum(len(name) + len(text.encode()) + 4 for name, text in message.headers)
    return 40 + headers + len(message.value or b"") + len((message.key or "").encode())


def _append(batch: Any, message: Message) -> bool:
    """Add a message to a batch; return whether there was room. The first one always has room."""
    added = batch.append(
        timestamp=_timestamp(message.published),
        key=None if message.key is None else message.key.encode(),
        value=message.value,
        headers=[(name, text.encode()) for name, text in message.headers],
    )
    return added is not None


def _timestamp(published: datetime | None) -> int | None:
    """Return a time in milliseconds; None, in place of which the producer takes the present, if it cannot be true.

    Brokers accept no time before 1970, and by default none that is an hour ahead of their clock.
    """
    milliseconds = None if published is None else int(published.timestamp() * 1000)
    return milliseconds if milliseconds is not None and 0 <= milliseconds <= 1000 * _clock.now() else None


async def _read(consumer: Any, starts: Mapping[Any, int], ends: Mapping[Any, int]) -> Any:
    """Yield each partition with its messages between two offsets.

    Args:
        consumer: A consumer of these partitions, which are paused.
        starts: The first offset of each partition.
        ends: The offset behind the last one.

    Raises:
        StreamError: The brokers did not answer for some time.
    """
    messages: dict[Any, list[Any]] = {partition: [] for partition in starts}
    for partition, start in starts.items():
        consumer.seek(partition, start)
        consumer.resume(partition)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    answers: dict[Any, set[Any]] = {}  # the times of answers since there was a message
    while messages:
        fetched = await consumer.getmany(*messages, timeout_ms=_WAIT)
        if fetched:
            answers.clear()
            deadline = loop.time() + _PATIENCE
        for partition, some in fetched.items():
            messages[partition] += [message for message in some if message.offset < ends[partition]]
        for partition in list(messages):
            times = answers.setdefault(partition, set())
            times.add(consumer.last_poll_timestamp(partition))
            # Compaction removes messages, and a partition may end with such a hole. One empty answer is no proof: the
            # messages of others may have filled it.
            if await consumer.position(partition) >= ends[partition] or len(times) > _EMPTY:
                consumer.pause(partition)
                yield partition, messages.pop(partition)
        if loop.time() > deadline:
            names = ", ".join(str(partition.partition) for partition in sorted(messages))
            raise StreamError(
                f"the last messages of partitions {names} could not be read: no answer for {_PATIENCE:g} s"
            )
