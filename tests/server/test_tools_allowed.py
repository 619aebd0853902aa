"""``allowed_tools``: the model is told of all tools and may call some."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import say
from openai.types.chat import ChatCompletionAllowedToolChoiceParam
from pydantic import TypeAdapter

from branchline.gateway.prefix_keys import request_variant

from .conftest import BASE, Harness
from .test_structured_wrapped import accepts
from .test_tools import CALL, TIME, WEATHER, chosen, prompt, serve, tools
from .test_tools_single import CODER

__all__ = ["tools"]

FUNCTION = {"type": "function", "function": {"name": "get_weather"}}
BARE = '[{"name": "%s", "arguments": {}}]'
CALLS = {
    "hermes": '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>',
    "llama3": '{"name": "%s", "parameters": {}}',
    "mistral": "[TOOL_CALLS]%s[ARGS]{}",
    "coder": "<tool_call>\n<function=%s>\n</function>\n</tool_call>",
    BASE: '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>',
}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    named = [{"type": "function", "function": {"name": name}} for name in names]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
    TypeAdapter(ChatCompletionAllowedToolChoiceParam).validate_python(choice)
    return choice


@pytest.mark.parametrize("model", CALLS)
@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_only_allowed_tools_can_be_called(tools: Harness, model: str, mode: str) -> None:
    serve(tools, "coder", CODER)
    is_marked = model in ("hermes", BASE)
    call = BARE if mode == "required" and not is_marked else CALLS[model]
    tools.engine.script = say("hm")
    fields = {"model": model, "tools": [WEATHER, TIME]}
    choice = allowed(mode, "get_weather")
    assert await accepts(tools, call % "get_weather", tool_choice=choice, **fields)
    assert not await accepts(tools, call % "get_time", tool_choice=choice, **fields)
    assert await accepts(tools, "Hello.", tool_choice=choice, **fields) == (mode == "auto")
    assert "get_time" in prompt(tools)
    shown = prompt(tools)
    await chosen(tools, **fields)
    assert prompt(tools) == shown, "the cached beginning stays"


async def test_all_of_them_is_no_limit(tools: Harness) -> None:
    tools.engine.script = say(CALL)
    choice = allowed("auto", "get_time", "get_weather")
    await chosen(tools, model="hermes", tools=[WEATHER, TIME], tool_choice=choice)
    assert tools.engine.requests[-1].params.grammar is None


def test_keys_are_those_of_all_tools() -> None:
    shown: dict[str, Any] = {"is_chat": True, "tools": [WEATHER, TIME]}
    choice = allowed("auto", "get_time")
    assert request_variant(**shown, tool_choice=choice) == request_variant(**shown)


PLACE = "tool_choice.allowed_tools"
BAD: list[tuple[Any, str]] = [
    (allowed("auto", "gone"), f"{PLACE}.tools[0].function.name"),
    ({"type": "allowed_tools"}, PLACE),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, f"{PLACE}.tools"),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": [FUNCTION]}},
        f"{PLACE}.mode",
    ),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}},
        f"{PLACE}.tools[0].",
    ),
    ({"type": "other"}, "tool_choice"),
    ("sometimes", "tool_choice"),
    ({"type": "function"}, "tool_choice.function"),
]


@pytest.mark.parametrize(("choice", "param"), BAD)
async def test_bad_choices_are_named(tools: Harness, choice: Any, param: str) -> None:
    response = await tools.chat(model="hermes", tools=[WEATHER], tool_choice=choice)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)
    assert "Choice" not in response.json()["error"]["param"]


async def test_a_choice_without_tools_is_refused(tools: Harness) -> None:
    response = await tools.chat(model="hermes", tool_choice=allowed("auto", "f"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
