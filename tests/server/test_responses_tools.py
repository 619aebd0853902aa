"""Tools, reasoning and schemas at ``/v1/responses``, over an engine in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_engine import FakeEngine, engine_info, say

from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, make_client, make_services
from .responses_client import CALL, OUTPUT, PATH, prompt_of, respond, user

TEMPLATE = """{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content }}{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""After Qwen's."""


@pytest.fixture
async def tool_harness(tokenizer: Tokenizer) -> AsyncIterator[Harness]:
    with_tools = Tokenizer(tokenizer._pretrained, TEMPLATE)
    engine = FakeEngine(info=engine_info(max_model_len=2048))
    services = make_services(with_tools, engine)
    app = create_app(services)
    async with make_client(app) as client:
        yield Harness(app, services, engine, client)


TOOL = {
    "type": "function",
    "name": "find",
    "description": "looks",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
CALLS = '<tool_call>\n{"name": "find", "arguments": {"a": 1}}\n</tool_call>'


async def test_tools_are_called_and_answered(tool_harness: Harness) -> None:
    harness = tool_harness
    harness.engine.script = say("I look." + CALLS)
    first = await respond(harness, "q", tools=[TOOL])
    assert [item["type"] for item in first["output"]] == ["message", "function_call"]
    call = first["output"][1]
    assert (call["name"], json.loads(call["arguments"])) == ("find", {"a": 1})
    assert call["call_id"].startswith("call_")
    assert first["tools"] == [{**TOOL, "strict": False}]
    assert "looks" in prompt_of(harness)
    harness.engine.script = say("done")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "four"}
    second = await respond(harness, [output], previous_response_id=first["id"], tools=[TOOL])
    assert second["output"][0]["content"][0]["text"] == "done"
    prompt = prompt_of(harness)
    assert "I look." in prompt
    assert '"find"' in prompt
    assert "four" in prompt
    alone = await harness.post(PATH, {"model": BASE, "input": [output, user("x")], "tools": [TOOL]})
    assert alone.json()["error"]["param"] == "input[0].call_id"


async def test_a_named_tool_must_be_there(tool_harness: Harness) -> None:
    body = {
        "model": BASE,
        "input": "q",
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "other"},
    }
    answer = await tool_harness.post(PATH, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tool_choice")


async def test_reasoning_is_an_item_of_its_own(tool_harness: Harness) -> None:
    harness = tool_harness
    harness.engine.script = say("<think>hm hm</think>so")
    first = await respond(harness, "q")
    assert [item["type"] for item in first["output"]] == ["reasoning", "message"]
    assert first["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm hm"}]
    assert first["usage"]["output_tokens_details"]["reasoning_tokens"] == 5
    second = await respond(harness, "r", previous_response_id=first["id"])
    assert second["status"] == "completed"
    assert "so<|im_end|>" in prompt_of(harness)


async def test_a_schema_becomes_a_grammar(harness: Harness) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    harness.engine.script = say('{"a": 1}')
    body = await respond(harness, text={"format": form})
    grammar = harness.engine.requests[0].params.grammar
    assert grammar is not None
    assert "integer" in grammar.text
    assert body["text"]["format"]["schema"] == schema
    bad = {**form, "schema": {"type": "no such type"}}
    answer = await harness.post(PATH, {"model": BASE, "input": "q", "text": {"format": bad}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("text.format"), answer.text


async def test_what_the_sdk_parsed_may_come_back(tool_harness: Harness) -> None:
    call = {**CALL, "name": "find", "parsed_arguments": {"a": 1}}
    said = [{"type": "output_text", "text": "x", "annotations": [], "parsed": {"b": 2}}]
    items = [user("q"), {"role": "assistant", "content": said}, call, OUTPUT]
    made = await respond(tool_harness, items)
    place = f"{PATH}/{made['id']}/input_items"
    kept = (await tool_harness.client.get(place)).text
    assert "parsed" not in kept


async def test_effort_goes_to_the_template(tokenizer: Tokenizer) -> None:
    template = "{{ reasoning_effort }}{% for m in messages %}{{ m.content }}{% endfor %}"
    services = make_services(Tokenizer(tokenizer._pretrained, template), FakeEngine())
    async with make_client(create_app(services)) as client:
        body = {"model": BASE, "input": "hi", "reasoning": {"effort": "low"}}
        answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["reasoning"] == {"effort": "low", "summary": None}
    engine = services.supervisor.engine
    assert isinstance(engine, FakeEngine)
    assert tokenizer.decode(engine.requests[0].prompt_token_ids) == "lowhi"


async def test_allowed_tools_are_all_that_may_be_called(tool_harness: Harness) -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "find"}],
    }
    other = {**TOOL, "name": "other", "description": "not this"}
    body = await respond(tool_harness, "q", tools=[TOOL, other], tool_choice=allowed)
    assert "looks" in prompt_of(tool_harness)
    assert "not this" in prompt_of(tool_harness), "the cached beginning stays"
    grammar = tool_harness.engine.requests[-1].params.grammar
    assert grammar is not None
    assert "find" in grammar.text
    assert "other" not in grammar.text
    assert body["tool_choice"] == allowed
    assert len(body["tools"]) == 2
    unknown = {**allowed, "tools": [{"type": "function", "name": "gone"}]}
    answer = await tool_harness.post(
        PATH, {"model": BASE, "input": "q", "tools": [TOOL], "tool_choice": unknown}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tool_choice.tools[0].name"


async def test_parallel_calls_can_be_forbidden(tool_harness: Harness) -> None:
    choice: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}
    tool_harness.engine.script = say(CALLS)
    await respond(tool_harness, "q", **choice)
    await respond(tool_harness, "q", **choice, parallel_tool_calls=False)
    several, single = (request.params.grammar for request in tool_harness.engine.requests)
    assert several is not None
    assert single is not None
    assert several != single
