"""A stream into a broker, each event once and in order: what the bridges into Kafka and NATS share."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from wme_async._arguments import check_flags, check_numbers
from wme_async._stream import GroupStream, Stream
from wme_async._stream.record_types import EventLike
from wme_async._tasks import call_hook, is_cancelling, raise_first_cause, wait_done
from wme_async._telemetry import log_fields
from wme_async.errors import DecodeError, StreamError
from wme_async.integrations._bridge_messages import (
    Checkpoint,
    Message,
    MessageMaker,
    Place,
    choose_positions,
    complete_until,
    latest,
)
from wme_async.offsets import Position

logger: logging.Logger = logging.getLogger("wme_async.bridge")

T = TypeVar("T")
Place_contra = TypeVar("Place_contra", contravariant=True)

_LINGER: Final = 0.02  # seconds to wait for more events; while the broker confirms, more of them gather anyway
STALLED: Final = 10.0
"""Seconds after which the log says that a broker confirms nothing."""

_REPORT: Final = 60.0  # seconds between two reports in the log


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that the broker does not accept, or that is not valid.

    Attributes:
        reason: What is wrong with it.
        record: Its bytes, as the stream delivered them.
        partition: The partition of its event; None if it is not known.
        offset: The offset of its event; None if it has none.
        key: Project and title, as in the key of messages; None if it is not known.
    """

    reason: str
    record: bytes
    partition: int | None = None
    offset: int | None = None
    key: str | None = None


DeadLetters: TypeAlias = str | Callable[[DeadLetter], Awaitable[None] | None]
"""Where records go that the broker does not accept: a topic or subject, or a function."""


class Bridged(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge, now.

    Attributes:
        running: Whether it reads the stream.
        sent: Messages that the broker has confirmed.
        bytes: Their values.
        skipped: Events that the target had already.
        dead_letters: Records that went to `dead_letter`.
        pending: Events that were read and are not confirmed yet.
        stalled: Seconds since the broker last confirmed anything, while events wait for it; 0.0 if none waits.
        connected: Connections of the stream whose response has begun.
        lag: Seconds between the publication of the last event that was confirmed and now; None before the first.
        positions: The offset of the last event of each partition that is in the target.
    """

    running: bool
    sent: int
    bytes: int
    skipped: int
    dead_letters: int
    pending: int
    stalled: float
    connected: int
    lag: float | None
    positions: dict[int, int]


class Target(Protocol[Place_contra]):
    """A broker. A place, such as a partition of a topic, keeps messages in order.

    Attributes:
        name: Names it in messages, such as `topic 'wme'`.
    """

    name: str

    async def open(self, places: Sequence[Place_contra], *, read: bool, dead_letter: str | None) -> list[Checkpoint]:
        """Prepare for sending; return the positions in the last message of each place, if they are to be read."""
        ...

    def problem(self, message: Message) -> str | None:
        """Return why the broker would not accept a message; None if it would."""
        ...

    async def send(self, place: Place_contra, messages: Sequence[Message]) -> None:
        """Send messages of a place. When it returns, all are stored, in order; if it raises, the first ones may be."""
        ...

    async def send_dead_letter(self, to: str, message: Message, reason: str) -> None:
        """Send a message that does not fit to another topic or subject, or the news of it if it does not fit there."""
        ...


def check_stream(stream: object) -> None:
    """Raise if an argument is not a stream.

    Raises:
        TypeError: It is not one.
    """
    if not isinstance(stream, Stream | GroupStream):
        raise TypeError(f"stream must be a stream, such as wme.realtime.articles(), not {stream!r}")


class Bridge(Generic[T, Place]):
    """Copies a stream into a broker. Awaited, it runs until it is cancelled or stopped, or fails.

    ```python
    bridge = to_kafka(wme.realtime.articles(type=msgspec.Raw), producer, "wme")
    await bridge
    ```

    Args:
        stream: A stream that is not open yet.
        target: The broker.
        place_of: Returns the place of a partition.
        read: Whether the target holds the positions; otherwise the stream's store does.
        batch: The maximum number of events that are on their way.
        max_bytes: Bytes of records that are on their way, about.
        dead_letter: Where records go that the broker does not accept; None to fail.
        tombstones: Whether a deletion has no value.
        limit: The number of events after which it ends.
        grace: Seconds that a cancelled bridge waits for the broker to confirm what was sent.
    """

    def __init__(
        self,
        stream: Stream[T] | GroupStream[T],
        target: Target[Place],
        place_of: Callable[[int], Place],
        *,
        read: bool,
        batch: int,
        max_bytes: int,
        dead_letter: DeadLetters | None,
        tombstones: bool,
        limit: int | None,
        grace: float,
    ) -> None:
        check_numbers(whole=True, optional=False, minimum=1, batch=batch, max_bytes=max_bytes)
        check_numbers(whole=True, minimum=1, limit=limit)
        check_numbers(optional=False, minimum=0, unit="seconds", grace=grace)
        check_flags(tombstones=tombstones)
        if dead_letter is not None and not isinstance(dead_letter, str) and not callable(dead_letter):
            raise TypeError(f"dead_letter must be a function, or the name of a topic or subject, not {dead_letter!r}")
        self._stream = stream
        self._target = target
        self._read = read
        self._batch = batch
        self._max_bytes = max_bytes
        self._dead_letter = dead_letter
        self._left = limit
        self._grace = grace
        self._maker = MessageMaker(stream.key, stream.partitions, place_of, tombstones=tombstones)
        if isinstance(stream, GroupStream):
            size = stream.resource.partitions // stream.resource.parts
            shared = self._maker.shared_by({number: number // size for number in stream.partitions})
            if shared:
                raise ValueError(
                    f'with share="group" the parts of the stream move by themselves, so that no two of them can share '
                    f"{shared[0]!r}: let each partition have its own place"
                )
        self._state: Literal["new", "running", "ended"] = "new"
        self._stopping = False
        self._reading: asyncio.Future[list[tuple[T, EventLike | None]]] | None = None
        self._sent = self._bytes = self._dead_letters = self._pending = 0
        self._confirmed: dict[int, int] = {}
        self._published: datetime | None = None
        self._lag: float | None = None
        self._connected = 0
        self._open = False
        self._waiting_since = 0.0
        self._warned = False
        self._reported = time.monotonic()
        self.failure: BaseException | None = None
        """The exception that ended the bridge, for the health check of a service; None while it runs."""

    def __repr__(self) -> str:
        return f"<Bridge {self._stream.key!r} into {self._target.name}, {self._state}, {self._sent} sent>"

    def __await__(self) -> Generator[Any, None, Bridged]:
        return self.run().__await__()

    async def run(self) -> Bridged:
        """Copy until the bridge is cancelled or stopped; awaiting the bridge itself does the same.

        Returns:
            The final counters, if it was stopped or has reached its limit.

        Raises:
            RuntimeError: It was run before.
            StreamError: The target was written by others; or a record is too large for it and there is no
                `dead_letter`.
            WMEError: The stream cannot be read.
            Exception: Any exception of the broker's client.
        """
        if self._state != "new":
            raise RuntimeError("a bridge runs once; make another one")
        self._state = "running"
        try:
            self._stream.begin_with(self._begin)
            async with self._stream:
                self._open = True
                try:
                    await self._copy()
                finally:
                    self.statistics()
                    self._open = False
        except Exception as error:
            self.failure = error
            # Whoever awaits it gets the traceback.
            logger.error("%r ended: %s", self, error, extra=log_fields(error, **self._facts()))  # noqa: TRY400
            raise
        finally:
            self._state = "ended"
            logger.info("%r", self, extra=log_fields(**self._facts()))
        return self.statistics()

    def stop(self) -> None:
        """Let the bridge read no more, wait until the broker has confirmed what was sent, and return."""
        self._stopping = True
        if self._reading is not None:
            self._reading.cancel()

    def statistics(self) -> Bridged:
        """Return counts, lag and positions, now."""
        if self._open:
            self._connected = self._stream.statistics().connected
            if self._published is not None:
                self._lag = max(0.0, (self._stream.server_now() - self._published).total_seconds())
        return Bridged(
            running=self._state == "running",
            sent=self._sent,
            bytes=self._bytes,
            skipped=self._maker.skipped,
            dead_letters=self._dead_letters,
            pending=self._pending,
            stalled=time.monotonic() - self._waiting_since if self._pending and self._open else 0.0,
            connected=self._connected if self._open else 0,
            lag=self._lag,
            positions=dict(self._confirmed),
        )

    def _facts(self) -> dict[str, Any]:
        """Return the fields of log records."""
        now = self.statistics()
        return {
            "stream": self._stream.key,
            "target": self._target.name,
            "sent": now.sent,
            "pending": now.pending,
            "lag": now.lag,
        }

    # Reading

    async def _begin(self, partitions: Sequence[int], saved: Mapping[int, Position]) -> Mapping[int, Position]:
        """Open the target and return the positions to begin with."""
        letters = self._dead_letter if isinstance(self._dead_letter, str) else None
        places = self._maker.places_of(partitions)
        target = latest(await self._target.open(places, read=self._read, dead_letter=letters))
        if not self._read:
            return saved
        self._maker.begin(partitions, target)
        known = {number: sent.offset for number, sent in target.positions.items() if number in partitions}
        self._confirmed.update(known)
        positions = choose_positions(target, saved)
        logger.info(
            "%s has the positions of %d partitions of %r; %d others have saved ones, or begin where it is complete",
            self._target.name,
            len(known),
            self._stream.key,
            len(partitions) - len(known),
            extra=log_fields(stream=self._stream.key, target=self._target.name),
        )
        return positions

    async def _copy(self) -> None:
        while not self._stopping and self._left != 0:
            pairs = await self._next()
            if pairs:
                # In a task of its own, so that a cancellation leaves the broker time to confirm.
                delivery = asyncio.create_task(self._deliver(pairs), name="wme bridge delivery")
                warning = asyncio.get_running_loop().call_later(STALLED, self._warn)
                try:
                    await wait_done(delivery, grace=self._grace)
                finally:
                    warning.cancel()
                delivery.result()
                if self._warned:
                    self._warned = False
                    logger.warning("%s confirms messages again", self._target.name, extra=log_fields(**self._facts()))

    def _warn(self) -> None:
        self._warned = True
        message = "%s has not confirmed %d messages for %g s: still waiting"
        facts = log_fields(**self._facts())
        logger.warning(message, self._target.name, self._pending, STALLED, extra=facts)

    async def _read_batch(self, limit: int) -> list[tuple[T, EventLike | None]]:
        """Return the next values, each with its event."""
        stream = self._stream
        if isinstance(stream, GroupStream):
            items = await anext(stream.batches(limit, _LINGER))
        else:
            items = await anext(stream.batches(limit, _LINGER, self._max_bytes))
        return [(item, stream.event_of(item)) for item in items]

    async def _next(self) -> list[tuple[T, EventLike | None]]:
        """Return the next values; none if the bridge was stopped, or a record was bad."""
        limit = self._batch if self._left is None else min(self._batch, self._left)
        self._reading = asyncio.ensure_future(self._read_batch(limit))
        try:
            pairs = await self._reading
        except asyncio.CancelledError:
            if is_cancelling() or not self._stopping:
                raise
            return []
        except DecodeError as error:
            if self._dead_letter is None:
                raise
            await self._bury_bad(error)
            return []
        finally:
            self._reading = None
        if self._left is not None:
            self._left -= len(pairs)
        return pairs

    # Sending

    async def _deliver(self, pairs: Sequence[tuple[T, EventLike | None]]) -> None:
        """Send events, and count them as processed once the broker has confirmed all of them."""
        complete = complete_until(self._stream.positions)
        by_place: dict[Place, list[Message]] = {}
        for item, event in pairs:
            record = bytes(item) if isinstance(item, msgspec.Raw) else msgspec.json.encode(item)
            placed = self._maker.make(record, event, complete)
            if placed is not None:
                place, message = placed
                by_place.setdefault(place, []).append(message)
                self._pending += 1
        self._waiting_since = time.monotonic()
        with raise_first_cause():
            async with asyncio.TaskGroup() as places:
                for place, messages in by_place.items():
                    places.create_task(self._send(place, messages))
        for item, _ in pairs:
            self._stream.ack(item)
        if time.monotonic() - self._reported >= _REPORT:
            self._reported = time.monotonic()
            logger.info("%r", self, extra=log_fields(**self._facts()))

    async def _send(self, place: Place, messages: list[Message]) -> None:
        """Send the messages of one place, and those that do not fit to the dead letters, in their order."""
        begin = 0
        for index, message in enumerate(messages):
            problem = self._target.problem(message)
            if problem is not None:
                await self._send_fitting(place, messages[begin:index])
                await self._bury(message, problem)
                begin = index + 1
        await self._send_fitting(place, messages[begin:])

    async def _send_fitting(self, place: Place, messages: list[Message]) -> None:
        if not messages:
            return
        await self._target.send(place, messages)
        self._sent += len(messages)
        self._bytes += sum(len(message.value) for message in messages if message.value is not None)
        for message in messages:
            self._done(message)

    def _done(self, message: Message) -> None:
        self._pending -= 1
        self._waiting_since = time.monotonic()
        if message.offset is not None:
            self._confirmed[message.partition] = message.offset
        if message.published is not None and (self._published is None or message.published > self._published):
            self._published = message.published

    # Dead letters

    async def _bury(self, message: Message, problem: str) -> None:
        where = f"the event at offset {message.offset} of partition {message.partition}"
        if self._dead_letter is None:
            raise StreamError(f"{where} does not fit into {self._target.name}: {problem}; or pass dead_letter=")
        letter = DeadLetter(
            reason=problem,
            record=message.value or b"",
            partition=message.partition,
            offset=message.offset,
            key=message.key,
        )
        await self._send_letter(letter, message)
        self._done(message)

    async def _bury_bad(self, error: DecodeError) -> None:
        record = error.record or b""
        letter = DeadLetter(reason=str(error), record=record, partition=error.partition, offset=error.offset)
        headers = () if error.partition is None else (("wme-partition", str(error.partition)),)
        if error.offset is not None:
            headers = (*headers, ("wme-offset", str(error.offset)))
        message = Message(
            partition=error.partition or 0,
            offset=error.offset,
            published=None,
            key=None,
            value=record,
            headers=headers,
        )
        await self._send_letter(letter, message)

    async def _send_letter(self, letter: DeadLetter, message: Message) -> None:
        facts: dict[str, Any] = {"partition": letter.partition, "offset": letter.offset, "key": letter.key}
        logger.warning(
            "dead letter: partition %s, offset %s, %r: %s",
            *facts.values(),
            letter.reason,
            extra=log_fields(stream=self._stream.key, target=self._target.name, **facts),
        )
        assert self._dead_letter is not None
        if isinstance(self._dead_letter, str):
            await self._target.send_dead_letter(self._dead_letter, message, letter.reason)
        else:
            await call_hook(self._dead_letter, letter)
        self._dead_letters += 1
