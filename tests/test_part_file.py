"""What a download leaves on the disk: bad targets, full and slow disks, the ledger."""

import asyncio
import errno
import fcntl
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from download_store import (
    KEY,
    Ledger,
    PartFile,
    RangePlan,
    StoreSource,
    Transport,
    clean,
    download,
    leftovers,
    noise,
    store_requests,
)

from wme_async import Download
from wme_async.errors import NotFound
from wme_async.simulator import Simulator

# --- the disk


async def test_bad_targets_are_told_before_anything_is_asked_for(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.put_object(KEY, noise(1000))
    source = StoreSource(sim, transport)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for target, kind in [
        (tmp_path / "folder", IsADirectoryError),
        (tmp_path / "missing" / "x", FileNotFoundError),
        (tmp_path / "file" / "x", NotADirectoryError),
        (tmp_path / "pipe", OSError),
    ]:
        with pytest.raises(kind) as caught:
            await download(source, target, transport=transport)
        assert caught.value.strerror
        assert "arget" in caught.value.strerror
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        await download(source, tmp_path / "x", transport=transport)
    assert source.heads == source.signed == 0


async def test_too_little_space_is_told_before_a_metered_request(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.put_object(KEY, noise(3_000_000))
    source = StoreSource(sim, transport)
    real = os.statvfs

    def full(place: Any) -> Any:
        there = real(place)
        return os.statvfs_result([there[0], there[1], there[2], 1, 1, *there[5:]])

    monkeypatch.setattr(os, "fstatvfs", full)
    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(OSError, match="are free") as caught:
        await download(source, tmp_path / "x", transport=transport)
    assert caught.value.errno == errno.ENOSPC
    assert source.signed == 0
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("trouble", ["space", "descriptors"])
async def test_what_an_earlier_download_left_stays_where_the_next_one_cannot_begin(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    data = noise(4_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    sim.faults.inject("drop", role="store", after=1_500_000)
    sim.faults.inject("status", role="store", status=404, skip=1, times=None)
    with pytest.raises(NotFound):
        await download(source, tmp_path / "x", transport=transport, connections=1)
    clean(sim)
    real = os.statvfs, os.open

    def full(place: Any) -> Any:
        there = real[0](place)
        return os.statvfs_result([there[0], there[1], there[2], 1, 1, *there[5:]])

    def too_many(path: Any, *rest: Any) -> int:
        if str(path).endswith(".ledger"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real[1](path, *rest)

    with monkeypatch.context() as patch:
        if trouble == "space":
            patch.setattr(os, "fstatvfs", full)
            patch.setattr(os, "statvfs", full)
        else:
            patch.setattr(os, "open", too_many)
        with pytest.raises(OSError, match=r"are free|Too many"):
            await download(source, tmp_path / "x", transport=transport)
    done = await download(source, tmp_path / "x", transport=transport)
    assert done.resumed >= 1_000_000
    assert done.path.read_bytes() == data
    assert leftovers(tmp_path) == ["x"]


@pytest.mark.posix
async def test_a_disk_that_fills_up_leaves_what_can_be_resumed(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(4_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    system_write, free = os.pwrite, 2_000_000

    def full(descriptor: int, content: bytes | memoryview, offset: int) -> int:
        nonlocal free
        if isinstance(content, memoryview):  # the file; its ledger writes bytes
            free -= len(content)
            if free < 0:
                raise OSError(errno.ENOSPC, "disk full")
        return system_write(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="disk full"):
        await download(source, tmp_path / "x", transport=transport, part_size=500_000)
    assert leftovers(tmp_path) == ["x.part", "x.part.ledger"]
    monkeypatch.undo()
    done = await download(source, tmp_path / "x", transport=transport, part_size=500_000)
    assert (tmp_path / "x").read_bytes() == data
    assert done.resumed > 100_000
    assert done.bytes_fetched <= len(data) - done.resumed + 500_000


@pytest.mark.posix
async def test_a_slow_disk_is_written_to_by_a_thread(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(3_000_000)
    sim.put_object(KEY, data)
    system_write, threads = os.pwrite, []

    def slow(descriptor: int, content: bytes | memoryview, offset: int) -> int:
        if isinstance(content, memoryview):  # the file; its ledger writes bytes
            threads.append(threading.current_thread())
            if len(threads) <= 2:
                time.sleep(0.03)
        return system_write(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=300_000)
    assert (tmp_path / "x").read_bytes() == data
    assert threads[0] is threading.main_thread()
    assert sum(thread is not threading.main_thread() for thread in threads) > 5


async def test_two_downloads_of_one_target_do_not_meet(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    sim.put_object(KEY, noise(2_000_000))
    sim.faults.inject("stall", role="store", after=1000)
    started = asyncio.Event()

    async def first() -> Download:
        return await download(
            StoreSource(sim, transport), tmp_path / "x", transport=transport, progress=lambda _: started.set()
        )

    async with asyncio.TaskGroup() as group:
        one = group.create_task(first())
        await started.wait()
        with pytest.raises(BlockingIOError, match="another download"):
            await download(StoreSource(sim, transport), tmp_path / "x", transport=transport)
    assert one.result().verified is True
    assert leftovers(tmp_path) == ["x"]


async def test_if_changed_fetches_only_another_version(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    target = tmp_path / "x"
    sim.put_object(KEY, noise(200_000))
    source = StoreSource(sim, transport)
    await download(source, target, transport=transport, if_changed=True)
    count = len(store_requests(sim))
    again = await download(source, target, transport=transport, if_changed=True)
    assert again.unchanged
    assert again.verified is True
    assert again.api_requests == 0
    assert len(store_requests(sim)) == count
    # Without the note that was kept with it, the file is hashed.
    target.write_bytes(target.read_bytes())
    assert (await download(source, target, transport=transport, if_changed=True)).unchanged
    # Another file of the same size.
    target.write_bytes(noise(200_000, 9))
    assert not (await download(source, target, transport=transport, if_changed=True)).unchanged
    sim.put_object(KEY, noise(200_000, 3))
    done = await download(source, target, transport=transport, if_changed=True)
    assert not done.unchanged
    assert target.read_bytes() == noise(200_000, 3)


# --- the disk, continued


@pytest.mark.posix
async def test_file_systems_without_locks_and_attributes_will_do(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    data = noise(200_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    await download(source, tmp_path / "x", transport=transport)
    assert (await download(source, tmp_path / "x", transport=transport, if_changed=True)).unchanged
    source.promised = [None]
    assert not (await download(source, tmp_path / "x", transport=transport, if_changed=True)).unchanged


def test_a_file_is_free_again_though_another_process_has_inherited_its_descriptor(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "x", durable=False)
    # A process that is forked meanwhile has the same.
    inherited = part.duplicate()
    try:
        plan = part.resume(identity="x", size=4 << 20, etag='"x"', keep=True)
        lease = plan.lease(0.0, most=4096)
        assert lease is not None
        part.open_lease(lease)
        assert part.write(0, memoryview(bytes(4096))) is None
        lease.at += 4096
        part.advanced(lease)
        with pytest.raises(BlockingIOError):
            PartFile(tmp_path / "x", durable=False)
        part.close()
        again = PartFile(tmp_path / "x", durable=False)
        assert again.resume(identity="x", size=4 << 20, etag='"x"', keep=True).done == 4096
        again.close()
    finally:
        os.close(inherited)


async def test_what_fails_on_the_disk_is_said_in_a_sentence(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.put_object(KEY, noise(2_000))
    source = StoreSource(sim, transport)
    (tmp_path / "x.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="unfinished file cannot be created"):
        await download(source, tmp_path / "x", transport=transport)
    (tmp_path / "x.part").unlink()
    assert not (tmp_path / "elsewhere").exists()

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError, match="could not be given its name"):
        await download(source, tmp_path / "x", transport=transport)
    monkeypatch.undo()
    assert not (tmp_path / "x").exists()


async def test_what_was_flushed_is_noted_while_it_goes_on(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["wme_async._download.download"], "_CHECKPOINT_SECONDS", 0.05)
    monkeypatch.setattr(sys.modules["wme_async._download.download"], "_CHECKPOINT_BYTES", 1)
    sim.put_object(KEY, noise(3_000_000))
    sim.faults.inject("slow", role="store", rate=1_500_000, times=None)
    sim.faults.inject("status", role="store", status=404, skip=4, times=None)
    with pytest.raises(NotFound):
        await download(
            StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=500_000, connections=2
        )
    ledger = Ledger(tmp_path / "x.part.ledger", boot="another boot: after a power failure")
    spans = ledger.load(identity=KEY, size=3_000_000, etag=f'"{sim.store.objects[KEY].etag}"')
    ledger.close()
    assert spans.total > 100_000


async def test_a_part_file_that_was_finished_by_another_is_not_written_to(tmp_path: Path) -> None:
    first = PartFile(tmp_path / "x", durable=False)
    first.resume(identity="a", size=0, etag=None, keep=False)
    real = os.open
    opened: list[int] = []

    def late(path: Any, *args: Any) -> int:
        fd = real(path, *args)
        if not opened:
            # Between our opening and our lock, the other one is done.
            opened.append(fd)
            first.finish(md5=None, verified=None)
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", late)
        second = PartFile(tmp_path / "x", durable=False)
    assert (tmp_path / "x.part").exists()
    second.close()
    assert leftovers(tmp_path) == ["x"]


# --- the ledger


def test_a_ledger_claims_nothing_of_another_version_or_boot(tmp_path: Path) -> None:
    names: dict[str, Any] = {"identity": "a", "size": 10_000, "etag": '"v1"'}
    plan = RangePlan(10_000)
    ledger = Ledger(tmp_path / "l", boot="boot-1")
    assert not ledger.load(**names)
    ledger.begin(plan, **names)
    lease = plan.lease(0.0, most=4096)
    assert lease is not None
    ledger.open(lease, plan)
    lease.at = 3000
    ledger.advance(lease)
    ledger.close()

    def read(boot: str | None, **other: Any) -> list[tuple[int, int]]:
        reader = Ledger(tmp_path / "l", boot=boot)
        try:
            return list(reader.load(**(names | other)))
        finally:
            reader.close()

    assert read("boot-1") == [(0, 3000)]
    # After a power failure only what was flushed is believed: nothing yet.
    assert read("boot-2") == []
    assert read(None) == []
    for other in ({"identity": "b"}, {"size": 10_001}, {"etag": '"v2"'}):
        assert read("boot-1", **other) == []

    ledger = Ledger(tmp_path / "l", boot="boot-1")
    plan = RangePlan(10_000, ledger.load(**names))
    ledger.begin(plan, **names)
    ledger.synced(plan.written)
    lease = plan.lease(0.0, most=100_000)
    assert lease is not None
    ledger.open(lease, plan)
    lease.at = 5000
    ledger.advance(lease)
    ledger.close()
    assert read("boot-1") == [(0, 5000)]
    assert read("boot-2") == [(0, 3000)]
    # Going on in a new boot does not bring the old table back to life.
    ledger = Ledger(tmp_path / "l", boot="boot-2")
    plan = RangePlan(10_000, ledger.load(**names))
    ledger.begin(plan, **names)
    ledger.close()
    assert read("boot-2") == [(0, 3000)]


def test_a_ledger_with_very_many_claims_stays_true_and_small(tmp_path: Path) -> None:
    names: dict[str, Any] = {"identity": "a", "size": 1_000_000, "etag": '"v1"'}
    plan = RangePlan(1_000_000)
    ledger = Ledger(tmp_path / "l", boot="b")
    ledger.begin(plan, **names)
    rng = random.Random(5)
    for _ in range(2000):
        lease = plan.lease(0.0, most=rng.randrange(1, 600))
        if lease is None:
            break
        ledger.open(lease, plan)
        lease.at += rng.randrange(lease.remaining + 1)
        ledger.advance(lease)
        if rng.random() < 0.9:
            plan.release(lease, 0.0)
            ledger.forget(lease)
        if len(plan.leases) > 40:
            for old in list(plan.leases):
                plan.release(old, 0.0)
                ledger.forget(old)
    said = set(ledger.load(**names))
    written = plan.written
    assert all(written.reach(start) >= stop for start, stop in said)
    ledger.close()
    assert (tmp_path / "l").stat().st_size < 64 * 1024


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty"])
async def test_a_damaged_ledger_or_part_means_a_fresh_start(
    sim: Simulator, transport: Transport, tmp_path: Path, damage: str
) -> None:
    data = noise(2_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    sim.faults.inject("status", role="store", status=404, skip=3, times=None)
    with pytest.raises(NotFound):
        await download(source, tmp_path / "x", transport=transport, part_size=400_000)
    clean(sim)
    ledger, part = tmp_path / "x.part.ledger", tmp_path / "x.part"
    assert ledger.exists()
    if damage == "truncate":
        os.truncate(part, 100_000)
    elif damage == "garbage":
        raw = bytearray(ledger.read_bytes())
        raw[4096:] = noise(len(raw) - 4096)
        ledger.write_bytes(raw)
    else:
        part.unlink()
    done = await download(source, tmp_path / "x", transport=transport)
    assert done.resumed == 0
    assert (tmp_path / "x").read_bytes() == data


async def test_another_file_under_the_same_name_is_not_gone_on_with(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(2_000_000))
    sim.put_object("snapshots/y.tar.gz", noise(2_000_000))
    sim.faults.inject("status", role="store", status=404, skip=3, times=None)
    with pytest.raises(NotFound):
        await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=400_000)
    clean(sim)
    other = StoreSource(sim, transport, "snapshots/y.tar.gz")
    done = await download(other, tmp_path / "x", transport=transport)
    assert done.resumed == 0
    assert done.verified is True
