"""Whatever leaves a decoder is a `DecodeError` of that record or that answer, and of nothing else."""

import contextlib
import gzip
import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Client, DecodeError, Retry, SQLiteOffsets, read_archive
from wme_async.errors import BadRequest, IntegrityError, StatusError
from wme_async.jobs import verify_webhook
from wme_async.jobs.webhooks import new_secret, sign_webhook
from wme_async.models import Article
from wme_async.models.decoding import decode_json, decoding
from wme_async.simulator import Simulator

DEEP = b'{"message":' + b"[" * 1_000
# A number that no float holds, in a record that is refused for another reason as well.
HUGE = b'{"name":1,"score":1e99999999999999999999}'
BAD = {"deep": DEEP, "huge": HUGE, "deep and whole": b'{"name":' + b"[" * 5_000 + b"]" * 5_000 + b"}"}
bad_records = pytest.mark.parametrize("record", BAD.values(), ids=BAD)


class Page(msgspec.Struct):
    name: str = ""


class Fussy(msgspec.Struct):
    """A type whose own code fails in ways that no decoder lists."""

    name: str = ""

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ArithmeticError("the user's own check")


def archive(path: Path, *records: bytes) -> Path:
    data = b"".join(record + b"\n" for record in records)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("page_0.ndjson")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    path.write_bytes(gzip.compress(buffer.getvalue()))
    return path


# The door


@pytest.mark.parametrize("kind", [ArithmeticError, RecursionError, KeyError, LookupError, UnicodeError, ValueError])
def test_any_exception_of_a_decoder_becomes_ours_with_its_cause(kind: type[Exception]) -> None:
    with pytest.raises(DecodeError) as caught, decoding(b"x"):
        raise kind("no")
    assert isinstance(caught.value.__cause__, kind)
    assert caught.value.record == b"x"
    assert caught.value.message


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_says_nothing_of_the_data_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind), decoding(b"x"):
        raise kind


def test_our_own_errors_pass_as_they_are() -> None:
    error = BadRequest("no", status=400)
    with pytest.raises(BadRequest) as caught, decoding(b"x"):
        raise error
    assert caught.value is error


@given(st.binary(max_size=60) | st.sampled_from(list(BAD.values())))
def test_bytes_are_a_value_or_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert decode_json(data, msgspec.json.Decoder()) == json.loads(data)


# Answers


@bad_records
@pytest.mark.parametrize("status", [400, 403, 500])
async def test_an_error_body_that_does_not_decode_is_the_error_of_its_status(
    sim: Simulator, record: bytes, status: int
) -> None:
    sim.faults.inject("status", role="api", status=status, body=record, times=None)
    async with Client(**sim.client_options(), retry=Retry(attempts=1)) as wme:
        for question in (wme.projects.list(), wme.articles.lookup("NATO"), wme.snapshots.head("enwiki_namespace_0")):
            with pytest.raises(StatusError) as caught:
                await question
            assert caught.value.status == status


@pytest.mark.parametrize("record", [DEEP, b'{"groups":{"a":1e99999999999999999999},"access_token":[1]'])
async def test_an_answer_that_does_not_decode_is_a_decode_error(sim: Simulator, record: bytes) -> None:
    async with Client(**sim.client_options(), retry=Retry(attempts=1)) as wme:
        await wme.auth.login()
        sim.faults.inject("status", status=200, body=record, times=None)
        questions: list[Callable[[], Awaitable[object]]] = [
            wme.projects.list,
            lambda: wme.projects.get("enwiki"),
            lambda: wme.articles.lookup("NATO"),
            lambda: wme.structured_contents.lookup("NATO"),
            lambda: wme.wikidata.labels.get("Q42", recheck=False),
            lambda: wme.wikidata.items.get("Q42", recheck=False),
            wme.auth.user,
            wme.auth.login,
        ]
        for question in questions:
            with pytest.raises(DecodeError):
                await question()


async def test_a_record_that_does_not_decode_spares_the_others_of_its_answer(sim: Simulator) -> None:
    async with Client(**sim.client_options()) as wme:
        sim.faults.inject("status", role="api", status=200, body=b'{"name":"a"}\n' + HUGE + b'\n{"name":"b"}\n')
        with pytest.raises(DecodeError) as caught:
            await wme.articles.lookup("NATO", type=Page, limit=10)
    assert [page.name for page in caught.value.records] == ["a", "b"]
    assert caught.value.record == HUGE


# Archives


@bad_records
async def test_a_reader_that_skips_goes_on_after_any_bad_record(tmp_path: Path, record: bytes) -> None:
    path = archive(tmp_path / "x.tar.gz", b'{"name":"a"}', record, b'{"name":"b"}')
    async with read_archive(path, type=Page, on_bad_record="skip") as pages:
        assert [page.name async for page in pages] == ["a", "b"]
        assert pages.statistics().bad_records == 1


@bad_records
async def test_batches_give_the_records_before_a_bad_one(tmp_path: Path, record: bytes) -> None:
    path = archive(tmp_path / "x.tar.gz", b'{"name":"a"}', record, b'{"name":"b"}')
    async with read_archive(path, type=Page) as pages:
        batches = pages.batches()
        assert [page.name for page in await anext(batches)] == ["a"]
        with pytest.raises(DecodeError) as caught:
            await anext(batches)
        assert (caught.value.member, caught.value.line, caught.value.record) == ("page_0.ndjson", 2, record)
        assert [page.name for page in await anext(batches)] == ["b"]


async def test_an_exception_of_the_type_itself_is_that_records_error(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", b'{"name":"a"}', b'{"name":"bad"}', b'{"name":"b"}')
    async with read_archive(path, type=Fussy, on_bad_record="skip") as pages:
        assert [page.name async for page in pages] == ["a", "b"]


async def test_a_number_that_no_float_holds_does_not_keep_a_record_from_its_second_chance(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", b'{"name":null,"score":1e99999999999999999999}')
    async with read_archive(path, type=Page) as pages:
        assert [page async for page in pages] == [Page()]


# The stream


def event(offset: int, **fields: Any) -> bytes:
    return json.dumps({"name": f"n{offset}", **fields, "event": {"partition": 0, "offset": offset}}).encode()


def streamed(sim: Simulator, *records: bytes) -> None:
    """Have the next connection of a stream bring these records, and end."""
    headers = {"Content-Type": "application/x-ndjson"}
    body = b"".join(record + b"\n" for record in records)
    sim.faults.inject("status", role="realtime", path="/v2/articles", status=200, body=body, headers=headers)


@bad_records
@pytest.mark.parametrize("type_", [Article, Page])
async def test_a_stream_that_skips_goes_on_after_any_bad_record(sim: Simulator, record: bytes, type_: Any) -> None:
    # The place stands before what is bad, so that it can be read and the position moves past the record.
    streamed(sim, event(1), b'{"event":{"partition":0,"offset":2},' + record[1:], event(3))
    async with (
        Client(**sim.client_options()) as wme,
        wme.realtime.articles(type=type_, framing="ndjson", on_bad_record="skip") as stream,
    ):
        assert [(await anext(stream)).name for _ in range(2)] == ["n1", "n3"]
        assert stream.statistics().bad_records == 1


@pytest.mark.parametrize(
    "position", [(0, 2**63), (0, 10**30), (0, -5), (2**31, 3), (10**30, 3), (-1, 3), (None, 3)], ids=str
)
@pytest.mark.parametrize("type_", [Article, Page, msgspec.Raw])
async def test_an_event_with_numbers_that_no_store_can_keep_is_a_bad_record(
    sim: Simulator, tmp_path: Path, position: tuple[int | None, int], type_: Any
) -> None:
    partition, offset = position
    record = json.dumps({"name": "n2", "event": {"partition": partition, "offset": offset}}).encode()
    streamed(sim, event(1), record, event(3))
    store = SQLiteOffsets(tmp_path / "offsets.db")
    async with (
        Client(**sim.client_options()) as wme,
        wme.realtime.articles(type=type_, framing="ndjson", on_bad_record="skip", offsets=store) as stream,
    ):
        for _ in range(2):
            await anext(stream)
        assert stream.statistics().bad_records == 1
        await stream.commit()
    saved = await store.load("default/articles")
    assert saved[0].offset == 1
    assert saved.keys() <= set(range(50))


async def test_a_record_that_a_filter_cannot_read_is_a_bad_record(sim: Simulator) -> None:
    big = 5_000_000  # numbers of this size are compared here and not by the server
    unreadable = b'{"event":{"partition":0,"offset":2},"identifier":5000000,"score":1e99999999999999999999}'
    streamed(sim, event(1, identifier=big), unreadable, event(3, identifier=big))
    async with (
        Client(**sim.client_options()) as wme,
        wme.realtime.articles(
            type=msgspec.Raw, framing="ndjson", on_bad_record="skip", filters={"identifier": big}
        ) as stream,
    ):
        names = [msgspec.json.decode(await anext(stream))["name"] for _ in range(2)]
        assert names == ["n1", "n3"]
        assert stream.statistics().bad_records == 1


# What others send to us


@bad_records
def test_a_signed_message_that_does_not_decode_is_not_one_of_ours(record: bytes) -> None:
    secret = new_secret()
    signature = sign_webhook("m", 1_000, record, secrets=[secret])
    headers = {"webhook-id": "m", "webhook-timestamp": "1000", "webhook-signature": signature}
    with pytest.raises(IntegrityError):
        verify_webhook(record, headers, secret, now=1_000)
