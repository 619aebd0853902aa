"""Base and adapters in one batch against each alone through transformers + peft."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_run import check_generations, generate_all
from oracle import Reference
from tiny_adapters import ALL_LINEAR, ATTENTION, make_adapter
from tiny_models import FAMILIES, make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.sampler import Sampler
from branchline.engine.types import GenerationRequest, SamplingParams

RANKS = {"r1": 1, "r8": 8, "r16": 16, "r24": 24, "r40": 40}
"""Under a page, a page, and pages with a remainder."""

NUM_REQUESTS = 16

SHORT_CONTEXT = 32
"""Phi-3's tiny model switches rope factors here; served up to it, both sides use the short ones."""


@dataclass(frozen=True, slots=True)
class Served:
    family: str
    model: Path
    adapters: dict[str, Path]
    reference: Reference


def serve(directory: Path, family: str) -> Served:
    model = make_tiny_model(directory / "model", family)
    adapters = {
        name: make_adapter(
            model,
            directory / name,
            rank,
            seed=rank,
            target_modules=ATTENTION if name == "r8" and family != "phi3" else ALL_LINEAR,
            use_rslora=name == "r24",
        )
        for name, rank in RANKS.items()
    }
    return Served(family, model, adapters, Reference(model, adapters))


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, tmp_path_factory) -> Served:
    return serve(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Served:
    return serve(tmp_path_factory.mktemp("llama"), "llama")


def requests(served: Served, max_tokens: int = 16, **params) -> list[GenerationRequest]:
    numbers = random.Random(3)
    longest = SHORT_CONTEXT - max_tokens if served.family == "phi3" else 33
    names = [None, *served.adapters]
    return [
        GenerationRequest(
            request_id=f"r{i}",
            prompt_token_ids=[numbers.randrange(256) for _ in range(numbers.randint(1, longest))],
            params=SamplingParams(
                **{"temperature": 0, "seed": i, "max_tokens": max_tokens, "ignore_eos": True}
                | params
            ),
            adapter=names[i % len(names)],
        )
        for i in range(NUM_REQUESTS)
    ]


def start(served: Served, **options) -> EngineLoop:
    sources = tuple(AdapterSource(digest=n, path=str(p)) for n, p in served.adapters.items())
    room = {"kv_cache_gb": 0.02, "adapter_memory_gb": 0.05}
    options = {"dtype": "float32", "device": "cpu", **room, **options}
    return build_engine(
        EngineConfig(model=str(served.model), adapters=sources, num_threads=1, **options)
    )


def generate(
    served: Served, generations: list[GenerationRequest], **options
) -> dict[str, list[int]]:
    return generate_all(start(served, **options), generations)


def test_greedy_tokens_are_those_of_transformers_and_peft(served):
    generations = requests(served)
    options = {"max_model_len": SHORT_CONTEXT} if served.family == "phi3" else {}
    tokens = generate(served, generations, **options)
    check_generations(served.reference, generations, tokens)
    assert all(len(answer) == 16 for answer in tokens.values())


def test_each_adapter_answers_in_its_own_way(llama):
    generations = [
        GenerationRequest(
            request_id=str(name),
            prompt_token_ids=[5, 6, 7, 8],
            params=SamplingParams(temperature=0, seed=0, max_tokens=16, ignore_eos=True),
            adapter=name,
        )
        for name in [None, *llama.adapters]
    ]
    tokens = generate(llama, generations)
    assert len({tuple(answer) for answer in tokens.values()}) == len(generations)


@pytest.mark.parametrize("chunk", [1, 5, 23])
def test_chunks_and_adapters_together(llama, chunk):
    generations = requests(llama)
    check_generations(
        llama.reference, generations, generate(llama, generations, max_num_batched_tokens=chunk)
    )


def test_preemption_and_adapters_together(llama):
    generations = requests(llama)
    block_bytes = 2 * 4 * 4 * 16 * 4 * 4
    small = {"max_model_len": 64, "block_size": 4, "kv_cache_gb": 20 * block_bytes / 2**30}
    check_generations(llama.reference, generations, generate(llama, generations, **small))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.8},
        {"temperature": 1.2, "top_p": 0.8, "top_k": 20},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0, "repetition_penalty": 1.3},
        {"temperature": 0.7, "presence_penalty": 0.6, "frequency_penalty": 0.4},
        {"temperature": 0, "logit_bias": {65: 4.0, 66: -3.0}},
    ],
    ids=lambda params: "-".join(params),
)
def test_sampled_tokens_are_those_of_the_rule_over_the_reference_s_logits(llama, params):
    generations = requests(llama, **params)
    check_generations(llama.reference, generations, generate(llama, generations))


def test_two_names_for_the_same_bytes_are_one_version(llama):
    source = AdapterSource(digest="same", path=str(llama.adapters["r8"]))
    config = EngineConfig(
        model=str(llama.model),
        adapters=(source, source),
        dtype="float32",
        kv_cache_gb=0.01,
        adapter_memory_gb=0.05,
    )
    loop = build_engine(config)
    for name in ("a", "b"):
        params = SamplingParams(temperature=0, seed=0, max_tokens=4)
        loop.add(
            GenerationRequest(
                request_id=name, prompt_token_ids=[1, 2], params=params, adapter="same"
            )
        )
    first, second = loop.step()
    assert first.token_ids == second.token_ids
    loop.check()


class Recorder:
    """Stands before the sampler and keeps the logits that reach it, by request tokens."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.seen: list[tuple[list[int], list[int], torch.Tensor]] = []

    def launch(self, logits, rows, masks=None):
        for row, values in zip(rows, logits.clone(), strict=True):
            self.seen.append((list(row.prompt_token_ids), list(row.output_token_ids), values))
        return self._sampler.launch(logits, rows, masks)


def test_logits_of_every_row_are_within_1e_4_of_transformers_and_peft(served):
    """Base and adapters in one batch, at the prompt's end and in decodes, the whole vocabulary."""
    loop = start(served, **({"max_model_len": SHORT_CONTEXT} if served.family == "phi3" else {}))
    recorder = Recorder(loop._sampler)
    loop._sampler = recorder
    adapter_of = {}
    for generation in requests(served, max_tokens=4):
        adapter_of[tuple(generation.prompt_token_ids)] = generation.adapter
        loop.add(generation)
    while loop.has_work:
        loop.step()
    assert len(recorder.seen) == 4 * NUM_REQUESTS
    answers = {tuple(prompt): output for prompt, output, _ in recorder.seen if len(output) == 3}
    expected = {
        prompt: served.reference.next_logits([*prompt, *output], adapter_of[prompt])
        for prompt, output in answers.items()
    }
    assert len(expected) == NUM_REQUESTS
    for prompt, output, logits in recorder.seen:
        assert answers[tuple(prompt)][: len(output)] == output
        row = expected[tuple(prompt)][len(prompt) + len(output) - 1]
        error = (logits - row).abs().max() / row.abs().max()
        assert error < 1e-4, (adapter_of[tuple(prompt)], len(output), float(error))
