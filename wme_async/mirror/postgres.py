"""A mirror in a PostgreSQL database (extra `postgres`: `pip install 'wme-async[postgres]'`)."""

import asyncio
import errno
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from types import ModuleType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from wme_async._arguments import check_choice, check_numbers
from wme_async._tasks import in_thread
from wme_async.errors import DataError
from wme_async.mirror.activity import IS_LOCKED
from wme_async.mirror.codecs import Compressed, Compressor, decompress
from wme_async.mirror.postgres_rows import (
    TABLES,
    VERSION,
    fetch_held,
    fetch_marks,
    fetch_pages,
    fetch_places,
    put_marks,
    select_pages,
    write_rows,
)
from wme_async.mirror.protocol import Applied, Change, Counts, Entry, Key, Kind, Marks, State, Sweep
from wme_async.mirror.rule import (
    MARGIN,
    Difference,
    PageKey,
    Picture,
    TitleKey,
    merge,
    page_keys,
    removal_limit,
    title_keys,
)
from wme_async.mirror.sqlite import change_of
from wme_async.offsets._database import server_name

__all__ = ["PostgresStore"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("wme_async.mirror")

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_FIRST_WAIT: Final = 0.05  # seconds between two attempts; each further one is twice as long
_LONGEST_WAIT: Final = 1.0
_KEYS_AT_ONCE: Final = 10_000
_ENTRIES_AT_ONCE: Final = 200
_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('wme_mirror'), hashtext($1))"
_EXISTS: Final = "SELECT to_regclass($1 || '.format') IS NOT NULL"
_NUMBERS: Final = """
SELECT (SELECT coalesce(max(id), 0) + 1 FROM pages), (SELECT coalesce(max(seq), 0) FROM whereabouts WHERE seq > 0),
    coalesce((SELECT value FROM marks WHERE kind = 'state' AND key = 'settled'), '0')::bigint
"""
_FORGOTTEN: Final = "SELECT key FROM marks WHERE kind = 'forgotten' AND key = ANY($1::text[])"
_ERASE: Final = (
    "DELETE FROM records USING pages WHERE records.id = pages.id AND pages.project = $1 AND pages.page_id = $2"
)
_CHANGES: Final = """
SELECT w.seq, w.project, w.page_id, w.title, w.old_title, w.moved, p.revision, p.digest, p.hidden
FROM whereabouts w LEFT JOIN pages p
ON p.project = w.project AND p.title = w.title AND p.page_id = w.page_id AND p.live
WHERE w.seq > greatest($1, 0) AND w.held IS NULL ORDER BY w.seq LIMIT $2
"""
_ENTRY: Final = """
SELECT p.project, p.title, p.page_id, p.namespace, p.revision, p.created, p.published, p.digest, p.hidden, r.codec,
r.record, p.id FROM pages p JOIN records r USING (id) WHERE p.live AND {}
"""
_BY_TITLE: Final = _ENTRY.format("p.project = $1 AND p.title = $2")
_BY_PAGE: Final = _ENTRY.format("p.project = $1 AND p.page_id = $2")
_NEXT_ENTRIES: Final = _ENTRY.format("p.id > $1 ORDER BY p.id LIMIT $2")
_NEXT_KEYS: Final = (
    "SELECT project, title, page_id, revision, digest, id FROM pages WHERE live AND id > $1 ORDER BY id LIMIT $2"
)
_REVIVED: Final = "project = $1 AND namespace = $2 AND load = $3 AND swept < $4"
_MISSING: Final = """project = $1 AND namespace = $2 AND live AND load <> $3
AND (CASE published WHEN 0 THEN created ELSE published END) <= $4"""
_COUNTS: Final = """
SELECT (SELECT count(*) FROM pages WHERE live), (SELECT count(*) FROM pages),
    (SELECT count(*) FROM whereabouts WHERE held IS NOT NULL),
    (SELECT coalesce(max(seq), 0) FROM whereabouts WHERE seq > 0),
    (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
     WHERE relkind = 'r' AND relnamespace = $1::text::regnamespace)
"""

# Classes of SQLSTATE whose cause may pass: connection, rollback, resources but for the disk, shutdown.
_PASSING: Final = ("08", "40", "53300", "57P")
_DISK_FULL: Final = "53100"
_GONE: Final = ("3F000", "42P01")  # no such schema, no such table
_DAMAGED: Final = ("XX001", "XX002", "42703")  # of data, of an index; no such column


class PostgresStore:
    """Keeps a mirror in a PostgreSQL database: its tables are in a schema of their own, which is created.

    Other sessions may read at the same time, by this class or by SQL; the view `live` has the pages that exist. One
    writes, which a lock of its session ensures: the URL has to lead to the server itself, not to PgBouncer. A restart
    of the server is waited out: what was being written is written again, all or nothing.

    Args:
        database: A URL such as `postgresql://user:password@host/database`.
        schema: The schema, which belongs to one mirror: lower-case letters, digits and underscores.
        codec: `"zstd"` or `"zlib"` for new records; by default zstandard if it is installed.
        timeout: Seconds for which calls are repeated while the server cannot be reached.

    Raises:
        TypeError: An argument is of another type.
        ValueError: It is the URL of something else, or another argument is out of range.
        ImportError: The extra `postgres` is not installed, or with `codec="zstd"` zstandard is not.
    """

    def __init__(
        self, database: str, *, schema: str = "wme_mirror", codec: str | None = None, timeout: float = 30.0
    ) -> None:
        for name, value in (("database", database), ("schema", schema)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be text, not {value!r}")
        check_numbers(optional=False, above=0, unit="seconds", timeout=timeout)
        if not database.startswith(("postgresql://", "postgres://")):
            raise ValueError("the database must be a URL such as postgresql://user:password@host/database")
        if _SCHEMA.fullmatch(schema) is None:
            raise ValueError(f"schema must be lower-case letters, digits and underscores, not {schema!r}")
        if codec is not None:
            check_choice("codec", codec, ("zstd", "zlib"))
        self._schema = schema
        self._compressor = Compressor(codec)
        asyncpg = _load_asyncpg()
        server = f"{server_name('PostgreSQL', urlsplit(database))}, schema {schema}"
        sessions = [_Session(asyncpg, database, schema, server, timeout, locked=locked) for locked in (True, False)]
        self._writer, self._reader = sessions
        self._server = server
        self._open = False
        self._writing = False

    def __repr__(self) -> str:
        return f"<PostgresStore {self._server}>"

    async def open(self, *, writing: bool = True) -> State:
        """Connect, and create the tables if they do not exist; see `Store.open`.

        Raises:
            BlockingIOError: Another process mirrors into it.
            DataError: It is of another version.
            OSError: The server cannot be reached, does not permit it, or has no mirror to read.
            RuntimeError: It is open.
        """
        if self._open:
            raise RuntimeError(f"{self!r} is open already; make another one")
        try:
            if writing:
                await self._writer.run(self._create)
            state = await self._reader.run(self._state)
        except BaseException:
            await self._disconnect()
            raise
        self._open, self._writing = True, writing
        return state

    async def _create(self, connection: Any) -> None:
        async with connection.transaction():
            if not await connection.fetchval(_EXISTS, self._schema):
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._schema}; {TABLES}")
                await connection.execute("INSERT INTO format VALUES ($1)", VERSION)

    async def _state(self, connection: Any) -> State:
        if not await connection.fetchval(_EXISTS, self._schema):
            raise FileNotFoundError(f"{self._server} has no mirror: open it for writing to make one")
        version = await connection.fetchval("SELECT version FROM format")
        if version != VERSION:
            remedy = "upgrade wme_async" if (version or 0) > VERSION else "drop the schema and load the mirror anew"
            raise DataError(f"{self._server} has format {version}, and this version of wme_async {VERSION}: {remedy}")
        async with connection.transaction(isolation="repeatable_read"):
            values = await fetch_marks(connection)
            _, seq, _ = await connection.fetchrow(_NUMBERS)
        return State(values=values, seq=seq)

    async def close(self) -> None:
        """Close the connections."""
        self._open = False
        await self._disconnect()

    async def _disconnect(self) -> None:
        await self._writer.close()
        await self._reader.close()
        self._compressor.close()

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError(f"{self!r} is not open: use it within `async with Mirror(...)`")

    # Writing

    async def apply(self, news: Picture, marks: Marks) -> Applied:
        """Merge a picture and write the marks in one transaction; see `Store.apply`.

        Raises:
            DataError: The tables were dropped meanwhile, or are damaged.
            OSError: They cannot be written, for example because the disk is full. Nothing of it was.
            RuntimeError: The store is not open, or open for reading.
        """
        self._check_open()
        if not self._writing and (
            news or marks.settled is not None or marks.forget or marks.values.keys() - {"consumers"}
        ):
            raise RuntimeError(f"{self!r} is open for reading: only the mirror that writes can apply records")

        async def work(connection: Any) -> Applied:
            async with connection.transaction():
                # Merging changes the rows, and a connection that breaks has it done again.
                return await self._apply(connection, _copy(news), marks)

        return await (self._writer if self._writing else self._reader).run(work)

    async def _apply(self, connection: Any, news: Picture, marks: Marks) -> Applied:
        await put_marks(connection, marks)
        next_id, seq, settled = await connection.fetchrow(_NUMBERS)
        touched: list[PageKey] = list(marks.forget)
        if marks.forget:
            await self._forget(connection, marks.forget)
        if marks.settled is not None and marks.settled > settled:
            settled = marks.settled
            await put_marks(connection, Marks(values={"state": {"settled": str(settled)}}))
            touched += await fetch_held(connection, settled)
        if not news and not touched:
            return Applied(seq=seq)
        current, ids = Picture(), dict[TitleKey, int]()
        await fetch_pages(connection, news.pages, current, ids)
        keys = page_keys(current, news).union(touched)
        await fetch_places(connection, keys, current)
        await fetch_pages(connection, title_keys(current, news), current, ids)
        difference = merge(
            current,
            news,
            seq=seq,
            settled=settled,
            forgotten=await _forgotten(connection, keys),
            touched=dict.fromkeys(touched),
        )
        await self._write(connection, difference, ids, next_id)
        doubts = {f"{project}/{title}": "{}" for project, title in difference.doubts}
        await put_marks(connection, Marks(values={"doubts": doubts}))
        return Applied(
            rows=len(difference.pages),
            missed=difference.missed,
            changes=difference.changes,
            seq=difference.seq,
            doubts=tuple(difference.doubts),
        )

    async def _write(self, connection: Any, difference: Difference, ids: dict[TitleKey, int], next_id: int) -> None:
        records = await in_thread(self._compress, difference)
        await write_rows(connection, difference, ids, schema=self._schema, next_id=next_id, records=records)

    def _compress(self, difference: Difference) -> dict[TitleKey, Compressed]:
        pages = [page for page in difference.pages if page.record]
        compressed = self._compressor.compress([page.record for page in pages])
        return {page.key: data for page, data in zip(pages, compressed, strict=True)}

    async def _forget(self, connection: Any, pages: Collection[PageKey]) -> None:
        await connection.executemany(_ERASE, pages)
        await put_marks(connection, Marks(values={"forgotten": dict.fromkeys(map(_mark_of, pages), "{}")}))

    async def sweep(self, project: str, namespace: int, *, load: int, cut: int, max_removed: float) -> Sweep:
        """Remove the live pages that a complete snapshot lacks; see `Store.sweep`.

        Raises:
            DataError: As for `apply`.
            OSError: As for `apply`.
            RuntimeError: As for `apply`.
        """
        self._check_open()
        if not self._writing:
            raise RuntimeError(f"{self!r} is open for reading: only the mirror that writes can sweep")
        scope = (project, namespace)

        async def work(connection: Any) -> Sweep:
            async with connection.transaction():
                revived = await self._mark_swept(connection, _REVIVED, (*scope, load, cut), None)
                live = await connection.fetchval(
                    "SELECT count(*) FROM pages WHERE project = $1 AND namespace = $2 AND live", *scope
                )
                values = (*scope, load, cut - MARGIN)
                missing = await connection.fetchval(f"SELECT count(*) FROM pages WHERE {_MISSING}", *values)  # noqa: S608 - of ours
                limit = removal_limit(live, max_removed)
                removed = await self._mark_swept(connection, _MISSING, values, cut) if missing <= limit else 0
                _, seq, _ = await connection.fetchrow(_NUMBERS)
                return Sweep(missing=missing, limit=limit, removed=removed, revived=revived, seq=seq)

        return await self._writer.run(work)

    async def _mark_swept(self, connection: Any, where: str, values: tuple[Any, ...], cut: int | None) -> int:
        """Set the cut of the snapshot that lacks some rows, or clear it, and return how many."""
        current, ids = Picture(), dict[TitleKey, int]()
        await select_pages(connection, where, values, current, ids)
        for page in current.pages.values():
            page.swept = cut
        if not ids:
            return 0
        next_id, seq, settled = await connection.fetchrow(_NUMBERS)
        touched = dict.fromkeys(page.page_key for page in current.pages.values())
        swept = list(current.pages.values())
        await fetch_places(connection, touched, current)
        await fetch_pages(connection, title_keys(current, Picture()), current, ids)
        forgotten = await _forgotten(connection, touched)
        difference = merge(current, Picture(), seq=seq, settled=settled, forgotten=forgotten, touched=touched)
        await self._write(connection, difference, ids, next_id)
        rows = [(cut, ids[page.key]) for page in swept]
        await connection.executemany("UPDATE pages SET swept = $1 WHERE id = $2", rows)
        return len(swept)

    # Reading

    async def _read(self, statement: str, *values: object) -> list[Any]:
        self._check_open()
        rows: list[Any] = await self._reader.run(lambda connection: connection.fetch(statement, *values))
        return rows

    async def get(self, project: str, *, title: str | None = None, page_id: int | None = None) -> Entry | None:
        """Return a live page by its title or its page id, or None.

        Raises:
            DataError: The record is damaged.
            OSError: The server cannot be reached.
            RuntimeError: The store is not open.
        """
        by_page = title is None
        rows = await self._read(_BY_PAGE if by_page else _BY_TITLE, project, page_id if by_page else title)
        entries = await in_thread(self._entries, rows)
        return entries[0] if entries else None

    def _entries(self, rows: Iterable[Sequence[Any]]) -> list[Entry]:
        return [
            Entry(
                project=row[0], title=row[1], page_id=row[2], namespace=row[3], revision=row[4], created=row[5],
                published=row[6], digest=row[7], hidden=row[8], record=self._record(row),
            )
            for row in rows
        ]  # fmt: skip

    def _record(self, row: Sequence[Any]) -> bytes:
        try:
            return decompress(row[9], row[10])
        except ImportError:
            raise
        except Exception as error:
            raise DataError(f"{self._server} is damaged: the record of {row[1]!r} ({error}); restore a copy") from error

    async def keys(self) -> AsyncIterator[list[Key]]:
        """Iterate over all live pages without their records, in lists.

        A page that changes meanwhile comes as it was, or as it is.
        """
        last = 0
        while rows := await self._read(_NEXT_KEYS, last, _KEYS_AT_ONCE):
            last = rows[-1][5]
            yield [tuple(row)[:5] for row in rows]

    async def entries(self) -> AsyncIterator[list[Entry]]:
        """Iterate over all live pages with their records, in lists of some MiB."""
        last = 0
        while rows := await self._read(_NEXT_ENTRIES, last, _ENTRIES_AT_ONCE):
            last = rows[-1][11]
            yield await in_thread(self._entries, rows)

    async def changes(self, after: int, limit: int) -> list[Change]:
        """Return the changes after a number, in order; see `Store.changes`.

        Args:
            after: The number; 0 for all.
            limit: Changes at most.
        """
        return [change_of(row, after) for row in await self._read(_CHANGES, after, limit)]

    async def counts(self) -> Counts:
        """Return the size of the store."""
        ((live, rows, held, seq, size),) = await self._read(_COUNTS, self._schema)
        return Counts(pages=live, tombstones=rows - live, held=held, bytes=size, seq=seq)

    async def has_writer(self) -> bool:
        """Return whether a process mirrors into the schema."""
        ((locked,),) = await self._read(IS_LOCKED, self._schema)
        return bool(locked)

    async def value(self, kind: Kind, key: str) -> str | None:
        """Return one mark, as it is stored now."""
        rows = await self._read("SELECT value FROM marks WHERE kind = $1 AND key = $2", kind, key)
        return rows[0][0] if rows else None

    async def marks(self) -> dict[Kind, dict[str, str]]:
        """Return all marks, as they are stored now."""
        self._check_open()
        return await self._reader.run(fetch_marks)


class _Session:
    """One connection, made when it is needed, and made anew when it breaks.

    Args:
        asyncpg: The library.
        database: The URL.
        schema: The schema of the tables.
        server: The name of the server for messages.
        timeout: Seconds for one call with all its repetitions.
        locked: Whether the session holds the lock of the one that writes.
    """

    def __init__(
        self, asyncpg: ModuleType, database: str, schema: str, server: str, timeout: float, *, locked: bool
    ) -> None:
        self._asyncpg = asyncpg
        self._database = database
        self._schema = schema
        self._server = server
        self._timeout = timeout
        self._locked = locked
        self._held = False  # the lock was held once, so a session of ours that is breaking down may still hold it
        self._connection: Any = None
        self._warned = False  # of an outage that lasts
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do something with the connection, and again if it breaks.

        Args:
            work: May be done twice, if the server was cut off before it could say that it has done it.

        Raises:
            BlockingIOError: Another session holds the lock.
            DataError: The tables are not there any more, or are damaged.
            OSError: The server cannot be reached, or does not do it.
        """
        async with self._turn:
            deadline = asyncio.get_running_loop().time() + self._timeout
            wait = _FIRST_WAIT
            while True:
                try:
                    result = await work(await self._connected(deadline))
                except Exception as error:
                    problem = self._problem(error)
                    if problem is None:
                        raise
                    if not self._is_passing(error) or asyncio.get_running_loop().time() + wait >= deadline:
                        raise problem from error
                    self._drop()
                    if not self._warned:
                        self._warned = True
                        logger.warning("%s; trying again", getattr(problem, "strerror", problem))
                else:
                    self._warned = False
                    return result
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    async def _connected(self, deadline: float) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._drop()
            connection = await self._asyncpg.connect(
                self._database,
                timeout=max(0.1, deadline - asyncio.get_running_loop().time()),
                statement_cache_size=0,
                server_settings={"search_path": self._schema, "application_name": "wme_async mirror"},
            )
            try:
                await self._lock(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection, self._held = connection, True
        return self._connection

    async def _lock(self, connection: Any) -> None:
        if self._locked and not await connection.fetchval(_LOCK, self._schema):
            message = f"another mirror writes to {self._server}: stop it, or name another schema"
            raise BlockingIOError(errno.EAGAIN, message)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close the connection; a call that is under way ends first."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    await connection.close(timeout=self._timeout)
                except Exception:  # noqa: BLE001 - it is closed in any case
                    connection.terminate()

    def _is_passing(self, error: Exception) -> bool:
        if isinstance(error, self._asyncpg.PostgresError):
            return (error.sqlstate or "").startswith(_PASSING)
        # Our own session may hold the lock until the server notices that it is gone.
        return self._held if isinstance(error, BlockingIOError) else True

    def _problem(self, error: Exception) -> Exception | None:
        """Return the error to raise for one of the server; None for one of the program, or of ours."""
        if isinstance(error, self._asyncpg.PostgresError):
            state = error.sqlstate or ""
            if state.startswith(_GONE):
                return DataError(f"the tables of {self._server} were dropped while they were in use: {error}")
            if state.startswith(_DAMAGED):
                return DataError(f"{self._server} is damaged: {error}; restore a copy")
            number = errno.ENOSPC if state == _DISK_FULL else errno.EIO
            return OSError(number, f"{self._server} reports an error: {error}")
        if isinstance(error, FileNotFoundError):
            return None
        if isinstance(error, BlockingIOError):
            return error
        if isinstance(error, OSError):  # TimeoutError is one
            text = str(error) or type(error).__name__
            return OSError(
                errno.EIO, f"{self._server} does not answer ({text}): see whether it runs and can be reached"
            )
        # Misuse of a connection is a ValueError as well. Of one that was cut, asyncpg may also report that its own
        # states do not match.
        cut = isinstance(error, self._asyncpg.InterfaceError | self._asyncpg.InternalClientError)
        if cut and not isinstance(error, ValueError):
            return OSError(errno.EIO, f"{self._server} cut the connection: {error}")
        return None


def _load_asyncpg() -> ModuleType:
    try:
        import asyncpg  # noqa: PLC0415  # an extra, needed by this store alone
    except ImportError as error:
        raise ImportError("PostgresStore needs asyncpg: pip install 'wme-async[postgres]'") from error
    module: ModuleType = asyncpg
    return module


def _copy(picture: Picture) -> Picture:
    """Return a picture whose rows can be changed without changing those of the other one."""
    copy = Picture()
    copy.pages = {key: msgspec.structs.replace(page) for key, page in picture.pages.items()}
    copy.places = {key: msgspec.structs.replace(place) for key, place in picture.places.items()}
    copy.masks = dict(picture.masks)
    return copy


def _mark_of(page: PageKey) -> str:
    project, page_id = page
    return f"{project}/{page_id}"


async def _forgotten(connection: Any, keys: Iterable[PageKey]) -> frozenset[PageKey]:
    """Return those of some pages that are to be forgotten."""
    pages = {_mark_of(key): key for key in keys}
    rows = await connection.fetch(_FORGOTTEN, list(pages))
    return frozenset(pages[row[0]] for row in rows)
