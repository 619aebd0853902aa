"""Bodies of ``/v1/responses``: what is refused is named, what is accepted changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

from branchline.server.responses.body import ACCEPTED, NEUTRAL, ResponseRequest

from .conftest import BASE, Harness
from .responses_client import OUTPUT, PATH, respond, user

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": "x", "bad": 1}]}, "input[0].bad"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0]",
    ),
    ({"input": [OUTPUT]}, "input[0].call_id"),
    ({"background": True}, "background"),
    ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"unknown_thing": 1}, "unknown_thing"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"include": ["everything"]}, "include[0]"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": 2000, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 5000}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"truncation": "middle"}, "truncation"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"previous_response_id": "resp_no"}, "previous_response_id"),
    ({"input": "x" * 2000}, "input"),
    ({"input": [user("x")] * 9000}, "input"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_is_refused_is_named(
    harness: Harness, fields: dict[str, Any], param: str
) -> None:
    answer = await harness.post(PATH, {"model": BASE, "input": "hi", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert str(error["param"]).startswith(param), error
    assert "messages:" not in json.dumps(error), "in the words of this endpoint"
    assert not harness.engine.requests


async def test_accepted_fields_change_nothing(harness: Harness) -> None:
    await respond(
        harness,
        prompt_cache_options={"mode": "implicit"},
        prompt_cache_retention="24h",
        max_tool_calls=3,
        background=False,
        service_tier="auto",
        truncation="disabled",
        stream=False,
        text={"format": {"type": "text"}},
        reasoning={"summary": "auto"},
    )


def test_every_field_of_the_sdk_is_on_one_of_the_lists() -> None:
    fields = {*ResponseCreateParamsNonStreaming.__annotations__}
    for base in ResponseCreateParamsNonStreaming.__orig_bases__:  # type: ignore[attr-defined]
        fields |= {*base.__annotations__}
    assert len(fields) > 30
    honoured = set(ResponseRequest.model_fields)
    lists = (honoured, ACCEPTED, set(NEUTRAL))
    for name in fields:
        assert sum(name in one for one in lists) == 1, name


async def test_numbers_of_any_size_in_tools_are_no_fault_of_ours(harness: Harness) -> None:
    parameters = {"type": "object", "properties": {"a": {"maximum": 10**30}}}
    tools = [{"type": "function", "name": "f", "parameters": parameters}]
    body = {"model": BASE, "input": "x", "tools": tools}
    assert (await harness.post(PATH, body)).status_code in (200, 400)
