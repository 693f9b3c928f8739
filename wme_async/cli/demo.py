"""`wme-async demo`: the whole job against a simulator, each claim checked."""

import asyncio
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from wme_async import _platform
from wme_async._archive import read_archive
from wme_async._client.client import Client
from wme_async._stream import StreamStatistics
from wme_async.cli import base
from wme_async.cli.downloads import describe_download
from wme_async.models import Article, Batch, Event
from wme_async.offsets import SQLiteOffsets
from wme_async.settings import Retry
from wme_async.simulator import Simulator

_ARCHIVE = "enwiki_namespace_0"
_SECONDS = 2.5  # duration of the download, without the kill
_KILLED_AT = 0.35  # share of the archive on disk when the process is killed
_EVENTS = 4000
_CUTS = 25
_ACTIVE = 40  # of 50 partitions: those with events while the first reader is connected


class _NamedEvent(msgspec.Struct):
    """The fields of an event that the demo uses: the server sends no others."""

    name: str = ""
    event: Event = Event()


class _Checks:
    """Claims, and whether they hold."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []

    def that(self, holds: object, claim: str) -> None:
        """Count one claim and show it."""
        if holds:
            self.passed += 1
            base.stdout.print(Text.assemble("   ", ("✓", "green"), f" {claim}"), highlight=False)
        else:
            self.failed.append(claim)
            base.stdout.print(f"   ✗ {claim}", style="bold red", highlight=False)


class _Demo:
    """The steps, in order."""

    def __init__(self, simulator: Simulator, client: Client, folder: Path, checks: _Checks) -> None:
        self.simulator = simulator
        self.client = client
        self.folder = folder
        self.check = checks.that
        # Fixed now, since the hour may turn while the demo runs.
        self.batch_hour = (simulator.clock.utc() - timedelta(hours=3)).strftime("%Y-%m-%dT%H")
        self.hour = client.batches(self.batch_hour)
        self.batch = Batch()
        self.path = folder / f"{_ARCHIVE}.tar.gz"

    async def sign_in(self) -> None:
        """Sign in."""
        await self.client.auth.login()
        user = await self.client.auth.user()
        self.check(user.username == "simulated", f"signed in as {user.username}, groups {', '.join(user.groups)}")

    async def find(self) -> None:
        """Find a batch."""
        batches = await self.hour.list()
        english = await self.hour.list(filters={"in_language.identifier": "en"}, fields=["identifier", "size"])
        self.check(batches, f"{len(batches)} batches of the hour, {len(english)} of them English")
        identifiers = sorted(batch.identifier for batch in batches if batch.in_language.identifier == "en")
        self.check(sorted(batch.identifier for batch in english) == identifiers, "the filter gives what the list holds")
        self.batch = await self.hour.get(_ARCHIVE)
        info = await self.hour.head(_ARCHIVE)
        self.check(
            info.size is not None and abs(info.size - self.batch.size.bytes) <= 500,
            f"{_ARCHIVE}: {(info.size or 0) / 1e6:.1f} MB, MD5 {self.batch.version}",
        )

    async def kill_a_download(self) -> None:
        """Kill a process that downloads it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wme_async", "batches", "download", self.batch_hour, _ARCHIVE),
            *("--to", str(self.path), "--max-rate", f"{self.batch.size.bytes / 1e6 / _SECONDS}", "--quiet"),
            env={**os.environ, **self.simulator.environment(), "WME_TOKEN_FILE": str(self.folder / "tokens.json")},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        part = self.path.with_name(f"{self.path.name}.part")
        total = self.batch.size.bytes
        try:
            async with asyncio.timeout(30):
                while _allocated(part) < _KILLED_AT * total and process.returncode is None:  # noqa: ASYNC110  # a file
                    await asyncio.sleep(0.01)
        finally:
            if process.returncode is None:
                process.kill()
            _, errors = await process.communicate()
        self.check(
            process.returncode == -9,
            f"killed (-9) with {_allocated(part) / 1e6:.1f} of {total / 1e6:.1f} MB on disk"
            if process.returncode == -9
            else f"the download ended before the kill: {errors.decode().strip()[-300:]}",
        )
        self.check(part.exists() and not self.path.exists(), "nothing unfinished has the name of the finished file")

    async def download(self) -> None:
        """Download it, from where the killed process left off."""
        with base.progress_bar(_ARCHIVE) as progress:
            download = await self.hour.download(_ARCHIVE, self.path, progress=progress)
        base.stdout.print(f"   {describe_download(download)}", style="dim", highlight=False)
        if _platform.boot_id() is None:
            # The ledger then trusts only flushed bytes, and so small a file is complete before the first flush.
            base.stdout.print("   no boot id on this system: only flushed bytes are resumed", style="dim")
        else:
            self.check(download.resumed > 0, f"{download.resumed / 1e6:.1f} MB came from the killed process")
        self.check(download.verified and download.version == self.batch.version, "the MD5 is that of the metadata")
        self.check(download.api_requests == 1, "one request to the API; all ranges went to the object store")
        leaks = [entry for entry in self.simulator.requests if entry.role == "store" and entry.header("Authorization")]
        self.check(not leaks, "the object store never saw a token")

    async def read(self) -> None:
        """Read it twice: from the disk, and over the network while it arrives."""
        began = time.monotonic()
        async with read_archive(self.path, type=Article) as articles:
            stored = [article.identifier async for article in articles]
        local = time.monotonic() - began
        began, first = time.monotonic(), 0.0
        arrived: list[int] = []
        async with self.hour.read(_ARCHIVE) as articles:
            async for article in articles:
                first = first or time.monotonic() - began
                arrived.append(article.identifier)
        self.check(
            len(stored) > 0,
            f"{len(stored)} articles decoded from disk in {local:.2f} s; first five: {stored[:5]}",
        )
        self.check(
            arrived == stored,
            f"the same {len(arrived)} while they arrived, the first after {1000 * first:.0f} ms, "
            f"all in {time.monotonic() - began:.2f} s, no temporary file",
        )

    async def follow(self) -> None:
        """Follow the stream through cuts, silent partitions, and a restart."""
        firehose = self.simulator.firehose
        store = SQLiteOffsets(self.folder / "offsets.db")
        fault = self.simulator.faults.inject("cut", role="realtime", times=_CUTS, within=(2_000, 60_000))
        received: list[tuple[int, int]] = []

        async def consume(until: int, connections: int) -> StreamStatistics:
            stream = self.client.realtime.articles(
                type=_NamedEvent,
                offsets=store,
                connections=connections,
                retry=Retry(attempts=1000, base=0.005, cap=0.02),
            )
            async with stream:
                if not received:
                    await firehose.wait_open(connections)
                    for number in range(_EVENTS // 2):
                        firehose.publish(partition=number % _ACTIVE, size="small")
                async for article in stream:
                    assert article.event.partition is not None
                    assert article.event.offset is not None
                    received.append((article.event.partition, article.event.offset))
                    if len(received) >= until:
                        # Without this the current event would count as not processed, and come again.
                        stream.ack(article)
                        break
                await stream.commit()
                return stream.statistics()

        async with asyncio.timeout(60):
            first = await consume(_EVENTS // 2, 3)
            for number in range(_EVENTS // 2):
                firehose.publish(partition=number % 50, size="small")
            second = await consume(_EVENTS, 1)
        published = {(number, offset) for number in range(50) for offset in range(firehose.log[number].end)}
        reconnects = first.reconnects + second.reconnects
        self.check(fault.hits > 0, f"cut {fault.hits} times at random bytes, {reconnects} reconnects, one restart")
        self.check(
            sorted(received) == sorted(published),
            f"{len(published)} events sent in 50 partitions, {50 - _ACTIVE} of them only while nobody was connected; "
            f"{len(received)} delivered, {len(set(received))} of them distinct: none lost, none twice",
        )
        order = all(
            offsets == sorted(offsets)
            for offsets in ([offset for number, offset in received if number == partition] for partition in range(50))
        )
        self.check(order, "in order within each partition")

    async def sign_out(self) -> None:
        """Revoke the tokens."""
        await self.client.auth.revoke()
        self.check(any("token-revoke" in request.path for request in self.simulator.requests), "tokens revoked")


def _allocated(path: Path) -> int:
    try:
        return _platform.allocated_bytes(path.stat())
    except FileNotFoundError:
        return 0


async def _run(megabytes: float, checks: _Checks) -> None:
    options: dict[str, Any] = {"article_size": None, "archive_bytes": {_ARCHIVE: round(megabytes * 1e6)}}
    with tempfile.TemporaryDirectory(prefix="wme-async-demo-") as folder:
        async with Simulator(**options) as simulator:
            base.stdout.print(
                f"A simulator of all services on this machine, e.g. {simulator.api_url}; no account needed."
            )
            async with Client(**simulator.client_options(), token_file=Path(folder) / "tokens.json") as client:
                demo = _Demo(simulator, client, Path(folder), checks)
                for step in (
                    *(demo.sign_in, demo.find, demo.kill_a_download, demo.download, demo.read, demo.follow),
                    demo.sign_out,
                ):
                    base.stdout.print(step.__doc__, style="bold", highlight=False)
                    await step()


@click.command("demo")
@click.option("--megabytes", type=click.FloatRange(2, 2000), default=24.0, show_default=True, help="Archive size.")
def command(megabytes: float) -> None:
    """Show the whole job on a simulator: no account, well under a minute.

    Sign in, list, filter, HEAD; download in ranges, killed and resumed; read articles from disk and while they arrive;
    follow the stream through cuts and a restart. Every printed claim is checked, and the last line sums up.
    """
    began = time.monotonic()
    checks = _Checks()
    base.run(_run(megabytes, checks))
    seconds = time.monotonic() - began
    if checks.failed:
        base.stdout.print(
            f"{len(checks.failed)} of {checks.passed + len(checks.failed)} checks failed", style="bold red"
        )
        raise SystemExit(1)
    base.stdout.print(
        Text.assemble((f"all {checks.passed} checks passed", "bold green"), f" in {seconds:.1f} s"), highlight=False
    )
