"""Look-ups: articles and structured contents by title, over all projects at once, and Wikidata entities by id."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Final

from wme_async.simulator.errors import HTTPError, Panic
from wme_async.simulator.hosts.api import ApiRequest
from wme_async.simulator.hosts.http import Response, document, negotiate
from wme_async.simulator.protocol.gjson import matches, project
from wme_async.simulator.protocol.query import Query, encode_list
from wme_async.simulator.world.articles import Size, dumps
from wme_async.simulator.world.catalog import Catalog
from wme_async.simulator.world.entities import EntityGenerator, Shape
from wme_async.simulator.world.generated_pages import PageState
from wme_async.simulator.world.records import encode_record
from wme_async.simulator.world.wiki import namespace_of
from wme_async.simulator.world.world import World

_BASE: Final = (
    "name", "identifier", "abstract", "version", "url", "date_created", "date_modified", "main_entity", "is_part_of",
    "additional_entities", "in_language", "image", "license",
)  # fmt: skip
_EXTRAS: Final = ("description", "infoboxes", "sections", "references", "attribution")
_DEFAULT_LIMIT: Final = 3
_MAX_LIMIT: Final = 10


class Pages:
    """The pages that look-ups can find: those of the world, or generated and real ones, and those that a test adds.

    Args:
        catalog: Projects and the generator.
        world: The world.
        size: The size of its articles, as in `ArticleGenerator.article`.
    """

    def __init__(self, catalog: Catalog, world: World, size: Size) -> None:
        self._catalog = catalog
        self._world = world
        self._size = size
        self._built_in = catalog.generated.pages
        self._generated: dict[tuple[str, str], tuple[PageState, dict[str, Any]]] = {}
        self._articles: dict[tuple[str, str], dict[str, Any]] = {}
        self._structured: dict[tuple[str, str], dict[str, Any]] = {}
        self._removed: set[tuple[str, str]] = set()
        for record in catalog.own_articles:
            self.add(record)

    @property
    def projects(self) -> list[str]:
        """All projects in the order in which a look-up walks them."""
        return [str(row["identifier"]) for row in self._catalog.static["projects"]]

    def language(self, project_name: str) -> str:
        """Return the language of a project."""
        return self._catalog.languages.get(project_name, "")

    def titles(self, project_name: str) -> list[str]:
        """Return the titles of a project, with spaces."""
        if self._world.opened_at(project_name) < math.inf:
            existing: Iterable[str] = self._world.current(project_name)
        else:
            existing = (page.title for page in self._built_in.pages(project_name, self._catalog.clock.now()))
        added = (title.replace("_", " ") for project, title in self._articles if project == project_name)
        return [
            title
            for title in dict.fromkeys([*existing, *added])
            if (project_name, title.replace(" ", "_")) not in self._removed
        ]

    def add(self, record: Mapping[str, Any]) -> None:
        """Add or replace an article under its project and name.

        Raises:
            ValueError: The record has no project or no name.
        """
        checked: object = record
        if not isinstance(checked, Mapping) or not {"is_part_of", "name"} <= checked.keys():
            example = '{"name": ..., "is_part_of": {"identifier": "enwiki"}, ...}'
            raise ValueError(f"a page is {example}, not {checked!r}")
        key = _key(record)
        self._articles[key] = dict(record)
        self._removed.discard(key)

    def add_structured(self, record: Mapping[str, Any]) -> None:
        """Add or replace the structured contents of a page; the page itself must exist too."""
        self._structured[_key(record)] = dict(record)

    def remove(self, project_name: str, title: str) -> None:
        """Remove a page."""
        key = (project_name, title.replace(" ", "_"))
        self._articles.pop(key, None)
        self._removed.add(key)

    def article(self, project_name: str, title: str) -> Mapping[str, Any] | None:
        """Return the stored article of an exact title with underscores, or None."""
        key, name = (project_name, title), title.replace("_", " ")
        if key in self._removed:
            return None
        if key in self._articles:
            return self._articles[key]
        if self._world.opened_at(project_name) < math.inf:
            record = self._world.current(project_name).get(name)
            return None if record is None else encode_record(record, self._world.generator, self._size)
        section = self._built_in.section(project_name, namespace_of(name))
        position = self._built_in.position(section, name)
        state = None if position is None else self._built_in.state(section, position, self._catalog.clock.now())
        if state is None:
            return None
        if key not in self._generated or self._generated[key][0] != state:
            self._generated[key] = (state, self._built_in.article(section, state, None, title=name))
        return self._generated[key][1]

    def structured(self, article: Mapping[str, Any]) -> dict[str, Any]:
        """Return the structured contents of a stored article."""
        key = _key(article)
        if key in self._structured:
            return self._structured[key]
        project_name, title = key
        section = self._built_in.section(project_name, 0)
        position = self._built_in.position(section, title.replace("_", " "))
        index = int(article.get("identifier", 0)) if position is None else section.first + position
        record = self._catalog.generator.structured(index, project=project_name)
        record["description"] = str(record.get("description", "")).replace(str(record["name"]), str(article["name"]))
        base = {key: article[key] for key in _BASE if key in article}
        return {key: article.get(key, value) for key, value in record.items() if key in base or key not in _BASE} | base


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return project and title, with underscores, of a record."""
    return str(record["is_part_of"]["identifier"]), str(record["name"]).replace(" ", "_")


@dataclass(frozen=True)
class Lookups:
    """The two look-ups of the main host.

    Args:
        pages: The pages that exist.
        rnd: Chooses among more matches than the limit.
    """

    pages: Pages
    rnd: Random

    async def articles(self, request: ApiRequest) -> Response:
        """Answer `/v2/articles/{name}`."""
        query, records = self._find(request)
        return _list(request, [dumps(project(record, query.fields, self.rnd)) for record in records])

    async def structured(self, request: ApiRequest) -> Response:
        """Answer `/v2/structured-contents/{name}`.

        If the service fails to fetch a live part of the first record, the plain article stands in its place.
        """
        query, records = self._find(request)
        faults = {fault.kind for fault in request.faults}
        bodies = [dumps(_selected(self.pages.structured(record), query)) for record in records]
        if "raw" in faults:
            bodies[0] = dumps(records[0])
        elif "malformed" in faults:
            bodies[0] = bodies[0][: max(2, len(bodies[0]) * 2 // 3)]
        return _list(request, bodies)

    def _find(self, request: ApiRequest) -> tuple[Query, list[Mapping[str, Any]]]:
        query = request.bound()
        title = request.values["name"].replace(" ", "_")
        if not title:
            raise HTTPError(404, "Not Found")
        if query.limit > _MAX_LIMIT:
            raise HTTPError(422, "limit cannot be greater than 10")
        if None in query.filters:
            raise Panic(fatal=True)
        limit = query.limit if query.limit > 0 else _DEFAULT_LIMIT
        hidden = [fault.get("projects") for fault in request.faults if fault.kind == "not_there"]
        names = (name for name in self._walk(query) if not any(only is None or name in only for only in hidden))
        # Each worker filters the page it fetched, and goes on to its next project if that does not match.
        articles = (self.pages.article(name, title) for name in names)
        hits = list(islice((record for record in articles if record and matches(record, query)), limit + 3))
        if not hits:
            raise HTTPError(404, "Not Found")
        # Each of `limit` workers goes on to its first hit: the early projects win, in no fixed order.
        return query, self.rnd.sample(hits, min(limit, len(hits)))

    def _walk(self, query: Query) -> list[str]:
        """Return the projects that pass the first filter by project and the first by language."""
        values: dict[str, Any] = dict(item for item in reversed(query.filters) if item is not None)
        return [
            name
            for name in self.pages.projects
            if values.get("is_part_of.identifier", name) == name
            and values.get("in_language.identifier", language := self.pages.language(name)) == language
        ]


def _selected(record: Mapping[str, Any], query: Query) -> dict[str, Any]:
    """Reduce structured contents: unknown names are ignored, and without a known one the base fields are returned."""
    if not query.fields:
        return {key: value for key, value in record.items() if key in _BASE or value}
    # The first segment of a dotted name counts, and selects the whole field.
    names = {name.partition(".")[0] for name in query.fields} & {*_BASE, *_EXTRAS}
    if "sections" in names:
        names.add("tables")
    return {key: value for key, value in record.items() if key in (names or _BASE)}


def _list(request: ApiRequest, bodies: Sequence[bytes]) -> Response:
    kind = negotiate(request.accept)
    return document(encode_list(bodies, kind), kind)


@dataclass
class Entities:
    """The three look-ups of the beta. They take fields, and neither filters nor a limit.

    Every Q and P id exists, except the items of the scholarly graph, which the service leaves out, and the deleted
    ones (from Q900000000 and P900000 on).

    Args:
        generator: Makes the entities.
        rnd: Orders the keys of records with a field list.

    Attributes:
        shape: How ambiguous fields look.
        labels_as_list: Whether labels come in a list, as the schema says, or as one object, as its text says.
    """

    generator: EntityGenerator
    rnd: Random
    shape: Shape = "maps"
    labels_as_list: bool = False
    _added: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add or replace an entity; its name is the id."""
        self._added[str(record["name"])] = dict(record)

    def _find(self, request: ApiRequest, letter: str) -> dict[str, Any]:
        identifier = request.values["id"]
        record = self._added.get(identifier) or self.generator.get(identifier, shape=self.shape)
        if record is None or not identifier.startswith(letter):
            raise HTTPError(404, "Not Found")
        return record

    def _respond(self, request: ApiRequest, record: Mapping[str, Any], *, as_list: bool = True) -> Response:
        body = dumps(project(record, request.bound().fields, self.rnd))
        kind = negotiate(request.accept)
        return document(encode_list([body], kind) if as_list else body, kind)

    async def item(self, request: ApiRequest) -> Response:
        """Answer `/v2/wikidata/items/{id}`."""
        return self._respond(request, self._find(request, "Q"))

    async def property(self, request: ApiRequest) -> Response:
        """Answer `/v2/wikidata/properties/{id}`."""
        return self._respond(request, self._find(request, "P"))

    async def labels(self, request: ApiRequest) -> Response:
        """Answer `/v2/wikidata/labels/{id}`: language to label."""
        identifier = request.values["id"]
        added = self._added.get(identifier)
        labels = self.generator.labels(identifier) if added is None else added.get("entity", {}).get("labels", {})
        if labels is None:
            raise HTTPError(404, "Not Found")
        return self._respond(request, labels, as_list=self.labels_as_list)
