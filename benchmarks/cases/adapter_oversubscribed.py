"""Twice as many adapters in use as the device has room for, beside enough room for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import click

from .adapter_server import Server
from .adapter_traffic import Served, first_tokens, plan, send_all, send_at, uniform
from .goals import Goal
from .tenants import Shape, arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class OversubscribedPlan:
    """``num_adapters`` in use, each as much as any other, and device room for half of them.

    Requests come at a steady pace of ``load`` times what the server with enough room can answer
    when ``concurrency`` requests are always under way.
    """

    num_adapters: int
    num_saturating: int
    concurrency: int
    load: float
    seconds: float
    num_rounds: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of traffic on one server."""

    server: str
    served: list[Served]
    num_loads: int

    @property
    def p50(self) -> float:
        """Median seconds to the first token."""
        return first_tokens(self.served).p50

    def figures(self) -> dict[str, object]:
        """For a results file."""
        return {
            "server": self.server,
            "num_requests": len(self.served),
            "num_loads": self.num_loads,
            "time_to_first_token": asdict(first_tokens(self.served)),
        }


async def measure_oversubscribed(
    enough: Server, half: Server, config: OversubscribedPlan
) -> dict[str, object]:
    """What the server can do, then both at the same moments, in turns."""
    for server in (half, enough):  # the second run is warm
        rate = await _capacity(server, config)
    click.echo(f"with enough room the server answers {rate:.1f} such requests a second")
    phases: list[Phase] = []
    for number in range(config.num_rounds):
        phases.append(await _phase(enough, config, rate * config.load, number))
        phases.append(await _phase(half, config, rate * config.load, number))
        _echo(number, *phases[-2:])
    return {
        "requests_per_second_at_most": rate,
        "phases": [phase.figures() for phase in phases],
        **summary(phases),
    }


async def _capacity(server: Server, config: OversubscribedPlan) -> float:
    """Requests a second, once all adapters have been asked."""
    for seed, count in (("warm-up", config.num_adapters), ("full", config.num_saturating)):
        requests = plan(uniform(config.num_adapters, count, seed), config.shape, seed)
        served = await send_all(server.client, requests, config.shape, config.concurrency)
    start = min(one.answer.started for one in served)
    return len(served) / (max(one.answer.ended for one in served) - start)


async def _phase(server: Server, config: OversubscribedPlan, rate: float, number: int) -> Phase:
    moments = arrivals(rate, config.seconds, f"round {number}")
    adapters = uniform(config.num_adapters, len(moments), number)
    requests = plan(adapters, config.shape, f"round {number}")
    before = await _num_loads(server)
    served = await send_at(server.client, requests, config.shape, moments)
    return Phase(server.name, served, await _num_loads(server) - before)


async def _num_loads(server: Server) -> int:
    return int((await server.admin.metrics())["branchline:adapter_loads_total"])


def summary(phases: Sequence[Phase]) -> dict[str, object]:
    """The ratio within each round; phases are by turns with enough room and with half of it."""
    ratios = [half.p50 / enough.p50 for enough, half in zip(phases[::2], phases[1::2], strict=True)]
    goal = Goal("p50 time to first token, half the room / enough", median(ratios), "at most", 2.0)
    click.echo(goal.line())
    return {"ratios": ratios, "goals": [goal.figures()]}


def _echo(number: int, *phases: Phase) -> None:
    for phase in phases:
        first = first_tokens(phase.served)
        click.echo(
            f"round {number + 1}  {phase.server:<12} {len(phase.served):4} requests"
            f"   first token p50 {first.p50 * 1000:6.1f} ms  p99 {first.p99 * 1000:6.1f} ms"
            f"   {phase.num_loads:4} loads"
        )
