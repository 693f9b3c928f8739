"""Keep a mirror, and answer searches from it: `uvicorn --app-dir examples mirror_in_fastapi:app`."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore

index = sqlite3.connect("search.db", isolation_level=None, check_same_thread=False)
index.execute("CREATE VIRTUAL TABLE IF NOT EXISTS pages USING fts5 (title, abstract)")


async def keep_index(mirror: Mirror) -> None:
    """Apply each change of the mirror to the index."""
    async for change in mirror.changes("search"):
        index.execute("DELETE FROM pages WHERE rowid = ?", (change.page_id,))
        if page := await mirror.get(page_id=change.page_id):
            row = page.identifier, page.name, page.abstract
            index.execute("INSERT INTO pages (rowid, title, abstract) VALUES (?, ?, ?)", row)
        await change.ack()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Keep both while the application runs."""
    mirror = Mirror(wme := Client.from_env(), "simplewiki_namespace_0", SQLiteStore("mirror.db"))
    async with wme, mirror, asyncio.TaskGroup() as group:
        tasks = [group.create_task(mirror.run()), group.create_task(keep_index(mirror))]
        yield
        for task in tasks:
            task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/search/{words}")
async def search(words: str) -> list[str]:
    """Return the best titles."""
    query = "SELECT title FROM pages WHERE pages MATCH ? ORDER BY rank LIMIT 10"
    return [title for (title,) in index.execute(query, (f'"{words}"',))]
