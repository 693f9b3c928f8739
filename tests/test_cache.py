"""Answers that are kept: bounded, fetched once however many ask, and never an error."""

import asyncio
from collections import OrderedDict
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Cache, Client, Retry
from wme_async.errors import DecodeError, NotFound, ServerError
from wme_async.simulator import Simulator

EN = {"is_part_of.identifier": "enwiki"}


class Source:
    """Answers when it is told to, and counts."""

    def __init__(self, *, held=False, size=10, error=None):
        self.calls = 0
        self.cancelled = 0
        self.size = size
        self.error = error
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self):
        self.calls += 1
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return SimpleNamespace(status=200, body=b"x" * self.size)


class Now:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def fetch(cache, source, key="k", *, ttl=100.0, now=None):
    return cache.fetch(key, source, ttl=ttl, monotonic=now or Now())


async def test_an_answer_is_kept_until_its_time_is_over():
    cache, source, now = Cache(), Source(), Now()
    first = await fetch(cache, source, now=now)
    now.seconds = 99.9
    assert await fetch(cache, source, now=now) is first
    now.seconds = 100.0
    assert await fetch(cache, source, now=now) is not first
    assert source.calls == 2
    assert (cache.hits, cache.misses, len(cache)) == (1, 2, 1)
    assert "1 entries" in repr(cache)


async def test_many_that_ask_at_once_are_one_request():
    cache, source = Cache(), Source(held=True)
    asking = [asyncio.create_task(fetch(cache, source)) for _ in range(20)]
    await source.began.wait()
    source.go.set()
    answers = [await task for task in asking]
    assert source.calls == 1
    assert all(answer is answers[0] for answer in answers)


async def test_an_error_reaches_all_that_wait_and_is_not_kept():
    cache, source = Cache(), Source(held=True, error=NotFound("no", status=404))
    asking = [asyncio.create_task(fetch(cache, source)) for _ in range(3)]
    await source.began.wait()
    source.go.set()
    for task in asking:
        with pytest.raises(NotFound):
            await task
    assert source.calls == 1
    assert len(cache) == 0
    source.error = None
    assert (await fetch(cache, source)).status == 200


@pytest.mark.parametrize("which", [0, 1])
async def test_one_that_is_cancelled_does_not_cancel_the_others(which):
    cache, source = Cache(), Source(held=True)
    asking = [asyncio.create_task(fetch(cache, source)) for _ in range(2)]
    await source.began.wait()
    asking[which].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking[which]
    source.go.set()
    assert (await asking[1 - which]).status == 200
    assert source.cancelled == 0


async def test_the_last_that_is_cancelled_cancels_the_request_and_leaves_nothing():
    cache, source = Cache(), Source(held=True)
    asking = [asyncio.create_task(fetch(cache, source)) for _ in range(2)]
    await source.began.wait()
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert source.cancelled == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "wme-cache-fetch"]
    source.go.set()
    assert (await fetch(cache, source)).status == 200
    assert source.calls == 2


async def test_whoever_comes_while_a_request_is_being_cancelled_gets_one_of_his_own():
    cache, source = Cache(), Source(held=True)
    first = asyncio.create_task(fetch(cache, source))
    await source.began.wait()
    first.cancel()
    second = asyncio.create_task(fetch(cache, source))
    await asyncio.wait([first])
    source.go.set()
    assert (await second).status == 200


async def test_clearing_forgets_what_is_kept_and_not_what_is_on_its_way():
    cache, source = Cache(), Source()
    await fetch(cache, source)
    cache.clear()
    assert (len(cache), cache.size) == (0, 0)
    source.go.clear()
    asking = asyncio.create_task(fetch(cache, source))
    await asyncio.sleep(0)
    cache.clear()
    source.go.set()
    await asking
    assert len(cache) == 1


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 60_000)), max_size=40), st.integers(1, 6))
def test_bounds_hold_and_the_least_recently_used_is_dropped_first(calls, max_entries):
    async def run():
        cache = Cache(max_entries=max_entries, max_bytes=50_000)
        await fetch(cache, Source(size=0), "first")
        overhead = cache.size
        expected = OrderedDict({"first": overhead})
        for key, size in calls:
            source = Source(size=size)
            await fetch(cache, source, key)
            assert source.calls == (key not in expected)
            if key in expected or size + overhead <= 50_000:
                expected[key] = expected.pop(key, size + overhead)
            while len(expected) > max_entries or sum(expected.values()) > 50_000:
                expected.popitem(last=False)
            assert len(cache) == len(expected)
            assert cache.size == sum(expected.values())

    asyncio.run(run())


async def test_a_response_above_the_bound_is_not_kept_and_drops_no_other():
    cache, small = Cache(max_bytes=10_000), Source()
    await fetch(cache, small, "small")
    await fetch(cache, Source(size=10_001), "large")
    await fetch(cache, small, "small")
    assert (len(cache), small.calls) == (1, 1)


@pytest.mark.parametrize("name", ["max_entries", "max_bytes", "ttl", "metadata_ttl"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_bounds_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Cache(**{name: value})


@pytest.mark.parametrize("value", ["60", None, True])
def test_bounds_that_are_no_numbers_are_refused(value):
    with pytest.raises(TypeError, match=r"Cache\.ttl must be a number, not"):
        Cache(ttl=value)


def test_a_request_of_another_event_loop_is_not_joined():
    cache, source = Cache(), Source(held=True)
    other = asyncio.new_event_loop()
    task = other.create_task(fetch(cache, source))
    other.run_until_complete(source.began.wait())
    assert asyncio.run(fetch(cache, Source())).status == 200
    task.cancel()
    other.run_until_complete(asyncio.wait([task]))
    other.close()


# In a client


@pytest.fixture
async def wme(sim):
    async with Client(**sim.client_options(), cache=Cache(), retry=Retry(base=0, cap=0)) as client:
        yield client


@pytest.mark.middle_of_a_month
async def test_a_repeated_lookup_costs_nothing(sim, wme):
    first = await wme.articles.lookup("NATO", limit=3)
    assert await wme.articles.lookup("NATO", limit=3) == first
    assert await wme.articles.lookup("NATO", limit=2) != first
    assert sim.requests.count("api", path="NATO") == 2
    assert (await wme.auth.quota()).ondemand.used == 2


async def test_a_thousand_repeats_at_once_are_one_request(sim, wme):
    async with wme.articles.lookup_many(["NATO"] * 300, filters=EN, concurrency=100) as results:
        assert [result.found for result in [looked async for looked in results]] == [True] * 300
    assert sim.requests.count("api") == 1


async def test_entities_files_and_metadata_are_kept_and_archives_are_not(sim, wme):
    for _ in range(2):
        await wme.wikidata.items.get("Q42")
        await wme.wikidata.labels.get("Q42")
        await wme.files.get("Ottawa 0757.jpg")
        for name in ("codes", "languages", "projects", "namespaces"):
            await getattr(wme, name).list()
        await wme.projects.get("enwiki")
        await wme.snapshots.list()
        await wme.batches(sim.hours[-1]).get("enwiki_namespace_0")
    counts = {
        request.path: sim.requests.count(path=f"{request.path}$") for request in sim.requests if request.role == "api"
    }
    assert counts.pop("/v2/snapshots") == 2
    assert [counts.pop(path) for path in list(counts) if path.startswith("/v2/batches")] == [2]
    assert set(counts.values()) == {1}
    assert len(counts) == 8


async def test_errors_are_asked_again(sim, wme):
    for _ in range(2):
        assert await wme.articles.lookup("No such page") == []
    assert sim.requests.count("api") == 2
    sim.faults.inject("status", role="api", status=500, times=5)
    with pytest.raises(ServerError):
        await wme.projects.list()
    assert await wme.projects.list()


@pytest.mark.parametrize("what", ["list", "get", "lookup", "many", "entity", "labels", "page"])
async def test_an_answer_that_cannot_be_read_is_asked_for_again(sim, wme, what):
    async def many():
        async with wme.articles.lookup_many(["NATO"], filters=EN) as results:
            return [looked.unwrap() async for looked in results]

    ask = {
        "list": wme.projects.list,
        "get": lambda: wme.projects.get("enwiki"),
        "lookup": lambda: wme.articles.lookup("NATO", filters=EN),
        "many": many,
        "entity": lambda: wme.wikidata.items.get("Q42"),
        "labels": lambda: wme.wikidata.labels.get("Q42"),
        "page": lambda: wme.files.get("Ottawa 0757.jpg"),
    }[what]
    sim.faults.inject("status", role="api", status=200, body=b"<html><title>Pay for the Wi-Fi</title></html>")
    with pytest.raises(DecodeError):
        await ask()
    assert await ask()
    assert await ask()
    assert sim.requests.count("api") == 2


async def test_accounts_that_share_a_cache_do_not_see_each_others_answers():
    async with Simulator() as sim:
        sim.add_user("other", "pw", ["group_3"])
        options, cache = sim.client_options(), Cache()
        async with (
            Client(**options, cache=cache) as one,
            Client(**options, cache=cache) as same,
            Client("other", "pw", hosts=options["hosts"], cache=cache) as other,
        ):
            await one.codes.list()
            token = str(sim.requests.last.header("Authorization")).removeprefix("Bearer ")
            before = sim.requests.count("api")
            async with (
                Client(access_token=token, hosts=options["hosts"], cache=cache) as third,
                Client(access_token=token, hosts=options["hosts"], cache=cache) as fourth,
            ):
                for wme, total in ((one, 1), (same, 1), (other, 2), (third, 3), (fourth, 4)):
                    await wme.articles.lookup("NATO")
                    assert sim.requests.count("api") - before == total


async def test_a_client_that_is_closed_takes_no_answer_away_from_another(sim):
    options, cache = sim.client_options(), Cache()
    async with Client(**options, cache=cache) as staying:
        async with Client(**options, cache=cache) as leaving:
            hang = sim.faults.inject("hang_head", role="api", path="NATO")
            first = asyncio.create_task(leaving.articles.lookup("NATO", filters=EN))
            while not hang.hits:  # noqa: ASYNC110  # nobody tells when
                await asyncio.sleep(0)
            others = [asyncio.create_task(staying.articles.lookup("NATO", filters=EN)) for _ in range(3)]
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
        results = [await other for other in others]
        assert results[0]
        assert results == results[:1] * 3
        assert sim.requests.count("api", path="NATO") == 2


async def test_each_kind_of_response_has_its_time(sim, client_clock):
    async with Client(**sim.client_options(), cache=Cache(ttl=10, metadata_ttl=1000)) as wme:
        for seconds, total in ((0, 3), (5, 3), (11, 5), (900, 7), (1001, 10)):
            client_clock.offset = seconds
            await wme.articles.lookup("NATO")
            await wme.projects.list()
            await wme.files.get("Ottawa 0757.jpg")
            assert sim.requests.count("api") == total, seconds
