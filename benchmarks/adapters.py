"""Adapters that come and go, through HTTP: many, too many, under streams, and cold.

    python benchmarks/adapters.py             all four cases, about twenty minutes on two cores
    python benchmarks/adapters.py --quick     a look at all of them in a minute, no figures
    python benchmarks/adapters.py --only churn

many: 1,000 adapters of ranks 4 to 64, asked by a zipf law, in device and host memory for 64,
against the same requests over 64 adapters on a server with the same memory. Closed loop, more
requests than seats. Every answer of the many is checked against transformers.
oversubscribed: 16 adapters in use and device room for 8, against room for 16: the same requests at
the same moments, at half of the rate that the server can answer.
churn: eight endless streams, with a loop of loads, replaces and unloads beside them and without;
as a control, with a process that only computes. Every answer must be that of one version, which
could give it then. Prompts are short: those of a new version are computed anew, however it came,
and the prefill of longer ones would be measured instead of the loads.
cold: from a put to its answer, and from a request to its first token by where its adapter is.

Figures are ratios within one run. A failed request, a wrong answer or memory that does not come
back ends it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from branchline.benchmarks.cases import document
from branchline.benchmarks.cases.adapter_churn import ChurnPlan, measure_churn
from branchline.benchmarks.cases.adapter_cold import ColdPlan, measure_cold
from branchline.benchmarks.cases.adapter_files import AdapterStore, ModelSize, make_model
from branchline.benchmarks.cases.adapter_many import ManyPlan, check, measure_many, register
from branchline.benchmarks.cases.adapter_oversubscribed import (
    OversubscribedPlan,
    measure_oversubscribed,
)
from branchline.benchmarks.cases.adapter_reference import Reference
from branchline.benchmarks.cases.adapter_server import Server, Sizes, connected
from branchline.benchmarks.cases.adapter_streams import judge
from branchline.benchmarks.cases.adapter_traffic import Served
from branchline.benchmarks.cases.subject import Subject
from branchline.benchmarks.cases.tenants import Shape
from branchline.benchmarks.peers.servers import Peer, serving

T = TypeVar("T")

Results = dict[str, object]

VOCAB_SIZE = 2000
SHAPE = Shape(input_tokens=48, output_tokens=32, vocab_size=VOCAB_SIZE)
KV = ("--kv-cache-gb", "0.125")
SMALL_KV = ("--kv-cache-gb", "0.03")
"""Small enough to be full before memory is compared: the cached prefixes of every version stay."""

CHURN_ADAPTERS = 32
"""Room for twice what is ever there at once while adapters come and go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sizes of it all.

    A step is small: on a CPU, oneDNN keeps what it makes for each number of tokens in a step, and
    only when it has met them all does RSS say anything of adapters.
    """

    model: ModelSize
    many: ManyPlan
    oversubscribed: OversubscribedPlan
    churn: ChurnPlan
    cold: ColdPlan
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 128
    num_threads: int = 1

    def with_rounds(self, num_rounds: int) -> Plan:
        """The same with as many rounds of each case."""
        return replace(
            self,
            many=replace(self.many, num_rounds=num_rounds),
            oversubscribed=replace(self.oversubscribed, num_rounds=num_rounds),
            churn=replace(self.churn, num_rounds=num_rounds),
            cold=replace(self.cold, num_rounds=num_rounds),
        )


FULL = Plan(
    model=ModelSize(vocab_size=VOCAB_SIZE),
    many=ManyPlan(
        num_adapters=1000,
        num_hot=64,
        exponent=1.0,
        num_warmup=200,
        num_requests=600,
        num_rounds=5,
        concurrency=48,
        shape=SHAPE,
    ),
    oversubscribed=OversubscribedPlan(
        num_adapters=16,
        num_saturating=300,
        concurrency=32,
        load=0.5,
        seconds=20.0,
        num_rounds=5,
        shape=SHAPE,
    ),
    churn=ChurnPlan(
        num_rounds=3,
        num_each=50,
        quiet_seconds=8.0,
        shape=replace(SHAPE, input_tokens=8, output_tokens=64),
    ),
    cold=ColdPlan(num_rounds=10, shape=replace(SHAPE, output_tokens=4)),
)

SHORT = replace(SHAPE, input_tokens=12, output_tokens=8)
QUICK = Plan(
    model=ModelSize(hidden_size=128, intermediate_size=256, num_layers=2, vocab_size=VOCAB_SIZE),
    many=replace(
        FULL.many,
        num_adapters=48,
        num_hot=16,
        num_warmup=16,
        num_requests=48,
        num_rounds=1,
        concurrency=8,
        shape=SHORT,
    ),
    oversubscribed=replace(
        FULL.oversubscribed,
        num_saturating=32,
        concurrency=8,
        seconds=1.0,
        num_rounds=1,
        shape=SHORT,
    ),
    churn=ChurnPlan(num_rounds=2, num_each=2, quiet_seconds=0.5, shape=SHORT),
    cold=ColdPlan(num_rounds=1, shape=SHORT),
)
"""For a look at whether it works."""


class Bench:
    """One run's model, adapters and servers, all in one directory."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.model = make_model(directory / "base", plan.model)
        self.store = AdapterStore(directory / "adapters", plan.model)
        self.subject = Subject(name=plan.model.name, path=self.model, adapters={}, dtype="float32")

    def flags(self, name: str) -> list[str]:
        """What every server has; each keeps its state in a directory of its own."""
        return [
            *("--adapter-root", str(self.store.root)),
            *("--num-threads", str(self.plan.num_threads)),
            *("--max-num-seqs", str(self.plan.max_num_seqs)),
            *("--max-num-batched-tokens", str(self.plan.max_num_batched_tokens)),
            *("--state-dir", str(self.state(name))),
        ]

    def state(self, name: str) -> Path:
        """The state directory of a server."""
        return self.directory / f"state of {name}"

    async def on(
        self, flags: Mapping[str, Sequence[str]], measure: Callable[..., Awaitable[T]]
    ) -> T:
        """Have a server of each name and flags, and measure on them."""
        with ExitStack() as stack:
            peers: dict[str, Peer] = {}
            for name, own in flags.items():
                log = self.directory / f"{name}.log"
                peer = self.subject.server(*self.flags(name), *own)
                peers[name] = stack.enter_context(serving(peer, log))
            async with AsyncExitStack() as connections:
                servers = [
                    await connections.enter_async_context(connected(peer, name))
                    for name, peer in peers.items()
                ]
                return await measure(*servers)

    async def sizes(self) -> Sizes:
        """What adapters take, on a server with room for anything."""
        return await self.on({"sizes": KV}, lambda server: Sizes.read(server.admin, self.store))


async def run_many(bench: Bench, sizes: Sizes) -> Results:
    """A thousand adapters, and 64, in the same memory."""
    config = bench.plan.many
    room = sizes.room_for(range(config.num_hot))
    names = {f"{config.num_adapters} adapters": config.num_adapters}
    names |= {f"{config.num_hot} adapters": config.num_hot}

    async def measure(many: Server, few: Server) -> tuple[Results, list[Served]]:
        for server in (many, few):
            await register(server, bench.store, names[server.name])
        return await measure_many(many, few, config)

    results, served = await bench.on({name: [*KV, *room.flags()] for name in names}, measure)
    checked = check(served, Reference(bench.model), bench.store)
    return {"plan": asdict(config), "room": asdict(room), "checked": checked} | results


async def run_oversubscribed(bench: Bench, sizes: Sizes) -> Results:
    """Sixteen adapters in device room for all of them, and for eight."""
    config = bench.plan.oversubscribed
    enough = sizes.room_for(range(config.num_adapters))
    half = enough.half()

    async def measure(roomy: Server, tight: Server) -> Results:
        for server in (roomy, tight):
            await register(server, bench.store, config.num_adapters)
        return await measure_oversubscribed(roomy, tight, config)

    flags = {"enough room": [*KV, *enough.flags()], "half of it": [*KV, *half.flags()]}
    results = await bench.on(flags, measure)
    rooms = {"enough": asdict(enough), "half": asdict(half)}
    return {"plan": asdict(config), "rooms": rooms} | results


async def run_churn(bench: Bench, sizes: Sizes) -> Results:
    """Streams beside changes, with room for all."""
    config = bench.plan.churn
    room = sizes.room_for(range(CHURN_ADAPTERS))
    results, lines = await bench.on(
        {"churn": [*SMALL_KV, *room.flags()]},
        lambda server: measure_churn(server, bench.store, config),
    )
    judged = judge(lines, Reference(bench.model), bench.store)
    click.echo(
        f"{judged['num_answers']} answers, each of one version alone"
        f" ({judged['num_by_reference']} by the reference's logits)"
    )
    return {"plan": asdict(config), "room": asdict(room), "judged": judged} | results


async def run_cold(bench: Bench, sizes: Sizes) -> Results:
    """One adapter at a time, in room for all."""
    config, room = bench.plan.cold, sizes.room_for(range(CHURN_ADAPTERS))
    results = await bench.on(
        {"cold": [*KV, *room.flags()]},
        lambda server: measure_cold(server, bench.store, bench.state("cold"), config),
    )
    return {"plan": asdict(config), "shapes": results}


CASES = {
    "many": run_many,
    "oversubscribed": run_oversubscribed,
    "churn": run_churn,
    "cold": run_cold,
}


@click.command()
@click.option("--quick", is_flag=True, help="Everything small: no figures, only whether it works.")
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Default: all.")
@click.option("--adapters", type=click.IntRange(2, 4000), help="Of the many.  [default: 1000]")
@click.option("--rounds", type=click.IntRange(1, 100), help="Of each case.")
@click.option("--num-threads", type=click.IntRange(1), default=1, help="CPU threads of an engine.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(
    quick: bool,
    only: tuple[str, ...],
    adapters: int | None,
    rounds: int | None,
    num_threads: int,
    json_path: Path | None,
) -> None:
    """Measure, print every ratio beside its goal, and write the results as JSON."""
    plan = replace(QUICK if quick else FULL, num_threads=num_threads)
    if adapters is not None:
        plan = replace(plan, many=replace(plan.many, num_adapters=adapters))
    if rounds is not None:
        plan = plan.with_rounds(rounds)
    with tempfile.TemporaryDirectory(prefix="branchline-bench-") as directory:
        results = asyncio.run(measure(Bench(plan, Path(directory)), only or tuple(CASES)))
    common = {
        "num_threads": num_threads,
        "max_num_seqs": plan.max_num_seqs,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
    }
    document.save("adapters", json_path, document.heading(plan.model.name) | common | results)


async def measure(bench: Bench, cases: Sequence[str]) -> Results:
    """The cases asked for, each on servers of its own."""
    sizes = await bench.sizes()
    results: Results = {}
    for name in cases:
        click.echo(f"\n{name}")
        results[name] = await CASES[name](bench, sizes)
    return results


if __name__ == "__main__":
    main()
