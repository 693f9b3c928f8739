"""The stream: whole articles and small events, both framings, beside msgspec alone and beside line readers."""

from pathlib import Path

from harness import Case, Group, Target

from parts.common import Bench, lacks, script

__all__ = ["groups"]

_ALONE = "msgspec alone, from memory"
_LINES = "httpx lines + json"


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part."""
    return [_group(bench, "large"), _group(bench, "small"), _long(bench)]


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _group(bench: Bench, kind: str) -> Group:
    lines = bench.inputs.events(kind)
    count = _count(lines)
    urls = {
        framing: f"{bench.streams.url}/{bench.inputs.chunked(lines, framing).name}" for framing in ("ndjson", "sse")
    }

    def ours(name: str, framing: str, *options: str, packages: tuple[str, ...] = ()) -> Case:
        command = script("stream_read", urls[framing], "--framing", framing, "--events", count, "--rounds", 1, *options)
        return Case(name=f"wme_async, {name}", command=command, ours=True, size=count, lacking=lacks(packages=packages))

    def peer(name: str, *arguments: object, package: str) -> Case:
        return Case(name=name, command=script("peers", *arguments), size=count, lacking=lacks(packages=(package,)))

    mean = lines.stat().st_size / count
    group = Group(
        name=f"{kind}-events",
        title=f"{count:,} events of {mean:,.0f} bytes, one chunk each, positions tracked, duplicates checked",
        unit="events",
        cases=[
            peer(_ALONE, "decode", "--path", lines, package="msgspec"),
            peer(_LINES, "httpx-lines", "--url", urls["ndjson"], package="httpx"),
            peer("aiohttp lines + json", "aiohttp-lines", "--url", urls["ndjson"], package="aiohttp"),
            ours("NDJSON", "ndjson", "--no-orjson"),
            ours("SSE", "sse", "--no-orjson"),
        ],
    )
    if kind == "large":
        group.cases.append(ours("NDJSON, orjson", "ndjson", packages=("orjson",)))
        group.targets = [
            Target(
                name="full articles, beside msgspec alone",
                case="wme_async, NDJSON",
                measure="cpu_rate",
                against=_ALONE,
                least=0.75,
            ),
            Target(
                name="full articles with orjson, beside msgspec alone",
                case="wme_async, NDJSON, orjson",
                measure="cpu_rate",
                against=_ALONE,
                least=0.9,
            ),
            Target(
                name="full articles, SSE beside NDJSON",
                case="wme_async, SSE",
                measure="cpu_rate",
                against="wme_async, NDJSON",
                least=0.85,
            ),
            Target(
                name="stream of full articles, peak memory", case="wme_async, NDJSON", measure="rss", most=60, unit="MB"
            ),
        ]
    else:
        group.cases.append(ours("NDJSON, uvloop", "ndjson", "--uvloop", packages=("uvloop",)))
        group.targets = [
            Target(
                name="small events, beside msgspec alone",
                case="wme_async, NDJSON",
                measure="cpu_rate",
                against=_ALONE,
                least=0.22,
            ),
            Target(
                name="small events, beside httpx lines",
                case="wme_async, NDJSON",
                measure="cpu_rate",
                against=_LINES,
                least=9.0,
            ),
            Target(
                name="small events, SSE beside NDJSON",
                case="wme_async, SSE",
                measure="cpu_rate",
                against="wme_async, NDJSON",
                least=0.70,
            ),
            Target(
                name="stream of small events, peak memory", case="wme_async, NDJSON", measure="rss", most=60, unit="MB"
            ),
        ]
    return group


def _long(bench: Bench) -> Group:
    answer = bench.inputs.many_events()
    count = bench.inputs.sizes.many_events
    name = "wme_async, client"
    command = script("stream_long", bench.streams.url, f"/{answer.name}", count)
    return Group(
        name="many-events",
        title=f"{count:,} events through one client",
        unit="events",
        cases=[Case(name=name, command=command, ours=True, size=count)],
        targets=[
            Target(
                name="very many events, growth of memory after the first tenth",
                case=name,
                measure="growth",
                most=2,
                unit="MB",
            ),
            Target(name="very many events, peak memory", case=name, measure="rss", most=60, unit="MB"),
        ],
        figures={"growth": "growth MB"},
        rounds=2,
    )
