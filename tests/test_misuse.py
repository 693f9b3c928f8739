"""Arguments of wrong types and without sense: refused at the call, by name, with what came and what is wanted."""

import linecache
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wme_async import (
    Allowances,
    Client,
    Cost,
    FileOffsets,
    MemoryOffsets,
    Position,
    Retry,
    SessionPool,
    SQLiteOffsets,
    read_archive,
    read_many,
)
from wme_async.jobs import (
    BatchManager,
    JobLimits,
    from_csv,
    new_secret,
    split,
    verify_webhook,
)
from wme_async.simulator import Simulator
from wme_async.web import create_app, create_asgi, hash_key, serve

EN = {"is_part_of.identifier": "enwiki"}
SNAPSHOT = "enwiki_namespace_0"
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001  # as it comes from datetime.now()


class Mine(msgspec.Struct):
    name: str = ""


def refused(call: Callable[[], Any], words: str) -> None:
    """Check that a call raises these words, at a `raise` of ours and not wherever the value happens to fail."""
    kind = ValueError if words.startswith("=") else TypeError
    with pytest.raises(kind) as caught:
        call()
    told(caught.value, words)


def told(error: BaseException, words: str) -> None:
    message = str(error)
    assert words.removeprefix("=") in message
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    statement = linecache.getline(frame.f_code.co_filename, line).strip()
    assert statement.startswith("raise "), f"{frame.f_code.co_filename}:{line} fails at {statement!r}"


def left_in(folder: Path) -> list[Path]:
    return [*folder.iterdir()]


SYNC: dict[str, Callable[[], Any]] = {
    "paths must be a list of paths, such as ['a'], not one string": lambda: read_many("a"),
    "paths must be a list of paths, not 5": lambda: read_many(5),  # type: ignore[call-overload]
    "an item of paths must be a path, as text or as pathlib.Path, not None": lambda: read_many([None]),  # type: ignore[list-item]
    "=an item of paths is an empty path": lambda: read_many([""]),
    "workers must be a whole number, not '2'": lambda: read_many(["a"], workers="2"),  # type: ignore[call-overload]
    "=workers must be at least 1, not 0": lambda: read_many(["a"], workers=0),
    "each must be a function, not 5": lambda: read_many(["a"], type=Mine, each=5),  # type: ignore[call-overload]
    "each must be at the top level of a module": lambda: read_many(["a"], type=Mine, each=lambda found: found),
    "type must be a class to decode into, such as a msgspec Struct, not 5": lambda: read_archive("a", type=5),  # type: ignore[call-overload]
    "such as a msgspec Struct, not 'Mine'": lambda: read_archive("a", type="Mine"),  # type: ignore[call-overload]
    "such as a msgspec Struct, not Mine(": lambda: read_archive("a", type=Mine()),  # type: ignore[call-overload]
    "=source is an empty path": lambda: read_archive(""),
    "=on_bad_record must be 'raise', 'skip' or a function, not []": lambda: read_archive("a", on_bad_record=[]),  # type: ignore[call-overload]
    "Allowances.ondemand must be a whole number, not '5'": lambda: Allowances(ondemand="5"),  # type: ignore[arg-type]
    "=Allowances.chunk must be at least 0, not -1": lambda: Allowances(chunk=-1),
    "positions must be a dict of name and positions, not 5": lambda: MemoryOffsets(5),  # type: ignore[arg-type]
    "and 0: 5 is not": lambda: MemoryOffsets({"a": {0: 5}}),  # type: ignore[dict-item]
    "folder must be a path, as text or as pathlib.Path, not 5": lambda: FileOffsets(5),  # type: ignore[arg-type]
    "folder must be a path, as text or as pathlib.Path, not None": lambda: FileOffsets(None),  # type: ignore[arg-type]
    '=folder is an empty path; the current folder is "."': lambda: FileOffsets(""),
    "path must be a path, as text or as pathlib.Path, not 5": lambda: SQLiteOffsets(5),  # type: ignore[arg-type]
    "=SQLiteOffsets needs a file": lambda: SQLiteOffsets(""),
    "Position.offset must be a whole number, not '5'": lambda: Position("5"),  # type: ignore[arg-type]
    "Position.published must be a datetime with a time zone, not 'now'": lambda: Position(5, "now"),  # type: ignore[arg-type]
    "=Position.published needs a time zone": lambda: Position(5, NAIVE),
    "limits must be Limits(...) or None, not '3'": lambda: SessionPool(limits="3"),  # type: ignore[arg-type]
    "env_file must be a path, as text or as pathlib.Path, not 5": lambda: Client.from_env(5),  # type: ignore[arg-type]
    # Jobs
    "directory must be a path, as text or as pathlib.Path, not 5": lambda: BatchManager(5),  # type: ignore[arg-type]
    "=directory is an empty path": lambda: BatchManager(""),
    "database must be a path, as text or as pathlib.Path, not 5": lambda: BatchManager("a", database=5),  # type: ignore[arg-type]
    "client must be Client(...) or None, not 5": lambda: BatchManager("a", client=5),  # type: ignore[arg-type]
    "limits must be JobLimits(...) or None, not 5": lambda: BatchManager("a", limits=5),  # type: ignore[arg-type]
    "timeouts must be Timeouts(...) or None, not 5": lambda: BatchManager("a", timeouts=5),  # type: ignore[arg-type]
    "retry must be Retry(...) or None, not 5": lambda: BatchManager("a", retry=5),  # type: ignore[arg-type]
    "ssl must be a TLS context": lambda: BatchManager("a", ssl="ca.pem"),  # type: ignore[arg-type]
    "allow_hosts must be a list of host names, not 5": lambda: BatchManager("a", allow_hosts=5),  # type: ignore[arg-type]
    "allow_hosts must be a list of host names, and 5 is not text": lambda: BatchManager("a", allow_hosts=[5]),  # type: ignore[list-item]
    "webhook_secrets must be a list of secrets, not int": lambda: BatchManager("a", webhook_secrets=5),  # type: ignore[arg-type]
    "a webhook secret must be text, not int": lambda: BatchManager("a", webhook_secrets=[5]),  # type: ignore[list-item]
    "=a webhook secret has 24 to 64 bytes": lambda: BatchManager("a", webhook_secrets=["whsec_AAAA"]),
    "=cannot be signed without a secret": lambda: BatchManager("a", webhook_secrets=[]),
    "webhook_delays must be a list of seconds, not 5": lambda: BatchManager("a", webhook_delays=5),  # type: ignore[arg-type]
    "webhook_delays must be a number of seconds, not '5'": lambda: BatchManager("a", webhook_delays=("5",)),  # type: ignore[arg-type]
    "=webhook_delays must be at least 0 seconds, not -1": lambda: BatchManager("a", webhook_delays=(-1,)),
    "media must be wme_async.integrations.media.Media() or None, not 5": lambda: BatchManager("a", media=5),  # type: ignore[arg-type]
    "=file_url must be a URL such as https://example.com/downloads, not": lambda: BatchManager("a", file_url="files"),
    "Cost.requests must be a whole number, not '1'": lambda: Cost(pool="ondemand", requests="1"),  # type: ignore[arg-type]
    "=Cost.requests must be at least 0, not -1": lambda: Cost(pool="ondemand", requests=-1),
    "=Cost.pool must be 'ondemand', 'snapshot', 'chunk', not 'x'": lambda: Cost(pool="x", requests=1),
    "=data must be a folder with files such as articles.ndjson": lambda: Simulator(data="nowhere"),
    "article_size must be a whole number, not 'big'": lambda: Simulator(article_size="big"),  # type: ignore[arg-type]
    "groups must be a list of names, not 5": lambda: Simulator(groups=5),  # type: ignore[arg-type]
    "file_url must be text, not 5": lambda: BatchManager("a", file_url=5),  # type: ignore[arg-type]
    "JobLimits.urls must be a whole number, not '5'": lambda: JobLimits(urls="5"),  # type: ignore[arg-type]
    "JobLimits.running must be a whole number, not 2.5": lambda: JobLimits(running=2.5),  # type: ignore[arg-type]
    "JobLimits.bandwidth must be a number of bytes a second, not 'x'": lambda: JobLimits(bandwidth="x"),  # type: ignore[arg-type]
    "JobLimits.free_space must be a whole number of bytes, not None": lambda: JobLimits(free_space=None),  # type: ignore[arg-type]
    "=JobLimits.urls must be at least 1, not 0": lambda: JobLimits(urls=0),
    "urls must be a list of URLs, not 5": lambda: split(5),  # type: ignore[arg-type]
    "size must be a whole number, not '2'": lambda: split(["a"], "2"),  # type: ignore[arg-type]
    "=size must be at least 1, not 0": lambda: split(["a"], 0),
    "path must be a path, as text or as pathlib.Path, not 7": lambda: from_csv(7),  # type: ignore[arg-type]
    "=path is an empty path": lambda: from_csv(""),
    "body must be the bytes of the request as received, not dict": lambda: verify_webhook({}, {}, new_secret()),  # type: ignore[arg-type]
    "headers must be a mapping of name and value, not list": lambda: verify_webhook(b"", [], new_secret()),  # type: ignore[arg-type]
    "secrets must be a webhook secret or a list of them, not int": lambda: verify_webhook(b"", {}, 5),  # type: ignore[arg-type]
    "=secrets is empty, so no webhook could be verified": lambda: verify_webhook(b"", {}, []),
    # The service
    "manager must be a BatchManager, such as": lambda: create_app("downloads", api_keys=None),  # type: ignore[arg-type]
    'such as BatchManager("downloads"), not <class': lambda: create_asgi(BatchManager, api_keys=None),  # type: ignore[arg-type]
    "allowed_hosts must be a list of names, not 5": lambda: app(allowed_hosts=5),
    "allowed_hosts must be a list of names, and 5 is not text": lambda: app(allowed_hosts=[5]),
    "create_rate must be a number, not 'x'": lambda: app(create_rate="x"),
    "create_burst must be a whole number, not 1.5": lambda: app(create_burst=1.5),
    "=create_rate must be a number above 0, not -1": lambda: app(create_rate=-1),
    "public_url must be text, not 5": lambda: app(public_url=5),
    "=public_url must be a URL such as https://example.com/downloads, not 'x'": lambda: app(public_url="x"),
    "a key must be text, not int": lambda: hash_key(5),  # type: ignore[arg-type]
    # The simulator
    "articles must be a whole number, not 'x'": lambda: Simulator(articles="x"),  # type: ignore[arg-type]
    "=articles is 0 or more, not -1": lambda: Simulator(articles=-1),
    "expires_in must be a number, not 'x'": lambda: Simulator(expires_in="x"),  # type: ignore[arg-type]
    "username must be text, not int": lambda: Simulator(username=5),  # type: ignore[arg-type]
    "caps must be a dict of group and": lambda: Simulator(caps=5),  # type: ignore[arg-type]
    "caps of group_1 must be a dict of pool and number, not 5": lambda: Simulator(caps={"group_1": 5}),  # type: ignore[dict-item]
    "ports must be a dict of role and port, not 5": lambda: Simulator(ports=5),  # type: ignore[arg-type]
    "=there is no role 'x'": lambda: Simulator(ports={"x": 1}),
    "=access is 2025 or 2026, or rows, not '2024'": lambda: Simulator(access="2024"),  # type: ignore[arg-type]
    "start is epoch seconds, an aware datetime or None, not 'x'": lambda: Simulator(start="x"),  # type: ignore[arg-type]
}  # fmt: skip


def app(**options: Any) -> Any:
    return create_app(BatchManager("a"), api_keys=None, **options)


@pytest.mark.parametrize("words", SYNC)
def test_what_makes_no_sense_is_refused_where_it_is_given(words: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(SYNC[words], words)
    assert not left_in(tmp_path)


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    async with Client(**sim.client_options(), retry=Retry(attempts=1)) as client:
        yield client


AT_ONCE: dict[str, Callable[[Any], Any]] = {
    "type must be a class to decode into": lambda wme: wme.realtime.articles(type="Article"),
    "such as a msgspec Struct, not Mine(": lambda wme: wme.realtime.articles(type=Mine()),
    "parts must be a list of whole numbers, such as [0, 1], not '0'": lambda wme: wme.realtime.articles(parts="0"),
    "such as [0, 1], not b'01'": lambda wme: wme.realtime.articles(parts=b"01"),
    "an item of parts must be a whole number, not '0'": lambda wme: wme.realtime.articles(parts=["0"]),
    "connections must be a whole number, not '3'": lambda wme: wme.realtime.articles(connections="3"),
    "a stream has no option 'offset'; did you mean 'offsets'?": lambda wme: wme.realtime.articles(offset=5),
    "a stream has no option 'keep'": lambda wme: wme.realtime.articles(keep=print),
    "backfill must be True or False, not 'yes'": lambda wme: wme.realtime.articles(backfill="yes"),
    "max_buffer must be a number, not True": lambda wme: wme.realtime.articles(max_buffer=True),
    "recheck must be True, False or None, not 'x'": lambda wme: wme.wikidata.items.get_many(["Q42"], recheck="x"),
    "progress must be a function, not 5": lambda wme: wme.articles.lookup_many(["NATO"], filters=EN, progress=5),
    "ordered must be True or False, not 'no'": lambda wme: wme.articles.lookup_many(["NATO"], filters=EN, ordered="no"),
    "such as a msgspec Struct, not 5": lambda wme: wme.snapshots.read(SNAPSHOT, type=5),
    "tee must be a path, as text or as pathlib.Path, not 5": lambda wme: wme.snapshots.read(SNAPSHOT, tee=5),
    "=tee is an empty path": lambda wme: wme.snapshots.content(SNAPSHOT, tee=""),
}


@pytest.mark.parametrize("words", AT_ONCE)
async def test_what_makes_no_sense_is_refused_before_it_is_awaited(words: str, sim: Simulator, wme: Client) -> None:
    refused(lambda: AT_ONCE[words](wme), words)
    assert not len(sim.requests)


ASYNC: dict[str, Callable[[Any, Path], Awaitable[Any]]] = {
    "type must be a class to decode into": lambda wme, _: wme.projects.list(type=5),
    "such as a msgspec Struct, not Mine(": lambda wme, _: wme.projects.list(type=Mine()),
    "such as a msgspec Struct, not 'Mine'": lambda wme, _: wme.articles.lookup("NATO", type="Mine"),
    'order is "project"': lambda wme, _: wme.articles.lookup("NATO", order=5),
    "=missing must be 'empty', 'raise', not []": lambda wme, _: wme.articles.lookup("NATO", missing=[]),
    "recheck must be True, False or None": lambda wme, _: wme.wikidata.items.get("Q42", recheck="x"),
    "recheck must be True, False or None, not 1": lambda wme, _: wme.wikidata.labels.get("Q42", recheck=1),
    "to must be a path, as text or as pathlib.Path, not None": lambda wme, _: wme.snapshots.download(SNAPSHOT, None),
    "to must be a path, as text or as pathlib.Path, not b'x'": lambda wme, _: wme.snapshots.download(SNAPSHOT, b"x"),
    '=to is an empty path; the current folder is "."': lambda wme, _: wme.snapshots.download(SNAPSHOT, ""),
    "if_changed must be True or False, not 'no'": lambda wme, to: wme.snapshots.download(SNAPSHOT, to, if_changed="no"),
    "verify must be True or False, not 'no'": lambda wme, to: wme.files.download("Ottawa 0757.jpg", to, verify="no"),
    "progress must be a function, not 5": lambda wme, to: wme.files.download("Ottawa 0757.jpg", to, progress=5),
    "the name of positions must be text such as 'default/articles', not 5": lambda _, to: FileOffsets(to).load(5),  # type: ignore[arg-type]
    "and 0: 5 is not": lambda _, to: FileOffsets(to).save("a", {0: 5}),  # type: ignore[dict-item]
    "and '0': Position(": lambda _, to: SQLiteOffsets(to / "o.db").save("a", {"0": Position(5)}),  # type: ignore[dict-item]
    "positions must be a dict of partition and Position, not [1]": lambda _, to: FileOffsets(to).save("a", [1]),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("words", ASYNC)
async def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    words: str, sim: Simulator, wme: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError if words.startswith("=") else TypeError) as caught:
        await ASYNC[words](wme, tmp_path)
    told(caught.value, words)
    assert not len(sim.requests)
    assert not left_in(tmp_path)


MANAGED: dict[str, Callable[[BatchManager], Awaitable[Any]]] = {
    "concurrent_limit of the batch must be a whole number, not '3'": lambda m: m.submit(["a"], concurrent_limit="3"),  # type: ignore[arg-type]
    "stop_on_error of the batch must be True or False, not 'no'": lambda m: m.submit(["a"], stop_on_error="no"),  # type: ignore[arg-type]
    "timeout of the batch must be a number, not 'x'": lambda m: m.submit(["a"], timeout="x"),  # type: ignore[arg-type]
    "path_template of the batch must be text, not 5": lambda m: m.submit(["a"], path_template=5),  # type: ignore[arg-type]
    "webhook_url of the batch must be text or None, not 5": lambda m: m.submit(["a"], webhook_url=5),  # type: ignore[arg-type]
    "limit must be a whole number, not '5'": lambda m: m.list(limit="5"),  # type: ignore[arg-type]
    "=limit is 1 to 500, not 0": lambda m: m.list(limit=0),
    "=status must be one of queued, running": lambda m: m.list(status="done"),
    "after must be a whole number, not 'x'": lambda m: anext(m.watch(after="x")),  # type: ignore[arg-type]
    "progress must be a function, not 5": lambda m: m.wait("x", progress=5),  # type: ignore[arg-type]
    "timeout must be a number, not 'x'": lambda m: m.wait("x", timeout="x"),  # type: ignore[arg-type]
    "keep must be a number, not 'x'": lambda m: m.rotate_webhook_secret(keep="x"),  # type: ignore[arg-type]
    "=keep must be a number of seconds, 0 or more, not -1": lambda m: m.rotate_webhook_secret(keep=-1),
    "port must be a whole number, not '80'": lambda m: serve(m, port="80", api_keys=None),  # type: ignore[arg-type]
    "=port must be 0 to 65535, not 70000": lambda m: serve(m, port=70000, api_keys=None),
    "=host is empty": lambda m: serve(m, host="", api_keys=None),
    "host must be text, not 5": lambda m: serve(m, host=5, api_keys=None),  # type: ignore[arg-type]
    "on_ready must be a function, not 5": lambda m: serve(m, on_ready=5, api_keys=None),  # type: ignore[arg-type]
    "api_keys must be a list of keys, not one str": lambda m: serve(m, api_keys="a-secret-key"),
    "api_keys must be a list of keys, not one int": lambda m: serve(m, api_keys=5),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("words", MANAGED)
async def test_a_manager_refuses_what_makes_no_sense_in_its_own_words(words: str, tmp_path: Path) -> None:
    async with BatchManager(tmp_path) as manager:
        with pytest.raises(ValueError if words.startswith("=") else TypeError) as caught:
            await MANAGED[words](manager)
        told(caught.value, words)
        assert not (await manager.list()).batches


async def test_lists_of_a_stream_have_bounds_that_are_numbers(wme: Client) -> None:
    async with wme.realtime.articles() as stream:
        refused(lambda: stream.batches("3"), "max_items must be a whole number, not '3'")  # type: ignore[arg-type]
        refused(lambda: stream.batches(3, max_wait="x"), "max_wait must be a number of seconds, not 'x'")  # type: ignore[arg-type]
        refused(lambda: stream.batches(0), "=max_items must be at least 1")


async def test_the_simulator_refuses_what_would_break_a_later_request(sim: Simulator) -> None:
    faults: Any = sim.faults
    refused(lambda: faults.inject("reset", times="x"), "times must be a whole number, not 'x'")
    refused(lambda: faults.inject("reset", skip=-1), "=skip is 0 or more, not -1")
    refused(lambda: faults.inject("reset", path=5), "path must be a piece of the path or a pattern, not 5")
    refused(lambda: faults.script("reset"), "steps must be a list of kinds, such as ['reset'], not one string")
    assert not len(faults)
    refused(lambda: sim.firehose.publish(partition=99), "=partition is 0 to 49, not 99")
    refused(lambda: sim.pages.add({}), '=a page is {"name": ..., "is_part_of"')


def test_arrow_refuses_what_is_no_type_and_no_path() -> None:
    arrow = pytest.importorskip("wme_async.integrations.arrow", exc_type=ImportError)
    refused(lambda: arrow.schema_of(5), "type must be a class to decode into, such as a msgspec Struct, not 5")
    refused(lambda: arrow.schema_of(list), "a table needs a type with fields")
    refused(lambda: arrow.unwritten(5), "folder must be a path, as text or as pathlib.Path, not 5")


async def records() -> AsyncIterator[Mine]:
    yield Mine()


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ([Mine()], {}, "records must be an async iterable of records, not [Mine("),
        (None, {"to": ""}, "=to is an empty path"),
        (None, {"to": 5}, "to must be a path, as text or as pathlib.Path, not 5"),
        (None, {"row_group_bytes": "x"}, "row_group_bytes must be a whole number of bytes, not 'x'"),
        (None, {"row_group_bytes": 0}, "=row_group_bytes must be a whole number of bytes above 0, not 0"),
        (None, {"compression": 5}, "compression must be text such as 'zstd', not 5"),
        (None, {"compression": "nope"}, "=Parquet has no compression 'nope'"),
        (None, {"type": type("Other", (msgspec.Struct,), {"__annotations__": {"other": int}})}, "is not that of the"),
    ],
)
async def test_parquet_refuses_what_it_cannot_be_written_with(
    source: Any, options: Any, words: str, tmp_path: Path
) -> None:
    arrow = pytest.importorskip("wme_async.integrations.arrow", exc_type=ImportError)
    options = {"to": tmp_path / "a.parquet", "type": Mine, **options}
    with pytest.raises(ValueError if words.startswith("=") else TypeError) as caught:
        await arrow.write_parquet(records() if source is None else source, **options)
    assert words.removeprefix("=") in str(caught.value)
    assert not left_in(tmp_path)


@pytest.mark.parametrize(
    ("chunks", "options", "words"),
    [
        ([b"x"], {}, "chunks must be an async iterable of bytes, not [b'x']"),
        (["x"], {}, "chunks must be bytes, and one is str"),
        ([b"x"], {"to": 5}, "to must be a path, as text or as pathlib.Path, not 5"),
        ([b"x"], {"part_size": "x"}, "part_size must be a whole number, not 'x'"),
        ([b"x"], {"connections": 0}, "=connections must be at least 1, not 0"),
    ],
)
async def test_an_upload_refuses_what_it_cannot_send(chunks: Any, options: Any, words: str, tmp_path: Path) -> None:
    cloud = pytest.importorskip("wme_async.integrations.cloud", exc_type=ImportError)

    async def given() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    options = {"to": f"file://{tmp_path}/a", **options}
    with pytest.raises(ValueError if words.startswith("=") else TypeError) as caught:
        await cloud.upload(chunks if "iterable" in words else given(), **options)
    told(caught.value, words)
    assert not left_in(tmp_path)
