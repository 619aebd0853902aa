"""The real model behind the prefix cache: what is found, brought back or planned ahead is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_adapters import make_adapter
from tiny_models import make_tiny_model

from branchline.engine.build import build_engine
from branchline.engine.config import AdapterSource, EngineConfig
from branchline.engine.loop import EngineLoop
from branchline.engine.restore_policy import RestorePolicy
from branchline.engine.types import GenerationRequest, SamplingParams, TokenOutput

BLOCK_BYTES = 4 * 2048  # of the tiny model: 4 tokens, float32
SYSTEM = [7 * i % 200 + 1 for i in range(37)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> AdapterSource:
    directory = make_adapter(model, tmp_path_factory.mktemp("adapter"), 8)
    return AdapterSource(digest="the-adapter", path=str(directory))


def engine(model: Path, adapter: AdapterSource, **options) -> EngineLoop:
    room = {"kv_cache_gb": 0.01, "adapter_memory_gb": 0.05}
    options = {**room, "max_model_len": 128, **options}
    config = EngineConfig(
        model=str(model),
        adapters=(adapter,),
        dtype="float32",
        device="cpu",
        num_threads=1,
        block_size=4,
        **options,
    )
    return build_engine(config)


def requests(seed: int = 0, count: int = 24) -> list[GenerationRequest]:
    """Turns of conversations over one system prompt: some begin as others go on."""
    numbers = random.Random(seed)
    prompts = [SYSTEM]
    made = []
    for i in range(count):
        prompt = [*numbers.choice(prompts), *(numbers.randrange(1, 250) for _ in range(5))][:90]
        prompts.append(prompt)
        params = {"temperature": (0, 0.9)[i % 2], "seed": i, "max_tokens": 9, "ignore_eos": True}
        if i % 3 == 0:
            params |= {"frequency_penalty": 0.5, "min_tokens": 2}
        made.append(
            GenerationRequest(
                request_id=f"r{i}",
                prompt_token_ids=prompt,
                params=SamplingParams(**params),
                adapter=(None, "the-adapter")[i % 4 == 3],
                tenant="ab"[i % 2],
            )
        )
    return made


def run(loop: EngineLoop, made: list[GenerationRequest]) -> dict[str, list[int]]:
    """All at once, to their ends."""
    answers: dict[str, list[int]] = {generation.request_id: [] for generation in made}
    for generation in made:
        assert loop.add(generation) == []
    while loop.has_work:
        take(answers, loop.step())
        loop.check()
    while loop.tend():
        pass
    loop.check()
    stats = loop.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return answers


def take(answers: dict[str, list[int]], outputs: list[TokenOutput]) -> None:
    for output in outputs:
        assert output.finish_reason != "error", output.error
        answers[output.request_id] += output.token_ids


@pytest.fixture(scope="module")
def alone(model, adapter) -> dict[str, list[int]]:
    """Each request by itself, nothing cached."""
    loop = engine(model, adapter, enable_prefix_caching=False)
    answers = {}
    for generation in requests():
        answers |= run(loop, [generation])
    assert loop.stats().num_cached_blocks == 0
    return answers


@pytest.mark.parametrize("budget", [3, 16, 512])
@pytest.mark.parametrize("depth", [0, 1])
def test_answers_with_the_cache_are_those_without(model, adapter, alone, budget, depth):
    loop = engine(model, adapter, max_num_batched_tokens=budget, async_scheduling=bool(depth))
    assert run(loop, requests()) == alone
    assert run(loop, requests()) == alone, "now with everything in the cache"
    report = loop.report_cache(5)
    assert report.num_hit_tokens > report.num_query_tokens / 2


def test_answers_of_a_pool_so_small_that_all_is_evicted_and_preempted(model, adapter, alone):
    for depth in (False, True):
        loop = engine(model, adapter, kv_cache_gb=40 * BLOCK_BYTES / 2**30, async_scheduling=depth)
        for _ in range(2):
            assert run(loop, requests()) == alone
        stats = loop.stats()
        assert stats.num_preemptions > 0
        assert stats.num_evicted_blocks > 100


def test_answers_from_blocks_that_came_back_from_host_memory(model, adapter, alone, monkeypatch):
    """Also where computing would be quicker, as it is with so small a model."""
    monkeypatch.setattr(RestorePolicy, "pays", lambda *args: True)
    loop = engine(
        model,
        adapter,
        kv_cache_gb=40 * BLOCK_BYTES / 2**30,
        kv_offload_gb=400 * BLOCK_BYTES / 2**30,
    )
    made = requests()
    for _ in range(3):
        for start in range(0, len(made), 3):
            part = made[start : start + 3]
            assert run(loop, part) == {r.request_id: alone[r.request_id] for r in part}
    stats = loop.stats()
    assert stats.num_restored_blocks > 20
    assert stats.max_host_blocks == 400


def test_a_whole_prompt_in_the_cache_is_left_as_it_is(model, adapter):
    """Its last token is computed again; others who read that block meanwhile must not notice."""
    loop = engine(model, adapter)
    params = SamplingParams(temperature=0, seed=0, max_tokens=8, ignore_eos=True)
    prompt = SYSTEM[:36]

    def ask(request_id: str, tokens: list[int]) -> GenerationRequest:
        return GenerationRequest(request_id=request_id, prompt_token_ids=tokens, params=params)

    first = run(loop, [ask("first", prompt)])["first"]
    pool = loop._runner.kv_pool
    blocks = sorted({b for node in loop._scheduler.cache.tree.nodes() for b in node.block_ids})
    before = pool[:, :, blocks].clone()
    assert run(loop, [ask("again", prompt)])["again"] == first
    assert (pool[:, :, blocks] == before).all()


def test_nan_in_one_request_s_blocks_reaches_nobody_else(model, adapter, alone):
    """What is evicted is cleared before the next one holds it."""
    loop = engine(model, adapter, kv_cache_gb=40 * BLOCK_BYTES / 2**30)
    run(loop, requests()[:4])
    cache = loop._scheduler.cache
    cache.blocks.reset()
    loop._runner.kv_pool[:, :, 2:] = float("nan")
    assert run(loop, requests()) == alone


def test_tenants_share_nothing_unless_they_are_let(model, adapter):
    for isolate, expected in ((True, 0), (False, 36)):
        loop = engine(model, adapter, isolate_tenants=isolate)
        params = SamplingParams(temperature=0, seed=0, max_tokens=1)
        for tenant in ("one", "two"):
            loop.add(
                GenerationRequest(
                    request_id=tenant, prompt_token_ids=SYSTEM, params=params, tenant=tenant
                )
            )
            [output] = loop.step()
        assert output.num_cached_tokens == expected
