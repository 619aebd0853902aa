"""One batch of requests that want tokens, logprobs of their prompts, and vectors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_kinds import INVOCATION, KINDS
from oracle import Reference
from tiny_models import VOCAB_SIZE, make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, Pooling, SamplingParams, TokenOutput

ADAPTERS = (
    "rank 8",
    "saved norms",
    "embed, head, linears",
    "added tokens",
    "fewer tokens",
    "alora",
)
"""Low-rank pairs, a final norm, tables, another vocabulary, and one that begins within a prompt."""

MAX_TOKENS = 6
NUM_TOP = 3


@dataclass(frozen=True)
class Served:
    """A model and its adapters, for us and for PEFT."""

    model: Path
    adapters: dict[str, Path]
    reference: Reference


def serve(
    directory: Path, family: str, kinds: Sequence[str] = ADAPTERS, **overrides: Any
) -> Served:
    """A tiny model, and adapters of these kinds as far as the family can have them."""
    model = make_tiny_model(directory / "model", family, **overrides)
    adapters = {
        kind: KINDS[kind].make(model, directory / str(number), number)
        for number, kind in enumerate(kinds)
        if family in KINDS[kind].families
    }
    return Served(model, adapters, Reference(model, adapters))


def start(served: Served, **options: object) -> EngineLoop:
    """An engine in this process, in float32."""
    sources = tuple(AdapterSource(digest=n, path=str(p)) for n, p in served.adapters.items())
    fixed = {"dtype": "float32", "device": "cpu", "kv_cache_gb": 0.02, "num_threads": 1}
    room = {"max_loras": 8, "adapter_memory_gb": 0.05}
    options = {"model": str(served.model), **room, **fixed, **options}
    return build_engine(EngineConfig(adapters=sources, **options))


def prompt_for(adapter: str | None, length: int, seed: int) -> list[int]:
    """Random tokens; those that the adapter adds, and its invocation, are among them."""
    numbers = random.Random(seed)
    prompt = [numbers.randrange(256) for _ in range(length)]
    if adapter is None:
        return prompt
    if KINDS[adapter].new_tokens > 0:
        prompt = [*prompt[:1], VOCAB_SIZE + 2, VOCAB_SIZE, *prompt[1:]]
    if KINDS[adapter].is_activated:
        prompt = [*prompt[: length // 2], *INVOCATION, *prompt[length // 2 :]]
    return prompt


def request(
    request_id: str,
    prompt: list[int],
    adapter: str | None = None,
    pooling: Pooling | None = None,
    **params: object,
) -> GenerationRequest:
    """A greedy request of a few tokens, unless told otherwise."""
    fixed = {"temperature": 0.0, "seed": 1, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**fixed, **params}),
        adapter=adapter,
        pooling=pooling,
    )


def mixed_requests(served: Served, longest: int = 24) -> list[GenerationRequest]:
    """Of each adapter and the base one that only generates, and one of each other wish."""
    numbers = random.Random(9)
    found: list[GenerationRequest] = []
    for adapter in [None, *served.adapters]:
        for wish in ("tokens", "logprobs", "scored", "mean", "last"):
            number = len(found)
            prompt = prompt_for(adapter, numbers.randint(2, longest), number)
            generation = request(f"{number} {wish} {adapter}", prompt, adapter)
            if wish == "logprobs":
                generation = with_params(generation, prompt_logprobs=NUM_TOP)
            elif wish == "scored":
                generation = with_params(generation, prompt_logprobs=0, max_tokens=0)
            elif wish != "tokens":
                generation = replace(generation, pooling=wish)
            found.append(generation)
    numbers.shuffle(found)
    return found


def with_params(generation: GenerationRequest, **params: object) -> GenerationRequest:
    """The same request with other sampling parameters."""
    return replace(generation, params=replace(generation.params, **params))


def run(loop: EngineLoop, generations: Sequence[GenerationRequest]) -> dict[str, list[TokenOutput]]:
    """All outputs by request id; nothing may fail, and every step leaves the engine in order."""
    outputs: dict[str, list[TokenOutput]] = {each.request_id: [] for each in generations}
    for generation in generations:
        assert not loop.add(generation)
    while loop.has_work:
        for output in loop.step():
            assert output.finish_reason != "error", output.error
            outputs[output.request_id].append(output)
        loop.check()
    assert all(each[-1].finish_reason is not None for each in outputs.values())
    return outputs


def tokens_of(outputs: dict[str, list[TokenOutput]]) -> dict[str, list[int]]:
    """Tokens by request id."""
    return {name: [t for each in found for t in each.token_ids] for name, found in outputs.items()}
