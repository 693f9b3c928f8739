"""Following the hourly batches, and healing holes by them."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from wme_async._client.files import Files
from wme_async.errors import DecodeError, HourGap, NotFound
from wme_async.mirror.follower import HOLD
from wme_async.mirror.marks import KEPT, Hole, Scope, hour_key, hours_between
from wme_async.mirror.records import RecordReader
from wme_async.mirror.work import Values, Work, encode
from wme_async.offsets import MemoryOffsets, Position

__all__ = ["HourFollower"]

logger: logging.Logger = logging.getLogger("wme_async.mirror")

_HOUR: Final = timedelta(hours=1)
_NAME: Final = "mirror"
_READY: Final = timedelta(minutes=30)  # after the end of its hour, when the list of an hour is there
_SKEW: Final = timedelta(minutes=5)
_REMEMBERED: Final = timedelta(days=4)


class HourFollower:
    """Applies hourly batches.

    Args:
        work: The mirror.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._reader = RecordReader(work.options.keep)
        self._begun = asyncio.Event()

    async def begun(self) -> None:
        """Wait until its beginning is stored."""
        await self._begun.wait()

    async def run(self, *, last: datetime | None = None) -> None:
        """Follow until cancelled; or up to an hour.

        Args:
            last: The last hour to read.

        Raises:
            Forbidden: The account has no batches.
            WMEError: They cannot be read, for a permanent reason.
            OSError: The store cannot be written.
        """
        work = self._work
        first = await self._first()
        self._begun.set()
        if last is not None and first > last:
            return
        # The feed asks for the hour after the one that is saved.
        saved = {0: Position(int(first.timestamp()) // 3600 - 1, first - _HOUR)}
        offsets = MemoryOffsets({f"{_NAME}/batches": saved})
        async with work.client.hours(
            first, offsets=offsets, name=_NAME, on_gap=self._note_gap, poll=work.options.poll
        ) as hours:
            async for files in hours:
                assert files.hour is not None
                await self._follow(files.hour, files)
                if last is not None and files.hour >= last:
                    return

    async def _first(self) -> datetime:
        """Return the first hour to read; note the time that the service does not have any more as a hole."""
        work = self._work
        until = work.progress.followed_until
        if until is None:
            begin = await self._beginning()
        else:
            # The clocks of the machines that publish differ a little; an hour that was read is complete.
            begin = until if "hour" in work.progress.keys("state") else until - _SKEW
        oldest = work.now() - KEPT
        values: Values = {}
        if begin < oldest:
            if until is not None and until < oldest:
                reason = "nothing was followed for longer than the service keeps batches"
                values = {"holes": work.hole_marks([Hole(begin=until, end=oldest, reason=reason)])}
            # Where nothing was followed before, an hour that may be gone would be a hole for nothing.
            begin = oldest if until is not None else oldest + _HOUR
        first = begin.replace(minute=0, second=0, microsecond=0)
        state: dict[str, str | None] = {"hour": encode(first - _HOUR)}
        if work.progress.since is None:
            state["since"] = encode(first)
        positions: dict[str, str | None] = dict.fromkeys(work.progress.keys("positions"))
        await work.apply(values={**values, "state": state, "positions": positions})
        return first

    async def _beginning(self) -> datetime:
        work = self._work
        dates = []
        for scope in work.scopes:
            snapshot = await work.client.snapshots.get(scope.identifier)
            dates.append((snapshot.date_modified or work.now()) - timedelta(seconds=work.options.overlap))
        return min(dates)

    async def _follow(self, hour: datetime, files: Files[Any, Any]) -> None:
        work = self._work
        holes = await self._read(hour, files)
        work.behind = work.now() - hour > 3 * _HOUR
        await work.apply(
            values={
                "holes": work.hole_marks(holes),
                "state": {"hour": encode(hour)},
                "batches_done": {} if holes else self._done(hour),
            },
            settled=hour + _HOUR - HOLD,
        )
        await work.update_state()

    async def _note_gap(self, gap: HourGap) -> None:
        """Note an hour without batches."""
        assert gap.hour is not None
        hole = Hole(begin=gap.hour, end=gap.hour + _HOUR, reason=f"the hour has no batches ({gap.reason})")
        await self._work.apply(values={"holes": self._work.hole_marks([hole]), "state": {"hour": encode(gap.hour)}})
        await self._work.update_state()

    async def _read(self, hour: datetime, files: Files[Any, Any]) -> list[Hole]:
        """Merge the batches of an hour; return a hole for each that does not exist: the next hour does not have it."""
        holes = []
        for scope in self._work.scopes:
            if not await self._read_batch(files, scope):
                reason = "the hour has no batch of it: its export failed"
                holes.append(Hole(begin=hour, end=hour + _HOUR, reason=reason, identifier=scope.identifier))
        return holes

    async def _read_batch(self, files: Files[Any, Any], scope: Scope) -> bool:
        work = self._work
        bad: list[DecodeError] = []
        try:
            async with files.read(scope.identifier, type=msgspec.Raw, on_bad_record=bad.append) as records:
                async for lines in records.lines():
                    picture, _, _ = await work.read(self._reader, lines, source=f"the batch {scope.identifier}")
                    await work.apply(picture)
        except NotFound:
            return False
        finally:
            for error in bad:
                work.report_bad(error, f"the batch {scope.identifier} of {files.hour}")
        return True

    def _done(self, hour: datetime) -> dict[str, str | None]:
        oldest = hour_key(hour - _REMEMBERED)
        keys = self._work.progress.keys("batches_done")
        return {hour_key(hour): "{}", **{key: None for key in keys if key < oldest}}

    # Healing

    async def heal(self, holes: Sequence[Hole]) -> None:
        """Read the batches of the holes for which the service has them all, and close those that are read completely.

        Raises:
            WMEError: A request failed.
            OSError: The store cannot be written.
        """
        work = self._work
        now = work.now()
        due = []
        for hole in holes:
            hours = hours_between(hole.begin - _HOUR, hole.end)
            if hours[0] >= now - KEPT and hours[-1] + _HOUR + _READY <= now:
                due.append((hole, hours))
        if not due:
            return
        with work.heal():
            await work.update_state()
            for hole, hours in due:
                if all([await self._heal_hour(hour, hole) for hour in hours]):
                    await work.apply(values={"holes": work.closed_holes([hole], "batches")})
        await work.update_state()

    async def _heal_hour(self, hour: datetime, hole: Hole) -> bool:
        """Merge the batches of an hour; return whether all of them exist."""
        work = self._work
        if hour_key(hour) in work.progress.keys("batches_done"):
            return True
        missing = await self._read(hour, work.client.batches(hour))
        concerned = [gap for gap in missing if hole.identifier in {None, gap.identifier}]
        if not missing:
            await work.apply(values={"batches_done": self._done(hour)})
        return not concerned
