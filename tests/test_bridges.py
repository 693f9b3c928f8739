"""Bridges into Kafka and NATS alike: every event once and in order, and the position in the target."""

import asyncio
import functools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from broker_targets import Target, check_once_and_in_order, events_in, has_sent, stream_of
from stream_world import WIKI, World, articles, batch_record, hour_of, learn_the_time, publish_wiki, put_batches, until

from wme_async import Client, MemoryOffsets, Position
from wme_async.errors import DecodeError, OffsetGap, StreamError
from wme_async.models import Article


async def test_each_event_arrives_once_in_its_place_as_it_came(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(200)
    async with target.connect() as client:
        bridged = await target.bridge(client, stream_of(sim, wme), limit=200)
    assert (bridged.sent, bridged.skipped, bridged.pending) == (200, 0, 0)
    messages = await target.messages()
    assert bridged.bytes == sum(len(message.value or b"") for message in messages)
    check_once_and_in_order((message.event for message in messages), published)
    for message in messages:
        record = msgspec.json.decode(message.value or b"")
        partition, offset = message.event
        assert (record["event"]["partition"], record["event"]["offset"]) == (partition, offset)
        assert message.place == target.place_of(partition)
        assert message.headers["wme-stream"] == "default/articles"
        assert message.headers["wme-type"] == record["event"]["type"]
        assert message.key == f"{record['is_part_of']['identifier']}/{record['name']}".replace("_", " ")
    assert bridged.positions == {
        partition: max(o for p, o in published if p == partition) for partition, _ in published
    }


async def test_a_bridge_continues_behind_the_last_message_of_each_place(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(100)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme), limit=60)
        published += sim.firehose.publish_many(100)
        # No store, and begins an hour ago: the positions come from the target alone.
        bridged = await target.bridge(client, stream_of(sim, wme), limit=140)
    assert bridged.sent == 140
    check_once_and_in_order(await events_in(target), published)


async def test_events_of_a_silent_partition_while_no_bridge_runs_are_not_lost(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=3)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme), limit=1)
        # Partition 7 has no message in the target that could have a position, and this stream begins now.
        sim.firehose.publish(partition=7)
        sim.clock.advance(60)
        await target.bridge(client, stream_of(sim, wme, since=None), limit=1)
    assert sorted(await events_in(target)) == [(3, 0), (7, 0)]


async def test_it_can_be_watched_and_stopped(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish_many(50)
    async with target.connect() as client:
        bridge = target.bridge(client, stream_of(sim, wme))
        assert not bridge.statistics().running
        running = asyncio.ensure_future(bridge)
        await until(functools.partial(has_sent, bridge, 50))
        now = bridge.statistics()
        assert (now.running, now.connected, now.pending, now.stalled, bridge.failure) == (True, 1, 0, 0.0, None)
        assert now.lag >= 0
        sim.clock.advance(30)
        assert bridge.statistics().lag >= now.lag
        bridge.stop()
        bridged = await running
    assert (bridged.sent, bridged.running, bridged.connected) == (50, False, 0)
    with pytest.raises(RuntimeError, match="runs once"):
        await bridge


async def test_a_cancelled_bridge_loses_and_doubles_nothing(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(300)
    async with target.connect() as client:
        for _ in range(5):
            bridge = target.bridge(client, stream_of(sim, wme), **{target.batch: 20})
            running = asyncio.ensure_future(bridge)
            await until(functools.partial(has_sent, bridge, 1))
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert bridge.failure is None
        left = 300 - len(await target.messages())
        assert left > 0
        await target.bridge(client, stream_of(sim, wme), limit=left)
    check_once_and_in_order(await events_in(target), published)


async def test_with_a_store_the_store_has_the_positions(world: World, target: Target) -> None:
    sim, wme = world
    store = MemoryOffsets()
    published = sim.firehose.publish_many(30, partition=1)
    async with target.connect() as client:
        for count in (10, 20):
            stream = stream_of(sim, wme, offsets=store)
            await target.bridge(client, stream, positions="store", limit=count)
    check_once_and_in_order(await events_in(target), published)


async def test_deletions_are_tombstones_if_asked(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    sim.firehose.publish(partition=1, kind="delete")
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme), tombstones=True, limit=2)
    update, deletion = await target.messages()
    assert msgspec.json.decode(update.value or b"")["event"]["type"] == "update"
    assert deletion.value is None
    assert deletion.key is not None
    assert "/" in deletion.key
    assert deletion.headers["wme-type"] == "delete"


# What a stream yields


class Title(msgspec.Struct):
    """A type without an event."""

    name: str


@pytest.mark.parametrize("type", [dict, Article, Title])
async def test_values_of_any_type_are_sent_as_json(world: World, target: Target, type: Any) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(20)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, type=type), limit=20)
    messages = await target.messages()
    check_once_and_in_order((message.event for message in messages), published)
    for message in messages:
        record = msgspec.json.decode(message.value or b"")
        assert record.keys() == {"name"} if type is Title else "event" in record
        assert message.key is not None
        assert message.key.endswith(record["name"].replace("_", " "))


@pytest.mark.parametrize("commit", ["ack", "manual"])
async def test_each_way_of_counting_events_as_processed_works(world: World, target: Target, commit: str) -> None:
    sim, wme = world
    store = MemoryOffsets()
    published = sim.firehose.publish_many(30)
    async with target.connect() as client:
        for count in (10, 20):
            stream = stream_of(sim, wme, offsets=store, commit=commit)
            await target.bridge(client, stream, limit=count)
    check_once_and_in_order(await events_in(target), published)
    saved = await store.load("default/articles")
    assert sum(position.offset + 1 for position in saved.values()) == (30 if commit == "ack" else 10)


async def test_filtered_and_bad_records_are_passed(world: World, target: Target) -> None:
    sim, wme = world
    letters: list[Any] = []
    wiki = {"is_part_of": {"identifier": "abwiki"}, "name": "A"}
    sim.firehose.publish({**wiki, "event": {"type": "update"}}, partition=3)
    sim.firehose.publish({**wiki, "event": {"type": "delete"}}, partition=3)
    sim.firehose.publish({**wiki, "event": {"type": "update"}, "name": 7}, partition=3)
    sim.firehose.publish({**wiki, "event": {"type": "update"}}, partition=3)
    async with target.connect() as client:
        stream = stream_of(sim, wme, type=Article, filters={"event.type": "update"})
        bridged = await target.bridge(client, stream, dead_letter=letters.append, limit=2)
        assert (bridged.sent, bridged.dead_letters) == (2, 1)
    assert await events_in(target) == [(3, 0), (3, 3)]
    other = target.another()
    async with other.connect() as client:
        with pytest.raises(DecodeError):
            await other.bridge(client, stream_of(sim, wme, type=Article), limit=4)
    assert await events_in(other) == [(3, 0), (3, 1)]
    (letter,) = letters
    assert (letter.partition, letter.offset) == (3, 2)
    assert msgspec.json.decode(letter.record)["name"] == 7


async def test_a_partition_that_is_numbered_anew_is_copied_from_its_new_beginning(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish_many(20, partition=7)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, parts=[1]), limit=20)
        sim.clock.advance(3600)
        sim.firehose.log[7] = type(sim.firehose.log[7])()
        sim.firehose.publish_many(3, partition=7)
        sim.clock.advance(600)
        await learn_the_time(sim, wme)
        running = asyncio.ensure_future(target.bridge(client, stream_of(sim, wme, parts=[1], since=None), limit=4))
        await sim.firehose.wait_open(1)
        sim.firehose.publish(partition=7)
        await asyncio.wait_for(running, 20)
        # After a restart the new numbers count, although they are lower.
        sim.firehose.publish(partition=7)
        await target.bridge(client, stream_of(sim, wme, parts=[1], since=None), limit=1)
    assert [offset for _, offset in await events_in(target)] == [*range(20), *range(5)]


async def test_records_of_a_backfill_are_marked_and_positions_stay_right(world: World, target: Target) -> None:
    sim, wme = world
    options = {"parts": [1], "filters": WIKI, "backfill": True}
    publish_wiki(sim)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, **options), limit=1)
        sim.clock.advance(60)
        publish_wiki(sim, name="in the gap")
        sim.clock.advance(49 * 3600)
        publish_wiki(sim, name="after the gap")
        await learn_the_time(sim, wme)
        hour = hour_of(sim) - timedelta(hours=5)
        put_batches(sim, {hour: [batch_record(number, hour) for number in range(3)]})
        await target.bridge(client, stream_of(sim, wme, **options, since=None), limit=4)
        publish_wiki(sim)
        await target.bridge(client, stream_of(sim, wme, **options, since=None), limit=1)
    messages = await target.messages()
    filled = [message for message in messages if "wme-backfilled" in message.headers]
    assert sorted(message.key or "" for message in filled) == [f"abwiki/Batch {number}" for number in range(3)]
    assert {message.place for message in filled} <= {target.place_of(number) for number in range(5, 10)}
    events = [message.event for message in messages if "wme-backfilled" not in message.headers]
    assert events == [(7, 0), (7, 2), (7, 3)]


# Who holds the positions


async def test_what_the_target_lacks_is_sent_again_although_it_was_saved(world: World, target: Target) -> None:
    sim, wme = world
    store = MemoryOffsets()
    published = sim.firehose.publish_many(30, partition=1)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, offsets=store), limit=10)
        saved = await store.load("default/articles")
        await store.save("default/articles", {1: Position(19, saved[1].published)})
        await target.bridge(client, stream_of(sim, wme, offsets=store), limit=20)
        # And what it has is not, although it was not saved.
        await store.save("default/articles", {1: Position(4, saved[1].published)})
        sim.firehose.publish_many(1, partition=1)
        await target.bridge(client, stream_of(sim, wme, offsets=store), limit=1)
    check_once_and_in_order(await events_in(target), [*published, (1, 30)])


async def test_where_the_last_message_is_gone_the_store_counts(world: World, target: Target) -> None:
    sim, wme = world
    store = MemoryOffsets()
    published = sim.firehose.publish_many(30)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, offsets=store), limit=10)
    first = await events_in(target)
    empty = target.another()
    async with empty.connect() as client:
        await empty.bridge(client, stream_of(sim, wme, offsets=store), limit=20)
    check_once_and_in_order([*first, *await events_in(empty)], published)


async def test_a_bridge_is_complete_only_in_the_parts_that_it_reads(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=7)  # in part 1, which the first bridge does not read
    sim.clock.advance(60)
    sim.firehose.publish(partition=3)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, parts=[0]), limit=1)
        await target.bridge(client, stream_of(sim, wme, parts=[0, 1]), limit=1)
    assert sorted(await events_in(target)) == [(3, 0), (7, 0)]


async def test_partitions_may_share_a_place(world: World, target: Target) -> None:
    sim, wme = world
    published: list[tuple[int, int]] = []
    async with target.connect() as client:
        for _ in range(3):
            published += sim.firehose.publish_many(100)
            await target.bridge(client, stream_of(sim, wme), **target.shared(), limit=100)
    messages = await target.messages()
    assert len({message.place for message in messages}) == 1
    check_once_and_in_order((message.event for message in messages), published)


# Two bridges, and other writers


async def test_two_bridges_of_different_names_do_not_disturb_each_other(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(60, partition=1)
    other = target if target.own == "topic" else target.another()
    async with target.connect() as client, other.connect() as other_client:
        for _ in range(3):
            await target.bridge(client, stream_of(sim, wme, name="one"), limit=20)
            await other.bridge(other_client, stream_of(sim, wme, name="two"), limit=10)
    both = [*await target.messages(), *([] if other is target else await other.messages())]
    for name, count in (("one", 60), ("two", 30)):
        events = [message.event for message in both if message.headers["wme-stream"] == f"{name}/articles"]
        check_once_and_in_order(events, published[:count])


async def test_a_second_bridge_of_the_stream_is_noticed(world: World, target: Target) -> None:
    sim, wme = world
    async with target.connect() as client, target.connect() as other_client:
        first = asyncio.ensure_future(target.bridge(client, stream_of(sim, wme, parts=[0])))
        await sim.firehose.wait_open(1)
        sim.firehose.publish_many(3, partition=1)
        second = asyncio.ensure_future(target.bridge(other_client, stream_of(sim, wme, parts=[0])))
        await sim.firehose.wait_open(2)
        both = {first, second}
        for _ in range(60):
            sim.firehose.publish_many(5, partition=1)
            done, _pending = await asyncio.wait(both, timeout=0.005, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
        failures = [bridge.exception() for bridge in both if bridge.done()]
        for bridge in both:
            bridge.cancel()
        await asyncio.wait(both)
    assert all(isinstance(failure, StreamError) and "another" in str(failure) for failure in failures), failures
    if target.own == "topic":
        assert failures
    else:  # the server stores each event once, and the second may even keep up
        offsets = [offset for _, offset in await events_in(target)]
        assert offsets == list(range(len(offsets)))


# Several hosts


def part_of_group(wme: Client, store: MemoryOffsets, member: str) -> Any:
    return articles(wme, type=msgspec.Raw, since="oldest", offsets=store, share="group", lease=1.0, member=member)


async def test_bridges_of_a_group_take_over_from_each_other(world: World, target: Target) -> None:
    sim, wme = world
    store = MemoryOffsets()
    published = sim.firehose.publish_many(100)
    async with target.connect() as client, target.connect() as other_client:
        first = target.bridge(client, part_of_group(wme, store, "first"))
        first_run = asyncio.ensure_future(first)
        await until(functools.partial(has_sent, first, 100))
        share = part_of_group(wme, store, "second")
        second = target.bridge(other_client, share)
        second_run = asyncio.ensure_future(second)
        await until(lambda: len(share.parts) == 5)
        published += sim.firehose.publish_many(100)
        await until(lambda: first.statistics().sent + second.statistics().sent == 200)
        assert second.statistics().sent > 0
        first.stop()
        await first_run
        published += sim.firehose.publish_many(100)
        await until(lambda: first.statistics().sent + second.statistics().sent == 300)
        second.stop()
        await second_run
    check_once_and_in_order(await events_in(target), published)


async def test_parts_of_a_group_cannot_share_a_place(world: World, target: Target) -> None:
    _, wme = world
    async with target.connect() as client:
        with pytest.raises(ValueError, match="let each partition have its own place"):
            target.bridge(client, part_of_group(wme, MemoryOffsets(), "one"), **target.shared())


# Dead letters


async def test_dead_letters_go_to_another_place_whole_or_as_news(world: World, target: Target) -> None:
    sim, wme = world
    options = target.limited(100_000)
    place, box = target.letter_box()
    sim.firehose.publish(partition=1)
    sim.firehose.publish({"name": 7, "event": {"type": "update"}}, partition=1)
    sim.firehose.publish(partition=1, size=2_000_000)
    sim.firehose.publish(partition=1)
    async with target.connect() as client, box.connect():
        stream = stream_of(sim, wme, type=Article)
        bridged = await target.bridge(client, stream, dead_letter=place, limit=3, **options)
    assert (bridged.sent, bridged.dead_letters, bridged.pending) == (2, 2, 0)
    assert await events_in(target) == [(1, 0), (1, 3)]
    letters = {message.event: message for message in await box.messages()}
    assert letters.keys() == {(1, 1), (1, 2)}
    assert msgspec.json.decode(letters[1, 1].value or b"")["name"] == 7
    news = msgspec.json.decode(letters[1, 2].value or b"")
    assert (news["partition"], news["offset"], news["key"]) == (1, 2, letters[1, 2].key)
    assert news["bytes"] > 1_000_000
    assert all("wme-reason" in letter.headers for letter in letters.values())


async def test_a_dead_letter_comes_before_the_events_behind_it(world: World, target: Target) -> None:
    sim, wme = world
    options = target.limited(100_000)
    published = [sim.firehose.publish(partition=1, size=size) for size in (1000, 200_000, 1000)]
    letters: list[Any] = []
    arrived = asyncio.Event()

    async def keep(letter: Any) -> None:
        letters.append(letter)
        arrived.set()
        await asyncio.Event().wait()

    async with target.connect() as client:
        running = asyncio.ensure_future(
            target.bridge(client, stream_of(sim, wme), dead_letter=keep, grace=0.01, **options)
        )
        await asyncio.wait_for(arrived.wait(), 20)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await events_in(target) == published[:1]
        await target.bridge(client, stream_of(sim, wme), dead_letter=letters.append, limit=2, **options)
    assert await events_in(target) == [published[0], published[2]]
    assert [(letter.partition, letter.offset) for letter in letters] == [published[1], published[1]]
    assert len(letters[0].record) > 100_000


# Failures


async def test_a_failure_is_kept_for_the_health_check(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1, size=300_000)

    async def fail(_letter: Any) -> None:
        raise OSError("the disk is full")

    options = target.limited(100_000)
    async with target.connect() as client:
        bridge = target.bridge(client, stream_of(sim, wme), dead_letter=fail, **options)
        with pytest.raises(OSError, match="the disk is full"):
            await bridge
        assert isinstance(bridge.failure, OSError)
        assert not bridge.statistics().running
        assert bridge.statistics().stalled == 0.0


async def test_a_gap_that_is_to_be_raised_ends_the_bridge(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=7)
    async with target.connect() as client:
        await target.bridge(client, stream_of(sim, wme, parts=[1]), limit=1)
        sim.firehose.publish(partition=7)
        sim.clock.advance(49 * 3600)
        sim.firehose.publish(partition=7)
        await learn_the_time(sim, wme)
        bridge = target.bridge(client, stream_of(sim, wme, parts=[1], since=None, on_gap="raise"))
        with pytest.raises(OffsetGap):
            await bridge
        assert isinstance(bridge.failure, OffsetGap)
        await target.bridge(client, stream_of(sim, wme, parts=[1], since=None), limit=1)
    assert await events_in(target) == [(7, 0), (7, 2)]


async def test_a_bridge_that_is_stopped_before_it_runs_reads_nothing(world: World, target: Target) -> None:
    sim, wme = world
    sim.firehose.publish(partition=7)
    async with target.connect() as client:
        bridge = target.bridge(client, stream_of(sim, wme))
        bridge.stop()
        assert (await bridge).sent == 0
    assert await target.messages() == []


async def test_records_of_the_log_have_fields(world: World, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    sim, wme = world
    options = target.limited(100_000)
    sim.firehose.publish(partition=1, size=200_000)
    caplog.set_level("INFO", "wme_async.bridge")
    async with target.connect() as client:
        letters: list[Any] = []
        await target.bridge(client, stream_of(sim, wme), dead_letter=letters.append, limit=1, **options)
        with pytest.raises(StreamError):
            await target.bridge(client, stream_of(sim, wme), limit=1, **options)
    fields = {record.levelname: record.__dict__["wme"] for record in caplog.records}
    assert fields["INFO"]["stream"] == "default/articles"
    assert (fields["WARNING"]["partition"], fields["WARNING"]["offset"]) == (1, 0)
    assert fields["ERROR"]["error"] == "StreamError"


async def test_entities_are_copied_as_articles_are(world: World, target: Target) -> None:
    sim, wme = world
    published = sim.wikidata.publish_many(20)
    since = datetime.fromtimestamp(sim.clock.now(), UTC) - timedelta(hours=1)
    async with target.connect() as client:
        await target.bridge(client, wme.realtime.wikidata(since=since, type=msgspec.Raw), limit=20)
    messages = await target.messages()
    check_once_and_in_order((message.event for message in messages), published)
    assert {message.headers["wme-stream"] for message in messages} == {"default/wikidata"}
    assert all((message.key or "").startswith("wikidatawiki/") for message in messages)


async def test_a_broker_that_is_away_is_in_the_log_once(
    world: World, target: Target, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, wme = world
    monkeypatch.setattr("wme_async.integrations._bridge.STALLED", 0.02)
    options = target.limited(10_000)
    sim.firehose.publish(partition=1, size=20_000)
    sim.firehose.publish(partition=1)

    async def slow(_letter: Any) -> None:
        await until(lambda: "still waiting" in caplog.text)

    async with target.connect() as client:
        bridged = await target.bridge(client, stream_of(sim, wme), dead_letter=slow, limit=2, **options)
    assert (bridged.sent, bridged.dead_letters) == (1, 1)
    assert caplog.text.count("still waiting") == 1
    assert caplog.text.count("confirms messages again") == 1
