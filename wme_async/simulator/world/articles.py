"""Articles as the service writes them: key order, omitted zeros, escapes, sizes, and the odd values.

`dumps` writes JSON the way the service's encoder does. `ArticleGenerator` makes any number of records, each a pure
function of the seed and an index, so that a list, an archive and a stream can speak of the same pages without storing
them. `build_archive` packs records as the exporter does.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from os import PathLike
from random import Random
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from wme_async.simulator.world import prose
from wme_async.simulator.world.encoding import dumps, nanoseconds_of, stamp, timestamp
from wme_async.simulator.world.structured import structured_content
from wme_async.simulator.world.tarball import ArchiveMember, build_archive

__all__ = [
    "ArchiveMember",
    "ArticleGenerator",
    "Kind",
    "Size",
    "build_archive",
    "dumps",
    "event_time",
    "page_id_of",
    "present",
    "site_of",
    "timestamp",
]

Kind = Literal["update", "delete", "visibility-change"]
"""The event types that the service publishes."""

Size = int | Literal["small"] | None
"""Of a generated record: bytes of its JSON, a few fields, or a natural size."""

_FIRST_EVENT: Final = 1_780_000_000.0  # 2026-05-28: the default start of generated event times
_YEAR_ONE: Final = "0001-01-01T00:00:00Z"
_LICENSE: Final = {
    "name": "Creative Commons Attribution-ShareAlike License 4.0",
    "identifier": "CC-BY-SA-4.0",
    "url": "https://creativecommons.org/licenses/by-sa/4.0/",
}
_PROTECTION: Final = {"type": "edit", "level": "autoconfirmed"}
_EXPIRIES: Final = ("infinity", "2027-03-01T00:00:00Z", "never")
_SAFE: Final = "/:@!$*(),;'"  # in the address of a page
_FAMILIES: Final = ("wikibooks", "wikinews", "wikiquote", "wikisource", "wikiversity", "wikivoyage", "wiktionary")
_PREFIXES: Final = {0: "", 6: "File:", 10: "Template:", 14: "Category:", 120: "Property:"}
_LARGEST: Final = 3_000_000  # bytes; the largest generated article of natural size
_SMALLEST_SIZED: Final = 420  # bytes; the small form with a body of no text


@lru_cache(maxsize=4096)
def site_of(project: str) -> tuple[str, str]:
    """Return language and address of a project.

    Args:
        project: A database name, such as `enwiki` or `zh_min_nanwiktionary`.

    Returns:
        The language code and the base URL: `("en", "https://en.wikipedia.org")`.
    """
    special = {
        "commonswiki": ("en", "https://commons.wikimedia.org"),
        "wikidatawiki": ("en", "https://www.wikidata.org"),
        "specieswiki": ("en", "https://species.wikimedia.org"),
    }
    if project in special:
        return special[project]
    for family in _FAMILIES:
        if project.endswith(family) and project != family:
            code = project.removesuffix(family).replace("_", "-")
            return code, f"https://{code}.{family}.org"
    code = project.removesuffix("wiki").replace("_", "-") or "en"
    return code, f"https://{code}.wikipedia.org"


def event_time(index: int, published: float | datetime | None) -> int:
    """Return nanoseconds since 1970, in whole microseconds as event times are; by default those of the index."""
    return nanoseconds_of(_FIRST_EVENT + index % 10_000_000 * 0.087131 if published is None else published)


class _Page(NamedTuple):
    rnd: Random
    number: int
    name: str
    project: str
    namespace: int
    revision: int
    when: int  # nanoseconds since 1970


class ArticleGenerator:
    """Makes articles, each a pure function of the seed, its index and the options of the call.

    Sizes follow a log-normal law with a mean of about 43 KB of JSON, as full articles have; `size="small"` gives the
    few fields of a stream with a narrow field list (about 300 bytes, no body).

    Args:
        seed: Two generators with the same seed and base make the same records.
        base: Text to draw from instead of built-in prose: decoded articles, or a file or folder of NDJSON.
    """

    def __init__(self, seed: int = 0, base: Iterable[Mapping[str, Any]] | str | PathLike[str] | None = None) -> None:
        self.seed = seed
        self._texts = prose.texts_of(base)

    def _random(self, index: int, salt: int = 0) -> Random:
        return Random((self.seed << 80) ^ (salt << 64) ^ index)

    def title(self, index: int, *, namespace: int = 0) -> str:
        """The title of a page, with spaces: unique by index, and with a prefix outside namespace 0."""
        stem = self._texts.titles[(index * 7 + self.seed) % len(self._texts.titles)]
        return f"{_PREFIXES.get(namespace, f'Namespace{namespace}:')}{stem} {index}"

    def text(self, rnd: Random, size: int) -> str:
        """Return about `size` bytes of wikitext."""
        return self._texts.wikitext.take(rnd, size)

    def article(
        self,
        index: int,
        *,
        project: str = "enwiki",
        namespace: int = 0,
        kind: Kind = "update",
        size: Size = None,
        revision: int | None = None,
        published: float | datetime | None = None,
        title: str | None = None,
    ) -> dict[str, Any]:
        """Make one article event, keys in the wire's order, zero values absent.

        Args:
            index: Which page; any integer from 0 on.
            project: Database name of the project.
            namespace: Namespace number.
            kind: Deletes and visibility changes have no body, a title with underscores and a decoded URL.
            size: None for a natural size, "small" for a few fields, or the exact length of the JSON in bytes.
            revision: Revision id; by default one that follows from the index.
            published: When the event was published (seconds since 1970, or an aware datetime).
            title: A title instead of the page's own; the page id stays.

        Returns:
            The record; `dumps` makes the line.

        Raises:
            ValueError: `size` is too small for any article.
        """
        page = _Page(
            rnd=self._random(index),
            number=index,
            name=self.title(index, namespace=namespace) if title is None else title,
            project=project,
            namespace=namespace,
            revision=_revision(index) if revision is None else revision,
            when=event_time(index, published),
        )
        if kind != "update":
            return _removal(page, kind)
        if size == "small":
            return _small(page)
        if size is None:
            return self._full(page, min(_LARGEST, int(page.rnd.lognormvariate(10.064, 1.1))))
        if size < _SMALLEST_SIZED:
            raise ValueError(f"an article with a body has at least {_SMALLEST_SIZED} bytes")
        record = self._full(page, size - 1024) if size >= 8192 else _with_empty_body(_small(page))
        return _padded(record, size)

    def move(
        self,
        index: int,
        *,
        project: str = "enwiki",
        published: float | datetime | None = None,
        size: Size = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make the two events of a renamed page: a delete of the old title and an update of the new one.

        Both carry the same page id and the same event id, and they come in either order on the wire.
        """
        new = f"{self.title(index)} (moved)"
        delete = self.article(index, project=project, kind="delete", published=published)
        update = self.article(
            index, project=project, published=published, title=new, revision=_revision(index) + 1, size=size
        )
        update["event"]["identifier"] = delete["event"]["identifier"]
        return delete, update

    def structured(
        self,
        index: int,
        *,
        project: str = "enwiki",
        where: Literal["on-demand", "snapshot"] = "on-demand",
        old_names: bool = False,
        null_parts: bool = False,
        snake_case: bool = False,
        published: float | datetime | None = None,
    ) -> dict[str, Any]:
        """Make one structured-contents record.

        Args:
            index: Which page; name, ids and dates agree with `article(index)`.
            project: Database name of the project.
            where: "snapshot" records have an event, and their nested tables are JSON strings; "on-demand" records have
                an attribution, and their nested tables are objects.
            old_names: `article_sections` instead of `sections`, as the service wrote before.
            null_parts: A literal null among infoboxes and sections, as a failed conversion leaves.
            snake_case: Section names in lower snake_case, as they were written before 2026.
            published: When the event was published.

        Returns:
            The record, keys in the wire's order.
        """
        article = self.article(index, project=project, size=None, published=published)
        return structured_content(
            article,
            self._random(index, salt=3),
            self._texts.abstracts,
            snapshot=where == "snapshot",
            old_names=old_names,
            null_parts=null_parts,
            snake_case=snake_case,
        )

    def lines(
        self,
        count: int,
        *,
        start: int = 0,
        project: str = "enwiki",
        namespace: int = 0,
        size: Size = None,
        duplicates: float = 0.0,
        deletes: float = 0.0,
        structured: bool = False,
    ) -> Iterator[bytes]:
        """Make the lines of an archive member, each with its line feed.

        Args:
            count: How many lines.
            start: The index of the first page.
            project: Database name of the project.
            namespace: Namespace number.
            size: As in `article`.
            duplicates: The share of lines that repeat the page before with an older or newer revision, as compaction
                leaves them.
            deletes: The share of deletes, as batches have and snapshots have not.
            structured: Structured contents instead of articles.

        Yields:
            Lines of compact JSON.
        """
        rnd = self._random(start, salt=5)
        page = start
        for number in range(count):
            twice = number > 0 and duplicates > 0 and rnd.random() < duplicates
            page += 0 if twice or number == 0 else 1
            if structured:
                record = self.structured(page, project=project, where="snapshot")
            else:
                kind: Kind = "delete" if deletes > 0 and rnd.random() < deletes else "update"
                revision = _revision(page) + (rnd.choice((-1, 1)) if twice else 0)
                record = self.article(
                    page, project=project, namespace=namespace, kind=kind, size=size, revision=revision
                )
            yield dumps(record) + b"\n"

    def _full(self, page: _Page, size: int) -> dict[str, Any]:
        """Make an article of about a size in bytes; each field takes its random numbers in the order of the wire."""
        rnd, index, name, project, namespace, revision, when = page
        language, base = site_of(project)
        first = rnd.random() < 0.05
        bulk = rnd.random() < 0.04  # bulk-ingested: never edited while the service watched, so much is missing
        return present(
            name=name,
            identifier=page_id_of(index),
            abstract=None if namespace else self._texts.abstracts[rnd.randrange(len(self._texts.abstracts))],
            date_created=None if bulk else stamp(when - rnd.randrange(1, 600_000_000) * 1_000_000_000, 0),
            date_modified=stamp(when - rnd.randrange(3) * 1_000_000_000, 0),
            date_previously_modified=(
                None if bulk or first else stamp(when - rnd.randrange(60, 9_000_000) * 1_000_000_000, 0)
            ),
            protection=[{**_PROTECTION, "expiry": rnd.choice(_EXPIRIES)}] if rnd.random() < 0.1 else None,
            version=_version(rnd, revision, size, bulk=bulk, wiki=project.endswith("wiki") and namespace == 0),
            previous_version=None if bulk else {} if first else _previous_version(rnd, revision, size),
            url=f"{base}/wiki/{quote(name.replace(' ', '_'), safe=_SAFE)}",
            watchers_count=rnd.randrange(30, 4000) if rnd.random() < 0.5 else None,
            namespace={"identifier": namespace},
            in_language={"identifier": language},
            **_links(rnd, index, base),
            is_part_of={"identifier": project, "url": base},
            article_body=self._body(rnd, max(0, size - 2600)),
            license=[_LICENSE],
            event=_event(rnd, "update", when),
            image=_image(index) if rnd.random() < 0.3 else None,
        )

    def _body(self, rnd: Random, size: int) -> dict[str, str] | None:
        html_bytes = size * 7 // 10
        html = self._texts.html.take(rnd, html_bytes)
        return present(html=html or None, wikitext=self._texts.wikitext.take(rnd, size - html_bytes) or None) or None


def present(**fields: Any) -> dict[str, Any]:
    """Return the fields that a record has: the service leaves out the others."""
    return {name: value for name, value in fields.items() if value is not None}


def page_id_of(index: int) -> int:
    """Return the page id of the page of an index."""
    return 1000 + index * 31


def _revision(index: int) -> int:
    return 1_200_000_000 + index * 113


def _event(rnd: Random, kind: str, when: int) -> dict[str, Any]:
    return {
        "identifier": str(uuid.UUID(int=rnd.getrandbits(128), version=4)),
        "type": kind,
        "date_created": stamp(when - rnd.randrange(400_000, 4_000_000) * 1000, 6),
        "date_published": stamp(when, 6),
    }


def _removal(page: _Page, kind: Kind) -> dict[str, Any]:
    rnd, index, name, project, namespace, revision, when = page
    language, base = site_of(project)
    underscored = name.replace(" ", "_")
    return present(
        name=underscored,
        identifier=page_id_of(index),
        date_modified=stamp(when, 0),
        version={"identifier": revision, "comment": _comment(rnd), "editor": _editor(rnd)},
        previous_version={"identifier": revision - 1 - rnd.randrange(90_000)},
        url=f"{base}/wiki/{underscored}",
        namespace={"identifier": namespace},
        in_language={"identifier": language},
        is_part_of={"identifier": project, "url": base},
        visibility=_visibility(rnd.randrange(1, 8)) if kind == "visibility-change" else None,
        event=_event(rnd, kind, when),
    )


def _visibility(hidden: int) -> dict[str, bool]:
    return {"text": not hidden & 1, "editor": not hidden & 2, "comment": not hidden & 4}


def _small(page: _Page) -> dict[str, Any]:
    return {
        "name": page.name,
        "identifier": page_id_of(page.number),
        "version": {"identifier": page.revision},
        "namespace": {"identifier": page.namespace},
        "is_part_of": {"identifier": page.project},
        "event": _event(page.rnd, "update", page.when),
    }


def _with_empty_body(record: dict[str, Any]) -> dict[str, Any]:
    event = record.pop("event")
    return {**record, "article_body": {}, "event": event}


def _padded(record: dict[str, Any], size: int) -> dict[str, Any]:
    """Make the JSON exactly `size` bytes long by adding to, or cutting from, its wikitext."""
    body = record["article_body"]
    body.setdefault("wikitext", "")
    missing = size - len(dumps(record))
    if missing == 0 and body["wikitext"]:
        return record
    if missing < 1:
        body.pop("html", None)
        body["wikitext"] = ""
        missing = size - len(dumps(record))
    if missing < 1:
        # An empty string is never written, so there is one character at least.
        raise ValueError(f"this article has at least {size - missing + 1} bytes")
    body["wikitext"] += prose.filler(missing)
    return record


def _comment(rnd: Random) -> str:
    return prose.COMMENTS[rnd.randrange(len(prose.COMMENTS))]


def _editor(rnd: Random) -> dict[str, Any]:
    roll = rnd.random()
    if roll < 0.06:
        return {}  # the service says nothing of who edited a protected page
    if roll < 0.2:
        address = f"2001:db8:{rnd.randrange(65536):x}::{rnd.randrange(65536):x}"
        return {"name": address, "is_anonymous": True, "date_started": _YEAR_ONE}
    number = rnd.randrange(100, 50_000_000)
    bot = roll > 0.85
    return {
        "identifier": number,
        "name": f"{'Bot' if bot else 'Editor'} {number}",
        "edit_count": rnd.randrange(1, 400_000),
        "groups": [*(["bot"] if bot else []), "*", "user", "autoconfirmed"],
        **({"is_bot": True} if bot else {}),
        "date_started": stamp((1_000_000_000 + number * 14) * 1_000_000_000, 0),
    }


def _version(rnd: Random, revision: int, size: int, *, bulk: bool, wiki: bool) -> dict[str, Any]:
    editor = _editor(rnd)
    if bulk:
        return {"identifier": revision, "editor": {key: editor[key] for key in ("identifier", "name") if key in editor}}
    return present(
        identifier=revision,
        comment=_comment(rnd),
        tags=["mobile edit", "mobile web edit"] if rnd.random() < 0.3 else None,
        is_minor_edit=True if rnd.random() < 0.3 else None,
        has_tag_needs_citation=True if rnd.random() < 0.1 else None,
        scores=_scores(rnd) if wiki else {},
        editor=editor,
        number_of_characters=size // 3,
        size={"value": size // 3 + rnd.randrange(300), "unit_text": "B"},
        maintenance_tags={"citation_needed_count": rnd.randrange(1, 9)} if rnd.random() < 0.12 else {},
    )


def _previous_version(rnd: Random, revision: int, size: int) -> dict[str, Any]:
    return {"identifier": revision - 1 - rnd.randrange(90_000), "number_of_characters": size // 3}


def _image(index: int) -> dict[str, Any]:
    url = f"https://upload.wikimedia.org/wikipedia/commons/a/a0/Picture_{index}.jpg"
    return {"content_url": url, "width": 640, "height": 480, "alternative_text": "A picture"}


def _scores(rnd: Random) -> dict[str, Any]:
    risk = round(rnd.random(), 12)
    # A probability of exactly 0 is a zero value, and those are not written.
    probability = {key: value for key, value in (("false", 1 - risk), ("true", risk)) if value}
    return present(
        revertrisk=present(prediction=True if risk > 0.5 else None, probability=probability),
        referenceneed={"reference_need_score": round(rnd.random(), 6)} if rnd.random() < 0.2 else None,
    )


def _links(rnd: Random, index: int, base: str) -> dict[str, Any]:
    """The keys from main_entity to redirects: linked things, each list absent when empty."""
    out: dict[str, Any] = {}
    entity = f"Q{100 + index}"
    if rnd.random() < 0.9:
        out["main_entity"] = {"identifier": entity, "url": f"https://www.wikidata.org/entity/{entity}"}
        out["additional_entities"] = [
            {"identifier": entity, "url": f"https://www.wikidata.org/entity/{entity}", "aspects": ["S", "T"]},
            {"identifier": "P625", "url": "https://www.wikidata.org/entity/P625", "aspects": ["C.P1630"]},
        ]
    for key, prefix, limit in (("categories", "Category:", 6), ("templates", "Template:", 8), ("redirects", "", 3)):
        names = [f"{prefix}{prose.WORDS[rnd.randrange(len(prose.WORDS))]} {n}" for n in range(rnd.randrange(limit))]
        if names:
            out[key] = [
                {"name": name, "url": f"{base}/wiki/{quote(name.replace(' ', '_'), safe='/:')}"} for name in names
            ]
    return out
