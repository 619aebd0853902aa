"""What the engine turns away, and what comes too slowly: proper statuses, before the first byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from asgi_client import until
from fake_engine import FakeEngine, engine_info

from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, events, make_client, make_services

FULL = "the queue holds 8 requests and is full"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("retry_after", "header"), [(None, "1"), (0.0, "1"), (0.2, "1"), (3.0, "3"), (3.01, "4")]
)
async def test_a_full_queue_is_a_429_that_says_when(
    harness: Harness, errors_of: Any, stream: bool, retry_after: float | None, header: str
) -> None:
    harness.engine.error, harness.engine.error_kind = FULL, "overloaded"
    harness.engine.retry_after = retry_after
    for n in (1, 3):
        for response in (
            await harness.complete(stream=stream, n=n),
            await harness.chat(stream=stream, n=n),
        ):
            error = errors_of(response, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert FULL in error["message"]
            assert response.headers["retry-after"] == header
            assert response.headers["x-request-id"]
    metrics = (await harness.client.get("/metrics")).text
    assert 'requests_total{model="base",model_name="base",status="429"} 4.0' in metrics
    assert 'tenant_requests_total{model_name="base",status="429",tenant="default"} 4.0' in metrics
    assert 'finished_reason="error"' not in metrics, "a refusal is no failure"


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_that_never_have_room_beside_each_other_are_a_400(
    tokenizer: Tokenizer, errors_of: Any, stream: bool
) -> None:
    """Two seats and three places in the queue: a sixth choice would hear 429 for ever."""
    engine = FakeEngine(info=replace(engine_info(), max_num_seqs=2))
    options = {"max_queued_requests": 3}
    services = make_services(tokenizer, engine, engine_options=options)
    async with make_client(create_app(services)) as client:
        for path, body, statuses in (
            ("/v1/completions", {"prompt": "hi"}, (200, 400)),
            ("/v1/completions", {"prompt": ["hi", "ho"]}, (400, 400)),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, (200, 400)),
        ):
            for n, status in zip((5, 6), statuses, strict=True):
                asked = {"model": BASE, "n": n, "stream": stream, **body}
                response = await client.post(path, json=asked)
                assert response.status_code == status, (path, n, response.text)
                if status == 400:
                    error = errors_of(response, 400)
                    assert error["param"] == "n"
                    assert "5" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_is_a_400_that_names_the_field(
    harness: Harness, errors_of: Any, stream: bool
) -> None:
    harness.engine.error_kind = "refused"
    harness.engine.error = "prompt: 900 tokens, the pool holds 800"
    error = errors_of(await harness.complete(stream=stream), 400)
    assert error["param"] == "prompt"
    assert error["message"] == "prompt: 900 tokens, the pool holds 800"
    error = errors_of(await harness.chat(stream=stream), 400)
    assert error["param"] == "messages"
    assert error["message"] == "messages: 900 tokens, the pool holds 800"
    harness.engine.error = "max_tokens: must be less"
    assert errors_of(await harness.chat(stream=stream), 400)["param"] == "max_tokens"
    harness.engine.error = "Object contains unknown field: at $.x"
    assert errors_of(await harness.chat(stream=stream), 400)["param"] is None


async def test_a_choice_turned_away_within_a_stream_is_an_event(harness: Harness) -> None:
    """The other choice was answering already: the status has left."""
    engine = harness.engine
    engine.error, engine.error_kind = FULL, "overloaded"
    engine.error_at = lambda request, index: request.choice_index == 1 and index == 3
    chunks = events(await harness.complete(stream=True, n=2))
    assert chunks[0]["choices"][0]["text"] == "h"
    assert chunks[-1]["error"]["code"] == "queue_full"
    assert engine.running == 0
    response = await harness.complete(n=2)
    assert response.status_code == 429, "a whole answer has not begun"


def slow_body(gate: asyncio.Event, body: bytes) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        yield body[:10]
        await gate.wait()
        yield body[10:]

    return pieces()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/admin/cache/pins"])
async def test_a_body_that_does_not_come_is_a_408(
    tokenizer: Tokenizer, errors_of: Any, path: str
) -> None:
    services = make_services(tokenizer, FakeEngine(), body_timeout=0.05)
    async with make_client(create_app(services), "http://127.0.0.1") as client:
        body = slow_body(asyncio.Event(), b"{}" * 10)
        async with asyncio.timeout(5):
            response = await client.post(path, content=body)
    assert errors_of(response, 408)["code"] == "body_timeout"
    assert "0.05 s" in response.json()["error"]["message"]
    assert response.headers["connection"] == "close"
    assert services.gate.empty.is_set()


async def test_a_body_in_time_is_taken(tokenizer: Tokenizer) -> None:
    services = make_services(tokenizer, FakeEngine(), body_timeout=5)
    gate = asyncio.Event()
    async with make_client(create_app(services)) as client:
        body = slow_body(gate, b'{"model": "base", "prompt": "hi"}')
        asking = asyncio.create_task(client.post("/v1/completions", content=body))
        await until(lambda: not services.gate.empty.is_set())
        gate.set()
        assert (await asking).status_code == 200


async def test_an_answer_may_take_longer_than_its_body(tokenizer: Tokenizer) -> None:
    """The time is the body's alone."""
    engine = FakeEngine()
    engine.go.clear()
    async with make_client(
        create_app(make_services(tokenizer, engine, body_timeout=0.02))
    ) as client:
        body = {"model": BASE, "prompt": "hi"}
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: engine.running == 1)
        late = time.monotonic() + 0.06
        await until(lambda: time.monotonic() > late)
        engine.go.set()
        assert (await asking).status_code == 200
