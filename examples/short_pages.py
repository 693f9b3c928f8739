"""Find the shortest pages in many downloaded archives, on all processors.

    python examples/short_pages.py data/snapshots/*.tar.gz

One line for each page under 100 characters: its length, its title, and the archive that it is in.
"""

import asyncio
import sys

import msgspec

from wme_async import read_many


class Revision(msgspec.Struct, frozen=True):
    """The requested fields of a version."""

    number_of_characters: int = 0


class Page(msgspec.Struct, frozen=True):
    """The requested fields of an article."""

    name: str
    version: Revision = Revision()


def short(pages: list[Page]) -> list[Page]:
    """Filter in the worker: pages that are dropped here are not sent to this process."""
    return [page for page in pages if page.version.number_of_characters < 100]


async def main(paths: list[str]) -> None:
    """Print the pages as the workers find them."""
    read = 0
    async with read_many(paths, type=Page, each=short) as results:
        async for result in results:
            for page in result.records:
                print(page.version.number_of_characters, page.name, result.path, sep="\t")
            if result.statistics is not None:
                read += result.statistics.records
    print(f"{read} pages in {len(paths)} archives", file=sys.stderr)


# Workers import this file, and must not start the work again.
if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1:]))
