"""The arguments of a sync: the archives of a listing, and the options."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from wme_async._arguments import check_flags, check_functions, check_instances, check_numbers
from wme_async._client.archive_names import ArchiveName
from wme_async._client.archive_source import ListedSource
from wme_async._client.sync_report import SyncProgressHook
from wme_async._download import Budget
from wme_async.models import Archive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The archives of one collection.

    Attributes:
        fetch: Requests the list with filters.
        collection: Returns the name of the collection, such as `batches 2025-07-16/05`; called after `fetch`.
        name: Returns the parts of the name of an archive.
        source: Returns the source of an archive for the downloader.
        pool: The monthly allowance that counts the downloads.
    """

    fetch: Callable[[Mapping[str, Any]], Awaitable[Sequence[Archive]]]
    collection: Callable[[], str]
    name: Callable[[str], ArchiveName]
    source: Callable[[str], ListedSource]
    pool: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """How to sync; see `Files.sync`."""

    filters: Mapping[str, Any]
    name: str | None
    concurrency: int
    delete: bool
    max_delete: float
    keep: timedelta | None
    dry_run: bool
    progress: SyncProgressHook | None
    budget: Budget
    shared: bool


def sync_options(
    *,
    filters: Mapping[str, Any] | None,
    name: str | None,
    concurrency: int,
    delete: bool,
    max_delete: float,
    keep: timedelta | None,
    dry_run: bool,
    max_rate: float | None,
    progress: SyncProgressHook | None,
    budget: Budget | None,
) -> SyncOptions:
    """Check the options of a sync; see `Files.sync`.

    Raises:
        TypeError: One is of another type.
        ValueError: One is out of range, or both `max_rate` and a budget are set.
    """
    check_numbers(whole=True, optional=False, minimum=1, concurrency=concurrency)
    check_numbers(optional=False, minimum=0, max_delete=max_delete)
    check_flags(delete=delete, dry_run=dry_run)
    check_functions(progress=progress)
    check_instances(budget=(budget, Budget), keep=(keep, timedelta))
    if max_delete > 1:
        raise ValueError(f"max_delete is a share from 0 to 1, not {max_delete:g}")
    if keep is not None and keep <= timedelta():
        raise ValueError(f"keep is a timedelta above 0, not {keep!r}")
    if budget is not None and max_rate is not None:
        raise ValueError("give max_rate to the budget that the downloads share")
    connections = max(concurrency, 16)
    return SyncOptions(
        filters=dict(filters or {}), name=name, concurrency=concurrency, delete=delete, max_delete=max_delete,
        keep=keep, dry_run=dry_run, progress=progress, shared=budget is not None,
        budget=budget if budget is not None else Budget(connections, start=concurrency, max_rate=max_rate),
    )  # fmt: skip
