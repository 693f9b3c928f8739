"""From the world to the stream of articles: records as they are published, events on request, and the past."""

import math
from collections.abc import Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Final

from wme_async.simulator.clock import Clock
from wme_async.simulator.hosts.realtime import Firehose
from wme_async.simulator.world.articles import Kind
from wme_async.simulator.world.catalog import Catalog
from wme_async.simulator.world.generated_pages import COMMON, Section
from wme_async.simulator.world.pipeline import SECOND, PublishedRecord
from wme_async.simulator.world.records import encode_record

__all__ = ["WorldFeed"]

_EXPIRE_EVERY: Final = 1000  # events, so that a simulator that runs for days stays small

Event = tuple[float, Section, int, int]
"""A regular event of the built-in world: its time, section, hour, and number in the batch."""


class WorldFeed:
    """Publishes what happens in the world.

    Args:
        clock: Tells which events are retained.
        catalog: Has the world and the generators.
        options: Of the `Firehose`.

    Attributes:
        firehose: The stream.
    """

    def __init__(self, clock: Clock, catalog: Catalog, options: Mapping[str, Any]) -> None:
        self._clock = clock
        self._world = catalog.world
        self._catalog = catalog
        self._pages = catalog.generated.pages
        defaults = {"make": self._make_event, "options": {"size": "small"}, "update": self._world.catch_up}
        self.firehose: Firehose = Firehose(clock, **{**defaults, **options})
        built_in = self._pages.pages if catalog.has_built_in_world else None
        self._world.attach(clock, self._publish, articles=catalog.real, built_in=built_in)

    def _publish(self, record: PublishedRecord) -> None:
        """Put a record of the world on the stream, which has no bulk records."""
        moment = record.published / SECOND
        if record.bulk or moment < self._clock.now() - self.firehose.retention:
            return
        fields = encode_record(record, self._world.generator, self.firehose.size)
        partition = self.firehose.partition_of({**fields, "name": record.key})
        self.firehose.publish(fields, partition=partition, published=moment)
        if self.firehose.published % _EXPIRE_EVERY == 0:
            self.firehose.expire()

    def _make_event(
        self, number: int, *, kind: Kind, published: float, project: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Make an event of the stream: an edit of a page of the world, which archives and look-ups then have too."""
        project = self._world.projects[0] if project is None else project
        if self._world.opened_at(project) == math.inf:
            return self._pages.edit(number, kind=kind, published=published, project=project, **options)
        record, now = None, abs(published - self._clock.now()) < 1
        if now and options.keys() <= {"size"} and project in self._world.projects:
            record = self._world.publish_at_once(project, number, kind)
        if record is None:
            return self._catalog.generator.article(number, kind=kind, published=published, project=project, **options)
        return encode_record(record, self._world.generator, options.get("size"))

    def publish_history(self) -> None:
        """Put the regular edits of the built-in world on the stream; see `Simulator.publish_history`."""
        if self.firehose.published or not self._catalog.has_built_in_world:
            raise RuntimeError("only an empty stream of the built-in world can get its history")
        self._world.take_over()
        partitions: dict[int, list[Event]] = {}
        known: dict[str, int] = {}
        for event in self._pages.events_between(self._catalog.cut, self._clock.now()):
            project, title = event[1].project, self._pages.title_of_event(*event[1:])
            key = f"{project}/{title}"
            if key not in known:
                known[key] = self.firehose.partition_of({"name": title, "is_part_of": {"identifier": project}})
            partitions.setdefault(known[key], []).append(event)
        for number, events in partitions.items():
            events.sort(key=itemgetter(0))
            self.firehose.preload(number, [event[0] for event in events], partial(self._event, events))
        # Pages that look-ups alone have known so far.
        now = int(self._clock.now() * SECOND)
        for project in self._world.projects:
            pages = self._world.current(project)
            for record in [pages[title] for title in COMMON if title in pages]:
                self._publish(record._replace(published=now, message=record.message._replace(created=now - SECOND)))

    def _event(self, events: list[Event], number: int) -> dict[str, Any]:
        return self._pages.event(*events[number], self.firehose.size)
