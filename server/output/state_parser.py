"""What the parsers that go from state to state have in common."""

from __future__ import annotations

from collections.abc import Callable

from .held import Held
from .parts import OutputPart


class StateParser:
    """An ``OutputParser``'s way through its text; the first ``_state`` is for who has the states.

    Each state takes some of the text from a place on, and says where to go on. With ``is_single``
    the answer is over where its first call ends, however that is; nothing comes of what follows.
    """

    _state: Callable[[str, int], int]

    def __init__(self, is_single: bool = False) -> None:
        self._is_single = is_single
        self._parts: list[OutputPart] = []
        self._held = Held()

    @property
    def is_over(self) -> bool:
        """See ``OutputParser``."""
        return self._state == self._over

    def push(self, text: str) -> list[OutputPart]:
        """See ``OutputParser``."""
        self._feed(text)
        return self._taken()

    def _feed(self, text: str) -> None:
        place = 0
        while place < len(text):
            place = self._state(text, place)

    def _over(self, text: str, place: int) -> int:
        """Behind the one call that may be."""
        return len(text)

    def _taken(self) -> list[OutputPart]:
        """The parts that were not given out yet."""
        parts, self._parts = self._parts, []
        return parts
