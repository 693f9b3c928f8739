"""The firehose against the simulator: whatever goes wrong, nothing is lost, nothing comes twice, order is kept."""

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from conftest import ClientClock
from raw_server import RawRequest, RawServer
from stream_world import (
    KEY,
    PATH,
    SHORT,
    Checker,
    World,
    articles,
    away,
    learn_the_time,
    record,
    take,
    turns,
    until,
    world,
)
from wall_clock import utc_now

from wme_async import (
    Client,
    MemoryOffsets,
    Position,
    Retry,
    SQLiteOffsets,
    Stream,
    StreamBadRecord,
    StreamCommitFailed,
    StreamCommitted,
    StreamConnected,
    StreamDisconnected,
    StreamEvent,
    StreamGap,
    StreamRetrying,
    StreamStatistics,
    Timeouts,
)
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
from wme_async.simulator import Simulator

FRAMINGS = pytest.mark.parametrize("framing", ["ndjson", "sse"])


# Nothing lost, nothing twice


@FRAMINGS
@pytest.mark.parametrize("connections", [1, 10])
async def test_cuts_of_all_kinds_lose_nothing_and_repeat_nothing(framing: Any, connections: int, world: World) -> None:
    sim, wme = world
    for how in ("reset", "truncated", "clean"):
        sim.faults.inject("cut", role="realtime", times=10, within=(1, 9000), how=how)
    hook: list[StreamEvent] = []
    check = Checker()
    async with articles(wme, connections=connections, framing=framing, on_event=hook.append) as stream:
        sent = sim.firehose.publish_many(1500)
        await check.read(stream, len(sent))
        numbers = stream.statistics()
    assert sorted(check.events) == sorted(sent)
    assert numbers.events == len(sent)
    assert numbers.reconnects >= 10
    assert numbers.reconnects == numbers.connects - connections
    cuts = [event for event in hook if isinstance(event, StreamDisconnected)]
    assert len(cuts) >= 10
    assert all(isinstance(cut.error, Interrupted) for cut in cuts)


async def test_a_partition_that_speaks_only_while_nobody_reads_loses_nothing(world: World) -> None:
    """The server starts a partition that is not named live; one never heard from has to be asked for by time."""
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, parts=[3]) as stream:
        sim.firehose.publish(partition=15)
        stream.ack(await anext(stream))
    silent = [sim.firehose.publish(partition=16), sim.firehose.publish(partition=15)]
    check = Checker()
    async with articles(wme, offsets=store, parts=[3]) as stream:
        await check.read(stream, 2)
        # The same within one run, over a cut.
        sim.firehose.disconnect("reset")
        await sim.firehose.wait_open(0)
        silent.append(sim.firehose.publish(partition=17))
        await check.read(stream, 1)
    assert sorted(check.events) == sorted(silent)


async def test_the_simulator_refuses_no_request_of_a_stream(world: World) -> None:
    sim, wme = world
    sim.faults.inject("cut", role="realtime", times=20, within=(1, 3000))
    async with articles(wme, fields=["name", "version.size", "event.type"]) as stream:
        sent = sim.firehose.publish_many(300)
        await Checker().read(stream, len(sent))
    assert not sim.firehose.refused
    assert len(sim.firehose.connections) == 21
    assert all(sorted(connection.request.parts) == list(range(10)) for connection in sim.firehose.connections)


async def test_filtered_and_pruned_streams_resume_too(world: World) -> None:
    sim, wme = world
    sim.faults.inject("cut", role="realtime", times=15, within=(1, 2000))
    check = Checker()
    filters = {"event.type": "delete"}
    async with articles(wme, fields=["name"], filters=filters, connections=2) as stream:
        sent = []
        for _ in range(200):
            sim.firehose.publish()
            sent.append(sim.firehose.publish(kind="delete"))
        await check.read(stream, len(sent))
    assert sorted(check.events) == sorted(sent)


async def test_events_that_a_filter_of_the_client_leaves_out_move_the_position_on(world: World) -> None:
    """The server never matches a number of a million or more, so the client compares it."""
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, filters={"identifier": 2_000_000}) as stream:
        for partition, number in ((1, 1), (1, 2_000_000), (1, 3), (2, 4), (3, 2_000_000)):
            sim.firehose.publish({"identifier": number, "event": {"type": "update"}}, partition=partition)
        assert [article.identifier async for article in take(stream, 2)] == [2_000_000] * 2
        assert stream.positions[1].offset in {1, 2}
        assert stream.statistics().filtered >= 2
    saved = await store.load(KEY)
    assert saved[1].offset in {1, 2}


async def test_replayed_events_are_dropped_as_duplicates(world: World) -> None:
    sim, wme = world
    sim.faults.inject("replay", role="realtime", at=50, count=30)
    check = Checker()
    async with articles(wme) as stream:
        sent = sim.firehose.publish_many(200)
        await check.read(stream, 200)
        assert stream.statistics().duplicates == 30
    assert sorted(check.events) == sorted(sent)


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
    sim, wme = world
    sim.faults.inject(fault, role="realtime", times=2, skip=0, **details)
    check = Checker()
    async with articles(wme) as stream:
        sent = sim.firehose.publish_many(20)
        await check.read(stream, 20)
    assert sorted(check.events) == sorted(sent)


async def test_an_error_that_the_server_writes_into_the_stream_is_told_and_ends_the_connection(world: World) -> None:
    sim, wme = world
    sim.faults.inject("error_line", role="realtime", at=3)
    hook: list[StreamEvent] = []
    async with articles(wme, on_event=hook.append) as stream:
        sim.firehose.publish_many(10)
        await Checker().read(stream, 10)
    (cut,) = [event for event in hook if isinstance(event, StreamDisconnected)]
    assert isinstance(cut.error, ServerError)
    assert "query terminated unexpectedly" in str(cut.error)


@pytest.mark.parametrize(("status", "kind"), [(403, Forbidden), (422, Unprocessable)])
async def test_a_fatal_answer_is_raised_at_once_with_the_servers_words(
    status: int, kind: type[Exception], world: World
) -> None:
    sim, wme = world
    sim.faults.inject("status", role="realtime", status=status, message="words of the server", times=None)
    stream = articles(wme, connections=3)
    async with stream:
        async with asyncio.timeout(5):
            with pytest.raises(kind, match="words of the server"):
                await anext(stream)
        with pytest.raises(kind):
            await anext(stream)
    assert len([request for request in sim.requests if request.path == PATH]) <= 3


async def test_wrong_credentials_end_a_stream_that_never_worked(sim: Simulator) -> None:
    async with Client("nobody", "wrong", hosts=sim.client_options()["hosts"]) as wme, articles(wme) as stream:
        with pytest.raises(Unauthorized):
            await anext(stream)


async def test_a_refused_token_after_the_stream_had_worked_is_put_up_with_for_a_while(world: World) -> None:
    sim, wme = world
    hook: list[StreamEvent] = []
    async with articles(wme, on_event=hook.append, retry=Retry(attempts=99, base=0.001)) as stream:
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
    sim, wme = world
    sim.faults.inject("status", role="realtime", status=503, times=None)
    async with articles(wme, retry=SHORT) as stream:
        with pytest.raises(ServerError) as caught:
            await anext(stream)
    assert caught.value.__notes__ == ["gave up after 2 attempts"]


async def test_progress_makes_the_attempts_begin_anew(world: World) -> None:
    """Two attempts are allowed, and there are twenty cuts; but each connection brings something."""
    sim, wme = world
    sim.faults.inject("cut", role="realtime", times=20, after=1500)
    check = Checker()
    async with articles(wme, retry=SHORT) as stream:
        sent = sim.firehose.publish_many(200)
        await check.read(stream, 200)
    assert sorted(check.events) == sorted(sent)


# Silence


@pytest.mark.parametrize("fault", ["stall", "hang_head"])
async def test_a_dead_connection_is_noticed_within_the_idle_timeout(fault: str, world: World) -> None:
    sim, wme = world
    details: dict[str, Any] = {"after": 700} if fault == "stall" else {}
    sim.faults.inject(fault, role="realtime", **details)
    hook: list[StreamEvent] = []
    check = Checker()
    async with articles(wme, idle_timeout=0.2, on_event=hook.append) as stream:
        sent = sim.firehose.publish_many(30)
        await check.read(stream, 30, 5.0)
    assert sorted(check.events) == sorted(sent)
    cut = next(event for event in hook if isinstance(event, StreamDisconnected))
    assert cut.seconds > 0.15


async def test_silence_is_an_error_only_if_the_attempts_are_bounded(world: World) -> None:
    _, wme = world
    async with articles(wme, idle_timeout=0.05, retry=SHORT) as stream:
        with pytest.raises(IdleTimeout, match=r"nothing for 0\.05 s, 2 times"):
            await anext(stream)


async def test_a_sign_in_that_hangs_is_not_taken_for_silence_of_the_stream(sim: Simulator) -> None:
    sim.faults.inject("hang_head", role="auth", times=100)
    options = {**sim.client_options(), "timeouts": Timeouts(read=0.05), "retry": Retry(attempts=1)}
    async with Client(**options) as wme, articles(wme, retry=SHORT) as stream:
        with pytest.raises(TimedOut, match="login") as caught:
            await anext(stream)
    assert not isinstance(caught.value, IdleTimeout)


async def test_a_slow_consumer_slows_the_socket_and_is_not_taken_for_silence(world: World) -> None:
    sim, wme = world
    hook: list[StreamEvent] = []
    sim.firehose.publish_many(400, size=30_000)
    check = Checker()
    async with articles(wme, max_buffer=100_000, idle_timeout=0.3, on_event=hook.append) as stream:
        await check.read(stream, 1)
        await asyncio.sleep(0.7)
        numbers = stream.statistics()
        # One block may come on top, and blocks are what the socket's buffer holds.
        assert numbers.buffered < 100_000 + 1_000_000
        assert numbers.bytes < 6_000_000
        await check.read(stream, 399)
    assert len(check.events) == 400


async def test_long_records_that_wait_are_counted_whole(world: World) -> None:
    sim, wme = world
    async with articles(wme, max_buffer=2_000_000) as stream:
        for _ in range(8):
            sim.firehose.publish(partition=7, size=3_000_000)
        await until(lambda: stream.statistics().buffered >= 2_000_000)
        assert 3_000_000 <= stream.statistics().buffered < 2 * 3_100_000


# Positions


async def test_an_event_counts_as_processed_when_the_next_is_asked_for(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store) as stream:
        sim.firehose.publish_many(5, partition=7)
        for expected in range(5):
            await anext(stream)
            assert stream.positions[7].offset == expected - 1
            await stream.commit()
            assert (await store.load(KEY))[7].offset == expected - 1
    assert (await store.load(KEY))[7].offset == 3
    async with articles(wme, offsets=store) as stream:
        article = await anext(stream)
        assert article.event.offset == 4
        stream.ack(article)
        stream.ack(article)
    assert (await store.load(KEY))[7].offset == 4


async def test_acknowledged_out_of_order_a_partition_moves_up_to_the_first_that_is_not(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, commit="ack") as stream:
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
    sim, wme = world
    async with articles(wme) as stream:
        sim.firehose.publish(partition=7)
        await anext(stream)
        with pytest.raises(ValueError, match="not from this stream"):
            stream.ack(msgspec.convert({"event": {"partition": 7, "offset": 1}}, Article))


async def test_manual_commits_save_nothing_by_themselves(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, commit="manual", commit_interval=0.01) as stream:
        sim.firehose.publish_many(3, partition=7)
        for _ in range(3):
            await anext(stream)
        await asyncio.sleep(0.05)
        assert (await store.load(KEY))[7].offset == -1
        await stream.commit()
        assert (await store.load(KEY))[7].offset == 1
    assert (await store.load(KEY))[7].offset == 1


async def test_positions_are_saved_while_the_stream_is_silent(world: World) -> None:
    sim, wme = world
    saved = asyncio.Event()

    def watch(event: StreamEvent) -> None:
        if isinstance(event, StreamCommitted) and event.partitions == 1:
            saved.set()

    store = MemoryOffsets()
    async with articles(wme, offsets=store, commit_interval=0.02, on_event=watch) as stream:
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
    sim, wme = world
    hook: list[StreamEvent] = []
    stream = articles(wme, offsets=Broken(), commit_interval=0.01, on_event=hook.append)
    sim.firehose.publish_many(2)
    with pytest.raises(OSError, match="No space"):
        async with stream, asyncio.timeout(5):
            async for _ in stream:
                pass
    failures = [event.failures for event in hook if isinstance(event, StreamCommitFailed)]
    assert failures == [1, 2, 3]


async def test_two_readers_of_one_name_are_told(world: World, tmp_path: Path) -> None:
    _, wme = world
    async with articles(wme, offsets=SQLiteOffsets(tmp_path / "o.db")):
        with pytest.raises(StreamError, match="in use by another reader"):
            async with articles(wme, offsets=SQLiteOffsets(tmp_path / "o.db")):
                pass
        async with articles(wme, offsets=SQLiteOffsets(tmp_path / "o.db"), name="other"):
            pass


async def test_a_stream_goes_on_from_positions_that_the_user_keeps(world: World) -> None:
    sim, wme = world
    sim.firehose.publish_many(10, partition=7)
    mine = MemoryOffsets({KEY: {7: Position(4, utc_now())}})
    async with articles(wme, offsets=mine) as stream:
        article = await anext(stream)
        assert article.event.offset == 5


# Beginning


async def test_a_stream_begins_at_since(world: World) -> None:
    sim, wme = world
    now = sim.clock.now()
    for hours in (30, 20, 10):
        sim.firehose.publish(partition=7, published=now - hours * 3600)
    since = datetime.fromtimestamp(now, UTC) - timedelta(hours=25)
    async with articles(wme, since=since) as stream:
        article = await anext(stream)
        assert article.event.offset == 1


async def test_a_stream_begins_with_the_oldest_that_the_server_keeps_by_its_clock() -> None:
    start = datetime(2025, 7, 16, 5, tzinfo=UTC)
    async with world(start=start) as (sim, wme):
        for hours in (50, 47, 10):
            sim.firehose.publish(partition=7, published=start.timestamp() - hours * 3600)
        async with articles(wme, since="oldest") as stream:
            assert [article.event.offset async for article in take(stream, 2)] == [1, 2]
            assert stream.statistics().gaps == 0


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"parts": [11]}, ValueError, "0 to 9"),
        ({"parts": [-1]}, ValueError, "0 to 9"),
        ({"parts": []}, ValueError, "empty"),
        ({"parts": ["0"]}, TypeError, "not '0'"),
        ({"parts": [True]}, TypeError, "not True"),
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
        ({"parts": [0.5]}, TypeError, "not 0.5"),
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
        articles(Client(access_token="unused"), **options)


async def test_a_since_out_of_reach_is_refused_by_the_servers_clock() -> None:
    start = datetime(2025, 7, 16, 5, tzinfo=UTC)
    async with world(start=start) as (_, wme):
        for since in (start + timedelta(hours=1), start - timedelta(hours=49)):
            with pytest.raises(ValueError, match=r"future|older"):
                async with articles(wme, since=since):
                    pass
        async with articles(wme, since=start - timedelta(hours=47)):
            pass
        # A script that names the same time for ever goes on from its positions.
        store = MemoryOffsets({KEY: {0: Position(1, start)}})
        async with articles(wme, since=start - timedelta(days=9), offsets=store):
            pass


async def test_a_clock_that_is_a_year_ahead_is_set_by_the_first_refusal() -> None:
    """The server refuses times in its future; its answer says what time it is."""
    start = datetime(2025, 7, 16, 5, tzinfo=UTC)
    async with world(start=start) as (sim, wme):
        store = MemoryOffsets()
        async with articles(wme, offsets=store, parts=[0]) as stream:
            sim.firehose.publish(partition=1)
            article = await anext(stream)
            assert article.event.partition == 1
        assert len(sim.firehose.refused) == 1
        for position in (await store.load(KEY)).values():
            assert position.published is not None
            assert position.published <= start + timedelta(seconds=10)


async def test_a_stream_is_opened_once_and_used_while_open(world: World) -> None:
    _, wme = world
    stream = articles(wme)
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
    sim, wme = world
    sim.firehose.publish_many(50)
    async with articles(wme, connections=5) as stream:
        async for _ in stream:
            break
    with pytest.raises(ZeroDivisionError):
        async with articles(wme, connections=5) as stream:
            async for _ in stream:
                _ = 1 / 0
    stream = articles(wme, connections=5)
    await stream.__aenter__()
    await anext(stream)
    await stream.aclose()
    assert " 0 open bodies" in repr(wme)


@pytest.mark.parametrize("fault", ["hang_head", "stall", None])
async def test_cancelling_the_consumer_leaves_nothing_open(fault: str | None, world: World) -> None:
    sim, wme = world
    if fault is not None:
        sim.faults.inject(fault, role="realtime", times=None)
    started = asyncio.Event()
    store = MemoryOffsets()

    async def consume() -> None:
        async with articles(wme, connections=4, offsets=store) as stream:
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
    assert " 0 open bodies" in repr(wme)
    # The claim was given back.
    async with store.claim(KEY):
        pass


async def test_a_cancelled_wait_for_an_event_costs_nothing(world: World) -> None:
    sim, wme = world
    async with articles(wme) as stream:
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
    assert sorted(check.events) == sorted(sent)


async def test_closing_from_elsewhere_ends_a_waiting_consumer(world: World) -> None:
    _, wme = world
    stream = articles(wme)
    await stream.__aenter__()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting


# Records that do not decode


async def test_a_bad_record_is_raised_and_asking_again_goes_on(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store) as stream:
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
    sim, wme = world
    letters: list[DecodeError] = []

    async def keep(error: DecodeError) -> None:
        await asyncio.sleep(0)
        letters.append(error)

    sink: Callable[[DecodeError], Any] = keep if later else letters.append
    async with articles(wme, on_bad_record=sink) as stream:
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
    sim, wme = world
    fault = sim.faults.inject("status", role="realtime", status=200, body=body, times=10)
    hook: list[StreamEvent] = []
    retry = Retry(attempts=3, base=0, cap=0)
    async with articles(wme, retry=retry, on_bad_record="skip", on_event=hook.append) as stream:
        sim.firehose.publish(partition=7)
        with pytest.raises(WMEError):
            await anext(stream)
    assert not fault.spent
    assert len([event for event in hook if isinstance(event, StreamDisconnected)]) == 3
    bad = [event for event in hook if isinstance(event, StreamBadRecord)]
    assert [item.error.record for item in bad] == ([body.strip()] * 3 if b"Forbidden" in body else [])


async def test_bad_records_can_be_skipped_and_are_counted_and_told(world: World) -> None:
    sim, wme = world
    hook: list[StreamEvent] = []
    async with articles(wme, on_bad_record="skip", on_event=hook.append, max_record=100_000) as stream:
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
    options = {
        (event.error.partition, event.error.offset): event.error for event in hook if isinstance(event, StreamBadRecord)
    }
    assert set(options) == {(7, 1), (None, None), (9, 0)}
    assert "longer than max_record" in str(options[9, 0])
    assert "no partition and offset" in str(options[None, None])


async def test_a_record_that_was_cut_inside_its_offset_is_not_taken_for_an_earlier_one(world: World) -> None:
    sim, wme = world
    letters: list[DecodeError] = []
    async with articles(wme, on_bad_record=letters.append) as stream:
        sim.firehose.publish_many(12, partition=7)
        bad = b'{"name":"cut","event":{"partition":7,"offset":1'
        sim.firehose.publish(bad, partition=7)
        sim.firehose.publish(partition=7)
        assert [article.event.offset async for article in take(stream, 13)] == [*range(12), 13]
        assert stream.statistics().duplicates == 0
    assert [(letter.record, letter.offset) for letter in letters] == [(bad, None)]


async def test_a_dead_letter_function_that_fails_keeps_the_record(world: World) -> None:
    sim, wme = world
    calls: list[DecodeError] = []

    def fails_once(error: DecodeError) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise OSError("the dead-letter disk is full")

    async with articles(wme, on_bad_record=fails_once) as stream:
        sim.firehose.publish(BAD[0].replace(b'"offset":1', b'"offset":0'), partition=7)
        sim.firehose.publish(partition=7)
        with pytest.raises(OSError, match="full"):
            await anext(stream)
        assert stream.positions[7].offset == -1
        assert (await anext(stream)).event.offset == 1
        assert len(calls) == 2


class OwnEvent(msgspec.Struct):
    partition: int
    offset: int
    date_published: datetime | None = None


class Fragile(msgspec.Struct):
    """A type of the user's that fails when a filter looks at it."""

    event: OwnEvent
    identifier: int = 0
    name: str = ""

    def __getattribute__(self, name: str) -> Any:
        if name == "identifier" and super().__getattribute__("name") == "broken" and self.fails:
            raise ZeroDivisionError
        return super().__getattribute__(name)

    fails: ClassVar[bool] = True


async def test_a_filter_that_fails_does_not_lose_the_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, wme = world
    async with articles(wme, type=Fragile, filters={"identifier": 2_000_000}) as stream:
        for name in ("a", "broken", "c"):
            sim.firehose.publish({"name": name, "identifier": 2_000_000, "event": {"type": "update"}}, partition=7)
        events = [(await anext(stream)).event]
        with pytest.raises(ZeroDivisionError):
            await anext(stream)
        monkeypatch.setattr(Fragile, "fails", False)
        events += [article.event async for article in take(stream, 2)]
    assert [event.offset for event in events] == [0, 1, 2]


# Types


class Name(msgspec.Struct, frozen=True):
    name: str


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename="upper"):
    name: str = msgspec.field(name="name")

    def __post_init__(self) -> None:
        self.name += "\u2713"
        if self.name == "refused\u2713":
            raise ValueError("refused by the type")


class TypeOnly(msgspec.Struct):
    type: str


class WithType(msgspec.Struct):
    name: str
    event: TypeOnly


class MaybeEvent(msgspec.Struct):
    name: str
    event: None | OwnEvent  # noqa: RUF036  # None may come first


class EventAsDict(msgspec.Struct):
    name: str
    event: dict[str, Any]


@pytest.mark.parametrize("kind", [Article, Name, Strict, WithType, MaybeEvent, EventAsDict, dict, msgspec.Raw])
@pytest.mark.parametrize("commit", ["auto", "ack"])
async def test_any_type_is_tracked_whether_it_has_the_event_or_not(kind: Any, commit: Any, world: World) -> None:
    sim, wme = world
    sim.faults.inject("cut", role="realtime", times=3, within=(1, 800))
    store = MemoryOffsets()
    got = []
    stream = articles(wme, type=kind, commit=commit, offsets=store, fields=["name", "event.type"])
    async with stream:
        sim.firehose.publish_many(20, partition=7)
        async for item in take(stream, 20):
            assert type(item) is kind
            stream.ack(item)
            got.append(item)
        assert stream.positions[7].offset == 19
        if commit == "ack" or kind in {Article, MaybeEvent}:
            stream.ack(got[0])
        else:
            with pytest.raises(ValueError, match="not from this stream"):
                stream.ack(got[0])
    names = [json.loads(bytes(item))["name"] if kind is msgspec.Raw else getattr(item, "name", None) for item in got]
    assert len(set(names)) == (1 if kind is dict else 20)
    assert (await store.load(KEY))[7].offset == 19
    if kind is Strict:
        assert [item.name.count("\u2713") for item in got] == [1] * 20


async def test_a_type_that_refuses_a_value_makes_a_bad_record(world: World) -> None:
    sim, wme = world
    async with articles(wme, type=Strict, fields=["name"]) as stream:
        sim.firehose.publish({"name": "refused", "event": {"type": "update"}}, partition=7)
        with pytest.raises(DecodeError, match="refused by the type") as caught:
            await anext(stream)
    assert (caught.value.partition, caught.value.offset) == (7, 0)


# Batches of events


async def test_batches_are_full_when_there_is_enough_and_never_late(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store) as stream:
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
    sim, wme = world
    sim.faults.inject("cut", role="realtime", times=10, within=(1, 5000))
    check = Checker()
    bad: list[DecodeError] = []
    stream = articles(wme, on_bad_record=bad.append, filters={"identifier": 2_000_000})
    async with stream:
        sent = []
        for number in range(100):
            for identifier in (2_000_000, 1):
                record = {"identifier": identifier, "event": {"type": "update"}}
                place = sim.firehose.publish(record, partition=number % 50)
                if identifier > 1:
                    sent.append(place)
        partition, offset = sim.firehose.publish(b"", partition=3)
        sim.firehose.publish(b'{"name":1,"event":{"partition":3,"offset":%d}}' % (offset + 1), partition=partition)
        async with asyncio.timeout(10):
            async for batch in stream.batches(7, 0.01):
                for article in batch:
                    check.take(article)
                if len(check.events) == len(sent):
                    break
    assert sorted(check.events) == sorted(sent)


async def test_batches_can_be_acknowledged_one_by_one(world: World) -> None:
    sim, wme = world
    async with articles(wme, commit="ack") as stream:
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
    sim, wme = world
    async with articles(wme, type=kind, commit=commit) as stream:
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
    _, wme = world
    async with articles(wme) as stream:
        for bounds in ((0, 1.0), (1, -1.0), (1, float("nan"))):
            with pytest.raises(ValueError, match="must be at least"):
                await anext(stream.batches(*bounds))


# Gaps


async def test_a_machine_that_slept_asks_again_by_the_servers_clock(world: World) -> None:
    """Its monotonic clock stood still, so that the position looks fresh; the answer's date says otherwise."""
    sim, wme = world
    store = MemoryOffsets()
    await away(sim, wme, store, 49)
    hook: list[StreamEvent] = []
    async with articles(wme, offsets=store, parts=[1], on_event=hook.append) as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7)
        assert (await waiting).event.offset == 6
    asked = [connection.request for connection in sim.firehose.connections][-2:]
    assert [7 in request.offsets for request in asked] == [True, False]
    (cut,) = [event for event in hook if isinstance(event, StreamDisconnected)]
    assert "later than thought" in str(cut.error)


async def test_a_reader_that_was_away_for_too_long_is_told_what_is_missing(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    await away(sim, wme, store, 49)
    await learn_the_time(sim, wme)
    gaps: list[OffsetGap] = []
    hook: list[StreamEvent] = []
    async with articles(wme, offsets=store, parts=[1], on_gap=gaps.append, on_event=hook.append) as stream:
        article = await anext(stream)
        assert article.event.offset == 6
        numbers = stream.statistics()
        assert (numbers.gaps, numbers.events) == (1, 1)
        assert stream.positions[7].offset == 0
    (gap,) = gaps
    assert (gap.partition, gap.expected, gap.got, gap.reason) == (7, 1, 6, "retention")
    assert [event.gap for event in hook if isinstance(event, StreamGap)] == [gap]


async def test_a_gap_can_be_raised_and_asking_again_goes_on(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    await away(sim, wme, store, 49)
    await learn_the_time(sim, wme)
    async with articles(wme, offsets=store, parts=[1], on_gap="raise") as stream:
        with pytest.raises(OffsetGap):
            await anext(stream)
        assert (await anext(stream)).event.offset == 6


async def test_a_short_absence_is_no_gap_and_an_old_position_is_asked_for_by_time(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    await away(sim, wme, store, 45)
    await learn_the_time(sim, wme)
    async with articles(wme, offsets=store, parts=[1], on_gap="raise") as stream:
        got = [article.event.offset async for article in take(stream, 10)]
        assert got == list(range(1, 11))
        assert stream.statistics().duplicates == 1
    assert 7 in sim.firehose.connections[-1].request.since_per_partition


async def test_an_offset_that_is_gone_is_asked_for_again_by_time(world: World) -> None:
    """The server jumps to live in silence; what it still has is not lost over that, and what it has not is told."""
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, parts=[1]) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
    sim.clock.advance(3600)
    sim.firehose.publish_many(5, partition=7)
    before = sim.clock.now()
    sim.clock.advance(3600)
    sim.firehose.publish_many(5, partition=7)
    sim.firehose.expire(before + 1)
    await learn_the_time(sim, wme)
    gaps: list[OffsetGap] = []
    async with articles(wme, offsets=store, parts=[1], on_gap=gaps.append) as stream:
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
    sim, wme = world
    store = MemoryOffsets()
    filters = {"event.type": "delete"}
    async with articles(wme, offsets=store, filters=filters) as stream:
        sim.firehose.publish(partition=7, kind="delete")
        stream.ack(await anext(stream))
    sim.firehose.publish_many(50, partition=7)
    sim.clock.advance(7200)
    async with articles(wme, offsets=store, filters=filters, on_gap="raise") as stream:
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7, kind="delete")
        assert (await anext(stream)).event.offset == 51


# Watching


async def test_statistics_tell_lag_rate_and_each_partition(world: World) -> None:
    sim, wme = world
    async with articles(wme, parts=[0, 3]) as stream:
        empty = stream.statistics()
        assert (empty.events, empty.lag, empty.catch_up, empty.rate) == (0, None, None, 0.0)
        now = sim.clock.now()
        sim.firehose.publish(partition=2, published=now - 20)
        sim.firehose.publish(partition=16, published=now - 10)
        await Checker().read(stream, 2)
        numbers = stream.statistics()
    assert [partition.partition for partition in numbers.partitions] == [*range(5), *range(15, 20)]
    heard = {partition.partition: partition for partition in numbers.partitions if partition.offset >= 0}
    assert set(heard) == {2, 16}
    assert 18 < (heard[2].age or 0) < 25
    assert heard[2].published is not None
    assert heard[2].connected
    assert 8 < (numbers.lag or 0) < 25
    assert numbers.events == 2
    assert numbers.connected == 1
    assert numbers.bytes > 500


async def test_the_hook_hears_of_everything_and_its_failure_harms_nobody(world: World) -> None:
    sim, wme = world
    sim.faults.inject("cut", role="realtime", after=3000)
    hook: list[StreamEvent] = []

    def watch(event: StreamEvent) -> None:
        hook.append(event)
        raise ZeroDivisionError

    async with articles(wme, on_event=watch) as stream:
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
    sim, wme = world
    async with articles(wme) as stream:
        names = [f"before{mark}after" for mark in "\x85\u2028\u2029\x1c"]
        for name in names:
            sim.firehose.publish({"name": name, "event": {"type": "update"}}, partition=7)
        assert [article.name async for article in take(stream, 4)] == names


async def test_a_clean_end_is_not_the_end(world: World) -> None:
    """The official SDK returns as if nothing had happened."""
    sim, wme = world
    async with articles(wme) as stream:
        sim.firehose.publish(partition=7)
        await anext(stream)
        sim.firehose.disconnect("clean")
        await sim.firehose.wait_open(0)
        sim.firehose.publish(partition=7)
        assert (await anext(stream)).event.offset == 1


async def test_blank_lines_and_spaces_of_an_older_build_are_no_records(world: World) -> None:
    sim, wme = world
    sim.faults.inject("older_framing", role="realtime", times=None)
    async with articles(wme) as stream:
        sim.firehose.publish_many(20)
        await Checker().read(stream, 20)
        assert stream.statistics().bad_records == 0


async def test_a_time_that_stays_in_the_future_is_fatal(world: World) -> None:
    sim, wme = world
    text = "since_per_partition for partition 1 has future time 2026-11-22T08:00:00Z"
    fault = sim.faults.inject("status", role="realtime", status=422, message=text, times=2)
    async with articles(wme) as stream:
        with pytest.raises(Unprocessable, match="future time"):
            await anext(stream)
    assert fault.hits == 2


async def test_a_gap_before_a_bad_record_is_told_too(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with articles(wme, offsets=store, parts=[1]) as stream:
        sim.firehose.publish(partition=7)
        stream.ack(await anext(stream))
    sim.clock.advance(49 * 3600)
    await learn_the_time(sim, wme)
    sim.firehose.skip(7, 3)
    sim.firehose.publish(BAD[0].replace(b'"offset":1', b'"offset":4'), partition=7)
    sim.firehose.publish(partition=7)
    gaps: list[OffsetGap] = []
    async with articles(wme, offsets=store, parts=[1], on_gap=gaps.append, on_bad_record="skip") as stream:
        assert (await anext(stream)).event.offset == 5
        assert stream.statistics().bad_records == 1
    assert [(gap.expected, gap.got) for gap in gaps] == [(1, 4)]


# Responses


async def respond(media_type: str, framing: str) -> Any:
    """Open a stream against a server that sends one event in one framing; return the event, or raise."""
    event = record(7, 0)
    data = b"event: message\ndata: " + event + b"\n\n" if framing == "sse" else event + b"\n"

    async def handle(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        kind = f"Content-Type: {media_type}\r\n" if media_type else ""
        writer.write(f"HTTP/1.1 200 OK\r\n{kind}Content-Length: {len(data) + 1}\r\n\r\n".encode() + data)
        await writer.drain()
        return True

    requested: Any = "ndjson" if framing == "sse" else "sse"
    if not media_type.startswith(("text/event", "application")):
        requested = framing
    async with RawServer(handle) as server:
        url = server.url
        hosts = {"auth": url, "api": url, "realtime": url}
        async with (
            asyncio.timeout(10),
            Client(access_token="unused", hosts=hosts) as wme,
            articles(wme, framing=requested, retry=SHORT) as stream,
        ):
            return await anext(stream)


@pytest.mark.parametrize(
    ("media_type", "framing"),
    [
        ("text/event-stream; charset=utf-8", "sse"),
        ("application/x-ndjson", "ndjson"),
        ("; charset=utf-8", "ndjson"),  # the server's answer to an Accept that it does not know
        ("", "sse"),
    ],
)
async def test_the_framing_is_that_of_the_response(media_type: str, framing: str) -> None:
    article = await respond(media_type, framing)
    assert (article.event.partition, article.event.offset) == (7, 0)


async def test_a_page_of_a_proxy_is_not_a_stream() -> None:
    with pytest.raises(TransportError, match="text/html"):
        await respond("text/html", "ndjson")


# Time


async def test_the_time_to_catch_up_follows_from_the_speed_of_the_last_minute(
    world: World, client_clock: ClientClock
) -> None:
    sim, wme = world

    async def read(stream: Stream[Any], behind: float) -> StreamStatistics:
        sim.firehose.publish(partition=7, published=sim.clock.now() + client_clock.offset - behind)
        await anext(stream)
        return stream.statistics()

    await learn_the_time(sim, wme)
    async with articles(wme, since=datetime.fromtimestamp(sim.clock.now() - 7200, UTC)) as stream:
        first = await read(stream, 3600)
        assert first.lag == pytest.approx(3600, abs=5)
        client_clock.offset += 2
        await turns(20)  # for a sample
        # In ten seconds it moves eleven minutes on: 66 times as fast as new events come.
        client_clock.offset += 10
        second = await read(stream, 3600 - 660 + 10)
        assert 0.05 < second.rate < 0.3
        assert second.catch_up == pytest.approx(2950 / 65, rel=0.2)
        # Slower than new events come: it never catches up.
        for seconds in range(9):
            client_clock.offset += 10
            third = await read(stream, 2950 + 5 * seconds)
        assert third.catch_up is None
        assert (await read(stream, 0)).catch_up == 0.0
