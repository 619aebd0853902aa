"""The engine process and its client: real processes over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from tiny_models import make_tiny_model

from branchline.engine.client import EngineClient
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineDeadError, EngineStartError, RequestError
from branchline.engine.progress import Progress
from branchline.engine.types import GenerationRequest, SamplingParams

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def config(model: Path, **options) -> EngineConfig:
    options = {"dtype": "float32", "device": "cpu", "kv_cache_gb": 0.01, **options}
    return EngineConfig(model=str(model), num_threads=1, **options)


def request(request_id: str, max_tokens: int = 8, **params) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3, 4, 5],
        params=SamplingParams(
            temperature=0, seed=0, max_tokens=max_tokens, ignore_eos=True, **params
        ),
    )


@contextlib.asynccontextmanager
async def started(engine_config: EngineConfig):
    client = await EngineClient.start(engine_config)
    try:
        yield client
    finally:
        await client.stop()


async def collect(client: EngineClient, generation: GenerationRequest) -> list[int]:
    return [token async for out in client.generate(generation) for token in out.token_ids]


async def until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_serves_requests_at_once_and_leaves_nothing_behind(model):
    told: list[Progress] = []
    client = await EngineClient.start(config(model), told.append)
    try:
        assert "loading" in told[0].text
        assert any(progress.done == progress.total is not None for progress in told)
        answers = await asyncio.gather(*(collect(client, request(f"r{i}")) for i in range(5)))
        assert {tuple(answer) for answer in answers} == {tuple(answers[0])}
        assert len(answers[0]) == 8
        await until(lambda: client.stats.num_running == 0)
        assert client.stats.num_free_blocks == client.info.num_blocks
        assert client.stats.num_generation_tokens == 40
        assert client.stats.num_prompt_tokens == 25
    finally:
        await client.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


async def test_leaving_early_frees_the_blocks(model):
    async with started(config(model)) as client:
        stream = client.generate(request("long", max_tokens=100))
        await anext(stream)
        assert client.stats.num_running == 1
        await stream.aclose()
        await until(lambda: client.stats.num_running == 0)
        assert client.stats.num_free_blocks == client.info.num_blocks
        assert client.stats.num_generation_tokens < 100


async def test_a_request_that_can_not_run_ends_with_an_error(model):
    async with started(config(model)) as client:
        too_long = GenerationRequest(
            request_id="x", prompt_token_ids=[1] * 5000, params=SamplingParams(seed=0)
        )
        [output] = [output async for output in client.generate(too_long)]
        assert output.finish_reason == "error"
        assert "5000 tokens" in output.error


async def test_a_killed_engine_ends_every_request(model):
    async with started(config(model)) as client:
        stream = client.generate(request("long", max_tokens=100))
        await anext(stream)
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="exited with -9"):
            async for _ in stream:
                pass
        assert client.dead.is_set()
        with pytest.raises(EngineDeadError):
            await anext(client.generate(request("later")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_gb": 1e-6}, "max_model_len"),
        ({"max_model_len": 10**9}, "max_position_embeddings"),
    ],
)
async def test_a_configuration_that_can_not_run_is_said_in_one_line(model, options, message):
    with pytest.raises(EngineStartError, match=message) as caught:
        await EngineClient.start(config(model, **options))
    assert "\n" not in str(caught.value)


async def test_a_missing_model_is_said_in_one_line(tmp_path):
    with pytest.raises(EngineStartError, match=r"config\.json"):
        await EngineClient.start(config(tmp_path / "nothing"))


PARENT = """
import asyncio, sys
from branchline.engine.client import EngineClient
from branchline.engine.config import EngineConfig

async def main():
    config = EngineConfig(model=sys.argv[1], device="cpu", kv_cache_gb=0.01, num_threads=1)
    starting = asyncio.ensure_future(EngineClient.start(config))
    if sys.argv[2] == "started":
        await starting
    await asyncio.sleep(0.3)
    print("go", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["starting", "started"])
async def test_the_engine_leaves_when_its_parent_is_gone(model, moment):
    """A server that is killed outright must not leave an engine holding the GPU."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", PARENT, str(model), moment), stdout=asyncio.subprocess.PIPE
    )
    await parent.stdout.readline()
    [engine] = psutil.Process(parent.pid).children()
    parent.kill()
    await parent.wait()
    await until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


async def test_an_id_in_use_is_refused_and_its_holder_goes_on(model):
    async with started(config(model)) as client:
        first = asyncio.ensure_future(collect(client, request("same", max_tokens=50)))
        await until(lambda: client.stats.num_running == 1)
        with pytest.raises(RequestError, match="request_id"):
            await collect(client, request("same"))
        assert len(await first) == 50


async def test_an_abort_from_elsewhere_ends_the_stream(model):
    async with started(config(model)) as client:
        stream = client.generate(request("long", max_tokens=100))
        await anext(stream)
        client.abort("long")
        async with asyncio.timeout(10):
            outputs = [output async for output in stream]
        assert outputs[-1].finish_reason == "abort"


@pytest.mark.parametrize(
    "bad",
    [
        {"top_k": 1.5},
        {"max_tokens": -1},
        {"logit_bias": {2**62: 1.0}},
        {"stop_token_ids": (10**6,), "min_tokens": 2},
    ],
    ids=str,
)
async def test_a_request_the_engine_can_not_read_ends_alone(model, bad):
    async with started(config(model)) as client:
        other = asyncio.ensure_future(collect(client, request("other", max_tokens=60)))
        await until(lambda: client.stats.num_running == 1)
        params = {"temperature": 0, "seed": 0, **bad}
        generation = GenerationRequest(
            request_id="bad", prompt_token_ids=[1], params=SamplingParams(**params)
        )
        [output] = [output async for output in client.generate(generation)]
        assert output.finish_reason == "error"
        assert next(iter(bad)) in output.error
        assert len(await other) == 60


async def test_a_request_that_can_not_be_sent_is_refused(model):
    async with started(config(model)) as client:
        huge = GenerationRequest(
            request_id="huge", prompt_token_ids=[1], params=SamplingParams(seed=2**70)
        )
        with pytest.raises(RequestError, match="can't be sent"):
            await collect(client, huge)
        assert len(await collect(client, request("after"))) == 8


async def test_an_engine_that_can_not_be_understood_is_ended(model, monkeypatch):
    async with started(config(model)) as client:
        stream = client.generate(request("long", max_tokens=100))
        await anext(stream)

        class Garbled:
            def decode(self, data: bytes) -> None:
                raise ValueError("not a message")

        monkeypatch.setattr(client, "_decoder", Garbled())
        async with asyncio.timeout(10):
            with pytest.raises(EngineDeadError):
                async for _ in stream:
                    pass


async def test_a_cancelled_watcher_does_not_keep_stop_waiting(model):
    client = await EngineClient.start(config(model))
    for task in client._tasks:
        task.cancel()
    async with asyncio.timeout(15):
        await client.stop()
    assert client.dead.is_set()
