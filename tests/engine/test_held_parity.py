"""Held and gone on, at any time and however often: the tokens are those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_run import generate_all
from grammar_house import GrammarHouse, json_grammar, make_grammar_model, run_all
from prompt_batch import mixed_requests, request, run, serve, start, tokens_of
from slow_readers import SlowReaders
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, Grammar

SMALL = {"max_model_len": 64, "kv_cache_gb": 18 * 4 * 8192 / 2**30, "block_size": 4}
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def engine(model: Path, **options: Any) -> EngineLoop:
    fixed = {"dtype": "float32", "device": "cpu", "kv_cache_gb": 0.01, "num_threads": 1}
    return build_engine(EngineConfig(model=str(model), **{**fixed, **options}))


def talkative() -> list[GenerationRequest]:
    """Greedy and drawn, with penalties and without, with prompts of all lengths."""
    return [
        request(
            f"r{i}",
            [(5 * i + j) % 250 for j in range(1 + 4 * i)],
            max_tokens=20,
            seed=i,
            temperature=(0.0, 0.9)[i % 2],
            presence_penalty=0.5 if i % 3 == 2 else 0.0,
            logprobs=2,
        )
        for i in range(10)
    ]


@pytest.fixture(scope="module")
def undisturbed(model: Path) -> dict[str, list[int]]:
    loop = engine(model)
    answers: dict[str, list[int]] = {}
    for generation in talkative():
        answers |= generate_all(loop, [generation])
    return answers


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("options", [{}, SMALL], ids=["roomy", "small"])
def test_greedy_and_drawn_tokens(
    model: Path, undisturbed: dict[str, list[int]], options: dict[str, Any], ahead: bool
) -> None:
    loop = engine(model, async_scheduling=ahead, max_num_batched_tokens=24, **options)
    for seed in range(3):
        assert generate_all(SlowReaders(loop, seed), talkative()) == undisturbed
    stats = loop.stats()
    assert stats.num_holds > 100
    assert (stats.num_running, stats.num_waiting, stats.num_held) == (0, 0, 0)
    assert stats.num_free_blocks == stats.num_blocks


def test_without_a_prefix_cache_all_is_computed_again(
    model: Path, undisturbed: dict[str, list[int]]
) -> None:
    loop = engine(model, enable_prefix_caching=False, async_scheduling=True)
    assert generate_all(SlowReaders(loop, 7), talkative()) == undisturbed


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_grammars(tmp_path_factory: pytest.TempPathFactory, ahead: bool) -> None:
    house = GrammarHouse.of(make_grammar_model(tmp_path_factory.mktemp("model")))
    requests = [
        house.request(f"{i}-{temperature}", grammar, temperature=temperature, seed=i, max_tokens=40)
        for i, grammar in enumerate([json_grammar(SCHEMA), Grammar("regex", "[0-9]{4}-[0-9]{2}")])
        for temperature in (0.0, 1.0)
    ]
    loop = house.engine(async_scheduling=ahead)
    expected = run_all(loop, requests)
    assert {end.reason for end in expected.values()} == {"stop"}
    for seed in range(3):
        assert run_all(SlowReaders(loop, seed), requests) == expected
    assert loop.stats().num_holds > 5


def test_prompts_logprobs_and_vectors_with_adapters(tmp_path: Path) -> None:
    served = serve(tmp_path, "llama", kinds=("rank 8", "alora"))
    requests = mixed_requests(served)
    expected = run(start(served, block_size=4), requests)
    loop = start(served, block_size=4, max_num_batched_tokens=9, async_scheduling=True)
    found = run(SlowReaders(loop, 3), requests)
    assert tokens_of(found) == tokens_of(expected)
    for name, outputs in found.items():
        first, wanted = outputs[0], expected[name][0]
        if wanted.embedding is not None:
            assert first.embedding == pytest.approx(wanted.embedding, abs=1e-4)
        for entry, other in zip(
            first.prompt_logprobs or [], wanted.prompt_logprobs or [], strict=True
        ):
            assert (entry is None) == (other is None)
            if entry is not None and other is not None:
                assert entry.token_id == other.token_id
                assert entry.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert loop.stats().num_holds > 5
