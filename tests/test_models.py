"""The models: what the server sends becomes what it means, and goes back out as it came."""

import importlib
import inspect
import json
import pickle
import pkgutil
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import models
from wme_async.models import (  # private: the base of all models, and the decoder of bad records
    Archive,
    Article,
    Batch,
    Chunk,
    Code,
    Editor,
    Event,
    EventType,
    FilePage,
    Image,
    LabelsAnswer,
    Language,
    Namespace,
    Part,
    Project,
    Scores,
    Size,
    Snapshot,
    Statement,
    StatementValue,
    StructuredContent,
    StructuredSnapshot,
    Table,
    TimePrecision,
    User,
    Version,
    Visibility,
    WikibaseTime,
    WikidataArticle,
    WikidataEntity,
    _struct,
    _tolerant,
    merge_labels,
)

DATA = Path(__file__).parents[1] / "../shared/data"
ZERO = "0001-01-01T00:00:00Z"


def read(document: object, type_: Any) -> Any:
    return msgspec.json.decode(json.dumps(document).encode(), type=type_)


def written(value: object) -> Any:
    return json.loads(msgspec.json.encode(value))


def patiently(document: object, type_: Any) -> Any:
    return _tolerant.decode_record(msgspec.json.Decoder(type_), json.dumps(document).encode())


def real(name: str) -> bytes:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data")
    return path.read_bytes()


# --- the package ------------------------------------------------------------------------------------------------------


def test_every_model_of_every_module_is_exported_and_nothing_else() -> None:
    names: list[str] = []
    for module in pkgutil.iter_modules(models.__path__):
        if not module.name.startswith("_") and module.name not in {"decoding", "reading"}:
            loaded = importlib.import_module(f"wme_async.models.{module.name}")
            names += loaded.__all__
            own = {n for n, v in vars(loaded).items() if inspect.isclass(v) and v.__module__ == loaded.__name__}
            assert {n for n in own if not n.startswith("_")} <= set(loaded.__all__)
    assert models.__all__ == sorted(names)
    assert len(set(names)) == len(names)


def every_model() -> list[type[_struct.Model]]:
    exported = (getattr(models, name) for name in models.__all__)
    return [thing for thing in exported if inspect.isclass(thing) and issubclass(thing, _struct.Model)]


@pytest.mark.parametrize("model", every_model())
def test_an_empty_object_decodes_to_the_same_as_no_arguments_and_encodes_to_what_the_server_always_writes(
    model: type[_struct.Model],
) -> None:
    empty = read({}, model)
    assert empty == model()
    assert not any(written(empty).values())  # nothing but false, zero and empty
    assert read(written(empty), model) == empty
    assert pickle.loads(pickle.dumps(empty)) == empty


@pytest.mark.parametrize("model", every_model())
def test_unknown_keys_pass_and_every_attribute_is_documented(model: type[_struct.Model]) -> None:
    assert read({"brand_new": {"deep": [1]}}, model) == model()
    documented = "\n".join(cls.__doc__ or "" for cls in model.__mro__)
    own = [name for name in model.__struct_fields__ if not name.startswith("_")]
    assert [name for name in own if not re.search(rf"^ +{name}: ", documented, re.MULTILINE)] == []


@pytest.mark.parametrize("model", every_model())
def test_no_two_records_share_something_that_can_be_changed(model: type[_struct.Model]) -> None:
    config = model.__struct_config__
    assert (config.frozen, config.gc, config.omit_defaults, config.forbid_unknown_fields) == (True, False, True, False)

    def mutable(value: Any) -> bool:
        if isinstance(value, _struct.Model):
            return any(mutable(getattr(value, name)) for name in value.__struct_fields__)
        return isinstance(value, list | dict | set)

    defaults = [field.default for field in msgspec.structs.fields(model)]
    assert not any(mutable(default) for default in defaults if default is not msgspec.NODEFAULT)


def test_models_cannot_be_changed_but_copied_with_changes() -> None:
    article = Article(name="A")
    with pytest.raises(AttributeError):
        article.name = "B"  # type: ignore[misc] # the point
    assert msgspec.structs.replace(article, name="B") == Article(name="B")
    assert article == Article(name="A")
    assert repr(article) == "Article(name='A')"
    assert hash(article) == hash(Article(name="A"))


# --- real records -----------------------------------------------------------------------------------------------------


def to_microseconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_microseconds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_microseconds(item) for item in value]
    if isinstance(value, str) and value.endswith("Z") and len(value) in range(28, 31):
        return written(read(value, datetime))
    return value


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("batches.json", list[Batch]),
        ("projects.json", list[Project]),
        ("languages.json", list[Language]),
        ("namespaces.json", list[Namespace]),
        ("codes.json", list[Code]),
        ("batch.json", Batch),
    ],
)
def test_real_metadata_comes_back_as_it_went_in(name: str, model: Any) -> None:
    raw = real(name)
    assert written(msgspec.json.decode(raw, type=model)) == to_microseconds(json.loads(raw))


def test_real_articles_come_back_as_they_went_in() -> None:
    lines = real("articles.ndjson").splitlines()
    assert len(lines) == 3
    for line in lines:
        assert written(msgspec.json.decode(line, type=Article)) == json.loads(line)


def test_every_key_of_real_records_has_a_field() -> None:
    def unknown(value: Any, model: Any) -> list[str]:
        if isinstance(value, list):
            return [key for item in value for key in unknown(item, model)]
        if not (isinstance(value, dict) and inspect.isclass(model) and issubclass(model, _struct.Model)):
            return []
        fields = {f.encode_name: f.type for f in msgspec.structs.fields(model)}
        missing = [f"{model.__name__}.{key}" for key in value if key not in fields]
        for key in value.keys() & fields.keys():
            for inner in [fields[key], *getattr(fields[key], "__args__", ())]:
                missing += unknown(value[key], inner)
        return missing

    assert unknown([json.loads(line) for line in real("articles.ndjson").splitlines()], Article) == []
    assert unknown(json.loads(real("batches.json")), Batch) == []
    assert unknown({"oops": 1, "version": {"typo": 1}}, Article) == ["Article.oops", "Version.typo"]


# --- absence ----------------------------------------------------------------------------------------------------------


def test_absent_means_false_zero_or_empty_and_chains_need_no_check() -> None:
    article = read({"name": "A"}, Article)
    assert article.version.editor.is_bot is False
    assert article.version.size.bytes == 0
    assert article.version.maintenance_tags.citation_needed_count == 0
    assert article.version.scores.revertrisk is None
    assert article.previous_version.identifier == 0
    assert (article.categories, article.protection, article.is_part_of.identifier) == ((), (), "")
    assert (article.article_body, article.image, article.visibility, article.main_entity) == (None,) * 4
    assert (article.event.type, article.event.partition, article.event.offset) == ("", None, None)
    assert article.date_modified is None


def test_empty_objects_say_the_same_as_absent_ones() -> None:
    empties: dict[str, dict[str, Any]] = {"scores": {}, "editor": {}, "maintenance_tags": {}, "size": {}}
    assert read({"version": empties, "previous_version": {}}, Article) == Article()


def test_what_was_not_there_is_not_written() -> None:
    assert written(read({"name": "A"}, Article)) == {"name": "A"}


def test_what_the_server_always_writes_is_written_back_when_zero() -> None:
    sent = {
        "namespace": {"identifier": 0},
        "visibility": {"text": False, "editor": False, "comment": False},
        "event": {"partition": 0, "offset": 0},
        "version": {
            "scores": {"referencerisk": {"reference_risk_score": 0}, "referenceneed": {"reference_need_score": 0}},
            "diff": {
                "informal_words": {
                    "increase": 0,
                    "decrease": 0,
                    "sum": 0,
                    "proportional_increase": 0,
                    "proportional_decrease": 0,
                }
            },
        },
    }
    assert written(read(sent, Article)) == sent


# --- faults of an earlier SDK that these must not have ----------------------------------------------------------------


def test_the_type_of_an_event_is_read_and_written_under_the_key_type() -> None:
    event = read({"type": "delete"}, Event)
    assert event.type == EventType.DELETE
    assert written(event) == {"type": "delete"}
    assert read({"type": "resurrect"}, Event).type == "resurrect"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-07-16T06:06:16Z", datetime(2024, 7, 16, 6, 6, 16, tzinfo=UTC)),
        ("2024-07-16T06:06:16.5Z", datetime(2024, 7, 16, 6, 6, 16, 500_000, tzinfo=UTC)),
        ("2024-07-16T06:06:16.77047+00:00", datetime(2024, 7, 16, 6, 6, 16, 770_470, tzinfo=UTC)),
        ("2024-07-16T06:06:16.892227533Z", datetime(2024, 7, 16, 6, 6, 16, 892_228, tzinfo=UTC)),
        ("2024-12-31T23:59:59.999999999Z", datetime(2025, 1, 1, tzinfo=UTC)),
        (ZERO, datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_of_any_precision_are_read_and_aware(text: str, expected: datetime) -> None:
    article = read({"date_modified": text, "event": {"date_published": text}}, Article)
    assert article.date_modified == article.event.date_published == expected
    assert article.date_modified.utcoffset() == timedelta(0)


def test_a_time_without_zone_is_refused() -> None:
    assert read({"date_modified": "2024-07-16T06:06:16Z"}, Article).date_modified
    with pytest.raises(msgspec.ValidationError):
        read({"date_modified": "2024-07-16T06:06:16"}, Article)


@given(st.integers(0, 10**9 - 1), st.integers(0, 9))
def test_rounding_moves_a_time_by_half_a_microsecond_at_most(nanoseconds: int, digits: int) -> None:
    fraction = f"{nanoseconds:09}"[:digits]
    text = f"2024-07-16T06:06:16.{fraction}Z" if digits else "2024-07-16T06:06:16Z"
    published = read({"date_published": text}, Event).date_published
    exact = Decimal(f"0.{fraction}" if digits else 0) * 10**9
    off = Decimal((published - datetime(2024, 7, 16, 6, 6, 16, tzinfo=UTC)) // timedelta(microseconds=1)) * 1000 - exact
    assert abs(off) <= 500


def test_the_year_one_of_anonymous_editors_survives() -> None:
    editor = read({"name": "192.0.2.1", "is_anonymous": True, "date_started": ZERO}, Editor)
    assert editor.date_started < datetime(2001, 1, 15, tzinfo=UTC)
    assert written(editor)["date_started"] == ZERO


@pytest.mark.parametrize("model", [Batch, Snapshot, Chunk, StructuredSnapshot])
def test_the_version_of_an_archive_is_a_checksum(model: type[Archive]) -> None:
    md5 = "528262227e37be50594b5a0ac0bcb752"
    assert read({"identifier": "frwiki_namespace_0", "version": md5}, model).version == md5


def test_scores_have_the_names_of_the_wire() -> None:
    sent = {
        name: {"prediction": True, "probability": {"false": 0.25, "true": 0.75}}
        for name in ("damaging", "goodfaith", "revertrisk")
    }
    scores = read(
        {**sent, "referencerisk": {"reference_risk_score": 0.5}, "referenceneed": {"reference_need_score": 1}}, Scores
    )
    assert scores.revertrisk.prediction is True
    assert (scores.revertrisk.probability.false, scores.revertrisk.probability.true) == (0.25, 0.75)
    assert scores.referencerisk.reference_risk_score == 0.5
    assert scores.referenceneed.reference_need_score == 1.0
    assert {name: written(scores)[name] for name in sent} == sent


def test_a_probability_that_is_zero_is_absent_on_the_wire() -> None:
    scores = read({"revertrisk": {"probability": {"false": 1}}}, Scores)
    assert (scores.revertrisk.prediction, scores.revertrisk.probability.true) == (False, 0.0)


def test_every_field_of_a_version_comes_back() -> None:
    delta = {
        "increase": 3,
        "decrease": -1,
        "sum": 2,
        "proportional_increase": 0.5,
        "proportional_decrease": -0.25,
    }
    words = ("dictionary_words", "non_dictionary_words", "non_safe_words", "informal_words", "uppercase_words")
    sent = {
        "identifier": 2**53 + 1,
        "comment": "c",
        "tags": ["mobile edit"],
        "is_minor_edit": True,
        "is_flagged_stable": True,
        "has_tag_needs_citation": True,
        "number_of_characters": 5,
        "size": {"value": 34723, "unit_text": "B"},
        "is_breaking_news": True,
        "noindex": True,
        "maintenance_tags": {
            "citation_needed_count": 1,
            "pov_count": 2,
            "clarification_needed_count": 3,
            "update_count": 4,
        },
        "diff": {
            "longest_new_repeated_character": 4,
            "size": {"value": 1, "unit_text": "B"},
            **dict.fromkeys(words, delta),
        },
        "editor": {
            "identifier": 1,
            "name": "E",
            "edit_count": 120_723,
            "groups": ["*", "user"],
            "is_bot": True,
            "is_anonymous": True,
            "is_admin": True,
            "is_patroller": True,
            "has_advanced_rights": True,
            "date_started": "2016-10-30T20:25:35Z",
        },
    }
    version = read(sent, Version)
    assert version.editor.edit_count == 120_723
    assert version.maintenance_tags.update_count == 4
    assert version.diff.informal_words.proportional_decrease == -0.25
    assert written(version) == sent


# --- one attribute, two spellings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("key", ["editor", "user"])
def test_visibility_is_read_under_either_key_and_written_under_the_servers(key: str, value: bool) -> None:
    visibility = read({"text": True, key: value, "comment": False}, Visibility)
    assert visibility == Visibility(text=True, editor=value)
    assert visibility.user is visibility.editor is value
    assert written(visibility) == {"text": True, "editor": value, "comment": False}
    assert "_user" not in repr(visibility)


@pytest.mark.parametrize("key", ["contentUrl", "content_url"])
def test_the_address_of_a_thumbnail_is_read_under_either_key(key: str) -> None:
    image = read({"content_url": "https:https://x", "thumbnail": {key: "t", "width": 60, "height": 40}}, Image)
    assert image.thumbnail.content_url == "t"
    assert written(image)["thumbnail"] == {"contentUrl": "t", "width": 60, "height": 40}


def test_structured_contents_are_read_under_their_older_names_too() -> None:
    old = read(
        {
            "article_sections": [{"type": "section", "name": "Abstract"}],
            "infobox": [{"type": "infobox", "name": "Infobox city"}],
            "mainEntity": {"identifier": "Q1"},
            "inLanguage": {"identifier": "en"},
        },
        StructuredContent,
    )
    new = {
        "sections": [{"type": "section", "name": "Abstract"}],
        "infoboxes": [{"type": "infobox", "name": "Infobox city"}],
        "main_entity": {"identifier": "Q1"},
        "in_language": {"identifier": "en"},
    }
    assert old == read(new, StructuredContent)
    assert written(old) == new
    both = read({"sections": [{"name": "new"}], "article_sections": [{"name": "old"}]}, StructuredContent)
    assert [part.name for part in both.sections] == ["new"]
    one = _tolerant.decode_record(msgspec.json.Decoder(StructuredContent), b'{"infobox": {"name": "one"}}')
    assert one.infoboxes == (Part(name="one"),)


def test_other_spellings_are_marked_by_an_underscore() -> None:
    marked = {
        f"{model.__name__}.{f.encode_name}"
        for model in every_model()
        for f in msgspec.structs.fields(model)
        if f.name.startswith("_")
    }
    assert marked == {
        "StructuredContent.article_sections",
        "StructuredContent.inLanguage",
        "StructuredContent.infobox",
        "StructuredContent.mainEntity",
        "Thumbnail.content_url",
        "Visibility.user",
    }


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (b'{"value":5551.221e0,"unit_text":"MB"}', 5_551_221_000),
        (b'{"value":34723,"unit_text":"B"}', 34_723),
        (b'{"value":0.038,"unit_text":"MB"}', 38_000),
        (b'{"unit_text":"MB"}', 0),
        (b"{}", 0),
        (b'{"value":2,"unit_text":"kb"}', 2_000),
    ],
)
def test_sizes_in_bytes(text: bytes, size: int) -> None:
    assert msgspec.json.decode(text, type=Size).bytes == size


@pytest.mark.parametrize("unit", ["", "bananas"])
def test_a_size_without_a_unit_says_nothing_of_bytes(unit: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        _ = Size(value=1, unit_text=unit).bytes


def test_the_age_of_an_archive() -> None:
    now = datetime(2025, 7, 16, 12, tzinfo=UTC)
    snapshot = Snapshot(date_modified=datetime(2025, 7, 1, 11, tzinfo=UTC))
    assert snapshot.age(now) == timedelta(days=15, hours=1)
    assert snapshot.age(now.astimezone(timezone(timedelta(hours=5)))) == timedelta(days=15, hours=1)
    assert Snapshot().age(now) is None
    with pytest.raises(ValueError, match="aware"):
        snapshot.age(datetime(2025, 7, 16))  # noqa: DTZ001 # the point


def test_a_snapshot_names_its_chunks_in_the_order_sent() -> None:
    ids = ["enwiki_namespace_0_chunk_10", "enwiki_namespace_0_chunk_2"]
    assert read({"chunks": ids}, Snapshot).chunks == tuple(ids)


def test_a_file_page_has_its_uploads() -> None:
    page = read(
        {
            "name": "File:A.jpg",
            "namespace": {"identifier": 6},
            "files": [
                {
                    "sha1": "ab",
                    "size": {"value": 10, "unit_text": "B"},
                    "width": 2,
                    "mime": "image/jpeg",
                    "license": [{"identifier": "CC BY-SA 3.0 pl"}],
                }
            ],
        },
        FilePage,
    )
    assert page.files[0].size.bytes == 10
    assert page.files[0].license[0].identifier == "CC BY-SA 3.0 pl"


def test_the_account() -> None:
    sent = {
        "username": "u",
        "groups": ["group_1"],
        "ondemand_requests_count": 12,
        "ondemand_limit": 5000,
        "snapshot_limit": 15,
        "chunk_limit": 15,
        "apis": [{"path": "/v2/codes", "method": "GET"}],
    }
    user = read(sent, User)
    assert (user.ondemand_requests_count, user.chunk_requests_count) == (12, 0)
    assert user.apis[0].path == "/v2/codes"
    assert written(user) == sent


# --- structured contents ----------------------------------------------------------------------------------------------

NESTED = {"rows": [[{"value": "inner"}]]}


@pytest.mark.parametrize("nested", [NESTED, json.dumps(NESTED)])
def test_a_nested_table_reads_the_same_as_object_and_as_text(nested: object) -> None:
    table = read({"rows": [[{"value": "outer", "nested_table": nested}, {"value": "plain"}]]}, Table)
    outer, plain = table.rows[0]
    assert outer.nested.rows[0][0].value == "inner"
    assert plain.nested is None
    assert written(table)["rows"][0][0]["nested_table"] == nested


@pytest.mark.parametrize("nothing", ["", "null"])
def test_an_empty_text_is_no_nested_table(nothing: str) -> None:
    assert read({"nested_table": nothing}, models.Cell).nested is None


@pytest.mark.parametrize("text", ["{", "[]", '{"rows":7}'])
def test_a_nested_table_that_is_none_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        _ = read({"nested_table": text}, models.Cell).nested


def test_every_field_of_a_structured_content_comes_back() -> None:
    image = {
        "content_url": "u",
        "width": 1,
        "height": 2,
        "alternative_text": "a",
        "caption": "c",
        "identifier": "h",
        "name": "./File:A.svg",
        "encoding_format": "image/svg+xml",
        "media_type": "drawing",
    }
    link = {"url": "u", "text": "t", "images": [image]}
    part = {
        "type": "table",
        "name": "n",
        "value": "v",
        "values": ["a", "b"],
        "has_parts": [{"type": "hologram", "has_parts": [{"type": "list_item"}]}],
        "images": [image],
        "links": [link],
        "citations": [{"identifier": "cite_note-1", "group": "g", "text": "[1]"}],
        "table_references": [{"identifier": "t1", "confidence_score": 0.9}],
    }
    cells = [[{"value": "x"}]]
    sent = {
        "name": "N",
        "identifier": 1,
        "abstract": "a",
        "description": "d",
        "version": {"identifier": 2},
        "event": {"identifier": "e", "type": "update"},
        "url": "u",
        "date_created": "2001-01-15T00:00:00Z",
        "date_modified": "2025-01-01T00:00:00Z",
        "main_entity": {"identifier": "Q1", "url": "u", "aspects": ["S"]},
        "is_part_of": {"identifier": "enwiki"},
        "additional_entities": [{"identifier": "P31"}],
        "in_language": {"identifier": "en"},
        "image": image,
        "visibility": {"text": True, "editor": True, "comment": False},
        "license": [{"identifier": "CC-BY-SA-4.0"}],
        "infoboxes": [part],
        "sections": [part],
        "references": [
            {
                "identifier": "cite_note-1",
                "group": "g",
                "type": "web",
                "metadata": {"title": "T"},
                "text": {"value": "v", "links": [link]},
                "source": {"value": "v", "links": [link]},
                "parent_reference": "cite_note-0",
            }
        ],
        "tables": [{"identifier": "t1", "headers": cells, "rows": cells, "footers": cells, "confidence_score": 0.9}],
        "attribution": {
            "editors_count": {"anonymous_count": "20", "registered_count": ">100"},
            "parsed_references_count": 3,
            "last_revised": "07/25",
        },
    }
    content = read(sent, StructuredContent)
    assert written(content) == sent
    assert content.attribution.editors_count.registered_count == ">100"
    assert content.references[0].parent_reference == "cite_note-0"
    assert not content.is_raw_article


def test_an_unstructured_article_among_structured_contents_is_recognised() -> None:
    raw = read({"name": "N", "article_body": {"html": "<p>"}, "categories": [{"name": "C"}]}, StructuredContent)
    assert raw.is_raw_article
    assert raw.article_body.html == "<p>"


# --- records that get a second chance ---------------------------------------------------------------------------------


def test_explicit_nulls_do_not_cost_an_article() -> None:
    sent = {
        "name": "A",
        "abstract": None,
        "categories": None,
        "version": {"tags": None, "editor": None, "size": {"value": None}, "is_minor_edit": None},
        "event": {"partition": None, "offset": 7},
        "article_body": None,
        "redirects": [None, {"name": "B", "url": None}],
    }
    with pytest.raises(msgspec.ValidationError):
        read(sent, Article)
    assert patiently(sent, Article) == read(
        {"name": "A", "event": {"offset": 7}, "redirects": [{"name": "B"}]}, Article
    )


def test_null_elements_among_parts_are_left_out_at_any_depth() -> None:
    part = {"type": "section", "has_parts": [None, {"name": "x", "links": None}], "values": None}
    content = patiently({"sections": [None, part, None], "infoboxes": [None]}, StructuredContent)
    assert content.sections == (Part(type="section", has_parts=(Part(name="x"),)),)
    assert content.infoboxes == ()
    assert patiently([{"sections": [None]}, {"name": "b"}], list[StructuredContent])[1].name == "b"


def test_a_single_object_is_a_list_of_one_where_the_published_schema_says_so() -> None:
    content = patiently(
        {"license": {"identifier": "L"}, "references": {"identifier": "r"}, "tables": {"rows": None}}, StructuredContent
    )
    assert content.license[0].identifier == "L"
    assert content.references[0].identifier == "r"
    assert content.tables == (Table(),)
    assert patiently({"protection": {"expiry": "infinity"}}, Article).protection[0].expiry == "infinity"


@pytest.mark.parametrize(
    "sent",
    [
        {"name": 5},
        {"identifier": "5"},
        {"identifier": 1.5},
        {"categories": {"name": "C"}},
        {"categories": "C"},
        {"version": []},
        {"date_modified": "yesterday"},
        {"categories": None, "identifier": "5"},
        {"license": {"identifier": 5}},
        None,
        [],
    ],
)
def test_nothing_else_is_mended(sent: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        patiently(sent, Article)


@pytest.mark.parametrize("data", [b"", b"{", b'{"name":"a', b"{'a':1}", b'{"name":"a"}x'])
def test_what_is_not_json_is_said_to_be_so(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        _tolerant.decode_record(msgspec.json.Decoder(Article), data)
    assert not isinstance(caught.value, msgspec.ValidationError)


def test_what_cannot_be_mended_raises_what_was_wrong_with_it() -> None:
    decoder = msgspec.json.Decoder(Article)
    for data, plain in (
        (b'{"name":5,"skipped":"\xff"}', b'{"name":5}'),
        (b'{"name":5,"skipped":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"name":5}'),
        (b'{"name":null,"identifier":"x"}', b'{"identifier":"x"}'),
    ):
        with pytest.raises(msgspec.ValidationError) as expected:
            decoder.decode(plain)
        with pytest.raises(msgspec.ValidationError) as caught:
            _tolerant.decode_record(decoder, data)
        assert str(caught.value) == str(expected.value)


class Cat(msgspec.Struct, tag="cat"):
    lives: int | None
    names: list[str] = []


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str | None] = []
    names: tuple[str, ...] = ()


class Own(msgspec.Struct):
    required: int | None
    kept: int | None = 5
    grade: Literal["a", None] = "a"  # noqa: PYI061 # both ways to write it
    mark: Literal["a"] | None = "a"
    pair: tuple[int | None, int] = (0, 0)
    pets: list[Cat | Dog] = []
    tags: Annotated[set[str], msgspec.Meta(description="described")] = set()
    notes: list[Annotated[str, msgspec.Meta(description="described")]] = []
    words: dict[str, str] = {}
    anything: Any = "default"
    raw: msgspec.Raw = msgspec.Raw(b"")
    precise: Decimal = Decimal(0)
    title: str = msgspec.field(name="Title", default="")


def test_a_null_cell_of_a_table_keeps_its_place() -> None:
    rows = [[{"value": "a"}, None, {"value": "c"}], None, [None], []]
    table = patiently({"tables": [{"rows": rows, "headers": [[None, {"value": "h"}]]}]}, StructuredContent).tables[0]
    assert [[cell.value for cell in row] for row in table.rows] == [["a", "", "c"], [""], []]
    assert [[cell.value for cell in row] for row in table.headers] == [["", "h"]]


def test_in_a_users_own_type_only_nulls_without_a_place_are_left_out() -> None:
    own = patiently(
        {
            "required": None,
            "kept": None,
            "grade": None,
            "mark": None,
            "pair": [None, 1],
            "pets": [{"type": "cat", "lives": None, "names": None}, {"type": "dog", "tricks": [None], "names": None}],
            "tags": ["a", None],
            "notes": [None, "n"],
            "words": {"en": None, "de": "Wort"},
            "anything": None,
            "raw": {"a": None},
            "Title": None,
        },
        Own,
    )
    assert (own.required, own.kept, own.grade, own.mark, own.pair, own.anything) == (None,) * 4 + ((None, 1), None)
    assert own.pets == [Cat(lives=None), Dog(tricks=[None])]
    assert (own.tags, own.notes, own.words, own.title) == ({"a"}, ["n"], {"de": "Wort"}, "")
    assert json.loads(bytes(own.raw)) == {"a": None}


def test_numbers_are_not_touched_by_mending() -> None:
    digits = "0.1000000000000000000000000000000000001"
    data = f'{{"required":1,"precise":{digits},"title":null,"words":null}}'.encode()
    assert _tolerant.decode_record(msgspec.json.Decoder(Own), data).precise == Decimal(digits)


def test_a_required_field_that_is_null_is_missing() -> None:
    class Needs(msgspec.Struct):
        name: str

    with pytest.raises(msgspec.ValidationError) as expected:
        msgspec.json.decode(b"{}", type=Needs)
    with pytest.raises(msgspec.ValidationError) as caught:
        patiently({"name": None}, Needs)
    assert str(caught.value) == str(expected.value)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
keys = st.sampled_from(["name", "identifier", "version", "tags", "editor", "categories", "license", "event", "new"])
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value if item is not None]
    return value


def outcome(decode: Any, data: bytes) -> Any:
    try:
        return decode(data)
    except msgspec.ValidationError:
        return "refused"


@given(st.dictionaries(keys, documents, max_size=6))
def test_what_decodes_at_once_is_not_changed_by_patience_and_what_does_not_loses_nulls_alone(sent: Any) -> None:
    decoder = msgspec.json.Decoder(Article)
    data = json.dumps(sent).encode()
    strict = outcome(decoder.decode, data)
    patient = outcome(lambda record: _tolerant.decode_record(decoder, record), data)
    if strict != "refused":
        assert patient == strict
    elif not any(isinstance(sent.get(key), dict) for key in ("license", "protection")):
        assert patient == outcome(decoder.decode, json.dumps(without_nulls(sent)).encode())


def test_mend_can_be_the_second_step_of_another_decoder() -> None:
    decoder = msgspec.json.Decoder(Article)
    with pytest.raises(msgspec.ValidationError) as caught:
        decoder.decode(b'{"templates":null,"name":"A"}')
    assert _tolerant.mend(decoder, memoryview(b'{"templates":null,"name":"A"}'), caught.value) == Article(name="A")


# --- Wikidata ---------------------------------------------------------------------------------------------------------

PROPERTY = {"identifier": "P580", "data_type": "time", "labels": {"en": "start time"}}
TIME_DATA = {
    "after": "0",
    "before": "1",
    "Calendarmodel": "http://www.wikidata.org/entity/Q1985786",
    "precision": "9",
    "Time": "+1861-00-00T00:00:00Z",
    "timezone": "0",
}
QUALIFIER = {"property": PROPERTY, "value": {"type": "time", "content_data": TIME_DATA, "labels": {"en": "1861"}}}
REFERENCE = {"identifier": "63309730", "parts": [QUALIFIER]}
STATEMENT = {
    "identifier": "Q42$UUID",
    "rank": "Normal",
    "property": {"identifier": "P31", "data_type": "wikibase-item"},
    "value": {"type": "wikibase-entityid", "content": "Q5", "labels": {"en": "human"}},
    "qualifiers": [QUALIFIER],
    "references": [REFERENCE],
}
SITELINK = {"title": "Douglas Adams", "badges": ["Q17437796"], "url": "https://de.wikipedia.org/wiki/Douglas_Adams"}


def test_an_entity_in_its_likely_form_comes_back_as_it_went_in() -> None:
    sent = {
        "name": "Q42",
        "identifier": 138,
        "date_created": "2012-10-29T00:00:00Z",
        "date_modified": "2025-01-01T00:00:00Z",
        "date_previously_modified": "2024-01-01T00:00:00Z",
        "protection": [{"type": "edit", "level": "autoconfirmed", "expiry": "infinity"}],
        "redirects": [{"name": "Q43"}],
        "license": [{"identifier": "CC0-1.0"}],
        "url": "https://www.wikidata.org/wiki/Q42",
        "namespace": {"identifier": 0},
        "is_part_of": {"identifier": "wikidatawiki"},
        "version": {"identifier": 7},
        "event": {"type": "update", "partition": 3, "offset": 0},
        "entity": {
            "identifier": "Q42",
            "type": "item",
            "labels": {"en": "Douglas Adams"},
            "descriptions": {"en": "English author"},
            "aliases": {"eo": ["Douglas ADAMS"]},
            "statements": {"P31": [STATEMENT]},
            "sitelinks": {"dewiki": SITELINK},
        },
    }
    record = read(sent, WikidataArticle)
    assert written(record) == sent
    assert record.entity.statements["P31"][0].value.entity_id == "Q5"


@pytest.mark.parametrize(
    "sent", [{"P31": [STATEMENT]}, {"P31": STATEMENT}, [STATEMENT]], ids=["lists by property", "one each", "flat list"]
)
def test_statements_are_lists_by_property_whatever_they_came_as(sent: object) -> None:
    entity = read({"statements": sent}, WikidataEntity)
    assert entity == read({"statements": {"P31": [STATEMENT]}}, WikidataEntity)
    assert written(entity)["statements"] == {"P31": [STATEMENT]}


def test_a_flat_list_of_statements_keeps_its_order_within_a_property() -> None:
    flat = [{"identifier": str(n), "property": {"identifier": f"P{n % 2}"}} for n in range(5)]
    grouped = read({"statements": flat}, WikidataEntity).statements
    assert {key: [s.identifier for s in group] for key, group in grouped.items()} == {
        "P0": ["0", "2", "4"],
        "P1": ["1", "3"],
    }


@pytest.mark.parametrize("sent", [[QUALIFIER], QUALIFIER, {"P580": [QUALIFIER]}])
def test_qualifiers_are_a_list_whatever_they_came_as(sent: object) -> None:
    statement = read({"qualifiers": sent}, Statement)
    assert written(statement)["qualifiers"] == [QUALIFIER]


@pytest.mark.parametrize("sent", [[REFERENCE], REFERENCE])
def test_references_are_a_list_whatever_they_came_as(sent: object) -> None:
    assert written(read({"references": sent}, Statement))["references"] == [REFERENCE]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"dewiki": SITELINK}, {"dewiki": SITELINK}),
        (SITELINK, {SITELINK["url"]: SITELINK}),
        ({"site": "dewiki", **SITELINK}, {"dewiki": {"site": "dewiki", **SITELINK}}),
        ([{"site": "dewiki", **SITELINK}, SITELINK], None),
        ({"dewiki": "Douglas Adams"}, {"dewiki": {"title": "Douglas Adams"}}),
        ({}, {}),
    ],
)
def test_sitelinks_are_by_site_whatever_they_came_as(sent: object, expected: Any) -> None:
    links = read({"sitelinks": sent}, WikidataEntity).sitelinks
    if expected is None:
        expected = {"dewiki": {"site": "dewiki", **SITELINK}, SITELINK["url"]: SITELINK}
    assert written(links) == expected


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [one]])
def test_protection_licence_and_redirects_are_lists_whatever_they_came_as(wrap: Any) -> None:
    record = read(
        {
            "protection": wrap({"type": "edit"}),
            "license": wrap({"identifier": "CC0-1.0"}),
            "redirects": wrap({"name": "Q1"}),
        },
        WikidataArticle,
    )
    assert (record.protection[0].type, record.license[0].identifier) == ("edit", "CC0-1.0")
    assert record.redirects[0].name == "Q1"
    assert [r.name for r in read({"redirects": ["Q1", {"name": "Q2"}]}, WikidataArticle).redirects] == ["Q1", "Q2"]


@pytest.mark.parametrize("content", ["text", 7])
def test_a_value_may_be_text_or_a_whole_number(content: object) -> None:
    assert read({"content": content}, StatementValue).content == content


def test_pieces_of_a_value_are_found_whatever_the_case_of_their_keys() -> None:
    value = read(
        {"content_data": {**TIME_DATA, "Amount": "+1", "numeric-id": 5, "ok": True, "none": None}}, StatementValue
    )
    assert value.data("time") == value.data("TIME") == "+1861-00-00T00:00:00Z"
    assert (value.data("amount"), value.data("numeric-id"), value.data("ok")) == ("+1", "5", "true")
    assert (value.data("none"), value.data("missing")) == ("", "")


@pytest.mark.parametrize(
    ("sent", "entity"),
    [
        ({"type": "wikibase-entityid", "content_data": {"id": "Q5"}}, "Q5"),
        ({"type": "wikibase-item", "content": "Q5"}, "Q5"),
        ({"type": "string", "content": "Q5"}, ""),
        ({"type": "wikibase-entityid"}, ""),
    ],
)
def test_the_entity_that_a_value_names(sent: object, entity: str) -> None:
    assert read(sent, StatementValue).entity_id == entity


def test_a_time_with_month_zero_is_read_without_a_datetime() -> None:
    time = read({"type": "time", "content_data": TIME_DATA}, StatementValue).time
    assert time == WikibaseTime(
        text="+1861-00-00T00:00:00Z",
        year=1861,
        precision=TimePrecision.YEAR,
        calendar="http://www.wikidata.org/entity/Q1985786",
        before=1,
    )
    assert (time.month, time.day, time.is_julian) == (None, None, True)
    assert read({"content": "x"}, StatementValue).time is None


@pytest.mark.parametrize(
    ("text", "year", "month", "day"),
    [
        ("+1952-03-11T00:00:00Z", 1952, 3, 11),
        ("1952-03-00T00:00:00Z", 1952, 3, None),
        ("-0044-03-15T00:00:00Z", -44, 3, 15),
        ("-13798000000-00-00T00:00:00Z", -13_798_000_000, None, None),
        ("+2024-02-30T00:00:00Z", 2024, 2, 30),
    ],
)
def test_times_that_no_datetime_can_hold(text: str, year: int, month: int | None, day: int | None) -> None:
    time = WikibaseTime.parse(text, precision=11)
    assert (time.text, time.year, time.month, time.day, time.precision) == (text, year, month, day, TimePrecision.DAY)
    assert not time.is_julian


@pytest.mark.parametrize(
    ("precision", "month", "day"),
    [
        (TimePrecision.CENTURY, None, None),
        (TimePrecision.YEAR, None, None),
        (TimePrecision.MONTH, 1, None),
        (TimePrecision.DAY, 1, 1),
        (None, 1, 1),
    ],
)
def test_what_is_finer_than_the_precision_of_a_time_is_no_month_and_no_day(
    precision: int | None, month: int | None, day: int | None
) -> None:
    time = WikibaseTime.parse("+1861-01-01T00:00:00Z", precision=precision)
    assert (time.year, time.month, time.day) == (1861, month, day)


@pytest.mark.parametrize("text", ["", "1952", "1952-03-11", "+1952-03-11T00:00:00+01:00", "+٢٠٢٤-01-01T00:00:00Z"])
def test_a_text_that_is_no_time_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a Wikibase time"):
        WikibaseTime.parse(text)


@pytest.mark.parametrize("sent", [{"en": "a", "de": "b"}, [{"en": "a", "de": "b"}], [{"en": "a"}, {"de": "b"}]])
def test_labels_are_one_dict_whatever_they_came_as(sent: object) -> None:
    assert merge_labels(read(sent, LabelsAnswer)) == {"en": "a", "de": "b"}


def test_nulls_in_an_entity_are_left_out() -> None:
    record = patiently(
        {"entity": {"labels": {"en": None, "de": "x"}, "statements": {"P1": [None], "P2": None}, "sitelinks": None}},
        WikidataArticle,
    )
    assert record.entity == WikidataEntity(labels={"de": "x"}, statements={"P1": ()})
