"""The text of generated articles: built in, or taken from real articles."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import accumulate
from os import PathLike
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from wme_async.simulator.world.encoding import dumps

FILLER: Final = "The river bends here and goes on through the valley, as it has for a long time. "

_WORD_LIST: Final = (
    "River Mountain Lantern Harbour Copper Granite Meadow Orchard Falcon Heron Willow Basalt Comet Quartz Cathedral "
    "Viaduct Estuary Plateau Lighthouse Archive Compass Telescope Glacier Monsoon Savanna Peninsula Tapestry Sonata "
    "Überlingen Besançon Šibenik Łódź Ærøskøbing Αθήνα Київ 東京都 서울특별시 القاهرة ירושלים दिल्ली Реюньон Malmö"
)
WORDS: Final = _WORD_LIST.split()

# Characters that break readers which are not careful: a lone NEL, the two Unicode separators, a pair outside the BMP,
# a combining mark, a no-break space, quotes and backslashes, and the characters that HTML escapes.
_ODDITIES: Final = (
    "before\u0085after",
    "line\u2028separator",
    "paragraph\u2029separator",
    "clef \U0001d11e",
    "cafe\u0301",
    "ten\u00a0km",
    'said "yes" \\ "no"',
    "R&D <not a tag>",
)

COMMENTS: Final = (
    "/* History */ new section",
    "Reverted edits by [[Special:Contributions/192.0.2.7|192.0.2.7]] ([[User talk:192.0.2.7|talk]])",
    "fixed a date & a <ref>",
    "copyedit",
    "→‎Geography: one source added",
    "Bot: moving 1 interwiki link to Wikidata",
    "typo\u0085 and a stray control",
    "see «guidelines»\u2028second line",
)

_TITLES: Final = (
    *(f"{first} {second}" for first, second in zip(WORDS, [*WORDS[7:], *WORDS[:7]], strict=True)),
    "AC/DC",
    'Quoth "it"',
    "Rock 'n' Roll",
    "50% of C++",
    "What? & Why",
    "Ångström",
    "Élan vital",
)


class Ring:
    """Text laid end to end, from which a piece of any encoded length is one slice.

    Args:
        paragraphs: The pieces between which it is cut; at least one.
    """

    def __init__(self, paragraphs: Sequence[str]) -> None:
        self._text = "".join(paragraphs) * 2
        self._count = len(paragraphs)
        self._chars = [0, *accumulate(map(len, [*paragraphs, *paragraphs]))]
        self._bytes = [0, *accumulate([len(dumps(paragraph)) - 2 for paragraph in paragraphs] * 2)]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Ring | None":
        """Lay texts end to end, cut at line ends; None where they are all empty."""
        paragraphs = [line for text in texts for line in text.splitlines(keepends=True)]
        return cls(paragraphs) if paragraphs else None

    def take(self, rnd: Random, size: int) -> str:
        """Return about `size` bytes of encoded text, from a random paragraph on."""
        if size <= 0:
            return ""
        turns, remainder = divmod(size, self._bytes[self._count])
        start = rnd.randrange(self._count)
        stop = bisect_left(self._bytes, self._bytes[start] + remainder, start, start + self._count)
        tail = self._text[self._chars[start] : self._chars[stop]]
        return self._text[: self._chars[self._count]] * turns + tail if turns else tail


@dataclass(frozen=True)
class Texts:
    """Bodies and phrases to draw from; each has at least one entry."""

    html: Ring
    wikitext: Ring
    abstracts: Sequence[str]
    titles: Sequence[str]


def texts_of(base: Iterable[Mapping[str, Any]] | str | PathLike[str] | None) -> Texts:
    """Collect texts from real articles where there are any, and fill up from the built-in prose."""
    if base is None:
        return built_in_texts()
    default = built_in_texts()
    articles = _load(base) if isinstance(base, (str, PathLike)) else list(base)
    bodies = [article.get("article_body") or {} for article in articles]
    return Texts(
        html=Ring.of(body.get("html", "") for body in bodies) or default.html,
        wikitext=Ring.of(body.get("wikitext", "") for body in bodies) or default.wikitext,
        abstracts=[article["abstract"] for article in articles if article.get("abstract")] or default.abstracts,
        titles=[article["name"] for article in articles if article.get("name")] or default.titles,
    )


def _load(path: str | PathLike[str]) -> list[dict[str, Any]]:
    path = Path(path)
    files = sorted(path.glob("*.ndjson")) if path.is_dir() else [path]
    return [msgspec.json.decode(line) for file in files for line in file.read_bytes().split(b"\n") if line]


@cache
def built_in_texts() -> Texts:
    """Make the built-in prose, once for all generators of this process."""
    rnd = Random(20260528)
    sentences = [_sentence(rnd) for _ in range(240)]
    html: list[str] = []
    wikitext: list[str] = []
    for number in range(400):
        paragraph = [sentences[rnd.randrange(len(sentences))] for _ in range(rnd.randrange(1, 6))]
        if number % 9 == 0:
            paragraph.append(_ODDITIES[number // 9 % len(_ODDITIES)])
        text = " ".join(paragraph)
        link = WORDS[number % len(WORDS)]
        html.append(
            f'<p id="mw{number:X}">{escape(text, quote=False)} <a rel="mw:WikiLink" href="./{link}" title="{link}">'
            f'{link}</a><sup class="mw-ref reference" data-mw=\'{{"name":"ref"}}\'>[{number}]</sup></p>\n'
        )
        wikitext.append(f"{text} [[{link}]]<ref>{{{{cite web|title={link}|date=2024}}}}</ref>\n\n")
    abstracts = [(" " if n % 5 == 0 else "") + " ".join(sentences[n * 3 : n * 3 + 3]) for n in range(40)]
    return Texts(html=Ring(html), wikitext=Ring(wikitext), abstracts=abstracts, titles=_TITLES)


def filler(size: int) -> str:
    """Return plain text of `size` bytes."""
    return FILLER * (size // len(FILLER)) + FILLER[: size % len(FILLER)]


_PATTERNS: Final = (
    "The {} lies between {} and the old {}.",
    "In {} the {} was rebuilt, and the {} with it.",
    "{} is known for its {}, less so for its {}.",
    "Few travellers went from {} by way of {} to {}.",
    "A survey of {} counted more of {} than of {}.",
)


def _sentence(rnd: Random) -> str:
    words = [WORDS[rnd.randrange(len(WORDS))] for _ in range(3)]
    sentence = rnd.choice(_PATTERNS).format(*words)
    return f"{sentence} It had {rnd.randrange(100, 90_000)} visitors in {rnd.randrange(1700, 2026)}."
