"""The realtime host: the retained events of each stream in partitioned logs, and the route to the streams."""

import asyncio
import itertools
import threading
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any, Final, Literal

from aiohttp import web

from wme_async.simulator.errors import HTTPError
from wme_async.simulator.faults import Fault
from wme_async.simulator.hosts.access import AccessRow, authorize
from wme_async.simulator.hosts.accounts import Accounts
from wme_async.simulator.hosts.http import NDJSON, Response, error_response, negotiate, send, slash_redirect
from wme_async.simulator.hosts.stream import Line, Reader
from wme_async.simulator.log import PartitionLog
from wme_async.simulator.protocol.schema import ARTICLE, ENTITY, Node
from wme_async.simulator.protocol.stream_request import (
    Accepted,
    Refused,
    bind_stream_request,
    prune_stream_request,
)
from wme_async.simulator.world.articles import ArticleGenerator
from wme_async.simulator.world.encoding import dumps, stamp
from wme_async.simulator.world.entities import EntityGenerator

_SPLICE: Final = b'"partition":0,"offset":0'
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET,POST,OPTIONS,HEAD",
    "Access-Control-Allow-Headers": "*",
}


@dataclass(frozen=True)
class Connection:
    """One accepted stream.

    Attributes:
        request: The request, as the server pruned it.
        start: The first offset of each partition.
        jumped: Partitions whose offset did not exist any more (or not yet) and that silently started live.
    """

    request: Accepted
    start: Mapping[int, int]
    jumped: frozenset[int] = field(default_factory=frozenset)


class Firehose:
    """The retained events of a stream, and the handler that serves them.

    It serves articles by default, and any other record type with a schema and a function that makes records.

    Args:
        clock: Returns the time, in seconds since 1970; retention and "in the future" go by it.
        seed: Determines the choices that faults leave open.
        partitions: The number of partitions.
        parts: The number of parts; each part holds consecutive partitions.
        retention: Lifetime of an event in seconds.
        rate: Messages per second and connection, scaled by the share of requested parts; None does not throttle. The
            real service sends 50.
        schema: The fields that a request may name.
        make: Makes the record of an index: `make(index, kind=, published=, **options)`.
        options: Default options of `make`; for articles `{"size": "small"}`.
        flush_each: Whether each event is a write of its own, as on the service; else events that are ready together
            share a write, which is several times faster.
        burst: The number of events of one partition that are read before the turn of the next one.
        tiny: Writes the line of a generated event without an encoder, split where partition and offset go:
            `tiny(index, moment)` with the time as text.
        update: Called before events are read: publishes those that are due.

    Attributes:
        log: The events of each partition.
        connections: The accepted streams, oldest first.
        refused: The rejected requests, oldest first.
        published: The number of events published so far.
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
        update: Callable[[], None] | None = None,
    ) -> None:
        self.clock = clock
        self._update = update
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
        self._options = {"size": "small"} if options is None and make is None else dict(options or {})
        self._make: Callable[..., dict[str, Any]] = make or ArticleGenerator(seed).article
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._readers: set[Reader] = set()
        self._open_changed = asyncio.Event()

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
    def size(self) -> Any:
        """The size of generated articles, as in `ArticleGenerator.article`."""
        return self._options.get("size", "small")

    @property
    def open(self) -> int:
        """The number of open streams."""
        return len(self._readers)

    async def wait_open(self, count: int, *, timeout: float = 5.0) -> None:
        """Wait, in the simulator's loop, until exactly `count` streams are open.

        Raises:
            TimeoutError: The timeout (seconds) has passed.
        """
        async with asyncio.timeout(timeout):
            while self.open != count:
                self._open_changed.clear()
                await self._open_changed.wait()

    # Events

    def partition_of(self, record: Mapping[str, Any]) -> int:
        """Return the partition of a record: by project and title, so that all events of a title stay in order."""
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
            partition: The partition; by default that of the record's title.
            kind: The event type of a new record.
            published: Time of publication, seconds since 1970; by default the record's own `event.date_published`, or
                now.
            **options: For the function that makes records, such as `size=` of articles.

        Returns:
            Partition and offset.

        Raises:
            ValueError: The partition does not exist.
        """
        return self._publish(1, record, partition=partition, kind=kind, published=published, **options)[0]

    def publish_many(self, count: int, **options: Any) -> list[tuple[int, int]]:
        """Publish `count` made events at once; the options are those of `publish`."""
        return self._publish(count, None, **options)

    def _publish(
        self,
        count: int,
        record: Mapping[str, Any] | bytes | None,
        *,
        partition: int | None = None,
        kind: str = "update",
        published: float | None = None,
        **options: Any,
    ) -> list[tuple[int, int]]:
        if partition is not None and (type(partition) is not int or not 0 <= partition < len(self.log)):
            raise ValueError(f"partition is 0 to {len(self.log) - 1}, not {partition!r}")
        positions = []
        for _ in range(count):
            moment = self.clock() if published is None else published
            event = record
            if event is None:
                # A world that makes the event may publish others meanwhile.
                event = self._make(next(self._numbers), kind=kind, published=moment, **{**self._options, **options})
            elif published is None:
                moment = _published(event, moment)
            number = partition
            if number is None:
                number = 0 if isinstance(event, bytes) else self.partition_of(event)
            line = split_line(event)
            with self._lock:
                positions.append((number, self.log[number].append(int(moment * 1000), *line)))
                self.published += 1
        self._wake()
        return positions

    def generate(self, count: int, *, rate: float = 10_000.0, end: float | None = None) -> None:
        """Add small events that take no memory: reading makes each of them.

        They are dealt over the partitions in turn, not by title.

        Args:
            count: The number of events; tens of millions are fine.
            rate: Events per second of their publication times.
            end: Time of publication of the last one, seconds since 1970; by default now.
        """
        width, step, start = len(self.log), 1_000_000 / rate, next(self._numbers)
        first = round(((self.clock() if end is None else end) - (count - 1) / rate) * 1_000_000)

        def microseconds(number: int) -> int:
            return first + int(number * step)

        def line(number: int) -> tuple[bytes, bytes]:
            return self._tiny(start + number, stamp(microseconds(number) * 1000, 6))

        for partition, log in enumerate(self.log):
            numbers = range(partition, count, width)
            if numbers:
                log.extend(numbers, lambda number: microseconds(number) // 1000, line)
        self._numbers = itertools.count(start + count)
        self.published += count
        self._wake()

    def preload(self, partition: int, times: Sequence[float], make: Callable[[int], Mapping[str, Any]]) -> None:
        """Add events that reading makes.

        Args:
            partition: The partition.
            times: When they were published, seconds since 1970, in order.
            make: Returns the record of the event with a position in `times`.
        """
        numbers = range(len(times))
        self.log[partition].extend(numbers, lambda number: int(times[number] * 1000), lambda n: split_line(make(n)))
        self.published += len(times)
        self._wake()

    def skip(self, partition: int, count: int = 1) -> None:
        """Leave a gap of `count` offsets, as the service's internal events do."""
        self.log[partition].skip(count)

    def expire(self, before: float | None = None) -> None:
        """Drop events older than the retention, or than a time (seconds since 1970)."""
        moment = int((self.clock() - self.retention if before is None else before) * 1000)
        with self._lock:
            for log in self.log:
                log.expire(moment)

    def trim(self, keep: int) -> None:
        """Keep only the newest `keep` events of each partition."""
        with self._lock:
            for log in self.log:
                log.trim(keep)

    async def run(self, rate: float, *, silent: Iterable[int] = (), keep: int | None = 10_000, **options: Any) -> None:
        """Publish made events until cancelled.

        Args:
            rate: Events per second, in real time.
            silent: Partitions without events.
            keep: The most events that a partition holds; None leaves that to the retention.
            **options: As in `publish`.
        """
        silent = frozenset(silent)
        partitions = [number for number in range(len(self.log)) if number not in silent]
        clock = asyncio.get_running_loop().time
        start, count = clock(), 0
        while True:
            due = int((clock() - start) * rate) + 1
            for _ in range(min(due - count, 1000)):
                self.publish(partition=partitions[count % len(partitions)] if silent else None, **options)
                count += 1
            if keep is not None:
                self.trim(keep)
            await asyncio.sleep(0 if count < due else max(0.001, 1 / rate))

    @asynccontextmanager
    async def publishing(self, rate: float, **options: Any) -> AsyncIterator[None]:
        """Publish in the background of an `async with` block; the options are those of `run`."""
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
        """End all open streams: by a TCP reset (as a deployment does), cleanly, or inside the chunked body."""
        for reader in tuple(self._readers):
            reader.end(how)

    def plan(self, accepted: Accepted) -> Connection:
        """Resolve the start positions of an accepted request at this moment."""
        if self._update is not None:
            self._update()
        self.expire()
        starts = {number: self.log[number].start(*accepted.start(number)) for number in accepted.partitions}
        jumped = frozenset(number for number, (_, out_of_range) in starts.items() if out_of_range)
        return Connection(accepted, {number: offset for number, (offset, _) in starts.items()}, jumped)

    async def handle(self, request: web.Request, faults: Iterable[Fault] = ()) -> web.StreamResponse:
        """Serve one request: check it, then stream until the client leaves or a fault ends it.

        Args:
            request: A request that has passed authentication.
            faults: The faults of this request. Kinds: `cut` (`after=` bytes of the body, or `within=(low, high)` at
                random; `how="reset"`, "truncated" or "clean"), `drop` (the same), `stall` (`after=` bytes), `slow`
                (`rate=` bytes per second), `eof` (a worker's failure: a clean end before event `at=0`), `broken` (event
                `at=0` is cut JSON), `overlong` (event `at=0` gets `size=` bytes), `replay` (after event `at=` the last
                `count=` are sent again), `gap` (from event `at=` on `count=` are lost), `error_line` (an error document
                in place of event `at=`, then the end), `older_framing` (blank lines and spaces as an older build sent).

        Returns:
            The response, finished.
        """
        accept = request.headers.get("Accept")
        content_type = request.headers.get("Content-Type", "")
        try:
            model = bind_stream_request(request.method, request.query_string, content_type, await request.read())
            accepted = prune_stream_request(model, self.clock(), self.schema, len(self.log), self.parts)
        except HTTPError as error:
            self.refused.append(Refused(error.status, error.message))
            # A crash of the server has neither text nor body.
            refusal = error_response(error.status, error.message, accept) if error.message else Response(500)
            return await send(request, refusal)
        connection = self.plan(accepted)
        self.connections.append(connection)
        if len(connection.start) < len(accepted.partitions):  # a partition twice: the broker's client gives up
            return web.Response(headers={"Cache-Control": "no-cache", "Connection": "keep-alive"})
        share = len(accepted.parts) / self.parts if accepted.parts else 1.0
        reader = Reader(
            request,
            self.log,
            dict(connection.start),
            Line(self.schema, accepted, negotiate(accept, ("text/event-stream", NDJSON))),
            random=self.random,
            faults=faults,
            rate=None if self.rate is None else self.rate * share,
            flush_each=self.flush_each,
            burst=self.burst,
            update=self._update,
        )
        self._readers.add(reader)
        self._open_changed.set()
        try:
            return await reader.run()
        finally:
            self._readers.discard(reader)
            self._open_changed.set()


@dataclass(frozen=True)
class RealtimeHost:
    """The routes of the realtime host.

    Args:
        accounts: Users and tokens.
        access: Returns the access policy.
        streams: The stream of each path.
    """

    accounts: Accounts
    access: Callable[[], Sequence[AccessRow]]
    streams: Mapping[str, Firehose]

    async def respond(
        self, request: web.Request, path: str, query: str, headers: Mapping[str, str], faults: Sequence[Fault]
    ) -> web.StreamResponse:
        """Answer one request, in the order of the real host's layers.

        Args:
            request: The request.
            path: The decoded path.
            query: The query as sent.
            headers: Header lines, names in lower case.
            faults: The faults of this request.
        """
        method, registered = request.method, path.rstrip("/")
        if method == "GET" and path in {"/v2/status", "/healthz"}:
            return await send(request, Response(200))
        if path.endswith("/") and registered in self.streams:
            return await send(request, slash_redirect(method, registered, query))
        if method == "OPTIONS":
            return await send(request, Response(204, dict(_CORS)))
        try:
            authorize(self.accounts, self.access(), method, path, headers)
        except HTTPError as error:
            return await send(request, error_response(error.status, error.message, headers.get("accept")))
        firehose = self.streams.get(path)
        if firehose is None or method not in {"GET", "POST"}:
            return await send(request, error_response(404, "Not Found", headers.get("accept")))
        return await firehose.handle(request, faults)


def split_line(record: Mapping[str, Any] | bytes) -> tuple[bytes, bytes | None]:
    """Encode a record and split it where partition and offset go; do not split raw bytes and records without event."""
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
