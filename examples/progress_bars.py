"""Download several archives at once, a progress bar for each; then sync a folder with one bar for all files.

    python examples/progress_bars.py 2025-07-16T05 enwiki_namespace_0 dewiki_namespace_0

In a terminal the bars are drawn on standard error; in a notebook they are part of the page. Credentials come from
WME_USERNAME and WME_PASSWORD; `wme-async simulate` prints those of a simulator.
"""

import asyncio
import sys

from wme_async import Client
from wme_async.progress import bar


async def main(hour: str, identifiers: list[str]) -> None:
    """Download, and sync."""
    async with Client.from_env() as wme:
        batches = wme.batches(hour)
        async with bar("all") as bars, asyncio.TaskGroup() as group:

            async def fetch(identifier: str) -> None:
                with bars.add(identifier) as progress:
                    download = await batches.download(identifier, "data/", progress=progress)
                print(f"{download.path} {download.size} bytes")

            for identifier in identifiers:
                group.create_task(fetch(identifier))
        async with bar("German") as progress:
            report = await batches.sync("synced/", filters={"in_language.identifier": "de"}, progress=progress)
        print(f"{len(report.new)} new files")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
