"""Replay of a trace through HTTP, beside what caches of the same blocks would have found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from .client import Client
from .conversation import num_distinct_blocks, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A server's memory for KV, in blocks; ``host_blocks`` is the tier behind the device's."""

    name: str
    num_blocks: int
    host_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One replay: prompt tokens, those found, and the seconds that it took.

    ``infinite`` and ``least_recently_used`` are the tokens that simulated caches find: one without
    end, and one of the pool's size that drops what was unused for longest.
    """

    pool: Pool
    prompt_tokens: int
    cached_tokens: int
    infinite: int
    least_recently_used: int
    seconds: float

    @property
    def of_infinite(self) -> float:
        """Tokens found as a share of the infinite cache's."""
        return self.cached_tokens / self.infinite if self.infinite else 0.0


def pools(
    prompts: Sequence[Sequence[int]], block_size: int, concurrency: int, scarce_share: float
) -> list[Pool]:
    """One that holds every prompt, one that holds ``scarce_share`` of them, that one with a tier.

    The tier has room for all that the second one can't keep.
    """
    distinct = num_distinct_blocks(prompts, block_size)
    longest = max(map(len, prompts)) // block_size + 2
    ample = distinct + concurrency * longest
    scarce = max(int(scarce_share * distinct), concurrency * longest)
    return [
        Pool(name="all fits", num_blocks=ample),
        Pool(name="too small", num_blocks=scarce),
        Pool(name="host tier", num_blocks=scarce, host_blocks=distinct),
    ]


async def replay(
    client: Client, prompts: Sequence[Sequence[int]], pool: Pool, block_size: int, concurrency: int
) -> Replay:
    """Send the prompts in their order, ``concurrency`` at once, each for one token.

    What the trace's answers were is not recorded: a later prompt holds them as blocks of its own.
    """
    waiting = iter(prompts)
    start = time.perf_counter()
    counts = await asyncio.gather(*(_worker(client, waiting) for _ in range(concurrency)))
    seconds = time.perf_counter() - start
    return Replay(
        pool=pool,
        prompt_tokens=sum(map(len, prompts)),
        cached_tokens=sum(counts),
        infinite=sum(simulate(prompts, block_size)),
        least_recently_used=sum(simulate(prompts, block_size, pool.num_blocks)),
        seconds=seconds,
    )


async def _worker(client: Client, waiting: Iterator[Sequence[int]]) -> int:
    num_cached = 0
    for prompt in waiting:
        num_cached += (await client.complete("base", prompt, max_tokens=1)).num_cached_tokens
    return num_cached


def echo(result: Replay) -> None:
    """One line for people."""
    total = result.prompt_tokens
    click.echo(
        f"{result.pool.name:<10} {result.pool.num_blocks:6d} blocks"
        f" + {result.pool.host_blocks:6d} on the host: found {result.cached_tokens / total:6.2%}"
        f" of {total} tokens, {result.of_infinite:6.1%} of an infinite cache's"
        f" (LRU in simulation {result.least_recently_used / max(result.infinite, 1):.1%}),"
        f" {result.seconds:.1f} s"
    )
