"""Tool calls as Qwen3-Coder writes them: a function and its parameters in tags."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .call_scan import as_json
from .held import MarkSearch, behind_blanks
from .parts import ContentText, OutputPart, ToolCallArguments, ToolCallBegin
from .state_parser import StateParser
from .text_gate import TextGate

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MAX_NAME = 256

_NAME = re.compile(r"[\w.:/-]{1,256}", re.ASCII)


class XmlCallsParser(StateParser):
    """An ``OutputParser``; ``schemas`` are the tools' parameters by name, which tell texts from
    numbers. With ``is_closed`` only these are called.

    A call is one as soon as its function's tag is closed; its parameters come one by one, and one
    that comes again counts no more.
    """

    def __init__(
        self,
        schemas: Mapping[str, Mapping[str, Any]],
        is_single: bool = False,
        is_closed: bool = False,
    ) -> None:
        super().__init__(is_single)
        self._schemas = schemas
        self._is_closed = is_closed
        self._gate = TextGate((CALL, FUNCTION))
        self._state = self._content
        self._value_end = MarkSearch((PARAMETER_END, FUNCTION_END, PARAMETER))
        self._pieces: list[str] = []
        self._num_calls = 0
        self._is_after_call = False
        self._name = self._parameter = ""
        self._told: set[str] = set()

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        held = self._held.drop()
        if self._state in (self._content, self._before_function, self._function_name):
            self._say(held + self._gate.flush())
        return self._taken()

    def _say(self, text: str) -> None:
        if self._is_after_call:
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._parts.append(ContentText(text))

    def _content(self, text: str, place: int) -> int:
        content, mark, place = self._gate.push(text, place)
        self._say(content)
        if mark is not None:
            self._held.put(self._gate.flush() + mark)
            self._state = self._before_function if mark == CALL else self._function_name
            self._name = ""
        return place

    def _before_function(self, text: str, place: int) -> int:
        place = self._held.take(text, place)
        begun = self._held.begun
        if begun == FUNCTION:
            self._state, self._name = self._function_name, ""
        elif not FUNCTION.startswith(begun):
            self._give_up()
        return place

    def _function_name(self, text: str, place: int) -> int:
        char = text[place]
        self._held.put(char)
        if char != ">":
            self._name += char
            if len(self._name) > MAX_NAME or char in "<\n":
                self._give_up()
        elif self._is_tool():
            self._parts.append(ToolCallBegin(self._num_calls, self._name))
            self._add("{")
            self._told = set()
            self._held.drop()
            self._state = self._between
        else:
            self._give_up()
        return place + 1

    def _is_tool(self) -> bool:
        known = self._name in self._schemas or not self._is_closed
        return known and _NAME.fullmatch(self._name) is not None

    def _give_up(self) -> None:
        self._say(self._held.drop())
        self._state = self._content

    def _between(self, text: str, place: int) -> int:
        """In a function: a parameter's tag or the function's end."""
        place = self._held.take(text, place)
        begun = self._held.begun
        if begun == PARAMETER:
            self._held.drop()
            self._parameter, self._state = "", self._parameter_name
        elif begun in (FUNCTION_END, CALL_END):
            self._add("}")
            self._end_call(self._after_call)
        elif not any(tag.startswith(begun) for tag in (PARAMETER, FUNCTION_END, CALL_END)):
            held = self._held.drop()
            self._end_call(self._content)
            self._feed(held)
        return place

    def _parameter_name(self, text: str, place: int) -> int:
        if text[place] == ">" or len(self._parameter) > MAX_NAME:
            self._state = self._value
        else:
            self._parameter += text[place]
        return place + 1

    def _value(self, text: str, place: int) -> int:
        """Up to the parameter's end, or to the next tag where a model forgot that."""
        piece, tag, place = self._value_end.push(text, place)
        self._pieces.append(piece)
        if tag is None:
            return place
        raw = "".join(self._pieces)
        self._pieces.clear()
        if self._parameter not in self._told:
            separator = ", " if self._told else ""
            self._told.add(self._parameter)
            value = self._json_of(raw.removeprefix("\n").removesuffix("\n"))
            self._add(f"{separator}{as_json(self._parameter)}: {value}")
        self._state = self._between
        if tag != PARAMETER_END:
            self._feed(tag)
        return place

    def _json_of(self, raw: str) -> str:
        value = self._read(raw)
        # A number that is too large for Python stays as it is written.
        return raw.strip() if isinstance(value, float) else as_json(value)

    def _read(self, raw: str) -> object:
        schema = self._schemas.get(self._name, {}).get("properties")
        field = schema.get(self._parameter) if isinstance(schema, dict) else None
        if isinstance(field, dict) and field.get("type") == "string":
            return raw
        try:
            return json.loads(raw, parse_constant=lambda constant: raw)
        except (ValueError, RecursionError):
            return raw

    def _end_call(self, then: Callable[[str, int], int]) -> None:
        self._num_calls += 1
        self._is_after_call = True
        self._held.drop()
        self._state = self._over if self._is_single else then

    def _after_call(self, text: str, place: int) -> int:
        """The end of the call around a function, which may be left out."""
        char, begun = text[place], self._held.begun
        if char.isspace() and not begun:
            return behind_blanks(text, place)
        if CALL_END.startswith(begun + char):
            self._held.take(text, place)
            if self._held.begun == CALL_END:
                self._held.drop()
                self._state = self._content
            return place + 1
        self._state = self._content
        self._feed(self._held.drop())
        return place

    def _add(self, text: str) -> None:
        self._parts.append(ToolCallArguments(self._num_calls, text))
