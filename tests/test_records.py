"""Records in other tools: as plain data, as JSON, and on a screen."""

import copy
import json
import pickle
from datetime import UTC, datetime

import msgspec
import pytest

from wme_async import Article, StructuredContent, models
from wme_async.models import ArticleBody, PageLink, Version, WikidataArticle
from wme_async.simulator import ArticleGenerator

ARTICLE = Article(
    name="Squirrel",
    identifier=5,
    date_modified=datetime(2026, 11, 29, 5, tzinfo=UTC),
    version=Version(identifier=7, tags=("a", "b")),
    article_body=ArticleBody(html="x" * 1000),
    categories=tuple(PageLink(name=f"Category {number}") for number in range(30)),
)


def generated() -> list[models.Article | models.StructuredContent | models.WikidataArticle]:
    articles = ArticleGenerator(seed=3)
    return [
        msgspec.convert(articles.article(1), Article),
        msgspec.json.decode(msgspec.json.encode(articles.structured(1)), type=StructuredContent),
        WikidataArticle(name="Q42"),
    ]


@pytest.mark.parametrize("record", generated(), ids=lambda record: type(record).__name__)
def test_a_record_becomes_plain_data_and_json_and_comes_back(record):
    assert json.loads(json.dumps(record.to_dict())) == record.to_dict() == json.loads(record.to_json())
    assert msgspec.convert(record.to_dict(), type(record)) == record
    assert msgspec.json.decode(record.to_json(), type=type(record)) == record


def test_plain_data_has_the_names_of_the_wire_and_leaves_out_what_is_empty():
    assert ARTICLE.to_dict()["date_modified"] == "2026-11-29T05:00:00Z"
    assert ARTICLE.to_dict()["version"] == {"identifier": 7, "tags": ["a", "b"]}
    assert "abstract" not in ARTICLE.to_dict()


def test_vars_of_a_record_are_its_plain_data_and_copies_are_equal():
    assert vars(ARTICLE) == ARTICLE.to_dict()
    for twin in (copy.copy(ARTICLE), copy.deepcopy(ARTICLE), pickle.loads(pickle.dumps(ARTICLE))):
        assert twin == ARTICLE
    assert msgspec.structs.replace(ARTICLE, name="Other").name == "Other"


def test_a_record_fits_a_screen():
    text = repr(ARTICLE)
    assert text.startswith("Article(name='Squirrel', identifier=5")
    assert f"html='{'x' * 80}'…)" in text
    assert "PageLink(name='Category 9'), … 20 more)" in text
    assert "Category 10" not in text
    assert len(text) < 800


def test_a_mapping_is_shortened_too():
    labels = {f"l{number}": "x" for number in range(12)}
    assert "… 2 more}" in repr(models.WikidataEntity(labels=labels))
