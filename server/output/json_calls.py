"""Tool calls in JSON, as the families write them, between what else a model says."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from .call_scan import CallScanner, JsonCall, NamedCall
from .parts import ContentText, OutputPart
from .text_gate import TextGate


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How one family writes calls.

    Behind one of ``marks`` stands an object or a list of them, closed by ``end`` if that is not
    empty; ``bare``: also without a mark, where the answer begins with one that names a tool.
    ``named``: a mark may also be followed by a name and its arguments.
    """

    marks: tuple[str, ...]
    end: str = ""
    bare: bool = False
    named: bool = False


HERMES = CallFormat(("<tool_call>",), "</tool_call>")
LLAMA3 = CallFormat(("<|python_tag|>",), bare=True)
MISTRAL = CallFormat(("[TOOL_CALLS]",), named=True)
JSON = CallFormat(("<tool_call>",), "</tool_call>", bare=True)
BARE_FORM = CallFormat((), bare=True)

FENCE, FENCES = "```", ("```json\n", "```\n")


class JsonCallsParser:
    """An ``OutputParser`` for calls in ``form``; ``names`` are the tools'.

    A call is one as soon as its name is known and its arguments begin. What never gets there is
    content, and so is what follows where arguments stop being JSON.
    """

    def __init__(self, form: CallFormat, names: Container[str]) -> None:
        self._form = form
        self._names = names
        self._gate = TextGate(form.marks)
        self._state: Callable[[str], str] = self._start if form.bare else self._content
        self._parts: list[OutputPart] = []
        self._held = ""
        self._end = form.end
        self._call: CallScanner | None = None
        self._num_calls = 0
        self._in_list = self._is_bare = self._is_after_call = False

    def push(self, text: str) -> list[OutputPart]:
        """See ``OutputParser``."""
        while text:
            text = self._state(text)
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        call = self._call
        if self._state != self._after_call:  # else it is the beginning of an end
            self._say(self._held + (call.held if call is not None else "") + self._gate.flush())
        self._held, self._call = "", None
        parts, self._parts = self._parts, []
        return parts

    def _say(self, text: str) -> None:
        """Content; blanks at the end of calls are none."""
        if self._is_after_call:
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._parts.append(ContentText(text))

    def _start(self, text: str) -> str:
        """The beginning of an answer that may be nothing but a call."""
        self._held += text[0]
        begun = self._held.lstrip()
        if begun in ("{", "["):
            self._held = self._held[:-1]
            return self._begin_calls(text, is_bare=True)
        if begun in FENCES and self._form is JSON:
            self._end = FENCE
            return self._begin_calls(text[1:], is_bare=True)
        is_fence = self._form is JSON and any(fence.startswith(begun) for fence in FENCES)
        if begun and not is_fence:
            self._state = self._content
            held, self._held = self._held, ""
            return held + text[1:]
        return text[1:]

    def _begin_calls(self, rest: str, is_bare: bool) -> str:
        self._state, self._is_bare, self._in_list = self._before_call, is_bare, False
        return rest

    def _content(self, text: str) -> str:
        content, mark, rest = self._gate.push(text)
        self._say(content)
        if mark is None:
            return ""
        self._held = self._gate.flush() + mark
        self._end = self._form.end
        return self._begin_calls(rest, is_bare=False)

    def _before_call(self, text: str) -> str:
        """Where an object has to come, or a list of them."""
        char = text[0]
        if char == "{":
            self._call = JsonCall(self._num_calls, self._names if self._is_bare else None)
            self._state = self._in_call
            return text
        if char.isspace() or (char == "[" and not self._in_list):
            self._in_list = self._in_list or char == "["
            self._held += char
            return text[1:]
        if self._form.named and not self._in_list:
            self._call = NamedCall(self._num_calls)
            self._state = self._in_call
            return text
        return self._give_up(text)

    def _in_call(self, text: str) -> str:
        call = self._call
        assert call is not None
        place, parts = call.push(text, 0)
        self._parts += parts
        if call.begun:
            self._held = ""
        if call.status == "open":
            return ""
        self._num_calls += call.begun
        self._is_after_call = self._is_after_call or call.begun
        self._call = None
        if call.status == "broken":
            self._held += call.held
            return self._give_up(text[place:])
        self._state = self._after_call
        return text[place:]

    def _give_up(self, rest: str) -> str:
        """What was taken for a call is none: content, like all up to the next mark."""
        self._say(self._held)
        self._held, self._state = "", self._content
        return rest

    def _after_call(self, text: str) -> str:
        """A call is over: more of its list, its end, or another one."""
        char, before = text[0], self._held.lstrip()
        if char.isspace() and not before:
            return text[1:]
        if self._in_list and char in ",]" and not before:
            self._in_list = char == ","
            self._state = self._before_call if self._in_list else self._after_call
            return text[1:]
        if not self._in_list and self._end.startswith(before + char):
            self._held += char
            if self._held == self._end:
                self._held, self._state = "", self._content
            return text[1:]
        if self._form.bare and not before and char in ";,":
            self._state = self._before_call
            return text[1:]
        if self._form.bare and not before and char == "{":
            self._state = self._before_call
            return text
        held, self._held, self._state = self._held, "", self._content
        return held + text
