"""A thousand adapters through room for 64, beside the same requests over 64 adapters."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import click
from tqdm import tqdm

from .adapter_files import AdapterStore
from .adapter_reference import Reference
from .adapter_server import Server
from .adapter_traffic import (
    Planned,
    Served,
    first_tokens,
    folded,
    name_of,
    plan,
    send_all,
    tokens_per_second,
    zipf,
)
from .client import RequestError
from .goals import Goal
from .tenants import Shape

Memory = dict[str, dict[str, int]]
"""Bytes: the processes' ("resident"), and what adapters hold of them ("adapters")."""

PARALLEL_PUTS = 4
COUNTERS = {
    "device_loads": "branchline:adapter_loads_total",
    "evictions": "branchline:adapter_evictions_total",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyPlan:
    """``num_adapters`` on one server, ``num_hot`` on the other, ``num_requests`` a run.

    Before that each adapter is asked once, and then ``num_warmup`` requests as they will come.
    ``concurrency`` requests are under way at once, more than fit in a batch.
    """

    num_adapters: int
    num_hot: int
    exponent: float
    num_warmup: int
    num_requests: int
    num_rounds: int
    concurrency: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Run:
    """One server's answers to a round's requests, and what it did for them."""

    server: str
    served: list[Served]
    counts: dict[str, int]
    resident: dict[str, int]
    cpu_seconds: dict[str, float]

    def figures(self) -> dict[str, object]:
        """For a results file."""
        distinct = {one.planned.adapter for one in self.served}
        return {
            "server": self.server,
            "tokens_per_second": tokens_per_second(self.served),
            "time_to_first_token": asdict(first_tokens(self.served)),
            "num_distinct_adapters": len(distinct),
            **self.counts,
            "resident": self.resident,
            "cpu_seconds": self.cpu_seconds,
        }


async def register(server: Server, store: AdapterStore, num_adapters: int) -> None:
    """Put adapters 0 to ``num_adapters``, a few at once."""
    numbers = iter(range(num_adapters))
    with tqdm(total=num_adapters, desc=server.name, disable=None) as bar:

        async def one_after_another() -> None:
            for number in numbers:
                await server.admin.put(name_of(number), store.path(number))
                bar.update()

        await asyncio.gather(*(one_after_another() for _ in range(PARALLEL_PUTS)))


async def measure_many(
    many: Server, few: Server, config: ManyPlan
) -> tuple[dict[str, object], list[Served]]:
    """Both servers' figures, and all answers of the one with many adapters."""
    warmup = _warmup(config)
    answered = await send_all(many.client, warmup, config.shape, config.concurrency)
    hot = folded(warmup, config.num_hot)
    await send_all(few.client, hot, config.shape, config.concurrency)
    before = {server.name: await _memory(server) for server in (many, few)}
    runs: list[Run] = []
    for number in range(config.num_rounds):
        requests = _planned(config, config.num_requests, number)
        runs.append(await _run(many, requests, config))
        runs.append(await _run(few, folded(requests, config.num_hot), config))
        _echo(number, *runs[-2:])
    for run in runs[::2]:
        answered += run.served
    after = {server.name: await _memory(server) for server in (many, few)}
    results = {"runs": [run.figures() for run in runs], "before": before, "after": after}
    growth = {name: _resident(after[name]) / _resident(before[name]) for name in before}
    return results | summary(runs, growth[many.name], growth[few.name]), answered


def _planned(config: ManyPlan, num_requests: int, seed: object) -> list[Planned]:
    adapters = zipf(config.num_adapters, num_requests, config.exponent, seed)
    return plan(adapters, config.shape, seed)


def _warmup(config: ManyPlan) -> list[Planned]:
    """Every adapter once, so that all memory has been used, then the traffic to come."""
    everyone = plan(range(config.num_adapters), config.shape, "everyone")
    return everyone + _planned(config, config.num_warmup, "warm-up")


async def _run(server: Server, requests: Sequence[Planned], config: ManyPlan) -> Run:
    before, cpu_before = await server.admin.metrics(), server.cpu_seconds()
    served = await send_all(server.client, requests, config.shape, config.concurrency)
    after, cpu_after = await server.admin.metrics(), server.cpu_seconds()
    counts = {key: int(after[name] - before[name]) for key, name in COUNTERS.items()}
    cpu = {role: seconds - cpu_before[role] for role, seconds in cpu_after.items()}
    return Run(server.name, served, counts, server.resident_bytes(), cpu)


async def _memory(server: Server) -> Memory:
    return {"resident": server.resident_bytes(), "adapters": await server.admin.memory()}


def _resident(memory: Memory) -> int:
    return memory["resident"]["all"]


def summary(runs: Sequence[Run], many_growth: float, few_growth: float) -> dict[str, object]:
    """The ratio of throughput within each round, and that of RSS, from before to after, of both.

    Of both, for RSS grows without adapters too: oneDNN keeps what it makes for each size of step.
    """
    pairs = zip(runs[::2], runs[1::2], strict=True)
    ratios = [tokens_per_second(a.served) / tokens_per_second(b.served) for a, b in pairs]
    click.echo(f"RSS, after / before: {many_growth:.3f} with many, {few_growth:.3f} with few")
    goals = [
        Goal("throughput, many adapters / few", median(ratios), "at least", 0.9),
        Goal("growth of RSS, many / few", many_growth / few_growth, "at most", 1.05),
    ]
    for goal in goals:
        click.echo(goal.line())
    growths = {"many": many_growth, "few": few_growth}
    return {
        "ratios": ratios,
        "resident_after_over_before": growths,
        "goals": [goal.figures() for goal in goals],
    }


def _echo(number: int, many: Run, few: Run) -> None:
    for run in (many, few):
        first = first_tokens(run.served)
        click.echo(
            f"round {number + 1}  {run.server:<14} {tokens_per_second(run.served):8.1f} tokens/s"
            f"   first token p50 {first.p50 * 1000:6.0f} ms  p99 {first.p99 * 1000:6.0f} ms"
            f"   {run.counts['device_loads']:4} loads   {run.cpu_seconds['all']:5.1f} s of CPU"
        )


def check(served: Sequence[Served], reference: Reference, store: AdapterStore) -> dict[str, int]:
    """Hold every answer against its adapter's reference, and one of each against another's.

    Raises RequestError for a wrong one, and where right and wrong could not be told apart.
    """
    answers = defaultdict(list)
    for one in served:
        answers[one.planned.adapter].append(one.answer)
    numbers, others_right = sorted(answers), 0
    other = numbers[-1]
    for number in tqdm(numbers, desc="checking", disable=None):
        with reference.merged(store.path(number)):
            right = reference.are_right(answers[number])
            others_right += other != number and reference.are_right(answers[other][:1])[0]
        if not all(right):
            wrong = len(right) - sum(right)
            raise RequestError(f"{wrong} of {len(right)} answers of {name_of(number)} are wrong")
        other = number
    if others_right * 10 > len(numbers):
        raise RequestError(f"{others_right} answers would be right for another adapter too")
    click.echo(f"{len(served)} answers of {len(numbers)} adapters: all are their reference's")
    return {
        "num_adapters": len(numbers),
        "num_answers": len(served),
        "right_for_another": others_right,
    }
