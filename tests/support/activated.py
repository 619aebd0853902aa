"""Tiny activated adapters behind a whole engine in this process, and PEFT beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oracle import Reference, check_generation
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams

BLOCK_SIZE = 16
NUM_WORDS = 200
"""Prompts are of the ids below; the invocations are of others. ``LOUD``'s is one that it says."""

KV_BYTES_PER_TOKEN = 2 * 4 * 4 * 16 * 4
"""Of the tiny Llama in float32: keys and values, layers, heads, their size."""

SHOUT, QUIET, LOUD, PLAIN, TWIN = "shout", "quiet", "loud", "plain", "twin"
INVOCATIONS = {SHOUT: [201, 202, 203], QUIET: [210], LOUD: [234]}


@dataclass(frozen=True, slots=True)
class Served:
    """A model and its adapters, for us and for PEFT."""

    model: Path
    adapters: dict[str, Path]
    reference: Reference


def serve(directory: Path, family: str) -> Served:
    """Three activated adapters, a plain one, and ``TWIN``: the weights of ``SHOUT`` as a plain one.

    ``QUIET`` takes several pages and ``LOUD`` adapts attention alone.
    """
    model = make_tiny_model(directory / "model", family)
    kinds = {
        SHOUT: {"rank": 8, "seed": 1},
        QUIET: {"rank": 24, "seed": 2, "use_rslora": True},
        LOUD: {"rank": 16, "seed": 3, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        PLAIN: {"rank": 16, "seed": 4},
        TWIN: {"rank": 8, "seed": 1},
    }
    adapters = {
        name: make_adapter(
            model, directory / name, alora_invocation_tokens=INVOCATIONS.get(name), **kind
        )
        for name, kind in kinds.items()
    }
    return Served(model, adapters, Reference(model, adapters))


def start(served: Served, **options: object) -> EngineLoop:
    sources = tuple(AdapterSource(digest=n, path=str(p)) for n, p in served.adapters.items())
    fixed = {"dtype": "float32", "device": "cpu", "kv_cache_gb": 0.02, "block_size": BLOCK_SIZE}
    room = {"num_threads": 1, "adapter_memory_gb": 0.05}
    options = {"model": str(served.model), **room, **fixed, **options}
    return build_engine(EngineConfig(adapters=sources, **options))


def words(count: int, seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(NUM_WORDS) for _ in range(count)]


def request(
    name: str, prompt: Sequence[int], adapter: str | None, max_tokens: int = 12
) -> GenerationRequest:
    params = SamplingParams(temperature=0, seed=0, max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(
        request_id=name, prompt_token_ids=list(prompt), params=params, adapter=adapter
    )


@dataclass(slots=True)
class Answer:
    """What a request got, and how much of its prompt was in the prefix cache."""

    token_ids: list[int]
    num_cached_tokens: int = 0


def generate(loop: EngineLoop, generations: Sequence[GenerationRequest]) -> dict[str, Answer]:
    """Run to the end, checking the engine's books after every step."""
    answers = {generation.request_id: Answer([]) for generation in generations}
    for generation in generations:
        loop.add(generation)
    while loop.has_work:
        for output in loop.step():
            assert output.finish_reason != "error", output.error
            answer = answers[output.request_id]
            answer.token_ids += output.token_ids
            answer.num_cached_tokens = max(answer.num_cached_tokens, output.num_cached_tokens)
        loop.check()
    return answers


def check_all(
    served: Served, generations: Sequence[GenerationRequest], answers: dict[str, Answer]
) -> None:
    for generation in generations:
        check_generation(
            served.reference,
            generation.prompt_token_ids,
            answers[generation.request_id].token_ids,
            generation.adapter,
            generation.params,
        )


def whole_blocks(num_tokens: int, block_size: int) -> int:
    """Tokens in the full blocks before a position."""
    return num_tokens // block_size * block_size
