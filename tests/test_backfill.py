"""Gaps of the stream, and the events of the hourly batches that fill them."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from stream_world import (
    IN_WIKI,
    WIKI,
    World,
    articles,
    away,
    batch_record,
    hour_of,
    learn_the_time,
    publish_wiki,
    put_batches,
    take,
)

from wme_async import Client, MemoryOffsets, Stream, StreamEvent, StreamGap

# Which hours a gap needs depends on hours that pass, and on 500,000 records.
from wme_async._stream import backfill as backfill_module  # private: the filler alone, at any hour
from wme_async.errors import DecodeError, Forbidden, OffsetGap
from wme_async.models import Article
from wme_async.simulator import Simulator

BAD = msgspec.json.encode({"name": 1, **IN_WIKI, "event": {}})


async def gap_world(
    sim: Simulator, wme: Client, batches: Mapping[int, Sequence[int | bytes]], **options: Any
) -> Stream[Any]:
    """A reader that comes back after 49 hours, and batches to fill its gap from.

    Args:
        sim: The simulator.
        wme: Its client.
        batches: The records of the batches by their age in hours; numbers are made records.
        **options: Of the stream.
    """
    store = MemoryOffsets()
    await away(sim, wme, store, 49, filters=WIKI)
    await learn_the_time(sim, wme)
    now = hour_of(sim)
    hours: dict[datetime, list[bytes]] = {}
    for age, records in batches.items():
        hour = now - timedelta(hours=age)
        hours[hour] = [item if isinstance(item, bytes) else batch_record(item, hour) for item in records]
    put_batches(sim, hours)
    return articles(wme, **{"offsets": store, "parts": [1], "filters": WIKI, "backfill": True, **options})


# Through a client


async def test_a_gap_is_filled_from_the_hourly_batches_once_and_marked(world: World) -> None:
    sim, wme = world
    bad: list[DecodeError] = []
    # The second hour has a revision of the first again, and one that the stream brings itself.
    stream = await gap_world(sim, wme, {5: [1, BAD], 4: [1, 2]}, on_bad_record=bad.append)
    publish_wiki(sim, name="Batch 2", identifier=2, version={"identifier": 1002})
    publish_wiki(sim, name="last")
    async with stream:
        filled: list[tuple[str, bool]] = []
        async for article in take(stream, 2):
            filled.append((article.name, stream.backfilled))
            stream.ack(article)
        assert filled == [("Batch 1", True), ("Batch 2", True)]
        assert stream.positions[7].offset == 0
        events = [article.event.offset async for article in take(stream, 6)]
        assert events == [6, 7, 8, 9, 10, 12], "11 came from a batch"
        assert not stream.backfilled
        assert stream.statistics().backfilled == 2
        # A later gap of another partition, with the same time, does not bring them again.
        published = datetime.fromtimestamp(sim.clock.now(), UTC).isoformat()
        record = {**IN_WIKI, "event": {"type": "update", "date_published": published}}
        sim.firehose.publish(record, partition=8)
        assert (await anext(stream)).event.partition == 8
        assert stream.statistics().gaps == 2
        assert stream.statistics().backfilled == 2
    assert [error.record for error in bad] == [BAD]
    lists = [request.path for request in sim.requests if request.path.count("/") == 4 and "/batches/" in request.path]
    assert len(lists) <= len(set(lists)) + 6, "only hours that may not have been ready are requested again"


@pytest.mark.parametrize("in_batches", [False, True])
async def test_a_dead_letter_function_that_fails_keeps_the_record_of_a_batch(in_batches: bool, world: World) -> None:
    sim, wme = world
    calls: list[DecodeError] = []

    def fails_once(error: DecodeError) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise OSError("the dead-letter disk is full")

    async with await gap_world(sim, wme, {3: [BAD, 1]}, on_bad_record=fails_once) as stream:
        with pytest.raises(OSError, match="full"):
            await (anext(stream.batches(1, 60)) if in_batches else anext(stream))
        (article,) = await anext(stream.batches(1, 60)) if in_batches else [await anext(stream)]
        assert (article.name, stream.backfilled) == ("Batch 1", True)
        assert stream.statistics().bad_records == 1
    assert [error.record for error in calls] == [BAD, BAD]


async def test_events_of_hourly_batches_come_in_lists_of_their_own(world: World) -> None:
    sim, wme = world
    async with await gap_world(sim, wme, {3: range(5)}) as stream:
        batches = stream.batches(3, 0.05)
        sizes = []
        for _ in range(3):
            batch = await anext(batches)
            sizes.append((len(batch), stream.backfilled, {article.event.offset is None for article in batch}))
        assert sizes[:2] == [(3, True, {True}), (2, True, {True})]
        assert sizes[2][1:] == (False, {False})


async def test_a_backfill_that_fails_is_begun_again(world: World) -> None:
    sim, wme = world
    async with await gap_world(sim, wme, {4: [1], 3: [2]}) as stream:
        names = [(await anext(stream)).name]
        fault = sim.faults.inject("status", role="api", status=403, times=None)
        with pytest.raises(Forbidden):
            await anext(stream)
        fault.remove()
        names += [(await anext(stream)).name]
        assert names == ["Batch 1", "Batch 2"]
        assert (await anext(stream)).event.offset == 6
        assert stream.statistics().gaps == 1


class Title(msgspec.Struct, forbid_unknown_fields=True):
    name: str


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"fields": ["name"]}, [{"name": "A"}, {"name": "B"}]),
        ({"fields": ["name"], "filters": {"identifier": 2_000_000}}, [{"name": "A", "identifier": 2_000_000}]),
        ({"fields": ["name"], "filters": {"url": "b"}}, [{"name": "B"}]),
        ({"fields": ["visibility.text"]}, [{}, {"visibility": {"text": True, "editor": False}}]),
        ({"type": Title}, [Title("A"), Title("B")]),
    ],
)
async def test_a_batch_gives_what_the_stream_would_have_sent(
    question: dict[str, Any], expected: list[Any], world: World
) -> None:
    sim, wme = world
    created = f"{hour_of(sim, -46 * 3600):%Y-%m-%dT%H:%M:%SZ}"
    events = [{"identifier": name, "type": "update", "date_created": created} for name in "xy"]
    records = [
        {"name": "A", "identifier": 2_000_000, "url": "a", "version": {"identifier": 1}, **IN_WIKI},
        {"name": "B", "identifier": 2_000_001, "url": "b", "visibility": {"text": True, "editor": False}, **IN_WIKI},
    ]
    lines = [msgspec.json.encode({**record, "event": event}) for record, event in zip(records, events, strict=True)]
    options = {"type": msgspec.Raw, **question, "filters": {**WIKI, **question.get("filters", {})}}
    stream = await gap_world(sim, wme, {3: lines}, **options)
    publish_wiki(sim, url="b", identifier=2_000_000)
    async with stream:
        values = [value async for value in take(stream, len(expected))]
        assert stream.statistics().backfilled == len(expected)
    if options["type"] is msgspec.Raw:
        values = [msgspec.json.decode(value) for value in values]
        assert all(value.pop("event") in events for value in values)
    assert values == expected


async def test_a_broken_line_of_a_batch_comes_where_bad_records_go(world: World) -> None:
    """Raised on the way it would be met again with every new attempt, and the stream would never pass the gap."""
    sim, wme = world
    bad: list[DecodeError] = []
    async with await gap_world(sim, wme, {3: [1, b'{"name":', 2]}, on_bad_record=bad.append) as stream:
        assert [article.name async for article in take(stream, 3)] == ["Batch 1", "Batch 2", "x"]
    assert [error.record for error in bad] == [b'{"name":']


async def test_a_batch_that_is_gone_although_it_is_listed_does_not_hold_up_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    sim, wme = world
    stream = await gap_world(sim, wme, {4: [1], 3: [2]})
    sim.delete_object(f"batches/{hour_of(sim, 4 * 3600):%Y-%m-%d/%H}/abwiki_namespace_0.tar.gz")
    async with stream:
        assert [article.name async for article in take(stream, 2)] == ["Batch 2", "x"]
    assert "abwiki_namespace_0" in caplog.text


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_gap_whose_telling_did_not_come_to_an_end_is_told_again(how: str, filled: bool, world: World) -> None:
    sim, wme = world
    hook: list[StreamEvent] = []
    calls: list[OffsetGap] = []

    async def tell(gap: OffsetGap) -> None:
        calls.append(gap)
        if len(calls) == 1:
            if how == "fails":
                raise OSError("the table of gaps is locked")
            asking.cancel()
            await asyncio.sleep(60)

    stream = await gap_world(sim, wme, {3: [1]} if filled else {}, on_gap=tell, on_event=hook.append)
    async with stream:
        asking = asyncio.ensure_future(anext(stream))
        with pytest.raises(OSError if how == "fails" else asyncio.CancelledError):
            await asking
        assert stream.positions[7].offset == 0
        names = [article.name async for article in take(stream, 1 + filled)]
        assert (names[0] == "Batch 1") is filled
    assert calls == [calls[0]] * 2
    assert [event.gap for event in hook if isinstance(event, StreamGap)] == [calls[0]]


@pytest.mark.servers
async def test_a_gap_longer_than_retention_is_filled_through_the_client_without_duplicates() -> None:
    english: dict[str, str | int | float | bool] = {"is_part_of.identifier": "enwiki", "namespace.identifier": 14}
    shared = {"is_part_of": {"identifier": "enwiki"}, "namespace": {"identifier": 14}}
    # Not at the turn of an hour, with which the oldest hour goes.
    start = datetime(2026, 7, 15, 12, 10, tzinfo=UTC)
    async with Simulator(start=start, articles=3) as sim, Client(**sim.client_options()) as wme:
        store = MemoryOffsets()

        def publish() -> None:
            now = datetime.fromtimestamp(sim.clock.now(), UTC).isoformat()
            record = {"name": "x", "event": {"date_published": now}, **shared}
            sim.firehose.publish(record, partition=7)

        async with wme.realtime.articles(offsets=store, parts=[1], filters=english) as stream:
            publish()
            stream.ack(await anext(stream))
        sim.firehose.publish_many(5, partition=7)
        sim.clock.advance(50 * 3600)
        async with (
            asyncio.timeout(30),
            wme.realtime.articles(offsets=store, parts=[1], filters=english, backfill=True, type=msgspec.Raw) as filled,
        ):
            await sim.firehose.wait_open(1)
            publish()
            found = []
            async for raw in filled:
                if not filled.backfilled:
                    break
                found.append(msgspec.json.decode(raw))
            assert filled.statistics().gaps >= 1
            last = msgspec.json.decode(raw)["event"]
        assert last["offset"] == 6
        archives = [request.path for request in sim.requests.select("store")]
        assert archives
        assert all("enwiki_namespace_14" in path for path in archives), "only archives that can have such events"
        expected = []
        for hour in sim.hours:
            files = wme.batches(hour)
            for batch in await files.list(filters=english):
                async with files.read(batch.identifier, type=msgspec.Raw) as records:
                    expected += [msgspec.json.decode(record) async for record in records]
        keys = [key_of(record) for record in found]
        assert len(keys) == len(set(keys))
        assert set(keys) == {key_of(record) for record in expected}
        assert len(keys) > 5


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["identifier"], record["version"]["identifier"], record["event"]["type"], record["name"]


# Which hours are fetched, and which records of them

HOUR = datetime(2025, 4, 11, 10, tzinfo=UTC)


def minutes(number: int) -> datetime:
    return HOUR + timedelta(minutes=number)


class Batches:
    """Batches of one hour, counting how often they are fetched."""

    def __init__(self, *records: bytes) -> None:
        self.records = list(records)
        self.asked: list[datetime] = []
        record_type: Any = SimpleNamespace(decode=msgspec.json.Decoder(Article).decode, finish=None)
        self.filler: Any = backfill_module.GapFiller(self.read, record_type, None)

    async def read(self, hour: datetime) -> AsyncGenerator[bytes]:
        self.asked.append(hour)
        if hour == HOUR:
            for record in self.records:
                yield record

    async def fill(self, after: datetime, before: datetime, *, now: datetime) -> list[str]:
        missing = SimpleNamespace(after=after, before=before)
        return [item.name async for item in self.filler.fill(missing, now=now) if isinstance(item, Article)]


async def test_a_gap_that_began_earlier_than_one_before_it_gets_what_lies_between() -> None:
    """Connections die at different times, so that the gaps of their partitions begin at different times."""
    batches = Batches(batch_record(20, HOUR), batch_record(55, HOUR))
    now = minutes(1000)
    assert await batches.fill(minutes(50), minutes(59), now=now) == ["Batch 55"]
    assert await batches.fill(minutes(10), minutes(59), now=now) == ["Batch 20"]
    count = len(batches.asked)
    assert await batches.fill(minutes(12), minutes(59), now=now) == []
    assert len(batches.asked) == count


async def test_an_hour_whose_batches_were_not_ready_is_asked_for_again() -> None:
    batches = Batches()
    assert await batches.fill(minutes(10), minutes(50), now=minutes(61)) == []
    batches.records.append(batch_record(20, HOUR))
    assert await batches.fill(minutes(10), minutes(50), now=minutes(95)) == ["Batch 20"]
    count = batches.asked.count(HOUR)
    assert await batches.fill(minutes(10), minutes(50), now=minutes(96)) == []
    assert batches.asked.count(HOUR) == count


async def test_a_record_without_a_time_worth_the_name_is_not_taken_for_an_old_one() -> None:
    record = msgspec.json.decode(batch_record(20, HOUR))
    record["event"]["date_published"] = record["event"]["date_created"] = "0001-01-01T00:00:00Z"
    batches = Batches(msgspec.json.encode(record))
    assert await batches.fill(minutes(10), minutes(50), now=minutes(1000)) == ["Batch 20"]


async def test_an_hour_of_which_nothing_was_left_out_is_not_fetched_again() -> None:
    batches = Batches(batch_record(20, HOUR), b"not JSON")
    assert await batches.fill(minutes(10), minutes(50), now=minutes(1000)) == ["Batch 20"]
    assert await batches.fill(minutes(5), minutes(50), now=minutes(1000)) == []
    assert batches.asked.count(HOUR) == 1


async def test_records_with_few_fields_are_told_apart_by_their_events() -> None:
    def title(number: int, **event: Any) -> bytes:
        event = {"identifier": str(number), "type": "update", "date_created": minutes(number), **event}
        return msgspec.json.encode({"name": "Main Page", "event": event})

    batches = Batches(title(20), title(21), title(21), title(22))
    assert batches.filler.remember(title(22, partition=0, offset=5))
    assert await batches.fill(minutes(10), minutes(50), now=minutes(1000)) == ["Main Page"] * 2
    assert not batches.filler.remember(title(21, partition=0, offset=6)), "a batch has brought it"


async def test_records_of_the_stream_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_module, "_REMEMBERED", 2)
    batches = Batches(*(batch_record(number, HOUR) for number in (20, 21, 22, 20)), b"not JSON")
    names = await batches.fill(minutes(10), minutes(50), now=minutes(51))
    assert names == ["Batch 20", "Batch 21", "Batch 22", "Batch 20"]
    assert batches.filler.remember(b"not JSON")
