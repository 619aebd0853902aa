"""What the phases of the fairness benchmark say, as ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import click

from branchline.server.bench.report import Percentiles, percentiles

from .phases import FLOOD, NINE, POLICIES, WEIGHTS, Phase
from .tenants import Window


def figures(phases: Sequence[Phase], policy: str) -> dict[str, object]:
    """What the flood did to the nine under one policy.

    Rates are medians over the rounds, their ratio within each; first-token times are those of all
    rounds together.
    """
    alone, flooded = (
        [phase.window for phase in phases if (phase.policy, phase.with_flood) == (policy, flood)]
        for flood in (False, True)
    )
    kept = [
        b.output_rate(*NINE) / a.output_rate(*NINE) for a, b in zip(alone, flooded, strict=True)
    ]
    before, after = first_tokens(alone), first_tokens(flooded)
    return {
        "nine_tokens_per_second_alone": median(w.output_rate(*NINE) for w in alone),
        "nine_tokens_per_second_flooded": median(w.output_rate(*NINE) for w in flooded),
        "nine_kept": median(kept),
        "first_token_alone": asdict(before),
        "first_token_flooded": asdict(after),
        "p50_ratio": after.p50 / before.p50,
        "p99_ratio": after.p99 / before.p99,
        "all_tokens_per_second_flooded": median(w.output_rate(FLOOD, *NINE) for w in flooded),
    }


def first_tokens(windows: Sequence[Window]) -> Percentiles:
    """Of the nine, over several windows; seconds."""
    times = [moment for window in windows for moment in window.first_token_times(*NINE)]
    found = percentiles(times)
    if found is None:
        raise click.ClickException("the nine sent nothing: raise --seconds or --load")
    return found


def total_ratio(phases: Sequence[Phase]) -> float:
    """Tokens a second of all ten with the flood, fair to first come; median over the rounds."""
    fair, fcfs = (
        [p.window.output_rate(FLOOD, *NINE) for p in phases if p.with_flood and p.policy == policy]
        for policy in POLICIES
    )
    return median(a / b for a, b in zip(fair, fcfs, strict=True))


def by_weight(window: Window) -> dict[str, dict[str, float]]:
    """Each weighted tenant's share of the tokens, and how far it is from its weight's."""
    total, weights = window.output_tokens(*WEIGHTS), sum(WEIGHTS.values())
    found: dict[str, dict[str, float]] = {}
    for name, weight in WEIGHTS.items():
        share, due = window.output_tokens(name) / total, weight / weights
        found[name] = {"weight": weight, "share": share, "due": due, "error": share / due - 1}
    return found


def report(results: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = ["", f"{'the nine, with the flood / without it':<40}{'fair':>10}{'fcfs':>10}"]
    for label, key in (
        ("tokens/s", "nine_kept"),
        ("p50 time to first token", "p50_ratio"),
        ("p99 time to first token", "p99_ratio"),
    ):
        cells = "".join(f"{results[policy][key]:>9.2f}x" for policy in POLICIES)
        lines.append(f"  {label:<38}{cells}")
    lines += ["", f"tokens/s of all ten, fair / fcfs: {results['fair_over_fcfs_tokens']:.3f}"]
    lines += [
        f"weight {found['weight']}: {found['share']:.1%} of the tokens, {found['due']:.1%} due"
        f" ({found['error']:+.1%})"
        for found in results["weights"].values()
    ]
    return "\n".join(lines)
