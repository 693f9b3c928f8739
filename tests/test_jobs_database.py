"""The jobs database: private, checked, upgraded; damage is named, and damage to one batch concerns that batch alone."""

import asyncio
import contextlib
import errno
import os
import random
import shutil
import sqlite3
import stat
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from failing_sqlite import Trouble, disk_full
from jobs_server import open_manager

from wme_async.jobs import DamagedBatch, DatabaseError, UnknownBatch
from wme_async.jobs.wal import lost_transactions
from wme_async.web import create_app


def database(directory):
    return directory / ".wme-jobs" / "jobs.sqlite"


def execute(path, statement, *values):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        return db.execute(statement, values).fetchall()


async def filled(directory, server, *, paused=3, finished=2):
    """Return the ids of batches that are paused, and of some that have ended."""
    async with open_manager(directory) as manager:
        ids = []
        for number in range(finished):
            batch = await manager.submit([server.add(f"done-{number}-{job}") for job in range(2)])
            await manager.wait(batch.batch_id, timeout=10)
            ids.append(batch.batch_id)
    async with open_manager(directory) as manager:
        pass
    manager = open_manager(directory)
    await manager.start(jobs=False)
    for number in range(paused):
        batch = await manager.submit(
            [server.add(f"open-{number}-{job}") for job in range(3)], webhook_url=f"{server.url}/hook"
        )
        await manager.pause(batch.batch_id)
        ids.append(batch.batch_id)
    await manager.aclose()
    return ids[finished:], ids[:finished]


async def states(manager):
    """Return all that a caller can see of every batch, or why not."""
    facts: dict[str, Any] = {}
    before = None
    while True:
        page = await manager.list(limit=2, before=before)
        for listed in page.batches:
            try:
                batch = await manager.status(listed.batch_id)
            except DatabaseError as error:
                facts[listed.batch_id] = error
                continue
            facts[batch.batch_id] = [
                (job.url, job.status, job.title, job.file_info, job.error, job.created_at) for job in batch.jobs
            ]
        before = page.next
        if before is None:
            return facts


# Permissions


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_only_the_owner_can_read_the_database_whatever_the_umask_is(tmp_path, umask):
    old = os.umask(umask)
    try:
        async with open_manager(tmp_path / "new") as manager:
            folder = database(manager.directory).parent
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
            assert {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "jobs.sqlite.lock"} <= modes.keys()
            assert set(modes.values()) == {0o600}
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        os.umask(old)


async def test_files_of_an_older_version_are_made_private(tmp_path):
    async with open_manager(tmp_path):
        pass
    database(tmp_path).chmod(0o644)
    database(tmp_path).parent.chmod(0o755)
    async with open_manager(tmp_path):
        assert stat.S_IMODE(database(tmp_path).stat().st_mode) == 0o600
        assert stat.S_IMODE(database(tmp_path).parent.stat().st_mode) == 0o700


# What cannot be opened


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: path.write_bytes(b"no database" * 100), "is not a jobs database"),
        (lambda path: path.write_bytes(b""), "was cut, at 0 bytes"),
        (lambda path: os.truncate(path, 4096), "is damaged"),
        (lambda path: os.truncate(path, path.stat().st_size - 100), "was cut, at "),
        (lambda path: execute(path, "DROP TABLE outbox"), "its table 'outbox' is missing"),
        (lambda path: execute(path, "ALTER TABLE jobs DROP COLUMN etag"), "etag of its table 'jobs' is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be opened"),
        (lambda path: execute(path, "UPDATE meta SET value = x'00'"), "webhook_secrets.* is damaged"),
    ],
)
async def test_a_database_that_cannot_be_used_is_named_with_the_cause(tmp_path, server, break_it, words):
    await filled(tmp_path, server, paused=1, finished=1)
    break_it(database(tmp_path))
    manager = open_manager(tmp_path)
    with pytest.raises(DatabaseError, match=words) as caught:
        await manager.start()
    assert str(database(tmp_path)) in str(caught.value)
    assert caught.value.path == str(database(tmp_path))


async def test_a_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    execute(path, "CREATE TABLE things (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="holds other tables"):
        await open_manager(tmp_path, database=path).start()
    assert path.read_bytes() == before


async def test_only_a_lock_means_another_manager(tmp_path, monkeypatch):
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement == "BEGIN EXCLUSIVE":
                error = sqlite3.OperationalError("full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return super().execute(statement, *values)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Full, **options))
    with pytest.raises(DatabaseError, match=r"jobs\.sqlite\.lock cannot be written, because the disk is full"):
        await open_manager(tmp_path).start()


async def test_a_database_that_another_program_locks_says_so(tmp_path, server, monkeypatch):
    await filled(tmp_path, server, paused=1, finished=0)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{**options, "timeout": 0.0}))
    with contextlib.closing(connect(database(tmp_path), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseError, match=r"jobs\.sqlite is locked by another program"):
            await open_manager(tmp_path).start()


async def test_the_first_schema_is_upgraded_with_all_that_is_in_it(tmp_path, server):
    paused_ids, ended_ids = await filled(tmp_path, server)
    async with open_manager(tmp_path) as manager:
        before = await states(manager)
    path = database(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for table in ("batches", "jobs", "outbox", "meta"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN crc")
        db.execute("ALTER TABLE batches DROP COLUMN jobs")
        db.execute("ALTER TABLE outbox DROP COLUMN delay")
        db.execute("PRAGMA user_version = 1")
    async with open_manager(tmp_path) as manager:
        assert await states(manager) == before
        assert set(before) == {*paused_ids, *ended_ids}
        assert manager.damaged == {}


# Damage to rows


async def test_a_damaged_batch_is_set_aside_by_name_and_the_others_run(tmp_path, server, caplog):
    (damaged_id, incomplete_id, sound_id), _ = await filled(tmp_path, server)
    path = database(tmp_path)
    execute(path, "UPDATE jobs SET status = 'runnimg' WHERE batch_id = ? AND position = 1", damaged_id)
    execute(path, "DELETE FROM jobs WHERE batch_id = ? AND position = 2", incomplete_id)
    async with open_manager(tmp_path) as manager:
        assert set(manager.damaged) == {damaged_id, incomplete_id}
        assert "job 1" in manager.damaged[damaged_id]
        assert manager.statistics()["damaged"] == 2
        assert damaged_id in caplog.text
        with pytest.raises(DamagedBatch, match=rf"{damaged_id} in .*jobs\.sqlite is damaged") as caught:
            await manager.resume(damaged_id)
        assert caught.value.batch_id == damaged_id
        assert {batch.batch_id for batch in (await manager.list()).batches}.isdisjoint({damaged_id, incomplete_id})
        await manager.resume(sound_id)
        assert (await manager.wait(sound_id, timeout=10)).status == "completed"
        # They are there to be looked at until they are deleted.
        assert len(execute(path, "SELECT * FROM jobs WHERE batch_id = ?", damaged_id)) == 3
        await manager.delete(damaged_id)
        assert set(manager.damaged) == {incomplete_id}
        with pytest.raises(UnknownBatch):
            await manager.status(damaged_id)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE batches SET completed_at = 1.0, status = 'completed'",
        "UPDATE batches SET options = x'7b7d'",
        "UPDATE batches SET created_at = 1e300",
        "UPDATE batches SET error = CAST(x'ff' AS TEXT)",
        "UPDATE batches SET batch_id = CAST(x'62ff' AS TEXT)",
        "UPDATE jobs SET url = CAST(x'68747470ff' AS TEXT) WHERE position = 0",
        "UPDATE jobs SET url = 'http://[' WHERE position = 0",
        "UPDATE jobs SET extras = '[' WHERE position = 0",
        "UPDATE jobs SET done = 'x' WHERE position = 0",
    ],
)
async def test_every_kind_of_damage_to_a_row_is_found(tmp_path, server, statement):
    [batch_id], ended_ids = await filled(tmp_path, server, paused=1, finished=1)
    where = " AND " if "WHERE" in statement else " WHERE "
    execute(database(tmp_path), "PRAGMA foreign_keys = OFF")
    execute(database(tmp_path), f"{statement}{where}batch_id = ?", batch_id)
    async with open_manager(tmp_path) as manager:
        assert len(manager.damaged) == 1
        assert (await manager.status(ended_ids[0])).status == "completed"
        for name in manager.damaged:
            await manager.delete(name)
        assert manager.damaged == {}
    async with open_manager(tmp_path) as manager:
        assert manager.damaged == {}


async def test_the_service_names_a_damaged_batch_and_can_forget_it(tmp_path, server):
    [batch_id], _ = await filled(tmp_path, server, paused=1, finished=0)
    execute(database(tmp_path), "UPDATE jobs SET done = 5 WHERE batch_id = ?", batch_id)
    async with open_manager(tmp_path) as manager:
        app = create_app(manager, api_keys=["a-good-key"])
        async with TestClient(TestServer(app), headers={"X-API-Key": "a-good-key"}) as client:
            path = f"/api/v1/batch/{batch_id}"
            async with client.get(path) as answer:
                assert (answer.status, (await answer.json())["code"]) == (500, "damaged")
                assert batch_id in await answer.text()
                assert str(tmp_path) not in await answer.text()
            async with client.delete(path, params={"purge": "true"}) as answer:
                assert answer.status == 204
            async with client.get(path) as answer:
                assert answer.status == 404


async def test_a_damaged_webhook_is_not_sent_and_a_damaged_event_is_left_out(tmp_path, server):
    [batch_id], [ended_ids] = await filled(tmp_path, server, paused=1, finished=1)
    manager = open_manager(tmp_path)
    await manager.start(jobs=False)
    server.answers = [500]
    await manager.cancel(batch_id)
    await manager.aclose()
    path = database(tmp_path)
    execute(path, "UPDATE outbox SET body = x'00', state = 'waitinh', next_at = 0")
    [(first, last)] = execute(path, "SELECT MIN(id), MAX(id) FROM events WHERE batch_id = ?", ended_ids)
    execute(path, "UPDATE events SET status = 'runninh', kind = 'jpb' WHERE id = ?", first)
    server.hooks.clear()
    async with open_manager(tmp_path) as manager:
        [message] = await manager.webhooks(batch_id)
        assert (message.state, message.error) == ("given up", "the stored message is damaged")
        seen = [event.id async for event in manager.watch(ended_ids, after=0)]
        assert (seen[0], seen[-1]) == (first + 1, last)
    assert server.hooks == []


async def refusal_to_start(manager):
    try:
        await manager.start(jobs=False)
    except (DatabaseError, RuntimeError) as error:
        return error
    return None


@pytest.mark.parametrize("count", [24, pytest.param(60, marks=pytest.mark.servers)])
async def test_random_damage_gives_the_truth_or_an_error_that_names_it(tmp_path, server, count):
    """Bits that flip, and files that are cut: never a wrong state, never an error without the damaged thing's name."""
    paused_ids, ended_ids = await filled(tmp_path, server)
    async with open_manager(tmp_path) as manager:
        truth = await states(manager)
    path = database(tmp_path)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    content = path.read_bytes()
    choose = random.Random(1)  # a test
    outcomes = {"whole": 0, "set aside": 0, "refused": 0}
    for number in range(count):
        data = bytearray(content)
        if number % 6 == 5:
            del data[choose.randrange(len(data)) :]
        else:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        path.write_bytes(data)
        manager = open_manager(tmp_path)
        refusal = await refusal_to_start(manager)
        if refusal is not None:
            assert str(path) in str(refusal), number
            outcomes["refused"] += 1
            continue
        try:
            facts = await states(manager)
            damaged = manager.damaged
            for batch_id, seen in facts.items():
                if not isinstance(seen, DatabaseError):
                    assert seen == truth[batch_id], number
            missing = {*paused_ids, *ended_ids} - facts.keys()
            assert len(missing) <= len(damaged), number
            outcomes["set aside" if damaged else "whole"] += 1
        finally:
            await manager.aclose()
    # That a batch can be set aside is shown by tests of their own: so few bits may all miss the rows.
    assert outcomes["whole"], outcomes
    assert outcomes["refused"], outcomes


async def test_damage_to_the_log_is_named_and_a_cut_end_is_not_damage(tmp_path, server):
    """SQLite reads a log up to the first damaged frame, and drops all that was answered after it."""
    manager = open_manager(tmp_path)
    await manager.start(jobs=False)
    ids = []
    for number in range(3):
        batch = await manager.submit([server.add(f"{number}-{job}") for job in range(3)])
        await manager.pause(batch.batch_id)
        ids.append(batch.batch_id)
    truth = await states(manager)
    path = database(tmp_path)
    files = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.name.startswith("jobs.sqlite")}
    await manager.aclose()
    log = files["jobs.sqlite-wal"]
    frame = 24 + 4096
    last_commit = max(at for at in range(32, len(log), frame) if log[at + 4 : at + 8] != bytes(4))
    choose = random.Random(2)  # a test
    # In the header, in the first transactions, and in the last, which a power failure may have left so.
    places = [choose.randrange(24), *(choose.randrange(32, last_commit // 2) for _ in range(15)), last_commit + 30]
    outcomes = []
    for place in places:
        shutil.rmtree(path.parent)
        path.parent.mkdir(mode=0o700)
        for name, data in files.items():
            changed = bytearray(data)
            if name == "jobs.sqlite-wal":
                changed[place] ^= 1 << choose.randrange(8)
            (path.parent / name).write_bytes(changed)
        manager = open_manager(tmp_path)
        refusal = await refusal_to_start(manager)
        if refusal is None:
            assert len(await states(manager)) == len(truth)
            await manager.aclose()
        else:
            assert f"{path}-wal is damaged" in str(refusal)
            # It is left as it is, to be rescued.
            assert (path.parent / "jobs.sqlite-wal").stat().st_size == len(log)
        outcomes.append(refusal is not None)
    assert outcomes == [True] * 16 + [False]


async def test_a_file_that_cannot_be_named_after_a_kill_keeps_no_manager_from_opening(tmp_path, server, monkeypatch):
    # The database fails from the end of the job on, as a kill between the name and the end leaves it.
    broken = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail():
        loop.call_soon_threadsafe(broken.set)
        disk_full()

    with monkeypatch.context() as trouble:
        Trouble(trouble, "INTO jobs", fail, value="completed", times=1_000_000)
        Trouble(trouble, "INTO jobs", disk_full, value="queued", times=1_000_000, after=broken)
        async with open_manager(tmp_path) as manager:
            batch = await manager.submit([server.add("a")])
            async with asyncio.timeout(10):
                await broken.wait()
    named = tmp_path / "batch" / batch.batch_id / "a.bin"
    before = named.stat()
    stat = os.stat

    def refuse(path, **options):
        if path == named:
            raise PermissionError(errno.EACCES, "no")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    async with open_manager(tmp_path) as manager:
        finished = await manager.wait(batch.batch_id, timeout=10)
    monkeypatch.undo()
    assert (finished.status, finished.jobs[0].error) == ("completed", None)
    # The file that is there is never written to again.
    assert finished.jobs[0].file_info.filename == "a (2).bin"
    assert (named.stat().st_ino, named.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_lost_transactions_of_a_log_are_counted(tmp_path):
    path = tmp_path / "small.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        for number in range(5):
            db.execute(f"CREATE TABLE t{number} (x)")
        page = db.execute("PRAGMA page_size").fetchone()[0]
        log = path.with_name("small.sqlite-wal").read_bytes()
    assert lost_transactions(log, page) == 0
    assert lost_transactions(log[:32], page) == 0
    damaged = bytearray(log)
    damaged[32 + 24] ^= 1
    assert lost_transactions(bytes(damaged), page) == 5
    # In a log that was about to restart, the header has new salts and the frames are in the database.
    restarted = bytearray(log)
    restarted[16:24] = bytes(8)
    assert lost_transactions(bytes(restarted), page) == 0
