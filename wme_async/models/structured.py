"""Structured contents: articles taken apart into infoboxes, sections, tables and references.

The same conventions as for articles hold: absent means false, zero or empty.
"""

from functools import cache

import msgspec
from msgspec import UNSET, UnsetType, field

from wme_async.models._struct import Model, Timestamp
from wme_async.models._tolerant import decode_record
from wme_async.models.articles import ArticleBody, EntityReference, License, Version, Visibility
from wme_async.models.metadata import Event, Language, Project
from wme_async.models.parts import Image, Link, Part, fold
from wme_async.models.passages import Fact, Passage
from wme_async.models.reading import Block, facts_of, passages_of, section_blocks, text_of

__all__ = ["Attribution", "Cell", "EditorsCount", "Reference", "ReferenceText", "StructuredContent", "Table"]


class ReferenceText(Model):
    """Text of a reference.

    Attributes:
        value: As plain text.
        links: Links in it.
    """

    value: str = ""
    links: tuple[Link, ...] = ()


class Reference(Model):
    """A footnote.

    Attributes:
        identifier: The target of citations: `"cite_note-1"`.
        group: Group of notes, where the page has several.
        type: Kind of source: `"web"`, `"book"`, ...
        metadata: Fields of the citation template: title, author, date, ...
        text: The note as it is shown.
        source: The source it names.
        parent_reference: Identifier of the reference of which this one is a detail; it may have a parent itself.
    """

    identifier: str = ""
    group: str = ""
    type: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    text: ReferenceText | None = None
    source: ReferenceText | None = None
    parent_reference: str = ""


class Cell(Model):
    """A cell of a table.

    Attributes:
        value: Its text.
        nested_table: A table within the cell, as it was sent: an object on demand, JSON text in snapshots. `nested`
            reads both.
    """

    value: str = ""
    nested_table: "Table | str | None" = None

    @property
    def nested(self) -> "Table | None":
        """The table within the cell, or `None`. JSON text is parsed anew on each access.

        Raises:
            ValueError: The text is not JSON, or not a table.
        """
        table = self.nested_table
        return decode_record(_nested_tables(), table.encode()) if table and isinstance(table, str) else table or None


class Table(Model):
    """A table; `Part.table_references` say where it stands.

    Attributes:
        identifier: The target of table references.
        headers: Rows of the head.
        rows: Rows of the body.
        footers: Rows of the foot.
        confidence_score: 0 to 1: how far the parser trusts its reading.
    """

    identifier: str = ""
    headers: tuple[tuple[Cell, ...], ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    footers: tuple[tuple[Cell, ...], ...] = ()
    confidence_score: float = 0.0


@cache
def _nested_tables() -> "msgspec.json.Decoder[Table | None]":
    return msgspec.json.Decoder(Table | None)


class EditorsCount(Model):
    """How many have edited the page. Strings and not numbers: many are rounded (`">100"`).

    Attributes:
        anonymous_count: Without an account.
        registered_count: With one.
    """

    anonymous_count: str = ""
    registered_count: str = ""


class Attribution(Model):
    """Facts for the attribution of a reused text.

    Attributes:
        editors_count: How many wrote it.
        parsed_references_count: How many references were found.
        last_revised: Month and year: `"07/25"`.
    """

    editors_count: EditorsCount = EditorsCount()
    parsed_references_count: int = 0
    last_revised: str = ""


class StructuredContent(Model):
    """An article taken apart.

    On demand the server may answer with the whole unstructured article instead, when something that it asks of others
    fails: then `is_raw_article` is true.

    Older payloads spell four fields `article_sections`, `infobox`, `mainEntity` and `inLanguage`: they are read as
    `sections`, `infoboxes`, `main_entity` and `in_language`, and written back under these names.

    Attributes:
        name: Title.
        identifier: Page id within its project.
        abstract: The beginning as plain text.
        description: Short description, from Wikidata.
        version: Its revision.
        event: The latest event. In snapshots only.
        url: Canonical address.
        date_created: First revision, UTC.
        date_modified: This revision, UTC.
        main_entity: The Wikidata item about the same subject.
        is_part_of: Its project.
        additional_entities: Wikidata entities that it uses, in no order.
        in_language: Its language.
        image: The main image.
        visibility: The visible parts; rarely present.
        license: Licences of the text.
        infoboxes: Infoboxes, as trees of parts.
        sections: Text, as trees of parts. The first is named `"Abstract"`.
        references: Footnotes.
        tables: Tables.
        attribution: On demand only.
        article_body: Only where the server sent an unstructured article.
    """

    name: str = ""
    identifier: int = 0
    abstract: str = ""
    description: str = ""
    version: Version = Version()
    event: Event = Event()
    url: str = ""
    date_created: Timestamp | None = None
    date_modified: Timestamp | None = None
    main_entity: EntityReference | None = None
    is_part_of: Project = Project()
    additional_entities: tuple[EntityReference, ...] = ()
    in_language: Language = Language()
    image: Image | None = None
    visibility: Visibility | None = None
    license: tuple[License, ...] = ()
    infoboxes: tuple[Part, ...] = ()
    sections: tuple[Part, ...] = ()
    references: tuple[Reference, ...] = ()
    tables: tuple[Table, ...] = ()
    attribution: Attribution | None = None
    article_body: ArticleBody | None = None
    _sections: tuple[Part, ...] | UnsetType = field(name="article_sections", default=UNSET)
    _infoboxes: tuple[Part, ...] | UnsetType = field(name="infobox", default=UNSET)
    _main_entity: EntityReference | UnsetType | None = field(name="mainEntity", default=UNSET)
    _in_language: Language | UnsetType = field(name="inLanguage", default=UNSET)

    def __post_init__(self) -> None:
        fold(self, "sections", "_sections", ())
        fold(self, "infoboxes", "_infoboxes", ())
        fold(self, "main_entity", "_main_entity", None)
        fold(self, "in_language", "_in_language", Language())

    @property
    def is_raw_article(self) -> bool:
        """The server sent an unstructured article in place of this record; ask again, or read `article_body`."""
        return self.article_body is not None

    def facts(self) -> dict[str, Fact]:
        """Return the infoboxes as a flat mapping of field name to values, in the order of the page.

        Fields of the same name are told apart by the heading above them: `"Area: City"`, `"Population: City"`. Fields
        without a name, such as captions, are omitted.
        """
        return facts_of(self.infoboxes)

    def text(self) -> str:
        """Return the sections in reading order as plain text, each heading on a line of its own.

        Without sections it is the text of the unstructured article in their place, which needs the extra `html`; else
        the abstract.

        Raises:
            ImportError: The server sent an unstructured article, and selectolax is not installed.
        """
        return text_of(self._blocks())

    def passages(self, max_chars: int = 1000) -> list[Passage]:
        """Return the sections in reading order as passages for search and retrieval, each within one section.

        Args:
            max_chars: Characters in a passage at most. The headings above it are not counted.

        Raises:
            TypeError: `max_chars` is not a whole number.
            ValueError: `max_chars` is below 1.
            ImportError: As for `text`.
        """
        return passages_of(self._blocks(), max_chars)

    def _blocks(self) -> list[Block]:
        blocks = section_blocks(self.sections, {table.identifier: _table_text(table) for table in self.tables})
        if not blocks and self.article_body is not None and self.article_body.html:
            from wme_async.models._html import html_blocks  # noqa: PLC0415  # an extra

            return html_blocks(self.article_body.html)
        return blocks or [Block(self.abstract.strip())] * bool(self.abstract.strip())


def _table_text(table: Table) -> str:
    rows = (" | ".join(map(_cell_text, row)) for row in (*table.headers, *table.rows, *table.footers))
    return "\n".join(row for row in rows if row.strip(" |"))


def _cell_text(cell: Cell) -> str:
    text = " ".join(cell.value.split())
    try:
        nested = cell.nested
    except ValueError:
        return text
    inner = "" if nested is None else "; ".join(_table_text(nested).split("\n"))
    return f"{text} ({inner})".strip() if inner else text
