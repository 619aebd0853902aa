"""Where requests go and what that is worth: a recorded conversation trace on four replicas.

    python benchmarks/routing.py                    everything, some minutes on one core
    python benchmarks/routing.py --requests 2000    its beginning

A simulation, not a measurement: discrete events in one process, no model. Simulated are the
replicas (routing_sim/machine.py says what a step takes and from which figures, replica.py how
prompts in chunks and decodes share steps, caches.py what is kept) and the way of a request, which
takes no time. Real are the router, its policies, the index of prefix keys and the view of the
fleet with its accounting of what is on the way; they are told loads and keys as late as Redis
would tell them (beats every 250 ms, looks every 150 ms). Generated tokens are not reused.

The trace is Mooncake's (data/README.md). Its time stamps come in steps of 3 s, over which requests
are spread at random; it has no tenants, so a prompt's second block is hashed to one of 200 with
zipf shares, each with an adapter of its own and sharing prefixes with nobody. The trace's times
are divided by a load's speed.

Rivals are their published rules, written anew (routing_sim/rivals.py). Rules marked "told" get our
index; the others remember what they sent where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from branchline.benchmarks.cases import document
from branchline.benchmarks.cases.goals import Goal
from branchline.benchmarks.routing_sim import subjects, traffic
from branchline.benchmarks.routing_sim.decisions import decision_microseconds
from branchline.benchmarks.routing_sim.figures import Figures, figures_of
from branchline.benchmarks.routing_sim.machine import Machine
from branchline.benchmarks.routing_sim.simulation import Simulation

NUM_REPLICAS = 4
FLEET_SIZE = 50
"""Replicas that one decision chooses from when it is timed."""
ROOM = 1.5
"""Where all fits, a replica holds its share of the trace's blocks this many times."""


@dataclass(frozen=True, slots=True)
class Case:
    """A load and a memory; ``fits``: the fleet's caches together hold everything."""

    name: str
    speed: float
    fits: bool = False


CASES = (Case("light", 1.5), Case("busy", 2.0), Case("busy, all fits", 2.0, fits=True))


@click.command()
@click.option("--requests", "num_requests", type=click.IntRange(100, 12_031), default=12_031)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(num_requests: int, json_path: Path | None) -> None:
    """Simulate, print a line a policy, and write the results as JSON."""
    cases, rows = measure(num_requests)
    goals = goals_of(rows)
    costs = decision_microseconds(FLEET_SIZE, num_decisions=300)
    goals.append(Goal(f"microseconds to choose of {FLEET_SIZE}", costs[subjects.OURS], *CHEAP))
    click.echo()
    for goal in goals:
        click.echo(goal.line())
    found = document.heading("simulated") | {
        "kind": "simulation",
        "machine_model": asdict(Machine()),
        "cases": cases,
        "decision": {"num_replicas": FLEET_SIZE, "microseconds": costs},
        "goals": [goal.figures() for goal in goals],
    }
    document.save("routing", json_path, found)


Rows = Mapping[str, Mapping[str, Figures]]


def measure(num_requests: int) -> tuple[list[dict[str, object]], Rows]:
    """Every case with every policy: for the file, and as figures by case and row."""
    cases: list[dict[str, object]] = []
    rows: dict[str, dict[str, Figures]] = {}
    for case in CASES:
        plan = traffic.Traffic(num_requests=num_requests, speed=case.speed)
        requests = traffic.read_requests(plan)
        infinite = traffic.infinite_hit_rate(requests)
        machine = machine_for(case, requests)
        click.echo(
            f"\n{case.name}: {len(requests)} requests at {case.speed} x their speed, "
            f"{machine.num_blocks} blocks a replica; a cache without end hits {infinite:.1%}"
        )
        rows[case.name] = found = simulate(machine, requests)
        cases.append(
            {"case": asdict(case), "traffic": asdict(plan), "num_blocks": machine.num_blocks}
            | {"infinite_hit_rate": infinite}
            | {"rows": {name: asdict(figures) for name, figures in found.items()}}
        )
        rows[case.name]["infinite"] = replace(found[subjects.OURS], hit_rate=infinite)
    return cases, rows


def machine_for(case: Case, requests: Sequence[traffic.SimRequest]) -> Machine:
    """With the memory that the case asks for."""
    if not case.fits:
        return Machine()
    return Machine(num_blocks=int(ROOM * traffic.num_distinct_blocks(requests) / NUM_REPLICAS))


def simulate(machine: Machine, requests: Sequence[traffic.SimRequest]) -> dict[str, Figures]:
    """A run of each row."""
    found = {}
    for name, setup in subjects.setups(machine).items():
        setup = replace(setup, num_replicas=NUM_REPLICAS)
        found[name] = figures_of(Simulation(setup, requests).run())
        click.echo(f"{name:<22} {found[name].line()}")
    return found


def goals_of(rows: Rows) -> list[Goal]:
    """What the rule has to show in each case."""
    goals = []
    for case, found in rows.items():
        ours = found[subjects.OURS]
        others = [one for name, one in found.items() if name not in OWN_ROWS]
        best = min(one.mean_ttft for one in others)
        ratio = found[subjects.ROUND_ROBIN].mean_ttft / ours.mean_ttft
        three, blind = found[subjects.OURS_THREE], found[subjects.OURS_BLIND]
        goals += [
            Goal(f"{case}: round robin's mean TTFT over ours", ratio, "at least", 2),
            Goal(f"{case}: our mean TTFT over the best other's", ours.mean_ttft / best, *WITHIN),
            Goal(f"{case}: hits lost with three gateways", ours.hit_rate - three.hit_rate, *POINTS),
            Goal(f"{case}: cold over adapter-blind", ours.cold_share / blind.cold_share, *HALF),
        ]
        if "fits" in case:
            share = ours.hit_rate / found["infinite"].hit_rate
            goals.append(Goal(f"{case}: hits of an infinite cache's", share, "at least", 0.95))
    return goals


OWN_ROWS = (subjects.OURS, subjects.OURS_THREE, subjects.OURS_BLIND, "infinite")
WITHIN = ("at most", 1.05)
POINTS = ("at most", 0.02)
HALF = ("at most", 0.5)
CHEAP = ("at most", 100)


if __name__ == "__main__":
    main()
