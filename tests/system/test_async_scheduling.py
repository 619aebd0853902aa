"""With ``--async-scheduling`` a server gives the same answers: it only plans ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from server_process import ServerProcess, serve

from .conftest import SERVE_FLAGS, Models

pytestmark = pytest.mark.timeout(180)

# Little room and long shared beginnings, so that steps are chunked, cached, evicted and waited for.
FLAGS = (*SERVE_FLAGS, "--max-num-seqs", "4", "--max-num-batched-tokens", "48", "--max-loras", "2")
NUM_THREADS = 8


@pytest.fixture(scope="module", params=["--async-scheduling", "--no-async-scheduling"])
def server(request: pytest.FixtureRequest, models: Models) -> Iterator[ServerProcess]:
    with serve(models.model, *FLAGS, request.param, lora=models.lora) as running:
        yield running


@pytest.fixture(scope="module")
def expected(models: Models) -> list[list[Any]]:
    """What a server without the flag says, asked one by one."""
    with serve(models.model, *FLAGS, lora=models.lora) as running:
        return [ask(running, request) for request in requests()]


def requests() -> list[dict[str, Any]]:
    """Greedy, seeded, several choices, stopped early; of the base and every adapter."""
    document = "It was a bright cold day in April. " * 4
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "max_tokens": 24},
        {"temperature": 1, "seed": 7, "max_tokens": 24},
        {"temperature": 0.8, "top_p": 0.9, "seed": 11, "max_tokens": 16, "n": 3},
        {"temperature": 1, "seed": 3, "max_tokens": 32, "stop": ["a", "e"]},
    ]
    return [
        {"model": model, "prompt": f"{document}{model} {i % 2}", **kind}
        for model in ("base", "tenant-4", "tenant-8", "tenant-16")
        for i, kind in enumerate(kinds)
    ]


def ask(server: ServerProcess, request: dict[str, Any]) -> list[Any]:
    """Text, token ids and reason of each choice."""
    with openai.OpenAI(base_url=server.api_url, api_key="none", max_retries=0) as client:
        answer = client.completions.create(**request, extra_body={"return_token_ids": True})
    return [[c.text, c.token_ids, c.finish_reason] for c in answer.choices]  # type: ignore[attr-defined]


def test_the_same_answers_one_by_one_and_at_once(
    server: ServerProcess, expected: list[list[Any]]
) -> None:
    assert [ask(server, request) for request in requests()] == expected
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        at_once = list(pool.map(lambda request: ask(server, request), requests() * 3))
    assert at_once == expected * 3
    assert server.metric("branchline:engine_failed_steps_total") == 0


def test_a_stream_is_the_same_too(server: ServerProcess, expected: list[list[Any]]) -> None:
    request = requests()[1]
    with openai.OpenAI(base_url=server.api_url, api_key="none", max_retries=0) as client:
        text = "".join(
            chunk.choices[0].text for chunk in client.completions.create(**request, stream=True)
        )
    assert text == expected[1][0][0]
