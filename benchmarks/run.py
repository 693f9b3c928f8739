"""Measure speed and memory of the package beside references in the same run.

    nox -s bench                               everything, at full size: about half an hour
    nox -s bench -- download stream --quick    two parts with small inputs, to see that they work
    python benchmarks/run.py archive --rounds 9 --calm 60

Whole processes take turns, so that whatever the machine does meanwhile hits all alike. The table is printed; all single
runs go to a JSON file in `bench-results/`. What is not installed is left out, with the reason in the table. Inputs
(7 GB at full size) are made once and kept in a folder.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import harness
from inputs import Inputs, Sizes
from parts import archive, download, lookups, loop, mirror, parquet, stream, sync
from parts.common import Bench
from servers import Missing, Nginx, StreamServer

PARTS = {
    "download": download.groups,
    "archive": archive.groups,
    "stream": stream.groups,
    "lookups": lookups.groups,
    "loop": loop.groups,
    "sync": sync.groups,
    "parquet": parquet.groups,
    "mirror": mirror.groups,
}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="only groups of these names")
    parser.add_argument("--rounds", type=int, help="rounds that count; 5, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="small inputs; nothing is judged by them")
    parser.add_argument("--calm", type=float, default=0.0, metavar="SECONDS", help="wait so long for an idle machine")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="to hold during each round: benchmarks take turns")
    parser.add_argument(
        "--inputs", type=Path, metavar="FOLDER",
        default=os.environ.get("WME_BENCH_INPUTS") or Path(tempfile.gettempdir()) / "wme-async-bench",
        help="where inputs are kept (or WME_BENCH_INPUTS); by default in the folder for temporary files",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="of JSON; by default in bench-results/")
    parser.add_argument("--merge", type=Path, metavar="FILE", help="an earlier result whose other groups are kept")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.inputs = Path(options.inputs)
    return options


def main() -> int:
    """Measure, print and write; 1 if a target is missed."""
    options = arguments()
    # Whoever ends this run ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sizes = Sizes.quick() if options.quick else Sizes()
    inputs = Inputs(options.inputs, sizes)
    results: list[dict[str, Any]] = []
    # Installed packages start from compiled files; whether this checkout has some already must not matter.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(options.inputs / "compiled")
    facts = harness.machine() | {"articles": inputs.origin, "quick": options.quick}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wme-async-bench-")))
        # On the disk of the inputs: the folder for temporary files may be memory.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="work-", dir=options.inputs)))
        nginx = None
        try:
            nginx = stack.enter_context(Nginx.serving(options.inputs, folder))
        except Missing as error:
            print(f"Left out whatever downloads: {error}")
        streams = stack.enter_context(StreamServer.serving(options.inputs, folder))
        facts["stream_server"] = streams.kind
        bench = Bench(
            inputs=inputs, work=work / "out", folder=folder, nginx=nginx, streams=streams, rounds=options.rounds
        )
        for name in options.parts or PARTS:
            for group in PARTS[name](bench):
                if options.only and group.name not in options.only:
                    continue
                result = harness.measure(
                    group, rounds=options.rounds, calm=options.calm, servers=bench.servers, lock=options.lock,
                    warm_up=0 if group.rounds else 1,
                )  # fmt: skip
                result["part"] = name
                result["judged"] = harness.judge(result, full_size=not options.quick)
                results.append(result)
                print(harness.show(harness.summary(result)), end="\n\n", flush=True)
    _write(options, facts, results)
    return int(any(target["met"] is False for result in results for target in result["judged"]))


def _write(options: argparse.Namespace, facts: dict[str, Any], results: list[dict[str, Any]]) -> None:
    if options.merge and options.merge.is_file():
        new = {result["name"] for result in results}
        results = [
            result for result in json.loads(options.merge.read_text())["groups"] if result["name"] not in new
        ] + results
    path = options.output
    if path is None:
        path = Path(__file__).parent.parent / "bench-results" / time.strftime("%Y-%m-%dT%H%M%SZ.json", time.gmtime())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": facts, "groups": results}, indent=1) + "\n")
    print(f"Written to {path}")


if __name__ == "__main__":
    sys.exit(main())
