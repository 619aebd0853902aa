"""Tenants as traffic: those that behave send at moments fixed beforehand, one floods."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, takewhile

from .client import Answer, Client
from .ttft import random_tokens


@dataclass(frozen=True, slots=True)
class Shape:
    """Every request's size in tokens; its ids stay below ``vocab_size``."""

    input_tokens: int
    output_tokens: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Served:
    """One answered request and whose it was."""

    tenant: str
    answer: Answer


class Tenant:
    """One API key's traffic; no two of its prompts begin alike."""

    def __init__(self, name: str, client: Client, shape: Shape) -> None:
        self.name = name
        self._client = client
        self._shape = shape
        self._generator = random.Random(f"prompts of {name}")

    async def send(self) -> Served:
        """One request, to its end."""
        shape = self._shape
        prompt = random_tokens(self._generator, shape.input_tokens, shape.vocab_size)
        answer = await self._client.complete("base", prompt, shape.output_tokens)
        return Served(self.name, answer)

    async def flood(self, outstanding: int, goes_on: Callable[[], bool]) -> list[Served]:
        """Keep ``outstanding`` requests under way as long as ``goes_on`` says so."""

        async def one_after_another() -> list[Served]:
            served = []
            while goes_on():
                served.append(await self.send())
            return served

        parts = await asyncio.gather(*(one_after_another() for _ in range(outstanding)))
        return [one for part in parts for one in part]

    async def behave(self, moments: Sequence[float], start: float) -> list[Served]:
        """A request at each of the moments, whether or not earlier ones are answered."""

        async def later(moment: float) -> Served:
            await asyncio.sleep(start + moment - time.perf_counter())
            return await self.send()

        return await asyncio.gather(*(later(moment) for moment in moments))


def arrivals(rate: float, seconds: float, seed: object) -> list[float]:
    """A steady pace of ``rate`` a second: each gap is half to one and a half times the mean."""
    generator = random.Random(f"arrivals {seed}")
    # The first comes anywhere in its gap, or all tenants would begin together.
    gaps = chain([generator.random()], (generator.uniform(0.5, 1.5) for _ in count()))
    moments = accumulate(gap / rate for gap in gaps)
    return list(takewhile(lambda moment: moment < seconds, moments))


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the clock, and what the tenants got in it."""

    start: float
    end: float
    served: list[Served]

    def output_tokens(self, *tenants: str) -> int:
        """Tokens that came inside it for these tenants."""
        return sum(
            num_tokens
            for one in self.served
            if one.tenant in tenants
            for moment, num_tokens in one.answer.arrivals
            if self.start <= moment < self.end
        )

    def output_rate(self, *tenants: str) -> float:
        """Those tokens a second."""
        return self.output_tokens(*tenants) / (self.end - self.start)

    def first_token_times(self, *tenants: str) -> list[float]:
        """Seconds to the first token of each request that was sent inside it."""
        return [
            one.answer.time_to_first_token
            for one in self.served
            if one.tenant in tenants and self.start <= one.answer.started < self.end
        ]
