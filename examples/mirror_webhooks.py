"""Keep a mirror of a wiki, and send each change of it to a URL, at least once and in order.

    python examples/mirror_webhooks.py simplewiki_namespace_0 https://example.com/hook

A change that was not answered by 2xx is sent again, and those after it wait. Ctrl-C ends it; the next run goes on.
"""

import asyncio
import sys

import aiohttp

from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore


async def publish(mirror: Mirror, url: str, pause: float = 10.0) -> None:
    """Send changes until cancelled."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        async for change in mirror.changes("webhooks"):
            body: dict[str, object] = {
                "id": change.seq,  # the receiver may have seen it already
                "kind": change.kind,
                "page_id": change.page_id,
                "title": change.title,
                "old_title": change.old_title,
                "revision": change.revision,
                "hidden": change.hidden,
            }
            while not await is_delivered(session, url, body):  # noqa: ASYNC110  # the receiver tells nobody
                await asyncio.sleep(pause)
            await change.ack()


async def is_delivered(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> bool:
    """Send one change, and return whether the receiver has accepted it."""
    try:
        async with session.post(url, json=body) as response:
            return response.ok
    except (aiohttp.ClientError, TimeoutError):
        return False


async def main(identifier: str, url: str) -> None:
    """Keep the mirror, and publish it."""
    async with (
        Client.from_env() as wme,
        Mirror(wme, identifier, SQLiteStore("mirror.db")) as mirror,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(mirror.run())
        group.create_task(publish(mirror, url))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
