"""The phases of the fairness benchmark: who sends what to which server, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import click

from branchline.server.bench.report import percentiles

from .tenants import Shape, Tenant, Window, arrivals

FLOOD = "flood"
NINE = tuple(f"tenant{number}" for number in range(1, 10))
WEIGHTS = {"light": 1, "medium": 2, "heavy": 4}
POLICIES = ("fair", "fcfs")


Tenants = Mapping[str, Tenant]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sizes of it all; each phase counts from ``warmup_seconds`` to ``seconds``."""

    rounds: int
    seconds: float
    load: float
    outstanding: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_threads: int
    shape: Shape

    @property
    def warmup_seconds(self) -> float:
        """At the start of a phase: until the flood is there and the batch full."""
        return self.seconds / 5


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of traffic on one server."""

    policy: str
    with_flood: bool
    window: Window


async def run_phases(by_policy: Mapping[str, Tenants], plan: Plan, rate: float) -> list[Phase]:
    """Every policy, without the flood and with it, in an order that rotates."""
    cases = list(product(POLICIES, (False, True)))
    phases: list[Phase] = []
    for number in range(plan.rounds):
        # The same moments in all phases of a round: what differs is the flood and the policy.
        moments = {name: arrivals(rate, plan.seconds, f"{number} {name}") for name in NINE}
        for policy, with_flood in cases[number % 4 :] + cases[: number % 4]:
            window = await run_phase(by_policy[policy], moments, plan, with_flood)
            phases.append(Phase(policy, with_flood, window))
            echo_phase(number + 1, phases[-1])
    return phases


async def run_phase(
    tenants: Tenants, moments: Mapping[str, Sequence[float]], plan: Plan, with_flood: bool
) -> Window:
    """The nine, and the flood until the last of them is answered."""
    start = time.perf_counter()
    end = start + plan.seconds
    nine = asyncio.gather(*(tenants[name].behave(moments[name], start) for name in NINE))

    def goes_on() -> bool:
        now = time.perf_counter()
        return now < end or (not nine.done() and now < end + plan.seconds)

    flood = tenants[FLOOD].flood(plan.outstanding if with_flood else 0, goes_on)
    *behaved, flooded = await asyncio.gather(*(nine, flood))
    served = [one for part in behaved[0] for one in part] + flooded
    return Window(start + plan.warmup_seconds, end, served)


async def run_floods(tenants: Tenants, names: Sequence[str], plan: Plan) -> Window:
    """Some tenants who all want more than they can have.

    Only the second half counts: who came first is ahead, until the others have had theirs.
    """
    start = time.perf_counter()
    end = start + plan.seconds
    floods = [
        tenants[name].flood(plan.outstanding, lambda: time.perf_counter() < end) for name in names
    ]
    parts = await asyncio.gather(*floods)
    served = [one for part in parts for one in part]
    return Window(start + plan.seconds / 2, end, served)


def echo_phase(number: int, phase: Phase) -> None:
    """One line for people while it runs."""
    window = phase.window
    first = percentiles(window.first_token_times(*NINE))
    times = f"p50 {first.p50 * 1000:7.0f} ms  p99 {first.p99 * 1000:7.0f} ms" if first else "-"
    flood = "with flood" if phase.with_flood else "without"
    click.echo(
        f"round {number}  {phase.policy:<5} {flood:<11} nine {window.output_rate(*NINE):7.1f}"
        f" tokens/s  {times}   all {window.output_rate(FLOOD, *NINE):7.1f} tokens/s"
    )
