"""Adapters that are more than low-rank pairs, served: one engine, few places, tokens as peft's."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapter_kinds import INVOCATION, KINDS
from engine_run import check_generations, generate_all
from oracle import Reference
from tiny_models import VOCAB_SIZE, make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.errors import RequestError
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams

SERVED = (
    "rank 8",
    "dora",
    "lora_bias",
    "embed, head, linears",
    "saved embed, head",
    "saved norms",
    "token rows, dora",
    "added tokens",
    "fewer tokens",
    "alora, saved norms",
)
MORE, FEWER = "added tokens", "fewer tokens"


@dataclass(frozen=True)
class Served:
    model: Path
    adapters: dict[str, Path]
    reference: Reference


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    directory = tmp_path_factory.mktemp(request.param)
    model = make_tiny_model(directory / "model", request.param)
    adapters = {
        kind: KINDS[kind].make(model, directory / str(number), number)
        for number, kind in enumerate(SERVED)
    }
    return Served(model, adapters, Reference(model, adapters))


@pytest.fixture(scope="module")
def loop(served: Served) -> EngineLoop:
    """An engine with room for all of them; nothing stays in it from one test to the next."""
    return start(served, enable_prefix_caching=False)


def start(served: Served, **options: object) -> EngineLoop:
    sources = tuple(AdapterSource(digest=n, path=str(p)) for n, p in served.adapters.items())
    room = {"kv_cache_gb": 0.02, "adapter_memory_gb": 0.05}
    options = {"dtype": "float32", "device": "cpu", **room, **options}
    return build_engine(
        EngineConfig(model=str(served.model), adapters=sources, num_threads=1, **options)
    )


def requests(served: Served, rounds: int, **params: object) -> list[GenerationRequest]:
    numbers = random.Random(3)
    generations = []
    for name in [None, *served.adapters] * rounds:
        own = VOCAB_SIZE + (KINDS[name].new_tokens if name else 0)
        prompt = [numbers.randrange(own) for _ in range(numbers.randint(1, 20))]
        if name is not None and KINDS[name].is_activated:
            prompt += [*INVOCATION, 7]
        number = len(generations)
        options = {"temperature": 0, "seed": number, "max_tokens": 10, "ignore_eos": True}
        generations.append(
            GenerationRequest(
                request_id=f"r{number}",
                prompt_token_ids=prompt,
                params=SamplingParams(**{**options, **params}),
                adapter=name,
            )
        )
    return generations


def test_greedy_tokens_are_those_of_peft(served: Served, loop: EngineLoop) -> None:
    generations = requests(served, 2)
    check_generations(served.reference, generations, generate_all(loop, generations))


def test_sampled_tokens_are_those_of_peft(served: Served, loop: EngineLoop) -> None:
    generations = requests(served, 1, temperature=1.0, top_p=0.95, repetition_penalty=1.1)
    check_generations(served.reference, generations, generate_all(loop, generations))


def test_with_few_places_small_chunks_and_steps_ahead(served: Served) -> None:
    """Dense memory is taken, freed and taken again by others while requests run."""
    generations = requests(served, 2)
    loop = start(
        served,
        max_loras=3,
        max_num_batched_tokens=16,
        adapter_dense_gb=0.0006,
        async_scheduling=True,
    )
    check_generations(served.reference, generations, generate_all(loop, generations))
    stats = loop.stats()
    assert stats.num_adapter_evictions > 0
    assert 0 < stats.adapter_dense_bytes <= stats.max_adapter_dense_bytes


def test_tokens_that_only_an_adapter_has_are_its_own(served: Served, loop: EngineLoop) -> None:
    """Nobody else samples them at any temperature; its own requests do, and go on from them."""
    hot = requests(served, 2, temperature=30.0, max_tokens=30)
    added = GenerationRequest(
        request_id="added",
        prompt_token_ids=[1, VOCAB_SIZE + 1, 2],
        params=SamplingParams(
            temperature=0, seed=1, max_tokens=8, ignore_eos=True, logit_bias={VOCAB_SIZE: 100.0}
        ),
        adapter=MORE,
    )
    tokens = generate_all(loop, [*hot, added])
    for generation in hot:
        name = generation.adapter
        own = VOCAB_SIZE + (KINDS[name].new_tokens if name else 0)
        assert max(tokens[generation.request_id]) < own, name
    assert tokens["added"] == [VOCAB_SIZE] * 8
    check_generations(served.reference, [added], tokens)


def test_prompts_are_checked_against_the_adapters_vocabulary(loop: EngineLoop) -> None:
    for name, last in ((None, VOCAB_SIZE), (MORE, VOCAB_SIZE + 3), (FEWER, VOCAB_SIZE - 1)):
        with pytest.raises(RequestError, match=rf"prompt: .*\[0, {last}\)"):
            loop.add(
                GenerationRequest(
                    request_id="r",
                    prompt_token_ids=[1, last],
                    params=SamplingParams(seed=1, max_tokens=1),
                    adapter=name,
                )
            )
