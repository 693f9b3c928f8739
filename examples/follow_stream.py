"""Count edits by project, for as long as you like; a restart continues where this run stopped.

    python examples/follow_stream.py offsets.db 1000

The second argument is the number of events; without it the script runs until Ctrl-C.
"""

import asyncio
import contextlib
import sys
from collections import Counter

import msgspec

from wme_async import Client, OffsetGap, SQLiteOffsets


class Project(msgspec.Struct, frozen=True):
    """The requested fields of a project."""

    identifier: str = ""


class Edit(msgspec.Struct):
    """The requested fields of an event; the stream adds those that its positions need."""

    is_part_of: Project = Project()


def report_gap(gap: OffsetGap) -> None:
    """Report events that expired before they were read."""
    print(f"missing in partition {gap.partition}: {gap}", file=sys.stderr)


async def main(path: str, limit: float) -> None:
    """Print the five busiest projects at the end."""
    counts: Counter[str] = Counter()
    async with Client.from_env() as wme:
        stream = wme.realtime.articles(type=Edit, offsets=SQLiteOffsets(path), name="edits", on_gap=report_gap)
        with contextlib.suppress(asyncio.CancelledError):
            async with stream:
                async for edit in stream:
                    counts[edit.is_part_of.identifier] += 1
                    stream.ack(edit)
                    if counts.total() >= limit:
                        break
    print(f"{counts.total()} events;", ", ".join(f"{name} {count}" for name, count in counts.most_common(5)))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")))
