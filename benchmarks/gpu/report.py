"""The results file, written again after each section, and the table of goals for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from branchline.benchmarks.cases.goals import Goal

from .sections import Options, Outcome

LOAD = "B=64 L=2048"
OF_BASE = "throughput of base"

GOALS: tuple[tuple[str, str, float], ...] = (
    (f"decode {LOAD}, base: share of the byte limit", "at least", 0.85),
    (f"decode {LOAD}, 1 x r16: {OF_BASE}", "at least", 0.93),
    (f"decode {LOAD}, 64 x r16: {OF_BASE}", "at least", 0.77),
    (f"decode {LOAD}, 64 x r64: {OF_BASE}", "at least", 0.54),
    (f"decode {LOAD}, base, adapters loaded: {OF_BASE}", "at least", 0.99),
    (f"prefill 2048 tokens, 1 x r16: {OF_BASE}", "at least", 0.90),
    (f"prefill 2048 tokens, 4 x r16: {OF_BASE}", "at least", 0.90),
    ("hot load of r16: added to the p99 of other requests' steps", "at most", 1.0),
    ("hot load of r16: from host memory to ready, median", "at most", 5.0),
)
"""Of Llama-3.1-8B in bfloat16 on one H200; ratios are to our own base without adapters."""

GOALS_SHAPE = "8b"


@dataclass(slots=True)
class Report:
    """All that a run has found so far."""

    options: Options
    command: str
    path: Path | None
    directory: Path
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all checks that were made hold."""
        return all(outcome.ok for outcome in self.outcomes.values())

    @property
    def card(self) -> str:
        """The device's name, once it has been read."""
        for outcome in self.outcomes.values():
            for record in outcome.records:
                if record.get("name") == "card":
                    return str(record["value"])
        return self.options.device

    def write(self, outcomes: dict[str, Outcome], seconds: float) -> None:
        """Take in what is there and replace the file, whole."""
        self.outcomes, self.seconds = dict(outcomes), seconds
        if self.path is None:
            self.path = self.directory / f"gpu-{slug(self.card)}-{today()}.json"
        document = {
            "command": self.command,
            "date": today(),
            "card": self.card,
            "options": asdict(self.options),
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "goals": [goal.figures() for goal in self.goals()],
            "sections": {
                name: {
                    "status": outcome.status,
                    "ok": outcome.ok,
                    "seconds": round(outcome.seconds, 1),
                    "records": outcome.records,
                }
                for name, outcome in self.outcomes.items()
            },
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(document, indent=2) + "\n")
        os.replace(partial, self.path)

    def figures(self) -> Mapping[str, float]:
        """Everything measured, by name."""
        return {
            str(record["name"]): float(str(record["value"]))
            for outcome in self.outcomes.values()
            for record in outcome.records
            if record["kind"] == "figure"
        }

    def goals(self) -> list[Goal]:
        """Goals whose figure was measured, on the shape and the kind of device they are for."""
        if self.options.shape != GOALS_SHAPE or self.options.device != "cuda":
            return []
        figures = self.figures()
        return [
            Goal(name, figures[name], "at least" if side == "at least" else "at most", bound)
            for name, side, bound in GOALS
            if name in figures
        ]

    def summary(self) -> str:
        """For people: what is wrong, then each goal and its figure."""
        lines = [""]
        for name, outcome in self.outcomes.items():
            checks = [record for record in outcome.records if record["kind"] == "check"]
            wrong = [str(record["name"]) for record in checks if not record["ok"]]
            verdict = f"{len(checks)} checks, {len(wrong)} wrong" if checks else ""
            lines.append(f"{name:<16}{outcome.status:<9}{outcome.seconds:>6.0f} s   {verdict}")
            lines += [f"    WRONG: {what}" for what in wrong]
        if "decode" not in self.outcomes:
            return "\n".join([*lines, "", self._verdict()])
        lines += ["", f"goals (Llama-3.1-8B, bfloat16, one H200; here: {self.card})"]
        reached = {goal.what: goal for goal in self.goals()}
        for what, side, bound in GOALS:
            goal = reached.get(what)
            measured = f"{'not measured':>12}" if goal is None else f"{goal.value:>12.3f}"
            verdict = "" if goal is None else "met" if goal.is_met else "MISSED"
            lines.append(f"  {what:<62}{measured}   {side} {bound:<6g}{verdict}")
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        state = "all checks hold" if self.ok else "CHECKS FAILED"
        return f"{state}; {self.seconds:.0f} s; written to {self.path}"


def slug(name: str) -> str:
    """A name fit for a file: lower case, dashes."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()
