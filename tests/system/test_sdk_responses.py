"""The OpenAI SDK's Responses API against a real server: turns, streams, tools, schemas, pages."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MODELS = ("base", "tenant-8")
GREEDY: dict[str, Any] = {"temperature": 0, "max_output_tokens": 12}


class Weather(BaseModel):
    """What a random model can be made to say: all of it is bounded."""

    sky: Literal["clear", "cloudy"]
    degrees: int = Field(ge=-50, le=50)


TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a town.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string", "enum": ["Bern", "Oslo"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("model", MODELS)
def test_a_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI, model: str) -> None:
    text = f"A long enough beginning of a conversation with {model}, " * 4
    first = client.responses.create(model=model, input=text, **GREEDY)
    assert first.status in ("completed", "incomplete")
    second = client.responses.create(
        model=model, input="and then?", previous_response_id=first.id, **GREEDY
    )
    assert first.usage is not None
    assert second.usage is not None
    cached = second.usage.input_tokens_details.cached_tokens
    assert cached > 0.8 * first.usage.input_tokens, "the first prompt is in the second"
    chat = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "user", "content": text},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "and then?"},
        ],
        temperature=0,
        max_tokens=12,
    )
    assert chat.choices[0].message.content == second.output_text, "the same as the whole chat"


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_says_what_the_whole_answer_does(client: openai.OpenAI, model: str) -> None:
    whole = client.responses.create(model=model, input="hello", **GREEDY)
    events = list(client.responses.create(model=model, input="hello", stream=True, **GREEDY))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].type == f"response.{whole.status}"


def test_the_streaming_helper_has_a_final_response(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="base", input="hello", text_format=Weather, max_output_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.created", "response.output_text.done", "response.completed"} <= kinds
    assert isinstance(final.output_parsed, Weather)
    kept = client.responses.retrieve(final.id)
    assert kept.output_text == final.output_text


def test_an_answer_is_parsed_into_a_class(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model="base", input="hello", text_format=Weather, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Weather)
    assert json.loads(answer.output_text) == answer.output_parsed.model_dump()


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_is_called_and_answered(client: openai.OpenAI, streams: bool) -> None:
    asked: dict[str, Any] = {
        "model": "base",
        "input": "the weather?",
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 200,
    }
    if streams:
        with client.responses.stream(**asked) as stream:
            deltas = [e.delta for e in stream if "arguments.delta" in e.type]
            first: Any = stream.get_final_response()
        assert "".join(deltas) == first.output[-1].arguments
    else:
        first = client.responses.create(**asked)
    call = first.output[-1]
    assert call.type == "function_call"
    assert call.name == "weather"
    assert json.loads(call.arguments)["town"] in ("Bern", "Oslo")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    kept = client.responses.create(
        model="base", input=[output], previous_response_id=first.id, tools=[TOOL], **GREEDY
    )
    sent: Any = [{"role": "user", "content": "the weather?"}, *first.output, output]
    again = client.responses.create(model="base", input=sent, tools=[TOOL], **GREEDY)
    assert again.usage is not None
    assert kept.usage is not None
    assert again.usage.input_tokens == kept.usage.input_tokens, "kept or sent is the same prompt"
    assert again.output_text == kept.output_text


def test_logprobs_are_those_of_chats(client: openai.OpenAI) -> None:
    answer: Any = client.responses.create(
        model="base",
        input="hello",
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        **GREEDY,
    )
    chat = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "hello"}],
        temperature=0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.output[0].content[0].logprobs
    assert chat.choices[0].logprobs is not None
    expected = chat.choices[0].logprobs.content or []
    assert [entry.token for entry in logprobs] == [entry.token for entry in expected]
    for one, other in zip(logprobs, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert len(one.top_logprobs) == 3


def test_kept_responses_are_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(model="base", input="one", **GREEDY)
    second = client.responses.create(
        model="base", input="two", previous_response_id=first.id, **GREEDY
    )
    pages = client.responses.input_items.list(second.id, order="asc", limit=1)
    assert [item.type for item in pages] == ["message"] * 3
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(second.id)
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="base", input="x", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"
    client.responses.create(model="base", input="x", previous_response_id=first.id, **GREEDY)


async def test_many_conversations_at_once(async_client: openai.AsyncOpenAI) -> None:
    async def talk(number: int) -> list[str]:
        said, previous = [], None
        for turn in range(3):
            answer = await async_client.responses.create(
                model=MODELS[number % 2],
                input=f"{number} {turn}",
                previous_response_id=previous,
                extra_body={"seed": number},
                max_output_tokens=8,
            )
            previous = answer.id
            said.append(answer.output_text)
        return said

    both = [await asyncio.gather(*(talk(number) for number in range(8))) for _ in range(2)]
    assert both[0] == both[1], "the same seeds, the same conversations"


def test_what_is_kept_is_counted(client: openai.OpenAI, openai_server: ServerProcess) -> None:
    before = openai_server.metric("branchline:responses_kept_total")
    client.responses.create(model="base", input="one", **GREEDY)
    client.responses.create(model="base", input="one", store=False, **GREEDY)
    assert openai_server.metric("branchline:responses_kept_total") == before + 1
