"""What only NATS does: subjects, the last message of each, servers that restart, and streams that forget."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("nats", reason="needs the extra `nats`")

import nats
from broker_targets import NATSTarget, check_once_and_in_order, events_in, has_sent, stream_of
from real_servers import Server
from stream_world import World, articles, until

from wme_async.errors import StreamError
from wme_async.integrations.nats import to_nats


@pytest.fixture
def subjects(nats_url: str) -> NATSTarget:
    return NATSTarget(nats_url)


# Arguments


async def test_wrong_arguments_are_named(world: World, subjects: NATSTarget) -> None:
    _, wme = world
    async with subjects.connect() as jetstream:
        stream: Any = articles(wme)
        values: list[dict[str, Any]] = [{"subject": name} for name in ("", "a..b", "a.*", "a.>", "a b", ".a", "a.{x}")]
        values += [{"positions": "topic"}, {"in_flight": 0}, {"limit": 0}]
        for wrong in values:
            with pytest.raises(ValueError, match=next(iter(wrong))):
                to_nats(**{"stream": stream, "jetstream": jetstream, **wrong})
        for wrong in ({"stream": wme}, {"jetstream": "nats://"}, {"subject": 7}, {"dead_letter": 7}):
            with pytest.raises(TypeError, match=next(iter(wrong))):
                to_nats(**{"stream": stream, "jetstream": jetstream, **wrong})


async def test_a_subject_that_no_stream_covers_is_an_error(world: World, subjects: NATSTarget) -> None:
    _, wme = world
    async with subjects.connect() as jetstream:
        with pytest.raises(StreamError, match="no stream of JetStream covers the subject 'nowhere"):
            await subjects.bridge(jetstream, articles(wme), subject="nowhere.{partition}")
        with pytest.raises(StreamError, match="no stream of JetStream covers the subject 'nowhere'"):
            await subjects.bridge(jetstream, articles(wme), dead_letter="nowhere")


# The last message


async def test_a_message_of_others_in_a_subject_is_an_error_and_not_a_guess(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with subjects.connect() as jetstream:
        await jetstream.publish(subjects.place_of(1), b"theirs")
        with pytest.raises(StreamError, match=r"not from a bridge .* positions=\"store\""):
            await subjects.bridge(jetstream, stream_of(sim, wme), limit=1)
        await subjects.bridge(jetstream, stream_of(sim, wme), positions="store", limit=1)
    assert [message.value == b"theirs" for message in await subjects.messages()] == [True, False]


async def test_another_writer_ends_the_bridge_before_it_writes_behind_it(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 1))
        await jetstream.publish(subjects.place_of(1), b"theirs")
        sim.firehose.publish(partition=1)
        with pytest.raises(StreamError, match="another writer"):
            await running
    assert len(await subjects.messages()) == 2


async def test_a_message_that_arrives_late_is_not_stored_twice(world: World, subjects: NATSTarget) -> None:
    """A killed bridge's last message may reach the server after the next bridge has read the positions."""
    sim, wme = world
    subjects.duplicate_window = 0.1
    published = [sim.firehose.publish(partition=1)]
    copy = subjects.another()
    async with subjects.connect() as jetstream, copy.connect() as other:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 1))
        # What the killed bridge would have sent is what a bridge sends elsewhere.
        record = sim.firehose.publish(partition=1)
        published.append(record)
        await until(lambda: has_sent(bridge, 2))
        await copy.bridge(other, stream_of(sim, wme), limit=2)
        late = (await copy.messages())[1]
        headers = {name: text for name, text in late.headers.items() if not name.startswith("Nats-")}
        headers["Nats-Expected-Last-Subject-Sequence"] = "1"
        with pytest.raises(nats.js.errors.APIError):
            await jetstream.publish(subjects.place_of(1), late.value, headers=headers)
        bridge.stop()
        await running
    check_once_and_in_order(await events_in(subjects), published)


async def test_the_last_message_may_be_as_large_as_the_server_allows(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    published = [sim.firehose.publish(partition=1, size=1_000_000), sim.firehose.publish(partition=1)]
    async with subjects.connect() as jetstream:
        for _ in range(2):
            await subjects.bridge(jetstream, stream_of(sim, wme), limit=1)
    check_once_and_in_order(await events_in(subjects), published)


# Streams that forget


async def test_a_purge_while_the_bridge_runs_does_it_no_harm(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    sim.firehose.publish_many(5, partition=1)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 5))
        await jetstream.purge_stream(subjects.name)
        published = sim.firehose.publish_many(5, partition=1)
        await until(lambda: has_sent(bridge, 10))
        bridge.stop()
        await running
    check_once_and_in_order(await events_in(subjects), published)


async def test_a_subject_that_keeps_one_message_still_has_the_position(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    subjects.settings["max_msgs_per_subject"] = 1
    async with subjects.connect() as jetstream:
        for number in range(3):
            sim.firehose.publish_many(5, partition=1)
            bridged = await subjects.bridge(jetstream, stream_of(sim, wme), limit=5)
            assert bridged.sent == 5
            assert await events_in(subjects) == [(1, 5 * number + 4)]


async def test_a_stream_that_is_deleted_ends_the_bridge(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 1))
        await jetstream.delete_stream(subjects.name)
        sim.firehose.publish(partition=1)
        with pytest.raises(StreamError, match="no longer exists"):
            await running


async def test_a_server_that_has_lost_messages_ends_the_bridge_and_the_next_sends_them_again(
    world: World, subjects: NATSTarget
) -> None:
    sim, wme = world
    published = sim.firehose.publish_many(5, partition=1)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 5))
        # As after the failure of its machine, the last messages are gone.
        await jetstream.delete_stream(subjects.name)
        subjects.created = False
        async with subjects.connect():
            published += sim.firehose.publish_many(1, partition=1)
            with pytest.raises(StreamError, match="has lost messages"):
                await running
        await subjects.bridge(jetstream, stream_of(sim, wme), limit=6)
    check_once_and_in_order(await events_in(subjects), published)


# Servers


@pytest.mark.parametrize("kill", [False, True])
async def test_a_server_that_restarts_is_waited_for(
    world: World, subjects: NATSTarget, nats_server: Server, kill: bool
) -> None:
    sim, wme = world
    subjects.duplicate_window = 0.1
    published = sim.firehose.publish_many(30)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme), limit=90)
        running = asyncio.ensure_future(bridge)
        for count in (30, 60):
            await until(lambda count=count: has_sent(bridge, count))  # type: ignore[misc]
            restart = asyncio.ensure_future(asyncio.to_thread(nats_server.restart, kill=kill))
            published += sim.firehose.publish_many(30)
            await restart
        await asyncio.wait_for(running, 30)
    check_once_and_in_order(await events_in(subjects), published)


async def test_a_connection_that_is_closed_ends_the_bridge(world: World, subjects: NATSTarget) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 1))
    sim.firehose.publish(partition=1)
    with pytest.raises(nats.errors.Error):
        await asyncio.wait_for(running, 20)


# Large records


@pytest.mark.parametrize("limit", ["of the stream", "of the server"])
async def test_a_record_that_is_too_large_names_the_setting(world: World, subjects: NATSTarget, limit: str) -> None:
    sim, wme = world
    if limit == "of the stream":
        subjects.limited(100_000)
    published = [sim.firehose.publish(partition=1), sim.firehose.publish(partition=1, size=1_100_000)]
    published.append(sim.firehose.publish(partition=1))
    async with subjects.connect() as jetstream:
        setting = "max_msg_size of the stream" if limit == "of the stream" else "max_payload of the server"
        with pytest.raises(StreamError, match=f"offset 1 of partition 1 .*{setting}"):
            await subjects.bridge(jetstream, stream_of(sim, wme), limit=3)
        letters: list[Any] = []
        await subjects.bridge(jetstream, stream_of(sim, wme), dead_letter=letters.append, limit=2)
    assert [(letter.partition, letter.offset) for letter in letters] == [(1, 1)]
    assert await events_in(subjects) == [(1, 0), (1, 2)]


async def test_a_limit_that_is_lowered_while_the_bridge_runs_names_the_setting(
    world: World, subjects: NATSTarget
) -> None:
    sim, wme = world
    sim.firehose.publish(partition=1)
    async with subjects.connect() as jetstream:
        bridge = subjects.bridge(jetstream, stream_of(sim, wme))
        running = asyncio.ensure_future(bridge)
        await until(lambda: has_sent(bridge, 1))
        info = await jetstream.stream_info(subjects.name)
        await jetstream.update_stream(info.config.evolve(max_msg_size=1000))
        sim.firehose.publish(partition=1, size=10_000)
        with pytest.raises(StreamError, match="max_msg_size"):
            await running
