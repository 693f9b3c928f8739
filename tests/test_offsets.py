# ruff: noqa: ASYNC220, ASYNC240  # nothing else runs in the loop while these tests look at files and processes
"""Stores of positions: each passes the suite that users can run on theirs, and none is torn by a kill."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from failing_sqlite import Trouble

from wme_async.errors import DataError, DecodeError, StreamError
from wme_async.offsets import ClaimingStore, FileOffsets, MemoryOffsets, OffsetStore, Position, SQLiteOffsets
from wme_async.offsets.conformance import CHECKS, Check, OpenStore, check_all

NAME = "default/articles"
TIME = datetime(2026, 11, 22, 8, tzinfo=UTC)


def memory(path: Path) -> OpenStore:
    store = MemoryOffsets()
    return lambda: store


def file(path: Path) -> OpenStore:
    return lambda: FileOffsets(path / "deep" / "offsets")


def sqlite(path: Path) -> OpenStore:
    return lambda: SQLiteOffsets(path / "deep" / "offsets.db")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [memory, file, sqlite])
async def test_every_store_keeps_its_promises(kind: Callable[[Path], OpenStore], check: Check, tmp_path: Path) -> None:
    await check(kind(tmp_path))


class Faulty:
    """A store with one fault, to see that the suite finds it."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.kept: dict[str, dict[int, Position]] = {}

    async def load(self, name: str) -> Mapping[int, Position]:
        saved = self.kept.get(name.lower() if self.fault == "names" else name, {})
        if self.fault == "unknown" and not saved:
            return {0: Position(0)}
        return saved if self.fault == "alias" else dict(saved)

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        name = name.lower() if self.fault == "names" else name
        old = {} if self.fault == "forgets" else self.kept.get(name, {})
        new = dict(positions)
        if self.fault == "times":
            new = {partition: Position(position.offset) for partition, position in new.items()}
        if self.fault == "greatest":
            new = {p: max(new[p], old.get(p, new[p]), key=lambda each: each.offset) for p in new}
        if self.fault == "torn":
            self.kept.setdefault(name, {}).update(dict(list(new.items())[:25]))
            await _turn()
        if self.fault == "late":
            old = dict(old)
            await _turn()
        self.kept[name] = {**old, **new}


class FreeForAll(Faulty):
    @contextlib.asynccontextmanager
    async def claim(self, name: str) -> AsyncIterator[None]:
        yield


async def _turn() -> None:
    import asyncio

    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "fault", ["names", "unknown", "alias", "forgets", "times", "greatest", "torn", "late", "claims"]
)
async def test_the_suite_finds_each_fault(fault: str) -> None:
    store: OffsetStore = FreeForAll(fault) if fault == "claims" else Faulty(fault)
    with pytest.raises((AssertionError, ExceptionGroup)):
        await check_all(lambda: store)


async def test_a_store_without_claims_passes_the_suite() -> None:
    store = Faulty("none")
    await check_all(lambda: store)
    assert not isinstance(store, ClaimingStore)


@pytest.mark.parametrize("kind", [memory, file, sqlite])
async def test_claims_leave_no_file_behind(kind: Callable[[Path], OpenStore], tmp_path: Path) -> None:
    store = kind(tmp_path)()
    assert isinstance(store, ClaimingStore)
    async with store.claim(NAME):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert repr(store)


HOLD = """
import asyncio, sys
from wme_async.offsets import FileOffsets, SQLiteOffsets

async def main():
    store = {"file": FileOffsets, "sqlite": SQLiteOffsets}[sys.argv[1]](sys.argv[2])
    async with store.claim("default/articles"):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_a_claim_of_another_process_is_told_and_ends_when_that_is_killed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "offsets"
    store = FileOffsets(path) if kind == "file" else SQLiteOffsets(path)
    with subprocess.Popen([sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StreamError, match=f"process {holder.pid} .*another name"):
                async with store.claim(NAME):
                    pass
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
    async with store.claim(NAME):
        pass


WRITE = """
import asyncio, sys
from wme_async.offsets import FileOffsets, Position, SQLiteOffsets

async def main():
    store = {"file": FileOffsets, "sqlite": SQLiteOffsets}[sys.argv[1]](sys.argv[2])
    number = 0
    while True:
        await store.save("default/articles", {partition: Position(number) for partition in range(50)})
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file", "sqlite"])
async def test_a_writer_killed_at_any_moment_leaves_whole_positions(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "offsets"
    store = FileOffsets(path) if kind == "file" else SQLiteOffsets(path)
    for lines in (1, 7):
        with subprocess.Popen([sys.executable, "-c", WRITE, kind, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            said = [int(writer.stdout.readline()) for _ in range(lines)]
            os.kill(writer.pid, signal.SIGKILL)
            said += [int(line) for line in writer.stdout.read().split(b"\n") if line]
        got = {position.offset for position in (await store.load(NAME)).values()}
        assert len(got) == 1
        # What save() returned from is there; the one after it may be.
        assert got <= {said[-1], said[-1] + 1}


async def test_files_can_be_read_by_people_and_hold_no_temporary_names(tmp_path: Path) -> None:
    store = FileOffsets(tmp_path)
    await store.save(NAME, {3: Position(42, TIME)})
    (path,) = tmp_path.iterdir()
    assert path.name == "default%2Farticles.json"
    content = json.loads(path.read_text())
    assert content["name"] == NAME
    assert content["positions"] == {"3": {"offset": 42, "published": "2026-11-22T08:00:00Z"}}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"name":"x","positions":{"0":{"offset":-5}}}'])
async def test_a_damaged_file_is_told_and_not_overwritten(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "default%2Farticles.json"
    path.write_bytes(content)
    store = FileOffsets(tmp_path)
    with pytest.raises(DecodeError, match="move it away"):
        await store.load(NAME)
    with pytest.raises(DecodeError):
        await store.save(NAME, {0: Position(1)})
    assert path.read_bytes() == content


async def test_a_failed_save_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileOffsets(tmp_path)
    await store.save(NAME, {0: Position(1)})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            await store.save(NAME, {0: Position(2)})
    assert await store.load(NAME) == {0: Position(1)}
    assert len(list(tmp_path.iterdir())) == 1


async def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "offsets.db"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(DataError, match="does not hold positions"):
        await SQLiteOffsets(path).load(NAME)


async def test_a_table_with_nonsense_in_it_is_told(tmp_path: Path) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    await store.save(NAME, {0: Position(1)})
    with contextlib.closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE wme_offsets SET published = 'yesterday'")
    with pytest.raises(DataError):
        await store.load(NAME)


async def test_a_folder_in_place_of_a_database_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "offsets.db").mkdir()
    with pytest.raises(IsADirectoryError, match=r"name a file.*offsets\.db"):
        await SQLiteOffsets(tmp_path / "offsets.db").load(NAME)


async def test_a_database_that_others_are_writing_to_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as others:
        others.execute("CREATE TABLE edits (name TEXT)")
        others.execute("BEGIN IMMEDIATE")
        others.execute("INSERT INTO edits VALUES ('x')")
        assert await SQLiteOffsets(path).load("a") == {}
        saving = asyncio.ensure_future(SQLiteOffsets(path).save("a", {0: Position(1)}))
        asyncio.get_running_loop().call_later(0.1, others.execute, "COMMIT")
        await saving
    assert await SQLiteOffsets(path).load("a") == {0: Position(1)}
    # A save during a transaction of others may keep the journal that is there; the next one changes it.
    await SQLiteOffsets(path).save("a", {0: Position(2)})
    with contextlib.closing(sqlite3.connect(path)) as others:
        assert others.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert others.execute("SELECT count(*) FROM edits").fetchone() == (1,)


def test_sqlite_in_memory_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="MemoryOffsets"):
        SQLiteOffsets(":memory:")


async def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        await FileOffsets(tmp_path).load("x" * 300)


async def test_memory_can_begin_with_positions_from_elsewhere() -> None:
    store = MemoryOffsets({NAME: {1: Position(5)}})
    assert await store.load(NAME) == {1: Position(5)}


def claim_of(store: ClaimingStore) -> AbstractAsyncContextManager[None]:
    return store.claim(NAME)


def test_the_stores_are_stores_to_a_type_checker(tmp_path: Path) -> None:
    stores: list[ClaimingStore] = [MemoryOffsets(), FileOffsets(tmp_path), SQLiteOffsets(tmp_path / "x.db")]
    assert all(isinstance(store, ClaimingStore) for store in stores)
    assert [claim_of(store) for store in stores]


@pytest.mark.parametrize("kind", [file, sqlite])
@pytest.mark.parametrize("scope", ["asyncio", "anyio"])
async def test_a_cancelled_save_is_over_when_it_says_so(
    kind: Callable[[Path], OpenStore], scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = kind(tmp_path)()
    began, go = asyncio.Event(), threading.Event()
    loop, replace = asyncio.get_running_loop(), os.replace

    def wait() -> None:
        loop.call_soon_threadsafe(began.set)
        assert go.wait(20)

    def slow(*paths: Any) -> None:
        wait()
        replace(*paths)

    monkeypatch.setattr(os, "replace", slow)  # of the file
    Trouble(monkeypatch, "INTO wme_offsets (", wait)  # of the database
    inner = anyio.CancelScope()

    async def saving() -> None:
        with inner:
            await store.save(NAME, {0: Position(1)})

    task = asyncio.ensure_future(saving())
    await began.wait()
    if scope == "asyncio":
        task.cancel()
    else:
        inner.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    # Were it over, the next save could be overtaken by this one, and positions would go back.
    assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled() == (scope == "asyncio")
    assert await kind(tmp_path)().load(NAME) == {0: Position(1)}


async def test_one_store_serves_one_event_loop_after_the_other(tmp_path: Path) -> None:
    for kind in (file, sqlite):
        store = kind(tmp_path)()
        await store.save(NAME, {0: Position(1)})
        # A thread of its own, where another loop may run.
        assert await asyncio.to_thread(_load_in_a_loop, store) == {0: Position(1)}


def _load_in_a_loop(store: OffsetStore) -> Mapping[int, Position]:
    async def load() -> Mapping[int, Position]:
        return await store.load(NAME)

    return asyncio.run(load())


@pytest.mark.posix
async def test_a_lock_file_that_is_removed_while_it_is_waited_for_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, flock = FileOffsets(tmp_path), fcntl.flock
    gone: list[Path] = []

    def late(descriptor: int, operation: int) -> None:
        # Its last holder removes it between our opening and our locking it.
        if len(gone) < 2:
            gone.extend(tmp_path.glob("*.lock"))
            gone[-1].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    async with store.claim(NAME):
        assert len(gone) == 2
        with pytest.raises(StreamError):
            async with FileOffsets(tmp_path).claim(NAME):
                pass
    assert not list(tmp_path.glob("*.lock"))
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(OSError, match="broken"):
        async with store.claim(NAME):
            pass
