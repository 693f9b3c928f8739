"""A stream whose parts several members share: who reads what, what moves, and what a member that comes late may do."""

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
import pytest
from conftest import ClientClock
from stream_world import KEY, PATIENT, World, until
from wall_clock import clock

from wme_async import (
    Article,
    Client,
    DecodeError,
    FileOffsets,
    Forbidden,
    GroupStream,
    MemoryOffsets,
    Position,
    Static,
    Stream,
    StreamError,
    StreamLost,
    StreamTaken,
)
from wme_async.simulator import Simulator

ALL = tuple(range(10))


class LeaseTime:
    """The clock of the store and that of this machine, which go on when a test says so.

    Attributes:
        store: Seconds by the clock of the store.
        here: Seconds by that of this machine.
    """

    store = 1000.0
    here = 5000.0

    def pass_by(self, seconds: float) -> None:
        self.store += seconds
        self.here += seconds


@pytest.fixture
def lease_time(monkeypatch: pytest.MonkeyPatch, client_clock: ClientClock) -> LeaseTime:
    """Clocks that stand still, and heartbeats in every turn of the loop."""
    time = LeaseTime()
    monkeypatch.setattr(clock, "uptime", lambda: time.here)
    return time


@pytest.fixture
def store(lease_time: LeaseTime) -> MemoryOffsets:
    return MemoryOffsets(clock=lambda: lease_time.store)


class Member:
    """A member of the group, and what it was told.

    Attributes:
        stream: Its stream.
        taken: Parts and tokens.
        lost: Parts, tokens and whether they were given back.
    """

    def __init__(self, wme: Client, store: Any, **options: Any) -> None:
        self.taken: list[tuple[int, int]] = []
        self.lost: list[tuple[int, int, bool]] = []
        defaults = {"commit_interval": 60.0, "retry": PATIENT, "lease": 30.0}
        self.stream: GroupStream[Any] = wme.realtime.articles(
            **{**defaults, **options}, offsets=store, share="group", on_event=self.note
        )

    def note(self, event: object) -> None:
        if isinstance(event, StreamTaken):
            self.taken.append((event.part, event.token))
        elif isinstance(event, StreamLost):
            self.lost.append((event.part, event.token, event.given_back))

    async def has(self, parts: int) -> None:
        """Wait until it reads so many parts, and each of them has a connection."""
        await until(lambda: len(self.stream.parts) == parts)
        await until(lambda: len(self.stream.statistics().partitions) == 5 * parts)


@contextlib.asynccontextmanager
async def joined(wme: Client, store: Any, **options: Any) -> AsyncIterator[Member]:
    member = Member(wme, store, **options)
    async with member.stream:
        yield member


async def take(stream: GroupStream[Any], count: int) -> list[tuple[int, int]]:
    """Return the next events as partition and offset; the last one is not processed yet."""
    async with asyncio.timeout(20):
        articles = [await anext(stream) for _ in range(count)]
    return [(article.event.partition, article.event.offset) for article in articles]


def publish(sim: Simulator, *parts: int) -> list[tuple[int, int]]:
    """Publish an event in the first partition of each part."""
    return [sim.firehose.publish(partition=5 * part) for part in parts]


async def test_one_member_reads_everything_and_keeps_its_place(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    async with joined(wme, store, member="host-1") as member:
        await member.has(10)
        assert member.stream.parts == ALL
        assert member.taken == [(part, 1) for part in ALL]
        assert member.stream.token(3) == 1
        places = publish(sim, *ALL)
        assert sorted(await take(member.stream, 10)) == sorted(places)
        assert member.stream.statistics().events == 10
        assert len(member.stream.positions) == 50
        assert await store.members(KEY) == [member.stream.owner]
        assert member.stream.owner.endswith(" host-1")
        assert repr(member.stream).startswith("<GroupStream 'default/articles' open, parts [0, 1")
    assert member.lost == [(part, 1, True) for part in ALL]
    assert await store.members(KEY) == []
    async with joined(wme, store) as again:
        # The event that was in hand comes again, as with any stream.
        ((partition, offset),) = await take(again.stream, 1)
        assert (partition, offset) in places
        assert again.taken == [(part, 2) for part in ALL]


async def test_a_member_that_joins_gets_its_share_and_nothing_comes_twice(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    async with joined(wme, store) as first:
        await first.has(10)
        places = publish(sim, *ALL)
        events = await take(first.stream, 10)
        waiting = asyncio.create_task(take(first.stream, 5))
        async with joined(wme, store) as second:
            await second.has(5)
            assert set(first.stream.parts) | set(second.stream.parts) == set(ALL)
            assert all(given for _, _, given in first.lost)
            places += publish(sim, *ALL)
            events += await take(second.stream, 5)
            events += await waiting
            assert sorted(events) == sorted(places)
            # In calm weather nothing moves.
            beats = len(first.taken), len(second.taken)
            for _ in range(200):
                await asyncio.sleep(0)
            assert (len(first.taken), len(second.taken)) == beats == (10, 5)
            assert first.stream.statistics().events == 15
            second.stream.ack(await take_one(sim, second, second.stream.parts[0]))
        # The parts of a member that left are read again.
        reading = asyncio.create_task(take(first.stream, 10))
        await first.has(10)
        places = publish(sim, *ALL)
        assert sorted(await reading) == sorted(places)


async def take_one(sim: Simulator, member: Member, part: int) -> Any:
    publish(sim, part)
    async with asyncio.timeout(20):
        return await anext(member.stream)


async def test_a_part_whose_event_is_in_hand_is_given_back_when_the_next_one_is_requested(
    world: World, store: MemoryOffsets
) -> None:
    sim, wme = world
    async with joined(wme, store) as first:
        await first.has(10)
        await take_one(sim, first, 9)
        async with joined(wme, store) as second:
            await second.has(4)
            assert 9 in first.stream.parts
            waiting = asyncio.create_task(take(first.stream, 1))
            await second.has(5)
            assert 9 in second.stream.parts
            publish(sim, 0)
            await waiting
            place = publish(sim, 9)
            assert await take(second.stream, 1) == place


async def test_with_ack_a_part_is_given_back_when_all_of_its_events_are_acknowledged(
    world: World, store: MemoryOffsets
) -> None:
    sim, wme = world
    async with joined(wme, store, commit="ack") as first:
        await first.has(10)
        articles = [await take_one(sim, first, 9), await take_one(sim, first, 9), await take_one(sim, first, 8)]
        reading = asyncio.create_task(anext(first.stream))
        async with joined(wme, store, commit="ack") as second:
            await second.has(3)
            for article in articles[:0:-1]:
                first.stream.ack(article)
            await second.has(4)
            assert 9 in first.stream.parts
            first.stream.ack(articles[0])
            first.stream.ack(articles[0])
            await second.has(5)
            (place,) = publish(sim, 9)
            assert await take(second.stream, 1) == [place]
            publish(sim, 0)
            await reading
            first.stream.ack(articles[0])  # its part is with another member


async def test_an_event_that_is_never_acknowledged_does_not_keep_a_part_for_ever(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    async with joined(wme, store, commit="ack", lease=0.3) as first:
        await first.has(10)
        article = await take_one(sim, first, 9)
        reading = asyncio.create_task(anext(first.stream))
        async with joined(wme, store, commit="ack", lease=0.3) as second:
            async with asyncio.timeout(30):
                again = await anext(second.stream)
            assert again.event == article.event
        reading.cancel()
        await asyncio.wait([reading])


async def test_a_consumer_that_blocks_the_loop_loses_its_parts(world: World, lease_time: LeaseTime) -> None:
    sim, wme = world
    store = MemoryOffsets(clock=lambda: lease_time.store)
    async with joined(wme, store) as member:
        await member.has(10)
        publish(sim, *(part for part in ALL for _ in range(3)))
        await take(member.stream, 5)
        held = member.stream.positions
        lease_time.pass_by(30.1)  # as if the consumer had not returned to the loop for so long
        article = await anext(member.stream)
        part = article.event.partition // 5
        assert member.stream.token(part) == 2
        assert (part, 1, False) in member.lost
        # What was processed and not saved comes again, under the new token.
        assert article.event.offset <= held[article.event.partition].offset + 1
        await until(lambda: len(member.taken) == 20)
        await until(lambda: member.stream.statistics().events >= 6)  # those of the lost parts count on
        assert sorted(member.lost) == [(part, 1, False) for part in ALL]


async def test_a_member_that_was_asleep_hands_nothing_out_although_it_has_not_heard_from_the_store(
    world: World, lease_time: LeaseTime
) -> None:
    """Its own clock tells it, before any answer can; and its last positions do not undo those of the next owner."""
    sim, wme = world
    store = Slow(lease_time)
    async with joined(wme, store) as member:
        await member.has(10)
        publish(sim, *(0 for _ in range(5)))
        await take(member.stream, 2)
        store.hold()
        await store.held.wait()
        lease_time.pass_by(29.0)  # a lease counts for a little less than its time, by this machine's clock
        other = await store.take(KEY, "other", 10, 30.0)
        assert other == {}
        waiting = asyncio.create_task(anext(member.stream))
        await until(lambda: 0 not in member.stream.parts)
        lease_time.pass_by(2.0)
        token = (await store.take(KEY, "other", 10, 600.0))[0]
        assert await store.save_held(KEY, 0, "other", token, {0: Position(4)})
        store.let_go()
        await until(lambda: len(member.lost) == 10)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
    assert (await store.load(KEY))[0] == Position(4)


class Slow(MemoryOffsets):
    """A store whose renewals do not return until it lets them."""

    def __init__(self, lease_time: LeaseTime) -> None:
        super().__init__(clock=lambda: lease_time.store)
        self.free = asyncio.Event()
        self.free.set()
        self.held = asyncio.Event()
        self.failing = False

    def hold(self) -> None:
        self.free.clear()

    def let_go(self) -> None:
        self.free.set()

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        if not self.free.is_set():
            self.held.set()
            await self.free.wait()
        if self.failing:
            raise StreamError("no answer")
        return await super().renew(name, owner, ttl)

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        if self.failing:
            raise StreamError("no answer")
        return await super().save_held(name, part, owner, token, positions)


async def test_parts_survive_an_outage_of_the_store_that_is_shorter_than_a_lease(
    world: World, lease_time: LeaseTime, caplog: pytest.LogCaptureFixture
) -> None:
    sim, wme = world
    store = Slow(lease_time)
    async with joined(wme, store) as member:
        await member.has(10)
        store.failing = True
        await until(lambda: bool(caplog.records))
        lease_time.pass_by(28.0)
        publish(sim, 3)
        await take(member.stream, 1)
        assert member.lost == []
        store.failing = False
        await until(lambda: len(caplog.records) == 2)
        store.failing = True
        await until(lambda: len(caplog.records) == 3)
        lease_time.pass_by(31.0)
        await until(lambda: len(member.lost) == 10)
        store.failing = False
        await member.has(10)
        assert member.taken[10:] == [(part, 2) for part in ALL]
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [("no answer" in message, "again" in message) for message in messages] == [(True, True), (False, True)] * 2


async def test_a_part_that_another_member_took_is_lost_quietly(
    world: World, store: MemoryOffsets, caplog: pytest.LogCaptureFixture
) -> None:
    sim, wme = world
    async with joined(wme, store, commit_interval=0.01) as member:
        await member.has(10)
        # As a store does that lost its last changes: somebody else has the part, even with the same number.
        await store.give(KEY, member.stream.owner, [4])
        token = (await store.take(KEY, "other", 10, 600.0))[4]
        await store.save_held(KEY, 4, "other", token, {20: Position(7)})
        await until(lambda: (4, 1, False) in member.lost)
        publish(sim, 4, 3)
        assert [partition for partition, _ in await take(member.stream, 1)] == [15]
        await store.give(KEY, "other")
    assert (await store.load(KEY))[20] == Position(7)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_lists_have_events_of_several_parts_and_lose_nothing_when_cancelled(
    world: World, store: MemoryOffsets
) -> None:
    sim, wme = world
    async with joined(wme, store) as member:
        await member.has(10)
        batches = member.stream.batches(max_items=15, max_wait=3600.0)
        places = publish(sim, *ALL)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(batches)
        places += publish(sim, *ALL)
        events: list[tuple[int, int]] = []
        async with asyncio.timeout(20):
            events += [(one.event.partition, one.event.offset) for one in await anext(batches)]
            assert len(events) == 15
            batches = member.stream.batches(max_items=15, max_wait=0.0)
            while len(events) < 20:
                events += [(one.event.partition, one.event.offset) for one in await anext(batches)]
        assert sorted(events) == sorted(places)
        await member.stream.commit()
        saved = {number: position.offset for number, position in (await store.load(KEY)).items()}
        assert sum(offset + 1 for offset in saved.values()) >= 15
        with pytest.raises(ValueError, match="max_items"):
            member.stream.batches(0)


async def test_manual_commits_save_what_was_processed(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    async with joined(wme, store, commit="manual") as member:
        await member.has(10)
        article = await take_one(sim, member, 2)
        await member.stream.commit()
        assert (await store.load(KEY))[10].offset == -1
        member.stream.ack(article)
        await member.stream.commit()
        assert (await store.load(KEY))[10].offset == article.event.offset
        await take_one(sim, member, 2)
    assert (await store.load(KEY))[10].offset == article.event.offset


async def test_types_without_an_event_are_acknowledged_by_identity(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    for commit in ("auto", "ack"):
        async with joined(wme, store, type=msgspec.Raw, commit=commit, name=commit) as member:
            await member.has(10)
            record = await take_one(sim, member, 2)
            member.stream.ack(record)
            await member.stream.commit()
            assert (await store.load(f"{commit}/articles"))[10].offset >= 0
            with pytest.raises(TypeError):
                member.stream.ack([record])


async def test_a_bad_record_is_raised_and_the_stream_goes_on(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    async with joined(wme, store) as member:
        await member.has(10)
        sim.firehose.publish({"name": 7}, partition=5)
        with pytest.raises(DecodeError):
            await anext(member.stream)
        publish(sim, 1, 8)
        assert sorted(partition for partition, _ in await take(member.stream, 2)) == [5, 40]


async def test_an_error_behind_events_comes_after_them_in_a_list(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    async with joined(wme, store) as member:
        await member.has(10)
        place = sim.firehose.publish(partition=5)
        sim.firehose.publish({"name": 7}, partition=5)
        batches = member.stream.batches(10, 3600.0)
        async with asyncio.timeout(20):
            (article,) = await anext(batches)
            assert (article.event.partition, article.event.offset) == place
            with pytest.raises(DecodeError):
                await anext(batches)


async def test_a_copy_of_an_event_is_acknowledged_by_its_place(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    for commit in ("auto", "ack"):
        async with joined(wme, store, commit=commit, name=commit) as member:
            await member.has(10)
            places = [sim.firehose.publish(partition=5) for _ in range(3)] + [sim.firehose.publish(partition=6)]
            articles: list[Any] = []
            async with asyncio.timeout(20):
                while len(articles) < 4:
                    articles += await anext(member.stream.batches(4 - len(articles), 1.0))
            for article in articles[:2]:
                member.stream.ack(copy.deepcopy(article))
            await member.stream.commit()
            saved = await store.load(f"{commit}/articles")
            last = max(article.event.offset for article in articles[:2] if article.event.partition == 5)
            assert saved[5].offset == last
            assert last < places[2][1]


async def test_a_part_whose_positions_cannot_be_saved_is_begun_anew(world: World, lease_time: LeaseTime) -> None:
    sim, wme = world

    class Unwritable(Slow):
        failures = 0

        async def save_held(
            self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]
        ) -> bool:
            if self.failures > 0:
                self.failures -= 1
                raise StreamError("no room")
            return await super().save_held(name, part, owner, token, positions)

    store = Unwritable(lease_time)
    async with joined(wme, store, commit_interval=0.01) as member:
        await member.has(10)
        store.failures = 3
        member.stream.ack(await take_one(sim, member, 2))
        waiting = asyncio.create_task(anext(member.stream))
        await until(lambda: (2, 1, True) in member.lost)
        await until(lambda: (2, 2) in member.taken)
        publish(sim, 2)
        article = await waiting
        assert article.event.partition == 10


async def test_an_observer_that_fails_harms_nobody(
    world: World, store: MemoryOffsets, caplog: pytest.LogCaptureFixture
) -> None:
    sim, wme = world

    def fail(event: object) -> None:
        raise ZeroDivisionError

    async with wme.realtime.articles(offsets=store, share="group", on_event=fail, retry=PATIENT) as stream:
        await until(lambda: len(stream.parts) == 10)
        publish(sim, 1)
        await take(stream, 1)
    assert any("the on_event hook failed" in record.getMessage() for record in caplog.records)


async def test_the_exception_of_the_block_is_raised_and_that_of_closing_noted(
    world: World, lease_time: LeaseTime
) -> None:
    sim, wme = world
    store = Slow(lease_time)
    with pytest.raises(ZeroDivisionError) as caught:
        async with joined(wme, store) as member:
            await member.has(10)
            member.stream.ack(await take_one(sim, member, 2))
            store.failing = True
            _ = 1 / 0
    assert any("no answer" in note for note in caught.value.__notes__)


async def test_a_permanent_error_of_a_part_reaches_the_consumer(world: World, store: MemoryOffsets) -> None:
    sim, wme = world
    sim.faults.inject("status", role="realtime", status=403, times=None)
    async with joined(wme, store) as member:
        with pytest.raises(Forbidden):
            await anext(member.stream)
        with pytest.raises(Forbidden):
            await anext(member.stream)


async def test_an_error_of_the_store_is_raised_where_the_stream_is_opened(world: World, lease_time: LeaseTime) -> None:
    _, wme = world
    store = Slow(lease_time)
    store.failing = True
    with pytest.raises(StreamError, match="no answer"):
        async with joined(wme, store):
            pass
    store.failing = False
    with pytest.raises(StreamError, match="no answer"):
        async with joined(wme, store) as member:
            await member.has(10)
            store.failing = True
    with pytest.raises(ZeroDivisionError) as caught:
        async with joined(wme, Slow(lease_time)) as member:
            await member.has(10)
            _ = 1 / 0
    assert not getattr(caught.value, "__notes__", [])


async def test_it_is_opened_once_and_read_by_one_task(world: World, store: MemoryOffsets) -> None:
    _, wme = world
    member = Member(wme, store)
    with pytest.raises(RuntimeError, match="not open"):
        await anext(member.stream)
    async with member.stream:
        await member.has(10)
        reading = asyncio.create_task(anext(member.stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task"):
            await anext(member.stream)
        reading.cancel()
        await asyncio.wait([reading])
        with pytest.raises(ValueError, match="never had part 11"):
            member.stream.token(11)
        await member.stream.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await anext(member.stream)
    with pytest.raises(RuntimeError, match="opened once"):
        await member.stream.__aenter__()


@pytest.mark.parametrize("turns", range(0, 60, 6))
async def test_a_cancellation_at_any_moment_leaves_nothing_behind(
    turns: int, world: World, store: MemoryOffsets
) -> None:
    sim, wme = world
    publish(sim, *ALL)

    async def read() -> None:
        async with joined(wme, store) as member:
            async for _ in member.stream:
                pass

    reading = asyncio.create_task(read())
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await store.members(KEY) == []
    assert len(await store.take(KEY, "next", 10, 30.0)) == 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"offsets": None}, TypeError, "store of leases"),
        ({"offsets": FileOffsets("folder")}, TypeError, "store of leases"),
        ({"parts": [1]}, ValueError, "leave parts out"),
        ({"connections": 2}, ValueError, "leave connections out"),
        ({"lease": 0}, ValueError, "lease must be"),
        ({"lease": "30"}, TypeError, "lease must be"),
        ({"member": ""}, ValueError, "member is empty"),
        ({"share": "groups"}, TypeError, "share must be 'group' or Static"),
        ({"share": None, "lease": 3.0}, ValueError, "lease can be used with share='group' alone"),
        ({"share": Static(0, 11)}, ValueError, "at most 10"),
        ({"share": Static(0, 2), "parts": [1]}, ValueError, "leave parts out"),
        ({"leases": 3}, TypeError, "no option 'leases'"),
    ],
)
async def test_options_that_do_not_fit_are_errors_at_once(
    options: dict[str, Any], error: type[Exception], message: str, wme: Client
) -> None:
    with pytest.raises(error, match=message):
        wme.realtime.articles(**{"share": "group", "offsets": MemoryOffsets(), **options})


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Static(3, 3), ValueError),
        (lambda: Static(-1, 3), ValueError),
        (lambda: Static(0, 0), ValueError),
        (lambda: Static(0.0, 3), TypeError),  # type: ignore[arg-type]
        (lambda: Static(True, 3), TypeError),
    ],
)
def test_a_fixed_share_has_a_number_below_the_number_of_processes(
    make: Callable[[], Static], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"Static\.(ordinal|of)"):
        make()


async def test_fixed_shares_read_everything_once_and_keep_their_place_apart(world: World) -> None:
    sim, wme = world
    store = MemoryOffsets()
    shares = [Static(ordinal, 3) for ordinal in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        streams: list[Stream[Article]] = []
        for share in shares:
            stream = wme.realtime.articles(share=share, offsets=store, retry=PATIENT)
            streams.append(await stack.enter_async_context(stream))
        places = publish(sim, *ALL)
        events = []
        for share, stream in zip(shares, streams, strict=True):
            for _ in ALL[share.ordinal :: 3]:
                article = await anext(stream)
                events.append((article.event.partition, article.event.offset))
                stream.ack(article)
        assert sorted(events) == sorted(places)
        with pytest.raises(StreamError, match="in use"):
            async with wme.realtime.articles(share=Static(1, 3), offsets=store):
                pass
        with pytest.raises(StreamError, match="in use"):
            async with wme.realtime.articles(share=Static(0, 2), offsets=store):
                pass
    assert len(await store.load(KEY)) == 50
    # Another number of processes goes on from the same positions.
    async with wme.realtime.articles(share=Static(0, 1), offsets=store, retry=PATIENT) as stream:
        (place,) = publish(sim, 4)
        article = await anext(stream)
        assert (article.event.partition, article.event.offset) == place
