"""What the tests of streams share: a reader that checks order, and a world in which time passes while nobody reads."""

import asyncio
import contextlib
import io
import re
import tarfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from wme_async import Client, MemoryOffsets, Retry, Stream
from wme_async.simulator import Simulator

KEY = "default/articles"
PATH = "/v2/articles"
SHORT = Retry(attempts=2, base=0.001, cap=0.001)
PATIENT = Retry(attempts=1000, base=0.001, cap=0.01, total=1e6)
"""The default policy with short waits."""

World = tuple[Simulator, Client]


@contextlib.asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    """A simulator and its client; in the end nothing of a stream is left."""
    async with Simulator(**options) as sim, Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as wme:
        yield sim, wme
        assert " 0 open bodies" in repr(wme)
        await sim.firehose.wait_open(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("wme stream")]


class Checker:
    """Notes events and insists on their order."""

    def __init__(self) -> None:
        self.last: dict[int, int] = defaultdict(lambda: -1)
        self.events: list[tuple[int, int]] = []

    def take(self, article: Any) -> None:
        event = article.event
        assert event.offset > self.last[event.partition], "out of order, or twice"
        self.last[event.partition] = event.offset
        self.events.append((event.partition, event.offset))

    async def read(self, stream: Stream[Any], count: int, seconds: float = 20.0) -> None:
        async for article in take(stream, count, seconds):
            self.take(article)


def articles(wme: Client, **options: Any) -> Stream[Any]:
    """The stream of articles with short waits, whose periodic saves do not come into the way."""
    stream: Stream[Any] = wme.realtime.articles(**{"commit_interval": 60.0, "retry": PATIENT, **options})
    return stream


async def take(stream: Stream[Any], count: int, seconds: float = 10.0) -> AsyncIterator[Any]:
    async with asyncio.timeout(seconds):
        for _ in range(count):
            yield await anext(stream)


async def turns(count: int = 10) -> None:
    """Let other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # that is the point
            await asyncio.sleep(0.001)


async def learn_the_time(sim: Simulator, wme: Client) -> None:
    """Have the client meet the server's clock, as any response of the host brings it."""
    now = datetime.fromtimestamp(sim.clock.now(), UTC)
    async with articles(wme, since=now, name="clock"):
        pass


async def away(sim: Simulator, wme: Client, store: MemoryOffsets, hours: float, **options: Any) -> None:
    """Read one event of partition 7, then publish events and let time pass while nobody reads."""
    async with articles(wme, offsets=store, parts=[1], **options) as stream:
        publish_wiki(sim)
        stream.ack(await anext(stream))
    sim.clock.advance(60)
    for _ in range(5):
        publish_wiki(sim)
    sim.clock.advance(hours * 3600)
    for _ in range(5):
        publish_wiki(sim)


def publish_wiki(sim: Simulator, **fields: Any) -> None:
    """Publish an event that passes `WIKI`."""
    published = datetime.fromtimestamp(sim.clock.now(), UTC)
    event = {"type": "update", "date_published": published.isoformat()}
    record = {"name": "x", **IN_WIKI, "event": event}
    sim.firehose.publish({**record, **fields}, partition=7)


def record(partition: int, offset: int, **fields: Any) -> bytes:
    """A record as the server sends it, whatever the partition that it is published to."""
    event = {"partition": partition, "offset": offset, "date_published": "2025-04-11T05:00:00Z"}
    return msgspec.json.encode({"name": "x", **fields, "event": event})


# Hourly batches

WIKI: dict[str, Any] = {"is_part_of.identifier": "abwiki", "namespace.identifier": 0}
"""Filters that leave the one batch that a test writes."""


IN_WIKI: dict[str, Any] = {"is_part_of": {"identifier": "abwiki"}, "namespace": {"identifier": 0}}


def batch_record(number: int, hour: datetime, **event: Any) -> bytes:
    return msgspec.json.encode(
        {
            "name": f"Batch {number}",
            "identifier": number,
            **IN_WIKI,
            "namespace": {"identifier": 0},
            "version": {"identifier": 1000 + number},
            "event": {"type": "update", "date_created": hour + timedelta(minutes=number), **event},
        }
    )


def put_batch(sim: Simulator, hour: datetime, *records: bytes) -> None:
    """Have the one batch of an hour that passes `WIKI` consist of these records."""
    archive = io.BytesIO()
    data = b"".join(record + b"\n" for record in records)
    with tarfile.open(fileobj=archive, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("abwiki_namespace_0_0.ndjson")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    sim.put_object(f"batches/{hour:%Y-%m-%d/%H}/abwiki_namespace_0.tar.gz", archive.getvalue(), update_metadata=False)


def put_batches(sim: Simulator, hours: Mapping[datetime, Sequence[bytes]]) -> None:
    """Have the batches that pass `WIKI` consist of these records; the other hours have none."""
    names = [f"{hour:%Y-%m-%d/%H}" for hour in hours]
    for hour, records in hours.items():
        put_batch(sim, hour, *records)
    others = re.compile(rf"/v2/batches/(?!{'|'.join(names) or 'none'})[0-9-]+/[0-9]+$")
    sim.faults.inject("status", role="api", path=others, status=404, times=None)


def hour_of(sim: Simulator, ago: float = 0.0) -> datetime:
    moment = datetime.fromtimestamp(sim.clock.now() - ago, UTC)
    return moment.replace(minute=0, second=0, microsecond=0)
