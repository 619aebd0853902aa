"""Readers that stop: a real engine process stops working for them, and goes on when they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from tiny_models import make_tiny_model

from branchline.engine.client import EngineClient
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineDeadError
from branchline.engine.types import GenerationRequest, SamplingParams, TokenOutput
from branchline.engine.unread import MAX_UNREAD_ENTRIES

pytestmark = pytest.mark.timeout(120)

MAX_TOKENS = 900
NUM_ENTRIES = 1 + 1 + 20
NUM_TO_BE_HELD = MAX_UNREAD_ENTRIES // NUM_ENTRIES + 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    return make_tiny_model(directory, "llama", max_position_embeddings=1024)


@contextlib.asynccontextmanager
async def started(model: Path, **options: object) -> AsyncIterator[EngineClient]:
    fixed = {"dtype": "float32", "device": "cpu", "kv_cache_gb": 0.05, "num_threads": 1}
    client = await EngineClient.start(EngineConfig(model=str(model), **{**fixed, **options}))
    try:
        yield client
    finally:
        await client.stop()


def request(request_id: str, max_tokens: int = MAX_TOKENS, **params: object) -> GenerationRequest:
    fixed = {"temperature": 0.8, "seed": 3, "ignore_eos": True, "logprobs": 20}
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3, 4, 5],
        params=SamplingParams(max_tokens=max_tokens, **{**fixed, **params}),
    )


async def until(condition, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def tokens_of(outputs: AsyncGenerator[TokenOutput]) -> list[int]:
    return [token async for output in outputs for token in output.token_ids]


async def held(client: EngineClient, request_id: str = "slow") -> AsyncGenerator[TokenOutput]:
    """A stream of which one output is read, and whose request is held."""
    stream = client.generate(request(request_id))
    await anext(stream)
    await until(lambda: client.stats.num_held == 1)
    return stream


@pytest.mark.parametrize("ahead", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_who_does_not_read_is_not_computed_for(model: Path, ahead: bool) -> None:
    async with started(model, async_scheduling=ahead, max_num_seqs=1) as client:
        expected = await tokens_of(client.generate(request("undisturbed")))
        assert client.stats.num_holds == 0
        before = client.stats.num_generation_tokens
        stream = await held(client)
        computed = client.stats.num_generation_tokens - before
        # What is on its way when it is told is computed too: a few steps of a tiny model.
        assert NUM_TO_BE_HELD <= computed < MAX_TOKENS - 100
        assert client.stats.num_running == client.stats.num_waiting == 0
        assert client.stats.num_free_blocks == client.info.num_blocks
        other = await tokens_of(client.generate(request("other", max_tokens=20, logprobs=None)))
        assert other == expected[:20], "the one seat is free"
        assert client.stats.num_generation_tokens == before + computed + 20
        assert expected[1:] == await tokens_of(stream)
        await until(lambda: client.stats.num_held == 0)
        assert client.stats.num_free_blocks == client.info.num_blocks


async def test_leaving_ends_a_held_request(model: Path) -> None:
    async with started(model) as client:
        await (await held(client)).aclose()
        await until(lambda: client.stats.num_held == 0)
        assert client.stats.num_free_blocks == client.info.num_blocks
        assert len(await tokens_of(client.generate(request("slow", 5)))) == 5


@pytest.mark.slow
async def test_an_abort_from_elsewhere_ends_a_held_request(model: Path) -> None:
    async with started(model) as client:
        stream = await held(client)
        client.abort("slow")
        await until(lambda: client.stats.num_held == 0)
        async with asyncio.timeout(10):
            outputs = [output async for output in stream]
        assert outputs[-1].finish_reason == "abort"
        assert len(outputs) > NUM_TO_BE_HELD


@pytest.mark.slow
async def test_what_was_given_can_be_read_after_the_engine_has_died(model: Path) -> None:
    async with started(model) as client:
        stream = await held(client)
        os.kill(client.pid, signal.SIGKILL)
        await until(client.dead.is_set)
        for _ in range(NUM_TO_BE_HELD - 1):
            assert (await anext(stream)).token_ids
        with pytest.raises(EngineDeadError, match="exited with -9"):
            await tokens_of(stream)


@pytest.mark.slow
async def test_a_held_request_does_not_keep_the_engine_from_stopping(model: Path) -> None:
    async with started(model) as client:
        stream = await held(client)
        async with asyncio.timeout(8):
            await client.stop()
        with pytest.raises(EngineDeadError, match="stopped"):
            await tokens_of(stream)


@pytest.mark.slow
async def test_many_slow_readers_and_one_that_reads(model: Path) -> None:
    """Eight that don't read share four seats; the one that does is not behind them."""
    async with started(model, max_num_seqs=4) as client:
        streams = [client.generate(request(f"slow-{i}", seed=i)) for i in range(8)]
        for stream in streams:
            await anext(stream)
        await until(lambda: client.stats.num_held == 8)
        alone = await tokens_of(client.generate(request("quick", 50, seed=2)))
        answers = await asyncio.gather(*map(tokens_of, streams))
        assert {len(answer) for answer in answers} == {MAX_TOKENS - 1}
        assert alone[1:] == answers[2][:49]
