"""What loading a mirror costs: bytes, requests, disk, and time on this machine."""

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from wme_async._client.client import Client
from wme_async._client.sync_plan import size_of
from wme_async._files import free_space
from wme_async._tasks import in_thread
from wme_async.mirror.marks import Scope
from wme_async.mirror.protocol import Marks
from wme_async.mirror.records import RecordReader
from wme_async.mirror.rule import Picture
from wme_async.mirror.sqlite import SQLiteStore

__all__ = ["MirrorPlan", "existing_folder", "measure_rate", "plan_load"]

_JSON: Final = 6.6  # bytes of JSON in a byte of an archive: enwiki has 800 GB in 121 GB
_DISK: Final = 1.6  # bytes on disk for a byte of an archive, records compressed one by one
_RECORDS: Final = 600  # of a measurement
_WORDS: Final = 1000  # of a record
_HOURS: Final = 3600.0


class MirrorPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What loading the snapshots of a mirror costs.

    Attributes:
        bytes: Compressed bytes to receive.
        requests: Metered requests.
        pool: The allowance that they count against; None if they are free.
        disk: Bytes that the store takes with whole records, about; fewer with `keep`.
        free: Free bytes where the store is; None if that is not known.
        versions: The versions of the snapshots, by identifier.
    """

    bytes: int
    requests: int
    pool: str | None
    disk: int
    free: int | None
    versions: dict[str, str]

    def hours(self, rate: float) -> float:
        """Return the hours that the load takes this machine.

        Args:
            rate: Bytes of JSON a second, from `measure_rate`.
        """
        return self.bytes * _JSON / rate / _HOURS


async def plan_load(client: Client, scopes: Sequence[Scope], *, load: str, path: Path | None) -> MirrorPlan:
    """Return the cost of loading snapshots; free of charge.

    Args:
        client: Sends the requests.
        scopes: The projects and namespaces.
        load: `chunks` or `archive`.
        path: Where the store is.

    Raises:
        NotFound: A snapshot does not exist.
        WMEError: A request failed.
    """
    size = requests = 0
    versions = {}
    pool: str | None = None
    for scope in scopes:
        snapshot = await client.snapshots.get(scope.identifier)
        chunked = load == "chunks" and bool(snapshot.chunks)
        files = client.snapshots.chunks(scope.identifier) if chunked else client.snapshots
        cost = files.cost(*(snapshot.chunks if chunked else [scope.identifier]))
        size += size_of(snapshot) or 0
        requests, pool = requests + cost.requests, cost.pool or pool
        versions[scope.identifier] = snapshot.version
    free = None if path is None else await in_thread(lambda: free_space(existing_folder(path)))
    return MirrorPlan(
        bytes=size,
        requests=requests,
        pool=pool,
        disk=int(size * _DISK),
        free=free,
        versions=versions,
    )


def existing_folder(path: Path) -> Path:
    """Return the folder of a file, or the first above it that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


async def measure_rate(path: Path, keep: Sequence[str] | None = None) -> float:
    """Return how many bytes of JSON this machine puts into an SQLite store in a second; it takes about as long.

    Args:
        path: The file of the store. The measurement uses its folder, and leaves nothing there.
        keep: The fields to keep.

    Raises:
        OSError: The folder cannot be written.
    """
    records = await in_thread(_made_up)
    folder = await in_thread(existing_folder, path)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wme-rate-") as temporary:
        store = SQLiteStore(Path(temporary) / "mirror.db")
        await store.open()
        try:
            reader = RecordReader(keep)
            begun = time.perf_counter()
            picture = await in_thread(lambda: Picture(reader.read(record, load=1) for record in records))
            await store.apply(picture, Marks())
            seconds = time.perf_counter() - begun
        finally:
            await store.close()
    return sum(map(len, records)) / seconds


def _made_up() -> list[bytes]:
    chance = random.Random(1)  # noqa: S311 - not for secrets
    words = ["".join(chance.choices("aeinorst ", k=8)) for _ in range(2000)]
    return [
        msgspec.json.encode(
            {
                "name": f"Page {number}",
                "identifier": number,
                "is_part_of": {"identifier": "enwiki"},
                "version": {"identifier": number},
                "article_body": {"html": " ".join(chance.choices(words, k=_WORDS))},
            }
        )
        for number in range(1, _RECORDS + 1)
    ]
