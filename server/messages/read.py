"""From a body of the Messages API to the chat that it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ...gateway.fleet.messages_input import chat_body
from ..body import check_value
from ..errors import ApiError, bad_field
from ..openai import ChatRequest
from .body import (
    AssistantTurn,
    CountTokensRequest,
    MessagesRequest,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)

# What a chat's fault is called, and what the client called it.
_NAMES = (
    (re.compile(r"stop(?=$|\[)"), "stop_sequences"),
    (re.compile(r"max_completion_tokens$"), "max_tokens"),
    (re.compile(r"messages\[.*"), "messages"),
    (re.compile(r"tools\[(\d+)\]\.function\.parameters"), r"tools[\1].input_schema"),
    (re.compile(r"tools\[(\d+)\]\.function"), r"tools[\1]"),
    (re.compile(r"tool_choice\.function\.name"), "tool_choice.name"),
    (re.compile(r"parallel_tool_calls$"), "tool_choice.disable_parallel_tool_use"),
    (re.compile(r"response_format\.json_schema(\.schema)?"), "output_config.format.schema"),
    (re.compile(r"response_format"), "output_config.format"),
    (re.compile(r"reasoning_effort$"), "output_config.effort"),
    (re.compile(r"chat_template_kwargs"), "thinking"),
)


def read_chat(body: CountTokensRequest) -> ChatRequest:
    """The chat that is asked for; raises ApiError 400 that names the field."""
    _check_tool_choice(body)
    _check_thinking(body)
    _check_results(body.messages)
    fields = chat_body(body.model_dump(exclude_unset=True, by_alias=True))
    with chats_faults():
        return check_value(ChatRequest, fields)


@contextmanager
def chats_faults() -> Iterator[None]:
    """What is found wrong with the chat is said in the words of this API."""
    try:
        yield
    except ApiError as error:
        raise _in_our_words(error) from error


def _in_our_words(error: ApiError) -> ApiError:
    """A chat's fault under the name that this API has for the field."""
    given = error.param or ""
    for pattern, name in _NAMES:
        if pattern.match(given):
            error.param = pattern.sub(name, given, count=1)
            error.message = error.message.replace(given, error.param, 1)
            return error
    return error


def _check_tool_choice(body: CountTokensRequest) -> None:
    choice = body.tool_choice
    if choice is None:
        return
    if (choice.type == "tool") != (choice.name is not None):
        raise bad_field("tool_choice.name", "goes with a type of tool, and only with that")
    if not body.tools and choice.type in ("any", "tool"):
        raise bad_field("tool_choice", "needs tools")
    if choice.name is not None and choice.name not in {tool.name for tool in body.tools or ()}:
        raise bad_field("tool_choice.name", "is none of the tools")


def _check_thinking(body: CountTokensRequest) -> None:
    budget = body.thinking and body.thinking.budget_tokens
    if budget and isinstance(body, MessagesRequest) and budget >= body.max_tokens:
        raise bad_field("thinking.budget_tokens", f"must be under max_tokens of {body.max_tokens}")


def _check_results(messages: list[Turn]) -> None:
    """Results belong to calls before them, and an answer can't begin inside a call."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        for place, block in enumerate(() if isinstance(message.content, str) else message.content):
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
            elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                field = f"messages[{index}].content[{place}].tool_use_id"
                raise bad_field(field, "is of no tool_use block before it")
    last = messages[-1]
    if isinstance(last, AssistantTurn) and any(isinstance(b, ToolUseBlock) for b in last.content):
        field = f"messages[{len(messages) - 1}].content"
        raise bad_field(field, "holds a tool_use block, whose tool_result must come next")
