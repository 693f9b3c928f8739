"""The firehose: reading it for ever, with nothing lost, nothing twice, and order kept within a partition."""

from wme_async._stream.arguments import Commit, OnBadRecord, OnGap
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
    "StreamRetrying",
    "StreamStatistics",
]
