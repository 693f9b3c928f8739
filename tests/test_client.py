"""The client against the simulator: the five verbs of every archive, real lists and real articles."""

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import random
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from wall_clock import MIDDLE_OF_A_MONTH

from wme_async import Allowances, Client, Cost, Limits, Retry, SessionPool, Timeouts, read_archive
from wme_async.errors import (
    DecodeError,
    Forbidden,
    NotFound,
    QuotaExceeded,
    RateLimited,
    ServerError,
    TransportError,
    Unauthorized,
)
from wme_async.models import Article, Batch, Project
from wme_async.simulator import Simulator

AT_ONCE = Retry(base=0, cap=0)


@pytest.fixture
async def wme(sim):
    async with Client(**sim.client_options(), retry=AT_ONCE) as client:
        yield client


def hour_of(sim):
    return sim.hours[-2]


async def test_the_clock_of_the_service_is_known_after_a_response():
    async with Simulator(start=datetime(2025, 7, 16, 5, tzinfo=UTC)) as sim, Client(**sim.client_options()) as wme:
        await wme.projects.list()
        assert abs(wme.server_now() - datetime.fromtimestamp(sim.clock.now(), UTC)) < timedelta(minutes=5)


async def test_the_five_uses_of_hourly_batches(sim, wme, tmp_path):
    hour = wme.batches(hour_of(sim))
    batches = await hour.list()
    english = await hour.list(filters={"in_language.identifier": "en"})
    assert 0 < len(english) < len(batches)
    assert english == [batch for batch in batches if batch.in_language.identifier == "en"]
    batch = await hour.get("enwiki_namespace_0")
    assert isinstance(batch, Batch)
    info = await hour.head("enwiki_namespace_0")
    done = await hour.download("enwiki_namespace_0", tmp_path)
    day, _, clock = hour_of(sim).partition("T")
    assert done.path == tmp_path / "batches" / day / clock / "enwiki_namespace_0.tar.gz"
    data = done.path.read_bytes()
    assert len(data) == info.size == done.size
    assert hashlib.md5(data).hexdigest() == batch.version == done.version
    assert done.verified
    async with hour.read("enwiki_namespace_0") as articles:
        arrived = [article async for article in articles]
    async with read_archive(done.path) as articles:
        records = [article async for article in articles]
    assert arrived == records
    assert all(isinstance(article, Article) for article in records)


@pytest.mark.parametrize("name", ["snapshots", "structured_snapshots", "chunks"])
async def test_every_archive_has_the_same_five_verbs(sim, wme, tmp_path, name):
    files = wme.snapshots.chunks("enwiki_namespace_0") if name == "chunks" else getattr(wme, name)
    rows = await files.list()
    identifier = rows[0].identifier
    assert (await files.get(identifier)) == rows[0]
    assert (await files.head(identifier)).size > 0
    done = await files.download(identifier, tmp_path / "x.tar.gz")
    assert done.verified
    async with files.read(identifier) as records:
        count = len([record async for record in records])
    assert count > 0


async def test_snapshots_are_the_union_of_their_chunks(sim, wme):
    with_chunks = next(record for record in await wme.snapshots.list() if record.chunks)
    chunks = wme.snapshots.chunks(with_chunks.identifier)
    assert {record.identifier for record in await chunks.list()} == set(with_chunks.chunks)
    pieces = []
    async with wme.snapshots.read(with_chunks.identifier) as articles:
        whole = [(article.identifier, article.version.identifier) async for article in articles]
    for identifier in with_chunks.chunks:
        async with chunks.read(identifier) as articles:
            pieces += [(article.identifier, article.version.identifier) async for article in articles]
    assert sorted(whole) == sorted(pieces)


@pytest.mark.parametrize("name", ["codes", "languages", "projects", "namespaces"])
async def test_metadata_is_listed_and_got(sim, wme, name):
    collection = getattr(wme, name)
    rows = await collection.list()
    assert rows
    assert await collection.get(rows[0].identifier) == rows[0]


async def test_fields_come_back_nested_and_only_they(sim, wme):
    rows = await wme.batches(hour_of(sim)).list(fields=["identifier", "size.value", "namespace.identifier"])
    assert all(row.size.value > 0 for row in rows)
    assert {row.namespace.identifier for row in rows} > {0}
    assert {row.version for row in rows} == {""}


class Small(msgspec.Struct):
    class Language(msgspec.Struct):
        identifier: str

    identifier: str
    in_language: Language


async def test_a_type_of_the_users_is_asked_for_and_decoded_into(sim, wme):
    rows = await wme.projects.list(type=Small, filters={"in_language.identifier": "en"})
    assert rows
    assert all(isinstance(row, Small) and row.in_language.identifier == "en" for row in rows)
    one = await wme.projects.get("enwiki", type=Small)
    assert one == Small("enwiki", Small.Language("en"))
    sent = next(request for request in sim.requests if request.path == "/v2/projects")
    assert msgspec.json.decode(sent.body)["fields"] == ["identifier", "in_language.identifier"]


async def test_numbers_mean_equality_although_the_server_takes_them_to_mean_more(sim, wme):
    hour = wme.batches(hour_of(sim))
    rows = await hour.list()
    size = rows[0].size.value
    batches = await hour.list(filters={"size.value": size})
    assert batches == [row for row in rows if row.size.value == size]
    assert await hour.list(filters={"namespace.identifier": 0}) == [r for r in rows if r.namespace.identifier == 0]


async def test_real_lists_are_served_filtered_and_projected(shared_data):
    plain = {
        name: msgspec.json.decode((shared_data / f"{name}.json").read_bytes())
        for name in ("batches", "projects", "languages", "namespaces", "codes")
    }
    assert (len(plain["batches"]), len(plain["projects"])) == (566, 892)
    async with Simulator(data=shared_data) as sim, Client(**sim.client_options()) as wme:
        for name in ("projects", "languages", "namespaces", "codes"):
            rows = await getattr(wme, name).list()
            assert sorted(str(row.identifier) for row in rows) == sorted(str(row["identifier"]) for row in plain[name])
        hour = wme.batches(hour_of(sim))
        listed = [row for row in plain["batches"] if row["size"].get("value")]
        assert len(await hour.list()) == len(listed)
        english = await hour.list(filters={"in_language.identifier": "en"}, fields=["identifier"])
        assert sorted(row.identifier for row in english) == sorted(
            row["identifier"] for row in listed if row["in_language"]["identifier"] == "en"
        )


async def test_real_articles_go_through_the_main_job_and_lose_nothing_but_defaults(shared_data, tmp_path):
    lines = (shared_data / "articles.ndjson").read_bytes().splitlines()
    real = {msgspec.json.decode(line)["identifier"]: msgspec.json.decode(line) for line in lines}
    async with Simulator(data=shared_data, articles=30) as sim, Client(**sim.client_options()) as wme:
        hour = wme.batches(hour_of(sim))
        identifier = (await hour.list())[0].identifier
        done = await hour.download(identifier, tmp_path)
        seen = set()
        async with read_archive(done.path, type=Article) as articles:
            async for article in articles:
                again = msgspec.json.decode(msgspec.json.encode(article))
                source = real.get(article.identifier)
                if source is not None and source["version"]["identifier"] == article.version.identifier:
                    seen.add(article.identifier)
                    assert without_defaults(again) == without_defaults(source)
        assert seen <= set(real)


def without_defaults(value):
    if isinstance(value, dict):
        return {
            key: left
            for key, each in value.items()
            if (left := without_defaults(each)) not in (None, False, 0, "", {}, [])
        }
    if isinstance(value, list):
        return [without_defaults(item) for item in value]
    return value


@pytest.mark.parametrize(
    "identifier", ["../../etc/passwd", "a/b", "..", "", "a\x00b", "structured-contents", "wikidata", "a\\b"]
)
async def test_identifiers_that_lead_elsewhere_are_refused_before_anything_is_sent(sim, wme, tmp_path, identifier):
    before = len(sim.requests)
    with pytest.raises(ValueError, match=r"identifier|server has a list"):
        await wme.snapshots.get(identifier)
    with pytest.raises(ValueError, match=r"identifier|server has a list"):
        await wme.snapshots.download(identifier, tmp_path)
    assert len(sim.requests) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hour", ["2025-07-16", "2025-07-16T5", "2025-13-01T05", "2025-07-16T24", "", "yesterday"])
async def test_wrong_hours_are_refused(wme, hour):
    with pytest.raises(ValueError, match="hour"):
        wme.batches(hour)


async def test_a_naive_time_is_refused_and_an_aware_one_is_taken_in_utc(wme):
    with pytest.raises(ValueError, match="naive"):
        wme.batches(datetime(2025, 7, 16, 5))  # noqa: DTZ001  # the point
    assert "2025-07-16/03" in repr(wme.batches(datetime.fromisoformat("2025-07-16T05:30:00+02:00")))


async def test_an_hour_that_is_not_there_yet_is_not_found(sim, wme):
    with pytest.raises(NotFound):
        await wme.batches(sim.clock.utc() + timedelta(hours=2)).list()


async def test_unknown_fields_are_refused_with_a_suggestion(sim, wme):
    before = len(sim.requests)
    with pytest.raises(ValueError, match="identifier"):
        await wme.projects.list(fields=["identifer"])
    with pytest.raises(ValueError, match="in_language"):
        await wme.projects.list(filters={"in_language": "en"})
    assert len(sim.requests) == before


@pytest.mark.parametrize(
    ("fault", "details", "words"),
    [
        ("status", {"status": 200, "body": b"<html><title>Sign in to the wifi</title>"}, "Sign in to the wifi"),
        ("garbage", {}, "did not respond with JSON"),
        ("empty", {}, "an empty body"),
        ("status", {"status": 200, "body": b"[1, 2]"}, "did not respond with JSON"),
        ("status", {"status": 200, "body": b'"text"'}, "did not respond with JSON"),
    ],
)
@pytest.mark.parametrize("fields", [None, ["identifier", "in_language.identifier"]])
async def test_answers_that_are_no_records_are_told_and_kept(sim, wme, fault, details, words, fields):
    await wme.auth.login()
    sim.faults.inject(fault, role="api", times=None, **details)
    with pytest.raises(DecodeError, match=words) as caught:
        await wme.projects.list(fields=fields)
    assert caught.value.record is not None
    assert "?" not in str(caught.value.url)


async def test_an_account_without_the_right_group_is_told_what_its_plan_lacks(sim):
    sim.add_user("free", "pw", ["group_1"])
    async with Client("free", "pw", hosts=sim.client_options()["hosts"]) as wme:
        with pytest.raises(Forbidden, match="plan does not include hourly batches"):
            await wme.batches(hour_of(sim)).list()
        assert await wme.snapshots.list(fields=["identifier"])


async def test_an_exhausted_quota_is_told_with_its_figures_and_not_hammered(tmp_path):
    async with Simulator(
        start=MIDDLE_OF_A_MONTH, caps={"group_1": {"snapshots": 1, "chunks": 100, "ondemand": 100}}
    ) as sim:
        sim.add_user("free", "pw", ["group_1"])
        options = {"hosts": sim.client_options()["hosts"], "allowances": Allowances(snapshot=1)}
        async with Client("free", "pw", **options) as wme:
            identifier = (await wme.snapshots.list())[0].identifier
            await wme.snapshots.download(identifier, tmp_path / "one")
            before = len(sim.requests)
            with pytest.raises(QuotaExceeded, match=r"snapshot requests is used up \(1 of 1\)") as caught:
                await wme.snapshots.download(identifier, tmp_path / "two")
            assert (caught.value.used, caught.value.limit, caught.value.pool) == (1, 1, "snapshot")
            refused = [
                request
                for request in list(sim.requests)[before:]
                if request.path.endswith("/download") and request.method == "GET"
            ]
            assert len(refused) == 1
            assert [path.name for path in tmp_path.iterdir()] == ["one"]
            quota = await wme.auth.quota()
            assert quota.snapshot.left == 0
            assert not quota.allows(wme.snapshots.cost(identifier))


async def test_costs_are_known_before_a_job(sim, wme):
    assert wme.snapshots.cost("a", "b") == Cost(pool="snapshot", requests=2)
    assert wme.snapshots.chunks("a").cost("1") == Cost(pool="chunk", requests=1)
    assert wme.batches(hour_of(sim)).cost("a", "b") == Cost(pool=None, requests=0)


def test_a_list_of_archives_is_not_taken_for_one_of_them():
    wme = Client("a", "b")
    assert wme.snapshots.cost() == Cost(pool="snapshot", requests=0)
    with pytest.raises(TypeError, match=r"one identifier, as in cost\(\*identifiers\)"):
        wme.snapshots.cost(["a", "b"])  # type: ignore[arg-type]
    for names in ("Marie Curie", True, None, 1.5):
        with pytest.raises(TypeError, match="list of names"):
            wme.articles.cost(names)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0"):
        wme.articles.cost(-1)


async def test_only_costs_are_checked_and_anything_else_asks_nobody(sim, wme):
    costs = [wme.snapshots.cost("a"), wme.snapshots.cost("b")]
    for wrong in (costs, 2, "enwiki_namespace_0"):
        with pytest.raises(TypeError, match=r"result of one cost\(\), as in check"):
            await wme.auth.check(wrong)
    assert not sim.requests.select()
    assert (await wme.auth.check(*costs)).snapshot.left is None


@pytest.mark.middle_of_a_month
async def test_metered_requests_are_counted_shared_and_warned_of(sim, tmp_path, caplog):
    options = {**sim.client_options(), "token_file": tmp_path / "tokens", "allowances": Allowances(chunk=4)}
    for expected in (1, 2):
        async with Client(**options) as wme:
            chunks = wme.snapshots.chunks("enwiki_namespace_0")
            await chunks.download("enwiki_namespace_0_chunk_0", tmp_path / f"{expected}.tar.gz")
            assert (await wme.auth.quota()).chunk.used >= expected
    async with Client(**options) as wme:
        chunks = wme.snapshots.chunks("enwiki_namespace_0")
        for number in (3, 4):
            await chunks.download(0, tmp_path / f"{number}.tar.gz")
    assert sum("4 chunk requests" in record.getMessage() for record in caplog.records) == 1


def counted(path):
    (usage,) = json.loads(path.read_bytes())["usage"].values()
    return usage


@pytest.mark.middle_of_a_month
@pytest.mark.posix  # it holds the lock by flock
async def test_counts_outlive_a_save_that_was_cancelled_or_failed(sim, tmp_path, monkeypatch, caplog):
    path = tmp_path / "tokens"
    options = {**sim.client_options(), "token_file": path, "retry": AT_ONCE}
    began, go = asyncio.Event(), threading.Event()
    loop, replace, lock = asyncio.get_running_loop(), os.replace, fcntl.flock

    async def download(client, number):
        await client.snapshots.chunks("enwiki_namespace_0").download(0, tmp_path / f"{number}.tar.gz")

    def slow(source, target):
        if target == path:
            loop.call_soon_threadsafe(began.set)
            assert go.wait(20)
        replace(source, target)

    def full(source, target):
        if target == path:
            raise OSError(errno.ENOSPC, "the disk is full")
        replace(source, target)

    def held(descriptor, operation):
        try:
            lock(descriptor, operation)
        except BlockingIOError:
            loop.call_soon_threadsafe(began.set)
            raise

    async with Client(**options) as wme:
        await wme.auth.login()  # from here on the client goes by the server's month
        monkeypatch.setattr(os, "replace", slow)
        saving = asyncio.create_task(download(wme, 1))
        await began.wait()
        saving.cancel()
        # Counted while the thread writes, and the file's lock is held as long as it does.
        await wme.articles.lookup("NATO")
        assert not saving.done()
        go.set()
        await asyncio.wait([saving])
        assert saving.cancelled()
        assert counted(path) == {"chunk/2026-07": 1}
        monkeypatch.setattr(os, "replace", full)
        await download(wme, 2)
        assert "could not write the usage" in caplog.text
        assert counted(path) == {"chunk/2026-07": 1}
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(fcntl, "flock", held)
        began.clear()
        with (tmp_path / "tokens.lock").open("w") as held_lock:
            lock(held_lock, fcntl.LOCK_EX)
            waiting = asyncio.create_task(download(wme, 3))
            await began.wait()
            waiting.cancel()
            await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert counted(path) == {"chunk/2026-07": 1}
        # Another client counts too, and the counts that are not written yet come on top of its own.
        async with Client(**options) as other:
            await download(other, 4)
        assert counted(path) == {"chunk/2026-07": 2}
        assert (await wme.auth.quota()).chunk.used == 4
    assert counted(path) == {"chunk/2026-07": 4, "ondemand/2026-07": 1}


@pytest.mark.middle_of_a_month
@pytest.mark.parametrize("answer", ["some is left", "used up", "no answer"])
async def test_of_requests_that_are_refused_together_one_asks_whether_the_month_is_used_up(sim, answer):
    sim.faults.inject("status", role="api", path="/v2/articles", status=429, times=None)
    if answer == "no answer":
        sim.faults.inject("status", role="auth", path="get-user", status=503, skip=1, times=None)
    unanswered = sim.faults.inject("hang_head", role="auth", path="get-user")
    allowances = Allowances(ondemand=5)
    sim.caps.set_used("simulated", "ondemand", 5 if answer == "used up" else 4)
    async with Client(**sim.client_options(), retry=Retry(attempts=1), allowances=allowances) as wme:
        first = asyncio.create_task(wme.articles.lookup("NATO"))
        await sim.requests.wait(path="get-user")
        tasks = [asyncio.create_task(wme.articles.lookup("NATO")) for _ in range(19)]
        await sim.requests.wait(20, path="/v2/articles", status=429, done=True)
        for _ in range(100):  # until the client has read all of these responses
            await asyncio.sleep(0)
        # One that is cancelled while it asks leaves it to another.
        first.cancel()
        done, _ = await asyncio.wait(tasks, timeout=5)
        assert len(done) == 19
        assert unanswered.hits == 1
        assert sim.requests.count(path="get-user") == 2
        kind = QuotaExceeded if answer == "used up" else RateLimited
        assert {type(task.exception()) for task in done} == {kind}
        with pytest.raises(kind):
            await wme.articles.lookup("NATO")
        # A later refusal is asked about anew, unless the month is known to be used up.
        assert sim.requests.count(path="get-user") == (2 if answer == "used up" else 3)


async def test_the_account_is_shown(sim, wme):
    user = await wme.auth.user()
    assert user.username == "simulated"
    assert user.groups == ("group_3",)
    sim.faults.inject("garbage", role="auth", path="get-user", times=None)
    with pytest.raises(DecodeError, match="get-user"):
        await wme.auth.user()


async def test_a_download_that_the_server_does_not_redirect_is_an_error(sim, wme, tmp_path):
    await wme.auth.login()
    sim.faults.inject("status", role="api", method="GET", path="/download", status=200, body=b"archive", times=None)
    with pytest.raises(TransportError, match="instead of redirecting"):
        await wme.batches(hour_of(sim)).download("enwiki_namespace_0", tmp_path)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.middle_of_a_month
async def test_a_snapshot_costs_one_metered_request_however_long_it_is_read(sim, wme, tmp_path, client_clock, kept):
    data = random.Random(0).randbytes(20_000_000)
    sim.put_object("snapshots/enwiki_namespace_0.tar.gz", data)
    got = bytearray()
    tee = tmp_path / "x" if kept else None
    async with wme.snapshots.content("enwiki_namespace_0", window=400_000, tee=tee) as content:
        async for piece in content:
            got += piece
            client_clock.offset += 10
    assert got == data
    assert client_clock.offset > 120
    assert (await wme.auth.quota()).snapshot.used == 1


@pytest.mark.parametrize("verb", ["download", "read", "content", "file"])
async def test_an_archive_that_the_plan_does_not_include_is_asked_for_once(sim, wme, tmp_path, verb):
    hour = wme.batches(sim.hours[-2])
    identifier = (await hour.list())[0].identifier
    sim.faults.inject("status", role="api", path="/download", method="GET", status=403, times=None)

    async def ask():
        if verb == "download":
            await hour.download(identifier, tmp_path)
        elif verb == "file":
            await wme.files.download("Ottawa 0757.jpg", tmp_path, verify=False)
        elif verb == "read":
            async with hour.read(identifier) as articles:
                await anext(articles)
        else:
            async with hour.content(identifier, connections=1) as content:
                await anext(content)

    async with asyncio.timeout(20):
        with pytest.raises(Forbidden):
            await ask()
    assert (
        len([request for request in sim.requests if request.path.endswith("/download") and request.method == "GET"])
        == 1
    )
    assert not list(tmp_path.iterdir())


async def test_chunks_of_another_snapshot_are_refused(sim, wme):
    with pytest.raises(ValueError, match="is not a chunk of"):
        await wme.snapshots.chunks("enwiki_namespace_0").get("dewiki_namespace_0_chunk_1")


UNREACHABLE = "http://127.0.0.1:1"


async def test_the_environment_has_credentials_and_hosts_and_options_override_it(sim, monkeypatch):
    with pytest.raises(ValueError, match="no credentials"):
        Client.from_env()
    options = sim.client_options()
    monkeypatch.setenv("WME_USERNAME", options["username"])
    with pytest.raises(ValueError, match="go together"):
        Client.from_env()
    monkeypatch.setenv("WME_PASSWORD", options["password"])
    monkeypatch.setenv("WME_AUTH_URL", options["hosts"]["auth"])
    monkeypatch.setenv("WME_API_URL", options["hosts"]["api"])
    async with Client.from_env() as wme:
        assert await wme.codes.list()
    monkeypatch.setenv("WME_API_URL", UNREACHABLE)
    async with Client.from_env(hosts=options["hosts"]) as wme:
        assert await wme.codes.list()
    with pytest.raises(TypeError):
        Client.from_env(download_concurency=99)


async def test_the_environment_overrides_an_env_file(sim, monkeypatch, tmp_path):
    pytest.importorskip("dotenv", reason="the extra `cli` is not installed")
    options = sim.client_options()
    monkeypatch.setenv("WME_USERNAME", options["username"])
    monkeypatch.setenv("WME_PASSWORD", options["password"])
    monkeypatch.setenv("WME_API_URL", options["hosts"]["api"])
    env_file = tmp_path / "env"
    env_file.write_text(f"WME_USERNAME=ignored\nWME_API_URL={UNREACHABLE}\nWME_AUTH_URL={options['hosts']['auth']}\n")
    async with Client.from_env(env_file) as wme:
        assert await wme.codes.list()
    with pytest.raises(FileNotFoundError):
        Client.from_env(tmp_path / "none")


async def test_whitespace_around_credentials_is_dropped_except_spaces_of_a_password(monkeypatch):
    async with Simulator() as sim:
        sim.add_user("somebody", " pass word ", ["group_3"])
        hosts = sim.client_options()["hosts"]
        monkeypatch.setenv("WME_USERNAME", " Somebody\n")
        monkeypatch.setenv("WME_PASSWORD", " pass word \r\n")
        async with Client.from_env(hosts=hosts) as wme:
            await wme.codes.list()
        token = str(sim.requests.last.header("Authorization")).removeprefix("Bearer ")
        monkeypatch.setenv("WME_ACCESS_TOKEN", f"{token}\n")
        async with Client.from_env(hosts=hosts) as wme:
            await wme.codes.list()
        assert sim.requests.last.header("Authorization") == f"Bearer {token}"
        assert sim.requests.count("auth", path="login") == 1
    monkeypatch.setenv("WME_PASSWORD", "\n")
    with pytest.raises(ValueError, match="password is empty"):
        Client.from_env()


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("", ValueError, "token_file is empty; leave it out"),
        (5, TypeError, "token_file must be a path, .* not 5"),
        (b"x", TypeError, "token_file must be a path, .* not b'x'"),
    ],
)
def test_a_token_file_without_a_name_is_refused_before_anything_is_sent(path, kind, words):
    with pytest.raises(kind, match=words):
        Client("a", "b", token_file=path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeouts": 30}, r"timeouts must be Timeouts\(...\) or None, not 30"),
        ({"retry": False}, r"retry must be Retry\(...\)"),
        ({"retry": {"attempts": 3}}, r"retry must be Retry\(...\)"),
        ({"limits": 10}, r"limits must be Limits\(...\)"),
        ({"limits": {}}, r"limits must be Limits\(...\)"),
        ({"pool": Limits()}, r"pool must be SessionPool\(...\)"),
        ({"cache": True}, r"cache must be Cache\(...\)"),
        ({"allowances": {"snapshot": 3}}, r"allowances must be Allowances\(...\)"),
        ({"on_retry": "print"}, "on_retry must be a function"),
        ({"hosts": {"api": 8080}}, "Hosts.api must be text"),
        ({"paths": "/v3/batches"}, "paths must be a mapping"),
        ({"paths": {"batches": None}}, "path of batches must be text"),
    ],
)
def test_settings_of_another_type_are_refused_with_what_they_take(options, words):
    with pytest.raises(TypeError, match=words):
        Client("a", "b", **options)


def test_a_pool_takes_no_numbers_for_settings():
    with pytest.raises(TypeError, match=r"limits must be Limits\(...\)"):
        SessionPool(limits=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", [b"hunter2", 1234567])
def test_credentials_that_are_no_text_are_refused_and_not_repeated(secret):
    for options in ({"username": "a", "password": secret}, {"access_token": secret}):
        with pytest.raises(TypeError, match="must be text, not") as caught:
            Client(**options)
        assert "hunter2" not in str(caught.value)
        assert "1234567" not in str(caught.value)


async def test_a_closed_client_says_so_and_closing_twice_does_no_harm(sim):
    client = Client(**sim.client_options())
    assert await client.projects.list()
    await client.aclose()
    await client.aclose()
    assert "closed" in repr(client)
    with pytest.raises(RuntimeError, match="closed"):
        await client.projects.list()
    with pytest.raises(RuntimeError, match="closed"):
        async with client:
            pass


def test_without_a_running_loop_or_in_another_it_is_told_in_one_sentence():
    pool = SessionPool(limits=Limits(connections=1), timeouts=Timeouts(connect=1))

    async def enter():
        async with Client("a", "b", pool=pool):
            pass

    asyncio.run(enter())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(enter())


async def test_paths_of_beta_resources_can_be_moved(sim):
    with pytest.raises(ValueError, match="is unknown; resources are"):
        Client("a", "b", paths={"nothing": "/x"})
    with pytest.raises(ValueError, match="begin with a slash"):
        Client("a", "b", paths={"batches": "/v2/batches"})
    with pytest.raises(ValueError, match="cannot be replaced"):
        Client("a", "b", paths={"auth.user": "/v2/get-user"})
    client = Client(**sim.client_options(), paths={"projects": "/v2/languages"})
    assert isinstance((await client.projects.list())[0], Project)
    await client.aclose()


async def test_wrong_credentials_are_told(sim):
    options = {**sim.client_options(), "password": "wrong"}
    async with Client(**options) as wme:
        with pytest.raises(Unauthorized, match="Incorrect username or password"):
            await wme.projects.list()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_costs_nothing(sim, wme, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        await wme.snapshots.download("enwiki_namespace_0", tmp_path)
    assert not [request for request in sim.requests if request.path.endswith("/download") and request.method == "GET"]


async def test_many_clients_share_one_pool(sim):
    async with SessionPool() as pool:
        options = {**sim.client_options(), "pool": pool}
        async with Client(**options) as one, Client(**options) as two:
            assert await one.projects.list() == await two.projects.list()
        assert "open" in repr(pool)
    assert "closed" in repr(pool)


@pytest.mark.parametrize("skew", [-3 * 86_400, -120, 120, 3 * 86_400])
async def test_a_server_whose_clock_is_wrong_is_served_all_the_same(sim, tmp_path, skew):
    sim.clock.advance(skew)
    async with Client(**sim.client_options(), retry=AT_ONCE) as wme:
        assert (await wme.snapshots.download("simplewiki_namespace_0", tmp_path)).verified
        async with wme.snapshots.read("simplewiki_namespace_0") as articles:
            assert len([article async for article in articles]) > 0
    assert sum(request.path == "/v1/login" for request in sim.requests) == 1


async def test_the_bytes_of_an_archive_are_passed_on(sim, wme, tmp_path):
    hour = wme.batches(hour_of(sim))
    async with hour.content("enwiki_namespace_0", tee=tmp_path) as content:
        data = b"".join([piece async for piece in content])
    assert hashlib.md5(data).hexdigest() == (await hour.get("enwiki_namespace_0")).version
    [copy] = tmp_path.rglob("enwiki_namespace_0.tar.gz")
    assert copy.parts[-4] == "batches"
    assert copy.read_bytes() == data
    async with hour.read("enwiki_namespace_0", select=lambda name: name.endswith("_0.ndjson")) as articles:
        some = len([article async for article in articles])
    async with hour.read("enwiki_namespace_0") as articles:
        assert 0 < some <= len([article async for article in articles])


@pytest.mark.middle_of_a_month
async def test_an_archive_that_is_newer_than_its_metadata_is_read_for_one_metered_request(sim, wme, tmp_path):
    sim.store.part_size = 5 << 20
    data = random.Random(0).randbytes(12 << 20)
    sim.put_object("snapshots/enwiki_namespace_0.tar.gz", data, update_metadata=False)
    async with wme.snapshots.content("enwiki_namespace_0") as content:
        got = b"".join([piece async for piece in content])
    assert got == data
    assert content.verified is None
    assert (await wme.auth.quota()).snapshot.used == 1
    assert (await wme.snapshots.download("enwiki_namespace_0", tmp_path)).verified is None
    sim.put_object("snapshots/enwiki_namespace_0.tar.gz", data)
    async with wme.snapshots.content("enwiki_namespace_0") as content:
        assert b"".join([piece async for piece in content]) == data
    assert content.verified is True


async def test_a_signature_is_asked_for_again_with_backoff_while_the_other_connection_goes_on(sim, wme, tmp_path):
    data = random.Random(0).randbytes(4_000_000)
    sim.put_object("snapshots/enwiki_namespace_0.tar.gz", data)
    sim.faults.script([("slow", {"rate": 3_000_000}), "expire"], role="store")
    renewal = sim.faults.inject("status", role="api", path="/download", method="GET", status=503, skip=1, times=3)
    done = await wme.snapshots.download("enwiki_namespace_0", tmp_path, connections=2)
    assert renewal.hits == 3
    assert done.verified is True
    assert done.api_requests == 2
    # Neither of the two ranges was asked for twice, but for the one that was refused.
    assert sum(request.role == "store" for request in sim.requests) == 3


async def test_a_stream_is_opened_with_its_batches_behind_it(sim, wme):
    assert "here: filter version.identifier" in wme.realtime.explain(filters={"version.identifier": 5_000_000})
    assert "backfill" not in repr(wme.realtime)
    numbers = {}
    async with asyncio.timeout(20):
        for kind in (Article, msgspec.Raw):
            options = {"filters": {"version.identifier": 7_000_001}, "type": kind, "backfill": True}
            async with wme.realtime.articles(name=kind.__name__, **options) as stream:
                await sim.firehose.wait_open(1)
                for number in (7_000_000, 7_000_001):
                    sim.firehose.publish({"name": "x", "version": {"identifier": number}, "event": {}}, partition=0)
                record = await anext(stream)
                if kind is msgspec.Raw:
                    record = msgspec.json.decode(record, type=Article)
                numbers[kind] = record.version.identifier
    assert set(numbers.values()) == {7_000_001}


async def test_nothing_shows_a_secret(sim, wme, tmp_path, caplog):
    caplog.set_level("DEBUG")
    await wme.snapshots.download("enwiki_namespace_0", tmp_path)
    token = str(
        sim.requests.last.header("Authorization")
        or next(request.header("Authorization") for request in sim.requests if request.role == "api")
    ).removeprefix("Bearer ")
    content = wme.snapshots.content("enwiki_namespace_0")
    objects = (wme, wme.auth, wme.snapshots, wme.realtime, wme.files, wme.articles, content)
    text = " ".join([*map(repr, objects), repr(vars(wme.auth)), repr(vars(wme)), caplog.text])
    for secret in ("Signature=", "simulated-password", token):
        assert secret not in text


@pytest.mark.parametrize(
    ("group", "used", "limit"),
    [
        ("group_3", 4_999, None),
        ("group_3", 5_000, 5_000),  # the count stops at the cap, or a little behind it
        ("group_3", 5_003, 5_000),
        ("group_3", 6_000, None),
        ("group_1", 49_999, None),
        ("group_1", 50_000, 50_000),
    ],
)
async def test_a_count_beyond_the_limit_that_is_stated_for_all_shows_that_it_is_not_the_accounts(
    sim, group, used, limit
):
    sim.add_user("busy", "pw", [group])
    async with Client("busy", "pw", hosts=sim.client_options()["hosts"], retry=AT_ONCE) as wme:
        sim.caps.set_used("busy", "ondemand", used)
        sim.faults.inject("status", role="api", path="/v2/articles", status=429)
        if limit is None:
            assert await wme.articles.lookup("NATO")
        else:
            with pytest.raises(QuotaExceeded) as caught:
                await wme.articles.lookup("NATO")
            assert (caught.value.used, caught.value.limit) == (used, limit)


async def test_a_limit_of_requests_can_be_the_accounts_own(sim):
    # The service counts requests only for groups with an allowance.
    sim.caps.limits["group_3"] = {"ondemand": 100}
    for cap, kind in ((5, QuotaExceeded), (6, RateLimited)):
        user = f"capped{cap}"
        sim.add_user(user, "pw")
        allowances = Allowances(ondemand=cap)
        async with Client(
            user, "pw", hosts=sim.client_options()["hosts"], retry=Retry(attempts=1), allowances=allowances
        ) as wme:
            for number in range(5):
                await wme.articles.lookup(f"T{number}")
            sim.faults.inject("status", role="api", path="/v2/articles", status=429)
            with pytest.raises(kind):
                await wme.articles.lookup("T")


async def test_retries_are_set_by_the_environment(sim, monkeypatch):
    for name, value in {**sim.environment(), "WME_RETRY_BASE": "0", "WME_RETRY_ATTEMPTS": "2"}.items():
        monkeypatch.setenv(name, value)
    waits = []
    sim.faults.inject("status", role="api", status=503, times=None)
    async with Client.from_env(on_retry=lambda event: waits.append(event.wait)) as wme:
        with pytest.raises(ServerError):
            await wme.projects.list()
    assert waits == [0.0]
    async with Client.from_env(retry=Retry(attempts=1), on_retry=lambda event: waits.append(event.wait)) as wme:
        with pytest.raises(ServerError):
            await wme.projects.list()
    assert waits == [0.0]


@pytest.mark.parametrize(
    ("name", "value"), [("BASE", "soon"), ("ATTEMPTS", "1.5"), ("ATTEMPTS", "0"), ("RETRY_AFTER_CAP", "-1")]
)
def test_a_wrong_variable_of_retries_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"WME_RETRY_{name}", value)
    with pytest.raises(ValueError, match=f"{name}|{name.lower()}"):
        Client.from_env(access_token="a.b.c")
