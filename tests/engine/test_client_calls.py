"""What an admin asks of the engine process: answers, refusals, and an engine that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tiny_models import make_tiny_model

from branchline.engine import calls as calls_module
from branchline.engine.cache_types import PrefixTarget
from branchline.engine.client import EngineClient
from branchline.engine.config import EngineConfig
from branchline.engine.errors import EngineDeadError, RequestError
from branchline.engine.types import GenerationRequest, SamplingParams

pytestmark = pytest.mark.timeout(120)

PROMPT = list(range(1, 41))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@contextlib.asynccontextmanager
async def started(model: Path) -> AsyncIterator[EngineClient]:
    config = EngineConfig(
        model=str(model), dtype="float32", device="cpu", kv_cache_gb=0.01, num_threads=1
    )
    client = await EngineClient.start(config)
    try:
        yield client
    finally:
        await client.stop()


async def run(client: EngineClient, request_id: str, **fields: object) -> int:
    """Run the prompt for one token; how much of it was cached."""
    request = GenerationRequest(
        request_id=request_id,
        prompt_token_ids=PROMPT,
        params=SamplingParams(temperature=0, seed=0, max_tokens=1, ignore_eos=True),
        **fields,
    )
    [output] = [output async for output in client.generate(request)]
    assert output.error is None
    return output.num_cached_tokens


async def test_calls(model: Path) -> None:
    async with started(model) as client:
        target = PrefixTarget(prompt_token_ids=PROMPT, tenant="default")
        with pytest.raises(RequestError, match="prefix cache") as caught:
            await client.calls.pin_prefix(target, 60)
        assert caught.value.field == "prompt"
        assert await run(client, "cold") == 0
        report = await client.calls.report_cache(10)
        assert (report.enabled, report.num_cached, report.pins) == (True, 2, [])
        assert [prefix.num_tokens for prefix in report.prefixes] == [32]
        assert (await client.calls.report_cache(0)).prefixes == []

        pin = await client.calls.pin_prefix(target, 60)
        assert (pin.num_blocks, pin.num_tokens) == (2, 32)
        assert 0 < pin.expires_in <= 60
        assert [p.pin_id for p in (await client.calls.report_cache(0)).pins] == [pin.pin_id]
        assert client.stats.num_pinned_blocks == 2
        assert await client.calls.remove_pin(pin.pin_id)
        assert not await client.calls.remove_pin(pin.pin_id)

        assert await run(client, "warm") == 32
        assert await client.calls.reset_cache() == 2
        assert await run(client, "cold again") == 0
        assert client.calls._waiting == {}


async def test_calls_at_once_get_their_own_answers(model: Path) -> None:
    async with started(model) as client:
        await run(client, "cold")
        reports = await asyncio.gather(*(client.calls.report_cache(n % 2) for n in range(20)))
        assert [len(report.prefixes) for report in reports] == [0, 1] * 10


async def test_an_engine_that_dies_ends_its_calls(model: Path) -> None:
    async with started(model) as client:
        os.kill(client.pid, signal.SIGSTOP)
        calls = [
            asyncio.create_task(call)
            for call in (
                client.calls.report_cache(1),
                client.calls.reset_cache(),
                client.calls.remove_pin("x"),
            )
        ]
        async with asyncio.timeout(10):
            while len(client.calls._waiting) < 3:
                await asyncio.sleep(0)
            os.kill(client.pid, signal.SIGKILL)
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [EngineDeadError] * 3
        with pytest.raises(EngineDeadError):
            await client.calls.reset_cache()
        assert client.calls._waiting == {}


async def test_an_engine_that_gives_no_answer_is_not_waited_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(model) as client:
        os.kill(client.pid, signal.SIGSTOP)
        monkeypatch.setattr(calls_module, "CALL_SECONDS", 0.05)
        with pytest.raises(TimeoutError):
            await client.calls.report_cache(1)
        monkeypatch.undo()
        os.kill(client.pid, signal.SIGCONT)
        # The late answer finds nobody, and the next call gets its own.
        assert (await client.calls.report_cache(1)).block_size == client.info.block_size


async def test_a_caller_that_leaves_is_forgotten(model: Path) -> None:
    async with started(model) as client:
        call = asyncio.create_task(client.calls.report_cache(1))
        async with asyncio.timeout(10):
            while not client.calls._waiting:
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            assert client.calls._waiting == {}
            assert (await client.calls.report_cache(1)).enabled


async def test_what_can_not_be_sent_is_refused(model: Path) -> None:
    async with started(model) as client:
        target = PrefixTarget(prompt_token_ids=[2**70], tenant="default")
        with pytest.raises(RequestError, match="can't be sent"):
            await client.calls.pin_prefix(target, 60)
        assert await run(client, "after") == 0
