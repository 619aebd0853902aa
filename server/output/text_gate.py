"""Content up to a mark, wherever the text is cut."""

from __future__ import annotations

from collections.abc import Sequence


class TextGate:
    """Lets text through up to one of ``marks``.

    It holds back what may be the beginning of a mark, and the blanks in front of it, which are no
    content where the mark is one.
    """

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = tuple(marks)
        self.held = ""

    def push(self, text: str) -> tuple[str, str | None, str]:
        """What is content for sure, then the mark that was found, if any, and what is behind it.

        With a mark, ``held`` is the blanks in front of it.
        """
        window = self.held + text
        found = min(
            ((place, mark) for mark in self._marks if (place := window.find(mark)) >= 0),
            default=None,
        )
        if found is not None:
            place, mark = found
            content = window[:place].rstrip()
            self.held = window[len(content) : place]
            return content, mark, window[place + len(mark) :]
        content = window[: len(window) - self._num_partial(window)].rstrip()
        self.held = window[len(content) :]
        return content, None, ""

    def flush(self) -> str:
        """What was held back."""
        held, self.held = self.held, ""
        return held

    def _num_partial(self, window: str) -> int:
        longest = min(len(window), max(map(len, self._marks), default=1) - 1)
        for length in range(longest, 0, -1):
            end = window[-length:]
            if any(len(mark) > length and mark.startswith(end) for mark in self._marks):
                return length
        return 0
