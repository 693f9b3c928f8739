"""Run the simulator behind a line with a round trip of DELAY seconds, until standard input is closed.

    python benchmarks/line.py DELAY [DATA] [STORE] [SNAPSHOT]

DATA is a folder with the real list of batches. STORE is the base URL of a web server that has the archives instead of
the simulator. SNAPSHOT is a file whose size and MD5 the snapshot of enwiki_namespace_0 has.
Prints one line of JSON: username, password, hosts, and an hour that exists.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from wme_async.simulator import Simulator

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass bytes on after a delay, any number of them at once."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def send() -> None:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        data = b"x"
        while data:
            data = await reader.read(65536)
            pieces.put_nowait((loop.time() + delay, data))


def handler_of(url: str, delay: float) -> Handler:
    """Return what serves one connection through the line."""
    target = urlsplit(url)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # At the end of the program; asyncio reports a cancelled handler as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await relay(reader, writer)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(delay)  # of the handshake
            far_reader, far_writer = await asyncio.open_connection(target.hostname, target.port)
            async with asyncio.TaskGroup() as group:
                group.create_task(carry(reader, far_writer, delay / 2))
                group.create_task(carry(far_reader, writer, delay / 2))
        except* OSError:
            pass
        finally:
            writer.close()

    return handle


async def behind(url: str, delay: float) -> str:
    """Return the address of a host behind the line."""
    server = await asyncio.start_server(handler_of(url, delay), "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def main(delay: float, data: str | None, store: str | None, snapshot: str | None) -> None:
    """Serve until standard input ends."""
    async with Simulator(data=data, articles=6) as simulator:
        options = simulator.client_options()
        options["hosts"] = {role: await behind(url, delay) for role, url in options["hosts"].items()}
        if snapshot:
            simulator.put_object("snapshots/enwiki_namespace_0.tar.gz", snapshot)
        simulator.store.origin = store or await behind(simulator.store_url, delay)
        print(json.dumps({**options, "hour": simulator.hours[-2]}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    delay, data, store, snapshot = [*sys.argv[1:], "", "", ""][:4]
    asyncio.run(main(float(delay), data or None, store or None, snapshot or None))
