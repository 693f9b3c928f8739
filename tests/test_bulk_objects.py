"""Bulk work whose output goes to an object store: a real protocol, spoken by a server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from bulk_exports import CHUNKS, PAGES, SNAPSHOT, export, metered
from bulk_types import Other, Page

from wme_async import Client, DataError, Retry, VersionConflict
from wme_async.simulator import Simulator, build_archive
from wme_async.tasks import Plan, arun_task, finish, read_manifest, run_plan

pytest.importorskip("obstore", reason="needs the extra `cloud`")

pytestmark = pytest.mark.servers  # it takes seconds to import the server of the object store

REGION = "us-east-1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    # It takes seconds to import, and not each process of a run has these tests.
    servers = pytest.importorskip("moto.server", reason="moto is not installed")
    server = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket, by another client of S3; the environment leads to it."""
    boto3 = pytest.importorskip("boto3")
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": REGION}
    for name, value in {**environment, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3", endpoint_url=endpoint, region_name=REGION).Bucket("bulk")
    bucket.create()
    yield bucket
    bucket.objects.delete()
    bucket.delete()


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(articles=2) as simulator:
        export(simulator, 1)
        yield simulator


@pytest.fixture
async def wme(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    for name, value in sim.environment().items():
        monkeypatch.setenv(name, value)
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as client:
        yield client


async def make_plan(wme: Client, **options: Any) -> Plan:
    return await wme.snapshots.plan(
        SNAPSHOT, to="s3://bulk/some folder", **{"type": Page, "format": "ndjson", **options}
    )


def read(bucket: Any, key: str) -> bytes:
    content: bytes = bucket.Object(key).get()["Body"].read()
    return content


async def test_every_page_is_in_the_objects_of_the_manifest_once(sim: Simulator, wme: Client, bucket: Any) -> None:
    plan = await make_plan(wme)
    # Twice at once, and once more: each object is whole, and nothing is read again once it is there.
    await asyncio.gather(*(arun_task(task, wme) for task in plan.tasks for _ in range(2)))
    spent = metered(sim)
    assert all(result.skipped for result in [await arun_task(task, wme) for task in plan.tasks])
    assert metered(sim) == spent
    manifest = await finish(plan)
    assert manifest == await read_manifest("s3://bulk/some folder/")
    lines = b"".join(read(bucket, f"some folder/{file.path}") for file in manifest.files).splitlines()
    assert sorted(msgspec.json.decode(line, type=Page).identifier for line in lines) == list(PAGES)
    assert [file.bytes for file in manifest.files] == [
        bucket.Object(f"some folder/{file.path}").content_length for file in manifest.files
    ]
    assert len(list(bucket.objects.all())) == 2 * CHUNKS + 2


async def test_a_new_export_leaves_the_old_objects_until_it_is_complete(
    sim: Simulator, wme: Client, bucket: Any
) -> None:
    first = await make_plan(wme)
    before = await run_plan(first, workers=1)
    export(sim, 2)
    second = await make_plan(wme)
    await arun_task(second.tasks[0], wme)
    with pytest.raises(DataError, match="are not done"):
        await finish(second)
    assert await read_manifest("s3://bulk/some folder") == before
    for task in second.tasks:
        await arun_task(task, wme)
    after = await finish(second)
    assert await read_manifest("s3://bulk/some folder") == after != before
    assert {file.path for file in before.files}.isdisjoint({file.path for file in after.files})


async def test_another_type_is_an_error_before_anything_is_spent(sim: Simulator, wme: Client, bucket: Any) -> None:
    await arun_task((await make_plan(wme)).tasks[0], wme)
    spent = metered(sim)
    with pytest.raises(VersionConflict, match="s3://bulk/some folder"):
        await arun_task((await make_plan(wme, type=Other)).tasks[0], wme)
    assert metered(sim) == spent


async def test_an_object_that_was_removed_is_written_again(sim: Simulator, wme: Client, bucket: Any) -> None:
    task = (await make_plan(wme)).tasks[0]
    await arun_task(task, wme)
    bucket.Object(f"some folder/{task.output}").delete()
    assert not (await arun_task(task, wme)).skipped
    assert read(bucket, f"some folder/{task.output}")


async def test_a_bucket_that_does_not_exist_is_an_error_before_anything_is_spent(
    sim: Simulator, wme: Client, bucket: Any
) -> None:
    plan = await wme.snapshots.plan(SNAPSHOT, to="s3://nobody/x", type=Page, format="ndjson")
    with pytest.raises(FileNotFoundError):
        await read_manifest("s3://nobody/x")
    with pytest.raises(FileNotFoundError):
        await arun_task(plan.tasks[0], wme)
    assert metered(sim) == 0


async def test_a_chunk_without_records_is_an_empty_object(sim: Simulator, wme: Client, bucket: Any) -> None:
    sim.put_object(f"chunks/{SNAPSHOT}/chunk_0.tar.gz", build_archive([("chunk_0.ndjson", [])]))
    task = (await make_plan(wme)).tasks[0]
    result = await arun_task(task, wme)
    assert (result.rows, result.bytes) == (0, 0)
    assert (await arun_task(task, wme)).skipped
    assert read(bucket, f"some folder/{task.output}") == b""
