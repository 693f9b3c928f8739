"""Turn a snapshot into a Parquet file while it downloads.

    python examples/articles_to_parquet.py simplewiki_namespace_0 simplewiki.parquet

The columns are the fields of the Struct; `type=Article` writes all of them.
"""

import asyncio
import sys

import msgspec

from wme_async import Client
from wme_async.integrations.arrow import write_parquet


class Body(msgspec.Struct):
    """The text of an article."""

    wikitext: str = ""


class Page(msgspec.Struct):
    """The columns of the table."""

    name: str = ""
    identifier: int = 0
    article_body: Body | None = None


async def main(identifier: str, target: str) -> None:
    """Write the snapshot and print its size."""
    async with Client.from_env() as wme, wme.snapshots.read(identifier, type=Page) as pages:
        table = await write_parquet(pages, target, type=Page)
    print(f"{table.rows} rows, {table.bytes} bytes in {target}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
