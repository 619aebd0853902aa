"""What deciding costs, without a model, on one core: medians in microseconds.

    python benchmarks/control_plane.py

Planning and taking in a step with 256 requests running and 2,000 waiting, of 1, 10 and 500
tenants: with requests ending and starting in each step, and with decodes alone. And the way of a
prompt of 32,768 tokens through the prefix cache: found behind 64 branches, and new in a full pool,
where growing is evicting.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import click

from branchline.benchmarks.cases import document
from branchline.benchmarks.cases.steps import Load, SteadyScheduler
from branchline.benchmarks.cases.tree import Forest, LongPrompts, TreeCost

NUM_TENANTS = (1, 10, 500)
TRAFFIC = {"turnover": 64, "decodes alone": None}
"""Tokens of an answer: with 64, four of 256 requests end in each step."""


@click.command()
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="Prompts.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(steps: int, rounds: int, json_path: Path | None) -> None:
    """Measure, print a line a figure, and write the results as JSON."""
    results = document.heading("none")
    results["steps"] = measure_steps(Load(), steps)
    results["prompts"] = measure_prompts(Forest(), rounds)
    document.save("control-plane", json_path, results)


def measure_steps(load: Load, num_steps: int) -> list[dict[str, object]]:
    """Every number of tenants, with turnover and without."""
    click.echo(f"{load.num_running} running, {load.num_waiting} waiting; microseconds, median")
    results: list[dict[str, object]] = []
    for num_tenants in NUM_TENANTS:
        for traffic, answer_tokens in TRAFFIC.items():
            case = replace(load, num_tenants=num_tenants, answer_tokens=answer_tokens)
            costs = SteadyScheduler(case).steps(num_steps)
            figures = {
                "schedule": microseconds(cost.schedule for cost in costs),
                "apply": microseconds(cost.apply for cost in costs),
            }
            click.echo(
                f"{num_tenants:4d} tenants  {traffic:<14}  schedule {figures['schedule']:7.0f}"
                f"   apply {figures['apply']:7.0f}"
            )
            results.append({**asdict(case), "traffic": traffic, "microseconds": figures})
    return results


def measure_prompts(forest: Forest, num_rounds: int) -> dict[str, object]:
    """A long prompt that is there, and long prompts that are new."""
    click.echo(f"\na prompt of {forest.prompt_tokens} tokens; microseconds, median")
    prompts = LongPrompts(forest)
    kinds = {"found": prompts.found(num_rounds), "new": prompts.fresh(num_rounds)}
    results: dict[str, object] = {**asdict(forest)}
    for kind, costs in kinds.items():
        figures = by_stage(list(costs))
        line = "   ".join(f"{stage} {value:7.0f}" for stage, value in figures.items())
        click.echo(f"{kind:<6} {line}")
        results[kind] = figures
    return results


def by_stage(costs: list[TreeCost]) -> dict[str, float]:
    """The median of each stage."""
    stages = asdict(costs[0])
    return {stage: microseconds(getattr(cost, stage) for cost in costs) for stage in stages}


def microseconds(seconds: Iterable[float]) -> float:
    """Their median."""
    return median(seconds) * 1e6


if __name__ == "__main__":
    main()
