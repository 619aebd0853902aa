"""Ten tenants on one server, through HTTP: nine behave, one floods, and what the nine notice.

    python benchmarks/fairness.py     about six minutes on two cores
    python benchmarks/fairness.py --layers 1 --seconds 5 --rounds 1

Two servers of one random Llama, one scheduling fairly and one first come, first served, are up at
once and take turns. What they can answer is measured first; the nine then send --load of it
between them, at the same moments in every phase, with and without a tenant beside them that keeps
--outstanding requests under way. In the end three tenants of weights 1, 2 and 4 flood together.
Figures are ratios: the nine with the flood to the nine without it, fair to first come.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from branchline.benchmarks.cases import document, shares
from branchline.benchmarks.cases.client import Client
from branchline.benchmarks.cases.phases import (
    FLOOD,
    NINE,
    POLICIES,
    WEIGHTS,
    Plan,
    run_floods,
    run_phases,
)
from branchline.benchmarks.cases.subject import random_subject
from branchline.benchmarks.cases.tenants import Shape, Tenant
from branchline.benchmarks.peers import servers


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(1), default=30.0, help="Of a phase.  [default: 30]"
)
@click.option("--load", type=click.FloatRange(0.1, 0.9), default=0.6, help="Of the nine, together.")
@click.option("--outstanding", type=click.IntRange(1, 512), default=64, help="Of each flood.")
@click.option("--max-num-seqs", type=click.IntRange(1), default=16, show_default=True)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--num-threads", type=click.IntRange(1), default=1, help="CPU threads of an engine.")
@click.option("--input-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--layers", type=click.IntRange(1), default=8, show_default=True, help="Of the model."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(
    layers: int, input_tokens: int, output_tokens: int, json_path: Path | None, **given: Any
) -> None:
    """Measure, print a line a figure, and write the results as JSON."""
    with tempfile.TemporaryDirectory() as directory:
        subject = replace(random_subject(Path(directory), layers), adapters={})
        shape = Shape(input_tokens, output_tokens, subject.config.vocab_size)
        plan = Plan(shape=shape, **given)
        with ExitStack() as stack:
            urls: dict[str, str] = {}
            for policy in POLICIES:
                peer = subject.server(*server_flags(policy, plan))
                log = Path(directory) / f"{policy}.log"
                urls[policy] = stack.enter_context(servers.serving(peer, log)).url
            results = asyncio.run(measure(urls, plan))
    document.save("fairness", json_path, document.heading(subject.name) | results)


def server_flags(policy: str, plan: Plan) -> list[str]:
    """One policy's server, which knows every tenant by a key."""
    flags = ["--scheduling-policy", policy, "--num-threads", str(plan.num_threads)]
    flags += ["--max-num-seqs", str(plan.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(plan.max_num_batched_tokens)]
    for name in (FLOOD, *NINE, *WEIGHTS):
        flags += ["--tenant", f"{name}={key_of(name)}"]
    for name, weight in WEIGHTS.items():
        flags += ["--tenant-weight", f"{name}={weight}"]
    return flags


def key_of(tenant: str) -> str:
    """The API key of a tenant."""
    return f"key-of-{tenant}"


@asynccontextmanager
async def tenants_at(url: str, plan: Plan) -> AsyncIterator[dict[str, Tenant]]:
    """All tenants of one server, each with connections and a key of its own."""
    async with AsyncExitStack() as stack:
        tenants: dict[str, Tenant] = {}
        for name in (FLOOD, *NINE, *WEIGHTS):
            client = await stack.enter_async_context(Client(url, key_of(name)).session())
            tenants[name] = Tenant(name, client, plan.shape)
        yield tenants


async def measure(urls: Mapping[str, str], plan: Plan) -> dict[str, object]:
    """What the server can do, the phases in turns, the three weights; the figures of all."""
    async with AsyncExitStack() as stack:
        by_policy = {
            policy: await stack.enter_async_context(tenants_at(url, plan))
            for policy, url in urls.items()
        }
        full = await run_floods(by_policy["fair"], [FLOOD], plan)
        capacity = full.output_rate(FLOOD) / plan.shape.output_tokens
        click.echo(f"the server answers {capacity:.2f} such requests a second")
        phases = await run_phases(by_policy, plan, plan.load * capacity / len(NINE))
        weighted = await run_floods(by_policy["fair"], list(WEIGHTS), plan)
    results = {"plan": asdict(plan), "requests_per_second": capacity}
    results |= {policy: shares.figures(phases, policy) for policy in POLICIES}
    results["fair_over_fcfs_tokens"] = shares.total_ratio(phases)
    results["weights"] = shares.by_weight(weighted)
    click.echo(shares.report(results))
    return results


if __name__ == "__main__":
    main()
