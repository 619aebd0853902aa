"""What ``/v1/messages`` refuses, and how: Anthropic's shapes as Anthropic's own SDK reads them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from fake_engine import FakeEngine, engine_info

from branchline.gateway.fleet.headers import ERROR_CODE
from branchline.server.app import create_app
from branchline.server.body import parse_body
from branchline.server.messages.body import MessagesRequest
from branchline.server.messages.read import read_chat
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, access, make_services
from .test_messages import KEY, USER, sdk


@pytest.fixture
async def client(harness: Harness) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with sdk(harness.app) as client:
        yield client


def user(*blocks: Any) -> list[Any]:
    return [{"role": "user", "content": list(blocks)}]


CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    ({"messages": user({"type": "image", "source": {}})}, "messages[0].content[0]"),
    ({"messages": user({"type": "document", "source": {}})}, "messages[0].content[0]"),
    ({"messages": user({"type": "text", "text": 5})}, "messages[0].content[0].text"),
    (
        {"messages": [*USER, {"role": "assistant", "content": [CALL]}]},
        "messages[1].content",
    ),
    (
        {"messages": user({"type": "tool_result", "tool_use_id": "x"})},
        "messages[0].content[0].tool_use_id",
    ),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": 3}, "temperature"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
    ({"speed": "fast"}, "speed"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"n": 2}, "n"),
]


@pytest.mark.parametrize(("fields", "field"), REFUSED)
async def test_a_refusal_names_the_field(
    client: anthropic.AsyncAnthropic, fields: dict[str, Any], field: str
) -> None:
    body = {"model": BASE, "max_tokens": 9, "messages": USER, **fields}
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.post("/v1/messages", body=body, cast_to=object)
    error = caught.value
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == "invalid_request_error"
    assert error.body["error"]["message"].startswith(field), error.body["error"]["message"]
    assert error.body["request_id"] == error.request_id == error.response.headers["x-request-id"]


async def test_a_body_of_very_many_blocks(harness: Harness) -> None:
    blocks = [{"type": "text", "text": ""}] * (1 << 17)
    body = {"model": BASE, "max_tokens": 9, "messages": user(*blocks)}
    response = await harness.post("/v1/messages", body)
    assert response.status_code == 400
    assert "131072 objects" in response.json()["error"]["message"]


async def test_a_long_text_takes_no_time_a_character(harness: Harness) -> None:
    body = {"model": BASE, "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 10**6}]}
    chat = parse_body(MessagesRequest, json.dumps(body).encode())
    since = time.process_time()
    read_chat(chat)
    assert time.process_time() - since < 0.1


async def test_an_unknown_model(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="nobody", max_tokens=9, messages=USER)
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


async def test_a_prompt_that_is_too_long(client: anthropic.AsyncAnthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(anthropic.BadRequestError, match="512"):
        await client.messages.create(model=BASE, max_tokens=9, messages=long)


async def test_a_full_queue_and_a_dead_engine(
    harness: Harness, client: anthropic.AsyncAnthropic
) -> None:
    fields: dict[str, Any] = {"model": BASE, "max_tokens": 9, "messages": USER}
    harness.engine.error, harness.engine.error_kind = "the queue is full", "overloaded"
    with pytest.raises(anthropic.RateLimitError) as caught:
        await client.messages.create(**fields)
    assert caught.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
    assert "retry-after" in caught.value.response.headers
    harness.engine.die()
    with pytest.raises(anthropic.APIStatusError) as dead:
        await client.messages.create(**fields)
    assert dead.value.status_code == 503
    assert dead.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


async def test_a_failure_in_a_stream_is_an_error_event(
    harness: Harness, client: anthropic.AsyncAnthropic
) -> None:
    harness.engine.error = "no luck"
    harness.engine.error_at = lambda request, index: index == 2
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client.messages.stream(model=BASE, max_tokens=9, messages=USER) as stream:
            await stream.get_final_message()
    assert caught.value.body["error"]["type"] == "api_error"  # type: ignore[index]


async def test_keys_in_both_headers(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(info=engine_info())
    app = create_app(make_services(tokenizer, engine, access(tenant=("acme=sk-one",))))
    fields: dict[str, Any] = {"model": BASE, "max_tokens": 9, "messages": USER}
    async with sdk(app) as client:
        await client.messages.create(**fields)
        bare = client.with_options(default_headers={"Authorization": anthropic.Omit()})
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await bare.messages.create(**fields, extra_headers={"X-Api-Key": "sk-two"})
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        assert caught.value.request_id
        await bare.messages.create(**fields, extra_headers={"X-Api-Key": KEY})
    assert [request.tenant for request in engine.requests] == ["acme", "acme"]


async def test_a_wrong_method_has_anthropics_shape(harness: Harness) -> None:
    response = await harness.client.get("/v1/messages")
    assert response.status_code == 405
    assert response.json()["type"] == "error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/messages/nothing", 404),
        ("GET", "/v1/messages/batches/b_1", 404),
        ("POST", "/v1/messages/", 404),
        ("GET", "/v1/messages", 405),
        ("DELETE", "/v1/messages/count_tokens", 405),
        ("POST", "/v1/messages/%0a", 404),
    ],
)
async def test_paths_that_are_none(harness: Harness, method: str, path: str, status: int) -> None:
    answer = await harness.client.request(method, path)
    told = answer.json()
    assert answer.status_code == status
    assert told["type"] == "error"
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert told["error"]["type"] == kind
    assert told["request_id"] == answer.headers["request-id"]
    assert ("allow" in answer.headers) == (status == 405)


async def test_the_code_of_an_error_stands_beside_it(harness: Harness) -> None:
    """A gateway goes by it, and Anthropic's shape has no place for it."""
    body = {"model": "nobody", "max_tokens": 9, "messages": USER}
    answer = await harness.post("/v1/messages", body)
    assert answer.headers[ERROR_CODE] == "model_not_found"
    assert set(answer.json()["error"]) == {"type", "message"}
