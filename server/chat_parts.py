"""The parts of one choice's answer in the shapes of chats."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from .output.parts import (
    ContentText,
    OutputParser,
    OutputPart,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    call_id,
)
from .wire import AssistantMessage, CalledFunction, ChatDelta, ToolCallOut


class ChoiceReader:
    """Reads the text of one choice as it comes, or as a whole; ``num_calls`` have begun."""

    def __init__(self, answer_id: str, choice_index: int, parser: OutputParser) -> None:
        self._answer_id = answer_id
        self._choice_index = choice_index
        self._parser = parser
        self.num_calls = 0

    def read(self, text: str, is_end: bool) -> ChatDelta:
        """What a piece of text adds; empty while it may still become one thing or another."""
        parts = self._parts(text, is_end)
        content, thoughts = _joined(parts, ContentText), _joined(parts, ReasoningText)
        calls = self._calls(parts)
        return ChatDelta(
            content=content or UNSET,
            reasoning_content=thoughts or UNSET,
            tool_calls=calls or UNSET,
        )

    def message(self, text: str) -> AssistantMessage:
        """The whole answer."""
        parts = self._parts(text, is_end=True)
        content, thoughts = _joined(parts, ContentText), _joined(parts, ReasoningText)
        calls = [_whole(call) for call in self._calls(parts)]
        return AssistantMessage(
            content=content or (None if thoughts or calls else ""),
            reasoning_content=thoughts or UNSET,
            tool_calls=calls or UNSET,
        )

    def _parts(self, text: str, is_end: bool) -> list[OutputPart]:
        parts = self._parser.push(text)
        if is_end:
            parts = [*parts, *self._parser.finish()]
        self.num_calls += sum(isinstance(part, ToolCallBegin) for part in parts)
        return parts

    def _calls(self, parts: Sequence[OutputPart]) -> list[ToolCallOut]:
        """Calls and pieces of calls, those of one call as one."""
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for part in parts:
            if isinstance(part, ToolCallBegin):
                names[part.index] = part.name
                arguments.setdefault(part.index, "")
            elif isinstance(part, ToolCallArguments):
                arguments[part.index] = arguments.get(part.index, "") + part.text
        return [self._call(index, names.get(index), text) for index, text in arguments.items()]

    def _call(self, index: int, name: str | None, arguments: str) -> ToolCallOut:
        if name is None:
            return ToolCallOut(index=index, function=CalledFunction(arguments=arguments))
        return ToolCallOut(
            index=index,
            id=call_id(self._answer_id, self._choice_index, index),
            type="function",
            function=CalledFunction(name, arguments),
        )


def _joined(parts: Sequence[OutputPart], kind: type[ContentText] | type[ReasoningText]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


def _whole(call: ToolCallOut) -> ToolCallOut:
    """A call of a whole message, whose place says which it is."""
    return ToolCallOut(id=call.id, type=call.type, function=call.function)
