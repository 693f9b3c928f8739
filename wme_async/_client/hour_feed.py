"""The hourly feed: each hour of batches once, as its list appears, and missed ones first."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, Literal, Self, TypeVar

import msgspec

from wme_async._arguments import check_numbers, check_text
from wme_async._client.files import Files
from wme_async._client.hours import RelativeHour
from wme_async._client.paths import hour_of, hour_path, is_relative_hour
from wme_async._tasks import call_hook
from wme_async._telemetry import log_fields
from wme_async._transport import Transport
from wme_async._transport.retry import is_transient
from wme_async.errors import DataError, HourGap, NotFound, WMEError
from wme_async.models import Archive
from wme_async.offsets import MemoryOffsets, OffsetStore, Position
from wme_async.offsets.protocol import ClaimingStore

logger: logging.Logger = logging.getLogger("wme_async.hours")

M = TypeVar("M", bound=Archive)
R = TypeVar("R", bound=msgspec.Struct)

OnHourGap = Literal["log", "raise"] | Callable[[HourGap], Awaitable[None] | None]
"""How to report an hour whose batches are gone."""

_HOUR: Final = 3600.0
# When the list of an hour usually appears, after its end.
_READY: Final = 25 * 60.0
_RETENTION: Final = 48 * _HOUR
# Hours older than this are not requested: none of them can exist.
_CERTAINLY_GONE: Final = 72 * _HOUR
# If an hour has no list so long after its end, and a later hour has one, its list will never appear.
_OVERDUE: Final = 3 * _HOUR
# The hour in which Python's dates end, counted from 1970.
_LAST: Final = 70_389_527
# While no list can exist, polls are this many times less frequent.
_IDLE: Final = 10


class Hours(AsyncIterator[Files[M, R]], Generic[M, R]):
    """The hours of a kind of batches in order, each once; made by `Client.hours`.

    Args:
        transport: Sends the requests.
        files: Returns the archives of an hour.
        resource: The name of their resource, for the positions.
        since: Where to begin without a saved position.
        offsets: Stores the position.
        name: Of this reader.
        on_gap: How to report an hour that is gone.
        poll: Seconds between two requests of a list that is due.
    """

    def __init__(
        self,
        transport: Transport,
        files: Callable[[str], Files[M, R]],
        resource: str,
        *,
        since: str | datetime | None,
        offsets: OffsetStore | None,
        name: str,
        on_gap: OnHourGap,
        poll: float,
    ) -> None:
        check_text(name=name)
        check_numbers(optional=False, above=0, unit="seconds", poll=poll)
        if on_gap not in {"log", "raise"} and not callable(on_gap):
            raise ValueError(f'on_gap must be "log", "raise" or a function, not {on_gap!r}')
        if since is not None and not (isinstance(since, str) and is_relative_hour(since)):
            since = hour_of(hour_path(since))
        self._transport = transport
        self._files = files
        self._since = since
        self._offsets: OffsetStore = MemoryOffsets() if offsets is None else offsets
        self._name = position_name(name, resource)
        self._on_gap = on_gap
        self._poll = poll
        self._next: int | None = None
        self._processed: int | None = None
        self._generator: AsyncGenerator[Files[M, R]] | None = None

    def __repr__(self) -> str:
        return f"<Hours {self._name}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Files[M, R]:
        """Commit the last hour, and wait for the next one.

        Raises:
            HourGap: With `on_gap="raise"`: an hour is gone. The next call continues after it.
            WMEError: The list cannot be requested, for a permanent reason.
            StreamError: Another reader uses the same positions.
            DataError: The saved position is not an hour.
        """
        if self._generator is None:
            self._generator = self._run()
        try:
            return await anext(self._generator)
        except BaseException:
            self._generator = None
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let other readers use the positions. The last hour is not committed."""
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.aclose()

    async def commit(self) -> None:
        """Save that the last hour was processed, without asking for the next one."""
        if self._processed is not None:
            await self._offsets.save(self._name, {0: Position(self._processed, _time(self._processed))})
            self._processed = None

    async def _run(self) -> AsyncGenerator[Files[M, R]]:
        async with AsyncExitStack() as stack:
            if isinstance(self._offsets, ClaimingStore):
                await stack.enter_async_context(self._offsets.claim(self._name))
            if self._next is None:
                self._next = await self._first()
            after_gap = False
            while True:
                if not after_gap:
                    await self.commit()
                hour = self._next
                gap = await self._wait_for(hour)
                if after_gap and gap is None:
                    # Once for a series of gaps: there may be thousands.
                    await self.commit()
                # Advance before the hour is yielded: a raised gap ends this generator.
                self._next, self._processed, after_gap = hour + 1, hour, gap is not None
                if gap is not None:
                    await self._report(gap)
                    # There may be years of gaps, none of which waits for anything.
                    await asyncio.sleep(0)
                else:
                    yield self._files(hour_path(_time(hour)))

    async def _first(self) -> int:
        last = await last_hour(self._offsets, self._name)
        if last is not None:
            return _number(last) + 1
        if isinstance(self._since, datetime):
            return _number(self._since)
        relative: RelativeHour[object] = RelativeHour(self._transport, self._since or "latest")
        while True:
            try:
                await relative.resolve(self._list, needed=False)
            except WMEError as error:
                # If no hour has a list, the service is in trouble, which passes.
                if not isinstance(error, NotFound) and not is_transient(error):
                    raise
                await self._transport.sleep(self._poll)
            else:
                return _number(hour_of(relative.place))

    async def _list(self, place: str) -> object:
        return await self._files(place).list(fields=["identifier"])

    async def _wait_for(self, hour: int) -> HourGap | None:
        """Wait until an hour has its list; return the gap if it will never have it."""
        end = (hour + 1) * _HOUR
        due_now = not self._transport.knows_server_time or self._now() >= end
        while True:
            if self._transport.knows_server_time and self._now() > end + _CERTAINLY_GONE:
                return _gap(hour, "retention")
            try:
                if due_now:
                    await self._list(hour_path(_time(hour)))
                    return None
            except NotFound:
                age = self._now() - end
                if age > _RETENTION:
                    return _gap(hour, "retention")
                if age > _OVERDUE and await self._exists(hour + 1):
                    return _gap(hour, "missing")
            except WMEError as error:
                if not is_transient(error):
                    raise
                logger.info("the list of %s is not available now (%s)", hour_path(_time(hour)), error)
            delay = min(max(end + _READY - self._now(), self._poll), _IDLE * self._poll)
            # Jitter keeps readers from polling in the same second.
            await self._transport.sleep(delay * (1 + 0.1 * self._transport.random.random()))
            due_now = True

    async def _exists(self, hour: int) -> bool:
        try:
            await self._list(hour_path(_time(hour)))
        except WMEError as error:
            if not isinstance(error, NotFound) and not is_transient(error):
                raise
            return False
        return True

    async def _report(self, gap: HourGap) -> None:
        if callable(self._on_gap):
            await call_hook(self._on_gap, gap)
        elif self._on_gap == "raise":
            raise gap
        else:
            logger.warning("%s", gap, extra=log_fields(gap))

    def _now(self) -> float:
        return self._transport.server_now("api")


def position_name(name: str, resource: str) -> str:
    """Return the name of the position of a reader.

    Args:
        name: Of the reader.
        resource: The name of the resource that it reads.
    """
    return f"{name}/{resource}"


async def last_hour(offsets: OffsetStore, name: str) -> datetime | None:
    """Return the last hour that was processed, UTC; None without a position.

    Args:
        offsets: Stores the position.
        name: From `position_name`.

    Raises:
        DataError: The saved position is not an hour.
    """
    position = (await offsets.load(name)).get(0)
    if position is None or position.offset < 0:
        return None
    if position.offset >= _LAST:
        raise DataError(f"the saved position {name!r} is not an hour: {position}; save another, or none")
    return _time(position.offset)


def _gap(hour: int, reason: str) -> HourGap:
    begin = _time(hour)
    words = {
        "retention": "is older than the 48 hours that the service keeps",
        "missing": "never got its list, though a later hour has one",
    }[reason]
    return HourGap(f"the batches of {begin:%Y-%m-%dT%H} are gone: the hour {words}", hour=begin, reason=reason)


def _time(hour: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour)


def _number(time: datetime) -> int:
    return math.floor(time.timestamp() / _HOUR)
