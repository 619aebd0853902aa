"""What surrounds the answers: models, keys, limits, request ids, metrics, the description."""

from __future__ import annotations

import dataclasses
from typing import Any

from fake_engine import FakeEngine

from branchline.server.access import Tenant
from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, TEMPLATED, Harness, access, make_client, make_services


async def test_models(harness: Harness) -> None:
    listed = (await harness.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == [BASE, ADAPTER, TEMPLATED]
    assert listed["data"][1]["parent"] == BASE
    assert listed["data"][0] == (await harness.client.get(f"/v1/models/{BASE}")).json()
    missing = await harness.client.get("/v1/models/tenant")
    assert missing.status_code == 404
    assert "'tenant-a'" in missing.json()["error"]["message"]


async def test_keys(tokenizer: Tokenizer) -> None:
    app = create_app(make_services(tokenizer, FakeEngine(), access(api_key=("one", "two"))))
    async with make_client(app) as client:
        for key, status in (("one", 200), ("two", 200), ("three", 401), ("", 401), ("oné", 401)):
            headers = {"authorization": f"Bearer {key}".encode()}
            response = await client.get("/v1/models", headers=headers)
            assert response.status_code == status, key
        for header in (b"Basic one", b"one", b"Bearer", b"\xff\xfe"):
            refused = await client.get("/v1/models", headers={"authorization": header})
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/v1/models")).status_code == 401
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert (await client.get(path)).status_code != 401


async def test_a_body_over_the_limit(tokenizer: Tokenizer) -> None:
    app = create_app(make_services(tokenizer, FakeEngine(), max_body_bytes=1000))

    async def pieces() -> Any:
        for _ in range(20):
            yield b" " * 100

    async with make_client(app) as client:
        declared = await client.post("/v1/completions", content=b" " * 1001)
        chunked = await client.post("/v1/completions", content=pieces())
        fitting = await client.post("/v1/completions", content=b" " * 1000)
    assert [declared.status_code, chunked.status_code, fitting.status_code] == [413, 413, 400]
    assert chunked.json()["error"]["code"] == "body_too_large"


async def test_request_ids(harness: Harness) -> None:
    for given, kept in (("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)):
        response = await harness.client.get("/version", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) is kept
        assert response.headers["x-request-id"]


async def test_metrics_tell_who_works(harness: Harness) -> None:
    harness.engine.stats = dataclasses.replace(
        harness.engine.stats,
        num_running=2,
        num_waiting=1,
        num_free_blocks=25,
        running_adapters=["digest-a"],
        max_adapters=2,
    )
    model = harness.services.catalog.resolve(ADAPTER)
    with harness.services.metrics.in_flight(model, Tenant()):
        text = (await harness.client.get("/metrics")).text
    assert 'vllm:num_requests_running{model_name="base"} 2.0' in text
    assert 'vllm:kv_cache_usage_perc{model_name="base"} 0.75' in text
    info = 'max_lora="2",running_lora_adapters="tenant-a",waiting_lora_adapters=""'
    assert f"vllm:lora_requests_info{{{info}}}" in text


async def test_metrics_count_by_model(harness: Harness) -> None:
    await harness.complete("hi", model=ADAPTER)
    await harness.complete("hi", model="made-up-by-a-client")
    await harness.complete("hi", temperature=9)
    text = (await harness.client.get("/metrics")).text
    assert 'branchline:requests_total{model="tenant-a",model_name="base",status="200"} 1.0' in text
    assert (
        'branchline:model_generation_tokens_total{model="tenant-a",model_name="base"} 6.0' in text
    )
    assert 'vllm:prompt_tokens_total{model_name="base"} 2.0' in text
    assert 'vllm:prefix_cache_hits_total{model_name="base"} 3.0' in text
    assert 'vllm:time_to_first_token_seconds_count{model_name="base"} 1.0' in text
    assert 'vllm:request_queue_time_seconds_count{model_name="base"} 1.0' in text
    assert 'vllm:inter_token_latency_seconds_count{model_name="base"} 5.0' in text
    assert "made-up" not in text, "clients don't make series"


async def test_the_description_has_the_bodies(harness: Harness) -> None:
    schema = (await harness.client.get("/openapi.json")).json()
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ChatRequest"
    }
    assert {"ChatRequest", "CompletionRequest", "Error"} <= set(schema["components"]["schemas"])
    assert "422" not in str(schema["paths"])
