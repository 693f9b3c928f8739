"""The rows of a mirror in SQLite: how they are fetched and written. All functions here block."""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final, TypeVar

from wme_async.mirror.codecs import Compressed
from wme_async.mirror.protocol import KINDS, Kind, Marks
from wme_async.mirror.rule import Difference, Mask, Page, PageKey, Picture, TitleKey, Whereabouts
from wme_async.models.decoding import Buffer

__all__ = [
    "fetch_held",
    "fetch_marks",
    "fetch_pages",
    "fetch_places",
    "page_values",
    "place_values",
    "put_marks",
    "select_pages",
    "write_rows",
]

T = TypeVar("T")

_PAGE: Final = (
    "project, title, namespace, page_id, revision, created, published, gone, digest, body, load, swept, live, hidden"
)
_PLACE: Final = "project, page_id, title, created, revision, published, seq, old_title, moved, held"
_MASK: Final = "project, page_id, revision, created, hidden"
_FETCH_PAGES: Final = f"SELECT id, {_PAGE} FROM pages WHERE project = ? AND title IN ({{}})"  # noqa: S608 - of ours
_FETCH_PLACES: Final = f"SELECT {_PLACE} FROM whereabouts WHERE project = ? AND page_id IN ({{}})"  # noqa: S608 - of ours
_FETCH_MASKS: Final = f"SELECT {_MASK} FROM masks WHERE project = ? AND page_id IN ({{}})"  # noqa: S608 - of ours
_INSERT_PAGE: Final = f"INSERT INTO pages (id, {_PAGE})"
_UPDATE_PAGE: Final = """
    UPDATE pages SET namespace = ?, page_id = ?, revision = ?, created = ?, published = ?, gone = ?, digest = ?,
    body = ?, load = ?, swept = ?, live = ?, hidden = ? WHERE id = ?
"""
_UPDATE_FLAGS: Final = "UPDATE pages SET load = ?, swept = ?, live = ?, hidden = ? WHERE id = ?"
_PUT_PLACE: Final = f"INSERT OR REPLACE INTO whereabouts ({_PLACE})"
_PUT_MASK: Final = f"INSERT OR REPLACE INTO masks ({_MASK})"
_PUT_RECORD: Final = "INSERT OR REPLACE INTO records (id, codec, record)"
_DELETE_RECORD: Final = "DELETE FROM records WHERE id = ?"
_VARIABLES: Final = 500  # in one statement
_ROWS: Final = 32  # inserted by one step


def fetch_marks(connection: sqlite3.Connection) -> dict[Kind, dict[str, str]]:
    """Return all marks."""
    return {
        kind: dict(connection.execute(f"SELECT key, value FROM {kind}").fetchall())  # noqa: S608 - of ours
        for kind in KINDS
    }


def put_marks(connection: sqlite3.Connection, marks: Marks) -> None:
    """Write the values of marks; None removes a key."""
    for kind, values in marks.values.items():
        put = [(key, value) for key, value in values.items() if value is not None]
        connection.executemany(f"INSERT OR REPLACE INTO {kind} (key, value) VALUES (?, ?)", put)  # noqa: S608 - of KINDS
        remove = [(key,) for key, value in values.items() if value is None]
        connection.executemany(f"DELETE FROM {kind} WHERE key = ?", remove)  # noqa: S608 - of KINDS


def _portions(keys: Iterable[tuple[str, T]]) -> Iterator[tuple[str, list[T]]]:
    """Group keys by project, in portions that fit into one statement."""
    by_project: dict[str, list[T]] = {}
    for project, key in keys:
        by_project.setdefault(project, []).append(key)
    for project, group in by_project.items():
        for start in range(0, len(group), _VARIABLES):
            yield project, group[start : start + _VARIABLES]


def _fetch(connection: sqlite3.Connection, sql: str, keys: Iterable[tuple[str, Any]]) -> Iterator[Sequence[Any]]:
    for project, group in _portions(keys):
        yield from connection.execute(sql.format(", ".join("?" * len(group))), (project, *group))


def fetch_pages(
    connection: sqlite3.Connection, keys: Iterable[TitleKey], current: Picture, ids: dict[TitleKey, int]
) -> None:
    """Fetch the rows of titles.

    Args:
        connection: In a transaction.
        keys: The titles.
        current: Receives the rows.
        ids: Receives their numbers.
    """
    for number, page in map(_page_of, _fetch(connection, _FETCH_PAGES, keys)):
        ids[page.key] = number
        current.pages[page.key] = page


def fetch_places(connection: sqlite3.Connection, keys: Collection[PageKey], current: Picture) -> None:
    """Fetch the whereabouts and masks of pages.

    Args:
        connection: In a transaction.
        keys: The pages.
        current: Receives them.
    """
    for row in _fetch(connection, _FETCH_PLACES, keys):
        project, page_id, title, created, revision, published, seq, old_title, moved, held = row
        current.places[project, page_id] = Whereabouts(
            project=project, page_id=page_id, title=title, created=created, revision=revision, published=published,
            seq=seq, old_title=old_title, moved=moved, held=held,
        )  # fmt: skip
    for project, page_id, revision, created, hidden in _fetch(connection, _FETCH_MASKS, keys):
        current.masks[project, page_id] = Mask(
            project=project, page_id=page_id, revision=revision, created=created, hidden=hidden
        )


def select_pages(
    connection: sqlite3.Connection, where: str, values: Sequence[Any], current: Picture, ids: dict[TitleKey, int]
) -> None:
    """Fetch the rows that a condition selects.

    Args:
        connection: In a transaction.
        where: The condition, in SQL of ours.
        values: Its values.
        current: Receives the rows.
        ids: Receives their numbers.
    """
    select = f"SELECT id, {_PAGE} FROM pages WHERE {where}"  # noqa: S608 - of ours
    for number, page in map(_page_of, connection.execute(select, values)):
        ids[page.key] = number
        current.pages[page.key] = page


def fetch_held(connection: sqlite3.Connection, settled: int) -> list[PageKey]:
    """Return the pages that are held by a removal up to a time."""
    return connection.execute("SELECT project, page_id FROM whereabouts WHERE held <= ?", (settled,)).fetchall()


def _page_of(row: Sequence[Any]) -> tuple[int, Page]:
    (
        number, project, title, namespace, page_id, revision, created, published, gone, digest, body, load, swept, live,
        hidden,
    ) = row  # fmt: skip
    return number, Page(
        project=project, title=title, namespace=namespace, page_id=page_id, revision=revision, created=created,
        published=published, gone=bool(gone), digest=digest, body=bool(body), load=load, swept=swept, live=bool(live),
        hidden=hidden,
    )  # fmt: skip


def page_values(page: Page) -> tuple[Any, ...]:
    """Return the columns of a page in the order of the tables, without its record."""
    return (
        page.project, page.title, page.namespace, page.page_id, page.revision, page.created, page.published, page.gone,
        page.digest, page.body, page.load, page.swept, page.live, page.hidden,
    )  # fmt: skip


def place_values(place: Whereabouts) -> tuple[Any, ...]:
    """Return the columns of the whereabouts of a page."""
    return (
        place.project, place.page_id, place.title, place.created, place.revision, place.published, place.seq,
        place.old_title, place.moved, place.held,
    )  # fmt: skip


def write_rows(
    connection: sqlite3.Connection,
    difference: Difference,
    ids: dict[TitleKey, int],
    *,
    next_id: int,
    compress: Callable[[Sequence[Buffer]], Iterator[Compressed]],
) -> int:
    """Write the rows of a difference, and return the next free number.

    Args:
        connection: In a transaction.
        difference: What to write.
        ids: The numbers of the rows that exist; receives those of new ones.
        next_id: The next free number.
        compress: Begins to compress records, and returns their codecs and bytes in order.
    """
    new, replaced, erased = [], [], []
    numbers: list[int] = []
    records: list[Buffer] = []
    for page in difference.pages:
        number = ids.get((page.project, page.title))
        values = page_values(page)
        if number is None:
            number, next_id = next_id, next_id + 1
            ids[page.key] = number
            new.append((number, *values))
        else:
            replaced.append((*values[2:], number))
        if page.record:
            numbers.append(number)
            records.append(page.record)
        else:
            erased.append((number,))
    compressed = compress(records)
    _insert(connection, _INSERT_PAGE, new)
    connection.executemany(_UPDATE_PAGE, replaced)
    flags = [(page.load, page.swept, page.live, page.hidden, ids[page.key]) for page in difference.flags]
    connection.executemany(_UPDATE_FLAGS, flags)
    _insert(connection, _PUT_PLACE, map(place_values, difference.places))
    _insert(connection, _PUT_MASK, map(_mask_values, difference.masks))
    connection.executemany(_DELETE_RECORD, erased)
    _insert(connection, _PUT_RECORD, ((number, *record) for number, record in zip(numbers, compressed, strict=True)))
    return next_id


def _insert(connection: sqlite3.Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows, many in one step: Python's lock is handed over at each step, and then waited for.

    Args:
        connection: In a transaction.
        statement: The statement up to its values.
        rows: The values of all columns.
    """
    rows = iter(rows)
    while group := list(islice(rows, _ROWS)):
        values = f"({', '.join('?' * len(group[0]))})"
        if len(group) == _ROWS:
            connection.execute(f"{statement} VALUES {', '.join([values] * _ROWS)}", tuple(chain.from_iterable(group)))
        else:
            connection.executemany(f"{statement} VALUES {values}", group)


def _mask_values(mask: Mask) -> tuple[Any, ...]:
    return mask.project, mask.page_id, mask.revision, mask.created, mask.hidden
