"""A chat's messages and tools, as chat templates know them: checked, and told in words to those
that know no tools."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import Limits
from .errors import bad_field
from .openai import ChatMessage, ChatRequest, ToolCall
from .text.tokenizer import Message
from .tool_choice import offered_tools

_KNOWS_TOOLS = re.compile(r"\btools\b")
# Templates that put the arguments into the prompt as they are, instead of writing JSON themselves.
_ARGUMENTS_AS_TEXT = re.compile(
    r"\+\s*[\w.]*(\['\w+'\])*(\.arguments|\['arguments'\])\s*(\+|[-%}])"
)
_SHORT_IDS = re.compile(r"length\s*!=\s*9")
_NO_SYSTEM = "System role not supported"

_CALLING = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class TemplateChat:
    """What a chat template is given: the turns, and variables such as ``tools``."""

    messages: list[Message]
    variables: dict[str, Any] = field(default_factory=dict)


def knows_tools(template: str) -> bool:
    """Whether a chat template does something with ``tools``."""
    return _KNOWS_TOOLS.search(template) is not None


def check_messages(messages: Sequence[ChatMessage], limits: Limits) -> None:
    """What goes with which role; raises ApiError 400."""
    if len(messages) > limits.max_messages:
        raise bad_field(
            "messages", f"holds {len(messages)} messages, the most is {limits.max_messages}"
        )
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool" and message.tool_call_id is None:
            raise bad_field(
                f"{where}.tool_call_id", "is required with role tool", "missing_required_parameter"
            )
        if message.role != "tool" and message.tool_call_id is not None:
            raise bad_field(f"{where}.tool_call_id", "goes with role tool only")
        if message.content is None and message.role != "assistant":
            raise bad_field(f"{where}.content", "is required", "missing_required_parameter")
        if message.role == "assistant":
            _check_calls(where, message.tool_calls or (), limits)
            continue
        for name in ("tool_calls", "reasoning_content", "reasoning", "refusal"):
            if getattr(message, name):
                raise bad_field(f"{where}.{name}", "goes with role assistant only")


def _check_calls(where: str, calls: Sequence[ToolCall], limits: Limits) -> None:
    if len(calls) > limits.max_tool_calls:
        raise bad_field(
            f"{where}.tool_calls", f"holds {len(calls)} calls, the most is {limits.max_tool_calls}"
        )


def template_chat(body: ChatRequest, template: str) -> TemplateChat:
    """The chat for this template; raises ApiError 400 for an effort that it doesn't know."""
    variables = dict(body.chat_template_kwargs or {})
    _add_effort(body, template, variables)
    tools = [tool.model_dump(exclude_none=True) for tool in offered_tools(body)]
    names = {c.id: c.function.name for m in body.messages for c in m.tool_calls or ()}
    if knows_tools(template):
        dialect = _Dialect.of(template)
        turns = [_turn(message, names, dialect) for message in body.messages]
        return TemplateChat(turns, variables | ({"tools": tools} if tools else {}))
    turns = _in_words(body.messages)
    if tools:
        turns = _with_instructions(turns, tools, template)
    return TemplateChat(turns, variables)


def _add_effort(body: ChatRequest, template: str, variables: dict[str, Any]) -> None:
    """``reasoning_effort``, where the template can do something with it."""
    effort = body.reasoning_effort
    if effort is None:
        return
    if "reasoning_effort" in template:
        variables.setdefault("reasoning_effort", effort)
    elif effort == "none":
        if "enable_thinking" in template:
            variables.setdefault("enable_thinking", False)
    else:
        raise bad_field(
            "reasoning_effort",
            "is not known to this model's chat template; it may be null or 'none'",
            code="unsupported_parameter",
        )


def to_template(message: ChatMessage) -> Message:
    """A turn's role, text and name; absent fields are left out."""
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content or ())
    turn: Message = {"role": message.role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    return turn


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a template takes calls: their arguments as text or objects, their ids short or any."""

    arguments_as_text: bool
    short_ids: bool

    @classmethod
    def of(cls, template: str) -> _Dialect:
        """Searched for once a request, which may have thousands of calls."""
        return cls(
            arguments_as_text=_ARGUMENTS_AS_TEXT.search(template) is not None,
            short_ids=_SHORT_IDS.search(template) is not None,
        )


def _turn(message: ChatMessage, names: Mapping[str, str], dialect: _Dialect) -> Message:
    """A turn for a template that knows tools."""
    turn = to_template(message)
    thoughts = message.reasoning_content or message.reasoning
    if thoughts:
        turn["reasoning_content"] = thoughts
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, dialect) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = _id(message.tool_call_id, dialect)
        if name := names.get(message.tool_call_id):
            turn.setdefault("name", name)
    return turn


def _call(call: ToolCall, dialect: _Dialect) -> dict[str, Any]:
    text = call.function.arguments
    arguments: object = text if dialect.arguments_as_text else _read(text)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": _id(call.id, dialect), "type": "function", "function": function}


def _read(arguments: str) -> object:
    """The arguments as an object, which templates write as JSON again; else the text itself."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _id(call_id: str, dialect: _Dialect) -> str:
    """The id; of nine letters for Mistral's templates, which take no other."""
    if not dialect.short_ids or (len(call_id) == 9 and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _in_words(messages: Sequence[ChatMessage]) -> list[Message]:
    """Turns for a template that knows neither calls nor results; results in a row are one turn."""
    turns: list[Message] = []
    is_result = False
    for message in messages:
        turn = to_template(message)
        if message.role == "tool":
            text = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if is_result:
                turns[-1]["content"] += f"\n{text}"
                continue
            turn = {"role": "user", "content": text}
        elif message.tool_calls:
            calls = [turn["content"], *map(_call_in_words, message.tool_calls)]
            turn["content"] = "\n".join(filter(None, calls))
        is_result = message.role == "tool"
        turns.append(turn)
    return turns


def _call_in_words(call: ToolCall) -> str:
    called = {"name": call.function.name, "arguments": _read(call.function.arguments)}
    return f"<tool_call>\n{json.dumps(called, ensure_ascii=False)}\n</tool_call>"


def _with_instructions(
    turns: list[Message], tools: Sequence[Mapping[str, Any]], template: str
) -> list[Message]:
    """What the tools are and how they are called, in front of all or behind the system's words."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _CALLING.format(tools=lines)
    first = turns[0]
    is_system = first["role"] in ("system", "developer")
    if not is_system and _NO_SYSTEM not in template:
        return [{"role": "system", "content": text}, *turns]
    parts = (first["content"], text) if is_system else (text, first["content"])
    return [{**first, "content": "\n\n".join(filter(None, parts))}, *turns[1:]]
