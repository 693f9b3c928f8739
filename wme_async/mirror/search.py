"""Full-text search in a mirror in SQLite, by its FTS5. All functions here block."""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from wme_async.errors import DecodeError
from wme_async.mirror.codecs import decompress
from wme_async.mirror.rule import HIDDEN_TEXT, Difference, TitleKey
from wme_async.models.decoding import decode_json

__all__ = ["create_index", "find", "has_index", "update_index"]

_CREATE: Final = "CREATE VIRTUAL TABLE search USING fts5 (title, abstract)"
_EXISTS: Final = "SELECT 1 FROM sqlite_schema WHERE name = 'search'"
_SHOWN: Final = f"""
    SELECT p.id, p.title, r.codec, r.record FROM pages p JOIN records r USING (id)
    WHERE p.live AND NOT p.hidden & {HIDDEN_TEXT} AND {{}}
"""  # noqa: S608 - of ours
_ALL: Final = _SHOWN.format("p.id > 0")
_ONE: Final = _SHOWN.format("p.id = ?")
_INSERT: Final = "INSERT INTO search (rowid, title, abstract) VALUES (?, ?, ?)"
_DELETE: Final = "DELETE FROM search WHERE rowid = ?"
_FIND: Final = """
    SELECT p.project, p.title, p.page_id, p.revision, p.digest FROM search s JOIN pages p ON p.id = s.rowid
    WHERE s.search MATCH ? AND p.live ORDER BY s.rank LIMIT ?
"""


class _Abstract(msgspec.Struct, gc=False):
    abstract: Any = ""


_decoder: Final = msgspec.json.Decoder(_Abstract)


def has_index(connection: sqlite3.Connection) -> bool:
    """Return whether the store has an index."""
    return connection.execute(_EXISTS).fetchone() is not None


def create_index(connection: sqlite3.Connection) -> None:
    """Create the index, of all pages that are there.

    Raises:
        sqlite3.Error: SQLite was built without FTS5, or the database cannot be written.
    """
    connection.execute(_CREATE)
    _insert(connection, connection.execute(_ALL))


def update_index(connection: sqlite3.Connection, difference: Difference, ids: Mapping[TitleKey, int]) -> None:
    """Bring the index up to date with rows that were written.

    Args:
        connection: In the transaction that wrote them.
        difference: The rows.
        ids: Their numbers.
    """
    numbers = [(ids[page.key],) for page in (*difference.pages, *difference.flags)]
    connection.executemany(_DELETE, numbers)
    for number in numbers:
        _insert(connection, connection.execute(_ONE, number).fetchall())


def _insert(connection: sqlite3.Connection, rows: Iterable[tuple[int, str, int, bytes]]) -> None:
    connection.executemany(
        _INSERT, ((number, title, _abstract_of(decompress(codec, record))) for number, title, codec, record in rows)
    )


def _abstract_of(record: bytes) -> str:
    """Return the abstract of a record; empty if it is not text, since an error would end the mirror at this record."""
    try:
        abstract = decode_json(record, _decoder).abstract
    except DecodeError:
        return ""
    return abstract if isinstance(abstract, str) else ""


def find(connection: sqlite3.Connection, words: str, limit: int) -> list[tuple[str, str, int, int, bytes]]:
    """Return the keys of the best pages that have all words in their title or abstract.

    Args:
        connection: For reading.
        words: The words; a `*` at the end of one stands for its continuations.
        limit: Pages at most.
    """
    terms = []
    for word in words.split():
        prefix = "*" if word.endswith("*") else ""
        text = word.rstrip("*").replace('"', '""')
        if text:
            terms.append(f'"{text}"{prefix}')
    return connection.execute(_FIND, (" ".join(terms), limit)).fetchall() if terms else []
