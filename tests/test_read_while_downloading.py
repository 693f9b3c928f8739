"""A file read in order while several connections fetch it."""

import asyncio
import dataclasses
import hashlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from download_store import (
    KEY,
    MIB,
    Checksum,
    ContentReader,
    PartFile,
    PartSums,
    SignedUrl,
    Transport,
    leftovers,
    noise,
    open_content,
    our_tasks,
)

from wme_async import Budget, FileInfo
from wme_async.errors import Forbidden, IntegrityError, NotFound, ServerError, WMEError
from wme_async.simulator import Simulator

DAY = datetime(2025, 7, 16, tzinfo=UTC)


class Source:
    """An object of the simulator's store."""

    identity = KEY

    def __init__(self, sim: Simulator, transport: Transport, **info: Any) -> None:
        self.sim, self.transport, self.info = sim, transport, info
        self.signed = self.checks = 0
        self.wrong: str | None = None
        self.modified: datetime | None = None

    async def head(self) -> FileInfo:
        stored = self.sim.store.objects.get(KEY)
        if stored is None:
            raise NotFound("not there", status=404)
        facts = {"size": stored.size, "etag": f'"{stored.etag}"', "accept_ranges": True, **self.info}
        return FileInfo(**facts)

    async def sign(self) -> SignedUrl:
        self.signed += 1
        return SignedUrl(url=self.sim.store.presign(KEY, "me"), expires_at=self.transport.monotonic() + 60)

    async def checksum(self) -> Checksum | None:
        stored = self.sim.store.objects.get(KEY)
        if stored is None:
            raise NotFound("not there", status=404)
        self.checks += 1
        return Checksum(md5=self.wrong or stored.md5, modified=self.modified)


async def read(stream: ContentReader) -> bytes:
    async with stream:
        pieces = [piece async for piece in stream]
    assert not our_tasks()
    return b"".join(pieces)


WAYS: list[dict[str, Any]] = [
    {"connections": 4, "window": 400_000},
    {"connections": 1, "window": 300_000},
    {"connections": 3, "window": 1},
    {"tee": True},
    {"connections": 4, "window": 400_000, "verify": False},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 2_000_000])
async def test_the_bytes_come_in_order(
    sim: Simulator, transport: Transport, tmp_path: Path, way: dict[str, Any], size: int
) -> None:
    if way.get("window") == 1 and size > 1:
        size = 300  # a request for every byte
    data = noise(size)
    sim.put_object(KEY, data)
    source = Source(sim, transport)
    options = way | ({"tee": tmp_path / "kept"} if way.get("tee") else {})
    stream = open_content(source, transport=transport, **options)
    assert await read(stream) == data
    assert stream.position == stream.size == size
    assert stream.verified is (None if way.get("verify") is False else True)
    assert source.signed == min(1, size)
    if way.get("tee"):
        assert (tmp_path / "kept").read_bytes() == data
        assert leftovers(tmp_path) == ["kept"]


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
@pytest.mark.parametrize("fault", ["drop", "stall", "status", "short", "content_range", "expire"])
async def test_trouble_on_the_way_is_not_seen(
    sim: Simulator, transport: Transport, way: dict[str, Any], fault: str
) -> None:
    data = noise(1_500_000)
    sim.put_object(KEY, data)
    details: dict[str, Any] = {"status": {"status": 503}, "stall": {"after": 50_000}, "short": {"missing": 999}}.get(
        fault, {}
    )
    sim.faults.inject(fault, role="store", skip=0 if way["connections"] == 1 else 2, **details)
    assert await read(open_content(Source(sim, transport), transport=transport, **way)) == data


@pytest.mark.parametrize("tee", [False, True])
async def test_a_file_that_is_replaced_while_it_is_read_is_an_error(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tee: bool
) -> None:
    monkeypatch.setattr("wme_async._download.reader._TEE_PART", 200_000)
    sim.put_object(KEY, noise(3_000_000))
    sim.faults.inject("slow", role="store", rate=1_000_000, times=None)
    stream = open_content(
        Source(sim, transport), transport=transport, connections=2, window=400_000, tee=tmp_path / "x" if tee else None
    )
    async with stream:
        assert await anext(stream)
        sim.put_object(KEY, noise(2_900_000, 1))
        with pytest.raises(IntegrityError, match="replaced"):
            async for _ in stream:
                pass
    assert not our_tasks()
    assert not (tmp_path / "x").exists()


async def test_a_file_that_is_replaced_before_the_first_byte_is_simply_read(
    sim: Simulator, transport: Transport
) -> None:
    sim.put_object(KEY, noise(900_000))
    new = noise(800_000, 1)
    sim.faults.inject("swap", role="store", data=new)
    assert await read(open_content(Source(sim, transport), transport=transport, connections=1)) == new


async def test_wrong_bytes_are_told_at_the_end(sim: Simulator, transport: Transport) -> None:
    data = noise(900_000)
    sim.put_object(KEY, data)
    sim.faults.inject("corrupt", role="store", at=0)
    with pytest.raises(IntegrityError, match="MD5"):
        await read(open_content(Source(sim, transport), transport=transport))
    # Metadata that are older than the object are no reason to distrust it.
    source = Source(sim, transport)
    source.wrong = hashlib.md5(b"old").hexdigest()
    stream = open_content(source, transport=transport)
    assert await read(stream) == data
    assert stream.verified is None


@pytest.mark.parametrize(
    ("ranges", "options"),
    [
        (True, {"connections": 4, "window": 3 * MIB}),
        (True, {"connections": 1}),
        (True, {"tee": True}),
        (False, {"connections": 4, "window": 3 * MIB}),
        (False, {"tee": True}),
    ],
    ids=str,
)
async def test_a_file_of_parts_that_is_newer_than_its_metadata_is_proven_by_its_tag(
    sim: Simulator, transport: Transport, tmp_path: Path, options: dict[str, Any], ranges: bool
) -> None:
    sim.store.part_size = 5 * MIB
    data = noise(12 * MIB)
    sim.put_object(KEY, data)
    source = Source(sim, transport, last_modified=DAY, accept_ranges=ranges)
    source.wrong, source.modified = hashlib.md5(b"old").hexdigest(), DAY - timedelta(hours=1)
    options = options | ({"tee": tmp_path / "x"} if options.get("tee") else {})
    stream = open_content(source, transport=transport, **options)
    assert await read(stream) == data
    assert stream.verified is None
    assert source.signed == 1
    # Neither do other bytes pass for it, nor those that nothing proves.
    sim.faults.inject("corrupt", role="store", at=1000)
    with pytest.raises(IntegrityError, match="MD5"):
        await read(open_content(source, transport=transport, **options))
    source.info["etag"] = f'"{"0" * 32}-3"'
    sim.store.objects[KEY] = dataclasses.replace(sim.store.objects[KEY], etag=f"{'0' * 32}-3")
    with pytest.raises(IntegrityError, match="MD5"):
        await read(open_content(source, transport=transport, **options))


@pytest.mark.parametrize("stored", [DAY, None])
async def test_the_tag_is_computed_only_where_the_metadata_may_be_older(
    sim: Simulator, transport: Transport, monkeypatch: pytest.MonkeyPatch, stored: datetime | None
) -> None:
    sim.store.part_size = 5 * MIB
    data = noise(12 * MIB)
    sim.put_object(KEY, data)
    summed = 0
    update = PartSums.update

    def counted(sums: PartSums, piece: Any) -> None:
        nonlocal summed
        summed += len(piece)
        update(sums, piece)

    monkeypatch.setattr(PartSums, "update", counted)
    source = Source(sim, transport, last_modified=stored)
    source.modified = DAY
    stream = open_content(source, transport=transport)
    assert await read(stream) == data
    assert stream.verified is True
    assert summed == (0 if stored else len(data))
    assert source.checks == 1


async def test_metadata_that_goes_on_to_another_version_while_a_file_is_read_does_no_harm(
    sim: Simulator, transport: Transport
) -> None:
    sim.store.part_size = 5 * MIB
    data = noise(12 * MIB)
    md5 = sim.put_object(KEY, data).md5
    source = Source(sim, transport, last_modified=DAY)
    source.modified = DAY
    stream = open_content(source, transport=transport, connections=1)
    async with stream:
        got = await anext(stream)
        # The answer that has begun is of the version that was asked for, and goes on.
        sim.put_object(KEY, noise(12 * MIB, 1))
        got += b"".join([piece async for piece in stream])
    assert hashlib.md5(got).hexdigest() == md5
    assert stream.verified is True


@pytest.mark.parametrize("info", [{"size": None}, {"accept_ranges": False}, {"etag": None}])
async def test_a_server_without_ranges_is_read_in_one_stream(
    sim: Simulator, transport: Transport, info: dict[str, Any]
) -> None:
    data = noise(900_000)
    sim.put_object(KEY, data)
    sim.faults.inject("status", role="store", status=503)
    stream = open_content(Source(sim, transport, **info), transport=transport, window=100_000)
    assert await read(stream) == data
    assert stream.verified is True
    # Cut after the first bytes were handed out: it cannot be begun again, and must not look like the end.
    sim.faults.inject("drop", role="store", after=300_000)
    with pytest.raises(WMEError):
        await read(open_content(Source(sim, transport, **info), transport=transport, window=100_000))


@pytest.mark.parametrize("fault", ["expire", "encoding", "empty", "status", "drop"])
@pytest.mark.parametrize("tee", [False, True])
async def test_a_stream_that_nobody_has_read_of_is_begun_again(
    sim: Simulator, transport: Transport, tmp_path: Path, fault: str, tee: bool
) -> None:
    data = noise(900_000)
    sim.put_object(KEY, data)
    details: dict[str, Any] = {"after": 0} if fault == "drop" else {}
    sim.faults.inject(fault, role="store", **details)
    source = Source(sim, transport, accept_ranges=False)
    stream = open_content(source, transport=transport, tee=tmp_path / "x" if tee else None)
    assert await read(stream) == data
    assert stream.verified is True
    assert source.signed == (2 if fault == "expire" else 1)


@pytest.mark.parametrize("tee", [False, True])
async def test_a_stream_whose_address_never_works_is_given_up_soon(
    sim: Simulator, transport: Transport, tmp_path: Path, tee: bool
) -> None:
    sim.put_object(KEY, noise(900_000))
    sim.faults.inject("expire", role="store", times=None)
    source = Source(sim, transport, accept_ranges=False)
    with pytest.raises(Forbidden) as caught:
        await read(open_content(source, transport=transport, tee=tmp_path / "x" if tee else None))
    assert source.signed == 3
    assert "clock" in "".join(getattr(caught.value, "__notes__", []))


async def test_a_reader_gets_no_bytes_of_two_answers_that_nothing_proves_to_be_the_same(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(900_000))
    source = Source(sim, transport, etag=None)
    sim.faults.inject("drop", role="store", after=300_000)
    sim.faults.inject("swap", role="store", data=noise(900_000, 1), skip=1)
    async with open_content(source, transport=transport, tee=tmp_path / "x") as stream:
        assert await anext(stream)
        with pytest.raises(IntegrityError, match="replaced"):
            async for _ in stream:
                pass
    assert leftovers(tmp_path) == []
    # Who is read by nobody yet is begun again, and so is a version that has a name.
    sim.faults.clear()
    sim.faults.inject("drop", role="store", after=0)
    stream = open_content(source, transport=transport, tee=tmp_path / "x")
    assert await read(stream) == (tmp_path / "x").read_bytes() == noise(900_000, 1)
    sim.faults.inject("drop", role="store", after=300_000)
    stream = open_content(Source(sim, transport, accept_ranges=False), transport=transport, tee=tmp_path / "y")
    assert await read(stream) == (tmp_path / "y").read_bytes() == noise(900_000, 1)


@pytest.mark.parametrize("facts", [{"etag": None}, {"accept_ranges": False}, {}], ids=str)
@pytest.mark.parametrize("tee", [False, True])
async def test_a_reader_that_comes_between_two_attempts_gets_no_bytes_of_the_first(
    sim: Simulator,
    transport: Transport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    facts: dict[str, Any],
    tee: bool,
) -> None:
    data = noise(900_000, 1)
    sim.put_object(KEY, noise(900_000))
    sim.faults.inject("drop", role="store", after=300_000)
    sim.faults.inject("swap", role="store", data=data, skip=1)
    source = Source(sim, transport, **facts)
    failed, go_on, real, head, asked = asyncio.Event(), asyncio.Event(), transport.sleep, source.head, 0

    async def sleep(seconds: float) -> None:
        if facts and seconds < 0.05:  # before the next attempt; not the pace at which progress is told
            failed.set()
            await go_on.wait()
        await real(seconds)

    async def head_again() -> FileInfo:
        nonlocal asked
        asked += 1
        if asked > 1:
            failed.set()
            await go_on.wait()
        return await head()

    monkeypatch.setattr(transport, "sleep", sleep)
    monkeypatch.setattr(source, "head", head_again)
    options = {"tee": tmp_path / "x"} if tee else {"window": 10_000_000}
    stream = open_content(source, transport=transport, connections=1, **options)
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    await failed.wait()
    reading = asyncio.create_task(read(stream))
    for _ in range(3):
        await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(20):
        assert await reading == data


async def test_one_connection_needs_one_signature_however_long_the_reader_takes(
    sim: Simulator, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(9_000_000)
    sim.put_object(KEY, data)
    source = Source(sim, transport)
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr(transport, "monotonic", lambda: now)
    monkeypatch.setattr(transport, "sleep", sleep)
    budget = Budget(2)
    # What other files have had makes this one look slow, and its ranges end long before the file.
    budget.rate = 300_000.0
    async with open_content(source, transport=transport, connections=1, window=1_000_000, budget=budget) as stream:
        got = await anext(stream)
        while now < 400:  # noqa: ASYNC110  # nobody tells when
            await asyncio.sleep(0)
        got += b"".join([piece async for piece in stream])
    assert got == data
    assert source.signed == 1


async def test_a_reader_gets_the_bytes_in_order_though_an_address_could_not_be_had_at_once(
    sim: Simulator, transport: Transport
) -> None:
    data = noise(1_000_000)
    sim.put_object(KEY, data)
    source = Source(sim, transport)
    sign = source.sign

    async def failing() -> SignedUrl:
        if source.signed == 1:
            source.signed += 1
            raise ServerError("out of order", status=500)
        return await sign()

    source.sign = failing  # type: ignore[method-assign]
    sim.faults.script([None, ("slow", {"rate": 400_000}), "expire"], role="store")
    async with asyncio.timeout(20):
        assert await read(open_content(source, transport=transport, connections=2, window=400_000)) == data
    assert source.signed == 3


async def test_a_server_that_ignores_ranges_is_read_in_one_stream(sim: Simulator, transport: Transport) -> None:
    data = noise(900_000)
    sim.put_object(KEY, data)
    sim.faults.inject("ignore_range", role="store", times=None)
    assert await read(open_content(Source(sim, transport), transport=transport, connections=3, window=300_000)) == data


async def test_a_reader_that_pauses_pauses_the_connections(sim: Simulator, transport: Transport) -> None:
    data = noise(8_000_000)
    sim.put_object(KEY, data)
    stream = open_content(Source(sim, transport), transport=transport, connections=4, window=400_000)
    async with stream:
        got = bytearray(await anext(stream))
        for _ in range(40):
            await asyncio.sleep(0.01)
        asked = [request.header("range") for request in sim.requests]
        highest = max(int(text.split("-")[1]) for text in asked if text)
        assert highest < len(got) + 400_000
        async for piece in stream:
            got += piece
    assert bytes(got) == data


@pytest.mark.parametrize("way", [*WAYS[:2], {"tee": True}], ids=str)
async def test_leaving_early_closes_everything(
    sim: Simulator, transport: Transport, tmp_path: Path, way: dict[str, Any]
) -> None:
    sim.put_object(KEY, noise(6_000_000))
    sim.faults.inject("stall", role="store", after=50_000, skip=2, times=None)
    options = way | ({"tee": tmp_path / "kept", "connections": 4} if way.get("tee") else {})
    stream = open_content(Source(sim, transport), transport=transport, **options)
    async with stream:
        assert await anext(stream)
    assert transport.open_bodies == 0
    assert not our_tasks()
    with pytest.raises(RuntimeError, match="closed"):
        await anext(stream)
    await stream.aclose()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("tee", [False, True])
async def test_a_task_that_reads_what_another_one_closes_is_told_and_not_cancelled(
    sim: Simulator, transport: Transport, tmp_path: Path, tee: bool
) -> None:
    sim.put_object(KEY, noise(6_000_000))
    stall = sim.faults.inject("stall", role="store", after=0, times=None)
    stream = open_content(Source(sim, transport), transport=transport, tee=tmp_path / "x" if tee else None)
    reading = asyncio.create_task(anext(stream))
    while not stall.hits:  # noqa: ASYNC110  # nobody tells when
        await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await reading


async def test_a_reader_that_is_never_started_asks_for_nothing(sim: Simulator, transport: Transport) -> None:
    sim.put_object(KEY, noise(1000))
    source = Source(sim, transport)
    await open_content(source, transport=transport).aclose()
    assert source.signed == 0
    assert not list(sim.requests)


async def test_a_file_that_is_not_there_is_told(sim: Simulator, transport: Transport, tmp_path: Path) -> None:
    for tee in (None, tmp_path / "kept"):
        with pytest.raises(NotFound):
            await read(open_content(Source(sim, transport), transport=transport, tee=tee))
    assert not leftovers(tmp_path)


async def test_cancelling_a_reader_leaves_nothing(sim: Simulator, transport: Transport) -> None:
    sim.put_object(KEY, noise(3_000_000))
    sim.faults.inject("hang_head", role="store", times=None)

    async def reader() -> None:
        async with open_content(Source(sim, transport), transport=transport) as stream:
            async for _ in stream:
                pass

    task = asyncio.ensure_future(reader())
    async with asyncio.timeout(5):
        while not [request for request in sim.requests if request.role == "store"]:  # noqa: ASYNC110  # seen by the server
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.open_bodies == 0
    assert not our_tasks()


async def test_who_is_cancelled_while_a_reader_is_closed_stays_cancelled_and_leaves_nothing(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.put_object(KEY, noise(2_000_000))
    loop = asyncio.get_running_loop()
    hashing, leaving, go_on = asyncio.Event(), asyncio.Event(), threading.Event()
    whole = PartFile.hash_into

    def slow(part: PartFile, digest: Any, start: int, stop: int) -> None:
        loop.call_soon_threadsafe(hashing.set)
        assert go_on.wait(20)
        whole(part, digest, start, stop)

    monkeypatch.setattr(PartFile, "hash_into", slow)
    stream = open_content(Source(sim, transport), transport=transport, tee=tmp_path / "x")
    went_on = False

    async def leave_early() -> None:
        nonlocal went_on
        async with stream:
            assert await anext(stream)
            await hashing.wait()
            leaving.set()
        went_on = True

    task = asyncio.create_task(leave_early())
    await leaving.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not went_on
    assert not our_tasks()
