"""The tables and the rows of a mirror in PostgreSQL: how they are fetched and written."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from wme_async.mirror.codecs import Compressed
from wme_async.mirror.protocol import KINDS, Kind, Marks
from wme_async.mirror.rule import Difference, Mask, Page, PageKey, Picture, TitleKey, Whereabouts
from wme_async.mirror.sqlite_rows import page_values, place_values

__all__ = [
    "TABLES",
    "VERSION",
    "fetch_held",
    "fetch_marks",
    "fetch_pages",
    "fetch_places",
    "put_marks",
    "select_pages",
    "write_rows",
]

VERSION: Final = 1
"""Of the tables."""

# Titles compare by their bytes, as everywhere in Python.
TABLES: Final = """
CREATE TABLE format (version integer NOT NULL);
CREATE TABLE pages (
    id bigint PRIMARY KEY, project text COLLATE "C" NOT NULL, title text COLLATE "C" NOT NULL,
    namespace integer NOT NULL, page_id bigint NOT NULL, revision bigint NOT NULL, created bigint NOT NULL,
    published bigint NOT NULL, gone boolean NOT NULL, digest bytea NOT NULL, body boolean NOT NULL,
    load bigint NOT NULL, swept bigint, live boolean NOT NULL, hidden integer NOT NULL, UNIQUE (project, title));
CREATE INDEX pages_live ON pages (project, page_id) WHERE live;
CREATE TABLE records (id bigint PRIMARY KEY, codec integer NOT NULL, record bytea NOT NULL);
ALTER TABLE records ALTER record SET STORAGE EXTERNAL;
CREATE TABLE whereabouts (
    project text COLLATE "C" NOT NULL, page_id bigint NOT NULL, title text COLLATE "C" NOT NULL,
    created bigint NOT NULL, revision bigint NOT NULL, published bigint NOT NULL, seq bigint NOT NULL,
    old_title text COLLATE "C", moved bigint NOT NULL, held bigint, PRIMARY KEY (project, page_id));
CREATE INDEX whereabouts_seq ON whereabouts (seq) WHERE seq > 0;
CREATE INDEX whereabouts_held ON whereabouts (held) WHERE held IS NOT NULL;
CREATE TABLE masks (
    project text COLLATE "C" NOT NULL, page_id bigint NOT NULL, revision bigint NOT NULL, created bigint NOT NULL,
    hidden integer NOT NULL, PRIMARY KEY (project, page_id));
CREATE TABLE marks (kind text NOT NULL, key text COLLATE "C" NOT NULL, value text NOT NULL, PRIMARY KEY (kind, key));
CREATE VIEW live AS
    SELECT id, project, title, namespace, page_id, revision, created, published, digest, hidden FROM pages WHERE live;
"""

_PAGE: Final = (
    "project, title, namespace, page_id, revision, created, published, gone, digest, body, load, swept, live, hidden"
)
_PLACE: Final = "project, page_id, title, created, revision, published, seq, old_title, moved, held"
_MASK: Final = "project, page_id, revision, created, hidden"
_FETCH_PAGES: Final = f"SELECT id, {_PAGE} FROM pages WHERE project = $1 AND title = ANY($2::text[])"  # noqa: S608 - of ours
_FETCH_PLACES: Final = f"SELECT {_PLACE} FROM whereabouts WHERE project = $1 AND page_id = ANY($2::bigint[])"  # noqa: S608 - of ours
_FETCH_MASKS: Final = f"SELECT {_MASK} FROM masks WHERE project = $1 AND page_id = ANY($2::bigint[])"  # noqa: S608 - of ours
_UPDATE_PAGE: Final = """
UPDATE pages SET namespace = $3, page_id = $4, revision = $5, created = $6, published = $7, gone = $8, digest = $9,
body = $10, load = $11, swept = $12, live = $13, hidden = $14 WHERE project = $1 AND title = $2
"""
_UPDATE_FLAGS: Final = (
    "UPDATE pages SET load = $3, swept = $4, live = $5, hidden = $6 WHERE project = $1 AND title = $2"
)
_PUT_PLACE: Final = f"""
INSERT INTO whereabouts ({_PLACE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (project, page_id) DO UPDATE SET title = excluded.title, created = excluded.created,
revision = excluded.revision, published = excluded.published, seq = excluded.seq, old_title = excluded.old_title,
moved = excluded.moved, held = excluded.held
"""  # noqa: S608 - of ours
_PUT_MASK: Final = f"""
INSERT INTO masks ({_MASK}) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (project, page_id)
DO UPDATE SET revision = excluded.revision, created = excluded.created, hidden = excluded.hidden
"""  # noqa: S608 - of ours
_PUT_RECORD: Final = """
INSERT INTO records (id, codec, record) VALUES ($1, $2, $3)
ON CONFLICT (id) DO UPDATE SET codec = excluded.codec, record = excluded.record
"""
_PUT_MARK: Final = """
INSERT INTO marks (kind, key, value) VALUES ($1, $2, $3) ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value
"""


async def fetch_marks(connection: Any) -> dict[Kind, dict[str, str]]:
    """Return all marks."""
    values: dict[Kind, dict[str, str]] = {kind: {} for kind in KINDS}
    for kind, key, value in await connection.fetch("SELECT kind, key, value FROM marks"):
        values[kind][key] = value
    return values


async def put_marks(connection: Any, marks: Marks) -> None:
    """Write the values of marks; None removes a key."""
    items = [(kind, key, value) for kind, values in marks.values.items() for key, value in values.items()]
    put = [item for item in items if item[2] is not None]
    remove = [item[:2] for item in items if item[2] is None]
    if put:
        await connection.executemany(_PUT_MARK, put)
    if remove:
        await connection.executemany("DELETE FROM marks WHERE kind = $1 AND key = $2", remove)


async def _fetch(connection: Any, statement: str, keys: Iterable[tuple[str, Any]]) -> list[Sequence[Any]]:
    by_project: dict[str, list[Any]] = {}
    for project, key in keys:
        by_project.setdefault(project, []).append(key)
    return [row for project, group in by_project.items() for row in await connection.fetch(statement, project, group)]


async def fetch_pages(connection: Any, keys: Iterable[TitleKey], current: Picture, ids: dict[TitleKey, int]) -> None:
    """Fetch the rows of titles.

    Args:
        connection: In a transaction.
        keys: The titles.
        current: Receives the rows.
        ids: Receives their numbers.
    """
    _take_pages(await _fetch(connection, _FETCH_PAGES, keys), current, ids)


async def select_pages(
    connection: Any, where: str, values: Sequence[Any], current: Picture, ids: dict[TitleKey, int]
) -> None:
    """Fetch the rows that a condition selects.

    Args:
        connection: In a transaction.
        where: The condition, in SQL of ours.
        values: Its values.
        current: Receives the rows.
        ids: Receives their numbers.
    """
    statement = f"SELECT id, {_PAGE} FROM pages WHERE {where}"  # noqa: S608 - of ours
    _take_pages(await connection.fetch(statement, *values), current, ids)


def _take_pages(rows: Iterable[Sequence[Any]], current: Picture, ids: dict[TitleKey, int]) -> None:
    for (
        number, project, title, namespace, page_id, revision, created, published, gone, digest, body, load, swept, live,
        hidden,
    ) in rows:  # fmt: skip
        page = Page(
            project=project, title=title, namespace=namespace, page_id=page_id, revision=revision, created=created,
            published=published, gone=gone, digest=digest, body=body, load=load, swept=swept, live=live, hidden=hidden,
        )  # fmt: skip
        ids[page.key] = number
        current.pages[page.key] = page


async def fetch_places(connection: Any, keys: Collection[PageKey], current: Picture) -> None:
    """Fetch the whereabouts and masks of pages.

    Args:
        connection: In a transaction.
        keys: The pages.
        current: Receives them.
    """
    for row in await _fetch(connection, _FETCH_PLACES, keys):
        project, page_id, title, created, revision, published, seq, old_title, moved, held = row
        current.places[project, page_id] = Whereabouts(
            project=project, page_id=page_id, title=title, created=created, revision=revision, published=published,
            seq=seq, old_title=old_title, moved=moved, held=held,
        )  # fmt: skip
    for project, page_id, revision, created, hidden in await _fetch(connection, _FETCH_MASKS, keys):
        current.masks[project, page_id] = Mask(
            project=project, page_id=page_id, revision=revision, created=created, hidden=hidden
        )


async def fetch_held(connection: Any, settled: int) -> list[PageKey]:
    """Return the pages that are held by a removal up to a time."""
    rows = await connection.fetch("SELECT project, page_id FROM whereabouts WHERE held <= $1", settled)
    return [(project, page_id) for project, page_id in rows]


async def write_rows(
    connection: Any,
    difference: Difference,
    ids: Mapping[TitleKey, int],
    *,
    schema: str,
    next_id: int,
    records: Mapping[TitleKey, Compressed],
) -> None:
    """Write the rows of a difference.

    Args:
        connection: In a transaction.
        difference: What to write.
        ids: The numbers of the rows that exist.
        schema: The schema of the tables.
        next_id: The next free number.
        records: Codec and compressed record of each page that has one.
    """
    new, replaced = [], []
    numbers: dict[TitleKey, int] = {}
    for page in difference.pages:
        number = ids.get(page.key)
        if number is None:
            number, next_id = next_id, next_id + 1
            new.append((number, *page_values(page)))
        else:
            replaced.append(page_values(page))
        numbers[page.key] = number
    if new:
        columns = ["id", *_PAGE.split(", ")]
        await connection.copy_records_to_table("pages", schema_name=schema, columns=columns, records=new)
    stored = [(number, *records[key]) for key, number in numbers.items() if key in records]
    erased = [(number,) for key, number in numbers.items() if key not in records and key in ids]
    flags = [(*page.key, page.load, page.swept, page.live, page.hidden) for page in difference.flags]
    for statement, rows in (
        (_UPDATE_PAGE, replaced),
        (_PUT_RECORD, stored),
        ("DELETE FROM records WHERE id = $1", erased),
        (_UPDATE_FLAGS, flags),
        (_PUT_PLACE, list(map(place_values, difference.places))),
        (_PUT_MASK, list(map(_mask_values, difference.masks))),
    ):
        if rows:
            await connection.executemany(statement, rows)


def _mask_values(mask: Mask) -> tuple[Any, ...]:
    return mask.project, mask.page_id, mask.revision, mask.created, mask.hidden
