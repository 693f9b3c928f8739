"""Facts and passages, which are read from the structured contents of an article."""

from wme_async.models._struct import Model
from wme_async.models.parts import Citation, Link

__all__ = ["Fact", "Passage"]


class Fact(Model):
    """A field of an infobox.

    Attributes:
        name: The label of the field.
        section: The heading above it in the infobox, empty if there is none.
        value: Its text as the page shows it.
        values: The single values; at least one.
        links: The links in the values, without those of the label and of footnotes.
        citations: References cited in it.
    """

    name: str = ""
    section: str = ""
    value: str = ""
    values: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    citations: tuple[Citation, ...] = ()


class Passage(Model):
    """A piece of the text of one section.

    Attributes:
        text: Its text: paragraphs with a blank line between them, items of lists with a dash before them, rows of
            tables with a bar between their cells.
        headings: The headings above it, the outermost first; empty in the introduction.
        citations: References cited in it, each once. Their identifiers are those of `StructuredContent.references`.
        number: Its place in the article, from 0.
    """

    text: str = ""
    headings: tuple[str, ...] = ()
    citations: tuple[Citation, ...] = ()
    number: int = 0
