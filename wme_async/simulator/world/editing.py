"""Changes of all wikis of a world: each gets its revision, its page id and its event, and goes to the pipeline."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Final

from wme_async.simulator.world.articles import ArticleGenerator, Kind, page_id_of
from wme_async.simulator.world.pipeline import Pipeline, PublishedRecord
from wme_async.simulator.world.wiki import Change, ChangeKind, Revision, Wiki, WikiPage

PARTS: Final = frozenset({"text", "editor", "comment"})
_FIRST_REVISION: Final = 1_200_000_000
_NUMBERS_OF_A_WIKI: Final = 300_000


class Editor:
    """Makes changes at a time in microseconds since 1970, which never decreases.

    Args:
        seed: Determines event ids and the steps between revisions.
        wikis: The wikis by project.
        pipeline: Takes the changes.
        generator: Makes titles.
        namespaces: Those in which pages are created at random.

    Attributes:
        changes: Project and change, oldest first.
        before: Called with the project before its wiki is used.
    """

    def __init__(
        self,
        seed: int,
        wikis: dict[str, Wiki],
        pipeline: Pipeline,
        generator: ArticleGenerator,
        namespaces: Sequence[int],
    ) -> None:
        self.wikis = wikis
        self.namespaces = namespaces
        self.changes: list[tuple[str, Change]] = []
        self.before: Callable[[str], None] | None = None
        self._pipeline = pipeline
        self.generator = generator
        self._random = Random(f"editor {seed}")
        self._revision = _FIRST_REVISION
        self._numbers = {project: position * _NUMBERS_OF_A_WIKI for position, project in enumerate(wikis)}

    def wiki(self, project: str) -> Wiki:
        """Return a wiki.

        Raises:
            ValueError: The world does not have it.
        """
        if project not in self.wikis:
            raise ValueError(f"this world has no project {project!r}; it has {', '.join(self.wikis)}")
        if self.before is not None:
            self.before(project)
        return self.wikis[project]

    def free_title(self, project: str, namespace: int = 0) -> str:
        """Return a title that no page has."""
        pages, number = self.wiki(project).pages, self._numbers[project]
        while (title := self.generator.title(number, namespace=namespace)) in pages:
            number += 1
        return title

    def new_page(self, time: int, project: str, title: str, redirect: str | None = None) -> WikiPage:
        """Add a page, and return it, without a change that the service takes note of."""
        number = self._numbers[project]
        page = WikiPage(title, page_id_of(number), number, (self._next_revision(time),), redirect)
        self.wiki(project).create(time, page)
        self._numbers[project] += 1
        return page

    def adopt(self, project: str, pages: Iterable[WikiPage], numbers: int) -> None:
        """Add existing pages to a wiki; new ones get numbers from `numbers` on, and higher revisions."""
        for page in pages:
            self.wikis[project].create(page.modified, page)
            self._revision = max(self._revision, page.revision)
        self._numbers[project] = numbers

    def _next_revision(self, time: int) -> Revision:
        self._revision += self._random.randrange(1, 200)
        return Revision(self._revision, time)

    def change(self, kind: ChangeKind, time: int, page: WikiPage, old_title: str | None = None) -> Change:
        """Make the record of a change."""
        event_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        return Change(kind, time, page.title, page, event_id, old_title)

    def _take(
        self, project: str, kind: ChangeKind, time: int, page: WikiPage, old_title: str | None = None
    ) -> WikiPage:
        change = self.change(kind, time, page, old_title)
        self.changes.append((project, change))
        self._pipeline.accept(project, change)
        return page

    def create(self, time: int, project: str, title: str, redirect: str | None = None) -> WikiPage:
        """Create a page."""
        return self._take(project, "create", time, self.new_page(time, project, title, redirect))

    def edit(self, time: int, project: str, title: str, redirect: str | None = None) -> WikiPage:
        """Edit a page; with `redirect` it becomes one."""
        page = self.wiki(project).edit(time, title, self._next_revision(time), redirect)
        return self._take(project, "edit" if redirect is None else "redirect", time, page)

    def move(self, time: int, project: str, title: str, new_title: str, *, leave_redirect: bool) -> WikiPage:
        """Move a page; a page of the new title is deleted before."""
        wiki = self.wiki(project)
        wiki.get(title)
        if title == new_title:
            raise ValueError(f"{title!r} has this title already")
        if new_title in wiki.pages:
            self.delete(time, project, new_title)
        page = wiki.move(time, title, new_title, self._next_revision(time))
        redirect = self.new_page(time, project, title, new_title) if leave_redirect else None
        self._take(project, "move", time, page, title)
        if redirect is not None:
            self._take(project, "create", time, redirect)
        return page

    def delete(self, time: int, project: str, title: str) -> WikiPage:
        """Delete a page."""
        return self._take(project, "delete", time, self.wiki(project).delete(time, title))

    def restore(self, time: int, project: str, title: str, *, without_last: bool = False) -> WikiPage:
        """Restore a page, with or without its last revision."""
        return self._take(project, "restore", time, self.wiki(project).restore(time, title, without_last=without_last))

    def hide(self, time: int, project: str, title: str, hidden: Iterable[str]) -> WikiPage:
        """Suppress exactly these parts of the newest revision of a page."""
        return self._take(project, "hide", time, self.wiki(project).hide(time, title, frozenset(hidden)))

    def at_once(self, time: int, project: str, title: str, kind: Kind) -> PublishedRecord:
        """Change a page, and return the record, published in the same moment."""
        wiki = self.wiki(project)
        if kind == "update":
            change = self.change("edit", time, wiki.edit(time, title, self._next_revision(time)))
        elif kind == "delete":
            change = self.change("delete", time, wiki.delete(time, title))
        else:
            change = self.change("hide", time, wiki.hide(time, title, frozenset({"text"})))
        self.changes.append((project, change))
        return self._pipeline.finish(project, change, kind)

    def bulk(self, time: int, project: str, titles: Iterable[str]) -> None:
        """Ingest pages again."""
        wiki = self.wiki(project)
        changes = [self.change("bulk", time, wiki.get(title)) for title in titles]
        self.changes += [(project, change) for change in changes]
        self._pipeline.ingest(project, changes)
