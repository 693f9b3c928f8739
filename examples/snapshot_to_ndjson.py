"""Turn a snapshot into one file of selected fields, while it downloads.

    python examples/snapshot_to_ndjson.py simplewiki_namespace_0 pages.ndjson

A snapshot may hold a page more than once; the later revision wins. Bad records are written to standard error.
"""

import asyncio
import sys
from pathlib import Path

import msgspec

from wme_async import Client, DecodeError


class Revision(msgspec.Struct, frozen=True):
    """The requested fields of a version."""

    identifier: int = 0


class Page(msgspec.Struct, frozen=True):
    """The requested fields of an article; the others are not decoded."""

    identifier: int
    name: str
    version: Revision = Revision()
    url: str = ""


def report(error: DecodeError) -> None:
    """Report a record that does not decode, and continue."""
    print(f"{error.member}, line {error.line}: {error.message}", file=sys.stderr)


async def main(identifier: str, target: Path) -> None:
    """Write the file; it gets its name when it is complete."""
    newest: dict[int, int] = {}
    unfinished = target.with_suffix(".unfinished")
    encoder = msgspec.json.Encoder()
    async with Client.from_env() as wme, wme.snapshots.read(identifier, type=Page, on_bad_record=report) as pages:
        with unfinished.open("wb") as file:  # buffered writes of some kilobytes at a time
            async for batch in pages.batches():
                for page in batch:
                    if newest.get(page.identifier, -1) < page.version.identifier:
                        newest[page.identifier] = page.version.identifier
                        file.write(encoder.encode(page) + b"\n")
        statistics = pages.statistics()
    unfinished.replace(target)
    counts = f"{statistics.records} records of {statistics.members} members, {statistics.bad_records} bad"
    print(f"{counts}, {len(newest)} pages in {target}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
