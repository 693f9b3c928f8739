"""Look up many titles, and print the result of each.

python examples/lookup.py enwiki "Marie Curie" NATO "No such page"
python examples/lookup.py enwiki < titles.txt
"""

import asyncio
import sys
from collections.abc import Iterable

import msgspec

from wme_async import Client, QuotaExceeded


class Page(msgspec.Struct):
    """The requested fields of an article; no others are sent."""

    name: str = ""
    url: str = ""


async def main(project: str, titles: Iterable[str]) -> int:
    """Print one line for each title."""
    failures = 0
    filters = {"is_part_of.identifier": project}
    async with (
        Client.from_env() as wme,
        wme.articles.lookup_many(titles, filters=filters, type=Page, concurrency=20) as results,
    ):
        async for result in results:
            if isinstance(result.error, QuotaExceeded):
                raise result.error
            failures += result.error is not None
            print(result.name, result.first.url if result.first else result.error or "no such page", sep="\t")
    return failures


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    # The generator is read as requests go out, so the file may be larger than memory.
    lines = (line.strip() for line in sys.stdin)
    sys.exit(1 if asyncio.run(main(sys.argv[1], sys.argv[2:] or lines)) else 0)
