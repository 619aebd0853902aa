"""Sections of `make gpu-check`: faults and hangs stay where they are, and time is kept."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from branchline.benchmarks.gpu import sections as module
from branchline.benchmarks.gpu.report import GOALS, Report
from branchline.benchmarks.gpu.sections import Options, Outcome, Run, Section, run_sections

OPTIONS = Options("cpu", "tiny")


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)


def measures(run: Run) -> None:
    run.figure("speed", 2.5, "m/s")


def raises(run: Run) -> None:
    run.check("first", 0.0, 1.0, "float32")
    raise ValueError("too bad")


def hangs(run: Run) -> None:
    run.check("first", 0.0, 1.0, "float32")
    time.sleep(60)


def crashes(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves_a_thread(run: Run) -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()


def is_wrong(run: Run) -> None:
    run.check("first", float("nan"), 1.0, "float32")


def doubles(run: Run) -> None:
    run.figure("twice", 2 * run.figures["speed"], "m/s")


def outcomes_of(directory: Path, *sections: Section, seconds: float = 20.0) -> dict[str, Outcome]:
    ends = time.monotonic() + seconds
    return run_sections(sections, OPTIONS, ends, directory, lambda outcomes: None)


def test_what_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    sections = [
        Section("speed", 1, measures),
        Section("raises", 1, raises),
        Section("crashes", 1, crashes),
        Section("wrong", 1, is_wrong),
        Section("thread", 1, leaves_a_thread),
        Section("later", 1, doubles),
    ]
    outcomes = outcomes_of(tmp_path, *sections)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "speed": "done",
        "raises": "failed",
        "crashes": "failed",
        "wrong": "done",
        "thread": "done",
        "later": "done",
    }
    assert [name for name, o in outcomes.items() if not o.ok] == ["raises", "crashes", "wrong"]
    assert any("too bad" in str(record.get("exception")) for record in outcomes["raises"].records)
    assert [r["value"] for r in outcomes["later"].records if r["kind"] == "figure"] == [5.0]


def test_a_hang_is_ended_and_what_it_found_is_kept(tmp_path: Path) -> None:
    started = time.monotonic()
    sections = [Section("hangs", 1, hangs), Section("speed", 1, measures)]
    outcomes = outcomes_of(tmp_path, *sections, seconds=4)
    assert time.monotonic() - started < 5
    assert outcomes["hangs"].status == "killed"
    assert not outcomes["hangs"].ok
    assert [record["name"] for record in outcomes["hangs"].records] == ["first"]
    assert outcomes["speed"].ok


def test_without_time_a_section_is_left_out_and_nothing_is_wrong(tmp_path: Path) -> None:
    outcomes = outcomes_of(tmp_path, Section("speed", 1, measures), seconds=0.5)
    assert outcomes["speed"].status == "skipped"
    assert outcomes["speed"].ok


def test_a_group_runs_at_once(tmp_path: Path) -> None:
    def waits_for(other: str) -> Section:
        def run(own: Run) -> None:
            name = "b" if other == "a" else "a"
            (tmp_path / name).touch()
            while not (tmp_path / other).exists():
                assert own.has_time()
                time.sleep(0.01)

        return Section(f"waits for {other}", 1, run, "both")

    outcomes = outcomes_of(tmp_path, waits_for("a"), waits_for("b"))
    assert all(outcome.status == "done" for outcome in outcomes.values())


def figures_of(**values: float) -> dict[str, Outcome]:
    records: list[module.Record] = [
        {"kind": "figure", "name": name, "value": value, "unit": ""}
        for name, value in values.items()
    ]
    return {"decode": Outcome("done", 1.0, records)}


def test_goals_are_met_missed_or_not_measured(tmp_path: Path) -> None:
    (first, _, bound), (second, *_) = GOALS[:2]
    report = Report(Options("cuda", "8b"), "command", tmp_path / "r.json", tmp_path)
    report.write(figures_of(**{first: bound + 0.01, second: 0.1}), 1.0)
    lines = {line.strip().split("  ")[0]: line for line in report.summary().splitlines()}
    assert lines[first].endswith("met")
    assert lines[second].endswith("MISSED")
    assert "not measured" in lines[GOALS[2][0]]
    document = json.loads((tmp_path / "r.json").read_text())
    assert [goal["is_met"] for goal in document["goals"]] == [True, False]
    assert document["ok"] is True  # a goal is no check


def test_every_goal_is_measured_by_some_section() -> None:
    """The names are made of the loads that the sections time."""
    from branchline.benchmarks.gpu.decode import PREFILL, Grid, load_name

    grid = Grid.of(Options("cuda", "8b"))
    known = {
        f"hot load of r16: {rest}"
        for rest in (
            "added to the p99 of other requests' steps",
            "from host memory to ready, median",
        )
    }
    for batch, context in grid.loads():
        name = load_name(batch, context)
        known |= {
            f"{name}, base: share of the byte limit",
            f"{name}, base, adapters loaded: throughput of base",
            *(f"{name}, {d} x r{r}: throughput of base" for d, r in grid.adapters(batch)),
        }
    known |= {f"prefill {PREFILL} tokens, {n} x r16: throughput of base" for n in (1, 4)}
    assert {name for name, _, _ in GOALS} <= known
