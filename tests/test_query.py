"""A query returns what plain Python would, or is refused before anything is sent.

The three back ends are modelled here from what is known of the server, without a line of the package: SQL over JSON
lines (`sql`), paths into JSON (`json_paths`, `structured`), and reflection over an Avro schema (`stream`).
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async._query.query import Backend, Query, Value, fields_of, filter_type, filter_types  # private: pure
from wme_async.models import (
    Article,
    Batch,
    Code,
    Namespace,
    Project,
    Size,
    Snapshot,
    StructuredContent,
    Version,
    WikidataArticle,
)

Json = dict[str, Any]
Body = Mapping[str, Any]
Server = Callable[[Mapping[str, Any], list[dict[str, Any]]], list[dict[str, Any]]]
DATA = Path(__file__).parents[2] / "shared" / "data"
MISSING = object()
Case = tuple[list[Json], list[str] | None, dict[str, Value]]


# --- the server, three times -----------------------------------------------------------------------------------------


class Refused(AssertionError):
    """The server would answer this request with an error, and so it must never be sent."""


def dig(record: Any, name: str) -> Any:
    for key in name.split("."):
        if not isinstance(record, dict) or key not in record:
            return MISSING
        record = record[key]
    return record


def sql(body: Body, records: list[Json]) -> list[Json]:
    """Metadata lists: S3 Select."""

    def passes(record: Json, field: str, value: Any) -> bool:
        item = dig(record, field)
        if isinstance(value, bool):
            return True
        if isinstance(value, str):
            if "'" in value:
                raise Refused("500")
            return bool(item == value)
        if isinstance(item, bool) or not isinstance(item, int | float):
            return False
        return int(item) == int(value) if "namespace.identifier" in field else item > value

    assert set(body) <= {"fields", "filters"}
    rows = [r for r in records if all(passes(r, f["field"], f["value"]) for f in body.get("filters", []))]
    fields = body.get("fields", ["*"])
    if "*" in fields:
        return rows
    return [{f.replace(".", "__"): v for f in fields if (v := dig(row, f)) is not MISSING} for row in rows]


def equal(found: Any, value: Any) -> bool:
    return isinstance(found, bool) is isinstance(value, bool) and bool(found == value)


def chosen(body: Body, records: list[Json]) -> list[Json]:
    """On demand, some of the records that pass, in any order."""
    passing = [r for r in records if all(equal(dig(r, f["field"]), f["value"]) for f in body.get("filters", []))]
    return random.Random(0).sample(passing, min(len(passing), body.get("limit", 3)))


def json_paths(body: Body, records: list[Json]) -> list[Json]:
    """On-demand articles: gjson."""

    def build(record: Json, index: Json) -> Json:
        out = {}
        for key, path in index.items():
            if isinstance(path, dict):
                out[key] = build(record, path)
            elif (item := dig(record, path)) is not MISSING:
                out[key] = item
        return out

    index: Json = {}
    for field in body.get("fields", []):
        name, inner = field.removesuffix(".*"), index
        *parents, last = name.split(".")
        for parent in parents:
            if not isinstance(inner.get(parent), dict):
                inner[parent] = {}
            inner = inner[parent]
        inner[last] = name
    rows = chosen(body, records)
    return [build(row, index) for row in rows] if index else rows


BASE = [
    "name",
    "identifier",
    "abstract",
    "version",
    "url",
    "date_created",
    "date_modified",
    "main_entity",
    "is_part_of",
]
BASE += ["additional_entities", "in_language", "image", "license"]


def structured(body: Body, records: list[Json]) -> list[Json]:
    """Structured contents: the stored fields through paths, the others made for the request."""
    rows = []
    fields = body.get("fields", [])
    tops = {field.partition(".")[0] for field in fields}
    made = {"description", "infoboxes", "references", "attribution"} & tops
    made |= {"sections", "tables"} if "sections" in tops else set()
    stored_names = [field for field in fields if field.partition(".")[0] in BASE]
    if not fields:
        made, stored_names = {"description", "infoboxes", "references", "attribution", "sections", "tables"}, BASE
    elif not stored_names and not made:
        stored_names = BASE
    computed = {"description", "infoboxes", "references", "attribution", "sections", "tables"}
    stored = [{key: value for key, value in record.items() if key not in computed} for record in records]
    by_project = {record["is_part_of"]["identifier"]: record for record in records}
    for row in chosen(body, stored):
        out = json_paths({"fields": stored_names}, [row])[0] if stored_names else {}
        whole = by_project[row["is_part_of"]["identifier"]]
        rows.append(out | {key: whole[key] for key in made if key in whole})
    return rows


# Name on the wire, name in the Avro schema, type; `!` is written even if zero, `None` has no Avro name.
EVENT = [("identifier", "identifier", str), ("type", "type", str), ("partition", None, int), ("offset", None, int)]
PROBABILITY = [("false", "truthy", float), ("true", "falsy", float)]
SCORES = [
    ("revertrisk", "revertrisk", [("prediction", "prediction", bool), ("probability", "probability", PROBABILITY)]),
    ("referencerisk", "referencerisk", [("reference_risk_score!", "reference_risk_score", float)]),
]
SIZES = [("value", "value", float), ("unit_text", "unit_text", str)]
SCHEMA: list[Any] = [
    ("name", "name", str),
    ("identifier", "identifier", int),
    ("watchers_count", "watchers_count", int),
    (
        "version",
        "version",
        [
            ("identifier", "identifier", int),
            ("comment", "comment", str),
            ("is_minor_edit", "is_minor_edit", bool),
            ("tags", "tags", [str]),
            ("size", "sizes", SIZES),
            ("scores", "scores", SCORES),
            ("editor", "editor", [("name", "name", str), ("is_bot", "is_bot", bool), ("groups", "groups", [str])]),
            (
                "diff",
                "diff",
                [
                    ("informal_words", "informal_words", [("increase!", "increase", int), ("sum!", "sum", int)]),
                    ("size", "sizes", SIZES),
                ],
            ),
        ],
    ),
    ("namespace", "namespace", [("identifier!", "identifier", int), ("name", "name", str)]),
    ("main_entity", "main_entity", [("identifier", "identifier", str), ("aspects", "aspects", [str])]),
    ("categories", "categories", ["each", ("name", "name", str), ("url", "url", str)]),
    ("is_part_of", "is_part_of", [("identifier", "identifier", str), ("url", "url", str)]),
    ("in_language", "in_language", [("identifier", "identifier", str)]),
    ("visibility", "visibility", [("text!", "text", bool), ("editor!", "editor", bool), ("comment!", "comment", bool)]),
    ("image", "image", [("content_url", "contentUrl", str), ("width", "width", int)]),
    ("event", "event", EVENT),
]


def kind_of(type_: Any) -> str:
    if not isinstance(type_, list):
        return "leaf"
    if type_[0] is str:
        return "strings"
    return "objects" if type_[0] == "each" else "object"


def stream(body: Body, records: list[Json]) -> list[Json]:
    """The stream: a struct with pointers for objects, zeros for what is absent, and names from Avro tags."""

    def find(name: str) -> Any:
        level, entry = SCHEMA, None
        for part in name.split("."):
            entry = next((row for row in level if row != "each" and row[1] == part), None)
            if entry is None:
                return None
            level = entry[2] if kind_of(entry[2]) in {"object", "objects"} else []
        return entry

    def keeps(value: Any, level: list[Any], path: list[str], wanted: str) -> bool:
        """Compare as text, as the server does."""
        wire, _, type_ = next(row for row in level if row != "each" and row[1] == path[0])
        entry = value.get(wire.rstrip("!"))
        if len(path) > 1:
            return entry is not None and keeps(entry, type_, path[1:], wanted)
        entry = type_() if entry is None else entry
        if type_ is float:
            return False
        if type_ is int:
            return wanted.lstrip("-").isdigit() and entry == int(wanted)
        return bool((str(entry).lower() if type_ is bool else entry) == wanted)

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return value
        return "1e+06" if abs(value) >= 1_000_000 else repr(value).removesuffix(".0")

    def prune(value: Json, level: list[Any], paths: list[list[str]]) -> Json:
        out = {}
        for row in level:
            if row == "each":
                continue
            wire, avro, type_ = row
            name, always = wire.rstrip("!"), wire.endswith("!")
            below = [path[1:] for path in paths if path[0] == avro or path[0] == "*"]
            if not below:
                if always:
                    out[name] = type_()
            elif name not in value:
                continue
            elif kind_of(type_) == "object":
                out[name] = prune(value[name], type_, [path or ["*"] for path in below])
            elif kind_of(type_) == "objects":
                out[name] = [prune(item, type_, [path or ["*"] for path in below]) for item in value[name]]
            elif avro is not None:
                out[name] = value[name]
        return out

    fields, filters = body.get("fields", []), body.get("filters", [])
    assert set(body) <= {"fields", "filters"}
    for field in fields:
        entry = find(field.removesuffix(".*"))
        if entry is None or (kind_of(entry[2]) in {"object", "objects"} and not field.endswith(".*")):
            raise Refused(f"422 {field}")
    for one in filters:
        entry = find(one["field"])
        if entry is None or kind_of(entry[2]) != "leaf" or isinstance(one["value"], str) is not (entry[2] is str):
            raise Refused(f"422 {one}")
    rows = []
    for record in records:
        if all(keeps(record, SCHEMA, f["field"].split("."), text(f["value"])) for f in filters):
            row = prune(record, SCHEMA, [field.split(".") for field in fields]) if fields else dict(record)
            if "event" in row:
                row["event"] = row["event"] | {
                    "partition": record["event"]["partition"],
                    "offset": record["event"]["offset"],
                }
            rows.append(row)
    return rows


# --- plain Python ----------------------------------------------------------------------------------------------------


def satisfies(record: Json, name: str, value: Any) -> bool:
    *parents, last = name.split(".")
    holder = dig(record, ".".join(parents)) if parents else record
    return isinstance(holder, dict) and equal(holder.get(last, type(value)()), value)


def reduced(record: Any, names: list[str], *, hollow: bool) -> Any:
    """What the names select; unless `hollow`, `MISSING` where that is nothing."""
    if "" in names:
        return record
    if isinstance(record, list):
        return [{} if (part := reduced(item, names, hollow=hollow)) is MISSING else part for item in record]
    out = {}
    for key, value in record.items():
        below = [
            "" if name == key else name[len(key) + 1 :] for name in names if name == key or name.startswith(key + ".")
        ]
        if below and (part := reduced(value, below, hollow=hollow)) is not MISSING:
            out[key] = part
    return out if out or hollow else MISSING


def expected(
    records: list[Json], fields: list[str] | None, filters: Mapping[str, Value], *, hollow: bool = False
) -> list[Json]:
    rows = [record for record in records if all(satisfies(record, *one) for one in filters.items())]
    if fields is None or "*" in fields:
        return rows
    names = [name.removesuffix(".*") for name in fields]
    return [{} if (row := reduced(record, names, hollow=hollow)) is MISSING else row for record in rows]


def with_event(fields: list[str] | None) -> list[str] | None:
    return None if fields is None else [*fields, "event"]


def canonical(record: Json) -> str:
    return json.dumps(record, sort_keys=True)


# --- random records and queries --------------------------------------------------------------------------------------

TEXTS = ["en", "fr", "", "it's", "Q42", "a\nb", "東京", 'x"y', "?", "__"]
NUMBERS = [0, 1, 14, 999_999, 1_000_000, 1_234_567, -1, -2_000_000]
FLOATS = [0.0, 0.5, 1.0, 3.25, 1e-9]
LEAVES: dict[type, st.SearchStrategy[Any]] = {
    str: st.sampled_from(TEXTS),
    int: st.sampled_from(NUMBERS),
    float: st.sampled_from(FLOATS),
    bool: st.booleans(),
}


@st.composite
def objects(draw: st.DrawFn, schema: list[Any]) -> Json:
    """A record as the server writes it: zeros, empty strings and empty lists are left out, but for some keys."""
    out: Json = {}
    for row in schema:
        if row == "each":
            continue
        name, _, type_ = row
        always, name = name.endswith("!"), name.rstrip("!")
        kind = kind_of(type_)
        if kind == "leaf":
            value = draw(LEAVES[type_])
            if value or always or (schema is EVENT and name in {"partition", "offset"}):
                out[name] = value
        elif draw(st.integers(0, 3)):
            if kind == "object":
                out[name] = draw(objects(type_))
            elif items := draw(st.lists(LEAVES[str] if kind == "strings" else objects(type_), max_size=2)):
                out[name] = items
    return out


@st.composite
def record_lists(draw: st.DrawFn, schema: list[Any]) -> list[Json]:
    """Records of distinct projects, as the pages of one title are."""
    records = draw(st.lists(objects(schema), max_size=6))
    for number, record in enumerate(records):
        part = {
            **record.get("is_part_of", {}),
            "identifier": ("enwiki", "frwiki")[number] if number < 2 else f"p{number}",
        }
        record["is_part_of"] = part
        if "event" in record or schema is SCHEMA:
            record["event"] = {"partition": 0, "offset": number, **record.get("event", {})}
    return records


def names_in(schema: list[Any], prefix: str = "", *, listed: bool = False) -> list[tuple[str, Any, bool]]:
    names = []
    for row in schema:
        if row != "each":
            name, type_ = prefix + row[0].rstrip("!"), row[2]
            names.append((name, type_, listed))
            if kind_of(type_) in {"object", "objects"}:
                names += names_in(type_, f"{name}.", listed=listed or kind_of(type_) == "objects")
    return names


@st.composite
def cases(draw: st.DrawFn, schema: list[Any]) -> tuple[list[Json], list[str] | None, dict[str, Value]]:
    """Records and a query, half of whose filters are for what one of the records has."""
    records = draw(record_lists(schema))
    names = names_in(schema)
    spelled = [n for n, _, _ in names] + [f"{n}.*" for n, t, _ in names if kind_of(t) != "leaf"]
    fields = draw(st.none() | st.just(["*"]) | st.lists(st.sampled_from(spelled), min_size=1, max_size=4))
    single = {n: t for n, t, listed in names if kind_of(t) == "leaf" and not listed}
    filters: dict[str, Value] = {}
    for name in draw(st.lists(st.sampled_from(sorted(single)), max_size=2)):
        zero = single[name]()
        values: list[Any] = [value for record in records if (value := dig(record, name)) is not MISSING]
        filters[name] = draw(st.sampled_from([*values, zero]) if draw(st.booleans()) else LEAVES[single[name]])
    if draw(st.booleans()):
        filters["is_part_of.identifier"] = draw(st.sampled_from(["enwiki", "frwiki", "p9"]))
    return records, fields, filters


def through(query: Query, server: Server, records: list[Json]) -> list[Json]:
    body = json.loads(json.dumps(query.body()))
    if server is stream and "fields" in body:
        body["fields"].append("event.*")  # as every stream does, to know its position
    answer: list[Json] = json.loads(json.dumps(server(body, records)))
    if not query.reshapes and not query.selects:
        return answer
    return [item for row in answer if (item := query.apply(row)) is not None]


METADATA = [
    row
    for row in SCHEMA
    if row[0] in {"name", "identifier", "namespace", "is_part_of", "in_language", "version", "event"}
]


@given(cases(METADATA))
def test_metadata_answers_what_plain_python_does(case: Case) -> None:
    records, fields, filters = case
    built = Query.build("metadata", Article, fields=fields, filters=filters)
    assert through(built, sql, records) == expected(records, fields, filters)


@given(cases(SCHEMA))
def test_the_stream_answers_what_plain_python_does(case: Case) -> None:
    records, fields, filters = case
    built = Query.build("realtime", Article, fields=fields, filters=filters)
    assert through(built, stream, records) == expected(records, with_event(fields), filters, hollow=True)


@given(cases(SCHEMA), st.none() | st.integers(1, 10))
def test_articles_on_demand_are_those_of_plain_python_or_refused(case: Case, limit: int | None) -> None:
    records, fields, filters = case
    empty = any(not value for name, value in filters.items() if name != "namespace.identifier")
    if empty and not filters.get("is_part_of.identifier"):
        with pytest.raises(ValueError, match="cannot be answered"):
            Query.build("ondemand", Article, fields=fields, filters=filters, limit=limit)
        return
    built = Query.build("ondemand", Article, fields=fields, filters=filters, limit=limit)
    rows, expected_rows = through(built, json_paths, records), expected(records, fields, filters)
    assert all(row in expected_rows for row in rows)
    assert len(rows) == min(len(expected_rows), limit or 3)


COMPUTED: list[Any] = [
    ("description", "", str),
    ("sections", "", ["each", ("name", "", str), ("value", "", str)]),
    ("tables", "", ["each", ("identifier", "", str)]),
    ("references", "", ["each", ("identifier", "", str), ("text", "", [("value", "", str)])]),
    ("attribution", "", [("parsed_references_count", "", int), ("last_revised", "", str)]),
]
STRUCTURED = [row for row in SCHEMA if row[0] in BASE] + COMPUTED


@given(cases(STRUCTURED), st.none() | st.integers(1, 10))
def test_structured_contents_are_those_of_plain_python_or_refused(case: Case, limit: int | None) -> None:
    records, fields, filters = case
    computed = {row[0] for row in COMPUTED}
    blind = any(not value or name.partition(".")[0] in computed for name, value in filters.items())
    if blind and not filters.get("is_part_of.identifier"):
        with pytest.raises(ValueError, match="cannot be answered"):
            Query.build("structured", StructuredContent, fields=fields, filters=filters, limit=limit)
        return
    built = Query.build("structured", StructuredContent, fields=fields, filters=filters, limit=limit)
    rows, expected_rows = through(built, structured, records), expected(records, fields, filters)
    assert all(row in expected_rows for row in rows)
    assert len(rows) == min(len(expected_rows), limit or 3)


VALUES: dict[type, list[Any]] = {str: TEXTS, int: NUMBERS, float: FLOATS, bool: [True, False]}


def written(rng: random.Random, schema: list[Any]) -> Json:
    """The same as `objects`, without a test that draws."""
    out: Json = {}
    for row in schema:
        if row == "each" or (schema is EVENT and row[1] is None):
            continue
        name, _, type_ = row
        kind = kind_of(type_)
        if kind == "leaf":
            value = rng.choice(VALUES[type_])
            if value or name.endswith("!"):
                out[name.rstrip("!")] = value
        elif rng.random() < 0.8:
            if kind == "object":
                out[name] = written(rng, type_)
            elif items := [
                rng.choice(TEXTS) if kind == "strings" else written(rng, type_) for _ in range(rng.randrange(3))
            ]:
                out[name] = items
    return out


def every_record(schema: list[Any], count: int) -> list[Json]:
    rng = random.Random(1)
    records = [written(rng, schema) for _ in range(count)]
    for number, record in enumerate(records):
        record["is_part_of"] = {**record.get("is_part_of", {}), "identifier": f"p{number}"}
        if any(row[0] == "event" for row in schema):
            record["event"] = {**record.get("event", {}), "partition": number % 50, "offset": number}
    return records


LOOK_UPS = {"ondemand", "structured"}
PROJECT = "is_part_of.identifier"
BACK_ENDS = pytest.mark.parametrize(
    ("backend", "server", "model", "schema"),
    [
        ("metadata", sql, Article, METADATA),
        ("realtime", stream, Article, SCHEMA),
        ("ondemand", json_paths, Article, SCHEMA),
        ("structured", structured, StructuredContent, STRUCTURED),
    ],
)


@BACK_ENDS
def test_every_single_field_is_what_plain_python_says(
    backend: str, server: Server, model: Any, schema: list[Any]
) -> None:
    records = every_record(schema, 10)
    for name, type_, _ in names_in(schema):
        for spelled in [name] if kind_of(type_) == "leaf" else [name, f"{name}.*"]:
            query = Query.build(backend, model, fields=[spelled], limit=10 if backend in LOOK_UPS else None)
            answers = through(query, server, records)
            asked = with_event([spelled]) if backend == "realtime" else [spelled]
            expected_rows = expected(records, asked, {}, hollow=backend == "realtime")
            assert sorted(map(canonical, answers)) == sorted(map(canonical, expected_rows)), spelled


@BACK_ENDS
def test_every_single_filter_is_what_plain_python_says(
    backend: str, server: Server, model: Any, schema: list[Any]
) -> None:
    records = every_record(schema, 30)
    for name, type_, listed in names_in(schema):
        if listed or kind_of(type_) != "leaf":
            continue
        for value in VALUES[type_]:
            for fields in (None, ["name"], [name]):
                projects: Iterable[int | None] = range(0, 30, 6) if backend in LOOK_UPS and name != PROJECT else [None]
                for project in projects:
                    filters = {name: value} if project is None else {name: value, PROJECT: f"p{project}"}
                    try:
                        query = Query.build(backend, model, fields=fields, filters=filters)
                    except ValueError:
                        assert (name, value) == (PROJECT, "")
                        continue
                    asked = with_event(fields) if backend == "realtime" else fields
                    expected_rows = expected(records, asked, filters, hollow=backend == "realtime")
                    assert through(query, server, records) == expected_rows, query.explain()


# --- each quirk, by itself -------------------------------------------------------------------------------------------


def build(backend: str, fields: list[str] | None = None, filters: dict[str, Any] | None = None, **more: Any) -> Query:
    return Query.build(
        backend, StructuredContent if backend == "structured" else Article, fields=fields, filters=filters, **more
    )


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (["version"], ["version.*"]),
        (["version.*"], ["version.*"]),
        (["version", "version.identifier", "version"], ["version.*"]),
        (["name", "*"], None),
        (["categories"], ["categories.*"]),
        (["categories.name"], ["categories.name"]),
        (["version.tags"], ["version.tags.*"]),
        (["version.size"], ["version.sizes.*"]),
        (["version.size.value", "version.diff.size"], ["version.sizes.value", "version.diff.sizes.*"]),
        (["is_part_of.size.unit_text"], ["is_part_of.sizes.unit_text"]),
        (["version.scores.revertrisk.probability.true"], ["version.scores.revertrisk.probability.falsy"]),
        (["version.scores.revertrisk.probability.false"], ["version.scores.revertrisk.probability.truthy"]),
        (["event.partition"], ["event.*"]),
        (["image.content_url"], ["image.*"]),
        (["visibility.text"], ["visibility.*"]),
        (["visibility.user"], ["visibility.*"]),
        (["namespace.name"], ["namespace.*"]),
        (["namespace.identifier"], ["namespace.identifier"]),
        (["version.diff.informal_words.sum"], ["version.diff.informal_words.*"]),
        (["version.scores.referencerisk.reference_risk_score"], ["version.scores.referencerisk.reference_risk_score"]),
    ],
)
def test_the_stream_is_asked_in_its_own_names(asked: list[str], sent: Any) -> None:
    assert build("realtime", asked).body().get("fields") == sent


@pytest.mark.parametrize(
    ("backend", "asked", "sent"),
    [
        ("metadata", ["version.*", "name"], ["version", "name"]),
        ("metadata", ["*"], None),
        ("metadata", ["version", "version.size.value"], ["version"]),
        ("metadata", ["categories.name"], ["categories"]),
        ("ondemand", ["version.*"], ["version"]),
        ("ondemand", ["*"], None),
        ("ondemand", ["version", "version.identifier"], ["version"]),
        ("ondemand", ["version.identifier", "version"], ["version"]),
        ("ondemand", ["categories.name", "version.tags"], ["categories", "version.tags"]),
        ("structured", ["tables"], ["tables", "sections"]),
        ("structured", ["tables.rows.value"], ["tables", "sections"]),
        ("structured", ["article_sections"], ["sections"]),
        ("structured", ["infobox"], ["infoboxes"]),
        ("structured", ["sections.name", "version.editor.name"], ["sections", "version.editor.name"]),
    ],
)
def test_other_back_ends_are_asked_in_theirs(backend: str, asked: list[str], sent: Any) -> None:
    assert build(backend, asked).body().get("fields") == sent


@pytest.mark.parametrize(
    ("backend", "filters", "sent"),
    [
        ("metadata", {"identifier": 5}, None),
        ("metadata", {"version.size.value": 0.5}, None),
        ("metadata", {"namespace.identifier": 14}, {"namespace.identifier": 14}),
        ("metadata", {"namespace.identifier": -1}, None),
        ("metadata", {"version.is_minor_edit": True}, None),
        ("metadata", {"name": "it's"}, None),
        ("metadata", {"name": "a\nb"}, None),
        ("metadata", {"name": ""}, None),
        ("metadata", {"name": "Ⅷ ?"}, {"name": "Ⅷ ?"}),
        ("realtime", {"identifier": 999_999}, {"identifier": 999_999}),
        ("realtime", {"identifier": 1_000_000}, None),
        ("realtime", {"identifier": -1_000_000}, None),
        ("realtime", {"version.size.value": 1}, None),
        ("realtime", {"version.is_minor_edit": False}, {"version.is_minor_edit": False}),
        ("realtime", {"name": ""}, {"name": ""}),
        ("realtime", {"name": "it's"}, {"name": "it's"}),
        ("realtime", {"image.content_url": "x"}, {"image.contentUrl": "x"}),
        ("realtime", {"image.name": "x"}, None),
        ("realtime", {"version.size.unit_text": "B"}, {"version.sizes.unit_text": "B"}),
        ("realtime", {"event.partition": 3}, None),
        ("ondemand", {"namespace.identifier": 0}, {"namespace.identifier": 0}),
        ("ondemand", {"version.size.value": 7}, {"version.size.value": 7}),
        ("structured", {"version.is_minor_edit": True}, {"version.is_minor_edit": True}),
    ],
)
def test_a_filter_is_sent_only_where_it_is_answered_exactly(backend: str, filters: dict[str, Any], sent: Any) -> None:
    query = build(backend, filters=filters)
    assert {one["field"]: one["value"] for one in query.body().get("filters", [])} == (sent or {})
    assert query.selects is (sent is None)
    assert ("here: filter" in query.explain()) is query.selects


@pytest.mark.parametrize(
    ("backend", "fields", "filters", "why"),
    [
        ("realtime", ["nmae"], None, "no field 'nmae'; did you mean 'name'"),
        ("realtime", ["version.sizes"], None, "did you mean 'version.size'"),
        ("realtime", ["zzz"], None, "it has abstract, "),
        ("realtime", ["name.x"], None, "'name' has nothing below it"),
        ("realtime", ["name.*"], None, "is a string and has nothing below it"),
        ("realtime", ["date_modified.*"], None, "is a time and has nothing below it"),
        ("realtime", ["version.*.name"], None, "wildcard stands at the end"),
        ("realtime", ["*", "nmae"], None, "no field 'nmae'"),
        ("realtime", ["version."], None, "no field 'version.'"),
        ("realtime", [""], None, "empty name"),
        ("realtime", [], None, "leave it out"),
        ("realtime", ["is_part_of.code"], None, "not on the stream"),
        ("realtime", ["is_part_of.alternate_name"], None, "not on the stream"),
        ("realtime", None, {"is_part_of.alternate_name": "wiki"}, "not on the stream"),
        ("realtime", ["has_parts.name"], None, "not on the stream"),
        ("realtime", None, {"is_part_of.code": "wiki"}, "not on the stream"),
        ("structured", ["event.type"], None, "not served on demand"),
        ("structured", None, {"event.type": "update"}, "not served on demand"),
        ("structured", ["mainEntity"], None, "no field 'mainEntity'"),
        ("ondemand", None, {"nmae": "x"}, "did you mean 'name'"),
        ("ondemand", None, {"version": "x"}, "'version' is an object"),
        ("ondemand", None, {"version.tags": "x"}, "is a list or inside one"),
        ("realtime", None, {"categories.name": "x"}, "is a list or inside one"),
        ("metadata", None, {"date_modified": "2025-01-01T00:00:00Z"}, "is a time"),
        ("metadata", None, {"name": None}, "by null"),
        ("metadata", None, {"version.size.value": math.nan}, "JSON cannot say"),
        ("realtime", None, {"version.size.value": -math.inf}, "JSON cannot say"),
        ("realtime", None, {"identifier": "5"}, "is a whole number"),
        ("realtime", None, {"identifier": 5.0}, "is a whole number"),
        ("realtime", None, {"identifier": True}, "is a whole number"),
        ("realtime", None, {"name": 5}, "is a string"),
        ("realtime", None, {"version.is_minor_edit": 1}, "is true or false"),
        ("realtime", None, {"version.is_minor_edit": "true"}, "is true or false"),
        ("metadata", None, {"name": "\ud800"}, "lone surrogate"),
        ("realtime", None, {"visibility.user": True, "visibility.editor": True}, "filtered twice"),
        ("ondemand", None, {"version.is_minor_edit": False}, "cannot be answered: the server leaves out"),
        ("ondemand", None, {"abstract": "", "in_language.identifier": "en"}, "cannot be answered"),
        ("ondemand", None, {"is_part_of.identifier": ""}, "cannot be answered"),
        ("ondemand", None, {"identifier": 2**53 + 1}, "rounds"),
        ("structured", None, {"description": "A city"}, "before it computes"),
        ("lookup-fields-only", None, {"name": "Q42"}, "fields only"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(
    backend: str, fields: list[str] | None, filters: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below, as text
        build(backend, fields, filters)
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"fields": "name"}, "list of names"),
        ({"fields": {"name": 1}}, "list of names"),
        ({"fields": 5}, "list of names"),
        ({"fields": [5]}, "list of names"),
        ({"filters": [{"field": "name", "value": "x"}]}, "dict of name and value"),
        ({"filters": {5: "x"}}, "a name in filters must be text"),
        ({"filters": {"name": ["x"]}}, "one string, number or boolean"),
        ({"filters": {"name": b"x"}}, "one string, number or boolean"),
        ({"limit": "3"}, "whole number"),
        ({"limit": True}, "whole number"),
        ({"limit": 2.0}, "whole number"),
        ({"type": list}, "must be a Struct"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Query.build("ondemand", Article, **arguments)


@pytest.mark.parametrize(
    ("filters", "kind", "words"),
    [
        ({"visibility.user": "true"}, ValueError, "'visibility.user' ('visibility.editor' on the server) is true or"),
        ({"visibility.user": "true"}, ValueError, "so 'true' never equals it; write True"),
        ({"version.is_minor_edit": 0}, ValueError, "; write False"),
        ({"version.is_minor_edit": "maybe"}, ValueError, "so 'maybe' never equals it"),
        ({"namespace.identifier": "14"}, ValueError, "; write 14, without quotes"),
        ({"namespace.identifier": "talk"}, ValueError, "so 'talk' never equals it"),
        ({"version.size.value": "0.5"}, ValueError, "; write 0.5, without quotes"),
        ({"name": 1984}, ValueError, "; write '1984'"),
        ({"visibility": {"user": True}}, ValueError, "such as 'visibility.text' or 'visibility.editor'"),
        ({"article_body": "x"}, ValueError, "such as 'article_body.html' or"),
        ({"visibility.nobody": True}, ValueError, "no field 'visibility.nobody'"),
        ({"namespace.identifier": [0, 14]}, TypeError, "ask once for each of several values"),
    ],
)
def test_a_filter_that_cannot_work_says_what_would(filters: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as raised:
        build("realtime", filters=filters)
    assert words in str(raised.value)


def test_a_name_that_is_not_there_is_refused_as_it_was_written() -> None:
    with pytest.raises(ValueError, match=r"Code has no field 'visibility\.user'"):
        Query.build("metadata", Code, filters={"visibility.user": True})


def test_more_than_the_server_takes_is_refused() -> None:
    many = {f"l{number}": "x" for number in range(256)}
    with pytest.raises(ValueError, match="256 filters, 255 at most"):
        Query.build("metadata", dict[str, str], filters=many)
    with pytest.raises(ValueError, match="256 fields, 255 at most"):
        Query.build("ondemand", dict[str, str], fields=list(many))


@pytest.mark.parametrize("limit", [0, -1, 11, 100, 101])
def test_a_limit_out_of_range_is_refused(limit: int | None) -> None:
    with pytest.raises(ValueError, match="1 to 10"):
        build("structured", limit=limit)


@pytest.mark.parametrize("backend", ["metadata", "realtime", "lookup-fields-only"])
def test_a_limit_that_has_no_effect_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="no effect"):
        build(backend, limit=3)


def test_values_that_are_equal_and_not_the_same_are_told_apart() -> None:
    assert build("realtime", filters={"watchers_count": 1}).body()["filters"][0]["value"] is not True
    with pytest.raises(ValueError, match="whole number"):
        build("realtime", filters={"watchers_count": True})
    with pytest.raises(ValueError, match="whole number"):
        build("realtime", filters={"watchers_count": 1.0})
    assert build("ondemand", limit=1).limit == 1
    with pytest.raises(TypeError, match="whole number"):
        build("ondemand", limit=True)
    assert build("ondemand", limit=1) is build("ondemand", limit=1)


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(ValueError, match="graphql"):
        build("graphql")


def test_a_query_for_everything_sends_nothing_and_touches_nothing() -> None:
    query = build("metadata", ["*"], {})
    assert query.body() == {}
    assert not query.selects
    assert not query.reshapes
    record: Json = {"a__b": 1}
    assert query.apply(record) is record
    assert query.keep({})


def test_the_limit_is_sent() -> None:
    assert build("ondemand", limit=10).body() == {"limit": 10}
    assert "sent: limit 10" in build("ondemand", limit=10).explain()
    assert "at most 3" in build("ondemand").explain()


def test_flat_keys_become_nested_and_only_those_that_were_asked_for() -> None:
    query = build("metadata", ["version.size.value", "version.size.unit_text", "name"])
    row = {"version__size__value": 2, "version__size__unit_text": None, "name": "x", "other__key": 1}
    assert query.restore(row) == {"version": {"size": {"value": 2}}, "name": "x", "other__key": 1}


def test_an_enumeration_filters_by_its_value() -> None:
    class Wiki(StrEnum):
        EN = "enwiki"

    query = build("metadata", filters={"is_part_of.identifier": Wiki.EN})
    assert json.dumps(query.body()) == '{"filters": [{"field": "is_part_of.identifier", "value": "enwiki"}]}'


def test_a_null_in_a_list_keeps_its_place() -> None:
    assert build("structured", ["infoboxes.name"]).apply(
        {"infoboxes": [None, {"name": "x", "type": "infobox"}, {}]}
    ) == {"infoboxes": [None, {"name": "x"}, {}]}


def test_a_value_where_an_object_was_described_is_left_out() -> None:
    assert build("ondemand", ["version.identifier", "name"]).apply({"version": None, "name": "x"}) == {"name": "x"}


AT_COST = "each such record is requested, and filtered here, of the stream's traffic and at its pace"


@pytest.mark.parametrize(
    ("backend", "fields", "filters", "says"),
    [
        (
            "metadata",
            ["name"],
            {"is_part_of.identifier": "enwiki", "version.size.value": 0.5},
            [
                "to metadata",
                "sent: fields name, version.size",
                "sent: filter is_part_of.identifier = 'enwiki'",
                'here: filter version.size.value = 0.5, because the server takes a number to mean "greater than"',
                "here: each such record is requested, and filtered here; a list is one answer and not metered",
                "here: version__size become nested again",
                "here: reduced to name",
            ],
        ),
        (
            "realtime",
            None,
            {"identifier": 4_712_345, "version.is_minor_edit": True},
            [
                "to the stream",
                "sent: no fields, so records come whole",
                "sent: filter version.is_minor_edit = True",
                "here: filter identifier = 4712345, because the server never finds a whole number of 1,000,000 or more",
                "here: " + AT_COST,
            ],
        ),
        (
            "realtime",
            ["name", "visibility.text"],
            {"identifier": 4_712_345},
            [
                "to the stream",
                "sent: fields name, visibility.*, identifier",
                "here: filter identifier = 4712345, because the server never finds a whole number of 1,000,000 or more",
                "here: each record is requested, and filtered here, of the stream's traffic and at its pace",
                "here: not taken off again where the type has room for it: visibility, identifier",
            ],
        ),
    ],
)
def test_explain_says_what_is_done_where(
    backend: str, fields: list[str] | None, filters: dict[str, Any], says: list[str]
) -> None:
    assert build(backend, fields, filters).explain().splitlines() == says


def test_explain_says_when_the_whole_stream_is_fetched() -> None:
    assert "here: each record is requested" in build("realtime", filters={"identifier": 4_712_345}).explain()


# --- Structs ---------------------------------------------------------------------------------------------------------


def test_a_decoded_record_is_kept_by_the_same_rules() -> None:
    query = build("realtime", filters={"identifier": 1_234_567, "version.size.value": 0.0, "event.partition": 0})
    size: Json = {"identifier": 1_234_567, "version": {"size": {}}, "event": {"partition": 0}}
    article = msgspec.convert(size, Article)
    assert query.keep(article)
    assert query.keep(size)
    assert not query.keep(msgspec.structs.replace(article, identifier=1_234_568))
    assert not build("realtime", filters={"image.name": ""}).keep(article)


def test_a_filter_on_a_field_that_the_struct_lacks_is_an_error_not_an_answer() -> None:
    class Slim(msgspec.Struct):
        name: str

    filters = {"identifier": 1_234_567}
    with pytest.raises(TypeError, match="Slim has no field for 'identifier'"):
        build("realtime", filters=filters).keep(Slim("x"))
    with pytest.raises(ValueError, match="give Slim that field"):
        build("realtime", filters=filters, type=Slim)
    assert build("realtime", filters={"identifier": 5}, type=Slim).body()["filters"]
    assert build("metadata", filters=filters, type=Slim).apply({"name": "x", "identifier": 1_234_567}) == {"name": "x"}


def test_a_renamed_struct_is_kept_by_its_names_on_the_wire() -> None:
    class Mine(msgspec.Struct, rename={"page": "identifier"}):
        page: int

    query = build("realtime", filters={"identifier": 1_234_567}, type=Mine)
    assert query.body() == {"fields": ["identifier"]}
    assert query.keep(Mine(1_234_567))
    assert not query.keep(Mine(5))


def test_a_decoded_record_loses_what_was_fetched_for_a_filter_alone() -> None:
    query = build("realtime", ["name"], {"identifier": 1_234_567})
    version: Json = {"tags": ["y"]}
    plain: Json = {"name": "x", "identifier": 1_234_567, "date_modified": "2025-07-16T05:00:00Z", "version": version}
    assert query.project(msgspec.convert(plain, Article)) == Article(name="x")
    query = build("realtime", ["image.width", "date_modified", "version.tags", "categories.name"])
    article = msgspec.convert({**plain, "image": {"name": "z"}, "categories": [{"name": "c", "url": "u"}]}, Article)
    expected_rows = {
        "date_modified": plain["date_modified"],
        "version": plain["version"],
        "image": {},
        "categories": [{"name": "c"}],
    }
    assert query.project(article) == msgspec.convert(expected_rows, Article)


@pytest.mark.parametrize("backend", ["metadata", "ondemand", "realtime"])
def test_only_the_fields_of_the_callers_type_are_asked_for(backend: str) -> None:
    class Link(msgspec.Struct):
        name: str

    class Editor(msgspec.Struct, rename="camel"):
        name: str = ""

    class Revision(msgspec.Struct, rename={"revision": "identifier"}):
        revision: int
        editor: Editor | None = None
        scores: dict[str, Any] = {}

    class Mine(msgspec.Struct, rename={"title": "name"}):
        title: str
        version: Revision
        categories: list[Link] = []
        event: msgspec.Raw = msgspec.Raw()
        size: "msgspec.UnsetType | Size" = msgspec.UNSET

    class Page(msgspec.Struct, rename={"title": "name"}):
        title: str
        version: Revision
        categories: list[Link] = []
        namespace: Namespace | None = None

    with pytest.raises(ValueError, match=r"Mine\.size: Article has no field 'size'; did you mean"):
        Query.build(backend, Article, type=Mine)
    names = ["name", "version.identifier", "version.editor.name", "version.scores", "categories.name", "namespace"]
    assert fields_of(Page, Article) == names
    query = Query.build(backend, Article, type=Page)
    assert query.fields == tuple(names)
    assert query.result is Page
    assert Query.build(backend, Article, type=Page, fields=["*"]).fields is None


class Flags(msgspec.Struct):
    is_minor_edit: bool = False


@pytest.mark.parametrize("backend", ["metadata", "ondemand"])
def test_an_object_that_a_type_cannot_do_without_is_empty_where_the_server_left_it_out(backend: str) -> None:
    class Editor(msgspec.Struct):
        is_bot: bool = False

    class Revision(msgspec.Struct):
        editor: Editor
        size: Size | None = None

    class Entity(msgspec.Struct):
        identifier: str = ""

    class Mine(msgspec.Struct):
        version: Revision
        main_entity: Entity | None = None

    query = Query.build(backend, Article, type=Mine)
    server = {"metadata": sql, "ondemand": json_paths}[backend]
    rows: list[Json] = [{"version": {"editor": {"name": "x"}}}, {}, {"version": {"editor": {"is_bot": True}}}]
    records = msgspec.convert(through(query, server, rows), list[Mine])
    records.sort(key=lambda mine: mine.version.editor.is_bot)
    nulls: Json = {"version": None, "main_entity": None}
    assert not query.project(nulls).get("main_entity")
    assert records == [Mine(Revision(Editor())), Mine(Revision(Editor())), Mine(Revision(Editor(is_bot=True)))]


def test_the_position_on_the_stream_stays_whatever_is_asked_for() -> None:
    query = build("realtime", ["visibility.text"])
    row: Json = {
        "visibility": {"text": True, "editor": False},
        "event": {"identifier": "x", "partition": 1, "offset": 2},
    }
    assert query.apply(row) == {"visibility": {"text": True}, "event": row["event"]}
    assert not build("realtime", ["event.partition", "name"]).reshapes


def test_the_stream_needs_no_second_look_for_a_type_of_the_callers() -> None:
    class Mine(msgspec.Struct):
        version: Flags

    assert not Query.build("realtime", Article, type=Mine).reshapes


def test_the_model_itself_and_what_extends_it_ask_for_everything() -> None:
    class More(Article):
        note: str = ""

    assert fields_of(Article, Article) == []
    assert fields_of(More, Article) == []
    assert build("realtime", type=More).body() == {}


def test_a_type_that_takes_an_object_whole_asks_for_it_so() -> None:
    class Everything(msgspec.Struct):
        value: float = 0.0
        unit_text: str = ""

    class Mine(msgspec.Struct):
        size: Everything
        is_part_of: Project

    assert fields_of(Mine, Batch) == ["size", "is_part_of"]
    assert fields_of(Everything, Size) == []


class Tree(msgspec.Struct):
    name: str = ""
    has_parts: "list[Tree]" = []


class WithTree(msgspec.Struct):
    sections: list[Tree]


def test_a_type_that_contains_itself_asks_for_the_tree_below() -> None:
    assert fields_of(WithTree, StructuredContent) == ["sections.name", "sections.has_parts"]


def test_a_dataclass_or_typed_dict_will_do() -> None:
    import dataclasses
    from typing import TypedDict

    @dataclasses.dataclass
    class Data:
        name: str

    class Typed(TypedDict):
        identifier: int

    assert fields_of(Data, Article) == ["name"]
    assert fields_of(Typed, Article) == ["identifier"]


class LooseSize(msgspec.Struct):
    value: float = 0.0


class Empty(msgspec.Struct):
    pass


class Row(msgspec.Struct, array_like=True):
    name: str


class ObjectForText(msgspec.Struct):
    name: Size


class TextForObject(msgspec.Struct):
    version: str


class ListForOne(msgspec.Struct):
    version: list[Version]


class TagsAsObject(msgspec.Struct):
    tags: Size


class ObjectForTexts(msgspec.Struct):
    version: TagsAsObject


class OneForList(msgspec.Struct):
    categories: Size


class NumberForList(msgspec.Struct):
    version: "TagsAsText"


class TagsAsText(msgspec.Struct):
    tags: str


class TextForTime(msgspec.Struct):
    date_modified: str


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        (Empty, "Empty has no fields"),
        (Row, "Row is array_like"),
        (ObjectForText, "ObjectForText.name is an object, but 'name' is a string"),
        (TextForObject, "TextForObject.version is a string, but 'version' is an object"),
        (ListForOne, "ListForOne.version is a list, but 'version' is an object"),
        (OneForList, "OneForList.categories is an object, but 'categories' is a list"),
        (ObjectForTexts, "TagsAsObject.tags is an object, but 'version.tags' is a list"),
        (NumberForList, "TagsAsText.tags is a string, but 'version.tags' is a list"),
    ],
)
def test_a_type_that_could_never_be_decoded_is_refused(type_: Any, why: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below, as text
        fields_of(type_, Article)
    assert why in str(raised.value)


def test_a_time_may_be_taken_as_text() -> None:
    assert fields_of(TextForTime, Article) == ["date_modified"]


def test_fields_that_a_type_cannot_do_without_are_not_left_out() -> None:
    class Mine(msgspec.Struct):
        name: str
        identifier: int = 0

    assert Query.build("ondemand", Article, type=Mine, fields=["name"]).body() == {"fields": ["name"]}
    with pytest.raises(ValueError, match="Mine cannot do without 'name'"):
        Query.build("ondemand", Article, type=Mine, fields=["identifier"])


# --- open objects ----------------------------------------------------------------------------------------------------


def test_a_key_that_is_data_can_be_asked_for() -> None:
    asked = ["entity.labels.en", "entity.statements", "entity.descriptions.zh-hans"]
    query = Query.build("lookup-fields-only", WikidataArticle, fields=asked)
    assert query.body() == {"fields": asked}
    assert query.apply({"entity": {"labels": {"en": "x", "de": "y"}, "descriptions": {}}}) == {
        "entity": {"labels": {"en": "x"}}
    }


def test_a_key_that_would_be_read_as_a_path_is_taken_from_the_whole() -> None:
    query = Query.build("lookup-fields-only", WikidataArticle, fields=["entity.labels.#"])
    assert query.body() == {"fields": ["entity.labels"]}
    assert query.apply({"entity": {"labels": {"#": "x", "de": "y"}}}) == {"entity": {"labels": {"#": "x"}}}


def test_a_key_that_is_data_is_compared_here_and_only_within_one_project() -> None:
    filters: dict[str, Value] = {"entity.labels.en": "x"}
    with pytest.raises(ValueError, match="punctuation in a key"):
        Query.build("ondemand", WikidataArticle, filters=filters)
    assert Query.build("ondemand", WikidataArticle, filters=filters | {"is_part_of.identifier": "wikidatawiki"}).selects


def test_labels_are_asked_for_by_language() -> None:
    query = Query.build("lookup-fields-only", dict[str, str] | list[dict[str, str]], fields=["en", "de"])
    assert query.body() == {"fields": ["en", "de"]}
    assert query.apply({"en": "x", "fr": "y"}) == {"en": "x"}


def test_the_stream_is_asked_for_an_open_object_whole() -> None:
    query = Query.build("realtime", WikidataArticle, fields=["entity.labels.en", "entity.type"])
    assert query.body() == {"fields": ["entity.labels.*", "entity.type"]}
    kept = Query.build("realtime", WikidataArticle, filters={"entity.labels.en": "x"})
    assert kept.body() == {}
    assert kept.keep({"entity": {"labels": {"en": "x"}}})
    assert not kept.keep({"entity": {"labels": {"de": "x"}}})


# --- what can be filtered by -----------------------------------------------------------------------------------------

SAMPLES: dict[type, Value] = {str: "x", int: 7, float: 0.5, bool: True}


@pytest.mark.parametrize(
    ("backend", "model"),
    [
        ("metadata", Snapshot),
        ("metadata", Project),
        ("ondemand", Article),
        ("structured", StructuredContent),
        ("realtime", Article),
        ("realtime", WikidataArticle),
        ("metadata", WikidataArticle),
    ],
)
def test_the_list_of_filters_is_what_can_be_filtered_by(backend: str, model: Any) -> None:
    listed = filter_types(model, backend)
    assert listed
    for name, kind in listed.items():
        one_project = {"is_part_of.identifier": "enwiki"} if backend in {"ondemand", "structured"} else {}
        query = Query.build(backend, model, filters={**one_project, name: SAMPLES[kind]})
        assert [c.field for c in query.conditions][-1] == name


class Side(StrEnum):
    LEFT = "ltr"
    RIGHT = "rtl"


class Odd(msgspec.Struct):
    side: Side
    level: Literal[1, 2] | None
    note: Annotated[str, msgspec.Meta(max_length=5)]
    either: str | int
    extra: Any
    link: Annotated[Size, msgspec.Meta(title="x")] | None = None
    _spelling: str = msgspec.field(name="Side", default="")


class OddToo(msgspec.Struct):
    link: Annotated[LooseSize, msgspec.Meta(title="x")]
    extra: int
    _spelling: str = msgspec.field(name="elsewhere", default="")


def test_unusual_types_have_names_and_filters_too() -> None:
    assert filter_types(Odd, "metadata") == {
        "side": str,
        "level": int,
        "note": str,
        "either": str,
        "link.value": float,
        "link.unit_text": str,
    }
    assert Query.build("metadata", Odd, filters={"either": 5}).selects
    assert Query.build("realtime", Odd, filters={"either": "x"}).selects
    assert fields_of(OddToo, Odd) == ["link.value", "extra"]
    with pytest.raises(ValueError, match="'extra' is not described further"):
        Query.build("metadata", Odd, fields=["extra.more"])
    with pytest.raises(ValueError, match="'extra' is not described: a filter needs"):
        Query.build("metadata", Odd, filters={"extra": 1})


def test_the_list_of_filters_leaves_out_what_has_no_single_value() -> None:
    listed = filter_types(Article, Backend.REALTIME)
    assert listed["version.is_minor_edit"] is bool
    assert listed["version.size.value"] is float
    assert listed["identifier"] is int
    absent = {"version", "version.tags", "categories.name", "date_modified", "is_part_of.code", "visibility.user"}
    assert not absent & set(listed)
    assert "is_part_of.code" in filter_types(Article, "ondemand")
    assert not any(name.startswith("event") for name in filter_types(StructuredContent, "structured"))
    assert filter_types(WikidataArticle, "lookup-fields-only") == {}


def test_the_type_of_a_filter_is_known_by_every_name_of_its_field() -> None:
    for name in ("visibility.user", "visibility.editor"):
        assert filter_type(Article, "realtime", name) is bool
    assert filter_type(Article, "realtime", "namespace.identifier") is int
    for name in ("visibility", "nothing", "categories.name"):
        assert filter_type(Article, "realtime", name) is str


# --- real lists ------------------------------------------------------------------------------------------------------


def real(name: str) -> list[Json]:
    path = DATA / name
    if not path.exists():
        pytest.skip("the lists are not part of the package")
    rows: list[Json] = json.loads(path.read_bytes())
    return rows


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"in_language.identifier": "en"},
        {"is_part_of.identifier": "enwiki"},
        {"namespace.identifier": 0},
        {"namespace.identifier": 14, "in_language.identifier": "fr"},
        {"size.value": 0.002},
        {"size.value": 0.002, "namespace.identifier": 10},
        {"size.unit_text": "MB", "in_language.identifier": "it's"},
        {"identifier": "enwiki_namespace_0"},
    ],
)
@pytest.mark.parametrize("fields", [None, ["identifier"], ["identifier", "size.*", "in_language.identifier"]])
def test_566_real_batches_filter_and_project_as_in_plain_python(
    fields: list[str] | None, filters: dict[str, Any]
) -> None:
    rows = real("batches.json")
    assert len(rows) == 566
    answers = through(Query.build("metadata", Batch, fields=fields, filters=filters), sql, rows)
    assert answers == expected(rows, fields, filters)
    decoded = msgspec.convert(answers, list[Batch])
    assert len(decoded) == len(answers)


def test_892_real_projects_of_each_code_and_language_are_all_found() -> None:
    rows = real("projects.json")
    assert len(rows) == 892
    for name in ("code", "in_language.identifier"):
        values = {dig(row, name) for row in rows}
        counts = {v: len(through(Query.build("metadata", Project, filters={name: v}), sql, rows)) for v in values}
        assert counts == {v: sum(dig(row, name) == v for row in rows) for v in values}
        assert sum(counts.values()) == 892
