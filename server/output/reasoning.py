"""What a model thinks, split off from what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .parts import OutputParser, OutputPart, ReasoningText
from .text_gate import TextGate


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """What stands around a family's thoughts."""

    begin: str
    end: str


class ReasoningParser:
    """An ``OutputParser``: thoughts at the beginning of an answer, then what ``rest`` makes of it.

    ``is_inside``: the prompt has opened the thoughts already. Blanks around them belong to neither
    side.
    """

    def __init__(self, marks: ThinkingMarks, is_inside: bool, rest: OutputParser) -> None:
        self._marks = marks
        self._is_inside = is_inside
        self._rest = rest
        self._held = ""
        self._gate = TextGate((marks.end,))
        self._state: Callable[[str], str] = self._start
        self._parts: list[OutputPart] = []
        self._is_first = True

    def push(self, text: str) -> list[OutputPart]:
        """See ``OutputParser``."""
        while text:
            text = self._state(text)
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        held, self._held = self._held, ""
        if self._state == self._start and self._is_inside:
            self._think(held)
        elif self._state == self._start:
            self._parts += self._rest.push(held)
        elif self._state == self._inside:
            self._think(self._gate.flush())
        parts, self._parts = self._parts, []
        return parts + self._rest.finish()

    def _start(self, text: str) -> str:
        self._held += text[0]
        begun = self._held.lstrip()
        if begun == self._marks.begin:
            self._held, self._state = "", self._inside
        elif begun and not self._marks.begin.startswith(begun):
            held, self._held = self._held, ""
            self._state = self._inside if self._is_inside else self._outside
            return held + text[1:]
        return text[1:]

    def _inside(self, text: str) -> str:
        thought, mark, rest = self._gate.push(text)
        self._think(thought)
        if mark is None:
            return ""
        self._state = self._behind
        return rest

    def _behind(self, text: str) -> str:
        """Between the thoughts and the rest."""
        text = text.lstrip()
        if text:
            self._state = self._outside
        return text

    def _outside(self, text: str) -> str:
        self._parts += self._rest.push(text)
        return ""

    def _think(self, text: str) -> None:
        if self._is_first:
            text = text.lstrip()
        if text:
            self._is_first = False
            self._parts.append(ReasoningText(text))
