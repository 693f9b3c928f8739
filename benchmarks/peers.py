"""The other clients, each as short as its users write it and as fast as it can be made.

    python benchmarks/peers.py NAME ...

Prints one line of JSON if the work can be separated from the start-up. Nothing of the package is imported, except the
shape of an article where msgspec is measured alone.
"""

import argparse
import asyncio
import json
import os
import ssl
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MIB = 1 << 20


class Clock:
    """Returns the seconds since its creation, of the wall clock and of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, **more: Any) -> dict[str, Any]:
        """Return both, with other figures."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"seconds": wall, "cpu_seconds": cpu, **more}


def spans(size: int, count: int) -> Iterator[tuple[int, int]]:
    """Cut a file into as many parts, as offset and end."""
    step = -(-size // count)
    for start in range(0, size, step):
        yield start, min(size, start + step)


async def aiohttp_download(options: argparse.Namespace) -> None:
    """Fetch ranges by aiohttp and write each piece where it belongs."""
    import aiohttp

    tls: Any = ssl.create_default_context(cafile=options.cafile) if options.cafile else True
    connector = aiohttp.TCPConnector(ssl=tls)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=MIB) as session:
        async with session.head(options.url) as response:
            size = int(response.headers["Content-Length"])
        file = os.open(options.target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

        async def fetch(start: int, end: int) -> None:
            async with session.get(options.url, headers={"Range": f"bytes={start}-{end - 1}"}) as response:
                response.raise_for_status()
                async for piece in response.content.iter_any():
                    os.pwrite(file, piece, start)
                    start += len(piece)

        try:
            async with asyncio.TaskGroup() as group:
                for start, end in spans(size, options.connections):
                    group.create_task(fetch(start, end))
        finally:
            os.close(file)


async def httpx_download(options: argparse.Namespace) -> None:
    """Fetch a file by httpx in one stream."""
    import httpx

    tls: Any = ssl.create_default_context(cafile=options.cafile) if options.cafile else True
    async with httpx.AsyncClient(verify=tls, timeout=60) as client, client.stream("GET", options.url) as response:
        response.raise_for_status()
        with Path(options.target).open("wb") as file:  # noqa: ASYNC230  # as its users do
            async for piece in response.aiter_raw(MIB):
                file.write(piece)


async def obstore_download(options: argparse.Namespace) -> None:
    """Fetch ranges of 32 MiB by obstore, as many at once as there are connections."""
    from obstore.store import HTTPStore

    base, _, name = options.url.rpartition("/")
    settings: Any = {"allow_http": True, "allow_invalid_certificates": options.cafile is not None}
    store = HTTPStore.from_url(base, client_options=settings)
    size = (await store.head_async(name))["size"]
    file = os.open(options.target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    todo = iter(range(0, size, 32 * MIB))

    async def work() -> None:
        for start in todo:
            data = await store.get_range_async(name, start=start, end=min(size, start + 32 * MIB))
            os.pwrite(file, data, start)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(options.connections):
                group.create_task(work())
    finally:
        os.close(file)


def parfive_download(options: argparse.Namespace) -> None:
    """Fetch a file by parfive in splits."""
    from parfive import Downloader  # type: ignore[import-untyped]  # it has no types

    loader = Downloader(max_conn=1, max_splits=options.connections, progress=False, overwrite=True)
    target = Path(options.target)
    loader.enqueue_file(options.url, path=target.parent, filename=target.name)
    results = loader.download()
    if results.errors:
        raise SystemExit(str(results.errors))


def inflate(options: argparse.Namespace) -> dict[str, Any]:
    """Inflate by zlib and drop the bytes."""
    clock, total = Clock(), 0
    engine = zlib.decompressobj(31)
    with Path(options.path).open("rb") as file:
        while piece := file.read(256 * 1024):
            total += len(engine.decompress(piece))
    return clock.figures(bytes=total)


def tar_json(options: argparse.Namespace) -> dict[str, Any]:
    """Read an archive by tarfile and json."""
    clock, count = Clock(), 0
    with tarfile.open(options.path, "r|gz") as archive:
        for member in archive:
            lines = archive.extractfile(member)
            assert lines is not None
            for line in lines:
                json.loads(line)
                count += 1
    return clock.figures(records=count)


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """Decode lines that are in memory, by msgspec alone."""
    import msgspec

    from wme_async.models import Article

    if options.path.endswith(".gz"):
        with tarfile.open(options.path, "r|gz") as archive:
            blocks = [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]  # files only
    else:
        blocks = [Path(options.path).read_bytes()]
    lines = [line for block in blocks for line in block.splitlines()]
    one = msgspec.json.Decoder(Article).decode
    for line in lines[:1000]:
        one(line)
    clock = Clock()
    for line in lines:
        one(line)
    return clock.figures(records=len(lines))


async def httpx_lines(options: argparse.Namespace) -> dict[str, Any]:
    """Read a stream by httpx line by line, into dicts."""
    import httpx

    count = 0
    async with httpx.AsyncClient(timeout=60) as client:
        clock = Clock()
        async with client.stream("POST", options.url, json={}) as response:
            async for line in response.aiter_lines():
                if line:
                    json.loads(line)
                    count += 1
    return clock.figures(records=count)


async def aiohttp_lines(options: argparse.Namespace) -> dict[str, Any]:
    """Read a stream by aiohttp line by line, into dicts."""
    import aiohttp

    count = 0
    async with aiohttp.ClientSession(read_bufsize=4 * MIB) as session:
        clock = Clock()
        async with session.post(options.url, json={}) as response:
            async for line in response.content:
                json.loads(line)
                count += 1
    return clock.figures(records=count)


NAMES: dict[str, Callable[[argparse.Namespace], Any]] = {
    "aiohttp-download": aiohttp_download,
    "httpx-download": httpx_download,
    "obstore-download": obstore_download,
    "parfive-download": parfive_download,
    "inflate": inflate,
    "tar-json": tar_json,
    "decode": decode,
    "httpx-lines": httpx_lines,
    "aiohttp-lines": aiohttp_lines,
}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--url", default="")
    parser.add_argument("--target", default="")
    parser.add_argument("--path", default="")
    parser.add_argument("--cafile")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    function = NAMES[options.name]
    result = asyncio.run(function(options)) if asyncio.iscoroutinefunction(function) else function(options)
    if result:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
