"""Downloads against the simulator's object store: every kind of trouble, and what is left on the disk after it."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from wme_async._download import Budget, Download, FileInfo, Progress, SignedUrl, download, ordered
from wme_async._download.ledger import Ledger, boot_id
from wme_async._download.partfile import PartFile, etag_of
from wme_async._download.threads import in_thread
from wme_async._protocol.ranges import Plan
from wme_async._protocol.settings import Retry, Timeouts
from wme_async._transport import Transport
from wme_async.errors import Forbidden, IntegrityError, NotFound, WMEError
from wme_async.simulator import Simulator

KEY = "snapshots/x.tar.gz"
MIB = 1 << 20


class StoreSource:
    """An object of the simulator's store, with HEAD and metadata answered on the spot."""

    def __init__(self, sim: Simulator, transport: Transport, key: str = KEY, **info: Any) -> None:
        self.sim, self.transport, self.key, self.info = sim, transport, key, info
        self.signed = self.heads = self.checks = 0
        self.missing_heads = 0
        self.promised: list[str | None] = []
        self.lifetime: float | None = 60.0

    @property
    def identity(self) -> str:
        return self.key

    async def head(self) -> FileInfo:
        self.heads += 1
        found = self.sim.store.objects.get(self.key)
        if found is None or self.heads <= self.missing_heads:
            raise NotFound("not there", status=404)
        facts = {"size": found.size, "etag": f'"{found.etag}"', "accept_ranges": True, **self.info}
        return FileInfo(**facts)

    async def sign(self) -> SignedUrl:
        self.signed += 1
        expires = None if self.lifetime is None else self.transport.monotonic() + self.lifetime
        return SignedUrl(url=self.sim.store.presign(self.key, "me"), expires_at=expires)

    async def checksum(self) -> str | None:
        self.checks += 1
        if self.promised:
            return self.promised.pop(0)
        return self.sim.store.objects[self.key].md5


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator() as running:
        yield running


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    retry = Retry(attempts=5, base=0.002, cap=0.01)
    made = Transport(None, retry=retry, timeouts=Timeouts(read=0.4, connect=2.0), random=random.Random(1))
    yield made
    assert made.open_bodies == 0, "a body was left open"
    await made.aclose()


def our_tasks() -> list[asyncio.Task[Any]]:
    """Tasks of the downloader; the simulator lives in the same loop and has its own."""
    return [task for task in asyncio.all_tasks() if "wme_async/_download/" in task.get_coro().cr_code.co_filename]  # type: ignore[union-attr]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def store_requests(sim: Simulator) -> list[Any]:
    return [request for request in sim.requests if request.role == "store"]


def fetched_ranges(sim: Simulator) -> list[str]:
    return [request.header("range") for request in store_requests(sim)]


@pytest.mark.parametrize("size", [0, 1, 1000, MIB, MIB + 1, 3_333_333])
async def test_a_file_of_any_size_arrives_whole_for_one_metered_request(
    sim: Simulator, transport: Transport, tmp_path: Path, size: int
) -> None:
    data = noise(size)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    done = await download(source, tmp_path / "x", transport=transport, part_size=500_000, durable=False)
    assert (tmp_path / "x").read_bytes() == data
    assert leftovers(tmp_path) == ["x"]
    assert done.verified is True
    assert done.version == hashlib.md5(data).hexdigest()
    assert done.size == size
    assert source.signed == done.api_requests == min(size, 1)
    for request in store_requests(sim):
        assert request.header("authorization") is None
        assert request.header("if-match") == done.etag
        assert request.header("accept-encoding") == "identity"


async def test_nothing_overlaps_and_nothing_is_fetched_twice(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(2_000_000))
    await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=200_000)
    spans = sorted(tuple(map(int, text[6:].split("-"))) for text in fetched_ranges(sim))
    assert spans[0][0] == 0
    assert spans[-1][1] == 1_999_999
    # A range whose end was taken over was asked for in full; the starts are each asked for once.
    assert len({start for start, _ in spans}) == len(spans)


def clean(sim: Simulator) -> None:
    sim.faults.clear()


ONCE: list[tuple[str, dict[str, Any]]] = [
    ("drop", {"after": 70_000}),
    ("drop", {"after": 70_000, "how": "reset"}),
    ("drop", {"after": 0}),
    ("status", {"status": 503}),
    ("status", {"status": 500, "body": b""}),
    ("status", {"status": 429, "headers": {"Retry-After": "0"}}),
    ("status", {"status": 502, "html": True}),
    ("reset", {}),
    ("hang_head", {}),
    ("stall", {"after": 30_000}),
    ("ignore_range", {}),
    ("content_range", {}),
    ("content_range", {"missing": True}),
    ("content_range", {"value": "bytes 0-0/1"}),
    ("multipart", {}),
    ("expire", {}),
    ("short", {"missing": 1000, "honest": True}),
    ("short", {"missing": 1000, "honest": False}),
    ("long", {"extra": 1000, "honest": True}),
    ("long", {"extra": 1000, "honest": False}),
    ("encoding", {"real": True}),
    ("encoding", {"real": False}),
    ("empty", {}),
]


@pytest.mark.parametrize(("kind", "details"), ONCE, ids=lambda value: value if isinstance(value, str) else None)
async def test_one_fault_of_any_kind_is_survived(
    sim: Simulator, transport: Transport, tmp_path: Path, kind: str, details: dict[str, Any]
) -> None:
    data = noise(1_500_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    fault = sim.faults.inject(kind, role="store", skip=1, **details)
    done = await download(source, tmp_path / "x", transport=transport, part_size=200_000)
    assert fault.hits == 1
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is True
    assert source.signed == (2 if kind == "expire" else 1)
    # What had arrived of a broken range was not asked for again.
    assert done.bytes_fetched < len(data) + 200_000 + 70_000
    assert leftovers(tmp_path) == ["x"]


async def test_a_replaced_file_is_begun_again_and_never_mixed(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    old, new = noise(1_500_000, 1), noise(1_400_000, 2)
    sim.put_object(KEY, old)
    sim.faults.inject("swap", role="store", skip=3, data=new)
    source = StoreSource(sim, transport)
    seen: list[Progress] = []
    done = await download(source, tmp_path / "x", transport=transport, part_size=200_000, progress=seen.append)
    assert (tmp_path / "x").read_bytes() == new
    assert done.restarts == 1
    assert done.size == 1_400_000
    # The address is of the name, not of the version: it is not paid for again.
    assert source.signed == 1
    assert all(step.total is not None and step.done <= step.total for step in seen)


async def test_a_file_that_keeps_changing_is_given_up(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    sim.put_object(KEY, noise(900_000))
    sim.faults.inject("swap", role="store", times=None)
    with pytest.raises(IntegrityError, match="kept changing"):
        await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=200_000)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["corrupt", "garbage"])
async def test_wrong_bytes_under_a_right_head_are_found_and_nothing_is_left(
    sim: Simulator, transport: Transport, tmp_path: Path, kind: str
) -> None:
    sim.put_object(KEY, noise(2_500_000))
    sim.faults.inject(kind, role="store", skip=1)
    source = StoreSource(sim, transport)
    with pytest.raises(IntegrityError, match="MD5") as caught:
        await download(source, tmp_path / "x", transport=transport, part_size=300_000)
    assert caught.value.expected == sim.store.objects[KEY].md5
    assert source.checks == 2, "a mismatch is looked up again before anybody is blamed"
    assert leftovers(tmp_path) == []
    done = await download(source, tmp_path / "x", transport=transport, part_size=300_000)
    assert done.verified is True


async def test_metadata_that_catches_up_verify_and_stale_ones_say_that_they_cannot(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    data = noise(500_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    source.promised = ["0" * 32]
    assert (await download(source, tmp_path / "x", transport=transport)).verified is True
    source.promised = ["0" * 32, "1" * 32]
    done = await download(source, tmp_path / "x", transport=transport)
    assert done.verified is None
    assert done.version == hashlib.md5(data).hexdigest()
    source.promised = [None]
    assert (await download(source, tmp_path / "x", transport=transport)).verified is None
    assert (await download(source, tmp_path / "x", transport=transport, verify=False)).verified is None


def test_the_tag_of_a_file_uploaded_in_parts_is_computed(tmp_path: Path) -> None:
    part, size = 5 * MIB, 12 * MIB + 5
    data = noise(size)
    (tmp_path / "x").write_bytes(data)
    tag = hashlib.md5(b"".join(hashlib.md5(data[at : at + part]).digest() for at in range(0, size, part))).hexdigest()
    with (tmp_path / "x").open("rb") as file:
        assert etag_of(file.fileno(), size, f'"{tag}-3"') == f'"{tag}-3"'
        assert etag_of(file.fileno(), size, f'"{tag}-2"') is None
        assert etag_of(file.fileno(), size, f'"{tag[::-1]}-3"') is None
        assert etag_of(file.fileno(), size, '"whatever"') is None
        whole = hashlib.md5(data).hexdigest()
        assert etag_of(file.fileno(), size, f'"{whole}"') == f'"{whole}"'
        assert etag_of(file.fileno(), size, f'"{tag}"') is None


async def test_many_ranges_share_each_new_signature(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    data = noise(2_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    source.lifetime = None
    # The store lets ten ranges through, then the signature has run out for all who hold it.
    sim.faults.script([None] * 10 + ["expire"] * 4, role="store")
    await download(source, tmp_path / "x", transport=transport, part_size=100_000, connections=4)
    assert (tmp_path / "x").read_bytes() == data
    assert source.signed <= 1 + 2
    source.lifetime = -1.0  # runs out by the clock at once: nobody is bothered with a dead address
    source.signed = 0
    before = len(store_requests(sim))
    await download(source, tmp_path / "x", transport=transport, part_size=10_000_000)
    assert source.signed == 1
    assert all(request.status < 400 for request in store_requests(sim)[before:])


async def test_an_address_that_never_works_is_given_up_soon(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(1000))
    sim.faults.inject("expire", role="store", times=None)
    source = StoreSource(sim, transport)
    with pytest.raises(Forbidden) as caught:
        await download(source, tmp_path / "x", transport=transport)
    assert source.signed == 3
    assert "clock" in "".join(getattr(caught.value, "__notes__", []))
    assert leftovers(tmp_path) == []


async def test_a_404_to_a_head_is_asked_again_and_one_to_a_range_is_not(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(1000))
    source = StoreSource(sim, transport)
    source.missing_heads = 2
    await download(source, tmp_path / "x", transport=transport)
    assert source.heads == 3
    source.missing_heads = 99
    with pytest.raises(NotFound):
        await download(source, tmp_path / "y", transport=transport)
    assert source.signed == 1
    source.missing_heads = 0
    sim.faults.inject("status", role="store", status=404, times=None)
    with pytest.raises(NotFound):
        await download(source, tmp_path / "y", transport=transport)
    assert leftovers(tmp_path) == ["x"]


async def test_a_server_that_ignores_ranges_is_read_in_one_stream(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    data = noise(900_000)
    sim.put_object(KEY, data)
    sim.faults.inject("ignore_range", role="store", times=None)
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=100_000)
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is True
    assert store_requests(sim)[-1].header("range") is None


@pytest.mark.parametrize(
    "info",
    [{"size": None}, {"accept_ranges": False}, {"etag": 'W/"weak"'}, {"etag": None}, {"size": None, "etag": None}],
)
async def test_what_cannot_be_proven_to_be_one_file_comes_in_one_stream(
    sim: Simulator, transport: Transport, tmp_path: Path, info: dict[str, Any]
) -> None:
    data = noise(700_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport, **info)
    sim.faults.inject("drop", role="store", after=300_000)
    seen: list[Progress] = []
    done = await download(source, tmp_path / "x", transport=transport, progress=seen.append)
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is True
    assert len(store_requests(sim)) == 2
    assert done.bytes_fetched > len(data), "it began again from the beginning"
    assert seen[-1].done == seen[-1].total == len(data)
    assert leftovers(tmp_path) == ["x"]


@pytest.mark.parametrize("kind", ["long", "short", "encoding"])
async def test_a_stream_with_a_wrong_length_or_form_is_never_taken(
    sim: Simulator, transport: Transport, tmp_path: Path, kind: str
) -> None:
    sim.put_object(KEY, noise(300_000))
    source = StoreSource(sim, transport, accept_ranges=False)
    every: dict[str, dict[str, Any]] = {
        "long": {"honest": True},
        "short": {"honest": True, "missing": 7},
        "encoding": {"real": False},
    }
    sim.faults.inject(kind, role="store", times=None, **every[kind])
    with pytest.raises(WMEError):
        await download(source, tmp_path / "x", transport=transport)
    assert leftovers(tmp_path) == []


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
    real = os.fstatvfs

    def full(fd: int) -> Any:
        there = real(fd)
        return os.statvfs_result([there[0], there[1], there[2], 1, 1, *there[5:]])

    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(OSError, match="are free") as caught:
        await download(source, tmp_path / "x", transport=transport)
    assert caught.value.errno == errno.ENOSPC
    assert source.signed == 0
    assert leftovers(tmp_path) == []


async def test_a_disk_that_fills_up_leaves_what_can_be_resumed(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(4_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    real, budget = PartFile._write, [12]

    def full(self: PartFile, offset: int, view: memoryview) -> None:
        budget[0] -= 1
        if budget[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, offset, view)

    monkeypatch.setattr(PartFile, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        await download(source, tmp_path / "x", transport=transport, part_size=500_000)
    assert leftovers(tmp_path) == ["x.part", "x.part.ledger"]
    monkeypatch.undo()
    done = await download(source, tmp_path / "x", transport=transport, part_size=500_000)
    assert (tmp_path / "x").read_bytes() == data
    assert done.resumed > 100_000
    assert done.bytes_fetched <= len(data) - done.resumed + 500_000


async def test_a_slow_disk_is_written_to_by_a_thread(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(3_000_000)
    sim.put_object(KEY, data)
    monkeypatch.setattr("wme_async._download.partfile._SLOW_WRITE", 0.0)
    threads: list[object] = []
    real = in_thread

    async def watched(function: Any, *args: Any) -> Any:
        threads.append(getattr(function, "__name__", None))
        return await real(function, *args)

    monkeypatch.setattr("wme_async._download.partfile.in_thread", watched)
    await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=300_000)
    assert (tmp_path / "x").read_bytes() == data
    assert threads.count("_write") > 5


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


# --- progress, limits, cancelling


async def test_progress_grows_to_the_end_and_tells_the_truth(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(3_000_000))
    sim.faults.inject("slow", role="store", rate=3_000_000, times=None)
    seen: list[Progress] = []

    async def watch(step: Progress) -> None:
        await asyncio.sleep(0)
        seen.append(step)

    await download(
        StoreSource(sim, transport), tmp_path / "x", transport=transport, progress=watch, connections=2,
    )  # fmt: skip
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert len(seen) >= 3
    assert seen[-1] == Progress(3_000_000, 3_000_000, seen[-1].rate, 0.0)
    assert sum(step.done == step.total for step in seen) == 1
    assert any(step.eta for step in seen[:-1])


async def test_what_progress_raises_ends_the_download(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    sim.put_object(KEY, noise(3_000_000))

    def broken(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, progress=broken)
    assert not (tmp_path / "x").exists()


async def test_max_rate_limits_all_downloads_of_a_budget_together(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(200_000))
    budget = Budget(max_rate=2_000_000)
    began = transport.monotonic()
    for name in "abcdef":
        await download(StoreSource(sim, transport), tmp_path / name, transport=transport, budget=budget)
    # The first tenth of a second is free, and nobody waits behind the last one.
    assert transport.monotonic() - began >= 0.95 * (6 * 200_000 - 2 * 200_000) / 2_000_000
    sim.put_object(KEY, noise(2_000_000))
    began = transport.monotonic()
    await download(StoreSource(sim, transport), tmp_path / "g", transport=transport, max_rate=4_000_000)
    assert transport.monotonic() - began >= 0.2
    assert "0 of" in repr(budget)


async def test_numbers_that_make_no_sense_are_refused(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    source = StoreSource(sim, transport)
    bad: list[dict[str, Any]] = [
        {"connections": 0},
        {"part_size": 0},
        {"max_rate": 0},
        {"min_rate": -1.0},
        {"max_rate": 5.0, "budget": Budget()},
    ]
    for options in bad:
        with pytest.raises(ValueError, match=r"connections|rate"):
            await download(source, tmp_path / "x", transport=transport, **options)
    with pytest.raises(ValueError, match="window"):
        ordered(source, transport=transport, window=0)
    with pytest.raises(ValueError, match="budget"):
        ordered(source, transport=transport, max_rate=1.0, budget=Budget())


@pytest.mark.parametrize("fault", ["hang_head", "stall"])
async def test_cancelling_leaves_nothing_open_and_a_state_to_go_on_from(
    sim: Simulator, tmp_path: Path, fault: str
) -> None:
    data = noise(3_000_000)
    sim.put_object(KEY, data)
    transport = Transport(None)
    source = StoreSource(sim, transport)
    sim.faults.inject(fault, role="store", skip=4, times=None)
    arrived = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            download(source, tmp_path / "x", transport=transport, part_size=500_000, connections=6,
                     progress=lambda step: arrived.set() if step.done >= 1_500_000 else None)
        )  # fmt: skip
        await asyncio.wait_for(arrived.wait(), 10)
        task.cancel()
    assert task.cancelled()
    assert transport.open_bodies == 0
    assert not our_tasks()
    assert leftovers(tmp_path) == ["x.part", "x.part.ledger"]
    sim.faults.clear()
    done = await download(source, tmp_path / "x", transport=transport)
    assert done.resumed >= 1_500_000
    assert (tmp_path / "x").read_bytes() == data
    await transport.aclose()


async def test_an_idle_connection_takes_over_from_a_slow_one(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    data = noise(6_000_000)
    sim.put_object(KEY, data)
    # The first range comes at a hundredth of the others' pace.
    sim.faults.inject("slow", role="store", rate=60_000, times=1)
    sim.faults.inject("slow", role="store", rate=6_000_000, times=None)
    began = transport.monotonic()
    await download(
        StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=1_000_000, connections=4,
    )  # fmt: skip
    assert (tmp_path / "x").read_bytes() == data
    # Alone it would take 17 s.
    assert transport.monotonic() - began < 6


async def test_a_server_that_wants_less_gets_fewer_connections(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(3_000_000))
    sim.faults.inject("status", role="store", status=503, times=2, skip=2)
    budget = Budget(8, start=8)
    await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, budget=budget, part_size=200_000)
    assert budget.governor.allowed == 4


async def test_whoever_waits_for_a_connection_and_gives_up_takes_none(sim: Simulator) -> None:
    budget = Budget(1, start=1)
    await budget.acquire()
    one, two = (asyncio.ensure_future(budget.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    assert budget.contended
    one.cancel()
    await asyncio.wait([one])
    budget.release()
    await two
    assert not budget.try_acquire()
    # Cancelled in the very moment in which it got one.
    three = asyncio.ensure_future(budget.acquire())
    await asyncio.sleep(0)
    budget.release()
    three.cancel()
    await asyncio.wait([three])
    assert budget.try_acquire()


async def test_a_thread_at_work_is_waited_for_by_whoever_is_cancelled() -> None:
    began, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(10)
        ended.set()

    task = asyncio.ensure_future(in_thread(work))
    assert await asyncio.to_thread(began.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ended.is_set()


# --- the disk, continued


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
    monkeypatch.setattr("wme_async._download.job._CHECKPOINT_SECONDS", 0.05)
    monkeypatch.setattr("wme_async._download.job._CHECKPOINT_BYTES", 1)
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
    plan = Plan(10_000)
    ledger = Ledger(tmp_path / "l", boot="boot-1")
    assert not ledger.load(**names)
    ledger.begin(plan, **names)
    claim = plan.claim(0.0, most=4096)
    assert claim is not None
    ledger.open(claim, plan)
    claim.at = 3000
    ledger.advance(claim)
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
    plan = Plan(10_000, ledger.load(**names))
    ledger.begin(plan, **names)
    ledger.synced(plan.written)
    claim = plan.claim(0.0, most=100_000)
    assert claim is not None
    ledger.open(claim, plan)
    claim.at = 5000
    ledger.advance(claim)
    ledger.close()
    assert read("boot-1") == [(0, 5000)]
    assert read("boot-2") == [(0, 3000)]
    # Going on in a new boot does not bring the old table back to life.
    ledger = Ledger(tmp_path / "l", boot="boot-2")
    plan = Plan(10_000, ledger.load(**names))
    ledger.begin(plan, **names)
    ledger.close()
    assert read("boot-2") == [(0, 3000)]


def test_a_ledger_with_very_many_claims_stays_true_and_small(tmp_path: Path) -> None:
    names: dict[str, Any] = {"identity": "a", "size": 1_000_000, "etag": '"v1"'}
    plan = Plan(1_000_000)
    ledger = Ledger(tmp_path / "l", boot="b")
    ledger.begin(plan, **names)
    rng = random.Random(5)
    for _ in range(2000):
        claim = plan.claim(0.0, most=rng.randrange(1, 600))
        if claim is None:
            break
        ledger.open(claim, plan)
        claim.at += rng.randrange(claim.rest + 1)
        ledger.advance(claim)
        if rng.random() < 0.9:
            plan.release(claim, 0.0)
            ledger.forget(claim)
        if len(plan.claims) > 40:
            for old in list(plan.claims):
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


# --- torture


KINDS: list[tuple[str, Any]] = [
    ("drop", lambda rng: {"how": rng.choice(["close", "reset"])}),
    ("drop", lambda rng: {"after": rng.randrange(1000)}),
    ("status", lambda rng: {"status": rng.choice([500, 503, 429, 403, 404, 408, 412, 416, 301]), "body": b""}),
    ("reset", lambda _: {}),
    ("ignore_range", lambda _: {}),
    ("content_range", lambda rng: {"missing": rng.random() < 0.5}),
    ("multipart", lambda _: {}),
    ("swap", lambda _: {}),
    ("expire", lambda _: {}),
    ("short", lambda rng: {"missing": rng.randrange(1, 50_000), "honest": rng.random() < 0.7}),
    ("long", lambda rng: {"extra": rng.randrange(1, 50_000), "honest": rng.random() < 0.5}),
    ("corrupt", lambda _: {}),
    ("encoding", lambda rng: {"real": rng.random() < 0.5}),
    ("empty", lambda _: {}),
    ("garbage", lambda _: {}),
    ("slow", lambda _: {"rate": 4_000_000}),
]


VARIANTS: list[dict[str, Any]] = [{}, {}, {}, {"size": None}, {"accept_ranges": False}]


async def one_script(sim: Simulator, folder: Path, seed: int) -> str:
    rng = random.Random(seed)
    key = f"snapshots/torture_{seed}.tar.gz"
    data = rng.randbytes(rng.choice([1, 5_000, 120_000, 400_000]))
    sim.put_object(key, data)
    for _ in range(rng.randrange(1, 9)):
        kind, details = rng.choice(KINDS)
        sim.faults.inject(
            kind, role="store", path=f"torture_{seed}\\.", skip=rng.randrange(8), times=rng.choice([1, 1, 2, 4, None]),
            **details(rng),
        )  # fmt: skip
    if rng.random() < 0.1:
        sim.faults.inject("stall", role="store", path=f"torture_{seed}\\.", skip=rng.randrange(4))
    transport = Transport(
        None, retry=Retry(attempts=4, base=0.001, cap=0.004), timeouts=Timeouts(read=0.25), random=rng
    )
    source = StoreSource(sim, transport, key, **rng.choice(VARIANTS))
    target = folder / str(seed)
    outcome = "error"
    try:
        for _ in range(3):
            try:
                done = await download(
                    source, target, transport=transport, part_size=rng.choice([20_000, 80_000, 1 << 20]),
                    connections=rng.choice([1, 3, 8]), durable=rng.random() < 0.1,
                )  # fmt: skip
            except WMEError:
                assert not target.exists()
                continue
            outcome = "whole"
            assert done.verified is True
            break
    finally:
        await transport.aclose()
    if target.exists():
        assert outcome == "whole"
        # The store may have swapped its bytes for the reversed ones, any number of times; never for a mixture.
        assert target.read_bytes() in {data, data[::-1]}
        target.unlink()
        assert not [name for name in leftovers(folder) if name.startswith(f"{seed}.part")]
    sim.store.objects.pop(key)
    return outcome


async def scripts(sim: Simulator, folder: Path, seeds: Iterator[int]) -> list[str]:
    outcomes = []

    async def lane() -> None:
        for seed in seeds:
            try:
                outcomes.append(await asyncio.wait_for(one_script(sim, folder, seed), 20))
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(lane())
    return outcomes


async def test_500_random_scripts_of_faults_end_whole_or_in_an_error(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small files with a ledger, so that what one attempt leaves is gone on with by the next.
    monkeypatch.setattr("wme_async._download.job._SMALL", 50_000)
    outcomes = await scripts(sim, tmp_path, iter(range(500)))
    assert len(outcomes) == 500
    assert outcomes.count("whole") > 150
    assert outcomes.count("error") > 20
    for request in store_requests(sim):
        assert request.header("authorization") is None


ZYGOTE = textwrap.dedent(
    """
    import asyncio, json, os, sys
    from pathlib import Path
    from wme_async._download import FileInfo, SignedUrl, download
    from wme_async._transport import Transport

    class Source:
        identity = "child"
        def __init__(self, facts): self.facts = facts
        async def head(self): return FileInfo(size=self.facts["size"], etag=self.facts["etag"], accept_ranges=True)
        async def sign(self): return SignedUrl(url=self.facts["url"])
        async def checksum(self): return self.facts["md5"]

    async def main(facts):
        transport = Transport(None)
        done = await download(Source(facts), Path(facts["target"]), transport=transport, part_size=2_000_000,
                              connections=4, max_rate=30e6, durable=facts["durable"])
        await transport.aclose()
        assert done.verified is True
        return done.resumed

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            resumed = asyncio.run(main(json.loads(line)))
            os._exit(7 if resumed else 0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
)


# aiohttp lets half a megabyte pile up before it stops reading, and a read may bring as much as a quarter on top.
PIECE = 768 * 1024


def written_and_claimed(folder: Path, data: bytes, etag: str) -> tuple[int, int]:
    """Return how many bytes a killed process had written and how many its ledger knows of, all of them true."""
    part = (folder / "x.part").read_bytes()
    if len(part) != len(data):
        return 0, 0
    ledger = Ledger(folder / "x.part.ledger", boot=boot_id())
    spans = ledger.load(identity="child", size=len(data), etag=etag)
    ledger.close()
    for start, stop in spans:
        assert part[start:stop] == data[start:stop], "the ledger claims bytes that are not in the file"
    blocks = (data[at : at + 4096] == part[at : at + 4096] for at in range(0, len(data), 4096))
    return 4096 * sum(blocks), spans.total


async def check_kills(sim: Simulator, folder: Path, kills: int, seed: int) -> None:
    """Kill downloading processes at random moments; the last one is left alone."""
    rng = random.Random(seed)
    data = rng.randbytes(12_000_000)
    found = sim.put_object(KEY, data)
    etag = f'"{found.etag}"'
    facts = {"size": len(data), "etag": etag, "md5": found.md5, "target": str(folder / "x")}
    zygote = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ZYGOTE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert zygote.stdin is not None
    assert zygote.stdout is not None

    async def start() -> int:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        line = json.dumps(facts | {"url": sim.store.presign(KEY, None), "durable": rng.random() < 0.5})
        zygote.stdin.write(line.encode() + b"\n")
        return int(await zygote.stdout.readline())

    deaths = lost = 0
    try:
        while deaths < kills:
            child = await start()
            await asyncio.sleep(rng.random() * 0.12)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if int(await zygote.stdout.readline()) >= 0:
                # It was quicker: check, and begin with a new one.
                assert (folder / "x").read_bytes() == data
                (folder / "x").unlink()
                continue
            deaths += 1
            if (folder / "x").exists():
                # It had just given the file its name, and died before it had cleared up.
                assert (folder / "x").read_bytes() == data
                (folder / "x").unlink()
            elif {"x.part", "x.part.ledger"} <= set(leftovers(folder)):
                written, claimed = written_and_claimed(folder, data, etag)
                # What had been written but not noted: at most the piece that each connection had in hand.
                assert written - claimed <= 4 * PIECE
                lost += max(0, written - claimed)
        await start()
        assert int(await zygote.stdout.readline()) in {0, 7}
        assert (folder / "x").read_bytes() == data
        assert leftovers(folder) == ["x"]
    finally:
        zygote.stdin.close()
        await zygote.wait()
    # It takes bad luck to die between the two writes, so most deaths cost nothing at all.
    assert lost <= deaths * PIECE


async def test_a_process_killed_50_times_ends_with_the_whole_file(sim: Simulator, tmp_path: Path) -> None:
    await check_kills(sim, tmp_path, 50, 1)


@pytest.mark.torture
async def test_a_process_killed_500_times_ends_with_the_whole_file(sim: Simulator, tmp_path: Path) -> None:
    await check_kills(sim, tmp_path, 500, 2)


@pytest.mark.torture
async def test_20_000_random_scripts_of_faults_end_whole_or_in_an_error(sim: Simulator, tmp_path: Path) -> None:
    await scripts(sim, tmp_path, iter(range(1000, 21_000)))
