"""The records of a `World` on the wire: articles of the generator with page, revision and event of the world."""

from random import Random
from typing import Any, Final

from wme_async.simulator.world.articles import ArticleGenerator, Size
from wme_async.simulator.world.encoding import stamp
from wme_async.simulator.world.pipeline import PublishedRecord

_TEXT_BYTES: Final = 400  # of the body of a small record
_PARTS: Final = ("text", "editor", "comment")
_ORDER: Final = (
    "name", "identifier", "abstract", "date_created", "date_modified", "date_previously_modified", "protection",
    "version", "previous_version", "url", "watchers_count", "namespace", "in_language", "main_entity",
    "additional_entities", "categories", "templates", "redirects", "is_part_of", "article_body", "license",
    "visibility", "event", "image",
)  # fmt: skip
_SPARSE: Final = ("date_created", "date_previously_modified", "previous_version", "watchers_count")
_REPLACED: Final = ("name", "identifier", "url", "version", "event", "date_created", "date_modified")


def encode_record(record: PublishedRecord, generator: ArticleGenerator, size: Size = "small") -> dict[str, Any]:
    """Return a record as the service writes it, keys in the wire's order.

    Args:
        record: The record.
        generator: Makes the text.
        size: As in `ArticleGenerator.article`; a small update has a short wikitext here.
    """
    page, kind = record.page, record.message.kind
    fields = generator.article(
        page.number,
        project=record.message.project,
        namespace=record.namespace,
        kind=kind,
        size=size,
        revision=page.revision,
        title=record.name,
    )
    fields |= {
        "identifier": page.page_id,
        "date_modified": stamp(page.modified * 1000, 0),
        "version": {**fields.get("version", {}), "identifier": page.revision},
        "event": _event(record),
    }
    if len(page.revisions) > 1:
        fields["previous_version"] = {**fields.get("previous_version", {}), "identifier": page.revisions[-2].identifier}
    elif "previous_version" in fields:
        fields["previous_version"] = {}
    if kind == "update":
        _add_content(record, fields, generator, size)
    elif kind == "visibility-change":
        fields["visibility"] = {part: part not in record.message.change.page.hidden for part in _PARTS}
    if record.bulk:
        for key in _SPARSE:
            fields.pop(key, None)
    if record.eventless:
        del fields["event"]
    return {key: fields[key] for key in _ORDER if key in fields}


def _add_content(record: PublishedRecord, fields: dict[str, Any], generator: ArticleGenerator, size: Size) -> None:
    page = record.page
    if size == "small":
        text = generator.text(Random(page.number << 40 ^ page.revision), _TEXT_BYTES)
        fields["article_body"] = {"wikitext": f"Revision {page.revision}. {text}"}
    else:
        fields["date_created"] = stamp(page.revisions[0].modified * 1000, 0)
        if len(page.revisions) > 1:
            fields["date_previously_modified"] = stamp(page.revisions[-2].modified * 1000, 0)
    if "text" in page.hidden:
        fields.pop("article_body", None)
    for part in page.hidden & fields["version"].keys():
        del fields["version"][part]


def _event(record: PublishedRecord) -> dict[str, Any]:
    message = record.message
    return {
        "identifier": message.change.event_id,
        "type": message.kind,
        "date_created": stamp(message.created * 1000, 6),
        "date_published": stamp(record.published * 1000, 6),
    }


def encode_structured(record: PublishedRecord, generator: ArticleGenerator) -> dict[str, Any]:
    """Return the structured contents of an update, as a snapshot has them."""
    article = encode_record(record, generator, None)
    structured = generator.structured(record.page.number, project=record.message.project, where="snapshot")
    fields: dict[str, Any] = {key: article[key] for key in _REPLACED if key in article}
    return {key: fields.get(key, value) for key, value in structured.items() if key in fields or key not in _REPLACED}
