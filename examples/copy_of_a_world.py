"""Compare a copy of a wiki with the wiki itself, in a world that changes: no account, no network.

    python examples/copy_of_a_world.py

Put your own program in the place of the mirror.
"""

import asyncio
import tempfile
from pathlib import Path

from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore
from wme_async.simulator import Simulator, World


async def copy(sim: Simulator, path: Path) -> dict[str, int]:
    """Return title and revision of each page of a copy that is brought up to date."""
    store = SQLiteStore(path)
    async with Client(**sim.client_options()) as wme, Mirror(wme, "enwiki_namespace_0", store) as mirror:
        await mirror.sync(quiet=1.0)
        lists = mirror.keys()
        return {title: revision async for keys in lists for _, title, _, revision, _ in keys}


async def main() -> None:
    """Make a history, and compare before and after more changes."""
    world = World(seed=7, projects=["enwiki"], pages=40, past=100)
    with tempfile.TemporaryDirectory() as folder:
        async with Simulator(world=world) as sim:
            begin = world.now() - 47 * 3600  # the copy reads the stream from here on
            for _ in range(2):
                world.advance(60)  # all that has happened is published
                pages = await copy(sim, Path(folder) / "mirror.db")
                truth = world.truth("enwiki")
                revisions = {title: page.revision for title, page in truth.pages.items()}
                different = {title for title, _ in pages.items() ^ revisions.items()}
                print(len(pages), "pages;", len(different - truth.exceptions(begin).keys()), "differ from the wiki")
                world.move("enwiki", min(truth.pages), "Moved")
                world.delete("enwiki", max(truth.pages))


if __name__ == "__main__":
    asyncio.run(main())
