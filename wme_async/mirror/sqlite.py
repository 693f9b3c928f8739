"""A mirror in one SQLite file."""

import asyncio
import contextlib
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from wme_async._arguments import check_choice, check_flags, check_numbers, check_path, check_text
from wme_async._files import LockedFile, private_file, private_folder
from wme_async._sqlite import database_error
from wme_async._tasks import in_thread, open_in_thread
from wme_async.errors import DataError
from wme_async.mirror.activity import is_locked, lock_file, lock_path
from wme_async.mirror.codecs import Compressor, decompress
from wme_async.mirror.protocol import Applied, Change, Counts, Entry, Key, Kind, Marks, State, Sweep
from wme_async.mirror.rule import (
    HIDDEN_COMMENT,
    HIDDEN_EDITOR,
    HIDDEN_TEXT,
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
from wme_async.mirror.search import create_index, find, has_index, update_index
from wme_async.mirror.sqlite_rows import (
    fetch_held,
    fetch_marks,
    fetch_pages,
    fetch_places,
    put_marks,
    select_pages,
    write_rows,
)
from wme_async.mirror.tables import Database, open_database
from wme_async.models.decoding import Buffer

__all__ = ["SQLiteStore", "change_of", "hidden_parts"]

T = TypeVar("T")

_CHANGES: Final = """
    SELECT w.seq, w.project, w.page_id, w.title, w.old_title, w.moved, p.revision, p.digest, p.hidden
    FROM whereabouts w LEFT JOIN pages p
    ON p.project = w.project AND p.title = w.title AND p.page_id = w.page_id AND p.live
    WHERE w.seq > max(?, 0) AND w.held IS NULL ORDER BY w.seq LIMIT ?
"""
_ENTRY: Final = """
    SELECT p.project, p.title, p.page_id, p.namespace, p.revision, p.created, p.published, p.digest, p.hidden, r.codec,
    r.record{} FROM pages p JOIN records r USING (id) WHERE p.live AND {}
"""
_BY_TITLE: Final = _ENTRY.format("", "p.project = ? AND p.title = ?")
_BY_PAGE: Final = _ENTRY.format("", "p.project = ? AND p.page_id = ?")
_NEXT_ENTRIES: Final = _ENTRY.format(", p.id", "p.id > ? ORDER BY p.id")
_NEXT_KEYS: Final = """
    SELECT project, title, page_id, revision, digest FROM pages WHERE live AND id > ? AND id <= ?
"""
_IN_SCOPE: Final = "project = ? AND namespace = ?"
_REVIVED: Final = f"{_IN_SCOPE} AND load = ? AND swept < ?"
_MISSING: Final = f"{_IN_SCOPE} AND live AND load <> ? AND (CASE published WHEN 0 THEN created ELSE published END) <= ?"
_COUNTS: Final = """
    SELECT (SELECT count(*) FROM pages WHERE live), (SELECT count(*) FROM pages),
    (SELECT count(*) FROM whereabouts WHERE held IS NOT NULL), (SELECT max(seq) FROM whereabouts WHERE seq > 0)
"""
_KEYS_AT_ONCE: Final = 10_000
_ENTRY_BYTES: Final = 2 * 1024 * 1024  # compressed, in one list


class SQLiteStore:
    """Keeps a mirror in one SQLite file on a local disk.

    Keys and records are in tables of their own, so that a scan of all keys does not read the records, which are
    compressed one by one: by zstandard with the extra `mirror`, by zlib without. SQLite works in threads. Other
    processes may read the file at the same time, by this class or by SQL; the view `live` has the pages that exist.
    One process writes, which a lock file beside it ensures. It is readable by its owner alone.

    Args:
        path: The file; it is created when a mirror opens it.
        codec: `"zstd"` or `"zlib"` for new records; by default zstandard if it is installed.
        search: Keep a full-text index of titles and abstracts, for `search`. A store that has one keeps it.

    Raises:
        TypeError: The path is not a path.
        ValueError: `:memory:`, or an unknown codec.
        ImportError: `codec="zstd"`, and zstandard is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, codec: str | None = None, search: bool = False) -> None:
        check_path("path", path)
        check_flags(search=search)
        if os.fspath(path) == ":memory:":
            raise ValueError("SQLiteStore needs a file: a mirror in memory would load the wiki again at each start")
        if codec is not None:
            check_choice("codec", codec, ("zstd", "zlib"))
        self.path: Path = Path(path)
        self._compressor = Compressor(codec)
        self._search = search
        self._has_index = False
        self._lock: LockedFile | None = None
        self._writer: Database | None = None
        self._reader: Database | None = None
        self._next_id = 1
        self._seq = 0
        self._mostly_new = False  # of the last picture, so that compressing the next one early is not in vain
        self._settled = 0
        self._forgotten: set[PageKey] = set()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    async def open(self, *, writing: bool = True) -> State:
        """Open the file; see `Store.open`.

        Raises:
            BlockingIOError: Another process mirrors into it.
            DataError: It is damaged, not a mirror, or of another version.
            OSError: It cannot be opened.
            RuntimeError: It is open.
        """
        if self._reader is not None:
            raise RuntimeError(f"{self!r} is open already; make another one")
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()
        return await open_in_thread(partial(self._open, writing), lambda _: self._close())

    def _open(self, writing: bool) -> State:
        with contextlib.ExitStack() as stack:
            if writing:
                self._lock = self._locked()
                stack.callback(self._release)
                self._writer = open_database(self.path, writing=True)
                stack.callback(self._writer.close)
                self._has_index = has_index(self._writer.connection)
                if self._search and not self._has_index:
                    with self._writer.transaction() as connection:
                        create_index(connection)
                    self._has_index = True
            reader = open_database(self.path, writing=False)
            stack.callback(reader.close)
            with reader.translated():
                state = self._state(reader.connection)
            self._reader = reader
            stack.pop_all()
        return state

    def _locked(self) -> LockedFile:
        # Processes that reach the file by a link and by its own name share one lock.
        path = lock_path(self.path)
        private_folder(path.parent)
        try:
            lock = lock_file(path)
        except BlockingIOError as error:
            with contextlib.suppress(OSError):
                holder = path.read_text(errors="replace")[:300]
                error = BlockingIOError(
                    error.errno,
                    f"another mirror writes to the store ({holder}): stop it, or name another file",
                    str(self.path),
                )
            raise error from None
        lock.write_holder(f"process {os.getpid()} on {socket.gethostname()}")
        return lock

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.remove()
        self._lock = self._writer = None

    def _state(self, connection: sqlite3.Connection) -> State:
        connection.execute("BEGIN")
        values = fetch_marks(connection)
        self._next_id = 1 + (connection.execute("SELECT max(id) FROM pages").fetchone()[0] or 0)
        self._seq = connection.execute("SELECT max(seq) FROM whereabouts WHERE seq > 0").fetchone()[0] or 0
        self._settled = int(values["state"].get("settled", "0"))
        self._forgotten = {_page_key(key) for key in values["forgotten"]}
        connection.execute("COMMIT")
        return State(values=values, seq=self._seq)

    async def close(self) -> None:
        """Close the file."""
        if self._reader is None:
            return
        async with self._writing, self._reading:
            await in_thread(self._close)

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        if self._writer is not None:
            self._writer.close()
        self._compressor.close()
        self._release()

    # Writing

    async def apply(self, news: Picture, marks: Marks) -> Applied:
        """Merge a picture and write the marks in one transaction; see `Store.apply`.

        Raises:
            DataError: The file was deleted meanwhile, or is damaged.
            OSError: It cannot be written, for example because the disk is full. Nothing of it was.
            RuntimeError: The store is not open, or open for reading.
        """
        ahead: list[Buffer] = []
        try:
            if self._mostly_new and news and self._writing.locked():
                ahead = [page.record for page in news.pages.values() if page.record]
                self._compressor.begin(ahead)
            return await self._in_writer(lambda database: self._apply(database, news, marks))
        finally:
            self._compressor.drop(ahead)

    async def _in_writer(self, work: Callable[[Database], T]) -> T:
        self._opened()
        async with self._writing:
            self._opened()
            return await in_thread(self._write, work)

    def _write(self, work: Callable[[Database], T]) -> T:
        if self._writer is not None:
            return work(self._writer)
        # Only the marks of consumers are written without the lock.
        database = open_database(self.path, writing=True)
        try:
            return work(database)
        finally:
            database.close()

    def _opened(self) -> Database:
        if self._reader is None:
            raise RuntimeError(f"{self!r} is not open: use it within `async with Mirror(...)`")
        return self._reader

    def _apply(self, database: Database, news: Picture, marks: Marks) -> Applied:
        if self._writer is None and (news or marks.settled is not None or marks.forget or marks.values.keys() - _OPEN):
            raise RuntimeError(f"{self!r} is open for reading: only the mirror that writes can apply records")
        before = self._seq, self._settled, self._forgotten, self._next_id
        try:
            with database.transaction() as connection:
                return self._apply_in(connection, news, marks)
        except BaseException:
            self._seq, self._settled, self._forgotten, self._next_id = before
            raise

    def _apply_in(self, connection: sqlite3.Connection, news: Picture, marks: Marks) -> Applied:
        put_marks(connection, marks)
        current, ids = Picture(), dict[TitleKey, int]()
        touched: list[PageKey] = []
        if marks.forget:
            self._forgotten = self._forgotten | set(marks.forget)
            touched += marks.forget
            self._forget(connection, marks.forget)
        if marks.settled is not None and marks.settled > self._settled:
            self._settled = marks.settled
            put_marks(connection, Marks(values={"state": {"settled": str(self._settled)}}))
            touched += fetch_held(connection, self._settled)
        if not news and not touched:
            return Applied(seq=self._seq)
        fetch_pages(connection, news.pages, current, ids)
        keys = page_keys(current, news).union(touched)
        fetch_places(connection, keys, current)
        fetch_pages(connection, title_keys(current, news), current, ids)
        difference = self._merge(current, news, touched)
        self._put(connection, difference, ids)
        self._mostly_new = 2 * len(difference.pages) > len(news.pages)
        doubts = {f"{project}/{title}": "{}" for project, title in difference.doubts}
        put_marks(connection, Marks(values={"doubts": doubts}))
        return Applied(
            rows=len(difference.pages),
            missed=difference.missed,
            changes=difference.changes,
            seq=difference.seq,
            doubts=tuple(difference.doubts),
        )

    def _merge(self, current: Picture, news: Picture, touched: Iterable[PageKey]) -> Difference:
        return merge(
            current,
            news,
            seq=self._seq,
            settled=self._settled,
            forgotten=self._forgotten,
            touched=dict.fromkeys(touched),
        )

    def _put(self, connection: sqlite3.Connection, difference: Difference, ids: dict[TitleKey, int]) -> None:
        self._next_id = write_rows(
            connection, difference, ids, next_id=self._next_id, compress=self._compressor.compress
        )
        if self._has_index:
            update_index(connection, difference, ids)
        self._seq = difference.seq

    def _forget(self, connection: sqlite3.Connection, pages: Collection[PageKey]) -> None:
        for project, page_id in pages:
            connection.execute(
                "DELETE FROM records WHERE id IN (SELECT id FROM pages WHERE project = ? AND page_id = ?)",
                (project, page_id),
            )
        put_marks(connection, Marks(values={"forgotten": {f"{project}/{number}": "{}" for project, number in pages}}))

    async def sweep(self, project: str, namespace: int, *, load: int, cut: int, max_removed: float) -> Sweep:
        """Remove the live pages that a complete snapshot lacks; see `Store.sweep`.

        Raises:
            DataError: As for `apply`.
            OSError: As for `apply`.
            RuntimeError: As for `apply`.
        """
        if self._writer is None:
            self._opened()
            raise RuntimeError(f"{self!r} is open for reading: only the mirror that writes can sweep")

        def work(database: Database) -> Sweep:
            before = self._seq
            try:
                with database.transaction() as connection:
                    return self._sweep(connection, (project, namespace), load, cut, max_removed)
            except BaseException:
                self._seq = before
                raise

        return await self._in_writer(work)

    def _sweep(
        self, connection: sqlite3.Connection, scope: tuple[str, int], load: int, cut: int, max_removed: float
    ) -> Sweep:
        revived = self._mark_swept(connection, _REVIVED, (*scope, load, cut), None)
        live = connection.execute(f"SELECT count(*) FROM pages WHERE {_IN_SCOPE} AND live", scope).fetchone()[0]  # noqa: S608 - of ours
        values = (*scope, load, cut - MARGIN)
        missing = connection.execute(f"SELECT count(*) FROM pages WHERE {_MISSING}", values).fetchone()[0]  # noqa: S608 - of ours
        limit = removal_limit(live, max_removed)
        removed = self._mark_swept(connection, _MISSING, values, cut) if missing <= limit else 0
        return Sweep(missing=missing, limit=limit, removed=removed, revived=revived, seq=self._seq)

    def _mark_swept(self, connection: sqlite3.Connection, where: str, values: tuple[Any, ...], cut: int | None) -> int:
        """Set the cut of the snapshot that lacks some rows, or clear it, and return how many."""
        current, ids = Picture(), dict[TitleKey, int]()
        select_pages(connection, where, values, current, ids)
        for page in current.pages.values():
            page.swept = cut
        if not ids:
            return 0
        touched = dict.fromkeys(page.page_key for page in current.pages.values())
        swept = list(current.pages.values())
        fetch_places(connection, touched, current)
        fetch_pages(connection, title_keys(current, Picture()), current, ids)
        self._put(connection, self._merge(current, Picture(), touched), ids)
        connection.executemany("UPDATE pages SET swept = ? WHERE id = ?", ((cut, ids[page.key]) for page in swept))
        return len(swept)

    # Reading

    async def _in_reader(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def read() -> T:
            database = self._opened()
            with database.translated():
                return work(database.connection)

        self._opened()
        async with self._reading:
            return await in_thread(read)

    async def get(self, project: str, *, title: str | None = None, page_id: int | None = None) -> Entry | None:
        """Return a live page by its title or its page id, or None.

        Raises:
            DataError: The file is damaged.
            OSError: It cannot be read.
            RuntimeError: The store is not open.
        """
        sql, values = (_BY_PAGE, (project, page_id)) if title is None else (_BY_TITLE, (project, title))
        row = await self._in_reader(lambda connection: connection.execute(sql, values).fetchone())
        return None if row is None else self._entry(row)

    def _entry(self, row: Sequence[Any]) -> Entry:
        try:
            record = decompress(row[9], row[10])
        except ImportError:
            raise
        except Exception as error:
            raise DataError(f"{self.path} is damaged: the record of {row[1]!r} ({error}); restore a copy") from error
        return Entry(
            project=row[0], title=row[1], page_id=row[2], namespace=row[3], revision=row[4], created=row[5],
            published=row[6], digest=row[7], hidden=row[8], record=record,
        )  # fmt: skip

    async def keys(self) -> AsyncIterator[list[Key]]:
        """Iterate over all live pages without their records, in lists.

        A page that changes meanwhile comes as it was, or as it is.
        """
        last = 0
        while True:
            rows, end = await self._in_reader(partial(_next_keys, last))
            if rows:
                yield rows
            if last >= end:
                return
            last += _KEYS_AT_ONCE

    async def entries(self) -> AsyncIterator[list[Entry]]:
        """Iterate over all live pages with their records, in lists of some MiB."""
        last = 0
        while True:
            entries, last = await self._in_reader(partial(self._next_entries, last))
            if not entries:
                return
            yield entries

    def _next_entries(self, last: int, connection: sqlite3.Connection) -> tuple[list[Entry], int]:
        entries: list[Entry] = []
        size = 0
        with contextlib.closing(connection.execute(_NEXT_ENTRIES, (last,))) as rows:
            for row in rows:
                entries.append(self._entry(row))
                size += len(row[10])
                last = row[11]
                if size >= _ENTRY_BYTES:
                    break
        return entries, last

    async def search(self, words: str, limit: int = 10) -> list[Key]:
        """Return the live pages that have all words in their title or abstract, the best first.

        Args:
            words: The words; a `*` at the end of one stands for its continuations.
            limit: Pages at most.

        Raises:
            ValueError: The store was made without `search=True`.
            DataError: The file is damaged.
            OSError: It cannot be read.
            RuntimeError: The store is not open.
        """
        check_text(words=words)
        check_numbers(whole=True, optional=False, minimum=1, limit=limit)

        def work(connection: sqlite3.Connection) -> list[Key]:
            if not has_index(connection):
                raise ValueError(f"{self!r} has no index: let the mirror that writes it open it with search=True")
            return find(connection, words, limit)

        return await self._in_reader(work)

    async def changes(self, after: int, limit: int) -> list[Change]:
        """Return the changes after a number, in order; see `Store.changes`.

        Args:
            after: The number; 0 for all.
            limit: Changes at most.
        """
        rows = await self._in_reader(lambda connection: connection.execute(_CHANGES, (after, limit)).fetchall())
        return [change_of(row, after) for row in rows]

    async def counts(self) -> Counts:
        """Return the size of the store."""
        return await self._in_reader(self._counts)

    def _counts(self, connection: sqlite3.Connection) -> Counts:
        live, rows, held, seq = connection.execute(_COUNTS).fetchone()
        size = sum(path.stat().st_size for suffix in ("", "-wal") if (path := Path(f"{self.path}{suffix}")).exists())
        return Counts(pages=live, tombstones=rows - live, held=held, bytes=size, seq=seq or 0)

    async def has_writer(self) -> bool | None:
        """Return whether a process mirrors into the file; None if this account cannot know."""
        return await in_thread(is_locked, self.path)

    async def value(self, kind: Kind, key: str) -> str | None:
        """Return one mark, as it is stored now."""
        sql = f"SELECT value FROM {kind} WHERE key = ?"  # noqa: S608 - one of KINDS
        row = await self._in_reader(lambda connection: connection.execute(sql, (key,)).fetchone())
        return None if row is None else row[0]

    async def marks(self) -> dict[Kind, dict[str, str]]:
        """Return all marks, as they are stored now."""
        return await self._in_reader(fetch_marks)

    async def backup(self, to: str | os.PathLike[str]) -> None:
        """Copy the store, as it is at one moment, to another file, while it is in use.

        Args:
            to: The file, which is replaced once the copy is complete.

        Raises:
            OSError: The copy cannot be written.
            DataError: The store is damaged.
        """
        check_path("to", to)
        target = Path(to)
        self._opened()
        await in_thread(self._backup, target)

    def _backup(self, target: Path) -> None:
        new = target.with_name(f"{target.name}.new")
        new.unlink(missing_ok=True)
        try:
            private_file(new)
            source = Database(self.path, writing=False)
            with contextlib.closing(source), contextlib.closing(sqlite3.connect(new)) as copy:
                source.connection.backup(copy)
            new.replace(target)
        except sqlite3.Error as error:
            raise database_error(error, target, "a copy") from error
        finally:
            new.unlink(missing_ok=True)


_OPEN: Final[frozenset[Kind]] = frozenset({"consumers"})


def hidden_parts(hidden: int) -> tuple[str, ...]:
    """Return the names of hidden parts, from their sum."""
    parts = ((HIDDEN_TEXT, "text"), (HIDDEN_EDITOR, "editor"), (HIDDEN_COMMENT, "comment"))
    return tuple(name for bit, name in parts if hidden & bit)


def change_of(row: Sequence[Any], after: int) -> Change:
    """Return the change of a row: its number and page, its last move, and its record unless it is gone.

    Args:
        row: Columns of `whereabouts` and, where they are not null, of `pages`.
        after: The position of the consumer.
    """
    seq, project, page_id, title, old_title, moved, revision, digest, hidden = row
    if revision is None:
        return Change(seq=seq, kind="delete", project=project, page_id=page_id, title=title)
    return Change(
        seq=seq,
        kind="hide" if hidden else "upsert",
        project=project,
        page_id=page_id,
        title=title,
        old_title=old_title if moved > after else None,
        revision=revision,
        digest=digest,
        hidden=hidden_parts(hidden),
    )


def _next_keys(last: int, connection: sqlite3.Connection) -> tuple[list[Key], int]:
    """Return the keys of a range of rows, and the number of the last row of all."""
    rows: list[Key] = connection.execute(_NEXT_KEYS, (last, last + _KEYS_AT_ONCE)).fetchall()
    return rows, connection.execute("SELECT max(id) FROM pages").fetchone()[0] or 0


def _page_key(text: str) -> PageKey:
    project, _, number = text.rpartition("/")
    return project, int(number)
