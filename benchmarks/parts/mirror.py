"""A mirror in SQLite: loading beside reading alone, following beside reading alone, keys beside sqlite3 alone."""

import functools
import subprocess
from pathlib import Path

from harness import Case, Group, Target

from parts.common import Bench, clear, lacks, script

__all__ = ["groups"]

_RAW = "archive reader to msgspec.Raw"
_ZSTD = "wme_async, into SQLite, zstandard"
_ZLIB = "wme_async, into SQLite, zlib"
_READ = "stream to msgspec.Raw"
_FOLLOW = "wme_async, stream into SQLite"
_SELECT = "sqlite3 alone"
_KEYS = "wme_async, keys()"
_FOLLOWED = 5000  # events at 500 a second
_PAGES = 1_000_000


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part."""
    return [_loading(bench), _following(bench), _keys(bench)]


def _loading(bench: Bench) -> Group:
    archive, size = bench.inputs.archive(), bench.inputs.sizes.archive

    def ours(name: str, codec: str, *packages: str) -> Case:
        command = script("mirror_one", "load", archive, bench.work / "mirror.db", "--codec", codec)
        lacking = lacks(packages=("isal", *packages))
        return Case(name=name, command=command, ours=True, before=clear(bench.work), size=size, lacking=lacking)

    return Group(
        name="mirror-load",
        title=f"An archive of {size / 1e9:.2f} GB merged into a mirror in SQLite",
        cases=[
            Case(name=_RAW, command=script("mirror_one", "raw", archive), size=size, lacking=lacks(packages=("isal",))),
            ours(_ZSTD, "zstd", "zstandard"),
            ours(_ZLIB, "zlib"),
        ],
        targets=[
            Target(
                name="loading a mirror with zstandard, beside reading alone",
                case=_ZSTD,
                measure="rate",
                against=_RAW,
                least=0.35,
            ),
            Target(
                name="loading a mirror with zlib, beside reading alone",
                case=_ZLIB,
                measure="rate",
                against=_RAW,
                least=0.15,
            ),
            Target(name="loading a mirror, peak memory", case=_ZSTD, measure="rss", most=250, unit="MB"),
        ],
        figures={"file": "file MB"},
    )


def _following(bench: Bench) -> Group:
    options = ("--events", _FOLLOWED)
    store = bench.work / "mirror.db"
    return Group(
        name="mirror-follow",
        title=f"{_FOLLOWED:,} small events at 500 a second merged into a mirror in SQLite",
        unit="events",
        cases=[
            Case(name=_READ, command=script("mirror_one", "read", *options), size=_FOLLOWED),
            Case(
                name=_FOLLOW,
                command=script("mirror_one", "follow", store, *options),
                ours=True,
                before=clear(bench.work),
                size=_FOLLOWED,
            ),
        ],
        targets=[
            Target(
                name="following 500 events a second, CPU beside reading alone",
                case=_FOLLOW,
                measure="cpu_seconds",
                against=_READ,
                most=2.0,
            )
        ],
        figures={"file": "file MB"},
    )


def _keys(bench: Bench) -> Group:
    store = bench.inputs.folder / f"mirror-{_PAGES}.db"
    fill = functools.partial(_fill, store)
    return Group(
        name="mirror-keys",
        title=f"All keys of a mirror of {_PAGES:,} pages",
        unit="events",
        cases=[
            Case(name=_SELECT, command=script("mirror_one", "select", store), before=fill, size=_PAGES),
            Case(name=_KEYS, command=script("mirror_one", "keys", store), ours=True, before=fill, size=_PAGES),
        ],
        targets=[
            Target(
                name="a scan of all keys of a mirror, beside sqlite3",
                case=_KEYS,
                measure="seconds",
                against=_SELECT,
                most=1.5,
            )
        ],
    )


def _fill(store: Path) -> None:
    if not store.exists():
        subprocess.run(  # our own script
            script("mirror_one", "fill", store, "--events", _PAGES), check=True, capture_output=True
        )
