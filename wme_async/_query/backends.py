"""The back ends behind one API, and the rules of each for fields and filters.

    metadata     lists and items of metadata: SQL over stored JSON lines
    ondemand     articles by title: paths into stored JSON
    structured   the same, with fields computed for each request
    realtime     the stream: names of its Avro schema, resolved by reflection
    archive      records of archives, which come whole: everything is applied here

All knowledge about the server's rules, some of them surprising, is in this file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, TypeAlias

from wme_async._query.model_fields import Place

Value: TypeAlias = str | int | float | bool
"""A value of a filter."""


class Backend(StrEnum):
    """The back end of a query."""

    METADATA = "metadata"
    ONDEMAND = "ondemand"
    STRUCTURED = "structured"
    REALTIME = "realtime"
    LOOKUP_FIELDS_ONLY = "lookup-fields-only"
    ARCHIVE = "archive"


TITLES: Final[Mapping[Backend, str]] = {
    Backend.METADATA: "metadata",
    Backend.ONDEMAND: "on-demand articles",
    Backend.STRUCTURED: "structured contents",
    Backend.REALTIME: "the stream",
    Backend.LOOKUP_FIELDS_ONLY: "Wikidata look-ups",
    Backend.ARCHIVE: "archives",
}
COST: Final[Mapping[Backend, str]] = {
    Backend.METADATA: "{records} is requested, and filtered here; a list is one answer and not metered",
    Backend.ONDEMAND: "{records} is requested, and filtered here; of one project that is one record",
    Backend.STRUCTURED: "{records} is requested, and filtered here; of one project that is one record",
    Backend.REALTIME: "{records} is requested, and filtered here, of the stream's traffic and at its pace",
    Backend.ARCHIVE: "{records} is read, and filtered here",
}
ONE_RECORD: Final = "is_part_of.identifier"
LIMITED: Final = frozenset({Backend.ONDEMAND, Backend.STRUCTURED})
MAX_LIMIT: Final = 10
MAX_ITEMS: Final = 255

ALIASES: Final[Mapping[str, str]] = {
    # The published documentation and older samples use these names; the server has the others.
    "visibility.user": "visibility.editor",
}
STRUCTURED_ALIASES: Final[Mapping[str, str]] = {"article_sections": "sections", "infobox": "infoboxes"}

# Copied from the stored article, and computed anew for each request. Other names are ignored by the server.
_STORED: Final = frozenset(
    [
        *("name", "identifier", "abstract", "version", "url", "date_created", "date_modified", "main_entity"),
        *("is_part_of", "additional_entities", "in_language", "image", "license"),
    ]
)
COMPUTED: Final = frozenset({"description", "infoboxes", "sections", "tables", "references", "attribution"})

_AVRO: Final[Mapping[str, str]] = {
    "version.size": "version.sizes",
    "version.diff.size": "version.diff.sizes",
    "is_part_of.size": "is_part_of.sizes",
    "image.content_url": "image.contentUrl",
}
# The Avro names of the two sides of a probability are swapped: asking for `truthy` is answered with the key `false`.
_AVRO_PROBABILITY: Final[Mapping[str, str]] = {"true": "falsy", "false": "truthy"}
_OFF_STREAM: Final = frozenset({"has_parts", "is_part_of.alternate_name", "is_part_of.code"})
_STREAM_IMAGE: Final = frozenset({"content_url", "width", "height", "alternative_text", "caption"})
# Added to an event after fields are chosen and filters applied: not names that the server knows.
_POSITION: Final = re.compile(r"(?:.*\.)?event\.(?:partition|offset)")

_SIMPLE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN_TEXT: Final = re.compile(r"[^'\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_STREAM_INTEGERS: Final = 1_000_000
_EXACT_FLOATS: Final = 2**53
_SQL_INTEGERS: Final = 2**31


def check_served(backend: Backend, name: str) -> None:
    """Raise if a back end lacks a name of its model.

    Raises:
        ValueError: It lacks the name; the message has the server's behaviour.
    """
    top = name.partition(".")[0]
    if backend is Backend.STRUCTURED and top not in _STORED | COMPUTED:
        raise ValueError(
            f"{name!r} is not served on demand: the server would ignore it, and send all basic fields if nothing else"
            " was asked for"
        )
    if backend is Backend.REALTIME and (name in _OFF_STREAM or top in _OFF_STREAM):
        raise ValueError(f"{name!r} is not on the stream: the server does not know it there")


def reach(backend: Backend, place: Place) -> Iterator[str]:
    """Yield the JSON names to request so that the value of a name arrives whole and correct."""
    yield min(_cuts(backend, place), key=lambda name: name.count("."))
    if backend is Backend.STRUCTURED and place.name.partition(".")[0] == "tables":
        # Tables are computed with the sections, and only if those are requested.
        yield "sections"


def _cuts(backend: Backend, place: Place) -> Iterator[str]:
    yield place.name
    segments = place.name.split(".")
    for step, shape in enumerate(place.above):
        if backend is Backend.REALTIME:
            if step and (shape.values is not None or shape.always_sent - {segments[step]}):
                # Fields that the server always writes are false or zero if the request names their siblings alone.
                yield place.ancestor(step)
        elif step and (
            shape.is_list or shape.folded or (shape.values is not None and not _SIMPLE_KEY.fullmatch(segments[step]))
        ):
            # A path into a list matches nothing, and the response then has an empty object.
            yield place.ancestor(step)
    if backend is Backend.REALTIME and _POSITION.fullmatch(place.name):
        yield place.ancestor(len(segments) - 1)
    if backend is Backend.REALTIME and segments[0] == "image":
        # Of the newer keys of an image the stream may know none; it knows the image.
        yield "image"
    if backend is Backend.STRUCTURED and segments[0] in COMPUTED:
        yield segments[0]


def as_asked(backend: Backend, names: Iterable[str], requested: Iterable[str]) -> bool:
    """Return whether the response to `requested` has exactly the fields `names`."""
    fields, sent = set(names), set(requested)
    if backend is Backend.REALTIME:
        return set(kept(backend, fields)) == set(kept(backend, sent))
    if backend is Backend.LOOKUP_FIELDS_ONLY:
        return False  # too little is known of its rules
    if backend in LIMITED and any("." in name for name in sent):
        return False  # the response has an empty object where a path matches nothing
    if backend is Backend.STRUCTURED and "sections" in sent:
        sent.add("tables")  # the response has both
    return fields == sent


def kept(backend: Backend, names: Iterable[str]) -> list[str]:
    """Return the names that a record is reduced to for these fields."""
    if backend is not Backend.REALTIME:
        return list(names)
    # Every stream requests the event, since its position is needed to resume.
    return [*(name for name in names if name.partition(".")[0] != "event"), "event"]


def spelled(backend: Backend, place: Place) -> str:
    """Return a field's name as the back end spells it."""
    if backend is not Backend.REALTIME:
        return place.name
    name = avro(place.name)
    # On a list of strings or an open object the wildcard is accepted and means the same as none.
    return f"{name}.*" if place.shape.whole else name


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Return a dotted name with its beginning replaced, if that is one of these names."""
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def avro(name: str) -> str:
    """Return the Avro name that the stream knows a JSON name by."""
    name = renamed(name, _AVRO)
    parent, _, last = name.rpartition(".")
    if parent.endswith(".probability"):
        return f"{parent}.{_AVRO_PROBABILITY.get(last, last)}"
    return name


def not_sent(backend: Backend, place: Place, value: Value) -> str | None:
    """Return why a filter must not be sent, or `None` if the server applies it exactly."""
    if backend is Backend.ARCHIVE:
        return "archives come whole"
    if backend is Backend.METADATA:
        return _not_in_sql(place, value)
    if backend is Backend.REALTIME:
        return _not_on_stream(place, value)
    return _not_in_json(backend, place, value)


def _not_in_sql(place: Place, value: Value) -> str | None:
    if isinstance(value, bool):
        return "the server drops a filter on a boolean"
    if isinstance(value, str):
        if not value:
            return "the server leaves empty strings out, and finds nothing for what is left out"
        return None if _PLAIN_TEXT.fullmatch(value) else "the server fails on an apostrophe or control character"
    if isinstance(value, int) and "namespace.identifier" in place.name and 0 <= value < _SQL_INTEGERS:
        return None
    return 'the server takes a number to mean "greater than"'


def _not_on_stream(place: Place, value: Value) -> str | None:
    top, _, below = place.name.partition(".")
    if _POSITION.fullmatch(place.name) or (top == "image" and below not in _STREAM_IMAGE):
        return "the server does not know this name"
    if any(shape.values is not None for shape in place.above) or len(place.shape.leaves) != 1:
        return "the server cannot compare it"
    if place.shape.leaves == {float}:
        return "the server never finds a number with a fraction"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _STREAM_INTEGERS:
        return "the server never finds a whole number of 1,000,000 or more"
    return None


def _not_in_json(backend: Backend, place: Place, value: Value) -> str | None:
    if not value and place.name != "namespace.identifier":
        return "the server leaves out what is false, zero or empty, and finds nothing for what is left out"
    if isinstance(value, int) and abs(value) > _EXACT_FLOATS:
        return "the server rounds a whole number of this size"
    if backend is Backend.STRUCTURED and place.name.partition(".")[0] in COMPUTED:
        return "the server compares before it computes this field"
    if any(shape.values is not None for shape in place.above):
        return "the server reads punctuation in a key as part of a path"
    return None


def evidence(backend: Backend, place: Place) -> str:
    """Return the name to request so that a filter can be applied here.

    An absent object has no parts and matches nothing; a present one that lacks a part has it false, zero or empty. If
    the response to a dotted name does not distinguish the two, the whole object is requested.
    """
    parent = place.name.rpartition(".")[0]
    return place.name if backend is Backend.REALTIME or not parent else parent
