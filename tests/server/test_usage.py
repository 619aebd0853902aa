"""``cached_tokens``: what a prompt found in the cache, and nothing that it paid for itself."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import say

from branchline.engine.types import GenerationRequest

from .conftest import ADAPTER, Harness, events

OPTIONS = {"include_usage": True}


def cached(usage: dict[str, Any]) -> tuple[int, int]:
    """Prompt tokens, and how many of them were cached."""
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


async def ask(harness: Harness, stream: bool, prompt: object, **fields: Any) -> tuple[int, int]:
    if not stream:
        return cached((await harness.complete(prompt, **fields)).json()["usage"])
    response = await harness.complete(prompt, stream=True, stream_options=OPTIONS, **fields)
    return cached(events(response)[-1]["usage"])


@pytest.mark.parametrize("stream", [False, True])
async def test_one_prompt(harness: Harness, stream: bool) -> None:
    harness.engine.num_cached = lambda request: len(request.prompt_token_ids) - 1
    assert await ask(harness, stream, "abcdef") == (6, 5)
    harness.engine.num_cached = lambda request: 0
    assert await ask(harness, stream, "abcdef") == (6, 0)


async def test_chats_too(harness: Harness) -> None:
    harness.engine.num_cached = lambda request: 7
    whole = (await harness.chat("hi")).json()["usage"]
    stream = events(await harness.chat("hi", stream=True, stream_options=OPTIONS))[-1]["usage"]
    assert whole == stream
    assert cached(whole)[1] == 7


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_add_up(harness: Harness, stream: bool) -> None:
    harness.engine.num_cached = lambda request: len(request.prompt_token_ids) // 2
    assert await ask(harness, stream, ["ab", "abcd", "abcdef"]) == (12, 6)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leader", [0, 1, 2])
async def test_what_one_choice_computed_is_not_cached_for_the_others(
    harness: Harness, stream: bool, leader: int
) -> None:
    """One of three computes all but 16 tokens; the others then find nearly everything."""

    def num_cached(request: GenerationRequest) -> int:
        return 16 if request.choice_index == leader else 48

    harness.engine.num_cached = num_cached
    assert await ask(harness, stream, ["x" * 50, "y" * 50], n=3) == (100, 32)


async def test_continuous_usage_has_it_from_the_first_event(harness: Harness) -> None:
    harness.engine.script = say("hello")
    options = {**OPTIONS, "continuous_usage_stats": True}
    chunks = events(await harness.complete("abcdef", stream=True, stream_options=options))
    assert [cached(chunk["usage"]) for chunk in chunks] == [(6, 3)] * len(chunks)


async def test_metrics_count_queries_and_hits_by_model(harness: Harness) -> None:
    harness.engine.num_cached = lambda request: 4
    await harness.complete("abcdef")
    await harness.complete("abcdef", model=ADAPTER, n=2)
    text = (await harness.client.get("/metrics")).text
    for line in (
        'vllm:prefix_cache_queries_total{model_name="base"} 18.0',
        'vllm:prefix_cache_hits_total{model_name="base"} 12.0',
        'branchline:model_prefix_cache_queries_total{model="base",model_name="base"} 6.0',
        'branchline:model_prefix_cache_hits_total{model="base",model_name="base"} 4.0',
        'branchline:model_prefix_cache_queries_total{model="tenant-a",model_name="base"} 12.0',
        'branchline:model_prefix_cache_hits_total{model="tenant-a",model_name="base"} 8.0',
    ):
        assert line in text, line


async def test_block_metrics_add_up(harness: Harness) -> None:
    import dataclasses

    harness.engine.stats = dataclasses.replace(
        harness.engine.stats,
        num_blocks=100,
        num_free_blocks=70,
        num_evictable_blocks=50,
        num_cached_blocks=65,
        num_pinned_blocks=10,
        num_host_blocks=30,
        max_host_blocks=40,
        num_evicted_blocks=1,
        num_offloaded_blocks=2,
        num_restored_blocks=3,
        num_adapter_loads=4,
        num_overloaded=5,
        num_waiting=6,
        num_computed_prompt_tokens=7,
        num_held=8,
        num_holds=9,
    )
    text = (await harness.client.get("/metrics")).text
    blocks = {
        ("device", "free"): 20,
        ("device", "cached"): 50,
        ("device", "pinned"): 10,
        ("device", "in_use"): 20,
        ("host", "free"): 10,
        ("host", "cached"): 30,
    }
    for (tier, state), number in blocks.items():
        labels = f'model_name="base",state="{state}",tier="{tier}"'
        assert f"branchline:kv_blocks{{{labels}}} {number}.0" in text, (tier, state)
    for name, number in (
        ("vllm:kv_cache_usage_perc", 0.3),
        ("branchline:kv_blocks_evicted_total", 1),
        ("branchline:kv_blocks_offloaded_total", 2),
        ("branchline:kv_blocks_restored_total", 3),
        ("branchline:adapter_loads_total", 4),
        ("branchline:overloaded_requests_total", 5),
        ("vllm:num_requests_waiting", 6),
        ("branchline:computed_prompt_tokens_total", 7),
        ("branchline:requests_held", 8),
        ("branchline:request_holds_total", 9),
    ):
        [line] = [row for row in text.splitlines() if row.startswith(f"{name}{{")]
        assert float(line.rpartition(" ")[2]) == pytest.approx(number), name
