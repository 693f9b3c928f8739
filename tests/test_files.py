"""Rules for files that every part shares: atomic writes, permissions, locks, folder syncs and free space."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wme_async import Client, FileOffsets, Position, SQLiteOffsets, StreamError
from wme_async._files import (  # private: locks and atomic writes of all parts
    LockedFile,
    free_space,
    private_file,
    private_folder,
    sibling,
    sync_file,
    sync_folder,
    write_atomically,
)
from wme_async.jobs import BatchManager, DatabaseError
from wme_async.mirror import SQLiteStore
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"
NO_SYNC = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EIO]
NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS]
POSITIONS = {3: Position(41, datetime(2026, 1, 2, tzinfo=UTC), None)}


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def failing(code: int, real: Callable[[int], None], kind: Callable[[int], bool]) -> Callable[[int], None]:
    """Return an fsync that fails for one kind of file."""

    def fsync(descriptor: int) -> None:
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return fsync


# --- atomic writes


def test_a_written_file_has_the_mode_that_is_given_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    for mode in (0o600, 0o644, 0o666):
        write_atomically(tmp_path / "x", b"content", mode=mode)
        assert mode_of(tmp_path / "x") == mode
        assert (tmp_path / "x").read_bytes() == b"content"
    assert names_in(tmp_path) == ["x"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "x").symlink_to("real/x")
    if exists:
        (tmp_path / "real" / "x").write_bytes(b"old")
    write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "real" / "x").read_bytes() == b"new"
    assert names_in(tmp_path / "real") == ["x"]


def test_links_in_a_circle_are_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="circle") as caught:
        write_atomically(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failed_write_leaves_the_old_file_alone_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="cannot be written") as caught:
            write_atomically(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["x"]


def test_a_name_of_the_greatest_length_can_be_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


# --- synchronisation


@pytest.mark.parametrize("code", NO_SYNC)
async def test_a_folder_that_cannot_be_synchronised_does_not_fail_what_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, stat.S_ISDIR))
    sync_folder(tmp_path)
    store = FileOffsets(tmp_path / "offsets")
    await store.save("a", POSITIONS)
    assert await store.load("a") == POSITIONS
    async with (
        Simulator(archive_bytes={ARCHIVE: 1_500_000}, article_size=200_000) as sim,
        Client(**sim.client_options()) as wme,
    ):
        hour = wme.batches(sim.hours[-2])
        done = await hour.download(ARCHIVE, tmp_path / "a.tar.gz")
        assert done.verified
        async with hour.content(ARCHIVE, tee=tmp_path / "b.tar.gz") as content:
            async for _ in content:
                pass
        assert (tmp_path / "b.tar.gz").read_bytes() == (tmp_path / "a.tar.gz").read_bytes()


def test_a_folder_that_cannot_be_opened_is_not_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, "no reading here")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    write_atomically(tmp_path / "x", b"content")
    assert (tmp_path / "x").read_bytes() == b"content"


@pytest.mark.posix
def test_a_folder_with_a_failing_disk_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, os.fsync, stat.S_ISDIR))
    with caplog.at_level(logging.WARNING, logger="wme_async"):
        sync_folder(tmp_path)
        sync_folder(tmp_path)
    assert caplog.text.count(str(tmp_path)) == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_synchronise_files_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, stat.S_ISREG))
    write_atomically(tmp_path / "x", b"content")
    assert (tmp_path / "x").read_bytes() == b"content"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_file_whose_bytes_do_not_reach_the_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code, os.fsync, stat.S_ISREG))
    with (tmp_path / "x").open("wb") as file, pytest.raises(OSError) as caught:  # noqa: PT011  # by its number
        sync_file(file.fileno())
    assert caught.value.errno == code


# --- free space and permissions


def refusing(code: int) -> Callable[..., None]:
    def call(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


async def test_no_blocks_at_all_means_that_the_free_space_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = os.statvfs_result([4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda _: zeros)
    monkeypatch.setattr(os, "fstatvfs", lambda _: zeros)
    assert free_space(tmp_path) is None
    async with (
        Simulator(archive_bytes={ARCHIVE: 1_500_000}, article_size=200_000) as sim,
        Client(**sim.client_options()) as wme,
    ):
        assert (await wme.batches(sim.hours[-2]).download(ARCHIVE, tmp_path / "a.tar.gz")).verified
        async with BatchManager(tmp_path / "jobs", client=wme) as manager:
            batch = await manager.submit([f"wme:batches/{sim.hours[-2].replace('T', '/')}/{ARCHIVE}"])
            finished = await manager.wait(batch.batch_id, timeout=20)
            assert [job.error for job in finished.jobs] == [None]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EPERM, errno.EOVERFLOW, errno.ENOSYS])
@pytest.mark.posix
def test_free_space_that_cannot_be_told_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "statvfs", refusing(code))
    assert free_space(tmp_path) is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.EROFS])
@pytest.mark.posix
def test_a_file_system_without_permissions_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fchmod", refusing(code))
    write_atomically(tmp_path / "x", b"content", mode=0o644)
    assert (tmp_path / "x").read_bytes() == b"content"


def test_free_space_is_what_the_file_system_says(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = free_space(tmp_path)
    assert free is not None
    assert 0 <= free <= status.f_blocks * status.f_frsize


# --- locks


@pytest.mark.parametrize("code", NO_LOCKS)
@pytest.mark.posix
async def test_a_file_system_without_locks_is_used_after_one_warning_that_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    places: list[FileOffsets | SQLiteOffsets] = [
        FileOffsets(tmp_path / "a"),
        SQLiteOffsets(tmp_path / "b" / "x.sqlite"),
    ]
    with caplog.at_level(logging.WARNING, logger="wme_async"):
        for store, folder in zip(places, ("a", "b"), strict=True):
            caplog.clear()
            for _ in range(2):
                async with store.claim("reader"):
                    pass
            assert caplog.text.count("has no locks") == 1
            assert str(tmp_path / folder) in caplog.text
        caplog.clear()
        async with Simulator(archive_bytes={ARCHIVE: 1_500_000}, article_size=200_000) as sim:
            token_file = tmp_path / "c" / "tokens.json"
            token_file.parent.mkdir()
            (tmp_path / "d").mkdir()
            async with Client(**sim.client_options() | {"token_file": token_file}) as wme:
                assert (await wme.batches(sim.hours[-2]).download(ARCHIVE, tmp_path / "d" / "x")).verified
        for path in (token_file, tmp_path / "d" / "x"):
            assert caplog.text.count(str(path)) == 1


@pytest.mark.posix
def test_another_error_of_a_lock_names_the_file_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    before = len(names_in(Path("/dev/fd")))
    with pytest.raises(OSError, match="cannot be locked") as caught:
        LockedFile(tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")
    assert len(names_in(Path("/dev/fd"))) == before


def test_a_locked_file_keeps_out_a_second_holder_until_it_is_closed(tmp_path: Path) -> None:
    with LockedFile(tmp_path / "x") as lock:
        with pytest.raises(BlockingIOError):
            LockedFile(tmp_path / "x")
        lock.close()
        LockedFile(tmp_path / "x").close()


def test_a_reader_of_a_locked_file_does_not_keep_its_lock(tmp_path: Path) -> None:
    lock = LockedFile(tmp_path / "x")
    lock.write_holder("somebody")
    descriptor = lock.reader()
    (tmp_path / "x").rename(tmp_path / "y")
    renamed = lock.reader()
    lock.close()
    try:
        assert os.pread(descriptor, 99, 0) == os.pread(renamed, 99, 0) == b"somebody"
        LockedFile(tmp_path / "y").close()
    finally:
        os.close(descriptor)
        os.close(renamed)


HOLDER = """
import asyncio, os, sys
from pathlib import Path
from wme_async import FileOffsets
from wme_async._download.part_file import PartFile

async def main():
    async with FileOffsets(sys.argv[1]).claim("reader"):
        part = PartFile(Path(sys.argv[1], "x"), durable=False)
        reader = part.duplicate()
        if os.fork():
            os._exit(0)  # killed: nothing is released in words
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)

asyncio.run(main())
"""


@contextlib.contextmanager
def holder(code: str, folder: Path) -> Iterator[None]:
    """Run a program that takes locks, until it has forked."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        if "_exit(0)  # killed" in code:
            process.wait()
        yield


@pytest.mark.posix
def test_a_forked_child_does_not_keep_the_locks_of_its_dead_parent(tmp_path: Path) -> None:
    with holder(HOLDER, tmp_path):
        asyncio.run(claim(tmp_path))
        LockedFile(tmp_path / "x.part").close()


def test_a_child_that_ends_does_not_release_the_lock_of_its_parent(tmp_path: Path) -> None:
    code = HOLDER.replace("if os.fork():", "if not os.fork():").replace("# killed: nothing is released in words", "")
    code = code.replace('print("forked"', 'os.wait(); print("forked"')
    with holder(code, tmp_path):
        with pytest.raises(StreamError):
            asyncio.run(claim(tmp_path))
        with pytest.raises(BlockingIOError):
            LockedFile(tmp_path / "x.part")


async def claim(folder: Path) -> None:
    async with FileOffsets(folder).claim("reader"):
        pass


def test_a_lock_file_that_cannot_be_removed_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        asyncio.run(claim(tmp_path))
    assert len(names_in(tmp_path)) == 1
    asyncio.run(claim(tmp_path))
    assert names_in(tmp_path) == []


def test_the_lock_file_of_another_holder_is_not_removed(tmp_path: Path) -> None:
    first = LockedFile(tmp_path / "x")
    (tmp_path / "x").unlink()
    with LockedFile(tmp_path / "x"):
        first.remove()
        with pytest.raises(BlockingIOError):
            LockedFile(tmp_path / "x")


def test_a_full_disk_does_not_keep_anybody_from_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    asyncio.run(claim(tmp_path))


async def test_a_token_file_behind_a_link_stays_there_and_is_shared_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    link, real = tmp_path / "tokens.json", tmp_path / "secrets" / "tokens.json"
    link.symlink_to("secrets/tokens.json")
    async with Simulator() as sim:
        for path in (link, real):
            async with Client(**sim.client_options() | {"token_file": path}) as wme:
                await wme.codes.list()
        assert sim.requests.count("auth", path="login") == 1
    assert link.is_symlink()
    assert mode_of(real) == 0o600
    assert names_in(tmp_path / "secrets").count("tokens.json") == 1


async def test_two_readers_of_a_database_behind_a_link_share_one_lock(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "x.sqlite", tmp_path / "elsewhere" / "x.sqlite"
    link.symlink_to("elsewhere/x.sqlite")
    async with SQLiteOffsets(link).claim("reader"):
        with pytest.raises(StreamError, match="in use"):
            async with SQLiteOffsets(real).claim("reader"):
                pass
    await SQLiteOffsets(link).save("reader", POSITIONS)
    assert await SQLiteOffsets(real).load("reader") == POSITIONS
    assert link.is_symlink()


async def test_a_mirror_behind_a_link_stays_there_and_has_one_writer(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "mirror.db", tmp_path / "elsewhere" / "mirror.db"
    link.symlink_to("elsewhere/mirror.db")
    store = SQLiteStore(link)
    await store.open()
    with pytest.raises(BlockingIOError, match="another mirror"):
        await SQLiteStore(real).open()
    await store.close()
    assert link.is_symlink()
    assert real.is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
async def test_a_pipe_in_place_of_a_file_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    """Opening a pipe waits until somebody opens its other end."""
    tokens, folder, jobs = tmp_path / "tokens.json", tmp_path / "offsets", tmp_path / "jobs"
    (jobs / ".wme-jobs").mkdir(parents=True)
    await FileOffsets(folder).save("reader", POSITIONS)
    (folder / "reader.json").unlink()
    for path in (tokens, folder / "reader.json", jobs / ".wme-jobs" / "jobs.sqlite"):
        os.mkfifo(path)
    async with Simulator() as sim, Client(**sim.client_options() | {"token_file": tokens}) as wme:
        with pytest.raises(OSError, match="regular file"):
            await wme.codes.list()
    for attempt in (FileOffsets(folder).load("reader"), FileOffsets(folder).save("reader", POSITIONS)):
        with pytest.raises(OSError, match="regular file"):
            await attempt
    with pytest.raises(DatabaseError, match="regular file"):
        async with BatchManager(jobs):
            pass


# --- permissions


async def test_what_holds_secrets_or_positions_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    files, database = FileOffsets(tmp_path / "files"), SQLiteOffsets(tmp_path / "database" / "x.sqlite")
    for store in (files, database):
        async with store.claim("reader"):
            await store.save("reader", POSITIONS)
    for folder in ("files", "database"):
        assert mode_of(tmp_path / folder) == 0o700
        assert {mode_of(path) for path in (tmp_path / folder).iterdir()} == {0o600}
    async with BatchManager(tmp_path / "jobs") as manager:
        await manager.list()
        hidden = tmp_path / "jobs" / ".wme-jobs"
        assert mode_of(hidden) == 0o700
        assert {mode_of(path) for path in hidden.iterdir() if path.is_file()} == {0o600}


def test_permissions_of_others_are_taken_away_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "x").chmod(0o644)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o755)
    private_file(tmp_path / "x")
    private_folder(tmp_path / "folder")
    assert mode_of(tmp_path / "folder") == 0o755
    private_folder(tmp_path / "folder", tighten=True)
    assert (mode_of(tmp_path / "x"), mode_of(tmp_path / "folder")) == (0o600, 0o700)
    assert (tmp_path / "x").read_bytes() == b"secret"
    assert caplog.text.count("could be read by others") == 2


# --- names


def test_names_of_accompanying_files_fit_and_differ(tmp_path: Path) -> None:
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    names = ["x", *("n" * length for length in range(limit - 15, limit + 1)), "n" * (limit - 1) + "m", "ü" * 120]
    taken = set()
    for name in names:
        for suffix in (".part", ".part.ledger"):
            path = sibling(tmp_path / name, suffix)
            path.touch()
            assert path == sibling(tmp_path / name, suffix)
            assert path.name.endswith(suffix)
            taken.add(path.name)
    assert len(taken) == 2 * len(names)
    assert sibling(tmp_path / "x", ".part").name == "x.part"


@pytest.mark.posix
def test_names_are_cut_to_what_the_folder_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)
    path = sibling(tmp_path / ("n" * 143), ".part.ledger")
    assert len(path.name) == 143
