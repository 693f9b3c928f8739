"""Download by the package, from any server that serves ranges, and print time and size as one line of JSON.

    python benchmarks/download_one.py URL TARGET [--verify MD5] [--connections N] [--durable] [--cafile PEM] [--uvloop]
    python benchmarks/download_one.py BASE FOLDER --list FILE      all names in a file, over one pool

`seconds` and `cpu_seconds` are those of the work, without the start of the interpreter and the imports. With `--watch`
a task notes how late it wakes up each millisecond: `lag` is the worst, `lag_p99` the 99th percentile, in milliseconds.
"""

import argparse
import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from wme_async import Budget, FileInfo, SessionPool
from wme_async._download import Checksum, DownloadSettings, SignedUrl, download
from wme_async._transport import Request, Transport


class PlainSource:
    """A file of a web server.

    Args:
        url: Its address.
        transport: Sends the requests.
        md5: The expected MD5 of its bytes.
    """

    def __init__(self, url: str, transport: Transport, md5: str | None = None) -> None:
        self.url = url
        self.transport = transport
        self.md5 = md5

    @property
    def identity(self) -> str:
        """The URL."""
        return self.url

    async def head(self) -> FileInfo:
        """Request size and version."""
        headers = (await self.transport.request(Request(method="HEAD", role="store", path=self.url))).headers
        return FileInfo(
            size=int(headers["Content-Length"]),
            etag=headers.get("ETag"),
            last_modified=parsedate_to_datetime(headers["Last-Modified"]),
            accept_ranges=headers.get("Accept-Ranges") == "bytes",
            headers=dict(headers),
        )

    async def sign(self) -> SignedUrl:
        """Return the address; it never expires."""
        return SignedUrl(url=self.url)

    async def checksum(self) -> Checksum | None:
        """Return the expected MD5."""
        return None if self.md5 is None else Checksum(md5=self.md5)


def transport_of(cafile: str | None) -> tuple[SessionPool, Transport]:
    """Return a pool that trusts one certificate, and a transport of it."""
    pool = SessionPool(ssl=ssl.create_default_context(cafile=cafile) if cafile else None)
    return pool, Transport(None, pool=pool)


@contextlib.contextmanager
def watched(figures: dict[str, Any], *, active: bool) -> Iterator[None]:
    """Note how late a task of this loop wakes up."""
    if not active:
        yield
        return
    late: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - started - 0.001)

    task = asyncio.get_running_loop().create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        late.sort()
        if late:
            figures["lag"] = late[-1] * 1e3
            figures["lag_p99"] = late[len(late) * 99 // 100] * 1e3


async def one(options: argparse.Namespace) -> dict[str, Any]:
    """Download a file."""
    pool, transport = transport_of(options.cafile)
    figures: dict[str, Any] = {}
    async with pool:
        started, cpu = time.perf_counter(), time.process_time()
        with watched(figures, active=options.watch):
            result = await download(
                PlainSource(options.url, transport, options.verify),
                Path(options.target),
                DownloadSettings(
                    verify=options.verify is not None, connections=options.connections, durable=options.durable
                ),
                transport=transport,
            )
        figures |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        await transport.aclose()
    if options.verify is not None and result.verified is not True:
        raise SystemExit("the checksum was not compared")
    return figures | {"bytes": result.size}


async def many(options: argparse.Namespace) -> dict[str, Any]:
    """Download all files of the list over shared connections."""
    pool, transport = transport_of(options.cafile)
    names = Path(options.list).read_text().split()  # noqa: ASYNC240  # before the work begins
    folder = Path(options.target)
    async with pool:
        started, cpu = time.perf_counter(), time.process_time()
        budget = Budget(options.connections or 16)
        settings = DownloadSettings(verify=False, budget=budget, durable=options.durable)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    download(
                        PlainSource(f"{options.url}/{name}", transport), folder / name, settings, transport=transport
                    )
                )
                for name in names
            ]
        figures: dict[str, Any] = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "bytes": sum(task.result().size for task in tasks),
        }
        await transport.aclose()
    return figures


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("target")
    parser.add_argument("--list")
    parser.add_argument("--verify", metavar="MD5")
    parser.add_argument("--connections", type=int)
    parser.add_argument("--durable", action="store_true", help="flush to the disk, as the client does")
    parser.add_argument("--cafile")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--watch", action="store_true")
    options = parser.parse_args()
    run: Any = asyncio.run
    if options.uvloop:
        import uvloop  # an extra

        run = uvloop.run
    print(json.dumps(run(many(options) if options.list else one(options))))


if __name__ == "__main__":
    main()
