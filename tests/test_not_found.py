"""What a `NotFound` advises: hours that exist, and identifiers that are similar to the one that does not."""

from datetime import UTC, datetime

import pytest

from wme_async import Client, NotFound
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"


async def message_of(awaitable):
    with pytest.raises(NotFound) as caught:
        await awaitable
    assert str(caught.value) == caught.value.message
    assert caught.value.message.startswith("HTTP 404 from ")
    return caught.value.message


@pytest.mark.parametrize(
    ("hour", "words"),
    [
        ("2025-07-13T05", "79 hours ago"),
        ("2025-07-16T12", "has not ended"),
        ("2025-07-16T11", "try again later"),
    ],
)
async def test_an_hour_that_does_not_exist_says_which_do(hour, words):
    # In the first minutes after an hour, its list does not exist yet.
    start = datetime(2025, 7, 16, 12, 10, tzinfo=UTC)
    async with Simulator(start=start, articles=1) as simulator, Client(**simulator.client_options()) as client:
        message = await message_of(client.batches(hour).list())
        assert words in message
        assert "25 minutes" in message
        assert "48 hours" in message
        assert "'latest'" in message
        if words == "79 hours ago":
            assert words in await message_of(client.batches(hour).get(ARCHIVE))


async def test_a_misspelled_identifier_is_followed_by_the_one_that_exists(sim, wme, tmp_path):
    hour = wme.batches(sim.hours[-1])
    meant = f"did you mean {ARCHIVE}"
    assert meant in await message_of(hour.get("enwiki_namspace_0"))
    assert meant in await message_of(hour.head("enwiki-namespace_0"))
    assert meant in await message_of(hour.download("enwiki_namespace_00", tmp_path))
    assert "did you mean enwiki" in await message_of(wme.projects.get("en_wiki"))
    assert "did you mean" not in await message_of(hour.get("something else"))

    async def read():
        async with hour.read("enwik_namespace_0") as articles:
            async for _ in articles:
                pass

    assert meant in await message_of(read())
    assert meant in await message_of(wme.snapshots.chunks("enwik_namespace_0").list())
    assert meant in await message_of(wme.snapshots.chunks("enwiki").list())


async def test_looking_for_similar_names_is_not_metered_and_its_failure_is_not_seen(sim, wme, tmp_path):
    used = await wme.auth.quota()
    await message_of(wme.snapshots.get("enwiki_namespace"))
    assert (await wme.auth.quota()).snapshot.used == used.snapshot.used
    sim.faults.inject("status", role="api", path="/v2/snapshots$", status=503, times=None)
    assert "did you mean" not in await message_of(wme.snapshots.get("enwiki_namespace"))


async def test_an_archive_without_metadata_costs_no_list(sim, wme, tmp_path):
    # The record is written after the archive, so that its absence is no error of the caller.
    fault = sim.faults.inject("status", role="api", path=f"/{ARCHIVE}$", status=404, times=None)
    before = len(sim.requests)
    await wme.snapshots.download(ARCHIVE, tmp_path / "x.tar.gz")
    assert fault.hits
    assert not [request for request in list(sim.requests)[before:] if request.path.endswith("/snapshots")]
