"""A wrong body's 400 names the field as the client wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import BASE, Harness

USER = {"role": "user", "content": "hi"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": [USER], "tool_choice": "zz"}, "tool_choice"),
        (CHAT, {"messages": [USER], "tool_choice": {"type": "zz"}}, "tool_choice"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [USER, {"role": "system", "content": None}]}, "messages[1].content"),
        (CHAT, {"messages": [{**USER, "refusal": "no"}]}, "messages[0].refusal"),
        (CHAT, {"messages": [{**USER, "Name": "x"}]}, "messages[0].Name"),
        (CHAT, {"messages": [{"role": "assistant", "refusal": 5}]}, "messages[0].refusal"),
        (CHAT, {"messages": [USER], "stream_options": {"Include": 1}}, "stream_options.Include"),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "zz"}}}, "text.format.type"),
        (TEXT, {"prompt": ["a", ""]}, "prompt[1]"),
        (TEXT, {"prompt": [[97], []]}, "prompt[1]"),
        (TEXT, {"prompt": [[97], [99_999]]}, "prompt[1]"),
        (TEXT, {"prompt": [99_999]}, "prompt"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input[1]"),
        ("/v1/embeddings", {"input": [[97], [99_999]]}, "input[1]"),
    ],
)
async def test_the_field_is_named(
    harness: Harness, errors_of: Any, path: str, fields: dict[str, Any], param: str
) -> None:
    error = errors_of(await harness.post(path, {"model": BASE, **fields}), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


async def test_a_user_without_a_word_is_named_to_anthropics_clients_too(harness: Harness) -> None:
    body = {"model": BASE, "max_tokens": 4, "messages": [{"role": "user", "content": []}]}
    response = await harness.post("/v1/messages", body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("messages[0].content: ")


async def test_what_an_assistant_said_when_it_refused_is_its_text(harness: Harness) -> None:
    prompts = []
    for turn in (
        {"refusal": "I can't"},
        {"content": None, "refusal": "I can't"},
        {"content": "I can't"},
    ):
        messages = [USER, {"role": "assistant", **turn}, USER]
        response = await harness.post(CHAT, {"model": BASE, "messages": messages})
        assert response.status_code == 200, response.text
        prompts.append(harness.engine.requests[-1].prompt_token_ids)
    assert prompts[0] == prompts[1] == prompts[2]
