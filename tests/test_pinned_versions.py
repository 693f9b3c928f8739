"""Reading one version of an archive and no other: `read(md5=...)`."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wme_async import Client, Replaced, Retry
from wme_async.simulator import Simulator, build_archive

SNAPSHOT = "simplewiki_namespace_0"
KEY = f"chunks/{SNAPSHOT}/chunk_0.tar.gz"


class Page(msgspec.Struct):
    identifier: int


def archive(*numbers: int) -> bytes:
    lines = [json.dumps({"identifier": number, "name": "x" * 50}).encode() + b"\n" for number in numbers]
    return build_archive([("chunk_0.ndjson", lines)])


@pytest.fixture(params=[100_000_000, 100], ids=["one part", "several parts"])
async def sim(request: pytest.FixtureRequest) -> AsyncIterator[Simulator]:
    async with Simulator(articles=2, part_size=request.param) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as client:
        yield client


@pytest.fixture
def stored(sim: Simulator) -> Any:
    return sim.put_object(KEY, archive(1, 2, 3))


async def numbers(wme: Client, **options: Any) -> list[int]:
    async with wme.snapshots.chunks(SNAPSHOT).read(0, type=Page, **options) as pages:
        return [page.identifier async for page in pages]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def metered(sim: Simulator) -> int:
    return sim.requests.count("api", method="GET", path="/chunks/.*/download")


@pytest.mark.parametrize("tee", [False, True])
async def test_the_version_asked_for_is_read_for_one_metered_request(
    sim: Simulator, wme: Client, stored: Any, tmp_path: Path, tee: bool
) -> None:
    options = {"tee": tmp_path / "kept.tar.gz"} if tee else {}
    assert await numbers(wme, md5=stored.md5.upper(), **options) == [1, 2, 3]
    assert metered(sim) == 1
    assert not tee or (tmp_path / "kept.tar.gz").read_bytes() == archive(1, 2, 3)


@pytest.mark.parametrize("tee", [False, True])
async def test_another_version_is_an_error_before_anything_is_metered(
    sim: Simulator, wme: Client, stored: Any, tmp_path: Path, tee: bool
) -> None:
    newer = sim.put_object(KEY, archive(4, 5))
    options = {"tee": tmp_path / "kept.tar.gz"} if tee else {}
    with pytest.raises(Replaced, match=f"{newer.md5} now, not {stored.md5}") as caught:
        await numbers(wme, md5=stored.md5, **options)
    assert (caught.value.expected, caught.value.got) == (stored.md5, newer.md5)
    assert metered(sim) == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("tee", [False, True])
async def test_bytes_that_are_newer_than_their_metadata_are_an_error(
    sim: Simulator, wme: Client, stored: Any, tmp_path: Path, tee: bool
) -> None:
    newer = sim.put_object(KEY, archive(4, 5), update_metadata=False)
    options = {"tee": tmp_path / "kept.tar.gz"} if tee else {}
    with pytest.raises(Replaced) as caught:
        await numbers(wme, md5=stored.md5, **options)
    assert (caught.value.expected, caught.value.got) == (stored.md5, newer.md5)
    # The ETag of several parts says nothing, so that only the end of the bytes proves it.
    assert metered(sim) == (1 if "-" in newer.etag else 0)
    assert not (tmp_path / "kept.tar.gz").exists()


async def test_an_archive_that_is_replaced_between_the_check_and_the_bytes_is_an_error(
    sim: Simulator, wme: Client, stored: Any
) -> None:
    sim.faults.inject("swap", role="store", data=archive(4, 5))
    with pytest.raises(Replaced):
        await numbers(wme, md5=stored.md5)


@pytest.mark.parametrize("md5", ["", "abc", "g" * 32, "0" * 33])
async def test_text_that_is_not_an_md5_is_misuse(wme: Client, md5: str) -> None:
    with pytest.raises(ValueError, match="md5"):
        wme.snapshots.chunks(SNAPSHOT).read(0, md5=md5)


async def test_a_number_is_not_an_md5(wme: Client) -> None:
    number: Any = 5
    with pytest.raises(TypeError, match="md5 must be text"):
        wme.snapshots.chunks(SNAPSHOT).read(0, md5=number)
