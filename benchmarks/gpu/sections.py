"""Sections of a check, each in a process of its own: a fault or a hang costs only that one.

A kernel that reads where it must not leaves a CUDA context that can do nothing more, and one that
hangs can't be stopped from within. Children are forked, so that nothing is imported twice; the
parent never touches the device. Time is ``time.monotonic``, which all of them share.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

GRACE_SECONDS = 20.0
"""How much later than agreed a section may end before it is killed."""

Status = Literal["done", "failed", "killed", "skipped"]
Record = dict[str, object]


def say(text: str) -> None:
    """One line, in one piece: sections that run at once share the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    device: Literal["cuda", "cpu"]
    shape: str
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A section's own view: how long it has, what is known already, where its findings go.

    ``figures`` are those of the sections before, by name.
    """

    options: Options
    ends: float
    figures: Mapping[str, float]
    path: Path

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether so many more seconds are there."""
        return time.monotonic() + seconds < self.ends

    def figure(self, name: str, value: float, unit: str, **details: object) -> None:
        """Something measured."""
        self._write({"kind": "figure", "name": name, "value": value, "unit": unit, **details})
        say(f"  {name:<64}{value:>12.4g} {unit}")

    def check(self, name: str, error: float, tolerance: float, dtype: str) -> None:
        """Something that has to hold: ``error`` is at most ``tolerance`` (NaN is not)."""
        ok = error <= tolerance
        # JSON has no infinity and no NaN.
        shown = error if abs(error) < float("inf") else str(error)
        record: Record = {"kind": "check", "name": name, "dtype": dtype, "error": shown}
        self._write(record | {"tolerance": tolerance, "ok": ok})
        verdict = "" if ok else f"   WRONG: over {tolerance:g}"
        say(f"  {name:<50}{dtype:<16}{error:>10.1e}{verdict}")

    def fact(self, name: str, value: object) -> None:
        """Something read."""
        self._write({"kind": "fact", "name": name, "value": value})
        say(f"  {name:<36}{value}")

    def note(self, text: str) -> None:
        """Something left out, or to be known."""
        self._write({"kind": "note", "text": text})
        say(f"  note: {text}")

    def failed(self, name: str) -> None:
        """An exception that is being handled: the part is recorded as wrong, the rest goes on."""
        text = traceback.format_exc(limit=-4)
        self._write({"kind": "check", "name": name, "ok": False, "exception": text})
        print(f"  {name}: {text}", file=sys.stderr, flush=True)

    def _write(self, record: Record) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


@dataclass(frozen=True, slots=True)
class Section:
    """``seconds`` is its share of the time: sections left over divide what remains by it.

    Sections of one ``group`` run at once.
    """

    name: str
    seconds: float
    run: Callable[[Run], None]
    group: str = ""


@dataclass(slots=True)
class Outcome:
    """How a section ended and what it found."""

    status: Status
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing in it is wrong; for want of time it may have been left out."""
        if self.status in ("failed", "killed"):
            return False
        return all(record["ok"] for record in self.records if record["kind"] == "check")


def run_sections(
    sections: Sequence[Section],
    options: Options,
    ends: float,
    directory: Path,
    finished: Callable[[dict[str, Outcome]], None],
) -> dict[str, Outcome]:
    """Run one group after the other until ``ends``; ``finished`` is told after each of them."""
    outcomes: dict[str, Outcome] = {}
    groups: dict[str, list[Section]] = {}
    for section in sections:
        groups.setdefault(section.group or section.name, []).append(section)
    left = {name: max(s.seconds for s in group) for name, group in groups.items()}
    for name, group in groups.items():
        remaining = ends - time.monotonic() - GRACE_SECONDS
        share = remaining * left[name] / sum(left.values())
        del left[name]
        if share < 1:
            outcomes |= {section.name: Outcome("skipped") for section in group}
        else:
            until = time.monotonic() + share
            outcomes |= _run_group(group, options, until, directory, _figures(outcomes))
        finished(outcomes)
    return outcomes


def _figures(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    return {
        str(record["name"]): float(str(record["value"]))
        for outcome in outcomes.values()
        for record in outcome.records
        if record["kind"] == "figure"
    }


def _run_group(
    group: Sequence[Section],
    options: Options,
    until: float,
    directory: Path,
    figures: Mapping[str, float],
) -> dict[str, Outcome]:
    context = multiprocessing.get_context("fork")
    started = time.monotonic()
    print(f"\n{', '.join(s.name for s in group)}: {until - started:.0f} s at most", flush=True)
    children: dict[str, tuple[BaseProcess, Path]] = {}
    for section in group:
        path = directory / f"{section.name}.jsonl"
        path.touch()
        run = Run(options, until, figures, path)
        child = context.Process(target=_in_child, args=(section, run), name=section.name)
        child.start()
        children[section.name] = child, path
    return {name: _await(child, path, started, until) for name, (child, path) in children.items()}


def _in_child(section: Section, run: Run) -> None:
    started = time.monotonic()
    status = 0
    try:
        section.run(run)
    except Exception:
        run.failed(section.name)
        status = 1
    seconds = round(time.monotonic() - started, 1)
    run._write({"kind": "fact", "name": "seconds", "value": seconds})
    os._exit(status)  # at once: threads of an engine that failed are waited for otherwise


def _await(child: BaseProcess, path: Path, started: float, until: float) -> Outcome:
    child.join(max(0.0, until + GRACE_SECONDS - time.monotonic()))
    status: Status = "done" if child.exitcode == 0 else "failed"
    if child.is_alive():
        status = "killed"
        child.kill()
        child.join()
    if status != "done":
        print(f"  {child.name}: {status} (exit status {child.exitcode})", file=sys.stderr)
    records = read_records(path)
    own = [float(str(r["value"])) for r in records if r.get("name") == "seconds"]
    return Outcome(status, own[0] if own else time.monotonic() - started, records)


def read_records(path: Path) -> list[Record]:
    """All whole lines; a killed writer's last one may not be."""
    records: list[Record] = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
