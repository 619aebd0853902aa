"""What the prefix cache saves, through HTTP: one run, ratios, on SmolLM2 unless told otherwise.

    python benchmarks/prefix.py            everything, about half an hour on two cores
    python benchmarks/prefix.py --tiny     a quick look on a small random model

Time to first token behind a cached prefix against a fresh one; a ten-turn agent loop against the
ideal that a cache of full blocks has (see cases/agent_loop.py), as token ids and as chats; and the
head of a recorded conversation trace, whose 512-token blocks become blocks of --tokens-per-hash
random tokens, against a simulated cache without end: in a pool that holds it all, in one that is
too small, and in that one with a host tier behind it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import click

from branchline.benchmarks.cases import agent_loop, conversation, document, replays, ttft
from branchline.benchmarks.cases.client import Client
from branchline.benchmarks.cases.subject import (
    Subject,
    default_subject,
    own_subject,
    random_subject,
)
from branchline.benchmarks.peers import servers

PARTS = ("ttft", "agent", "replay")
CONCURRENCY = 4
"""Requests of the replay that are under way at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured; token counts unless named otherwise."""

    prefix_tokens: int = 1500
    question_tokens: int = 16
    num_rounds: int = 7
    num_turns: int = 10
    first_tokens: int = 400
    turn_tokens: int = 60
    answer_tokens: int = 40
    num_requests: int = 400
    tokens_per_hash: int = 16
    block_size: int = 16
    scarce_share: float = 0.25


TINY = Sizes(
    prefix_tokens=600,
    num_rounds=3,
    num_turns=6,
    first_tokens=60,
    turn_tokens=18,
    answer_tokens=12,
    tokens_per_hash=4,
    block_size=4,
)
"""For a context of 1,024 tokens."""


@click.command()
@click.option("--model", help="A model directory of your own; default: SmolLM2.")
@click.option("--lora", "loras", multiple=True, metavar="NAME=PATH", help="Its adapters.")
@click.option("--tiny", is_flag=True, help="A one-layer random model, everything smaller.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Default: all parts.")
@click.option("--rounds", "num_rounds", type=click.IntRange(1), help="Fresh prefixes a model.")
@click.option("--requests", "num_requests", type=click.IntRange(2, 400), help="Of the trace.")
@click.option("--tokens-per-hash", type=click.IntRange(1), help="In place of the trace's 512.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results file.")
def main(
    model: str | None,
    loras: tuple[str, ...],
    tiny: bool,
    only: tuple[str, ...],
    json_path: Path | None,
    **given: int | None,
) -> None:
    """Measure, print a line a figure, and write the results as JSON."""
    stated = {name: value for name, value in given.items() if value is not None}
    sizes = replace(TINY if tiny else Sizes(), **stated)
    with tempfile.TemporaryDirectory() as directory:
        subject = choose_subject(model, loras, tiny, Path(directory))
        results = measure(subject, sizes, only or PARTS, Path(directory) / "log")
    found = document.heading(subject.name) | {"sizes": asdict(sizes)} | results
    document.save("prefix", json_path, found)


def choose_subject(
    model: str | None, loras: tuple[str, ...], tiny: bool, directory: Path
) -> Subject:
    """What the command line asks to have served."""
    if model:
        return own_subject(model, loras)
    return random_subject(directory, num_layers=1) if tiny else default_subject(directory)


def measure(subject: Subject, sizes: Sizes, parts: Collection[str], log: Path) -> dict[str, object]:
    """The parts asked for, each of a server's life; a failed request ends it all."""
    results: dict[str, object] = {}
    block_size = ("--block-size", str(sizes.block_size))
    if {"ttft", "agent"} & set(parts):
        with servers.serving(subject.server(*block_size), log) as peer:
            results |= asyncio.run(measure_prefixes(peer.url, subject, sizes, parts))
    if "replay" in parts:
        results["replay"] = measure_replays(subject, sizes, log)
    return results


async def measure_prefixes(
    url: str, subject: Subject, sizes: Sizes, parts: Collection[str]
) -> dict[str, object]:
    """Time to first token, and agent loops, of every model served."""
    results: dict[str, object] = {}
    async with Client(url).session() as client:
        if "ttft" in parts:
            click.echo(f"\ntime to first token, {sizes.prefix_tokens} tokens of prefix")
            results["time_to_first_token"] = await first_tokens(client, subject, sizes)
        if "agent" in parts:
            click.echo(f"\nagent loop, {sizes.num_turns} turns")
            results["agent_loop"] = await agent_loops(client, subject, sizes)
    return results


async def first_tokens(client: Client, subject: Subject, sizes: Sizes) -> dict[str, object]:
    """Cold and cached, by model."""
    plan = ttft.TtftPlan(
        prefix_tokens=sizes.prefix_tokens,
        question_tokens=sizes.question_tokens,
        num_rounds=sizes.num_rounds,
        vocab_size=subject.config.vocab_size,
        ending=subject.generation_prompt,
    )
    results: dict[str, object] = {}
    for model in subject.models:
        rounds = await ttft.measure_ttft(client, model, plan)
        ttft.echo(model, rounds)
        results[model] = ttft.summary(rounds) | {"rounds": [asdict(one) for one in rounds]}
    return results


async def agent_loops(client: Client, subject: Subject, sizes: Sizes) -> list[object]:
    """Token ids and chats, by model."""
    plan = agent_loop.AgentPlan(
        num_turns=sizes.num_turns,
        first_tokens=sizes.first_tokens,
        turn_tokens=sizes.turn_tokens,
        answer_tokens=sizes.answer_tokens,
        vocab_size=subject.config.vocab_size,
        block_size=sizes.block_size,
        generation_prompt=subject.generation_prompt,
    )
    results: list[object] = []
    for model, (kind, run) in product(subject.models, agent_loop.KINDS.items()):
        turns = await run(client, model, plan, subject.invocation(model))
        agent_loop.echo(model, kind, turns)
        found = {"model": model, "kind": kind, **agent_loop.summary(turns)}
        results.append(found | {"turns": [asdict(turn) for turn in turns]})
    return results


def measure_replays(subject: Subject, sizes: Sizes, log: Path) -> list[object]:
    """The trace's head on a fresh server for each pool."""
    requests = conversation.read_trace(conversation.TRACE, sizes.num_requests)
    vocab_size = subject.config.vocab_size
    prompts = conversation.prompts_of(requests, sizes.tokens_per_hash, vocab_size)
    click.echo(f"\nreplay of {len(prompts)} prompts, {sizes.tokens_per_hash} tokens a hash id")
    results: list[object] = []
    for pool in replays.pools(prompts, sizes.block_size, CONCURRENCY, sizes.scarce_share):
        flags = pool_flags(subject, pool, sizes.block_size, max(map(len, prompts)))
        with servers.serving(subject.server(*flags), log) as peer:
            result = asyncio.run(replay_through(peer.url, prompts, pool, sizes.block_size))
        replays.echo(result)
        results.append(asdict(result) | {"of_infinite": result.of_infinite})
    return results


def pool_flags(subject: Subject, pool: replays.Pool, block_size: int, longest: int) -> list[str]:
    """A server's flags for this memory; the context is what the longest prompt needs."""
    # One block more is never handed out.
    device = subject.kv_gib((pool.num_blocks + 1) * block_size)
    flags = ["--block-size", str(block_size), "--max-model-len", str(longest + 1)]
    flags += ["--kv-cache-gb", repr(device)]
    if pool.host_blocks:
        flags += ["--kv-offload-gb", repr(subject.kv_gib(pool.host_blocks * block_size))]
    return flags


async def replay_through(
    url: str, prompts: Sequence[Sequence[int]], pool: replays.Pool, block_size: int
) -> replays.Replay:
    """One replay with a client of its own."""
    async with Client(url).session() as client:
        return await replays.replay(client, prompts, pool, block_size, CONCURRENCY)


if __name__ == "__main__":
    main()
