"""Keep a mirror of a wiki and a vector store of its abstracts (sqlite-vec), and find similar pages.

    python examples/mirror_vectors.py simplewiki_namespace_0 'a river in the mountains'

The embedding only hashes words into 256 numbers, so that nothing has to be downloaded; put a model in its place.
"""

import asyncio
import hashlib
import math
import sqlite3
import sys

import sqlite_vec

from wme_async import Client
from wme_async.mirror import Mirror, SQLiteStore

SIZE = 256


def embed(text: str) -> bytes:
    """Return a vector of length 1: each word counts at the place that its hash names."""
    vector = [0.0] * SIZE
    for word in text.lower().split():
        digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
        vector[int.from_bytes(digest) % SIZE] += 1.0 if digest[0] & 1 else -1.0
    length = math.sqrt(sum(number * number for number in vector)) or 1.0
    return bytes(sqlite_vec.serialize_float32([number / length for number in vector]))


def connect(path: str) -> sqlite3.Connection:
    """Open a database with sqlite-vec."""
    db = sqlite3.connect(path, isolation_level=None)
    if hasattr(db, "enable_load_extension"):  # some builds of Python lack it
        db.enable_load_extension(True)  # noqa: FBT003  # it takes no name
        sqlite_vec.load(db)
    db.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS vectors USING vec0 (page_id INTEGER PRIMARY KEY, v float[{SIZE}])")
    return db


async def update(mirror: Mirror, vectors: sqlite3.Connection) -> int:
    """Embed what has changed since the last call, and return the number of changes."""
    count = 0
    async for change in mirror.changes("vectors", wait=False):
        vectors.execute("DELETE FROM vectors WHERE page_id = ?", (change.page_id,))
        page = await mirror.get(page_id=change.page_id)  # None if it is gone; without the text if that is hidden
        if page is not None:
            vector = embed(f"{page.name} {page.abstract}")
            vectors.execute("INSERT INTO vectors (page_id, v) VALUES (?, ?)", (page.identifier, vector))
        await change.ack()
        count += 1
    return count


async def main(identifier: str, text: str) -> None:
    """Update, and print the nearest pages."""
    vectors = connect("vectors.db")
    async with (
        Client.from_env() as wme,
        Mirror(wme, identifier, SQLiteStore("mirror.db"), source="snapshots", keep=["abstract"]) as mirror,
    ):
        await mirror.sync()
        print(f"{await update(mirror, vectors)} changes")
        query = "SELECT page_id, distance FROM vectors WHERE v MATCH ? AND k = 3 ORDER BY distance"
        for page_id, distance in vectors.execute(query, (embed(text),)):
            page = await mirror.get(page_id=page_id)
            if page is not None:
                print(f"{distance:.2f}\t{page.name}")
    vectors.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
