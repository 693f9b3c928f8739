"""From the changes of a wiki to the records that the service publishes.

One listener takes all changes in order, and workers finish them: an update fetches the page first, which takes
seconds, a delete is published at once. So records are published in another order than their events were created.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from wme_async.simulator.world.articles import Kind
from wme_async.simulator.world.wiki import SUPPORTED, Change, Wiki, WikiPage, namespace_of

SECOND: Final = 1_000_000  # microseconds
_BULK_AGE: Final = 900 * SECOND  # the content of a bulk record is at most so much older than the record


class Message(NamedTuple):
    """What the service owes for one change and one title.

    Attributes:
        kind: The event type.
        project: Database name.
        title: The title, with spaces, by which the record is keyed.
        change: The change behind it.
        created: The time at which the listener took the change, microseconds since 1970; no two messages have the same.
        lost: Whether the service never publishes it.
    """

    kind: Kind
    project: str
    title: str
    change: Change
    created: int
    lost: bool = False


class PublishedRecord(NamedTuple):
    """One record, as it was published.

    Attributes:
        message: The message that it fulfils.
        page: The page as it was fetched; of a delete or a visibility change as it was when the event was created.
        published: The time of publication, microseconds since 1970.
        bulk: Whether it is from a bulk ingestion, which the stream does not carry.
        eventless: Whether it is so old that it has no event.
    """

    message: Message
    page: WikiPage
    published: int
    bulk: bool = False
    eventless: bool = False

    @property
    def key(self) -> str:
        """The title of its key: records that followed a redirect have the key of the redirect."""
        return self.message.title

    @property
    def name(self) -> str:
        """The title in the record, with spaces."""
        return self.page.title if self.message.kind == "update" else self.message.title

    @property
    def namespace(self) -> int:
        """The number of the namespace in the record."""
        return namespace_of(self.name)


@dataclass
class Pipeline:
    """The listener and the workers.

    Attributes:
        wikis: The wikis by project.
        random: Makes the latencies.
        latency: The shortest and the longest time in seconds between the creation and the publication of an update.
        delete_latency: About the same for deletes and visibility changes, in seconds.
        lost: The share of messages that are never published.
        repeated: The share of messages that are published twice.
        messages: All messages in the order of their creation.
    """

    wikis: dict[str, Wiki]
    random: Random
    latency: tuple[float, float] = (0.3, 16.0)
    delete_latency: float = 0.2
    lost: float = 0.0
    repeated: float = 0.0
    messages: list[Message] = field(default_factory=list)
    _last_created: int = 0
    _number: int = 0
    _due: list[tuple[int, int, Message | PublishedRecord, int]] = field(default_factory=list)

    def accept(self, project: str, change: Change) -> None:
        """Take a change: the listener turns it into messages."""
        created = self._next_time(change.time)
        for kind, title in _titles(change):
            message = Message(kind, project, title, change, created, lost=self.random.random() < self.lost)
            self.messages.append(message)
            if not message.lost:
                for _ in range(2 if self.random.random() < self.repeated else 1):
                    self._schedule(message)
            # The second message of a move is created microseconds later.
            created = self._last_created = created + self.random.randrange(1, 6)

    def finish(self, project: str, change: Change, kind: Kind) -> PublishedRecord:
        """Take a change, and publish it at once."""
        message = Message(kind, project, change.title, change, self._next_time(change.time))
        self.messages.append(message)
        return PublishedRecord(message, change.page, message.created)

    def _next_time(self, time: int) -> int:
        self._last_created = max(time, self._last_created + 1)
        return self._last_created

    def _schedule(self, message: Message) -> None:
        if message.kind == "update":
            shortest, longest = self.latency
            seconds = shortest * (longest / shortest) ** self.random.random()
            fetched = message.created + int(seconds * SECOND * self.random.uniform(0.3, 0.95))
            self._push(fetched, message, message.created + int(seconds * SECOND))
        else:
            seconds = self.delete_latency * self.random.uniform(0.5, 1.5)
            published = message.created + int(seconds * SECOND)
            self._push(published, PublishedRecord(message, message.change.page, published), published)

    def _push(self, time: int, item: Message | PublishedRecord, published: int) -> None:
        self._number += 1
        heapq.heappush(self._due, (time, self._number, item, published))

    def ingest(self, project: str, changes: Sequence[Change]) -> None:
        """Take pages of a bulk ingestion: records are created and published at once, with content fetched before."""
        for change in changes:
            page = self.wikis[project].fetch(change.title, change.time - self.random.randrange(_BULK_AGE))
            created = self._next_time(change.time)
            if page is not None:
                message = Message("update", project, change.title, change, created)
                self._push(created, PublishedRecord(message, page, created, bulk=True), created)

    def advance(self, now: int) -> Iterator[PublishedRecord]:
        """Let the workers go on until a time, and yield the records in the order of their publication."""
        while self._due and self._due[0][0] <= now:
            time, _, item, published = heapq.heappop(self._due)
            if isinstance(item, PublishedRecord):
                yield item
                continue
            page = self.wikis[item.project].fetch(item.title, time)
            if page is not None:
                self._push(published, PublishedRecord(item, page, published), published)

    @property
    def next_time(self) -> int | None:
        """The time of the next step of a worker, or None if there is nothing to do."""
        return self._due[0][0] if self._due else None


def _titles(change: Change) -> Iterator[tuple[Kind, str]]:
    """Yield event type and title of each message of a change, in the order of their creation."""
    page, supported = change.page, change.page.namespace in SUPPORTED
    article = supported and page.redirect is None
    if change.kind in {"create", "restore"} and article:
        yield "update", change.title
    elif change.kind in {"edit", "redirect"} and supported:
        yield "update" if article else "delete", change.title
    elif change.kind == "delete" and article:
        yield "delete", change.title
    elif change.kind == "hide" and article:
        yield "visibility-change", change.title
    elif change.kind == "move":
        if article:
            yield "update", change.title
        if change.old_title is not None and namespace_of(change.old_title) in SUPPORTED:
            yield "delete", change.old_title
