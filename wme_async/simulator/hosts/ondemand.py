"""Look-ups by title: articles and structured contents, over all projects at once."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from wme_async.simulator.hosts.api import Call
from wme_async.simulator.hosts.http import Answer, negotiate
from wme_async.simulator.protocol.gjson import matches, project
from wme_async.simulator.protocol.query import Panic, Query, Refused, encode_list
from wme_async.simulator.world.articles import dumps
from wme_async.simulator.world.catalog import Catalog
from wme_async.simulator.world.metadata import PROJECTS

__all__ = ["Lookups", "Pages"]

_COMMON: Final = ("Squirrel", "Marie Curie", "NATO", "Earth", "Josephine Baker", "AC/DC", "C++", "What Is Life?", "42%")
_COMMON_PAGE: Final = 19_000  # the index of the first common title above the first page of a project
_BASE: Final = (
    "name", "identifier", "abstract", "version", "url", "date_created", "date_modified", "main_entity", "is_part_of",
    "additional_entities", "in_language", "image", "license",
)  # fmt: skip
_EXTRAS: Final = ("description", "infoboxes", "sections", "references", "attribution")
_DEFAULT_LIMIT: Final = 3
_MAX_LIMIT: Final = 10


class Pages:
    """The pages that look-ups can find: the generated ones, real ones, and those that a test adds.

    Args:
        catalog: Projects and the generator.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._indices: dict[str, dict[str, int]] = {}
        self._articles: dict[tuple[str, str], dict[str, Any]] = {}
        self._structured: dict[tuple[str, str], dict[str, Any]] = {}
        self._gone: set[tuple[str, str]] = set()
        for record in catalog.real:
            self.add(record)

    @property
    def projects(self) -> list[str]:
        """All projects in the order in which a look-up walks them."""
        return [str(row["identifier"]) for row in self._catalog.static["projects"]]

    def language(self, project_name: str) -> str:
        """The language of a project."""
        return self._catalog.languages.get(project_name, "")

    def titles(self, project_name: str) -> list[str]:
        """The titles of a project, with spaces."""
        names = [*self._known(project_name), *(title for known, title in self._articles if known == project_name)]
        kept = [name for name in names if (project_name, name) not in self._gone]
        return [name.replace("_", " ") for name in dict.fromkeys(kept)]

    def add(self, record: Mapping[str, Any]) -> None:
        """Add or replace an article; its project and name say where.

        Raises:
            ValueError: It has none.
        """
        given: object = record
        if not isinstance(given, Mapping) or not {"is_part_of", "name"} <= given.keys():
            raise ValueError(f'a page is {{"name": ..., "is_part_of": {{"identifier": "enwiki"}}, ...}}, not {given!r}')
        key = (str(record["is_part_of"]["identifier"]), str(record["name"]).replace(" ", "_"))
        self._articles[key] = dict(record)
        self._gone.discard(key)

    def add_structured(self, record: Mapping[str, Any]) -> None:
        """Add or replace the structured contents of a page; the page itself must exist too."""
        self._structured[str(record["is_part_of"]["identifier"]), str(record["name"]).replace(" ", "_")] = dict(record)

    def remove(self, project_name: str, title: str) -> None:
        """Remove a page."""
        key = (project_name, title.replace(" ", "_"))
        self._articles.pop(key, None)
        self._gone.add(key)

    def _known(self, project_name: str) -> dict[str, int]:
        known = self._indices.get(project_name)
        if known is None:
            known = {}
            if project_name in PROJECTS:
                first = self._catalog.first_page(project_name, 0)
                for index in range(first, first + self._catalog.articles):
                    known[self._catalog.generator.title(index).replace(" ", "_")] = index
                for number, title in enumerate(_COMMON):
                    known[title.replace(" ", "_")] = first + _COMMON_PAGE + number
            self._indices[project_name] = known
        return known

    def article(self, project_name: str, title: str) -> Mapping[str, Any] | None:
        """Return the stored article of an exact title with underscores, or None."""
        key = (project_name, title)
        if key in self._gone:
            return None
        if key in self._articles:
            return self._articles[key]
        index = self._known(project_name).get(title)
        if index is None:
            return None
        made = self._catalog.generator.article(index, project=project_name, title=title.replace("_", " "))
        self._articles[key] = made
        return made

    def structured(self, article: Mapping[str, Any]) -> dict[str, Any]:
        """Make the structured contents of a stored article."""
        name = str(article["name"]).replace(" ", "_")
        project_name = str(article["is_part_of"]["identifier"])
        if (project_name, name) in self._structured:
            return self._structured[project_name, name]
        index = self._known(project_name).get(name, int(article.get("identifier", 0)))
        made = self._catalog.generator.structured(index, project=project_name, where="on-demand")
        made["description"] = str(made.get("description", "")).replace(str(made["name"]), str(article["name"]))
        absent = {key for key in _BASE if key not in article}
        return {key: article.get(key, value) for key, value in made.items() if key not in absent} | {
            key: article[key] for key in _BASE if key in article
        }


class Lookups:
    """The two look-ups of the main host.

    Args:
        pages: What can be found.
        rnd: Decides who comes first.
    """

    def __init__(self, pages: Pages, rnd: Random) -> None:
        self._pages = pages
        self._random = rnd

    async def articles(self, call: Call) -> Answer:
        """Answer `/v2/articles/{name}`."""
        query, found = self._find(call)
        bodies = [dumps(project(record, query.fields, self._random)) for record in found]
        return _list(call, bodies)

    async def structured(self, call: Call) -> Answer:
        """Answer `/v2/structured-contents/{name}`.

        Where a live part cannot be had, the plain article stands among the records.
        """
        query, found = self._find(call)
        kinds = {fault.kind for fault in call.faults}
        bodies = []
        for number, record in enumerate(found):
            if number == 0 and "raw" in kinds:
                bodies.append(dumps(record))
                continue
            body = dumps(_selected(self._pages.structured(record), query))
            if number == 0 and "malformed" in kinds:
                body = body[: max(2, len(body) * 2 // 3)]
            bodies.append(body)
        return _list(call, bodies)

    def _find(self, call: Call) -> tuple[Query, list[Mapping[str, Any]]]:
        query = call.bound()
        title = call.values["name"].replace(" ", "_")
        if not title:
            raise Refused(404, "Not Found")
        if query.limit > _MAX_LIMIT:
            raise Refused(422, "limit cannot be greater than 10")
        if any(item is None for item in query.filters):
            raise Panic(fatal=True)
        limit = query.limit if query.limit > 0 else _DEFAULT_LIMIT
        hidden = [fault for fault in call.faults if fault.kind == "not_there"]
        hits = []
        for name in self._walk(query):
            if any(fault.get("projects") is None or name in fault.get("projects") for fault in hidden):
                continue
            record = self._pages.article(name, title)
            # Each worker filters what it fetches, and goes on to its next project if that does not match.
            if record is not None and matches(record, query):
                hits.append(record)
                if len(hits) == limit + 3:
                    break
        # Each of `limit` workers goes on to its first hit: the early projects win, in no fixed order.
        winners = self._random.sample(hits, min(limit, len(hits)))
        if not winners:
            raise Refused(404, "Not Found")
        return query, winners

    def _walk(self, query: Query) -> list[str]:
        """The projects that the first filter by project and the first by language leave."""
        wanted: dict[str, Any] = {}
        for item in query.filters:
            if item is not None and item[0] in {"is_part_of.identifier", "in_language.identifier"}:
                wanted.setdefault(*item)
        names = self._pages.projects
        if "is_part_of.identifier" in wanted:
            names = [name for name in names if name == wanted["is_part_of.identifier"]]
        if "in_language.identifier" in wanted:
            names = [name for name in names if self._pages.language(name) == wanted["in_language.identifier"]]
        return names


def _selected(record: Mapping[str, Any], query: Query) -> dict[str, Any]:
    """Reduce structured contents: unknown names are ignored, and if none is left the base fields are returned."""
    if not query.fields:
        return {key: value for key, value in record.items() if key in _BASE or value}
    # The first segment of a dotted name counts, and brings the whole field.
    asked = {name.partition(".")[0] for name in query.fields} & {*_BASE, *_EXTRAS}
    if "sections" in asked:
        asked.add("tables")
    asked = asked or set(_BASE)
    return {key: value for key, value in record.items() if key in asked}


def _list(call: Call, bodies: Sequence[bytes]) -> Answer:
    kind = negotiate(call.accept)
    return Answer(200, {"Content-Type": kind or "text/plain; charset=utf-8"}, encode_list(bodies, kind))
