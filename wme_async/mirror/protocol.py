"""The protocol of a store of a mirror, and what goes in and out of it."""

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

from wme_async.mirror.rule import PageKey, Picture, TitleKey

__all__ = ["KINDS", "Applied", "Change", "Counts", "Entry", "Key", "Kind", "Marks", "State", "Store", "Sweep"]

Kind: TypeAlias = Literal[
    "positions", "batches_done", "chunks_done", "holes", "doubts", "consumers", "state", "forgotten"
]
"""The kinds of marks. Each is a set of texts (JSON) by key."""

KINDS: Final[tuple[Kind, ...]] = (
    *("positions", "batches_done", "chunks_done", "holes", "doubts", "consumers", "state", "forgotten"),
)

Key: TypeAlias = tuple[str, str, int, int, bytes]
"""A live page without its record: project, title, page id, revision, digest."""


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """How far a mirror has come, written together with rows.

    Attributes:
        values: By kind and key, the text to store; None removes the key.
        settled: Removals up to this time are no first halves of moves, in microseconds since 1970; None leaves it.
        forget: Pages of which nothing may be stored or shown from now on.
    """

    values: Mapping[Kind, Mapping[str, str | None]] = {}
    settled: int | None = None
    forget: Collection[PageKey] = ()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds beside its rows.

    Attributes:
        values: Texts by kind and key; every kind is there.
        seq: The number of the last change in the feed.
    """

    values: dict[Kind, dict[str, str]]
    seq: int = 0


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `Store.apply`.

    Attributes:
        rows: Titles whose record was replaced.
        missed: Those for which a snapshot had a later change, and so the other sources had missed one.
        changes: Changes that the feed got.
        seq: The number of the last change.
        doubts: Titles whose text should be visible and is not there.
    """

    rows: int = 0
    missed: int = 0
    changes: int = 0
    seq: int = 0
    doubts: tuple[TitleKey, ...] = ()


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `Store.sweep`.

    Attributes:
        missing: Live pages that the snapshot should have and lacks.
        limit: How many may be removed.
        removed: How many of them were removed: all, or none if there are too many.
        revived: Pages that an earlier snapshot lacked and this one has.
        seq: The number of the last change.
    """

    missing: int = 0
    limit: int = 0
    removed: int = 0
    revived: int = 0
    seq: int = 0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A page in the change feed, in its latest state.

    Attributes:
        seq: The number of the change; numbers grow and have gaps.
        kind: `upsert`: the page is as described. `hide`: so it is, but parts of it have been hidden: remove these.
            `delete`: the page is gone.
        project: Such as `enwiki`.
        page_id: The key of an index: unlike the title, it is the same after a move.
        title: With spaces; of a deleted page the last one.
        old_title: The title before, if the page was moved since the position of the consumer.
        revision: Its revision; 0 for a delete.
        digest: Of the record without its event; empty for a delete.
        hidden: The hidden parts, of `text`, `editor` and `comment`.
    """

    seq: int
    kind: Literal["upsert", "delete", "hide"]
    project: str
    page_id: int
    title: str
    old_title: str | None = None
    revision: int = 0
    digest: bytes = b""
    hidden: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A live page with its record.

    Attributes:
        project: Such as `enwiki`.
        title: With spaces.
        page_id: Its page id.
        namespace: The number of its namespace.
        revision: Its revision.
        created: When the service took the change, in microseconds since 1970.
        published: When it published the record, or 0.
        digest: Of the record without its event.
        hidden: The hidden parts, as a sum of 1 (text), 2 (editor), 4 (comment).
        record: The JSON of the record, hidden parts included.
    """

    project: str
    title: str
    page_id: int
    namespace: int
    revision: int
    created: int
    published: int
    digest: bytes
    hidden: int
    record: bytes


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a store.

    Attributes:
        pages: Live pages.
        tombstones: Titles whose last record is a delete, or that a snapshot lacked.
        held: Removals that wait for the other half of a move.
        bytes: Bytes on disk; None if the store does not know.
        seq: The number of the last change.
    """

    pages: int
    tombstones: int
    held: int
    bytes: int | None
    seq: int


class Store(Protocol):
    """Keeps a mirror: rows by title, records, whereabouts by page id, masks, and marks.

    All decisions are in `wme_async.mirror.rule`: to apply a picture, a store fetches the rows that it concerns, calls
    `merge`, and writes the result, in one transaction. `wme_async.mirror.conformance` checks a store.

    Of its methods `open` comes first and `close` last. Others may be called from several tasks at a time.
    """

    async def open(self, *, writing: bool = True) -> State:
        """Open the store, and create it if it does not exist and is to be written.

        Args:
            writing: Whether it is for the one mirror that writes. Others may read at the same time; of the methods that
                write, they may call `apply` with an empty picture and marks of `consumers`.

        Raises:
            BlockingIOError: Another mirror writes to it.
            DataError: It is damaged, or of another version.
            OSError: It cannot be opened, or is to be read and does not exist.
        """
        ...

    async def apply(self, news: Picture, marks: Marks) -> Applied:
        """Merge a picture and write the marks, all or nothing.

        With `marks.settled`, pages held by a removal up to that time get their change. With `marks.forget`, their
        records are deleted, and they become marks of `forgotten` with the keys `project/page id`. The doubts of the
        difference become marks of `doubts` with the keys `project/title`.
        """
        ...

    async def sweep(self, project: str, namespace: int, *, load: int, cut: int, max_removed: float) -> Sweep:
        """Remove the live pages that a complete snapshot lacks, and revive those that an earlier one lacked.

        Revived are rows with this `load` whose `swept` is before `cut`. Removed are those with another `load` for which
        `may_sweep` is true: they get `swept = cut` and keep their order. If there are more of these than
        `removal_limit` of the live pages, none is removed.

        Args:
            project: Of the snapshot.
            namespace: Of the snapshot. Pages of others are not touched.
            load: The number of the load.
            cut: The largest time of publication inside the snapshot.
            max_removed: The share of the live pages that may be removed, 0 to 1.
        """
        ...

    async def get(self, project: str, *, title: str | None = None, page_id: int | None = None) -> Entry | None:
        """Return a live page by its title or its page id, or None."""
        ...

    def keys(self) -> AsyncIterator[list[Key]]:
        """Iterate over all live pages without their records, in lists."""
        ...

    def entries(self) -> AsyncIterator[list[Entry]]:
        """Iterate over all live pages with their records, in lists of some MiB."""
        ...

    async def changes(self, after: int, limit: int) -> list[Change]:
        """Return the changes after a number, in order: each page once, in its latest state, without held ones."""
        ...

    async def counts(self) -> Counts:
        """Return the size of the store."""
        ...

    async def value(self, kind: Kind, key: str) -> str | None:
        """Return one mark, as it is stored now."""
        ...

    async def marks(self) -> dict[Kind, dict[str, str]]:
        """Return all marks, as they are stored now; every kind is there."""
        ...

    async def close(self) -> None:
        """Close the store. A second call does nothing."""
        ...
