"""The realtime stream, read for ever: nothing lost, nothing twice, and in order within a partition."""

from wme_async._stream.backfill import Backfill
from wme_async._stream.group import GroupStream
from wme_async._stream.options import Commit, OnBadRecord, OnGap, StreamOptions, checked_options
from wme_async._stream.reports import (
    PartitionStatistics,
    StreamBadRecord,
    StreamCommitFailed,
    StreamCommitted,
    StreamConnected,
    StreamDisconnected,
    StreamEvent,
    StreamGap,
    StreamLost,
    StreamRetrying,
    StreamStatistics,
    StreamTaken,
)
from wme_async._stream.sharing import Static
from wme_async._stream.stream import Stream

__all__ = [
    "Backfill",
    "Commit",
    "GroupStream",
    "OnBadRecord",
    "OnGap",
    "PartitionStatistics",
    "Static",
    "Stream",
    "StreamBadRecord",
    "StreamCommitFailed",
    "StreamCommitted",
    "StreamConnected",
    "StreamDisconnected",
    "StreamEvent",
    "StreamGap",
    "StreamLost",
    "StreamOptions",
    "StreamRetrying",
    "StreamStatistics",
    "StreamTaken",
    "checked_options",
]
