"""A copy of a wiki, merged from all that a simulator serves; tests compare it with the truth of the world."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

from wme_async import Client
from wme_async.simulator import Simulator

QUARTER = 15 * 60


async def stream_of(sim: Simulator, count: int, since: datetime) -> list[dict[str, Any]]:
    """Return the events of the stream in the order of their publication."""
    async with Client(**sim.client_options()) as wme, asyncio.timeout(10):
        async with wme.realtime.articles(type=dict, since=since) as stream:
            events = [await anext(stream) for _ in range(count)]
    return sorted(events, key=lambda event: event["event"]["date_published"])


async def records_of(archive: Any) -> list[dict[str, Any]]:
    async with archive as records:
        return [record async for record in records]


class Rule:
    """The rule by which a copy merges records in any order: by title, the event that was created last."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.places: dict[int, tuple[Any, str]] = {}
        self.masks: dict[int, tuple[int, datetime, dict[str, bool]]] = {}

    def apply(self, record: dict[str, Any]) -> None:
        event = record.get("event", {})
        title = record["name"].replace("_", " ")
        revision = record["version"]["identifier"]
        published = datetime.fromisoformat(event.get("date_published", "2000-01-01T00:00:00Z"))
        created = datetime.fromisoformat(event.get("date_created") or record["date_modified"])
        kind = event.get("type", "update")
        if kind == "visibility-change":
            mask = (revision, created, record["visibility"])
            self.masks[record["identifier"]] = max(
                self.masks.get(record["identifier"], mask), mask, key=lambda m: m[:2]
            )
            return
        if created == published:
            created -= timedelta(seconds=QUARTER)
        order = (created, revision, published, kind == "delete")
        if title not in self.pages or order > self.pages[title][0]:
            self.pages[title] = (order, record)
        if kind == "update":
            self.places[record["identifier"]] = max(
                self.places.get(record["identifier"], (order, title)), (order, title)
            )

    def live(self) -> dict[str, tuple[int, int, bool]]:
        """Return page id, revision and whether the text is shown by title."""
        out = {}
        for title, ((created, revision, _, gone), record) in self.pages.items():
            page_id = record["identifier"]
            if gone or self.places[page_id][1] != title:
                continue
            mask = self.masks.get(page_id)
            hidden = mask is not None and mask[0] == revision and mask[1] > created and not mask[2]["text"]
            out[title] = (page_id, revision, "article_body" in record and not hidden)
        return out


async def everything(sim: Simulator, project: str = "enwiki") -> list[dict[str, Any]]:
    """Return all records of all archives that exist, and of the stream."""
    records = []
    async with Client(**sim.client_options()) as wme:
        identifier = f"{project}_namespace_0"
        records += await records_of(wme.snapshots.read(identifier, type=dict))
        for hour in sim.hours:
            records += await records_of(wme.batches(hour).read(identifier, type=dict))
    sim.firehose.expire()
    events = await stream_of(sim, sum(map(len, sim.firehose.log)), sim.clock.utc() - timedelta(hours=48))
    return records + [event for event in events if event["is_part_of"]["identifier"] == project]
