"""Tools in chats: what the model is told, what its calls come back as, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import tool_templates
from fake_engine import FakeEngine, engine_info, say
from openai import AsyncOpenAI

from branchline.server import chat_messages
from branchline.server.app import create_app
from branchline.server.catalog import ServedModel
from branchline.server.openai import ChatRequest
from branchline.server.output_plan import ChatOutputs
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, events, make_client, make_services

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TURNS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]},
]


@pytest.fixture
async def tools(tokenizer: Tokenizer) -> AsyncIterator[Harness]:
    """A house with room for long prompts, and a model a template."""
    engine = FakeEngine(info=engine_info(max_model_len=4096))
    services = make_services(tokenizer, engine)
    app = create_app(services)
    async with make_client(app) as client:
        harness = Harness(app, services, engine, client)
        for name in ("HERMES", "QWEN3", "THINKS_AT_ONCE", "LLAMA3", "MISTRAL", "EFFORT"):
            serve(harness, name.lower(), getattr(tool_templates, name))
        serve(harness, "as_text", tool_templates.ARGUMENTS_AS_TEXT)
        yield harness
        await services.grammars.close()


def serve(harness: Harness, name: str, template: str) -> None:
    model = ServedModel(name, f"/adapters/{name}", f"digest-{name}", template, version=1)
    harness.services.catalog.put(name, {1: model}, 1)


def prompt(harness: Harness) -> str:
    """The prompt of the latest request; tokens from 256 on are special."""
    tokenizer = harness.services.tokenizer
    return tokenizer.decode(harness.engine.requests[-1].prompt_token_ids)


async def chosen(harness: Harness, **fields: Any) -> dict[str, Any]:
    response = await harness.chat(**fields)
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    assert isinstance(choice, dict)
    return choice


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream's deltas of one choice put together as clients do."""
    message: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                if name in delta:
                    message[name] = message.get(name, "") + delta[name]
            for piece in delta.get("tool_calls", []):
                if piece["index"] == len(calls):
                    calls.append({"id": piece["id"], "type": piece["type"], "function": {}})
                function = calls[piece["index"]]["function"]
                for name, text in piece["function"].items():
                    function[name] = function.get(name, "") + text
            message["finish_reason"] = choice["finish_reason"]
    return message | {"tool_calls": calls}


async def test_calls_come_back_as_tool_calls(tools: Harness) -> None:
    tools.engine.script = say(f"One moment.\n{CALL}\n{CALL}")
    choice = await chosen(tools, model="hermes", tools=[WEATHER])
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "One moment."
    first, second = message["tool_calls"]
    assert first["id"] != second["id"]
    assert first["type"] == "function"
    assert first["function"] == {"name": "get_weather", "arguments": '{"city": "Köln"}'}
    assert "index" not in first


async def test_a_stream_has_the_arguments_in_pieces(tools: Harness) -> None:
    tools.engine.script = say(f"So:\n{CALL}")
    response = await tools.chat(model="hermes", tools=[WEATHER], stream=True, logprobs=True)
    chunks = events(response)
    message = joined(chunks)
    assert message["content"] == "So:"
    assert message["finish_reason"] == "tool_calls"
    [call] = message["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Köln"}'}
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert sum("tool_calls" in delta for delta in deltas) > 5
    positions = [c["logprobs"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    assert sum(len(position["content"]) for position in positions) == len(f"So:\n{CALL}") + 2


async def test_the_sdk_reads_a_stream_of_calls(tools: Harness) -> None:
    tools.engine.script = say(CALL)
    client = AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=tools.client)
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    given: list[Any] = [WEATHER]
    async with client.chat.completions.stream(
        model="hermes", messages=messages, tools=given
    ) as stream:
        completion = await stream.get_final_completion()
    [call] = completion.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    assert completion.choices[0].finish_reason == "tool_calls"


async def test_choices_have_calls_of_their_own(tools: Harness) -> None:
    tools.engine.script = lambda request: say("No." if request.choice_index else CALL)(request)
    response = await tools.chat(model="hermes", tools=[WEATHER], n=2)
    first, second = response.json()["choices"]
    assert (first["finish_reason"], first["message"]["content"]) == ("tool_calls", None)
    assert (second["finish_reason"], second["message"]["content"]) == ("stop", "No.")
    assert "tool_calls" not in second["message"]


async def test_a_cut_call_ends_with_length(tools: Harness) -> None:
    tools.engine.script = say(CALL)
    choice = await chosen(tools, model="hermes", tools=[WEATHER], max_tokens=60)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city')
    choice = await chosen(tools, model="hermes", tools=[WEATHER], max_tokens=20)
    assert choice["message"]["content"] == CALL[:20]


@pytest.mark.parametrize(
    "without", [{}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}]
)
async def test_without_tools_a_call_is_text(tools: Harness, without: dict[str, Any]) -> None:
    tools.engine.script = say(CALL)
    choice = await chosen(tools, model="hermes", **without)
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert "get_weather" not in prompt(tools)


async def test_each_family_is_known_by_its_template(tools: Harness) -> None:
    object_ = '{"name": "get_weather", "parameters": {"city": "Bonn"}}'
    answers = {"llama3": object_, "mistral": f"[TOOL_CALLS][{object_}]", BASE: f"[{object_}]"}
    for model, text in answers.items():
        tools.engine.script = say(text)
        choice = await chosen(tools, model=model, tools=[WEATHER])
        [call] = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Bonn"}'}


async def test_turns_reach_the_template(tools: Harness) -> None:
    prompts: dict[str, str] = {}
    for model in ("hermes", "qwen3", "llama3", "mistral", "as_text", BASE):
        body = {"model": model, "messages": TURNS, "tools": [WEATHER]}
        response = await tools.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        prompts[model] = prompt(tools)
    written = '{"name": "get_weather", "arguments": {"city": "K\\u00f6ln"}}'
    assert written in prompts["hermes"].replace("ö", "\\u00f6")
    assert "<tools>" in prompts["hermes"]
    assert "<|im_start|>tool\nsun<|im_end|>" in prompts["hermes"]
    assert "<think>hm</think>" in prompts["qwen3"]
    assert "[toolget_weather]sun" in prompts["llama3"]
    identity = prompts["mistral"].partition("for ")[2].partition(":")[0]
    assert len(identity) == 9
    assert prompts["mistral"].count(identity) == 2
    assert 'json:{"city": "Köln"}.' in prompts["as_text"]
    assert "<|im_start|>system\n# Tools" in prompts[BASE]
    assert '"description": "Weather of a city."' in prompts[BASE]
    assert "<|im_start|>user\n<tool_response>\nsun\n</tool_response>" in prompts[BASE]


async def test_tools_join_the_system_words_of_a_template_without_tools(tools: Harness) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *TURNS, TURNS[2]]
    body = {"model": BASE, "messages": turns, "tools": [WEATHER]}
    await tools.post("/v1/chat/completions", body)
    text = prompt(tools)
    assert "<|im_start|>system\nBe brief.\n\n# Tools" in text
    assert text.count("<|im_start|>system") == 1
    assert text.count("<|im_start|>user") == 2, "results in a row are one turn"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}]},
        "tools[0].function.parameters.type",
    ),
    ({"tools": [WEATHER] * 129}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    (
        {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        "tool_choice",
    ),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]},
        "messages[0].tool_call_id",
    ),
    (
        {"messages": [{**TURNS[1], "role": "user", "content": "x"}]},
        "messages[0].tool_calls",
    ),
    (
        {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "tool_choice",
    ),
]


@pytest.mark.parametrize(("fields", "param"), BAD)
async def test_what_is_refused_is_named(tools: Harness, fields: dict[str, Any], param: str) -> None:
    body = {"model": "hermes", "messages": [{"role": "user", "content": "x"}], **fields}
    response = await tools.post("/v1/chat/completions", body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_deep_and_large_schemas_are_refused(tools: Harness) -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    for schema in (deep, {"type": "object", "title": "x" * (2 << 20)}):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        response = await tools.chat(model="hermes", tools=[tool])
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "tools[0].function.parameters"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
@pytest.mark.parametrize("model", ["hermes", "llama3", "mistral", BASE])
async def test_a_forced_call_is_a_grammar(tools: Harness, model: str, choice: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    call = '{"name": "f", "arguments": {"a": 7}}'
    is_marked = model in ("hermes", BASE)
    text = f"<tool_call>\n{call}\n</tool_call>" if is_marked else f"[{call}]"
    tools.engine.script = say(text)
    answer = await chosen(tools, model=model, tools=[tool, TIME], tool_choice=choice)
    assert answer["message"]["tool_calls"][0]["function"]["name"] == "f"
    grammar = tools.engine.requests[-1].params.grammar
    assert grammar is not None
    assert ("get_time" in grammar.text) == (choice == "required")


async def test_strict_functions_make_a_grammar_of_text_or_calls(tools: Harness) -> None:
    function: dict[str, Any] = {**WEATHER["function"], "strict": True}  # type: ignore[dict-item]
    tools.engine.script = say(CALL)
    for strict in (function, WEATHER["function"]):
        tool = {"type": "function", "function": strict}
        await chosen(tools, model="hermes", tools=[tool])
        grammar = tools.engine.requests[-1].params.grammar
        assert (grammar is not None) == (strict is function)


async def test_the_operator_names_the_parsers(tools: Harness) -> None:
    config = replace(tools.services.config, tool_call_parser="none", reasoning_parser="none")
    outputs = ChatOutputs(config, config.limits)
    app = create_app(replace(tools.services, outputs=outputs))
    tools.engine.script = say(f"<think>x</think>{CALL}")
    async with make_client(app) as client:
        body = {
            "model": "qwen3",
            "messages": [{"role": "user", "content": "x"}],
            "tools": [WEATHER],
        }
        response = await client.post("/v1/chat/completions", json=body)
    [choice] = response.json()["choices"]
    assert choice["message"]["content"] == f"<think>x</think>{CALL}"


def test_a_template_is_searched_once_for_thousands_of_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[str] = []

    class Counting:
        def search(self, template: str) -> None:
            searched.append(template)

    monkeypatch.setattr(chat_messages, "_ARGUMENTS_AS_TEXT", Counting())
    monkeypatch.setattr(chat_messages, "_SHORT_IDS", Counting())
    call = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "assistant", "tool_calls": [call] * 100}] * 50
    body = ChatRequest.model_validate({"model": BASE, "messages": turns})
    chat = chat_messages.template_chat(body, "{{ tools }}")
    assert sum(len(turn["tool_calls"]) for turn in chat.messages) == 5000
    assert len(searched) == 2
