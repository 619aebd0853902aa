"""Which of a chat's tools may be called, and which have to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .config import Limits
from .errors import bad_field
from .openai import AllowedToolChoice, ChatRequest, NamedToolChoice, Tool, ToolFunction
from .structured.schema_text import schema_text


def offered_tools(body: ChatRequest) -> Sequence[Tool]:
    """The tools that the model is told of: with ``tool_choice`` none it knows of none."""
    return () if body.tool_choice == "none" else body.tools or ()


@dataclass(frozen=True, slots=True)
class ToolTerms:
    """What may be called, whether something has to be, and whether once only.

    ``is_limited``: the model is told of functions that it may not call.
    """

    functions: Sequence[ToolFunction] = ()
    is_forced: bool = False
    is_single: bool = False
    is_limited: bool = False

    @property
    def is_checked(self) -> bool:
        """Whether calls are held to a grammar even where none is forced."""
        return self.is_limited or any(function.strict for function in self.functions)


def read_tools(body: ChatRequest, limits: Limits) -> ToolTerms:
    """The terms, checked; raises ApiError 400 naming the field."""
    tools, choice = body.tools or (), body.tool_choice
    _check_tools(tools, limits)
    functions = [tool.function for tool in offered_tools(body)]
    is_single = body.parallel_tool_calls is False
    if choice in (None, "none", "auto"):
        return ToolTerms(functions, is_forced=False, is_single=is_single)
    if not functions:
        raise bad_field("tool_choice", "needs tools to choose from")
    if isinstance(choice, NamedToolChoice):
        named = [function for function in functions if function.name == choice.function.name]
        if not named:
            raise bad_field("tool_choice", f"names {choice.function.name!r}, which is no tool here")
        return ToolTerms(named, is_forced=True, is_single=True)
    if isinstance(choice, AllowedToolChoice):
        return _allowed(choice, functions, is_single)
    return ToolTerms(functions, is_forced=True, is_single=is_single)


def _allowed(
    choice: AllowedToolChoice, functions: Sequence[ToolFunction], is_single: bool
) -> ToolTerms:
    by_name = {function.name: function for function in functions}
    allowed: dict[str, ToolFunction] = {}
    for index, tool in enumerate(choice.allowed_tools.tools):
        name = tool.function.name
        if name not in by_name:
            field = f"tool_choice.allowed_tools.tools[{index}].function.name"
            raise bad_field(field, f"{name!r} is none of the tools")
        allowed[name] = by_name[name]
    return ToolTerms(
        list(allowed.values()),
        is_forced=choice.allowed_tools.mode == "required",
        is_single=is_single,
        is_limited=len(allowed) < len(functions),
    )


def _check_tools(tools: Sequence[Tool], limits: Limits) -> None:
    if len(tools) > limits.max_tools:
        raise bad_field("tools", f"holds {len(tools)} tools, the most is {limits.max_tools}")
    seen: set[str] = set()
    num_bytes = 0
    for index, tool in enumerate(tools):
        name, schema = tool.function.name, tool.function.parameters
        if name in seen:
            raise bad_field(f"tools[{index}].function.name", f"{name!r} is there twice")
        seen.add(name)
        where = f"tools[{index}].function.parameters"
        if schema is not None:
            if schema.get("type", "object") != "object":
                raise bad_field(f"{where}.type", "must be 'object'")
            num_bytes += len(schema_text(where, schema, limits))
        num_bytes += len(tool.function.description or "")
    if num_bytes > limits.max_tools_bytes:
        raise bad_field("tools", f"has {num_bytes} bytes, the most is {limits.max_tools_bytes}")
