"""Copy the stream into a topic of Kafka, each event once; a restart continues where the messages end.

    python examples/stream_to_kafka.py localhost:9092 wme 1000

The topic must have 50 partitions. The last argument is the number of events; without it the script runs until it is
stopped. Records that are larger than the topic allows go into files.
"""

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer

from wme_async import Client
from wme_async.integrations.kafka import Bridged, DeadLetter, to_kafka


def keep(letter: DeadLetter) -> None:
    """Write a record that the topic does not accept into a file."""
    print(f"dead letter: {letter.key}: {letter.reason}", file=sys.stderr)
    Path(f"{letter.partition}-{letter.offset}.json").write_bytes(letter.record)


async def main(bootstrap: str, topic: str, limit: int | None) -> Bridged:
    """Copy until the limit, or until SIGTERM."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=1 << 20)
    async with Client.from_env() as wme, producer:
        # Where the topic has no message yet, it begins with the oldest event that the service keeps.
        stream = wme.realtime.articles(type=msgspec.Raw, since="oldest")
        bridge = to_kafka(stream, producer, topic, dead_letter=keep, limit=limit)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bridge.stop)
        return await bridge


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    result = asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None))
    print(f"{result.sent} sent, {result.bytes} bytes, {len(result.positions)} partitions")
