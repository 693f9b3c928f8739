"""What the parts of a mirror share: the store, the progress, and the way in which both change together."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from wme_async import _clock
from wme_async._client.client import Client
from wme_async._tasks import in_thread
from wme_async.errors import DecodeError
from wme_async.mirror.events import (
    MirrorBadRecord,
    MirrorEvent,
    MirrorHoleClosed,
    MirrorHoleFound,
    MirrorStateChanged,
)
from wme_async.mirror.marks import Hole, MirrorState, Progress, Scope
from wme_async.mirror.protocol import Applied, Kind, Marks, Store
from wme_async.mirror.records import RecordReader
from wme_async.mirror.rule import PageKey, Picture

__all__ = ["Options", "Read", "Values", "Work", "encode"]

logger: logging.Logger = logging.getLogger("wme_async.mirror")

Values: TypeAlias = Mapping[Kind, Mapping[str, str | None]]
"""Marks by kind and key."""

Read: TypeAlias = tuple[Picture, int, list[DecodeError]]
"""A picture of records, the largest time of publication, and the errors of those that cannot be read."""


def encode(value: Any) -> str:
    """Return a mark as text."""
    return msgspec.json.encode(value).decode()


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a mirror, checked.

    Attributes:
        keep: The fields to keep; None for all.
        load: Whether to load snapshots by chunks or whole.
        overlap: Seconds before the end of an export from which changes are followed.
        verify: How to compare with the service.
        verify_every: Seconds between two comparisons.
        max_removed: The share of pages that a snapshot may remove.
        poll: Seconds between two requests for something that is due.
        on_event: The hook.
    """

    keep: tuple[str, ...] | None
    load: str
    overlap: float
    verify: str
    verify_every: float
    max_removed: float
    poll: float
    on_event: Callable[[MirrorEvent], None] | None


class Work:
    """The store of a mirror, with what is known about it.

    Attributes:
        client: Sends the requests.
        scopes: What is mirrored.
        options: The options.
        progress: The marks of the store.
        seq: The number of the last change in the feed.
        behind: Whether changes are read that are older than some minutes.
        healing: Whether batches are read for a hole.
        rows: Rows that were replaced since the start.
        bad_records: Records that could not be read since the start.

    Args:
        client: Sends the requests.
        scopes: What is mirrored.
        store: The store, open.
        progress: Its marks.
        seq: The number of its last change.
        options: The options.
    """

    def __init__(
        self, client: Client, scopes: tuple[Scope, ...], store: Store, progress: Progress, seq: int, options: Options
    ) -> None:
        self.client = client
        self.scopes = scopes
        self.options = options
        self.progress = progress
        self.seq: int = seq
        self.behind = False
        self.healing: bool = False
        self.rows: int = 0
        self.bad_records: int = 0
        self.fields: list[str] | None = RecordReader(options.keep).fields
        self._store = store
        self._changed = asyncio.Event()
        self._state: MirrorState = progress.state(scopes)

    @property
    def state(self) -> MirrorState:
        """The state."""
        return self._state

    def notify(self, event: MirrorEvent) -> None:
        """Tell the hook; its failure does not end the mirror."""
        if self.options.on_event is not None:
            try:
                self.options.on_event(event)
            except Exception:
                logger.exception("the on_event hook failed")

    async def changed(self, seq: int) -> None:
        """Wait until the last change of the feed is after a number."""
        while self.seq <= seq:
            await self._changed.wait()

    async def apply(
        self,
        picture: Picture | None = None,
        values: Values | None = None,
        *,
        settled: datetime | None = None,
        forget: Collection[PageKey] = (),
    ) -> Applied:
        """Write rows and marks in one transaction.

        Args:
            picture: The rows.
            values: The marks.
            settled: The time up to which removals are no first halves of moves.
            forget: Pages to forget.

        Raises:
            OSError: The store cannot be written.
            DataError: The store is damaged.
        """
        values = values or {}
        written = {"written": encode(_clock.utc_now())}
        values = {**values, "state": {**values.get("state", {}), **written}}
        marks = Marks(
            values=values,
            settled=None if settled is None else int(settled.timestamp() * 1e6),
            forget=tuple(forget),
        )
        applied = await self._store.apply(Picture() if picture is None else picture, marks)
        self.progress.note(values)
        self.rows += applied.rows
        self.progress.note({"doubts": {f"{project}/{title}": "{}" for project, title in applied.doubts}})
        self.told(applied.seq)
        return applied

    def told(self, seq: int) -> None:
        """Wake the readers of the feed if it has more changes."""
        if seq > self.seq:
            self.seq = seq
            self._changed.set()
            self._changed = asyncio.Event()

    async def read(
        self, reader: RecordReader, records: Sequence[Any], *, load: int = 0, source: str = "a record"
    ) -> Read:
        """Read records in a thread.

        Args:
            reader: Reads them.
            records: Their JSON.
            load: The number of the load.
            source: Where the records come from, for reports of those that cannot be read.

        Returns:
            A picture of those that belong to the mirror, the largest time of publication, and the errors of the others.
        """
        result = await in_thread(self._read, reader, records, load)
        for error in result[2]:
            self.report_bad(error, source)
        return result

    def _read(self, reader: RecordReader, records: Sequence[Any], load: int) -> Read:
        picture, cut = Picture(), 0
        errors: list[DecodeError] = []
        for record in records:
            try:
                row = reader.read(record, load=load)
            except DecodeError as error:
                errors.append(error)
                continue
            if any(scope.has(row) for scope in self.scopes):
                picture.add(row)
                cut = max(cut, getattr(row, "published", 0))
        return picture, cut, errors

    def report_bad(self, error: DecodeError, source: str) -> None:
        """Count a record that cannot be read."""
        self.bad_records += 1
        logger.warning("a record of the mirror cannot be read: %s", error)
        self.notify(MirrorBadRecord(error=error, source=source))

    # Marks

    async def update_state(self) -> None:
        """Store the state if it is another one."""
        state = self.progress.state(self.scopes, behind=self.behind, healing=self.healing)
        stored = self.progress.get("state", "state", str)
        if state != stored:
            await self.apply(values={"state": {"state": encode(state)}})
        if state != self._state:
            old, self._state = self._state, state
            logger.info("the mirror is %s", state)
            self.notify(MirrorStateChanged(old=old, new=state, degraded=self.progress.degraded))

    async def degrade(self, subject: str, reason: str | None) -> None:
        """Store why the mirror keeps less than it promises, or (None) that it does not any more.

        Args:
            subject: Such as `source`.
            reason: In words.
        """
        degraded = self.progress.degraded
        if degraded.get(subject) == reason:
            return
        if reason is None:
            del degraded[subject]
        else:
            degraded[subject] = reason
            logger.warning("the mirror is degraded: %s", reason)
        await self.apply(values={"state": {"degraded": encode(degraded)}})
        self.notify(MirrorStateChanged(old=self._state, new=self._state, degraded=degraded))

    def hole_marks(self, holes: Iterable[Hole]) -> dict[str, str | None]:
        """Return the marks of new holes, and tell the hook."""
        marks: dict[str, str | None] = {}
        for hole in holes:
            if hole.key not in self.progress.keys("holes"):
                logger.warning("changes are missing from %s to %s: %s", hole.begin, hole.end, hole.reason)
                self.notify(MirrorHoleFound(hole=hole))
            marks[hole.key] = encode(hole)
        return marks

    def closed_holes(self, holes: Iterable[Hole], by: str) -> dict[str, str | None]:
        """Return the marks that remove holes, and tell the hook."""
        marks: dict[str, str | None] = {}
        for hole in holes:
            self.notify(MirrorHoleClosed(hole=hole, by=by))
            marks[hole.key] = None
        return marks

    def now(self) -> datetime:
        """Return the present by the server's clock."""
        return self.client.server_now().astimezone(UTC)

    @contextlib.contextmanager
    def heal(self) -> Iterator[None]:
        """Be `healing` in a block."""
        self.healing = True
        try:
            yield
        finally:
            self.healing = False
