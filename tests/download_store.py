"""An object of the simulator's store as a source of downloads, and what tests of downloads ask again and again."""

import asyncio
import random
from pathlib import Path
from typing import Any

from wme_async._download import Checksum, FileInfo, SignedUrl
from wme_async._transport import Transport
from wme_async.errors import NotFound
from wme_async.simulator import Simulator

KEY = "snapshots/x.tar.gz"
MIB = 1 << 20


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
        found = self.sim.store.objects.get(self.key)
        if found is None or self.heads <= self.missing_heads:
            raise NotFound("not there", status=404)
        facts = {"size": found.size, "etag": f'"{found.etag}"', "accept_ranges": True, **self.info}
        return FileInfo(**facts)

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
