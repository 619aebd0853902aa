"""Tool calls in JSON, as the families write them, between what else a model says."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from .call_scan import CallScanner, JsonCall, NamedCall
from .held import behind_blanks
from .parts import ContentText, OutputPart
from .state_parser import StateParser
from .text_gate import TextGate


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How one family writes calls.

    Behind one of ``marks`` stands an object or a list of them, closed by ``end`` if that is not
    empty; ``bare``: also without a mark, where the answer begins with one of these characters and
    names a tool. ``named``: a mark may also be followed by a name and its arguments. ``parted``: a
    call may be followed by another, behind a semicolon, a comma or nothing.
    """

    marks: tuple[str, ...]
    end: str = ""
    bare: str = ""
    named: bool = False
    parted: bool = False


HERMES = CallFormat(("<tool_call>",), "</tool_call>")
LLAMA3 = CallFormat(("<|python_tag|>",), bare="{[", parted=True)
MISTRAL = CallFormat(("[TOOL_CALLS]",), named=True)
JSON = CallFormat(("<tool_call>",), "</tool_call>", bare="{[", parted=True)
BARE_FORM = CallFormat((), bare="{[", parted=True)

FENCE, FENCES = "```", ("```json\n", "```\n")


class JsonCallsParser(StateParser):
    """An ``OutputParser`` for calls in ``form``; ``names`` are the tools'.

    Behind a mark any name makes a call, with ``is_closed`` only these do.
    A call is one as soon as its name is known and its arguments begin. What never gets there is
    content, and so is what follows where arguments stop being JSON.
    """

    def __init__(
        self,
        form: CallFormat,
        names: Container[str],
        is_single: bool = False,
        is_closed: bool = False,
    ) -> None:
        super().__init__(is_single)
        self._form = form
        self._names = names
        self._marked_names = names if is_closed else None
        self._gate = TextGate(form.marks)
        self._state = self._start if form.bare else self._content
        self._end = form.end
        self._call: CallScanner | None = None
        self._num_calls = 0
        self._in_list = self._is_bare = self._is_after_call = False

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        call, held = self._call, self._held.drop()
        if self._state != self._after_call:  # else it is the beginning of an end
            self._say(held + (call.held if call is not None else "") + self._gate.flush())
        self._call = None
        return self._taken()

    def _say(self, text: str) -> None:
        """Content; blanks at the end of calls are none."""
        if self._is_after_call:
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._parts.append(ContentText(text))

    def _start(self, text: str, place: int) -> int:
        """The beginning of an answer that may be nothing but a call."""
        if not self._held.begun and text[place] in self._form.bare:
            return self._begin_calls(place, is_bare=True)
        place = self._held.take(text, place)
        begun = self._held.begun
        if begun in FENCES and self._form is JSON:
            self._end = FENCE
            return self._begin_calls(place, is_bare=True)
        is_fence = self._form is JSON and any(fence.startswith(begun) for fence in FENCES)
        if begun and not is_fence:
            self._state = self._content
            self._feed(self._held.drop())
        return place

    def _begin_calls(self, place: int, is_bare: bool) -> int:
        self._state, self._is_bare, self._in_list = self._before_call, is_bare, False
        return place

    def _content(self, text: str, place: int) -> int:
        content, mark, place = self._gate.push(text, place)
        self._say(content)
        if mark is None:
            return place
        self._held.put(self._gate.flush() + mark)
        self._end = self._form.end
        return self._begin_calls(place, is_bare=False)

    def _before_call(self, text: str, place: int) -> int:
        """Where an object has to come, or a list of them."""
        char = text[place]
        if char == "{":
            names = self._names if self._is_bare else self._marked_names
            self._call = JsonCall(self._num_calls, names)
            self._state = self._in_call
            return place
        if char.isspace() or (char == "[" and not self._in_list):
            self._in_list = self._in_list or char == "["
            end = behind_blanks(text, place + 1)
            self._held.put(text[place:end])
            return end
        if self._form.named and not self._in_list:
            self._call = NamedCall(self._num_calls, self._marked_names)
            self._state = self._in_call
            return place
        return self._give_up(place)

    def _in_call(self, text: str, place: int) -> int:
        call = self._call
        assert call is not None
        place, parts = call.push(text, place)
        self._parts += parts
        if call.begun:
            self._held.drop()
        if call.status == "open":
            return place
        self._num_calls += call.begun
        self._is_after_call = self._is_after_call or call.begun
        self._call = None
        if self._is_single and call.begun:
            self._state = self._over
            return place
        if call.status == "broken":
            self._held.put(call.held)
            return self._give_up(place)
        self._state = self._after_call
        return place

    def _give_up(self, place: int) -> int:
        """What was taken for a call is none: content, like all up to the next mark."""
        self._say(self._held.drop())
        self._state = self._content
        return place

    def _after_call(self, text: str, place: int) -> int:
        """A call is over: more of its list, its end, or another one."""
        char, begun = text[place], self._held.begun
        if char.isspace() and not begun:
            return behind_blanks(text, place)
        if self._in_list and char in ",]" and not begun:
            self._in_list = char == ","
            self._state = self._before_call if self._in_list else self._after_call
            return place + 1
        if not self._in_list and self._end.startswith(begun + char):
            self._held.take(text, place)
            if self._held.begun == self._end:
                self._held.drop()
                self._state = self._content
            return place + 1
        if self._form.parted and not begun and char in ";,":
            self._state = self._before_call
            return place + 1
        if self._form.parted and not begun and char == "{":
            self._state = self._before_call
            return place
        self._state = self._content
        self._feed(self._held.drop())
        return place
