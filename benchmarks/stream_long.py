"""Follow a stream of very many events by the client, and print how memory went meanwhile, as one line of JSON.

    python benchmarks/stream_long.py BASE PATH EVENTS

`resident` is the memory of the process after each tenth of the events, in MB, and `growth` what the last nine tenths
added to the first.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from wme_async import Client, MemoryOffsets

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """Return the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


async def follow(base: str, path: str, events: int) -> dict[str, object]:
    """Read so many events and stop."""
    marks: list[float] = []
    count = 0
    step = events // 10
    hosts = {"auth": base, "api": base, "realtime": base}
    async with Client(access_token="x", hosts=hosts, paths={"realtime.articles": path}) as wme:  # noqa: S106  # nobody's
        started, cpu = time.perf_counter(), time.process_time()
        async with wme.realtime.articles(offsets=MemoryOffsets()) as stream:
            async for _ in stream:
                count += 1
                if count % step == 0:
                    marks.append(round(resident(), 1))
                    if count == events:
                        break
            numbers = stream.statistics()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if numbers.duplicates or len(numbers.partitions) != 50:
        raise SystemExit(f"{numbers.duplicates} duplicates, {len(numbers.partitions)} partitions")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "resident": marks,
        "growth": round(max(marks) - marks[0], 1),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(follow(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
