"""Where streams keep their positions between runs.

`MemoryOffsets` for a single run, `FileOffsets` for a folder of small files, `SQLiteOffsets` for a database on this
machine, `PostgresOffsets` and `RedisOffsets` for several machines (extras `postgres` and `redis`). Anything else that
can load and save a few numbers is an `OffsetStore`: write those two methods, and let `wme_async.offsets.conformance`
say whether they keep the promises. A `LeaseStore` also shares the parts of a stream among several readers.
"""

from wme_async.offsets.file import FileOffsets
from wme_async.offsets.memory import MemoryOffsets
from wme_async.offsets.postgres import PostgresOffsets
from wme_async.offsets.protocol import ClaimingStore, LeaseStore, OffsetStore, Position
from wme_async.offsets.redis import RedisOffsets
from wme_async.offsets.sqlite import SQLiteOffsets

__all__ = [
    "ClaimingStore",
    "FileOffsets",
    "LeaseStore",
    "MemoryOffsets",
    "OffsetStore",
    "Position",
    "PostgresOffsets",
    "RedisOffsets",
    "SQLiteOffsets",
]
