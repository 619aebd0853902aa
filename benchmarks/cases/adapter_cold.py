"""How long until an adapter can be asked, and until it answers, from each tier."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from .adapter_files import SHAPES, AdapterStore, shape_of
from .adapter_server import Server
from .client import RequestError
from .tenants import Shape
from .ttft import random_tokens

TIERS = ("disk", "disk_cached", "host", "device")
"""``disk`` is a file that is not in the machine's page cache, ``disk_cached`` one that is."""

COLD_SHAPES = (0, 1, 6, 14)
"""Numbers of the shapes that are measured: small, middling, and rank 64 in both kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdPlan:
    """``num_rounds`` adapters of each shape, one after the other, with nothing else to do."""

    num_rounds: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Round:
    """One adapter: seconds of its put, and to the first token by where it was then."""

    put: float
    disk: float
    disk_cached: float
    host: float
    device: float


async def measure_cold(
    server: Server, store: AdapterStore, state: Path, config: ColdPlan
) -> dict[str, object]:
    """All shapes, with nothing else to do; ``state`` is the server's state directory."""
    results: dict[str, object] = {}
    for shape in COLD_SHAPES:
        numbers = [shape + len(SHAPES) * number for number in range(config.num_rounds + 1)]
        rounds = [await _round(server, store, state, number, config) for number in numbers]
        name = shape_of(shape).name
        results[name] = _summary(name, rounds[1:])  # the first one warms everything up
    return results


async def _round(
    server: Server, store: AdapterStore, state: Path, number: int, config: ColdPlan
) -> Round:
    path, name = store.path(number), f"cold{number}"
    started = time.perf_counter()
    entry = await server.admin.put(name, path)
    seconds = {"put": time.perf_counter() - started}
    for tier, away in zip(TIERS, ("host", "host", "device", None), strict=True):
        if away is not None:
            await server.admin.evict(name, away)
        if tier == "disk":
            forget_pages(state, entry.digest)
        found = (await server.admin.get(name)).tier
        if found != tier.removesuffix("_cached"):
            raise RequestError(f"{name} should be in tier {tier}, and is in {found}")
        seconds[tier] = await _first_token(server, name, f"{number} {tier}", config.shape)
    await server.admin.delete(name)
    return Round(**seconds)


def forget_pages(state: Path, digest: str) -> None:
    """Have the machine drop a formatted file from its page cache."""
    (path,) = state.rglob(f"{digest}.adapter")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _first_token(server: Server, name: str, seed: str, shape: Shape) -> float:
    """Of a prompt that the prefix cache does not know."""
    prompt = random_tokens(random.Random(seed), shape.input_tokens, shape.vocab_size)
    return (await server.client.complete(name, prompt, shape.output_tokens)).time_to_first_token


def _summary(name: str, rounds: Sequence[Round]) -> dict[str, object]:
    medians = {key: median(getattr(one, key) for one in rounds) for key in ("put", *TIERS)}
    cells = "".join(f"   {key} {seconds * 1000:7.1f} ms" for key, seconds in medians.items())
    click.echo(f"{name:<24}{cells}")
    return medians | {"rounds": [asdict(one) for one in rounds]}
