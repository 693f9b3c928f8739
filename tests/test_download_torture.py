"""Downloads through random scripts of faults, and by processes that are killed."""

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from download_store import (
    KEY,
    Ledger,
    SignedUrl,
    StoreSource,
    Transport,
    boot_id,
    download,
    leftovers,
    store_requests,
)
from shuffled_loop import wait_for_end

from wme_async.errors import Forbidden, ServerError, WMEError
from wme_async.settings import Retry, Timeouts
from wme_async.simulator import Simulator

# --- torture


KINDS: list[tuple[str, Any]] = [
    ("drop", lambda rng: {"how": rng.choice(["close", "reset"])}),
    ("drop", lambda rng: {"after": rng.randrange(1000)}),
    ("status", lambda rng: {"status": rng.choice([500, 503, 429, 403, 404, 408, 412, 416, 301]), "body": b""}),
    ("reset", lambda _: {}),
    ("ignore_range", lambda _: {}),
    ("content_range", lambda rng: {"missing": rng.random() < 0.5}),
    ("multipart", lambda _: {}),
    ("swap", lambda _: {}),
    ("expire", lambda _: {}),
    ("short", lambda rng: {"missing": rng.randrange(1, 50_000), "honest": rng.random() < 0.7}),
    ("long", lambda rng: {"extra": rng.randrange(1, 50_000), "honest": rng.random() < 0.5}),
    ("corrupt", lambda _: {}),
    ("encoding", lambda rng: {"real": rng.random() < 0.5}),
    ("empty", lambda _: {}),
    ("garbage", lambda _: {}),
    ("slow", lambda _: {"rate": 4_000_000}),
]


VARIANTS: list[dict[str, Any]] = [{}, {}, {}, {"size": None}, {"accept_ranges": False}]


def make_unreliable(source: StoreSource, rng: random.Random) -> None:
    """Let the API refuse a signature now and then, for a while or for good; it has been asked often enough by then."""
    sign = source.sign
    failures = [ServerError("out of order", status=500), Forbidden("not for you", status=403)]

    async def unreliable() -> SignedUrl:
        if rng.random() < 0.4:
            source.signed += 1
            raise copy.copy(rng.choice(failures))
        return await sign()

    source.sign = unreliable  # type: ignore[method-assign]
    source.lifetime = rng.choice([0.02, 60.0])


async def one_script(sim: Simulator, folder: Path, seed: int) -> str:
    rng = random.Random(seed)
    key = f"snapshots/torture_{seed}.tar.gz"
    data = rng.randbytes(rng.choice([1, 5_000, 120_000, 400_000]))
    sim.put_object(key, data)
    faults = []
    for _ in range(rng.randrange(1, 9)):
        kind, details = rng.choice(KINDS)
        fault = sim.faults.inject(
            kind, role="store", path=f"torture_{seed}\\.", skip=rng.randrange(8), times=rng.choice([1, 1, 2, 4, None]),
            **details(rng),
        )  # fmt: skip
        faults.append(fault)
    if rng.random() < 0.1:
        faults.append(sim.faults.inject("stall", role="store", path=f"torture_{seed}\\.", skip=rng.randrange(4)))
    transport = Transport(
        None, retry=Retry(attempts=4, base=0.001, cap=0.004), timeouts=Timeouts(read=0.25), random=rng
    )
    source = StoreSource(sim, transport, key, **rng.choice(VARIANTS))
    if rng.random() < 0.2:
        make_unreliable(source, rng)
    target = folder / str(seed)
    outcome = "error"
    try:
        for _ in range(3):
            try:
                done = await download(
                    source, target, transport=transport, part_size=rng.choice([20_000, 80_000, 1 << 20]),
                    connections=rng.choice([1, 3, 8]), durable=rng.random() < 0.1,
                )  # fmt: skip
            except WMEError:
                assert not target.exists()
                continue
            outcome = "whole"
            assert done.verified is True
            break
    finally:
        # Every request is compared with each that is left.
        for fault in faults:
            fault.remove()
        await transport.aclose()
    if target.exists():
        assert outcome == "whole"
        # The store may have swapped its bytes for the reversed ones, any number of times; never for a mixture.
        assert target.read_bytes() in {data, data[::-1]}
        target.unlink()
        assert not [name for name in leftovers(folder) if name.startswith(f"{seed}.part")]
    sim.store.objects.pop(key)
    return outcome


async def scripts(sim: Simulator, folder: Path, seeds: Iterator[int]) -> list[str]:
    outcomes = []

    async def lane() -> None:
        for seed in seeds:
            script = asyncio.create_task(one_script(sim, folder, seed), name=f"seed {seed}")
            try:
                await wait_for_end([script], lambda: sim.requests.total)
                outcomes.append(script.result())
            except BaseException as error:
                error.add_note(script.get_name())
                raise
            finally:
                script.cancel()

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(lane())
    return outcomes


@pytest.mark.parametrize(
    "count",
    [
        30,
        pytest.param(120, marks=pytest.mark.servers, id="120"),
        pytest.param(500, marks=pytest.mark.torture, id="500"),
    ],
)
async def test_random_scripts_of_faults_end_whole_or_in_an_error(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    # Small files with a ledger, so that what one attempt leaves is gone on with by the next.
    monkeypatch.setattr(sys.modules["wme_async._download.download"], "_SMALL", 50_000)
    outcomes = await scripts(sim, tmp_path, iter(range(count)))
    assert len(outcomes) == count
    assert outcomes.count("whole") > 0.3 * count
    assert outcomes.count("error") > 0.04 * count
    for request in store_requests(sim):
        assert request.header("authorization") is None


ZYGOTE = textwrap.dedent(
    """
    import asyncio, json, os, sys
    from pathlib import Path
    from download_store import Checksum, SignedUrl, Transport, download
    from wme_async import FileInfo

    class Source:
        identity = "child"
        def __init__(self, facts): self.facts = facts
        async def head(self): return FileInfo(size=self.facts["size"], etag=self.facts["etag"], accept_ranges=True)
        async def sign(self): return SignedUrl(url=self.facts["url"])
        async def checksum(self): return Checksum(md5=self.facts["md5"])

    async def main(facts):
        transport = Transport(None)
        done = await download(Source(facts), Path(facts["target"]), transport=transport, part_size=2_000_000,
                              connections=4, max_rate=30e6, durable=facts["durable"])
        await transport.aclose()
        assert done.verified is True
        return done.resumed

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            resumed = asyncio.run(main(json.loads(line)))
            os._exit(7 if resumed else 0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
)


# aiohttp lets half a megabyte pile up before it stops reading, and a read may bring as much as a quarter on top.
PIECE = 768 * 1024


def written_and_claimed(folder: Path, data: bytes, etag: str) -> tuple[int, int]:
    """Return how many bytes a killed process had written and how many its ledger knows of, all of them true."""
    part = (folder / "x.part").read_bytes()
    if len(part) != len(data):
        return 0, 0
    ledger = Ledger(folder / "x.part.ledger", boot=boot_id())
    spans = ledger.load(identity="child", size=len(data), etag=etag)
    ledger.close()
    for start, stop in spans:
        assert part[start:stop] == data[start:stop], "the ledger records bytes that are not in the file"
    blocks = (data[at : at + 4096] == part[at : at + 4096] for at in range(0, len(data), 4096))
    return 4096 * sum(blocks), spans.total


async def check_kills(sim: Simulator, folder: Path, kills: int, seed: int) -> None:
    """Kill downloading processes at random moments; the last one is left alone."""
    rng = random.Random(seed)
    data = rng.randbytes(12_000_000)
    stored = sim.put_object(KEY, data)
    etag = f'"{stored.etag}"'
    facts = {"size": len(data), "etag": etag, "md5": stored.md5, "target": str(folder / "x")}
    zygote = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ZYGOTE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent
    )
    assert zygote.stdin is not None
    assert zygote.stdout is not None

    async def start() -> int:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        line = json.dumps(facts | {"url": sim.store.presign(KEY, None), "durable": rng.random() < 0.5})
        zygote.stdin.write(line.encode() + b"\n")
        return int(await zygote.stdout.readline())

    deaths = lost = 0
    try:
        while deaths < kills:
            child = await start()
            await asyncio.sleep(rng.random() * 0.12)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            if int(await zygote.stdout.readline()) >= 0:
                # It was quicker: check, and begin with a new one.
                assert (folder / "x").read_bytes() == data
                (folder / "x").unlink()
                continue
            deaths += 1
            if (folder / "x").exists():
                # It had just given the file its name, and died before it had cleared up.
                assert (folder / "x").read_bytes() == data
                (folder / "x").unlink()
            elif {"x.part", "x.part.ledger"} <= set(leftovers(folder)):
                written, claimed = written_and_claimed(folder, data, etag)
                # What had been written but not noted: at most the piece that each connection had in hand.
                assert written - claimed <= 4 * PIECE
                lost += max(0, written - claimed)
        await start()
        assert int(await zygote.stdout.readline()) in {0, 7}
        assert (folder / "x").read_bytes() == data
        assert leftovers(folder) == ["x"]
    finally:
        zygote.stdin.close()
        await zygote.wait()
    # It takes bad luck to die between the two writes, so most deaths cost nothing at all.
    assert lost <= deaths * PIECE


@pytest.mark.parametrize("kills", [12, pytest.param(50, marks=pytest.mark.torture, id="50")])
@pytest.mark.posix
async def test_a_process_killed_again_and_again_ends_with_the_whole_file(
    sim: Simulator, tmp_path: Path, kills: int
) -> None:
    await check_kills(sim, tmp_path, kills, 1)


@pytest.mark.torture
async def test_a_process_killed_500_times_ends_with_the_whole_file(sim: Simulator, tmp_path: Path) -> None:
    await check_kills(sim, tmp_path, 500, 2)


@pytest.mark.torture
async def test_20_000_random_scripts_of_faults_end_whole_or_in_an_error(sim: Simulator, tmp_path: Path) -> None:
    await scripts(sim, tmp_path, iter(range(1000, 21_000)))
