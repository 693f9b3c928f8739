"""One webhook, job or helper that fails in any way is its own failure: nothing else ends, and nobody waits for ever."""

import asyncio
import errno
import hmac
import sys
import threading

import pytest
from aiohttp import web
from failing_sqlite import Trouble
from jobs_server import delivery_of, open_manager
from wall_clock import clock

from wme_async.jobs import Fetched, FileName, ManagerClosed, UnknownBatch
from wme_async.web import serve


class Pages:
    """A media fetcher that does what a test says for each page."""

    def __init__(self, act):
        self.act = act
        self.started = asyncio.Event()

    async def fetch(self, url, folder, *, options, moved, titled, allow=()):
        self.started.set()
        await self.act(url)
        path = folder / "page.txt"
        path.write_bytes(b"page")
        name = FileName(title="page", ext="txt", id="1", uploader="u", upload_date="20250101")
        return Fetched(path=path, name=name, size=4)


def page(server, name="page.html"):
    return server.add(name, 100, None, Content_Type="text/html")


# Webhooks


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":' + b"[" * 60_000,
        b'{"message":' + b"9" * 5_000 + b"}",
        b'{"message":1e99999999999999999999}',
        b"{" + b"\xff" * 100,
        b"<Error>" * 3000,
    ],
    ids=["nested", "long number", "exponent", "not text", "xml"],
)
async def test_an_error_body_of_a_receiver_ends_only_its_own_webhook(tmp_path, server, body):
    async def refuse(_request):
        return web.Response(status=400, body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/hook", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with open_manager(tmp_path, webhook_delays=(0.02,)) as manager:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
            poison = await manager.submit([server.add("a")], webhook_url=url)
            good = await manager.submit([server.add("b")], webhook_url=f"{server.url}/hook")
            message = await delivery_of(manager, poison.batch_id)
            assert (message.state, message.attempts) == ("given up", 2)
            assert (await delivery_of(manager, good.batch_id)).state == "delivered"
            assert not manager.closing
        async with open_manager(tmp_path) as manager:
            assert (await delivery_of(manager, poison.batch_id)).attempts == 2
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("failure", [RecursionError("deep"), MemoryError(), asyncio.CancelledError(), KeyError("x")])
async def test_any_exception_of_a_delivery_is_a_failed_attempt_of_it(tmp_path, server, monkeypatch, failure):
    digest = hmac.digest
    failing: list[bytes] = []

    def broken(key, message, *args):
        if any(message.startswith(message_id) for message_id in failing):
            raise failure
        return digest(key, message, *args)

    monkeypatch.setattr(hmac, "digest", broken)
    server.answers = [500]
    async with open_manager(tmp_path, webhook_delays=(0.02, 0.02, 0.02)) as manager:
        first = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        async with asyncio.timeout(10):
            await server.hooked.wait()
        failing.append(server.hooks[0][0]["webhook-id"].encode())
        message = await delivery_of(manager, first.batch_id)
        assert (message.state, message.attempts) == ("given up", 4)
        server.answers = [200]
        second = await manager.submit([server.add("b")], webhook_url=f"{server.url}/hook")
        assert (await delivery_of(manager, second.batch_id)).state == "delivered"


async def test_an_attempt_is_counted_before_it_begins(tmp_path, server):
    """A body that ends the process must not be sent again for ever."""
    server.answers = [500]
    async with open_manager(tmp_path, webhook_delays=()) as manager:
        requested = asyncio.Event()

        async def hold(_request):
            requested.set()
            await asyncio.sleep(10)

        app = web.Application()
        app.router.add_post("/hook", hold)
        runner = web.AppRunner(app, shutdown_timeout=0.0, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
            batch = await manager.submit([server.add("a")], webhook_url=url)
            async with asyncio.timeout(10):
                await requested.wait()
            [message] = await manager.webhooks(batch.batch_id)
            assert (message.state, message.attempts) == ("waiting", 1)
            await manager.aclose()
            # It was closed in order, so that the attempt does not count.
            await manager.start()
            requested.clear()
            async with asyncio.timeout(10):
                await requested.wait()
        finally:
            await manager.aclose()
            await runner.cleanup()


@pytest.mark.servers
async def test_a_webhook_that_kills_its_process_each_time_ends_after_its_attempts(tmp_path, server):
    child = """
import asyncio, hmac, os, sys
from wme_async.jobs import BatchManager, JobLimits
hmac.digest = lambda *_: os._exit(9)
async def main(directory, url, hook):
    async with BatchManager(
        directory, allow_hosts=["127.0.0.1"], limits=JobLimits(free_space=0), webhook_delays=()
    ) as manager:
        batches = (await manager.list()).batches
        batch = batches[0] if batches else await manager.submit([url], webhook_url=hook)
        while (await manager.counts())["outbox"].get("given up") != 1:
            await asyncio.sleep(0.005)
asyncio.run(main(*sys.argv[1:]))
"""
    codes = []
    for _ in range(2):
        arguments = (tmp_path, server.add("a"), f"{server.url}/hook")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", child, *map(str, arguments))
        codes.append(await process.wait())
    assert codes == [9, 0]


async def test_a_clock_that_is_set_back_delays_a_webhook_by_its_own_delay_at_most(tmp_path, server, monkeypatch):
    working = clock.source
    server.answers = [500, 200]
    monkeypatch.setattr(clock, "source", lambda: working() + 1_000_000.0)
    async with open_manager(tmp_path, webhook_delays=(0.2,)) as manager:
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        async with asyncio.timeout(10):
            await server.hooked.wait()
        monkeypatch.setattr(clock, "source", working)
        message = await delivery_of(manager, batch.batch_id)
    assert (message.state, message.attempts) == ("delivered", 2)


# Jobs


@pytest.mark.parametrize("failure", [RecursionError("deep"), MemoryError(), asyncio.CancelledError(), KeyError("x")])
async def test_any_exception_of_a_job_is_its_own_failure(tmp_path, server, failure):
    async def fail(_url):
        raise failure

    async with open_manager(tmp_path, media=Pages(fail)) as manager:
        batch = await manager.submit([page(server), server.add("a")])
        finished = await manager.wait(batch.batch_id, timeout=10)
        assert [str(job.status) for job in finished.jobs] == ["failed", "completed"]
        assert finished.jobs[0].error


async def test_a_lack_of_descriptors_delays_a_job_and_does_not_fail_it(tmp_path, server):
    failures = [OSError(errno.EMFILE, "too many"), RuntimeError("wrapped")]
    failures[1].__cause__ = OSError(errno.ENFILE, "too many")

    async def fail_twice(_url):
        if failures:
            raise failures.pop()

    async with open_manager(tmp_path, media=Pages(fail_twice)) as manager:
        batch = await manager.submit([page(server)])
        finished = await manager.wait(batch.batch_id, timeout=10)
    assert (finished.jobs[0].status, finished.jobs[0].error, failures) == ("completed", None, [])


@pytest.mark.parametrize("change", ["delete", "retry"])
async def test_a_job_that_takes_long_to_stop_holds_up_nothing_else(tmp_path, server, change):
    release = asyncio.Event()

    async def merge(_url):
        # Like a thread that cannot be cancelled.
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    pages = Pages(merge)
    async with open_manager(tmp_path, media=pages) as manager:
        batch = await manager.submit([page(server)])
        async with asyncio.timeout(10):
            await pages.started.wait()
        await manager.cancel(batch.batch_id)
        if change == "delete":
            pending = asyncio.ensure_future(manager.delete(batch.batch_id))
        else:
            pending = asyncio.ensure_future(manager.retry(batch.batch_id, cancelled=True))
        other = await manager.submit([server.add("a")])
        assert (await manager.wait(other.batch_id, timeout=10)).status == "completed"
        assert (await manager.status(batch.batch_id)).status == "cancelled"
        assert not pending.done()
        release.set()
        async with asyncio.timeout(10):
            retried = await pending
        if change == "delete":
            with pytest.raises(UnknownBatch):
                await manager.status(batch.batch_id)
        else:
            assert (await manager.wait(retried.batch_id, timeout=10)).status == "completed"


async def test_a_caller_who_leaves_does_not_stop_a_deletion(tmp_path, server):
    release = asyncio.Event()

    async def merge(_url):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    pages = Pages(merge)
    async with open_manager(tmp_path, media=pages) as manager:
        batch = await manager.submit([page(server)])
        await pages.started.wait()
        events = manager.watch(batch.batch_id)
        pending = asyncio.ensure_future(manager.delete(batch.batch_id))
        async with asyncio.timeout(10):
            async for event in events:
                if event.status == "cancelled" and event.job_id is None:
                    break
        pending.cancel()
        await asyncio.wait([pending])
        watching = asyncio.ensure_future(anext(manager.watch()))
        release.set()
        async with asyncio.timeout(10):
            assert (await watching).kind == "deleted"


async def test_two_deletions_at_once_and_one_while_closing_end(tmp_path, server):
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a", 100_000, "hang")])
        await server.hanging.wait()
        results = await asyncio.gather(*(manager.delete(batch.batch_id) for _ in range(2)), return_exceptions=True)
        assert None in results
        assert all(result is None or isinstance(result, UnknownBatch) for result in results)
        second = await manager.submit([server.add("b", 100_000, "hang")])
        deleting = asyncio.ensure_future(manager.delete(second.batch_id))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await manager.aclose()
            await asyncio.wait([deleting])
        assert deleting.exception() is None or isinstance(deleting.exception(), ManagerClosed)


# The end of a manager


async def test_every_caller_is_answered_when_a_manager_dies_during_a_change(tmp_path, server, monkeypatch):
    loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hold():
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(10)

    Trouble(monkeypatch, "INTO batches", hold)
    manager = open_manager(tmp_path)
    await manager.start()
    waiting = [asyncio.ensure_future(manager.submit([server.add(name)])) for name in "abc"]
    watching = asyncio.ensure_future(anext(manager.watch(), None))
    async with asyncio.timeout(10):
        await reached.wait()
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "wme_async batch manager"]
        task.cancel()
        go_on.set()
        await asyncio.wait([*waiting, watching])
        assert all(isinstance(submission.exception(), ManagerClosed) for submission in waiting)
        with pytest.raises(ManagerClosed, match="batch manager"):
            await manager.submit([server.add("d")])
        with pytest.raises(RuntimeError, match="ended because of an error"):
            await manager.wait_ended()
        assert manager.closing
        await manager.aclose()


async def test_the_end_of_a_manager_can_be_waited_for(tmp_path):
    manager = open_manager(tmp_path)
    with pytest.raises(ManagerClosed):
        await manager.wait_ended()
    async with manager:
        waiting = asyncio.ensure_future(manager.wait_ended())
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 10)


async def test_a_service_ends_with_an_error_when_its_manager_has_ended(tmp_path):
    manager = open_manager(tmp_path)
    ready = asyncio.Event()
    service = asyncio.ensure_future(serve(manager, port=0, api_keys=None, on_ready=lambda _url: ready.set()))
    async with asyncio.timeout(10):
        await ready.wait()
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "wme_async batch manager"]
        task.cancel()
        with pytest.raises(RuntimeError, match="batch manager"):
            await service
