# ruff: noqa: ASYNC240  # nothing else runs in the loop while these tests look at files
"""Stored positions that are damaged, old, from a later version, locked, or changed by other programs."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import DataError, DecodeError, StreamError
from wme_async._sqlite import database_error  # private: pure; some errors of SQLite cannot be caused
from wme_async.offsets import FileOffsets, OffsetStore, Position, SQLiteOffsets

NAME = "default/articles"
TIME = datetime(2026, 11, 22, 8, tzinfo=UTC)
POSITIONS = {number: Position(1000 + number, TIME, TIME if number % 3 else None) for number in range(50)}

Kind = Callable[[Path], OffsetStore]
KINDS = pytest.mark.parametrize("kind", [FileOffsets, SQLiteOffsets])


def storage(path: Path) -> Path:
    """Return the one file in which a store has its positions."""
    (file,) = [path] if path.is_file() else path.iterdir()
    return file


async def loaded_or_refused(store: OffsetStore, file: Path) -> dict[int, Position] | None:
    """Return what is loaded; None if the file is refused by name, with advice."""
    try:
        return dict(await store.load(NAME))
    except DataError as error:
        message = str(error)
    assert str(file) in message
    assert re.search("move (it|the file) away", message)
    return None


async def test_a_save_leaves_no_connection_open(tmp_path: Path) -> None:
    for number in range(20):
        await SQLiteOffsets(tmp_path / f"{number}.db").save(NAME, POSITIONS)
        # The last connection that closes removes the log.
        assert not (tmp_path / f"{number}.db-wal").exists()


# Damage


@KINDS
async def test_a_flipped_bit_never_loads_positions_that_were_not_saved(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path / "offsets")
    await store.save(NAME, POSITIONS)
    await store.save("other/articles", {0: Position(7)})
    file = storage(tmp_path / "offsets") if kind is SQLiteOffsets else tmp_path / "offsets/default%2Farticles.json"
    content = file.read_bytes()
    chance, refused = random.Random(20261129), 0
    for _ in range(200):
        place = chance.randrange(len(content) * 8)
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        positions = await loaded_or_refused(store, file)
        assert positions in (None, POSITIONS), f"bit {place}"
        refused += positions is None
    assert refused > 50


@KINDS
async def test_a_truncated_file_never_loads_positions_that_were_not_saved(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path / "offsets")
    await store.save(NAME, POSITIONS)
    file = storage(tmp_path / "offsets")
    content = file.read_bytes()
    chance = random.Random(20261129)
    for length in [0, 1, 511, 512, 4095, 4096, 8192, *(chance.randrange(len(content)) for _ in range(193))]:
        if length < len(content):
            file.write_bytes(content[:length])
            assert await loaded_or_refused(store, file) is None, f"{length} bytes"


@KINDS
async def test_a_save_of_one_partition_does_not_hide_damage_in_the_others(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path / "offsets")
    await store.save(NAME, POSITIONS)
    file = storage(tmp_path / "offsets")
    file.write_bytes(file.read_bytes().replace(b"2026-11-22", b"2026-12-22"))
    assert await loaded_or_refused(store, file) is None
    with contextlib.suppress(DataError):
        await store.save(NAME, {0: Position(2)})
    assert await loaded_or_refused(store, file) is None


async def test_a_file_of_another_name_is_refused(tmp_path: Path) -> None:
    store = FileOffsets(tmp_path)
    await store.save("one/articles", POSITIONS)
    storage(tmp_path).rename(tmp_path / "default%2Farticles.json")
    with pytest.raises(DecodeError, match="'one/articles' instead of 'default/articles'"):
        await store.load(NAME)
    with pytest.raises(DecodeError):
        await store.save(NAME, POSITIONS)


# Versions


async def test_files_of_the_first_version_are_read_and_brought_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "default%2Farticles.json"
    file.write_text(json.dumps({"name": NAME, "positions": {"3": {"offset": 42}}, "version": 1}))
    store = FileOffsets(tmp_path)
    assert await store.load(NAME) == {3: Position(42)}
    await store.save(NAME, {4: Position(1)})
    assert await store.load(NAME) == {3: Position(42), 4: Position(1)}
    assert json.loads(file.read_text())["crc"]


async def test_a_table_of_the_first_version_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "offsets.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            'CREATE TABLE wme_offsets (name TEXT NOT NULL, partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, '
            "published TEXT, reached TEXT, PRIMARY KEY (name, partition)) WITHOUT ROWID"
        )
        rows = [(NAME, 3, 42, TIME.isoformat()), (NAME, 4, 1, None)]
        connection.executemany("INSERT INTO wme_offsets VALUES (?, ?, ?, ?, NULL)", rows)
    store = SQLiteOffsets(path)
    old = {3: Position(42, TIME), 4: Position(1)}
    assert await store.load(NAME) == old
    await store.save(NAME, {5: Position(6)})
    assert await store.load(NAME) == {**old, 5: Position(6)}
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE wme_offsets SET name = 'moved' WHERE name = ?", (NAME,))
    assert await store.load("moved") == {**old, 5: Position(6)}
    assert await store.load(NAME) == {}


@KINDS
async def test_a_later_version_is_refused_by_name(kind: Kind, tmp_path: Path) -> None:
    store = kind(tmp_path / "offsets")
    await store.save(NAME, POSITIONS)
    file = storage(tmp_path / "offsets")
    if kind is FileOffsets:
        file.write_text(file.read_text().replace('"version": 2', '"version": 99'))
    else:
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE wme_offsets_names SET version = 99")
    for use in (store.load(NAME), store.save(NAME, {0: Position(1)})):
        with pytest.raises(DataError, match="format 99") as caught:
            await use
        assert str(file) in str(caught.value)


# Names


@given(st.text(max_size=40), st.text(max_size=40))
def test_names_have_files_of_their_own_on_a_disk_that_ignores_case(one: str, other: str) -> None:
    names: set[str] = set()

    async def save(folder: str) -> None:
        for name in (one, other, one.upper(), other.lower(), one.swapcase()):
            with contextlib.suppress(UnicodeEncodeError, ValueError):
                await FileOffsets(folder).save(name, {0: Position(1)})
                names.add(name)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(save(folder))
        files = [path.name for path in Path(folder).iterdir()]
    assert len({file.lower() for file in files}) == len(names)
    assert all(len(file) <= 205 for file in files)


async def test_capitals_keep_positions_apart_and_old_files_are_found(tmp_path: Path) -> None:
    old = tmp_path / "Reader%2Farticles.json"
    old.write_text(json.dumps({"name": "Reader/articles", "positions": {"3": {"offset": 42}}, "version": 1}))
    store = FileOffsets(tmp_path)
    assert await store.load("Reader/articles") == {3: Position(42)}
    await store.save("Reader/articles", {4: Position(1)})
    assert await store.load("Reader/articles") == {3: Position(42), 4: Position(1)}
    assert [path.name for path in tmp_path.iterdir()] == ["%52eader%2Farticles.json"]
    # As on a disk that ignores case: the file that the old rule leads to belongs to another name.
    old.write_text(json.dumps({"name": "rEADER/articles", "positions": {"9": {"offset": 9}}, "version": 1}))
    storage_of_reader = tmp_path / "%52eader%2Farticles.json"
    storage_of_reader.unlink()
    assert await store.load("Reader/articles") == {}


async def test_a_long_name_in_capitals_fits(tmp_path: Path) -> None:
    store = FileOffsets(tmp_path)
    for number, name in enumerate(("A" * 190, "A" * 189 + "B")):
        await store.save(name, {0: Position(number)})
    assert await store.load("A" * 190) == {0: Position(0)}


# Other programs


async def test_other_programs_may_delete_and_change_rows(tmp_path: Path) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    await store.save(NAME, POSITIONS)

    def execute(statement: str) -> None:
        with contextlib.closing(sqlite3.connect(store.path)) as connection, connection:
            connection.execute(statement)

    execute('UPDATE wme_offsets SET "offset" = 5 WHERE partition = 3')
    execute("DELETE FROM wme_offsets WHERE partition = 4")
    execute("INSERT OR REPLACE INTO wme_offsets (name, partition, \"offset\") VALUES ('default/articles', 5, 6)")
    positions = dict(await store.load(NAME))
    assert (positions[3].offset, 4 in positions, positions[5].offset, len(positions)) == (5, False, 6, 49)
    execute("DELETE FROM wme_offsets")
    assert await store.load(NAME) == {}
    await store.save(NAME, {1: Position(1)})
    assert await store.load(NAME) == {1: Position(1)}


async def test_a_table_that_is_gone_is_named_and_made_anew_by_a_save(tmp_path: Path) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    await store.save(NAME, POSITIONS)
    with contextlib.closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("DROP TABLE wme_offsets")
    with pytest.raises(DataError, match=r"offsets\.db is damaged \(50 partitions"):
        await store.load(NAME)
    # A stream that was open all the while knows all positions.
    await store.save(NAME, POSITIONS)
    assert await store.load(NAME) == POSITIONS


async def test_positions_in_any_zone_come_back_in_utc(tmp_path: Path) -> None:
    for store in (FileOffsets(tmp_path / "folder"), SQLiteOffsets(tmp_path / "offsets.db")):
        zone = timezone(timedelta(hours=5, minutes=17, seconds=30))
        await store.save(NAME, {0: Position(1, TIME.astimezone(zone))})
        assert await store.load(NAME) == {0: Position(1, TIME)}


# Errors of SQLite and the system


async def test_a_locked_database_is_waited_for_until_the_task_is_cancelled(tmp_path: Path) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    await store.save(NAME, {0: Position(1)})
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.save(NAME, {0: Position(2)})
        other.execute("COMMIT")
    assert await store.load(NAME) == {0: Position(1)}


async def test_a_lock_that_lasts_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wme_async.offsets.sqlite._PATIENCE", 0.1)
    store = SQLiteOffsets(tmp_path / "offsets.db")
    await store.save(NAME, {0: Position(1)})
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BlockingIOError, match=r"locked by another process; .*offsets\.db"):
            await store.save(NAME, {0: Position(2)})
        assert await store.load(NAME) == {0: Position(1)}


def failing(setup: str, statement: str) -> sqlite3.Error:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(setup)
        try:
            connection.execute(statement)
        except sqlite3.Error as error:
            return error
    raise AssertionError("it works")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (failing("PRAGMA max_page_count = 1", "CREATE TABLE x (y)"), OSError, "free some space"),
        (failing("CREATE TABLE x (y); PRAGMA query_only = 1", "DELETE FROM x"), OSError, "writable"),
        (failing("", "SELECT * FROM wme_offsets"), DataError, "does not hold positions"),
        (sqlite3.DatabaseError("of Python's module, without a code"), DataError, "does not hold positions"),
    ],
)
def test_each_error_of_sqlite_says_what_it_means_and_where(
    error: sqlite3.Error, kind: type[Exception], words: str
) -> None:
    result = database_error(error, Path("/data/offsets.db"), "positions")
    assert isinstance(result, kind)
    assert not isinstance(result, BlockingIOError)
    assert words in str(result)
    assert "/data/offsets.db" in str(result)


READ_ONLY = """
import asyncio, os, sys
from wme_async.offsets import Position, SQLiteOffsets

async def main(path):
    store = SQLiteOffsets(path)
    await SQLiteOffsets(path + ".missing").load("")  # imports all that is needed, while that is allowed
    if os.geteuid() == 0:
        os.setgid(65534), os.setuid(65534)
    assert await store.load("default/articles") == {0: Position(1)}
    try:
        await store.save("default/articles", {0: Position(2)})
    except OSError as error:
        assert path in str(error), error
        print("refused")

asyncio.run(main(sys.argv[1]))
"""


async def test_a_database_that_nobody_can_write_to_is_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        store = SQLiteOffsets(folder / "offsets.db")
        await store.save(NAME, {0: Position(1)})
        store.path.chmod(0o444)
        folder.chmod(0o555)
        try:
            result = subprocess.run(  # noqa: ASYNC221
                [sys.executable, "-c", READ_ONLY, str(store.path)], capture_output=True, text=True, check=False
            )
        finally:
            folder.chmod(0o755)
    assert result.stdout == "refused\n", result.stderr


# Permissions and locks


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


async def test_new_files_belong_to_their_owner_alone_whatever_the_umask(
    umask: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    os.umask(0o022)
    folder = tmp_path_factory.mktemp("private")
    os.umask(umask)
    files = FileOffsets(folder)
    database = SQLiteOffsets(folder / "offsets.db")
    for store in (files, database):
        await store.save(NAME, POSITIONS)
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        assert connection.execute("SELECT count(*) FROM wme_offsets").fetchone() == (50,)
        await database.save(NAME, POSITIONS)
        async with files.claim(NAME), database.claim(NAME):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {"offsets.db", "offsets.db-wal", "offsets.db-shm", "default%2Farticles.json"} < set(modes)
    locks = {name for name in modes if name.endswith(".lock")}
    assert len(locks) == 2
    assert not [name for name in locks if modes[name] & 0o177]
    assert {mode for name, mode in modes.items() if name not in locks} == {0o600}


FORK = """
import asyncio, os, sys
from wme_async.offsets import FileOffsets, SQLiteOffsets

async def main():
    store = {"file": FileOffsets, "sqlite": SQLiteOffsets}[sys.argv[1]](sys.argv[2])
    async with store.claim("default/articles"):
        if os.fork() == 0:
            print("held", flush=True)
            sys.stdin.read()  # until the test is over
        else:
            await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["file", "sqlite"])
@pytest.mark.posix
async def test_a_forked_child_does_not_keep_the_claim_of_its_dead_parent(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "offsets"
    store = FileOffsets(path) if kind == "file" else SQLiteOffsets(path)
    command = [sys.executable, "-c", FORK, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:  # noqa: ASYNC220
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"held\n"
            with pytest.raises(StreamError, match=f"process {parent.pid} "):
                async with store.claim(NAME):
                    pass
        finally:
            os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        async with store.claim(NAME):
            assert parent.stdin is not None
            parent.stdin.close()  # the child leaves its copy of the block
            assert parent.stdout.read() == b""
            with pytest.raises(StreamError):
                async with store.claim(NAME):
                    pass
