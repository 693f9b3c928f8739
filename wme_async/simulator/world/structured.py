"""Structured contents: an article's parts as trees, tables and references."""

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec

_BASE = (
    "name",
    "identifier",
    "abstract",
    "version",
    "event",
    "url",
    "date_created",
    "date_modified",
    "main_entity",
    "is_part_of",
    "additional_entities",
    "in_language",
    "image",
    "license",
)
_HEADINGS = ("Abstract", "Early life", "Geography and climate", "History", "In popular culture", "See also")


def structured_content(
    article: dict[str, Any],
    rnd: Random,
    texts: Sequence[str],
    *,
    snapshot: bool,
    old_names: bool,
    null_parts: bool,
    snake_case: bool,
) -> dict[str, Any]:
    """Turn an article into its structured form, keys in the wire's order."""
    record = {key: article[key] for key in _BASE if key in article and (snapshot or key != "event")}
    record["description"] = f"Something about {article['name']} & more"
    base = article["is_part_of"]["url"]
    table = _table(rnd, snapshot=snapshot)
    infoboxes: list[Any] = [_infobox(rnd, base)]
    sections: list[Any] = [
        _section(rnd, texts, heading, base, table["identifier"], snake_case=snake_case) for heading in _HEADINGS
    ]
    if null_parts:
        infoboxes.append(None)
        sections.insert(1, None)
    record |= {"infoboxes": infoboxes, "article_sections" if old_names else "sections": sections}
    references = {"references": _references(rnd)}
    tables = {"tables": [table]}
    # The two producers write them in different order.
    record.update(references | tables if snapshot else tables | references)
    if not snapshot:
        record["attribution"] = {
            "editors_count": {"anonymous_count": str(rnd.randrange(100)), "registered_count": ">100"},
            "parsed_references_count": len(record["references"]),
            "last_revised": f"{rnd.randrange(1, 13):02d}/26",
        }
    return record


def _infobox(rnd: Random, base: str) -> dict[str, Any]:
    picture = {
        "content_url": f"https://upload.wikimedia.org/wikipedia/commons/b/b1/Picture_{rnd.randrange(9999)}.jpg",
        "width": 320,
        "height": 240,
        "alternative_text": 'A "picture" <of it>',
    }
    fields = [
        {"type": "image", "images": [picture]},
        {"type": "field", "name": "Area", "value": f"{rnd.randrange(1, 9999)}\u00a0km²"},
        {
            "type": "field",
            "name": "Country",
            "value": "France, Spain",
            "values": ["France", "Spain"],
            "links": [{"url": f"{base}/wiki/France", "text": "France"}, {"url": f"{base}/wiki/Spain", "text": "Spain"}],
        },
    ]
    return {
        "type": "infobox",
        "name": "Infobox place",
        "has_parts": [{"type": "section", "name": "Facts & figures", "has_parts": fields}],
    }


def _section(
    rnd: Random, texts: Sequence[str], heading: str, base: str, table: str, *, snake_case: bool
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "type": "paragraph",
            "value": texts[rnd.randrange(len(texts))],
            "links": [{"url": f"{base}/wiki/River", "text": "River"}],
            "citations": [{"identifier": "cite_note-1", "text": "[1]"}],
        }
        for _ in range(rnd.randrange(1, 4))
    ]
    if heading == "See also":
        parts = [
            {
                "type": "list",
                "has_parts": [{"type": "list_item", "value": f"Entry {n}"} for n in range(rnd.randrange(1, 5))],
            }
        ]
    if heading == "Geography and climate":
        reference = [{"identifier": table, "confidence_score": 0.9}]
        parts.append(
            {"type": "section", "name": "Climate", "has_parts": [{"type": "table", "table_references": reference}]}
        )
    name = heading.lower().replace(" ", "_") if snake_case else heading
    return {"type": "section", "name": name, "has_parts": parts}


def _table(rnd: Random, *, snapshot: bool) -> dict[str, Any]:
    inner = {"identifier": "nested_table1", "rows": [[{"value": "inner"}, {"value": str(rnd.randrange(99))}]]}
    nested: Any = msgspec.json.encode(inner).decode() if snapshot else inner
    return {
        "identifier": f"climate_table{rnd.randrange(1, 9)}",
        "headers": [[{"value": "Month"}, {"value": "High (°C)"}]],
        "rows": [
            [{"value": month}, {"value": f"{rnd.randrange(-9, 38)}"}]
            for month in ("January", "April", "July", "October")
        ]
        + [[{"value": "Year"}, {"value": "see inside", "nested_table": nested}]],
        "footers": [[{"value": "Source: weather service"}]],
        "confidence_score": round(rnd.uniform(0.5, 1), 3),
    }


def _references(rnd: Random) -> list[dict[str, Any]]:
    references: list[dict[str, Any]] = [
        {
            "identifier": f"cite_note-{number}",
            "type": "web",
            "metadata": {
                "accessdate": "2024-05-01",
                "title": f"Source {number}",
                "url": f"https://example.org/source/{number}",
            },
            "text": {
                "value": f"Source {number}, retrieved 2024.",
                "links": [{"url": f"https://example.org/source/{number}", "text": f"Source {number}"}],
            },
        }
        for number in range(1, rnd.randrange(3, 7))
    ]
    last = {
        "identifier": f"cite_note-{len(references) + 1}",
        "parent_reference": "cite_note-1",
        "text": {"value": "p. 12"},
    }
    return [*references, last]
