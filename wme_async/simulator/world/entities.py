"""Wikidata entities as the beta writes them, in each of the shapes its published schema leaves open.

The envelope is that of an article; `entity` holds labels, descriptions, aliases, statements and sitelinks. Where the
published schema shows one object and the entity format of Wikidata has a list or a map, both are made on request, so
that a reader can be tried on all of them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, Final, Literal

from wme_async.simulator.world import prose
from wme_async.simulator.world.articles import ArticleGenerator, Kind, Size, event_time, present
from wme_async.simulator.world.encoding import dumps, stamp

Shape = Literal["maps", "lists", "single", "mixed"]
"""How ambiguous fields look.

"maps": statements and qualifiers by property id, sitelinks by site, lists of references, protections and licences.
"lists": statements and qualifiers as flat lists, the rest as in "maps".
"single": one object where the published schema shows one; statements as a flat list.
"mixed": one of the three, by the number of the entity.
"""

_SHAPES: Final = ("maps", "lists", "single")
_LANGUAGES: Final = (
    "ar", "bn", "de", "en", "es", "fr", "he", "hi", "it", "ja", "nl", "pl", "pt", "ru", "sv", "uk", "vi", "zh",
    "zh-hant",
)  # fmt: skip
_LICENSE: Final = {
    "name": "Creative Commons CC0 1.0 Universal",
    "identifier": "CC0-1.0",
    "url": "https://creativecommons.org/publicdomain/zero/1.0/",
}
_PROJECT: Final = {"identifier": "wikidatawiki", "url": "https://www.wikidata.org"}
_GREGORIAN: Final = "http://www.wikidata.org/entity/Q1985727"
_JULIAN: Final = "http://www.wikidata.org/entity/Q1985786"
_ENTITY_ID: Final = re.compile(r"([QP])([1-9]\d{0,11})", re.ASCII)
FIRST_DELETED: Final = {"Q": 900_000_000, "P": 900_000}
"""From these numbers on items and properties are deleted: batches say so, and look-ups do not find them."""

_FIRST: Final = 100  # the number of the item that belongs to the article with index 0
_PROPERTIES: Final = {
    "P18": "commonsMedia",
    "P31": "wikibase-item",
    "P214": "external-id",
    "P279": "wikibase-item",
    "P569": "time",
    "P570": "time",
    "P577": "time",
    "P625": "globe-coordinate",
    "P856": "url",
    "P1082": "quantity",
    "P1106": "quantity",
    "P1476": "monolingualtext",
    "P1559": "monolingualtext",
    "P1628": "string",
    "P2860": "wikibase-item",
}
# Dates with month or day 00, before year 1, and beyond four digits: no calendar library reads them all.
_TIMES: Final = (
    ("+1861-00-00T00:00:00Z", "9"),
    ("+1952-03-11T00:00:00Z", "11"),
    ("+1800-00-00T00:00:00Z", "7"),
    ("+1066-10-00T00:00:00Z", "10"),
    ("-0044-03-15T00:00:00Z", "11"),
    ("-13798000000-00-00T00:00:00Z", "3"),
    ("+10000-01-01T00:00:00Z", "9"),
)


class EntityGenerator:
    """Makes Wikidata records, each a pure function of the seed, its number and the options of the call.

    Args:
        seed: Two generators with the same seed make the same records.
        articles: Where English labels come from: item Q100 + n is named like the article with index n.
    """

    def __init__(self, seed: int = 0, articles: ArticleGenerator | None = None) -> None:
        self.seed = seed
        self._articles = articles
        self._properties: dict[int, dict[str, str]] = {}  # they stand in every statement

    def item(
        self,
        number: int,
        *,
        shape: Shape = "maps",
        size: Size = None,
        kind: Kind = "update",
        published: float | datetime | None = None,
        version: bool | None = None,
    ) -> dict[str, Any]:
        """Make the record of an item.

        Args:
            number: The number of its Q id.
            shape: How ambiguous fields look.
            size: None for a natural size (about 25 KB), "small" for id, type and event, or the exact length of the
                JSON in bytes, for entities of many megabytes.
            kind: Other events than updates have no entity.
            published: When the event was published (seconds since 1970, or an aware datetime).
            version: Whether there is a version, with scores; None for now and then, as nothing promises it.

        Returns:
            The record, zero values absent.

        Raises:
            ValueError: `size` is too small for the entity.
        """
        return self._record("Q", number, shape=shape, size=size, kind=kind, published=published, version=version)

    def property(
        self,
        number: int,
        *,
        shape: Shape = "maps",
        size: Size = None,
        kind: Kind = "update",
        published: float | datetime | None = None,
        version: bool | None = None,
    ) -> dict[str, Any]:
        """Make the record of a property, which lives in namespace 120; the arguments are those of `item`."""
        return self._record("P", number, shape=shape, size=size, kind=kind, published=published, version=version)

    def record(self, index: int, *, kind: Kind = "update", **options: Any) -> dict[str, Any]:
        """Make the record of a stream: items by index, a property now and then."""
        if index % 20 == 19:
            return self.property(1 + index // 20, kind=kind, **options)
        return self.item(_FIRST + index, kind=kind, **options)

    def get(self, identifier: str, *, shape: Shape = "maps") -> dict[str, Any] | None:
        """Look an entity up by its id.

        Args:
            identifier: Such as `Q42` or `P31`; the case counts.
            shape: How ambiguous fields look.

        Returns:
            The record, or None if it is not an id, for deleted entities, and for scholarly items, which are not in the
            main graph.
        """
        if not self._exists(identifier):
            return None
        number = int(identifier[1:])
        return self.property(number, shape=shape) if identifier[0] == "P" else self.item(number, shape=shape)

    def _exists(self, identifier: str) -> bool:
        match = _ENTITY_ID.fullmatch(identifier)
        if match is None or int(match[2]) >= FIRST_DELETED[match[1]]:
            return False
        return match[1] == "P" or not self.is_scholarly(int(match[2]))

    def labels(self, identifier: str) -> dict[str, str] | None:
        """Look the labels of an entity up: language to label, or None as in `get`."""
        return self._labels(identifier[0], int(identifier[1:])) if self._exists(identifier) else None

    def is_scholarly(self, number: int) -> bool:
        """Tell whether an item belongs to the scholarly graph, which the service leaves out: one in eleven."""
        return number % 11 == 7

    def lines(
        self,
        count: int,
        *,
        start: int = _FIRST,
        namespace: Literal[0, 120] = 0,
        shape: Shape = "maps",
        size: Size = None,
    ) -> Iterator[bytes]:
        """Make the lines of an archive member, each with its line feed; scholarly items are passed over.

        Args:
            count: How many lines.
            start: The number of the first entity.
            namespace: 0 for items, 120 for properties.
            shape: How ambiguous fields look.
            size: As in `item`.

        Yields:
            Lines of compact JSON.
        """
        number = start
        for _ in range(count):
            while namespace == 0 and self.is_scholarly(number):
                number += 1
            make = self.property if namespace else self.item
            yield dumps(make(number, shape=shape, size=size)) + b"\n"
            number += 1

    def _record(
        self,
        letter: str,
        number: int,
        *,
        shape: Shape,
        size: Size,
        kind: Kind,
        published: float | datetime | None,
        version: bool | None,
    ) -> dict[str, Any]:
        rnd = Random((self.seed << 80) ^ (ord(letter) << 64) ^ number)
        looks = _SHAPES[number % 3] if shape == "mixed" else shape
        when = event_time(number, published)
        identifier = f"{letter}{number}"
        record = _envelope(rnd, identifier, number, when, kind, single=looks == "single")
        if size == "small":
            for key in ("date_created", "date_modified", "date_previously_modified", "protection", "license"):
                record.pop(key, None)
        elif version or (version is None and rnd.random() < 0.3):
            record = _with_version(record, rnd, number)
        if kind != "update":
            return record
        kind_of = "property" if letter == "P" else "item"
        if size == "small":
            record["entity"] = {"identifier": identifier, "type": kind_of}
            return record
        builder = _Builder(self._labels, rnd, looks)
        record["entity"] = builder.entity(letter, number, kind_of, rnd.randrange(4, 14))
        return record if size is None else _grown(record, builder, identifier, size)

    def _labels(self, letter: str, number: int) -> dict[str, str]:
        if letter == "P" and number in self._properties:
            return self._properties[number]
        # By arithmetic and not by a generator: labels are embedded in every statement, and must agree everywhere.
        words = prose.WORDS
        first = words[(number * 7 + self.seed) % len(words)]
        second = words[(number * 13 + 5) % len(words)]
        labels = {
            language: f"{first} {second} {number}" if position % 4 else f"{first} {number}"
            for position, language in enumerate(_LANGUAGES)
            if (number + position) % 5
        }
        if letter == "Q" and self._articles is not None and number >= _FIRST:
            labels["en"] = self._articles.title(number - _FIRST)
        labels.setdefault("en", f"{first} {second} {number}")
        labels = dict(sorted(labels.items()))
        if letter == "P" and f"P{number}" in _PROPERTIES:
            self._properties[number] = labels
        return labels


@dataclass(frozen=True)
class _Builder:
    """The parts of one entity, in one shape."""

    labels: Callable[[str, int], dict[str, str]]
    rnd: Random
    shape: str

    def entity(self, letter: str, number: int, kind: str, statements: int) -> dict[str, Any]:
        identifier = f"{letter}{number}"
        labels = self.labels(letter, number)
        flat = [
            self.statement(identifier, name) for name in ["P31", *self.rnd.choices(list(_PROPERTIES), k=statements)]
        ]
        links = {
            site: {"title": title, "badges": badges, "url": f"https://{site[:2]}.wikipedia.org/wiki/{title}"}
            for site, title, badges in (
                ("dewiki", f"Seite_{number}", ["Q17437796"]),
                ("enwiki", labels["en"].replace(" ", "_"), list[str]()),
            )
        }
        return present(
            identifier=identifier,
            type=kind,
            labels=labels,
            descriptions={"de": f"Gegenstand <{number}>", "en": f"thing number {number} & what follows"},
            aliases={"en": [f"{labels['en']} (alias)", f"No. {number}"]},
            statements=_by_property(flat) if self.shape == "maps" else flat,
            sitelinks=None if kind != "item" else links["dewiki"] if self.shape == "single" else links,
        )

    def statement(self, identifier: str, name: str) -> dict[str, Any]:
        rnd = self.rnd
        bits = f"{rnd.getrandbits(128):032X}"
        statement: dict[str, Any] = {
            "identifier": f"{identifier}${bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}",
            "rank": rnd.choices(("normal", "preferred", "deprecated"), (90, 7, 3))[0],
            **self.snak(name),
        }
        if rnd.random() < 0.4:
            flat = [self.snak(name) for name in ("P1106", "P577", "P1106")[: rnd.randrange(1, 4)]]
            statement["qualifiers"] = (
                flat[0] if self.shape == "single" else _by_property(flat) if self.shape == "maps" else flat
            )
        if rnd.random() < 0.5:
            references = [
                {"identifier": f"{rnd.getrandbits(160):040x}", "parts": [self.snak("P856"), self.snak("P577")]}
                for _ in range(rnd.randrange(1, 3))
            ]
            statement["references"] = references[0] if self.shape == "single" else references
        return statement

    def snak(self, name: str) -> dict[str, Any]:
        labels = self.labels("P", int(name[1:]))
        data_type = _PROPERTIES[name]
        return {
            "property": {"identifier": name, "data_type": data_type, "labels": labels},
            "value": self._value(data_type),
        }

    def _value(self, data_type: str) -> dict[str, Any]:
        rnd = self.rnd
        if rnd.random() < 0.04:
            return {}  # an unknown value or no value
        if data_type == "wikibase-item":
            number = rnd.randrange(_FIRST, 100_000)
            labels = self.labels("Q", number)
            value_type = "wikibase-item" if self.shape == "single" else "wikibase-entityid"
            if rnd.random() < 0.5:
                return {"type": value_type, "content": f"Q{number}", "labels": labels}
            data = {"entity-type": "item", "id": f"Q{number}", "numeric-id": str(number)}
            return {"type": value_type, "content_data": data, "labels": labels}
        if data_type == "time":
            moment, precision = rnd.choice(_TIMES)
            model = _JULIAN if moment.startswith("-") else _GREGORIAN
            capital = self.shape == "single"  # the published sample writes two keys with a capital
            return {
                "type": "time",
                "content_data": {
                    "Time" if capital else "time": moment,
                    "after": "0",
                    "before": "0",
                    "Calendarmodel" if capital else "calendarmodel": model,
                    "precision": precision,
                    "timezone": "0",
                },
            }
        if data_type == "quantity":
            amount = rnd.randrange(10**6)
            if rnd.random() < 0.2:
                return {"type": "quantity", "content": amount + 1}
            return {"type": "quantity", "content_data": {"amount": f"+{amount}", "unit": "1"}}
        if data_type == "globe-coordinate":
            return {
                "type": "globecoordinate",
                "content_data": {
                    "altitude": "",
                    "globe": "http://www.wikidata.org/entity/Q2",
                    "latitude": f"{rnd.uniform(-90, 90):.4f}",
                    "longitude": f"{rnd.uniform(-180, 180):.4f}",
                    "precision": "0.0001",
                },
            }
        if data_type == "monolingualtext":
            return {"type": "monolingualtext", "content_data": {"language": "fr", "text": "L\u2019été <indien>\u0085"}}
        return {"type": "string", "content": f"https://example.org/{rnd.randrange(10**6)}?a=1&b=2"}


def _by_property(snaks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for snak in sorted(snaks, key=lambda snak: str(snak["property"]["identifier"])):
        out.setdefault(snak["property"]["identifier"], []).append(snak)
    return out


def _envelope(rnd: Random, identifier: str, number: int, when: int, kind: Kind, *, single: bool) -> dict[str, Any]:
    prefix, namespace = ("Property:", 120) if identifier.startswith("P") else ("", 0)
    return present(
        name=identifier,
        identifier=10_000 + number * 31 + (5_000_000_000 if namespace else 0),  # page ids need 64 bits
        date_created=stamp(when - rnd.randrange(10**7, 10**8) * 1_000_000_000, 0),
        date_modified=stamp(when, 0),
        date_previously_modified=stamp(when - rnd.randrange(60, 10**6) * 1_000_000_000, 0),
        protection=_one_or_list(_protection(rnd), single=single) if rnd.random() < 0.15 else None,
        url=f"https://www.wikidata.org/wiki/{prefix}{identifier}",
        namespace={"identifier": namespace},
        is_part_of=_PROJECT,
        license=_one_or_list(_LICENSE, single=single),
        visibility={"text": False, "editor": True, "comment": True} if kind == "visibility-change" else None,
        event=_event(rnd, kind, when),
    )


def _one_or_list(value: dict[str, str], *, single: bool) -> Any:
    return value if single else [value]


def _protection(rnd: Random) -> dict[str, str]:
    return {"type": "edit", "level": "autoconfirmed", "expiry": rnd.choice(("infinity", "infinite", "never"))}


def _event(rnd: Random, kind: Kind, when: int) -> dict[str, str]:
    bits = f"{rnd.getrandbits(128):032x}"
    return {
        "identifier": f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:20]}-{bits[20:]}",
        "type": kind,
        "date_created": stamp(when - rnd.randrange(400_000, 4_000_000) * 1000, 6),
        "date_published": stamp(when, 6),
    }


def _with_version(record: dict[str, Any], rnd: Random, number: int) -> dict[str, Any]:
    risk = round(rnd.uniform(0.01, 0.99), 9)
    version = {
        "identifier": 2_200_000_000 + number * 113,
        "scores": {"revertrisk": {"probability": {"false": 1 - risk, "true": risk}}},
        "editor": {"identifier": 77, "name": "Editor 77"},
    }
    items, position = list(record.items()), list(record).index("url")
    return dict([*items[:position], ("version", version), *items[position:]])


def _grown(record: dict[str, Any], builder: _Builder, identifier: str, size: int) -> dict[str, Any]:
    """Make the JSON exactly `size` bytes long: with more statements, and a description that fills the rest."""
    entity = record["entity"]
    entity["descriptions"]["en"] = ""
    missing = size - len(dumps(record))
    if missing < 0:
        raise ValueError(f"this entity has at least {size - missing} bytes")
    statements = entity["statements"]
    if isinstance(statements, dict):
        statements = statements.setdefault("P2860", [])
    while missing > 20_000:
        statement = builder.statement(identifier, "P2860")
        missing -= len(dumps(statement)) + 1
        statements.append(statement)
    entity["descriptions"]["en"] = prose.filler(size - len(dumps(record)))
    return record
