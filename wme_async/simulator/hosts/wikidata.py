"""Look-ups of Wikidata entities: items, properties, labels."""

from collections.abc import Mapping
from random import Random
from typing import Any

from wme_async.simulator.errors import HTTPError
from wme_async.simulator.hosts.api import ApiRequest
from wme_async.simulator.hosts.http import Response, document, negotiate
from wme_async.simulator.protocol.gjson import project
from wme_async.simulator.protocol.query import encode_list
from wme_async.simulator.world.articles import dumps
from wme_async.simulator.world.entities import EntityGenerator, Shape


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

    def __init__(self, generator: EntityGenerator, rnd: Random) -> None:
        self.generator = generator
        self.shape: Shape = "maps"
        self.labels_as_list = False
        self._random = rnd
        self._added: dict[str, dict[str, Any]] = {}

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
        body = dumps(project(record, request.bound().fields, self._random))
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
