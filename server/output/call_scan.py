"""One tool call as models write it: an object of JSON, or a name and its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any, Literal, Protocol

from .json_scan import JsonScanner
from .parts import OutputPart, ToolCallArguments, ToolCallBegin

ARGUMENTS = ("arguments", "parameters")
MAX_HEAD = 4096
"""Arguments that begin later are given when the call is whole."""

_KEYS = frozenset({"name", "id", "type", "function", *ARGUMENTS})
_NAME = re.compile(r"[\w.:/-]{1,256}", re.ASCII)
_NAME_END = ("[ARGS]", "[CALL_ID]")

Status = Literal["open", "done", "broken"]


class CallScanner(Protocol):
    """Reads one call; ``held`` is what of its text has led to nothing so far."""

    status: Status
    begun: bool

    @property
    def held(self) -> str:
        """See the class."""

    def push(self, text: str, start: int) -> tuple[int, list[OutputPart]]:
        """Go on from ``start`` to the call's end or the text's; returns where, and what is new."""


class JsonCall:
    """``{"name": …, "arguments": {…}}``, or ``parameters``, or under ``function``.

    With the name in front the arguments are given as they come. ``names`` are those that make an
    object a call; None: any name does.
    """

    def __init__(self, index: int, names: Container[str] | None) -> None:
        self.status: Status = "open"
        self.begun = False
        self._held: list[str] = []
        self._num_held = 0
        self._index = index
        self._names = names
        self._json = JsonScanner()
        self._in_arguments = False
        self._key_seen = False

    @property
    def held(self) -> str:
        """See ``CallScanner``."""
        return "".join(self._held)

    def push(self, text: str, start: int) -> tuple[int, list[OutputPart]]:
        """See ``CallScanner``."""
        parts: list[OutputPart] = []
        place = start
        while place < len(text) and self.status == "open":
            before = place
            place, taken = self._json.advance(text, place)
            if self._in_arguments:
                parts.append(ToolCallArguments(self._index, taken))
                self._in_arguments = self._json.depth > 1
            else:
                self._held.append(text[before:place])
                self._num_held += place - before
                parts += self._look(text[before:place][-1:])
            if self._json.failed:
                self.status = "broken"
            elif self._json.done:
                self.status = "done"
                parts += self._end()
        return place, parts

    def _look(self, last: str) -> list[OutputPart]:
        """Whether what is held, up to the character ``last``, begins a call, or can't."""
        json_ = self._json
        if self.begun or json_.failed or json_.in_string:
            return []
        if last == ":" and json_.depth == 1 and not self._key_seen:
            self._key_seen = True
            if not _KEYS.issuperset(_fields(self.held + "null}") or ("",)):
                self.status = "broken"
        is_inner = last == "{" and json_.depth == 2
        if not is_inner or self._num_held > MAX_HEAD:
            return []
        fields = _fields(self.held[:-1] + "null}")
        name = self._name(fields)
        if name is None or not fields or list(fields)[-1] not in ARGUMENTS:
            return []
        self.begun = self._in_arguments = True
        self._held.clear()
        return [ToolCallBegin(self._index, name), ToolCallArguments(self._index, "{")]

    def _end(self) -> list[OutputPart]:
        """The call, where its parts came in another order."""
        if self.begun:
            self._held.clear()
            return []
        fields = _fields(self.held)
        if fields and isinstance(fields.get("function"), dict):
            fields = fields["function"]
        name, arguments = self._name(fields), _arguments(fields or {})
        if name is None or arguments is None:
            self.status = "broken"
            return []
        self.begun = True
        self._held.clear()
        return [ToolCallBegin(self._index, name), ToolCallArguments(self._index, arguments)]

    def _name(self, fields: dict[str, Any] | None) -> str | None:
        name = (fields or {}).get("name")
        return name if isinstance(name, str) and _is_tool(name, self._names) else None


class NamedCall:
    """``name[ARGS]{…}``, with ``[CALL_ID]id`` between or without ``[ARGS]``, as Mistral's do.

    ``names`` are ``JsonCall``'s.
    """

    def __init__(self, index: int, names: Container[str] | None) -> None:
        self.status: Status = "open"
        self.begun = False
        self.held = ""
        self._index = index
        self._names = names
        self._json = JsonScanner()

    def push(self, text: str, start: int) -> tuple[int, list[OutputPart]]:
        """See ``CallScanner``."""
        parts: list[OutputPart] = []
        place = start
        while place < len(text) and self.status == "open" and not self.begun:
            if text[place] != "{":
                self.held += text[place]
                place += 1
                self.status = "open" if self._may_be_name() else "broken"
            elif _is_tool(name := self._name(), self._names):
                self.begun = True
                self.held = ""
                parts.append(ToolCallBegin(self._index, name))
            else:
                self.status = "broken"
        while place < len(text) and self.status == "open":
            place, taken = self._json.advance(text, place)
            parts.append(ToolCallArguments(self._index, taken))
            if self._json.failed or self._json.done:
                self.status = "done" if self._json.done else "broken"
        return place, parts

    def _name(self) -> str:
        return self.held.partition("[")[0].strip()

    def _may_be_name(self) -> bool:
        """Whether this is a name so far, or a name and the marks behind it."""
        name, bracket, rest = self.held.partition("[")
        if not bracket:
            return len(name) <= 256 and (_NAME.fullmatch(name.strip()) is not None)
        marks = bracket + rest
        return len(marks) <= 128 and any(mark.startswith(marks[: len(mark)]) for mark in _NAME_END)


def _is_tool(name: str, names: Container[str] | None) -> bool:
    return _NAME.fullmatch(name) is not None and (names is None or name in names)


def _fields(text: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _arguments(fields: dict[str, Any]) -> str | None:
    """The arguments as JSON; None for what are none. Some models write them as a string."""
    value = next((fields[key] for key in ARGUMENTS if key in fields), None)
    if value is None:
        return "{}"
    if isinstance(value, str):
        value = _fields(value)
    return as_json(value) if isinstance(value, dict) else None


def as_json(value: object) -> str:
    """JSON with its characters as they are, but for halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
