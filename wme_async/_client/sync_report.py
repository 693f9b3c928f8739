"""What a sync tells: its files, its progress, and in the end what it did."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from wme_async._client.quota import Cost
from wme_async.errors import QuotaExceeded

__all__ = ["SyncFile", "SyncProgress", "SyncProgressHook", "SyncReport"]


class SyncFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a sync.

    Args:
        identifier: Of the archive, as the list has it.
        path: The file.
        size: Bytes; of a file that was not fetched those of the list, which are rounded to 1,000.
        version: Its MD5 in hexadecimal: that of the bytes where they were fetched, else that of the list.
        error: Why it is not there in its current version; None where it is.
    """

    identifier: str
    path: Path
    size: int = 0
    version: str = ""
    error: Exception | None = None


class SyncProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sync is.

    Args:
        files: Files that are done, failed ones included; those that were there already are not counted.
        files_total: Files to fetch.
        done: Bytes of the files that are done, and of those under way.
        total: Bytes to fetch. Those of files that are not done are taken from the list, which rounds them to 1,000.
        rate: Bytes per second, lately.
        eta: Seconds until the end at this rate, None where unknown.
        failed: The files that failed so far.
    """

    files: int
    files_total: int
    done: int
    total: int
    rate: float
    eta: float | None
    failed: tuple[SyncFile, ...] = ()


SyncProgressHook = Callable[[SyncProgress], Awaitable[None] | None]
"""Receives the progress of a sync about ten times a second and once at the end; it may be a coroutine function."""


class SyncReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a sync did, or with `dry_run` what it would do.

    Args:
        new: Files that were not there.
        changed: Files that were there in another version and were replaced.
        unchanged: Files that are there in the version of the listing. Nothing was fetched for them.
        failed: Files that could not be fetched, each with its `error`. What was there before is still there.
        pending: Files that were not tried because `stopped` ended the sync; the same call goes on with them.
        removed: Files that were removed.
        bytes: Bytes that were fetched; with `dry_run` those to fetch, by the list.
        requests: Requests to the API and the object store, retries included.
        seconds: How long it took.
        cost: Metered requests that the fetched files took at least, with `dry_run` would take.
        stopped: Why the sync ended before all files were tried: the month's allowance is used up. Else None.
        dry_run: Whether nothing was done.
    """

    new: tuple[SyncFile, ...] = ()
    changed: tuple[SyncFile, ...] = ()
    unchanged: tuple[SyncFile, ...] = ()
    failed: tuple[SyncFile, ...] = ()
    pending: tuple[SyncFile, ...] = ()
    removed: tuple[SyncFile, ...] = ()
    bytes: int = 0
    requests: int = 0
    seconds: float = 0.0
    cost: Cost = Cost(pool=None, requests=0)
    stopped: QuotaExceeded | None = None
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Whether the folder is equal to the listing: nothing failed and nothing is pending."""
        return not self.failed and not self.pending
