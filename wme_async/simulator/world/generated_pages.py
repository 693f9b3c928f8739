"""The pages of the built-in world, of which none is stored: a state is a function of the seed, the page and the time.

In each hour a part of the pages is edited, in turn, and others are created and deleted again, so that only the deletes
remain. Edits that a test publishes on the stream come on top.
"""

import math
import threading
import uuid
import zlib
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wme_async.simulator.world.articles import ArticleGenerator, Kind, Size, page_id_of
from wme_async.simulator.world.encoding import timestamp
from wme_async.simulator.world.metadata import EMPTY, NAMESPACES, PROJECTS
from wme_async.simulator.world.wiki import Revision, WikiPage

if TYPE_CHECKING:
    from wme_async.simulator.options import SimulatorOptions

CHUNKED: Final[Mapping[str, int]] = {"enwiki_namespace_0": 12, "simplewiki_namespace_0": 2}
_HOUR: Final = 3600
_OF_A_NAMESPACE: Final = 20_000  # pages for which a namespace has room
_BRIEF: Final = 10_000_000  # the position of the first page that exists for minutes only
_BRIEF_PAGES: Final = 2_000
_DELETED: Final = 10  # one in so many records of a batch is a delete
_EVERY: Final = 0.9  # of an hour, over which its edits are spread
_OLD: Final = 1_420_000_000.0  # 2015: pages that are never edited are from the years after
_OLD_REVISION: Final = 500_000_000
_FIRST_REVISION: Final = 1_000_000_000
COMMON: Final = ("Squirrel", "Marie Curie", "NATO", "Earth", "Josephine Baker", "AC/DC", "C++", "What Is Life?", "42%")
_COMMON_PAGE: Final = 19_000  # the position of the first of them, which look-ups alone know
_DELETE_LATENCY: Final = 0.2  # seconds


class PageState(NamedTuple):
    """The newest event of a page.

    Attributes:
        position: The number of the page in its section.
        revision: The revision id.
        published: The time of publication, epoch seconds.
        event: A number that no other event of the page has.
    """

    position: int
    revision: int
    published: float
    event: int


class Edit(NamedTuple):
    """An event that was published on request."""

    published: float
    kind: Kind
    event: int


@dataclass(frozen=True, slots=True)
class Section:
    """The pages of one project and namespace.

    Attributes:
        project: Database name.
        namespace: Namespace number.
        first: The index of the first page in the generator.
        pages: The number of pages.
        updates: Edits in each hour; all pages have their turn.
        deletes: Deletes in each hour.
        delay: Seconds after the end of an hour at which its export starts.
        known: The number of pages that look-ups find: more than `pages` if an archive of a size in bytes has more.
    """

    project: str
    namespace: int
    first: int
    pages: int
    updates: int
    deletes: int
    delay: float
    known: int

    def edited(self, hour: int, number: int) -> float:
        """Return the time at which a record of an hour (a count of hours since 1970) is published."""
        end = (hour + 1) * _HOUR + self.delay
        return end - _HOUR * (0.05 + _EVERY * ((number * 37) % 101) / 101)

    def updated_page(self, hour: int, number: int) -> int | None:
        """Return the page that a record of an hour updates, or None for a delete."""
        if number % _DELETED == _DELETED - 1 or not self.updates:
            return None
        return (hour * self.updates + number - number // _DELETED) % self.pages

    def last_edit(self, position: int, time: float) -> tuple[int, float] | None:
        """Return hour and time of the last edit of a page by a time, or None if it has none."""
        if not self.updates or position >= self.pages:
            return None
        hour = int(time // _HOUR)
        for past in range(hour, hour - self.pages // self.updates - 4, -1):
            turn = (position - past * self.updates) % self.pages
            if turn < self.updates:
                edited = self.edited(past, turn + turn // (_DELETED - 1))
                if edited <= time:
                    return past, edited
        return None


class GeneratedPages:
    """The pages of all sections.

    Args:
        options: The options of the simulator.
        sizes: The archives of each hour, and sizes in MB that determine which one is larger.
        generator: Makes the articles.
    """

    def __init__(self, options: "SimulatorOptions", sizes: Mapping[str, float], generator: ArticleGenerator) -> None:
        self.generator = generator
        self._articles = options["articles"]
        self._large = {key.rpartition("/")[2] for key in options["archive_bytes"] or {}}
        self._seed = options["seed"]
        self._sizes = sizes
        # The exports of one hour finish one after the other; the list is written when all are there.
        spread = options["batch_delay"] * 0.95 / max(1, len(sizes))
        self.delays: dict[str, float] = {name: number * spread for number, name in enumerate(sizes)}
        self._sections: dict[tuple[str, int], Section] = {}
        self._lock = threading.Lock()
        self._edits: dict[tuple[str, int], dict[int, list[Edit]]] = {}
        self._updates: dict[tuple[str, int], dict[int, list[float]]] = {}  # times of the edits that are updates

    def count(self, identifier: str) -> int:
        """Return the number of records of an archive: larger projects have more, on a scale that keeps all small."""
        size = self._sizes.get(identifier, 0.05)
        return 0 if identifier == EMPTY else round(self._articles * (0.5 + 0.5 * math.log10(1 + 1000 * size)))

    def section(self, project: str, namespace: int) -> Section:
        """Return the section of a project and namespace."""
        key = (project, namespace)
        if key not in self._sections:
            identifier = f"{project}_namespace_{namespace}"
            count, chunks = self.count(identifier), CHUNKED.get(identifier, 0)
            pages = chunks * self._articles if chunks else count
            deletes = count // _DELETED
            batched = identifier in self._sizes
            self._sections[key] = Section(
                project=project,
                namespace=namespace,
                # Each project and namespace has numbers of its own.
                first=(zlib.crc32(project.encode()) % 31) * 300_000 + namespace * _OF_A_NAMESPACE,
                pages=pages,
                updates=min(count - deletes, pages) if batched else 0,
                deletes=deletes if batched else 0,
                delay=self.delays.get(identifier, 0.0),
                known=_BRIEF if identifier in self._large else pages,
            )
        return self._sections[key]

    def events_between(self, begin: float, end: float) -> Iterator[tuple[float, Section, int, int]]:
        """Yield the regular events between two times, in no order: time, section, hour, and number in its batch."""
        for identifier in self._sizes:
            project, _, namespace = identifier.rpartition("_namespace_")
            section = self.section(project, int(namespace))
            for hour in range(int(begin // _HOUR) - 1, int(end // _HOUR) + 1):
                for number in range(section.updates + section.deletes):
                    time = section.edited(hour, number)
                    if begin < time <= end:
                        yield time, section, hour, number

    def event(self, time: float, section: Section, hour: int, number: int, size: Size) -> dict[str, Any]:
        """Return the record of a regular event."""
        position = section.updated_page(hour, number)
        state = None if position is None else self.state(section, position, time)
        return self.brief_delete(section, hour, number) if state is None else self.article(section, state, size)

    def edited_by_hand(self, project: str, namespace: int) -> bool:
        """Return whether a section has edits on request."""
        return (project, namespace) in self._edits

    # States

    def state(self, section: Section, position: int, time: float) -> PageState | None:
        """Return the newest event of a page by a time, or None if the page is deleted."""
        state, deleted = self._newest(section, position, time)
        return None if deleted else state

    def _newest(self, section: Section, position: int, time: float) -> tuple[PageState, bool]:
        """Return the newest event of a page, and whether it is a delete."""
        regular = section.last_edit(position, time)
        index = section.first + position
        if regular is None:
            published = min(_OLD + index % 300_000 * 1000.0, time - _HOUR)
            state = PageState(position, _OLD_REVISION + index * 31, published, 0)
        else:
            hour, published = regular
            state = PageState(position, _FIRST_REVISION + hour * 1000 + index % 1000, published, hour)
        edits = self._edits.get((section.project, section.namespace), {}).get(position, ())
        updates = self._updates.get((section.project, section.namespace), {}).get(position, ())
        state = state._replace(revision=state.revision + bisect_right(updates, time))
        count = bisect_right(edits, time, key=attrgetter("published"))
        if count and edits[count - 1].published >= state.published:
            edit = edits[count - 1]
            return state._replace(published=edit.published, event=edit.event), edit.kind == "delete"
        return state, False

    def edited_between(self, section: Section, begin: float, end: float) -> list[int]:
        """Return the pages with edits on request that were published between two times, the end excluded."""
        edits = self._edits.get((section.project, section.namespace), {})
        return [page for page, events in edits.items() if any(begin <= event.published < end for event in events)]

    def pages(self, project: str, time: float) -> Iterator[WikiPage]:
        """Yield the pages of a project that exist at a time."""
        for namespace, _, _ in NAMESPACES if project in PROJECTS else ():
            section = self.section(project, namespace)
            titles = ((position, self.title(section, position)) for position in range(section.pages))
            for position, title in (*titles, *(enumerate(COMMON, _COMMON_PAGE) if namespace == 0 else ())):
                state = self.state(section, position, time)
                if state is not None:
                    index = section.first + position
                    revision = Revision(state.revision, round(state.published * 1_000_000))
                    yield WikiPage(title, page_id_of(index), index, (revision,))

    def position(self, section: Section, title: str) -> int | None:
        """Return the page of a title with spaces, or None; most titles end in the index of their page."""
        if section.project not in PROJECTS:
            return None
        if section.namespace == 0 and title in COMMON:
            return _COMMON_PAGE + COMMON.index(title)
        number = title.rpartition(" ")[2]
        if not (number.isascii() and number.isdecimal()):
            return None
        position = int(number) - section.first
        return position if 0 <= position < section.known and self.title(section, position) == title else None

    def title(self, section: Section, position: int) -> str:
        """Return the title of a page, with spaces."""
        return self.generator.title(section.first + position, namespace=section.namespace)

    # Records

    def article(self, section: Section, state: PageState, size: Size, title: str | None = None) -> dict[str, Any]:
        """Return an update."""
        return self._record(section, state, "update", size=size, title=title)

    def newest_record(self, section: Section, position: int, time: float, size: Size) -> dict[str, Any]:
        """Return the newest record of a page by a time: an update or a delete."""
        state, deleted = self._newest(section, position, time)
        return self._record(section, state, "delete" if deleted else "update", size=size)

    def structured(self, section: Section, state: PageState) -> dict[str, Any]:
        """Return the structured contents of a page, as a snapshot has them."""
        index = section.first + state.position
        record = self.generator.structured(index, project=section.project, where="snapshot", published=state.published)
        record["version"] = {**record["version"], "identifier": state.revision}
        return self._with_event(record, index, state)

    def title_of_event(self, section: Section, hour: int, number: int) -> str:
        """Return the title of the page of a regular event."""
        position = section.updated_page(hour, number)
        return self.title(section, self._brief_position(section, hour, number) if position is None else position)

    def _brief_position(self, section: Section, hour: int, number: int) -> int:
        return _BRIEF + (hour * section.deletes + number // _DELETED) % _BRIEF_PAGES

    def brief_delete(self, section: Section, hour: int, number: int) -> dict[str, Any]:
        """Return the delete of a page that was created in the same hour."""
        page = self._brief_position(section, hour, number)
        state = PageState(page, _FIRST_REVISION + hour * 1000 + 999, section.edited(hour, number), hour)
        return self._record(section, state, "delete")

    def _record(
        self, section: Section, state: PageState, kind: Kind, *, size: Size = "small", title: str | None = None
    ) -> dict[str, Any]:
        index = section.first + state.position
        record = self.generator.article(
            index,
            project=section.project,
            namespace=section.namespace,
            kind=kind,
            size=size,
            revision=state.revision,
            published=state.published,
            title=title,
        )
        if kind != "update":
            record["event"]["date_created"] = timestamp(state.published - _DELETE_LATENCY)
        return self._with_event(record, index, state)

    def _with_event(self, record: dict[str, Any], index: int, state: PageState) -> dict[str, Any]:
        rnd = Random((self._seed << 160) ^ (index << 96) ^ state.event)
        record["event"]["identifier"] = str(uuid.UUID(int=rnd.getrandbits(128), version=4))
        return record

    # Edits on request

    def edit(
        self,
        number: int,
        *,
        kind: Kind,
        published: float,
        size: Size = "small",
        project: str = "enwiki",
        namespace: int = 0,
        **options: Any,
    ) -> dict[str, Any]:
        """Return the event of an edit that a test publishes, which archives and look-ups then have too.

        Args:
            number: Of the edit: the pages have their turn.
            kind: The event type.
            published: When it is published, epoch seconds.
            size: As in `ArticleGenerator.article`.
            project: Database name of the project.
            namespace: Namespace number.
            **options: Of `ArticleGenerator.article`; such a record stands for itself.
        """
        section = self.section(project, namespace)
        if options or not section.pages:
            index = section.first + number
            return self.generator.article(
                index, project=project, namespace=namespace, kind=kind, size=size, published=published, **options
            )
        with self._lock:
            position = number % section.pages
            state, _ = self._newest(section, position, published)
            edit = Edit(published, kind, (1 << 32) + number)
            if kind != "visibility-change":
                edits = self._edits.setdefault((project, namespace), {}).setdefault(position, [])
                edits.insert(bisect_right(edits, published, key=attrgetter("published")), edit)
            if kind == "update":
                insort(self._updates.setdefault((project, namespace), {}).setdefault(position, []), published)
                state = state._replace(revision=state.revision + 1)
            return self._record(section, state._replace(published=published, event=edit.event), kind, size=size)
