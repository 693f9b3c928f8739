"""Measure the price of a look-up beside bare aiohttp doing the same, in one process and one run, against nginx.

    python benchmarks/lookups.py [--count 10000] [--concurrency 100] [--rounds 5]

Both sides send the same POST for each of `count` titles over at most `concurrency` connections and decode the same
answer into the same Struct. Printed as one line of JSON: the median CPU time of a look-up in microseconds for each way,
their ratio, the most sockets that were open at a time, and the resident memory after a fifth of the look-ups and after
all of them. Needs `nginx` on the path, which answers from memory.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
from yarl import URL

from wme_async import Client, Limits
from wme_async._client.paths import article_path

ANSWER = '{"name":"Squirrel","identifier":28492,"abstract":"Squirrels are members of the family Sciuridae."}'
LOGIN = '{"access_token":"' + "x" * 900 + '","refresh_token":"y","expires_in":86400}'
FIELDS = ["name", "identifier", "abstract"]
FILTERS = {"is_part_of.identifier": "enwiki"}
BODY = msgspec.json.encode(
    {"fields": FIELDS, "filters": [{"field": "is_part_of.identifier", "value": "enwiki"}], "limit": 1}
)


class Slim(msgspec.Struct, gc=False):
    """The requested fields."""

    name: str = ""
    identifier: int = 0
    abstract: str = ""


CONFIG = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 300;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location = /v1/login {{ default_type application/json; return 200 '{login}'; }}
    location /v2/articles/ {{ default_type application/x-ndjson; return 200 '{answer}'; }}
  }}
}}
"""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run nginx on loopback."""
    program = shutil.which("nginx")
    if program is None:
        sys.exit("this benchmark needs nginx")
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        path = Path(folder, "nginx.conf")
        path.write_text(CONFIG.format(folder=folder, port=port, login=LOGIN, answer=ANSWER))
        process = subprocess.Popen([program, "-c", str(path), "-p", folder])  # our own configuration
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def titles(count: int) -> list[str]:
    """Return distinct titles, some of which need quoting."""
    return [f"Squirrel {number} (animal)" for number in range(count)]


async def bare(base: str, names: list[str], concurrency: int) -> int:
    """Do it with aiohttp alone."""
    headers = {
        "Authorization": "Bearer " + "x" * 900,
        "Content-Type": "application/json",
        "Accept": "application/x-ndjson",
        "User-Agent": "bare",
    }
    decode = msgspec.json.Decoder(Slim).decode
    found = 0
    source = iter(names)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def work() -> None:
            nonlocal found
            for name in source:
                url = URL(f"{base}/v2/articles/{article_path(name)}", encoded=True)
                async with session.post(url, data=BODY, headers=headers, allow_redirects=False) as response:
                    found += decode(await response.read()).identifier == 28492

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    return found


@contextlib.asynccontextmanager
async def client(base: str, concurrency: int) -> AsyncIterator[Client]:
    """Make a client of the server."""
    hosts = {"auth": base, "api": base, "realtime": base}
    async with Client("user", "password", hosts=hosts, limits=Limits(connections=concurrency)) as wme:
        await wme.auth.login()
        yield wme


async def many(base: str, names: list[str], concurrency: int) -> int:
    """Do it with `lookup_many`."""
    found = 0
    async with (
        client(base, concurrency) as wme,
        wme.articles.lookup_many(names, type=Slim, filters=FILTERS, limit=1, concurrency=concurrency) as results,
    ):
        async for looked in results:
            found += looked.records[0].identifier == 28492
    return found


async def single(base: str, names: list[str], concurrency: int) -> int:
    """Do it with `lookup` in tasks of one's own."""
    found = 0
    source = iter(names)
    async with client(base, concurrency) as wme:

        async def work() -> None:
            nonlocal found
            for name in source:
                (record,) = await wme.articles.lookup(name, type=Slim, filters=FILTERS, limit=1)
                found += record.identifier == 28492

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    return found


async def watched(base: str, names: list[str], concurrency: int) -> dict[str, float]:
    """Look up with an eye on sockets and memory."""
    most = done = 0
    marks: list[int] = []
    async with (
        client(base, concurrency) as wme,
        wme.articles.lookup_many(names, type=Slim, filters=FILTERS, limit=1, concurrency=concurrency) as results,
    ):
        async for _ in results:
            done += 1
            if done % (len(names) // 50) == 0:
                most = max(most, sockets())
            if done == len(names) // 5:
                marks.append(resident())
    return {"sockets": most, "rss_fifth_kb": marks[0], "rss_end_kb": resident()}


def sockets() -> int:
    """Count open TCP sockets of this process."""
    links = (link for link in Path("/proc/self/fd").iterdir())
    count = 0
    for link in links:
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count - 2  # the event loop wakes itself up by a pair


def resident() -> int:
    """Return resident memory in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def cpu(way: Callable[[str, list[str], int], Awaitable[int]], base: str, names: list[str], concurrency: int) -> float:
    """Return microseconds of CPU time a look-up."""

    async def run() -> int:
        return await way(base, names, concurrency)

    started = time.process_time()
    found = asyncio.run(run())
    spent = time.process_time() - started
    assert found == len(names), f"{found} of {len(names)}"
    return 1e6 * spent / len(names)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    names = titles(options.count)
    ways = {"bare": bare, "lookup_many": many, "lookup": single}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with server() as base:
        for way in ways.values():
            cpu(way, base, names[:1000], options.concurrency)
        for _ in range(options.rounds):
            for name, way in ways.items():
                spent[name].append(cpu(way, base, names, options.concurrency))
        seen = asyncio.run(watched(base, names, options.concurrency))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    ratios = {f"{name}/bare": round(medians[name] / medians["bare"], 3) for name in ("lookup_many", "lookup")}
    seen["growth"] = round((seen["rss_end_kb"] - seen["rss_fifth_kb"]) / 1e3, 1)
    figures = {f"{name}_us": round(value, 1) for name, value in medians.items()} | ratios | seen
    print(json.dumps({"count": options.count, "concurrency": options.concurrency, **figures}))


if __name__ == "__main__":
    main()
