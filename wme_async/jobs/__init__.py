"""Many downloads as one job: batches of URLs that are stored in SQLite, watched, paused, retried, reported by webhook.

    async with BatchManager("downloads", client=wme) as manager:
        batch = await manager.submit(["https://example.com/a.zip", "wme:snapshots/enwiki_namespace_0"])
        async for event in manager.watch(batch.batch_id):
            ...
        done = await manager.wait(batch.batch_id)

An accepted batch is downloaded, also after crashes and restarts of the process.
"""

import warnings

from wme_async.jobs.csv_urls import from_csv
from wme_async.jobs.database import DamagedBatch, DatabaseError
from wme_async.jobs.manager import BatchManager
from wme_async.jobs.model import (
    Batch,
    BatchProgress,
    Event,
    Job,
    JobFile,
    JobProgress,
    Listing,
    ManagerClosed,
    Outbox,
    Status,
    UnknownBatch,
)
from wme_async.jobs.naming import FileName
from wme_async.jobs.sources import Fetched, MediaFetcher
from wme_async.jobs.states import WrongState
from wme_async.jobs.url_policy import AddressBlocked
from wme_async.jobs.validation import InvalidBatch, JobLimits, Options, Problem, split
from wme_async.jobs.webhooks import WebhookMessage, new_secret, sign_webhook, verify_webhook

__all__ = [
    "AddressBlocked",
    "Batch",
    "BatchManager",
    "BatchProgress",
    "DamagedBatch",
    "DatabaseError",
    "Event",
    "Fetched",
    "FileName",
    "InvalidBatch",
    "Job",
    "JobFile",
    "JobLimits",
    "JobProgress",
    "Listing",
    "ManagerClosed",
    "MediaFetcher",
    "Options",
    "Outbox",
    "Problem",
    "Status",
    "UnknownBatch",
    "WebhookMessage",
    "WrongState",
    "from_csv",
    "new_secret",
    "sign_webhook",
    "split",
    "verify_webhook",
]


def __getattr__(name: str) -> object:
    if name == "AddressRefused":
        message = "wme_async.jobs.AddressRefused is now AddressBlocked; the old name is to be removed in 1.0"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return AddressBlocked
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
