"""Read a stream from a URL with positions tracked and duplicates checked, and print how fast that went.

The URL may be any server that answers a POST with one chunked body of events, such as a file of recorded HTTP. Beside
it, in the same process, the same records can be decoded from memory by msgspec alone, for comparison.

Rates are given by the wall and by this process's processor time; shares are by the latter, which other work on the
machine disturbs less.

    python benchmarks/stream_read.py http://127.0.0.1:8000/large.ndjson.chunked --memory large.ndjson
"""

import argparse
import asyncio
import gc
import json
import resource
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from wme_async import Client, Hosts, Stream, StreamDisconnected, StreamEvent
from wme_async.models import Article


class Reading:
    """Counts the events until all of them have come."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.count = 0
        self.ended = asyncio.Event()

    def watch(self, event: StreamEvent) -> None:
        """Learn from the first cut how many there were."""
        if isinstance(event, StreamDisconnected) and not self.ended.is_set():
            self.limit = event.records if self.limit is None else self.limit
            self.ended.set()

    async def consume(self, stream: Stream[Article], batch: int) -> None:
        """Read until the limit, which may be known only on the way."""
        if batch:
            async for articles in stream.batches(batch, 0.0):
                self.count += len(articles)
                if self.count == self.limit:
                    return
        async for _ in stream:
            self.count += 1
            if self.count == self.limit:
                return

    async def until_end(self, stream: Stream[Article], batch: int) -> None:
        """Read to the limit or to the end of the first body."""
        async with asyncio.TaskGroup() as tasks:
            consuming = tasks.create_task(self.consume(stream, batch))
            ending = tasks.create_task(self.ended.wait())
            await asyncio.wait({consuming, ending}, return_when=asyncio.FIRST_COMPLETED)
            while not consuming.done() and self.count != self.limit:  # noqa: ASYNC110  # the count is a number, nobody tells when it changes
                await asyncio.sleep(0.001)
            consuming.cancel()
            ending.cancel()


async def read(url: str, *, framing: str, limit: int | None, batch: int) -> dict[str, float]:
    """Read one body to its end and return events, seconds and the counts of the stream."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    reading = Reading(limit)
    async with (
        Client(
            access_token="benchmark",  # noqa: S106  # the server ignores it
            hosts=Hosts(auth=origin, api=origin, realtime=origin),
            paths={"realtime.articles": parts.path or "/v2/articles"},
        ) as wme,
        wme.realtime.articles(framing="sse" if framing == "sse" else "ndjson", on_event=reading.watch) as stream,
    ):
        started, cpu = time.perf_counter(), time.process_time()
        await reading.until_end(stream, batch)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        numbers = stream.statistics()
    return {
        "events": reading.count,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rate": reading.count / seconds,
        "rate_by_cpu": reading.count / cpu,
        "megabytes_a_second": numbers.bytes / seconds / 1e6,
        "duplicates": numbers.duplicates,
        "bad": numbers.bad_records,
        "partitions": sum(partition.offset >= 0 for partition in numbers.partitions),
    }


def decode_from_memory(path: Path, rounds: int) -> float:
    """Return events a second of processor time of msgspec alone, over lines that are split already."""
    lines = path.read_bytes().splitlines()
    decode = msgspec.json.Decoder(Article).decode
    rates = []
    for _ in range(rounds):
        gc.collect()
        started = time.process_time()
        for line in lines:
            decode(line)
        rates.append(len(lines) / (time.process_time() - started))
    return statistics.median(rates)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--framing", choices=("ndjson", "sse"), default="ndjson")
    parser.add_argument("--events", type=int, help="stop after so many; by default at the end of the body")
    parser.add_argument("--batch", type=int, default=0, help="read lists of so many instead of single events")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=Path, help="NDJSON of the same events, for msgspec alone")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    runner = asyncio.run
    if options.uvloop:
        import uvloop

        runner = uvloop.run
    runs = []
    for _ in range(options.rounds):
        gc.collect()
        runs.append(
            runner(
                read(
                    options.url,
                    framing=options.framing,
                    limit=options.events,
                    batch=options.batch,
                )
            )
        )
    median = sorted(runs, key=lambda run: run["rate_by_cpu"])[len(runs) // 2]
    result: dict[str, object] = {key: round(value, 3) for key, value in median.items()}
    result["peak_megabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    if options.memory:
        alone = decode_from_memory(options.memory, options.rounds)
        result["msgspec_alone"] = round(alone)
        result["share"] = round(median["rate_by_cpu"] / alone, 3)
    print(json.dumps(result))  # a script that prints


if __name__ == "__main__":
    main()
