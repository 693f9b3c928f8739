"""Operating a stream: timers, lost connections, storage that is locked or emptied while it runs."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wme_async import Client, OffsetStore, Position, Retry, SQLiteOffsets, StreamCommitted, StreamError, StreamEvent
from wme_async.simulator import Simulator

NAME = "default/articles"
PATIENT = Retry(attempts=1000, base=0.001, cap=0.01, total=1e6)


class EarlyTimers(asyncio.SelectorEventLoop):
    """Runs timers before its clock has reached their time, as uvloop does."""

    def call_at(  # type: ignore[override]  # mypy has no way to repeat the type variables of the base class
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when - 0.004, callback, *args, context=context)


def uvloop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


@pytest.mark.parametrize("new_loop", [EarlyTimers, uvloop])
def test_a_list_that_is_not_full_is_given_when_its_time_is_up(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        async with (
            Simulator() as sim,
            Client(**sim.client_options()) as wme,
            wme.realtime.articles() as stream,
        ):
            for _ in range(10):
                sim.firehose.publish()
                assert len(await anext(stream.batches(5, 0.0123))) == 1

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(main(), 20))


# Connections


@pytest.mark.parametrize("connections", [1, 3])
async def test_a_loss_and_its_end_are_logged_once_each(
    connections: int, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten failures in a row of each connection are one line, one failure that is made good at once is none."""
    caplog.set_level(logging.WARNING, "wme_async.stream")
    async with (
        Client(**sim.client_options()) as wme,
        wme.realtime.articles(connections=connections, retry=PATIENT) as stream,
        asyncio.timeout(20),
    ):
        sim.firehose.publish_many(60)
        for _ in range(30):
            await anext(stream)
        await sim.firehose.wait_open(connections)
        assert not caplog.messages
        sim.firehose.disconnect()
        for _ in range(30):
            await anext(stream)
        sim.firehose.publish_many(50)
        await anext(stream)
        assert not caplog.messages
        sim.faults.inject("status", role="realtime", status=503, times=10 * connections)
        sim.firehose.disconnect()
        while len(caplog.messages) < 2:
            for partition in (0, 5, 10):  # parts 0, 1 and 2
                sim.firehose.publish(partition=partition)
            await anext(stream)
        await stream.commit()
    lost, back = caplog.messages
    assert "was lost" in lost
    assert "503" in lost
    assert "back after" in back


async def test_a_stream_that_never_connects_says_so_once(sim: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "wme_async.stream")
    attempts = asyncio.Event()

    def watch(event: StreamEvent) -> None:
        if getattr(event, "attempt", 0) > 8:
            attempts.set()

    sim.faults.inject("status", role="realtime", status=503, times=None)
    async with (
        Client(**sim.client_options()) as wme,
        wme.realtime.articles(on_event=watch, retry=PATIENT),
        asyncio.timeout(20),
    ):
        await attempts.wait()
    (message,) = caplog.messages
    assert "cannot be made" in message
    assert NAME in message


# Storage


class Deleted:
    """A database whose rows another program deletes."""

    def __init__(self, path: Path) -> None:
        self.store = SQLiteOffsets(path)

    def empty(self) -> None:
        with contextlib.closing(sqlite3.connect(self.store.path)) as connection, connection:
            connection.execute("DELETE FROM wme_offsets")


async def test_positions_that_were_deleted_are_all_there_after_the_end(sim: Simulator, tmp_path: Path) -> None:
    deleted = Deleted(tmp_path / "offsets.db")
    async with Client(**sim.client_options()) as wme, wme.realtime.articles(offsets=deleted.store) as stream:
        sim.firehose.publish(partition=3)
        stream.ack(await anext(stream))
        deleted.empty()
    positions = await deleted.store.load(NAME)
    assert len(positions) == 50
    assert positions[3].offset == 0


async def test_positions_that_were_deleted_are_all_written_now_and_then(sim: Simulator, tmp_path: Path) -> None:
    deleted = Deleted(tmp_path / "offsets.db")
    complete = asyncio.Event()

    def watch(event: StreamEvent) -> None:
        if isinstance(event, StreamCommitted) and event.partitions == 50:
            complete.set()

    async with (
        Client(**sim.client_options()) as wme,
        wme.realtime.articles(offsets=deleted.store, on_event=watch, commit_interval=0.01),
        asyncio.timeout(20),
    ):
        deleted.empty()
        complete.clear()
        await complete.wait()
        assert len(await deleted.store.load(NAME)) == 50


@contextlib.contextmanager
def locked(path: Path) -> Any:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wme_async._stream.stream._GRACE", 0.2)


async def test_closing_while_the_database_is_locked_takes_a_short_time(sim: Simulator, tmp_path: Path) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    async with Client(**sim.client_options()) as wme, asyncio.timeout(15):
        stream = wme.realtime.articles(offsets=store)
        with pytest.raises(StreamError, match="come again"):
            async with stream:
                lock = contextlib.ExitStack()
                lock.enter_context(locked(store.path))
        lock.close()
        # The name is free again.
        async with wme.realtime.articles(offsets=store):
            pass


@pytest.mark.parametrize("interval", [0.01, 60.0])
async def test_a_cancellation_stays_one_while_the_database_is_locked(
    interval: float, sim: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    opened = asyncio.Event()

    async def follow() -> None:
        async with wme.realtime.articles(offsets=store, commit_interval=interval) as stream:
            opened.set()
            async for _ in stream:
                pass

    async with Client(**sim.client_options()) as wme, asyncio.timeout(15):
        task = asyncio.create_task(follow())
        await opened.wait()
        with locked(store.path):
            sim.firehose.publish()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


async def test_an_error_of_the_block_is_kept_when_the_last_save_fails(sim: Simulator) -> None:
    class Full:
        def __init__(self) -> None:
            self.full = False

        async def load(self, name: str) -> Mapping[int, Position]:
            return {}

        async def save(self, name: str, positions: Mapping[int, Position]) -> None:
            if self.full:
                raise OSError(28, "the disk is full")

    full = Full()
    store: OffsetStore = full
    async with Client(**sim.client_options()) as wme:
        with pytest.raises(KeyError) as caught:
            async with wme.realtime.articles(offsets=store):
                full.full = True
                raise KeyError("in the block")
        assert "the disk is full" in caught.value.__notes__[0]
        full.full = False
        with pytest.raises(OSError, match="the disk is full"):
            async with wme.realtime.articles(offsets=store):
                full.full = True
