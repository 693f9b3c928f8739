"""The state of a wiki as the wiki itself has it, and what no copy of it can know from the service."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wme_async.simulator.world.exports import Export
from wme_async.simulator.world.pipeline import SECOND, Message
from wme_async.simulator.world.wiki import WikiPage

Exemption = Literal["never published", "deleted before", "suppressed before", "text not published"]
"""Why a copy may differ from the wiki."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The state of one wiki at one moment.

    Attributes:
        project: Database name.
        pages: The live pages by title with spaces: no redirects, and supported namespaces only.
        messages: All messages of this project, in the order of their creation.
        published: For each message that was published, by its time of creation, when it was published first;
            microseconds since 1970.
        exports: The snapshots of this project that were exported so far.
        textless: Titles whose newest record was fetched while the text was suppressed, and whose text is shown again.
    """

    project: str
    pages: Mapping[str, WikiPage]
    messages: Sequence[Message]
    published: Mapping[int, int]
    exports: Sequence[Export]
    textless: frozenset[str] = frozenset()

    @property
    def lost(self) -> list[Message]:
        """The messages that the service never publishes."""
        return [message for message in self.messages if message.lost]

    def exceptions(self, since: float, missed: Iterable[tuple[float, float]] = ()) -> dict[str, Exemption]:
        """Return the titles for which a copy may differ from the wiki, and why.

        Args:
            since: The time from which on the copy has all events of the stream, epoch seconds.
            missed: Pairs of times between which it has had no stream.

        Returns:
            "never published": the newest event of a title, or of its visibility, was lost; "deleted before": the page
            was deleted before `since` or in a missed time, and a snapshot that was exported later still has it;
            "suppressed before": its visibility was changed before `since`, or in a missed time; "text not published":
            the service has no record with the text, which is shown again.
        """
        out: dict[str, Exemption] = {}
        gaps = [(0.0, since), *missed]
        for title, message in _newest(self.messages).items():
            if message.lost:
                out[title] = "never published"
            elif message.kind == "delete" and self._published_in(message, gaps) and self._is_still_exported(message):
                out[title] = "deleted before"
        changes = {message.change.page.page_id: message for message in self.messages if _suppresses(message)}
        for title, page in self.pages.items():
            change = changes.get(page.page_id)
            if change is None or change.change.page.revision != page.revision:
                continue
            if change.lost:
                out.setdefault(title, "never published")
            elif self._published_in(change, gaps):
                out.setdefault(title, "suppressed before")
        return {**dict.fromkeys(self.textless, "text not published"), **out}

    def _is_still_exported(self, message: Message) -> bool:
        """Return whether a snapshot has the page of a delete, although the delete was published before its export."""
        published = self.published[message.created]
        return any(export.cut * SECOND >= published and message.title in export.titles for export in self.exports)

    def _published_in(self, message: Message, gaps: Iterable[tuple[float, float]]) -> bool:
        published = self.published.get(message.created)
        return published is not None and any(begin * SECOND <= published < end * SECOND for begin, end in gaps)


def _suppresses(message: Message) -> bool:
    return message.kind == "visibility-change"


def _newest(messages: Iterable[Message]) -> dict[str, Message]:
    return {message.title: message for message in messages if not _suppresses(message)}
