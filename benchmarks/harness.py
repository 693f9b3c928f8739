"""Run whole processes round by round, and compare their cost with a reference of the same round.

Every round runs each case once, so that other load on the machine affects all alike; the result is the median of the
ratios within the rounds. CPU seconds are those of the process and of the children it waited for, as the kernel
counts them. Beside each run stands how much of the machine others used meanwhile.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

__all__ = ["Case", "Group", "Run", "Target", "judge", "machine", "measure", "show", "summary"]

_TICK = os.sysconf("SC_CLK_TCK")
_CALM = 0.15
_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_PACKAGES = ("aiohttp", "msgspec", "isal", "orjson", "uvloop", "httpx", "obstore", "parfive", "wme-async")
_PROGRAMS = {
    "nginx": ["-v"],
    "curl": ["--version"],
    "aria2c": ["--version"],
    "igzip": ["--version"],
    "openssl": ["version"],
    "gcc": ["--version"],
}


@dataclasses.dataclass(kw_only=True)
class Case:
    """A command to run.

    Attributes:
        name: Its name in the table.
        command: Arguments. It may print one JSON object as its last line: figures of its own, of which `seconds` and
            `cpu_seconds` are those of the work alone, without start-up.
        ours: Whether it is the SDK, not a reference.
        before: Called before each run, not timed.
        check: Called after each run, not timed; an exception makes the case fail.
        lacking: Why it cannot be run here, if it cannot.
        size: Bytes that it moves, or events that it counts.
    """

    name: str
    command: list[str]
    ours: bool = False
    before: Callable[[], object] | None = None
    check: Callable[[], object] | None = None
    lacking: str | None = None
    size: int = 0


@dataclasses.dataclass(kw_only=True)
class Target:
    """A promised figure.

    Attributes:
        name: Its name in the documentation, unique.
        case: Which case is judged.
        measure: `wall`, `cpu`, `rss`, `seconds`, `cpu_seconds`, `rate` or `cpu_rate` of a run, or the name of a figure
            that the command printed.
        against: The reference of the same round, for a ratio; without, the figure itself is judged. Of several, the
            slower in each round.
        most: The upper bound, or
        least: the lower one.
        unit: The unit of a figure that is not a ratio.
        full_size: Whether it is judged only at full size: start-up and small files would decide otherwise.
    """

    name: str
    case: str
    measure: str
    against: str | tuple[str, ...] | None = None
    most: float | None = None
    least: float | None = None
    unit: str = ""
    full_size: bool = True


@dataclasses.dataclass(kw_only=True)
class Group:
    """Cases that are compared with the first of them.

    Attributes:
        name: Short.
        title: For the head of the table.
        unit: The unit of `size`: bytes or events.
        cases: The first is the reference.
        targets: The promised figures.
        figures: Names of printed figures to show, and how to call them.
        rounds: Overrides the number of rounds of the whole run.
        whole: Rates are those of the whole process, whatever it says of its start-up.
    """

    name: str
    title: str
    unit: Literal["bytes", "events"] = "bytes"
    cases: list[Case]
    targets: list[Target] = dataclasses.field(default_factory=list)
    figures: dict[str, str] = dataclasses.field(default_factory=dict)
    rounds: int | None = None
    whole: bool = False


Run = dict[str, Any]


def measure(
    group: Group,
    *,
    rounds: int,
    warm_up: int = 1,
    calm: float = 0.0,
    servers: Iterable[int] = (),
    timeout: float = 600,
    lock: Path | None = None,
) -> dict[str, Any]:
    """Run the cases of a group round by round.

    Args:
        group: The cases to run.
        rounds: How many rounds count.
        warm_up: How many go before them.
        calm: Seconds to wait before each run, at most, for others to leave the machine alone.
        servers: Processes whose CPU time is not somebody else's.
        timeout: Seconds after which a process is ended and its case given up.
        lock: A file to hold locked during each round.

    Returns:
        The group with all runs, as JSON takes it.
    """
    runs: dict[str, list[Run]] = {case.name: [] for case in group.cases}
    failed = {case.name: case.lacking for case in group.cases if case.lacking}
    rounds = group.rounds or rounds
    started = os.getloadavg()[0]
    for number in range(-warm_up, rounds):
        with _turn(lock):
            for case in group.cases:
                if case.name in failed:
                    continue
                _say(f"{group.name}: {'warm-up' if number < 0 else f'round {number + 1}/{rounds}'}: {case.name}")
                waited = _wait_for_calm(calm)
                try:
                    run = _run(case, servers, timeout, whole=group.whole)
                except (RuntimeError, OSError, ValueError) as error:
                    failed[case.name] = str(error)
                    continue
                if number >= 0:
                    runs[case.name].append(run | {"waited": round(waited, 1)})
    _say("")
    return {
        "name": group.name,
        "title": group.title,
        "unit": group.unit,
        "figures": group.figures,
        "rounds": rounds,
        "load_before": round(started, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "cases": [
            {
                "name": case.name,
                "ours": case.ours,
                "size": case.size,
                "command": shlex.join(case.command),
                "lacking": failed.get(case.name),
                "runs": [] if case.name in failed else runs[case.name],
            }
            for case in group.cases
        ],
        "targets": [dataclasses.asdict(target) for target in group.targets],
    }


def _run(case: Case, servers: Iterable[int], timeout: float, *, whole: bool) -> Run:
    if case.before is not None:
        case.before()
    others = _Others(servers)
    reading, writing = os.pipe()
    with (
        os.fdopen(reading) as report,
        subprocess.Popen(  # our own commands
            [sys.executable, "-I", "-S", _LAUNCHER, str(writing), *case.command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(writing,),
        ) as process,
    ):
        os.close(writing)
        # An over-long run is ended with all its children; the pipe closes then.
        watchdog = threading.Timer(timeout, lambda: _end(process.pid))
        watchdog.daemon = True
        watchdog.start()
        assert process.stdout is not None
        try:
            output = process.stdout.read().decode(errors="replace").strip()
            process.wait()
        except BaseException:
            # The end of the harness ends its processes.
            _end(process.pid)
            raise
        finally:
            watchdog.cancel()
        usage = report.read().split()
    if len(usage) != 5 or usage[4] != "0":
        raise RuntimeError(f"ended with {usage[4] if len(usage) == 5 else 'a signal'}: {output[-400:]}")
    wall, user, system, peak = map(float, usage[:4])
    cpu = user + system
    run: Run = {
        "wall": wall,
        "user": user,
        "system": system,
        "cpu": cpu,
        "rss": peak * (1 if sys.platform == "darwin" else 1024) / 1e6,
        "others": others.used(cpu, wall),
    }
    figures = _figures(output)
    run["figures"] = figures
    work = {} if whole else figures
    run["seconds"] = float(work.get("seconds", wall))
    run["cpu_seconds"] = float(work.get("cpu_seconds", cpu))
    if case.size:
        run["rate"] = case.size / run["seconds"]
        run["cpu_rate"] = case.size / max(run["cpu_seconds"], 1e-3)
    if case.check is not None:
        case.check()
    return run


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _figures(output: str) -> dict[str, Any]:
    last = output.rpartition("\n")[2]
    if last.startswith("{"):
        with contextlib.suppress(ValueError):
            figures = json.loads(last)
            if isinstance(figures, dict):
                return figures
    return {}


class _Others:
    """How many cores other processes keep busy from now on."""

    def __init__(self, servers: Iterable[int]) -> None:
        self._servers = list(servers)
        self._busy = _busy()
        self._ours = self._own()

    def _own(self) -> float:
        own = os.times()
        return own.user + own.system + sum(map(_cpu_of, self._servers))

    def used(self, child: float, wall: float) -> float:
        """Return the cores that neither the child nor the servers nor this process used, on average."""
        if wall < 0.05 or self._busy is None:
            return 0.0
        busy = _busy()
        assert busy is not None
        return max(0.0, round((busy - self._busy - child - (self._own() - self._ours)) / wall, 3))


def _busy() -> float | None:
    """Return the CPU seconds that all cores were busy since the start of the machine."""
    with contextlib.suppress(OSError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / _TICK
    return None


def _cpu_of(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICK
    return 0.0


def _wait_for_calm(patience: float) -> float:
    """Wait until others use less than a small part of one core, for half a second."""
    started = time.perf_counter()
    while patience:
        before, at = _busy(), time.perf_counter()
        time.sleep(0.5)
        after = _busy()
        if before is None or after is None:
            break
        waited = time.perf_counter() - started
        if (after - before) / (time.perf_counter() - at) < _CALM or waited > patience:
            return waited
    return 0.0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
    elif text:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _turn(lock: Path | None) -> Iterator[None]:
    """Hold a lock that other benchmarks on this machine hold too while they measure."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return a group's medians and the ratios to its reference, without the single runs."""
    reference = result["cases"][0]["runs"]
    cases = []
    for case in result["cases"]:
        runs = case["runs"]
        row: dict[str, Any] = {"name": case["name"], "ours": case["ours"], "lacking": case["lacking"]}
        if runs:
            for key in ("wall", "user", "system", "cpu", "seconds", "cpu_seconds", "others"):
                row[key] = _round(statistics.median(run[key] for run in runs))
            row["rss"] = _round(max(run["rss"] for run in runs))
            row["wall_spread"] = [_round(min(run["wall"] for run in runs)), _round(max(run["wall"] for run in runs))]
            row["others_most"] = _round(max(run["others"] for run in runs))
            if "rate" in runs[0]:
                row["rate"] = _round(statistics.median(run["rate"] for run in runs))
                row["cpu_rate"] = _round(statistics.median(run["cpu_rate"] for run in runs))
            if reference:
                row["cpu_ratio"] = _round(_ratio(runs, reference, "cpu"))
                row["wall_ratio"] = _round(_ratio(runs, reference, "wall"))
            row["figures"] = {
                key: _round(statistics.median(run["figures"][key] for run in runs))
                for key in runs[0]["figures"]
                if all(isinstance(run["figures"].get(key), int | float) for run in runs)
            }
        cases.append(row)
    shared = {key: result[key] for key in ("name", "title", "unit", "figures", "rounds", "load_before", "load_after")}
    return shared | {"cases": cases, "targets": result.get("judged", [])}


def judge(result: dict[str, Any], *, full_size: bool) -> list[dict[str, Any]]:
    """Return the result of each target: its figure, its bound, and whether it is met."""
    runs = {case["name"]: case["runs"] for case in result["cases"]}
    judged = []
    for target in result["targets"]:
        against = target["against"]
        references = [] if against is None else [against] if isinstance(against, str) else list(against)
        row: dict[str, Any] = {**target, "against": references, "value": None, "met": None}
        if any(not runs.get(name) for name in (target["case"], *references)):
            row["why"] = "not measured"
        else:
            values = [
                _value(run, target["measure"])
                / (_slowest([runs[name][number] for name in references], target["measure"]) if references else 1.0)
                for number, run in enumerate(runs[target["case"]])
            ]
            # A peak is the highest of all rounds, any other figure the median.
            value = max(values) if target["measure"] == "rss" and not references else statistics.median(values)
            row["value"] = _round(value)
            if target["full_size"] and not full_size:
                row["why"] = "judged at full size only"
            else:
                row["met"] = (target["most"] is None or value <= target["most"]) and (
                    target["least"] is None or value >= target["least"]
                )
        judged.append(row)
    return judged


def _value(run: Run, key: str) -> float:
    return float(run[key] if key in run else run["figures"][key])


def _slowest(runs: list[Run], key: str) -> float:
    values = [_value(run, key) for run in runs]
    return min(values) if "rate" in key else max(values)


def _ratio(runs: list[Run], reference: list[Run], key: str) -> float:
    ratios = (run[key] / max(other[key], 1e-3) for run, other in zip(runs, reference, strict=False))
    return float(statistics.median(ratios))


def _round(value: float) -> float:
    """Keep four digits: more were never measured."""
    return float(f"{value:.4g}")


def show(group: dict[str, Any]) -> str:
    """Return the table of a summary, as text."""
    rate = "MB/s" if group["unit"] == "bytes" else "k events/s"
    scale = 1e6 if group["unit"] == "bytes" else 1e3
    head = ["", "wall s", "CPU s", "peak MB", rate, "CPU x", "wall x", "others"]
    head += [f"{label}" for label in group["figures"].values()]
    rows = [head]
    for case in group["cases"]:
        name = ("* " if case["ours"] else "  ") + case["name"]
        if "wall" not in case:
            rows.append([name, f"left out: {' '.join(str(case['lacking']).split())[:90]}"])
            continue
        row = [name, f"{case['wall']:.2f}", f"{case['cpu']:.2f}", f"{case['rss']:.0f}"]
        row.append(f"{case['rate'] / scale:,.0f}" if "rate" in case else "")
        row += [f"{case['cpu_ratio']:.2f}", f"{case['wall_ratio']:.2f}"] if "cpu_ratio" in case else ["", ""]
        row.append(f"{case['others']:.2f}")
        row += [f"{case['figures'][key]:.4g}" if key in case["figures"] else "" for key in group["figures"]]
        rows.append(row)
    widths = [
        max(len(row[column]) for row in rows if column < len(row) and len(row) > 2) for column in range(len(head))
    ]
    lines = [f"{group['title']} ({group['rounds']} rounds)"]
    for row in rows:
        if len(row) == 2:
            lines.append(f"{row[0].ljust(widths[0])}  {row[1]}")
        else:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(cells))
    for target in group["targets"]:
        bound = f"at most {target['most']:g}" if target["most"] is not None else f"at least {target['least']:g}"
        state = {True: "met", False: "MISSED", None: target.get("why", "")}[target["met"]]
        value = "-" if target["value"] is None else f"{target['value']:.4g}"
        lines.append(f"    {state}: {target['name']}: {value} ({bound} {target['unit']})".rstrip())
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return the machine, and the versions of programs and packages."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    programs = {}
    for program, arguments in _PROGRAMS.items():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(  # fixed arguments
                [program, *arguments], capture_output=True, text=True, timeout=10, check=False
            )
            lines = (found.stdout + found.stderr).strip().splitlines()
            programs[program] = " ".join(lines[0].split()[:3]) if lines else ""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "programs": programs,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
