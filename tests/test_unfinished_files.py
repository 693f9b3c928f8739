"""Unfinished downloads that others damage, cut, replace or name too long: the result is whole, or an error."""

import errno
import itertools
import os
import random
import stat
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from download_store import (
    KEY,
    PartFile,
    Spans,
    StoreSource,
    Transport,
    clean,
    download,
    leftovers,
    noise,
    store_requests,
)

from wme_async import Client, FileInfo, IntegrityError, NotFound, Progress, Retry, VersionConflict
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"
SIZE = 3_000_000
DATA = noise(SIZE)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator() as running:
        running.put_object(KEY, DATA)
        yield running


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    transport = Transport(None, retry=Retry(attempts=5, base=0.002, cap=0.01), random=random.Random(1))
    yield transport
    await transport.aclose()


async def interrupt(sim: Simulator, transport: Transport, target: Path) -> None:
    """Leave an unfinished file of which about half is there."""
    sim.faults.inject("status", role="store", status=404, skip=4, times=None)
    with pytest.raises(NotFound):
        await download(StoreSource(sim, transport), target, transport=transport, part_size=400_000, connections=2)
    clean(sim)


def overwrite(path: Path, data: bytes) -> None:
    """Change a file in place, so that it stays the same file."""
    with path.open("r+b") as file:
        file.truncate(len(data))
        file.write(data)


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


class Once:
    """A progress hook that acts once, when some bytes are there."""

    def __init__(self, action: Callable[[], object], *, after: int = 1) -> None:
        self.action, self.after, self.done = action, after, False

    def __call__(self, progress: Progress) -> None:
        if progress.done >= self.after and not self.done and progress.done != progress.total:
            self.done = True
            self.action()


# --- the ledger


async def test_a_damaged_ledger_claims_only_bytes_that_are_there(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    await interrupt(sim, transport, tmp_path / "x")
    ledger = tmp_path / "x.part.ledger"
    content, part = ledger.read_bytes(), (tmp_path / "x.part").read_bytes()
    etag = f'"{sim.store.objects[KEY].etag}"'

    def claimed(damaged: bytes) -> Spans:
        overwrite(tmp_path / "x.part", part)
        overwrite(ledger, damaged)
        unfinished = PartFile(tmp_path / "x", durable=False)
        try:
            return unfinished.resume(identity=KEY, size=SIZE, etag=etag, keep=True).written
        finally:
            unfinished.close()
            if not ledger.exists():  # nothing was believed: the pair is created again
                (tmp_path / "x.part").touch()
                ledger.touch()

    whole = claimed(content)
    assert 0 < whole.total < SIZE
    rng = random.Random(7)
    used = [index for index, byte in enumerate(content) if byte]
    for attempt in range(120):
        if attempt % 3 == 0:
            damaged = content[: rng.randrange(len(content))]
        elif attempt % 3 == 1:
            damaged = flipped(content, rng)
        else:
            changed = bytearray(content)
            changed[rng.choice(used)] ^= 1 << rng.randrange(8)
            damaged = bytes(changed)
        for start, stop in claimed(damaged):
            assert part[start:stop] == DATA[start:stop]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("seed", range(5))
async def test_a_damaged_ledger_never_costs_more_than_what_it_told_of(
    sim: Simulator, transport: Transport, tmp_path: Path, verify: bool, seed: int
) -> None:
    await interrupt(sim, transport, tmp_path / "x")
    ledger, rng = tmp_path / "x.part.ledger", random.Random(seed)
    content = bytearray(ledger.read_bytes())
    for index in [index for index, byte in enumerate(content) if byte and rng.random() < 0.05]:
        content[index] ^= 1 << rng.randrange(8)
    overwrite(ledger, bytes(content))
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, verify=verify)
    assert (tmp_path / "x").read_bytes() == DATA
    assert done.restarts == 0
    assert leftovers(tmp_path) == ["x"]


async def test_a_ledger_of_an_earlier_version_means_a_fresh_start(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    await interrupt(sim, transport, tmp_path / "x")
    content = bytearray((tmp_path / "x.part.ledger").read_bytes())
    content[:4096] = struct.pack("<QQ", 0, SIZE).ljust(4096, b"\0")
    overwrite(tmp_path / "x.part.ledger", bytes(content).replace(b"WME2", b"WME1"))
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, verify=False)
    assert done.resumed == 0
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("call", ["fsync", pytest.param("pwrite", marks=pytest.mark.posix), "open"])
async def test_an_error_of_the_ledger_names_it(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, ledger = getattr(os, call), tmp_path / "x.part.ledger"

    def failing(place: Any, *rest: Any) -> Any:
        path = place if call == "open" else Path(f"/proc/self/fd/{place}").readlink()
        if path == ledger:
            raise OSError(errno.EIO, "broken")
        return real(place, *rest)

    source = StoreSource(sim, transport)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match="ledger") as caught:
            await download(source, tmp_path / "x", transport=transport)
    assert caught.value.filename == str(ledger)
    assert source.signed == 0
    assert (await download(source, tmp_path / "x", transport=transport)).verified


# --- the unfinished file


@pytest.mark.parametrize("seed", range(4))
async def test_damage_in_what_an_earlier_call_left_is_fetched_again(
    sim: Simulator, transport: Transport, tmp_path: Path, seed: int
) -> None:
    await interrupt(sim, transport, tmp_path / "x")
    part = tmp_path / "x.part"
    content = bytearray(part.read_bytes())
    content[random.Random(seed).randrange(400_000)] ^= 1 << seed
    overwrite(part, bytes(content))
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport)
    assert done.verified
    assert done.restarts == 1
    assert (tmp_path / "x").read_bytes() == DATA
    assert leftovers(tmp_path) == ["x"]


@pytest.mark.parametrize("way", ["moved in", "written over", "cut", "longer"])
async def test_a_foreign_file_in_place_of_an_unfinished_one_means_a_fresh_start(
    sim: Simulator, transport: Transport, tmp_path: Path, way: str
) -> None:
    await interrupt(sim, transport, tmp_path / "x")
    part = tmp_path / "x.part"
    if way == "moved in":
        (tmp_path / "y").write_bytes(bytes(SIZE))
        os.utime(tmp_path / "y", (1_000_000_000, 1_000_000_000))
        (tmp_path / "y").replace(part)
    elif way == "written over":
        overwrite(part, bytes(SIZE))
        later = (tmp_path / "x.part.ledger").stat().st_mtime + 60
        os.utime(part, (later, later))
    else:
        os.truncate(part, SIZE - 1 if way == "cut" else SIZE + 1)
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, verify=False)
    assert done.resumed == 0
    assert (tmp_path / "x").read_bytes() == DATA


def replace_by_zeros(part: Path) -> None:
    (part.parent / "zeros").write_bytes(bytes(SIZE))
    (part.parent / "zeros").replace(part)


def cut_and_extend(part: Path) -> None:
    os.truncate(part, 0)
    os.truncate(part, SIZE)


def cut_slightly(part: Path) -> None:
    os.truncate(part, SIZE - 1)


def cut_all(part: Path) -> None:
    os.truncate(part, 0)


@pytest.mark.parametrize(
    ("damage", "verify", "ranges"),
    [
        *itertools.product([replace_by_zeros, Path.unlink, cut_slightly, cut_all], [True, False], [True, False]),
        (cut_and_extend, True, True),  # zeros in the place of bytes are found by a checksum alone
    ],
)
async def test_an_unfinished_file_that_others_change_never_gets_its_name(
    sim: Simulator,
    transport: Transport,
    tmp_path: Path,
    damage: Callable[[Path], None],
    verify: bool,
    ranges: bool,
) -> None:
    sim.faults.inject("slow", role="store", rate=10_000_000, times=None)
    source = StoreSource(sim, transport) if ranges else StoreSource(sim, transport, etag=None)
    hook = Once(lambda: damage(tmp_path / "x.part"), after=500_000)
    try:
        await download(source, tmp_path / "x", transport=transport, verify=verify, progress=hook, connections=1)
    except IntegrityError:
        assert not (tmp_path / "x").exists()
    assert hook.done
    clean(sim)
    again = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, verify=verify)
    assert (tmp_path / "x").read_bytes() == DATA
    assert again.path == tmp_path / "x"


async def test_a_copy_beside_a_reader_never_gets_the_name_of_a_foreign_file(tmp_path: Path) -> None:
    async with (
        Simulator(archive_bytes={ARCHIVE: 1_500_000}, article_size=200_000) as sim,
        Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as wme,
    ):
        target = tmp_path / "x"
        replaced = False
        with pytest.raises(IntegrityError, match="replaced"):
            async with wme.batches(sim.hours[-2]).content(ARCHIVE, tee=target) as content:
                async for _ in content:
                    if not replaced and (tmp_path / "x.part").exists():
                        replace_by_zeros(tmp_path / "x.part")
                        replaced = True
        assert not target.exists()


class Overtaken(StoreSource):
    """A source whose file another download brings while it is asked for its version."""

    target: Path
    content: bytes

    async def head(self) -> FileInfo:
        info = await super().head()
        self.target.write_bytes(self.content)
        return info


@pytest.mark.parametrize("same", [True, False])
async def test_a_file_that_another_download_has_finished_meanwhile_is_not_replaced(
    sim: Simulator, transport: Transport, tmp_path: Path, same: bool
) -> None:
    source = Overtaken(sim, transport)
    source.target, source.content = tmp_path / "x", DATA if same else noise(SIZE, 2)
    if same:
        done = await download(source, tmp_path / "x", transport=transport, overwrite=False)
        assert done.unchanged
    else:
        with pytest.raises(VersionConflict):
            await download(source, tmp_path / "x", transport=transport, overwrite=False)
    assert (tmp_path / "x").read_bytes() == source.content
    assert source.signed == 0
    assert leftovers(tmp_path) == ["x"]


# --- names


async def test_names_of_every_length_that_the_file_system_allows_are_downloaded_and_resumed(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    for length in (limit - 15, limit - 11, limit - 5, limit):
        target = tmp_path / ("n" * length)
        await interrupt(sim, transport, target)
        done = await download(StoreSource(sim, transport), target, transport=transport)
        assert done.resumed > 0
        assert target.read_bytes() == DATA
        target.unlink()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("limit", [None, pytest.param(143, marks=pytest.mark.posix)])
async def test_a_name_that_is_too_long_is_told_before_anything_is_requested(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    if limit is not None:
        monkeypatch.setattr(os, "pathconf", lambda *_: limit)
    target = tmp_path / ("n" * ((limit or os.pathconf(tmp_path, "PC_NAME_MAX")) + 1))
    source = StoreSource(sim, transport)
    for _ in range(2):
        with pytest.raises(OSError, match="use a shorter one") as caught:
            await download(source, target, transport=transport)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert caught.value.filename == str(target)
    assert source.heads == source.signed == 0
    assert leftovers(tmp_path) == []


async def test_a_file_system_that_allows_less_than_it_says_gets_shorter_names(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def strict(path: Any, *rest: Any) -> int:
        if len(os.fsencode(Path(path).name)) > 143:
            raise OSError(errno.ENAMETOOLONG, "too long")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", strict)
    await download(StoreSource(sim, transport), tmp_path / ("n" * 140), transport=transport)
    assert leftovers(tmp_path) == ["n" * 140]


async def test_the_lock_is_released_whatever_fails_while_closing(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors()

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "broken")

    sim.faults.inject("status", role="store", status=404, times=None)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", broken)
        patch.setattr(Path, "exists", broken)
        with pytest.raises(OSError, match="broken"):
            PartFile(tmp_path / "x", durable=False).close()
    assert open_descriptors() == before
    clean(sim)
    assert (await download(StoreSource(sim, transport), tmp_path / "x", transport=transport)).verified


# --- links and limits


@pytest.mark.parametrize("exists", [True, False])
async def test_a_symbolic_link_as_target_is_followed_and_stays(
    sim: Simulator, transport: Transport, tmp_path: Path, exists: bool
) -> None:
    (tmp_path / "big").mkdir()
    if exists:
        (tmp_path / "big" / "real").write_bytes(b"old")
    (tmp_path / "x").symlink_to("big/real")
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport)
    assert done.path == tmp_path / "x"
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "big" / "real").read_bytes() == DATA
    assert leftovers(tmp_path) == ["big", "x"]
    assert leftovers(tmp_path / "big") == ["real"]
    again = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, if_changed=True)
    assert again.unchanged


async def test_a_link_into_a_missing_folder_is_told_before_anything_is_requested(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    (tmp_path / "x").symlink_to("missing/real")
    source = StoreSource(sim, transport)
    with pytest.raises(FileNotFoundError, match="does not exist") as caught:
        await download(source, tmp_path / "x", transport=transport)
    assert caught.value.filename == str(tmp_path / "missing")
    assert source.heads == 0


async def test_a_file_larger_than_the_file_system_allows_is_told_before_a_metered_request(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.ftruncate

    def small(descriptor: int, size: int) -> None:
        if size > 1_000_000:
            raise OSError(errno.EFBIG, "too large")
        real(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", small)
    source = StoreSource(sim, transport)
    with pytest.raises(OSError, match="3,000,000 bytes") as caught:
        await download(source, tmp_path / "x", transport=transport)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "x.part")
    assert source.signed == 0
    assert store_requests(sim) == []
    assert leftovers(tmp_path) == []


async def test_a_disk_that_fails_at_the_end_is_told_with_the_path(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.fstat(descriptor).st_size == SIZE:
            raise OSError(errno.EIO, "broken")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="did not reach the disk") as caught:
            await download(StoreSource(sim, transport), tmp_path / "x", transport=transport)
    assert caught.value.filename == str(tmp_path / "x.part")
    done = await download(StoreSource(sim, transport), tmp_path / "x", transport=transport)
    assert done.resumed == SIZE
