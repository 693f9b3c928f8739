"""One world: wikis that change, and all that the service makes of them.

Snapshots, hourly batches, the stream and look-ups of a simulator are views of one history, so they agree as those of
the service do, and disagree where those do.
"""

import asyncio
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import product
from operator import attrgetter
from random import Random
from typing import Any, Final

from wme_async.simulator.arguments import check_numbers, check_texts
from wme_async.simulator.clock import Clock
from wme_async.simulator.world.articles import ArticleGenerator, Kind
from wme_async.simulator.world.editing import Editor
from wme_async.simulator.world.exports import Export, batch_rows, deal, snapshot_rows
from wme_async.simulator.world.metadata import PROJECTS
from wme_async.simulator.world.pipeline import SECOND, Message, Pipeline, PublishedRecord
from wme_async.simulator.world.random_changes import make_random_change
from wme_async.simulator.world.truth import Truth
from wme_async.simulator.world.wiki import SUPPORTED, Change, Wiki, WikiPage

_DAY: Final = 86_400
_PAST: Final = 3 * _DAY  # seconds of history before the start
_MOST_PAST: Final = 2_000  # random changes in it, unless asked for more
_OLDEST: Final = 40 * _DAY  # seconds: the pages at the beginning were last edited so long before

_STEP: Final = 0.2  # seconds
_ADOPTED: Final = 30_000_000  # the first number of pages beside the built-in ones
_NUMBERS_OF_A_PROJECT: Final = 300_000

_published: Final = attrgetter("published")
Listener = Callable[[PublishedRecord], None]
BuiltInPages = Callable[[str, float], Iterable[WikiPage]]


class World:
    """Wikis whose changes go through the pipeline of the service.

    `Simulator(world=World(...))` serves snapshots, chunks, hourly batches, the stream and look-ups of it. An update is
    published 0.3 to 16 seconds after its event was created, with the content of that moment; a delete after 0.2
    seconds, so it overtakes the edit before it. Changes come from the methods, at the time of the clock, and at random
    with `rate`. The same seed, clock and calls make the same history, whatever the steps in which the clock moves.

    Args:
        seed: Determines everything random.
        projects: Database names; by default those of the simulator.
        rate: Random changes per second of the clock, over all projects; 0 for none.
        pages: Pages in each project and namespace at the beginning.
        namespaces: Numbers of the namespaces that have pages: of 0, 6, 10 and 14.
        past: Random changes in the three days before the start; by default as many as `rate` makes, at most 2,000.
        start: The beginning of the clock of a world without a simulator, epoch seconds or an aware datetime; a
            simulator brings its own clock.
        latency: The shortest and the longest time in seconds from the creation of an update to its publication.
        lost: The share of events that the service never publishes.
        repeated: The share of events that it publishes twice.
        failed_exports: The share of hourly batches that do not exist since their export failed.

    Attributes:
        projects: The database names.
        namespaces: The numbers of the namespaces.
        pages: Pages in each at the beginning.
        rate: May be changed at any time.
        exports: The snapshots that were exported so far, with the titles in them; oldest first.

    Raises:
        TypeError: An argument is of another type, such as one name for `projects`.
        ValueError: A number is out of range, or a namespace is not supported.
    """

    def __init__(
        self,
        seed: int = 0,
        projects: Iterable[str] = PROJECTS,
        rate: float = 0.0,
        *,
        pages: int = 20,
        namespaces: Iterable[int] = (0,),
        past: int | None = None,
        start: float | datetime | None = None,
        latency: tuple[float, float] = (0.3, 16.0),
        lost: float = 0.0,
        repeated: float = 0.02,
        failed_exports: float = 0.0,
    ) -> None:
        if isinstance(projects, str):
            raise TypeError(f"projects must be a list of names, such as [{projects!r}], not one string")
        self.projects: tuple[str, ...] = tuple(projects)
        self.namespaces: tuple[int, ...] = tuple(namespaces)
        check_texts(**{f"projects[{number}]": name for number, name in enumerate(self.projects)})
        if not self.projects or not {*self.namespaces} <= {*SUPPORTED}:
            raise ValueError("a world has at least one project, and namespaces of 0, 6, 10 and 14")
        check_numbers(0, integer=False, rate=rate, lost=lost, repeated=repeated, failed_exports=failed_exports)
        check_numbers(0, pages=pages, past=0 if past is None else past)
        check_numbers(0.001, integer=False, shortest_latency=latency[0])
        check_numbers(latency[0], integer=False, longest_latency=latency[1])
        self.seed: int = seed
        self.rate: float = rate
        self.failed_exports: float = failed_exports
        self.generator: ArticleGenerator = ArticleGenerator(seed)
        self.exports: list[Export] = []
        self.pages: int = pages
        self._past = past
        self._clock = Clock(start, frozen=True)
        self._listener: Listener | None = None
        self._start = self._clock.now()
        self._begun = False
        self._random = Random(f"changes {seed}")
        wikis = {project: Wiki(project) for project in self.projects}
        self._pipeline = Pipeline(wikis, Random(f"pipeline {seed}"), latency=latency, lost=lost, repeated=repeated)
        self._editor = Editor(seed, wikis, self._pipeline, self.generator, self.namespaces)
        self._records: dict[tuple[str, int], list[PublishedRecord]] = {
            (project, namespace): [] for project in self.projects for namespace in SUPPORTED
        }
        self._current: dict[str, dict[str, PublishedRecord]] = {project: {} for project in self.projects}
        self._published: dict[int, int] = {}
        self._built_in: BuiltInPages | None = None
        self._opened: dict[str, float] = {}
        self._now = 0  # microseconds: everything before has happened
        self._next_random: float | None = None
        self._lock = threading.RLock()

    # Time

    def now(self) -> float:
        """Return the time of the world's clock in epoch seconds, UTC."""
        return self._clock.now()

    def advance(self, seconds: float) -> None:
        """Move the clock forward: of the simulator, if the world belongs to one.

        Raises:
            ValueError: A negative number.
        """
        check_numbers(0, integer=False, seconds=seconds)
        self._clock.advance(seconds)
        self.catch_up()

    def attach(
        self,
        clock: Clock,
        listener: Listener,
        *,
        articles: Sequence[Mapping[str, Any]] = (),
        built_in: BuiltInPages | None = None,
    ) -> None:
        """Go by the clock of a simulator, and pass it each record; the simulator does this.

        Args:
            clock: The clock.
            listener: Called with each record that is published, in this order.
            articles: Real articles to take titles and text from; by default they are made up.
            built_in: Returns the pages of a project that exist at a time without being stored; the world takes them
                over before it changes any of them.

        Raises:
            RuntimeError: The world belongs to a simulator, or has a history, already.
        """
        if self._listener is not None or self._begun:
            raise RuntimeError("this world has begun already: make one for each simulator, and change it there")
        self._clock, self._start, self._listener = clock, clock.now(), listener
        if articles:
            self.generator = self._editor.generator = ArticleGenerator(self.seed, base=articles)
        if built_in is not None:
            self._built_in = built_in
            self._editor.before = self._open
        clock.listeners.append(self.catch_up)

    def _open(self, project: str) -> None:
        """Take over the pages that exist without being stored; they are as they are published."""
        if self._built_in is None or project in self._opened:
            return
        self._opened[project] = self._now / SECOND
        pages = sorted(self._built_in(project, self._now / SECOND), key=lambda page: page.modified)
        self._editor.adopt(project, pages, _ADOPTED + self.projects.index(project) * _NUMBERS_OF_A_PROJECT)
        for page in pages:
            change = self._editor.change("create", page.modified, page)
            message = Message("update", project, page.title, change, page.modified - SECOND)
            self._take(PublishedRecord(message, page, page.modified))

    def take_over(self) -> None:
        """Take over the built-in pages of all projects, so that nothing changes but by this world."""
        with self._present():
            for project in self.projects:
                self._open(project)

    def opened_at(self, project: str) -> float:
        """Return the time from which on the world has the history of a project: infinite if it has none yet."""
        self.catch_up()
        if self._built_in is None:
            return -math.inf
        return self._opened.get(project, math.inf)

    async def run(self) -> None:
        """Let the world go on with its clock until cancelled, also while nobody reads it."""
        while True:
            self.catch_up()
            await asyncio.sleep(_STEP)

    def catch_up(self) -> None:
        """Let happen what is due by now; everything that reads the world does this first."""
        with self._lock:
            now = int(self._clock.now() * SECOND)
            if not self._begun:
                self._begun = True
                self._begin(int(self._start * SECOND))
            while self.rate:
                if self._next_random is None:
                    self._next_random = self._now + self._random.expovariate(self.rate) * SECOND
                if self._next_random > now:
                    break
                self._change_at_random(int(self._next_random))
                self._next_random += self._random.expovariate(self.rate) * SECOND
            self._proceed(now)

    def _begin(self, now: int) -> None:
        if self._built_in is None:  # the built-in pages have a past of their own
            beginning = now - _PAST * SECOND
            self._populate(beginning)
            past = min(_MOST_PAST, int(self.rate * _PAST)) if self._past is None else self._past
            for time in sorted(beginning + self._random.randrange(_PAST * SECOND) for _ in range(past)):
                self._change_at_random(time)
        self._proceed(now)

    def _populate(self, beginning: int) -> None:
        """Add the pages of the beginning, each published once, long ago."""
        rnd = Random(f"pages {self.seed}")
        pages = list(product(range(self.pages), self.projects, self.namespaces))
        times = sorted(beginning - rnd.randrange(_DAY, _OLDEST) * SECOND for _ in pages)
        for time, (_, project, namespace) in zip(times, pages, strict=True):
            title = self._editor.free_title(project, namespace)
            page = self._editor.new_page(time, project, title)
            change = self._editor.change("create", time, page)
            published = time + rnd.randrange(SECOND, 16 * SECOND)
            # The oldest records have no event, and bulk records were created when they were published.
            kind = rnd.random()
            message = Message("update", project, title, change, published if kind < 0.1 else time)
            self._take(PublishedRecord(message, page, published, bulk=kind < 0.1, eventless=kind > 0.9))
        for records in self._records.values():
            records.sort(key=_published)

    def _change_at_random(self, time: int) -> None:
        self._proceed(time)
        make_random_change(self._editor, self._random, time)

    def _proceed(self, time: int) -> None:
        """Let the workers of the service go on until a time."""
        self._now = max(self._now, time)
        for record in self._pipeline.advance(self._now):
            self._published.setdefault(record.message.created, record.published)
            self._take(record)
            if self._listener is not None:
                self._listener(record)

    def _take(self, record: PublishedRecord) -> None:
        """Add a record to the topics of archives and to the store of look-ups; neither knows suppression."""
        kind, project = record.message.kind, record.message.project
        if kind == "visibility-change":
            return
        self._records[project, record.namespace].append(record)
        if kind == "delete":
            self._current[project].pop(record.name, None)
        elif not record.bulk or record.name not in self._current[project]:
            self._current[project][record.name] = record

    @contextmanager
    def _present(self) -> Iterator[int]:
        """Hold the lock while everything up to now, which it yields, has happened."""
        with self._lock:
            self.catch_up()
            yield self._now

    # Changes

    def create(self, project: str, title: str | None = None, *, namespace: int = 0) -> WikiPage:
        """Create a page.

        Args:
            project: Database name.
            title: The title, whose prefix says the namespace; by default one that no page has.
            namespace: The namespace of a title by default.

        Returns:
            The page.

        Raises:
            ValueError: The project does not exist, or the title is taken.
        """
        with self._present() as time:
            name = self._editor.free_title(project, namespace) if title is None else _spaced(title)
            return self._editor.create(time, project, name)

    def edit(self, project: str, title: str) -> WikiPage:
        """Edit a page; a redirect becomes an ordinary page.

        Returns:
            The page with its new revision.

        Raises:
            ValueError: The project or the page does not exist.
        """
        with self._present() as time:
            return self._editor.edit(time, project, _spaced(title))

    def redirect(self, project: str, title: str, target: str) -> WikiPage:
        """Edit a page into a redirect; the service publishes a delete.

        Raises:
            ValueError: The project or the page does not exist, or the target is the page itself.
        """
        with self._present() as time:
            return self._editor.edit(time, project, _spaced(title), _spaced(target))

    def move(self, project: str, title: str, new_title: str, *, redirect: bool = True) -> WikiPage:
        """Move a page; a page with the new title is deleted before.

        Args:
            project: Database name.
            title: The old title.
            new_title: The new one; with a prefix such as `Draft:` the page leaves the service.
            redirect: Whether the old title becomes a redirect.

        Raises:
            ValueError: The project or the page does not exist, or both titles are the same.
        """
        with self._present() as time:
            return self._editor.move(time, project, _spaced(title), _spaced(new_title), leave_redirect=redirect)

    def delete(self, project: str, title: str) -> WikiPage:
        """Delete a page.

        Returns:
            Its last state.

        Raises:
            ValueError: The project or the page does not exist.
        """
        with self._present() as time:
            return self._editor.delete(time, project, _spaced(title))

    def restore(self, project: str, title: str, *, without_last: bool = False) -> WikiPage:
        """Restore the page that was deleted last under a title, with the same revision.

        Args:
            project: Database name.
            title: The title.
            without_last: Whether its last revision stays deleted, so that it has a lower one than before.

        Raises:
            ValueError: The project or the deleted page does not exist, or the title is taken.
        """
        with self._present() as time:
            return self._editor.restore(time, project, _spaced(title), without_last=without_last)

    def hide(
        self, project: str, title: str, *, text: bool = True, editor: bool = False, comment: bool = False
    ) -> WikiPage:
        """Suppress parts of the newest revision of a page, and show the others.

        Raises:
            ValueError: The project or the page does not exist.
        """
        hidden = [part for part, chosen in (("text", text), ("editor", editor), ("comment", comment)) if chosen]
        with self._present() as time:
            return self._editor.hide(time, project, _spaced(title), hidden)

    def bulk(self, project: str, titles: Iterable[str] | None = None) -> None:
        """Have the service ingest pages in bulk: into archives, with the content of up to 15 minutes before.

        Args:
            project: Database name.
            titles: The titles; by default all pages.

        Raises:
            ValueError: The project or a page does not exist.
        """
        with self._present() as time:
            names = [page.title for page in self._editor.wiki(project).live()] if titles is None else titles
            self._editor.bulk(time, project, map(_spaced, names))

    def publish_at_once(self, project: str, number: int, kind: Kind) -> PublishedRecord | None:
        """Change a page of namespace 0, and return its record, published in the same moment.

        Args:
            project: Database name.
            number: Of the change: the pages have their turn.
            kind: The event type.

        Returns:
            The record, or None if there is no page.
        """
        with self._present() as time:
            titles = [page.title for page in self._editor.wiki(project).live() if not page.namespace]
            if not titles:
                return None
            record = self._editor.at_once(time, project, titles[number % len(titles)], kind)
            self._published[record.message.created] = record.published
            self._take(record)
            return record

    # Views

    @property
    def changes(self) -> list[tuple[str, Change]]:
        """Project and change of the history so far, oldest first."""
        with self._present():
            return list(self._editor.changes)

    def truth(self, project: str) -> Truth:
        """Return the state of a wiki as the wiki itself has it, and what a copy cannot know.

        Raises:
            ValueError: The project does not exist.
        """
        with self._present():
            if self._built_in is not None and project in self.projects and project not in self._opened:
                pages = self._built_in(project, self._now / SECOND)
            else:
                pages = self._editor.wiki(project).live()
            live = {page.title: page for page in pages}
            current = self._current[project]
            messages = [message for message in self._pipeline.messages if message.project == project]
            return Truth(
                project=project,
                pages=live,
                messages=messages,
                published={
                    message.created: self._published[message.created]
                    for message in messages
                    if message.created in self._published
                },
                exports=[
                    export for export in self.exports if export.identifier.rpartition("_namespace_")[0] == project
                ],
                textless=frozenset(
                    title
                    for title, page in live.items()
                    if title in current and "text" in current[title].page.hidden - page.hidden
                ),
            )

    @property
    def settled(self) -> bool:
        """Whether all that the service publishes of the history so far is published."""
        with self._present():
            return self._pipeline.next_time is None

    def current(self, project: str) -> dict[str, PublishedRecord]:
        """Return the records of look-ups by title with spaces."""
        with self._present():
            return self._current.get(project, {})

    def snapshot(
        self, project: str, namespace: int, cut: float, members: int, *, number: int = 0, share: float = 1.0
    ) -> list[list[PublishedRecord]]:
        """Return the rows of each member of a snapshot.

        Args:
            project: Database name.
            namespace: Namespace number.
            cut: The start of the export, epoch seconds.
            members: The number of members.
            number: Of the export: each deals its rows anew.
            share: The share of rows to export.
        """
        with self._present():
            records = list(self._records[project, namespace])
        rows = snapshot_rows(records, int(cut * SECOND), self._random_of("snapshot", project, namespace, number))
        dealt = deal(rows, members, self._random_of("deal", project, namespace, number), share)
        titles = frozenset(row.name for rows in dealt for row in rows)
        export = Export(f"{project}_namespace_{namespace}", cut, number, titles, complete=share >= 1)
        if export not in self.exports:
            self.exports.append(export)
        return dealt

    def batch(self, project: str, namespace: int, begin: float, end: float) -> list[PublishedRecord]:
        """Return the rows of an hourly batch.

        Args:
            project: Database name.
            namespace: Namespace number.
            begin: The start of the hour, epoch seconds.
            end: The start of the export.
        """
        with self._present():
            records = self._records[project, namespace]
            first, last = (
                bisect_left(records, int(time * SECOND), key=attrgetter("published")) for time in (begin, end)
            )
            rows = records[first:last]
        return batch_rows(rows, self._random_of("batch", project, namespace, begin))

    def export_fails(self, key: str) -> bool:
        """Return whether the export of an hourly batch failed."""
        return self._random_of("failure", key).random() < self.failed_exports

    def _random_of(self, *parts: object) -> Random:
        return Random(f"{self.seed} {parts}")


def _spaced(title: str) -> str:
    return title.replace("_", " ")
