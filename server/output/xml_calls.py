"""Tool calls as Qwen3-Coder writes them: a function and its parameters in tags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .call_scan import as_json
from .parts import ContentText, OutputPart, ToolCallArguments, ToolCallBegin
from .text_gate import TextGate

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MAX_NAME = 256

_NAME = re.compile(r"[\w.:/-]{1,256}", re.ASCII)


class XmlCallsParser:
    """An ``OutputParser``; ``schemas`` are the tools' parameters by name, which tell texts from
    numbers.

    A call is one as soon as its function's tag is closed; its parameters come one by one.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._schemas = schemas
        self._gate = TextGate((CALL, FUNCTION))
        self._state: Callable[[str], str] = self._content
        self._parts: list[OutputPart] = []
        self._held = ""
        self._num_calls = 0
        self._is_after_call = False
        self._name = self._parameter = ""
        self._num_parameters = 0

    def push(self, text: str) -> list[OutputPart]:
        """See ``OutputParser``."""
        while text:
            text = self._state(text)
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        if self._state in (self._content, self._before_function, self._function_name):
            self._say(self._held + self._gate.flush())
        self._held = ""
        parts, self._parts = self._parts, []
        return parts

    def _say(self, text: str) -> None:
        if self._is_after_call:
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._parts.append(ContentText(text))

    def _content(self, text: str) -> str:
        content, mark, rest = self._gate.push(text)
        self._say(content)
        if mark is not None:
            self._held = self._gate.flush() + mark
            self._state = self._before_function if mark == CALL else self._function_name
            self._name = ""
        return rest

    def _before_function(self, text: str) -> str:
        self._held += text[0]
        begun = self._held.partition(CALL)[2].lstrip()
        if begun == FUNCTION:
            self._state, self._name = self._function_name, ""
        elif not FUNCTION.startswith(begun):
            self._give_up()
        return text[1:]

    def _function_name(self, text: str) -> str:
        self._held += text[0]
        if text[0] != ">":
            self._name += text[0]
            if len(self._name) > MAX_NAME or text[0] in "<\n":
                self._give_up()
        elif _NAME.fullmatch(self._name):
            self._parts.append(ToolCallBegin(self._num_calls, self._name))
            self._add("{")
            self._num_parameters = 0
            self._held, self._state = "", self._between
        else:
            self._give_up()
        return text[1:]

    def _give_up(self) -> None:
        self._say(self._held)
        self._held, self._state = "", self._content

    def _between(self, text: str) -> str:
        """In a function: a parameter's tag or the function's end."""
        self._held += text[0]
        begun = self._held.lstrip()
        if begun == PARAMETER:
            self._held, self._state = "", self._parameter_name
        elif begun in (FUNCTION_END, CALL_END):
            self._add("}")
            self._end_call()
        elif not any(tag.startswith(begun) for tag in (PARAMETER, FUNCTION_END, CALL_END)):
            held = self._held
            self._end_call()
            self._state, self._held = self._content, ""
            return held + text[1:]
        return text[1:]

    def _parameter_name(self, text: str) -> str:
        if text[0] == ">" or len(self._held) > MAX_NAME:
            self._parameter, self._held, self._state = self._held, "", self._value
        else:
            self._held += text[0]
        return text[1:]

    def _value(self, text: str) -> str:
        """Up to the parameter's end, or to the next tag where a model forgot that."""
        known = len(self._held)
        self._held += text
        ends = (PARAMETER_END, FUNCTION_END, PARAMETER)
        start = max(0, known - max(map(len, ends)))
        place, tag = _first(self._held, ends, start)
        if place < 0:
            return ""
        raw, rest = self._held[:place], self._held[place:]
        separator = ", " if self._num_parameters else ""
        self._num_parameters += 1
        value = as_json(self._read(raw.removeprefix("\n").removesuffix("\n")))
        self._add(f"{separator}{as_json(self._parameter)}: {value}")
        self._held, self._state = "", self._between
        return rest.removeprefix(PARAMETER_END) if tag == PARAMETER_END else rest

    def _read(self, raw: str) -> object:
        schema = self._schemas.get(self._name, {}).get("properties")
        field = schema.get(self._parameter) if isinstance(schema, dict) else None
        if isinstance(field, dict) and field.get("type") == "string":
            return raw
        try:
            return json.loads(raw, parse_constant=lambda constant: raw)
        except (ValueError, RecursionError):
            return raw

    def _end_call(self) -> None:
        self._num_calls += 1
        self._is_after_call = True
        self._held, self._state = "", self._after_call

    def _after_call(self, text: str) -> str:
        """The end of the call around a function, which may be left out."""
        begun = self._held + text[0]
        if not self._held and text[0].isspace():
            return text[1:]
        if begun == CALL_END:
            self._held, self._state = "", self._content
            return text[1:]
        if CALL_END.startswith(begun):
            self._held = begun
            return text[1:]
        held, self._held, self._state = self._held, "", self._content
        return held + text

    def _add(self, text: str) -> None:
        self._parts.append(ToolCallArguments(self._num_calls, text))


def _first(text: str, tags: Sequence[str], start: int) -> tuple[int, str]:
    """Where the first of ``tags`` stands, and which; -1: none."""
    places = [(place, tag) for tag in tags if (place := text.find(tag, start)) >= 0]
    return min(places, default=(-1, ""))
