"""Content up to a mark, wherever the text is cut."""

from __future__ import annotations

from collections.abc import Sequence

from .held import MarkSearch


class TextGate:
    """Lets text through up to one of ``marks``.

    It holds back what may be the beginning of a mark, and the blanks in front of it, which are no
    content where the mark is one.
    """

    def __init__(self, marks: Sequence[str]) -> None:
        self._search = MarkSearch(marks)
        self._blanks: list[str] = []

    def push(self, text: str, place: int) -> tuple[str, str | None, int]:
        """What is content for sure, then the mark that was found, if any, and where it ends.

        With a mark, what is held are the blanks in front of it.
        """
        before, mark, place = self._search.push(text, place)
        content = before.rstrip()
        blanks = before[len(content) :]
        if content:
            content = "".join(self._blanks) + content
            self._blanks = [blanks]
        elif blanks:
            self._blanks.append(blanks)
        return content, mark, place

    def flush(self) -> str:
        """What was held back."""
        blanks, self._blanks = "".join(self._blanks), []
        return blanks + self._search.drop()
