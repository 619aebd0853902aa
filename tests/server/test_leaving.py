"""Clients that leave, engines that die, failures in the middle of an answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgi_client import AsgiRequest, until
from fake_engine import FakeEngine, say

from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, events, make_services

PATH = "/v1/completions"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": BASE, "prompt": "x", "max_tokens": 500, **fields}).encode()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_requests(
    harness: Harness, stream: bool, n: int
) -> None:
    harness.engine.script = say("x" * 10_000)
    harness.engine.go.clear()
    request = AsgiRequest(harness.app, PATH, body(stream=stream, n=n))
    await until(lambda: harness.engine.running == n)
    request.leave()
    await asyncio.wait_for(request.task, 5)
    assert harness.engine.running == 0
    assert sorted(harness.engine.aborted) == sorted(r.request_id for r in harness.engine.requests)
    assert harness.services.gate.empty.is_set()
    assert harness.services.metrics.num_in_flight == 0


@pytest.mark.parametrize("n", [1, 3])
async def test_a_reader_that_leaves_within_a_stream(harness: Harness, n: int) -> None:
    harness.engine.script = say("x" * 10_000)
    request = AsgiRequest(harness.app, PATH, body(stream=True, n=n))
    await until(lambda: request.num_chunks > 20)
    request.leave()
    await asyncio.wait_for(request.task, 5)
    assert harness.engine.running == 0
    assert len(harness.engine.aborted) == n
    metrics = (await harness.client.get("/metrics")).text
    assert f'request_success_total{{finished_reason="abort",model_name="base"}} {n}.0' in metrics


async def test_a_reader_that_takes_nothing_is_given_up(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    app = create_app(make_services(tokenizer, engine, client_timeout=0.4))
    engine.script = say("x" * 10_000)
    request = AsgiRequest(app, PATH, body(stream=True), max_messages=5)
    await until(lambda: len(request.sent) == 5)
    assert engine.running == 1
    await asyncio.wait_for(request.task, 5)
    assert (engine.running, len(engine.aborted)) == (0, 1)
    engine.go.clear()
    slow = AsgiRequest(app, PATH, body(stream=True, max_tokens=3))
    await asyncio.sleep(0.8)
    engine.go.set()
    await asyncio.wait_for(slow.task, 5)
    assert slow.sent[-1]["more_body"] is False, "an engine may take its time"


@pytest.mark.parametrize("n", [1, 2])
async def test_a_slow_reader_holds_up_its_own_request_only(harness: Harness, n: int) -> None:
    harness.engine.script = say("x" * 10_000)
    request = AsgiRequest(harness.app, PATH, body(stream=True, n=n), max_messages=5)
    await until(lambda: len(request.sent) == 5)
    for _ in range(3000):
        await asyncio.sleep(0)
    assert harness.engine.num_outputs < 100, "what is not read is not taken from the engine"
    assert (await harness.complete(max_tokens=3)).status_code == 200
    request.leave()
    await asyncio.wait_for(request.task, 5)
    assert harness.engine.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_before_the_first_token(harness: Harness, stream: bool) -> None:
    harness.engine.go.clear()
    asking = asyncio.create_task(harness.complete(stream=stream))
    await until(lambda: harness.engine.running == 1)
    harness.engine.die()
    response = await asyncio.wait_for(asking, 5)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_dead"
    assert (await harness.client.get("/health")).status_code == 503
    assert (await harness.client.get("/ready")).status_code == 503
    assert (await harness.complete()).status_code == 503


@pytest.mark.parametrize("n", [1, 2])
async def test_an_engine_that_dies_within_a_stream(harness: Harness, n: int) -> None:
    harness.engine.fail_after = 3
    chunks = events(await harness.complete(stream=True, n=n))
    assert chunks[0]["choices"][0]["text"] == "h"
    assert chunks[-1]["error"]["code"] == "engine_dead"
    assert harness.engine.running == 0


async def test_a_step_that_fails_is_a_500_without_its_insides(harness: Harness) -> None:
    harness.engine.error = "RuntimeError: shapes"
    response = await harness.complete()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert (await harness.client.get("/health")).status_code == 200


async def test_a_bug_is_a_shaped_500(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(FakeEngine, "generate", broken)
    response = await harness.complete()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_closed_gate_refuses_new_work_only(harness: Harness) -> None:
    harness.engine.go.clear()
    running = asyncio.create_task(harness.complete())
    await until(lambda: harness.engine.running == 1)
    harness.services.gate.close()
    refused = await harness.complete()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert (await harness.client.get("/ready")).status_code == 503
    assert (await harness.client.get("/v1/models")).status_code == 200
    harness.engine.go.set()
    assert (await asyncio.wait_for(running, 5)).status_code == 200
    assert harness.services.gate.empty.is_set()
