"""Copy the stream into NATS, each event once; a restart continues where the messages end.

    python examples/stream_to_nats.py nats://localhost:4222 wme 1000

Creates a stream of JetStream with this name where there is none, which keeps messages for a week. The last argument is
the number of events; without it the script runs until it is stopped.
"""

import asyncio
import signal
import sys

import msgspec
import nats

from wme_async import Client
from wme_async.integrations.nats import Bridged, to_nats

WEEK = 7 * 24 * 3600.0


async def main(url: str, name: str, limit: int | None) -> Bridged:
    """Copy until the limit, or until SIGTERM."""
    connection = await nats.connect(url, max_reconnect_attempts=-1)
    try:
        jetstream = connection.jetstream()
        # It is no error if the stream is there already, and the same.
        await jetstream.add_stream(name=name, subjects=[f"{name}.*"], max_age=WEEK)
        async with Client.from_env() as wme:
            # Where the stream has no message yet, it begins with the oldest event that the service keeps.
            stream = wme.realtime.articles(type=msgspec.Raw, since="oldest")
            bridge = to_nats(stream, jetstream, f"{name}.{{partition}}", limit=limit)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bridge.stop)
            return await bridge
    finally:
        await connection.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    result = asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None))
    print(f"{result.sent} sent, {result.bytes} bytes, {len(result.positions)} partitions")
