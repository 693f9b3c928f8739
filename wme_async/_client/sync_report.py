"""The results of a sync: its files, its progress, and its report."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from wme_async._client.quota import Cost
from wme_async.errors import QuotaExceeded


class SyncFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a sync.

    Args:
        identifier: Of the archive, from the list.
        path: The file.
        size: Bytes; of a file that was not fetched those of the list, which are rounded to 1,000.
        version: Its MD5 in hexadecimal: that of the bytes if they were fetched, else that of the list.
        error: The reason why its current version is missing; None on success.
    """

    identifier: str
    path: Path
    size: int = 0
    version: str = ""
    error: Exception | None = None


class SyncProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a sync.

    Args:
        files: Finished files, failed ones included, without those that needed no download.
        files_total: Files to fetch.
        done: Bytes of the finished files, and of those under way.
        total: Bytes to fetch. Sizes of unfinished files are those of the list, which rounds them to 1,000.
        rate: Bytes per second, lately.
        eta: Seconds until the end at this rate; None if unknown.
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
    """The result of a sync, or with `dry_run` its plan.

    Args:
        new: Files that did not exist.
        changed: Files of another version, which were replaced.
        unchanged: Files that had the version of the listing. Nothing was fetched for them.
        failed: Files that could not be fetched, each with its `error`. Earlier versions of them remain.
        pending: Files that were not tried because `stopped` ended the sync; the same call goes on with them.
        removed: Files that were removed.
        bytes: Bytes that were fetched; with `dry_run` those to fetch, by the list.
        requests: Requests to the API and the object store, retries included.
        seconds: Duration.
        cost: Metered requests that the fetched files took at least, with `dry_run` would take.
        stopped: The error that ended the sync before all files were tried: the month's allowance is used up. Else None.
        dry_run: Whether it is a plan, and nothing was changed.
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
