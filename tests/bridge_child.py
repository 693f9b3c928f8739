# ruff: noqa: T201  # this program speaks by printing
"""A bridge in a process of its own, which may be killed at any moment.

python bridge_child.py '{"hosts": {...}, "broker": {"kafka": "127.0.0.1:9092", "topic": "wme"}, ...}'
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from wme_async import Client, Hosts, RedisOffsets, Retry


@contextlib.asynccontextmanager
async def broker(options: dict[str, Any], stream: Any, **limits: Any) -> AsyncIterator[Any]:
    """Connect to a broker and yield the bridge."""
    if "kafka" in options:
        from aiokafka import AIOKafkaProducer

        from wme_async.integrations.kafka import to_kafka

        async with AIOKafkaProducer(bootstrap_servers=options["kafka"], enable_idempotence=True) as producer:
            yield to_kafka(stream, producer, options["topic"], batch=limits["batch"])
    else:
        import nats

        from wme_async.integrations.nats import to_nats

        connection = await nats.connect(options["nats"], max_reconnect_attempts=-1, reconnect_time_wait=0.05)
        yield to_nats(stream, connection.jetstream(), options["subject"], in_flight=limits["batch"])


async def main(options: dict[str, Any]) -> None:
    """Copy until this process is killed."""
    client = Client(
        options["username"], options["password"], hosts=Hosts(**options["hosts"]), token_file=Path(options["tokens"])
    )
    retry = Retry(attempts=10**9, base=0.001, cap=0.01, total=1e9)
    share: dict[str, Any] = {}
    if "redis" in options:
        share = {"offsets": RedisOffsets(options["redis"]), "share": "group", "lease": 1.0}
    stream: Any = client.realtime.articles(
        type=msgspec.Raw, since="oldest", retry=retry, on_gap="raise", idle_timeout=5.0, **share
    )
    async with client, broker(options["broker"], stream, batch=options["batch"]) as bridge:
        print("open", flush=True)
        await bridge


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
