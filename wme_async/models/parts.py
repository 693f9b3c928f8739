"""The parts of articles and structured contents: images, links, and the tree of parts."""

from enum import StrEnum
from typing import Any

from msgspec import UNSET, UnsetType, field
from msgspec.structs import force_setattr

from wme_async.models._struct import Model

__all__ = ["Citation", "Image", "Link", "MediaType", "Part", "PartType", "TableReference", "Thumbnail"]


class MediaType(StrEnum):
    """The media types that are known. `Image.media_type` is an open string."""

    UNKNOWN = "unknown"
    BITMAP = "bitmap"
    DRAWING = "drawing"
    AUDIO = "audio"
    VIDEO = "video"
    MULTIMEDIA = "multimedia"
    OFFICE = "office"
    TEXT = "text"
    EXECUTABLE = "executable"
    ARCHIVE = "archive"


class PartType(StrEnum):
    """The types of parts that are known. `Part.type` is an open string: the server has added to them before."""

    INFOBOX = "infobox"
    FIELD = "field"
    IMAGE = "image"
    SECTION = "section"
    LIST = "list"
    LIST_ITEM = "list_item"
    PARAGRAPH = "paragraph"
    TABLE = "table"


class Thumbnail(Model):
    """A smaller rendering of an image.

    Attributes:
        content_url: Where it is. On the wire `contentUrl`, unlike in `Image`; `content_url` is accepted as well.
        width: Pixels.
        height: Pixels.
    """

    content_url: str = field(name="contentUrl", default="")
    width: int = 0
    height: int = 0
    _content_url: str | UnsetType = field(name="content_url", default=UNSET)

    def __post_init__(self) -> None:
        fold(self, "content_url", "_content_url", "")


class Image(Model):
    """An image of an article or of a part.

    Attributes:
        content_url: Its address, from page markup, so it may be malformed (`https:https://...` has been seen).
        width: Pixels.
        height: Pixels.
        alternative_text: Text for those who do not see it.
        caption: Text below it.
        identifier: A hash. This and the following fields are sent since 2026.
        name: `"./File:..."`.
        encoding_format: MIME type.
        media_type: One of `MediaType`, or something newer.
        thumbnail: A smaller rendering, where there is one.
    """

    content_url: str = ""
    width: int = 0
    height: int = 0
    alternative_text: str = ""
    caption: str = ""
    identifier: str = ""
    name: str = ""
    encoding_format: str = ""
    media_type: str = ""
    thumbnail: Thumbnail | None = None


class Link(Model):
    """A link within text.

    Attributes:
        url: Its target.
        text: Its visible text.
        images: Images inside the link.
    """

    url: str = ""
    text: str = ""
    images: tuple[Image, ...] = ()


class Citation(Model):
    """A mark in the text that points to a `Reference`.

    Attributes:
        identifier: Identifier of the reference: `"cite_note-1"`.
        group: Group of notes, where the page has several.
        text: The mark as it is shown: `"[1]"`.
    """

    identifier: str = ""
    group: str = ""
    text: str = ""


class TableReference(Model):
    """Where in the text a `Table` stands.

    Attributes:
        identifier: Identifier of the table.
        confidence_score: 0 to 1: how far the parser trusts its reading of it.
    """

    identifier: str = ""
    confidence_score: float = 0.0


class Part(Model):
    """A node of an infobox or of a section; which attributes it has depends on its type.

    Attributes:
        type: One of `PartType`, or something newer.
        name: Heading of a section, label of a field. The first section is named `"Abstract"`.
        value: Text.
        values: Texts, where there are several.
        has_parts: The nodes below.
        images: Images in it.
        links: Links in it.
        citations: References cited in it.
        table_references: Tables that stand in it.
    """

    type: str = ""
    name: str = ""
    value: str = ""
    values: tuple[str, ...] = ()
    has_parts: tuple["Part", ...] = ()
    images: tuple[Image, ...] = ()
    links: tuple[Link, ...] = ()
    citations: tuple[Citation, ...] = ()
    table_references: tuple[TableReference, ...] = ()


def fold(model: Model, name: str, other: str, empty: object) -> None:
    """Move the value of another spelling into the public field, unless that one has been given."""
    value: Any = getattr(model, other)
    if value is not UNSET:
        if getattr(model, name) == empty:
            force_setattr(model, name, value)
        force_setattr(model, other, UNSET)
