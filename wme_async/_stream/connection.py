"""One connection of a stream: request, read, frame, pass on; when the response ends, request the events after it."""

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import msgspec

from wme_async._stream.buffer import BlockQueue, RecordBlock, Session
from wme_async._stream.framing import Framing, framer_for
from wme_async._stream.options import StreamOptions
from wme_async._stream.outage import Outage
from wme_async._stream.partitions import UNREAD, Partitions
from wme_async._stream.reports import StreamConnected, StreamDisconnected, StreamEvent, StreamRetrying
from wme_async._stream.resume import SKEW, StreamRequest, StreamResource, check_since, partitions_of, plan_request
from wme_async._telemetry import log_fields
from wme_async._transport import Body, Request, Transport
from wme_async._transport.retry import FOR_EVER, Backoff, is_transient
from wme_async.errors import (
    IdleTimeout,
    Interrupted,
    TimedOut,
    TransportError,
    Unauthorized,
    Unprocessable,
    WMEError,
)
from wme_async.models.decoding import LONG_RECORD

logger: logging.Logger = logging.getLogger("wme_async.stream")

_GUARD = timedelta(seconds=2)  # a `Date` header has whole seconds
_WIDE_GUARD = timedelta(minutes=2)  # after the server rejected a time although its clock is known
_HEADSTART = timedelta(seconds=30)
_SUSPENDED = 60.0  # seconds by which the server's clock may advance while ours stands still
_UNAUTHORIZED = 5  # rejected tokens in a row after the stream had worked, before it gives up
# Bytes to read ahead where records are long. Short records are best taken as soon as there are 64 KiB of them, before
# they leave the processor's cache; long ones would wake the consumer for each one or two.
_LONG_READ = 256 * 1024
_FRAMINGS: Mapping[str, Framing] = {
    "application/ndjson": "ndjson",
    "application/x-ndjson": "ndjson",
    "text/event-stream": "sse",
}
_ACCEPT: Mapping[Framing, str] = {"ndjson": "application/x-ndjson", "sse": "text/event-stream"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that all connections of a stream share.

    Attributes:
        resource: The stream.
        options: The options of the user.
        fields: Names in the server's spelling; None for everything.
        filters: Objects with `field` and `value`.
        start: The time from which partitions without a position are read.
        notify: Called with events for the hook.
    """

    resource: StreamResource
    options: StreamOptions
    fields: tuple[str, ...] | None
    filters: tuple[Mapping[str, Any], ...]
    start: datetime
    notify: Callable[[StreamEvent], None]


class Connection:
    """Keeps one request for some parts open while it runs.

    Attributes:
        number: Its number, from 0.
        parts: The parts that it reads.
        partitions: The partitions of those parts.
        own: The same to compare events with; None if it reads all parts, since it then accepts any event.
        session: The present request; None between two requests.
        connects: The number of responses.
        reconnects: The number of responses after the first.
        bytes: Bytes of bodies received.

    Args:
        number: Its number, from 0.
        parts: The parts that it reads.
        transport: Sends requests.
        settings: The settings that all connections share.
        partitions: How far the partitions were read.
        buffer: Receives the records.
        outage: Logs failures that last.
    """

    def __init__(
        self,
        number: int,
        parts: tuple[int, ...],
        *,
        transport: Transport,
        settings: Settings,
        partitions: Partitions,
        buffer: BlockQueue,
        outage: Outage,
    ) -> None:
        self.number = number
        self.parts = parts
        self.partitions = partitions_of(settings.resource, parts)
        self.own = None if len(parts) == settings.resource.parts else frozenset(self.partitions)
        self.session: Session | None = None
        self.connects = 0
        self.reconnects = 0
        self.bytes = 0
        self._transport = transport
        self._settings = settings
        self._options = settings.options
        self._retry = settings.options["retry"] or FOR_EVER
        self._partitions = partitions
        self._buffer = buffer
        self._outage = outage
        self._backoff = Backoff(self._retry, transport.random.random)
        self._last_progress = transport.monotonic()
        self._guard = _GUARD
        self._skip_wait = False  # the next request follows at once
        self._silent = False  # the last request was accepted, and nothing came
        self._accepted = False  # a request has been accepted: with a head, or at least with silence
        self._unauthorized = 0
        self._probes: dict[int, int] = {}

    @property
    def connected(self) -> bool:
        """Whether the response to its request has begun; the service sends no head before the first event."""
        return self.session is not None and self.session.answered

    @property
    def listening(self) -> bool:
        """Whether silence means that there are no events.

        It does not while a request may not have reached the server, or while records wait for the consumer.
        """
        session = self.session
        return session is not None and not session.waiting and (session.answered or self._silent)

    def ask_again(self, partition: int, offset: int) -> None:
        """Request a partition by time until an event of it arrives.

        Args:
            partition: The partition.
            offset: The offset that the request by offset brought.
        """
        self._probes[partition] = offset
        self._skip_wait = True

    def abandon(self, session: Session, error: WMEError) -> None:
        """End a session from the consumer's side, and drop its records that are not decoded yet."""
        if session.abandoned is None:
            session.abandoned = error
            self._buffer.purge(session)
            session.scope.cancel()

    async def run(self) -> None:
        """Read until cancelled.

        Raises:
            WMEError: Another attempt would not help, or the attempts are used up.
        """
        while True:
            session = Session(self, self._transport.monotonic())
            await self._recover(await self._run_session(session))

    async def _run_session(self, session: Session) -> WMEError:
        """Make one request and read its response to the end, which is always a failure; return that."""
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
        # Decode what was received first: the next request starts after it, and an error may be in it.
        await self._buffer.wait_decoded(session)
        error = session.abandoned or error
        assert error is not None
        if session.records > session.placeless:
            self._backoff.reset()
            self._last_progress = now
        # A sign-in that times out is not silence of the stream.
        self._silent = isinstance(error, TimedOut) and (error.url or "").endswith(self._settings.resource.path)
        self._accepted = self._accepted or self._silent
        fields = log_fields(error, connection=self.number, seconds=seconds, records=session.records)
        message = "connection %d ended after %.1f s and %d records: %s"
        logger.info(message, self.number, seconds, session.records, error, extra=fields)
        self._settings.notify(
            StreamDisconnected(connection=self.number, error=error, records=session.records, seconds=seconds)
        )
        return error

    def _plan(self) -> tuple[StreamRequest, float]:
        """Return the next request, and the server's clock that it is based on."""
        clock = self._transport.server_now("realtime")
        now = datetime.fromtimestamp(clock, UTC)
        by_number = self._partitions.by_number
        self._probes = {number: offset for number, offset in self._probes.items() if by_number[number].read is UNREAD}
        request = plan_request(
            self._settings.resource,
            self.parts,
            self._partitions.read_positions(self.partitions),
            now=now,
            guard=self._guard,
            start=self._settings.start,
            by_time=self._probes,
            fields=self._settings.fields,
            filters=self._settings.filters,
        )
        self._partitions.connect(request, at=now, probes=self._probes)
        return request, clock

    async def _read(self, session: Session) -> None:
        resource, options = self._settings.resource, self._options
        plan, clock = self._plan()
        request = Request(
            method="POST",
            role="realtime",
            path=resource.path,
            headers={"Accept": _ACCEPT[options["framing"]], "Content-Type": "application/json"},
            body=plan.body(),
            token=True,
            streaming=True,
            product=resource.product,
        )
        async with self._transport.open(request, retry=False, read_timeout=options["idle_timeout"]) as body:
            late = self._transport.server_now("realtime") - clock - (self._transport.monotonic() - session.began)
            if late > _SUSPENDED:
                # The machine was suspended, or its clock was behind: the server may no longer have the offsets.
                self._skip_wait = True
                raise Interrupted(f"it is {late:.0f} s later than thought; asking again by the server's clock")
            self._connected(session, plan)
            await self._read_body(session, body)

    async def _read_body(self, session: Session, body: Body) -> None:
        """Pass the records of a response on until it ends.

        Raises:
            Interrupted: It ended.
        """
        framer = framer_for(_framing_of(body, self._options["framing"]), self._options["max_record"])
        long = False
        async with contextlib.aclosing(cast("AsyncGenerator[bytes]", body.chunks())) as chunks:
            async for chunk in chunks:
                self.bytes += len(chunk)
                pending = framer.pending
                records = framer.feed(chunk)
                if records:
                    if not session.records:
                        self._outage.received(self.number, now=self._transport.monotonic())
                    session.records += len(records)
                    if not long and len(chunk) > LONG_RECORD * len(records):
                        long = True
                        body.read_ahead(_LONG_READ)
                    await self._buffer.put(RecordBlock(session, records, pending + len(chunk)))
        cut = f", in the middle of a record of {framer.pending} bytes so far" if framer.pending else ""
        raise Interrupted(f"the server ended the stream{cut}")

    def _connected(self, session: Session, request: StreamRequest) -> None:
        session.answered = True
        self.connects += 1
        self.reconnects += self.connects > 1
        self._accepted = True
        self._unauthorized = 0
        self._guard = _GUARD
        waited = self._transport.monotonic() - session.began
        fields = log_fields(connection=self.number, parts=self.parts, waited=waited)
        logger.info("connection %d reads parts %s after %.1f s", self.number, self.parts, waited, extra=fields)
        self._settings.notify(
            StreamConnected(
                connection=self.number,
                parts=self.parts,
                waited=waited,
                by_offset=len(request.offsets),
                by_time=len(request.since),
            )
        )

    async def _recover(self, error: WMEError) -> None:
        """Wait before the next request, or raise the error.

        Raises:
            WMEError: Another attempt would not help, or the attempts are used up.
        """
        if self._skip_wait:
            self._skip_wait = False
            return
        if isinstance(error, Unprocessable) and "future" in error.message and self._guard < _WIDE_GUARD:
            # The response brought the server's clock with it; the margin is for what that does not explain.
            self._guard = _WIDE_GUARD
            return
        if isinstance(error, Unauthorized) and self._accepted:
            self._unauthorized += 1
            if self._unauthorized >= _UNAUTHORIZED:
                raise error
        elif not is_transient(error):
            raise error
        if self._retry is FOR_EVER and self._silent:
            self._backoff.reset()  # silence is legitimate, so it does not slow down the requests
        now = self._transport.monotonic()
        wait = self._backoff.failed(error, elapsed=now - self._last_progress)
        attempts = self._backoff.attempts
        if not self._silent:
            self._outage.failed(self.number, error, attempts=attempts, now=now)
        if wait is None:
            raise _exhausted(error, attempts, self._options["idle_timeout"] if self._silent else None)
        self._settings.notify(StreamRetrying(connection=self.number, attempt=attempts, wait=wait, error=error))
        await self._transport.sleep(wait)


async def start_time(
    transport: Transport, resource: StreamResource, since: datetime | Literal["oldest"] | None, *, resumed: bool
) -> datetime:
    """Return the time from which partitions without a position are read.

    Args:
        transport: Knows the server's clock.
        resource: The stream.
        since: The user's time; `"oldest"` for the earliest that the server keeps; None for now, or a little before: the
            server rejects a time in its future, and its clock is not known before its first response.
        resumed: Whether other partitions have positions already.

    Raises:
        ValueError: `since` is in the future, or older than what the server keeps.
    """
    if since is None:
        return datetime.fromtimestamp(transport.server_now("realtime"), UTC) - _HEADSTART
    # Only the server's clock can tell whether the time is in range; any response brings it.
    with contextlib.suppress(WMEError):
        await transport.request(Request(role="realtime", path="/v2/status"), retry=False, read_timeout=10.0)
    now = datetime.fromtimestamp(transport.server_now("realtime"), UTC)
    if since == "oldest":
        # A minute later than that: until the request is there, the oldest events would be gone, which is a gap.
        return now - timedelta(seconds=resource.retention) + SKEW
    if resumed:
        # A script that always passes the same time has continued from its positions since then.
        since = max(since, now - timedelta(seconds=resource.retention))
    return check_since(since, now=now, retention=resource.retention)


def _framing_of(body: Body, requested: Framing) -> Framing:
    """Return the framing of a response by its content type.

    Raises:
        TransportError: It is not a stream but, for example, a page of a proxy.
    """
    media_type = body.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    framing = _FRAMINGS.get(media_type)
    if framing is None and media_type.startswith(("text/", "image/")):
        raise TransportError(
            f"the response is {media_type}, so it is not from the service: see whether a proxy or a login page of this "
            "network answers in its place"
        )
    return framing or requested


def _exhausted(error: WMEError, attempts: int, idle_timeout: float | None) -> WMEError:
    if idle_timeout is not None:
        idle = IdleTimeout(f"the stream sent nothing for {idle_timeout:g} s, {attempts} times in a row", url=error.url)
        idle.__cause__ = error
        return idle
    error.add_note(f"gave up after {attempts} attempts")
    return error
