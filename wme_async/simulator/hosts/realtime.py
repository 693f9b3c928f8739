"""The realtime service: partitioned logs, and the stream over them with the server's rules and faults on request."""

import asyncio
import threading
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, Final, Literal, Protocol

from aiohttp import web

from wme_async.simulator.hosts.http import NDJSON, error_answer, negotiate
from wme_async.simulator.hosts.stream import Line, Reader
from wme_async.simulator.log import PartitionLog
from wme_async.simulator.protocol.schema import ARTICLE, ENTITY, Node
from wme_async.simulator.protocol.stream_request import (
    Accepted,
    Refused,
    bind_stream_request,
    check_stream_request,
)
from wme_async.simulator.world.articles import ArticleGenerator
from wme_async.simulator.world.encoding import dumps, stamp
from wme_async.simulator.world.entities import EntityGenerator

__all__ = [
    "Accepted",
    "Connection",
    "Firehose",
    "Refused",
    "StreamFault",
    "bind_stream_request",
    "check_stream_request",
]

_SPLICE: Final = b'"partition":0,"offset":0'


class StreamFault(Protocol):
    """What the stream needs to know of a fault: its kind and its details."""

    @property
    def kind(self) -> str:
        """What goes wrong."""
        ...

    @property
    def details(self) -> Mapping[str, Any]:
        """The numbers of this kind."""
        ...


@dataclass(frozen=True)
class Connection:
    """One accepted stream.

    Attributes:
        request: What was asked, as the server pruned it.
        start: The offset that each partition was read from.
        jumped: Partitions whose offset did not exist any more (or not yet) and that silently started live.
    """

    request: Accepted
    start: Mapping[int, int]
    jumped: frozenset[int] = field(default_factory=frozenset)


class Firehose:
    """The retained events of a stream, and the handler that serves them.

    Not bound to a record type: articles by default, anything with a schema and a maker of records otherwise.

    Args:
        clock: Returns the time, in seconds since 1970; retention and "in the future" are judged by it.
        seed: Where random choices of faults come from.
        partitions: How many partitions.
        parts: How many parts they are dealt into; part p holds consecutive partitions.
        retention: How long events are kept, in seconds.
        rate: Messages a second and connection, scaled by the share of parts asked for; None does not throttle. The
            real service sends 50.
        schema: The fields that may be asked for.
        make: Makes the record of an index: `make(index, kind=, published=, **options)`.
        options: Options for `make` where `publish` gives none; for articles `{"size": "small"}`.
        flush_each: Whether each event is written by itself, as the service does; else events that are ready together
            are written together, which is several times faster.
        burst: How many events of one partition are read before the next one's turn.
        tiny: Writes the line of a generated event without an encoder, split where partition and offset go:
            `tiny(index, moment)` with the time as text.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        seed: int = 0,
        partitions: int = 50,
        parts: int = 10,
        retention: float = 48 * 3600,
        rate: float | None = None,
        schema: Node = ARTICLE,
        make: Callable[..., dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        flush_each: bool = True,
        burst: int = 8,
        tiny: Callable[[int, str], tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.clock = clock
        self._tiny = tiny or _tiny_article
        self.random: Random = Random(seed)
        self.parts = parts
        self.retention = retention
        self.rate = rate
        self.schema = schema
        self.flush_each = flush_each
        self.burst = burst
        self.log: list[PartitionLog] = [PartitionLog() for _ in range(partitions)]
        self.connections: deque[Connection] = deque(maxlen=10_000)
        self.refused: deque[Refused] = deque(maxlen=10_000)
        self.published: int = 0
        self._options = dict({"size": "small"} if options is None and make is None else options or {})
        self._make: Callable[..., dict[str, Any]] = make or ArticleGenerator(seed).article
        self._index = 0
        self._lock = threading.Lock()
        self._readers: set[Reader] = set()
        self._moved = asyncio.Event()

    @classmethod
    def wikidata(cls, clock: Callable[[], float], *, seed: int = 0, **options: Any) -> "Firehose":
        """Make the stream of `/v2/wikidata`: the same machinery over entities.

        Args:
            clock: As in the constructor.
            seed: As in the constructor.
            **options: As in the constructor.
        """
        defaults = {
            "schema": ENTITY,
            "make": EntityGenerator(seed).record,
            "options": {"size": "small"},
            "tiny": _tiny_entity,
        }
        return cls(clock, seed=seed, **{**defaults, **options})

    @property
    def open(self) -> int:
        """How many streams are being served."""
        return len(self._readers)

    async def wait_open(self, count: int, *, timeout: float = 5.0) -> None:
        """Wait, in the loop that serves, until exactly so many streams are open.

        Raises:
            TimeoutError: They were not in time.
        """
        async with asyncio.timeout(timeout):
            while self.open != count:
                self._moved.clear()
                await self._moved.wait()

    # Events

    def partition_of(self, record: Mapping[str, Any]) -> int:
        """Tell the partition of a record: by project and title, so that all events of a title stay in order."""
        project = (record.get("is_part_of") or {}).get("identifier", "")
        title = str(record.get("name", "")).replace(" ", "_")
        return zlib.crc32(f"/{project}/{title}".encode()) % len(self.log)

    def publish(
        self,
        record: Mapping[str, Any] | bytes | None = None,
        *,
        partition: int | None = None,
        kind: str = "update",
        published: float | None = None,
        **options: Any,
    ) -> tuple[int, int]:
        """Publish one event; it may be called from any thread.

        Args:
            record: The record; raw bytes are sent as one line as they are; None makes the next one.
            partition: Where to; by default the partition of the record's title.
            kind: The event type of a record that is made.
            published: When, seconds since 1970; by default the record's own `event.date_published`, or now.
            **options: For the maker of records, such as `size=` of articles.

        Returns:
            Partition and offset.
        """
        with self._lock:
            place = self._append(record, partition, kind, published, options)
        self._wake()
        return place

    def publish_many(self, count: int, **options: Any) -> list[tuple[int, int]]:
        """Publish so many made events at once; the options are those of `publish`."""
        partition, kind, published = (options.pop(name, None) for name in ("partition", "kind", "published"))
        with self._lock:
            places = [self._append(None, partition, kind or "update", published, options) for _ in range(count)]
        self._wake()
        return places

    def _append(
        self,
        record: Mapping[str, Any] | bytes | None,
        partition: int | None,
        kind: str,
        published: float | None,
        options: Mapping[str, Any],
    ) -> tuple[int, int]:
        if record is None:
            moment = self.clock() if published is None else published
            record = self._make(self._index, kind=kind, published=moment, **{**self._options, **options})
            self._index += 1
        elif published is None:
            moment = _published(record, self.clock())
        else:
            moment = published
        head, tail = split_line(record)
        if partition is None:
            partition = 0 if isinstance(record, bytes) else self.partition_of(record)
        if type(partition) is not int or not 0 <= partition < len(self.log):
            raise ValueError(f"partition is 0 to {len(self.log) - 1}, not {partition!r}")
        offset = self.log[partition].append(int(moment * 1000), head, tail)
        self.published += 1
        return partition, offset

    def generate(self, count: int, *, rate: float = 10_000.0, end: float | None = None) -> None:
        """Add small events that take no memory: each is made when it is read.

        They are dealt over the partitions in turn, not by title.

        Args:
            count: How many; tens of millions are fine.
            rate: How many of them share one second.
            end: When the last one was published, seconds since 1970; by default now.
        """
        width = len(self.log)
        last = self.clock() if end is None else end
        first = round((last - (count - 1) / rate) * 1_000_000)
        start = self._index
        for partition, log in enumerate(self.log):
            mine = len(range(partition, count, width))
            if mine:
                moment = _Moments(first, rate, partition, width)
                log.extend(mine, moment.milliseconds, _Lines(self._tiny, moment, start).make)
        self._index += count
        self.published += count
        self._wake()

    def skip(self, partition: int, count: int = 1) -> None:
        """Leave a hole of so many offsets, as the service's internal events do."""
        self.log[partition].skip(count)

    def expire(self, before: float | None = None) -> None:
        """Forget what is older than the retention, or than a given time (seconds since 1970)."""
        moment = int((self.clock() - self.retention if before is None else before) * 1000)
        with self._lock:
            for log in self.log:
                log.expire(moment)

    def trim(self, keep: int) -> None:
        """Keep only so many events in each partition, for runs that shall stay small."""
        with self._lock:
            for log in self.log:
                log.trim(keep)

    async def run(self, rate: float, *, silent: Iterable[int] = (), keep: int | None = 10_000, **options: Any) -> None:
        """Publish made events until cancelled.

        Args:
            rate: Events a second, in real time.
            silent: Partitions that get none.
            keep: How many events a partition holds at most; None for what retention allows.
            **options: As in `publish`.
        """
        quiet = frozenset(silent)
        awake = [number for number in range(len(self.log)) if number not in quiet]
        clock = asyncio.get_running_loop().time
        began, done = clock(), 0
        while True:
            due = int((clock() - began) * rate) + 1
            for _ in range(min(due - done, 1000)):
                self.publish(partition=awake[done % len(awake)] if quiet else None, **options)
                done += 1
            if keep is not None:
                self.trim(keep)
            await asyncio.sleep(0 if done < due else max(0.001, 1 / rate))

    @asynccontextmanager
    async def publishing(self, rate: float, **options: Any) -> AsyncIterator[None]:
        """Publish in the background of a block; the options are those of `run`."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.run(rate, **options))
            try:
                yield
            finally:
                task.cancel()

    # Streams

    def _wake(self) -> None:
        for reader in tuple(self._readers):
            reader.wake()

    def disconnect(self, how: Literal["reset", "clean", "truncated"] = "reset") -> None:
        """End all open streams: by a TCP reset (a deploy), cleanly, or in the middle of the chunked body."""
        for reader in tuple(self._readers):
            reader.end(how)

    def plan(self, accepted: Accepted) -> Connection:
        """Resolve the start positions of an accepted request, as they are now."""
        self.expire()
        start: dict[int, int] = {}
        jumped = set()
        for partition in accepted.partitions:
            start[partition], out_of_range = self.log[partition].start(*accepted.start(partition))
            if out_of_range:
                jumped.add(partition)
        return Connection(accepted, start, frozenset(jumped))

    async def handle(self, request: web.Request, faults: Iterable[StreamFault] = ()) -> web.StreamResponse:
        """Serve one request: check it, then stream until the client leaves or a fault ends it.

        Args:
            request: A request that has passed authentication.
            faults: What shall go wrong. Kinds: `cut` (`after=` bytes of the body, or `within=(low, high)` at random;
                `how="reset"`, "truncated" or "clean"), `drop` (the same), `stall` (`after=` bytes), `slow` (`rate=`
                bytes a second), `eof` (a worker's failure: a clean end before event `at=0`), `broken` (event `at=0` is
                cut JSON), `overlong` (event `at=0` gets `size=` bytes), `replay` (after event `at=` the last `count=`
                are sent again), `gap` (from event `at=` on `count=` are lost), `error_line` (an error document in place
                of event `at=`, then the end), `older_framing` (blank lines and spaces as an older build sent).

        Returns:
            The response, finished.
        """
        body = await request.read()
        model = bind_stream_request(request.method, request.query_string, request.headers.get("Content-Type", ""), body)
        if not isinstance(model, Refused):
            checked = check_stream_request(
                model, now=self.clock(), schema=self.schema, partitions=len(self.log), parts=self.parts
            )
        else:
            checked = model
        accept = request.headers.get("Accept")
        if isinstance(checked, Refused):
            self.refused.append(checked)
            return _refusal(checked, accept)
        connection = self.plan(checked)
        self.connections.append(connection)
        if len(connection.start) < len(checked.partitions):  # a partition twice: the broker's client gives up
            return web.Response(headers={"Cache-Control": "no-cache", "Connection": "keep-alive"})
        line = Line(self.schema, checked, sse=negotiate(accept, ("text/event-stream", NDJSON)))
        share = len(checked.parts) / self.parts if checked.parts else 1.0
        reader = Reader(
            request,
            self.log,
            dict(connection.start),
            line,
            random=self.random,
            faults=faults,
            rate=None if self.rate is None else self.rate * share,
            flush_each=self.flush_each,
            burst=self.burst,
        )
        self._readers.add(reader)
        self._moved.set()
        try:
            return await reader.run()
        finally:
            self._readers.discard(reader)
            self._moved.set()


def split_line(record: Mapping[str, Any] | bytes) -> tuple[bytes, bytes | None]:
    """Encode a record and split it where partition and offset go; raw bytes and records without event stay whole."""
    if isinstance(record, bytes):
        return record, None
    event = record.get("event")
    if event is None:
        return dumps(record), None
    event = {key: value for key, value in event.items() if key not in {"partition", "offset"}}
    # Quotes are escaped inside strings, so the keys can stand nowhere else.
    data = dumps({**record, "event": {**event, "partition": 0, "offset": 0}})
    cut = data.rindex(_SPLICE)
    return data[:cut], data[cut + len(_SPLICE) :]


def _published(record: Mapping[str, Any] | bytes, default: float) -> float:
    event = None if isinstance(record, bytes) else record.get("event")
    text = (event or {}).get("date_published")
    return datetime.fromisoformat(text).timestamp() if text else default


def _refusal(refused: Refused, accept: str | None) -> web.Response:
    if not refused.text:
        return web.Response(status=refused.status)
    answer = error_answer(refused.status, refused.text, accept)
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


class _Moments:
    """Times of generated events: number n of a partition is number `n * width + partition` of all."""

    def __init__(self, first: int, rate: float, partition: int, width: int) -> None:
        self._first = first
        self._step = 1_000_000 / rate
        self.partition = partition
        self.width = width

    def microseconds(self, number: int) -> int:
        return self._first + int((number * self.width + self.partition) * self._step)

    def milliseconds(self, number: int) -> int:
        return self.microseconds(number) // 1000


class _Lines:
    """Generated events of one partition by number."""

    def __init__(self, tiny: Callable[[int, str], tuple[bytes, bytes]], moments: _Moments, start: int) -> None:
        self._tiny = tiny
        self._moments = moments
        self._start = start

    def make(self, number: int) -> tuple[bytes, bytes]:
        moments = self._moments
        index = self._start + number * moments.width + moments.partition
        return self._tiny(index, stamp(moments.microseconds(number) * 1000, 6))


def _tiny_article(index: int, moment: str) -> tuple[bytes, bytes]:
    head = (
        f'{{"name":"Page {index}","identifier":{1000 + index},"version":{{"identifier":{1_200_000_000 + index}}},'
        f'"namespace":{{"identifier":0}},"is_part_of":{{"identifier":"enwiki"}},{_tiny_event(index, moment)}'
    )
    return head.encode(), b"}}"


def _tiny_entity(index: int, moment: str) -> tuple[bytes, bytes]:
    item = f"Q{100 + index}"
    head = (
        f'{{"name":"{item}","identifier":{13_100 + index * 31},"namespace":{{"identifier":0}},'
        f'"is_part_of":{{"identifier":"wikidatawiki"}},{_tiny_event(index, moment)}'
    )
    return head.encode(), f'}},"entity":{{"identifier":"{item}","type":"item"}}}}'.encode()


def _tiny_event(index: int, moment: str) -> str:
    return (
        f'"event":{{"identifier":"{index & 0xFFFFFFFF:08x}-0000-4000-8000-{index:012x}","type":"update",'
        f'"date_created":"{moment}","date_published":"{moment}",'
    )
