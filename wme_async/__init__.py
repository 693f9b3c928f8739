"""The asyncio-native SDK for Wikimedia Enterprise.

    async with Client.from_env() as wme:
        hour = wme.batches("2025-07-16T05")
        await hour.download("enwiki_namespace_0", "data/")
        async with hour.read("enwiki_namespace_0") as articles:
            async for article in articles: ...

What is here is what most programs need. Further on: `wme_async.models` for all shapes of data, `wme_async.errors` for
the error tree, `wme_async.offsets` for where streams keep their positions, `wme_async.simulator` for tests without an
account, `wme_async.jobs` and `wme_async.web` for many downloads as one job.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wme_async._version import __version__

if TYPE_CHECKING:
    from wme_async._archive import ArchiveReader, ManyReader, ManyResult, read_archive, read_many
    from wme_async._client import Cache, Client, Collection, Files, Looked, Lookup, LookupProgress, Lookups
    from wme_async._client.quota import Allowances, Cost, Quota
    from wme_async._download import Budget, Download, FileInfo, Progress
    from wme_async._stream import (
        PartitionStatistics,
        Stream,
        StreamBadRecord,
        StreamCommitFailed,
        StreamCommitted,
        StreamConnected,
        StreamDisconnected,
        StreamEvent,
        StreamGap,
        StreamRetrying,
        StreamStatistics,
    )
    from wme_async._transport import SessionPool
    from wme_async._transport.retry import Retrying
    from wme_async.errors import (
        ArchiveError,
        BadRequest,
        ClientClosed,
        ConnectFailed,
        DataError,
        DecodeError,
        Forbidden,
        IdleTimeout,
        IntegrityError,
        Interrupted,
        NotFound,
        OffsetGap,
        QuotaExceeded,
        RateLimited,
        ServerError,
        StatusError,
        StreamError,
        TimedOut,
        TransportError,
        Unauthorized,
        Unprocessable,
        VersionConflict,
        WMEError,
    )
    from wme_async.models import Article, Batch, Event, Project, Snapshot, StructuredContent
    from wme_async.offsets import FileOffsets, MemoryOffsets, OffsetStore, Position, SQLiteOffsets
    from wme_async.settings import Hosts, Limits, Retry, Timeouts

__all__ = [
    "Allowances",
    "ArchiveError",
    "ArchiveReader",
    "Article",
    "BadRequest",
    "Batch",
    "Budget",
    "Cache",
    "Client",
    "ClientClosed",
    "Collection",
    "ConnectFailed",
    "Cost",
    "DataError",
    "DecodeError",
    "Download",
    "Event",
    "FileInfo",
    "FileOffsets",
    "Files",
    "Forbidden",
    "Hosts",
    "IdleTimeout",
    "IntegrityError",
    "Interrupted",
    "Limits",
    "Looked",
    "Lookup",
    "LookupProgress",
    "Lookups",
    "ManyReader",
    "ManyResult",
    "MemoryOffsets",
    "NotFound",
    "OffsetGap",
    "OffsetStore",
    "PartitionStatistics",
    "Position",
    "Progress",
    "Project",
    "Quota",
    "QuotaExceeded",
    "RateLimited",
    "Retry",
    "Retrying",
    "SQLiteOffsets",
    "ServerError",
    "SessionPool",
    "Snapshot",
    "StatusError",
    "Stream",
    "StreamBadRecord",
    "StreamCommitFailed",
    "StreamCommitted",
    "StreamConnected",
    "StreamDisconnected",
    "StreamError",
    "StreamEvent",
    "StreamGap",
    "StreamRetrying",
    "StreamStatistics",
    "StructuredContent",
    "TimedOut",
    "Timeouts",
    "TransportError",
    "Unauthorized",
    "Unprocessable",
    "VersionConflict",
    "WMEError",
    "__version__",
    "read_archive",
    "read_many",
]

# Each name is loaded when it is first asked for: whoever needs the simulator, the errors or a download alone does not
# wait for the rest. The imports above tell type checkers the same.
_HOMES = {
    "wme_async._archive": ("ArchiveReader", "ManyReader", "ManyResult", "read_archive", "read_many"),
    "wme_async._client": ("Cache", "Client", "Collection", "Files", "Looked", "Lookup", "LookupProgress", "Lookups"),
    "wme_async._download": ("Budget", "Download", "FileInfo", "Progress"),
    "wme_async._client.quota": ("Allowances", "Cost", "Quota"),
    "wme_async._transport.retry": ("Retrying",),
    "wme_async.settings": ("Hosts", "Limits", "Retry", "Timeouts"),
    "wme_async._stream": (
        "PartitionStatistics",
        "Stream",
        "StreamBadRecord",
        "StreamCommitFailed",
        "StreamCommitted",
        "StreamConnected",
        "StreamDisconnected",
        "StreamEvent",
        "StreamGap",
        "StreamRetrying",
        "StreamStatistics",
    ),
    "wme_async._transport": ("SessionPool",),
    "wme_async.errors": (
        "ArchiveError",
        "BadRequest",
        "ClientClosed",
        "ConnectFailed",
        "DataError",
        "DecodeError",
        "Forbidden",
        "IdleTimeout",
        "IntegrityError",
        "Interrupted",
        "NotFound",
        "OffsetGap",
        "QuotaExceeded",
        "RateLimited",
        "ServerError",
        "StatusError",
        "StreamError",
        "TimedOut",
        "TransportError",
        "Unauthorized",
        "Unprocessable",
        "VersionConflict",
        "WMEError",
    ),
    "wme_async.models": ("Article", "Batch", "Event", "Project", "Snapshot", "StructuredContent"),
    "wme_async.offsets": ("FileOffsets", "MemoryOffsets", "OffsetStore", "Position", "SQLiteOffsets"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
