"""Metadata and downloads of the simulator, by a plain HTTP client: right, and wrong in the service's ways."""

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
from plain_http import ENWIKI, HOUR, START, Caller, caller_of

from wme_async.simulator import Simulator


@pytest.fixture
async def world() -> AsyncIterator[Simulator]:
    async with Simulator(start=START, frozen=True) as simulator:
        yield simulator


@pytest.fixture
async def call(world: Simulator) -> AsyncIterator[Caller]:
    async for caller in caller_of(world):
        yield caller


# Metadata


async def test_dotted_fields_come_back_flat(call: Caller) -> None:
    reply = await call.query(f"/v2/batches/{HOUR}/enwiki_namespace_0", fields=["is_part_of.identifier", "nope.x"])
    assert reply.json == {"is_part_of__identifier": "enwiki"}


async def test_numbers_with_a_fraction_have_an_exponent(call: Caller) -> None:
    body = (await call.get(f"/v2/batches/{HOUR}/enwiki_namespace_0")).body
    assert b'"identifier":0' in body
    assert b'e0,"unit_text":"MB"' in body


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"in_language.identifier": "en"}, lambda row: row["in_language"]["identifier"] == "en"),
        ({"namespace.identifier": 10}, lambda row: row["namespace"]["identifier"] == 10),
        ({"size.value": 0.002}, lambda row: row["size"]["value"] > 0.002),
        ({"nothing.there": "x"}, lambda row: False),
    ],
    ids=["text", "namespace", "greater than", "unknown"],
)
async def test_filters_mean_what_the_select_makes_of_them(call: Caller, filters: dict[str, Any], holds: Any) -> None:
    rows = (await call.get(f"/v2/batches/{HOUR}")).json
    selected = await call.query(
        f"/v2/batches/{HOUR}", filters=[{"field": name, "value": value} for name, value in filters.items()]
    )
    assert selected.json == [row for row in rows if holds(row)]
    assert len(selected.json) < len(rows)


async def test_filters_that_are_dropped_broken_or_fatal(call: Caller) -> None:
    path = f"/v2/batches/{HOUR}"
    row = (await call.get(path)).json
    for value in (True, False, None, [1], {"a": 1}):
        assert (await call.query(path, filters=[{"field": "identifier", "value": value}])).json == row
    broken = await call.query(path, filters=[{"field": "identifier", "value": "L'Aquila"}])
    assert broken.status == 500
    assert broken.message
    panic = await call.query(path, filters=[None])
    assert (panic.status, panic.body) == (500, b"")
    assert (await call.query(f"{path}/enwiki_namespace_0", filters=[None])).json["identifier"] == "enwiki_namespace_0"
    assert (await call.query(path, fields=["a..b"])).status == 400


async def test_lists_are_in_byte_order_of_keys_and_leave_tiny_archives_out(call: Caller) -> None:
    names = [row["identifier"] for row in (await call.get("/v2/snapshots")).json]
    assert [name for name in names if name.startswith("dewiki_")] == [f"dewiki_namespace_{n}" for n in (0, 10, 14, 6)]
    assert "abwiki_namespace_6" not in names
    hidden = (await call.get("/v2/snapshots/abwiki_namespace_6")).json
    assert hidden["size"] == {"unit_text": "MB"}
    data = await call.send("GET", await call.signed("/v2/snapshots/abwiki_namespace_6/download"))
    with tarfile.open(fileobj=io.BytesIO(data.body)) as archive:
        assert archive.getnames() == []
    chunks = [row["identifier"] for row in (await call.get("/v2/snapshots/enwiki_namespace_0/chunks")).json]
    assert chunks[:4] == [f"enwiki_namespace_0_chunk_{n}" for n in (0, 1, 10, 11)]


async def test_an_archive_without_metadata_can_be_downloaded_all_the_same(call: Caller) -> None:
    assert (await call.get("/v2/snapshots/commonswiki_namespace_6")).status == 404
    assert (await call.send("GET", await call.signed("/v2/snapshots/commonswiki_namespace_6/download"))).status == 200


async def test_what_is_missing_is_404_with_the_stores_text(call: Caller) -> None:
    for path in ("/v2/codes/nope", "/v2/snapshots/dewiki_namespace_0/chunks", "/v2/batches/2026-07-16/06"):
        reply = await call.get(path)
        assert reply.status == 404
        assert reply.message.startswith("NoSuchKey: ")
        assert "\n\t" in reply.message


async def test_hours_appear_late_and_go_after_two_days(call: Caller) -> None:
    clock = call.simulator.clock
    assert call.simulator.hours[-1] == "2026-07-16T05"
    assert len(call.simulator.hours) == 47
    clock.set(datetime(2026, 7, 16, 8, 24, tzinfo=UTC))
    assert (await call.get("/v2/batches/2026-07-16/07")).status == 404
    assert (await call.get("/v2/batches/2026-07-16/7")).status == 404
    clock.advance(60)
    assert (await call.get("/v2/batches/2026-07-16/07")).status == 200
    clock.advance(48 * 3600)
    await call.login()
    assert (await call.get("/v2/batches/2026-07-16/07")).status == 404


async def test_real_lists_are_served_from_a_folder(shared_data: Any) -> None:
    async with Simulator(start=START, frozen=True, data=shared_data) as simulator:
        async for call in caller_of(simulator):
            assert len((await call.get("/v2/projects")).json) == 892
            real = json.loads((shared_data / "batches.json").read_text())
            listed = (await call.get(f"/v2/batches/{HOUR}")).json
            assert {row["identifier"] for row in listed} == {row["identifier"] for row in real}
            pages = (
                await call.get(
                    "/v2/articles/Squirrel?filters=" + quote('{"field":"is_part_of.identifier","value":"enwiki"}')
                )
            ).json
            assert [page["is_part_of"]["identifier"] for page in pages] == ["enwiki"]
            assert pages[0]["identifier"] == 28492
            data = await call.send("GET", await call.signed(f"{ENWIKI}/download"))
            with tarfile.open(fileobj=io.BytesIO(data.body)) as archive:
                file = archive.extractfile(archive.next())  # type: ignore[arg-type]  # there is a first member
                assert file is not None
                assert json.loads(file.readline())["name"] == "Squirrel"


# Downloads


async def test_a_download_redirects_to_another_origin_whatever_is_asked(call: Caller) -> None:
    for path in (ENWIKI, "/v2/snapshots/no_such_thing", "/v2/snapshots/enwiki_namespace_0/chunks/chunk_99"):
        location = await call.signed(f"{path}/download")
        assert location.startswith(call.simulator.store_url)
        assert "sub=" in location
    missing = await call.send("GET", location)
    assert (missing.status, missing.headers["Content-Type"]) == (404, "application/xml")
    assert b"<Code>NoSuchKey</Code>" in missing.body


async def test_metadata_head_and_bytes_agree(call: Caller) -> None:
    row = (await call.get(ENWIKI)).json
    head = await call("HEAD", f"{ENWIKI}/download")
    assert head.headers["Last-Modified"] == "Thu, 16 Jul 2026 06:00:00 UTC"
    assert head.headers["Content-Type"] == "binary/octet-stream"
    data = await call.send("GET", await call.signed(f"{ENWIKI}/download"))
    assert hashlib.md5(data.body).hexdigest() == row["version"]
    assert data.headers["ETag"] == head.headers["ETag"] == f'"{row["version"]}"'
    assert data.headers["Last-Modified"] == "Thu, 16 Jul 2026 06:00:00 GMT"
    assert int(head.headers["Content-Length"]) == len(data.body)
    assert row["size"]["value"] == round(len(data.body) / 1e6, 3)
    assert (await call("HEAD", "/v2/snapshots/nope/download")).status == 404


async def test_a_snapshot_has_the_bytes_of_its_chunks_and_any_spelling_finds_one(call: Caller) -> None:
    async def lines(path: str) -> list[bytes]:
        data = await call.send("GET", await call.signed(f"{path}/download"))
        with tarfile.open(fileobj=io.BytesIO(data.body)) as archive:
            return [file.read() for member in archive if (file := archive.extractfile(member)) is not None]

    snapshot = await lines("/v2/snapshots/simplewiki_namespace_0")
    chunks = "/v2/snapshots/simplewiki_namespace_0/chunks"
    assert snapshot == [*await lines(f"{chunks}/simplewiki_namespace_0_chunk_0"), *await lines(f"{chunks}/x_1")]
    first = (await call.get(f"{chunks}/1")).json
    assert first == (await call.get(f"{chunks}/chunk_1")).json
    listed = (await call.get("/v2/snapshots/simplewiki_namespace_0")).json["chunks"]
    assert sorted(listed) == ["simplewiki_namespace_0_chunk_0", "simplewiki_namespace_0_chunk_1"]


async def test_any_membership_of_the_free_group_gets_the_monthly_copy(call: Caller) -> None:
    paid = (await call.get("/v2/snapshots/enwiki_namespace_0")).json
    call.simulator.add_user("free", "free-password", ["group_1", "group_3"])
    await call.login("free", "free-password")
    free = (await call.get("/v2/snapshots/enwiki_namespace_0")).json
    assert free["identifier"] == paid["identifier"]
    assert free["version"] != paid["version"]
    assert free["date_modified"].startswith("2026-07-01T")
    data = await call.send("GET", await call.signed("/v2/snapshots/enwiki_namespace_0/download"))
    assert hashlib.md5(data.body).hexdigest() == free["version"]


async def test_ranges(call: Caller) -> None:
    location = await call.signed(f"{ENWIKI}/download")
    content = (await call.send("GET", location)).body
    size = len(content)
    for asked, start, stop in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{size + 1000}", 5, size),
    ]:
        part = await call.send("GET", location, headers={"Range": asked})
        assert (part.status, part.body) == (206, content[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
    for odd in ("bytes=0-1,4-5", "bytes=9-3", "lines=0-1", "bytes=-"):
        assert (await call.send("GET", location, headers={"Range": odd})).status == 200
    beyond = await call.send("GET", location, headers={"Range": f"bytes={size}-"})
    assert beyond.status == 416
    assert f"<ActualObjectSize>{size}</ActualObjectSize>".encode() in beyond.body


async def test_a_signature_is_for_one_method_one_minute_and_no_second_authorization(call: Caller) -> None:
    location = await call.signed(f"{ENWIKI}/download")
    assert (await call.send("HEAD", location)).status == 403
    assert b"SignatureDoesNotMatch" in (await call.send("GET", location.replace("enwiki", "dewiki"))).body
    assert b"AccessDenied" in (await call.send("GET", location.partition("?")[0])).body
    doubled = await call.send("GET", location, headers={"Authorization": "Bearer x"})
    assert (doubled.status, b"<Code>InvalidArgument</Code>" in doubled.body) == (400, True)
    call.simulator.clock.advance(60)
    assert (await call.send("GET", location)).status == 200
    call.simulator.clock.advance(1)
    late = await call.send("GET", location)
    assert late.status == 403
    assert b"<Message>Request has expired</Message>" in late.body


async def test_a_replaced_object_fails_if_match_and_may_leave_metadata_behind(call: Caller) -> None:
    key = f"batches/{HOUR}/enwiki_namespace_0.tar.gz"
    before = (await call.get(ENWIKI)).json
    location = await call.signed(f"{ENWIKI}/download")
    etag = (await call.send("GET", location)).headers["ETag"]
    assert (await call.send("GET", location, headers={"If-Match": etag, "Range": "bytes=0-3"})).status == 206
    call.simulator.put_object(key, b"something else", update_metadata=False)
    changed = await call.send("GET", location, headers={"If-Match": etag, "Range": "bytes=0-3"})
    assert (changed.status, b"<Code>PreconditionFailed</Code>" in changed.body) == (412, True)
    assert (await call.get(ENWIKI)).json == before
    call.simulator.put_object(key, b"something new")
    assert (await call.get(ENWIKI)).json["version"] == hashlib.md5(b"something new").hexdigest()
    assert (await call("HEAD", f"{ENWIKI}/download")).headers["Content-Length"] == "13"
    call.simulator.delete_object(key)
    assert (await call.send("GET", location)).status == 404


@pytest.mark.parametrize("name", ["enwiki_namespace_0", "abwiki_namespace_0"])
@pytest.mark.parametrize("known", [True, False])
async def test_a_small_object_is_in_the_lists_that_match_it(call: Caller, name: str, known: bool) -> None:
    path = f"/v2/batches/{HOUR}"
    if known:
        await call.get(path)
    call.simulator.put_object(f"batches/{HOUR}/{name}.tar.gz", b"small")
    filters = {"is_part_of.identifier": name[:6], "namespace.identifier": 0}
    for body in ({}, {"filters": [{"field": field, "value": value} for field, value in filters.items()]}):
        rows = (await call("POST", path, json=body)).json
        [row] = [row for row in rows if row["identifier"] == name]
        assert row["version"] == hashlib.md5(b"small").hexdigest()
        assert row["size"] == {"value": 0.001, "unit_text": "MB"}


async def test_large_objects_come_from_files_and_have_multipart_tags(tmp_path: Any) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "large.bin").write_bytes(data)
    async with Simulator(start=START, frozen=True, part_size=1_000_000) as simulator:
        async for call in caller_of(simulator):
            simulator.put_object(f"batches/{HOUR}/enwiki_namespace_0.tar.gz", tmp_path / "large.bin")
            response = await call.send("GET", await call.signed(f"{ENWIKI}/download"))
            assert response.body == data
            assert response.headers["ETag"].endswith('-2"')
            assert (await call.get(ENWIKI)).json["version"] == hashlib.md5(data).hexdigest()
            part = await call.send(
                "GET", await call.signed(f"{ENWIKI}/download"), headers={"Range": "bytes=999-1000000"}
            )
            assert part.body == data[999:1_000_001]


async def test_a_file_of_commons_and_its_page(call: Caller) -> None:
    page = (await call.get("/v2/files/Ottawa%200757.jpg")).json
    data = await call.send("GET", await call.signed("/v2/files/Ottawa_0757.jpg/download"))
    assert hashlib.sha1(data.body).hexdigest() == page["files"][0]["sha1"]
    assert page["files"][0]["size"] == {"value": len(data.body), "unit_text": "B"}
    assert (await call.get("/v2/files/nope.jpg")).status == 404


async def test_conditions_by_date_and_tag(call: Caller) -> None:
    location = await call.signed(f"{ENWIKI}/download")
    first = await call.send("GET", location)
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    earlier = "Wed, 15 Jul 2026 06:00:00 GMT"
    for headers, status in [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": earlier}, 200),
        ({"If-Modified-Since": "nonsense"}, 200),
        ({"If-Unmodified-Since": earlier}, 412),
        ({"If-Unmodified-Since": modified}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": f'"other", {etag}'}, 200),
        ({"If-Match": '"other"', "If-Unmodified-Since": modified}, 412),
    ]:
        assert (await call.send("GET", location, headers=headers)).status == status, headers


async def test_a_signature_needs_a_date(call: Caller) -> None:
    url = f"{call.simulator.store_url}/wme-primary/x?X-Amz-Signature=1&X-Amz-Date=yesterday&X-Amz-Expires=60"
    assert (await call.send("GET", url)).status == 400


async def test_archives_reach_a_wished_size_and_may_repeat_records() -> None:
    sizes = {"enwiki_namespace_0": 300_000, f"batches/{HOUR}/dewiki_namespace_0": 200_000}
    async with Simulator(
        start=START, frozen=True, archive_bytes=sizes, article_size=None, articles=40, duplicates=0.5
    ) as simulator:
        large = await simulator.store.get(f"batches/{HOUR}/enwiki_namespace_0.tar.gz")
        other = await simulator.store.get(f"batches/{HOUR}/dewiki_namespace_0.tar.gz")
        plain = await simulator.store.get("batches/2026-07-16/04/dewiki_namespace_0.tar.gz")
        snapshot = await simulator.store.get("snapshots/enwiki_namespace_0.tar.gz")
        chunk = await simulator.store.get("chunks/enwiki_namespace_0/chunk_11.tar.gz")
        assert large is not None
        assert other is not None
        assert plain is not None
        assert snapshot is not None
        assert chunk is not None
        assert 270_000 < large.size < 420_000
        assert 170_000 < other.size < 320_000
        assert snapshot.size > chunk.size * 5
        assert plain.data is not None
        with tarfile.open(fileobj=io.BytesIO(plain.data)) as archive:
            file = archive.extractfile("dewiki_namespace_0_0.ndjson")
            assert file is not None
            pages = [json.loads(line) for line in file]
        twice = [(a, b) for a, b in pairwise(pages) if a["identifier"] == b["identifier"]]
        assert len(twice) > 5
        assert all(a["version"]["identifier"] == b["version"]["identifier"] + 1 for a, b in twice)


async def test_an_object_put_where_nothing_was_gets_metadata(call: Caller) -> None:
    call.simulator.put_object("batches/2020-01-01/00/xywiki_namespace_0.tar.gz", bytes(2000))
    rows = (await call.get("/v2/batches/2020-01-01/00")).json
    assert [row["identifier"] for row in rows] == ["xywiki_namespace_0"]
    assert rows[0]["version"] == hashlib.md5(bytes(2000)).hexdigest()
    assert (await call.get("/v2/batches/2020-01-01/00/xywiki_namespace_0")).json["in_language"] == {"identifier": "xy"}
    call.simulator.put_object("anything.bin", b"x")
    assert (await call.send("GET", call.simulator.store.presign("anything.bin", None))).body == b"x"


@pytest.mark.parametrize("hour", ["2026-13-01/05", "2026-07-16/24", "2026-07-16/5", "today/05"])
async def test_an_hour_that_is_none_is_404(call: Caller, hour: str) -> None:
    assert (await call.get(f"/v2/batches/{hour}")).status == 404
    assert (await call("HEAD", f"/v2/batches/{hour}/enwiki_namespace_0/download")).status == 404


async def test_hours_are_forgotten_when_retention_has_passed(call: Caller) -> None:
    simulator = call.simulator
    await call.get(f"/v2/batches/{HOUR}")
    assert any(key.startswith(f"batches/{HOUR}") for key in simulator.store.objects)
    simulator.clock.advance(50 * 3600)
    await call.login()
    assert (await call.get(f"/v2/batches/{simulator.hours[-1].replace('T', '/')}")).status == 200
    assert not any(key.startswith(f"batches/{HOUR}") for key in simulator.store.objects)


async def test_the_select_breaks_on_a_quote_in_a_name(call: Caller) -> None:
    assert (await call.query("/v2/codes", fields=['a"b'])).status == 500
    assert len((await call.query("/v2/codes", fields=["x", "*"])).json[0]) == 3


async def test_without_a_kernel_copy_files_are_read(
    call: Caller, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 2000
    (tmp_path / "large.bin").write_bytes(data)

    async def unavailable(*_: Any, **__: Any) -> int:
        raise asyncio.SendfileNotAvailableError

    monkeypatch.setattr(asyncio.get_running_loop(), "sendfile", unavailable)
    call.simulator.put_object("large.tar.gz", tmp_path / "large.bin")
    location = call.simulator.store.presign("large.tar.gz", "me")
    assert (await call.send("GET", location)).body == data
    assert (await call.send("GET", location, headers={"Range": "bytes=5-300004"})).body == data[5:300_005]
