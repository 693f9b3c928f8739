# ruff: noqa: I001, PLC0414  # `name as name` marks a name as public to type checkers, one list for each module
"""The public names of `wme_async` but its errors, each once and beside the module that has it.

Type checkers import this module. The root reads it as text, and imports the one module that a name comes from.
"""

from wme_async._archive import (
    ArchiveReader as ArchiveReader,
    read_archive as read_archive,
    read_many as read_many,
)
from wme_async._archive.parallel import ManyReader as ManyReader, ManyResult as ManyResult
from wme_async._client.cache import Cache as Cache
from wme_async._client.client import Client as Client
from wme_async._client.collection import Collection as Collection
from wme_async._client.concurrent_lookups import (
    Looked as Looked,
    LookupProgress as LookupProgress,
    Lookups as Lookups,
)
from wme_async._client.files import Files as Files
from wme_async._client.hour_feed import Hours as Hours
from wme_async._client.lookup import Lookup as Lookup
from wme_async._client.quota import Allowances as Allowances, Cost as Cost, Quota as Quota
from wme_async._client.sync_report import SyncFile as SyncFile, SyncProgress as SyncProgress, SyncReport as SyncReport
from wme_async._download import Budget as Budget, Download as Download, FileInfo as FileInfo, Progress as Progress
from wme_async._stream.reports import (
    PartitionStatistics as PartitionStatistics,
    StreamBadRecord as StreamBadRecord,
    StreamCommitFailed as StreamCommitFailed,
    StreamCommitted as StreamCommitted,
    StreamConnected as StreamConnected,
    StreamDisconnected as StreamDisconnected,
    StreamEvent as StreamEvent,
    StreamGap as StreamGap,
    StreamLost as StreamLost,
    StreamRetrying as StreamRetrying,
    StreamStatistics as StreamStatistics,
    StreamTaken as StreamTaken,
)
from wme_async._stream.group import GroupStream as GroupStream
from wme_async._stream.sharing import Static as Static
from wme_async._stream.stream import Stream as Stream
from wme_async._telemetry import Report as Report, StreamTelemetry as StreamTelemetry, Telemetry as Telemetry
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
    PostgresOffsets as PostgresOffsets,
    RedisOffsets as RedisOffsets,
    SQLiteOffsets as SQLiteOffsets,
)
from wme_async.settings import Hosts as Hosts, Limits as Limits, Retry as Retry, Timeouts as Timeouts
