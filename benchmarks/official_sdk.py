"""Measure the official Python SDK and this package side by side, against the simulator.

    git clone https://github.com/wikimedia-enterprise/wme-sdk-python
    pip install 'httpx[http2]' zlib-ng pydantic
    python benchmarks/official_sdk.py wme-sdk-python            # all of it, as a table
    python benchmarks/official_sdk.py wme-sdk-python --size 64  # another archive, in MB

Each case runs in a process of its own, with a simulator in another one, five times; the median counts.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MB = 1_000_000
ARCHIVE = "enwiki_namespace_0"
EVENTS = 3000

# Records that the callback or the loop of this process has received.
COUNTER = {"records": 0}

# Faults of each case: role and kind, and the details.
FAULTS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "download": [],
    "one 503": [("store", "status", {"status": 503})],
    "connection cut": [("store", "drop", {"after": 3_000_000})],
    "ranges ignored": [("store", "ignore_range", {"times": None})],
    "replaced meanwhile": [("store", "swap", {"skip": 1})],
    "first record": [],
    "all records": [],
    "stream": [],
    "stream with U+0085": [],
}


@contextlib.contextmanager
def simulator(size: int) -> Iterator[Any]:
    """Run a simulator in a thread of this process; clients are in processes of their own."""
    from wme_async.simulator import Simulator

    with Simulator.run_in_thread(archive_bytes={ARCHIVE: size * MB}, article_size=None) as running:
        yield running


def official(case: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a case with the official SDK, in the way of its examples."""
    sys.path.insert(0, options["sdk"])
    from modules.api.api_client import Client, Request  # type: ignore[import-not-found]  # a checkout

    hosts = options["hosts"]
    client = Client(access_token=options["token"], base_url=f"{hosts['api']}/", realtime_url=f"{hosts['realtime']}/")
    began, first, count = time.perf_counter(), 0.0, 0

    def take(_record: Any) -> bool:
        nonlocal first, count
        first, count = first or time.perf_counter() - began, count + 1
        COUNTER["records"] = count
        return count < options.get("limit", 1 << 60)

    if case.startswith("stream"):
        client.stream_articles(Request(), take)
    elif case in {"first record", "all records"}:
        client._read_archive_entity(f"snapshots/{ARCHIVE}/download", take)  # noqa: SLF001  # `read_snapshot` makes `Snapshot` of articles
    else:
        with Path(options["target"]).open("w+b") as file:
            client.download_snapshot(ARCHIVE, file)
    return {"seconds": time.perf_counter() - began, "first": first, "count": count}


def ours(case: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a case with this package."""
    from wme_async import Client, MemoryOffsets

    async def main() -> dict[str, Any]:
        began, first, count = time.perf_counter(), 0.0, 0
        async with Client(access_token=options["token"], hosts=options["hosts"]) as wme:
            if case.startswith("stream"):
                source: Any = wme.realtime.articles(offsets=MemoryOffsets())
            else:
                source = wme.snapshots.read(ARCHIVE)
            if case in {"first record", "all records"} or case.startswith("stream"):
                async with source as records:
                    async for _ in records:
                        first, count = first or time.perf_counter() - began, count + 1
                        if count >= options.get("limit", 1 << 60):
                            break
            else:
                await wme.snapshots.download(ARCHIVE, options["target"])
        return {"seconds": time.perf_counter() - began, "first": first, "count": count}

    return asyncio.run(main())


CLIENTS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {"official SDK": official, "wme_async": ours}


def child(case: str, name: str, options: dict[str, Any]) -> None:
    """Run one case in this process, and print its figures, also if it is terminated."""

    def stop(*_: object) -> None:
        print(json.dumps({"count": COUNTER["records"], "error": "still waits for the rest"}), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        figures = CLIENTS[name](case, options)
    except Exception as error:  # noqa: BLE001  # that is a result too
        figures = {"error": f"{type(error).__name__}: {error}"[:150]}
    # Not `getrusage`, whose peak includes that of the process that started this one.
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps({**figures, "memory": int(peak.split()[1]) * 1024}))


def publish(sim: Any, *, separators: bool) -> None:
    """Publish events as whole as the real ones, some with a line separator in their text."""
    stamp = datetime.fromtimestamp(sim.clock.now(), UTC).isoformat().replace("+00:00", "Z")
    for number in range(EVENTS):
        text = "before\x85after" if separators and number % 100 == 0 else "text"
        record = {
            "name": f"Page {number}",
            "identifier": number,
            "article_body": {"wikitext": f"{text} {'x' * 2000}"},
            "event": {"type": "update", "date_published": stamp},
        }
        sim.call(sim.firehose.publish, record)


def measure(case: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a case once, and return its figures."""
    with simulator(options.size) as sim, tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "archive.tar.gz"
        login = json.dumps({"username": "simulated", "password": "simulated-password"}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{sim.auth_url}/v1/login", login, headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(request) as response:  # noqa: S310  # as above
            token = json.load(response)["access_token"]
        settings: dict[str, Any] = {
            "sdk": str(Path(options.sdk).resolve()),
            "token": token,
            "hosts": sim.client_options()["hosts"],
            "target": str(target),
        }
        key = f"snapshots/{ARCHIVE}.tar.gz"
        versions = [sim.call(sim.store.get, key).md5]
        if case.startswith("stream"):
            settings["limit"] = EVENTS
        elif case == "first record":
            settings["limit"] = 1
        for role, kind, details in FAULTS[case]:
            sim.faults.inject(kind, role=role, **details)
        command = [sys.executable, __file__, options.sdk, "--child", json.dumps([case, name, settings])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if case.startswith("stream"):
            sim.call(sim.firehose.wait_open, 1)
            publisher = threading.Thread(target=publish, args=[sim], kwargs={"separators": "U+" in case})
            publisher.start()
            publisher.join()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(options.patience)
            process.terminate()
        out = process.communicate()[0]
        figures: dict[str, Any] = json.loads(out.splitlines()[-1]) if out.strip() else {"error": "no end"}
        figures["requests"] = sim.requests.count("api", method="GET", path="/download")
        if target.exists():
            versions.append(sim.call(sim.store.get, key).md5)
            figures["right"] = hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest() in versions
        return figures


def main() -> None:
    """Measure, or be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdk", help="a checkout of the official SDK")
    parser.add_argument("--size", type=int, default=64, help="MB of the archive")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for the end of a stream")
    parser.add_argument("--case", action="append", choices=FAULTS)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(*json.loads(options.child))
        return
    for case in options.case or FAULTS:
        for name in CLIENTS:
            rounds = [measure(case, name, options) for _ in range(options.rounds if not FAULTS[case] else 1)]
            keys = sorted({key for figures in rounds for key in figures})
            line: dict[str, Any] = {"case": case, "client": name}
            for key in keys:
                values = [figures[key] for figures in rounds if key in figures]
                numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
                line[key] = round(statistics.median(values), 3) if numbers else values[-1]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
