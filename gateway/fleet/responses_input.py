"""A body of ``POST /v1/responses`` as the chat that it asks for.

Gateways read it for routing keys and replicas for prompts, so both see one conversation alike.
Nothing here raises: what is no item of text is left out, and a replica refuses it for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

ChatMessage = dict[str, object]

_ROLES = ("system", "developer", "user", "assistant")
_SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "prompt_cache_key",
    "cache_salt",
    "priority",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "chat_template_kwargs",
)
"""Fields that a chat has under the same name."""

LOGPROBS = "message.output_text.logprobs"


def chat_body(body: Mapping[str, object], history: Sequence[object] = ()) -> dict[str, object]:
    """The whole body as that of ``POST /v1/chat/completions``; only what was given is in it.

    ``history`` is as for ``chat_messages``.
    """
    chat: dict[str, object] = {"messages": chat_messages(body, history)}
    chat |= {name: body[name] for name in _SAME if body.get(name) is not None}
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    include = body.get("include")
    if isinstance(include, list) and LOGPROBS in include:
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    chat |= _tool_fields(body)
    text, reasoning = body.get("text"), body.get("reasoning")
    if isinstance(text, Mapping) and isinstance(text.get("format"), Mapping):
        chat["response_format"] = _response_format(text["format"])
    if isinstance(reasoning, Mapping) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    return chat


def _tool_fields(body: Mapping[str, object]) -> dict[str, object]:
    """Tools and choice; a choice among allowed ones leaves all of them in the prompt."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    tools = [tool for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        allowed = allowed if isinstance(allowed, list) else []
        named = [_named(tool) for tool in allowed if isinstance(tool, Mapping)]
        shown = {"mode": choice.get("mode"), "tools": named}
        choice = {"type": "allowed_tools", "allowed_tools": shown}
    elif isinstance(choice, Mapping):
        choice = _named(choice)
    fields: dict[str, object] = {}
    if tools:
        fields["tools"] = [_chat_tool(tool) for tool in tools]
    if choice is not None:
        fields["tool_choice"] = choice
    return fields


def _named(tool: Mapping[str, object]) -> dict[str, object]:
    return {"type": "function", "function": {"name": tool.get("name")}}


def _chat_tool(tool: Mapping[str, object]) -> dict[str, object]:
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _response_format(given: Mapping[str, object]) -> dict[str, object]:
    if given.get("type") != "json_schema":
        return {"type": given.get("type")}
    names = ("name", "description", "schema", "strict")
    schema = {name: given[name] for name in names if given.get(name) is not None}
    return {"type": "json_schema", "json_schema": schema}


def chat_messages(
    body: Mapping[str, object], history: Sequence[object] = ()
) -> list[dict[str, object]]:
    """The messages of a decoded body; ``history`` are the items of the responses before it.

    ``instructions`` stand in front of everything and are of this request alone.
    """
    messages: list[ChatMessage] = []
    instructions = body.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    turns = _Turns(messages)
    for item in (*history, *input_items(body)):
        if isinstance(item, Mapping):
            turns.add(item)
    turns.end()
    return messages


def input_items(body: Mapping[str, object]) -> list[object]:
    """``input`` as items: a string is a message of the user's."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given) if isinstance(given, list) else []


def item_text(content: object) -> str:
    """The text of a content or of a call's output: its text parts joined, "" for what is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(_part_text(part) for part in content)


def _part_text(part: object) -> str:
    if not isinstance(part, Mapping):
        return ""
    text = part.get("refusal" if part.get("type") == "refusal" else "text")
    return text if isinstance(text, str) else ""


class _Turns:
    """Puts items behind each other; what one turn of the model's gave becomes one message.

    A model says reasoning, text and calls in one turn, and its template writes them as one: only
    so the next prompt begins with the tokens of the last one and its answer.
    """

    def __init__(self, messages: list[ChatMessage]) -> None:
        self._messages = messages
        self._turn: ChatMessage | None = None

    def add(self, item: Mapping[str, object]) -> None:
        """Add one item."""
        kind = item.get("type", "message")
        if kind == "reasoning":
            self._add_reasoning(item)
        elif kind == "function_call":
            self._add_call(item)
        elif kind == "function_call_output":
            self.end()
            output = item_text(item.get("output"))
            call_id = item.get("call_id")
            self._messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
        elif kind == "message" and item.get("role") in _ROLES:
            self._add_message(item)

    def end(self) -> None:
        """The model's turn is over."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.setdefault("content", "")
            self._messages.append(turn)

    def _add_message(self, item: Mapping[str, object]) -> None:
        text = item_text(item.get("content"))
        if item["role"] != "assistant":
            self.end()
            self._messages.append({"role": item["role"], "content": text})
            return
        if self._turn is not None and ("content" in self._turn or "tool_calls" in self._turn):
            self.end()
        self._begin()["content"] = text

    def _add_reasoning(self, item: Mapping[str, object]) -> None:
        parts = item.get("content") or item.get("summary")
        text = item_text(parts)
        if self._turn is not None and self._turn.keys() != {"role"}:
            self.end()
        if text:
            self._begin()["reasoning_content"] = text

    def _add_call(self, item: Mapping[str, object]) -> None:
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        calls = self._begin().setdefault("tool_calls", [])
        assert isinstance(calls, list)
        calls.append(call)

    def _begin(self) -> ChatMessage:
        if self._turn is None:
            self._turn = {"role": "assistant"}
        return self._turn


def call_ids(items: Iterable[object], kind: str) -> list[str]:
    """The ``call_id`` of each item of a kind, in their order."""
    found: list[str] = []
    for item in items:
        call_id = item.get("call_id") if isinstance(item, Mapping) else None
        if isinstance(call_id, str) and isinstance(item, Mapping) and item.get("type") == kind:
            found.append(call_id)
    return found
