"""What a model thinks, split off from what it says."""

from __future__ import annotations

from dataclasses import dataclass

from .held import behind_blanks
from .parts import OutputParser, OutputPart, ReasoningText
from .state_parser import StateParser
from .text_gate import TextGate


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """What stands around a family's thoughts."""

    begin: str
    end: str


class ReasoningParser(StateParser):
    """An ``OutputParser``: thoughts at the beginning of an answer, then what ``rest`` makes of it.

    ``is_inside``: the prompt has opened the thoughts already. Blanks around them belong to neither
    side.
    """

    def __init__(self, marks: ThinkingMarks, is_inside: bool, rest: OutputParser) -> None:
        super().__init__()
        self._marks = marks
        self._is_inside = is_inside
        self._rest = rest
        self._gate = TextGate((marks.end,))
        self._state = self._start
        self._is_first = True

    @property
    def is_over(self) -> bool:
        """See ``OutputParser``."""
        return self._rest.is_over

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        held = self._held.drop()
        if self._state == self._start and self._is_inside:
            self._think(held)
        elif self._state == self._start:
            self._parts += self._rest.push(held)
        elif self._state == self._inside:
            self._think(self._gate.flush())
        return self._taken() + self._rest.finish()

    def _start(self, text: str, place: int) -> int:
        place = self._held.take(text, place)
        begun = self._held.begun
        if begun == self._marks.begin:
            self._held.drop()
            self._state = self._inside
        elif not self._marks.begin.startswith(begun):
            self._state = self._inside if self._is_inside else self._outside
            self._feed(self._held.drop())
        return place

    def _inside(self, text: str, place: int) -> int:
        thought, mark, place = self._gate.push(text, place)
        self._think(thought)
        if mark is not None:
            self._state = self._behind
        return place

    def _behind(self, text: str, place: int) -> int:
        """Between the thoughts and the rest."""
        place = behind_blanks(text, place)
        if place < len(text):
            self._state = self._outside
        return place

    def _outside(self, text: str, place: int) -> int:
        self._parts += self._rest.push(text[place:])
        return len(text)

    def _think(self, text: str) -> None:
        if self._is_first:
            text = text.lstrip()
        if text:
            self._is_first = False
            self._parts.append(ReasoningText(text))
