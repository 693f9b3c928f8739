"""Where streams keep their positions between runs.

`MemoryOffsets` for a single run, `FileOffsets` for a folder of small files, `SQLiteOffsets` for a database. Anything
else that can load and save a few numbers is an `OffsetStore`: write those two methods, and let
`wme_async.offsets.conformance` say whether they keep the promises.
"""

from wme_async.offsets.file import FileOffsets
from wme_async.offsets.memory import MemoryOffsets
from wme_async.offsets.protocol import ClaimingStore, OffsetStore, Position
from wme_async.offsets.sqlite import SQLiteOffsets

__all__ = ["ClaimingStore", "FileOffsets", "MemoryOffsets", "OffsetStore", "Position", "SQLiteOffsets"]
