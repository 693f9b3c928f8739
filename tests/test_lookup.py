"""Look-ups by title against the simulator: one, many, what is missing, what is broken, what it costs."""

import asyncio
import contextlib
import gc
import itertools
import json
import logging

import msgspec
import pytest
from wall_clock import MIDDLE_OF_A_MONTH

from wme_async import Allowances, Cache, Client, Cost, Limits, Looked, LookupProgress, Lookups
from wme_async.errors import DecodeError, Forbidden, NotFound, QuotaExceeded, ServerError
from wme_async.models import Article, StructuredContent
from wme_async.simulator import Simulator

EN = {"is_part_of.identifier": "enwiki"}


def sent(sim, path="/v2/articles/"):
    return [json.loads(request.body) for request in sim.requests if request.path.startswith(path)]


def projects(records):
    return [record.is_part_of.identifier for record in records]


def page(sim, title, project="enwiki", **more):
    sim.pages.add({"name": title, "identifier": 7, "is_part_of": {"identifier": project}, **more})


def tasks():
    return [task for task in asyncio.all_tasks() if "wme-" in task.get_name()]


# One title


@pytest.mark.parametrize(
    "title",
    [
        "AC/DC", "C++", "What Is Life?", "42%", "A#B", "100% & more", "Ångström", "Москва", "東京", "🜨", 'Say "x"',
        "..and Justice for All", "a/../b", "%2F", "C:\\>", "Émile", "a;b=c,d", "Can't",
    ],
)  # fmt: skip
async def test_a_title_is_found_whatever_is_in_it(sim, wme, title):
    page(sim, title)
    (record,) = await wme.articles.lookup(title, filters=EN)
    assert record.name == title


async def test_blanks_and_underscores_are_the_same_and_capitals_are_not(wme):
    assert await wme.articles.lookup("Marie_Curie", filters=EN) == await wme.articles.lookup("Marie Curie", filters=EN)
    assert await wme.articles.lookup("marie curie") == []


@pytest.mark.parametrize("title", ["", " ", "_", "..", "a\nb", "\ud800"])
async def test_what_no_page_can_be_called_is_refused_before_anything_is_sent(sim, wme, title):
    with pytest.raises(ValueError, match=r"title|page"):
        await wme.articles.lookup(title)
    with pytest.raises(TypeError):
        await wme.articles.lookup(42)
    assert not sent(sim)


async def test_a_missing_page_is_an_empty_list_or_an_error_as_asked(wme):
    assert await wme.articles.lookup("No such page") == []
    with pytest.raises(NotFound, match=r"'No such page'.*redirects") as caught:
        await wme.articles.lookup("No such page", missing="raise")
    assert caught.value.status == 404
    with pytest.raises(ValueError, match="missing"):
        await wme.articles.lookup("NATO", missing="ignore")
    with pytest.raises(TypeError, match="recheck"):
        await wme.articles.lookup("NATO", recheck="yes")


async def test_a_page_that_a_filter_of_ours_refuses_is_missing_like_one_that_the_server_refuses(sim, wme):
    page(sim, "Minor", version={"identifier": 5, "is_minor_edit": True})
    for refused in ({"version.identifier": 6}, {"version.is_minor_edit": False}):
        filters = {**EN, **refused}
        assert await wme.articles.lookup("Minor", filters=filters) == []
        with pytest.raises(NotFound, match=r"'Minor'.*filters") as caught:
            await wme.articles.lookup("Minor", filters=filters, missing="raise")
        assert caught.value.status == 404
        assert str(caught.value.url).endswith("/v2/articles/Minor")
        async with wme.articles.lookup_many(["Minor"], filters=filters, missing="raise") as results:
            assert isinstance((await anext(results)).error, NotFound)


async def test_records_come_in_the_order_of_projects_or_in_that_of_the_caller(sim, wme):
    everywhere = sorted(sim.pages.projects)
    records = await wme.articles.lookup("NATO", limit=10)
    assert len(records) == 10
    assert projects(records) == sorted(projects(records))
    assert set(projects(records)) <= set(everywhere)
    records = await wme.articles.lookup("NATO", limit=10, order=["frwiki", "nowhere", "dewiki", "enwiki"])
    ranked = [name for name in ("frwiki", "dewiki", "enwiki") if name in projects(records)]
    assert projects(records)[: len(ranked)] == ranked
    assert projects(records)[len(ranked) :] == sorted(projects(records)[len(ranked) :])
    records = await wme.articles.lookup("NATO", limit=10, order=lambda record: -record.identifier)
    assert [record.identifier for record in records] == sorted((record.identifier for record in records), reverse=True)
    with pytest.raises(ValueError, match="order is"):
        await wme.articles.lookup("NATO", order="random")


async def test_without_an_order_records_come_as_the_server_sent_them():
    async with Simulator(seed=3) as sim, Client(**sim.client_options()) as wme:
        seen = {tuple(projects(await wme.articles.lookup("NATO", limit=10, order=None))) for _ in range(5)}
    assert len(seen) == 5
    assert any(list(order) != sorted(order) for order in seen)


@pytest.mark.parametrize("fields", [["name"], ["name", "is_part_of.url"]])
@pytest.mark.parametrize("which", ["articles", "structured_contents"])
async def test_what_is_fetched_for_the_order_alone_is_not_handed_out(sim, wme, which, fields):
    records = await getattr(wme, which).lookup("NATO", fields=fields, limit=5)
    assert len(records) == 5
    assert all(record.name == "NATO" for record in records)
    assert projects(records) == [""] * 5
    urls = [record.is_part_of.url for record in records]
    assert all(urls) is ("is_part_of.url" in fields)
    assert sim.requests.last.body is not None
    assert "is_part_of" in str(json.loads(sim.requests.last.body)["fields"])


class Coded(msgspec.Struct):
    code: str = ""


class OfProject(msgspec.Struct):
    name: str
    is_part_of: Coded


async def test_a_type_has_its_project_although_nothing_of_it_is_left(sim, wme):
    page(sim, "Two", "enwiki")
    page(sim, "Two", "dewiki")
    records = await wme.articles.lookup("Two", type=OfProject)
    assert sent(sim)[-1]["fields"] == ["name", "is_part_of.code", "is_part_of.identifier"]
    assert records == [OfProject("Two", Coded())] * 2


async def test_one_record_needs_no_order_and_nothing_is_fetched_for_one(sim, wme):
    await wme.articles.lookup("NATO", fields=["name"], limit=1)
    await wme.articles.lookup("NATO", fields=["name"], filters=EN)
    assert [body["fields"] for body in sent(sim)] == [["name"], ["name"]]


class Slim(msgspec.Struct):
    name: str
    identifier: int = 0


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    name: str


async def test_a_type_of_the_callers_is_asked_for_and_decoded_into(sim, wme):
    records = await wme.articles.lookup("NATO", type=Slim, limit=2, order=None)
    assert len(records) == 2
    assert all(type(record) is Slim and record.name == "NATO" and record.identifier for record in records)
    assert sent(sim) == [{"fields": ["name", "identifier"], "limit": 2}]
    assert await wme.articles.lookup("NATO", type=Strict) == [Strict("NATO")] * 3


@pytest.mark.parametrize("limit", [0, 11, 100, -1])
async def test_a_limit_out_of_range_is_refused_before_anything_is_sent(sim, wme, limit):
    with pytest.raises(ValueError, match="limit must be 1 to 10"):
        await wme.articles.lookup("NATO", limit=limit)
    assert not sent(sim)


async def test_the_same_question_is_checked_once_and_questions_that_differ_are_not_mixed_up(sim, wme):
    for value in (True, 1):
        with contextlib.suppress(ValueError):
            await wme.articles.lookup("NATO", filters={**EN, "version.is_minor_edit": value})
    with pytest.raises(ValueError, match="never equals"):
        await wme.articles.lookup("NATO", filters={**EN, "version.is_minor_edit": 1})
    with pytest.raises(TypeError, match="list of names"):
        await wme.articles.lookup("NATO", fields="name")


async def test_filters_beside_the_language_see_all_records_of_it(sim, wme):
    for project in ("frwiki", "frwiktionary", "frwikibooks"):
        page(sim, "Un", project, in_language={"identifier": "fr"}, abstract=project)
    sim.catalog.static["projects"].extend(
        {"identifier": name, "in_language": {"identifier": "fr"}} for name in ("frwiktionary", "frwikibooks")
    )
    sim.catalog.languages.update(frwiktionary="fr", frwikibooks="fr")
    french = {"in_language.identifier": "fr"}
    for _ in range(10):
        (record,) = await wme.articles.lookup("Un", filters={**french, "abstract": "frwikibooks"}, limit=1)
        assert record.abstract == "frwikibooks"
    assert len(await wme.articles.lookup("Un", filters={**french, "name": "Un"}, limit=2)) == 2
    assert len(await wme.articles.lookup("Un", filters=french)) == 3


async def test_a_filter_that_is_compared_after_a_random_pick_is_refused(sim, wme):
    with pytest.raises(ValueError, match="before it compares"):
        await wme.articles.lookup("NATO", filters={"identifier": 5})
    assert not sent(sim)


async def test_explain_says_what_would_be_sent_and_sends_nothing(sim, wme):
    said = wme.articles.explain(fields=["name"], filters={"in_language.identifier": "fr", "name": "x"})
    assert "to on-demand articles" in said
    assert "limit 10" in said
    assert "is_part_of.identifier besides" in said
    assert not sent(sim)


# What is wrong with an answer


async def test_structured_contents_are_trees_of_parts(wme):
    (record,) = await wme.structured_contents.lookup("NATO", filters=EN)
    assert record.infoboxes[0].type == "infobox"
    assert record.sections[0].name == "Abstract"
    assert record.tables
    assert not record.is_raw_article


async def test_a_broken_record_is_an_error_that_keeps_it_and_the_others(sim, wme):
    sim.faults.inject("malformed", role="api", times=None)
    with pytest.raises(DecodeError, match=r"record 1 of .*/v2/structured-contents/NATO") as caught:
        await wme.structured_contents.lookup("NATO", limit=4)
    error = caught.value
    assert error.line == 1
    assert (error.record or b"").startswith(b"{")
    assert len(error.records) == 3
    assert all(isinstance(record, StructuredContent) and record.sections for record in error.records)
    assert projects(error.records) == sorted(projects(error.records))
    assert b"sections" not in repr(error).encode()
    async with wme.structured_contents.lookup_many(["NATO", "Earth"], limit=2) as results:
        looked = [result async for result in results]
    assert [(result.name, len(result.records)) for result in looked] == [("NATO", 1), ("Earth", 1)]
    assert all(isinstance(result.error, DecodeError) for result in looked)


async def test_an_unstructured_article_is_told_apart(sim, wme):
    sim.faults.inject("raw", role="api", times=None)
    records = await wme.structured_contents.lookup("NATO", limit=3)
    assert sorted(record.is_raw_article for record in records) == [False, False, True]
    raw = next(record for record in records if record.is_raw_article)
    assert raw.article_body.html
    # Neither is it lost where fields are chosen, which an unstructured article does not heed.
    records = await wme.structured_contents.lookup("NATO", fields=["name", "version.identifier"], limit=3)
    assert sorted(record.is_raw_article for record in records) == [False, False, True]
    (raw,) = await wme.structured_contents.lookup("NATO", fields=["name", "sections"], filters=EN)
    assert raw.is_raw_article


class Sections(msgspec.Struct):
    name: str
    sections: list[msgspec.Raw] = []


async def test_an_unstructured_article_that_a_type_could_not_show_is_an_error(sim, wme):
    sim.faults.inject("raw", role="api", times=None)
    with pytest.raises(DecodeError, match="unstructured article") as caught:
        await wme.structured_contents.lookup("NATO", type=Sections, limit=3)
    assert len(caught.value.records) == 2
    assert b"article_body" in (caught.value.record or b"")


@pytest.mark.parametrize("filters", [{"description": "an alliance"}, {"description": ""}])
async def test_an_unstructured_article_is_not_taken_for_one_that_a_filter_refuses_or_accepts(sim, wme, filters):
    sim.faults.inject("raw", role="api", times=None)
    with pytest.raises(DecodeError, match="unstructured article") as caught:
        await wme.structured_contents.lookup("NATO", filters={**EN, **filters})
    assert b"article_body" in (caught.value.record or b"")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html><title>Sorry</title></html>", "HTML page, not a response of the API: Sorry"),
        (b"[1, 2]", "record 1 of "),
        (b"17", "record 1 of "),
        (b'{"name": 5}', "record 1 of "),
        (b'[{"name": "x"}', "record 1"),
        (b'{"name": "\xff"}', "not UTF-8"),
    ],
)
@pytest.mark.parametrize("fields", [None, ["name", "version.identifier"]])
async def test_what_is_no_record_is_told_with_its_bytes(sim, wme, body, words, fields):
    sim.faults.inject("status", role="api", path="/v2/articles", status=200, body=body, times=None)
    with pytest.raises(DecodeError) as caught:
        await wme.articles.lookup("NATO", fields=fields, filters=EN)
    if fields is None or body[:1] == b"<":
        assert words in str(caught.value)
    assert caught.value.record
    assert caught.value.records == ()


async def test_a_json_array_is_understood_and_nothing_is_nothing(sim, wme):
    rows = [{"name": "B", "is_part_of": {"identifier": "b"}}, {"name": "A", "is_part_of": {"identifier": "a"}}]
    sim.faults.inject("status", role="api", path="articles", status=200, body=json.dumps(rows).encode())
    assert [record.name for record in await wme.articles.lookup("NATO")] == ["A", "B"]
    for body in (b"", b"[]"):
        sim.faults.inject("status", role="api", path="articles", status=200, body=body)
        assert await wme.articles.lookup("NATO") == []


# A "not found" that may be false


@pytest.mark.middle_of_a_month
async def test_a_false_not_found_is_asked_again_where_the_caller_wants_it(sim, wme, client_clock):
    sim.faults.inject("not_there", role="api")
    assert await wme.articles.lookup("NATO", recheck=False) == []
    sim.faults.inject("not_there", role="api")
    assert await wme.articles.lookup("NATO", recheck=True)
    assert 0.5 <= client_clock.waits[-1] <= 1.5
    assert len(sent(sim)) == 3
    assert (await wme.auth.quota()).ondemand.used == 3


async def test_a_not_found_is_believed_unless_the_api_failed_a_moment_ago(sim, wme, client_clock):
    assert await wme.articles.lookup("No such page") == []
    assert len(sent(sim)) == 1
    sim.faults.inject("status", role="api", status=503)
    assert await wme.projects.list()
    sim.faults.inject("not_there", role="api")
    assert await wme.articles.lookup("NATO")
    client_clock.offset += 61
    sim.faults.inject("not_there", role="api")
    assert await wme.articles.lookup("NATO") == []
    sim.faults.inject("not_there", role="api", times=2)
    assert await wme.articles.lookup("NATO", recheck=True) == []


# Many titles


async def test_each_name_has_one_result_in_the_order_of_names(sim, wme):
    names = ["NATO", "No such page", "", "Earth", "NATO"]
    async with wme.articles.lookup_many(names, filters=EN, type=Slim) as results:
        looked = [result async for result in results]
    assert [result.name for result in looked] == names
    assert [result.found for result in looked] == [True, False, False, True, True]
    assert looked[0].first == Slim("NATO", looked[0].records[0].identifier)
    assert looked[1] == Looked(name="No such page")
    assert looked[1].first is None
    assert looked[1].unwrap() == ()
    with pytest.raises(ValueError, match="title"):
        looked[2].unwrap()
    with pytest.raises(AttributeError):
        looked[0].name = "x"


async def test_a_name_that_fails_does_not_fail_the_others(sim, wme):
    sim.faults.inject("status", role="api", path="Earth", status=500, times=None)
    async with wme.articles.lookup_many(["NATO", "Earth", "C++"], filters=EN) as results:
        looked = {result.name: result async for result in results}
    assert isinstance(looked["Earth"].error, ServerError)
    assert looked["NATO"].found
    assert looked["C++"].found


async def test_a_missing_page_can_be_an_error_of_its_name(wme):
    async with wme.articles.lookup_many(["No such page"], missing="raise") as results:
        (looked,) = [result async for result in results]
    assert isinstance(looked.error, NotFound)


async def test_results_can_come_as_they_complete(sim, wme):
    await wme.auth.login()
    sim.faults.inject("hang_head", role="api", path="NATO")
    async with wme.articles.lookup_many(["NATO", "Earth", "C++"], filters=EN, ordered=False) as results:
        first = [await anext(results), await anext(results)]
        assert {result.name for result in first} == {"Earth", "C++"}


async def test_who_takes_no_results_slows_the_requests_and_names_are_drawn_as_they_are_needed(sim, wme):
    drawn = []

    def names():
        for number in range(200):
            drawn.append(number)
            yield "NATO"

    async with wme.articles.lookup_many(names(), filters=EN, type=Slim, concurrency=3) as results:
        await anext(results)
        for _ in range(100):  # turns of the loop, each of which could start more
            await asyncio.sleep(0)
        await sim.requests.wait(7, role="api", path="NATO", done=True)
        assert len(drawn) <= 2 * 3 + 1
        async for _ in results:
            pass
    assert len(drawn) == 200
    assert len(sent(sim)) == 200


@pytest.mark.parametrize("ordered", [True, False])
async def test_no_more_requests_are_under_way_than_was_allowed(sim, wme, ordered):
    await wme.auth.login()
    sim.faults.inject("hang_head", role="api", times=None)
    async with wme.articles.lookup_many(["NATO"] * 50, concurrency=4, ordered=ordered) as results:
        waiting = asyncio.create_task(anext(results))
        await sim.requests.wait(4, role="api", path="NATO")
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(sent(sim)) == 4
        waiting.cancel()
        await asyncio.wait([waiting])
    assert tasks() == []
    assert "0 open bodies" in repr(wme)


async def test_connections_stay_within_their_limit(sim):
    limits = Limits(connections=5)
    async with Client(**sim.client_options(), limits=limits) as wme:
        async with wme.articles.lookup_many(["NATO"] * 60, filters=EN, type=Slim, concurrency=30) as results:
            assert len([result async for result in results if result.found]) == 60
    assert len({request.peer for request in sim.requests if request.role == "api"}) <= 5


async def test_names_may_come_from_an_async_iterator(wme):
    async def names():
        for name in ("NATO", "Earth", "C++", "AC/DC"):
            await asyncio.sleep(0)
            yield name

    async with wme.articles.lookup_many(names(), filters=EN, type=Slim, concurrency=3) as results:
        assert [result.name async for result in results] == ["NATO", "Earth", "C++", "AC/DC"]


async def test_an_async_iterator_that_ends_late_is_drawn_from_by_one_at_a_time(wme):
    drawing = 0

    async def names():
        nonlocal drawing
        for name in ("NATO", "Earth", None):
            drawing += 1
            assert drawing == 1
            for _ in range(20):
                await asyncio.sleep(0)
            drawing -= 1
            if name is not None:
                yield name

    async with wme.articles.lookup_many(names(), filters=EN, type=Slim, concurrency=5) as results:
        assert [looked.name async for looked in results] == ["NATO", "Earth"]


def lookups(names, **options):
    """Look-ups without a server, by a clock that moves on a second with each reading."""

    async def find(name):
        return Looked(name=name, records=(name,) if name.isupper() else ())

    return Lookups(names, find, monotonic=itertools.count(1.0).__next__, **options)


async def test_an_exception_of_progress_on_the_way_ends_the_look_ups():
    def progress(report):
        raise KeyError(report.done)

    async with lookups(["NATO"] * 9, progress=progress) as results:
        with pytest.raises(KeyError):
            [looked async for looked in results]
        assert [looked async for looked in results] == []


async def test_a_wait_that_is_cancelled_loses_nothing(sim, wme):
    await wme.auth.login()
    hang = sim.faults.inject("delay", role="api", path="NATO", seconds=0.5)
    async with wme.articles.lookup_many(["NATO", "Earth"], filters=EN) as results:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(results)
        assert [result.name async for result in results] == ["NATO", "Earth"]
    assert hang.hits == 1


async def test_leaving_the_loop_early_ends_all_that_is_under_way(sim, wme):
    await wme.auth.login()
    sim.faults.inject("hang_head", role="api", path="Earth", times=None)
    async with wme.articles.lookup_many(["NATO", *["Earth"] * 20], filters=EN) as results:
        async for looked in results:
            assert looked.found
            break
    assert tasks() == []
    assert "0 open bodies" in repr(wme)
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    await results.aclose()
    assert "ended" in repr(results)


async def test_dropping_the_iterator_ends_all_that_is_under_way(sim, wme, caplog):
    caplog.set_level(logging.DEBUG, "wme_async.lookup")
    await wme.auth.login()
    sim.faults.inject("hang_head", role="api", path="Earth", times=None)
    async for looked in wme.articles.lookup_many(["NATO", *["Earth"] * 20], filters=EN):
        assert looked.found
        break
    gc.collect()
    left = tasks()
    if left:
        await asyncio.wait(left, timeout=5)
    assert tasks() == []
    assert "0 open bodies" in repr(wme)
    assert "dropped" in caplog.text


async def test_nothing_is_sent_before_the_first_item_is_asked_for(sim, wme):
    results = wme.articles.lookup_many(["NATO"])
    assert "not started" in repr(results)
    await results.aclose()
    assert not sent(sim)
    assert [result async for result in results] == []


async def test_what_the_names_raise_reaches_the_reader_after_what_came_before(wme):
    def names():
        yield "NATO"
        raise OSError("the list is on a disk that has gone")

    async with wme.articles.lookup_many(names(), filters=EN) as results:
        assert (await anext(results)).found
        with pytest.raises(OSError, match="disk"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_names_that_were_cancelled_are_not_taken_for_names_that_ended(wme):
    async def names():
        yield "NATO"
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        yield await other

    async with wme.articles.lookup_many(names(), filters=EN) as results:
        assert (await anext(results)).found
        with pytest.raises(RuntimeError, match="cancelled before their end"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_results_have_one_reader(sim, wme):
    await wme.auth.login()
    sim.faults.inject("hang_head", role="api", times=None)
    async with wme.articles.lookup_many(["NATO"]) as results:
        waiting = asyncio.create_task(anext(results))
        await sim.requests.wait(1, role="api", path="NATO")
        with pytest.raises(RuntimeError, match="reader"):
            await anext(results)
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_closing_wakes_a_reader_that_waits(sim, wme):
    await wme.auth.login()
    sim.faults.inject("hang_head", role="api", times=None)
    results = wme.articles.lookup_many(["NATO"])
    waiting = asyncio.create_task(anext(results, None))
    await sim.requests.wait(1, role="api", path="NATO")
    await results.aclose()
    assert await waiting is None


@pytest.mark.parametrize(
    ("names", "options", "error"),
    [
        ("NATO", {}, TypeError),
        (7, {}, TypeError),
        (["NATO"], {"concurrency": 0}, ValueError),
        (["NATO"], {"concurrency": 2.5}, TypeError),
        (["NATO"], {"concurrency": "3"}, TypeError),
        (["NATO"], {"fields": ["nam"]}, ValueError),
        (["NATO"], {"order": 5}, TypeError),
    ],
)
async def test_misuse_is_told_at_the_call(wme, names, options, error):
    with pytest.raises(error):
        wme.articles.lookup_many(names, **options)


async def test_progress_is_reported_now_and_then_and_at_the_end(wme):
    reports: list[LookupProgress] = []
    names = ["NATO", "No such page", "", "Earth"] * 5
    async with wme.articles.lookup_many(names, filters=EN, progress=reports.append) as results:
        async for _ in results:
            pass
    last = reports[-1]
    assert (last.done, last.found, last.missing, last.failed, last.total) == (20, 10, 5, 5, 20)
    assert last.eta == 0
    assert last.rate > 0


async def test_progress_without_a_total_has_no_eta():
    reports: list[LookupProgress] = []
    async with lookups(iter(["NATO", "earth"] * 10), concurrency=1, progress=reports.append) as results:
        assert [looked.found async for looked in results] == [True, False] * 10
    assert [report.done for report in reports] == [*range(1, 21), 20]
    assert (reports[0].total, reports[0].eta) == (None, None)
    assert (reports[-1].found, reports[-1].missing) == (10, 10)


async def test_what_progress_raises_reaches_the_reader(wme):
    def fail(progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with wme.articles.lookup_many(["NATO"], progress=fail) as results:
            async for _ in results:
                pass
    assert tasks() == []


# What it costs


async def test_what_the_plan_forbids_is_asked_a_few_times_and_not_for_every_name():
    async with Simulator(access="2025") as sim:
        sim.add_user("free", "pw", ["group_1"])
        async with (
            Client("free", "pw", hosts=sim.client_options()["hosts"]) as wme,
            wme.structured_contents.lookup_many(["NATO"] * 50, concurrency=2) as results,
        ):
            looked = [result async for result in results]
        assert len(looked) == 50
        assert all(isinstance(result.error, Forbidden) for result in looked)
        assert sim.requests.count("api") <= 2


async def test_an_exhausted_allowance_is_asked_about_once_and_not_hammered():
    async with Simulator(caps={"group_1": {"ondemand": 5}}) as sim:
        sim.add_user("free", "pw", ["group_1"])
        options = {"hosts": sim.client_options()["hosts"], "allowances": Allowances(ondemand=5)}
        async with Client("free", "pw", **options) as wme:
            async with wme.articles.lookup_many(["NATO"] * 100, filters=EN, type=Slim, concurrency=4) as results:
                looked = [result async for result in results]
            assert [result.found for result in looked].count(True) == 5
            errors = [result.error for result in looked if result.error is not None]
            assert len(errors) == 95
            assert all(isinstance(error, QuotaExceeded) and error.limit == 5 for error in errors)
            asked = sim.requests.count("api")
            assert asked <= 5 + 4
            assert sim.requests.count("auth", path="get-user") == 1
            # Nor by a loop that does not look at its errors.
            for _ in range(20):
                with pytest.raises(QuotaExceeded):
                    await wme.articles.lookup("NATO")
            assert sim.requests.count("api") == asked


async def test_an_exhausted_allowance_is_tried_again_after_a_while(client_clock):
    async with Simulator(caps={"group_1": {"ondemand": 1}}) as sim:
        sim.add_user("free", "pw", ["group_1"])
        options = {"hosts": sim.client_options()["hosts"], "allowances": Allowances(ondemand=1)}
        async with Client("free", "pw", **options) as wme:
            assert await wme.articles.lookup("NATO", filters=EN)
            with pytest.raises(QuotaExceeded):
                await wme.articles.lookup("NATO", filters=EN)
            sim.caps.set_used("free", "ondemand", 0)
            with pytest.raises(QuotaExceeded):
                await wme.articles.lookup("NATO", filters=EN)
            client_clock.offset += 61
            assert await wme.articles.lookup("NATO", filters=EN)


@pytest.mark.middle_of_a_month
async def test_what_is_not_found_counts_as_well(sim, wme):
    assert await wme.articles.lookup("No such page") == []
    await wme.articles.lookup("NATO")
    assert (await wme.auth.quota()).ondemand.used == 2


async def test_a_job_is_checked_against_what_is_left_before_it_starts(tmp_path):
    async with Simulator() as sim:
        sim.add_user("free", "pw", ["group_1"])
        async with Client("free", "pw", hosts=sim.client_options()["hosts"]) as wme:
            assert wme.articles.cost(["a", "b"]) == Cost(pool="ondemand", requests=2)
            assert wme.structured_contents.cost(7) == Cost(pool="ondemand", requests=7)
            assert wme.wikidata.items.cost(["Q1"]) == Cost(pool="ondemand", requests=1)
            for wrong in ("NATO", True, b"x"):
                with pytest.raises(TypeError):
                    wme.articles.cost(wrong)
            sim.caps.set_used("free", "ondemand", 49_990)
            quota = await wme.auth.check(wme.articles.cost(10), wme.snapshots.cost("a"))
            assert quota.ondemand.left == 10
            with pytest.raises(
                QuotaExceeded, match="needs 11 ondemand requests, and 10 of this month's 50000"
            ) as caught:
                await wme.auth.check(wme.articles.cost(5), wme.wikidata.labels.cost(6))
            assert (caught.value.pool, caught.value.used, caught.value.limit) == ("ondemand", 49_990, 50_000)
            assert sim.requests.count("api") == 0


async def test_a_free_account_is_warned_once_at_four_fifths_of_the_allowance_of_its_plan(caplog):
    async with Simulator(start=MIDDLE_OF_A_MONTH) as sim:
        sim.add_user("free", "pw", ["group_1"])
        async with Client("free", "pw", hosts=sim.client_options()["hosts"]) as wme:
            await wme.auth.quota()
            for number in range(1, 28):
                async with wme.snapshots.content("enwiki_namespace_0") as content:
                    await anext(content)
                assert ("requests of this month" in caplog.text) is (number >= 24)
    assert caplog.text.count("24 of 30 snapshot requests of this month are used") == 1


@pytest.mark.middle_of_a_month
async def test_counts_are_shared_by_the_token_file(sim, tmp_path):
    options = {**sim.client_options(), "token_file": tmp_path / "tokens"}
    for _ in range(2):
        async with Client(**options) as wme:
            async with wme.articles.lookup_many(["NATO"] * 120, filters=EN, type=Slim) as results:
                async for _looked in results:
                    pass
    sim.caps.set_used("simulated", "ondemand", 0)
    async with Client(**options) as wme:
        assert (await wme.auth.quota()).ondemand.used == 240


HINT = "snapshots are quicker"


async def look_up(wme, count):
    async with wme.articles.lookup_many(["NATO"] * count, filters=EN, type=Slim) as results:
        assert [looked.found async for looked in results] == [True] * count


async def test_thousands_of_lookups_within_an_hour_log_one_hint(sim, caplog):
    async with Client(**sim.client_options(), cache=Cache()) as wme:
        await look_up(wme, 1999)
        assert HINT not in caplog.text
        await look_up(wme, 2001)
    assert caplog.text.count(HINT) == 1


async def test_lookups_spread_over_hours_log_no_hint(sim, caplog, client_clock):
    async with Client(**sim.client_options(), cache=Cache(ttl=1e9)) as wme:
        for _ in range(3):
            await look_up(wme, 1500)
            client_clock.offset += 3601
    assert HINT not in caplog.text


async def test_articles_of_the_real_world_are_found(shared_data):
    lines = (shared_data / "articles.ndjson").read_bytes().splitlines()
    async with Simulator(data=shared_data) as sim, Client(**sim.client_options()) as wme:
        for line in lines:
            expected = msgspec.json.decode(line, type=Article)
            filters = {"is_part_of.identifier": expected.is_part_of.identifier}
            assert await wme.articles.lookup(expected.name, filters=filters) == [expected]
