"""The built-in metadata, and real ones from a folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from wme_async.simulator.world.articles import site_of

PROJECTS: Final = (
    "enwiki", "cebwiki", "enwiktionary", "dewiki", "frwiki", "ruwiki", "eswiki", "itwiki", "simplewiki", "abwiki",
    "dewiktionary", "enwikibooks",
)  # fmt: skip
STRUCTURED: Final = ("enwiki", "dewiki", "frwiki", "eswiki", "itwiki")
NAMESPACES: Final = (
    (0, "Articles", "The pages of the encyclopedia proper."),
    (6, "File", "Descriptions of images, sounds and films."),
    (10, "Template", "Pages meant to be included in others."),
    (14, "Category", "Lists of related pages."),
)
_CODES: Final = (
    ("wiki", "Wikipedia", "The free encyclopedia."),
    ("wikibooks", "Wikibooks", "E-book textbooks and annotated texts."),
    ("wikinews", "Wikinews", "The free news source."),
    ("wikiquote", "Wikiquote", "Quotes across books, movies, authors, and more."),
    ("wikisource", "Wikisource", "The free digital library."),
    ("wikiversity", "Wikiversity", "Free learning resources."),
    ("wikivoyage", "Wikivoyage", "The travel guide."),
    ("wiktionary", "Wiktionary", "A dictionary for many languages."),
)
_LANGUAGES: Final = (
    ("ab", "Abkhazian", "аԥсуа", "ltr"), ("ar", "Arabic", "العربية", "rtl"), ("ceb", "Cebuano", "Cebuano", "ltr"),
    ("de", "German", "Deutsch", "ltr"), ("en", "English", "English", "ltr"), ("es", "Spanish", "español", "ltr"),
    ("fr", "French", "français", "ltr"), ("it", "Italian", "italiano", "ltr"), ("ru", "Russian", "русский", "ltr"),
    ("simple", "Simple English", "Simple English", "ltr"),
)  # fmt: skip
EMPTY: Final = "abwiki_namespace_6"  # an archive without members: left out of lists, yet there


def _load(folder: Path | None, name: str) -> list[dict[str, Any]] | None:
    if folder is None or not (folder / name).is_file():
        return None
    rows: list[dict[str, Any]] = json.loads((folder / name).read_text("utf-8"))
    return rows


def real_articles(folder: Path | None) -> list[dict[str, Any]]:
    """Return the articles of a folder, decoded."""
    if folder is None or not (folder / "articles.ndjson").is_file():
        return []
    lines = (folder / "articles.ndjson").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line.strip()]


def batch_sizes(folder: Path | None) -> dict[str, float]:
    """Return the archives of each hour: identifiers, and sizes in MB that determine which one is larger."""
    rows = _load(folder, "batches.json")
    if rows is not None:
        return {str(row["identifier"]): float(row["size"].get("value", 0)) for row in rows}
    sizes = {
        f"{project}_namespace_{namespace}": 80.0 / (number + 1) ** 2 / (namespace + 1)
        for number, project in enumerate(PROJECTS)
        for namespace in (0, 10, 14)
    }
    return {**sizes, "enwiki_namespace_6": 1.0, EMPTY: 0.0}


def static_world(folder: Path | None, others: Iterable[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Return codes, languages, projects and namespaces, from the files of a folder that exist.

    Args:
        folder: The folder, or None.
        others: Projects beside the built-in ones.
    """
    projects = []
    for identifier in dict.fromkeys((*PROJECTS, "commonswiki", *others)):
        language, url = site_of(identifier)
        code = next((code for code, _, _ in reversed(_CODES) if identifier.endswith(code)), "wiki")
        name = next(row[1] for row in _CODES if row[0] == code)
        projects.append(
            {"name": name, "identifier": identifier, "url": url, "code": code, "in_language": {"identifier": language}}
        )
    return {
        "codes": _load(folder, "codes.json")
        or [{"identifier": code, "name": name, "description": text} for code, name, text in _CODES],
        "languages": _load(folder, "languages.json")
        or [
            {"identifier": code, "name": name, "alternate_name": native_name, "direction": direction}
            for code, name, native_name, direction in _LANGUAGES
        ],
        "projects": _load(folder, "projects.json") or projects,
        "namespaces": _load(folder, "namespaces.json")
        or [{"name": name, "identifier": number, "description": text} for number, name, text in NAMESPACES],
    }
