"""The Wikidata beta of the simulator, by a plain HTTP client."""

import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from yarl import URL

from wme_async.simulator import Simulator

START = datetime(2026, 7, 16, 7, 20, tzinfo=UTC)
HOUR = "2026-07-16/05"


class Caller:
    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session

    async def login(self, username: str, password: str) -> None:
        form = {"username": username, "password": password}
        async with self.session.post(f"{self.simulator.auth_url}/v1/login", json=form) as response:
            self.session.headers["Authorization"] = f"Bearer {(await response.json())['access_token']}"

    async def get(self, path: str, **document: Any) -> tuple[int, Any]:
        method = "POST" if document else "GET"
        url = self.simulator.api_url + path
        async with self.session.request(method, url, json=document or None) as response:
            return response.status, json.loads(await response.read())

    async def lines(self, path: str) -> list[bytes]:
        async with self.session.get(f"{self.simulator.api_url}{path}/download", allow_redirects=False) as response:
            assert response.status == 307
            location = response.headers["Location"]
        async with aiohttp.ClientSession() as session, session.get(URL(location, encoded=True)) as response:
            assert response.status == 200
            body = await response.read()
        _, row = await self.get(path)
        assert row["version"] == hashlib.md5(body).hexdigest()
        found = []
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found += file.read().split(b"\n")[:-1]
        return found


@pytest.fixture
async def call() -> AsyncIterator[Caller]:
    async with Simulator(start=START, frozen=True) as simulator, aiohttp.ClientSession() as session:
        caller = Caller(simulator, session)
        await caller.login("simulated", "simulated-password")
        yield caller


async def test_snapshots_have_chunks_with_the_same_lines_and_no_scholarly_items(call: Caller) -> None:
    _, rows = await call.get("/v2/snapshots/wikidata")
    names = [row["identifier"] for row in rows]
    assert names == ["wikidatawiki_namespace_0", "wikidatawiki_namespace_120"]
    snapshot = await call.lines(f"/v2/snapshots/wikidata/{names[0]}")
    _, chunks = await call.get(f"/v2/snapshots/wikidata/{names[0]}/chunks")
    assert len(chunks) == 3
    pieces = [
        line
        for chunk in chunks
        for line in await call.lines(f"/v2/snapshots/wikidata/{names[0]}/chunks/{chunk['identifier']}")
    ]
    assert pieces == snapshot
    numbers = [int(json.loads(line)["entity"]["identifier"][1:]) for line in snapshot]
    assert len(set(numbers)) == len(numbers)
    assert not any(call.simulator.catalog.entities.is_scholarly(number) for number in numbers)
    properties = await call.lines(f"/v2/snapshots/wikidata/{names[1]}")
    assert {json.loads(line)["namespace"]["identifier"] for line in properties} == {120}


async def test_batches_come_hourly_with_deletes(call: Caller) -> None:
    status, rows = await call.get(f"/v2/batches/wikidata/{HOUR}")
    assert (status, len(rows)) == (200, 2)
    lines = await call.lines(f"/v2/batches/wikidata/{HOUR}/wikidatawiki_namespace_0")
    kinds = {json.loads(line)["event"]["type"] for line in lines}
    assert kinds == {"update", "delete"}
    assert (await call.get("/v2/batches/wikidata/2026-07-16/06"))[0] == 404


async def test_lookups_by_id(call: Caller) -> None:
    status, entity = await call.get("/v2/wikidata/items/Q42")
    assert (status, len(entity), entity[0]["name"], entity[0]["entity"]["type"]) == (200, 1, "Q42", "item")
    assert (await call.get("/v2/wikidata/properties/P31"))[1][0]["entity"]["type"] == "property"
    assert (await call.get("/v2/wikidata/items/Q42", fields=["entity.type"]))[1] == [{"entity": {"type": "item"}}]
    for path in ("items/P31", "properties/Q42", "items/Q7", "items/q42", "labels/nothing"):
        assert (await call.get(f"/v2/wikidata/{path}"))[0] == 404


async def test_labels_are_one_object_or_a_list_of_one(call: Caller) -> None:
    _, labels = await call.get("/v2/wikidata/labels/Q42")
    call.simulator.entities.labels_as_list = True
    assert (await call.get("/v2/wikidata/labels/Q42"))[1] == [labels]
    assert (await call.get("/v2/wikidata/labels/Q42", fields=["de"]))[1] == [{"de": labels["de"]}]
    call.simulator.entities.add({"name": "Q7", "entity": {"labels": {"en": "mine"}}})
    assert (await call.get("/v2/wikidata/labels/Q7"))[1] == [{"en": "mine"}]


async def test_lookups_and_snapshots_are_free_and_metered_and_batches_are_not_free(call: Caller) -> None:
    simulator = call.simulator
    simulator.add_user("free", "free-password", ["group_1"])
    await call.login("free", "free-password")
    assert (await call.get("/v2/wikidata/items/Q42"))[0] == 200
    await call.lines("/v2/snapshots/wikidata/wikidatawiki_namespace_120")
    assert simulator.caps.used("free", "ondemand") == 1
    assert simulator.caps.used("free", "snapshots") == 1
    assert (await call.get(f"/v2/batches/wikidata/{HOUR}"))[0] == 403


async def test_the_stream_of_entities_is_a_firehose_of_its_own(call: Caller) -> None:
    simulator = call.simulator
    partition, offset = simulator.wikidata.publish()
    body = {"parts": [partition // 5], "offsets": {str(partition): offset}}
    headers = {"Accept": "application/x-ndjson"}
    async with call.session.post(f"{simulator.realtime_url}/v2/wikidata", json=body, headers=headers) as response:
        record = json.loads(await response.content.readline())
    assert record["entity"]["type"] == "item"
    assert record["event"]["partition"] == partition
    assert simulator.firehose.published == 0


async def test_in_2025_there_is_no_wikidata() -> None:
    async with Simulator(access="2025") as simulator, aiohttp.ClientSession() as session:
        call = Caller(simulator, session)
        await call.login("simulated", "simulated-password")
        assert (await call.get("/v2/wikidata/items/Q42"))[0] == 403
        assert (await call.get("/v2/snapshots/wikidata"))[0] == 404
        async with session.get(f"{simulator.realtime_url}/v2/wikidata") as response:
            assert response.status == 403
