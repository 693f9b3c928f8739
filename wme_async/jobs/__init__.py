"""Many downloads as one job: batches of URLs that are kept in SQLite, watched, paused, repeated, and told by webhook.

    async with BatchManager("downloads", client=wme) as manager:
        batch = await manager.submit(["https://example.com/a.zip", "wme:snapshots/enwiki_namespace_0"])
        async for event in manager.watch(batch.batch_id):
            ...
        done = await manager.wait(batch.batch_id)

A batch that was taken is downloaded, whatever happens to the process meanwhile.
"""

from wme_async.jobs.csv_urls import from_csv
from wme_async.jobs.errors import DamagedBatch, DatabaseError, ManagerClosed, UnknownBatch
from wme_async.jobs.manager import BatchManager
from wme_async.jobs.model import (
    Batch,
    BatchProgress,
    Event,
    Job,
    JobFile,
    JobProgress,
    Listing,
    Outbox,
)
from wme_async.jobs.naming import FileName
from wme_async.jobs.sources import Fetched, MediaFetcher
from wme_async.jobs.states import Status, WrongState
from wme_async.jobs.url_policy import AddressRefused
from wme_async.jobs.validation import InvalidBatch, JobLimits, Options, Problem, split
from wme_async.jobs.webhooks import WebhookMessage, new_secret, sign_webhook, verify_webhook

__all__ = [
    "AddressRefused",
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
