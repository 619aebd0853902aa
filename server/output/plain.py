"""Answers that are nothing but content."""

from __future__ import annotations

from .parts import ContentText, OutputPart


class PlainParser:
    """An ``OutputParser`` that finds content only."""

    is_over = False

    def push(self, text: str) -> list[OutputPart]:
        """See ``OutputParser``."""
        return [ContentText(text)] if text else []

    def finish(self) -> list[OutputPart]:
        """See ``OutputParser``."""
        return []
