"""Ways in which other clients of this API are known to lose data, burn quotas or hang, and what happens here.

One test each, named by what must not happen. Those about the stream stand with the stream's own tests.
"""

import asyncio
import hashlib
import inspect
import json
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

import wme_async
from wme_async import Client, Hosts, Retry, SessionPool, Timeouts, read_archive
from wme_async.errors import ArchiveError, DecodeError, IntegrityError, ServerError, WMEError
from wme_async.models import Article, Batch, Editor, Event, StructuredSnapshot
from wme_async.simulator import Simulator, build_archive

AT_ONCE = Retry(base=0, cap=0)
ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "enwiki_namespace_0"
KEY = "batches/{hour}/enwiki_namespace_0"


@pytest.fixture
async def wme(sim):
    async with Client(**sim.client_options(), retry=AT_ONCE, timeouts=Timeouts(read=5)) as client:
        yield client


@pytest.fixture
def hour(sim, wme):
    return wme.batches(sim.hours[-2])


def requests_of(sim, method, path, role="api"):
    return [
        request for request in sim.requests if (request.method, request.role) == (method, role) and path in request.path
    ]


async def test_reading_a_batch_gives_articles_not_batches(hour):
    async with hour.read(ARCHIVE) as records:
        kinds = {type(record) async for record in records}
    assert kinds == {Article}


def test_the_type_of_an_event_is_read_and_written_under_its_own_key():
    event = msgspec.json.decode(b'{"identifier":"x","type":"delete"}', type=Event)
    assert event.type == "delete"
    assert json.loads(msgspec.json.encode(event))["type"] == "delete"


def archive_of(lines):
    return build_archive([("a_0.ndjson", [line + b"\n" for line in lines])])


async def test_unusual_line_separators_inside_a_record_do_not_cut_it(tmp_path):
    names = ["before\u0085after", "before\u2028after", "x\u000by", "plain"]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive_of([json.dumps({"name": name}, ensure_ascii=False).encode() for name in names]))
    # U+000B has to be escaped in JSON, and is; the other two come raw.
    async with read_archive(path) as articles:
        assert [article.name async for article in articles] == names


@pytest.mark.parametrize(
    "text", ["2023-06-15T12:06:20Z", "2023-06-15T12:06:20.123456789Z", "2023-06-15T12:06:20+00:00"]
)
def test_times_with_fractions_or_offsets_are_read_and_aware(text):
    article = msgspec.json.decode(json.dumps({"date_modified": text}).encode(), type=Article)
    assert article.date_modified is not None
    assert article.date_modified.utcoffset() is not None
    assert article.date_modified > datetime(2023, 6, 15, tzinfo=UTC)


async def test_structured_snapshots_are_listed_as_archives(wme):
    rows = await wme.structured_snapshots.list()
    assert rows
    assert all(isinstance(row, StructuredSnapshot) and len(row.version) == 32 for row in rows)


async def test_a_server_error_is_retried(sim, wme):
    fault = sim.faults.inject("status", role="api", status=503, times=2)
    assert await wme.projects.list()
    assert fault.hits == 2


def test_scores_are_read_under_the_keys_of_the_wire():
    sent = {
        "revertrisk": {"prediction": True, "probability": {"true": 0.75, "false": 0.25}},
        "referencerisk": {"reference_risk_score": 0.5},
        "referenceneed": {"reference_need_score": 0.25},
    }
    body = {"version": {"scores": sent, "noindex": True, "maintenance_tags": {"pov_count": 2}}}
    version = msgspec.json.decode(json.dumps(body).encode(), type=Article).version
    scores = version.scores
    assert scores.revertrisk is not None
    assert scores.revertrisk.probability.true == 0.75
    assert scores.referencerisk is not None
    assert scores.referencerisk.reference_risk_score == 0.5
    assert scores.referenceneed is not None
    assert scores.referenceneed.reference_need_score == 0.25
    assert version.noindex
    assert version.maintenance_tags.pov_count == 2


def test_an_editor_survives_a_round_trip():
    editor = Editor(name="x", edit_count=7)
    assert msgspec.json.decode(msgspec.json.encode(editor), type=Editor) == editor


async def test_a_null_list_does_not_cost_the_record(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive_of([b'{"name":"x","categories":null,"templates":null}']))
    async with read_archive(path) as articles:
        assert [article.name async for article in articles] == ["x"]


def expected_bytes(sim, hour_text):
    return sim.store.get(f"batches/{hour_text.replace('T', '/')}/{ARCHIVE}")


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("ignore_range", {}),
        ("content_range", {}),
        ("content_range", {"missing": True}),
        ("short", {"honest": True}),
        ("short", {"honest": False}),
        ("long", {"honest": True}),
        ("multipart", {}),
        ("corrupt", {}),
        ("swap", {}),
        ("encoding", {}),
    ],
)
@pytest.mark.parametrize("times", [1, None])
async def test_no_answer_to_a_range_makes_a_wrong_file(tmp_path, kind, details, times):
    async with Simulator(archive_bytes={ARCHIVE: 60_000}) as sim:
        retry = Retry(attempts=3, base=0)
        async with Client(**sim.client_options(), retry=retry, timeouts=Timeouts(read=5)) as wme:
            hour = wme.batches(sim.hours[-2])
            fault = sim.faults.inject(kind, role="store", times=times, **details)
            target = tmp_path / "a.tar.gz"
            try:
                done = await hour.download(ARCHIVE, target, connections=4)
            except WMEError:
                assert not target.exists()
            else:
                digest = hashlib.md5(target.read_bytes()).hexdigest()
                assert digest == done.version
                if done.verified:
                    assert digest == (await hour.get(ARCHIVE)).version
            assert fault.hits


async def test_a_head_without_a_length_does_not_make_an_empty_file(sim, wme, hour, tmp_path):
    await wme.auth.login()
    sim.faults.inject("status", role="api", method="HEAD", status=200, body=b"", times=None)
    try:
        done = await hour.download(ARCHIVE, tmp_path / "a")
    except WMEError:
        assert not (tmp_path / "a").exists()
    else:
        assert hashlib.md5(done.path.read_bytes()).hexdigest() == (await hour.get(ARCHIVE)).version


async def test_one_error_in_a_range_does_not_end_the_download_and_many_are_told_as_what_they_are(
    sim, wme, hour, tmp_path
):
    sim.faults.inject("status", role="store", status=503)
    assert (await hour.download(ARCHIVE, tmp_path / "a")).verified
    sim.faults.inject("status", role="store", status=503, times=None)
    with pytest.raises(ServerError) as caught:
        await hour.download(ARCHIVE, tmp_path / "b")
    assert caught.value.status == 503


async def test_many_ranges_cost_one_request_to_the_api(tmp_path):
    async with Simulator(archive_bytes={ARCHIVE: 3_000_000}, article_size=200_000) as sim:
        async with Client(**sim.client_options()) as wme:
            done = await wme.batches(sim.hours[-2]).download(ARCHIVE, tmp_path / "a", connections=8)
        assert done.api_requests == 1
        assert len(requests_of(sim, "GET", "/download")) == 1
        ranges = requests_of(sim, "GET", ARCHIVE, role="store")
        assert ranges
        for request in ranges:
            names = {name.lower() for name, _ in request.headers}
            assert "authorization" not in names
            assert ("accept-encoding", "identity") in {(name.lower(), value) for name, value in request.headers}


async def test_a_truncated_archive_is_an_error_of_ours(tmp_path):
    whole = archive_of([b'{"name":"x"}' for _ in range(1000)])
    path = tmp_path / "a.tar.gz"
    for size in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArchiveError):
            async with read_archive(path) as articles:
                async for _ in articles:
                    pass


async def test_a_bad_line_is_never_skipped_in_silence(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive_of([b'{"name":"x"}', b'{"name":', b'{"name":"y"}']))
    seen = []
    with pytest.raises(DecodeError) as caught:
        async with read_archive(path) as articles:
            async for article in articles:
                seen.append(article.name)  # noqa: PERF401  # what came before the error counts
    assert seen == ["x"]
    assert (caught.value.member, caught.value.line, caught.value.offset) == ("a_0.ndjson", 2, 13)


async def test_a_token_is_refreshed_before_it_ends_and_reaches_open_clients(sim, wme):
    await wme.projects.list()
    sim.clock.advance(86_500)
    await wme.projects.list()
    assert len(requests_of(sim, "POST", "token-refresh", role="auth")) == 1


async def test_a_refresh_that_is_refused_falls_back_to_a_sign_in(sim, wme):
    await wme.projects.list()
    sim.clock.advance(91 * 86_400)
    await wme.projects.list()
    assert len(requests_of(sim, "POST", "/v1/login", role="auth")) == 2


async def test_tokens_on_disk_are_private_by_user_and_survive_a_torn_file(sim, tmp_path):
    path = tmp_path / "tokens.json"
    sim.add_user("other", "pw")
    hosts = sim.client_options()["hosts"]
    for user, password in (("simulated", "simulated-password"), ("other", "pw")):
        async with Client(user, password, hosts=hosts, token_file=path) as wme:
            assert (await wme.auth.user()).username == user
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(path.read_bytes()[:50])
    async with Client("other", "pw", hosts=hosts, token_file=path) as wme:
        assert (await wme.auth.user()).username == "other"


async def test_leaving_a_client_does_not_sign_out_others_and_leaves_no_thread_or_task(sim, tmp_path):
    import threading

    before = threading.active_count()
    async with Client(**sim.client_options(), token_file=tmp_path / "t") as wme:
        await wme.projects.list()
    assert not requests_of(sim, "POST", "token-revoke", role="auth")
    # Worker threads of the loop are kept for reuse; none of them is ours.
    names = {thread.name for thread in threading.enumerate()}
    assert threading.active_count() <= before + 2, names
    assert len(asyncio.all_tasks()) <= 1 + sum(
        "simul" in repr(task) or "web" in repr(task) for task in asyncio.all_tasks()
    )


def test_importing_has_no_side_effects(tmp_path):
    (tmp_path / ".env").write_text("WME_USERNAME=from-a-file\n")
    code = (
        "import logging, os, wme_async\n"
        "assert not logging.getLogger().handlers\n"
        "assert 'WME_USERNAME' not in os.environ\n"
        "assert logging.getLogger('wme_async').level == logging.NOTSET\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    )


def test_a_client_is_a_context_manager_and_takes_tls_proxies_and_sessions():
    assert hasattr(Client, "__aenter__")
    assert {"ssl", "proxy", "trust_env", "session"} <= set(inspect.signature(SessionPool).parameters)


async def test_environment_proxies_are_used_when_asked_for(sim, monkeypatch):
    asked = []

    async def proxy(reader, writer):
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    options = {**sim.client_options(), "hosts": {"auth": "http://wme.invalid"}}
    async with SessionPool(trust_env=True) as pool, Client(**options, pool=pool, retry=Retry(attempts=1)) as wme:
        with pytest.raises(ServerError):
            await wme.auth.login()
    server.close()
    await server.wait_closed()
    assert asked[0].startswith(b"POST http://wme.invalid/v1/login")


def test_misspelt_options_are_refused():
    with pytest.raises(TypeError):
        Client("a", "b", download_concurency=99)  # type: ignore[call-arg]  # the point
    with pytest.raises(ValueError, match="no credentials"):
        Client()
    with pytest.raises(ValueError, match="unknown host"):
        Hosts.of({"apii": "https://h"})


async def test_the_client_side_limit_covers_every_request_to_the_api(sim):
    limits = wme_async.Limits(requests_per_second=50, burst=1)
    async with Client(**sim.client_options(), limits=limits) as wme:
        loop = asyncio.get_running_loop()
        await wme.auth.login()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(wme.codes.list())
        assert loop.time() - began >= 9 / 50


def test_the_package_says_what_it_needs_and_is_typed():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert (ROOT / "wme_async" / "py.typed").exists()


def test_models_compare_print_and_have_no_dict():
    one, two = Batch(identifier="a"), Batch(identifier="a")
    assert one == two
    assert "identifier='a'" in repr(one)
    assert Batch.__dictoffset__ == 0  # `vars(record)` is `record.to_dict()`; nothing is kept for it


async def test_a_wrong_checksum_leaves_no_file_of_that_name(tmp_path):
    async with Simulator() as sim:
        async with Client(**sim.client_options(), retry=AT_ONCE) as wme:
            sim.faults.inject("corrupt", role="store", times=None)
            with pytest.raises(IntegrityError) as caught:
                await wme.batches(sim.hours[-2]).download(ARCHIVE, tmp_path / "a")
            assert caught.value.expected != caught.value.got
            assert not (tmp_path / "a").exists()
