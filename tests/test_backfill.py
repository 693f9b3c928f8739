"""Gaps of the stream and what the hourly batches have for them."""

import asyncio
import io
import tarfile
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from test_stream import batch_record

from wme_async import ArchiveReader, Client
from wme_async._client.realtime import _HourlyRecords
from wme_async._query.query import Backend, Query
from wme_async._stream.backfill import GapFiller
from wme_async._stream.partitions import Missing
from wme_async._stream.record_types import RecordType
from wme_async.errors import OffsetGap
from wme_async.models import Article
from wme_async.offsets import MemoryOffsets
from wme_async.settings import Retry
from wme_async.simulator import Simulator

HOUR = datetime(2025, 4, 11, 10, tzinfo=UTC)


def minutes(number: int) -> datetime:
    return HOUR + timedelta(minutes=number)


class Title(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Batches:
    """Batches of one hour, counting how often they are fetched."""

    def __init__(self, *records: bytes) -> None:
        self.records = list(records)
        self.asked: list[datetime] = []
        self.filler: GapFiller[Article] = GapFiller(self.read, RecordType(Article), None)

    async def read(self, hour: datetime) -> AsyncGenerator[bytes]:
        self.asked.append(hour)
        if hour == HOUR:
            for record in self.records:
                yield record

    async def fill(self, after: datetime, before: datetime, *, now: datetime) -> list[str]:
        missing = Missing(OffsetGap(partition=0), after, before)
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


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"fields": ["name"]}, [{"name": "A"}, {"name": "B"}]),
        ({"fields": ["name"], "filters": {"identifier": 2_000_000}}, [{"name": "A", "identifier": 2_000_000}]),
        ({"fields": ["name"], "filters": {"url": "b"}}, [{"name": "B"}]),
        ({"fields": ["visibility.text"]}, [{}, {"visibility": {"text": True, "editor": False}}]),
        ({"type": Title}, [{"name": "A"}, {"name": "B"}]),
    ],
)
async def test_a_batch_gives_what_the_stream_would_have_sent(
    question: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    event = {"identifier": "x", "type": "update", "date_created": "2025-04-11T10:00:00Z"}
    records: list[dict[str, Any]] = [
        {"name": "A", "identifier": 2_000_000, "url": "a", "version": {"identifier": 1}},
        {"name": "B", "identifier": 2_000_001, "url": "b", "visibility": {"text": True, "editor": False}},
    ]
    path = tmp_path / "enwiki_namespace_0.tar.gz"
    path.write_bytes(packed(b"\n".join(msgspec.json.encode({**each, "event": event}) for each in records)))
    query = Query.build(Backend.REALTIME, Article, **question)
    batches = _HourlyRecords(lambda hour: files_of(path), query)
    found = [msgspec.json.decode(record) async for record in batches(HOUR)]
    assert found == [{**each, "event": event} for each in expected]
    assert all(query.keep(each) for each in found)


async def test_records_with_few_fields_are_told_apart_by_their_events() -> None:
    def title(number: int, **event: Any) -> bytes:
        event = {"identifier": str(number), "type": "update", "date_created": minutes(number), **event}
        return msgspec.json.encode({"name": "Main Page", "event": event})

    batches = Batches(title(20), title(21), title(21), title(22))
    assert batches.filler.remember(title(22, partition=0, offset=5))
    assert await batches.fill(minutes(10), minutes(50), now=minutes(1000)) == ["Main Page"] * 2
    assert not batches.filler.remember(title(21, partition=0, offset=6)), "a batch has brought it"


async def test_a_broken_line_of_a_batch_comes_where_bad_records_go(tmp_path: Path) -> None:
    """Raised on the way it would be met again with every new attempt, and the stream would never get past the gap."""
    path = tmp_path / "enwiki_namespace_0.tar.gz"
    path.write_bytes(packed(b'{"name":"A"}\n{"name":\n{"name":"B"}\n'))

    batches = _HourlyRecords(lambda hour: files_of(path), Query.build(Backend.REALTIME, Article))
    assert [bytes(record) async for record in batches(HOUR)] == [b'{"name":"A"}', b'{"name":', b'{"name":"B"}']


async def test_a_batch_that_is_gone_although_it_is_listed_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quick = Retry(base=0.001, cap=0.001)
    async with Simulator(articles=3) as sim, Client(**sim.client_options(), retry=quick) as wme:
        here = wme.batches(min(sim.hours))
        kept = await here.get("enwiki_namespace_0")

        class Files:
            async def list(self, **question: Any) -> list[Any]:
                return [SimpleNamespace(identifier="gonewiki_namespace_0"), kept]

            def read(self, name: str, **options: Any) -> ArchiveReader[msgspec.Raw]:
                return here.read(name, **options)

        files: Any = Files()
        batches = _HourlyRecords(lambda hour: files, Query.build(Backend.REALTIME, Article))
        async with asyncio.timeout(30), here.read(kept.identifier, type=msgspec.Raw) as records:
            expected = [bytes(each) async for each in records]
            assert [bytes(record) async for record in batches(HOUR)] == expected
    assert len(expected) > 1
    assert "gonewiki_namespace_0" in caplog.text


async def test_a_gap_longer_than_retention_is_filled_through_the_client_without_duplicates() -> None:
    english: dict[str, str | int | float | bool] = {"is_part_of.identifier": "enwiki", "namespace.identifier": 14}
    shared = {"is_part_of": {"identifier": "enwiki"}, "namespace": {"identifier": 14}}
    async with Simulator(articles=3) as sim, Client(**sim.client_options()) as wme:
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
        expected = []
        for hour in sim.hours:
            files = wme.batches(hour)
            for batch in await files.list(filters=english):
                async with files.read(batch.identifier, type=msgspec.Raw) as records:
                    expected += [msgspec.json.decode(each) async for each in records]
        keys = [key_of(each) for each in found]
        assert len(keys) == len(set(keys))
        assert set(keys) == {key_of(each) for each in expected}
        assert len(keys) > 5


def files_of(path: Path) -> Any:
    """Return the batches of an hour that has one."""

    class Files:
        async def list(self, **question: Any) -> list[Any]:
            return [SimpleNamespace(identifier="enwiki_namespace_0")]

        def read(self, name: str, **options: Any) -> ArchiveReader[msgspec.Raw]:
            return ArchiveReader(path, type=options["type"])

    return Files()


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["identifier"], record["version"]["identifier"], record["event"]["type"], record["name"]


def packed(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("enwiki_namespace_0_0.ndjson")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
