# ruff: noqa: PLC0414  # `name as name` marks a name as public to type checkers
"""The public names of `wme_async` but its errors, each once.

The root imports this module when a name is first used.
"""

from wme_async._archive import ArchiveReader as ArchiveReader
from wme_async._archive import ManyReader as ManyReader
from wme_async._archive import ManyResult as ManyResult
from wme_async._archive import read_archive as read_archive
from wme_async._archive import read_many as read_many
from wme_async._client import Cache as Cache
from wme_async._client import Client as Client
from wme_async._client import Collection as Collection
from wme_async._client import Files as Files
from wme_async._client import Looked as Looked
from wme_async._client import Lookup as Lookup
from wme_async._client import LookupProgress as LookupProgress
from wme_async._client import Lookups as Lookups
from wme_async._client.hour_feed import Hours as Hours
from wme_async._client.quota import Allowances as Allowances
from wme_async._client.quota import Cost as Cost
from wme_async._client.quota import Quota as Quota
from wme_async._client.sync_report import SyncFile as SyncFile
from wme_async._client.sync_report import SyncProgress as SyncProgress
from wme_async._client.sync_report import SyncReport as SyncReport
from wme_async._download import Budget as Budget
from wme_async._download import Download as Download
from wme_async._download import FileInfo as FileInfo
from wme_async._download import Progress as Progress
from wme_async._stream import PartitionStatistics as PartitionStatistics
from wme_async._stream import Stream as Stream
from wme_async._stream import StreamBadRecord as StreamBadRecord
from wme_async._stream import StreamCommitFailed as StreamCommitFailed
from wme_async._stream import StreamCommitted as StreamCommitted
from wme_async._stream import StreamConnected as StreamConnected
from wme_async._stream import StreamDisconnected as StreamDisconnected
from wme_async._stream import StreamEvent as StreamEvent
from wme_async._stream import StreamGap as StreamGap
from wme_async._stream import StreamRetrying as StreamRetrying
from wme_async._stream import StreamStatistics as StreamStatistics
from wme_async._transport import SessionPool as SessionPool
from wme_async._transport.retry import Retrying as Retrying
from wme_async.models import Article as Article
from wme_async.models import Batch as Batch
from wme_async.models import Event as Event
from wme_async.models import Project as Project
from wme_async.models import Snapshot as Snapshot
from wme_async.models import StructuredContent as StructuredContent
from wme_async.offsets import FileOffsets as FileOffsets
from wme_async.offsets import MemoryOffsets as MemoryOffsets
from wme_async.offsets import OffsetStore as OffsetStore
from wme_async.offsets import Position as Position
from wme_async.offsets import SQLiteOffsets as SQLiteOffsets
from wme_async.settings import Hosts as Hosts
from wme_async.settings import Limits as Limits
from wme_async.settings import Retry as Retry
from wme_async.settings import Timeouts as Timeouts
