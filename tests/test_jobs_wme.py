"""`wme:` URLs: archives of the SDK as jobs of a batch, against the simulator."""

import asyncio
import errno
import hashlib
import os
import threading

import pytest
from download_store import PartFile  # its end is otherwise too short to pause in

from wme_async import Client, Retry
from wme_async.errors import NotFound
from wme_async.jobs import BatchManager, InvalidBatch, JobLimits

AT_ONCE = Retry(attempts=2, base=0, cap=0)


@pytest.fixture
async def wme(sim):
    async with Client(**sim.client_options(), retry=AT_ONCE) as client:
        yield client


@pytest.fixture
async def manager(tmp_path, wme):
    async with BatchManager(tmp_path / "files", client=wme, limits=JobLimits(free_space=0), retry=AT_ONCE) as opened:
        yield opened


def hour_of(sim):
    day, _, hour = sim.hours[-2].partition("T")
    return f"{day}/{hour}"


async def test_every_kind_of_archive_is_a_job_with_its_checksum(sim, wme, manager):
    [chunk, *_] = await wme.snapshots.chunks("enwiki_namespace_0").list()
    identifiers = {
        f"wme:batches/{hour_of(sim)}/enwiki_namespace_0": wme.batches(sim.hours[-2]),
        "wme:snapshots/dewiki_namespace_0": wme.snapshots,
        f"wme:snapshots/enwiki_namespace_0/chunks/{chunk.identifier}": wme.snapshots.chunks("enwiki_namespace_0"),
        "wme:structured-snapshots/enwiki_namespace_0": wme.structured_snapshots,
    }
    batch = await manager.submit(list(identifiers), path_template="{upload_date}/{safe_title}-{id}.{ext}")
    finished = await manager.wait(batch.batch_id, timeout=30)
    assert (finished.status, finished.completed_jobs) == ("completed", 4)
    # The template is for http URLs; an archive is where a download to the folder would be.
    assert {job.file_info.filepath for job in finished.jobs} == {
        f"batches/{hour_of(sim)}/enwiki_namespace_0.tar.gz",
        "snapshots/dewiki_namespace_0.tar.gz",
        "snapshots/enwiki_namespace_0/chunk_0.tar.gz",
        "structured_snapshots/enwiki_namespace_0.tar.gz",
    }
    for job in finished.jobs:
        name = job.url.rpartition("/")[2]
        path = manager.directory / job.file_info.filepath
        assert job.title == name
        version = (await identifiers[job.url].get(name)).version
        assert hashlib.md5(path.read_bytes()).hexdigest() == version


async def test_a_list_stands_for_all_that_it_answers(sim, wme, manager):
    url = f"wme:batches/{hour_of(sim)}?in_language.identifier=en&namespace.identifier=0"
    expected = await wme.batches(sim.hours[-2]).list(
        filters={"in_language.identifier": "en", "namespace.identifier": 0}, fields=["identifier"]
    )
    # The same archive, named and listed, is one job.
    also = f"wme:batches/{hour_of(sim)}/{expected[0].identifier}"
    batch = await manager.submit([also, url])
    assert [job.url.rpartition("/")[2] for job in batch.jobs] == [record.identifier for record in expected]
    finished = await manager.wait(batch.batch_id, timeout=30)
    assert finished.completed_jobs == len(expected) > 0
    whole = await manager.submit(["wme:snapshots"])
    assert whole.total_jobs == len(await wme.snapshots.list())
    await manager.cancel(whole.batch_id)


async def test_entities_are_archives_too(sim, wme, manager):
    [first, *_] = await wme.wikidata.snapshots.list()
    batch = await manager.submit([f"wme:wikidata/snapshots/{first.identifier}"])
    finished = await manager.wait(batch.batch_id, timeout=30)
    assert finished.jobs[0].error is None


async def test_a_list_that_is_wrong_empty_or_too_long_is_refused_and_nothing_is_stored(sim, wme, tmp_path):
    limits = JobLimits(free_space=0, expanded=2)
    async with BatchManager(tmp_path, client=wme, limits=limits, retry=AT_ONCE) as manager:
        for url, words in (
            ("wme:snapshots?no.such.field=1", "Invalid URL"),
            ("wme:snapshots?in_language.identifier=zz", "the list is empty"),
            ("wme:snapshots", "and 2 are allowed: add filters"),
        ):
            with pytest.raises(InvalidBatch, match=words):
                await manager.submit([url])
        with pytest.raises(NotFound):
            await manager.submit(["wme:batches/2001-01-01/00"])
        assert (await manager.list()).batches == ()


async def test_an_archive_that_is_not_there_fails_alone(sim, manager):
    archive = f"wme:batches/{hour_of(sim)}/enwiki_namespace_0"
    batch = await manager.submit(["wme:snapshots/nowiki_namespace_99", archive])
    finished = await manager.wait(batch.batch_id, timeout=30)
    assert [str(job.status) for job in finished.jobs] == ["failed", "completed"]
    assert "404" in finished.jobs[0].error


async def test_a_file_that_is_whole_when_its_job_is_paused_is_not_fetched_again(sim, manager, monkeypatch):
    loop, finishing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    finish = PartFile.finish

    def slow(part, **known):
        loop.call_soon_threadsafe(finishing.set)
        assert go_on.wait(10)
        return finish(part, **known)

    monkeypatch.setattr(PartFile, "finish", slow)
    batch = await manager.submit([f"wme:batches/{hour_of(sim)}/enwiki_namespace_0"])
    async with asyncio.timeout(10):
        await finishing.wait()
    await manager.pause(batch.batch_id)
    go_on.set()
    await manager.resume(batch.batch_id)
    finished = await manager.wait(batch.batch_id, timeout=30)
    assert (finished.jobs[0].status, finished.jobs[0].error) == ("completed", None)
    assert sim.requests.count("api", method="GET", path="/download") == 1


async def test_a_whole_file_that_the_disk_gave_no_name_is_not_fetched_again(sim, manager, monkeypatch):
    with monkeypatch.context() as full:

        def refuse(staged, target):
            raise OSError(errno.ENOSPC, "no space")

        full.setattr(os, "link", refuse)
        batch = await manager.submit([f"wme:batches/{hour_of(sim)}/enwiki_namespace_0"])
        failed = await manager.wait(batch.batch_id, timeout=30)
        assert failed.jobs[0].error.startswith("the disk is full")
    retried = await manager.retry(batch.batch_id)
    finished = await manager.wait(retried.batch_id, timeout=30)
    assert (finished.jobs[0].status, finished.jobs[0].error) == ("completed", None)
    assert finished.jobs[0].file_info.size_bytes > 0
    assert sim.requests.count("api", method="GET", path="/download") == 1


async def test_credentials_go_to_wikimedia_and_nowhere_else(sim, wme, tmp_path):
    heads = []

    async def answer(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        BatchManager(tmp_path, client=wme, allow_hosts=["127.0.0.1"], limits=JobLimits(free_space=0)) as manager,
    ):
        batch = await manager.submit(["wme:snapshots/dewiki_namespace_0", f"http://127.0.0.1:{port}/a"])
        assert (await manager.wait(batch.batch_id, timeout=30)).completed_jobs == 2
    assert heads
    assert all("authorization" not in head and "cookie" not in head for head in heads)
