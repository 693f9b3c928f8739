"""Positions and leases in PostgreSQL (extra `postgres`: `pip install 'wme-async[postgres]'`)."""

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from wme_async._arguments import check_numbers
from wme_async.offsets._database import DatabaseStore, needed_extra, server_name
from wme_async.offsets.lease_table import MEMBERSHIP
from wme_async.offsets.protocol import Position, check_lease, check_name, check_positions

__all__ = ["PostgresOffsets"]

_CONNECTIONS: Final = 4

# One session at a time creates them: IF NOT EXISTS alone fails in the second of two that begin together.
_TABLES: Final = """
SELECT pg_advisory_xact_lock(hashtext('wme_offsets'));
CREATE TABLE IF NOT EXISTS wme_offsets (
    name text NOT NULL, partition bigint NOT NULL, "offset" bigint NOT NULL,
    published timestamptz, reached timestamptz, PRIMARY KEY (name, partition));
CREATE TABLE IF NOT EXISTS wme_leases (
    name text NOT NULL, part bigint NOT NULL, owner text, token bigint NOT NULL, until timestamptz NOT NULL,
    PRIMARY KEY (name, part));
CREATE TABLE IF NOT EXISTS wme_members (
    name text NOT NULL, owner text COLLATE "C" NOT NULL, until timestamptz NOT NULL, PRIMARY KEY (name, owner));
"""

# Each step is one statement, so that it needs no session, and a process that stops in the middle holds no lock.
# Time is the server's: clock_timestamp(), since now() is the time at which the transaction began.
# Lists come as JSON: for an array, asyncpg first asks for its type, by a statement that it keeps in its cache.
_LOAD: Final = 'SELECT partition, "offset", published, reached FROM wme_offsets WHERE name = $1'
_SAVE: Final = """
INSERT INTO wme_offsets (name, partition, "offset", published, reached)
SELECT $1, new.* FROM {} jsonb_to_recordset($2::text::jsonb)
    new(partition bigint, "offset" bigint, published timestamptz, reached timestamptz)
ON CONFLICT (name, partition) DO UPDATE
SET "offset" = excluded."offset", published = excluded.published, reached = excluded.reached
"""
# The row of the lease stays locked to the end of the statement, so that nobody takes the part in between.
_SAVE_HELD: Final = f"""
WITH held AS (SELECT 1 FROM wme_leases WHERE name = $1 AND part = $3 AND owner = $4 AND token = $5 FOR UPDATE),
saved AS ({_SAVE.format("(SELECT FROM held) held,")})
SELECT count(*) FROM held
"""  # noqa: S608  # of constants
_JOIN: Final = f"""
INSERT INTO wme_members (name, owner, until)
VALUES ($1, $2, clock_timestamp() + $3::float8 * {MEMBERSHIP} * interval '1 second')
ON CONFLICT (name, owner) DO UPDATE SET until = excluded.until
"""  # noqa: S608  # of constants
# Of two members that take the same part, one waits for its row, and finds it taken. They choose at random, so that it
# is rare, and lock rows in the same order, so that neither waits for the other for ever.
_TAKE: Final = f"""
WITH joined AS ({_JOIN}),
forgotten AS (
    DELETE FROM wme_members WHERE name = $1 AND owner <> $2 AND until < clock_timestamp() - interval '1 day'),
share AS (
    SELECT ceil(($4::int - count(*) FILTER (WHERE owner < $2)) / (count(*) + 1.0)) - (
        SELECT count(*) FROM wme_leases WHERE name = $1 AND owner = $2 AND until > clock_timestamp()) AS size
    FROM wme_members WHERE name = $1 AND owner <> $2 AND until > clock_timestamp()),
chosen AS (
    SELECT part FROM generate_series(0, $4::int - 1) part WHERE NOT EXISTS (
        SELECT 1 FROM wme_leases held WHERE name = $1 AND held.part = part.part AND owner IS NOT NULL
        AND until > clock_timestamp())
    ORDER BY random() LIMIT greatest(0, (SELECT size FROM share)))
INSERT INTO wme_leases AS last (name, part, owner, token, until)
SELECT $1, part, $2, 1, clock_timestamp() + $3::float8 * interval '1 second' FROM chosen ORDER BY part
ON CONFLICT (name, part) DO UPDATE SET owner = excluded.owner, token = last.token + 1, until = excluded.until
WHERE last.owner IS NULL OR last.until <= clock_timestamp()
RETURNING part, token
"""  # noqa: S608  # of constants
_RENEW: Final = f"""
WITH joined AS ({_JOIN})
UPDATE wme_leases SET until = clock_timestamp() + $3::float8 * interval '1 second'
WHERE name = $1 AND owner = $2 AND until > clock_timestamp() RETURNING part, token
"""  # noqa: S608  # of constants
_MEMBERS: Final = "SELECT owner FROM wme_members WHERE name = $1 AND until > clock_timestamp() ORDER BY owner"
_GIVE: Final = """
WITH gone AS (DELETE FROM wme_members WHERE name = $1 AND owner = $2 AND $3::text IS NULL)
UPDATE wme_leases SET owner = NULL WHERE name = $1 AND owner = $2
AND ($3 IS NULL OR part IN (SELECT jsonb_array_elements_text($3::jsonb)::bigint))
"""

# Classes of SQLSTATE whose cause may pass: connection, rollback, resources, shutdown, a transaction that stood still.
_PASSING: Final = ("08", "40", "53", "57P", "25P03")


class PostgresOffsets(DatabaseStore[Any]):
    """Keeps positions and leases in three tables of a PostgreSQL database, which are created when they are missing.

    Any number of hosts may use it, directly or through PgBouncer in any mode. Only the clock of the server counts. It
    has no claims: with it, readers of one name share its parts with `share="group"`.

    Args:
        database: A URL such as `postgresql://user:password@host/database`; or an asyncpg pool, which stays yours.
            A URL is best: the store then has connections while it is used, four at most, without a cache of statements.
            In a pool that may have one, each call takes a short transaction instead of a single statement, so that it
            is safe behind PgBouncer.
        timeout: Seconds for one call. While the server cannot be reached, as in a restart, calls are repeated for so
            long.

    Raises:
        TypeError: The database is neither a URL nor a pool.
        ValueError: It is the URL of something else, or the time is not above 0.
        ImportError: The extra `postgres` is not installed.
    """

    def __init__(self, database: Any, *, timeout: float = 10.0) -> None:
        check_numbers(optional=False, above=0, unit="seconds", timeout=timeout)
        with needed_extra("PostgresOffsets", "asyncpg", "postgres"):
            import asyncpg  # noqa: PLC0415  # needed by this store alone
        self._asyncpg: Any = asyncpg
        if isinstance(database, str):
            if not database.startswith(("postgresql://", "postgres://")):
                raise ValueError("the database must be a URL such as postgresql://user:password@host/database")
            self._dsn = database
            super().__init__(server_name("PostgreSQL", urlsplit(database)), timeout, None)
        elif isinstance(database, type) or not hasattr(database, "acquire"):
            raise TypeError(f"the database must be a URL or an asyncpg pool, not {database!r}")
        else:
            super().__init__("PostgreSQL", timeout, database)

    def __repr__(self) -> str:
        return f"<PostgresOffsets {self._server}>"

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_name(name)
        return {partition: Position(*position) for partition, *position in await self._fetch(_LOAD, name)}

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save these positions, leaving other partitions as they are.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_positions(name, positions)
        if positions:
            await self._fetch(_SAVE.format(""), name, _rows(positions))

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        """Join a group, and take free parts up to this member's share.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_lease(name, owner, ttl, parts)
        return dict(await self._fetch(_TAKE, name, owner, float(ttl), parts))

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        """Extend the leases that a member still has.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_lease(name, owner, ttl)
        return dict(await self._fetch(_RENEW, name, owner, float(ttl)))

    async def members(self, name: str) -> Sequence[str]:
        """Return the live members of a group, in order.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_name(name)
        return [owner for (owner,) in await self._fetch(_MEMBERS, name)]

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        """Save positions, if this is the last lease of the part, in one statement.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_positions(name, positions)
        check_lease(name, owner)
        ((held,),) = await self._fetch(_SAVE_HELD, name, _rows(positions), part, owner, token)
        return bool(held)

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        """Give parts back; with None all of them, and leave the group.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_lease(name, owner)
        await self._fetch(_GIVE, name, owner, None if parts is None else msgspec.json.encode(list(parts)).decode())

    async def _fetch(self, statement: str, *arguments: object) -> list[Any]:
        async def work(pool: Any) -> list[Any]:
            async with pool.acquire() as connection:
                try:
                    return await self._run(connection, statement, arguments)
                except self._asyncpg.UndefinedTableError:
                    await connection.execute(_TABLES)
                    return await self._run(connection, statement, arguments)

        return await self._call(work)

    async def _run(self, connection: Any, statement: str, arguments: tuple[object, ...]) -> list[Any]:
        if self._owns:
            return list(await connection.fetch(statement, *arguments))
        # Behind PgBouncer, a statement in the cache of the pool may not exist on the connection that it meets, or be
        # another one of the same name. A nameless statement in a transaction is parsed where it runs.
        async with connection.transaction():
            # A process that stands still in the middle would keep the parts from others.
            milliseconds = math.ceil(self._timeout * 500)
            await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
            prepared = await connection.prepare(statement, name="")
            return list(await prepared.fetch(*arguments))

    async def _open(self) -> Any:
        # Without connections, which come when they are needed.
        return await self._asyncpg.create_pool(
            self._dsn, min_size=0, max_size=_CONNECTIONS, timeout=self._timeout, statement_cache_size=0
        )

    async def _close(self, client: Any) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await client.close()
        except TimeoutError:
            client.terminate()

    def _is_passing(self, error: Exception) -> bool:
        if isinstance(error, self._asyncpg.PostgresError):
            return (error.sqlstate or "").startswith(_PASSING)
        return self._problem(error) is not None

    def _problem(self, error: Exception) -> str | None:
        if isinstance(error, self._asyncpg.PostgresError):
            return f"reports an error: {error}"
        if isinstance(error, OSError):  # TimeoutError is one
            return f"does not answer ({str(error) or type(error).__name__}): see whether it runs and can be reached"
        # Misuse of a connection, such as a value that a column cannot hold, is a ValueError as well. Of a connection
        # that was cut, asyncpg may also report that its own states do not match.
        cut = isinstance(error, self._asyncpg.InterfaceError | self._asyncpg.InternalClientError)
        return f"cut the connection: {error}" if cut and not isinstance(error, ValueError) else None


def _rows(positions: Mapping[int, Position]) -> str:
    return msgspec.json.encode(
        [{"partition": partition, **msgspec.structs.asdict(position)} for partition, position in positions.items()]
    ).decode()
