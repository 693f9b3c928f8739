"""The text that generated articles are made of: built in, or taken from real articles."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

FILLER: Final = "The river bends here and goes on through the valley, as it has for a long time. "

_WORD_LIST: Final = (
    "River Mountain Lantern Harbour Copper Granite Meadow Orchard Falcon Heron Willow Basalt Comet Quartz Cathedral "
    "Viaduct Estuary Plateau Lighthouse Archive Compass Telescope Glacier Monsoon Savanna Peninsula Tapestry Sonata "
    "Überlingen Besançon Šibenik Łódź Ærøskøbing Αθήνα Київ 東京都 서울특별시 القاهرة ירושלים दिल्ली Реюньон Malmö"
)
WORDS: Final = _WORD_LIST.split()

# Characters that break readers which are not careful: a lone NEL, the two Unicode separators, a pair outside the BMP,
# a combining mark, a no-break space, quotes and backslashes, and what HTML must escape.
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


@dataclass(frozen=True)
class Texts:
    """Paragraphs and phrases to draw from; none of the sequences is empty."""

    html: Sequence[str]
    wikitext: Sequence[str]
    abstracts: Sequence[str]
    titles: Sequence[str]


def read_base(base: Iterable[Mapping[str, Any]] | str | PathLike[str] | None) -> Texts:
    """Collect texts from real articles where there are any, and fill up from the built-in prose."""
    own = _built_in()
    if base is None:
        return own
    articles = _load(base) if isinstance(base, (str, PathLike)) else list(base)
    bodies = [article.get("article_body") or {} for article in articles]
    return Texts(
        html=_paragraphs(body.get("html", "") for body in bodies) or own.html,
        wikitext=_paragraphs(body.get("wikitext", "") for body in bodies) or own.wikitext,
        abstracts=[article["abstract"] for article in articles if article.get("abstract")] or own.abstracts,
        titles=[article["name"] for article in articles if article.get("name")] or own.titles,
    )


def _load(path: str | PathLike[str]) -> list[dict[str, Any]]:
    place = Path(path)
    files = sorted(place.glob("*.ndjson")) if place.is_dir() else [place]
    return [msgspec.json.decode(line) for file in files for line in file.read_bytes().split(b"\n") if line]


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines(keepends=True)]


def _built_in() -> Texts:
    rnd = Random(20260528)
    sentences = [_sentence(rnd) for _ in range(240)]
    html: list[str] = []
    wikitext: list[str] = []
    for number in range(400):
        chosen = [sentences[rnd.randrange(len(sentences))] for _ in range(rnd.randrange(1, 6))]
        if number % 9 == 0:
            chosen.append(_ODDITIES[number // 9 % len(_ODDITIES)])
        text = " ".join(chosen)
        link = WORDS[number % len(WORDS)]
        html.append(
            f'<p id="mw{number:X}">{escape(text, quote=False)} <a rel="mw:WikiLink" href="./{link}" title="{link}">'
            f'{link}</a><sup class="mw-ref reference" data-mw=\'{{"name":"ref"}}\'>[{number}]</sup></p>\n'
        )
        wikitext.append(f"{text} [[{link}]]<ref>{{{{cite web|title={link}|date=2024}}}}</ref>\n\n")
    abstracts = [(" " if n % 5 == 0 else "") + " ".join(sentences[n * 3 : n * 3 + 3]) for n in range(40)]
    return Texts(html=html, wikitext=wikitext, abstracts=abstracts, titles=_TITLES)


def _sentence(rnd: Random) -> str:
    first, second, third = (WORDS[rnd.randrange(len(WORDS))] for _ in range(3))
    pattern = rnd.choice(
        (
            "The {} lies between {} and the old {}.",
            "In {} the {} was rebuilt, and the {} with it.",
            "{} is known for its {}, less so for its {}.",
            "Few travellers went from {} by way of {} to {}.",
            "A survey of {} counted more of {} than of {}.",
        )
    )
    said = pattern.format(first, second, third)
    return f"{said} It had {rnd.randrange(100, 90_000)} visitors in {rnd.randrange(1700, 2026)}."
