"""An up-to-date copy of a wiki in a store of your own, from snapshots, the stream, and hourly batches.

`Mirror` keeps it, `MirrorReader` reads it, `SQLiteStore` holds it. Anything else that passes
`wme_async.mirror.conformance` is a store too.
"""

from wme_async.mirror.events import (
    MirrorBadRecord,
    MirrorChunkLoaded,
    MirrorEvent,
    MirrorHoleClosed,
    MirrorHoleFound,
    MirrorLoaded,
    MirrorSourceChanged,
    MirrorStateChanged,
    MirrorTrouble,
    MirrorVerified,
)
from wme_async.mirror.feed import FeedChange
from wme_async.mirror.marks import Hole, Loaded, MirrorState, Source, Verification
from wme_async.mirror.mirror import Mirror
from wme_async.mirror.plan import MirrorPlan, measure_rate
from wme_async.mirror.postgres import PostgresStore
from wme_async.mirror.protocol import Applied, Change, Counts, Entry, Marks, State, Store, Sweep
from wme_async.mirror.reader import MirrorReader, MirrorStatistics
from wme_async.mirror.sqlite import SQLiteStore

__all__ = [
    "Applied",
    "Change",
    "Counts",
    "Entry",
    "FeedChange",
    "Hole",
    "Loaded",
    "Marks",
    "Mirror",
    "MirrorBadRecord",
    "MirrorChunkLoaded",
    "MirrorEvent",
    "MirrorHoleClosed",
    "MirrorHoleFound",
    "MirrorLoaded",
    "MirrorPlan",
    "MirrorReader",
    "MirrorSourceChanged",
    "MirrorState",
    "MirrorStateChanged",
    "MirrorStatistics",
    "MirrorTrouble",
    "MirrorVerified",
    "PostgresStore",
    "SQLiteStore",
    "Source",
    "State",
    "Store",
    "Sweep",
    "Verification",
    "measure_rate",
]
