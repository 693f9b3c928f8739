"""Copy the stream into a database, each event exactly once, whatever happens to this process.

    python examples/exactly_once.py edits.db 1000

Events and positions are written in one transaction, so that after a crash both are there or neither is. The second
argument is the number of rows to stop at; without it the script runs until Ctrl-C.
"""

import asyncio
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import datetime

from wme_async import Article, Client, MemoryOffsets, Position

SCHEMA = """
CREATE TABLE IF NOT EXISTS edits (partition INTEGER, offset INTEGER, type TEXT, name TEXT);
CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, offset INTEGER, published TEXT);
"""


def load(db: sqlite3.Connection) -> dict[int, Position]:
    """Return the positions as of the last transaction."""
    rows = db.execute("SELECT partition, offset, published FROM positions")
    return {p: Position(offset, datetime.fromisoformat(time) if time else None) for p, offset, time in rows}


def store(db: sqlite3.Connection, articles: Iterable[Article], positions: Mapping[int, Position]) -> None:
    """Write events and positions, all or none."""
    edits = [(a.event.partition, a.event.offset, a.event.type, a.name) for a in articles]
    marks = [(p, at.offset, at.published and at.published.isoformat()) for p, at in positions.items()]
    with db:
        db.executemany("INSERT INTO edits VALUES (?, ?, ?, ?)", edits)
        db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", marks)


async def main(path: str, limit: float) -> None:
    """Copy until there are enough rows."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA)
        offsets = MemoryOffsets({"default/articles": load(db)})
        fields = ["name", "event"]
        async with (
            Client.from_env() as wme,
            # The positions are stored here, so the stream commits none by itself.
            wme.realtime.articles(fields=fields, offsets=offsets, commit="manual") as stream,
        ):
            store(db, [], stream.positions)  # the start of partitions without events so far
            async for batch in stream.batches(500, 0.2):
                for article in batch:
                    stream.ack(article)
                store(db, batch, stream.positions)
                (rows,) = db.execute("SELECT count(*) FROM edits").fetchone()
                if rows >= limit:
                    break
        print(f"{rows} rows, {len(load(db))} positions")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")))
