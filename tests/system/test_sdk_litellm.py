"""litellm before Branchline, as an OpenAI and as an Anthropic provider."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from server_process import ServerProcess

from .conftest import API_KEY

# Its table of prices is fetched at import otherwise.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
litellm: Any = pytest.importorskip("litellm")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MESSAGES = [{"role": "user", "content": "hello there"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Bern", "Oslo"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def openai_way(openai_server: ServerProcess) -> dict[str, Any]:
    return {
        "api_base": openai_server.api_url,
        "api_key": API_KEY,
        "temperature": 0,
        "max_tokens": 12,
        "num_retries": 0,
    }


@pytest.fixture
def anthropic_way(openai_server: ServerProcess, openai_way: dict[str, Any]) -> dict[str, Any]:
    return {**openai_way, "api_base": openai_server.base_url}


def test_a_completion(openai_way: dict[str, Any]) -> None:
    answer = litellm.completion(model="openai/base", messages=MESSAGES, **openai_way)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 12
    other = litellm.completion(model="openai/tenant-16", messages=MESSAGES, **openai_way)
    assert other.choices[0].message.content != answer.choices[0].message.content


async def test_an_async_stream(openai_way: dict[str, Any]) -> None:
    stream = await litellm.acompletion(
        model="openai/base", messages=MESSAGES, stream=True, **openai_way
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    whole = await litellm.acompletion(model="openai/base", messages=MESSAGES, **openai_way)
    assert text == whole.choices[0].message.content


def test_text_completion(openai_way: dict[str, Any]) -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/base", prompt="abc", logit_bias={"65": 100}, **openai_way
    )
    assert answer.choices[0].text == "A" * 12


def test_a_tool_call(openai_way: dict[str, Any]) -> None:
    fields = {**openai_way, "max_tokens": 200, "temperature": 1, "seed": 5}
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = litellm.completion(
        model="openai/base", messages=MESSAGES, tools=[TOOL], tool_choice=choice, **fields
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["town"] in ("Bern", "Oslo")


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_next_turn_takes_a_message_as_litellm_gave_it(
    openai_way: dict[str, Any], as_dict: bool
) -> None:
    first = litellm.completion(model="openai/base", messages=MESSAGES, **openai_way)
    said = first.choices[0].message
    turns = [*MESSAGES, said.model_dump() if as_dict else said, *MESSAGES]
    answer = litellm.completion(model="openai/base", messages=turns, **openai_way)
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens
    fields = {**openai_way, "max_tokens": 200, "temperature": 1, "seed": 5}
    called = (
        litellm.completion(
            model="openai/base", messages=MESSAGES, tools=[TOOL], tool_choice="required", **fields
        )
        .choices[0]
        .message
    )
    call = called.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}
    turns = [*MESSAGES, called.model_dump() if as_dict else called, result]
    answer = litellm.completion(model="openai/base", messages=turns, tools=[TOOL], **openai_way)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_embeddings(openai_way: dict[str, Any]) -> None:
    fields = {name: openai_way[name] for name in ("api_base", "api_key")}
    answer = litellm.embedding(model="openai/base", input=["first", "second"], **fields)
    first, second = (item["embedding"] for item in answer.data)
    assert len(first) == len(second) == 64
    assert first != second


def test_an_error_is_its_kind(openai_way: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", messages=MESSAGES, **openai_way)
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(
            model="openai/base", messages=MESSAGES, **{**openai_way, "temperature": 3}
        )
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(
            model="openai/base", messages=MESSAGES, **{**openai_way, "api_key": "wrong"}
        )


def test_as_an_anthropic_model(openai_way: dict[str, Any], anthropic_way: dict[str, Any]) -> None:
    answer = litellm.completion(model="anthropic/base", messages=MESSAGES, **anthropic_way)
    same = litellm.completion(model="openai/base", messages=MESSAGES, **openai_way)
    assert answer.choices[0].message.content == same.choices[0].message.content
    stream = litellm.completion(
        model="anthropic/base", messages=MESSAGES, stream=True, **anthropic_way
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == same.choices[0].message.content
