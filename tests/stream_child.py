# ruff: noqa: T201  # these programs speak by printing
"""The processes of the stream's torture: one that publishes and cuts, one that reads and may be killed.

python stream_child.py serve '{"events": 10000, ...}'
python stream_child.py consume '{"hosts": {...}, ...}'
"""

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from wme_async import Client, Hosts, Retry, SQLiteOffsets, StreamDisconnected, StreamEvent
from wme_async.simulator import Fault, Simulator

SILENT = range(40, 50)  # partitions that speak rarely, some of them while nobody is connected


async def serve(options: dict[str, Any]) -> None:
    """Publish so many events at a rate, cutting every stream at random bytes; answer questions from standard input."""
    chance = random.Random(options["seed"])
    expected: dict[str, list[tuple[int, int]]] = {"update": [], "delete": []}
    async with Simulator(seed=options["seed"], stream={"flush_each": True}) as sim:
        cuts = 0
        fault: Fault | None = None

        def cut() -> None:
            """Cut every stream from now on, in the next manner."""
            nonlocal cuts, fault
            if fault is not None:
                cuts += fault.hits
                fault.remove()
            how = chance.choice(options["cuts"])
            fault = sim.faults.inject("cut", role="realtime", times=None, within=(1, options["bytes"]), how=how)

        async def publish() -> None:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for number in range(options["events"]):
                silent = chance.random() < 0.01 or number > options["events"] - 20
                partition = chance.choice(SILENT) if silent else chance.randrange(SILENT[0])
                kind = chance.choice(("update", "delete"))
                # As long as most connections last, so that some of them bring nothing whole.
                size = options["bytes"] // 2 if chance.random() < 0.02 and options["cuts"] else "small"
                if options["cuts"] and number % 20 == 0:
                    cut()
                expected[kind].append(sim.firehose.publish(partition=partition, kind=kind, size=size))
                if silent and chance.random() < 0.5:
                    sim.firehose.disconnect("reset")  # it spoke, and then the connection was gone
                ahead = number / options["rate"] - (loop.time() - begun)
                if ahead > 0.005:
                    await asyncio.sleep(ahead)

        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publish())
            print(json.dumps(sim.client_options()), flush=True)
            reader = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            while line := await reader.readline():
                hits = fault.hits if fault is not None else 0
                answer: dict[str, Any] = {"cuts": cuts + hits, "done": publishing.done()}
                answer["refused"] = [refused.text for refused in sim.firehose.refused]
                if line.strip() == b"expected":
                    answer["expected"] = expected
                print(json.dumps(answer), flush=True)
            publishing.cancel()


async def consume(options: dict[str, Any]) -> None:
    """Read, writing down each event before the next one is asked for."""
    cuts = 0

    def watch(event: StreamEvent) -> None:
        nonlocal cuts
        cuts += isinstance(event, StreamDisconnected)

    client = Client(
        options["username"], options["password"], hosts=Hosts(**options["hosts"]), token_file=Path(options["tokens"])
    )
    # For ever, as by default, but without the long waits.
    retry = Retry(attempts=10**9, base=0.001, cap=0.01, total=1e9)
    stream = client.realtime.articles(
        retry=retry,
        on_event=watch,
        offsets=SQLiteOffsets(options["offsets"]),
        framing=options["framing"],
        connections=options["connections"],
        fields=options.get("fields"),
        filters=options.get("filters"),
        commit_interval=options["commit_interval"],
        on_gap="raise",
        idle_timeout=options.get("idle_timeout", 5.0),
    )
    log = os.open(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    last: dict[int, int] = {}
    async with client, stream:
        print("open", flush=True)
        async for article in stream:
            event = article.event
            assert event.partition is not None
            assert event.offset is not None
            if event.offset <= last.get(event.partition, -1):
                raise SystemExit(f"twice or out of order: {event.partition} {event.offset} after {last}")
            last[event.partition] = event.offset
            os.write(log, b"%d %d %d\n" % (os.getpid(), event.partition, event.offset))


if __name__ == "__main__":
    asyncio.run({"serve": serve, "consume": consume}[sys.argv[1]](json.loads(sys.argv[2])))
