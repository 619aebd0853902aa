"""Anthropic's SDK against a real server: answers, streams, tools, schemas, refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from server_process import ServerProcess

from .conftest import API_KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

USER: list[Any] = [{"role": "user", "content": "hello there"}]
ASK: dict[str, Any] = {"max_tokens": 12, "messages": USER, "extra_body": {"temperature": 0}}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a place.",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
        "required": ["place", "days"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def claude(openai_server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=openai_server.base_url, api_key=API_KEY, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def async_claude(openai_server: ServerProcess) -> AsyncIterator[anthropic.AsyncAnthropic]:
    client = anthropic.AsyncAnthropic(
        base_url=openai_server.base_url, api_key=API_KEY, max_retries=0
    )
    async with client:
        yield client


def text_of(message: Any) -> str:
    [block] = message.content
    assert block.type == "text"
    text: str = block.text
    return text


@pytest.mark.parametrize("model", ["base", "tenant-8"])
def test_it_says_what_a_chat_says(claude: anthropic.Anthropic, client: Any, model: str) -> None:
    message = claude.messages.create(model=model, system="be kind", **ASK)
    turns = [{"role": "system", "content": "be kind"}, *USER]
    chat = client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=12)
    assert text_of(message) == chat.choices[0].message.content
    reasons = {"length": "max_tokens", "stop": "end_turn"}
    assert message.stop_reason == reasons[chat.choices[0].finish_reason]
    usage = message.usage
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert (prompt, usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )


def test_a_stream_is_the_same_message(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model="base", **ASK)
    with claude.messages.stream(model="base", **ASK) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == text_of(whole) == text_of(streamed)
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    raw = claude.messages.create(model="base", stream=True, **ASK)
    kinds = [event.type for event in raw]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


async def test_async_answers_and_streams(async_claude: anthropic.AsyncAnthropic) -> None:
    whole = await async_claude.messages.create(model="tenant-4", **ASK)
    async with async_claude.messages.stream(model="tenant-4", **ASK) as stream:
        streamed = await stream.get_final_message()
    assert text_of(streamed) == text_of(whole)


def test_a_prompt_that_comes_again_is_read_from_the_cache(claude: anthropic.Anthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "once upon a time " * 20}]
    first = claude.messages.create(model="base", max_tokens=2, messages=long)
    again = claude.messages.create(model="base", max_tokens=2, messages=long)
    assert again.usage.cache_read_input_tokens
    assert (again.usage.input_tokens + again.usage.cache_read_input_tokens) == (
        first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    )


def test_max_tokens_of_0_warm_the_cache(claude: anthropic.Anthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "there was a king " * 20}]
    warm = claude.messages.create(model="base", max_tokens=0, messages=long)
    assert (warm.content, warm.usage.output_tokens) == ([], 0)
    then = claude.messages.create(model="base", max_tokens=1, messages=long)
    assert then.usage.cache_read_input_tokens


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_called_and_answers(claude: anthropic.Anthropic, choice: Any) -> None:
    fields: dict[str, Any] = {
        "model": "base",
        "max_tokens": 400,
        "tools": [TOOL],
        "tool_choice": {**choice, "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 1, "seed": 3},
    }
    with claude.messages.stream(messages=USER, **fields) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "get_weather"
    assert call.input["place"] in ("Rome", "Oslo")
    assert call.input["days"] in (1, 2)
    whole = claude.messages.create(messages=USER, **fields)
    assert [b.input for b in whole.content if b.type == "tool_use"] == [call.input]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns: list[Any] = [
        *USER,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
    ]
    after = claude.messages.create(model="base", max_tokens=4, messages=turns, tools=[TOOL])
    assert after.usage.output_tokens


def test_a_schema_is_kept(claude: anthropic.Anthropic) -> None:
    schema = TOOL["input_schema"]
    message = claude.messages.create(
        model="base",
        max_tokens=400,
        messages=USER,
        output_config={"format": {"type": "json_schema", "schema": schema}},
        extra_body={"seed": 5},
    )
    found = json.loads(text_of(message))
    assert found["place"] in ("Rome", "Oslo")


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model="base", messages=USER, system="be kind")
    usage = claude.messages.create(model="base", system="be kind", **ASK).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_refusals(claude: anthropic.Anthropic, openai_server: ServerProcess) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="nobody", **ASK)
    assert unknown.value.request_id
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]"):
        claude.messages.create(
            model="base",
            max_tokens=1,
            messages=[{"role": "user", "content": [image]}],  # type: ignore[list-item]
        )
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="sk-wrong").messages.create(model="base", **ASK)
    old = httpx.post(
        f"{openai_server.base_url}/v1/messages",
        headers={"x-api-key": API_KEY, "anthropic-version": "2023-06-01", "x-request-id": "my-1"},
        json={"model": "base", "max_tokens": 2, "messages": USER},
    )
    assert old.status_code == 200
    assert (old.headers["request-id"], old.headers["x-request-id"]) == ("my-1", "my-1")


def test_text_and_tokens(openai_server: ServerProcess) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        headers = {"authorization": f"Bearer {API_KEY}"}
        answer = httpx.post(f"{openai_server.base_url}{path}", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    tokens = post("/tokenize", {"model": "tenant-4", "prompt": "hé"})
    assert (tokens["count"], tokens["max_model_len"]) == (len(tokens["tokens"]), 4096)
    assert post("/detokenize", {"model": "tenant-4", "tokens": tokens["tokens"]}) == {
        "prompt": "hé"
    }
    assert httpx.post(f"{openai_server.base_url}/tokenize", json={"prompt": "x"}).status_code == 401
