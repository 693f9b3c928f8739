"""The rule by which records of snapshots, batches, streams and look-ups become one picture of a wiki. Pure.

The picture is a product of maxima over total orders, so it does not matter in which order, how often and in which
groups records arrive (the laws of `Picture.join`: commutative, associative, idempotent):

- Each *title* of a project has the record with the highest `Page.order`. It begins with the time at which the service
  took the change (`event.date_created`): a delete is processed faster than an edit, so neither the order of publication
  nor the offset is the order of changes; and a restored page has the same revision as its delete, or a lower one.
- Each *page id* is where its newest update says. A moved page whose delete was lost is thus gone from its old title.
- Each page id has the newest *mask*: the parts of a revision that a visibility change hides.

A page is *live* if the record at its title is an update of it and it has not gone elsewhere. A delete is stored as a
record like any other (a tombstone), or an older update from another source would revive the page.

Times are microseconds since 1970, UTC.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

__all__ = [
    "HIDDEN_COMMENT",
    "HIDDEN_EDITOR",
    "HIDDEN_TEXT",
    "MARGIN",
    "Difference",
    "Mask",
    "Order",
    "Page",
    "PageKey",
    "Picture",
    "TitleKey",
    "Whereabouts",
    "may_sweep",
    "merge",
    "page_keys",
    "removal_limit",
    "title_keys",
]

TitleKey: TypeAlias = tuple[str, str]
"""Project and title with spaces."""

PageKey: TypeAlias = tuple[str, int]
"""Project and page id."""

HIDDEN_TEXT: Final = 1
HIDDEN_EDITOR: Final = 2
HIDDEN_COMMENT: Final = 4

MARGIN: Final = 15 * 60 * 1_000_000
"""By how much bulk records were read before their time, and snapshots are uncertain about their beginning."""

_FREE_REMOVALS: Final = 10


class Order(NamedTuple):
    """The order of the records of one title; the highest counts.

    The first four decide; the digest makes the order total.
    """

    created: int
    revision: int
    published: int
    gone: bool
    digest: bytes


class Page(msgspec.Struct, gc=False, kw_only=True):
    """The newest record of one title, an update or a delete.

    Attributes:
        project: Such as `enwiki`.
        title: With spaces.
        namespace: Its number.
        page_id: Of the page that the record is about.
        revision: Its revision; 0 without one.
        created: When the service took the change.
        published: When the service published the record; 0 if unknown.
        gone: Whether it is a delete.
        digest: Of the record, without its event.
        body: Whether the record has a text.
        record: The JSON of the record; empty for deletes, for forgotten pages, and where it was not loaded.
        load: The number of the last snapshot load that had the title; 0 for none.
        swept: The cut of the complete snapshot that lacked the title; None if none did.
        live: Whether the page exists and is here.
        hidden: The hidden parts, as a sum of `HIDDEN_…`.
    """

    project: str
    title: str
    namespace: int = 0
    page_id: int = 0
    revision: int = 0
    created: int = 0
    published: int = 0
    gone: bool = False
    digest: bytes = b""
    body: bool = True
    record: bytes | memoryview = b""
    load: int = 0
    swept: int | None = None
    live: bool = False
    hidden: int = 0

    @property
    def order(self) -> Order:
        """The rank among the records of its title."""
        return Order(self.created, self.revision, self.published, self.gone, self.digest)

    @property
    def key(self) -> TitleKey:
        """Project and title."""
        return self.project, self.title

    @property
    def page_key(self) -> PageKey:
        """Project and page id."""
        return self.project, self.page_id


class Whereabouts(msgspec.Struct, gc=False, kw_only=True):
    """Where a page was seen last, and what the change feed says of it.

    Attributes:
        project: Such as `enwiki`.
        page_id: Of the page.
        title: The title in its newest update.
        created: As of that update, and the next two.
        revision: See above.
        published: See above.
        seq: The number of its last change in the feed; 0 if it was never in it.
        old_title: The title before the last move.
        moved: The number of the change that moved it; 0 for none.
        held: The time of the record that removed it, if that may be the first half of a move. It is then not in the
            feed.
    """

    project: str
    page_id: int
    title: str
    created: int = 0
    revision: int = 0
    published: int = 0
    seq: int = 0
    old_title: str | None = None
    moved: int = 0
    held: int | None = None

    @property
    def order(self) -> tuple[int, int, int, str]:
        """The rank among the updates of its page."""
        return self.created, self.revision, self.published, self.title


class Mask(msgspec.Struct, gc=False, kw_only=True):
    """A visibility change.

    Attributes:
        project: Such as `enwiki`.
        page_id: Of the page.
        revision: The revision that it is about.
        created: When the service took it.
        hidden: The hidden parts, as a sum of `HIDDEN_…`; 0 if all are visible.
    """

    project: str
    page_id: int
    revision: int = 0
    created: int = 0
    hidden: int = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """The rank among the visibility changes of its page."""
        return self.revision, self.created, self.hidden

    def covers(self, page: Page) -> bool:
        """Return whether it is about a record: its revision, and no later update of it."""
        return self.revision == page.revision and self.created > page.created


class Picture:
    """The maxima of some records.

    Attributes:
        pages: The newest record of each title.
        places: The newest whereabouts of each page id.
        masks: The newest visibility change of each page id.

    Args:
        records: Records to begin with.
    """

    __slots__ = ("masks", "pages", "places")

    def __init__(self, records: Iterable[Page | Mask] = ()) -> None:
        self.pages: dict[TitleKey, Page] = {}
        self.places: dict[PageKey, Whereabouts] = {}
        self.masks: dict[PageKey, Mask] = {}
        for record in records:
            self.add(record)

    def __bool__(self) -> bool:
        return bool(self.pages or self.places or self.masks)

    def add(self, record: Page | Mask) -> None:
        """Merge one record."""
        if isinstance(record, Mask):
            self._add_mask((record.project, record.page_id), record)
            return
        key = (record.project, record.title)
        current = self.pages.get(key)
        if current is None or record.order > current.order:
            self.pages[key] = record
        if not record.gone:
            place = Whereabouts(
                project=record.project,
                page_id=record.page_id,
                title=record.title,
                created=record.created,
                revision=record.revision,
                published=record.published,
            )
            self._add_place((record.project, record.page_id), place)

    def join(self, other: "Picture") -> None:
        """Merge another picture: the same as adding all of its records."""
        for key, page in other.pages.items():
            current = self.pages.get(key)
            if current is None or page.order > current.order:
                self.pages[key] = page
        for page_key, place in other.places.items():
            self._add_place(page_key, place)
        for page_key, mask in other.masks.items():
            self._add_mask(page_key, mask)

    def _add_place(self, key: PageKey, place: Whereabouts) -> None:
        current = self.places.get(key)
        if current is None or place.order > current.order:
            self.places[key] = place

    def _add_mask(self, key: PageKey, mask: Mask) -> None:
        current = self.masks.get(key)
        if current is None or mask.order > current.order:
            self.masks[key] = mask


class Difference(msgspec.Struct, kw_only=True):
    """What to write to merge a picture into a store.

    Attributes:
        pages: Rows to write with their records.
        flags: Rows of which only `load`, `swept`, `live` and `hidden` change.
        places: Whereabouts to write.
        masks: Masks to write.
        seq: The number of the last change.
        changes: The number of pages that have changed in the feed.
        missed: The number of pages for which a snapshot had a later change than was known. Bulk records do not count:
            archives alone have them.
        doubts: Live pages without a text although it is visible again; a look-up may have it.
    """

    pages: list[Page] = []
    flags: list[Page] = []
    places: list[Whereabouts] = []
    masks: list[Mask] = []
    seq: int = 0
    changes: int = 0
    missed: int = 0
    doubts: list[TitleKey] = []


def page_keys(current: Picture, news: Picture) -> set[PageKey]:
    """Return the page ids whose whereabouts and masks a merge needs.

    Args:
        current: Has the stored rows of the titles of `news`.
        news: The picture to merge.
    """
    keys = {page.page_key for page in news.pages.values()}
    keys.update(current.pages[key].page_key for key in news.pages if key in current.pages)
    keys.update(news.places)
    keys.update(news.masks)
    return keys


def title_keys(current: Picture, news: Picture) -> set[TitleKey]:
    """Return the titles whose rows a merge needs in addition.

    Args:
        current: Has the stored rows of the titles of `news`, and of its `page_keys`.
        news: The picture to merge.
    """
    keys = {(place.project, place.title) for place in current.places.values()}
    keys.update((place.project, place.title) for place in news.places.values())
    return keys - current.pages.keys() - news.pages.keys()


def merge(
    current: Picture,
    news: Picture,
    *,
    seq: int = 0,
    settled: int = 0,
    forgotten: Collection[PageKey] = frozenset(),
    touched: Iterable[PageKey] = (),
) -> Difference:
    """Merge a picture into the stored rows that concern it.

    Args:
        current: The stored rows of its titles, of its `page_keys`, and of its `title_keys`.
        news: The picture. Its rows are changed: they get the flags of the result.
        seq: The number of the last change in the feed.
        settled: Up to this time no update is outstanding, so that a removal before it is not the first half of a move.
        forgotten: Pages of which nothing may be shown.
        touched: Further pages to judge again, whose rows are in `current`: they were swept, revived or forgotten, or
            were held and `settled` has passed.

    Returns:
        The rows to write.
    """
    difference = Difference(seq=seq)
    pages = dict(current.pages)
    affected = dict.fromkeys(touched)
    for key, page in news.pages.items():
        old = current.pages.get(key)
        if old is None or page.order > old.order:
            pages[key] = page
            difference.pages.append(page)
            affected[page.page_key] = None
            if old is not None:
                page.load = max(page.load, old.load)
                affected[old.page_key] = None
            if (
                page.load
                and page.published - page.created != MARGIN
                and (old is None or page.order[:3] > old.order[:3])
            ):
                difference.missed += 1
            if page.page_key in forgotten:
                page.record = b""
        elif page.load > old.load:
            old.load = page.load
            difference.flags.append(old)
    places = dict(current.places)
    changed: set[PageKey] = set()
    for page_key, place in news.places.items():
        stored = current.places.get(page_key)
        if stored is None or place.order > stored.order:
            places[page_key] = place
            changed.add(page_key)
            affected[page_key] = None
    masks = dict(current.masks)
    for page_key, mask in news.masks.items():
        stored_mask = current.masks.get(page_key)
        if stored_mask is None or mask.order > stored_mask.order:
            masks[page_key] = mask
            difference.masks.append(mask)
            affected[page_key] = None
    judge = _Judge(current, pages, masks, difference, settled, forgotten)
    for page_key in affected:
        if page_key in places:
            judge.judge(page_key, places[page_key], changed=page_key in changed)
    return difference


class _Judge:
    """Decides for each page whether it is live, what of it is hidden, and whether the feed has to say so.

    Args:
        current: The stored rows.
        pages: The rows after the merge.
        masks: The masks after the merge.
        difference: Receives what has to be written.
        settled: As for `merge`.
        forgotten: As for `merge`.
    """

    def __init__(
        self,
        current: Picture,
        pages: Mapping[TitleKey, Page],
        masks: Mapping[PageKey, Mask],
        difference: Difference,
        settled: int,
        forgotten: Collection[PageKey],
    ) -> None:
        self._current = current
        self._pages = pages
        self._masks = masks
        self._difference = difference
        self._settled = settled
        self._forgotten = forgotten
        self._written = {id(page) for page in (*difference.pages, *difference.flags)}

    def judge(self, key: PageKey, place: Whereabouts, *, changed: bool) -> None:
        """Judge one page.

        Args:
            key: The page.
            place: Its whereabouts after the merge.
            changed: Whether they have changed.
        """
        old = self._current.places.get(key)
        shown = None if old is None else self._shown(key, old)
        page = self._pages.get((place.project, place.title))
        live = (
            page is not None
            and not page.gone
            and page.swept is None
            and page.page_id == place.page_id
            and key not in self._forgotten
        )
        if old is not None and old.title != place.title:
            self._leave(key, old)
        if page is not None and page.page_id == place.page_id:
            self._flag(page, live=live, hidden=self._hidden(key, page))
        if old is not None and changed:
            place.seq, place.old_title, place.moved, place.held = old.seq, old.old_title, old.moved, old.held
        known = shown is not None or place.held is not None
        held = place.held
        if live:
            place.held = None
            assert page is not None
            if shown != (place.title, page.revision, page.digest, page.hidden):
                self._number(place)
                if known and old is not None and old.title != place.title:
                    place.old_title, place.moved = old.title, place.seq
                changed = True
        elif known:
            place.held = self._hold(key, place, page)
            if place.held is None:
                self._number(place)
            changed = True
        if changed or held != place.held:
            self._difference.places.append(place)

    def _shown(self, key: PageKey, place: Whereabouts) -> tuple[str, int, bytes, int] | None:
        """Return what of a page is shown before the merge: None if it is not live."""
        page = self._current.pages.get((place.project, place.title))
        if page is None or not page.live or page.page_key != key:
            return None
        return place.title, page.revision, page.digest, page.hidden

    def _leave(self, key: PageKey, old: Whereabouts) -> None:
        """Clear the flag of the row at the title that a page has left."""
        page = self._pages.get((old.project, old.title))
        if page is not None and page.page_key == key:
            self._flag(page, live=False, hidden=page.hidden)

    def _flag(self, page: Page, *, live: bool, hidden: int) -> None:
        if (page.live, page.hidden) != (live, hidden):
            page = self._replaceable(page)
            page.live, page.hidden = live, hidden

    def _replaceable(self, page: Page) -> Page:
        if id(page) not in self._written:
            self._written.add(id(page))
            self._difference.flags.append(page)
        return page

    def _hidden(self, key: PageKey, page: Page) -> int:
        mask = self._masks.get(key)
        if mask is None or not mask.covers(page):
            return 0
        if not mask.hidden & HIDDEN_TEXT and not page.gone and not page.body:
            self._difference.doubts.append(page.key)
        return mask.hidden

    def _hold(self, key: PageKey, place: Whereabouts, page: Page | None) -> int | None:
        """Return the time of the record that removed a page if its move may still arrive.

        The delete of a move has a revision that is newer than the last one known, that of the move. So has a delete
        that overtook the edit before it, and a page that another one has replaced may have been moved away before.
        """
        if page is None or page.swept is not None or key in self._forgotten or page.created <= self._settled:
            return None
        if page.page_id == place.page_id and page.revision <= place.revision:
            return None
        return page.created

    def _number(self, place: Whereabouts) -> None:
        self._difference.seq += 1
        self._difference.changes += 1
        place.seq = self._difference.seq


def may_sweep(page: Page, cut: int) -> bool:
    """Return whether a snapshot that lacks a live page proves that it is gone.

    Args:
        page: Its row.
        cut: The largest time of publication inside the snapshot.
    """
    return page.live and (page.published or page.created) <= cut - MARGIN


def removal_limit(live: int, share: float) -> int:
    """Return how many pages a snapshot may remove; above that it is taken for incomplete.

    Args:
        live: The number of live pages.
        share: Of the live pages, 0 to 1.
    """
    return max(_FREE_REMOVALS, int(live * share))
