"""The firehose against the simulator: whatever goes wrong, nothing is lost, nothing comes twice, order is kept."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wall_clock import utc_now

from wme_async._stream import (
    Stream,
    StreamBadRecord,
    StreamCommitFailed,
    StreamCommitted,
    StreamConnected,
    StreamDisconnected,
    StreamEvent,
    StreamGap,
    StreamRetrying,
    checked_options,
)
from wme_async._stream import backfill as backfill_module
from wme_async._stream.backfill import GapFiller
from wme_async._stream.connection import _framing_of as framing_of
from wme_async._stream.partitions import Missing, Partitions
from wme_async._stream.record_types import EventPosition, RecordType, published_of
from wme_async._stream.resume import StreamResource
from wme_async._stream.statistics import StatisticsCollector
from wme_async._transport import Credentials, Request, Transport
from wme_async.errors import (
    DecodeError,
    Forbidden,
    IdleTimeout,
    Interrupted,
    OffsetGap,
    ServerError,
    StreamError,
    TimedOut,
    TransportError,
    Unauthorized,
    Unprocessable,
    WMEError,
)
from wme_async.models import Article
from wme_async.offsets import MemoryOffsets, Position, SQLiteOffsets
from wme_async.settings import Hosts, Retry, Timeouts
from wme_async.simulator import Simulator

KEY = "default/articles"
PATH = "/v2/articles"
SHORT = Retry(attempts=2, base=0.001, cap=0.001)


def row(retention: float = 48 * 3600.0) -> StreamResource:
    return StreamResource(name="articles", path=PATH, retention=retention)


@contextlib.asynccontextmanager
async def world(**options: Any) -> AsyncIterator[tuple[Simulator, Transport]]:
    async with Simulator(**options) as sim:
        made = sim.client_options()
        transport = Transport(Credentials(made["username"], made["password"]), hosts=Hosts(**made["hosts"]))
        try:
            yield sim, transport
        finally:
            await transport.aclose()


@pytest.fixture(name="world")
async def _world() -> AsyncIterator[tuple[Simulator, Transport]]:
    async with world() as (sim, transport):
        yield sim, transport
        assert transport.open_bodies == 0
        await sim.firehose.wait_open(0)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("wme stream")]


class Checker:
    """Counts what comes and insists on order."""

    def __init__(self) -> None:
        self.last: dict[int, int] = defaultdict(lambda: -1)
        self.got: list[tuple[int, int]] = []

    def take(self, article: Any) -> None:
        event = article.event
        assert event.offset > self.last[event.partition], "out of order, or twice"
        self.last[event.partition] = event.offset
        self.got.append((event.partition, event.offset))

    async def read(self, stream: Stream[Any], count: int, seconds: float = 20.0) -> None:
        if count <= 0:
            return
        async with asyncio.timeout(seconds):
            async for article in stream:
                self.take(article)
                count -= 1
                if not count:
                    return


def articles(transport: Transport, **options: Any) -> Stream[Any]:
    # As for ever as the default, but with short waits.
    patient = Retry(attempts=1000, base=0.001, cap=0.01, total=1e6)
    inner = {name: options.pop(name) for name in ("type", "keep", "fields", "filters", "backfill") if name in options}
    resource = row()
    checked = checked_options({"commit_interval": 60.0, "retry": patient, **options}, resource)
    return Stream(transport, resource, options=checked, **{"type": Article, **inner})


World = tuple[Simulator, Transport]
FRAMINGS = pytest.mark.parametrize("framing", ["ndjson", "sse"])


# Nothing lost, nothing twice


@FRAMINGS
@pytest.mark.parametrize("connections", [1, 10])
async def test_cuts_of_all_kinds_lose_nothing_and_repeat_nothing(framing: Any, connections: int, world: World) -> None:
    sim, transport = world
    for how in ("reset", "truncated", "clean"):
        sim.faults.inject("cut", role="realtime", times=10, within=(1, 9000), how=how)
    hook: list[StreamEvent] = []
    check = Checker()
    async with articles(transport, connections=connections, framing=framing, on_event=hook.append) as stream:
        sent = sim.firehose.publish_many(1500)
        await check.read(stream, len(sent))
        numbers = stream.statistics()
    assert sorted(check.got) == sorted(sent)
    assert numbers.events == len(sent)
    assert numbers.reconnects >= 10
    assert numbers.reconnects == numbers.connects - connections
    cuts = [event for event in hook if isinstance(event, StreamDisconnected)]
    assert len(cuts) >= 10
    assert all(isinstance(cut.error, Interrupted) for cut in cuts)


async def test_a_partition_that_speaks_only_while_nobody_reads_loses_nothing(world: World) -> None:
    """The server starts a partition that is not named live; one never heard from has to be asked for by time."""
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, parts=[3]) as stream:
        sim.firehose.publish(partition=15)
        stream.ack(await anext(stream))
    silent = [sim.firehose.publish(partition=16), sim.firehose.publish(partition=15)]
    check = Checker()
    async with articles(transport, offsets=store, parts=[3]) as stream:
        await check.read(stream, 2)
        # The same within one run, over a cut.
        sim.firehose.disconnect("reset")
        await sim.firehose.wait_open(0)
        silent.append(sim.firehose.publish(partition=17))
        await check.read(stream, 1)
    assert sorted(check.got) == sorted(silent)


async def take(stream: Stream[Any], count: int, seconds: float = 10.0) -> AsyncIterator[Any]:
    async with asyncio.timeout(seconds):
        while count:
            yield await anext(stream)
            count -= 1


async def test_the_simulator_refuses_no_request_of_a_stream(world: World) -> None:
    sim, transport = world
    sim.faults.inject("cut", role="realtime", times=20, within=(1, 3000))
    async with articles(transport, fields=["name", "version.sizes.*", "event.type"]) as stream:
        sent = sim.firehose.publish_many(300)
        await Checker().read(stream, len(sent))
    assert not sim.firehose.refused
    assert len(sim.firehose.connections) == 21
    assert all(sorted(connection.request.parts) == list(range(10)) for connection in sim.firehose.connections)


async def test_filtered_and_pruned_streams_resume_too(world: World) -> None:
    sim, transport = world
    sim.faults.inject("cut", role="realtime", times=15, within=(1, 2000))
    check = Checker()
    wanted = [{"field": "event.type", "value": "delete"}]
    async with articles(transport, fields=["name"], filters=wanted, connections=2) as stream:
        sent = []
        for _ in range(200):
            sim.firehose.publish()
            sent.append(sim.firehose.publish(kind="delete"))
        await check.read(stream, len(sent))
    assert sorted(check.got) == sorted(sent)


async def test_what_keep_leaves_out_moves_the_position_on(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, keep=lambda article: article.event.type == "delete") as stream:
        sim.firehose.publish(partition=1)
        sim.firehose.publish(partition=1, kind="delete")
        sim.firehose.publish(partition=1)
        sim.firehose.publish(partition=2)
        sim.firehose.publish(partition=3, kind="delete")
        seen = [article.event async for article in take(stream, 2)]
        assert [event.type for event in seen] == ["delete", "delete"]
        assert stream.positions[1].offset in {1, 2}
        assert stream.statistics().filtered >= 2
    saved = await store.load(KEY)
    assert saved[1].offset in {1, 2}


async def test_replayed_events_are_dropped_as_duplicates(world: World) -> None:
    sim, transport = world
    sim.faults.inject("replay", role="realtime", at=50, count=30)
    check = Checker()
    async with articles(transport) as stream:
        sent = sim.firehose.publish_many(200)
        await check.read(stream, 200)
        assert stream.statistics().duplicates == 30
    assert sorted(check.got) == sorted(sent)


# Endings


@pytest.mark.parametrize(
    ("fault", "details"),
    [
        ("status", {"status": 500, "body": b""}),
        ("status", {"status": 503}),
        ("status", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("reset", {}),
        ("refuse", {}),
        ("eof", {"at": 0}),
        ("error_line", {"at": 1}),
    ],
)
async def test_what_may_get_better_is_tried_again(fault: str, details: dict[str, Any], world: World) -> None:
    sim, transport = world
    sim.faults.inject(fault, role="realtime", times=2, skip=0, **details)
    check = Checker()
    async with articles(transport) as stream:
        sent = sim.firehose.publish_many(20)
        await check.read(stream, 20)
    assert sorted(check.got) == sorted(sent)


async def test_an_error_that_the_server_writes_into_the_stream_is_told_and_ends_the_connection(world: World) -> None:
    sim, transport = world
    sim.faults.inject("error_line", role="realtime", at=3)
    hook: list[StreamEvent] = []
    async with articles(transport, on_event=hook.append) as stream:
        sim.firehose.publish_many(10)
        await Checker().read(stream, 10)
    (cut,) = [event for event in hook if isinstance(event, StreamDisconnected)]
    assert isinstance(cut.error, ServerError)
    assert "query terminated unexpectedly" in str(cut.error)


@pytest.mark.parametrize(("status", "kind"), [(403, Forbidden), (422, Unprocessable)])
async def test_a_fatal_answer_is_raised_at_once_with_the_servers_words(
    status: int, kind: type[Exception], world: World
) -> None:
    sim, transport = world
    sim.faults.inject("status", role="realtime", status=status, message="words of the server", times=None)
    stream = articles(transport, connections=3)
    async with stream:
        async with asyncio.timeout(5):
            with pytest.raises(kind, match="words of the server"):
                await anext(stream)
        with pytest.raises(kind):
            await anext(stream)
    assert len([request for request in sim.requests if request.path == PATH]) <= 3


async def test_wrong_credentials_end_a_stream_that_never_worked() -> None:
    async with world() as (sim, _):
        transport = Transport(Credentials("nobody", "wrong"), hosts=Hosts(**sim.client_options()["hosts"]))
        try:
            async with articles(transport) as stream:
                with pytest.raises(Unauthorized):
                    await anext(stream)
        finally:
            await transport.aclose()


async def test_a_refused_token_after_the_stream_had_worked_is_put_up_with_for_a_while(world: World) -> None:
    sim, transport = world
    hook: list[StreamEvent] = []
    async with articles(transport, on_event=hook.append, retry=Retry(attempts=99, base=0.001)) as stream:
        sim.firehose.publish(partition=7)
        await anext(stream)
        for times, fatal in ((4, False), (None, True)):
            # Each attempt asks twice: with the old token, and with a fresh one.
            fault = sim.faults.inject("status", role="realtime", status=401, times=times)
            sim.firehose.disconnect("reset")
            await sim.firehose.wait_open(0)
            sim.firehose.publish(partition=7)
            if fatal:
                with pytest.raises(Unauthorized):
                    await anext(stream)
            else:
                await anext(stream)
            fault.remove()
    refused = [event for event in hook if isinstance(event, StreamRetrying) and isinstance(event.error, Unauthorized)]
    assert len(refused) == 2 + 4


async def test_a_stream_with_a_retry_of_its_own_gives_up_with_the_last_error(world: World) -> None:
    sim, transport = world
    sim.faults.inject("status", role="realtime", status=503, times=None)
    async with articles(transport, retry=SHORT) as stream:
        with pytest.raises(ServerError) as caught:
            await anext(stream)
    assert caught.value.__notes__ == ["gave up after 2 attempts"]


async def test_progress_makes_the_attempts_begin_anew(world: World) -> None:
    """Two attempts are allowed, and there are twenty cuts; but each connection brings something."""
    sim, transport = world
    sim.faults.inject("cut", role="realtime", times=20, after=1500)
    check = Checker()
    async with articles(transport, retry=SHORT) as stream:
        sent = sim.firehose.publish_many(200)
        await check.read(stream, 200)
    assert sorted(check.got) == sorted(sent)


# Silence


@pytest.mark.parametrize("fault", ["stall", "hang_head"])
async def test_a_dead_connection_is_noticed_within_the_idle_timeout(fault: str, world: World) -> None:
    sim, transport = world
    details: dict[str, Any] = {"after": 700} if fault == "stall" else {}
    sim.faults.inject(fault, role="realtime", **details)
    hook: list[StreamEvent] = []
    check = Checker()
    async with articles(transport, idle_timeout=0.2, on_event=hook.append) as stream:
        sent = sim.firehose.publish_many(30)
        await check.read(stream, 30, 5.0)
    assert sorted(check.got) == sorted(sent)
    cut = next(event for event in hook if isinstance(event, StreamDisconnected))
    assert cut.seconds > 0.15


async def test_silence_is_an_error_only_if_the_attempts_are_bounded(world: World) -> None:
    _, transport = world
    async with articles(transport, idle_timeout=0.05, retry=SHORT) as stream:
        with pytest.raises(IdleTimeout, match=r"nothing for 0\.05 s, 2 times"):
            await anext(stream)


async def test_a_sign_in_that_hangs_is_not_taken_for_silence_of_the_stream() -> None:
    async with Simulator() as sim:
        made = sim.client_options()
        transport = Transport(
            Credentials(made["username"], made["password"]),
            hosts=Hosts(**made["hosts"]),
            timeouts=Timeouts(read=0.05),
            retry=Retry(attempts=1),
        )
        sim.faults.inject("hang_head", role="auth", times=100)
        try:
            async with articles(transport, retry=SHORT) as stream:
                with pytest.raises(TimedOut, match="login"):
                    await anext(stream)
                assert not stream._receiver.connections[0]._silent, "nobody has listened"
        finally:
            await transport.aclose()


async def test_a_slow_consumer_slows_the_socket_and_is_not_taken_for_silence(world: World) -> None:
    sim, transport = world
    hook: list[StreamEvent] = []
    sim.firehose.publish_many(400, size=30_000)
    check = Checker()
    async with articles(transport, max_buffer=100_000, idle_timeout=0.3, on_event=hook.append) as stream:
        await check.read(stream, 1)
        await asyncio.sleep(0.7)
        numbers = stream.statistics()
        # One block may come on top, and blocks are what the socket's buffer holds.
        assert numbers.buffered < 100_000 + 1_000_000
        assert numbers.bytes < 6_000_000
        await check.read(stream, 399)
    assert len(check.got) == 400


async def test_long_records_that_wait_are_counted_whole(world: World) -> None:
    sim, transport = world
    async with articles(transport, max_buffer=2_000_000) as stream:
        for _ in range(8):
            sim.firehose.publish(partition=7, size=3_000_000)
        async with asyncio.timeout(10):
            while not stream._receiver.buffer.full:  # noqa: ASYNC110  # nothing tells when it is
                await asyncio.sleep(0.001)
        records: list[Any] = [record for block in stream._receiver.buffer._blocks for record in block.records]
        held = sum(map(len, records))
        assert 3_000_000 <= held < 2 * 3_100_000
        assert stream.statistics().buffered >= held


# Positions


async def test_an_event_counts_as_processed_when_the_next_is_asked_for(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store) as stream:
        sim.firehose.publish_many(5, partition=7)
        for expected in range(5):
            await anext(stream)
            assert stream.positions[7].offset == expected - 1
            await stream.commit()
            assert (await store.load(KEY))[7].offset == expected - 1
    assert (await store.load(KEY))[7].offset == 3
    async with articles(transport, offsets=store) as stream:
        article = await anext(stream)
        assert article.event.offset == 4
        stream.ack(article)
        stream.ack(article)
    assert (await store.load(KEY))[7].offset == 4


async def test_acknowledged_out_of_order_a_partition_moves_up_to_the_first_that_is_not(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, commit="ack") as stream:
        sim.firehose.publish_many(6, partition=7)
        got = [article async for article in take(stream, 6)]
        for index, position in ((3, -1), (0, 0), (2, 0), (1, 3), (1, 3), (5, 3), (4, 5)):
            stream.ack(got[index])
            assert stream.positions[7].offset == position
        stranger = msgspec.convert({"event": {"partition": 7, "offset": 99}}, Article)
        with pytest.raises(ValueError, match="not from this stream"):
            stream.ack(stranger)
    assert (await store.load(KEY))[7].offset == 5


async def test_acknowledging_what_never_came_is_refused(world: World) -> None:
    sim, transport = world
    async with articles(transport) as stream:
        sim.firehose.publish(partition=7)
        await anext(stream)
        with pytest.raises(ValueError, match="not from this stream"):
            stream.ack(msgspec.convert({"event": {"partition": 7, "offset": 1}}, Article))


async def test_manual_commits_save_nothing_by_themselves(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, commit="manual", commit_interval=0.01) as stream:
        sim.firehose.publish_many(3, partition=7)
        for _ in range(3):
            await anext(stream)
        await asyncio.sleep(0.05)
        assert (await store.load(KEY))[7].offset == -1
        await stream.commit()
        assert (await store.load(KEY))[7].offset == 1
    assert (await store.load(KEY))[7].offset == 1


async def test_positions_are_saved_while_the_stream_is_silent(world: World) -> None:
    sim, transport = world
    saved = asyncio.Event()

    def watch(event: StreamEvent) -> None:
        if isinstance(event, StreamCommitted) and event.partitions == 1:
            saved.set()

    store = MemoryOffsets()
    async with articles(transport, offsets=store, commit_interval=0.02, on_event=watch) as stream:
        sim.firehose.publish_many(2, partition=7)
        await anext(stream)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        async with asyncio.timeout(5):
            while (await store.load(KEY))[7].offset < 1:
                saved.clear()
                await saved.wait()
        waiting.cancel()
        await asyncio.wait({waiting})


class Broken(MemoryOffsets):
    """A store whose disk is full from some save on."""

    works = 1

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        self.works -= 1
        if self.works < 0:
            raise OSError(28, "No space left on device")
        await super().save(name, positions)


async def test_a_store_that_keeps_failing_is_told_and_then_raised(world: World) -> None:
    sim, transport = world
    hook: list[StreamEvent] = []
    stream = articles(transport, offsets=Broken(), commit_interval=0.01, on_event=hook.append)
    sim.firehose.publish_many(2)
    with pytest.raises(OSError, match="No space"):
        async with stream, asyncio.timeout(5):
            async for _ in stream:
                pass
    failures = [event.failures for event in hook if isinstance(event, StreamCommitFailed)]
    assert failures == [1, 2, 3]


async def test_two_readers_of_one_name_are_told(world: World, tmp_path: Path) -> None:
    _, transport = world
    async with articles(transport, offsets=SQLiteOffsets(tmp_path / "o.db")):
        with pytest.raises(StreamError, match="in use by another reader"):
            async with articles(transport, offsets=SQLiteOffsets(tmp_path / "o.db")):
                pass
        async with articles(transport, offsets=SQLiteOffsets(tmp_path / "o.db"), name="other"):
            pass


async def test_a_stream_goes_on_from_positions_that_the_user_keeps(world: World) -> None:
    sim, transport = world
    sim.firehose.publish_many(10, partition=7)
    mine = MemoryOffsets({KEY: {7: Position(4, utc_now())}})
    async with articles(transport, offsets=mine) as stream:
        article = await anext(stream)
        assert article.event.offset == 5


# Beginning


async def test_a_stream_begins_at_since(world: World) -> None:
    sim, transport = world
    now = sim.clock.now()
    for hours in (30, 20, 10):
        sim.firehose.publish(partition=7, published=now - hours * 3600)
    since = datetime.fromtimestamp(now, UTC) - timedelta(hours=25)
    async with articles(transport, since=since) as stream:
        article = await anext(stream)
        assert article.event.offset == 1


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"parts": [11]}, ValueError, "0 to 9"),
        ({"parts": [-1]}, ValueError, "0 to 9"),
        ({"parts": []}, ValueError, "empty"),
        ({"parts": ["0"]}, TypeError, "and '0' is not"),
        ({"parts": [True]}, TypeError, "and True is not"),
        ({"connections": 0}, ValueError, "1 to 10"),
        ({"parts": [1, 2], "connections": 3}, ValueError, "1 to 2"),
        ({"parts": [1, 1]}, ValueError, "twice"),
        ({"connections": 11}, ValueError, "1 to 10"),
        ({"since": datetime(2026, 1, 1)}, ValueError, "time zone"),  # noqa: DTZ001  # the official SDK sends it
        ({"since": "2026-01-01"}, TypeError, "datetime"),
        ({"framing": "xml"}, ValueError, "framing"),
        ({"commit": "often"}, ValueError, "commit"),
        ({"on_gap": "ignore"}, ValueError, "a function"),
        ({"on_bad_record": None}, ValueError, "on_bad_record"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout"),
        ({"commit_interval": -1}, ValueError, "commit_interval"),
        ({"max_buffer": float("inf")}, ValueError, "max_buffer"),
        ({"name": ""}, ValueError, "name"),
        ({"type": 5}, TypeError, "type must be a class to decode into"),
        ({"parts": "0"}, TypeError, "a list of whole numbers, such as"),
        ({"parts": [0.5]}, TypeError, "and 0.5 is not"),
        ({"connections": "3"}, TypeError, "connections must be a whole number, not '3'"),
        ({"max_record": True}, TypeError, "max_record must be a number"),
        ({"name": b"indexer"}, TypeError, "name must be text"),
        ({"parts": 3}, TypeError, "a list of whole numbers"),
        ({"idle_timeout": "300"}, TypeError, "idle_timeout must be a number"),
        ({"offsets": "offsets.db"}, TypeError, "a store, such as SQLiteOffsets"),
        ({"offsets": MemoryOffsets}, TypeError, "a store, such as SQLiteOffsets"),
        ({"retry": False}, TypeError, "retry must be a Retry"),
        ({"on_event": "print"}, TypeError, "on_event must be a function"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        articles(Transport(None), **options)


async def test_a_since_out_of_reach_is_refused_by_the_servers_clock() -> None:
    start = datetime(2025, 7, 16, 5, tzinfo=UTC)
    async with world(start=start) as (_, transport):
        for since in (start + timedelta(hours=1), start - timedelta(hours=49)):
            with pytest.raises(ValueError, match=r"future|older"):
                async with articles(transport, since=since):
                    pass
        async with articles(transport, since=start - timedelta(hours=47)):
            pass
        # A script that names the same time for ever goes on from its positions.
        store = MemoryOffsets({KEY: {0: Position(1, start)}})
        async with articles(transport, since=start - timedelta(days=9), offsets=store):
            pass


async def test_a_clock_that_is_a_year_ahead_is_set_by_the_first_refusal() -> None:
    """The server refuses times in its future; its answer says what time it is."""
    start = datetime(2025, 7, 16, 5, tzinfo=UTC)
    async with world(start=start) as (sim, transport):
        store = MemoryOffsets()
        async with articles(transport, offsets=store, parts=[0]) as stream:
            sim.firehose.publish(partition=1)
            article = await anext(stream)
            assert article.event.partition == 1
        assert len(sim.firehose.refused) == 1
        for position in (await store.load(KEY)).values():
            assert position.published is not None
            assert position.published <= start + timedelta(seconds=10)


async def test_a_stream_is_opened_once_and_used_while_open(world: World) -> None:
    _, transport = world
    stream = articles(transport)
    with pytest.raises(RuntimeError, match="async with"):
        aiter(stream)
    async with stream:
        assert "open" in repr(stream)
        with pytest.raises(RuntimeError, match="opened once"):
            await stream.__aenter__()
    for use in (stream.statistics, lambda: stream.positions, lambda: aiter(stream)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    with pytest.raises(RuntimeError, match="closed"):
        await anext(stream.batches())
    await stream.aclose()


# Leaving


async def test_leaving_in_any_way_leaves_nothing_open(world: World) -> None:
    sim, transport = world
    sim.firehose.publish_many(50)
    async with articles(transport, connections=5) as stream:
        async for _ in stream:
            break
    with pytest.raises(ZeroDivisionError):
        async with articles(transport, connections=5) as stream:
            async for _ in stream:
                _ = 1 / 0
    stream = articles(transport, connections=5)
    await stream.__aenter__()
    await anext(stream)
    await stream.aclose()
    assert transport.open_bodies == 0


@pytest.mark.parametrize("fault", ["hang_head", "stall", None])
async def test_cancelling_the_consumer_leaves_nothing_open(fault: str | None, world: World) -> None:
    sim, transport = world
    if fault is not None:
        sim.faults.inject(fault, role="realtime", times=None)
    started = asyncio.Event()
    store = MemoryOffsets()

    async def consume() -> None:
        async with articles(transport, connections=4, offsets=store) as stream:
            started.set()
            async for _ in stream:
                pass

    sim.firehose.publish_many(20)
    task = asyncio.ensure_future(consume())
    await started.wait()
    await sim.firehose.wait_open(0 if fault == "hang_head" else 4)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert transport.open_bodies == 0
    # The claim was given back.
    async with store.claim(KEY):
        pass


async def test_a_cancelled_wait_for_an_event_costs_nothing(world: World) -> None:
    sim, transport = world
    async with articles(transport) as stream:
        await sim.firehose.wait_open(1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(stream)
        sent = sim.firehose.publish_many(20)
        check = Checker()
        await check.read(stream, 10)
        await check.read(stream, 10)
        assert stream.statistics().reconnects == 0
    assert sorted(check.got) == sorted(sent)


async def test_closing_from_elsewhere_ends_a_waiting_consumer(world: World) -> None:
    _, transport = world
    stream = articles(transport)
    await stream.__aenter__()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting


# Records that do not decode


async def test_a_bad_record_is_raised_and_asking_again_goes_on(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store) as stream:
        sim.firehose.publish(partition=7)
        bad = b'{"name":5,"event":{"type":"update","partition":7,"offset":1,"date_published":"2026-01-01T00:00:00Z"}}'
        sim.firehose.publish(bad, partition=7)
        sim.firehose.publish(partition=7)
        first = await anext(stream)
        assert first.event.offset == 0
        with pytest.raises(DecodeError) as caught:
            await anext(stream)
        assert (caught.value.partition, caught.value.offset, caught.value.record) == (7, 1, bad)
        last = await anext(stream)
        assert last.event.offset == 2
        assert stream.positions[7].offset == 1
    assert (await store.load(KEY))[7].offset == 1


BAD: list[bytes] = [
    b'{"name":5,"event":{"partition":7,"offset":1}}',
    b'{"name":"cut","event":{"date_published":"2021-11-22T08:00:00.5Z","partition":7,"offset":1},"image":{"content',
    b'{"name":"\xff","event":{"partition":7,"offset":1}}',
]


@pytest.mark.parametrize("bad", BAD, ids=["type", "cut", "utf-8"])
@pytest.mark.parametrize("later", [False, True])
async def test_dead_letters_get_the_bytes_and_the_position_moves_on(bad: bytes, later: bool, world: World) -> None:
    sim, transport = world
    letters: list[DecodeError] = []

    async def keep(error: DecodeError) -> None:
        await asyncio.sleep(0)
        letters.append(error)

    sink: Callable[[DecodeError], Any] = keep if later else letters.append
    async with articles(transport, on_bad_record=sink) as stream:
        sim.firehose.publish(partition=7)
        sim.firehose.publish(bad, partition=7)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        async with asyncio.timeout(5):
            while stream.positions[7].offset < 1:  # noqa: ASYNC110  # nothing tells when a position moves
                await asyncio.sleep(0.001)
        # It is not met again after a cut, though nothing has come behind it.
        sim.firehose.disconnect("reset")
        await sim.firehose.wait_open(0)
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7)
        assert (await waiting).event.offset == 2
        assert stream.statistics().bad_records == 1
    (letter,) = letters
    assert (letter.record, letter.partition, letter.offset) == (bad, 7, 1)


@pytest.mark.parametrize("body", [b'{"message":"Forbidden"}\n', b'{"status":500,"message":"terminated"}\n'])
async def test_an_answer_with_nothing_but_an_error_is_no_progress(body: bytes, world: World) -> None:
    """A gateway that answers so would else be asked again and again at the shortest wait, for ever."""
    sim, transport = world
    fault = sim.faults.inject("status", role="realtime", status=200, body=body, times=10)
    hook: list[StreamEvent] = []
    retry = Retry(attempts=3, base=0, cap=0)
    async with articles(transport, retry=retry, on_bad_record="skip", on_event=hook.append) as stream:
        sim.firehose.publish(partition=7)
        with pytest.raises(WMEError):
            await anext(stream)
    assert not fault.spent
    assert len([each for each in hook if isinstance(each, StreamDisconnected)]) == 3
    bad = [each for each in hook if isinstance(each, StreamBadRecord)]
    assert [each.error.record for each in bad] == ([body.strip()] * 3 if b"Forbidden" in body else [])


async def test_bad_records_can_be_skipped_and_are_counted_and_told(world: World) -> None:
    sim, transport = world
    hook: list[StreamEvent] = []
    async with articles(transport, on_bad_record="skip", on_event=hook.append, max_record=100_000) as stream:
        sim.firehose.publish(partition=7)
        sim.firehose.publish(BAD[0], partition=7)
        sim.firehose.publish(b"{}", partition=8)
        sim.firehose.publish(b'{"event":{"type":"update"}}', partition=8)
        sim.firehose.publish(partition=9, size=300_000)
        sim.firehose.publish(partition=7)
        sim.firehose.publish(partition=9)
        got = [(article.event.partition, article.event.offset) async for article in take(stream, 3)]
        assert stream.statistics().bad_records == 4
        assert stream.statistics().partitions[9].offset == 1
    assert sorted(got) == [(7, 0), (7, 2), (9, 1)]
    told = {
        (event.error.partition, event.error.offset): event.error for event in hook if isinstance(event, StreamBadRecord)
    }
    assert set(told) == {(7, 1), (None, None), (9, 0)}
    assert "longer than max_record" in str(told[9, 0])
    assert "no partition and offset" in str(told[None, None])


async def test_a_record_that_was_cut_inside_its_offset_is_not_taken_for_an_earlier_one(world: World) -> None:
    sim, transport = world
    letters: list[DecodeError] = []
    async with articles(transport, on_bad_record=letters.append) as stream:
        sim.firehose.publish_many(12, partition=7)
        bad = b'{"name":"cut","event":{"partition":7,"offset":1'
        sim.firehose.publish(bad, partition=7)
        sim.firehose.publish(partition=7)
        assert [article.event.offset async for article in take(stream, 13)] == [*range(12), 13]
        assert stream.statistics().duplicates == 0
    assert [(letter.record, letter.offset) for letter in letters] == [(bad, None)]


async def test_a_dead_letter_function_that_fails_keeps_the_record(world: World) -> None:
    sim, transport = world
    calls: list[DecodeError] = []

    def fails_once(error: DecodeError) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise OSError("the dead-letter disk is full")

    async with articles(transport, on_bad_record=fails_once) as stream:
        sim.firehose.publish(BAD[0].replace(b'"offset":1', b'"offset":0'), partition=7)
        sim.firehose.publish(partition=7)
        with pytest.raises(OSError, match="full"):
            await anext(stream)
        assert stream.positions[7].offset == -1
        assert (await anext(stream)).event.offset == 1
        assert len(calls) == 2


async def test_a_keep_that_fails_does_not_lose_the_record(world: World) -> None:
    sim, transport = world
    calls: list[Any] = []

    def keep(article: Article) -> bool:
        if article.name == "broken" and not calls:
            raise ZeroDivisionError
        return True

    async with articles(transport, keep=keep) as stream:
        for name in ("a", "broken", "c"):
            sim.firehose.publish({"name": name, "event": {"type": "update"}}, partition=7)
        got = [await anext(stream)]
        with pytest.raises(ZeroDivisionError):
            await anext(stream)
        calls.append(None)
        got += [article async for article in take(stream, 2)]
    assert [article.event.offset for article in got] == [0, 1, 2]


# Types


class Name(msgspec.Struct, frozen=True):
    name: str


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    name: str = msgspec.field(name="name")
    made: int = 0

    def __post_init__(self) -> None:
        self.made += 1
        if self.name == "refused":
            raise ValueError("refused by the type")


class TypeOnly(msgspec.Struct):
    type: str


class WithType(msgspec.Struct):
    name: str
    event: TypeOnly


@pytest.mark.parametrize("kind", [Article, Name, Strict, WithType, dict, msgspec.Raw])
@pytest.mark.parametrize("commit", ["auto", "ack"])
async def test_any_type_is_tracked_whether_it_has_the_event_or_not(kind: Any, commit: Any, world: World) -> None:
    sim, transport = world
    sim.faults.inject("cut", role="realtime", times=3, within=(1, 800))
    store = MemoryOffsets()
    got = []
    stream = articles(transport, type=kind, commit=commit, offsets=store, fields=["name", "event.type"])
    async with stream:
        sim.firehose.publish_many(20, partition=7)
        async for item in take(stream, 20):
            assert type(item) is kind
            stream.ack(item)
            got.append(item)
        assert stream.positions[7].offset == 19
        if commit == "ack" or kind is Article:
            stream.ack(got[0])
        else:
            with pytest.raises(ValueError, match="not from this stream"):
                stream.ack(got[0])
    names = [json.loads(bytes(item))["name"] if kind is msgspec.Raw else getattr(item, "name", None) for item in got]
    assert len(set(names)) == (1 if kind is dict else 20)
    assert (await store.load(KEY))[7].offset == 19
    if kind is Strict:
        assert [item.made for item in got] == [1] * 20


async def test_a_type_that_refuses_a_value_makes_a_bad_record(world: World) -> None:
    sim, transport = world
    async with articles(transport, type=Strict, fields=["name"]) as stream:
        sim.firehose.publish({"name": "refused", "event": {"type": "update"}}, partition=7)
        with pytest.raises(DecodeError, match="refused by the type") as caught:
            await anext(stream)
    assert (caught.value.partition, caught.value.offset) == (7, 0)


# Batches of events


async def test_batches_are_full_when_there_is_enough_and_never_late(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store) as stream:
        sim.firehose.publish_many(25, partition=7)
        batches = stream.batches(10, 0.1)
        first = await anext(batches)
        second = await anext(batches)
        assert stream.positions[7].offset == 9
        third = await anext(batches)
        assert [len(batch) for batch in (first, second, third)] == [10, 10, 5]
        assert stream.positions[7].offset == 19
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.15)
        assert not waiting.done()
        assert stream.positions[7].offset == 24
        sim.firehose.publish(partition=7)
        assert len(await waiting) == 1
        await batches.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert (await store.load(KEY))[7].offset == 24


async def test_batches_survive_cuts_bad_records_and_filters(world: World) -> None:
    sim, transport = world
    sim.faults.inject("cut", role="realtime", times=10, within=(1, 5000))
    check = Checker()
    bad: list[DecodeError] = []
    stream = articles(transport, on_bad_record=bad.append, keep=lambda article: article.event.type == "update")
    async with stream:
        sent = []
        for _ in range(100):
            sent.append(sim.firehose.publish())
            sim.firehose.publish(kind="delete")
        partition, offset = sim.firehose.publish(b"", partition=3)
        sim.firehose.publish(b'{"name":1,"event":{"partition":3,"offset":%d}}' % (offset + 1), partition=partition)
        async with asyncio.timeout(10):
            async for batch in stream.batches(7, 0.01):
                for article in batch:
                    check.take(article)
                if len(check.got) == len(sent):
                    break
    assert sorted(check.got) == sorted(sent)


async def test_batches_can_be_acknowledged_one_by_one(world: World) -> None:
    sim, transport = world
    async with articles(transport, commit="ack") as stream:
        sim.firehose.publish_many(4, partition=7)
        async for batch in stream.batches(4, 1.0):
            stream.ack(batch[1])
            assert stream.positions[7].offset == -1
            stream.ack(batch[0])
            assert stream.positions[7].offset == 1
            break


@pytest.mark.parametrize("kind", [Article, dict])
@pytest.mark.parametrize("commit", ["auto", "ack"])
async def test_a_list_is_not_taken_for_an_event_that_needs_no_acknowledging(
    kind: Any, commit: Any, world: World
) -> None:
    sim, transport = world
    async with articles(transport, type=kind, commit=commit) as stream:
        sim.firehose.publish_many(4, partition=7)
        batch = await anext(stream.batches(4, 1.0))
        with pytest.raises(TypeError, match="not list: call it for each of a list"):
            stream.ack(batch)
        if kind is Article:
            with pytest.raises(TypeError, match="not NoneType"):
                stream.ack(None)
        assert stream.positions[7].offset == -1
        for article in batch:
            stream.ack(article)
        assert stream.positions[7].offset == 3


async def test_batches_refuse_bounds_that_make_no_sense(world: World) -> None:
    _, transport = world
    async with articles(transport) as stream:
        for bounds in ((0, 1.0), (1, -1.0), (1, float("nan"))):
            with pytest.raises(ValueError, match="must be at least"):
                await anext(stream.batches(*bounds))


# Gaps


async def away(sim: Simulator, transport: Transport, store: MemoryOffsets, hours: float, **options: Any) -> None:
    """Read one event of partition 7, then let events come and time pass while nobody reads."""
    async with articles(transport, offsets=store, parts=[1], **options) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
    sim.clock.advance(60)
    sim.firehose.publish_many(5, partition=7)
    sim.clock.advance(hours * 3600)
    sim.firehose.publish_many(5, partition=7)


async def test_a_machine_that_slept_asks_again_by_the_servers_clock(world: World) -> None:
    """Its monotonic clock stood still, so that the position looks fresh; the answer's date says otherwise."""
    sim, transport = world
    store = MemoryOffsets()
    await away(sim, transport, store, 49)
    hook: list[StreamEvent] = []
    async with articles(transport, offsets=store, parts=[1], on_event=hook.append) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7)
        assert (await waiting).event.offset == 6
    asked = [connection.request for connection in sim.firehose.connections][-2:]
    assert [7 in request.offsets for request in asked] == [True, False]
    (cut,) = [event for event in hook if isinstance(event, StreamDisconnected)]
    assert "later than thought" in str(cut.error)


async def learn_the_time(transport: Transport) -> None:
    await transport.request(Request(role="realtime", path="/v2/status"))


async def test_a_reader_that_was_away_for_too_long_is_told_what_is_missing(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    await away(sim, transport, store, 49)
    await learn_the_time(transport)
    gaps: list[OffsetGap] = []
    hook: list[StreamEvent] = []
    async with articles(transport, offsets=store, parts=[1], on_gap=gaps.append, on_event=hook.append) as stream:
        article = await anext(stream)
        assert article.event.offset == 6
        numbers = stream.statistics()
        assert (numbers.gaps, numbers.events) == (1, 1)
        assert stream.positions[7].offset == 0
    (gap,) = gaps
    assert (gap.partition, gap.expected, gap.got, gap.reason) == (7, 1, 6, "retention")
    assert [event.gap for event in hook if isinstance(event, StreamGap)] == [gap]


async def test_a_gap_can_be_raised_and_asking_again_goes_on(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    await away(sim, transport, store, 49)
    await learn_the_time(transport)
    async with articles(transport, offsets=store, parts=[1], on_gap="raise") as stream:
        with pytest.raises(OffsetGap):
            await anext(stream)
        assert (await anext(stream)).event.offset == 6


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_gap_whose_telling_did_not_come_to_an_end_is_told_again(how: str, filled: bool, world: World) -> None:
    sim, transport = world
    hook: list[StreamEvent] = []
    calls: list[OffsetGap] = []

    async def tell(gap: OffsetGap) -> None:
        calls.append(gap)
        if len(calls) == 1:
            if how == "fails":
                raise OSError("the table of gaps is locked")
            asking.cancel()
            await asyncio.sleep(60)

    hours = {hour_of(sim, -49 * 3600): [batch_record(1, hour_of(sim, -49 * 3600))]} if filled else {}
    stream, _ = await gap_world(sim, transport, hours, on_gap=tell, on_event=hook.append)
    async with stream:
        asking = asyncio.ensure_future(anext(stream))
        with pytest.raises(OSError if how == "fails" else asyncio.CancelledError):
            await asking
        assert stream.positions[7].offset == 0
        names = [article.name async for article in take(stream, 1 + filled)]
        assert (names[0] == "Batch 1") is filled
    assert calls == [calls[0]] * 2
    assert [event.gap for event in hook if isinstance(event, StreamGap)] == [calls[0]]


async def test_a_short_absence_is_no_gap_and_an_old_position_is_asked_for_by_time(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    await away(sim, transport, store, 45)
    await learn_the_time(transport)
    async with articles(transport, offsets=store, parts=[1], on_gap="raise") as stream:
        got = [article.event.offset async for article in take(stream, 10)]
        assert got == list(range(1, 11))
        assert stream.statistics().duplicates == 1
    assert 7 in sim.firehose.connections[-1].request.since_per_partition


async def test_an_offset_that_is_gone_is_asked_for_again_by_time(world: World) -> None:
    """The server jumps to live in silence; what it still has is not lost over that, and what it has not is told."""
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, parts=[1]) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
    sim.clock.advance(3600)
    sim.firehose.publish_many(5, partition=7)
    before = sim.clock.now()
    sim.clock.advance(3600)
    sim.firehose.publish_many(5, partition=7)
    sim.firehose.expire(before + 1)
    await learn_the_time(transport)
    gaps: list[OffsetGap] = []
    async with articles(transport, offsets=store, parts=[1], on_gap=gaps.append) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await sim.firehose.wait_open(1)
        assert sim.firehose.connections[-1].jumped == {7}
        sim.clock.advance(5)
        sim.firehose.publish(partition=7)
        got = [(await waiting).event.offset]
        got += [article.event.offset async for article in take(stream, 5)]
    assert got == [6, 7, 8, 9, 10, 11]
    (gap,) = gaps
    assert (gap.expected, gap.got, gap.reason) == (1, 6, "out_of_range")


async def test_filtered_jumps_are_no_gaps(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    wanted = [{"field": "event.type", "value": "delete"}]
    async with articles(transport, offsets=store, filters=wanted) as stream:
        sim.firehose.publish(partition=7, kind="delete")
        stream.ack(await anext(stream))
    sim.firehose.publish_many(50, partition=7)
    sim.clock.advance(7200)
    async with articles(transport, offsets=store, filters=wanted, on_gap="raise") as stream:
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7, kind="delete")
        assert (await anext(stream)).event.offset == 51


def batch_record(number: int, hour: datetime, **event: Any) -> bytes:
    return msgspec.json.encode(
        {
            "name": f"Batch {number}",
            "identifier": number,
            "is_part_of": {"identifier": "enwiki"},
            "version": {"identifier": 1000 + number},
            "event": {"type": "update", "date_created": hour + timedelta(minutes=number), **event},
        }
    )


async def gap_world(
    sim: Simulator, transport: Transport, hours: dict[datetime, list[bytes]], **options: Any
) -> tuple[Stream[Any], list[datetime]]:
    """A reader that comes back after 49 hours, and batches to fill its gap from."""
    store = MemoryOffsets()
    await away(sim, transport, store, 49)
    await learn_the_time(transport)
    asked: list[datetime] = []

    async def backfill(hour: datetime) -> AsyncIterator[bytes]:
        asked.append(hour)
        for record in hours.get(hour, []):
            yield record

    return articles(transport, offsets=store, parts=[1], backfill=backfill, **options), asked


def hour_of(sim: Simulator, ago: float = 0.0) -> datetime:
    moment = datetime.fromtimestamp(sim.clock.now() - ago, UTC)
    return moment.replace(minute=0, second=0, microsecond=0)


async def test_a_gap_is_filled_from_the_hourly_batches_once_and_marked(world: World) -> None:
    sim, transport = world
    # Ten minutes past an hour: around its turn the gap of partition 8, which begins earlier, begins in another one.
    sim.clock.advance(600 + -sim.clock.now() % 3600)
    await learn_the_time(transport)
    end = hour_of(sim, -49 * 3600 - 60)
    hours = {
        end - timedelta(hours=2): [batch_record(1, end - timedelta(hours=2)), b'{"name":1}'],
        end - timedelta(hours=1): [
            batch_record(1, end - timedelta(hours=2)),  # the same revision, in the next hour's batch too
            batch_record(2, end - timedelta(hours=1)),
        ],
    }
    bad: list[DecodeError] = []
    stream, asked = await gap_world(sim, transport, hours, on_bad_record=bad.append)
    async with stream:
        # The stream itself brings one that a batch had.
        record = msgspec.json.decode(batch_record(2, end))
        record["event"]["date_published"] = datetime.fromtimestamp(sim.clock.now(), UTC)
        sim.firehose.publish(msgspec.to_builtins(record), partition=7)
        got: list[tuple[str, bool]] = []
        async for article in take(stream, 2):
            got.append((article.name, stream.backfilled))
            stream.ack(article)
        assert got == [("Batch 1", True), ("Batch 2", True)]
        assert stream.positions[7].offset == 0
        rest = [article async for article in take(stream, 5)]
        assert [article.event.offset for article in rest] == [6, 7, 8, 9, 10]
        assert not stream.backfilled
        sim.firehose.publish(partition=8)
        assert (await anext(stream)).event.partition == 8
        assert stream.positions[7].offset in {10, 11}
        assert stream.statistics().backfilled == 2
    assert len(bad) == 1
    old = [hour for hour in asked if hour < end - timedelta(hours=3)]
    assert old == sorted(set(old))  # the others may not have been ready
    assert max(asked) >= end


@pytest.mark.parametrize("listed", [False, True])
async def test_a_dead_letter_function_that_fails_keeps_the_record_of_a_batch(listed: bool, world: World) -> None:
    sim, transport = world
    hour = hour_of(sim, -49 * 3600)
    calls: list[DecodeError] = []

    def fails_once(error: DecodeError) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise OSError("the dead-letter disk is full")

    bad = b'{"name":1}'
    stream, _ = await gap_world(sim, transport, {hour: [bad, batch_record(1, hour)]}, on_bad_record=fails_once)
    async with stream:
        with pytest.raises(OSError, match="full"):
            await (anext(stream.batches(1, 60)) if listed else anext(stream))
        (article,) = await anext(stream.batches(1, 60)) if listed else [await anext(stream)]
        assert (article.name, stream.backfilled) == ("Batch 1", True)
        assert stream.statistics().bad_records == 1
    assert [error.record for error in calls] == [bad, bad]


async def test_a_backfill_in_batches_of_its_own(world: World) -> None:
    sim, transport = world
    end = hour_of(sim, -49 * 3600 - 60)
    records = [batch_record(number, end - timedelta(hours=1)) for number in range(5)]
    stream, _ = await gap_world(sim, transport, {end - timedelta(hours=1): records})
    async with stream:
        batches = stream.batches(3, 0.05)
        sizes = []
        for _ in range(3):
            batch = await anext(batches)
            sizes.append((len(batch), stream.backfilled, {article.event.offset is None for article in batch}))
        assert sizes[:2] == [(3, True, {True}), (2, True, {True})]
        assert sizes[2][1:] == (False, {False})


async def test_a_backfill_that_fails_is_begun_again(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    await away(sim, transport, store, 49)
    await learn_the_time(transport)
    end = hour_of(sim)
    calls = 0

    async def backfill(hour: datetime) -> AsyncIterator[bytes]:
        nonlocal calls
        calls += 1
        if hour == end - timedelta(hours=1):
            yield batch_record(1, hour)
            if calls < 60:
                calls = 60
                raise Interrupted("the batch broke off")
            yield batch_record(2, hour)

    async with articles(transport, offsets=store, parts=[1], backfill=backfill) as stream:
        names = [(await anext(stream)).name]
        with pytest.raises(Interrupted):
            await anext(stream)
        names += [(await anext(stream)).name]
        assert names == ["Batch 1", "Batch 2"]
        assert (await anext(stream)).event.offset == 6
        assert stream.statistics().gaps == 1


# Watching


async def test_statistics_tell_lag_rate_and_each_partition(world: World) -> None:
    sim, transport = world
    async with articles(transport, parts=[0, 3]) as stream:
        empty = stream.statistics()
        assert (empty.events, empty.lag, empty.catch_up, empty.rate) == (0, None, None, 0.0)
        now = sim.clock.now()
        sim.firehose.publish(partition=2, published=now - 20)
        sim.firehose.publish(partition=16, published=now - 10)
        await Checker().read(stream, 2)
        numbers = stream.statistics()
    assert [each.partition for each in numbers.partitions] == [*range(5), *range(15, 20)]
    heard = {each.partition: each for each in numbers.partitions if each.offset >= 0}
    assert set(heard) == {2, 16}
    assert 18 < (heard[2].age or 0) < 25
    assert heard[2].published is not None
    assert heard[2].connected
    assert 8 < (numbers.lag or 0) < 25
    assert numbers.events == 2
    assert numbers.connected == 1
    assert numbers.bytes > 500


async def test_the_hook_hears_of_everything_and_its_failure_harms_nobody(world: World) -> None:
    sim, transport = world
    sim.faults.inject("cut", role="realtime", after=3000)
    hook: list[StreamEvent] = []

    def watch(event: StreamEvent) -> None:
        hook.append(event)
        raise ZeroDivisionError

    async with articles(transport, on_event=watch) as stream:
        sim.firehose.publish_many(30)
        await Checker().read(stream, 30)
    kinds = [type(event) for event in hook]
    assert kinds[:5] == [StreamCommitted, StreamConnected, StreamDisconnected, StreamRetrying, StreamConnected]
    connected = [event for event in hook if isinstance(event, StreamConnected)]
    assert connected[0].by_time == 50
    assert connected[1].by_offset > 0
    with pytest.raises(AttributeError):
        connected[0].connection = 5  # type: ignore[misc]  # records are frozen


# Bugs of the official SDK


async def test_separators_of_unicode_in_a_title_lose_no_event(world: World) -> None:
    """The official SDK splits lines at U+0085 and drops both halves."""
    sim, transport = world
    async with articles(transport) as stream:
        names = [f"before{mark}after" for mark in "\x85\u2028\u2029\x1c"]
        for name in names:
            sim.firehose.publish({"name": name, "event": {"type": "update"}}, partition=7)
        assert [article.name async for article in take(stream, 4)] == names


async def test_a_clean_end_is_not_the_end(world: World) -> None:
    """The official SDK returns as if nothing had happened."""
    sim, transport = world
    async with articles(transport) as stream:
        sim.firehose.publish(partition=7)
        await anext(stream)
        sim.firehose.disconnect("clean")
        await sim.firehose.wait_open(0)
        sim.firehose.publish(partition=7)
        assert (await anext(stream)).event.offset == 1


async def test_blank_lines_and_spaces_of_an_older_build_are_no_records(world: World) -> None:
    sim, transport = world
    sim.faults.inject("older_framing", role="realtime", times=None)
    async with articles(transport) as stream:
        sim.firehose.publish_many(20)
        await Checker().read(stream, 20)
        assert stream.statistics().bad_records == 0


async def test_a_time_that_stays_in_the_future_is_fatal(world: World) -> None:
    sim, transport = world
    text = "since_per_partition for partition 1 has future time 2026-11-22T08:00:00Z"
    fault = sim.faults.inject("status", role="realtime", status=422, message=text, times=2)
    async with articles(transport) as stream:
        with pytest.raises(Unprocessable, match="future time"):
            await anext(stream)
    assert fault.hits == 2


async def test_a_gap_before_a_bad_record_is_told_too(world: World) -> None:
    sim, transport = world
    store = MemoryOffsets()
    async with articles(transport, offsets=store, parts=[1]) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
    sim.clock.advance(49 * 3600)
    await learn_the_time(transport)
    sim.firehose.skip(7, 3)
    sim.firehose.publish(BAD[0].replace(b'"offset":1', b'"offset":4'), partition=7)
    sim.firehose.publish(partition=7)
    gaps: list[OffsetGap] = []
    async with articles(transport, offsets=store, parts=[1], on_gap=gaps.append, on_bad_record="skip") as stream:
        assert (await anext(stream)).event.offset == 5
        assert stream.statistics().bad_records == 1
    assert [(gap.expected, gap.got) for gap in gaps] == [(1, 4)]


# Pure parts


class Answer:
    """An answer with a content type."""

    def __init__(self, kind: str) -> None:
        self.headers = {"Content-Type": kind} if kind else {}


@pytest.mark.parametrize(
    ("kind", "asked", "framing"),
    [
        ("text/event-stream; charset=utf-8", "ndjson", "sse"),
        ("application/x-ndjson", "sse", "ndjson"),
        ("; charset=utf-8", "ndjson", "ndjson"),  # what the server says to an Accept that it does not know
        ("", "sse", "sse"),
    ],
)
def test_the_framing_is_the_one_that_the_answer_names(kind: str, asked: Any, framing: str) -> None:
    assert framing_of(Answer(kind), asked) == framing  # type: ignore[arg-type]  # it has what is looked at


def test_a_page_of_a_proxy_is_no_stream() -> None:
    with pytest.raises(TransportError, match="text/html"):
        framing_of(Answer("text/html"), "ndjson")  # type: ignore[arg-type]  # it has what is looked at


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def progress_of(positions: Mapping[int, Position], **options: Any) -> Partitions:
    options = {"start": NOON, "retention": 48 * 3600.0, "filtered": True, **options}
    return Partitions([0, 1], positions, **options)


def test_a_quiet_partition_is_known_to_be_whole_after_ten_connected_minutes() -> None:
    progress = progress_of({0: Position(5, NOON)})
    for minute in range(1, 12):
        progress.tick(60.0, now=NOON + timedelta(hours=1, minutes=minute), connected=[0])
        reached = progress.positions()[0].reached
        assert (reached is not None) == (minute >= 10)
    assert reached == NOON + timedelta(hours=1, minutes=1)
    assert progress.positions()[1].reached is None, "it was not connected"
    # An event ends the silence; the position is then that of the event.
    event = EventPosition(0, 9, NOON + timedelta(hours=2))
    progress.by_number[0].read = progress.by_number[0].processed = event
    progress.tick(60.0, now=NOON + timedelta(hours=2), connected=[0])
    assert progress.positions()[0] == Position(9, NOON + timedelta(hours=2))


def test_what_is_read_and_not_processed_is_not_counted_as_whole() -> None:
    progress = progress_of({0: Position(5, NOON)})
    progress.by_number[0].read = EventPosition(0, 9, NOON)
    for minute in range(12):
        progress.tick(60.0, now=NOON + timedelta(minutes=minute), connected=[0])
    assert progress.positions()[0] == Position(5, NOON)
    assert progress.read_positions([0])[0].offset == 9


@given(st.permutations(range(12)), st.integers(0, 12))
def test_a_partition_never_moves_ahead_of_an_event_that_is_not_acknowledged(order: list[int], count: int) -> None:
    progress = progress_of({})
    events = [EventPosition(0, 10 + 3 * number, None) for number in range(12)]
    for event in events:
        progress.hand_out(event)
        progress.by_number[0].read = event
    acknowledged = set()
    for number in order[:count]:
        progress.acknowledge(events[number])
        acknowledged.add(number)
        whole = next((number for number in range(12) if number not in acknowledged), 12)
        expected = events[whole - 1].offset if whole else -1
        assert progress.positions()[0].offset == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-04-11T04:59:23.77047Z", datetime(2025, 4, 11, 4, 59, 23, 770470, tzinfo=UTC)),
        (NOON, NOON),
        ("yesterday", None),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59-05:00", None),
        (None, None),
        (5, None),
        (datetime(2026, 1, 1), None),  # noqa: DTZ001  # without a zone it says nothing
    ],
)
def test_times_of_events_are_read_in_any_form_or_not_at_all(value: Any, expected: datetime | None) -> None:
    assert published_of(EventPosition(0, 0, value)) == expected


class Decoded:
    """As much of a decoder as statistics look at."""

    def __init__(self) -> None:
        self.decoded = self.filtered = self.bad = 0
        self.run = SimpleNamespace(events=[])


def test_the_time_to_catch_up_follows_from_the_speed_of_the_last_minute() -> None:
    decoder: Any = Decoded()
    collector = StatisticsCollector(decoder, progress_of({}), [])

    def measure(at: float, decoded: int, published: datetime, now: datetime) -> tuple[float | None, float]:
        decoder.decoded, decoder.run.events = decoded, [EventPosition(0, decoded, published)]
        numbers = collector.collect(at, now, buffered=0, backfilled=0)
        return numbers.catch_up, numbers.rate

    assert measure(0.0, 0, NOON - timedelta(hours=1), NOON) == (None, 0.0)
    # In ten seconds it came eleven minutes further: 65 times as fast as new events come.
    then = NOON + timedelta(seconds=10)
    catch_up, rate = measure(10.0, 500, NOON - timedelta(minutes=49), then)
    assert rate == 50.0
    assert catch_up == pytest.approx((49 * 60 + 10) / (66 - 1))
    # It goes no faster than the world: there is no catching up.
    assert measure(100.0, 600, NOON - timedelta(minutes=49), NOON)[0] is None
    assert measure(200.0, 600, NOON, NOON)[0] == 0.0


async def test_keys_of_what_was_handed_out_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_module, "_REMEMBERED", 2)
    hour = NOON.replace(minute=0)

    async def batches(hour: datetime) -> AsyncGenerator[bytes]:
        for number in (1, 2, 3, 1):
            yield batch_record(number, hour)
        yield b"not JSON"

    filler = GapFiller(batches, RecordType(Article), None)
    missing = Missing(OffsetGap(partition=0), hour - timedelta(minutes=1), hour)
    got = [
        item.name if isinstance(item, Article) else item
        async for item in filler.fill(missing, now=hour + timedelta(minutes=1))
    ]
    names = [name for name in got if isinstance(name, str)]
    assert names[:4] == ["Batch 1", "Batch 2", "Batch 3", "Batch 1"]
    assert all(isinstance(item, str | DecodeError) for item in got)
    assert filler.remember(b"not JSON")
