"""What a client reports to its telemetry, and the fields of log records."""

import asyncio
import contextlib
import json
import logging
from collections import defaultdict
from typing import Any

import pytest
from stream_world import PATIENT, until

from wme_async import Client, MemoryOffsets, NotFound, Position, Retry, ServerError
from wme_async.simulator import Simulator


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.attempts: list[dict[str, Any]] = []
        self.operations: list[dict[str, Any]] = []
        self.leases: list[tuple[str, int]] = []
        self.streams: dict[str, list[Any]] = defaultdict(list)

    @contextlib.contextmanager
    def _observe(self, facts):
        try:
            yield facts.update
        except BaseException as error:
            facts["error"] = type(error).__name__
            raise

    def attempt(self, method, url, resends):
        self.attempts.append({"method": method, "url": url, "resends": resends})
        return self._observe(self.attempts[-1])

    def operation(self, name, facts):
        self.operations.append({"name": name, **facts})
        return self._observe(self.operations[-1])

    def stream(self, name):
        return self.streams[name].append

    def lease_lost(self, stream, part):
        self.leases.append((stream, part))

    def of(self, path):
        return [attempt for attempt in self.attempts if attempt["url"].endswith(path)]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
async def wme(sim, recorder):
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0), telemetry=recorder) as client:
        assert client.telemetry is recorder
        yield client


async def test_each_attempt_of_a_request_is_observed(sim, wme, recorder):
    sim.faults.inject("status", role="api", path="/v2/projects", status=503, times=2)
    await wme.projects.list()
    (login,) = recorder.of("/v1/login")
    assert (login["method"], login["status"], login["resends"]) == ("POST", 200, 0)
    failed, again, done = recorder.of("/v2/projects")
    assert [attempt["resends"] for attempt in (failed, again, done)] == [0, 1, 2]
    assert [attempt.get("error") for attempt in (failed, again, done)] == ["ServerError", "ServerError", None]
    assert done["status"] == 200
    with pytest.raises(NotFound):
        await wme.projects.get("nowiki")
    assert [attempt["error"] for attempt in recorder.of("/nowiki")] == ["NotFound"]


async def test_no_credential_is_observed(sim, wme, recorder, tmp_path):
    await wme.snapshots.download("simplewiki_namespace_0", tmp_path)
    text = json.dumps([recorder.attempts, recorder.operations])
    assert any(attempt["url"].startswith(sim.store_url) for attempt in recorder.attempts)
    for secret in ("X-Amz", "ignature", sim.client_options()["password"], "?", "Bearer"):
        assert secret not in text


async def test_a_download_and_a_read_are_one_operation_each(sim, wme, recorder, tmp_path):
    done = await wme.snapshots.download("simplewiki_namespace_0", tmp_path)
    async with wme.snapshots.read("simplewiki_namespace_0") as articles:
        assert [article async for article in articles]
    download, read = recorder.operations
    path = "/v2/snapshots/simplewiki_namespace_0/download"
    assert (download["name"], download["bytes"], download["restarts"]) == ("download", done.size, 0)
    assert (read["name"], read["bytes"]) == ("read", done.size)
    assert download["url"].endswith(path)
    assert read["url"].endswith(path)
    sim.faults.inject("status", role="store", status=500, times=None)
    with pytest.raises(ServerError):
        await wme.snapshots.download("simplewiki_namespace_0", tmp_path, overwrite=True, name="other.tar.gz")
    assert recorder.operations[-1]["error"] == "ServerError"


async def test_a_read_that_is_left_early_ends_its_operation(sim, wme, recorder):
    async with wme.snapshots.read("simplewiki_namespace_0") as articles:
        await anext(articles)
    assert recorder.operations[0]["name"] == "read"
    assert "bytes" in recorder.operations[0]


async def test_a_bulk_task_is_an_operation(sim, wme, recorder, tmp_path):
    from wme_async.tasks import arun_task

    plan = await wme.snapshots.plan("enwiki_namespace_0", to=str(tmp_path), format="ndjson")
    result = await arun_task(plan.tasks[0], wme)
    (task,) = (operation for operation in recorder.operations if operation["name"] == "task")
    assert (task["chunk"], task["records"], task["bad_records"]) == (plan.tasks[0].chunk, result.rows, 0)


async def test_the_statistics_of_a_stream_come_while_it_runs_and_at_its_end(sim, wme, recorder):
    ticked = asyncio.Event()

    def take(statistics):
        recorder.streams["default/articles"].append(statistics)
        ticked.set()

    recorder.stream = lambda name: take
    async with wme.realtime.articles(commit_interval=0.01, retry=PATIENT) as stream:
        sim.firehose.publish_many(5)
        for _ in range(5):
            await anext(stream)
        ticked.clear()
        async with asyncio.timeout(10):
            await ticked.wait()
        sim.firehose.publish_many(2)
        for _ in range(2):
            await anext(stream)
    assert recorder.streams["default/articles"][-1].events == 7


async def test_a_part_that_another_member_took_is_reported(sim, wme, recorder):
    store = MemoryOffsets()
    async with wme.realtime.articles(offsets=store, share="group", commit_interval=0.01, retry=PATIENT) as stream:
        await until(lambda: len(stream.parts) == 10)
        # As a store does that lost its last changes: somebody else has the part.
        await store.give(stream.key, stream.owner, [4])
        token = (await store.take(stream.key, "another", 10, 600.0))[4]
        await store.save_held(stream.key, 4, "another", token, {20: Position(7)})
        await until(lambda: recorder.leases)
    assert recorder.leases == [("default/articles", 4)]


async def test_without_telemetry_nothing_is_called(sim):
    async with Client(**sim.client_options()) as wme:
        assert wme.telemetry is None
        assert await wme.projects.list()


# Log records


def fields(caplog, logger):
    return [record.wme for record in caplog.records if record.name == logger and hasattr(record, "wme")]


async def test_log_records_have_their_facts_as_fields(sim, caplog):
    caplog.set_level(logging.DEBUG, "wme_async")
    sim.faults.inject("status", role="api", path="/v2/projects", status=503)
    async with Client(**sim.client_options(), retry=Retry(base=0)) as wme:
        await wme.projects.list()
    records = fields(caplog, "wme_async.transport")
    (retry,) = (record for record in records if "attempt" in record)
    url = f"{sim.api_url}/v2/projects"
    assert (retry["error"], retry["status"], retry["attempt"], retry["url"]) == ("ServerError", 503, 1, url)
    assert (retry["request"], retry["wait"]) == (f"POST {url}", 0.0)
    assert {"method": "POST", "url": url, "status": 200}.items() <= records[-1].items()
    assert None not in [value for record in records for value in record.values()]
    json.dumps(records, default=str)


async def test_gaps_and_bad_records_have_fields_too(caplog):
    async with Simulator() as sim, Client(**sim.client_options()) as wme:
        async with wme.realtime.articles(parts=[0], on_bad_record="skip", retry=PATIENT) as stream:
            sim.faults.inject("broken", role="realtime", at=1)
            sim.firehose.publish_many(30, partition=0)
            await anext(stream)
            await anext(stream)
    bad = [record for record in fields(caplog, "wme_async.stream") if record.get("error") == "DecodeError"]
    assert bad
    assert bad[0]["stream"] == "default/articles"
    assert "record" not in bad[0]
