"""What the service answers where the simulator once answered otherwise; each test states the service's answer."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from plain_http import START, Caller, caller_of

from wme_async.simulator import Accepted, ArticleGenerator, Refused, Simulator, check_stream_request, dumps
from wme_async.simulator.errors import HTTPError
from wme_async.simulator.protocol.stream_request import bind_stream_request

NOW = START.timestamp()


@pytest.fixture
async def world() -> AsyncIterator[Simulator]:
    async with Simulator(start=START, frozen=True) as simulator:
        yield simulator


@pytest.fixture
async def call(world: Simulator) -> AsyncIterator[Caller]:
    async for caller in caller_of(world):
        yield caller


def page(name: str, project: str = "enwiki", **fields: Any) -> dict[str, Any]:
    return {"name": name, "identifier": 7, "is_part_of": {"identifier": project}, **fields}


# 1. Look-ups


@pytest.mark.parametrize("field", ["is_part_of.identifier", "identifier", "url"])
async def test_a_filter_finds_its_page_however_many_projects_have_the_title(
    call: Caller, world: Simulator, field: str
) -> None:
    projects = world.pages.projects
    for number, project in enumerate(projects):
        world.pages.add(page("Everywhere", project, url=f"https://{project}.example/") | {"identifier": number + 1})
    for number in (0, len(projects) // 2, len(projects) - 1):
        record = {"is_part_of.identifier": projects[number], "identifier": number + 1}
        value = record.get(field, f"https://{projects[number]}.example/")
        query = {"filters": [{"field": field, "value": value}], "limit": 1}
        for kind in ("articles", "structured-contents"):
            (row,) = (await call.query(f"/v2/{kind}/Everywhere", **query)).json
            assert row["is_part_of"]["identifier"] == projects[number]


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        (["version.identifier"], {"version"}),
        (["version.*"], {"version"}),
        (["is_part_of.identifier", "sections.name"], {"is_part_of", "sections", "tables"}),
        (["nothing.name", "name"], {"name"}),
    ],
)
async def test_structured_contents_go_by_the_first_segment_of_a_field(
    call: Caller, fields: list[str], keys: set[str]
) -> None:
    (whole,) = (await call.query("/v2/structured-contents/NATO", limit=1)).json
    (record,) = (await call.query("/v2/structured-contents/NATO", limit=1, fields=fields)).json
    assert set(record) == keys
    if "version" in keys:
        assert set(record["version"]) == set(whole["version"])


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        (["main_entity.identifier"], {"main_entity": {}}),
        (["a.b.c"], {"a": {"b": {}}}),
        (["a.*"], {}),
        (["license.0.identifier"], {"license": {"0": {"identifier": "CC"}}}),
        (["license.1.identifier"], {"license": {"1": {}}}),
        (["version.tags.#"], {"version": {"tags": {"#": 2}}}),
        (["license.identifier"], {"license": {}}),
        (["name"], {"name": "Shape"}),
    ],
)
async def test_selected_objects_come_back_if_only_empty(
    call: Caller, world: Simulator, fields: list[str], answer: dict[str, Any]
) -> None:
    world.pages.add(page("Shape", version={"tags": ["a", "b"]}, license=[{"identifier": "CC", "name": "n"}]))
    (record,) = (await call.query("/v2/articles/Shape", fields=fields)).json
    assert record == answer


async def test_a_look_up_without_a_name_is_not_found_whatever_its_limit(call: Caller) -> None:
    for limit in (1, 11, 100):
        for path in ("/v2/articles/", "/v2/structured-contents/"):
            assert (await call.query(path, limit=limit)).status == 404
    assert (await call.query("/v2/articles/NATO", limit=11)).status == 422


# 4. Monthly allowances


async def test_the_last_group_alone_decides_on_the_allowance() -> None:
    caps = {"group_1": {"ondemand": 1}, "group_3": {"ondemand": 2}}
    async with Simulator(start=START, frozen=True, groups=["group_3", "group_1"], caps=caps) as simulator:
        async for call in caller_of(simulator):
            statuses = [(await call.get("/v2/articles/NATO")).status for _ in range(3)]
            assert statuses == [200, 200, 429]
            assert simulator.caps.used("simulated", "ondemand") == 2


async def test_without_an_allowance_nothing_is_counted() -> None:
    async with Simulator(start=START, frozen=True, groups=["group_1", "group_2"]) as simulator:
        async for call in caller_of(simulator):
            assert (await call.get("/v2/articles/NATO")).status == 200
            assert simulator.caps.used("simulated", "ondemand") == 0


# 5. Records


def empty_strings(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [name for key, inner in value.items() for name in empty_strings(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [name for inner in value for name in empty_strings(inner, path)]
    return [path] if value == "" else []


@pytest.mark.parametrize("size", [700, 1000, 3000, 8192, 9000, 50_000])
def test_a_generated_article_has_its_size_and_no_empty_string(size: int) -> None:
    for index in range(20):
        record = ArticleGenerator(1).article(index, size=size)
        assert len(dumps(record)) == size
        assert empty_strings(record) == []


async def test_structured_records_have_the_order_of_the_wire(call: Caller, world: Simulator) -> None:
    (record,) = (await call.query("/v2/structured-contents/NATO", limit=1)).json
    keys = list(record)
    assert keys[keys.index("license") + 1] == "description"
    order = [key for key in keys if key in {"infoboxes", "sections", "tables", "references"}]
    assert order == ["infoboxes", "sections", "tables", "references"]


# 6. The realtime host


@pytest.mark.parametrize(("method", "status"), [("GET", 301), ("POST", 307)])
@pytest.mark.parametrize("path", ["/v2/articles", "/v2/wikidata"])
async def test_the_realtime_host_redirects_a_last_slash(
    call: Caller, world: Simulator, method: str, status: int, path: str
) -> None:
    reply = await call.send(method, f"{world.realtime_url}{path}/?parts=1")
    assert (reply.status, reply.headers["Location"]) == (status, f"{path}?parts=1")


async def test_the_realtime_host_allows_other_origins(call: Caller, world: Simulator) -> None:
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "GET"}
    reply = await call.send("OPTIONS", f"{world.realtime_url}/v2/articles", headers=headers)
    assert reply.status == 204
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert reply.headers["Access-Control-Allow-Headers"] == "*"
    assert "GET" in reply.headers["Access-Control-Allow-Methods"]


# 7. Stream requests


def answer(body: str, content_type: str = "application/json", method: str = "POST") -> Accepted | Refused:
    try:
        model = bind_stream_request(method, "", content_type, body.encode())
    except HTTPError as error:
        return Refused(error.status, error.message)
    return check_stream_request(model, now=NOW)


@pytest.mark.parametrize("body", ["[]", '""', "0", "false", "[1]"])
def test_a_body_that_is_not_an_object_is_refused(body: str) -> None:
    reply = answer(body)
    assert isinstance(reply, Refused)
    assert reply.status == 422


def test_null_and_an_empty_object_ask_for_everything() -> None:
    assert answer("null") == answer("{}") == Accepted(partitions=tuple(range(50)))


@pytest.mark.parametrize("value", [True, False])
def test_internal_messages_cannot_be_filtered(value: bool) -> None:
    reply = answer(json.dumps({"filters": [{"field": "event.is_internal_message", "value": value}]}))
    assert reply == Refused(422, "the filter 'event.is_internal_message' should not be of type 'bool'")


@pytest.mark.parametrize("tail", ["x", "{}", ' {"parts":[2]}', "]", "\n\n!"])
def test_whatever_follows_the_first_value_is_ignored(tail: str) -> None:
    assert answer('{"parts":[1]}' + tail) == answer('{"parts":[1]}')
    assert isinstance(answer("!" + tail), Refused)


@pytest.mark.parametrize("kind", ["application/xml", "text/xml", "application/xml; charset=utf-8"])
def test_a_body_that_is_called_xml_is_not_read(kind: str) -> None:
    assert answer('{"parts":[1]}', kind) == answer("{}")


def test_of_two_wrong_keys_the_first_of_the_body_is_reported() -> None:
    for first, second in (("parts", "fields"), ("fields", "parts"), ("offsets", "filters"), ("filters", "offsets")):
        reply = answer(json.dumps({first: "x", second: "x"}))
        assert isinstance(reply, Refused)
        assert f"Model.{first} " in reply.text


# 9. Accounts


@pytest.mark.parametrize("name", ["create-user", "confirm-user", "resend-confirm"])
async def test_an_empty_body_is_refused(call: Caller, name: str) -> None:
    reply = await call.auth(name)
    assert (reply.status, reply.message) == (422, "Internal error, please try again later.")


async def test_an_account_is_created_and_confirmed(call: Caller) -> None:
    form = {
        "username": "new",
        "email": "new@example.org",
        "password": "long-enough",
        "captcha_id": "c",
        "captcha_solution": "123456",
        "policy_date_accept": "2026-01-01T00:00:00Z",
        "policy_version": "v1.0",
        "marketing_emails": "false",
    }
    assert (await call.auth("create-user", **{**form, "password": "short"})).status == 422
    assert (await call.auth("create-user", **form)).status == 204
    assert (await call.auth("create-user", **form)).status == 400
    assert (await call.auth("resend-confirm", username="new")).status == 204
    assert (await call.auth("resend-confirm", username="nobody")).status == 401
    confirmed = await call.auth("confirm-user", username="new", confirmation_code="123456")
    assert (confirmed.status, confirmed.json["email"]) == (200, "new@example.org")
    assert set(confirmed.json) == {"userId", "email"}


# Its end


async def test_its_end_does_not_wait_for_archives_that_are_being_built() -> None:
    loop = asyncio.get_running_loop()
    threads = set(threading.enumerate())
    async with Simulator(start=START, articles=10**9) as simulator:
        async for call in caller_of(simulator):
            listing = asyncio.create_task(call.get("/v2/batches/2026-07-16/05"))
            async with asyncio.timeout(20):
                while not set(threading.enumerate()) - threads:  # noqa: ASYNC110 - a thread sets no event of ours
                    await asyncio.sleep(0.01)
            listing.cancel()
            await asyncio.wait([listing])
    async with asyncio.timeout(20):
        await loop.shutdown_default_executor()
