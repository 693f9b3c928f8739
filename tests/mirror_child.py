"""Processes that the tests of mirrors kill: `mirror DB` keeps a mirror, `consumer DB INDEX` keeps an index fed from it.

Each prints a line when it has begun.
"""

import asyncio
import sqlite3
import sys

from wme_async import Client
from wme_async.mirror import Mirror, MirrorReader, SQLiteStore


def say_ready() -> None:
    """Tell the parent that it may kill."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


async def keep_mirror(path: str) -> None:
    """Keep a mirror until killed."""
    async with Client.from_env() as wme:
        store = SQLiteStore(path)
        async with Mirror(wme, "enwiki_namespace_0", store, poll=0.05, on_event=lambda _event: None) as mirror:
            say_ready()
            await mirror.run()


async def keep_index(path: str, index_path: str) -> None:
    """Keep an index until killed: each change is a transaction, acknowledged afterwards."""
    index = sqlite3.connect(index_path, isolation_level=None)
    index.execute("PRAGMA journal_mode = WAL").fetchall()
    index.execute("PRAGMA synchronous = OFF")
    index.execute("CREATE TABLE IF NOT EXISTS pages (page_id INTEGER PRIMARY KEY, title TEXT, revision INTEGER)")
    async with MirrorReader(SQLiteStore(path)) as reader:
        say_ready()
        async for change in reader.changes("index"):
            if change.kind == "delete":
                index.execute("DELETE FROM pages WHERE page_id = ?", (change.page_id,))
            else:
                row = change.page_id, change.title, change.revision
                index.execute("INSERT OR REPLACE INTO pages VALUES (?, ?, ?)", row)
            await change.ack()


if __name__ == "__main__":
    if sys.argv[1] == "mirror":
        asyncio.run(keep_mirror(sys.argv[2]))
    else:
        asyncio.run(keep_index(*sys.argv[2:]))
