"""Turn a snapshot into Parquet files on all processors, and resume after any interruption.

    python examples/snapshot_on_processes.py simplewiki_namespace_0 data/simplewiki

The folder may be in an object store, such as s3://bucket/simplewiki (extra `cloud`).
"""

import asyncio
import sys

import msgspec

from wme_async import Client, tasks


class Page(msgspec.Struct):
    """The columns of the table."""

    identifier: int = 0
    name: str = ""
    url: str = ""


async def main(identifier: str, folder: str) -> None:
    """Plan the snapshot, run the plan, and print where the files are."""
    async with Client.from_env() as wme:
        # By its name, since this file is the script here and a module in the workers.
        plan = await wme.snapshots.plan(identifier, to=folder, type="snapshot_on_processes:Page")
    manifest = await tasks.run_plan(plan, progress=report)
    print(f"{manifest.rows} rows in {len(manifest.files)} files of {folder}/manifest.json")


def report(progress: tasks.PlanProgress) -> None:
    """Report progress on standard error."""
    print(f"{progress.tasks} of {progress.tasks_total} chunks", file=sys.stderr)


# Workers import this file, and must not begin anew.
if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
