"""Activated LoRA through the engine against PEFT: where it begins, in any batch and any chunk."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from activated import (
    INVOCATIONS,
    KV_BYTES_PER_TOKEN,
    LOUD,
    PLAIN,
    QUIET,
    SHOUT,
    TWIN,
    Served,
    check_all,
    generate,
    request,
    serve,
    start,
    words,
)
from tiny_adapters import make_adapter
from tiny_models import VOCAB_SIZE

from branchline.engine.types import GenerationRequest
from branchline.lora.errors import AdapterError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(tmp_path_factory.mktemp("llama"), "llama")


def places(invocation: list[int]) -> dict[str, list[int]]:
    """Prompts by where the invocation is; blocks have 16 tokens."""
    n = len(invocation)
    return {
        "alone": invocation,
        "start": invocation + words(21, 1),
        "middle": words(21, 2) + invocation + words(5, 3),
        "block boundary": words(16, 4) + invocation + words(9, 5),
        "over a block boundary": words(16 - n // 2, 6) + invocation + words(20, 7),
        "last of a block": words(32 - n, 8) + invocation + words(2, 9),
        "end": words(37, 10) + invocation,
        "end of a block": words(48 - n, 11) + invocation,
        "twice": words(5, 12) + invocation + words(19, 13) + invocation + words(3, 14),
        "twice in a row": words(18, 15) + invocation + invocation,
        "absent": words(30, 16),
        "cut off": [*words(20, 17), *invocation[:-1]] if n > 1 else words(5, 18),
    }


def mixed_requests() -> list[GenerationRequest]:
    """Every place for every activated adapter, between base and plain requests."""
    generations = [
        request(f"{adapter}, {place}", prompt, adapter)
        for adapter in (SHOUT, QUIET, LOUD)
        for place, prompt in places(INVOCATIONS[adapter]).items()
    ]
    others = [
        request(f"{adapter} {i}", words(3 + 5 * i, 20 + i), adapter)
        for i in range(4)
        for adapter in (None, PLAIN)
    ]
    # An invocation is nothing to the base, to a plain adapter, or to another activated one.
    others += [
        request(f"{adapter}, foreign", words(9, 30) + INVOCATIONS[SHOUT] + words(9, 31), adapter)
        for adapter in (None, PLAIN, QUIET)
    ]
    generations += others
    random.Random(5).shuffle(generations)
    return generations


@pytest.mark.parametrize(
    "chunk",
    [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(16, marks=pytest.mark.slow), 2048],
)
def test_answers_are_those_of_peft(llama: Served, chunk: int) -> None:
    generations = mixed_requests()
    answers = generate(start(llama, max_num_batched_tokens=chunk), generations)
    check_all(llama, generations, answers)
    assert all(len(answer.token_ids) == 12 for answer in answers.values())


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_answers_are_those_of_peft_in_other_families(tmp_path: Path, family: str) -> None:
    served = serve(tmp_path, family)
    generations = mixed_requests()
    check_all(served, generations, generate(start(served), generations))


def test_alone_and_without_a_cache_the_answers_are_the_same(llama: Served) -> None:
    generations = mixed_requests()
    together = generate(start(llama), generations)
    loop = start(llama, enable_prefix_caching=False)
    for generation in generations[::5]:
        alone = generate(loop, [generation])[generation.request_id]
        assert alone.token_ids == together[generation.request_id].token_ids
        assert alone.num_cached_tokens == 0


def test_base_plain_and_activated_answers_differ(llama: Served) -> None:
    """What the comparisons above rest on: in the middle of a prompt it matters who computes it."""
    prompt = places(INVOCATIONS[SHOUT])["middle"]
    generations = [request(str(name), prompt, name) for name in (None, TWIN, SHOUT)]
    answers = generate(start(llama), generations)
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 3
    absent = [request(str(name), words(30, 16), name) for name in (None, SHOUT)]
    base, activated = generate(start(llama), absent).values()
    assert base.token_ids == activated.token_ids


def test_preempted_requests_give_the_same_tokens(llama: Served) -> None:
    generations = mixed_requests()
    pool = 24 * 4 * KV_BYTES_PER_TOKEN / 2**30
    loop = start(llama, max_model_len=64, block_size=4, kv_cache_gb=pool)
    check_all(llama, generations, generate(loop, generations))
    assert loop.stats().num_preemptions > 0


def test_an_invocation_outside_the_vocabulary_is_refused_at_the_start(
    llama: Served, tmp_path: Path
) -> None:
    path = make_adapter(llama.model, tmp_path, 4, alora_invocation_tokens=[1, VOCAB_SIZE])
    served = replace(llama, adapters={"other base": path})
    with pytest.raises(AdapterError, match=r"alora_invocation_tokens: token 260 is not in the"):
        start(served)
