"""Wikidata and media files against the simulator: look-ups, labels, archives, and bytes that are proven."""

import asyncio
import hashlib
import threading
from typing import Any

import msgspec
import pytest
from wall_clock import MIDDLE_OF_A_MONTH

from wme_async import Client, Progress, Retry
from wme_async.errors import DecodeError, Forbidden, IntegrityError, NotFound
from wme_async.models import WikidataArticle, WikidataEntity
from wme_async.simulator import Simulator

AT_ONCE = Retry(base=0, cap=0)


@pytest.fixture
async def wme(sim):
    async with Client(**sim.client_options(), retry=AT_ONCE) as client:
        yield client


async def test_items_and_properties_are_got_by_identifier(wme):
    item = await wme.wikidata.items.get("Q42")
    assert isinstance(item, WikidataArticle)
    assert (item.name, item.entity.type) == ("Q42", "item")
    assert item.entity.labels["en"]
    prop = await wme.wikidata.properties.get("P31")
    assert (prop.name, prop.entity.type) == ("P31", "property")


@pytest.mark.parametrize("shape", ["maps", "lists", "single", "mixed"])
async def test_an_entity_has_one_form_in_each_shape_that_the_beta_leaves_open(sim, wme, shape):
    sim.entities.shape = shape
    entity = (await wme.wikidata.items.get("Q42")).entity
    assert entity.statements
    for name, group in entity.statements.items():
        assert isinstance(group, tuple)
        assert {statement.property.identifier for statement in group} == {name}
        assert all(
            isinstance(statement.qualifiers, tuple) and isinstance(statement.references, tuple) for statement in group
        )


@pytest.mark.parametrize("shape", ["maps", "lists", "single", "mixed"])
async def test_fields_inside_statements_are_found_in_each_shape_that_the_beta_leaves_open(sim, wme, shape):
    sim.entities.shape = shape
    whole = (await wme.wikidata.items.get("Q42")).entity
    named = await wme.wikidata.items.get("Q42", fields=["name", "entity.statements.P31"])
    assert named == WikidataArticle(name="Q42", entity=WikidataEntity(statements={"P31": whole.statements["P31"]}))
    parts = await wme.wikidata.items.get(
        "Q42", fields=["entity.statements.P31.rank", "entity.statements.P31.qualifiers.property.identifier"]
    )
    (group,) = parts.entity.statements.values()
    assert [statement.rank for statement in group] == [statement.rank for statement in whole.statements["P31"]]
    assert [[one.property.identifier for one in statement.qualifiers] for statement in group] == [
        [one.property.identifier for one in statement.qualifiers] for statement in whole.statements["P31"]
    ]


async def test_fields_are_asked_for_and_nothing_else_is_handed_out(sim, wme):
    item = await wme.wikidata.items.get("Q42", fields=["name", "entity.labels.en"])
    assert sim.requests.last.body == b'{"fields":["name","entity.labels.en"]}'
    assert item == WikidataArticle(name="Q42", entity=msgspec.structs.replace(item.entity, labels=item.entity.labels))
    assert list(item.entity.labels) == ["en"]
    assert not item.entity.statements


class Named(msgspec.Struct):
    name: str


class Ranked(msgspec.Struct):
    rank: str


class Said(msgspec.Struct):
    statements: dict[str, list[Ranked]] = {}


class Entity(msgspec.Struct):
    entity: Said


class Flat(msgspec.Struct):
    statements: list[Ranked] = []


class FlatEntity(msgspec.Struct):
    entity: Flat


async def test_a_type_of_the_callers_may_have_the_statements_in_either_form_and_gets_none_silently(sim, wme):
    whole = (await wme.wikidata.items.get("Q42")).entity.statements
    statements = (await wme.wikidata.items.get("Q42", type=Entity)).entity.statements
    assert {name: [one.rank for one in many] for name, many in statements.items()} == {
        name: [one.rank for one in many] for name, many in whole.items()
    }
    with pytest.raises(DecodeError, match="statements"):
        await wme.wikidata.items.get("Q42", type=FlatEntity)
    sim.entities.shape = "lists"
    assert (await wme.wikidata.items.get("Q42", type=FlatEntity)).entity.statements
    with pytest.raises(DecodeError, match="statements"):
        await wme.wikidata.items.get("Q42", type=Entity)
    with pytest.raises(ValueError, match="P580"):
        await wme.wikidata.items.get("Q42", fields=["entity.statements.P31.qualifiers.P580"])


async def test_a_type_of_the_callers_is_decoded_into(sim, wme):
    assert await wme.wikidata.items.get("Q42", type=Named) == Named("Q42")
    async with wme.wikidata.items.get_many(["Q42", "Q43"], type=Named) as results:
        assert [result.first async for result in results] == [Named("Q42"), Named("Q43")]


@pytest.mark.parametrize(
    ("where", "identifier", "words"),
    [
        ("items", "P31", "is a property: use wme.wikidata.properties"),
        ("properties", "Q42", "is an item: use wme.wikidata.items"),
        ("items", "q42", "looks like 'Q42'"),
        ("items", "Q042", "looks like"),
        ("items", "Q", "looks like"),
        ("items", "42", "looks like"),
        ("items", "Q42/../P31", "looks like"),
        ("items", "Q42\n", "looks like"),
        ("labels", "L42", "looks like 'Q42' or 'P42'"),
        ("items", "Q٤٢", "looks like"),
    ],
)
async def test_identifiers_of_another_form_are_refused_before_anything_is_sent(sim, wme, where, identifier, words):
    with pytest.raises(ValueError, match=words):
        await getattr(wme.wikidata, where).get(identifier)
    with pytest.raises(TypeError):
        await getattr(wme.wikidata, where).get(42)
    assert sim.requests.count("api") == 0


async def test_filters_are_not_offered_and_unknown_fields_refused(sim, wme):
    with pytest.raises(TypeError):
        await wme.wikidata.items.get("Q42", filters={"name": "Q42"})
    with pytest.raises(ValueError, match="no field 'nam'"):
        await wme.wikidata.items.get("Q42", fields=["nam"])
    assert sim.requests.count("api") == 0


async def test_what_is_not_in_the_main_graph_is_not_found(sim, wme, client_clock):
    scholarly = next(f"Q{n}" for n in range(1, 2000) if sim.entities.generator.get(f"Q{n}") is None)
    with pytest.raises(NotFound, match=f"{scholarly} is not in the main graph"):
        await wme.wikidata.items.get(scholarly)
    async with wme.wikidata.items.get_many(["Q42", scholarly, "P31"]) as results:
        looked = [result async for result in results]
    assert [(result.found, type(result.error)) for result in looked] == [
        (True, type(None)), (False, type(None)), (False, ValueError),
    ]  # fmt: skip
    sim.faults.inject("status", role="api", status=404)
    assert (await wme.wikidata.items.get("Q42", recheck=True)).name == "Q42"
    assert client_clock.waits, "it asks again after a while"


@pytest.mark.parametrize("as_list", [False, True])
async def test_labels_are_a_dict_whichever_form_they_come_in(sim, wme, as_list):
    sim.entities.labels_as_list = as_list
    everything = await wme.wikidata.labels.get("Q42")
    assert everything["en"]
    assert len(everything) > 3
    some = await wme.wikidata.labels.get("Q42", fields=["en", "de", "tlh"])
    assert some == {language: everything[language] for language in ("en", "de")}
    async with wme.wikidata.labels.get_many(["P31", "Q42"], fields=["en"]) as results:
        assert [list(result.first) async for result in results] == [["en"], ["en"]]


@pytest.mark.parametrize("body", [b"[]", b'[{"name":"Q1"},{"name":"Q2"}]', b"7", b"<html>", b"", b'{"name":1}'])
async def test_what_is_no_single_entity_is_told_with_its_bytes(sim, wme, body):
    sim.faults.inject("status", role="api", status=200, body=body, times=None)
    for fields in (None, ["name"]):
        with pytest.raises(DecodeError) as caught:
            await wme.wikidata.items.get("Q1", fields=fields)
        assert caught.value.record == body
    if body not in {b"[]", b'[{"name":"Q1"},{"name":"Q2"}]'}:
        with pytest.raises(DecodeError, match="labels"):
            await wme.wikidata.labels.get("Q1")


async def test_archives_of_wikidata_have_the_same_verbs(sim, wme, tmp_path):
    first = (await wme.wikidata.snapshots.list())[0]
    done = await wme.wikidata.snapshots.download(first.identifier, tmp_path)
    assert done.verified
    chunks = wme.wikidata.snapshots.chunks(first.identifier)
    identifier = (await chunks.list())[0].identifier
    async with chunks.read(identifier) as records:
        items = [record async for record in records]
    assert items
    assert all(isinstance(record, WikidataArticle) for record in items)
    hour = wme.wikidata.batches(sim.hours[-1])
    batch = (await hour.list())[0]
    async with hour.read(batch.identifier) as records:
        assert [record async for record in records]
    assert chunks.cost(identifier).pool == "chunk"


@pytest.mark.parametrize("identifier", ["wikidata", "structured-contents"])
async def test_names_of_other_resources_are_no_identifiers(sim, wme, identifier):
    with pytest.raises(ValueError, match="not an identifier here"):
        await wme.snapshots.get(identifier)
    assert sim.requests.count("api") == 0


async def test_the_path_of_a_beta_can_be_moved(sim):
    paths = {"wikidata.batches": "/v2/moved/{hour}", "wikidata.items": "/v2/moved-items"}
    async with Client(**sim.client_options(), paths=paths) as wme:
        for asking in (wme.wikidata.batches("2026-01-01T00").list(), wme.wikidata.items.get("Q42")):
            with pytest.raises(Forbidden, match="or the path has changed"):
                await asking
    assert [request.path for request in sim.requests if request.role == "api"] == [
        "/v2/moved/2026-01-01/00", "/v2/moved-items/Q42",
    ]  # fmt: skip


async def test_the_free_plan_has_wikidata_lookups_and_not_its_batches():
    async with Simulator(start=MIDDLE_OF_A_MONTH) as sim:
        sim.add_user("free", "pw", ["group_1"])
        async with Client("free", "pw", hosts=sim.client_options()["hosts"]) as wme:
            await wme.wikidata.items.get("Q42")
            await wme.wikidata.labels.get("Q42")
            assert (await wme.auth.quota()).ondemand.used == 2
            with pytest.raises(Forbidden, match="plan does not include Wikidata hourly batches"):
                await wme.wikidata.batches(sim.hours[-1]).list()


def test_nothing_secret_is_shown():
    client = Client("user", "a-password")
    shown = " ".join(map(repr, (client.wikidata, client.wikidata.items, client.articles, client.files, client.auth)))
    assert "password" not in shown


# Media files


@pytest.mark.parametrize("name", ["Ottawa 0757.jpg", "Ottawa_0757.jpg"])
async def test_the_page_of_a_file_is_got(wme, name):
    page = await wme.files.get(name)
    assert page.name == "File:Ottawa 0757.jpg"
    assert page.files[0].mime == "image/jpeg"
    assert (await wme.files.get(name, fields=["files"])).name == ""
    assert (await wme.files.get(name, type=Named)).name == page.name


@pytest.mark.parametrize("name", ["a/b.jpg", "..", "", "a\\b", "a\nb"])
async def test_what_no_file_can_be_called_is_refused_before_anything_is_sent(sim, wme, tmp_path, name):
    with pytest.raises(ValueError, match="file name"):
        await wme.files.get(name)
    with pytest.raises(ValueError, match="file name"):
        await wme.files.download(name, tmp_path)
    assert sim.requests.count("api") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [None, b"Ottawa 0757.jpg", 757, True])
async def test_the_name_of_a_file_is_text(sim, wme, tmp_path, name):
    with pytest.raises(TypeError, match="a file name must be text"):
        await wme.files.get(name)
    with pytest.raises(TypeError, match="a file name must be text"):
        await wme.files.download(name, tmp_path)
    assert sim.requests.count("api") == 0


@pytest.mark.parametrize("to", ["", "new.jpg"])
async def test_a_file_is_downloaded_from_the_store_and_proven(sim, wme, tmp_path, to):
    reports: list[Progress] = []
    done = await wme.files.download("Ottawa 0757.jpg", tmp_path / to if to else tmp_path, progress=reports.append)
    assert done.path == tmp_path / (to or "Ottawa_0757.jpg")
    page = await wme.files.get("Ottawa 0757.jpg")
    assert hashlib.sha1(done.path.read_bytes()).hexdigest() == page.files[0].sha1
    assert done.verified
    assert done.size == done.path.stat().st_size == page.files[0].size.value
    assert reports
    assert [path.name for path in tmp_path.iterdir()] == [done.path.name]
    assert all(request.header("Authorization") is None for request in sim.requests if request.role == "store")
    assert wme.files.cost("a", "b").requests == 0


async def test_a_folder_that_is_named_as_one_is_made(wme, tmp_path):
    done = await wme.files.download("Ottawa 0757.jpg", f"{tmp_path}/new/deep/")
    assert done.path == tmp_path / "new" / "deep" / "Ottawa_0757.jpg"
    assert done.path.is_file()


async def test_a_file_that_is_there_already_is_not_fetched_again(sim, wme, tmp_path):
    assert not (await wme.files.download("Ottawa 0757.jpg", tmp_path, if_changed=True)).unchanged
    before = sim.requests.count("store")
    done = await wme.files.download("Ottawa 0757.jpg", tmp_path, if_changed=True)
    assert done.unchanged
    assert done.verified
    assert sim.requests.count("store") == before
    done.path.write_bytes(b"something else")
    assert not (await wme.files.download("Ottawa 0757.jpg", tmp_path, if_changed=True)).unchanged


@pytest.mark.parametrize("first", [True, False])
async def test_an_earlier_upload_that_is_there_is_not_taken_for_the_latest(sim, wme, tmp_path, first):
    uploads = sim.commons.pages["Ottawa_0757.jpg"]["files"]
    sha1 = hashlib.sha1(b"earlier", usedforsecurity=False).hexdigest()
    uploads.insert(0 if first else 1, {"sha1": sha1, "date_modified": "2011-05-01T00:00:00Z"})
    (tmp_path / "Ottawa_0757.jpg").write_bytes(b"earlier")
    done = await wme.files.download("Ottawa 0757.jpg", tmp_path, if_changed=True)
    assert not done.unchanged
    assert done.path.read_bytes() != b"earlier"
    assert (await wme.files.download("Ottawa 0757.jpg", tmp_path, if_changed=True)).unchanged


async def test_a_cancelled_download_does_not_go_on_hashing_the_file_that_is_there(wme, tmp_path, monkeypatch):
    (tmp_path / "Ottawa_0757.jpg").write_bytes(bytes(5 << 20))
    loop = asyncio.get_running_loop()
    hashing, go_on, blocks = asyncio.Event(), threading.Event(), 0

    sha1 = hashlib.sha1

    class Slow:
        def __init__(self, **options):
            self.real = sha1(**options)
            self.hexdigest = self.real.hexdigest

        def update(self, block):
            nonlocal blocks
            blocks += 1
            loop.call_soon_threadsafe(hashing.set)
            assert go_on.wait(20)
            self.real.update(block)

    def sha1_in_threads(*data, **options):
        # The simulator hashes in the event loop, which must go on.
        in_loop = threading.current_thread() is threading.main_thread()
        return sha1(*data, **options) if in_loop else Slow(**options)

    monkeypatch.setattr(hashlib, "sha1", sha1_in_threads)
    task = asyncio.create_task(wme.files.download("Ottawa 0757.jpg", tmp_path, if_changed=True))
    await hashing.wait()
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert blocks == 1


async def test_a_file_with_another_checksum_never_gets_its_name(sim, wme, tmp_path):
    old = tmp_path / "Ottawa_0757.jpg"
    old.write_bytes(b"the old one")
    sim.faults.inject("corrupt", role="store", times=None)
    with pytest.raises(IntegrityError, match="SHA-1") as caught:
        await wme.files.download("Ottawa 0757.jpg", tmp_path, overwrite=True)
    assert caught.value.expected != caught.value.got
    assert [path.name for path in tmp_path.iterdir()] == ["Ottawa_0757.jpg"]
    assert old.read_bytes() == b"the old one"
    done = await wme.files.download("Ottawa 0757.jpg", tmp_path, verify=False, overwrite=True)
    assert done.verified is None


async def test_a_file_that_is_fetched_twice_at_once_is_proven_twice(wme, tmp_path):
    others: list[Any] = []

    async def again(_progress: Progress) -> None:
        if not others and not list(tmp_path.glob("*.part")):
            others.append(None)
            others[0] = await wme.files.download("Ottawa 0757.jpg", tmp_path)

    done = await wme.files.download("Ottawa 0757.jpg", tmp_path, progress=again)
    assert done.verified
    assert others[0].verified
    assert [path.name for path in tmp_path.iterdir()] == ["Ottawa_0757.jpg"]


async def test_a_file_with_the_longest_name_that_commons_has_can_be_kept(sim, wme, tmp_path):
    name = "ы" * 118 + ".jpg"
    assert len(name.encode()) == 240
    sim.commons.add(name, b"bytes of a picture")
    done = await wme.files.download(name, tmp_path)
    assert done.verified
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_a_file_without_a_page_cannot_be_proven(sim, wme, tmp_path):
    del sim.commons.pages["Ottawa_0757.jpg"]
    done = await wme.files.download("Ottawa 0757.jpg", tmp_path)
    assert done.verified is None
    assert done.path.exists()


async def test_a_file_that_is_not_there_is_not_found(wme, tmp_path):
    with pytest.raises(NotFound):
        await wme.files.get("Nothing.jpg")
    with pytest.raises(NotFound):
        await wme.files.download("Nothing.jpg", tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".part.lock")]
