"""Reasoning in chats: split off, streamed, counted, and handed back."""

from __future__ import annotations

from fake_engine import say

from .conftest import BASE, Harness, events
from .test_tools import CALL, WEATHER, chosen, joined, prompt, tools

__all__ = ["tools"]


async def test_thoughts_are_split_off(tools: Harness) -> None:
    tools.engine.script = say("<think>\nWell.\n</think>\n\nYes.")
    choice = await chosen(tools, model="qwen3")
    assert choice["message"]["reasoning_content"] == "Well."
    assert choice["message"]["content"] == "Yes."
    assert choice["finish_reason"] == "stop"


async def test_a_prompt_may_have_opened_them(tools: Harness) -> None:
    tools.engine.script = say("Well.\n</think>\n\nYes.")
    choice = await chosen(tools, model="thinks_at_once")
    assert choice["message"]["reasoning_content"] == "Well."
    assert choice["message"]["content"] == "Yes."


async def test_a_stream_has_them_in_deltas_of_their_own(tools: Harness) -> None:
    tools.engine.script = say(f"<think>Well.</think>{CALL}")
    response = await tools.chat(model="qwen3", stream=True, tools=[WEATHER])
    message = joined(events(response))
    assert message["reasoning_content"] == "Well."
    assert message["content"] == ""
    assert message["finish_reason"] == "tool_calls"
    assert len(message["tool_calls"]) == 1


async def test_an_answer_that_never_stops_thinking_has_no_content(tools: Harness) -> None:
    tools.engine.script = say("<think>Well, well", eos=False)
    choice = await chosen(tools, model="qwen3", max_tokens=17)
    assert choice["message"]["reasoning_content"] == "Well, well"
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "length"


async def test_models_without_thoughts_keep_their_text(tools: Harness) -> None:
    tools.engine.script = say("<think>x</think>y")
    for model in (BASE, "hermes"):
        choice = await chosen(tools, model=model)
        assert choice["message"]["content"] == "<think>x</think>y"
        assert "reasoning_content" not in choice["message"]


async def test_effort_and_thinking_reach_the_template(tools: Harness) -> None:
    await chosen(tools, model="effort", reasoning_effort="high")
    assert prompt(tools).startswith("high")
    await chosen(tools, model="qwen3", reasoning_effort="none")
    assert prompt(tools).endswith("<think>\n\n</think>\n\n")
    await chosen(tools, model="qwen3", chat_template_kwargs={"enable_thinking": False})
    assert prompt(tools).endswith("<think>\n\n</think>\n\n")
    await chosen(tools, model=BASE, reasoning_effort="none")


async def test_a_form_of_the_answer_begins_behind_the_thoughts(tools: Harness) -> None:
    format_ = {"type": "json_object"}
    tools.engine.script = say('hm</think>\n\n{"a": 1}')
    choice = await chosen(tools, model="thinks_at_once", response_format=format_)
    assert choice["message"]["content"] == '{"a": 1}'
    grammar = tools.engine.requests[-1].params.grammar
    assert grammar is not None
    assert grammar.kind == "lark"
    await chosen(tools, response_format=format_)
    grammar = tools.engine.requests[-1].params.grammar
    assert grammar is not None
    assert grammar.kind == "json_schema"
