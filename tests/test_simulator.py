"""The simulator alone, by plain HTTP clients: it must answer as the real services do, odd answers included."""

import asyncio
import hashlib
import http.client
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from wme_async.simulator import AccessRow, Simulator
from wme_async.simulator._access import allowed
from wme_async.simulator._gjson import MISSING, get
from wme_async.simulator._http import negotiate
from wme_async.simulator._query import Query, Refused, bind, select_rows

START = datetime(2026, 7, 16, 7, 20, tzinfo=UTC)
HOUR = "2026-07-16/05"
ENWIKI = f"/v2/batches/{HOUR}/enwiki_namespace_0"


class Reply:
    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        document = self.json
        assert list(document) == ["status", "message"]
        assert document["status"] == self.status
        assert self.body.endswith(b"}\n")
        return str(document["message"])


class Caller:
    """A thin HTTP client that knows one token."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session
        self.token = ""

    async def login(self, username: str = "simulated", password: str = "simulated-password") -> dict[str, Any]:
        reply = await self.auth("login", username=username, password=password)
        assert reply.status == 200
        self.token = reply.json.get("access_token", "")
        found: dict[str, Any] = reply.json
        return found

    async def auth(self, name: str, **form: Any) -> Reply:
        return await self.send("POST", f"{self.simulator.auth_url}/v1/{name}", json=form)

    async def send(self, method: str, url: str, **options: Any) -> Reply:
        async with self.session.request(method, URL(url, encoded=True), allow_redirects=False, **options) as response:
            return Reply(response, await response.read())

    async def __call__(self, method: str, path: str, *, accept: str | None = None, **options: Any) -> Reply:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        if accept is not None:
            headers["Accept"] = accept
        return await self.send(method, self.simulator.api_url + path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> Reply:
        return await self("GET", path, **options)

    async def query(self, path: str, **document: Any) -> Reply:
        return await self("POST", path, json=document)

    async def signed(self, path: str) -> str:
        reply = await self.get(path)
        assert reply.status == 307
        return str(reply.headers["Location"])


async def caller_of(simulator: Simulator) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as session:
        made = Caller(simulator, session)
        await made.login()
        yield made


@pytest.fixture
async def world() -> AsyncIterator[Simulator]:
    async with Simulator(start=START, frozen=True) as simulator:
        yield simulator


@pytest.fixture
async def call(world: Simulator) -> AsyncIterator[Caller]:
    async for made in caller_of(world):
        yield made


# Auth


async def test_login_gives_three_tokens_and_their_lifetime(call: Caller) -> None:
    tokens = await call.login()
    assert list(tokens) == ["id_token", "access_token", "refresh_token", "expires_in"]
    assert tokens["expires_in"] == 86_400
    assert tokens["access_token"].count(".") == 2


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"json": {"username": "simulated", "password": "wrong"}}, 401, "Incorrect username or password."),
        ({"json": {"username": "simulated"}}, 422, "Internal error, please try again later."),
        ({"json": {"username": "x" * 256, "password": "y"}}, 422, "Internal error, please try again later."),
        ({"data": b'{"username":"simulated","password":"simulated-password"}'}, 422, None),
    ],
    ids=["wrong password", "no password", "long name", "JSON without its header"],
)
async def test_login_refuses(call: Caller, options: dict[str, Any], status: int, message: str | None) -> None:
    reply = await call.send("POST", f"{call.simulator.auth_url}/v1/login", **options)
    assert reply.status == status
    assert message in {None, reply.message}


async def test_login_reads_a_form_too(call: Caller) -> None:
    reply = await call.send(
        "POST",
        f"{call.simulator.auth_url}/v1/login",
        data={"username": "simulated", "password": "simulated-password"},
    )
    assert reply.status == 200


async def test_an_unknown_auth_path_is_404_without_a_token(call: Caller) -> None:
    assert (await call.auth("nothing")).message == "Not Found"


async def test_access_tokens_expire_by_the_clock_on_every_call(call: Caller) -> None:
    call.simulator.clock.advance(86_400)
    assert (await call.get("/v2/codes")).status == 200
    call.simulator.clock.advance(3723)
    reply = await call.get("/v2/codes")
    assert (reply.status, reply.message) == (401, "token is expired by 1h2m3s")


async def test_a_refresh_gives_no_new_refresh_token_and_ends_after_ninety(call: Caller) -> None:
    tokens = await call.login()
    form = {"username": "simulated", "refresh_token": tokens["refresh_token"]}
    for _ in range(90):
        reply = await call.auth("token-refresh", **form)
        assert (reply.status, list(reply.json)) == (200, ["id_token", "access_token", "expires_in"])
    reply = await call.auth("token-refresh", **form)
    assert (reply.status, reply.message) == (429, "Refresh tokens limit has been exceeded.")
    await call.login()
    assert (await call.get("/v2/codes")).status == 200


async def test_a_refresh_wants_the_very_name_of_the_account(call: Caller) -> None:
    call.simulator.add_user("carol", "secret-password", email="carol@example.org")
    tokens = await call.login("carol@example.org", "secret-password")
    refused = await call.auth("token-refresh", username="carol@example.org", refresh_token=tokens["refresh_token"])
    assert (refused.status, refused.message) == (401, "Unauthorized.")
    assert (await call.auth("token-refresh", username="carol", refresh_token=tokens["refresh_token"])).status == 200


async def test_a_refresh_token_lives_ninety_days(call: Caller) -> None:
    tokens = await call.login()
    call.simulator.clock.advance(90 * 86_400 + 1)
    form = {"username": "simulated", "refresh_token": tokens["refresh_token"]}
    assert (await call.auth("token-refresh", **form)).status == 401


async def test_revoking_kills_refreshed_tokens_but_not_a_login_token_that_was_used(call: Caller) -> None:
    tokens = await call.login()
    used = call.token
    assert (await call.get("/v2/codes")).status == 200
    fresh = (await call.auth("token-refresh", username="simulated", refresh_token=tokens["refresh_token"])).json
    reply = await call.auth("token-revoke", refresh_token=tokens["refresh_token"])
    assert (reply.status, reply.body) == (204, b"")
    call.token = fresh["access_token"]
    assert (await call.get("/v2/codes")).status == 401
    call.token = used
    assert (await call.get("/v2/codes")).status == 200
    call.simulator.clock.advance(-1)
    assert (await call.auth("token-revoke", refresh_token=tokens["refresh_token"])).message == "Unauthorized"


async def test_revoking_kills_a_login_token_that_was_never_used(call: Caller) -> None:
    tokens = await call.login()
    await call.auth("token-revoke", refresh_token=tokens["refresh_token"])
    assert (await call.get("/v2/codes")).status == 401


async def test_a_challenge_may_stand_beside_tokens_or_instead_of_them(call: Caller) -> None:
    call.simulator.add_user("emulated", "emulated-password", challenge="PASSWORD_VERIFIER")
    call.simulator.add_user("invited", "first-password", challenge="NEW_PASSWORD_REQUIRED")
    beside = await call.login("emulated", "emulated-password")
    assert beside["access_token"]
    assert beside["challenge_name"] == "PASSWORD_VERIFIER"
    instead = await call.login("invited", "first-password")
    assert list(instead) == ["challenge_name", "session"]
    answered = await call.auth(
        "new-password-required", username="invited", session=instead["session"], new_password="second-password"
    )
    assert answered.json["refresh_token"]
    assert (await call.login("invited", "second-password"))["access_token"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "Unauthorized"),
        ("Bearer ", "token contains an invalid number of segments"),
        ("Bearer x.y", "token contains an invalid number of segments"),
        ("bearer {token}", "tokenstring should not contain 'bearer '"),
        ("Bearer {token}x", "crypto/rsa: verification error"),
        ("Bearer {token}", None),
        ("{token}", None),
    ],
)
async def test_bearer_parsing(call: Caller, header: str | None, message: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.format(token=call.token)}
    reply = await call.send("GET", f"{call.simulator.api_url}/v2/codes", headers=headers)
    assert (reply.status, message) == ((200, None) if message is None else (401, reply.message))


async def test_get_user_tells_counts_and_the_limits_of_the_process(call: Caller) -> None:
    await call.get("/v2/articles/Squirrel")
    await call.get("/v2/snapshots/enwiki_namespace_0/download")
    headers = {"Authorization": f"Bearer {call.token}"}
    user = (await call.send("POST", f"{call.simulator.auth_url}/v1/get-user", headers=headers)).json
    assert (user["ondemand_requests_count"], user["snapshot_requests_count"], user["chunk_requests_count"]) == (1, 1, 0)
    assert (user["ondemand_limit"], user["snapshot_limit"], user["chunk_limit"]) == (5000, 15, 15)
    assert user["username"] == "simulated"
    assert {"path": "/v2/codes", "method": "GET"} in user["apis"]


# The main host: what stands before every route


async def test_unknown_paths_and_methods_are_401_without_a_token_and_403_with_one(call: Caller) -> None:
    for method, path in [("GET", "/v2/nothing"), ("DELETE", "/v2/codes"), ("PUT", ENWIKI)]:
        assert (await call(method, path)).message == "Forbidden"
        assert (await call.send(method, call.simulator.api_url + path)).status == 401
    assert (await call("HEAD", "/v2/snapshots")).status == 403


async def test_slashes_redirect_before_anything_else(call: Caller) -> None:
    got = await call.send("GET", f"{call.simulator.api_url}/v2/codes/?fields=name")
    assert (got.status, got.headers["Location"]) == (301, "/v2/codes?fields=name")
    posted = await call.send("POST", f"{call.simulator.api_url}/v2/codes/")
    assert (posted.status, posted.headers["Location"]) == (307, "/v2/codes")
    bare = await call.get("/v2/articles")
    assert (bare.status, bare.headers["Location"]) == (301, "/v2/articles/")
    assert (await call.get("/v2/articles/")).status == 404


@pytest.mark.parametrize(
    ("table", "group", "path", "status"),
    [
        ("2026", "group_1", "/v2/snapshots", 200),
        ("2026", "group_1", "/v2/snapshots/structured-contents/enwiki_namespace_0", 200),
        ("2025", "group_1", "/v2/snapshots/structured-contents", 200),
        ("2025", "group_1", "/v2/snapshots/structured-contents/enwiki_namespace_0", 403),
        ("2025", "group_1", "/v2/structured-contents/NATO", 403),
        ("2026", "group_1", "/v2/structured-contents/NATO", 200),
        ("2026", "group_1", f"/v2/batches/{HOUR}", 403),
        ("2026", "group_2", f"/v2/batches/{HOUR}", 200),
        ("2026", "group_2", "/v2/files/Ottawa_0757.jpg", 403),
        ("2026", "group_3", "/v2/files/Ottawa_0757.jpg", 200),
        ("2026", "group_3", "/v2/files/a%2Fb.jpg", 403),
    ],
)
async def test_access_follows_the_table_of_the_year(table: Any, group: str, path: str, status: int) -> None:
    async with Simulator(start=START, frozen=True, access=table, groups=[group]) as simulator:
        async for call in caller_of(simulator):
            assert (await call.get(path)).status == status


async def test_realtime_is_for_the_highest_group_only() -> None:
    async with Simulator(groups=["group_2"]) as simulator:
        async for call in caller_of(simulator):
            headers = {"Authorization": f"Bearer {call.token}"}
            assert (await call.send("GET", f"{simulator.realtime_url}/v2/articles", headers=headers)).status == 403
            assert (await call.send("GET", f"{simulator.realtime_url}/v2/articles")).status == 401
            assert (await call.send("GET", f"{simulator.realtime_url}/v2/status")).status == 200


def test_an_own_table_of_access_is_a_matter_of_rows() -> None:
    rows = [AccessRow("/v2/a/:id/*", ("group_9",), ("GET",))]
    assert allowed(rows, ["group_9"], "GET", "/v2/a/1/b/c")
    assert not allowed(rows, ["group_9"], "POST", "/v2/a/1/b/c")
    assert not allowed(rows, ["group_8"], "GET", "/v2/a/1/b/c")
    assert not allowed(rows, ["group_9"], "GET", "/v2/a/1")


async def test_the_limiter_counts_by_the_last_group_and_says_nothing_of_when_to_return() -> None:
    async with Simulator(start=START, frozen=True, rate_limits={"group_3": 2, "group_1": 100}) as simulator:
        async for call in caller_of(simulator):
            statuses = [(await call.get("/v2/codes")).status for _ in range(3)]
            assert statuses == [200, 200, 429]
            refused = await call.get("/v2/codes")
            assert refused.message == "Too Many Requests"
            assert "Retry-After" not in refused.headers
            simulator.clock.advance(0.5)
            assert (await call.get("/v2/codes")).status == 200


async def test_monthly_allowances_count_what_fails_too_and_begin_again_with_the_month() -> None:
    caps = {"group_1": {"ondemand": 2, "snapshots": 1}}
    async with Simulator(start=START, frozen=True, groups=["group_1"], caps=caps) as simulator:
        async for call in caller_of(simulator):
            assert (await call.get("/v2/articles/Nowhere")).status == 404
            assert (await call.get("/v2/structured-contents/NATO")).status == 200
            assert (await call.get("/v2/articles/NATO")).message == "Too Many Requests"
            assert (await call("HEAD", "/v2/snapshots/enwiki_namespace_0/download")).status == 200
            assert (await call.get("/v2/snapshots/enwiki_namespace_0/download")).status == 307
            assert (await call.get("/v2/snapshots/enwiki_namespace_0/download")).status == 429
            assert (await call.get("/v2/snapshots/structured-contents/enwiki_namespace_0/download")).status == 307
            simulator.clock.advance(16 * 86_400)
            await call.login()
            assert (await call.get("/v2/articles/NATO")).status == 200


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
        (b"nonsense", "invalid character 'n' looking for beginning of value"),
    ],
)
async def test_parameters_are_refused_in_the_servers_words(call: Caller, body: bytes, message: str) -> None:
    reply = await call("POST", "/v2/codes", data=body, headers={"Content-Type": "application/json"})
    assert (reply.status, reply.message) == (422, message)


# Metadata


async def test_dotted_fields_come_back_flat(call: Caller) -> None:
    reply = await call.query(f"/v2/batches/{HOUR}/enwiki_namespace_0", fields=["is_part_of.identifier", "nope.x"])
    assert reply.json == {"is_part_of__identifier": "enwiki"}


async def test_numbers_with_a_fraction_have_an_exponent(call: Caller) -> None:
    body = (await call.get(f"/v2/batches/{HOUR}/enwiki_namespace_0")).body
    assert b'"identifier":0' in body
    assert b'e0,"unit_text":"MB"' in body


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"in_language.identifier": "en"}, lambda row: row["in_language"]["identifier"] == "en"),
        ({"namespace.identifier": 10}, lambda row: row["namespace"]["identifier"] == 10),
        ({"size.value": 0.002}, lambda row: row["size"]["value"] > 0.002),
        ({"nothing.there": "x"}, lambda row: False),
    ],
    ids=["text", "namespace", "greater than", "unknown"],
)
async def test_filters_mean_what_the_select_makes_of_them(call: Caller, filters: dict[str, Any], holds: Any) -> None:
    whole = (await call.get(f"/v2/batches/{HOUR}")).json
    found = await call.query(
        f"/v2/batches/{HOUR}", filters=[{"field": name, "value": value} for name, value in filters.items()]
    )
    assert found.json == [row for row in whole if holds(row)]
    assert len(found.json) < len(whole)


async def test_filters_that_are_dropped_broken_or_fatal(call: Caller) -> None:
    path = f"/v2/batches/{HOUR}"
    whole = (await call.get(path)).json
    for value in (True, False, None, [1], {"a": 1}):
        assert (await call.query(path, filters=[{"field": "identifier", "value": value}])).json == whole
    broken = await call.query(path, filters=[{"field": "identifier", "value": "L'Aquila"}])
    assert broken.status == 500
    assert broken.message
    panic = await call.query(path, filters=[None])
    assert (panic.status, panic.body) == (500, b"")
    assert (await call.query(path, fields=["a..b"])).status == 400


async def test_lists_are_in_byte_order_of_keys_and_leave_tiny_archives_out(call: Caller) -> None:
    names = [row["identifier"] for row in (await call.get("/v2/snapshots")).json]
    assert [name for name in names if name.startswith("dewiki_")] == [f"dewiki_namespace_{n}" for n in (0, 10, 14, 6)]
    assert "abwiki_namespace_6" not in names
    hidden = (await call.get("/v2/snapshots/abwiki_namespace_6")).json
    assert hidden["size"] == {"unit_text": "MB"}
    data = await call.send("GET", await call.signed("/v2/snapshots/abwiki_namespace_6/download"))
    with tarfile.open(fileobj=io.BytesIO(data.body)) as archive:
        assert archive.getnames() == []
    chunks = [row["identifier"] for row in (await call.get("/v2/snapshots/enwiki_namespace_0/chunks")).json]
    assert chunks[:4] == [f"enwiki_namespace_0_chunk_{n}" for n in (0, 1, 10, 11)]


async def test_an_archive_without_metadata_can_be_downloaded_all_the_same(call: Caller) -> None:
    assert (await call.get("/v2/snapshots/commonswiki_namespace_6")).status == 404
    assert (await call.send("GET", await call.signed("/v2/snapshots/commonswiki_namespace_6/download"))).status == 200


async def test_what_is_missing_is_404_with_the_stores_text(call: Caller) -> None:
    for path in ("/v2/codes/nope", "/v2/snapshots/dewiki_namespace_0/chunks", "/v2/batches/2026-07-16/06"):
        reply = await call.get(path)
        assert reply.status == 404
        assert reply.message.startswith("NoSuchKey: ")
        assert "\n\t" in reply.message


async def test_hours_appear_late_and_go_after_two_days(call: Caller) -> None:
    clock = call.simulator.clock
    assert call.simulator.hours[-1] == "2026-07-16T05"
    assert len(call.simulator.hours) == 47
    clock.set(datetime(2026, 7, 16, 8, 24, tzinfo=UTC))
    assert (await call.get("/v2/batches/2026-07-16/07")).status == 404
    assert (await call.get("/v2/batches/2026-07-16/7")).status == 404
    clock.advance(60)
    assert (await call.get("/v2/batches/2026-07-16/07")).status == 200
    clock.advance(48 * 3600)
    await call.login()
    assert (await call.get("/v2/batches/2026-07-16/07")).status == 404


async def test_real_lists_are_served_from_a_folder(shared_data: Any) -> None:
    async with Simulator(start=START, frozen=True, data=shared_data) as simulator:
        async for call in caller_of(simulator):
            assert len((await call.get("/v2/projects")).json) == 892
            real = json.loads((shared_data / "batches.json").read_text())
            listed = (await call.get(f"/v2/batches/{HOUR}")).json
            assert {row["identifier"] for row in listed} == {row["identifier"] for row in real}
            found = (
                await call.get(
                    "/v2/articles/Squirrel?filters=" + quote('{"field":"is_part_of.identifier","value":"enwiki"}')
                )
            ).json
            assert [page["is_part_of"]["identifier"] for page in found] == ["enwiki"]
            assert found[0]["identifier"] == 28492
            data = await call.send("GET", await call.signed(f"{ENWIKI}/download"))
            with tarfile.open(fileobj=io.BytesIO(data.body)) as archive:
                file = archive.extractfile(archive.next())  # type: ignore[arg-type]  # there is a first member
                assert file is not None
                assert json.loads(file.readline())["name"] == "Squirrel"


# Downloads


async def test_a_download_redirects_to_another_origin_whatever_is_asked(call: Caller) -> None:
    for path in (ENWIKI, "/v2/snapshots/no_such_thing", "/v2/snapshots/enwiki_namespace_0/chunks/chunk_99"):
        location = await call.signed(f"{path}/download")
        assert location.startswith(call.simulator.store_url)
        assert "sub=" in location
    missing = await call.send("GET", location)
    assert (missing.status, missing.headers["Content-Type"]) == (404, "application/xml")
    assert b"<Code>NoSuchKey</Code>" in missing.body


async def test_metadata_head_and_bytes_agree(call: Caller) -> None:
    row = (await call.get(ENWIKI)).json
    head = await call("HEAD", f"{ENWIKI}/download")
    assert head.headers["Last-Modified"] == "Thu, 16 Jul 2026 06:00:00 UTC"
    assert head.headers["Content-Type"] == "binary/octet-stream"
    data = await call.send("GET", await call.signed(f"{ENWIKI}/download"))
    assert hashlib.md5(data.body).hexdigest() == row["version"]
    assert data.headers["ETag"] == head.headers["ETag"] == f'"{row["version"]}"'
    assert data.headers["Last-Modified"] == "Thu, 16 Jul 2026 06:00:00 GMT"
    assert int(head.headers["Content-Length"]) == len(data.body)
    assert row["size"]["value"] == round(len(data.body) / 1e6, 3)
    assert (await call("HEAD", "/v2/snapshots/nope/download")).status == 404


async def test_a_snapshot_has_the_bytes_of_its_chunks_and_any_spelling_finds_one(call: Caller) -> None:
    async def lines(path: str) -> list[bytes]:
        data = await call.send("GET", await call.signed(f"{path}/download"))
        with tarfile.open(fileobj=io.BytesIO(data.body)) as archive:
            return [file.read() for member in archive if (file := archive.extractfile(member)) is not None]

    whole = await lines("/v2/snapshots/simplewiki_namespace_0")
    chunks = "/v2/snapshots/simplewiki_namespace_0/chunks"
    assert whole == [*await lines(f"{chunks}/simplewiki_namespace_0_chunk_0"), *await lines(f"{chunks}/x_1")]
    first = (await call.get(f"{chunks}/1")).json
    assert first == (await call.get(f"{chunks}/chunk_1")).json
    listed = (await call.get("/v2/snapshots/simplewiki_namespace_0")).json["chunks"]
    assert sorted(listed) == ["simplewiki_namespace_0_chunk_0", "simplewiki_namespace_0_chunk_1"]


async def test_any_membership_of_the_free_group_gets_the_monthly_copy(call: Caller) -> None:
    paid = (await call.get("/v2/snapshots/enwiki_namespace_0")).json
    call.simulator.add_user("free", "free-password", ["group_1", "group_3"])
    await call.login("free", "free-password")
    free = (await call.get("/v2/snapshots/enwiki_namespace_0")).json
    assert free["identifier"] == paid["identifier"]
    assert free["version"] != paid["version"]
    assert free["date_modified"].startswith("2026-07-01T")
    data = await call.send("GET", await call.signed("/v2/snapshots/enwiki_namespace_0/download"))
    assert hashlib.md5(data.body).hexdigest() == free["version"]


async def test_ranges(call: Caller) -> None:
    location = await call.signed(f"{ENWIKI}/download")
    whole = (await call.send("GET", location)).body
    size = len(whole)
    for asked, start, stop in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{size + 1000}", 5, size),
    ]:
        part = await call.send("GET", location, headers={"Range": asked})
        assert (part.status, part.body) == (206, whole[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
    for odd in ("bytes=0-1,4-5", "bytes=9-3", "lines=0-1", "bytes=-"):
        assert (await call.send("GET", location, headers={"Range": odd})).status == 200
    beyond = await call.send("GET", location, headers={"Range": f"bytes={size}-"})
    assert beyond.status == 416
    assert f"<ActualObjectSize>{size}</ActualObjectSize>".encode() in beyond.body


async def test_a_signature_is_for_one_method_one_minute_and_no_second_authorization(call: Caller) -> None:
    location = await call.signed(f"{ENWIKI}/download")
    assert (await call.send("HEAD", location)).status == 403
    assert b"SignatureDoesNotMatch" in (await call.send("GET", location.replace("enwiki", "dewiki"))).body
    assert b"AccessDenied" in (await call.send("GET", location.partition("?")[0])).body
    doubled = await call.send("GET", location, headers={"Authorization": "Bearer x"})
    assert (doubled.status, b"<Code>InvalidArgument</Code>" in doubled.body) == (400, True)
    call.simulator.clock.advance(60)
    assert (await call.send("GET", location)).status == 200
    call.simulator.clock.advance(1)
    late = await call.send("GET", location)
    assert late.status == 403
    assert b"<Message>Request has expired</Message>" in late.body


async def test_a_replaced_object_fails_if_match_and_may_leave_metadata_behind(call: Caller) -> None:
    key = f"batches/{HOUR}/enwiki_namespace_0.tar.gz"
    before = (await call.get(ENWIKI)).json
    location = await call.signed(f"{ENWIKI}/download")
    etag = (await call.send("GET", location)).headers["ETag"]
    assert (await call.send("GET", location, headers={"If-Match": etag, "Range": "bytes=0-3"})).status == 206
    call.simulator.put_object(key, b"something else", update_metadata=False)
    changed = await call.send("GET", location, headers={"If-Match": etag, "Range": "bytes=0-3"})
    assert (changed.status, b"<Code>PreconditionFailed</Code>" in changed.body) == (412, True)
    assert (await call.get(ENWIKI)).json == before
    call.simulator.put_object(key, b"something new")
    assert (await call.get(ENWIKI)).json["version"] == hashlib.md5(b"something new").hexdigest()
    assert (await call("HEAD", f"{ENWIKI}/download")).headers["Content-Length"] == "13"
    call.simulator.delete_object(key)
    assert (await call.send("GET", location)).status == 404


async def test_large_objects_come_from_files_and_have_multipart_tags(tmp_path: Any) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "large.bin").write_bytes(data)
    async with Simulator(start=START, frozen=True, part_size=1_000_000) as simulator:
        async for call in caller_of(simulator):
            simulator.put_object(f"batches/{HOUR}/enwiki_namespace_0.tar.gz", tmp_path / "large.bin")
            whole = await call.send("GET", await call.signed(f"{ENWIKI}/download"))
            assert whole.body == data
            assert whole.headers["ETag"].endswith('-2"')
            assert (await call.get(ENWIKI)).json["version"] == hashlib.md5(data).hexdigest()
            part = await call.send(
                "GET", await call.signed(f"{ENWIKI}/download"), headers={"Range": "bytes=999-1000000"}
            )
            assert part.body == data[999:1_000_001]


async def test_a_file_of_commons_and_its_page(call: Caller) -> None:
    page = (await call.get("/v2/files/Ottawa%200757.jpg")).json
    data = await call.send("GET", await call.signed("/v2/files/Ottawa_0757.jpg/download"))
    assert hashlib.sha1(data.body).hexdigest() == page["files"][0]["sha1"]
    assert page["files"][0]["size"] == {"value": len(data.body), "unit_text": "B"}
    assert (await call.get("/v2/files/nope.jpg")).status == 404


# On-demand


async def test_lookups_find_exact_titles_in_the_first_projects(call: Caller) -> None:
    found = (await call.get("/v2/articles/Marie%20Curie")).json
    assert len(found) == 3
    assert {page["name"] for page in found} == {"Marie Curie"}
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
    here = {"field": "is_part_of.identifier", "value": "frwiki"}
    page_id = one[0]["identifier"]
    for name, value, status in [
        ("identifier", page_id, 200),
        ("identifier", float(page_id), 200),
        ("identifier", str(page_id), 404),
        ("namespace.identifier", 0, 200),
        ("version.is_breaking_news", False, 404),
        ("no_such_field", None, 200),
    ]:
        assert (await call.query(path, filters=[here, {"field": name, "value": value}])).status == status


async def test_lookup_fields_are_paths(call: Caller) -> None:
    async def ask(*fields: str) -> Any:
        where = [{"field": "is_part_of.identifier", "value": "enwiki"}]
        return (await call.query("/v2/articles/NATO", fields=list(fields), filters=where)).json[0]

    whole = await ask()
    assert await ask("version.identifier") == {"version": {"identifier": whole["version"]["identifier"]}}
    assert await ask("version", "version.identifier") == {"version": {"identifier": whole["version"]["identifier"]}}
    assert await ask("version.identifier", "version") == {"version": whole["version"]}
    assert await ask("version.*") == {"version": whole["version"]}
    assert await ask("*") == {"*": whole["name"]}
    assert await ask("license.name", "unknown") == {"license": {}}


def test_paths_reach_lists_by_index_and_hash() -> None:
    page = {"categories": [{"name": "A"}, {"name": "B"}], "a.b": 1}
    assert get(page, "categories.0.name") == "A"
    assert get(page, "categories.#") == 2
    assert get(page, "categories.#.name") == ["A", "B"]
    assert get(page, "categories.name") is MISSING
    assert get(page, r"a\.b") == 1


async def test_a_null_filter_kills_the_lookup_connection(call: Caller) -> None:
    with pytest.raises(aiohttp.ClientError):
        await call.query("/v2/articles/NATO", filters=[None])


async def test_structured_contents_select_whole_parts_only(call: Caller) -> None:
    path = "/v2/structured-contents/NATO"
    whole = (await call.query(path, limit=1)).json[0]
    assert {"name", "infoboxes", "sections", "tables", "references", "attribution"} <= whole.keys()
    assert not {"article_body", "event", "categories"} & whole.keys()
    assert whole["name"] == "NATO"
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
    found = select_rows(rows, Query(filters=(("a", value),)))
    if isinstance(value, bool):
        assert found == rows
    elif isinstance(value, str):
        assert found == [row for row in rows if row["a"] == value]
    else:
        assert found == [row for row in rows if isinstance(row["a"], int) and row["a"] > value]


@given(st.binary(max_size=60))
def test_any_body_is_bound_or_refused(body: bytes) -> None:
    refused: Refused | None = None
    limit = 0
    try:
        limit = bind("POST", "application/json", "", body).limit
    except Refused as problem:
        refused = problem
    assert limit <= 100
    assert refused is None or (refused.status == 422 and refused.message)


# Life


async def test_requests_are_recorded_as_they_came(call: Caller) -> None:
    requests = call.simulator.requests
    requests.clear()
    await call("POST", "/v2/codes?a=%2F&a=2", data=b"xyz", headers={"X-Twice": "1"})
    record = requests.last
    assert (record.role, record.method, record.path, record.query) == ("api", "POST", "/v2/codes", "a=%2F&a=2")
    assert (record.body, record.status, record.params) == (b"xyz", 200, {"a": ["/", "2"]})
    assert record.header("x-twice") == "1"
    assert record.header("authorization") == f"Bearer {call.token}"
    await call.get("/v2/nothing")
    assert requests.count("api", status=403) == 1
    assert requests.statuses == {("api", 200): 1, ("api", 403): 1}
    with pytest.raises(AttributeError):
        record.path = "/other"  # type: ignore[misc]  # that it is frozen is the claim


async def test_records_are_bounded_and_counters_are_not() -> None:
    async with Simulator(keep_requests=3) as simulator:
        async for call in caller_of(simulator):
            for _ in range(5):
                await call.get("/v2/codes")
            assert len(simulator.requests) == 3
            assert simulator.requests.total == 6
            assert simulator.requests.totals == {("auth", "POST"): 1, ("api", "GET"): 5}


async def test_closing_ends_requests_that_hang(call: Caller) -> None:
    simulator = call.simulator
    simulator.faults.inject("hang_head", path="/v2/codes")

    async def hanging() -> None:
        with pytest.raises(aiohttp.ClientError):
            await call.send("GET", f"{simulator.api_url}/v2/codes")

    async with asyncio.TaskGroup() as group:
        group.create_task(hanging())
        await simulator.requests.wait(path="/v2/codes")
        async with asyncio.timeout(0.9):
            await simulator._shut()
    assert simulator.requests.last.done
    assert simulator.requests.last.status is None


def test_a_simulator_that_is_not_running_has_no_address() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        _ = Simulator().api_url


def test_synchronous_code_runs_it_in_a_thread() -> None:
    with Simulator.run_in_thread(start=START) as simulator:
        host = urlsplit(simulator.auth_url).netloc
        connection = http.client.HTTPConnection(host, timeout=5)
        form = json.dumps({"username": "simulated", "password": "simulated-password"})
        connection.request("POST", "/v1/login", form, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.load(answer)["expires_in"] == 86_400
        connection.close()
        assert simulator.call(simulator.firehose.publish, partition=7)[0] == 7
        assert simulator.call(simulator.catalog.rows, "codes")
        assert simulator.environment()["WME_API_URL"] == simulator.api_url
        assert simulator.client_options()["hosts"]["auth"] == simulator.auth_url
    with pytest.raises(RuntimeError):
        simulator.call(len, [])


def test_a_problem_at_the_start_reaches_the_caller_of_the_thread() -> None:
    with (
        Simulator.run_in_thread() as first,
        pytest.raises(OSError, match="address already in use"),
        Simulator.run_in_thread(ports={"api": urlsplit(first.api_url).port}),
    ):
        pass


def test_the_pytest_plugin_gives_a_simulator_and_reads_its_marker(tmp_path: Any) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest, urllib.request\n"
        "def test_plain(wme_simulator):\n"
        "    assert urllib.request.urlopen(wme_simulator.api_url + '/v2/status').status == 200\n"
        "@pytest.mark.wme_simulator(expires_in=300)\n"
        "def test_options(wme_simulator):\n"
        "    assert wme_simulator.accounts.expires_in == 300\n"
    )
    name = "wme_async.simulator.pytest_plugin"
    assert [entry.value for entry in entry_points(group="pytest11", name="wme_simulator")] == [name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", name, "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        [*command, "--strict-markers", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
