"""Whole hours beside a hand-written script, and a large snapshot through the public client beside curl."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import Case, Group, Target

from parts.common import Bench, clear, lacks, script

__all__ = ["groups"]

_SNAPSHOT = "enwiki_namespace_0"
# The real list of batches, where it lies beside the repository.
_DATA = Path(os.environ.get("WME_BENCH_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@contextlib.contextmanager
def _line(bench: Bench, delay: float, *, store: str = "", snapshot: str = "") -> Iterator[Path]:
    """Run the service behind a line, and yield the file with the options of a client."""
    data = str(_DATA) if _DATA.is_dir() else ""
    command = [sys.executable, str(Path(__file__).parent.parent / "line.py"), str(delay), data, store, snapshot]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        path = bench.folder / "line.json"
        path.write_text(process.stdout.readline())
        try:
            yield path
        finally:
            process.stdin.close()


def groups(bench: Bench) -> Iterator[Group]:
    """Yield the groups of this part; the service of each runs until the next is asked for."""
    for milliseconds, wall, cpu in ((80, 1.05, 1.6), (0, 1.5, None)):
        with _line(bench, milliseconds / 1000) as options:
            yield _hour(bench, options, milliseconds, wall, cpu)
    if bench.nginx is not None:
        snapshot = _serve_as_snapshot(bench)
        with _line(bench, 0, store=bench.nginx.plain, snapshot=str(snapshot)) as options:
            yield _snapshot(bench, options)


def _hour(bench: Bench, options: Path, milliseconds: int, wall: float, cpu: float | None) -> Group:
    before = clear(bench.work)
    reference, ours = "aiohttp by hand", "sync"
    targets = [
        Target(
            name=f"an hour at {milliseconds} ms, wall beside aiohttp by hand", case=ours, measure="wall",
            against=reference, most=wall,
        ),
        Target(
            name=f"an hour at {milliseconds} ms, requests a file beside the one list", case=ours,
            measure="requests_a_file", most=2, full_size=False,
        ),
    ]  # fmt: skip
    if cpu is not None:
        targets.append(
            Target(
                name=f"an hour at {milliseconds} ms, CPU beside aiohttp by hand", case=ours, measure="cpu",
                against=reference, most=cpu,
            )
        )  # fmt: skip
    return Group(
        name=f"sync-{milliseconds}",
        title=f"All batches of an hour, {milliseconds} ms round trip, 32 at once, whole processes",
        cases=[
            Case(name=reference, command=script("sync_reference", options, bench.work), before=before),
            Case(name=ours, command=script("sync_one", options, bench.work), ours=True, before=before),
        ],
        targets=targets,
        figures={"files": "files", "requests": "requests", "requests_a_file": "requests a file"},
        whole=True,
    )


def _serve_as_snapshot(bench: Bench) -> Path:
    """Let the web server have the large file under the path that the service signs, and return it."""
    source = bench.inputs.random_bytes(min(bench.inputs.sizes.plain, 1 << 30))
    path = source.parent / "wme-primary" / "snapshots" / f"{_SNAPSHOT}.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.hardlink_to(source)
    return source


def _snapshot(bench: Bench, options: Path) -> Group:
    source = bench.inputs.random_bytes(min(bench.inputs.sizes.plain, 1 << 30))
    assert bench.nginx is not None
    before = clear(bench.work)
    target = shlex.quote(str(bench.work / "out.bin"))
    url = shlex.quote(f"{bench.nginx.plain}/{source.name}")
    reference, ours = "curl && sync", "snapshots.download(verify=False)"
    arguments = [options, bench.work, "--snapshot", _SNAPSHOT]
    size = source.stat().st_size
    return Group(
        name="snapshot",
        title=f"A snapshot of {size / 1e9:.2f} GB by the public client, flushed to the disk",
        cases=[
            Case(
                name=reference, command=["sh", "-c", f"curl -sSf -o {target} {url} && sync {target}"], before=before,
                size=size, lacking=lacks(programs=("curl",)),
            ),
            Case(name=ours, command=script("sync_one", *arguments), ours=True, before=before, size=size),
            Case(
                name="snapshots.download(verify=True)", command=script("sync_one", *arguments, "--verify"), ours=True,
                before=before, size=size,
            ),
        ],
        targets=[
            Target(
                name="a snapshot, wall beside curl && sync", case=ours, measure="wall", against=reference, most=1.05
            ),
            Target(name="a snapshot, CPU beside curl && sync", case=ours, measure="cpu", against=reference, most=1.1),
        ],
        whole=True,
    )  # fmt: skip
