"""``POST /v1/embeddings``: shapes, forms of inputs, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import Any

import numpy as np
import pytest
from asgi_client import AsgiRequest, until

from branchline.server import embeddings, wire

from .conftest import ADAPTER, BASE, Harness


async def embed(harness: Harness, value: object = "hi", **fields: Any) -> Any:
    return await harness.post("/v1/embeddings", {"model": BASE, "input": value, **fields})


def unit(*values: float) -> list[float]:
    return (np.array(values) / np.linalg.norm(values)).tolist()


async def test_the_shape_is_openais(harness: Harness) -> None:
    answer = (await embed(harness, ["ab", "c"], user="me")).json()
    assert answer["object"] == "list"
    assert answer["model"] == BASE
    assert [(one["object"], one["index"]) for one in answer["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert answer["data"][0]["embedding"] == pytest.approx(unit(98, 2, 0))
    assert answer["data"][1]["embedding"] == pytest.approx(unit(99, 1, 0))
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 3


@pytest.mark.parametrize("value", ["ab", ["ab"], [97, 98], [[97, 98]]])
async def test_inputs_in_every_form(harness: Harness, value: object) -> None:
    answer = (await embed(harness, value)).json()
    assert answer["data"][0]["embedding"] == pytest.approx(unit(98, 2, 0))
    assert harness.engine.requests[0].prompt_token_ids == [97, 98]


async def test_mean_pooling_from_an_adapter(harness: Harness) -> None:
    answer = (await embed(harness, "ac", model=ADAPTER, pooling="mean", priority=2)).json()
    assert answer["data"][0]["embedding"] == pytest.approx(unit(98, 2, 0))
    [request] = harness.engine.requests
    assert (request.adapter, request.pooling, request.priority) == ("digest-a", "mean", 2)


async def test_base64_is_little_endian_float32(harness: Harness) -> None:
    answer = (await embed(harness, "ab", encoding_format="base64")).json()
    raw = base64.b64decode(answer["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == pytest.approx(unit(98, 2, 0))


async def test_fewer_dimensions_are_of_unit_length_again(harness: Harness) -> None:
    answer = (await embed(harness, "ab", dimensions=1)).json()
    assert answer["data"][0]["embedding"] == [1.0]


async def test_an_input_may_be_cut(harness: Harness) -> None:
    assert (await embed(harness, "x" * 600, truncate_prompt_tokens=-1)).status_code == 200
    assert len(harness.engine.requests[-1].prompt_token_ids) == 512
    await embed(harness, "abc", truncate_prompt_tokens=2)
    assert harness.engine.requests[-1].prompt_token_ids == [98, 99]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "non-empty"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", [1]]}, "input", "mixes"),
        ({"input": ["a", 5]}, "input[1]", "must be a string"),
        ({"input": [260]}, "input", "vocabulary of 260"),
        ({"input": "x" * 513}, "input[0]", "has 513 tokens, this model's maximum"),
        ({"input": ["x"] * 2049}, "input", "holds 2049 prompts, the most is 2048"),
        ({"dimensions": 65}, "dimensions", "is 65, the model's vectors have 64"),
        ({"dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"pooling": "cls"}, "pooling", "'last' or 'mean'"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ({"stream": True}, "stream", ""),
        ({"temperature": 1}, "temperature", "not a parameter"),
        ({"model": "nobody"}, "model", ""),
    ],
)
async def test_refusals_name_the_field(
    harness: Harness, errors_of: Any, fields: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": BASE, "input": "x", **fields}
    response = await harness.post("/v1/embeddings", body)
    error = errors_of(response, 404 if param == "model" else 400)
    assert error["param"] == param
    assert words in error["message"]
    assert not harness.engine.requests


async def test_thousands_of_inputs_come_some_at_a_time(harness: Harness) -> None:
    harness.engine.go.clear()
    task = asyncio.ensure_future(embed(harness, [[index % 250 + 1] for index in range(2000)]))
    await until(lambda: harness.engine.running > 0, seconds=20)
    assert harness.engine.running <= 128
    harness.engine.go.set()
    data = (await task).json()["data"]
    assert [one["index"] for one in data] == list(range(2000))
    assert data[1999]["embedding"] == pytest.approx(unit(1999 % 250 + 1, 1, 0))


async def test_the_answer_is_encoded_a_vector_at_a_time_beside_the_loop(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, threading.Thread]] = []

    def encode(body: Any) -> bytes:
        calls.append((body, threading.current_thread()))
        return wire.encode(body)

    monkeypatch.setattr(embeddings, "encode", encode)
    answer = (await embed(harness, ["a", "b", "c"])).json()
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert sum(isinstance(body, wire.Embedding) for body, _ in calls) == 3
    assert all(isinstance(body, wire.Embedding) or not body.data for body, _ in calls)
    assert answer["model"] == BASE
    assert answer["usage"]["total_tokens"] == 3
    assert threading.main_thread() not in {thread for _, thread in calls}


async def test_a_client_that_leaves_ends_its_requests(harness: Harness) -> None:
    harness.engine.go.clear()
    body = json.dumps({"model": BASE, "input": ["a"] * 9}).encode()
    request = AsgiRequest(harness.app, "/v1/embeddings", body)
    await until(lambda: harness.engine.running == 9)
    request.leave()
    await asyncio.wait_for(request.task, 5)
    assert harness.engine.running == 0
    assert len(harness.engine.aborted) == 9


async def test_requests_are_counted(harness: Harness) -> None:
    await embed(harness, "abc")
    metrics = (await harness.client.get("/metrics")).text
    assert 'vllm:request_success_total{finished_reason="stop",model_name="base"} 1.0' in metrics
