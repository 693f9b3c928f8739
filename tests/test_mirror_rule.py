"""The rule of a mirror: its laws, by generated records, and each case that the service's behaviour makes, by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mirror_model import Consumer, ModelStore

from wme_async import DecodeError
from wme_async.mirror.records import RecordReader, microseconds, time_of, title_of, visible_record
from wme_async.mirror.rule import (
    HIDDEN_COMMENT,
    HIDDEN_EDITOR,
    HIDDEN_TEXT,
    MARGIN,
    Mask,
    Page,
    Picture,
    may_sweep,
    removal_limit,
)

SECOND = 1_000_000


def update(title, page_id, revision, created, *, published=None, body=True, **options):
    """Return an update; times in seconds."""
    return Page(
        project="enwiki",
        title=title,
        page_id=page_id,
        revision=revision,
        created=int(created * SECOND),
        published=int((created + 5 if published is None else published) * SECOND),
        digest=f"{title} {page_id} {revision}".encode(),
        body=body,
        record=b"{}",
        **options,
    )


def delete(title, page_id, revision, created, *, published=None):
    """Return a delete; times in seconds."""
    page = update(title, page_id, revision, created, published=created + 0.2 if published is None else published)
    page.gone, page.record = True, b""
    return page


def mask(page_id, revision, created, hidden=HIDDEN_TEXT):
    """Return a visibility change; times in seconds."""
    return Mask(project="enwiki", page_id=page_id, revision=revision, created=int(created * SECOND), hidden=hidden)


def titles(store):
    """Return the live pages: title to page id and revision."""
    return {title: (key[1], revision) for key, (title, revision, _, _) in store.live().items()}


small = st.integers(0, 4)
pages = st.builds(
    Page,
    project=st.just("enwiki"),
    title=st.sampled_from("ABC"),
    page_id=st.integers(1, 3),
    revision=small,
    created=small,
    published=small,
    gone=st.booleans(),
    digest=st.sampled_from((b"1", b"2")),
    body=st.booleans(),
)
masks = st.builds(
    Mask, project=st.just("enwiki"), page_id=st.integers(1, 3), revision=small, created=small, hidden=st.integers(0, 7)
)
records = st.lists(st.one_of(pages, pages, pages, masks), max_size=12)


def copies(facts):
    """Return copies of records, since a merge sets their flags."""
    return [type(fact)(**{name: getattr(fact, name) for name in fact.__struct_fields__}) for fact in facts]


def maxima(picture):
    """Return what a picture holds, comparably."""
    return (
        {key: page.order for key, page in picture.pages.items()},
        {key: place.order for key, place in picture.places.items()},
        {key: mask.order for key, mask in picture.masks.items()},
    )


def joined(*pictures):
    result = Picture()
    for picture in pictures:
        result.join(picture)
    return maxima(result)


@given(records, records)
def test_joining_pictures_is_commutative(one, two):
    assert joined(Picture(one), Picture(two)) == joined(Picture(two), Picture(one)) == maxima(Picture([*one, *two]))


@given(records, records, records)
def test_joining_pictures_is_associative(one, two, three):
    left = Picture(one)
    left.join(Picture(two))
    right = Picture(two)
    right.join(Picture(three))
    assert joined(left, Picture(three)) == joined(Picture(one), right)


@given(records)
def test_joining_a_picture_with_itself_changes_nothing(facts):
    assert joined(Picture(facts), Picture(facts)) == maxima(Picture(facts))
    assert bool(Picture(facts)) == bool(facts)


@given(records, st.randoms(use_true_random=False))
def test_any_order_and_any_batches_give_the_same_live_pages_and_an_index_that_equals_them(facts, chance):
    whole = ModelStore()
    whole.apply(copies(facts))
    whole.settle(10)
    pieces, consumer = ModelStore(), Consumer()
    again = [*copies(facts), *copies(chance.sample(facts, len(facts) // 2))]
    chance.shuffle(again)
    while again:
        size = chance.randint(1, 4)
        pieces.apply(again[:size])
        del again[:size]
        assert pieces.live() == pieces.derived()
        if chance.random() < 0.3:
            consumer.read(pieces)
        if chance.random() < 0.2:
            pieces.settle(chance.randint(0, 4))
    pieces.settle(10)
    assert pieces.live() == whole.live() == whole.derived()
    assert consumer.read(pieces).index == pieces.live()
    assert Consumer().read(pieces).index == pieces.live()


@given(records, st.integers(1, 3), st.sampled_from("ABC"), st.randoms(use_true_random=False))
def test_sweeping_reviving_and_forgetting_reach_the_feed(facts, forgotten, title, chance):
    store, consumer = ModelStore(), Consumer()
    facts = copies(facts)
    store.apply(facts[: len(facts) // 2])
    consumer.read(store)
    page = store.rows.pages.get(("enwiki", title))
    if page is not None and page.live:
        page.swept = 3
        store.touch([page.page_key])
        assert not page.live
        assert consumer.read(store).index == store.live()
    store.forgotten.add(("enwiki", forgotten))
    store.touch([("enwiki", forgotten)])
    store.apply(facts[len(facts) // 2 :])
    page = store.rows.pages.get(("enwiki", title))
    if page is not None and chance.random() < 0.5:
        page.swept = None
        store.touch([page.page_key])
    store.settle(10)
    assert store.live() == store.derived()
    assert consumer.read(store).index == store.live()
    assert all(key[1] != forgotten for key in store.live())


# The cases that the behaviour of the service makes.


def test_a_delete_that_overtakes_the_edit_before_it_stays():
    store = ModelStore()
    store.apply([update("Earth", 1, 10, 0)])
    store.apply([delete("Earth", 1, 11, 6, published=6.2)])
    store.apply([update("Earth", 1, 11, 5, published=20)])
    assert titles(store) == {}


def test_a_restored_page_lives_with_the_same_or_a_lower_revision():
    for revision in (11, 10):
        store = ModelStore()
        store.apply([update("Earth", 1, 11, 5), delete("Earth", 1, 11, 6), update("Earth", 1, revision, 7)])
        assert titles(store) == {"Earth": (1, revision)}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_moved_page_lives_at_its_new_title_alone(reverse):
    store = ModelStore()
    store.apply([update("Earth", 1, 10, 0)])
    halves = [delete("Earth", 1, 11, 5.000002), update("Terra", 1, 11, 5)]
    for half in reversed(halves) if reverse else halves:
        store.apply([half])
    assert titles(store) == {"Terra": (1, 11)}


def test_a_moved_page_whose_delete_was_lost_is_gone_from_its_old_title():
    store = ModelStore()
    store.apply([update("Earth", 1, 10, 0)])
    store.apply([update("Terra", 1, 11, 5)])
    assert titles(store) == {"Terra": (1, 11)}


def test_a_move_to_another_namespace_sends_its_delete_alone():
    store, consumer = ModelStore(), Consumer()
    store.apply([update("Earth", 1, 10, 0)])
    consumer.read(store)
    store.apply([delete("Earth", 1, 11, 5)])
    assert titles(store) == {}
    assert consumer.read(store).kinds == ["upsert"], "it may still arrive elsewhere"
    store.settle(5 * SECOND)
    assert consumer.read(store).kinds == ["upsert", "delete"]


def test_a_move_is_one_upsert_with_the_old_title_in_either_order():
    for reverse in (False, True):
        store, consumer = ModelStore(), Consumer()
        store.apply([update("Earth", 1, 10, 0)])
        consumer.read(store)
        halves = [delete("Earth", 1, 11, 5.000002), update("Terra", 1, 11, 5)]
        for half in reversed(halves) if reverse else halves:
            store.apply([half])
            consumer.read(store)
        store.settle(60 * SECOND)
        assert consumer.read(store).kinds == ["upsert", "upsert"]
        assert consumer.old_titles == [None, "Earth"]
        store.apply([update("Terra", 1, 12, 70)])
        assert consumer.read(store).old_titles == [None, "Earth", None]


def test_a_true_delete_is_in_the_feed_at_once():
    store, consumer = ModelStore(), Consumer()
    store.apply([update("Earth", 1, 10, 0)])
    consumer.read(store)
    store.apply([delete("Earth", 1, 10, 5)])
    assert consumer.read(store).kinds == ["upsert", "delete"]


def test_a_held_delete_is_released_by_the_edit_that_it_overtook():
    store, consumer = ModelStore(), Consumer()
    store.apply([update("Earth", 1, 10, 0)])
    store.apply([delete("Earth", 1, 11, 6)])
    assert consumer.read(store).kinds == []
    store.apply([update("Earth", 1, 11, 5, published=9)])
    assert consumer.read(store).kinds == ["delete"]


def test_a_page_that_is_replaced_at_its_title_gets_its_delete():
    store, consumer = ModelStore(), Consumer()
    store.apply([update("Earth", 1, 10, 0)])
    consumer.read(store)
    store.apply([update("Earth", 2, 20, 10)])
    assert consumer.read(store).kinds == ["upsert", "upsert"], "the old page may have moved away before"
    store.settle(10 * SECOND)
    assert consumer.read(store).kinds == ["upsert", "upsert", "delete"]
    assert consumer.index == store.live()


def test_a_page_moved_away_and_replaced_is_one_upsert_with_the_old_title():
    store, consumer = ModelStore(), Consumer()
    store.apply([update("Earth", 1, 10, 0)])
    consumer.read(store)
    store.apply([update("Earth", 2, 20, 10)])
    store.apply([update("Terra", 1, 11, 9)])
    store.settle(60 * SECOND)
    consumer.read(store)
    assert sorted(consumer.index.values()) == [("Earth", 20, b"Earth 2 20", 0), ("Terra", 11, b"Terra 1 11", 0)]
    assert "delete" not in consumer.kinds
    assert consumer.old_titles == [None, None, "Earth"]


def test_an_older_record_of_a_snapshot_does_not_revive_a_deleted_page():
    store = ModelStore()
    store.apply([delete("Earth", 1, 11, 6)])
    store.apply([update("Earth", 1, 11, 5, load=1)])
    assert titles(store) == {}


def test_a_record_of_a_snapshot_that_is_already_there_only_marks_the_row():
    store = ModelStore()
    store.apply([update("Earth", 1, 11, 5)])
    difference = store.apply([update("Earth", 1, 11, 5, load=1)])
    assert (difference.pages, difference.changes, [page.load for page in difference.flags]) == ([], 0, [1])
    assert difference.missed == 0
    assert store.apply([update("Earth", 1, 10, 4, load=1)]).flags == []
    store.apply([update("Earth", 1, 12, 9)])
    assert store.rows.pages["enwiki", "Earth"].load == 1, "a newer event does not take the mark away"


def test_changes_that_only_a_snapshot_had_are_counted_as_missed():
    store = ModelStore()
    store.apply([update("Earth", 1, 11, 5)])
    again = update("Earth", 1, 11, 5, load=1)
    again.digest = b"z" * 20
    bulk = update("Moon", 2, 20, 5000, published=5000 + MARGIN / SECOND, load=1)
    assert store.apply([again, bulk]).missed == 0
    assert store.apply([update("Earth", 1, 12, 6, load=2), update("Mars", 3, 30, 6, load=2)]).missed == 2


def test_a_hidden_text_stays_hidden_until_the_next_revision_or_a_newer_visibility_change():
    store, consumer = ModelStore(), Consumer()
    store.apply([mask(1, 10, 5)])
    store.apply([update("Earth", 1, 10, 0)])
    assert consumer.read(store).kinds == ["hide"]
    store.apply([mask(1, 10, 4, hidden=0)])
    assert consumer.read(store).kinds == ["hide"]
    store.apply([mask(1, 10, 6, hidden=0)])
    assert consumer.read(store).kinds == ["hide", "upsert"]
    store.apply([mask(1, 10, 7, hidden=HIDDEN_EDITOR)])
    store.apply([update("Earth", 1, 11, 8)])
    assert consumer.read(store).kinds == ["hide", "upsert", "upsert"]
    assert consumer.index == store.live()


def test_a_restored_revision_is_visible_again():
    store = ModelStore()
    store.apply([update("Earth", 1, 10, 0), mask(1, 10, 1)])
    store.apply([update("Earth", 1, 10, 2)])
    assert [hidden for _, _, _, hidden in store.live().values()] == [0]


def test_a_text_that_is_visible_again_and_missing_is_a_doubt():
    store = ModelStore()
    store.apply([update("Earth", 1, 10, 0, body=False)])
    assert store.apply([mask(1, 10, 1)]).doubts == []
    assert store.apply([mask(1, 10, 2, hidden=0)]).doubts == [("enwiki", "Earth")]
    store.apply([update("Moon", 2, 20, 0)])
    assert store.apply([mask(2, 20, 2, hidden=0)]).doubts == []


def test_a_visibility_change_of_an_unknown_page_is_kept_for_later():
    store = ModelStore()
    assert store.apply([mask(1, 10, 5)]).changes == 0
    store.apply([update("Earth", 1, 10, 0)])
    assert [hidden for _, _, _, hidden in store.live().values()] == [HIDDEN_TEXT]


def test_a_forgotten_page_stays_forgotten_when_it_is_loaded_again():
    store, consumer = ModelStore(), Consumer()
    store.apply([update("Earth", 1, 10, 0)])
    consumer.read(store)
    store.forgotten.add(("enwiki", 1))
    store.touch([("enwiki", 1)])
    assert consumer.read(store).kinds == ["upsert", "delete"]
    store.apply([update("Terra", 1, 11, 5, load=1)])
    assert titles(store) == {}
    assert store.rows.pages["enwiki", "Terra"].record == b""
    assert consumer.read(store).index == {}


def test_only_pages_that_are_surely_older_than_a_snapshot_are_swept_and_few_of_them():
    cut = 3600 * SECOND
    old, recent = update("Earth", 1, 10, 100, live=True), update("Moon", 2, 20, 3000, live=True)
    assert may_sweep(old, cut)
    assert not may_sweep(recent, cut)
    assert not may_sweep(update("Gone", 3, 30, 100), cut)
    assert may_sweep(update("Old", 4, 40, 100, published=0, live=True), cut)
    assert [removal_limit(live, 0.01) for live in (0, 60, 1000, 5000)] == [10, 10, 10, 50]


# Reading records.


def record(**fields):
    """Return the JSON of a record of the stream."""
    event: dict[str, object] = {"identifier": "e", "type": "update", "date_created": "2025-01-01T00:00:00.25Z"}
    event |= {"date_published": "2025-01-01T00:00:01Z", "partition": 3, "offset": 4}
    document: dict[str, object] = {
        "name": "Marie Curie",
        "identifier": 5,
        "is_part_of": {"identifier": "enwiki"},
        "version": {"identifier": 7, "comment": "c", "editor": {"name": "n"}},
        "date_modified": "2024-12-31T00:00:00Z",
        "abstract": "a",
        "article_body": {"wikitext": "w", "html": "h"},
        "event": event,
    }
    document |= fields
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def page_of(data, keep=None, **options):
    """Return a record as the row of a page."""
    page = RecordReader(keep).read(data, **options)
    assert isinstance(page, Page)
    return page


def test_a_record_becomes_a_row():
    page = page_of(record(), load=2)
    assert (page.key, page.page_key, page.revision, page.namespace, page.gone, page.load, page.body) == (
        ("enwiki", "Marie Curie"), ("enwiki", 5), 7, 0, False, 2, True,
    )  # fmt: skip
    assert (page.published - page.created, page.created) == (750_000, 1_735_689_600_250_000)
    assert page.record == record()
    assert time_of(page.created).isoformat() == "2025-01-01T00:00:00.250000+00:00"


def test_titles_of_deletes_have_spaces_and_their_records_are_not_kept():
    event = {"type": "delete", "date_created": "2025-01-01T00:00:00Z", "date_published": "2025-01-01T00:00:01Z"}
    page = page_of(record(name="Marie_Curie", event=event, article_body=None))
    assert (page.title, page.gone, page.record, page.body) == ("Marie Curie", True, b"", False)


def test_bulk_records_are_set_back_and_old_ones_have_the_time_of_their_revision():
    moment = "2025-01-01T01:00:00Z"
    bulk = page_of(record(event={"date_created": moment, "date_published": moment}))
    assert bulk.published - bulk.created == MARGIN
    published = page_of(record(event={"date_created": "0001-01-01T00:00:00Z", "date_published": moment}))
    assert published.created == published.published - MARGIN
    old = page_of(record(event=None, version=None))
    assert (old.created, old.published, old.revision) == (
        microseconds(time_of(1_735_603_200_000_000)), 0, 0,
    )  # fmt: skip
    assert page_of(record(event={}, date_modified=None)).created == -MARGIN
    assert microseconds(None) == 0
    assert microseconds(time_of(5).replace(tzinfo=None)) == 5


def test_the_digest_of_a_record_is_the_same_from_stream_and_archive():
    stream = page_of(record())
    archive = page_of(record(event={"type": "update", "date_created": "2025-01-01T00:00:00.25Z"}))
    assert stream.digest == archive.digest != page_of(record(abstract="b")).digest
    pages = [page_of(record(article_body={"html": html}), ["abstract"]) for html in ("1", "2")]
    assert pages[0].digest == pages[1].digest


@pytest.mark.parametrize("keep", [None, ["abstract"]])
def test_a_line_of_a_block_is_the_same_row_as_its_copy(keep):
    data = record(abstract="a" * 3000)
    block = memoryview(b"{}\n" + data + b"\n{}\n")
    page = page_of(block[3 : 3 + len(data)], keep)
    assert page == page_of(data, keep)
    assert bytes(page.record) == bytes(page_of(data, keep).record)


def test_visibility_changes_become_masks():
    event = {"type": "visibility-change", "date_created": "2025-01-01T00:00:00Z"}
    visible = {"text": False, "editor": True, "comment": False}
    mask = RecordReader().read(record(event=event, visibility=visible))
    assert isinstance(mask, Mask)
    assert (mask.page_id, mask.revision, mask.hidden) == (5, 7, HIDDEN_TEXT | HIDDEN_COMMENT)
    user = RecordReader().read(record(event=event, visibility={"text": True, "user": True, "comment": True}))
    assert user.hidden == 0
    assert RecordReader().read(record(event=event)).hidden == HIDDEN_TEXT | HIDDEN_EDITOR | HIDDEN_COMMENT


def test_unknown_event_types_are_updates():
    assert not page_of(record(event={"type": "move"})).gone


def test_only_the_fields_to_keep_are_kept_beside_those_that_the_rule_needs():
    page = page_of(record(categories=[{"name": "c", "url": "u"}]), ["wikitext", "categories"])
    document = json.loads(page.record)
    assert (document["article_body"], document["categories"]) == ({"wikitext": "w"}, [{"name": "c", "url": "u"}])
    assert "abstract" not in document
    assert page.body
    assert page_of(page.record).order[:3] == page.order[:3]
    with pytest.raises(ValueError, match="wikitexts"):
        RecordReader(["article_body.wikitexts"])
    with pytest.raises(TypeError, match="list"):
        RecordReader("wikitext")


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}", b'{"name":"A"}', b'{"is_part_of":{"identifier":"enwiki"}}'])
def test_what_is_not_a_record_is_an_error(data):
    with pytest.raises(DecodeError):
        RecordReader().read(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"identifier": 2**63},
        {"version": {"identifier": 10**30}},
        {"namespace": {"identifier": 2**31}},
        {"namespace": {"identifier": -(2**31) - 1}},
        {"name": "A\0B"},
        {"name": "A" * 3000},
        {"is_part_of": {"identifier": "en\0wiki"}},
    ],
    ids=str,
)
def test_a_record_that_no_store_can_hold_is_an_error(fields):
    with pytest.raises(DecodeError):
        RecordReader().read(record(**fields))


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_date_that_means_no_time_is_none(time):
    assert page_of(record(event={"date_published": time})).published == 0


def test_hidden_parts_are_taken_out_of_records():
    document = json.loads(visible_record(record(), HIDDEN_TEXT))
    assert "article_body" not in document
    assert "abstract" not in document
    assert document["version"]["editor"] == {"name": "n"}
    version = json.loads(visible_record(record(), HIDDEN_EDITOR | HIDDEN_COMMENT))["version"]
    assert version == {"identifier": 7}
    assert visible_record(record(), 0) == record()
    assert visible_record(b"", 7) == b""
    assert visible_record(b'{"version":null}', 6) == b'{"version":null}'


@pytest.mark.parametrize(
    ("data", "title"),
    [
        (record(name="Marie_Curie", version="broken"), ("enwiki", "Marie Curie")),
        (b'{"name": 5, "is_part_of": {"identifier": "enwiki"}}', None),
        (b"", None),
    ],
)
def test_a_record_that_cannot_be_read_may_still_tell_its_title(data, title):
    assert title_of(data) == title
