"""The batch manager, against a web server on loopback."""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import pathlib
import sqlite3
import threading
from typing import Any

import msgspec
import pytest
from failing_sqlite import Trouble
from jobs_server import open_manager

from wme_async import jobs
from wme_async.jobs import BatchManager, InvalidBatch, JobLimits, Status, UnknownBatch, WrongState
from wme_async.settings import Retry, Timeouts

QUICK = Retry(attempts=2, base=0.01, cap=0.02)


@pytest.fixture
async def manager(tmp_path):
    async with open_manager(tmp_path / "files") as opened:
        yield opened


def states(batch):
    return [str(job.status) for job in batch.jobs]


async def arrived(manager, batch_id, count, *, job=0):
    """Wait until a job has so many bytes."""
    async with asyncio.timeout(10):
        async for event in manager.watch(batch_id):
            if event.kind == "progress" and event.job_id == f"job_{batch_id}_{job}" and event.progress.done >= count:
                return


async def reach(manager, batch_id, status, *, job=0):
    """Wait until a job is in a state."""
    async with asyncio.timeout(10):
        async for event in manager.watch(batch_id):
            if event.kind == "job" and event.job_id == f"job_{batch_id}_{job}" and event.status == status:
                return


async def test_a_batch_is_downloaded_to_names_of_its_own(manager, server):
    urls = [server.add(f"video{number}.mp4", 1000 * number) for number in (1, 2, 3)]
    batch = await manager.submit(urls)
    assert (batch.status, batch.total_jobs, batch.queued_jobs) == ("queued", 3, 3)
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.status, finished.completed_jobs, finished.failed_jobs, finished.error) == ("completed", 3, 0, None)
    for number, job in enumerate(finished.jobs, start=1):
        assert job.job_id == f"job_{batch.batch_id}_{number - 1}"
        assert job.file_info.filepath == f"batch/{batch.batch_id}/video{number}.mp4"
        assert job.file_info.size_bytes == 1000 * number
        assert (job.title, job.progress.percent) == (f"video{number}", 100.0)
        assert (manager.directory / job.file_info.filepath).read_bytes() == server.files[f"video{number}.mp4"]
    assert finished.progress.percent == 100.0
    assert finished.progress.done == 6000
    assert finished.created_at <= finished.started_at <= finished.completed_at
    assert not list((manager.directory / ".wme-jobs").glob("parts/*"))


async def test_the_name_comes_from_disposition_and_type_and_fills_the_template(manager, server):
    urls = [
        server.add("1", Content_Disposition='attachment; filename="Ünï/../Report.final.pdf"'),
        server.add("video1", Content_Type="video/mp4", Last_Modified="Thu, 06 Nov 2025 10:00:00 GMT"),
    ]
    template = "a/{uploader}/{upload_date}-{safe_title}-{id}.{ext}"
    batch = await manager.submit(urls, path_template=template)
    finished = await manager.wait(batch.batch_id, timeout=10)
    first, second = (job.file_info.filepath for job in finished.jobs)
    assert first.startswith("a/127.0.0.1/")
    assert "-Report.final-" in first
    assert first.endswith(".pdf")
    assert second.startswith("a/127.0.0.1/20251106-video1-")
    assert second.endswith(".mp4")


async def test_a_date_that_is_none_fails_no_job(manager, server):
    url = server.add("a", Last_Modified=f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT")
    batch = await manager.submit([url], path_template="{upload_date}-{safe_title}.{ext}")
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert finished.jobs[0].error is None


async def test_a_job_that_is_cancelled_while_its_folder_is_made_leaves_none(manager, server, monkeypatch):
    loop, making, created, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event(), threading.Event()
    mkdir = pathlib.Path.mkdir

    def slow(folder, *args, **options):
        job = "parts" in folder.parts
        if job:
            monkeypatch.undo()
            loop.call_soon_threadsafe(making.set)
            assert go_on.wait(10)
        mkdir(folder, *args, **options)
        if job:
            loop.call_soon_threadsafe(created.set)

    monkeypatch.setattr(pathlib.Path, "mkdir", slow)
    batch = await manager.submit([server.add("a")])
    async with asyncio.timeout(10):
        await making.wait()
    await manager.cancel(batch.batch_id)
    # Until this one has ended, what the first has left would have been removed as well.
    other = await manager.submit([server.add("b")])
    await manager.wait(other.batch_id, timeout=10)
    go_on.set()
    async with asyncio.timeout(10):
        await created.wait()
    await manager.aclose()
    assert not list((manager.directory / ".wme-jobs").glob("parts/*"))


async def test_jobs_that_want_one_name_get_different_ones(manager, server):
    urls = [server.add(f"{number}/same.txt", 10 + number) for number in range(4)]
    for _ in range(2):
        batch = await manager.submit(urls, path_template="{safe_title}.{ext}")
        await manager.wait(batch.batch_id, timeout=10)
    names = sorted(path.name for path in manager.directory.glob("*.txt"))
    assert names == sorted(["same.txt", *(f"same ({number}).txt" for number in range(2, 9))])
    assert sorted(path.stat().st_size for path in manager.directory.glob("*.txt")) == [10, 10, 11, 11, 12, 12, 13, 13]


async def test_what_is_there_already_is_never_touched(manager, server):
    (manager.directory / "mine.txt").write_text("precious")
    (manager.directory / "batch").write_text("a file where a folder should be")
    (manager.directory / "away").symlink_to(manager.directory.parent)
    one = await manager.submit([server.add("mine.txt")], path_template="{safe_title}.{ext}")
    two = await manager.submit([server.add("other.txt")])
    three = await manager.submit([server.add("third.txt")], path_template="away/{safe_title}.{ext}")
    finished = [await manager.wait(batch.batch_id, timeout=10) for batch in (one, two, three)]
    assert [batch.jobs[0].file_info.filepath for batch in finished] == [
        "mine (2).txt",
        f"batch (2)/{two.batch_id}/other.txt",
        "away (2)/third.txt",
    ]
    assert (manager.directory / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("stop", "ignore", "status", "expected", "error"),
    [
        (False, True, "completed", ["completed", "failed", "completed"], None),
        (False, False, "failed", ["completed", "failed", "completed"], "1 of 3 jobs failed, the first"),
        (True, True, "completed", ["completed", "failed", "cancelled"], "stopped on the first error"),
        (True, False, "failed", ["completed", "failed", "cancelled"], "stopped on the first error"),
    ],
)
async def test_a_failure_ends_a_batch_as_its_options_say(manager, server, stop, ignore, status, expected, error):
    urls = [server.add("a"), server.add("b", rule=404), server.add("c")]
    batch = await manager.submit(urls, concurrent_limit=1, stop_on_error=stop, ignore_errors=ignore)
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.status, states(finished)) == (status, expected)
    assert finished.jobs[1].error.startswith("HTTP 404")
    assert (finished.error or "").startswith(error or "")
    assert bool(finished.error) == bool(error)
    if stop:
        assert finished.jobs[2].error == "cancelled, because another job of the batch failed"
        assert server.asked["c"] == 0


async def test_stop_on_error_cancels_what_is_running(manager, server):
    urls = [server.add("a", 200_000, "hang"), server.add("b", rule=404)]
    batch = await manager.submit(urls, stop_on_error=True, concurrent_limit=2)
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.status, states(finished)) == ("completed", ["cancelled", "failed"])


async def test_no_more_jobs_run_than_the_limits_of_batch_host_and_manager_allow(tmp_path, server):
    urls = [server.add(f"f{number}", 40_000, "hang") for number in range(8)]
    limits = JobLimits(running=5, per_host=4, free_space=0)
    async with open_manager(tmp_path, limits=limits) as manager:
        one = await manager.submit(urls, concurrent_limit=3)
        two = await manager.submit([url + "?again" for url in urls], concurrent_limit=10)
        await reach(manager, two.batch_id, "running")
        assert (await manager.status(one.batch_id)).running_jobs == 3
        assert (await manager.status(two.batch_id)).running_jobs == 1
        server.gate.set()
        for batch in (one, two):
            assert (await manager.wait(batch.batch_id, timeout=10)).completed_jobs == 8


async def test_an_urgent_batch_overtakes(tmp_path, server):
    server.add("first", 20_000, "hang")
    async with open_manager(tmp_path, limits=JobLimits(running=1, free_space=0)) as manager:
        busy = await manager.submit([f"{server.url}/f/first"])
        plain = await manager.submit([server.add("plain")])
        urgent = await manager.submit([server.add("urgent")], priority=10)
        async with asyncio.timeout(5):
            await server.hanging.wait()
        server.gate.set()
        for batch in (busy, plain, urgent):
            await manager.wait(batch.batch_id, timeout=10)
        started = [event.batch_id async for event in manager.watch(plain.batch_id)]
        assert started
        assert (await manager.status(urgent.batch_id)).completed_at <= (
            await manager.status(plain.batch_id)
        ).completed_at
        order = [name for name in server.asked if name in {"plain", "urgent"}]
        assert order == ["urgent", "plain"]


async def test_a_paused_job_goes_on_with_the_bytes_it_has(manager, server):
    url = server.add("big", 6_000_000, "hang")
    batch = await manager.submit([url])
    await arrived(manager, batch.batch_id, 1_000_000)
    paused = await manager.pause(batch.batch_id)
    assert (paused.status, paused.paused_jobs, paused.running_jobs) == ("paused", 1, 0)
    assert paused.jobs[0].progress.done >= 1_000_000
    assert (await manager.pause(batch.batch_id)).status == "paused"
    server.rules.pop("big")
    bytes_before = server.sent
    assert (await manager.resume(batch.batch_id)).queued_jobs == 1
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert finished.status == "completed"
    assert (manager.directory / finished.jobs[0].file_info.filepath).read_bytes() == server.files["big"]
    assert server.sent - bytes_before < 5_500_000


async def test_pausing_and_resuming_at_once_never_runs_a_job_twice_at_a_time(manager, server):
    url = server.add("big", 3_000_000, "slow")
    batch = await manager.submit([url])
    for _ in range(10):
        await manager.pause(batch.batch_id)
        await manager.resume(batch.batch_id)
    server.rules.pop("big")
    await manager.pause(batch.batch_id)
    await manager.resume(batch.batch_id)
    finished = await manager.wait(batch.batch_id, timeout=20)
    assert (finished.status, finished.jobs[0].error) == ("completed", None)
    assert (manager.directory / finished.jobs[0].file_info.filepath).read_bytes() == server.files["big"]


async def test_cancelling_stops_everything_and_leaves_finished_files(manager, server):
    urls = [server.add("done"), server.add("hangs", 100_000, "hang"), server.add("waits")]
    batch = await manager.submit(urls, concurrent_limit=1)
    await reach(manager, batch.batch_id, "completed")
    async with asyncio.timeout(5):
        await server.hanging.wait()
    cancelled = await manager.cancel(batch.batch_id)
    assert (cancelled.status, states(cancelled)) == ("cancelled", ["completed", "cancelled", "cancelled"])
    assert (await manager.cancel(batch.batch_id)).status == "cancelled"
    for verb in (manager.pause, manager.resume):
        with pytest.raises(WrongState, match="cancelled and cannot be"):
            await verb(batch.batch_id)
    assert (manager.directory / cancelled.jobs[0].file_info.filepath).exists()
    assert server.asked["waits"] == 0


async def test_a_finished_batch_cannot_be_cancelled(manager, server):
    batch = await manager.submit([server.add("a")])
    await manager.wait(batch.batch_id, timeout=10)
    with pytest.raises(WrongState, match="completed and cannot be cancelled"):
        await manager.cancel(batch.batch_id)
    with pytest.raises(WrongState, match="a job that is completed cannot cancel"):
        await manager.cancel_job(f"job_{batch.batch_id}_0")


async def test_retry_repeats_what_failed_and_names_the_old_batch(manager, server):
    urls = [server.add("good"), server.add("bad", 500, 500), server.add("gone", 500, 404)]
    batch = await manager.submit(urls, ignore_errors=False, path_template="x/{safe_title}.{ext}")
    failed = await manager.wait(batch.batch_id, timeout=10)
    assert failed.status == "failed"
    server.rules.clear()
    retried = await manager.retry(batch.batch_id)
    assert (retried.retry_of, [job.url for job in retried.jobs]) == (batch.batch_id, urls[1:])
    finished = await manager.wait(retried.batch_id, timeout=10)
    assert (finished.status, finished.completed_jobs) == ("completed", 2)
    assert finished.jobs[0].file_info.filepath == "x/bad.bin"
    with pytest.raises(WrongState, match="no job of the batch has failed"):
        await manager.retry(retried.batch_id)


async def test_chosen_jobs_are_retried_alone(manager, server):
    urls = [server.add("good", 9), *(server.add(f"bad{number}", 9, 404) for number in range(3))]
    batch = await manager.submit(urls, name="Mine")
    await manager.wait(batch.batch_id, timeout=10)
    names = [f"job_{batch.batch_id}_{number}" for number in range(4)]
    server.rules.clear()
    retried = await manager.retry(batch.batch_id, jobs=[names[3], names[1], names[3]])
    assert (retried.name, [job.url for job in retried.jobs]) == ("Mine", [urls[1], urls[3]])
    assert (await manager.wait(retried.batch_id, timeout=10)).completed_jobs == 2
    for wrong in (names[0], names[:1]):
        with pytest.raises((TypeError, WrongState), match=r"number 1 is completed|list of job ids"):
            await manager.retry(batch.batch_id, jobs=wrong)
    for unknown in (f"job_{batch.batch_id}_4", f"job_{retried.batch_id}_0", "nothing", ""):
        with pytest.raises(UnknownBatch, match="does not exist"):
            await manager.retry(batch.batch_id, jobs=[names[1], unknown])
    with pytest.raises(WrongState, match="no job"):
        await manager.retry(batch.batch_id, jobs=[])


async def test_a_failed_job_is_logged_with_its_batch(manager, server, caplog):
    caplog.set_level(logging.INFO, "wme_async.jobs")
    batch = await manager.submit([f"{server.add('bad', 9, 404)}?token=secret"])
    await manager.wait(batch.batch_id, timeout=10)
    (record,) = (record for record in caplog.records if hasattr(record, "wme"))
    assert record.wme == {"batch": batch.batch_id, "job": f"job_{batch.batch_id}_0"}
    assert "404" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_a_name_outlives_a_restart(tmp_path, server):
    async with open_manager(tmp_path) as manager:
        named = await manager.submit([server.add("a")], name="My list")
        unnamed = await manager.submit([server.add("a"), server.add("b")])
        assert (named.name, unnamed.name) == ("My list", f"{server.url}/f/a and 1 more")
    async with open_manager(tmp_path) as manager:
        listed = (await manager.list()).batches
        assert [batch.name for batch in listed] == [unnamed.name, "My list"]
        assert (await manager.status(named.batch_id)).name == "My list"


async def test_retry_keeps_the_bytes_that_are_there(manager, server):
    url = server.add("big", 6_000_000, "hang")
    batch = await manager.submit([url], timeout=1.0)
    failed = await manager.wait(batch.batch_id, timeout=10)
    assert failed.jobs[0].error.startswith("timed out after 1 s (after ")
    assert failed.jobs[0].error.endswith(" of 6000000 bytes)")
    server.rules.clear()
    bytes_before = server.sent
    finished = await manager.wait((await manager.retry(batch.batch_id)).batch_id, timeout=10)
    assert finished.completed_jobs == 1
    assert server.sent - bytes_before < 5_500_000


async def test_a_silent_server_is_a_stall_and_says_so(tmp_path, server):
    url = server.add("big", 100_000, "hang")
    async with open_manager(tmp_path, timeouts=Timeouts(read=0.8), retry=Retry(attempts=1)) as manager:
        batch = await manager.submit([url])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert finished.jobs[0].error.startswith("stalled: nothing arrived for 0.8 s")


async def test_a_full_disk_is_told_in_words(tmp_path, server):
    async with open_manager(tmp_path, limits=JobLimits(free_space=1 << 60)) as manager:
        batch = await manager.submit([server.add("a")])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.jobs[0].status, finished.jobs[0].error[:16]) == ("failed", "the disk is full")


@contextlib.asynccontextmanager
async def answering(head):
    """Answer every request with a head of raw bytes, and two bytes of body."""

    async def answer(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + head + b"\r\n\r\nab")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as odd:
        yield f"http://127.0.0.1:{odd.sockets[0].getsockname()[1]}/odd"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b'ETag: "a\xffb"\r\nContent-Length: 2', "completed"),
        (b"Content-Length: %d" % (2**64 - 2), "failed"),
        (b"Content-Length: %d" % (2**62), "failed"),
    ],
)
async def test_what_a_database_cannot_hold_ends_no_other_job(manager, server, head, status):
    async with answering(head) as url:
        batch = await manager.submit([f"{url}{number}" for number in range(3)])
        odd = await manager.wait(batch.batch_id, timeout=10)
    assert states(odd) == [status] * 3
    assert json.loads(msgspec.json.encode(odd))["batch_id"] == batch.batch_id
    plain = await manager.submit([server.add("a")])
    assert (await manager.wait(plain.batch_id, timeout=10)).status == "completed"
    assert len((await manager.list()).batches) == 2


async def test_a_version_that_is_no_text_is_none_and_the_file_comes_all_the_same(manager):
    data = bytes(range(256)) * 8192

    async def answer(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            part = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-0/%d" % len(data) if b"Range:" in request else b""
            writer.write((part or b"HTTP/1.1 200 OK") + b'\r\nETag: "a\xffb"\r\nConnection: close\r\n')
            writer.write(b"Content-Length: %d\r\n\r\n" % (1 if part else len(data)) + data[: 1 if part else None])
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as odd:
        batch = await manager.submit([f"http://127.0.0.1:{odd.sockets[0].getsockname()[1]}/odd"])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert finished.jobs[0].error is None
    assert (manager.directory / finished.jobs[0].file_info.filepath).read_bytes() == data


class OddMedia:
    """A fetcher of media whose answers are none."""

    async def fetch(self, url, folder, **_):
        (folder / "film").write_bytes(b"film")
        nothing: Any = None
        name = jobs.FileName(title="film", ext=nothing, id="1", uploader="x", upload_date="20251106")
        return jobs.Fetched(path=folder / "film", name=name, size=4)


async def test_an_answer_of_a_media_fetcher_that_is_none_ends_no_other_job(tmp_path, server):
    async with open_manager(tmp_path, media=OddMedia()) as manager:
        plain = await manager.submit([server.add("a", 100_000, "hang")])
        page = await manager.submit([server.add("page", Content_Type="text/html")])
        finished = await manager.wait(page.batch_id, timeout=10)
        assert finished.jobs[0].error.startswith("AttributeError: ")
        server.gate.set()
        assert (await manager.wait(plain.batch_id, timeout=10)).status == "completed"


async def test_bytes_that_are_there_need_no_room_a_second_time(manager, server, monkeypatch, tmp_path):
    url = server.add("big", 6_000_000, "hang")
    batch = await manager.submit([url])
    await arrived(manager, batch.batch_id, 1_000_000)
    await manager.pause(batch.batch_id)
    server.rules.pop("big")
    status = os.statvfs(tmp_path)
    nearly_full = os.statvfs_result([1, 1, status.f_blocks, 5_500_000, 5_500_000, *status[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: nearly_full)
    await manager.resume(batch.batch_id)
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.jobs[0].status, finished.jobs[0].error) == ("completed", None)
    fresh = await manager.wait((await manager.submit([url])).batch_id, timeout=10)
    assert fresh.jobs[0].error == "the disk is full: the server says that the file has 6,000,000 bytes"


async def test_a_job_starts_although_the_database_fails_for_a_moment(tmp_path, server, monkeypatch):
    trouble = Trouble(monkeypatch, "INTO jobs", value="running", times=3)
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a")])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.status, trouble.count) == ("completed", 4)


@pytest.mark.parametrize(("statement", "value"), [("UPDATE jobs SET filepath", None), ("INTO jobs", "completed")])
async def test_a_whole_file_gets_its_name_although_the_database_fails_for_a_moment(
    tmp_path, server, monkeypatch, statement, value
):
    trouble = Trouble(monkeypatch, statement, value=value)
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a")])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.jobs[0].status, finished.jobs[0].error, trouble.count) == ("completed", None, 2)
    assert [path.name for path in (tmp_path / "batch" / batch.batch_id).iterdir()] == ["a.bin"]
    assert (tmp_path / finished.jobs[0].file_info.filepath).read_bytes() == server.files["a"]


@pytest.mark.parametrize("rule", [None, "chunked"])
async def test_a_file_above_the_size_limit_is_refused(tmp_path, server, rule):
    url = server.add("big", 3_000_000, rule)
    async with open_manager(tmp_path, limits=JobLimits(job_size=1_000_000, free_space=0)) as manager:
        batch = await manager.submit([url])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert "larger than the 1000000 bytes that are allowed" in finished.jobs[0].error


@pytest.mark.parametrize("rule", ["whole", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 70_000])
async def test_a_server_without_ranges_or_length_will_do(manager, server, rule, size):
    batch = await manager.submit([server.add("plain.txt", size, rule)])
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert finished.jobs[0].error is None
    assert (manager.directory / finished.jobs[0].file_info.filepath).read_bytes() == server.files["plain.txt"]


async def test_an_empty_file_is_a_file(manager, server):
    batch = await manager.submit([server.add("empty", 0)])
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.status, finished.jobs[0].file_info.size_bytes, finished.progress.percent) == (
        "completed",
        0,
        100.0,
    )


async def test_redirects_are_followed_and_the_last_url_names_the_file(manager, server):
    target = server.add("real.zip")
    batch = await manager.submit([server.add("one", rule="/f/two"), server.add("two", rule=target) + "?b"])
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert sorted(job.file_info.filename for job in finished.jobs) == ["real (2).zip", "real.zip"]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://169.254.169.254/latest/", "metadata service"),
        ("http://localhost/", "a local name"),
        ("http://[::1]/", "loopback"),
        ("file:///etc/passwd", "must start with http"),
        ("//10.0.0.1/", "private"),
        ("http://user:secret@127.0.0.1/", "user name or password"),
        ("/f/loop", "redirected more than 10 times"),
    ],
)
async def test_a_redirect_to_where_it_must_not_lead_is_refused(manager, server, location, words):
    batch = await manager.submit([server.add("loop", rule=location)])
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert words in finished.jobs[0].error
    assert "secret" not in finished.jobs[0].error


async def test_a_name_that_resolves_to_a_private_address_is_refused(tmp_path, server, names):
    names["innocent.example"] = "127.0.0.1"
    server.add("secret")
    url = server.url.replace("127.0.0.1", "innocent.example") + "/f/secret"
    async with open_manager(tmp_path, allow_hosts=[]) as manager:
        batch = await manager.submit([url])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert "innocent.example is refused" in finished.jobs[0].error
    assert "127.0.0.1" not in finished.jobs[0].error
    assert server.asked["secret"] == 0


async def test_a_page_is_not_passed_off_as_the_video_that_was_asked_for(manager, server):
    url = server.add("watch", Content_Type="text/html; charset=utf-8")
    plain = await manager.wait((await manager.submit([url])).batch_id, timeout=10)
    assert plain.jobs[0].file_info.filename == "watch.html"
    batch = await manager.wait((await manager.submit([url], quality="1080p")).batch_id, timeout=10)
    assert "this is a web page" in batch.jobs[0].error


async def test_bad_submissions_store_nothing(manager, server):
    with pytest.raises(InvalidBatch) as caught:
        await manager.submit(["nonsense", "http://10.0.0.1/"], concurrent_limit=11, path_template="../{id}")
    assert [what for what, _ in caught.value.problems] == [
        "nonsense",
        "http://10.0.0.1/",
        "concurrent_limit",
        "path_template",
    ]
    with pytest.raises(InvalidBatch, match="need a client"):
        await manager.submit(["wme:snapshots/enwiki_namespace_0"])
    assert (await manager.list()).batches == ()


async def test_unknown_ids_are_an_error_of_their_own(manager):
    for call in (manager.status, manager.cancel, manager.pause, manager.resume, manager.retry, manager.delete):
        with pytest.raises(UnknownBatch, match="batch_none"):
            await call("batch_none")
    for name in ("job_batch_none_0", "job_x", "", "job_batch_none_-1"):
        with pytest.raises(UnknownBatch):
            await manager.cancel_job(name)
    with pytest.raises(UnknownBatch):
        await anext(manager.watch("batch_none"))
    with pytest.raises(UnknownBatch):
        await manager.wait("batch_none")


async def test_a_batch_is_not_taken_for_its_identifier(manager, server):
    batch = await manager.submit([server.add("mine.txt")])
    for call in (manager.status, manager.wait, manager.cancel, manager.pause, manager.retry, manager.delete):
        with pytest.raises(TypeError, match=r"batch_id must be text, such as batch\.batch_id, not Batch"):
            await call(batch)
    with pytest.raises(TypeError, match=r"job_id must be text, such as job\.job_id, not Job"):
        await manager.cancel_job(batch.jobs[0])
    assert (await manager.wait(batch.batch_id)).ended


async def test_lists_are_paged_and_filtered(manager, server):
    url = server.add("a")
    batch_ids = [(await manager.submit([url])).batch_id for _ in range(5)]
    for batch_id in batch_ids:
        await manager.wait(batch_id, timeout=10)
    first = await manager.list(limit=2)
    assert [batch.batch_id for batch in first.batches] == batch_ids[:2:-1]
    second = await manager.list(limit=10, before=first.next)
    assert [batch.batch_id for batch in second.batches] == batch_ids[2::-1]
    assert second.next is None
    assert (await manager.list(limit=10, before=batch_ids[3])).batches == second.batches
    for batch_id in batch_ids[3:]:
        await manager.delete(batch_id)
    assert (await manager.list(limit=10, before=first.next)).batches == second.batches
    assert second.batches[0].jobs == ()
    assert (second.batches[0].completed_jobs, second.batches[0].progress.percent) == (1, 100.0)
    assert (await manager.list(status="failed")).batches == ()
    for options in ({"limit": 0}, {"limit": 501}, {"status": "odd"}):
        with pytest.raises(ValueError, match=r"."):
            await manager.list(**options)


async def test_a_list_shows_the_progress_of_running_jobs(manager, server):
    batch = await manager.submit([server.add("big", 3_000_000, "hang")])
    await arrived(manager, batch.batch_id, 1)
    [listed] = (await manager.list()).batches
    assert (listed.status, listed.running_jobs, listed.progress.total) == ("running", 1, 3_000_000)
    assert 0 < listed.progress.done < 3_000_000


async def test_a_deleted_batch_is_gone_and_takes_its_files_only_when_told_to(manager, server):
    first = await manager.submit([server.add("kept")])
    second = await manager.submit([server.add("gone")])
    running = await manager.submit([server.add("runs", 100_000, "hang")])
    for batch in (first, second):
        await manager.wait(batch.batch_id, timeout=10)
    async with asyncio.timeout(5):
        await server.hanging.wait()
    await manager.delete(first.batch_id)
    await manager.delete(second.batch_id, files=True)
    await manager.delete(running.batch_id)
    assert (await manager.list()).batches == ()
    assert (manager.directory / "batch" / first.batch_id / "kept.bin").exists()
    assert not (manager.directory / "batch" / second.batch_id).exists()
    assert not list((manager.directory / ".wme-jobs").glob("parts/*"))


# Watching


async def test_watching_a_batch_tells_every_state_in_order_and_ends_with_it(manager, server):
    batch = await manager.submit([server.add("a"), server.add("b", rule=404)], concurrent_limit=1)
    events = [event async for event in manager.watch(batch.batch_id)]
    states_seen = [
        (event.kind, (event.job_id or "")[-1:], str(event.status)) for event in events if event.kind != "progress"
    ]
    assert states_seen == [
        ("batch", "", "queued"),
        ("job", "0", "running"),
        ("batch", "", "running"),
        ("job", "0", "completed"),
        ("job", "1", "running"),
        ("job", "1", "failed"),
        ("batch", "", "completed"),
    ]
    ids = [event.id for event in events if event.id is not None]
    assert ids == sorted(set(ids))
    later = [event async for event in manager.watch(batch.batch_id, after=ids[3])]
    assert [event.id for event in later] == ids[4:]
    async with asyncio.timeout(5):
        assert [event async for event in manager.watch(batch.batch_id, after=ids[-1])] == []


async def test_progress_is_told_while_bytes_arrive_and_weighs_them(manager, server):
    urls = [server.add("big", 400_000, "stepped"), server.add("small", 1000)]
    batch = await manager.submit(urls)
    server.steps.release()
    big: list[jobs.JobProgress] = []
    async for event in manager.watch(batch.batch_id):
        if event.progress is not None and event.progress.total == 400_000:
            if event.progress.done > (big[-1].done if big else 0):
                server.steps.release()
            big.append(event.progress)
    assert len(big) >= 2
    assert [progress.done for progress in big] == sorted(progress.done for progress in big)
    assert all(0 <= progress.percent < 100 for progress in big)


async def test_progress_of_a_batch_goes_from_nothing_to_all(manager, server):
    percents: list[float] = []

    def record(batch):
        if batch.progress.percent > (percents[-1] if percents else -1.0):
            server.steps.release()
        percents.append(batch.progress.percent)

    batch = await manager.submit([server.add("big", 400_000, "stepped"), server.add("small", 1000)])
    await manager.wait(batch.batch_id, progress=record, timeout=20)
    assert percents[0] == 0.0
    assert percents[-1] == 100.0
    assert any(0 < percent < 100 for percent in percents)


async def test_a_watcher_who_does_not_read_holds_up_nobody(manager, server):
    lazy = manager.watch()
    first = asyncio.ensure_future(anext(lazy))
    await asyncio.sleep(0)
    batches = [await manager.submit([server.add(f"f{number}")]) for number in range(5)]
    for batch in batches:
        await manager.wait(batch.batch_id, timeout=10)
    assert (await first).batch_id == batches[0].batch_id
    events = [await anext(lazy) for _ in range(20)]
    assert {event.batch_id for event in events} >= {batch.batch_id for batch in batches[:4]}
    await lazy.aclose()
    assert manager.statistics()["watchers"] == 0


async def test_waiting_gives_up_in_time_and_the_batch_goes_on(manager, server):
    batch = await manager.submit([server.add("a", 100_000, "hang")])
    with pytest.raises(TimeoutError):
        await manager.wait(batch.batch_id, timeout=0.05)
    server.gate.set()
    assert (await manager.wait(batch.batch_id, timeout=10)).status == "completed"


async def test_closing_ends_whoever_waits(tmp_path, server):
    manager = open_manager(tmp_path)
    await manager.start()
    batch = await manager.submit([server.add("a", 100_000, "hang")])

    async def collect():
        return [event async for event in manager.watch()]

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        watching = group.create_task(collect())
        waiting = group.create_task(closed_while_waiting(manager, batch.batch_id))
        await server.hanging.wait()
        await manager.aclose()
    assert watching.done()
    assert waiting.result()
    with pytest.raises(RuntimeError, match="not open"):
        await manager.submit(["https://example.com/"])
    await manager.aclose()


async def closed_while_waiting(manager, batch_id):
    with pytest.raises(RuntimeError, match=r"closed|not open"):
        await manager.wait(batch_id)
    return True


# Restarts


async def test_a_restart_goes_on_with_what_is_unfinished(tmp_path, server):
    urls = [server.add("done"), server.add("big", 6_000_000, "hang"), server.add("later")]
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit(urls, concurrent_limit=1)
        paused = await manager.submit([server.add("paused")])
        await manager.pause(paused.batch_id)
        await reach(manager, batch.batch_id, "completed")
        await arrived(manager, batch.batch_id, 1_000_000, job=1)
        events = [event.id async for event in aiter_until(manager, batch.batch_id, 4)]
    server.rules.clear()
    bytes_before, requests_before = server.sent, server.asked["done"]
    async with open_manager(tmp_path) as manager:
        missed = [event async for event in manager.watch(batch.batch_id, after=events[-1]) if event.id]
        assert [event.id for event in missed] == sorted({event.id for event in missed})
        assert missed[0].id > events[-1]
        finished = await manager.status(batch.batch_id)
        assert (finished.status, states(finished)) == ("completed", ["completed"] * 3)
        assert server.asked["done"] == requests_before
        assert server.sent - bytes_before < 5_500_000
        assert (await manager.status(paused.batch_id)).status == "paused"
        assert (await manager.resume(paused.batch_id)).status == "queued"
        assert (await manager.wait(paused.batch_id, timeout=10)).status == "completed"


async def aiter_until(manager, batch_id, count):
    async for event in manager.watch(batch_id):
        if event.id is not None:
            yield event
            count -= 1
            if count == 0:
                return


async def test_one_manager_at_a_time_has_the_database(tmp_path):
    async with open_manager(tmp_path):
        with pytest.raises(RuntimeError, match="another batch manager is using"):
            async with open_manager(tmp_path):
                pass
    async with open_manager(tmp_path) as manager:
        with pytest.raises(RuntimeError, match="open already"):
            await manager.start()


@pytest.mark.parametrize("option", ["allow_hosts", "webhook_secrets"])
def test_one_string_is_not_taken_for_a_list(tmp_path, option):
    options: dict[str, Any] = {option: "whsec_c2VjcmV0"}
    with pytest.raises(TypeError, match=f"{option} must be a list of .*, not (one string|str)") as caught:
        BatchManager(tmp_path, **options)
    assert ("c2VjcmV0" in str(caught.value)) is (option == "allow_hosts")


async def test_a_newer_database_is_left_alone(tmp_path):
    path = tmp_path / "jobs.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RuntimeError, match="newer version"):
        await open_manager(tmp_path, database=path).start()


async def test_a_manager_that_is_not_open_says_so(tmp_path):
    manager = BatchManager(tmp_path)
    assert "not open" in repr(manager)
    with pytest.raises(RuntimeError, match="async with"):
        await manager.list()
    with pytest.raises(TypeError, match="not one string"):
        BatchManager(tmp_path, allow_hosts="localhost")


async def test_whoever_is_cancelled_while_submitting_leaves_nothing_half_done(manager, server):
    url = server.add("a")
    for rounds in range(30):
        task = asyncio.ensure_future(manager.submit([url]))
        for _ in range(rounds % 6):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    last = await manager.submit([url])
    await manager.wait(last.batch_id, timeout=10)
    for batch in (await manager.list()).batches:
        assert (await manager.wait(batch.batch_id, timeout=10)).status == Status.COMPLETED


def test_everything_public_is_exported():
    assert sorted(jobs.__all__) == jobs.__all__
    assert all(getattr(jobs, name) for name in jobs.__all__)


def test_the_old_name_of_a_blocked_address_warns():
    with pytest.warns(DeprecationWarning, match="now AddressBlocked"):
        assert jobs.AddressRefused is jobs.AddressBlocked


@pytest.mark.parametrize("honest", [True, False])
async def test_a_file_system_with_short_names_gets_a_shorter_one_with_the_same_extension(
    manager, server, monkeypatch, tmp_path, honest
):
    real = os.link

    def link(source, target, **options):
        if len(os.fsencode(target.name)) > 143:
            raise OSError(errno.ENAMETOOLONG, "too long")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    if honest:
        monkeypatch.setattr(os, "pathconf", lambda *_: 143)
    name = "ü" * 70 + ".tar.gz"
    urls = [server.add(f"{place}/{name}", 1000) for place in ("a", "b")]
    batch = await manager.submit(urls)
    finished = await manager.wait(batch.batch_id, timeout=10)
    assert states(finished) == ["completed", "completed"]
    paths = [tmp_path / "files" / job.file_info.filepath for job in finished.jobs]
    assert len(set(paths)) == 2
    for path in paths:
        assert path.name.startswith("ü" * 50)
        assert path.name.endswith(".tar.gz")
        assert len(os.fsencode(path.name)) <= 143
        assert path.stat().st_size == 1000


class ReplacedMedia:
    """A fetcher whose file another program replaces before it gets its name."""

    async def fetch(self, url, folder, **_):
        (folder / "film").write_bytes(bytes(999))
        name = jobs.FileName(title="film", ext="mp4", id="1", uploader="x", upload_date="20251106")
        return jobs.Fetched(path=folder / "film", name=name, size=1000)


async def test_a_finished_download_that_another_program_replaces_gets_no_name(tmp_path, server):
    async with open_manager(tmp_path / "files", media=ReplacedMedia()) as manager:
        batch = await manager.submit([server.add("page", Content_Type="text/html")])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert states(finished) == ["failed"]
    assert "another program" in finished.jobs[0].error
    assert [path.name for path in (tmp_path / "files").iterdir()] == [".wme-jobs"]


async def test_a_manager_that_is_closed_while_it_opens_ends_quietly(tmp_path):
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    for turns in range(0, 60, 5):
        manager = BatchManager(tmp_path)
        opening = asyncio.ensure_future(manager.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        await manager.aclose()
        await asyncio.wait([opening])
        assert opening.exception() is None
        await manager.aclose()
    del opening
    gc.collect()
    assert problems == []
