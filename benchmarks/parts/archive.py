"""Reading archives: beside inflating and decoding alone, which bound it, and beside tarfile and json."""

from pathlib import Path

from harness import Case, Group, Target

from parts.common import Bench, clear, lacks, script

__all__ = ["groups"]

_FAST = ("isal", "orjson")


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part."""
    archive = bench.inputs.archive()
    found = [_local(bench, archive)]
    if bench.nginx is not None:
        found.append(_remote(bench, archive, bench.nginx.plain))
    found.append(_memory(bench))
    return found


def _ours(name: str, path: Path | str, *options: object, size: int, packages: tuple[str, ...] = _FAST) -> Case:
    command = script("read_one", path, *options)
    return Case(name=name, command=command, ours=True, size=size, lacking=lacks(packages=packages))


def _local(bench: Bench, archive: Path) -> Group:
    size = bench.inputs.sizes.archive
    isal, msgspec, zlib = "igzip -dc", "msgspec alone, from memory", "zlib alone"
    inflate = ["sh", "-c", f"exec igzip -dc '{archive}' > /dev/null"]
    return Group(
        name="archive",
        title=f"Reading an archive of {size / 1e9:.2f} GB, {archive.stat().st_size / 1e6:.0f} MB compressed, from disk",
        cases=[
            Case(name=isal, command=inflate, size=size, lacking=lacks(programs=("igzip",))),
            Case(name=zlib, command=script("peers", "inflate", "--path", archive), size=size),
            Case(name=msgspec, command=script("peers", "decode", "--path", archive), size=size),
            Case(name="tarfile + json", command=script("peers", "tar-json", "--path", archive), size=size),
            _ours("wme_async, full, isal + orjson", archive, size=size),
            _ours("wme_async, full, isal", archive, "--without", "orjson", size=size, packages=("isal",)),
            _ours("wme_async, full, no extras", archive, "--without", "isal,orjson", size=size, packages=()),
            _ours("wme_async, slim, isal + orjson", archive, "--slim", size=size),
            _ours("wme_async, slim, no extras", archive, "--slim", "--without", "isal,orjson", size=size, packages=()),
        ],
        targets=[
            Target(
                name="full articles, beside the slower of inflating and decoding",
                case="wme_async, full, isal",
                measure="rate",
                against=(isal, msgspec),
                least=0.9,
            ),
            Target(
                name="full articles with isal and orjson, beside decoding by msgspec alone",
                case="wme_async, full, isal + orjson",
                measure="rate",
                against=msgspec,
                least=1.1,
            ),
            Target(
                name="small Struct, beside igzip -dc",
                case="wme_async, slim, isal + orjson",
                measure="rate",
                against=isal,
                least=0.8,
            ),
            Target(
                name="full articles without extras, beside zlib alone",
                case="wme_async, full, no extras",
                measure="rate",
                against=zlib,
                least=0.9,
            ),
            Target(
                name="small Struct without extras, beside zlib alone",
                case="wme_async, slim, no extras",
                measure="rate",
                against=zlib,
                least=0.9,
            ),
            Target(
                name="reading an archive, longest hold of the loop",
                case="wme_async, full, isal + orjson",
                measure="lag",
                most=50,
                unit="ms",
            ),
        ],
        figures={"lag": "loop held ms", "first": "first record ms"},
    )


def _remote(bench: Bench, archive: Path, base: str) -> Group:
    size = bench.inputs.sizes.archive
    url = f"{base}/{archive.name}"
    tee = _ours("wme_async, while downloading, kept too", url, "--tee", bench.work / "kept.tar.gz", size=size)
    tee.before = clear(bench.work)
    return Group(
        name="overlap",
        title=f"Reading an archive of {size / 1e9:.2f} GB while it is downloaded, plain HTTP, full articles",
        cases=[
            _ours("wme_async, from disk", archive, size=size),
            _ours("wme_async, while downloading", url, size=size),
            tee,
        ],
        targets=[
            Target(
                name="reading while downloading, wall beside reading from disk",
                case="wme_async, while downloading",
                measure="wall",
                against="wme_async, from disk",
                most=1.15,
            ),
            Target(
                name="first article while downloading, share of the bytes",
                case="wme_async, while downloading",
                measure="first_bytes",
                most=1.0,
                unit="%",
            ),
            Target(
                name="reading while downloading, peak memory",
                case="wme_async, while downloading",
                measure="rss",
                most=80,
                unit="MB",
            ),
        ],
        figures={"lag": "loop held ms", "first": "first record ms", "first_bytes": "of the bytes %"},
    )


def _memory(bench: Bench) -> Group:
    member, line = bench.inputs.one_member(), bench.inputs.one_long_line()
    large, long = bench.inputs.sizes.large_member, bench.inputs.sizes.long_line
    return Group(
        name="memory",
        title="Memory of reading an archive",
        cases=[
            _ours("one member of 2 GiB, full", member, size=large),
            _ours("one member of 2 GiB, slim", member, "--slim", size=large),
            _ours("a line of 40 MiB, full", line, size=long),
            _ours("a line of 40 MiB, slim", line, "--slim", size=long),
        ],
        targets=[
            Target(
                name="peak memory, member of 2 GiB", case="one member of 2 GiB, full", measure="rss", most=80, unit="MB"
            ),
            Target(
                name="peak memory, line of 40 MiB, full article",
                case="a line of 40 MiB, full",
                measure="rss",
                most=80,
                unit="MB",
            ),
            Target(
                name="peak memory, line of 40 MiB, small Struct",
                case="a line of 40 MiB, slim",
                measure="rss",
                most=80,
                unit="MB",
            ),
        ],
        figures={"lag": "loop held ms"},
        rounds=2,
    )
