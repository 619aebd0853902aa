"""What the parsers that go from state to state have in common."""

from __future__ import annotations

from collections.abc import Callable

from .held import Held
from .parts import OutputPart


class StateParser:
    """An ``OutputParser``'s way through its text; the first ``_state`` is for who has the states.

    Each state takes some of the text from a place on, and says where to go on.
    """

    _state: Callable[[str, int], int]

    def __init__(self) -> None:
        self._parts: list[OutputPart] = []
        self._held = Held()

    def push(self, text: str) -> list[OutputPart]:
        """See ``OutputParser``."""
        self._feed(text)
        return self._taken()

    def _feed(self, text: str) -> None:
        place = 0
        while place < len(text):
            place = self._state(text, place)

    def _taken(self) -> list[OutputPart]:
        """The parts that were not given out yet."""
        parts, self._parts = self._parts, []
        return parts
