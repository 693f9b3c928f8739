"""Downloads: large files beside curl, aria2c and Python clients, and many small ones."""

import filecmp
from collections.abc import Callable
from pathlib import Path

from harness import Case, Group, Target
from inputs import checksum
from servers import Nginx

from parts.common import Bench, clear, lacks, script

__all__ = ["groups"]


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part."""
    if bench.nginx is None:
        return []
    nginx = bench.nginx
    return [
        _plain(bench, nginx),
        _secure(bench, nginx),
        _slow(bench, nginx),
        _verified(bench, nginx),
        _flushed(bench, nginx),
        _small(bench, nginx),
    ]


def _same(source: Path, target: Path) -> Callable[[], None]:
    """Return a check that a download has the served bytes. It reads the file once, later only its size."""
    seen: list[bool] = []

    def check() -> None:
        if target.stat().st_size != source.stat().st_size:
            raise ValueError(f"{target.name} has {target.stat().st_size} bytes")
        if not seen and not filecmp.cmp(source, target, shallow=False):
            raise ValueError(f"{target.name} has other bytes than {source.name}")
        seen.append(True)

    return check


class _Cases:
    """Makes cases that fetch one file."""

    def __init__(self, bench: Bench, source: Path, base: str, cafile: Path | None) -> None:
        self.bench = bench
        self.source = source
        self.url = f"{base}/{source.name}"
        self.target = bench.work / "out.bin"
        self.tls = ["--cafile", str(cafile)] if cafile else []
        self.cafile = cafile
        self.size = source.stat().st_size

    def of(self, name: str, command: list[str], *, ours: bool = False, lacking: str | None = None) -> Case:
        """Return a case whose result is compared with the source."""
        return Case(
            name=name,
            command=command,
            ours=ours,
            lacking=lacking,
            size=self.size,
            before=clear(self.bench.work),
            check=_same(self.source, self.target),
        )

    def curl(self) -> Case:
        """One stream."""
        tls = ["--cacert", str(self.cafile)] if self.cafile else []
        return self.of(
            "curl", ["curl", "-sSf", *tls, "-o", str(self.target), self.url], lacking=lacks(programs=("curl",))
        )

    def aria2(self, connections: int = 8) -> Case:
        """Ranges."""
        tls = [f"--ca-certificate={self.cafile}"] if self.cafile else []
        command = [
            "aria2c",
            "-q",
            f"-x{connections}",
            f"-s{connections}",
            "-k1M",
            "--file-allocation=none",
            "--no-conf",
            *tls,
            "-d",
            str(self.target.parent),
            "-o",
            self.target.name,
            self.url,
        ]
        return self.of(f"aria2c -x{connections}", command, lacking=lacks(programs=("aria2c",)))

    def peer(self, name: str, package: str, connections: int | None = 8) -> Case:
        """One of the libraries."""
        arguments = ["--url", self.url, "--target", str(self.target), *self.tls]
        if connections is not None:
            arguments += ["--connections", str(connections)]
        shown = f"{package} x{connections}" if connections else package
        return self.of(shown, script("peers", name, *arguments), lacking=lacks(packages=(package,)))

    def ours(self, name: str = "wme_async", *options: object, uvloop: bool = False) -> Case:
        """The package itself."""
        more = ["--uvloop"] if uvloop else []
        command = script("download_one", self.url, self.target, *self.tls, *options, *more)
        return self.of(name, command, ours=True, lacking=lacks(packages=("uvloop",)) if uvloop else None)


def _plain(bench: Bench, nginx: Nginx) -> Group:
    make = _Cases(bench, bench.inputs.random_bytes(bench.inputs.sizes.plain), nginx.plain, None)
    return Group(
        whole=True,
        name="plain",
        title=f"Download of {make.size / 1e9:.2f} GB, plain HTTP, nothing verified",
        cases=[
            make.curl(),
            make.aria2(),
            make.peer("aiohttp-download", "aiohttp"),
            make.peer("obstore-download", "obstore"),
            make.peer("httpx-download", "httpx", None),
            make.peer("parfive-download", "parfive"),
            make.ours(),
            make.ours("wme_async, uvloop", uvloop=True),
        ],
        targets=[
            Target(name="plain HTTP, CPU beside curl", case="wme_async", measure="cpu", against="curl", most=1.05),
            Target(name="plain HTTP, wall beside curl", case="wme_async", measure="wall", against="curl", most=1.05),
            Target(
                name="plain HTTP, CPU beside curl, with uvloop",
                case="wme_async, uvloop",
                measure="cpu",
                against="curl",
                most=0.9,
            ),
            Target(
                name="plain HTTP, wall beside curl, with uvloop",
                case="wme_async, uvloop",
                measure="wall",
                against="curl",
                most=0.9,
            ),
            Target(
                name="plain HTTP, CPU beside aria2c", case="wme_async", measure="cpu", against="aria2c -x8", most=1.0
            ),
            Target(
                name="plain HTTP, wall beside aria2c", case="wme_async", measure="wall", against="aria2c -x8", most=1.0
            ),
            Target(name="download, peak memory", case="wme_async", measure="rss", most=50, unit="MB"),
            Target(
                name="download, peak memory, with uvloop", case="wme_async, uvloop", measure="rss", most=50, unit="MB"
            ),
        ],
    )


def _secure(bench: Bench, nginx: Nginx) -> Group:
    make = _Cases(bench, bench.inputs.random_bytes(bench.inputs.sizes.secure), nginx.secure, nginx.certificate)
    return Group(
        whole=True,
        name="tls",
        title=f"Download of {make.size / 1e9:.2f} GB, TLS 1.3, nothing verified",
        cases=[
            make.curl(),
            make.aria2(),
            make.peer("aiohttp-download", "aiohttp"),
            make.peer("obstore-download", "obstore"),
            make.peer("httpx-download", "httpx", None),
            make.ours(),
            make.ours("wme_async, uvloop", uvloop=True),
        ],
        targets=[
            Target(name="TLS, CPU beside curl", case="wme_async", measure="cpu", against="curl", most=1.25),
            Target(
                name="TLS, CPU beside curl, with uvloop",
                case="wme_async, uvloop",
                measure="cpu",
                against="curl",
                most=1.15,
            ),
            Target(name="TLS, CPU beside aria2c", case="wme_async", measure="cpu", against="aria2c -x8", most=1.0),
            Target(name="TLS, wall beside aria2c", case="wme_async", measure="wall", against="aria2c -x8", most=1.0),
            Target(name="TLS download, peak memory", case="wme_async", measure="rss", most=50, unit="MB"),
            Target(
                name="TLS download, peak memory, with uvloop",
                case="wme_async, uvloop",
                measure="rss",
                most=50,
                unit="MB",
            ),
        ],
    )


def _slow(bench: Bench, nginx: Nginx) -> Group:
    make = _Cases(bench, bench.inputs.random_bytes(bench.inputs.sizes.throttled), nginx.slow, nginx.certificate)
    step = -(-make.size // 8)
    # curl leaves the ranges in eight files; putting them together is not counted.
    transfers: list[tuple[str, Path, str | None]] = [
        (make.url, bench.work / f"part{number}", f"{start}-{min(make.size, start + step) - 1}")
        for number, start in enumerate(range(0, make.size, step))
    ]
    config = _curl_config(bench.folder / "ranges.curl", transfers, nginx.certificate)
    curl = Case(
        name="curl --parallel, 8 ranges",
        command=["curl", "-sSf", "--parallel", "--config", str(config)],
        size=make.size,
        before=clear(bench.work),
        lacking=lacks(programs=("curl",)),
    )
    return Group(
        whole=True,
        name="throttled",
        title=f"Download of {make.size / 1e9:.2f} GB, TLS, 8 connections of 20 MB/s each",
        cases=[
            curl,
            make.aria2(),
            make.peer("aiohttp-download", "aiohttp"),
            make.ours("wme_async", "--connections", 8),
            make.ours("wme_async, uvloop", "--connections", 8, uvloop=True),
        ],
        targets=[
            Target(
                name="8 connections of 20 MB/s, CPU beside curl --parallel",
                case="wme_async",
                measure="cpu",
                against=curl.name,
                most=1.3,
            ),
            Target(
                name="8 connections of 20 MB/s, CPU beside curl --parallel, with uvloop",
                case="wme_async, uvloop",
                measure="cpu",
                against=curl.name,
                most=1.3,
            ),
        ],
    )


def _verified(bench: Bench, nginx: Nginx) -> Group:
    make = _Cases(bench, bench.inputs.random_bytes(bench.inputs.sizes.plain), nginx.plain, None)
    md5 = checksum(make.source)
    pipe = f"curl -sSf '{make.url}' | tee '{make.target}' | md5sum | grep -q {md5}"
    return Group(
        whole=True,
        name="verified",
        title=f"Download of {make.size / 1e9:.2f} GB, plain HTTP, MD5 compared",
        cases=[
            make.of(
                "curl | tee FILE | md5sum",
                ["sh", "-c", pipe],
                lacking=lacks(programs=("curl", "tee", "md5sum", "grep")),
            ),
            make.ours("wme_async", "--verify", md5),
            make.ours("wme_async, uvloop", "--verify", md5, uvloop=True),
        ],
        targets=[
            Target(
                name="verified download, wall beside curl | tee | md5sum",
                case="wme_async",
                measure="wall",
                against="curl | tee FILE | md5sum",
                most=1.05,
            ),
            Target(
                name="verified download, CPU beside curl | tee | md5sum",
                case="wme_async",
                measure="cpu",
                against="curl | tee FILE | md5sum",
                most=1.0,
            ),
            Target(name="verified download, peak memory", case="wme_async", measure="rss", most=50, unit="MB"),
        ],
    )


def _flushed(bench: Bench, nginx: Nginx) -> Group:
    make = _Cases(bench, bench.inputs.random_bytes(bench.inputs.sizes.secure), nginx.plain, None)
    pipe = f"curl -sSf -o '{make.target}' '{make.url}' && sync '{make.target}'"
    return Group(
        whole=True,
        name="flushed",
        title=f"Download of {make.size / 1e9:.2f} GB, plain HTTP, flushed to the disk as the client does",
        cases=[
            make.of("curl && sync FILE", ["sh", "-c", pipe], lacking=lacks(programs=("curl", "sync"))),
            make.ours("wme_async", "--durable"),
            make.ours("wme_async, uvloop", "--durable", uvloop=True),
        ],
    )


def _small(bench: Bench, nginx: Nginx) -> Group:
    files = bench.inputs.small_files()
    total = sum(path.stat().st_size for path in files)
    names = bench.folder / "names.txt"
    names.write_text("".join(f"{path.name}\n" for path in files))
    base = f"{nginx.plain}/{files[0].parent.name}"
    config = _curl_config(
        bench.folder / "files.curl", [(f"{base}/{path.name}", bench.work / path.name, None) for path in files]
    )

    def check() -> None:
        for path in files:
            if not filecmp.cmp(path, bench.work / path.name, shallow=False):
                raise ValueError(f"{path.name} has other bytes")

    def case(name: str, command: list[str], *, ours: bool = False, lacking: str | None = None) -> Case:
        return Case(
            name=name, command=command, ours=ours, lacking=lacking, size=total, before=clear(bench.work), check=check
        )

    aria2 = bench.folder / "files.aria2"
    aria2.write_text("".join(f"{base}/{path.name}\n" for path in files))
    arguments = (base, bench.work, "--list", names)
    return Group(
        name="files",
        title=f"{len(files)} small files, {total / 1e6:.0f} MB in all, plain HTTP, one pool, nothing verified",
        cases=[
            case(
                "curl --parallel",
                ["curl", "-sSf", "--parallel", "--config", str(config)],
                lacking=lacks(programs=("curl",)),
            ),
            case(
                "aria2c -j16",
                [
                    "aria2c",
                    "-q",
                    "-j16",
                    "-x1",
                    "--file-allocation=none",
                    "--no-conf",
                    "-d",
                    str(bench.work),
                    "-i",
                    str(aria2),
                ],
                lacking=lacks(programs=("aria2c",)),
            ),
            case("wme_async", script("download_one", *arguments), ours=True),
            case(
                "wme_async, uvloop",
                script("download_one", *arguments, "--uvloop"),
                ours=True,
                lacking=lacks(packages=("uvloop",)),
            ),
            case("wme_async, flushed", script("download_one", *arguments, "--durable"), ours=True),
        ],
        targets=[
            Target(
                name="200 small files over an open pool, wall beside curl --parallel",
                case="wme_async",
                measure="seconds",
                against="curl --parallel",
                most=1.3,
            ),
            Target(
                name="200 small files, wall beside curl --parallel",
                case="wme_async",
                measure="wall",
                against="curl --parallel",
                most=1.3,
            ),
            Target(
                name="200 small files, wall beside curl --parallel, with uvloop",
                case="wme_async, uvloop",
                measure="wall",
                against="curl --parallel",
                most=1.3,
            ),
        ],
        figures={"seconds": "without start-up s"},
    )


def _curl_config(path: Path, transfers: list[tuple[str, Path, str | None]], certificate: Path | None = None) -> Path:
    """Write the configuration of curl: addresses, files, ranges."""
    blocks = []
    for url, target, span in transfers:
        lines = [f'url = "{url}"', f'output = "{target}"']
        lines += [f'range = "{span}"'] if span else []
        lines += [f'cacert = "{certificate}"'] if certificate else []
        blocks.append("\n".join(lines))
    # Options belong to all addresses up to the next `next`.
    separator = "\nnext\n" if certificate or any(span for *_, span in transfers) else "\n"
    path.write_text(separator.join(blocks) + "\n")
    return path
