"""The realtime stream, read for ever: nothing lost, nothing twice, and in order within a partition."""

from wme_async._stream.backfill import Backfill
from wme_async._stream.events import (
    PartitionStatistics,
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
from wme_async._stream.options import Commit, OnBadRecord, OnGap, StreamOptions, checked_options
from wme_async._stream.stream import Stream

__all__ = [
    "Backfill",
    "Commit",
    "OnBadRecord",
    "OnGap",
    "PartitionStatistics",
    "Stream",
    "StreamBadRecord",
    "StreamCommitFailed",
    "StreamCommitted",
    "StreamConnected",
    "StreamDisconnected",
    "StreamEvent",
    "StreamGap",
    "StreamOptions",
    "StreamRetrying",
    "StreamStatistics",
    "checked_options",
]
