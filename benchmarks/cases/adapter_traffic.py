"""Requests to numbered adapters: planned beforehand, sent at a pace or as fast as they are done."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from branchline.server.bench.report import Percentiles, percentiles

from .client import Answer, Client
from .tenants import Shape
from .ttft import random_tokens

Names = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to send, by the number of its adapter."""

    adapter: int
    prompt: list[int]


@dataclass(frozen=True, slots=True)
class Served:
    """An answered request."""

    planned: Planned
    answer: Answer


def name_of(number: int) -> str:
    """What a client calls an adapter."""
    return f"tenant{number:04}"


def zipf(num_adapters: int, num_requests: int, exponent: float, seed: object) -> list[int]:
    """Adapter numbers, the n-th most wanted ``n ** exponent`` times as rare as the first."""
    weights = [1 / place**exponent for place in range(1, num_adapters + 1)]
    generator = random.Random(f"adapters {seed}")
    return generator.choices(range(num_adapters), weights, k=num_requests)


def uniform(num_adapters: int, num_requests: int, seed: object) -> list[int]:
    """Adapter numbers, each as often as any other."""
    return zipf(num_adapters, num_requests, 0.0, seed)


def plan(adapters: Sequence[int], shape: Shape, seed: object) -> list[Planned]:
    """A request for each of these, with a prompt of its own."""
    generator = random.Random(f"prompts {seed}")
    return [
        Planned(number, random_tokens(generator, shape.input_tokens, shape.vocab_size))
        for number in adapters
    ]


def folded(planned: Sequence[Planned], num_adapters: int) -> list[Planned]:
    """The same requests over fewer adapters, whose number divides by that of the shapes."""
    return [Planned(one.adapter % num_adapters, one.prompt) for one in planned]


async def send(client: Client, planned: Planned, shape: Shape) -> Served:
    """One request, to its end."""
    model = name_of(planned.adapter)
    return Served(planned, await client.complete(model, planned.prompt, shape.output_tokens))


async def send_all(
    client: Client, planned: Sequence[Planned], shape: Shape, concurrency: int
) -> list[Served]:
    """Keep ``concurrency`` requests under way until all are answered."""
    waiting, served = iter(planned), []

    async def one_after_another() -> None:
        for one in waiting:
            served.append(await send(client, one, shape))

    await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    return served


async def send_at(
    client: Client, planned: Sequence[Planned], shape: Shape, moments: Sequence[float]
) -> list[Served]:
    """Each request at its moment, whether or not earlier ones are answered."""
    start = time.perf_counter()

    async def later(one: Planned, moment: float) -> Served:
        await asyncio.sleep(start + moment - time.perf_counter())
        return await send(client, one, shape)

    return await asyncio.gather(*map(later, planned, moments))


def tokens_per_second(served: Sequence[Served]) -> float:
    """Output tokens, from the first request sent to the last one answered."""
    start = min(one.answer.started for one in served)
    end = max(one.answer.ended for one in served)
    return sum(len(one.answer.token_ids) for one in served) / (end - start)


def first_tokens(served: Sequence[Served]) -> Percentiles:
    """Seconds to the first token."""
    found = percentiles([one.answer.time_to_first_token for one in served])
    assert found is not None, "a run has requests"
    return found


def gaps(answers: Sequence[Answer], start: float, end: float) -> list[float]:
    """Seconds between events of one answer, of those that ended within the window."""
    return [
        after - before
        for answer in answers
        for (before, _), (after, _) in pairwise(answer.arrivals)
        if start <= after < end
    ]
