"""What the user gets is what plain Python gets from all the data, or a refusal before anything is sent.

Random queries go through the client to the simulator, which answers as strangely as the real server does. After them
one test for each known trap of it.
"""

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Cache, Client, Retry
from wme_async._query.query import Query, filter_types  # private: the table of filters, for queries made from it
from wme_async.errors import DecodeError, Unauthorized
from wme_async.models import (
    Article,
    Batch,
    Code,
    Language,
    Namespace,
    Project,
    Snapshot,
    StructuredContent,
    StructuredSnapshot,
)
from wme_async.models.decoding import make_decoder
from wme_async.simulator import Simulator

EN = {"is_part_of.identifier": "enwiki"}
NOTHING = object()


# Plain Python


def picked(value, tree):
    """What a tree of names leaves of a value."""
    if not tree:
        return value
    if isinstance(value, list):
        return [{} if (left := picked(item, tree)) is NOTHING else left for item in value]
    if not isinstance(value, dict):
        return NOTHING
    selection = {key: picked(value[key], below) for key, below in tree.items() if key in value}
    return {key: left for key, left in selection.items() if left is not NOTHING} or NOTHING


def reduced(row, fields):
    if fields is None:
        return row
    tree: dict[str, Any] = {}
    for name in fields:
        if any(name.startswith(f"{other}.") for other in fields):
            continue
        at = tree
        for segment in name.split("."):
            at = at.setdefault(segment, {})
    left = picked(row, tree)
    return {} if left is NOTHING else left


def matches(row, filters):
    for name, wanted in filters.items():
        at = row
        *objects, last = name.split(".")
        for segment in objects:
            at = at.get(segment) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            return False
        current = at.get(last)
        current = type(wanted)() if current is None else current
        if current != wanted or isinstance(current, bool) is not isinstance(wanted, bool):
            return False
    return True


def decoded(rows, model):
    decode = make_decoder(model, use_orjson=False)
    return [decode(msgspec.json.encode(row)) for row in rows]


def paths(value, prefix=""):
    """All dotted names in a record, through lists too."""
    if isinstance(value, list):
        for item in value:
            yield from paths(item, prefix)
    elif isinstance(value, dict):
        for key, below in value.items():
            if "." not in key:
                yield f"{prefix}{key}"
                yield from paths(below, f"{prefix}{key}.")


def values_at(rows, name):
    for row in rows:
        at = row
        for segment in name.split("."):
            at = at.get(segment) if isinstance(at, dict) else None
        if isinstance(at, str | int | float):
            yield at


class Ground:
    """Some records, their model, and the queries that can be put about them."""

    def __init__(self, rows, backend, model):
        self.rows = rows
        self.model = model
        known = sorted({name for row in rows for name in paths(row)})
        self.fields = [name for name in known if self._asked(backend, name)]
        kinds = filter_types(model, backend)
        odd: dict[type, list[Any]] = {
            str: ["", "Can't", "no such", "a\nb", "%", "*"],
            int: [0, 1, -1, 1_000_000, 2**53 + 1],
            float: [0.0, 0.5, -1],
            bool: [False, True],
        }
        self.filters = {
            name: sorted({*values_at(rows, name)}, key=repr)[:20] + odd[kind] for name, kind in kinds.items()
        }
        # What is not in any record finds nothing, which is not worth most of the examples.
        self.told = [name for name in self.filters if any(True for _ in values_at(rows, name))]

        conditions = {name: st.tuples(st.just(name), st.sampled_from(values)) for name, values in self.filters.items()}
        condition = st.sampled_from(self.told or list(conditions)) | st.sampled_from(list(conditions))
        self.queries = st.tuples(
            st.none() | st.lists(st.sampled_from(self.fields), min_size=1, max_size=4, unique=True),
            st.lists(condition.flatmap(conditions.__getitem__), max_size=3).map(dict),
        )

    def _asked(self, backend, name):
        try:
            Query.build(backend, self.model, fields=[name])
        except ValueError:
            return False
        return True


class World:
    """A simulator and a client in a loop of their own, and everything that is in there."""

    def __init__(self):
        self.runner = asyncio.Runner()
        self.sim = Simulator(seed=5)
        self.run(self._open())
        self.collections = self.run(self.lists())
        self.seen: Counter[tuple[str, object]] = Counter()

    async def _open(self):
        await self.sim.__aenter__()
        self.wme = Client(**self.sim.client_options(), retry=Retry(attempts=1))
        await self.wme.auth.login()

    async def lists(self):
        hour = self.sim.hours[-1]
        level = {}
        for key, model, collection in (
            ("codes", Code, self.wme.codes),
            ("languages", Language, self.wme.languages),
            ("projects", Project, self.wme.projects),
            ("namespaces", Namespace, self.wme.namespaces),
            ("snapshots", Snapshot, self.wme.snapshots),
            ("structured-snapshots", StructuredSnapshot, self.wme.structured_snapshots),
            (f"batches/{hour.replace('T', '/')}", Batch, self.wme.batches(hour)),
        ):
            rows = [json.loads(json.dumps(row)) for row in await self.sim.catalog.rows(key) or []]
            level[key.partition("/")[0]] = (Ground(rows, "metadata", model), collection)
        return level

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def close(self):
        self.run(self.wme.aclose())
        self.run(self.sim.__aexit__(None, None, None))
        self.runner.close()

    def pages(self, title):
        """All pages of a title, as they are stored."""
        articles = (self.sim.pages.article(project, title.replace(" ", "_")) for project in self.sim.pages.projects)
        return [json.loads(json.dumps(record)) for record in articles if record is not None]


@pytest.fixture(scope="module")
def world():
    opened_world = World()
    # Pages with what the server leaves out, and with an object that is not there at all.
    odd: list[tuple[str, dict[str, Any]]] = [
        ("enwiki", {"version": {"identifier": 5_000_000, "is_minor_edit": True, "comment": "it's"}}),
        ("dewiki", {"version": {"identifier": 7}, "watchers_count": 12}),
        ("frwiki", {}),
        ("frwiktionary", {"version": {"identifier": 7, "comment": "x"}}),
        ("simplewiki", {"abstract": "short", "protection": [{"type": "edit", "level": "sysop"}]}),
    ]
    for number, (project, more) in enumerate(odd):
        language = project.removesuffix("wiki").removesuffix("wiktionary")
        opened_world.sim.catalog.languages[project] = language
        if project not in opened_world.sim.pages.projects:
            row = {"identifier": project, "in_language": {"identifier": language}}
            opened_world.sim.catalog.static["projects"].append(row)
        opened_world.sim.pages.add(
            {
                "name": "Odd",
                "identifier": number,
                "in_language": {"identifier": language},
                "namespace": {"identifier": 0},
                "is_part_of": {"identifier": project, "url": f"https://{project}"},
                **more,
            }
        )
    opened_world.collections = opened_world.run(opened_world.lists())
    yield opened_world
    opened_world.close()


@given(data=st.data())
def test_a_random_query_of_metadata_gives_what_plain_python_does(world, data):
    ground, collection = world.collections[data.draw(st.sampled_from(sorted(world.collections)))]
    fields, filters = data.draw(ground.queries)
    # Nothing is refused: what the server cannot compare is compared here.
    records = world.run(collection.list(fields=fields, filters=filters))
    expected = [reduced(row, fields) for row in ground.rows if matches(row, filters)]
    assert records == decoded(expected, ground.model)
    world.seen["metadata", bool(records)] += 1


@pytest.fixture(scope="module")
def grounds(world):
    titles = {title: world.pages(title) for title in ("NATO", "Odd", "AC/DC")}
    articles = {title: Ground(rows, "ondemand", Article) for title, rows in titles.items()}
    structured = {}
    for title, rows in titles.items():
        contents = [json.loads(json.dumps(world.sim.pages.structured(row))) for row in rows]
        structured[title] = Ground(contents, "structured", StructuredContent)
    return {"articles": articles, "structured_contents": structured}


COMPUTED = {"description", "infoboxes", "sections", "tables", "references", "attribution"}


@pytest.mark.parametrize("which", ["articles", "structured_contents"])
@given(data=st.data())
def test_a_random_lookup_gives_what_plain_python_does_or_is_refused(world, grounds, which, data):
    title = data.draw(st.sampled_from(["NATO", "Odd", "AC/DC"]))
    ground = grounds[which][title]
    fields, filters = data.draw(ground.queries)
    narrow = data.draw(st.sampled_from([None, "is_part_of.identifier", "in_language.identifier"]))
    if narrow is not None:
        filters = {**filters, narrow: data.draw(st.sampled_from(sorted({*values_at(ground.rows, narrow)})))}
    limit = data.draw(st.none() | st.integers(1, 10))
    before = world.sim.requests.total
    try:
        records = world.run(getattr(world.wme, which).lookup(title, fields=fields, filters=filters, limit=limit))
    except ValueError:
        assert world.sim.requests.total == before
        assert refusable(filters)
        world.seen[which, "refused"] += 1
        return
    expected = sorted(
        (row for row in ground.rows if matches(row, filters)), key=lambda row: row["is_part_of"]["identifier"]
    )
    everything = decoded([reduced(row, fields) for row in expected], ground.model)
    assert len(records) == min(len(everything), limit or 3)
    # Of more than there may be, the server picks at random, and they come in the order of projects.
    left = iter(everything)
    assert all(record in left for record in records)
    world.seen[which, bool(records)] += 1


def refusable(filters):
    later = {name for name in filters if name not in {"is_part_of.identifier", "in_language.identifier"}}
    if filters.get("is_part_of.identifier"):
        return False
    blind = any(
        (not value and name != "namespace.identifier") or name.partition(".")[0] in COMPUTED
        or (isinstance(value, int) and abs(value) > 2**53)
        for name, value in filters.items()
    )  # fmt: skip
    return blind or bool(later and "in_language.identifier" not in filters)


def test_random_queries_were_neither_all_refused_nor_all_empty(world):
    if not world.seen:
        pytest.skip("the random queries did not run in this process")
    for which in {which for which, _ in world.seen}:
        assert world.seen[which, True] > 5
        assert world.seen[which, False] > 5


async def test_real_lists_have_the_counts_of_plain_python(shared_data):
    async with Simulator(data=shared_data) as sim, Client(**sim.client_options()) as wme:
        hour = wme.batches(sim.hours[-1])
        for name, collection, total in (("projects", wme.projects, 892), ("batches", hour, 566)):
            rows = json.loads((shared_data / f"{name}.json").read_text("utf-8"))
            assert len(rows) == total
            names = ["in_language.identifier"] + (["code"] if name == "projects" else ["is_part_of.identifier"])
            for field in names:
                counts = Counter(values_at(rows, field))
                for value, count in [counts.most_common(1)[0], counts.most_common()[-1]]:
                    records = await collection.list(filters={field: value}, fields=["identifier"])
                    expected = sorted(row["identifier"] for row in rows if matches(row, {field: value}))
                    assert sorted(record.identifier for record in records) == expected
                    assert len(records) == count
        zero = await hour.list(filters={"namespace.identifier": 0}, fields=["identifier", "namespace"])
        rows = json.loads((shared_data / "batches.json").read_text("utf-8"))
        assert len(zero) == sum(row["namespace"].get("identifier", 0) == 0 for row in rows)


# The traps, one by one


@pytest.fixture
async def wme(sim):
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as client:
        yield client


def last_body(sim):
    return json.loads([request for request in sim.requests if request.role == "api"][-1].body)


def stream(**arguments):
    return Query.build("realtime", Article, **arguments)


def test_sizes_are_asked_of_the_stream_by_the_name_it_knows():
    assert "version.sizes.*" in stream(fields=["version.size"]).body()["fields"]


def test_the_two_sides_of_a_probability_are_not_swapped_on_the_stream():
    asked = stream(fields=["version.scores.revertrisk.probability.true"])
    assert "version.scores.revertrisk.probability.falsy" in asked.body()["fields"]


def test_half_a_visibility_is_not_made_up_on_the_stream():
    query = stream(fields=["visibility.text"])
    assert "visibility.*" in query.body()["fields"]
    whole = {"visibility": {"text": True, "editor": True, "comment": True}, "event": {"identifier": "x"}}
    assert query.apply(whole)["visibility"] == {"text": True}


def test_a_large_number_is_found_on_the_stream():
    query = stream(filters={"identifier": 5_000_000})
    assert "filters" not in query.body()
    assert query.keep({"identifier": 5_000_000})
    assert not query.keep({"identifier": 5_000_001})


@pytest.mark.parametrize("where", ["projects", "articles", "stream"])
@pytest.mark.parametrize("value", [None, [], ["x"], {}, {"a": 1}])
async def test_null_and_what_is_no_value_never_reach_the_server(sim, wme, where, value):
    with pytest.raises((ValueError, TypeError)):
        if where == "projects":
            await wme.projects.list(filters={"name": value})
        elif where == "articles":
            await wme.articles.lookup("NATO", filters={"name": value})
        else:
            stream(filters={"name": value})
    assert sim.requests.count() == 0


@pytest.mark.parametrize("backend", ["realtime", "ondemand"])
def test_a_filter_on_a_list_which_would_pass_empty_ones_is_refused(backend):
    with pytest.raises(ValueError, match="list or inside one"):
        Query.build(backend, Article, filters={"categories.name": "x"})


def test_one_field_under_two_names_is_not_filtered_twice():
    with pytest.raises(ValueError, match="twice"):
        stream(filters={"visibility.user": True, "visibility.editor": False})


async def test_every_question_is_a_post_that_says_it_is_json(sim, wme):
    await wme.projects.list(fields=["name"])
    await wme.projects.get("enwiki", fields=["name"])
    await wme.articles.lookup("NATO", fields=["name"])
    await wme.structured_contents.lookup("NATO", fields=["name"])
    await wme.wikidata.items.get("Q42", fields=["name"])
    await wme.files.get("Ottawa 0757.jpg", fields=["name"])
    async with wme.realtime.articles(fields=["name"]) as events:
        waiting = asyncio.ensure_future(anext(aiter(events)))
        await sim.requests.wait(1, role="realtime")
        waiting.cancel()
        await asyncio.wait([waiting])
    asked = [request for request in sim.requests if request.role in {"api", "realtime"}]
    assert len(asked) == 7
    assert {request.method for request in asked} == {"POST"}
    assert {request.header("Content-Type") for request in asked} == {"application/json"}
    # Another kind would be answered with all fields, and without an error.
    assert {request.header("Accept") for request in asked} <= {"application/json", "application/x-ndjson"}


async def test_a_number_filters_metadata_by_equality(wme):
    records = await wme.namespaces.list(filters={"identifier": 6})
    assert [record.identifier for record in records] == [6]


async def test_a_boolean_filter_of_metadata_is_not_dropped(sim, wme):
    # No record of metadata has one today; the models of pages do, and follow the same rules.
    rows: list[dict[str, Any]] = [{"version": {"is_minor_edit": True}}, {"version": {}}, {}]
    query = Query.build("metadata", Article, filters={"version.is_minor_edit": False})
    assert "filters" not in query.body()
    assert [query.apply(row) for row in rows] == [None, {"version": {}}, None]


async def test_an_apostrophe_does_not_break_a_filter_of_metadata(sim, wme):
    sim.catalog.static["languages"].append({"identifier": "nqo", "name": "N'Ko", "direction": "rtl"})
    assert [record.identifier for record in await wme.languages.list(filters={"name": "N'Ko"})] == ["nqo"]


async def test_dotted_fields_of_metadata_come_back_nested(wme):
    (record,) = await wme.projects.list(fields=["in_language.identifier"], filters={"identifier": "enwiki"})
    assert record == Project(in_language=Language(identifier="en"))


@pytest.mark.parametrize("fields", [["*"], ["*", "name"], None])
async def test_a_star_means_everything_everywhere(sim, wme, fields):
    assert (await wme.projects.list(fields=fields)) == (await wme.projects.list())
    assert (await wme.articles.lookup("NATO", fields=fields, filters=EN)) == await wme.articles.lookup(
        "NATO", filters=EN
    )
    assert "fields" not in last_body(sim)
    assert "fields" not in stream(fields=fields).body()


async def test_an_object_and_its_star_are_the_same_everywhere(wme):
    for star in ("is_part_of", "is_part_of.*"):
        (record,) = await wme.articles.lookup("NATO", fields=[star], filters=EN)
        assert record.is_part_of.url
        (project,) = await wme.projects.list(
            filters={"identifier": "enwiki"}, fields=[star.replace("is_part_of", "in_language")]
        )
        assert project.in_language.identifier == "en"
        assert "is_part_of.*" in stream(fields=[star]).body()["fields"]


async def test_a_name_inside_a_list_gives_a_list(sim, wme):
    (whole,) = await wme.articles.lookup("NATO", filters=EN, fields=["categories"])
    (names,) = await wme.articles.lookup("NATO", filters=EN, fields=["categories.name"])
    assert whole.categories
    assert [category.name for category in names.categories] == [category.name for category in whole.categories]
    assert not any(category.url for category in names.categories)
    assert last_body(sim)["fields"] == ["categories"]


@pytest.mark.parametrize(("name", "value"), [("version.is_minor_edit", False), ("watchers_count", 0), ("abstract", "")])
async def test_what_the_server_leaves_out_is_found_or_refused(sim, wme, name, value):
    bare = {"name": "Bare", "identifier": 1, "is_part_of": {"identifier": "enwiki"}, "version": {"identifier": 1}}
    sim.pages.add(bare)
    assert await wme.articles.lookup("Bare", filters={**EN, name: value})
    sim.pages.add({**bare, "version": {"is_minor_edit": True}, "watchers_count": 3, "abstract": "x"})
    assert not await wme.articles.lookup("Bare", filters={**EN, name: value})
    before = sim.requests.count()
    with pytest.raises(ValueError, match="cannot be answered"):
        await wme.articles.lookup("Bare", filters={name: value})
    assert sim.requests.count() == before


async def test_a_later_field_does_not_take_away_from_an_earlier_one(wme):
    for fields in (["version", "version.identifier"], ["version.identifier", "version"]):
        (record,) = await wme.articles.lookup("NATO", filters=EN, fields=fields)
        assert record.version.editor is not None


async def test_tables_can_be_asked_for_alone_and_sections_by_their_old_name(sim, wme):
    (record,) = await wme.structured_contents.lookup("NATO", filters=EN, fields=["tables"])
    assert record.tables
    assert not record.sections
    assert not record.name
    assert set(last_body(sim)["fields"]) == {"tables", "sections"}
    (record,) = await wme.structured_contents.lookup("NATO", filters=EN, fields=["article_sections"])
    assert record.sections
    assert not record.name


@pytest.mark.parametrize("fields", [["article_body.html"], ["categories"], ["event"]])
async def test_what_structured_contents_would_ignore_is_refused(sim, wme, fields):
    with pytest.raises(ValueError, match=r"not served on demand|has no field"):
        await wme.structured_contents.lookup("NATO", fields=fields)
    assert sim.requests.count() == 0


@pytest.mark.parametrize("limit", [0, 11, 50, 100, 101, True, "3"])
async def test_a_limit_has_one_rule_and_one_error(sim, wme, limit):
    with pytest.raises((ValueError, TypeError), match=r"limit (is|must be)"):
        await wme.articles.lookup("NATO", limit=limit)
    assert sim.requests.count() == 0


async def test_the_ninety_first_refresh_is_a_sign_in():
    async with Simulator(expires_in=600) as sim, Client(**sim.client_options()) as wme:
        for _ in range(92):
            await wme.codes.get("wiki", fields=["name"])
            sim.clock.advance(601)
        assert sim.requests.count("auth", path="login") == 2
        assert sim.requests.count("auth", path="refresh", status=200) == 90


async def test_a_refused_sign_in_says_that_it_may_be_the_servers_trouble_and_is_not_repeated(sim):
    options = {**sim.client_options(), "password": "wrong"}
    async with Client(**options) as wme:
        with pytest.raises(Unauthorized):
            await wme.codes.list()
    assert sim.requests.count("auth", path="login") == 1
    sim.faults.inject("status", role="auth", status=422, message="Internal error, please try again later.")
    async with Client(**sim.client_options()) as wme:
        with pytest.raises(Unauthorized, match="rejects the form of the user name"):
            await wme.codes.list()


async def test_after_signing_out_a_new_sign_in_is_made_whatever_the_server_remembers(sim, wme):
    await wme.codes.list()
    old = sim.requests.last.header("Authorization")
    await wme.auth.revoke()
    await wme.codes.list()
    assert sim.requests.last.header("Authorization") != old
    assert sim.requests.count("auth", path="login") == 2


async def test_a_challenge_beside_valid_tokens_asks_for_nothing(sim):
    sim.add_user("local", "pw", challenge="PASSWORD_VERIFIER")
    async with Client("local", "pw", hosts=sim.client_options()["hosts"]) as wme:
        assert await wme.codes.list()


async def test_the_free_plan_gets_older_archives_under_the_same_identifiers_and_they_are_proven(sim, wme, tmp_path):
    sim.add_user("free", "pw", ["group_1"])
    async with Client("free", "pw", hosts=sim.client_options()["hosts"]) as free:
        theirs = await free.snapshots.get("dewiki_namespace_0")
        ours = await wme.snapshots.get("dewiki_namespace_0")
        assert theirs.date_modified <= ours.date_modified
        done = await free.snapshots.download("dewiki_namespace_0", tmp_path)
        assert done.verified
        assert done.version == theirs.version


async def test_metadata_that_are_no_objects_are_told(sim, wme):
    sim.faults.inject("status", role="api", status=200, body=b"[1, 2]", times=None)
    for filters in (None, {"code": "wiki"}, {"code": ""}):
        with pytest.raises(DecodeError):
            await wme.projects.list(filters=filters)


# What gateways say with a status of success

SAID = [
    b'{"message":"Forbidden"}',
    b'{"error": {"code": 7}, "path": "/v2"}',
    b'{"timestamp":1,"status":404,"Error":"Not Found"}\n',
    b'[{"errors":[{"detail":"x"}]}]',
]
NATO = {"is_part_of.identifier": "enwiki"}
ASKED = {
    "lists": lambda wme: wme.projects.list(),
    "lists_filtered_here": lambda wme: wme.projects.list(filters={"code": ""}),
    "batches": lambda wme: wme.batches("2025-07-16T05").get("enwiki_namespace_0"),
    "dotted_fields": lambda wme: wme.snapshots.get("enwiki_namespace_0", fields=["size.value"]),
    "articles": lambda wme: wme.articles.lookup("NATO", filters=NATO),
    "articles_reduced_here": lambda wme: wme.articles.lookup("NATO", filters=NATO, fields=["version.identifier"]),
    "structured": lambda wme: wme.structured_contents.lookup("NATO", filters=NATO),
    "entities": lambda wme: wme.wikidata.items.get("Q42"),
    "labels": lambda wme: wme.wikidata.labels.get("Q42"),
    "files": lambda wme: wme.files.get("Ottawa 0757.jpg"),
}


@pytest.mark.parametrize("body", SAID)
@pytest.mark.parametrize("asked", ASKED)
async def test_an_error_under_a_status_of_success_is_no_empty_record(sim, wme, asked, body):
    sim.faults.inject("status", role="api", status=200, body=body, times=None)
    with pytest.raises(DecodeError) as caught:
        await ASKED[asked](wme)
    if asked != "labels" or b"Forbidden" in body:  # the others are no labels either
        assert "an error in place of" in str(caught.value)
        assert body.decode().strip("[]\n") in str(caught.value)
    assert (caught.value.record or b"").strip(b"[]\n") == body.strip(b"[]\n")


async def test_an_error_under_a_status_of_success_is_the_error_of_each_title_and_never_kept(sim):
    async with Client(**sim.client_options(), cache=Cache()) as wme:
        fault = sim.faults.inject("status", role="api", status=200, body=SAID[0], times=None)
        async with wme.articles.lookup_many(["NATO", "Marie Curie"], filters=NATO) as results:
            assert [type(result.error) for result in [one async for one in results]] == [DecodeError, DecodeError]
        fault.remove()
        (record,) = await wme.articles.lookup("NATO", filters=NATO)
    assert record.name == "NATO"


async def test_an_error_in_place_of_metadata_does_not_leave_an_archive_unproven(sim, wme, tmp_path):
    sim.faults.inject("status", role="api", method="POST", path="/v2/snapshots", status=200, body=SAID[0], times=None)
    with pytest.raises(DecodeError, match="Forbidden"):
        await wme.snapshots.download("enwiki_namespace_0", tmp_path)


async def test_an_error_in_place_of_the_account_is_not_one_without_groups(sim, wme):
    sim.faults.inject("status", role="auth", path="get-user", status=200, body=SAID[0], times=None)
    with pytest.raises(DecodeError, match="Forbidden"):
        await wme.auth.quota()


@pytest.mark.parametrize("body", [b"{}", b"[{}]", b'{"new":1}', b'{"identifier":"enwiki_namespace_0","message":"x"}'])
async def test_a_record_of_which_nothing_is_left_or_known_is_one_all_the_same(sim, wme, body):
    sim.faults.inject("status", role="api", method="POST", status=200, body=body)
    assert type(await wme.snapshots.get("enwiki_namespace_0", fields=["identifier"])).__name__ == "Snapshot"


async def test_the_stream_knows_every_name_that_is_accepted_for_it(sim):
    """A name of the model that the server does not know is an error here, and not a 422 of the server."""
    leaves = filter_types(Article, "ondemand")
    names = {name.rsplit(".", level)[0] for name in leaves for level in range(name.count(".") + 1)}
    fields = []
    async with Client(**sim.client_options()) as wme:
        for name in sorted(names):
            with contextlib.suppress(ValueError):
                wme.realtime.articles(fields=[name])
                fields.append(name)
        assert len(fields) > 100
        async with wme.realtime.articles(fields=fields) as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await sim.requests.wait(1, role="realtime", path="/v2/articles")
            sim.firehose.publish()
            await waiting
