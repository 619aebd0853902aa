"""What a gateway says of a request beside its tenant: priority, group and model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_engine import FakeEngine

from branchline.engine.types import GenerationRequest
from branchline.server.access import Access
from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, Harness, access, make_client, make_services

SECRET = "x-branchline-fleet-secret"
PRIORITY, GROUP = "x-branchline-priority", "x-branchline-cache-group"
MODEL = "x-branchline-model"
WHO = access(tenant=("acme=k1",), fleet_secret="s")


async def ask(
    tokenizer: Tokenizer, headers: dict[str, str], who: Access = WHO, **fields: Any
) -> tuple[Any, GenerationRequest | None]:
    engine = FakeEngine()
    async with make_client(create_app(make_services(tokenizer, engine, who))) as client:
        body = {"model": BASE, "prompt": "hi", **fields}
        response = await client.post("/v1/completions", json=body, headers=headers)
    return response, engine.requests[0] if engine.requests else None


async def test_priorities_add_up_and_groups_are_told(tokenizer: Tokenizer) -> None:
    headers = {SECRET: "s", PRIORITY: "-10", GROUP: "pool"}
    response, request = await ask(tokenizer, headers, priority=3)
    assert response.status_code == 200, response.text
    assert request is not None
    assert (request.priority, request.cache_group) == (-7, "pool")


async def test_without_the_secret_these_headers_are_air(tokenizer: Tokenizer) -> None:
    headers = {PRIORITY: "x", GROUP: "pool", MODEL: ADAPTER, "authorization": "Bearer k1"}
    for secret in ({}, {SECRET: "wrong"}):
        response, request = await ask(tokenizer, headers | secret)
        assert response.status_code == 200, response.text
        assert request is not None
        assert (request.priority, request.cache_group, request.adapter) == (0, None, None)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *((PRIORITY, value) for value in ("", "x", "1.5", "1234567", "--1")),
        *((GROUP, value) for value in ("", "a\tb", "x" * 129)),
        *((MODEL, value) for value in ("", "x" * 257, "a\tb")),
    ],
)
async def test_bad_ones_are_named(
    tokenizer: Tokenizer, errors_of: Any, header: str, value: str
) -> None:
    response, request = await ask(tokenizer, {SECRET: "s", header: value})
    assert errors_of(response, 400)["param"] == header
    assert request is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_gateways_model_answers_under_the_clients_word(
    tokenizer: Tokenizer, path: str, stream: bool
) -> None:
    engine = FakeEngine()
    async with make_client(create_app(make_services(tokenizer, engine, WHO))) as client:
        prompt = {"prompt": "hi"} if "chat" not in path else {"messages": [MESSAGE]}
        body = {"model": "legal", "stream": stream, "max_tokens": 3, **prompt}
        headers = {SECRET: "s", MODEL: ADAPTER}
        response = await client.post(path, json=body, headers=headers)
        metrics = (await client.get("/metrics")).text
    assert response.status_code == 200, response.text
    assert '"model":"legal"' in response.text
    assert ADAPTER not in response.text
    assert engine.requests[0].adapter == "digest-a"
    assert "legal" not in metrics


MESSAGE = {"role": "user", "content": "hi"}


async def test_a_model_that_is_not_here_is_told_apart(tokenizer: Tokenizer, errors_of: Any) -> None:
    response, _ = await ask(tokenizer, {SECRET: "s", MODEL: "fleet/0"}, model="legal")
    assert errors_of(response, 404)["code"] == "adapter_not_here"
    response, _ = await ask(tokenizer, {SECRET: "s"}, model="legal")
    assert errors_of(response, 404)["code"] == "model_not_found"


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({SECRET: "s"}, 200)])
async def test_a_replica_without_keys_answers_only_to_the_fleet(
    tokenizer: Tokenizer, headers: dict[str, str], status: int
) -> None:
    who = replace(access(fleet_secret="s"), is_closed=True)
    response, _ = await ask(tokenizer, headers, who)
    assert response.status_code == status


@pytest.mark.parametrize("path", ["/fleet", "/fleet/", "/fleet/state", "/fleet/blobs/x"])
async def test_without_a_fleet_there_is_nothing(
    harness: Harness, errors_of: Any, path: str
) -> None:
    for headers in ({}, {SECRET: "s"}):
        error = errors_of(await harness.client.get(path, headers=headers), 404)
        assert error["message"] == f"There is no GET {path} here."
