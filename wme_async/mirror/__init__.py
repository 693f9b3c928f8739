"""An up-to-date copy of a wiki in a store of your own, from snapshots, the stream, and hourly batches."""

from wme_async.mirror.protocol import Change, Counts, Entry, Marks, State, Store
from wme_async.mirror.sqlite import SQLiteStore

__all__ = ["Change", "Counts", "Entry", "Marks", "SQLiteStore", "State", "Store"]
