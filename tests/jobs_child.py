"""A process that submits batches and sees them through, made to be killed.

It is called `jobs_child.py DIRECTORY SERVER BATCHES JOBS`. Started again, it goes on: what was submitted is not
submitted twice. It ends with 0 when all is done and told.
"""

import asyncio
import sys

from wme_async.jobs import BatchManager, JobLimits
from wme_async.settings import Retry

KINDS = ("good", "faulty", "gone", "large")


def plan(server: str, batch: int, jobs: int) -> list[str]:
    """Return the URLs of a batch: each kind in turn."""
    return [f"{server}/f/{KINDS[job % len(KINDS)]}-{batch}-{job}" for job in range(jobs)]


async def main(directory: str, server: str, batches: int, jobs: int) -> None:
    """Submit what is missing, and wait for the end."""
    manager = BatchManager(
        directory,
        allow_hosts=["127.0.0.1"],
        retry=Retry(attempts=6, base=0.01, cap=0.05),
        limits=JobLimits(free_space=0, running=16, per_host=16),
        webhook_delays=(0.05,) * 200,
    )
    async with manager:
        submitted = set()
        before = None
        while True:
            page = await manager.list(limit=500, before=before)
            for batch in page.batches:
                submitted.add((await manager.status(batch.batch_id)).jobs[0].url)
            before = page.next
            if before is None:
                break
        for number in range(batches):
            urls = plan(server, number, jobs)
            if urls[0] not in submitted:
                await manager.submit(
                    urls,
                    concurrent_limit=10,
                    ignore_errors=number % 2 == 0,
                    path_template="{upload_date}/{safe_title}.{ext}",
                    webhook_url=f"{server}/hook",
                )
        while True:
            counts = await manager.counts()
            if "waiting" not in counts["outbox"] and not counts["jobs"].keys() & {"queued", "running", "paused"}:
                return
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
