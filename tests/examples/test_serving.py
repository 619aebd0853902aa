"""The example models through HTTP: frozen answers, every model in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from server_process import ServerProcess, serve

FLAGS = ("--served-model-name", "base", "--dtype", "float32", "--device", "cpu")
NEAR_TIE = 1e-3

Golden = dict[str, Any]
GoldenFile = Callable[[str], list[Golden]]


async def ask_all(server: ServerProcess, golden: Sequence[Golden]) -> list[Any]:
    """Every prompt at once, so that all adapters share the engine's batches."""
    async with openai.AsyncOpenAI(base_url=server.api_url, api_key="none") as client:
        return await asyncio.gather(*(ask(client, answer) for answer in golden))


async def ask(client: openai.AsyncOpenAI, answer: Golden) -> Any:
    return await client.chat.completions.create(
        model=answer["adapter"] or "base",
        messages=answer["messages"],
        max_tokens=len(answer["token_ids"]),
        temperature=0,
        extra_body={"return_token_ids": True},
    )


async def test_skill_answers_are_the_frozen_ones(golden_file: GoldenFile, examples: Path) -> None:
    golden = golden_file("skill")
    names = sorted({answer["adapter"] for answer in golden} - {None})
    assert "shout-alora" in names
    assert len(names) >= 5
    lora = {name: examples / "skill" / "adapters" / name for name in names}
    with serve(examples / "skill" / "model", *FLAGS, "--num-threads", "1", lora=lora) as server:
        answers = await ask_all(server, golden)
    for frozen, answer in zip(golden, answers, strict=True):
        assert answer.choices[0].message.content == frozen["text"]
        assert answer.prompt_token_ids == frozen["prompt_token_ids"]
        assert answer.choices[0].token_ids == frozen["token_ids"]
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.slow
async def test_smollm2_answers_are_the_frozen_ones_up_to_a_near_tie(
    golden_file: GoldenFile, examples: Path, smollm2: Path
) -> None:
    golden = golden_file("smollm2")
    names = sorted({answer["adapter"] for answer in golden} - {None})
    assert len(names) >= 3
    lora = {name: examples / "smollm2" / "voices" / name for name in names}
    with serve(smollm2, *FLAGS, "--max-model-len", "512", lora=lora) as server:
        answers = await ask_all(server, golden)
    num_compared = 0
    for frozen, answer in zip(golden, answers, strict=True):
        assert answer.prompt_token_ids == frozen["prompt_token_ids"]
        ties = [i for i, margin in enumerate(frozen["margins"]) if margin < NEAR_TIE]
        num_clear = min(ties, default=len(frozen["margins"]))
        ours = answer.choices[0].token_ids
        assert ours[:num_clear] == frozen["token_ids"][:num_clear]
        num_compared += num_clear
    assert num_compared > 0.9 * sum(len(answer["token_ids"]) for answer in golden)
