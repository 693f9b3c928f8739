"""The fields of the streams and their names, and the server's way of pruning and filtering by them.

The service asks for fields by the names of its internal (Avro) schema. Most are those of the JSON, some are not
(`version.sizes` is `size`), some are accepted and never written, and two pairs are swapped. Pruning zeroes all
other fields; zeros that the JSON always writes then appear in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

_ZERO: Final[dict[str, Any]] = {"string": "", "int": 0, "float": 0.0, "bool": False}


@dataclass(frozen=True)
class Leaf:
    """A field without fields: its kind (string, int, float, bool, time, strings) and its JSON key, if it has one."""

    kind: str
    json: str | None


@dataclass(frozen=True)
class Node:
    """An object, or a list of objects.

    Attributes:
        fields: Its fields by internal name.
        json: Its JSON key; None if it is never written.
        many: Whether it is a list.
        open: Whether it takes any key, as a map does.
        zeros: JSON keys that are written even when zero, with that zero.
    """

    fields: Mapping[str, "Leaf | Node"]
    json: str | None = None
    many: bool = False
    open: bool = False
    zeros: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> "Leaf | Node | None":
        """Return the field of a dotted name, or None."""
        field: Leaf | Node | None = self
        for part in name.split("."):
            if not isinstance(field, Node):
                return None
            field = field.fields.get(part) or (Node({}, json=part, open=True) if field.open and part else None)
        return field


def _fields(leaves: str, **nodes: Node) -> dict[str, Leaf | Node]:
    """Read `name:kind` or `name:kind:json` (an empty json is never written), and take nodes by their name."""
    words = (word.split(":") for word in leaves.split())
    return {
        **{name: Leaf(kind, (json[0] or None) if json else name) for name, kind, *json in words},
        **{name: node if node.json is not None or node.open else _named(node, name) for name, node in nodes.items()},
    }


def _named(node: Node, name: str | None) -> Node:
    return Node(node.fields, json=name, many=node.many, open=node.open, zeros=node.zeros)


def _object(leaves: str = "", *, many: bool = False, zeros: Mapping[str, Any] | None = None, **nodes: Node) -> Node:
    return Node(_fields(leaves, **nodes), many=many, zeros=zeros or {})


_EVENT = _object(
    "identifier:string type:string date_created:time date_published:time fail_count:int fail_reason:string "
    # A pointer, which no value of a filter can be converted to.
    "is_internal_message:pointer:"
)
_SIZE = _object("value:float unit_text:string")
_LINKS = _object("name:string url:string", many=True)
_LICENSE = _object("name:string identifier:string url:string", many=True)
_NAMESPACE = _object(
    "name:string identifier:int alternate_name:string description:string", zeros={"identifier": 0}, event=_EVENT
)
_LANGUAGE = _object("identifier:string name:string alternate_name:string direction:string", event=_EVENT)
_PROJECT = _object(
    "name:string identifier:string url:string version:string additional_type:string date_modified:time",
    namespace=_NAMESPACE,
    in_language=_LANGUAGE,
    sizes=_named(_SIZE, "size"),
    event=_EVENT,
)
_EDITOR = _object(
    "identifier:int name:string edit_count:int groups:strings is_bot:bool is_anonymous:bool is_admin:bool "
    "is_patroller:bool has_advanced_rights:bool date_started:time"
)
_SCORE = _object("prediction:bool", probability=_object("truthy:float:false falsy:float:true"))
_DELTA_ZEROS: Final[dict[str, Any]] = dict.fromkeys(
    ("increase", "decrease", "sum", "proportional_increase", "proportional_decrease"), 0
)
_DELTA = _object(
    "increase:int decrease:int sum:int proportional_increase:float proportional_decrease:float", zeros=_DELTA_ZEROS
)


def _hidden(leaves: str, *, many: bool = False) -> Node:
    """Return a node that requests may name and records never have."""
    return Node(_fields(leaves), json="", many=many)


_SCORES = _object(
    damaging=_SCORE,
    goodfaith=_SCORE,
    revertrisk=_SCORE,
    referencerisk=_object(
        "reference_count:int: reference_risk_score:float",
        zeros={"reference_risk_score": 0},
        survival_ratio=_hidden("min:float mean:float median:float"),
        references=_hidden("url:string domain_name:string", many=True),
    ),
    referenceneed=_object("reference_need_score:float", zeros={"reference_need_score": 0}),
)
_VERSION = _object(
    "identifier:int comment:string tags:strings is_minor_edit:bool is_flagged_stable:bool has_tag_needs_citation:bool "
    "number_of_characters:int is_breaking_news:bool noindex:bool",
    scores=_SCORES,
    editor=_EDITOR,
    sizes=_named(_SIZE, "size"),
    event=_EVENT,
    diff=_object(
        "longest_new_repeated_character:int",
        dictionary_words=_DELTA,
        non_dictionary_words=_DELTA,
        non_safe_words=_DELTA,
        informal_words=_DELTA,
        uppercase_words=_DELTA,
        sizes=_named(_SIZE, "size"),
    ),
    maintenance_tags=_object("citation_needed_count:int pov_count:int clarification_needed_count:int update_count:int"),
)
_PROTECTION = _object("type:string level:string expiry:string", many=True)
_VISIBILITY = _object("text:bool editor:bool comment:bool", zeros=dict.fromkeys(("text", "editor", "comment"), False))

ARTICLE: Final = _object(
    "name:string identifier:int abstract:string date_created:time date_modified:time date_previously_modified:time "
    "version_identifier:string: url:string watchers_count:int",
    protection=_PROTECTION,
    version=_VERSION,
    previous_version=_object("identifier:int number_of_characters:int"),
    namespace=_NAMESPACE,
    in_language=_LANGUAGE,
    main_entity=_object("identifier:string url:string aspects:strings"),
    additional_entities=_object("identifier:string url:string aspects:strings", many=True),
    categories=_LINKS,
    templates=_LINKS,
    redirects=_LINKS,
    is_part_of=_PROJECT,
    article_body=_object("html:string wikitext:string"),
    license=_LICENSE,
    visibility=_VISIBILITY,
    event=_EVENT,
    image=_object(
        "contentUrl:string:content_url width:int height:int alternative_text:string caption:string",
        thumbnail=_hidden("contentUrl:string width:int height:int"),
    ),
)
"""What `/v2/articles` of the realtime host knows."""

_ANY: Final = Node({}, open=True)

ENTITY: Final = _object(
    "name:string identifier:int date_created:time date_modified:time date_previously_modified:time url:string",
    protection=_PROTECTION,
    version=_VERSION,
    namespace=_NAMESPACE,
    redirects=_LINKS,
    is_part_of=_PROJECT,
    license=_LICENSE,
    visibility=_VISIBILITY,
    event=_EVENT,
    entity=_object(
        "identifier:string type:string",
        labels=_named(_ANY, "labels"),
        descriptions=_named(_ANY, "descriptions"),
        aliases=_named(_ANY, "aliases"),
        statements=_named(_ANY, "statements"),
        sitelinks=_named(_ANY, "sitelinks"),
    ),
)
"""What `/v2/wikidata` of the realtime host is taken to know; the service has not published its rules."""


def leaves(schema: Node, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield the fields that a request may name without a wildcard, by dotted name."""
    for name, below in schema.fields.items():
        if isinstance(below, Leaf):
            yield prefix + name, below
        else:
            yield from leaves(below, f"{prefix}{name}.")


@dataclass(frozen=True)
class _Keep:
    children: Mapping[str, "_Keep | None"]  # None keeps all below
    zeros: Mapping[str, Any]


def compile_fields(schema: Node, names: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Make the function that zeroes everything but the named fields, which must be known to the schema.

    A zeroed value vanishes from the JSON, except the few that are always written and then say 0 or false. A wildcard
    on an object wins over single fields of it.
    """
    return partial(_prune, _keep(schema, [name.split(".") for name in names]))


def _keep(node: Leaf | Node, paths: list[list[str]]) -> _Keep | None:
    if isinstance(node, Leaf) or any(path in ([], ["*"]) for path in paths):
        return None
    children: dict[str, _Keep | None] = {}
    for first in dict.fromkeys(path[0] for path in paths):
        below = node.find(first)
        if below is not None and below.json:
            children[below.json] = _keep(below, [path[1:] for path in paths if path[0] == first])
    return _Keep(children, node.zeros)


def _prune(keep: _Keep | None, value: Any) -> Any:
    if keep is None or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [_prune(keep, item) for item in value]
    return {
        key: _prune(keep.children[key], below) if key in keep.children else keep.zeros[key]
        for key, below in value.items()
        if key in keep.children or key in keep.zeros
    }


def compile_filters(schema: Node, filters: Mapping[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Make the function that tells whether a record passes all filters, which must be valid for the schema.

    Numbers take a detour through text on the service: an integer of a million or more, and any fraction, never match;
    filters on float fields never match at all. All elements of a list must match, and an empty list passes. An object
    that is not there fails. Absent values are zero.
    """
    tests: list[tuple[list[tuple[str, bool]], str | None, str, Any]] = []
    for name, value in filters.items():
        steps: list[tuple[str, bool]] = []
        node: Leaf | Node = schema
        for part in name.split("."):
            below = node.find(part) if isinstance(node, Node) else None
            assert below is not None, "filters are checked before they are compiled"
            node = below
            if isinstance(node, Node):
                steps.append((node.json or "", node.many))
        assert isinstance(node, Leaf), "filters are checked before they are compiled"
        tests.append((steps, node.json, node.kind, value))

    def passes(record: dict[str, Any]) -> bool:
        return all(_passes(record, *test) for test in tests)

    return passes


def _passes(record: Any, steps: Sequence[tuple[str, bool]], leaf: str | None, kind: str, expected: Any) -> bool:
    for number, (key, many) in enumerate(steps):
        below = record.get(key)
        if many:
            return all(_passes(item, steps[number + 1 :], leaf, kind, expected) for item in below or ())
        if below is None:
            return False
        record = below
    if kind == "float" or (kind == "int" and (expected != int(expected) or abs(expected) >= 1_000_000)):
        return False
    value = _ZERO[kind] if leaf is None else record.get(leaf, _ZERO[kind])
    return bool(value == expected)
