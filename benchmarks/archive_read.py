"""Read an archive in a given way and print counts and seconds, as one line of JSON.

    python benchmarks/archive_read.py ARCHIVE [--mode full|slim|batches|slim-batches|skip|inflate|decode]
                                      [--no-isal] [--no-orjson] [--uvloop] [--many N]

`full` and `slim` iterate record by record into Articles or into a Struct of three fields, `batches` and `slim-batches`
over lists, `skip` passes over every member. Two modes are bounds to compare with: `inflate` only inflates, in this
thread, `decode` decodes the first 200 MB of lines from memory with msgspec alone. With `--many N`
worker processes read the archive N times and count, or send all records where the mode has `batches`. `lag` is the
longest delay in seconds of a task of the event loop that wakes up each millisecond.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

import wme_async
from wme_async.models import Article


class SlimEvent(msgspec.Struct, gc=False):
    """The fields for a consumer of changes."""

    type: str = ""
    date_published: datetime | None = None


class Slim(msgspec.Struct, gc=False):
    """A small part of an article."""

    name: str = ""
    identifier: int = 0
    event: SlimEvent | None = None


async def ticker(lags: list[float]) -> None:
    """Note how late each wake-up comes."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append(time.perf_counter() - before - 0.001)


async def read(path: Path, mode: str, **options: Any) -> dict[str, Any]:
    """Read the archive by the package."""
    lags: list[float] = []
    beside = asyncio.create_task(ticker(lags))
    first = None
    started = time.perf_counter()
    type_: type[Any] = Slim if mode.startswith("slim") else Article
    if mode == "skip":
        options["select"] = lambda _name: False
    async with wme_async.read_archive(path, type=type_, **options) as records:
        if mode.endswith("batches"):
            async for _ in records.batches():
                first = first or time.perf_counter() - started
        else:
            async for _ in records:
                first = first or time.perf_counter() - started
        statistics = records.statistics()
    seconds = time.perf_counter() - started
    beside.cancel()
    lags.sort()
    return {
        "records": statistics.records,
        "bytes": statistics.bytes,
        "seconds": seconds,
        "first": first,
        "lag": lags[-1] if lags else None,
        "lag_p99": lags[len(lags) * 99 // 100] if lags else None,
    }


def inflate(path: Path, *, use_isal: bool) -> dict[str, Any]:
    """Inflate in one thread and drop the bytes."""
    started = time.perf_counter()
    total = 0
    if use_isal:
        from isal import igzip

        with igzip.IGzipFile(path, "rb") as file:
            while block := file.read1(1024 * 1024):
                total += len(block)
    else:
        engine = zlib.decompressobj(31)
        with path.open("rb") as file:
            while piece := file.read(64 * 1024):
                total += len(engine.decompress(piece))
    return {"bytes": total, "seconds": time.perf_counter() - started}


async def decode(path: Path) -> dict[str, Any]:
    """Decode lines that are in memory, by msgspec alone."""
    lines: list[bytes] = []
    size = 0
    async with wme_async.read_archive(path, type=msgspec.Raw) as records:
        async for record in records:
            lines.append(bytes(record))
            size += len(record)
            if size > 200_000_000:
                break
    one = msgspec.json.Decoder(Article).decode
    started = time.perf_counter()
    for line in lines:
        one(line)
    return {"records": len(lines), "bytes": size, "seconds": time.perf_counter() - started}


async def many(path: Path, count: int, mode: str) -> dict[str, Any]:
    """Read the archive several times over, in worker processes, and count."""
    started = time.perf_counter()
    records = size = 0
    type_: type[Any] = Slim if mode.startswith("slim") else Article
    async with wme_async.read_many([path] * count, type=type_, count_only="batches" not in mode) as results:
        async for result in results:
            if result.statistics is not None:
                records += result.statistics.records
                size += result.statistics.bytes
    return {"records": records, "bytes": size, "seconds": time.perf_counter() - started}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument(
        "--mode", default="full", choices=["full", "slim", "batches", "slim-batches", "skip", "inflate", "decode"]
    )
    parser.add_argument("--no-isal", action="store_true")
    parser.add_argument("--no-orjson", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--many", type=int, default=0, metavar="N")
    args = parser.parse_args()
    if args.uvloop:
        import uvloop

        run: Any = uvloop.run
    else:
        run = asyncio.run
    if args.many:
        result = run(many(args.archive, args.many, args.mode))
    elif args.mode == "inflate":
        result = inflate(args.archive, use_isal=not args.no_isal)
    elif args.mode == "decode":
        result = run(decode(args.archive))
    else:
        result = run(read(args.archive, args.mode, use_isal=not args.no_isal, use_orjson=not args.no_orjson))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result |= {
        "mode": args.mode,
        "isal": not args.no_isal,
        "orjson": not args.no_orjson,
        "rate_mb": result["bytes"] / result["seconds"] / 1e6,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
