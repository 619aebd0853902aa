"""The OpenAI SDK beyond its basics: raw answers, parsed ones, tools, embeddings; sync and async."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
MODELS = ("base", "tenant-8")


class Weather(BaseModel):
    """What a random model can be made to say: all of it is bounded."""

    sky: Literal["clear", "cloudy"]
    degrees: int = Field(ge=-50, le=50)
    windy: bool


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Bern", "Oslo"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


def test_a_raw_answer_has_its_headers_and_the_same_body(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="base", messages=MESSAGES, extra_headers={"x-request-id": "mine-7"}, **GREEDY
    )
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id == "mine-7"
    parsed = raw.parse()
    plain = client.chat.completions.create(model="base", messages=MESSAGES, **GREEDY)
    assert parsed.choices[0].message.content == plain.choices[0].message.content


def test_a_raw_stream_is_lines_of_events(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="base", messages=MESSAGES, stream=True, **GREEDY
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1])


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_is_parsed_into_a_class(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Weather, max_tokens=200, seed=3
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Weather)
    assert json.loads(message.content or "") == message.parsed.model_dump()


def test_an_answer_is_parsed_as_it_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="base", messages=MESSAGES, response_format=Weather, max_tokens=200, seed=3
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert isinstance(final.choices[0].message.parsed, Weather)


def test_json_mode_is_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "JSON, please"}],
        response_format={"type": "json_object"},
        max_tokens=300,
        seed=1,
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    else:
        assert (choice.message.content or "").lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, choice: Any) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is it like in Oslo?"}]
    asked = client.chat.completions.create(
        model="base", messages=turns, tools=[TOOL], tool_choice=choice, max_tokens=200, seed=5
    )
    message = asked.choices[0].message
    assert message.tool_calls
    call: Any = message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["town"] in ("Bern", "Oslo")
    turns += [
        message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'},
    ]
    answer = client.chat.completions.create(
        model="base", messages=turns, tools=[TOOL], tool_choice="none", **GREEDY
    )
    assert answer.choices[0].message.content is not None
    assert not answer.choices[0].message.tool_calls
    without = client.chat.completions.create(model="base", messages=turns[:1], **GREEDY)
    assert answer.usage is not None
    assert without.usage is not None
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens, "the result is in the prompt"


def test_the_arguments_of_a_call_stream_in_pieces(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "base",
        "messages": MESSAGES,
        "tools": [TOOL],
        "tool_choice": NAMED,
        "max_tokens": 200,
        "seed": 5,
    }
    whole: Any = client.chat.completions.create(**fields).choices[0]
    names, pieces, ids, finish = [], [], set(), None
    for chunk in client.chat.completions.create(stream=True, **fields):
        delta: Any = chunk.choices[0].delta
        finish = chunk.choices[0].finish_reason or finish
        for call in delta.tool_calls or []:
            ids |= {call.id} if call.id else set()
            names += [call.function.name] if call.function.name else []
            pieces += [call.function.arguments] if call.function.arguments else []
    assert names == ["weather"]
    assert len(ids) == 1
    assert len(pieces) > 1
    assert "".join(pieces) == whole.message.tool_calls[0].function.arguments
    assert finish == whole.finish_reason


def test_a_tool_is_parsed_from_a_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="base",
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(Weather, name="report")],
        tool_choice={"type": "function", "function": {"name": "report"}},
        parallel_tool_calls=False,
        max_tokens=900,
        seed=2,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, Weather)


@pytest.mark.parametrize("model", MODELS)
def test_embeddings_of_text_ids_and_batches_agree(client: openai.OpenAI, model: str) -> None:
    forms: list[Any] = ["first", list(b"first"), ["first", "second"], [list(b"first")]]
    found = [client.embeddings.create(model=model, input=form) for form in forms]
    vectors = [answer.data[0].embedding for answer in found]
    assert all(vector == pytest.approx(vectors[0], abs=1e-4) for vector in vectors)
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-3)
    assert [item.index for item in found[2].data] == [0, 1]
    assert found[2].data[1].embedding != pytest.approx(vectors[0], abs=1e-4)
    assert found[0].usage.prompt_tokens == len("first")


def test_embeddings_come_as_numbers_and_as_base64(client: openai.OpenAI) -> None:
    """The SDK asks for base64 unless told otherwise, and reads it itself."""
    default = client.embeddings.create(model="base", input="first").data[0].embedding
    plain = client.embeddings.create(model="base", input="first", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(default, abs=1e-6)


async def test_all_at_once(async_client: openai.AsyncOpenAI) -> None:
    """Streams, whole answers, parsed ones and tools side by side."""

    async def streamed(model: str) -> str:
        stream = await async_client.chat.completions.create(
            model=model, messages=MESSAGES, stream=True, **GREEDY
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def whole(model: str) -> str:
        answer = await async_client.chat.completions.create(
            model=model, messages=MESSAGES, **GREEDY
        )
        return answer.choices[0].message.content or ""

    async def parsed() -> Weather | None:
        answer = await async_client.chat.completions.parse(
            model="base", messages=MESSAGES, response_format=Weather, max_tokens=200
        )
        return answer.choices[0].message.parsed

    texts = await asyncio.gather(*(ask(model) for model in MODELS for ask in (streamed, whole)))
    assert texts[0] == texts[1] != texts[2] == texts[3]
    many = await asyncio.gather(*(parsed() for _ in range(6)))
    assert all(isinstance(one, Weather) for one in many)


async def test_a_batch_of_prompts_streams_by_index(async_client: openai.AsyncOpenAI) -> None:
    prompts = [list(b"first"), list(b"second one")]
    stream = await async_client.completions.create(
        model="base", prompt=prompts, stream=True, **GREEDY
    )
    texts = ["", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    whole = await async_client.completions.create(model="base", prompt=prompts, **GREEDY)
    assert texts == [choice.text for choice in whole.choices]
