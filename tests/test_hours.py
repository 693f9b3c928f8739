"""The hourly feed: every hour once and in order, resumed from positions, with gaps for what is gone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wme_async import (
    Client,
    DataError,
    FileOffsets,
    Forbidden,
    HourGap,
    MemoryOffsets,
    Position,
    Retry,
    SQLiteOffsets,
    StreamError,
)
from wme_async.simulator import Simulator

NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
NEWEST = datetime(2026, 7, 15, 11, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLL = 0.005


def number(hour: datetime) -> int:
    return int(hour.timestamp() // 3600)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(start=NOON, articles=2) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    async with Client(**sim.client_options(), retry=Retry(attempts=2, base=0.001, cap=0.002)) as client:
        await client.auth.login()
        yield client


def lists(sim: Simulator) -> int:
    return sum(request.role == "api" and request.method == "POST" for request in sim.requests)


async def take(hours: Any, count: int) -> list[datetime]:
    async with asyncio.timeout(20):
        return [(await anext(hours)).hour for _ in range(count)]


async def test_it_begins_with_the_newest_hour_and_goes_on_as_lists_appear(sim: Simulator, wme: Client) -> None:
    hours = wme.hours(poll=POLL)
    assert await take(hours, 1) == [NEWEST]
    waiting = asyncio.create_task(take(hours, 2))
    await asyncio.sleep(0)
    for _ in range(2):
        sim.clock.advance(3600)
    assert await waiting == [NEWEST + HOUR, NEWEST + 2 * HOUR]


async def test_missed_hours_come_first_and_in_order(sim: Simulator, wme: Client) -> None:
    hours = wme.hours(since="-24h", poll=POLL)
    begin = NOON.replace(minute=0) - 24 * HOUR
    assert await take(hours, 24) == [begin + count * HOUR for count in range(24)]


@pytest.mark.parametrize("since", ["2026-07-15T09", NOON - 3 * HOUR, "-3h"])
async def test_since_is_an_hour_in_any_form(wme: Client, since: Any) -> None:
    assert await take(wme.hours(since, poll=POLL), 3) == [NEWEST - 2 * HOUR, NEWEST - HOUR, NEWEST]


async def test_each_hour_can_be_listed_and_synced(wme: Client, tmp_path: Path) -> None:
    async for hour in wme.hours(since="-2h", poll=POLL):
        report = await hour.sync(tmp_path, filters={"in_language.identifier": "en"})
        assert report.complete
        if hour.hour == NEWEST:
            break
    assert sorted(path.name for path in (tmp_path / "batches/2026-07-15").iterdir()) == ["10", "11"]


@pytest.mark.parametrize("kind", ["memory", "file", "sqlite"])
async def test_an_hour_is_committed_when_the_next_one_is_requested(wme: Client, tmp_path: Path, kind: str) -> None:
    stores: dict[str, Callable[[], Any]] = {
        "memory": MemoryOffsets,
        "file": lambda: FileOffsets(tmp_path / "positions"),
        "sqlite": lambda: SQLiteOffsets(tmp_path / "positions.db"),
    }
    offsets = stores[kind]()
    async with wme.hours(since="-5h", offsets=offsets, poll=POLL) as hours:
        assert await take(hours, 1) == [NEWEST - 4 * HOUR]
        assert not await offsets.load("default/batches")
        assert await take(hours, 1) == [NEWEST - 3 * HOUR]
        position = (await offsets.load("default/batches"))[0]
        assert position == Position(number(NEWEST - 4 * HOUR), NEWEST - 4 * HOUR)
    # The one that was under way comes again; what `since` says is for readers without a position.
    async with wme.hours(since="-1h", offsets=offsets, poll=POLL) as hours:
        assert await take(hours, 2) == [NEWEST - 3 * HOUR, NEWEST - 2 * HOUR]
        await hours.commit()
        await hours.commit()
    async with wme.hours(offsets=offsets, poll=POLL) as hours:
        assert await take(hours, 1) == [NEWEST - HOUR]


async def test_two_readers_of_one_name_are_refused_and_of_two_names_are_not(wme: Client, tmp_path: Path) -> None:
    offsets = SQLiteOffsets(tmp_path / "positions.db")
    async with wme.hours(offsets=offsets, poll=POLL) as first, wme.hours(offsets=offsets, poll=POLL) as second:
        await take(first, 1)
        with pytest.raises(StreamError, match="in use"):
            await take(second, 1)
        assert await take(wme.hours(offsets=offsets, name="other", poll=POLL), 1) == [NEWEST]
    assert await take(wme.hours(offsets=offsets, poll=POLL), 1) == [NEWEST]


async def test_hours_that_are_gone_are_gaps_before_what_is_there(wme: Client) -> None:
    last = NEWEST - 60 * HOUR
    offsets = MemoryOffsets({"default/batches": {0: Position(number(last), last)}})
    gaps: list[HourGap] = []
    hours = wme.hours(offsets=offsets, on_gap=gaps.append, poll=POLL)
    [first] = await take(hours, 1)
    assert [gap.hour for gap in gaps] == [last + count * HOUR for count in range(1, len(gaps) + 1)]
    assert first == last + (len(gaps) + 1) * HOUR
    assert {gap.reason for gap in gaps} == {"retention"}
    # All that the service has is there.
    assert first <= NOON - 48 * HOUR
    # The gaps are behind it once the next hour is requested.
    await take(hours, 1)
    assert (await offsets.load("default/batches"))[0].offset == number(first)


async def test_a_position_of_last_year_costs_few_requests(sim: Simulator, wme: Client) -> None:
    last = NEWEST - 365 * 24 * HOUR
    offsets = MemoryOffsets({"default/batches": {0: Position(number(last), last)}})
    gaps: list[HourGap] = []

    async def note(gap: HourGap) -> None:
        gaps.append(gap)

    sim.requests.clear()
    await take(wme.hours(offsets=offsets, on_gap=note, poll=POLL), 1)
    assert len(gaps) > 360 * 24
    assert lists(sim) < 40


async def test_a_reader_that_begins_centuries_ago_can_be_cancelled(wme: Client) -> None:
    gaps: list[HourGap] = []
    begun = asyncio.Event()

    def note(gap: HourGap) -> None:
        gaps.append(gap)
        begun.set()

    task = asyncio.create_task(anext(wme.hours(since=datetime(1, 1, 1, tzinfo=UTC), on_gap=note)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(gaps) < 1000


async def test_a_position_that_is_not_an_hour_is_an_error(wme: Client) -> None:
    offsets = MemoryOffsets({"default/batches": {0: Position(10**12)}})
    with pytest.raises(DataError, match="not an hour"):
        await anext(wme.hours(offsets=offsets))


async def test_a_gap_can_be_raised_and_the_next_request_goes_on(wme: Client) -> None:
    last = NEWEST - 50 * HOUR
    offsets = MemoryOffsets({"default/batches": {0: Position(number(last), last)}})
    hours = wme.hours(offsets=offsets, on_gap="raise", poll=POLL)
    gaps = []
    for _ in range(10):
        try:
            first = await take(hours, 1)
        except HourGap as gap:
            gaps.append(gap.hour)
        else:
            break
    assert gaps == [last + count * HOUR for count in range(1, len(gaps) + 1)]
    assert first == [last + (len(gaps) + 1) * HOUR]
    assert gaps


async def test_gaps_are_logged_by_default(wme: Client, caplog: pytest.LogCaptureFixture) -> None:
    last = NEWEST - 50 * HOUR
    offsets = MemoryOffsets({"default/batches": {0: Position(number(last), last)}})
    await take(wme.hours(offsets=offsets, poll=POLL), 1)
    assert "are gone" in caplog.text


async def test_an_hour_that_never_gets_a_list_is_a_gap_once_later_ones_have(sim: Simulator, wme: Client) -> None:
    sim.faults.inject("status", role="api", path="2026-07-15/08$", status=404, times=None)
    gaps: list[HourGap] = []
    hours = wme.hours(since="2026-07-15T07", on_gap=gaps.append, poll=POLL)
    assert await take(hours, 2) == [NEWEST - 4 * HOUR, NEWEST - 2 * HOUR]
    assert [(gap.hour, gap.reason) for gap in gaps] == [(NEWEST - 3 * HOUR, "missing")]


async def test_a_list_that_is_late_is_waited_for(sim: Simulator, wme: Client) -> None:
    fault = sim.faults.inject("status", role="api", path="2026-07-15/11$", status=404, times=7)
    assert await take(wme.hours(since="2026-07-15T10", poll=POLL), 2) == [NEWEST - HOUR, NEWEST]
    assert fault.hits == 7


async def test_a_service_in_trouble_is_waited_for(sim: Simulator, wme: Client) -> None:
    hours = wme.hours(since="2026-07-15T10", poll=POLL)
    assert await take(hours, 1) == [NEWEST - HOUR]
    fault = sim.faults.inject("status", role="api", status=503, times=9)
    assert await take(hours, 1) == [NEWEST]
    assert fault.hits == 9


async def test_a_refusal_is_raised(sim: Simulator, wme: Client) -> None:
    sim.faults.inject("status", role="api", status=403, times=None)
    with pytest.raises(Forbidden):
        await take(wme.hours(since="2026-07-15T10", poll=POLL), 1)
    with pytest.raises(Forbidden):
        await take(wme.hours(poll=POLL), 1)


async def test_the_list_is_not_hammered(sim: Simulator, wme: Client, client_clock: Any) -> None:
    hours = wme.hours(poll=1.0)
    await take(hours, 1)
    sim.requests.clear()
    client_clock.waits.clear()
    waiting = asyncio.create_task(take(hours, 1))
    async with asyncio.timeout(20):
        while lists(sim) < 5:  # noqa: ASYNC110  # nothing tells of a request
            await asyncio.sleep(0.001)
    # Nothing is due for a quarter of an hour, so it looks every tenth poll.
    assert min(client_clock.waits) >= 10
    assert len(client_clock.waits) >= 4
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancelled_and_closed_it_can_go_on(sim: Simulator, wme: Client) -> None:
    hours = wme.hours(since="-2h", poll=POLL)
    assert await take(hours, 2) == [NEWEST - HOUR, NEWEST]
    waiting = asyncio.create_task(take(hours, 1))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    sim.clock.advance(3600)
    assert await take(hours, 1) == [NEWEST + HOUR]
    await hours.aclose()
    sim.clock.advance(3600)
    assert await take(hours, 1) == [NEWEST + 2 * HOUR]


@pytest.mark.parametrize(
    "options",
    [
        {"since": "yesterday"},
        {"since": datetime(2026, 7, 15)},  # noqa: DTZ001  # naive on purpose
        {"since": 5},
        {"on_gap": "ignore"},
        {"poll": 0},
        {"poll": "often"},
        {"name": ""},
        {"name": 5},
    ],
    ids=str,
)
def test_wrong_options_are_an_error_at_once(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Client("a", "b").hours(**options)


async def feed_through_outages(days: float, outages: dict[int, int]) -> tuple[list[datetime], list[datetime]]:
    """Follow the hours of some days with a reader that is away for a number of hours, after a number of hours."""
    async with Simulator(start=NOON, articles=1, frozen=True) as sim:
        offsets = MemoryOffsets()
        seen: list[datetime] = []
        gaps: list[HourGap] = []
        available: set[datetime] = set()
        passed = 0
        while passed < days * 24:
            async with (
                Client(**sim.client_options()) as wme,
                wme.hours(offsets=offsets, on_gap=gaps.append, poll=0.001) as hours,
            ):
                while passed < days * 24:
                    available |= {datetime.fromisoformat(f"{hour}:00+00:00") for hour in sim.hours}
                    newest = datetime.fromisoformat(f"{sim.hours[-1]}:00+00:00")
                    while not seen or seen[-1] < newest:
                        seen += await take(hours, 1)
                    await hours.commit()
                    away = outages.pop(passed, 0)
                    passed += away or 1
                    sim.clock.advance(3600 * (away or 1))
                    if away:
                        break
        assert seen == sorted(set(seen))
        gone = [gap.hour for gap in gaps if gap.hour is not None]
        assert gone == sorted(set(gone))
        assert not set(seen) & set(gone)
        expected = {seen[0] + count * HOUR for count in range(int((seen[-1] - seen[0]) / HOUR) + 1)}
        assert set(seen) | set(gone) == expected
        # What was listed at any time that it looked is there, but for what was older than its beginning.
        assert {hour for hour in available if hour >= seen[0]} <= set(seen)
        return seen, gone


@pytest.mark.servers
async def test_a_day_with_outages_brings_each_hour_once() -> None:
    seen, gaps = await feed_through_outages(3.5, {2: 1, 5: 10, 20: 60})
    assert len(gaps) in range(10, 14)
    assert len(seen) > 60


@pytest.mark.torture
async def test_a_week_with_outages_brings_each_hour_that_the_service_still_had_once() -> None:
    seen, gaps = await feed_through_outages(7, {5: 1, 24: 10, 60: 60})
    assert len(gaps) in range(10, 14)
    assert len(seen) > 140
