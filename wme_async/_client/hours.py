"""Which hour is meant by `latest` and `-3h`, by the clock of the service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from wme_async._client.files import Files
from wme_async._client.paths import hour_of, hour_path, is_relative_hour
from wme_async._client.resources import Resource
from wme_async._query.query import Query
from wme_async._transport import Response, Transport
from wme_async.errors import NotFound
from wme_async.models import Archive

M = TypeVar("M", bound=Archive)
R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")

HOURS_BACK: Final = 6
"""How many hours `latest` looks back. Lists appear some 25 minutes after their hour, so more means trouble."""

# Stands in for the hour in names that are checked before the hour is known.
_UNRESOLVED = "0000-00-00/00"


class RelativeHour(Generic[T]):
    """An hour that is resolved once and stays the same from then on.

    Args:
        transport: Knows the server's clock once the service has answered.
        text: `latest` or `-3h`.

    Attributes:
        place: The path of the hour, such as `2025-07-16/05`; empty until it is resolved.
    """

    def __init__(self, transport: Transport, text: str) -> None:
        self.place = ""
        self._transport = transport
        self._text = text
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<RelativeHour {self._text} {self.place or 'not resolved'}>"

    async def resolve(self, list_hour: Callable[[str], Awaitable[T]], *, needed: bool) -> T | None:
        """Resolve the hour, unless it is known.

        Args:
            list_hour: Requests the list of the hour with a path; `NotFound` means that it does not exist.
            needed: Whether the caller uses the list. Otherwise it is not requested if the clock is enough.

        Returns:
            The list of the hour if it was requested, else None.

        Raises:
            NotFound: The hour has no list; for `latest`, none of the last hours has one.
            WMEError: The request failed in another way.
        """
        async with self._lock:
            if self.place:
                return None
            if not self._transport.knows_server_time and self._transport.tokens is not None:
                # Signing in brings a response, and with it the time of the server.
                await self._transport.tokens.token()
            if self._text == "latest":
                return await self._latest(list_hour)
            return await self._ago(int(self._text[1:-1]), list_hour, needed=needed)

    async def _latest(self, list_hour: Callable[[str], Awaitable[T]]) -> T:
        hours = 1
        now = self._now()
        while hours <= HOURS_BACK:
            place = _place(now, hours)
            listing: T | NotFound
            try:
                listing = await list_hour(place)
            except NotFound as error:
                listing = error
            # The response brings the time of the server: a wrong local clock must not choose the hour.
            server = self._now()
            if _place(server, 0) != _place(now, 0):
                now, hours = server, 1
            elif isinstance(listing, NotFound):
                hours += 1
            else:
                self.place = place
                return listing
        raise NotFound(
            f"none of the last {HOURS_BACK} hours has its batches yet; they appear some 25 minutes after the end of "
            "their hour, so try again later",
            status=404,
        )

    async def _ago(self, hours: int, list_hour: Callable[[str], Awaitable[T]], *, needed: bool) -> T | None:
        if self._transport.knows_server_time and not needed:
            self.place = _place(self._now(), hours)
            return None
        while True:
            place = _place(self._now(), hours)
            error: NotFound | None = None
            listing: T | None = None
            try:
                listing = await list_hour(place)
            except NotFound as missing:
                error = missing
            if _place(self._now(), hours) == place:
                self.place = place
                if error is not None and needed:
                    raise error
                return listing

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._transport.server_now("api"), UTC)


class RelativeFiles(Files[M, R]):
    """The batches of an hour that the first request resolves: `latest` and `-3h`.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        hour: `latest`, or so many hours ago.
    """

    def __init__(self, transport: Transport, resource: Resource, hour: str) -> None:
        super().__init__(transport, resource, resource.at(hour=hour), place=_UNRESOLVED)
        self._text = hour
        self._relative: RelativeHour[Response] = RelativeHour(transport, hour)

    @property
    def hour(self) -> datetime | None:
        """The hour, UTC; None before the first request."""
        return hour_of(self._relative.place) if self._relative.place else None

    @asynccontextmanager
    async def reopened(self) -> AsyncIterator[Self]:
        """As for other archives. The hour that it resolves is that of this object too."""
        async with super().reopened() as twin:
            yield twin
            if not self._relative.place:
                self._relative.place, self._place, self._path = twin._relative.place, twin._place, twin._path  # noqa: SLF001

    def _with(self, transport: Transport) -> Self:
        twin = super()._with(transport)
        if not self._relative.place:
            twin._relative = RelativeHour(transport, self._text)  # noqa: SLF001 - the same class
        return twin

    async def _locate(self) -> None:
        if not self._relative.place:
            await self._resolve(self._query(["identifier"], None, None), needed=False)

    async def _send_list(self, query: Query) -> Response:
        response = None if self._relative.place else await self._resolve(query, needed=True)
        return response if response is not None else await super()._send_list(query)

    async def _resolve(self, query: Query, *, needed: bool) -> Response | None:
        response = await self._relative.resolve(
            lambda place: self._send(self._resource.at(hour=place), query), needed=needed
        )
        self._place = self._relative.place
        self._path = self._resource.at(hour=self._place)
        return response


def hour_files(transport: Transport, resource: Resource, hour: str | datetime) -> "Files[Any, Any]":
    """Return the archives of an hour.

    Args:
        transport: Sends the requests.
        resource: The row of the table.
        hour: As `hour_path` takes it, or `latest`, or so many hours ago (`-3h`).

    Raises:
        TypeError: It is neither text nor a datetime.
        ValueError: It is not an hour, or a naive datetime.
    """
    if isinstance(hour, str) and is_relative_hour(hour):
        return RelativeFiles(transport, resource, hour)
    place = hour_path(hour)
    return Files(transport, resource, resource.at(hour=place), place=place)


def _place(now: datetime, hours: int) -> str:
    return hour_path(now - timedelta(hours=hours))
