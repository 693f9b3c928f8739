"""The text of rendered pages, by selectolax (extra `html`)."""

import re
from typing import Any, Final

from wme_async.models.parts import Citation
from wme_async.models.reading import Block

# Not part of the text: styles, footnotes, boxes, navigation, notices, pictures, and hidden elements.
_OMITTED: Final = ", ".join((
    *("head", "style", "script", "link", "meta", "template", "noscript", "math annotation", "figure", "[hidden]"),
    *(".infobox", ".navbox", ".vertical-navbox", ".sidebar", ".metadata", ".ambox", ".noprint", ".toc"),
    *(".mw-editsection", ".sistersitebox", ".side-box"),
    *(".mw-references-wrap", "ol.references", ".reflist", ".thumb", ".gallery", ".hatnote", ".shortdescription"),
    *(".mw-empty-elt", ".catlinks", ".navigation-not-searchable", "#coordinates", '[role="navigation"]'),
    *('[style*="display:none"]', '[style*="display: none"]'),
))  # fmt: skip
_MARKS: Final = "sup.reference, sup.mw-ref, .mw-ref"
_HEADING: Final = re.compile(r"h[1-6]")
_BLOCKS: Final = frozenset({
    *("p", "div", "section", "article", "blockquote", "pre", "ul", "ol", "dl", "li", "dt", "dd", "table", "tr"),
    "caption",
    *("h1", "h2", "h3", "h4", "h5", "h6", "hr", "center", "header", "footer", "main", "aside", "details", "summary"),
})  # fmt: skip
_LISTS: Final = frozenset({"ul", "ol"})


def html_blocks(html: str) -> list[Block]:
    """Return the text of a rendered page in reading order, with the headings and footnotes of each block.

    Infoboxes, navigation, notices, pictures and the list of footnotes are omitted.

    Raises:
        ImportError: selectolax is not installed.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ImportError("the text of HTML needs selectolax: pip install 'wme-async[html]'") from error
    root = LexborHTMLParser(html).body
    if root is None:
        return []
    # Skipped, not removed: to remove a node of the tree inside one that is removed corrupts memory.
    omitted, marks = ({node.mem_id for node in root.css(selector)} for selector in (_OMITTED, _MARKS))
    reader = _Reader(omitted, marks)
    reader.read(root)
    return reader.blocks


class _Reader:
    """Walks through a page and collects its blocks.

    Args:
        omitted: The nodes to skip, by their addresses.
        marks: The nodes that are marks of footnotes.

    Attributes:
        blocks: The text of the page.
    """

    def __init__(self, omitted: set[int], marks: set[int]) -> None:
        self.blocks: list[Block] = []
        self._omitted = omitted
        self._marks = marks
        self._headings: list[tuple[int, str]] = []
        self._pieces: list[str] = []
        self._citations: list[Citation] = []
        self._lists = 0
        self._item = self._row = False

    def read(self, root: Any) -> None:
        """Read all that is below a node. A stack of our own: a page may be nested deeper than Python's goes."""
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            node, end = stack.pop()
            if end:
                self._leave(node.tag)
            elif node.tag == "-text":
                self._pieces.append(node.text(deep=False) or "")
            elif node.mem_id in self._marks:
                self._cite(node)
            elif node.mem_id not in self._omitted:
                self._enter(node.tag)
                stack.append((node, True))
                stack += [(child, False) for child in reversed(list(node.iter(include_text=True)))]
        self._flush()

    def _enter(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._flush()
        if tag in _LISTS:
            self._lists += 1
        elif tag == "li":
            self._item = True
        elif tag == "tr":
            self._row = True
        elif tag == "br":
            self._pieces.append(" ")

    def _leave(self, tag: str) -> None:
        if _HEADING.fullmatch(tag):
            self._head(int(tag[1]))
        elif tag in {"td", "th"}:
            self._pieces.append(_CELL)
        elif tag in _BLOCKS:
            self._flush()
        if tag in _LISTS:
            self._lists -= 1
        elif tag == "li":
            self._item = False
        elif tag == "tr":
            self._row = False

    def _cite(self, node: Any) -> None:
        link = node.css_first("a")
        address, text = (link.attributes.get("href") or "", link.text(strip=True)) if link is not None else ("", "")
        _, mark, identifier = address.partition("#")
        if mark and identifier:
            self._citations.append(Citation(identifier=identifier, text=text))

    def _take(self) -> str:
        cells = "".join(self._pieces).split(_CELL)
        self._pieces.clear()
        return " | ".join(text for cell in cells if (text := " ".join(cell.split())))

    def _head(self, level: int) -> None:
        if heading := self._take():
            self._headings = [above for above in self._headings if above[0] < level]
            self._headings.append((level, heading))
        self._citations.clear()

    def _flush(self) -> None:
        citations, text = tuple(self._citations), self._take()
        self._citations.clear()
        if text:
            indent = "  " * max(0, self._lists - 1) + "- " if self._item else ""
            headings = tuple(heading for _, heading in self._headings)
            self.blocks.append(Block(indent + text, headings, citations, tight=self._item or self._row))
        self._item = self._item and not text
        self._row = self._row and not text


# Between two cells of a table; no text contains it.
_CELL: Final = "\0"
