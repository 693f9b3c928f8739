"""Parameters and look-ups of the simulator, by a plain HTTP client."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_http import START, Caller, caller_of

from wme_async.simulator import Simulator
from wme_async.simulator.errors import HTTPError
from wme_async.simulator.hosts.http import negotiate
from wme_async.simulator.protocol.gjson import MISSING, get
from wme_async.simulator.protocol.query import Query, bind, select_rows


@pytest.fixture
async def world() -> AsyncIterator[Simulator]:
    async with Simulator(start=START, frozen=True) as simulator:
        yield simulator


@pytest.fixture
async def call(world: Simulator) -> AsyncIterator[Caller]:
    async for caller in caller_of(world):
        yield caller


# Negotiation and parameters


@pytest.mark.parametrize(
    ("accept", "kind", "body"),
    [
        (None, "application/json", "list"),
        ("*/*", "application/json", "list"),
        ("application/x-ndjson", "application/x-ndjson", "lines"),
        ("application/x-ndjson;q=0.1, application/json", "application/x-ndjson", "lines"),
        ("text/html", "text/plain; charset=utf-8", "glued"),
    ],
)
async def test_the_first_type_that_matches_decides(call: Caller, accept: str | None, kind: str, body: str) -> None:
    whole = (await call.get("/v2/codes")).json
    reply = await call.get("/v2/codes", accept=accept)
    assert reply.headers["Content-Type"] == kind
    rows = [json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() for row in whole]
    expected = {"list": b"[" + b",".join(rows) + b"]", "lines": b"\n".join(rows), "glued": b"".join(rows)}
    assert reply.body == expected[body]


async def test_errors_follow_the_accept_header_too(call: Caller) -> None:
    for accept, kind in [("application/x-ndjson", "application/x-ndjson"), ("text/html", "text/plain; charset=utf-8")]:
        reply = await call.get("/v2/nothing", accept=accept)
        assert reply.headers["Content-Type"] == kind
        assert reply.message == "Forbidden"


@given(st.text(alphabet="aplictionjsx-d/*;q=0.5, ", max_size=30))
def test_negotiation_answers_with_an_offer_or_nothing(accept: str) -> None:
    assert negotiate(accept) in {"application/json", "application/x-ndjson", ""}


async def test_a_json_body_counts_only_for_post_with_its_content_type(call: Caller) -> None:
    body = json.dumps({"fields": ["identifier"]}).encode()
    for method, headers in [
        ("POST", {}),
        ("POST", {"Content-Type": "text/plain"}),
        ("GET", {"Content-Type": "application/json"}),
    ]:
        reply = await call(method, "/v2/codes", data=body, headers=headers)
        assert "name" in reply.json[0]
    reply = await call("POST", "/v2/codes", data=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert list(reply.json[0]) == ["identifier"]


async def test_a_comma_in_a_query_is_part_of_one_name(call: Caller) -> None:
    assert (await call.get("/v2/codes?fields=name,identifier")).json[0] == {}
    assert list((await call.get("/v2/codes?fields=name&fields=identifier")).json[0]) == ["name", "identifier"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"limit":101}', "Key: 'Model.Limit' Error:Field validation for 'Limit' failed on the 'max' tag"),
        (b'{"fields":[""]}', "Key: 'Model.Fields[0]' Error:Field validation for 'Fields[0]' failed on the 'min' tag"),
        (b'{"limit":"1"}', "json: cannot unmarshal string into Go struct field Model.limit of type int"),
        (b'{"fields":"a"}', "json: cannot unmarshal string into Go struct field Model.fields of type []string"),
        (b'{"limit":', "unexpected EOF"),
        (b'{"limit":1.5}', "json: cannot unmarshal number 1.5 into Go struct field Model.limit of type int"),
        (b'{"limit":NaN}', "invalid character 'N' looking for beginning of value"),
        (b"[1]", "json: cannot unmarshal array into Go value of type proxy.Model"),
        (b'{"fields":[1]}', "json: cannot unmarshal number into Go struct field Model.fields of type string"),
        (
            b'{"filters":{}}',
            "json: cannot unmarshal object into Go struct field Model.filters of type []*httputil.Filter",
        ),
        (
            b'{"filters":[1]}',
            "json: cannot unmarshal number into Go struct field Model.filters of type httputil.Filter",
        ),
        (
            b'{"filters":[{"field":1}]}',
            "json: cannot unmarshal number into Go struct field Filter.filters.field of type string",
        ),
        (
            json.dumps({"fields": ["a"] * 256}).encode(),
            "Key: 'Model.Fields' Error:Field validation for 'Fields' failed on the 'max' tag",
        ),
        (
            json.dumps({"filters": [{"field": "a", "value": "b"}] * 256}).encode(),
            "Key: 'Model.Filters' Error:Field validation for 'Filters' failed on the 'max' tag",
        ),
        (b"nonsense", "invalid character 'n' looking for beginning of value"),
    ],
)
async def test_parameters_are_refused_in_the_servers_words(call: Caller, body: bytes, message: str) -> None:
    reply = await call("POST", "/v2/codes", data=body, headers={"Content-Type": "application/json"})
    assert (reply.status, reply.message) == (422, message)


@pytest.mark.parametrize("body", [b"", b"null", b'{"unknown":1}', b'{"FIELDS":null}'])
async def test_bodies_that_ask_for_nothing_are_fine(call: Caller, body: bytes) -> None:
    reply = await call("POST", "/v2/codes", data=body, headers={"Content-Type": "application/json"})
    assert len(reply.json) == 8


async def test_forms_bind_filters_and_limits_too(call: Caller) -> None:
    form = {"filters": '{"field":"identifier","value":"wiki"}', "limit": "3"}
    posted = await call("POST", "/v2/codes", data=form)
    assert [row["identifier"] for row in posted.json] == ["wiki"]
    assert (await call.get("/v2/codes?limit=x")).message == 'strconv.ParseInt: parsing "x": invalid syntax'
    assert (await call.get("/v2/codes?limit=")).status == 200


# On-demand


async def test_lookups_find_exact_titles_in_the_first_projects(call: Caller) -> None:
    records = (await call.get("/v2/articles/Marie%20Curie")).json
    assert len(records) == 3
    assert {page["name"] for page in records} == {"Marie Curie"}
    assert (await call.get("/v2/articles/marie%20curie")).status == 404
    assert len((await call.query("/v2/articles/AC/DC", limit=10)).json) == 10
    assert len((await call.query("/v2/articles/AC%2FDC", limit=1)).json) == 1
    assert (await call.query("/v2/articles/NATO", limit=11)).message == "limit cannot be greater than 10"
    assert (await call.get("/v2/articles/What%20Is%20Life%3F")).status == 200


async def test_winners_differ_from_call_to_call_and_not_from_run_to_run() -> None:
    runs = []
    for _ in range(2):
        async with Simulator(start=START, frozen=True) as simulator:
            async for call in caller_of(simulator):
                replies = [(await call.get("/v2/articles/NATO")).json for _ in range(6)]
                runs.append([[page["is_part_of"]["identifier"] for page in reply] for reply in replies])
    assert runs[0] == runs[1]
    assert len({tuple(winners) for winners in runs[0]}) > 1


async def test_lookup_filters_are_typed_and_miss_what_is_not_stored(call: Caller) -> None:
    path = "/v2/articles/NATO"
    one = (await call.query(path, filters=[{"field": "in_language.identifier", "value": "fr"}])).json
    assert [page["is_part_of"]["identifier"] for page in one] == ["frwiki"]
    french = {"field": "is_part_of.identifier", "value": "frwiki"}
    page_id = one[0]["identifier"]
    for name, value, status in [
        ("identifier", page_id, 200),
        ("identifier", float(page_id), 200),
        ("identifier", str(page_id), 404),
        ("namespace.identifier", 0, 200),
        ("version.is_breaking_news", False, 404),
        ("no_such_field", None, 200),
    ]:
        assert (await call.query(path, filters=[french, {"field": name, "value": value}])).status == status


async def test_lookup_fields_are_paths(call: Caller) -> None:
    async def ask(*fields: str) -> Any:
        where = [{"field": "is_part_of.identifier", "value": "enwiki"}]
        return (await call.query("/v2/articles/NATO", fields=list(fields), filters=where)).json[0]

    record = await ask()
    assert await ask("version.identifier") == {"version": {"identifier": record["version"]["identifier"]}}
    assert await ask("version", "version.identifier") == {"version": {"identifier": record["version"]["identifier"]}}
    assert await ask("version.identifier", "version") == {"version": record["version"]}
    assert await ask("version.*") == {"version": record["version"]}
    assert await ask("*") == {"*": record["name"]}
    assert await ask("license.name", "unknown") == {"license": {}}


def test_paths_reach_lists_by_index_and_hash() -> None:
    page = {"categories": [{"name": "A"}, {"name": "B"}], "a.b": 1}
    assert get(page, "categories.0.name") == "A"
    assert get(page, "categories.#") == 2
    assert get(page, "categories.#.name") == ["A", "B"]
    assert get(page, "categories.name") is MISSING
    assert get(page, r"a\.b") == 1
    assert get(page, "@this.cat*.1.na?e") == "B"
    assert get(page, "x*") is MISSING
    assert get(page, "categories.7") is MISSING


@pytest.mark.parametrize(
    ("name", "value"), [("license", [1]), ("version", {"identifier": 1})], ids=["lists", "objects"]
)
async def test_comparing_lists_or_objects_kills_the_connection(call: Caller, name: str, value: Any) -> None:
    with pytest.raises(aiohttp.ClientError):
        await call.query("/v2/articles/NATO", filters=[{"field": name, "value": value}])
    assert (await call.query("/v2/articles/NATO", filters=[{"field": "name", "value": value}])).status == 404


async def test_structured_contents_of_an_own_page(call: Caller) -> None:
    page = {"name": "My Page", "identifier": 5, "url": "u", "is_part_of": {"identifier": "dewiki"}}
    call.simulator.pages.add(page)
    record = (await call.get("/v2/structured-contents/My_Page")).json[0]
    assert (record["name"], record["identifier"], record["url"]) == ("My Page", 5, "u")
    assert record["sections"]
    call.simulator.pages.add_structured({**page, "sections": [None]})
    assert (await call.get("/v2/structured-contents/My_Page?fields=sections")).json == [{"sections": [None]}]


async def test_a_null_filter_kills_the_lookup_connection(call: Caller) -> None:
    with pytest.raises(aiohttp.ClientError):
        await call.query("/v2/articles/NATO", filters=[None])


async def test_structured_contents_select_whole_parts_only(call: Caller) -> None:
    path = "/v2/structured-contents/NATO"
    record = (await call.query(path, limit=1)).json[0]
    assert {"name", "infoboxes", "sections", "tables", "references", "attribution"} <= record.keys()
    assert not {"article_body", "event", "categories"} & record.keys()
    assert record["name"] == "NATO"
    base = (await call.query(path, limit=1, fields=["tables", "article_sections"])).json[0]
    assert not {"sections", "tables", "infoboxes"} & base.keys()
    assert "url" in base
    both = (await call.query(path, limit=1, fields=["sections"])).json[0]
    assert set(both) == {"sections", "tables"}


async def test_structured_contents_fall_back_to_the_article_and_can_be_malformed(call: Caller) -> None:
    call.simulator.faults.inject("raw", path="structured-contents")
    mixed = (await call.get("/v2/structured-contents/NATO")).json
    assert ["article_body" in record for record in mixed] == [True, False, False]
    call.simulator.faults.inject("malformed", path="structured-contents")
    with pytest.raises(json.JSONDecodeError):
        _ = (await call.get("/v2/structured-contents/NATO")).json


async def test_pages_can_be_added_removed_and_hidden(call: Caller) -> None:
    page = {"name": "My Page", "identifier": 5, "namespace": {"identifier": 0}, "is_part_of": {"identifier": "dewiki"}}
    call.simulator.pages.add(page)
    assert (await call.get("/v2/articles/My_Page")).json == [page]
    call.simulator.faults.inject("not_there")
    assert (await call.get("/v2/articles/My_Page")).status == 404
    assert "My Page" in call.simulator.pages.titles("dewiki")
    call.simulator.pages.remove("dewiki", "My Page")
    assert (await call.get("/v2/articles/My_Page")).status == 404


# Pure parts


@given(
    value=st.one_of(st.text(max_size=5).filter(lambda text: "'" not in text), st.integers(-5, 5), st.booleans()),
    rows=st.lists(st.fixed_dictionaries({"a": st.one_of(st.text(max_size=5), st.integers(-5, 5))}), max_size=8),
)
def test_select_follows_its_rules_for_every_value(value: Any, rows: list[dict[str, Any]]) -> None:
    selected = select_rows(rows, Query(filters=(("a", value),)))
    if isinstance(value, bool):
        assert selected == rows
    elif isinstance(value, str):
        assert selected == [row for row in rows if row["a"] == value]
    else:
        assert selected == [row for row in rows if isinstance(row["a"], int) and row["a"] > value]


@given(st.binary(max_size=60))
def test_any_body_is_bound_or_refused(body: bytes) -> None:
    error: HTTPError | None = None
    limit = 0
    try:
        limit = bind("POST", "application/json", "", body).limit
    except HTTPError as raised:
        error = raised
    assert limit <= 100
    assert error is None or (error.status == 422 and error.message)
