"""Keep a mirror of a wiki and a full-text index of it (SQLite's FTS5), and search.

    python examples/mirror_search.py simplewiki_namespace_0 'mountain river'

Each call brings both up to date: the mirror from the newest snapshot, the index from the mirror's change feed.
"""

import asyncio
import sqlite3
import sys

from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore


async def update(mirror: Mirror, index: sqlite3.Connection) -> int:
    """Apply the changes since the last call to the index, and return their number."""
    count = 0
    async for change in mirror.changes("search", wait=False):
        # A page keeps its id when it is moved; its title changes.
        index.execute("DELETE FROM pages WHERE rowid = ?", (change.page_id,))
        page = await mirror.get(page_id=change.page_id)
        if page is not None:
            text = page.article_body.wikitext if page.article_body is not None else ""
            index.execute("INSERT INTO pages (rowid, title, text) VALUES (?, ?, ?)", (page.identifier, page.name, text))
        await change.ack()
        count += 1
    return count


async def main(identifier: str, words: str) -> None:
    """Update and search."""
    index = sqlite3.connect("search.db", isolation_level=None)
    index.execute("CREATE VIRTUAL TABLE IF NOT EXISTS pages USING fts5 (title, text)")
    async with (
        Client.from_env() as wme,
        Mirror(wme, identifier, SQLiteStore("mirror.db"), source="snapshots", keep=["wikitext"]) as mirror,
    ):
        await mirror.sync()
        print(f"{await update(mirror, index)} changes")
    query = "SELECT title FROM pages WHERE pages MATCH ? ORDER BY rank LIMIT 5"
    for (title,) in index.execute(query, (" OR ".join(f'"{word}"' for word in words.split()),)):
        print(title)
    index.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
