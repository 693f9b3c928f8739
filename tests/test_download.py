"""Downloads against the simulator's object store: every kind of trouble on the network."""

import asyncio
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from download_store import (
    KEY,
    MIB,
    SignedUrl,
    StoreSource,
    Transport,
    download,
    fetched_ranges,
    leftovers,
    noise,
    open_content,
    our_tasks,
    store_requests,
)

from wme_async import Budget, Progress
from wme_async.errors import Forbidden, IntegrityError, NotFound, QuotaExceeded, ServerError, WMEError
from wme_async.settings import Timeouts
from wme_async.simulator import Simulator


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
    # What had arrived of a broken range was not asked for again, unless the server told of another version.
    assert done.restarts == (details.get("value") == "bytes 0-0/1")
    assert done.bytes_fetched < (1 + done.restarts) * len(data) + 200_000 + 70_000
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
    with pytest.raises(IntegrityError, match="another version of the file 5 times"):
        await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=200_000)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["corrupt", "garbage"])
async def test_wrong_bytes_under_a_right_head_are_found_and_nothing_is_left(
    sim: Simulator, transport: Transport, tmp_path: Path, kind: str
) -> None:
    sim.put_object(KEY, noise(2_500_000))
    details: dict[str, Any] = {"at": 0} if kind == "corrupt" else {}
    sim.faults.inject(kind, role="store", skip=1, **details)
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


@pytest.mark.parametrize("fault", [None, "corrupt"])
async def test_a_file_of_parts_that_is_newer_than_its_metadata_is_proven_by_its_tag(
    sim: Simulator, transport: Transport, tmp_path: Path, fault: str | None
) -> None:
    sim.store.part_size = 5 * MIB
    data = noise(12 * MIB)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    source.promised = ["0" * 32, "0" * 32]
    if fault is not None:
        sim.faults.inject(fault, role="store", at=1000)
        with pytest.raises(IntegrityError, match="MD5"):
            await download(source, tmp_path / "x", transport=transport)
        assert leftovers(tmp_path) == []
        return
    done = await download(source, tmp_path / "x", transport=transport)
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is None
    assert source.signed == 1


async def test_metadata_that_vanishes_is_no_excuse_for_wrong_bytes(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(2_500_000))
    source = StoreSource(sim, transport)
    source.promised = [sim.store.objects[KEY].md5, None]
    sim.faults.inject("corrupt", role="store", at=0)
    with pytest.raises(IntegrityError, match="MD5"):
        await download(source, tmp_path / "x", transport=transport)
    assert leftovers(tmp_path) == []
    # Bytes that are right need no metadata to be so.
    source.promised = ["0" * 32, None]
    assert (await download(source, tmp_path / "x", transport=transport)).verified is None


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


async def test_numbers_out_of_range_raise_before_any_request(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    source = StoreSource(sim, transport)
    bad: list[dict[str, Any]] = [
        {"connections": 0},
        {"part_size": 0},
        {"max_rate": 0},
        {"min_rate": -1.0},
        {"max_rate": 5.0, "budget": Budget()},
    ]
    for options in bad:
        with pytest.raises(ValueError, match=r"connections|part_size|rate"):
            await download(source, tmp_path / "x", transport=transport, **options)
    with pytest.raises(ValueError, match="window"):
        open_content(source, transport=transport, window=0)
    with pytest.raises(ValueError, match="budget"):
        open_content(source, transport=transport, max_rate=1.0, budget=Budget())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connections": "4"}, "connections must be a whole number, not '4'"),
        ({"connections": 1.5}, "connections must be a whole number"),
        ({"min_rate": "1000"}, "min_rate must be a number"),
        ({"max_rate": "1000"}, "max_rate must be a number"),
        ({"budget": 5}, r"budget must be Budget\(...\)"),
        ({"progress": "print"}, "progress must be a function"),
    ],
)
async def test_options_of_another_type_are_refused_before_anything_is_sent(
    sim: Simulator, transport: Transport, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    source = StoreSource(sim, transport)
    with pytest.raises(TypeError, match=words):
        await download(source, tmp_path / "x", transport=transport, **options)
    if not {"min_rate", "progress"} & options.keys():
        with pytest.raises(TypeError, match=words):
            open_content(source, transport=transport, **options)
    assert not sim.requests.select()


@pytest.mark.parametrize("number", ["8", None, True, 2.5])
def test_a_budget_counts_in_whole_connections(number: Any) -> None:
    with pytest.raises(TypeError, match="connections must be a whole number"):
        Budget(number)


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
    sim.faults.inject("slow", role="store", rate=6_000_000, skip=1, times=None)
    await download(
        StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=1_000_000, connections=4,
    )  # fmt: skip
    assert (tmp_path / "x").read_bytes() == data
    ranges = [tuple(map(int, text[6:].split("-"))) for text in fetched_ranges(sim)]
    begin, end = ranges[0]
    assert any(begin < start < stop == end for start, stop in ranges)


async def test_a_server_that_wants_less_gets_fewer_connections(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    sim.put_object(KEY, noise(3_000_000))
    sim.faults.inject("status", role="store", status=503, times=2, skip=2)
    budget = Budget(8, start=8)
    await download(StoreSource(sim, transport), tmp_path / "x", transport=transport, budget=budget, part_size=200_000)
    assert budget.tuner.allowed == 4


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


async def test_a_connection_that_stands_still_is_relieved_long_before_it_times_out(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wme_async._download.range_fetcher._PATIENCE", 0.4)
    data = noise(3_000_000)
    sim.put_object(KEY, data)
    sim.faults.inject("stall", role="store", after=1000, skip=1)
    transport = Transport(None, timeouts=Timeouts(read=1000.0))  # longer than a test may take
    await download(
        StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=500_000, connections=3,
    )  # fmt: skip
    assert (tmp_path / "x").read_bytes() == data
    assert transport.open_bodies == 0
    assert not our_tasks()
    await transport.aclose()


async def test_a_range_below_min_rate_is_asked_for_again_from_its_last_byte(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wme_async._download.range_fetcher._PATIENCE", 0.7)
    data = noise(8_000_000)
    sim.put_object(KEY, data)
    sim.faults.inject("slow", role="store", rate=100_000, times=1)
    sim.faults.inject("slow", role="store", rate=2_000_000, skip=1, times=None)
    await download(
        StoreSource(sim, transport), tmp_path / "x", transport=transport, part_size=600_000, connections=3,
        min_rate=500_000,
    )  # fmt: skip
    assert (tmp_path / "x").read_bytes() == data
    ranges = sorted(tuple(map(int, text[6:].split("-"))) for text in fetched_ranges(sim))
    # One began anew in its middle, with the same end, although most of the file was still to be fetched.
    assert any(begin < start < stop == end for begin, end in ranges for start, stop in ranges)


async def test_whoever_is_cancelled_while_the_unfinished_file_is_opened_leaves_no_lock(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(3 * MIB)
    sim.put_object(KEY, data)
    opening, proceed = threading.Event(), threading.Event()
    system_open = os.open

    def slow_open(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith("/a.part"):
            opening.set()
            proceed.wait(10)
        return system_open(path, *args, **options)

    monkeypatch.setattr(os, "open", slow_open)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(download(StoreSource(sim, transport), tmp_path / "a", transport=transport))
        await asyncio.to_thread(opening.wait, 10)
        task.cancel()
        proceed.set()
    assert task.cancelled()
    await download(StoreSource(sim, transport), tmp_path / "a", transport=transport)
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.parametrize("way", ["ranges", "stream", "read", "read in one stream"])
async def test_an_address_that_cannot_be_had_is_asked_for_no_more_often_than_any_request(
    sim: Simulator, transport: Transport, tmp_path: Path, way: str
) -> None:
    sim.put_object(KEY, noise(9_000_000))
    source = StoreSource(sim, transport)
    if "stream" in way:
        source.info["etag"] = None

    async def failing() -> SignedUrl:
        source.signed += 1
        # Whoever waits for the same answer is there by then.
        for _ in range(10):
            await asyncio.sleep(0)
        raise ServerError("out of order", status=500)

    source.sign = failing  # type: ignore[method-assign]  # the transport has tried it as often as it may
    with pytest.raises(ServerError, match="out of order"):
        if "read" in way:
            async with open_content(source, transport=transport) as stream:
                await anext(stream)
        else:
            await download(source, tmp_path / "x", transport=transport)
    assert source.signed == 1
    assert store_requests(sim) == []
    assert leftovers(tmp_path) == []


class Signatures:
    """Lets a source sign, or fail, in the order that a test wants."""

    def __init__(self, source: StoreSource, *failures: WMEError | None) -> None:
        self.failures = list(failures)
        self.source, self.sign = source, source.sign
        source.sign = self  # type: ignore[method-assign]

    async def __call__(self) -> SignedUrl:
        failure = self.failures.pop(0) if self.failures else None
        if failure is None:
            return await self.sign()
        self.source.signed += 1
        raise failure


@pytest.mark.parametrize("again", [None, "out of order for long"])
async def test_what_is_under_way_goes_on_while_no_address_can_be_had(
    sim: Simulator, transport: Transport, tmp_path: Path, again: str | None
) -> None:
    data = noise(3_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    # The second range is refused while the first has hardly begun; bytes are still to come by the time that shows.
    sim.faults.script([("slow", {"rate": 3_000_000}), "expire"], role="store")
    last = ServerError(again, status=500) if again else None
    Signatures(source, None, ServerError("out of order", status=500), last)
    fetch = download(source, tmp_path / "x", transport=transport, part_size=1_500_000, connections=2)
    if again is None:
        done = await fetch
        assert (tmp_path / "x").read_bytes() == data
        assert done.verified is True
        assert source.signed == done.api_requests == 3
    else:
        with pytest.raises(ServerError, match="for long"):
            await fetch
        assert source.signed == 3, "it is asked for once more, and not again and again"
        done = await download(source, tmp_path / "x", transport=transport)
        assert done.resumed >= 1_400_000
        assert done.verified is True
    assert len(store_requests(sim)) == 3


async def test_a_range_that_may_not_be_asked_for_ends_the_download_at_once_and_leaves_what_came(
    sim: Simulator, transport: Transport, tmp_path: Path
) -> None:
    data = noise(9_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    sim.faults.script([None, ("stall", {"after": 1_000_000}), "expire"], role="store")
    Signatures(source, None, Forbidden("not for you", status=403))
    with pytest.raises(Forbidden, match="not for you"):
        await download(source, tmp_path / "x", transport=transport, part_size=3_000_000, connections=2)
    assert source.signed == 2
    assert leftovers(tmp_path) == ["x.part", "x.part.ledger"]
    assert (await download(source, tmp_path / "x", transport=transport)).resumed >= 2_900_000


@pytest.mark.parametrize(
    "failure", [QuotaExceeded("used up", pool="snapshot"), ServerError("out of order", status=500)], ids=str
)
async def test_a_file_whose_bytes_are_all_on_their_way_needs_no_address_to_be_whole(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: WMEError
) -> None:
    data = noise(4_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    # One connection is much slower than the other, which would take bytes over, for the price of another signature.
    sim.faults.script([("slow", {"rate": 4_000_000}), ("slow", {"rate": 1_300_000})], role="store")
    signatures = Signatures(source, None, failure)
    real, source.lifetime = transport.monotonic, 20.0
    monkeypatch.setattr(transport, "monotonic", lambda: 100 * real())
    done = await download(source, tmp_path / "x", transport=transport, part_size=2_000_000, connections=2)
    assert (tmp_path / "x").read_bytes() == data
    assert done.verified is True
    assert signatures.failures == [], "nobody wanted to take anything over"
    # On a slow machine there is time for one more request after the one that failed.
    assert source.signed <= 3


async def test_a_request_for_an_address_is_not_given_up_for_being_slow(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is metered: who gives it up and asks again pays twice."""
    monkeypatch.setattr("wme_async._download.range_fetcher._PATIENCE", 0.4)
    data = noise(6_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    # One connection brings bytes all the while; the other one is refused, and its next address takes long.
    sim.faults.script([("slow", {"rate": 1_500_000}), "expire"], role="store")
    sign, given_up = source.sign, 0

    async def slow_sign() -> SignedUrl:
        nonlocal given_up
        try:
            if source.signed:
                await asyncio.sleep(1.5)
        except asyncio.CancelledError:
            given_up += 1
            raise
        finally:
            signed = await sign()
        return signed

    monkeypatch.setattr(source, "sign", slow_sign)
    done = await download(source, tmp_path / "x", transport=transport, part_size=3_000_000, connections=2)
    assert (tmp_path / "x").read_bytes() == data
    assert given_up == 0
    assert done.api_requests == source.signed == 2


async def test_bytes_are_taken_over_once_there_is_an_address_to_ask_for_them_with(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(4_000_000)
    sim.put_object(KEY, data)
    source = StoreSource(sim, transport)
    sim.faults.script([("slow", {"rate": 4_000_000}), ("slow", {"rate": 800_000})], role="store")
    real, source.lifetime = transport.monotonic, 20.0
    monkeypatch.setattr(transport, "monotonic", lambda: 100 * real())
    done = await download(source, tmp_path / "x", transport=transport, part_size=2_000_000, connections=2)
    assert done.verified is True
    assert source.signed == 2
    assert len(store_requests(sim)) >= 3


@pytest.mark.posix
async def test_a_cancelled_download_does_not_go_on_hashing_what_is_there(
    sim: Simulator, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(9_000_000)
    sim.put_object(KEY, data)
    (tmp_path / "x").write_bytes(data)
    loop = asyncio.get_running_loop()
    hashing, go_on, blocks, real = asyncio.Event(), threading.Event(), 0, os.preadv

    def slow(*rest: Any) -> int:
        nonlocal blocks
        blocks += 1
        loop.call_soon_threadsafe(hashing.set)
        assert go_on.wait(20)
        return real(*rest)

    monkeypatch.setattr(os, "preadv", slow)
    task = asyncio.create_task(
        download(StoreSource(sim, transport), tmp_path / "x", transport=transport, if_changed=True)
    )
    await hashing.wait()
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert blocks == 1
