"""Which hour is meant by `latest` and `-3h`, by the clock of the service."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, TypeVar

from wme_async._client.paths import hour_path
from wme_async._transport import Transport
from wme_async.errors import NotFound

__all__ = ["HOURS_BACK", "RelativeHour", "hour_of", "is_relative"]

R = TypeVar("R")

HOURS_BACK: Final = 6
"""How many hours `latest` looks back. Lists appear some 25 minutes after their hour, so more means trouble."""

_RELATIVE: Final = re.compile(r"latest|-[0-9]{1,4}h")


def is_relative(hour: object) -> bool:
    """Return whether an hour depends on the time at which it is looked up: `latest`, or so many hours ago (`-3h`)."""
    return isinstance(hour, str) and _RELATIVE.fullmatch(hour) is not None


def hour_of(place: str) -> datetime:
    """Return the beginning of an hour, UTC, from its path such as `2025-07-16/05`."""
    return datetime.fromisoformat(f"{place.replace('/', 'T')}:00:00+00:00")


class RelativeHour(Generic[R]):
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

    async def resolve(self, list_hour: Callable[[str], Awaitable[R]], *, needed: bool) -> R | None:
        """Find out which hour is meant, unless that is known.

        Args:
            list_hour: Requests the list of the hour with a path; `NotFound` means that there is none yet.
            needed: Whether the list itself is of use. Otherwise none is requested where the clock is enough.

        Returns:
            The list of the hour if it was requested on the way, else None.

        Raises:
            NotFound: There is no such list; for `latest`, none of the last hours has one.
            WMEError: The service could not be asked.
        """
        async with self._lock:
            if self.place:
                return None
            if self._text == "latest":
                return await self._latest(list_hour)
            return await self._ago(int(self._text[1:-1]), list_hour, needed=needed)

    async def _latest(self, list_hour: Callable[[str], Awaitable[R]]) -> R:
        hours = 1
        now = self._now()
        while hours <= HOURS_BACK:
            place = _place(now, hours)
            listing: R | NotFound
            try:
                listing = await list_hour(place)
            except NotFound as error:
                listing = error
            # The answer brings the time of the server. A clock here that is wrong must not choose the hour.
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

    async def _ago(self, hours: int, list_hour: Callable[[str], Awaitable[R]], *, needed: bool) -> R | None:
        if self._transport.knows_server_time and not needed:
            self.place = _place(self._now(), hours)
            return None
        while True:
            place = _place(self._now(), hours)
            error: NotFound | None = None
            listing: R | None = None
            try:
                listing = await list_hour(place)
            except NotFound as missing:
                error = missing
            if _place(self._now(), hours) != place:
                continue
            self.place = place
            if error is not None and needed:
                raise error
            return listing

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._transport.server_now("api"), UTC)


def _place(now: datetime, hours: int) -> str:
    return hour_path(now - timedelta(hours=hours))
