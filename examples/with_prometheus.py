"""Show Prometheus the requests of a client and the state of its stream.

    pip install wme-async prometheus-client
    python examples/with_prometheus.py 1000

The argument is the number of events to read. Meanwhile the metrics are at http://127.0.0.1:9464/metrics; in the
end they are printed.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, generate_latest, start_http_server

from wme_async import Client, Report, StatusError, StreamStatistics, StreamTelemetry

REQUESTS = Histogram("wme_request_seconds", "Requests, until the head of the response", ["method", "status"])
EVENTS = Gauge("wme_stream_events", "Events of the stream", ["stream"])
GAPS = Gauge("wme_stream_gaps", "Times that events were missing", ["stream"])
LAG = Gauge("wme_stream_lag_seconds", "Age of the last event of a partition", ["stream", "partition"])
LOST = Counter("wme_lease_lost", "Parts of a shared stream that another member took", ["stream"])
BYTES = Counter("wme_download_bytes", "Bytes of downloads and reads")


class Prometheus:
    """A `wme_async.Telemetry` for prometheus_client."""

    @contextlib.contextmanager
    def attempt(self, method: str, url: str, resends: int) -> Iterator[Report]:  # noqa: ARG002  # as the protocol has it
        """Measure one attempt of a request."""
        began, facts = time.monotonic(), {"status": "error"}
        try:
            yield facts.update
        except StatusError as error:
            facts["status"] = str(error.status)
            raise
        finally:
            REQUESTS.labels(method, facts["status"]).observe(time.monotonic() - began)

    @contextlib.contextmanager
    def operation(self, name: str, facts: dict[str, Any]) -> Iterator[Report]:  # noqa: ARG002  # as above
        """Count the bytes of downloads and reads."""
        try:
            yield facts.update
        finally:
            BYTES.inc(facts.get("bytes", 0))

    def stream(self, name: str) -> StreamTelemetry:
        """Show the statistics of a stream."""

        def take(statistics: StreamStatistics) -> None:
            EVENTS.labels(name).set(statistics.events)
            GAPS.labels(name).set(statistics.gaps)
            for partition in statistics.partitions:
                if partition.age is not None:
                    LAG.labels(name, partition.partition).set(partition.age)

        return take

    def lease_lost(self, stream: str, part: int) -> None:  # noqa: ARG002  # as above
        """Count the parts that another member took."""
        LOST.labels(stream).inc()


async def main(count: int) -> None:
    """Read some events, and print the metrics."""
    server, thread = start_http_server(int(sys.argv[2]) if len(sys.argv) > 2 else 9464, addr="127.0.0.1")
    async with Client.from_env(telemetry=Prometheus()) as wme, wme.realtime.articles() as stream:
        for _ in range(count):
            await anext(stream)
    print(generate_latest().decode())
    server.shutdown()
    server.server_close()
    thread.join()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(int(sys.argv[1])))
