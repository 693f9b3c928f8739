"""Bring every batch of each hour into a folder, as the hours appear.

    python examples/hours_to_folder.py data/ --since=-24h --keep 7

It goes on where it was stopped, by Ctrl-C, `kill -9` or a power failure. Credentials come from the environment:
WME_USERNAME and WME_PASSWORD.
"""

import argparse
import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from wme_async import Client, HourGap, SQLiteOffsets, SyncReport


def tell(hour: str, report: SyncReport) -> None:
    """Print what became of an hour."""
    print(f"{hour}: {len(report.new)} new, {len(report.unchanged)} unchanged, {report.bytes / 1e6:.1f} MB", flush=True)
    for file in report.failed:
        print(f"  {file.identifier}: {file.error}", file=sys.stderr)


def tell_gap(gap: HourGap) -> None:
    """Print which hour is gone."""
    print(gap, file=sys.stderr)


async def main(folder: Path, since: str, days: int, count: int | None) -> None:
    """Follow the hours; with a count end after so many."""
    async with (
        Client.from_env() as wme,
        wme.hours(since, offsets=SQLiteOffsets(folder / "hours.db"), on_gap=tell_gap) as hours,
    ):
        async for hour in hours:
            report = await hour.sync(folder, keep=timedelta(days=days))
            tell(f"{hour.hour:%Y-%m-%dT%H}", report)
            if report.complete:
                # Without this the hour would count as done when the next one is asked for, up to an hour later.
                await hours.commit()
            count = None if count is None else count - 1
            if count == 0:
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--since", default="latest", help="where to begin the first time: latest, -24h or an hour")
    parser.add_argument("--keep", type=int, default=7, metavar="DAYS", help="remove hours that are older")
    parser.add_argument("--count", type=int, help="end after so many hours")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(arguments.folder, arguments.since, arguments.keep, arguments.count))
