"""Many at once over base and adapters, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from server_process import ServerProcess, wait_for

pytestmark = pytest.mark.timeout(120)

MODELS = ("base", "tenant-4", "tenant-8", "tenant-16")
LONG: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}


async def ask(client: openai.AsyncOpenAI, index: int) -> str:
    answer = await client.completions.create(
        model=MODELS[index % 4],
        prompt=f"request {index % 16} says " + "very " * (index % 16),
        max_tokens=16,
        temperature=0 if index % 2 else 1,
        seed=index % 16,
        extra_body={"ignore_eos": True},
    )
    return answer.choices[0].text


async def test_64_at_once_answer_as_each_alone(
    async_client: openai.AsyncOpenAI, openai_server: ServerProcess
) -> None:
    alone = [await ask(async_client, index) for index in range(16)]
    together = await asyncio.gather(*(ask(async_client, index) for index in range(64)))
    assert list(together) == alone * 4
    assert len(set(alone)) == 16
    wait_for(lambda: is_free(openai_server), 5)


def is_free(server: ServerProcess) -> bool:
    """Nothing runs, nothing waits, every block is back."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(server.metric(name) == 0 for name in names)


def num_aborted(server: ServerProcess) -> float:
    return server.metric("vllm:request_success_total", finished_reason="abort")


def num_generated(server: ServerProcess) -> float:
    return server.metric("vllm:generation_tokens_total")


def test_a_reader_that_leaves_frees_its_blocks(
    client: openai.OpenAI, openai_server: ServerProcess
) -> None:
    aborted = num_aborted(openai_server)
    stream = client.completions.create(model="tenant-8", prompt="abc", stream=True, **LONG)
    for _, _ in zip(range(5), stream, strict=False):
        pass
    assert openai_server.metric("vllm:kv_cache_usage_perc") > 0
    assert openai_server.metric("vllm:num_requests_running") == 1
    running = openai_server.metric("vllm:lora_requests_info", running_lora_adapters="tenant-8")
    assert running > 0
    stream.close()
    wait_for(lambda: is_free(openai_server), 5)
    assert num_aborted(openai_server) == aborted + 1
    generated = num_generated(openai_server)
    assert generated < 4000
    assert openai_server.metric("vllm:lora_requests_info", running_lora_adapters="tenant-8") == 0


def test_a_client_that_does_not_wait_frees_its_blocks(
    client: openai.OpenAI, openai_server: ServerProcess
) -> None:
    aborted = num_aborted(openai_server)
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="base", prompt="abc", n=3, timeout=0.5, **LONG)
    wait_for(lambda: is_free(openai_server), 5)
    assert num_aborted(openai_server) == aborted + 3


async def test_a_cancelled_task_frees_its_blocks(
    async_client: openai.AsyncOpenAI, openai_server: ServerProcess
) -> None:
    task = asyncio.create_task(async_client.completions.create(model="base", prompt="abc", **LONG))
    await asyncio.sleep(0.3)
    assert openai_server.metric("vllm:num_requests_running") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_for(lambda: is_free(openai_server), 5)


def test_a_stop_string_ends_the_engines_request(
    client: openai.OpenAI, openai_server: ServerProcess
) -> None:
    client.completions.create(
        model="base", prompt="abc", stop="AA", logit_bias={"65": 100}, max_tokens=4000
    )
    wait_for(lambda: is_free(openai_server), 2)


def test_requests_are_counted_by_model(client: openai.OpenAI, openai_server: ServerProcess) -> None:
    before = openai_server.metric("branchline:requests_total", model="tenant-16", status="200")
    client.completions.create(model="tenant-16", prompt="abc", max_tokens=3)
    after = openai_server.metric("branchline:requests_total", model="tenant-16", status="200")
    assert after == before + 1
