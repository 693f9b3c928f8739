"""What users write, as type checkers see it. Never run: mypy and pyright check that each expression has its type."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_type

import msgspec

from wme_async import (
    Allowances,
    ArchiveReader,
    Article,
    Batch,
    Budget,
    Cache,
    Client,
    Cost,
    DecodeError,
    Download,
    FileInfo,
    FileOffsets,
    Files,
    Hosts,
    Limits,
    Looked,
    MemoryOffsets,
    NotFound,
    OffsetGap,
    OffsetStore,
    Position,
    Progress,
    Project,
    Quota,
    QuotaExceeded,
    Retry,
    Retrying,
    SessionPool,
    Snapshot,
    SQLiteOffsets,
    StatusError,
    StructuredContent,
    Timeouts,
    WMEError,
    read_archive,
)
from wme_async.models import (
    Archive,
    Chunk,
    Code,
    FilePage,
    Language,
    Namespace,
    StructuredSnapshot,
    User,
    WikidataArticle,
)
from wme_async.simulator import Fault, Request, Simulator


class Page(msgspec.Struct):
    """A type of a user's."""

    name: str


def told(retrying: Retrying) -> None:
    """Be told of a retry."""
    assert_type(retrying.error, WMEError)
    assert_type(retrying.wait, float)


async def settings() -> None:
    """Make clients."""
    pool = SessionPool(limits=Limits(connections=10), timeouts=Timeouts(read=5), trust_env=True)
    client = Client(
        "user",
        "password",
        hosts={"api": "http://localhost:8080"},
        retry=Retry(attempts=3),
        pool=pool,
        token_file=Path("tokens.json"),
        on_retry=told,
        allowances=Allowances(snapshot=30),
        cache=Cache(ttl=60),
    )
    assert_type(await client.__aenter__(), Client)
    assert_type(Client.from_env("settings.env", hosts=Hosts()), Client)
    async with Client(access_token="token") as wme:
        assert_type(wme, Client)


async def metadata(wme: Client) -> None:
    """List and get."""
    assert_type(await wme.codes.list(), list[Code])
    assert_type(await wme.languages.get("en"), Language)
    assert_type(await wme.projects.list(fields=["identifier"], filters={"code": "wiki"}), list[Project])
    assert_type(await wme.namespaces.get(0), Namespace)
    assert_type(await wme.projects.list(type=Page), list[Page])
    assert_type(wme.projects.explain(filters={"code": "wiki"}), str)


async def archives(wme: Client) -> None:
    """Use each verb on each kind of archive."""
    hour = wme.batches(datetime.now(UTC))
    assert_type(hour, Files[Batch, Article])
    assert_type(await hour.list(), list[Batch])
    assert_type(await hour.get("enwiki_namespace_0"), Batch)
    assert_type(await hour.head("enwiki_namespace_0"), FileInfo)
    assert_type(await wme.snapshots.get("enwiki_namespace_0"), Snapshot)
    assert_type(await wme.snapshots.chunks("enwiki_namespace_0").list(), list[Chunk])
    assert_type(await wme.structured_snapshots.list(), list[StructuredSnapshot])
    assert_type(await wme.wikidata.snapshots.list(), list[Snapshot])
    assert_type(await wme.wikidata.batches("2026-07-16T05").list(), list[Archive])


async def downloads(wme: Client) -> None:
    """Download."""

    def show(progress: Progress) -> None:
        assert_type(progress.total, int | None)

    async def show_later(progress: Progress) -> None:
        assert_type(progress.rate, float)

    done = await wme.snapshots.download("enwiki_namespace_0", "data/", progress=show, budget=Budget(4, max_rate=1e6))
    assert_type(done, Download)
    assert_type(done.path, Path)
    assert_type(done.verified, bool | None)
    await wme.snapshots.download("enwiki_namespace_0", progress=show_later)
    await wme.snapshots.download("enwiki_namespace_0", "data", name="{identifier}-{version}", overwrite=True)


async def reading(wme: Client) -> None:
    """Read archives."""

    async def keep(error: DecodeError) -> None:
        assert_type(error.record, bytes | None)

    async with wme.snapshots.read("enwiki_namespace_0") as articles:
        assert_type(articles, ArchiveReader[Article])
        async for article in articles:
            assert_type(article, Article)
            assert_type(article.version.editor.is_bot, bool)
            assert_type(article.date_modified, datetime | None)
    async with wme.structured_snapshots.read("enwiki_namespace_0") as contents:
        async for content in contents:
            assert_type(content, StructuredContent)
    async with wme.snapshots.read("enwiki_namespace_0", type=Page, on_bad_record=keep) as pages:
        assert_type(pages.batches(), AsyncIterator[list[Page]])
    async with read_archive("enwiki.tar.gz") as articles:
        assert_type(articles, ArchiveReader[Article])
    async with read_archive("enwiki.tar.gz", type=Page) as pages:
        assert_type(await anext(pages), Page)
        assert_type(pages.statistics().bad_records, int)


async def lookups(wme: Client) -> None:
    """Look up."""
    assert_type(await wme.articles.lookup("NATO", filters={"is_part_of.identifier": "enwiki"}), list[Article])
    assert_type(await wme.articles.lookup("NATO", type=Page), list[Page])
    assert_type(await wme.structured_contents.lookup("NATO"), list[StructuredContent])
    async with wme.articles.lookup_many(["NATO", "Earth"], type=Page) as results:
        async for looked in results:
            assert_type(looked, Looked[Page])
            assert_type(looked.first, Page | None)
            assert_type(looked.unwrap(), tuple[Page, ...])
    assert_type(await wme.wikidata.items.get("Q42"), WikidataArticle)
    assert_type(await wme.wikidata.labels.get("Q42"), dict[str, str])
    assert_type(await wme.files.get("Ottawa 0757.jpg"), FilePage)
    assert_type(await wme.files.download("Ottawa 0757.jpg"), Download)


async def account(wme: Client) -> None:
    """Ask for the account."""
    assert_type(await wme.auth.user(), User)
    assert_type(wme.snapshots.cost("enwiki_namespace_0"), Cost)
    quota = await wme.auth.check(wme.articles.cost(1000))
    assert_type(quota, Quota)
    assert_type(quota.ondemand.left, int | None)


class Table:
    """A store of a user's."""

    async def load(self, name: str) -> Mapping[int, Position]:
        """Load."""
        raise NotFound(name)

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save."""


async def streams(wme: Client) -> None:
    """Follow the stream."""

    def gap(error: OffsetGap) -> None:
        assert_type(error.partition, int)

    stores: list[OffsetStore] = [Table(), MemoryOffsets(), FileOffsets("folder"), SQLiteOffsets("offsets.db")]
    for store in stores:
        async with wme.realtime.articles(offsets=store, connections=2, on_gap=gap) as stream:
            async for article in stream:
                assert_type(article, Article)
                assert_type(article.event.offset, int | None)
                stream.ack(article)
            assert_type(stream.positions, dict[int, Position])
            assert_type(stream.statistics().lag, float | None)
    async with wme.realtime.wikidata(offsets=MemoryOffsets(), parts_total=10) as entities:
        assert_type(await anext(entities), WikidataArticle)
    async with wme.realtime.wikidata(type=Page) as labelled:
        assert_type(await anext(labelled), Page)
    wme.realtime.wikidata(offset=MemoryOffsets())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    async with wme.realtime.articles(type=Page) as pages:
        async for batch in pages.batches(100, 0.5):
            assert_type(batch, list[Page])


async def failures(wme: Client) -> None:
    """Catch errors."""
    try:
        await wme.codes.list()
    except QuotaExceeded as error:
        assert_type(error.limit, int | None)
    except StatusError as error:
        assert_type(error.status, int)
        assert_type(error.retry_after, float | None)
    except WMEError as error:
        assert_type(error.url, str | None)


async def simulated() -> None:
    """Use the simulator."""
    async with Simulator(articles=5) as sim:
        assert_type(sim.faults.inject("status", status=503), Fault)
        assert_type(sim.requests.last, Request)
        assert_type(sim.environment(), dict[str, str])
        assert_type(sim.firehose.publish(kind="delete"), tuple[int, int])
    with Simulator.run_in_thread() as running:
        assert_type(running, Simulator)
