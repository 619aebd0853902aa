"""Answers that may have a form of the client's: its text is content, whatever marks it holds."""

from __future__ import annotations

from collections.abc import Sequence

from .parts import ContentText, OutputParser, OutputPart
from .state_parser import StateParser


class BesideFormParser(StateParser):
    """An ``OutputParser``: what begins with one of ``marks`` is for ``calls``, all else is content.

    Blanks may stand in front of the mark.
    """

    def __init__(self, marks: Sequence[str], calls: OutputParser) -> None:
        super().__init__()
        self._marks = tuple(marks)
        self._calls = calls
        self._state = self._start

    @property
    def is_over(self) -> bool:
        """See ``OutputParser``."""
        return self._calls.is_over

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        self._say(self._held.drop())
        return self._taken() + self._calls.finish()

    def _start(self, text: str, place: int) -> int:
        place = self._held.take(text, place)
        begun = self._held.begun
        if begun in self._marks:
            self._state = self._called
            self._feed(self._held.drop())
        elif begun and not any(mark.startswith(begun) for mark in self._marks):
            self._state = self._content
            self._feed(self._held.drop())
        return place

    def _called(self, text: str, place: int) -> int:
        self._parts += self._calls.push(text[place:])
        return len(text)

    def _content(self, text: str, place: int) -> int:
        self._say(text[place:])
        return len(text)

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(ContentText(text))
