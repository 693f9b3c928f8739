"""New downloads: a signature, then the bytes, whose first response says size and version; no HEAD."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from download_store import leftovers

from wme_async import Client, IntegrityError, NotFound, Retry, ServerError, Timeouts
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"
MIB = 1 << 20


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(articles=2) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    retry = Retry(attempts=4, base=0.002, cap=0.01)
    async with Client(**sim.client_options(), retry=retry, timeouts=Timeouts(read=2.0)) as client:
        await client.auth.login()
        sim.requests.clear()
        yield client


def seen(sim: Simulator) -> list[str]:
    """Return the requests in short: `api HEAD download`, `api POST item`, `store GET`."""
    short = []
    for request in sim.requests:
        last = "" if request.role == "store" else " download" if "/download" in request.path else " item"
        short.append(f"{request.role} {request.method}{last}")
    return short


def large(sim: Simulator, size: int = 9 * MIB, key: str | None = None) -> bytes:
    data = bytes(bytearray(range(251)) * (size // 251 + 1))[:size]
    sim.put_object(key or f"batches/{sim.hours[-1].replace('T', '/')}/{ARCHIVE}.tar.gz", data)
    return data


async def test_a_new_batch_costs_a_signature_the_bytes_and_the_metadata_beside(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    done = await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path)
    assert sorted(seen(sim)) == ["api GET download", "api POST item", "store GET"]
    assert done.verified is True
    assert done.size == done.path.stat().st_size == done.bytes_fetched
    assert done.version == hashlib.md5(done.path.read_bytes()).hexdigest()
    assert done.etag == f'"{done.version}"'


async def test_a_new_batch_without_a_check_costs_two_requests(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path / "x", verify=False)
    assert "api HEAD download" not in seen(sim)
    assert len(seen(sim)) <= 3


@pytest.mark.parametrize("connections", [None, 1, 5])
@pytest.mark.parametrize("size", [1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 9 * MIB])
async def test_files_of_all_sizes_arrive_whole_and_once(
    sim: Simulator, wme: Client, tmp_path: Path, size: int, connections: int | None
) -> None:
    data = large(sim, size)
    done = await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path / "x", connections=connections)
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is True
    assert done.bytes_fetched < len(data) + 2 * MIB
    assert "api HEAD download" not in seen(sim)
    assert seen(sim).count("api GET download") == done.api_requests == 1
    if connections == 1 or size <= MIB:
        assert seen(sim).count("store GET") == 1
    assert leftovers(tmp_path) == ["x"]


async def test_all_ranges_but_the_first_are_pinned_to_its_version(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    large(sim)
    done = await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path / "x", connections=4)
    first, *others = [request for request in sim.requests if request.role == "store"]
    assert first.header("if-match") is None
    assert others
    assert {request.header("if-match") for request in others} == {done.etag}


async def test_a_metered_archive_that_does_not_exist_is_not_charged(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await wme.snapshots.download("enwikl_namespace_0", tmp_path)
    assert "api GET download" not in seen(sim)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
async def test_a_metered_archive_is_charged_once_and_asked_for_without_a_head(
    sim: Simulator, wme: Client, tmp_path: Path, verify: bool
) -> None:
    done = await wme.snapshots.download(ARCHIVE, tmp_path, verify=verify)
    assert seen(sim) == ["api POST item", "api GET download", "store GET"]
    assert done.verified is (True if verify else None)
    assert (await wme.auth.quota()).snapshot.used == 1


async def test_an_archive_without_metadata_is_proven_by_its_head(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    done = await wme.snapshots.download("commonswiki_namespace_6", tmp_path)
    assert "api HEAD download" in seen(sim)
    assert seen(sim).count("api GET download") == 1
    assert done.verified is None


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("status", {"status": 503}),
        ("status", {"status": 404}),
        ("expire", {}),
        ("reset", {}),
        ("drop", {"after": 100}),
        ("short", {"missing": 10, "honest": False}),
        ("long", {"extra": 10, "honest": False}),
        ("ignore_range", {}),
        ("content_range", {}),
        ("content_range", {"missing": True}),
        ("multipart", {}),
        ("encoding", {"real": True}),
        ("empty", {}),
        ("stall", {"after": 50}),
    ],
    ids=str,
)
async def test_trouble_with_the_first_bytes_is_survived(
    sim: Simulator, wme: Client, tmp_path: Path, kind: str, details: dict[str, Any]
) -> None:
    data = large(sim, 30_000)
    fault = sim.faults.inject(kind, role="store", **details)
    done = await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path / "x")
    assert fault.hits == 1
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is True
    assert done.api_requests == (2 if kind == "expire" else 1)


async def test_a_file_that_is_replaced_after_its_first_bytes_is_begun_again(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    large(sim)
    new = bytes(8 * MIB)
    sim.faults.inject("swap", role="store", skip=1, data=new)
    done = await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path / "x", connections=4)
    assert (tmp_path / "x").read_bytes() == new
    assert done.restarts == 1


async def test_damage_in_the_first_bytes_is_an_error_and_no_file(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    large(sim, 30_000)
    sim.faults.inject("corrupt", role="store", times=None)
    with pytest.raises(IntegrityError):
        await wme.batches(sim.hours[-1]).download(ARCHIVE, tmp_path / "x")
    assert not leftovers(tmp_path)


async def test_a_download_that_is_resumed_asks_for_the_version_first(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    data = large(sim)
    hour = wme.batches(sim.hours[-1])
    sim.faults.inject("drop", role="store", after=3 * MIB)
    fault = sim.faults.inject("status", role="store", status=500, skip=1, times=None)
    with pytest.raises(ServerError):
        await hour.download(ARCHIVE, tmp_path / "x", connections=1)
    fault.remove()
    sim.requests.clear()
    done = await hour.download(ARCHIVE, tmp_path / "x", connections=1)
    assert seen(sim)[0].startswith("api")
    assert "api HEAD download" in seen(sim)
    assert done.resumed >= 3 * MIB
    assert (tmp_path / "x").read_bytes() == data


async def test_a_reader_that_keeps_the_file_needs_no_head_either(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    async with wme.batches(sim.hours[-1]).content(ARCHIVE, tee=tmp_path / "x") as content:
        data = b"".join([piece async for piece in content])
    assert data == (tmp_path / "x").read_bytes()
    assert "api HEAD download" not in seen(sim)
