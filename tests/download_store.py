"""An object of the simulator's store as a source of downloads, and the doors to the downloader for its tests.

The public methods add names of files and metadata to `download` and `open_content`; tests of a fault on the network
choose the size, part size and source of a file themselves.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

from transports import Transport

from wme_async import (  # private: the public methods choose the sizes and sources of files
    Download,
    FileInfo,
    _download,
    _platform,
)
from wme_async._download import (  # private: its parts alone
    connection_counts,
    etags,
    ledger,
    part_file,
    range_plan,
    range_responses,
)
from wme_async.errors import NotFound
from wme_async.simulator import Simulator

__all__ = [
    "KEY",
    "MIB",
    "Checksum",
    "ContentReader",
    "Ledger",
    "PartFile",
    "PartSums",
    "RangePlan",
    "SignedUrl",
    "Spans",
    "StoreSource",
    "Transport",
    "boot_id",
    "clean",
    "connection_counts",
    "download",
    "etags",
    "fetched_ranges",
    "leftovers",
    "noise",
    "open_content",
    "our_tasks",
    "range_plan",
    "range_responses",
    "store_requests",
]

Checksum = _download.Checksum
ContentReader = _download.ContentReader
boot_id = _platform.boot_id
Ledger = ledger.Ledger
PartFile = part_file.PartFile
PartSums = etags.PartSums
RangePlan = range_plan.RangePlan
SignedUrl = _download.SignedUrl
Source = _download.Source
Spans = range_plan.Spans

KEY = "snapshots/x.tar.gz"
MIB = 1 << 20


async def download(
    source: Source, to: Path, *, transport: Transport, overwrite: bool = True, **options: Any
) -> Download:
    """Download a file with the options of `DownloadSettings`."""
    return await _download.download(
        source, to, _download.DownloadSettings(overwrite=overwrite, **options), transport=transport
    )


def open_content(source: Source, *, transport: Transport, overwrite: bool = True, **options: Any) -> ContentReader:
    """Read the bytes of a file while it is fetched."""
    return _download.open_content(source, transport=transport, overwrite=overwrite, **options)


class StoreSource:
    """An object of the simulator's store, with HEAD and metadata answered on the spot."""

    def __init__(self, sim: Simulator, transport: Transport, key: str = KEY, **info: Any) -> None:
        self.sim, self.transport, self.key, self.info = sim, transport, key, info
        self.signed = self.heads = self.checks = 0
        self.missing_heads = 0
        self.promised: list[str | None] = []
        self.lifetime: float | None = 60.0

    @property
    def identity(self) -> str:
        return self.key

    async def head(self) -> FileInfo:
        self.heads += 1
        stored = self.sim.store.objects.get(self.key)
        if stored is None or self.heads <= self.missing_heads:
            raise NotFound("not there", status=404)
        fields = {"size": stored.size, "etag": f'"{stored.etag}"', "accept_ranges": True, **self.info}
        return FileInfo(**fields)

    async def sign(self) -> SignedUrl:
        self.signed += 1
        expires = None if self.lifetime is None else self.transport.monotonic() + self.lifetime
        return SignedUrl(url=self.sim.store.presign(self.key, "me"), expires_at=expires)

    async def checksum(self) -> Checksum | None:
        self.checks += 1
        md5 = self.promised.pop(0) if self.promised else self.sim.store.objects[self.key].md5
        return None if md5 is None else Checksum(md5=md5)


def our_tasks() -> list[asyncio.Task[Any]]:
    """Tasks of the downloader; the simulator lives in the same loop and has its own."""
    return [task for task in asyncio.all_tasks() if "wme_async/_download/" in task.get_coro().cr_code.co_filename]  # type: ignore[union-attr]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def store_requests(sim: Simulator) -> list[Any]:
    return [request for request in sim.requests if request.role == "store"]


def fetched_ranges(sim: Simulator) -> list[str]:
    return [request.header("range") for request in store_requests(sim)]


def clean(sim: Simulator) -> None:
    sim.faults.clear()
