# ruff: noqa: I001, PLC0414  # `name as name` marks a name as public to type checkers, one list for each module
"""The public names of `wme_async` but its errors, each once.

The root imports this module when a name is first used.
"""

from wme_async._archive import (
    ArchiveReader as ArchiveReader,
    ManyReader as ManyReader,
    ManyResult as ManyResult,
    read_archive as read_archive,
    read_many as read_many,
)
from wme_async._client import (
    Cache as Cache,
    Client as Client,
    Collection as Collection,
    Files as Files,
    Looked as Looked,
    Lookup as Lookup,
    LookupProgress as LookupProgress,
    Lookups as Lookups,
)
from wme_async._client.hour_feed import Hours as Hours
from wme_async._client.quota import Allowances as Allowances, Cost as Cost, Quota as Quota
from wme_async._client.sync_report import SyncFile as SyncFile, SyncProgress as SyncProgress, SyncReport as SyncReport
from wme_async._download import Budget as Budget, Download as Download, FileInfo as FileInfo, Progress as Progress
from wme_async._stream import (
    PartitionStatistics as PartitionStatistics,
    Stream as Stream,
    StreamBadRecord as StreamBadRecord,
    StreamCommitFailed as StreamCommitFailed,
    StreamCommitted as StreamCommitted,
    StreamConnected as StreamConnected,
    StreamDisconnected as StreamDisconnected,
    StreamEvent as StreamEvent,
    StreamGap as StreamGap,
    StreamRetrying as StreamRetrying,
    StreamStatistics as StreamStatistics,
)
from wme_async._transport import SessionPool as SessionPool
from wme_async._transport.retry import Retrying as Retrying
from wme_async.models import (
    Article as Article,
    Batch as Batch,
    Event as Event,
    Project as Project,
    Snapshot as Snapshot,
    StructuredContent as StructuredContent,
)
from wme_async.offsets import (
    FileOffsets as FileOffsets,
    MemoryOffsets as MemoryOffsets,
    OffsetStore as OffsetStore,
    Position as Position,
    SQLiteOffsets as SQLiteOffsets,
)
from wme_async.settings import Hosts as Hosts, Limits as Limits, Retry as Retry, Timeouts as Timeouts
