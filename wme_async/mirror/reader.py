"""Reading a mirror: pages, changes, export. It needs no account, and works beside the process that keeps the mirror."""

import os
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import msgspec

from wme_async._archive import OnBadRecord
from wme_async._arguments import check_choice, check_flags, check_record_type, check_text
from wme_async._tasks import call_hook
from wme_async.errors import DecodeError
from wme_async.mirror.feed import Feed, Watch, position_of
from wme_async.mirror.marks import (
    Hole,
    Loaded,
    MirrorState,
    Progress,
    Scope,
    Source,
    Verification,
    parse_identifiers,
)
from wme_async.mirror.protocol import Entry, Key, State, Store
from wme_async.mirror.records import visible_record
from wme_async.models import Article
from wme_async.models.decoding import Decoder, decoding, make_decoder

__all__ = ["MirrorReader", "MirrorStatistics"]

T = TypeVar("T")


class MirrorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A mirror, now.

    Attributes:
        state: The state, as stored.
        degraded: Why the mirror keeps less than it promises, by subject; empty if it does not.
        source: Where changes come from; None before the first start.
        identifiers: What is mirrored.
        keep: The fields that are kept; None for whole records.
        pages: Live pages.
        tombstones: Titles whose page is gone.
        held: Removals that wait for the other half of a move.
        bytes: Bytes on disk; None if the store does not know.
        seq: The number of the last change in the feed.
        followed_until: The time up to which changes were followed, UTC.
        holes: Times of which changes are missing.
        doubts: Titles that wait for a look-up.
        loaded: The last complete snapshot, by identifier.
        loading: Parts that are merged, and parts in all, of snapshots that are being loaded, by identifier.
        verification: The last comparison with the service.
        consumers: How many changes each consumer is behind at most.
        running: Whether a process keeps the mirror now; None if the store does not know.
        written: When the process that keeps the mirror wrote to it last, by the clock of its machine, UTC.
        newest: When the newest event was published that was followed, UTC. `followed_until` is of the partition whose
            last event is the oldest.
    """

    state: MirrorState
    degraded: dict[str, str]
    source: Source | None
    identifiers: tuple[str, ...]
    keep: tuple[str, ...] | None
    pages: int
    tombstones: int
    held: int
    bytes: int | None
    seq: int
    followed_until: datetime | None
    holes: tuple[Hole, ...]
    doubts: int
    loaded: dict[str, Loaded]
    loading: dict[str, tuple[int, int]]
    verification: Verification | None
    consumers: dict[str, int]
    running: bool | None = None
    written: datetime | None = None
    newest: datetime | None = None


class MirrorReader:
    """Reads a mirror that this or another process keeps.

    ```python
    async with MirrorReader(SQLiteStore("mirror.db")) as reader:
        article = await reader.get("Marie Curie")
    ```

    Args:
        store: The store.
    """

    _writing = False

    def __init__(self, store: Store) -> None:
        if isinstance(store, type) or not (hasattr(store, "apply") and hasattr(store, "changes")):
            raise TypeError(f'store must be a store of a mirror, such as SQLiteStore("mirror.db"), not {store!r}')
        self._store = store
        self._scopes: tuple[Scope, ...] = ()
        self._decoders: dict[Any, Decoder[Any]] = {}
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._store!r}>"

    async def __aenter__(self) -> Self:
        """Open the store.

        Raises:
            DataError: It is damaged, not that of a mirror, or of another version.
            OSError: It does not exist, or cannot be read.
        """
        state = await self._store.open(writing=self._writing)
        try:
            await self._open(state)
        except BaseException:
            await self._store.close()
            raise
        return self

    async def _open(self, state: State) -> None:
        names = Progress(state.values).get("state", "identifiers", tuple[str, ...])
        self._scopes = parse_identifiers(names) if names else ()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.aclose()

    async def aclose(self) -> None:
        """Save the positions of consumers, and close the store. A second call does nothing."""
        try:
            for feed in tuple(self._feeds):
                await feed.save()
            self._feeds.clear()
        finally:
            await self._store.close()

    # Pages

    @overload
    async def get(
        self, title: str | None = None, *, page_id: int | None = None, project: str | None = None
    ) -> Article | None: ...
    @overload
    async def get(
        self, title: str | None = None, *, page_id: int | None = None, project: str | None = None, type: type[T]
    ) -> T | None: ...
    async def get(
        self,
        title: str | None = None,
        *,
        page_id: int | None = None,
        project: str | None = None,
        type: Any = Article,
    ) -> Any:
        """Return a page, without its hidden parts, or None if it does not exist.

        Args:
            title: Its title, exactly; underscores are spaces.
            page_id: Its page id, instead of the title.
            project: Its project; needed if the mirror has several.
            type: The type to decode into; `dict` and `msgspec.Raw` are possible.

        Raises:
            ValueError: Not exactly one of title and page id, or the project is not known.
            DecodeError: The record does not fit the type.
            DataError: The store is damaged.
        """
        if (title is None) == (page_id is None):
            raise ValueError("name either the title or the page_id of a page")
        name = None if title is None else title.replace("_", " ")
        entry = await self._store.get(self._project(project), title=name, page_id=page_id)
        return None if entry is None else self._decode(entry, type)

    def _project(self, project: str | None) -> str:
        projects = {scope.project for scope in self._scopes}
        if project is None and len(projects) == 1:
            return projects.pop()
        if project not in projects:
            names = ", ".join(sorted(projects)) or "none yet"
            raise ValueError(f"project must be one of those of the mirror ({names}), not {project!r}")
        return project

    def _decode(self, entry: Entry, type: Any) -> Any:
        decode = self._decoders.get(type)
        if decode is None:
            check_record_type(type)
            decode = self._decoders[type] = make_decoder(type)
        # The error of a record with hidden parts must not show them.
        with decoding():
            return decode(visible_record(entry.record, entry.hidden))

    @overload
    def pages(self, *, on_bad_record: OnBadRecord = ...) -> AsyncGenerator[Article]: ...
    @overload
    def pages(self, *, type: type[T], on_bad_record: OnBadRecord = ...) -> AsyncGenerator[T]: ...
    async def pages(self, *, type: Any = Article, on_bad_record: OnBadRecord = "raise") -> AsyncGenerator[Any]:
        """Iterate over all live pages, without their hidden parts, in no order.

        A page that changes meanwhile comes as it was, or as it is.

        Args:
            type: As for `get`.
            on_bad_record: What happens to a record that does not fit the type: `raise` a `DecodeError`, which ends the
                iteration; `skip` it; or call a function, sync or async, with the `DecodeError`, and go on.

        Yields:
            Pages.

        Raises:
            DecodeError: A record does not fit the type, if `on_bad_record` is `raise`.
            DataError: The store is damaged.
        """
        check_choice("on_bad_record", on_bad_record, ("raise", "skip"), function=True)
        async for entries in self._store.entries():
            for entry in entries:
                try:
                    page = self._decode(entry, type)
                except DecodeError as error:
                    if on_bad_record == "raise":
                        raise
                    if callable(on_bad_record):
                        await call_hook(on_bad_record, error)
                else:
                    yield page

    def keys(self) -> AsyncIterator[list[Key]]:
        """Iterate over all live pages without their records: lists of project, title, page id, revision, digest."""
        return self._store.keys()

    async def export(
        self, to: str | os.PathLike[str], *, type: Any = Article, on_bad_record: OnBadRecord = "raise"
    ) -> Any:
        """Write all live pages to a Parquet file (extra `arrow`).

        Args:
            to: The file, or a folder, as for `wme_async.integrations.arrow.write_parquet`.
            type: The Struct whose fields become columns.
            on_bad_record: As for `pages`.

        Returns:
            The `Parquet` of that function: rows, bytes and files.

        Raises:
            ImportError: pyarrow is not installed.
            OSError: The file cannot be written.
        """
        from wme_async.integrations.arrow import write_parquet  # noqa: PLC0415 - an extra

        return await write_parquet(self.pages(type=type, on_bad_record=on_bad_record), to, type=type)

    # Changes

    def changes(self, consumer: str, *, wait: bool = True) -> Feed:
        """Iterate over the changes since the position of a consumer.

        Each page comes once, in its latest state, at least once for each change of it. An index that applies `upsert`,
        `hide` and `delete` by page id equals the live pages once it has read all changes.

        ```python
        async for change in mirror.changes("search-index"):
            ...
            await change.ack()
        ```

        Args:
            consumer: The name of the position, which is stored with the mirror; a new one begins with all pages.
            wait: Whether to wait for more changes at the end.

        Returns:
            An async iterator of changes with `ack`.

        Raises:
            TypeError: The name is not text.
            ValueError: The name is empty.
        """
        check_text(consumer=consumer)
        check_flags(wait=wait)
        feed = Feed(self._store, consumer, wait=wait, watch=self._watch())
        self._feeds.add(feed)
        return feed

    def _watch(self) -> Watch | None:
        return None

    # State

    async def statistics(self) -> MirrorStatistics:
        """Return the state, counts, holes and consumers, as they are stored now.

        Raises:
            DataError: The store is damaged.
            OSError: It cannot be read.
        """
        progress = await self._progress()
        counts = await self._store.counts()
        # A store of others may not know it.
        has_writer = getattr(self._store, "has_writer", None)
        loaded = {scope.identifier: done for scope in self._scopes if (done := progress.loaded(scope)) is not None}
        loads = {scope: load for scope in self._scopes if (load := progress.load(scope)) is not None}
        return MirrorStatistics(
            state=progress.get("state", "state", MirrorState) or "new",
            degraded=progress.degraded,
            source=progress.get("state", "source", Source),
            identifiers=tuple(scope.identifier for scope in self._scopes),
            keep=progress.get("state", "keep", tuple[str, ...] | None),
            pages=counts.pages,
            tombstones=counts.tombstones,
            held=counts.held,
            bytes=counts.bytes,
            seq=counts.seq,
            followed_until=progress.followed_until,
            holes=tuple(sorted(progress.holes, key=lambda hole: hole.begin)),
            doubts=len(progress.keys("doubts")),
            loaded=loaded,
            loading={
                scope.identifier: (len(progress.chunks(scope, load.number)), load.total)
                for scope, load in loads.items()
            },
            verification=progress.get("state", "verification", Verification),
            consumers={name: counts.seq - position_of(text) for name, text in progress.items("consumers")},
            running=None if has_writer is None else await has_writer(),
            written=progress.get("state", "written", datetime),
            newest=progress.newest,
        )

    async def _progress(self) -> Progress:
        values = await self._store.marks()
        return Progress(values)
