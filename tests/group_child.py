"""A process that is a member of a group: it reads its share of the stream, and notes what it got, until it is killed.

python group_child.py '{"hosts": {...}, "store": "postgresql://...", ...}'
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from wme_async import (
    Client,
    GroupStream,
    Hosts,
    PostgresOffsets,
    RedisOffsets,
    Retry,
    StreamEvent,
    StreamLost,
    StreamTaken,
)


async def main(options: dict[str, Any]) -> None:
    """Read until SIGTERM, which lets it leave in an orderly way, noting each event before the next one is requested."""
    log = os.open(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*entry: object) -> None:
        # A whole line at once, of many processes; the monotonic clock is the same for all.
        os.write(log, json.dumps([time.monotonic(), os.getpid(), *entry]).encode() + b"\n")

    def watch(event: StreamEvent) -> None:
        if isinstance(event, StreamTaken):
            positions = {str(number): at.offset for number, at in stream.positions.items() if number // 5 == event.part}
            note("taken", event.part, event.token, positions)
        elif isinstance(event, StreamLost):
            note("lost", event.part, event.token, event.given_back)

    store = options["store"]
    client = Client(
        options["username"], options["password"], hosts=Hosts(**options["hosts"]), token_file=Path(options["tokens"])
    )
    stream: GroupStream[Any] = client.realtime.articles(
        offsets=RedisOffsets(store) if store.startswith("redis") else PostgresOffsets(store),
        share="group",
        lease=options["lease"],
        # For ever, as by default, but without the long waits.
        retry=Retry(attempts=10**9, base=0.001, cap=0.01, total=1e9),
        on_event=watch,
        commit_interval=options["commit_interval"],
        on_gap="raise",
        idle_timeout=5.0,
    )
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, show_tasks)
    with contextlib.suppress(asyncio.CancelledError):
        async with client, stream:
            async for article in stream:
                event = article.event
                note("event", event.partition, event.offset, stream.token(event.partition // 5))
                stream.ack(article)


def show_tasks() -> None:
    """Write to standard error where every task stands, for a test whose patience is over."""
    for task in asyncio.all_tasks():
        task.print_stack()
    sys.stderr.flush()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
