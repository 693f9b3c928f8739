"""The simulator alone, by a plain HTTP client: accounts, what stands before every route, and its own life."""

import asyncio
import errno
import http.client
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from plain_http import ENWIKI, HOUR, START, Caller, caller_of

from wme_async.simulator import AccessRow, Clock, Simulator


@pytest.fixture
async def world() -> AsyncIterator[Simulator]:
    async with Simulator(start=START, frozen=True) as simulator:
        yield simulator


@pytest.fixture
async def call(world: Simulator) -> AsyncIterator[Caller]:
    async for caller in caller_of(world):
        yield caller


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


async def test_the_provider_is_asked_again_when_a_day_has_passed() -> None:
    async with Simulator(start=START, frozen=True, expires_in=200_000) as simulator:
        async for call in caller_of(simulator):
            tokens = await call.login()
            assert (await call.get("/v2/codes")).status == 200
            await call.auth("token-revoke", refresh_token=tokens["refresh_token"])
            simulator.clock.advance(86_400)
            assert (await call.get("/v2/codes")).status == 200
            simulator.clock.advance(1)
            assert (await call.get("/v2/codes")).message == "NotAuthorizedException: Access Token has been revoked"


async def test_an_id_token_and_a_removed_account_do_not_pass(call: Caller) -> None:
    tokens = await call.login()
    call.token = tokens["id_token"]
    assert (await call.get("/v2/codes")).message == "incorrect client id"
    call.token = tokens["access_token"]
    del call.simulator.users["simulated"]
    assert (await call.get("/v2/codes")).status == 401
    form = {"username": "simulated", "refresh_token": tokens["refresh_token"]}
    assert (await call.auth("token-refresh", **form)).status == 401


async def test_the_ninety_begin_again_after_ninety_days(call: Caller) -> None:
    async with Simulator(start=START, frozen=True, max_access_tokens=1) as simulator:
        async for caller in caller_of(simulator):
            tokens = await caller.login()
            form = {"username": "simulated", "refresh_token": tokens["refresh_token"]}
            simulator.clock.advance(10)
            assert (await caller.auth("token-refresh", **form)).status == 200
            simulator.clock.advance(80 * 86_400)
            assert (await caller.auth("token-refresh", **form)).status == 429


async def test_passwords_are_changed_and_recovered(call: Caller) -> None:
    change = {"previous_password": "simulated-password", "proposed_password": "another-password"}
    assert (await call.auth("change-password", access_token="x.y.z", **change)).status == 401
    wrong = {**change, "previous_password": "not-the-password"}
    assert (await call.auth("change-password", access_token=call.token, **wrong)).status == 401
    assert (await call.auth("change-password", access_token=call.token, **change)).status == 204
    assert (await call.auth("forgot-password", username="nobody")).message == "User not found."
    assert (await call.auth("forgot-password", username="simulated")).status == 204
    confirm = {"username": "simulated", "password": "third-password", "confirmation_code": "000000"}
    assert (await call.auth("forgot-password-confirm", **confirm)).message.startswith("CodeMismatchException")
    assert (await call.auth("forgot-password-confirm", **{**confirm, "confirmation_code": "123456"})).status == 204
    assert (await call.login("simulated", "third-password"))["access_token"]
    for name in (
        "token-refresh",
        "token-revoke",
        "new-password-required",
        "change-password",
        "forgot-password-confirm",
    ):
        assert (await call.auth(name)).message == "Internal error, please try again later."


async def test_a_wrong_session_does_not_set_a_password(call: Caller) -> None:
    form = {"username": "simulated", "session": "none", "new_password": "second-password"}
    assert (await call.auth("new-password-required", **form)).message == "Unauthorized."


async def test_hosts_have_routes_without_a_token(call: Caller) -> None:
    simulator = call.simulator
    for url in (simulator.auth_url + "/v1/status", simulator.api_url + "/v2/status", simulator.api_url + "/healthz"):
        reply = await call.send("GET", url)
        assert (reply.status, reply.body) == (200, b"")
    slashed = await call.send("POST", f"{simulator.auth_url}/v1/login/")
    assert (slashed.status, slashed.headers["Location"]) == (307, "/v1/login")
    bare = await call.send("POST", f"{simulator.auth_url}/v1/get-user")
    assert (bare.status, bare.message) == (401, "Unauthorized")
    origin = {"Origin": "https://example.org"}
    preflight = await call.send("OPTIONS", f"{simulator.api_url}/v2/codes", headers=origin)
    assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, "*")


def test_a_frozen_clock_moves_by_hand_and_wants_zones() -> None:
    clock = Clock(START, frozen=True)
    assert clock.utc() == START
    clock.advance(1.5)
    assert clock() == START.timestamp() + 1.5
    clock.set(10.0)
    assert "1970-01-01T00:00:10" in repr(clock)
    naive = START.replace(tzinfo=None)
    for broken in (lambda: Clock(naive), lambda: clock.set(naive)):
        with pytest.raises(ValueError, match="aware"):
            broken()
    running = Clock()
    first = running.now()
    assert running.now() >= first


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
    # Requests are counted only for groups with an allowance.
    call.simulator.caps.limits["group_3"] = {"ondemand": 5, "snapshots": 5, "chunks": 5}
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


@pytest.mark.parametrize(
    ("group", "method", "path", "status"),
    [
        ("group_9", "GET", "/v2/a/1/b/c", 404),  # allowed, although no route has this path
        ("group_9", "POST", "/v2/a/1/b/c", 403),
        ("group_8", "GET", "/v2/a/1/b/c", 403),
        ("group_9", "GET", "/v2/a/1", 403),
    ],
)
async def test_access_rows_replace_the_policy(group: str, method: str, path: str, status: int) -> None:
    rows = [AccessRow("/v2/a/:id/*", ("group_9",), ("GET",))]
    async with Simulator(access=rows, groups=[group]) as simulator:
        async for call in caller_of(simulator):
            assert (await call(method, path)).status == status


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


async def test_an_exception_of_its_own_is_told_at_the_end() -> None:
    with pytest.raises(ExceptionGroup, match="the simulator itself failed") as caught:
        async with Simulator() as simulator:
            async for call in caller_of(simulator):
                simulator.catalog.static["codes"] = [{}]
                assert (await call.get("/v2/codes")).status == 500
    assert caught.group_contains(KeyError)


async def test_closing_ends_requests_that_hang() -> None:
    async def hanging(url: str) -> None:
        with pytest.raises(aiohttp.ClientError):
            async with aiohttp.request("GET", url):
                pass

    async with asyncio.timeout(20), asyncio.TaskGroup() as group, Simulator() as simulator:
        simulator.faults.inject("hang_head", path="/v2/codes")
        group.create_task(hanging(f"{simulator.api_url}/v2/codes"))
        await simulator.requests.wait(path="/v2/codes")
    assert simulator.requests.last.done
    assert simulator.requests.last.status is None


def test_a_simulator_that_is_not_running_has_no_address() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        _ = Simulator().api_url


def test_an_option_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match="no option artikles; there are seed, username"):
        Simulator(artikles=5)  # type: ignore[call-arg]


async def test_simulators_of_one_process_share_equal_archives_alone() -> None:
    """What is built once is not built again, and other options or other data never get it."""
    key = "snapshots/simplewiki_namespace_0.tar.gz"

    async def archive(**options: Any) -> Any:
        async with Simulator(start=START, frozen=True, **options) as simulator:
            return await simulator.store.get(key)

    first = await archive()
    assert await archive() is first
    others = [await archive(**options) for options in ({"seed": 1}, {"articles": 13}, {"article_size": 900})]
    assert len({other.md5 for other in [first, *others]}) == 4
    tagged = await archive(part_size=100)
    assert (tagged.md5, tagged.etag == first.etag) == (first.md5, False)


def test_one_name_is_not_taken_for_a_list_of_groups() -> None:
    with pytest.raises(TypeError, match=r"groups must be a list of names, such as \['group_1'\]"):
        Simulator(groups="group_1")
    with pytest.raises(TypeError, match="groups must be a list of names"):
        Simulator().add_user("a", "b", groups="group_1")


def test_an_allowance_of_a_pool_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no pool 'snapshot'; there are ondemand, snapshots, chunks"):
        Simulator(caps={"group_3": {"snapshot": 2}})


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
        pytest.raises(OSError) as caught,  # noqa: PT011  # its number tells
        Simulator.run_in_thread(ports={"api": urlsplit(first.api_url).port or 0}),
    ):
        pass
    assert caught.value.errno == errno.EADDRINUSE


def test_the_pytest_plugin_gives_a_simulator_and_reads_its_marker(tmp_path: Any) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest, urllib.request\n"
        "def test_plain(wme_simulator):\n"
        "    assert urllib.request.urlopen(wme_simulator.api_url + '/v2/status').status == 200\n"
        "@pytest.mark.wme_simulator(expires_in=300)\n"
        "def test_options(wme_simulator):\n"
        "    assert wme_simulator.accounts.expires_in == 300\n"
        "@pytest.mark.wme_simulator(articles=3)\n"
        "def test_environment(wme_environment, wme_simulator):\n"
        "    import os\n"
        "    assert wme_environment is wme_simulator\n"
        "    variables = {name: os.environ[name] for name in os.environ if name.startswith('WME_')}\n"
        "    assert variables == {**wme_simulator.environment(), 'WME_RETRY_BASE': '0'}\n"
        "def test_afterwards():\n"
        "    import os\n"
        "    assert os.environ['WME_ACCESS_TOKEN'] == 'mine'\n"
        "    assert 'WME_RETRY_BASE' not in os.environ\n"
    )
    done = run_pytest(tmp_path)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


WRONG_OPTIONS = {
    "group=['group_1']": "Simulator has no option group; there are seed, username,",
    "articles='many'": "articles must be a whole number, not 'many'",
    "data='nowhere'": "data must be a folder",
    "5": "its options are keyword arguments, such as articles=5, not 5",
}


def test_a_wrong_option_of_the_marker_names_the_marker(tmp_path: Any) -> None:
    tests = (
        f"@pytest.mark.wme_simulator({arguments})\ndef test_{number}(wme_environment):\n    pass\n"
        for number, arguments in enumerate(WRONG_OPTIONS)
    )
    (tmp_path / "test_it.py").write_text("\n".join(["import pytest", *tests]))
    done = run_pytest(tmp_path)
    for number, message in enumerate(WRONG_OPTIONS.values()):
        assert f"@pytest.mark.wme_simulator of test_it.py::test_{number}: {message}" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout


def run_pytest(folder: Any) -> "subprocess.CompletedProcess[str]":
    """Run the tests of a folder with the plugin, as users have it."""
    name = "wme_async.simulator.pytest_plugin"
    assert [entry.value for entry in entry_points(group="pytest11", name="wme_simulator")] == [name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", name, "-p", "no:cacheprovider", "-W", "error"]
    return subprocess.run(
        [*command, "--strict-markers", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "WME_ACCESS_TOKEN": "mine"},
        check=False,
    )


async def test_the_count_of_a_pool_or_user_that_does_not_exist_is_an_error():
    async with Simulator() as simulator:
        simulator.add_user("another", "pw", ["group_1"])
        with pytest.raises(ValueError, match="no pool 'snapshot'; there are ondemand, snapshots, chunks"):
            simulator.caps.set_used("simulated", "snapshot", 15)
        with pytest.raises(ValueError, match="no user 'nobody'; there are simulated, another"):
            simulator.caps.set_used("nobody", "snapshots", 15)
        simulator.caps.set_used("another", "chunks", 15)
        assert simulator.caps.used("another", "chunks") == 15
