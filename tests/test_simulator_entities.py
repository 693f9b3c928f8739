"""Wikidata records in every shape that the beta's schema leaves open, and their stream."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.simulator import Accepted, ArticleGenerator, Clock, EntityGenerator, Firehose, dumps
from wme_async.simulator.hosts.stream import Line
from wme_async.simulator.protocol.schema import ENTITY
from wme_async.simulator.world.entities import Shape

GENERATOR = EntityGenerator(seed=1)


def flat(entity: dict[str, Any]) -> list[dict[str, Any]]:
    statements = entity["statements"]
    return [one for many in statements.values() for one in many] if isinstance(statements, dict) else list(statements)


def values(entity: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every property with its value, wherever they stand."""
    out: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if "property" in node:
                out.append((node["property"], node["value"]))
            for below in node.values():
                walk(below)
        elif isinstance(node, list):
            for below in node:
                walk(below)

    walk(entity)
    return out


@given(st.integers(1, 10**9), st.sampled_from(["maps", "lists", "single", "mixed"]), st.booleans())
def test_envelope_and_entity_agree_on_the_id(number: int, shape: Shape, is_property: bool) -> None:
    record = (GENERATOR.property if is_property else GENERATOR.item)(number, shape=shape)
    letter, namespace, kind = ("P", 120, "property") if is_property else ("Q", 0, "item")
    assert record["name"] == record["entity"]["identifier"] == f"{letter}{number}"
    assert record["namespace"] == {"identifier": namespace}
    assert record["entity"]["type"] == kind
    assert record["url"].endswith(record["name"])
    assert ("sitelinks" in record["entity"]) is not is_property
    assert list(record["entity"]["labels"]) == sorted(record["entity"]["labels"])


def test_maps_lists_and_single_objects() -> None:
    def shapes(shape: Shape) -> dict[str, set[type]]:
        entities = [GENERATOR.item(number, shape=shape) for number in range(1, 120)]
        statements = [one for record in entities for one in flat(record["entity"])]
        return {
            "protection": {type(record["protection"]) for record in entities if "protection" in record},
            "license": {type(record["license"]) for record in entities},
            "statements": {type(record["entity"]["statements"]) for record in entities},
            "sitelinks": {type(next(iter(record["entity"]["sitelinks"].values()))) for record in entities},
            "qualifiers": {type(one["qualifiers"]) for one in statements if "qualifiers" in one},
            "references": {type(one["references"]) for one in statements if "references" in one},
        }

    maps = {"protection": {list}, "license": {list}, "statements": {dict}, "sitelinks": {dict}, "references": {list}}
    assert shapes("maps") == {**maps, "qualifiers": {dict}}
    assert shapes("lists") == {**maps, "qualifiers": {list}, "statements": {list}}
    assert shapes("single") == {
        "protection": {dict},
        "license": {dict},
        "statements": {list},
        "sitelinks": {str},
        "qualifiers": {dict},
        "references": {dict},
    }
    assert shapes("mixed")["statements"] == {dict, list}


def test_statements_of_a_map_stand_under_their_property() -> None:
    statements = GENERATOR.item(5)["entity"]["statements"]
    assert all(one["property"]["identifier"] == name for name, many in statements.items() for one in many)


@pytest.mark.parametrize("shape", ["maps", "lists", "single"])
def test_values_have_content_or_data_never_both(shape: Shape) -> None:
    contents = [value for number in range(1, 150) for _, value in values(GENERATOR.item(number, shape=shape)["entity"])]
    assert not any("content" in value and "content_data" in value for value in contents)
    assert {} in contents  # unknown, or nothing
    assert {str, int} == {type(value["content"]) for value in contents if "content" in value}
    data = [value["content_data"] for value in contents if "content_data" in value]
    assert {str} == {type(item) for one in data for item in one.values()}
    keys = {key for one in data for key in one}
    assert ("Time" in keys, "time" in keys) == (shape == "single", shape != "single")
    moments = [one.get("time", one.get("Time", "")) for one in data]
    assert any("-00-00T" in moment for moment in moments)
    assert any(moment.startswith("-") for moment in moments)


def test_ranks_and_qualifiers_vary() -> None:
    statements = [one for number in range(1, 200) for one in flat(GENERATOR.item(number)["entity"])]
    assert {one["rank"] for one in statements} == {"normal", "preferred", "deprecated"}
    assert {"references" in one for one in statements} == {True, False}


@pytest.mark.parametrize("shape", ["maps", "lists"])
@pytest.mark.parametrize("size", [60_000, 3_000_000])
def test_a_wished_size_is_exact(shape: Shape, size: int) -> None:
    assert len(dumps(GENERATOR.item(9, shape=shape, size=size))) == size


def test_a_size_without_room_for_the_entity_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        GENERATOR.item(9, size=1000)


def test_labels_agree_wherever_an_entity_is_named() -> None:
    for number in range(1, 60):
        for prop, value in values(GENERATOR.item(number)["entity"]):
            assert prop["labels"] == GENERATOR.labels(prop["identifier"])
            named = value.get("content") if value.get("type") == "wikibase-entityid" else None
            if named and not GENERATOR.is_scholarly(int(named[1:])):
                assert value["labels"] == GENERATOR.labels(named)


def test_lookups_know_the_main_graph_only() -> None:
    scholarly = next(number for number in range(1, 50) if GENERATOR.is_scholarly(number))
    assert GENERATOR.get(f"Q{scholarly}") is None
    assert GENERATOR.labels(f"Q{scholarly}") is None
    assert GENERATOR.get("Q42") == GENERATOR.item(42)
    assert GENERATOR.get("P31") == GENERATOR.property(31)
    for wrong in ("", "q42", "Q0", "Q042", "Q", "L1", "Q1/2", "42"):
        assert GENERATOR.get(wrong) is None
        assert GENERATOR.labels(wrong) is None


def test_items_are_named_like_the_articles_they_belong_to() -> None:
    articles = ArticleGenerator(seed=1)
    article = articles.article(12)
    labels = EntityGenerator(1, articles).labels(article["main_entity"]["identifier"])
    assert labels is not None
    assert labels["en"] == article["name"]


def test_lines_hold_one_entity_each_and_no_scholarly_one() -> None:
    records = [json.loads(line) for line in GENERATOR.lines(30, size="small")]
    numbers = [int(record["name"][1:]) for record in records]
    assert len(set(numbers)) == 30
    assert not any(map(GENERATOR.is_scholarly, numbers))
    assert json.loads(next(GENERATOR.lines(1, namespace=120, start=31)))["name"] == "P31"


@pytest.mark.parametrize("kind", ["delete", "visibility-change"])
def test_removals_have_no_entity(kind: Any) -> None:
    record = GENERATOR.item(3, kind=kind)
    assert "entity" not in record
    assert record["event"]["type"] == kind
    assert ("visibility" in record) == (kind == "visibility-change")


def test_a_version_comes_now_and_then_or_as_asked() -> None:
    assert {"version" in GENERATOR.item(number) for number in range(1, 40)} == {True, False}
    assert "revertrisk" in GENERATOR.item(1, version=True)["version"]["scores"]
    assert "version" not in GENERATOR.item(1, version=False)


def test_the_stream_serves_entities_by_their_own_fields() -> None:
    firehose = Firehose.wikidata(Clock(1_780_000_000.0), partitions=10, parts=5, options={})
    firehose.publish_many(40)
    firehose.generate(40)
    request = Accepted(fields=("entity.labels.*", "event.type"))
    line = Line(ENTITY, request, content_type="application/x-ndjson")
    unfiltered = Line(ENTITY, Accepted(), content_type="application/x-ndjson")
    kinds = set()
    for partition, log in enumerate(firehose.log):
        for entry in log.read(0, 3):
            full = unfiltered.make(partition, entry)
            framed = line.make(partition, entry)
            assert full is not None
            assert framed is not None
            record, pruned = json.loads(full), json.loads(framed)
            assert record["event"]["partition"] == partition
            assert record["is_part_of"]["identifier"] == "wikidatawiki"
            kinds.add(record["entity"]["type"])
            assert set(pruned) == {"event", "entity"}
            assert pruned["entity"] == {key: record["entity"][key] for key in ("labels",) if key in record["entity"]}
    assert "item" in kinds
