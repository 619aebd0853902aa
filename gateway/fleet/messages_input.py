"""A body of Anthropic's Messages API as the chat that it asks for, in OpenAI's words.

Pure functions on decoded JSON that raise for nothing: what makes no sense is left out. A server
opens this chat once the body is checked, a gateway makes its routing keys of the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Turn = dict[str, object]

# What both APIs call alike, and what a server of ours takes beside Anthropic's own fields.
_SAME = ("model", "stream", "max_tokens", "temperature", "top_p", "top_k")
_OURS = ("seed", "priority", "cache_salt")

_BETWEEN_BLOCKS = "\n"
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def chat_body(body: Mapping[str, object]) -> dict[str, object]:
    """The body of a chat completion that asks for the same."""
    chat = {name: body[name] for name in (*_SAME, *_OURS) if body.get(name) is not None}
    if chat.get("max_tokens") == 0:  # a chat's answer has at least one
        chat["max_tokens"] = 1
    chat["messages"] = messages = chat_messages(body)
    if messages and messages[-1]["role"] == "assistant":
        chat["continue_final_message"], chat["add_generation_prompt"] = True, False
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    user = _dict(body.get("metadata")).get("user_id")
    if isinstance(user, str):
        chat["user"] = user
    return chat | _tool_fields(body) | _output_fields(body)


def chat_messages(body: Mapping[str, object]) -> list[Turn]:
    """The turns of a chat: ``system`` first, neighbours of one role as one turn.

    A tool's result is a turn of its own. Blocks of text are joined, those of a client's with a line
    feed between them, those of an assistant's as they were generated.
    """
    drafts: list[_Draft] = []
    for role, content in _contents(body):
        for draft in _drafts_of(role, content):
            last = drafts[-1] if drafts else None
            if last is None or last.role != draft.role or draft.role == "tool":
                drafts.append(draft)
            else:
                last.extend(draft)
    return [draft.turn() for draft in drafts]


@dataclass(slots=True)
class _Draft:
    """A turn while it is put together."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Turn] = field(default_factory=list)
    call_id: object = None

    def extend(self, other: _Draft) -> None:
        self.texts += other.texts
        self.thoughts += other.thoughts
        self.calls += other.calls

    def turn(self) -> Turn:
        between = "" if self.role == "assistant" else _BETWEEN_BLOCKS
        turn: Turn = {"role": self.role, "content": between.join(self.texts)}
        if any(self.thoughts):
            turn["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            turn["tool_calls"] = self.calls
        if self.role == "tool":
            turn["tool_call_id"] = self.call_id
        return turn


def _contents(body: Mapping[str, object]) -> Iterator[tuple[object, object]]:
    if body.get("system"):
        yield "system", body["system"]
    for message in _dicts(body.get("messages")):
        yield message.get("role"), message.get("content")


def _drafts_of(role: object, content: object) -> Iterator[_Draft]:
    if role == "assistant":
        blocks = list(_dicts(content))
        thoughts = [str(block["thinking"]) for block in blocks if "thinking" in block]
        calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
        yield _Draft("assistant", _texts(content), thoughts, calls)
    elif role == "system":
        yield _Draft("system", _texts(content))
    elif role == "user" and isinstance(content, str):
        yield _Draft("user", [content])
    elif role == "user":
        for block in _dicts(content):
            if block.get("type") == "tool_result":
                yield _result(block)
            elif isinstance(block.get("text"), str):
                yield _Draft("user", _texts([block]))


def _call(block: Mapping[str, object]) -> Turn:
    try:
        arguments = json.dumps(_dict(block.get("input")), ensure_ascii=False)
    except RecursionError:
        arguments = "{}"
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _result(block: Mapping[str, object]) -> _Draft:
    """A tool's answer; that it is an error is said in its text: templates show nothing else."""
    texts = _texts(block.get("content"))
    if block.get("is_error") is True:
        texts = [f"Error: {_BETWEEN_BLOCKS.join(texts)}"]
    return _Draft("tool", texts, call_id=block.get("tool_use_id"))


def _tool_fields(body: Mapping[str, object]) -> dict[str, object]:
    tools = [_tool(tool) for tool in _dicts(body.get("tools"))]
    if not tools:
        return {}
    fields: dict[str, object] = {"tools": tools}
    choice = _dict(body.get("tool_choice"))
    kind = choice.get("type")
    if kind == "tool":
        named = {"type": "function", "function": {"name": choice.get("name")}}
        fields["tool_choice"] = named
    elif isinstance(kind, str) and kind in _TOOL_CHOICES:
        fields["tool_choice"] = _TOOL_CHOICES[kind]
    if choice.get("disable_parallel_tool_use") is True:
        fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: Mapping[str, object]) -> Turn:
    function: Turn = {"name": tool.get("name")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = tool.get("input_schema")
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _output_fields(body: Mapping[str, object]) -> dict[str, object]:
    """What decides how the answer is made: a schema, and what templates are told of thinking."""
    fields: dict[str, object] = {}
    output = _dict(body.get("output_config"))
    schema = _dict(output.get("format")).get("schema")
    if schema is not None:
        described = {"name": "output", "schema": schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": described}
    thinking = _dict(body.get("thinking")).get("type")
    if thinking in ("enabled", "disabled"):
        # Qwen, GLM and others read the one, DeepSeek and Granite the other.
        names = ("enable_thinking", "thinking")
        fields["chat_template_kwargs"] = dict.fromkeys(names, thinking == "enabled")
    effort = output.get("effort")
    if isinstance(effort, str) and effort in _EFFORTS:
        fields["reasoning_effort"] = _EFFORTS[effort]
    return fields


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts = (block.get("text") for block in _dicts(content) if block.get("type") == "text")
    return [text for text in texts if isinstance(text, str)]


def _dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _dicts(value: object) -> Iterator[Mapping[str, object]]:
    return (entry for entry in _list(value) if isinstance(entry, Mapping))
