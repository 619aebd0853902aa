"""Text that is held back, and marks found in it, in time that grows with the text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BLANKS = re.compile(r"\s*")


def behind_blanks(text: str, place: int) -> int:
    """The place of the first character from ``place`` on that is no blank, or the text's end."""
    blanks = _BLANKS.match(text, place)
    assert blanks is not None
    return blanks.end()


class Held:
    """What may yet turn out to be content; ``begun``: its end, which may begin a mark."""

    def __init__(self) -> None:
        self.begun = ""
        self._front: list[str] = []

    def put(self, text: str) -> None:
        """Hold this too; what had begun has led to nothing more."""
        self._front += (self.begun, text)
        self.begun = ""

    def take(self, text: str, place: int) -> int:
        """Hold the next character, or all blanks at once where nothing has begun; returns where
        to go on."""
        if not self.begun:
            end = behind_blanks(text, place)
            if end > place:
                self._front.append(text[place:end])
                return end
        self.begun += text[place]
        return place + 1

    def drop(self) -> str:
        """All of it; nothing is held any more."""
        whole = "".join(self._front) + self.begun
        self._front.clear()
        self.begun = ""
        return whole


class MarkSearch:
    """Finds the first of ``marks`` in a text that comes in pieces."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = tuple(sorted(marks))
        self._any = re.compile("|".join(map(re.escape, self._marks)) or "(?!)")
        self._num_ahead = max(map(len, self._marks), default=1) - 1
        self._begun = ""

    def push(self, text: str, place: int) -> tuple[str, str | None, int]:
        """What comes before the next mark, the mark, and the place behind it.

        Without a mark it is all there is, but for what may be the beginning of one.
        """
        begun, self._begun = self._begun, ""
        seam = begun + text[place : place + self._num_ahead] if begun else ""
        found = self._any.search(seam)
        if found is not None and found.start() < len(begun):
            return seam[: found.start()], found[0], place + found.end() - len(begun)
        found = self._any.search(text, place)
        if found is not None:
            return begun + text[place : found.start()], found[0], found.end()
        window = begun + text[place:]
        length = len(window) - self._num_partial(window)
        self._begun = window[length:]
        return window[:length], None, len(text)

    def drop(self) -> str:
        """What was held back."""
        begun, self._begun = self._begun, ""
        return begun

    def _num_partial(self, window: str) -> int:
        for length in range(min(len(window), self._num_ahead), 0, -1):
            end = window[-length:]
            if any(len(mark) > length and mark.startswith(end) for mark in self._marks):
                return length
        return 0
