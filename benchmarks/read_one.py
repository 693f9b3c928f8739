"""Read an archive while it downloads, or from the disk, by the package, and print one line of JSON.

    python benchmarks/read_one.py URL_OR_PATH [--slim] [--connections N] [--tee PATH] [--uvloop] [--without isal,orjson]

`first_bytes` is the share of the archive that the inflater had received at the first record, in percent, and `first`
the time of that in milliseconds. `lag` is the longest delay in milliseconds of a task of the event loop that wakes up
each millisecond.
"""

import argparse
import asyncio
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any


async def read(options: argparse.Namespace) -> dict[str, Any]:
    """Read all records and count them."""
    import msgspec  # after the extras were hidden
    from download_one import PlainSource, transport_of, watched  # same

    from wme_async import ArchiveReader, Article  # same
    from wme_async._download import open_content  # same

    class Event(msgspec.Struct, gc=False):
        type: str = ""
        date_published: datetime | None = None

    class Slim(msgspec.Struct, gc=False):
        name: str = ""
        identifier: int = 0
        event: Event | None = None

    remote = options.source.startswith("http")
    pool, transport = transport_of(options.cafile)
    figures: dict[str, Any] = {}
    count, first, handed = 0, 0.0, 0
    async with pool:
        started, cpu = time.perf_counter(), time.process_time()
        source: Any = Path(options.source)
        size = None if remote else source.stat().st_size
        if remote:
            source = open_content(
                PlainSource(options.source, transport),
                transport=transport,
                verify=False,
                connections=options.connections,
                tee=Path(options.tee) if options.tee else None,
                durable=False,
            )
        reader: ArchiveReader[Any] = ArchiveReader(source, type=Slim if options.slim else Article)
        with watched(figures, active=True):
            async with reader as records:
                async for _ in records:
                    if not count:
                        first = time.perf_counter() - started
                        handed = records.statistics().compressed_bytes
                    count += 1
                statistics = records.statistics()
        figures |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        await transport.aclose()
    size = size or statistics.compressed_bytes
    return figures | {"records": count, "first": first * 1e3, "first_bytes": 100 * handed / size}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--slim", action="store_true")
    parser.add_argument("--connections", type=int)
    parser.add_argument("--tee")
    parser.add_argument("--cafile")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--without", default="", help="packages to do without, as if they were not installed")
    options = parser.parse_args()
    for name in filter(None, options.without.split(",")):
        sys.modules[name] = None  # type: ignore[assignment]  # makes `import` fail
    run: Any = asyncio.run
    if options.uvloop:
        import uvloop  # an extra

        run = uvloop.run
    print(json.dumps(run(read(options))))


if __name__ == "__main__":
    main()
