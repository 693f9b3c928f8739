"""Facts, text and passages of structured contents."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.models import Cell, Citation, Link, Part, StructuredContent, Table, TableReference
from wme_async.models.reading import Block, passages_of, text_of
from wme_async.simulator import ArticleGenerator

CITY = StructuredContent(
    name="Montreal",
    infoboxes=(
        Part(
            type="infobox",
            name="Infobox settlement\n",
            has_parts=(
                Part(type="section", name="Montreal"),
                Part(type="field", value="Motto: Concordia Salus"),
                Part(type="image", name="Skyline", value="a picture"),
                Part(
                    type="field",
                    name="Province",
                    value="Quebec",
                    links=(
                        Link(url="https://en.wikipedia.org/wiki/Provinces", text="Province"),
                        Link(url="https://en.wikipedia.org/wiki/Quebec", text="Quebec"),
                        Link(url="https://en.wikipedia.org/wiki/Montreal#cite_note-1"),
                    ),
                    citations=(Citation(identifier="cite_note-1", text="[1]"),),
                ),
                Part(
                    type="section",
                    name="Area",
                    has_parts=(Part(type="field", name="City:", value="431.50\u00a0km2"),),
                ),
                Part(
                    type="section",
                    name="Population",
                    has_parts=(
                        Part(type="field", name="City", value="1,762,949"),
                        Part(type="field", name="Languages", value="French, English", values=("French", "English")),
                    ),
                ),
            ),
        ),
    ),
    sections=(
        Part(
            type="section",
            name="Abstract",
            has_parts=(
                Part(type="paragraph", value=" Montreal is a city. ", citations=(Citation(identifier="cite_note-2"),)),
                Part(type="paragraph", value="It has an island."),
            ),
        ),
        Part(
            type="section",
            name="Geography",
            has_parts=(
                Part(type="paragraph", value="Montreal is in Quebec."),
                Part(
                    type="section",
                    name="Climate",
                    has_parts=(
                        Part(type="table", table_references=(TableReference(identifier="t1"),)),
                        Part(
                            type="list",
                            has_parts=(
                                Part(type="list_item", value="cold winters"),
                                Part(
                                    type="list_item",
                                    value="warm summers",
                                    has_parts=(
                                        Part(type="list", has_parts=(Part(type="list_item", value="in July"),)),
                                    ),
                                ),
                            ),
                        ),
                    ),
                ),
            ),
        ),
        Part(type="section", name="History", has_parts=(Part(type="paragraph", value="Founded in 1642."),)),
        Part(type="section", name="References"),
    ),
    tables=(
        Table(
            identifier="t1",
            headers=((Cell(value="Month"), Cell(value="High")),),
            rows=((Cell(value="July"), Cell(value="26", nested_table='{"rows": [[{"value": "day"}]]}')),),
        ),
    ),
)
TEXT = """Montreal is a city.

It has an island.

Geography

Montreal is in Quebec.

Climate

Month | High
July | 26 (day)

- cold winters
- warm summers
  - in July

History

Founded in 1642."""


def test_facts_are_flat_and_fields_of_one_name_are_told_apart_by_their_headings():
    facts = CITY.facts()
    assert {name: fact.value for name, fact in facts.items()} == {
        "Province": "Quebec",
        "Area: City": "431.50 km2",
        "Population: City": "1,762,949",
        "Languages": "French, English",
    }
    assert facts["Languages"].values == ("French", "English")
    assert [link.text for link in facts["Province"].links] == ["Quebec"]
    assert [citation.identifier for citation in facts["Province"].citations] == ["cite_note-1"]
    assert (facts["Area: City"].name, facts["Area: City"].section) == ("City", "Area")
    assert json.loads(facts["Province"].to_json())["values"] == ["Quebec"]


def test_fields_of_one_name_and_heading_are_one_fact_and_infoboxes_are_kept_apart():
    def infobox(name, *values):
        return Part(
            type="infobox", name=name, has_parts=tuple(Part(type="field", name="Built", value=v) for v in values)
        )

    content = StructuredContent(
        infoboxes=(infobox("Ship", "1900", "1901"), infobox("Ship", "1950"), infobox("Car", "2"))
    )
    facts = content.facts()
    assert {name: fact.values for name, fact in facts.items()} == {
        "Ship: Built (2)": ("1900", "1901"),
        "Ship: Built (3)": ("1950",),
        "Car: Built": ("2",),
    }
    assert facts["Ship: Built (2)"].value == "1900, 1901"
    nested = Part(
        type="field", name="Sizes", has_parts=(Part(type="list", has_parts=(Part(type="list_item", value="S"),)),)
    )
    assert StructuredContent(infoboxes=(Part(has_parts=(nested,)),)).facts()["Sizes"].values == ("S",)


def parts(depth=3):
    leaf = st.builds(
        Part,
        type=st.sampled_from(["field", "paragraph", "list_item", "image", "something new"]),
        name=st.sampled_from(["", "City", "Area: City", "City (2)", " Name: "]),
        value=st.text("ab. \n", max_size=12),
        values=st.lists(st.text("ab ", max_size=3), max_size=2).map(tuple),
    )
    return st.recursive(
        leaf,
        lambda below: st.builds(
            Part,
            type=st.sampled_from(["section", "list", "field", "infobox"]),
            name=st.sampled_from(["", "Area", "City"]),
            has_parts=st.lists(below, max_size=4).map(tuple),
        ),
        max_leaves=8,
    )


def all_parts(roots):
    for part in roots:
        yield part
        yield from all_parts(part.has_parts)


@given(st.lists(parts(), max_size=3).map(tuple))
def test_no_named_value_is_missing_from_the_facts(infoboxes):
    facts = StructuredContent(infoboxes=infoboxes).facts()
    values = {value for fact in facts.values() for value in fact.values}
    for part in all_parts(below for infobox in infoboxes for below in infobox.has_parts):
        if part.name.strip(" :") and part.type not in {"image", "section", "infobox"}:
            assert {" ".join(value.split()) for value in part.values or (part.value,)} - {""} <= values
    assert all(fact.values and fact.value and "" not in fact.values for fact in facts.values())


def test_text_is_in_reading_order_with_headings_lists_and_tables():
    assert CITY.text() == TEXT
    assert StructuredContent(abstract=" Only this. ").text() == "Only this."
    assert StructuredContent().text() == ""


def test_a_table_that_cannot_be_read_does_not_hide_its_cell():
    data: dict[str, object] = {
        "tables": [{"identifier": "t", "rows": [[{"value": "shown", "nested_table": "not JSON"}]]}]
    }
    data |= {"sections": [{"type": "table", "table_references": [{"identifier": "t"}, {"identifier": "missing"}]}]}
    assert msgspec.convert(data, StructuredContent).text() == "shown"


def test_passages_stay_within_their_sections():
    passages = CITY.passages(60)
    assert [(passage.headings, passage.text) for passage in passages] == [
        ((), "Montreal is a city.\n\nIt has an island."),
        (("Geography",), "Montreal is in Quebec."),
        (("Geography", "Climate"), "Month | High\nJuly | 26 (day)\n\n- cold winters\n- warm summers"),
        (("Geography", "Climate"), "- in July"),
        (("History",), "Founded in 1642."),
    ]
    assert [passage.number for passage in passages] == [0, 1, 2, 3, 4]
    assert [citation.identifier for citation in passages[0].citations] == ["cite_note-2"]
    assert StructuredContent().passages() == []


def test_a_long_paragraph_is_cut_after_sentences_else_between_words():
    def cut(text, size):
        return [passage.text for passage in passages_of([Block(text)], size)]

    assert cut("One two. Three four. Five.", 21) == ["One two. Three four.", "Five."]
    assert cut('He said "One two." Then he left.', 20) == ['He said "One two."', "Then he left."]
    assert cut("一二三。四五六。七八九。", 9) == ["一二三。四五六。", "七八九。"]
    assert cut("one two three four", 9) == ["one two", "three", "four"]
    assert cut("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert cut("a.b.c first line\nsecond", 18) == ["a.b.c first line", "second"]


def test_whitespace_alone_is_no_passage():
    assert [passage.text for passage in passages_of([Block("   ab   ")], 2)] == ["ab"]


BLOCKS = st.lists(
    st.builds(
        Block,
        text=st.text("ab.! \n。", min_size=1, max_size=60).map(str.strip).filter(bool),
        headings=st.sampled_from([(), ("A",), ("A", "B"), ("C",)]),
        citations=st.lists(st.builds(Citation, identifier=st.sampled_from("12")), max_size=2).map(tuple),
        tight=st.booleans(),
    ),
    max_size=8,
)


@given(BLOCKS, st.integers(1, 50))
def test_passages_are_short_and_lose_nothing(blocks, size):
    passages = passages_of(blocks, size)
    assert all(0 < len(passage.text) <= size and passage.text == passage.text.strip("\n") for passage in passages)
    letters = re.sub(r"\s", "", "".join(block.text for block in blocks))
    assert re.sub(r"\s", "", "".join(passage.text for passage in passages)) == letters
    assert [passage.number for passage in passages] == list(range(len(passages)))
    assert {passage.headings for passage in passages} == {block.headings for block in blocks}
    cited = {(block.headings, citation.identifier) for block in blocks for citation in block.citations}
    assert {(passage.headings, citation.identifier) for passage in passages for citation in passage.citations} == cited
    assert re.sub(r"\s", "", text_of(blocks)).count("a") >= letters.count("a")


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("9", TypeError)])
def test_the_size_is_a_whole_number_above_zero(size, error):
    with pytest.raises(error, match="max_chars"):
        CITY.passages(size)


def test_deep_trees_are_read():
    part = Part(type="field", name="Deep", value="down")
    for _ in range(5000):
        part = Part(type="list", has_parts=(part,))
    content = StructuredContent(infoboxes=(Part(has_parts=(part,)),), sections=(part,))
    assert (list(content.facts()), content.text()) == (["Deep"], "down")


def test_generated_records_of_all_shapes_have_facts_and_passages():
    for number in range(3):
        for record in (ArticleGenerator(seed=number).structured(number),):
            content = msgspec.json.decode(msgspec.json.encode(record), type=StructuredContent)
            assert {"Area", "Country"} <= content.facts().keys()
            assert content.facts()["Country"].values == ("France", "Spain")
            assert [link.text for link in content.facts()["Country"].links] == ["France", "Spain"]
            headings = {passage.headings for passage in content.passages()}
            assert {(), ("Geography and climate",), ("Geography and climate", "Climate")} <= headings
            assert "Month | High (°C)" in content.text()
