"""One connection of a stream: ask, read, frame, hand over; and when it ends, ask again for what comes next."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import msgspec

from wme_async._stream.events import StreamConnected, StreamDisconnected, StreamEvent, StreamRetrying
from wme_async._stream.framing import Framing, Record, framer_for
from wme_async._stream.outage import Outage
from wme_async._stream.partitions import Progress
from wme_async._stream.resume import Plan, StreamResource, check_since, partitions_of, plan
from wme_async._transport import Body, Request, Transport
from wme_async._transport.retry import Backoff, is_transient
from wme_async.errors import (
    IdleTimeout,
    Interrupted,
    StatusError,
    TimedOut,
    TransportError,
    Unauthorized,
    Unprocessable,
    WMEError,
)
from wme_async.models.decoding import LONG_RECORD
from wme_async.settings import Retry

__all__ = ["FOR_EVER", "Block", "Buffer", "Connection", "Session", "Settings", "begin_at", "make_connections"]

logger = logging.getLogger("wme_async.stream")

FOR_EVER = Retry(attempts=2**62, total=1e300)
"""The policy of a stream unless it is given another one: as long as the server may come back, so may we."""

_GUARD = timedelta(seconds=2)  # a `Date` header has whole seconds
_WIDE_GUARD = timedelta(minutes=2)  # after a time was refused although the server's clock is known
_HEADSTART = timedelta(seconds=30)
_ASLEEP = 60.0  # seconds that the server's clock may have run on without ours
_REFUSALS = 5  # tokens refused in a row after the stream had worked, before it gives up
# Bytes to read ahead where records are long. Short ones are best taken as soon as 64 KiB of them are there, before they
# leave the processor's cache; for long ones that would be a wake-up for each or two.
_LONG_READ = 256 * 1024
_ACCEPT: Mapping[Framing, str] = {"ndjson": "application/x-ndjson", "sse": "text/event-stream"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What all connections of a stream share."""

    resource: StreamResource
    framing: Framing
    fields: tuple[str, ...] | None
    filters: tuple[Mapping[str, Any], ...]
    idle_timeout: float
    max_record: int
    retry: Retry
    tell: Callable[[StreamEvent], None]


class Session:
    """The time from one request to the end of its answer.

    Attributes:
        connection: Whose it is.
        abandoned: Why the consumer wants no more of it.
        records: How many came.
        placeless: How many of them stand nowhere in the stream, as errors do that are told in it.
        answered: Whether the head of the answer has come.
    """

    def __init__(self, connection: "Connection", began: float) -> None:
        self.connection = connection
        self.began = began
        self.scope = anyio.CancelScope()
        self.abandoned: WMEError | None = None
        self.records = 0
        self.placeless = 0
        self.answered = False
        self.waiting = 0  # blocks that are not decoded yet


class Block(msgspec.Struct, gc=False):
    """Records that came together."""

    session: Session
    records: list[Record]
    size: int


class Buffer:
    """What was received and not decoded yet, bounded by bytes: a full one stops the reading, and so the sender.

    Args:
        limit: Bytes. One block is taken whatever its size, if there is nothing else.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: deque[Block] = deque()
        self.size = 0
        self._some = asyncio.Event()
        self._space = asyncio.Event()
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def full(self) -> bool:
        """Whether nothing is read at present, whatever the server may have to say."""
        return self.size >= self._limit

    async def put(self, block: Block) -> None:
        """Add a block, when there is room; one of a session that was abandoned meanwhile is dropped."""
        while self.full:
            self._space.clear()
            await self._space.wait()
        if block.session.abandoned is not None:
            return  # what stood before it was dropped while this waited: behind a hole it would hide the hole
        block.session.waiting += 1
        self._blocks.append(block)
        self.size += block.size
        self._some.set()

    def take(self) -> Block | None:
        """Return the oldest block; None if there is none."""
        if not self._blocks:
            return None
        block = self._blocks.popleft()
        self.size -= block.size
        if not self.full:
            self._space.set()
        return block

    def decoded(self, block: Block) -> None:
        """Note that all records of a block have been decoded, or dropped."""
        block.session.waiting -= 1
        if not block.session.waiting:
            self._empty.set()

    async def drained(self, session: Session) -> None:
        """Wait until nothing of a session is waiting to be decoded."""
        while session.waiting:
            self._empty.clear()
            await self._empty.wait()

    async def wait(self) -> None:
        """Wait until there may be a block, or something to say."""
        if not self._blocks:
            self._some.clear()
            await self._some.wait()

    def wake(self) -> None:
        """Make whoever waits look."""
        self._some.set()

    def purge(self, session: Session) -> None:
        """Drop the blocks of a session."""
        kept = deque(block for block in self._blocks if block.session is not session)
        for block in self._blocks:
            if block.session is session:
                self.size -= block.size
                self.decoded(block)
        self._blocks = kept
        self._space.set()


class Connection:
    """Keeps one request for some parts open, for as long as it is run.

    Args:
        number: Its number, from 0.
        parts: What it reads.
        transport: Sends requests.
        settings: What all connections share.
        progress: Where the stream is.
        start: From when on partitions without a position are wanted.
        buffer: Where records go.
        outage: Logs failures that last.
    """

    def __init__(
        self,
        number: int,
        parts: tuple[int, ...],
        *,
        transport: Transport,
        settings: Settings,
        progress: Progress,
        start: datetime,
        buffer: Buffer,
        outage: Outage,
    ) -> None:
        self.number = number
        self.parts = parts
        self.partitions = partitions_of(settings.resource, parts)
        # What else it brings is not its own; one that reads everything takes whatever comes.
        self.own = None if len(parts) == settings.resource.parts else frozenset(self.partitions)
        self.session: Session | None = None
        self.connects = 0
        self.reconnects = 0
        self.bytes = 0
        self._transport = transport
        self._settings = settings
        self._progress = progress
        self._start = start
        self._buffer = buffer
        self._outage = outage
        self._backoff = Backoff(settings.retry, transport.random.random)
        self._progressed = transport.monotonic()
        self._guard = _GUARD
        self._at_once = False  # the next request follows without a wait
        self._silent = False  # the last request was accepted and met with silence, which is an answer too
        self._accepted = False  # a request has been accepted: with a head, or at least with silence
        self._refusals = 0
        self._probes: dict[int, int] = {}

    @property
    def connected(self) -> bool:
        """Whether the response to its request has begun; the service sends no head before the first event."""
        return self.session is not None and self.session.answered

    @property
    def listening(self) -> bool:
        """Whether silence means that nothing is said.

        A request may also be on its way into nowhere, and what was said may wait for the consumer to look at it.
        """
        session = self.session
        return session is not None and not session.waiting and (session.answered or self._silent)

    def look_again(self, partition: int, offset: int) -> None:
        """Ask for a partition by time, until it has been heard from.

        Args:
            partition: Which.
            offset: What came when it was asked for by offset.
        """
        self._probes[partition] = offset
        self._at_once = True

    def abandon(self, session: Session, error: WMEError) -> None:
        """End a session from the consumer's side, dropping what it brought and nobody has looked at yet."""
        if session.abandoned is None:
            session.abandoned = error
            self._buffer.purge(session)
            session.scope.cancel()

    async def run(self) -> None:
        """Read until cancelled.

        Raises:
            WMEError: Another attempt would not help, or there have been enough.
        """
        while True:
            session = Session(self, self._transport.monotonic())
            error = await self._once(session)
            await self._recover(error)

    async def _once(self, session: Session) -> WMEError:
        """Make one request and read its answer to its end, which is always a failure; return it."""
        self.session = session
        error: WMEError | None = None
        try:
            with session.scope:
                await self._read(session)
        except WMEError as caught:
            error = caught
        finally:
            self.session = None
        now = self._transport.monotonic()
        seconds = now - session.began
        # What was received is decoded first: the next request starts after it, and an error may be in it.
        await self._buffer.drained(session)
        error = session.abandoned or error
        assert error is not None
        if session.records > session.placeless:
            self._backoff.reset()
            self._progressed = now
        # Not the sign-in, which may hang before the stream is asked for at all.
        self._silent = isinstance(error, TimedOut) and (error.url or "").endswith(self._settings.resource.path)
        self._accepted = self._accepted or self._silent
        logger.info("connection %d ended after %.1f s and %d records: %s", self.number, seconds, session.records, error)
        self._settings.tell(
            StreamDisconnected(connection=self.number, error=error, records=session.records, seconds=seconds)
        )
        return error

    def _plan(self) -> tuple[Plan, float]:
        """Decide what to ask for; also return what time it was thought to be."""
        settings = self._settings
        clock = self._transport.server_now("realtime")
        now = datetime.fromtimestamp(clock, UTC)
        self._probes = {p: offset for p, offset in self._probes.items() if p not in self._progress.seen}
        wanted = plan(
            settings.resource,
            self.parts,
            self._progress.read(self.partitions),
            now=now,
            guard=self._guard,
            start=self._start,
            by_time=self._probes,
            fields=settings.fields,
            filters=settings.filters,
        )
        self._progress.connecting(wanted, at=now, probes=self._probes)
        return wanted, clock

    async def _read(self, session: Session) -> None:
        settings = self._settings
        wanted, clock = self._plan()
        request = Request(
            method="POST",
            role="realtime",
            path=settings.resource.path,
            headers={"Accept": _ACCEPT[settings.framing], "Content-Type": "application/json"},
            body=wanted.body(),
            token=True,
            streaming=True,
            product=settings.resource.product,
        )
        async with self._transport.open(request, retry=False, read_timeout=settings.idle_timeout) as body:
            asleep = self._transport.server_now("realtime") - clock - (self._transport.monotonic() - session.began)
            if asleep > _ASLEEP:
                # This machine slept, or its clock was behind: what looked fresh may have run out meanwhile.
                self._at_once = True
                raise Interrupted(f"it is {asleep:.0f} s later than thought; asking again by the server's clock")
            framer = framer_for(_framing_of(body, settings.framing), settings.max_record)
            self._connected(session, wanted)
            long = False
            async with contextlib.aclosing(cast("AsyncGenerator[bytes]", body.chunks())) as chunks:
                async for data in chunks:
                    self.bytes += len(data)
                    held = framer.pending
                    records = framer.feed(data)
                    if records:
                        if not session.records:
                            self._outage.received(self.number, now=self._transport.monotonic())
                        session.records += len(records)
                        if not long and len(data) > LONG_RECORD * len(records):
                            long = True
                            body.read_ahead(_LONG_READ)
                        await self._buffer.put(Block(session, records, held + len(data)))
        cut = f", in the middle of a record of {framer.pending} bytes so far" if framer.pending else ""
        raise Interrupted(f"the server ended the stream{cut}")

    def _connected(self, session: Session, wanted: Plan) -> None:
        session.answered = True
        self.connects += 1
        self.reconnects += self.connects > 1
        self._accepted = True
        self._refusals = 0
        self._guard = _GUARD
        waited = self._transport.monotonic() - session.began
        logger.info("connection %d reads parts %s after %.1f s", self.number, self.parts, waited)
        self._settings.tell(
            StreamConnected(
                connection=self.number,
                parts=self.parts,
                waited=waited,
                by_offset=len(wanted.offsets),
                by_time=len(wanted.since),
            )
        )

    async def _recover(self, error: WMEError) -> None:
        """Wait as long as the failure asks for, or raise it."""
        if self._at_once:
            self._at_once = False  # a second look, by other means
            return
        if isinstance(error, Unprocessable) and "future" in error.message and self._guard < _WIDE_GUARD:
            # The refusal brought the server's clock with it; the margin is for what that does not explain.
            self._guard = _WIDE_GUARD
            return
        if isinstance(error, Unauthorized) and self._accepted:
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                raise error
        elif not is_transient(error):
            raise error
        if self._silent and self._settings.retry is FOR_EVER:
            self._backoff.reset()  # silence is legitimate; asking again after it is not a failure to be slowed down
        asked = error.retry_after if isinstance(error, StatusError) else None
        if asked is not None and self._settings.retry is FOR_EVER:
            asked = min(asked, FOR_EVER.retry_after_cap)
        elapsed = self._transport.monotonic() - self._progressed
        wait = self._backoff.failed(elapsed=elapsed, retry_after=asked)
        attempts = self._backoff.attempts
        if not self._silent:
            self._outage.failed(self.number, error, attempts=attempts, now=self._transport.monotonic())
        if wait is None:
            raise _exhausted(error, attempts, self._settings.idle_timeout if self._silent else None)
        self._settings.tell(StreamRetrying(connection=self.number, attempt=attempts, wait=wait, error=error))
        await self._transport.sleep(wait)


def make_connections(key: str, parts: Sequence[tuple[int, ...]], **shared: Any) -> list[Connection]:
    """Make the connections of one stream.

    Args:
        key: The name of its positions, for log messages.
        parts: The parts that each connection reads.
        **shared: Further arguments of `Connection`.
    """
    outage = Outage(key, len(parts))
    return [Connection(number, each, outage=outage, **shared) for number, each in enumerate(parts)]


async def begin_at(
    transport: Transport, resource: StreamResource, since: datetime | None, *, resumed: bool
) -> datetime:
    """Return from when on partitions without a position are wanted.

    Args:
        transport: Knows the time.
        resource: Which stream.
        since: What the user wants; None for now, or a little before: the server refuses what lies in its future, and
            its clock is not known before its first answer.
        resumed: Whether other partitions have positions already.

    Raises:
        ValueError: `since` is in the future, or older than what is kept.
    """
    if since is None:
        return datetime.fromtimestamp(transport.server_now("realtime"), UTC) - _HEADSTART
    # Whether a time is too early or too late is for the server's clock to say; any answer tells it.
    with contextlib.suppress(WMEError):
        await transport.request(Request(role="realtime", path="/v2/status"), retry=False, read_timeout=10.0)
    now = datetime.fromtimestamp(transport.server_now("realtime"), UTC)
    if resumed:
        # A script that always names the same time and has gone on from its positions since then.
        since = max(since, now - timedelta(seconds=resource.retention))
    return check_since(since, now=now, retention=resource.retention)


def _framing_of(body: Body, asked: Framing) -> Framing:
    """Tell the framing by what the server says it sends.

    Raises:
        TransportError: It is something else altogether, such as the page of a proxy.
    """
    kind = body.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return "sse"
    if kind in {"application/x-ndjson", "application/ndjson"}:
        return "ndjson"
    if kind.startswith(("text/", "image/")):
        raise TransportError(f"the stream was answered by {kind}, which is not the service's doing")
    return asked


def _exhausted(error: WMEError, attempts: int, idle_timeout: float | None) -> WMEError:
    if idle_timeout is not None:
        idle = IdleTimeout(f"the stream sent nothing for {idle_timeout:g} s, {attempts} times in a row", url=error.url)
        idle.__cause__ = error
        return idle
    error.add_note(f"gave up after {attempts} attempts")
    return error
