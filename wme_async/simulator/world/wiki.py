"""One wiki: its pages, how they change, and the state of each title at any moment."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Final, Literal, NamedTuple

ChangeKind = Literal["create", "edit", "move", "delete", "restore", "redirect", "hide", "bulk"]

SUPPORTED: Final = (0, 6, 10, 14)
"""The namespaces that the service publishes."""

NAMESPACE_NUMBERS: Final = {"File": 6, "Template": 10, "Category": 14, "Talk": 1, "User": 2, "Draft": 118}


_MOST_VERSIONS: Final = 50  # of one title, before those that nobody fetches any more are forgotten
_FETCHED_WITHIN: Final = 3600 * 1_000_000  # microseconds
_LAST_REVISIONS: Final = 5


def namespace_of(title: str) -> int:
    """Return the number of a title's namespace, by its prefix."""
    prefix, colon, name = title.partition(":")
    return NAMESPACE_NUMBERS.get(prefix, 0) if colon and name else 0


class Revision(NamedTuple):
    """One revision of a page: its number, and its time in microseconds since 1970."""

    identifier: int
    modified: int


@dataclass(frozen=True, slots=True)
class WikiPage:
    """A page at one moment.

    Attributes:
        title: With spaces.
        page_id: The page id, which a move keeps.
        number: The number from which its text is generated.
        revisions: The first revision and the last ones, oldest first.
        redirect: The title that it redirects to, or None.
        hidden: The suppressed parts of the newest revision: of "text", "editor" and "comment".
    """

    title: str
    page_id: int
    number: int
    revisions: tuple[Revision, ...]
    redirect: str | None = None
    hidden: frozenset[str] = frozenset()

    @property
    def namespace(self) -> int:
        """The number of its namespace."""
        return namespace_of(self.title)

    @property
    def revision(self) -> int:
        """The newest revision id."""
        return self.revisions[-1].identifier

    @property
    def modified(self) -> int:
        """The time of the newest revision, microseconds since 1970."""
        return self.revisions[-1].modified

    @property
    def published(self) -> bool:
        """Whether the service has records of it: no redirects, and the supported namespaces alone."""
        return self.redirect is None and self.namespace in SUPPORTED


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a wiki.

    Attributes:
        kind: The operation.
        time: Microseconds since 1970.
        title: The title after the change, with spaces.
        page: The page after the change; of a deleted page its last state.
        old_title: The title before a move.
        event_id: The identifier of the event; all records of the change have it.
    """

    kind: ChangeKind
    time: int
    title: str
    page: WikiPage
    event_id: str
    old_title: str | None = None


@dataclass
class Wiki:
    """The state of one wiki.

    The methods change the state at a time that never decreases, and return the pages after the change.

    Attributes:
        project: Database name.
        pages: The existing pages by title, redirects included.
        deleted: The deleted pages by title; of several under one title the last is restored first.
    """

    project: str
    pages: dict[str, WikiPage] = field(default_factory=dict)
    deleted: dict[str, list[WikiPage]] = field(default_factory=dict)
    _versions: dict[str, list[tuple[int, WikiPage | None]]] = field(default_factory=dict)

    def _store(self, time: int, page: WikiPage) -> WikiPage:
        self.pages[page.title] = page
        versions = self._versions.setdefault(page.title, [])
        versions.append((time, page))
        if len(versions) > _MOST_VERSIONS:
            # Nothing is fetched as it was long ago; the oldest version counts for all times before.
            old = bisect_right(versions, time - _FETCHED_WITHIN, key=itemgetter(0))
            del versions[: max(0, old - 1)]
        return page

    def _drop(self, time: int, title: str) -> WikiPage:
        page = self.get(title)
        del self.pages[title]
        self._versions[title].append((time, None))
        return page

    def get(self, title: str) -> WikiPage:
        """Return an existing page.

        Raises:
            ValueError: There is none of this title.
        """
        page = self.pages.get(title)
        if page is None:
            raise ValueError(f"{self.project} has no page {title!r}")
        return page

    def at(self, title: str, time: int) -> WikiPage | None:
        """Return the page that had a title at a time, or None."""
        versions = self._versions.get(title, [])
        position = bisect_right(versions, time, key=itemgetter(0))
        return versions[position - 1][1] if position else None

    def fetch(self, title: str, time: int) -> WikiPage | None:
        """Return the page that the API of the wiki returned for a title at a time, or None.

        The API follows one redirect; a second one, or a namespace without records, gives nothing.
        """
        page = self.at(title, time)
        if page is not None and page.redirect is not None:
            page = self.at(page.redirect, time)
        return page if page is not None and page.published else None

    def live(self) -> Iterator[WikiPage]:
        """Yield the pages of which the service should have a record."""
        return (page for page in self.pages.values() if page.published)

    # Changes

    def create(self, time: int, page: WikiPage) -> WikiPage:
        """Add a page.

        Raises:
            ValueError: The title is taken.
        """
        if page.title in self.pages:
            raise ValueError(f"{self.project} has a page {page.title!r} already")
        return self._store(time, page)

    def edit(self, time: int, title: str, revision: Revision, redirect: str | None = None) -> WikiPage:
        """Add a revision; with `redirect` the page becomes a redirect, without one an ordinary page."""
        page = self.get(title)
        if redirect == title:
            raise ValueError(f"{title!r} cannot redirect to itself")
        revisions = _with(page.revisions, revision)
        return self._store(time, replace(page, revisions=revisions, redirect=redirect, hidden=frozenset()))

    def move(self, time: int, title: str, new_title: str, revision: Revision) -> WikiPage:
        """Rename a page, which adds a revision; the new title must be free."""
        if new_title in self.pages:
            raise ValueError(f"{self.project} has a page {new_title!r} already: delete it first")
        page = self._drop(time, title)
        revisions = _with(page.revisions, revision)
        return self._store(time, replace(page, title=new_title, revisions=revisions, hidden=frozenset()))

    def delete(self, time: int, title: str) -> WikiPage:
        """Delete a page, and return its last state."""
        page = self._drop(time, title)
        self.deleted.setdefault(title, []).append(page)
        return page

    def restore(self, time: int, title: str, *, without_last: bool = False) -> WikiPage:
        """Restore the page that was deleted last under a title, with or without its last revision.

        Raises:
            ValueError: There is none, or the title is taken.
        """
        pages = self.deleted.get(title)
        if not pages:
            raise ValueError(f"{self.project} has no deleted page {title!r}")
        if title in self.pages:
            raise ValueError(f"{self.project} has a page {title!r} again: delete it first")
        page = pages.pop()
        if not pages:
            del self.deleted[title]
        if without_last and len(page.revisions) > 1:
            page = replace(page, revisions=page.revisions[:-1], hidden=frozenset())
        return self._store(time, page)

    def hide(self, time: int, title: str, hidden: frozenset[str]) -> WikiPage:
        """Suppress parts of the newest revision, and show the others."""
        return self._store(time, replace(self.get(title), hidden=hidden))


def _with(revisions: tuple[Revision, ...], revision: Revision) -> tuple[Revision, ...]:
    """Add a revision; of many the first and the last ones stay."""
    return (*revisions[:1], *revisions[1:][-_LAST_REVISIONS:], revision)
