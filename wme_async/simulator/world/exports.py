"""Snapshots and batches: what an export finds in a compacted topic."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from wme_async.simulator.world.pipeline import SECOND, PublishedRecord

_UNCOMPACTED: Final = 12 * 3600 * SECOND  # the newest part of a topic is not compacted
_SNAPSHOT_LAZINESS: Final = 0.25  # share of superseded records that an export finds in that part
_BATCH_LAZINESS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Export:
    """A snapshot that was exported.

    Attributes:
        identifier: Such as `enwiki_namespace_0`.
        cut: The start of the export, epoch seconds: it has what was published by then.
        number: Of the export.
        titles: The titles of its records.
        complete: Whether it has all of them.
    """

    identifier: str
    cut: float
    number: int
    titles: frozenset[str]
    complete: bool


def snapshot_rows(records: Iterable[PublishedRecord], cut: int, rnd: Random) -> list[PublishedRecord]:
    """Return the rows of a snapshot: the newest record of each key, and older ones that compaction has left.

    Deletes are left out, so an older record of a deleted page may be there.

    Args:
        records: The topic, in the order of publication.
        cut: The start of the export, microseconds since 1970.
        rnd: Decides what compaction has left.
    """
    newest: dict[str, PublishedRecord] = {}
    rows = []
    for record in records:
        if record.published > cut:
            break
        older = newest.get(record.key)
        if older is not None and record.published > cut - _UNCOMPACTED and rnd.random() < _SNAPSHOT_LAZINESS:
            rows.append(older)
        newest[record.key] = record
    rows += newest.values()
    return [row for row in rows if row.message.kind != "delete"]


def batch_rows(records: Iterable[PublishedRecord], rnd: Random) -> list[PublishedRecord]:
    """Return the rows of an hourly batch, deletes included; compaction may have left older ones.

    Args:
        records: What was published from the start of the hour to the start of its export, in this order.
        rnd: Decides what compaction has left.
    """
    rows: list[PublishedRecord] = []
    newest: dict[str, int] = {}
    for record in records:
        position = newest.get(record.key)
        if position is not None and rnd.random() >= _BATCH_LAZINESS:
            rows[position] = record
        else:
            newest[record.key] = len(rows)
            rows.append(record)
    return rows


def deal(rows: Sequence[PublishedRecord], members: int, rnd: Random, share: float = 1.0) -> list[list[PublishedRecord]]:
    """Deal rows to the members of an archive at random; each export does it anew.

    Args:
        rows: The rows.
        members: The number of members.
        rnd: Decides the order.
        share: The share of rows to export; an incomplete export has fewer than all.
    """
    order = list(rows)
    rnd.shuffle(order)
    order = order[: round(len(order) * share)]
    return [order[number::members] for number in range(members)]
