"""Do one thing with a mirror in an SQLite file, and print its cost as one line of JSON.

    python benchmarks/mirror_one.py raw ARCHIVE              read an archive to msgspec.Raw, and nothing else
    python benchmarks/mirror_one.py load ARCHIVE FILE.db     merge it into a store, as loading a snapshot does
    python benchmarks/mirror_one.py read                     read a stream to msgspec.Raw, and nothing else
    python benchmarks/mirror_one.py follow FILE.db           merge it into a store, as following does
    python benchmarks/mirror_one.py select|keys FILE.db      read all keys: by sqlite3 alone, or by the store
    python benchmarks/mirror_one.py fill FILE.db             make a store of so many pages

The archive reader, the loader and the follower are those of the package; only the request for the archive is left out.
The stream comes from a simulator in a process of its own, at a rate.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import resource
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec

from wme_async import Client, read_archive
from wme_async.mirror import Marks, MirrorReader, SQLiteStore
from wme_async.mirror.follower import Follower
from wme_async.mirror.loader import Loader
from wme_async.mirror.marks import Progress, Scope
from wme_async.mirror.rule import Page, Picture
from wme_async.mirror.work import Options, Work
from wme_async.simulator import Simulator

SELECT = "SELECT project, title, page_id, revision, digest FROM pages WHERE live"
BATCH = 2 * 1024 * 1024


class Clock:
    """Measures from its first start on."""

    def __init__(self) -> None:
        self._begun: tuple[float, float] | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._begun is None:
            self._begun = time.perf_counter(), time.process_time()

    def stop(self, count: int) -> dict[str, float]:
        """Return the count and the seconds."""
        seconds, cpu = self._begun or (0.0, 0.0)
        return {
            "records": count,
            "seconds": round(time.perf_counter() - seconds, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
        }


class Everything(Scope, frozen=True):
    """All projects and namespaces."""

    def has(self, _record: object) -> bool:
        """Return True."""
        return True


class LocalFiles:
    """Opens a local archive in place of a request."""

    def read(self, path: str, **options: Any) -> Any:
        """Return a reader of the archive."""
        return read_archive(path, **options)


async def opened(path: Path, client: Any, codec: str | None) -> tuple[SQLiteStore, Work]:
    """Return an open store, and the work on it."""
    store = SQLiteStore(path, codec=codec)
    state = await store.open()
    options = Options(
        keep=None,
        load="archive",
        overlap=0.0,
        verify="off",
        verify_every=1.0,
        max_removed=0.0,
        poll=60.0,
        on_event=None,
    )
    scopes = (Everything("all", "all", 0),)
    return store, Work(client, scopes, store, Progress(state.values), state.seq, options)


async def raw(options: argparse.Namespace) -> dict[str, float]:
    """Read an archive."""
    count, clock = 0, Clock()
    clock.start()
    async with read_archive(options.source, type=msgspec.Raw) as records:
        async for batch in records.batches(max_bytes=BATCH):
            count += len(batch)
    return clock.stop(count)


async def load(options: argparse.Namespace) -> dict[str, float]:
    """Merge an archive."""
    store, work = await opened(options.store, None, options.codec)
    files: Any = LocalFiles()
    clock = Clock()
    clock.start()
    done = await Loader(work, store).read_files(files, options.source, "", 1)
    await store.close()
    return clock.stop(done.records)


def serve(settings: dict[str, Any], ready: Any, done: Any) -> None:
    """Run a simulator with some events."""

    async def run() -> None:
        async with Simulator(stream={"rate": settings["rate"]}) as sim:
            sim.firehose.publish_many(settings["events"])
            ready.send(sim.client_options())
            while not done.poll():  # noqa: ASYNC110  # the parent's process cannot set an event of this loop
                await asyncio.sleep(0.1)

    asyncio.run(run())


@contextlib.contextmanager
def served(options: argparse.Namespace) -> Iterator[Client]:
    """A client of a simulator that sends events at a rate."""
    context = multiprocessing.get_context("spawn")
    (receiver, ready), (done, stop) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    settings = {"events": options.events, "rate": options.rate}
    process = context.Process(target=serve, args=(settings, ready, done), daemon=True)
    process.start()
    ready.close()  # else a server that fails at once would be waited for
    try:
        yield Client(**receiver.recv())
    finally:
        stop.send(None)
        process.join(30)


async def read(options: argparse.Namespace) -> dict[str, float]:
    """Read a stream as the follower does."""
    count, clock = 0, Clock()
    with served(options) as client:
        async with client, client.realtime.articles(type=msgspec.Raw, since="oldest", commit="manual") as stream:
            while count < options.events:
                count += len(await anext(stream.batches(1000, 0.2)))
                clock.start()
            return clock.stop(count)


async def follow(options: argparse.Namespace) -> dict[str, float]:
    """Merge a stream."""
    count, clock = 0, Clock()
    with served(options) as client:
        async with client, client.realtime.articles(type=msgspec.Raw, since="oldest", commit="manual") as stream:
            store, work = await opened(options.store, client, options.codec)
            follower = Follower(work)
            while count < options.events:
                batch = await anext(stream.batches(1000, 0.2))
                await follower.take(stream, batch)
                count += len(batch)
                clock.start()
            result = clock.stop(count)
            await store.close()
            return result


async def fill(options: argparse.Namespace) -> dict[str, float]:
    """Make a store of pages without text."""
    clock = Clock()
    clock.start()
    store = SQLiteStore(options.store)
    await store.open()
    for start in range(0, options.events, 10_000):
        numbers = range(start, min(start + 10_000, options.events))
        await store.apply(Picture(page_of(number) for number in numbers), Marks())
    await store.close()
    return clock.stop(options.events)


def page_of(number: int) -> Page:
    """Return a page."""
    return Page(
        project="enwiki",
        title=f"A page of usual length {(number * 2_654_435_761) % (1 << 32)} {number}",
        page_id=number,
        revision=10**9 + number,
        created=10**15 + number,
        published=10**15 + number,
        digest=number.to_bytes(8),
        record=b'{"name":"A page"}',
    )


async def select(options: argparse.Namespace) -> dict[str, float]:
    """Read all keys by sqlite3."""
    count, clock = 0, Clock()
    clock.start()
    connection = sqlite3.connect(options.store)
    connection.execute("PRAGMA cache_size = -8192")
    cursor = connection.execute(SELECT)
    while rows := cursor.fetchmany(10_000):
        count += len(rows)
    connection.close()
    return clock.stop(count)


async def keys(options: argparse.Namespace) -> dict[str, float]:
    """Read all keys by the store."""
    count, clock = 0, Clock()
    clock.start()
    async with MirrorReader(SQLiteStore(options.store)) as reader:
        async for rows in reader.keys():
            count += len(rows)
    return clock.stop(count)


def main() -> None:
    """Do it, and print one JSON object."""
    modes: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, dict[str, float]]]] = {
        "raw": raw,
        "load": load,
        "read": read,
        "follow": follow,
        "select": select,
        "keys": keys,
        "fill": fill,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=modes)
    parser.add_argument("paths", nargs="*", default=[""], metavar="ARCHIVE|FILE.db")
    parser.add_argument("--codec", choices=("zstd", "zlib"))
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=500.0)
    options = parser.parse_args()
    options.source, options.store = options.paths[0], Path(options.paths[-1])
    result = asyncio.run(modes[options.mode](options))
    if options.mode in {"load", "follow"}:
        result["file"] = round(options.store.stat().st_size / 1e6, 1)
    result["peak"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(result))  # a script that prints


if __name__ == "__main__":
    main()
