"""The transport against the simulator: retries, tokens, limits, errors, and that nothing stays open."""

import asyncio
import base64
import errno
import inspect
import json
import logging
import os
import pickle
import re
import ssl
import stat
import traceback
from typing import Any

import aiohttp
import pytest
from aiohttp import client_exceptions
from multidict import CIMultiDict, CIMultiDictProxy
from raw_server import RawServer
from transports import (
    Credentials,
    Request,
    SessionPool,
    Transport,
    requests,
    sessions,
    throttle,
    token_policy,
)
from yarl import URL

from wme_async import Client
from wme_async.errors import (
    ConnectFailed,
    DataError,
    DecodeError,
    Forbidden,
    Interrupted,
    NotFound,
    QuotaExceeded,
    RateLimited,
    ServerError,
    TimedOut,
    TransportError,
    Unauthorized,
    WMEError,
)
from wme_async.settings import Hosts, Limits, Retry, Timeouts
from wme_async.simulator import Simulator

AT_ONCE = Retry(base=0, cap=0)
PROJECTS = Request(
    method="POST", path="/v2/projects", headers={"Content-Type": "application/json"}, body=b"{}", token=True
)


class Patient(Transport):
    """A transport that notes its waits and does not wait."""

    waits: list[float]

    async def sleep(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)


def make(sim, *, kind=Transport, **options):
    given = sim.client_options()
    credentials = options.pop("credentials", Credentials(given["username"], given["password"]))
    options.setdefault("retry", AT_ONCE)
    options.setdefault("hosts", Hosts.of(given["hosts"]))
    transport = kind(credentials, **options)
    if kind is Patient:
        transport.waits = []
    return transport


def asked(sim, path, role=None):
    return [request for request in sim.requests if path in request.path and role in {None, request.role}]


@pytest.fixture
async def transport(sim):
    made = make(sim)
    yield made
    await made.aclose()


async def test_a_request_signs_in_once_and_returns_a_whole_answer(sim, transport):
    first = await transport.request(PROJECTS)
    await transport.request(PROJECTS)
    assert first.status == 200
    assert json.loads(first.body)
    assert len(asked(sim, "/v1/login")) == 1


async def test_server_trouble_is_retried_and_told(sim):
    retries: list[Any] = []
    transport = make(sim, on_retry=retries.append)
    sim.faults.inject("status", role="api", status=503, times=3)
    assert (await transport.request(PROJECTS)).status == 200
    assert [event.attempt for event in retries] == [1, 2, 3]
    assert retries[0].what.startswith("POST http://127.0.0.1")
    assert isinstance(retries[0].error, ServerError)
    await transport.aclose()


async def test_the_last_error_comes_out_unwrapped_with_a_note(sim, transport):
    sim.faults.inject("status", role="api", status=500, body=b"", times=None)
    with pytest.raises(ServerError) as caught:
        await transport.request(PROJECTS)
    assert caught.value.status == 500
    assert "gave up after 5 attempts" in caught.value.__notes__[0]
    assert len(asked(sim, "/v2/projects")) == 5


async def test_what_will_not_change_is_asked_once(sim, transport):
    with pytest.raises(Forbidden):
        await transport.request(Request(path="/v2/nothing", token=True, product="nothing"))
    assert len(asked(sim, "/v2/nothing")) == 1


async def test_retry_after_is_obeyed_and_pauses_all(sim):
    transport = make(sim, kind=Patient)
    sim.faults.inject("status", role="api", status=429, headers={"Retry-After": "7"})
    await transport.request(PROJECTS)
    assert transport.waits[0] == 7.0
    await transport.aclose()


async def test_a_retry_after_beyond_the_ceiling_ends_the_attempts(sim, transport):
    sim.faults.inject("status", role="api", status=429, headers={"Retry-After": "86400"}, times=None)
    with pytest.raises(RateLimited) as caught:
        await transport.request(PROJECTS)
    assert caught.value.retry_after == 86400
    assert len(asked(sim, "/v2/projects")) == 1


async def test_an_exhausted_quota_is_not_hammered(sim):
    transport = make(sim)
    quota = QuotaExceeded("used up", pool="chunk")

    async def check(pool):
        assert pool == "chunk"
        return quota

    transport.quota_check = check
    sim.faults.inject("status", role="api", status=429, times=None)
    request = Request(path="/v2/codes", token=True, pool="chunk")
    with pytest.raises(QuotaExceeded) as caught:
        await transport.request(request)
    assert caught.value is quota
    assert len(asked(sim, "/v2/codes")) == 1
    await transport.aclose()


async def test_a_quota_that_cannot_be_asked_for_is_a_rate_limit(sim):
    transport = make(sim)

    async def check(pool):
        raise TimedOut("no answer")

    transport.quota_check = check
    sim.faults.inject("status", role="api", status=429, times=None)
    with pytest.raises(RateLimited):
        await transport.request(Request(path="/v2/codes", token=True, pool="chunk"))
    await transport.aclose()


@pytest.mark.parametrize(
    ("fault", "details", "error"),
    [
        ("reset", {}, Interrupted),
        ("drop", {"after": 3}, Interrupted),
        ("hang_head", {}, TimedOut),
        ("stall", {"after": 3}, TimedOut),
    ],
)
async def test_a_broken_exchange_is_repeated_and_then_an_error_of_ours(sim, fault, details, error):
    timeouts = Timeouts(read=0.3) if error is TimedOut else Timeouts()
    transport = make(sim, timeouts=timeouts, retry=Retry(attempts=2, base=0))
    await transport.request(PROJECTS)
    once = sim.faults.inject(fault, role="api", **details)
    assert (await transport.request(PROJECTS)).status == 200
    assert once.hits == 1
    sim.faults.inject(fault, role="api", times=None, **details)
    with pytest.raises(error):
        await transport.request(PROJECTS)
    assert transport.open_bodies == 0
    await transport.aclose()


async def test_an_unreachable_host_is_a_failed_connection(sim, unused_port):
    transport = make(sim, hosts=Hosts.of({"auth": f"http://127.0.0.1:{unused_port}"}), retry=Retry(attempts=2, base=0))
    with pytest.raises(ConnectFailed, match="check the network and the address") as caught:
        await transport.request(PROJECTS)
    assert "gave up after 2" in caught.value.__notes__[0]
    await transport.aclose()


@pytest.fixture
def unused_port(unused_tcp_port_factory=None):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_many_requests_at_once_need_one_sign_in(sim, transport):
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(transport.request(PROJECTS))
    assert len(asked(sim, "/v1/login")) == 1


async def test_a_token_that_is_refused_is_replaced_once_for_all(sim, transport):
    await transport.request(PROJECTS)
    sim.clock.advance(90_000)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(transport.request(PROJECTS))
    assert len(asked(sim, "/v1/token-refresh")) == 1
    assert len(asked(sim, "/v1/login")) == 1


class Ahead(Transport):
    """A transport whose clock can be set."""

    ahead = 0.0

    def now(self):
        return super().now() + self.ahead


async def test_a_token_is_refreshed_ahead_of_its_end(sim):
    transport = make(sim, kind=Ahead)
    await transport.request(PROJECTS)
    transport.ahead = 86_400 - 299
    await transport.request(PROJECTS)
    assert len(asked(sim, "/v1/token-refresh")) == 1
    # In trouble, a token that still works goes on.
    transport.ahead = 2 * 86_400 - 250
    sim.faults.inject("status", role="auth", status=500, times=None)
    transport.ahead = 86_400 - 299 + 86_400 - 200
    assert (await transport.request(PROJECTS)).status == 200
    await transport.aclose()


async def test_attempts_to_reach_the_auth_host_do_not_multiply(sim, unused_port):
    hosts = Hosts.of({"auth": f"http://127.0.0.1:{unused_port}"})
    requests_sent = 0

    async def count(*_: Any) -> None:
        nonlocal requests_sent
        requests_sent += 1

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(count)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        transport = make(sim, hosts=hosts, retry=Retry(attempts=3, base=0), pool=SessionPool(session=session))
        with pytest.raises(ConnectFailed) as caught:
            await transport.request(PROJECTS)
        assert requests_sent == 3
        assert len(caught.value.__notes__) == 1
        requests_sent = 0
        with pytest.raises(ConnectFailed):
            await transport.tokens.login()
        assert requests_sent == 3
        await transport.aclose()


async def test_a_wrong_password_is_sent_once_however_many_wait_for_the_token(sim):
    transport = make(sim, credentials=Credentials("simulated", "wrong"))
    results = []

    async def ask():
        try:
            await transport.request(PROJECTS)
        except Unauthorized as error:
            results.append(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(ask())
    assert len(results) == len({id(error) for error in results}) == 20
    assert all("Incorrect username" in str(error) for error in results)
    assert len(asked(sim, "/v1/login")) == 1
    # Who comes later is no one who waited, and may know that the account was put right.
    with pytest.raises(Unauthorized):
        await transport.request(PROJECTS)
    assert len(asked(sim, "/v1/login")) == 2
    await transport.aclose()


async def test_a_sign_in_that_is_cancelled_is_taken_up_by_the_next_who_waits(sim, transport):
    with pytest.raises(ServerError):
        sim.faults.inject("status", role="auth", status=500, times=5)
        await transport.request(PROJECTS)
    hung = sim.faults.inject("hang_head", role="auth")
    first = asyncio.create_task(transport.request(PROJECTS))
    await until(lambda: hung.hits)
    others = [asyncio.create_task(transport.request(PROJECTS)) for _ in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    first.cancel()
    others[0].cancel()
    done, _ = await asyncio.wait([first, *others], timeout=10)
    assert len(done) == 4
    assert [other.cancelled() for other in (first, *others)] == [True, True, False, False]
    assert {other.result().status for other in others[1:]} == {200}


async def test_a_token_that_is_about_to_end_serves_until_there_is_another(sim):
    transport = make(sim, kind=Ahead)
    await transport.request(PROJECTS)
    transport.ahead = 86_400 - 200
    hung = sim.faults.inject("hang_head", role="auth", path="token-refresh")
    first = asyncio.create_task(transport.request(PROJECTS))
    await until(lambda: hung.hits)
    # The auth host is not heard of, and nobody but the first has to wait for it.
    assert (await asyncio.wait_for(transport.request(PROJECTS), 5)).status == 200
    first.cancel()
    await asyncio.wait([first])
    sim.faults.inject("status", role="auth", status=500, times=None)
    before = len(asked(sim, "/v1/token-refresh"))
    for _ in range(5):
        assert (await transport.request(PROJECTS)).status == 200
    assert len(asked(sim, "/v1/token-refresh")) == before + 1
    transport.ahead += 31
    assert (await transport.request(PROJECTS)).status == 200
    assert len(asked(sim, "/v1/token-refresh")) == before + 2
    # It is over: there is nothing to go on with.
    transport.ahead = 86_401
    with pytest.raises(ServerError):
        await transport.request(PROJECTS)
    await transport.aclose()


async def test_a_token_that_works_is_used_although_no_other_can_be_had(sim, transport):
    await transport.request(PROJECTS)
    token = await transport.tokens.token()
    payload = base64.urlsafe_b64encode(json.dumps({"exp": transport.now() + 60}).encode()).decode()
    alone = make(sim, credentials=Credentials(access_token=f"a.{payload}.c"))
    # Its own clock may be wrong; only the server's counts.
    assert await alone.tokens.token() == f"a.{payload}.c"
    await alone.aclose()
    sim.users["simulated"].password = "changed"
    both = make(sim, kind=Ahead, credentials=Credentials("simulated", "simulated-password", access_token=token))
    expires = token_policy.jwt_expiry(token)
    assert expires is not None
    both.ahead = expires - 60 - both.now()  # its time is nearly up
    assert (await both.request(PROJECTS)).status == 200
    assert len(asked(sim, "/v1/login")) == 2
    await both.aclose()


async def test_the_91st_refresh_and_a_revoked_refresh_token_fall_back_to_a_sign_in(sim, transport):
    await transport.request(PROJECTS)
    sim.faults.inject("status", role="auth", path="token-refresh", status=429)
    sim.clock.advance(90_000)
    await transport.request(PROJECTS)
    assert len(asked(sim, "/v1/login")) == 2
    sim.faults.inject("status", role="auth", path="token-refresh", status=401)
    sim.clock.advance(90_000)
    await transport.request(PROJECTS)
    assert len(asked(sim, "/v1/login")) == 3


async def test_ninety_refreshes_are_made_and_then_a_sign_in():
    async with Simulator(expires_in=3600) as sim:
        transport = make(sim)
        for _ in range(92):
            await transport.request(PROJECTS)
            sim.clock.advance(3700)
        assert len(asked(sim, "/v1/login")) == 2
        assert len(asked(sim, "/v1/token-refresh")) == 90
        assert all(request.status == 200 for request in asked(sim, "/v1/token-refresh"))
        await transport.aclose()


async def test_an_expired_access_token_alone_is_told(sim, transport):
    await transport.request(PROJECTS)
    token = await transport.tokens.token()
    alone = make(sim, credentials=Credentials(access_token=token))
    assert (await alone.request(PROJECTS)).status == 200
    sim.clock.advance(90_000)
    with pytest.raises(Unauthorized, match="no user name and password"):
        await alone.request(PROJECTS)
    with pytest.raises(Unauthorized):
        await alone.tokens.login()
    await alone.aclose()


async def test_wrong_credentials_are_asked_for_once(sim):
    transport = make(sim, credentials=Credentials("simulated", "wrong"))
    with pytest.raises(Unauthorized, match="Incorrect username or password"):
        await transport.request(PROJECTS)
    assert len(asked(sim, "/v1/login")) == 1
    await transport.aclose()


async def test_a_sign_in_of_a_form_that_the_server_does_not_take_is_told_as_such(sim):
    transport = make(sim, credentials=Credentials("a" * 300, "pw"))
    with pytest.raises(Unauthorized, match="rejects the form of the user name"):
        await transport.request(PROJECTS)
    await transport.aclose()


async def test_user_names_are_lower_cased_once_for_sign_in_and_refresh(sim):
    transport = make(sim, credentials=Credentials("Simulated", "simulated-password"))
    await transport.request(PROJECTS)
    sim.clock.advance(90_000)
    await transport.request(PROJECTS)
    bodies = [json.loads(request.body) for request in asked(sim, "/v1/", role="auth")]
    assert {body["username"] for body in bodies} == {"simulated"}
    assert len(asked(sim, "/v1/login")) == 1
    await transport.aclose()


async def test_a_challenge_is_told_unless_tokens_came_with_it(sim):
    sim.add_user("fresh", "pw", challenge="NEW_PASSWORD_REQUIRED")
    transport = make(sim, credentials=Credentials("fresh", "pw"))
    with pytest.raises(Unauthorized, match="NEW_PASSWORD_REQUIRED"):
        await transport.request(PROJECTS)
    await transport.aclose()
    sim.add_user("emulated", "pw", challenge="PASSWORD_VERIFIER")
    transport = make(sim, credentials=Credentials("emulated", "pw"))
    assert (await transport.request(PROJECTS)).status == 200
    await transport.aclose()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"access_token":5}'])
async def test_a_sign_in_that_answers_nonsense_is_an_error_without_its_body(sim, transport, body):
    sim.faults.inject("status", role="auth", status=200, body=body, times=None)
    with pytest.raises(DecodeError) as caught:
        await transport.request(PROJECTS)
    assert caught.value.record is None


async def test_revoking_signs_out_and_forgets(sim, tmp_path):
    path = tmp_path / "tokens.json"
    transport = make(sim, token_file=path)
    await transport.request(PROJECTS)
    await transport.tokens.revoke()
    assert len(asked(sim, "/v1/token-revoke")) == 1
    assert "access_token" not in path.read_text()
    await transport.request(PROJECTS)
    assert len(asked(sim, "/v1/login")) == 2
    sim.faults.inject("status", role="auth", path="revoke", status=401)
    await transport.tokens.revoke()
    await transport.aclose()


async def test_a_token_file_is_shared_private_and_kept_by_user(sim, tmp_path):
    path = tmp_path / "tokens.json"
    one, two = make(sim, token_file=path), make(sim, token_file=path)
    async with asyncio.TaskGroup() as group:
        group.create_task(one.request(PROJECTS))
        group.create_task(two.request(PROJECTS))
    assert len(asked(sim, "/v1/login")) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_name("tokens.json.lock").stat().st_mode) == 0o600
    sim.add_user("other", "pw")
    other = make(sim, token_file=path, credentials=Credentials("other", "pw"))
    await other.request(PROJECTS)
    assert len(asked(sim, "/v1/login")) == 2
    assert len(json.loads(path.read_text())["entries"]) == 2
    sim.clock.advance(90_000)
    async with asyncio.TaskGroup() as group:
        group.create_task(one.request(PROJECTS))
        group.create_task(two.request(PROJECTS))
    assert len(asked(sim, "/v1/token-refresh")) == 1
    for item in (one, two, other):
        await item.aclose()


@pytest.mark.parametrize("content", [b"", b"{torn", b'{"entries": 5}', b"\xff"])
async def test_a_torn_token_file_is_written_anew(sim, tmp_path, content):
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    path.chmod(0o644)
    transport = make(sim, token_file=path)
    await transport.request(PROJECTS)
    assert "access_token" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await transport.aclose()


async def test_a_folder_that_cannot_be_written_to_costs_only_the_sharing(sim, tmp_path, monkeypatch):
    transport = make(sim, token_file=tmp_path / "tokens.json")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert (await transport.request(PROJECTS)).status == 200
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json.lock"]
    await transport.aclose()


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EROFS, errno.ENOSPC])
async def test_a_folder_without_room_or_right_for_a_lock_costs_only_the_sharing(
    sim, tmp_path, monkeypatch, kind, caplog
):
    path = tmp_path / "tokens.json"
    first = make(sim, token_file=path)
    await first.request(PROJECTS)
    await first.aclose()
    really = os.open

    def refusing(name, *arguments, **options):
        if str(name).endswith(".lock") or ".tokens.json." in str(name):
            raise OSError(kind, os.strerror(kind), str(name))
        return really(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    transport = make(sim, token_file=path)
    # What is there is used all the same, and what is new is kept in memory.
    assert (await transport.request(PROJECTS)).status == 200
    assert len(asked(sim, "/v1/login")) == 1
    sim.clock.advance(90_000)
    assert (await transport.request(PROJECTS)).status == 200
    assert len(asked(sim, "/v1/token-refresh")) == 1
    assert "cannot be shared" in caplog.text
    await transport.aclose()


async def test_a_folder_that_is_not_there_is_a_mistake_that_is_told(sim, tmp_path):
    transport = make(sim, token_file=tmp_path / "none" / "tokens.json")
    with pytest.raises(FileNotFoundError):
        await transport.request(PROJECTS)
    await transport.aclose()


@pytest.mark.posix
async def test_a_file_system_without_locks_costs_only_the_lock(sim, tmp_path, monkeypatch, caplog):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    transport = make(sim, token_file=tmp_path / "tokens.json")
    assert (await transport.request(PROJECTS)).status == 200
    assert "has no locks" in caplog.text
    assert "access_token" in (tmp_path / "tokens.json").read_text()
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        await transport.tokens.login()
    await transport.aclose()


@pytest.mark.posix
async def test_a_token_file_of_somebody_else_is_read_although_its_mode_stays(sim, tmp_path, monkeypatch, caplog):
    path = tmp_path / "tokens.json"
    first = make(sim, token_file=path)
    await first.request(PROJECTS)
    await first.aclose()
    path.chmod(0o644)
    monkeypatch.setattr(os, "fchmod", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not yours")))
    transport = make(sim, token_file=path)
    assert (await transport.request(PROJECTS)).status == 200
    assert len(asked(sim, "/v1/login")) == 1
    assert "can be read by others" in caplog.text
    await transport.aclose()


@pytest.mark.posix
async def test_a_hung_holder_of_the_lock_does_not_hang_others(sim, tmp_path):
    import fcntl

    path = tmp_path / "tokens.json"
    with (tmp_path / "tokens.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        transport = make(sim, token_file=path, kind=Patient)
        assert (await transport.request(PROJECTS)).status == 200
        assert sum(transport.waits) == pytest.approx(60, abs=1)
        await transport.aclose()


async def test_the_store_and_strangers_never_get_a_token(sim):
    for role in ("store", "public"):
        with pytest.raises(ValueError, match="must not be sent"):
            Request(role=role, path="http://127.0.0.1/", token=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no credentials"),
        ({"username": "a"}, "go together"),
        ({"password": "a"}, "go together"),
        ({"username": "a", "password": " "}, "password is empty"),
        ({"username": "a", "password": "\udcff"}, "password is not UTF-8 text"),
        ({"access_token": ""}, "access_token is empty"),
        ({"access_token": "abc\n"}, "blanks around it"),
        ({"username": "a\n", "password": "b"}, "blanks around it"),
    ],
)
def test_credentials_that_cannot_work_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        Credentials(**arguments)


async def test_secrets_are_in_no_repr_log_error_or_traceback(sim, caplog):
    caplog.set_level(logging.DEBUG, logger="wme_async")
    transport = make(sim, retry=Retry(attempts=2, base=0), timeouts=Timeouts(read=0.1))
    token = await transport.tokens.token()
    seen = [repr(transport), repr(transport.tokens), repr(transport.pool), repr(Credentials("u", "simulated-password"))]
    for kind, details in (
        ("reset", {}),
        ("status", {"status": 500}),
        ("hang_head", {}),
        ("garbage", {}),
        ("short", {}),
    ):
        fault = sim.faults.inject(kind, role="api", times=None, **details)
        try:
            await transport.request(PROJECTS)
        except WMEError as error:
            seen += traceback.format_exception(error)
            link: BaseException | None = error
            while link is not None:
                seen += [repr(link), repr(link.args)]
                link = link.__cause__ or link.__context__
        fault.remove()
    everything = "\n".join([*seen, caplog.text])
    assert "Bearer" not in everything
    assert token not in everything
    assert "simulated-password" not in everything
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Credentials("u", "p"))
    await transport.aclose()


def all_aiohttp_errors():
    headers = {
        value
        for _, value in inspect.getmembers(client_exceptions, inspect.isclass)
        if issubclass(value, aiohttp.ClientError)
    }
    return sorted(headers, key=lambda each: each.__name__)


HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict({"Authorization": "Bearer secret"}))
INFO = aiohttp.RequestInfo(URL("http://h/p?secret"), "GET", HEADERS, URL("http://h"))


def instance_of(kind):
    candidates: list[tuple[Any, ...]]
    info = INFO
    proxy = URL("http://me:secret@proxy:3128")
    key = aiohttp.client_reqrep.ConnectionKey("h", 80, False, True, proxy, None, None)
    if issubclass(kind, aiohttp.ClientResponseError):
        candidates = [(info, ())]
    elif issubclass(kind, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        bad = URL("http://me:secret@h/p?X-Amz-Signature=secret")
        candidates = [(bad, "bad"), (bad,)]
    else:
        candidates = [
            (key, OSError(1, "refused")),
            (key, ssl.SSLCertVerificationError(1, "bad")),
            ("/tmp/socket", key, OSError(1, "x")),
            (b"e", b"g", "h", 1),
            ("text",),
        ]
    if not issubclass(kind, aiohttp.ClientConnectorError | aiohttp.ServerFingerprintMismatch):
        candidates = candidates[-1:]
    for arguments in candidates:
        try:
            error = kind(*arguments)
            str(error)
        except (TypeError, AttributeError):
            continue
        return error
    raise AssertionError(f"no way found to make {kind}")


@pytest.mark.parametrize("kind", all_aiohttp_errors(), ids=lambda kind: kind.__name__)
def test_every_aiohttp_error_becomes_one_of_ours(kind):
    error = instance_of(kind)
    ours = requests.translate(error, url="http://h/p?X-Amz-Signature=secret")
    assert isinstance(ours, TransportError)
    assert "secret" not in repr(ours) + str(ours.__dict__)
    # It stays in the chain of causes, is formatted there, and may be kept by whoever collects errors.
    assert "secret" not in repr(error) + str(error) + repr(error.args) + repr(error.__dict__)


TOKENS = b'{"access_token":"hunter2","refresh_token":"hunter2","expires_in":86400}'


@pytest.mark.parametrize(
    "response",
    {
        "no status line": b"FOO " + TOKENS + b"\r\n\r\n",
        "a body behind a 204": b"HTTP/1.1 204 No Content\r\n\r\n" + TOKENS,
        "a header without a colon": b"HTTP/1.1 200 OK\r\nSet-Cookie hunter2\r\n\r\n",
        "a header with a NUL": b"HTTP/1.1 200 OK\r\nSet-Cookie: \0hunter2\r\n\r\n",
        "a length of letters": b"HTTP/1.1 200 OK\r\nContent-Length: hunter2\r\n\r\n",
        "no size of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + TOKENS + b"\r\n",
        "no end of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab" + TOKENS + b"\r\n",
        "a body that is cut": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + TOKENS,
        "no JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 73\r\n\r\n" + TOKENS + b"xx",
        "an error": b"HTTP/1.1 400 No\r\nContent-Length: 71\r\n\r\n" + TOKENS,
    }.items(),
    ids=lambda item: item[0],
)
async def test_tokens_of_a_malformed_response_are_in_no_error_and_no_log(response, caplog):
    async def answer(_, writer):
        writer.write(response[1])
        await writer.drain()
        return False

    caplog.set_level(logging.DEBUG)
    retry = Retry(attempts=2, base=0, cap=0)
    async with RawServer(answer) as server:
        hosts = Hosts(auth=server.url, api=server.url, realtime=server.url)
        async with Client("somebody", "password", hosts=hosts, retry=retry) as wme:
            with pytest.raises(WMEError) as caught:
                await wme.auth.login()
    errors: list[BaseException | None] = [caught.value]
    for error in errors:
        if error is not None:
            assert "hunter2" not in f"{error!r} {error} {error.args!r} {vars(error)!r}"
            errors += [error.__cause__, error.__context__]
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize("url", ["http://me:hunter2@/p?hunter2", "ftp://me:hunter2@h/p?hunter2", "/p?hunter2"])
async def test_a_url_that_cannot_be_fetched_is_in_no_traceback_with_its_secrets(url):
    transport = Transport(None)
    with pytest.raises(TransportError, match="not a URL that can be fetched") as caught:
        await transport.request(Request(role="public", path=url))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    await transport.aclose()


@pytest.mark.parametrize("error", [OSError(5, "io"), TimeoutError(), EOFError(), ConnectionResetError()])
def test_plain_network_errors_become_ours_too(error):
    assert isinstance(requests.translate(error, url="http://h"), TransportError)


async def test_a_body_is_released_whole_or_not(sim, transport):
    async with transport.open(PROJECTS) as body:
        assert transport.open_bodies == 1
        pieces = [piece async for piece in body.chunks()]
    whole = b"".join(pieces)
    async with transport.open(PROJECTS) as body:
        seen = bytearray()
        await body.copy_to(seen.extend)
    assert bytes(seen) == whole
    with pytest.raises(KeyError):
        async with transport.open(PROJECTS) as body:
            raise KeyError
    async with transport.open(PROJECTS) as body:
        with pytest.raises(DataError, match="longer than"):
            await body.read(10)
    assert transport.open_bodies == 0
    assert "api=0" in repr(transport.pool)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # the simulator has no event to wait for
            await asyncio.sleep(0)


@pytest.mark.parametrize("fault", ["hang_head", "stall"])
async def test_cancelling_leaves_nothing_open(sim, transport, fault):
    await transport.request(PROJECTS)
    injected = sim.faults.inject(fault, role="api", **({"after": 5} if fault == "stall" else {}))

    async def hang():
        async with transport.open(PROJECTS) as body:
            async for _ in body.chunks():
                pass

    task = asyncio.create_task(hang())
    await until(lambda: injected.hits)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.open_bodies == 0
    assert "api=0" in repr(transport.pool)


async def test_a_head_may_have_a_deadline_of_its_own(sim, transport):
    await transport.request(PROJECTS)
    sim.faults.inject("hang_head", role="api")
    with pytest.raises(TimedOut):
        async with transport.open(PROJECTS, retry=False, head_timeout=0.05):
            pass


async def test_answers_above_the_limit_are_refused(sim):
    transport = make(sim, limits=Limits(max_response=100))
    with pytest.raises(DataError, match="longer than the limit of 100 bytes"):
        await transport.request(PROJECTS)
    await transport.aclose()


async def test_the_servers_clock_is_known_from_its_answers(sim, transport):
    for role in ("auth", "api", "realtime", "store", "public"):
        assert transport.server_now(role) == pytest.approx(transport.now(), abs=1)
    sim.clock.advance(5000)
    await transport.request(PROJECTS)
    # The hosts of the service agree on the time; others may not.
    for role in ("auth", "api", "realtime"):
        assert transport.server_now(role) == pytest.approx(transport.now() + 5000, abs=3)
    for role in ("store", "public"):
        assert transport.server_now(role) == pytest.approx(transport.now(), abs=3)


async def test_a_token_needs_an_account(sim):
    transport = Transport(None, hosts=Hosts.of(sim.client_options()["hosts"]))
    with pytest.raises(RuntimeError, match="has no credentials"):
        await transport.request(PROJECTS)
    await transport.aclose()


async def test_a_closed_client_says_so(sim, transport):
    await transport.request(PROJECTS)
    await transport.aclose()
    with pytest.raises(RuntimeError, match="closed; make a new one"):
        await transport.request(PROJECTS)


async def test_a_pool_is_shared_and_outlives_its_clients(sim):
    async with SessionPool(limits=Limits(connections=3)) as pool:
        one, two = make(sim, pool=pool), make(sim, pool=pool)
        await one.request(PROJECTS)
        await one.aclose()
        assert (await two.request(PROJECTS)).status == 200
        assert two.limits.connections == 3
        await two.aclose()
        assert pool.session("api") is pool.session("api")
    with pytest.raises(RuntimeError, match="closed; make a new one"):
        pool.session("api")


async def test_no_more_connections_than_configured_are_open(sim):
    transport = make(sim, limits=Limits(connections=4))
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(transport.request(PROJECTS))
    assert len({request.peer for request in sim.requests if request.role == "api"}) <= 4
    await transport.aclose()


async def test_an_injected_session_is_used_and_never_closed(sim):
    async with aiohttp.ClientSession(headers={"X-Mine": "1"}) as session:
        pool = SessionPool(session=session)
        transport = make(sim, pool=pool)
        await transport.request(PROJECTS)
        await transport.aclose()
        await pool.aclose()
        assert not session.closed
        assert ("X-Mine", "1") in asked(sim, "/v2/projects")[0].headers
        assert pool.injected
    with pytest.raises(RuntimeError, match="is closed"):
        SessionPool(session=session).session("api")


def test_another_event_loop_and_none_at_all_are_told_in_one_sentence():
    pool = SessionPool()
    with pytest.raises(RuntimeError, match="needs a running asyncio event loop"):
        pool.session("api")

    async def use():
        pool.session("api")

    async def close():
        await pool.aclose()

    with asyncio.Runner() as runner:
        runner.run(use())
        with asyncio.Runner() as other, pytest.raises(RuntimeError, match="belongs to another event loop"):
            other.run(use())
        with asyncio.Runner() as other, pytest.raises(RuntimeError, match="belongs to another event loop"):
            other.run(close())
        runner.run(close())


async def test_strangers_urls_meet_the_guard_by_address_and_by_name(sim):
    def guard(address, *rest):
        return "loopback" if "127.0.0.1" in {address, *rest} or address == "127.0.0.1" else None

    async with SessionPool(guard=guard) as pool:
        transport = make(sim, pool=pool, retry=Retry(attempts=1))
        port = URL(sim.store_url).port
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(ConnectFailed):
                await transport.request(Request(role="public", path=f"http://{host}:{port}/x"))
        assert not asked(sim, "/x")
        # Our own hosts are not strangers.
        assert (await transport.request(PROJECTS)).status == 200
        await transport.aclose()


async def test_what_will_fail_again_is_tried_once(sim, tmp_path):
    retries: list[Any] = []
    pools = [
        SessionPool(guard=lambda host, address: "private" if address == "127.0.0.1" else None),
        SessionPool(guard=lambda *_: None, trust_env=True),
        SessionPool(),
    ]
    port = URL(sim.store_url).port
    for pool, path in (
        (pools[0], f"http://127.0.0.1:{port}/x"),
        (pools[0], f"http://localhost:{port}/x"),
        (pools[1], f"http://localhost:{port}/x"),
        (pools[2], "nonsense"),
    ):
        transport = make(sim, pool=pool, on_retry=retries.append)
        with pytest.raises(TransportError) as caught:
            await transport.request(Request(role="public", path=path))
        assert caught.value.permanent
        assert pickle.loads(pickle.dumps(caught.value)).permanent
        await transport.aclose()
    assert not retries
    for pool in pools:
        await pool.aclose()


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (aiohttp.ClientHttpProxyError(INFO, (), status=407, message="Proxy Authentication Required"), True),
        (aiohttp.ClientHttpProxyError(INFO, (), status=502, message="Bad Gateway"), False),
        *(
            (aiohttp.ClientHttpProxyError(INFO, (), status=status, message=""), False)
            for status in (408, 425, 429, 499)
        ),
        (ssl.SSLCertVerificationError(1, "self-signed"), True),
        (aiohttp.ServerFingerprintMismatch(b"e", b"g", "h", 1), True),
        (aiohttp.InvalidURL("x"), True),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
    ],
)
def test_only_what_stays_as_it_is_is_permanent(error, permanent):
    assert requests.translate(error, url="http://h").permanent is permanent


def test_a_guard_is_asked_about_every_way_to_write_an_address():
    pool = SessionPool(guard=lambda host, address: None if address == "8.8.8.8" else "private")
    pool.check_address("http://name.example/x")
    pool.check_address("http://8.8.8.8/x")
    assert SessionPool(proxy="http://me:pw@proxy:3128").proxy == "http://me:pw@proxy:3128"
    for address in ("127.0.0.1", "2130706433", "127.1", "[::1]", "[fe80::1%25eth0]"):
        with pytest.raises(ConnectFailed, match="private"):
            pool.check_address(f"http://{address}/x")


async def test_a_guard_looks_at_every_address_of_a_name(sim):
    seen = []

    def guard(host, address):
        seen.append((host, address))

    async with SessionPool(guard=guard) as pool:
        transport = make(sim, pool=pool)
        port = URL(sim.store_url).port
        with pytest.raises(WMEError):
            await transport.request(Request(role="public", path=f"http://localhost:{port}/none"))
        assert ("localhost", "127.0.0.1") in seen
        await transport.aclose()


@pytest.mark.parametrize(
    "proxy", ["nonsense", "socks5://u:hunter2@h:1", "http://u:hunter2@h:port", "http://[u:hunter2@"]
)
def test_a_proxy_that_is_none_is_refused_without_its_password(proxy):
    with pytest.raises(ValueError, match="a proxy is a URL such as") as caught:
        SessionPool(proxy=proxy)
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)


async def test_passwords_of_netrc_go_to_proxies_and_nowhere_else(sim, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password proxy-secret\ndefault login me password default-secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with SessionPool(trust_env=True) as pool:
        transport = make(sim, pool=pool)
        assert (await transport.request(PROJECTS)).status == 200
        with pytest.raises(WMEError):
            await transport.request(Request(role="store", path=f"{sim.store_url}/none"))
        sent = [value for request in sim.requests for name, value in request.headers if name.lower() == "authorization"]
        assert all(value.startswith("Bearer ") for value in sent)
        assert len(sent) == 1
        await transport.aclose()

    heads = []

    async def serve(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    for proxy, secret in ((f"http://localhost:{port}", "proxy-secret"), (f"http://a:b@localhost:{port}", "b")):
        monkeypatch.setenv("http_proxy", proxy)
        async with SessionPool(trust_env=True) as pool:
            transport = make(sim, pool=pool)
            await transport.request(Request(role="store", path="http://store.invalid/x"))
            await transport.aclose()
        head = heads.pop().decode()
        assert head.startswith("GET http://store.invalid/x ")
        lines = [line.split(": ", 1) for line in head.lower().split("\r\n") if "authorization" in line]
        assert [name for name, _ in lines] == ["proxy-authorization"]
        credentials = re.findall(r"Proxy-Authorization: Basic (\S+)", head)
        assert [base64.b64decode(header).decode().partition(":")[2] for header in credentials] == [secret]
    server.close()
    await server.wait_closed()


async def test_a_session_that_wants_errors_for_statuses_still_gives_ours(sim):
    async with aiohttp.ClientSession(raise_for_status=True) as session, SessionPool(session=session) as pool:
        transport = make(sim, pool=pool)
        with pytest.raises(NotFound):
            await transport.request(Request(path="/v2/codes/nope", token=True))
        await transport.aclose()


async def test_a_stranger_who_wants_us_to_wait_does_not_slow_the_api(sim):
    transport = make(sim, kind=Patient)
    sim.faults.inject("status", role="store", status=429, headers={"Retry-After": "77"})
    with pytest.raises(WMEError):
        await transport.request(Request(role="public", path=f"{sim.store_url}/x"))
    assert 77.0 in transport.waits
    transport.waits.clear()
    await transport.request(PROJECTS)
    assert transport.waits == []
    await transport.aclose()


@pytest.mark.middle_of_a_month
async def test_a_sign_in_that_is_limited_is_tried_as_often_as_any_request_and_does_not_slow_the_api(sim, client_clock):
    sim.faults.inject("status", role="auth", path="/v1/login", status=429, headers={"Retry-After": "77"}, times=3)
    async with Client(**sim.client_options(), retry=Retry(attempts=3)) as wme:
        with pytest.raises(RateLimited):
            await wme.articles.lookup("NATO")
        assert len(asked(sim, "/v1/login")) == 3
        assert client_clock.waits == [77.0, 77.0]
        client_clock.waits.clear()
        await wme.projects.list()
        assert client_clock.waits == []
        assert (await wme.auth.quota()).of("ondemand").used == 0


async def test_the_client_side_limit_spreads_requests():
    now = [0.0]

    async def sleep(seconds):
        now[0] += seconds

    limiter = throttle.Throttle(10.0, 3, monotonic=lambda: now[0], sleep=sleep)
    starts = []
    for _ in range(7):
        await limiter.wait()
        starts.append(round(now[0], 6))
    assert starts == [0, 0, 0, 0.1, 0.2, 0.3, 0.4]
    limiter.pause(5)
    await limiter.wait()
    assert now[0] == pytest.approx(5.4)
    free = throttle.Throttle(None, 1, monotonic=lambda: now[0], sleep=sleep)
    before = now[0]
    for _ in range(5):
        await free.wait()
    assert now[0] == before


class Hours:
    """A clock that goes on when everybody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, len(self._sleepers), woken))
        await woken

    async def run(self) -> None:
        await asyncio.sleep(0)
        while self._sleepers:
            first = min(self._sleepers)
            self._sleepers.remove(first)
            self.now = first[0]
            first[2].set_result(None)
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@pytest.mark.parametrize(("paused_at", "starts"), [(0.0, [5.0, 5.0, 5.1, 5.2]), (0.15, [0.0, 0.0, 0.1, 5.15])])
async def test_a_pause_holds_those_who_wait_already_and_lets_them_go_at_the_rate_of_the_limit(paused_at, starts):
    clock = Hours()
    limiter = throttle.Throttle(10.0, 2, monotonic=lambda: clock.now, sleep=clock.sleep)
    started = []

    async def one():
        await limiter.wait()
        started.append(round(clock.now, 6))

    async def pause():
        await clock.sleep(paused_at)
        limiter.pause(5)

    async with asyncio.TaskGroup() as group:
        if paused_at:
            group.create_task(pause())
        else:
            limiter.pause(5)
        for _ in range(4):
            group.create_task(one())
        await clock.run()
    assert started == starts


async def test_illegal_headers_are_misuse_without_their_content(sim, transport):
    with pytest.raises(ValueError, match="illegal characters") as caught:
        await transport.request(Request(path="/v2/codes", headers={"X": "a\r\nsecret: b"}, token=True))
    assert "secret" not in str(caught.value)


async def test_a_404_carries_the_servers_words(sim, transport):
    with pytest.raises(NotFound) as caught:
        await transport.request(Request(path="/v2/codes/nope", token=True))
    assert caught.value.status == 404
    assert "NoSuchKey" in str(caught.value)
    assert caught.value.request_id


# Connecting


class Deaf(aiohttp.abc.AbstractResolver):
    """Never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        self.asked.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


async def test_the_time_for_a_connection_covers_a_resolver_that_never_answers(sim, monkeypatch):
    monkeypatch.setattr(aiohttp, "ThreadedResolver", Deaf)
    before = asyncio.all_tasks()
    hosts = Hosts(api="http://nowhere.invalid", auth="http://nowhere.invalid")
    transport = make(sim, hosts=hosts, retry=Retry(attempts=1), timeouts=Timeouts(connect=0.05))
    async with asyncio.timeout(5):
        with pytest.raises(ConnectFailed, match=r"could not connect to http://nowhere\.invalid.* in time") as caught:
            await transport.request(PROJECTS)
    assert not caught.value.permanent
    await transport.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_request_is_cancelled_at_once_while_its_host_is_looked_up(sim, monkeypatch):
    resolver = Deaf()
    monkeypatch.setattr(aiohttp, "ThreadedResolver", lambda: resolver)
    hosts = Hosts(api="http://nowhere.invalid", auth="http://nowhere.invalid")
    transport = make(sim, hosts=hosts, timeouts=Timeouts(connect=60))
    task = asyncio.create_task(transport.request(PROJECTS))
    await resolver.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await transport.aclose()


async def test_the_time_for_a_connection_covers_a_proxy_that_never_answers(sim):
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool = SessionPool(proxy=f"http://127.0.0.1:{port}", timeouts=Timeouts(connect=0.05))
        hosts = Hosts(api="https://nowhere.invalid", auth="https://nowhere.invalid")
        transport = make(sim, hosts=hosts, retry=Retry(attempts=1), pool=pool)
        async with asyncio.timeout(5):
            with pytest.raises(ConnectFailed, match="in time"):
                await transport.request(PROJECTS)
        await transport.aclose()
        await pool.aclose()


async def test_how_aiohttp_calls_its_own_method_may_change(monkeypatch):
    seen = []

    async def create(_, *args, **options):
        seen.append((args, options))
        if options["hang"]:
            await asyncio.Event().wait()
        return "connected"

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", create)
    timeout = aiohttp.ClientTimeout(sock_connect=0.01)
    async with sessions.Connector() as made:
        connector: Any = made
        create_connection = getattr(connector, "_create_connection")  # noqa: B009  # aiohttp alone calls it
        assert await create_connection("request", hang=False) == "connected"
        assert await create_connection("request", timeout=timeout, hang=False) == "connected"
        with pytest.raises(aiohttp.ConnectionTimeoutError, match=r"within 0\.01 s"):
            await create_connection("request", [], None, timeout, hang=True)
    assert seen[0] == (("request",), {"hang": False})


async def test_what_is_said_of_certificates_is_what_is_done_and_danger_is_told(sim, certificate, caplog):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        hosts = Hosts(api=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for given in (None, True, False):
            caplog.clear()
            async with SessionPool(ssl=given) as pool:
                transport = make(sim, hosts=hosts, pool=pool, credentials=Credentials(access_token="t"))
                if given is False:
                    assert "not verified" in caplog.text
                    assert (await transport.request(PROJECTS)).body == b"[]"
                else:
                    assert not caplog.text
                    with pytest.raises(ConnectFailed) as caught:
                        await transport.request(PROJECTS)
                    assert caught.value.permanent
                await transport.aclose()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ssl": "ca.pem"}, "ssl must be a TLS context, such as .* not 'ca.pem'"),
        ({"proxy": 3128}, "proxy must be text such as http://host:3128, not int"),
        ({"trust_env": "no"}, "trust_env must be True or False, not 'no'"),
        ({"guard": "no"}, "guard must be a function, not 'no'"),
        ({"session": 5}, r"session must be ClientSession\(...\) or None, not 5"),
    ],
)
def test_settings_of_a_pool_are_refused_where_they_are_given(arguments, words):
    with pytest.raises(TypeError, match=words):
        SessionPool(**arguments)


def test_a_line_end_of_a_file_is_no_part_of_a_password_and_a_blank_may_be():
    for password in ("secret\n", "secret\r\n", "\nsecret"):
        with pytest.raises(ValueError, match="password begins or ends with a line end") as caught:
            Credentials("a", password)
        assert "secret" not in str(caught.value)
    assert b'" secret "' in Credentials("a", " secret ").login_body()
