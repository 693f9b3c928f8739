"""Facts, text and passages of articles: infoboxes as a flat mapping, and sections in reading order. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from wme_async._arguments import check_numbers
from wme_async.models.parts import Citation, Part, PartType
from wme_async.models.passages import Fact, Passage

__all__ = ["Block", "facts_of", "passages_of", "section_blocks", "text_of"]


class Block(NamedTuple):
    """A paragraph, an item of a list or a table.

    Args:
        text: Its text, not empty.
        headings: The headings above it, the outermost first.
        citations: References cited in it.
        tight: It follows a block of the same kind without a blank line between them.
    """

    text: str
    headings: tuple[str, ...] = ()
    citations: tuple[Citation, ...] = ()
    tight: bool = False


# Facts


def facts_of(infoboxes: Sequence[Part]) -> dict[str, Fact]:
    """Return the named fields of infoboxes as a flat mapping, in their order.

    Args:
        infoboxes: Trees of parts.

    Returns:
        Facts by the names of their fields. Where sections or infoboxes have fields of the same name, these are all
        named `section: name`, or `infobox: section: name`.
    """
    fields: dict[tuple[int, str, str], list[Part]] = {}
    for number, infobox in enumerate(infoboxes):
        for part, headings in _walk(infobox.has_parts):
            name = _clean(part.name).rstrip(":").rstrip()
            if name and part.type not in _STRUCTURE and _values(part):
                fields.setdefault((number, ": ".join(headings), name), []).append(part)
    facts = [_fact(name, section, parts) for (_, section, name), parts in fields.items()]
    names = _unique_names(facts, [_clean(infoboxes[number].name) for number, _, _ in fields])
    return dict(zip(names, facts, strict=True))


_STRUCTURE: Final = frozenset({PartType.SECTION, PartType.INFOBOX, PartType.IMAGE})


def _fact(name: str, section: str, parts: Sequence[Part]) -> Fact:
    values = tuple(value for part in parts for value in _values(part))
    value = ", ".join(_clean(part.value) or ", ".join(_values(part)) for part in parts)
    family = [node for part in parts for node in (part, *(below for below, _ in _walk(part.has_parts)))]
    text = " ".join((value, *values))
    links = [link for node in family for link in node.links if (label := _clean(link.text)) and label in text]
    return Fact(
        name=name,
        section=section,
        value=value,
        values=values,
        links=tuple(dict.fromkeys(links)),
        citations=tuple(dict.fromkeys(citation for node in family for citation in node.citations)),
    )


def _values(part: Part) -> tuple[str, ...]:
    """Return the values of a field, or those of the lists in it."""
    own = [value for text in part.values or (part.value,) if (value := _clean(text))]
    below = [
        value for node, _ in _walk(part.has_parts) for text in node.values or (node.value,) if (value := _clean(text))
    ]
    return tuple(own or below)


def _unique_names(facts: Sequence[Fact], infoboxes: Sequence[str]) -> list[str]:
    names: dict[int, str] = {}
    for level in (1, 2, 3):
        forms = {
            at: ": ".join(filter(None, (infoboxes[at], fact.section, fact.name)[-level:]))
            for at, fact in enumerate(facts)
            if at not in names
        }
        counts = Counter([*forms.values(), *names.values()])
        names |= {at: form for at, form in forms.items() if counts[form] == 1}
    for at, fact in enumerate(facts):
        if at not in names:
            form = ": ".join(filter(None, (infoboxes[at], fact.section, fact.name)))
            taken = {*names.values()}
            names[at] = next(name for n in range(2, len(facts) + 3) if (name := f"{form} ({n})") not in taken)
    return [names[at] for at in range(len(facts))]


def _walk(parts: Iterable[Part]) -> Iterator[tuple[Part, tuple[str, ...]]]:
    """Yield all parts below in the order of the page, with the headings above each. Any depth will do."""
    stack: list[tuple[Part, tuple[str, ...]]] = [(part, ()) for part in reversed(tuple(parts))]
    while stack:
        part, headings = stack.pop()
        yield part, headings
        if part.type == PartType.SECTION and (heading := _clean(part.name)):
            headings = (*headings, heading)
        stack += [(child, headings) for child in reversed(part.has_parts)]


def _clean(text: str) -> str:
    return " ".join(text.split())


# Text


def section_blocks(sections: Sequence[Part], tables: Mapping[str, str]) -> list[Block]:
    """Return the text of sections in reading order.

    Args:
        sections: Trees of parts. The first section has no heading of its own on the page.
        tables: The text of each table, by its identifier.
    """
    blocks: list[Block] = []
    stack: list[tuple[Part, tuple[str, ...], int]] = [(section, (), 0) for section in reversed(sections)]
    while stack:
        part, headings, depth = stack.pop()
        introduction = bool(sections) and part is sections[0] and part.name.lower() == "abstract"
        if part.type == PartType.SECTION and not introduction and (heading := _clean(part.name)):
            headings = (*headings, heading)
        item = part.type == PartType.LIST_ITEM
        text = part.value.strip() or "\n".join(value.strip() for value in part.values if value.strip())
        if text:
            indent = "  " * max(0, depth - 1) + "- " if item else ""
            blocks.append(Block(indent + text, headings, part.citations, tight=item))
        texts = (tables.get(reference.identifier) for reference in part.table_references)
        blocks += [Block(table, headings) for table in texts if table]
        below = depth + 1 if part.type == PartType.LIST else depth
        stack += [(child, headings, below) for child in reversed(part.has_parts)]
    return blocks


def text_of(blocks: Iterable[Block]) -> str:
    """Return blocks as plain text: a blank line between paragraphs, and each heading on a line of its own."""
    pieces: list[str] = []
    headings: tuple[str, ...] = ()
    previous: Block | None = None
    for block in blocks:
        new = block.headings
        if previous is None or new != previous.headings:
            same = next((at for at, pair in enumerate(zip(new, headings, strict=False)) if pair[0] != pair[1]), None)
            same = min(len(new), len(headings)) if same is None else same
            pieces += [f"\n\n{heading}" for heading in new[same:]]
            headings, previous = new, None
        pieces.append(("\n" if previous and previous.tight and block.tight else "\n\n") + block.text)
        previous = block
    return "".join(pieces).strip("\n")


def passages_of(blocks: Iterable[Block], max_chars: int) -> list[Passage]:
    """Return blocks as passages of a limited size, each within one section.

    Paragraphs go together while they fit. One that is too long is cut after a line or a sentence, else between words,
    and a longer word within it.

    Args:
        blocks: In reading order.
        max_chars: Characters in a passage at most.

    Raises:
        TypeError: `max_chars` is not a whole number.
        ValueError: `max_chars` is below 1.
    """
    check_numbers(whole=True, optional=False, minimum=1, max_chars=max_chars)
    passages: list[Passage] = []
    for headings, members in groupby(blocks, key=lambda block: block.headings):
        text, tight = "", False
        citations: tuple[Citation, ...] = ()
        pieces = [block._replace(text=piece) for block in members for piece in _split(block.text, max_chars)]
        for piece in pieces:
            joined = text + ("\n" if tight and piece.tight else "\n\n") + piece.text if text else piece.text
            if text and len(joined) > max_chars:
                passages.append(_passage(text, headings, citations, len(passages)))
                joined, citations = piece.text, ()
            text, citations, tight = joined, (*citations, *piece.citations), piece.tight
        passages.append(_passage(text, headings, citations, len(passages)))
    return passages


def _passage(text: str, headings: tuple[str, ...], citations: Iterable[Citation], number: int) -> Passage:
    return Passage(text=text, headings=headings, citations=tuple(dict.fromkeys(citations)), number=number)


_ENDS: Final = (
    re.compile(r"\n+"),
    # Sentences, also of East Asian scripts, with the quotes and brackets that close them.
    re.compile("(?<=[.!?\u2026])[\"'\u201d\u2019)\\]]*\\s+|(?<=[\u3002\uff01\uff1f])"),
    re.compile(r"\s+"),
)


def _split(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces; at the cuts whitespace is dropped, and nothing else."""
    start = 0
    while len(text) - start > size:
        # A character more, so that a cut right behind the last one counts.
        window = text[start : start + size + 1]
        stop = step = size
        for pattern in _ENDS:
            cuts = [match for match in pattern.finditer(window) if 0 < _cut(match) <= size]
            if cuts:
                stop, step = _cut(cuts[-1]), cuts[-1].end()
                break
        if piece := text[start : start + stop].strip():
            yield piece
        start += max(step, 1)
        start += len(text) - start - len(text[start:].lstrip()) if text[start : start + 1].isspace() else 0
    if piece := text[start:].strip():
        yield piece


def _cut(match: "re.Match[str]") -> int:
    """Return where the text before a match ends: quotes and brackets that close a sentence belong to it."""
    return match.end() - (len(match[0]) - len(match[0].rstrip()))
