"""Load the articles that changed in the latest hour into a Polars frame.

pip install polars
python examples/polars_over_wme.py simplewiki_namespace_0
"""

import asyncio
import sys

import msgspec
import polars as pl

from wme_async import Client
from wme_async.integrations.arrow import ArrowSource


class Version(msgspec.Struct, frozen=True):
    """The latest revision."""

    number_of_characters: int = 0


class Change(msgspec.Struct):
    """The columns of the frame."""

    name: str = ""
    version: Version = Version()


async def main(identifier: str) -> None:
    """Print the longest of the changed articles."""
    async with Client.from_env() as wme:
        frame = pl.DataFrame(ArrowSource(wme.batches("latest"), identifier, type=Change))
    longest = frame.unnest("version").sort("number_of_characters", descending=True).head(3)
    print(frame.height, "changes, the longest:", ", ".join(longest["name"]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
