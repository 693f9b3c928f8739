"""Keep a web service in the loop of a download or of the reading of an archive, and print how soon it answers.

    python benchmarks/ping.py idle
    python benchmarks/ping.py download URL TARGET [--cafile PEM] [--verify MD5]
    python benchmarks/ping.py read PATH

Another process asks the service each few milliseconds. `p50`, `p99` and `worst` are the milliseconds until its answer
was there; `lag` is the longest time in milliseconds that the loop was kept from a task that wakes up each millisecond.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAUSE = 0.003
ASK = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


def ask(port: int) -> None:
    """Ask until the other side closes, then print the times."""
    times: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            started = time.perf_counter()
            try:
                connection.sendall(ASK)
                if not connection.recv(65536):
                    break
            except OSError:
                break
            times.append(time.perf_counter() - started)
            time.sleep(PAUSE)
    times.sort()
    print(
        json.dumps(
            {
                "pings": len(times),
                "p50": times[len(times) // 2] * 1e3,
                "p99": times[len(times) * 99 // 100] * 1e3,
                "worst": times[-1] * 1e3,
            }
        )
    )


async def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Run the service and the work in one loop."""
    from aiohttp import web  # the asking process needs none of it
    from download_one import PlainSource, transport_of, watched  # same

    from wme_async import read_archive  # same
    from wme_async._download import DownloadSettings, download  # same

    async def pong(_: web.Request) -> web.Response:
        return web.Response(text="pong")

    application = web.Application()
    application.router.add_get("/ping", pong)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    client = subprocess.Popen([sys.executable, __file__, "ask", str(port)], stdout=subprocess.PIPE)  # noqa: ASYNC220
    await asyncio.sleep(0.2)
    figures: dict[str, Any] = {}
    pool, transport = transport_of(options.cafile)
    async with pool:
        started = time.perf_counter()
        with watched(figures, active=True):
            if options.work == "idle":
                await asyncio.sleep(1.5)
            elif options.work == "download":
                await download(
                    PlainSource(options.source, transport, options.verify),
                    Path(options.target),
                    DownloadSettings(verify=options.verify is not None),
                    transport=transport,
                )
            else:
                async with read_archive(options.source) as records:
                    async for _ in records:
                        pass
        figures["seconds"] = time.perf_counter() - started
        await transport.aclose()
    await runner.cleanup()
    output, _ = await asyncio.to_thread(client.communicate)
    figures.update(json.loads(output))
    return figures


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["idle", "download", "read", "ask"])
    parser.add_argument("source", nargs="?", default="")
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("--cafile")
    parser.add_argument("--verify", metavar="MD5")
    options = parser.parse_args()
    if options.work == "ask":
        ask(int(options.source))
    else:
        print(json.dumps(asyncio.run(serve(options))))


if __name__ == "__main__":
    main()
