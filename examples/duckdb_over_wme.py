"""Ask DuckDB about the articles that changed in the latest hour, without a file in between.

pip install duckdb
python examples/duckdb_over_wme.py simplewiki_namespace_0
"""

import asyncio
import sys

import duckdb
import msgspec

from wme_async import Client
from wme_async.integrations.arrow import ArrowSource


class Editor(msgspec.Struct, frozen=True):
    """Who made the edit."""

    is_bot: bool = False


class Version(msgspec.Struct, frozen=True):
    """The latest revision."""

    editor: Editor = Editor()


class Change(msgspec.Struct):
    """The columns of the table."""

    name: str = ""
    version: Version = Version()


async def main(identifier: str) -> None:
    """Print how many of the changes are by bots."""
    async with Client.from_env() as wme:
        changes = ArrowSource(wme.batches("latest"), identifier, type=Change)
        question = "SELECT count(*), count(*) FILTER (version.editor.is_bot) FROM changes"
        total, by_bots = duckdb.execute(question).fetchall()[0]
    print(f"{total} changes, {by_bots} of them by bots ({changes.cost().requests} metered requests a scan)")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
