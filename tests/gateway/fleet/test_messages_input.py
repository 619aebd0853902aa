"""Bodies of the Messages API as chats: turns, tools, what decides the prompt; never an error."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from branchline.gateway.fleet.messages_errors import is_messages_path, messages_error
from branchline.gateway.fleet.messages_input import chat_body, chat_messages

CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"place": "Ö", "n": 1}}


def turns(*messages: dict[str, Any], system: Any = None) -> list[dict[str, object]]:
    return chat_messages({"messages": list(messages), "system": system})


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}


def test_strings_and_blocks_are_the_same_turns() -> None:
    plain = turns({"role": "user", "content": "hi"}, system="be kind")
    blocks = turns({"role": "user", "content": [text("hi")]}, system=[text("be kind")])
    assert plain == blocks
    assert plain == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
    ]


def test_neighbours_are_one_turn() -> None:
    assert turns(
        {"role": "user", "content": "a"},
        {"role": "user", "content": [text("b"), text("c")]},
        {"role": "assistant", "content": [text("d"), text("e")]},
        {"role": "assistant", "content": "f"},
        {"role": "system", "content": "g"},
        system=[text("x"), text("y")],
    ) == [
        {"role": "system", "content": "x\ny"},
        {"role": "user", "content": "a\nb\nc"},
        {"role": "assistant", "content": "def"},
        {"role": "system", "content": "g"},
    ]


def test_calls_and_their_results() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    asked, called, first, second, said = turns(
        {"role": "user", "content": "where"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "…"},
                text("I look"),
                CALL,
            ],
        },
        {
            "role": "user",
            "content": [
                {**result, "content": [text("here"), text("there")]},
                {**result, "content": "gone", "is_error": True},
                text("and now?"),
            ],
        },
    )
    assert asked["content"] == "where"
    function = {"name": "look", "arguments": '{"place": "Ö", "n": 1}'}
    assert called == {
        "role": "assistant",
        "content": "I look",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
    }
    assert first == {"role": "tool", "content": "here\nthere", "tool_call_id": "toolu_1"}
    assert second["content"] == "Error: gone"
    assert said == {"role": "user", "content": "and now?"}


SCHEMA = {"type": "object", "properties": {}}
SAME = {
    "model": "m",
    "max_tokens": 5,
    "stream": True,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "seed": 1,
    "priority": 2,
    "cache_salt": "s",
    "messages": [{"role": "user", "content": "hi"}],
}


def function(**fields: object) -> dict[str, object]:
    return {"type": "function", "function": {**fields, "parameters": SCHEMA}}


def test_what_is_called_alike() -> None:
    others = {"stop_sequences": ["x"], "metadata": {"user_id": "u"}}
    assert chat_body(SAME | others) == SAME | {"stop": ["x"], "user": "u"}


def test_tools_and_whether_they_are_called() -> None:
    strict = {"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True}
    plain = {"name": "g", "input_schema": SCHEMA}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    assert chat_body({"tools": [strict, plain], "tool_choice": choice}) == {
        "messages": [],
        "tools": [function(name="f", description="d", strict=True), function(name="g")],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


def test_how_the_answer_is_made() -> None:
    output = {"effort": "max", "format": {"type": "json_schema", "schema": SCHEMA}}
    assert chat_body({"thinking": {"type": "disabled"}, "output_config": output}) == {
        "messages": [],
        "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
        "reasoning_effort": "high",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": SCHEMA, "strict": True},
        },
    }


def test_no_tokens_at_all_are_a_chat_of_one() -> None:
    assert chat_body({"max_tokens": 0})["max_tokens"] == 1


def test_an_assistants_last_turn_is_gone_on_with() -> None:
    body = chat_body({"messages": [{"role": "assistant", "content": "so"}]})
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_tool_by_name() -> None:
    tools = [{"name": "f", "input_schema": {}}]
    body = chat_body({"tools": tools, "tool_choice": {"type": "tool", "name": "f"}})
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "thinking", "input", "name"]),
            inner | st.sampled_from(["user", "assistant", "tool_use", "tool_result", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = ["messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata"]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_no_body_is_an_error(body: dict[str, Any]) -> None:
    json.dumps(chat_body(body))


def test_a_deep_input_is_no_error() -> None:
    deep: Any = {}
    for _ in range(20_000):
        deep = {"a": deep}
    [turn] = turns({"role": "assistant", "content": [{**CALL, "input": deep}]})
    assert turn["role"] == "assistant"


def test_errors_by_status() -> None:
    kinds = {status: messages_error(status, "m")["error"] for status in (400, 401, 404, 405, 429)}
    assert [error["type"] for error in kinds.values()] == [  # type: ignore[index]
        "invalid_request_error",
        "authentication_error",
        "not_found_error",
        "invalid_request_error",
        "rate_limit_error",
    ]
    assert messages_error(500, "m", "r") == {
        "type": "error",
        "error": {"type": "api_error", "message": "m"},
        "request_id": "r",
    }


def test_paths() -> None:
    assert is_messages_path("/v1/messages")
    assert is_messages_path("/v1/messages/count_tokens")
    assert not is_messages_path("/v1/messagesx")
