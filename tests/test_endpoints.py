"""The table of endpoints against the client, the documentation, the simulator and the published definition."""

import importlib.util
import re
from pathlib import Path

import aiohttp
import pytest

from wme_async import Article, Client, Cost, Snapshot, read_archive
from wme_async._client.resources import (  # private: the table that all endpoints are made from
    FILES,
    RESOURCES,
    Resource,
    resource_table,
)
from wme_async.models import Code
from wme_async.simulator import Simulator

ROOT = Path(__file__).resolve().parents[1]


def _load():
    spec = importlib.util.spec_from_file_location("make_endpoints", ROOT / "docs" / "make_endpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCS = _load()
ENDPOINTS = list(DOCS.endpoints())

# What the published definition has in another way, and why.
GET_OF_A_QUESTION = "the same question in the address: POST is asked instead, whose body has no limit of length"
NEWER = "announced after this definition was made"
HIDDEN = "the server has it, no definition names it"


def plain(path):
    """A path with its variables made equal; a day and an hour are two."""
    return re.sub(r"\{[^}]*\}", "{}", path.replace("{hour}", "{}/{}"))


def definition(shared_data):
    """The paths and methods of the published definition, read by their indentation."""
    endpoints = set()
    path = None
    for line in (shared_data / "wme-openapi-2026-05.yaml").read_text("utf-8").splitlines():
        if re.match(r"^\S", line):
            inside = line.startswith("paths:")
        if match := re.match(r"^  (/\S+):", line):
            path = match[1]
        elif inside and path and (match := re.match(r"^    (get|post|head|put|delete|patch):", line)):
            endpoints.add((match[1].upper(), re.sub(r"\{[^}]*\}", "{}", path)))
    return endpoints


def test_the_page_of_endpoints_is_in_step_with_the_table():
    assert DOCS.TARGET.read_text("utf-8") == DOCS.render(), "run python docs/make_endpoints.py"


def test_every_row_is_on_the_page_and_nothing_is_both_served_and_left_out():
    assert {endpoint.resource.name for endpoint in ENDPOINTS} == set(RESOURCES)
    served = {(endpoint.role, plain(endpoint.path)) for endpoint in ENDPOINTS}
    left = {(role, plain(path)) for role, paths in DOCS.LEFT_OUT.items() for path in paths}
    assert not served & left
    assert len(served) == len({endpoint.path for endpoint in ENDPOINTS if endpoint.role == "api"}) + 6


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: f"{each.method} {each.role} {each.path}")
async def test_every_call_of_the_page_is_there(endpoint):
    if not endpoint.call.startswith("wme."):
        assert endpoint.resource.name == "auth.refresh"
        return
    async with Client("user", "password") as wme:
        first, *others = endpoint.call.split(", .")
        *steps, verb = re.findall(r"(\w+)(?:\((\w*)\))?", first)[1:]
        at = wme
        for name, argument in steps:
            at = getattr(at, name)
            at = at({"hour": "2025-07-16T05", "id": "enwiki_namespace_0"}[argument]) if argument else at
        for name in (verb[0], *(other.partition("(")[0] for other in others)):
            assert callable(getattr(at, name))


def test_every_path_of_the_published_definition_is_served_and_what_differs_has_its_reason(shared_data):
    published = definition(shared_data)
    assert len({path for _, path in published}) == 25
    ours = {(endpoint.method, plain(endpoint.path)): endpoint for endpoint in ENDPOINTS if endpoint.role == "api"}
    lacking = {key: GET_OF_A_QUESTION for key in published - set(ours) if key[0] == "GET"}
    assert all(("POST", path) in ours for _, path in lacking)
    assert published - set(ours) - set(lacking) == set()
    extra = {key: reason(ours[key]) for key in set(ours) - published}
    assert all(extra.values()), extra
    assert set(extra.values()) == {NEWER, HIDDEN}


def reason(endpoint):
    if endpoint.resource.undocumented:
        return HIDDEN
    return NEWER if endpoint.resource.beta else None


def filled(path):
    """A path of the simulator's world."""
    values = {"hour": None, "snapshot": "enwiki_namespace_0", "name": "NATO"}
    if "/wikidata/" in path:
        values["snapshot"] = "wikidatawiki_namespace_0"
    identifiers = {
        "codes": "wiki",
        "languages": "en",
        "projects": "enwiki",
        "namespaces": "0",
        "files": "Ottawa_0757.jpg",
        "items": "Q42",
        "properties": "P31",
        "labels": "Q42",
        "chunks": "chunk_0",
    }
    pieces = path.split("/")
    if "{id}" in pieces:
        known = identifiers.get(pieces[pieces.index("{id}") - 1])
        values["id"] = known or ("wikidatawiki" if "/wikidata" in path else "enwiki") + "_namespace_0"
    return path, values


async def access_token(sim, wme):
    await wme.codes.list()
    return str(sim.requests.last.header("Authorization")).removeprefix("Bearer ")


async def answered(sim, session, token, method, path):
    path, values = filled(path)
    values["hour"] = sim.hours[-1].replace("T", "/")
    url = sim.api_url + path.format(**values)
    headers = {"Authorization": f"Bearer {token}"}
    async with session.request(method, url, headers=headers, allow_redirects=False) as response:
        return response.status


async def test_the_simulator_serves_every_endpoint_of_the_table(sim):
    async with Client(**sim.client_options()) as wme, aiohttp.ClientSession() as session:
        token = await access_token(sim, wme)
        for endpoint in ENDPOINTS:
            if endpoint.role == "api":
                expected = 307 if endpoint.method == "GET" else 200
                assert await answered(sim, session, token, endpoint.method, endpoint.path) == expected, endpoint


async def test_the_simulator_serves_every_path_of_the_published_definition(shared_data):
    async with Simulator() as sim, Client(**sim.client_options()) as wme, aiohttp.ClientSession() as session:
        token = await access_token(sim, wme)
        by_plain = {plain(endpoint.path): endpoint.path for endpoint in ENDPOINTS if endpoint.role == "api"}
        for method, path in sorted(definition(shared_data)):
            status = await answered(sim, session, token, method, by_plain[path])
            # The definition promises 200 for downloads too; in fact they are redirected to the object store.
            assert status == (307 if method == "GET" and path.endswith("/download") else 200), (method, path)


@pytest.mark.parametrize(("group", "tiers"), [("group_1", {"any", "free"}), ("group_2", {"any", "free", "paid"})])
async def test_the_tiers_of_the_table_are_those_of_the_simulators_plans(group, tiers):
    async with Simulator() as sim:
        sim.add_user("someone", "pw", [group])
        async with (
            Client("someone", "pw", hosts=sim.client_options()["hosts"]) as wme,
            aiohttp.ClientSession() as session,
        ):
            token = await access_token(sim, wme)
            for endpoint in ENDPOINTS:
                # Single files are for the highest group alone, which the table counts as paid.
                if endpoint.role != "api" or (endpoint.resource.name == "files" and group == "group_2"):
                    continue
                status = await answered(sim, session, token, endpoint.method, endpoint.path)
                assert (status != 403) is (endpoint.resource.tier in tiers), endpoint


@pytest.mark.middle_of_a_month
async def test_what_the_table_says_is_metered_is_what_the_simulator_counts(sim):
    pools = {"ondemand": "ondemand", "snapshot": "snapshots", "chunk": "chunks"}
    # The service counts requests only for groups with an allowance.
    sim.caps.limits["group_3"] = dict.fromkeys(pools.values(), 1000)
    async with Client(**sim.client_options()) as wme, aiohttp.ClientSession() as session:
        token = await access_token(sim, wme)
        for endpoint in ENDPOINTS:
            if endpoint.role != "api":
                continue
            before = {pool: sim.caps.used("simulated", pool) for pool in pools.values()}
            await answered(sim, session, token, endpoint.method, endpoint.path)
            spent = {pool for pool in pools.values() if sim.caps.used("simulated", pool) > before[pool]}
            said = re.findall(r"metered: (\w+)", DOCS.notes(endpoint))
            assert spent == {pools[pool] for pool in said}, endpoint


def test_a_path_can_be_replaced_and_only_by_one_with_the_same_placeholders():
    table = resource_table({"wikidata.batches": "/v2/other/{hour}/"})
    assert table["wikidata.batches"].path == "/v2/other/{hour}"
    assert [item.path for item in DOCS.endpoints(table) if item.path.startswith("/v2/other")]
    for wrong in ({"nothing": "/v2/x"}, {"batches": "/v2/x"}, {"codes": "v2/codes"}, {"codes": "/v2/{hour}"}):
        with pytest.raises(ValueError, match=r"is unknown|begin with a slash"):
            resource_table(wrong)


class ExtendedClient(Client):
    """A client with endpoints that are a row of the table and an attribute, and nothing else."""

    def __init__(self, **options):
        super().__init__(**options)
        self.copies = self._endpoint("copies")
        self.words = self._endpoint("words")
        self.pages = self._endpoint("pages")


@pytest.fixture
def rows(monkeypatch):
    """Three new rows, with paths that the simulator serves."""
    backend = RESOURCES["articles"].backend
    rows = [
        Resource(name="copies", path="/v2/snapshots", model=Snapshot, record=Article, verbs=FILES, pool="snapshot"),
        Resource(name="words", path="/v2/codes", model=Code),
        Resource(
            name="pages",
            path="/v2/articles/{name}",
            model=Article,
            verbs=("lookup",),
            backend=backend,
        ),
    ]
    for row in rows:
        monkeypatch.setitem(RESOURCES, row.name, row)


async def test_a_row_alone_gives_an_archive_all_of_its_verbs(sim, rows, tmp_path):
    async with ExtendedClient(**sim.client_options()) as wme:
        identifier = (await wme.copies.list(fields=["identifier"]))[0].identifier
        snapshot = await wme.copies.get(identifier)
        assert isinstance(snapshot, Snapshot)
        info = await wme.copies.head(identifier)
        download = await wme.copies.download(identifier, tmp_path)
        assert (download.verified, download.size) == (True, info.size)
        assert download.path == tmp_path / "copies" / f"{identifier}.tar.gz"
        async with wme.copies.read(identifier) as articles:
            records = [article async for article in articles]
        async with read_archive(download.path) as articles:
            assert records == [article async for article in articles]
        assert isinstance(records[0], Article)
        assert wme.copies.cost(identifier) == Cost(pool="snapshot", requests=1)


async def test_a_row_alone_gives_a_list_or_a_lookup_its_verbs(sim, rows):
    async with ExtendedClient(**sim.client_options(), paths={"words": "/v2/languages"}) as wme:
        words = await wme.words.list(filters={"identifier": "en"})
        assert words == [await wme.words.get("en")]
        assert sim.requests.last.path == "/v2/languages/en"
        assert (await wme.pages.lookup("NATO", limit=1))[0].name == "NATO"


def test_a_row_alone_gives_the_page_of_endpoints_its_calls(rows):
    calls = {endpoint.call for endpoint in DOCS.endpoints() if endpoint.resource.name in {"copies", "pages"}}
    assert calls == {
        "wme.copies.list()", "wme.copies.get(id)", "wme.copies.head(id)", "wme.copies.download(id), .read(id)",
        "wme.pages.lookup(name), .lookup_many(names)",
    }  # fmt: skip


def test_the_script_writes_and_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(DOCS, "TARGET", tmp_path / "endpoints.md")
    monkeypatch.setattr("sys.argv", ["make_endpoints.py"])
    assert DOCS.main() == 0
    monkeypatch.setattr("sys.argv", ["make_endpoints.py", "--check"])
    assert DOCS.main() == 0
    DOCS.TARGET.write_text("something else")
    assert DOCS.main() == 1
