"""Hours that the first request resolves: `latest` and `-3h`, by the server's clock."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wme_async import Client, NotFound
from wme_async.simulator import Simulator

NOON = datetime(2026, 7, 15, 12, 40, tzinfo=UTC)
ARCHIVE = "enwiki_namespace_0"


def lists(sim: Simulator) -> list[str]:
    return [r.path for r in sim.requests if r.role == "api" and r.path.count("/") == 4 and r.method == "POST"]


@pytest.fixture
async def sim(request: pytest.FixtureRequest) -> Any:
    async with Simulator(start=getattr(request, "param", NOON), articles=2) as simulator:
        yield simulator


@pytest.fixture
async def wme(sim: Simulator) -> Any:
    async with Client(**sim.client_options()) as client:
        yield client


async def test_latest_is_the_newest_hour_that_has_a_list_and_stays_it(sim: Simulator, wme: Client) -> None:
    hour = wme.batches("latest")
    assert hour.hour is None
    first = await hour.list()
    assert hour.hour == datetime(2026, 7, 15, 11, tzinfo=UTC)
    sim.clock.advance(3600)
    assert await hour.list() == first
    assert wme.batches("latest").hour is None


async def test_the_list_that_finds_the_hour_is_the_list_that_is_returned(sim: Simulator, wme: Client) -> None:
    await wme.batches("latest").list(filters={"in_language.identifier": "de"})
    # The first request of all may go by this machine's clock.
    assert len(lists(sim)) <= 2
    sim.requests.clear()
    rows = await wme.batches("latest").list(filters={"in_language.identifier": "de"})
    assert {row.in_language.identifier for row in rows} == {"de"}
    assert lists(sim) == ["/v2/batches/2026-07-15/11"]


async def test_an_hour_whose_list_is_not_there_yet_is_passed_over(sim: Simulator, wme: Client) -> None:
    sim.clock.advance(-30 * 60)
    hour = wme.batches("latest")
    await hour.head(ARCHIVE)
    assert hour.hour == datetime(2026, 7, 15, 10, tzinfo=UTC)


@pytest.mark.parametrize("verb", ["list", "get", "head", "download", "read", "tee"])
@pytest.mark.parametrize("text", ["latest", "-3h"])
async def test_every_verb_resolves_the_hour(sim: Simulator, wme: Client, tmp_path: Path, verb: str, text: str) -> None:
    hour = wme.batches(text)
    expected = "11" if text == "latest" else "09"
    if verb == "list":
        assert await hour.list()
    elif verb == "get":
        assert (await hour.get(ARCHIVE)).identifier == ARCHIVE
    elif verb == "head":
        assert (await hour.head(ARCHIVE)).size
    elif verb == "download":
        done = await hour.download(ARCHIVE, tmp_path)
        assert done.path == tmp_path / f"batches/2026-07-15/{expected}/{ARCHIVE}.tar.gz"
    else:
        async with hour.read(ARCHIVE, tee=tmp_path if verb == "tee" else None) as articles:
            assert [article async for article in articles]
        path = tmp_path / f"batches/2026-07-15/{expected}/{ARCHIVE}.tar.gz"
        assert path.exists() == (verb == "tee")
    assert hour.hour == datetime(2026, 7, 15, int(expected), tzinfo=UTC)


async def test_hours_ago_need_no_request_once_the_server_has_answered(sim: Simulator, wme: Client) -> None:
    await wme.auth.login()
    sim.requests.clear()
    await wme.batches("-3h").head(ARCHIVE)
    assert [r.path for r in sim.requests] == [f"/v2/batches/2026-07-15/09/{ARCHIVE}/download"]


@pytest.mark.parametrize("text", ["latest", "-3h"])
async def test_the_clock_of_this_machine_does_not_choose_the_hour(sim: Simulator, tmp_path: Path, text: str) -> None:
    # The simulator's clock is far from that of this machine, and with a token at hand nothing tells it beforehand.
    options = {**sim.client_options(), "token_file": tmp_path / "tokens.json"}
    async with Client(**options) as first:
        await first.auth.login()
    sim.requests.clear()
    async with Client(**options) as wme:
        hour = wme.batches(text)
        await hour.head(ARCHIVE)
        assert hour.hour == datetime(2026, 7, 15, 11 if text == "latest" else 9, tzinfo=UTC)
    assert {request.role for request in sim.requests} == {"api"}


async def test_verbs_at_the_same_time_resolve_it_once(sim: Simulator, wme: Client) -> None:
    await wme.auth.login()
    sim.requests.clear()
    hour = wme.batches("latest")
    await asyncio.gather(*(hour.head(ARCHIVE) for _ in range(8)))
    assert len(lists(sim)) == 1


async def test_latest_gives_up_after_some_hours(sim: Simulator, wme: Client) -> None:
    await wme.auth.login()
    sim.faults.inject("status", role="api", status=404, times=None)
    hour = wme.batches("latest")
    sim.requests.clear()
    with pytest.raises(NotFound, match="none of the last 6 hours"):
        await hour.list()
    assert hour.hour is None
    assert len(lists(sim)) == 6
    sim.faults.clear()
    assert await hour.list()


async def test_an_hour_ago_without_a_list_is_not_found_and_stays_that_hour(sim: Simulator, wme: Client) -> None:
    hour = wme.batches("-90h")
    with pytest.raises(NotFound):
        await hour.list()
    assert hour.hour == NOON.replace(minute=0) - timedelta(hours=90)


@pytest.mark.parametrize("text", ["Latest", "last", "-h", "3h", "-3", "-3d", "-3hh", ""])
async def test_what_only_looks_like_it_is_an_error_before_any_request(sim: Simulator, wme: Client, text: str) -> None:
    with pytest.raises(ValueError, match=r"an hour looks like .*, 'latest' or '-3h', got"):
        wme.batches(text)
    assert not sim.requests


async def test_wikidata_has_the_same_hours(sim: Simulator, wme: Client) -> None:
    hour = wme.wikidata.batches("latest")
    assert await hour.list()
    assert hour.hour == datetime(2026, 7, 15, 11, tzinfo=UTC)


async def test_other_archives_have_no_hour(wme: Client) -> None:
    assert wme.snapshots.hour is None
    assert wme.structured_snapshots.hour is None
    assert wme.snapshots.chunks(ARCHIVE).hour is None
