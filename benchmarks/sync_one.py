"""Sync an hour, or download a snapshot, with the public client, and print figures as one line of JSON.

    python benchmarks/sync_one.py OPTIONS.json FOLDER [--concurrency N]
    python benchmarks/sync_one.py OPTIONS.json FOLDER --snapshot IDENTIFIER [--verify]

OPTIONS.json is the line that line.py prints.
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from wme_async import Client


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do it and return the figures."""
    options = json.loads(arguments.options.read_text())
    hour = options.pop("hour")
    async with Client(**options) as wme:
        if arguments.snapshot is not None:
            done = await wme.snapshots.download(
                arguments.snapshot, arguments.folder / "out.bin", verify=arguments.verify
            )
            return {"bytes": done.size}
        report = await wme.batches(hour).sync(arguments.folder, concurrency=arguments.concurrency)
    for file in report.failed:
        raise SystemExit(f"{file.identifier}: {file.error}")
    files = len(report.new)
    return {"files": files, "requests": report.requests, "requests_a_file": (report.requests - 1) / files}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--snapshot")
    parser.add_argument("--verify", action="store_true")
    print(json.dumps(asyncio.run(main(parser.parse_args()))))
