"""Look-ups of Wikidata entities: items, properties, labels."""

from collections.abc import Mapping
from random import Random
from typing import Any

from wme_async.simulator.hosts.api import Call
from wme_async.simulator.hosts.http import Answer, negotiate
from wme_async.simulator.protocol.gjson import project
from wme_async.simulator.protocol.query import Refused, encode_list
from wme_async.simulator.world.articles import dumps
from wme_async.simulator.world.entities import EntityGenerator, Shape

__all__ = ["Entities"]


class Entities:
    """The three look-ups of the beta. They take fields, and neither filters nor a limit.

    Every Q and P id exists, except the items of the scholarly graph, which the service leaves out.

    Args:
        generator: Makes the entities.
        rnd: Orders the keys of reduced records.

    Attributes:
        shape: How ambiguous fields look.
        labels_as_list: Whether labels come in a list, as the schema says, or as one object, as its text says.
    """

    def __init__(self, generator: EntityGenerator, rnd: Random) -> None:
        self.generator = generator
        self.shape: Shape = "maps"
        self.labels_as_list = False
        self._random = rnd
        self._own: dict[str, dict[str, Any]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Add or replace an entity; its name is the id."""
        self._own[str(record["name"])] = dict(record)

    def _find(self, call: Call, letter: str) -> dict[str, Any]:
        identifier = call.values["id"]
        found = self._own.get(identifier) or self.generator.get(identifier, shape=self.shape)
        if found is None or not identifier.startswith(letter):
            raise Refused(404, "Not Found")
        return found

    def _answer(self, call: Call, record: Mapping[str, Any], *, as_list: bool = True) -> Answer:
        body = dumps(project(record, call.bound().fields, self._random))
        kind = negotiate(call.accept)
        whole = encode_list([body], kind) if as_list else body
        return Answer(200, {"Content-Type": kind or "text/plain; charset=utf-8"}, whole)

    async def item(self, call: Call) -> Answer:
        """Answer `/v2/wikidata/items/{id}`."""
        return self._answer(call, self._find(call, "Q"))

    async def property(self, call: Call) -> Answer:
        """Answer `/v2/wikidata/properties/{id}`."""
        return self._answer(call, self._find(call, "P"))

    async def labels(self, call: Call) -> Answer:
        """Answer `/v2/wikidata/labels/{id}`: language to label."""
        identifier = call.values["id"]
        own = self._own.get(identifier)
        found = self.generator.labels(identifier) if own is None else own.get("entity", {}).get("labels", {})
        if found is None:
            raise Refused(404, "Not Found")
        return self._answer(call, found, as_list=self.labels_as_list)
