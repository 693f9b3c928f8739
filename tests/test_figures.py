"""The figures in the documentation are those that were measured."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"

# A source distribution has no benchmarks.
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not in this copy")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    loaded = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - loaded:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


measured = pytest.mark.skipif(not (FIGURES / "performance.json").is_file(), reason="no figures are kept in this copy")


@measured
def test_the_tables_are_written_from_the_figures(benchmarks):
    figures = json.loads((FIGURES / "performance.json").read_text())
    assert benchmarks("report").page(figures) == (FIGURES / "performance.md").read_text()


@measured
def test_the_figures_were_measured_at_full_size():
    assert json.loads((FIGURES / "performance.json").read_text())["machine"]["quick"] is False


@measured
def test_every_missed_target_says_why():
    figures = json.loads((FIGURES / "performance.json").read_text())
    missed = {target["name"] for group in figures["groups"] for target in group["targets"] if target["met"] is False}
    assert missed <= figures["notes"].keys()


@measured
def test_notes_hold_no_figures_of_their_own():
    # They are written by hand: a number in them would not follow the next run.
    notes = json.loads((FIGURES / "performance.json").read_text())["notes"]
    assert not [note for note in notes.values() if re.search(r"\d[.,]\d|\d+ ?(?:%|ms|MB|s\b)", note)]


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds(benchmarks):
    runs = {"ours": [2.0, 9.0, 4.0], "theirs": [1.0, 3.0, 4.0]}
    cases = [{"name": name, "runs": [{"cpu": cpu, "figures": {}} for cpu in cpus]} for name, cpus in runs.items()]
    target = {"name": "x", "case": "ours", "measure": "cpu", "against": "theirs", "most": 2.0, "least": None}
    result = {"cases": cases, "targets": [target | {"unit": "", "full_size": True}]}
    (judged,) = benchmarks("harness").judge(result, full_size=True)
    assert judged["value"] == 2.0
    assert judged["met"] is True


def test_a_target_of_two_references_is_held_against_the_slower(benchmarks):
    rates = {"ours": 90.0, "quick": 400.0, "slow": 100.0}
    cases = [{"name": name, "runs": [{"rate": rate, "figures": {}}]} for name, rate in rates.items()]
    target = {"name": "x", "case": "ours", "measure": "rate", "against": ("quick", "slow"), "most": None, "least": 0.9}
    result = {"cases": cases, "targets": [target | {"unit": "", "full_size": True}]}
    (judged,) = benchmarks("harness").judge(result, full_size=True)
    assert judged["value"] == 0.9
    assert judged["met"] is True


def test_what_was_not_measured_is_neither_met_nor_missed(benchmarks):
    target = {"name": "x", "case": "ours", "measure": "cpu", "against": "gone", "most": 1.0, "least": None}
    cases = [{"name": "ours", "runs": [{"cpu": 1.0, "figures": {}}]}, {"name": "gone", "runs": []}]
    result = {"cases": cases, "targets": [target | {"unit": "", "full_size": True}]}
    (judged,) = benchmarks("harness").judge(result, full_size=True)
    assert judged["met"] is None
    assert judged["why"] == "not measured"


def test_a_process_is_charged_for_what_it_used_and_not_for_who_started_it(benchmarks):
    harness = benchmarks("harness")
    ballast = bytearray(150_000_000)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    lean = harness.Case(name="lean", command=["true"])
    busy = harness.Case(
        name="busy",
        command=[sys.executable, "-c", "import json\nsum(range(3_000_000))\nprint(json.dumps({'seconds': 0.5}))"],
        size=100,
    )
    broken = harness.Case(name="broken", command=["sh", "-c", "echo no such thing; exit 3"])
    group = harness.Group(name="group", title="", cases=[lean, busy, broken])
    result = harness.measure(group, rounds=1, warm_up=0)
    runs = {case["name"]: case for case in result["cases"]}
    assert runs["lean"]["runs"][0]["rss"] < 50 < len(ballast) / 1e6
    assert runs["busy"]["runs"][0]["cpu"] > runs["lean"]["runs"][0]["cpu"]
    assert runs["busy"]["runs"][0]["rate"] == 200
    assert "ended with 3: no such thing" in runs["broken"]["lacking"]
    assert "left out: ended with 3" in harness.show(harness.summary(result))
