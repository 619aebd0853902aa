"""Bodies of ``/v1/responses`` as chats: turns are put together, and nothing ever raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.fleet.responses_input import chat_body, chat_messages

REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]}


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c-{name}", "name": name, "arguments": "{}"}


def output(name: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c-{name}", "output": "4"}


def chat_call(name: str) -> dict[str, Any]:
    return {
        "id": f"c-{name}",
        "type": "function",
        "function": {"name": name, "arguments": "{}"},
    }


def test_a_string_is_one_message_behind_the_instructions() -> None:
    body = {"instructions": "be brief", "input": "hi"}
    assert chat_messages(body) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_what_one_turn_gave_is_one_message() -> None:
    items = [{"role": "user", "content": "q"}, REASONING, SAID, call("a"), call("b")]
    assert chat_messages({"input": [*items, output("a"), output("b"), SAID]}) == [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "so",
            "tool_calls": [chat_call("a"), chat_call("b")],
        },
        {"role": "tool", "tool_call_id": "c-a", "content": "4"},
        {"role": "tool", "tool_call_id": "c-b", "content": "4"},
        {"role": "assistant", "content": "so"},
    ]


def test_turns_behind_each_other_stay_apart() -> None:
    assert [m["role"] for m in chat_messages({"input": [SAID, SAID]})] == ["assistant"] * 2
    both = chat_messages({"input": [call("a"), SAID]})
    assert [sorted(m) for m in both] == [
        ["content", "role", "tool_calls"],
        ["content", "role"],
    ]
    thoughts = chat_messages({"input": [SAID, REASONING, SAID]})
    assert [m.get("reasoning_content") for m in thoughts] == [None, "hm"]


def test_a_history_stands_between_instructions_and_input() -> None:
    history = [{"role": "user", "content": "one"}, SAID]
    messages = chat_messages({"instructions": "sys", "input": "two"}, history)
    assert [m["content"] for m in messages] == ["sys", "one", "so", "two"]


def test_all_that_a_chat_has_too() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    other = {"type": "function", "name": "g", "parameters": {}}
    body = {
        "model": "m",
        "stream": True,
        "input": "hi",
        "max_output_tokens": 5,
        "temperature": 0.5,
        "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
        "tools": [tool, other],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
        "reasoning": {"effort": "low"},
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
    }
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
    assert chat_body(body) == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "parallel_tool_calls": False,
        "user": "u",
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [
            {"type": "function", "function": function},
            {"type": "function", "function": {"name": "g", "parameters": {}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {}, "strict": True},
        },
        "reasoning_effort": "low",
    }


def test_allowed_tools_leave_all_of_them_to_be_seen() -> None:
    tools = [{"type": "function", "name": name} for name in "fg"]
    body = {"model": "m", "input": "hi", "tools": tools}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": tools[1:]}
    chosen = chat_body({**body, "tool_choice": allowed})
    assert chosen["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "g"}}],
        },
    }
    assert chosen["tools"] == chat_body(body)["tools"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "call_id", "name", "output", "summary", "tools"]
            ),
            inner
            | st.sampled_from(["message", "reasoning", "function_call", "function_call_output"])
            | st.sampled_from(["user", "assistant", "allowed_tools", "json_schema"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)
FIELDS = ["input", "instructions", "tools", "tool_choice", "text", "reasoning", "include"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.lists(JSON, max_size=3))
def test_nothing_raises(body: dict[str, Any], history: list[Any]) -> None:
    for message in chat_body(body, history)["messages"]:  # type: ignore[attr-defined]
        assert isinstance(message["content"], str)
        assert isinstance(message["role"], str)


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "x"}, 5, None, {"role": "x"}])
def test_what_is_no_item_of_text_is_left_out(item: object) -> None:
    assert chat_messages({"input": [item]}) == []
