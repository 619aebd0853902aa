"""Time to first token behind a long prefix: computed, and found in the cache."""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import median

import click

from .client import Answer, Client
from .subject import FIRST_PLAIN_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class TtftPlan:
    """``num_rounds`` fresh prefixes, each asked two different questions.

    Prompts are random token ids of one length, so that a round's two requests differ only in
    whether their prefix is there already. ``ending`` closes every prompt.
    """

    prefix_tokens: int
    question_tokens: int
    num_rounds: int
    vocab_size: int
    ending: list[int]


@dataclass(frozen=True, slots=True)
class Round:
    """The same prefix twice; seconds, and prompt tokens that the server had of each."""

    cold_seconds: float
    cached_seconds: float
    cold_cached_tokens: int
    cached_tokens: int

    @property
    def ratio(self) -> float:
        """How many times sooner the first token comes."""
        return self.cold_seconds / self.cached_seconds


async def measure_ttft(client: Client, model: str, plan: TtftPlan) -> list[Round]:
    """All rounds, after one that does not count."""
    generator = random.Random(f"prefixes for {model}")
    rounds = [await _round(client, model, plan, generator) for _ in range(plan.num_rounds + 1)]
    return rounds[1:]


async def _round(client: Client, model: str, plan: TtftPlan, generator: random.Random) -> Round:
    prefix = random_tokens(generator, plan.prefix_tokens, plan.vocab_size)

    async def ask() -> Answer:
        question = random_tokens(generator, plan.question_tokens, plan.vocab_size)
        return await client.complete(model, prefix + question + plan.ending, max_tokens=1)

    cold, cached = await ask(), await ask()
    return Round(
        cold.time_to_first_token,
        cached.time_to_first_token,
        cold.num_cached_tokens,
        cached.num_cached_tokens,
    )


def random_tokens(generator: random.Random, count: int, vocab_size: int) -> list[int]:
    """Token ids without the special ones."""
    return [generator.randrange(FIRST_PLAIN_TOKEN, vocab_size) for _ in range(count)]


def summary(rounds: list[Round]) -> dict[str, float]:
    """Medians over the rounds, the ratio within each."""
    return {
        "cold_seconds": median(one.cold_seconds for one in rounds),
        "cached_seconds": median(one.cached_seconds for one in rounds),
        "cold_over_cached": median(one.ratio for one in rounds),
        "cached_tokens": median(one.cached_tokens for one in rounds),
    }


def echo(model: str, rounds: list[Round]) -> None:
    """One line for people."""
    figures = summary(rounds)
    click.echo(
        f"{model:<10} cold {figures['cold_seconds'] * 1000:8.1f} ms   "
        f"cached {figures['cached_seconds'] * 1000:7.1f} ms   "
        f"{figures['cold_over_cached']:6.1f}x   {figures['cached_tokens']:.0f} tokens found"
    )
