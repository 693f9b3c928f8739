"""Write the tables and sentences of the documentation from the figures, so that the two cannot differ.

python benchmarks/report.py bench-results/RESULT.json    take over the figures of a run, and write tables and plot
python benchmarks/report.py                              write them again from the stored figures
"""

import json
import sys
from pathlib import Path
from typing import Any

import harness

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
KEPT = FIGURES / "performance.json"
PAGE = FIGURES / "performance.md"
PLOT = FIGURES / "performance.svg"

HEAD = "<!-- Written by benchmarks/report.py; change the figures or the script, not this file. -->\n\n"

EXPLANATIONS = {
    "plain": "`wme_async` leaves its bytes in the page cache here, as curl does.",
    "throttled": "curl leaves the ranges in eight files; putting them together is not counted.",
    "verified": (
        "MD5 is slower than the network here. The package hashes in a thread behind the ranges, from the page cache; "
        "the pipe has a process for each step."
    ),
    "flushed": (
        "What a client does by default: after this, not even a power failure costs the file. The wall time is mostly "
        "the disk's."
    ),
    "files": (
        "Of sizes as hourly batches have. The start of Python and the imports weigh more here than the downloads; the "
        "last column but one is without them."
    ),
    "archive": (
        "*Full* decodes into `Article`, *slim* into a Struct of three fields. igzip and zlib only inflate; msgspec "
        "alone decodes lines that are split and in memory."
    ),
    "overlap": "*Kept too* is `tee=`: the archive is on the disk afterwards.",
    "memory": (
        "A line must be in memory as a whole, and so must what it is decoded into; but of a very long one, texts that "
        "a small type does not name are not kept."
    ),
    "large-events": (
        "Whole articles. msgspec alone decodes lines that are split and in memory; the others receive them over HTTP."
    ),
    "small-events": "Few fields: what a stream with a list of `fields` brings.",
    "many-events": "Memory is looked at after each tenth of the events.",
    "lookups": "The script takes its own rounds, both ways by turns.",
    "loop": (
        "The service answers `pong` and does nothing else; *lag* is how late a task of the same loop wakes up that "
        "asks to be woken each millisecond."
    ),
}


def read(path: Path) -> dict[str, Any]:
    """Return the figures of a run in their stored form."""
    found = json.loads(path.read_text())
    return {
        "machine": found["machine"],
        "groups": [harness.summary(group) | {"part": group["part"]} for group in found["groups"]],
    }


def page(kept: dict[str, Any]) -> str:
    """Return the page."""
    notes = kept.get("notes", {})
    parts = [HEAD, _machine(kept["machine"], kept["groups"]), _targets(kept["groups"], notes)]
    parts.append("## The figures\n\n")
    parts += [_group(group) for group in kept["groups"]]
    return "".join(parts).rstrip() + "\n"


def _machine(facts: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    programs = ", ".join(" ".join(text.split()[:3]) for text in facts["programs"].values() if text)
    busy = max((case["others"] for group in groups for case in group["cases"] if "others" in case), default=0.0)
    quiet = (
        "The machine did nothing else."
        if busy < 0.1
        else f"Other work went on beside it, up to {busy:.1f} cores in the median of a case: see *others* below."
    )
    return (
        f"Measured on {facts['date']}: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']:.0f} GB of memory, "
        f"{facts['system']}, Python {facts['python']}. {quiet} Articles were {facts['articles']}; streams came from "
        f"{facts['stream_server']}.\n\nPackages: {packages}. Programs: {programs}.\n\n"
    )


def _targets(groups: list[dict[str, Any]], notes: dict[str, str]) -> str:
    rows = [target | {"group": group["name"]} for group in groups for target in group["targets"]]
    met = sum(row["met"] is True for row in rows)
    judged = sum(row["met"] is not None for row in rows)
    lines = [
        "## What was aimed at\n",
        f"{met} of {judged} targets are met.\n",
        "| what | measured | target | |",
        "|---|--:|--:|---|",
    ]
    for row in rows:
        unit = f" {row['unit']}" if row["unit"] else ""
        sign, bound = ("≤", row["most"]) if row["most"] is not None else ("≥", row["least"])
        value = "-" if row["value"] is None else f"{_number(row['value'])}{unit}"
        state = {True: "met", False: "**missed**", None: row.get("why", "not judged")}[row["met"]]
        lines.append(f"| {_escape(row['name'])} | {value} | {sign} {bound:g}{unit} | {state} |")
    text = "\n".join(lines) + "\n\n"
    missed = [row["name"] for row in rows if row["met"] is False and row["name"] in notes]
    if missed:
        text += "Why targets are missed:\n\n" + "".join(f"- {_escape(name)}: {notes[name]}\n" for name in missed) + "\n"
    return text


def _group(group: dict[str, Any]) -> str:
    rate, scale = ("MB/s", 1e6) if group["unit"] == "bytes" else ("thousand events/s", 1e3)
    rated = any("rate" in case for case in group["cases"])
    many = len(group["cases"]) > 1
    head = ["", "wall s", "CPU s", "peak MB"]
    head += [rate] if rated else []
    head += ["CPU ×", "wall ×"] if many else []  # noqa: RUF001  # the sign is meant
    head += [*group["figures"].values(), "others"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" + "--:|" * (len(head) - 1)]
    for case in group["cases"]:
        name = f"**{_escape(case['name'])}**" if case["ours"] else _escape(case["name"])
        if "wall" not in case:
            reason = _escape(" ".join(str(case["lacking"]).split())[:100])
            lines.append(f"| {name} | left out: {reason} |" + " |" * (len(head) - 2))
            continue
        row = [name, f"{case['wall']:.2f}", f"{case['cpu']:.2f}", f"{case['rss']:.0f}"]
        row += [_number(case["rate"] / scale) if "rate" in case else ""] if rated else []
        row += [f"{case['cpu_ratio']:.2f}", f"{case['wall_ratio']:.2f}"] if many else []
        row += [_number(case["figures"][key]) if key in case["figures"] else "" for key in group["figures"]]
        lines.append(f"| {' | '.join(row)} | {case['others']:.2f} |")
    explained = EXPLANATIONS.get(group["name"])
    text = f"### {group['title']}\n\n" + (f"{explained}\n\n" if explained else "")
    return text + "\n".join(lines) + f"\n\nMedians of {_rounds(group['rounds'])}.\n\n"


def _rounds(count: int) -> str:
    return "one run" if count == 1 else f"{count} rounds"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def plot(kept: dict[str, Any], path: Path) -> None:
    """Draw bars: the cost of a download, the speed of reading."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "wme_async"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot  # noqa: ICN001  # the other name says less

    groups = {group["name"]: group for group in kept["groups"]}
    panels = [
        ("plain", "Download, plain HTTP: CPU seconds", "cpu", 1.0),
        ("tls", "Download, TLS: CPU seconds", "cpu", 1.0),
        ("archive", "Archive: MB of records a second", "rate", 1e6),
        ("large-events", "Stream of whole articles: thousand a CPU second", "cpu_rate", 1e3),
        ("small-events", "Stream of small events: thousand a CPU second", "cpu_rate", 1e3),
    ]
    panels = [panel for panel in panels if panel[0] in groups]
    heights = [sum("cpu" in case for case in groups[panel[0]]["cases"]) + 1.5 for panel in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 0.27 * sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, (name, title, key, scale) in zip(axes[:, 0], panels, strict=True):
        cases = [case for case in groups[name]["cases"] if key in case]
        values = [case[key] / scale for case in cases]
        colours = ["#3366cc" if case["ours"] else "#a2a9b1" for case in cases]
        bars = axis.barh([case["name"] for case in cases], values, color=colours)
        axis.bar_label(bars, [_number(value) for value in values], padding=3, fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.set_xticks([])
        axis.margins(x=0.12)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Take figures over where a file is named, then write the page and the plot."""
    if len(sys.argv) > 1:
        fresh = read(Path(sys.argv[1]))
        if fresh["machine"]["quick"]:
            raise SystemExit("these figures were measured with small inputs: they show nothing but that it works")
        FIGURES.mkdir(exist_ok=True)
        notes = json.loads(KEPT.read_text()).get("notes", {}) if KEPT.exists() else {}
        KEPT.write_text(json.dumps(fresh | {"notes": notes}, indent=1, ensure_ascii=False) + "\n")
    kept = json.loads(KEPT.read_text())
    PAGE.write_text(page(kept))
    plot(kept, PLOT)


if __name__ == "__main__":
    main()
