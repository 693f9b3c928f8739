"""Every fault does what its name says, once, where it was asked for, and nothing else."""

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from wme_async.simulator import Faults, Simulator

KEY = "snapshots/enwiki_namespace_0.tar.gz"
DATA = hashlib.shake_256(b"faults").digest(50_000)
SPAN = {"Range": "bytes=100-40099"}
PART = DATA[100:40_100]
BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)


class Store:
    """Asks the store for one object, always with a fresh signature."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session

    def open(self, headers: dict[str, str] | None = None) -> Any:
        address = URL(self.simulator.store.presign(KEY, "me"), encoded=True)
        return self.session.get(address, headers=headers)

    async def get(self, headers: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
        async with self.open(headers) as response:
            return response.status, response.headers, await response.read()

    async def partial(self, headers: dict[str, str] | None = None) -> bytes:
        """Return what arrived of a body that breaks off."""
        got = bytearray()
        async with self.open(headers) as response:
            assert int(response.headers["Content-Length"]) == (len(PART) if headers else len(DATA))
            with pytest.raises(BROKEN):
                async for piece in response.content.iter_any():
                    got += piece
        return bytes(got)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with Simulator() as simulator:
        simulator.put_object(KEY, DATA)
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            yield Store(simulator, session)


# Choosing requests


def test_a_fault_befalls_only_what_matches_and_only_so_often() -> None:
    faults = Faults()
    fault = faults.inject("reset", role="api", path=r"/v2/b\w+", method="GET", times=2, skip=1)
    hits = [
        bool(faults.match(role, method, path))
        for role, method, path in [
            ("store", "GET", "/v2/batches"),
            ("api", "POST", "/v2/batches"),
            ("api", "GET", "/v2/codes"),
            ("api", "GET", "/v2/batches"),
            ("api", "GET", "/v2/batches"),
            ("api", "GET", "/v2/batches"),
            ("api", "GET", "/v2/batches"),
        ]
    ]
    assert hits == [False, False, False, False, True, True, False]
    assert (fault.hits, len(faults)) == (2, 0)


def test_faults_can_be_taken_back() -> None:
    faults = Faults()
    first, _ = faults.inject("reset", times=None), faults.inject("empty", times=None)
    assert [fault.kind for fault in faults.match("api", "GET", "/")] == ["reset", "empty"]
    first.remove()
    first.remove()
    assert [fault.kind for fault in faults.match("api", "GET", "/")] == ["empty"]
    faults.clear()
    assert faults.match("api", "GET", "/") == []


@pytest.mark.parametrize(
    ("problem", "arguments", "match"),
    [
        (ValueError, {"kind": "explode"}, "no fault 'explode'"),
        (ValueError, {"kind": "cut", "role": "api"}, "no fault 'cut' without role=\"realtime\""),
        (ValueError, {"kind": "corrupt", "role": "realtime"}, "no fault 'corrupt' for role='realtime'"),
        (ValueError, {"kind": "reset", "role": "proxy"}, "no role 'proxy'"),
        (TypeError, {"kind": "status", "status": "many"}, "status must be a number, not 'many'"),
        (ValueError, {"kind": "drop", "after": -1}, "after is 0 or more"),
        (TypeError, {"kind": "slow", "speed": 3}, "takes no speed"),
        (ValueError, {"kind": "slow", "rate": 0}, "more than 0 bytes a second"),
        (ValueError, {"kind": "slow", "rate": 0.0, "role": "realtime"}, "more than 0 bytes a second"),
        (TypeError, {"kind": "gap", "role": "realtime", "after": 3}, "takes no after"),
        (re.error, {"kind": "slow", "path": "("}, "unterminated"),
    ],
)
def test_misuse_is_an_error_at_once(problem: type[Exception], arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(problem, match=match):
        Faults().inject(**arguments)


@given(st.lists(st.sampled_from([None, "reset", "empty", ("status", {"status": 500})]), max_size=12))
def test_a_script_is_played_in_order(steps: list[Any]) -> None:
    faults = Faults()
    faults.script(steps, role="store", path="/wanted")
    played = []
    for _ in range(len(steps) + 2):
        assert faults.match("store", "GET", "/other") == []
        hit = faults.match("store", "GET", "/wanted")
        assert len(hit) <= 1
        played.append(hit[0].kind if hit else None)
    kinds = [step[0] if isinstance(step, tuple) else step for step in steps]
    assert played == [*kinds, None, None]
    assert len(faults) == 0


# Before the head


async def test_status_answers_with_anything(store: Store) -> None:
    faults = store.simulator.faults
    faults.inject("status", status=429, message="Too Many Requests", headers={"Retry-After": "7"})
    status, headers, body = await store.get()
    assert (status, headers["Retry-After"]) == (429, "7")
    assert body == b'{"status":429,"message":"Too Many Requests"}\n'
    faults.inject("status", status=500)
    assert (await store.get())[::2] == (500, b"")
    faults.inject("status", status=502, html=True)
    status, headers, body = await store.get()
    assert (status, headers["Content-Type"], body[:6]) == (502, "text/html", b"<html>")
    faults.inject("status", status=401, body="no")
    assert (await store.get())[::2] == (401, b"no")
    assert (await store.get())[2] == DATA


@pytest.mark.parametrize("kind", ["reset", "refuse"])
async def test_reset_leaves_no_head(store: Store, kind: str) -> None:
    store.simulator.faults.inject(kind, times=None)  # aiohttp's client tries a GET a second time
    with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
        await store.get()
    assert store.simulator.requests.last.status is None
    assert store.simulator.requests.last.faults == (kind,)


async def test_an_origin_that_is_down_refuses_connections_and_comes_back(store: Store) -> None:
    store.simulator.faults.inject("stall", after=10)
    async with store.open() as response:
        async with store.simulator.down("store"):
            with pytest.raises(aiohttp.ClientConnectorError):
                await store.get()
        with pytest.raises(BROKEN):
            await response.read()
    assert (await store.get())[2] == DATA


async def test_hang_head_lasts_until_the_client_leaves(store: Store) -> None:
    store.simulator.faults.inject("hang_head")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await store.get()
    await store.simulator.requests.wait(done=True)
    assert (await store.get())[0] == 200


async def test_delay_comes_before_the_answer(store: Store) -> None:
    store.simulator.faults.inject("delay", seconds=0.03)
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert (await store.get())[0] == 200
    assert loop.time() - before >= 0.03


# The store


async def test_expire_refuses_a_good_signature(store: Store) -> None:
    store.simulator.faults.inject("expire", role="store")
    status, _, body = await store.get()
    assert (status, b"Request has expired" in body) == (403, True)


async def test_ranges_can_be_ignored_or_mislabelled(store: Store) -> None:
    faults = store.simulator.faults
    faults.script(
        [
            "ignore_range",
            "content_range",
            ("content_range", {"missing": True}),
            ("content_range", {"value": "bytes 0-1/2"}),
        ]
    )
    status, headers, body = await store.get(SPAN)
    assert (status, body, "Content-Range" in headers) == (200, DATA, False)
    wrong = [await store.get(SPAN) for _ in range(3)]
    assert [(status, body) for status, _, body in wrong] == [(206, PART)] * 3
    assert [headers.get("Content-Range") for _, headers, _ in wrong] == ["bytes 101-40100/50000", None, "bytes 0-1/2"]


async def test_a_range_can_come_as_multipart(store: Store) -> None:
    store.simulator.faults.inject("multipart")
    status, headers, body = await store.get(SPAN)
    boundary = headers["Content-Type"].partition("boundary=")[2].encode()
    assert status == 206
    assert "Content-Range" not in headers
    assert body.split(b"\r\n\r\n", 1)[1] == PART + b"\r\n--" + boundary + b"--\r\n"


async def test_swap_replaces_the_object_between_ranges(store: Store) -> None:
    _, before, _ = await store.get(SPAN)
    store.simulator.faults.inject("swap")
    tagged = {**SPAN, "If-Match": before["ETag"]}
    assert (await store.get(tagged))[0] == 412
    _, after, body = await store.get()
    assert after["ETag"] != before["ETag"]
    assert len(body) == len(DATA)
    store.simulator.faults.inject("swap", data=b"new")
    assert (await store.get())[2] == b"new"


# Bodies


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_drop_closes_after_so_many_bytes(store: Store, how: str) -> None:
    store.simulator.faults.inject("drop", after=1000, how=how)
    got = await store.partial(SPAN)
    assert PART.startswith(got)
    assert len(got) == 1000 or (how == "reset" and len(got) < 1000)
    assert (await store.get(SPAN))[2] == PART


async def test_drop_before_the_first_byte_still_sends_the_head(store: Store) -> None:
    store.simulator.faults.inject("drop", after=0)
    assert await store.partial(SPAN) == b""


async def test_an_unnamed_place_is_inside_and_follows_from_the_seed(store: Store) -> None:
    lengths = []
    for _ in range(2):
        store.simulator.faults.random.seed(5)
        store.simulator.faults.inject("drop")
        lengths.append(len(await store.partial(SPAN)))
    assert lengths[0] == lengths[1] < len(PART)


@pytest.mark.parametrize("after", [0, 1000])
async def test_stall_hangs_in_the_body_until_the_client_leaves(store: Store, after: int) -> None:
    store.simulator.faults.inject("stall", after=after)
    async with store.open() as response:
        assert await response.content.readexactly(after) == DATA[:after]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.content.readany()
    await store.simulator.requests.wait(done=True)


async def test_slow_sends_at_its_rate_and_may_be_cut_too(store: Store) -> None:
    faults = store.simulator.faults
    faults.inject("slow", rate=1_000_000)
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert (await store.get())[2] == DATA
    assert loop.time() - before >= 0.04
    faults.inject("slow", rate=1_000_000)
    faults.inject("drop", after=30_000)
    assert await store.partial() == DATA[:30_000]


async def test_a_rate_of_few_bytes_a_second_is_kept_too(store: Store) -> None:
    store.simulator.faults.inject("slow", rate=20)
    store.simulator.faults.inject("drop", after=4)
    loop = asyncio.get_running_loop()
    before = loop.time()
    assert await store.partial() == DATA[:4]
    assert loop.time() - before >= 0.19


async def test_short_and_long_with_an_honest_length_and_without(store: Store) -> None:
    faults = store.simulator.faults
    faults.inject("short", missing=10)
    _, headers, body = await store.get(SPAN)
    assert (body, headers["Content-Range"]) == (PART[:-10], "bytes 100-40099/50000")
    faults.inject("short", missing=10, honest=False)
    assert await store.partial(SPAN) == PART[:-10]
    faults.inject("long", extra=3)
    assert (await store.get(SPAN))[2] == PART + bytes(3)
    faults.inject("long", extra=3, honest=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(store.simulator.store_url).port)
    target = store.simulator.store.presign(KEY, "me").removeprefix(store.simulator.store_url)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 50000" in head
    assert body == DATA + bytes(3)


async def test_corrupt_flips_one_bit(store: Store) -> None:
    store.simulator.faults.inject("corrupt", at=7)
    body = (await store.get())[2]
    assert [index for index in range(len(DATA)) if body[index] != DATA[index]] == [7]
    assert (body[7] ^ DATA[7]).bit_count() == 1


async def test_encoding_is_claimed_or_real(store: Store) -> None:
    store.simulator.faults.script([("encoding", {"real": True}), "encoding"])
    _, headers, body = await store.get()
    assert (headers["Content-Encoding"], gzip.decompress(body)) == ("gzip", DATA)
    _, headers, body = await store.get()
    assert (headers["Content-Encoding"], body) == ("gzip", DATA)


async def test_garbage_and_empty_bodies_reach_any_role(store: Store) -> None:
    simulator = store.simulator
    form = {"username": "simulated", "password": "simulated-password"}
    simulator.faults.script(["garbage", "empty"], role="auth")
    async with store.session.post(f"{simulator.auth_url}/v1/login", json=form) as response:
        assert response.status == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(await response.read())
    async with store.session.post(f"{simulator.auth_url}/v1/login", json=form) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_faults_of_the_body_work_on_files_too(store: Store, tmp_path: Any) -> None:
    (tmp_path / "object").write_bytes(DATA)
    store.simulator.put_object(KEY, tmp_path / "object")
    store.simulator.faults.script([("drop", {"after": 500}), ("corrupt", {"at": 0}), "swap", "multipart"])
    assert await store.partial(SPAN) == PART[:500]
    assert (await store.get(SPAN))[2][1:] == PART[1:]
    assert (await store.get())[2] == DATA[::-1]
    assert DATA[::-1][100:40_100] in (await store.get(SPAN))[2]


async def test_head_has_no_body_to_damage(store: Store) -> None:
    simulator = store.simulator
    form = {"username": "simulated", "password": "simulated-password"}
    async with store.session.post(f"{simulator.auth_url}/v1/login", json=form) as response:
        token = (await response.json())["access_token"]
    simulator.faults.inject("drop", method="HEAD", after=0)
    url = f"{simulator.api_url}/v2/snapshots/enwiki_namespace_0/download"
    async with store.session.head(url, headers={"Authorization": token}) as response:
        assert (response.status, response.headers["Content-Length"]) == (200, str(len(DATA)))


async def test_the_stream_gets_its_own_faults(store: Store) -> None:
    simulator = store.simulator
    form = {"username": "simulated", "password": "simulated-password"}
    async with store.session.post(f"{simulator.auth_url}/v1/login", json=form) as response:
        token = (await response.json())["access_token"]
    simulator.firehose.publish_many(3, partition=0)
    fault = simulator.faults.inject("eof", role="realtime", at=2)
    body = {"parts": [0], "offsets": {"0": 0}}
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/x-ndjson"}
    async with store.session.post(f"{simulator.realtime_url}/v2/articles", json=body, headers=headers) as response:
        lines = (await response.read()).splitlines()
    assert [json.loads(line)["event"]["offset"] for line in lines] == [0, 1]
    assert fault.hits == 1
