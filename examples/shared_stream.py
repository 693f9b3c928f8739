"""Copy the stream into PostgreSQL from any number of hosts, each event once; start as many as you like, kill any.

    python examples/shared_stream.py postgresql://user:password@host/database 1000

The hosts share the parts of the stream by leases. What a host was doing when it died is done again by another one, so
events have a key; and a host that slept through the end of a lease may write late, so a table of tokens rejects what is
written under an older one. The second argument is the number of rows to stop at; without it the script runs until
Ctrl-C.
"""

import asyncio
import sys
from collections import defaultdict

import asyncpg

from wme_async import Article, Client, PostgresOffsets

SCHEMA = """
SELECT pg_advisory_xact_lock(1);
CREATE TABLE IF NOT EXISTS edits (
    partition int, "offset" bigint, type text, name text, PRIMARY KEY (partition, "offset"));
CREATE TABLE IF NOT EXISTS fences (part int PRIMARY KEY, token bigint NOT NULL);
"""
FENCE = """
INSERT INTO fences AS f VALUES ($1, $2) ON CONFLICT (part) DO UPDATE SET token = excluded.token
WHERE f.token <= excluded.token RETURNING token
"""
EDIT = "INSERT INTO edits VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"


async def write(connection: asyncpg.Connection, articles: list[Article], part: int, token: int) -> None:
    """Write events of one part, unless a later owner of it has written already."""
    rows = [(a.event.partition, a.event.offset, a.event.type, a.name) for a in articles]
    async with connection.transaction():
        if await connection.fetchval(FENCE, part, token) is not None:
            await connection.executemany(EDIT, rows)


async def main(dsn: str, limit: float) -> None:
    """Copy until there are enough rows."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(SCHEMA)
    async with (
        Client.from_env() as wme,
        wme.realtime.articles(
            fields=["name", "event"], offsets=PostgresOffsets(dsn), share="group", lease=30.0
        ) as stream,
    ):
        async for batch in stream.batches(500, 0.2):
            parts = defaultdict(list)
            for article in batch:
                parts[(article.event.partition or 0) // 5].append(article)
            for part, articles in parts.items():
                await write(connection, articles, part, stream.token(part))
                for article in articles:
                    stream.ack(article)
            rows = await connection.fetchval("SELECT count(*) FROM edits")
            if rows >= limit:
                break
        print(f"{rows} rows; this host reads {len(stream.parts)} parts")
    await connection.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")))
